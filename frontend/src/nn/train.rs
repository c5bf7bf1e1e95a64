//! Training blocks: what to read, for how long, and the step as a graph of its own.
//!
//! A step's inputs are parameters, what optimisers keep for them, a batch of data, scheduled numbers and the step's number; its outputs
//! are the parameters and the optimisers' values after the step, under the names of the inputs whose place they take, then the loss and
//! what is measured. So a step is a graph like any other: no pass and no backend knows of training.

use super::ast::{self, ExprKind, Item};
use super::elaborate::{Elab, Frame, Parameters, Shared, Stop, finish};
use super::optimizer::{At, Optimizer, clip};
use super::schedule::Schedule;
use super::value::{Instance, Val};
use super::{Limits, parse};
use nnc_ir::error::{Error, Report, Result};
use nnc_ir::ops::gradient::Gradient;
use nnc_ir::{Builder, DType, Dim, Graph, Tensor, Type, V};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Names of a step's inputs and outputs that are no parameters.
pub const STEP: &str = "step";
pub const LOSS: &str = "loss";

/// A set of samples.
#[derive(Clone, PartialEq, Debug)]
pub struct Source {
    /// What its tensors are called in the block.
    pub names: Vec<String>,
    pub loader: String,
    pub files: Vec<String>,
    /// The first sample, and one behind the last; all without.
    pub rows: Option<(usize, usize)>,
    pub batch: usize,
    pub shuffle: bool,
    pub seed: u64,
}

/// For how long to train.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Length {
    Steps(u64),
    Epochs(u64),
}

/// What a training block says before it is known what the data looks like.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    pub data: Source,
    pub test: Option<Source>,
    pub length: Length,
    pub schedules: Vec<(String, Schedule)>,
    pub measures: Vec<String>,
}

/// A step, or a test, as a graph.
#[derive(Debug)]
pub struct Step {
    pub graph: Graph,
    /// What goes from step to step, by name, with the values of the beginning.
    pub state: Vec<(String, Tensor)>,
}

/// A file with a training block.
pub struct Training {
    tree: ast::File,
    name: Arc<str>,
}

impl Training {
    /// `None`: the file has no training block.
    pub fn parse(text: &str, file: &str) -> Result<Option<Training>, Report> {
        let name: Arc<str> = file.into();
        let tree = parse::parse(text, &name)?;
        Ok((!tree.trains.is_empty()).then_some(Training { tree, name }))
    }

    fn train(&self) -> &ast::Train {
        &self.tree.trains[0]
    }

