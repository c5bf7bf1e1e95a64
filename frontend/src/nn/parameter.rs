//! Parameters of a model: where they are declared, what they are called, how they begin.

use super::ast;
use super::elaborate::{Elab, Eval, Frame, Shared, same_type};
use super::init::Init;
use super::lex::Pos;
use super::value::Val;
use nnc_ir::error::Error;
use nnc_ir::print::TypeText;
use nnc_ir::{Tensor, Type, V, Value};
use std::collections::HashMap;
use std::rc::Rc;

/// A parameter of a model: a constant of its graph that training may change.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Instances on the way to it, then its name: `layer1.conv2.w`.
    pub path: String,
    pub value: Value,
    /// `param` rather than `state`.
    pub trained: bool,
    /// What it begins with, where it is an input of the graph (in training).
    pub initial: Option<Tensor>,
}

/// What parameters are in the graph.
#[derive(Clone, Default)]
pub enum Parameters {
    /// Constants with the values of their initialisers.
    #[default]
    Constants,
    /// Constants with these values, by path; with those of their initialisers where none is given.
    Given(Rc<HashMap<String, Tensor>>),
    /// Inputs. The initialisers are computed where `initial` asks for it.
    Inputs { initial: bool },
}

/// What a text says of a parameter.
#[derive(Clone)]
pub struct Declared {
    pub path: String,
    pub ty: Type,
    pub trained: bool,
    init: Init,
    /// How many of the leading axes count repetitions: each element of these has a beginning of its own.
    repeats: usize,
}

impl Declared {
    /// As the graph around a body declares it that is repeated so many times.
    pub fn repeated(self, times: usize) -> Declared {
        let shape = std::iter::once(times.into()).chain(self.ty.shape.iter().cloned()).collect();
        Declared { ty: self.ty.with_shape(shape), repeats: self.repeats + 1, ..self }
    }

    /// The first values. Each slice is a step of what the text may take.
    fn begin(&self, shape: &[usize], shared: &Shared) -> nnc_ir::Result<Tensor> {
        let seed = shared.seed;
        let (repeats, slice) = shape.split_at(self.repeats);
        if repeats.is_empty() {
            return self.init.tensor(self.ty.dtype, slice, seed, &self.path);
        }
        if let Init::Constant(_) = self.init {
            return self.init.tensor(self.ty.dtype, shape, seed, &self.path);
        }
        let mut bytes = vec![];
        for i in 0..repeats.iter().fold(1, |n: usize, r| n.saturating_mul(*r)) {
            shared.step()?;
            let part = self.init.tensor(self.ty.dtype, slice, seed, &format!("{}[{i}]", self.path))?;
            bytes.extend_from_slice(&part.bytes());
        }
        Tensor::from_bytes(self.ty.dtype, shape.to_vec(), bytes.into())
    }
}

impl<'a, 'g> Elab<'a, 'g> {
    /// What a parameter is now: what it was before the step, or what an update has made of it.
    pub fn current(&self, p: &Parameter) -> V<'g> {
        self.parameters.borrow().get(&p.path).map_or_else(|| self.b.v(p.value), |(v, _)| *v)
    }

    /// From here on the parameter at `path` is `v`.
    pub fn rebind(&self, path: &str, v: V<'g>) {
        if let Some((old, _)) = self.parameters.borrow_mut().get_mut(path) {
            *old = v;
        }
    }

    /// `param [shape] ~ init`, `state [shape] ~ init`.
    pub(super) fn param(&self, p: &'a ast::Param, pos: Pos, frame: &mut Frame<'g>, hint: Option<&str>) -> Eval<Val<'g>> {
        let ty = self.type_of(&p.ty, frame)?;
        let init = match self.eval(&p.init, frame)? {
            Val::Init(i) => i,
            v if v.as_f64().is_some() => Init::Constant(v.as_f64().unwrap_or(0.0)),
            v => return Err(Error::attribute(format!("expected an initialiser, found {}", v.kind())).at(&self.shared.loc(p.init.pos)).into()),
        };
        let path = frame.unique(hint.unwrap_or("param"));
        let v = self.declare(pos, Declared { path, ty, trained: p.trained, init, repeats: 0 })?;
        Ok(Val::Tensor(v))
    }

    /// The value of a parameter. One that the graph has already is the same; in a body that is repeated it is an input, and the graph
    /// around declares it.
    pub(super) fn declare(&self, pos: Pos, d: Declared) -> Eval<V<'g>> {
        let (path, ty) = (&d.path, &d.ty);
        if let Some((v, old)) = self.parameters.borrow().get(path) {
            if v.ty() != *ty || *old != d.init {
                let e = Error::shape(format!("the shared parameter `{path}` is {}, here it would be {}", TypeText(&v.ty()), TypeText(ty)));
                return Err(e.note("an instance that is called twice shares its parameters").into());
            }
            return Ok(*v);
        }
        self.b.at(self.shared.loc(pos));
        let mut initial = None;
        let v = if self.repeated {
            self.shared.known(ty)?;
            self.b.input("", ty.clone())
        } else {
            let shape = self.shared.take(ty)?;
            let begin = || d.begin(&shape, self.shared);
            match &self.shared.parameters {
                Parameters::Constants => self.b.constant(begin()?).named(path),
                Parameters::Given(values) => match values.get(path) {
                    Some(t) => {
                        same_type(ty, &t.ty())?;
                        self.b.constant(t.clone()).named(path)
                    }
                    None => self.b.constant(begin()?).named(path),
                },
                Parameters::Inputs { initial: wanted } => {
                    initial = wanted.then(begin).transpose()?;
                    self.b.input(path, ty.clone())
                }
            }
        };
        self.order.borrow_mut().push(Parameter { path: path.clone(), value: v.value(), trained: d.trained, initial });
        self.parameters.borrow_mut().insert(path.clone(), (v, d.init));
        if self.repeated {
            self.declared.borrow_mut().push((d, v));
        }
        Ok(v)
    }
}
