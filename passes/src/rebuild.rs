//! Rebuilding a graph: nodes are visited in order, dead ones left out, and each is copied or replaced by other values.

use nnc_ir::graph::Output;
use nnc_ir::{Dim, Graph, Loc, Node, NodeId, Op, Result, Type, Value, builder, known};
use std::sync::Arc;

/// A graph being copied into a new one. Visit [`Rebuild::order`] and call [`Rebuild::keep`] or [`Rebuild::set`] for every node.
pub struct Rebuild<'a> {
    pub old: &'a Graph,
    pub new: Graph,
    map: Vec<Image>,
}

/// What stands for an old node's results.
#[derive(Clone)]
enum Image {
    /// It has not been visited.
    Nothing,
    /// A node's results, one by one.
    Node(NodeId),
    Values(Vec<Value>),
}

impl<'a> Rebuild<'a> {
    /// Starts with the inputs, which are always kept.
    pub fn new(old: &'a Graph) -> Rebuild<'a> {
        let mut r = Rebuild { old, new: Graph::with_room(&*old.name, old.len()), map: vec![Image::Nothing; old.id_bound()] };
        for id in &old.inputs {
            let copy = r.new.add(old.node(*id).clone());
            r.map[id.0 as usize] = Image::Node(copy);
        }
        r
    }

    /// The live nodes but the inputs, operands first.
    pub fn order(&self) -> Vec<NodeId> {
        let live = self.old.live();
        self.old.order().into_iter().filter(|id| live[id.0 as usize] && !self.is_set(*id)).collect()
    }

    /// What stands for an old value. Its node must have been visited.
    pub fn get(&self, v: Value) -> Value {
        match &self.map[v.node.0 as usize] {
            Image::Node(node) => Value { node: *node, port: v.port },
            Image::Values(values) => values[v.port as usize],
            Image::Nothing => unreachable!("operands are visited before their users"),
        }
    }

    /// Whether an old node has been visited.
    pub fn is_set(&self, id: NodeId) -> bool {
        !matches!(self.map[id.0 as usize], Image::Nothing)
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
        let copy = self.new.add(node);
        self.map[id.0 as usize] = Image::Node(copy);
        copy
    }

    /// New values stand for an old node's results.
    pub fn set(&mut self, id: NodeId, values: Vec<Value>) {
        self.map[id.0 as usize] = Image::Values(values);
    }

    pub fn finish(mut self) -> Graph {
        self.new.checks = self.old.checks.iter().map(|v| self.get(*v)).filter(|v| is_computed(&self.new, *v)).collect();
        self.new.outputs = self.old.outputs.iter().map(|o| Output { name: o.name.clone(), value: self.get(o.value) }).collect();
        self.new
    }
}

/// Whether there is anything to compute.
fn is_computed(graph: &Graph, v: Value) -> bool {
    !matches!(graph.node(v.node).op, Op::Input | Op::Const(_))
}

/// Removes the nodes that no output or check depends on, in time proportional to the graph's nodes and the edges of those that go: for passes
/// that change little of a large graph where it is.
pub fn sweep(mut graph: Graph) -> Graph {
    let live = graph.live();
    for id in graph.order().into_iter().rev().filter(|id| !live[id.0 as usize]) {
        graph.remove(id);
    }
    graph
}

/// Adds an operation of one result, its type and contents inferred.
pub fn infer(graph: &mut Graph, op: Op, operands: Vec<Value>, name: Arc<str>, loc: Loc) -> Result<Value> {
    infer_once(graph, op, operands, name, loc, &mut None)
}

/// As [`infer`]; the types are inferred where `types` does not hold them yet.
pub fn infer_once(graph: &mut Graph, op: Op, operands: Vec<Value>, name: Arc<str>, loc: Loc, types: &mut Option<Vec<Type>>) -> Result<Value> {
    let of_operands = || operands.iter().map(|v| graph.ty(*v).clone()).collect::<Vec<Type>>();
    let types = match types {
        Some(types) => types.clone(),
        None => types.insert(builder::infer(&op, &of_operands(), &[]).map_err(|e| e.at(&loc))?).clone(),
    };
    // What is known are small integers.
    let known = if types.first().is_none_or(|t| t.dtype.is_float()) {
        vec![]
    } else {
        let facts: Vec<Option<&[Dim]>> = operands.iter().map(|v| graph.known(*v)).collect();
        known::infer(&op, &facts, &of_operands(), &types)
    };
    let node = graph.add(Node { op, operands, types, known, regions: vec![], name, loc });
    Ok(Value { node, port: 0 })
}
