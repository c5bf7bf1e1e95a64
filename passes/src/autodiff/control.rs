//! Gradients of control flow: regions that go backwards. The forward operation is made to keep the state that each iteration begins with
//! and what the way back reads of its values; what only moves elements is done again, and so is everything in branches and where sizes
//! follow from data. A value that is the next iteration's state is kept once: the way back carries it along. Where activations are kept
//! every few layers only, states are all that is kept.

use super::rules::{At, Shares};
use super::slip::Slip;
use super::{pull_back, zero_like};
use nnc_ir::error::{Report, Result};
use nnc_ir::graph::Output;
use nnc_ir::ops::Class;
use nnc_ir::ops::control::{Loop, Scan};
use nnc_ir::ops::reduce::{Cumulate, ReduceKind};
use nnc_ir::ops::source::Iota;
use nnc_ir::{Builder, Graph, Node, NodeId, Op, Type, V, Value};
use std::collections::{BTreeMap, BTreeSet};

/// One error of a region stands for all: the walk goes on with none.
fn first(report: Report) -> nnc_ir::Error {
    report.0.into_iter().next().unwrap_or_else(|| nnc_ir::Error::internal("an empty report"))
}

fn input_type(region: &Graph, k: usize) -> Type {
    region.node(region.inputs[k]).types[0].clone()
}

fn output_type(region: &Graph, k: usize) -> Type {
    region.ty(region.outputs[k].value).clone()
}

/// The region with further results: the inputs `kept`, then `values`.
fn keeping(region: &Graph, kept: std::ops::Range<usize>, values: &[Value]) -> Graph {
    let mut region = region.clone();
    let inputs: Vec<Value> = region.inputs[kept].iter().map(|node| Value { node: *node, port: 0 }).collect();
    region.outputs.extend(inputs.into_iter().chain(values.iter().copied()).map(|value| Output { name: "".into(), value }));
    region
}

/// All that the region computes, in order; nothing where it binds sizes, for what has these is no row of a tensor.
fn computed(region: &Graph) -> Vec<Value> {
    let order = region.order();
    if order.iter().any(|id| region.node(*id).is_binder() || !region.node(*id).regions.is_empty()) {
        return vec![];
    }
    let ports = |id: &NodeId| (0..region.node(*id).types.len() as u32).map(|port| Value { node: *id, port }).collect::<Vec<_>>();
    order.iter().filter(|id| !matches!(region.node(**id).op, Op::Input | Op::Const(_))).flat_map(ports).collect()
}

/// Results of a node that stands in the place of the one at hand.
fn replace<'g>(at: &At<'_, 'g>, y: &[V<'g>]) {
    y[0].named(&at.node.name);
    at.replaced.borrow_mut().extend(at.y.iter().zip(y).map(|(old, new)| (old.value(), new.value())));
}

/// A region that computes `body` again and pulls cotangents back through it.
struct Backward<'a> {
    body: &'a Graph,
    b: Builder,
    slip: Option<&'a Slip>,
}

impl<'a> Backward<'a> {
    fn new(at: &At<'a, '_>, body: &'a Graph) -> Backward<'a> {
        Backward { body, b: at.b.nested("backward"), slip: at.slip }
    }

    fn input(&self, ty: Type) -> V<'_> {
        self.b.input("", ty)
    }

