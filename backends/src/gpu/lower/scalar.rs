//! Scalar functions, as [`ScalarFn::eval`] defines them.

use super::{Lowering, Range, Refusal, Result, Value, math, register};
use crate::gpu::gir::build::Builder;
use crate::gpu::gir::{Binary, Compare, Convert, Ty, Unary, Val};
use nnc_ir::scalar::Out;
use nnc_ir::{DType, ScalarFn};

impl Lowering<'_> {
    /// `fun` of operands of type `d` (of a `where`: of its last two).
    pub(super) fn map(&mut self, fun: ScalarFn, d: DType, x: &[Value]) -> Result<Value> {
        if fun == ScalarFn::Where {
            let cond = x[0].val;
            return Ok(if d == DType::I64 { self.where_index(cond, x[1], x[2]) } else { Value::plain(self.b.select(cond, x[1].val, x[2].val)) });
        }
        if d == DType::I64
            && let Some(v) = self.index(fun, x)
        {
            return Ok(v);
        }
        let v: Vec<Val> = if d == DType::I64 { x.iter().map(|v| self.wide(*v)).collect() } else { x.iter().map(|v| v.val).collect() };
        let (a, b) = (v[0], v.get(1).copied().unwrap_or(v[0]));
        let same = fun.out() == Out::Same;
        Ok(Value::plain(if d == DType::Bool {
            self.logic(fun, a, b)
        } else if d.is_float() {
            let y = float(&mut self.b, fun, d, a, b)?;
            // Not every integer or opposite is a number of the smallest types.
            let exact = matches!(fun, ScalarFn::Neg | ScalarFn::Abs | ScalarFn::Relu | ScalarFn::Max | ScalarFn::Min | ScalarFn::Sign);
            if same && (!exact || d.is_small_float()) { self.round(d, y) } else { y }
        } else {
            let y = self.integer(fun, d, a, b);
            if same { self.wrap(d, y) } else { y }
        }))
    }

    fn logic(&mut self, fun: ScalarFn, a: Val, b: Val) -> Val {
        use ScalarFn::*;
        match fun {
            Not => self.b.not(a),
            And | BitAnd => self.b.and(a, b),
            Or | BitOr => self.b.or(a, b),
            Equal => {
                let differ = self.b.binary(Binary::Xor, a, b);
                self.b.not(differ)
            }
            _ => self.b.binary(Binary::Xor, a, b),
        }
    }

    fn integer(&mut self, fun: ScalarFn, d: DType, a: Val, b: Val) -> Val {
        use ScalarFn::*;
        let signed = d.is_signed_int();
        let k = &mut self.b;
        let ty = k.ty(a);
        let (less, less_equal) = if signed { (Compare::Lt, Compare::Le) } else { (Compare::LtU, Compare::LeU) };
        match fun {
            Add => k.add(a, b),
            Sub => k.sub(a, b),
            Mul => k.mul(a, b),
            Neg => {
                let zero = k.int(ty, 0);
                k.sub(zero, a)
            }
            Abs | Relu | Sign if !signed => {
                if fun != Sign {
                    return a;
                }
                let (zero, one) = (k.int(ty, 0), k.int(ty, 1));
                let some = k.compare(Compare::Ne, a, zero);
                k.select(some, one, zero)
            }
            Abs | Relu => {
                let zero = k.int(ty, 0);
                let negative = k.compare(Compare::Lt, a, zero);
                let other = if fun == Abs { k.sub(zero, a) } else { zero };
                k.select(negative, other, a)
            }
            Sign => {
                let (zero, one, minus) = (k.int(ty, 0), k.int(ty, 1), k.int(ty, -1));
                let (above, below) = (k.compare(Compare::Lt, zero, a), k.compare(Compare::Lt, a, zero));
                let y = k.select(below, minus, zero);
                k.select(above, one, y)
            }
            Max | Min => {
                let first = k.compare(less, a, b);
                if fun == Max { k.select(first, b, a) } else { k.select(first, a, b) }
            }
            Equal => k.compare(Compare::Eq, a, b),
            Less => k.compare(less, a, b),
            LessEqual => k.compare(less_equal, a, b),
            Greater => k.compare(less, b, a),
            GreaterEqual => k.compare(less_equal, b, a),
            BitNot => k.not(a),
            BitAnd => k.and(a, b),
            BitOr => k.or(a, b),
            BitXor => k.binary(Binary::Xor, a, b),
            Shl | Shr => self.shift(fun, d, a, b),
            Div | Mod | Fmod => self.divide(fun, d, a, b),
            // What is left of integers by their domain.
            _ => self.power(d, a, b),
        }
    }

    /// Shifts by the width or more give 0, or the sign.
    fn shift(&mut self, fun: ScalarFn, d: DType, a: Val, b: Val) -> Val {
        let k = &mut self.b;
        let (ty, bits) = (k.ty(a), i64::from(d.bits()));
        let (zero, width, most) = (k.int(ty, 0), k.int(ty, bits), k.int(ty, bits - 1));
        // As an unsigned number a negative count is beyond the width too.
        let fits = k.compare(Compare::LtU, b, width);
        let by = k.select(fits, b, most);
        if fun == ScalarFn::Shl {
            let y = k.binary(Binary::Shl, a, by);
            return k.select(fits, y, zero);
        }
        if !d.is_signed_int() {
            let y = k.binary(Binary::ShrU, a, by);
            return k.select(fits, y, zero);
        }
        let negative = k.compare(Compare::Lt, b, zero);
        let by = k.select(negative, zero, by);
        k.binary(Binary::ShrS, a, by)
    }

    /// Quotient and remainders. By zero they are 0; what devices do not define (zero, the least number by -1) is kept away.
    fn divide(&mut self, fun: ScalarFn, d: DType, a: Val, b: Val) -> Val {
        let k = &mut self.b;
        let ty = k.ty(a);
        let (zero, one) = (k.int(ty, 0), k.int(ty, 1));
        let by_zero = k.compare(Compare::Eq, b, zero);
        if !d.is_signed_int() {
            let safe = k.select(by_zero, one, b);
            let y = k.binary(if fun == ScalarFn::Div { Binary::DivU } else { Binary::RemU }, a, safe);
            return k.select(by_zero, zero, y);
        }
        let minus_one = k.compare_with(Compare::Eq, b, -1);
        let kept = k.or(by_zero, minus_one);
        let safe = k.select(kept, one, b);
        let y = match fun {
            ScalarFn::Div => {
                let (q, minus) = (k.binary(Binary::DivS, a, safe), k.sub(zero, a));
                k.select(minus_one, minus, q)
            }
            // By -1 the remainder is 0, which the division by 1 gives as well.
            ScalarFn::Fmod => k.binary(Binary::RemS, a, safe),
            _ => {
                let r = k.binary(Binary::RemS, a, safe);
                let signs = k.binary(Binary::Xor, r, b);
                let (differ, some) = (k.compare(Compare::Lt, signs, zero), k.compare(Compare::Ne, r, zero));
                let mend = k.and(differ, some);
                let mended = k.add(r, b);
                k.select(mend, mended, r)
            }
        };
        k.select(by_zero, zero, y)
    }

    /// Integer power by squaring; a negative exponent gives what truncation of the real result gives.
    fn power(&mut self, d: DType, a: Val, b: Val) -> Val {
        let signed = d.is_signed_int();
        let k = &mut self.b;
        let ty = k.ty(a);
        let (zero, one, minus) = (k.int(ty, 0), k.int(ty, 1), k.int(ty, -1));
        let more = if signed { Compare::Lt } else { Compare::LtU };
        let out = k.while_(
            &[a, b, one],
            |k, v| k.compare(more, zero, v[1]),
            |k, v| {
                let low = k.and(v[1], one);
                let odd = k.compare(Compare::Ne, low, zero);
                let product = k.mul(v[2], v[0]);
                let y = k.select(odd, product, v[2]);
                let (square, half) = (k.mul(v[0], v[0]), k.binary(Binary::ShrU, v[1], one));
                vec![square, half, y]
            },
        );
        if !signed {
            return out[2];
        }
        // 1 and -1 have integer reciprocals; any other base gives 0 (and 0 itself, too).
        let (is_one, is_minus) = (k.compare(Compare::Eq, a, one), k.compare(Compare::Eq, a, minus));
        let low = k.and(b, one);
        let odd = k.compare(Compare::Ne, low, zero);
        let sign = k.select(odd, minus, one);
        let y = k.select(is_minus, sign, zero);
        let y = k.select(is_one, one, y);
        let negative = k.compare(Compare::Lt, b, zero);
        k.select(negative, y, out[2])
    }

    /// An index whose bits are all wanted as a value of type `i64`.
    pub(super) fn full(&mut self, val: Val) -> Value {
        if self.b.ty(val) == Ty::I64 { Value::plain(val) } else { Value { val, range: Range::I32 } }
    }

    /// A widened 32-bit integer.
    pub(super) fn extended(&mut self, v: Val, signed: bool) -> Val {
        self.b.convert(if signed { Convert::ExtendS } else { Convert::ExtendU }, Ty::I64, v)
    }
}

