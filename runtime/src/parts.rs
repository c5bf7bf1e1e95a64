//! Models of which the host computes a part: what touches strings runs on the interpreter, the rest is compiled.
//!
//! Nodes get levels: what is compiled has even ones, what the host computes odd ones, and no operand is of a higher level than its
//! user. The nodes of a level are one part. A part whose sizes only the run knows is compiled when the run knows them, and kept.

use crate::build;
use crate::options::Options;
use crate::session::Session;
use crate::specialize;
use crate::threads::Pool;
use nnc_ir::attrs::Attr;
use nnc_ir::eval::{self, Env};
use nnc_ir::{Dim, Error, Graph, Node, NodeId, Op, Report, Result, Tensor, Value};
use nnc_passes::host::is_host;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Compiled for different sizes.
const KEPT: usize = 16;

pub struct Parts {
    /// The whole model, for its inputs and outputs.
    graph: Graph,
    parts: Vec<Part>,
    options: Options,
    pool: Arc<Pool>,
}

struct Part {
    host: bool,
    graph: Graph,
    /// What the inputs and outputs of the graph are in the model.
    reads: Vec<Value>,
    gives: Vec<Value>,
    /// Symbols that stand in the part, and those that it gives values to by the elements of an output.
    symbols: BTreeSet<Arc<str>>,
    binds: Vec<(Value, Vec<Dim>)>,
    compiled: Mutex<BTreeMap<Vec<i64>, Arc<Session>>>,
}

impl Parts {
    /// Cuts the graph. What has no symbols is compiled now, so that what is wrong with it is found now.
    pub fn new(graph: Graph, options: &Options, pool: Arc<Pool>) -> Result<Parts, Report> {
        let levels = levels(&graph);
        let highest = levels.iter().flatten().max().copied().unwrap_or(0);
        let parts = (0..=highest).filter_map(|level| part(&graph, &levels, level)).collect();
        let parts = Parts { graph, parts, options: options.clone(), pool };
        for p in parts.parts.iter().filter(|p| !p.host && p.symbols.is_empty()) {
            p.native(&Env::default(), &parts.options, &parts.pool)?;
        }
        Ok(parts)
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let env = Env::default();
        eval::bind_inputs(&self.graph, inputs, &env)?;
        let mut values: HashMap<Value, Tensor> = HashMap::new();
        for (id, t) in self.graph.inputs.iter().zip(inputs) {
            values.insert(Value { node: *id, port: 0 }, t.clone());
        }
        let missing = || Error::internal("a part reads what no part before it gives");
        for p in &self.parts {
            let x = p.reads.iter().map(|v| values.get(v).cloned()).collect::<Option<Vec<Tensor>>>().ok_or_else(missing)?;
            let y = if p.host {
                eval::run(&p.graph, &x, &env)?
            } else {
                p.native(&env, &self.options, &self.pool).map_err(|mut r| r.0.remove(0))?.run(&x)?
            };
            for (v, t) in p.gives.iter().zip(y) {
                self.bind(*v, &t, &env)?;
                values.insert(*v, t);
            }
            for (v, symbols) in &p.binds {
                let sizes = values.get(v).and_then(Tensor::to_ints).ok_or_else(missing)?;
                symbols.iter().zip(sizes).filter_map(|(d, n)| Some((d.as_sym()?, n))).try_for_each(|(s, n)| env.bind(s, n))?;
            }
        }
        let output = |v: &Value| values.get(v).or_else(|| self.graph.constant(*v)).cloned().ok_or_else(missing);
        self.graph.outputs.iter().map(|o| output(&o.value)).collect()
    }

    /// Symbols that have their values from the shape of a result.
    fn bind(&self, v: Value, t: &Tensor, env: &Env) -> Result<()> {
        let sizes = self.graph.ty(v).shape.iter().zip(t.shape());
        sizes.filter_map(|(d, n)| Some((d.as_sym()?, *n as i64))).filter(|(s, _)| env.get(s).is_none()).try_for_each(|(s, n)| env.bind(s, n))
    }
}

impl Part {
    /// The part compiled for the sizes at hand.
    fn native(&self, env: &Env, options: &Options, pool: &Arc<Pool>) -> Result<Arc<Session>, Report> {
        let sizes: Vec<i64> = self.symbols.iter().map(|s| env.get(s).unwrap_or(-1)).collect();
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = compiled.get(&sizes) {
            return Ok(session.clone());
        }
        let graph = specialize::fixed(&self.graph, &|s| env.get(s).map(Dim::Const))?;
        let session = Arc::new(build::jit(graph, options, &mut (), pool.clone())?);
        if compiled.len() == KEPT {
            compiled.clear();
        }
        compiled.insert(sizes, session.clone());
        Ok(session)
    }
}

