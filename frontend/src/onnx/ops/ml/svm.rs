//! Support vector machines.

use super::super::{Row, op};
use super::{DOMAIN, best_label, columns, either, f32s, labels, needed, plus, post_transform, rows, times, transformed};
use crate::onnx::call::Call;
use crate::onnx::ops::matmul::matmul;
use nnc_ir::ops::control::Loop;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{DType, Dim, Error, Report, Result, Tensor, Type, V};

pub const ROWS: &[Row] = &[op("SVMClassifier", 1, (1, 1), classifier).domain(DOMAIN), op("SVMRegressor", 1, (1, 1), regressor).domain(DOMAIN)];

/// Products of the rows of x with `n` vectors, under the kernel function.
fn kernel<'g>(c: &Call<'g>, x: V<'g>, vectors: &[f64], n: usize) -> Result<V<'g>> {
    if n == 0 || !vectors.len().is_multiple_of(n) {
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
            times((d * d).reduce(ReduceKind::Sum, &[2], false), -gamma).exp()
        }
        _ => dot,
    })
}

fn regressor<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
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

/// Classes that a machine may tell apart: pairs of them are decided each by itself.
const MAX_CLASSES: usize = 512;

fn classifier<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, coefficients, rho) = (rows(c)?, needed(c, "coefficients")?, needed(c, "rho")?);
    let labels = labels(c, "classlabels_strings", "classlabels_ints")?.ok_or_else(|| Error::attribute("the classes have no labels"))?;
    let classes = labels.elems();
    let transform = post_transform(c)?;
    let counts = c.ints("vectors_per_class")?.unwrap_or_default();
    let counts: Vec<usize> = counts.into_iter().map(|n| usize::try_from(n).unwrap_or(usize::MAX >> 32)).collect();
    let supports: usize = counts.iter().sum();
    let (a, b) = (c.floats("prob_a")?.unwrap_or_default(), c.floats("prob_b")?.unwrap_or_default());
    if classes > MAX_CLASSES || rho.is_empty() {
        return Err(Error::attribute(format!("{classes} classes and {} offsets", rho.len())));
    }
    // Votes decide where each pair of classes has a score, the scores themselves where each class has one.
    let (votes, scores) = if supports == 0 {
        c.ignore(&["support_vectors", "kernel_type", "kernel_params"]);
        let w = f32s(c, &[classes, coefficients.len() / classes.max(1)], &coefficients)?;
        let y = plus(matmul(x, w.transpose(&[1, 0])), rho[0]);
        (y, y)
    } else {
        let products = kernel(c, x, &needed(c, "support_vectors")?, supports)?;
        let scores = duels(c, products, &coefficients, &rho, &counts, classes)?;
        (votes(c, scores, classes), if a.is_empty() { scores } else { probabilities(c, scores, (&a, &b), classes)? })
    };
    let has_probabilities = supports > 0 && !a.is_empty();
    let positive = coefficients.iter().all(|w| *w >= 0.0);
    let flat = |v: V<'g>| v.reshape(vec![v.ty().shape[0].clone()]);
    let most = votes.max_keep(&[1]);
    let label = match classes {
        // A machine of one class says whether a row belongs to it.
        1 => either(flat(most.greater(most.scalar_like(0.0))), &Tensor::new(&[2], &[0i64, 1])),
        2 if rho.len() == 1 && positive && !has_probabilities => {
            let sure = !most.less(most.scalar_like(0.5));
            let best = best_label(votes, &Tensor::new(&[2], &[0i64, 1]));
            either(flat(sure).or(best.equal(best.scalar_like(1.0))), &labels)
        }
        _ => best_label(votes, &labels),
    };
    let one = scores.ty().shape[1].is(1);
    let scores = match transform {
        "PROBIT" if one => super::probit(scores),
        _ if one && classes == 2 => transformed(columns(-scores, scores), transform),
        _ if one => scores,
        _ => transformed(scores, transform),
    };
    Ok(vec![label, scores])
}

/// Pairs of classes, in the order of their scores.
fn pairs(classes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..classes).flat_map(move |i| (i + 1..classes).map(move |j| (i, j)))
}

/// A score for each pair of classes; above 0 it speaks for the first.
fn duels<'g>(c: &Call<'g>, products: V<'g>, coefficients: &[f64], rho: &[f64], counts: &[usize], classes: usize) -> Result<V<'g>> {
    let supports: usize = counts.iter().sum();
    let duels = pairs(classes).count();
    if counts.len() != classes || classes < 2 || coefficients.len() < supports * (classes - 1) || rho.len() < duels {
        let e = format!("{} coefficients and {} offsets for {supports} vectors of {classes} classes", coefficients.len(), rho.len());
        return Err(Error::attribute(e));
    }
    let starts: Vec<usize> = counts.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    let mut w = vec![0f64; supports * duels];
    for (duel, (i, j)) in pairs(classes).enumerate() {
        for v in starts[i]..starts[i] + counts[i] {
            w[v * duels + duel] = coefficients[(j - 1) * supports + v];
        }
        for v in starts[j]..starts[j] + counts[j] {
            w[v * duels + duel] = coefficients[i * supports + v];
        }
    }
    Ok(matmul(products, f32s(c, &[supports, duels], &w)?) + f32s(c, &[duels], &rho[..duels])?)
}

