//! Scalar functions in Cranelift, as [`ScalarFn::eval`] defines them.

use super::convert::{resize, round, wrap};
use super::{constant, math, register};
use crate::cpu::clif::{Code, F32, F64, I32, I64};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{AbiParam, InstBuilder, Type, Value};
use cranelift_module::{Linkage, Module};
use nnc_ir::DType;
use nnc_ir::scalar::{Num, Out, ScalarFn};

/// `fun` of operands of type `d` (of a `where`: of its last two).
pub fn apply<M: Module>(m: &mut M, c: &mut Code<'_>, fun: ScalarFn, d: DType, x: &[Value]) -> Value {
    if fun == ScalarFn::Where {
        return c.select(x[0], x[1], x[2]);
    }
    if d.is_float() {
        let y = float(m, c, fun, d, x);
        // Not every integer or opposite is a number of these.
        return if d.is_small_float() && fun.out() == Out::Same { round(c, d, y) } else { y };
    }
    let y = integer(c, fun, d, x);
    if fun.out() == Out::Same { wrap(c, d, y) } else { y }
}

/// Calls libm: `name` for f64, `name` with an `f` for f32.
fn libm<M: Module>(m: &mut M, c: &mut Code<'_>, name: &str, x: &[Value]) -> Value {
    let ty = c.b.func.dfg.value_type(x[0]);
    let mut sig = m.make_signature();
    sig.params.extend(x.iter().map(|_| AbiParam::new(ty)));
    sig.returns.push(AbiParam::new(ty));
    let suffix = if ty == F32 { "f" } else { "" };
    let id = m.declare_function(&format!("{name}{suffix}"), Linkage::Import, &sig).expect("libm names are declared with one signature each");
    let f = m.declare_func_in_func(id, c.b.func);
    let call = c.b.ins().call(f, x);
    c.b.inst_results(call)[0]
}

fn float_const(c: &mut Code<'_>, ty: Type, v: f64) -> Value {
    if ty == F64 { c.b.ins().f64const(v) } else { c.b.ins().f32const(v as f32) }
}

