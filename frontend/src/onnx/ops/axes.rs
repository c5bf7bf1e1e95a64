//! Axes that an input names. Where only the run knows them, what depends on them becomes sizes: the operation works on a reshaped
//! operand whose axes stand still, and the lengths of those (1 for what is not there) are computed by tensor arithmetic and read.

use crate::onnx::call::Call;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::reduce::{Cumulate, ReduceKind};
use nnc_ir::ops::source::{Dims, Iota};
use nnc_ir::{Builder, DType, Dim, Error, Result, Tensor, V};

/// Contents of an input that names axes.
pub enum Axes<'g> {
    Known(Vec<i64>),
    /// `i64` vector.
    Open(V<'g>),
}

/// The axes in input `i`, where it is given.
pub fn axes_input<'g>(c: &Call<'g>, i: usize, what: &str) -> Result<Option<Axes<'g>>> {
    let Some(v) = c.opt(i) else { return Ok(None) };
    if v.ty().elems().is(0) {
        return Ok(Some(Axes::Known(vec![])));
    }
    if let Some(dims) = c.dims(i)? {
        let known = dims.iter().map(Dim::as_const).collect::<Option<Vec<_>>>();
        return known.map(|k| Some(Axes::Known(k))).ok_or_else(|| c.unknown(i, what));
    }
    if v.ty().rank() > 1 {
        return Err(Error::shape(format!("input {i} ({what}) should be a vector, found {}", v.ty())));
    }
    Ok(Some(Axes::Open(v.cast(DType::I64).reshape(vec![v.ty().elems()]))))
}

/// Which axes of a tensor of known rank a vector names.
pub struct Named<'g> {
    b: &'g Builder,
    rank: usize,
    /// Number of axes in the vector.
    pub count: Dim,
    /// `bool[count, rank]`: whether element j names axis i.
    hits: V<'g>,
    /// `i64[rank]`: how often an axis is named.
    times: V<'g>,
    /// `bool[1]`: whether each names an axis that there is.
    inside: V<'g>,
}

