//! Movement of elements: moves join, vanish, or make way for arithmetic.

use super::contract::x;
use super::{Rounding, Rule};
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::movement::{Pad, PadMode, Slice};
use nnc_ir::scalar::Out;
use nnc_ir::{Dim, Op, Tensor, V};

pub const RULES: &[Rule] = &[
    Rule {
        name: "transpose-compose",
        find: &["(transpose ?p (transpose ?q ?x))"],
        make: |m| {
            let (Op::Transpose(p), Op::Transpose(q)) = (m.op("?p"), m.op("?q")) else { return None };
            let perm: Vec<usize> = p.perm.iter().map(|i| q.perm[*i]).collect();
            Some(m.v("?x").transpose(&perm))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3, 4]).transpose(&[0, 2, 1]).transpose(&[1, 2, 0]),
    },
    Rule {
        name: "transpose-of-units",
        find: &["(transpose ?p ?x)"],
        make: |m| {
            let Op::Transpose(t) = m.op("?p") else { return None };
            let x = m.v("?x");
            let shape = x.ty().shape;
            // Only axes of length 1 change places: the elements stay in order.
            let moved: Vec<usize> = t.perm.iter().copied().filter(|i| !shape[*i].is(1)).collect();
            moved.is_sorted().then(|| x.reshape(t.perm.iter().map(|i| shape[*i].clone()).collect()))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 1, 3]).transpose(&[1, 0, 2]),
    },
    Rule {
        name: "reshape-compose",
        find: &["(reshape ?p (reshape ?q ?x))"],
        make: |m| {
            let Op::Reshape(p) = m.op("?p") else { return None };
            Some(m.v("?x").reshape(p.shape.clone()))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 6]).reshape(dims(&[12])).reshape(dims(&[3, 4])),
    },
    Rule {
        name: "expand-compose",
        find: &["(expand ?p (expand ?q ?x))"],
        make: |m| {
            let Op::Expand(p) = m.op("?p") else { return None };
            Some(m.v("?x").expand(p.shape.clone()))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[1, 3]).expand(dims(&[2, 3])).expand(dims(&[4, 2, 3])),
    },
    Rule {
        name: "expand-in-arithmetic",
        find: &["(binary ?x (expand ?p ?y))"],
        make: |m| Some(m.b.op(Op::Map(m.function()), &[m.v("?x"), m.v("?y")])),
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]) * x(b, &[1, 3]).expand(dims(&[2, 3])),
    },
    Rule {
        name: "expand-in-arithmetic-left",
        find: &["(binary (expand ?p ?y) ?x)"],
        make: |m| Some(m.b.op(Op::Map(m.function()), &[m.v("?y"), m.v("?x")])),
        rounding: Rounding::Same,
        witness: |b| x(b, &[1, 3]).expand(dims(&[2, 3])) - x(b, &[2, 3]),
    },
    Rule {
        name: "slice-compose",
        find: &["(slice ?p (slice ?q ?x))"],
        make: |m| {
            let (Op::Slice(p), Op::Slice(q)) = (m.op("?p"), m.op("?q")) else { return None };
            if q.steps.iter().any(|s| *s != 1) {
                return None;
            }
            let starts = p.starts.iter().zip(&q.starts).map(|(a, b)| a.clone() + b.clone()).collect();
            Some(m.b.op(Slice { starts, ..p.clone() }, &[m.v("?x")]))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[6, 5]).slice(dims(&[1, 0]), dims(&[4, 5])).slice(dims(&[2, 1]), dims(&[2, 3])),
    },
    Rule {
        name: "pad-compose",
        find: &["(pad ?p (pad ?q ?x))"],
        make: |m| {
            let (Op::Pad(p), Op::Pad(q)) = (m.op("?p"), m.op("?q")) else { return None };
            let grows = |p: &Pad| p.mode == PadMode::Constant && p.lo.iter().chain(&p.hi).all(|d| d.as_const().is_some_and(|d| d >= 0));
            let sum = |a: &[Dim], b: &[Dim]| a.iter().zip(b).map(|(a, b)| a.clone() + b.clone()).collect();
            (grows(p) && grows(q)).then(|| m.v("?x").pad_zero(sum(&p.lo, &q.lo), sum(&p.hi, &q.hi)))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3]).pad_zero(dims(&[1, 0]), dims(&[0, 2])).pad_zero(dims(&[0, 1]), dims(&[1, 0])),
    },
    Rule {
        name: "function-before-reshape",
        find: &["(unary (reshape ?p ?x))"],
        make: |m| {
            let Op::Reshape(p) = m.op("?p") else { return None };
            let x = m.v("?x");
            (m.function().out() == Out::Same && m.sole("reshape", &["?p", "?x"])).then(|| x.map(m.function()).reshape(p.shape.clone()))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 6]).reshape(dims(&[3, 4])).relu(),
    },
    Rule {
        name: "function-before-transpose",
        find: &["(unary (transpose ?p ?x))"],
        make: |m| {
            let Op::Transpose(p) = m.op("?p") else { return None };
            let x = m.v("?x");
            (m.function().out() == Out::Same && m.sole("transpose", &["?p", "?x"])).then(|| x.map(m.function()).transpose(&p.perm))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 6]).transpose(&[1, 0]).relu(),
    },
    Rule {
        name: "arithmetic-before-transpose",
        find: &["(binary (transpose ?p ?x) (transpose ?p ?y))"],
        make: |m| {
            let Op::Transpose(p) = m.op("?p") else { return None };
            let (x, y) = (m.v("?x"), m.v("?y"));
            (x.ty().shape == y.ty().shape).then(|| m.b.op(Op::Map(m.function()), &[x, y]).transpose(&p.perm))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 6]).transpose(&[1, 0]) + x(b, &[2, 6]).transpose(&[1, 0]),
    },
    Rule {
        name: "constant-before-transpose",
        find: &["(add (transpose ?p ?x) ?c)", "(mul (transpose ?p ?x) ?c)"],
        make: |m| {
            let Op::Transpose(p) = m.op("?p") else { return None };
            let (x, c) = (m.v("?x"), m.v("?c"));
            if !m.constant(c) || m.constant(x) || !m.sole("transpose", &["?p", "?x"]) {
                return None;
            }
            let c = aligned(c, p.perm.len())?.transpose(&p.inverse().perm);
            let y = if m.root() == "add" { x + c } else { x * c };
            Some(y.transpose(&p.perm))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 4, 3]).transpose(&[0, 2, 1]) + super::contract::ramp(b, &[4], 0.5),
    },
    Rule {
        name: "constant-before-reshape",
        find: &["(add (reshape ?p ?x) ?c)", "(mul (reshape ?p ?x) ?c)"],
        make: |m| {
            let Op::Reshape(p) = m.op("?p") else { return None };
            let (x, c) = (m.v("?x"), m.v("?c"));
            if !m.constant(c) || m.constant(x) || !m.sole("reshape", &["?p", "?x"]) {
                return None;
            }
            let c = through_reshape(c, &p.shape, &x.ty().shape)?;
            let y = if m.root() == "add" { x + c } else { x * c };
            Some(y.reshape(p.shape.clone()))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 4, 1, 3]).reshape(dims(&[1, 2, 4, 3])) + super::contract::ramp(b, &[4, 1], 0.5),
    },
    Rule {
        name: "gather-of-one",
        find: &["(gather ?a ?x ?i)"],
        make: |m| {
            let Op::Gather(g) = m.op("?a") else { return None };
            let (x, i) = (m.v("?x"), m.v("?i"));
            let (shape, index) = (x.ty().shape, m.number(i)? as i64);
            let at = if index < 0 { index.checked_add(shape[g.axis].as_const()?)? } else { index };
            // An index outside is an error of the run.
            let inside = shape[g.axis].as_const().is_some_and(|n| (0..n).contains(&at)) && i.ty().elems().is(1);
            let y = inside.then(|| x.slice_axis(g.axis, Dim::Const(at), Dim::Const(1)))?;
            Some(y.reshape([&shape[..g.axis], &i.ty().shape, &shape[g.axis + 1..]].concat()))
        },
        rounding: Rounding::Same,
        witness: |b| b.op(Gather { axis: 1 }, &[x(b, &[2, 3, 4]), b.constant(Tensor::new::<i64>(&[], &[-1]))]),
    },
    Rule {
        name: "transpose-keeps-mean-axes",
        find: &["(reduce ?r (transpose ?p ?x))"],
        make: |m| {
            let (Op::Reduce(r), Op::Transpose(p)) = (m.op("?r"), m.op("?p")) else { return None };
            let axes: Vec<usize> = r.axes.iter().map(|a| p.perm[*a]).collect();
            let y = m.v("?x").reduce(r.kind, &axes, true);
            // The kept axes stand where the operand has them; reading them in the other order may still be a transpose.
            let y = y.transpose(&p.perm);
            let shape: Vec<Dim> =
                y.ty().shape.iter().enumerate().filter(|(i, _)| r.keepdims || !r.axes.contains(i)).map(|(_, d)| d.clone()).collect();
            Some(y.reshape(shape))
        },
        rounding: Rounding::Other,
        witness: |b| x(b, &[2, 3, 4, 5]).transpose(&[0, 2, 3, 1]).sum_keep(&[1, 2]),
    },
];

