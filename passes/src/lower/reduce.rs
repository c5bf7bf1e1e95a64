//! Loops of arguments of extrema and running sums. Plain reductions are lowered by groups.

use super::loops::Loops;
use super::scalar::wide;
use super::view::{View, collapse, row_major};
use nnc_ir::Dim;
use nnc_ir::ScalarFn;
use nnc_ir::kernel::ExprId;
use nnc_ir::ops::reduce::{ArgReduce, Cumulate, ReduceKind};
use nnc_ir::scalar::Num;

/// A tensor's axes but one: dimensions, strides along them, and the length and stride of the one.
pub struct Lines {
    pub dims: Vec<Dim>,
    pub strides: Vec<Dim>,
    pub length: Dim,
    pub stride: Dim,
}

impl Lines {
    pub fn new(shape: &[Dim], axis: usize) -> Lines {
        let (mut dims, mut strides) = (shape.to_vec(), row_major(shape));
        let (length, stride) = (dims.remove(axis), strides.remove(axis));
        Lines { dims, strides, length, stride }
    }

    /// Runs `f` for every line of tensors that have the same other axes, with the element that each line starts at.
    pub fn each(k: &mut Loops, lines: &[&Lines], work: i64, f: impl FnOnce(&mut Loops, &[ExprId])) {
        let mut dims = lines[0].dims.clone();
        let mut views: Vec<View> = lines.iter().map(|l| View::new(l.strides.clone())).collect();
        collapse(&mut dims, &mut views);
        let length = lines[0].length.as_const().unwrap_or(64).max(1);
        k.parallel(&dims, &views, length.saturating_mul(work), |k, _, at| f(k, at));
    }

    /// Element `i` of the line that starts at `base`.
    pub fn at(&self, k: &mut Loops, base: ExprId, i: ExprId) -> ExprId {
        let stride = k.size(&self.stride);
        let by = k.mul(i, stride);
        k.add(base, by)
    }
}

pub fn arg_reduce(k: &mut Loops, op: &ArgReduce) {
    let x = Lines::new(&k.x[0].shape, op.axis);
    let y = Lines { strides: row_major(&x.dims), dims: x.dims.clone(), length: Dim::Const(1), stride: Dim::Const(1) };
    let (dtype, result) = (k.x[0].dtype, k.result(0));
    Lines::each(k, &[&x, &y], 2, |k, at| {
        let zero = k.int(0);
        let place = k.set_new(zero);
        let start = k.literal(Num::F(0.0).cast(dtype), dtype);
        let best = k.set_new(start);
        let n = k.size(&x.length);
        k.for_each(n, |k, i| {
            let v = x.at(k, at[0], i);
            let v = k.load(0, v);
            let v = k.bind(v);
            let so_far = k.var(best);
            let first = k.map(ScalarFn::Equal, &[i, zero]);
            let better = if op.last {
                let worse = k.precedes(op.kind, so_far, v, true);
                k.map(ScalarFn::Not, &[worse])
            } else {
                k.precedes(op.kind, v, so_far, true)
            };
            let take = k.map(ScalarFn::Or, &[first, better]);
            k.when(take, |k| {
                k.set(best, v);
                k.set(place, i);
            });
        });
        let place = k.var(place);
        k.store(result, at[1], place);
    });
}

pub fn cumulate(k: &mut Loops, op: &Cumulate) {
    let x = Lines::new(&k.x[0].shape, op.axis);
    let (dtype, result) = (k.x[0].dtype, k.result(0));
    let wide = match op.kind {
        ReduceKind::Sum | ReduceKind::Prod => wide(dtype),
        ReduceKind::Max | ReduceKind::Min => dtype,
    };
    Lines::each(k, &[&x, &x], 2, |k, at| {
        let acc = k.accumulator(op.kind, wide);
        let n = k.size(&x.length);
        k.for_each(n, |k, step| {
            let i = if op.reverse {
                let one = k.int(1);
                let last = k.sub(n, one);
                k.sub(last, step)
            } else {
                step
            };
            let (from, to) = (x.at(k, at[0], i), x.at(k, at[1], i));
            let store = |k: &mut Loops| {
                let v = k.var(acc);
                let v = k.cast(dtype, v);
                k.store(result, to, v);
            };
            if op.exclusive {
                store(k);
            }
            let v = k.load(0, from);
            let v = k.cast(wide, v);
            k.accumulate(acc, op.kind, v);
            if !op.exclusive {
                store(k);
            }
        });
    });
}
