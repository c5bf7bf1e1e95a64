//! Lowering: a graph becomes a program of kernels on buffers.
//!
//! Every primitive has one arm in [`Lowering::node`]. Element-by-element operations, movement and plain reductions are lowered in
//! groups ([`group`]), the others one kernel each. A reshape, and a slice that is one piece of its operand, are the operand's buffer.
//!
//! Sizes: what the inputs decide is an expression over their symbols. A buffer whose size only the run knows takes the least
//! bound that follows from the graph (`non_zero` gives at most one index an element); where there is none, its length is an expression
//! over symbols that steps of the program bind, and the run allocates it.

mod contract;
mod control;
mod conv;
mod group;
mod index;
mod loops;
mod movement;
mod norm;
mod program;
mod random;
mod reduce;
mod scalar;
mod sort;
mod tree;
mod view;
mod window;
mod winograd;

use crate::{attend, expand, fuse, memory};
use index::Scatter;
use loops::Loops;
use nnc_ir::error::{Error, Report, Result};
use nnc_ir::graph::{Graph, NodeId, Value};
use nnc_ir::kernel::{Access, BufferRef, Place, Port, Program, Step, Within};
use nnc_ir::ops::contract::{Conv, Layout};
use nnc_ir::ops::fit::{Relation, relations};
use nnc_ir::ops::movement::PadMode;
use nnc_ir::{Dim, Op, Target, Type};
use program::{Compiled, Emitter, Site};
use rustc_hash::FxHashMap;
use std::collections::HashSet;

pub use group::reshape_is_affine;
pub use movement::contiguous;

/// The program of a graph, its workspace planned. The report names every node that cannot be lowered. The loops are the same for
/// every target but for how they are cut into tasks: a backend puts its own kernels in the place of those that it recognises.
pub fn lower(graph: &Graph, target: &Target) -> Result<Program, Report> {
    let graph = expand::expand(graph, &|op, x| has_kernel(op, x, target))?;
    let mut l = Lowering { out: Emitter::new(&graph.name, target.grain), site: Site::default(), errors: vec![], compiled: FxHashMap::default() };
    let args: Vec<BufferRef> = graph.inputs.iter().enumerate().map(|(i, id)| l.input(&graph, i, *id)).collect();
    let mut targets = vec![];
    for (i, o) in graph.outputs.iter().enumerate() {
        let ty = graph.ty(o.value);
        let buffer = l.out.buffer(ty.dtype, ty.elems(), Place::Output(i as u32));
        l.out.program.outputs.push(Port { name: o.name.clone(), ty: ty.clone(), buffer: buffer.buffer });
        targets.push(buffer);
    }
    l.graph(&graph, &args, &targets);
    if !l.errors.is_empty() {
        return Err(Report(l.errors));
    }
    let mut program = l.out.finish();
    memory::plan(&mut program);
    Ok(program)
}

/// Composites that are lowered as they are, in one kernel.
fn has_kernel(op: &Op, x: &[Type], target: &Target) -> bool {
    match op {
        Op::Attention(_) => attend::keeps(x, target),
        Op::Softmax(_) | Op::LogSoftmax(_) => true,
        // Scale and bias lie as a row of x does.
        Op::LayerNorm(n) => x[1..]
            .iter()
            .all(|t| t.shape.iter().skip_while(|d| d.is(1)).eq(x[0].shape[n.axis..].iter().skip_while(|d| d.is(1))) && t.dtype == x[0].dtype),
        Op::Adam(a) => a.is_plain(x),
        Op::Momentum(m) => m.is_plain(x),
        _ => false,
    }
}

struct Lowering {
    out: Emitter,
    /// The node at hand.
    site: Site,
    errors: Vec<Error>,
    /// Kernels of operations on operands of these types, with results in these places.
    compiled: FxHashMap<(Op, Vec<Type>, Option<Within>), Compiled>,
}

/// A graph or region while it is lowered.
struct Frame<'g> {
    graph: &'g Graph,
    /// Where each value lives.
    values: Vec<Vec<Option<BufferRef>>>,
    /// Where some values are to be computed: the buffers of outputs.
    claims: FxHashMap<Value, BufferRef>,
    /// Convolutions that write into what a pad makes of their result.
    padded: FxHashMap<NodeId, NodeId>,
}

