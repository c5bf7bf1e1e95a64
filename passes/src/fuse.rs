//! Fusion: which nodes are computed inside the kernel of their user, without a buffer of their own.
//!
//! A group is a tree: a root, and below it element-by-element operations, movement and at most one reduction, each with one user
//! in the group. What costs nothing (broadcasts, slices, index ramps) is read in place by any number of users. Nothing is computed
//! more often than without fusion. Groups and the depth of their trees are bounded, so that the pass is linear and kernels stay small.

use crate::lower::reshape_is_affine;
use nnc_ir::Op;
use nnc_ir::graph::{Graph, NodeId, Value};

/// Nodes in a group, and nodes on a path from its root.
const MAX_NODES: u32 = 64;
const MAX_DEPTH: u32 = 32;

/// What fusion may do with a node.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Has a buffer.
    Opaque,
    /// Costs nothing to read in place, for any number of users.
    Free,
    /// A change of order or shape, worth reading in place for one user.
    Move,
    Map,
    Reduce,
}

fn kind(graph: &Graph, id: NodeId) -> Kind {
    let node = graph.node(id);
    let x = || &graph.ty(node.operands[0]).shape;
    match &node.op {
        Op::Iota(_) | Op::Expand(_) | Op::Slice(_) => Kind::Free,
        Op::Dims(d) if d.values.len() == 1 => Kind::Free,
        Op::Transpose(_) => Kind::Move,
        Op::Reshape(r) if reshape_is_affine(x(), &r.shape) => Kind::Move,
        Op::Map(_) | Op::Cast(_) => Kind::Map,
        Op::Reduce(_) => Kind::Reduce,
        _ => Kind::Opaque,
    }
}

/// Whether a node that has a buffer is lowered as the root of a group.
fn is_root(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Map(_) | Op::Cast(_) | Op::Transpose(_) | Op::Expand(_) | Op::Reduce(_))
}

/// What is known of a node's place in its group.
#[derive(Clone)]
struct Member {
    /// The root; none where the node is read in several groups.
    root: Option<NodeId>,
    depth: u32,
    /// Whether each element is read once.
    once: bool,
    /// Whether a reduction lies between the node and the root.
    folded: bool,
}

/// For each node whether it has no buffer of its own: everything that reads it computes it.
pub fn plan(graph: &Graph) -> Vec<bool> {
    let bound = graph.id_bound();
    let mut users: Vec<Vec<NodeId>> = vec![vec![]; bound];
    let order = graph.order();
    let live = graph.live();
    for id in order.iter().filter(|id| live[id.0 as usize]) {
        for v in &graph.node(*id).operands {
            let list = &mut users[v.node.0 as usize];
            if list.last() != Some(id) {
                list.push(*id);
            }
        }
    }
    let mut is_output = vec![false; bound];
    graph.outputs.iter().for_each(|o| is_output[o.value.node.0 as usize] = true);
    let mut members: Vec<Option<Member>> = vec![None; bound];
    let mut groups: Vec<(u32, bool)> = vec![(1, false); bound];
    let mut inlined = vec![false; bound];
    for id in order.into_iter().rev() {
        let i = id.0 as usize;
        let kind = kind(graph, id);
        let as_root = |fold: bool| Member { root: Some(id), depth: 0, once: true, folded: fold };
        let reduces = kind == Kind::Reduce;
        if live[i] && !is_output[i] && kind != Kind::Opaque && !users[i].is_empty() {
            let joined = users[i].iter().map(|u| step(graph, id, *u, members[u.0 as usize].as_ref())).collect::<Option<Vec<Member>>>();
            if let Some(m) = joined.and_then(|m| join(kind, m, &groups)) {
                if let Some(root) = m.root {
                    let (nodes, fold) = &mut groups[root.0 as usize];
                    *nodes += 1;
                    *fold |= reduces;
                }
                inlined[i] = true;
                members[i] = Some(Member { folded: m.folded || reduces, ..m });
                continue;
            }
        }
        if is_root(graph, id) || (matches!(graph.node(id).op, Op::Slice(_)) && !contiguous(graph, id)) {
            groups[i].1 = reduces;
            members[i] = Some(as_root(reduces));
        }
    }
    inlined
}

fn contiguous(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    matches!(&node.op, Op::Slice(s) if crate::lower::contiguous(s, &graph.ty(node.operands[0]).shape).is_some())
}

/// The place that node `id` would have as an operand of `user`. None where the user is not in a group.
fn step(graph: &Graph, id: NodeId, user: NodeId, place: Option<&Member>) -> Option<Member> {
    let place = place?;
    let elems = |n: NodeId| graph.ty(Value { node: n, port: 0 }).elems();
    // A user that stretches its operand reads it more than once; a transpose reads it out of order, which is worse than a buffer
    // for what is computed.
    let once = match &graph.node(user).op {
        Op::Map(_) | Op::Expand(_) => elems(id) == elems(user),
        Op::Transpose(_) => false,
        _ => true,
    };
    Some(Member { depth: place.depth + 1, once: place.once && once, ..place.clone() })
}

/// Whether a node that is read at all of `places` can do without a buffer; its place then.
fn join(kind: Kind, places: Vec<Member>, groups: &[(u32, bool)]) -> Option<Member> {
    let first = places[0].clone();
    let root = first.root.filter(|r| places.iter().all(|m| m.root == Some(*r)));
    let m = Member {
        root,
        depth: places.iter().map(|m| m.depth).max().unwrap_or(0),
        once: places.len() == 1 && first.once,
        folded: places.iter().any(|m| m.folded),
    };
    let (nodes, has_fold) = root.map_or((0, true), |r| groups[r.0 as usize]);
    let fits = m.depth < MAX_DEPTH && nodes < MAX_NODES;
    let allowed = match kind {
        Kind::Opaque => false,
        Kind::Free => true,
        Kind::Move => places.len() == 1,
        Kind::Map => root.is_some() && m.once,
        Kind::Reduce => root.is_some() && m.once && !m.folded && !has_fold,
    };
    (fits && allowed).then_some(m)
}
