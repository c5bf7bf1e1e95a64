//! Loops of pooling, and the walk over a sliding window's taps that convolution shares.

use super::loops::Loops;
use super::scalar::{combine, wide};
use super::view::{View, collapse, row_major};
use nnc_ir::error::Result;
use nnc_ir::kernel::ExprId;
use nnc_ir::ops::contract::Window;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::window::{Pool, PoolKind};
use nnc_ir::{Dim, ScalarFn};

/// A window's taps along one axis that fall inside the input.
pub struct Tap {
    /// Input index of tap 0; may be negative.
    start: ExprId,
    lo: ExprId,
    hi: ExprId,
    dilation: i64,
    /// Strides of the walked buffers along the input's axis (the first) and along the taps (the others).
    strides: Vec<Dim>,
}

impl Tap {
    /// Taps along spatial axis `i`, of length `d`, for the output index `o`.
    pub fn new(k: &mut Loops, window: &Window, i: usize, d: &Dim, o: ExprId, strides: &[Dim]) -> Tap {
        let (dilation, pad, stride) = (window.dilations[i], k.int(window.pads[i]), k.int(window.strides[i]));
        let start = k.mul(o, stride);
        let start = k.sub(start, pad);
        let start = k.bind(start);
        let (zero, taps) = (k.int(0), k.int(window.kernel[i]));
        // The first tap at or after 0, and the first at or after the end.
        let first_at = |k: &mut Loops, limit: ExprId| {
            let distance = k.sub(limit, start);
            let round = k.int(dilation - 1);
            let distance = k.add(distance, round);
            let distance = k.max_int(distance, zero);
            let by = k.int(dilation);
            k.div(distance, by)
        };
        let lo = first_at(k, zero);
        let end = k.size(d);
        let hi = first_at(k, end);
        let hi = k.min_int(hi, taps);
        let (lo, hi) = (k.bind(lo), k.bind(hi));
        Tap { start, lo, hi, dilation, strides: strides.to_vec() }
    }
}

/// Runs `f` for every combination of taps, with the walked buffers' elements counted from `at`.
pub fn walk(k: &mut Loops, taps: &[Tap], at: &[ExprId], f: &mut dyn FnMut(&mut Loops, &[ExprId])) {
    let Some((t, rest)) = taps.split_first() else { return f(k, at) };
    k.for_range(t.lo, t.hi, |k, tap| {
        let dilation = k.int(t.dilation);
        let ahead = k.mul(tap, dilation);
        let index = k.add(t.start, ahead);
        let at: Vec<ExprId> = at
            .iter()
            .enumerate()
            .map(|(i, b)| {
                let stride = k.size(&t.strides[i]);
                let by = k.mul(if i == 0 { index } else { tap }, stride);
                let sum = k.add(*b, by);
                k.bind(sum)
            })
            .collect();
        walk(k, rest, &at, f);
    });
}

/// The way back of a transposed convolution: from an output index to the input elements whose windows reach it.
pub struct Back<'a> {
    pub window: &'a Window,
    /// Lengths of the input's spatial axes.
    pub image: &'a [Dim],
    /// Strides of the input along its axes, of the weights along the taps.
    pub strides: [&'a [Dim]; 2],
    /// The output index along each axis.
    pub at: Vec<ExprId>,
}

impl Back<'_> {
    /// Runs `f` for every combination of taps from `axis` on that hit an input element, with elements counted from `base`.
    pub fn walk(&self, k: &mut Loops, axis: usize, base: [ExprId; 2], f: &mut dyn FnMut(&mut Loops, [ExprId; 2])) {
        if axis == self.image.len() {
            return f(k, base);
        }
        let count = k.int(self.window.kernel[axis]);
        k.for_each(count, |k, tap| {
            let (dilation, stride, zero) = (k.int(self.window.dilations[axis]), k.int(self.window.strides[axis]), k.int(0));
            let pad = k.int(self.window.pads[axis]);
            let padded = k.add(self.at[axis], pad);
            let back = k.mul(tap, dilation);
            let distance = k.sub(padded, back);
            let distance = k.bind(distance);
            let index = k.div(distance, stride);
            let index = k.bind(index);
            let (phase, end) = (k.rem(distance, stride), k.size(&self.image[axis]));
            let after = k.map(ScalarFn::GreaterEqual, &[distance, zero]);
            let on_grid = k.map(ScalarFn::Equal, &[phase, zero]);
            let before = k.map(ScalarFn::Less, &[index, end]);
            let inside = k.map(ScalarFn::And, &[after, before]);
            let hit = k.map(ScalarFn::And, &[inside, on_grid]);
            k.when(hit, |k| {
                let (dx, dw) = (k.size(&self.strides[0][axis]), k.size(&self.strides[1][axis]));
                let (dx, dw) = (k.mul(index, dx), k.mul(tap, dw));
                let (x, w) = (k.add(base[0], dx), k.add(base[1], dw));
                let base = [k.bind(x), k.bind(w)];
                self.walk(k, axis + 1, base, f);
            });
        });
    }
}

