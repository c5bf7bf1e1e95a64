//! Floats of 16 bits and fewer in f32 registers: their codes with integer instructions, by one scheme for all formats of sign, exponent
//! and mantissa ([`nnc_ir::minifloat`]; half precision is one more of them), and one for E8M0.

use super::math;
use crate::gpu::gir::build::Builder;
use crate::gpu::gir::{Binary, Compare, Ty, Val};
use nnc_ir::DType;
use nnc_ir::minifloat::{Format, Special};

/// The mantissa of an f32, and its bias.
const MANTISSA: u32 = 23;
const BIAS: i32 = 127;
const INFINITY: i64 = 0x7f80_0000;
const NAN: i64 = 0x7fc0_0000;

/// A format with its special codes as words.
pub struct Codec {
    mantissa: u32,
    bias: i32,
    special: Special,
    sign: i64,
    largest: i64,
    overflow: i64,
    nan: i64,
}

impl Codec {
    pub fn of(d: DType) -> Option<Codec> {
        if d == DType::F16 {
            return Some(Codec { mantissa: 10, bias: 15, special: Special::Ieee, sign: 0x8000, largest: 0x7bff, overflow: 0x7c00, nan: 0x7e00 });
        }
        let f = Format::of(d)?;
        let (sign, largest, overflow, nan) = (f.sign().into(), f.largest().into(), f.overflow().into(), f.nan().into());
        Some(Codec { mantissa: f.mantissa, bias: f.bias, special: f.special, sign, largest, overflow, nan })
    }
}

/// A code to f32, exactly. Bits above the format's are ignored.
pub fn decode(k: &mut Builder, d: DType, code: Val) -> Val {
    let Some(f) = Codec::of(d) else { return decode_exponent(k, code) };
    let magnitude = k.with(Binary::And, code, f.sign - 1);
    let shifted = k.with(Binary::Shl, magnitude, i64::from(MANTISSA - f.mantissa));
    // The exponent is off by the difference of the biases. Subnormals have none: their number is an integer, scaled.
    let rebias = k.with(Binary::Add, shifted, i64::from(BIAS - f.bias) << MANTISSA);
    let as_integer = k.convert(crate::gpu::gir::Convert::FloatS, Ty::F32, magnitude);
    let unit = k.f32(2f32.powi(1 - f.bias - f.mantissa as i32));
    let small = k.mul(as_integer, unit);
    let small = k.bits(Ty::I32, small);
    let is_small = k.compare_with(Compare::LtU, magnitude, 1 << f.mantissa);
    let mut w = k.select(is_small, small, rebias);
    match f.special {
        Special::Ieee => {
            // Infinity and the payload of NaN: the mantissa stays.
            let special = k.with(Binary::Or, shifted, INFINITY);
            let finite = k.compare_with(Compare::LeU, magnitude, f.largest);
            w = k.select(finite, w, special);
        }
        Special::Nan => {
            let finite = k.compare_with(Compare::LtU, magnitude, f.nan);
            let nan = k.i32(NAN as i32);
            w = k.select(finite, w, nan);
        }
        Special::Unsigned | Special::None => {}
    }
    let sign = k.with(Binary::And, code, f.sign);
    let sign = k.with(Binary::Shl, sign, i64::from(31 - f.sign.ilog2()));
    w = k.or(w, sign);
    if f.special == Special::Unsigned {
        // All bits but the sign are zero: what would be -0.
        let is_nan = k.compare_with(Compare::Eq, w, i64::from(i32::MIN));
        let nan = k.i32(NAN as i32);
        w = k.select(is_nan, nan, w);
    }
    k.bits(Ty::F32, w)
}

