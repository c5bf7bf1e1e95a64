//! Composites that exporters spell out, recognised again, so that they keep their identity for kernels and epilogues.

use super::contract::{ramp, x};
use super::{Match, Rounding, Rule};
use nnc_ir::attrs::Real;
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::composite::norm::{LayerNorm, Softmax};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{Dim, Op, V};
use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

pub const RULES: &[Rule] = &[
    Rule {
        name: "swish",
        find: &["(mul ?x (sigmoid ?x))"],
        make: |m| act(m, Act::Swish { alpha: Real(1.0) }),
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x * x.sigmoid()
        },
    },
    Rule {
        name: "swish-scaled",
        find: &["(mul ?x (sigmoid (mul ?x ?c)))"],
        make: |m| act(m, Act::Swish { alpha: Real(m.number(m.v("?c"))?) }),
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x * (x * x.scalar_like(1.5)).sigmoid()
        },
    },
    Rule {
        name: "gelu",
        find: &[
            "(mul (mul ?x (add (erf (div ?x ?c1)) ?c2)) ?c3)",
            "(mul (mul ?x (add (erf (mul ?x ?c1)) ?c2)) ?c3)",
            "(mul ?x (mul (add (erf (div ?x ?c1)) ?c2) ?c3))",
            "(mul ?x (mul (add (erf (mul ?x ?c1)) ?c2) ?c3))",
            "(mul (mul ?x ?c3) (add (erf (div ?x ?c1)) ?c2))",
            "(mul (mul ?x ?c3) (add (erf (mul ?x ?c1)) ?c2))",
        ],
        make: |m| {
            let root = m.is_about(m.v("?c1"), SQRT_2) || m.is_about(m.v("?c1"), FRAC_1_SQRT_2);
            (root && m.is_about(m.v("?c2"), 1.0) && m.is_about(m.v("?c3"), 0.5)).then(|| act(m, Act::Gelu {}))?
        },
        rounding: Rounding::Other,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x * x.scalar_like(0.5) * ((x / x.scalar_like(SQRT_2)).erf() + x.scalar_like(1.0))
        },
    },
    Rule {
        name: "gelu-tanh",
        find: &[
            "(mul (mul ?x (add (tanh (mul (add ?x (mul (mul ?x (mul ?x ?x)) ?c4)) ?c1)) ?c2)) ?c5)",
            "(mul (mul ?x ?c5) (add (tanh (mul (add ?x (mul (mul ?x (mul ?x ?x)) ?c4)) ?c1)) ?c2))",
            "(mul ?x (mul (add (tanh (mul (add ?x (mul (mul ?x (mul ?x ?x)) ?c4)) ?c1)) ?c2) ?c5))",
        ],
        make: |m| {
            let is = |var, x| m.is_about(m.v(var), x);
            let all = is("?c1", (2.0 / PI).sqrt()) && is("?c2", 1.0) && is("?c4", 0.044715) && is("?c5", 0.5);
            all.then(|| act(m, Act::GeluTanh {}))?
        },
        rounding: Rounding::Other,
        witness: |b| {
            let x = x(b, &[2, 3]);
            let k = |v: f64| x.scalar_like(v);
            let inner = (x + x * (x * x) * k(0.044715)) * k((2.0 / PI).sqrt());
            x * k(0.5) * (inner.tanh() + k(1.0))
        },
    },
    Rule {
        name: "hard-sigmoid",
        find: &["(div (activation ?k (add ?x ?c1)) ?c2)"],
        make: |m| {
            // Of other numbers the quotient would round otherwise, and miss integers.
            let six = clip_from_zero(m)? == 6.0 && m.is_about(m.v("?c1"), 3.0) && m.is_about(m.v("?c2"), 6.0);
            six.then(|| act(m, Act::HardSigmoid { alpha: Real(1.0 / 6.0), beta: Real(0.5) }))?
        },
        rounding: Rounding::Other,
        witness: |b| {
            let x = x(b, &[2, 3]);
            clip6(x + x.scalar_like(3.0)) / x.scalar_like(6.0)
        },
    },
    Rule {
        name: "hard-swish-over",
        find: &["(div (mul ?x (activation ?k (add ?x ?c1))) ?c2)"],
        make: |m| {
            let six = clip_from_zero(m)? == 6.0 && m.is_about(m.v("?c1"), 3.0) && m.is_about(m.v("?c2"), 6.0);
            six.then(|| act(m, Act::HardSwish {}))?
        },
        rounding: Rounding::Other,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x * clip6(x + x.scalar_like(3.0)) / x.scalar_like(6.0)
        },
    },
    Rule {
        name: "hard-swish-times",
        find: &["(mul (mul ?x (activation ?k (add ?x ?c1))) ?c2)", "(mul ?x (mul (activation ?k (add ?x ?c1)) ?c2))"],
        make: |m| {
            let six = clip_from_zero(m)? == 6.0 && m.is_about(m.v("?c1"), 3.0) && m.is_about(m.v("?c2"), 1.0 / 6.0);
            six.then(|| act(m, Act::HardSwish {}))?
        },
        rounding: Rounding::Other,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x * clip6(x + x.scalar_like(3.0)) * x.scalar_like(1.0 / 6.0)
        },
    },
    Rule {
        name: "hard-swish",
        find: &["(mul ?x (activation ?k ?x))"],
        make: |m| {
            let Op::Activation(Activation { act: Act::HardSigmoid { alpha, beta } }) = m.op("?k") else { return None };
            ((alpha.0 - 1.0 / 6.0).abs() < 1e-7 && beta.0 == 0.5).then(|| act(m, Act::HardSwish {}))?
        },
        rounding: Rounding::Other,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x * b.op(Activation { act: Act::HardSigmoid { alpha: Real(1.0 / 6.0), beta: Real(0.5) } }, &[x])
        },
    },
    Rule {
        name: "softplus",
        find: &["(log (add (exp ?x) ?c))"],
        make: |m| m.is_about(m.v("?c"), 1.0).then(|| act(m, Act::Softplus {}))?,
        rounding: Rounding::Other,
        witness: |b| {
            let x = x(b, &[2, 3]);
            (x.exp() + x.scalar_like(1.0)).log()
        },
    },
    Rule {
        name: "mish",
        find: &["(mul ?x (tanh (activation ?k ?x)))"],
        make: |m| matches!(m.op("?k"), Op::Activation(Activation { act: Act::Softplus {} })).then(|| act(m, Act::Mish {}))?,
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x * b.op(Activation { act: Act::Softplus {} }, &[x]).tanh()
        },
    },
    Rule {
        name: "leaky-relu",
        find: &["(where (less ?x ?c0) (mul ?x ?c1) ?x)"],
        make: |m| {
            let alpha = Real(m.number(m.v("?c1"))?);
            (m.number(m.v("?c0")) == Some(0.0)).then(|| act(m, Act::LeakyRelu { alpha }))?
        },
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x.less(x.scalar_like(0.0)).select(x * x.scalar_like(0.25), x)
        },
    },
    Rule {
        name: "leaky-relu-max",
        find: &["(max ?x (mul ?x ?c))"],
        make: |m| {
            let alpha = m.number(m.v("?c")).filter(|a| (0.0..=1.0).contains(a))?;
            act(m, Act::LeakyRelu { alpha: Real(alpha) })
        },
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x.max(x * x.scalar_like(0.25))
        },
    },
    Rule {
        name: "softmax",
        find: &["(div (exp (sub ?x (reduce ?r ?x))) (reduce ?s (exp (sub ?x (reduce ?r ?x)))))"],
        make: |m| {
            let (Op::Reduce(r), Op::Reduce(s)) = (m.op("?r"), m.op("?s")) else { return None };
            let one_axis = r.axes == s.axes && r.axes.len() == 1 && r.keepdims && s.keepdims;
            let kinds = r.kind == ReduceKind::Max && s.kind == ReduceKind::Sum;
            (one_axis && kinds).then(|| m.b.op(Softmax { axis: r.axes[0] }, &[m.v("?x")]))
        },
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            let e = (x - x.max_keep(&[1])).exp();
            e / e.sum_keep(&[1])
        },
    },
    Rule {
        name: "softmax-unshifted",
        find: &["(div (exp ?x) (reduce ?s (exp ?x)))"],
        make: |m| {
            let Op::Reduce(s) = m.op("?s") else { return None };
            let one_axis = s.kind == ReduceKind::Sum && s.axes.len() == 1 && s.keepdims;
            one_axis.then(|| m.b.op(Softmax { axis: s.axes[0] }, &[m.v("?x")]))
        },
        rounding: Rounding::Other,
        witness: |b| {
            let e = x(b, &[2, 3]).exp();
            e / e.sum_keep(&[1])
        },
    },
    Rule {
        name: "layer-norm",
        find: &[
            "(mul (div (sub ?x (div (reduce ?r1 ?x) ?c1)) (sqrt (add (div (reduce ?r2 (mul (sub ?x (div (reduce ?r1 ?x) ?c1)) (sub ?x (div (reduce ?r1 ?x) ?c1)))) ?c2) ?c3))) ?g)",
        ],
        make: |m| {
            let (Op::Reduce(r), Op::Reduce(r2)) = (m.op("?r1"), m.op("?r2")) else { return None };
            let (x, g) = (m.v("?x"), m.v("?g"));
            let rank = x.ty().rank();
            let axis = *r.axes.first()?;
            let trailing = r == r2 && r.kind == ReduceKind::Sum && r.keepdims && r.axes.iter().copied().eq(axis..rank);
            let count = Dim::product(&x.ty().shape[axis..]).as_const()? as f64;
            let means = m.number(m.v("?c1")) == Some(count) && m.number(m.v("?c2")) == Some(count);
            let epsilon = Real(m.number(m.v("?c3"))?);
            (trailing && means && g.ty().shape == x.ty().shape[axis..]).then(|| m.b.op(LayerNorm { axis, epsilon }, &[x, g]))
        },
        rounding: Rounding::Same,
        witness: |b| normalised(x(b, &[2, 4])) * ramp(b, &[4], 0.5),
    },
    Rule {
        name: "layer-norm-bias",
        find: &["(add (layer_norm ?a ?x ?g) ?b)"],
        make: |m| {
            let (x, g, b) = (m.v("?x"), m.v("?g"), m.v("?b"));
            (b.ty() == g.ty() && m.sole("layer_norm", &["?a", "?x", "?g"])).then(|| m.b.op(m.op("?a").clone(), &[x, g, b]))
        },
        rounding: Rounding::Same,
        witness: |b| b.op(LayerNorm { axis: 1, epsilon: Real(1e-5) }, &[x(b, &[2, 4]), ramp(b, &[4], 0.5)]) + ramp(b, &[4], -0.5),
    },
];

/// An activation of `?x`.
fn act<'g>(m: &Match<'_, 'g>, act: Act) -> Option<V<'g>> {
    let x = m.v("?x");
    x.ty().dtype.is_float().then(|| m.b.op(Activation { act }, &[x]))
}

/// The upper end where `?k` clips from 0.
fn clip_from_zero(m: &Match) -> Option<f64> {
    match m.op("?k") {
        Op::Activation(Activation { act: Act::Clip { lo: Real(0.0), hi } }) => Some(hi.0),
        _ => None,
    }
}

fn clip6<'g>(x: V<'g>) -> V<'g> {
    x.builder().op(Activation { act: Act::Clip { lo: Real(0.0), hi: Real(6.0) } }, &[x])
}

/// `x` with mean 0 and variance 1 along its last axis, spelled out.
fn normalised<'g>(x: V<'g>) -> V<'g> {
    let axes = [x.ty().rank() - 1];
    let centred = x - x.mean_keep(&axes);
    centred / ((centred * centred).mean_keep(&axes) + x.scalar_like(1e-5)).sqrt()
}
