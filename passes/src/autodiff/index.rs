//! Gradients of gathering and scattering: each is the other's.

use super::rules::{At, Shares};
use super::zero_like;
use nnc_ir::error::Result;
use nnc_ir::ops::index::{GatherElements, GatherNd, ScatterElements, ScatterKind, ScatterNd};
use nnc_ir::ops::movement::Transpose;
use nnc_ir::ops::source::Iota;
use nnc_ir::{DType, Dim, Tensor, V};

/// Rows of `g` added where `gather` took them from. `x` is the operand (only its type counts) and the indices.
pub fn gather<'g>(axis: usize, x: &[V<'g>], g: V<'g>) -> V<'g> {
    let (rank, ix) = (x[0].ty().rank(), x[1].ty());
    // The axis first, in the operand and in the cotangent.
    let front: Vec<usize> = std::iter::once(axis).chain((0..rank).filter(|a| *a != axis)).collect();
    let (lo, hi) = (axis, axis + ix.rank());
    let g_front: Vec<usize> = (lo..hi).chain(0..lo).chain(hi..g.ty().rank()).collect();
    let into = zero_like(x[0]).transpose(&front);
    let at = x[1].reshape([&ix.shape[..], &[Dim::Const(1)]].concat());
    let sum = g.builder().op(ScatterNd { reduction: ScatterKind::Add }, &[into, at, g.transpose(&g_front)]);
    sum.transpose(&Transpose { perm: front }.inverse().perm)
}

pub fn gather_elements<'g>(axis: usize, x: &[V<'g>], g: V<'g>) -> V<'g> {
    g.builder().op(ScatterElements { axis, reduction: ScatterKind::Add }, &[zero_like(x[0]), x[1], g])
}

pub fn gather_nd<'g>(batch_dims: usize, x: &[V<'g>], g: V<'g>) -> V<'g> {
    let mut rows = x[1].ty().shape;
    rows.pop();
    rows.push(Dim::Const(1));
    // Shared axes as indices like the others.
    let b = g.builder();
    let mut parts: Vec<V> = (0..batch_dims).map(|axis| b.op(Iota { shape: rows.clone(), axis }, &[])).collect();
    parts.push(x[1].cast(DType::I64));
    let at = V::concat(&parts, rows.len() - 1);
    b.op(ScatterNd { reduction: ScatterKind::Add }, &[zero_like(x[0]), at, g])
}

/// What the two scatters differ in.
pub trait Kind {
    fn gather<'g>(&self, v: V<'g>, at: V<'g>) -> V<'g>;
    fn scatter<'g>(&self, reduction: ScatterKind, into: V<'g>, at: V<'g>, updates: V<'g>) -> V<'g>;
    /// Shape of one number an index, and that shape beside the updates.
    fn owners(&self, at: V, updates: V) -> (Vec<Dim>, Vec<Dim>);
    /// Shape of the places that indices address.
    fn places(&self, into: V, at: V) -> Vec<Dim>;
}

pub struct Elements(pub usize);
pub struct Nd;

impl Kind for Elements {
    fn gather<'g>(&self, v: V<'g>, at: V<'g>) -> V<'g> {
        v.builder().op(GatherElements { axis: self.0 }, &[v, at])
    }
    fn scatter<'g>(&self, reduction: ScatterKind, into: V<'g>, at: V<'g>, updates: V<'g>) -> V<'g> {
        into.builder().op(ScatterElements { axis: self.0, reduction }, &[into, at, updates])
    }
    fn owners(&self, at: V, _: V) -> (Vec<Dim>, Vec<Dim>) {
        (at.ty().shape, at.ty().shape)
    }
    fn places(&self, into: V, _: V) -> Vec<Dim> {
        into.ty().shape
    }
}

impl Kind for Nd {
    fn gather<'g>(&self, v: V<'g>, at: V<'g>) -> V<'g> {
        v.builder().op(GatherNd { batch_dims: 0 }, &[v, at])
    }
    fn scatter<'g>(&self, reduction: ScatterKind, into: V<'g>, at: V<'g>, updates: V<'g>) -> V<'g> {
        into.builder().op(ScatterNd { reduction }, &[into, at, updates])
    }
    fn owners(&self, at: V, updates: V) -> (Vec<Dim>, Vec<Dim>) {
        let mut rows = at.ty().shape;
        rows.pop();
        let mut beside = rows.clone();
        beside.resize(updates.ty().rank(), Dim::Const(1));
        (rows, beside)
    }
    fn places(&self, into: V, at: V) -> Vec<Dim> {
        let depth = at.ty().shape.last().and_then(Dim::as_const).unwrap_or(0) as usize;
        into.ty().shape[..depth].to_vec()
    }
}

/// Cotangents of a scatter's first operand and of its updates.
pub fn scatter<'g>(at: &At<'_, 'g>, kind: &impl Kind, reduction: ScatterKind, g: V<'g>) -> Shares<'g> {
    let (x, ix, u, y) = (at.x[0], at.x[1], at.x[2], at.y[0]);
    let (dx, du) = match reduction {
        ScatterKind::Add => (g, kind.gather(g, ix)),
        ScatterKind::Set => {
            let won = winners(kind, x, ix, u)?;
            (kind.scatter(ScatterKind::Set, g, ix, zero_like(u)), won.select(kind.gather(g, ix), u.scalar_like(0.0)))
        }
        // An update of zero has no such quotient: NaN says so.
        ScatterKind::Mul => {
            let others = kind.scatter(ScatterKind::Mul, zero_like(x) + x.scalar_like(1.0), ix, u);
            (g * others, kind.gather(g * y, ix) / u)
        }
        // Equal extrema share.
        ScatterKind::Max | ScatterKind::Min => {
            let dtype = x.ty().dtype;
            let own = x.equal(y).cast(dtype);
            let theirs = u.equal(kind.gather(y, ix)).cast(dtype);
            let share = g / kind.scatter(ScatterKind::Add, own, ix, theirs);
            (share * own, kind.gather(share, ix) * theirs)
        }
    };
    Ok(vec![Some(dx), None, Some(du)])
}

/// Which updates a scatter that overwrites leaves standing: of several in one place the last.
fn winners<'g>(kind: &impl Kind, x: V<'g>, ix: V<'g>, u: V<'g>) -> Result<V<'g>> {
    let b = x.builder();
    let (rows, beside) = kind.owners(ix, u);
    let number = b.op(Iota { shape: vec![Dim::product(&rows)], axis: 0 }, &[]).reshape(rows);
    let nobody = b.constant(Tensor::scalar(-1i64)).expand(kind.places(x, ix));
    let owner = kind.scatter(ScatterKind::Set, nobody, ix, number);
    Ok(kind.gather(owner, ix).equal(number).reshape(beside))
}
