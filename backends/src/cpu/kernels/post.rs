//! What a kernel does to its results in registers, before it stores them.

use super::contract::Place;
use super::math;
use crate::cpu::vir::{Addr, Builder, V, VBin, VCmp};

/// One step of an epilogue.
#[derive(Clone, PartialEq, Debug)]
pub enum Post {
    /// `+ t`, a tensor walked like the output. It may be the output's own memory.
    AddTensor(Place),
    /// `* v[channel]`: the word of a vector of f32, padded to 16.
    MulChannel(u32),
    /// `+ v[channel]`, likewise.
    AddChannel(u32),
    Act(Act),
}

/// A function of one value. All return NaN for NaN.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Act {
    Relu,
    /// `min(max(x, lo), hi)`
    Clip {
        lo: f32,
        hi: f32,
    },
    /// `x < 0 ? a*x : x`
    LeakyRelu {
        a: f32,
    },
    Sigmoid,
    Tanh,
    /// `min(max(a*x + b, 0), 1)`
    HardSigmoid {
        a: f32,
        b: f32,
    },
    /// `x * min(max(x/6 + 0.5, 0), 1)`
    HardSwish,
    /// `x * sigmoid(x)`
    Silu,
    /// `0.5*x*(1 + erf(x/sqrt(2)))`
    Gelu,
    /// `0.5*x*(1 + tanh(sqrt(2/pi)*(x + 0.044715*x^3)))`
    GeluTanh,
    Exp,
    Log,
    /// `x < 0 ? a*(exp(x) - 1) : x`
    Elu {
        a: f32,
    },
    /// `log(1 + exp(x))`
    Softplus,
    /// `x * tanh(softplus(x))`
    Mish,
    Erf,
    Abs,
    Neg,
    Sqrt,
    Floor,
    Ceil,
}

impl Act {
    /// Whether it wants more temporary registers than a register tile leaves free.
    pub fn heavy(self) -> bool {
        !matches!(self, Act::Relu | Act::Clip { .. } | Act::LeakyRelu { .. } | Act::Abs | Act::Neg | Act::Sqrt | Act::Floor | Act::Ceil)
    }

    /// Applies the function to a few vectors, so that constants are loaded once.
    pub fn apply(self, b: &mut Builder, xs: &[V]) -> Vec<V> {
        use crate::cpu::vir::VUn;
        match self {
            Act::Relu => {
                let zero = b.constant(0.0);
                xs.iter().map(|x| b.max(zero, *x)).collect()
            }
            Act::Clip { lo, hi } => {
                let (lo, hi) = (b.constant(lo), b.constant(hi));
                xs.iter()
                    .map(|x| {
                        let y = b.max(lo, *x);
                        b.min(hi, y)
                    })
                    .collect()
            }
            Act::LeakyRelu { a } => {
                let zero = b.constant(0.0);
                xs.iter()
                    .map(|x| {
                        let m = b.cmp(VCmp::Lt, *x, zero);
                        let y = b.mul(*x, a);
                        b.select(m, y, *x)
                    })
                    .collect()
            }
            Act::Sqrt => xs.iter().map(|x| b.un(VUn::Sqrt, *x)).collect(),
            Act::Floor => xs.iter().map(|x| b.un(VUn::Floor, *x)).collect(),
            Act::Ceil => xs.iter().map(|x| b.un(VUn::Ceil, *x)).collect(),
            Act::Abs => xs.iter().map(|x| b.abs(*x)).collect(),
            Act::Neg => xs.iter().map(|x| b.neg(*x)).collect(),
            _ => xs.iter().map(|x| self.one(b, *x)).collect(),
        }
    }

