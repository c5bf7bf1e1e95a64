//! A model's gradient as a model: what `nnc grad` writes.

use nnc_ir::graph::Output;
use nnc_ir::near::nearest;
use nnc_ir::ops::gradient::Gradient;
use nnc_ir::{Builder, Error, Graph, NodeId, Op, Report, V, Value};

/// The model with one more output for each name of `wrt`: the derivative of an output (of the sum of its elements; the first without a
/// name) by that input or parameter, called `NAME_grad`.
pub fn gradient(graph: Graph, of: Option<&str>, wrt: &[String]) -> Result<Graph, Report> {
    let y = output(&graph, of)?;
    let x = wrt.iter().map(|name| variable(&graph, name)).collect::<Result<Vec<Value>, Error>>()?;
    let b = Builder::from_graph(graph);
    let operands: Vec<V> = std::iter::once(y).chain(x).map(|v| b.v(v)).collect();
    let d = b.op_all(Gradient::default(), &operands, vec![]);
    for (name, d) in wrt.iter().zip(d) {
        b.output(format!("{name}_grad"), d);
    }
    nnc_passes::differentiate(b.finish()?)
}

fn output(graph: &Graph, name: Option<&str>) -> Result<Value, Error> {
    let names = || graph.outputs.iter().map(|o| &*o.name).collect::<Vec<_>>().join(", ");
    let Output { name, value } = match name {
        Some(name) => {
            graph.outputs.iter().find(|o| &*o.name == name).ok_or_else(|| Error::name(format!("the model has no output `{name}`")).note(names()))?
        }
        None => graph.outputs.first().ok_or_else(|| Error::name("the model has no outputs"))?,
    };
    if !graph.ty(*value).dtype.is_float() {
        return Err(Error::dtype(format!("the output `{name}` is {}: only floats have derivatives", graph.ty(*value))).note(names()));
    }
    Ok(*value)
}

/// An input or a parameter by its name.
fn variable(graph: &Graph, name: &str) -> Result<Value, Error> {
    let is_variable = |id: &NodeId| matches!(graph.node(*id).op, Op::Input | Op::Const(_));
    let found = graph.ids().filter(is_variable).find(|id| &*graph.node(*id).name == name);
    let value = |id| Value { node: id, port: 0 };
    match found.map(value) {
        Some(v) if graph.ty(v).dtype.is_float() => Ok(v),
        Some(v) => Err(Error::dtype(format!("`{name}` is {}: only floats have derivatives", graph.ty(v)))),
        None => {
            let known = graph.ids().filter(is_variable).map(|id| &*graph.node(id).name).filter(|n| !n.is_empty());
            let e = Error::name(format!("the model has no input or parameter `{name}`"));
            Err(match nearest(name, known) {
                Some(near) => e.note(format!("did you mean `{near}`?")),
                None => e,
            })
        }
    }
}
