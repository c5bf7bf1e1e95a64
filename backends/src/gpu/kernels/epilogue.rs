//! What a contraction does to a result before it is stored.

use super::{Frame, Result, no};
use crate::gpu::gir::Val;
use crate::gpu::gir::build::Builder;
use crate::gpu::lower::scalar::float;
use nnc_ir::builder::expansion;
use nnc_ir::ops::Op;
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::contract::Post;
use nnc_ir::{DType, ScalarFn, Type};

/// The channels of neighbours: theirs in turn, of which this is the first, or one that they share.
#[derive(Clone, Copy)]
pub enum Channel {
    First(Val),
    Shared(Val),
}

/// Applies all steps to `v`, the neighbours from the element `at` of the result on. Operands of steps follow the first two parameters.
pub fn epilogue(f: &mut Frame, post: &[Post], v: &mut [Val], channel: Channel, at: Val) -> Result<()> {
    let mut operand = 2;
    for p in post {
        if let Post::Act(a) = p {
            for v in v.iter_mut() {
                *v = activation(&mut f.b, *a, *v)?;
            }
            continue;
        }
        let w = match (p, channel) {
            (Post::Bias | Post::Scale, Channel::Shared(c)) => vec![f.load(operand, c); v.len()],
            (Post::Bias | Post::Scale, Channel::First(c)) => f.load_vector(operand, c, v.len() as u32),
            _ => f.load_vector(operand, at, v.len() as u32),
        };
        operand += 1;
        for (v, w) in v.iter_mut().zip(w) {
            *v = if *p == Post::Scale { f.b.mul(*v, w) } else { f.b.add(*v, w) };
        }
    }
    Ok(())
}

/// Whether a step is longer than a few instructions.
pub fn is_heavy(post: &[Post]) -> bool {
    let light =
        |a: &Act| matches!(a, Act::Fn(ScalarFn::Relu | ScalarFn::Abs | ScalarFn::Neg)) || matches!(a, Act::Clip { .. } | Act::LeakyRelu { .. });
    post.iter().any(|p| matches!(p, Post::Act(a) if !light(a)))
}

/// As the expansion defines it.
fn activation(b: &mut Builder, act: Act, x: Val) -> Result<Val> {
    if let Act::Fn(f) = act {
        return float(b, f, DType::F32, x, x);
    }
    let g = expansion(&Op::from(Activation { act }), &[Type::of(DType::F32, &[])]).map_err(|e| e.message().to_string())?;
    let mut values: Vec<Option<Val>> = vec![None; g.id_bound()];
    for id in g.order() {
        let node = g.node(id);
        let args: Option<Vec<Val>> = node.operands.iter().map(|o| values[o.node.0 as usize]).collect();
        let Some(args) = args else { return no("an activation's operand is missing") };
        let value = match (&node.op, &args[..]) {
            (Op::Input, _) => x,
            (Op::Const(c), _) => b.f32(c.0.num(0).as_f64() as f32),
            (Op::Map(f), [c, p, q]) if *f == ScalarFn::Where => b.select(*c, *p, *q),
            (Op::Map(f), [p]) => float(b, *f, DType::F32, *p, *p)?,
            (Op::Map(f), [p, q]) => float(b, *f, DType::F32, *p, *q)?,
            (op, _) => return no(format!("an activation made of {}", op.name())),
        };
        values[id.0 as usize] = Some(value);
    }
    values[g.outputs[0].value.node.0 as usize].map_or_else(|| no("an activation without a result"), Ok)
}
