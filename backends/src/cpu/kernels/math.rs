//! Vector functions on registers. Each is right at the infinities and returns NaN for NaN; errors are given in units in the last
//! place, as measured by this module's tests.

use crate::cpu::vir::{Builder, MBin, Src, V, VBin, VCmp, VUn};

/// `x * 2^n` for whole numbers `n` within twice the exponent range. Where no instruction does that, the factor is made in two halves,
/// so that results may be subnormal or infinite.
fn scale(b: &mut Builder, x: V, n: V) -> V {
    if b.lanes() == 16 {
        return b.bin(VBin::Scale, x, n);
    }
    let n = b.un(VUn::ToInt, n);
    let h = b.un(VUn::Sar(1), n);
    let r = b.bin(VBin::ISub, n, h);
    [h, r].into_iter().fold(x, |x, k| {
        let k = b.bin(VBin::IAdd, k, Src::C(127));
        let p = b.un(VUn::Shl(23), k);
        b.mul(x, p)
    })
}

/// `(n, r)` with `x = n*ln2 + r`, `n` an integer in f32: Cody and Waite's reduction in two steps.
fn reduce_ln2(b: &mut Builder, x: V) -> (V, V) {
    let t = b.mul(x, std::f32::consts::LOG2_E);
    let n = b.un(VUn::Nearest, t);
    let r = b.fnma(n, LN2[0], x);
    let r = b.fnma(n, LN2[1], r);
    (n, r)
}

/// ln2 in two parts; products of the first with exponents are exact.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// Coefficients of `exp(r)` on |r| <= ln2/2: the polynomial of degree 6 whose largest relative error is least, 4e-9 as rounded.
const EXP: [f32; 7] = [1.381_432e-3, 8.368_851e-3, 4.166_84e-2, 1.666_652e-1, 0.499_999_94, 1.0, 1.0];

/// `e^x`, 1 ulp.
pub fn exp(b: &mut Builder, x: V) -> V {
    // Beyond these the result is 0 or infinity; the second operand's NaN survives.
    let hi = b.constant(89.0);
    let x = b.min(hi, x);
    exp_below(b, x)
}

/// `e^x` for x of at most 89, 1 ulp.
fn exp_below(b: &mut Builder, x: V) -> V {
    let lo = b.constant(-104.0);
    let x = b.max(lo, x);
    exp_within(b, x)
}

/// `e^x` for x from -104 to 89, 1 ulp.
fn exp_within(b: &mut Builder, x: V) -> V {
    let (n, r) = reduce_ln2(b, x);
    let y = b.poly(r, &EXP);
    scale(b, y, n)
}

/// `e^x` for the shares of a softmax, `x <= 0`, 1 ulp; 0 where that is subnormal: arithmetic on such numbers takes a hundred times as long,
/// and the masks of attention make many of them.
pub fn share(b: &mut Builder, x: V) -> V {
    let lo = b.constant(LEAST_NORMAL);
    let gone = b.cmp(VCmp::Lt, x, LEAST_NORMAL);
    let x = b.max(lo, x);
    let y = exp_within(b, x);
    let zero = b.constant(0.0);
    b.select(gone, zero, y)
}

/// The logarithm of the least normal number, rounded up.
const LEAST_NORMAL: f32 = -87.336_54;

/// `e^x - 1` for `x <= 0`, and something for `x > 0` that the caller does not use; 2 ulp.
pub fn expm1(b: &mut Builder, x: V) -> V {
    let lo = b.constant(-30.0);
    let zero = b.constant(0.0);
    let x = b.max(lo, x);
    let x = b.min(zero, x);
    let (n, r) = reduce_ln2(b, x);
    let p = b.poly(r, &EXP[..5]);
    let r2 = b.mul(r, r);
    let e = b.fma(p, r2, r); // e^r - 1
    let n = b.un(VUn::ToInt, n);
    let k = b.bin(VBin::IAdd, n, Src::C(127));
    let s = b.un(VUn::Shl(23), k);
    let s1 = b.sub(s, 1.0);
    b.fma(e, s, s1)
}

/// `1 / (1 + e^-x)`, 3 ulp: by `e^-|x|`, which cannot overflow, so that small results keep their bits.
pub fn sigmoid(b: &mut Builder, x: V) -> V {
    let n = b.bin(VBin::Or, x, Src::C(0x8000_0000));
    let e = exp_below(b, n);
    let d = b.add(e, 1.0);
    let one = b.constant(1.0);
    let negative = b.cmp(VCmp::Lt, x, 0.0);
    let top = b.select(negative, e, one);
    b.div(top, d)
}

/// `x / (1 + e^-x)`, 4 ulp; about -1e-36 below -87, where the exponential would leave the range.
pub fn silu(b: &mut Builder, x: V) -> V {
    let (lo, hi) = (b.constant(-87.0), b.constant(87.0));
    let x = b.max(lo, x);
    let c = b.min(hi, x);
    // n = -x/ln2, and r = x + n*ln2 so that e^-x = 2^n e^-r.
    let t = b.mul(c, -std::f32::consts::LOG2_E);
    let n = b.un(VUn::Nearest, t);
    let r = b.fma(n, LN2[0], c);
    let r = b.fma(n, LN2[1], r);
    // Odd powers of -r change their sign.
    let mut turned = EXP;
    turned.iter_mut().rev().skip(1).step_by(2).for_each(|c| *c = -*c);
    let y = b.poly(r, &turned);
    let e = scale(b, y, n);
    let d = b.add(e, 1.0);
    b.div(x, d)
}

