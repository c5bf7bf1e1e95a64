//! Training blocks: what to read, for how long, and the step as a graph of its own.
//!
//! A step's inputs are parameters, what optimisers keep for them, a batch of data, scheduled numbers and the step's number; its outputs
//! are the parameters and the optimisers' values after the step, under the names of the inputs whose place they take, then the loss and
//! what is measured. So a step is a graph like any other: no pass and no backend knows of training.

mod step;

use super::ast::{self, ExprKind, Item};
use super::elaborate::{Elab, Frame, Shared, Stop, finish};
use super::parameter::Parameters;
use super::schedule::Schedule;
use super::value::Val;
use super::{Limits, parse};
use nnc_ir::error::{Error, Report, Result};
use nnc_ir::{Builder, Graph, Tensor, Type};
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
    /// Images are mirrored, and moved by up to so many pixels, those of the first tensor.
    pub flip: bool,
    pub crop: usize,
    /// Bytes of a sample of text.
    pub length: usize,
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
    /// Names of the block's phases; none where it is a single one.
    pub phases: Vec<String>,
    /// Layers from one activation that is kept for the way back to the next; 0 keeps all.
    pub checkpoint: usize,
}

/// What the loss of a phase is called among a step's results.
pub fn phase_loss(phase: &str) -> String {
    format!("{phase}.{LOSS}")
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

    /// Gives what the file defines outside modules another value: `layers`, `10000`.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Report> {
        let tree = parse::parse(&format!("{name} = {value}\n"), &"--set".into())?;
        let known = || self.tree.globals.iter().map(|(n, _)| &*n.text);
        match (tree.globals.into_iter().next(), known().position(|n| n == name)) {
            (Some((_, e)), Some(k)) => self.tree.globals[k].1 = e,
            _ => {
                let e = Error::name(format!("the file defines no `{name}` outside modules"));
                return Err(match known().collect::<Vec<_>>() {
                    names if names.is_empty() => e,
                    names => e.note(format!("it defines {}", names.join(", "))),
                }
                .into());
            }
        }
        Ok(())
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
        let (mut data, mut test, mut length) = (None, None, Length::Epochs(1));
        let (mut schedules, mut measures, mut phases) = (vec![], vec![], vec![]);
        let mut checkpoint = 0;
        for item in &self.train().items {
            let count = |e: &'a ast::Expr, frame: &mut Frame<'g>| -> Result<u64, Stop> {
                let here = |err: Error| err.at(&elab.shared.loc(e.pos));
                let n = elab.eval(e, frame)?.as_int().map_err(here)?;
                u64::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| here(Error::attribute(format!("{n} is no count of at least 1"))).into())
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
                        flip: d.flip,
                        crop: d.crop.as_ref().map_or(Ok(0), |e| count(e, frame))? as usize,
                        length: d.length.as_ref().map_or(Ok(0), |e| count(e, frame))? as usize,
                    };
                    *(if d.test { &mut test } else { &mut data }) = Some(source);
                }
                Item::Steps(e) => length = Length::Steps(count(e, frame)?),
                Item::Epochs(e) => length = Length::Epochs(count(e, frame)?),
                Item::Checkpoint(e) => {
                    let here = |err: Error| err.at(&elab.shared.loc(e.pos));
                    let n = elab.eval(e, frame)?.as_int().map_err(here)?;
                    let wrong = || here(Error::attribute(format!("checkpoint every {n} layers: 0 keeps all activations")));
                    checkpoint = usize::try_from(n).map_err(|_| wrong())?;
                }
                Item::Schedule(name, e) => schedules.push((name.text.to_string(), schedule(elab, e, frame)?)),
                Item::Measure(name, _) => measures.push(name.text.to_string()),
                Item::Phase { name, .. } => phases.push(name.text.to_string()),
                Item::Stmt(_) | Item::Update(_) | Item::Clip { .. } => {}
            }
        }
        let data = data.ok_or_else(|| Error::name("the training block has no `data`"))?;
        Ok(Plan { data, test, length, schedules, measures, phases, checkpoint })
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
        let state = step::body(self.train(), &elab, plan, source, samples, training);
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
}

fn unknown_module(name: &ast::Name) -> Error {
    Error::name(format!("no module is called `{}`", name.text))
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
