//! Resizing: each axis on its own, as gathers of neighbours with weights. Indices and weights are tensor arithmetic on an index
//! ramp, which folds to constants where the sizes are known.
//!
//! Coordinates and weights follow the ONNX specification of Resize (opset 19) and, for antialiasing, Pillow's filters.

use super::matmul::matmul;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::source::{Dims, Iota};
use nnc_ir::scalar::Num;
use nnc_ir::types::normalize_axis;
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, Tensor, V};

pub const ROWS: &[Row] = &[
    op("Resize", 10, (2, 2), |c| upsample(c, Factors::Input(1))),
    op("Resize", 11, (1, 4), resize),
    op("Upsample", 1, (1, 1), |c| upsample(c, Factors::Two)).until(6),
    op("Upsample", 7, (1, 1), |c| upsample(c, Factors::Attribute)),
    op("Upsample", 9, (2, 2), |c| upsample(c, Factors::Input(1))).until(9),
];

/// How positions in the result map to positions in the input.
struct Rule {
    mode: &'static str,
    coordinates: &'static str,
    nearest: &'static str,
    cubic_a: f64,
    exclude_outside: bool,
    antialias: bool,
    extrapolation: f64,
}

/// One axis: lengths before and after, the factor between them as an f64 scalar, and its value where that is known.
struct Axis<'g> {
    n: Dim,
    m: Dim,
    factor: V<'g>,
    known: Option<f64>,
    /// The length after before it was rounded down, where it was.
    exact: Option<V<'g>>,
    /// Start and end of the region of interest, as shares of the length.
    roi: Option<(V<'g>, V<'g>)>,
}

/// Where old operators have their factors.
enum Factors {
    /// `height_scale` and `width_scale`.
    Two,
    /// `scales`.
    Attribute,
    Input(usize),
}

/// Upsample, and Resize of opset 10: no choice of coordinates.
fn upsample<'g>(c: &Call<'g>, factors: Factors) -> Result<Vec<V<'g>>> {
    let mode = match c.word("mode", &["nearest", "linear", "bilinear"])? {
        "bilinear" => "linear",
        m => m,
    };
    let rule = Rule {
        mode,
        coordinates: "asymmetric",
        nearest: "towards the smaller",
        cubic_a: -0.75,
        exclude_outside: false,
        antialias: false,
        extrapolation: 0.0,
    };
    let missing = |name: &str| c.missing(name);
    let scales = match factors {
        Factors::Input(i) => c.x(i)?,
        Factors::Attribute => f32s(c, &c.floats("scales")?.ok_or_else(|| missing("scales"))?),
        Factors::Two => {
            let of = |name: &str| c.opt_float(name)?.ok_or_else(|| missing(name));
            f32s(c, &[1.0, 1.0, of("height_scale")?, of("width_scale")?])
        }
    };
    let x = c.x(0)?;
    let axes: Vec<usize> = (0..x.ty().rank()).collect();
    by_scales(c, x, &axes, scales, None, &rule)
}

fn f32s<'g>(c: &Call<'g>, values: &[f64]) -> V<'g> {
    c.b.constant(Tensor::new(&[values.len()], &values.iter().map(|v| *v as f32).collect::<Vec<_>>()))
}