/// Taps of windows that are written out one by one where none of them can be outside of the image.
const FEW_TAPS: i64 = 16;

/// Elements of the image from a window's first tap to each of its taps, where there are few and all are inside the image everywhere.
fn taps_inside(window: &Window, image: &[Dim], out: &[Dim]) -> Option<Vec<i64>> {
    let strides: Vec<i64> = row_major(image).iter().map(Dim::as_const).collect::<Option<_>>()?;
    let few = window.kernel.iter().try_fold(1, |n: i64, d| n.checked_mul(*d)).is_some_and(|n| n <= FEW_TAPS);
    let mut taps = vec![0];
    for (i, stride) in strides.iter().enumerate() {
        let (first, last) = ((out[i].as_const()? - 1).checked_mul(window.strides[i])?, (window.kernel[i] - 1).checked_mul(window.dilations[i])?);
        if !few || window.pads.iter().any(|p| *p != 0) || first.checked_add(last)? >= image[i].as_const()? {
            return None;
        }
        taps = taps.iter().flat_map(|t| (0..window.kernel[i]).map(move |tap| t + tap * window.dilations[i] * stride)).collect();
    }
    Some(taps)
}

/// Pooling of windows that are inside the image, whose taps are given as offsets of elements.
fn pool_inside(k: &mut Loops, op: &Pool, window: &Window, taps: &[i64]) {
    let n = window.kernel.len();
    let (xs, ys) = (k.x[0].shape.clone(), k.y[0].shape.clone());
    let (dtype, lanes) = (k.y[0].dtype, Dim::from(op.block.max(1)));
    let images = xs[0].clone() * xs[1].clone();
    let dims = [&[images], &ys[2..2 + n], std::slice::from_ref(&lanes)].concat();
    let steps = row_major(&xs[2..2 + n]).into_iter().zip(&window.strides).map(|(s, by)| s * Dim::Const(*by) * lanes.clone());
    let strides = std::iter::once(Dim::product(&xs[2..2 + n]) * lanes.clone()).chain(steps).chain([Dim::Const(1)]).collect();
    let (mut dims, mut views) = (dims.clone(), [View::new(strides), View::dense(&dims)]);
    collapse(&mut dims, &mut views);
    k.parallel(&dims, &views, taps.len() as i64, |k, _, at| {
        let (kind, wide) = if op.kind == PoolKind::Max { (ReduceKind::Max, dtype) } else { (ReduceKind::Sum, wide(dtype)) };
        let fun = combine(kind, wide);
        let mut total = None;
        for tap in taps {
            let tap = k.size(&(Dim::Const(*tap) * lanes.clone()));
            let from = k.add(at[0], tap);
            let x = k.load(0, from);
            let x = k.cast(wide, x);
            total = Some(match total {
                Some(sum) => k.map(fun, &[sum, x]),
                None => x,
            });
        }
        let Some(mut total) = total else { return };
        if matches!(op.kind, PoolKind::Average | PoolKind::AverageAll) {
            let count = k.num(taps.len() as f64, wide);
            total = k.map(ScalarFn::Div, &[total, count]);
        }
        let v = k.cast(dtype, total);
        k.put(0, at[1], v);
    });
}

