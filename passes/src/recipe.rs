//! Constants that are computed when they are written: a model's weights in their final form are never all in memory.
//!
//! A recipe is the part of the graph between stored constants and one result. It takes only operations that cannot fail on operands
//! whose types fit, and no part of it is read by anything else, so that nothing is computed twice.

use crate::fold;
use nnc_ir::ops::movement::PadMode;
use nnc_ir::tensor::Make;
use nnc_ir::{DType, Dim, Error, Graph, NodeId, Op, Result, ScalarFn, Tensor, Type, Value};
use std::collections::HashMap;

/// Results up to this many bytes are computed at once: a recipe is not free either.
const LEAST_BYTES: usize = 4 << 10;

/// Where an operand of a step is.
enum Source {
    Stored(Tensor),
    Step(usize),
}

struct Step {
    op: Op,
    operands: Vec<Source>,
    types: Vec<Type>,
}

/// Steps in order, the last of which gives the result.
struct Recipe(Vec<Step>);

impl Make for Recipe {
    fn make(&self) -> Result<Tensor> {
        let mut done: Vec<Option<Tensor>> = vec![];
        for step in &self.0 {
            // Each result has one reader, which takes it away.
            let mut read = |s: &Source| match s {
                Source::Stored(t) => Some(t.clone()),
                Source::Step(i) => done[*i].take(),
            };
            let x: Option<Vec<Tensor>> = step.operands.iter().map(&mut read).collect();
            let x = x.ok_or_else(|| Error::internal("a recipe reads a result twice"))?;
            done.push(fold::apply(&step.op, &x, &step.types)?.into_iter().next());
        }
        done.pop().flatten().ok_or_else(|| Error::internal("a recipe without steps"))
    }
}

/// The constant that node `root` computes, to be computed when it is read; `None` where it is better computed now. `readers` counts
/// the reads of each node, and `now` computes what is small or read elsewhere too.
pub fn defer(graph: &Graph, root: NodeId, readers: &[u32], mut now: impl FnMut(Value) -> Option<Tensor>) -> Option<Tensor> {
    let [ty] = &graph.node(root).types[..] else { return None };
    let shape: Vec<usize> = ty.const_shape()?.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
    if bytes(ty)? <= LEAST_BYTES || !total(graph, root) {
        return None;
    }
    let own = |v: &Value| {
        let large = graph.constant(*v).is_none() && bytes(graph.ty(*v)).is_some_and(|n| n > LEAST_BYTES);
        large && readers[v.node.0 as usize] == 1 && total(graph, v.node)
    };
    // Results inside have one reader: a tree, each node before its operands.
    let mut order = vec![];
    let mut stack = vec![root];
    while let Some(id) = stack.pop() {
        order.push(id);
        for v in &graph.node(id).operands {
            if own(v) {
                stack.push(v.node);
            } else if graph.constant(*v).is_none() && bytes(graph.ty(*v))? > fold::SMALL_BYTES {
                return None;
            }
        }
    }
    let (mut steps, mut number): (Vec<Step>, HashMap<NodeId, usize>) = (vec![], HashMap::new());
    for id in order.into_iter().rev() {
        let node = graph.node(id);
        let mut operands = vec![];
        for v in &node.operands {
            operands.push(match number.get(&v.node) {
                Some(i) => Source::Step(*i),
                None => Source::Stored(graph.constant(*v).cloned().or_else(|| now(*v))?),
            });
        }
        // What repeats one element stays short by itself.
        let stored: Vec<&Tensor> = operands.iter().filter_map(|s| if let Source::Stored(t) = s { Some(t) } else { None }).collect();
        if stored.len() == operands.len() && fold::one_element(&stored) {
            return None;
        }
        number.insert(id, steps.len());
        steps.push(Step { op: node.op.clone(), operands, types: node.types.clone() });
    }
    Tensor::made(ty.dtype, shape, Box::new(Recipe(steps))).ok()
}

fn bytes(t: &Type) -> Option<usize> {
    Dim::checked_len(&t.shape)?.checked_mul(t.dtype.bytes())
}

/// Whether a node gives a result for all operands of the types that it has.
fn total(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let f32s = || node.operands.iter().all(|v| graph.ty(*v).dtype == DType::F32);
    match &node.op {
        Op::Transpose(_) | Op::Reshape(_) | Op::Slice(_) | Op::Concat(_) => true,
        Op::Pad(p) => p.mode == PadMode::Constant && node.operands.len() == 1,
        Op::Map(ScalarFn::Add | ScalarFn::Sub | ScalarFn::Mul | ScalarFn::Div) | Op::WinogradFilter(_) => f32s(),
        Op::Cast(c) => c.to == DType::BF16 && f32s(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::{Context, Options};
    use nnc_ir::ops::movement::Transpose;
    use nnc_ir::target::Isa;
    use nnc_ir::{Builder, Target};

    /// A weight of 64 KiB, scaled and transposed, as `defer` sees it.
    fn graph(shared: bool) -> Graph {
        let b = Builder::new("g");
        let values: Vec<f32> = (0..128 * 128).map(|i| (i % 251) as f32).collect();
        let w = b.constant(Tensor::new(&[128, 128], &values));
        let two = b.constant(Tensor::new(&[128, 1], &[2f32; 128]));
        let scaled = b.op(Op::Map(ScalarFn::Mul), &[w, two]);
        let y = b.op(Transpose { perm: vec![1, 0] }, &[scaled]);
        b.output("y", y);
        if shared {
            b.output("scaled", scaled);
        }
        b.finish().unwrap()
    }

    #[test]
    fn is_what_computing_at_once_gives() {
        for shared in [false, true] {
            let (target, options) = (Target::new(Isa::Avx2), Options::default());
            let deferred =
                fold::weights(graph(shared), &mut Context { target: &target, options: &options, captures: 0, in_loop: false, observer: &mut () })
                    .unwrap();
            let y = deferred.constant(deferred.outputs[0].value).unwrap();
            assert!(y.is_made());
            let want: Vec<f32> = (0..128 * 128).map(|i| ((i % 128 * 128 + i / 128) % 251 * 2) as f32).collect();
            assert_eq!(y.to_vec::<f32>().unwrap(), want);
        }
    }
}
