//! Whether minimal filtering ([`nnc_ir::winograd`]) takes the place of a blocked convolution's plain sums, on what tiles, and how many
//! of them at once.
//!
//! A larger tile saves multiplications and costs weights: those of F(4x4, 3x3) take four times the bytes, which a layer with many
//! channels and few pixels fetches for little use.
//!
//! A volume is filtered as images: each of its planes is one, whose channels are those of all planes under the window.

use crate::cost;
use crate::pass::{Precision, Refusal};
use nnc_ir::attrs::AttrValue;
use nnc_ir::ops::contract::{Conv, Layout, PANEL, Post};
use nnc_ir::target::Isa;
use nnc_ir::winograd::Form;
use nnc_ir::{Target, Type};

/// The least and the most tiles of a run: fewer use the weights too little, more leave the nearest cache.
const RUN: (f64, f64) = (16.0, 96.0);

/// A layout, its estimated cycles, and why others were not taken.
pub struct Choice {
    pub layout: Layout,
    pub cycles: f64,
    pub refused: Vec<Refusal>,
}

/// Chooses between the plain sums in blocks, which take `direct` cycles, and the forms for this window. Weights are `[O,C,kernel..]`; those
/// that are not `fixed` are transformed by the run.
pub fn choose(conv: &Conv, w: &Type, y: &Type, fixed: bool, direct: f64, target: &Target, precision: Precision) -> Choice {
    let blocked = Layout::Blocked(target.block);
    let refuse = |why: &str| Refusal { what: "winograd".into(), why: why.into() };
    let mut choice = Choice { layout: blocked, cycles: direct, refused: vec![] };
    let taps = match fits(conv, w, target, precision) {
        Ok(taps) => taps,
        Err(why) => {
            // That other windows have no minimal filtering goes without saying.
            choice.refused.extend(why.map(refuse));
            return choice;
        }
    };
    // Weights of the plain sums come from memory as well.
    let stream = |values: usize| 4.0 * values as f64 * channels(w, target).iter().product::<f64>() / target.memory_bytes_per_cycle;
    choice.cycles = direct.max(cost::LAUNCH + stream(taps * taps));
    let moved = planes(conv, w, y, target);
    let note = |layout: Layout, cycles: f64| Refusal { what: layout.to_attr().to_string(), why: format!("{cycles:.0} cycles") };
    for form in Form::ALL.into_iter().filter(|f| f.taps == taps) {
        let (run, cycles) = estimate(w, y, form, target, stream(form.side() * form.side()));
        let filters = if fixed { 0.0 } else { transform(w, form, target) };
        let (layout, cycles) = (Layout::Winograd { block: target.block, form, run }, cycles + moved + filters);
        if cycles < choice.cycles {
            choice.refused.push(note(choice.layout, choice.cycles));
            (choice.layout, choice.cycles) = (layout, cycles);
        } else {
            choice.refused.push(note(layout, cycles));
        }
    }
    choice
}

/// A side of the window, where there is a kernel for this convolution; else the reason against it, where that is worth telling.
fn fits(conv: &Conv, w: &Type, target: &Target, precision: Precision) -> Result<usize, Option<&'static str>> {
    let ones = |v: &[i64]| v.iter().all(|s| *s == 1);
    let kernel = w.shape.get(2..).filter(|k| matches!(k.len(), 2 | 3)).ok_or(None)?;
    let square = &kernel[kernel.len() - 2..];
    let taps = square[0].as_const().and_then(|n| usize::try_from(n).ok()).filter(|n| Form::ALL.iter().any(|f| f.taps == *n)).ok_or(None)?;
    match () {
        _ if square[0] != square[1] || !ones(&conv.strides) || !ones(&conv.dilations) || conv.group != 1 => Err(None),
        _ if precision == Precision::Exact => Err(Some("--precision exact forbids it")),
        _ if !matches!(target.isa, Isa::Avx2 | Isa::Avx512) => Err(Some("the target has no kernels for it")),
        _ => Ok(taps),
    }
}

/// Planes under the window of a convolution of volumes with these weights; 1 of images.
fn depth(w: &Type) -> f64 {
    if w.rank() == 5 { cost::dim(&w.shape[2]) } else { 1.0 }
}

/// Channels of an image and of its result in whole blocks.
fn channels(w: &Type, target: &Target) -> [f64; 2] {
    let block = target.block as f64;
    let [inputs, outputs] = [1, 0].map(|axis| (cost::dim(&w.shape[axis]) / block).ceil() * block);
    [inputs * depth(w), outputs]
}

/// Cycles to make images of a volume, and a volume of their results and of what is added to them.
fn planes(conv: &Conv, w: &Type, y: &Type, target: &Target) -> f64 {
    if w.rank() != 5 {
        return 0.0;
    }
    let [inputs, outputs] = channels(w, target);
    // A plane is moved once, and once more for each window that it is under.
    let read = inputs / depth(w) + if depth(w) > 1.0 { inputs } else { 0.0 };
    let results = 1 + conv.post.iter().filter(|p| **p == Post::Add).count();
    let values = cost::elems(y) / cost::dim(&y.shape[1]).max(1.0) * (read + outputs * results as f64);
    4.0 * cost::LAUNCH + 8.0 * values / target.memory_bytes_per_cycle
}

/// Cycles to transform filters: a product of rows of taps, whose results are moved into blocks.
fn transform(w: &Type, form: Form, target: &Target) -> f64 {
    let (taps, values) = ((form.taps * form.taps) as f64, (form.side() * form.side()) as f64);
    let filters = channels(w, target).iter().product::<f64>();
    let panels = (values / PANEL as f64).ceil() * PANEL as f64;
    let bytes = 4.0 * filters * (taps + 3.0 * values);
    2.0 * cost::LAUNCH + filters * taps * panels / target.fma_per_cycle + bytes / target.memory_bytes_per_cycle
}

/// Tiles of a run, and cycles in all. `stream` cycles bring the weights.
fn estimate(w: &Type, y: &Type, form: Form, target: &Target, stream: f64) -> (usize, f64) {
    let values = (form.side() * form.side()) as f64;
    let [inputs, outputs] = channels(w, target);
    let (images, plane) = y.shape.split_at(y.rank() - 2);
    let along = |axis: usize| (cost::dim(&plane[axis]) / form.tile as f64).ceil();
    let images = [&images[..1], &images[2..]].concat();
    let tiles = (images.iter().map(cost::dim).product::<f64>() * along(0) * along(1)).max(1.0);
    // Patches, and products of two blocks of channels, in most of the second-level cache.
    let bytes = 4.0 * values * (inputs + 2.0 * target.block as f64);
    let most = (target.l2_bytes as f64 * 0.75 / bytes).floor().clamp(RUN.0, RUN.1);
    let known = images.iter().chain(plane).all(|d| d.as_const().is_some());
    let runs = (tiles / most).ceil();
    let run = if known { (tiles / runs).ceil() } else { most };
    let products = tiles * values * inputs * outputs / target.fma_per_cycle;
    // Loads, sums and stores of both directions, two a cycle; weights of later runs come from the caches.
    let transforms = tiles * values * (4.0 * inputs + 3.0 * outputs) / target.lanes as f64;
    let again = (runs - 1.0) * stream * target.memory_bytes_per_cycle / target.l2_bytes_per_cycle;
    (run as usize, cost::LAUNCH + products.max(stream) + transforms + again)
}
