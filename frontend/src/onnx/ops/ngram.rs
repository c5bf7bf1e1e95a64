//! TfIdfVectorizer of integers: how often each n-gram of a pool occurs.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::index::{ScatterElements, ScatterKind};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[op("TfIdfVectorizer", 9, (1, 1), vectorize)];

/// The n-grams of one length: their items one after the other.
struct Grams {
    length: usize,
    items: Vec<i64>,
}

/// Cuts the pool where `ngram_counts` says that the n-grams of the next length begin.
fn grams(pool: &[i64], starts: &[i64]) -> Result<Vec<Grams>> {
    let wrong = || Error::attribute(format!("attribute `ngram_counts` is {starts:?}, the pool holds {} items", pool.len()));
    let mut out = vec![];
    for (i, start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).map_or(pool.len() as i64, |e| *e);
        let range = usize::try_from(*start).ok().zip(usize::try_from(end).ok()).and_then(|(a, b)| pool.get(a..b)).ok_or_else(wrong)?;
        let length = i + 1;
        if range.len() % length != 0 {
            return Err(wrong());
        }
        out.push(Grams { length, items: range.to_vec() });
    }
    Ok(out)
}

fn vectorize<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let needed = |name: &str| c.opt_int(name)?.ok_or_else(|| Error::attribute(format!("attribute `{name}` is missing")));
    let listed = |name: &str| c.ints(name)?.ok_or_else(|| Error::attribute(format!("attribute `{name}` is missing")));
    let (shortest, longest, skips) = (needed("min_gram_length")?, needed("max_gram_length")?, needed("max_skip_count")?);
    if shortest < 1 || longest < shortest || !(0..=1 << 10).contains(&skips) {
        return Err(Error::attribute(format!("n-grams of {shortest} to {longest} items with up to {skips} skipped")));
    }
    let x = c.x(0)?;
    let ty = x.ty();
    if !ty.dtype.is_int() || !(1..=2).contains(&ty.rank()) {
        return Err(Error::unsupported(format!("expected integers [C] or [N,C], found {ty}")));
    }
    let all = grams(&listed("pool_int64s")?, &listed("ngram_counts")?)?;
    let indexes = listed("ngram_indexes")?;
    let count: usize = all.iter().map(|g| g.items.len() / g.length).sum();
    let width = indexes.iter().max().map_or(0, |m| m + 1);
    if indexes.len() != count || indexes.iter().any(|i| *i < 0) || width > 1 << 28 {
        return Err(Error::attribute(format!("attribute `ngram_indexes` should be {count} places, found {} up to {}", indexes.len(), width - 1)));
    }
    let rows = if ty.rank() == 2 { ty.shape[0].clone() } else { Dim::Const(1) };
    let length = ty.shape[ty.rank() - 1].clone();
    let x = x.cast(DType::I64).reshape(vec![rows.clone(), length.clone()]);

    // How often each n-gram occurs, in the order of the pool: f32 [rows, count].
    let zeros = |n: usize| c.b.constant(Tensor::scalar(0f32)).expand(vec![rows.clone(), Dim::from(n)]);
    let mut parts = vec![];
    for g in &all {
        let n = g.items.len() / g.length;
        let taken = (shortest..=longest).contains(&(g.length as i64)) && n > 0;
        // A single item has no gaps.
        let gaps = if !taken {
            0
        } else if g.length == 1 {
            1
        } else {
            skips + 1
        };
        let found = (1..=gaps).map(|gap| occurrences(c, x, &length, g, gap));
        parts.push(found.reduce(|a, b| a + b).unwrap_or_else(|| zeros(n)));
    }
    let counts = if parts.is_empty() { zeros(0) } else { V::concat(&parts, 1) };
    let places = c.b.constant(Tensor::new(&[1, count], &indexes)).expand(vec![rows.clone(), Dim::from(count)]);
    let y = c.b.op(ScatterElements { axis: 1, reduction: ScatterKind::Add }, &[zeros(width as usize), places, counts]);
    let weights = match c.floats("weights")? {
        // Weights go with the n-grams, not with their places.
        Some(w) if w.len() == count => {
            let mut by_place = vec![1f32; width as usize];
            indexes.iter().zip(&w).for_each(|(i, w)| by_place[*i as usize] = *w as f32);
            Some(c.b.constant(Tensor::new(&[by_place.len()], &by_place)))
        }
        Some(w) => return Err(Error::attribute(format!("attribute `weights` should be {count} numbers, found {}", w.len()))),
        None => None,
    };
    let present = || y.greater(y.scalar_like(0.0));
    let y = match c.word("mode", &["TF", "IDF", "TFIDF"])? {
        "TF" => y,
        "IDF" => present().select(weights.unwrap_or(y.scalar_like(1.0)), y.scalar_like(0.0)),
        _ => weights.map_or(y, |w| y * w),
    };
    Ok(vec![if ty.rank() == 2 { y } else { y.reshape(vec![Dim::from(width as usize)]) }])
}

/// How often each n-gram occurs in each row with items `gap` apart.
fn occurrences<'g>(c: &Call<'g>, x: V<'g>, length: &Dim, g: &Grams, gap: i64) -> V<'g> {
    let n = g.items.len() / g.length;
    let span = Dim::Const((g.length as i64 - 1) * gap);
    let windows = (length - &span).maximum(&Dim::Const(0));
    let rows = x.ty().shape[0].clone();
    let matches = (0..g.length).map(|j| {
        // Where the row is shorter than an n-gram there is no window, wherever it would start.
        let start = Dim::Const(j as i64 * gap).minimum(length);
        let item =
            x.slice(vec![Dim::Const(0), start], vec![rows.clone(), windows.clone()]).reshape(vec![rows.clone(), windows.clone(), Dim::Const(1)]);
        let wanted: Vec<i64> = g.items.chunks(g.length).map(|gram| gram[j]).collect();
        item.equal(c.b.constant(Tensor::new(&[n], &wanted)))
    });
    let hit = matches.reduce(|a, b| a.and(b)).unwrap_or_else(|| c.b.poison());
    hit.cast(DType::F32).reduce(ReduceKind::Sum, &[1], false)
}
