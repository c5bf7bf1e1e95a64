//! What compiled programs do not have: strings. Nodes that need them run on the host.

use nnc_ir::ops::Class;
use nnc_ir::{DType, Error, Graph, NodeId, Op, Report};
use std::collections::HashSet;

/// Whether the host must compute the node: it, or a region in it, touches strings.
pub fn is_host(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let text = |dtype: DType| dtype == DType::Str;
    node.op.class() == Some(Class::Host)
        || node.types.iter().any(|t| text(t.dtype))
        || node.operands.iter().any(|v| text(graph.ty(*v).dtype))
        || node.regions.iter().any(|region| region.ids().any(|id| is_host(region, id)))
}

/// An error for each node that only the host can compute.
pub fn refuse(graph: &Graph) -> Result<(), Report> {
    const SHOWN: usize = 8;
    let error = |id: NodeId| {
        let node = graph.node(id);
        let what = if node.name.is_empty() { node.op.name().to_string() } else { format!("`{}` ({})", node.name, node.op.name()) };
        let hint = "`nnc run` on a model runs such nodes on the interpreter, the rest compiled";
        Error::unsupported(format!("{what} works on strings, which compiled code does not have")).at(&node.loc).note(hint)
    };
    let outputs: HashSet<NodeId> = graph.outputs.iter().map(|o| o.value.node).collect();
    // A constant that something reads shows in its reader.
    let shows = |id: &NodeId| !matches!(graph.node(*id).op, Op::Const(_)) || outputs.contains(id);
    let errors: Vec<Error> = graph.ids().filter(|id| shows(id) && is_host(graph, *id)).take(SHOWN).map(error).collect();
    if errors.is_empty() { Ok(()) } else { Err(Report(errors)) }
}
