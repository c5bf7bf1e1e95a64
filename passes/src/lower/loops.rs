//! A kernel under construction: the kernel builder with the model's dimensions as sizes, parallel nests, and views.

use super::view::{View, is_square};
use nnc_ir::attrs::Attr;
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::{Access, ExprId, Fault, Kernel, Origin, Stmt, VarId, Within, size_symbol};
use nnc_ir::{DType, Dim, Op, ScalarFn, Type};
use rustc_hash::FxHashMap;
use std::ops::{Deref, DerefMut};

/// Scalar operations that all tasks together have at least, where the outer loops give tasks enough.
const ENOUGH_WORK: i64 = 1 << 23;
/// What a dimension that only the run knows is taken for when work is split.
const TYPICAL: i64 = 64;
/// Lanes of the widest vectors.
const LANES: i64 = 16;

/// Loops over the operands `x` and results `y` of an operation; parameter `i` of the kernel is operand `i`, results follow.
pub struct Loops {
    builder: KernelBuilder,
    sizes: Vec<Dim>,
    index: FxHashMap<Dim, u32>,
    pub x: Vec<Type>,
    pub y: Vec<Type>,
    /// The larger tensor that the only result is a window of.
    pub within: Option<Within>,
    /// Scalar operations that are worth a task of their own.
    pub grain: i64,
}

impl Deref for Loops {
    type Target = KernelBuilder;
    fn deref(&self) -> &KernelBuilder {
        &self.builder
    }
}

impl DerefMut for Loops {
    fn deref_mut(&mut self) -> &mut KernelBuilder {
        &mut self.builder
    }
}

impl Loops {
    /// Loops that compute `op`: its dimensions, in order of appearance in operands, results and attributes, are the first sizes.
    pub fn of(op: &Op, x: &[Type], y: &[Type], results: Access, within: Option<&Within>, grain: i64) -> Loops {
        let whole = within.map(|w| y[0].with_shape(w.shape.clone()));
        let mut k = Loops::new(op.name(), x, whole.as_ref().map_or(y, std::slice::from_ref), results, grain);
        k.y = y.to_vec();
        k.within = within.cloned();
        let (x, y) = (k.rename_types(x), k.rename_types(y));
        let op = k.rename_op(op);
        let within = within.map(|w| Within { shape: k.rename(&w.shape), start: k.rename(&w.start) });
        k.origin(Origin { op, x, y, within });
        k
    }

    /// Loops that no tensor operation describes.
    pub fn new(name: &str, x: &[Type], y: &[Type], results: Access, grain: i64) -> Loops {
        // The number of sizes is known when all have been asked for.
        let builder = KernelBuilder::new(name, u32::MAX);
        let mut k = Loops { builder, sizes: vec![], index: FxHashMap::default(), x: x.to_vec(), y: y.to_vec(), within: None, grain };
        for d in x.iter().chain(y).flat_map(|t| &t.shape) {
            k.symbol(d);
        }
        for (t, access) in x.iter().map(|t| (t, Access::Read)).chain(y.iter().map(|t| (t, results))) {
            let elems = k.symbol(&t.elems());
            k.param(t.dtype, access, elems);
        }
        k
    }

    /// The kernel and what its sizes are at the launch.
    pub fn finish(self) -> (Kernel, Vec<Dim>) {
        let mut kernel = self.builder.finish();
        kernel.sizes = self.sizes.len() as u32;
        (kernel, self.sizes)
    }

    /// The parameter that holds result `i`.
    pub fn result(&self, i: usize) -> u32 {
        (self.x.len() + i) as u32
    }

    /// Stores to an element of result `i`.
    pub fn put(&mut self, i: usize, at: ExprId, v: ExprId) {
        let result = self.result(i);
        self.store(result, at, v);
    }

