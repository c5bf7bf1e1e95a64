//! Parts of tensors: slices, splits, padding.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::movement::{Pad, PadMode, Slice};
use nnc_ir::ops::source::Iota;
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("CenterCropPad", 18, (2, 2), center_crop_pad),
    op("Pad", 1, (1, 1), pad_attributes),
    op("Pad", 11, (2, 4), pad),
    op("Slice", 1, (1, 1), slice_attributes),
    op("Slice", 10, (3, 5), slice),
    op("Split", 1, (1, 2), split_old),
    op("Split", 13, (1, 2), split),
];

/// Lengths and positions beyond this are ONNX's "to the end".
const FAR: i64 = i32::MAX as i64;

/// Start and number of elements along an axis of length `d`, by numpy's rules of clamping.
fn range(d: &Dim, start: &Dim, end: &Dim, step: i64) -> (Dim, Dim) {
    let zero = Dim::Const(0);
    // Positions from the front. A symbolic position is a size, and so not negative.
    let place = |p: &Dim, low: Dim, high: Dim| match p.as_const() {
        Some(c) if c >= FAR => high,
        Some(c) if c <= -FAR => low,
        Some(c) if c < 0 => (d.clone() + Dim::Const(c)).maximum(&low),
        _ => p.minimum(&high).maximum(&low),
    };
    if step > 0 {
        let (s, e) = (place(start, zero.clone(), d.clone()), place(end, zero.clone(), d.clone()));
        let n = (e - s.clone()).ceil_div(&Dim::Const(step)).maximum(&zero);
        (s, n)
    } else {
        let last = d.clone() - Dim::Const(1);
        let (s, e) = (place(start, zero.clone(), last.clone()), place(end, Dim::Const(-1), last));
        let n = (s.clone() - e).ceil_div(&Dim::Const(step.saturating_neg())).maximum(&zero);
        (s, n)
    }
}

/// Slices along `axes`; the others stay whole.
fn sliced<'g>(x: V<'g>, starts: &[Dim], ends: &[Dim], axes: Option<Vec<i64>>, steps: Option<Vec<i64>>) -> Result<V<'g>> {
    let ty = x.ty();
    let n = starts.len();
    let axes = axes.unwrap_or_else(|| (0..n as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; n]);
    if ends.len() != n || axes.len() != n || steps.len() != n {
        return Err(Error::shape(format!("{n} starts, {} ends, {} axes and {} steps", ends.len(), axes.len(), steps.len())));
    }
    let mut out = Slice { starts: vec![Dim::Const(0); ty.rank()], sizes: ty.shape.clone(), steps: vec![1; ty.rank()] };
    let mut seen = vec![];
    for i in 0..n {
        let a = normalize_axis(axes[i], ty.rank())?;
        if steps[i] == 0 || seen.contains(&a) {
            return Err(Error::attribute(format!("a step of {} along axis {a}, axes {axes:?}", steps[i])));
        }
        seen.push(a);
        (out.starts[a], out.sizes[a]) = range(&ty.shape[a], &starts[i], &ends[i], steps[i]);
        out.steps[a] = steps[i];
    }
    if out.steps.iter().all(|s| *s == 1) {
        out.steps.clear();
        return Ok(x.slice(out.starts, out.sizes));
    }
    Ok(x.builder().op(out, &[x]))
}

fn slice_attributes<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let list = |name: &str| -> Result<Vec<Dim>> {
        let v = c.ints(name)?.ok_or_else(|| Error::attribute(format!("attribute `{name}` is missing")))?;
        Ok(v.into_iter().map(Dim::Const).collect())
    };
    Ok(vec![sliced(c.x(0)?, &list("starts")?, &list("ends")?, c.ints("axes")?, None)?])
}

fn slice<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let known = |i: usize| -> Result<Option<Vec<i64>>> { c.opt(i).map(|_| c.known_ints(i, if i == 3 { "axes" } else { "steps" })).transpose() };
    let (axes, steps) = (known(3)?, known(4)?);
    if let (Some(starts), Some(ends)) = (c.dims(1)?, c.dims(2)?) {
        return Ok(vec![sliced(c.x(0)?, &starts, &ends, axes, steps)?]);
    }
    slice_at_run_time(c, axes, steps).map(|v| vec![v])
}