    /// The body's results for `args`.
    fn there<'g>(&'g self, args: &[V<'g>]) -> Vec<V<'g>> {
        self.b.inline(self.body, args)
    }

    /// Cotangents of the body's inputs `wrt`, which stand at `args`, from those of its results `y`; zero where there is none.
    fn pull<'g>(&'g self, args: &[V<'g>], y: &[V<'g>], seeds: &[(usize, V<'g>)], wrt: &[usize]) -> Result<(Vec<V<'g>>, super::Replaced)> {
        let seeds: Vec<(Value, V)> = seeds.iter().map(|(k, g)| (y[*k].value(), *g)).collect();
        let at: Vec<Value> = wrt.iter().map(|k| args[*k].value()).collect();
        let (found, replaced) = pull_back(&self.b, &seeds, &at, 0, self.slip)?;
        Ok((found.into_iter().zip(wrt).map(|(d, k)| d.unwrap_or_else(|| zero_like(args[*k]))).collect(), replaced))
    }

    fn finish(self, replaced: super::Replaced) -> Result<Graph> {
        let mut graph = self.b.finish().map_err(first)?;
        graph.replace_all(&replaced);
        Ok(graph)
    }
}

pub fn branch<'g>(at: &At<'_, 'g>) -> Shares<'g> {
    let wanted: Vec<usize> = (1..at.x.len()).filter(|k| at.needs[*k]).collect();
    let seeds: Vec<(usize, V<'g>)> = at.g.iter().enumerate().filter_map(|(k, g)| Some((k, (*g)?))).collect();
    let regions = at.node.regions.iter().map(|body| {
        let back = Backward::new(at, body);
        let replaced = {
            let args: Vec<V> = (0..body.inputs.len()).map(|k| back.input(input_type(body, k))).collect();
            let given: Vec<(usize, V)> = seeds.iter().map(|(k, _)| (*k, back.input(output_type(body, *k)))).collect();
            let (d, replaced) = back.pull(&args, &back.there(&args), &given, &wanted.iter().map(|k| k - 1).collect::<Vec<_>>())?;
            d.into_iter().for_each(|v| back.b.output("", v));
            replaced
        };
        back.finish(replaced)
    });
    let regions = regions.collect::<Result<Vec<Graph>>>()?;
    let operands: Vec<V> = at.x.iter().copied().chain(seeds.iter().map(|(_, g)| *g)).collect();
    let d = at.b.op_all(at.node.op.clone(), &operands, regions);
    let mut out = vec![None; at.x.len()];
    wanted.iter().zip(d).for_each(|(k, v)| out[*k] = Some(v));
    Ok(out)
}

/// What a loop and a scan have in common on the way back.
struct Iteration<'a> {
    body: &'a Graph,
    /// Leading results of the body that are neither states nor collected (the condition of a loop).
    skip: usize,
    /// The body's inputs by role: what is scanned beside the states comes before them (a loop's counter) or behind.
    states: std::ops::Range<usize>,
    scanned: Vec<usize>,
    captures: std::ops::Range<usize>,
    /// Which of the body's inputs are differentiated by, beside the states.
    wanted: Vec<usize>,
    reverse: bool,
}

/// The body of the way back, and what it asks of the way there.
struct WayBack {
    region: Graph,
    /// Inputs of the body by which is differentiated: floating states, captures, scanned ones.
    states: Vec<usize>,
    shared: Vec<usize>,
    sliced: Vec<usize>,
    /// Results of the node that are collected and have a cotangent.
    collected: Vec<usize>,
    /// States (counted from 0) of which it reads what they are after the iteration.
    after: Vec<usize>,
    /// Other values of the body that it reads.
    saved: Vec<Value>,
}

/// Tensors of the graph around: operands, and results of the way there.
struct Around<'g> {
    /// Final states.
    last: Vec<V<'g>>,
    /// Rows: of each state before the iteration, of what the body scans, of what the way back reads.
    kept: Vec<V<'g>>,
    along: Vec<V<'g>>,
    saved: Vec<V<'g>>,
    /// The captures' values.
    seen: Vec<V<'g>>,
}

impl<'a> Iteration<'a> {
    fn way_back(&self, at: &At<'a, '_>) -> Result<WayBack> {
        let body = self.body;
        let n = self.states.len();
        let states: Vec<usize> = self.states.clone().filter(|k| input_type(body, *k).dtype.is_float()).collect();
        let shared: Vec<usize> = self.wanted.iter().copied().filter(|k| self.captures.contains(k)).collect();
        let sliced: Vec<usize> = self.wanted.iter().copied().filter(|k| self.scanned.contains(k)).collect();
        let collected: Vec<usize> = (n..at.g.len()).filter(|k| at.g[*k].is_some()).collect();

        let values = if at.sparing { vec![] } else { computed(body) };
        let exposed = keeping(body, 0..0, &values);
        let back = Backward::new(at, &exposed);
        let (replaced, copies, first) = {
            let d_states: Vec<V> = states.iter().map(|k| back.input(input_type(body, *k))).collect();
            let d_shared: Vec<V> = shared.iter().map(|k| back.input(input_type(body, *k))).collect();
            let mut args: Vec<Option<V>> = vec![None; body.inputs.len()];
            for k in self.states.clone().chain(self.scanned.iter().copied()) {
                args[k] = Some(back.input(input_type(body, k)));
            }
            let d_collected: Vec<V> = collected.iter().map(|k| back.input(output_type(body, self.skip + k))).collect();
            for k in self.captures.clone() {
                args[k] = Some(back.input(input_type(body, k)));
            }
            let args: Vec<V> = args.into_iter().flatten().collect();
            let seeds = states.iter().zip(&d_states).map(|(k, g)| (self.skip + k - self.states.start, *g));
            let seeds: Vec<(usize, V)> = seeds.chain(collected.iter().zip(&d_collected).map(|(k, g)| (self.skip + k, *g))).collect();
            let wrt: Vec<usize> = [&states[..], &shared, &sliced].concat();
            let y = back.there(&args);
            let first = back.b.with_graph(Graph::id_bound);
            let (mut d, replaced) = back.pull(&args, &y, &seeds, &wrt)?;
            for (v, sum) in d[states.len()..].iter_mut().zip(&d_shared) {
                *v = *sum + *v;
            }
            d.into_iter().for_each(|v| back.b.output("", v));
            (replaced, y[body.outputs.len()..].iter().map(|v| v.value()).collect::<Vec<_>>(), first)
        };
        let mut region = back.finish(replaced)?;

        // What is read of the way there becomes an input.
        let (mut after, mut saved, mut later, mut rows) = (vec![], vec![], vec![], vec![]);
        let original: BTreeMap<Value, Value> = copies.into_iter().zip(values).collect();
        for v in read(&region, first, &original) {
            let value = original[&v];
            let is_state = |k: &usize| {
                let next = body.outputs[self.skip + k].value;
                next == value && *body.ty(next) == input_type(body, self.states.start + k)
            };
            let state = (0..n).find(is_state);
            let ty = vec![region.ty(v).clone()];
            let loc = at.node.loc.clone();
            let input = region.add(Node { op: Op::Input, operands: vec![], types: ty, known: vec![], regions: vec![], name: "".into(), loc });
            region.replace(v, Value { node: input, port: 0 });
            match state {
                Some(k) => (after.push(k), later.push(input)),
                None => (saved.push(value), rows.push(input)),
            };
        }
        let (carried, scanned) = (states.len() + shared.len(), n + self.scanned.len() + collected.len());
        let given = region.inputs[..carried + scanned + self.captures.len()].to_vec();
        let (heads, rest) = given.split_at(carried);
        let (lanes, captures) = rest.split_at(scanned);
        region.inputs = [heads, &later, lanes, &rows, captures].concat();
        // What a state was before the iteration is what it is after the one before.
        let before = after.iter().map(|k| Output { name: "".into(), value: Value { node: lanes[*k], port: 0 } });
        region.outputs.splice(carried..carried, before);
        Ok(WayBack { region, states, shared, sliced, collected, after, saved })
    }