    /// A dimension over the kernel's sizes: itself, or the size that stands for it.
    fn symbol(&mut self, d: &Dim) -> Dim {
        if d.as_const().is_some() {
            return d.clone();
        }
        let next = self.sizes.len() as u32;
        let i = *self.index.entry(d.clone()).or_insert(next);
        if i == next {
            self.sizes.push(d.clone());
        }
        size_symbol(i as usize)
    }

    /// A dimension as an index expression.
    pub fn size(&mut self, d: &Dim) -> ExprId {
        let d = self.symbol(d);
        self.builder.dim(&d)
    }

    fn rename_types(&mut self, types: &[Type]) -> Vec<Type> {
        types.iter().map(|t| t.with_shape(self.rename(&t.shape))).collect()
    }

    fn rename(&mut self, dims: &[Dim]) -> Vec<Dim> {
        dims.iter().map(|d| self.symbol(d)).collect()
    }

    /// The operation with symbolic attributes replaced by sizes.
    fn rename_op(&mut self, op: &Op) -> Op {
        fn symbolic(a: &Attr) -> bool {
            match a {
                Attr::Dim(d) => d.as_const().is_none(),
                Attr::List(l) => l.iter().any(symbolic),
                _ => false,
            }
        }
        fn renamed(k: &mut Loops, a: Attr) -> Attr {
            match a {
                Attr::Dim(d) => Attr::Dim(k.symbol(&d)),
                Attr::List(l) => Attr::List(l.into_iter().map(|a| renamed(k, a)).collect()),
                a => a,
            }
        }
        let attrs = op.attrs();
        if !attrs.iter().any(|(_, a)| symbolic(a)) {
            return op.clone();
        }
        let attrs: Vec<(&str, Attr)> = attrs.into_iter().map(|(name, a)| (name, renamed(self, a))).collect();
        let get = |name: &str| attrs.iter().find(|(n, _)| *n == name).map(|(_, a)| a.clone());
        Op::parse(op.name(), &get).and_then(Result::ok).unwrap_or_else(|| op.clone())
    }

    pub fn for_range(&mut self, lo: ExprId, hi: ExprId, f: impl FnOnce(&mut Loops, ExprId)) {
        let (var, i) = self.open();
        f(self, i);
        self.close(var, lo, hi);
    }

    pub fn for_each(&mut self, n: ExprId, f: impl FnOnce(&mut Loops, ExprId)) {
        let zero = self.int(0);
        self.for_range(zero, n, f);
    }

    pub fn while_(&mut self, cond: ExprId, f: impl FnOnce(&mut Loops)) {
        self.begin();
        f(self);
        let body = self.end();
        self.emit(Stmt::While { cond, body });
    }

    pub fn if_(&mut self, cond: ExprId, then: impl FnOnce(&mut Loops), otherwise: impl FnOnce(&mut Loops)) {
        self.begin();
        then(self);
        let then = self.end();
        self.begin();
        otherwise(self);
        let otherwise = self.end();
        self.emit(Stmt::If { cond, then, otherwise });
    }

    pub fn when(&mut self, cond: ExprId, then: impl FnOnce(&mut Loops)) {
        self.if_(cond, then, |_| {});
    }

    fn open(&mut self) -> (VarId, ExprId) {
        let var = self.local(DType::I64);
        self.begin();
        let i = self.var(var);
        (var, i)
    }

    fn close(&mut self, var: VarId, lo: ExprId, hi: ExprId) {
        let body = self.end();
        self.emit(Stmt::For { var, lo, hi, body });
    }

    /// Indices plus `stride` times `i`.
    fn step(&mut self, base: ExprId, i: ExprId, stride: &Dim) -> ExprId {
        if stride.is(0) {
            return base;
        }
        let stride = self.size(stride);
        let by = self.mul(i, stride);
        self.add(base, by)
    }