/// Starts or ends that only the run knows: clamp them with tensor arithmetic, read the sizes, and gather along each axis.
fn slice_at_run_time<'g>(c: &Call<'g>, axes: Option<Vec<i64>>, steps: Option<Vec<i64>>) -> Result<V<'g>> {
    let (mut x, starts, ends) = (c.x(0)?, c.x(1)?.cast(DType::I64), c.x(2)?.cast(DType::I64));
    let ty = x.ty();
    let n = starts.ty().elems().as_const().filter(|n| (0..=ty.rank() as i64).contains(n)).ok_or_else(|| c.unknown(1, "starts"))?;
    let axes = axes.unwrap_or_else(|| (0..n).collect());
    let steps = steps.unwrap_or_else(|| vec![1; n as usize]);
    if axes.len() as i64 != n || steps.len() as i64 != n || !ends.ty().elems().is(n) || steps.contains(&0) {
        return Err(Error::shape(format!("{n} starts, ends {}, axes {axes:?}, steps {steps:?}", ends.ty())));
    }
    let k = |v: i64| c.b.constant(Tensor::scalar(v));
    for i in 0..n as usize {
        let (a, step) = (normalize_axis(axes[i], ty.rank())?, steps[i]);
        let one = |v: V<'g>| v.slice(vec![Dim::from(i)], vec![Dim::Const(1)]);
        let d = c.b.dims(vec![ty.shape[a].clone()]);
        let (low, high) = if step > 0 { (k(0), d) } else { (k(-1), d - k(1)) };
        let place = |p: V<'g>, low: V<'g>| p.less(k(0)).select(p + d, p).max(low).min(high);
        let (s, e) = (place(one(starts), k(0)), place(one(ends), low));
        let span = if step > 0 { e - s } else { s - e };
        let count = ((span + k(step.abs() - 1)) / k(step.abs())).max(k(0));
        let (size, _) = c.read(count, "the length of the slice")?;
        let index = c.b.op(Iota { shape: size, axis: 0 }, &[]) * k(step) + s;
        x = c.b.op(Gather { axis: a }, &[x, index]);
    }
    Ok(x)
}

/// Consecutive parts of the given lengths.
fn parts<'g>(x: V<'g>, axis: usize, sizes: &[Dim]) -> Result<Vec<V<'g>>> {
    let whole = &x.ty().shape[axis];
    let sum = sizes.iter().fold(Dim::Const(0), |a, b| a + b.clone());
    if (whole - &sum).as_const().is_some_and(|d| d != 0) {
        return Err(Error::shape(format!("parts of {sum} elements in all from axis {axis} of {}", x.ty())));
    }
    let mut at = Dim::Const(0);
    Ok(sizes
        .iter()
        .map(|n| {
            let part = x.slice_axis(axis, at.clone(), n.clone());
            at = at.clone() + n.clone();
            part
        })
        .collect())
}

/// Equal parts, as many as there are outputs.
fn equal_parts<'g>(x: V<'g>, axis: usize, n: usize) -> Result<Vec<V<'g>>> {
    let d = x.ty().shape[axis].clone();
    if n == 0 || d.as_const().is_some_and(|d| d % n as i64 != 0) {
        return Err(Error::shape(format!("{n} equal parts of axis {axis} of {}", x.ty())));
    }
    parts(x, axis, &vec![d.floor_div(&Dim::from(n)); n])
}

/// Opsets 1 (lengths as attribute or input) and 2 (attribute).
fn split_old<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, axis) = (c.x(0)?, c.axis("axis", 0)?);
    if c.opset < 2 && c.opt(1).is_some() {
        return parts(x, axis, &c.old_ints(1, "split")?.into_iter().map(Dim::Const).collect::<Vec<_>>());
    }
    match c.ints("split")? {
        Some(sizes) => parts(x, axis, &sizes.into_iter().map(Dim::Const).collect::<Vec<_>>()),
        None => equal_parts(x, axis, c.outputs.len()),
    }
}

