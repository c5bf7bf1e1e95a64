//! Common subexpressions: equal operations on equal operands are computed once (hash-consing, linear).

use crate::pass::Context;
use crate::rebuild;
use nnc_ir::{Graph, Node, NodeId, Op, Report, Type, Value};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What makes two nodes equal.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Op(&'a Op, Vec<Value>),
    /// Large constants are compared by address: weights are not read only to be hashed.
    Window(usize, Type),
}

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
        let kept = graph.node_mut(kept);
        if kept.name.is_empty() {
            kept.name = name;
        }
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
    let mut last: HashMap<u64, NodeId> = HashMap::with_capacity(graph.len());
    let mut before: Vec<Option<NodeId>> = vec![None; first.len()];
    let live = graph.live();
    for id in graph.order().into_iter().filter(|id| live[id.0 as usize]) {
        let Some(own) = key(graph.node(id), &first) else { continue };
        let mut hasher = DefaultHasher::new();
        own.hash(&mut hasher);
        let head = last.entry(hasher.finish()).or_insert(id);
        let mut other = (*head != id).then_some(*head);
        while let Some(o) = other.filter(|o| key(graph.node(*o), &first).as_ref() != Some(&own)) {
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

fn key<'a>(node: &'a Node, first: &[NodeId]) -> Option<Key<'a>> {
    match &node.op {
        _ if !node.regions.is_empty() => None,
        // Inputs are not equal for having no operands.
        Op::Input => None,
        Op::Const(c) if c.0.splat_element().is_none() && c.0.byte_len() > HASHED_BYTES => Some(Key::Window(c.0.bytes().as_ptr() as usize, c.0.ty())),
        op => Some(Key::Op(op, node.operands.iter().map(|v| Value { node: first[v.node.0 as usize], ..*v }).collect())),
    }
}
