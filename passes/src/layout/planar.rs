//! Convolutions of few output channels that stay in the model's layout: lanes are pixels of a row, or taps, and no block is filled up with
//! zeros.

use super::mostly_padding;
use crate::cost;
use nnc_ir::ops::contract::{Conv, Layout, Post, Window};
use nnc_ir::{DType, Dim, Op, Target, Type};

/// Elements of filters and of planes of the result, and eight times as many of the operand's planes, up to which the distances between them
/// are constants of the kernel's instructions.
const LARGEST: i64 = 1 << 23;

/// Whether there is a kernel for this convolution in the model's layout.
pub fn takes(conv: &Conv, x: &Type, w: &Type, y: &Type) -> bool {
    if conv.layout != Layout::Plain || conv.group != 1 || conv.post.contains(&Post::Add) || !(3..=4).contains(&x.rank()) {
        return false;
    }
    let Ok(window) = conv.window(w) else { return false };
    let small = |n: &i64| (0..LARGEST).contains(n);
    // Elements behind an axis, where all sizes from it on are known.
    let behind = |t: &Type, axis: usize| t.shape[axis..].iter().try_fold(1i64, |n, d| n.checked_mul(d.as_const().filter(|n| *n > 0)?));
    if mostly_padding(conv, x) || window.strides.last() != Some(&1) || !window.strides.iter().chain(&window.pads).all(small) {
        return false;
    }
    let held = padded(x, &window);
    let spread = window.dilations.iter().try_fold(1i64, |n, d| n.checked_mul(*d));
    let known = [(x, 1), (w, 0)].iter().all(|(t, axis)| behind(t, *axis).is_some())
        && [behind(&held, 2).and_then(|n| Some(n.checked_mul(spread?)? / 8)), behind(w, 1), behind(y, 2)]
            .iter()
            .all(|n| n.as_ref().is_some_and(small));
    known && [x, w, y].iter().all(|t| t.dtype == DType::F32)
}

/// Padding that the operand must hold: along rows all of it, of the columns only where their taps are spread.
pub fn halo(window: &Window) -> Vec<i64> {
    let n = window.kernel.len();
    let own = |i: usize| i % n + 1 == n || window.dilations[i % n] != 1;
    (0..2 * n).map(|i| if own(i) { window.pads[i] } else { 0 }).collect()
}

/// The operand with the padding that it holds.
fn padded(x: &Type, window: &Window) -> Type {
    let (halo, n) = (halo(window), window.kernel.len());
    let size = |(i, d): (usize, &Dim)| if i < 2 { d.clone() } else { d.clone() + Dim::Const(halo[i - 2].saturating_add(halo[n + i - 2])) };
    Type::new(x.dtype, x.shape.iter().enumerate().map(size).collect::<Vec<_>>())
}

/// Tap rows, and output rows, up to which those outside the image are counted one by one.
const COUNTED: i64 = 64;

/// Cycles of a convolution that the kernel [`takes`].
pub fn cycles(conv: &Conv, x: &Type, w: &Type, y: &Type, target: &Target) -> f64 {
    let Ok(window) = conv.window(w) else { return f64::INFINITY };
    let (n, lanes) = (window.kernel.len(), target.lanes as f64);
    let size = |t: &Type, i: usize| cost::dim(&t.shape[i]);
    let (inputs, outputs, width, columns) = (size(w, 1), size(w, 0), size(y, n + 1), window.kernel[n - 1] as f64);
    let vectors = (width / lanes).ceil();
    let (mut lines, mut taps) = (1.0, 1.0);
    if n == 2 {
        (lines, taps) = (size(y, 2), window.kernel[0] as f64);
        let (rows, high, above, stride) = (size(x, 2) as i64, window.kernel[0], window.pads[0], window.strides[0]);
        if lines <= COUNTED as f64 && [high, above, stride].iter().all(|n| *n <= COUNTED) && window.dilations[0] == 1 {
            let inside = |y: i64| (high.min(rows.saturating_add(above) - y * stride) - (above - y * stride).max(0)).max(0);
            taps = (0..lines as i64).map(inside).sum::<i64>() as f64 / lines.max(1.0);
        }
    }
    let rows = size(x, 0) * lines * outputs * taps * inputs;
    // Lanes are pixels: a step loads its pixels, most of which lie across two lines, and broadcasts a weight for each channel; and a chain of
    // sums waits four cycles for each of its steps.
    let channels = outputs.min(8.0);
    let vecs = vectors.min((24.0 / channels).floor());
    let load = (1.5 * vecs + 0.5 * channels) / (channels * vecs);
    let wait = 8.0 / (channels * vecs);
    let pixels = vectors * columns * load.max(wait).max(1.0);
    // Lanes are taps: each step loads them for some channels, and for some pixels what lies under them.
    let lone = if outputs.min(width) < 3.0 { 2.0 } else { 1.0 };
    let taps = if window.dilations[n - 1] == 1 && width <= lanes { width * (columns / lanes).ceil() * lone } else { f64::INFINITY };
    let products = rows * pixels.min(taps);
    let cycle = lanes / target.fma_per_cycle;
    let held = padded(x, &window);
    let pad = if held == *x { 0.0 } else { cost::copy(&held, target) };
    let op = Op::Conv(conv.clone());
    let bytes = cost::traffic(&op, &[&held, w], std::slice::from_ref(y)) / target.l2_bytes_per_cycle;
    cost::LAUNCH + products * cycle + bytes + pad
}
