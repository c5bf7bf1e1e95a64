//! Matrix products and convolutions: shapes, layouts, epilogues.

use super::{Example, Values, case};
use crate::dim::Dim;
use crate::ops::composite::activation::Act;
use crate::ops::contract::{Conv, ConvTranspose, Layout, MatMul, Post};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::winograd::{Form, filters};

pub(super) fn examples() -> Vec<Example> {
    [products(), plain(), blocked(), winograd(), transposed()].concat()
}

/// Every kind of step, the way fusion hangs them on a layer.
fn epilogue() -> Vec<Post> {
    vec![Post::Scale, Post::Bias, Post::Add, Post::Act(Act::Clip { lo: 0.0.into(), hi: 6.0.into() })]
}

fn products() -> Vec<Example> {
    let op = MatMul { transposed: false, packed: Dim::Const(0), post: vec![] };
    let mut out: Vec<Example> = ["f32", "f64", "f16", "bf16", "i8", "i32", "i64", "u8", "u64"]
        .iter()
        .map(|d| case(d, op.clone(), &[&format!("{d}[3,5]"), &format!("{d}[5,4]")]))
        .collect();
    let mut add = |name: &str, op: MatMul, x: &[&str]| out.push(case(name, op, x));
    add("large", op.clone(), &["f32[9,33]", "f32[33,35]"]);
    add("batch", op.clone(), &["f32[2,3,4]", "f32[2,4,5]"]);
    add("broadcast", op.clone(), &["f32[2,1,3,4]", "f32[3,4,5]"]);
    add("shared", op.clone(), &["f32[2,3,4]", "f32[4,5]"]);
    add("dot", op.clone(), &["f32[7]", "f32[7]"]);
    add("vector", op.clone(), &["f32[3,7]", "f32[7]"]);
    add("row", op.clone(), &["f32[7]", "f32[7,18]"]);
    add("row.batch", op.clone(), &["f32[7]", "f32[2,7,3]"]);
    add("empty", op.clone(), &["f32[2,0]", "f32[0,3]"]);
    add("no_columns", op.clone(), &["f32[N,3]", "f32[3,0]"]);
    add("symbolic", op.clone(), &["f32[N,12]", "f32[12,20]"]);
    add("symbolic.all", op.clone(), &["f32[N,L,K]", "f32[N,K,W]"]);
    let turned = MatMul { transposed: true, ..op.clone() };
    add("transposed", turned.clone(), &["f32[3,7]", "f32[18,7]"]);
    add("transposed.batch", turned, &["f32[2,3,7]", "f32[2,5,7]"]);
    let packed = MatMul { packed: Dim::Const(35), ..op.clone() };
    add("packed", packed.clone(), &["f32[7,10]", "f32[3,10,16]"]);
    add("packed.narrow", packed.clone(), &["f32[7,10]", "bf16[3,10,16]"]);
    add("packed.symbolic", packed.clone(), &["f32[N,10]", "f32[3,10,16]"]);
    add("packed.batch", packed.clone(), &["f32[2,1,7,10]", "f32[4,3,10,16]"]);
    let open = Dim::sym("N") * Dim::Const(16) - Dim::Const(3);
    add("packed.open", MatMul { packed: open, ..packed.clone() }, &["f32[2,L,K]", "f32[2,N,K,16]"]);
    add("packed.post", MatMul { post: epilogue(), ..packed }, &["f32[7,10]", "f32[3,10,16]", "f32[35]", "f32[35]", "f32[7,35]"]);
    add("post", MatMul { post: epilogue(), ..op.clone() }, &["f32[N,6]", "f32[6,5]", "f32[5]", "f32[5]", "f32[N,5]"]);
    add("bias", MatMul { post: vec![Post::Bias], ..op.clone() }, &["i32[2,6]", "i32[6,5]", "i32[5]"]);
    add("gelu", MatMul { post: vec![Post::Bias, Post::Act(Act::Gelu {})], ..op }, &["f32[4,8]", "f32[8,16]", "f32[16]"]);
    out
}

fn conv() -> Conv {
    Conv { strides: vec![], dilations: vec![], pads: vec![], group: 1, layout: Layout::Plain, inputs: 0, outputs: 0, post: vec![] }
}

