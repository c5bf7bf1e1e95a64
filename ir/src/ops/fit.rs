//! What must hold of the sizes of an operation's operands for it to make sense: kernels rely on it and look at no size twice. What is
//! known before the run is an error of inference where it does not hold; of sizes that only the run knows it is checked by the run.

use super::Op;
use super::contract::Layout;
use super::movement::{Pad, PadMode};
use crate::dim::Dim;
use crate::error::{Code, Error, Result};
use crate::types::Type;
use std::collections::BTreeSet;

/// The most bytes of a tensor, more than any machine holds: sizes below can be counted in tasks, strides and costs without care.
pub const MAX_BYTES: i64 = 1 << 46;

/// How a length `a` stands to a length `b`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Is {
    Equal,
    AtMost,
    /// `b`, or 1.
    Stretched,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Relation {
    pub a: Dim,
    pub b: Dim,
    pub is: Is,
}

impl Relation {
    /// Whether it holds; `None` where only the run knows.
    pub fn holds(&self) -> Option<bool> {
        if self.a == self.b || (self.is == Is::AtMost && self.b.never_below(&self.a)) {
            return Some(true);
        }
        let (a, b) = (self.a.as_const()?, self.b.as_const()?);
        Some(match self.is {
            Is::Equal => a == b,
            Is::AtMost => a <= b,
            Is::Stretched => a == b || a == 1,
        })
    }

    /// The same as lengths that are equal, or (`true`) the first at most the second.
    pub fn compared(&self) -> (Dim, Dim, bool) {
        match self.is {
            Is::Equal => (self.a.clone(), self.b.clone(), false),
            Is::AtMost => (self.a.clone(), self.b.clone(), true),
            Is::Stretched => ((&self.a - &self.b) * (&self.a - &Dim::Const(1)), Dim::Const(0), false),
        }
    }
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is {
            Is::Equal => write!(f, "{} to be equal to {}", self.a, self.b),
            Is::AtMost => write!(f, "{} to be at most {}", self.a, self.b),
            Is::Stretched => write!(f, "{} to be 1 or what it is stretched to, {}", self.a, self.b),
        }
    }
}

/// An error where operands `x` of an operation with results `y` do not fit, as far as sizes are known, or a result is nothing that a machine
/// could hold.
pub fn check(op: &Op, x: &[&Type], y: &[Type]) -> Result<()> {
    if let Some(r) = relations(op, x, y).into_iter().find(|r| r.holds() == Some(false)) {
        let operands: Vec<String> = x.iter().map(|t| t.to_string()).collect();
        return Err(Error::shape(format!("{} of {} needs {r}", op.name(), operands.join(", "))));
    }
    y.iter().try_for_each(|t| check_size(t).map_err(|e| Error::new(e.code(), format!("{}: {}", op.name(), e.message()))))
}

/// An error of shapes tells which sizes of the operands are open: where they fit in the run, it is that they must be known before.
pub fn with_open_sizes(e: Error, x: &[Type]) -> Error {
    let mut open = BTreeSet::new();
    x.iter().flat_map(|t| &t.shape).for_each(|d| {
        d.symbols(&mut |s| {
            open.insert(s.clone());
        })
    });
    // Sizes that the graph computes have names that nobody can give.
    let names: Vec<&str> = open.iter().map(|s| &**s).filter(|s| !s.contains('$')).collect();
    match names[..] {
        [first, ..] if e.code() == Code::Shape && e.notes().is_empty() => {
            e.note(format!("open sizes here: {}; one that must be known is given by `--dim {first}=N`", names.join(", ")))
        }
        _ => e,
    }
}

/// An error where a length is negative, or the tensor larger than [`MAX_BYTES`] even with the least that its open lengths can be. Empty
/// axes count as 1: strides go past them.
pub fn check_size(t: &Type) -> Result<()> {
    if let Some(d) = t.shape.iter().find(|d| d.as_const().is_some_and(|d| d < 0)) {
        return Err(Error::shape(format!("{t} has an axis of length {d}")));
    }
    let least = |d: &Dim| d.least().unwrap_or(1).max(1);
    let bytes = t.shape.iter().fold(t.dtype.bytes() as i64, |n, d| n.saturating_mul(least(d)));
    if bytes > MAX_BYTES { Err(Error::limit(format!("a tensor {t} is too large"))) } else { Ok(()) }
}

