//! Operators on strings, what others do to strings, and counts of n-grams.

use super::{Row, op};
use crate::onnx::call::{Call, Item};
use nnc_ir::ops::Op;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::source::{Dims, Iota};
use nnc_ir::ops::text::{Case, RegexMatch, StringConcat, StringNormalize, StringSplit};
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};
use std::sync::Arc;

pub const ROWS: &[Row] = &[
    op("RegexFullMatch", 20, (1, 1), regex),
    op("StringConcat", 20, (2, 2), |c| Ok(vec![c.b.op(StringConcat {}, &c.all()?)])),
    op("StringNormalizer", 10, (1, 1), normalizer),
    op("StringSplit", 20, (1, 1), split),
    op("TfIdfVectorizer", 9, (1, 1), tf_idf),
];

/// An operator that moves elements about, on strings: what it makes of the numbers of their places says where they go. What it fills up
/// with, which is zero for numbers, is no text.
pub fn moved<'g>(c: &Call<'g>, build: for<'c> fn(&Call<'c>) -> Result<Vec<V<'c>>>) -> Result<Vec<V<'g>>> {
    let texts = |item: &Item<V<'g>>| matches!(item, Item::Tensor(v) if v.ty().dtype == DType::Str);
    if !c.inputs.iter().any(texts) {
        return build(c);
    }
    if c.opt_str("reduction")?.is_some_and(|r| r != "none") {
        return Err(Error::dtype("strings are put in places, not reduced"));
    }
    let mut pool = vec![c.b.constant(Tensor::text(&[1], vec!["".into()])?)];
    let mut next = Dim::Const(1);
    let mut inputs = c.inputs.clone();
    for item in inputs.iter_mut().filter(|item| texts(item)) {
        let Item::Tensor(v) = item else { continue };
        let (n, shape) = (v.ty().elems(), v.ty().shape);
        pool.push(v.reshape(vec![n.clone()]));
        let places = c.b.op(Iota { shape: vec![n.clone()], axis: 0 }, &[]) + c.b.op(Dims { values: vec![next.clone()], scalar: true }, &[]);
        *item = Item::Tensor(places.reshape(shape));
        next = next + n;
    }
    let places = c.on(inputs, build)?;
    let pool = V::concat(&pool, 0);
    Ok(places.into_iter().map(|p| c.b.op(Gather { axis: 0 }, &[pool, p])).collect())
}

fn regex<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let pattern = c.opt_str("pattern")?.ok_or_else(|| c.missing("pattern"))?;
    Ok(vec![c.b.op(RegexMatch { pattern: pattern.into() }, &[c.x(0)?])])
}

fn normalizer<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    // Letters change case by Unicode's tables, whatever the locale.
    c.ignore(&["locale"]);
    let case = match c.word("case_change_action", &["NONE", "LOWER", "UPPER"])? {
        "LOWER" => Case::Lower,
        "UPPER" => Case::Upper,
        _ => Case::Keep,
    };
    let stopwords = c.strs("stopwords")?.unwrap_or_default().into_iter().map(Arc::from).collect();
    let op = StringNormalize { case, sensitive: c.flag("is_case_sensitive", false)?, stopwords, kept: c.b.fresh_symbol("kept") };
    Ok(vec![c.b.op(op, &[c.x(0)?])])
}

fn split<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let delimiter = c.opt_str("delimiter")?.unwrap_or_default().into();
    let op = StringSplit { delimiter, limit: c.int("maxsplit", -1)?, pieces: c.b.fresh_symbol("pieces") };
    Ok(c.b.op_all(op, &[c.x(0)?], vec![]))
}

