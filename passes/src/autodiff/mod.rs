//! Reverse-mode differentiation: every [`Gradient`] becomes ordinary operations, before any other pass looks at the graph, so that
//! forward, loss, backward and update are optimised as one function.
//!
//! The walk ([`pull_back`]): forward, values that depend on what is differentiated by are marked; backward from the result, each marked
//! node's rule ([`rules`]) turns cotangents of its results into those of its operands. A cotangent that is zero is absent. What several
//! readers of a value give is added in the order of the readers, so that the same graph gives the same bits. A composite without a rule
//! of its own is expanded first ([`prepare`]). What the way back reads is kept, or computed once more ([`checkpoint`]).

mod checkpoint;
mod control;
mod index;
mod prepare;
mod rules;
pub mod slip;
mod window;

use crate::pass::Context;
use checkpoint::Checkpoints;
use nnc_ir::error::{Error, Report, Result};
use nnc_ir::{Builder, Graph, Node, NodeId, Op, V, Value};
use rules::At;
use slip::Slip;
use std::cell::RefCell;

pub fn run(graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    differentiate(graph)
}

/// The graph with `gradient` computed and `stop_grad` gone. Regions included.
pub fn differentiate(graph: Graph) -> Result<Graph, Report> {
    differentiate_with(graph, None)
}

/// As [`differentiate`], with a mistake in a rule.
pub fn differentiate_with(mut graph: Graph, slip: Option<&Slip>) -> Result<Graph, Report> {
    let holders: Vec<NodeId> = graph.ids().filter(|id| !graph.node(*id).regions.is_empty()).collect();
    for id in holders {
        let regions = std::mem::take(&mut graph.node_mut(id).regions);
        graph.node_mut(id).regions = regions.into_iter().map(|r| differentiate_with(r, slip)).collect::<Result<_, _>>()?;
    }
    let is_gradient = |graph: &Graph, id: &NodeId| matches!(graph.node(*id).op, Op::Gradient(_));
    if graph.ids().any(|id| is_gradient(&graph, &id)) {
        graph = prepare::prepare(graph)?;
        // In order: a gradient may be differentiated again.
        while let Some(id) = graph.order().into_iter().find(|id| is_gradient(&graph, id)) {
            graph = resolve(graph, id, slip)?;
        }
    }
    // The last first, so that one of another ends at what both hold.
    let held: Vec<NodeId> = graph.order().into_iter().rev().filter(|id| matches!(graph.node(*id).op, Op::StopGrad(_))).collect();
    let pairs: Vec<(Value, Value)> = held.iter().map(|id| (Value { node: *id, port: 0 }, graph.node(*id).operands[0])).collect();
    graph.replace_all(&pairs);
    held.into_iter().for_each(|id| graph.remove(id));
    Ok(graph)
}

/// Puts the operations of one `gradient` in its place.
fn resolve(graph: Graph, id: NodeId, slip: Option<&Slip>) -> Result<Graph, Report> {
    let node = graph.node(id).clone();
    let b = Builder::from_graph(graph);
    b.at(node.loc.clone());
    let y = b.v(node.operands[0]);
    let seed = y.scalar_like(1.0).expand(y.ty().shape);
    let every = if let Op::Gradient(g) = &node.op { g.checkpoint } else { 0 };
    let (found, mut replaced) = pull_back(&b, &[(y.value(), seed)], &node.operands[1..], every, slip).map_err(Report::from)?;
    b.at(node.loc.clone());
    for (port, (x, found)) in node.operands[1..].iter().zip(found).enumerate() {
        let v = found.unwrap_or_else(|| zero_like(b.v(*x)));
        replaced.push((Value { node: id, port: port as u32 }, v.value()));
    }
    let mut graph = b.finish()?;
    graph.replace_all(&replaced);
    graph.remove(id);
    Ok(graph)
}

/// Operations that rules have put in the place of others: those that keep more for the way back.
pub(crate) type Replaced = Vec<(Value, Value)>;

/// A tensor of zeros of the type of `v`.
pub(crate) fn zero_like<'g>(v: V<'g>) -> V<'g> {
    v.scalar_like(0.0).expand(v.ty().shape)
}