/// How many pairs each class wins.
fn votes<'g>(c: &Call<'g>, scores: V<'g>, classes: usize) -> V<'g> {
    let duels = pairs(classes).count();
    let (mut gain, mut lost) = (vec![0f32; duels * classes], vec![0f32; classes]);
    for (duel, (i, j)) in pairs(classes).enumerate() {
        gain[duel * classes + i] = 1.0;
        gain[duel * classes + j] = -1.0;
        lost[j] += 1.0;
    }
    let first = scores.greater(scores.scalar_like(0.0)).cast(DType::F32);
    matmul(first, c.b.constant(Tensor::new(&[duels, classes], &gain))) + c.b.constant(Tensor::new(&[classes], &lost))
}

/// Probabilities of the classes from those of pairs, by the second method of Wu, Lin and Weng (2004) as LIBSVM iterates it. Rows whose
/// iteration has ended stay as they are.
fn probabilities<'g>(c: &Call<'g>, scores: V<'g>, (a, b): (&[f64], &[f64]), classes: usize) -> Result<V<'g>> {
    let duels = pairs(classes).count();
    if a.len() < duels || b.len() < duels {
        return Err(Error::attribute(format!("{} and {} numbers for probabilities of {duels} pairs", a.len(), b.len())));
    }
    let sure = (-(scores * f32s(c, &[duels], &a[..duels])? + f32s(c, &[duels], &b[..duels])?)).sigmoid();
    let sure = sure.max(sure.scalar_like(1e-7)).min(sure.scalar_like(1.0 - 1e-7));
    let n = sure.ty().shape[0].clone();
    // r[i][j] is what speaks for i against j, and 0 on the diagonal: a sum over pairs, with signs.
    let k = classes;
    let (mut sign, mut base) = (vec![0f32; duels * k * k], vec![0f32; k * k]);
    for (duel, (i, j)) in pairs(k).enumerate() {
        sign[duel * k * k + i * k + j] = 1.0;
        sign[duel * k * k + j * k + i] = -1.0;
        base[j * k + i] = 1.0;
    }
    let r = matmul(sure, c.b.constant(Tensor::new(&[duels, k * k], &sign))) + c.b.constant(Tensor::new(&[k * k], &base));
    let square = vec![n.clone(), Dim::from(k), Dim::from(k)];
    let r = r.reshape(square);
    let diagonal: Vec<f32> = (0..k * k).map(|i| if i % (k + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let diagonal = c.b.constant(Tensor::new(&[k, k], &diagonal));
    let q = diagonal * (r * r).sum_keep(&[1]) - r.transpose(&[0, 2, 1]) * r;
    let even = c.b.constant(Tensor::scalar(1f32 / k as f32)).expand(vec![n.clone(), Dim::from(k)]);

    let body = c.b.nested("probabilities");
    body.input("iteration", Type::new(DType::I64, vec![]));
    let (before, q_in) = (body.input("p", even.ty()), body.input("q", q.ty()));
    let mut p = before;
    let mut qp = (q_in * p.reshape(vec![n.clone(), Dim::Const(1), Dim::from(k)])).reduce(ReduceKind::Sum, &[2], false);
    let mut pqp = (p * qp).sum_keep(&[1]);
    let going = !(qp - pqp).abs().max_keep(&[1]).less(pqp.scalar_like(0.005 / k as f64));
    for t in 0..k {
        let q_t = q_in.slice_axis(1, Dim::from(t), Dim::Const(1)).reshape(vec![n.clone(), Dim::from(k)]);
        let (q_tt, qp_t) = (q_t.slice_axis(1, Dim::from(t), Dim::Const(1)), qp.slice_axis(1, Dim::from(t), Dim::Const(1)));
        let step = (pqp - qp_t) / q_tt;
        let grown = plus(step, 1.0);
        let here: Vec<f32> = (0..k).map(|i| if i == t { 1.0 } else { 0.0 }).collect();
        p = (p + step * body.constant(Tensor::new(&[k], &here))) / grown;
        pqp = (pqp + step * (step * q_tt + times(qp_t, 2.0))) / (grown * grown);
        qp = (qp + step * q_t) / grown;
    }
    body.output("going", going.reduce(ReduceKind::Max, &[0, 1], false));
    body.output("p", going.select(p, before));
    let region = body.finish().map_err(Report::into_first)?;
    let (most, go) = (c.b.constant(Tensor::scalar(k.max(100) as i64)), c.b.constant(Tensor::scalar(true)));
    Ok(c.b.op_all(Loop { carried: 1, trips: c.b.fresh_symbol("trips") }, &[most, go, even, q], vec![region]).remove(0))
}
