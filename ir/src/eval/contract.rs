//! Reference matmul and convolution.

use super::Env;
use crate::error::{Error, Result};
use crate::ops::contract::{Conv, ConvTranspose, MatMul};
use crate::tensor::Tensor;

pub fn matmul(_op: &MatMul, _x: &[Tensor], _env: &Env) -> Result<Tensor> {
    Err(Error::internal("matmul has no reference yet"))
}

pub fn conv(_op: &Conv, _x: &[Tensor], _env: &Env) -> Result<Tensor> {
    Err(Error::internal("conv has no reference yet"))
}

pub fn conv_transpose(_op: &ConvTranspose, _x: &[Tensor], _env: &Env) -> Result<Tensor> {
    Err(Error::internal("conv_transpose has no reference yet"))
}
