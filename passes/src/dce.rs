//! Dead code elimination: what no output depends on goes.
//!
//! An output depends on its operands, and on the nodes that bind the symbols in its types and attributes at run time.

use crate::pass::Context;
use crate::rebuild::Rebuild;
use nnc_ir::attrs::Attr;
use nnc_ir::{Graph, Node, NodeId, Op, Report};
use std::collections::HashMap;
use std::sync::Arc;

/// Leaves out nodes that nothing needs.
pub fn run(graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    let mut r = Rebuild::new(&graph);
    for id in r.order() {
        r.keep(id);
    }
    Ok(r.finish())
}

/// Whether a node's results give run-time values to symbols.
pub fn binds_symbols(node: &Node) -> bool {
    matches!(node.op, Op::ReadDims(_) | Op::NonZero(_) | Op::Loop(_))
}

/// Nodes that are needed, and all inputs, by id.
pub fn live(graph: &Graph) -> Vec<bool> {
    let mut binders: HashMap<Arc<str>, NodeId> = HashMap::new();
    for id in graph.order() {
        let node = graph.node(id);
        if binds_symbols(node) {
            symbols(node, &mut |s| {
                binders.entry(s.clone()).or_insert(id);
            });
        }
    }
    let mut live = vec![false; graph.id_bound()];
    let mut stack: Vec<NodeId> = graph.outputs.iter().map(|o| o.value.node).chain(graph.inputs.iter().copied()).collect();
    while let Some(id) = stack.pop() {
        if std::mem::replace(&mut live[id.0 as usize], true) {
            continue;
        }
        let node = graph.node(id);
        stack.extend(node.operands.iter().map(|v| v.node));
        if !binders.is_empty() {
            symbols(node, &mut |s| stack.extend(binders.get(s)));
        }
    }
    live
}

/// Calls `f` for the symbols in a node's types, attributes and regions.
fn symbols(node: &Node, f: &mut dyn FnMut(&Arc<str>)) {
    node.types.iter().flat_map(|t| &t.shape).for_each(|d| d.symbols(f));
    let mut attrs: Vec<Attr> = node.op.attrs().into_iter().map(|(_, a)| a).collect();
    while let Some(a) = attrs.pop() {
        match a {
            Attr::Dim(d) => d.symbols(f),
            Attr::List(l) => attrs.extend(l),
            _ => {}
        }
    }
    for region in &node.regions {
        region.ids().for_each(|id| symbols(region.node(id), f));
    }
}
