//! Reference reductions.

use super::elems::{Acc, Walk, decode, encode, strides};
use crate::error::Result;
use crate::ops::reduce::{ArgReduce, Cumulate, Reduce, ReduceKind};
use crate::scalar::{Num, ScalarFn};
use crate::tensor::Tensor;
use crate::types::DType;

/// The value of an empty reduction.
pub(crate) fn neutral(kind: ReduceKind, dtype: DType) -> Num {
    match kind {
        ReduceKind::Sum => Num::I(0),
        ReduceKind::Prod => Num::I(1),
        ReduceKind::Max => Num::least(dtype),
        ReduceKind::Min => Num::greatest(dtype),
    }
}

/// One step of a fold over numbers of `dtype`: floats stay `f64`, integers wrap in `dtype`, `bool` takes or and and.
pub(crate) fn combine(kind: ReduceKind, dtype: DType, a: Num, b: Num) -> Num {
    if dtype == DType::Bool {
        let f = if matches!(kind, ReduceKind::Sum | ReduceKind::Max) { ScalarFn::Or } else { ScalarFn::And };
        return f.eval(dtype, &[a, b]);
    }
    let f = match kind {
        ReduceKind::Sum => ScalarFn::Add,
        ReduceKind::Prod => ScalarFn::Mul,
        ReduceKind::Max => ScalarFn::Max,
        ReduceKind::Min => ScalarFn::Min,
    };
    f.eval(if dtype.is_float() { DType::F64 } else { dtype }, &[a, b])
}

/// `shape` with `axes` of length 1.
fn kept(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, d)| if axes.contains(&i) { 1 } else { *d }).collect()
}

/// The result's shape: folded axes stay with length 1, or go.
fn shape_after(shape: &[usize], axes: &[usize], keepdims: bool) -> Vec<usize> {
    if keepdims {
        return kept(shape, axes);
    }
    shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| *d).collect()
}

/// For each element of a tensor of `shape`, the flat index of the result that it is folded into.
fn targets(shape: &[usize], axes: &[usize]) -> Walk {
    let s = strides(&kept(shape, axes));
    Walk::new(shape, s.iter().enumerate().map(|(i, s)| if axes.contains(&i) { 0 } else { *s }).collect(), 0)
}

pub fn reduce(op: &Reduce, x: &Tensor) -> Result<Tensor> {
    let shape = shape_after(x.shape(), &op.axes, op.keepdims);
    let n = crate::tensor::checked_elems(x.dtype(), &shape)?;
    let at = targets(x.shape(), &op.axes);
    fn fold<T: Acc>(x: &Tensor, at: Walk, n: usize, start: Num, f: impl Fn(T, T) -> T) -> Vec<Num> {
        let mut out = vec![T::of(start); n];
        at.zip(decode(x, T::of)).for_each(|(i, v)| out[i] = f(out[i], v));
        out.into_iter().map(T::num).collect()
    }
    let start = neutral(op.kind, x.dtype());
    let out = match (op.kind, x.dtype().is_float()) {
        (ReduceKind::Sum, true) => fold::<f64>(x, at, n, start, f64::plus),
        (ReduceKind::Prod, true) => fold::<f64>(x, at, n, start, f64::times),
        (ReduceKind::Sum, false) => fold::<i64>(x, at, n, start, i64::plus),
        (ReduceKind::Prod, false) => fold::<i64>(x, at, n, start, i64::times),
        (ReduceKind::Max | ReduceKind::Min, _) => {
            let mut out = vec![start.cast(x.dtype()); n];
            at.zip(decode(x, |n| n)).for_each(|(i, v)| out[i] = combine(op.kind, x.dtype(), out[i], v));
            out
        }
    };
    encode(x.dtype(), &shape, out.into_iter())
}

/// Whether `a` comes strictly before `b` in the search for the largest (or smallest) element; NaN comes before all, as in numpy.
pub(crate) fn beats(largest: bool, a: Num, b: Num) -> bool {
    match (a, b) {
        (Num::F(a), Num::F(b)) if a.is_nan() || b.is_nan() => !b.is_nan(),
        (Num::F(a), Num::F(b)) => {
            if largest {
                a > b
            } else {
                a < b
            }
        }
        (Num::U(a), Num::U(b)) => {
            if largest {
                a > b
            } else {
                a < b
            }
        }
        (a, b) => {
            if largest {
                a.as_i64() > b.as_i64()
            } else {
                a.as_i64() < b.as_i64()
            }
        }
    }
}

pub fn arg_reduce(op: &ArgReduce, x: &Tensor) -> Result<Tensor> {
    let shape = shape_after(x.shape(), &[op.axis], op.keepdims);
    let inner: usize = x.shape()[op.axis + 1..].iter().product();
    let length = x.shape()[op.axis];
    let mut best: Vec<Option<(Num, usize)>> = vec![None; crate::tensor::checked_elems(DType::I64, &shape)?];
    for ((i, v), flat) in targets(x.shape(), &[op.axis]).zip(decode(x, |n| n)).zip(0..) {
        let better = match best[i] {
            None => true,
            Some((old, _)) if op.last => !beats(op.kind == ReduceKind::Max, old, v),
            Some((old, _)) => beats(op.kind == ReduceKind::Max, v, old),
        };
        if better {
            best[i] = Some((v, flat / inner % length));
        }
    }
    // Over an empty axis there is no index: 0, as the loops of a kernel leave it.
    encode(DType::I64, &shape, best.into_iter().map(|b| Num::I(b.map_or(0, |(_, i)| i as i64))))
}

pub fn cumulate(op: &Cumulate, x: &Tensor) -> Result<Tensor> {
    let inner: usize = x.shape()[op.axis + 1..].iter().product();
    let (n, length) = (x.elems(), x.shape()[op.axis]);
    let mut values = decode(x, |n| n);
    for lane in (0..n).filter(|i| (i / inner).is_multiple_of(length)) {
        let mut acc = neutral(op.kind, x.dtype()).cast(if x.dtype().is_float() { DType::F64 } else { x.dtype() });
        for k in 0..length {
            let i = lane + inner * if op.reverse { length - 1 - k } else { k };
            let before = acc;
            acc = combine(op.kind, x.dtype(), acc, values[i]);
            values[i] = if op.exclusive { before } else { acc };
        }
    }
    encode(x.dtype(), x.shape(), values.into_iter())
}
