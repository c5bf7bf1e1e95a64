//! Shape arithmetic: contents of small integer tensors as far as they are known before the run.
//!
//! Models compute shapes with tensor operations (Shape, Gather, Concat, Mul...). Each such result carries its elements as
//! dimensions, so that a later Reshape or Slice can take them as attributes.

use crate::dim::Dim;
use crate::ops::Op;
use crate::ops::reduce::ReduceKind;
use crate::ops::source::known_const;
use crate::scalar::ScalarFn;
use crate::types::{DType, Type};
use std::sync::Arc;

type Known = Option<Arc<[Dim]>>;

/// Tensors longer than this are data, not shapes.
const MAX_ELEMS: i64 = 64;

/// An input's contents are not known.
pub fn of_input(_: &Type) -> Known {
    None
}

/// Contents of the results of `op`, given those of the operands.
pub fn infer(op: &Op, x: &[Option<&[Dim]>], x_types: &[Type], types: &[Type]) -> Vec<Known> {
    let mut out: Vec<Known> = vec![None; types.len()];
    let Some(ty) = types.first() else { return out };
    let small = ty.dtype.is_int() && ty.rank() <= 1 && ty.elems().as_const().is_some_and(|n| n <= MAX_ELEMS);
    if small {
        out[0] = contents(op, x, x_types, ty).filter(|k| Some(k.len() as i64) == ty.elems().as_const()).map(Into::into);
    }
    out
}

fn contents(op: &Op, x: &[Option<&[Dim]>], x_types: &[Type], ty: &Type) -> Option<Vec<Dim>> {
    let all = |i: usize| x.get(i).copied().flatten();
    match op {
        Op::Const(c) => known_const(&c.0),
        Op::Dims(d) => Some(d.values.clone()),
        Op::ReadDims(d) => Some(d.symbols.clone()),
        Op::Iota(i) if i.shape.len() == 1 => Some((0..i.shape[0].as_const()?).map(Dim::Const).collect()),
        Op::Cast(c) if matches!(c.to, DType::I64 | DType::I32) && x_types[0].dtype.is_int() => all(0).map(<[Dim]>::to_vec),
        Op::Reshape(_) => all(0).map(<[Dim]>::to_vec),
        Op::Expand(_) => {
            let k = all(0)?;
            let n = ty.elems().as_const()? as usize;
            if k.len() == n { Some(k.to_vec()) } else { (k.len() == 1).then(|| vec![k[0].clone(); n]) }
        }
        Op::Concat(_) => (0..x.len()).map(all).collect::<Option<Vec<_>>>().map(|k| k.concat()),
        Op::Slice(s) if s.starts.len() == 1 => {
            let (k, start, n) = (all(0)?, s.starts[0].as_const()?, s.sizes[0].as_const()?);
            (0..n).map(|i| k.get(usize::try_from(start + i * s.step(0)).ok()?).cloned()).collect()
        }
        Op::Gather(g) if g.axis == 0 => {
            let (k, ix) = (all(0)?, all(1)?);
            let at =
                |d: &Dim| d.as_const().map(|i| if i < 0 { i + k.len() as i64 } else { i }).and_then(|i| k.get(usize::try_from(i).ok()?).cloned());
            ix.iter().map(at).collect()
        }
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
            Some(vec![k.iter().fold(first, fold)])
        }
        Op::Map(f) => {
            let n = ty.elems().as_const()? as usize;
            let at = |i: usize, j: usize| all(i).and_then(|k| if k.len() == 1 { k.first() } else { k.get(j) }).cloned();
            (0..n).map(|j| scalar(*f, ty.dtype, &|i| at(i, j))).collect()
        }
        _ => None,
    }
}

/// One element of a map over dimensions.
fn scalar(f: ScalarFn, dtype: DType, x: &dyn Fn(usize) -> Option<Dim>) -> Option<Dim> {
    let both = || Some((x(0)?, x(1)?));
    if f.arity() <= 2
        && let Some(a) = x(0)
        && let Some(a) = a.as_const()
        && let Some(b) = if f.arity() == 1 { Some(0) } else { x(1).and_then(|b| b.as_const()) }
        && f.out() == crate::scalar::Out::Same
        && f.domain().contains(dtype)
    {
        // Constants: exactly what the run would compute.
        return Some(Dim::Const(f.eval(dtype, &[crate::scalar::Num::I(a), crate::scalar::Num::I(b)][..f.arity()]).as_i64()));
    }
    match f {
        ScalarFn::Add => both().map(|(a, b)| a + b),
        ScalarFn::Sub => both().map(|(a, b)| a - b),
        ScalarFn::Mul => both().map(|(a, b)| a * b),
        // Sizes are not negative, so truncation is floor where the divisor is a positive constant.
        ScalarFn::Div => both().filter(|(_, b)| b.as_const().is_some_and(|b| b > 0)).map(|(a, b)| a.floor_div(&b)),
        ScalarFn::Mod => both().filter(|(_, b)| b.as_const().is_some_and(|b| b > 0)).map(|(a, b)| a.modulo(&b)),
        ScalarFn::Max => both().map(|(a, b)| a.maximum(&b)),
        ScalarFn::Min => both().map(|(a, b)| a.minimum(&b)),
        ScalarFn::Neg => x(0).map(|a| Dim::Const(0) - a),
        _ => None,
    }
}
