//! Reference gathering and scattering.

use super::elems::{Walk, decode, encode, pick, strides};
use super::reduce::combine;
use crate::error::{Error, Result};
use crate::ops::index::{ScatterElements, ScatterKind};
use crate::ops::reduce::ReduceKind;
use crate::scalar::Num;
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;

/// `index` into an axis of `length`, negative from the end; an error outside.
fn inside(op: &str, index: i64, axis: usize, length: usize) -> Result<usize> {
    let n = length as i64;
    if (-n..n).contains(&index) {
        return Ok(if index < 0 { index + n } else { index } as usize);
    }
    Err(Error::input(format!("{op}: index {index} is outside axis {axis} of length {n}")))
}

pub fn gather(axis: usize, x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let s = x.shape();
    let shape = [&s[..axis], index.shape(), &s[axis + 1..]].concat();
    checked_elems(x.dtype(), &shape)?;
    let at = decode(index, Num::as_i64).into_iter().map(|i| inside("gather", i, axis, s[axis])).collect::<Result<Vec<usize>>>()?;
    let (outer, inner): (usize, usize) = (s[..axis].iter().product(), s[axis + 1..].iter().product());
    let (at, length) = (&at, s[axis]);
    pick(x, &shape, (0..outer).flat_map(|o| at.iter().flat_map(move |i| (0..inner).map(move |k| (o * length + i) * inner + k))))
}

/// For each element of a tensor of `shape`, the flat position in `x` with the coordinate along `axis` taken from `index`.
fn along(op: &str, axis: usize, x: &[usize], index: &Tensor) -> Result<Vec<usize>> {
    if (0..x.len()).any(|i| i != axis && index.shape()[i] > x[i]) {
        return Err(Error::input(format!("{op}: indices {:?} reach outside {x:?}", index.shape())));
    }
    let mut s = strides(x);
    let step = std::mem::take(&mut s[axis]) as usize;
    let base = Walk::new(index.shape(), s, 0);
    base.zip(decode(index, Num::as_i64)).map(|(b, i)| Ok(b + step * inside(op, i, axis, x[axis])?)).collect()
}

pub fn gather_elements(axis: usize, x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let at = along("gather_elements", axis, x.shape(), index)?;
    pick(x, index.shape(), at.into_iter())
}

/// Flat starts of the slices that the rows of `index` address, and the slices' length. `batch` leading axes are shared.
fn slices(op: &str, batch: usize, x: &[usize], index: &Tensor) -> Result<(Vec<usize>, usize)> {
    let (&depth, lead) = index.shape().split_last().ok_or_else(|| Error::internal(format!("{op}: indices without axes")))?;
    if lead[..batch] != x[..batch] {
        return Err(Error::input(format!("{op}: the first {batch} axes of {:?} and {x:?} differ", index.shape())));
    }
    let (s, rows): (_, usize) = (strides(x), lead.iter().product());
    let (rest, per_batch): (usize, usize) = (x[batch + depth..].iter().product(), lead[batch..].iter().product());
    let whole: usize = x[batch..].iter().product();
    let index = decode(index, Num::as_i64);
    let start = |row: usize| {
        let coords = index[row * depth..(row + 1) * depth].iter().enumerate();
        coords.map(|(k, i)| Ok(inside(op, *i, batch + k, x[batch + k])? * s[batch + k] as usize)).sum::<Result<usize>>()
    };
    let starts = (0..rows).map(|row| Ok(start(row)? + row / per_batch * whole)).collect::<Result<Vec<usize>>>()?;
    Ok((starts, rest))
}

pub fn gather_nd(batch_dims: usize, x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let (starts, rest) = slices("gather_nd", batch_dims, x.shape(), index)?;
    let (s, ix) = (x.shape(), index.shape());
    let shape = [&ix[..ix.len() - 1], &s[batch_dims + ix[ix.len() - 1]..]].concat();
    checked_elems(x.dtype(), &shape)?;
    pick(x, &shape, starts.iter().flat_map(|i| *i..*i + rest))
}

/// `x` with each update written or combined at its place, in order. Floats combine in `f64` and round at the end.
fn scatter(kind: ScatterKind, x: &Tensor, updates: &Tensor, at: impl Iterator<Item = usize>) -> Result<Tensor> {
    let fold = match kind {
        ScatterKind::Set => None,
        ScatterKind::Add => Some(ReduceKind::Sum),
        ScatterKind::Mul => Some(ReduceKind::Prod),
        ScatterKind::Max => Some(ReduceKind::Max),
        ScatterKind::Min => Some(ReduceKind::Min),
    };
    let mut out = decode(x, |n| n);
    for (i, u) in at.zip(decode(updates, |n| n)) {
        out[i] = fold.map_or(u, |k| combine(k, x.dtype(), out[i], u));
    }
    encode(x.dtype(), x.shape(), out.into_iter())
}

pub fn scatter_elements(op: &ScatterElements, x: &[Tensor]) -> Result<Tensor> {
    let [x, index, updates] = x else { return Err(Error::internal("scatter_elements takes 3 operands")) };
    if index.shape() != updates.shape() {
        return Err(Error::input(format!("scatter_elements: indices {:?} and updates {:?} differ", index.shape(), updates.shape())));
    }
    let at = along("scatter_elements", op.axis, x.shape(), index)?;
    scatter(op.reduction, x, updates, at.into_iter())
}

pub fn scatter_nd(kind: ScatterKind, x: &[Tensor]) -> Result<Tensor> {
    let [x, index, updates] = x else { return Err(Error::internal("scatter_nd takes 3 operands")) };
    let (starts, rest) = slices("scatter_nd", 0, x.shape(), index)?;
    let ix = index.shape();
    let want = [&ix[..ix.len() - 1], &x.shape()[ix[ix.len() - 1]..]].concat();
    if updates.shape() != want {
        return Err(Error::input(format!("scatter_nd: updates {:?} should be {want:?}", updates.shape())));
    }
    scatter(kind, x, updates, starts.iter().flat_map(|i| *i..*i + rest))
}

pub fn non_zero(x: &Tensor) -> Result<Tensor> {
    let shape = if x.shape().is_empty() { &[1] } else { x.shape() };
    let found: Vec<usize> = decode(x, Num::as_bool).into_iter().enumerate().filter(|(_, set)| *set).map(|(i, _)| i).collect();
    let coordinate = |(stride, length): (isize, usize)| found.iter().map(move |i| Num::I((i / stride as usize % length) as i64));
    encode(DType::I64, &[shape.len(), found.len()], strides(shape).into_iter().zip(shape.iter().copied()).flat_map(coordinate))
}
