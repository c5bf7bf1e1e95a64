//! A step as a graph: the block's statements, then for each phase the gradient of its loss and what its rules make of the parameters.

use super::{LOSS, Plan, STEP, Source, phase_loss, unknown_module};
use crate::nn::ast::{self, Item};
use crate::nn::elaborate::{Elab, Frame, Stop};
use crate::nn::optimizer::{At, Numbers, Optimizer, clip};
use crate::nn::parameter::Parameter;
use crate::nn::value::{Instance, Val};
use nnc_ir::error::{Error, Result};
use nnc_ir::ops::gradient::{Gradient, StopGrad};
use nnc_ir::{Builder, DType, Dim, Tensor, Type, V};
use std::collections::HashSet;
use std::rc::Rc;

type Eval<T> = Result<T, Stop>;

/// Builds the step, or the test, into the elaborator's graph. Gives what goes from step to step.
pub fn body<'a, 'g>(
    train: &'a ast::Train,
    elab: &Elab<'a, 'g>,
    plan: &Plan,
    source: &Source,
    samples: &[Type],
    training: bool,
) -> Eval<Vec<(String, Tensor)>> {
    let b = elab.b;
    let mut frame = Frame::new(String::new());
    let batch = Dim::from(source.batch);
    inputs(train, elab, plan, source, samples, &mut frame)?;
    let step = b.input(STEP, Type::of(DType::F32, &[]));
    elab.draws.set(Some(Some(step.cast(DType::I64))));
    let mut updates = Updates { elab, step, state: vec![], done: HashSet::new(), plan };
    let mut measures = vec![];
    let mut losses = vec![];
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
            Item::Phase { name, items } if training => {
                losses.push(updates.phase(Some(name), items, &mut frame)?);
            }
            Item::Update(ast::Update { pos, .. }) | Item::Clip { pos, .. } if !plan.phases.is_empty() => {
                let e = Error::syntax("in a block of several phases each has its own `update` and `clip`");
                return Err(e.at(&elab.shared.loc(*pos)).into());
            }
            _ => {}
        }
    }
    if !training {
        measures.iter().for_each(|(name, v)| b.output(name, *v));
        return Ok(vec![]);
    }
    if plan.phases.is_empty() {
        losses.push(updates.phase(None, &train.items, &mut frame)?);
    }
    let state = updates.rest()?;
    if let Some(loss) = losses.iter().copied().reduce(|a, b| a + b) {
        b.output(LOSS, loss.cast(DType::F32));
    }
    plan.phases.iter().zip(&losses).for_each(|(phase, loss)| b.output(phase_loss(phase), loss.cast(DType::F32)));
    for (name, v) in measures {
        let all: Vec<usize> = (0..v.ty().rank()).collect();
        b.output(name, v.mean_keep(&all).reshape(vec![]));
    }
    Ok(state)
}

/// What the block's names stand for: models, a batch, scheduled numbers.
fn inputs<'a, 'g>(train: &'a ast::Train, elab: &Elab<'a, 'g>, plan: &Plan, source: &Source, samples: &[Type], frame: &mut Frame<'g>) -> Result<()> {
    let batch = Dim::from(source.batch);
    frame.set(&"batch".into(), Val::Int(batch.clone()));
    for (module, alias) in &train.models {
        let k = elab.shared.find(&module.text).ok_or_else(|| unknown_module(module).at(&elab.shared.loc(module.pos)))?;
        let instance = Instance { module: k, hyper: vec![], path: alias.text.to_string() };
        frame.set(&alias.text, Val::Instance(Rc::new(instance)));
    }
    if samples.len() != source.names.len() {
        return Err(Error::input(format!("the data has {} tensors, {} are named", samples.len(), source.names.len())));
    }
    for (name, ty) in source.names.iter().zip(samples) {
        let ty = ty.with_shape([std::slice::from_ref(&batch), &ty.shape[..]].concat());
        frame.set(&name.as_str().into(), Val::Tensor(elab.b.input(name, ty)));
    }
    for (name, _) in &plan.schedules {
        frame.set(&name.as_str().into(), Val::Tensor(elab.b.input(name, Type::of(DType::F32, &[]))));
    }
    Ok(())
}

