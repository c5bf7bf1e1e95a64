//! Fast evaluation of what is done to weights: permuting, padding, scaling. The reference's results, bit for bit.
//!
//! The reference takes tens of nanoseconds an element, and weights have hundreds of millions. Operations that are not here are left
//! to it.

use nnc_ir::ops::movement::PadMode;
use nnc_ir::tensor::checked_elems;
use nnc_ir::{DType, Op, Result, ScalarFn, Tensor};

/// The result of `op`, or `None` where there is no fast way.
pub fn apply(op: &Op, x: &[Tensor]) -> Option<Result<Tensor>> {
    match op {
        Op::Transpose(t) => Some(transpose(&x[0], &t.perm)),
        Op::Pad(p) if p.mode == PadMode::Constant && x.len() == 1 => {
            let lo: Option<Vec<usize>> = p.lo.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
            let hi: Option<Vec<usize>> = p.hi.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
            Some(pad(&x[0], &lo?, &hi?))
        }
        Op::Cast(c) if c.to == DType::BF16 && x[0].dtype() == DType::F32 && x[0].splat_element().is_none() => Some(to_bf16(&x[0])),
        // In f64 and rounded once is what one operation in f32 gives.
        Op::Map(ScalarFn::Add) => binary(|a, b| a + b, x),
        Op::Map(ScalarFn::Sub) => binary(|a, b| a - b, x),
        Op::Map(ScalarFn::Mul) => binary(|a, b| a * b, x),
        Op::Map(ScalarFn::Div) => binary(|a, b| a / b, x),
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

/// Nested loops over a shape, with `N` places that advance by their own strides. Axes that can be walked as one are one.
struct Walk<const N: usize> {
    /// Outermost first; never empty.
    axes: Vec<(usize, [usize; N])>,
}

impl<const N: usize> Walk<N> {
    fn new(shape: &[usize], strides: [&[usize]; N]) -> Walk<N> {
        let mut axes: Vec<(usize, [usize; N])> = vec![];
        for (i, n) in shape.iter().enumerate().filter(|(_, n)| **n != 1) {
            let step = strides.map(|s| s[i]);
            match axes.last_mut() {
                Some((m, outer)) if (0..N).all(|k| outer[k] == n * step[k]) => (*m, *outer) = (*m * n, step),
                _ => axes.push((*n, step)),
            }
        }
        if axes.is_empty() {
            axes.push((1, [0; N]));
        }
        Walk { axes }
    }

    /// Calls `f` with the length and strides of the innermost loop, and the places where it starts.
    fn rows(&self, mut f: impl FnMut(usize, [usize; N], [usize; N])) {
        let (last, outer) = self.axes.split_last().expect("never empty");
        if self.axes.iter().any(|(n, _)| *n == 0) {
            return;
        }
        let mut index = vec![0; outer.len()];
        let mut at = [0; N];
        loop {
            f(last.0, last.1, at);
            let mut axis = outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                let (n, step) = outer[axis];
                index[axis] += 1;
                (0..N).for_each(|k| at[k] += step[k]);
                if index[axis] < n {
                    break;
                }
                index[axis] = 0;
                (0..N).for_each(|k| at[k] -= step[k] * n);
            }
        }
    }
}

/// Elements that are copied in one go along the operand's last axis: 16 rows of them and what they are written to fit the L1 cache.
const TILE: usize = 256;

/// Copies `bytes`, elements of `size` bytes in the order of `shape`, to the places that `steps` say in a buffer of `elems`.
fn scatter(bytes: &[u8], shape: &[usize], steps: &[usize], first: usize, elems: usize, size: usize) -> Vec<u8> {
    let mut out = vec![0; elems * size];
    let mut walk = Walk::new(shape, [&strides(shape), steps]);
    let (n, [_, step]) = walk.axes.pop().expect("never empty");
    // What lies side by side in the result is written one after the other.
    match walk.axes.iter().position(|(_, [_, w])| *w == 1) {
        Some(q) => {
            let q = walk.axes.remove(q);
            walk.axes.push(q);
        }
        None => walk.axes.push((1, [0, 0])),
    }
    for start in (0..n).step_by(TILE) {
        let len = TILE.min(n - start);
        walk.rows(|count, [dr, dw], [r, w]| {
            for j in 0..count {
                let from = &bytes[(r + j * dr + start) * size..][..len * size];
                let to = &mut out[(first + w + j * dw + start * step) * size..];
                match (step, size) {
                    (0 | 1, _) => to[..len * size].copy_from_slice(from),
                    (_, 4) => to.chunks_mut(4 * step).zip(from.chunks_exact(4)).for_each(|(t, f)| t[..4].copy_from_slice(f)),
                    _ => to.chunks_mut(size * step).zip(from.chunks_exact(size)).for_each(|(t, f)| t[..size].copy_from_slice(f)),
                }
            }
        });
    }
    out
}

fn transpose(x: &Tensor, perm: &[usize]) -> Result<Tensor> {
    let shape: Vec<usize> = perm.iter().map(|p| x.shape()[*p]).collect();
    let out = strides(&shape);
    let mut steps = vec![0; shape.len()];
    perm.iter().zip(&out).for_each(|(p, s)| steps[*p] = *s);
    let bytes = scatter(&x.bytes(), x.shape(), &steps, 0, x.elems(), x.dtype().bytes());
    Tensor::from_bytes(x.dtype(), shape, bytes.into())
}

/// `x` with zeros around.
fn pad(x: &Tensor, lo: &[usize], hi: &[usize]) -> Result<Tensor> {
    let shape: Vec<usize> = x.shape().iter().zip(lo.iter().zip(hi)).map(|(d, (l, h))| d.saturating_add(*l).saturating_add(*h)).collect();
    let elems = checked_elems(x.dtype(), &shape)?;
    let steps = strides(&shape);
    let first: usize = lo.iter().zip(&steps).map(|(l, s)| l * s).sum();
    let bytes = scatter(&x.bytes(), x.shape(), &steps, first, elems, x.dtype().bytes());
    Tensor::from_bytes(x.dtype(), shape, bytes.into())
}

/// To the nearest bf16, ties to even.
fn to_bf16(x: &Tensor) -> Result<Tensor> {
    let nearest = |v: f32| half::bf16::from_f32(v).to_le_bytes();
    let bytes: Vec<u8> = x.try_bytes()?.chunks_exact(4).flat_map(|v| nearest(f32_at(v))).collect();
    Tensor::from_bytes(DType::BF16, x.shape().to_vec(), bytes.into())
}

/// Four bytes as a number.
fn f32_at(bytes: &[u8]) -> f32 {
    let mut word = [0; 4];
    word.copy_from_slice(bytes);
    f32::from_le_bytes(word)
}

/// Arithmetic on two `f32` tensors, with broadcasting.
fn binary(f: impl Fn(f32, f32) -> f32, x: &[Tensor]) -> Option<Result<Tensor>> {
    let [a, b] = x else { return None };
    if a.dtype() != DType::F32 || b.dtype() != DType::F32 {
        return None;
    }
    let rank = a.shape().len().max(b.shape().len());
    let aligned = |t: &Tensor| [vec![1; rank - t.shape().len()], t.shape().to_vec()].concat();
    let (sa, sb) = (aligned(a), aligned(b));
    let shape: Vec<usize> = sa.iter().zip(&sb).map(|(p, q)| if *p == 1 { *q } else { *p }).collect();
    if shape.iter().zip(sa.iter().zip(&sb)).any(|(d, (p, q))| ![1, *d].contains(p) || ![1, *d].contains(q)) {
        return None;
    }
    let elems = match checked_elems(DType::F32, &shape) {
        Ok(n) => n,
        Err(e) => return Some(Err(e)),
    };
    let steps = |s: &[usize]| strides(s).iter().zip(s).map(|(step, d)| if *d == 1 { 0 } else { *step }).collect::<Vec<_>>();
    let (ba, bb) = (a.bytes(), b.bytes());
    let mut out = vec![0; elems * 4];
    let mut written = 0;
    Walk::new(&shape, [&steps(&sa), &steps(&sb)]).rows(|n, step, [pa, pb]| {
        let to = out[written * 4..(written + n) * 4].chunks_exact_mut(4);
        written += n;
        let (from_a, from_b) = (&ba[pa * 4..], &bb[pb * 4..]);
        match step {
            [1, 1] => {
                let pairs = from_a.chunks_exact(4).zip(from_b.chunks_exact(4));
                to.zip(pairs).for_each(|(t, (a, b))| t.copy_from_slice(&f(f32_at(a), f32_at(b)).to_le_bytes()));
            }
            [1, 0] => {
                let b = f32_at(&from_b[..4]);
                to.zip(from_a.chunks_exact(4)).for_each(|(t, a)| t.copy_from_slice(&f(f32_at(a), b).to_le_bytes()));
            }
            [da, db] => to.enumerate().for_each(|(i, t)| {
                let (a, b) = (f32_at(&from_a[i * da * 4..][..4]), f32_at(&from_b[i * db * 4..][..4]));
                t.copy_from_slice(&f(a, b).to_le_bytes());
            }),
        }
    });
    Some(Tensor::from_bytes(DType::F32, shape, out.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnc_ir::Dim;
    use nnc_ir::eval::Env;
    use nnc_ir::ops::movement::{Pad, Transpose};

    fn ramp(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::new(shape, &(0..n).map(|i| i as f32 * 0.37 - 3.0).collect::<Vec<f32>>())
    }

    #[test]
    fn agrees_with_the_reference() {
        let dims = |d: &[i64]| d.iter().map(|d| Dim::Const(*d)).collect::<Vec<_>>();
        let pad = |lo: &[i64], hi: &[i64]| Op::from(Pad { mode: PadMode::Constant, lo: dims(lo), hi: dims(hi) });
        let map = |f| Op::Map(f);
        let cases: Vec<(Op, Vec<Tensor>)> = vec![
            (Transpose { perm: vec![0, 2, 4, 5, 3, 1] }.into(), vec![ramp(&[2, 4, 3, 4, 3, 1])]),
            (Transpose { perm: vec![1, 0] }.into(), vec![Tensor::new(&[2, 3], &[1u8, 2, 3, 4, 5, 6])]),
            (Transpose { perm: vec![1, 0] }.into(), vec![ramp(&[0, 3])]),
            (Transpose { perm: vec![] }.into(), vec![ramp(&[])]),
            (pad(&[0, 1], &[2, 0]), vec![ramp(&[2, 3])]),
            (pad(&[1, 1], &[1, 1]), vec![ramp(&[0, 3])]),
            (map(ScalarFn::Mul), vec![ramp(&[4, 3, 2, 2]), ramp(&[4, 1, 1, 1])]),
            (map(ScalarFn::Sub), vec![ramp(&[3, 1]), ramp(&[2, 1, 5])]),
            (map(ScalarFn::Div), vec![ramp(&[]), ramp(&[7])]),
            (map(ScalarFn::Add), vec![ramp(&[2, 5]), ramp(&[2, 5])]),
            (nnc_ir::ops::map::Cast { to: DType::BF16 }.into(), vec![ramp(&[7, 11])]),
        ];
        for (op, x) in cases {
            let want = op.as_primitive().unwrap().eval(&x, &Env::default()).unwrap().remove(0);
            let got = apply(&op, &x).unwrap().unwrap();
            assert_eq!((want.shape(), want.bytes()), (got.shape(), got.bytes()), "{op:?}");
        }
    }
}
