//! Losses for classification.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::composite::norm::LogSoftmax;
use nnc_ir::ops::index::{Gather, GatherElements};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("NegativeLogLikelihoodLoss", 12, (2, 3), |c| Ok(vec![likelihood(c, c.x(0)?)?])),
    op("SoftmaxCrossEntropyLoss", 12, (2, 3), |c| {
        let log = c.b.op(LogSoftmax { axis: 1 }, &[c.x(0)?]);
        Ok(vec![likelihood(c, log)?, log])
    }),
];

/// The loss of log probabilities `[N,C,d..]` at the classes `[N,d..]` of input 1, with the weights of input 2.
fn likelihood<'g>(c: &Call<'g>, log: V<'g>) -> Result<V<'g>> {
    let classes = c.x(1)?.cast(DType::I64);
    let ty = log.ty();
    if ty.rank() < 2 || classes.ty().rank() + 1 != ty.rank() {
        return Err(Error::shape(format!("classes {} do not fit scores {ty}", classes.ty())));
    }
    let ignored = c.opt_int("ignore_index")?;
    let reduction = c.word("reduction", &["mean", "sum", "none"])?;
    let zero = c.b.constant(Tensor::scalar_of(ty.dtype, 0.0));
    let skip = ignored.map(|i| classes.equal(c.b.constant(Tensor::scalar(i))));
    // What is ignored may be no class at all: look up class 0 instead.
    let safe = skip.map_or(classes, |s| s.select(c.b.constant(Tensor::scalar(0i64)), classes));
    let mut shape = classes.ty().shape;
    shape.insert(1, Dim::Const(1));
    let picked = c.b.op(GatherElements { axis: 1 }, &[log, safe.reshape(shape)]).reshape(classes.ty().shape);
    let weights = match (c.opt(2), skip) {
        (None, None) => None,
        (Some(w), skip) => {
            let w = c.b.op(Gather { axis: 0 }, &[w, safe]);
            Some(skip.map_or(w, |s| s.select(zero, w)))
        }
        (None, Some(s)) => Some(s.select(zero, zero.scalar_like(1.0))),
    };
    let loss = weights.map_or(-picked, |w| -picked * w);
    let sum = |v: V<'g>| v.reduce(ReduceKind::Sum, &(0..v.ty().rank()).collect::<Vec<_>>(), false);
    Ok(match (reduction, weights) {
        ("none", _) => loss,
        ("sum", _) => sum(loss),
        (_, Some(w)) => sum(loss) / sum(w),
        (_, None) => sum(loss) / loss.count(&(0..loss.ty().rank()).collect::<Vec<_>>()),
    })
}
