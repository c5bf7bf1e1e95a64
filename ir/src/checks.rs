//! What may be an error of the run: an index that points outside, sizes that do not fit, text that is no number.

use crate::builder::expansion;
use crate::dim::Dim;
use crate::graph::{Graph, NodeId, Value};
use crate::ops::Op;
use crate::ops::fit::relations;
use crate::types::{DType, Type};

/// Whether a node's computation can be an error, as far as is known before the run. May be `true` of one that cannot fail.
pub fn may_fail(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let x: Vec<&Type> = node.operands.iter().map(|v| graph.ty(*v)).collect();
    if !relations(&node.op, &x, &node.types).is_empty() {
        return true;
    }
    let fits = |index: usize, axis: usize| indices_fit(graph, node.operands[index], &x[0].shape[axis]);
    match &node.op {
        Op::Gather(op) => !fits(1, op.axis),
        Op::GatherElements(op) => !fits(1, op.axis),
        Op::ScatterElements(op) => !fits(1, op.axis),
        // Without elements there is nothing to address.
        Op::GatherNd(_) | Op::ScatterNd(_) => !x[1].elems().is(0),
        Op::TreeLeaves(_) | Op::ImageDecode(_) => true,
        Op::Cast(_) => x[0].dtype == DType::Str && node.types[0].dtype != DType::Str,
        Op::ReadDims(_) => !graph.known(node.operands[0]).is_some_and(|k| k.iter().all(|d| d.least().is_some_and(|n| n >= 0))),
        Op::If(_) | Op::Loop(_) | Op::Scan(_) => node.regions.iter().any(|r| {
            // The run compares the lengths of what iterations and branches give.
            r.ids().any(|id| may_fail(r, id)) || r.outputs.iter().any(|o| !r.ty(o.value).is_static())
        }),
        op if op.as_composite().is_some() => {
            let types: Vec<Type> = x.into_iter().cloned().collect();
            expansion(op, &types).map_or(true, |g| g.ids().any(|id| may_fail(&g, id)))
        }
        _ => false,
    }
}

/// Whether indices are known to lie in an axis of this length, from either end.
fn indices_fit(graph: &Graph, index: Value, length: &Dim) -> bool {
    let ints = graph.constant(index).and_then(|t| t.to_ints());
    let known = || graph.known(index)?.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>();
    let (Some(ints), Some(n)) = (ints.or_else(known), length.least()) else { return false };
    ints.iter().all(|i| (-n..n).contains(i))
}
