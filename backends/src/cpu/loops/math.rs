//! Transcendental functions: exp, tanh, sigmoid and erf of f32 are computed inline, the others call libm.
//!
//! Largest errors over the whole range, in units in the last place: exp 1.0, sigmoid 2.5, tanh 1.3, erf 2.4.

use crate::cpu::clif::{Code, F32, I32};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};

/// `sum of p[i] * x^i` by Horner's rule.
fn polynomial(c: &mut Code<'_>, x: Value, p: &[f32]) -> Value {
    let (last, rest) = p.split_last().expect("a polynomial has coefficients");
    let mut y = c.b.ins().f32const(*last);
    for k in rest.iter().rev() {
        let k = c.b.ins().f32const(*k);
        let m = c.b.ins().fmul(y, x);
        y = c.b.ins().fadd(m, k);
    }
    y
}

/// `bound > x ? bound : x`; NaN stays.
fn at_least(c: &mut Code<'_>, x: Value, bound: f32) -> Value {
    let bound = c.b.ins().f32const(bound);
    let less = c.b.ins().fcmp(FloatCC::LessThan, x, bound);
    c.select(less, bound, x)
}

fn at_most(c: &mut Code<'_>, x: Value, bound: f32) -> Value {
    let bound = c.b.ins().f32const(bound);
    let more = c.b.ins().fcmp(FloatCC::LessThan, bound, x);
    c.select(more, bound, x)
}

/// `2^k` for an i32 in the range of normal exponents.
fn power_of_two(c: &mut Code<'_>, k: Value) -> Value {
    let biased = c.b.ins().iadd_imm_s(k, 127);
    let w = c.b.ins().ishl_imm_u(biased, 23);
    c.b.ins().bitcast(F32, MemFlagsData::new(), w)
}

/// e^x: `x = n ln 2 + r` with ln 2 in two parts (Cody and Waite), a polynomial in r (coefficients of Cephes' expf), scaling by 2^n
/// in two steps so that subnormal results and overflow come out right.
pub fn exp_f32(c: &mut Code<'_>, x: Value) -> Value {
    let x = at_least(c, x, -104.0);
    let x = at_most(c, x, 89.0);
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let magic = c.b.ins().f32const(12_582_912.0f32);
    let log2e = c.b.ins().f32const(std::f32::consts::LOG2_E);
    let t = c.b.ins().fmul(x, log2e);
    let t = c.b.ins().fadd(t, magic);
    let n = c.b.ins().fsub(t, magic);
    let (hi, lo) = (c.b.ins().f32const(0.693_359_4f32), c.b.ins().f32const(-2.121_944_4e-4f32));
    let step = c.b.ins().fmul(n, hi);
    let r = c.b.ins().fsub(x, step);
    let step = c.b.ins().fmul(n, lo);
    let r = c.b.ins().fsub(r, step);
    let y = polynomial(c, r, &[0.5, 0.166_666_66, 0.041_665_796, 0.008_333_452, 0.001_398_2, 1.987_569_1e-4]);
    let r2 = c.b.ins().fmul(r, r);
    let y = c.b.ins().fmul(y, r2);
    let y = c.b.ins().fadd(y, r);
    let one = c.b.ins().f32const(1.0f32);
    let y = c.b.ins().fadd(y, one);
    let w = c.b.ins().bitcast(I32, MemFlagsData::new(), t);
    let k = c.b.ins().iadd_imm_s(w, -i64::from(12_582_912.0f32.to_bits()));
    let half = c.b.ins().sshr_imm_u(k, 1);
    let rest = c.b.ins().isub(k, half);
    let (a, b) = (power_of_two(c, half), power_of_two(c, rest));
    let y = c.b.ins().fmul(y, a);
    c.b.ins().fmul(y, b)
}

