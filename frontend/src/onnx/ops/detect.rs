//! Non-maximum suppression.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::index::{GatherElements, GatherNd, NonZero};
use nnc_ir::ops::reduce::{ArgReduce, ReduceKind};
use nnc_ir::ops::source::Iota;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[op("NonMaxSuppression", 10, (2, 5), non_max_suppression)];

/// Corners of boxes `[.., 4]` as lows and highs of both axes, each `[.., 1]`.
fn corners<'g>(boxes: V<'g>, centred: bool) -> [V<'g>; 4] {
    let last = boxes.ty().rank() - 1;
    let at = |i: i64| boxes.slice_axis(last, Dim::Const(i), Dim::Const(1));
    let (a, b, c, d) = (at(0), at(1), at(2), at(3));
    if centred {
        let (half_w, half_h) = (c * c.scalar_like(0.5), d * d.scalar_like(0.5));
        [a - half_w, b - half_h, a + half_w, b + half_h]
    } else {
        [a.min(c), b.min(d), a.max(c), b.max(d)]
    }
}

/// Greedy selection, all batches and classes at once: a scan over at most `max_output_boxes_per_class` steps, each of which takes
/// the best box that is left and drops those that overlap it.
fn non_max_suppression<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (boxes, scores) = (c.long(c.x(0)?, 2, 4), c.x(1)?);
    let (bs, ss) = (boxes.ty().shape, scores.ty().shape);
    if bs.len() != 3 || ss.len() != 3 || !bs[2].is(4) {
        return Err(Error::shape(format!("boxes {} and scores {}", boxes.ty(), scores.ty())));
    }
    let centred = c.flag("center_point_box", false)?;
    let most = match c.opt(2) {
        Some(_) => c.dims_of(2, 1, "max_output_boxes_per_class")?.first().cloned().unwrap_or(Dim::Const(0)),
        None => Dim::Const(0),
    };
    let steps = most.maximum(&Dim::Const(0)).minimum(&ss[2]);
    let scalar = |i: usize| c.opt(i).map(|v| v.reshape(vec![]).cast(DType::F32));
    let overlap = scalar(3).unwrap_or_else(|| c.b.constant(Tensor::scalar(0f32)));
    let all = |v: bool| c.b.constant(Tensor::scalar(v)).expand(ss.clone());
    let alive = scalar(4).map_or_else(|| all(true), |least| scores.greater(least));
    // Boxes are [batch, 1, boxes, 4] beside scores [batch, classes, boxes].
    let boxes4 = boxes.reshape(vec![bs[0].clone(), Dim::Const(1), bs[1].clone(), Dim::Const(4)]);

    let region = c.b.nested("select");
    let left = region.input("left", alive.ty());
    let step = region.input("step", nnc_ir::Type::new(DType::I64, vec![]));
    let (all_boxes, all_scores, threshold) =
        (region.input("boxes", boxes4.ty()), region.input("scores", scores.ty()), region.input("overlap", overlap.ty()));
    let masked = left.select(all_scores, all_scores.scalar_like(f64::NEG_INFINITY));
    let best = region.op(ArgReduce { kind: ReduceKind::Max, axis: 2, keepdims: true, last: false }, &[masked]);
    let found = left.reduce(ReduceKind::Max, &[2], false);
    let per_class = vec![ss[0].clone(), ss[1].clone(), Dim::Const(1), Dim::Const(4)];
    let spread = all_boxes.expand(vec![ss[0].clone(), ss[1].clone(), ss[2].clone(), Dim::Const(4)]);
    let index = best.reshape(vec![ss[0].clone(), ss[1].clone(), Dim::Const(1), Dim::Const(1)]).expand(per_class);
    let chosen = region.op(GatherElements { axis: 2 }, &[spread, index]);
    let ([y0, x0, y1, x1], [v0, u0, v1, u1]) = (corners(chosen, centred), corners(all_boxes, centred));
    let none = y0.scalar_like(0.0);
    let inner = (y1.min(v1) - y0.max(v0)).max(none) * (x1.min(u1) - x0.max(u0)).max(none);
    let (area, other) = ((y1 - y0) * (x1 - x0), (v1 - v0) * (u1 - u0));
    let union = area + other - inner;
    let near = inner.greater(none).and(area.greater(none)).and(other.greater(none)).and((inner / union).greater(threshold));
    let ramp = region.op(Iota { shape: vec![Dim::Const(1), Dim::Const(1), ss[2].clone()], axis: 2 }, &[]);
    let keep = !(near.reshape(ss.clone()).or(ramp.equal(best)));
    // The step number is read so that the scan has something to run over.
    let index = best.reshape(vec![ss[0].clone(), ss[1].clone()]) + step * step.scalar_like(0.0);
    region.output("left", left.and(keep));
    region.output("index", index);
    region.output("found", found);
    let body = region.finish().map_err(|mut e| e.0.remove(0))?;

    let count = c.b.op(Iota { shape: vec![steps], axis: 0 }, &[]);
    let y = c.b.op_all(Scan { states: 1, scanned: 1, reverse: false }, &[alive, count, boxes4, scores, overlap], vec![body]);
    if y[0].is_poison() {
        return Ok(c.poisoned());
    }
    // [steps, batch, classes] to [batch, classes, steps]; each place that holds a box gives a row (batch, class, box).
    let (index, found) = (y[1].transpose(&[1, 2, 0]), y[2].transpose(&[1, 2, 0]));
    let places = c.b.op(NonZero { count: c.b.fresh_symbol("boxes") }, &[found]).transpose(&[1, 0]);
    let picked = c.b.op(GatherNd { batch_dims: 0 }, &[index, places]);
    let n = places.ty().shape[0].clone();
    let first = places.slice_axis(1, Dim::Const(0), Dim::Const(2));
    Ok(vec![V::concat(&[first, picked.reshape(vec![n, Dim::Const(1)])], 1)])
}
