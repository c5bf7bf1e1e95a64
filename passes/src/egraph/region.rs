//! Cutting a graph into regions, and what makes two regions equal.

use super::lang;
use nnc_ir::ops::Class;
use nnc_ir::{Graph, NodeId, Op, Tensor, Type, Value};
use std::collections::{BTreeMap, HashMap};

/// A region has at least this many nodes where the graph has them, and at most twice as many.
const REGION: usize = 100;

/// A part of a graph, in order.
pub enum Piece {
    /// A node that the e-graph does not hold: constants, control flow, several results, binders of symbols.
    Keep(NodeId),
    Region(Vec<NodeId>),
}

fn is_outside(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    matches!(node.op, Op::Const(_) | Op::Input | Op::Dims(_) | Op::Iota(_) | Op::Random(_))
        || node.types.len() != 1
        || !node.regions.is_empty()
        || node.is_binder()
}

/// Cuts the nodes of `order` into pieces. A cut goes where the fewest values cross, by preference before a contraction: what
/// follows one is what fuses with it.
pub fn cut(graph: &Graph, order: &[NodeId]) -> Vec<Piece> {
    // Values that cross each position, constants aside.
    let mut crossing = vec![0i64; order.len() + 1];
    let mut position = vec![usize::MAX; graph.id_bound()];
    order.iter().enumerate().for_each(|(i, id)| position[id.0 as usize] = i);
    let mut last = vec![0; order.len()];
    for (i, id) in order.iter().enumerate() {
        for v in &graph.node(*id).operands {
            if let Some(p) = last.get_mut(position[v.node.0 as usize]) {
                *p = i;
            }
        }
    }
    for (i, id) in order.iter().enumerate() {
        if last[i] > i && graph.node(*id).op.class() != Some(Class::Source) {
            crossing[i + 1] += 1;
            crossing[last[i] + 1] -= 1;
        }
    }
    for i in 1..crossing.len() {
        crossing[i] += crossing[i - 1];
    }
    let price = |i: usize| {
        let starts = matches!(graph.node(order[i]).op.class(), Some(Class::Contract | Class::Window | Class::Reduce));
        2 * crossing[i] + i64::from(!starts)
    };
    let mut pieces = vec![];
    let mut open: Vec<usize> = vec![];
    let close = |open: &mut Vec<usize>, pieces: &mut Vec<Piece>| {
        let mut rest = &open[..];
        while !rest.is_empty() {
            let at =
                if rest.len() <= 2 * REGION { rest.len() } else { (REGION..=2 * REGION).min_by_key(|k| (price(rest[*k]), *k)).unwrap_or(REGION) };
            pieces.push(Piece::Region(rest[..at].iter().map(|i| order[*i]).collect()));
            rest = &rest[at..];
        }
        open.clear();
    };
    // Constants have no operands: they can all come first and need not interrupt a region.
    for id in order.iter().filter(|id| matches!(graph.node(**id).op, Op::Const(_))) {
        pieces.push(Piece::Keep(*id));
    }
    for (i, id) in order.iter().enumerate() {
        if matches!(graph.node(*id).op, Op::Const(_)) {
            continue;
        }
        if is_outside(graph, *id) {
            close(&mut open, &mut pieces);
            pieces.push(Piece::Keep(*id));
        } else {
            open.push(i);
        }
    }
    close(&mut open, &mut pieces);
    pieces
}

/// A value in a region: from outside, or of a node before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ref {
    Leaf(usize),
    Node(usize),
}

impl Ref {
    pub fn pick<T: Copy>(self, leaves: &[T], nodes: &[T]) -> T {
        match self {
            Ref::Leaf(i) => leaves[i],
            Ref::Node(i) => nodes[i],
        }
    }
}

/// What the rules may know of a value from outside.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Leaf {
    ty: Type,
    constant: bool,
    /// Where all elements are one number, that number.
    number: Option<Tensor>,
}

impl Leaf {
    pub fn fact(&self) -> lang::Value {
        lang::Value { ty: self.ty.clone(), constant: self.constant, number: self.number.as_ref().and_then(lang::number), uses: 2 }
    }
}

/// What makes two regions equal: everything but the contents of large constants.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub leaves: Vec<Leaf>,
    pub nodes: Vec<(Op, Vec<Ref>)>,
    /// Nodes whose values are read outside, and how often.
    pub outputs: Vec<(usize, u32)>,
}

/// How many of the graph's outputs and checks each node is.
pub fn results(graph: &Graph) -> Vec<u32> {
    let mut out = vec![0; graph.id_bound()];
    graph.ends().for_each(|v| out[v.node.0 as usize] += 1);
    out
}

/// A region's key and what its numbers stand for.
pub struct Region {
    pub key: Key,
    pub leaves: Vec<Value>,
    /// Nodes whose values are read outside.
    pub outputs: Vec<NodeId>,
}

impl Region {
    /// `constant` says of every node of the graph whether it follows from constants alone, `results` how many of the graph's outputs it is.
    pub fn new(graph: &Graph, ids: &[NodeId], constant: &[bool], results: &[u32]) -> Region {
        let inside: HashMap<NodeId, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let mut leaves: Vec<Value> = vec![];
        let mut leaf_of: HashMap<Value, usize> = HashMap::new();
        let mut nodes = Vec::with_capacity(ids.len());
        for id in ids {
            let node = graph.node(*id);
            let mut place = |v: &Value| match inside.get(&v.node) {
                Some(i) => Ref::Node(*i),
                None => Ref::Leaf(*leaf_of.entry(*v).or_insert_with(|| {
                    leaves.push(*v);
                    leaves.len() - 1
                })),
            };
            nodes.push((node.op.clone(), node.operands.iter().map(&mut place).collect()));
        }
        // Readers outside, by position so that the order is the region's.
        let mut outside: BTreeMap<usize, u32> = BTreeMap::new();
        for (i, id) in ids.iter().enumerate() {
            let readers = graph.uses(Value { node: *id, port: 0 }).iter().filter(|(u, _)| !inside.contains_key(u)).count() as u32;
            if readers + results[id.0 as usize] > 0 {
                outside.insert(i, readers + results[id.0 as usize]);
            }
        }
        let facts = leaves.iter().map(|v| Leaf {
            ty: graph.ty(*v).clone(),
            constant: constant[v.node.0 as usize],
            number: graph
                .constant(*v)
                .filter(|t| lang::number(t).is_some())
                .and_then(|t| Tensor::from_bytes(t.dtype(), vec![], t.element(0).to_vec().into()).ok()),
        });
        let key = Key { leaves: facts.collect(), nodes, outputs: outside.iter().map(|(i, n)| (*i, *n)).collect() };
        Region { key, leaves, outputs: outside.keys().map(|i| ids[*i]).collect() }
    }
}