fn float<M: Module>(m: &mut M, c: &mut Code<'_>, fun: ScalarFn, d: DType, x: &[Value]) -> Value {
    use ScalarFn::*;
    let ty = register(d);
    let a = x[0];
    let b = x.get(1).copied().unwrap_or(a);
    let single = ty == F32;
    let compare = |c: &mut Code<'_>, cc| c.b.ins().fcmp(cc, a, b);
    // What these give is a number of the type already: no rounding.
    match fun {
        Neg => return c.b.ins().fneg(a),
        Abs => return c.b.ins().fabs(a),
        Floor => return c.b.ins().floor(a),
        Ceil => return c.b.ins().ceil(a),
        Round => return c.b.ins().nearest(a),
        Trunc => return c.b.ins().trunc(a),
        IsNan => return c.b.ins().fcmp(FloatCC::Unordered, a, a),
        IsInf => {
            let (abs, inf) = (c.b.ins().fabs(a), float_const(c, ty, f64::INFINITY));
            return c.b.ins().fcmp(FloatCC::Equal, abs, inf);
        }
        Equal => return compare(c, FloatCC::Equal),
        Less => return compare(c, FloatCC::LessThan),
        LessEqual => return compare(c, FloatCC::LessThanOrEqual),
        Greater => return compare(c, FloatCC::GreaterThan),
        GreaterEqual => return compare(c, FloatCC::GreaterThanOrEqual),
        Relu => {
            let zero = float_const(c, ty, 0.0);
            let negative = c.b.ins().fcmp(FloatCC::LessThan, a, zero);
            return c.select(negative, zero, a);
        }
        Max | Min => {
            let wins = if fun == Max { c.b.ins().fcmp(FloatCC::LessThan, b, a) } else { c.b.ins().fcmp(FloatCC::LessThan, a, b) };
            let y = c.select(wins, a, b);
            let nan = c.b.ins().fcmp(FloatCC::Unordered, a, a);
            return c.select(nan, a, y);
        }
        Sign => {
            let (zero, one) = (float_const(c, ty, 0.0), float_const(c, ty, 1.0));
            let unit = c.b.ins().fcopysign(one, a);
            let ordered = c.b.ins().fcmp(FloatCC::OrderedNotEqual, a, zero);
            let nan = c.b.ins().fcmp(FloatCC::Unordered, a, a);
            let y = c.select(ordered, unit, zero);
            return c.select(nan, a, y);
        }
        _ => {}
    }
    let y = match fun {
        Add => c.b.ins().fadd(a, b),
        Sub => c.b.ins().fsub(a, b),
        Mul => c.b.ins().fmul(a, b),
        Div => c.b.ins().fdiv(a, b),
        Sqrt => c.b.ins().sqrt(a),
        Reciprocal => {
            let one = float_const(c, ty, 1.0);
            c.b.ins().fdiv(one, a)
        }
        Exp if single => math::exp_f32(c, a),
        Tanh if single => math::tanh_f32(c, a),
        Erf if single => math::erf_f32(c, a),
        Sigmoid if single => math::sigmoid_f32(c, a),
        Sigmoid => {
            let minus = c.b.ins().fneg(a);
            let e = libm(m, c, "exp", &[minus]);
            let one = float_const(c, ty, 1.0);
            let e = c.b.ins().fadd(one, e);
            c.b.ins().fdiv(one, e)
        }
        Exp => libm(m, c, "exp", &[a]),
        Tanh => libm(m, c, "tanh", &[a]),
        Erf => libm(m, c, "erf", &[a]),
        Log => libm(m, c, "log", &[a]),
        Sin => libm(m, c, "sin", &[a]),
        Cos => libm(m, c, "cos", &[a]),
        Tan => libm(m, c, "tan", &[a]),
        Asin => libm(m, c, "asin", &[a]),
        Acos => libm(m, c, "acos", &[a]),
        Atan => libm(m, c, "atan", &[a]),
        Sinh => libm(m, c, "sinh", &[a]),
        Cosh => libm(m, c, "cosh", &[a]),
        Asinh => libm(m, c, "asinh", &[a]),
        Acosh => libm(m, c, "acosh", &[a]),
        Atanh => libm(m, c, "atanh", &[a]),
        Pow => libm(m, c, "pow", &[a, b]),
        Atan2 => libm(m, c, "atan2", &[a, b]),
        Fmod => libm(m, c, "fmod", &[a, b]),
        Mod => {
            let r = libm(m, c, "fmod", &[a, b]);
            let zero = float_const(c, ty, 0.0);
            let (rn, bn) = (c.b.ins().fcmp(FloatCC::LessThan, r, zero), c.b.ins().fcmp(FloatCC::LessThan, b, zero));
            let differ = c.b.ins().bxor(rn, bn);
            let nonzero = c.b.ins().fcmp(FloatCC::NotEqual, r, zero);
            let mend = c.b.ins().band(differ, nonzero);
            let mended = c.b.ins().fadd(r, b);
            c.select(mend, mended, r)
        }
        Neg | Abs | Sign | Relu | Floor | Ceil | Round | Trunc | IsNan | IsInf | Max | Min | Equal | Less | LessEqual | Greater | GreaterEqual
        | Not | BitNot | And | Or | Xor | BitAnd | BitOr | BitXor | Shl | Shr | Where => unreachable!("{} of floats", fun.name()),
    };
    round(c, d, y)
}

