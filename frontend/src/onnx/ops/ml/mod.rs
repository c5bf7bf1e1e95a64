//! ai.onnx.ml: classical machine learning, and what its operators share.

pub mod features;
pub mod linear;
pub mod map;
pub mod svm;
pub mod tree;

use crate::onnx::call::Call;
use nnc_ir::ops::reduce::{ArgReduce, Reduce, ReduceKind};
use nnc_ir::{Error, Result, ScalarFn, Tensor, V};
use std::sync::Arc;

const DOMAIN: &str = "ai.onnx.ml";

const TRANSFORMS: &[&str] = &["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"];

/// What is done to the scores at the end.
fn post_transform(c: &Call) -> Result<&'static str> {
    c.word("post_transform", TRANSFORMS)
}

fn times<'g>(v: V<'g>, by: f64) -> V<'g> {
    v * v.scalar_like(by)
}

fn plus<'g>(v: V<'g>, by: f64) -> V<'g> {
    v + v.scalar_like(by)
}

/// Scores `[rows,classes]` after the transform.
fn transformed<'g>(scores: V<'g>, transform: &str) -> V<'g> {
    match transform {
        "SOFTMAX" => {
            let e = (scores - scores.max_keep(&[1])).exp();
            e / e.sum_keep(&[1])
        }
        "SOFTMAX_ZERO" => {
            // Scores that are zero stay out of the sum.
            let max = scores.max_keep(&[1]);
            let counts = scores.abs().greater(scores.scalar_like(1e-7));
            let e = (scores - max).exp();
            let sum = counts.select(e, e.scalar_like(0.0)).sum_keep(&[1]);
            counts.select(e, scores * (-max).exp()) / sum
        }
        "LOGISTIC" => scores.sigmoid(),
        "PROBIT" => probit(scores),
        _ => scores,
    }
}

/// The inverse of the normal distribution, by Winitzki's approximation of the inverse error function, as onnxruntime has it.
fn probit<'g>(p: V<'g>) -> V<'g> {
    let x = plus(times(p, 2.0), -1.0);
    let log = ((x.scalar_like(1.0) - x) * plus(x, 1.0)).log();
    let v = plus(times(log, 0.5), 2.0 / (std::f64::consts::PI * 0.147));
    let root = ((v * v - times(log, 1.0 / 0.147)).sqrt() - v).sqrt();
    let sign = x.less(x.scalar_like(0.0)).select(x.scalar_like(-1.0), x.scalar_like(1.0));
    times(sign * root, std::f64::consts::SQRT_2)
}

/// The labels of the classes, where the model names any.
fn labels(c: &Call, strings: &str, ints: &str) -> Result<Option<Tensor>> {
    Ok(match (c.strs(strings)?.filter(|s| !s.is_empty()), c.ints(ints)?.filter(|i| !i.is_empty())) {
        (Some(_), Some(_)) => return Err(Error::attribute(format!("attributes `{strings}` and `{ints}` exclude each other"))),
        (Some(s), None) => Some(Tensor::text(&[s.len()], s.into_iter().map(Arc::from).collect())?),
        (None, ints) => ints.map(|i| Tensor::new(&[i.len()], &i)),
    })
}

/// The label of each row's best score; of equal ones the first.
fn best_label<'g>(scores: V<'g>, labels: &Tensor) -> V<'g> {
    let b = scores.builder();
    let best = b.op(ArgReduce { kind: ReduceKind::Max, axis: 1, keepdims: false, last: false }, &[scores]);
    b.op(nnc_ir::ops::index::Gather { axis: 0 }, &[b.constant(labels.clone()), best])
}

/// One of two labels by a condition.
fn either<'g>(second: V<'g>, labels: &Tensor) -> V<'g> {
    let b = second.builder();
    let which = second.cast(nnc_ir::DType::I64);
    b.op(nnc_ir::ops::index::Gather { axis: 0 }, &[b.constant(labels.clone()), which])
}

/// An f32 constant.
fn f32s<'g>(c: &Call<'g>, shape: &[usize], values: &[f64]) -> Result<V<'g>> {
    if shape.iter().product::<usize>() != values.len() {
        return Err(Error::attribute(format!("{} numbers are given where {shape:?} are needed", values.len())));
    }
    Ok(c.b.constant(Tensor::new(shape, &values.iter().map(|x| *x as f32).collect::<Vec<f32>>())))
}

/// A float attribute list that must be there.
fn needed(c: &Call, name: &str) -> Result<Vec<f64>> {
    c.floats(name)?.ok_or_else(|| c.missing(name))
}

/// The input as f32 rows; a vector is one row.
fn rows<'g>(c: &Call<'g>) -> Result<V<'g>> {
    let x = c.x(0)?.cast(nnc_ir::DType::F32);
    let shape = x.ty().shape;
    match &shape[..] {
        [n] => Ok(x.reshape(vec![nnc_ir::Dim::Const(1), n.clone()])),
        [_, _] => Ok(x),
        _ => Err(Error::shape(format!("expected [rows,features], found {}", x.ty()))),
    }
}

/// Two columns side by side.
fn columns<'g>(a: V<'g>, b: V<'g>) -> V<'g> {
    V::concat(&[a, b], 1)
}

fn any<'g>(v: V<'g>, axis: usize) -> V<'g> {
    v.builder().op(Reduce { kind: ReduceKind::Max, axes: vec![axis], keepdims: false }, &[v])
}

fn is_nan(v: V) -> V {
    v.map(ScalarFn::IsNan)
}
