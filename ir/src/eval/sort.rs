//! Reference sorting.

use super::Env;
use super::elems::{decode, encode, pick};
use super::reduce::beats;
use crate::error::{Error, Result};
use crate::ops::sort::TopK;
use crate::scalar::Num;
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;
use std::cmp::Ordering;

pub fn top_k(op: &TopK, x: &Tensor, env: &Env) -> Result<Vec<Tensor>> {
    let length = x.shape()[op.axis];
    let k = usize::try_from(env.dim(&op.k)?).ok().filter(|k| *k <= length);
    let Some(k) = k else { return Err(Error::input(format!("top_k: {} of {length} elements are asked for", op.k))) };
    let mut shape = x.shape().to_vec();
    shape[op.axis] = k;
    let inner: usize = shape[op.axis + 1..].iter().product();
    let outer: usize = shape[..op.axis].iter().product();
    let values = decode(x, |n| n);
    let mut order = vec![0; checked_elems(DType::I64, &shape)?];
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let at = |j: usize| (o * length + j) * inner + i;
        let mut lane: Vec<usize> = (0..length).collect();
        lane.sort_by(|a, b| precedes(op.largest, values[at(*a)], values[at(*b)]));
        (0..k).for_each(|j| order[(o * k + j) * inner + i] = lane[j]);
    }
    let place = |n: usize| (n / (k * inner) * length + order[n]) * inner + n % inner;
    let sorted = pick(x, &shape, (0..order.len()).map(place))?;
    Ok(vec![sorted, encode(DType::I64, &shape, order.iter().map(|i| Num::I(*i as i64)))?])
}

/// Order of two elements with NaN as the largest number.
fn precedes(largest: bool, a: Num, b: Num) -> Ordering {
    // The search for the smallest also meets NaN first in `beats`: ask for the largest and turn the answer round.
    let ahead = beats(true, b, a).cmp(&beats(true, a, b));
    if largest { ahead } else { ahead.reverse() }
}
