//! Elements of tensors in bulk: widened for arithmetic, picked by position.

use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::scalar::Num;
use crate::tensor::{Tensor, checked_elems};
use crate::types::{DType, broadcast};

/// Evaluates `$e` with `$D` a constant, so that the element type is looked at once and not for every element.
macro_rules! by_dtype {
    ($dtype:expr, $D:ident => $e:expr) => {
        by_dtype!(@ $dtype, $D, $e, F32 F64 F16 BF16 F8E4M3FN F8E4M3FNUZ F8E5M2 F8E5M2FNUZ F8E8M0 F6E2M3 F6E3M2 F4E2M1
            I8 I16 I32 I64 I4 I2 U8 U16 U32 U64 U4 U2 Bool)
    };
    (@ $dtype:expr, $D:ident, $e:expr, $($d:ident)*) => {
        match $dtype { $(DType::$d => { const $D: DType = DType::$d; $e })* }
    };
}

/// All elements through `f`, in order.
pub(crate) fn decode<T: Copy>(x: &Tensor, f: impl Fn(Num) -> T) -> Vec<T> {
    if let Some(e) = x.splat_element() {
        return vec![f(Num::read(x.dtype(), e)); x.elems()];
    }
    by_dtype!(x.dtype(), D => x.bytes().chunks_exact(D.bytes()).map(|b| f(Num::read(D, b))).collect())
}

/// A tensor from its elements in order, each rounded to `dtype`. There must be as many as `shape` says.
pub(crate) fn encode(dtype: DType, shape: &[usize], values: impl Iterator<Item = Num>) -> Result<Tensor> {
    let mut out = room(dtype, shape)?;
    by_dtype!(dtype, D => values.for_each(|n| n.cast(D).write(D, &mut out)));
    Tensor::from_bytes(dtype, shape.to_vec(), out.into())
}

/// The interpreter holds no larger tensors: it would take minutes for one, and small files can ask for terabytes.
pub(crate) const MAX_BYTES: usize = 1 << 30;

pub(crate) fn too_large(dtype: DType, shape: &[usize]) -> Error {
    Error::limit(format!("the interpreter holds tensors of up to 1 GiB, not {dtype}{shape:?}"))
}

/// Space for the bytes of a tensor; an error where the machine has none.
pub(crate) fn room(dtype: DType, shape: &[usize]) -> Result<Vec<u8>> {
    let mut out = vec![];
    let bytes = checked_elems(dtype, shape)? * dtype.bytes();
    if bytes > MAX_BYTES {
        return Err(too_large(dtype, shape));
    }
    out.try_reserve_exact(bytes).map_err(|_| Error::limit(format!("no memory for a tensor {dtype}{shape:?} of {bytes} bytes")))?;
    Ok(out)
}

/// Accumulators: floats add up in `f64`, integers in `i64` with wrap-around (which keeps the low bits of unsigned ones right too).
pub(crate) trait Acc: Copy {
    const ZERO: Self;
    fn of(n: Num) -> Self;
    fn num(self) -> Num;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
}

impl Acc for f64 {
    const ZERO: f64 = 0.0;
    fn of(n: Num) -> f64 {
        n.as_f64()
    }
    fn num(self) -> Num {
        Num::F(self)
    }
    fn plus(self, other: f64) -> f64 {
        self + other
    }
    fn times(self, other: f64) -> f64 {
        self * other
    }
}

impl Acc for i64 {
    const ZERO: i64 = 0;
    fn of(n: Num) -> i64 {
        n.as_i64()
    }
    fn num(self) -> Num {
        Num::I(self)
    }
    fn plus(self, other: i64) -> i64 {
        self.wrapping_add(other)
    }
    fn times(self, other: i64) -> i64 {
        self.wrapping_mul(other)
    }
}

/// Row-major strides, in elements.
pub(crate) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i] as isize;
    }
    out
}

