//! Conversions between element types.
//!
//! [`nnc_ir::ops::map::Cast`] rounds to nearest and lets what is too large become infinity or NaN; what ONNX's attributes ask for
//! beyond that is said here with clamps and comparisons.

use super::{Row, op};
use crate::onnx::call::{Call, dtype_named};
use nnc_ir::minifloat::Format;
use nnc_ir::ops::map::BitCast;
use nnc_ir::scalar::Num;
use nnc_ir::{DType, Result, ScalarFn, Tensor, V};

pub const ROWS: &[Row] = &[
    op("BitCast", 26, (1, 1), bit_cast),
    // Before opset 6 the type was a name.
    op("Cast", 1, (1, 1), |c| match c.opt_str("to")? {
        Some(name) => cast(c, dtype_named(name)?),
        None => Err(c.missing("to")),
    }),
    op("Cast", 6, (1, 1), |c| cast(c, c.dtype("to", None)?)),
    op("CastLike", 15, (2, 2), |c| cast(c, c.x(1)?.ty().dtype)),
];

/// The bits of narrow integers with a sign lie in a byte that repeats the sign: they are read and written as numbers.
fn bit_cast<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, to) = (c.x(0)?, c.dtype("to", None)?);
    let from = x.ty().dtype;
    let unsigned = |d: DType| match d {
        DType::I4 => Some(DType::U4),
        DType::I2 => Some(DType::U2),
        _ => None,
    };
    if from.bits() != to.bits() || from == to || (unsigned(from).is_none() && unsigned(to).is_none()) {
        return Ok(vec![c.b.op(BitCast { to }, &[x])]);
    }
    let k = |n: i64| c.b.constant(Tensor::scalar_of(DType::I16, n as f64));
    let (half, whole) = (1 << (to.bits() - 1), 1 << to.bits());
    let bits = match unsigned(from) {
        Some(u) => {
            let n = x.cast(DType::I16);
            n.less(k(0)).select(n + k(whole), n).cast(u)
        }
        None => x,
    };
    Ok(vec![match unsigned(to) {
        Some(u) => {
            let n = (if bits.ty().dtype == u { bits } else { c.b.op(BitCast { to: u }, &[bits]) }).cast(DType::I16);
            n.less(k(half)).select(n, n - k(whole)).cast(to)
        }
        None if bits.ty().dtype == to => bits,
        None => c.b.op(BitCast { to }, &[bits]),
    }])
}

fn cast<'g>(c: &Call<'g>, to: DType) -> Result<Vec<V<'g>>> {
    let (saturate, round) = (c.flag("saturate", true)?, c.word("round_mode", &["up", "down", "nearest"])?);
    let x = c.x(0)?;
    Ok(vec![if to == DType::F8E8M0 && x.ty().dtype != to { exponent(x, saturate, round) } else { rounded(x, to, saturate) }])
}

/// The type that a conversion to a small float is computed in: no number of `d` is lost that the result could tell apart.
fn exact(d: DType) -> DType {
    if d == DType::F64 || d.is_int() && d.bits() > 16 { DType::F64 } else { DType::F32 }
}

/// Rounded to the nearest number of `to`. With `saturate` the 8-bit floats take their largest number for what is too large, infinity
/// too; without, infinity or NaN. Types of fewer bits saturate always.
pub fn rounded(x: V<'_>, to: DType, saturate: bool) -> V<'_> {
    let from = x.ty().dtype;
    let limited = saturate && Format::of(to).is_some() && to.bits() == 8 && from != to && from != DType::Bool;
    let (true, Some(f)) = (limited, Format::of(to)) else { return x.cast(to) };
    let most = nnc_ir::minifloat::decode(to, f.largest());
    let x = x.cast(exact(from));
    x.max(x.scalar_like(-most)).min(x.scalar_like(most)).cast(to)
}

/// A power of two. With `saturate` what is too large or too small becomes the greatest or least one, without NaN. Negative numbers
/// are not defined.
fn exponent<'g>(x: V<'g>, saturate: bool, round: &str) -> V<'g> {
    let x = x.cast(exact(x.ty().dtype));
    let (least, greatest) = (x.scalar_like(Num::least(DType::F8E8M0).as_f64()), x.scalar_like(Num::greatest(DType::F8E8M0).as_f64()));
    let x = if saturate { x.max(least).min(greatest) } else { x.less(least).select(x.scalar_like(f64::NAN), x) };
    let power = |x: V<'g>| x.cast(DType::F8E8M0).cast(x.ty().dtype);
    let y = match round {
        "nearest" => x,
        // The nearest power of 3/4 of a number is the number's own power: a tie goes up.
        "down" => power(x * x.scalar_like(0.75)),
        _ => {
            let near = power(x);
            near.less(x).select(near * x.scalar_like(2.0), near)
        }
    };
    // A NaN that compares with nothing stays.
    x.map(ScalarFn::IsNan).select(x, y).cast(DType::F8E8M0)
}