fn resize<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let rank = x.ty().rank();
    let rule = Rule {
        mode: c.word("mode", &["nearest", "linear", "cubic"])?,
        coordinates: c.word(
            "coordinate_transformation_mode",
            &[
                "half_pixel",
                "half_pixel_symmetric",
                "pytorch_half_pixel",
                "align_corners",
                "asymmetric",
                "tf_half_pixel_for_nn",
                "tf_crop_and_resize",
            ],
        )?,
        nearest: c.word("nearest_mode", &["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])?,
        cubic_a: c.float("cubic_coeff_a", -0.75)?,
        exclude_outside: c.flag("exclude_outside", false)?,
        antialias: c.flag("antialias", false)?,
        extrapolation: c.float("extrapolation_value", 0.0)?,
    };
    let axes = c.ints("axes")?.unwrap_or_else(|| (0..rank as i64).collect());
    let axes = axes.iter().map(|a| normalize_axis(*a, rank)).collect::<Result<Vec<_>>>()?;
    let policy = c.word("keep_aspect_ratio_policy", &["stretch", "not_larger", "not_smaller"])?;
    // An empty tensor stands for an input that is not given, in files older than optional inputs.
    let given = |i: usize| c.opt(i).filter(|v| !v.ty().elems().is(0));
    let roi = given(1).filter(|_| rule.coordinates == "tf_crop_and_resize");
    if roi.is_none() && rule.coordinates == "tf_crop_and_resize" {
        return Err(Error::arity("tf_crop_and_resize needs the region of interest"));
    }
    match (given(2), given(3)) {
        (Some(scales), None) => by_scales(c, x, &axes, scales, roi, &rule),
        (None, Some(_)) => by_sizes(c, x, &axes, policy, roi, &rule),
        _ => Err(Error::arity("one of scales and sizes should be given")),
    }
}

/// Element `i` of a vector of floats, as an f64 scalar.
fn element<'g>(v: V<'g>, i: usize) -> V<'g> {
    v.slice(vec![Dim::from(i)], vec![Dim::Const(1)]).reshape(vec![]).cast(DType::F64)
}

fn region<'g>(roi: Option<V<'g>>, i: usize, axes: usize) -> Option<(V<'g>, V<'g>)> {
    roi.map(|r| (element(r, i), element(r, axes + i)))
}

/// A vector with one element an axis.
fn one_an_axis<'g>(c: &Call<'g>, v: V<'g>, what: &str, axes: usize) -> Result<V<'g>> {
    let v = c.long(v, 0, axes);
    if v.ty().rank() == 1 && v.ty().elems().is(axes as i64) {
        return Ok(v);
    }
    Err(Error::shape(format!("{what} should be a vector of {axes}, one an axis, found {}", v.ty())))
}

/// What `by` makes of x, interpolated in one type from the first axis to the last, f64 for integers. These are then cut off towards zero, as
/// NumPy and onnxruntime have it, but what lies within 1e-6 of an integer is that integer: weights that do not quite add up to 1 must
/// not make an even picture darker. Cubic filters overshoot: what is beyond the type's range is its end.
fn widened<'g>(x: V<'g>, rule: &Rule, by: impl FnOnce(V<'g>) -> Result<V<'g>>) -> Result<Vec<V<'g>>> {
    let dtype = x.ty().dtype;
    if rule.mode == "nearest" || x.is_poison() {
        return Ok(vec![by(x)?]);
    }
    let is_whole = dtype.is_int() || dtype == DType::Bool;
    let y = by(x.cast(if is_whole || dtype == DType::F64 { DType::F64 } else { DType::F32 }))?;
    if !is_whole {
        return Ok(vec![y.cast(dtype)]);
    }
    let k = |v: f64| y.scalar_like(v);
    let near = (y + k(0.5)).floor();
    let cut = y.less(k(0.0)).select(y.map(ScalarFn::Ceil), y.floor());
    let y = (y - near).abs().less(k(1e-6)).select(near, cut);
    let (least, greatest) = if dtype == DType::Bool { (0.0, 1.0) } else { (Num::least(dtype).as_f64(), Num::greatest(dtype).as_f64()) };
    Ok(vec![y.max(k(least)).min(k(greatest)).cast(dtype)])
}

fn by_scales<'g>(c: &Call<'g>, x: V<'g>, axes: &[usize], scales: V<'g>, roi: Option<V<'g>>, rule: &Rule) -> Result<Vec<V<'g>>> {
    widened(x, rule, |x| along_scales(c, x, axes, scales, roi, rule))
}

