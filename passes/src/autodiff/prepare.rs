//! A graph in operations that have rules: composites without one are expanded, epilogues spelled out.

use super::rules;
use crate::expand;
use nnc_ir::error::Report;
use nnc_ir::ops::contract::{Layout, Post};
use nnc_ir::{Builder, Dim, Graph, Op, V, Value};

pub fn prepare(graph: &Graph) -> Result<Graph, Report> {
    let graph = spelled(graph)?;
    Ok(expand::expand(&graph, &|op, _| rules::has_rule(op))?.into_owned())
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

/// The graph with epilogues as operations of their own. Regions included.
fn spelled(graph: &Graph) -> Result<Graph, Report> {
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
        let y = match bare(&node.op) {
            Some((post, op)) => {
                let product = b.op(op, &x[..2]);
                vec![steps(post, product, &x[2..], matches!(node.op, Op::MatMul(_)))]
            }
            None => b.op_all(node.op.clone(), &x, node.regions.iter().map(spelled).collect::<Result<_, _>>()?),
        };
        y[0].named(&node.name);
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
