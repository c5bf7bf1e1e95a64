//! The graph: nodes with ordered operands, values as (node, port), regions for control flow. The only file that names petgraph.
//!
//! Invariant: operands of a node are in [`Node::operands`]; the petgraph edges mirror them (source -> user) so that users are
//! found in time proportional to their number. All changes go through the methods here, which keep both in step.

use crate::dim::Dim;
use crate::error::Loc;
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::Type;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

/// One result of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Value {
    pub node: NodeId,
    pub port: u32,
}

impl Value {
    /// What an operation on wrong operands gives; see [`crate::builder`].
    pub const POISON: Value = Value { node: NodeId(u32::MAX), port: 0 };
}

/// An operation with its operands.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub operands: Vec<Value>,
    /// One type per result.
    pub types: Vec<Type>,
    /// Contents of small integer results as far as they are known before the run (shape arithmetic): one per result, or none at all.
    pub known: Vec<Option<Arc<[Dim]>>>,
    /// Bodies of control flow. A region sees nothing outside: captured values are operands of the node and inputs of the region.
    pub regions: Vec<Graph>,
    /// The user's name for the first result, or empty.
    pub name: Arc<str>,
    pub loc: Loc,
}

/// A named result of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: Arc<str>,
    pub value: Value,
}

/// A tensor program: inputs, operations, outputs. Inputs are nodes with [`Op::Input`], in order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: Arc<str>,
    nodes: StableDiGraph<Node, (), u32>,
    pub inputs: Vec<NodeId>,
    pub outputs: Vec<Output>,
    /// Values that a run computes though nothing reads them, for computing them may be an error: see [`Graph::keep_checks`].
    pub checks: Vec<Value>,
    /// Something was done after which ids may be no order ([`Graph::is_ordered`]).
    stirred: bool,
}

fn index(id: NodeId) -> NodeIndex<u32> {
    NodeIndex::new(id.0 as usize)
}

impl Graph {
    pub fn new(name: impl AsRef<str>) -> Graph {
        Graph { name: name.as_ref().into(), ..Graph::default() }
    }

    /// An empty graph with room for `nodes`.
    pub fn with_room(name: impl AsRef<str>, nodes: usize) -> Graph {
        Graph { nodes: StableDiGraph::with_capacity(nodes, 2 * nodes), ..Graph::new(name) }
    }

    /// Adds a node; its operands must exist. Types are not checked here ([`crate::verify`] does).
    pub fn add(&mut self, node: Node) -> NodeId {
        let operands: Vec<NodeId> = node.operands.iter().map(|v| v.node).collect();
        let is_input = matches!(node.op, Op::Input);
        self.stirred |= !node.regions.is_empty() || node.is_binder();
        let id = NodeId(self.nodes.add_node(node).index() as u32);
        self.stirred |= operands.iter().any(|o| *o >= id);
        for o in operands {
            self.nodes.add_edge(index(o), index(id), ());
        }
        if is_input {
            self.inputs.push(id);
        }
        id
    }