    fn shared(&self, parameters: Parameters, training: bool) -> Result<Shared<'_>, Report> {
        Shared::new(&self.tree, &self.name, Limits::default(), parameters, training)
    }

    pub fn plan(&self) -> Result<Plan, Report> {
        let shared = self.shared(Parameters::Constants, false)?;
        let b = Builder::new("");
        let elab = Elab::new(&shared, &b);
        let mut frame = Frame::new(String::new());
        let plan = self.read(&elab, &mut frame);
        let errors = elab.into_errors();
        match plan {
            Ok(plan) if errors.is_empty() => Ok(plan),
            Ok(_) | Err(Stop::Poison) => Err(Report(errors)),
            Err(Stop::Error(e)) => Err(e.at(&shared.loc(self.train().pos)).into()),
        }
    }

    fn read<'a, 'g>(&'a self, elab: &Elab<'a, 'g>, frame: &mut Frame<'g>) -> Result<Plan, Stop> {
        let (mut data, mut test, mut length, mut schedules, mut measures) = (None, None, Length::Epochs(1), vec![], vec![]);
        for item in &self.train().items {
            let count = |e: &'a ast::Expr, frame: &mut Frame<'g>| -> Result<u64, Stop> {
                let n = elab.eval(e, frame)?.as_int()?;
                u64::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| Error::attribute(format!("{n} is no count of at least 1")).into())
            };
            match item {
                Item::Data(d) => {
                    let source = Source {
                        names: d.names.iter().map(|n| n.text.to_string()).collect(),
                        loader: d.loader.text.to_string(),
                        files: d.files.iter().map(|f| f.to_string()).collect(),
                        rows: match &d.rows {
                            Some((first, end)) => {
                                let mut at = |e| {
                                    Ok::<usize, Stop>(
                                        usize::try_from(elab.eval(e, frame)?.as_int()?).map_err(|_| Error::attribute("a row is not negative"))?,
                                    )
                                };
                                Some((at(first)?, at(end)?))
                            }
                            None => None,
                        },
                        batch: d.batch.as_ref().map_or(Ok(if d.test { 100 } else { 32 }), |e| count(e, frame))? as usize,
                        shuffle: d.shuffle,
                        seed: match &d.seed {
                            Some(e) => elab.eval(e, frame)?.as_int()? as u64,
                            None => 0,
                        },
                    };
                    *(if d.test { &mut test } else { &mut data }) = Some(source);
                }
                Item::Steps(e) => length = Length::Steps(count(e, frame)?),
                Item::Epochs(e) => length = Length::Epochs(count(e, frame)?),
                Item::Schedule(name, e) => schedules.push((name.text.to_string(), schedule(elab, e, frame)?)),
                Item::Measure(name, _) => measures.push(name.text.to_string()),
                Item::Stmt(_) | Item::Update(_) | Item::Clip { .. } => {}
            }
        }
        let data = data.ok_or_else(|| Error::name("the training block has no `data`"))?;
        Ok(Plan { data, test, length, schedules, measures })
    }

    /// The step, for data of these types: of one sample each.
    pub fn step(&self, plan: &Plan, samples: &[Type]) -> Result<Step, Report> {
        self.build(plan, &plan.data, samples, true)
    }

    /// What is measured, one number a sample, for data of these types.
    pub fn test(&self, plan: &Plan, source: &Source, samples: &[Type]) -> Result<Step, Report> {
        self.build(plan, source, samples, false)
    }

    /// The first model that is trained, with these parameters (by their paths in the block), ready to be used.
    pub fn model(&self, values: &HashMap<String, Tensor>) -> Result<Graph, Report> {
        let (module, alias) = &self.train().models[0];
        let prefix = format!("{}.", alias.text);
        let own = values.iter().filter_map(|(path, t)| Some((path.strip_prefix(&prefix)?.to_string(), t.clone())));
        let shared = self.shared(Parameters::Given(Rc::new(own.collect())), false)?;
        let k = shared.find(&module.text).ok_or_else(|| unknown_module(module))?;
        shared.module(k).map(|(graph, _)| graph)
    }

    fn build(&self, plan: &Plan, source: &Source, samples: &[Type], training: bool) -> Result<Step, Report> {
        let shared = self.shared(Parameters::Inputs { initial: training }, training)?;
        let b = Builder::new(if training { "train_step" } else { "test" });
        let elab = Elab::new(&shared, &b);
        let state = self.body(&elab, plan, source, samples, training);
        let order = elab.order.take();
        let mut errors = elab.into_errors();
        let state = state.unwrap_or_else(|stop| {
            if let Stop::Error(e) = stop {
                errors.push(e.at(&shared.loc(self.train().pos)));
            }
            vec![]
        });
        let (graph, _) = finish(b, order, errors)?;
        Ok(Step { graph, state })
    }

    fn body<'a, 'g>(
        &'a self,
        elab: &Elab<'a, 'g>,
        plan: &Plan,
        source: &Source,
        samples: &[Type],
        training: bool,
    ) -> Result<Vec<(String, Tensor)>, Stop> {
        let (b, train) = (elab.b, self.train());
        let mut frame = Frame::new(String::new());
        let batch = Dim::from(source.batch);
        frame.set(&"batch".into(), Val::Int(batch.clone()));
        for (module, alias) in &train.models {
            let k = elab.shared.find(&module.text).ok_or_else(|| unknown_module(module).at(&elab.shared.loc(module.pos)))?;
            let instance = Instance { module: k, hyper: vec![], path: alias.text.to_string() };
            frame.set(&alias.text, Val::Instance(Rc::new(instance)));
        }
        if samples.len() != source.names.len() {
            return Err(Error::input(format!("the data has {} tensors, {} are named", samples.len(), source.names.len())).into());
        }
        for (name, ty) in source.names.iter().zip(samples) {
            let ty = ty.with_shape([std::slice::from_ref(&batch), &ty.shape[..]].concat());
            frame.set(&name.as_str().into(), Val::Tensor(b.input(name, ty)));
        }
        for (name, _) in &plan.schedules {
            frame.set(&name.as_str().into(), Val::Tensor(b.input(name, Type::of(DType::F32, &[]))));
        }
        let mut measures = vec![];
        for item in &train.items {
            match item {
                Item::Stmt(s) => {
                    elab.block(std::slice::from_ref(s), &mut frame);
                }
                Item::Measure(name, e) => {
                    let v = tensor(elab.eval(e, &mut frame)?, &name.text)?;
                    if v.ty().shape.first() != Some(&batch) {
                        let e = Error::shape(format!("`{}` is one number a sample, found {}", name.text, v.ty()));
                        return Err(e.at(&elab.shared.loc(name.pos)).into());
                    }
                    measures.push((name.text.clone(), v.cast(DType::F32)));
                }
                _ => {}
            }
        }
        if !training {
            measures.iter().for_each(|(name, v)| b.output(name, *v));
            return Ok(vec![]);
        }
        let loss = match frame.get(LOSS) {
            Some(v) => tensor(v.clone(), LOSS)?,
            None => return Err(Error::name("the training block does not say what `loss` is").into()),
        };
        if loss.ty().rank() != 0 {
            return Err(Error::shape(format!("`loss` is one number, found {}", loss.ty())).note("`reduce_mean(..., keepdims=0)` makes one").into());
        }
        let state = self.updates(elab, loss, &mut frame)?;
        b.output(LOSS, loss);
        for (name, v) in measures {
            let all: Vec<usize> = (0..v.ty().rank()).collect();
            b.output(name, v.mean_keep(&all).reshape(vec![]));
        }
        Ok(state)
    }

    /// Parameters after the step. Gives what goes from step to step.
    fn updates<'a, 'g>(&'a self, elab: &Elab<'a, 'g>, loss: V<'g>, frame: &mut Frame<'g>) -> Result<Vec<(String, Tensor)>, Stop> {
        let b = elab.b;
        let order = elab.order.borrow().clone();
        let rules: Vec<&ast::Update> = self.train().items.iter().filter_map(|i| if let Item::Update(u) = i { Some(u) } else { None }).collect();
        for u in &rules {
            if !order.iter().any(|p| p.trained && matches(&u.pattern, &p.path)) {
                let e = Error::name(format!("no parameter's path fits `{}`", u.pattern)).at(&elab.shared.loc(u.pos));
                let some: Vec<&str> = order.iter().filter(|p| p.trained).map(|p| &*p.path).take(8).collect();
                return Err(e.note(format!("parameters are {}...", some.join(", "))).into());
            }
        }
        // The last rule that fits decides.
        let rule = |path: &str| rules.iter().rev().find(|u| matches(&u.pattern, path));
        let trained: Vec<_> = order.iter().filter(|p| p.trained).filter_map(|p| Some((p, *rule(&p.path)?))).collect();
        if trained.is_empty() {
            return Err(Error::name("no parameter is updated: `update net.* with sgd(0.1)`").into());
        }
        let operands: Vec<V> = std::iter::once(loss).chain(trained.iter().map(|(p, _)| b.v(p.value))).collect();
        let mut gradients = b.op_all(Gradient {}, &operands, vec![]);
        for item in &self.train().items {
            if let Item::Clip { bound, global, .. } = item {
                let bound = elab.eval(bound, frame)?;
                let bound = bound.as_f64().ok_or_else(|| Error::attribute(format!("a bound is a number, not {}", bound.kind())))?;
                clip(&mut gradients, bound, *global);
            }
        }
        let t = b.input(STEP, Type::of(DType::F32, &[]));
        let mut state = vec![];
        for ((p, u), g) in trained.iter().zip(gradients) {
            b.at(elab.shared.loc(u.pos));
            let optimizer = Optimizer::find(&u.optimizer.text).map_err(|e| e.at(&elab.shared.loc(u.optimizer.pos)))?;
            let rate = match u.args.first().map(|e| elab.eval(e, frame)).transpose()? {
                Some(Val::Tensor(v)) => v,
                Some(v) if v.as_f64().is_some() => g.scalar_like(v.as_f64().unwrap_or(0.0)),
                _ => {
                    return Err(Error::arity(format!("{}: the first argument is the learning rate", optimizer.name))
                        .at(&elab.shared.loc(u.pos))
                        .into());
                }
            };
            if u.args.len() > 1 {
                return Err(Error::arity(format!("{}: settings behind the rate are given by name", optimizer.name))
                    .at(&elab.shared.loc(u.pos))
                    .into());
            }
            let mut given = vec![];
            for (n, e) in &u.named {
                let v = elab.eval(e, frame)?;
                let number = v.as_f64().or(if let Val::Bool(b) = v { Some(f64::from(b)) } else { None });
                given.push((&*n.text, number.ok_or_else(|| Error::attribute(format!("`{}` is a number", n.text)).at(&elab.shared.loc(n.pos)))?));
            }
            let set = optimizer.settings(&given).map_err(|e| e.at(&elab.shared.loc(u.pos)))?;
            let w = b.v(p.value);
            let ty = w.ty();
            let names: Vec<String> = (0..optimizer.kept(&set)).map(|k| format!("{}${k}", p.path)).collect();
            let kept: Vec<V> = names.iter().map(|n| b.input(n, ty.clone())).collect();
            let (new, next) = (optimizer.step)(&At { w, g, rate: rate.cast(ty.dtype), t: t.cast(ty.dtype), kept: &kept, set: &set });
            b.output(&p.path, new);
            state.push((p.path.clone(), p.initial.clone().ok_or_else(|| Error::internal("a parameter without a beginning"))?));
            for (name, v) in names.into_iter().zip(next) {
                b.output(&name, v);
                let zero = Tensor::splat(
                    ty.dtype,
                    v.ty().const_shape().unwrap_or_default().iter().map(|d| *d as usize).collect(),
                    vec![0; ty.dtype.bytes()].into(),
                )?;
                state.push((name, zero));
            }
        }
        let becomes = elab.becomes.borrow();
        for p in order.iter().filter(|p| trained.iter().all(|(q, _)| q.path != p.path)) {
            // The last assignment counts; without one the value stays.
            let next = becomes.iter().rev().find(|(path, _)| *path == p.path).map_or(b.v(p.value), |(_, v)| *v);
            b.output(&p.path, next);
            state.push((p.path.clone(), p.initial.clone().ok_or_else(|| Error::internal("a state without a beginning"))?));
        }
        Ok(state)
    }
}