    /// Cotangents of the body's inputs, of each scanned one stacked.
    fn backward<'g>(&self, at: &At<'a, 'g>, back: WayBack, around: &Around<'g>) -> Vec<Option<V<'g>>> {
        let mut operands: Vec<V<'g>> = vec![];
        for k in &back.states {
            let last = k - self.states.start;
            operands.push(at.g[last].unwrap_or_else(|| zero_like(at.y[last])));
        }
        operands.extend(back.shared.iter().map(|k| zero_like(around.seen[k - self.captures.start])));
        operands.extend(back.after.iter().map(|k| around.last[*k]));
        let states = operands.len();
        operands.extend(around.kept.iter().chain(&around.along).copied());
        operands.extend(back.collected.iter().filter_map(|k| at.g[*k]));
        operands.extend(&around.saved);
        let op = Scan { states, scanned: operands.len() - states, reverse: !self.reverse };
        operands.extend(&around.seen);
        let d = at.b.op_all(op, &operands, vec![back.region]);
        let mut out = vec![None; self.body.inputs.len()];
        let carried = back.states.len() + back.shared.len();
        back.states.iter().chain(&back.shared).zip(&d).for_each(|(k, v)| out[*k] = Some(*v));
        back.sliced.iter().zip(&d[carried + back.after.len()..]).for_each(|(k, v)| out[*k] = Some(*v));
        out
    }
}

/// What nodes from `first` on read of `copies`, which stand before it. What only moves elements, and random numbers, which are cheaper to
/// draw than to keep, are computed again.
fn read(region: &Graph, first: usize, copies: &BTreeMap<Value, Value>) -> Vec<Value> {
    let behind = region.ids().filter(|id| id.0 as usize >= first).flat_map(|id| region.node(id).operands.clone());
    let mut todo: Vec<Value> = behind.chain(region.outputs.iter().map(|o| o.value)).collect();
    let (mut seen, mut out) = (BTreeSet::new(), BTreeSet::new());
    while let Some(v) = todo.pop() {
        if !copies.contains_key(&v) || !seen.insert(v) {
            continue;
        }
        let node = region.node(v.node);
        if matches!(node.op.class(), Some(Class::Move | Class::Source)) || matches!(node.op, Op::Random(_)) {
            todo.extend(&node.operands);
        } else {
            out.insert(v);
        }
    }
    out.into_iter().collect()
}