    #[inline]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[index(id)]
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.stirred = true;
        &mut self.nodes[index(id)]
    }

    /// Gives a node a name where it has none.
    pub fn name(&mut self, id: NodeId, name: impl Into<Arc<str>>) {
        let node = &mut self.nodes[index(id)];
        if node.name.is_empty() {
            node.name = name.into();
        }
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.nodes.contains_node(index(id))
    }

    #[inline]
    pub fn ty(&self, v: Value) -> &Type {
        &self.node(v.node).types[v.port as usize]
    }

    #[inline]
    pub fn known(&self, v: Value) -> Option<&[Dim]> {
        self.node(v.node).known.get(v.port as usize)?.as_deref()
    }

    /// The constant behind a value.
    #[inline]
    pub fn constant(&self, v: Value) -> Option<&Tensor> {
        match &self.node(v.node).op {
            Op::Const(c) => Some(&c.0),
            _ => None,
        }
    }

    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more than the largest id in use: for tables indexed by id.
    pub fn id_bound(&self) -> usize {
        self.nodes.node_indices().next_back().map_or(0, |i| i.index() + 1)
    }

    /// All nodes in order of their ids.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.node_indices().map(|i| NodeId(i.index() as u32))
    }

    /// (user, operand position) of every use of `v`, in order of the users' ids. Uses as a graph output are not among them.
    pub fn uses(&self, v: Value) -> Vec<(NodeId, usize)> {
        let mut out: Vec<(NodeId, usize)> = self
            .users(v.node)
            .into_iter()
            .flat_map(|u| self.node(u).operands.iter().enumerate().filter(move |(_, o)| **o == v).map(move |(k, _)| (u, k)))
            .collect();
        out.sort();
        out
    }

    /// Nodes that read any result of `id`, each once, in order of their ids.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut out: Vec<NodeId> = self.nodes.edges_directed(index(id), Direction::Outgoing).map(|e| NodeId(e.target().index() as u32)).collect();
        out.sort();
        out.dedup();
        out
    }

    /// Whether the edges mirror the operands of `id`, which all changes through the methods here keep.
    pub fn in_step(&self, id: NodeId) -> bool {
        let mut edges: Vec<usize> = self.nodes.edges_directed(index(id), Direction::Incoming).map(|e| e.source().index()).collect();
        let mut operands: Vec<usize> = self.node(id).operands.iter().map(|v| v.node.0 as usize).collect();
        edges.sort();
        operands.sort();
        edges == operands
    }

    pub fn is_output(&self, v: Value) -> bool {
        self.outputs.iter().any(|o| o.value == v)
    }

    /// What a run must compute: outputs, then checks.
    pub fn ends(&self) -> impl Iterator<Item = Value> + '_ {
        self.outputs.iter().map(|o| o.value).chain(self.checks.iter().copied())
    }

    /// Makes operand `k` of `id` read `v`.
    pub fn set_operand(&mut self, id: NodeId, k: usize, v: Value) {
        self.stirred |= v.node >= id;
        let old = std::mem::replace(&mut self.nodes[index(id)].operands[k], v);
        if let Some(e) = self.nodes.find_edge(index(old.node), index(id)) {
            self.nodes.remove_edge(e);
        }
        self.nodes.add_edge(index(v.node), index(id), ());
    }

    /// Everything that reads `old` reads `new` instead, outputs included.
    pub fn replace(&mut self, old: Value, new: Value) {
        self.replace_all(&[(old, new)]);
    }

    /// As one [`Graph::replace`] after the other, in time proportional to what reads the old values, however many they are.
    pub fn replace_all(&mut self, pairs: &[(Value, Value)]) {
        let mut map: HashMap<Value, (usize, Value)> = HashMap::with_capacity(pairs.len());
        pairs.iter().enumerate().for_each(|(i, (old, new))| {
            map.entry(*old).or_insert((i, *new));
        });
        // What a later pair replaces in turn.
        let last = |mut v: Value| {
            let mut from = 0;
            while let Some((i, new)) = map.get(&v).filter(|(i, _)| *i >= from) {
                (v, from) = (*new, i + 1);
            }
            v
        };
        let mut nodes: Vec<NodeId> = pairs.iter().map(|(old, _)| old.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes {
            // In the order of the list, so that removing an edge has nothing to search.
            let edges: Vec<_> = self.nodes.edges_directed(index(node), Direction::Outgoing).map(|e| (e.id(), e.target())).collect();
            for (edge, user) in edges {
                let user_id = NodeId(user.index() as u32);
                let reads = |v: &Value| v.node == node && map.contains_key(v) && last(*v).node != user_id;
                let Some(k) = self.node(user_id).operands.iter().position(reads) else { continue };
                let new = last(self.node(user_id).operands[k]);
                self.stirred |= new.node >= user_id;
                self.nodes[user].operands[k] = new;
                self.nodes.remove_edge(edge);
                self.nodes.add_edge(index(new.node), user, ());
            }
        }
        for o in &mut self.outputs {
            o.value = last(o.value);
        }
        self.checks.iter_mut().for_each(|v| *v = last(*v));
    }

    /// Removes a node that nothing reads.
    pub fn remove(&mut self, id: NodeId) {
        debug_assert!(self.users(id).is_empty());
        if let Some(Node { op: Op::Input, .. }) = self.nodes.remove_node(index(id)) {
            self.inputs.retain(|i| *i != id);
        }
    }

    /// Whether ids are an order: operands have smaller ones, and no node binds sizes. So it is with what a pass wrote down in order.
    pub fn is_ordered(&self) -> bool {
        let ordered = |id: NodeId| {
            let node = self.node(id);
            node.operands.iter().all(|v| v.node < id) && node.regions.is_empty() && !node.is_binder()
        };
        !self.stirred || self.ids().all(ordered)
    }

    /// Whether ids are an order and every node is live: what a pass that finds nothing to do need not write down again.
    pub fn is_settled(&self) -> bool {
        self.is_ordered() && self.live_in_order().iter().filter(|live| **live).count() == self.len()
    }

    /// Nodes such that operands come first, and nodes that bind sizes before those that use them; among those that are ready, the
    /// smallest id. A graph with a cycle gives fewer nodes than it has, which the verifier reports.
    pub fn order(&self) -> Vec<NodeId> {
        if self.is_ordered() {
            return self.ids().collect();
        }
        let binders = crate::symbols::binders(self);
        if !binders.is_empty() {
            let mut after: Vec<Vec<u32>> = vec![vec![]; self.id_bound()];
            for id in self.ids() {
                self.node(id).all_symbols(&mut |s| {
                    if let Some(b) = binders.get(s).filter(|b| **b != id) {
                        after[b.0 as usize].push(id.0);
                    }
                });
            }
            let out = self.order_after(&after);
            if out.len() == self.len() {
                return out;
            }
        }
        self.order_after(&[])
    }

    /// As [`Graph::order`], where `after` lists for each node others that come after it.
    fn order_after(&self, after: &[Vec<u32>]) -> Vec<NodeId> {
        let mut waiting = vec![0u32; self.id_bound()];
        let mut ready = BinaryHeap::new();
        after.iter().flatten().for_each(|t| waiting[*t as usize] += 1);
        for i in self.nodes.node_indices() {
            waiting[i.index()] += self.nodes.edges_directed(i, Direction::Incoming).count() as u32;
            if waiting[i.index()] == 0 {
                ready.push(Reverse(i.index()));
            }
        }
        let mut out = Vec::with_capacity(self.len());
        while let Some(Reverse(i)) = ready.pop() {
            out.push(NodeId(i as u32));
            let edges = self.nodes.edges_directed(NodeIndex::new(i), Direction::Outgoing).map(|e| e.target().index());
            for t in edges.chain(after.get(i).into_iter().flatten().map(|t| *t as usize)) {
                waiting[t] -= 1;
                if waiting[t] == 0 {
                    ready.push(Reverse(t));
                }
            }
        }
        out
    }

    /// Nodes that outputs and checks depend on, by operands or by sizes that they bind, plus all inputs, by id.
    pub fn live(&self) -> Vec<bool> {
        if self.is_ordered() {
            return self.live_in_order();
        }
        let mut live = vec![false; self.id_bound()];
        self.reach(&mut live, self.ends().map(|v| v.node).chain(self.inputs.iter().copied()).collect(), &crate::symbols::binders(self));
        live
    }

    /// Marks what `from` depends on.
    fn reach(&self, live: &mut [bool], mut from: Vec<NodeId>, binders: &BTreeMap<Arc<str>, NodeId>) {
        while let Some(id) = from.pop() {
            if !std::mem::replace(&mut live[id.0 as usize], true) {
                from.extend(self.node(id).operands.iter().map(|v| v.node));
                if !binders.is_empty() {
                    self.node(id).all_symbols(&mut |s| from.extend(binders.get(s)));
                }
            }
        }
    }

    /// As [`Graph::live`], where ids are an order.
    fn live_in_order(&self) -> Vec<bool> {
        let mut live = vec![false; self.id_bound()];
        self.ends().map(|v| v.node).chain(self.inputs.iter().copied()).for_each(|id| live[id.0 as usize] = true);
        for id in (0..live.len() as u32).rev().map(NodeId) {
            if live[id.0 as usize] {
                self.node(id).operands.iter().for_each(|v| live[v.node.0 as usize] = true);
            }
        }
        live
    }

    /// Notes what nothing reads and may yet be an error of the run ([`may_fail`](crate::checks::may_fail)) among [`Graph::checks`], so that a
    /// model that must fail does so compiled as well. Importers call it on what the user wrote; passes keep checks as they do outputs, and
    /// are free to leave dead what they put something in the place of. Regions included.
    pub fn keep_checks(&mut self) {
        let holders: Vec<NodeId> = self.ids().filter(|id| !self.node(*id).regions.is_empty()).collect();
        holders.into_iter().for_each(|id| self.node_mut(id).regions.iter_mut().for_each(Graph::keep_checks));
        let mut live = self.live();
        let binders = crate::symbols::binders(self);
        let mut found = vec![];
        // Users first: what a check depends on needs no mention.
        for id in self.order().into_iter().rev() {
            if !live[id.0 as usize] && crate::checks::may_fail(self, id) {
                found.push(Value { node: id, port: 0 });
                self.reach(&mut live, vec![id], &binders);
            }
        }
        self.checks.extend(found.into_iter().rev());
    }
}
