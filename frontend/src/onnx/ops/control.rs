//! If, Loop, Scan: bodies become regions, what they read from outside becomes operands.

use super::sequence::stacked;
use super::{MANY, Row, items, op};
use crate::onnx::call::{Arg, Call, Item, Region, is_operand, regroup};
use nnc_ir::error::Code;
use nnc_ir::ops::control::{If, Loop, Scan};
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::movement::Slice;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::source::{Dims, Iota, ReadDims};
use nnc_ir::ops::{Class, Op};
use nnc_ir::types::normalize_axis;
use nnc_ir::{Builder, DType, Dim, Error, Graph, Report, Result, Tensor, Type, V, Value};
use std::collections::HashSet;
use std::rc::Rc;

pub const ROWS: &[Row] =
    &[items("If", 1, (1, 1), branch), items("Loop", 1, (0, MANY), repeat), op("Scan", 8, (2, MANY), scan_batch), items("Scan", 9, (1, MANY), scan)];

/// What several bodies read from outside, each value once.
fn captures<'g>(bodies: &[&Rc<dyn Region<'g> + 'g>]) -> Vec<V<'g>> {
    let mut seen = HashSet::new();
    bodies.iter().flat_map(|b| b.captures()).filter(|v| seen.insert(v.value())).collect()
}

fn operands<'g>(captures: &[V<'g>]) -> impl Iterator<Item = V<'g>> {
    captures.iter().copied().filter(|v| is_operand(*v))
}

fn branch<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let condition = c.x(0)?;
    let (yes, no) = (c.region("then_branch")?, c.region("else_branch")?);
    let then = yes.clone();
    if let Some(t) = c.fold(condition).filter(|t| t.elems() == 1) {
        return if t.num(0).as_bool() { &yes } else { &no }.inline(&[]);
    }
    let outside = captures(&[&yes, &no]);
    let misfit = |r: &Report| c.fixed && r.0.iter().all(|e| e.code() == Code::Shape);
    if std::iter::once(&condition).chain(&outside).any(|v| v.is_poison()) {
        for body in [yes, no].map(|body| body.build(&[], &outside)).into_iter().filter(|b| !b.as_ref().is_err_and(misfit)) {
            c.built(body);
        }
        return Ok(poisoned(c));
    }
    let (yes, no) = match (yes.build(&[], &outside), no.build(&[], &outside)) {
        (Ok((yes, layouts)), Err(e)) if misfit(&e) => (Some((yes.clone(), layouts.clone())), Some((refused(c, &yes)?, layouts))),
        (Err(e), Ok((no, layouts))) if misfit(&e) => (Some((refused(c, &no)?, layouts.clone())), Some((no, layouts))),
        (yes, no) => (c.built(yes), c.built(no)),
    };
    let (Some((mut yes, layouts)), Some((mut no, others))) = (yes, no) else { return Ok(poisoned(c)) };
    if layouts.len() != others.len() {
        return Err(Error::arity(format!("the branches have {} and {} outputs", layouts.len(), others.len())));
    }
    if let Some(k) = (0..layouts.len()).find(|k| layouts[*k] != others[*k]) {
        let differ = format!("output {k} is {} in one branch and {} in the other", layouts[k].kind(), others[k].kind());
        return Err(c.unknown(0, "the condition").note(differ));
    }
    if is_exception(&yes, &no) {
        yes = refused(c, &no)?;
    } else if is_exception(&no, &yes) {
        no = refused(c, &yes)?;
    }
    for k in 0..yes.outputs.len() {
        let (a, b) = (yes.ty(yes.outputs[k].value).clone(), no.ty(no.outputs[k].value).clone());
        if a.rank() != b.rank() && is_squeeze(c, condition, &yes, k) {
            return then.inline(&[]);
        }
        if a.dtype != b.dtype || a.rank() != b.rank() {
            return Err(Error::unsupported(format!("output {k} is {a} or {b}; type and rank must be one")));
        }
        let local = |g: &Graph, d: &Dim| mentions(d, &bound(g));
        let shape: Vec<Dim> = a
            .shape
            .iter()
            .zip(&b.shape)
            .map(|(x, y)| if x == y && !local(&yes, x) && !local(&no, y) { x.clone() } else { c.b.fresh_symbol("if") })
            .collect();
        yes = relabelled(yes, k, &shape)?;
        no = relabelled(no, k, &shape)?;
    }
    let x: Vec<V<'g>> = std::iter::once(condition.reshape(vec![])).chain(operands(&outside)).collect();
    Ok(regroup(&layouts, &c.b.op_all(If {}, &x, vec![yes, no])))
}

