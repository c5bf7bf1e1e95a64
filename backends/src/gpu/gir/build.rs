//! Builds kernels: equal values are computed once, constants fold, regions nest by closures.

use super::{Binary, Buffer, Carried, Compare, Convert, Elem, Joined, Kernel, Op, Shared, Space, Stmt, Ty, Unary, Val, Words};
use nnc_ir::target::Cooperative;
use std::collections::HashMap;
use std::sync::Arc;

pub struct Builder {
    kernel: Kernel,
    /// Open regions, innermost last.
    blocks: Vec<Vec<Stmt>>,
    /// What is computed already, by region.
    known: Vec<HashMap<Op, Val>>,
    constants: HashMap<Val, u64>,
}

impl Builder {
    pub fn new(name: impl Into<Arc<str>>, threads: u32) -> Builder {
        let kernel =
            Kernel { name: name.into(), threads, buffers: vec![], scalars: 0, shared: vec![], cooperative: None, types: vec![], body: vec![] };
        Builder { kernel, blocks: vec![vec![]], known: vec![HashMap::new()], constants: HashMap::new() }
    }

    pub fn buffer(&mut self, elem: Elem, written: bool) -> Space {
        self.kernel.buffers.push(Buffer { elem, written });
        Space::Global(self.kernel.buffers.len() as u32 - 1)
    }

    pub fn shared(&mut self, elem: Elem, len: u32) -> Space {
        self.kernel.shared.push(Shared { elem, len });
        Space::Shared(self.kernel.shared.len() as u32 - 1)
    }

    /// Says of which shape matrices are.
    pub fn cooperate(&mut self, shape: Cooperative) {
        self.kernel.cooperative = Some(shape);
    }

    /// The next scalar of the launch.
    pub fn scalar(&mut self) -> Val {
        self.kernel.scalars += 1;
        self.value(Op::Scalar(self.kernel.scalars - 1))
    }

    pub fn ty(&self, v: Val) -> Ty {
        self.kernel.ty(v)
    }

    /// A value that something other than an operation defines: a loop, or an `If`.
    pub fn fresh(&mut self, ty: Ty) -> Val {
        self.kernel.types.push(ty);
        Val(self.kernel.types.len() as u32 - 1)
    }

    /// The type of what `op` computes.
    fn type_of(&self, op: &Op) -> Ty {
        match *op {
            Op::Const(ty, _) | Op::Convert(_, ty, _) => ty,
            Op::Scalar(_) | Op::Thread | Op::Group | Op::Groups | Op::Lane | Op::Lanes | Op::Subgroup => Ty::I32,
            Op::Unary(_, a) | Op::Binary(_, a, _) | Op::MulAdd(.., a) | Op::SubgroupFold(_, a) | Op::SubgroupXor(a, _) => self.ty(a),
            Op::Select(_, a, _) => self.ty(a),
            Op::Compare(..) => Ty::Bool,
            Op::Pair(..) | Op::Tf32(_) => Ty::I32,
            Op::LoadMatrix { matrix, .. } => matrix,
            Op::Load { from, .. } => self.kernel.elem(from).ty(),
        }
    }

    pub fn value(&mut self, op: Op) -> Val {
        if op.is_pure()
            && let Some(v) = self.known.iter().rev().find_map(|k| k.get(&op))
        {
            return *v;
        }
        let v = self.fresh(self.type_of(&op));
        // Constants stand first in the kernel, where everything sees them.
        if let Op::Const(_, bits) = op {
            self.constants.insert(v, bits);
            self.blocks[0].insert(0, Stmt::Let(v, op));
            self.known[0].insert(op, v);
            return v;
        }
        self.emit(Stmt::Let(v, op));
        if op.is_pure() {
            self.known.last_mut().expect("a region is open").insert(op, v);
        }
        v
    }

    pub fn emit(&mut self, s: Stmt) {
        self.blocks.last_mut().expect("a region is open").push(s);
    }

    pub fn constant(&self, v: Val) -> Option<u64> {
        self.constants.get(&v).copied()
    }

    pub fn bool(&mut self, b: bool) -> Val {
        self.value(Op::Const(Ty::Bool, b.into()))
    }

    pub fn i32(&mut self, i: i32) -> Val {
        self.value(Op::Const(Ty::I32, i as u32 as u64))
    }

    pub fn int(&mut self, ty: Ty, i: i64) -> Val {
        if ty == Ty::I64 { self.value(Op::Const(ty, i as u64)) } else { self.i32(i as i32) }
    }

    pub fn f32(&mut self, x: f32) -> Val {
        self.value(Op::Const(Ty::F32, x.to_bits().into()))
    }

