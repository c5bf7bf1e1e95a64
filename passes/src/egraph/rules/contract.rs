//! What joins a contraction: scales go into its weights; biases, residuals and activations into its epilogue; padding into its pads.

use super::{Contraction, Match, Rounding, Rule};
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::{Conv, MatMul, Post};
use nnc_ir::ops::movement::PadMode;
use nnc_ir::scalar::Out;
use nnc_ir::{Builder, DType, Dim, Op, Tensor, Type, V};

pub const RULES: &[Rule] = &[
    Rule {
        name: "batch-norm-as-affine",
        find: &["(batch_norm ?a ?x ?s ?b ?m ?v)"],
        make: |m| m.op("?a").as_composite()?.expand(&["?x", "?s", "?b", "?m", "?v"].map(|v| m.v(v))).ok()?.pop(),
        rounding: Rounding::Same,
        witness: |b| {
            let c = |seed: f32| ramp(b, &[3], seed);
            b.op(nnc_ir::ops::composite::norm::BatchNorm { epsilon: 1e-5.into() }, &[x(b, &[1, 3, 2, 2]), c(0.5), c(-1.0), c(0.25), c(1.0)])
        },
    },
    Rule {
        name: "scale-into-weights",
        find: &["(mul (contract ?a ?x ?w ?p) ?c)"],
        make: |m| {
            let mut y = m.contraction()?;
            let c = m.v("?c");
            if !m.constant(c) || !goes_into_weights(m, &y, c) {
                return None;
            }
            let s = y.per_channel(c)?;
            let rank = y.w.ty().rank();
            let mut shape = vec![Dim::Const(1); rank];
            let axis = match &y.op {
                Op::Conv(_) => 0,
                Op::ConvTranspose(t) if t.group == 1 => 1,
                Op::MatMul(t) if rank >= 2 => rank - 1 - usize::from(t.transposed),
                _ => return None,
            };
            shape[axis] = s.ty().shape[0].clone();
            y.w = y.w * s.reshape(shape);
            y.extra = y.extra.iter().map(|e| *e * s).collect();
            Some(y.build())
        },
        rounding: Rounding::Same,
        witness: |b| conv(b, &[Post::Bias]) * ramp(b, &[4, 1, 1], 0.5),
    },
    Rule {
        name: "scale-into-epilogue",
        find: &["(mul (contract ?a ?x ?w ?p) ?c)"],
        make: |m| {
            let (mut y, c) = (m.contraction()?, m.v("?c"));
            // Where the scale can go into the weights, it does.
            if goes_into_weights(m, &y, c) || !m.constant(c) {
                return None;
            }
            let s = y.per_channel(c)?;
            // Scales that came out of both factors of a product are one.
            let joins = y.extra.last().and_then(|e| m.number(*e).zip(m.number(c))).is_some_and(|(p, q)| is_moderate(p) && is_moderate(q));
            if y.post().last() == Some(&Post::Scale) && joins {
                let last = y.extra.pop()?;
                y.extra.push(last * s);
                return Some(y.build());
            }
            Some(y.then(Post::Scale, Some(s)))
        },
        rounding: Rounding::Same,
        witness: |b| conv(b, &[Post::Act(Act::Fn(nnc_ir::ScalarFn::Relu))]) * x(b, &[]).scalar_like(3.0),
    },
    Rule {
        name: "scale-out-of-matmul",
        find: &["(matmul ?a (mul ?x ?c) ?w ?p)", "(matmul ?a ?w (mul ?x ?c) ?p)"],
        make: |m| {
            let (Op::MatMul(mm), x, w, c) = (m.op("?a"), m.v("?x"), m.v("?w"), m.v("?c")) else { return None };
            let one = m.number(c).is_some_and(is_moderate) && c.ty().elems().is(1);
            let scaled = m.constant(c) && one && c.ty().rank() <= x.ty().rank() && m.sole("mul", &["?x", "?c"]);
            if !scaled || m.constant(x) || !mm.post.is_empty() || mm.is_packed() {
                return None;
            }
            let y = if m.pattern() == 0 { m.b.op(mm.clone(), &[x, w]) } else { m.b.op(mm.clone(), &[w, x]) };
            Some(y * c.reshape(vec![]))
        },
        rounding: Rounding::Other,
        witness: |b| {
            let scaled = x(b, &[3, 5]) * x(b, &[]).scalar_like(0.25);
            b.op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, &[x(b, &[2, 3]), scaled])
        },
    },
    Rule {
        name: "bias-into-epilogue",
        find: &["(add (contract ?a ?x ?w ?p) ?r)"],
        make: |m| {
            let mut y = m.contraction()?;
            let r = m.v("?r");
            let bias = y.per_channel(r)?;
            // An epilogue may round less than its steps do one by one.
            if m.number(r).is_some_and(|n| n.abs() > MAX_BIAS) {
                return None;
            }
            let joins = m.constant(r) && y.extra.last().is_some_and(|e| m.constant(*e) && m.shifts_join(*e, r));
            if y.post().last() == Some(&Post::Bias) && joins {
                let last = y.extra.pop()?;
                y.extra.push(last + bias);
                return Some(y.build());
            }
            Some(y.then(Post::Bias, Some(bias)))
        },
        rounding: Rounding::Same,
        witness: |b| matmul(b, false) + ramp(b, &[5], 0.5),
    },
    Rule {
        name: "residual-into-epilogue",
        find: &["(add (contract ?a ?x ?w ?p) ?r)"],
        make: |m| {
            let y = m.contraction()?;
            let r = m.v("?r");
            (!m.constant(r) && r.ty() == y.ty()).then(|| y.then(Post::Add, Some(r)))
        },
        rounding: Rounding::Same,
        witness: |b| conv(b, &[Post::Bias]) + x(b, &[1, 4, 4, 4]),
    },
    Rule {
        name: "function-into-epilogue",
        find: &["(unary (contract ?a ?x ?w ?p))"],
        make: |m| {
            let (y, f) = (m.contraction()?, m.function());
            (f.out() == Out::Same && f.domain().contains(y.ty().dtype)).then(|| y.then(Post::Act(Act::Fn(f)), None))
        },
        rounding: Rounding::Same,
        witness: |b| conv(b, &[]).relu(),
    },
    Rule {
        name: "activation-into-epilogue",
        find: &["(activation ?f (contract ?a ?x ?w ?p))"],
        make: |m| {
            let Op::Activation(f) = m.op("?f") else { return None };
            Some(m.contraction()?.then(Post::Act(f.act), None))
        },
        rounding: Rounding::Same,
        witness: |b| {
            let act = Act::Clip { lo: 0.0.into(), hi: 6.0.into() };
            b.op(nnc_ir::ops::composite::activation::Activation { act }, &[conv(b, &[])])
        },
    },
    Rule {
        name: "pad-into-conv",
        find: &["(conv ?a (pad ?q ?x) ?w ?p)"],
        make: |m| {
            let (Op::Conv(conv), Op::Pad(pad)) = (m.op("?a"), m.op("?q")) else { return None };
            let spatial = |d: &[Dim]| -> Option<Vec<i64>> {
                let d: Vec<i64> = d.iter().map(Dim::as_const).collect::<Option<_>>()?;
                (d[0] == 0 && d[1] == 0 && d.iter().all(|p| (0..=i32::MAX as i64).contains(p))).then(|| d[2..].to_vec())
            };
            let new = [spatial(&pad.lo)?, spatial(&pad.hi)?].concat();
            if pad.mode != PadMode::Constant {
                return None;
            }
            let pads = if conv.pads.is_empty() { vec![0; new.len()] } else { conv.pads.clone() };
            let pads = pads.iter().zip(&new).map(|(a, b)| a.checked_add(*b)).collect::<Option<_>>()?;
            let x: Vec<V> = [m.v("?x"), m.v("?w")].into_iter().chain(m.list("?p")).collect();
            Some(m.b.op(Conv { pads, ..conv.clone() }, &x))
        },
        rounding: Rounding::Same,
        witness: |b| {
            let one = || [0, 0, 1, 1].map(Dim::Const).to_vec();
            b.op(
                Conv { strides: vec![], dilations: vec![], pads: vec![], group: 1, layout: Default::default(), inputs: 0, outputs: 0, post: vec![] },
                &[x(b, &[1, 3, 4, 4]).pad_zero(one(), one()), ramp(b, &[4, 3, 3, 3], 0.1)],
            )
        },
    },
    Rule {
        name: "transpose-into-matmul",
        find: &["(matmul ?a ?x (transpose ?t ?w) ?p)"],
        make: |m| {
            let (Op::MatMul(mm), Op::Transpose(t)) = (m.op("?a"), m.op("?t")) else { return None };
            let n = t.perm.len();
            let swaps = n >= 2 && t.perm[..n - 2].iter().copied().eq(0..n - 2) && t.perm[n - 2..] == [n - 1, n - 2];
            if !swaps || mm.is_packed() {
                return None;
            }
            let x: Vec<V> = [m.v("?x"), m.v("?w")].into_iter().chain(m.list("?p")).collect();
            Some(m.b.op(MatMul { transposed: !mm.transposed, ..mm.clone() }, &x))
        },
        rounding: Rounding::Same,
        witness: |b| b.op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, &[x(b, &[2, 3]), x(b, &[5, 3]).transpose(&[1, 0])]),
    },
];

