//! Walks through decision trees: a loop that ends at a leaf.

use super::loops::Loops;
use super::view::View;
use nnc_ir::error::Result;
use nnc_ir::kernel::{ExprId, Fault};
use nnc_ir::ops::tree::{Test, TreeLeaves};
use nnc_ir::scalar::Num;
use nnc_ir::{DType, Dim, ScalarFn};

/// Scalar operations of a walk, as a guess.
const WORK: i64 = 256;

fn function(test: Test) -> ScalarFn {
    match test {
        Test::LessEqual | Test::Mixed => ScalarFn::LessEqual,
        Test::Less => ScalarFn::Less,
        Test::GreaterEqual => ScalarFn::GreaterEqual,
        Test::Greater => ScalarFn::Greater,
        Test::Equal | Test::NotEqual => ScalarFn::Equal,
    }
}

/// Whether one test holds.
fn holds(k: &mut Loops, test: Test, x: ExprId, value: ExprId) -> ExprId {
    let y = k.map(function(test), &[x, value]);
    if test == Test::NotEqual { k.map(ScalarFn::Not, &[y]) } else { y }
}

/// The run fails where `i` is outside `lo..hi`.
fn inside(k: &mut Loops, i: ExprId, lo: ExprId, hi: ExprId) {
    let (low, high) = (k.map(ScalarFn::Less, &[i, lo]), k.map(ScalarFn::GreaterEqual, &[i, hi]));
    let outside = k.map(ScalarFn::Or, &[low, high]);
    k.when(outside, |k| k.fail(Fault::Index));
}

pub fn leaves(k: &mut Loops, op: &TreeLeaves) -> Result<()> {
    let (rows, width, nodes, roots) = (k.x[0].shape[0].clone(), k.x[0].shape[1].clone(), k.x[1].shape[0].clone(), k.x[7].shape[0].clone());
    let (zero, one) = (Dim::Const(0), Dim::Const(1));
    let views = [View::new(vec![width.clone(), zero.clone()]), View::new(vec![zero, one.clone()]), View::new(vec![roots.clone(), one])];
    k.parallel(&[rows, roots], &views, WORK, |k, _, at| {
        let (zero, one, width, nodes) = (k.int(0), k.int(1), k.size(&width), k.size(&nodes));
        let root = k.load(7, at[1]);
        let node = k.set_new(root);
        let here = k.var(node);
        inside(k, here, zero, nodes);
        let yes = k.load(4, here);
        let inner = k.map(ScalarFn::Equal, &[yes, zero]);
        let inner = k.map(ScalarFn::Not, &[inner]);
        k.while_(inner, |k| {
            let f = k.load(1, here);
            let f = k.bind(f);
            inside(k, f, zero, width);
            let place = k.add(at[0], f);
            let (x, value) = (k.load(0, place), k.load(2, here));
            let (x, value) = (k.bind(x), k.bind(value));
            let found = match op.test {
                Test::Mixed => {
                    let code = k.load(3, here);
                    let code = k.bind(code);
                    let none = k.literal(Num::B(false), DType::Bool);
                    (1..).map_while(|i| Some((i, Test::of(i)?))).fold(none, |otherwise, (i, test)| {
                        let i = k.literal(Num::U(i), DType::U8);
                        let (this, y) = (k.map(ScalarFn::Equal, &[code, i]), holds(k, test, x, value));
                        k.map(ScalarFn::Where, &[this, y, otherwise])
                    })
                }
                test => holds(k, test, x, value),
            };
            let (nan, by_nan) = (k.map(ScalarFn::IsNan, &[x]), k.load(6, here));
            let by_nan = k.map(ScalarFn::And, &[nan, by_nan]);
            let found = k.map(ScalarFn::Or, &[found, by_nan]);
            let (yes, no) = (k.load(4, here), k.load(5, here));
            let next = k.map(ScalarFn::Where, &[found, yes, no]);
            let next = k.bind(next);
            let after = k.add(here, one);
            inside(k, next, after, nodes);
            k.set(node, next);
        });
        let leaf = k.load(5, here);
        k.put(0, at[2], leaf);
    });
    Ok(())
}
