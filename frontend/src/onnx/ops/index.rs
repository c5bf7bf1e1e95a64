//! Gathering, scattering, masks, index ramps.

use super::text::moved;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::index::{Gather, GatherElements, GatherNd, NonZero, ScatterElements, ScatterKind, ScatterNd};
use nnc_ir::ops::source::Iota;
use nnc_ir::types::normalize_axis;
use nnc_ir::{Builder, DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("Compress", 9, (2, 2), compress),
    op("Gather", 1, (2, 2), |c| Ok(vec![c.b.op(Gather { axis: c.axis("axis", 0)? }, &c.all()?)])),
    op("GatherElements", 11, (2, 2), |c| Ok(vec![c.b.op(GatherElements { axis: c.axis("axis", 0)? }, &c.all()?)])),
    op("GatherND", 11, (2, 2), gather_nd),
    op("NonZero", 9, (1, 1), non_zero),
    op("OneHot", 9, (3, 3), one_hot),
    op("ReverseSequence", 10, (2, 2), reverse_sequence),
    op("Scatter", 9, (3, 3), |c| moved(c, scatter_elements)).until(10),
    op("ScatterElements", 11, (3, 3), |c| moved(c, scatter_elements)),
    op("ScatterND", 11, (3, 3), |c| moved(c, |c| Ok(vec![c.b.op(ScatterNd { reduction: reduction(c)? }, &c.all()?)]))),
    op("TensorScatter", 24, (2, 3), |c| moved(c, tensor_scatter)),
    op("Trilu", 14, (1, 2), trilu),
];

/// `0, 1, 2..` along one axis of a tensor of this rank, 1 elsewhere.
pub fn ramp(b: &Builder, n: Dim, axis: usize, rank: usize) -> V<'_> {
    let mut shape = vec![Dim::Const(1); rank];
    shape[axis] = n;
    b.op(Iota { shape, axis }, &[])
}

fn reduction(c: &Call) -> Result<ScatterKind> {
    Ok(match c.word("reduction", &["none", "add", "mul", "max", "min"])? {
        "add" => ScatterKind::Add,
        "mul" => ScatterKind::Mul,
        "max" => ScatterKind::Max,
        "min" => ScatterKind::Min,
        _ => ScatterKind::Set,
    })
}

fn scatter_elements<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    Ok(vec![c.b.op(ScatterElements { axis: c.axis("axis", 0)?, reduction: reduction(c)? }, &c.all()?)])
}

fn gather_nd<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let batch_dims = usize::try_from(c.int("batch_dims", 0)?).map_err(|_| Error::attribute("attribute `batch_dims` is negative"))?;
    Ok(vec![c.b.op(GatherNd { batch_dims }, &c.all()?)])
}

/// Indices of what is not 0. Of a scalar there are none to give: no row, and as many columns as hits.
fn non_zero<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = match c.x(0)? {
        // A string is something where there is text in it.
        x if x.ty().dtype == DType::Str => !x.equal(c.b.constant(Tensor::text(&[], vec!["".into()])?)),
        x => x,
    };
    let found = c.b.op(NonZero { count: c.b.fresh_symbol("nonzero") }, &[x]);
    Ok(vec![if x.ty().rank() == 0 { found.slice_axis(0, Dim::Const(0), Dim::Const(0)) } else { found }])
}

/// The slices along `axis` (of the flat tensor where there is none) whose flag is set.
fn compress<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, keep) = (c.x(0)?, c.x(1)?);
    let (x, axis) = match c.opt_int("axis")? {
        Some(a) => (x, normalize_axis(a, x.ty().rank())?),
        None => (x.reshape(vec![x.ty().elems()]), 0),
    };
    let found = c.b.op(NonZero { count: c.b.fresh_symbol("kept") }, &[keep]);
    let index = found.reshape(found.ty().shape.get(1..).unwrap_or_default().to_vec());
    Ok(vec![c.b.op(Gather { axis }, &[x, index])])
}

