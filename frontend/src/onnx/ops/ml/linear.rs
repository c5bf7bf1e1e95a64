//! Linear models.

use super::super::{Row, op};
use super::{DOMAIN, columns, either, f32s, labels, needed, post_transform, rows, transformed};
use crate::onnx::call::Call;
use crate::onnx::ops::matmul::matmul;
use nnc_ir::{Error, Result, V};

pub const ROWS: &[Row] = &[op("LinearClassifier", 1, (1, 1), classifier).domain(DOMAIN), op("LinearRegressor", 1, (1, 1), regressor).domain(DOMAIN)];

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
