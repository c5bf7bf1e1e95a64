//! Reductions, arguments of extrema, running sums, sorting.

use super::axes::{Axes, Named, axes_input};
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::reduce::{ArgReduce, Cumulate, ReduceKind};
use nnc_ir::ops::sort::TopK;
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, V};

/// A reduction of x over axes, or over none of them.
type Fold = for<'g> fn(V<'g>, &[usize], bool) -> V<'g>;

macro_rules! reductions {
    ($($name:literal until_axes_are_inputs $since:literal $fold:expr;)*) => {
        pub const ROWS: &[Row] = &[
            op("ArgMax", 1, (1, 1), |c| arg(c, ReduceKind::Max)),
            op("ArgMin", 1, (1, 1), |c| arg(c, ReduceKind::Min)),
            op("CumProd", 26, (2, 2), |c| cumulate(c, ReduceKind::Prod)),
            op("CumSum", 11, (2, 2), |c| cumulate(c, ReduceKind::Sum)),
            op("TopK", 1, (1, 1), |c| {
                let k = c.opt_int("k")?.ok_or_else(|| c.missing("k"))?;
                top_k(c, Dim::Const(k))
            }),
            op("TopK", 10, (2, 2), |c| match &c.dims_of(1, 1, "k")?[..] {
                [k] => top_k(c, k.clone()),
                k => Err(Error::shape(format!("k should be one number, found {}", k.len()))),
            }),
            $(
                op($name, 1, (1, 1), |c| reduce(c, c.ints("axes")?.map(Axes::Known), false, $fold)),
                op($name, $since, (1, 2), |c| reduce(c, axes_input(c, 1, "axes")?, c.flag("noop_with_empty_axes", false)?, $fold)),
            )*
        ];
    };
}

reductions! {
    "ReduceL1" until_axes_are_inputs 18 |x, axes, keep| x.abs().reduce(ReduceKind::Sum, axes, keep);
    "ReduceL2" until_axes_are_inputs 18 |x, axes, keep| {
        // In f64 for integers, whose root is truncated.
        let wide = if x.ty().dtype.is_float() { x } else { x.cast(DType::F64) };
        (wide * wide).reduce(ReduceKind::Sum, axes, keep).sqrt().cast(x.ty().dtype)
    };
    "ReduceLogSum" until_axes_are_inputs 18 |x, axes, keep| log(x.reduce(ReduceKind::Sum, axes, keep));
    "ReduceLogSumExp" until_axes_are_inputs 18 log_sum_exp;
    "ReduceMax" until_axes_are_inputs 18 |x, axes, keep| x.reduce(ReduceKind::Max, axes, keep);
    "ReduceMean" until_axes_are_inputs 18 |x, axes, keep| if axes.is_empty() { x } else { x.reduce(ReduceKind::Sum, axes, keep) / x.count(axes) };
    "ReduceMin" until_axes_are_inputs 18 |x, axes, keep| x.reduce(ReduceKind::Min, axes, keep);
    "ReduceProd" until_axes_are_inputs 18 |x, axes, keep| x.reduce(ReduceKind::Prod, axes, keep);
    "ReduceSum" until_axes_are_inputs 13 |x, axes, keep| x.reduce(ReduceKind::Sum, axes, keep);
    "ReduceSumSquare" until_axes_are_inputs 18 |x, axes, keep| (x * x).reduce(ReduceKind::Sum, axes, keep);
}

fn log(x: V) -> V {
    let dtype = x.ty().dtype;
    if dtype.is_float() { x.log() } else { x.cast(DType::F64).log().cast(dtype) }
}

