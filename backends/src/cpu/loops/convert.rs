//! Scalars between memory, registers and element types. Narrow floats are converted with integer instructions, rounding once.

use super::{minifloat, register};
use crate::cpu::clif::{Code, F32, F64, I8, I16, I32, I64, MEM};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value};
use nnc_ir::DType;

fn bits(c: &mut Code<'_>, ty: Type, v: Value) -> Value {
    c.b.ins().bitcast(ty, MemFlagsData::new(), v)
}

/// Loads an element into its register.
pub fn from_memory(c: &mut Code<'_>, d: DType, at: Value) -> Value {
    match d {
        DType::F16 => {
            let h = c.b.ins().uload16(I32, MEM, at, 0);
            f16_to_f32(c, h)
        }
        DType::BF16 => {
            let h = c.b.ins().uload16(I32, MEM, at, 0);
            let w = c.b.ins().ishl_imm_u(h, 16);
            bits(c, F32, w)
        }
        DType::Bool => {
            let b = c.load(I8, at, 0);
            c.cmp_c(IntCC::NotEqual, b, 0)
        }
        d if d.is_small_float() => {
            let code = c.b.ins().uload8(I32, MEM, at, 0);
            minifloat::decode(c, d, code)
        }
        DType::I4 | DType::I2 | DType::U4 | DType::U2 => {
            let v = c.load(I8, at, 0);
            wrap(c, d, v)
        }
        _ => c.load(register(d), at, 0),
    }
}

/// The bits that are stored for an element in a register.
pub fn to_memory(c: &mut Code<'_>, d: DType, v: Value) -> Value {
    match d {
        DType::F16 => {
            let h = f32_to_f16(c, v);
            c.b.ins().ireduce(I16, h)
        }
        DType::BF16 => {
            let w = bits(c, I32, v);
            let h = c.b.ins().ushr_imm_u(w, 16);
            c.b.ins().ireduce(I16, h)
        }
        d if d.is_small_float() => {
            let code = minifloat::encode(c, d, v);
            c.b.ins().ireduce(I8, code)
        }
        _ => v,
    }
}

/// An f32 rounded to the precision of `d`; itself where `d` is not narrower.
pub fn round(c: &mut Code<'_>, d: DType, v: Value) -> Value {
    match d {
        DType::F16 => {
            let h = f32_to_f16(c, v);
            f16_to_f32(c, h)
        }
        DType::BF16 => f32_to_bf16(c, v),
        d if d.is_small_float() => {
            let code = minifloat::encode(c, d, v);
            minifloat::decode(c, d, code)
        }
        _ => v,
    }
}

/// An integer cut to the width of `d`, where that is less than its register's.
pub fn wrap(c: &mut Code<'_>, d: DType, v: Value) -> Value {
    let spare = i64::from(8 - d.bits().min(8));
    match d {
        DType::I4 | DType::I2 => {
            let high = c.b.ins().ishl_imm_u(v, spare);
            c.b.ins().sshr_imm_u(high, spare)
        }
        DType::U4 | DType::U2 => c.b.ins().band_imm_u(v, 0xff >> spare),
        _ => v,
    }
}

/// Half in the low bits of an i32 to f32, exactly.
fn f16_to_f32(c: &mut Code<'_>, h: Value) -> Value {
    let magnitude = c.b.ins().band_imm_u(h, 0x7fff);
    let shifted = c.b.ins().ishl_imm_u(magnitude, 13);
    // The exponent is 112 too small; the multiplication mends it, also for subnormals.
    let f = bits(c, F32, shifted);
    let scale = c.b.ins().f32const(2f32.powi(112));
    let f = c.b.ins().fmul(f, scale);
    let w = bits(c, I32, f);
    let special = c.b.ins().bor_imm_u(w, 0x7f80_0000);
    let is_special = c.cmp_c(IntCC::UnsignedGreaterThanOrEqual, magnitude, 0x7c00);
    let w = c.select(is_special, special, w);
    let sign = c.b.ins().band_imm_u(h, 0x8000);
    let sign = c.b.ins().ishl_imm_u(sign, 16);
    let w = c.b.ins().bor(w, sign);
    bits(c, F32, w)
}

/// f32 to the nearest half, ties to even, in the low 16 bits of an i32.
fn f32_to_f16(c: &mut Code<'_>, v: Value) -> Value {
    let w = bits(c, I32, v);
    let sign = c.b.ins().ushr_imm_u(w, 16);
    let sign = c.b.ins().band_imm_u(sign, 0x8000);
    let a = c.b.ins().band_imm_u(w, 0x7fff_ffff);
    // Normal halves: rebias the exponent, add just under half of the last place, one more where the last bit kept is odd.
    let odd = c.b.ins().ushr_imm_u(a, 13);
    let odd = c.b.ins().band_imm_u(odd, 1);
    let normal = c.b.ins().iadd_imm_s(a, (15 - 127) * (1 << 23) + 0xfff);
    let normal = c.b.ins().iadd(normal, odd);
    let normal = c.b.ins().ushr_imm_u(normal, 13);
    // Subnormal halves: adding 0.5 lets the f32 adder round at the half's last place.
    let f = bits(c, F32, a);
    let half = c.b.ins().f32const(0.5f32);
    let f = c.b.ins().fadd(f, half);
    let sub = bits(c, I32, f);
    let sub = c.b.ins().iadd_imm_s(sub, -0x3f00_0000);
    let is_sub = c.cmp_c(IntCC::UnsignedLessThan, a, 0x3880_0000);
    let h = c.select(is_sub, sub, normal);
    // From 65520 on, where the normal path would carry into infinity or past it; and NaN.
    let inf = c.b.ins().iconst(I32, 0x7c00);
    // NaN keeps the high bits of its payload, and becomes quiet.
    let nan = c.b.ins().ushr_imm_u(a, 13);
    let nan = c.b.ins().band_imm_u(nan, 0x7fff);
    let nan = c.b.ins().bor_imm_u(nan, 0x7e00);
    let is_nan = c.cmp_c(IntCC::UnsignedGreaterThan, a, 0x7f80_0000);
    let big = c.select(is_nan, nan, inf);
    let is_big = c.cmp_c(IntCC::UnsignedGreaterThanOrEqual, a, 0x4780_0000);
    let h = c.select(is_big, big, h);
    c.b.ins().bor(h, sign)
}

