//! Matrix products.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::contract::MatMul;
use nnc_ir::{Dim, Error, Result, V};

pub const ROWS: &[Row] =
    &[op("Gemm", 1, (3, 3), gemm), op("Gemm", 11, (2, 3), gemm), op("MatMul", 1, (2, 2), |c| Ok(vec![matmul(c.x(0)?, c.x(1)?)]))];

pub fn matmul<'g>(a: V<'g>, b: V<'g>) -> V<'g> {
    a.builder().op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, &[a, b])
}

/// `alpha * A' * B' + beta * C`.
fn gemm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    // Before opset 7 C stretched only where `broadcast` was set; the shapes that are valid without it mean the same with it.
    c.ignore(&["broadcast"]);
    let (a, b) = (c.x(0)?, c.x(1)?);
    for v in [a, b] {
        if v.ty().rank() != 2 {
            return Err(Error::shape(format!("A and B should be matrices, found {} and {}", a.ty(), b.ty())));
        }
    }
    let (alpha, beta) = (c.float("alpha", 1.0)?, c.float("beta", 1.0)?);
    let a = if c.flag("transA", false)? { a.transpose(&[1, 0]) } else { a };
    let y = c.b.op(MatMul { transposed: c.flag("transB", false)?, packed: Dim::Const(0), post: vec![] }, &[a, b]);
    if y.is_poison() {
        return Ok(vec![y]);
    }
    let scaled = |v: V<'g>, by: f64| if by == 1.0 { v } else { v * v.scalar_like(by) };
    let y = scaled(y, alpha);
    let Some(bias) = c.opt(2) else { return Ok(vec![y]) };
    let sum = y + scaled(bias, beta);
    let stretched = |a: &Dim, b: &Dim| (a - b).as_const().is_some_and(|d| d != 0);
    if !sum.is_poison() && (sum.ty().rank() != 2 || sum.ty().shape.iter().zip(&y.ty().shape).any(|(a, b)| stretched(a, b))) {
        return Err(Error::shape(format!("C does not stretch to the product: {} and {}", bias.ty(), y.ty())));
    }
    Ok(vec![sum])
}
