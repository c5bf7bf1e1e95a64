//! Composites.

use super::{Example, Values, case};
use crate::ops::composite::activation::{Act, Activation};
use crate::ops::composite::attention::Attention;
use crate::ops::composite::filter::WinogradFilter;
use crate::ops::composite::norm::{BatchNorm, InstanceNorm, LayerNorm, LogSoftmax, Lrn, RmsNorm, Softmax};
use crate::ops::composite::update::{Adam, Momentum};
use crate::ops::gradient::StopGrad;
use crate::scalar::ScalarFn;

pub(super) fn examples() -> Vec<Example> {
    [activations(), attention(), normalisations(), filters(), updates()].concat()
}

fn updates() -> Vec<Example> {
    let adam = |weight_decay: f64| Adam { beta1: 0.9.into(), beta2: 0.999.into(), epsilon: 1e-3.into(), weight_decay: weight_decay.into() };
    let momentum = |nesterov| Momentum { momentum: 0.9.into(), nesterov, weight_decay: 0.1.into() };
    let on = |name: &str, op: Adam, x: &[&str]| case(name, op, x).values(3, Values::Range(1, 5)).values(5, Values::Range(1, 2));
    let (w, n) = ("f32[3,19]", "f32[]");
    vec![
        on("f32", adam(0.0), &[w, w, w, w, n, n]),
        on("decay", adam(0.1), &[w, w, w, w, n, n, n]),
        on("f64", adam(0.1), &["f64[7]", "f64[7]", "f64[7]", "f64[7]", "f64[]", "f64[]"]),
        on("stretched", adam(0.0), &[w, w, "f32[19]", "f32[3,1]", "f32[1]", n]),
        on("symbolic", adam(0.0), &["f32[N,K]", "f32[N,K]", "f32[N,K]", "f32[N,K]", n, n]),
        case("f32", momentum(false), &[w, w, w, n]),
        case("nesterov", momentum(true), &[w, w, w, n, n]),
        case("f64", momentum(true), &["f64[7]", "f64[7]", "f64[7]", "f64[]"]),
        case("symbolic", momentum(false), &["f32[N,K]", "f32[N,K]", "f32[N,K]", n]),
    ]
}

fn attention() -> Vec<Example> {
    let scaled = || Attention { scale: 0.25.into() };
    vec![
        case("f32", scaled(), &["f32[2,3,5,4]", "f32[2,3,7,4]", "f32[2,3,7,6]"]),
        case("blocks", Attention { scale: 1.0.into() }, &["f32[2,37,16]", "f32[2,150,16]", "f32[2,150,32]"]),
        case("mask", scaled(), &["f32[2,19,16]", "f32[2,21,16]", "f32[2,21,16]", "f32[1,21,19]"]),
        case("mask.keys", scaled(), &["f32[2,2,19,16]", "f32[2,2,5,16]", "f32[2,2,5,16]", "f32[2,1,5,1]"]),
        case("large", scaled(), &["f32[3,16]", "f32[40,16]", "f32[40,16]", "f32[40,3]"]).values(3, Values::Range(-500, 500)),
        case("no_keys", scaled(), &["f32[2,13,16]", "f32[2,0,16]", "f32[2,0,16]"]),
        case("symbolic", scaled(), &["f32[N,L,16]", "f32[N,H,16]", "f32[N,H,16]", "f32[1,H,L]"]),
        case("f64", scaled(), &["f64[2,4]", "f64[3,4]", "f64[3,5]"]),
        case("f16", scaled(), &["f16[2,4]", "f16[3,4]", "f16[3,5]"]),
    ]
}

fn filters() -> Vec<Example> {
    vec![
        case("tile2", WinogradFilter { tile: 2, block: 4 }, &["f32[5,3,3,3]"]),
        case("tile4", WinogradFilter { tile: 4, block: 4 }, &["f32[4,8,3,3]"]),
        case("taps2", WinogradFilter { tile: 3, block: 4 }, &["f32[4,3,2,2]"]),
        case("taps4", WinogradFilter { tile: 3, block: 4 }, &["f32[4,3,4,4]"]),
        case("taps5", WinogradFilter { tile: 2, block: 4 }, &["f32[4,3,5,5]"]),
        case("f64", WinogradFilter { tile: 4, block: 2 }, &["f64[2,1,3,3]"]),
        case("symbolic", WinogradFilter { tile: 2, block: 4 }, &["f32[N,K,3,3]"]),
    ]
}

