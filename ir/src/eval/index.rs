//! Reference gathering and scattering.

use crate::error::{Error, Result};
use crate::ops::index::{ScatterElements, ScatterKind};
use crate::tensor::Tensor;

pub fn gather(_axis: usize, _x: &Tensor, _index: &Tensor) -> Result<Tensor> {
    Err(Error::internal("gather has no reference yet"))
}

pub fn gather_elements(_axis: usize, _x: &Tensor, _index: &Tensor) -> Result<Tensor> {
    Err(Error::internal("gather_elements has no reference yet"))
}

pub fn gather_nd(_batch_dims: usize, _x: &Tensor, _index: &Tensor) -> Result<Tensor> {
    Err(Error::internal("gather_nd has no reference yet"))
}

pub fn scatter_elements(_op: &ScatterElements, _x: &[Tensor]) -> Result<Tensor> {
    Err(Error::internal("scatter_elements has no reference yet"))
}

pub fn scatter_nd(_kind: ScatterKind, _x: &[Tensor]) -> Result<Tensor> {
    Err(Error::internal("scatter_nd has no reference yet"))
}

pub fn non_zero(_x: &Tensor) -> Tensor {
    Tensor::new::<i64>(&[0, 0], &[])
}
