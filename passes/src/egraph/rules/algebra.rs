//! Arithmetic on elements.

use super::contract::{ramp, x};
use super::{Rounding, Rule};
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::map::Cast;
use nnc_ir::ops::reduce::{Reduce, ReduceKind};
use nnc_ir::{DType, Op, ScalarFn, Tensor};

pub const RULES: &[Rule] = &[
    Rule {
        name: "neutral-element",
        find: &["(mul ?x ?c)", "(add ?x ?c)"],
        make: |m| {
            let c = m.number(m.v("?c"))?;
            // -0 plus 0 is 0.
            let nothing = c == 0.0 && (c.is_sign_negative() || !m.v("?x").ty().dtype.is_float());
            (if m.root() == "mul" { c == 1.0 } else { nothing }).then(|| m.v("?x"))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]) * x(b, &[2, 3]).scalar_like(1.0),
    },
    Rule {
        name: "neutral-right-element",
        find: &["(div ?x ?c)", "(sub ?x ?c)", "(pow ?x ?c)"],
        make: |m| {
            let c = m.number(m.v("?c"))?;
            let nothing = c == 0.0 && c.is_sign_positive();
            (if m.root() == "sub" { nothing } else { c == 1.0 }).then(|| m.v("?x"))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]) / x(b, &[2, 3]).scalar_like(1.0),
    },
    Rule {
        name: "twice-is-nothing",
        find: &["(neg (neg ?x))", "(not (not ?x))", "(bitwise_not (bitwise_not ?x))"],
        make: |m| Some(m.v("?x")),
        rounding: Rounding::Same,
        witness: |b| -(-x(b, &[2, 3])),
    },
    Rule {
        name: "twice-is-once",
        find: &["(relu (relu ?x))", "(abs (abs ?x))", "(floor (floor ?x))", "(ceil (ceil ?x))", "(round (round ?x))", "(trunc (trunc ?x))"],
        make: |m| Some(m.v("?x").map(ScalarFn::from_name(m.root())?)),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).relu().relu(),
    },
    Rule {
        name: "of-itself",
        find: &["(max ?x ?x)", "(min ?x ?x)", "(and ?x ?x)", "(or ?x ?x)", "(where ?c ?x ?x)"],
        make: |m| Some(m.v("?x")),
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            x.max(x)
        },
    },
    Rule {
        name: "decided-choice",
        find: &["(where ?c ?x ?y)"],
        make: |m| Some(m.v(if m.number(m.v("?c"))? == 0.0 { "?y" } else { "?x" })),
        rounding: Rounding::Same,
        witness: |b| {
            let x = x(b, &[2, 3]);
            b.constant(Tensor::scalar_of(DType::Bool, 0.0)).select(x.relu(), x)
        },
    },
    Rule {
        name: "abs-of-neg",
        find: &["(abs (neg ?x))"],
        make: |m| Some(m.v("?x").abs()),
        rounding: Rounding::Same,
        witness: |b| (-x(b, &[2, 3])).abs(),
    },
    Rule {
        name: "add-neg",
        find: &["(add ?x (neg ?y))"],
        make: |m| Some(m.v("?x") - m.v("?y")),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]) + -x(b, &[2, 3]),
    },
    Rule {
        name: "sub-constant",
        find: &["(sub ?x ?c)"],
        make: |m| m.constant(m.v("?c")).then(|| m.v("?x") + -m.v("?c")),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]) - ramp(b, &[3], 0.5),
    },
    Rule {
        name: "square",
        find: &["(pow ?x ?c)"],
        make: |m| (m.number(m.v("?c")) == Some(2.0)).then(|| m.v("?x") * m.v("?x")),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).pow(x(b, &[2, 3]).scalar_like(2.0)),
    },
    Rule {
        name: "cube",
        find: &["(pow ?x ?c)"],
        make: |m| (m.number(m.v("?c")) == Some(3.0)).then(|| m.v("?x") * (m.v("?x") * m.v("?x"))),
        rounding: Rounding::Other,
        witness: |b| x(b, &[2, 3]).pow(x(b, &[2, 3]).scalar_like(3.0)),
    },
    Rule {
        name: "pow-reciprocal",
        find: &["(pow ?x ?c)"],
        make: |m| (m.number(m.v("?c")) == Some(-1.0) && m.v("?x").ty().dtype.is_float()).then(|| m.v("?x").reciprocal()),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).pow(x(b, &[2, 3]).scalar_like(-1.0)),
    },
    Rule {
        name: "one-divided",
        find: &["(div ?c ?x)"],
        make: |m| (m.number(m.v("?c")) == Some(1.0) && m.v("?x").ty().dtype.is_float()).then(|| m.v("?x").reciprocal()),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).scalar_like(1.0) / x(b, &[2, 3]),
    },
    Rule {
        name: "divide-by-power-of-two",
        find: &["(div ?x ?c)"],
        make: |m| {
            let c = m.v("?c");
            (m.constant(c) && has_exact_reciprocal(c.ty().dtype, m.number(c)?)).then(|| m.v("?x") * c.reciprocal())
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]) / x(b, &[2, 3]).scalar_like(8.0),
    },
    Rule {
        name: "shifts-together",
        find: &["(add (add ?x ?c) ?d)"],
        make: |m| {
            let (x, c, d) = (m.v("?x"), m.v("?c"), m.v("?d"));
            let both = m.number(c).is_some() && m.number(d).is_some() && m.constant(c) && m.constant(d);
            (both && !m.constant(x) && m.shifts_join(c, d) && m.sole("add", &["?x", "?c"])).then(|| x + (c + d))
        },
        rounding: Rounding::Other,
        witness: |b| (x(b, &[2, 3]) + x(b, &[]).scalar_like(3.0)) + x(b, &[]).scalar_like(0.5),
    },
    Rule {
        name: "neutral-extremum",
        find: &["(max ?x ?c)", "(min ?x ?c)"],
        make: |m| {
            let neutral = if m.root() == "max" { f64::NEG_INFINITY } else { f64::INFINITY };
            (m.number(m.v("?c")) == Some(neutral)).then(|| m.v("?x"))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).max(x(b, &[]).scalar_like(f64::NEG_INFINITY)),
    },
    Rule {
        name: "cast-of-cast",
        find: &["(cast ?a (cast ?b ?x))"],
        make: |m| {
            let (Op::Cast(outer), Op::Cast(inner)) = (m.op("?a"), m.op("?b")) else { return None };
            let x = m.v("?x");
            holds_all_of(inner.to, x.ty().dtype).then(|| x.cast(outer.to))
        },
        rounding: Rounding::Same,
        witness: |b| b.op(Cast { to: DType::F64 }, &[b.op(Cast { to: DType::I32 }, &[b.input("x", nnc_ir::Type::of(DType::I8, &[2, 3]))])]),
    },
    Rule {
        name: "extremum-of-extremum",
        find: &["(reduce ?a (reduce ?b ?x))"],
        make: |m| {
            let (Op::Reduce(outer), Op::Reduce(inner)) = (m.op("?a"), m.op("?b")) else { return None };
            let kinds = outer.kind == inner.kind && matches!(outer.kind, ReduceKind::Max | ReduceKind::Min);
            if !kinds || !m.sole("reduce", &["?b", "?x"]) {
                return None;
            }
            let x = m.v("?x");
            if inner.keepdims != outer.keepdims {
                return None;
            }
            let outer_axes: Vec<usize> = if inner.keepdims {
                outer.axes.clone()
            } else {
                let left: Vec<usize> = (0..x.ty().rank()).filter(|a| !inner.axes.contains(a)).collect();
                outer.axes.iter().map(|a| left[*a]).collect()
            };
            Some(x.reduce(outer.kind, &[inner.axes.clone(), outer_axes].concat(), inner.keepdims))
        },
        rounding: Rounding::Same,
        witness: |b| {
            let max = |axes: Vec<usize>| Reduce { kind: ReduceKind::Max, axes, keepdims: false };
            b.op(max(vec![0]), &[b.op(max(vec![1]), &[x(b, &[2, 3, 4])])])
        },
    },
    Rule {
        name: "max-with-zero",
        find: &["(max ?x ?c)"],
        make: |m| (m.number(m.v("?c")) == Some(0.0)).then(|| m.v("?x").relu()),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).max(x(b, &[]).scalar_like(0.0)),
    },
    Rule {
        name: "clip",
        find: &["(min (max ?x ?l) ?h)"],
        make: |m| {
            let (lo, hi) = (m.number(m.v("?l"))?, m.number(m.v("?h"))?);
            let x = m.v("?x");
            let ok = lo <= hi && x.ty().dtype.is_float() && m.sole("max", &["?x", "?l"]);
            ok.then(|| m.b.op(Activation { act: Act::Clip { lo: lo.into(), hi: hi.into() } }, &[x]))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).max(x(b, &[]).scalar_like(-0.5)).min(x(b, &[]).scalar_like(0.5)),
    },
    Rule {
        name: "clip-of-relu",
        find: &["(min (relu ?x) ?h)"],
        make: |m| {
            let hi = m.number(m.v("?h")).filter(|h| *h >= 0.0)?;
            let x = m.v("?x");
            let ok = x.ty().dtype.is_float() && m.sole("relu", &["?x"]);
            ok.then(|| m.b.op(Activation { act: Act::Clip { lo: 0.0.into(), hi: hi.into() } }, &[x]))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).relu().min(x(b, &[]).scalar_like(0.5)),
    },
];

