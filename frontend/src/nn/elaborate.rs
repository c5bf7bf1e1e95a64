//! The syntax tree to a graph: what a file shares, graphs and regions, statements. [`super::expr`], [`super::module`], [`super::parameter`],
//! [`super::repeat`] and [`super::call`] (operators) do the rest.

use super::Limits;
use super::ast::{self, Expr, ExprKind, Stmt};
use super::call::Operators;
use super::lex::Pos;
use super::parameter::{Declared, Parameter, Parameters};
use super::value::{Val, check_dim};
use nnc_ir::error::{Error, Loc, Report};
use nnc_ir::near::nearest;
use nnc_ir::print::{TypeText, is_number};
use nnc_ir::{Builder, Dim, Graph, Result, Type, V};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How deep calls and expressions may nest while they are elaborated: what a thread's stack holds.
const MAX_NESTING: u32 = 400;

/// Errors after which elaboration stops.
const MAX_ERRORS: usize = 50;

/// Why a value is missing.
pub enum Stop {
    Error(Error),
    /// It depends on something whose error is reported already.
    Poison,
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Error(e)
    }
}

pub type Eval<T> = Result<T, Stop>;

/// What all graphs of a file share: the main graph and its regions.
pub struct Shared<'a> {
    pub file: &'a ast::File,
    name: &'a Arc<str>,
    pub(super) modules: HashMap<&'a str, usize>,
    pub operators: Operators,
    limits: Limits,
    pub seed: u64,
    /// What the file's own definitions are; no tensors.
    pub(super) globals: HashMap<Arc<str>, Global>,
    steps: Cell<u64>,
    bytes: Cell<u64>,
    nesting: Cell<u32>,
    /// What the word `training` is.
    pub training: bool,
    pub parameters: Parameters,
}

/// A global, free of any graph's lifetime.
#[derive(Clone)]
pub(super) enum Global {
    Int(Dim),
    Float(f64),
    Bool(bool),
    Str(Arc<str>),
    DType(nnc_ir::DType),
    None,
    Init(super::init::Init),
    List(Vec<Global>),
}

impl Global {
    fn of(v: &Val) -> Result<Global> {
        Ok(match v {
            Val::Int(d) => Global::Int(d.clone()),
            Val::Float(x) => Global::Float(*x),
            Val::Bool(b) => Global::Bool(*b),
            Val::Str(s) => Global::Str(s.clone()),
            Val::DType(d) => Global::DType(*d),
            Val::None => Global::None,
            Val::Init(i) => Global::Init(*i),
            Val::List(l) => Global::List(l.iter().map(Global::of).collect::<Result<_>>()?),
            v => return Err(Error::attribute(format!("outside modules stand numbers, strings and initialisers, not {}", v.kind()))),
        })
    }

    pub(super) fn val<'g>(&self) -> Val<'g> {
        match self {
            Global::Int(d) => Val::Int(d.clone()),
            Global::Float(x) => Val::Float(*x),
            Global::Bool(b) => Val::Bool(*b),
            Global::Str(s) => Val::Str(s.clone()),
            Global::DType(d) => Val::DType(*d),
            Global::None => Val::None,
            Global::Init(i) => Val::Init(*i),
            Global::List(l) => Val::List(l.iter().map(Global::val).collect()),
        }
    }
}