/// f32 to the nearest bf16, ties to even, as an f32.
fn f32_to_bf16(c: &mut Code<'_>, v: Value) -> Value {
    let w = bits(c, I32, v);
    let odd = c.b.ins().ushr_imm_u(w, 16);
    let odd = c.b.ins().band_imm_u(odd, 1);
    let up = c.b.ins().iadd_imm_s(w, 0x7fff);
    let up = c.b.ins().iadd(up, odd);
    let quiet = c.b.ins().bor_imm_u(w, 0x0040_0000);
    let is_nan = c.b.ins().fcmp(FloatCC::Unordered, v, v);
    let w = c.select(is_nan, quiet, up);
    let w = c.b.ins().band_imm_u(w, 0xffff_0000);
    bits(c, F32, w)
}

/// f64 to f32 such that rounding the result to f16 or bf16 equals rounding the f64 at once: an inexact result is replaced by the odd
/// one of its two neighbours, which is never a tie.
fn f64_to_odd_f32(c: &mut Code<'_>, v: Value) -> Value {
    let f = c.b.ins().fdemote(F32, v);
    let back = c.b.ins().fpromote(F64, f);
    let w = bits(c, I32, f);
    let (x, y) = (c.b.ins().fabs(back), c.b.ins().fabs(v));
    let above = c.b.ins().fcmp(FloatCC::GreaterThan, x, y);
    let above = c.b.ins().uextend(I32, above);
    let down = c.b.ins().isub(w, above);
    let odd = c.b.ins().bor_imm_u(down, 1);
    // NaN and infinity stay: infinity minus a bit would be finite, as it should only be for a rounded-up finite number that is
    // infinite in the narrow type anyway.
    let inexact = c.b.ins().fcmp(FloatCC::OrderedNotEqual, back, v);
    let w = c.select(inexact, odd, w);
    bits(c, F32, w)
}

/// ONNX Cast as [`nnc_ir::scalar::Num::cast`] defines it.
pub fn cast(c: &mut Code<'_>, from: DType, to: DType, v: Value) -> Value {
    if from == to {
        return v;
    }
    match (from.is_float(), to) {
        (_, DType::Bool) if from.is_float() => {
            let zero = super::constant(c, nnc_ir::scalar::Num::F(0.0), from);
            c.b.ins().fcmp(FloatCC::NotEqual, v, zero)
        }
        (_, DType::Bool) => c.cmp_c(IntCC::NotEqual, v, 0),
        (true, _) if to.is_float() => match (register(from), register(to)) {
            (F64, F32) if to == DType::F32 => c.b.ins().fdemote(F32, v),
            (F64, F32) => {
                let f = f64_to_odd_f32(c, v);
                round(c, to, f)
            }
            (F32, F64) => c.b.ins().fpromote(F64, v),
            _ => round(c, to, v),
        },
        (true, _) => {
            let wide = if to.is_unsigned_int() {
                let signed = c.b.ins().fcvt_to_sint_sat(I64, v);
                let unsigned = c.b.ins().fcvt_to_uint_sat(I64, v);
                let zero = super::constant(c, nnc_ir::scalar::Num::F(0.0), from);
                let negative = c.b.ins().fcmp(FloatCC::LessThan, v, zero);
                c.select(negative, signed, unsigned)
            } else {
                c.b.ins().fcvt_to_sint_sat(I64, v)
            };
            let v = resize(c, wide, register(to), false);
            wrap(c, to, v)
        }
        (false, _) if to.is_float() => {
            let signed = from.is_signed_int();
            let v = resize(c, v, I64, signed);
            let float = |c: &mut Code<'_>, ty| if signed { c.b.ins().fcvt_from_sint(ty, v) } else { c.b.ins().fcvt_from_uint(ty, v) };
            match to {
                DType::F32 | DType::F64 => float(c, register(to)),
                _ => {
                    let f = float(c, F64);
                    let f = f64_to_odd_f32(c, f);
                    round(c, to, f)
                }
            }
        }
        (false, _) => {
            let v = resize(c, v, register(to), from.is_signed_int());
            wrap(c, to, v)
        }
    }
}

/// An integer widened or cut to `ty`.
pub fn resize(c: &mut Code<'_>, v: Value, ty: Type, signed: bool) -> Value {
    let have = c.b.func.dfg.value_type(v);
    match have.bits().cmp(&ty.bits()) {
        std::cmp::Ordering::Equal => v,
        std::cmp::Ordering::Greater => c.b.ins().ireduce(ty, v),
        std::cmp::Ordering::Less if signed => c.b.ins().sextend(ty, v),
        std::cmp::Ordering::Less => c.b.ins().uextend(ty, v),
    }
}
