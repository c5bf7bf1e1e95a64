//! Operations without tensor operands: constants, dimension values, index ramps; and the way back, from data to dimensions.

use super::{Class, Primitive, arity};
use crate::attrs::{Attr, AttrValue, Attrs, op_struct};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

/// Constant data. Equal constants compare by their bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Const(pub Tensor);

impl Attrs for Const {
    const FIELDS: &'static [&'static str] = &["value"];
    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![]
    }
    fn from_attrs(_: &dyn Fn(&str) -> Option<Attr>) -> Result<Self> {
        Err(Error::syntax("a constant is written as a literal"))
    }
}

impl Primitive for Const {
    fn class(&self) -> Class {
        Class::Source
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("const", x, 0, 0)?;
        Ok(vec![self.0.ty()])
    }
    fn eval(&self, _: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        Ok(vec![self.0.clone()])
    }
}

op_struct! {
    /// `i64` tensor of dimension values: shape arithmetic that has left the world of tensors. A scalar where `scalar` is set.
    Dims { values: Vec<Dim>, scalar: bool = false }
}

impl Primitive for Dims {
    fn class(&self) -> Class {
        Class::Source
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("dims", x, 0, 0)?;
        if self.scalar && self.values.len() != 1 {
            return Err(Error::attribute("a scalar of dims has one value"));
        }
        Ok(vec![Type::new(DType::I64, if self.scalar { vec![] } else { vec![Dim::from(self.values.len())] })])
    }
    fn eval(&self, _: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let values = self.values.iter().map(|d| env.dim(d)).collect::<Result<Vec<i64>>>()?;
        let shape: &[usize] = if self.scalar { &[] } else { &[values.len()] };
        Ok(vec![Tensor::new(shape, &values)])
    }
}

op_struct! {
    /// Binds symbols to the elements of an integer tensor (rank 0 or 1) at run time, in order: data-dependent sizes enter the
    /// shapes here. The result is the operand. A negative element is an error of the run.
    ReadDims { symbols: Vec<Dim> }
}

impl Primitive for ReadDims {
    fn class(&self) -> Class {
        Class::Source
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("read_dims", x, 1, 1)?;
        if x[0].rank() > 1 || x[0].dtype != DType::I64 || !x[0].elems().is(self.symbols.len() as i64) {
            return Err(Error::shape(format!("read_dims of {} symbols takes as many i64, found {}", self.symbols.len(), x[0])));
        }
        if let Some(d) = self.symbols.iter().find(|d| d.as_sym().is_none()) {
            return Err(Error::attribute(format!("read_dims binds symbols, {d} is none")));
        }
        Ok(vec![x[0].clone()])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        for (d, v) in self.symbols.iter().zip(x[0].to_ints().unwrap_or_default()) {
            env.bind(d.as_sym().expect("inferred"), v)?;
        }
        Ok(vec![x[0].clone()])
    }
}

op_struct! {
    /// `i64` tensor of `shape` that counts 0, 1, 2... along `axis`.
    Iota { shape: Vec<Dim>, axis: usize = 0 }
}

impl Primitive for Iota {
    fn class(&self) -> Class {
        Class::Source
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("iota", x, 0, 0)?;
        if self.axis >= self.shape.len() {
            return Err(Error::attribute(format!("iota: axis {} is outside rank {}", self.axis, self.shape.len())));
        }
        Ok(vec![Type::new(DType::I64, self.shape.clone())])
    }
    fn eval(&self, _: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let shape = env.shape(&self.shape)?;
        let n = crate::tensor::checked_elems(DType::I64, &shape)?;
        let inner: usize = shape[self.axis + 1..].iter().product();
        let values: Vec<i64> = (0..n).map(|i| (i / inner % shape[self.axis]) as i64).collect();
        Ok(vec![Tensor::new(&shape, &values)])
    }
}

/// Attribute text of a shape.
pub fn shape_attr(shape: &[Dim]) -> Attr {
    Attr::List(shape.iter().map(AttrValue::to_attr).collect())
}
