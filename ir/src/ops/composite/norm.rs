//! Softmax and normalisation.

use crate::attrs::{Real, op_struct};
use crate::builder::V;
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::ops::Composite;
use crate::ops::composite::only;
use crate::types::DType;

op_struct! {
    /// `exp(x) / sum(exp(x))` along `axis`, shifted by the maximum so that exp cannot overflow.
    Softmax { axis: usize }
}

impl Composite for Softmax {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let x = only("softmax", x)?;
        let e = (x - x.max_keep(&[self.axis])).exp();
        Ok(vec![e / e.sum_keep(&[self.axis])])
    }
}

op_struct! {
    /// `log(softmax(x))` along `axis`.
    LogSoftmax { axis: usize }
}

impl Composite for LogSoftmax {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let x = only("log_softmax", x)?;
        let shifted = x - x.max_keep(&[self.axis]);
        Ok(vec![shifted - shifted.exp().sum_keep(&[self.axis]).log()])
    }
}

/// A vector `[C]` as `[C,1,1...]` so that it broadcasts over the spatial axes of x `[N,C,spatial..]`.
fn per_channel<'g>(v: V<'g>, x: V<'g>) -> V<'g> {
    let mut shape = vec![Dim::Const(1); x.ty().rank().saturating_sub(1).max(1)];
    shape[0] = v.ty().shape.first().cloned().unwrap_or(Dim::Const(1));
    v.reshape(shape)
}

/// The result `y` of normalising x: scale and bias are stretched to x, which is not stretched to them.
fn like<'g>(x: V<'g>, y: V<'g>) -> Result<Vec<V<'g>>> {
    let (have, want) = (y.ty(), x.ty());
    let differ = |(a, b): (&Dim, &Dim)| a != b && a.as_const().is_some() && b.as_const().is_some();
    if have.rank() != want.rank() || have.shape.iter().zip(&want.shape).any(differ) {
        return Err(Error::shape(format!("scale and bias of {want} do not fit it: the result would be {have}")));
    }
    Ok(vec![y])
}

op_struct! {
    /// Inference: `(x - mean) / sqrt(var + epsilon) * scale + bias` a channel. Operands x `[N,C,..]`, scale, bias, mean, var `[C]`.
    BatchNorm { epsilon: Real = Real(1e-5) }
}

impl Composite for BatchNorm {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let [x, scale, bias, mean, var] = x else { return Err(Error::arity("batch_norm takes x, scale, bias, mean, var")) };
        let std = (*var + var.scalar_like(self.epsilon.0)).sqrt();
        // As (x * a + b): a and b fold to constants, and both are cheap to fuse into a convolution.
        let a = (*scale / std).cast(x.ty().dtype);
        let b = (*bias - *mean * (*scale / std)).cast(x.ty().dtype);
        like(*x, *x * per_channel(a, *x) + per_channel(b, *x))
    }
}

op_struct! {
    /// Normalises over the axes from `axis` on, then scales and shifts: x, scale, and optionally bias, of the normalised shape.
    /// Statistics are taken in f32 for narrower floats.
    LayerNorm { axis: usize, epsilon: Real = Real(1e-5) }
}

impl Composite for LayerNorm {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let (x, scale, bias) = match x {
            [x, scale] => (*x, *scale, None),
            [x, scale, bias] => (*x, *scale, Some(*bias)),
            _ => return Err(Error::arity("layer_norm takes x, scale and optionally bias")),
        };
        let dtype = x.ty().dtype;
        let wide = x.cast(if dtype == DType::F64 { DType::F64 } else { DType::F32 });
        let axes: Vec<usize> = (self.axis..wide.ty().rank()).collect();
        let centred = wide - wide.mean_keep(&axes);
        let var = (centred * centred).mean_keep(&axes);
        let y = (centred / (var + var.scalar_like(self.epsilon.0)).sqrt()).cast(dtype);
        let y = y * scale;
        like(x, bias.map_or(y, |b| y + b))
    }
}

op_struct! {
    /// Divides by the root of the mean square over the axes from `axis` on, then scales (Zhang, Sennrich: Root Mean Square Layer Normalization,
    /// 2019): x, and scale, of the normalised shape. The mean is taken in f32 for narrower floats; the result has the type of scale.
    RmsNorm { axis: usize, epsilon: Real = Real(1e-5) }
}

impl Composite for RmsNorm {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let [x, scale] = x else { return Err(Error::arity("rms_norm takes x and scale")) };
        let wide = x.cast(if x.ty().dtype == DType::F64 { DType::F64 } else { DType::F32 });
        let axes: Vec<usize> = (self.axis..wide.ty().rank()).collect();
        let mean = (wide * wide).mean_keep(&axes);
        let y = wide / (mean + mean.scalar_like(self.epsilon.0)).sqrt();
        like(*x, y.cast(scale.ty().dtype) * *scale)
    }
}

op_struct! {
    /// Normalises each channel of each sample over its spatial axes. Operands x `[N,C,spatial..]`, scale, bias `[C]`.
    InstanceNorm { epsilon: Real = Real(1e-5) }
}

impl Composite for InstanceNorm {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let [x, scale, bias] = x else { return Err(Error::arity("instance_norm takes x, scale, bias")) };
        let axes: Vec<usize> = (2..x.ty().rank()).collect();
        let centred = *x - x.mean_keep(&axes);
        let var = (centred * centred).mean_keep(&axes);
        let y = centred / (var + var.scalar_like(self.epsilon.0)).sqrt();
        like(*x, y * per_channel(*scale, *x) + per_channel(*bias, *x))
    }
}

op_struct! {
    /// Local response normalisation across channels (Krizhevsky et al. 2012, with ONNX's alpha / size):
    /// `x / (bias + alpha / size * sum of squares over size neighbouring channels)^beta`.
    Lrn { size: usize, alpha: Real = Real(1e-4), beta: Real = Real(0.75), bias: Real = Real(1.0) }
}

impl Composite for Lrn {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let x = only("lrn", x)?;
        let rank = x.ty().rank();
        if rank < 2 || self.size == 0 {
            return Err(Error::shape(format!("lrn: {} has no channels", x.ty())));
        }
        // Neighbours reach (size-1)/2 down and the rest up (ONNX LRN): pad the channels, then add `size` shifted slices.
        let (below, above) = ((self.size - 1) / 2, self.size - 1 - (self.size - 1) / 2);
        let one_axis = |n: usize| (0..rank).map(|i| Dim::from(if i == 1 { n } else { 0 })).collect::<Vec<_>>();
        let squares = (x * x).pad_zero(one_axis(below), one_axis(above));
        let sum = (0..self.size).map(|k| squares.slice(one_axis(k), x.ty().shape)).reduce(|a, b| a + b).expect("size is at least 1");
        let base = sum * x.scalar_like(self.alpha.0 / self.size as f64) + x.scalar_like(self.bias.0);
        Ok(vec![x / base.pow(x.scalar_like(self.beta.0))])
    }
}
