//! Rebuilding a graph: nodes are visited in order, dead ones left out, and each is copied or replaced by other values.

use nnc_ir::graph::Output;
use nnc_ir::{Dim, Graph, Loc, Node, NodeId, Op, Result, Type, Value, builder, known};
use std::sync::Arc;

/// A graph being copied into a new one. Visit [`Rebuild::order`] and call [`Rebuild::keep`] or [`Rebuild::set`] for every node.
pub struct Rebuild<'a> {
    pub old: &'a Graph,
    pub new: Graph,
    map: Vec<Vec<Value>>,
}

impl<'a> Rebuild<'a> {
    /// Starts with the inputs, which are always kept.
    pub fn new(old: &'a Graph) -> Rebuild<'a> {
        let mut r = Rebuild { old, new: Graph::with_room(&*old.name, old.len()), map: vec![vec![]; old.id_bound()] };
        for id in &old.inputs {
            let copy = r.new.add(old.node(*id).clone());
            r.map[id.0 as usize] = vec![Value { node: copy, port: 0 }];
        }
        r
    }

    /// The live nodes but the inputs, operands first.
    pub fn order(&self) -> Vec<NodeId> {
        let live = self.old.live();
        self.old.order().into_iter().filter(|id| live[id.0 as usize] && self.map[id.0 as usize].is_empty()).collect()
    }

    /// What stands for an old value. Its node must have been visited.
    pub fn get(&self, v: Value) -> Value {
        self.map[v.node.0 as usize][v.port as usize]
    }

    /// Whether an old node has been visited.
    pub fn is_set(&self, id: NodeId) -> bool {
        !self.map[id.0 as usize].is_empty()
    }

    /// The node with operands of the new graph.
    pub fn mapped(&self, id: NodeId) -> Node {
        let mut node = self.old.node(id).clone();
        node.operands.iter_mut().for_each(|v| *v = self.get(*v));
        node
    }

    /// Copies a node.
    pub fn keep(&mut self, id: NodeId) -> NodeId {
        let node = self.mapped(id);
        self.put(id, node)
    }

    /// Puts a node of as many results in an old one's place.
    pub fn put(&mut self, id: NodeId, node: Node) -> NodeId {
        let ports = node.types.len() as u32;
        let copy = self.new.add(node);
        self.map[id.0 as usize] = (0..ports).map(|port| Value { node: copy, port }).collect();
        copy
    }

    /// New values stand for an old node's results.
    pub fn set(&mut self, id: NodeId, values: Vec<Value>) {
        self.map[id.0 as usize] = values;
    }

    pub fn finish(mut self) -> Graph {
        self.new.outputs = self.old.outputs.iter().map(|o| Output { name: o.name.clone(), value: self.get(o.value) }).collect();
        self.new
    }
}

/// Adds an operation of one result, its type and contents inferred.
pub fn infer(graph: &mut Graph, op: Op, operands: Vec<Value>, name: Arc<str>, loc: Loc) -> Result<Value> {
    let x: Vec<Type> = operands.iter().map(|v| graph.ty(*v).clone()).collect();
    let types = builder::infer(&op, &x, &[]).map_err(|e| e.at(&loc))?;
    let facts: Vec<Option<&[Dim]>> = operands.iter().map(|v| graph.known(*v)).collect();
    let known = known::infer(&op, &facts, &x, &types);
    let node = graph.add(Node { op, operands, types, known, regions: vec![], name, loc });
    Ok(Value { node, port: 0 })
}
