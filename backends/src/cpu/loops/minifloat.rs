//! Floats of 8 bits and fewer in f32 registers: the codes of [`nnc_ir::minifloat`] with integer instructions.

use crate::cpu::clif::{Code, F32, I32};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use nnc_ir::DType;
use nnc_ir::minifloat::{Format, Special};

/// The mantissa of an f32, and its bias.
const MANTISSA: u32 = 23;
const BIAS: i32 = 127;
const INFINITY: i64 = 0x7f80_0000;
const NAN: i64 = 0x7fc0_0000;

fn float(c: &mut Code<'_>, w: Value) -> Value {
    c.b.ins().bitcast(F32, MemFlagsData::new(), w)
}

fn word(c: &mut Code<'_>, f: Value) -> Value {
    c.b.ins().bitcast(I32, MemFlagsData::new(), f)
}

/// A code in an i32 to f32, exactly. Bits above the format's are ignored.
pub fn decode(c: &mut Code<'_>, d: DType, code: Value) -> Value {
    let Some(f) = Format::of(d) else { return decode_exponent(c, code) };
    let magnitude = c.b.ins().band_imm_u(code, i64::from(f.sign() - 1));
    let shifted = c.b.ins().ishl_imm_u(magnitude, i64::from(MANTISSA - f.mantissa));
    // The exponent is off by the difference of the biases; the multiplication mends it, also for subnormals.
    let x = float(c, shifted);
    let scale = c.b.ins().f32const(2f32.powi(BIAS - f.bias));
    let x = c.b.ins().fmul(x, scale);
    let mut w = word(c, x);
    let from = |c: &mut Code<'_>, w: Value, least: u8, special: i64| {
        let is_special = c.cmp_c(IntCC::UnsignedGreaterThanOrEqual, magnitude, i64::from(least));
        let special = c.b.ins().iconst(I32, special);
        c.select(is_special, special, w)
    };
    match f.special {
        Special::Ieee => {
            // Infinity and the payload of NaN: the mantissa stays.
            let special = c.b.ins().bor_imm_u(w, INFINITY);
            let is_special = c.cmp_c(IntCC::UnsignedGreaterThan, magnitude, i64::from(f.largest()));
            w = c.select(is_special, special, w);
        }
        Special::Nan => w = from(c, w, f.nan(), NAN),
        Special::Unsigned | Special::None => {}
    }
    let sign = c.b.ins().band_imm_u(code, i64::from(f.sign()));
    let sign = c.b.ins().ishl_imm_u(sign, i64::from(31 - f.sign().ilog2()));
    w = c.b.ins().bor(w, sign);
    if f.special == Special::Unsigned {
        // All bits but the sign are zero: what would be -0.
        let nan = c.b.ins().iconst(I32, NAN);
        let is_nan = c.cmp_c(IntCC::Equal, w, i64::from(i32::MIN));
        w = c.select(is_nan, nan, w);
    }
    float(c, w)
}

/// The code nearest to an f32, ties to even, in the low bits of an i32.
pub fn encode(c: &mut Code<'_>, d: DType, v: Value) -> Value {
    let Some(f) = Format::of(d) else { return encode_exponent(c, v) };
    let w = word(c, v);
    let a = c.b.ins().band_imm_u(w, 0x7fff_ffff);
    let drop = i64::from(MANTISSA - f.mantissa);
    // Ordinary numbers: rebias the exponent, add just under half of the last place, one more where the last bit kept is odd.
    let odd = c.b.ins().ushr_imm_u(a, drop);
    let odd = c.b.ins().band_imm_u(odd, 1);
    let rebias = i64::from(f.bias - BIAS) << MANTISSA;
    let normal = c.b.ins().iadd_imm_s(a, rebias + (1 << (drop - 1)) - 1);
    let normal = c.b.ins().iadd(normal, odd);
    let normal = c.b.ins().ushr_imm_u(normal, drop);
    // Subnormal ones: a number whose last place is that of the subnormals is added, so that the f32 adder rounds there.
    let magic = 2f32.powi(1 - f.bias - f.mantissa as i32 + MANTISSA as i32);
    let (x, m) = (float(c, a), c.b.ins().f32const(magic));
    let x = c.b.ins().fadd(x, m);
    let sub = word(c, x);
    let sub = c.b.ins().iadd_imm_s(sub, -i64::from(magic.to_bits()));
    let least = 2f32.powi(1 - f.bias);
    let is_sub = c.cmp_c(IntCC::UnsignedLessThan, a, i64::from(least.to_bits()));
    let code = c.select(is_sub, sub, normal);
    let overflow = c.b.ins().iconst(I32, i64::from(f.overflow()));
    let is_large = c.cmp_c(IntCC::UnsignedGreaterThan, code, i64::from(f.largest()));
    let code = c.select(is_large, overflow, code);
    let is_nan = c.b.ins().fcmp(FloatCC::Unordered, v, v);
    let nan = c.b.ins().iconst(I32, i64::from(f.nan()));
    let sign = c.b.ins().ushr_imm_u(w, i64::from(31 - f.sign().ilog2()));
    let sign = c.b.ins().band_imm_u(sign, i64::from(f.sign()));
    match f.special {
        Special::Ieee | Special::Nan => {
            let code = c.select(is_nan, nan, code);
            c.b.ins().bor(code, sign)
        }
        Special::Unsigned => {
            // There is no -0: its code is NaN's.
            let signed = c.b.ins().bor(code, sign);
            let is_zero = c.cmp_c(IntCC::Equal, code, 0);
            let code = c.select(is_zero, code, signed);
            c.select(is_nan, nan, code)
        }
        Special::None => {
            let signed = c.b.ins().bor(code, sign);
            c.select(is_nan, nan, signed)
        }
    }
}

/// E8M0: the exponent of an f32, whose least value is a subnormal f32.
fn decode_exponent(c: &mut Code<'_>, code: Value) -> Value {
    let code = c.b.ins().band_imm_u(code, 0xff);
    let w = c.b.ins().ishl_imm_u(code, i64::from(MANTISSA));
    let (least, nan) = (c.b.ins().iconst(I32, 1 << (MANTISSA - 1)), c.b.ins().iconst(I32, NAN));
    let is_least = c.cmp_c(IntCC::Equal, code, 0);
    let w = c.select(is_least, least, w);
    let is_nan = c.cmp_c(IntCC::Equal, code, 0xff);
    let w = c.select(is_nan, nan, w);
    float(c, w)
}

/// The nearest power of two, ties up; the least one for what is smaller; NaN for negative and for too large numbers.
fn encode_exponent(c: &mut Code<'_>, v: Value) -> Value {
    let w = word(c, v);
    let up = c.b.ins().iadd_imm_s(w, 1 << (MANTISSA - 1));
    let code = c.b.ins().ushr_imm_u(up, i64::from(MANTISSA));
    let zero = c.b.ins().iconst(I32, 0);
    // Below 1.5 times the least number.
    let is_least = c.cmp_c(IntCC::UnsignedLessThan, w, 3 << (MANTISSA - 2));
    let code = c.select(is_least, zero, code);
    let nan = c.b.ins().iconst(I32, 0xff);
    // From 1.5 times the largest on; a sign makes the word larger still. But negative zero is zero.
    let is_large = c.cmp_c(IntCC::UnsignedGreaterThanOrEqual, w, 0x7f40_0000);
    let code = c.select(is_large, nan, code);
    let is_minus_zero = c.cmp_c(IntCC::Equal, w, i64::from(i32::MIN));
    c.select(is_minus_zero, zero, code)
}