/// One graph under construction.
pub struct Elab<'a, 'g> {
    pub shared: &'g Shared<'a>,
    pub b: &'g Builder,
    pub(super) parameters: RefCell<HashMap<String, (V<'g>, super::init::Init)>>,
    pub order: RefCell<Vec<Parameter>>,
    /// This is the body of a `repeat`: its parameters are inputs, which the graph around declares.
    pub(super) repeated: bool,
    /// The parameters of a repeated body, in the order of the text.
    pub(super) declared: RefCell<Vec<(Declared, V<'g>)>>,
    /// What states are from the next step on, by path.
    pub becomes: RefCell<Vec<(String, V<'g>)>>,
    /// What tells apart the random numbers of one run from those of the next, as [`Call::iteration`](crate::onnx::call::Call) has it.
    pub draws: Cell<Option<Option<V<'g>>>>,
    errors: RefCell<Errors>,
}

#[derive(Default)]
struct Errors {
    list: Vec<Error>,
    seen: HashSet<(Loc, String)>,
}

/// One call of a module.
pub struct Frame<'g> {
    pub(super) vars: HashMap<Arc<str>, Val<'g>>,
    /// Names of dimensions: of inputs, and those that operations bind.
    pub symbols: HashSet<Arc<str>>,
    /// Where parameters live: the instance's path, then that of loop iterations.
    path: String,
    /// How often each name was used under `path`.
    pub(super) used: HashMap<String, u32>,
    /// Module, and the place that called it; for notes.
    pub(super) called: Option<(Arc<str>, Pos)>,
}

impl<'g> Frame<'g> {
    pub fn new(path: String) -> Frame<'g> {
        Frame { vars: HashMap::new(), symbols: HashSet::new(), path, used: HashMap::new(), called: None }
    }

    pub fn set(&mut self, name: &Arc<str>, v: Val<'g>) {
        self.vars.insert(name.clone(), v);
    }

    pub fn get(&self, name: &str) -> Option<&Val<'g>> {
        self.vars.get(name)
    }

    pub(super) fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// A path that nothing under this one has yet: `Conv`, `Conv_2`...
    pub(super) fn unique(&mut self, name: &str) -> String {
        let mut own = name.to_string();
        if let Some(&uses) = self.used.get(name) {
            // Somebody may have called a thing `Conv_2` by himself.
            let free = (uses + 1..).map(|n| (n, format!("{name}_{n}"))).find(|(_, name)| !self.used.contains_key(name));
            if let Some((n, free)) = free {
                self.used.insert(name.to_string(), n);
                own = free;
            }
        }
        self.used.insert(own.clone(), 1);
        self.join(&own)
    }
}

/// Elaborates a file: its entry is the module `main`, or else the last without hyper-parameters.
pub fn elaborate(file: &ast::File, name: &Arc<str>, limits: Limits, parameters: Parameters) -> Result<(Graph, Vec<Parameter>), Report> {
    let shared = Shared::new(file, name, limits, parameters, false)?;
    let entry = file.modules.iter().position(|m| &*m.name.text == "main").or_else(|| file.modules.iter().rposition(|m| m.hyper.is_none()));
    let Some(entry) = entry else {
        let e = Error::name("there is no module to compile: one that is called `main`, or that has no hyper-parameters");
        return Err(e.at(&shared.loc(Pos { line: 1, col: 1 })).into());
    };
    shared.module(entry)
}

/// The graph, or everything that is wrong with it.
pub fn finish(b: Builder, order: Vec<Parameter>, errors: Vec<Error>) -> Result<(Graph, Vec<Parameter>), Report> {
    match b.finish() {
        Ok(mut graph) if errors.is_empty() => {
            graph.keep_checks();
            Ok((graph, order))
        }
        graph => Err(in_order(errors, graph.err())),
    }
}

/// Problems that the elaborator and the builder found, in the order of the text.
pub(super) fn in_order(mut errors: Vec<Error>, more: Option<Report>) -> Report {
    errors.extend(more.into_iter().flat_map(|r| r.0));
    errors.sort_by(|a, b| a.loc().cmp(b.loc()));
    errors.dedup_by(|a, b| a.loc() == b.loc() && a.message() == b.message());
    Report(errors)
}

/// The value of a definition outside modules.
fn global(shared: &Shared, e: &Expr) -> Eval<Global> {
    let b = Builder::new("");
    let elab = Elab::new(shared, &b);
    let v = elab.eval(e, &mut Frame::new(String::new()))?;
    Ok(Global::of(&v).map_err(|err| err.at(&shared.loc(e.pos)))?)
}

