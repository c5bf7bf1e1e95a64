//! One call of an ONNX operator, free of any file format: the `.nn` elaborator and the protobuf importer both make these.

use nnc_ir::eval::Env;
use nnc_ir::ops::fit::with_open_sizes;
use nnc_ir::ops::map::Cast;
use nnc_ir::ops::source::Dims;
use nnc_ir::ops::{Class, Op, Primitive};
use nnc_ir::types::normalize_axis;
use nnc_ir::{Builder, DType, Dim, Error, Graph, Report, Result, Tensor, Type, V, Value};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// The value of an attribute.
#[derive(Clone)]
pub enum Attr<'g> {
    Int(i64),
    /// ONNX floats are f32; they are widened.
    Float(f64),
    Str(String),
    Tensor(Tensor),
    Region(Rc<dyn Region<'g> + 'g>),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Strs(Vec<String>),
    /// A sparse tensor, written out in full.
    Sparse(Tensor),
    /// A kind that no operator here takes, by name.
    Other(&'static str),
}

impl Attr<'_> {
    /// The same for a call elsewhere; none for a body, which belongs to its place.
    fn without_body<'c>(&self) -> Option<Attr<'c>> {
        Some(match self {
            Attr::Int(i) => Attr::Int(*i),
            Attr::Float(x) => Attr::Float(*x),
            Attr::Str(s) => Attr::Str(s.clone()),
            Attr::Tensor(t) => Attr::Tensor(t.clone()),
            Attr::Region(_) => return None,
            Attr::Ints(v) => Attr::Ints(v.clone()),
            Attr::Floats(v) => Attr::Floats(v.clone()),
            Attr::Strs(v) => Attr::Strs(v.clone()),
            Attr::Sparse(t) => Attr::Sparse(t.clone()),
            Attr::Other(kind) => Attr::Other(kind),
        })
    }

    fn kind(&self) -> &'static str {
        match self {
            Attr::Int(_) => "an integer",
            Attr::Float(_) => "a float",
            Attr::Str(_) => "a string",
            Attr::Tensor(_) => "a tensor",
            Attr::Region(_) => "a graph",
            Attr::Ints(_) => "integers",
            Attr::Floats(_) => "floats",
            Attr::Strs(_) => "strings",
            Attr::Sparse(_) => "a sparse tensor",
            Attr::Other(kind) => kind,
        }
    }
}

/// What a name of a model stands for. A sequence is as many values as it is long, an optional that holds something is that: their
/// lengths and presence are settled here, so that the graph knows tensors alone.
#[derive(Clone, PartialEq, Debug)]
pub enum Item<T> {
    Tensor(T),
    List(Vec<T>),
    /// A map: a vector of keys, and a vector of their values. A matrix of values is a sequence of maps of the same keys, one a row.
    Map([T; 2]),
    /// An optional that holds nothing, or an optional input that is not given.
    Absent,
}

impl<T> Item<T> {
    pub fn tensors(&self) -> &[T] {
        match self {
            Item::Tensor(t) => std::slice::from_ref(t),
            Item::List(list) => list,
            Item::Map(pair) => pair,
            Item::Absent => &[],
        }
    }

    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Item<U> {
        match self {
            Item::Tensor(t) => Item::Tensor(f(t)),
            Item::List(list) => Item::List(list.iter().map(f).collect()),
            Item::Map([keys, values]) => Item::Map([f(keys), f(values)]),
            Item::Absent => Item::Absent,
        }
    }

    pub fn layout(&self) -> Layout {
        self.map(|_| ())
    }

    /// How messages call it.
    pub fn kind(&self) -> String {
        match self {
            Item::Tensor(_) => "a tensor".into(),
            Item::List(list) => format!("a sequence of {}", list.len()),
            Item::Map(_) => "a map".into(),
            Item::Absent => "nothing".into(),
        }
    }
}

impl<T> From<Option<T>> for Item<T> {
    fn from(value: Option<T>) -> Item<T> {
        value.map_or(Item::Absent, Item::Tensor)
    }
}

/// What an item is made of.
pub type Layout = Item<()>;

/// Tensors one after the other as items of these layouts.
pub fn regroup<T: Clone>(layouts: &[Layout], flat: &[T]) -> Vec<Item<T>> {
    let mut rest = flat.iter().cloned();
    layouts.iter().map(|l| l.map(|()| rest.next())).map(|item| whole(&item)).collect()
}

