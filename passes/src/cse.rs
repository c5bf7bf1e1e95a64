//! Common subexpressions: equal operations on equal operands are computed once (hash-consing, linear).

use crate::pass::Context;
use crate::rebuild;
use nnc_ir::{Graph, Node, NodeId, Op, Report, Type, Value};
use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash, Hasher};

/// Constants above this are compared by address (bytes).
const HASHED_BYTES: usize = 4096;

/// Computes equal things once. Nodes with regions are left alone.
pub fn run(mut graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    let first = first_of_its_kind(&graph);
    let mut pairs = vec![];
    for id in graph.order() {
        let kept = first[id.0 as usize];
        if kept == id {
            continue;
        }
        pairs.extend((0..graph.node(id).types.len() as u32).map(|port| (Value { node: id, port }, Value { node: kept, port })));
        let name = graph.node(id).name.clone();
        graph.name(kept, name);
    }
    if pairs.is_empty() {
        return Ok(graph);
    }
    graph.replace_all(&pairs);
    Ok(rebuild::sweep(graph))
}

/// For each live node the first in order that computes the same.
fn first_of_its_kind(graph: &Graph) -> Vec<NodeId> {
    let mut first: Vec<NodeId> = (0..graph.id_bound() as u32).map(NodeId).collect();
    // The last node of each hash, and for each node the one of its hash before.
    let mut last: FxHashMap<u64, NodeId> = FxHashMap::with_capacity_and_hasher(graph.len(), Default::default());
    let mut before: Vec<Option<NodeId>> = vec![None; first.len()];
    let live = graph.live();
    for id in graph.order().into_iter().filter(|id| live[id.0 as usize]) {
        let node = graph.node(id);
        // Inputs are not equal for having no operands.
        if matches!(node.op, Op::Input) || !node.regions.is_empty() {
            continue;
        }
        let head = last.entry(hash(node, &first)).or_insert(id);
        let mut other = (*head != id).then_some(*head);
        while let Some(o) = other.filter(|o| !same(graph.node(*o), node, &first)) {
            other = before[o.0 as usize];
        }
        match other {
            Some(o) => first[id.0 as usize] = o,
            None if *head != id => before[id.0 as usize] = Some(std::mem::replace(head, id)),
            None => {}
        }
    }
    first
}

/// Where the bytes of a large constant are: weights are not read only to be compared.
fn window(op: &Op) -> Option<(*const u8, Type)> {
    match op {
        Op::Const(c) if c.0.splat_element().is_none() && c.0.byte_len() > HASHED_BYTES => Some((c.0.bytes().as_ptr(), c.0.ty())),
        _ => None,
    }
}

fn hash(node: &Node, first: &[NodeId]) -> u64 {
    let mut hasher = FxHasher::default();
    match window(&node.op) {
        Some(at) => at.hash(&mut hasher),
        None => node.op.hash(&mut hasher),
    }
    node.operands.iter().for_each(|v| (first[v.node.0 as usize], v.port).hash(&mut hasher));
    hasher.finish()
}

fn same(a: &Node, b: &Node, first: &[NodeId]) -> bool {
    let operand = |(x, y): (&Value, &Value)| first[x.node.0 as usize] == first[y.node.0 as usize] && x.port == y.port;
    let op = match (window(&a.op), window(&b.op)) {
        (None, None) => a.op == b.op,
        (x, y) => x == y,
    };
    op && a.operands.len() == b.operands.len() && a.operands.iter().zip(&b.operands).all(operand)
}
