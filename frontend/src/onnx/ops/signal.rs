//! Fourier transforms: fast ones where the length is known, else matrix products. And the windows that go with them.

use super::axes::{Axes, Named, axes_input};
use super::fft::{Complex, factors, fft};
use super::index::ramp;
use super::matmul::matmul;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::control::If;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::movement::Slice;
use nnc_ir::ops::source::{Dims, Iota};
use nnc_ir::types::normalize_axis;
use nnc_ir::{Builder, DType, Dim, Error, Graph, Report, Result, ScalarFn, Tensor, V};
use std::f64::consts::TAU;

pub const ROWS: &[Row] = &[
    op("BlackmanWindow", 17, (1, 1), |c| window(c, &[0.42, -0.5, 0.08])),
    op("DFT", 17, (1, 2), |c| dft(c, Axes::Known(vec![c.int("axis", 1)?]))),
    op("DFT", 20, (1, 3), |c| dft(c, axes_input(c, 2, "axis")?.unwrap_or(Axes::Known(vec![-2])))),
    // 25/46 and 21/46, as the specification has them.
    op("HammingWindow", 17, (1, 1), |c| window(c, &[25.0 / 46.0, -21.0 / 46.0])),
    op("HannWindow", 17, (1, 1), |c| window(c, &[0.5, -0.5])),
    op("MelWeightMatrix", 17, (5, 5), mel_weights),
    op("STFT", 17, (2, 4), stft),
];

fn scalar<'g>(b: &'g Builder, d: &Dim, dtype: DType) -> V<'g> {
    b.op(Dims { values: vec![d.clone()], scalar: true }, &[]).cast(dtype)
}

/// The one number in an integer input, known or read at run time.
fn length(c: &Call, i: usize, what: &str) -> Result<Dim> {
    c.dims_or_read(i, what)?.first().cloned().ok_or_else(|| Error::shape(format!("{what} should be one number")))
}

/// Sum of `terms[j] * cos(2 pi j k / N)`.
fn window<'g>(c: &Call<'g>, terms: &[f64]) -> Result<Vec<V<'g>>> {
    let size = length(c, 0, "size")?;
    let span = if c.flag("periodic", true)? { size.clone() } else { size.clone() - Dim::Const(1) };
    let k = c.b.op(Iota { shape: vec![size], axis: 0 }, &[]).cast(DType::F64);
    let turn = k * k.scalar_like(TAU) / scalar(c.b, &span, DType::F64);
    let term = |(j, a): (usize, &f64)| (turn * turn.scalar_like(j as f64)).map(ScalarFn::Cos) * turn.scalar_like(*a);
    let sum = terms.iter().enumerate().map(term).reduce(|a, b| a + b).ok_or_else(|| Error::internal("a window without terms"))?;
    Ok(vec![sum.cast(c.dtype("output_datatype", Some(DType::F32))?)])
}

/// Cosines and sines of `2 pi j k / n`, f64 `[rows, columns]`.
fn waves<'g>(b: &'g Builder, n: &Dim, rows: &Dim, columns: &Dim) -> (V<'g>, V<'g>) {
    let product = ramp(b, rows.clone(), 0, 2) * ramp(b, columns.clone(), 1, 2);
    // Whole turns taken off first: large angles would lose digits.
    let turn = b.op(nnc_ir::Op::Map(ScalarFn::Mod), &[product, scalar(b, n, DType::I64)]).cast(DType::F64);
    let angle = turn * turn.scalar_like(TAU) / scalar(b, n, DType::F64);
    (angle.map(ScalarFn::Cos), angle.map(ScalarFn::Sin))
}

/// The last axis cut or filled with zeros to `n`.
fn fitted<'g>(x: V<'g>, n: &Dim) -> V<'g> {
    let ty = x.ty();
    let last = ty.rank() - 1;
    let have = ty.shape[last].clone();
    let cut = x.slice_axis(last, Dim::Const(0), have.minimum(n));
    let mut hi = vec![Dim::Const(0); ty.rank()];
    hi[last] = (n - &have).maximum(&Dim::Const(0));
    cut.pad_zero(vec![Dim::Const(0); ty.rank()], hi)
}

