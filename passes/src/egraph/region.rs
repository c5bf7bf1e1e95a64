//! Cutting a graph into regions, and what makes two regions equal.

use super::lang;
use nnc_ir::ops::Class;
use nnc_ir::{Graph, NodeId, Op, Tensor, Type, Value};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::ops::Range;

/// A region has at least this many nodes where the graph has them, and at most twice as many.
const REGION: usize = 100;

/// A part of a graph, in order.
pub enum Piece {
    /// A node that the e-graph does not hold: constants, control flow, several results, binders of symbols, barriers.
    Keep(NodeId),
    Region(Vec<NodeId>),
}

fn is_outside(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    matches!(node.op, Op::Const(_) | Op::Input | Op::Dims(_) | Op::Iota(_) | Op::Random(_) | Op::Barrier(_))
        || node.types.len() != 1
        || !node.regions.is_empty()
        || node.is_binder()
}

/// Cuts the nodes of `order` into pieces. A cut goes where the fewest values cross, by preference before a contraction: what
/// follows one is what fuses with it. What only ends the graph (the steps of optimisers) interrupts no region: it comes behind.
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
    // Positions of nodes that wait for their region, and of those that wait for regions before them.
    let (mut open, mut ends): (Vec<usize>, VecDeque<usize>) = (vec![], VecDeque::new());
    let close = |open: &mut Vec<usize>, ends: &mut VecDeque<usize>, pieces: &mut Vec<Piece>| {
        let mut rest = &open[..];
        while !rest.is_empty() {
            let at =
                if rest.len() <= 2 * REGION { rest.len() } else { (REGION..=2 * REGION).min_by_key(|k| (price(rest[*k]), *k)).unwrap_or(REGION) };
            pieces.push(Piece::Region(rest[..at].iter().map(|i| order[*i]).collect()));
            rest = &rest[at..];
            while let Some(i) = ends.pop_front_if(|i| rest.first().is_none_or(|next| *i < *next)) {
                pieces.push(Piece::Keep(order[i]));
            }
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
        if !is_outside(graph, *id) {
            open.push(i);
        } else if last[i] == 0 && !open.is_empty() && !graph.node(*id).is_binder() {
            ends.push_back(i);
        } else {
            close(&mut open, &mut ends, &mut pieces);
            pieces.push(Piece::Keep(*id));
        }
    }
    close(&mut open, &mut ends, &mut pieces);
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
pub struct Leaf<'g> {
    ty: &'g Type,
    constant: bool,
    /// Where all elements are one number, that number.
    number: Option<Tensor>,
}

impl Leaf<'_> {
    pub fn fact(&self) -> lang::Value {
        lang::Value { ty: self.ty.clone(), constant: self.constant, number: self.number.as_ref().and_then(lang::number), uses: 2 }
    }
}

/// What makes two regions equal: everything but the contents of large constants.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key<'g> {
    pub leaves: Vec<Leaf<'g>>,
    /// Operations, and where in `operands` theirs are.
    ops: Vec<(&'g Op, Range<usize>)>,
    operands: Vec<Ref>,
    /// Nodes whose values are read outside, and how often.
    pub outputs: Vec<(usize, u32)>,
}

impl<'g> Key<'g> {
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    pub fn node(&self, i: usize) -> (&'g Op, &[Ref]) {
        let (op, at) = &self.ops[i];
        (op, &self.operands[at.clone()])
    }

    /// Operations and their operands.
    pub fn nodes(&self) -> impl Iterator<Item = (&'g Op, &[Ref])> {
        (0..self.len()).map(|i| self.node(i))
    }
}

/// What regions are cut from, with what is asked of each of its nodes.
pub struct Ground<'g> {
    graph: &'g Graph,
    /// Whether each node follows from constants alone.
    constant: Vec<bool>,
    /// How often each node's results are read, by nodes, outputs and checks.
    reads: Vec<u32>,
    /// Position of each node in its region, 0 where it is in none, or in another than the one at hand.
    place: Vec<u32>,
}

/// A region's key and what its numbers stand for.
pub struct Region<'g> {
    pub key: Key<'g>,
    pub leaves: Vec<Value>,
    /// Nodes whose values are read outside.
    pub outputs: Vec<NodeId>,
}

impl<'g> Ground<'g> {
    pub fn new(graph: &'g Graph) -> Ground<'g> {
        let mut reads = vec![0; graph.id_bound()];
        let operands = graph.ids().flat_map(|id| graph.node(id).operands.iter().copied());
        operands.chain(graph.ends()).for_each(|v| reads[v.node.0 as usize] += 1);
        Ground { graph, constant: crate::fold::constants(graph), reads, place: vec![0; graph.id_bound()] }
    }

    pub fn region(&mut self, ids: &[NodeId]) -> Region<'g> {
        let graph = self.graph;
        ids.iter().zip(1..).for_each(|(id, i)| self.place[id.0 as usize] = i);
        let mut leaves: Vec<Value> = vec![];
        let mut leaf_of: FxHashMap<Value, usize> = FxHashMap::default();
        let (mut ops, mut operands) = (Vec::with_capacity(ids.len()), Vec::with_capacity(2 * ids.len()));
        let mut outside: Vec<u32> = ids.iter().map(|id| self.reads[id.0 as usize]).collect();
        for id in ids {
            let node = graph.node(*id);
            let start = operands.len();
            for v in &node.operands {
                operands.push(match self.place[v.node.0 as usize] {
                    0 => Ref::Leaf(*leaf_of.entry(*v).or_insert_with(|| {
                        leaves.push(*v);
                        leaves.len() - 1
                    })),
                    i => {
                        outside[i as usize - 1] -= 1;
                        Ref::Node(i as usize - 1)
                    }
                });
            }
            ops.push((&node.op, start..operands.len()));
        }
        ids.iter().for_each(|id| self.place[id.0 as usize] = 0);
        let facts = leaves.iter().map(|v| Leaf {
            ty: graph.ty(*v),
            constant: self.constant[v.node.0 as usize],
            number: graph
                .constant(*v)
                .filter(|t| lang::number(t).is_some())
                .and_then(|t| Tensor::from_bytes(t.dtype(), vec![], t.element(0).to_vec().into()).ok()),
        });
        let outputs: Vec<(usize, u32)> = outside.into_iter().enumerate().filter(|(_, n)| *n > 0).collect();
        let read = outputs.iter().map(|(i, _)| ids[*i]).collect();
        Region { key: Key { leaves: facts.collect(), ops, operands, outputs }, leaves, outputs: read }
    }
}
