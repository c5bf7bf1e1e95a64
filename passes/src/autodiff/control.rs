//! Gradients of control flow: regions that go backwards. What an iteration computes is computed again on the way back, from the state
//! that it began with, which the forward operation is made to keep.

use super::rules::{At, Shares};
use super::slip::Slip;
use super::{pull_back, zero_like};
use nnc_ir::error::{Report, Result};
use nnc_ir::ops::control::{Loop, Scan};
use nnc_ir::ops::reduce::{Cumulate, ReduceKind};
use nnc_ir::ops::source::Iota;
use nnc_ir::{Builder, Graph, Op, Type, V, Value};

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

/// The region with the inputs `kept` as further results.
fn keeping(region: &Graph, kept: std::ops::Range<usize>) -> Graph {
    let mut region = region.clone();
    for k in kept {
        let value = Value { node: region.inputs[k], port: 0 };
        region.outputs.push(nnc_ir::graph::Output { name: "".into(), value });
    }
    region
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

    /// Cotangents of the body's inputs `wrt`, which stand at `args`, from those of its results; zero where there is none.
    fn pull<'g>(&'g self, args: &[V<'g>], seeds: &[(usize, V<'g>)], wrt: &[usize]) -> Result<(Vec<V<'g>>, super::Replaced)> {
        let y = self.b.inline(self.body, args);
        let seeds: Vec<(Value, V)> = seeds.iter().map(|(k, g)| (y[*k].value(), *g)).collect();
        let at: Vec<Value> = wrt.iter().map(|k| args[*k].value()).collect();
        let (found, replaced) = pull_back(&self.b, &seeds, &at, self.slip)?;
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
            let (d, replaced) = back.pull(&args, &given, &wanted.iter().map(|k| k - 1).collect::<Vec<_>>())?;
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
struct Iteration<'a, 'g> {
    body: &'a Graph,
    /// Leading results of the body that are neither states nor collected (the condition of a loop).
    skip: usize,
    /// The body's inputs by role: what is scanned beside the states comes before them (a loop's counter) or behind.
    states: std::ops::Range<usize>,
    scanned: Vec<usize>,
    captures: std::ops::Range<usize>,
    /// Tensors along whose first axis the iterations lie: one for each state (as it was before the iteration), then for `scanned`.
    kept: Vec<V<'g>>,
    along: Vec<V<'g>>,
    /// The captures' values.
    seen: Vec<V<'g>>,
    /// Which of the body's inputs are differentiated by, beside the states.
    wanted: Vec<usize>,
    reverse: bool,
}

impl<'a, 'g> Iteration<'a, 'g> {
    /// Cotangents of the body's inputs, of each scanned one stacked.
    fn backward(&self, at: &At<'a, 'g>) -> Result<Vec<Option<V<'g>>>> {
        let body = self.body;
        let n = self.states.len();
        let float_states: Vec<usize> = self.states.clone().filter(|k| input_type(body, *k).dtype.is_float()).collect();
        let shared: Vec<usize> = self.wanted.iter().copied().filter(|k| self.captures.contains(k)).collect();
        let sliced: Vec<usize> = self.wanted.iter().copied().filter(|k| self.scanned.contains(k)).collect();
        let collected: Vec<(usize, V<'g>)> = (n..at.g.len()).filter_map(|k| Some((k, at.g[k]?))).collect();

        let back = Backward::new(at, body);
        let replaced = {
            let d_states: Vec<V> = float_states.iter().map(|k| back.input(input_type(body, *k))).collect();
            let d_shared: Vec<V> = shared.iter().map(|k| back.input(input_type(body, *k))).collect();
            let mut args: Vec<Option<V>> = vec![None; body.inputs.len()];
            for k in self.states.clone().chain(self.scanned.iter().copied()) {
                args[k] = Some(back.input(input_type(body, k)));
            }
            let d_collected: Vec<V> = collected.iter().map(|(k, _)| back.input(output_type(body, self.skip + k))).collect();
            for k in self.captures.clone() {
                args[k] = Some(back.input(input_type(body, k)));
            }
            let args: Vec<V> = args.into_iter().flatten().collect();
            let seeds = float_states.iter().zip(&d_states).map(|(k, g)| (self.skip + k - self.states.start, *g));
            let seeds: Vec<(usize, V)> = seeds.chain(collected.iter().zip(&d_collected).map(|((k, _), g)| (self.skip + k, *g))).collect();
            let wrt: Vec<usize> = [&float_states[..], &shared, &sliced].concat();
            let (mut d, replaced) = back.pull(&args, &seeds, &wrt)?;
            for (v, sum) in d[float_states.len()..].iter_mut().zip(&d_shared) {
                *v = *sum + *v;
            }
            d.into_iter().for_each(|v| back.b.output("", v));
            replaced
        };
        let region = back.finish(replaced)?;
        let mut operands: Vec<V<'g>> = vec![];
        for k in &float_states {
            let last = k - self.states.start;
            operands.push(at.g[last].unwrap_or_else(|| zero_like(at.y[last])));
        }
        operands.extend(shared.iter().map(|k| zero_like(self.seen[k - self.captures.start])));
        operands.extend(self.kept.iter().chain(&self.along).copied());
        operands.extend(collected.iter().map(|(_, g)| *g));
        operands.extend(&self.seen);
        let op = Scan { states: float_states.len() + shared.len(), scanned: n + self.scanned.len() + collected.len(), reverse: !self.reverse };
        let d = at.b.op_all(op, &operands, vec![region]);
        let mut out = vec![None; body.inputs.len()];
        float_states.iter().chain(&shared).chain(&sliced).zip(d).for_each(|(k, v)| out[*k] = Some(v));
        Ok(out)
    }
}

pub fn scan<'g>(op: &Scan, at: &At<'_, 'g>) -> Shares<'g> {
    let (s, n, body) = (op.states, op.scanned, &at.node.regions[0]);
    let y = at.b.op_all(op.clone(), &at.x, vec![keeping(body, 0..s)]);
    replace(at, &y);
    let iteration = Iteration {
        body,
        skip: 0,
        states: 0..s,
        scanned: (s..s + n).collect(),
        captures: s + n..at.x.len(),
        kept: y[at.y.len()..].iter().copied().take(s).collect(),
        along: at.x[s..s + n].to_vec(),
        seen: at.x[s + n..].to_vec(),
        wanted: (s..at.x.len()).filter(|k| at.needs[*k]).collect(),
        reverse: op.reverse,
    };
    iteration.backward(at)
}

pub fn repeat<'g>(op: &Loop, at: &At<'_, 'g>) -> Shares<'g> {
    let (c, body) = (op.carried, &at.node.regions[0]);
    let y = at.b.op_all(op.clone(), &at.x, vec![keeping(body, 1..1 + c)]);
    replace(at, &y);
    let counter = at.b.op(Iota { shape: vec![op.trips.clone()], axis: 0 }, &[]);
    let iteration = Iteration {
        body,
        skip: 1,
        states: 1..1 + c,
        scanned: vec![0],
        captures: 1 + c..body.inputs.len(),
        kept: y[at.y.len()..].iter().copied().take(c).collect(),
        along: vec![counter],
        seen: at.x[2 + c..].to_vec(),
        wanted: (2 + c..at.x.len()).filter(|k| at.needs[*k]).map(|k| k - 1).collect(),
        reverse: false,
    };
    // The body's inputs are the operands but for the counter, which stands in the place of trip count and condition.
    let d = iteration.backward(at)?;
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