pub fn scan<'g>(op: &Scan, at: &At<'_, 'g>) -> Shares<'g> {
    let (s, n, body) = (op.states, op.scanned, &at.node.regions[0]);
    let iteration = Iteration {
        body,
        skip: 0,
        states: 0..s,
        scanned: (s..s + n).collect(),
        captures: s + n..at.x.len(),
        wanted: (s..at.x.len()).filter(|k| at.needs[*k]).collect(),
        reverse: op.reverse,
    };
    let back = iteration.way_back(at)?;
    let y = at.b.op_all(op.clone(), &at.x, vec![keeping(body, 0..s, &back.saved)]);
    replace(at, &y);
    let rows = &y[at.y.len()..];
    let around = Around {
        last: y[..s].to_vec(),
        kept: rows.iter().copied().take(s).collect(),
        along: at.x[s..s + n].to_vec(),
        saved: rows.iter().copied().skip(s).take(back.saved.len()).collect(),
        seen: at.x[s + n..].to_vec(),
    };
    Ok(iteration.backward(at, back, &around))
}

pub fn repeat<'g>(op: &Loop, at: &At<'_, 'g>) -> Shares<'g> {
    let (c, body) = (op.carried, &at.node.regions[0]);
    let iteration = Iteration {
        body,
        skip: 1,
        states: 1..1 + c,
        scanned: vec![0],
        captures: 1 + c..body.inputs.len(),
        wanted: (2 + c..at.x.len()).filter(|k| at.needs[*k]).map(|k| k - 1).collect(),
        reverse: false,
    };
    let back = iteration.way_back(at)?;
    let y = at.b.op_all(op.clone(), &at.x, vec![keeping(body, 1..1 + c, &back.saved)]);
    replace(at, &y);
    let rows = &y[at.y.len()..];
    let around = Around {
        last: y[..c].to_vec(),
        kept: rows.iter().copied().take(c).collect(),
        along: vec![at.b.op(Iota { shape: vec![op.trips.clone()], axis: 0 }, &[])],
        saved: rows.iter().copied().skip(c).take(back.saved.len()).collect(),
        seen: at.x[2 + c..].to_vec(),
    };
    // The body's inputs are the operands but for the counter, which stands in the place of trip count and condition.
    let d = iteration.backward(at, back, &around);
    Ok([None, None].into_iter().chain(d.into_iter().skip(1)).collect())
}

/// The cotangent of a running product's operand, zeros or not: `dx_i = p_i c_i`, p the product of what comes before, and
/// `c_i = g_i + x_{i+1} c_{i+1}` running back (without the element itself: `c_i = g_{i+1} + x_{i+1} c_{i+1}`).
pub fn running_product<'g>(c: &Cumulate, x: V<'g>, g: V<'g>) -> Result<V<'g>> {
    let b = x.builder();
    let before = b.op(Cumulate { kind: ReduceKind::Prod, exclusive: true, ..c.clone() }, &[x]);
    let front: Vec<usize> = std::iter::once(c.axis).chain((0..x.ty().rank()).filter(|a| *a != c.axis)).collect();
    let (xs, gs) = (x.transpose(&front), g.transpose(&front));
    let slice = Type::new(x.ty().dtype, xs.ty().shape[1..].to_vec());
    let body = b.nested("backward");
    {
        let [rest, x, g] = [(); 3].map(|()| body.input("", slice.clone()));
        let c_i = if c.exclusive { rest } else { g + rest };
        let next = if c.exclusive { g + x * rest } else { x * c_i };
        body.output("", next);
        body.output("", c_i);
    }
    let start = x.scalar_like(0.0).expand(slice.shape);
    let y = b.op_all(Op::Scan(Scan { states: 1, scanned: 2, reverse: !c.reverse }), &[start, xs, gs], vec![body.finish().map_err(first)?]);
    let back = nnc_ir::ops::movement::Transpose { perm: front }.inverse();
    Ok(before * y[1].transpose(&back.perm))
}
