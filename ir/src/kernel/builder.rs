//! Builds kernels: expressions with index arithmetic folded, statements nested by closures.

use super::{Access, Expr, ExprId, Fault, Kernel, Origin, Param, Stmt, VarId};
use crate::dim::{Atom, Dim, DimNode};
use crate::scalar::{Num, ScalarFn};
use crate::types::DType;
use std::sync::Arc;

/// A kernel under construction. Task number and sizes are there from the start.
pub struct KernelBuilder {
    kernel: Kernel,
    /// Open statement lists, innermost last.
    blocks: Vec<Vec<Stmt>>,
}

impl KernelBuilder {
    pub fn new(name: impl Into<Arc<str>>, sizes: u32) -> KernelBuilder {
        let kernel = Kernel {
            name: name.into(),
            params: vec![],
            sizes,
            vars: vec![DType::I64],
            exprs: vec![],
            tasks: Dim::Const(1),
            task: VarId(0),
            body: vec![],
            origin: None,
        };
        KernelBuilder { kernel, blocks: vec![vec![]] }
    }

    pub fn param(&mut self, dtype: DType, access: Access, elems: Dim) -> u32 {
        self.kernel.params.push(Param { dtype, access, elems });
        self.kernel.params.len() as u32 - 1
    }

    /// Splits the work: `tasks` over the sizes; returns the task number.
    pub fn tasks(&mut self, tasks: Dim) -> ExprId {
        self.kernel.tasks = tasks;
        let v = self.kernel.task;
        self.var(v)
    }

    pub fn expr(&mut self, e: Expr) -> ExprId {
        // The last few are compared, which is enough to share the index arithmetic of neighbours and keeps building linear.
        let from = self.kernel.exprs.len().saturating_sub(24);
        if let Some(i) = self.kernel.exprs[from..].iter().position(|x| *x == e) {
            return ExprId((from + i) as u32);
        }
        self.kernel.exprs.push(e);
        ExprId(self.kernel.exprs.len() as u32 - 1)
    }

    pub fn get(&self, e: ExprId) -> &Expr {
        &self.kernel.exprs[e.0 as usize]
    }

    pub fn dtype(&self, e: ExprId) -> DType {
        self.kernel.dtype(e)
    }

    pub fn var(&mut self, v: VarId) -> ExprId {
        self.expr(Expr::Var(v))
    }

    /// An index constant.
    pub fn int(&mut self, i: i64) -> ExprId {
        self.expr(Expr::Const(Num::I(i), DType::I64))
    }

    pub fn num(&mut self, n: f64, dtype: DType) -> ExprId {
        self.expr(Expr::Const(Num::F(n).cast(dtype), dtype))
    }

    pub fn literal(&mut self, n: Num, dtype: DType) -> ExprId {
        self.expr(Expr::Const(n, dtype))
    }

    fn as_int(&self, e: ExprId) -> Option<i64> {
        match self.get(e) {
            Expr::Const(Num::I(i), DType::I64) => Some(*i),
            _ => None,
        }
    }

    /// A dimension over the kernel's sizes (`s0`, `s1`...) as an index expression. Panics on another symbol: lowering has replaced them.
    pub fn dim(&mut self, d: &Dim) -> ExprId {
        match d.node() {
            DimNode::Const(c) => self.int(c),
            DimNode::Sum(terms) => {
                let terms: Vec<(i64, Vec<Atom>)> = terms.into_iter().map(|(c, a)| (c, a.to_vec())).collect();
                let mut sum = self.int(0);
                for (c, atoms) in terms.into_iter().rev() {
                    let mut product = self.int(c);
                    for a in atoms {
                        let x = self.atom(&a);
                        product = self.mul(product, x);
                    }
                    sum = self.add(sum, product);
                }
                sum
            }
        }
    }

    fn atom(&mut self, a: &Atom) -> ExprId {
        let two = |b: &mut Self, f: ScalarFn, x: &Dim, y: &Dim| {
            let (x, y) = (b.dim(x), b.dim(y));
            b.map(f, &[x, y])
        };
        match a {
            Atom::Sym(s) => {
                let i = s.strip_prefix('s').and_then(|i| i.parse().ok()).filter(|i| *i < self.kernel.sizes);
                let i = i.unwrap_or_else(|| panic!("kernel {}: {s} is none of its {} sizes", self.kernel.name, self.kernel.sizes));
                self.expr(Expr::Size(i))
            }
            // Sizes are not negative and divisors positive: truncation is floor.
            Atom::FloorDiv(x, y) => two(self, ScalarFn::Div, x, y),
            Atom::Mod(x, y) => two(self, ScalarFn::Mod, x, y),
            Atom::Max(x, y) => two(self, ScalarFn::Max, x, y),
            Atom::Min(x, y) => two(self, ScalarFn::Min, x, y),
            Atom::Stretch(x, y) => self.dim(&Dim::stretch_formula(x, y)),
        }
    }

