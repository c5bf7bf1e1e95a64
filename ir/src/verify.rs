//! Checks graphs; every violation is reported. Builders cannot make what fails here: it is a bug of an importer or a pass.

use crate::builder::infer;
use crate::dim::Dim;
use crate::error::{Error, Report, Result};
use crate::graph::{Graph, Node, NodeId, Value};
use crate::ops::{Class, Op};
use crate::types::Type;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Everything that is wrong with a graph and the regions in it:
/// operands and outputs that do not exist, uses that the graph does not know of, cycles, types and known contents that are not what
/// inference gives, sizes that nothing binds (or only a later node), inputs out of step with their list, names given twice.
pub fn verify(graph: &Graph) -> Result<(), Report> {
    let mut v = Verifier::default();
    v.graph(graph, BTreeSet::new());
    // Those of regions are for readers only: arguments go by position.
    v.distinct("inputs", graph.inputs.iter().filter(|id| graph.contains(**id)).map(|id| &graph.node(*id).name));
    v.distinct("outputs", graph.outputs.iter().map(|o| &o.name));
    if graph.outputs.is_empty() {
        v.errors.push(Error::arity(format!("the graph {} has no outputs", graph.name)));
    }
    if v.errors.is_empty() { Ok(()) } else { Err(Report(v.errors)) }
}

/// How messages call a node.
fn title(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    match &*node.name {
        "" => format!("node {} ({})", id.0, node.op.name()),
        name => format!("node {} `{name}` ({})", id.0, node.op.name()),
    }
}

fn exists(graph: &Graph, v: Value) -> bool {
    graph.contains(v.node) && (v.port as usize) < graph.node(v.node).types.len()
}

#[derive(Default)]
struct Verifier {
    errors: Vec<Error>,
    /// Result types of composites, by operation and operand types: equal layers expand once.
    composites: HashMap<(Op, Vec<Type>), Result<Vec<Type>>>,
}

impl Verifier {
    fn error(&mut self, graph: &Graph, id: NodeId, code: fn(String) -> Error, message: String) {
        self.errors.push(code(format!("{}: {message}", title(graph, id))).at(&graph.node(id).loc));
    }

    /// `bound` are the symbols of the graph that this one is a region of.
    fn graph(&mut self, graph: &Graph, mut bound: BTreeSet<Arc<str>>) {
        self.inputs(graph);
        let sound: Vec<NodeId> = graph.ids().filter(|id| self.operands(graph, *id)).collect();
        self.outputs(graph);
        let order = graph.order();
        if order.len() < graph.len() {
            self.cycle(graph, &order);
        }
        for id in &sound {
            self.types(graph, *id);
        }
        let mut later = BTreeMap::new();
        order.iter().for_each(|id| binds(graph.node(*id), &mut |s| *later.entry(s.clone()).or_insert(0) += 1));
        let mut reported = BTreeSet::new();
        for id in order {
            let node = graph.node(id);
            binds(node, &mut |s| {
                bound.insert(s.clone());
            });
            let mut missing = BTreeSet::new();
            node.symbols(&mut |s| {
                if !bound.contains(s) {
                    missing.insert(s.clone());
                }
            });
            for s in missing {
                if reported.insert(s.clone()) {
                    let when = if later.contains_key(&s) { "binds only later" } else { "binds" };
                    let who = if later.contains_key(&s) { "a node" } else { "nothing" };
                    self.error(graph, id, Error::name, format!("the size {s} is one that {who} {when}"));
                }
            }
            for (k, region) in node.regions.iter().enumerate() {
                let from = self.errors.len();
                self.graph(region, bound.clone());
                let note = format!("in region {k} of {}", title(graph, id));
                for e in &mut self.errors[from..] {
                    *e = e.clone().note(note.clone());
                }
            }
        }
    }

    fn inputs(&mut self, graph: &Graph) {
        let listed: BTreeSet<NodeId> = graph.inputs.iter().copied().collect();
        if listed.len() < graph.inputs.len() {
            self.errors.push(Error::name(format!("graph {}: an input is listed twice", graph.name)));
        }
        let nodes: BTreeSet<NodeId> = graph.ids().filter(|id| matches!(graph.node(*id).op, Op::Input)).collect();
        for id in listed.symmetric_difference(&nodes) {
            self.errors.push(Error::internal(format!("graph {}: node {} is an input and not listed, or the reverse", graph.name, id.0)));
        }
    }

