//! Operators that opset 1 called experimental, and that ONNX dropped later without a successor. Files of those years have them.

use super::movement::slice;
use super::norm::per_channel;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("Affine", 1, (1, 1), |c| {
        let (x, alpha, beta) = (c.x(0)?, c.float("alpha", 1.0)?, c.float("beta", 0.0)?);
        Ok(vec![x * x.scalar_like(alpha) + x.scalar_like(beta)])
    }),
    op("ConstantFill", 1, (0, 1), constant_fill),
    op("Crop", 1, (1, 1), crop),
    op("DynamicSlice", 1, (3, 4), slice),
    op("GivenTensorFill", 1, (0, 1), given_fill),
    op("ImageScaler", 1, (1, 1), image_scaler),
    op("ParametricSoftplus", 1, (1, 1), |c| {
        let x = c.x(0)?;
        let (alpha, beta) = (given(c, "alpha")?, given(c, "beta")?);
        Ok(vec![Act::Softplus {}.expand(x * x.scalar_like(beta)) * x.scalar_like(alpha)])
    }),
    op("Scale", 1, (1, 1), |c| {
        let x = c.x(0)?;
        Ok(vec![x * x.scalar_like(c.float("scale", 1.0)?)])
    }),
    op("ScaledTanh", 1, (1, 1), |c| {
        let x = c.x(0)?;
        let (alpha, beta) = (given(c, "alpha")?, given(c, "beta")?);
        Ok(vec![(x * x.scalar_like(beta)).tanh() * x.scalar_like(alpha)])
    }),
];

/// A float attribute that has no default.
fn given(c: &Call, name: &str) -> Result<f64> {
    c.opt_float(name)?.ok_or_else(|| c.missing(name))
}

/// The shape of a fill: an attribute, that of the input, or what the input holds; `extra_shape` comes after the latter two.
fn filled_shape(c: &Call) -> Result<Vec<Dim>> {
    let dims = |v: Option<Vec<i64>>| v.map(|v| v.into_iter().map(Dim::Const).collect::<Vec<_>>());
    let (own, extra) = (dims(c.ints("shape")?), dims(c.ints("extra_shape")?));
    let holds = c.flag("input_as_shape", false)?;
    let shape = match (c.opt(0), own) {
        (None, Some(own)) if extra.is_none() && !holds => own,
        (Some(_), None) if holds => [c.dims_or_read(0, "the shape")?, extra.unwrap_or_default()].concat(),
        (Some(x), None) => [x.ty().shape, extra.unwrap_or_default()].concat(),
        _ => return Err(Error::attribute("either an input or attribute `shape` gives the shape, and `extra_shape` goes with an input")),
    };
    match shape.iter().find(|d| d.as_const().is_some_and(|d| d < 0)) {
        Some(d) => Err(Error::shape(format!("a length of {d}"))),
        None => Ok(shape),
    }
}

fn constant_fill<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let value = Tensor::scalar_of(c.dtype("dtype", Some(DType::F32))?, c.float("value", 0.0)?);
    Ok(vec![c.b.constant(value).expand(filled_shape(c)?)])
}

fn given_fill<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let values: Vec<f32> = c.floats("values")?.unwrap_or_default().into_iter().map(|v| v as f32).collect();
    let shape = filled_shape(c)?;
    if Dim::product(&shape).as_const().is_some_and(|n| n != values.len() as i64) {
        return Err(Error::shape(format!("{} values for {}", values.len(), nnc_ir::types::ShapeText(&shape))));
    }
    Ok(vec![c.b.constant(Tensor::new(&[values.len()], &values)).reshape(shape)])
}

/// `[N,C,H,W]` without `border` (left, top, right, bottom), or from its left and top on as much as `scale` (height, width) says.
fn crop<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let border = c.ints("border")?.unwrap_or_default();
    let ([left, top, right, bottom], 4) = (&border[..], x.ty().rank()) else {
        return Err(Error::attribute(format!("expected [N,C,H,W] and four borders, found {} and {border:?}", x.ty())));
    };
    if border.iter().any(|b| *b < 0) {
        return Err(Error::attribute(format!("a negative border in {border:?}")));
    }
    let whole = x.ty().shape;
    let left_over = |axis: usize, low: i64, high: i64| whole[axis].clone() - Dim::Const(low) - Dim::Const(high);
    let (height, width) = match c.ints("scale")?.as_deref() {
        None => (left_over(2, *top, *bottom), left_over(3, *left, *right)),
        Some([h, w]) => (Dim::Const(*h), Dim::Const(*w)),
        Some(other) => return Err(Error::attribute(format!("attribute `scale` should be a height and a width, found {other:?}"))),
    };
    Ok(vec![x.slice_axis(2, Dim::Const(*top), height).slice_axis(3, Dim::Const(*left), width)])
}

/// The image times `scale`, plus a bias for each channel.
fn image_scaler<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let mut scaled = x * x.scalar_like(c.float("scale", 1.0)?);
    let Some(bias) = c.floats("bias")? else { return Ok(vec![scaled]) };
    let mut shape = x.ty().shape;
    if shape.len() < 2 || shape[1].as_const().is_some_and(|n| n != bias.len() as i64) {
        return Err(Error::shape(format!("{} biases for the channels of {}", bias.len(), x.ty())));
    }
    if shape[1].as_const().is_none() {
        // Whether there are as many, the run says.
        shape[1] = Dim::from(bias.len());
        scaled = scaled.reshape(shape);
    }
    let bias = c.b.constant(Tensor::new(&[bias.len()], &bias)).cast(x.ty().dtype);
    Ok(vec![scaled + per_channel(bias, x)])
}
