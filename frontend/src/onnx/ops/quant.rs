//! Quantised numbers: real = (stored - zero point) * scale.

use super::convert;
use super::matmul::matmul;
use super::window::{Geometry, group, spatial};
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::contract::{Conv, Layout};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::scalar::Num;
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, V};

pub const ROWS: &[Row] = &[
    op("ConvInteger", 10, (2, 4), conv_integer),
    op("DequantizeLinear", 10, (2, 3), dequantize),
    op("DynamicQuantizeLinear", 11, (1, 1), dynamic),
    op("MatMulInteger", 10, (2, 4), matmul_integer),
    op("QLinearConv", 10, (8, 9), quantized_conv),
    op("QLinearMatMul", 10, (8, 8), quantized_matmul),
    op("QuantizeLinear", 10, (2, 3), quantize),
];

/// A scale or zero point that broadcasts over x: one number, one an element of `axis`, or one for each block of it.
fn along<'g>(c: &Call<'g>, v: V<'g>, x: V<'g>) -> Result<V<'g>> {
    let (tv, tx) = (v.ty(), x.ty());
    if tv.elems().is(1) && tv.rank() <= 1 {
        return Ok(v.reshape(vec![]));
    }
    let axis = normalize_axis(c.int("axis", 1)?, tx.rank())?;
    let block = c.int("block_size", 0)?;
    if tv.rank() == 1 {
        let mut shape = vec![Dim::Const(1); tx.rank()];
        shape[axis] = tv.shape[0].clone();
        return Ok(v.reshape(shape));
    }
    if block < 1 || tv.rank() != tx.rank() {
        return Err(Error::shape(format!("a scale or zero point {tv} for {tx} with blocks of {block}")));
    }
    let (mut apart, mut joined) = (tv.shape.clone(), tv.shape);
    apart.insert(axis + 1, Dim::Const(1));
    let mut spread = apart.clone();
    spread[axis + 1] = Dim::Const(block);
    joined[axis] = joined[axis].clone() * Dim::Const(block);
    // The last block may reach beyond the end.
    Ok(v.reshape(apart).expand(spread).reshape(joined).slice_axis(axis, Dim::Const(0), tx.shape[axis].clone()))
}

/// Integers: rounds to even, adds the zero point, clamps to the type's range. Floats: adds the zero point and rounds.
fn stored<'g>(x: V<'g>, zero: Option<V<'g>>, to: DType, saturate: bool) -> Result<V<'g>> {
    if to.is_small_float() && to != DType::F8E8M0 {
        return Ok(convert::rounded(zero.map_or(x, |z| x + z.cast(x.ty().dtype)), to, saturate));
    }
    if !to.is_int() || to.bits() > 16 {
        return Err(Error::unsupported(format!("quantising to {to} is not supported")));
    }
    let rounded = real(x.map(ScalarFn::Round));
    let limit = |n: Num| rounded.scalar_like(n.as_f64());
    let shifted = zero.map_or(rounded, |z| rounded + z.cast(rounded.ty().dtype));
    Ok(shifted.max(limit(Num::least(to))).min(limit(Num::greatest(to))).cast(to))
}

/// Real numbers are computed in f32, or in f64 where they are that.
fn real(v: V) -> V {
    v.cast(if v.ty().dtype == DType::F64 { DType::F64 } else { DType::F32 })
}

fn quantize<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, scale) = (c.x(0)?, along(c, c.x(1)?, c.x(0)?)?);
    c.ignore(&["axis", "block_size"]);
    let zero = c.opt(2).map(|z| along(c, z, x)).transpose()?;
    let default = zero.map_or(DType::U8, |z| z.ty().dtype);
    let to = match c.opt_int("output_dtype")? {
        None | Some(0) => default,
        Some(_) => c.dtype("output_dtype", None)?,
    };
    let precision = match c.opt_int("precision")? {
        None | Some(0) => scale.ty().dtype,
        Some(_) => c.dtype("precision", None)?,
    };
    // A scale that is a mere power of two does not say how to divide.
    let precision = if precision.is_small_float() { DType::F32 } else { precision };
    Ok(vec![stored(x.cast(precision) / scale.cast(precision), zero, to, c.flag("saturate", true)?)?])
}

/// Where differences of stored numbers are exact, or as exact as floats are.
fn wide(d: DType) -> DType {
    if d.is_float() { DType::F32 } else { DType::I32 }
}