/// How often each n-gram of the pool stands in each row, with up to so many elements left out between those of an n-gram; or whether
/// it does, or weighted.
fn tf_idf<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let needed = |name: &str| -> Result<usize> {
        let n = c.opt_int(name)?.ok_or_else(|| c.missing(name))?;
        usize::try_from(n).map_err(|_| Error::attribute(format!("attribute `{name}` cannot be {n}")))
    };
    let (least, most, skips) = (needed("min_gram_length")?, needed("max_gram_length")?, needed("max_skip_count")?);
    let mode = c.opt_str("mode")?.unwrap_or_default().to_string();
    let columns = c.ints("ngram_indexes")?.unwrap_or_default();
    let starts: Vec<usize> = c.ints("ngram_counts")?.unwrap_or_default().into_iter().map(|i| usize::try_from(i).unwrap_or(usize::MAX)).collect();
    let pool = match (c.strs("pool_strings")?.filter(|p| !p.is_empty()), c.ints("pool_int64s")?) {
        (Some(strings), _) => Tensor::text(&[strings.len()], strings.into_iter().map(Arc::from).collect())?,
        (None, ints) => {
            let ints = ints.unwrap_or_default();
            Tensor::new(&[ints.len()], &ints)
        }
    };
    let weights = c.floats("weights")?.unwrap_or_default();
    let width = columns.iter().max().map_or(0, |m| m.saturating_add(1));
    if columns.iter().any(|i| *i < 0) || width > MAX_COLUMNS || !(weights.is_empty() || weights.len() == columns.len()) {
        return Err(Error::attribute(format!("{} columns and {} weights do not fit", columns.len(), weights.len())));
    }
    let x = if x.ty().dtype == pool.dtype() { x } else { x.cast(pool.dtype()) };
    let vector = x.ty().rank() == 1;
    let rows = if vector { x.reshape(vec![Dim::Const(1), x.ty().shape[0].clone()]) } else { x };
    let [batch, length] = &rows.ty().shape[..] else { return Err(Error::shape(format!("expected [C] or [N,C], found {}", x.ty()))) };
    let length = length.as_const().ok_or_else(|| Error::unsupported("the number of elements in a row must be known when the model is compiled"))?;
    // A column that no n-gram counts in is zero: it gathers the one after the last n-gram.
    let mut place = vec![columns.len() as i64; width as usize];
    let mut counts = vec![];
    let mut first = 0;
    for n in 1..=starts.len() {
        let start = starts[n - 1];
        let end = starts.get(n).copied().unwrap_or(pool.elems());
        if start > end || end > pool.elems() || !(end - start).is_multiple_of(n) {
            return Err(Error::attribute(format!("the pool has no {n}-grams from {start} to {end}")));
        }
        let grams = (end - start) / n;
        if grams == 0 {
            continue;
        }
        for k in 0..grams {
            let column = columns.get(first + k).ok_or_else(|| Error::attribute("there are more n-grams than columns"))?;
            place[*column as usize] = (first + k) as i64;
        }
        first += grams;
        let pool = c.b.constant(pool.clone()).slice(vec![Dim::from(start)], vec![Dim::from(grams * n)]);
        let pool = pool.reshape(vec![Dim::from(grams), Dim::from(n)]);
        let mut total = c.b.constant(Tensor::scalar(0f32)).expand(vec![batch.clone(), Dim::from(grams)]);
        // One element has nothing between its parts. An n-gram whose elements lie further apart than the row is long is in none.
        let apart = |gaps: i64| usize::try_from((length - 1).max(0) / gaps).unwrap_or(usize::MAX);
        let steps = if n == 1 { usize::from(length > 0) } else { apart(n as i64 - 1).min(skips.saturating_add(1)) };
        if steps > MAX_STEPS {
            return Err(Error::limit(format!("n-grams with {skips} elements left out between their elements in rows of {length}")));
        }
        for step in (1..=steps).filter(|_| (least..=most).contains(&n)) {
            let windows = length - (n as i64 - 1) * step as i64;
            let same = |k: usize| {
                let part =
                    rows.slice_axis(1, Dim::from(k * step), Dim::Const(windows)).reshape(vec![batch.clone(), Dim::Const(windows), Dim::Const(1)]);
                part.equal(pool.slice_axis(1, Dim::from(k), Dim::Const(1)).reshape(vec![Dim::from(grams)]))
            };
            let all = (1..n).fold(same(0), |all, k| all.and(same(k)));
            total = total + all.cast(DType::F32).reduce(ReduceKind::Sum, &[1], false);
        }
        counts.push(total);
    }
    if first != columns.len() {
        return Err(Error::attribute(format!("{first} n-grams and {} columns", columns.len())));
    }
    counts.push(c.b.constant(Tensor::scalar(0f32)).expand(vec![batch.clone(), Dim::Const(1)]));
    let counts = V::concat(&counts, 1);
    let found = |v: V<'g>| v.greater(v.scalar_like(0.0)).cast(DType::F32);
    let weighted = |v: V<'g>| {
        let padded: Vec<f32> = weights.iter().map(|w| *w as f32).chain([0.0]).collect();
        if weights.is_empty() { v } else { c.b.op(Op::Map(nnc_ir::ScalarFn::Mul), &[v, c.b.constant(Tensor::new(&[padded.len()], &padded))]) }
    };
    let scores = match mode.as_str() {
        "TF" => counts,
        "IDF" => weighted(found(counts)),
        "TFIDF" => weighted(counts),
        _ => return Err(Error::attribute(format!("attribute `mode` is `{mode}`; known are TF, IDF, TFIDF"))),
    };
    let y = c.b.op(Gather { axis: 1 }, &[scores, c.b.constant(Tensor::new(&[place.len()], &place))]);
    Ok(vec![if vector { y.reshape(vec![Dim::Const(width)]) } else { y }])
}

/// Distances between the elements of an n-gram: each is a part of the graph.
const MAX_STEPS: usize = 1 << 12;

/// Columns of a result, however few the file lists.
const MAX_COLUMNS: i64 = 1 << 24;
