//! Reference movement: every element is copied from the place that the operation's definition names.

use super::Env;
use super::elems::{Walk, broadcast_shape, broadcast_strides, pick, room, strides};
use crate::error::{Error, Result};
use crate::ops::movement::{Interleave, Pad, PadMode, Slice, Transpose};
use crate::tensor::Tensor;

pub fn transpose(op: &Transpose, x: &Tensor) -> Result<Tensor> {
    let (from, s) = (x.shape(), strides(x.shape()));
    let shape: Vec<usize> = op.perm.iter().map(|p| from[*p]).collect();
    pick(x, &shape, Walk::new(&shape, op.perm.iter().map(|p| s[*p]).collect(), 0))
}

pub fn expand(x: &Tensor, shape: Vec<usize>) -> Result<Tensor> {
    if broadcast_shape(&[&shape, x.shape()]).ok().as_deref() != Some(&shape) {
        return Err(Error::input(format!("expand: {:?} does not stretch to {shape:?}", x.shape())));
    }
    crate::tensor::checked_elems(x.dtype(), &shape)?;
    pick(x, &shape, Walk::new(&shape, broadcast_strides(x.shape(), &shape), 0))
}

pub fn slice(op: &Slice, x: &Tensor, env: &Env) -> Result<Tensor> {
    let sizes = env.shape(&op.sizes)?;
    let mut steps = strides(x.shape());
    let mut start = 0;
    for (i, stride) in steps.iter_mut().enumerate() {
        let (first, step, have) = (env.dim(&op.starts[i])?, op.step(i), x.shape()[i] as i64);
        if sizes[i] == 0 {
            continue;
        }
        let last = first.saturating_add((sizes[i] as i64 - 1).saturating_mul(step));
        if !(0..have).contains(&first) || !(0..have).contains(&last) {
            return Err(Error::input(format!("slice: axis {i} has {have} elements, {} from {first} with step {step} are asked for", sizes[i])));
        }
        start += first as isize * *stride;
        *stride *= if sizes[i] > 1 { step as isize } else { 1 };
    }
    pick(x, &sizes, Walk::new(&sizes, steps, start))
}

pub fn concat(axis: usize, x: &[Tensor]) -> Result<Tensor> {
    let mut shape = x[0].shape().to_vec();
    shape[axis] = x.iter().map(|t| t.shape()[axis]).sum();
    for t in x {
        if (0..shape.len()).any(|i| i != axis && t.shape()[i] != shape[i]) {
            return Err(Error::input(format!("concat along axis {axis}: {:?} does not fit {:?}", t.shape(), x[0].shape())));
        }
    }
    let mut out = room(x[0].dtype(), &shape)?;
    let outer: usize = shape[..axis].iter().product();
    let parts: Vec<_> = x.iter().map(|t| (t.bytes(), t.byte_len() / outer.max(1))).collect();
    for o in 0..outer {
        parts.iter().for_each(|(bytes, run)| out.extend_from_slice(&bytes[o * run..(o + 1) * run]));
    }
    Tensor::from_bytes(x[0].dtype(), shape, out.into())
}

pub fn interleave(op: &Interleave, x: &[Tensor]) -> Result<Tensor> {
    let places: Vec<Vec<usize>> = (0..x.len()).map(|k| op.place(k)).collect();
    let alone = |k: &usize, axis: usize| places[*k].iter().enumerate().all(|(i, p)| i == axis || *p == 0);
    let shape: Vec<usize> = (0..op.steps.len()).map(|i| (0..x.len()).filter(|k| alone(k, i)).map(|k| x[k].shape()[i]).sum()).collect();
    let size = x[0].dtype().bytes();
    let mut out = room(x[0].dtype(), &shape)?;
    out.resize(shape.iter().product::<usize>() * size, 0);
    for (t, place) in x.iter().zip(&places) {
        let fits = |i: usize| t.shape()[i] == shape[i].saturating_sub(place[i]).div_ceil(op.steps[i]);
        if !(0..shape.len()).all(fits) {
            return Err(Error::input(format!("interleave: {:?} does not fit {shape:?} at {place:?}", t.shape())));
        }
        let steps = strides(&shape);
        let start = place.iter().zip(&steps).map(|(p, s)| *p as isize * s).sum();
        let steps = steps.iter().zip(&op.steps).map(|(s, by)| s * *by as isize).collect();
        for (from, to) in t.bytes().chunks_exact(size).zip(Walk::new(t.shape(), steps, start)) {
            out[to * size..(to + 1) * size].copy_from_slice(from);
        }
    }
    Tensor::from_bytes(x[0].dtype(), shape, out.into())
}

