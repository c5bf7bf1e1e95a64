//! Common subexpressions: equal operations on equal operands are computed once (hash-consing, linear).

use crate::pass::Context;
use crate::rebuild::Rebuild;
use nnc_ir::{Graph, Node, NodeId, Op, Report, Value};
use std::collections::HashMap;

/// What makes two nodes equal.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Op(Op, Vec<Value>),
    /// Large constants are compared by address: weights are not read only to be hashed.
    Window(usize, nnc_ir::Type),
}

/// Constants above this are compared by address (bytes).
const HASHED_BYTES: usize = 4096;

/// Computes equal things once. Nodes with regions are left alone.
pub fn run(graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    let mut r = Rebuild::new(&graph);
    let mut seen: HashMap<Key, NodeId> = HashMap::new();
    for id in r.order() {
        let node = r.mapped(id);
        let Some(key) = key(&node) else {
            r.put(id, node);
            continue;
        };
        match seen.get(&key) {
            Some(first) => {
                let first = *first;
                let kept = r.new.node_mut(first);
                if kept.name.is_empty() {
                    kept.name = node.name;
                }
                r.set(id, (0..node.types.len() as u32).map(|port| Value { node: first, port }).collect());
            }
            None => {
                let first = r.put(id, node);
                seen.insert(key, first);
            }
        }
    }
    Ok(r.finish())
}

fn key(node: &Node) -> Option<Key> {
    match &node.op {
        _ if !node.regions.is_empty() => None,
        Op::Const(c) if c.0.splat_element().is_none() && c.0.byte_len() > HASHED_BYTES => Some(Key::Window(c.0.bytes().as_ptr() as usize, c.0.ty())),
        op => Some(Key::Op(op.clone(), node.operands.clone())),
    }
}
