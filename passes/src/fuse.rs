//! Which nodes are computed inside the kernel of their user.

use nnc_ir::graph::Graph;

/// For each node whether it has no buffer of its own: everything that reads it computes it.
pub fn plan(graph: &Graph) -> Vec<bool> {
    vec![false; graph.id_bound()]
}