fn dequantize<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, scale) = (c.x(0)?, c.x(1)?);
    let to = match c.opt_int("output_dtype")? {
        None | Some(0) => scale.ty().dtype,
        Some(_) => c.dtype("output_dtype", None)?,
    };
    let scale = real(along(c, scale, x)?);
    c.ignore(&["axis", "block_size"]);
    let wide = x.cast(wide(x.ty().dtype));
    let shifted = match c.opt(2) {
        Some(z) => wide - along(c, z, x)?.cast(wide.ty().dtype),
        None => wide,
    };
    Ok(vec![(shifted.cast(scale.ty().dtype) * scale).cast(to)])
}

/// To u8 with the scale and zero point that just hold all of x and 0.
fn dynamic<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let axes: Vec<usize> = (0..x.ty().rank()).collect();
    let zero = x.scalar_like(0.0);
    let (lo, hi) = (x.reduce(ReduceKind::Min, &axes, false).min(zero), x.reduce(ReduceKind::Max, &axes, false).max(zero));
    let scale = (hi - lo) / x.scalar_like(255.0);
    let point = stored(-lo / scale, None, DType::U8, true)?;
    Ok(vec![stored(x / scale, Some(point), DType::U8, true)?, scale, point])
}

/// The stored numbers less their zero point, in i32, or in f32 where they are floats. A zero point a row of a matrix, or a filter, is a column.
fn shifted<'g>(x: V<'g>, zero: Option<V<'g>>, axis_from_end: usize) -> V<'g> {
    let wide = x.cast(wide(x.ty().dtype));
    let Some(zero) = zero else { return wide };
    let zero = zero.cast(wide.ty().dtype);
    if zero.ty().elems().is(1) {
        return wide - zero.reshape(vec![]);
    }
    let mut shape = zero.ty().shape;
    if shape.len() == 1 {
        shape.resize(1 + axis_from_end, Dim::Const(1));
    }
    wide - zero.reshape(shape)
}

fn matmul_integer<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    Ok(vec![matmul(shifted(c.x(0)?, c.opt(2), 1), shifted(c.x(1)?, c.opt(3), 0))])
}

fn quantized_matmul<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let sums = matmul(shifted(c.x(0)?, c.opt(2), 1), shifted(c.x(3)?, c.opt(5), 0));
    let of = |i: usize, axis_from_end: usize| -> Result<V<'g>> {
        let v = real(c.x(i)?);
        if v.ty().elems().is(1) {
            return Ok(v.reshape(vec![]));
        }
        let mut shape = v.ty().shape;
        shape.resize(shape.len() + axis_from_end * usize::from(shape.len() == 1), Dim::Const(1));
        Ok(v.reshape(shape))
    };
    let scale = of(1, 1)? * of(4, 0)? / of(6, 1)?;
    let zero = c.x(7)?;
    let point =
        if zero.ty().elems().is(1) { zero.reshape(vec![]) } else { zero.reshape(zero.ty().shape.into_iter().chain([Dim::Const(1)]).collect()) };
    Ok(vec![stored(sums.cast(scale.ty().dtype) * scale, Some(point), zero.ty().dtype, true)?])
}

/// A convolution of integers, padded with what stands for zero.
fn integer_conv<'g>(c: &Call<'g>, x: V<'g>, w: V<'g>) -> Result<V<'g>> {
    let g = Geometry::read(c, &spatial(x)?, w.ty().shape.get(2..))?;
    let group = group(c)?;
    let (x, pads) = g.padded(x, 0.0);
    Ok(c.b.op(Conv { strides: g.strides, dilations: g.dilations, pads, group, layout: Layout::Plain, inputs: 0, outputs: 0, post: vec![] }, &[x, w]))
}

fn conv_integer<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let w = c.x(1)?;
    let after = w.ty().rank().saturating_sub(1);
    Ok(vec![integer_conv(c, shifted(c.x(0)?, c.opt(2), 0), shifted(w, c.opt(3), after))?])
}

fn quantized_conv<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, w) = (c.x(0)?, c.x(3)?);
    let after = w.ty().rank().saturating_sub(1);
    let mut sums = integer_conv(c, shifted(x, c.opt(2), 0), shifted(w, c.opt(5), after))?;
    if sums.is_poison() {
        return Ok(c.poisoned());
    }
    // One number a channel.
    let channel = |v: V<'g>| if v.ty().elems().is(1) { v.reshape(vec![]) } else { super::norm::per_channel(v, sums) };
    let scale = real(c.x(1)?).reshape(vec![]) * channel(real(c.x(4)?)) / real(c.x(6)?).reshape(vec![]);
    if let Some(b) = c.opt(8) {
        sums = sums + super::norm::per_channel(b, sums);
    }
    let zero = c.x(7)?;
    Ok(vec![stored(sums.cast(scale.ty().dtype) * scale, Some(zero.reshape(vec![])), zero.ty().dtype, true)?])
}