impl Frame<'_> {
    fn set(&mut self, id: NodeId, port: usize, at: BufferRef) {
        self.values[id.0 as usize][port] = Some(at);
    }

    fn get(&self, v: Value) -> Option<&BufferRef> {
        self.values[v.node.0 as usize][v.port as usize].as_ref()
    }
}

impl Lowering {
    fn input(&mut self, graph: &Graph, i: usize, id: NodeId) -> BufferRef {
        let node = graph.node(id);
        let ty = &node.types[0];
        for d in &ty.shape {
            d.symbols(&mut |s| self.out.define_input(s));
        }
        let buffer = self.out.buffer(ty.dtype, ty.elems(), Place::Input(i as u32));
        self.out.program.inputs.push(Port { name: node.name.clone(), ty: ty.clone(), buffer: buffer.buffer });
        buffer
    }

    /// Lowers a graph whose inputs are at `args` and whose results go to `targets`.
    fn graph(&mut self, graph: &Graph, args: &[BufferRef], targets: &[BufferRef]) {
        let inlined = fuse::plan(graph);
        let mut values: Vec<Vec<Option<BufferRef>>> = vec![vec![]; graph.id_bound()];
        for id in graph.ids() {
            values[id.0 as usize] = vec![None; graph.node(id).types.len()];
        }
        let order = graph.order();
        let live = graph.live();
        let claims = self.claims(graph, targets, order.iter().rev().filter(|id| live[id.0 as usize]));
        let padded = padded(graph, &live);
        let mut frame = Frame { graph, values, claims, padded };
        for (id, at) in graph.inputs.iter().zip(args) {
            frame.set(*id, 0, at.clone());
        }
        let mut held = HashSet::new();
        for id in order.into_iter().filter(|id| live[id.0 as usize]) {
            let node = graph.node(id);
            self.site = Site { name: if node.name.is_empty() { node.op.name().into() } else { node.name.clone() }, loc: node.loc.clone() };
            self.check(graph, id, &mut held);
            if !inlined[id.0 as usize]
                && let Err(e) = self.node(&mut frame, id, &inlined)
            {
                self.fail(e);
            }
        }
        for (o, target) in graph.outputs.iter().zip(targets) {
            self.site = Site { name: o.name.clone(), loc: graph.node(o.value.node).loc.clone() };
            match self.operand(&frame, o.value) {
                Ok(at) if at == *target => {}
                Ok(at) => {
                    let site = self.site.clone();
                    if let Err(e) = self.out.copy(&site, graph.ty(o.value), at, target.clone()) {
                        self.fail(e);
                    }
                }
                Err(e) => self.fail(e),
            }
        }
    }

    /// Checks what a node asks of sizes, once for each pair of them.
    fn check(&mut self, graph: &Graph, id: NodeId, held: &mut HashSet<Relation>) {
        let node = graph.node(id);
        let x: Vec<&Type> = node.operands.iter().map(|v| graph.ty(*v)).collect();
        for r in relations(&node.op, &x, &node.types) {
            if r.holds() == Some(false) {
                self.fail(Error::shape(format!("`{}` ({}) needs {r}", self.site.name, node.op.name())));
                continue;
            }
            // Where a size has no value yet, the node's lowering says so.
            if self.out.has_value(&r.a) && self.out.has_value(&r.b) && held.insert(r.clone()) {
                let what = format!("`{}` ({}) needs {r}", self.site.name, node.op.name());
                let (a, b, at_most) = r.compared();
                self.out.step(Step::Check { a, b, at_most, what: what.into() });
            }
        }
    }

