//! Sequences and optionals: their lengths and presence are known while the graph is built, so that what is left of them is tensors.

use super::{MANY, Row, items};
use crate::onnx::call::{Arg, Call, Item};
use nnc_ir::ops::index::Gather;
use nnc_ir::types::normalize_axis;
use nnc_ir::{Dim, Error, Result, Tensor, V};

/// The one that has a body.
pub const MAP: &str = "SequenceMap";

pub const ROWS: &[Row] = &[
    items("ConcatFromSequence", 11, (1, 1), concat),
    items("Identity", 1, (1, 1), |c| Ok(vec![c.item(0)])),
    items("Optional", 15, (0, 1), |c| {
        c.ignore(&["type"]);
        Ok(vec![c.item(0)])
    }),
    items("OptionalGetElement", 15, (0, 1), get),
    items("OptionalHasElement", 15, (0, 1), |c| Ok(vec![Item::Tensor(c.b.constant(Tensor::scalar(!matches!(c.item(0), Item::Absent))))])),
    items("SequenceAt", 11, (2, 2), at),
    items("SequenceConstruct", 11, (1, MANY), |c| Ok(vec![Item::List(c.all()?)])),
    items("SequenceEmpty", 11, (0, 0), |c| {
        c.ignore(&["dtype"]);
        Ok(vec![Item::List(vec![])])
    }),
    items("SequenceErase", 11, (1, 2), erase),
    items("SequenceInsert", 11, (2, 3), insert),
    items("SequenceLength", 11, (1, 1), |c| Ok(vec![Item::Tensor(c.b.constant(Tensor::scalar(c.list(0)?.len() as i64)))])),
    items(MAP, 17, (1, MANY), map),
    items("SplitToSequence", 11, (1, 2), split),
];

fn get<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    match c.item(0) {
        Item::Absent => Err(Error::input("the optional holds nothing")),
        item => Ok(vec![item]),
    }
}

/// Input `i` as a place among `n`, the last of which is `n - 1`; negative ones count from the end.
fn position(c: &Call, i: usize, n: usize) -> Result<usize> {
    let at = c.known_ints(i, "a position in a sequence")?;
    let [at] = at[..] else { return Err(Error::shape(format!("a position is one number, found {at:?}"))) };
    let place = if at < 0 { at + n as i64 } else { at };
    usize::try_from(place).ok().filter(|p| *p < n).ok_or_else(|| Error::input(format!("position {at} is outside a sequence with {n} places")))
}

/// An element; one that only the run knows where all elements are of one type.
fn at<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let list = c.list(0)?;
    let known = c.dims(1)?.is_some_and(|d| d.iter().all(|d| d.as_const().is_some()));
    let alike = list.first().is_some_and(|first| list.iter().all(|v| v.ty() == first.ty()));
    if known || !alike {
        return Ok(vec![Item::Tensor(list[position(c, 1, list.len())?])]);
    }
    let index = c.x(1)?.reshape(vec![]);
    Ok(vec![Item::Tensor(c.b.op(Gather { axis: 0 }, &[stacked(&list, 0), index]))])
}

fn erase<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let mut list = c.list(0)?;
    let last = list.len().checked_sub(1).ok_or_else(|| Error::input("nothing can be erased from an empty sequence"))?;
    list.remove(if c.opt(1).is_some() { position(c, 1, list.len())? } else { last });
    Ok(vec![Item::List(list)])
}

fn insert<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let mut list = c.list(0)?;
    // A negative position counts from the end of the sequence as it is; its length is the end itself.
    let place = match c.opt(2) {
        Some(_) if c.known_ints(2, "a position in a sequence")?.iter().all(|at| *at < 0) => position(c, 2, list.len())?,
        Some(_) => position(c, 2, list.len() + 1)?,
        None => list.len(),
    };
    list.insert(place, c.x(1)?);
    Ok(vec![Item::List(list)])
}

/// Tensors along a new axis.
pub fn stacked<'g>(list: &[V<'g>], axis: usize) -> V<'g> {
    let one = |v: &V<'g>| {
        let mut shape = v.ty().shape;
        shape.insert(axis, Dim::Const(1));
        v.reshape(shape)
    };
    V::concat(&list.iter().map(one).collect::<Vec<_>>(), axis)
}