/// Relations between the sizes of an operation's operands `x` and results `y`, without those that are sure to hold.
pub fn relations(op: &Op, x: &[&Type], y: &[Type]) -> Vec<Relation> {
    let mut out = vec![];
    let mut relate = |a: &Dim, b: &Dim, is: Is| {
        let r = Relation { a: a.clone(), b: b.clone(), is };
        if r.holds() != Some(true) {
            out.push(r);
        }
    };
    let (zero, one) = (Dim::Const(0), Dim::Const(1));
    match op {
        Op::Map(_) | Op::Expand(_) => x.iter().for_each(|t| stretched(&t.shape, &y[0].shape, &mut relate)),
        Op::Reshape(_) => relate(&x[0].elems(), &y[0].elems(), Is::Equal),
        Op::Concat(c) => {
            for t in x {
                t.shape.iter().zip(&y[0].shape).enumerate().filter(|(i, _)| *i != c.axis).for_each(|(_, (a, b))| relate(a, b, Is::Equal));
            }
        }
        Op::MatMul(m) if !m.is_packed() => {
            let (a, b) = (&x[0].shape, &x[1].shape);
            let depth = if m.transposed || b.len() == 1 { b.len() - 1 } else { b.len() - 2 };
            relate(&a[a.len() - 1], &b[depth], Is::Equal);
            let batch = y[0].rank() - usize::from(a.len() > 1) - usize::from(b.len() > 1);
            for t in [a, b].into_iter().filter(|t| t.len() > 2) {
                stretched(&t[..t.len() - 2], &y[0].shape[..batch], &mut relate);
            }
        }
        // Panels: [batch.., panels, depth, PANEL].
        Op::MatMul(_) => {
            let (a, b) = (&x[0].shape, &x[1].shape);
            relate(&a[a.len() - 1], &b[b.len() - 2], Is::Equal);
            let batch = y[0].rank() - usize::from(a.len() > 1) - 1;
            for t in [&a[..a.len().saturating_sub(2)], &b[..b.len() - 3]] {
                stretched(t, &y[0].shape[..batch], &mut relate);
            }
        }
        Op::Conv(c) if matches!(c.layout, Layout::Plain | Layout::Blocked(_)) => {
            relate(&x[0].shape[1], &(x[1].shape[1].clone() * Dim::from(c.group)), Is::Equal);
            relate(&x[1].shape[0].modulo(&Dim::from(c.group)), &zero, Is::Equal);
        }
        Op::ConvTranspose(c) => {
            relate(&x[0].shape[1], &x[1].shape[0], Is::Equal);
            relate(&x[0].shape[1].modulo(&Dim::from(c.group)), &zero, Is::Equal);
        }
        Op::Slice(s) => {
            // Of no elements all are inside.
            for (i, d) in x[0].shape.iter().enumerate().filter(|(i, _)| !s.sizes[*i].is(0)) {
                let (first, size, some) = (&s.starts[i], &s.sizes[i], s.sizes[i].minimum(&one));
                let last = first.clone() + (size.clone() - one.clone()) * Dim::Const(s.step(i));
                let (low, high) = if s.step(i) > 0 { (first, &last) } else { (&last, first) };
                relate(&zero, &(low.clone() * some.clone()), Is::AtMost);
                let end = if s.step(i) == 1 { first.clone() + size.clone() } else { (high.clone() + one.clone()) * some };
                relate(&end, d, Is::AtMost);
            }
        }
        Op::Pad(p) => (0..x[0].rank()).for_each(|i| padded(p, i, &x[0].shape[i], &y[0].shape[i], &mut relate)),
        Op::Interleave(s) => {
            for (k, t) in x.iter().enumerate() {
                for (i, place) in s.place(k).into_iter().enumerate() {
                    relate(&t.shape[i], &(y[0].shape[i].clone() - Dim::from(place)).ceil_div(&Dim::from(s.steps[i])), Is::Equal);
                }
            }
        }
        Op::TopK(t) => relate(&t.k, &x[0].shape[t.axis], Is::AtMost),
        Op::GatherElements(g) => {
            x[1].shape.iter().zip(&x[0].shape).enumerate().filter(|(i, _)| *i != g.axis).for_each(|(_, (a, b))| relate(a, b, Is::AtMost));
        }
        Op::GatherNd(g) => x[0].shape.iter().zip(&x[1].shape).take(g.batch_dims).for_each(|(a, b)| relate(a, b, Is::Equal)),
        Op::ScatterElements(s) => {
            x[1].shape.iter().zip(&x[2].shape).for_each(|(a, b)| relate(a, b, Is::Equal));
            x[1].shape.iter().zip(&x[0].shape).enumerate().filter(|(i, _)| *i != s.axis).for_each(|(_, (a, b))| relate(a, b, Is::AtMost));
        }
        Op::ScatterNd(_) => {
            let rows = x[1].rank() - 1;
            let depth = x[0].rank() - (x[2].rank() - rows);
            x[1].shape[..rows].iter().chain(&x[0].shape[depth..]).zip(&x[2].shape).for_each(|(a, b)| relate(a, b, Is::Equal));
        }
        Op::Scan(s) => {
            let scanned = &x[s.states..s.states + s.scanned];
            scanned.iter().skip(1).for_each(|t| relate(&t.shape[0], &scanned[0].shape[0], Is::Equal));
        }
        _ => {}
    }
    out
}

/// Padding of an axis of length `d` to `padded`: no more is cut off than there is, and where elements are repeated one at least is left.
fn padded(p: &Pad, axis: usize, d: &Dim, padded: &Dim, relate: &mut dyn FnMut(&Dim, &Dim, Is)) {
    let zero = Dim::Const(0);
    let kept = d.clone() + p.lo[axis].minimum(&zero) + p.hi[axis].minimum(&zero);
    let needed = if p.mode == PadMode::Constant { zero } else { padded.minimum(&Dim::Const(1)) };
    relate(&needed, &kept, Is::AtMost);
}

/// Lengths of an operand that is stretched to a result.
fn stretched(x: &[Dim], y: &[Dim], relate: &mut dyn FnMut(&Dim, &Dim, Is)) {
    let open = |d: &Dim| d.as_const().is_none() && d.least().is_none_or(|l| l < 2);
    let pairs = x.iter().rev().zip(y.iter().rev()).filter(|(d, _)| !d.is(1));
    pairs.for_each(|(a, b)| relate(a, b, if open(a) { Is::Stretched } else { Is::Equal }));
}