impl<'g> Named<'g> {
    pub fn new(c: &Call<'g>, axes: V<'g>, rank: usize) -> Named<'g> {
        let b = c.b;
        let count = axes.ty().elems();
        let k = |v: i64| b.constant(Tensor::scalar(v));
        let r = k(rank as i64);
        let a = axes.less(k(0)).select(axes + r, axes);
        let inside = a.greater_equal(k(0)).and(a.less(r)).reduce(ReduceKind::Min, &[0], true);
        let hits = a.reshape(vec![count.clone(), Dim::Const(1)]).equal(b.op(Iota { shape: vec![Dim::Const(1), Dim::from(rank)], axis: 1 }, &[]));
        let times = hits.cast(DType::I64).reduce(ReduceKind::Sum, &[0], false);
        Named { b, rank, count, hits, times, inside }
    }

    fn k(&self, v: i64) -> V<'g> {
        self.b.constant(Tensor::scalar(v))
    }

    /// `0, 1, 2..`, one an axis.
    fn ramp(&self) -> V<'g> {
        self.b.op(Iota { shape: vec![Dim::from(self.rank)], axis: 0 }, &[])
    }

    /// Whether an axis is named: `bool[rank]`.
    fn mask(&self) -> V<'g> {
        self.times.greater(self.k(0))
    }

    /// Sizes to be read, or a size that no tensor has where an axis is outside (or named twice): the run refuses it.
    fn checked(&self, sizes: V<'g>, twice: bool) -> V<'g> {
        let good = if twice {
            self.inside
        } else {
            let once = self.times.less_equal(self.k(1)).reduce(ReduceKind::Min, &[0], true);
            self.inside.and(once)
        };
        good.select(sizes, self.k(-1))
    }

    /// `given[j]` (an `i64` vector) at the axis that element j names, `other` (scalar or one an axis) at the rest: `i64[rank]`.
    /// Values may be negative, so the axes are for [`Named::check`] to look at.
    pub fn spread(&self, given: V<'g>, other: V<'g>) -> V<'g> {
        let column = given.reshape(vec![self.count.clone(), Dim::Const(1)]);
        let sum = self.hits.select(column, self.k(0)).reduce(ReduceKind::Sum, &[0], false);
        self.mask().select(sum, other)
    }

    /// An error of the run unless each axis is one that there is, and none is named twice.
    pub fn check(&self, c: &Call<'g>) -> Result<()> {
        c.read(self.checked(self.k(0).reshape(vec![Dim::Const(1)]), false), "the axes").map(|_| ())
    }

    /// Axis i of `x` as two: `2i` has its length where it is not named, `2i + 1` where it is; the other is 1. Without any axis all
    /// are named, or none with `noop`.
    pub fn apart(&self, c: &Call<'g>, x: V<'g>, noop: bool) -> Result<V<'g>> {
        let d = c.b.dims(x.ty().shape);
        let mask = if self.count.as_const().is_some() || noop {
            self.mask()
        } else {
            let none = c.b.op(Dims { values: vec![self.count.clone()], scalar: true }, &[]).equal(self.k(0));
            self.mask().or(none)
        };
        let (kept, gone) = (mask.select(self.k(1), d), mask.select(d, self.k(1)));
        let column = |v: V<'g>| v.reshape(vec![Dim::from(self.rank), Dim::Const(1)]);
        let both = V::concat(&[column(self.checked(kept, true)), column(gone)], 1).reshape(vec![Dim::from(2 * self.rank)]);
        let (sizes, _) = c.read(both, "the axes")?;
        Ok(x.reshape(sizes))
    }

    /// How many axes before an axis are not named: `i64[rank]`.
    fn place(&self) -> V<'g> {
        let unnamed = self.mask().select(self.k(0), self.k(1));
        self.b.op(Cumulate { kind: ReduceKind::Sum, axis: 0, exclusive: true, reverse: false }, &[unnamed])
    }

    /// The lengths `d` without those of named axes: `left` of them.
    pub fn without(&self, c: &Call<'g>, d: &[Dim], left: usize) -> Result<Vec<Dim>> {
        if left == 0 {
            self.check(c)?;
            return Ok(vec![]);
        }
        let d = self.mask().select(self.k(0), c.b.dims(d.to_vec()));
        let at = c.b.op(Iota { shape: vec![Dim::from(left), Dim::Const(1)], axis: 0 }, &[]).equal(self.place());
        let sizes = at.select(d, self.k(0)).reduce(ReduceKind::Sum, &[1], false);
        c.read(self.checked(sizes, false), "the axes").map(|(dims, _)| dims)
    }

    /// The lengths `d`, with 1 at named axes of the result.
    pub fn with_ones(&self, c: &Call<'g>, d: &[Dim]) -> Result<Vec<Dim>> {
        let last = self.k(d.len() as i64 - 1);
        let lengths = c.b.op(Gather { axis: 0 }, &[c.b.dims(d.to_vec()), self.place().min(last)]);
        c.read(self.checked(self.mask().select(self.k(1), lengths), false), "the axes").map(|(dims, _)| dims)
    }

    /// The lengths `d`, with `n` at the named axis.
    pub fn replaced(&self, c: &Call<'g>, d: &[Dim], n: &Dim) -> Result<Vec<Dim>> {
        let n = c.b.dims(vec![n.clone()]);
        c.read(self.mask().select(n, c.b.dims(d.to_vec())), "the axes").map(|(dims, _)| dims)
    }

    /// The number of elements before the one named axis, along it, and after it. The axis is one of the first `few`.
    pub fn around(&self, c: &Call<'g>, d: &[Dim], few: usize) -> Result<[Dim; 3]> {
        let d = c.b.dims(d.to_vec());
        let ramp = self.ramp();
        let at = self.mask().select(ramp, self.k(0)).reduce(ReduceKind::Sum, &[0], true);
        let part = |these: V<'g>| these.select(d, self.k(1)).reduce(ReduceKind::Prod, &[0], true);
        let sizes = V::concat(&[part(ramp.less(at)), part(ramp.equal(at)), part(ramp.greater(at))], 0);
        let sizes = at.less(self.k(few as i64)).select(sizes, self.k(-1));
        let (sizes, _) = c.read(self.checked(sizes, false), "the axis")?;
        <[Dim; 3]>::try_from(sizes).map_err(|_| Error::internal("three sizes are read"))
    }
}