    fn distinct<'a>(&mut self, what: &str, names: impl Iterator<Item = &'a Arc<str>>) {
        let mut seen = BTreeSet::new();
        for name in names.filter(|n| !n.is_empty()) {
            if !seen.insert(name) {
                self.errors.push(Error::name(format!("two {what} are called `{name}`")));
            }
        }
    }

    fn outputs(&mut self, graph: &Graph) {
        for (i, o) in graph.outputs.iter().enumerate().filter(|(_, o)| !exists(graph, o.value)) {
            let (node, port) = (o.value.node.0, o.value.port);
            self.errors.push(Error::name(format!("output {i} `{}` is result {port} of node {node}, which does not exist", o.name)));
        }
        if graph.checks.iter().any(|v| !exists(graph, *v)) {
            self.errors.push(Error::internal(format!("graph {}: a check is a value that does not exist", graph.name)));
        }
    }

    /// Whether all operands of the node exist.
    fn operands(&mut self, graph: &Graph, id: NodeId) -> bool {
        let node = graph.node(id);
        let missing: Vec<(usize, &Value)> = node.operands.iter().enumerate().filter(|(_, v)| !exists(graph, **v)).collect();
        for (k, v) in &missing {
            self.error(graph, id, Error::name, format!("operand {k} is result {} of node {}, which does not exist", v.port, v.node.0));
        }
        if missing.is_empty() && !graph.in_step(id) {
            self.error(graph, id, Error::internal, "the graph's edges are not those of the operands".into());
        }
        missing.is_empty()
    }

    fn types(&mut self, graph: &Graph, id: NodeId) {
        let node = graph.node(id);
        if !node.known.is_empty() && node.known.len() != node.types.len() {
            self.error(graph, id, Error::internal, format!("known contents of {} results of {}", node.known.len(), node.types.len()));
        }
        for (ty, known) in node.types.iter().zip(&node.known) {
            if let Some(k) = known
                && !ty.elems().is(k.len() as i64)
            {
                self.error(graph, id, Error::internal, format!("{} known elements of {ty}", k.len()));
            }
        }
        if matches!(node.op, Op::Input) {
            if !node.operands.is_empty() || node.types.len() != 1 {
                self.error(graph, id, Error::internal, "an input has no operands and one type".into());
            }
            return;
        }
        let whole = |r: &Graph| r.outputs.iter().all(|o| exists(r, o.value)) && r.inputs.iter().all(|i| r.contains(*i));
        if !node.regions.iter().all(whole) {
            // Reported at the region.
            return;
        }
        let x: Vec<Type> = node.operands.iter().map(|v| graph.ty(*v).clone()).collect();
        let inferred = match node.op.as_composite() {
            None => infer(&node.op, &x, &node.regions),
            Some(_) => self.composites.entry((node.op.clone(), x)).or_insert_with_key(|(op, x)| infer(op, x, &[])).clone(),
        };
        match inferred {
            Ok(types) if types == node.types => {}
            Ok(types) => self.error(graph, id, Error::internal, format!("its types are {:?}, inference gives {types:?}", node.types)),
            Err(e) => self.errors.push(e.at(&node.loc).note(format!("at {}", title(graph, id)))),
        }
    }

    /// Names one cycle: from any node that the order lacks, operands that it lacks too lead round.
    fn cycle(&mut self, graph: &Graph, order: &[NodeId]) {
        let mut stuck = vec![false; graph.id_bound()];
        graph.ids().for_each(|id| stuck[id.0 as usize] = true);
        order.iter().for_each(|id| stuck[id.0 as usize] = false);
        let is_stuck = |id: &NodeId| stuck.get(id.0 as usize).copied().unwrap_or(false);
        let mut path: Vec<NodeId> = graph.ids().find(is_stuck).into_iter().collect();
        let mut place: HashMap<NodeId, usize> = HashMap::new();
        while let Some(id) = path.last().copied() {
            if let Some(first) = place.insert(id, path.len() - 1) {
                let names: Vec<String> = path[first..].iter().rev().take(8).map(|id| title(graph, *id)).collect();
                self.errors.push(Error::name(format!("a cycle: {}", names.join(" -> "))).at(&graph.node(id).loc));
                return;
            }
            match graph.node(id).operands.iter().map(|v| v.node).find(is_stuck) {
                Some(next) => path.push(next),
                None => break,
            }
        }
        self.errors.push(Error::internal(format!("graph {}: {} nodes wait for operands", graph.name, graph.len() - order.len())));
    }
}

/// Symbols that the node gives a value to: dimensions of inputs, sizes that depend on data, results of control flow and composites.
fn binds(node: &Node, f: &mut dyn FnMut(&Arc<str>)) {
    match &node.op {
        Op::ReadDims(r) => r.symbols.iter().filter_map(Dim::as_sym).for_each(&mut *f),
        Op::StringSplit(s) => s.pieces.as_sym().into_iter().for_each(&mut *f),
        Op::StringNormalize(n) => n.kept.as_sym().into_iter().for_each(&mut *f),
        Op::NonZero(n) => n.count.as_sym().into_iter().for_each(&mut *f),
        op if op.class().is_none_or(|c| c == Class::Control) => {
            node.types.iter().flat_map(|t| &t.shape).filter_map(Dim::as_sym).for_each(&mut *f);
            if let Op::Loop(l) = op {
                l.trips.as_sym().into_iter().for_each(&mut *f);
            }
        }
        _ => {}
    }
}
