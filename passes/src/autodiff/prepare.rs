//! A graph whose gradients look at operations that have rules only: composites without one are expanded, epilogues spelled out. What no
//! gradient looks at stays as it is.

use super::rules;
use crate::expand::MAX_DEPTH;
use nnc_ir::error::{Error, Report};
use nnc_ir::ops::contract::{Layout, Post};
use nnc_ir::{Builder, Dim, Graph, Node, Op, V, Value};

pub fn prepare(mut graph: Graph) -> Result<Graph, Report> {
    // Expansions may hold composites.
    for _ in 0..MAX_DEPTH {
        let seen = seen(&graph);
        if !graph.ids().any(|id| seen[id.0 as usize] && is_wanted(graph.node(id))) {
            return Ok(graph);
        }
        graph = spelled(&graph, Some(&seen))?;
    }
    Err(Error::internal("composites expand into composites without end").into())
}

/// Nodes that gradients look at, by id.
fn seen(graph: &Graph) -> Vec<bool> {
    let mut seen = vec![false; graph.id_bound()];
    let mut stack: Vec<Value> = vec![];
    for id in graph.ids().filter(|id| matches!(graph.node(*id).op, Op::Gradient(_))) {
        stack.push(graph.node(id).operands[0]);
        while let Some(v) = stack.pop() {
            if !matches!(graph.node(v.node).op, Op::StopGrad(_)) && !std::mem::replace(&mut seen[v.node.0 as usize], true) {
                stack.extend(&graph.node(v.node).operands);
            }
        }
    }
    seen
}

/// Whether a node, or one in its regions, has to be spelled out.
fn is_wanted(node: &Node) -> bool {
    bare(&node.op).is_some() || has_no_rule(&node.op) || node.regions.iter().any(|r| r.ids().any(|id| is_wanted(r.node(id))))
}

fn has_no_rule(op: &Op) -> bool {
    op.as_composite().is_some() && !rules::has_rule(op)
}

/// The epilogue of a contraction in the layout of the model, and the contraction without it.
fn bare(op: &Op) -> Option<(&[Post], Op)> {
    Some(match op {
        Op::MatMul(m) if !m.post.is_empty() => (&m.post, Op::MatMul(nnc_ir::ops::contract::MatMul { post: vec![], ..m.clone() })),
        Op::Conv(c) if !c.post.is_empty() && c.layout == Layout::Plain => {
            (&c.post, Op::Conv(nnc_ir::ops::contract::Conv { post: vec![], ..c.clone() }))
        }
        Op::ConvTranspose(c) if !c.post.is_empty() => {
            (&c.post, Op::ConvTranspose(nnc_ir::ops::contract::ConvTranspose { post: vec![], ..c.clone() }))
        }
        _ => return None,
    })
}

/// The graph with composites expanded once, and epilogues as operations of their own, among the nodes that are seen. Regions included.
fn spelled(graph: &Graph, seen: Option<&[bool]>) -> Result<Graph, Report> {
    let b = Builder::new(&graph.name);
    let mut map: Vec<Vec<V>> = vec![vec![]; graph.id_bound()];
    for id in &graph.inputs {
        let node = graph.node(*id);
        b.at(node.loc.clone());
        map[id.0 as usize] = vec![b.input(&node.name, node.types[0].clone())];
    }
    for id in graph.order().into_iter().filter(|id| !matches!(graph.node(*id).op, Op::Input)) {
        let node = graph.node(id);
        b.at(node.loc.clone());
        let x: Vec<V> = node.operands.iter().map(|o| map[o.node.0 as usize][o.port as usize]).collect();
        let is_seen = seen.is_none_or(|seen| seen[id.0 as usize]);
        let y = match (bare(&node.op), node.op.as_composite()) {
            (Some((post, op)), _) if is_seen => {
                let product = b.op(op, &x[..2]);
                vec![steps(post, product, &x[2..], matches!(node.op, Op::MatMul(_)))]
            }
            (_, Some(c)) if is_seen && has_no_rule(&node.op) => c.expand(&x).map_err(|e| e.at(&node.loc))?,
            _ => {
                let regions = node.regions.iter().map(|r| if is_seen { spelled(r, None) } else { Ok(r.clone()) });
                b.op_all(node.op.clone(), &x, regions.collect::<Result<_, _>>()?)
            }
        };
        // The node's own name, not that of a value which an expansion passes on.
        if x.iter().all(|x| x.value() != y[0].value()) {
            y[0].named(&node.name);
        }
        map[id.0 as usize] = y;
    }
    let get = |v: Value| map[v.node.0 as usize][v.port as usize];
    graph.outputs.iter().for_each(|o| b.output(&o.name, get(o.value)));
    graph.checks.iter().for_each(|v| b.check(get(*v)));
    b.finish()
}

fn steps<'g>(post: &[Post], mut y: V<'g>, extra: &[V<'g>], channels_last: bool) -> V<'g> {
    let mut extra = extra.iter().copied();
    for p in post {
        let channel = |v: V<'g>| {
            let mut shape = v.ty().shape;
            shape.resize(if channels_last { 1 } else { y.ty().rank() - 1 }, Dim::Const(1));
            v.reshape(shape)
        };
        y = match (p, if p.has_operand() { extra.next() } else { None }) {
            (Post::Bias, Some(v)) => y + channel(v),
            (Post::Scale, Some(v)) => y * channel(v),
            (Post::Add, Some(v)) => y + v,
            (Post::Act(a), _) => a.expand(y),
            (_, None) => y,
        };
    }
    y
}
