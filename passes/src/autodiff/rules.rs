//! The gradient table: one arm a primitive, and the composites that have a better rule than their expansion's.

use super::{Replaced, control, index, window, zero_like};
use nnc_ir::derivative::chain;
use nnc_ir::error::{Error, Result};
use nnc_ir::ops::contract::MatMul;
use nnc_ir::ops::movement::{Concat, Interleave, Pack, Pad, PadMode, Slice, Transpose, Unpack};
use nnc_ir::ops::reduce::{Cumulate, Reduce, ReduceKind};
use nnc_ir::{Builder, Dim, Node, Op, V};
use std::cell::RefCell;

/// A node on the way back.
pub struct At<'a, 'g> {
    pub b: &'g Builder,
    pub node: &'a Node,
    pub x: Vec<V<'g>>,
    pub y: Vec<V<'g>>,
    /// Cotangents of the results; at least one is there.
    pub g: Vec<Option<V<'g>>>,
    /// Which operands' cotangents are asked for.
    pub needs: Vec<bool>,
    pub replaced: &'a RefCell<Replaced>,
    /// Memory counts more than operations: regions keep as little as they can.
    pub sparing: bool,
    /// A mistake that rules of regions are to make as well.
    pub slip: Option<&'a super::slip::Slip>,
}

impl<'g> At<'_, 'g> {
    /// The cotangent of the first result.
    fn g(&self) -> Result<V<'g>> {
        self.g[0].ok_or_else(|| Error::internal("no cotangent of the first result"))
    }
}

/// Cotangents of the operands, in order; those at the end that are left out are absent.
pub type Shares<'g> = Result<Vec<Option<V<'g>>>>;

/// Whether the operation is differentiated as it is, not by its expansion.
pub fn has_rule(op: &Op) -> bool {
    matches!(op, Op::Softmax(_) | Op::LogSoftmax(_) | Op::StopGrad(_))
}