/// `c`, which broadcasts against `from`, so that it broadcasts against `to` in the same way; both have the same elements in the same
/// order. `None` unless they differ in axes of length 1 only.
fn through_reshape<'g>(c: V<'g>, from: &[Dim], to: &[Dim]) -> Option<V<'g>> {
    if c.ty().elems().is(1) {
        return Some(c.reshape(vec![]));
    }
    let long = |s: &[Dim]| (0..s.len()).filter(|i| !s[*i].is(1)).collect::<Vec<_>>();
    let (a, b) = (long(from), long(to));
    let c = aligned(c, from.len())?;
    let lengths = c.ty().shape;
    let fits = a.len() == b.len() && a.iter().zip(&b).all(|(i, j)| from[*i] == to[*j]);
    let mut shape = vec![Dim::Const(1); to.len()];
    a.iter().zip(&b).for_each(|(i, j)| shape[*j] = lengths[*i].clone());
    (fits && lengths.iter().zip(from).all(|(c, d)| c.is(1) || c == d)).then(|| c.reshape(shape))
}

/// `c` with leading axes of length 1, up to `rank`.
fn aligned<'g>(c: V<'g>, rank: usize) -> Option<V<'g>> {
    let shape = c.ty().shape;
    let missing = rank.checked_sub(shape.len())?;
    Some(c.reshape([vec![Dim::Const(1); missing], shape].concat()))
}

fn dims(d: &[i64]) -> Vec<Dim> {
    d.iter().map(|d| Dim::Const(*d)).collect()
}
