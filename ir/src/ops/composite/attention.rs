//! Attention: what queries read of values by the likeness of keys.

use crate::attrs::{Real, op_struct};
use crate::builder::V;
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::ops::Composite;
use crate::ops::composite::norm::Softmax;
use crate::ops::contract::MatMul;
use crate::types::{DType, Type};

op_struct! {
    /// `softmax(q k^T * scale + mask) v` (Vaswani et al. 2017): q `[..,L,D]`, k `[..,S,D]`, v `[..,S,E]`, and optionally the mask with its
    /// keys first: it broadcasts to `[..,S,L]`. The result is `[..,L,E]`.
    Attention { scale: Real = Real(1.0) }
}

impl Attention {
    /// Whether operands of these types lie as kernels want them: f32, the same leading axes in q, k and v, and each axis of the mask one
    /// long or as long as the scores'.
    pub fn is_regular(x: &[Type]) -> bool {
        let [q, k, v, mask @ ..] = x else { return false };
        let n = q.rank();
        if n < 2 || k.rank() != n || v.rank() != n || mask.len() > 1 || x.iter().any(|t| t.dtype != DType::F32) {
            return false;
        }
        let batch = &q.shape[..n - 2];
        let scores: Vec<&Dim> = batch.iter().chain([&k.shape[n - 2], &q.shape[n - 2]]).collect();
        k.shape[..n - 2] == *batch
            && v.shape[..n - 2] == *batch
            && k.shape[n - 1] == q.shape[n - 1]
            && v.shape[n - 2] == k.shape[n - 2]
            && mask.iter().all(|m| m.rank() == n && m.shape.iter().zip(&scores).all(|(d, s)| d.is(1) || d == *s))
    }
}

impl Composite for Attention {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let (q, k, v, mask) = match x {
            [q, k, v] => (*q, *k, *v, None),
            [q, k, v, mask] => (*q, *k, *v, Some(*mask)),
            _ => return Err(Error::arity(format!("attention takes q, k, v and optionally a mask, {} operands are given", x.len()))),
        };
        let product = |a: V<'g>, b: V<'g>, transposed| q.builder().op(MatMul { transposed, packed: Dim::Const(0), post: vec![] }, &[a, b]);
        let scores = product(q, k, true);
        let scores = if self.scale.0 == 1.0 { scores } else { scores * scores.scalar_like(self.scale.0) };
        let scores = match mask.map(|m| (m, m.ty().rank())) {
            None => scores,
            Some((mask, n)) if n >= 2 => {
                let perm: Vec<usize> = (0..n - 2).chain([n - 1, n - 2]).collect();
                scores + mask.transpose(&perm)
            }
            Some((mask, _)) => return Err(Error::shape(format!("attention: a mask is [..,S,L], found {}", mask.ty()))),
        };
        if scores.is_poison() {
            return Ok(vec![scores]);
        }
        let axis = scores.ty().rank().checked_sub(1).ok_or_else(|| Error::shape(format!("attention: {} are no queries", q.ty())))?;
        Ok(vec![product(q.builder().op(Softmax { axis }, &[scores]), v, false)])
    }
}
