//! Transcendental functions of f32, the same on every device: what drivers offer differs in accuracy and is partly undefined.
//!
//! exp, sigmoid, tanh and erf are those of the CPU (`cpu::loops::math`); the others follow the single precision functions of Cephes
//! (S. Moshier), whose coefficients they have. Sine and cosine lose accuracy beyond 8192 radians.

use crate::gpu::gir::build::Builder;
use crate::gpu::gir::{Binary, Compare, Convert, Ty, Unary, Val};
use std::f32::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, LOG2_E, PI};

/// By its bits: drivers may take comparisons of NaN for what they are with numbers.
pub fn is_nan(k: &mut Builder, x: Val) -> Val {
    let (ty, inf) = if k.ty(x) == Ty::F64 { (Ty::I64, f64::INFINITY.to_bits() as i64) } else { (Ty::I32, f32::INFINITY.to_bits().into()) };
    let w = k.bits(ty, x);
    let a = k.with(Binary::And, w, if ty == Ty::I64 { i64::MAX } else { i32::MAX.into() });
    let inf = k.int(ty, inf);
    k.compare(Compare::LtU, inf, a)
}

/// `sum of p[i] * x^i` by Horner's rule.
fn polynomial(k: &mut Builder, x: Val, p: &[f32]) -> Val {
    let (last, rest) = p.split_last().expect("a polynomial has coefficients");
    let mut y = k.f32(*last);
    for c in rest.iter().rev() {
        let c = k.f32(*c);
        y = k.value(crate::gpu::gir::Op::MulAdd(y, x, c));
    }
    y
}

fn add(k: &mut Builder, x: Val, c: f32) -> Val {
    let c = k.f32(c);
    k.add(x, c)
}

fn mul(k: &mut Builder, x: Val, c: f32) -> Val {
    let c = k.f32(c);
    k.mul(x, c)
}

fn div(k: &mut Builder, a: Val, b: Val) -> Val {
    k.binary(Binary::Div, a, b)
}

fn less(k: &mut Builder, x: Val, c: f32) -> Val {
    let c = k.f32(c);
    k.compare(Compare::Lt, x, c)
}

fn more(k: &mut Builder, x: Val, c: f32) -> Val {
    let c = k.f32(c);
    k.compare(Compare::Lt, c, x)
}

fn abs(k: &mut Builder, x: Val) -> Val {
    k.unary(Unary::Abs, x)
}

fn neg(k: &mut Builder, x: Val) -> Val {
    k.unary(Unary::Neg, x)
}

fn sqrt(k: &mut Builder, x: Val) -> Val {
    k.unary(Unary::Sqrt, x)
}

/// `x` of the sign of `s`.
fn copysign(k: &mut Builder, x: Val, s: Val) -> Val {
    let (x, s) = (k.bits(Ty::I32, x), k.bits(Ty::I32, s));
    let (x, s) = (k.with(Binary::And, x, i32::MAX.into()), k.with(Binary::And, s, i32::MIN.into()));
    let w = k.or(x, s);
    k.bits(Ty::F32, w)
}

/// The bound where `x` is beyond it; NaN stays.
fn at_least(k: &mut Builder, x: Val, bound: f32) -> Val {
    let (under, bound) = (less(k, x, bound), k.f32(bound));
    k.select(under, bound, x)
}

fn at_most(k: &mut Builder, x: Val, bound: f32) -> Val {
    let (over, bound) = (more(k, x, bound), k.f32(bound));
    k.select(over, bound, x)
}

/// `2^n` for an i32 in the range of normal exponents.
fn power_of_two(k: &mut Builder, n: Val) -> Val {
    let biased = k.with(Binary::Add, n, 127);
    let w = k.with(Binary::Shl, biased, 23);
    k.bits(Ty::F32, w)
}