fn whole<T: Clone>(item: &Item<Option<T>>) -> Item<T> {
    match item {
        Item::Tensor(t) => t.clone().into(),
        Item::List(list) => Item::List(list.iter().flatten().cloned().collect()),
        Item::Map([Some(keys), Some(values)]) => Item::Map([keys.clone(), values.clone()]),
        Item::Map(_) | Item::Absent => Item::Absent,
    }
}

/// What a declared input of a body stands for.
pub enum Arg {
    /// A value of this type, different each time.
    Type(Type),
    Const(Tensor),
    /// One whose problem is recorded already.
    Poison,
}

/// A body of control flow that is not built yet: its types follow from the arguments.
pub trait Region<'g> {
    /// Number of declared inputs and outputs.
    fn arity(&self) -> (usize, usize);

    /// The outer values that the body reads, each once, in order of first use.
    fn captures(&self) -> Vec<V<'g>>;

    /// The body as a graph of its own. Its inputs are the `args` that are types, then one for each of `captures` that
    /// [`is_operand`]; these hold at least those of [`Region::captures`]. Its outputs are the tensors of the body's, one after the other,
    /// whose layouts come with it.
    fn build(&self, args: &[Arg], captures: &[V<'g>]) -> Result<(Graph, Vec<Layout>), Report>;

    /// The body's outputs, built in place of the call: for a condition that is known.
    fn inline(&self, args: &[Item<V<'g>>]) -> Result<Vec<Item<V<'g>>>>;
}

/// Whether a captured value enters a region as an operand. Constants and known contents are repeated inside instead.
pub fn is_operand(v: V<'_>) -> bool {
    v.constant().is_none() && (v.known().is_none() || v.ty().dtype == DType::Bool)
}

/// A value of another graph as `b` sees it: what is known of it is known there, the rest is an input.
pub fn entered<'c>(v: V<'_>, b: &'c Builder) -> V<'c> {
    if v.is_poison() {
        return b.poison();
    }
    let ty = v.ty();
    match (is_operand(v), v.constant(), v.known()) {
        (false, Some(t), _) => b.constant(t),
        (false, None, Some(k)) => b.op(Dims { values: k.to_vec(), scalar: false }, &[]).reshape(ty.shape).cast(ty.dtype),
        _ => b.input("", ty),
    }
}

/// An operator applied to values: what a row of the table turns into tensor operations.
pub struct Call<'g> {
    pub b: &'g Builder,
    /// Domain, empty for ai.onnx.
    pub domain: String,
    pub op: String,
    /// Version of the domain's operator set.
    pub opset: i64,
    /// Trailing ones that are not given may be left out.
    pub inputs: Vec<Item<V<'g>>>,
    /// For each declared output whether anybody reads it.
    pub outputs: Vec<bool>,
    /// The iteration of the loop around the call; `None` in it where the body runs several times and none counts them.
    pub iteration: Option<Option<V<'g>>>,
    /// Whether the user has fixed sizes that the model leaves open: not every branch need fit them.
    pub fixed: bool,
    attrs: Vec<(String, Attr<'g>, Cell<bool>)>,
    /// The last error that is about the call as it is written.
    written: RefCell<Option<Error>>,
}

impl<'g> Call<'g> {
    pub fn new(
        b: &'g Builder,
        (domain, op, opset): (&str, &str, i64),
        inputs: Vec<Item<V<'g>>>,
        attrs: Vec<(String, Attr<'g>)>,
        outputs: Vec<bool>,
    ) -> Call<'g> {
        let attrs = attrs.into_iter().map(|(name, value)| (name, value, Cell::new(false))).collect();
        Call { b, domain: domain.into(), op: op.into(), opset, inputs, outputs, attrs, iteration: None, fixed: false, written: RefCell::default() }
    }

    /// The call with operands of type `ty` in `b` where its own are poison, and without bodies: for what is wrong with its attributes.
    pub fn stand_in<'c>(&self, b: &'c Builder, ty: &Type) -> Call<'c> {
        let operand = |v: &V<'g>| if v.is_poison() { b.input("", ty.clone()) } else { entered(*v, b) };
        let inputs = self.inputs.iter().map(|item| item.map(operand)).collect();
        let attrs = self.attrs.iter().filter_map(|(name, value, _)| Some((name.clone(), value.without_body()?))).collect();
        Call::new(b, (&self.domain, &self.op, self.opset), inputs, attrs, self.outputs.clone())
    }

    /// What `build` makes of the call on other inputs; for operators without bodies.
    pub fn on(&self, inputs: Vec<Item<V<'g>>>, build: for<'c> fn(&Call<'c>) -> Result<Vec<V<'c>>>) -> Result<Vec<V<'g>>> {
        let attrs = self.attrs.iter().filter_map(|(name, value, _)| Some((name.clone(), value.without_body()?))).collect();
        let inner = Call::new(self.b, (&self.domain, &self.op, self.opset), inputs, attrs, self.outputs.clone());
        let y = build(&inner);
        inner.attrs.iter().filter(|(_, _, read)| read.get()).for_each(|(name, ..)| self.ignore(&[name]));
        y.map_err(|e| if inner.is_as_written(&e) { self.as_written(e) } else { e })
    }

    /// Input `i`, which must be given.
    pub fn x(&self, i: usize) -> Result<V<'g>> {
        match self.item(i) {
            Item::Tensor(v) => Ok(v),
            Item::List(_) => Err(Error::dtype(format!("input {i} is a sequence where a tensor is wanted"))),
            Item::Map(_) => Err(Error::dtype(format!("input {i} is a map where a tensor is wanted"))),
            Item::Absent => Err(Error::arity(format!("input {i} is missing"))),
        }
    }

    /// Input `i` where it is given.
    pub fn opt(&self, i: usize) -> Option<V<'g>> {
        self.x(i).ok()
    }

    /// Input `i`, whatever it is.
    pub fn item(&self, i: usize) -> Item<V<'g>> {
        self.inputs.get(i).cloned().unwrap_or(Item::Absent)
    }

    /// Input `i`, which must be a sequence.
    pub fn list(&self, i: usize) -> Result<Vec<V<'g>>> {
        match self.item(i) {
            Item::List(list) => Ok(list),
            other => Err(Error::dtype(format!("input {i} should be a sequence, found {}", other.kind()))),
        }
    }

    /// Keys and values of input `i`, which must be one map.
    pub fn map(&self, i: usize) -> Result<[V<'g>; 2]> {
        match self.item(i) {
            Item::Map([keys, values]) if values.ty().rank() == 1 || values.is_poison() => Ok([keys, values]),
            Item::Map(_) => Err(Error::dtype(format!("input {i} should be a map, found a sequence of maps"))),
            other => Err(Error::dtype(format!("input {i} should be a map, found {}", other.kind()))),
        }
    }

    /// All inputs of a variadic operator.
    pub fn all(&self) -> Result<Vec<V<'g>>> {
        (0..self.inputs.len()).map(|i| self.x(i)).collect()
    }

    /// What tells apart the draws of random numbers that this call makes in one run.
    pub fn step(&self) -> Result<V<'g>> {
        match self.iteration {
            None => Ok(self.b.constant(Tensor::scalar(0i64))),
            Some(Some(i)) => Ok(i.cast(DType::I64).reshape(vec![])),
            Some(None) => Err(Error::unsupported("random numbers in a body that runs several times: nothing there counts the steps")),
        }
    }

    /// Whether output `i` is asked for.
    pub fn wants(&self, i: usize) -> bool {
        self.outputs.get(i).copied().unwrap_or(false)
    }

    /// An error where an output from `from` on is asked for.
    pub fn outputs_below(&self, from: usize, why: &str) -> Result<()> {
        match self.outputs.iter().skip(from).position(|w| *w) {
            None => Ok(()),
            Some(i) => Err(Error::unsupported(format!("output {} is asked for: {why}", from + i))),
        }
    }

    /// The attribute called `name`, marked as read.
    pub fn attr(&self, name: &str) -> Option<&Attr<'g>> {
        let (_, value, read) = self.attrs.iter().find(|a| a.0 == name)?;
        read.set(true);
        Some(value)
    }

    /// Marks attributes that change nothing as read.
    pub fn ignore(&self, names: &[&str]) {
        names.iter().for_each(|n| {
            self.attr(n);
        });
    }

    /// Attributes that nobody has asked for.
    pub fn unread(&self) -> Vec<&str> {
        self.attrs.iter().filter(|(_, _, read)| !read.get()).map(|a| a.0.as_str()).collect()
    }

    /// Notes that an error is about the call as it is written: it is there whatever the operands are.
    pub fn as_written(&self, e: Error) -> Error {
        *self.written.borrow_mut() = Some(e.clone());
        e
    }

    /// Whether the error is about the call as it is written.
    pub fn is_as_written(&self, e: &Error) -> bool {
        self.written.borrow().as_ref() == Some(e)
    }

    /// An attribute that must be there and is not.
    pub fn missing(&self, name: &str) -> Error {
        self.as_written(Error::attribute(format!("attribute `{name}` is missing")))
    }

    fn wrong<T>(&self, name: &str, want: &str, found: &Attr) -> Result<T> {
        Err(self.as_written(Error::attribute(format!("attribute `{name}` should be {want}, found {}", found.kind()))))
    }

    pub fn opt_int(&self, name: &str) -> Result<Option<i64>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Int(i)) => Ok(Some(*i)),
            Some(a) => self.wrong(name, "an integer", a),
        }
    }

    pub fn int(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.int(name, default.into())? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(self.as_written(Error::attribute(format!("attribute `{name}` should be 0 or 1, found {n}")))),
        }
    }

    pub fn opt_float(&self, name: &str) -> Result<Option<f64>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Float(x)) => Ok(Some(*x)),
            Some(Attr::Int(i)) => Ok(Some(*i as f64)),
            Some(a) => self.wrong(name, "a float", a),
        }
    }

    /// A float attribute; the default is rounded to f32, as the file would hold it.
    pub fn float(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.opt_float(name)?.unwrap_or(default as f32 as f64))
    }

    pub fn opt_str(&self, name: &str) -> Result<Option<&str>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Str(s)) => Ok(Some(s)),
            Some(a) => self.wrong(name, "a string", a),
        }
    }

    /// A string attribute that must be one of `words`, the first of which is the default.
    pub fn word(&self, name: &str, words: &'static [&'static str]) -> Result<&'static str> {
        let Some(s) = self.opt_str(name)? else { return Ok(words[0]) };
        let known = words.iter().find(|w| **w == s).copied();
        known.ok_or_else(|| self.as_written(Error::attribute(format!("attribute `{name}` is `{s}`; known are {}", words.join(", ")))))
    }

    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v.clone())),
            Some(Attr::Floats(v)) if v.is_empty() => Ok(Some(vec![])),
            Some(a) => self.wrong(name, "integers", a),
        }
    }

    pub fn floats(&self, name: &str) -> Result<Option<Vec<f64>>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Floats(v)) => Ok(Some(v.clone())),
            Some(Attr::Ints(v)) => Ok(Some(v.iter().map(|i| *i as f64).collect())),
            Some(a) => self.wrong(name, "floats", a),
        }
    }

    pub fn strs(&self, name: &str) -> Result<Option<Vec<String>>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Strs(v)) => Ok(Some(v.clone())),
            Some(a) => self.wrong(name, "strings", a),
        }
    }

    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Tensor(t)) => Ok(Some(t.clone())),
            Some(a) => self.wrong(name, "a tensor", a),
        }
    }

    pub fn sparse(&self, name: &str) -> Result<Option<Tensor>> {
        match self.attr(name) {
            None => Ok(None),
            Some(Attr::Sparse(t)) => Ok(Some(t.clone())),
            Some(a) => self.wrong(name, "a sparse tensor", a),
        }
    }

    pub fn region(&self, name: &str) -> Result<Rc<dyn Region<'g> + 'g>> {
        match self.attr(name) {
            None => Err(self.missing(name)),
            Some(Attr::Region(r)) => Ok(r.clone()),
            Some(a) => self.wrong(name, "a graph", a),
        }
    }

    /// An element type given by its ONNX number.
    pub fn dtype(&self, name: &str, default: Option<DType>) -> Result<DType> {
        match (self.opt_int(name)?, default) {
            (Some(code), _) => dtype_of(code).map_err(|e| self.as_written(Error::new(e.code(), format!("attribute `{name}`: {}", e.message())))),
            (None, Some(d)) => Ok(d),
            (None, None) => Err(self.missing(name)),
        }
    }

    /// An integer attribute as an axis of input 0.
    pub fn axis(&self, name: &str, default: i64) -> Result<usize> {
        normalize_axis(self.int(name, default)?, self.x(0)?.ty().rank())
    }

    /// Contents of an integer input as far as they are known before the run.
    pub fn dims(&self, i: usize) -> Result<Option<Vec<Dim>>> {
        let v = self.x(i)?;
        if !v.ty().dtype.is_int() {
            return Err(Error::dtype(format!("input {i} should hold integers, found {}", v.ty())));
        }
        let folded = || self.fold(v).and_then(|t| t.to_ints()).map(|k| k.into_iter().map(Dim::Const).collect());
        Ok(v.known().map(|k| k.to_vec()).or_else(folded))
    }

    /// Contents of an integer input, which must be known before the run.
    pub fn known_dims(&self, i: usize, what: &str) -> Result<Vec<Dim>> {
        self.dims(i)?.ok_or_else(|| self.unknown(i, what))
    }

    /// Contents of an integer input, which must be plain numbers.
    pub fn known_ints(&self, i: usize, what: &str) -> Result<Vec<i64>> {
        let dims = self.known_dims(i, what)?;
        dims.iter().map(Dim::as_const).collect::<Option<Vec<_>>>().ok_or_else(|| self.unknown(i, what))
    }

    /// Counts as operators of opset 1 take them, in the type of the data: as integers, and their values where these are known.
    pub fn old_counts(&self, i: usize, what: &str) -> Result<(V<'g>, Option<Vec<i64>>)> {
        let v = self.x(i)?;
        let known = self.fold(v).map(|t| t.to_f64s());
        match known.iter().flatten().find(|v| v.fract() != 0.0 || v.abs() > 1e15) {
            Some(v) => Err(Error::shape(format!("input {i} ({what}) should hold whole numbers, found {v}"))),
            None => Ok((v.cast(DType::I64), known.map(|k| k.into_iter().map(|v| v as i64).collect()))),
        }
    }

    /// What is said of an input whose contents decide the shape of the graph but are computed by it.
    pub fn unknown(&self, i: usize, what: &str) -> Error {
        Error::unsupported(format!("input {i} ({what}) must be known when the model is compiled")).note("fix symbolic sizes with --dim or --shape")
    }

    /// Contents of an integer vector as dimensions; what is not known before the run is bound by it.
    pub fn dims_or_read(&self, i: usize, what: &str) -> Result<Vec<Dim>> {
        match self.dims(i)? {
            Some(dims) => Ok(dims),
            None => self.read(self.x(i)?, what).map(|(dims, _)| dims),
        }
    }

    /// As [`Call::dims_or_read`], of a vector that must have `n` elements.
    pub fn dims_of(&self, i: usize, n: usize, what: &str) -> Result<Vec<Dim>> {
        match self.dims(i)? {
            Some(dims) => Ok(dims),
            None => self.read(self.long(self.x(i)?, 0, n), what).map(|(dims, _)| dims),
        }
    }

    /// A tensor whose length along an axis is open as one with the `n` that it must be; the run compares.
    pub fn long(&self, v: V<'g>, axis: usize, n: usize) -> V<'g> {
        let mut shape = v.ty().shape;
        match shape.get_mut(axis) {
            Some(d) if d.as_const().is_none() => *d = Dim::from(n),
            _ => return v,
        }
        v.reshape(shape)
    }

    /// The error, with the sizes among its operands' that are open, unless it is about the call as it is written.
    pub fn with_open_sizes(&self, e: Error) -> Error {
        let types: Vec<Type> = self.inputs.iter().flat_map(Item::tensors).map(|v| v.ty()).collect();
        if self.is_as_written(&e) { e } else { with_open_sizes(e, &types) }
    }

    /// Binds fresh symbols to the elements of an integer tensor of rank 0 or 1; the tensor comes back as the binding node.
    pub fn read(&self, v: V<'g>, what: &str) -> Result<(Vec<Dim>, V<'g>)> {
        let ty = v.ty();
        let n = ty.elems().as_const().filter(|n| ty.rank() <= 1 && (0..=64).contains(n));
        let n = n.ok_or_else(|| Error::unsupported(format!("{what} should be a short vector of known length, found {ty}")))?;
        let symbols: Vec<Dim> = (0..n).map(|_| self.b.fresh_symbol("d")).collect();
        let bound = self.b.op(nnc_ir::ops::source::ReadDims { symbols: symbols.clone() }, &[v.cast(DType::I64)]);
        Ok((symbols, bound))
    }

    /// Results for a call whose problems are recorded already.
    pub fn poisoned(&self) -> Vec<V<'g>> {
        vec![self.b.poison(); self.outputs.len()]
    }

    /// A body as a graph; `None` where it has errors, which are recorded.
    pub fn body(&self, region: &Rc<dyn Region<'g> + 'g>, args: &[Arg], captures: &[V<'g>]) -> Option<(Graph, Vec<Layout>)> {
        self.built(region.build(args, captures))
    }

    /// What a body was built to; its errors are recorded.
    pub fn built<T>(&self, body: Result<T, Report>) -> Option<T> {
        body.map_err(|report| report.0.into_iter().for_each(|e| self.b.error(e))).ok()
    }

    /// The value of `v` where it follows from constants and known sizes by a few operations on small tensors.
    pub fn fold(&self, v: V<'g>) -> Option<Tensor> {
        fold(self.b, v.value())
    }

    /// The constant behind input `i`.
    pub fn constant(&self, i: usize) -> Option<Tensor> {
        self.opt(i).and_then(V::constant)
    }
}