/// Opset 18 adds `num_outputs`, where the last part may be shorter.
fn split<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, axis) = (c.x(0)?, c.axis("axis", 0)?);
    let count = c.opt_int("num_outputs")?;
    if c.opt(1).is_some() {
        let sizes = match c.dims(1)? {
            Some(sizes) => sizes,
            None => c.read(c.x(1)?, "split")?.0,
        };
        return parts(x, axis, &sizes);
    }
    let n = c.outputs.len();
    if c.opset < 18 {
        return equal_parts(x, axis, n);
    }
    if count.is_some_and(|count| count != n as i64) {
        return Err(Error::attribute(format!("num_outputs is {}, there are {n} outputs", count.unwrap_or(0))));
    }
    let d = x.ty().shape[axis].clone();
    let each = d.ceil_div(&Dim::from(n));
    let last = d - each.clone() * Dim::from(n.saturating_sub(1));
    if last.as_const().is_some_and(|l| l < 0) {
        return Err(Error::shape(format!("{n} parts of axis {axis} of {}", x.ty())));
    }
    let mut sizes = vec![each; n.saturating_sub(1)];
    sizes.push(last);
    parts(x, axis, &sizes)
}

fn padded<'g>(c: &Call<'g>, pads: &[Dim], axes: Option<Vec<i64>>, value: Option<V<'g>>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let rank = x.ty().rank();
    let axes = axes.unwrap_or_else(|| (0..rank as i64).collect());
    if pads.len() != 2 * axes.len() {
        return Err(Error::shape(format!("{} pads for {} axes of {}", pads.len(), axes.len(), x.ty())));
    }
    let mode = match c.word("mode", &["constant", "reflect", "edge", "wrap"])? {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        _ => PadMode::Wrap,
    };
    let (mut lo, mut hi) = (vec![Dim::Const(0); rank], vec![Dim::Const(0); rank]);
    for (i, a) in axes.iter().enumerate() {
        let a = normalize_axis(*a, rank)?;
        (lo[a], hi[a]) = (pads[i].clone(), pads[axes.len() + i].clone());
    }
    if lo.iter().chain(&hi).all(|d| d.is(0)) {
        return Ok(vec![x]);
    }
    let operands: Vec<V> = std::iter::once(x).chain(value.filter(|_| mode == PadMode::Constant)).collect();
    Ok(vec![c.b.op(Pad { mode, lo, hi }, &operands)])
}

/// Opsets 1 and 2.
fn pad_attributes<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let name = if c.opset < 2 { "paddings" } else { "pads" };
    let pads = c.ints(name)?.ok_or_else(|| Error::attribute(format!("attribute `{name}` is missing")))?;
    let value = c.float("value", 0.0)?;
    let value = (value != 0.0).then(|| c.x(0).map(|x| x.scalar_like(value))).transpose()?;
    padded(c, &pads.into_iter().map(Dim::Const).collect::<Vec<_>>(), None, value)
}

fn pad<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let axes = super::shape::axes_input(c, 3)?;
    padded(c, &c.known_dims(1, "pads")?, axes, c.opt(2).map(|v| v.reshape(vec![])))
}

/// Cuts or pads with zeros around the centre so that `axes` get the given lengths.
fn center_crop_pad<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let mut x = c.x(0)?;
    let rank = x.ty().rank();
    let sizes = c.dims_or_read(1, "shape")?;
    let axes = c.ints("axes")?.unwrap_or_else(|| (0..rank as i64).collect());
    if axes.len() != sizes.len() {
        return Err(Error::shape(format!("{} lengths for {} axes", sizes.len(), axes.len())));
    }
    for (a, want) in axes.iter().zip(sizes) {
        let a = normalize_axis(*a, rank)?;
        let have = x.ty().shape[a].clone();
        let two = Dim::Const(2);
        // Too much is cut off, with the odd element at the end; too little is filled up likewise.
        let cut = (&have - &want).maximum(&Dim::Const(0));
        let x_cut = x.slice_axis(a, cut.floor_div(&two), have.clone() - cut);
        let fill = (&want - &have).maximum(&Dim::Const(0));
        let (mut lo, mut hi) = (vec![Dim::Const(0); rank], vec![Dim::Const(0); rank]);
        lo[a] = fill.floor_div(&two);
        hi[a] = fill - lo[a].clone();
        x = x_cut.pad_zero(lo, hi);
    }
    Ok(vec![x])
}
