//! Parts of tensors: slices, splits, padding.

use super::axes::{Axes, Named, axes_input};
use super::text::moved;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::movement::{Pad, PadMode, Slice};
use nnc_ir::ops::source::Iota;
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("CenterCropPad", 18, (2, 2), |c| moved(c, center_crop_pad)),
    op("Pad", 1, (1, 1), pad_attributes),
    op("Pad", 11, (2, 4), |c| moved(c, pad)),
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
    let step = step.clamp(-FAR, FAR);
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
        let s = match start.as_const() {
            Some(-1) => last.clone(),
            // Of an axis without elements there is none to start from.
            _ => place(start, zero.clone(), last.clone()).minimum(&last),
        };
        let e = place(end, Dim::Const(-1), last);
        let n = (s.clone() - e).ceil_div(&Dim::Const(-step)).maximum(&zero);
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
        out.steps[a] = steps[i].clamp(-FAR, FAR);
    }
    if out.steps.iter().all(|s| *s == 1) {
        out.steps.clear();
        return Ok(x.slice(out.starts, out.sizes));
    }
    Ok(x.builder().op(out, &[x]))
}

fn slice_attributes<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let list = |name: &str| -> Result<Vec<Dim>> {
        let v = c.ints(name)?.ok_or_else(|| c.missing(name))?;
        Ok(v.into_iter().map(Dim::Const).collect())
    };
    Ok(vec![sliced(c.x(0)?, &list("starts")?, &list("ends")?, c.ints("axes")?, None)?])
}

pub fn slice<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (axes, steps) = (axes_input(c, 3, "axes")?, axes_input(c, 4, "steps")?);
    match (c.dims(1)?, c.dims(2)?, axes, steps) {
        (Some(starts), Some(ends), None, None) => Ok(vec![sliced(c.x(0)?, &starts, &ends, None, None)?]),
        (Some(starts), Some(ends), Some(Axes::Known(axes)), None) => Ok(vec![sliced(c.x(0)?, &starts, &ends, Some(axes), None)?]),
        (Some(starts), Some(ends), None, Some(Axes::Known(steps))) => Ok(vec![sliced(c.x(0)?, &starts, &ends, None, Some(steps))?]),
        (Some(starts), Some(ends), Some(Axes::Known(axes)), Some(Axes::Known(steps))) => {
            Ok(vec![sliced(c.x(0)?, &starts, &ends, Some(axes), Some(steps))?])
        }
        (_, _, axes, steps) => slice_at_run_time(c, axes, steps).map(|v| vec![v]),
    }
}

