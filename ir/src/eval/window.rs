//! Reference pooling, and where the taps of a sliding window lie.

use super::elems::{decode, encode};
use super::reduce::{beats, neutral};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::ops::contract::Window;
use crate::ops::reduce::ReduceKind;
use crate::ops::window::{Pool, PoolKind};
use crate::scalar::Num;
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;
use std::ops::Range;

/// Places of a window handled at a time: their columns of input elements stay in the cache.
pub(crate) const TILE: usize = 128;

/// `0..n` in pieces of at most [`TILE`].
pub(crate) fn tiles(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(TILE).map(move |i| i..n.min(i + TILE))
}

/// Coordinates of the flat index `flat` in `shape`.
fn coordinates(mut flat: usize, shape: &[usize]) -> Vec<i64> {
    let mut out = vec![0; shape.len()];
    for (slot, d) in out.iter_mut().zip(shape).rev() {
        *slot = (flat % d) as i64;
        flat /= d;
    }
    out
}

/// For each tap of the window and each of the window's `places` in `grid`: the flat position in `plane` that it reads, or `None` in the
/// padding. Tap-major. A convolution reads there; a transposed one writes there.
pub(crate) fn taps(window: &Window, grid: &[usize], plane: &[usize], places: Range<usize>) -> Vec<Option<usize>> {
    let kernel: Vec<usize> = window.kernel.iter().map(|k| *k as usize).collect();
    let places: Vec<Vec<i64>> = places.map(|p| coordinates(p, grid)).collect();
    let mut out = vec![];
    for tap in (0..kernel.iter().product()).map(|t| coordinates(t, &kernel)) {
        out.extend(places.iter().map(|place| {
            (0..plane.len()).try_fold(0, |flat, i| {
                let at = place[i] * window.strides[i] + tap[i] * window.dilations[i] - window.pads[i];
                (0..plane[i] as i64).contains(&at).then(|| flat * plane[i] + at as usize)
            })
        }));
    }
    out
}

/// Number of taps of the window at `place` that lie in the input or its padding.
fn taps_in_padding(window: &Window, plane: &[usize], place: &[i64]) -> i64 {
    let rank = plane.len();
    let along = |i: usize| {
        let first = place[i] * window.strides[i] - window.pads[i];
        let end = plane[i] as i64 + window.pads[rank + i];
        (0..window.kernel[i]).filter(|k| first + k * window.dilations[i] < end).count() as i64
    };
    (0..rank).map(along).product()
}

pub fn pool(op: &Pool, x: &Tensor) -> Result<Vec<Tensor>> {
    let window = op.window()?;
    let rank = window.kernel.len();
    let plane = &x.shape()[2..2 + rank];
    let grid = (0..rank).map(|i| length(op.out(&window, i, &Dim::from(plane[i])), "pool", i)).collect::<Result<Vec<usize>>>()?;
    let mut shape = x.shape().to_vec();
    shape[2..2 + rank].clone_from_slice(&grid);
    let n = checked_elems(x.dtype(), &shape)?;

    let lanes = op.block.max(1);
    let (planes, plane_elems, places): (usize, usize, usize) = (shape[0] * shape[1], plane.iter().product(), grid.iter().product());
    let values = decode(x, |n| n);
    let mut out = vec![Num::I(0); n];
    let mut index = vec![0; if op.indices { n } else { 0 }];
    for tile in tiles(places) {
        let taps = taps(&window, &grid, plane, tile.clone());
        for (k, place) in tile.clone().enumerate() {
            let inside: Vec<usize> = taps.iter().skip(k).step_by(tile.len()).flatten().copied().collect();
            let count = match op.kind {
                PoolKind::AverageAll => taps_in_padding(&window, plane, &coordinates(place, &grid)),
                _ => inside.len() as i64,
            };
            for (p, lane) in (0..planes).flat_map(|p| (0..lanes).map(move |l| (p, l))) {
                let at = |tap: usize| (p * plane_elems + tap) * lanes + lane;
                let to = (p * places + place) * lanes + lane;
                if op.kind == PoolKind::Max {
                    let best = inside.iter().copied().map(at).reduce(|a, b| if beats(true, values[b], values[a]) { b } else { a });
                    out[to] = best.map_or(neutral(ReduceKind::Max, x.dtype()), |b| values[b]);
                    if op.indices {
                        index[to] = best.unwrap_or(0) as i64;
                    }
                } else {
                    let sum: f64 = inside.iter().map(|t| values[at(*t)].as_f64()).sum();
                    out[to] = Num::F(if op.kind == PoolKind::Sum { sum } else { sum / count as f64 });
                }
            }
        }
    }
    let y = encode(x.dtype(), &shape, out.into_iter())?;
    let index = op.indices.then(|| encode(DType::I64, &shape, index.into_iter().map(Num::I))).transpose()?;
    Ok(std::iter::once(y).chain(index).collect())
}

/// A spatial length of a result, which an input too small for the window would make negative.
pub(crate) fn length(d: Dim, op: &str, axis: usize) -> Result<usize> {
    d.as_const()
        .and_then(|d| usize::try_from(d).ok())
        .ok_or_else(|| Error::input(format!("{op}: the window is larger than spatial axis {axis}, the result's length would be {d}")))
}