/// Whether a branch hands a scalar through for what the other computes as a tensor, as `2 / (d - 1)` of a vector `d` that is zero where
/// d is 1. Values have one rank, that of what is computed; a run that takes the exception is refused.
fn is_exception(branch: &Graph, other: &Graph) -> bool {
    let given = |g: &Graph, v: Value| g.constant(v).is_some() || matches!(g.node(v.node).op, Op::Input);
    (0..branch.outputs.len()).any(|k| {
        let (v, w) = (branch.outputs[k].value, other.outputs[k].value);
        let (a, b) = (branch.ty(v), other.ty(w));
        given(branch, v) && !given(other, w) && a.dtype == b.dtype && a.rank() == 0 && b.rank() > 0
    })
}

/// In the place of a branch that does not fit the sizes which the user has fixed, or the rank of the other branch's results: results of the types of `other`, the branch that does, and
/// an error of the run, which asks for a size of -1.
fn refused(c: &Call, other: &Graph) -> Result<Graph> {
    let b = c.b.nested(&*other.name);
    for id in &other.inputs {
        b.input("", other.node(*id).types[0].clone());
    }
    let none = b.fresh_symbol("misfit");
    b.op(ReadDims { symbols: vec![none.clone()] }, &[b.constant(Tensor::new(&[1], &[-1i64]))]);
    let local = bound(other);
    for o in &other.outputs {
        let ty = other.ty(o.value);
        // Lengths that the other branch binds have no value in this one.
        let shape: Vec<Dim> = ty.shape.iter().map(|d| if mentions(d, &local) { Dim::Const(1) } else { d.clone() }).collect();
        let zeros = b.constant(Tensor::scalar_of(ty.dtype, 0.0)).expand([std::slice::from_ref(&none), &shape[..]].concat());
        b.output(&*o.name, zeros.reduce(ReduceKind::Max, &[0], false));
    }
    b.finish().map_err(|mut r| r.0.remove(0))
}

/// Whether output `k` of a branch drops an axis whose length the condition compares with 1, as PyTorch writes `squeeze(axis)`. The branch
/// can stand for both, whose ranks differ: the reshape asks for that length to be 1, so that any other is an error of the run.
fn is_squeeze(c: &Call, condition: V, yes: &Graph, k: usize) -> bool {
    let compared = c.b.with_graph(|g| {
        let mut v = condition.value();
        while let Op::Reshape(_) | Op::Cast(_) = g.node(v.node).op {
            v = g.node(v.node).operands[0];
        }
        let node = g.node(v.node);
        let one = |i: usize| g.known(*node.operands.get(i)?).filter(|k| k.len() == 1).map(|k| k[0].clone());
        matches!(node.op, Op::Map(nnc_ir::ScalarFn::Equal)).then(|| one(0).zip(one(1))).flatten()
    });
    let length = match compared {
        Some((d, one)) | Some((one, d)) if one.is(1) => d,
        _ => return false,
    };
    let node = yes.node(yes.outputs[k].value.node);
    matches!(node.op, Op::Reshape(_)) && yes.ty(node.operands[0]).elems() == node.types[0].elems() * length
}