impl<'a> Shared<'a> {
    /// What the file defines outside modules, and where its modules are.
    pub fn new(file: &'a ast::File, name: &'a Arc<str>, limits: Limits, parameters: Parameters, training: bool) -> Result<Shared<'a>, Report> {
        let mut shared = Shared {
            file,
            name,
            modules: HashMap::new(),
            operators: Operators::new(),
            limits,
            seed: 0,
            globals: HashMap::new(),
            steps: Cell::new(0),
            bytes: Cell::new(0),
            nesting: Cell::new(0),
            training,
            parameters,
        };
        let mut errors = vec![];
        for (i, m) in file.modules.iter().enumerate() {
            if shared.modules.insert(&m.name.text, i).is_some() {
                errors.push(Error::name(format!("a module called `{}` exists already", m.name.text)).at(&shared.loc(m.name.pos)));
            }
        }
        for (name, e) in &file.globals {
            match global(&shared, e).and_then(|g| shared.define(&name.text, g).map_err(Stop::from)) {
                Ok(()) => {}
                Err(Stop::Error(e)) => errors.push(e.at(&shared.loc(name.pos))),
                Err(Stop::Poison) => {}
            }
        }
        if errors.is_empty() { Ok(shared) } else { Err(Report(errors)) }
    }

    /// The index of a module.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.modules.get(name).copied()
    }

    /// A module as a graph of its own.
    pub fn module(&self, k: usize) -> Result<(Graph, Vec<Parameter>), Report> {
        let module = &self.file.modules[k];
        let b = Builder::new(&module.name.text);
        let elab = Elab::new(self, &b);
        elab.graph(&module.body, Frame::new(String::new()), "an entry");
        if let Some(h) = module.hyper.iter().flatten().find(|h| h.default.is_none()) {
            elab.report(h.name.pos, Error::name(format!("the entry `{}` cannot have the hyper-parameter `{}`", module.name.text, h.name.text)), None);
        }
        let Elab { order, errors, .. } = elab;
        finish(b, order.into_inner(), errors.into_inner().list)
    }

    pub fn loc(&self, pos: Pos) -> Loc {
        Loc::Text { file: self.name.clone(), line: pos.line, col: pos.col }
    }

    /// Adds a definition; `seed` and `opset` mean something to the elaborator itself.
    fn define(&mut self, name: &Arc<str>, g: Global) -> Result<()> {
        let int = |g: &Global| match g {
            Global::Int(d) => d.as_const(),
            _ => None,
        };
        match &**name {
            "seed" => self.seed = int(&g).ok_or_else(|| Error::attribute("`seed` is an integer"))? as u64,
            "opset" => self.operators.opset = int(&g).filter(|o| *o > 0).ok_or_else(|| Error::attribute("`opset` is an integer of at least 1"))?,
            _ => {}
        }
        if self.globals.insert(name.clone(), g).is_some() {
            return Err(Error::name(format!("`{name}` is defined twice")));
        }
        Ok(())
    }

    /// Whether the file defines `name` outside modules.
    pub fn defines(&self, name: &str) -> bool {
        self.globals.contains_key(name)
    }

    /// Counts work, so that a short text cannot ask for unbounded much.
    pub fn step(&self) -> Result<()> {
        self.steps.set(self.steps.get() + 1);
        if self.steps.get() > self.limits.steps {
            return Err(Error::limit(format!("the model takes more than {} steps to build", self.limits.steps)));
        }
        Ok(())
    }

    pub(super) fn nested<T>(&self, f: impl FnOnce() -> Eval<T>) -> Eval<T> {
        if self.nesting.get() >= MAX_NESTING {
            return Err(Error::limit("modules and expressions call each other too deep").into());
        }
        self.nesting.set(self.nesting.get() + 1);
        let r = f();
        self.nesting.set(self.nesting.get() - 1);
        r
    }

    /// The shape of a parameter or a constant.
    pub(super) fn known(&self, ty: &Type) -> Result<Vec<usize>> {
        let shape: Option<Vec<usize>> = ty.shape.iter().map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect();
        shape.ok_or_else(|| Error::shape(format!("the shape of {} must be known before the run and not negative", TypeText(ty))))
    }

    /// Takes the memory of a constant from what the file may use.
    pub fn take(&self, ty: &Type) -> Result<Vec<usize>> {
        let shape = self.known(ty)?;
        let bytes = nnc_ir::tensor::checked_elems(ty.dtype, &shape)? as u64 * ty.dtype.bytes() as u64;
        let total = self.bytes.get().saturating_add(bytes);
        if total > self.limits.bytes {
            return Err(Error::limit(format!("{} would make the constants of this file larger than {} bytes", TypeText(ty), self.limits.bytes)));
        }
        self.bytes.set(total);
        Ok(shape)
    }
}

