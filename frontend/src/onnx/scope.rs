//! One level of names: the nodes of a graph, of a function's body or of a region, brought into order and built one after the other.

use super::attribute;
use super::call::{Arg, Attr, Call, Item, Layout, Region, entered};
use super::file::External;
use super::import::{declared_type, domain, map_names, opsets};
use super::ops;
use super::proto::*;
use super::tensor;
use nnc_ir::error::Code;
use nnc_ir::{Builder, DType, Error, Graph, Loc, Report, Result, Tensor, Type, V, Value};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

/// Functions and regions inside each other.
const MAX_DEPTH: usize = 64;

/// Nodes that may be built: functions that call functions multiply. Any file may build the first number, and the second for each
/// node that it holds.
const MAX_NODES: (usize, usize) = (1 << 17, 32);

/// The name under which a scope knows the iteration of the loop around it. Operators that draw random numbers read it.
const ITERATION: &[u8] = b"\0iteration";

/// Types that stand in for unknown ones when attributes are checked, the likeliest first.
const STAND_INS: &[(DType, usize)] = &[
    (DType::F32, 4),
    (DType::F32, 3),
    (DType::F32, 2),
    (DType::F32, 1),
    (DType::F32, 5),
    (DType::F32, 0),
    (DType::I64, 1),
    (DType::I64, 2),
    (DType::I64, 0),
    (DType::U8, 4),
    (DType::U8, 2),
    (DType::Bool, 4),
    (DType::Bool, 0),
    (DType::Str, 1),
];

/// Calls of one model that are built on them.
const MAX_STAND_INS: usize = 1 << 16;

/// What all scopes of a model share.
pub struct Context<'m> {
    functions: HashMap<FunctionKey<'m>, (&'m FunctionProto, BTreeMap<String, i64>)>,
    pub external: External,
    /// Whether the user has fixed sizes that the file leaves open.
    fixed: bool,
    max_nodes: usize,
    nodes_left: Cell<usize>,
    stand_ins_left: Cell<usize>,
    /// Bytes that sparse tensors may still take when they are written out.
    pub written_out_left: Cell<usize>,
    ir_version: i64,
    /// Domains that nodes use and that no import names.
    unimported: RefCell<HashSet<String>>,
}

/// Domain, name, overload.
type FunctionKey<'m> = (String, &'m [u8], &'m [u8]);

impl<'m> Context<'m> {
    pub fn new(model: &'m ModelProto, external: External, fixed: bool, b: &Builder) -> Context<'m> {
        let mut functions = HashMap::new();
        for f in &model.functions {
            let key = (domain(&f.domain), &*f.name, &*f.overload);
            if functions.insert(key, (f, opsets(&f.opset_import, b))).is_some() {
                b.error(Error::name(format!("two functions are called {}", ops::qualified(&text(&f.domain), &text(&f.name)))));
            }
        }
        let held = model.graph.iter().map(|g| g.node.len()).chain(model.functions.iter().map(|f| f.node.len())).sum::<usize>();
        let max_nodes = MAX_NODES.0 + MAX_NODES.1 * held;
        Context {
            functions,
            external,
            fixed,
            max_nodes,
            nodes_left: Cell::new(max_nodes),
            stand_ins_left: Cell::new(MAX_STAND_INS),
            written_out_left: Cell::new(tensor::MAX_WRITTEN_OUT),
            ir_version: model.ir_version,
            unimported: RefCell::default(),
        }
    }
}

/// Where a scope stands in the model.
#[derive(Clone)]
pub struct Place<'m> {
    /// What messages call it: `model.onnx`, or `model.onnx, function f`.
    file: Arc<str>,
    opsets: &'m BTreeMap<String, i64>,
    /// Attributes of the function call that is being inlined.
    pub attrs: Rc<HashMap<&'m [u8], &'m AttributeProto>>,
    /// Functions that are being inlined.
    functions: Vec<FunctionKey<'m>>,
    depth: usize,
}

