//! Activation functions.

use super::math::unary;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::attrs::Real;
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::source::Iota;
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, V};

pub const ROWS: &[Row] = &[
    op("Celu", 12, (1, 1), |c| act(c, Act::Celu { alpha: float(c, "alpha", 1.0)? })),
    op("Elu", 1, (1, 1), |c| act(c, Act::Elu { alpha: float(c, "alpha", 1.0)? })),
    op("Gelu", 20, (1, 1), gelu),
    op("HardSigmoid", 1, (1, 1), |c| act(c, Act::HardSigmoid { alpha: float(c, "alpha", 0.2)?, beta: float(c, "beta", 0.5)? })),
    op("HardSwish", 14, (1, 1), |c| act(c, Act::HardSwish {})),
    op("Hardmax", 1, (1, 1), |c| flattened(c, hardmax)),
    op("Hardmax", 13, (1, 1), |c| Ok(vec![hardmax(c.x(0)?, c.axis("axis", -1)?)])),
    op("LeakyRelu", 1, (1, 1), |c| act(c, Act::LeakyRelu { alpha: float(c, "alpha", 0.01)? })),
    op("Mish", 18, (1, 1), |c| act(c, Act::Mish {})),
    op("PRelu", 1, (2, 2), prelu_by_channel),
    op("PRelu", 7, (2, 2), |c| Ok(vec![prelu(c.x(0)?, c.x(1)?)])),
    op("Relu", 1, (1, 1), |c| unary(c, ScalarFn::Relu)),
    op("Selu", 1, (1, 1), |c| {
        // The defaults of opset 6 on; opset 1 rounded them to four digits.
        let (alpha, gamma) = if c.opset < 6 { (1.6732, 1.0507) } else { (1.673_263_192_176_819, 1.050_701_022_148_132_3) };
        act(c, Act::Selu { alpha: float(c, "alpha", alpha)?, gamma: float(c, "gamma", gamma)? })
    }),
    op("Shrink", 9, (1, 1), shrink),
    op("Softplus", 1, (1, 1), |c| act(c, Act::Softplus {})),
    op("Softsign", 1, (1, 1), |c| act(c, Act::Softsign {})),
    op("SwiGLU", 28, (2, 2), swiglu),
    op("Swish", 24, (1, 1), |c| act(c, Act::Swish { alpha: float(c, "alpha", 1.0)? })),
    op("ThresholdedRelu", 1, (1, 1), |c| act(c, Act::ThresholdedRelu { alpha: float(c, "alpha", 1.0)? })),
];

fn float(c: &Call, name: &str, default: f64) -> Result<Real> {
    c.float(name, default).map(Real)
}

fn act<'g>(c: &Call<'g>, act: Act) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    Ok(vec![c.b.op(Activation { act }, &[c.x(0)?])])
}

fn gelu<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let exact = c.word("approximate", &["none", "tanh"])? == "none";
    act(c, if exact { Act::Gelu {} } else { Act::GeluTanh {} })
}

/// The first operand's Swish opens the gate for the second.
fn swiglu<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (gate, x) = (c.x(0)?, c.x(1)?);
    if gate.ty().shape != x.ty().shape {
        return Err(Error::shape(format!("gate and value should have one shape, found {} and {}", gate.ty(), x.ty())));
    }
    let act = Act::Swish { alpha: float(c, "alpha", 1.0)? };
    Ok(vec![c.b.op(Activation { act }, &[gate]) * x])
}

fn prelu<'g>(x: V<'g>, slope: V<'g>) -> V<'g> {
    x.less(x.scalar_like(0.0)).select(x * slope, x)
}

/// Opsets 1 and 6: a slope of one axis lies along the channels.
fn prelu_by_channel<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    let (x, slope) = (c.x(0)?, c.x(1)?);
    let (tx, ts) = (x.ty(), slope.ty());
    if ts.rank() == 1 && tx.rank() > 2 && !ts.shape[0].is(1) {
        let mut shape = vec![Dim::Const(1); tx.rank() - 1];
        shape[0] = ts.shape[0].clone();
        return Ok(vec![prelu(x, slope.reshape(shape))]);
    }
    Ok(vec![prelu(x, slope)])
}

fn shrink<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let (lambd, bias) = (c.float("lambd", 0.5)?, c.float("bias", 0.0)?);
    let (k, bias) = (|v| x.scalar_like(v), x.scalar_like(bias));
    Ok(vec![x.less(k(-lambd)).select(x + bias, x.greater(k(lambd)).select(x - bias, k(0.0)))])
}

/// 1 at the first maximum along `axis`, 0 elsewhere.
fn hardmax<'g>(x: V<'g>, axis: usize) -> V<'g> {
    let b = x.builder();
    let ty = x.ty();
    let first = b.op(nnc_ir::ops::reduce::ArgReduce { kind: nnc_ir::ops::reduce::ReduceKind::Max, axis, keepdims: true, last: false }, &[x]);
    let mut ramp = vec![Dim::Const(1); ty.rank()];
    ramp[axis] = ty.shape[axis].clone();
    b.op(Iota { shape: ramp, axis }, &[]).equal(first).cast(DType::U8).cast(ty.dtype)
}

/// Softmax and kin before opset 13: along all axes from `axis` (1 by default) on, taken as one.
pub fn flattened<'g>(c: &Call<'g>, f: impl Fn(V<'g>, usize) -> V<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let shape = x.ty().shape;
    // `rank` itself is a valid axis for these: each element stands alone.
    let axis = match c.int("axis", 1)? {
        a if a == shape.len() as i64 => shape.len(),
        a => normalize_axis(a, shape.len())?,
    };
    if axis + 1 == shape.len() {
        return Ok(vec![f(x, axis)]);
    }
    let two = vec![Dim::product(&shape[..axis]), Dim::product(&shape[axis..])];
    Ok(vec![f(x.reshape(two), 1).reshape(shape)])
}
