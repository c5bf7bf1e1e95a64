//! Gathering and scattering by index tensors. Negative indices count from the end; an index outside is an error of the run.

use super::{Class, Primitive, arity, same_dtype};
use crate::attrs::{op_struct, word_enum};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

fn index_dtype(op: &str, t: &Type) -> Result<()> {
    match t.dtype {
        DType::I32 | DType::I64 => Ok(()),
        d => Err(Error::dtype(format!("{op}: indices are i32 or i64, found {d}"))),
    }
}

fn axis_inside(op: &str, axis: usize, x: &Type) -> Result<()> {
    if axis < x.rank() { Ok(()) } else { Err(Error::shape(format!("{op}: axis {axis} is outside {x}"))) }
}

op_struct! {
    /// Slices of the first operand along `axis` at the indices of the second, whose shape replaces the axis.
    Gather { axis: usize }
}

impl Primitive for Gather {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("gather", x, 2, 2)?;
        axis_inside("gather", self.axis, &x[0])?;
        index_dtype("gather", &x[1])?;
        let (s, a) = (&x[0].shape, self.axis);
        Ok(vec![x[0].with_shape([&s[..a], &x[1].shape, &s[a + 1..]].concat())])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::index::gather(self.axis, &x[0], &x[1]).map(|t| vec![t])
    }
}

op_struct! {
    /// `y[i..] = x[i.. with axis replaced by index[i..]]`; y has the shape of the indices.
    GatherElements { axis: usize }
}

impl Primitive for GatherElements {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("gather_elements", x, 2, 2)?;
        axis_inside("gather_elements", self.axis, &x[0])?;
        index_dtype("gather_elements", &x[1])?;
        if x[0].rank() != x[1].rank() {
            return Err(Error::shape(format!("gather_elements: {} and indices {} have different ranks", x[0], x[1])));
        }
        Ok(vec![x[0].with_shape(x[1].shape.clone())])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::index::gather_elements(self.axis, &x[0], &x[1]).map(|t| vec![t])
    }
}

op_struct! {
    /// The last axis of the indices addresses into x after `batch_dims` shared leading axes.
    GatherNd { batch_dims: usize = 0 }
}

impl Primitive for GatherNd {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("gather_nd", x, 2, 2)?;
        index_dtype("gather_nd", &x[1])?;
        let (s, ix, b) = (&x[0].shape, &x[1].shape, self.batch_dims);
        let depth = ix.last().and_then(Dim::as_const).and_then(|k| usize::try_from(k).ok());
        let Some(k) = depth.filter(|k| b < ix.len() && b + k <= s.len()) else {
            return Err(Error::shape(format!("gather_nd: indices {} do not address {} (batch_dims={b})", x[1], x[0])));
        };
        Ok(vec![x[0].with_shape([&ix[..ix.len() - 1], &s[b + k..]].concat())])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::index::gather_nd(self.batch_dims, &x[0], &x[1]).map(|t| vec![t])
    }
}

word_enum! {
    /// What a scatter does where it writes.
    ScatterKind { Set "none", Add "add", Mul "mul", Max "max", Min "min" }
}

op_struct! {
    /// x with `updates[i..]` written (or combined) at `i..` with `axis` replaced by `index[i..]`. Operands x, index, updates.
    /// Several updates of one place combine in row-major order; with `none` the last one wins.
    ScatterElements { axis: usize, reduction: ScatterKind = ScatterKind::Set }
}

impl Primitive for ScatterElements {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("scatter_elements", x, 3, 3)?;
        axis_inside("scatter_elements", self.axis, &x[0])?;
        index_dtype("scatter_elements", &x[1])?;
        same_dtype("scatter_elements", &[&x[0], &x[2]])?;
        if x[0].rank() != x[1].rank() || x[1].rank() != x[2].rank() {
            return Err(Error::shape(format!("scatter_elements: {}, indices {} and updates {} have different ranks", x[0], x[1], x[2])));
        }
        Ok(vec![x[0].clone()])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::index::scatter_elements(self, x).map(|t| vec![t])
    }
}

op_struct! {
    /// x with slices of the updates written (or combined) where the last axis of the indices points. Operands x, index, updates.
    ScatterNd { reduction: ScatterKind = ScatterKind::Set }
}

impl Primitive for ScatterNd {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("scatter_nd", x, 3, 3)?;
        index_dtype("scatter_nd", &x[1])?;
        same_dtype("scatter_nd", &[&x[0], &x[2]])?;
        let depth = x[1].shape.last().and_then(Dim::as_const);
        if depth.is_none_or(|k| k < 0 || k as usize > x[0].rank() || x[2].rank() != x[1].rank() - 1 + x[0].rank() - k as usize) {
            return Err(Error::shape(format!("scatter_nd: indices {} and updates {} do not fit {}", x[1], x[2], x[0])));
        }
        Ok(vec![x[0].clone()])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::index::scatter_nd(self.reduction, x).map(|t| vec![t])
    }
}

op_struct! {
    /// Indices of elements that are not zero, `i64 [rank, count]`, in row-major order; `count` is a symbol bound by the run.
    NonZero { count: Dim }
}

impl Primitive for NonZero {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("non_zero", x, 1, 1)?;
        if self.count.as_sym().is_none() {
            return Err(Error::attribute(format!("non_zero: count must be a symbol, found {}", self.count)));
        }
        Ok(vec![Type::new(DType::I64, vec![Dim::from(x[0].rank().max(1)), self.count.clone()])])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let y = eval::index::non_zero(&x[0])?;
        env.bind(self.count.as_sym().expect("inferred"), y.shape()[1] as i64)?;
        Ok(vec![y])
    }
}