/// Starts, ends, steps or axes that only the run knows: clamp with tensor arithmetic, read the sizes, and gather along each axis.
fn slice_at_run_time<'g>(c: &Call<'g>, axes: Option<Axes<'g>>, steps: Option<Axes<'g>>) -> Result<V<'g>> {
    let (mut x, mut starts, mut ends) = (c.x(0)?, c.x(1)?.cast(DType::I64), c.x(2)?.cast(DType::I64));
    let ty = x.ty();
    let k = |v: i64| c.b.constant(Tensor::scalar(v));
    let vector = |v: &[i64]| c.b.constant(Tensor::new(&[v.len()], v));
    let count = match &axes {
        Some(Axes::Known(axes)) => Dim::from(axes.len()),
        Some(Axes::Open(axes)) => axes.ty().elems(),
        None => starts.ty().elems(),
    };
    let mut steps = match steps {
        None => k(1).expand(vec![count.clone()]),
        Some(Axes::Known(steps)) => vector(&steps),
        Some(Axes::Open(steps)) => steps,
    };
    for v in [&mut starts, &mut ends, &mut steps] {
        let t = v.ty();
        if t.rank() != 1 || (t.elems() - count.clone()).as_const().is_some_and(|d| d != 0) {
            return Err(Error::shape(format!("starts {}, ends {} and axes of a slice are {count} numbers, found {t}", c.x(1)?.ty(), c.x(2)?.ty())));
        }
        // Where only the run knows lengths, it compares them.
        *v = if t.elems() == count { *v } else { v.reshape(vec![count.clone()]) };
    }
    let axes: Vec<usize> = match (axes, count.as_const()) {
        (Some(Axes::Known(axes)), _) => axes.iter().map(|a| normalize_axis(*a, ty.rank())).collect::<Result<_>>()?,
        (None, Some(n)) if n <= ty.rank() as i64 => (0..n as usize).collect(),
        (None, Some(n)) => return Err(Error::shape(format!("{n} starts for {ty}"))),
        (axes, _) => {
            let axes = match axes {
                Some(Axes::Open(axes)) => axes,
                _ => c.b.op(Iota { shape: vec![count], axis: 0 }, &[]),
            };
            // Every axis is cut, those that are not named from end to end.
            let axes = Named::new(c, axes, ty.rank());
            axes.check(c)?;
            (starts, ends, steps) = (axes.spread(starts, k(0)), axes.spread(ends, k(i64::MAX)), axes.spread(steps, k(1)));
            (0..ty.rank()).collect()
        }
    };
    if (1..axes.len()).any(|i| axes[..i].contains(&axes[i])) {
        return Err(Error::shape(format!("axes {axes:?} of a slice name one twice")));
    }
    for (i, a) in axes.into_iter().enumerate() {
        let one = |v: V<'g>| v.slice(vec![Dim::from(i)], vec![Dim::Const(1)]);
        let (d, step) = (c.b.dims(vec![ty.shape[a].clone()]), one(steps).max(k(-FAR)).min(k(FAR)));
        let forward = step.greater(k(0));
        let (low, high) = (forward.select(k(0), k(-1)), forward.select(d, d - k(1)));
        let place = |p: V<'g>, low: V<'g>| p.less(k(0)).select(p + d, p).max(low).min(high);
        let (s, e) = (place(one(starts), k(0)), place(one(ends), low));
        let stride = step.abs().max(k(1));
        let count = (forward.select(e - s, s - e) + stride - k(1)) / stride;
        // A step of 0 is a size that there is not.
        let (size, _) = c.read(step.equal(k(0)).select(k(-1), count.max(k(0))), "the length of the slice")?;
        let index = c.b.op(Iota { shape: size, axis: 0 }, &[]) * step + s;
        x = c.b.op(Gather { axis: a }, &[x, index]);
    }
    Ok(x)
}

/// Consecutive parts of the given lengths, which make up the axis; where only the run knows, it compares.
fn parts<'g>(x: V<'g>, axis: usize, sizes: &[Dim]) -> Result<Vec<V<'g>>> {
    let mut shape = x.ty().shape;
    let sum = sizes.iter().fold(Dim::Const(0), |a, b| a + b.clone());
    if (&shape[axis] - &sum).as_const().is_some_and(|d| d != 0) {
        return Err(Error::shape(format!("parts of {sum} elements in all from axis {axis} of {}", x.ty())));
    }
    let fits = shape[axis] == sum;
    shape[axis] = sum;
    let x = if fits { x } else { x.reshape(shape) };
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
        let (sizes, known) = c.old_counts(1, "split")?;
        return match known {
            Some(known) => parts(x, axis, &known.into_iter().map(Dim::Const).collect::<Vec<_>>()),
            None => parts(x, axis, &c.read(c.long(sizes, 0, c.outputs.len()), "split")?.0),
        };
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
        let sizes = c.dims_of(1, c.outputs.len(), "split")?;
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

/// Elements before and after each axis.
type Pads = (Vec<Dim>, Vec<Dim>);