/// e^x: `x = n ln 2 + r` with ln 2 in two parts (Cody and Waite), a polynomial in r, scaling by 2^n in two steps so that subnormal
/// results and overflow come out right.
pub fn exp(k: &mut Builder, x: Val) -> Val {
    let nan = is_nan(k, x);
    let y = at_least(k, x, -104.0);
    let y = at_most(k, y, 89.0);
    let zero = k.f32(0.0);
    let y = k.select(nan, zero, y);
    let t = mul(k, y, LOG2_E);
    let n = k.unary(Unary::Round, t);
    let step = mul(k, n, 0.693_359_4);
    let r = k.sub(y, step);
    let step = mul(k, n, -2.121_944_4e-4);
    let r = k.sub(r, step);
    let p = polynomial(k, r, &[0.5, 0.166_666_66, 0.041_665_796, 0.008_333_452, 0.001_398_2, 1.987_569_1e-4]);
    let r2 = k.mul(r, r);
    let p = k.mul(p, r2);
    let p = k.add(p, r);
    let p = add(k, p, 1.0);
    let n = k.convert(Convert::IntS, Ty::I32, n);
    let half = k.with(Binary::ShrS, n, 1);
    let rest = k.sub(n, half);
    let (a, b) = (power_of_two(k, half), power_of_two(k, rest));
    let p = k.mul(p, a);
    let p = k.mul(p, b);
    k.select(nan, x, p)
}

/// 1 / (1 + e^-x), as e^x / (1 + e^x) where x is negative: neither overflows.
pub fn sigmoid(k: &mut Builder, x: Val) -> Val {
    let a = abs(k, x);
    let a = neg(k, a);
    let e = exp(k, a);
    let (one, negative) = (k.f32(1.0), less(k, x, 0.0));
    let n = k.select(negative, e, one);
    let d = k.add(one, e);
    div(k, n, d)
}

/// tanh: an odd polynomial near 0, else `1 - 2 / (e^(2|x|) + 1)`.
pub fn tanh(k: &mut Builder, x: Val) -> Val {
    let z = k.mul(x, x);
    let p = polynomial(k, z, &[-0.333_332_8, 0.133_314_42, -0.053_739_716, 0.020_639_09, -0.005_704_988_7]);
    let p = k.mul(p, z);
    let p = k.mul(p, x);
    let small = k.add(x, p);
    let a = abs(k, x);
    let a2 = k.add(a, a);
    let e = exp(k, a2);
    let (one, two) = (k.f32(1.0), k.f32(2.0));
    let d = k.add(e, one);
    let q = div(k, two, d);
    let large = k.sub(one, q);
    let large = copysign(k, large, x);
    let near = less(k, a, 0.625);
    k.select(near, small, large)
}

/// erf: `x P(x^2)` below 1, else `1 - e^-Q(|x|)`.
pub fn erf(k: &mut Builder, x: Val) -> Val {
    let z = k.mul(x, x);
    let p = polynomial(
        k,
        z,
        &[std::f32::consts::FRAC_2_SQRT_PI, -0.376_126_26, 0.112_835_854, -0.026_853_811, 0.005_188_327_7, -8.010_192_5e-4, 7.853_858e-5],
    );
    let small = k.mul(x, p);
    let a = abs(k, x);
    let a4 = at_most(k, a, 4.0);
    let q = polynomial(k, a4, &[3.415_125_8e-4, 1.127_089_3, 0.638_144_73, 0.103_106_82, -0.021_838_097, 0.002_947_666_7, -1.863_800_9e-4]);
    let q = neg(k, q);
    let e = exp(k, q);
    let one = k.f32(1.0);
    let large = k.sub(one, e);
    let large = copysign(k, large, x);
    let near = less(k, a, 1.0);
    k.select(near, small, large)
}