fn one_hot<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, depth, values) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let depth = if depth.ty().dtype.is_int() {
        c.dims_or_read(1, "depth")?
    } else if let Some(t) = depth.constant() {
        t.to_f64s().into_iter().map(|d| Dim::Const(d as i64)).collect()
    } else {
        c.read(depth.cast(DType::I64), "depth")?.0
    };
    let [depth] = &depth[..] else { return Err(Error::shape("depth should be one number")) };
    let rank = x.ty().rank() + 1;
    let axis = normalize_axis(c.int("axis", -1)?, rank)?;
    let index = x.cast(DType::I64);
    let k = |d: Dim| c.b.op(nnc_ir::ops::source::Dims { values: vec![d], scalar: true }, &[]);
    // Negative indices count from the end; what lies outside is off everywhere.
    let index = index.less(k(Dim::Const(0))).select(index + k(depth.clone()), index);
    let mut shape = x.ty().shape;
    shape.insert(axis, Dim::Const(1));
    let hot = index.reshape(shape).equal(ramp(c.b, depth.clone(), axis, rank));
    let value = |i: i64| values.slice(vec![Dim::Const(i)], vec![Dim::Const(1)]).reshape(vec![]);
    Ok(vec![hot.select(value(1), value(0))])
}

/// The first `lens[b]` slices along the time axis in reverse, for each batch element.
fn reverse_sequence<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, lens) = (c.x(0)?, c.x(1)?);
    let ty = x.ty();
    let (batch, time) = (c.axis("batch_axis", 1)?, c.axis("time_axis", 0)?);
    if batch == time {
        return Err(Error::attribute("batch_axis and time_axis are one axis"));
    }
    let mut along = vec![Dim::Const(1); ty.rank()];
    along[batch] = ty.shape[batch].clone();
    let lens = lens.cast(DType::I64).reshape(along);
    let t = ramp(c.b, ty.shape[time].clone(), time, ty.rank());
    let one = c.b.constant(Tensor::scalar(1i64));
    let index = t.less(lens).select(lens - t - one, t);
    Ok(vec![c.b.op(GatherElements { axis: time }, &[x, index.expand(ty.shape.clone())])])
}

/// Upper or lower triangle; the other elements become zero.
fn trilu<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let ty = x.ty();
    let n = ty.rank();
    if n < 2 {
        return Err(Error::shape(format!("{ty} has no triangles")));
    }
    let (rows, cols) = (ramp(c.b, ty.shape[n - 2].clone(), 0, 2), ramp(c.b, ty.shape[n - 1].clone(), 1, 2));
    let k = c.opt(1).map_or_else(|| c.b.constant(Tensor::scalar(0i64)), |k| k.cast(DType::I64).reshape(vec![]));
    let keep = if c.flag("upper", true)? { cols.greater_equal(rows + k) } else { cols.less_equal(rows + k) };
    Ok(vec![keep.select(x, c.b.constant(Tensor::scalar_of(ty.dtype, 0.0)))])
}

/// Writes `update` into a cache along `axis` from `write_indices[b]` on, around the end in circular mode.
fn tensor_scatter<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (past, update) = (c.x(0)?, c.x(1)?);
    let (ty, tu) = (past.ty(), update.ty());
    let axis = c.axis("axis", -2)?;
    let circular = c.word("mode", &["linear", "circular"])? == "circular";
    if axis == 0 || tu.rank() != ty.rank() {
        return Err(Error::shape(format!("an update {tu} of {ty} along axis {axis}")));
    }
    let mut index = ramp(c.b, tu.shape[axis].clone(), axis, ty.rank());
    if let Some(at) = c.opt(2) {
        let mut shape = vec![Dim::Const(1); ty.rank()];
        shape[0] = ty.shape[0].clone();
        index = index + at.cast(DType::I64).reshape(shape);
    }
    if circular {
        let length = c.b.op(nnc_ir::ops::source::Dims { values: vec![ty.shape[axis].clone()], scalar: true }, &[]);
        index = c.b.op(nnc_ir::Op::Map(nnc_ir::ScalarFn::Mod), &[index, length]);
    }
    Ok(vec![c.b.op(ScatterElements { axis, reduction: ScatterKind::Set }, &[past, index.expand(tu.shape), update])])
}