    pub fn float(&mut self, ty: Ty, x: f64) -> Val {
        if ty == Ty::F64 { self.value(Op::Const(ty, x.to_bits())) } else { self.f32(x as f32) }
    }

    pub fn unary(&mut self, op: Unary, a: Val) -> Val {
        self.value(Op::Unary(op, a))
    }

    pub fn binary(&mut self, op: Binary, a: Val, b: Val) -> Val {
        let ty = self.ty(a);
        if let (true, x, y) = (ty.is_int(), self.constant(a), self.constant(b)) {
            if let (Some(x), Some(y)) = (x, y)
                && let Some(bits) = super::interp::integer(op, ty, x, y)
            {
                return self.value(Op::Const(ty, bits));
            }
            match (op, x, y) {
                (Binary::Add | Binary::Or | Binary::Xor, Some(0), _) => return b,
                (Binary::Add | Binary::Sub | Binary::Or | Binary::Xor | Binary::Shl | Binary::ShrS | Binary::ShrU, _, Some(0)) => return a,
                (Binary::Mul, Some(1), _) => return b,
                (Binary::Mul | Binary::DivS | Binary::DivU, _, Some(1)) => return a,
                (Binary::Mul, Some(0), _) => return a,
                (Binary::Mul, _, Some(0)) => return b,
                _ => {}
            }
        }
        if let (Ty::Bool, x, y) = (ty, self.constant(a), self.constant(b)) {
            match (op, x, y) {
                (Binary::And, Some(1), _) | (Binary::Or, Some(0), _) => return b,
                (Binary::And, _, Some(1)) | (Binary::Or, _, Some(0)) => return a,
                _ => {}
            }
        }
        self.value(Op::Binary(op, a, b))
    }

    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.binary(Binary::Add, a, b)
    }

    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.binary(Binary::Sub, a, b)
    }

    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.binary(Binary::Mul, a, b)
    }

    pub fn and(&mut self, a: Val, b: Val) -> Val {
        self.binary(Binary::And, a, b)
    }

    pub fn or(&mut self, a: Val, b: Val) -> Val {
        self.binary(Binary::Or, a, b)
    }

    pub fn not(&mut self, a: Val) -> Val {
        self.unary(Unary::Not, a)
    }

    /// An integer or float operation with a constant.
    pub fn with(&mut self, op: Binary, a: Val, b: i64) -> Val {
        let b = self.int(self.ty(a), b);
        self.binary(op, a, b)
    }

    pub fn compare(&mut self, op: Compare, a: Val, b: Val) -> Val {
        self.value(Op::Compare(op, a, b))
    }

    pub fn compare_with(&mut self, op: Compare, a: Val, b: i64) -> Val {
        let b = self.int(self.ty(a), b);
        self.compare(op, a, b)
    }

    pub fn select(&mut self, c: Val, a: Val, b: Val) -> Val {
        match self.constant(c) {
            Some(0) => b,
            Some(_) => a,
            None if a == b => a,
            None => self.value(Op::Select(c, a, b)),
        }
    }

    pub fn convert(&mut self, op: Convert, to: Ty, a: Val) -> Val {
        if let (Some(bits), Convert::ExtendS) = (self.constant(a), op) {
            return self.int(to, i64::from(bits as u32 as i32));
        }
        self.value(Op::Convert(op, to, a))
    }

    pub fn bits(&mut self, to: Ty, a: Val) -> Val {
        self.convert(Convert::Bits, to, a)
    }

    pub fn load(&mut self, from: Space, index: Val) -> Val {
        self.value(Op::Load { from, index })
    }

    pub fn store(&mut self, to: Space, index: Val, value: Val) {
        self.emit(Stmt::Store { to, index, value });
    }

    /// So many neighbours, of which `index` names the first: one by itself, or [`Stmt::LoadVector`].
    pub fn load_vector(&mut self, from: Space, index: Val, n: u32) -> Vec<Val> {
        if n == 1 {
            return vec![self.load(from, index)];
        }
        let ty = self.kernel.elem(from).ty();
        let values: Vec<Val> = (0..n).map(|_| self.fresh(ty)).collect();
        self.emit(Stmt::LoadVector { values: values.clone(), from, index });
        values
    }

    /// One by itself, or [`Stmt::StoreVector`].
    pub fn store_vector(&mut self, to: Space, index: Val, values: Vec<Val>) {
        match values[..] {
            [value] => self.store(to, index, value),
            _ => self.emit(Stmt::StoreVector { to, index, values }),
        }
    }

    /// [`Stmt::LoadMatrices`] of `N` matrices.
    pub fn load_matrices<const N: usize>(&mut self, from: Space, index: Val) -> [Val; N] {
        let values = [(); N].map(|()| self.fresh(Ty::I32));
        self.emit(Stmt::LoadMatrices { values: values.to_vec(), from, index });
        values
    }

    /// [`Stmt::MultiplyMatrices`].
    pub fn multiply_matrices(&mut self, words: Words, a: [Val; 4], b: [Val; 2], c: [Val; 4]) -> [Val; 4] {
        let values = [(); 4].map(|()| self.fresh(Ty::F32));
        self.emit(Stmt::MultiplyMatrices { words, values, a, b, c });
        values
    }

    /// Opens a region: what is emitted up to [`Builder::end`] stands in it.
    pub fn begin(&mut self) {
        self.blocks.push(vec![]);
        self.known.push(HashMap::new());
    }

    /// Closes the region that the last [`Builder::begin`] opened.
    pub fn end(&mut self) -> Vec<Stmt> {
        self.known.pop();
        self.blocks.pop().expect("a region is open")
    }

    /// Builds a region of its own; `f` gives what it comes to.
    fn region<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> (Vec<Stmt>, T) {
        self.begin();
        let out = f(self);
        (self.end(), out)
    }

    /// Both regions give as many values, of the same types.
    pub fn if_(&mut self, cond: Val, then: impl FnOnce(&mut Self) -> Vec<Val>, otherwise: impl FnOnce(&mut Self) -> Vec<Val>) -> Vec<Val> {
        let (then, a) = self.region(then);
        let (otherwise, b) = self.region(otherwise);
        self.join(cond, (then, a), (otherwise, b))
    }

    /// An `If` of closed regions and what they come to.
    pub fn join(&mut self, cond: Val, then: (Vec<Stmt>, Vec<Val>), otherwise: (Vec<Stmt>, Vec<Val>)) -> Vec<Val> {
        assert_eq!(then.1.len(), otherwise.1.len(), "kernel {}: an if gives as many values on both sides", self.kernel.name);
        let mut joined = vec![];
        let mut out = vec![];
        for (a, b) in then.1.into_iter().zip(otherwise.1) {
            let value = if a == b { a } else { self.fresh(self.ty(a)) };
            if a != b {
                joined.push(Joined { value, then: a, otherwise: b });
            }
            out.push(value);
        }
        self.emit(Stmt::If { cond, then: then.0, otherwise: otherwise.0, joined });
        out
    }

    pub fn when(&mut self, cond: Val, then: impl FnOnce(&mut Self)) {
        let (then, ()) = self.region(then);
        self.join(cond, (then, vec![]), (vec![], vec![]));
    }

    /// `body` is given the index and what is carried, and gives what is carried on.
    pub fn for_(&mut self, lo: Val, hi: Val, first: &[Val], body: impl FnOnce(&mut Self, Val, &[Val]) -> Vec<Val>) -> Vec<Val> {
        let index = self.fresh(self.ty(lo));
        let values: Vec<Val> = first.iter().map(|f| self.fresh(self.ty(*f))).collect();
        let (body, next) = self.region(|b| body(b, index, &values));
        let carried = carry(&values, first, next);
        self.emit(Stmt::For { index, lo, hi, carried, body });
        values
    }

    /// Closes the region that the last [`Builder::begin`] opened as the body of a loop over `index`.
    pub fn end_for(&mut self, index: Val, (lo, hi): (Val, Val), first: &[Val], values: &[Val], next: Vec<Val>) {
        let body = self.end();
        let carried = carry(values, first, next);
        self.emit(Stmt::For { index, lo, hi, carried, body });
    }

    /// `head` is given what is carried and decides whether to go on.
    pub fn while_(
        &mut self,
        first: &[Val],
        head: impl FnOnce(&mut Self, &[Val]) -> Val,
        body: impl FnOnce(&mut Self, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let values: Vec<Val> = first.iter().map(|f| self.fresh(self.ty(*f))).collect();
        let (head, cond) = self.region(|b| head(b, &values));
        let (body, next) = self.region(|b| body(b, &values));
        let carried = carry(&values, first, next);
        self.emit(Stmt::While { carried, head, cond, body });
        values
    }

    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.blocks.pop().expect("the outermost region");
        self.kernel
    }
}

fn carry(values: &[Val], first: &[Val], next: Vec<Val>) -> Vec<Carried> {
    assert_eq!(values.len(), next.len(), "a loop carries on what it is given");
    values.iter().zip(first).zip(next).map(|((value, first), next)| Carried { value: *value, first: *first, next }).collect()
}