/// Whether a division by `n` is a multiplication by a number of type `d`: `n` is a power of two, and it and its reciprocal are normal.
fn has_exact_reciprocal(d: DType, n: f64) -> bool {
    let reach = match d {
        DType::F64 => 1022,
        DType::F32 | DType::BF16 => 126,
        DType::F16 => 14,
        _ => return false,
    };
    n.to_bits().trailing_zeros() >= 52 && (2f64.powi(-reach)..=2f64.powi(reach)).contains(&n.abs())
}

/// Whether every number of type `narrow` is one of type `wide`.
fn holds_all_of(wide: DType, narrow: DType) -> bool {
    use DType::*;
    if wide == narrow || narrow == Bool {
        return true;
    }
    let bits = |d: DType| d.bits() as usize;
    match (wide, narrow) {
        (F64, F32 | F16 | BF16) | (F32, F16 | BF16) => true,
        (F64 | F32, n) if n.is_small_float() => true,
        (BF16, n) if n.is_small_float() => true,
        (F16, F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F6E2M3 | F6E3M2 | F4E2M1) => true,
        (F64, n) if n.is_int() => bits(n) <= 32,
        (F32, n) if n.is_int() => bits(n) <= 16,
        (F16 | BF16, I4 | U4 | I2 | U2) => true,
        (w, n) if w.is_signed_int() => n.is_int() && bits(n) + usize::from(n.is_unsigned_int()) <= bits(w),
        (w, n) => w.is_unsigned_int() && n.is_unsigned_int() && bits(n) <= bits(w),
    }
}