/// Symbols that a graph binds itself.
fn bound(g: &Graph) -> HashSet<String> {
    let mut out = HashSet::new();
    for id in g.order() {
        let node = g.node(id);
        let mut add = |d: &Dim| d.symbols(&mut |s| out.extend([s.to_string()]));
        match &node.op {
            Op::ReadDims(r) => r.symbols.iter().for_each(add),
            Op::NonZero(n) => add(&n.count),
            Op::StringSplit(s) => add(&s.pieces),
            Op::StringNormalize(n) => add(&n.kept),
            op if op.class() == Some(Class::Control) => node.types.iter().flat_map(|t| &t.shape).for_each(add),
            _ => {}
        }
    }
    out
}

fn mentions(d: &Dim, symbols: &HashSet<String>) -> bool {
    let mut found = false;
    d.symbols(&mut |s| found |= symbols.contains(&**s));
    found
}

/// The region with output `k` under another shape of the same rank, whose new symbols are bound to the lengths there are.
fn relabelled(region: Graph, k: usize, shape: &[Dim]) -> Result<Graph> {
    let output = region.outputs[k].clone();
    let have = region.ty(output.value).shape.clone();
    if have == shape {
        return Ok(region);
    }
    let b = Builder::from_graph(region);
    let (lengths, symbols): (Vec<Dim>, Vec<Dim>) = have.iter().zip(shape).filter(|(a, b)| a != b).map(|(a, b)| (a.clone(), b.clone())).unzip();
    let lengths = b.op(Dims { values: lengths, scalar: false }, &[]);
    b.op(ReadDims { symbols }, &[lengths]);
    let y = b.v(output.value).reshape(shape.to_vec()).value();
    let mut region = b.finish().map_err(|mut r| r.0.remove(0))?;
    region.outputs[k].value = y;
    Ok(region)
}

/// The region with output `k` as a scalar.
fn scalar_output(region: Graph, k: usize) -> Result<Graph> {
    let b = Builder::from_graph(region);
    let v = b.with_graph(|g| g.outputs[k].value);
    let y = b.v(v).reshape(vec![]).value();
    let mut region = b.finish().map_err(|mut r| r.0.remove(0))?;
    region.outputs[k].value = y;
    Ok(region)
}

/// What stands for `v`, as a value of type `ty`, in a body.
fn arg(v: V, ty: Type) -> Arg {
    if v.is_poison() { Arg::Poison } else { Arg::Type(ty) }
}

/// Results for a call whose problems are recorded already.
fn poisoned<'g>(c: &Call<'g>) -> Vec<Item<V<'g>>> {
    c.poisoned().into_iter().map(Item::Tensor).collect()
}

/// Iterations that are built one after the other.
const MAX_UNROLLED: i64 = 1 << 16;

/// The loop as its iterations one after the other: what carries sequences whose lengths change. Their number must be known.
fn unrolled<'g>(c: &Call<'g>, body: &Rc<dyn Region<'g> + 'g>) -> Result<Vec<Item<V<'g>>>> {
    let one = |v: V<'g>| c.fold(v).filter(|t| t.elems() == 1).map(|t| t.num(0));
    let trips = match c.opt(0) {
        Some(v) => one(v).ok_or_else(|| c.unknown(0, "the trip count of a loop with sequences"))?.as_i64(),
        None => i64::MAX,
    };
    let mut go = match c.opt(1) {
        Some(v) => one(v).ok_or_else(|| c.unknown(1, "the condition of a loop with sequences"))?.as_bool(),
        None => true,
    };
    let mut carried: Vec<Item<V<'g>>> = c.inputs[c.inputs.len().min(2)..].to_vec();
    let mut collected: Vec<Vec<V<'g>>> = vec![vec![]; body.arity().1.saturating_sub(1 + carried.len())];
    let mut i = 0;
    while go && i < trips {
        if i == MAX_UNROLLED {
            return Err(Error::limit(format!("a loop with sequences runs more than {MAX_UNROLLED} times")));
        }
        let counters = [Tensor::scalar(i), Tensor::scalar(true)].map(|t| Item::Tensor(c.b.constant(t)));
        let args: Vec<Item<V<'g>>> = counters.into_iter().chain(carried).collect();
        let mut y = body.inline(&args)?;
        if y.iter().flat_map(Item::tensors).any(|v| v.is_poison()) {
            return Ok(poisoned(c));
        }
        for (slot, item) in collected.iter_mut().zip(y.drain(args.len() - 1..)) {
            match item {
                Item::Tensor(v) => slot.push(v),
                other => return Err(Error::dtype(format!("an iteration gives {} where a tensor is wanted", other.kind()))),
            }
        }
        carried = y.split_off(1);
        let unknown = || Error::unsupported("a loop with sequences goes on by a condition that only the run knows");
        go = y[0].tensors().first().and_then(|v| one(*v)).ok_or_else(unknown)?.as_bool();
        i += 1;
    }
    if i == 0 && !collected.is_empty() {
        return Err(Error::unsupported("a loop with sequences that does not run has results of unknown types"));
    }
    Ok(carried.into_iter().chain(collected.iter().map(|list| Item::Tensor(stacked(list, 0)))).collect())
}