fn along_scales<'g>(c: &Call<'g>, mut x: V<'g>, axes: &[usize], scales: V<'g>, roi: Option<V<'g>>, rule: &Rule) -> Result<V<'g>> {
    let scales = one_an_axis(c, scales, "scales", axes.len())?;
    let roi = roi.map(|r| one_an_axis(c, r, "roi", 2 * axes.len())).transpose()?;
    let known = c.fold(scales).map(|t| t.to_f64s());
    let regions = roi.and_then(|r| c.fold(r)).map(|t| t.to_f64s());
    for (i, a) in axes.iter().enumerate() {
        let n = x.ty().shape[*a].clone();
        let factor = element(scales, i);
        let roi = region(roi, i, axes.len());
        let share = match (&roi, &regions) {
            (None, _) => Some(1.0),
            (Some(_), r) => r.as_ref().map(|r| r[axes.len() + i] - r[i]),
        };
        let m = match (known.as_ref().map(|k| k[i]), share) {
            (Some(s), _) if s.is_nan() || s <= 0.0 || s > 1e9 => return Err(Error::attribute(format!("a scale of {s}"))),
            (Some(s), Some(share)) => scaled(&n, s * share),
            _ => None,
        };
        let m = match m {
            Some(m) => m,
            None => {
                let n = c.b.op(Dims { values: vec![n.clone()], scalar: true }, &[]).cast(DType::F64);
                let share = roi.map_or(n.scalar_like(1.0), |(start, end)| end - start);
                c.read((n * share * factor).floor(), "the result's length")?.0[0].clone()
            }
        };
        let exact = Some(c.b.op(Dims { values: vec![n.clone()], scalar: true }, &[]).cast(DType::F64) * factor);
        x = resized(c, x, *a, Axis { n, m, factor, known: known.as_ref().map(|k| k[i]), exact, roi }, rule)?;
    }
    Ok(x)
}

/// floor(n * s), in f32 as onnxruntime has it, where that can be said before the run.
fn scaled(n: &Dim, s: f64) -> Option<Dim> {
    if let Some(n) = n.as_const() {
        return Some(Dim::Const((n as f32 * s as f32).floor() as i64));
    }
    // A fraction with a small denominator is meant exactly.
    (1..=64).find_map(|q| {
        let p = (s * q as f64).round();
        ((s * q as f64 - p).abs() <= 1e-6 * p && p >= 1.0).then(|| (n.clone() * Dim::Const(p as i64)).floor_div(&Dim::Const(q)))
    })
}

fn by_sizes<'g>(c: &Call<'g>, x: V<'g>, axes: &[usize], policy: &str, roi: Option<V<'g>>, rule: &Rule) -> Result<Vec<V<'g>>> {
    widened(x, rule, |x| along_sizes(c, x, axes, policy, roi, rule))
}

fn along_sizes<'g>(c: &Call<'g>, mut x: V<'g>, axes: &[usize], policy: &str, roi: Option<V<'g>>, rule: &Rule) -> Result<V<'g>> {
    let mut sizes = c.dims_of(3, axes.len(), "sizes")?;
    if sizes.len() != axes.len() {
        return Err(Error::shape(format!("{} sizes for {} axes", sizes.len(), axes.len())));
    }
    let scalar = |d: &Dim| c.b.op(Dims { values: vec![d.clone()], scalar: true }, &[]).cast(DType::F64);
    let mut common = None;
    if policy != "stretch" {
        let ratio = |(a, m): (&usize, &Dim)| scalar(m) / scalar(&x.ty().shape[*a]);
        let pick = if policy == "not_larger" { V::min } else { V::max };
        let s = axes.iter().zip(&sizes).map(ratio).reduce(pick).ok_or_else(|| Error::shape("sizes of no axes"))?;
        let half = c.b.constant(Tensor::scalar(0.5));
        for (a, m) in axes.iter().zip(&mut sizes) {
            let rounded = (scalar(&x.ty().shape[*a]) * s + half).floor();
            *m = match c.fold(rounded) {
                Some(t) => Dim::Const(t.num(0).as_i64()),
                None => c.read(rounded, "the result's length")?.0[0].clone(),
            };
        }
        common = Some(s);
    }
    let roi = roi.map(|r| one_an_axis(c, r, "roi", 2 * axes.len())).transpose()?;
    for (i, (a, m)) in axes.iter().zip(sizes).enumerate() {
        let n = x.ty().shape[*a].clone();
        let factor = common.unwrap_or_else(|| scalar(&m) / scalar(&n));
        let known = c.fold(factor).map(|t| t.num(0).as_f64());
        let exact = common.map(|s| scalar(&n) * s);
        x = resized(c, x, *a, Axis { n, m, factor, known, exact, roi: region(roi, i, axes.len()) }, rule)?;
    }
    Ok(x)
}