/// The table.
pub fn vjp<'g>(at: &At<'_, 'g>) -> Shares<'g> {
    let (x, y) = (&at.x, &at.y);
    let one = |v: V<'g>| Ok(vec![Some(v)]);
    let no_floats = |what: &str| Err(Error::internal(format!("{what} has no float operand to differentiate by")));
    let g = || at.g();
    match &at.node.op {
        Op::Map(f) => {
            let g = g()?;
            let share = |k: usize| if at.needs[k] { chain(*f, k, x, y[0], g).map(|d| narrowed(d, &x[k].ty().shape)) } else { None };
            Ok((0..x.len()).map(share).collect())
        }
        Op::Cast(_) => one(g()?.cast(x[0].ty().dtype)),
        Op::Reduce(r) => one(reduce(r, x[0], y[0], g()?)),
        Op::Cumulate(c) => cumulate(at, c, g()?),
        Op::MatMul(m) => matmul(m, at, g()?),
        Op::Conv(c) => window::conv(c, at, g()?),
        Op::ConvTranspose(c) => window::conv_transpose(c, at, g()?),
        Op::Pool(p) => window::pool(p, at, g()?),
        Op::Transpose(t) => one(g()?.transpose(&t.inverse().perm)),
        Op::Barrier(_) => one(g()?),
        Op::Reshape(_) => one(g()?.reshape(x[0].ty().shape)),
        Op::Expand(_) => one(narrowed(g()?, &x[0].ty().shape)),
        Op::Slice(s) => one(unslice(s, g()?, &x[0].ty().shape)),
        Op::Concat(c) => Ok(unconcat(c, x, g()?)),
        Op::Interleave(i) => Ok(uninterleave(i, x, g()?)),
        Op::Pad(p) => unpad(p, at, g()?),
        Op::Pack(_) => match x[0].ty().shape[1].as_const() {
            Some(channels) => one(at.b.op(Unpack { channels: channels as usize }, &[g()?])),
            None => Err(Error::unsupported("the gradient of pack needs to know the number of channels")),
        },
        Op::Unpack(_) => {
            let (packed, want) = (x[0].ty(), x[0].ty().shape);
            let block = packed.shape[packed.rank() - 1].as_const().unwrap_or(1) as usize;
            one(cut(at.b.op(Pack { block }, &[g()?]), &want))
        }
        Op::Gather(o) => one(index::gather(o.axis, x, g()?)),
        Op::GatherElements(o) => one(index::gather_elements(o.axis, x, g()?)),
        Op::GatherNd(o) => one(index::gather_nd(o.batch_dims, x, g()?)),
        Op::ScatterElements(o) => index::scatter(at, &index::Elements(o.axis), o.reduction, g()?),
        Op::ScatterNd(o) => index::scatter(at, &index::Nd, o.reduction, g()?),
        Op::TopK(o) => one(index::gather_elements(o.axis, &[x[0], y[1]], g()?)),
        Op::If(_) => control::branch(at),
        Op::Loop(o) => control::repeat(o, at),
        Op::Scan(o) => control::scan(o, at),
        Op::Softmax(o) => {
            let g = g()?;
            one((g - (g * y[0]).sum_keep(&[o.axis])) * y[0])
        }
        Op::LogSoftmax(o) => {
            let g = g()?;
            one(g - y[0].exp() * g.sum_keep(&[o.axis]))
        }
        Op::Input | Op::Const(_) | Op::Dims(_) | Op::ReadDims(_) | Op::Iota(_) | Op::Random(_) | Op::StopGrad(_) => no_floats(at.node.op.name()),
        Op::BitCast(_) => Err(Error::unsupported("bits that are read as another type have no gradient")),
        Op::ArgReduce(_) | Op::NonZero(_) | Op::TreeLeaves(_) => no_floats("what is computed from an index"),
        Op::StringConcat(_) | Op::StringSplit(_) | Op::StringNormalize(_) | Op::RegexMatch(_) | Op::StringRank(_) => no_floats("strings"),
        Op::ImageDecode(_) => no_floats("pictures"),
        Op::Gradient(_) => Err(Error::internal("a gradient is differentiated before it is computed")),
        nnc_ir::composites!() => Err(Error::internal(format!("{} is differentiated before it is expanded", at.node.op.name()))),
    }
}

/// The cotangent of an operand that was stretched from `shape`: the sum over what it was stretched along. An axis of which only the run
/// knows whether it was is taken apart into its own length and what that was repeated.
pub fn narrowed<'g>(g: V<'g>, shape: &[Dim]) -> V<'g> {
    let wide = g.ty().shape;
    let extra = wide.len().saturating_sub(shape.len());
    let (mut apart, mut axes) = (vec![], vec![]);
    for (i, d) in wide.iter().enumerate() {
        let factor = i.checked_sub(extra).map_or(Dim::Const(0), |i| shape[i].stretch_factor(d));
        if factor.as_const().is_none() {
            apart.push(shape[i - extra].clone());
        }
        if !factor.is(1) {
            axes.push(apart.len());
        }
        apart.push(if factor.as_const().is_none() { d.floor_div(&shape[i - extra]) } else { d.clone() });
    }
    g.reshape(apart).reduce(ReduceKind::Sum, &axes, false).reshape(shape.to_vec())
}

/// `v` cut off or filled up with zeros at the ends of its axes.
pub fn cut<'g>(v: V<'g>, shape: &[Dim]) -> V<'g> {
    let have = v.ty().shape;
    v.pad_zero(vec![Dim::Const(0); have.len()], shape.iter().zip(&have).map(|(want, have)| want - have).collect())
}

