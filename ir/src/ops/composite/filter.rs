//! What is done to the filters of a convolution when it is compiled.

use crate::attrs::op_struct;
use crate::builder::V;
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::ops::Composite;
use crate::ops::contract::{MatMul, PANEL};
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
        // Both products with G at once: a row of taps times the matrix of products of two of G's elements, in whole panels of columns.
        let g = form.filter();
        let (side, elements) = (g.len(), g.len() * g.len());
        let columns = elements.next_multiple_of(PANEL);
        let mut values = vec![0.0; taps * taps * columns];
        for (i, j, r, t) in (0..elements).flat_map(|e| (0..taps * taps).map(move |k| (e / side, e % side, k / taps, k % taps))) {
            values[(r * taps + t) * columns + i * side + j] = g[i][r] * g[j][t];
        }
        let matrix = w.builder().constant(Tensor::new(&[taps * taps, columns], &values)).cast(ty.dtype);
        let product = MatMul { transposed: false, packed: Dim::Const(0), post: vec![] };
        let rows = w.builder().op(product, &[w.reshape(vec![Dim::product(&ty.shape[..2]), Dim::from(taps * taps)]), matrix]);
        let of = |n: usize| [&ty.shape[..2], &[Dim::from(n)]].concat();
        let patches = rows.reshape(of(columns)).slice(vec![Dim::Const(0); 3], of(elements));
        let (b, s) = (Dim::from(self.block), Dim::from(side));
        let blocks = [0, 1].map(|i| ty.shape[i].ceil_div(&b));
        let missing = |i: usize| blocks[i].clone() * b.clone() - ty.shape[i].clone();
        let none = Dim::Const(0);
        let full = patches.pad_zero(vec![none.clone(); 3], vec![missing(0), missing(1), none]);
        let [outputs, inputs] = blocks;
        let split = full.reshape(vec![outputs.clone(), b.clone(), inputs.clone(), b.clone(), Dim::from(elements)]);
        let moved = split.transpose(&[0, 4, 2, 3, 1]);
        Ok(vec![moved.reshape(vec![outputs, s.clone(), s, inputs, b.clone(), b])])
    }

    fn eval(&self, x: &[Tensor], _: &Env) -> Option<Result<Vec<Tensor>>> {
        (x[0].dtype() == DType::F32).then(|| winograd::filters(self.tile, self.block, &x[0]).map(|t| vec![t]))
    }
}