    /// Where values are computed so that nobody has to copy them: in the buffer of the output that they are, or in their part of a
    /// concatenation whose parts are one piece each. Once each; `reversed` has users before operands.
    fn claims<'a>(&mut self, graph: &Graph, targets: &[BufferRef], reversed: impl Iterator<Item = &'a NodeId>) -> FxHashMap<Value, BufferRef> {
        let mut out = FxHashMap::default();
        for (o, target) in graph.outputs.iter().zip(targets) {
            let v = computed(graph, o.value);
            // Another name of the same length may have no value yet where `v` is computed.
            let length = &self.out.program.buffers[target.buffer.0 as usize].elems;
            if is_written(graph, v) && (self.out.is_fixed(length) || *length == graph.ty(v).elems()) {
                out.entry(v).or_insert_with(|| target.clone());
            }
        }
        for id in reversed {
            let node = graph.node(*id);
            let Op::Concat(c) = &node.op else { continue };
            if node.types[0].shape[..c.axis].iter().any(|d| !d.is(1)) {
                continue;
            }
            // The parts may be computed before the length of the whole is known.
            let y = Value { node: *id, port: 0 };
            let length = |at: &BufferRef, l: &Lowering| l.out.program.buffers[at.buffer.0 as usize].elems.clone();
            let whole = match out.get(&y) {
                Some(at) => at.clone(),
                None if self.out.limit(&node.types[0].elems()).is_some() => out.entry(y).or_insert(self.out.work(&node.types[0])).clone(),
                None => continue,
            };
            if !self.out.is_fixed(&length(&whole, self)) {
                continue;
            }
            let mut start = Dim::Const(0);
            for operand in &node.operands {
                let (v, part) = (computed(graph, *operand), program::shifted(&whole, start.clone()));
                start = start + graph.ty(*operand).elems();
                if is_written(graph, v) && self.out.is_fixed(&part.offset) {
                    out.entry(v).or_insert(part);
                }
            }
        }
        out
    }

    /// Records an error at the node at hand, but not what follows from another.
    fn fail(&mut self, e: Error) {
        if e != missing() {
            self.errors.push(e.at(&self.site.loc));
        }
    }

    /// Where an operand is; constants are put among the weights when something asks for them.
    fn operand(&mut self, frame: &Frame, v: Value) -> Result<BufferRef> {
        match (frame.get(v), frame.graph.constant(v)) {
            (Some(at), _) => Ok(at.clone()),
            (None, Some(t)) => self.out.weight(t),
            (None, None) => Err(missing()),
        }
    }

    /// Where result `port` is to be computed: the buffer of the output that it is, or workspace.
    fn result(&mut self, frame: &mut Frame, id: NodeId, port: usize) -> Result<BufferRef> {
        let v = Value { node: id, port: port as u32 };
        let at = match frame.claims.get(&v) {
            Some(at) => at.clone(),
            None => self.out.work(frame.graph.ty(v)),
        };
        frame.set(id, port, at.clone());
        Ok(at)
    }

    /// One kernel that computes all results of the node. Built once for equal nodes on equal types.
    fn kernel(&mut self, frame: &mut Frame, id: NodeId, access: Access, f: impl FnOnce(&mut Loops) -> Result<()>) -> Result<()> {
        self.kernel_with(frame, id, access, None, f)
    }

    /// The same with scratch memory as a last parameter, which `f` declares.
    fn kernel_with(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        access: Access,
        scratch: Option<&Type>,
        f: impl FnOnce(&mut Loops) -> Result<()>,
    ) -> Result<()> {
        let node = frame.graph.node(id);
        let x: Vec<Type> = node.operands.iter().map(|v| frame.graph.ty(*v).clone()).collect();
        let mut buffers = node.operands.iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        let pad = frame.padded.get(&id).copied();
        let within = pad.and_then(|pad| match &frame.graph.node(pad).op {
            Op::Pad(p) => Some(Within { shape: frame.graph.node(pad).types[0].shape.clone(), start: p.lo.clone() }),
            _ => None,
        });
        let key = (node.op.clone(), x, within);
        let compiled = match self.compiled.get(&key) {
            Some(c) => c.clone(),
            None => {
                let mut k = Loops::of(&node.op, &key.1, &node.types, access, key.2.as_ref(), self.out.grain);
                f(&mut k)?;
                let compiled = self.out.kernel(k);
                self.compiled.entry(key).or_insert(compiled).clone()
            }
        };
        for port in 0..node.types.len() {
            buffers.push(self.result(frame, pad.unwrap_or(id), port)?);
        }
        buffers.extend(scratch.map(|t| self.out.work(t)));
        let site = self.site.clone();
        self.out.launch_kernel(&site, compiled, buffers)
    }

    /// The node and what is inlined into it as one kernel.
    fn group(&mut self, frame: &mut Frame, id: NodeId, inlined: &[bool]) -> Result<()> {
        let graph = frame.graph;
        let root = Value { node: id, port: 0 };
        let inside = |n: NodeId| n == id || inlined[n.0 as usize];
        let (k, operands) = group::lower(graph, root, &inside, self.out.grain)?;
        let mut buffers = operands.iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        buffers.push(self.result(frame, id, 0)?);
        let site = self.site.clone();
        self.out.launch(&site, k, buffers)
    }

    fn node(&mut self, frame: &mut Frame, id: NodeId, inlined: &[bool]) -> Result<()> {
        let node = frame.graph.node(id);
        self.out.flops(flops(&node.op, &node.operands.iter().map(|v| frame.graph.ty(*v)).collect::<Vec<_>>(), &node.types));
        use Access::{ReadWrite, Write};
        match &node.op {
            Op::Input | Op::Const(_) => Ok(()),
            Op::Map(_) | Op::Cast(_) | Op::Iota(_) | Op::Transpose(_) | Op::Expand(_) | Op::Reduce(_) => self.group(frame, id, inlined),
            Op::Slice(s) => match contiguous(s, &frame.graph.ty(node.operands[0]).shape) {
                Some(offset) => self.alias(frame, id, offset),
                None => self.group(frame, id, inlined),
            },
            Op::Reshape(_) | Op::BitCast(_) | Op::Barrier(_) => self.alias(frame, id, Dim::Const(0)),
            Op::Dims(d) => self.kernel(frame, id, Write, |k| {
                for (i, d) in d.values.iter().enumerate() {
                    let (at, v) = (k.int(i as i64), k.size(d));
                    k.store(0, at, v);
                }
                Ok(())
            }),
            Op::Random(op) => self.kernel(frame, id, Write, |k| random::random(k, op)),
            Op::ReadDims(d) => self.read_dims(frame, id, &d.symbols),
            Op::ArgReduce(op) => self.kernel(frame, id, Write, |k| {
                reduce::arg_reduce(k, op);
                Ok(())
            }),
            Op::Cumulate(op) => self.kernel(frame, id, Write, |k| {
                reduce::cumulate(k, op);
                Ok(())
            }),
            Op::MatMul(op) => self.kernel(frame, id, Write, |k| contract::matmul(k, op)),
            Op::Conv(op @ Conv { layout: Layout::Winograd { block, form, run }, .. }) => {
                let scratch = winograd::scratch(*form, *run, frame.graph.ty(node.operands[0]))?;
                self.kernel_with(frame, id, Write, Some(&scratch), |k| winograd::conv(k, op, *block, *form, &scratch))
            }
            Op::Conv(op) => self.kernel(frame, id, Write, |k| conv::conv(k, op)),
            Op::ConvTranspose(op) => self.kernel(frame, id, Write, |k| conv::conv_transpose(k, op)),
            Op::Pool(op) => self.kernel(frame, id, Write, |k| window::pool(k, op)),
            Op::Concat(op) => self.concat(frame, id, op.axis),
            Op::Interleave(op) => self.interleave(frame, id, op),
            Op::Pad(op) if frame.padded.get(&node.operands[0].node) == Some(&id) => self.halo(frame, id, op),
            Op::Pad(op) if op.mode == PadMode::Constant => self.kernel(frame, id, Write, |k| movement::pad_constant(k, op)),
            Op::Pad(op) => self.kernel(frame, id, Write, |k| movement::pad(k, op)),
            Op::Pack(op) => self.kernel(frame, id, Write, |k| movement::pack(k, op.block)),
            Op::Unpack(_) => self.kernel(frame, id, Write, movement::unpack),
            Op::Gather(op) => {
                let (x, indices) = (frame.graph.ty(node.operands[0]), node.operands[1]);
                let inside = index::all_inside(frame.graph, indices, &x.shape[op.axis]);
                self.kernel(frame, id, Write, |k| index::gather(k, op.axis, inside))
            }
            Op::GatherElements(op) => self.kernel(frame, id, Write, |k| index::gather_elements(k, op.axis)),
            Op::GatherNd(op) => self.kernel(frame, id, Write, |k| index::gather_nd(k, op.batch_dims)),
            Op::ScatterElements(op) => self.scatter(frame, id, Scatter::Elements(op)),
            Op::ScatterNd(op) => self.scatter(frame, id, Scatter::Nd(op.reduction)),
            Op::NonZero(op) => self.non_zero(frame, id, op),
            Op::ImageDecode(op) => self.image_decode(frame, id, op),
            Op::TreeLeaves(op) => self.kernel(frame, id, Write, |k| tree::leaves(k, op)),
            Op::TopK(op) => self.kernel(frame, id, ReadWrite, |k| sort::top_k(k, op)),
            Op::If(_) => self.if_(frame, id),
            Op::Loop(op) => self.loop_(frame, id, op),
            Op::Scan(op) => self.scan(frame, id, op),
            Op::Attention(op) => self.kernel(frame, id, ReadWrite, |k| contract::attention(k, op)),
            Op::Softmax(op) => self.kernel(frame, id, ReadWrite, |k| norm::softmax(k, op.axis, false)),
            Op::LogSoftmax(op) => self.kernel(frame, id, Write, |k| norm::softmax(k, op.axis, true)),
            Op::LayerNorm(op) => self.kernel(frame, id, Write, |k| norm::layer_norm(k, op)),
            op @ (Op::Adam(_) | Op::Momentum(_)) => self.kernel(frame, id, Write, |k| group::composite(k, op)),
            Op::StringConcat(_) | Op::StringSplit(_) | Op::StringNormalize(_) | Op::RegexMatch(_) | Op::StringRank(_) => {
                Err(Error::internal(format!("{} reaches lowering, the host computes it", node.op.name())))
            }
            Op::Gradient(_) => Err(Error::internal("gradient reaches lowering: `differentiate` has not run")),
            nnc_ir::composites!() => Err(Error::internal(format!("{} reaches lowering without being expanded", node.op.name()))),
        }
    }

    /// Binds symbols to the operand's elements, which must not be negative.
    fn read_dims(&mut self, frame: &mut Frame, id: NodeId, symbols: &[Dim]) -> Result<()> {
        let node = frame.graph.node(id);
        let ty = frame.graph.ty(node.operands[0]).clone();
        let from = self.operand(frame, node.operands[0])?;
        let known = frame.graph.known(node.operands[0]).map(<[Dim]>::to_vec);
        let mut k = Loops::new("check_sizes", std::slice::from_ref(&ty), &[], Access::Write, self.out.grain);
        let zero = k.int(0);
        let n = k.size(&ty.elems());
        k.for_each(n, |k, i| {
            let v = k.load(0, i);
            let negative = k.map(nnc_ir::ScalarFn::Less, &[v, zero]);
            k.when(negative, |k| k.fail(nnc_ir::kernel::Fault::Size));
        });
        let site = self.site.clone();
        self.out.launch(&site, k, vec![from.clone()])?;
        for (i, d) in symbols.iter().enumerate() {
            if let Some(symbol) = d.as_sym() {
                self.out.step(Step::Bind { symbol: symbol.clone(), from: program::shifted(&from, Dim::from(i)) });
                let limit = known.as_ref().and_then(|k| self.out.limit(k.get(i)?));
                self.out.define(symbol, limit);
            }
        }
        frame.set(id, 0, from);
        Ok(())
    }
}

