//! Reference reductions.

use crate::error::{Error, Result};
use crate::ops::reduce::{ArgReduce, Cumulate, Reduce};
use crate::tensor::Tensor;

pub fn reduce(_op: &Reduce, _x: &Tensor) -> Result<Tensor> {
    Err(Error::internal("reduce has no reference yet"))
}

pub fn arg_reduce(_op: &ArgReduce, _x: &Tensor) -> Result<Tensor> {
    Err(Error::internal("arg_reduce has no reference yet"))
}

pub fn cumulate(_op: &Cumulate, _x: &Tensor) -> Result<Tensor> {
    Err(Error::internal("cumulate has no reference yet"))
}
