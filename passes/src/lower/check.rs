//! What must hold of sizes that are known only when the model runs for its operations to make sense: inference takes two lengths that
//! it cannot compare for the same, and loops rely on it.

use nnc_ir::ops::contract::Layout;
use nnc_ir::{Dim, Op, Type};

/// `a` equals `b`, or is at most `b`.
pub struct Relation {
    pub a: Dim,
    pub b: Dim,
    pub at_most: bool,
}

/// Relations between the sizes of an operation's operands `x` and results `y`, without those that are plain.
pub fn relations(op: &Op, x: &[&Type], y: &[Type]) -> Vec<Relation> {
    let mut out = vec![];
    let mut add = |a: &Dim, b: &Dim, at_most: bool| {
        let plain = a == b || (at_most && (b - a).least().is_some_and(|l| l >= 0)) || (a.as_const().is_some() && b.as_const().is_some());
        if !plain {
            out.push(Relation { a: a.clone(), b: b.clone(), at_most });
        }
    };
    match op {
        Op::Map(_) | Op::Expand(_) => x.iter().for_each(|t| stretched(&t.shape, &y[0].shape, &mut add)),
        Op::Reshape(_) => add(&x[0].elems(), &y[0].elems(), false),
        Op::Concat(c) => {
            for t in x {
                t.shape.iter().zip(&y[0].shape).enumerate().filter(|(i, _)| *i != c.axis).for_each(|(_, (a, b))| add(a, b, false));
            }
        }
        Op::MatMul(m) if !m.is_packed() => {
            let (a, b) = (&x[0].shape, &x[1].shape);
            let depth = if m.transposed || b.len() == 1 { b.len() - 1 } else { b.len() - 2 };
            add(&a[a.len() - 1], &b[depth], false);
            let batch = y[0].rank() - usize::from(a.len() > 1) - usize::from(b.len() > 1);
            for t in [a, b].into_iter().filter(|t| t.len() > 2) {
                stretched(&t[..t.len() - 2], &y[0].shape[..batch], &mut add);
            }
        }
        // Panels: [batch.., panels, depth, PANEL].
        Op::MatMul(_) => {
            let (a, b) = (&x[0].shape, &x[1].shape);
            add(&a[a.len() - 1], &b[b.len() - 2], false);
            let batch = y[0].rank() - usize::from(a.len() > 1) - 1;
            for t in [&a[..a.len().saturating_sub(2)], &b[..b.len() - 3]] {
                stretched(t, &y[0].shape[..batch], &mut add);
            }
        }
        Op::Conv(c) if c.layout == Layout::Plain => add(&x[0].shape[1], &(x[1].shape[1].clone() * Dim::from(c.group)), false),
        Op::ConvTranspose(_) => add(&x[0].shape[1], &x[1].shape[0], false),
        Op::Slice(s) => {
            for (i, d) in x[0].shape.iter().enumerate().filter(|(i, _)| s.step(*i) == 1) {
                add(&(s.starts[i].clone() + s.sizes[i].clone()), d, true);
            }
        }
        Op::TopK(t) => add(&t.k, &x[0].shape[t.axis], true),
        Op::GatherElements(g) => {
            x[1].shape.iter().zip(&x[0].shape).enumerate().filter(|(i, _)| *i != g.axis).for_each(|(_, (a, b))| add(a, b, true));
        }
        Op::GatherNd(g) => x[0].shape.iter().zip(&x[1].shape).take(g.batch_dims).for_each(|(a, b)| add(a, b, false)),
        Op::ScatterElements(s) => {
            x[1].shape.iter().zip(&x[2].shape).for_each(|(a, b)| add(a, b, false));
            x[1].shape.iter().zip(&x[0].shape).enumerate().filter(|(i, _)| *i != s.axis).for_each(|(_, (a, b))| add(a, b, true));
        }
        Op::ScatterNd(_) => {
            let rows = x[1].rank() - 1;
            let depth = x[0].rank() - (x[2].rank() - rows);
            x[1].shape[..rows].iter().chain(&x[0].shape[depth..]).zip(&x[2].shape).for_each(|(a, b)| add(a, b, false));
        }
        Op::Scan(s) => {
            let scanned = &x[s.states..s.states + s.scanned];
            scanned.iter().skip(1).for_each(|t| add(&t.shape[0], &scanned[0].shape[0], false));
        }
        _ => {}
    }
    out
}

/// Lengths of an operand that is stretched to a result are the result's, or 1 where that is sure.
fn stretched(x: &[Dim], y: &[Dim], add: &mut dyn FnMut(&Dim, &Dim, bool)) {
    x.iter().rev().zip(y.iter().rev()).filter(|(d, _)| !d.is(1)).for_each(|(a, b)| add(a, b, false));
}
