//! Linear models and support vector machines.

use super::super::{Row, op};
use super::{DOMAIN, columns, either, f32s, labels, needed, plus, post_transform, rows, times, transformed};
use crate::onnx::call::Call;
use crate::onnx::ops::matmul::matmul;
use nnc_ir::{Dim, Error, Result, V};

pub const ROWS: &[Row] = &[
    op("LinearClassifier", 1, (1, 1), classifier).domain(DOMAIN),
    op("LinearRegressor", 1, (1, 1), regressor).domain(DOMAIN),
    op("SVMRegressor", 1, (1, 1), svm_regressor).domain(DOMAIN),
];

/// `x * w' + b` for `outputs` rows of coefficients.
fn affine<'g>(c: &Call<'g>, outputs: usize, intercepts: &[f64]) -> Result<V<'g>> {
    let (x, w) = (rows(c)?, needed(c, "coefficients")?);
    if outputs == 0 || w.len() % outputs != 0 {
        return Err(Error::attribute(format!("{} coefficients for {outputs} results", w.len())));
    }
    let y = matmul(x, f32s(c, &[outputs, w.len() / outputs], &w)?.transpose(&[1, 0]));
    Ok(if intercepts.is_empty() { y } else { y + f32s(c, &[outputs], intercepts)? })
}

fn regressor<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let targets = c.int("targets", 1)?;
    let intercepts = c.floats("intercepts")?.unwrap_or_default();
    let y = affine(c, usize::try_from(targets).unwrap_or(0), &intercepts)?;
    Ok(vec![transformed(y, post_transform(c)?)])
}

fn classifier<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["multi_class"]);
    let labels = labels(c, "classlabels_strings", "classlabels_ints")?.ok_or_else(|| Error::attribute("the classes have no labels"))?;
    let (intercepts, transform) = (c.floats("intercepts")?.unwrap_or_default(), post_transform(c)?);
    let outputs = if intercepts.is_empty() { labels.elems() } else { intercepts.len() };
    let y = affine(c, outputs, &intercepts)?;
    if outputs == labels.elems() {
        return Ok(vec![super::best_label(y, &labels), transformed(y, transform)]);
    }
    if outputs != 1 || labels.elems() != 2 {
        return Err(Error::attribute(format!("{outputs} rows of coefficients for {} classes", labels.elems())));
    }
    // One score decides between two classes.
    let label = either(y.greater(y.scalar_like(0.0)).reshape(vec![y.ty().shape[0].clone()]), &labels);
    let scores = match transform {
        "PROBIT" => super::probit(y),
        "LOGISTIC" => columns((-y).sigmoid(), y.sigmoid()),
        _ => columns(y.scalar_like(1.0) - y, y),
    };
    Ok(vec![label, scores])
}

/// Products of the rows of x with `n` vectors, under the kernel function.
fn kernel<'g>(c: &Call<'g>, x: V<'g>, vectors: &[f64], n: usize) -> Result<V<'g>> {
    if n == 0 || vectors.len() % n != 0 {
        return Err(Error::attribute(format!("{} numbers are no {n} vectors", vectors.len())));
    }
    let kind = c.word("kernel_type", &["LINEAR", "POLY", "RBF", "SIGMOID"])?;
    let params = c.floats("kernel_params")?.unwrap_or_default();
    let (gamma, coef0, degree) = match params[..] {
        [gamma, coef0, degree] => (gamma, coef0, degree),
        _ => (0.0, 0.0, 0.0),
    };
    let v = f32s(c, &[n, vectors.len() / n], vectors)?;
    let dot = matmul(x, v.transpose(&[1, 0]));
    Ok(match kind {
        "POLY" => {
            let base = plus(times(dot, gamma), coef0);
            base.pow(base.scalar_like(degree))
        }
        "SIGMOID" => plus(times(dot, gamma), coef0).tanh(),
        "RBF" => {
            // Differences, not |x|^2 - 2xv + |v|^2: that would cancel.
            let (xs, vs) = (x.ty().shape, v.ty().shape);
            let d = x.reshape(vec![xs[0].clone(), Dim::Const(1), xs[1].clone()]) - v.reshape(vec![Dim::Const(1), vs[0].clone(), vs[1].clone()]);
            times((d * d).reduce(nnc_ir::ops::reduce::ReduceKind::Sum, &[2], false), -gamma).exp()
        }
        _ => dot,
    })
}

fn svm_regressor<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, coefficients, rho) = (rows(c)?, needed(c, "coefficients")?, needed(c, "rho")?);
    let supports = usize::try_from(c.int("n_supports", 0)?).unwrap_or(0);
    let offset = rho.first().copied().unwrap_or(0.0);
    let y = if supports > 0 {
        matmul(kernel(c, x, &needed(c, "support_vectors")?, supports)?, f32s(c, &[supports, 1], &coefficients)?)
    } else {
        c.ignore(&["support_vectors", "kernel_type", "kernel_params"]);
        matmul(x, f32s(c, &[coefficients.len(), 1], &coefficients)?)
    };
    let y = plus(y, offset);
    let transform = post_transform(c)?;
    if c.flag("one_class", false)? {
        return Ok(vec![y.greater(y.scalar_like(0.0)).select(y.scalar_like(1.0), y.scalar_like(-1.0))]);
    }
    Ok(vec![transformed(y, transform)])
}
