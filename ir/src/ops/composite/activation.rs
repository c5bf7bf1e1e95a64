//! Activation functions with parameters. Plain ones (relu, tanh, sigmoid...) are scalar functions.

use crate::attrs::{Attr, AttrValue, Real, op_struct};
use crate::builder::V;
use crate::error::{Error, Result};
use crate::ops::Composite;
use crate::ops::composite::only;
use crate::scalar::{Out, ScalarFn};
use crate::types::DType;

macro_rules! activations {
    ($($(#[$doc:meta])* $variant:ident $name:literal { $($field:ident),* };)*) => {
        /// A function of one value, with its parameters: what an epilogue applies and what [`Activation`] applies to a tensor.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Act {
            /// A scalar function of one operand.
            Fn(ScalarFn),
            $($(#[$doc])* $variant { $($field: Real),* },)*
        }

        impl AttrValue for Act {
            fn to_attr(&self) -> Attr {
                match *self {
                    Act::Fn(f) => Attr::Word(f.name().into()),
                    $(Act::$variant { $($field),* } => Attr::Call($name.into(), vec![$($field.to_attr()),*]),)*
                }
            }
            fn from_attr(a: &Attr) -> Result<Self> {
                match a {
                    Attr::Word(w) => match ScalarFn::from_name(w).filter(|f| f.arity() == 1) {
                        Some(f) => Ok(Act::Fn(f)),
                        None => Err(Error::attribute(format!("no activation is called {w}"))),
                    },
                    $(Attr::Call(name, args) if &**name == $name => {
                        let mut args = args.iter();
                        let mut next = |what: &str| match args.next() {
                            Some(a) => Real::from_attr(a),
                            None => Err(Error::attribute(format!(concat!($name, " lacks {}"), what))),
                        };
                        let _ = &mut next;
                        Ok(Act::$variant { $($field: next(stringify!($field))?),* })
                    })*
                    a => Err(Error::attribute(format!("expected an activation, found {a}"))),
                }
            }
        }
    };
}

activations! {
    /// `min(max(x, lo), hi)`; hi where lo > hi; NaN stays.
    Clip "clip" { lo, hi };
    /// `x` where x >= 0, else `alpha * x`.
    LeakyRelu "leaky_relu" { alpha };
    /// `x` where x >= 0, else `alpha * (exp(x) - 1)`.
    Elu "elu" { alpha };
    /// `gamma * x` where x > 0, else `gamma * alpha * (exp(x) - 1)`.
    Selu "selu" { alpha, gamma };
    /// `x` where x >= 0, else `alpha * (exp(x / alpha) - 1)`.
    Celu "celu" { alpha };
    /// `min(max(alpha * x + beta, 0), 1)`.
    HardSigmoid "hard_sigmoid" { alpha, beta };
    /// `x * hard_sigmoid(x)` with alpha = 1/6, beta = 1/2.
    HardSwish "hard_swish" {};
    /// `x * sigmoid(alpha * x)`; silu with alpha = 1.
    Swish "swish" { alpha };
    /// `x * (1 + erf(x / sqrt 2)) / 2`.
    Gelu "gelu" {};
    /// `x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2`.
    GeluTanh "gelu_tanh" {};
    /// `log(1 + exp(x))`.
    Softplus "softplus" {};
    /// `x / (1 + |x|)`.
    Softsign "softsign" {};
    /// `x * tanh(softplus(x))`.
    Mish "mish" {};
    /// `x` where x > alpha, else 0.
    ThresholdedRelu "thresholded_relu" { alpha };
}

impl Act {
    /// The function in primitives, on a tensor of any float type (`clip` on any number).
    pub fn expand<'g>(self, x: V<'g>) -> V<'g> {
        let c = |v: Real| x.scalar_like(v.0);
        let k = |v: f64| x.scalar_like(v);
        match self {
            Act::Fn(f) => x.map(f),
            // Not every type has the infinities, and they bound nothing.
            Act::Clip { lo, hi } => {
                let x = if lo.0 == f64::NEG_INFINITY { x } else { x.max(c(lo)) };
                if hi.0 == f64::INFINITY { x } else { x.min(c(hi)) }
            }
            Act::LeakyRelu { alpha } => x.less(k(0.0)).select(x * c(alpha), x),
            Act::Elu { alpha } => x.less(k(0.0)).select((x.exp() - k(1.0)) * c(alpha), x),
            Act::Selu { alpha, gamma } => x.less_equal(k(0.0)).select((x.exp() - k(1.0)) * c(alpha), x) * c(gamma),
            Act::Celu { alpha } => x.less(k(0.0)).select(((x / c(alpha)).exp() - k(1.0)) * c(alpha), x),
            Act::HardSigmoid { alpha, beta } => (x * c(alpha) + c(beta)).max(k(0.0)).min(k(1.0)),
            Act::HardSwish {} => x * (x * k(1.0 / 6.0) + k(0.5)).max(k(0.0)).min(k(1.0)),
            Act::Swish { alpha } => x * if alpha.0 == 1.0 { x.sigmoid() } else { (x * c(alpha)).sigmoid() },
            Act::Gelu {} => x * (((x * k(std::f64::consts::FRAC_1_SQRT_2)).erf() + k(1.0)) * k(0.5)),
            Act::GeluTanh {} => {
                let inner = (x + x * x * x * k(0.044715)) * k((2.0 / std::f64::consts::PI).sqrt());
                x * ((inner.tanh() + k(1.0)) * k(0.5))
            }
            // max(x, 0) + log(1 + exp(-|x|)): exp cannot overflow.
            Act::Softplus {} => x.relu() + ((-x.abs()).exp() + k(1.0)).log(),
            Act::Softsign {} => x / (x.abs() + k(1.0)),
            Act::Mish {} => x * Act::Softplus {}.expand(x).tanh(),
            Act::ThresholdedRelu { alpha } => x.greater(c(alpha)).select(x, k(0.0)),
        }
    }

    /// The function of one number: what an epilogue applies to an accumulator.
    ///
    /// Panics on a scalar function without a float result, which [`Act::takes`] refuses.
    pub fn eval(self, x: f64) -> f64 {
        let clip = |x: f64, lo: f64, hi: f64| ScalarFn::Min.eval_f64(ScalarFn::Max.eval_f64(x, lo), hi);
        let sigmoid = |x: f64| ScalarFn::Sigmoid.eval_f64(x, 0.0);
        match self {
            Act::Fn(f) => f.eval_f64(x, 0.0),
            Act::Clip { lo, hi } => clip(x, lo.0, hi.0),
            Act::LeakyRelu { alpha } => {
                if x < 0.0 {
                    alpha.0 * x
                } else {
                    x
                }
            }
            Act::Elu { alpha } => {
                if x < 0.0 {
                    alpha.0 * x.exp_m1()
                } else {
                    x
                }
            }
            Act::Selu { alpha, gamma } => gamma.0 * if x <= 0.0 { alpha.0 * x.exp_m1() } else { x },
            Act::Celu { alpha } => {
                if x < 0.0 {
                    alpha.0 * (x / alpha.0).exp_m1()
                } else {
                    x
                }
            }
            Act::HardSigmoid { alpha, beta } => clip(alpha.0 * x + beta.0, 0.0, 1.0),
            Act::HardSwish {} => x * clip(x / 6.0 + 0.5, 0.0, 1.0),
            Act::Swish { alpha } => x * sigmoid(alpha.0 * x),
            Act::Gelu {} => x * (1.0 + ScalarFn::Erf.eval_f64(x * std::f64::consts::FRAC_1_SQRT_2, 0.0)) / 2.0,
            Act::GeluTanh {} => x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()) / 2.0,
            Act::Softplus {} => ScalarFn::Relu.eval_f64(x, 0.0) + (-x.abs()).exp().ln_1p(),
            Act::Softsign {} => x / (1.0 + x.abs()),
            Act::Mish {} => x * Act::Softplus {}.eval(x).tanh(),
            Act::ThresholdedRelu { alpha } => {
                if x > alpha.0 {
                    x
                } else {
                    0.0
                }
            }
        }
    }

    /// Whether the function has a result of the type that it takes, on operands of `dtype`.
    pub fn takes(self, dtype: DType) -> bool {
        match self {
            Act::Fn(f) => f.arity() == 1 && f.out() == Out::Same && f.domain().contains(dtype),
            Act::Clip { .. } => dtype != DType::Bool,
            _ => dtype.is_float(),
        }
    }
}

op_struct! {
    /// An activation applied to every element.
    Activation { act: Act }
}

impl Composite for Activation {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        Ok(vec![self.act.expand(only("activation", x)?)])
    }
}
