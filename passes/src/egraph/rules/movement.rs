//! Movement of elements: moves join, vanish, or make way for arithmetic.

use super::contract::x;
use super::{Rounding, Rule};
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::contract::MatMul;
use nnc_ir::ops::index::Gather;

use nnc_ir::ops::movement::{Pad, PadMode, Slice};
use nnc_ir::ops::reduce::{ReduceKind, reduced_shape};
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
        name: "activation-before-move",
        find: &["(activation ?f (reshape ?p ?x))", "(activation ?f (transpose ?p ?x))"],
        make: |m| {
            let (f, p, x) = (m.op("?f"), m.op("?p"), m.v("?x"));
            m.sole(p.name(), &["?p", "?x"]).then(|| m.b.op(p.clone(), &[m.b.op(f.clone(), &[x])]))
        },
        rounding: Rounding::Same,
        witness: |b| b.op(Activation { act: Act::HardSwish {} }, &[x(b, &[2, 6]).reshape(dims(&[3, 4]))]),
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
        name: "residual-before-reshape",
        find: &["(add (reshape ?q (contract ?a ?x ?w ?p)) ?r)"],
        make: |m| {
            let y = m.contraction()?.build();
            let (Op::Reshape(q), r) = (m.op("?q"), m.v("?r")) else { return None };
            let fits = r.ty().shape == q.shape && !m.constant(r);
            fits.then(|| (y + r.reshape(y.ty().shape)).reshape(q.shape.clone()))
        },
        rounding: Rounding::Same,
        witness: |b| {
            let y = b.op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, &[x(b, &[2, 3]), x(b, &[3, 4])]);
            y.reshape(dims(&[1, 2, 4])) + x(b, &[1, 2, 4])
        },
    },
    Rule {
        name: "slice-before-transpose",
        find: &["(slice ?s (transpose ?p ?x))"],
        make: |m| {
            let (Op::Slice(s), Op::Transpose(p)) = (m.op("?s"), m.op("?p")) else { return None };
            let back = p.inverse().perm;
            let permuted = |d: &[Dim]| back.iter().map(|i| d[*i].clone()).collect::<Vec<_>>();
            let steps = if s.steps.is_empty() { vec![] } else { back.iter().map(|i| s.steps[*i]).collect() };
            let slice = Slice { starts: permuted(&s.starts), sizes: permuted(&s.sizes), steps };
            Some(m.b.op(slice, &[m.v("?x")]).transpose(&p.perm))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[4, 5, 6]).transpose(&[2, 0, 1]).slice(dims(&[1, 0, 2]), dims(&[3, 4, 2])),
    },
    Rule {
        name: "slice-before-reshape",
        find: &["(slice ?s (reshape ?p ?x))"],
        make: |m| {
            let (Op::Slice(s), Op::Reshape(p)) = (m.op("?s"), m.op("?p")) else { return None };
            let x = m.v("?x");
            let from = x.ty().shape;
            // Axes of length 1 come and go; the others are cut as before.
            let long = |s: &[Dim]| (0..s.len()).filter(|i| !s[*i].is(1)).collect::<Vec<_>>();
            let (a, b) = (long(&from), long(&p.shape));
            let whole_units = (0..p.shape.len()).all(|i| !p.shape[i].is(1) || s.sizes[i].is(1));
            if a.len() != b.len() || a.iter().zip(&b).any(|(i, j)| from[*i] != p.shape[*j]) || !whole_units {
                return None;
            }
            let (mut starts, mut sizes, mut steps) = (vec![Dim::Const(0); from.len()], from.clone(), vec![1; from.len()]);
            for (i, j) in a.iter().zip(&b) {
                (starts[*i], sizes[*i], steps[*i]) = (s.starts[*j].clone(), s.sizes[*j].clone(), s.step(*j));
            }
            Some(m.b.op(Slice { starts, sizes, steps }, &[x]).reshape(s.sizes.clone()))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[4, 1, 6]).reshape(dims(&[4, 6, 1])).slice(dims(&[1, 2, 0]), dims(&[2, 3, 1])),
    },
    Rule {
        name: "reduce-keeps-axes",
        find: &["(reshape ?p (reduce ?r ?x))"],
        make: |m| {
            let (Op::Reshape(p), Op::Reduce(r)) = (m.op("?p"), m.op("?r")) else { return None };
            let kept = reduced_shape(&m.v("?x").ty().shape, &r.axes, true);
            (!r.keepdims && kept == p.shape).then(|| m.v("?x").reduce(r.kind, &r.axes, true))
        },
        rounding: Rounding::Same,
        witness: |b| x(b, &[2, 3, 4]).reduce(ReduceKind::Max, &[1], false).reshape(dims(&[2, 1, 4])),
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