/// Cotangents of `wrt`, given those of some values; `None` where they do not depend on it. With `every` > 0, what the values follow from is
/// kept every so many contractions only. The operations are added to the builder's graph, and what is to be replaced in it afterwards is
/// returned.
pub(crate) fn pull_back<'g>(
    b: &'g Builder,
    seeds: &[(Value, V<'g>)],
    wrt: &[Value],
    every: usize,
    slip: Option<&Slip>,
) -> Result<(Vec<Option<V<'g>>>, Replaced)> {
    let order = b.with_graph(Graph::order);
    let depends = b.with_graph(|graph| marked(graph, &order, wrt));
    let is_marked = |v: &Value| depends[v.node.0 as usize] && b.with_graph(|graph| graph.ty(*v).dtype.is_float());
    // What readers give a value, the last reader first.
    let mut given: Vec<Vec<Vec<V<'g>>>> = vec![vec![]; depends.len()];
    let give = |v: Value, g: V<'g>, given: &mut Vec<Vec<Vec<V<'g>>>>| {
        let ports = &mut given[v.node.0 as usize];
        ports.resize(b.with_graph(|graph| graph.node(v.node).types.len()), vec![]);
        ports[v.port as usize].push(g);
    };
    seeds.iter().filter(|(v, _)| is_marked(v)).for_each(|(v, g)| give(*v, *g, &mut given));
    let sum = |gs: &[V<'g>]| gs.iter().rev().copied().reduce(|a, b| a + b);
    let replaced = RefCell::new(vec![]);
    let mut checkpoints = Checkpoints::new(b, &order, &depends, seeds.iter().map(|(v, _)| *v), every);
    for id in order.iter().rev() {
        if given[id.0 as usize].is_empty() {
            continue;
        }
        // The graph grows on the way.
        let node = &b.with_graph(|graph| graph.node(*id).clone());
        if matches!(node.op, Op::Input) || !node.operands.iter().any(is_marked) {
            continue;
        }
        checkpoints.enter(*id);
        b.at(node.loc.clone());
        let mut at = At {
            b,
            node,
            x: node.operands.iter().map(|v| checkpoints.get(*id, *v)).collect(),
            y: (0..node.types.len() as u32).map(|port| checkpoints.get(*id, Value { node: *id, port })).collect(),
            g: given[id.0 as usize].iter().map(|gs| sum(gs)).collect(),
            needs: node.operands.iter().map(is_marked).collect(),
            replaced: &replaced,
            sparing: every > 0,
            slip,
        };
        if let Some(slip) = slip {
            slip.before(&mut at);
        }
        let mut shares = rules::vjp(&at).map_err(|e| place(e, node))?;
        if let Some(slip) = slip {
            slip.after(node.op.name(), &mut shares);
        }
        for ((v, needed), share) in node.operands.iter().zip(&at.needs).zip(shares) {
            if let Some(g) = share.filter(|_| *needed) {
                give(*v, fitted(g, b.v(*v)).map_err(|e| place(e, node))?, &mut given);
            }
        }
    }
    let found = wrt.iter().map(|v| given[v.node.0 as usize].get(v.port as usize).and_then(|gs| sum(gs))).collect();
    Ok((found, replaced.into_inner()))
}

/// Nodes that depend on `wrt` in a way that can be differentiated.
fn marked(graph: &Graph, order: &[NodeId], wrt: &[Value]) -> Vec<bool> {
    let mut depends = vec![false; graph.id_bound()];
    wrt.iter().for_each(|v| depends[v.node.0 as usize] = true);
    for id in order {
        let node = graph.node(*id);
        let through = |v: &Value| depends[v.node.0 as usize] && graph.ty(*v).dtype.is_float();
        if !matches!(node.op, Op::StopGrad(_)) && node.operands.iter().any(through) {
            depends[id.0 as usize] = true;
        }
    }
    depends
}

/// The cotangent under the operand's own shape: sizes that are equal may be written differently.
fn fitted<'g>(g: V<'g>, x: V<'g>) -> Result<V<'g>> {
    let (have, want) = (g.ty(), x.ty());
    if !g.is_poison() && (have.dtype != want.dtype || have.rank() != want.rank()) {
        return Err(Error::internal(format!("the cotangent of {want} is {have}")));
    }
    Ok(g.reshape(want.shape))
}

fn place(e: Error, node: &Node) -> Error {
    let name = if node.name.is_empty() { String::new() } else { format!(" `{}`", node.name) };
    e.at(&node.loc).note(format!("differentiating {}{name}", node.op.name()))
}