/// The natural logarithm in two parts, whose sum it is, of a positive normal number.
fn log_parts(k: &mut Builder, x: Val) -> (Val, Val) {
    let w = k.bits(Ty::I32, x);
    let e = k.with(Binary::ShrS, w, 23);
    let e = k.with(Binary::Sub, e, 126);
    let m = k.with(Binary::And, w, 0x007f_ffff);
    let m = k.with(Binary::Or, m, 0x3f00_0000);
    let m = k.bits(Ty::F32, m);
    // The mantissa is in [0.5, 1); below sqrt(1/2) it is doubled.
    let low = less(k, m, std::f32::consts::FRAC_1_SQRT_2);
    let down = k.convert(Convert::FromBool, Ty::I32, low);
    let e = k.sub(e, down);
    let e = k.convert(Convert::FloatS, Ty::F32, e);
    let m2 = k.add(m, m);
    let m = k.select(low, m2, m);
    let r = add(k, m, -1.0);
    let z = k.mul(r, r);
    let p = polynomial(
        k,
        r,
        &[
            3.333_333e-1,
            -2.499_999_4e-1,
            2.000_071_5e-1,
            -1.666_805_7e-1,
            1.424_932_3e-1,
            -1.242_014_1e-1,
            1.167_699_9e-1,
            -1.151_461e-1,
            7.037_683_6e-2,
        ],
    );
    let p = k.mul(p, r);
    let p = k.mul(p, z);
    let low = mul(k, e, -2.121_944_4e-4);
    let p = k.add(p, low);
    let half = mul(k, z, -0.5);
    let p = k.add(p, half);
    let high = mul(k, e, 0.693_359_4);
    // r + high, with what is lost of it: of the larger one nothing is.
    let sum = k.add(high, r);
    let back = k.sub(sum, high);
    let lost_r = k.sub(r, back);
    let back = k.sub(sum, r);
    let lost_h = k.sub(high, back);
    let none = k.f32(0.0);
    let zero = k.compare(Compare::Eq, e, none);
    let lost = k.select(zero, lost_h, lost_r);
    (sum, k.add(p, lost))
}

pub fn log(k: &mut Builder, x: Val) -> Val {
    // Subnormals are scaled up.
    let tiny = less(k, x, f32::MIN_POSITIVE);
    let scaled = mul(k, x, 2f32.powi(24));
    let y = k.select(tiny, scaled, x);
    let (hi, lo) = log_parts(k, y);
    let y = k.add(hi, lo);
    let less_by = add(k, y, -24.0 * LN_2);
    let y = k.select(tiny, less_by, y);
    let (zero, inf, minus_inf, nan) = (k.f32(0.0), k.f32(f32::INFINITY), k.f32(f32::NEG_INFINITY), k.f32(f32::NAN));
    let is_inf = k.compare(Compare::Eq, x, inf);
    let y = k.select(is_inf, inf, y);
    let is_zero = k.compare(Compare::Eq, x, zero);
    let y = k.select(is_zero, minus_inf, y);
    let (negative, is_nan) = (k.compare(Compare::Lt, x, zero), is_nan(k, x));
    let y = k.select(negative, nan, y);
    k.select(is_nan, x, y)
}

