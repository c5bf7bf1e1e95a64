//! Reductions, arguments of extrema, running sums.

use super::{Class, Primitive, arity};
use crate::attrs::{op_struct, word_enum};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

word_enum! {
    /// How a reduction combines. The value of an empty reduction is the neutral element: 0, 1, the least, the greatest.
    ReduceKind { Sum "sum", Prod "prod", Max "max", Min "min" }
}

op_struct! {
    /// Folds `axes` (sorted, without repetition) away, or to length 1 with `keepdims`. NaN propagates.
    Reduce { kind: ReduceKind, axes: Vec<usize>, keepdims: bool = false }
}

/// The shape after folding `axes`.
pub fn reduced_shape(shape: &[Dim], axes: &[usize], keepdims: bool) -> Vec<Dim> {
    let fold = |(i, d): (usize, &Dim)| match (axes.contains(&i), keepdims) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::Const(1)),
        (true, false) => None,
    };
    shape.iter().enumerate().filter_map(fold).collect()
}

impl Primitive for Reduce {
    fn class(&self) -> Class {
        Class::Reduce
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("reduce", x, 1, 1)?;
        if let Some(a) = self.axes.iter().find(|a| **a >= x[0].rank()) {
            return Err(Error::shape(format!("reduce: axis {a} is outside {}", x[0])));
        }
        if !self.axes.is_sorted_by(|a, b| a < b) {
            return Err(Error::attribute(format!("reduce: axes {:?} must be sorted and distinct", self.axes)));
        }
        if x[0].dtype == DType::Bool && !matches!(self.kind, ReduceKind::Max | ReduceKind::Min) {
            return Err(Error::dtype("reduce: bool has only max and min"));
        }
        Ok(vec![x[0].with_shape(reduced_shape(&x[0].shape, &self.axes, self.keepdims))])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::reduce::reduce(self, &x[0]).map(|t| vec![t])
    }
}

op_struct! {
    /// `i64` index of the largest or smallest element along `axis`; of several the first, or the last.
    ArgReduce { kind: ReduceKind, axis: usize, keepdims: bool = false, last: bool = false }
}

impl Primitive for ArgReduce {
    fn class(&self) -> Class {
        Class::Reduce
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("arg_reduce", x, 1, 1)?;
        if !matches!(self.kind, ReduceKind::Max | ReduceKind::Min) {
            return Err(Error::attribute("arg_reduce: kind is max or min"));
        }
        if self.axis >= x[0].rank() {
            return Err(Error::shape(format!("arg_reduce: axis {} is outside {}", self.axis, x[0])));
        }
        Ok(vec![Type::new(DType::I64, reduced_shape(&x[0].shape, &[self.axis], self.keepdims))])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::reduce::arg_reduce(self, &x[0]).map(|t| vec![t])
    }
}

op_struct! {
    /// Running sum or product along `axis`; `exclusive` leaves the element itself out, `reverse` runs from the end.
    Cumulate { kind: ReduceKind, axis: usize, exclusive: bool = false, reverse: bool = false }
}

impl Primitive for Cumulate {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("cumulate", x, 1, 1)?;
        if self.axis >= x[0].rank() {
            return Err(Error::shape(format!("cumulate: axis {} is outside {}", self.axis, x[0])));
        }
        Ok(vec![x[0].clone()])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::reduce::cumulate(self, &x[0]).map(|t| vec![t])
    }
}