fn plain() -> Vec<Example> {
    let same = Conv { pads: vec![1; 4], ..conv() };
    let relu = || Post::Act(Act::Fn(ScalarFn::Relu));
    vec![
        case("f32", conv(), &["f32[1,2,5,6]", "f32[3,2,3,3]"]),
        case("f64", same.clone(), &["f64[1,2,4,4]", "f64[3,2,3,3]"]),
        case("f16", same.clone(), &["f16[1,2,4,4]", "f16[3,2,3,3]"]),
        case("i32", same.clone(), &["i32[1,2,4,4]", "i32[3,2,3,3]"]),
        case("pointwise", conv(), &["f32[2,5,4,3]", "f32[7,5,1,1]"]),
        case("strided", Conv { strides: vec![2, 3], pads: vec![1, 0, 0, 2], ..conv() }, &["f32[2,3,7,8]", "f32[4,3,3,2]"]),
        case("dilated", Conv { dilations: vec![2, 3], pads: vec![2; 4], ..conv() }, &["f32[1,2,6,7]", "f32[3,2,2,3]"]),
        case("grouped", Conv { group: 2, ..same.clone() }, &["f32[2,4,5,5]", "f32[6,2,3,3]"]),
        case("depthwise", Conv { group: 4, strides: vec![2, 2], ..same.clone() }, &["f32[2,4,7,7]", "f32[4,1,3,3]"]),
        case("multiplier", Conv { group: 3, ..same.clone() }, &["f32[1,3,5,5]", "f32[6,1,3,3]"]),
        case("line", Conv { strides: vec![2], pads: vec![1, 2], ..conv() }, &["f32[2,3,9]", "f32[4,3,4]"]),
        case("volume", Conv { pads: vec![0, 1, 0, 1, 0, 1], ..conv() }, &["f32[1,2,3,4,3]", "f32[3,2,2,2,2]"]),
        case("cut", Conv { pads: vec![-1, 0, -1, 1], ..conv() }, &["f32[1,2,6,5]", "f32[3,2,2,2]"]),
        case("batch", same.clone(), &["f32[N,3,5,5]", "f32[4,3,3,3]"]),
        case("symbolic", Conv { strides: vec![2, 2], ..same.clone() }, &["f32[N,3,H,W]", "f32[4,3,3,3]"]),
        case("post", Conv { post: epilogue(), ..same.clone() }, &["f32[2,3,5,5]", "f32[4,3,3,3]", "f32[4]", "f32[4]", "f32[2,4,5,5]"]),
        case(
            "residual",
            Conv { post: vec![Post::Bias, Post::Add, relu()], ..same.clone() },
            &["f32[N,3,H,W]", "f32[4,3,3,3]", "f32[4]", "f32[N,4,H,W]"],
        ),
        case("swish", Conv { post: vec![Post::Act(Act::Swish { alpha: 1.0.into() })], ..same }, &["f32[1,3,4,4]", "f32[4,3,3,3]"]),
    ]
}

fn blocked() -> Vec<Example> {
    let same = Conv { pads: vec![1; 4], ..conv() };
    let with = |layout, op: &Conv| Conv { layout, ..op.clone() };
    let (b, e, d) = (Layout::Blocked(16), Layout::Enter(16), Layout::Depthwise(16));
    let strided = Conv { strides: vec![2, 2], ..same.clone() };
    let fused = Conv { post: epilogue(), ..same.clone() };
    vec![
        case("blocked", with(b, &same), &["f32[2,2,5,6,16]", "f32[3,2,3,3,16,16]"]),
        case("blocked.pointwise", with(b, &conv()), &["f32[1,2,7,7,16]", "f32[2,2,1,1,16,16]"]),
        case("blocked.narrow", with(b, &fused), &["f32[1,2,5,6,16]", "bf16[1,2,3,3,16,16]", "f32[16]", "f32[16]", "f32[1,1,5,6,16]"]),
        case("blocked.strided", with(b, &strided), &["f32[1,1,9,7,16]", "f32[2,1,3,3,16,16]"]),
        case("blocked.dilated", Conv { dilations: vec![2, 2], pads: vec![2; 4], ..with(b, &conv()) }, &["f32[1,1,6,7,16]", "f32[1,1,3,3,16,16]"]),
        case("blocked.grouped", Conv { group: 2, ..with(b, &same) }, &["f32[1,2,5,5,16]", "f32[4,1,3,3,16,16]"]),
        case("blocked.line", Conv { pads: vec![1, 1], ..with(b, &conv()) }, &["f32[2,1,9,16]", "f32[2,1,3,16,16]"]),
        case("blocked.small", with(Layout::Blocked(4), &same), &["f32[2,2,5,6,4]", "f32[3,2,3,3,4,4]"]),
        case("blocked.symbolic", with(b, &strided), &["f32[N,1,H,W,16]", "f32[2,1,3,3,16,16]"]),
        case("blocked.post", with(b, &fused), &["f32[N,1,5,6,16]", "f32[2,1,3,3,16,16]", "f32[32]", "f32[32]", "f32[N,2,5,6,16]"]),
        case("enter", with(e, &strided), &["f32[2,3,9,8]", "f32[2,3,3,3,16]"]),
        case("enter.symbolic", with(e, &strided), &["f32[N,3,H,W]", "f32[2,3,3,3,16]"]),
        case("enter.post", with(e, &fused), &["f32[2,3,5,6]", "f32[1,3,3,3,16]", "f32[16]", "f32[16]", "f32[2,1,5,6,16]"]),
        case("depthwise.blocked", Conv { group: 32, ..with(d, &same) }, &["f32[2,2,5,6,16]", "f32[2,3,3,16]"]),
        case("depthwise.strided", Conv { group: 16, ..with(d, &strided) }, &["f32[1,1,9,7,16]", "f32[1,3,3,16]"]),
        case("depthwise.symbolic", Conv { group: 16, ..with(d, &strided) }, &["f32[N,1,H,W,16]", "f32[1,3,3,16]"]),
        case("depthwise.post", Conv { group: 16, ..with(d, &fused) }, &["f32[2,1,5,6,16]", "f32[1,3,3,16]", "f32[16]", "f32[16]", "f32[2,1,5,6,16]"]),
    ]
}

