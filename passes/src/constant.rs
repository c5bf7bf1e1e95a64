//! Fast evaluation of what is done to weights: permuting, padding, scaling. Same results as the reference, bit for bit.
//!
//! The reference takes tens of nanoseconds an element, and weights have hundreds of millions. Operations that are not here are left
//! to it.

use nnc_ir::ops::movement::PadMode;
use nnc_ir::tensor::Element;
use nnc_ir::{DType, Op, Result, ScalarFn, Tensor};

/// The result of `op`, or `None` where there is no fast way.
pub fn apply(op: &Op, x: &[Tensor]) -> Option<Result<Tensor>> {
    match op {
        Op::Transpose(t) => {
            let strides = strides(x[0].shape());
            let shape: Vec<usize> = t.perm.iter().map(|p| x[0].shape()[*p]).collect();
            let steps: Vec<usize> = t.perm.iter().map(|p| strides[*p]).collect();
            Some(gather(&x[0], shape, &steps))
        }
        Op::Expand(_) => None,
        Op::Pad(p) if p.mode == PadMode::Constant && x.len() == 1 => {
            let lo: Option<Vec<usize>> = p.lo.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
            let hi: Option<Vec<usize>> = p.hi.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
            Some(pad(&x[0], &lo?, &hi?))
        }
        Op::Map(f) if x.iter().all(|t| t.dtype() == DType::F32) && x.len() == 2 => binary(*f, &x[0], &x[1]),
        _ => None,
    }
}

/// Row-major strides, in elements.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// Visits the offsets `sum of index * step` of all indices into `shape` but the last axis, in row-major order.
fn rows(shape: &[usize], steps: &[usize], mut f: impl FnMut(usize)) {
    let outer = shape.len().saturating_sub(1);
    let count: usize = shape[..outer].iter().product();
    let mut index = vec![0; outer];
    let mut at = 0;
    for _ in 0..count {
        f(at);
        for axis in (0..outer).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
    }
}

/// Elements of `x` at strides `steps`, as a tensor of `shape`.
fn gather(x: &Tensor, shape: Vec<usize>, steps: &[usize]) -> Result<Tensor> {
    let dtype = x.dtype();
    let bytes = x.bytes();
    let size = dtype.bytes();
    let mut out: Vec<u8> = Vec::with_capacity(x.byte_len());
    if x.elems() > 0 {
        let (n, step) = (shape.last().copied().unwrap_or(1), steps.last().copied().unwrap_or(1));
        rows(&shape, steps, |at| match (step, size) {
            (1, _) => out.extend_from_slice(&bytes[at * size..(at + n) * size]),
            (_, 4) => out.extend((0..n).flat_map(|i| word(&bytes, at + i * step))),
            _ => (0..n).for_each(|i| out.extend_from_slice(&bytes[(at + i * step) * size..][..size])),
        });
    }
    Tensor::from_bytes(dtype, shape, out.into())
}

/// Four bytes of element `i`.
fn word(bytes: &[u8], i: usize) -> [u8; 4] {
    let mut w = [0; 4];
    w.copy_from_slice(&bytes[i * 4..i * 4 + 4]);
    w
}

/// `x` with zeros around.
fn pad(x: &Tensor, lo: &[usize], hi: &[usize]) -> Result<Tensor> {
    let (dtype, size) = (x.dtype(), x.dtype().bytes());
    let shape: Vec<usize> = x.shape().iter().zip(lo.iter().zip(hi)).map(|(d, (l, h))| d + l + h).collect();
    let elems = nnc_ir::tensor::checked_elems(dtype, &shape)?;
    let mut out = vec![0u8; elems * size];
    let bytes = x.bytes();
    if x.elems() > 0 {
        let steps = strides(&shape);
        let first: usize = lo.iter().zip(&steps).map(|(l, s)| l * s).sum();
        let n = x.shape().last().copied().unwrap_or(1) * size;
        let mut read = 0;
        rows(x.shape(), &steps, |at| {
            out[(first + at) * size..][..n].copy_from_slice(&bytes[read..read + n]);
            read += n;
        });
    }
    Tensor::from_bytes(dtype, shape, out.into())
}

/// Arithmetic on `f32` with broadcasting. In `f64`, rounded once, is what one operation in `f32` gives, so this is the reference's value.
fn binary(f: ScalarFn, a: &Tensor, b: &Tensor) -> Option<Result<Tensor>> {
    let f: fn(f32, f32) -> f32 = match f {
        ScalarFn::Add => |a, b| a + b,
        ScalarFn::Sub => |a, b| a - b,
        ScalarFn::Mul => |a, b| a * b,
        ScalarFn::Div => |a, b| a / b,
        _ => return None,
    };
    let rank = a.shape().len().max(b.shape().len());
    let aligned = |t: &Tensor| [vec![1; rank - t.shape().len()], t.shape().to_vec()].concat();
    let (sa, sb) = (aligned(a), aligned(b));
    let shape: Vec<usize> = sa.iter().zip(&sb).map(|(p, q)| if *p == 1 { *q } else { *p }).collect();
    if shape.iter().zip(sa.iter().zip(&sb)).any(|(d, (p, q))| ![1, *d].contains(p) || ![1, *d].contains(q)) {
        return None;
    }
    let steps = |s: &[usize]| strides(s).iter().zip(s).map(|(step, d)| if *d == 1 { 0 } else { *step }).collect::<Vec<_>>();
    let (pa, pb) = (steps(&sa), steps(&sb));
    let elems = match nnc_ir::tensor::checked_elems(DType::F32, &shape) {
        Ok(n) => n,
        Err(e) => return Some(Err(e)),
    };
    let (ba, bb) = (a.bytes(), b.bytes());
    let mut out: Vec<u8> = Vec::with_capacity(elems * 4);
    if elems > 0 {
        let n = shape.last().copied().unwrap_or(1);
        let (da, db) = (pa.last().copied().unwrap_or(0), pb.last().copied().unwrap_or(0));
        let mut offsets = Vec::new();
        rows(&shape, &pa, |at| offsets.push(at));
        let mut row = 0;
        rows(&shape, &pb, |at| {
            let start = offsets[row];
            row += 1;
            let get = |bytes: &[u8], i: usize| <f32 as Element>::get(&bytes[i * 4..i * 4 + 4]);
            out.extend((0..n).flat_map(|i| f(get(&ba, start + i * da), get(&bb, at + i * db)).to_le_bytes()));
        });
    }
    Some(Tensor::from_bytes(DType::F32, shape, out.into()))
}
