//! Graphs in f64 for f32, so that differences tell derivatives from rounding.

use crate::builder::{Builder, V};
use crate::graph::Graph;
use crate::ops::Op;
use crate::ops::map::Cast;
use crate::ops::source::Const;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

pub fn wide_type(t: &Type) -> Type {
    if t.dtype == DType::F32 { t.with_dtype(DType::F64) } else { t.clone() }
}

pub fn wide_tensor(t: &Tensor) -> Tensor {
    if t.dtype() == DType::F32 { Tensor::new(t.shape(), &t.to_f64s()) } else { t.clone() }
}

/// The graph with f64 for f32, its regions included.
pub fn widened(graph: &Graph) -> Graph {
    let b = Builder::new(&graph.name);
    let mut map: Vec<Vec<V>> = vec![vec![]; graph.id_bound()];
    for id in &graph.inputs {
        map[id.0 as usize] = vec![b.input(&graph.node(*id).name, wide_type(&graph.node(*id).types[0]))];
    }
    for id in graph.order() {
        let node = graph.node(id);
        let x: Vec<V> = node.operands.iter().map(|o| map[o.node.0 as usize][o.port as usize]).collect();
        let op = match &node.op {
            Op::Input => continue,
            Op::Const(c) => Op::Const(Const(wide_tensor(&c.0))),
            Op::Cast(c) if c.to == DType::F32 => Op::Cast(Cast { to: DType::F64 }),
            op => op.clone(),
        };
        map[id.0 as usize] = b.op_all(op, &x, node.regions.iter().map(widened).collect());
    }
    for o in &graph.outputs {
        b.output(&o.name, map[o.value.node.0 as usize][o.value.port as usize]);
    }
    b.finish().expect("the same graph, wider")
}