/// The transform of `[.., length, .., 1 or 2]` along `axis`.
fn dft<'g>(c: &Call<'g>, axis: Axes<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let shape = x.ty().shape;
    let (inverse, onesided) = (c.flag("inverse", false)?, c.flag("onesided", false)?);
    let size = |have: &Dim| match c.opt(1) {
        Some(_) => length(c, 1, "dft_length"),
        None if inverse && onesided => Ok((have - &Dim::Const(1)) * Dim::Const(2)),
        None => Ok(have.clone()),
    };
    match axis {
        Axes::Known(axis) if axis.len() == 1 => {
            let axis = normalize_axis(axis[0], shape.len())?;
            if axis + 1 >= shape.len() {
                return Err(Error::attribute(format!("axis {axis} of {} holds real and imaginary parts", x.ty())));
            }
            Ok(vec![transform(x, axis, size(&shape[axis])?, inverse, onesided)?])
        }
        Axes::Open(axis) if axis.ty().elems().is(1) && shape.len() > 1 => {
            if c.opt(1).is_none() && !onesided && shape[..shape.len() - 1].iter().all(|d| d.as_const().is_some()) {
                return Ok(vec![along_one(c, x, axis, inverse)?]);
            }
            // The last axis cannot be meant: it comes along as it is.
            let named = Named::new(c, axis, shape.len());
            let last = shape.len() - 1;
            let [before, have, after] = named.around(c, &shape, last)?;
            let parts = shape[last].clone();
            let x = x.reshape(vec![before, have.clone(), after.floor_div(&parts), parts]);
            let y = transform(x, 1, size(&have)?, inverse, onesided)?;
            if y.is_poison() {
                return Ok(c.poisoned());
            }
            let mut out = named.replaced(c, &shape, &y.ty().shape[1])?;
            out[last] = y.ty().shape[3].clone();
            Ok(vec![y.reshape(out)])
        }
        _ => Err(Error::shape("axis should be one number")),
    }
}

/// The transform along the axis that the run gives: a branch for each, so that every one knows its length and can be fast.
fn along_one<'g>(c: &Call<'g>, x: V<'g>, axis: V<'g>, inverse: bool) -> Result<V<'g>> {
    let ty = x.ty();
    let last = ty.rank() - 1;
    let k = |v: usize| c.b.constant(Tensor::scalar(v as i64));
    // Counted from the end before it is looked at: among the axes but the last.
    let axis = axis.less(k(0)).select(axis + k(ty.rank()), axis);
    let axis = axis.less(k(0)).select(k(last), axis);
    Named::new(c, axis, last).check(c)?;
    let axis = axis.reshape(vec![]);
    let mut chosen: Option<Graph> = None;
    for at in (0..last).rev() {
        let b = Builder::new("dft");
        let (a, x) = (b.input("axis", axis.ty()), b.input("x", ty.clone()));
        let branch = |b: &Builder, x: V<'_>| -> Result<()> {
            b.output("y", transform(x, at, ty.shape[at].clone(), inverse, false)?);
            Ok(())
        };
        match chosen {
            None => branch(&b, x)?,
            Some(otherwise) => {
                let yes = Builder::new("dft");
                yes.input("axis", axis.ty());
                branch(&yes, yes.input("x", ty.clone()))?;
                let here = a.equal(b.constant(Tensor::scalar(at as i64)));
                let yes = yes.finish().map_err(Report::into_first)?;
                b.output("y", b.op_all(If {}, &[here, a, x], vec![yes, otherwise])[0]);
            }
        }
        chosen = Some(b.finish().map_err(Report::into_first)?);
    }
    let graph = chosen.ok_or_else(|| Error::shape(format!("{ty} has no axis to transform along")))?;
    Ok(c.b.inline(&graph, &[axis, x])[0])
}

/// The longest transform whose waves are written into the graph.
const LONGEST: i64 = 1 << 20;