fn resized<'g>(c: &Call<'g>, x: V<'g>, axis: usize, a: Axis<'g>, rule: &Rule) -> Result<V<'g>> {
    let whole = a.roi.is_none() && a.known == Some(1.0);
    if a.n == a.m && whole {
        return Ok(x);
    }
    if rule.mode == "nearest"
        && let Some(times) = a.known.and_then(|s| repeats(s, rule))
        && a.m == a.n.clone() * Dim::Const(times)
    {
        return Ok(repeated(x, axis, times));
    }
    let at = positions(c, &a, rule);
    if rule.antialias && rule.mode != "nearest" && a.known.is_none() {
        return Ok(filtered(c, x, axis, &a, at, rule));
    }
    let last = c.b.op(Dims { values: vec![a.n.clone() - Dim::Const(1)], scalar: true }, &[]);
    let zero = c.b.constant(Tensor::scalar(0i64));
    let gather = |x: V<'g>, index: V<'g>| c.b.op(Gather { axis }, &[x, index.max(zero).min(last)]);
    // One value an output position, shaped to broadcast along the axis.
    let rank = x.ty().rank();
    let along = |v: V<'g>| {
        let mut shape = vec![Dim::Const(1); rank - axis];
        shape[0] = a.m.clone();
        v.reshape(shape)
    };
    let dtype = x.ty().dtype;
    let y = if rule.mode == "nearest" {
        let half = at.scalar_like(0.5);
        let index = match rule.nearest {
            "round_prefer_floor" => (at - half).map(ScalarFn::Ceil),
            "round_prefer_ceil" => (at + half).floor(),
            "floor" => at.floor(),
            "towards the smaller" => a.factor.less(a.factor.scalar_like(1.0)).select(at.map(ScalarFn::Ceil), at.floor()),
            _ => at.map(ScalarFn::Ceil),
        };
        gather(x, index.cast(DType::I64))
    } else {
        let base = at.floor();
        let (offsets, weights) = taps(&a, at - base, rule)?;
        let base = base.cast(DType::I64);
        let index: Vec<V> = offsets.iter().map(|k| base + c.b.constant(Tensor::scalar(*k))).collect();
        let weights = if rule.exclude_outside { inside_only(&index, weights, zero, last) } else { weights };
        let parts = index.iter().zip(weights).map(|(i, w)| gather(x, *i) * along(w.cast(dtype)));
        parts.reduce(|p, q| p + q).ok_or_else(|| Error::internal("a filter without taps"))?
    };
    if a.roi.is_none() {
        return Ok(y);
    }
    let outside = at.less(at.scalar_like(0.0)).or(at.greater(last.cast(DType::F64)));
    Ok(along(outside).select(y.scalar_like(rule.extrapolation), y))
}

