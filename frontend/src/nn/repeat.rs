//! `repeat n { ... }`: a loop over layers that stays one. The body is elaborated once, as the region of a `scan`, so that a net of ten
//! thousand layers is as large a graph as one of two.
//!
//! What the body assigns and was a tensor before goes from one repetition to the next; other tensors it sees. A parameter that it declares
//! is one tensor whose first axis counts the repetitions, each of which has its slice.

use super::ast::{self, Expr, Stmt};
use super::elaborate::{Elab, Eval, Frame, Stop, in_order};
use super::lex::Pos;
use super::parameter::Declared;
use super::value::{Instance, Val};
use nnc_ir::error::Error;
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::source::Iota;
use nnc_ir::print::TypeText;
use nnc_ir::{Builder, DType, Dim, Graph, NodeId, Op, Type, V, Value};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Constants of up to so many elements are written into the body, where inference sees what they are.
const COPIED: usize = 64;

/// Values of the graph around a body, as inputs of it.
struct Captures<'g, 'h> {
    body: &'h Builder,
    inputs: BTreeMap<Value, (V<'g>, V<'h>)>,
}

impl<'g, 'h> Captures<'g, 'h> {
    fn tensor(&mut self, v: V<'g>) -> V<'h> {
        if v.is_poison() {
            return self.body.poison();
        }
        match v.constant().filter(|t| t.elems() <= COPIED) {
            Some(t) => self.body.constant(t),
            None => self.inputs.entry(v.value()).or_insert_with(|| (v, self.body.input("", v.ty()))).1,
        }
    }

    fn value(&mut self, v: &Val<'g>) -> Val<'h> {
        match v {
            Val::Tensor(v) => Val::Tensor(self.tensor(*v)),
            Val::Int(d) => Val::Int(d.clone()),
            Val::Float(x) => Val::Float(*x),
            Val::Bool(b) => Val::Bool(*b),
            Val::Str(s) => Val::Str(s.clone()),
            Val::DType(d) => Val::DType(*d),
            Val::None => Val::None,
            Val::List(l) => Val::List(l.iter().map(|v| self.value(v)).collect()),
            Val::Tuple(l) => Val::Tuple(l.iter().map(|v| self.value(v)).collect()),
            Val::Init(i) => Val::Init(*i),
            Val::Instance(i) => {
                let hyper = i.hyper.iter().map(|(n, v)| (n.clone(), self.value(v))).collect();
                Val::Instance(Rc::new(Instance { module: i.module, hyper, path: i.path.clone() }))
            }
            Val::Poison => Val::Poison,
        }
    }
}

/// What there is to say of a body's graph: its inputs by role, and its results behind the states.
struct Region<'g> {
    states: Vec<NodeId>,
    /// The number of the repetition, and what random numbers are counted by.
    index: NodeId,
    draw: Option<NodeId>,
    /// Tensors of the graph around.
    seen: Vec<(V<'g>, NodeId)>,
    /// Parameters: one for each repetition, and one for all.
    own: Vec<(Declared, NodeId)>,
    shared: Vec<(Declared, NodeId)>,
    /// Paths of the `state`s that are set.
    collected: Vec<String>,
    errors: Vec<Error>,
}

impl<'a, 'g> Elab<'a, 'g> {
    /// `repeat count { body }`.
    pub(super) fn repeat(&self, pos: Pos, count: &'a Expr, body: &'a [Stmt], frame: &mut Frame<'g>) -> Eval<()> {
        let times = self.eval(count, frame)?.as_int().map_err(|e| e.at(&self.shared.loc(count.pos)))?;
        match usize::try_from(times) {
            Ok(0) => Ok(()),
            Ok(times) => self.shared.nested(|| self.rolled(pos, times, body, frame)),
            Err(_) => Err(Error::attribute(format!("{times} is no count")).at(&self.shared.loc(count.pos)).into()),
        }
    }

    fn rolled(&self, pos: Pos, times: usize, body: &'a [Stmt], frame: &mut Frame<'g>) -> Eval<()> {
        let carried = self.carried(body, frame)?;
        if carried.is_empty() {
            let e = Error::name("nothing goes from one repetition to the next: the body assigns no tensor that was there before");
            return Err(e.at(&self.shared.loc(pos)).into());
        }
        for _ in &frame.vars {
            self.shared.step()?;
        }
        let path = frame.unique("repeat");
        let b = self.b.nested("repeat");
        let Region { states, index, draw, seen, own, shared, collected, errors } = self.elaborated(&b, (pos, times), body, &carried, path, frame);
        let mut graph = match b.finish() {
            Ok(graph) if errors.is_empty() => graph,
            graph => {
                in_order(errors, graph.err()).0.into_iter().for_each(|e| self.report(pos, e, None));
                return Err(Stop::Poison);
            }
        };

        let mut scanned: Vec<(V, NodeId)> = vec![];
        for (d, input) in own {
            scanned.push((self.declare(pos, d.repeated(times))?, input));
        }
        let mut given = seen;
        for (d, input) in shared {
            given.push((self.declare(pos, d)?, input));
        }
        drop_unread(&mut graph, draw.filter(|d| *d != index));
        given.retain(|(_, id)| !drop_input(&mut graph, *id));
        self.b.at(self.shared.loc(pos));
        // A scan needs something to count its trips by.
        if scanned.is_empty() || !drop_input(&mut graph, index) {
            scanned.push((self.b.op(Iota { shape: vec![Dim::from(times)], axis: 0 }, &[]), index));
        }
        graph.inputs = states.iter().copied().chain(scanned.iter().chain(&given).map(|(_, id)| *id)).collect();
        let operands: Vec<V> = carried.iter().map(|(_, v)| *v).chain(scanned.iter().chain(&given).map(|(v, _)| *v)).collect();
        let scan = Scan { states: states.len(), scanned: scanned.len(), reverse: false };
        let y = self.b.try_op(Op::Scan(scan), &operands, vec![graph])?;
        self.checked(&y)?;
        y[0].named(&frame.join(&carried[0].0.text));
        carried.iter().zip(&y).for_each(|((name, _), v)| frame.set(&name.text, Val::Tensor(*v)));
        self.becomes.borrow_mut().extend(collected.into_iter().zip(y[states.len()..].iter().copied()));
        Ok(())
    }

    /// Elaborates the body into a graph of its own.
    fn elaborated(
        &self,
        b: &Builder,
        (pos, times): (Pos, usize),
        body: &'a [Stmt],
        carried: &[(&'a ast::Name, V<'g>)],
        path: String,
        frame: &Frame<'g>,
    ) -> Region<'g> {
        let mut captures = Captures { body: b, inputs: BTreeMap::new() };
        let mut inner = Elab::new(self.shared, b);
        inner.repeated = true;
        let inside = format!("{path}.");
        let mut scope = Frame::new(path);
        scope.symbols = frame.symbols.clone();
        scope.called = frame.called.clone();
        // In the order of names, not that of a hash table.
        let mut vars: Vec<_> = frame.vars.iter().filter(|(name, _)| !carried.iter().any(|(c, _)| c.text == **name)).collect();
        vars.sort_by(|a, b| a.0.cmp(b.0));
        for (name, v) in vars {
            scope.set(name, captures.value(v));
        }
        let states: Vec<V> = carried.iter().map(|(name, v)| b.input(&name.text, v.ty())).collect();
        carried.iter().zip(&states).for_each(|((name, _), v)| scope.set(&name.text, Val::Tensor(*v)));
        // Random numbers differ from repetition to repetition, as from step to step.
        let index = b.input("", Type::new(DType::I64, vec![]));
        let draw = match self.draws.get() {
            None => Some(index),
            Some(step) => step.map(|step| captures.tensor(step) * index.scalar_like(times as f64) + index),
        };
        inner.draws.set(Some(draw));

        if let Some((at, ..)) = inner.block(body, &mut scope) {
            inner.report(at, Error::syntax("a repetition cannot return: what it gives is what it assigns"), Some(&scope));
        }
        let next: Vec<Option<V>> = carried.iter().map(|(name, before)| inner.carries(name, before.ty(), &scope)).collect();
        next.into_iter().flatten().for_each(|v| b.output("", v));
        let mut collected = vec![];
        for (path, v) in inner.becomes.take() {
            if path.starts_with(&inside) {
                b.output("", v);
                collected.push(path);
            } else {
                inner.report(pos, Error::unsupported(format!("the state `{path}` is shared by all repetitions: they cannot set it")), None);
            }
        }
        let declared = inner.declared.take().into_iter().map(|(d, v)| (d, v.node()));
        let (own, shared) = declared.partition(|(d, _)| d.path.starts_with(&inside));
        Region {
            states: states.iter().map(|v| v.node()).collect(),
            index: index.node(),
            draw: draw.map(V::node),
            seen: captures.inputs.values().map(|(outer, inner)| (*outer, inner.node())).collect(),
            own,
            shared,
            collected,
            errors: inner.into_errors(),
        }
    }

    /// Names that the body assigns and that are tensors before it, in the order of the text.
    fn carried(&self, body: &'a [Stmt], frame: &Frame<'g>) -> Eval<Vec<(&'a ast::Name, V<'g>)>> {
        let mut out: Vec<(&ast::Name, V)> = vec![];
        for name in ast::assigned(body) {
            match frame.get(&name.text) {
                None => {}
                Some(Val::Poison) => return Err(Stop::Poison),
                Some(Val::Tensor(v)) if v.is_poison() => return Err(Stop::Poison),
                Some(Val::Tensor(_)) if out.iter().any(|(n, _)| n.text == name.text) => {}
                Some(Val::Tensor(v)) => out.push((name, *v)),
                Some(v) => {
                    let e = Error::dtype(format!("`{}` is {} before the loop: only tensors go from one repetition to the next", name.text, v.kind()));
                    return Err(e.at(&self.shared.loc(name.pos)).into());
                }
            }
        }
        Ok(out)
    }

    /// What a name is for the next repetition; an error is recorded where its type changes.
    fn carries(&self, name: &'a ast::Name, before: Type, scope: &Frame<'g>) -> Option<V<'g>> {
        let e = match scope.get(&name.text) {
            Some(Val::Tensor(v)) if v.is_poison() => return None,
            Some(Val::Tensor(v)) if v.ty() == before => return Some(*v),
            Some(Val::Tensor(v)) => {
                let (before, after) = (TypeText(&before), v.ty());
                Error::shape(format!("`{}` is {before} before a repetition and {} after it: its type must stay", name.text, TypeText(&after)))
            }
            Some(Val::Poison) | None => return None,
            Some(v) => Error::dtype(format!("`{}` is a tensor before a repetition and {} after it", name.text, v.kind())),
        };
        self.report(name.pos, e, Some(scope));
        None
    }
}

/// Removes `from`, and what only it reads, as far as nothing else does; inputs stay.
fn drop_unread(graph: &mut Graph, from: Option<NodeId>) {
    let mut todo: Vec<NodeId> = from.into_iter().collect();
    while let Some(id) = todo.pop() {
        if !graph.contains(id) || is_read(graph, id) || matches!(graph.node(id).op, Op::Input) {
            continue;
        }
        todo.extend(graph.node(id).operands.iter().map(|v| v.node));
        graph.remove(id);
    }
}

/// Removes an input that nothing reads.
fn drop_input(graph: &mut Graph, id: NodeId) -> bool {
    let read = is_read(graph, id);
    if !read {
        graph.remove(id);
    }
    !read
}

fn is_read(graph: &Graph, id: NodeId) -> bool {
    !graph.users(id).is_empty() || graph.ends().any(|v| v.node == id)
}