/// A level of names under construction.
pub struct Scope<'m, 'g> {
    pub cx: &'m Context<'m>,
    pub b: &'g Builder,
    pub place: Place<'m>,
    values: HashMap<&'m [u8], Item<V<'g>>>,
}

impl<'m: 'g, 'g> Scope<'m, 'g> {
    pub fn main(cx: &'m Context<'m>, b: &'g Builder, file: &str, opsets: &'m BTreeMap<String, i64>) -> Scope<'m, 'g> {
        let place = Place { file: file.into(), opsets, attrs: Rc::default(), functions: vec![], depth: 0 };
        Scope { cx, b, place, values: HashMap::new() }
    }

    pub fn get(&self, name: &[u8]) -> Option<Item<V<'g>>> {
        self.values.get(name).cloned()
    }

    pub fn define(&mut self, name: &'m [u8], item: Item<V<'g>>) {
        if self.values.insert(name, item).is_some() {
            self.b.error(Error::name(format!("two values are called `{}`", text(name))));
        }
    }

    /// Initializers, then nodes.
    pub fn graph(&mut self, graph: &'m GraphProto) {
        for t in &graph.initializer {
            let v = tensor::decode(t, &self.cx.external).map(|c| self.b.constant(c).named(&text(&t.name)));
            self.define(&t.name, Item::Tensor(self.b.or_poison(v)));
        }
        for s in &graph.sparse_initializer {
            let name: &'m [u8] = s.values.as_ref().map_or(b"", |v| &v.name);
            let v = tensor::written_out(s, &self.cx.external, &self.cx.written_out_left).map(|c| self.b.constant(c).named(&text(name)));
            self.define(name, Item::Tensor(self.b.or_poison(v)));
        }
        self.nodes(&graph.node);
    }

    fn nodes(&mut self, nodes: &'m [NodeProto]) {
        let reads: Vec<Vec<&'m [u8]>> = nodes.iter().map(reads).collect();
        let (order, left) = order(nodes, &reads);
        for i in order {
            self.node(i, &nodes[i]);
        }
        if !left.is_empty() {
            let names: Vec<String> = left.iter().take(8).map(|i| self.loc(*i, &nodes[*i]).to_string()).collect();
            let more = left.len() - names.len();
            let e = names.into_iter().fold(Error::name(format!("{} nodes form a cycle or depend on one", left.len())), Error::note);
            self.b.at(Loc::Unknown);
            self.b.error(if more > 0 { e.note(format!("and {more} more")) } else { e });
            for name in left.iter().flat_map(|i| &nodes[*i].output).filter(|n| !n.is_empty()) {
                self.define(name, Item::Tensor(self.b.poison()));
            }
        }
    }

    fn loc(&self, index: usize, node: &NodeProto) -> Loc {
        let domain = domain(&node.domain);
        Loc::Onnx {
            file: self.place.file.clone(),
            index: index as u32,
            name: text(&node.name).into(),
            op: ops::qualified(&domain, &text(&node.op_type)).into(),
            opset: self.place.opsets.get(&domain).copied().unwrap_or(0),
        }
    }

    fn node(&mut self, index: usize, node: &'m NodeProto) {
        let loc = self.loc(index, node);
        self.b.at(loc.clone());
        let results = self.results(node, &loc);
        self.b.at(loc);
        for (i, name) in node.output.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            let item = results.as_ref().ok().and_then(|y| y.get(i).cloned()).unwrap_or(Item::Tensor(self.b.poison()));
            match item {
                Item::Tensor(v) => {
                    v.named(&text(name));
                }
                Item::Map(pair) => {
                    for (n, v) in map_names(&text(name)).iter().zip(pair) {
                        v.named(n);
                    }
                }
                Item::List(_) | Item::Absent => {}
            }
            self.define(name, item);
        }
        if let Err(e) = results {
            self.b.error(e);
        }
    }

    /// The version of operators that the model does not import. Files before IR version 3 have no imports: they are of opset 1.
    fn unimported(&self, domain: &str) -> Result<i64> {
        if domain.is_empty() && self.cx.ir_version < 3 {
            return Ok(1);
        }
        let named = |d: &str| if d.is_empty() { "ai.onnx".to_string() } else { d.to_string() };
        let known: Vec<String> = self.place.opsets.keys().map(|d| named(d)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        let e = Error::unsupported(format!("the model imports no operator set `{}`", named(domain))).note(format!("it imports {known}"));
        // Said once; what else is wrong with its nodes shows when they are taken for those of the newest version.
        let Some(newest) = ops::newest(domain) else { return Err(e) };
        if self.cx.unimported.borrow_mut().insert(domain.to_string()) {
            self.b.error(e.note(format!("its nodes are checked as those of version {newest}")));
        }
        Ok(newest)
    }

    /// The node's results. Poison among them is an error that is recorded already.
    fn results(&self, node: &'m NodeProto, loc: &Loc) -> Result<Vec<Item<V<'g>>>> {
        let left = self.cx.nodes_left.get();
        self.cx.nodes_left.set(left.saturating_sub(1));
        if left == 0 {
            return if self.b.has_errors() {
                Ok(vec![])
            } else {
                Err(Error::limit(format!("functions and regions multiply to more than {} nodes", self.cx.max_nodes)))
            };
        }
        let mut inputs = vec![];
        for name in &node.input {
            inputs.push(match self.values.get(&**name) {
                Some(item) => item.clone(),
                None if name.is_empty() => Item::Absent,
                None => {
                    self.b.error(Error::name(format!("input `{}` is defined nowhere", text(name))));
                    Item::Tensor(self.b.poison())
                }
            });
        }
        let domain = domain(&node.domain);
        if let Some((key, (f, opsets))) = self.cx.functions.get_key_value(&(domain.clone(), &*node.op_type, &*node.overload)) {
            return self.inline(node, key, f, opsets, inputs);
        }
        let opset = match self.place.opsets.get(&domain) {
            Some(version) => *version,
            None => self.unimported(&domain)?,
        };
        let op = text(&node.op_type);
        ops::find(&domain, &op, opset)?;
        let mut attrs = vec![];
        for a in &node.attribute {
            match attribute::value(self, a, loc) {
                Ok(Some(value)) => attrs.push((text(&a.name), value)),
                Ok(None) => {}
                Err(e) => return Err(Error::new(e.code(), format!("attribute `{}`: {}", text(&a.name), e.message()))),
            }
        }
        let poisoned = inputs.iter().flat_map(Item::tensors).any(|v| v.is_poison());
        let gradient = (&*domain, &*op) == ops::GRADIENT;
        if poisoned && gradient {
            return Ok(vec![]);
        }
        let wanted = node.output.iter().map(|n| !n.is_empty()).collect();
        let inputs = if gradient { self.differentiated(inputs, &attrs)? } else { inputs };
        let mut call = Call::new(self.b, (&domain, &op, opset), inputs, attrs, wanted);
        call.fixed = self.cx.fixed;
        call.iteration = self.values.get(ITERATION).map(|i| i.tensors().first().copied());
        // What holds bodies looks into them also where it knows nothing of its operands.
        if poisoned && !ops::holds_bodies(&op) {
            return self.as_written(&call).map(|()| vec![]);
        }
        ops::build(&call)
    }

    /// An error where the attributes of a call, or the numbers of its operands and results, are wrong whatever its operands are, of some
    /// of which nothing is known: the call is built, in a graph that is dropped, on operands of several types in their place.
    fn as_written(&self, call: &Call<'g>) -> Result<()> {
        let mut found: Option<Error> = None;
        let mut attributes: Vec<(usize, Error)> = vec![];
        for (dtype, rank) in STAND_INS {
            let left = self.cx.stand_ins_left.get();
            if left == 0 {
                return Ok(());
            }
            self.cx.stand_ins_left.set(left - 1);
            let b = self.b.nested("");
            let ty = Type::new(*dtype, (0..*rank).map(|_| b.fresh_symbol("any")).collect::<Vec<_>>());
            let call = call.stand_in(&b, &ty);
            match ops::build(&call) {
                // Each attribute was read, and nothing was said of it.
                Ok(_) => return Ok(()),
                Err(e) if call.is_as_written(&e) => found = found.or(Some(e)),
                Err(e) if e.code() == Code::Attribute => attributes.push((*rank, e)),
                Err(_) => {}
            }
        }
        // What is said of an attribute beside operands of several ranks, of none of which it is right, has nothing to do with them.
        let of_another_rank = |(rank, e): &(usize, Error)| attributes.iter().any(|(r, other)| r != rank && other.message() == e.message());
        let found = found.or_else(|| attributes.iter().find(|a| of_another_rank(a)).map(|(_, e)| e.clone()));
        found.map_or(Ok(()), Err)
    }

    /// The inputs of `Gradient` behind the value that its attribute `y` names. It names the inputs too: where the tensors of these names are
    /// other values than the inputs, the part of the graph between would have to be built again on them.
    fn differentiated(&self, inputs: Vec<Item<V<'g>>>, attrs: &[(String, Attr<'g>)]) -> Result<Vec<Item<V<'g>>>> {
        let find = |name: &str| attrs.iter().find(|(n, _)| n == name).map(|(_, a)| a);
        let value = |name: &str| self.get(name.as_bytes()).ok_or_else(|| Error::name(format!("no value is called `{name}`")));
        let Some(Attr::Str(y)) = find("y") else { return Err(Error::attribute("attribute `y` is missing")) };
        let lists = ["xs", "zs"].into_iter().filter_map(|n| if let Some(Attr::Strs(l)) = find(n) { Some(l) } else { None });
        for (name, given) in lists.flatten().zip(&inputs) {
            let same = matches!((value(name)?, given), (Item::Tensor(a), Item::Tensor(b)) if a.value() == b.value());
            if !same {
                return Err(Error::unsupported(format!("a gradient at another value than that of `{name}` in the graph")));
            }
        }
        Ok(std::iter::once(value(y)?).chain(inputs).collect())
    }

    /// The results of a model-local function: its body, built here.
    fn inline(
        &self,
        node: &'m NodeProto,
        key: &FunctionKey<'m>,
        f: &'m FunctionProto,
        opsets: &'m BTreeMap<String, i64>,
        inputs: Vec<Item<V<'g>>>,
    ) -> Result<Vec<Item<V<'g>>>> {
        let name = ops::qualified(&key.0, &text(&f.name));
        if self.place.functions.contains(key) {
            return Err(Error::name(format!("function {name} calls itself")));
        }
        if self.place.depth >= MAX_DEPTH {
            return Err(Error::limit(format!("functions are nested more than {MAX_DEPTH} deep")));
        }
        if inputs.len() > f.input.len() {
            return Err(Error::arity(format!("function {name} takes {} inputs, {} are given", f.input.len(), inputs.len())));
        }
        let mut attrs: HashMap<&'m [u8], &'m AttributeProto> = f.attribute_proto.iter().map(|a| (&*a.name, a)).collect();
        for a in &node.attribute {
            if !f.attribute.contains(&a.name) && !attrs.contains_key(&*a.name) {
                return Err(Error::attribute(format!("function {name} has no attribute `{}`", text(&a.name))));
            }
            match attribute::resolve(&self.place, a) {
                Some(value) => attrs.insert(&a.name, value),
                None => attrs.remove(&*a.name),
            };
        }
        let mut functions = self.place.functions.clone();
        functions.push(key.clone());
        let file = format!("{}, function {name}", self.place.file).into();
        let place = Place { file, opsets, attrs: Rc::new(attrs), functions, depth: self.place.depth + 1 };
        let mut body = Scope { cx: self.cx, b: self.b, place, values: HashMap::new() };
        for (i, formal) in f.input.iter().enumerate() {
            body.values.insert(formal, inputs.get(i).cloned().unwrap_or(Item::Absent));
        }
        body.nodes(&f.node);
        let missing = |n: &[u8]| Error::name(format!("output `{}` of function {name} is computed nowhere", text(n)));
        f.output.iter().map(|n| body.get(n).ok_or_else(|| missing(n))).collect()
    }
}