/// The first half of `pads` stands before `axes`, the second after them.
fn on_axes(rank: usize, pads: &[Dim], axes: Option<Vec<i64>>) -> Result<Pads> {
    let axes = axes.unwrap_or_else(|| (0..rank as i64).collect());
    if pads.len() != 2 * axes.len() {
        return Err(Error::shape(format!("{} pads for {} of {rank} axes", pads.len(), axes.len())));
    }
    let (mut lo, mut hi) = (vec![Dim::Const(0); rank], vec![Dim::Const(0); rank]);
    for (i, a) in axes.iter().enumerate() {
        let a = normalize_axis(*a, rank)?;
        (lo[a], hi[a]) = (pads[i].clone(), pads[axes.len() + i].clone());
    }
    Ok((lo, hi))
}

fn padded<'g>(c: &Call<'g>, (lo, hi): Pads, value: Option<V<'g>>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let mode = match c.word("mode", &["constant", "reflect", "edge", "wrap"])? {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        _ => PadMode::Wrap,
    };
    if lo.iter().chain(&hi).all(|d| d.is(0)) {
        return Ok(vec![x]);
    }
    let operands: Vec<V> = std::iter::once(x).chain(value.filter(|_| mode == PadMode::Constant)).collect();
    Ok(vec![c.b.op(Pad { mode, lo, hi }, &operands)])
}

/// Opsets 1 and 2.
fn pad_attributes<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let name = if c.opset < 2 { "paddings" } else { "pads" };
    let pads = c.ints(name)?.ok_or_else(|| c.missing(name))?;
    let value = c.float("value", 0.0)?;
    let value = (value != 0.0).then(|| c.x(0).map(|x| x.scalar_like(value))).transpose()?;
    let pads: Vec<Dim> = pads.into_iter().map(Dim::Const).collect();
    padded(c, on_axes(c.x(0)?.ty().rank(), &pads, None)?, value)
}

fn pad<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let rank = c.x(0)?.ty().rank();
    let pads = match (c.dims(1)?, axes_input(c, 3, "axes")?) {
        (Some(pads), None) => on_axes(rank, &pads, None)?,
        (Some(pads), Some(Axes::Known(axes))) => on_axes(rank, &pads, Some(axes))?,
        (None, None) => on_axes(rank, &read_signed(c, c.long(c.x(1)?, 0, 2 * rank))?, None)?,
        (None, Some(Axes::Known(axes))) => on_axes(rank, &read_signed(c, c.long(c.x(1)?, 0, 2 * axes.len()))?, Some(axes))?,
        (_, Some(Axes::Open(axes))) => {
            let named = Named::new(c, axes, rank);
            named.check(c)?;
            let (pads, n) = (c.x(1)?.cast(DType::I64), named.count.clone());
            if pads.ty().rank() != 1 || (pads.ty().elems() - n.clone() * Dim::Const(2)).as_const().is_some_and(|d| d != 0) {
                return Err(Error::shape(format!("pads {} for {n} axes", pads.ty())));
            }
            let zero = c.b.constant(Tensor::scalar(0i64));
            let half = |at: Dim| read_signed(c, named.spread(pads.slice(vec![at], vec![n.clone()]), zero));
            (half(Dim::Const(0))?, half(n.clone())?)
        }
    };
    padded(c, pads, c.opt(2).map(|v| v.reshape(vec![])))
}

/// Numbers that only the run knows and that may be negative: sizes are not, so that each is the difference of two.
fn read_signed<'g>(c: &Call<'g>, v: V<'g>) -> Result<Vec<Dim>> {
    let (v, zero) = (v.cast(DType::I64), c.b.constant(Tensor::scalar(0i64)));
    let (more, _) = c.read(v.max(zero), "pads")?;
    let (less, _) = c.read((-v).max(zero), "pads")?;
    Ok(more.iter().zip(&less).map(|(m, l)| m - l).collect())
}

/// Cuts or pads with zeros around the centre so that `axes` get the given lengths.
fn center_crop_pad<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let mut x = c.x(0)?;
    let rank = x.ty().rank();
    let axes = c.ints("axes")?.unwrap_or_else(|| (0..rank as i64).collect());
    let sizes = c.dims_of(1, axes.len(), "shape")?;
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
