//! Differentiation as operations: what asks for a gradient, and what keeps one out.

use super::{Class, Composite, Primitive, arity};
use crate::attrs::op_struct;
use crate::builder::V;
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::Type;

op_struct! {
    /// Derivatives of the first operand (of the sum of its elements) by each of the others, one result each, of its type: zero where
    /// the first does not depend on it. An operation on the graph around it: the pass `differentiate`, the first of all, puts the
    /// operations that compute the derivatives in its place.
    Gradient {}
}

impl Primitive for Gradient {
    fn class(&self) -> Class {
        Class::Control
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("gradient", x, 2, usize::MAX)?;
        if let Some(t) = x.iter().find(|t| !t.dtype.is_float()) {
            return Err(Error::dtype(format!("gradient: only floats have derivatives, found {t}")));
        }
        Ok(x[1..].to_vec())
    }
    fn eval(&self, _: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        Err(Error::internal("gradient is evaluated before `differentiate` has run"))
    }
}

op_struct! {
    /// The operand, which a gradient does not look through.
    StopGrad {}
}

impl Composite for StopGrad {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        match x {
            [x] => Ok(vec![*x]),
            _ => Err(Error::arity("stop_grad takes one operand")),
        }
    }
}