/// Sine and cosine: reduced by multiples of pi/4 in three parts, then a polynomial each.
pub fn sin_cos(k: &mut Builder, x: Val) -> (Val, Val) {
    let a = abs(k, x);
    // What is no number stays none: the difference of infinities.
    let inf = k.f32(f32::INFINITY);
    let finite = k.compare(Compare::Lt, a, inf);
    let nan = k.f32(f32::NAN);
    let zero = k.f32(0.0);
    let a = k.select(finite, a, zero);
    let a = at_most(k, a, 1e9);
    let j = mul(k, a, 4.0 / PI);
    let j = k.convert(Convert::IntS, Ty::I32, j);
    let odd = k.with(Binary::And, j, 1);
    let j = k.add(j, odd);
    let n = k.convert(Convert::FloatS, Ty::F32, j);
    let mut r = a;
    for part in [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8] {
        let step = mul(k, n, part);
        r = k.sub(r, step);
    }
    let z = k.mul(r, r);
    let s = polynomial(k, z, &[-1.666_665_5e-1, 8.332_161e-3, -1.951_529_6e-4]);
    let s = k.mul(s, z);
    let s = k.mul(s, r);
    let s = k.add(s, r);
    let c = polynomial(k, z, &[4.166_664_6e-2, -1.388_731_6e-3, 2.443_315_7e-5]);
    let c = k.mul(c, z);
    let c = k.mul(c, z);
    let half = mul(k, z, -0.5);
    let c = k.add(c, half);
    let c = add(k, c, 1.0);
    // Octants come in pairs: 2 and 6 swap the two, 4 and 6 turn the sine's sign, 2 and 4 the cosine's.
    let swap = k.with(Binary::And, j, 2);
    let swap = k.compare_with(Compare::Ne, swap, 0);
    let (sine, cosine) = (k.select(swap, c, s), k.select(swap, s, c));
    let turn = k.with(Binary::And, j, 4);
    let turn = k.compare_with(Compare::Ne, turn, 0);
    let (minus_s, minus_c) = (neg(k, sine), neg(k, cosine));
    let sine = k.select(turn, minus_s, sine);
    let turn_c = k.binary(Binary::Xor, turn, swap);
    let cosine = k.select(turn_c, minus_c, cosine);
    // Sine is odd.
    let negative = less(k, x, 0.0);
    let minus = neg(k, sine);
    let sine = k.select(negative, minus, sine);
    (k.select(finite, sine, nan), k.select(finite, cosine, nan))
}

/// asin of what is in [0, 0.5], and of the square root of a smaller number elsewhere.
fn asin_core(k: &mut Builder, x: Val) -> Val {
    let z = k.mul(x, x);
    let p = polynomial(k, z, &[1.666_675_2e-1, 7.495_300_3e-2, 4.547_002_6e-2, 2.418_131e-2, 4.216_32e-2]);
    let p = k.mul(p, z);
    let p = k.mul(p, x);
    k.add(p, x)
}

/// `asin(sqrt((1 - a) / 2))`, which is `(pi/2 - asin(a)) / 2`.
fn asin_half(k: &mut Builder, a: Val) -> Val {
    let one = k.f32(1.0);
    let h = k.sub(one, a);
    let h = mul(k, h, 0.5);
    let h = sqrt(k, h);
    asin_core(k, h)
}

fn outside(k: &mut Builder, x: Val, y: Val) -> Val {
    let a = abs(k, x);
    let (beyond, nan) = (more(k, a, 1.0), k.f32(f32::NAN));
    k.select(beyond, nan, y)
}

pub fn asin(k: &mut Builder, x: Val) -> Val {
    let a = abs(k, x);
    let near = asin_core(k, a);
    let far = asin_half(k, a);
    let far = mul(k, far, -2.0);
    let far = add(k, far, FRAC_PI_2);
    let large = more(k, a, 0.5);
    let y = k.select(large, far, near);
    let y = copysign(k, y, x);
    outside(k, x, y)
}

pub fn acos(k: &mut Builder, x: Val) -> Val {
    let a = abs(k, x);
    let near = asin_core(k, x);
    let half_pi = k.f32(FRAC_PI_2);
    let near = k.sub(half_pi, near);
    let far = asin_half(k, a);
    let far = k.add(far, far);
    let pi = k.f32(PI);
    let other = k.sub(pi, far);
    let negative = less(k, x, 0.0);
    let far = k.select(negative, other, far);
    let large = more(k, a, 0.5);
    let y = k.select(large, far, near);
    outside(k, x, y)
}