/// The names that a node reads: its inputs, and what its regions take from outside.
fn reads(node: &NodeProto) -> Vec<&[u8]> {
    let mut out: Vec<&[u8]> = node.input.iter().map(|n| &**n).filter(|n| !n.is_empty()).collect();
    if ops::draws(&node.op_type) {
        out.push(ITERATION);
    }
    for g in node.attribute.iter().filter_map(|a| a.g.as_deref()) {
        out.extend(free_names(g));
    }
    out
}

/// Names that a graph reads and does not define, each once, in order of first use.
fn free_names(graph: &GraphProto) -> Vec<&[u8]> {
    let defined: HashSet<&[u8]> = graph
        .input
        .iter()
        .map(|i| &*i.name)
        .chain(graph.initializer.iter().map(|t| &*t.name))
        .chain(graph.sparse_initializer.iter().filter_map(|s| Some(&*s.values.as_ref()?.name)))
        .chain(graph.node.iter().flat_map(|n| n.output.iter().map(|o| &**o)))
        .collect();
    let mut seen = HashSet::new();
    let all = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|o| &*o.name));
    all.filter(|n| !defined.contains(n) && seen.insert(*n)).collect()
}

/// Indices of nodes such that those that compute a name come before those that read it, file order where there is a choice; and
/// the nodes for which there is no such order.
fn order(nodes: &[NodeProto], reads: &[Vec<&[u8]>]) -> (Vec<usize>, Vec<usize>) {
    let mut producer: HashMap<&[u8], usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            producer.entry(o).or_insert(i);
        }
    }
    let mut waiting = vec![0usize; nodes.len()];
    let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
    for (i, names) in reads.iter().enumerate() {
        for p in names.iter().filter_map(|n| producer.get(n)) {
            users[*p].push(i);
            waiting[i] += 1;
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len()).filter(|i| waiting[*i] == 0).map(Reverse).collect();
    let mut out = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        out.push(i);
        for u in &users[i] {
            waiting[*u] -= 1;
            if waiting[*u] == 0 {
                ready.push(Reverse(*u));
            }
        }
    }
    let left = (0..nodes.len()).filter(|i| waiting[*i] > 0).collect();
    (out, left)
}

