//! What must hold of sizes that are known only when the model runs for its operations to make sense: inference takes two lengths that
//! it cannot compare for the same, and loops rely on it.

use nnc_ir::ops::contract::Layout;
use nnc_ir::{Dim, Op, Type};

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

/// Relations between the sizes of an operation's operands `x` and results `y`, without those that are plain.
pub fn relations(op: &Op, x: &[&Type], y: &[Type]) -> Vec<Relation> {
    let mut out = vec![];
    let mut relate = |a: &Dim, b: &Dim, is: Is| {
        let never_more = is == Is::AtMost && (b - a).least().is_some_and(|l| l >= 0);
        let sure = a == b || (a.as_const().is_some() && b.as_const().is_some()) || never_more;
        if !sure {
            out.push(Relation { a: a.clone(), b: b.clone(), is });
        }
    };
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
        Op::Conv(c) if c.layout == Layout::Plain => relate(&x[0].shape[1], &(x[1].shape[1].clone() * Dim::from(c.group)), Is::Equal),
        Op::ConvTranspose(_) => relate(&x[0].shape[1], &x[1].shape[0], Is::Equal),
        Op::Slice(s) => {
            for (i, d) in x[0].shape.iter().enumerate().filter(|(i, _)| s.step(*i) == 1) {
                relate(&(s.starts[i].clone() + s.sizes[i].clone()), d, Is::AtMost);
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

/// Lengths of an operand that is stretched to a result.
fn stretched(x: &[Dim], y: &[Dim], relate: &mut dyn FnMut(&Dim, &Dim, Is)) {
    let open = |d: &Dim| d.as_const().is_none() && d.least().is_none_or(|l| l < 2);
    let pairs = x.iter().rev().zip(y.iter().rev()).filter(|(d, _)| !d.is(1));
    pairs.for_each(|(a, b)| relate(a, b, if open(a) { Is::Stretched } else { Is::Equal }));
}
