//! Rematerialisation (Chen, Xu, Zhang, Guestrin: Training deep nets with sublinear memory cost, 2016). What a result follows from is cut
//! into segments. What crosses a cut is kept; all else of a segment is computed again when the way back comes to it.
//!
//! The second computation begins with [`Barrier`]s, without which later passes would find that it is the first. It stands in the graph
//! where the way back has come to, and what passes and programs do not have to move stays where it stands, so that its results are in
//! memory for one segment at a time. It consists of the same operations, and the interpreter gives the same bits; code that is compiled with other neighbours
//! may round otherwise. Dropout draws its numbers by their count, and so the same ones again.

use nnc_ir::ops::Class;
use nnc_ir::ops::gradient::Barrier;
use nnc_ir::{Builder, Dim, Graph, Node, NodeId, Op, V, Value};
use rustc_hash::FxHashMap;

/// What a result follows from, in segments, and where the way back is.
pub struct Checkpoints<'g> {
    b: &'g Builder,
    segments: Segments,
    /// The segment that the way back is in.
    current: Option<usize>,
    /// What stands for values of the graph in that segment.
    stand_ins: FxHashMap<Value, V<'g>>,
    /// The turn of the barriers of the next segment.
    turn: usize,
}

impl<'g> Checkpoints<'g> {
    /// For the way back from `results`, kept every `every` contractions; 0 keeps everything. `order` holds all nodes, `depends` says by id
    /// which of them the way back visits.
    pub fn new(b: &'g Builder, order: &[NodeId], depends: &[bool], results: impl Iterator<Item = Value>, every: usize) -> Checkpoints<'g> {
        let (segments, turn) = b.with_graph(|graph| {
            let segments = if every == 0 { Segments::default() } else { Segments::new(graph, order, depends, results, every) };
            let turn = |id: &NodeId| if let Op::Barrier(b) = &graph.node(*id).op { b.turn } else { 0 };
            (segments, 1 + order.iter().map(turn).max().unwrap_or(0))
        });
        Checkpoints { b, segments, current: None, stand_ins: FxHashMap::default(), turn }
    }

    /// The way back comes to a node, users before operands. Where that is in a segment that is not in memory, the segment is computed again.
    pub fn enter(&mut self, id: NodeId) {
        let segment = self.segments.of(id);
        if segment.is_none() || segment == self.current {
            return;
        }
        self.current = segment;
        self.stand_ins.clear();
        let nodes: Vec<NodeId> = segment.map_or(vec![], |s| self.segments.again(s).to_vec());
        // Barriers first, so that they part nothing that passes would fuse.
        let node_of = |id: NodeId| self.b.with_graph(|graph| graph.node(id).clone());
        for id in &nodes {
            let node = node_of(*id);
            for v in node.operands.iter().copied().chain(results(*id, &node)).filter(|v| !self.segments.is_made_again(*v, segment)) {
                if !self.stand_ins.contains_key(&v) && !matches!(node_of(v.node).op, Op::Const(_)) {
                    let apart = self.b.op(Barrier { turn: self.turn }, &[self.b.v(v)]);
                    self.stand_ins.insert(v, apart);
                }
            }
        }
        self.turn += 1;
        for id in nodes.into_iter().filter(|id| !self.segments.is_kept(*id)) {
            let node = node_of(id);
            self.b.at(node.loc.clone());
            let x: Vec<V> = node.operands.iter().map(|v| self.get(id, *v)).collect();
            let y = self.b.op_all(node.op.clone(), &x, node.regions.clone());
            y[0].named(&node.name);
            self.stand_ins.extend(results(id, &node).zip(y));
        }
    }

    /// What stands for an operand or a result of a node, in the segment that the way back is in.
    pub fn get(&self, id: NodeId, v: Value) -> V<'g> {
        match self.stand_ins.get(&v) {
            Some(stand_in) if !self.segments.is_fixed(id) => *stand_in,
            _ => self.b.v(v),
        }
    }
}

fn results(id: NodeId, node: &Node) -> impl Iterator<Item = Value> + use<> {
    (0..node.types.len() as u32).map(move |port| Value { node: id, port })
}

#[derive(Default)]
struct Segments {
    /// What the results follow from, in order; inputs and constants, and what no gradient looks through, is not among it.
    path: Vec<NodeId>,
    /// Where in `path` each segment begins.
    starts: Vec<usize>,
    /// By id: the node's place in `path`, and what is asked of it.
    places: Vec<Option<Place>>,
}

#[derive(Clone, Copy)]
struct Place {
    segment: usize,
    /// The results stay in memory until the way back has come by.
    kept: bool,
    /// The node binds sizes, which can be done once only.
    fixed: bool,
}

