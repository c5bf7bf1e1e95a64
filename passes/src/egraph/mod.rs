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
use lang::{ENode, Facts};
use nnc_ir::{Graph, NodeId, Op, Report, Target, Value};
use region::{Key, Ref, Region};
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
    saturate(&graph, &rules, cx.target).map(|(g, _)| g)
}

/// Recognises composites that are spelled out.
pub fn raise(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    let rules = rules::compiled(true, cx.options.precision);
    saturate(&graph, &rules, cx.target).map(|(g, _)| g)
}

/// What replaces a region: operations on leaves and on each other.
struct Template {
    steps: Vec<Step>,
    /// What stands for each of the region's outputs.
    outputs: Vec<Ref>,
}

struct Step {
    op: Op,
    operands: Vec<Ref>,
    /// The region's node whose value this is, for its name and place.
    node: Option<usize>,
}

/// Rewrites all regions of a graph by `rules`.
pub fn saturate(graph: &Graph, rules: &[&rules::Compiled], target: &Target) -> Result<(Graph, Stats), Report> {
    let mut r = Rebuild::new(graph);
    let order = r.order();
    let constant = crate::fold::constants(graph);
    let mut templates: HashMap<Key, Template> = HashMap::new();
    let mut stats = Stats::default();
    for piece in region::cut(graph, &order) {
        match piece {
            region::Piece::Keep(id) => {
                r.keep(id);
            }
            region::Piece::Region(nodes) => {
                let region = Region::new(graph, &nodes, &constant);
                stats.regions += 1;
                let template = match templates.get(&region.key) {
                    Some(t) => t,
                    None => {
                        let (template, enodes) = solve(&region.key, rules, target);
                        stats.saturated += 1;
                        stats.enodes += enodes;
                        templates.entry(region.key.clone()).or_insert(template)
                    }
                };
                replay(&mut r, &nodes, &region, template)?;
            }
        }
    }
    Ok((r.finish(), stats))
}

/// Saturates one region and extracts; also says how many e-nodes there were.
fn solve(key: &Key, rules: &[&rules::Compiled], target: &Target) -> (Template, usize) {
    let mut egraph: EGraph<ENode, Facts> = EGraph::default();
    egraph.analysis.leaves = key.leaves.iter().map(region::Leaf::fact).collect();
    let leaves: Vec<Id> = (0..key.leaves.len()).map(|i| egraph.add(ENode::Leaf(i as u32))).collect();
    let mut nodes: Vec<Id> = Vec::with_capacity(key.nodes.len());
    for (op, operands) in &key.nodes {
        let x: Vec<Id> = operands.iter().map(|r| r.pick(&leaves, &nodes)).collect();
        nodes.push(lang::add(&mut egraph, op, &x));
    }
    for ((_, operands), id) in key.nodes.iter().zip(&nodes) {
        let _ = id;
        for x in operands {
            count_use(&mut egraph, x.pick(&leaves, &nodes), 1);
        }
    }
    for (node, outside) in &key.outputs {
        count_use(&mut egraph, nodes[*node], *outside);
    }
    egraph.rebuild();
    let runner = Runner::default()
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(MAX_ITERATIONS)
        .with_node_limit(MAX_ENODES)
        // Results must not depend on the clock.
        .with_time_limit(Duration::from_secs(u32::MAX.into()))
        .run(rules.iter().copied());
    let egraph = runner.egraph;
    let roots: Vec<Id> = key.outputs.iter().map(|(node, _)| nodes[*node]).collect();
    let choice = extract::extract(&egraph, &roots, target);
    let mut named: HashMap<Id, usize> = HashMap::new();
    for (i, id) in nodes.iter().enumerate() {
        named.insert(egraph.find(*id), i);
    }
    let mut steps: Vec<Step> = vec![];
    let mut at: HashMap<Id, usize> = HashMap::new();
    let place = |id: Id, at: &HashMap<Id, usize>| match at.get(&egraph.find(id)) {
        Some(step) => Ref::Node(*step),
        None => Ref::Leaf(choice.leaf(id).expect("a chosen class is an operation or a leaf") as usize),
    };
    for (class, op, operands) in choice.program(&roots) {
        let operands = operands.iter().map(|id| place(*id, &at)).collect();
        at.insert(class, steps.len());
        steps.push(Step { op, operands, node: named.get(&class).copied() });
    }
    let outputs = roots.iter().map(|id| place(*id, &at)).collect();
    (Template { steps, outputs }, egraph.total_number_of_nodes())
}

fn count_use(egraph: &mut lang::Graph, id: Id, n: u32) {
    if let lang::Fact::Value(v) = &mut egraph[id].data {
        v.uses += n;
    }
}

/// Puts a template's operations in a region's place.
fn replay(r: &mut Rebuild, nodes: &[NodeId], region: &Region, template: &Template) -> Result<(), Report> {
    let leaves: Vec<Value> = region.leaves.iter().map(|v| r.get(*v)).collect();
    let mut made: Vec<Value> = Vec::with_capacity(template.steps.len());
    // What rules make in passing takes the place of the next named node.
    let mut place = vec![nodes[nodes.len() - 1]; template.steps.len()];
    for (i, step) in template.steps.iter().enumerate().rev() {
        place[i] = step.node.map_or_else(|| place.get(i + 1).copied().unwrap_or(place[i]), |n| nodes[n]);
    }
    for (i, step) in template.steps.iter().enumerate() {
        let operands = step.operands.iter().map(|x| x.pick(&leaves, &made)).collect();
        let old = r.old.node(place[i]);
        let name = if step.node.is_some() { old.name.clone() } else { "".into() };
        made.push(rebuild::infer(&mut r.new, step.op.clone(), operands, name, old.loc.clone())?);
    }
    for (out, value) in region.outputs.iter().zip(&template.outputs) {
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
