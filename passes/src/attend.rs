//! Attention is recognised: a product of queries and keys, softmax, a product with values. One kernel then makes the result block by
//! block, and the matrix of scores is never in memory.
//!
//! Runs when epilogues have been fused: scale and mask stand behind the first product. Only where the target has such a kernel; products
//! that are left alone are put into panels by the layout pass.

use crate::pass::Context;
use crate::rebuild::{self, Rebuild};
use nnc_ir::attrs::Real;
use nnc_ir::ops::composite::attention::Attention;
use nnc_ir::ops::contract::{MatMul, Post};
use nnc_ir::ops::movement::{Reshape, Transpose};
use nnc_ir::{Dim, Graph, NodeId, Op, Report, Result, ScalarFn, Target, Type, Value};

/// The longest rows of keys and of values that a kernel takes: its blocks of both fit the first-level cache.
pub const MAX_ROW: i64 = 128;

/// Queries that are worth a kernel whose lanes are queries; fewer go by products of rows.
const MIN_QUERIES: i64 = 12;

/// Whether attention on operands of these types is one kernel on the target.
pub fn keeps(x: &[Type], target: &Target) -> bool {
    target.block > 1 && Attention::is_regular(x)
}

/// Puts attention in the place of the products that it is spelled by.
pub fn run(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    if cx.target.block == 1 || !graph.ids().any(|id| matches!(graph.node(id).op, Op::Softmax(_))) {
        return Ok(graph);
    }
    let (mut readers, live) = (vec![0u32; graph.id_bound()], graph.live());
    let read = graph.ids().filter(|id| live[id.0 as usize]).flat_map(|id| graph.node(id).operands.iter().map(|v| v.node));
    read.chain(graph.outputs.iter().map(|o| o.value.node)).for_each(|id| readers[id.0 as usize] += 1);
    let mut r = Rebuild::new(&graph);
    for id in r.order() {
        match Found::at(&graph, id, &readers).filter(|f| f.pays(&graph, cx.target)) {
            Some(found) => {
                let y = found.emit(&mut r, id).map_err(|e| e.at(&graph.node(id).loc))?;
                r.set(id, vec![y]);
            }
            None => {
                r.keep(id);
            }
        }
    }
    Ok(r.finish())
}

/// What attention is made of.
struct Found {
    q: Value,
    k: Value,
    v: Value,
    scale: f64,
    mask: Option<Value>,
}

/// The product that a value is, if nothing but one node reads it.
fn product<'g>(graph: &'g Graph, v: Value, readers: &[u32]) -> Option<(&'g MatMul, &'g [Value])> {
    let node = graph.node(v.node);
    match &node.op {
        Op::MatMul(m) if readers[v.node.0 as usize] == 1 && m.transposed && !m.is_packed() => Some((m, &node.operands)),
        _ => None,
    }
}

/// The number that every element of a constant is.
fn uniform(graph: &Graph, mut v: Value) -> Option<f64> {
    while let Op::Expand(_) | Op::Reshape(_) = graph.node(v.node).op {
        v = graph.node(v.node).operands[0];
    }
    let t = graph.constant(v)?;
    let values = t.to_f64s();
    values.first().copied().filter(|first| values.iter().all(|x| x == first))
}

impl Found {
    fn at(graph: &Graph, id: NodeId, readers: &[u32]) -> Option<Found> {
        let node = graph.node(id);
        let Op::MatMul(m) = &node.op else { return None };
        if m.transposed || m.is_packed() || !m.post.is_empty() {
            return None;
        }
        let [shares, v] = node.operands[..] else { return None };
        let softmax = graph.node(shares.node);
        let Op::Softmax(s) = &softmax.op else { return None };
        if readers[shares.node.0 as usize] != 1 || s.axis + 1 != graph.ty(shares).rank() {
            return None;
        }
        let scores = softmax.operands[0];
        let sum = graph.node(scores.node);
        // A mask of fewer axes than the scores is added by a node of its own.
        let (at, added) = match (&sum.op, &sum.operands[..]) {
            (Op::Map(ScalarFn::Add), [a, b]) if readers[scores.node.0 as usize] == 1 => match product(graph, *a, readers) {
                Some(_) => (*a, Some(*b)),
                None => (*b, Some(*a)),
            },
            _ => (scores, None),
        };
        let (m, operands) = product(graph, at, readers)?;
        let (q, k) = (operands[0], operands[1]);
        let (scale, mask) = match (&m.post[..], &operands[2..], added) {
            ([], [], mask) => (1.0, mask),
            ([Post::Scale], [s], mask) => (uniform(graph, *s)?, mask),
            ([Post::Add], [mask], None) => (1.0, Some(*mask)),
            ([Post::Scale, Post::Add], [s, mask], None) => (uniform(graph, *s)?, Some(*mask)),
            _ => return None,
        };
        Some(Found { q, k, v, scale, mask })
    }

    /// The mask's shape with as many axes as the scores have, keys first.
    fn mask_shape(&self, graph: &Graph) -> Option<Vec<Dim>> {
        let n = graph.ty(self.q).rank();
        let own = &graph.ty(self.mask?).shape;
        let mut shape = vec![Dim::Const(1); n.checked_sub(own.len())?];
        shape.extend(own.iter().cloned());
        if n >= 2 {
            shape.swap(n - 1, n - 2);
        }
        Some(shape)
    }

    /// Whether the target's kernel takes these operands, and is better than products.
    fn pays(&self, graph: &Graph, target: &Target) -> bool {
        let mut x: Vec<Type> = [self.q, self.k, self.v].map(|v| graph.ty(v).clone()).to_vec();
        if let Some(mask) = self.mask {
            let Some(shape) = self.mask_shape(graph) else { return false };
            x.push(graph.ty(mask).with_shape(shape));
        }
        let row = |t: &Type| t.shape.last().and_then(Dim::as_const).is_some_and(|n| n > 0 && n <= MAX_ROW && n % target.block as i64 == 0);
        let few = |d: &Dim, least: i64| d.as_const().is_some_and(|n| n < least);
        keeps(&x, target) && row(&x[0]) && row(&x[2]) && {
            let n = x[0].rank();
            !few(&x[0].shape[n - 2], MIN_QUERIES) && !few(&x[1].shape[n - 2], 1) && x[0].shape[..n - 2].iter().all(|d| !d.is(0))
        }
    }

    fn emit(&self, r: &mut Rebuild, id: NodeId) -> Result<Value> {
        let (name, loc) = (r.old.node(id).name.clone(), r.old.node(id).loc.clone());
        let mut x = [self.q, self.k, self.v].map(|v| r.get(v)).to_vec();
        if let Some((mask, shape)) = self.mask.zip(self.mask_shape(r.old)) {
            let (mut y, n) = (r.get(mask), shape.len());
            let turned: Vec<usize> = (0..n - 2).chain([n - 1, n - 2]).collect();
            let mut own = shape.clone();
            own.swap(n - 1, n - 2);
            let mut derive = |op: Op, x: Value| rebuild::infer(&mut r.new, op, vec![x], "".into(), loc.clone());
            y = derive(Reshape { shape: own }.into(), y)?;
            x.push(derive(Transpose { perm: turned }.into(), y)?);
        }
        rebuild::infer(&mut r.new, Attention { scale: Real(self.scale) }.into(), x, name, loc)
    }
}