impl<'g> Contraction<'g> {
    /// The type of the result.
    pub fn ty(&self) -> Type {
        let x: Vec<Type> = [self.x, self.w].iter().chain(&self.extra).map(|v| v.ty()).collect();
        nnc_ir::builder::infer(&self.op, &x, &[]).map(|mut t| t.remove(0)).unwrap_or_else(|_| self.x.ty())
    }

    /// `c`, broadcast against the result, as one element an output channel `[C]`; `None` where it is more than that.
    fn per_channel(&self, c: V<'g>) -> Option<V<'g>> {
        let (y, t) = (self.ty(), c.ty());
        let axis = if matches!(self.op, Op::MatMul(_)) { y.rank().checked_sub(1)? } else { 1 };
        let channels = y.shape.get(axis)?.clone();
        // A matrix times a vector has no channels.
        if t.rank() > y.rank() || t.dtype != y.dtype || (matches!(self.op, Op::MatMul(_)) && self.w.ty().rank() < 2) {
            return None;
        }
        let skip = y.rank() - t.rank();
        let at_channel = axis.checked_sub(skip).map(|i| t.shape[i].clone()).unwrap_or(Dim::Const(1));
        let others_are_one = t.shape.iter().enumerate().all(|(i, d)| i + skip == axis || d.is(1));
        match at_channel {
            _ if !others_are_one => None,
            d if d == channels => Some(c.reshape(vec![channels])),
            d if d.is(1) => Some(c.reshape(vec![Dim::Const(1)]).expand(vec![channels])),
            _ => None,
        }
    }
}

/// Beyond this a number that is added to all elements is taken to be there for its rounding.
const MAX_BIAS: f64 = 1024.0;

/// Whether a contraction's weights and biases can be scaled by the constant `c` beforehand.
fn goes_into_weights<'g>(m: &Match<'_, 'g>, y: &Contraction<'g>, c: V<'g>) -> bool {
    m.constant(y.w) && y.post().iter().all(|p| *p == Post::Bias) && m.number(c).is_none_or(is_moderate)
}

