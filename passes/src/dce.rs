//! Dead code elimination: what no output or check depends on goes.
//!
//! These depend on their operands, and on the nodes that bind the symbols in their types and attributes at run time.

use crate::pass::Context;
use crate::rebuild::Rebuild;
use nnc_ir::{Graph, Report};

/// Leaves out nodes that nothing needs.
pub fn run(graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    if graph.is_settled() {
        return Ok(graph);
    }
    let mut r = Rebuild::new(&graph);
    for id in r.order() {
        r.keep(id);
    }
    Ok(r.finish())
}
