//! What is done to the filters of a convolution when it is compiled.

use crate::attrs::op_struct;
use crate::builder::V;
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::ops::Composite;
use crate::ops::contract::MatMul;
use crate::tensor::Tensor;
use crate::types::DType;
use crate::winograd::{self, Form};

op_struct! {
    /// Filters `[O,C,taps,taps]` as the patches `[O/block,s,s,C/block,block(in),block(out)]`, `s = tile+taps-1`, that
    /// [minimal filtering](crate::winograd) multiplies with: `G g G^T`, filled up with zeros to whole blocks.
    WinogradFilter { tile: usize, block: usize }
}

impl Composite for WinogradFilter {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let [w] = x else { return Err(Error::arity("winograd_filter takes the filters alone")) };
        let ty = w.ty();
        let taps = ty.shape.get(2).and_then(Dim::as_const).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        if self.block == 0 {
            return Err(Error::attribute("winograd_filter: a block has at least one channel"));
        }
        if ty.rank() != 4 || !ty.dtype.is_float() || ty.shape[2] != ty.shape[3] {
            return Err(Error::shape(format!("winograd_filter: filters are [O,C,taps,taps] of floats, found {ty}")));
        }
        let tile = self.tile;
        let form = Form::new(tile, taps).ok_or_else(|| Error::attribute(format!("winograd_filter: there is no F({tile}x{tile}, {taps}x{taps})")))?;
        let g = form.filter();
        let values: Vec<f64> = g.iter().flatten().copied().collect();
        let matrix = w.builder().constant(Tensor::new(&[g.len(), taps], &values)).cast(ty.dtype);
        let product = |a: V<'g>, b: V<'g>, transposed| w.builder().op(MatMul { transposed, packed: Dim::Const(0), post: vec![] }, &[a, b]);
        let patches = product(matrix, product(*w, matrix, true), false);
        let (b, s) = (Dim::from(self.block), Dim::from(g.len()));
        let blocks = [0, 1].map(|i| ty.shape[i].ceil_div(&b));
        let missing = |i: usize| blocks[i].clone() * b.clone() - ty.shape[i].clone();
        let none = Dim::Const(0);
        let full = patches.pad_zero(vec![none.clone(); 4], vec![missing(0), missing(1), none.clone(), none]);
        let [outputs, inputs] = blocks;
        let split = full.reshape(vec![outputs, b.clone(), inputs, b, s.clone(), s]);
        Ok(vec![split.transpose(&[0, 4, 5, 2, 3, 1])])
    }

    fn eval(&self, x: &[Tensor], _: &Env) -> Option<Result<Vec<Tensor>>> {
        (x[0].dtype() == DType::F32).then(|| winograd::filters(self.tile, self.block, &x[0]).map(|t| vec![t]))
    }
}
