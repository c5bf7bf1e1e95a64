//! Derivatives of scalar functions, one row each: what a result's cotangent `g` adds to that of operand `k`.
//!
//! Rows prefer the result `y` to the operands where either would do, so that operands need not be kept for the backward pass. `None` is a
//! derivative of zero (almost everywhere): nothing flows back.

use crate::builder::V;
use crate::scalar::ScalarFn;
use std::f64::consts::PI;

/// The share of operand `k` of `y = f(x)`: `g * df/dx_k`.
pub fn chain<'g>(f: ScalarFn, k: usize, x: &[V<'g>], y: V<'g>, g: V<'g>) -> Option<V<'g>> {
    use ScalarFn::*;
    let (a, b) = (x[0], x[x.len().min(2) - 1]);
    let c = |v: f64| g.scalar_like(v);
    let (zero, one) = (|| c(0.0), || c(1.0));
    Some(match (f, k) {
        (Neg, _) => -g,
        (Abs, _) => g * a.map(Sign),
        (Relu, _) => y.greater(zero()).select(g, zero()),
        (Sqrt, _) => g * c(0.5) / y,
        (Exp, _) => g * y,
        (Log, _) => g / a,
        (Reciprocal, _) => -g * y * y,
        (Sin, _) => g * a.map(Cos),
        (Cos, _) => -g * a.map(Sin),
        (Tan, _) => g * (one() + y * y),
        (Asin, _) => g / (one() - a * a).sqrt(),
        (Acos, _) => -g / (one() - a * a).sqrt(),
        (Atan, _) => g / (one() + a * a),
        (Sinh, _) => g * a.map(Cosh),
        (Cosh, _) => g * a.map(Sinh),
        (Tanh, _) => g * (one() - y * y),
        (Asinh, _) => g / (a * a + one()).sqrt(),
        (Acosh, _) => g / ((a - one()) * (a + one())).sqrt(),
        (Atanh, _) => g / (one() - a * a),
        (Erf, _) => g * c(2.0 / PI.sqrt()) * (-a * a).exp(),
        (Sigmoid, _) => g * y * (one() - y),
        (Add, _) | (Sub | Mod | Fmod, 0) => g,
        (Sub, _) => -g,
        (Mul, 0) => g * b,
        (Mul, _) => g * a,
        (Div, 0) => g / b,
        (Div, _) => -g * y / b,
        (Mod, _) => -g * (a / b).map(Floor),
        (Fmod, _) => -g * (a / b).map(Trunc),
        // a^0 is constant, also at a = 0, where the general formula has no value.
        (Pow, 0) => b.equal(zero()).select(zero(), g * b * a.pow(b - one())),
        // The limit where a = 0 and b > 0.
        (Pow, _) => a.equal(zero()).select(zero(), g * y * a.log()),
        // Of equal operands the first counts.
        (Max, 0) => a.greater_equal(b).select(g, zero()),
        (Max, _) => a.less(b).select(g, zero()),
        (Min, 0) => a.less_equal(b).select(g, zero()),
        (Min, _) => a.greater(b).select(g, zero()),
        (Atan2, 0) => g * b / (a * a + b * b),
        (Atan2, _) => -g * a / (a * a + b * b),
        (Where, 1) => a.select(g, zero()),
        (Where, 2) => a.select(zero(), g),
        // Steps, and functions whose operands or results are no floats.
        (Sign | Floor | Ceil | Round | Trunc | IsNan | IsInf | Not | BitNot, _) => return None,
        (Equal | Less | LessEqual | Greater | GreaterEqual | And | Or | Xor | BitAnd | BitOr | BitXor | Shl | Shr | Where, _) => return None,
    })
}
