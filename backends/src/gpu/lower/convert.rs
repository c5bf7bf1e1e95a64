//! Scalars between memory, registers and element types. Narrow floats are converted with integer instructions, rounding once.

use super::minifloat::{self, Codec};
use super::{Lowering, Range, Result, Value, math, register};
use crate::gpu::gir::{Binary, Compare, Convert, Ty, Unary, Val};
use nnc_ir::DType;

impl Lowering<'_> {
    /// What a load gives as an element.
    pub(super) fn loaded(&mut self, d: DType, bits: Val) -> Value {
        if d == DType::I64 {
            return self.full(bits);
        }
        Value::plain(match d {
            DType::BF16 => {
                let w = self.b.with(Binary::Shl, bits, 16);
                self.b.bits(Ty::F32, w)
            }
            DType::Bool => self.b.compare_with(Compare::Ne, bits, 0),
            d if Codec::of(d).is_some() || d == DType::F8E8M0 => minifloat::decode(&mut self.b, d, bits),
            d if d.bits() < 8 => self.wrap(d, bits),
            _ => bits,
        })
    }

    /// What is stored for an element.
    pub(super) fn stored(&mut self, d: DType, v: Value) -> Val {
        match d {
            DType::I64 => self.wide(v),
            DType::BF16 => {
                let w = self.b.bits(Ty::I32, v.val);
                self.b.with(Binary::ShrU, w, 16)
            }
            DType::Bool => self.b.convert(Convert::FromBool, Ty::I32, v.val),
            d if Codec::of(d).is_some() || d == DType::F8E8M0 => minifloat::encode(&mut self.b, d, v.val),
            _ => v.val,
        }
    }

    /// An f32 rounded to the precision of `d`; itself where `d` is not narrower.
    pub(super) fn round(&mut self, d: DType, v: Val) -> Val {
        match d {
            DType::F32 | DType::F64 => v,
            DType::BF16 => self.round_bf16(v),
            _ => {
                let code = minifloat::encode(&mut self.b, d, v);
                minifloat::decode(&mut self.b, d, code)
            }
        }
    }

    /// To the nearest bf16, ties to even, as an f32.
    fn round_bf16(&mut self, v: Val) -> Val {
        let k = &mut self.b;
        let w = k.bits(Ty::I32, v);
        let odd = k.with(Binary::ShrU, w, 16);
        let odd = k.with(Binary::And, odd, 1);
        let up = k.with(Binary::Add, w, 0x7fff);
        let up = k.add(up, odd);
        let quiet = k.with(Binary::Or, w, 0x0040_0000);
        let nan = math::is_nan(k, v);
        let w = k.select(nan, quiet, up);
        let w = k.with(Binary::And, w, i64::from(0xffff_0000u32 as i32));
        k.bits(Ty::F32, w)
    }

    /// An integer cut to the width of `d` and extended from it.
    pub(super) fn wrap(&mut self, d: DType, v: Val) -> Val {
        let bits = i64::from(d.bits());
        if bits >= 32 || d == DType::Bool {
            return v;
        }
        if d.is_signed_int() {
            let high = self.b.with(Binary::Shl, v, 32 - bits);
            self.b.with(Binary::ShrS, high, 32 - bits)
        } else {
            self.b.with(Binary::And, v, (1 << bits) - 1)
        }
    }

    /// f64 to f32 such that rounding the result on equals rounding the f64 at once: an inexact result is replaced by the odd one of
    /// its two neighbours, which is never a tie.
    fn odd_f32(&mut self, v: Val) -> Val {
        let k = &mut self.b;
        let f = k.convert(Convert::Resize, Ty::F32, v);
        let back = k.convert(Convert::Resize, Ty::F64, f);
        let w = k.bits(Ty::I32, f);
        let (x, y) = (k.unary(Unary::Abs, back), k.unary(Unary::Abs, v));
        let above = k.compare(Compare::Lt, y, x);
        let above = k.convert(Convert::FromBool, Ty::I32, above);
        let down = k.sub(w, above);
        let odd = k.with(Binary::Or, down, 1);
        let (less, more) = (k.compare(Compare::Lt, back, v), k.compare(Compare::Lt, v, back));
        let inexact = k.or(less, more);
        let w = k.select(inexact, odd, w);
        k.bits(Ty::F32, w)
    }

    /// ONNX Cast as [`nnc_ir::scalar::Num::cast`] defines it.
    pub(super) fn cast(&mut self, from: DType, to: DType, v: Value) -> Result<Value> {
        if from == to {
            return Ok(v);
        }
        let x = v.val;
        Ok(match (from.is_float(), to.is_float()) {
            _ if to == DType::Bool => {
                let zero = if from.is_float() { self.b.float(self.b.ty(x), 0.0) } else { self.b.int(self.b.ty(x), 0) };
                Value::plain(self.b.compare(Compare::Ne, x, zero))
            }
            (true, true) => Value::plain(match (register(from), register(to)) {
                (Ty::F64, Ty::F32) if to == DType::F32 => self.b.convert(Convert::Resize, Ty::F32, x),
                (Ty::F64, Ty::F32) => {
                    let f = self.odd_f32(x);
                    self.round(to, f)
                }
                (Ty::F32, Ty::F64) => self.b.convert(Convert::Resize, Ty::F64, x),
                _ => self.round(to, x),
            }),
            (true, false) => self.truncated(to, x),
            (false, true) => Value::plain(self.floated(from, to, v)),
            (false, false) => self.resized(from, to, v),
        })
    }

    /// A float to an integer: towards zero, saturating into 64 bits, wrapping from there.
    fn truncated(&mut self, to: DType, x: Val) -> Value {
        let k = &mut self.b;
        let ty = k.ty(x);
        let (low, high) = (k.float(ty, -(2f64.powi(63))), k.float(ty, 2f64.powi(63)));
        let (under, over, nan) = (k.compare(Compare::Lt, x, low), k.compare(Compare::Le, high, x), math::is_nan(k, x));
        let zero = k.float(ty, 0.0);
        let out = k.or(under, over);
        let out = k.or(out, nan);
        let safe = k.select(out, zero, x);
        let y = k.convert(Convert::IntS, Ty::I64, safe);
        let (least, most, none) = (k.int(Ty::I64, i64::MIN), k.int(Ty::I64, i64::MAX), k.int(Ty::I64, 0));
        let y = k.select(under, least, y);
        let mut y = k.select(over, most, y);
        if to.is_unsigned_int() {
            // From 2^63 on an unsigned number has room where a signed one has not.
            let (top, above) = (k.float(ty, 2f64.powi(64)), k.sub(x, high));
            let beyond = k.compare(Compare::Le, top, x);
            let inside = k.not(beyond);
            let inside = k.and(over, inside);
            let rest = k.select(inside, above, zero);
            let rest = k.convert(Convert::IntS, Ty::I64, rest);
            let rest = k.binary(Binary::Xor, rest, least);
            let all = k.int(Ty::I64, -1);
            let large = k.select(beyond, all, rest);
            y = k.select(over, large, y);
        }
        let y = k.select(nan, none, y);
        match register(to) {
            Ty::I64 => Value::plain(y),
            _ => {
                let y = self.b.convert(Convert::Low, Ty::I32, y);
                Value::plain(self.wrap(to, y))
            }
        }
    }

    fn floated(&mut self, from: DType, to: DType, v: Value) -> Val {
        let x = if from == DType::Bool { self.b.convert(Convert::FromBool, Ty::I32, v.val) } else { v.val };
        let unsigned = from.is_unsigned_int() && from.bits() >= 32;
        let op = if unsigned { Convert::FloatU } else { Convert::FloatS };
        match to {
            DType::F32 | DType::F64 => self.b.convert(op, register(to), x),
            // Integers that f32 holds are rounded once.
            _ if from.bits() <= 16 => {
                let f = self.b.convert(op, Ty::F32, x);
                self.round(to, f)
            }
            _ => {
                let f = self.b.convert(op, Ty::F64, x);
                let f = self.odd_f32(f);
                self.round(to, f)
            }
        }
    }

    fn resized(&mut self, from: DType, to: DType, v: Value) -> Value {
        let x = if from == DType::Bool { self.b.convert(Convert::FromBool, Ty::I32, v.val) } else { v.val };
        if to == DType::I64 {
            return match (self.b.ty(x), from) {
                (Ty::I32, DType::U32) => {
                    let wide = self.extended(x, false);
                    Value { val: wide, range: Range { lo: 0, hi: u32::MAX.into() } }
                }
                _ => self.full(x),
            };
        }
        match (register(to), self.b.ty(x)) {
            (Ty::I64, Ty::I32) => Value::plain(self.extended(x, from.is_signed_int() || from == DType::Bool)),
            (Ty::I64, _) => Value::plain(x),
            (_, Ty::I64) => {
                let low = self.b.convert(Convert::Low, Ty::I32, x);
                Value::plain(self.wrap(to, low))
            }
            _ => Value::plain(self.wrap(to, x)),
        }
    }
}
