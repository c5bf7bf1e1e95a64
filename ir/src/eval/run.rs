//! Evaluation of graphs: node after node, regions by recursion.

use super::Env;
use super::elems::{MAX_BYTES, room, too_large};
use crate::builder::expansion;
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeId};
use crate::ops::control::{Loop, Scan};
use crate::ops::{Class, Op};
use crate::scalar::Num;
use crate::tensor::Tensor;
use crate::types::Type;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// The outputs of `graph` on `inputs`, in order.
///
/// Symbols of the inputs' types are bound in `env` from the actual shapes; a wrong number, type, rank or size is an error that says
/// which input, what was expected and what was found. Errors of nodes stand at the node.
pub fn run(graph: &Graph, inputs: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
    run_all(graph, inputs, env, &mut |_, _| {})
}

/// As [`run`]; `each` sees every node's results, in the order of evaluation. Nodes inside regions and expansions are not shown.
pub fn run_all(graph: &Graph, inputs: &[Tensor], env: &Env, each: &mut dyn FnMut(NodeId, &[Tensor])) -> Result<Vec<Tensor>> {
    bind_inputs(graph, inputs, env)?;
    Interpreter::default().graph(graph, inputs, env, each)
}

/// Checks `inputs` against the types that `graph` declares, and binds the symbols of these.
pub fn bind_inputs(graph: &Graph, inputs: &[Tensor], env: &Env) -> Result<()> {
    let port = |id: &NodeId| (&*graph.node(*id).name, &graph.node(*id).types[0]);
    bind_types(&graph.inputs.iter().map(port).collect::<Vec<_>>(), inputs, env)
}

/// As [`bind_inputs`], for inputs given by name and type.
pub fn bind_types(ports: &[(&str, &Type)], inputs: &[Tensor], env: &Env) -> Result<()> {
    let title = |i: usize| match ports[i].0 {
        "" => format!("input {i}"),
        name => format!("input `{name}`"),
    };
    if inputs.len() != ports.len() {
        let names: Vec<String> = (0..ports.len()).map(title).collect();
        return Err(Error::input(format!("expected {} inputs ({}), found {}", names.len(), names.join(", "), inputs.len())));
    }
    let misfit = |i: usize, why: String| Error::input(format!("{}: expected {}, found {}: {why}", title(i), ports[i].1, inputs[i].ty()));
    let mut bound: BTreeMap<Arc<str>, (i64, usize)> = BTreeMap::new();
    for (i, ((_, ty), t)) in ports.iter().zip(inputs).enumerate() {
        if ty.dtype != t.dtype() {
            return Err(misfit(i, format!("the element type is {}, not {}", t.dtype(), ty.dtype)));
        }
        if ty.rank() != t.shape().len() {
            return Err(misfit(i, format!("the rank is {}, not {}", t.shape().len(), ty.rank())));
        }
        for (d, n) in ty.shape.iter().zip(t.shape()) {
            let Some(symbol) = d.as_sym() else { continue };
            let (first, by) = *bound.entry(symbol.clone()).or_insert((*n as i64, i));
            if first != *n as i64 {
                return Err(misfit(i, format!("{symbol} is {n} here and {first} in {}", title(by))));
            }
        }
    }
    bound.iter().try_for_each(|(symbol, (n, _))| env.bind(symbol, *n))?;
    for (i, ((_, ty), t)) in ports.iter().zip(inputs).enumerate() {
        for (axis, (d, n)) in ty.shape.iter().zip(t.shape()).enumerate() {
            let want = d.eval(&|s| env.get(s)).map_err(|s| misfit(i, format!("no input says what {s} is")))?;
            if want != *n as i64 {
                return Err(misfit(i, format!("axis {axis} is {n}, not {want}")));
            }
        }
    }
    Ok(())
}

/// An error where an operand, or a result whose size is known before it is computed, is larger than the interpreter holds.
fn check_sizes(node: &Node, x: &[Tensor], env: &Env) -> Result<()> {
    if let Some(t) = x.iter().find(|t| t.byte_len() > MAX_BYTES) {
        return Err(too_large(t.dtype(), t.shape()));
    }
    for t in &node.types {
        let shape: Option<Vec<usize>> = t.shape.iter().map(|d| usize::try_from(d.eval(&|s| env.get(s)).ok()?).ok()).collect();
        if let Some(shape) = shape.filter(|s| s.iter().try_fold(t.dtype.bytes(), |n, d| n.checked_mul(*d)).is_none_or(|n| n > MAX_BYTES)) {
            return Err(too_large(t.dtype, &shape));
        }
    }
    Ok(())
}

/// What one run keeps between nodes.
#[derive(Default)]
struct Interpreter {
    /// Composites as graphs, by operation and operand types, so that equal layers expand once.
    expansions: HashMap<(Op, Vec<Type>), Rc<Graph>>,
}