/// What an operation says whose operand failed: the cause is reported already.
fn missing() -> Error {
    Error::internal("an operand has no buffer")
}

/// What a value is a view of: reshapes are followed to what they reshape.
fn computed(graph: &Graph, mut v: Value) -> Value {
    while let Op::Reshape(_) = graph.node(v.node).op {
        v = graph.node(v.node).operands[0];
    }
    v
}

/// Convolutions whose result nothing but a pad with zeros reads, and that pad: they write into the padded tensor, and the pad adds
/// what is around.
fn padded(graph: &Graph, live: &[bool]) -> FxHashMap<NodeId, NodeId> {
    let mut readers = vec![0u32; graph.id_bound()];
    let read = graph.ids().filter(|id| live[id.0 as usize]).flat_map(|id| graph.node(id).operands.iter().map(|v| v.node));
    read.chain(graph.outputs.iter().map(|o| o.value.node)).for_each(|id| readers[id.0 as usize] += 1);
    let mut out = FxHashMap::default();
    for id in graph.ids().filter(|id| live[id.0 as usize]) {
        let node = graph.node(id);
        let Op::Pad(pad) = &node.op else { continue };
        let x = node.operands[0].node;
        // Minimal filtering writes whole results only.
        let blocked = matches!(&graph.node(x).op, Op::Conv(c) if !matches!(c.layout, Layout::Plain | Layout::Winograd { .. }));
        let around = pad.lo.iter().zip(&pad.hi).enumerate().all(|(i, (lo, hi))| match (lo.as_const(), hi.as_const()) {
            (Some(lo), Some(hi)) if (2..pad.lo.len() - 1).contains(&i) => lo >= 0 && hi >= 0,
            (lo, hi) => lo == Some(0) && hi == Some(0),
        });
        if blocked && around && readers[x.0 as usize] == 1 && pad.mode == PadMode::Constant && node.operands.len() == 1 {
            out.insert(x, id);
        }
    }
    out
}