/// Nodes and elements that [`Call::fold`] looks at.
const MAX_FOLD: (usize, usize) = (256, 4096);

fn fold(b: &Builder, goal: Value) -> Option<Tensor> {
    b.with_graph(|g| {
        let mut done: HashMap<Value, Tensor> = HashMap::new();
        let mut stack = vec![goal];
        for _ in 0..MAX_FOLD.0 {
            let Some(v) = stack.last().copied() else { break };
            if v == Value::POISON || done.contains_key(&v) {
                stack.pop();
                continue;
            }
            let (node, ty) = (g.node(v.node), g.ty(v));
            let shape: Vec<usize> = ty.const_shape()?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
            if Dim::checked_len(&ty.shape)? > MAX_FOLD.1 {
                return None;
            }
            let known = g.known(v).and_then(|k| k.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>());
            if let Some(known) = known {
                let values = Tensor::new(&[known.len()], &known).reshaped(shape).ok()?;
                done.insert(v, Cast { to: ty.dtype }.eval(&[values], &Env::default()).ok()?.remove(0));
                continue;
            }
            let op = node.op.as_primitive().filter(|p| p.class() != Class::Control)?;
            if matches!(node.op, Op::ReadDims(_) | Op::NonZero(_) | Op::ImageDecode(_) | Op::Random(_)) || op.class() == Class::Host {
                return None;
            }
            let missing: Vec<Value> = node.operands.iter().filter(|o| !done.contains_key(o)).copied().collect();
            if missing.is_empty() {
                let x: Vec<Tensor> = node.operands.iter().map(|o| done[o].clone()).collect();
                let y = op.eval(&x, &Env::default()).ok()?;
                y.into_iter().enumerate().for_each(|(port, t)| drop(done.insert(Value { node: v.node, port: port as u32 }, t)));
            }
            stack.extend(missing);
        }
        done.remove(&goal)
    })
}

