//! Loops of matrix multiplication, and the epilogues that contractions share.
//!
//! Sums are taken one output element at a time in [`wide`] precision, over the innermost loops; the outer ones walk the result in
//! memory order, so that neighbouring elements can be computed side by side.

use super::loops::Loops;
use super::scalar::wide;
use super::view::{View, collapse, row_major};
use nnc_ir::error::Result;
use nnc_ir::kernel::ExprId;
use nnc_ir::ops::composite::attention::Attention;
use nnc_ir::ops::contract::{MatMul, PANEL, Post, takes_narrow};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{DType, Dim, ScalarFn};

pub const ZERO: Dim = Dim::Const(0);
pub const ONE: Dim = Dim::Const(1);
pub const TWO: Dim = Dim::Const(2);

/// Applies the epilogue to `v`; `at` holds the element of each extra operand, the first of which is operand 2.
pub fn epilogue(k: &mut Loops, post: &[Post], mut v: ExprId, at: &[ExprId]) -> Result<ExprId> {
    let d = k.dtype(v);
    let mut operands = at.iter().zip(2..);
    for p in post {
        let operand = if p.has_operand() { operands.next() } else { None }.map(|(at, i)| {
            let x = k.load(i, *at);
            k.cast(d, x)
        });
        v = match (p, operand) {
            (Post::Bias | Post::Add, Some(x)) => k.map(ScalarFn::Add, &[v, x]),
            (Post::Scale, Some(x)) => k.map(ScalarFn::Mul, &[v, x]),
            (Post::Act(a), _) => {
                let v = k.bind(v);
                k.activation(*a, v)?
            }
            (_, None) => v,
        };
    }
    Ok(v)
}

/// Views of the extra operands: one element a channel, or one a result.
pub fn extras(post: &[Post], channel: &[Dim], result: &[Dim]) -> Vec<View> {
    let operands = post.iter().filter(|p| p.has_operand());
    operands.map(|p| View::new(if *p == Post::Add { result.to_vec() } else { channel.to_vec() })).collect()
}

/// Scalar operations of sums over `dims`.
pub fn work(dims: &[&Dim]) -> i64 {
    dims.iter().fold(2, |n: i64, d| n.saturating_mul(d.as_const().unwrap_or(64).max(1)))
}

