//! Operators that make tensors: constants, fills, ranges.

use super::{Row, op};
use crate::onnx::call::Call;
use bytes::Bytes;
use nnc_ir::ops::source::Iota;
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, Tensor, V};
use std::sync::Arc;

pub const ROWS: &[Row] = &[
    op("Constant", 1, (0, 0), constant),
    op("ConstantOfShape", 9, (1, 1), constant_of_shape),
    op("EyeLike", 9, (1, 1), eye_like),
    op("Range", 11, (3, 3), range),
];

fn constant<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let f32s = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let t = if let Some(t) = c.tensor("value")? {
        t
    } else if let Some(x) = c.opt_float("value_float")? {
        Tensor::scalar(x as f32)
    } else if let Some(i) = c.opt_int("value_int")? {
        Tensor::scalar(i)
    } else if let Some(v) = c.floats("value_floats")? {
        Tensor::new(&[v.len()], &f32s(v))
    } else if let Some(v) = c.ints("value_ints")? {
        Tensor::new(&[v.len()], &v)
    } else if let Some(s) = c.opt_str("value_string")? {
        Tensor::text(&[], vec![s.into()])?
    } else if let Some(v) = c.strs("value_strings")? {
        Tensor::text(&[v.len()], v.into_iter().map(Arc::from).collect())?
    } else if let Some(t) = c.sparse("sparse_value")? {
        t
    } else {
        return Err(c.missing("value"));
    };
    Ok(vec![c.b.constant(t)])
}

/// A constant stays one element however large the shape, so that a few bytes of a file cannot ask for gigabytes.
fn constant_of_shape<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let value = c.tensor("value")?.unwrap_or_else(|| Tensor::new(&[1], &[0f32]));
    if value.elems() != 1 {
        return Err(Error::attribute(format!("attribute `value` should hold one element, found {}", value.ty())));
    }
    let shape = c.dims_or_read(0, "the shape")?;
    if let Some(sizes) = shape.iter().map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect::<Option<Vec<_>>>() {
        return Ok(vec![c.b.constant(Tensor::splat(value.dtype(), sizes, Bytes::copy_from_slice(value.element(0)))?)]);
    }
    if let Some(d) = shape.iter().find(|d| d.as_const().is_some_and(|d| d < 0)) {
        return Err(Error::shape(format!("a length of {d}")));
    }
    Ok(vec![c.b.constant(value.reshaped(vec![])?).expand(shape)])
}

fn eye_like<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let ty = c.x(0)?.ty();
    let dtype = c.dtype("dtype", Some(ty.dtype))?;
    if ty.rank() != 2 {
        return Err(Error::shape(format!("expected a matrix, found {ty}")));
    }
    let row = super::index::ramp(c.b, ty.shape[0].clone(), 0, 2);
    let col = super::index::ramp(c.b, ty.shape[1].clone(), 1, 2);
    let k = c.b.constant(Tensor::scalar(c.int("k", 0)?));
    Ok(vec![col.equal(row + k).cast(dtype)])
}

/// `start, start + delta, ..` as long as it is before `limit`.
fn range<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let scalar = |i: usize| c.x(i).map(|v| v.reshape(vec![]));
    let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
    let dtype = start.ty().dtype;
    let count = match (start.known(), limit.known(), delta.known()) {
        (Some(s), Some(l), Some(d)) if d[0].as_const().is_some_and(|d| d != 0) => {
            let step = d[0].as_const().unwrap_or(1);
            let span = if step > 0 { &l[0] - &s[0] } else { &s[0] - &l[0] };
            span.ceil_div(&Dim::Const(step.saturating_abs())).maximum(&Dim::Const(0))
        }
        _ => match (start.constant(), limit.constant(), delta.constant()) {
            (Some(s), Some(l), Some(d)) => {
                let n = ((l.num(0).as_f64() - s.num(0).as_f64()) / d.num(0).as_f64()).ceil();
                if n.is_nan() || n >= 1e15 {
                    return Err(Error::limit(format!("a range of {n} elements")));
                }
                Dim::Const(n.max(0.0) as i64)
            }
            _ if dtype.is_int() => c.read(integer_count(c, start, limit, delta), "the length of the range")?.0[0].clone(),
            _ => {
                let wide = |v: V<'g>| v.cast(DType::F64);
                let n = ((wide(limit) - wide(start)) / wide(delta)).map(ScalarFn::Ceil);
                c.read(n.max(n.scalar_like(0.0)), "the length of the range")?.0[0].clone()
            }
        },
    };
    let ramp = c.b.op(Iota { shape: vec![count], axis: 0 }, &[]);
    // The reference adds multiples of delta; in f64, so that f32 ranges round once.
    if dtype.is_float() && dtype != DType::F64 {
        return Ok(vec![(ramp.cast(DType::F64) * delta.cast(DType::F64) + start.cast(DType::F64)).cast(dtype)]);
    }
    Ok(vec![ramp.cast(dtype) * delta + start])
}

/// How many integers `start, start + delta, ..` there are before `limit`: distances are unsigned, so that none overflows. A step of 0
/// gives a size that there is not.
fn integer_count<'g>(c: &Call<'g>, start: V<'g>, limit: V<'g>, delta: V<'g>) -> V<'g> {
    let (start, limit, delta) = (start.cast(DType::I64), limit.cast(DType::I64), delta.cast(DType::I64));
    let (zero, one) = (c.b.constant(Tensor::scalar(0i64)), c.b.constant(Tensor::scalar(1u64)));
    let far = |v: V<'g>| v.cast(DType::U64);
    let up = delta.greater(zero);
    let distance = up.select(far(limit) - far(start), far(start) - far(limit));
    let stride = up.select(far(delta), far(zero) - far(delta)).max(one);
    let count = ((distance - one) / stride + one).cast(DType::I64);
    let any = up.select(start.less(limit), limit.less(start));
    delta.equal(zero).select(c.b.constant(Tensor::scalar(-1i64)), any.select(count, zero))
}