    fn steps(&mut self, bases: &mut [ExprId], views: &[View], axis: usize, i: ExprId, keep: bool) {
        for (b, v) in bases.iter_mut().zip(views) {
            if !v.strides[axis].is(0) {
                *b = self.step(*b, i, &v.strides[axis]);
                // A row's base is computed once, outside of the inner loop.
                if keep {
                    *b = self.bind(*b);
                }
            }
        }
    }

    /// Runs `f` for every index of `dims`, in row-major order, on this task. It is given the indices, and each view's element
    /// counted from `bases`.
    pub fn serial(&mut self, dims: &[Dim], views: &[View], bases: &[ExprId], f: impl FnOnce(&mut Loops, &[ExprId], &[ExprId])) {
        let (mut bases, mut vars, mut open) = (bases.to_vec(), vec![], vec![]);
        for (b, v) in bases.iter_mut().zip(views) {
            let offset = self.size(&v.offset);
            *b = self.add(*b, offset);
        }
        for (axis, d) in dims.iter().enumerate() {
            let (lo, hi) = (self.int(0), self.size(d));
            if d.is(1) {
                vars.push(lo);
                continue;
            }
            let (var, i) = self.open();
            open.push((var, lo, hi));
            vars.push(i);
            self.steps(&mut bases, views, axis, i, axis + 1 < dims.len());
        }
        f(self, &vars, &bases);
        for (var, lo, hi) in open.into_iter().rev() {
            self.close(var, lo, hi);
        }
    }

    /// As [`Loops::serial`] from zero, the outer loops split into tasks. Once a kernel. `work` is the number of scalar operations
    /// for each index.
    pub fn parallel(&mut self, dims: &[Dim], views: &[View], work: i64, f: impl FnOnce(&mut Loops, &[ExprId], &[ExprId])) {
        let zero = self.int(0);
        let zeros = vec![zero; views.len()];
        let Some(split) = Split::new(dims, views, work, self.grain) else { return self.serial(dims, views, &zeros, f) };
        let last = dims[split.axis].clone();
        let chunks = last.ceil_div(&Dim::Const(split.chunk));
        let count = self.symbol(&(Dim::product(&dims[..split.axis]) * chunks.clone()));
        let task = self.tasks(count);

        let mut bases = zeros;
        for (b, v) in bases.iter_mut().zip(views) {
            let offset = self.size(&v.offset);
            *b = self.add(*b, offset);
        }
        // The task's number holds its outer indices, the last of them counting chunks.
        let mut digits = vec![];
        let mut rest = task;
        for d in std::iter::once(&chunks).chain(dims[..split.axis].iter().rev()) {
            let last_digit = digits.len() == split.axis;
            let n = self.size(d);
            let digit = if last_digit { rest } else { self.rem(rest, n) };
            digits.push(self.bind(digit));
            if !last_digit {
                rest = self.div(rest, n);
                rest = self.bind(rest);
            }
        }
        digits.reverse();
        let (mut vars, mut open) = (vec![], vec![]);
        for (axis, d) in dims.iter().enumerate() {
            let keep = axis + 1 < dims.len();
            if d.is(1) {
                vars.push(self.int(0));
                continue;
            }
            let whole = self.size(d);
            let (lo, hi) = match axis.cmp(&split.axis) {
                std::cmp::Ordering::Less => {
                    vars.push(digits[axis]);
                    self.steps(&mut bases, views, axis, digits[axis], true);
                    continue;
                }
                std::cmp::Ordering::Equal if split.chunk == 1 => {
                    vars.push(digits[axis]);
                    self.steps(&mut bases, views, axis, digits[axis], true);
                    continue;
                }
                std::cmp::Ordering::Equal => {
                    let chunk = self.int(split.chunk);
                    let lo = self.mul(digits[axis], chunk);
                    let lo = self.bind(lo);
                    let end = self.add(lo, chunk);
                    let hi = self.map(ScalarFn::Min, &[end, whole]);
                    (lo, self.bind(hi))
                }
                std::cmp::Ordering::Greater => (self.int(0), whole),
            };
            let (var, i) = self.open();
            open.push((var, lo, hi));
            vars.push(i);
            self.steps(&mut bases, views, axis, i, keep);
        }
        f(self, &vars, &bases);
        for (var, lo, hi) in open.into_iter().rev() {
            self.close(var, lo, hi);
        }
    }