pub fn matmul(k: &mut Loops, op: &MatMul) -> Result<()> {
    let (xs, ws, ys) = (k.x[0].shape.clone(), k.x[1].shape.clone(), k.y[0].shape.clone());
    let (y, acc_type, dtype) = (k.result(0), wide(k.y[0].dtype), k.y[0].dtype);
    let packed = op.is_packed();
    let x_depth = xs[xs.len() - 1].clone();
    let m = if xs.len() > 1 { xs[xs.len() - 2].clone() } else { ONE };
    let batch_x = &xs[..xs.len().saturating_sub(2)];
    let batch_w = &ws[..ws.len().saturating_sub(if packed { 3 } else { 2 })];
    // Columns (or panels of them), their stride in w and in y, and w's stride along the depth.
    let panel = Dim::from(PANEL);
    let lanes = if packed { panel.clone() } else { ONE };
    let (depth, n, columns, w_column, y_column, w_depth) = match &ws[batch_w.len()..] {
        [panels, d, _] if packed => (d.clone(), op.packed.clone(), panels.clone(), d.clone() * panel.clone(), panel.clone(), panel.clone()),
        [n, d] if op.transposed => (d.clone(), n.clone(), n.clone(), d.clone(), ONE, ONE),
        [d, n] => (d.clone(), n.clone(), n.clone(), ONE, ONE, n.clone()),
        d => (Dim::product(d), ONE, ONE, ZERO, ONE, ONE),
    };
    let depth = if x_depth.as_const().is_some() { x_depth.clone() } else { depth };
    let batch = ys[..batch_x.len().max(batch_w.len())].to_vec();
    // Strides along the batch axes of an operand whose matrices have `elems` elements.
    let batch_strides = |own: &[Dim], elems: Dim| -> Vec<Dim> {
        let skip = batch.len() - own.len();
        let own_strides = row_major(own);
        let stride = |i: usize| own_strides[i - skip].clone() * own[i - skip].stretch_factor(&batch[i]) * elems.clone();
        (0..batch.len()).map(|i| if i < skip { ZERO } else { stride(i) }).collect()
    };
    let mut dims = [&batch[..], &[m.clone(), columns.clone()]].concat();
    let mut y_strides = row_major(&[&batch[..], &[m.clone(), n.clone()]].concat());
    let mut channel = vec![ZERO; dims.len()];
    *y_strides.last_mut().expect("columns") = y_column.clone();
    *channel.last_mut().expect("columns") = y_column;
    let mut views = vec![
        View::new([batch_strides(batch_x, m * x_depth.clone()), vec![x_depth, ZERO]].concat()),
        View::new([batch_strides(batch_w, depth.clone() * columns * lanes.clone()), vec![ZERO, w_column]].concat()),
        View::new(y_strides.clone()),
    ];
    views.extend(extras(&op.post, &channel, &y_strides));
    if !packed {
        collapse(&mut dims, &mut views);
    }
    let mut outcome = Ok(());
    // Rows of narrow weights lie in pairs.
    let narrow = takes_narrow(&k.x[0], &k.x[1]);
    let mut element = |k: &mut Loops, at: &[ExprId]| {
        let acc = k.accumulator(ReduceKind::Sum, acc_type);
        let (dims, along) = match narrow {
            false => (vec![depth.clone()], [View::new(vec![ONE]), View::new(vec![w_depth.clone()])]),
            true => (vec![depth.floor_div(&TWO), TWO], [View::new(vec![TWO, ONE]), View::new(vec![TWO * w_depth.clone(), ONE])]),
        };
        k.serial(&dims, &along, &at[..2], |k, _, at| {
            let (a, b) = (k.load(0, at[0]), k.load(1, at[1]));
            let a = if narrow { k.cast(DType::BF16, a) } else { a };
            k.multiply_add(acc, a, b);
        });
        let sum = k.var(acc);
        match epilogue(k, &op.post, sum, &at[3..]) {
            Ok(v) => {
                let v = k.cast(dtype, v);
                k.store(y, at[2], v);
            }
            Err(e) => outcome = Err(e),
        }
    };
    k.parallel(&dims, &views, work(&[&depth, &lanes]), |k, vars, at| {
        if !packed {
            return element(k, at);
        }
        // The last panel may not be full.
        let (n, lanes) = (k.size(&n), k.size(&lanes));
        let before = k.mul(*vars.last().expect("panels"), lanes);
        let left = k.sub(n, before);
        let count = k.min_int(left, lanes);
        let count = k.bind(count);
        k.for_each(count, |k, lane| {
            let step = |k: &mut Loops, i: usize, b: ExprId| match i {
                0 => b,
                1 if narrow => {
                    let b = k.add(b, lane);
                    k.add(b, lane)
                }
                _ => k.add(b, lane),
            };
            let at: Vec<ExprId> = at.iter().enumerate().map(|(i, b)| step(k, i, *b)).collect();
            element(k, &at);
        });
    });
    outcome
}