pub fn atan(k: &mut Builder, x: Val) -> Val {
    let a = abs(k, x);
    let (one, minus_one, zero) = (k.f32(1.0), k.f32(-1.0), k.f32(0.0));
    let (large, middle) = (more(k, a, 2.414_213_7), more(k, a, 0.414_213_57));
    let inverse = div(k, minus_one, a);
    let (up, down) = (k.sub(a, one), k.add(a, one));
    let ratio = div(k, up, down);
    let r = k.select(middle, ratio, a);
    let r = k.select(large, inverse, r);
    let (half_pi, quarter_pi) = (k.f32(FRAC_PI_2), k.f32(FRAC_PI_4));
    let base = k.select(middle, quarter_pi, zero);
    let base = k.select(large, half_pi, base);
    let z = k.mul(r, r);
    let p = polynomial(k, z, &[-3.333_295e-1, 1.997_771_1e-1, -1.387_768_6e-1, 8.053_744_5e-2]);
    let p = k.mul(p, z);
    let p = k.mul(p, r);
    let p = k.add(p, r);
    let y = k.add(base, p);
    copysign(k, y, x)
}

/// atan2(y, x).
pub fn atan2(k: &mut Builder, y: Val, x: Val) -> Val {
    let (ax, ay) = (abs(k, x), abs(k, y));
    let q = div(k, ay, ax);
    let t = atan(k, q);
    // 0 / 0 and infinity / infinity.
    let (zero, inf, quarter) = (k.f32(0.0), k.f32(f32::INFINITY), k.f32(FRAC_PI_4));
    let (xi, yi) = (k.compare(Compare::Eq, ax, inf), k.compare(Compare::Eq, ay, inf));
    let both = k.and(xi, yi);
    let t = k.select(both, quarter, t);
    let origin = k.compare(Compare::Eq, ay, zero);
    let t = k.select(origin, zero, t);
    // The sign of x counts, of zeros too.
    let w = k.bits(Ty::I32, x);
    let left = k.compare_with(Compare::Lt, w, 0);
    let pi = k.f32(PI);
    let other = k.sub(pi, t);
    let t = k.select(left, other, t);
    let t = copysign(k, t, y);
    let (nx, ny, nan) = (is_nan(k, x), is_nan(k, y), k.f32(f32::NAN));
    let none = k.or(nx, ny);
    k.select(none, nan, t)
}

/// Half of e^|x|, which does not overflow before the results do.
fn half_exp(k: &mut Builder, x: Val) -> Val {
    let a = abs(k, x);
    let h = mul(k, a, 0.5);
    let e = exp(k, h);
    let half = mul(k, e, 0.5);
    k.mul(half, e)
}

pub fn sinh(k: &mut Builder, x: Val) -> Val {
    let e = half_exp(k, x);
    let quarter = k.f32(0.25);
    let q = div(k, quarter, e);
    let far = k.sub(e, q);
    let far = copysign(k, far, x);
    let z = k.mul(x, x);
    let p = polynomial(k, z, &[1.666_671_6e-1, 8.330_284e-3, 2.037_219_2e-4]);
    let p = k.mul(p, z);
    let p = k.mul(p, x);
    let near = k.add(p, x);
    let a = abs(k, x);
    let large = more(k, a, 1.0);
    k.select(large, far, near)
}

pub fn cosh(k: &mut Builder, x: Val) -> Val {
    let e = half_exp(k, x);
    let quarter = k.f32(0.25);
    let q = div(k, quarter, e);
    k.add(e, q)
}

pub fn asinh(k: &mut Builder, x: Val) -> Val {
    let a = abs(k, x);
    let z = k.mul(a, a);
    let p = polynomial(k, z, &[-1.666_628_8e-1, 7.484_759e-2, -4.269_934e-2, 2.012_200_3e-2]);
    let p = k.mul(p, z);
    let p = k.mul(p, a);
    let near = k.add(p, a);
    let s = add(k, z, 1.0);
    let s = sqrt(k, s);
    let s = k.add(s, a);
    let middle = log(k, s);
    let far = log(k, a);
    let far = add(k, far, LN_2);
    let (above, beyond) = (more(k, a, 0.5), more(k, a, 1500.0));
    let y = k.select(above, middle, near);
    let y = k.select(beyond, far, y);
    copysign(k, y, x)
}