/// 1 / (1 + e^-x), as e^x / (1 + e^x) where x is negative: neither overflows.
pub fn sigmoid_f32(c: &mut Code<'_>, x: Value) -> Value {
    let a = c.b.ins().fabs(x);
    let minus = c.b.ins().fneg(a);
    let e = exp_f32(c, minus);
    let (one, zero) = (c.b.ins().f32const(1.0f32), c.b.ins().f32const(0.0f32));
    let negative = c.b.ins().fcmp(FloatCC::LessThan, x, zero);
    let n = c.select(negative, e, one);
    let d = c.b.ins().fadd(one, e);
    c.b.ins().fdiv(n, d)
}

/// `|x| < bound ? small : sign(x) * large`; NaN takes the large side.
fn by_magnitude(c: &mut Code<'_>, x: Value, bound: f32, small: Value, large: Value) -> Value {
    let a = c.b.ins().fabs(x);
    let bound = c.b.ins().f32const(bound);
    let less = c.b.ins().fcmp(FloatCC::LessThan, a, bound);
    let large = c.b.ins().fcopysign(large, x);
    c.select(less, small, large)
}

/// tanh: an odd polynomial near 0 (coefficients of Cephes' tanhf), else `1 - 2 / (e^(2|x|) + 1)`.
pub fn tanh_f32(c: &mut Code<'_>, x: Value) -> Value {
    let z = c.b.ins().fmul(x, x);
    let p = polynomial(c, z, &[-0.333_332_8, 0.133_314_42, -0.053_739_716, 0.020_639_09, -0.005_704_988_7]);
    let p = c.b.ins().fmul(p, z);
    let p = c.b.ins().fmul(p, x);
    let small = c.b.ins().fadd(x, p);
    let a = c.b.ins().fabs(x);
    let a2 = c.b.ins().fadd(a, a);
    let e = exp_f32(c, a2);
    let (one, two) = (c.b.ins().f32const(1.0f32), c.b.ins().f32const(2.0f32));
    let d = c.b.ins().fadd(e, one);
    let q = c.b.ins().fdiv(two, d);
    let large = c.b.ins().fsub(one, q);
    by_magnitude(c, x, 0.625, small, large)
}

/// erf: `x P(x^2)` below 1, else `1 - e^-Q(|x|)`; P and Q are our own minimax fits (Q to -ln erfc on [1, 4], where erf reaches 1).
pub fn erf_f32(c: &mut Code<'_>, x: Value) -> Value {
    let z = c.b.ins().fmul(x, x);
    let p = polynomial(
        c,
        z,
        &[std::f32::consts::FRAC_2_SQRT_PI, -0.376_126_26, 0.112_835_854, -0.026_853_811, 0.005_188_327_7, -8.010_192_5e-4, 7.853_858e-5],
    );
    let small = c.b.ins().fmul(x, p);
    let a = c.b.ins().fabs(x);
    let a = at_most(c, a, 4.0);
    let q = polynomial(c, a, &[3.415_125_8e-4, 1.127_089_3, 0.638_144_73, 0.103_106_82, -0.021_838_097, 0.002_947_666_7, -1.863_800_9e-4]);
    let minus = c.b.ins().fneg(q);
    let e = exp_f32(c, minus);
    let one = c.b.ins().f32const(1.0f32);
    let large = c.b.ins().fsub(one, e);
    by_magnitude(c, x, 1.0, small, large)
}

macro_rules! libm {
    ($($name:ident $single:ident)*) => {
        // Only the addresses are taken: generated code knows the signatures.
        unsafe extern "C" {
            $(fn $name(); fn $single();)*
        }

        /// libm's functions by the names that generated code calls them by, as they stand in this process.
        pub fn symbols() -> Vec<(&'static str, *const u8)> {
            vec![$((stringify!($name), $name as *const u8), (stringify!($single), $single as *const u8)),*]
        }
    };
}

libm! {
    exp expf  log logf  sin sinf  cos cosf  tan tanf  asin asinf  acos acosf  atan atanf  sinh sinhf  cosh coshf  tanh tanhf
    asinh asinhf  acosh acoshf  atanh atanhf  erf erff  pow powf  fmod fmodf  atan2 atan2f
    floor floorf  ceil ceilf  trunc truncf  nearbyint nearbyintf  fma fmaf
}