/// Hyperbolic tangent, 5 ulp: an odd rational function of degrees 13 and 6 on |x| <= 7.99881, the minimax coefficients that the
/// Eigen library uses for float.
pub fn tanh(b: &mut Builder, x: V) -> V {
    let (lo, hi) = (b.constant(-7.998_811_7), b.constant(7.998_811_7));
    let c = b.max(lo, x);
    let c = b.min(hi, c);
    let s = b.mul(c, c);
    let p = b.poly(s, &[-2.760_768_4e-16, 2.000_188e-13, -8.604_672e-11, 5.122_297_1e-8, 1.485_722_4e-5, 6.372_619_3e-4, 4.893_524_6e-3]);
    let p = b.mul(p, c);
    let q = b.poly(s, &[1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3]);
    let y = b.div(p, q);
    // Near zero tanh x = x, to the last bit and the sign.
    let a = b.abs(x);
    let tiny = b.cmp(VCmp::Lt, a, 4.0e-4);
    b.select(tiny, x, y)
}

/// Error function, 6 ulp: an odd rational function on |x| <= 4, the minimax coefficients that the Eigen library uses for float.
pub fn erf(b: &mut Builder, x: V) -> V {
    let (lo, hi) = (b.constant(-4.0), b.constant(4.0));
    let c = b.max(lo, x);
    let c = b.min(hi, c);
    let s = b.mul(c, c);
    let p = b.poly(s, &[-2.726_142_3e-10, 2.770_681_4e-8, -2.101_024e-6, -5.692_506_5e-5, -7.349_906_3e-4, -2.954_600_1e-3, -1.609_603_3e-2]);
    let p = b.mul(p, c);
    let q = b.poly(s, &[-1.456_607_2e-5, -2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2]);
    let y = b.div(p, q);
    // Near zero the function is linear; the quotient would lose the bits of subnormal values.
    let a = b.abs(x);
    let tiny = b.cmp(VCmp::Lt, a, 2.0e-4);
    let line = b.mul(x, std::f32::consts::FRAC_2_SQRT_PI);
    let y = b.select(tiny, line, y);
    // Exactly 1 from where it rounds to that: x * (1 + erf(x)) is to vanish for large negative x, not to grow.
    let far = b.cmp(VCmp::Ge, a, 4.0);
    let sign = b.mul(c, 0.25);
    b.select(far, sign, y)
}

/// Natural logarithm, 2 ulp; -infinity at 0, NaN below: Cephes' `logf`.
pub fn log(b: &mut Builder, x: V) -> V {
    // Subnormals are scaled into the normal range.
    let small = b.cmp(VCmp::Lt, x, f32::MIN_POSITIVE);
    let up = b.mul(x, 8_388_608.0);
    let y = b.select(small, up, x);
    let (zero, bias) = (b.constant(0.0), b.constant(23.0));
    let bias = b.select(small, bias, zero);
    // The exponent relative to sqrt(1/2), so that the mantissa is in [sqrt(1/2), sqrt(2)).
    let t = b.bin(VBin::ISub, y, Src::C(0x3f35_04f3));
    let e = b.un(VUn::Sar(23), t);
    let shift = b.un(VUn::Shl(23), e);
    let m = b.bin(VBin::ISub, y, shift);
    let e = b.un(VUn::FromInt, e);
    let e = b.sub(e, bias);
    let f = b.sub(m, 1.0);
    let p = b.poly(
        f,
        &[
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_7e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            0.333_333_3,
        ],
    );
    let f2 = b.mul(f, f);
    let p = b.mul(p, f);
    let p = b.mul(p, f2);
    let p = b.fma(e, LN2[1], p);
    let p = b.fnma(f2, 0.5, p);
    let y = b.add(f, p);
    let y = b.fma(e, LN2[0], y);
    // The arguments for which the bits above mean nothing.
    let inf = b.bits(0x7f80_0000);
    let nan = b.bits(0x7fc0_0000);
    let minus = b.bits(0xff80_0000);
    let m = b.cmp(VCmp::Eq, x, 0.0);
    let y = b.select(m, minus, y);
    let m = b.cmp(VCmp::Eq, x, inf);
    let y = b.select(m, inf, y);
    let neg = b.cmp(VCmp::Lt, x, 0.0);
    let un = b.cmp(VCmp::Unord, x, x);
    let m = b.mask(MBin::Or, neg, un);
    b.select(m, nan, y)
}

/// `log(1 + e^x)` as `max(x, 0) + log1p(e^-|x|)`, 4 ulp.
pub fn softplus(b: &mut Builder, x: V) -> V {
    let a = b.abs(x);
    let n = b.neg(a);
    let e = exp_below(b, n);
    // log1p by the rounding error of 1 + e: log(u) * e / (u - 1).
    let u = b.add(e, 1.0);
    let d = b.sub(u, 1.0);
    let l = log(b, u);
    let r = b.mul(l, e);
    let r = b.div(r, d);
    let lost = b.cmp(VCmp::Eq, d, 0.0);
    let r = b.select(lost, e, r);
    let zero = b.constant(0.0);
    let p = b.max(zero, x);
    b.add(p, r)
}
