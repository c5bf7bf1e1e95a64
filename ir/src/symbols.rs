//! Symbols of sizes: which node gives one its value during the run, and which nodes need that value.

use crate::attrs::Attr;
use crate::dim::Dim;
use crate::graph::{Graph, Node, NodeId};
use crate::ops::{Class, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Node {
    /// Calls `f` for the symbols in the node's types and attributes.
    pub fn symbols(&self, f: &mut dyn FnMut(&Arc<str>)) {
        fn within(a: &Attr, f: &mut dyn FnMut(&Arc<str>)) {
            match a {
                Attr::Dim(d) => d.symbols(f),
                Attr::List(l) | Attr::Call(_, l) => l.iter().for_each(|a| within(a, f)),
                _ => {}
            }
        }
        self.types.iter().flat_map(|t| &t.shape).for_each(|d| d.symbols(f));
        self.op.attrs().iter().for_each(|(_, a)| within(a, f));
    }

    /// As [`Node::symbols`], and those in the node's regions.
    pub fn all_symbols(&self, f: &mut dyn FnMut(&Arc<str>)) {
        self.symbols(f);
        for region in &self.regions {
            region.ids().for_each(|id| region.node(id).all_symbols(f));
        }
    }

    /// Whether the node itself binds symbols to data.
    pub fn is_binder(&self) -> bool {
        matches!(self.op, Op::ReadDims(_) | Op::NonZero(_) | Op::Loop(_) | Op::If(_) | Op::Scan(_))
    }

    /// Calls `f` for the symbols that the node itself binds to data.
    fn reads_data(&self, f: &mut dyn FnMut(&Arc<str>)) {
        match &self.op {
            Op::ReadDims(r) => r.symbols.iter().filter_map(Dim::as_sym).for_each(f),
            Op::NonZero(n) => n.count.as_sym().into_iter().for_each(f),
            Op::Loop(l) => l.trips.as_sym().into_iter().for_each(f),
            _ => {}
        }
    }
}

/// Calls `f` for the symbols that a graph's nodes bind, at any depth.
fn bound_inside(graph: &Graph, f: &mut dyn FnMut(&Arc<str>)) {
    for node in graph.ids().map(|id| graph.node(id)) {
        node.reads_data(f);
        node.regions.iter().for_each(|r| bound_inside(r, f));
        if node.op.class() == Some(Class::Control) {
            node.types.iter().flat_map(|t| &t.shape).filter_map(Dim::as_sym).for_each(&mut *f);
        }
    }
}

/// For each symbol that the run binds, the node of this graph after which it has a value.
pub fn binders(graph: &Graph) -> BTreeMap<Arc<str>, NodeId> {
    let mut out = BTreeMap::new();
    if !graph.ids().any(|id| graph.node(id).is_binder() || !graph.node(id).regions.is_empty()) {
        return out;
    }
    for id in graph.ids() {
        graph.node(id).reads_data(&mut |s| {
            out.entry(s.clone()).or_insert(id);
        });
    }
    for id in graph.ids() {
        let node = graph.node(id);
        if node.regions.is_empty() {
            continue;
        }
        // What a region binds and a result shows is known after it; so is a length that changes from one iteration to the next.
        let mut inside = BTreeSet::new();
        let mut add = |s: &Arc<str>| {
            inside.insert(s.clone());
        };
        for region in &node.regions {
            bound_inside(region, &mut add);
            region.inputs.iter().flat_map(|i| &region.node(*i).types[0].shape).for_each(|d| d.symbols(&mut add));
        }
        for d in node.operands.iter().flat_map(|v| &graph.ty(*v).shape) {
            d.symbols(&mut |s| {
                inside.remove(s);
            });
        }
        for s in node.types.iter().flat_map(|t| &t.shape).filter_map(Dim::as_sym).filter(|s| inside.contains(*s)) {
            out.entry(s.clone()).or_insert(id);
        }
    }
    out
}