fn integer(c: &mut Code<'_>, fun: ScalarFn, d: DType, x: &[Value]) -> Value {
    use ScalarFn::*;
    let ty = register(d);
    let signed = d.is_signed_int();
    let a = x[0];
    let b = x.get(1).copied().unwrap_or(a);
    let (less, at_most) = match signed {
        true => (IntCC::SignedLessThan, IntCC::SignedLessThanOrEqual),
        false => (IntCC::UnsignedLessThan, IntCC::UnsignedLessThanOrEqual),
    };
    match fun {
        Add => c.b.ins().iadd(a, b),
        Sub => c.b.ins().isub(a, b),
        Mul => c.b.ins().imul(a, b),
        Neg => c.b.ins().ineg(a),
        BitNot => c.b.ins().bnot(a),
        And | BitAnd => c.b.ins().band(a, b),
        Or | BitOr => c.b.ins().bor(a, b),
        Xor | BitXor => c.b.ins().bxor(a, b),
        Not => c.cmp_c(IntCC::Equal, a, 0),
        Equal => c.cmp(IntCC::Equal, a, b),
        Less => c.cmp(less, a, b),
        LessEqual => c.cmp(at_most, a, b),
        Greater => c.cmp(less, b, a),
        GreaterEqual => c.cmp(at_most, b, a),
        Max | Min => {
            let wins = if fun == Max { c.cmp(less, b, a) } else { c.cmp(less, a, b) };
            c.select(wins, a, b)
        }
        Abs | Relu if !signed => a,
        Relu => {
            let zero = constant(c, Num::I(0), d);
            let negative = c.cmp_c(IntCC::SignedLessThan, a, 0);
            c.select(negative, zero, a)
        }
        Abs => {
            let minus = c.b.ins().ineg(a);
            let negative = c.cmp_c(IntCC::SignedLessThan, a, 0);
            c.select(negative, minus, a)
        }
        Sign => {
            let positive = if signed { c.cmp_c(IntCC::SignedGreaterThan, a, 0) } else { c.cmp_c(IntCC::NotEqual, a, 0) };
            let negative = if signed { c.cmp_c(IntCC::SignedLessThan, a, 0) } else { c.b.ins().iconst(register(DType::Bool), 0) };
            let (p, n) = (resize(c, positive, ty, false), resize(c, negative, ty, false));
            c.b.ins().isub(p, n)
        }
        Shl => {
            let y = c.b.ins().ishl(a, b);
            let zero = constant(c, Num::I(0), d);
            // As an unsigned number a negative count is beyond the width too.
            let fits = c.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, b, i64::from(d.bits()));
            c.select(fits, y, zero)
        }
        Shr if signed => {
            let most = constant(c, Num::I(i64::from(d.bits()) - 1), d);
            let zero = constant(c, Num::I(0), d);
            let over = c.cmp(IntCC::SignedGreaterThan, b, most);
            let b = c.select(over, most, b);
            let under = c.cmp_c(IntCC::SignedLessThan, b, 0);
            let b = c.select(under, zero, b);
            c.b.ins().sshr(a, b)
        }
        Shr => {
            let y = c.b.ins().ushr(a, b);
            let zero = constant(c, Num::I(0), d);
            let fits = c.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, b, i64::from(d.bits()));
            c.select(fits, y, zero)
        }
        Div | Mod | Fmod => divide(c, fun, d, a, b),
        Pow => power(c, d, a, b),
        Sqrt | Exp | Log | Reciprocal | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh | Erf | Sigmoid | Floor
        | Ceil | Round | Trunc | IsNan | IsInf | Atan2 | Where => unreachable!("{} of integers", fun.name()),
    }
}

/// The value of a constant operand.
fn known(c: &Code<'_>, v: Value) -> Option<i64> {
    use cranelift_codegen::ir::{InstructionData, Opcode};
    match c.b.func.dfg.insts[c.b.func.dfg.value_def(v).inst()?] {
        InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits()),
        _ => None,
    }
}

