//! Element-by-element primitives.

use super::{Class, Primitive, arity, same_dtype};
use crate::attrs::op_struct;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::scalar::{Out, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{DType, Type, broadcast};

impl Primitive for ScalarFn {
    fn class(&self) -> Class {
        Class::Map
    }

    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        let name = self.name();
        arity(name, x, self.arity(), self.arity())?;
        let data: Vec<&Type> = if *self == ScalarFn::Where {
            if x[0].dtype != DType::Bool {
                return Err(Error::dtype(format!("where: the condition must be bool, found {}", x[0])));
            }
            x[1..].iter().collect()
        } else {
            x.iter().collect()
        };
        let dtype = same_dtype(name, &data)?;
        if !self.domain().contains(dtype) {
            return Err(Error::dtype(format!("{name} does not take {dtype}")));
        }
        let shapes: Vec<_> = x.iter().map(|t| t.shape.as_slice()).collect();
        let shape = broadcast(&shapes).map_err(|e| Error::shape(format!("{name}: {}", e.message())))?;
        Ok(vec![Type::new(if self.out() == Out::Bool { DType::Bool } else { dtype }, shape)])
    }

    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        let dtype = x[x.len() - 1].dtype();
        match (self, x) {
            (ScalarFn::Equal, [a, b]) if dtype == DType::Str => return eval::text::equal(a, b).map(|t| vec![t]),
            (ScalarFn::Where, [c, a, b]) if dtype == DType::Str => return eval::text::select(c, a, b).map(|t| vec![t]),
            _ => {}
        }
        eval::map(x, if self.out() == Out::Bool { DType::Bool } else { dtype }, |n| ScalarFn::eval(*self, dtype, n)).map(|t| vec![t])
    }
}

op_struct! {
    /// Conversion of the element type; see [`crate::scalar::Num::cast`].
    Cast { to: DType }
}

impl Primitive for Cast {
    fn class(&self) -> Class {
        Class::Map
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("cast", x, 1, 1)?;
        Ok(vec![x[0].with_dtype(self.to)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        if self.to == DType::Str || x[0].dtype() == DType::Str {
            return eval::text::cast(&x[0], self.to).map(|t| vec![t]);
        }
        eval::map(x, self.to, |n| n[0].cast(self.to)).map(|t| vec![t])
    }
}
