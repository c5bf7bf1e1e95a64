//! What a loop's body makes of captured values alone, by moving elements about, is made once, before the loop.
//!
//! The layout pass puts weights into panels where it meets them, which is in the body; from there they rise to where they are
//! constants, loop by loop. Captures that nothing in the body reads any more go.

use crate::pass::Context;
use crate::rebuild::Rebuild;
use nnc_ir::ops::Class;
use nnc_ir::{Graph, Node, Op, Report, Value};
use std::collections::BTreeMap;

/// Moves invariants out of all loops of the graph; the bodies have been visited before, so that inner loops have given theirs.
pub fn run(graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    if !graph.ids().any(|id| captured(&graph.node(id).op).is_some()) {
        return Ok(graph);
    }
    let mut r = Rebuild::new(&graph);
    for id in r.order() {
        let mut node = r.mapped(id);
        if let Some(given) = captured(&node.op) {
            hoist(&mut r.new, &mut node, given);
        }
        r.put(id, node);
    }
    Ok(r.finish())
}

/// For loops: how many of a node's operands come before the captures.
pub fn captured(op: &Op) -> Option<usize> {
    match op {
        Op::Loop(l) => Some(2 + l.carried),
        Op::Scan(s) => Some(s.states + s.scanned),
        _ => None,
    }
}

/// For each node of a body whose last `captures` inputs are captured, whether it follows from these and `constant`s by moving elements
/// about.
pub fn invariants(body: &Graph, captures: usize, constant: &[bool]) -> Vec<bool> {
    let mut out = constant.to_vec();
    let first = body.inputs.len().saturating_sub(captures);
    body.inputs[first..].iter().for_each(|id| out[id.0 as usize] = body.node(*id).types[0].const_shape().is_some());
    for id in body.order() {
        let node = body.node(id);
        let moves = node.op.class() == Some(Class::Move) && !matches!(node.op, Op::Expand(_));
        let known = node.types.iter().all(|t| t.const_shape().is_some());
        out[id.0 as usize] |= moves && known && node.operands.iter().all(|v| out[v.node.0 as usize]);
    }
    out
}

/// Moves the invariants of the loop `node`, whose first `given` operands are no captures, to `outside`.
fn hoist(outside: &mut Graph, node: &mut Node, given: usize) {
    let Node { operands, regions, .. } = node;
    let [body] = &mut regions[..] else { return };
    let captures = operands.len().saturating_sub(given);
    let constant = constants(body);
    let fixed = invariants(body, captures, &constant);
    // Where values of the body are outside.
    let mut risen: BTreeMap<Value, Value> = BTreeMap::new();
    for (id, v) in body.inputs[body.inputs.len() - captures..].iter().zip(&operands[given..]) {
        // A type that the body writes otherwise is of other symbols.
        if body.node(*id).types[0] == *outside.ty(*v) {
            risen.insert(Value { node: *id, port: 0 }, *v);
        }
    }
    let mut moved = vec![];
    for id in body.order() {
        let inner = body.node(id);
        if !fixed[id.0 as usize] || constant[id.0 as usize] || matches!(inner.op, Op::Input) {
            continue;
        }
        for v in inner.operands.iter().filter(|v| constant[v.node.0 as usize]) {
            risen.entry(*v).or_insert_with(|| Value { node: outside.add(body.node(v.node).clone()), port: v.port });
        }
        let Some(args) = inner.operands.iter().map(|v| risen.get(v).copied()).collect::<Option<Vec<_>>>() else { continue };
        let copy = outside.add(Node { operands: args, ..inner.clone() });
        risen.extend((0..inner.types.len() as u32).map(|port| (Value { node: id, port }, Value { node: copy, port })));
        moved.push(id);
    }
    moved.sort();
    // What the body still reads of them enters as captures.
    for id in &moved {
        for port in 0..body.node(*id).types.len() as u32 {
            let old = Value { node: *id, port };
            if body.is_output(old) || body.uses(old).iter().any(|(user, _)| moved.binary_search(user).is_err()) {
                let Node { types, known, name, loc, .. } = body.node(*id).clone();
                let (types, known) = (vec![types[port as usize].clone()], known.get(port as usize).cloned().into_iter().collect());
                let input = body.add(Node { op: Op::Input, operands: vec![], types, known, regions: vec![], name, loc });
                body.replace(old, Value { node: input, port: 0 });
                operands.push(risen[&old]);
            }
        }
    }
    drop_unread(node, given);
}

/// The constants of a body, by id.
fn constants(body: &Graph) -> Vec<bool> {
    let mut out = vec![false; body.id_bound()];
    body.ids().for_each(|id| out[id.0 as usize] = matches!(body.node(id).op, Op::Const(_)));
    out
}

/// Leaves out nodes of the body that nothing reads, and captures that only these did.
fn drop_unread(node: &mut Node, given: usize) {
    let Node { operands, regions, .. } = node;
    let [body] = &mut regions[..] else { return };
    let mut r = Rebuild::new(body);
    for id in r.order() {
        r.keep(id);
    }
    *body = r.finish();
    for k in (given..operands.len()).rev() {
        let input = body.inputs[body.inputs.len() + k - operands.len()];
        let read = !body.users(input).is_empty() || body.is_output(Value { node: input, port: 0 });
        // Sizes of the body may be read off the types of its inputs.
        if !read && body.node(input).types[0].const_shape().is_some() {
            body.remove(input);
            operands.remove(k);
        }
    }
}