/// A region of the file: a graph and the values around it.
pub struct Body<'m, 'g> {
    cx: &'m Context<'m>,
    b: &'g Builder,
    place: Place<'m>,
    /// Of the call that holds the region.
    loc: Loc,
    graph: &'m GraphProto,
    /// What the graph reads from outside.
    captured: Vec<(&'m [u8], Item<V<'g>>)>,
}

impl<'m: 'g, 'g> Body<'m, 'g> {
    pub fn new(scope: &Scope<'m, 'g>, name: &str, graph: &'m GraphProto, loc: &Loc) -> Result<Body<'m, 'g>> {
        if scope.place.depth >= MAX_DEPTH {
            return Err(Error::limit(format!("regions are nested more than {MAX_DEPTH} deep")));
        }
        let mut place = scope.place.clone();
        place.depth += 1;
        if let Loc::Onnx { index, name: node, .. } = loc {
            place.file = format!("{}, {name} of node {index} `{node}`", place.file).into();
        }
        let captured = free_names(graph).into_iter().filter_map(|n| scope.values.get(n).map(|v| (n, v.clone()))).collect();
        Ok(Body { cx: scope.cx, b: scope.b, place, loc: loc.clone(), graph, captured })
    }

    /// Builds the graph on `args` in any builder; `outside` gives the captured values there.
    fn outputs<'c>(&self, b: &'c Builder, args: Vec<Item<V<'c>>>, outside: &dyn Fn(V<'g>) -> V<'c>) -> Result<Vec<Item<V<'c>>>>
    where
        'm: 'c,
    {
        let mut scope = Scope { cx: self.cx, b, place: self.place.clone(), values: HashMap::new() };
        for (name, item) in &self.captured {
            scope.values.insert(name, item.map(|v| outside(*v)));
        }
        self.count(&mut scope, &args);
        let formals: Vec<&'m [u8]> = self.graph.input.iter().map(|i| &*i.name).collect();
        if formals.len() != args.len() {
            return Err(Error::arity(format!("the region takes {} inputs, {} are given", formals.len(), args.len())));
        }
        // Inner names hide outer ones.
        for (name, item) in formals.into_iter().zip(args) {
            scope.values.insert(name, item);
        }
        scope.graph(self.graph);
        let missing = |n: &[u8]| Error::name(format!("output `{}` of the region is computed nowhere", text(n)));
        self.graph.output.iter().map(|o| scope.get(&o.name).ok_or_else(|| missing(&o.name))).collect()
    }
}