/// Whether a kernel of this graph writes the value, all of it and nothing more.
fn is_written(graph: &Graph, v: Value) -> bool {
    let node = graph.node(v.node);
    match &node.op {
        Op::Input | Op::Const(_) | Op::ReadDims(_) | Op::BitCast(_) | Op::Barrier(_) => false,
        Op::Slice(s) => contiguous(s, &graph.ty(node.operands[0]).shape).is_none(),
        // Collected rows are as many as the trip count allows; a reader takes those that were made.
        Op::Loop(l) => (v.port as usize) < l.carried,
        _ => true,
    }
}

/// Floating-point operations of a node; a multiply-add is two.
fn flops(op: &Op, x: &[&Type], y: &[Type]) -> Dim {
    let elems = |t: &Type| t.elems();
    let times = |d: Dim, n: usize| d * Dim::from(n);
    match op {
        Op::Map(_) => elems(&y[0]),
        Op::Reduce(_) | Op::Cumulate(_) | Op::ArgReduce(_) => elems(x[0]),
        Op::MatMul(m) => {
            let depth = x[0].shape.last().cloned().unwrap_or(Dim::Const(1));
            elems(&y[0]) * (times(depth, 2) + Dim::from(m.post.len()))
        }
        Op::Conv(c) => {
            let spatial = c.window(x[1]).map_or(0, |w| w.kernel.len());
            let taps = match c.layout {
                // What the convolution is, not what is left of it.
                Layout::Winograd { block, form, .. } => times(x[1].shape[3].clone(), form.taps * form.taps * block),
                Layout::Blocked(_) if c.inputs > 0 => times(Dim::product(&x[1].shape[2..2 + spatial]), c.inputs),
                Layout::Depthwise(_) => Dim::product(&x[1].shape[1..1 + spatial]),
                Layout::Blocked(b) => times(Dim::product(&x[1].shape[1..2 + spatial]), b),
                _ => Dim::product(&x[1].shape[1..2 + spatial]),
            };
            elems(&y[0]) * (times(taps, 2) + Dim::from(c.post.len()))
        }
        Op::ConvTranspose(_) => times(elems(x[0]) * Dim::product(&x[1].shape[1..]), 2),
        Op::Pool(p) => p.kernel.iter().fold(elems(&y[0]), |d, k| d * Dim::Const(*k)),
        Op::Attention(_) => match (x[0].shape.last(), x[1].shape.iter().rev().nth(1)) {
            (Some(depth), Some(keys)) => keys.clone() * (times(x[0].elems(), 2) + times(elems(&y[0]), 2) + times(x[0].elems().floor_div(depth), 5)),
            _ => Dim::Const(0),
        },
        Op::Softmax(_) | Op::LogSoftmax(_) => times(elems(&y[0]), 5),
        Op::LayerNorm(_) => times(elems(&y[0]), 8),
        Op::Adam(_) => times(elems(&y[0]), 13),
        Op::Momentum(_) => times(elems(&y[0]), 4),
        _ => Dim::Const(0),
    }
}
