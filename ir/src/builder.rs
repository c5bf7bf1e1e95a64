//! Building graphs: [`V`] handles that infer on push, with operators, so that rules and expansions read as mathematics.
//!
//! An operation on operands that do not fit records an error at the builder's current place and gives a poisoned value; whatever
//! is built on poison is poison, silently. So every independent problem of a model is found in one go ([`Builder::finish`]).

use crate::dim::Dim;
use crate::error::{Error, Loc, Report, Result};
use crate::graph::{Graph, Node, NodeId, Output, Value};
use crate::known;
use crate::ops::movement::{Concat, Expand, Pad, PadMode, Reshape, Slice, Transpose};
use crate::ops::reduce::{Reduce, ReduceKind};
use crate::ops::source::{Const, Dims};
use crate::ops::{Op, fit, map::Cast};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{DType, Type};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// A graph under construction.
#[derive(Default)]
pub struct Builder {
    graph: RefCell<Graph>,
    errors: RefCell<Vec<Error>>,
    loc: RefCell<Loc>,
    fresh: Rc<Cell<u32>>,
    draws: Rc<Cell<u32>>,
}

/// A value of a graph under construction.
#[derive(Clone, Copy)]
pub struct V<'g> {
    builder: &'g Builder,
    value: Value,
}

impl Builder {
    pub fn new(name: impl AsRef<str>) -> Builder {
        Builder { graph: RefCell::new(Graph::new(name)), ..Builder::default() }
    }

    /// Goes on building on a graph.
    pub fn from_graph(graph: Graph) -> Builder {
        Builder { graph: RefCell::new(graph), ..Builder::default() }
    }

    /// A builder for a region of this graph: its fresh symbols differ from those of the graph.
    pub fn nested(&self, name: impl AsRef<str>) -> Builder {
        Builder {
            graph: RefCell::new(Graph::new(name)),
            loc: self.loc.clone(),
            fresh: self.fresh.clone(),
            draws: self.draws.clone(),
            ..Builder::default()
        }
    }

    /// Everything built from now on, and every error, stands at `loc`.
    pub fn at(&self, loc: Loc) {
        *self.loc.borrow_mut() = loc;
    }

    /// Records a problem at the current place.
    pub fn error(&self, e: Error) {
        let e = e.at(&self.loc.borrow());
        self.errors.borrow_mut().push(e);
    }

    pub fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    /// Records the error and gives poison, or gives the value.
    pub fn or_poison<'g>(&'g self, r: Result<V<'g>>) -> V<'g> {
        r.unwrap_or_else(|e| {
            self.error(e);
            self.poison()
        })
    }