impl<'a, 'g> Elab<'a, 'g> {
    /// What went wrong, in the order in which it did.
    pub fn into_errors(self) -> Vec<Error> {
        self.errors.into_inner().list
    }

    pub fn new(shared: &'g Shared<'a>, b: &'g Builder) -> Elab<'a, 'g> {
        Elab {
            shared,
            b,
            parameters: RefCell::default(),
            order: RefCell::default(),
            repeated: false,
            declared: RefCell::default(),
            becomes: RefCell::default(),
            draws: Cell::new(None),
            errors: RefCell::default(),
        }
    }

    /// Records an error once, with the module it happened in.
    pub fn report(&self, pos: Pos, e: Error, frame: Option<&Frame<'g>>) {
        let mut e = e.at(&self.shared.loc(pos));
        let mut errors = self.errors.borrow_mut();
        if !errors.seen.insert((e.loc().clone(), e.message().to_string())) {
            return;
        }
        if let Some((module, at)) = frame.and_then(|f| f.called.as_ref()) {
            e = e.note(format!("in `{module}`, called at line {}, column {}", at.line, at.col));
        }
        errors.list.push(e);
    }

    pub fn failed(&self, pos: Pos, stop: Stop, frame: &Frame<'g>) {
        if let Stop::Error(e) = stop {
            self.report(pos, e, Some(frame));
        }
    }

