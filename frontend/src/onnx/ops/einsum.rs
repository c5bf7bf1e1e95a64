//! Einsum: operands meet two at a time, as matrix products; axes that nobody needs any more are summed on the way.

use super::matmul::matmul;
use super::{MANY, Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::source::Iota;
use nnc_ir::{Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[op("Einsum", 12, (1, MANY), einsum)];

/// A named axis: a letter, or one of those that an ellipsis stands for, counted from the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// A value with a label for each axis, no label twice.
#[derive(Clone)]
struct Term<'g> {
    v: V<'g>,
    labels: Vec<Label>,
}

fn einsum<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let equation: String = c.opt_str("equation")?.ok_or_else(|| c.missing("equation"))?.split_whitespace().collect();
    let bad = |why: &str| Error::attribute(format!("equation `{equation}`: {why}"));
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (equation.as_str(), None),
    };
    let x = c.all()?;
    let parts: Vec<&str> = left.split(',').collect();
    if parts.len() != x.len() {
        return Err(c.as_written(bad(&format!("{} terms for {} operands", parts.len(), x.len()))));
    }
    let written = parts.iter().zip(&x).map(|(p, v)| labels(p, Some(v.ty().rank()), 0)).collect::<Option<Vec<_>>>();
    let written = written.ok_or_else(|| Error::shape(format!("equation `{equation}`: a term does not fit its operand")))?;
    let dots = written.iter().flatten().filter_map(|l| if let Label::Ellipsis(k) = l { Some(k + 1) } else { None }).max().unwrap_or(0);
    let output = match right {
        Some(r) => labels(r, None, dots).ok_or_else(|| bad("the result is no list of letters"))?,
        None => {
            // Without a result: the ellipsis, then the letters that occur once, in the order of the alphabet.
            let mut letters: Vec<Label> = written.iter().flatten().copied().filter(|l| matches!(l, Label::Letter(_))).collect();
            letters.sort();
            let all = letters.clone();
            letters.retain(|l| all.iter().filter(|m| *m == l).count() == 1);
            (0..dots).rev().map(Label::Ellipsis).chain(letters).collect()
        }
    };
    let twice = |ls: &[Label]| ls.iter().enumerate().any(|(i, l)| ls[..i].contains(l));
    if twice(&output) || output.iter().any(|l| !written.iter().any(|w| w.contains(l))) {
        return Err(bad("each label of the result occurs in it once, and in an operand"));
    }
    let mut terms = x.into_iter().zip(written).map(|(v, labels)| diagonal(Term { v, labels })).collect::<Result<Vec<_>>>()?.into_iter();
    let mut acc = terms.next().ok_or_else(|| bad("no operands"))?;
    while let Some(next) = terms.next() {
        let needed = |l: &Label| output.contains(l) || terms.as_slice().iter().any(|t| t.labels.contains(l));
        acc = contracted(acc, next, &needed);
        if acc.v.is_poison() {
            return Ok(c.poisoned());
        }
    }
    let acc = summed(acc, &|l| output.contains(l));
    let perm: Vec<usize> = output.iter().filter_map(|l| acc.labels.iter().position(|m| m == l)).collect();
    Ok(vec![acc.v.transpose(&perm)])
}

/// The labels of a term; the ellipsis stands for the axes that the letters leave of `rank`, or for `dots` of them.
fn labels(term: &str, rank: Option<usize>, dots: usize) -> Option<Vec<Label>> {
    let letters = term.chars().filter(|c| *c != '.').count();
    let (head, tail) = term.split_once("...").unwrap_or((term, ""));
    let hidden = match rank {
        _ if !term.contains("...") => 0,
        Some(rank) => rank.checked_sub(letters)?,
        None => dots,
    };
    let fits = rank.is_none_or(|r| r == letters + hidden) && head.chars().chain(tail.chars()).all(|c| c.is_ascii_alphabetic());
    fits.then(|| head.chars().map(Label::Letter).chain((0..hidden).rev().map(Label::Ellipsis)).chain(tail.chars().map(Label::Letter)).collect())
}