pub fn acosh(k: &mut Builder, x: Val) -> Val {
    let z = add(k, x, -1.0);
    let p = polynomial(k, z, &[std::f32::consts::SQRT_2, -1.178_474_2e-1, 2.645_490_5e-2, -7.527_289e-3, 1.759_688_1e-3]);
    let root = sqrt(k, z);
    let near = k.mul(p, root);
    let s = add(k, x, 1.0);
    let s = k.mul(s, z);
    let s = sqrt(k, s);
    let s = k.add(s, x);
    let middle = log(k, s);
    let far = log(k, x);
    let far = add(k, far, LN_2);
    let (close, beyond, below, nan) = (less(k, z, 0.5), more(k, x, 1500.0), less(k, x, 1.0), k.f32(f32::NAN));
    let y = k.select(close, near, middle);
    let y = k.select(beyond, far, y);
    k.select(below, nan, y)
}

pub fn atanh(k: &mut Builder, x: Val) -> Val {
    let a = abs(k, x);
    let z = k.mul(x, x);
    let p = polynomial(k, z, &[3.333_373e-1, 1.997_821_6e-1, 1.466_914_3e-1, 8.243_703e-2, 1.817_403_5e-1]);
    let p = k.mul(p, z);
    let p = k.mul(p, x);
    let near = k.add(p, x);
    let one = k.f32(1.0);
    let (up, down) = (k.add(one, x), k.sub(one, x));
    let q = div(k, up, down);
    let far = log(k, q);
    let far = mul(k, far, 0.5);
    let close = less(k, a, 0.5);
    k.select(close, near, far)
}