/// Symbols in the node's types and attributes, those of its regions included.
fn symbols(node: &Node, f: &mut dyn FnMut(&Arc<str>)) {
    fn within(a: &Attr, f: &mut dyn FnMut(&Arc<str>)) {
        match a {
            Attr::Dim(d) => d.symbols(f),
            Attr::List(l) | Attr::Call(_, l) => l.iter().for_each(|a| within(a, f)),
            _ => {}
        }
    }
    node.types.iter().flat_map(|t| &t.shape).for_each(|d| d.symbols(f));
    node.op.attrs().iter().for_each(|(_, a)| within(a, f));
    node.regions.iter().for_each(|region| region.ids().for_each(|id| symbols(region.node(id), f)));
}

/// The level of each node; none for constants, which every part has for itself.
fn levels(graph: &Graph) -> Vec<Option<usize>> {
    let mut out: Vec<Option<usize>> = vec![None; graph.id_bound()];
    let mut known: HashMap<Arc<str>, usize> = HashMap::new();
    for id in graph.order() {
        let node = graph.node(id);
        if matches!(node.op, Op::Const(_)) {
            continue;
        }
        let mut least = node.operands.iter().filter_map(|v| out[v.node.0 as usize]).max().unwrap_or(0);
        symbols(node, &mut |s| least = least.max(known.get(s).copied().unwrap_or(0)));
        let host = !matches!(node.op, Op::Input) && is_host(graph, id);
        let level = if (least % 2 == 1) == host { least } else { least + 1 };
        out[id.0 as usize] = Some(level);
        symbols(node, &mut |s| {
            known.entry(s.clone()).or_insert(level);
        });
    }
    out
}

/// The nodes of a level as a graph of their own; `None` where there are none.
fn part(graph: &Graph, levels: &[Option<usize>], level: usize) -> Option<Part> {
    let here = |id: NodeId| levels[id.0 as usize] == Some(level) && !matches!(graph.node(id).op, Op::Input);
    let live = graph.live();
    let needed = |id: NodeId| live[id.0 as usize] || matches!(graph.node(id).op, Op::ReadDims(_));
    let nodes: Vec<NodeId> = graph.order().into_iter().filter(|id| here(*id) && needed(*id)).collect();
    if nodes.is_empty() {
        return None;
    }
    let mut out = Graph::new(&*graph.name);
    let (mut map, mut reads, mut binds) = (HashMap::<Value, Value>::new(), vec![], vec![]);
    let mut all = BTreeSet::new();
    let mut note = |node: &Node| {
        symbols(node, &mut |s| {
            all.insert(s.clone());
        });
    };
    for id in &nodes {
        let node = graph.node(*id);
        let mut copy = node.clone();
        for v in &mut copy.operands {
            let old = *v;
            *v = *map.entry(old).or_insert_with(|| {
                let source = graph.node(old.node);
                if matches!(source.op, Op::Const(_)) {
                    return Value { node: out.add(source.clone()), port: 0 };
                }
                reads.push(old);
                let (types, known) = (vec![graph.ty(old).clone()], vec![graph.known(old).map(Arc::from)]);
                let input = Node { op: Op::Input, operands: vec![], types, known, regions: vec![], name: "".into(), loc: source.loc.clone() };
                note(&input);
                Value { node: out.add(input), port: 0 }
            });
        }
        note(node);
        if let Op::ReadDims(r) = &node.op {
            binds.push((Value { node: *id, port: 0 }, r.symbols.clone()));
        }
        let new = out.add(copy);
        map.extend((0..node.types.len() as u32).map(|port| (Value { node: *id, port }, Value { node: new, port })));
    }
    let mut gives = vec![];
    for id in &nodes {
        let read = graph.node(*id);
        for v in (0..read.types.len() as u32).map(|port| Value { node: *id, port }) {
            let outside = graph.uses(v).iter().any(|(user, _)| !here(*user));
            // A part is there for its results: its checks are among them.
            if outside || graph.ends().any(|end| end == v) || binds.iter().any(|(b, _)| *b == v) {
                out.outputs.push(nnc_ir::graph::Output { name: format!("{}", gives.len()).into(), value: map[&v] });
                gives.push(v);
            }
        }
    }
    Some(Part { host: level % 2 == 1, graph: out, reads, gives, symbols: all, binds, compiled: Mutex::default() })
}
