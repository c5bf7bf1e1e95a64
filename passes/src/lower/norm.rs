//! Rows that are normalised in one kernel: softmax and layer normalisation keep their identity, so that a backend can recognise them.

use super::loops::Loops;
use super::reduce::Lines;
use super::scalar::wide;
use super::view::View;
use nnc_ir::error::Result;
use nnc_ir::kernel::ExprId;
use nnc_ir::ops::composite::norm::LayerNorm;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{DType, Dim, ScalarFn};

/// Softmax along `axis`, or its logarithm.
pub fn softmax(k: &mut Loops, axis: usize, log: bool) -> Result<()> {
    let x = Lines::new(&k.x[0].shape, axis);
    let (dtype, result) = (k.y[0].dtype, k.result(0));
    let acc = wide(dtype);
    Lines::each(k, &[&x, &x], 40, |k, at| {
        let n = k.size(&x.length);
        let best = k.accumulator(ReduceKind::Max, dtype);
        k.for_each(n, |k, i| {
            let from = x.at(k, at[0], i);
            let v = k.load(0, from);
            k.accumulate(best, ReduceKind::Max, v);
        });
        let best = k.var(best);
        let best = k.cast(acc, best);
        let shifted = |k: &mut Loops, i: ExprId| {
            let from = x.at(k, at[0], i);
            let v = k.load(0, from);
            let v = k.cast(acc, v);
            k.map(ScalarFn::Sub, &[v, best])
        };
        // In the accumulator's type the exponentials wait in the result; otherwise they would be rounded, and are computed again.
        let keep = !log && acc == dtype;
        let sum = k.accumulator(ReduceKind::Sum, acc);
        k.for_each(n, |k, i| {
            let d = shifted(k, i);
            let e = k.map(ScalarFn::Exp, &[d]);
            let e = k.bind(e);
            k.accumulate(sum, ReduceKind::Sum, e);
            if keep {
                let to = x.at(k, at[1], i);
                k.store(result, to, e);
            }
        });
        let sum = k.var(sum);
        let divisor = if log { k.map(ScalarFn::Log, &[sum]) } else { sum };
        let divisor = k.bind(divisor);
        k.for_each(n, |k, i| {
            let to = x.at(k, at[1], i);
            let v = if keep {
                let e = k.load(result, to);
                k.map(ScalarFn::Div, &[e, divisor])
            } else {
                let d = shifted(k, i);
                if log {
                    k.map(ScalarFn::Sub, &[d, divisor])
                } else {
                    let e = k.map(ScalarFn::Exp, &[d]);
                    k.map(ScalarFn::Div, &[e, divisor])
                }
            };
            let v = k.cast(dtype, v);
            k.store(result, to, v);
        });
    });
    Ok(())
}

/// Mean, variance, then the normalised row, scaled and shifted.
pub fn layer_norm(k: &mut Loops, op: &LayerNorm) -> Result<()> {
    let shape = k.x[0].shape.clone();
    let (rows, length) = (Dim::product(&shape[..op.axis]), Dim::product(&shape[op.axis..]));
    let (dtype, result, has_bias) = (k.y[0].dtype, k.result(0), k.x.len() > 2);
    let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let view = View::new(vec![length.clone()]);
    let work = length.as_const().unwrap_or(64).saturating_mul(6);
    k.parallel(&[rows], &[view.clone(), view], work, |k, _, at| {
        let n = k.size(&length);
        let count = k.cast(acc, n);
        let element = |k: &mut Loops, i: ExprId| {
            let from = k.add(at[0], i);
            let v = k.load(0, from);
            k.cast(acc, v)
        };
        let sum = k.accumulator(ReduceKind::Sum, acc);
        k.for_each(n, |k, i| {
            let v = element(k, i);
            k.accumulate(sum, ReduceKind::Sum, v);
        });
        let sum = k.var(sum);
        let mean = k.map(ScalarFn::Div, &[sum, count]);
        let mean = k.bind(mean);
        let centred = |k: &mut Loops, i: ExprId| {
            let v = element(k, i);
            k.map(ScalarFn::Sub, &[v, mean])
        };
        let squares = k.accumulator(ReduceKind::Sum, acc);
        k.for_each(n, |k, i| {
            let c = centred(k, i);
            let c = k.bind(c);
            k.multiply_add(squares, c, c);
        });
        let squares = k.var(squares);
        let variance = k.map(ScalarFn::Div, &[squares, count]);
        let epsilon = k.num(op.epsilon.0, acc);
        let shifted = k.map(ScalarFn::Add, &[variance, epsilon]);
        let deviation = k.map(ScalarFn::Sqrt, &[shifted]);
        let deviation = k.bind(deviation);
        k.for_each(n, |k, i| {
            let c = centred(k, i);
            let v = k.map(ScalarFn::Div, &[c, deviation]);
            let v = k.cast(dtype, v);
            let scale = k.load(1, i);
            let mut v = k.map(ScalarFn::Mul, &[v, scale]);
            if has_bias {
                let bias = k.load(2, i);
                v = k.map(ScalarFn::Add, &[v, bias]);
            }
            let to = k.add(at[1], i);
            k.store(result, to, v);
        });
    });
    Ok(())
}
