//! Forms of opsets 1 to 10 that later versions dropped or changed. Expected numbers are worked out by hand from the specification of the
//! version.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::Tensor;
use nnc_ir::eval::{self, Env};

/// The results of an operator whose operands are all inputs, of open lengths where `open` says so.
fn results(opset: i64, op: NodeProto, operands: &[(&str, Tensor)], open: &[&str]) -> nnc_ir::Result<Vec<Tensor>> {
    let declared = |(n, t): &(&str, Tensor)| {
        let dims: Vec<String> = t.shape().iter().enumerate().map(|(i, d)| if open.contains(n) { format!("{n}{i}") } else { d.to_string() }).collect();
        value(n, t.dtype().abi_code(), &dims.join(","))
    };
    let m = load(&single(opset, op, operands.iter().map(declared).collect(), &[])).unwrap_or_else(|e| panic!("{e}"));
    let feeds: Vec<Tensor> = operands.iter().map(|(_, t)| t.clone()).collect();
    eval::run(&m.graph, &feeds, &Env::default())
}

fn of(opset: i64, op: NodeProto, operands: &[(&str, Tensor)]) -> Vec<Tensor> {
    results(opset, op, operands, &[]).unwrap_or_else(|e| panic!("{e}"))
}

fn ramp(shape: &[usize]) -> Tensor {
    f32s(shape, &(0..shape.iter().product::<usize>()).map(|i| i as f32).collect::<Vec<_>>())
}

fn close(got: &Tensor, want: &[f64]) {
    let got = got.to_f64s();
    assert!(got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} is not {want:?}");
}

#[test]
fn resize_of_opset_10_rounds_towards_the_smaller_image() {
    let image = f32s(&[1, 1, 2, 4], &[1., 2., 3., 4., 5., 6., 7., 8.]);
    let resized = |mode: &str, scales: &[f32]| {
        let op = node("Resize", "x s", "y", vec![string("mode", mode)]);
        of(10, op, &[("x", image.clone()), ("s", f32s(&[4], scales))]).remove(0)
    };
    // Positions 0 and 1 / 0.6 = 1.67: the next element where the image shrinks.
    assert_eq!(resized("nearest", &[1., 1., 0.6, 0.6]), f32s(&[1, 1, 1, 2], &[1., 3.]));
    close(&resized("linear", &[1., 1., 0.6, 0.6]), &[1., 1. + 1. / 0.6]);
    assert_eq!(resized("nearest", &[1., 1., 1., 1.5]).to_f64s(), [1., 1., 2., 3., 3., 4., 5., 5., 6., 7., 7., 8.]);
}

#[test]
fn half_way_positions_are_those_of_f32() {
    // (3 + 0.5) / 0.7 - 0.5 is 4.5, of which the lower neighbour is preferred.
    let op = node("Resize", "x _ s", "y", vec![string("mode", "nearest")]);
    let y = of(11, op, &[("x", ramp(&[9])), ("s", f32s(&[1], &[0.7]))]);
    assert_eq!(y[0].to_f64s(), [0., 2., 3., 4., 6., 7.]);
}

#[test]
fn tiles_and_their_axis_may_be_inputs() {
    let tiled = |tiles: f32, axis: f32, open: &[&str]| {
        let operands = [("x", ramp(&[2, 2])), ("t", f32s(&[1], &[tiles])), ("a", f32s(&[1], &[axis]))];
        results(1, node("Tile", "x t a", "y", vec![]), &operands, open)
    };
    assert_eq!(tiled(2., 0., &[]).unwrap(), [f32s(&[4, 2], &[0., 1., 2., 3., 0., 1., 2., 3.])]);
    assert_eq!(tiled(2., 1., &["x", "t", "a"]).unwrap(), [f32s(&[2, 4], &[0., 1., 0., 1., 2., 3., 2., 3.])]);
    assert!(tiled(2., 2., &[]).is_err(), "an axis that there is not");
    let operands = [("x", ramp(&[1, 2])), ("r", i64s(&[2, 1]))];
    assert_eq!(results(6, node("Tile", "x r", "y", vec![]), &operands, &["r"]).unwrap()[0].shape(), [2, 2]);
}

