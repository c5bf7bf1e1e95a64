//! Features: scaling, filling, encoding, selecting.

use super::super::{MANY, Row, op};
use super::{DOMAIN, any, f32s, is_nan, rows};
use crate::onnx::call::Call;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::reduce::{ArgReduce, ReduceKind};
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};
use std::sync::Arc;

pub const ROWS: &[Row] = &[
    op("ArrayFeatureExtractor", 1, (2, 2), extract).domain(DOMAIN),
    op("Binarizer", 1, (1, 1), binarizer).domain(DOMAIN),
    op("CategoryMapper", 1, (1, 1), category_mapper).domain(DOMAIN),
    op("FeatureVectorizer", 1, (1, MANY), vectorizer).domain(DOMAIN),
    op("Imputer", 1, (1, 1), imputer).domain(DOMAIN),
    op("LabelEncoder", 1, (1, 1), class_encoder).domain(DOMAIN),
    op("LabelEncoder", 2, (1, 1), label_encoder).domain(DOMAIN),
    op("Normalizer", 1, (1, 1), normalizer).domain(DOMAIN),
    op("OneHotEncoder", 1, (1, 1), one_hot).domain(DOMAIN),
    op("Scaler", 1, (1, 1), scaler).domain(DOMAIN),
];

/// Columns by number; a vector is one row.
fn extract<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, index) = (c.x(0)?, c.x(1)?);
    let x = match &x.ty().shape[..] {
        [n] => x.reshape(vec![Dim::Const(1), n.clone()]),
        _ => x,
    };
    let flat = index.reshape(vec![index.ty().elems()]);
    let last = x.ty().rank().checked_sub(1).ok_or_else(|| Error::shape("a scalar has no features"))?;
    Ok(vec![c.b.op(Gather { axis: last }, &[x, flat])])
}

fn binarizer<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    Ok(vec![x.greater(x.scalar_like(c.float("threshold", 0.0)?)).cast(x.ty().dtype)])
}

fn scaler<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?.cast(DType::F32);
    let list = |name: &str| -> Result<Option<V<'g>>> { c.floats(name)?.filter(|v| !v.is_empty()).map(|v| f32s(c, &[v.len()], &v)).transpose() };
    let (offset, scale) = (list("offset")?, list("scale")?);
    let moved = offset.map_or(x, |o| x - o);
    Ok(vec![scale.map_or(moved, |s| moved * s)])
}

/// Each row divided by its norm; a row of norm 0 stays.
fn normalizer<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, rank) = (rows(c)?, c.x(0)?.ty().rank());
    let norm = match c.word("norm", &["MAX", "L1", "L2"])? {
        "MAX" => x.max_keep(&[1]),
        "L1" => x.abs().sum_keep(&[1]),
        _ => (x * x).sum_keep(&[1]).sqrt(),
    };
    let zero = norm.equal(norm.scalar_like(0.0));
    let y = x / zero.select(norm.scalar_like(1.0), norm);
    Ok(vec![if rank == 1 { y.reshape(c.x(0)?.ty().shape) } else { y }])
}

/// Other values in place of one, a value for each column or one for all.
fn imputer<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let dtype = x.ty().dtype;
    let (values, replaced) = if dtype.is_float() {
        c.ignore(&["imputed_value_int64s", "replaced_value_int64"]);
        let values = c.floats("imputed_value_floats")?.unwrap_or_default();
        (Tensor::new(&[values.len()], &values), c.float("replaced_value_float", 0.0)?)
    } else {
        c.ignore(&["imputed_value_floats", "replaced_value_float"]);
        let values = c.ints("imputed_value_int64s")?.unwrap_or_default();
        (Tensor::new(&[values.len()], &values), c.int("replaced_value_int64", 0)? as f64)
    };
    if values.elems() == 0 {
        return Err(Error::attribute("the imputer has no values"));
    }
    let hit = if replaced.is_nan() { is_nan(x) } else { x.equal(x.scalar_like(replaced)) };
    Ok(vec![hit.select(c.b.constant(values).cast(dtype), x)])
}

/// All inputs side by side, as f32.
fn vectorizer<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let sizes = c.ints("inputdimensions")?.unwrap_or_default();
    let mut parts = vec![];
    for (i, x) in c.all()?.into_iter().enumerate() {
        let x = x.cast(DType::F32);
        let part = match &x.ty().shape[..] {
            [n] => x.reshape(vec![Dim::Const(1), n.clone()]),
            [rows, rest @ ..] => x.reshape(vec![rows.clone(), Dim::product(rest)]),
            [] => x.reshape(vec![Dim::Const(1), Dim::Const(1)]),
        };
        if let (Some(want), Some(have)) = (sizes.get(i), part.ty().shape[1].as_const())
            && *want != have
        {
            return Err(Error::shape(format!("input {i} has {have} features, the attribute says {want}")));
        }
        parts.push(part);
    }
    Ok(vec![V::concat(&parts, 1)])
}