fn repeat<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let body = c.region("body")?;
    let (declared, results) = body.arity();
    let count = c.inputs.len().saturating_sub(2);
    if declared != 2 + count || results < 1 + count {
        return Err(Error::arity(format!("the body takes {declared} values and gives {results}; {count} are carried")));
    }
    let outside = captures(&[&body]);
    if c.inputs.iter().flat_map(Item::tensors).chain(&outside).any(|v| v.is_poison()) {
        let counters = [Arg::Type(Type::new(DType::I64, vec![])), Arg::Const(Tensor::scalar(true))];
        let state = |x: &Item<V<'g>>| if let Item::Tensor(v) = x { arg(*v, v.ty()) } else { Arg::Poison };
        let args: Vec<Arg> = counters.into_iter().chain(c.inputs.iter().skip(2).map(state)).collect();
        c.body(&body, &args, &outside);
        return Ok(poisoned(c));
    }
    if c.inputs.iter().skip(2).any(|x| !matches!(x, Item::Tensor(_))) {
        return unrolled(c, &body);
    }
    let carried: Vec<V<'g>> = (2..c.inputs.len()).map(|i| c.x(i)).collect::<Result<_>>()?;
    let scalar = |v: V<'g>| v.reshape(vec![]);
    let trips = c.opt(0).map(scalar);
    let go = c.opt(1).map(scalar);
    let mut types: Vec<Type> = carried.iter().map(|v| v.ty()).collect();
    // Lengths that an iteration changes become symbols of the body, and the body is built again, until none is left.
    let (region, changed) = loop {
        let mut args = vec![Arg::Type(Type::new(DType::I64, vec![])), Arg::Const(Tensor::scalar(true))];
        args.extend(types.iter().cloned().map(Arg::Type));
        let Some((region, layouts)) = c.body(&body, &args, &outside) else { return Ok(poisoned(c)) };
        if layouts.iter().any(|l| !matches!(l, Item::Tensor(()))) {
            return unrolled(c, &body);
        }
        let mut stable = true;
        for (k, ty) in types.iter_mut().enumerate() {
            let y = region.ty(region.outputs[1 + k].value);
            if y.dtype != ty.dtype || y.rank() != ty.rank() {
                return Err(Error::unsupported(format!("carried value {k} is {ty} before and {y} after an iteration; type and rank must stay")));
            }
            let given = carried[k].ty();
            for axis in 0..ty.rank() {
                // A symbol that was made here stands for any length already.
                if y.shape[axis] != ty.shape[axis] && ty.shape[axis] == given.shape[axis] {
                    ty.shape[axis] = c.b.fresh_symbol("carried");
                    stable = false;
                }
            }
        }
        if stable {
            let changed: HashSet<String> = types.iter().zip(&carried).flat_map(|(t, v)| varying(&v.ty(), t)).collect();
            break (region, changed);
        }
    };
    let mut region = scalar_output(region, 0)?;
    let mut local = bound(&region);
    local.extend(changed);
    for k in 1..results {
        let ty = region.ty(region.outputs[k].value).clone();
        // A carried length stays as it was given, or is known after the loop only.
        let keep = |axis: usize, d: &Dim| match types.get(k - 1) {
            Some(t) => *d == t.shape[axis] && !mentions(d, &local),
            None => !mentions(d, &local),
        };
        let shape: Vec<Dim> = ty.shape.iter().enumerate().map(|(i, d)| if keep(i, d) { d.clone() } else { c.b.fresh_symbol("loop") }).collect();
        region = relabelled(region, k, &shape)?;
    }
    // Without a way to stop early the number of iterations is the trip count.
    let forever = region.constant(region.outputs[0].value).is_some_and(|t| t.elems() == 1 && t.num(0).as_bool());
    let always = go.is_none_or(|v| c.fold(v).is_some_and(|t| t.num(0).as_bool()));
    let count = trips.and_then(V::known).and_then(|k| k.first().cloned()).filter(|_| forever && always);
    let count = count.map_or_else(|| c.b.fresh_symbol("trips"), |d| d.maximum(&Dim::Const(0)));
    let first = [
        trips.map_or_else(|| c.b.constant(Tensor::scalar(i64::MAX)), |v| v.cast(DType::I64)),
        go.unwrap_or_else(|| c.b.constant(Tensor::scalar(true))),
    ];
    let x: Vec<V<'g>> = first.into_iter().chain(carried.iter().copied()).chain(operands(&outside)).collect();
    Ok(c.b.op_all(Loop { carried: carried.len(), trips: count }, &x, vec![region]).into_iter().map(Item::Tensor).collect())
}