fn concat<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let list = c.list(0)?;
    let axis = c.opt_int("axis")?.ok_or_else(|| c.missing("axis"))?;
    let first = list.first().ok_or_else(|| Error::input("an empty sequence has nothing to join"))?.ty();
    let new = c.flag("new_axis", false)?;
    let axis = normalize_axis(axis, first.rank() + usize::from(new))?;
    if new && list.iter().any(|v| v.ty().rank() != first.rank()) {
        return Err(Error::shape("the elements have different ranks"));
    }
    Ok(vec![Item::Tensor(if new { stacked(&list, axis) } else { V::concat(&list, axis) })])
}

fn split<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let (x, axis) = (c.x(0)?, c.axis("axis", 0)?);
    let whole = x.ty().shape[axis].clone();
    let given = c.opt(1).map(|v| v.ty().rank());
    let sizes: Vec<Dim> = match given {
        Some(1) => c.dims_or_read(1, "split")?,
        _ => {
            let length = whole.as_const();
            let length = length
                .ok_or_else(|| Error::unsupported(format!("the length of axis {axis} of {} must be known when the model is compiled", x.ty())))?;
            let size = if given.is_some() { c.known_ints(1, "the length of a piece")?.first().copied().unwrap_or(1) } else { 1 };
            if size < 1 || length / size > MAX_PIECES {
                return Err(Error::input(format!("axis {axis} of length {length} is to be cut into pieces of {size}")));
            }
            (0..length).step_by(size as usize).map(|at| Dim::Const(size.min(length - at))).collect()
        }
    };
    let sum = sizes.iter().fold(Dim::Const(0), |n, s| n + s.clone());
    if sizes.iter().any(|s| s.as_const().is_some_and(|s| s < 0)) || (&sum - &whole).as_const().is_some_and(|d| d != 0) {
        return Err(Error::input(format!("axis {axis} of length {whole} cannot be cut into {sizes:?}")));
    }
    // The flag counts only where each piece is one element because nothing else is said.
    let keep = c.flag("keepdims", true)? || given.is_some();
    let mut start = Dim::Const(0);
    let mut out = vec![];
    for size in sizes {
        let piece = x.slice_axis(axis, start.clone(), size.clone());
        let mut shape = piece.ty().shape;
        out.push(if keep {
            piece
        } else {
            shape.remove(axis);
            piece.reshape(shape)
        });
        start = start + size;
    }
    Ok(vec![Item::List(out)])
}

/// Pieces that a tensor is cut into without a list of them in the file.
const MAX_PIECES: i64 = 1 << 16;

/// The body for each element, in place.
fn map<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let body = c.region("body")?;
    let (_, results) = body.arity();
    if c.inputs.iter().any(|x| matches!(x, Item::Tensor(v) if v.is_poison())) {
        let element = |x: &Item<V<'g>>| match x.tensors().first() {
            Some(v) if !v.is_poison() => Arg::Type(v.ty()),
            _ => Arg::Poison,
        };
        c.body(&body, &c.inputs.iter().map(element).collect::<Vec<_>>(), &body.captures());
        return Ok(c.poisoned().into_iter().map(Item::Tensor).collect());
    }
    let first = c.list(0)?;
    let mut out = vec![vec![]; results];
    for i in 0..first.len() {
        let element = |item: &Item<V<'g>>| match item {
            Item::List(list) => list.get(i).copied().map(Item::Tensor).ok_or_else(|| Error::input("the sequences have different lengths")),
            other => Ok(other.clone()),
        };
        let args = c.inputs.iter().map(element).collect::<Result<Vec<_>>>()?;
        for (slot, item) in out.iter_mut().zip(body.inline(&args)?) {
            match item {
                Item::Tensor(v) => slot.push(v),
                other => return Err(Error::dtype(format!("the body gives {} where a tensor is wanted", other.kind()))),
            }
        }
    }
    Ok(out.into_iter().map(Item::List).collect())
}