/// Which of `keys` each element is: a last axis as long as there are keys. NaN is NaN.
fn matches<'g>(c: &Call<'g>, x: V<'g>, keys: Tensor) -> V<'g> {
    let ty = x.ty();
    let column = x.reshape(ty.shape.iter().cloned().chain([Dim::Const(1)]).collect());
    let keys = c.b.constant(keys).cast(ty.dtype);
    let equal = column.equal(keys);
    if ty.dtype.is_float() { equal.or(is_nan(column).and(is_nan(keys))) } else { equal }
}

fn one_hot<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let cats = super::labels(c, "cats_strings", "cats_int64s")?.ok_or_else(|| Error::attribute("there are no categories"))?;
    if !c.flag("zeros", true)? {
        return Err(Error::unsupported("an encoder that fails for unknown categories (zeros=0)"));
    }
    let x = c.x(0)?;
    let x = if x.ty().dtype == cats.dtype() { x } else { x.cast(cats.dtype()) };
    Ok(vec![matches(c, x, cats).cast(DType::F32)])
}

/// Keys or values of a label encoder.
fn table(c: &Call, what: &str) -> Result<Option<Tensor>> {
    if let Some(t) = c.tensor(&format!("{what}_tensor"))? {
        return Ok(Some(t));
    }
    if let Some(v) = c.ints(&format!("{what}_int64s"))?.filter(|v| !v.is_empty()) {
        return Ok(Some(Tensor::new(&[v.len()], &v)));
    }
    if let Some(v) = c.floats(&format!("{what}_floats"))?.filter(|v| !v.is_empty()) {
        return Ok(Some(Tensor::new(&[v.len()], &v.iter().map(|x| *x as f32).collect::<Vec<f32>>())));
    }
    let strings = c.strs(&format!("{what}_strings"))?.filter(|v| !v.is_empty());
    strings.map(|v| Tensor::text(&[v.len()], v.into_iter().map(Arc::from).collect())).transpose()
}

/// Numbers for strings or strings for numbers, by pairs.
fn category_mapper<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let missing = |what: &str| c.missing(what);
    let ints = c.ints("cats_int64s")?.ok_or_else(|| missing("cats_int64s"))?;
    let strings = c.strs("cats_strings")?.ok_or_else(|| missing("cats_strings"))?;
    let (unknown, number) = (c.opt_str("default_string")?.unwrap_or("_Unused"), c.int("default_int64", -1)?);
    let strings = Tensor::text(&[strings.len()], strings.into_iter().map(Arc::from).collect())?;
    let ints = Tensor::new(&[ints.len()], &ints);
    if c.x(0)?.ty().dtype == DType::Str {
        return mapped(c, strings, ints, Tensor::scalar(number));
    }
    mapped(c, ints, strings, Tensor::text(&[], vec![unknown.into()])?)
}

/// Numbers of classes for their names, or names for numbers.
fn class_encoder<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let names = c.strs("classes_strings")?.ok_or_else(|| c.missing("classes_strings"))?;
    let (unknown, number) = (c.opt_str("default_string")?.unwrap_or("_Unused"), c.int("default_int64", -1)?);
    let numbers = Tensor::new(&[names.len()], &(0..names.len() as i64).collect::<Vec<_>>());
    let names = Tensor::text(&[names.len()], names.into_iter().map(Arc::from).collect())?;
    if c.x(0)?.ty().dtype == DType::Str {
        return mapped(c, names, numbers, Tensor::scalar(number));
    }
    mapped(c, numbers, names, Tensor::text(&[], vec![unknown.into()])?)
}

fn label_encoder<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let missing = |what: &str| Error::attribute(format!("the encoder has no {what}"));
    let (keys, values) = (table(c, "keys")?.ok_or_else(|| missing("keys"))?, table(c, "values")?.ok_or_else(|| missing("values"))?);
    let default = match c.tensor("default_tensor")? {
        Some(t) => t,
        None if values.dtype() == DType::Str => Tensor::text(&[], vec![c.opt_str("default_string")?.unwrap_or("_Unused").into()])?,
        None if values.dtype() == DType::F32 => Tensor::scalar(c.float("default_float", 0.0)? as f32),
        None => Tensor::scalar(c.int("default_int64", -1)?),
    };
    c.ignore(&["default_float", "default_int64", "default_string"]);
    mapped(c, keys, values, default)
}

/// The value of the key that each element is, or the default.
fn mapped<'g>(c: &Call<'g>, keys: Tensor, values: Tensor, default: Tensor) -> Result<Vec<V<'g>>> {
    if keys.elems() != values.elems() {
        return Err(Error::attribute(format!("{} keys and {} values", keys.elems(), values.elems())));
    }
    let default = c.b.constant(default.reshaped(vec![])?).cast(values.dtype());
    let hits = matches(c, c.x(0)?, keys.reshaped(vec![keys.elems()])?);
    let last = c.x(0)?.ty().rank();
    let codes = hits.cast(DType::U8);
    let first = c.b.op(ArgReduce { kind: ReduceKind::Max, axis: last, keepdims: false, last: false }, &[codes]);
    let values = c.b.constant(values.reshaped(vec![values.elems()])?);
    let found = c.b.op(Gather { axis: 0 }, &[values, first]);
    Ok(vec![any(hits, last).select(found, default)])
}