    /// An element of an index tensor, counted from the start where it is negative; the run fails where it is outside `0..n`.
    pub fn checked_index(&mut self, param: u32, at: ExprId, n: &Dim) -> ExprId {
        let i = self.load(param, at);
        let i = self.cast(DType::I64, i);
        let i = self.bind(i);
        let (n, zero) = (self.size(n), self.int(0));
        let negative = self.map(ScalarFn::Less, &[i, zero]);
        let from_end = self.add(i, n);
        let i = self.map(ScalarFn::Where, &[negative, from_end, i]);
        let i = self.bind(i);
        let (low, high) = (self.map(ScalarFn::Less, &[i, zero]), self.map(ScalarFn::GreaterEqual, &[i, n]));
        let outside = self.map(ScalarFn::Or, &[low, high]);
        self.when(outside, |k| k.fail(Fault::Index));
        i
    }

    pub fn max_int(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.map(ScalarFn::Max, &[a, b])
    }

    pub fn min_int(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.map(ScalarFn::Min, &[a, b])
    }
}

/// How a nest is cut into tasks: one for each index of the axes before `axis` and each `chunk` indices of it.
struct Split {
    axis: usize,
    chunk: i64,
}

impl Split {
    /// `None` where it is not worth it.
    fn new(dims: &[Dim], views: &[View], work: i64, grain: i64) -> Option<Split> {
        let count = |d: &Dim| d.as_const().unwrap_or(TYPICAL).max(1);
        let inside = |axis: usize| dims[axis + 1..].iter().fold(work.max(1), |n, d| n.saturating_mul(count(d)));
        let known = dims.iter().all(|d| d.as_const().is_some());
        if dims.is_empty() || (known && inside(0).saturating_mul(count(&dims[0])) <= grain) {
            return None;
        }
        // The two loops of a square are not parted.
        let square = grain > 1 && is_square(views);
        let innermost = dims.len() - if square { 2 } else { 1 };
        let (mut axis, mut tasks) = (0, count(&dims[0]));
        while axis < innermost && tasks < ENOUGH_WORK / grain && inside(axis) > grain {
            axis += 1;
            tasks = tasks.saturating_mul(count(&dims[axis]));
        }
        let mut chunk = grain / inside(axis);
        // Neighbours in memory are lanes of one vector: a task for a few of them would take as long as one for all.
        let stride = |n: i64| views.iter().filter(|v| v.strides[axis].is(n)).count();
        let lanes = axis + 1 == dims.len() && stride(1) > 0 && stride(0) + stride(1) == views.len();
        if grain > 1 && (lanes || square && axis == innermost) {
            chunk = chunk.max(1).saturating_add(LANES - 1) / LANES * LANES;
        }
        let chunk = chunk.clamp(1, dims[axis].as_const().unwrap_or(chunk.max(grain)).max(1));
        Some(Split { axis, chunk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_take_whole_vectors() {
        let dims = [2, 16].map(Dim::Const);
        let view = |strides: [i64; 2]| View::new(strides.map(Dim::Const).to_vec());
        // Means of the pixels in blocks of channels: a task for each block.
        let blocks = Split::new(&dims, &[view([16 * 4096, 1]), view([16, 1])], 4096, 4096).unwrap();
        assert_eq!((blocks.axis, blocks.chunk), (1, 16));
        // Sums of rows, which are vectors themselves: a task for each.
        let rows = Split::new(&dims, &[view([16 * 4096, 4096]), view([16, 1])], 4096, 4096).unwrap();
        assert_eq!((rows.axis, rows.chunk), (1, 1));
    }
}
