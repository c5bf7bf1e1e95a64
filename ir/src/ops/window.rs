//! Pooling.

use super::contract::Window;
use super::{Class, Primitive, arity};
use crate::attrs::{op_struct, word_enum};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

word_enum! {
    /// What a window computes. `Average` divides by the elements inside the input, `AverageAll` also counts the padding (but not
    /// what `ceil` adds beyond it).
    PoolKind { Max "max", Average "average", AverageAll "average_all", Sum "sum" }
}

op_struct! {
    /// Pooling over the spatial axes of `[N,C,spatial..]`, or of `[N,C/b,spatial..,b]` with `block` = b > 0.
    /// `ceil` rounds output lengths up (a window must still start inside the input or its left padding).
    /// `indices` adds a second result, `i64`: the flat index of each maximum in the whole input (row-major), the first of equals.
    Pool {
        kind: PoolKind, kernel: Vec<i64>, strides: Vec<i64> = vec![], dilations: Vec<i64> = vec![], pads: Vec<i64> = vec![], ceil: bool = false,
        block: usize = 0, indices: bool = false
    }
}

impl Pool {
    pub fn window(&self) -> Result<Window> {
        Window::new("pool", self.kernel.clone(), &self.strides, &self.dilations, &self.pads)
    }

    /// Output length along spatial axis `i`.
    pub fn out(&self, window: &Window, i: usize, d: &Dim) -> Dim {
        if !self.ceil {
            return window.out(i, d);
        }
        let n = window.kernel.len();
        let stride = Dim::Const(window.strides[i]);
        let slack = d.clone() + Dim::Const(window.pads[i] + window.pads[n + i] - window.extent(i));
        let up = slack.ceil_div(&stride) + Dim::Const(1);
        let starts_inside = (d.clone() + Dim::Const(window.pads[i] - 1)).floor_div(&stride) + Dim::Const(1);
        up.minimum(&starts_inside)
    }
}

impl Primitive for Pool {
    fn class(&self) -> Class {
        Class::Window
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("pool", x, 1, 1)?;
        let window = self.window()?;
        let n = window.kernel.len();
        let xs = &x[0].shape;
        if n == 0 || xs.len() != n + 2 + usize::from(self.block > 0) || (self.block > 0 && !xs[n + 2].is(self.block as i64)) {
            return Err(Error::shape(format!("pool: a window {:?} does not fit x {} (block={})", window.kernel, x[0], self.block)));
        }
        if self.kind != PoolKind::Max && (!x[0].dtype.is_float() || self.indices) {
            return Err(Error::dtype(format!("pool: {} takes floats and has no indices, found {}", self.kind.word(), x[0])));
        }
        let mut shape = xs.clone();
        for i in 0..n {
            shape[2 + i] = self.out(&window, i, &xs[2 + i]);
            if shape[2 + i].as_const().is_some_and(|d| d < 0) {
                return Err(Error::shape(format!(
                    "pool: the window spans {} elements, more than spatial axis {i} of {} has",
                    window.extent(i),
                    x[0]
                )));
            }
        }
        let y = x[0].with_shape(shape);
        let index = self.indices.then(|| y.with_dtype(DType::I64));
        Ok(std::iter::once(y).chain(index).collect())
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::window::pool(self, &x[0])
    }
}