/// Computed in f64: sums of many terms cancel, and what should be zero would not be. A complex signal, which has that noise already
/// where it is itself a transform, is transformed in f32 where it can be done fast.
fn transform<'g>(x: V<'g>, axis: usize, n: Dim, inverse: bool, onesided: bool) -> Result<V<'g>> {
    let (b, dtype) = (x.builder(), x.ty().dtype);
    if n.as_const().is_some_and(|n| n < 1) {
        return Err(Error::shape(format!("a transform of length {n}")));
    }
    let fast = n.as_const().filter(|n| *n <= LONGEST).map(|n| n as usize);
    let complex = x.ty().shape.last().is_some_and(|parts| parts.is(2)) && !(inverse && onesided);
    let narrow = complex && dtype != DType::F64 && fast.is_some_and(|n| factors(n).is_some());
    let x = x.cast(if narrow { DType::F32 } else { DType::F64 });
    let ty = x.ty();
    let last = ty.rank() - 1;
    let parts = ty.shape[last].as_const().filter(|p| matches!(p, 1 | 2));
    let parts = parts.ok_or_else(|| Error::shape(format!("the last axis of {ty} should hold a real part, or a real and an imaginary one")))?;
    let half = n.floor_div(&Dim::Const(2)) + Dim::Const(1);
    let taken = if inverse && onesided { &half } else { &n };
    // The axis goes to the end, the parts come apart.
    let mut perm: Vec<usize> = (0..last).filter(|a| *a != axis).collect();
    perm.push(axis);
    let part = |i: i64| {
        let p = x.slice_axis(last, Dim::Const(i), Dim::Const(1)).reshape(ty.shape[..last].to_vec());
        fitted(p.transpose(&perm), taken)
    };
    let (re, im) = (part(0), (parts == 2).then(|| part(1)));
    let back = |v: V<'g>| {
        let mut undo = vec![0; perm.len()];
        perm.iter().enumerate().for_each(|(i, p)| undo[*p] = i);
        let v = v.transpose(&undo);
        v.reshape(v.ty().shape.into_iter().chain([Dim::Const(1)]).collect())
    };
    let scale = |v: V<'g>| v / scalar(b, &n, ty.dtype);
    if let (Some(n), true) = (fast, inverse && onesided) {
        // The other half is the conjugate of this one, backwards.
        let mirrored = |v: V<'g>, sign: f64| {
            let (axis, left) = (last - 1, n - (n / 2 + 1));
            let (mut starts, mut sizes, mut steps) = (vec![Dim::Const(0); last], v.ty().shape, vec![1; last]);
            (starts[axis], sizes[axis], steps[axis]) = (Dim::from(left), Dim::from(left), -1);
            let rest = b.op(Slice { starts, sizes, steps }, &[v]);
            if left == 0 { v } else { V::concat(&[v, rest * rest.scalar_like(sign)], axis) }
        };
        if re.is_poison() {
            return Ok(re);
        }
        let y = fft(Complex { re: mirrored(re, 1.0), im: im.map(|im| mirrored(im, -1.0)) }, n, true);
        return Ok(back(scale(y.re)).cast(dtype));
    }
    if inverse && onesided {
        // Every frequency but the first and (for even n) the last counts twice.
        let (cos, sin) = waves(b, &n, &half, &n);
        let k = ramp(b, half.clone(), 0, 2);
        let zero = k.scalar_like(0.0);
        let alone = k.equal(zero).or((k + k).equal(scalar(b, &n, DType::I64)));
        let times = alone.select(cos.scalar_like(1.0), cos.scalar_like(2.0));
        let y = matmul(re, cos * times);
        return Ok(back(scale(im.map_or(y, |im| y - matmul(im, sin * times)))).cast(dtype));
    }
    let bins = if onesided { half } else { n.clone() };
    if let Some(n) = fast {
        let y = fft(Complex { re, im }, n, inverse);
        // As NumPy has it: times the rounded reciprocal.
        let finish = |v: V<'g>| {
            let v = if inverse { v * v.scalar_like(1.0 / n as f64) } else { v };
            back(v.slice_axis(v.ty().rank() - 1, Dim::Const(0), bins.clone()))
        };
        if y.re.is_poison() {
            return Ok(y.re);
        }
        return Ok(V::concat(&[finish(y.re), finish(y.imaginary())], last).cast(dtype));
    }
    let (cos, sin) = waves(b, &n, &n, &bins);
    let sin = if inverse { -sin } else { sin };
    let (real, imaginary) = match im {
        Some(im) => (matmul(re, cos) + matmul(im, sin), matmul(im, cos) - matmul(re, sin)),
        None => (matmul(re, cos), -matmul(re, sin)),
    };
    let (real, imaginary) = if inverse { (scale(real), scale(imaginary)) } else { (real, imaginary) };
    Ok(V::concat(&[back(real), back(imaginary)], last).cast(dtype))
}