/// Symbols that stand in `now` where `before` had something else.
fn varying(before: &Type, now: &Type) -> HashSet<String> {
    let mut out = HashSet::new();
    for (_, d) in before.shape.iter().zip(&now.shape).filter(|(a, b)| a != b) {
        d.symbols(&mut |s| out.extend([s.to_string()]));
    }
    out
}

fn scan<'g>(c: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let body = c.region("body")?;
    let scanned = c.opt_int("num_scan_inputs")?.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=c.inputs.len()).contains(n));
    let scanned = scanned.ok_or_else(|| Error::attribute("attribute `num_scan_inputs` should be at least 1 and at most the number of inputs"))?;
    let states = c.inputs.len() - scanned;
    let (declared, results) = body.arity();
    if declared != c.inputs.len() || results < states {
        return Err(Error::arity(format!("the body takes {declared} values and gives {results}; {states} states and {scanned} inputs are scanned")));
    }
    let collected = results - states;
    let list = |name: &str, n: usize| -> Result<Vec<i64>> {
        let v = c.ints(name)?.unwrap_or(vec![0; n]);
        if v.len() == n { Ok(v) } else { Err(Error::attribute(format!("attribute `{name}` should be {n} integers, found {v:?}"))) }
    };
    let (in_axes, in_backward) = (list("scan_input_axes", scanned)?, list("scan_input_directions", scanned)?);
    let (out_axes, out_backward) = (list("scan_output_axes", collected)?, list("scan_output_directions", collected)?);
    let mut x = c.all()?;
    for (i, v) in x[states..].iter_mut().enumerate().filter(|(_, v)| !v.is_poison()) {
        let axis = normalize_axis(in_axes[i], v.ty().rank())?;
        let turned = moved(*v, axis, 0);
        *v = if in_backward[i] == 1 { flipped(turned) } else { turned };
    }
    let outside = captures(&[&body]);
    let element = |v: &V<'g>| v.ty().with_shape(v.ty().shape.get(1..).unwrap_or_default().to_vec());
    let types = x[..states].iter().map(|v| v.ty()).chain(x[states..].iter().map(element));
    let args: Vec<Arg> = x.iter().zip(types).map(|(v, ty)| arg(*v, ty)).collect();
    let unknown = x.iter().chain(&outside).any(|v| v.is_poison());
    let Some((region, layouts)) = c.body(&body, &args, &outside).filter(|_| !unknown) else { return Ok(poisoned(c)) };
    tensors_only(&layouts)?;
    for (k, state) in x[..states].iter().enumerate() {
        let (before, after) = (state.ty(), region.ty(region.outputs[k].value));
        // Lengths that cannot be compared now are compared by the run.
        let differ = |(a, b): (&Dim, &Dim)| a != b && a.as_const().is_some() && b.as_const().is_some();
        if before.dtype != after.dtype || before.rank() != after.rank() || before.shape.iter().zip(&after.shape).any(differ) {
            return Err(Error::shape(format!("state {k} is {before} before and {after} after a step")));
        }
    }
    x.extend(operands(&outside));
    let y = c.b.op_all(Scan { states, scanned, reverse: false }, &x, vec![region]);
    let out = |k: usize, v: V<'g>| -> Result<V<'g>> {
        if k < states || v.is_poison() {
            return Ok(v);
        }
        let v = if out_backward[k - states] == 1 { flipped(v) } else { v };
        Ok(moved(v, 0, normalize_axis(out_axes[k - states], v.ty().rank())?))
    };
    y.into_iter().take(results).enumerate().map(|(k, v)| out(k, v).map(Item::Tensor)).collect()
}