impl Interpreter {
    fn graph(&mut self, graph: &Graph, inputs: &[Tensor], env: &Env, each: &mut dyn FnMut(NodeId, &[Tensor])) -> Result<Vec<Tensor>> {
        let order = graph.order();
        if order.len() < graph.len() {
            return Err(Error::name(format!("the graph {} has a cycle", graph.name)));
        }
        let mut values: Vec<Vec<Tensor>> = vec![vec![]; graph.id_bound()];
        let mut uses = vec![0usize; graph.id_bound()];
        order
            .iter()
            .flat_map(|id| &graph.node(*id).operands)
            .chain(graph.outputs.iter().map(|o| &o.value))
            .for_each(|v| uses[v.node.0 as usize] += 1);
        graph.inputs.iter().zip(inputs).for_each(|(id, t)| values[id.0 as usize] = vec![t.clone()]);
        for id in order {
            let node = graph.node(id);
            if !matches!(node.op, Op::Input) {
                let x: Vec<Tensor> = node.operands.iter().map(|v| values[v.node.0 as usize][v.port as usize].clone()).collect();
                check_sizes(node, &x, env).map_err(|e| context(e, node))?;
                let types = node.operands.iter().map(|v| graph.ty(*v).clone());
                let y = self.node(node, types, &x, env).and_then(|y| settle(node, &y, env).map(|()| y));
                values[id.0 as usize] = y.map_err(|e| context(e, node))?;
            }
            each(id, &values[id.0 as usize]);
            for v in &node.operands {
                let left = &mut uses[v.node.0 as usize];
                *left -= 1;
                if *left == 0 {
                    values[v.node.0 as usize] = vec![];
                }
            }
            if uses[id.0 as usize] == 0 {
                values[id.0 as usize] = vec![];
            }
        }
        Ok(graph.outputs.iter().map(|o| values[o.value.node.0 as usize][o.value.port as usize].clone()).collect())
    }

    fn node(&mut self, node: &Node, types: impl Iterator<Item = Type>, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        match &node.op {
            Op::If(_) => env.scoped(|| self.region(&node.regions[usize::from(!single("if", x, 0)?.as_bool())], &x[1..], env)),
            Op::Loop(l) => self.repeat(l, &node.regions[0], x, env),
            Op::Scan(s) => self.scan(s, &node.regions[0], x, env),
            op => match (op.as_primitive(), op.as_composite()) {
                (Some(p), _) => p.eval(x, env),
                (_, Some(c)) => match c.eval(x, env) {
                    Some(y) => y,
                    None => {
                        let expanded = self.expansion(op, types.collect())?;
                        self.graph(&expanded, x, env, &mut |_, _| {})
                    }
                },
                _ => Err(Error::internal("an input has no value of its own")),
            },
        }
    }

    fn expansion(&mut self, op: &Op, types: Vec<Type>) -> Result<Rc<Graph>> {
        let key = (op.clone(), types);
        if let Some(g) = self.expansions.get(&key) {
            return Ok(g.clone());
        }
        let g = Rc::new(expansion(op, &key.1)?);
        self.expansions.insert(key, g.clone());
        Ok(g)
    }

    /// Runs a region; the caller opens the scope of its symbols.
    fn region(&mut self, region: &Graph, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        bind_inputs(region, x, env)?;
        self.graph(region, x, env, &mut |_, _| {})
    }

    fn repeat(&mut self, op: &Loop, body: &Graph, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let (trips, mut go) = (single("loop", x, 0)?.as_i64(), single("loop", x, 1)?.as_bool());
        let (mut carried, captures) = (x[2..2 + op.carried].to_vec(), &x[2 + op.carried..]);
        let mut collected = vec![vec![]; body.outputs.len() - 1 - op.carried];
        let mut i = 0;
        while go && i < trips {
            let args = [&[Tensor::scalar(i)], carried.as_slice(), captures].concat();
            let mut y = env.scoped(|| self.region(body, &args, env))?;
            collected.iter_mut().zip(y.drain(1 + op.carried..)).for_each(|(c, t)| c.push(t));
            go = single("the condition of loop", &y, 0)?.as_bool();
            carried = y.split_off(1);
            i += 1;
        }
        if let Some(symbol) = op.trips.as_sym() {
            env.bind(symbol, i)?;
        }
        let first = [&[Tensor::scalar(0i64)], carried.as_slice(), captures].concat();
        let stacked = stack_all(body, &first, 1 + op.carried, &collected, env)?;
        Ok(carried.into_iter().chain(stacked).collect())
    }

