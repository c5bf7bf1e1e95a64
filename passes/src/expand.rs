//! Composites become primitives.

use nnc_ir::error::{Error, Report};
use nnc_ir::graph::{Graph, Value};
use nnc_ir::{Builder, Op, Type, V};
use std::borrow::Cow;

/// How deep composites may be made of composites.
pub const MAX_DEPTH: usize = 16;

/// The graph with every composite expanded but those for which `keep` holds on their operands' types. Regions included. Linear.
pub fn expand<'g>(graph: &'g Graph, keep: &dyn Fn(&Op, &[Type]) -> bool) -> Result<Cow<'g, Graph>, Report> {
    let mut out = Cow::Borrowed(graph);
    // Expansions may hold composites; each round replaces all that are there.
    for _ in 0..MAX_DEPTH {
        if !wanted(&out, keep) {
            return Ok(out);
        }
        out = Cow::Owned(round(&out, keep)?);
    }
    Err(Error::internal("composites expand into composites without end").into())
}

fn replaced(graph: &Graph, op: &Op, operands: &[Value], keep: &dyn Fn(&Op, &[Type]) -> bool) -> bool {
    op.as_composite().is_some() && !keep(op, &operands.iter().map(|v| graph.ty(*v).clone()).collect::<Vec<_>>())
}

/// Whether there is something to expand, here or in a region.
fn wanted(graph: &Graph, keep: &dyn Fn(&Op, &[Type]) -> bool) -> bool {
    graph.ids().any(|id| {
        let node = graph.node(id);
        replaced(graph, &node.op, &node.operands, keep) || node.regions.iter().any(|r| wanted(r, keep))
    })
}

fn round(graph: &Graph, keep: &dyn Fn(&Op, &[Type]) -> bool) -> Result<Graph, Report> {
    let b = Builder::new(&graph.name);
    let mut map: Vec<Vec<V>> = vec![vec![]; graph.id_bound()];
    for id in &graph.inputs {
        let node = graph.node(*id);
        b.at(node.loc.clone());
        map[id.0 as usize] = vec![b.input(&node.name, node.types[0].clone())];
    }
    for id in graph.order() {
        let node = graph.node(id);
        if matches!(node.op, Op::Input) {
            continue;
        }
        b.at(node.loc.clone());
        let x: Vec<V> = node.operands.iter().map(|o| map[o.node.0 as usize][o.port as usize]).collect();
        let y = match node.op.as_composite() {
            Some(c) if replaced(graph, &node.op, &node.operands, keep) => c.expand(&x).map_err(|e| e.at(&node.loc))?,
            _ => {
                let regions = node.regions.iter().map(|r| expand(r, keep).map(Cow::into_owned)).collect::<Result<_, _>>()?;
                b.op_all(node.op.clone(), &x, regions)
            }
        };
        // The composite's own name, not that of a value which the expansion passes on.
        if let Some(v) = y.first()
            && x.iter().all(|x| x.value() != v.value())
        {
            v.named(&node.name);
        }
        map[id.0 as usize] = y;
    }
    let get = |v: Value| map[v.node.0 as usize][v.port as usize];
    graph.outputs.iter().for_each(|o| b.output(&o.name, get(o.value)));
    graph.checks.iter().for_each(|v| b.check(get(*v)));
    b.finish()
}