fn reduce<'g>(r: &Reduce, x: V<'g>, y: V<'g>, g: V<'g>) -> V<'g> {
    let full = x.ty().shape;
    let kept = nnc_ir::ops::reduce::reduced_shape(&full, &r.axes, true);
    let (y, g) = (y.reshape(kept.clone()), g.reshape(kept));
    match r.kind {
        ReduceKind::Sum => g.expand(full),
        // Of equal extrema each has the same share.
        ReduceKind::Max | ReduceKind::Min => {
            let hit = x.equal(y).cast(x.ty().dtype);
            hit * (g / hit.sum_keep(&r.axes))
        }
        ReduceKind::Prod => {
            // The product of all others, zeros or not: of those before and of those behind, along one axis.
            let rank = full.len();
            let perm: Vec<usize> = (0..rank).filter(|a| !r.axes.contains(a)).chain(r.axes.iter().copied()).collect();
            let rest = rank - r.axes.len();
            let moved = x.transpose(&perm);
            let split = moved.ty().shape;
            let rows = moved.reshape([&split[..rest], &[Dim::product(&split[rest..])]].concat());
            let others = |reverse| x.builder().op(Cumulate { kind: ReduceKind::Prod, axis: rest, exclusive: true, reverse }, &[rows]);
            let product = (others(false) * others(true)).reshape(split);
            g * product.transpose(&Transpose { perm }.inverse().perm)
        }
    }
}

fn cumulate<'g>(at: &At<'_, 'g>, c: &Cumulate, g: V<'g>) -> Shares<'g> {
    let back = Cumulate { reverse: !c.reverse, ..c.clone() };
    match c.kind {
        ReduceKind::Sum => Ok(vec![Some(at.b.op(back, &[g]))]),
        ReduceKind::Prod => Ok(vec![Some(control::running_product(c, at.x[0], g)?)]),
        ReduceKind::Max | ReduceKind::Min => Err(Error::unsupported("a running maximum has no gradient here")),
    }
}

fn matmul<'g>(m: &MatMul, at: &At<'_, 'g>, g: V<'g>) -> Shares<'g> {
    if m.is_packed() || !m.post.is_empty() {
        return Err(Error::unsupported("a matmul whose weights are packed has no gradient: differentiate before the passes that pack"));
    }
    let (x_shape, w_shape) = (at.x[0].ty().shape, at.x[1].ty().shape);
    let one = || Dim::Const(1);
    // Vectors as matrices: x as a row, w as a column.
    let x = if x_shape.len() == 1 { at.x[0].reshape(vec![one(), x_shape[0].clone()]) } else { at.x[0] };
    let w = match (w_shape.len(), m.transposed) {
        (1, true) => at.x[1].reshape(vec![one(), w_shape[0].clone()]),
        (1, false) => at.x[1].reshape(vec![w_shape[0].clone(), one()]),
        _ => at.x[1],
    };
    let mut full = g.ty().shape;
    if w_shape.len() == 1 {
        full.push(one());
    }
    if x_shape.len() == 1 {
        full.insert(full.len() - 1, one());
    }
    let g = g.reshape(full);
    let product = |a: V<'g>, b: V<'g>, transposed| at.b.op(MatMul { transposed, packed: Dim::Const(0), post: vec![] }, &[a, b]);
    let dx = || narrowed(product(g, w, !m.transposed), &x.ty().shape).reshape(x_shape.clone());
    let dw = || {
        // Weights without a batch: one product over the rows of all matrices.
        let flat = |v: V<'g>| {
            let s = v.ty().shape;
            v.reshape(vec![Dim::product(&s[..s.len() - 1]), s[s.len() - 1].clone()])
        };
        let (x, g) = if w.ty().rank() == 2 { (flat(x), flat(g)) } else { (x, g) };
        let d = if m.transposed { product(swapped(g), x, false) } else { product(swapped(x), g, false) };
        narrowed(d, &w.ty().shape).reshape(w_shape.clone())
    };
    Ok(vec![at.needs[0].then(dx), at.needs[1].then(dw)])
}

/// The last two axes exchanged.
fn swapped<'g>(v: V<'g>) -> V<'g> {
    let rank = v.ty().rank();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    v.transpose(&perm)
}