/// A function of floats of type `d`, in their registers.
pub(in crate::gpu) fn float(k: &mut Builder, fun: ScalarFn, d: DType, a: Val, b: Val) -> Result<Val> {
    use ScalarFn::*;
    let ty = register(d);
    let refuse = || -> Result<Val> { Err(Refusal::from(format!("{} of {} is not among a GPU's instructions", fun.name(), d.name()))) };
    Ok(match fun {
        Neg => k.unary(Unary::Neg, a),
        Abs => k.unary(Unary::Abs, a),
        Floor => k.unary(Unary::Floor, a),
        Ceil => k.unary(Unary::Ceil, a),
        Round => k.unary(Unary::Round, a),
        Trunc => k.unary(Unary::Trunc, a),
        Sqrt => k.unary(Unary::Sqrt, a),
        IsNan => math::is_nan(k, a),
        IsInf => {
            let (x, inf) = (k.unary(Unary::Abs, a), k.float(ty, f64::INFINITY));
            k.compare(Compare::Eq, x, inf)
        }
        Equal => k.compare(Compare::Eq, a, b),
        Less => k.compare(Compare::Lt, a, b),
        LessEqual => k.compare(Compare::Le, a, b),
        Greater => k.compare(Compare::Lt, b, a),
        GreaterEqual => k.compare(Compare::Le, b, a),
        Relu => {
            let zero = k.float(ty, 0.0);
            let negative = k.compare(Compare::Lt, a, zero);
            k.select(negative, zero, a)
        }
        Max | Min => {
            let wins = if fun == Max { k.compare(Compare::Lt, b, a) } else { k.compare(Compare::Lt, a, b) };
            let nan = math::is_nan(k, a);
            let take = k.or(wins, nan);
            k.select(take, a, b)
        }
        Sign => {
            let (zero, one, minus) = (k.float(ty, 0.0), k.float(ty, 1.0), k.float(ty, -1.0));
            let (above, below, nan) = (k.compare(Compare::Lt, zero, a), k.compare(Compare::Lt, a, zero), math::is_nan(k, a));
            let y = k.select(below, minus, zero);
            let y = k.select(above, one, y);
            k.select(nan, a, y)
        }
        Add => k.add(a, b),
        Sub => k.sub(a, b),
        Mul => k.mul(a, b),
        Div => k.binary(Binary::Div, a, b),
        Reciprocal => {
            let one = k.float(ty, 1.0);
            k.binary(Binary::Div, one, a)
        }
        _ if ty == Ty::F64 => return refuse(),
        Exp => math::exp(k, a),
        Log => math::log(k, a),
        Sigmoid => math::sigmoid(k, a),
        Tanh => math::tanh(k, a),
        Erf => math::erf(k, a),
        Sin => math::sin_cos(k, a).0,
        Cos => math::sin_cos(k, a).1,
        Tan => {
            let (s, c) = math::sin_cos(k, a);
            k.binary(Binary::Div, s, c)
        }
        Asin => math::asin(k, a),
        Acos => math::acos(k, a),
        Atan => math::atan(k, a),
        Atan2 => math::atan2(k, a, b),
        Sinh => math::sinh(k, a),
        Cosh => math::cosh(k, a),
        Asinh => math::asinh(k, a),
        Acosh => math::acosh(k, a),
        Atanh => math::atanh(k, a),
        Pow => math::pow(k, a, b),
        Fmod => math::fmod(k, a, b),
        Mod => {
            let r = math::fmod(k, a, b);
            let zero = k.f32(0.0);
            let (rn, bn, some) = (k.compare(Compare::Lt, r, zero), k.compare(Compare::Lt, b, zero), k.compare(Compare::Ne, r, zero));
            let differ = k.binary(Binary::Xor, rn, bn);
            let mend = k.and(differ, some);
            let mended = k.add(r, b);
            k.select(mend, mended, r)
        }
        Not | BitNot | And | Or | Xor | BitAnd | BitOr | BitXor | Shl | Shr | Where => return refuse(),
    })
}
