//! Equality saturation, region by region.
//!
//! The graph is cut into regions of bounded size where few values cross. A region is saturated with directed rules under limits of
//! nodes and iterations (never of time), and the cheapest program is extracted. Regions that are equal but for their weights are
//! saturated once and the result is replayed, so that ten thousand equal layers cost as much as a hundred.

pub mod extract;
pub mod lang;
mod region;
pub mod rules;

use crate::pass::Context;
use crate::rebuild::{self, Rebuild};
use egg::{EGraph, Id, Runner, SimpleScheduler};
use lang::ENode;
use nnc_ir::{Graph, NodeId, Op, Report, Target, Type, Value};
use region::{Ground, Key, Ref, Region};
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::time::Duration;

/// E-nodes and iterations after which a region's saturation stops.
const MAX_ENODES: usize = 20_000;
const MAX_ITERATIONS: usize = 40;

/// What saturation did: for tests and reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    pub regions: usize,
    /// Regions that were not replays.
    pub saturated: usize,
    pub enodes: usize,
}

/// Simplifies and fuses.
pub fn run(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    let rules = rules::compiled(false, cx.options.precision);
    saturate(graph, &rules, cx.target).map(|(g, _)| g)
}

/// Recognises composites that are spelled out.
pub fn raise(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    let rules = rules::compiled(true, cx.options.precision);
    saturate(graph, &rules, cx.target).map(|(g, _)| g)
}

/// What replaces a region: operations on leaves and on each other.
struct Template {
    steps: Vec<Step>,
    /// What stands for each of the region's outputs.
    outputs: Vec<Ref>,
    /// It is the region as it was.
    unchanged: bool,
}

struct Step {
    op: Op,
    operands: Vec<Ref>,
    /// The region's node whose value this is, for its name and place.
    node: Option<usize>,
    /// The result's type, once it was put somewhere: equal regions have equal types.
    types: Option<Vec<Type>>,
}

/// Rewrites all regions of a graph by `rules`. A graph that is the cheapest already comes back as it is.
pub fn saturate(graph: Graph, rules: &[&rules::Compiled], target: &Target) -> Result<(Graph, Stats), Report> {
    let (pieces, mut templates, stats) = solved(&graph, rules, target);
    if graph.is_settled() && pieces.iter().all(|(_, change)| change.is_none()) {
        return Ok((graph, stats));
    }
    let mut r = Rebuild::new(&graph);
    for (nodes, change) in pieces {
        match change {
            Some(change) => replay(&mut r, &nodes, &change, &mut templates[change.template])?,
            None => nodes.iter().for_each(|id| {
                r.keep(*id);
            }),
        }
    }
    Ok((r.finish(), stats))
}

/// What becomes of a region: a template, with the region's values that it is put between.
struct Change {
    template: usize,
    leaves: Vec<Value>,
    outputs: Vec<NodeId>,
}

/// Nodes of a graph, in order, and what takes their place unless they stay.
type Solved = (Vec<NodeId>, Option<Change>);

/// The pieces of a graph.
fn solved(graph: &Graph, rules: &[&rules::Compiled], target: &Target) -> (Vec<Solved>, Vec<Template>, Stats) {
    let order = Rebuild::new(graph).order();
    let mut ground = Ground::new(graph);
    let mut templates: Vec<Template> = vec![];
    let mut known: FxHashMap<Key, usize> = FxHashMap::default();
    let mut stats = Stats::default();
    let mut pieces = vec![];
    for piece in region::cut(graph, &order) {
        let nodes = match piece {
            region::Piece::Keep(id) => {
                pieces.push((vec![id], None));
                continue;
            }
            region::Piece::Region(nodes) => nodes,
        };
        stats.regions += 1;
        let Region { key, leaves, outputs } = ground.region(&nodes);
        let template = *known.entry(key).or_insert_with_key(|key| {
            let (template, enodes) = solve(key, rules, target);
            stats.saturated += 1;
            stats.enodes += enodes;
            templates.push(template);
            templates.len() - 1
        });
        let change = (!templates[template].unchanged).then_some(Change { template, leaves, outputs });
        pieces.push((nodes, change));
    }
    (pieces, templates, stats)
}

/// Saturates one region and extracts; also says how many e-nodes there were.
fn solve(key: &Key, rules: &[&rules::Compiled], target: &Target) -> (Template, usize) {
    let (egraph, nodes) = load(key);
    let egraph = grow(egraph, rules);
    let template = read(&egraph, key, &nodes, &|class, node| extract::cycles(&egraph, class, node, target));
    (template, egraph.total_number_of_nodes())
}