/// Strides that walk a tensor of shape `x` as if it were broadcast to `out`: stretched axes stand still.
pub(crate) fn broadcast_strides(x: &[usize], out: &[usize]) -> Vec<isize> {
    let stretched = x.iter().zip(strides(x)).map(|(d, s)| if *d == 1 { 0 } else { s });
    std::iter::repeat_n(0, out.len() - x.len()).chain(stretched).collect()
}

/// The common shape of concrete shapes.
pub(crate) fn broadcast_shape(shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let dims: Vec<Vec<Dim>> = shapes.iter().map(|s| s.iter().map(|d| Dim::from(*d)).collect()).collect();
    let out = broadcast(&dims.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    Ok(out.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect())
}

/// Flat positions met while counting through `shape` in row-major order: axis `i` moves by `strides[i]`.
pub(crate) struct Walk {
    shape: Vec<usize>,
    strides: Vec<isize>,
    digits: Vec<usize>,
    at: isize,
    left: usize,
}

impl Walk {
    pub(crate) fn new(shape: &[usize], strides: Vec<isize>, start: isize) -> Walk {
        Walk { shape: shape.to_vec(), strides, digits: vec![0; shape.len()], at: start, left: shape.iter().product() }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let here = self.at as usize;
        for i in (0..self.shape.len()).rev() {
            self.digits[i] += 1;
            self.at += self.strides[i];
            if self.digits[i] < self.shape[i] {
                break;
            }
            self.at -= self.strides[i] * self.shape[i] as isize;
            self.digits[i] = 0;
        }
        Some(here)
    }
}

/// A tensor of `shape` whose elements are those of `x` at the flat positions `at`.
pub(crate) fn pick(x: &Tensor, shape: &[usize], at: impl Iterator<Item = usize>) -> Result<Tensor> {
    fn copy<const N: usize>(data: &[u8], at: impl Iterator<Item = usize>, out: &mut Vec<u8>) {
        at.for_each(|i| out.extend_from_slice(&data[i * N..i * N + N]));
    }
    if let Some(e) = x.splat_element() {
        return Tensor::splat(x.dtype(), shape.to_vec(), e.clone());
    }
    let (data, mut out) = (x.bytes(), room(x.dtype(), shape)?);
    match x.dtype().bytes() {
        1 => copy::<1>(&data, at, &mut out),
        2 => copy::<2>(&data, at, &mut out),
        4 => copy::<4>(&data, at, &mut out),
        _ => copy::<8>(&data, at, &mut out),
    }
    Tensor::from_bytes(x.dtype(), shape.to_vec(), out.into())
}

/// An operand of an element-by-element function.
enum Operand {
    One(Num),
    /// As many elements as the result, in the same order.
    Same(Vec<Num>),
    Stretched(Vec<Num>, Walk),
}

/// An element-by-element function with broadcasting.
pub(crate) fn map(x: &[Tensor], to: DType, f: impl Fn(&[Num]) -> Num) -> Result<Tensor> {
    let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
    let shape = broadcast_shape(&shapes)?;
    let n = checked_elems(to, &shape)?;
    let operand = |t: &Tensor| match t.shape() {
        _ if t.elems() == 1 => Operand::One(t.num(0)),
        s if s == shape => Operand::Same(decode(t, |n| n)),
        s => Operand::Stretched(decode(t, |n| n), Walk::new(&shape, broadcast_strides(s, &shape), 0)),
    };
    let mut operands: Vec<Operand> = x.iter().map(operand).collect();
    let mut args = vec![Num::B(false); x.len()];
    let elements = (0..n).map(|i| {
        for (a, operand) in args.iter_mut().zip(&mut operands) {
            *a = match operand {
                Operand::One(v) => *v,
                Operand::Same(v) => v[i],
                Operand::Stretched(v, at) => v[at.next().unwrap_or_default()],
            };
        }
        f(&args)
    });
    encode(to, &shape, elements)
}