/// Transforms of frames of `[batch, length, 1 or 2]`: `[batch, frames, bins, 2]`.
fn stft<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let ty = x.ty();
    if ty.rank() != 3 {
        return Err(Error::shape(format!("expected [batch, length, parts], found {ty}")));
    }
    let step = length(c, 1, "frame_step")?;
    let size = match (c.opt(3), c.opt(2)) {
        (Some(_), _) => length(c, 3, "frame_length")?,
        (None, Some(w)) => w.ty().elems(),
        (None, None) => ty.shape[1].clone(),
    };
    if step.as_const().is_some_and(|s| s < 1) {
        return Err(Error::shape(format!("a frame_step of {step}")));
    }
    if let (Some(have), Some(size)) = (ty.shape[1].as_const(), size.as_const())
        && !(1..=have).contains(&size)
    {
        return Err(Error::shape(format!("frames of {size} elements of a signal of {have}")));
    }
    let frames = (&ty.shape[1] - &size).floor_div(&step) + Dim::Const(1);
    let index = ramp(c.b, frames, 0, 2) * scalar(c.b, &step, DType::I64) + ramp(c.b, size.clone(), 1, 2);
    let mut framed = c.b.op(Gather { axis: 1 }, &[x, index]);
    if let Some(w) = c.opt(2) {
        framed = framed * w.reshape(vec![size.clone(), Dim::Const(1)]);
    }
    if framed.is_poison() {
        return Ok(c.poisoned());
    }
    Ok(vec![transform(framed, 2, size, false, c.flag("onesided", true)?)?])
}

/// Triangular filters, evenly spaced in mel, as weights of the bins of a transform.
fn mel_weights<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (bands, size) = (length(c, 0, "num_mel_bins")?, length(c, 1, "dft_length")?);
    let number = |i: usize| Ok(c.x(i)?.cast(DType::F64).reshape(vec![]));
    let (rate, low, high) = (number(2)?, number(3)?, number(4)?);
    let times = |v: V<'g>, by: f64| v * v.scalar_like(by);
    let plus = |v: V<'g>, by: f64| v + v.scalar_like(by);
    // 2595 log10(1 + hertz / 700), and back.
    let scale = 2595.0 / std::f64::consts::LN_10;
    let to_mel = |hertz: V<'g>| times(plus(times(hertz, 1.0 / 700.0), 1.0).log(), scale);
    let to_hertz = |mel: V<'g>| times(plus(times(mel, 1.0 / scale).exp(), -1.0), 700.0);
    let edges = bands.clone() + Dim::Const(2);
    let step = (to_mel(high) - to_mel(low)) / scalar(c.b, &edges, DType::F64);
    let mel = to_mel(low) + ramp(c.b, edges, 0, 1).cast(DType::F64) * step;
    let bin = (plus(scalar(c.b, &size, DType::F64), 1.0) * to_hertz(mel) / rate).map(ScalarFn::Floor);
    let [left, centre, right] = [0, 1, 2].map(|k| bin.slice_axis(0, Dim::Const(k), bands.clone()));
    let k = ramp(c.b, size.floor_div(&Dim::Const(2)) + Dim::Const(1), 0, 2).cast(DType::F64);
    let zero = k.scalar_like(0.0);
    // Up to the centre, which has 1 even where nothing leads up to it, and down from it.
    let flat = left.equal(centre);
    let up = flat.select(k.scalar_like(1.0), (k - left) / flat.select(k.scalar_like(1.0), centre - left));
    let down = (right - k) / right.equal(centre).select(k.scalar_like(1.0), right - centre);
    let rises = k.less(left).or(k.greater(centre));
    let falls = k.less(centre).or(right.equal(centre)).or(k.greater(right));
    let y = falls.select(rises.select(zero, up), down);
    Ok(vec![y.cast(c.dtype("output_datatype", Some(DType::F32))?)])
}
