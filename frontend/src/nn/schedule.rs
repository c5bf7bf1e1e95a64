//! Numbers that change from step to step. They are inputs of the step: another schedule needs no other code.

use nnc_ir::error::{Error, Result};

#[derive(Clone, PartialEq, Debug)]
enum Shape {
    Constant,
    /// Half a cosine from the base to `to` at the last step (Loshchilov and Hutter 2017).
    Cosine {
        to: f64,
    },
    /// Times `factor` from each of these steps on.
    Step {
        at: Vec<f64>,
        factor: f64,
    },
    /// `base / (1 + decay t)`.
    Inverse {
        decay: f64,
    },
}

/// What a number is at each step.
#[derive(Clone, PartialEq, Debug)]
pub struct Schedule {
    base: f64,
    /// Steps over which it grows from 0 to the base.
    warmup: f64,
    shape: Shape,
}

impl Schedule {
    pub fn constant(base: f64) -> Schedule {
        Schedule { base, warmup: 0.0, shape: Shape::Constant }
    }

    /// The schedule called `name`; settings are lists of numbers by name.
    pub fn new(name: &str, base: f64, settings: &[(&str, Vec<f64>)]) -> Result<Schedule> {
        let (known, shape): (&[&str], _) = match name {
            "constant" => (&["warmup"], Shape::Constant),
            "cosine" => (&["to", "warmup"], Shape::Cosine { to: 0.0 }),
            "step" => (&["at", "factor", "warmup"], Shape::Step { at: vec![], factor: 0.1 }),
            "inverse" => (&["decay", "warmup"], Shape::Inverse { decay: 0.0 }),
            _ => return Err(Error::name(format!("no schedule is called `{name}`: these are constant, cosine, step, inverse"))),
        };
        let mut s = Schedule { base, warmup: 0.0, shape };
        for (key, values) in settings {
            let one = || match values[..] {
                [v] => Ok(v),
                _ => Err(Error::attribute(format!("{name}: {key} is one number"))),
            };
            if !known.contains(key) {
                return Err(Error::name(format!("{name} has no setting `{key}`: it has {}", known.join(", "))));
            }
            match (*key, &mut s.shape) {
                ("warmup", _) => s.warmup = one()?,
                ("to", Shape::Cosine { to }) => *to = one()?,
                ("at", Shape::Step { at, .. }) => at.clone_from(values),
                ("factor", Shape::Step { factor, .. }) => *factor = one()?,
                ("decay", Shape::Inverse { decay }) => *decay = one()?,
                _ => {}
            }
        }
        if s.warmup.is_nan() || s.warmup < 0.0 {
            return Err(Error::attribute(format!("{name}: warmup is a number of steps, not {}", s.warmup)));
        }
        if let Shape::Step { at, .. } = &s.shape
            && !at.is_sorted()
        {
            return Err(Error::attribute(format!("{name}: the steps in `at` follow each other, found {at:?}")));
        }
        Ok(s)
    }

    /// The number at step `t` (from 0) of `steps`.
    pub fn at(&self, t: u64, steps: u64) -> f64 {
        let t = t as f64;
        if t < self.warmup {
            return self.base * (t + 1.0) / self.warmup;
        }
        match &self.shape {
            Shape::Constant => self.base,
            Shape::Cosine { to } => {
                let done = ((t - self.warmup) / (steps as f64 - self.warmup).max(1.0)).min(1.0);
                to + (self.base - to) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
            }
            Shape::Step { at, factor } => self.base * factor.powi(at.iter().filter(|s| t >= **s).count() as i32),
            Shape::Inverse { decay } => self.base / (1.0 + decay * t),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let cosine = Schedule::new("cosine", 1.0, &[("warmup", vec![4.0]), ("to", vec![0.5])]).unwrap();
        let at: Vec<f64> = [0, 3, 4, 54, 104].map(|t| cosine.at(t, 104)).into();
        assert!(at.iter().zip([0.25, 1.0, 1.0, 0.75, 0.5]).all(|(a, b)| (a - b).abs() < 1e-12), "{at:?}");
        let step = Schedule::new("step", 0.8, &[("at", vec![10.0, 20.0]), ("factor", vec![0.5])]).unwrap();
        assert_eq!([0, 9, 10, 20].map(|t| step.at(t, 30)), [0.8, 0.8, 0.4, 0.2]);
        assert_eq!(Schedule::new("inverse", 1.0, &[("decay", vec![1.0])]).unwrap().at(3, 9), 0.25);
        assert!(Schedule::new("cosine", 1.0, &[("at", vec![1.0])]).unwrap_err().message().contains("to, warmup"));
    }
}