impl<'m, 'g> Body<'m, 'g> {
    /// What counts the runs of the body, joined to what counts those of the body around it.
    fn count<'c>(&self, scope: &mut Scope<'m, 'c>, args: &[Item<V<'c>>]) {
        let Loc::Onnx { op, .. } = &self.loc else { return };
        match (&**op, args.first()) {
            ("Loop", Some(Item::Tensor(i))) if !i.is_poison() && i.ty().dtype == DType::I64 => {
                let i = i.reshape(vec![]);
                let around = scope.values.get(ITERATION).and_then(|a| a.tensors().first().copied());
                let around = around.map(|around| around * scope.b.constant(Tensor::scalar(1i64 << 32)));
                scope.values.insert(ITERATION, Item::Tensor(around.map_or(i, |around| around + i)));
            }
            ("Scan", _) => drop(scope.values.insert(ITERATION, Item::Absent)),
            _ => {}
        }
    }
}

impl<'m: 'g, 'g> Region<'g> for Body<'m, 'g> {
    fn arity(&self) -> (usize, usize) {
        (self.graph.input.len(), self.graph.output.len())
    }

    fn captures(&self) -> Vec<V<'g>> {
        let mut seen = HashSet::new();
        self.captured.iter().flat_map(|(_, item)| item.tensors()).copied().filter(|v| seen.insert(v.value())).collect()
    }

    fn build(&self, args: &[Arg], captures: &[V<'g>]) -> Result<(Graph, Vec<Layout>), Report> {
        let b = self.b.nested(text(&self.graph.name));
        let input = |(arg, info): (&Arg, &ValueInfoProto)| match arg {
            Arg::Type(ty) => Item::Tensor(b.input(text(&info.name), ty.clone())),
            Arg::Const(t) => Item::Tensor(b.constant(t.clone())),
            // What the file says of it is good enough to look for problems.
            Arg::Poison => Item::Tensor(declared_type(info).map_or(b.poison(), |ty| b.input(text(&info.name), ty))),
        };
        let inputs: Vec<Item<V>> = args.iter().zip(&self.graph.input).map(input).collect();
        let mut outside: HashMap<Value, V> = HashMap::new();
        for v in captures {
            outside.insert(v.value(), entered(*v, &b));
        }
        let outputs = self.outputs(&b, inputs, &|v| outside[&v.value()]);
        let mut layouts = vec![];
        match outputs {
            Ok(outputs) => {
                for (item, o) in outputs.iter().zip(&self.graph.output) {
                    layouts.push(item.layout());
                    item.tensors().iter().for_each(|v| b.output(text(&o.name), *v));
                }
            }
            Err(e) => b.error(e.at(&self.loc)),
        }
        Ok((b.finish()?, layouts))
    }

    fn inline(&self, args: &[Item<V<'g>>]) -> Result<Vec<Item<V<'g>>>> {
        let y = self.outputs(self.b, args.to_vec(), &|v| v);
        self.b.at(self.loc.clone());
        y
    }
}
