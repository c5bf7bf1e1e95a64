//! Which operations can work on blocks of channels, and which of their operands then are in blocks.

use super::blocked_conv;
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::{Layout, Post};
use nnc_ir::{DType, Dim, Graph, Node, NodeId, Op, ScalarFn, Tensor, Type};

/// What a candidate is.
pub enum Role {
    /// A convolution, and the layout that it would take or why there is none.
    Conv(Result<Layout, &'static str>),
    /// Works as well on blocks.
    Flexible,
}

/// A node's role and the operands that follow its layout; `None` where it needs the model's layout. `index` says which nodes before
/// it have a role.
pub fn role(graph: &Graph, id: NodeId, index: &[Option<usize>], block: usize) -> Option<(Role, Vec<usize>)> {
    let node = graph.node(id);
    let ty = |k: usize| graph.ty(node.operands[k]);
    if let Op::Conv(conv) = &node.op {
        let residuals = conv.post.iter().filter(|p| p.has_operand()).enumerate().filter(|(_, p)| **p == Post::Add).map(|(i, _)| 2 + i);
        let enters = index[node.operands[0].node.0 as usize].is_none();
        let mut layout = blocked_conv(conv, ty(0), ty(1), enters, block);
        if !whole(&node.types[0], block) && conv.post.iter().any(|p| matches!(p, Post::Act(a) if !stays_finite(a))) {
            layout = Err("its epilogue is not finite on the channels that fill the last block");
        }
        return Some((Role::Conv(layout), std::iter::once(0).chain(residuals).collect()));
    }
    let follows = flexible(graph, node, block)?;
    Some((Role::Flexible, follows))
}

/// Whether a value's channels are whole blocks.
fn whole(t: &Type, block: usize) -> bool {
    t.shape.get(1).and_then(Dim::as_const).is_some_and(|c| c % block as i64 == 0)
}

/// A tensor of floats, or of what was compared of them, with a known number of channels.
fn has_channels(t: &Type) -> bool {
    t.rank() >= 2 && is_lane(t) && t.shape[1].as_const().is_some_and(|c| c > 0)
}

fn is_lane(t: &Type) -> bool {
    matches!(t.dtype, DType::F32 | DType::Bool)
}

/// Operands that follow the layout of a node that can work on blocks.
fn flexible(graph: &Graph, node: &Node, block: usize) -> Option<Vec<usize>> {
    let y = node.types.first().filter(|y| node.types.len() == 1 && has_channels(y))?;
    let x: Vec<&Type> = node.operands.iter().map(|v| graph.ty(*v)).collect();
    let b = block as i64;
    let whole_blocks = |d: &Dim| d.as_const().is_some_and(|d| d % b == 0);
    match &node.op {
        Op::Map(f) => {
            // What fills the last block must stay finite: later weights multiply it by zero.
            let number = |t: &Tensor| (t.elems() == 1 || t.splat_element().is_some()) && t.num(0).as_f64().abs() >= 1.0;
            let shrinks = *f == ScalarFn::Div && graph.constant(node.operands[1]).is_some_and(number);
            let safe = whole(y, block) || stays_finite(&Act::Fn(*f)) || shrinks || y.dtype == DType::Bool;
            let fits = |t: &Type| is_lane(t) && lies_in_blocks(t, y);
            let blocks: Vec<usize> = (0..x.len()).filter(|k| follows(x[*k], y)).collect();
            (safe && !blocks.is_empty() && x.iter().all(|t| fits(t))).then_some(blocks)
        }
        Op::Barrier(_) => has_channels(x[0]).then(|| vec![0]),
        Op::Activation(a) => (whole(y, block) || stays_finite(&a.act)).then(|| vec![0]),
        Op::Pool(p) => (p.block == 0 && !p.indices && has_channels(x[0])).then(|| vec![0]),
        Op::Concat(c) => {
            let blocks = c.axis != 1 || x.iter().all(|t| whole_blocks(&t.shape[1]));
            (y.rank() > 2 && blocks).then(|| (0..x.len()).collect())
        }
        Op::Interleave(i) => (y.rank() > 2 && i.steps[..2] == [1, 1]).then(|| (0..x.len()).collect()),
        Op::Pad(p) => (y.rank() > 2 && p.lo[1].is(0) && p.hi[1].is(0)).then(|| vec![0]),
        Op::Slice(s) => {
            let all = s.starts[1].is(0) && s.sizes[1] == x[0].shape[1] && s.step(1) == 1;
            let blocks = whole_blocks(&s.starts[1]) && whole_blocks(&s.sizes[1]) && s.step(1) == 1 && whole(x[0], block);
            (y.rank() > 2 && (all || blocks)).then(|| vec![0])
        }
        Op::Gather(g) => (g.axis >= 2 && x[1].rank() == 1 && has_channels(x[0])).then(|| vec![0]),
        Op::Reduce(r) => (has_channels(x[0]) && r.axes.iter().all(|a| *a >= 2)).then(|| vec![0]),
        _ => None,
    }
}

/// Whether an operand of a map with result `y` can be read when `y` is in blocks: it has all channels, or the same for all.
fn lies_in_blocks(t: &Type, y: &Type) -> bool {
    let skip = y.rank() - t.rank();
    skip >= 2 || t.shape[1 - skip].is(1) || t.shape[1 - skip] == y.shape[1]
}

/// Whether an operand of a map with result `y` is read in blocks: the others are the same for all channels.
fn follows(t: &Type, y: &Type) -> bool {
    let skip = y.rank() - t.rank();
    skip == 0 && t.shape[1] == y.shape[1] && !y.shape[1].is(1)
}

/// Whether finite operands give a finite result.
fn stays_finite(act: &Act) -> bool {
    use ScalarFn::*;
    match act {
        Act::Fn(f) => matches!(
            f,
            Neg | Abs | Sign | Relu | Sin | Cos | Atan | Tanh | Erf | Sigmoid | Floor | Ceil | Round | Trunc | Add | Sub | Mul | Max | Min | Where
        ),
        Act::Elu { .. } | Act::Selu { .. } | Act::Celu { .. } => false,
        _ => true,
    }
}
