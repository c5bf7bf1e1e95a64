//! Arithmetic, comparisons, logic, element types.

use super::{MANY, Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::Op;
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, V};

pub const ROWS: &[Row] = &[
    op("Abs", 1, (1, 1), |c| unary(c, ScalarFn::Abs)),
    op("Acos", 7, (1, 1), |c| unary(c, ScalarFn::Acos)),
    op("Acosh", 9, (1, 1), |c| unary(c, ScalarFn::Acosh)),
    op("Add", 1, (2, 2), |c| old_binary(c, ScalarFn::Add)),
    op("Add", 7, (2, 2), |c| binary(c, ScalarFn::Add)),
    op("And", 1, (2, 2), |c| old_binary(c, ScalarFn::And)),
    op("And", 7, (2, 2), |c| binary(c, ScalarFn::And)),
    op("Asin", 7, (1, 1), |c| unary(c, ScalarFn::Asin)),
    op("Asinh", 9, (1, 1), |c| unary(c, ScalarFn::Asinh)),
    op("Atan", 7, (1, 1), |c| unary(c, ScalarFn::Atan)),
    op("Atanh", 9, (1, 1), |c| unary(c, ScalarFn::Atanh)),
    op("BitShift", 11, (2, 2), bit_shift),
    op("BitwiseAnd", 18, (2, 2), |c| binary(c, ScalarFn::BitAnd)),
    op("BitwiseNot", 18, (1, 1), |c| unary(c, ScalarFn::BitNot)),
    op("BitwiseOr", 18, (2, 2), |c| binary(c, ScalarFn::BitOr)),
    op("BitwiseXor", 18, (2, 2), |c| binary(c, ScalarFn::BitXor)),
    op("Ceil", 1, (1, 1), |c| unary(c, ScalarFn::Ceil)),
    op("Clip", 1, (1, 1), clip_attributes),
    op("Clip", 11, (1, 3), clip),
    op("Cos", 7, (1, 1), |c| unary(c, ScalarFn::Cos)),
    op("Cosh", 9, (1, 1), |c| unary(c, ScalarFn::Cosh)),
    op("Div", 1, (2, 2), |c| old_binary(c, ScalarFn::Div)),
    op("Div", 7, (2, 2), |c| binary(c, ScalarFn::Div)),
    op("Equal", 1, (2, 2), |c| old_binary(c, ScalarFn::Equal)),
    op("Equal", 7, (2, 2), |c| binary(c, ScalarFn::Equal)),
    op("Erf", 9, (1, 1), erf),
    op("Exp", 1, (1, 1), |c| unary(c, ScalarFn::Exp)),
    op("Floor", 1, (1, 1), |c| unary(c, ScalarFn::Floor)),
    op("Greater", 1, (2, 2), |c| old_binary(c, ScalarFn::Greater)),
    op("Greater", 7, (2, 2), |c| binary(c, ScalarFn::Greater)),
    op("GreaterOrEqual", 12, (2, 2), |c| binary(c, ScalarFn::GreaterEqual)),
    op("IsInf", 10, (1, 1), is_inf),
    op("IsNaN", 9, (1, 1), |c| unary(c, ScalarFn::IsNan)),
    op("Less", 1, (2, 2), |c| old_binary(c, ScalarFn::Less)),
    op("Less", 7, (2, 2), |c| binary(c, ScalarFn::Less)),
    op("LessOrEqual", 12, (2, 2), |c| binary(c, ScalarFn::LessEqual)),
    op("Log", 1, (1, 1), |c| unary(c, ScalarFn::Log)),
    op("Max", 1, (1, MANY), |c| fold(c, ScalarFn::Max)),
    op("Mean", 1, (1, MANY), mean),
    op("Min", 1, (1, MANY), |c| fold(c, ScalarFn::Min)),
    op("Mod", 10, (2, 2), modulo),
    op("Mul", 1, (2, 2), |c| old_binary(c, ScalarFn::Mul)),
    op("Mul", 7, (2, 2), |c| binary(c, ScalarFn::Mul)),
    op("Neg", 1, (1, 1), |c| unary(c, ScalarFn::Neg)),
    op("Not", 1, (1, 1), |c| unary(c, ScalarFn::Not)),
    op("Or", 1, (2, 2), |c| old_binary(c, ScalarFn::Or)),
    op("Or", 7, (2, 2), |c| binary(c, ScalarFn::Or)),
    op("Pow", 1, (2, 2), |c| old_binary(c, ScalarFn::Pow)),
    op("Pow", 7, (2, 2), pow),
    op("Reciprocal", 1, (1, 1), |c| unary(c, ScalarFn::Reciprocal)),
    op("Round", 11, (1, 1), |c| unary(c, ScalarFn::Round)),
    op("Sigmoid", 1, (1, 1), |c| unary(c, ScalarFn::Sigmoid)),
    op("Sign", 9, (1, 1), |c| unary(c, ScalarFn::Sign)),
    op("Sin", 7, (1, 1), |c| unary(c, ScalarFn::Sin)),
    op("Sinh", 9, (1, 1), |c| unary(c, ScalarFn::Sinh)),
    op("Sqrt", 1, (1, 1), |c| unary(c, ScalarFn::Sqrt)),
    op("Sub", 1, (2, 2), |c| old_binary(c, ScalarFn::Sub)),
    op("Sub", 7, (2, 2), |c| binary(c, ScalarFn::Sub)),
    op("Sum", 1, (1, MANY), |c| fold(c, ScalarFn::Add)),
    op("Tan", 7, (1, 1), |c| unary(c, ScalarFn::Tan)),
    op("Tanh", 1, (1, 1), |c| unary(c, ScalarFn::Tanh)),
    op("Where", 9, (3, 3), |c| Ok(vec![c.b.op(Op::Map(ScalarFn::Where), &c.all()?)])),
    op("Xor", 1, (2, 2), |c| old_binary(c, ScalarFn::Xor)),
    op("Xor", 7, (2, 2), |c| binary(c, ScalarFn::Xor)),
];