/// Patches are made of filters: others have no meaning.
fn winograd() -> Vec<Example> {
    let make = |name: &str, (tile, taps): (usize, usize), op: Conv, types: &[&str]| {
        let (b, run, form) = (16, 3, Form::new(tile, taps).expect("a form that there is"));
        let w = types[1];
        let (outputs, inputs) = if w == "1x1" { (16, 16) } else { (32, 32) };
        let values: Vec<f32> = (0..outputs * inputs * taps * taps).map(|i: usize| ((i * 37 % 101) as f32 - 48.0) / 1024.0).collect();
        let patches = filters(tile, b, &Tensor::new(&[outputs, inputs, taps, taps], &values)).expect("filters of a known size");
        let ty = patches.ty().to_string();
        let types: Vec<&str> = types.iter().enumerate().map(|(i, t)| if i == 1 { ty.as_str() } else { *t }).collect();
        case(name, Conv { layout: Layout::Winograd { block: b, form, run }, ..op }, &types).values(1, Values::Given(patches))
    };
    let same = Conv { pads: vec![1; 4], ..conv() };
    let fused = Conv { post: epilogue(), ..same.clone() };
    vec![
        make("winograd.4", (4, 3), same.clone(), &["f32[2,2,9,6,16]", "2x2"]),
        make("winograd.2", (2, 3), same.clone(), &["f32[1,1,5,7,16]", "1x1"]),
        make("winograd.valid", (4, 3), conv(), &["f32[1,1,8,11,16]", "1x1"]),
        make("winograd.uneven", (2, 3), Conv { pads: vec![0, 2, 1, 0], ..conv() }, &["f32[1,1,4,5,16]", "1x1"]),
        make("winograd.window2", (3, 2), conv(), &["f32[1,1,8,7,16]", "1x1"]),
        make("winograd.window4", (3, 4), same.clone(), &["f32[1,1,8,7,16]", "1x1"]),
        make("winograd.window5", (2, 5), Conv { pads: vec![2; 4], ..conv() }, &["f32[1,1,6,7,16]", "1x1"]),
        make("winograd.symbolic", (4, 3), same, &["f32[N,2,H,W,16]", "2x2"]),
        make("winograd.post", (4, 3), fused, &["f32[N,2,5,6,16]", "2x2", "f32[32]", "f32[32]", "f32[N,2,5,6,16]"]),
    ]
}

fn transposed() -> Vec<Example> {
    let op = ConvTranspose { strides: vec![], dilations: vec![], pads: vec![], output_padding: vec![], group: 1, post: vec![] };
    let twice = ConvTranspose { strides: vec![2, 2], pads: vec![1; 4], ..op.clone() };
    let bias = vec![Post::Bias, Post::Act(Act::Fn(ScalarFn::Tanh))];
    vec![
        case("f32", op.clone(), &["f32[1,2,3,4]", "f32[2,3,3,3]"]),
        case("strided", twice.clone(), &["f32[2,3,4,5]", "f32[3,2,4,4]"]),
        case("output_padding", ConvTranspose { output_padding: vec![1, 0], ..twice.clone() }, &["f32[1,2,3,4]", "f32[2,3,3,3]"]),
        case("dilated", ConvTranspose { dilations: vec![2, 1], ..op.clone() }, &["f32[1,2,3,4]", "f32[2,3,2,3]"]),
        case("grouped", ConvTranspose { group: 2, pads: vec![1, 0, 0, 1], ..op.clone() }, &["f32[2,4,3,4]", "f32[4,3,3,2]"]),
        case("line", ConvTranspose { strides: vec![3], ..op.clone() }, &["f32[2,2,5]", "f32[2,3,2]"]),
        case("volume", ConvTranspose { strides: vec![2, 1, 2], ..op.clone() }, &["f32[1,2,2,3,2]", "f32[2,2,2,2,2]"]),
        case("symbolic", twice.clone(), &["f32[N,3,H,W]", "f32[3,2,4,4]"]),
        case("post", ConvTranspose { post: bias, ..twice }, &["f32[2,3,3,3]", "f32[3,5,4,4]", "f32[5]"]),
        case("f64", op.clone(), &["f64[1,2,3,3]", "f64[2,1,2,2]"]),
        case("i32", op, &["i32[1,2,3,3]", "i32[2,1,2,2]"]),
    ]
}
