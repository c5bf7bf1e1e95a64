//! Shape arithmetic: contents of small integer tensors as far as they are known before the run.
//!
//! Models compute shapes with tensor operations (Shape, Gather, Concat, Mul...). Each such result carries its elements as
//! dimensions, so that a later Reshape or Slice can take them as attributes.

use crate::dim::Dim;
use crate::eval::Env;
use crate::ops::reduce::ReduceKind;
use crate::ops::{Op, Primitive};
use crate::scalar::{Num, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{DType, Type};
use std::sync::Arc;

type Known = Option<Arc<[Dim]>>;

/// Tensors longer than this are data, not shapes.
const MAX_ELEMS: i64 = 64;

/// Contents of the results of `op`, given those of the operands; nothing where none are known. Elements in row-major order; a `bool` is
/// 0 or 1.
pub fn infer(op: &Op, x: &[Option<&[Dim]>], x_types: &[Type], types: &[Type]) -> Vec<Known> {
    let Some(ty) = types.first().filter(|t| !t.dtype.is_float() && t.elems().as_const().is_some_and(|n| n <= MAX_ELEMS)) else { return vec![] };
    let Some(found) = contents(op, x, x_types, ty).filter(|k| Some(k.len() as i64) == ty.elems().as_const()) else { return vec![] };
    let mut out: Vec<Known> = vec![None; types.len()];
    out[0] = Some(found.into());
    out
}

fn contents(op: &Op, x: &[Option<&[Dim]>], x_types: &[Type], ty: &Type) -> Option<Vec<Dim>> {
    let all = |i: usize| x.get(i).copied().flatten();
    match op {
        Op::Const(c) => c.0.to_ints().map(|k| k.into_iter().map(Dim::Const).collect()),
        Op::Dims(d) => Some(d.values.clone()),
        Op::ReadDims(d) => Some(d.symbols.clone()),
        Op::Iota(i) => i.eval(&[], &Env::default()).ok()?.first()?.to_ints().map(|k| k.into_iter().map(Dim::Const).collect()),
        Op::Cast(c) if matches!(c.to, DType::I64 | DType::I32) && !x_types[0].dtype.is_float() => all(0).map(<[Dim]>::to_vec),
        Op::Reshape(_) | Op::Barrier(_) => all(0).map(<[Dim]>::to_vec),
        Op::Expand(_) | Op::Transpose(_) | Op::Slice(_) | Op::Concat(_) | Op::Gather(_) => moved(op, x, x_types),
        Op::Reduce(r) => {
            let k = all(0)?;
            if r.axes.is_empty() {
                return Some(k.to_vec());
            }
            let fold = |a: Dim, b: &Dim| match r.kind {
                ReduceKind::Sum => a + b.clone(),
                ReduceKind::Prod => a * b.clone(),
                ReduceKind::Max => a.maximum(b),
                ReduceKind::Min => a.minimum(b),
            };
            let first = match r.kind {
                ReduceKind::Sum => Dim::Const(0),
                ReduceKind::Prod => Dim::Const(1),
                _ => k.first()?.clone(),
            };
            (r.axes.len() == x_types[0].rank()).then(|| vec![k.iter().fold(first, fold)])
        }
        Op::Map(f) => {
            let n = ty.elems().as_const()? as usize;
            let fits = |i: usize| x_types[i].shape == ty.shape || x_types[i].elems().is(1);
            let at = |i: usize, j: usize| all(i).filter(|_| fits(i)).and_then(|k| if k.len() == 1 { k.first() } else { k.get(j) }).cloned();
            let operands = x_types.last()?.dtype;
            (0..n).map(|j| scalar(*f, operands, &|i| at(i, j))).collect()
        }
        _ => None,
    }
}

/// What an operation that only moves elements makes of known ones: it is evaluated on their numbers.
fn moved(op: &Op, x: &[Option<&[Dim]>], x_types: &[Type]) -> Option<Vec<Dim>> {
    let mut elements: Vec<&Dim> = vec![];
    let mut operands = vec![];
    for (i, (known, ty)) in x.iter().zip(x_types).enumerate() {
        let known = (*known)?;
        let shape: Vec<usize> = ty.const_shape()?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
        // The second operand of a gather is not moved, it says from where.
        let values: Vec<i64> = if i == 1 && matches!(op, Op::Gather(_)) {
            known.iter().map(Dim::as_const).collect::<Option<_>>()?
        } else {
            elements.extend(known);
            (elements.len() - known.len()..elements.len()).map(|n| n as i64).collect()
        };
        operands.push(Tensor::new(&[values.len()], &values).reshaped(shape).ok()?);
    }
    let y = op.as_primitive()?.eval(&operands, &Env::default()).ok()?;
    y.first()?.to_ints()?.into_iter().map(|n| elements.get(usize::try_from(n).ok()?).map(|d| (*d).clone())).collect()
}

/// One element of a map over dimensions; the operands (but the condition of `where`) have type `dtype`.
fn scalar(f: ScalarFn, dtype: DType, x: &dyn Fn(usize) -> Option<Dim>) -> Option<Dim> {
    if f == ScalarFn::Where {
        return x(if x(0)?.is(0) { 2 } else { 1 }).filter(|_| x(0).is_some_and(|c| c.as_const().is_some()));
    }
    let a = x(0)?;
    let b = if f.arity() == 1 { Dim::Const(0) } else { x(1)? };
    if let (Some(a), Some(b)) = (a.as_const(), b.as_const())
        && f.domain().contains(dtype)
    {
        // Constants: exactly what the run would compute.
        let of = |v: i64| if dtype == DType::Bool { Num::B(v != 0) } else { Num::I(v) };
        return Some(Dim::Const(f.eval(dtype, &[of(a), of(b)][..f.arity()]).as_i64()));
    }
    let sure = |yes: bool, no: bool| (yes != no).then(|| Dim::Const(yes.into()));
    let above = |p: &Dim, q: &Dim| p.never_below(&(q.clone() + Dim::Const(1)));
    match f {
        ScalarFn::Add => Some(a + b),
        ScalarFn::Sub => Some(a - b),
        ScalarFn::Mul => Some(a * b),
        // Sizes are not negative, so truncation is floor where the divisor is a positive constant.
        ScalarFn::Div => b.as_const().filter(|b| *b > 0).map(|_| a.floor_div(&b)),
        ScalarFn::Mod => b.as_const().filter(|b| *b > 0).map(|_| a.modulo(&b)),
        ScalarFn::Max => Some(a.maximum(&b)),
        ScalarFn::Min => Some(a.minimum(&b)),
        ScalarFn::Neg => Some(Dim::Const(0) - a),
        ScalarFn::Equal => sure(a == b, above(&a, &b) || above(&b, &a)),
        ScalarFn::Less => sure(above(&b, &a), a.never_below(&b)),
        ScalarFn::LessEqual => sure(b.never_below(&a), above(&a, &b)),
        ScalarFn::Greater => sure(above(&a, &b), b.never_below(&a)),
        ScalarFn::GreaterEqual => sure(a.never_below(&b), above(&b, &a)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::movement::{Concat, Slice, Transpose};
    use crate::{Builder, Dim, Tensor};

    #[test]
    fn elements_are_followed_through_matrices() {
        // As exporters compute pads: pairs turned round and transposed.
        let b = Builder::new("");
        let n = Dim::sym("N");
        let pairs = b.op(Concat { axis: 0 }, &[b.dims(vec![n.clone(), Dim::Const(1)]), b.dims(vec![Dim::Const(2), Dim::Const(3)])]);
        let pairs = pairs.reshape(vec![Dim::Const(2), Dim::Const(2)]);
        let back = Slice { starts: vec![Dim::Const(1), Dim::Const(0)], sizes: vec![Dim::Const(2); 2], steps: vec![-1, 1] };
        let y = b.op(Transpose { perm: vec![1, 0] }, &[b.op(back, &[pairs])]);
        assert_eq!(y.known().as_deref(), Some(&[Dim::Const(2), n, Dim::Const(3), Dim::Const(1)][..]));
    }

    #[test]
    fn comparisons_use_that_sizes_are_not_negative() {
        let b = Builder::new("");
        let shape = b.dims(vec![Dim::sym("N"), Dim::Const(-1), Dim::Const(3)]);
        let minus_one = b.constant(Tensor::scalar(-1i64));
        let open = shape.equal(minus_one);
        assert_eq!(open.known().as_deref(), Some(&[0, 1, 0].map(Dim::Const)[..]));
        let filled = open.select(b.dims(vec![Dim::Const(1); 3]), shape);
        assert_eq!(filled.known().as_deref(), Some(&[Dim::sym("N"), Dim::Const(1), Dim::Const(3)][..]));
        assert_eq!(shape.equal(b.constant(Tensor::scalar(2i64))).known(), None, "N may be 2");
    }
}