#[test]
fn lengths_of_parts_may_be_inputs() {
    let parts = |opset: i64, sizes: Tensor| results(opset, node("Split", "x s", "a b", vec![]), &[("x", ramp(&[5])), ("s", sizes)], &["x", "s"]);
    for y in [parts(1, f32s(&[2], &[2., 3.])), parts(13, i64s(&[2, 3]))] {
        assert_eq!(y.unwrap(), [f32s(&[2], &[0., 1.]), f32s(&[3], &[2., 3., 4.])]);
    }
    assert!(parts(13, i64s(&[2, 2])).is_err(), "an element is left over");
    assert!(parts(13, i64s(&[2, 4])).is_err(), "an element is missing");
    assert!(parts(13, i64s(&[2, 2, 1])).is_err(), "three parts for two outputs");
}

#[test]
fn more_outputs_mean_training() {
    let operands = [("x", f32s(&[2, 1, 2], &[1., 2., 3., 4.])), ("s", f32s(&[1], &[2.])), ("b", f32s(&[1], &[1.]))];
    let statistics = [("m", f32s(&[1], &[0.])), ("v", f32s(&[1], &[1.]))];
    let attributes = || vec![float("epsilon", 0.), float("momentum", 0.5)];
    let op = |more: Vec<AttributeProto>, outputs: &str| node("BatchNormalization", "x s b m v", outputs, [attributes(), more].concat());
    let all = [&operands[..], &statistics].concat();
    let by = |mean: f64, var: f64| [1., 2., 3., 4.].map(|x: f64| 2. * (x - mean) / var.sqrt() + 1.);
    for opset in [6, 7, 9] {
        // The batch has the mean 2.5 and the variance 1.25.
        let y = of(opset, op(vec![], "y m1 v1 m2 v2"), &all);
        close(&y[0], &by(2.5, 1.25));
        y[1..].iter().zip([1.25, 1.125, 2.5, 1.25]).for_each(|(t, want)| close(t, &[want]));
        close(&of(opset, op(vec![], "y"), &all)[0], &by(0., 1.));
    }
    close(&of(6, op(vec![int("is_test", 1)], "y"), &all)[0], &by(0., 1.));
    // One set of statistics an element: means 2 and 3, variances 1 and 1.
    let pair = |a: f32, b: f32| f32s(&[1, 2], &[a, b]);
    let all = [operands[0].clone(), ("s", pair(1., 1.)), ("b", pair(0., 0.)), ("m", pair(0., 0.)), ("v", pair(1., 1.))];
    let y = of(6, op(vec![int("spatial", 0)], "y m1 v1 m2 v2"), &all);
    close(&y[0], &[-1., -1., 1., 1.]);
    close(&y[3], &[2., 3.]);
}

#[test]
fn scans_of_opset_8_end_with_their_sequences() {
    let scalar = |n: &str| value(n, F32, "");
    let body = || {
        graph(
            vec![scalar("s"), scalar("x")],
            vec![node("Add", "s x", "t", vec![]), node("Identity", "t", "u", vec![])],
            vec![scalar("t"), scalar("u")],
        )
    };
    let x = f32s(&[2, 3], &[1., 2., 3., 10., 20., 30.]);
    for (direction, all) in [(0, [1., 3., 6., 110., 130., 0.]), (1, [3., 5., 6., 120., 130., 0.])] {
        let attributes = vec![of_graph("body", body()), int("num_scan_inputs", 1), ints("directions", &[direction])];
        let operands = [("l", i64s(&[3, 2])), ("s0", f32s(&[2], &[0., 100.])), ("x", x.clone())];
        let y = of(8, node("Scan", "l s0 x", "last all", attributes), &operands);
        assert_eq!(y, [f32s(&[2], &[6., 130.]), f32s(&[2, 3], &all)], "direction {direction}");
    }
}