fn unknown_module(name: &ast::Name) -> Error {
    Error::name(format!("no module is called `{}`", name.text))
}

fn tensor<'g>(v: Val<'g>, what: &str) -> Result<V<'g>, Stop> {
    match v {
        Val::Tensor(v) => Ok(v),
        Val::Poison => Err(Stop::Poison),
        v => Err(Error::dtype(format!("`{what}` is a tensor, not {}", v.kind())).into()),
    }
}

/// A number, or a call such as `cosine(0.1, warmup=400)`.
fn schedule<'a, 'g>(elab: &Elab<'a, 'g>, e: &'a ast::Expr, frame: &mut Frame<'g>) -> Result<Schedule, Stop> {
    let number = |v: &Val| v.as_f64().ok_or_else(|| Error::attribute(format!("expected a number, found {}", v.kind())));
    let ExprKind::Call(call) = &e.kind else { return Ok(Schedule::constant(number(&elab.eval(e, frame)?)?)) };
    let ExprKind::Name(name) = &call.callee.kind else { return Err(Error::syntax("expected a schedule: constant, cosine, step, inverse").into()) };
    let [base] = &call.args[..] else { return Err(Error::arity(format!("{} takes its first value, then settings by name", name.text)).into()) };
    let base = number(&elab.eval(base, frame)?)?;
    let mut settings = vec![];
    for (n, e) in &call.named {
        let values = match elab.eval(e, frame)? {
            Val::List(l) => l.iter().map(&number).collect::<Result<Vec<f64>>>()?,
            v => vec![number(&v)?],
        };
        settings.push((&*n.text, values));
    }
    Ok(Schedule::new(&name.text, base, &settings)?)
}

/// Whether a path fits a pattern in which `*` stands for any text.
fn matches(pattern: &str, path: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == path };
    let Some(path) = path.strip_prefix(head) else { return false };
    // Few stars, short paths.
    (0..=path.len()).filter(|i| path.is_char_boundary(*i)).any(|i| matches(rest, &path[i..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(matches("net.*", "net.conv.w") && matches("*.b", "net.conv.b") && matches("net.w", "net.w") && matches("*", ""));
        assert!(!matches("net.*", "other.w") && !matches("*.b", "net.bias") && !matches("net", "net.w"));
        assert!(matches("a*b*c", "axxbyyc") && !matches("a*b*c", "axxcyyb"));
    }
}