/// Updates of parameters, phase by phase.
struct Updates<'e, 'a, 'g> {
    elab: &'e Elab<'a, 'g>,
    /// The step's number, from 1, f32.
    step: V<'g>,
    /// What goes from step to step, so far.
    state: Vec<(String, Tensor)>,
    /// Paths of the parameters that a phase has updated.
    done: HashSet<String>,
    plan: &'e Plan,
}

impl<'a, 'g> Updates<'_, 'a, 'g> {
    /// One phase, whose statements are in `items` (those of a whole block are elaborated already). Gives its loss.
    fn phase(&mut self, name: Option<&ast::Name>, items: &'a [Item], frame: &mut Frame<'g>) -> Eval<V<'g>> {
        let elab = self.elab;
        let what = name.map_or_else(|| "the training block".to_string(), |n| format!("the phase `{}`", n.text));
        if name.is_some() {
            // The loss of the phase before is none of this one's.
            frame.set(&LOSS.into(), Val::None);
            for item in items {
                if let Item::Stmt(s) = item {
                    elab.block(std::slice::from_ref(s), frame);
                }
            }
        }
        let loss = match frame.get(LOSS) {
            Some(Val::None) | None => return Err(Error::name(format!("{what} does not say what `loss` is")).into()),
            Some(v) => tensor(v.clone(), LOSS)?,
        };
        if loss.ty().rank() != 0 {
            return Err(Error::shape(format!("`loss` is one number, found {}", loss.ty())).note("`reduce_mean(..., keepdims=0)` makes one").into());
        }
        let rules: Vec<&ast::Update> = items.iter().filter_map(|i| if let Item::Update(u) = i { Some(u) } else { None }).collect();
        let trained = self.trained(&rules)?;
        if trained.is_empty() {
            return Err(Error::name(format!("{what} updates no parameter: `update net.* with sgd(0.1)`")).into());
        }
        let now: Vec<V> = trained.iter().map(|(p, _)| elab.current(p)).collect();
        let operands: Vec<V> = std::iter::once(loss).chain(now.iter().copied()).collect();
        let mut gradients = elab.b.op_all(Gradient { checkpoint: self.plan.checkpoint }, &operands, vec![]);
        let mut numbers = Numbers::new(self.step);
        for item in items {
            if let Item::Clip { bound, global, .. } = item {
                let bound = elab.eval(bound, frame)?;
                let bound = bound.as_f64().ok_or_else(|| Error::attribute(format!("a bound is a number, not {}", bound.kind())))?;
                if bound.is_nan() || bound <= 0.0 {
                    return Err(Error::attribute(format!("gradients are clipped to a length above 0, not {bound}")).into());
                }
                clip(&mut gradients, bound, *global);
            }
        }
        // Each rule's settings once, not once a parameter: a deep model has many of these.
        let mut read: Vec<Option<Rule>> = rules.iter().map(|_| None).collect();
        for (((p, k), w), g) in trained.iter().zip(now).zip(gradients) {
            if read[*k].is_none() {
                read[*k] = Some(self.rule(rules[*k], frame)?);
            }
            let Some(rule) = &read[*k] else { continue };
            elab.b.at(elab.shared.loc(rules[*k].pos));
            self.update(p, rule, w, g, &mut numbers)?;
        }
        Ok(loss)
    }

    /// Parameters that rules fit, each with the last one that does.
    fn trained(&self, rules: &[&ast::Update]) -> Eval<Vec<(Parameter, usize)>> {
        let elab = self.elab;
        let order = elab.order.borrow();
        for u in rules {
            if !order.iter().any(|p| p.trained && matches(&u.pattern, &p.path)) {
                let e = Error::name(format!("no parameter's path fits `{}`", u.pattern)).at(&elab.shared.loc(u.pos));
                let some: Vec<&str> = order.iter().filter(|p| p.trained).map(|p| &*p.path).take(8).collect();
                return Err(e.note(format!("parameters are {}...", some.join(", "))).into());
            }
        }
        let rule = |p: &Parameter| rules.iter().rposition(|u| matches(&u.pattern, &p.path));
        let trained: Vec<(Parameter, usize)> = order.iter().filter(|p| p.trained).filter_map(|p| Some((p.clone(), rule(p)?))).collect();
        match trained.iter().find(|(p, _)| self.done.contains(&p.path)) {
            Some((p, k)) => {
                let e = Error::name(format!("`{}` is updated by a phase before", p.path)).at(&elab.shared.loc(rules[*k].pos));
                Err(e.into())
            }
            None => Ok(trained),
        }
    }

    /// What a rule says.
    fn rule(&self, u: &'a ast::Update, frame: &mut Frame<'g>) -> Eval<Rule<'g>> {
        let elab = self.elab;
        let here = |e: Error| e.at(&elab.shared.loc(u.pos));
        let optimizer = Optimizer::find(&u.optimizer.text).map_err(|e| e.at(&elab.shared.loc(u.optimizer.pos)))?;
        let rate = match u.args.first().map(|e| elab.eval(e, frame)).transpose()? {
            Some(Val::Tensor(v)) => v,
            Some(v) if v.as_f64().is_some() => elab.b.constant(Tensor::scalar(v.as_f64().unwrap_or(0.0) as f32)),
            _ => return Err(here(Error::arity(format!("{}: the first argument is the learning rate", optimizer.name))).into()),
        };
        if u.args.len() > 1 {
            return Err(here(Error::arity(format!("{}: settings behind the rate are given by name", optimizer.name))).into());
        }
        let mut given = vec![];
        for (n, e) in &u.named {
            let v = elab.eval(e, frame)?;
            let number = v.as_f64().or(if let Val::Bool(b) = v { Some(f64::from(b)) } else { None });
            given.push((&*n.text, number.ok_or_else(|| Error::attribute(format!("`{}` is a number", n.text)).at(&elab.shared.loc(n.pos)))?));
        }
        let set = optimizer.settings(&given).map_err(here)?;
        Ok(Rule { optimizer, rate, set })
    }

    /// One parameter's successor, and those of what its optimiser keeps.
    fn update(&mut self, p: &Parameter, rule: &Rule<'g>, w: V<'g>, g: V<'g>, numbers: &mut Numbers<'g>) -> Result<()> {
        let b: &'g Builder = self.elab.b;
        let ty = w.ty();
        let names: Vec<String> = (0..rule.optimizer.kept(&rule.set)).map(|k| format!("{}${k}", p.path)).collect();
        let kept: Vec<V> = names.iter().map(|n| b.input(n, ty.clone())).collect();
        numbers.of(ty.dtype);
        let (new, next) = (rule.optimizer.step)(&At { w, g, rate: numbers.cast(rule.rate), numbers, kept: &kept, set: &rule.set });
        b.output(&p.path, new);
        if !self.plan.phases.is_empty() {
            // A gradient of a phase behind does not look through this one's.
            self.elab.rebind(&p.path, b.op(StopGrad {}, &[new]));
        }
        self.done.insert(p.path.clone());
        self.state.push((p.path.clone(), p.initial.clone().ok_or_else(|| Error::internal("a parameter without a beginning"))?));
        for (name, v) in names.into_iter().zip(next) {
            b.output(&name, v);
            let shape = v.ty().const_shape().unwrap_or_default().iter().map(|d| *d as usize).collect();
            self.state.push((name, Tensor::splat(ty.dtype, shape, vec![0; ty.dtype.bytes()].into())?));
        }
        Ok(())
    }

    /// What no phase has updated: states become what was assigned to them last, the others stay. Gives all that goes from step to step.
    fn rest(mut self) -> Result<Vec<(String, Tensor)>> {
        let becomes: std::collections::HashMap<String, V> = self.elab.becomes.take().into_iter().collect();
        for p in self.elab.order.borrow().iter().filter(|p| !self.done.contains(&p.path)) {
            let next = becomes.get(&p.path).copied().unwrap_or_else(|| self.elab.b.v(p.value));
            self.elab.b.output(&p.path, next);
            self.state.push((p.path.clone(), p.initial.clone().ok_or_else(|| Error::internal("a state without a beginning"))?));
        }
        Ok(self.state)
    }
}

/// A rule of the text, read.
struct Rule<'g> {
    optimizer: &'static Optimizer,
    rate: V<'g>,
    set: crate::nn::optimizer::Settings,
}

fn tensor<'g>(v: Val<'g>, what: &str) -> Result<V<'g>, Stop> {
    match v {
        Val::Tensor(v) => Ok(v),
        Val::Poison => Err(Stop::Poison),
        v => Err(Error::dtype(format!("`{what}` is a tensor, not {}", v.kind())).into()),
    }
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