fn activations() -> Vec<Example> {
    let (a, b) = (0.3.into(), 0.6.into());
    let acts = [
        ("fn", Act::Fn(ScalarFn::Tanh)),
        ("clip", Act::Clip { lo: (-1.0).into(), hi: 2.0.into() }),
        ("leaky_relu", Act::LeakyRelu { alpha: a }),
        ("elu", Act::Elu { alpha: a }),
        ("selu", Act::Selu { alpha: 1.6732.into(), gamma: 1.0507.into() }),
        ("celu", Act::Celu { alpha: a }),
        ("hard_sigmoid", Act::HardSigmoid { alpha: a, beta: b }),
        ("hard_swish", Act::HardSwish {}),
        ("silu", Act::Swish { alpha: 1.0.into() }),
        ("swish", Act::Swish { alpha: a }),
        ("gelu", Act::Gelu {}),
        ("gelu_tanh", Act::GeluTanh {}),
        ("softplus", Act::Softplus {}),
        ("softsign", Act::Softsign {}),
        ("mish", Act::Mish {}),
        ("thresholded_relu", Act::ThresholdedRelu { alpha: a }),
    ];
    let mut out: Vec<Example> = acts
        .into_iter()
        .flat_map(|(name, act)| {
            let on = |d: &str, x: &str| case(&format!("{name}.{d}"), Activation { act }, &[x]);
            [on("f32", "f32[3,19]"), on("f64", "f64[7]"), on("f16", "f16[7]"), on("symbolic", "f32[N,5]")]
        })
        .collect();
    let whole = Activation { act: Act::Clip { lo: 0.0.into(), hi: 6.0.into() } };
    out.extend([case("clip.i8", whole.clone(), &["i8[9]"]), case("clip.edges", whole, &["f32[40]"]).values(0, Values::Edges)]);
    out
}

fn normalisations() -> Vec<Example> {
    let eps = || 1e-5.into();
    let batch = |name: &str, x: &str, c: &str| case(name, BatchNorm { epsilon: eps() }, &[x, c, c, c, c]).values(4, Values::Range(1, 5));
    let layer = |axis| LayerNorm { axis, epsilon: eps() };
    let lrn = |size| Lrn { size, alpha: 0.1.into(), beta: 0.75.into(), bias: 1.0.into() };
    vec![
        case("f32", Softmax { axis: 1 }, &["f32[3,10]"]),
        case("inner", Softmax { axis: 1 }, &["f32[2,5,3]"]),
        case("first", Softmax { axis: 0 }, &["f32[5,4]"]),
        case("long", Softmax { axis: 1 }, &["f32[2,100]"]),
        case("symbolic", Softmax { axis: 1 }, &["f32[N,L]"]),
        case("f64", Softmax { axis: 0 }, &["f64[9]"]),
        case("f16", Softmax { axis: 1 }, &["f16[2,9]"]),
        case("large", Softmax { axis: 1 }, &["f32[2,9]"]).values(0, Values::Range(-500, 500)),
        case("f32", LogSoftmax { axis: 1 }, &["f32[3,10]"]),
        case("symbolic", LogSoftmax { axis: 0 }, &["f32[N,L]"]),
        case("large", LogSoftmax { axis: 1 }, &["f32[2,9]"]).values(0, Values::Range(-500, 500)),
        case("f32", RmsNorm { axis: 1, epsilon: eps() }, &["f32[3,8]", "f32[8]"]),
        case("symbolic", RmsNorm { axis: 2, epsilon: eps() }, &["f32[N,L,5]", "f32[5]"]),
        batch("flat", "f32[3,5]", "f32[5]"),
        batch("image", "f32[2,3,4,5]", "f32[3]"),
        batch("symbolic", "f32[N,3,H,W]", "f32[3]"),
        batch("f64", "f64[2,3,4]", "f64[3]"),
        case("f32", layer(1), &["f32[3,16]", "f32[16]", "f32[16]"]),
        case("no_bias", layer(1), &["f32[3,10]", "f32[10]"]),
        case("two_axes", layer(1), &["f32[2,3,4]", "f32[3,4]", "f32[3,4]"]),
        case("symbolic", layer(2), &["f32[N,L,8]", "f32[8]", "f32[8]"]),
        case("f16", layer(1), &["f16[3,16]", "f16[16]", "f16[16]"]),
        case("image", InstanceNorm { epsilon: eps() }, &["f32[2,3,4,5]", "f32[3]", "f32[3]"]),
        case("symbolic", InstanceNorm { epsilon: eps() }, &["f32[N,3,H,W]", "f32[3]", "f32[3]"]),
        case("odd", lrn(3), &["f32[2,5,3,3]"]),
        case("even", lrn(4), &["f32[1,6,4]"]),
        case("wide", lrn(9), &["f32[1,4,2,2]"]),
        case("symbolic", lrn(5), &["f32[N,6,H,W]"]),
        case("f32", StopGrad {}, &["f32[3,5]"]),
    ]
}