/// One operand. Before opset 6 operators could carry `consumed_inputs`, a hint without effect on values.
pub fn unary<'g>(c: &Call<'g>, f: ScalarFn) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    Ok(vec![c.x(0)?.map(f)])
}

/// Opset 9 has it of integers as well: the result is cut to whole numbers.
fn erf<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let dtype = x.ty().dtype;
    if dtype.is_int() { Ok(vec![x.cast(DType::F32).map(ScalarFn::Erf).cast(dtype)]) } else { unary(c, ScalarFn::Erf) }
}

fn binary<'g>(c: &Call<'g>, f: ScalarFn) -> Result<Vec<V<'g>>> {
    Ok(vec![c.b.op(Op::Map(f), &[c.x(0)?, c.x(1)?])])
}

/// Opsets 1 to 6: no broadcasting unless `broadcast` is set; then the second operand lies along the first from `axis` on (at its
/// end where `axis` is absent).
fn old_binary<'g>(c: &Call<'g>, f: ScalarFn) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    let (a, b) = (c.x(0)?, c.x(1)?);
    let (broadcast, axis) = (c.flag("broadcast", false)?, c.opt_int("axis")?);
    let (ta, tb) = (a.ty(), b.ty());
    if !broadcast && ta.shape != tb.shape {
        return Err(Error::shape(format!("without `broadcast` the operands should have one shape, found {ta} and {tb}")));
    }
    let Some(axis) = axis.filter(|_| broadcast) else { return binary(c, f) };
    let axis = normalize_axis(axis, ta.rank())?;
    if axis + tb.rank() > ta.rank() {
        return Err(Error::shape(format!("{tb} does not lie along {ta} from axis {axis} on")));
    }
    let mut shape = tb.shape;
    shape.resize(ta.rank() - axis, Dim::Const(1));
    Ok(vec![c.b.op(Op::Map(f), &[a, b.reshape(shape)])])
}

/// Any number of operands of one type.
fn fold<'g>(c: &Call<'g>, f: ScalarFn) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    let x = c.all()?;
    Ok(vec![x[1..].iter().fold(x[0], |a, b| c.b.op(Op::Map(f), &[a, *b]))])
}

fn mean<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let sum = fold(c, ScalarFn::Add)?[0];
    Ok(vec![sum / sum.scalar_like(c.inputs.len() as f64)])
}

fn bit_shift<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    if c.attr("direction").is_none() {
        return Err(c.missing("direction"));
    }
    let left = c.word("direction", &["LEFT", "RIGHT"])? == "LEFT";
    binary(c, if left { ScalarFn::Shl } else { ScalarFn::Shr })
}

fn is_inf<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let zero = x.scalar_like(0.0);
    Ok(vec![match (c.flag("detect_negative", true)?, c.flag("detect_positive", true)?) {
        (true, true) => x.map(ScalarFn::IsInf),
        (true, false) => x.map(ScalarFn::IsInf).and(x.less(zero)),
        (false, true) => x.map(ScalarFn::IsInf).and(x.greater(zero)),
        (false, false) => x.map(ScalarFn::IsInf).and(c.b.constant(nnc_ir::Tensor::scalar(false))),
    }])
}

fn modulo<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let fmod = c.flag("fmod", false)?;
    if !fmod && c.x(0)?.ty().dtype.is_float() {
        return Err(Error::attribute("attribute `fmod` must be 1 for floats"));
    }
    binary(c, if fmod { ScalarFn::Fmod } else { ScalarFn::Mod })
}

/// The result has the type of the base, whatever that of the exponent.
fn pow<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, e) = (c.x(0)?, c.x(1)?);
    let (tx, te) = (x.ty().dtype, e.ty().dtype);
    Ok(vec![if tx.is_int() && te.is_float() { x.cast(DType::F64).pow(e.cast(DType::F64)).cast(tx) } else { x.pow(e.cast(tx)) }])
}

/// Opsets 1 to 10: the bounds are attributes.
fn clip_attributes<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    let (lo, hi) = (c.float("min", f32::MIN.into())?, c.float("max", f32::MAX.into())?);
    Ok(vec![c.b.op(Activation { act: Act::Clip { lo: lo.into(), hi: hi.into() } }, &[c.x(0)?])])
}

/// Opset 11 on: the bounds are optional scalars. `max` where min > max.
fn clip<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    for bound in [c.opt(1), c.opt(2)].into_iter().flatten() {
        if bound.ty().elems().as_const() != Some(1) {
            return Err(Error::shape(format!("min and max should be scalars, found {}", bound.ty())));
        }
    }
    // A bound of shape [1] must not lengthen the shape of a scalar.
    let scalar = |v: V<'g>| v.reshape(vec![]);
    let number = |i: usize, absent: f64| match c.opt(i) {
        None => Some(absent),
        Some(_) => c.constant(i).filter(|t| t.elems() == 1 && t.dtype() == x.ty().dtype).map(|t| t.num(0).as_f64()),
    };
    if x.ty().dtype.is_float()
        && let (Some(lo), Some(hi)) = (number(1, f64::NEG_INFINITY), number(2, f64::INFINITY))
    {
        return Ok(vec![c.b.op(Activation { act: Act::Clip { lo: lo.into(), hi: hi.into() } }, &[x])]);
    }
    let raised = c.opt(1).map_or(x, |lo| x.max(scalar(lo)));
    Ok(vec![c.opt(2).map_or(raised, |hi| raised.min(scalar(hi)))])
}