/// x^y: e^(y log |x|), the product in two parts; the sign and the limits as C's `pow` has them.
pub fn pow(k: &mut Builder, x: Val, y: Val) -> Val {
    let a = abs(k, x);
    let tiny = less(k, a, f32::MIN_POSITIVE);
    let scaled = mul(k, a, 2f32.powi(24));
    let base = k.select(tiny, scaled, a);
    let (hi, lo) = log_parts(k, base);
    let less_by = add(k, hi, -24.0 * LN_2);
    let hi = k.select(tiny, less_by, hi);
    // y * hi exactly in two parts, by splitting both (Dekker).
    let split = |k: &mut Builder, v: Val| {
        let w = k.bits(Ty::I32, v);
        let w = k.with(Binary::And, w, i64::from(0xffff_f000u32 as i32));
        let top = k.bits(Ty::F32, w);
        (top, k.sub(v, top))
    };
    // Beyond this the result is 0, 1 or infinity whatever the parts are.
    let bounded = at_least(k, y, -1e12);
    let bounded = at_most(k, bounded, 1e12);
    let ((yh, yl), (hh, hl)) = (split(k, bounded), split(k, hi));
    let main = k.mul(yh, hh);
    let (a1, a2, a3) = (k.mul(yh, hl), k.mul(yl, hh), k.mul(yl, hl));
    let rest = k.add(a1, a2);
    let rest = k.add(rest, a3);
    let small = k.mul(bounded, lo);
    let rest = k.add(rest, small);
    let e = exp(k, main);
    // e^rest: the rest is small wherever the result is finite.
    let rest = at_least(k, rest, -80.0);
    let rest = at_most(k, rest, 80.0);
    let f = exp(k, rest);
    let mut out = k.mul(e, f);
    let (zero, one, inf, nan) = (k.f32(0.0), k.f32(1.0), k.f32(f32::INFINITY), k.f32(f32::NAN));
    let (y_negative, y_zero) = (k.compare(Compare::Lt, y, zero), k.compare(Compare::Eq, y, zero));
    // Bases 0 and infinity.
    let (a_zero, a_inf) = (k.compare(Compare::Eq, a, zero), k.compare(Compare::Eq, a, inf));
    let of_zero = k.select(y_negative, inf, zero);
    let of_inf = k.select(y_negative, zero, inf);
    out = k.select(a_zero, of_zero, out);
    out = k.select(a_inf, of_inf, out);
    // Exponents without end.
    let ay = abs(k, y);
    let y_inf = k.compare(Compare::Eq, ay, inf);
    let (grows, is_one) = (k.compare(Compare::Lt, one, a), k.compare(Compare::Eq, a, one));
    let up = k.binary(Binary::Xor, grows, y_negative);
    let far = k.select(up, inf, zero);
    let far = k.select(is_one, one, far);
    out = k.select(y_inf, far, out);
    // Negative bases take integers only; odd ones keep the sign, that of zero too.
    let whole = k.unary(Unary::Trunc, y);
    let integer = k.compare(Compare::Eq, whole, y);
    let half = mul(k, y, 0.5);
    let half_whole = k.unary(Unary::Trunc, half);
    let even = k.compare(Compare::Eq, half_whole, half);
    let not_even = k.not(even);
    let odd = k.and(integer, not_even);
    let w = k.bits(Ty::I32, x);
    let sign = k.compare_with(Compare::Lt, w, 0);
    let turn = k.and(sign, odd);
    let minus = neg(k, out);
    out = k.select(turn, minus, out);
    let x_negative = k.compare(Compare::Lt, x, zero);
    let fraction = k.not(integer);
    let none = k.and(x_negative, fraction);
    let finite_base = k.not(a_inf);
    let none = k.and(none, finite_base);
    out = k.select(none, nan, out);
    // 1 to anything and anything to 0 are 1, NaN included.
    let (nx, ny) = (is_nan(k, x), is_nan(k, y));
    let any = k.or(nx, ny);
    out = k.select(any, nan, out);
    let x_one = k.compare(Compare::Eq, x, one);
    let always = k.or(x_one, y_zero);
    k.select(always, one, out)
}

/// The remainder with the dividend's sign, exactly: multiples of the divisor by powers of two are taken away.
pub fn fmod(k: &mut Builder, x: Val, y: Val) -> Val {
    let (a, b) = (abs(k, x), abs(k, y));
    let (zero, inf, nan) = (k.f32(0.0), k.f32(f32::INFINITY), k.f32(f32::NAN));
    let (proper, finite) = (k.compare(Compare::Lt, zero, b), k.compare(Compare::Lt, a, inf));
    let defined = k.and(proper, finite);
    let start = k.select(defined, a, zero);
    let fraction = k.bits(Ty::I32, b);
    let fraction = k.with(Binary::And, fraction, 0x007f_ffff);
    let out = k.while_(
        &[start],
        |k, r| {
            let goes = k.compare(Compare::Le, b, r[0]);
            k.and(goes, defined)
        },
        |k, r| {
            // The divisor's mantissa at the exponent of what is left, halved where that is too large.
            let w = k.bits(Ty::I32, r[0]);
            let exponent = k.with(Binary::And, w, INFINITE_EXPONENT);
            let t = k.or(exponent, fraction);
            let t = k.bits(Ty::F32, t);
            let half = mul(k, t, 0.5);
            let large = k.compare(Compare::Lt, r[0], t);
            let t = k.select(large, half, t);
            vec![k.sub(r[0], t)]
        },
    );
    let y = copysign(k, out[0], x);
    let (nx, ny) = (is_nan(k, x), is_nan(k, b));
    let any = k.or(nx, ny);
    let undefined = k.not(defined);
    let none = k.or(any, undefined);
    k.select(none, nan, y)
}

const INFINITE_EXPONENT: i64 = 0x7f80_0000;