pub fn pool(k: &mut Loops, op: &Pool) -> Result<()> {
    let window = op.window()?;
    let n = window.kernel.len();
    let (xs, ys) = (k.x[0].shape.clone(), k.y[0].shape.clone());
    let dtype = k.y[0].dtype;
    let lanes = if op.block > 0 { Dim::from(op.block) } else { Dim::Const(1) };
    let (image, out) = (xs[2..2 + n].to_vec(), ys[2..2 + n].to_vec());
    if let Some(taps) = taps_inside(&window, &image, &out).filter(|_| !op.indices) {
        pool_inside(k, op, &window, &taps);
        return Ok(());
    }
    let images = xs[0].clone() * xs[1].clone();
    let dims = [&[images], &out[..]].concat();
    let x_strides: Vec<Dim> = row_major(&image).into_iter().map(|s| s * lanes.clone()).collect();
    let x_view = View::new([&[Dim::product(&image) * lanes.clone()], &vec![Dim::Const(0); n][..]].concat());
    let y_view = View::new(row_major(&[&dims[..], std::slice::from_ref(&lanes)].concat())[..dims.len()].to_vec());
    let lane_view = View::new(vec![Dim::Const(1)]);
    let taps = window.kernel.iter().fold(1, |n: i64, d| n.saturating_mul(*d));
    let work = taps.saturating_mul(lanes.as_const().unwrap_or(1));
    k.parallel(&dims, &[x_view, y_view], work, |k, vars, at| {
        let taps: Vec<Tap> = (0..n).map(|i| Tap::new(k, &window, i, &image[i], vars[1 + i], &x_strides[i..=i])).collect();
        let divisor = match op.kind {
            PoolKind::Average => Some(taps.iter().map(|t| (t.lo, t.hi)).collect::<Vec<_>>()),
            PoolKind::AverageAll => Some((0..n).map(|i| padded_taps(k, &window, i, &image[i], vars[1 + i])).collect()),
            PoolKind::Max | PoolKind::Sum => None,
        };
        let divisor = divisor.map(|ranges| {
            let one = k.int(1);
            let count = ranges.into_iter().fold(one, |n, (lo, hi)| {
                let len = k.sub(hi, lo);
                let zero = k.int(0);
                let len = k.max_int(len, zero);
                k.mul(n, len)
            });
            k.bind(count)
        });
        k.serial(std::slice::from_ref(&lanes), &[lane_view.clone(), lane_view], at, |k, _, at| match op.kind {
            PoolKind::Max => max_element(k, op.indices, &taps, at),
            PoolKind::Average | PoolKind::AverageAll | PoolKind::Sum => {
                let wide = wide(dtype);
                let acc = k.accumulator(ReduceKind::Sum, wide);
                walk(k, &taps, &at[..1], &mut |k, at| {
                    let x = k.load(0, at[0]);
                    let x = k.cast(wide, x);
                    k.accumulate(acc, ReduceKind::Sum, x);
                });
                let mut sum = k.var(acc);
                if let Some(count) = divisor {
                    let count = k.cast(wide, count);
                    sum = k.map(ScalarFn::Div, &[sum, count]);
                }
                let v = k.cast(dtype, sum);
                k.put(0, at[1], v);
            }
        });
    });
    Ok(())
}

/// Taps that fall into the padded input: `ceil` can add more beyond it, which do not count.
fn padded_taps(k: &mut Loops, window: &Window, i: usize, d: &Dim, o: ExprId) -> (ExprId, ExprId) {
    let n = window.kernel.len();
    let (stride, dilation) = (k.int(window.strides[i]), k.int(window.dilations[i]));
    let end = k.size(&(d.clone() + Dim::Const(window.pads[i] + window.pads[n + i] + window.dilations[i] - 1)));
    let start = k.mul(o, stride);
    let left = k.sub(end, start);
    let zero = k.int(0);
    let left = k.max_int(left, zero);
    let hi = k.div(left, dilation);
    let taps = k.int(window.kernel[i]);
    (zero, k.min_int(hi, taps))
}

/// The largest element of a window, and where it stands: the first of equals, a NaN before all numbers.
fn max_element(k: &mut Loops, indices: bool, taps: &[Tap], at: &[ExprId]) {
    let dtype = k.y[0].dtype;
    let best = k.accumulator(ReduceKind::Max, dtype);
    let place = indices.then(|| {
        let none = k.int(-1);
        k.set_new(none)
    });
    walk(k, taps, &at[..1], &mut |k, at| match place {
        None => {
            let x = k.load(0, at[0]);
            k.accumulate(best, ReduceKind::Max, x);
        }
        Some(place) => {
            let x = k.load(0, at[0]);
            let x = k.bind(x);
            let (so_far, where_) = (k.var(best), k.var(place));
            let zero = k.int(0);
            let first = k.map(ScalarFn::Less, &[where_, zero]);
            let better = k.precedes(ReduceKind::Max, x, so_far, true);
            let take = k.map(ScalarFn::Or, &[first, better]);
            k.when(take, |k| {
                k.set(best, x);
                k.set(place, at[0]);
            });
        }
    });
    let v = k.var(best);
    k.put(0, at[1], v);
    if let Some(place) = place {
        let p = k.var(place);
        k.put(1, at[1], p);
    }
}
