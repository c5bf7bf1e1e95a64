//! What is done to the filters of a convolution when it is compiled.

use crate::attrs::op_struct;
use crate::builder::V;
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::ops::Composite;
use crate::ops::contract::MatMul;
use crate::tensor::Tensor;
use crate::types::DType;
use crate::winograd;

op_struct! {
    /// Filters `[..,3,3]` as the patches `[..,tile+2,tile+2]` that [minimal filtering](crate::winograd) multiplies with: `G g G^T`.
    WinogradFilter { tile: usize }
}

impl Composite for WinogradFilter {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let [w] = x else { return Err(Error::arity("winograd_filter takes the filters alone")) };
        let g = winograd::filter(self.tile).ok_or_else(|| Error::attribute(format!("winograd_filter: tile {} is not 2 or 4", self.tile)))?;
        let ty = w.ty();
        if ty.rank() < 2 || !ty.dtype.is_float() || ty.shape[ty.rank() - 2..].iter().any(|d| !d.is(3)) {
            return Err(Error::shape(format!("winograd_filter: filters are [..,3,3] of floats, found {ty}")));
        }
        let values: Vec<f64> = g.iter().flatten().copied().collect();
        let g = w.builder().constant(Tensor::new(&[g.len(), 3], &values)).cast(ty.dtype);
        let product = |a: V<'g>, b: V<'g>, transposed| w.builder().op(MatMul { transposed, packed: 0, post: vec![] }, &[a, b]);
        Ok(vec![product(g, product(*w, g, true), false)])
    }

    fn eval(&self, x: &[Tensor], _: &Env) -> Option<Result<Vec<Tensor>>> {
        (x[0].dtype() == DType::F32).then(|| winograd::filters(self.tile, &x[0]).map(|t| vec![t]))
    }
}