/// A scan's body gives tensors.
fn tensors_only(layouts: &[Item<()>]) -> Result<()> {
    match layouts.iter().position(|l| !matches!(l, Item::Tensor(()))) {
        Some(k) => Err(Error::dtype(format!("output {k} of the body is {}, a scan has tensors", layouts[k].kind()))),
        None => Ok(()),
    }
}

/// Opset 8: a first input with the sequences' lengths, and a batch axis before the scanned one. A scan over the batch scans each of its
/// sequences.
fn scan_batch<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let body = c.region("body")?;
    let x = (1..c.inputs.len()).map(|i| c.x(i)).collect::<Result<Vec<_>>>()?;
    let scanned = c.opt_int("num_scan_inputs")?.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=x.len()).contains(n));
    let scanned = scanned.ok_or_else(|| Error::attribute("attribute `num_scan_inputs` should be at least 1 and at most the number of inputs"))?;
    let states = x.len() - scanned;
    let (declared, results) = body.arity();
    if declared != x.len() || results < states {
        return Err(Error::arity(format!("the body takes {declared} values and gives {results}; {states} states and {scanned} inputs are scanned")));
    }
    let lens = c.opt(0).map(|v| v.cast(DType::I64));
    if lens.is_some_and(|v| !v.is_poison() && v.ty().rank() != 1) {
        return Err(Error::shape("sequence_lens should be a vector, one length a sequence"));
    }
    let backward = c.ints("directions")?.unwrap_or(vec![0; scanned]);
    if backward.len() != scanned {
        return Err(Error::attribute(format!("attribute `directions` should be {scanned} integers, found {backward:?}")));
    }
    let without = |t: Type, axes: usize| t.with_shape(t.shape.get(axes..).unwrap_or_default().to_vec());
    if x.iter().any(|v| v.ty().rank() < 1) || x[states..].iter().any(|v| v.ty().rank() < 2) {
        return Err(Error::shape("states need a batch axis, scanned inputs one for the batch and one for the sequence"));
    }
    let outside = captures(&[&body]);
    let args: Vec<Arg> = x.iter().enumerate().map(|(i, v)| arg(*v, without(v.ty(), 1 + usize::from(i >= states)))).collect();
    let unknown = x.iter().chain(&lens).chain(&outside).any(|v| v.is_poison());
    let Some((step, layouts)) = c.body(&body, &args, &outside).filter(|_| !unknown) else { return Ok(c.poisoned()) };
    tensors_only(&layouts)?;
    for (k, state) in x[..states].iter().enumerate() {
        let (before, after) = (without(state.ty(), 1), step.ty(step.outputs[k].value));
        if before != *after {
            return Err(Error::shape(format!("state {k} is {before} before and {after} after a step")));
        }
    }
    let outside: Vec<V<'g>> = operands(&outside).collect();
    let sequence = c.b.nested("sequence");
    let mut own: Vec<V> = x.iter().map(|v| sequence.input("x", without(v.ty(), 1))).collect();
    let len = lens.map(|v| sequence.input("length", without(v.ty(), 1)));
    let steps = sequence.op(Iota { shape: vec![x[states].ty().shape[1].clone()], axis: 0 }, &[]);
    for (v, _) in own.iter_mut().skip(states).zip(&backward).filter(|(_, b)| **b == 1) {
        *v = match len {
            None => flipped(*v),
            // From the sequence's own end; steps beyond it find whatever there is and do not count.
            Some(len) => {
                let (zero, one) = (sequence.constant(Tensor::scalar(0i64)), sequence.constant(Tensor::scalar(1i64)));
                sequence.op(Gather { axis: 0 }, &[*v, (len - one - steps).max(zero)])
            }
        };
    }
    own.extend(len.map(|_| steps));
    own.extend(outside.iter().map(|v| sequence.input("outer", v.ty())));
    own.extend(len);
    let inner = scanned + usize::from(len.is_some());
    let step = if len.is_some() { ended(c, &step, states, scanned)? } else { step };
    let y = sequence.op_all(Scan { states, scanned: inner, reverse: false }, &own, vec![step]);
    y.into_iter().take(results).for_each(|v| sequence.output("", v));
    let sequence = sequence.finish().map_err(|mut e| e.0.remove(0))?;
    let operands: Vec<V<'g>> = x.iter().copied().chain(lens).chain(outside).collect();
    Ok(c.b.op_all(Scan { states: 0, scanned: x.len() + usize::from(lens.is_some()), reverse: false }, &operands, vec![sequence]))
}