    /// Inputs, statements and outputs of a graph of its own: the entry's, or a region's. Errors are recorded.
    fn graph(&self, body: &'a ast::Body, mut frame: Frame<'g>, what: &str) {
        let mut seen = HashSet::new();
        for input in &body.inputs {
            let Some(ty) = &input.ty else {
                self.report(input.name.pos, Error::syntax(format!("the input `{}` of {what} needs a type", input.name.text)), None);
                frame.vars.insert(input.name.text.clone(), Val::Poison);
                continue;
            };
            for name in ty.dims.iter().flat_map(|d| names(d)) {
                if frame.get(&name.text).is_none() && !self.shared.globals.contains_key(&name.text) {
                    frame.symbols.insert(name.text.clone());
                }
            }
            let v = match self.type_of(ty, &mut frame) {
                Ok(t) if t.shape.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) => {
                    self.report(ty.pos, Error::shape(format!("{} has a negative dimension", TypeText(&t))), None);
                    Val::Poison
                }
                Ok(t) => {
                    self.b.at(self.shared.loc(input.name.pos));
                    let name = if is_number(&input.name.text) && !input.name.quoted { "" } else { &*input.name.text };
                    Val::Tensor(self.b.input(name, t))
                }
                Err(stop) => {
                    self.failed(ty.pos, stop, &frame);
                    Val::Poison
                }
            };
            frame.vars.insert(input.name.text.clone(), v);
            if !seen.insert(&input.name.text) {
                self.report(input.name.pos, Error::name(format!("two inputs are called `{}`", input.name.text)), None);
            }
        }
        let returned = self.block(&body.block, &mut frame);
        let Some((pos, values, exprs)) = returned else {
            self.report(body.pos, Error::name("nothing is returned"), None);
            return;
        };
        let declared = body.results.as_deref().unwrap_or(&[]);
        if body.results.is_some() && declared.len() != values.len() {
            let e = Error::arity(format!("{} results are declared, {} are returned", declared.len(), values.len()));
            self.report(pos, e, None);
        }
        for (i, v) in values.iter().enumerate() {
            let expr = exprs.get(i);
            let at = expr.map_or(pos, |e| e.pos);
            let v = match v {
                Val::Tensor(v) if !v.is_poison() => *v,
                Val::Poison | Val::Tensor(_) => continue,
                v => {
                    self.report(at, Error::dtype(format!("a graph returns tensors, not {}", v.kind())), None);
                    continue;
                }
            };
            if let Some(d) = declared.get(i)
                && let Err(stop) = self.type_of(&d.ty, &mut frame).and_then(|t| Ok(same_type(&t, &v.ty())?))
            {
                self.failed(d.ty.pos, stop, &frame);
            }
            let name = declared.get(i).and_then(|d| d.name.as_ref()).or(match expr.map(|e| &e.kind) {
                Some(ExprKind::Name(n)) if !is_number(&n.text) || n.quoted => Some(n),
                _ => None,
            });
            let name = match name {
                Some(n) => n.text.to_string(),
                None if values.len() == 1 => "output".into(),
                None => format!("output{i}"),
            };
            self.b.output(name, v);
        }
    }

    /// A region of control flow. It sees nothing from outside but sizes: symbols, and what a call bound names of dimensions to.
    pub fn region(&self, body: &'a ast::Body, outside: &Frame<'g>) -> Eval<Graph> {
        self.shared.nested(|| {
            let b = Builder::new("");
            let inner = Elab::new(self.shared, &b);
            // The step is a value of the graph outside.
            inner.draws.set(self.draws.get().map(|_| None));
            let mut frame = Frame::new(String::new());
            frame.symbols = outside.symbols.clone();
            let sizes =
                outside.vars.iter().filter_map(|(name, v)| if let Val::Int(d) = v { Some((name.clone(), Val::Int(d.clone()))) } else { None });
            frame.vars.extend(sizes);
            inner.graph(body, frame, "a region");
            let Elab { errors, .. } = inner;
            let errors = errors.into_inner().list;
            let graph = match b.finish() {
                Ok(g) if errors.is_empty() => return Ok(g),
                graph => graph,
            };
            for e in in_order(errors, graph.err()).0 {
                self.report(body.pos, e, None);
            }
            Err(Stop::Poison)
        })
    }

    /// Runs statements. What `return` gives, with its expressions where there is one for each value.
    #[allow(clippy::type_complexity)]
    pub fn block(&self, block: &'a [Stmt], frame: &mut Frame<'g>) -> Option<(Pos, Vec<Val<'g>>, &'a [Expr])> {
        for s in block {
            if self.errors.borrow().list.len() >= MAX_ERRORS {
                return Some((Pos { line: 1, col: 1 }, vec![], &[]));
            }
            let pos = match s {
                Stmt::Assign { targets, .. } => targets[0].name.pos,
                Stmt::Return { pos, .. } => *pos,
                Stmt::If { arms, .. } => arms[0].0.pos,
                Stmt::For { var, .. } => var.pos,
                Stmt::Become { name, .. } => name.pos,
                Stmt::Repeat { pos, .. } => *pos,
            };
            if let Err(e) = self.shared.step() {
                self.report(pos, e, None);
                return Some((pos, vec![Val::Poison], &[]));
            }
            match s {
                Stmt::Assign { targets, value } => self.assign(targets, value, frame),
                Stmt::Become { name, value } => {
                    if let Err(stop) = self.set_state(name, value, frame) {
                        self.failed(name.pos, stop, frame);
                    }
                }
                Stmt::Return { pos, values } => {
                    let results = values.iter().map(|e| {
                        self.eval(e, frame).unwrap_or_else(|stop| {
                            self.failed(e.pos, stop, frame);
                            Val::Poison
                        })
                    });
                    let results: Vec<Val> = results.collect();
                    // `return f(x)` hands on all results of f.
                    if let [Val::Tuple(t)] = &results[..] {
                        return Some((*pos, t.clone(), &[]));
                    }
                    return Some((*pos, results, values));
                }
                Stmt::If { arms, otherwise } => match self.choose(arms, otherwise, frame) {
                    Ok(block) => {
                        if let Some(r) = self.block(block, frame) {
                            return Some(r);
                        }
                    }
                    Err(stop) => {
                        self.failed(pos, stop, frame);
                        arms.iter().for_each(|a| poison(&a.1, frame));
                        poison(otherwise, frame);
                    }
                },
                Stmt::Repeat { pos, count, body } => {
                    if let Err(stop) = self.repeat(*pos, count, body, frame) {
                        self.failed(*pos, stop, frame);
                        poison(body, frame);
                    }
                }
                Stmt::For { var, lo, hi, body } => match self.range(lo, hi, frame) {
                    Ok((lo, hi)) => {
                        for i in lo..hi {
                            if let Err(e) = self.shared.step() {
                                self.report(var.pos, e, None);
                                return Some((var.pos, vec![Val::Poison], &[]));
                            }
                            let path = frame.unique(&format!("{}{i}", var.text));
                            let outer = (std::mem::replace(&mut frame.path, path), std::mem::take(&mut frame.used));
                            frame.vars.insert(var.text.clone(), Val::Int(Dim::Const(i)));
                            let r = self.block(body, frame);
                            (frame.path, frame.used) = outer;
                            if let Some(r) = r {
                                return Some(r);
                            }
                        }
                    }
                    Err(stop) => {
                        self.failed(pos, stop, frame);
                        poison(body, frame);
                    }
                },
            }
        }
        None
    }

    /// `state := value`.
    fn set_state(&self, name: &'a ast::Name, value: &'a Expr, frame: &mut Frame<'g>) -> Eval<()> {
        let Val::Tensor(v) = self.eval(value, frame)? else { return Err(Error::dtype(format!("`{}` becomes a tensor", name.text)).into()) };
        let Some(Val::Tensor(old)) = frame.get(&name.text) else { return Err(Error::name(format!("`{}` is no state", name.text)).into()) };
        let order = self.order.borrow();
        let Some(state) = order.iter().find(|p| p.value == old.value() && !p.trained) else {
            return Err(Error::name(format!("`{}` is no state: `:=` sets what was declared by `state`", name.text)).into());
        };
        same_type(&old.ty(), &v.ty())?;
        self.becomes.borrow_mut().push((state.path.clone(), v));
        Ok(())
    }

    fn choose(&self, arms: &'a [(Expr, Vec<Stmt>)], otherwise: &'a [Stmt], frame: &mut Frame<'g>) -> Eval<&'a [Stmt]> {
        for (cond, block) in arms {
            let c = self.eval(cond, frame)?;
            if let Val::Tensor(v) = &c {
                let e = Error::dtype(format!("the condition is a tensor {}, known only in the run", v.ty()));
                return Err(e.at(&self.shared.loc(cond.pos)).note("`where(c, x, y)` chooses in the run").into());
            }
            if c.as_bool().map_err(|e| e.at(&self.shared.loc(cond.pos)))? {
                return Ok(block);
            }
        }
        Ok(otherwise)
    }

    fn range(&self, lo: &'a Expr, hi: &'a Expr, frame: &mut Frame<'g>) -> Eval<(i64, i64)> {
        let mut end = |e: &'a Expr| Ok::<i64, Stop>(self.eval(e, frame)?.as_int().map_err(|err| err.at(&self.shared.loc(e.pos)))?);
        Ok((end(lo)?, end(hi)?))
    }

    fn assign(&self, targets: &'a [ast::Target], value: &'a Expr, frame: &mut Frame<'g>) {
        let hint = if targets.len() == 1 { Some(&*targets[0].name.text) } else { None };
        let values = self.eval_for(value, frame, hint, targets.len()).and_then(|v| match v {
            Val::Tuple(t) if targets.len() > 1 => Ok(t),
            v if targets.len() == 1 => Ok(vec![v]),
            _ => Err(Error::arity(format!("{} names for one value", targets.len())).into()),
        });
        let values = values.and_then(|v| {
            if v.len() == targets.len() { Ok(v) } else { Err(Error::arity(format!("{} names for {} results", targets.len(), v.len())).into()) }
        });
        let values = values.unwrap_or_else(|stop| {
            self.failed(value.pos, stop, frame);
            vec![Val::Poison; targets.len()]
        });
        for (t, v) in targets.iter().zip(values) {
            if let Some(ty) = &t.ty
                && let Err(stop) = self.annotated(ty, &v, frame)
            {
                self.failed(ty.pos, stop, frame);
            }
            if let Val::Tensor(v) = &v
                && v.value().port == 0
                && (t.name.quoted || !is_number(&t.name.text))
            {
                v.named(&frame.join(&t.name.text));
            }
            frame.vars.insert(t.name.text.clone(), v);
        }
    }

    /// Holds a value against the type that the text gives it.
    pub(super) fn annotated(&self, ty: &'a ast::TypeExpr, v: &Val<'g>, frame: &mut Frame<'g>) -> Eval<()> {
        match v {
            Val::Poison => Ok(()),
            Val::Tensor(v) if v.is_poison() => Ok(()),
            Val::Tensor(v) => Ok(same_type(&self.type_of(ty, frame)?, &v.ty())?),
            v => Err(Error::dtype(format!("only tensors have types, not {}", v.kind())).into()),
        }
    }

    pub fn type_of(&self, ty: &'a ast::TypeExpr, frame: &mut Frame<'g>) -> Eval<Type> {
        let mut shape = vec![];
        for e in &ty.dims {
            shape.push(self.dim(e, frame)?);
        }
        Ok(Type::new(ty.dtype, shape))
    }

    /// An integer expression. A tensor of the name of a symbol does not hide the symbol here.
    pub(super) fn dim(&self, e: &'a Expr, frame: &mut Frame<'g>) -> Eval<Dim> {
        if let ExprKind::Name(n) = &e.kind
            && frame.symbols.contains(&n.text)
            && !matches!(frame.get(&n.text), Some(Val::Int(_)))
        {
            return Ok(Dim::sym(&n.text));
        }
        Ok(self.eval(e, frame)?.as_dim().map_err(|err| err.at(&self.shared.loc(e.pos)))?)
    }

    /// The value of an expression.
    pub fn eval(&self, e: &'a Expr, frame: &mut Frame<'g>) -> Eval<Val<'g>> {
        self.eval_for(e, frame, None, 1)
    }

    /// The value of an expression that is given the name `hint`, or that `results` names take apart.
    pub(super) fn eval_for(&self, e: &'a Expr, frame: &mut Frame<'g>, hint: Option<&str>, results: usize) -> Eval<Val<'g>> {
        self.shared.nested(|| self.expr(e, frame, hint, results)).map_err(|stop| match stop {
            Stop::Error(err) => Stop::Error(err.at(&self.shared.loc(e.pos))),
            stop => stop,
        })
    }

    /// Refuses poison, and shapes that have grown out of bounds.
    pub fn checked(&self, y: &[V<'g>]) -> Eval<()> {
        for v in y {
            if v.is_poison() {
                return Err(Stop::Poison);
            }
            for d in &v.ty().shape {
                check_dim(d)?;
            }
        }
        Ok(())
    }
}