/// Shifted by the maximum so that exp cannot overflow; where that is infinite (or there is none) there is nothing to shift by.
fn log_sum_exp<'g>(x: V<'g>, axes: &[usize], keep: bool) -> V<'g> {
    let dtype = x.ty().dtype;
    let x = if dtype.is_float() { x } else { x.cast(DType::F64) };
    let most = x.reduce(ReduceKind::Max, axes, true);
    let finite = most.abs().less(most.scalar_like(f64::INFINITY));
    let shift = finite.select(most, most.scalar_like(0.0));
    let sum = (x - shift).exp().reduce(ReduceKind::Sum, axes, true).log() + shift;
    let shape = nnc_ir::ops::reduce::reduced_shape(&x.ty().shape, axes, keep);
    sum.reshape(shape).cast(dtype)
}

/// No axes mean all, or none with `noop`.
fn reduce<'g>(c: &Call<'g>, axes: Option<Axes<'g>>, noop: bool, fold: Fold) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let rank = x.ty().rank();
    let keep = c.flag("keepdims", true)?;
    let mut axes = match axes {
        Some(Axes::Open(v)) if rank > 0 => return reduce_open(c, x, Named::new(c, v, rank), keep, noop, fold),
        Some(Axes::Known(axes)) if !axes.is_empty() => axes.iter().map(|a| normalize_axis(*a, rank)).collect::<Result<Vec<_>>>()?,
        _ if noop => vec![],
        _ => (0..rank).collect(),
    };
    axes.sort();
    axes.dedup();
    Ok(vec![fold(x, &axes, keep)])
}

/// Axes that only the run knows: every axis becomes two, the second of which is folded.
fn reduce_open<'g>(c: &Call<'g>, x: V<'g>, axes: Named<'g>, keep: bool, noop: bool, fold: Fold) -> Result<Vec<V<'g>>> {
    let shape = x.ty().shape;
    let gone: Vec<usize> = (0..shape.len()).map(|i| 2 * i + 1).collect();
    let y = fold(axes.apart(c, x, noop)?, &gone, false);
    if keep {
        return Ok(vec![y]);
    }
    let left = axes.count.as_const().map(|n| shape.len() as i64 - n).ok_or_else(|| c.unknown(1, "the number of axes"))?;
    let left = usize::try_from(left).map_err(|_| Error::shape(format!("{} axes of {}", axes.count, x.ty())))?;
    Ok(vec![y.reshape(axes.without(c, &shape, left)?)])
}

fn arg<'g>(c: &Call<'g>, kind: ReduceKind) -> Result<Vec<V<'g>>> {
    let (axis, keepdims, last) = (c.axis("axis", 0)?, c.flag("keepdims", true)?, c.flag("select_last_index", false)?);
    Ok(vec![c.b.op(ArgReduce { kind, axis, keepdims, last }, &[c.x(0)?])])
}

fn cumulate<'g>(c: &Call<'g>, kind: ReduceKind) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let shape = x.ty().shape;
    let (exclusive, reverse) = (c.flag("exclusive", false)?, c.flag("reverse", false)?);
    match axes_input(c, 1, "axis")? {
        Some(Axes::Known(axis)) if axis.len() == 1 => {
            let axis = normalize_axis(axis[0], shape.len())?;
            Ok(vec![c.b.op(Cumulate { kind, axis, exclusive, reverse }, &[x])])
        }
        Some(Axes::Open(axis)) if axis.ty().elems().is(1) && !shape.is_empty() => {
            let around = Named::new(c, axis, shape.len()).around(c, &shape, shape.len())?;
            Ok(vec![c.b.op(Cumulate { kind, axis: 1, exclusive, reverse }, &[x.reshape(around.to_vec())]).reshape(shape)])
        }
        _ => Err(Error::shape("axis should be one number")),
    }
}

fn top_k<'g>(c: &Call<'g>, k: Dim) -> Result<Vec<V<'g>>> {
    // Unsorted results may come in any order: sorted ones are as good.
    c.ignore(&["sorted"]);
    Ok(c.b.op_all(TopK { axis: c.axis("axis", -1)?, k, largest: c.flag("largest", true)? }, &[c.x(0)?], vec![]))
}