/// How often each element stands in the result one after the other, where that is what nearest neighbours come to.
fn repeats(s: f64, rule: &Rule) -> Option<i64> {
    let free = matches!(rule.coordinates, "half_pixel" | "pytorch_half_pixel" | "asymmetric" | "tf_half_pixel_for_nn");
    if !free || s.fract() != 0.0 || !(1.0..=64.0).contains(&s) {
        return None;
    }
    // These rules repeat after each input element: look at a few.
    let nearest = |i: f64| {
        let at = match rule.coordinates {
            "asymmetric" => i / s,
            "tf_half_pixel_for_nn" => (i + 0.5) / s,
            _ => (i + 0.5) / s - 0.5,
        };
        match rule.nearest {
            "round_prefer_floor" => (at - 0.5).ceil(),
            "round_prefer_ceil" => (at + 0.5).floor(),
            "floor" | "towards the smaller" => at.floor(),
            _ => at.ceil(),
        }
        .max(0.0)
    };
    let times = s as i64;
    (0..4 * times).all(|i| nearest(i as f64) == (i / times) as f64).then_some(times)
}

fn repeated(x: V, axis: usize, times: i64) -> V {
    let shape = x.ty().shape;
    let (mut apart, mut joined) = (shape.clone(), shape);
    apart.insert(axis + 1, Dim::Const(1));
    let mut spread = apart.clone();
    spread[axis + 1] = Dim::Const(times);
    joined[axis] = joined[axis].clone() * Dim::Const(times);
    x.reshape(apart).expand(spread).reshape(joined)
}

/// For each output position, the position in the input: f64 `[m]`. Quotients are rounded to f32 where the nearest element counts: half-way
/// positions are then those that other runtimes find half-way, with factors like 0.7 that binary fractions only come near to.
fn positions<'g>(c: &Call<'g>, a: &Axis<'g>, rule: &Rule) -> V<'g> {
    let i = c.b.op(Iota { shape: vec![a.m.clone()], axis: 0 }, &[]).cast(DType::F64);
    let k = |v: f64| i.scalar_like(v);
    let length = |d: &Dim| c.b.op(Dims { values: vec![d.clone()], scalar: true }, &[]).cast(DType::F64);
    let rounded = |v: V<'g>| if rule.mode == "nearest" { v.cast(DType::F32).cast(DType::F64) } else { v };
    let (n, m, factor) = (length(&a.n), length(&a.m), rounded(a.factor));
    let exact = a.exact.unwrap_or(m);
    let half_pixel = rounded((i + k(0.5)) / factor) - k(0.5);
    match rule.coordinates {
        "half_pixel_symmetric" => {
            let centre = n / k(2.0);
            centre * (k(1.0) - m / exact) + half_pixel
        }
        "pytorch_half_pixel" => m.greater(k(1.0)).select(half_pixel, k(0.0)),
        "align_corners" => exact.equal(k(1.0)).select(k(0.0), i * (n - k(1.0)) / (exact - k(1.0))),
        "asymmetric" => rounded(i / factor),
        // An axis that is not resized stays as it is, also where only the run knows that it is not.
        "tf_half_pixel_for_nn" if a.known.is_none_or(|s| s == 1.0) => a.factor.equal(k(1.0)).select(i, rounded((i + k(0.5)) / factor)),
        "tf_half_pixel_for_nn" => rounded((i + k(0.5)) / factor),
        "tf_crop_and_resize" => {
            let (start, end) = a.roi.unwrap_or((k(0.0), k(1.0)));
            let span = n - k(1.0);
            let spread = start * span + i * (end - start) * span / (m - k(1.0));
            m.greater(k(1.0)).select(spread, (start + end) * span * k(0.5))
        }
        _ => half_pixel,
    }
}