/// Quotient and remainders, in at least 32 bits. By zero they are 0; the processor's traps (zero, minimum by -1) are kept away.
fn divide(c: &mut Code<'_>, fun: ScalarFn, d: DType, a: Value, b: Value) -> Value {
    let (ty, signed) = (register(d), d.is_signed_int());
    let plain = known(c, b).is_some_and(|b| b > 0 && b < 1 << (d.bits() - 1).min(62));
    let wide = if ty.bits() < 32 { I32 } else { ty };
    let (a, b) = (resize(c, a, wide, signed), resize(c, b, wide, signed));
    let zero = c.b.ins().iconst(wide, 0);
    let by_zero = c.cmp_c(IntCC::Equal, b, 0);
    let minus_one = c.cmp_c(IntCC::Equal, b, -1);
    let unsafe_ = if signed { c.b.ins().bor(by_zero, minus_one) } else { by_zero };
    let one = c.b.ins().iconst(wide, 1);
    let safe = if plain { b } else { c.select(unsafe_, one, b) };
    let y = match (fun, signed) {
        (ScalarFn::Div, true) => {
            let q = c.b.ins().sdiv(a, safe);
            if plain {
                q
            } else {
                let minus = c.b.ins().ineg(a);
                c.select(minus_one, minus, q)
            }
        }
        (ScalarFn::Div, false) => c.b.ins().udiv(a, safe),
        (_, false) => c.b.ins().urem(a, safe),
        // By -1 the remainder is 0, which the division by 1 gives as well.
        (ScalarFn::Fmod, true) => c.b.ins().srem(a, safe),
        (_, true) => {
            let r = c.b.ins().srem(a, safe);
            let signs = c.b.ins().bxor(r, b);
            let differ = c.cmp_c(IntCC::SignedLessThan, signs, 0);
            let nonzero = c.cmp_c(IntCC::NotEqual, r, 0);
            let mend = c.b.ins().band(differ, nonzero);
            let mended = c.b.ins().iadd(r, b);
            c.select(mend, mended, r)
        }
    };
    let y = if plain { y } else { c.select(by_zero, zero, y) };
    resize(c, y, ty, signed)
}

/// Integer power by squaring; a negative exponent gives what truncation of the real result gives.
fn power(c: &mut Code<'_>, d: DType, a: Value, b: Value) -> Value {
    let (ty, signed) = (register(d), d.is_signed_int());
    let (base, exponent) = (resize(c, a, I64, signed), resize(c, b, I64, signed));
    let one = c.int(1);
    let (x, e, y) = (c.var(base), c.var(exponent), c.var(one));
    c.while_(
        |c| {
            let e = c.get(e);
            // A negative exponent never enters; an unsigned one shifts down to 0 all the same.
            if signed { c.cmp_c(IntCC::SignedGreaterThan, e, 0) } else { c.cmp_c(IntCC::NotEqual, e, 0) }
        },
        |c| {
            let (xv, ev, yv) = (c.get(x), c.get(e), c.get(y));
            let odd = c.b.ins().band_imm_s(ev, 1);
            let product = c.b.ins().imul(yv, xv);
            let next = c.select(odd, product, yv);
            c.set(y, next);
            let square = c.b.ins().imul(xv, xv);
            c.set(x, square);
            let half = c.b.ins().ushr_imm_u(ev, 1);
            c.set(e, half);
        },
    );
    let mut result = c.get(y);
    if signed {
        // 1 and -1 have integer reciprocals; any other base gives 0 (and 0 itself, too).
        let zero = c.int(0);
        let is_one = c.cmp_c(IntCC::Equal, base, 1);
        let is_minus_one = c.cmp_c(IntCC::Equal, base, -1);
        let parity = c.b.ins().band_imm_s(exponent, 1);
        let sign = c.b.ins().ishl_imm_u(parity, 1);
        let sign = c.b.ins().isub(one, sign);
        let r = c.select(is_minus_one, sign, zero);
        let r = c.select(is_one, one, r);
        let negative = c.cmp_c(IntCC::SignedLessThan, exponent, 0);
        result = c.select(negative, r, result);
    }
    resize(c, result, ty, signed)
}
