//! Maps: what classifiers end in, and what turns them into tensors.

use super::DOMAIN;
use crate::onnx::call::{Call, Item};
use crate::onnx::ops::{Row, items};
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::sort::TopK;
use nnc_ir::ops::source::Iota;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};
use std::sync::Arc;

pub const ROWS: &[Row] = &[
    items("CastMap", 1, (1, 1), cast_map).domain(DOMAIN),
    items("DictVectorizer", 1, (1, 1), dict_vectorizer).domain(DOMAIN),
    items("ZipMap", 1, (1, 1), zip_map).domain(DOMAIN),
];

/// More columns than this are not made of a number in the file alone.
const MAX_COLUMNS: i64 = 1 << 24;

/// The keys that one of two attributes lists.
fn listed<'g>(c: &Call<'g>, strings: &str, ints: &str) -> Result<V<'g>> {
    let keys = match (c.strs(strings)?.filter(|l| !l.is_empty()), c.ints(ints)?.filter(|l| !l.is_empty())) {
        (Some(l), None) => Tensor::text(&[l.len()], l.into_iter().map(Arc::from).collect())?,
        (None, Some(l)) => Tensor::new(&[l.len()], &l),
        _ => return Err(c.as_written(Error::attribute(format!("one of the attributes `{strings}` and `{ints}` should list keys")))),
    };
    Ok(c.b.constant(keys))
}

/// A row of numbers as a map of the classes, for each row.
fn zip_map<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let (x, keys) = (c.x(0)?, listed(c, "classlabels_strings", "classlabels_int64s")?);
    let n = keys.ty().elems();
    if !x.ty().dtype.is_float() {
        return Err(Error::dtype(format!("the values of maps are floats, found {}", x.ty())));
    }
    let rows = match &x.ty().shape[..] {
        [_] => Dim::Const(1),
        [rows, _] => rows.clone(),
        _ => return Err(Error::shape(format!("expected [C] or [N,C], found {}", x.ty()))),
    };
    Ok(vec![Item::Map([keys, x.reshape(vec![rows, n])])])
}

/// The value of each of `wanted`, or the scalar `other` where the map does not have that key: one row, as ONNX Runtime gives it.
fn looked_up<'g>(c: &Call<'g>, [keys, values]: [V<'g>; 2], wanted: V<'g>, other: V<'g>) -> Result<V<'g>> {
    if keys.ty().dtype != wanted.ty().dtype {
        return Err(Error::dtype(format!("the map has keys {}, asked for are {}", keys.ty(), wanted.ty())));
    }
    let (have, n) = (keys.ty().elems(), wanted.ty().elems());
    let found = wanted.reshape(vec![n.clone(), Dim::Const(1)]).equal(keys.reshape(vec![Dim::Const(1), have.clone()]));
    // The default comes first.
    let (zero, one) = (c.b.constant(Tensor::scalar(0i64)), c.b.constant(Tensor::scalar(1i64)));
    let place = c.b.op(Iota { shape: vec![have], axis: 0 }, &[]) + one;
    let place = V::concat(&[found.select(place, zero), zero.expand(vec![n.clone(), Dim::Const(1)])], 1).reduce(ReduceKind::Max, &[1], false);
    let y = c.b.op(Gather { axis: 0 }, &[V::concat(&[other.reshape(vec![Dim::Const(1)]), values], 0), place]);
    Ok(y.reshape(vec![Dim::Const(1), n]))
}

/// Zero, or no text.
fn nothing<'g>(c: &Call<'g>, dtype: DType) -> Result<V<'g>> {
    Ok(c.b.constant(if dtype == DType::Str { Tensor::text(&[], vec!["".into()])? } else { Tensor::scalar_of(dtype, 0.0) }))
}

fn dict_vectorizer<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let vocabulary = listed(c, "string_vocabulary", "int64_vocabulary")?;
    let map = c.map(0)?;
    let y = looked_up(c, map, vocabulary, nothing(c, map[1].ty().dtype)?)?;
    Ok(vec![Item::Tensor(y)])
}

fn cast_map<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let to = match c.word("cast_to", &["TO_FLOAT", "TO_STRING", "TO_INT64"])? {
        "TO_FLOAT" => DType::F32,
        "TO_STRING" => DType::Str,
        _ => DType::I64,
    };
    let sparse = c.word("map_form", &["DENSE", "SPARSE"])? == "SPARSE";
    let columns = c.int("max_map", 1)?;
    let [keys, values] = c.map(0)?;
    if keys.ty().dtype != DType::I64 {
        return Err(Error::dtype(format!("the map should have keys of i64, found {}", keys.ty())));
    }
    let (values, n) = (values.cast(to), keys.ty().elems());
    if !sparse {
        let order = c.b.op_all(TopK { axis: 0, k: n.clone(), largest: false }, &[keys], vec![])[1];
        let y = c.b.op(Gather { axis: 0 }, &[values, order]).reshape(vec![Dim::Const(1), n]);
        return Ok(vec![Item::Tensor(y)]);
    }
    if !(1..=MAX_COLUMNS).contains(&columns) {
        return Err(c.as_written(Error::attribute(format!("attribute `max_map` should be at least 1 and at most {MAX_COLUMNS}, found {columns}"))));
    }
    // Keys are columns; a size that no tensor has refuses the run where there is no such column.
    let k = |v: i64| c.b.constant(Tensor::new(&[1], &[v]));
    let inside = keys.greater_equal(k(0)).and(keys.less(k(columns)));
    let all = V::concat(&[inside, c.b.constant(Tensor::new(&[1], &[true]))], 0).reduce(ReduceKind::Min, &[0], true);
    c.read(all.select(k(0), k(-1)), "the keys")?;
    let wanted = c.b.op(Iota { shape: vec![Dim::Const(columns)], axis: 0 }, &[]);
    Ok(vec![Item::Tensor(looked_up(c, [keys, values], wanted, nothing(c, to)?)?)])
}