    /// A scalar function; constant indices fold.
    pub fn map(&mut self, fun: ScalarFn, args: &[ExprId]) -> ExprId {
        let ints: Option<Vec<Num>> = args.iter().map(|a| self.as_int(*a).map(Num::I)).collect();
        if let Some(ints) = ints
            && fun.out() == crate::scalar::Out::Same
            && fun != ScalarFn::Where
        {
            let n = fun.eval(DType::I64, &ints);
            return self.literal(n, DType::I64);
        }
        self.expr(Expr::Map { fun, args: args.to_vec() })
    }

    pub fn add(&mut self, a: ExprId, b: ExprId) -> ExprId {
        match (self.as_int(a), self.as_int(b)) {
            (Some(0), _) => b,
            (_, Some(0)) => a,
            _ => self.map(ScalarFn::Add, &[a, b]),
        }
    }

    pub fn sub(&mut self, a: ExprId, b: ExprId) -> ExprId {
        match self.as_int(b) {
            Some(0) => a,
            _ => self.map(ScalarFn::Sub, &[a, b]),
        }
    }

    pub fn mul(&mut self, a: ExprId, b: ExprId) -> ExprId {
        match (self.as_int(a), self.as_int(b)) {
            (Some(1), _) => b,
            (_, Some(1)) => a,
            (Some(0), _) | (_, Some(0)) if self.dtype(a) == DType::I64 => self.int(0),
            _ => self.map(ScalarFn::Mul, &[a, b]),
        }
    }

    /// Quotient of indices that are not negative.
    pub fn div(&mut self, a: ExprId, b: ExprId) -> ExprId {
        match self.as_int(b) {
            Some(1) => a,
            _ => self.map(ScalarFn::Div, &[a, b]),
        }
    }

    /// Remainder of indices that are not negative.
    pub fn rem(&mut self, a: ExprId, b: ExprId) -> ExprId {
        match self.as_int(b) {
            Some(1) => self.int(0),
            _ => self.map(ScalarFn::Fmod, &[a, b]),
        }
    }

    pub fn cast(&mut self, to: DType, arg: ExprId) -> ExprId {
        if self.dtype(arg) == to { arg } else { self.expr(Expr::Cast { to, arg }) }
    }

    pub fn load(&mut self, buf: u32, index: ExprId) -> ExprId {
        self.expr(Expr::Load { buf, index })
    }

    pub fn emit(&mut self, s: Stmt) {
        self.blocks.last_mut().expect("a block is open").push(s);
    }

    /// Opens a statement list: what is emitted up to [`KernelBuilder::end`] stands in it.
    pub fn begin(&mut self) {
        self.blocks.push(vec![]);
    }

    /// Closes the list that the last [`KernelBuilder::begin`] opened.
    pub fn end(&mut self) -> Vec<Stmt> {
        assert!(self.blocks.len() > 1, "end without begin");
        self.blocks.pop().expect("a block is open")
    }

    fn block(&mut self, f: impl FnOnce(&mut Self)) -> Vec<Stmt> {
        self.begin();
        f(self);
        self.end()
    }

    /// A local that no statement assigns yet: the index of a loop to be emitted.
    pub fn local(&mut self, dtype: DType) -> VarId {
        self.kernel.vars.push(dtype);
        VarId(self.kernel.vars.len() as u32 - 1)
    }

    /// A local, assigned `value`.
    pub fn set_new(&mut self, value: ExprId) -> VarId {
        let var = self.local(self.dtype(value));
        self.set(var, value);
        var
    }

    /// The value in a local of its own, so that later uses do not compute it again.
    pub fn bind(&mut self, value: ExprId) -> ExprId {
        let v = self.set_new(value);
        self.var(v)
    }

    pub fn set(&mut self, var: VarId, value: ExprId) {
        self.emit(Stmt::Set { var, value });
    }

    pub fn store(&mut self, buf: u32, index: ExprId, value: ExprId) {
        self.emit(Stmt::Store { buf, index, value });
    }

    pub fn for_range(&mut self, lo: ExprId, hi: ExprId, f: impl FnOnce(&mut Self, ExprId)) {
        let var = self.local(DType::I64);
        let i = self.var(var);
        let body = self.block(|b| f(b, i));
        self.emit(Stmt::For { var, lo, hi, body });
    }

    /// `for i in 0..n`.
    pub fn for_each(&mut self, n: ExprId, f: impl FnOnce(&mut Self, ExprId)) {
        let zero = self.int(0);
        self.for_range(zero, n, f);
    }

    pub fn while_(&mut self, cond: ExprId, f: impl FnOnce(&mut Self)) {
        let body = self.block(f);
        self.emit(Stmt::While { cond, body });
    }

    pub fn if_(&mut self, cond: ExprId, then: impl FnOnce(&mut Self), otherwise: impl FnOnce(&mut Self)) {
        let then = self.block(then);
        let otherwise = self.block(otherwise);
        self.emit(Stmt::If { cond, then, otherwise });
    }

    pub fn break_(&mut self) {
        self.emit(Stmt::Break);
    }

    pub fn fail(&mut self, fault: Fault) {
        self.emit(Stmt::Fail(fault));
    }

    pub fn origin(&mut self, origin: Origin) {
        self.kernel.origin = Some(origin);
    }

    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.blocks.pop().expect("the outermost block");
        self.kernel
    }
}
