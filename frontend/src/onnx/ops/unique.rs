//! Unique elements or slices, by sorting.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::index::{Gather, NonZero, ScatterElements, ScatterKind};
use nnc_ir::ops::reduce::{Cumulate, ReduceKind};
use nnc_ir::ops::sort::TopK;
use nnc_ir::ops::source::Iota;
use nnc_ir::ops::text::StringRank;
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[op("Unique", 11, (1, 1), unique)];

/// Slices longer than this are not compared.
const MAX_SLICE: i64 = 256;

/// Indices that sort a vector; equal elements keep their order.
fn order<'g>(c: &Call<'g>, v: V<'g>) -> V<'g> {
    let k = v.ty().shape.first().cloned().unwrap_or(Dim::Const(0));
    c.b.op_all(TopK { axis: 0, k, largest: false }, &[v], vec![])[1]
}

fn unique<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let given = c.x(0)?;
    // Strings are compared by their ranks.
    let x = if given.ty().dtype == DType::Str { c.b.op(StringRank {}, &[given]) } else { given };
    let ty = x.ty();
    let sorted = c.flag("sorted", true)?;
    let axis = c.opt_int("axis")?.map(|a| normalize_axis(a, ty.rank())).transpose()?;
    // Rows to compare: [n, width].
    let (n, rows) = match axis {
        None => (ty.elems(), x.reshape(vec![ty.elems(), Dim::Const(1)])),
        Some(a) => {
            let mut perm: Vec<usize> = (0..ty.rank()).filter(|i| *i != a).collect();
            perm.insert(0, a);
            let width = Dim::product(ty.shape.iter().enumerate().filter(|(i, _)| *i != a).map(|(_, d)| d));
            (ty.shape[a].clone(), x.transpose(&perm).reshape(vec![ty.shape[a].clone(), width]))
        }
    };
    let width = rows.ty().shape[1].as_const().filter(|w| (1..=MAX_SLICE).contains(w));
    let width = width.ok_or_else(|| Error::unsupported(format!("unique slices of {} elements", rows.ty().shape[1])))?;
    let gather = |v: V<'g>, i: V<'g>| c.b.op(Gather { axis: 0 }, &[v, i]);
    let column = |j: i64| rows.slice_axis(1, Dim::Const(j), Dim::Const(1)).reshape(vec![n.clone()]);
    // Sorting by the last column first and by the first column last gives the order of rows.
    let mut perm = order(c, column(width - 1));
    for j in (0..width - 1).rev() {
        perm = gather(perm, order(c, gather(column(j), perm)));
    }
    let lined_up = gather(rows, perm);
    let k = |v: i64| c.b.constant(Tensor::scalar(v));
    let place = c.b.op(Iota { shape: vec![n.clone()], axis: 0 }, &[]);
    let before = gather(lined_up, (place - k(1)).max(k(0)));
    let changes = (!lined_up.equal(before)).reduce(ReduceKind::Max, &[1], false);
    let starts_group = changes.or(place.equal(k(0)));
    let found = c.b.op(NonZero { count: c.b.fresh_symbol("unique") }, &[starts_group]);
    let count = found.ty().shape.get(1).cloned().unwrap_or(Dim::Const(0));
    let starts = found.reshape(vec![count.clone()]);
    let group = c.b.op(Cumulate { kind: ReduceKind::Sum, axis: 0, exclusive: false, reverse: false }, &[starts_group.cast(DType::I64)]) - k(1);
    let scattered = |reduction, to: V<'g>, at: V<'g>, values: V<'g>| c.b.op(ScatterElements { axis: 0, reduction }, &[to, at, values]);
    let scatter = |to: V<'g>, at: V<'g>, values: V<'g>| scattered(ScatterKind::Set, to, at, values);
    let zeros = |d: &Dim| k(0).expand(vec![d.clone()]);
    let mut inverse = scatter(zeros(&n), perm, group);
    let mut first = gather(perm, starts);
    let mut counts = scattered(ScatterKind::Add, zeros(&count), group, k(1).expand(vec![n.clone()]));
    if !sorted {
        // In the order of first occurrence.
        let by_place = order(c, first);
        let ramp = c.b.op(Iota { shape: vec![count.clone()], axis: 0 }, &[]);
        inverse = gather(scatter(zeros(&count), by_place, ramp), inverse);
        (first, counts) = (gather(first, by_place), gather(counts, by_place));
    }
    let y = match axis {
        None => gather(given.reshape(vec![ty.elems()]), first),
        Some(axis) => c.b.op(Gather { axis }, &[given, first]),
    };
    Ok(vec![y, first, inverse, counts])
}