/// Offsets of neighbours from the position rounded down, and their weights `[m]`, given the fraction that was cut off.
fn taps<'g>(a: &Axis<'g>, ratio: V<'g>, rule: &Rule) -> Result<(Vec<i64>, Vec<V<'g>>)> {
    let k = |v: f64| ratio.scalar_like(v);
    // Antialiasing widens the filter where the result is smaller.
    let shrink = a.known.filter(|_| rule.antialias).map_or(1.0, |s| s.min(1.0));
    let radius = radius(rule);
    let first = (-radius / shrink).floor() as i64 + 1;
    if first < -512 {
        return Err(Error::unsupported(format!("antialiasing with a scale of {shrink}")));
    }
    let offsets: Vec<i64> = (first..2 - first).collect();
    let weight = |offset: i64| weight(((k(offset as f64) - ratio) * k(shrink)).abs(), rule);
    let weights: Vec<V> = offsets.iter().map(|o| weight(*o)).collect();
    Ok((offsets, if rule.antialias { normalised(weights) } else { weights }))
}

/// How far a filter reaches, in elements.
fn radius(rule: &Rule) -> f64 {
    if rule.mode == "linear" { 1.0 } else { 2.0 }
}

/// The filter at a distance.
fn weight<'g>(d: V<'g>, rule: &Rule) -> V<'g> {
    let k = |v: f64| d.scalar_like(v);
    if rule.mode == "linear" {
        return (k(1.0) - d).max(k(0.0));
    }
    // Keys 1981, with parameter a.
    let a = rule.cubic_a;
    let near = ((k(a + 2.0) * d - k(a + 3.0)) * d) * d + k(1.0);
    let far = ((k(a) * d - k(5.0 * a)) * d + k(8.0 * a)) * d - k(4.0 * a);
    d.less_equal(k(1.0)).select(near, d.less(k(2.0)).select(far, k(0.0)))
}

/// Antialiasing by a factor that only the run knows: how wide the filter is cannot be said before, so every element has a weight for
/// every position, and the axis is a matrix product. Beyond both ends the outermost elements go on as far as a filter can reach.
fn filtered<'g>(c: &Call<'g>, x: V<'g>, axis: usize, a: &Axis<'g>, at: V<'g>, rule: &Rule) -> V<'g> {
    let reach = if rule.exclude_outside { Dim::Const(0) } else { a.n.clone() * Dim::Const(radius(rule) as i64) + Dim::Const(1) };
    let scalar = |d: Dim| c.b.op(Dims { values: vec![d], scalar: true }, &[]);
    let (first, last) = (scalar(reach.clone()), scalar(a.n.clone() - Dim::Const(1)));
    let index = c.b.op(Iota { shape: vec![a.n.clone() + reach.clone() + reach], axis: 0 }, &[]) - first;
    // [elements, positions]
    let column = vec![index.ty().elems(), Dim::Const(1)];
    let shrink = a.factor.min(a.factor.scalar_like(1.0));
    let w = weight(((index.reshape(column).cast(DType::F64) - at) * shrink).abs(), rule);
    let w = w / w.sum_keep(&[0]);
    let dtype = x.ty().dtype;
    let mut perm: Vec<usize> = (0..x.ty().rank()).filter(|i| *i != axis).collect();
    perm.push(axis);
    let zero = c.b.constant(Tensor::scalar(0i64));
    let rows = c.b.op(Gather { axis: perm.len() - 1 }, &[x.transpose(&perm), index.max(zero).min(last)]);
    let mut undo = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, p)| undo[*p] = i);
    matmul(rows, w.cast(dtype)).transpose(&undo)
}

fn normalised(weights: Vec<V>) -> Vec<V> {
    match weights.iter().copied().reduce(|a, b| a + b) {
        Some(sum) => weights.into_iter().map(|w| w / sum).collect(),
        None => weights,
    }
}

/// Neighbours beyond the edge get no weight, the others make up for them.
fn inside_only<'g>(index: &[V<'g>], weights: Vec<V<'g>>, zero: V<'g>, last: V<'g>) -> Vec<V<'g>> {
    let inside = |(i, w): (&V<'g>, V<'g>)| i.greater_equal(zero).and(i.less_equal(last)).select(w, w.scalar_like(0.0));
    normalised(index.iter().zip(weights).map(inside).collect())
}