/// Negative amounts cut first; what is left is then padded, so that reflection and wrapping see only what is kept.
pub fn pad(op: &Pad, x: &[Tensor], env: &Env) -> Result<Tensor> {
    let (x, fill) = (&x[0], x.get(1));
    let mut shape = vec![];
    // For each axis and each place along it, where in x its element stands (None: the constant).
    let mut sources: Vec<Vec<Option<usize>>> = vec![];
    for (i, (&d, stride)) in x.shape().iter().zip(strides(x.shape())).enumerate() {
        let (lo, hi) = (env.dim(&op.lo[i])?, env.dim(&op.hi[i])?);
        let (cut_lo, cut_hi) = ((-lo).max(0), (-hi).max(0));
        let kept = d as i64 - cut_lo - cut_hi;
        let length = usize::try_from((d as i64).saturating_add(lo).saturating_add(hi));
        let (Ok(length), true) = (length, kept >= 0) else {
            return Err(Error::input(format!("pad: axis {i} of {d} elements cannot lose {cut_lo} and {cut_hi}")));
        };
        if kept == 0 && length > 0 && op.mode != PadMode::Constant {
            return Err(Error::input(format!("pad: axis {i} is empty, there is nothing to repeat in mode {}", op.mode.word())));
        }
        shape.push(length);
        crate::tensor::checked_elems(x.dtype(), &shape)?;
        let source = |j: usize| beyond(op.mode, j as i64 - lo.max(0), kept).map(|s| (s + cut_lo) as usize * stride as usize);
        sources.push((0..length).map(source).collect());
    }
    let (data, size) = (x.bytes(), x.dtype().bytes());
    let fill = fill.map_or(vec![0; size], |t| t.element(0).to_vec());
    let mut out = room(x.dtype(), &shape)?;
    let mut digits = vec![0; shape.len()];
    for _ in 0..shape.iter().product() {
        let at = digits.iter().zip(&sources).map(|(d, s)| s[*d]).sum::<Option<usize>>();
        out.extend_from_slice(at.map_or(&fill, |at| &data[at * size..(at + 1) * size]));
        for i in (0..shape.len()).rev() {
            digits[i] += 1;
            if digits[i] < shape[i] {
                break;
            }
            digits[i] = 0;
        }
    }
    Tensor::from_bytes(x.dtype(), shape, out.into())
}

/// Which of `n` elements stands at place `i`, which may lie outside; `None` is the constant.
fn beyond(mode: PadMode, i: i64, n: i64) -> Option<i64> {
    match mode {
        PadMode::Constant => (0..n).contains(&i).then_some(i),
        PadMode::Edge => Some(i.clamp(0, n - 1)),
        PadMode::Wrap => Some(i.rem_euclid(n)),
        // 0 1 2 3 2 1 0 1 ...: the edges are not repeated.
        PadMode::Reflect if n == 1 => Some(0),
        PadMode::Reflect => {
            let j = i.rem_euclid(2 * (n - 1));
            Some(j.min(2 * (n - 1) - j))
        }
    }
}

pub fn pack(block: usize, x: &Tensor) -> Result<Tensor> {
    let (n, c, spatial) = (x.shape()[0], x.shape()[1], &x.shape()[2..]);
    let blocks = c.div_ceil(block);
    let shape = [&[n, blocks], spatial, &[block]].concat();
    let inner: usize = spatial.iter().product();
    let (data, size, mut out) = (x.bytes(), x.dtype().bytes(), room(x.dtype(), &shape)?);
    for (image, first) in (0..n).flat_map(|i| (0..blocks).map(move |b| (i, b * block))) {
        for (at, channel) in (0..inner).flat_map(|p| (first..first + block).map(move |ch| (p, ch))) {
            let from = ((image * c + channel) * inner + at) * size;
            if channel < c {
                out.extend_from_slice(&data[from..from + size]);
            } else {
                out.resize(out.len() + size, 0);
            }
        }
    }
    Tensor::from_bytes(x.dtype(), shape, out.into())
}

pub fn unpack(channels: usize, x: &Tensor) -> Result<Tensor> {
    let (last, s) = (x.shape().len() - 1, x.shape());
    let (n, blocks, spatial, block) = (s[0], s[1], &s[2..last], s[last]);
    if channels > blocks.saturating_mul(block) {
        return Err(Error::input(format!("unpack: {s:?} has no {channels} channels in blocks")));
    }
    let inner: usize = spatial.iter().product();
    let shape = [&[n, channels], spatial].concat();
    let at = (0..n)
        .flat_map(move |i| (0..channels).flat_map(move |c| (0..inner).map(move |p| ((i * blocks + c / block) * inner + p) * block + c % block)));
    pick(x, &shape, at)
}
