//! Normalisation and softmax.

use super::activation::flattened;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::attrs::Real;
use nnc_ir::ops::composite::norm::{BatchNorm, InstanceNorm, LayerNorm, LogSoftmax, Lrn, RmsNorm, Softmax};
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("BatchNormalization", 1, (5, 5), batch_norm),
    op("BatchNormalization", 14, (5, 5), batch_norm),
    op("GroupNormalization", 18, (3, 3), group_norm),
    op("GroupNormalization", 21, (3, 3), group_norm),
    op("InstanceNormalization", 1, (3, 3), instance_norm),
    op("LRN", 1, (1, 1), lrn),
    op("LayerNormalization", 17, (2, 3), layer_norm),
    op("LogSoftmax", 1, (1, 1), |c| flattened(c, |x, axis| x.builder().op(LogSoftmax { axis }, &[x]))),
    op("LogSoftmax", 13, (1, 1), |c| Ok(vec![c.b.op(LogSoftmax { axis: c.axis("axis", -1)? }, &[c.x(0)?])])),
    op("LpNormalization", 1, (1, 1), lp_norm),
    op("MeanVarianceNormalization", 1, (1, 1), mean_variance_norm_old),
    op("MeanVarianceNormalization", 9, (1, 1), mean_variance_norm),
    op("RMSNormalization", 23, (2, 2), rms_norm),
    op("Softmax", 1, (1, 1), |c| flattened(c, |x, axis| x.builder().op(Softmax { axis }, &[x]))),
    op("Softmax", 13, (1, 1), |c| Ok(vec![c.b.op(Softmax { axis: c.axis("axis", -1)? }, &[c.x(0)?])])),
];

/// A vector of one element a channel, shaped so that it broadcasts over x `[N,C,spatial..]`.
pub fn per_channel<'g>(v: V<'g>, x: V<'g>) -> V<'g> {
    let mut shape = v.ty().shape;
    shape.resize(x.ty().rank().saturating_sub(1).max(1), Dim::Const(1));
    v.reshape(shape)
}

fn batch_norm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    let (x, scale, bias, mean, var) = (c.x(0)?, c.x(1)?, c.x(2)?, c.x(3)?, c.x(4)?);
    let (epsilon, momentum) = (c.float("epsilon", 1e-5)?, c.float("momentum", 0.9)?);
    let rank = x.ty().rank();
    if rank < 2 && !x.is_poison() {
        return Err(Error::shape(format!("expected [N,C,..], found {}", x.ty())));
    }
    // Before opset 14 outputs beyond the first mean training, unless is_test (up to 6) says that it is none.
    let training = if c.opset < 14 { !c.flag("is_test", false)? && (1..5).any(|i| c.wants(i)) } else { c.flag("training_mode", false)? };
    let spatial = c.flag("spatial", true)?;
    if !training {
        c.outputs_below(1, "statistics are results of training only")?;
    }
    // One set of statistics an element of a sample.
    let by_element = |mean: V<'g>, var: V<'g>| (x - mean) / (var + var.scalar_like(epsilon)).sqrt() * scale + bias;
    if !training {
        let y = if spatial { c.b.op(BatchNorm { epsilon: Real(epsilon) }, &[x, scale, bias, mean, var]) } else { by_element(mean, var) };
        return Ok(vec![y; 5]);
    }
    let axes: Vec<usize> = (0..rank).filter(|a| if spatial { *a != 1 } else { *a == 0 }).collect();
    let vector = |v: V<'g>| v.reshape(x.ty().shape[1..if spatial { 2 } else { rank }].to_vec());
    let wide = x.cast(mean.ty().dtype);
    let batch_mean = wide.mean_keep(&axes);
    let centred = wide - batch_mean;
    let (batch_mean, batch_var) = (vector(batch_mean), vector((centred * centred).mean_keep(&axes)));
    let y = if spatial {
        c.b.op(BatchNorm { epsilon: Real(epsilon) }, &[x, scale, bias, batch_mean, batch_var])
    } else {
        by_element(batch_mean, batch_var)
    };
    let running = |old: V<'g>, new: V<'g>| old * old.scalar_like(momentum) + new * new.scalar_like(1.0 - momentum);
    Ok(vec![y, running(mean, batch_mean), running(var, batch_var), batch_mean, batch_var])
}

fn instance_norm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    Ok(vec![c.b.op(InstanceNorm { epsilon: Real(c.float("epsilon", 1e-5)?) }, &c.all()?)])
}

/// Statistics in f32 for narrower floats; back to the type of x.
fn widened<'g>(c: &Call<'g>, x: V<'g>) -> Result<V<'g>> {
    Ok(x.cast(if x.ty().dtype == DType::F64 { DType::F64 } else { c.dtype("stash_type", Some(DType::F32))? }))
}

