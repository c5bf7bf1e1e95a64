//! Differentiation as operations: what asks for a gradient, what keeps one out, and what keeps apart what is computed twice.

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
    /// operations that compute the derivatives in its place. With `checkpoint` = k > 0 what the first operand follows from is kept every k
    /// contractions, and the rest is computed again on the way back, to the same bits.
    Gradient { checkpoint: usize = 0 }
}

impl Default for Gradient {
    /// Everything that is read on the way back is kept.
    fn default() -> Gradient {
        Gradient { checkpoint: 0 }
    }
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

op_struct! {
    /// The operand, as another value: what is computed from it is not merged with what is computed from the operand itself, nor from its
    /// barrier of another `turn`. What is computed once more to keep memory free in between begins with barriers.
    Barrier { turn: usize }
}

impl Primitive for Barrier {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("barrier", x, 1, 1)?;
        Ok(x.to_vec())
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        Ok(x.to_vec())
    }
}
