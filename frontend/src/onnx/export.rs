//! A graph as an ONNX file: one match over the operations, the reverse of the importer's table.
//!
//! What ONNX has no operator for is spelled out in others, or refused with the operation's name: nothing is written that means something
//! else. Composites that ONNX has are written as such, the others by their expansion.

use super::proto::*;
use super::tensor::to_proto;
use bytes::Bytes;
use nnc_ir::builder::expansion;
use nnc_ir::dim::{Atom, DimNode};
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::{Layout, Post};
use nnc_ir::ops::index::ScatterKind;
use nnc_ir::ops::movement::PadMode;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::window::PoolKind;
use nnc_ir::{DType, Dim, Error, Graph, Node, Op, Result, ScalarFn, Tensor, Type, Value};
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The operator set that files are written for, and the IR version that goes with it.
const OPSET: i64 = 20;
const IR_VERSION: i64 = 9;

/// The bytes of an ONNX file.
pub fn export(graph: &Graph) -> Result<Vec<u8>> {
    let mut w = Writer::default();
    let mut out = GraphProto { name: bytes(if graph.name.is_empty() { "graph" } else { &graph.name }), ..GraphProto::default() };
    let mut values = Names::new();
    for id in &graph.inputs {
        let node = graph.node(*id);
        let name = w.unique(&node.name);
        for (axis, d) in node.types[0].shape.iter().enumerate() {
            if let Some(s) = d.as_sym() {
                w.symbols.entry(s.clone()).or_insert((name.clone(), axis));
            }
        }
        out.input.push(info(&name, &node.types[0]));
        values.insert(Value { node: *id, port: 0 }, name);
    }
    // Outputs keep their names: what is computed for them takes others. But a file has each name once, and what goes from step to step is an
    // input and an output.
    let inputs: HashSet<String> = w.taken.clone();
    let mut names = vec![];
    for o in &graph.outputs {
        names.push(w.unique(&if inputs.contains(&*o.name) { format!("{}_next", o.name) } else { o.name.to_string() }));
    }
    w.graph(graph, &mut values)?;
    for (o, name) in graph.outputs.iter().zip(names) {
        let from = w.name(&values, graph, o.value)?;
        out.output.push(info(&name, graph.ty(o.value)));
        w.node("Identity", vec![from], vec![name], vec![]);
    }
    out.node = w.nodes;
    out.initializer = w.constants;
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: bytes("nnc"),
        producer_version: bytes(env!("CARGO_PKG_VERSION")),
        graph: Some(Box::new(out)),
        opset_import: vec![OperatorSetIdProto { domain: Bytes::new(), version: OPSET }],
        ..ModelProto::default()
    };
    Ok(model.encode_to_vec())
}

type Names = HashMap<Value, String>;