fn layer_norm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let (axis, epsilon) = (c.axis("axis", -1)?, c.float("epsilon", 1e-5)?);
    let wide = widened(c, x)?;
    let operands: Vec<V> = [Some(x), c.opt(1), c.opt(2)].into_iter().flatten().collect();
    let y = c.b.op(LayerNorm { axis, epsilon: Real(epsilon) }, &operands);
    if !c.wants(1) && !c.wants(2) {
        return Ok(vec![y; 3]);
    }
    let axes: Vec<usize> = (axis..wide.ty().rank()).collect();
    let mean = wide.mean_keep(&axes);
    let centred = wide - mean;
    let var = (centred * centred).mean_keep(&axes);
    Ok(vec![y, mean, (var + var.scalar_like(epsilon)).sqrt().reciprocal()])
}

fn rms_norm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (axis, epsilon) = (c.axis("axis", -1)?, c.float("epsilon", 1e-5)?);
    widened(c, c.x(0)?)?;
    Ok(vec![c.b.op(RmsNorm { axis, epsilon: Real(epsilon) }, &[c.x(0)?, c.x(1)?])])
}

/// Scale and bias are one a group in opset 18, one a channel from 21 on.
fn group_norm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, scale, bias) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let epsilon = c.float("epsilon", 1e-5)?;
    let groups = c.opt_int("num_groups")?.ok_or_else(|| c.missing("num_groups"))?;
    if groups < 1 {
        return Err(c.as_written(Error::attribute(format!("attribute `num_groups` is {groups}"))));
    }
    let wide = widened(c, x)?;
    let shape = x.ty().shape;
    if shape.len() < 2 || shape[1].as_const().is_some_and(|n| n % groups != 0) {
        return Err(Error::shape(format!("{groups} groups of the channels of {}", x.ty())));
    }
    let grouped = wide.reshape(vec![shape[0].clone(), Dim::Const(groups), Dim::product(&shape[1..]).floor_div(&Dim::Const(groups))]);
    let centred = grouped - grouped.mean_keep(&[2]);
    let var = (centred * centred).mean_keep(&[2]);
    let y = (centred / (var + var.scalar_like(epsilon)).sqrt()).cast(x.ty().dtype);
    if c.opset < 21 {
        let column = |v: V<'g>| v.reshape(vec![Dim::Const(groups), Dim::Const(1)]);
        return Ok(vec![(y * column(scale) + column(bias)).reshape(shape)]);
    }
    let y = y.reshape(shape);
    Ok(vec![y * per_channel(scale, y) + per_channel(bias, y)])
}

fn lrn<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let size = c.opt_int("size")?.ok_or_else(|| c.missing("size"))?;
    let size =
        usize::try_from(size).ok().filter(|s| (1..=4096).contains(s)).ok_or_else(|| Error::attribute(format!("attribute `size` is {size}")))?;
    let (alpha, beta, bias) = (Real(c.float("alpha", 1e-4)?), Real(c.float("beta", 0.75)?), Real(c.float("bias", 1.0)?));
    Ok(vec![c.b.op(Lrn { size, alpha, beta, bias }, &[c.x(0)?])])
}

/// Zero where the norm is zero.
fn lp_norm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let axis = c.axis("axis", -1)?;
    let norm = match c.int("p", 2)? {
        1 => x.abs().sum_keep(&[axis]),
        2 => (x * x).sum_keep(&[axis]).sqrt(),
        p => return Err(Error::attribute(format!("attribute `p` is {p}; 1 and 2 are known"))),
    };
    let zero = c.b.constant(Tensor::scalar_of(x.ty().dtype, 0.0));
    Ok(vec![norm.equal(zero).select(zero, x / norm)])
}

fn mean_variance_norm<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let axes = c.ints("axes")?.unwrap_or(vec![0, 2, 3]);
    let axes = axes.iter().map(|a| nnc_ir::types::normalize_axis(*a, x.ty().rank())).collect::<Result<Vec<_>>>()?;
    Ok(vec![by_deviation(x - x.mean_keep(&axes), &axes)])
}

/// The experimental operator of opset 1: each sample on its own.
fn mean_variance_norm_old<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let first = if c.flag("across_channels", false)? { 1 } else { 2 };
    if x.ty().rank() <= first {
        return Err(Error::shape(format!("expected [N,C,..], found {}", x.ty())));
    }
    let axes: Vec<usize> = (first..x.ty().rank()).collect();
    let centred = x - x.mean_keep(&axes);
    Ok(vec![if c.flag("normalize_variance", true)? { by_deviation(centred, &axes) } else { centred }])
}

/// The specification adds 1e-9 to the deviation, not to the variance.
fn by_deviation<'g>(centred: V<'g>, axes: &[usize]) -> V<'g> {
    let std = (centred * centred).mean_keep(axes).sqrt();
    centred / (std + std.scalar_like(1e-9))
}
