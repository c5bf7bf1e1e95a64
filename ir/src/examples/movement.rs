//! Movement: every operation on every width of element, symbolic shapes, negative steps and pads.

use super::{Example, case, dims};
use crate::dim::Dim;
use crate::ops::Op;
use crate::ops::gradient::Barrier;
use crate::ops::movement::{Concat, Expand, Interleave, Pack, Pad, PadMode, Reshape, Slice, Transpose, Unpack};

/// One type of each width.
const WIDTHS: [&str; 5] = ["bool", "f16", "f32", "i64", "u8"];

fn widths(op: impl Into<Op>, shapes: &[&str]) -> Vec<Example> {
    let op = op.into();
    let on = |d: &&str| {
        let inputs: Vec<String> = shapes.iter().map(|s| format!("{d}[{s}]")).collect();
        case(d, op.clone(), &inputs.iter().map(String::as_str).collect::<Vec<_>>())
    };
    WIDTHS.iter().map(on).collect()
}

pub(super) fn examples() -> Vec<Example> {
    [transposes(), shapes(), slices(), concats(), interleaves(), pads(), blocks(), barriers()].concat()
}

fn transposes() -> Vec<Example> {
    let perm = |p: &[usize]| Transpose { perm: p.to_vec() };
    let mut out = widths(perm(&[1, 2, 0]), &["2,3,4"]);
    out.extend([
        case("matrix", perm(&[1, 0]), &["f32[17,33]"]),
        case("heads", perm(&[0, 2, 1, 3]), &["f32[2,3,4,8]"]),
        case("channels", perm(&[0, 3, 1, 2]), &["f32[N,H,W,3]"]),
        case("scalar", perm(&[]), &["f32[]"]),
        case("empty", perm(&[1, 0]), &["f32[0,3]"]),
    ]);
    out
}

fn shapes() -> Vec<Example> {
    let (n, six) = (Dim::sym("N"), Dim::Const(6));
    let mut out = widths(Reshape { shape: dims("4,6") }, &["2,3,4"]);
    out.extend(widths(Expand { shape: dims("2,3,4") }, &["3,1"]));
    out.extend([
        case("flatten", Reshape { shape: vec![n * six] }, &["f32[N,2,3]"]),
        case("split", Reshape { shape: dims("N,2,3") }, &["f32[N,6]"]),
        case("scalar", Reshape { shape: vec![] }, &["f32[1,1]"]),
        case("scalar", Expand { shape: dims("3,2") }, &["f32[]"]),
        case("symbolic", Expand { shape: dims("N,4") }, &["f32[4]"]).binders(&["f32[N]"]),
        case("rows", Expand { shape: dims("N,4,2") }, &["f32[N,1,2]"]),
        case("empty", Expand { shape: dims("0,3") }, &["f32[3]"]),
    ]);
    out
}

fn slices() -> Vec<Example> {
    let slice = |starts: &str, sizes: &str, steps: &[i64]| Slice { starts: dims(starts), sizes: dims(sizes), steps: steps.to_vec() };
    let (n, one) = (Dim::sym("N"), Dim::Const(1));
    let mut out = widths(slice("0,1,2", "2,2,3", &[]), &["2,4,6"]);
    out.extend([
        case("steps", slice("0,1", "3,2", &[2, 3]), &["f32[5,6]"]),
        case("reversed", slice("4,5", "5,3", &[-1, -2]), &["f32[5,6]"]),
        case("last", Slice { starts: vec![n - one, Dim::Const(0)], sizes: dims("1,4"), steps: vec![] }, &["f32[N,4]"]),
        case("symbolic", slice("0,1", "N,2", &[]), &["f32[N,4]"]),
        case("empty", slice("2,0", "0,3", &[]), &["f32[2,3]"]),
        case("scalar", slice("", "", &[]), &["f32[]"]),
    ]);
    out
}

fn barriers() -> Vec<Example> {
    let mut out = widths(Barrier { turn: 1 }, &["2,3"]);
    out.push(case("image", Barrier { turn: 2 }, &["f32[N,3,H,W]"]));
    out
}

fn concats() -> Vec<Example> {
    let mut out = widths(Concat { axis: 1 }, &["2,3,2", "2,1,2", "2,4,2"]);
    out.extend([
        case("one", Concat { axis: 0 }, &["f32[2,3]"]),
        case("channels", Concat { axis: 1 }, &["f32[N,2,H,W]", "f32[N,3,H,W]"]),
        case("grown", Concat { axis: 0 }, &["f32[N,3]", "f32[L,3]", "f32[1,3]"]),
        case("empty", Concat { axis: 0 }, &["f32[0,3]", "f32[2,3]"]),
    ]);
    out
}

fn interleaves() -> Vec<Example> {
    let by = |steps: &[usize]| Interleave { steps: steps.to_vec() };
    let mut out = widths(by(&[1, 2]), &["3,3", "3,2"]);
    out.extend([
        case("one", by(&[1, 1]), &["f32[2,3]"]),
        case("image", by(&[1, 1, 2, 2]), &["f32[2,3,3,4]", "f32[2,3,3,4]", "f32[2,3,2,4]", "f32[2,3,2,4]"]),
        case("lanes", by(&[1, 3, 1]), &["f32[2,2,16]", "f32[2,2,16]", "f32[2,1,16]"]),
        case("symbolic", by(&[1, 2]), &["f32[N,W]", "f32[N,W]"]),
    ]);
    out
}

fn pads() -> Vec<Example> {
    let pad = |mode, lo: &str, hi: &str| Pad { mode, lo: dims(lo), hi: dims(hi) };
    let mut out = widths(pad(PadMode::Constant, "1,0", "0,2"), &["2,3"]);
    for mode in PadMode::ALL.iter().copied() {
        let mut add = |name: &str, op: Pad, x: &[&str]| out.push(case(&format!("{}.{name}", mode.word()), op, x));
        add("image", pad(mode, "0,0,1,2", "0,0,2,1"), &["f32[1,2,4,5]"]);
        add("far", pad(mode, "5,0", "7,1"), &["f32[3,2]"]);
        add("cut", pad(mode, "-1,2", "2,-1"), &["f32[4,5]"]);
        add("symbolic", pad(mode, "0,1", "0,2"), &["f32[N,W]"]);
    }
    out.push(case("value", pad(PadMode::Constant, "1,1", "1,1"), &["f32[2,3]", "f32[]"]));
    out.push(case("value.i8", pad(PadMode::Constant, "0,3", "1,0"), &["i8[2,3]", "i8[1]"]));
    out.push(case("grown", Pad { mode: PadMode::Constant, lo: dims("N,0"), hi: dims("0,1") }, &["f32[N,2]"]));
    out
}

fn blocks() -> Vec<Example> {
    vec![
        case("whole", Pack { block: 16 }, &["f32[2,32,3,5]"]),
        case("partial", Pack { block: 16 }, &["f32[2,19,3,5]"]),
        case("small", Pack { block: 4 }, &["i8[1,6,7]"]),
        case("flat", Pack { block: 16 }, &["f32[2,20]"]),
        case("symbolic", Pack { block: 16 }, &["f32[N,19,H,W]"]),
        case("whole", Unpack { channels: 32 }, &["f32[2,2,3,5,16]"]),
        case("partial", Unpack { channels: 19 }, &["f32[2,2,3,5,16]"]),
        case("flat", Unpack { channels: 20 }, &["f32[2,2,16]"]),
        case("symbolic", Unpack { channels: 19 }, &["f32[N,2,H,W,16]"]),
    ]
}
