//! Optimisers: one row each. What they are called, their settings, how much they keep for a parameter, and their step.

use nnc_ir::attrs::Real;
use nnc_ir::error::{Error, Result};
use nnc_ir::near::nearest;
use nnc_ir::ops::composite::update::{Adam, Momentum};
use nnc_ir::{DType, Op, Tensor, V, Value, ops::reduce::ReduceKind};
use std::cell::RefCell;
use std::collections::HashMap;

/// A parameter on its way through a step.
pub struct At<'a, 'g> {
    pub w: V<'g>,
    pub g: V<'g>,
    /// The learning rate, a scalar.
    pub rate: V<'g>,
    pub numbers: &'a Numbers<'g>,
    /// What the optimiser keeps for this parameter, all zero before the first step.
    pub kept: &'a [V<'g>],
    pub set: &'a Settings,
}

/// Scalars that all parameters of one element type share: a deep model has thousands of parameters.
pub struct Numbers<'g> {
    /// Steps so far with this one, f32: 1 in the first.
    step: V<'g>,
    dtype: DType,
    known: RefCell<HashMap<(DType, Number), V<'g>>>,
}

#[derive(PartialEq, Eq, Hash, Clone, Copy)]
enum Number {
    /// The bits of an f64.
    Constant(u64),
    /// `1 - b^t`: what a running average that began at zero lacks.
    Lack(u64),
    /// A scalar of the graph, of this element type.
    Cast(Value),
    /// A scalar, and what [`Number::Lack`] it is divided by.
    Quotient(Value, u64),
    /// A scalar, and the bits of what it is multiplied by.
    Multiple(Value, u64),
}