/// A step of a scan with the number of the step as one more scanned input, and the sequence's length as the last capture: from there on
/// states stay and results are zeros.
fn ended(c: &Call, step: &Graph, states: usize, scanned: usize) -> Result<Graph> {
    let b = c.b.nested(&*step.name);
    let mut x: Vec<V> = vec![];
    let scalar = || Type::new(DType::I64, vec![]);
    let mut t = None;
    for (i, id) in step.inputs.iter().enumerate() {
        if i == states + scanned {
            t = Some(b.input("t", scalar()));
        }
        x.push(b.input("x", step.node(*id).types[0].clone()));
    }
    let t = t.unwrap_or_else(|| b.input("t", scalar()));
    let alive = t.less(b.input("length", scalar()));
    for (k, y) in b.inline(step, &x).into_iter().enumerate() {
        b.output("", alive.select(y, x.get(k).copied().filter(|_| k < states).unwrap_or_else(|| y.scalar_like(0.0))));
    }
    b.finish().map_err(|mut r| r.0.remove(0))
}

/// Axis `from` becomes axis `to`, the others keep their order.
fn moved(v: V, from: usize, to: usize) -> V {
    let mut perm: Vec<usize> = (0..v.ty().rank()).collect();
    let axis = perm.remove(from);
    perm.insert(to, axis);
    v.transpose(&perm)
}

/// Axis 0 backwards.
fn flipped(v: V) -> V {
    let ty = v.ty();
    let mut out = Slice { starts: vec![Dim::Const(0); ty.rank()], sizes: ty.shape.clone(), steps: vec![1; ty.rank()] };
    out.starts[0] = ty.shape[0].clone() - Dim::Const(1);
    out.steps[0] = -1;
    v.builder().op(out, &[v])
}
