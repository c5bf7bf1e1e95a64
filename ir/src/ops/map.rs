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

op_struct! {
    /// The same bits, read as another element type of as many.
    BitCast { to: DType }
}

impl Primitive for BitCast {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("bit_cast", x, 1, 1)?;
        if x[0].dtype.bits() != self.to.bits() {
            return Err(Error::dtype(format!("bit_cast: {} has {} bits, {} has {}", x[0].dtype, x[0].dtype.bits(), self.to, self.to.bits())));
        }
        let signed = |d: DType| matches!(d, DType::I4 | DType::I2);
        if (signed(x[0].dtype) || signed(self.to)) && x[0].dtype != self.to {
            return Err(Error::dtype(format!("bit_cast: {} and {} lie in a byte in different ways", x[0].dtype, self.to)));
        }
        // A bool is 0 or 1, which not every byte is.
        if self.to == DType::Bool && x[0].dtype != DType::Bool {
            return Err(Error::dtype(format!("bit_cast: the bits of {} need not be a bool", x[0].dtype)).note("compare with 0"));
        }
        Ok(vec![x[0].with_dtype(self.to)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        x[0].with_dtype(self.to).map(|t| vec![t])
    }
}
