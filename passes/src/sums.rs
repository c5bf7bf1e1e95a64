//! Products that a scan adds up become one product behind it.
//!
//! The gradient of weights that every step of a recurrent network shares is a state to which each iteration adds a product. Its factors, stacked,
//! are the factors of one product whose inner dimension is the steps': more work at once, and no sum that goes through memory at every step.
//! The sum is taken in another order, by the kernel. One factor must be stacked already, and rows of the other be no more than [`MOST`] times
//! as large, which bounds what memory grows by.

use crate::pass::{Context, Precision};
use crate::rebuild::{self, Rebuild};
use nnc_ir::graph::Output;
use nnc_ir::ops::contract::MatMul;
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::movement::{Reshape, Transpose};
use nnc_ir::{Dim, Graph, Loc, Node, NodeId, Op, Report, Result, ScalarFn, Type, Value};
use std::sync::Arc;

/// How often a row of a factor that is stacked fits into a row that is stacked beside it.
const MOST: i64 = 8;

/// Takes sums of products out of all scans of the graph.
pub fn run(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    if cx.options.precision == Precision::Exact || !graph.ids().any(|id| !plan(graph.node(id)).is_empty()) {
        return Ok(graph);
    }
    let mut r = Rebuild::new(&graph);
    for id in r.order() {
        let sums = plan(graph.node(id));
        if sums.is_empty() {
            r.keep(id);
        } else {
            let loc = &graph.node(id).loc;
            let values = take_out(&mut r, id, &sums).map_err(|e| e.at(loc))?;
            r.set(id, values);
        }
    }
    Ok(r.finish())
}

/// A state that only adds products up.
struct Sum {
    state: usize,
    left: Factor,
    right: Factor,
}

/// A factor of a product: a value of the body, read as it is or with its axes swapped.
#[derive(Clone, Copy)]
struct Factor {
    value: Value,
    swapped: bool,
}

/// Where the rows of a value are.
enum Rows {
    /// In an operand of the scan.
    Operand(usize),
    /// In a result of it.
    Result(usize),
    /// Nowhere yet.
    Nowhere,
}

/// The sums that leave a node; none where it is no scan.
fn plan(node: &Node) -> Vec<Sum> {
    let (Op::Scan(op), [body]) = (&node.op, &node.regions[..]) else { return vec![] };
    (0..op.states).filter_map(|state| sum(node, op, body, state)).collect()
}

fn sum(node: &Node, op: &Scan, body: &Graph, state: usize) -> Option<Sum> {
    let before = Value { node: body.inputs[state], port: 0 };
    let after = body.outputs[state].value;
    let Node { op: Op::Map(ScalarFn::Add), operands, .. } = body.node(after.node) else { return None };
    let product = match operands[..] {
        [a, b] if a == before && b != before => b,
        [a, b] if b == before && a != before => a,
        _ => return None,
    };
    let alone = body.uses(before).len() == 1 && body.uses(after).is_empty() && body.outputs.iter().filter(|o| o.value == after).count() == 1;
    let Node { op: Op::MatMul(m), operands, types, .. } = body.node(product.node) else { return None };
    let plain = m.post.is_empty() && !m.is_packed() && types[0].rank() == 2 && types[0] == *body.ty(before) && types[0] == node.types[state];
    if !alone || body.is_output(before) || !plain {
        return None;
    }
    let left = factor(body, operands[0], false);
    let right = factor(body, operands[1], m.transposed);
    let row = |f: Factor| {
        let elems = body.ty(f.value).elems().as_const().filter(|_| body.ty(f.value).rank() == 2)?;
        Some((elems, matches!(rows(op, body, f.value)?, Rows::Nowhere)))
    };
    let fits = match (row(left)?, row(right)?) {
        ((_, true), (_, true)) => false,
        ((new, true), (old, false)) | ((old, false), (new, true)) => new <= old.saturating_mul(MOST),
        ((_, false), (_, false)) => true,
    };
    fits.then_some(Sum { state, left, right })
}

/// What is behind a transposition.
fn factor(body: &Graph, value: Value, swapped: bool) -> Factor {
    match body.node(value.node) {
        Node { op: Op::Transpose(t), operands, .. } if t.perm == [1, 0] => Factor { value: operands[0], swapped: !swapped },
        _ => Factor { value, swapped },
    }
}

/// Where the rows of a value of the body are; `None` where it is the same in all iterations.
fn rows(op: &Scan, body: &Graph, value: Value) -> Option<Rows> {
    if let Some(k) = body.inputs.iter().position(|id| *id == value.node) {
        if k >= op.states + op.scanned {
            return None;
        }
        if k >= op.states {
            return Some(Rows::Operand(k));
        }
    }
    if matches!(body.node(value.node).op, Op::Const(_)) {
        return None;
    }
    let result = body.outputs.iter().enumerate().skip(op.states).find(|(_, o)| o.value == value);
    Some(result.map_or(Rows::Nowhere, |(k, _)| Rows::Result(k)))
}