/// Attention, a key after the other: the result so far is scaled down where a larger score turns up. `x` is regular.
pub fn attention(k: &mut Loops, op: &Attention) -> Result<()> {
    let (q, keys, v) = (k.x[0].shape.clone(), k.x[1].shape.clone(), k.x[2].shape.clone());
    let n = q.len();
    let (batch, [queries, depth]) = (&q[..n - 2], [&q[n - 2], &q[n - 1]]);
    let (count, width) = (keys[n - 2].clone(), v[n - 1].clone());
    let (result, dtype) = (k.result(0), k.y[0].dtype);
    let dims = [batch, std::slice::from_ref(queries)].concat();
    let walk = |shape: &[Dim], along: Dim| -> View {
        let own = row_major(shape);
        let step = |i: usize| if shape[i].is(1) { ZERO } else { own[i].clone() };
        View::new((0..n - 2).map(step).chain([along]).collect())
    };
    let mut views = vec![walk(&q, depth.clone()), walk(&keys, ZERO), walk(&v, ZERO)];
    let mask = k.x.get(3).map(|m| m.shape.clone());
    if let Some(m) = &mask {
        views.push(walk(m, if m[n - 1].is(1) { ZERO } else { ONE }));
    }
    // From key to key of the mask.
    let mask_step = mask.map(|m| if m[n - 2].is(1) { ZERO } else { m[n - 1].clone() });
    views.push(walk(&k.y[0].shape.clone(), width.clone()));
    let scale = op.scale.0;
    k.parallel(&dims, &views, work(&[&count, depth]), |k, _, at| {
        let y = at[at.len() - 1];
        let (count, depth, width) = (k.size(&count), k.size(depth), k.size(&width));
        let zero = k.num(0.0, dtype);
        k.for_each(width, |k, e| {
            let to = k.add(y, e);
            k.store(result, to, zero);
        });
        // Below any number that is not infinite, so that keys which are masked out give no difference of infinities.
        let lowest = k.num(f64::from(f32::MIN), dtype);
        let most = k.set_new(lowest);
        // Without any key the result is 0, as an empty sum is.
        let none = k.int(0);
        let none = k.map(ScalarFn::Equal, &[count, none]);
        let first = k.cast(dtype, none);
        let sum = k.set_new(first);
        k.for_each(count, |k, i| {
            let (row, values) = (k.mul(i, depth), k.mul(i, width));
            let (row, values) = (k.add(at[1], row), k.add(at[2], values));
            let dot = k.accumulator(ReduceKind::Sum, dtype);
            k.for_each(depth, |k, d| {
                let (a, b) = (k.add(at[0], d), k.add(row, d));
                let (a, b) = (k.load(0, a), k.load(1, b));
                k.multiply_add(dot, a, b);
            });
            let (dot, scale) = (k.var(dot), k.num(scale, dtype));
            let mut score = k.map(ScalarFn::Mul, &[dot, scale]);
            if let Some(step) = &mask_step {
                let step = k.size(step);
                let from = k.mul(i, step);
                let from = k.add(at[3], from);
                let m = k.load(3, from);
                score = k.map(ScalarFn::Add, &[score, m]);
            }
            let (score, before) = (k.bind(score), k.var(most));
            let now = k.map(ScalarFn::Max, &[before, score]);
            let now = k.bind(now);
            let shrunk = k.map(ScalarFn::Sub, &[before, now]);
            let shrunk = k.map(ScalarFn::Exp, &[shrunk]);
            let shrunk = k.bind(shrunk);
            let share = k.map(ScalarFn::Sub, &[score, now]);
            let share = k.map(ScalarFn::Exp, &[share]);
            let share = k.bind(share);
            k.set(most, now);
            let total = k.var(sum);
            let total = k.map(ScalarFn::Mul, &[total, shrunk]);
            let total = k.map(ScalarFn::Add, &[total, share]);
            k.set(sum, total);
            k.for_each(width, |k, e| {
                let (to, from) = (k.add(y, e), k.add(values, e));
                let (old, v) = (k.load(result, to), k.load(2, from));
                let old = k.map(ScalarFn::Mul, &[old, shrunk]);
                let new = k.map(ScalarFn::Mul, &[share, v]);
                let new = k.map(ScalarFn::Add, &[old, new]);
                k.store(result, to, new);
            });
        });
        let sum = k.var(sum);
        k.for_each(width, |k, e| {
            let to = k.add(y, e);
            let v = k.load(result, to);
            let v = k.map(ScalarFn::Div, &[v, sum]);
            k.store(result, to, v);
        });
    });
    Ok(())
}