fn bytes(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn info(name: &str, ty: &Type) -> ValueInfoProto {
    let dim = |d: &Dim| Dimension {
        value: match (d.as_const(), d.as_sym()) {
            (Some(n), _) => Some(DimKind::Value(n)),
            (_, Some(s)) => Some(DimKind::Param(bytes(s))),
            _ => None,
        },
    };
    let shape = TensorShapeProto { dim: ty.shape.iter().map(dim).collect() };
    let tensor = TensorType { elem_type: ty.dtype.abi_code(), shape: Some(shape) };
    ValueInfoProto { name: bytes(name), r#type: Some(TypeProto { value: Some(TypeKind::Tensor(tensor)) }) }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: bytes(name), i: Some(i), r#type: attribute_type::INT, ..AttributeProto::default() }
}

fn ints(name: &str, v: &[i64]) -> AttributeProto {
    AttributeProto { name: bytes(name), ints: v.to_vec(), r#type: attribute_type::INTS, ..AttributeProto::default() }
}

fn float(name: &str, x: f64) -> AttributeProto {
    AttributeProto { name: bytes(name), f: Some(x as f32), r#type: attribute_type::FLOAT, ..AttributeProto::default() }
}

fn word(name: &str, s: &str) -> AttributeProto {
    AttributeProto { name: bytes(name), s: Some(bytes(s)), r#type: attribute_type::STRING, ..AttributeProto::default() }
}

fn body(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { name: bytes(name), g: Some(Box::new(g)), r#type: attribute_type::GRAPH, ..AttributeProto::default() }
}

#[derive(Default)]
struct Writer {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    taken: HashSet<String>,
    /// Names of nodes: no two have one.
    labels: HashSet<Arc<str>>,
    /// Where a symbol's value is found: an axis of a value.
    symbols: HashMap<Arc<str>, (String, usize)>,
}

impl Writer {
    fn unique(&mut self, stem: &str) -> String {
        let stem = if stem.is_empty() { "v" } else { stem };
        let mut name = stem.to_string();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{stem}_{n}");
        }
        name
    }

    fn node(&mut self, op: &str, inputs: Vec<String>, outputs: Vec<String>, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|s| bytes(s)).collect(),
            output: outputs.iter().map(|s| bytes(s)).collect(),
            op_type: bytes(op),
            attribute,
            ..NodeProto::default()
        });
    }

    /// A node of one result with a name of its own.
    fn call(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let y = self.unique("");
        self.node(op, inputs.iter().map(|s| s.to_string()).collect(), vec![y.clone()], attribute);
        y
    }

    fn constant(&mut self, name: &str, t: &Tensor) -> String {
        let name = self.unique(name);
        self.constants.push(to_proto(&name, t));
        name
    }

    fn vector(&mut self, v: &[i64]) -> String {
        self.constant("", &Tensor::new(&[v.len()], v))
    }

    fn scalar(&mut self, dtype: DType, x: f64) -> String {
        self.constant("", &Tensor::scalar_of(dtype, x))
    }

    /// An `i64` vector of sizes.
    fn dims(&mut self, dims: &[Dim]) -> Result<String> {
        if let Some(known) = dims.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            return Ok(self.vector(&known));
        }
        let parts = dims.iter().map(|d| self.dim(d)).collect::<Result<Vec<String>>>()?;
        Ok(self.call("Concat", &parts.iter().map(String::as_str).collect::<Vec<_>>(), vec![int("axis", 0)]))
    }

    /// A size as an `i64[1]`.
    fn dim(&mut self, d: &Dim) -> Result<String> {
        let terms = match d.node() {
            DimNode::Const(c) => return Ok(self.vector(&[c])),
            DimNode::Sum(terms) => terms,
        };
        let mut sum: Option<String> = None;
        for (c, atoms) in terms {
            let mut product = self.vector(&[c]);
            for a in atoms {
                let a = self.atom(a)?;
                product = self.call("Mul", &[&product, &a], vec![]);
            }
            sum = Some(match sum {
                Some(s) => self.call("Add", &[&s, &product], vec![]),
                None => product,
            });
        }
        sum.ok_or_else(|| Error::internal("an empty sum of sizes"))
    }

    fn atom(&mut self, a: &Atom) -> Result<String> {
        let (op, x, y) = match a {
            Atom::Sym(s) => {
                let (value, axis) = self.symbols.get(s).cloned().ok_or_else(|| {
                    Error::unsupported(format!("the size {s} is no axis of an input: ONNX has no name for it")).note("`--dim` fixes sizes")
                })?;
                return Ok(self.call("Shape", &[&value], vec![int("start", axis as i64), int("end", axis as i64 + 1)]));
            }
            // Sizes are not negative: division towards zero is division down.
            Atom::FloorDiv(x, y) => ("Div", x, y),
            Atom::Mod(x, y) => ("Mod", x, y),
            Atom::Max(x, y) => ("Max", x, y),
            Atom::Min(x, y) => ("Min", x, y),
            Atom::Stretch(x, y) => return self.dim(&Dim::stretch_formula(x, y)),
        };
        let (x, y) = (self.dim(x)?, self.dim(y)?);
        Ok(self.call(op, &[&x, &y], vec![]))
    }

    fn name(&mut self, values: &Names, graph: &Graph, v: Value) -> Result<String> {
        match values.get(&v) {
            Some(name) => Ok(name.clone()),
            None => Err(Error::internal(format!("a value of {} has no name", graph.node(v.node).op.name()))),
        }
    }

    /// Writes the nodes of a graph whose inputs have names.
    fn graph(&mut self, graph: &Graph, values: &mut Names) -> Result<()> {
        let live = graph.live();
        for id in graph.order() {
            let node = graph.node(id);
            if !live[id.0 as usize] || matches!(node.op, Op::Input) {
                continue;
            }
            let x = node.operands.iter().map(|v| self.name(values, graph, *v)).collect::<Result<Vec<String>>>()?;
            let types: Vec<Type> = node.operands.iter().map(|v| graph.ty(*v).clone()).collect();
            let before = self.nodes.len();
            let y = self.operation(node, &x, &types).map_err(|e| e.at(&node.loc).note(format!("exporting {} `{}`", node.op.name(), node.name)))?;
            if let Some(first) = self.nodes.get_mut(before).filter(|_| !node.name.is_empty() && self.labels.insert(node.name.clone())) {
                first.name = bytes(&node.name);
            }
            for (port, name) in y.into_iter().enumerate() {
                values.insert(Value { node: id, port: port as u32 }, name);
            }
        }
        Ok(())
    }

    /// Parts of which every so many elements come from the same one, an axis after the other.
    fn interleave(&mut self, x: &[String], types: &[Type], steps: &[usize]) -> Result<String> {
        let mut parts: Vec<(String, Vec<Dim>)> = x.iter().cloned().zip(types.iter().map(|t| t.shape.clone())).collect();
        for (axis, step) in steps.iter().enumerate().rev().filter(|(_, step)| **step > 1) {
            parts = parts.chunks(*step).map(|turns| self.in_turn(turns, axis)).collect::<Result<_>>()?;
        }
        parts.pop().map(|(name, _)| name).ok_or_else(|| Error::internal("parts of nothing"))
    }

    /// Values whose elements along an axis follow each other in turn: as columns of a new axis behind it, the shorter ones filled up.
    fn in_turn(&mut self, turns: &[(String, Vec<Dim>)], axis: usize) -> Result<(String, Vec<Dim>)> {
        let (longest, behind) = (turns[0].1[axis].clone(), self.vector(&[axis as i64 + 1]));
        let mut columns = vec![];
        for (name, shape) in turns {
            let missing = longest.clone() - shape[axis].clone();
            let mut name = name.clone();
            if !missing.is(0) {
                let mut pads = vec![Dim::Const(0); 2 * shape.len()];
                pads[shape.len() + axis] = missing;
                let pads = self.dims(&pads)?;
                name = self.call("Pad", &[&name, &pads], vec![]);
            }
            columns.push(self.call("Unsqueeze", &[&name, &behind], vec![]));
        }
        let y = self.call("Concat", &columns.iter().map(String::as_str).collect::<Vec<_>>(), vec![int("axis", axis as i64 + 1)]);
        let (mut shape, all) = (turns[0].1.clone(), longest * Dim::from(turns.len()));
        shape[axis] = all.clone();
        let sizes = self.dims(&shape)?;
        let mut y = self.call("Reshape", &[&y, &sizes], vec![]);
        let length = turns.iter().fold(Dim::Const(0), |n, (_, s)| n + s[axis].clone());
        if length != all {
            let (start, end, along) = (self.vector(&[0]), self.dims(std::slice::from_ref(&length))?, self.vector(&[axis as i64]));
            y = self.call("Slice", &[&y, &start, &end, &along], vec![]);
            shape[axis] = length;
        }
        Ok((y, shape))
    }

    fn operation(&mut self, node: &Node, x: &[String], types: &[Type]) -> Result<Vec<String>> {
        let r: Vec<&str> = x.iter().map(String::as_str).collect();
        let axes = |v: &[usize]| v.iter().map(|a| *a as i64).collect::<Vec<i64>>();
        let window = |strides: &[i64], dilations: &[i64], pads: &[i64]| {
            let given = [("strides", strides), ("dilations", dilations), ("pads", pads)];
            given.into_iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| ints(n, v)).collect::<Vec<_>>()
        };
        let one = |s: String| Ok(vec![s]);
        let no = |what: &str| Err(Error::unsupported(format!("ONNX has no operator for {what}")));
        match &node.op {
            Op::Const(c) => one(self.constant(&node.name, &c.0)),
            Op::Map(f) => one(self.map(*f, &r, &types[types.len() - 1])?),
            Op::Cast(c) => one(self.call("Cast", &r, vec![int("to", c.to.abi_code().into())])),
            Op::Dims(d) => {
                let v = self.dims(&d.values)?;
                let shape: &[i64] = if d.scalar { &[] } else { &[-1] };
                let shape = self.vector(shape);
                one(self.call("Reshape", &[&v, &shape], vec![]))
            }
            Op::Iota(i) => {
                let (zero, one_) = (self.scalar(DType::I64, 0.0), self.scalar(DType::I64, 1.0));
                let n = self.dim(&i.shape[i.axis])?;
                let scalar = self.vector(&[]);
                let n = self.call("Reshape", &[&n, &scalar], vec![]);
                let ramp = self.call("Range", &[&zero, &n, &one_], vec![]);
                let column: Vec<i64> = (0..i.shape.len()).map(|a| if a == i.axis { -1 } else { 1 }).collect();
                let (column, shape) = (self.vector(&column), self.dims(&i.shape)?);
                let ramp = self.call("Reshape", &[&ramp, &column], vec![]);
                one(self.call("Expand", &[&ramp, &shape], vec![]))
            }
            Op::Reduce(o) => {
                let op = match o.kind {
                    ReduceKind::Sum => "ReduceSum",
                    ReduceKind::Prod => "ReduceProd",
                    ReduceKind::Max => "ReduceMax",
                    ReduceKind::Min => "ReduceMin",
                };
                let a = self.vector(&axes(&o.axes));
                one(self.call(op, &[r[0], &a], vec![int("keepdims", o.keepdims.into()), int("noop_with_empty_axes", 1)]))
            }
            Op::ArgReduce(o) => {
                let op = if o.kind == ReduceKind::Max { "ArgMax" } else { "ArgMin" };
                let attrs = vec![int("axis", o.axis as i64), int("keepdims", o.keepdims.into()), int("select_last_index", o.last.into())];
                one(self.call(op, &r, attrs))
            }
            Op::Cumulate(o) if o.kind == ReduceKind::Sum => {
                let axis = self.scalar(DType::I64, o.axis as f64);
                one(self.call("CumSum", &[r[0], &axis], vec![int("exclusive", o.exclusive.into()), int("reverse", o.reverse.into())]))
            }
            Op::Cumulate(_) => no("running products and extrema in this operator set"),
            Op::Barrier(_) => one(self.call("Identity", &r, vec![])),
            Op::BitCast(_) => no("bits read as another type in this operator set"),
            Op::Random(_) => no("random numbers that are counted by element"),
            Op::Interleave(i) => one(self.interleave(x, types, &i.steps)?),
            Op::TreeLeaves(_) => no("trees"),
            Op::MatMul(m) => {
                if m.is_packed() {
                    return no("packed weights: export before the passes that pack");
                }
                let w = if m.transposed && types[1].rank() >= 2 {
                    let rank = types[1].rank();
                    let mut perm: Vec<i64> = (0..rank as i64).collect();
                    perm.swap(rank - 2, rank - 1);
                    self.call("Transpose", &[r[1]], vec![ints("perm", &perm)])
                } else {
                    x[1].clone()
                };
                let y = self.call("MatMul", &[r[0], &w], vec![]);
                one(self.steps(&m.post, y, &x[2..], None, node.types[0].dtype)?)
            }
            Op::Conv(c) => {
                if c.layout != Layout::Plain {
                    return no("blocks of channels: export before the passes that choose layouts");
                }
                let attrs = [window(&c.strides, &c.dilations, &c.pads), vec![int("group", c.group as i64)]].concat();
                let y = self.call("Conv", &r[..2], attrs);
                one(self.steps(&c.post, y, &x[2..], Some(node.types[0].rank()), node.types[0].dtype)?)
            }
            Op::ConvTranspose(c) => {
                let mut attrs = [window(&c.strides, &c.dilations, &c.pads), vec![int("group", c.group as i64)]].concat();
                if !c.output_padding.is_empty() {
                    attrs.push(ints("output_padding", &c.output_padding));
                }
                let y = self.call("ConvTranspose", &r[..2], attrs);
                one(self.steps(&c.post, y, &x[2..], Some(node.types[0].rank()), node.types[0].dtype)?)
            }
            Op::Pool(p) => {
                if p.block > 0 {
                    return no("blocks of channels: export before the passes that choose layouts");
                }
                let mut attrs = window(&p.strides, &p.dilations, &p.pads);
                attrs.extend([ints("kernel_shape", &p.kernel), int("ceil_mode", p.ceil.into())]);
                if p.kind == PoolKind::Max {
                    let y: Vec<String> = node.types.iter().map(|_| self.unique("")).collect();
                    self.node("MaxPool", x.to_vec(), y.clone(), attrs);
                    return Ok(y);
                }
                if p.kind == PoolKind::Sum && p.ceil {
                    return no("sums over windows that reach over the end");
                }
                attrs.push(int("count_include_pad", (p.kind != PoolKind::Average).into()));
                let y = self.call("AveragePool", &r, attrs);
                if p.kind != PoolKind::Sum {
                    return one(y);
                }
                let n = self.scalar(types[0].dtype, p.kernel.iter().map(|k| *k as f64).product());
                one(self.call("Mul", &[&y, &n], vec![]))
            }
            Op::Transpose(t) => one(self.call("Transpose", &r, vec![ints("perm", &axes(&t.perm))])),
            Op::Reshape(o) => {
                let shape = self.dims(&o.shape)?;
                one(self.call("Reshape", &[r[0], &shape], vec![int("allowzero", 1)]))
            }
            Op::Expand(o) => {
                let shape = self.dims(&o.shape)?;
                one(self.call("Expand", &[r[0], &shape], vec![]))
            }
            Op::Slice(s) => {
                let all: Vec<i64> = (0..types[0].rank() as i64).collect();
                let steps: Vec<i64> = all.iter().map(|a| s.step(*a as usize)).collect();
                // One step behind the last; backwards to before the first, for which ONNX has a number that is far below.
                let end = |a: usize| match (s.starts[a].clone() + s.sizes[a].clone() * Dim::Const(steps[a]), steps[a] < 0) {
                    (Dim::Const(e), true) if e < 0 => Dim::Const(i64::MIN + 1),
                    (e, _) => e,
                };
                if steps.iter().zip(&s.starts).any(|(step, start)| *step < 0 && start.as_const().is_none()) {
                    return no("a slice backwards from a place that only the run knows");
                }
                let ends: Vec<Dim> = (0..all.len()).map(end).collect();
                let (starts, ends, all, steps) = (self.dims(&s.starts)?, self.dims(&ends)?, self.vector(&all), self.vector(&steps));
                one(self.call("Slice", &[r[0], &starts, &ends, &all, &steps], vec![]))
            }
            Op::Concat(c) => one(self.call("Concat", &r, vec![int("axis", c.axis as i64)])),
            Op::Pad(p) => {
                let mode = match p.mode {
                    PadMode::Constant => "constant",
                    PadMode::Reflect => "reflect",
                    PadMode::Edge => "edge",
                    PadMode::Wrap => "wrap",
                };
                let pads = self.dims(&[&p.lo[..], &p.hi[..]].concat())?;
                let mut inputs = vec![x[0].clone(), pads];
                if let Some(v) = x.get(1) {
                    let scalar = self.vector(&[]);
                    inputs.push(self.call("Reshape", &[v, &scalar], vec![]));
                }
                one(self.call("Pad", &inputs.iter().map(String::as_str).collect::<Vec<_>>(), vec![word("mode", mode)]))
            }
            Op::Gather(o) => one(self.call("Gather", &r, vec![int("axis", o.axis as i64)])),
            Op::GatherElements(o) => one(self.call("GatherElements", &r, vec![int("axis", o.axis as i64)])),
            Op::GatherNd(o) => {
                let at = self.wide(r[1], &types[1]);
                one(self.call("GatherND", &[r[0], &at], vec![int("batch_dims", o.batch_dims as i64)]))
            }
            Op::ScatterElements(o) => {
                one(self.call("ScatterElements", &r, vec![int("axis", o.axis as i64), word("reduction", reduction(o.reduction))]))
            }
            Op::ScatterNd(o) => {
                let at = self.wide(r[1], &types[1]);
                one(self.call("ScatterND", &[r[0], &at, r[2]], vec![word("reduction", reduction(o.reduction))]))
            }
            Op::TopK(o) => {
                let k = self.dim(&o.k)?;
                let y = vec![self.unique(""), self.unique("")];
                let attrs = vec![int("axis", o.axis as i64), int("largest", o.largest.into()), int("sorted", 1)];
                self.node("TopK", vec![x[0].clone(), k], y.clone(), attrs);
                Ok(y)
            }
            Op::If(_) => {
                let branches = node.regions.iter().map(|g| self.region(g, &[], &x[1..])).collect::<Result<Vec<GraphProto>>>()?;
                let [yes, no] = <[GraphProto; 2]>::try_from(branches).map_err(|_| Error::internal("two branches"))?;
                let y: Vec<String> = node.types.iter().map(|_| self.unique("")).collect();
                self.node("If", vec![x[0].clone()], y.clone(), vec![body("then_branch", yes), body("else_branch", no)]);
                Ok(y)
            }
            Op::Scan(s) => {
                let own = s.states + s.scanned;
                let own_types: Vec<Type> = node.regions[0].inputs[..own].iter().map(|id| node.regions[0].node(*id).types[0].clone()).collect();
                let region = self.region(&node.regions[0], &own_types, &x[own..])?;
                let direction = |n: usize| vec![i64::from(s.reverse); n];
                let attrs = vec![
                    body("body", region),
                    int("num_scan_inputs", s.scanned as i64),
                    ints("scan_input_directions", &direction(s.scanned)),
                    ints("scan_output_directions", &direction(node.types.len() - s.states)),
                ];
                let y: Vec<String> = node.types.iter().map(|_| self.unique("")).collect();
                self.node("Scan", x[..own].to_vec(), y.clone(), attrs);
                Ok(y)
            }
            Op::Softmax(o) => one(self.call("Softmax", &r, vec![int("axis", o.axis as i64)])),
            Op::LogSoftmax(o) => one(self.call("LogSoftmax", &r, vec![int("axis", o.axis as i64)])),
            Op::BatchNorm(o) => one(self.call("BatchNormalization", &r, vec![float("epsilon", o.epsilon.0)])),
            Op::InstanceNorm(o) => one(self.call("InstanceNormalization", &r, vec![float("epsilon", o.epsilon.0)])),
            Op::LayerNorm(o) => one(self.call("LayerNormalization", &r, vec![int("axis", o.axis as i64), float("epsilon", o.epsilon.0)])),
            Op::Lrn(o) => {
                let numbers = vec![float("alpha", o.alpha.0), float("beta", o.beta.0), float("bias", o.bias.0), int("size", o.size as i64)];
                one(self.call("LRN", &r, numbers))
            }
            Op::StringConcat(_)
            | Op::StringSplit(_)
            | Op::StringNormalize(_)
            | Op::RegexMatch(_)
            | Op::StringRank(_)
            | Op::ImageDecode(_)
            | Op::WinogradFilter(_)
            | Op::Input
            | Op::ReadDims(_)
            | Op::NonZero(_)
            | Op::Loop(_)
            | Op::Pack(_)
            | Op::Unpack(_)
            | Op::Gradient(_) => Err(Error::unsupported(format!("{} is not exported to ONNX", node.op.name()))),
            nnc_ir::composites!() => self.expanded(&node.op, x, types),
        }
    }

    /// A composite as the operations that it consists of.
    fn expanded(&mut self, op: &Op, x: &[String], types: &[Type]) -> Result<Vec<String>> {
        let graph = expansion(op, types)?;
        let mut values: Names = graph.inputs.iter().zip(x).map(|(id, n)| (Value { node: *id, port: 0 }, n.clone())).collect();
        self.graph(&graph, &mut values)?;
        graph.outputs.iter().map(|o| self.name(&values, &graph, o.value)).collect()
    }

    /// A region: inputs of its own first, then values that it sees outside.
    fn region(&mut self, graph: &Graph, own: &[Type], outside: &[String]) -> Result<GraphProto> {
        let mut out = GraphProto { name: bytes("body"), ..GraphProto::default() };
        let mut values = Names::new();
        let nodes = std::mem::take(&mut self.nodes);
        for (i, id) in graph.inputs.iter().enumerate() {
            let name = match own.get(i) {
                Some(ty) => {
                    let name = self.unique("");
                    out.input.push(info(&name, ty));
                    name
                }
                None => outside[i - own.len()].clone(),
            };
            values.insert(Value { node: *id, port: 0 }, name);
        }
        self.graph(graph, &mut values)?;
        for o in &graph.outputs {
            let from = self.name(&values, graph, o.value)?;
            let name = self.call("Identity", &[&from], vec![]);
            out.output.push(info(&name, graph.ty(o.value)));
        }
        out.node = std::mem::replace(&mut self.nodes, nodes);
        Ok(out)
    }

    /// Indices as `i64`, the only type that some operators take.
    fn wide(&mut self, x: &str, ty: &Type) -> String {
        if ty.dtype == DType::I64 { x.to_string() } else { self.call("Cast", &[x], vec![int("to", DType::I64.abi_code().into())]) }
    }

    /// The epilogue of a contraction. `rank`: of a result with its channels second.
    fn steps(&mut self, post: &[Post], mut y: String, extra: &[String], rank: Option<usize>, dtype: DType) -> Result<String> {
        let mut extra = extra.iter();
        for p in post {
            let operand = match (p, if p.has_operand() { extra.next() } else { None }) {
                (Post::Bias | Post::Scale, Some(v)) => match rank {
                    Some(rank) => {
                        let mut shape = vec![1; rank - 1];
                        shape[0] = -1;
                        let shape = self.vector(&shape);
                        Some(self.call("Reshape", &[v, &shape], vec![]))
                    }
                    None => Some(v.clone()),
                },
                (_, v) => v.cloned(),
            };
            y = match (p, operand) {
                (Post::Bias | Post::Add, Some(v)) => self.call("Add", &[&y, &v], vec![]),
                (Post::Scale, Some(v)) => self.call("Mul", &[&y, &v], vec![]),
                (Post::Act(Act::Fn(f)), _) => self.map(*f, &[&y], &Type::new(dtype, vec![]))?,
                (Post::Act(a), _) => {
                    let op = Op::Activation(nnc_ir::ops::composite::activation::Activation { act: *a });
                    self.expanded(&op, &[y], &[Type::new(dtype, vec![])])?.remove(0)
                }
                (_, None) => y,
            };
        }
        Ok(y)
    }

    fn map(&mut self, f: ScalarFn, x: &[&str], ty: &Type) -> Result<String> {
        use ScalarFn::*;
        let name = match f {
            Neg => "Neg",
            Abs => "Abs",
            Sign => "Sign",
            Relu => "Relu",
            Sqrt => "Sqrt",
            Exp => "Exp",
            Log => "Log",
            Reciprocal => "Reciprocal",
            Sin => "Sin",
            Cos => "Cos",
            Tan => "Tan",
            Asin => "Asin",
            Acos => "Acos",
            Atan => "Atan",
            Sinh => "Sinh",
            Cosh => "Cosh",
            Tanh => "Tanh",
            Asinh => "Asinh",
            Acosh => "Acosh",
            Atanh => "Atanh",
            Erf => "Erf",
            Sigmoid => "Sigmoid",
            Floor => "Floor",
            Ceil => "Ceil",
            Round => "Round",
            IsNan => "IsNaN",
            IsInf => "IsInf",
            Not => "Not",
            BitNot => "BitwiseNot",
            Add => "Add",
            Sub => "Sub",
            Mul => "Mul",
            Div => "Div",
            Pow => "Pow",
            Max => "Max",
            Min => "Min",
            Equal => "Equal",
            Less => "Less",
            LessEqual => "LessOrEqual",
            Greater => "Greater",
            GreaterEqual => "GreaterOrEqual",
            And => "And",
            Or => "Or",
            Xor => "Xor",
            BitAnd => "BitwiseAnd",
            BitOr => "BitwiseOr",
            BitXor => "BitwiseXor",
            Where => "Where",
            Mod if !ty.dtype.is_float() => "Mod",
            Fmod => return Ok(self.call("Mod", x, vec![int("fmod", 1)])),
            // a - b floor(a / b).
            Mod => {
                let quotient = self.call("Div", x, vec![]);
                let whole = self.call("Floor", &[&quotient], vec![]);
                let back = self.call("Mul", &[x[1], &whole], vec![]);
                return Ok(self.call("Sub", &[x[0], &back], vec![]));
            }
            Trunc => {
                let (sign, size) = (self.call("Sign", x, vec![]), self.call("Abs", x, vec![]));
                let whole = self.call("Floor", &[&size], vec![]);
                return Ok(self.call("Mul", &[&sign, &whole], vec![]));
            }
            Shl | Shr if ty.dtype.is_unsigned_int() => {
                return Ok(self.call("BitShift", x, vec![word("direction", if f == Shl { "LEFT" } else { "RIGHT" })]));
            }
            Atan2 | Shl | Shr => return Err(Error::unsupported(format!("ONNX has no operator for {}", f.name()))),
        };
        Ok(self.call(name, x, vec![]))
    }
}

fn reduction(k: ScatterKind) -> &'static str {
    match k {
        ScatterKind::Set => "none",
        ScatterKind::Add => "add",
        ScatterKind::Mul => "mul",
        ScatterKind::Max => "max",
        ScatterKind::Min => "min",
    }
}