/// Each operand's elements out of the whole.
fn uninterleave<'g>(i: &Interleave, x: &[V<'g>], g: V<'g>) -> Vec<Option<V<'g>>> {
    let part = |(k, x): (usize, &V<'g>)| {
        let starts = i.place(k).into_iter().map(Dim::from).collect();
        let steps = i.steps.iter().map(|s| *s as i64).collect();
        Some(g.builder().op(Slice { starts, sizes: x.ty().shape, steps }, &[g]))
    };
    x.iter().enumerate().map(part).collect()
}

/// Puts what a slice took out back in its place, zeros elsewhere.
fn unslice<'g>(s: &Slice, mut g: V<'g>, full: &[Dim]) -> V<'g> {
    let (zero, one) = (Dim::Const(0), Dim::Const(1));
    for axis in 0..full.len() {
        let (step, size) = (s.step(axis), s.sizes[axis].clone());
        let mut start = s.starts[axis].clone();
        let mut shape = g.ty().shape;
        let at_axis = |d: Dim| (0..full.len()).map(|i| if i == axis { d.clone() } else { zero.clone() }).collect::<Vec<Dim>>();
        if step < 0 {
            start = start + (size.clone() - one.clone()) * Dim::Const(step);
            let mut steps = vec![1; full.len()];
            steps[axis] = -1;
            g = g.builder().op(Slice { starts: at_axis(size.clone() - one.clone()), sizes: shape.clone(), steps }, &[g]);
        }
        if step.abs() > 1 {
            // Each element followed by the zeros up to the next.
            let mut split = shape.clone();
            split.insert(axis + 1, one.clone());
            let gap: Vec<Dim> = (0..split.len()).map(|i| Dim::Const(if i == axis + 1 { step.abs() - 1 } else { 0 })).collect();
            shape[axis] = size * Dim::Const(step.abs());
            g = g.reshape(split).pad_zero(vec![zero.clone(); gap.len()], gap).reshape(shape.clone());
        }
        let after = full[axis].clone() - start.clone() - shape[axis].clone();
        g = g.pad_zero(at_axis(start), at_axis(after));
    }
    g
}

fn unconcat<'g>(c: &Concat, x: &[V<'g>], g: V<'g>) -> Vec<Option<V<'g>>> {
    let mut start = Dim::Const(0);
    let mut part = |v: &V<'g>| {
        let size = v.ty().shape[c.axis].clone();
        let d = g.slice_axis(c.axis, start.clone(), size.clone());
        start = start.clone() + size;
        Some(d)
    };
    x.iter().map(&mut part).collect()
}

fn unpad<'g>(p: &Pad, at: &At<'_, 'g>, g: V<'g>) -> Shares<'g> {
    let full = at.x[0].ty().shape;
    let negated = |v: &[Dim]| v.iter().map(|d| Dim::Const(0) - d.clone()).collect::<Vec<_>>();
    if p.mode == PadMode::Constant {
        let inner = g.pad_zero(negated(&p.lo), negated(&p.hi));
        // The constant is read wherever no element of the operand is.
        let outside = || {
            let all: Vec<usize> = (0..full.len()).collect();
            let sum = |v: V<'g>| v.reduce(ReduceKind::Sum, &all, false);
            // Elements that are cut off are in neither.
            (sum(g) - sum(inner)).reshape(at.x[1].ty().shape)
        };
        return Ok(vec![Some(inner), at.needs.get(1).is_some_and(|n| *n).then(outside)]);
    }
    // Each axis on its own: where its elements came from.
    let mut g = g;
    for (axis, n) in full.iter().enumerate() {
        if p.lo[axis].is(0) && p.hi[axis].is(0) {
            continue;
        }
        let from = at.b.op(nnc_ir::ops::source::Iota { shape: vec![n.clone()], axis: 0 }, &[]);
        let from = at.b.op(Pad { mode: p.mode, lo: vec![p.lo[axis].clone()], hi: vec![p.hi[axis].clone()] }, &[from]);
        let mut shape = g.ty().shape;
        shape[axis] = n.clone();
        let target = zero_like(at.x[0]).scalar_like(0.0).expand(shape);
        g = index::gather(axis, &[target, from], g);
    }
    Ok(vec![Some(g)])
}