pub(super) fn same_type(want: &Type, found: &Type) -> Result<()> {
    if want == found {
        return Ok(());
    }
    let e = format!("declared {}, found {}", TypeText(want), TypeText(found));
    Err(if want.dtype != found.dtype { Error::dtype(e) } else { Error::shape(e) })
}

/// Names that stand in a dimension expression.
fn names(e: &Expr) -> Vec<&ast::Name> {
    let mut out = vec![];
    let mut todo = vec![e];
    while let Some(e) = todo.pop() {
        match &e.kind {
            ExprKind::Name(n) => out.push(n),
            ExprKind::Unary(_, x) => todo.push(x),
            ExprKind::Chain(first, rest) => {
                todo.push(first);
                todo.extend(rest.iter().map(|(.., x)| x));
            }
            ExprKind::Call(c) => todo.extend(&c.args),
            _ => {}
        }
    }
    out
}

/// Every name that the statements assign is poisoned: their errors follow from one that is reported.
fn poison(block: &[Stmt], frame: &mut Frame) {
    for name in ast::assigned(block) {
        frame.vars.insert(name.text.clone(), Val::Poison);
    }
}

pub fn did_you_mean<'k>(e: Error, name: &str, known: impl IntoIterator<Item = &'k str>) -> Error {
    // Sorted, so that the order of a hash table does not choose among equals.
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    match nearest(name, known) {
        Some(k) => e.note(format!("did you mean `{k}`?")),
        None => e,
    }
}
