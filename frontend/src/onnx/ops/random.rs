//! Operators that draw random numbers. A draw without a seed has the number of the draw in the model for one: the same model gives the
//! same numbers in every run, and two draws differ. In the body of a loop the iteration is the step, so that iterations differ too.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::random::{normal, uniform};
use nnc_ir::ops::reduce::{Cumulate, Reduce, ReduceKind};
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, Tensor, V};

pub const ROWS: &[Row] = &[
    op("Bernoulli", 15, (1, 1), bernoulli),
    op("Dropout", 1, (1, 1), |c| inference(c, &["ratio", "is_test", "consumed_inputs"])),
    op("Dropout", 12, (1, 3), dropout),
    op("Multinomial", 7, (1, 1), multinomial),
    op("RandomNormal", 1, (0, 0), |c| fill(c, shape(c)?, DType::F32, scaled_normal)),
    op("RandomNormalLike", 1, (1, 1), |c| fill(c, c.x(0)?.ty().shape, c.x(0)?.ty().dtype, scaled_normal)),
    op("RandomUniform", 1, (0, 0), |c| fill(c, shape(c)?, DType::F32, scaled_uniform)),
    op("RandomUniformLike", 1, (1, 1), |c| fill(c, c.x(0)?.ty().shape, c.x(0)?.ty().dtype, scaled_uniform)),
];

/// The key of a call's draws. Integers (Dropout has one) and floats stay apart from each other and from draws without a seed.
fn seed(c: &Call) -> Result<i64> {
    Ok(match c.opt_int("seed") {
        Ok(Some(i)) => i,
        Ok(None) => (1 << 32) | i64::from(c.b.next_draw()),
        Err(_) => c.opt_float("seed")?.map_or(0, |s| (2 << 32) | i64::from((s as f32).to_bits())),
    })
}

fn shape(c: &Call) -> Result<Vec<Dim>> {
    let shape = c.ints("shape")?.ok_or_else(|| c.missing("shape"))?;
    match shape.iter().find(|d| **d < 0) {
        Some(d) => Err(Error::shape(format!("a length of {d}"))),
        None => Ok(shape.into_iter().map(Dim::Const).collect()),
    }
}

type Draw = for<'g> fn(&Call<'g>, &[Dim], DType) -> Result<V<'g>>;

fn fill<'g>(c: &Call<'g>, shape: Vec<Dim>, default: DType, draw: Draw) -> Result<Vec<V<'g>>> {
    let dtype = c.dtype("dtype", Some(default))?;
    if !dtype.is_float() {
        let e = Error::dtype(format!("random numbers are floats, attribute `dtype` asks for {dtype}"));
        return Err(if c.opt_int("dtype")?.is_some() { c.as_written(e) } else { e });
    }
    Ok(vec![draw(c, &shape, dtype)?.cast(dtype)])
}

fn scaled_normal<'g>(c: &Call<'g>, shape: &[Dim], _: DType) -> Result<V<'g>> {
    let (mean, scale) = (c.float("mean", 0.0)?, c.float("scale", 1.0)?);
    let z = normal(c.b, seed(c)?, c.step()?, shape);
    Ok(z * z.scalar_like(scale) + z.scalar_like(mean))
}

fn scaled_uniform<'g>(c: &Call<'g>, shape: &[Dim], dtype: DType) -> Result<V<'g>> {
    let (low, high) = (c.float("low", 0.0)?, c.float("high", 1.0)?);
    let u = uniform(c.b, seed(c)?, c.step()?, shape, dtype);
    Ok(u * u.scalar_like(high - low) + u.scalar_like(low))
}

/// 1 with the probability that each element says.
fn bernoulli<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let ty = c.x(0)?.ty();
    let dtype = c.dtype("dtype", Some(ty.dtype))?;
    let u = uniform(c.b, seed(c)?, c.step()?, &ty.shape, DType::F64);
    Ok(vec![u.less(c.x(0)?.cast(DType::F64)).cast(dtype)])
}

/// `sample_size` classes a row, each with the probability whose logarithm, up to a constant of the row, the input holds.
fn multinomial<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, ty) = (c.x(0)?.cast(DType::F64), c.x(0)?.ty());
    let dtype = c.dtype("dtype", Some(DType::I32))?;
    let samples = c.int("sample_size", 1)?;
    if ty.rank() != 2 || samples < 0 || !matches!(dtype, DType::I32 | DType::I64) {
        return Err(Error::attribute(format!(
            "expected [batch,classes], a sample_size of at least 0 and i32 or i64, found {ty}, {samples} and {dtype}"
        )));
    }
    let (batch, classes) = (ty.shape[0].clone(), ty.shape[1].clone());
    let weights = (x - x.max_keep(&[1])).exp();
    let up_to = c.b.op(Cumulate { kind: ReduceKind::Sum, axis: 1, exclusive: false, reverse: false }, &[weights]);
    let total = up_to.max_keep(&[1]);
    let u = uniform(c.b, seed(c)?, c.step()?, &[batch.clone(), Dim::Const(samples)], DType::F64) * total;
    // The class is the number of those that end at or before the draw.
    let (u, ends) = (u.reshape(vec![batch.clone(), Dim::Const(samples), Dim::Const(1)]), up_to.reshape(vec![batch, Dim::Const(1), classes]));
    let passed = ends.less_equal(u).cast(DType::I64);
    Ok(vec![c.b.op(Reduce { kind: ReduceKind::Sum, axes: vec![2], keepdims: false }, &[passed]).cast(dtype)])
}

/// The input as it is, and a mask of ones.
fn inference<'g>(c: &Call<'g>, ignored: &[&str]) -> Result<Vec<V<'g>>> {
    c.ignore(ignored);
    let x = c.x(0)?;
    if !c.wants(1) {
        return Ok(vec![x; 2]);
    }
    // Opsets below 10 give the mask in the type of the input.
    let one = c.b.constant(Tensor::scalar(true));
    let one = if c.opset < 10 { one.cast(x.ty().dtype) } else { one };
    Ok(vec![x, one.expand(x.ty().shape)])
}

/// In training each element stays with probability `1 - ratio`, scaled so that the mean does.
fn dropout<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let scalar = |i: usize| c.opt(i).map(|v| if v.ty().rank() == 0 { v } else { v.reshape(vec![]) });
    let one = |v: V<'g>| c.fold(v).filter(|t| t.elems() == 1).map(|t| t.num(0));
    let (x, ratio, training) = (c.x(0)?, scalar(1), scalar(2));
    let off = training.is_none_or(|t| one(t).is_some_and(|t| !t.as_bool()));
    if off || ratio.is_some_and(|r| one(r).is_some_and(|r| r.as_f64() == 0.0)) {
        return inference(c, &["seed"]);
    }
    let ty = x.ty();
    let ratio = ratio.map_or_else(|| c.b.constant(Tensor::scalar(0.5f64)), |r| r.cast(DType::F64));
    let u = uniform(c.b, seed(c)?, c.step()?, &ty.shape, DType::F64);
    let stays = ratio.less_equal(u);
    let scale = (ratio.scalar_like(1.0) - ratio).reciprocal().cast(ty.dtype);
    let stays = match training {
        Some(t) if one(t).is_none() => stays.or(t.map(ScalarFn::Not)),
        _ => stays,
    };
    let scaled = match training {
        Some(t) if one(t).is_none() => t.select(x * scale, x),
        _ => x * scale,
    };
    Ok(vec![stays.select(scaled, x.scalar_like(0.0)), stays])
}