impl<'g> Numbers<'g> {
    pub fn new(step: V<'g>) -> Numbers<'g> {
        Numbers { step, dtype: DType::F32, known: RefCell::default() }
    }

    /// From here on numbers are of this type.
    pub fn of(&mut self, dtype: DType) {
        self.dtype = dtype;
    }

    fn once(&self, number: Number, make: impl FnOnce() -> V<'g>) -> V<'g> {
        if let Some(v) = self.known.borrow().get(&(self.dtype, number)) {
            return *v;
        }
        let v = make();
        self.known.borrow_mut().insert((self.dtype, number), v);
        v
    }

    pub fn constant(&self, x: f64) -> V<'g> {
        self.once(Number::Constant(x.to_bits()), || self.step.builder().constant(Tensor::scalar_of(self.dtype, x)))
    }

    pub fn cast(&self, v: V<'g>) -> V<'g> {
        self.once(Number::Cast(v.value()), || v.cast(self.dtype))
    }

    fn lack(&self, b: f64) -> V<'g> {
        self.once(Number::Lack(b.to_bits()), || self.constant(1.0) - self.constant(b).pow(self.cast(self.step)))
    }

    /// `v / (1 - b^t)`.
    fn quotient(&self, v: V<'g>, b: f64) -> V<'g> {
        self.once(Number::Quotient(v.value(), b.to_bits()), || v / self.lack(b))
    }

    fn multiple(&self, v: V<'g>, by: f64) -> V<'g> {
        self.once(Number::Multiple(v.value(), by.to_bits()), || v * self.constant(by))
    }
}

/// An optimiser's settings, by name.
pub struct Settings(Vec<(&'static str, f64)>);

impl Settings {
    /// Panics on a name that the optimiser's row does not list.
    fn get(&self, name: &str) -> f64 {
        self.0.iter().find(|(n, _)| *n == name).expect("a setting of the row").1
    }
}

type Step = for<'a, 'g> fn(&At<'a, 'g>) -> (V<'g>, Vec<V<'g>>);

pub struct Optimizer {
    pub name: &'static str,
    /// Settings with their defaults, in the order of the arguments behind the rate.
    settings: &'static [(&'static str, f64)],
    kept: fn(&Settings) -> usize,
    pub step: Step,
}

pub const OPTIMIZERS: &[Optimizer] = &[
    Optimizer {
        name: "sgd",
        settings: &[("momentum", 0.0), ("nesterov", 0.0), ("weight_decay", 0.0)],
        kept: |s| usize::from(s.get("momentum") != 0.0),
        step: sgd,
    },
    // Tieleman and Hinton 2012.
    Optimizer { name: "rmsprop", settings: &[("decay", 0.99), ("epsilon", 1e-8), ("weight_decay", 0.0)], kept: |_| 1, step: rmsprop },
    // Duchi et al. 2011.
    Optimizer { name: "adagrad", settings: &[("epsilon", 1e-10), ("weight_decay", 0.0)], kept: |_| 1, step: adagrad },
    // Kingma and Ba 2015.
    Optimizer {
        name: "adam",
        settings: &[("beta1", 0.9), ("beta2", 0.999), ("epsilon", 1e-8), ("weight_decay", 0.0)],
        kept: |_| 2,
        step: |at| adam(at, false),
    },
    // Loshchilov and Hutter 2019: the decay is no part of the gradient.
    Optimizer {
        name: "adamw",
        settings: &[("beta1", 0.9), ("beta2", 0.999), ("epsilon", 1e-8), ("weight_decay", 0.01)],
        kept: |_| 2,
        step: |at| adam(at, true),
    },
];

impl Optimizer {
    pub fn find(name: &str) -> Result<&'static Optimizer> {
        OPTIMIZERS.iter().find(|o| o.name == name).ok_or_else(|| {
            let names: Vec<&str> = OPTIMIZERS.iter().map(|o| o.name).collect();
            let e = Error::name(format!("no optimiser is called `{name}`: these are {}", names.join(", ")));
            nearest(name, names).map_or(e.clone(), |n| e.note(format!("did you mean `{n}`?")))
        })
    }

    /// The settings, some of them given.
    pub fn settings(&self, given: &[(&str, f64)]) -> Result<Settings> {
        if let Some((name, _)) = given.iter().find(|(n, _)| self.settings.iter().all(|(known, _)| known != n)) {
            let known: Vec<&str> = self.settings.iter().map(|(n, _)| *n).collect();
            return Err(Error::name(format!("{} has no setting `{name}`: it has the rate, then {}", self.name, known.join(", "))));
        }
        let value = |(name, default): &(&'static str, f64)| (*name, given.iter().find(|(n, _)| n == name).map_or(*default, |(_, v)| *v));
        Ok(Settings(self.settings.iter().map(value).collect()))
    }

    /// Tensors of the parameter's type that it keeps for each parameter.
    pub fn kept(&self, settings: &Settings) -> usize {
        (self.kept)(settings)
    }
}

impl<'g> At<'_, 'g> {
    fn setting(&self, name: &str) -> f64 {
        self.set.get(name)
    }

    /// An operation whose results are the parameter's successor and those of what is kept.
    fn op(&self, op: impl Into<Op>, x: &[V<'g>]) -> (V<'g>, Vec<V<'g>>) {
        let mut y = self.w.builder().op_all(op, x, vec![]);
        let kept = y.split_off(1);
        (y[0], kept)
    }

    fn times(&self, v: V<'g>, by: f64) -> V<'g> {
        if by == 1.0 { v } else { v * self.numbers.constant(by) }
    }

    /// `a v + (1 - a) x`.
    fn average(&self, v: V<'g>, x: V<'g>, a: f64) -> V<'g> {
        self.times(v, a) + self.times(x, 1.0 - a)
    }

    /// The gradient with that of `decay / 2 |w|^2`.
    fn decayed(&self) -> V<'g> {
        match self.setting("weight_decay") {
            0.0 => self.g,
            decay => self.g + self.times(self.w, decay),
        }
    }

    /// The root of `square`, away from zero.
    fn root(&self, square: V<'g>) -> V<'g> {
        square.sqrt() + self.numbers.constant(self.setting("epsilon"))
    }
}

fn sgd<'g>(at: &At<'_, 'g>) -> (V<'g>, Vec<V<'g>>) {
    let Some(v) = at.kept.first() else { return (at.w - at.rate * at.decayed(), vec![]) };
    let op =
        Momentum { momentum: Real(at.setting("momentum")), nesterov: at.setting("nesterov") != 0.0, weight_decay: Real(at.setting("weight_decay")) };
    at.op(op, &[at.w, at.g, *v, at.rate])
}

fn rmsprop<'g>(at: &At<'_, 'g>) -> (V<'g>, Vec<V<'g>>) {
    let g = at.decayed();
    let square = at.average(at.kept[0], g * g, at.setting("decay"));
    (at.w - at.rate * g / at.root(square), vec![square])
}

fn adagrad<'g>(at: &At<'_, 'g>) -> (V<'g>, Vec<V<'g>>) {
    let g = at.decayed();
    let square = at.kept[0] + g * g;
    (at.w - at.rate * g / at.root(square), vec![square])
}

fn adam<'g>(at: &At<'_, 'g>, decoupled: bool) -> (V<'g>, Vec<V<'g>>) {
    let (b1, b2, decay) = (at.setting("beta1"), at.setting("beta2"), at.setting("weight_decay"));
    let op = Adam { beta1: Real(b1), beta2: Real(b2), epsilon: Real(at.setting("epsilon")), weight_decay: Real(if decoupled { 0.0 } else { decay }) };
    let numbers = at.numbers;
    let mut x = vec![at.w, at.g, at.kept[0], at.kept[1], numbers.quotient(at.rate, b1), numbers.lack(b2)];
    if decoupled && decay != 0.0 {
        x.push(numbers.multiple(at.rate, decay));
    }
    at.op(op, &x)
}

/// Gradients no longer than `bound`: together (`global`), or each.
pub fn clip<'g>(gradients: &mut [V<'g>], bound: f64, global: bool) {
    let square = |g: &V<'g>| (*g * *g).reduce(ReduceKind::Sum, &(0..g.ty().rank()).collect::<Vec<_>>(), false);
    let scale = |sum: V<'g>| (sum.scalar_like(bound) / sum.sqrt().max(sum.scalar_like(bound))).cast(sum.ty().dtype);
    let all = if global { gradients.iter().map(square).reduce(|a, b| a + b).map(scale) } else { None };
    for g in gradients {
        *g = *g * all.unwrap_or_else(|| scale(square(g)));
    }
}