/// Whether sums of products may be scaled before or after by this number: neither overflows or vanishes where the other does not.
fn is_moderate(scale: f64) -> bool {
    (2f64.powi(-24)..=2f64.powi(24)).contains(&scale.abs())
}

/// An input of small, different numbers is for the tests to fill.
pub(super) fn x<'g>(b: &'g Builder, shape: &[i64]) -> V<'g> {
    b.input("x", Type::of(DType::F32, shape))
}

/// A constant that counts up from `first`.
pub(super) fn ramp<'g>(b: &'g Builder, shape: &[usize], first: f32) -> V<'g> {
    let n: usize = shape.iter().product();
    b.constant(Tensor::new(shape, &(0..n).map(|i| first + 0.125 * (i % 13) as f32).collect::<Vec<f32>>()))
}

/// A convolution of 3 to 4 channels with `post`, whose operands are constants.
fn conv<'g>(b: &'g Builder, post: &[Post]) -> V<'g> {
    let op = Conv {
        strides: vec![],
        dilations: vec![],
        pads: vec![1; 4],
        group: 1,
        layout: Default::default(),
        inputs: 0,
        outputs: 0,
        post: post.to_vec(),
    };
    let extra = post.iter().filter(|p| p.has_operand()).map(|_| ramp(b, &[4], -0.5));
    b.op(op, &[x(b, &[1, 3, 4, 4]), ramp(b, &[4, 3, 3, 3], -0.75)].into_iter().chain(extra).collect::<Vec<_>>())
}

fn matmul<'g>(b: &'g Builder, transposed: bool) -> V<'g> {
    b.op(MatMul { transposed, packed: Dim::Const(0), post: vec![] }, &[x(b, &[2, 3]), ramp(b, if transposed { &[5, 3] } else { &[3, 5] }, -0.5)])
}
