//! Accuracy of vector functions over their whole range, and their values at the edges.

mod support;

use nnc_backends::cpu::isa::Isa;
use nnc_backends::cpu::kernels::post::Act;
use nnc_backends::cpu::kernels::{Factor, Kernel, Size, Tasks};
use nnc_backends::cpu::vir::{Addr, Builder};
use support::{Engine, Word, engines, run};

/// Applies `act` to a buffer in place, as many vectors as fit.
fn map(act: Act, isa: Isa, len: usize) -> Kernel {
    let mut b = Builder::new("map", isa.lanes());
    let p = b.word(0);
    let width = b.width();
    b.for_(0, len as i64 * 4, width, |b, at| {
        let x = b.load(Addr::from(p).idx(at, 1));
        let y = act.apply(b, &[x])[0];
        b.store(Addr::from(p).idx(at, 1), y);
    });
    Kernel { func: b.finish(), tasks: Tasks(vec![Factor::Size(Size::Const(1))]) }
}

fn apply(act: Act, isa: Isa, engine: Engine, xs: &[f32]) -> Vec<f32> {
    let mut bufs = [xs.to_vec()];
    bufs[0].resize(xs.len().next_multiple_of(16), 0.0);
    let kernel = map(act, isa, bufs[0].len());
    run(&kernel, isa, engine, &mut bufs, &[Word::Buf(0)]).unwrap_or_else(|e| panic!("{act:?}: {e}"));
    bufs[0].truncate(xs.len());
    bufs[0].clone()
}

/// Distance in units of the last place of the wanted value; an absolute error below the smallest normal number counts as none.
fn ulps(got: f32, want: f64) -> f64 {
    let w = want as f32;
    if got == w || got.is_nan() && w.is_nan() {
        return 0.0;
    }
    let next = f32::from_bits(w.abs().to_bits() + 1) - w.abs();
    (f64::from(got) - want).abs() / f64::from(next.max(f32::from_bits(1)))
}

/// A function, what it computes, the range over which it is scanned, and its tolerance: ulps, or absolute where the result cancels.
type Row = (Act, fn(f64) -> f64, (f32, f32), f64, f64);

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

const TABLE: &[Row] = &[
    (Act::Exp, |x| x.exp(), (-110.0, 95.0), 1.5, 0.0),
    (Act::Log, |x| x.ln(), (0.0, 1e6), 2.0, 0.0),
    (Act::Sigmoid, sigmoid, (-87.0, 40.0), 3.0, 0.0),
    (Act::Tanh, |x| x.tanh(), (-12.0, 12.0), 5.5, 0.0),
    (Act::Erf, |x| libm::erf(x), (-6.0, 6.0), 6.5, 0.0),
    (Act::Softplus, softplus, (-85.0, 90.0), 4.0, 0.0),
    (Act::Silu, |x| x * sigmoid(x), (-80.0, 40.0), 4.0, 0.0),
    (Act::Elu { a: 1.0 }, |x| if x < 0.0 { x.exp_m1() } else { x }, (-20.0, 3.0), 3.0, 0.0),
    (Act::Gelu, |x| 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())), (-8.0, 8.0), 0.0, 1.5e-6),
    (Act::GeluTanh, |x| 0.5 * x * (1.0 + (0.7978845608028654 * (x + 0.044715 * x * x * x)).tanh()), (-8.0, 8.0), 0.0, 1.5e-6),
    (Act::Mish, |x| x * softplus(x).tanh(), (-20.0, 20.0), 10.0, 1e-7),
    (Act::HardSwish, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0), (-5.0, 5.0), 0.0, 1e-6),
];

#[test]
fn accuracy() {
    for (isa, engine) in engines() {
        let points = if engine == Engine::Native { 200_000 } else { 2_000 };
        for (act, f, (lo, hi), max_ulps, max_abs) in TABLE {
            let mut xs: Vec<f32> = (0..points).map(|i| lo + (hi - lo) * (i as f32 / points as f32)).collect();
            // Small magnitudes of both signs, where an error relative to the result shows.
            xs.extend((0..60).flat_map(|e| [0.7f32 * 0.5f32.powi(e), -1.3 * 0.5f32.powi(e)]).filter(|x| *x >= *lo));
            let ys = apply(*act, isa, engine, &xs);
            let (worst, at) = xs
                .iter()
                .zip(&ys)
                .filter(|(x, y)| (f64::from(**y) - f(f64::from(**x))).abs() > *max_abs)
                .map(|(x, y)| (ulps(*y, f(f64::from(*x))), *x))
                .fold((0.0, 0.0), |m, x| if x.0 > m.0 { x } else { m });
            assert!(worst <= *max_ulps, "{isa:?} {engine:?} {act:?}: {worst} ulps at {at}");
        }
    }
}

#[test]
fn edges() {
    let inf = f32::INFINITY;
    // At -infinity, +infinity and zero.
    let table = [
        (Act::Exp, [0.0, inf, 1.0]),
        (Act::Log, [f32::NAN, inf, -inf]),
        (Act::Sigmoid, [0.0, 1.0, 0.5]),
        (Act::Tanh, [-1.0, 1.0, 0.0]),
        (Act::Erf, [-1.0, 1.0, 0.0]),
        (Act::Softplus, [0.0, inf, 2f32.ln()]),
        (Act::Silu, [0.0, inf, 0.0]),
        (Act::Elu { a: 2.0 }, [-2.0, inf, 0.0]),
        (Act::Gelu, [0.0, inf, 0.0]),
        (Act::GeluTanh, [0.0, inf, 0.0]),
        (Act::Mish, [0.0, inf, 0.0]),
        (Act::HardSigmoid { a: 0.2, b: 0.5 }, [0.0, 1.0, 0.5]),
        (Act::Relu, [0.0, inf, 0.0]),
        (Act::Clip { lo: -1.0, hi: 2.0 }, [-1.0, 2.0, 0.0]),
        (Act::LeakyRelu { a: 0.5 }, [-inf, inf, 0.0]),
        (Act::Sqrt, [f32::NAN, inf, 0.0]),
        (Act::Abs, [inf, inf, 0.0]),
    ];
    for (isa, engine) in engines() {
        for (act, want) in table {
            let ys = apply(act, isa, engine, &[-inf, inf, 0.0, f32::NAN]);
            for (got, want) in ys.iter().zip(want) {
                assert!(*got == want || got.is_nan() && want.is_nan() || (got - want).abs() < 1e-6, "{isa:?} {engine:?} {act:?}: {ys:?}");
            }
            assert!(ys[3].is_nan(), "{isa:?} {engine:?} {act:?} of NaN is {}", ys[3]);
        }
    }
}