    fn scan(&mut self, op: &Scan, body: &Graph, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let (mut states, rest) = (x[..op.states].to_vec(), &x[op.states..]);
        let (scanned, captures) = rest.split_at(op.scanned);
        let trips = scanned.first().and_then(|t| t.shape().first()).copied().unwrap_or(0);
        if let Some(t) = scanned.iter().find(|t| t.shape().first() != Some(&trips)) {
            return Err(Error::input(format!("scan: {:?} and {:?} have different lengths", t.shape(), scanned[0].shape())));
        }
        let mut collected = vec![vec![]; body.outputs.len() - op.states];
        for i in 0..trips {
            let at = if op.reverse { trips - 1 - i } else { i };
            let slices = scanned.iter().map(|t| element(t, at)).collect::<Result<Vec<Tensor>>>()?;
            let args = [states.as_slice(), &slices, captures].concat();
            let mut y = env.scoped(|| self.region(body, &args, env))?;
            collected.iter_mut().zip(y.drain(op.states..)).for_each(|(c, t)| c.push(t));
            states = y;
        }
        if op.reverse {
            collected.iter_mut().for_each(|c| c.reverse());
        }
        let zero = scanned.iter().map(|t| Tensor::splat(t.dtype(), t.shape()[1..].to_vec(), vec![0; t.dtype().bytes()].into()));
        let first = [states.as_slice(), &zero.collect::<Result<Vec<Tensor>>>()?, captures].concat();
        let stacked = stack_all(body, &first, op.states, &collected, env)?;
        Ok(states.into_iter().chain(stacked).collect())
    }
}

/// Holds the results against the node's types. Sizes that only control flow and composites know are bound here.
fn settle(node: &Node, y: &[Tensor], env: &Env) -> Result<()> {
    if y.len() != node.types.len() {
        return Err(Error::internal(format!("{} results, {} types", y.len(), node.types.len())));
    }
    let binds = node.op.class().is_none_or(|c| c == Class::Control);
    for (ty, t) in node.types.iter().zip(y) {
        if binds && ty.rank() == t.shape().len() {
            for (d, n) in ty.shape.iter().zip(t.shape()) {
                if let Some(symbol) = d.as_sym().filter(|s| env.get(s).is_none()) {
                    env.bind(symbol, *n as i64)?;
                }
            }
        }
        let want = env.shape(&ty.shape)?;
        if ty.dtype != t.dtype() || want != t.shape() {
            // With symbols the sizes of this run are at fault, without them inference or evaluation is.
            let error = if ty.is_static() { Error::internal } else { Error::input };
            return Err(error(format!("the result is {}, the model says {ty} (here {}{want:?})", t.ty(), ty.dtype)));
        }
    }
    Ok(())
}

fn context(e: Error, node: &Node) -> Error {
    let e = e.at(&node.loc);
    if node.name.is_empty() { e } else { e.note(format!("computing `{}` ({})", node.name, node.op.name())) }
}

/// Operand `k`, which must have one element.
fn single(what: &str, x: &[Tensor], k: usize) -> Result<Num> {
    match &x[k] {
        t if t.elems() == 1 => Ok(t.num(0)),
        t => Err(Error::input(format!("{what}: one element is needed, found {}", t.ty()))),
    }
}

/// Element `i` along the first axis.
fn element(t: &Tensor, i: usize) -> Result<Tensor> {
    let shape = t.shape()[1..].to_vec();
    if let Some(e) = t.splat_element() {
        return Tensor::splat(t.dtype(), shape, e.clone());
    }
    let n = t.byte_len() / t.shape()[0];
    Tensor::from_bytes(t.dtype(), shape, t.bytes().slice(i * n..(i + 1) * n))
}

/// Collected results along a new first axis: those of the region's outputs from `skip` on. `args` are arguments as of an iteration,
/// which say how large an element would be where there was none.
fn stack_all(body: &Graph, args: &[Tensor], skip: usize, collected: &[Vec<Tensor>], env: &Env) -> Result<Vec<Tensor>> {
    let stack = |(items, ty): (&Vec<Tensor>, &Type)| {
        let element = match items.first() {
            Some(t) => t.shape().to_vec(),
            None => ty.shape.iter().map(|d: &Dim| d.eval(&|s| env.get(s)).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0)).collect(),
        };
        let shape = [&[items.len()], element.as_slice()].concat();
        let mut bytes = room(ty.dtype, &shape)?;
        for t in items {
            if t.shape() != element || t.dtype() != ty.dtype {
                return Err(Error::input(format!("collected elements differ: {} and {}{element:?}", t.ty(), ty.dtype)));
            }
            bytes.extend_from_slice(&t.bytes());
        }
        Tensor::from_bytes(ty.dtype, shape, bytes.into())
    };
    env.scoped(|| {
        if collected.iter().any(Vec::is_empty) {
            bind_inputs(body, args, env)?;
        }
        collected.iter().zip(body.outputs[skip..].iter().map(|o| body.ty(o.value))).map(stack).collect()
    })
}