#[test]
fn gates_may_be_affine() {
    let operands = [("x", f32s(&[1, 1, 1], &[2.])), ("w", f32s(&[1, 1, 1], &[3.])), ("r", f32s(&[1, 1, 1], &[1.]))];
    let h = |f: &str| {
        let function = AttributeProto { name: name("activations"), strings: vec![name(f)], r#type: attribute_type::STRINGS, ..Default::default() };
        let list = |n: &str, v: f32| AttributeProto { name: name(n), floats: vec![v], r#type: attribute_type::FLOATS, ..Default::default() };
        of(7, node("RNN", "x w r", "y h", vec![function, list("activation_alpha", 0.5), list("activation_beta", 0.1)]), &operands)[1].clone()
    };
    close(&h("Affine"), &[3.1]);
    close(&h("ScaledTanh"), &[0.5 * 0.6f64.tanh()]);
}

#[test]
fn experimental_operators_of_opset_1() {
    let x = f32s(&[4], &[-2., 0., 0.5, 2.]);
    let on_x = |op: &str, attributes: Vec<AttributeProto>| of(1, node(op, "x", "y", attributes), &[("x", x.clone())])[0].clone();
    let two = || vec![float("alpha", 2.), float("beta", 0.5)];
    let each = |f: fn(f64) -> f64| x.to_f64s().into_iter().map(f).collect::<Vec<_>>();
    close(&on_x("Affine", two()), &each(|v| 2. * v + 0.5));
    close(&on_x("ScaledTanh", two()), &each(|v| 2. * (0.5 * v).tanh()));
    close(&on_x("ParametricSoftplus", two()), &each(|v| 2. * ((0.5 * v).exp() + 1.).ln()));
    close(&on_x("Scale", vec![float("scale", 3.)]), &each(|v| 3. * v));
    close(&on_x("ThresholdedRelu", vec![]), &[0., 0., 0., 2.]);
    let image = ramp(&[1, 2, 3, 4]);
    let on_image = |op: &str, attributes: Vec<AttributeProto>| of(1, node(op, "x", "y", attributes), &[("x", image.clone())])[0].clone();
    // Left, top, right, bottom.
    assert_eq!(on_image("Crop", vec![ints("border", &[1, 0, 2, 1])]), f32s(&[1, 2, 2, 1], &[1., 5., 13., 17.]));
    assert_eq!(on_image("Crop", vec![ints("border", &[1, 2, 0, 0]), ints("scale", &[1, 2])]), f32s(&[1, 2, 1, 2], &[9., 10., 21., 22.]));
    let bias = AttributeProto { name: name("bias"), floats: vec![0.5, 1.], r#type: attribute_type::FLOATS, ..Default::default() };
    let scaled = on_image("ImageScaler", vec![float("scale", 2.), bias]).to_f64s();
    assert_eq!((scaled[1], scaled[12]), (2.5, 25.));
    let centred = on_image("MeanVarianceNormalization", vec![int("across_channels", 1), int("normalize_variance", 0)]).to_f64s();
    assert_eq!((centred[0], centred[23]), (-11.5, 11.5));
    close(&on_image("MeanVarianceNormalization", vec![]), &(0..24).map(|i| ((i % 12) as f64 - 5.5) / (143f64 / 12.).sqrt()).collect::<Vec<_>>());
    let slice = [("x", ramp(&[3, 4])), ("s", i64s(&[1])), ("e", i64s(&[3])), ("a", i64s(&[1]))];
    assert_eq!(of(1, node("DynamicSlice", "x s e a", "y", vec![]), &slice)[0].to_f64s(), [1., 2., 5., 6., 9., 10.]);
    assert_eq!(of(1, node("ConstantFill", "", "y", vec![ints("shape", &[2]), float("value", 1.5)]), &[]), [f32s(&[2], &[1.5; 2])]);
    assert_eq!(of(1, node("ConstantFill", "x", "y", vec![ints("extra_shape", &[2])]), &[("x", ramp(&[3]))]), [f32s(&[3, 2], &[0.; 6])]);
    let by_contents = node("ConstantFill", "s", "y", vec![int("input_as_shape", 1), int("dtype", I64.into())]);
    assert_eq!(of(1, by_contents, &[("s", i64s(&[3]))]), [i64s(&[0; 3])]);
}