/// Of axes with one label only the elements on their diagonal, as one axis.
fn diagonal(mut t: Term<'_>) -> Result<Term<'_>> {
    while let Some((i, j)) = (0..t.labels.len()).find_map(|j| t.labels[..j].iter().position(|l| *l == t.labels[j]).map(|i| (i, j))) {
        let (b, shape) = (t.v.builder(), t.v.ty().shape);
        if (&shape[i] - &shape[j]).as_const().is_some_and(|d| d != 0) {
            return Err(Error::shape(format!("one label for the axes {i} and {j} of {}", t.v.ty())));
        }
        let ramp = |axis: usize| {
            let mut s = vec![Dim::Const(1); shape.len()];
            s[axis] = shape[axis].clone();
            b.op(Iota { shape: s, axis }, &[])
        };
        let zero = b.constant(Tensor::scalar_of(t.v.ty().dtype, 0.0));
        t.v = ramp(i).equal(ramp(j)).select(t.v, zero).reduce(ReduceKind::Sum, &[j], false);
        t.labels.remove(j);
    }
    Ok(t)
}

/// The sum over axes whose label is not needed.
fn summed<'g>(t: Term<'g>, needed: &dyn Fn(&Label) -> bool) -> Term<'g> {
    let gone: Vec<usize> = (0..t.labels.len()).filter(|i| !needed(&t.labels[*i])).collect();
    let labels = t.labels.into_iter().filter(|l| needed(l)).collect();
    Term { v: t.v.reduce(ReduceKind::Sum, &gone, false), labels }
}

/// The product of two terms, summed over what is not needed after it.
fn contracted<'g>(a: Term<'g>, b: Term<'g>, needed: &dyn Fn(&Label) -> bool) -> Term<'g> {
    let in_b = b.labels.clone();
    let a = summed(a, &|l| needed(l) || in_b.contains(l));
    let in_a = a.labels.clone();
    let b = summed(b, &|l| needed(l) || in_a.contains(l));
    let shared: Vec<Label> = a.labels.iter().copied().filter(|l| b.labels.contains(l)).collect();
    let (batch, inner): (Vec<Label>, Vec<Label>) = shared.iter().copied().partition(|l| needed(l));
    let own = |t: &Term| t.labels.iter().copied().filter(|l| !shared.contains(l)).collect::<Vec<_>>();
    let (rows, columns) = (own(&a), own(&b));
    // [batch.., rows, inner] times [batch.., inner, columns]; batch axes stay apart, so that lengths of 1 stretch.
    let arranged = |t: &Term<'g>, first: &[Label], second: &[Label]| {
        let size = |l: &Label| t.labels.iter().position(|m| m == l).map_or(Dim::Const(1), |i| t.v.ty().shape[i].clone());
        let order = batch.iter().chain(first).chain(second);
        let perm: Vec<usize> = order.filter_map(|l| t.labels.iter().position(|m| m == l)).collect();
        let joined = |ls: &[Label]| ls.iter().fold(Dim::Const(1), |n, l| n * size(l));
        let shape: Vec<Dim> = batch.iter().map(size).chain([joined(first), joined(second)]).collect();
        t.v.transpose(&perm).reshape(shape)
    };
    let sizes = |t: &Term, ls: &[Label]| {
        ls.iter().filter_map(|l| t.labels.iter().position(|m| m == l)).map(|i| t.v.ty().shape[i].clone()).collect::<Vec<_>>()
    };
    let y = matmul(arranged(&a, &rows, &inner), arranged(&b, &inner, &columns));
    let shape = [&y.ty().shape[..batch.len().min(y.ty().rank())], &sizes(&a, &rows), &sizes(&b, &columns)].concat();
    Term { v: y.reshape(shape), labels: [batch, rows, columns].concat() }
}