/// The element type with an ONNX number.
pub fn dtype_of(code: i64) -> Result<DType> {
    let known = i32::try_from(code).ok().and_then(DType::from_abi_code);
    known.ok_or_else(|| match TYPE_NAMES.get(usize::try_from(code).unwrap_or(usize::MAX)) {
        Some(name) => Error::unsupported(format!("elements of type {name} are not supported")),
        None => Error::unsupported(format!("no element type has number {code}")),
    })
}

/// The element type that ONNX calls by this name, in capitals as in `FLOAT`.
pub fn dtype_named(name: &str) -> Result<DType> {
    match TYPE_NAMES.iter().position(|n| n.eq_ignore_ascii_case(name)) {
        Some(code) => dtype_of(code as i64),
        None => Err(Error::unsupported(format!("no element type is called {name}"))),
    }
}

/// Names of ONNX element types by number.
const TYPE_NAMES: [&str; 29] = [
    "undefined",
    "float",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "string",
    "bool",
    "float16",
    "double",
    "uint32",
    "uint64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8e4m3fn",
    "float8e4m3fnuz",
    "float8e5m2",
    "float8e5m2fnuz",
    "uint4",
    "int4",
    "float4e2m1",
    "float8e8m0",
    "uint2",
    "int2",
    "float6e2m3",
    "float6e3m2",
];