/// A region as an e-graph, with the class of each node.
fn load(key: &Key) -> (lang::Graph, Vec<Id>) {
    let mut egraph: lang::Graph = EGraph::default();
    egraph.analysis.leaves = key.leaves.iter().map(region::Leaf::fact).collect();
    let leaves: Vec<Id> = (0..key.leaves.len()).map(|i| egraph.add(ENode::Leaf(i as u32))).collect();
    let mut nodes: Vec<Id> = Vec::with_capacity(key.len());
    for (op, operands) in key.nodes() {
        let x: Vec<Id> = operands.iter().map(|r| r.pick(&leaves, &nodes)).collect();
        nodes.push(lang::add(&mut egraph, op, &x));
    }
    for x in key.nodes().flat_map(|(_, operands)| operands) {
        count_use(&mut egraph, x.pick(&leaves, &nodes), 1);
    }
    for (node, outside) in &key.outputs {
        count_use(&mut egraph, nodes[*node], *outside);
    }
    egraph.rebuild();
    (egraph, nodes)
}

/// Applies rules until nothing is new.
fn grow(egraph: lang::Graph, rules: &[&rules::Compiled]) -> lang::Graph {
    Runner::default()
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(MAX_ITERATIONS)
        .with_node_limit(MAX_ENODES)
        // Results must not depend on the clock.
        .with_time_limit(Duration::from_secs(u32::MAX.into()))
        .run(rules.iter().copied())
        .egraph
}

/// The cheapest program for a region's outputs.
fn read(egraph: &lang::Graph, key: &Key, nodes: &[Id], price: &dyn Fn(Id, &ENode) -> f64) -> Template {
    let roots: Vec<Id> = key.outputs.iter().map(|(node, _)| nodes[*node]).collect();
    let choice = extract::extract(egraph, &roots, price);
    let named: HashMap<Id, usize> = nodes.iter().enumerate().map(|(i, id)| (egraph.find(*id), i)).collect();
    let mut steps: Vec<Step> = vec![];
    let mut at: HashMap<Id, usize> = HashMap::new();
    let place = |id: Id, at: &HashMap<Id, usize>| match at.get(&egraph.find(id)) {
        Some(step) => Ref::Node(*step),
        None => Ref::Leaf(choice.leaf(id).expect("a chosen class is an operation or a leaf") as usize),
    };
    for (class, op, operands) in choice.program(&roots) {
        let operands = operands.iter().map(|id| place(*id, &at)).collect();
        at.insert(class, steps.len());
        steps.push(Step { op, operands, node: named.get(&class).copied(), types: None });
    }
    let outputs: Vec<Ref> = roots.iter().map(|id| place(*id, &at)).collect();
    let unchanged = is_same(key, &steps, &outputs);
    Template { steps, outputs, unchanged }
}

/// Whether the steps are the region's nodes, in whatever order.
fn is_same(key: &Key, steps: &[Step], outputs: &[Ref]) -> bool {
    // The region's node that a value is.
    let node = |x: &Ref| match x {
        Ref::Node(step) => steps[*step].node.map(Ref::Node),
        Ref::Leaf(i) => Some(Ref::Leaf(*i)),
    };
    let same = |step: &Step| {
        step.node.is_some_and(|n| {
            let (op, operands) = key.node(n);
            *op == step.op && operands.len() == step.operands.len() && operands.iter().zip(&step.operands).all(|(a, b)| node(b) == Some(*a))
        })
    };
    steps.len() == key.len() && steps.iter().all(same) && outputs.iter().zip(&key.outputs).all(|(x, (n, _))| node(x) == Some(Ref::Node(*n)))
}

fn count_use(egraph: &mut lang::Graph, id: Id, n: u32) {
    if let lang::Fact::Value(v) = &mut egraph[id].data {
        v.uses += n;
    }
}

/// Puts a template's operations in the place of a region of these leaves and outputs.
fn replay(r: &mut Rebuild, nodes: &[NodeId], change: &Change, template: &mut Template) -> Result<(), Report> {
    let leaves: Vec<Value> = change.leaves.iter().map(|v| r.get(*v)).collect();
    let mut made: Vec<Value> = Vec::with_capacity(template.steps.len());
    // What rules make in passing takes the place of the next named node.
    let mut place = vec![nodes[nodes.len() - 1]; template.steps.len()];
    for (i, step) in template.steps.iter().enumerate().rev() {
        place[i] = step.node.map_or_else(|| place.get(i + 1).copied().unwrap_or(place[i]), |n| nodes[n]);
    }
    for (i, step) in template.steps.iter_mut().enumerate() {
        let operands = step.operands.iter().map(|x| x.pick(&leaves, &made)).collect();
        let old = r.old.node(place[i]);
        let name = if step.node.is_some() { old.name.clone() } else { "".into() };
        let v = rebuild::infer_once(&mut r.new, step.op.clone(), operands, name, old.loc.clone(), &mut step.types)?;
        made.push(v);
    }
    for (out, value) in change.outputs.iter().zip(&template.outputs) {
        r.set(*out, vec![value.pick(&leaves, &made)]);
    }
    Ok(())
}