/// The scan without its sums, and these behind it: values for all of its results.
fn take_out(r: &mut Rebuild, id: NodeId, sums: &[Sum]) -> Result<Vec<Value>> {
    let mut node = r.mapped(id);
    let Op::Scan(op) = node.op.clone() else { return Err(nnc_ir::Error::internal("not a scan")) };
    let trips = r.new.ty(node.operands[op.states]).shape[0].clone();
    let body = &mut node.regions[0];
    for f in sums.iter().flat_map(|s| [s.left, s.right]) {
        if let Some(Rows::Nowhere) = rows(&op, body, f.value) {
            let ty = body.ty(f.value);
            node.types.push(ty.with_shape(std::iter::once(trips.clone()).chain(ty.shape.iter().cloned()).collect()));
            body.outputs.push(Output { name: "".into(), value: f.value });
        }
    }
    // Which operand or result, before any state goes.
    let found: Vec<[Option<Rows>; 2]> = sums.iter().map(|s| [s.left, s.right].map(|f| rows(&op, body, f.value))).collect();
    let operands = node.operands.clone();
    let gone = |k: usize| sums.iter().any(|s| s.state == k);
    let left_of = |k: usize| k - sums.iter().filter(|s| s.state < k).count();
    for s in sums.iter().rev() {
        let old = body.inputs.remove(s.state);
        body.outputs.remove(s.state);
        node.operands.remove(s.state);
        node.types.remove(s.state);
        // The addition goes with the state.
        let adds: Vec<NodeId> = body.users(old);
        adds.into_iter().chain([old]).for_each(|id| body.remove(id));
    }
    node.op = Op::Scan(Scan { states: op.states - sums.len(), ..op });
    let (name, loc) = (node.name.clone(), node.loc.clone());
    let results = r.old.node(id).types.len();
    let scan = r.new.add(node);
    let mut build = Outside { graph: &mut r.new, name, loc };
    let mut values = vec![];
    for k in 0..results {
        if !gone(k) {
            values.push(Value { node: scan, port: left_of(k) as u32 });
            continue;
        }
        let at = sums.iter().position(|s| s.state == k).unwrap_or_default();
        let mut stacks = vec![];
        for rows in &found[at] {
            stacks.push(match rows {
                Some(Rows::Operand(k)) => operands[*k],
                Some(Rows::Result(k)) => Value { node: scan, port: left_of(*k) as u32 },
                _ => return Err(nnc_ir::Error::internal("a factor without rows")),
            });
        }
        let left = build.matrix(stacks[0], sums[at].left.swapped, true)?;
        let right = build.matrix(stacks[1], sums[at].right.swapped, false)?;
        let product = build.op(Op::MatMul(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }), vec![left, right])?;
        let zero = build.graph.constant(operands[k]).and_then(|t| t.splat_element().map(|_| t.num(0).as_f64())) == Some(0.0);
        values.push(if zero { product } else { build.op(Op::Map(ScalarFn::Add), vec![operands[k], product])? });
    }
    Ok(values)
}

/// Operations behind a scan.
struct Outside<'a> {
    graph: &'a mut Graph,
    name: Arc<str>,
    loc: Loc,
}

impl Outside<'_> {
    fn op(&mut self, op: Op, operands: Vec<Value>) -> Result<Value> {
        rebuild::infer(self.graph, op, operands, self.name.clone(), self.loc.clone())
    }

    /// Stacked factors as one, of which the steps are part of the inner dimension: the last one of a left factor, the first of a right one.
    fn matrix(&mut self, stack: Value, swapped: bool, left: bool) -> Result<Value> {
        let ty: Type = self.graph.ty(stack).clone();
        let [steps, rows, columns] = &ty.shape[..] else { return Err(nnc_ir::Error::internal("a factor that is no matrix")) };
        let flat = |a: &Dim, b: &Dim| Op::Reshape(Reshape { shape: vec![a.clone(), b.clone()] });
        let swap = |perm: &[usize]| Op::Transpose(Transpose { perm: perm.to_vec() });
        // The inner dimension is the factor's own first or last.
        match (left, swapped) {
            // Inner dimension first: rows of all steps follow each other already.
            (true, true) | (false, false) => {
                let all = self.op(flat(&(steps.clone() * rows.clone()), columns), vec![stack])?;
                if left { self.op(swap(&[1, 0]), vec![all]) } else { Ok(all) }
            }
            (true, false) => {
                let moved = self.op(swap(&[1, 0, 2]), vec![stack])?;
                self.op(flat(rows, &(steps.clone() * columns.clone())), vec![moved])
            }
            (false, true) => {
                let moved = self.op(swap(&[0, 2, 1]), vec![stack])?;
                self.op(flat(&(steps.clone() * columns.clone()), rows), vec![moved])
            }
        }
    }
}
