//! Determinants, by elimination with pivots.

use super::index::ramp;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::reduce::{ArgReduce, ReduceKind};
use nnc_ir::ops::source::Iota;
use nnc_ir::{DType, Dim, Error, Result, V};

pub const ROWS: &[Row] = &[op("Det", 11, (1, 1), det)];

/// Of `[.., m, m]`, computed in f64. One step a column: the largest number at or below the diagonal comes onto it, and multiples of its
/// row clear the column below; the determinant is the product of the diagonal, its sign that of the exchanges.
fn det<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let ty = x.ty();
    let Some((lead, [m, columns])) = ty.shape.split_last_chunk::<2>() else {
        return Err(Error::shape(format!("expected square matrices, found {ty}")));
    };
    if m != columns {
        return Err(Error::shape(format!("expected square matrices, found {ty}")));
    }
    let batch = Dim::product(lead);
    let a = x.cast(DType::F64).reshape(vec![batch.clone(), m.clone(), m.clone()]);
    let one = a.scalar_like(1.0).expand(vec![batch.clone()]);
    let columns = ramp(c.b, m.clone(), 0, 1);

    let region = c.b.nested("column");
    let (a_in, det_in) = (region.input("a", a.ty()), region.input("det", one.ty()));
    let k = region.input("k", columns.ty().with_shape(vec![]));
    let row = |v: V<'_>| vec![v.ty().shape[0].clone(), Dim::Const(1), m.clone()];
    let column = |v: V<'_>| vec![v.ty().shape[0].clone(), m.clone(), Dim::Const(1)];
    let rows = region.op(Iota { shape: vec![Dim::Const(1), m.clone()], axis: 1 }, &[]);
    let at = |v, axis: usize| region.op(Gather { axis }, &[v, k]);

    let size = at(a_in, 2).abs();
    let candidates = rows.less(k).select(size.scalar_like(-1.0), size);
    let pivot_row = region.op(ArgReduce { kind: ReduceKind::Max, axis: 1, keepdims: true, last: false }, &[candidates]);
    let (is_pivot, is_k) = (rows.equal(pivot_row), rows.equal(k));
    // The pivot's row, alone: everything else is left out of the sum.
    let is_pivot = is_pivot.reshape(column(is_pivot));
    let pivots = is_pivot.select(a_in, a_in.scalar_like(0.0)).reduce(ReduceKind::Sum, &[1], false);
    let exchanged = {
        let (upper, lower) = (pivots.reshape(row(pivots)), at(a_in, 1));
        let down = is_pivot.select(lower.reshape(row(lower)), a_in);
        is_k.reshape(vec![Dim::Const(1), m.clone(), Dim::Const(1)]).select(upper, down)
    };
    let pivot = at(pivots, 1);
    let moved = pivot_row.reshape(vec![batch.clone()]).equal(k);
    let sign = moved.select(pivot.scalar_like(1.0), pivot.scalar_like(-1.0));
    region.output("", {
        let below = at(exchanged, 2);
        let p = pivot.reshape(vec![batch.clone(), Dim::Const(1)]);
        // A column of zeros has nothing to clear.
        let clears = rows.greater(k).and(p.equal(p.scalar_like(0.0)).map(nnc_ir::ScalarFn::Not));
        let factor = clears.select(below / p, below.scalar_like(0.0));
        exchanged - factor.reshape(column(factor)) * pivots.reshape(row(pivots))
    });
    region.output("", det_in * pivot * sign);
    let body = region.finish().map_err(|mut e| e.0.remove(0))?;
    let y = c.b.op_all(Scan { states: 2, scanned: 1, reverse: false }, &[a, one, columns], vec![body]);
    Ok(vec![y[1].reshape(lead.to_vec()).cast(ty.dtype)])
}