    pub fn poison(&self) -> V<'_> {
        V { builder: self, value: Value::POISON }
    }

    /// The handle of a value that is already in the graph.
    pub fn v(&self, value: Value) -> V<'_> {
        V { builder: self, value }
    }

    /// A symbol that no other has: for sizes that only the run knows.
    pub fn fresh_symbol(&self, stem: &str) -> Dim {
        let n = self.fresh.get();
        self.fresh.set(n + 1);
        Dim::sym(format!("{stem}${n}"))
    }

    /// A number for the next draw of random numbers: what is drawn without a seed differs from all else that is.
    pub fn next_draw(&self) -> u32 {
        self.draws.replace(self.draws.get() + 1)
    }

    /// An input of the graph; poison where its type is nothing that a machine could hold.
    pub fn input(&self, name: impl AsRef<str>, ty: Type) -> V<'_> {
        let size = fit::check_size(&ty);
        let input = self.push(Node {
            op: Op::Input,
            operands: vec![],
            types: vec![ty],
            known: vec![],
            regions: vec![],
            name: name.as_ref().into(),
            loc: self.loc.borrow().clone(),
        });
        match size {
            Ok(()) => input,
            Err(e) => self.or_poison(Err(Error::new(e.code(), format!("input `{}`: {}", name.as_ref(), e.message())))),
        }
    }

    pub fn constant(&self, t: Tensor) -> V<'_> {
        self.op(Const(t), &[])
    }

    /// `i64` vector of dimension values.
    pub fn dims(&self, values: Vec<Dim>) -> V<'_> {
        self.op(Dims { values, scalar: false }, &[])
    }

    fn push(&self, node: Node) -> V<'_> {
        let id = self.graph.borrow_mut().add(node);
        self.v(Value { node: id, port: 0 })
    }

    /// The first result of an operation.
    pub fn op<'g>(&'g self, op: impl Into<Op>, x: &[V<'g>]) -> V<'g> {
        self.op_all(op, x, vec![])[0]
    }

    /// All results of an operation, with its regions. At least one, poisoned where it does not fit.
    pub fn op_all<'g>(&'g self, op: impl Into<Op>, x: &[V<'g>], regions: Vec<Graph>) -> Vec<V<'g>> {
        let op = op.into();
        if x.iter().any(|v| v.is_poison()) {
            return vec![self.poison(); 8];
        }
        match self.try_op(op, x, regions) {
            Ok(vs) => vs,
            Err(e) => {
                self.error(e);
                vec![self.poison(); 8]
            }
        }
    }

    /// As [`Builder::op_all`], with the error returned instead of recorded.
    pub fn try_op<'g>(&'g self, op: Op, x: &[V<'g>], regions: Vec<Graph>) -> Result<Vec<V<'g>>> {
        if x.iter().any(|v| v.is_poison()) {
            return Ok(vec![self.poison(); 8]);
        }
        let operands: Vec<Value> = x.iter().map(|v| v.value).collect();
        let in_types: Vec<Type> = x.iter().map(|v| v.ty()).collect();
        let types = infer(&op, &in_types, &regions).map_err(|e| fit::with_open_sizes(e, &in_types))?;
        let known = {
            let g = self.graph.borrow();
            let facts: Vec<Option<&[Dim]>> = operands.iter().map(|v| g.known(*v)).collect();
            known::infer(&op, &facts, &in_types, &types)
        };
        let n = types.len();
        let id = self.graph.borrow_mut().add(Node { op, operands, types, known, regions, name: "".into(), loc: self.loc.borrow().clone() });
        Ok((0..n as u32).map(|port| self.v(Value { node: id, port })).collect())
    }

    pub fn output(&self, name: impl AsRef<str>, v: V<'_>) {
        if !v.is_poison() {
            self.graph.borrow_mut().outputs.push(Output { name: name.as_ref().into(), value: v.value });
        }
    }

    /// A value to be computed though nothing reads it ([`Graph::checks`]).
    pub fn check(&self, v: V<'_>) {
        if !v.is_poison() {
            self.graph.borrow_mut().checks.push(v.value);
        }
    }

    /// The graph, or everything that is wrong with it.
    pub fn finish(self) -> Result<Graph, Report> {
        let errors = self.errors.into_inner();
        if errors.is_empty() { Ok(self.graph.into_inner()) } else { Err(Report(errors)) }
    }

    /// Looks at the graph as it stands.
    pub fn with_graph<T>(&self, f: impl FnOnce(&Graph) -> T) -> T {
        f(&self.graph.borrow())
    }

    /// Copies the nodes of `source` that are alive in here, its inputs replaced by `args`; returns its outputs.
    /// Composites are kept unless `expand` says otherwise.
    pub fn inline<'g>(&'g self, source: &Graph, args: &[V<'g>]) -> Vec<V<'g>> {
        let mut map: Vec<Vec<V<'g>>> = vec![vec![]; source.id_bound()];
        for (id, v) in source.inputs.iter().zip(args) {
            map[id.0 as usize] = vec![*v];
        }
        let live = source.live();
        for id in source.order() {
            if !live[id.0 as usize] || !map[id.0 as usize].is_empty() {
                continue;
            }
            let node = source.node(id);
            let x: Vec<V<'g>> = node.operands.iter().map(|o| map[o.node.0 as usize][o.port as usize]).collect();
            self.at(node.loc.clone());
            map[id.0 as usize] = self.op_all(node.op.clone(), &x, node.regions.clone());
        }
        let get = |v: Value| map[v.node.0 as usize][v.port as usize];
        source.checks.iter().for_each(|v| self.check(get(*v)));
        source.outputs.iter().map(|o| get(o.value)).collect()
    }
}

/// Result types of any operation. A composite's are those of its expansion.
pub fn infer(op: &Op, x: &[Type], regions: &[Graph]) -> Result<Vec<Type>> {
    if x.iter().any(|t| t.dtype == DType::Str) && !op.takes_text() {
        return Err(Error::dtype(format!("{} does not take strings", op.name())));
    }
    if let Some(p) = op.as_primitive() {
        let y = p.infer(x, regions)?;
        fit::check(op, &x.iter().collect::<Vec<_>>(), &y)?;
        return Ok(y);
    }
    let Some(c) = op.as_composite() else { return Err(Error::internal("an input has no operands to infer from")) };
    if let Some(y) = c.infer(x) {
        return Ok(y);
    }
    let scratch = Builder::new("");
    let args: Vec<V> = x.iter().map(|t| scratch.input("", t.clone())).collect();
    let y = if args.is_empty() { return Err(Error::arity(format!("{} takes operands", op.name()))) } else { c.expand(&args)? };
    let types: Vec<Option<Type>> = y.iter().map(|v| (!v.is_poison()).then(|| v.ty())).collect();
    match scratch.finish() {
        Ok(_) => Ok(types.into_iter().flatten().collect()),
        Err(Report(mut errors)) => Err(Error::new(errors[0].code(), format!("{}: {}", op.name(), errors.remove(0).message()))),
    }
}

/// The operation as a graph of its own, composites expanded once.
pub fn expansion(op: &Op, x: &[Type]) -> Result<Graph> {
    let c = op.as_composite().ok_or_else(|| Error::internal(format!("{} is no composite", op.name())))?;
    let b = Builder::new(op.name());
    let args: Vec<V> = x.iter().map(|t| b.input("", t.clone())).collect();
    for v in c.expand(&args)? {
        b.output("", v);
    }
    b.finish().map_err(|mut r| r.0.remove(0))
}

macro_rules! unary {
    ($($name:ident $fun:ident),*) => { $(pub fn $name(self) -> V<'g> { self.map(ScalarFn::$fun) })* };
}
macro_rules! binary {
    ($($name:ident $fun:ident),*) => { $(pub fn $name(self, other: V<'g>) -> V<'g> { self.builder.op(Op::Map(ScalarFn::$fun), &[self, other]) })* };
}

impl<'g> V<'g> {
    pub fn builder(self) -> &'g Builder {
        self.builder
    }

    pub fn value(self) -> Value {
        self.value
    }

    pub fn is_poison(self) -> bool {
        self.value == Value::POISON
    }

    /// The type; that of an empty f32 for poison, so that callers need no second path (what they build stays poison).
    pub fn ty(self) -> Type {
        if self.is_poison() { Type::of(DType::F32, &[0, 0, 0, 0]) } else { self.builder.graph.borrow().ty(self.value).clone() }
    }

    /// Contents as far as they are known before the run (small integer tensors).
    pub fn known(self) -> Option<Arc<[Dim]>> {
        if self.is_poison() {
            return None;
        }
        self.builder.graph.borrow().node(self.value.node).known.get(self.value.port as usize).cloned().flatten()
    }

    pub fn constant(self) -> Option<Tensor> {
        if self.is_poison() { None } else { self.builder.graph.borrow().constant(self.value).cloned() }
    }

    pub fn node(self) -> NodeId {
        self.value.node
    }

    /// Gives the node the user's name where it has none.
    pub fn named(self, name: &str) -> V<'g> {
        if !self.is_poison() {
            self.builder.graph.borrow_mut().name(self.value.node, name);
        }
        self
    }

    /// A scalar constant of this value's element type.
    pub fn scalar_like(self, x: f64) -> V<'g> {
        self.builder.constant(Tensor::scalar_of(self.ty().dtype, x))
    }

    pub fn map(self, f: ScalarFn) -> V<'g> {
        self.builder.op(Op::Map(f), &[self])
    }

    unary!(exp Exp, log Log, sqrt Sqrt, tanh Tanh, sigmoid Sigmoid, erf Erf, relu Relu, abs Abs, reciprocal Reciprocal, floor Floor);
    binary!(max Max, min Min, pow Pow, less Less, less_equal LessEqual, greater Greater, greater_equal GreaterEqual, equal Equal, and And, or Or);

    /// `self ? yes : no`.
    pub fn select(self, yes: V<'g>, no: V<'g>) -> V<'g> {
        self.builder.op(Op::Map(ScalarFn::Where), &[self, yes, no])
    }

    /// Conversion; nothing where the type is that already.
    pub fn cast(self, to: DType) -> V<'g> {
        if self.ty().dtype == to { self } else { self.builder.op(Cast { to }, &[self]) }
    }

    pub fn reduce(self, kind: ReduceKind, axes: &[usize], keepdims: bool) -> V<'g> {
        let mut axes = axes.to_vec();
        axes.sort();
        axes.dedup();
        if axes.is_empty() { self } else { self.builder.op(Reduce { kind, axes, keepdims }, &[self]) }
    }

    pub fn sum_keep(self, axes: &[usize]) -> V<'g> {
        self.reduce(ReduceKind::Sum, axes, true)
    }

    pub fn max_keep(self, axes: &[usize]) -> V<'g> {
        self.reduce(ReduceKind::Max, axes, true)
    }

    /// Number of elements along `axes`, as a scalar of this element type.
    pub fn count(self, axes: &[usize]) -> V<'g> {
        let ty = self.ty();
        let n = Dim::product(axes.iter().map(|a| &ty.shape[*a]));
        match n.as_const() {
            Some(n) => self.scalar_like(n as f64),
            None => self.builder.op(Dims { values: vec![n], scalar: true }, &[]).cast(ty.dtype),
        }
    }

    pub fn mean_keep(self, axes: &[usize]) -> V<'g> {
        if self.is_poison() { self } else { self.sum_keep(axes) / self.count(axes) }
    }

    pub fn reshape(self, shape: Vec<Dim>) -> V<'g> {
        if !self.is_poison() && self.ty().shape == shape { self } else { self.builder.op(Reshape { shape }, &[self]) }
    }

    pub fn transpose(self, perm: &[usize]) -> V<'g> {
        if perm.iter().copied().eq(0..perm.len()) { self } else { self.builder.op(Transpose { perm: perm.to_vec() }, &[self]) }
    }

    pub fn expand(self, shape: Vec<Dim>) -> V<'g> {
        if !self.is_poison() && self.ty().shape == shape { self } else { self.builder.op(Expand { shape }, &[self]) }
    }

    /// `sizes` elements from `starts` on.
    pub fn slice(self, starts: Vec<Dim>, sizes: Vec<Dim>) -> V<'g> {
        if !self.is_poison() && self.ty().shape == sizes { self } else { self.builder.op(Slice { starts, sizes, steps: vec![] }, &[self]) }
    }

    /// `size` elements along one axis.
    pub fn slice_axis(self, axis: usize, start: Dim, size: Dim) -> V<'g> {
        if self.is_poison() {
            return self;
        }
        let mut starts = vec![Dim::Const(0); self.ty().rank()];
        let mut sizes = self.ty().shape;
        starts[axis] = start;
        sizes[axis] = size;
        self.slice(starts, sizes)
    }

    pub fn pad_zero(self, lo: Vec<Dim>, hi: Vec<Dim>) -> V<'g> {
        if lo.iter().chain(&hi).all(|d| d.is(0)) { self } else { self.builder.op(Pad { mode: PadMode::Constant, lo, hi }, &[self]) }
    }

    pub fn concat(parts: &[V<'g>], axis: usize) -> V<'g> {
        if parts.len() == 1 { parts[0] } else { parts[0].builder.op(Concat { axis }, parts) }
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $fun:ident),*) => { $(
        impl<'g> std::ops::$trait for V<'g> {
            type Output = V<'g>;
            fn $method(self, other: V<'g>) -> V<'g> {
                self.builder.op(Op::Map(ScalarFn::$fun), &[self, other])
            }
        }
    )* };
}
operators!(Add add Add, Sub sub Sub, Mul mul Mul, Div div Div);

impl<'g> std::ops::Neg for V<'g> {
    type Output = V<'g>;
    fn neg(self) -> V<'g> {
        self.map(ScalarFn::Neg)
    }
}

impl<'g> std::ops::Not for V<'g> {
    type Output = V<'g>;
    fn not(self) -> V<'g> {
        self.map(ScalarFn::Not)
    }
}