/// The code nearest to an f32, ties to even.
pub fn encode(k: &mut Builder, d: DType, v: Val) -> Val {
    let Some(f) = Codec::of(d) else { return encode_exponent(k, v) };
    let w = k.bits(Ty::I32, v);
    let a = k.with(Binary::And, w, 0x7fff_ffff);
    let drop = i64::from(MANTISSA - f.mantissa);
    // Ordinary numbers: rebias the exponent, add just under half of the last place, one more where the last bit kept is odd.
    let odd = k.with(Binary::ShrU, a, drop);
    let odd = k.with(Binary::And, odd, 1);
    let rebias = i64::from(f.bias - BIAS) << MANTISSA;
    let normal = k.with(Binary::Add, a, rebias + (1 << (drop - 1)) - 1);
    let normal = k.add(normal, odd);
    let normal = k.with(Binary::ShrU, normal, drop);
    // Subnormal ones: a number whose last place is that of the subnormals is added, so that the f32 adder rounds there.
    let magic = 2f32.powi(1 - f.bias - f.mantissa as i32 + MANTISSA as i32);
    let (x, m) = (k.bits(Ty::F32, a), k.f32(magic));
    let x = k.add(x, m);
    let sub = k.bits(Ty::I32, x);
    let sub = k.with(Binary::Sub, sub, i64::from(magic.to_bits() as i32));
    let least = 2f32.powi(1 - f.bias);
    let is_sub = k.compare_with(Compare::LtU, a, i64::from(least.to_bits() as i32));
    let code = k.select(is_sub, sub, normal);
    let fits = k.compare_with(Compare::LeU, code, f.largest);
    let overflow = k.i32(f.overflow as i32);
    let code = k.select(fits, code, overflow);
    let is_nan = math::is_nan(k, v);
    let nan = k.i32(f.nan as i32);
    let sign = k.with(Binary::ShrU, w, i64::from(31 - f.sign.ilog2()));
    let sign = k.with(Binary::And, sign, f.sign);
    match f.special {
        Special::Ieee | Special::Nan => {
            let code = k.select(is_nan, nan, code);
            k.or(code, sign)
        }
        Special::Unsigned => {
            // There is no -0: its code is NaN's.
            let signed = k.or(code, sign);
            let is_zero = k.compare_with(Compare::Eq, code, 0);
            let code = k.select(is_zero, code, signed);
            k.select(is_nan, nan, code)
        }
        Special::None => {
            let signed = k.or(code, sign);
            k.select(is_nan, nan, signed)
        }
    }
}

/// E8M0: the exponent of an f32, whose least value is a subnormal f32.
fn decode_exponent(k: &mut Builder, code: Val) -> Val {
    let code = k.with(Binary::And, code, 0xff);
    let w = k.with(Binary::Shl, code, i64::from(MANTISSA));
    let (least, nan) = (k.i32(1 << (MANTISSA - 1)), k.i32(NAN as i32));
    let is_least = k.compare_with(Compare::Eq, code, 0);
    let w = k.select(is_least, least, w);
    let is_nan = k.compare_with(Compare::Eq, code, 0xff);
    let w = k.select(is_nan, nan, w);
    k.bits(Ty::F32, w)
}

/// The nearest power of two, ties up; the least one for what is smaller; NaN for negative and for too large numbers.
fn encode_exponent(k: &mut Builder, v: Val) -> Val {
    let w = k.bits(Ty::I32, v);
    let up = k.with(Binary::Add, w, 1 << (MANTISSA - 1));
    let code = k.with(Binary::ShrU, up, i64::from(MANTISSA));
    let (zero, nan) = (k.i32(0), k.i32(0xff));
    // Below 1.5 times the least number.
    let is_least = k.compare_with(Compare::LtU, w, 3 << (MANTISSA - 2));
    let code = k.select(is_least, zero, code);
    // From 1.5 times the largest on; a sign makes the word larger still. But negative zero is zero.
    let fits = k.compare_with(Compare::LtU, w, 0x7f40_0000);
    let code = k.select(fits, code, nan);
    let is_minus_zero = k.compare_with(Compare::Eq, w, i64::from(i32::MIN));
    k.select(is_minus_zero, zero, code)
}
