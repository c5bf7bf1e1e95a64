//! Gradients and optimiser steps of ai.onnx.preview.training. A step takes the learning rate, the step number, then parameters, gradients and state.

use super::{MANY, Row, op};
use crate::onnx::call::Call;
use nnc_ir::attrs::Real;
use nnc_ir::ops::composite::update::{Adam, Momentum};
use nnc_ir::ops::gradient::Gradient;
use nnc_ir::{Error, Result, Tensor, V};

const DOMAIN: &str = "ai.onnx.preview.training";

/// The operator whose first operand is not among its inputs: an attribute names it.
pub const GRADIENT: (&str, &str) = (DOMAIN, "Gradient");

pub const ROWS: &[Row] = &[
    op("Adagrad", 1, (2, MANY), adagrad).domain(DOMAIN),
    op("Adam", 1, (2, MANY), adam).domain(DOMAIN),
    op(GRADIENT.1, 1, (2, MANY), gradient).domain(DOMAIN),
    op("Momentum", 1, (2, MANY), momentum).domain(DOMAIN),
];

/// Of what `y` names, by those inputs that `xs` names; those of `zs` are only what it depends on besides.
fn gradient<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["y", "zs"]);
    let n = c.strs("xs")?.ok_or_else(|| c.missing("xs"))?.len();
    let x = c.all()?;
    Ok(c.b.op_all(Gradient::default(), &x[..x.len().min(1 + n)], vec![]))
}

/// Applies `step` to each parameter with its companions: `kinds` values each, all first ones first. Results likewise.
fn each<'g>(c: &Call<'g>, kinds: usize, step: impl Fn(&[V<'g>]) -> Vec<V<'g>>) -> Result<Vec<V<'g>>> {
    let x = c.all()?;
    let rest = &x[2..];
    let n = rest.len() / kinds;
    if rest.len() % kinds != 0 {
        return Err(Error::arity(format!("{} values are no multiple of {kinds}", rest.len())));
    }
    let results: Vec<Vec<V<'g>>> = (0..n).map(|i| step(&(0..kinds).map(|k| rest[k * n + i]).collect::<Vec<_>>())).collect();
    // All but the gradient have a successor.
    Ok((0..kinds - 1).flat_map(|k| results.iter().map(move |r| r[k])).collect())
}

fn times<'g>(v: V<'g>, by: f64) -> V<'g> {
    v * v.scalar_like(by)
}

/// Whether any step was made before.
fn later<'g>(t: V<'g>) -> V<'g> {
    t.greater(t.scalar_like(0.0))
}

fn adagrad<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (decay, epsilon, norm) = (c.float("decay_factor", 0.0)?, c.float("epsilon", 1e-6)?, c.float("norm_coefficient", 0.0)?);
    let (rate, t) = (c.x(0)?, c.x(1)?);
    let t = t.cast(rate.ty().dtype);
    let rate = rate / (t.scalar_like(1.0) + times(t, decay));
    each(c, 3, |v| {
        let [x, g, h] = v else { return vec![] };
        let g = times(*x, norm) + *g;
        let h = *h + g * g;
        vec![*x - rate * g / (h.sqrt() + h.scalar_like(epsilon)), h]
    })
}

fn adam<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (alpha, beta, epsilon) = (c.float("alpha", 0.9)?, c.float("beta", 0.999)?, c.float("epsilon", 1e-6)?);
    let (norm, post) = (c.float("norm_coefficient", 0.0)?, c.float("norm_coefficient_post", 0.0)?);
    let (rate, t) = (c.x(0)?, c.x(1)?);
    let steps = t.cast(rate.ty().dtype);
    let left = |base: f64| {
        let base = c.b.constant(Tensor::scalar_of(rate.ty().dtype, base));
        base.scalar_like(1.0) - base.pow(steps)
    };
    let corrected = rate * left(beta).sqrt() / left(alpha);
    let rate = later(t).select(corrected, rate);
    let op = Adam { beta1: Real(alpha), beta2: Real(beta), epsilon: Real(epsilon), weight_decay: Real(norm) };
    each(c, 4, |v| {
        let [x, g, m, h] = v else { return vec![] };
        // The rate has all of the correction.
        let mut y = c.b.op_all(op.clone(), &[*x, *g, *m, *h, rate, rate.scalar_like(1.0)], vec![]);
        if post != 0.0 {
            y[0] = times(y[0], 1.0 - post);
        }
        y
    })
}

fn momentum<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let needed = |name: &str| c.opt_float(name)?.ok_or_else(|| c.missing(name));
    let (alpha, beta, norm) = (needed("alpha")?, needed("beta")?, needed("norm_coefficient")?);
    let nesterov = c.word("mode", &["standard", "nesterov"])? == "nesterov";
    let (rate, t) = (c.x(0)?, c.x(1)?);
    // The first gradient counts in full.
    let share = later(t).select(rate.scalar_like(beta), rate.scalar_like(1.0));
    let op = Momentum { momentum: Real(alpha), nesterov, weight_decay: Real(norm) };
    each(c, 3, |v| {
        let [x, g, m] = v else { return vec![] };
        c.b.op_all(op.clone(), &[*x, *g, *m, rate, share], vec![])
    })
}
