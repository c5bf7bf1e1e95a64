//! Reference movement.

use super::Env;
use crate::error::{Error, Result};
use crate::ops::movement::{Pad, Slice, Transpose};
use crate::tensor::Tensor;

pub fn transpose(_op: &Transpose, _x: &Tensor) -> Result<Tensor> {
    Err(Error::internal("transpose has no reference yet"))
}

pub fn expand(_x: &Tensor, _shape: Vec<usize>) -> Result<Tensor> {
    Err(Error::internal("expand has no reference yet"))
}

pub fn slice(_op: &Slice, _x: &Tensor, _env: &Env) -> Result<Tensor> {
    Err(Error::internal("slice has no reference yet"))
}

pub fn concat(_axis: usize, _x: &[Tensor]) -> Result<Tensor> {
    Err(Error::internal("concat has no reference yet"))
}

pub fn pad(_op: &Pad, _x: &[Tensor], _env: &Env) -> Result<Tensor> {
    Err(Error::internal("pad has no reference yet"))
}

pub fn pack(_block: usize, _x: &Tensor) -> Result<Tensor> {
    Err(Error::internal("pack has no reference yet"))
}

pub fn unpack(_channels: usize, _x: &Tensor) -> Result<Tensor> {
    Err(Error::internal("unpack has no reference yet"))
}