/// Adds the live nodes of a graph, whose inputs are `inputs`; returns its outputs' classes.
fn add_graph(egraph: &mut lang::Graph, graph: &Graph, inputs: &[Id]) -> Vec<Id> {
    let live = graph.live();
    let mut map: HashMap<NodeId, Id> = graph.inputs.iter().copied().zip(inputs.iter().copied()).collect();
    for id in graph.order() {
        let node = graph.node(id);
        if live[id.0 as usize] && !matches!(node.op, Op::Input) {
            let x: Vec<Id> = node.operands.iter().map(|v| map[&v.node]).collect();
            let class = lang::add(egraph, &node.op, &x);
            map.insert(id, class);
        }
    }
    graph.outputs.iter().map(|o| map[&o.value.node]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnc_ir::eval::{self, Env};
    use nnc_ir::{Builder, Tensor};
    use rules::{RAISE, Rule, SIMPLIFY};

    /// Small, different numbers of both signs.
    fn fill(ty: &nnc_ir::Type, seed: usize) -> Tensor {
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.as_const().unwrap() as usize).collect();
        let n: usize = shape.iter().product();
        let parts: Vec<Tensor> = (0..n).map(|i| Tensor::scalar_of(ty.dtype, ((i * 7 + seed * 5) % 23) as f64 / 5.0 - 2.1)).collect();
        let bytes: Vec<u8> = parts.iter().flat_map(|t| t.bytes().to_vec()).collect();
        Tensor::from_bytes(ty.dtype, shape, bytes.into()).unwrap()
    }

    fn values(graph: &Graph) -> Vec<f64> {
        let inputs: Vec<Tensor> = graph.inputs.iter().enumerate().map(|(i, id)| fill(&graph.node(*id).types[0], i)).collect();
        eval::run(graph, &inputs, &Env::default()).unwrap_or_else(|e| panic!("{e}"))[0].to_f64s()
    }

    /// The witness with the rule applied at its root: the e-node that stood there may not be chosen again.
    fn rewritten(rule: &'static Rule, graph: &Graph) -> Graph {
        let compiled: Vec<_> = rule.compile(0).into_iter().map(|(_, r)| r).collect();
        let mut r = Rebuild::new(graph);
        let mut ids = vec![];
        for id in r.order() {
            if matches!(graph.node(id).op, Op::Const(_)) {
                r.keep(id);
            } else {
                ids.push(id);
            }
        }
        let region = Ground::new(graph).region(&ids);
        let (egraph, nodes) = load(&region.key);
        let root = nodes[nodes.len() - 1];
        let before = egraph[root].nodes.clone();
        let egraph = grow(egraph, &compiled.iter().collect::<Vec<_>>());
        let is_old = |class: Id, node: &ENode| {
            let canonical = |n: &ENode| egg::Language::map_children(n.clone(), |id| egraph.find(id));
            egraph.find(class) == egraph.find(root) && before.iter().any(|b| canonical(b) == canonical(node))
        };
        let old = |class: Id, node: &ENode| if is_old(class, node) { f64::INFINITY } else { 0.01 };
        assert!(egraph[root].nodes.iter().any(|n| !is_old(root, n)), "rule {} does not fire on its witness", rule.name);
        let mut template = read(&egraph, &region.key, &nodes, &old);
        let change = Change { template: 0, leaves: region.leaves, outputs: region.outputs };
        replay(&mut r, &ids, &change, &mut template).unwrap();
        r.finish()
    }

    #[test]
    fn rules_keep_the_values_of_their_witnesses() {
        let mut names = std::collections::BTreeSet::new();
        for rule in RAISE[1..].iter().chain(SIMPLIFY).flat_map(|t| t.iter()) {
            assert!(names.insert(rule.name), "two rules are called {}", rule.name);
            let b = Builder::new(rule.name);
            b.output("y", (rule.witness)(&b));
            let graph = b.finish().unwrap_or_else(|e| panic!("{}: {e}", rule.name));
            let (want, got) = (values(&graph), values(&rewritten(rule, &graph)));
            assert_eq!(want.len(), got.len(), "{}", rule.name);
            for (w, g) in want.iter().zip(&got) {
                assert!(w == g || (w.is_nan() && g.is_nan()) || (w - g).abs() <= 1e-5 * w.abs().max(1.0), "{}: {w} became {g}", rule.name);
            }
        }
    }
}
