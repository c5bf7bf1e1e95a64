//! The reference interpreter: the oracle that every engine is held against. Obvious, slow, independent of lowering.

pub mod contract;
pub mod index;
pub mod movement;
pub mod reduce;
pub mod sort;
pub mod window;

use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::scalar::Num;
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values of symbols during a run.
#[derive(Default, Debug)]
pub struct Env {
    symbols: RefCell<BTreeMap<Arc<str>, i64>>,
}

impl Env {
    /// Binds a symbol. A value below 0 is an error; so is a second, different value of an input's symbol (the caller checks that).
    pub fn bind(&self, symbol: &Arc<str>, value: i64) -> Result<()> {
        if value < 0 {
            return Err(Error::input(format!("the size {symbol} would be {value}")));
        }
        self.symbols.borrow_mut().insert(symbol.clone(), value);
        Ok(())
    }

    pub fn get(&self, symbol: &str) -> Option<i64> {
        self.symbols.borrow().get(symbol).copied()
    }

    pub fn dim(&self, d: &Dim) -> Result<i64> {
        d.eval(&|s| self.get(s)).map_err(|s| Error::internal(format!("the size {s} is not bound")))
    }

    pub fn shape(&self, dims: &[Dim]) -> Result<Vec<usize>> {
        dims.iter().map(|d| self.dim(d).and_then(|v| usize::try_from(v).map_err(|_| Error::input(format!("the size {d} would be {v}"))))).collect()
    }
}

/// What [`crate::ops::Primitive::eval`] of control flow says: the graph evaluator runs regions itself.
pub(crate) fn region_op(op: &str) -> Result<Vec<Tensor>> {
    Err(Error::internal(format!("{op} is evaluated with its regions")))
}

/// Row-major strides, in elements.
#[allow(dead_code)]
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// The common shape of concrete shapes.
pub(crate) fn broadcast_shape(shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let dims: Vec<Vec<Dim>> = shapes.iter().map(|s| s.iter().map(|d| Dim::from(*d)).collect()).collect();
    let out = crate::types::broadcast(&dims.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    Ok(out.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect())
}

/// For each element of `out` in order, the flat index into a tensor of shape `x` that broadcasts to it.
pub(crate) fn broadcast_index(x: &[usize], out: &[usize], flat: usize) -> usize {
    let skip = out.len() - x.len();
    let (mut rest, mut at, mut stride) = (flat, 0, 1);
    for i in (0..out.len()).rev() {
        let digit = rest % out[i];
        rest /= out[i];
        if i >= skip {
            if x[i - skip] != 1 {
                at += digit * stride;
            }
            stride *= x[i - skip];
        }
    }
    at
}

/// A tensor from its elements, in order.
pub(crate) fn from_nums(dtype: DType, shape: &[usize], mut f: impl FnMut(usize) -> Num) -> Result<Tensor> {
    let n = checked_elems(dtype, shape)?;
    let mut bytes = Vec::with_capacity(n * dtype.bytes());
    (0..n).for_each(|i| f(i).cast(dtype).write(dtype, &mut bytes));
    Tensor::from_bytes(dtype, shape.to_vec(), bytes.into())
}

/// An element-by-element function with broadcasting.
pub(crate) fn map(x: &[Tensor], to: DType, f: impl Fn(&[Num]) -> Num) -> Result<Tensor> {
    let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
    let shape = broadcast_shape(&shapes)?;
    let mut args = vec![Num::B(false); x.len()];
    from_nums(to, &shape, |i| {
        for (a, t) in args.iter_mut().zip(x) {
            *a = t.num(if t.shape() == shape { i } else { broadcast_index(t.shape(), &shape, i) });
        }
        f(&args)
    })
}