impl Segments {
    fn new(graph: &Graph, order: &[NodeId], depends: &[bool], results: impl Iterator<Item = Value>, every: usize) -> Segments {
        let path = path(graph, order, results);
        let mut position = vec![usize::MAX; graph.id_bound()];
        path.iter().enumerate().for_each(|(i, id)| position[id.0 as usize] = i);
        // The last reader of each node of the path.
        let mut last: Vec<usize> = (0..path.len()).collect();
        for (i, id) in path.iter().enumerate() {
            for v in &graph.node(*id).operands {
                if let Some(p) = last.get_mut(position[v.node.0 as usize]) {
                    *p = i;
                }
            }
        }
        let starts = starts(graph, &path, &last, every);
        let segment_of = |i: usize| starts.partition_point(|s| *s <= i) - 1;
        let binders = nnc_ir::symbols::binders(graph);
        let mut fixed = vec![false; graph.id_bound()];
        binders.values().for_each(|id| fixed[id.0 as usize] = true);
        let mut places = vec![None; graph.id_bound()];
        for (i, id) in path.iter().enumerate() {
            let (k, segment) = (id.0 as usize, segment_of(i));
            // What nothing is learnt from is not computed twice where that is work.
            let frozen = !depends[k] && is_layer(&graph.node(*id).op);
            places[k] = Some(Place { segment, kept: fixed[k] || frozen || segment_of(last[i]) > segment, fixed: fixed[k] });
        }
        Segments { path, starts, places }
    }

    fn place(&self, id: NodeId) -> Option<Place> {
        self.places.get(id.0 as usize).copied().flatten()
    }

    /// The segment that a node is in.
    fn of(&self, id: NodeId) -> Option<usize> {
        self.place(id).map(|p| p.segment)
    }

    /// Nodes of a segment that has left memory when the way back comes to it: of any but the last.
    fn again(&self, segment: usize) -> &[NodeId] {
        self.starts.get(segment + 1).map_or(&[], |end| &self.path[self.starts[segment]..*end])
    }

    fn is_kept(&self, id: NodeId) -> bool {
        self.place(id).is_none_or(|p| p.kept)
    }

    fn is_fixed(&self, id: NodeId) -> bool {
        self.place(id).is_some_and(|p| p.fixed)
    }

    /// Whether a value is among those that are computed again in a segment.
    fn is_made_again(&self, v: Value, segment: Option<usize>) -> bool {
        self.of(v.node) == segment && !self.is_kept(v.node)
    }
}

/// What counts as a layer.
fn is_layer(op: &Op) -> bool {
    matches!(op.class(), Some(Class::Contract | Class::Control))
}

/// What `results` follow from, in order.
fn path(graph: &Graph, order: &[NodeId], results: impl Iterator<Item = Value>) -> Vec<NodeId> {
    let ends = |id: NodeId| matches!(graph.node(id).op, Op::Input | Op::Const(_) | Op::StopGrad(_));
    let mut seen = vec![false; graph.id_bound()];
    let mut stack: Vec<NodeId> = results.map(|v| v.node).collect();
    while let Some(id) = stack.pop() {
        if !ends(id) && !std::mem::replace(&mut seen[id.0 as usize], true) {
            stack.extend(graph.node(id).operands.iter().map(|v| v.node));
        }
    }
    order.iter().copied().filter(|id| seen[id.0 as usize]).collect()
}

/// Where segments begin: behind at least `every` layers and before twice as many, where the fewest bytes cross, by preference before a layer.
fn starts(graph: &Graph, path: &[NodeId], last: &[usize], every: usize) -> Vec<usize> {
    // Of sizes that only the run knows nothing is counted.
    let bytes = |id: NodeId| -> i128 {
        let of = |t: &nnc_ir::Type| Dim::checked_len(&t.shape).map_or(0, |n| n as i128 * t.dtype.bytes() as i128);
        graph.node(id).types.iter().map(of).sum()
    };
    let mut crossing = vec![0i128; path.len() + 2];
    for (i, id) in path.iter().enumerate().filter(|(i, _)| last[*i] > *i) {
        crossing[i + 1] += bytes(*id);
        crossing[last[i] + 1] -= bytes(*id);
    }
    for i in 1..crossing.len() {
        crossing[i] += crossing[i - 1];
    }
    let is_layer_at = |i: usize| is_layer(&graph.node(path[i]).op);
    let layers: Vec<usize> = (0..path.len()).filter(|i| is_layer_at(*i)).collect();
    let (mut starts, mut begin) = (vec![0], 0);
    while let Some(first) = layers.get(every.saturating_add(begin)) {
        let furthest = layers[every.saturating_mul(2).saturating_add(begin).min(layers.len()) - 1];
        let earliest = layers[begin + every - 1] + 1;
        let best = (earliest..=furthest).min_by_key(|i| (crossing[*i], !is_layer_at(*i), *i)).unwrap_or(*first);
        starts.push(best);
        begin = layers.partition_point(|l| *l < best);
    }
    starts
}
