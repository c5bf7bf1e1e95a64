//! Sorting.

use super::{Class, Primitive, arity};
use crate::attrs::op_struct;
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

op_struct! {
    /// The `k` largest (or smallest) elements along `axis` in order, and their `i64` indices. Equal elements keep their order.
    /// NaN counts as the largest.
    TopK { axis: usize, k: Dim, largest: bool = true }
}

impl Primitive for TopK {
    fn class(&self) -> Class {
        Class::Sort
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("top_k", x, 1, 1)?;
        let have = x[0].shape.get(self.axis).ok_or_else(|| Error::shape(format!("top_k: axis {} is outside {}", self.axis, x[0])))?;
        if let (Some(k), Some(d)) = (self.k.as_const(), have.as_const())
            && !(0..=d).contains(&k)
        {
            return Err(Error::shape(format!("top_k: {k} of {d} elements are asked for")));
        }
        let mut shape = x[0].shape.clone();
        shape[self.axis] = self.k.clone();
        Ok(vec![x[0].with_shape(shape.clone()), Type::new(DType::I64, shape)])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        eval::sort::top_k(self, &x[0], env)
    }
}
