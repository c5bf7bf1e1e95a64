//! Comparing results with references.

use nnc_ir::Tensor;
use nnc_ir::types::ShapeText;
use std::fmt;

/// How far a value may be from the reference: `|got - want| <= atol + rtol * |want|`. NaN equals NaN; infinities equal by sign.
/// Integers must be equal, or within `atol` where that is given.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    pub rtol: f64,
    /// `None` is 1e-5 times the largest finite reference of the tensor: what reordered f32 sums need near 0.
    pub atol: Option<f64>,
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance { rtol: 1e-3, atol: None }
    }
}

/// The outcome for one tensor.
#[derive(Clone, PartialEq, Debug)]
pub enum Match {
    /// Within the tolerance; the largest difference, absolute, and the largest reference.
    Close {
        max_abs: f64,
        scale: f64,
    },
    DType {
        got: String,
        want: String,
    },
    Shape {
        got: String,
        want: String,
    },
    /// Some elements differ: how many of all, the worst of them, and its place.
    Values {
        wrong: usize,
        elems: usize,
        worst: Vec<usize>,
        got: f64,
        want: f64,
        max_abs: f64,
    },
}

impl Match {
    pub fn is_close(&self) -> bool {
        matches!(self, Match::Close { .. })
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Close { max_abs, scale } => write!(f, "agrees: largest difference {max_abs:.3e} of {scale:.3e}"),
            Match::DType { got, want } => write!(f, "differs in element type: {got}, expected {want}"),
            Match::Shape { got, want } => write!(f, "differs in shape: {got}, expected {want}"),
            Match::Values { wrong, elems, worst, got, want, max_abs } => {
                write!(f, "differs in {wrong} of {elems} elements: largest difference {max_abs:.3e} at {worst:?}: {got:e}, expected {want:e}")
            }
        }
    }
}

/// Holds `got` against `want`.
pub fn compare(got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Match {
    if got.dtype() != want.dtype() {
        return Match::DType { got: got.dtype().to_string(), want: want.dtype().to_string() };
    }
    if got.shape() != want.shape() {
        let text = |t: &Tensor| ShapeText(&t.ty().shape).to_string();
        return Match::Shape { got: text(got), want: text(want) };
    }
    // f64 holds every element but the largest 64-bit integers, which are compared by their bytes first.
    let exact = got.dtype().is_int() && got.dtype().bytes() == 8;
    let (a, b) = match (got.texts(), want.texts()) {
        // Strings differ or do not.
        (Some(g), Some(w)) => (g.iter().zip(w).map(|(g, w)| f64::from(g != w)).collect(), vec![0.0; w.len()]),
        _ => (got.to_f64s(), want.to_f64s()),
    };
    let scale = b.iter().filter(|w| w.is_finite()).fold(0f64, |m, w| m.max(w.abs()));
    let (rtol, atol) = if got.dtype().is_float() { (tolerance.rtol, 1e-5 * scale) } else { (0.0, 0.0) };
    let atol = tolerance.atol.unwrap_or(atol);
    let (mut wrong, mut max_abs, mut worst) = (0, 0f64, None::<(usize, f64)>);
    for (i, (g, w)) in a.iter().zip(&b).enumerate() {
        let same = if exact { got.element(i) == want.element(i) } else { g == w || (g.is_nan() && w.is_nan()) };
        if same {
            continue;
        }
        let d = (g - w).abs();
        let d = if d.is_nan() {
            f64::INFINITY
        } else if exact {
            d.max(1.0)
        } else {
            d
        };
        max_abs = max_abs.max(d);
        if d.is_infinite() || d > atol + rtol * w.abs() {
            wrong += 1;
            if worst.is_none_or(|(_, most)| d > most) {
                worst = Some((i, d));
            }
        }
    }
    match worst {
        None => Match::Close { max_abs, scale },
        Some((i, _)) => Match::Values { wrong, elems: a.len(), worst: place(i, got.shape()), got: a[i], want: b[i], max_abs },
    }
}

/// The index of the `flat`-th element.
fn place(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for (slot, n) in out.iter_mut().zip(shape).rev() {
        *slot = flat % n;
        flat /= n;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(x: &[f32]) -> Tensor {
        Tensor::new(&[x.len()], x)
    }

    #[test]
    fn floats() {
        let tol = Tolerance { rtol: 1e-3, atol: Some(1e-6) };
        assert!(compare(&t(&[1.0005, f32::NAN, f32::INFINITY]), &t(&[1.0, f32::NAN, f32::INFINITY]), tol).is_close());
        let m = compare(&t(&[1.0, 2.5, 3.0]), &t(&[1.0, 2.0, 3.1]), tol);
        assert!(matches!(&m, Match::Values { wrong: 2, elems: 3, worst, .. } if *worst == [1]), "{m}");
        assert!(!compare(&t(&[f32::INFINITY]), &t(&[f32::NEG_INFINITY]), tol).is_close());
        assert!(!compare(&t(&[f32::NAN]), &t(&[0.0]), tol).is_close());
        // Near 0 the size of the whole tensor counts unless --atol says otherwise.
        assert!(compare(&t(&[100.0, 1e-4]), &t(&[100.0, 0.0]), Tolerance::default()).is_close());
        assert!(!compare(&t(&[100.0, 1e-4]), &t(&[100.0, 0.0]), tol).is_close());
    }

    #[test]
    fn integers_types_and_shapes() {
        let big = |v: i64| Tensor::new(&[1], &[v]);
        assert!(!compare(&big(i64::MAX), &big(i64::MAX - 1), Tolerance { rtol: 0.0, atol: Some(0.0) }).is_close());
        assert!(matches!(compare(&big(1), &t(&[1.0]), Tolerance::default()), Match::DType { .. }));
        assert!(matches!(compare(&t(&[1.0, 2.0]), &t(&[1.0]), Tolerance::default()), Match::Shape { .. }));
        assert_eq!(place(23, &[2, 3, 4]), [1, 2, 3]);
    }
}