    fn one(self, b: &mut Builder, x: V) -> V {
        match self {
            Act::Sigmoid => math::sigmoid(b, x),
            Act::Tanh => math::tanh(b, x),
            Act::HardSigmoid { a, b: c } => hard_sigmoid(b, x, a, c),
            Act::HardSwish => {
                let h = hard_sigmoid(b, x, 1.0 / 6.0, 0.5);
                b.mul(x, h)
            }
            Act::Silu => math::silu(b, x),
            Act::Gelu => {
                let h = b.mul(x, std::f32::consts::FRAC_1_SQRT_2);
                let e = math::erf(b, h);
                gate(b, x, e)
            }
            Act::GeluTanh => {
                let x2 = b.mul(x, x);
                let p = b.poly(x2, &[0.044715, 1.0]);
                let u = b.mul(x, p);
                let u = b.mul(u, 0.797_884_6);
                let t = math::tanh(b, u);
                gate(b, x, t)
            }
            Act::Exp => math::exp(b, x),
            Act::Log => math::log(b, x),
            Act::Elu { a } => {
                let e = math::expm1(b, x);
                let y = b.mul(e, a);
                let m = b.cmp(VCmp::Lt, x, 0.0);
                b.select(m, y, x)
            }
            Act::Softplus => math::softplus(b, x),
            Act::Mish => {
                let s = math::softplus(b, x);
                let t = math::tanh(b, s);
                let y = b.mul(x, t);
                let zero = b.constant(-0.0);
                let m = b.cmp(VCmp::Lt, x, -3.0e38);
                b.select(m, zero, y)
            }
            Act::Erf => math::erf(b, x),
            light => light.apply(b, &[x])[0],
        }
    }
}

fn hard_sigmoid(b: &mut Builder, x: V, a: f32, c: f32) -> V {
    let c = b.constant(c);
    let y = b.fma(x, a, c);
    let (zero, one) = (b.constant(0.0), b.constant(1.0));
    let y = b.max(zero, y);
    b.min(one, y)
}

/// `0.5*x*(1 + t)` with `t` in [-1, 1]; -0 where `x` is -infinity.
fn gate(b: &mut Builder, x: V, t: V) -> V {
    let h = b.mul(x, 0.5);
    let t1 = b.add(t, 1.0);
    let y = b.mul(h, t1);
    let zero = b.constant(-0.0);
    let m = b.cmp(VCmp::Lt, x, -3.0e38);
    b.select(m, zero, y)
}

/// Where an epilogue finds its operands.
pub(crate) trait Operands {
    /// The value that tensor `n` (in the order of the steps) adds to result `i`.
    fn tensor(&self, b: &mut Builder, n: usize, i: usize) -> V;
    /// Channels of column `v` from the vector of step `step`.
    fn channels(&self, b: &mut Builder, step: usize, v: usize) -> V;
}

/// Applies all steps to a tile of results, `xs[row * cols + column]`; the results are in fresh registers.
pub(crate) fn epilogue(b: &mut Builder, steps: &[Post], mut xs: Vec<V>, cols: usize, from: &impl Operands) -> Vec<V> {
    let mut tensors = 0;
    for (n, step) in steps.iter().enumerate() {
        match step {
            Post::AddTensor(_) => {
                for (i, x) in xs.iter_mut().enumerate() {
                    let t = from.tensor(b, tensors, i);
                    *x = b.add(*x, t);
                }
                tensors += 1;
            }
            Post::MulChannel(_) | Post::AddChannel(_) => {
                let op = if let Post::MulChannel(_) = step { VBin::Mul } else { VBin::Add };
                for v in 0..cols {
                    let t = from.channels(b, n, v);
                    for x in xs.iter_mut().skip(v).step_by(cols) {
                        *x = b.bin(op, *x, t);
                    }
                }
            }
            Post::Act(act) if act.heavy() => xs = through_memory(b, *act, &xs),
            Post::Act(act) => xs = act.apply(b, &xs),
        }
    }
    xs
}

/// Applies a heavy function one vector at a time, through the frame: a register tile has no registers left for temporaries, and
/// a tile is short work beside such a function. The results are in fresh registers.
fn through_memory(b: &mut Builder, act: Act, xs: &[V]) -> Vec<V> {
    let width = b.width();
    let bytes = width * xs.len() as i64;
    let frame = b.frame(bytes as u32);
    for (n, x) in xs.iter().enumerate() {
        b.store(Addr::from(frame).off(n as i64 * width), *x);
    }
    b.for_(0, bytes, width, |b, at| {
        let x = b.load(Addr::from(frame).idx(at, 1));
        let y = act.apply(b, &[x])[0];
        b.store(Addr::from(frame).idx(at, 1), y);
    });
    (0..xs.len()).map(|n| b.load(Addr::from(frame).off(n as i64 * width))).collect()
}
