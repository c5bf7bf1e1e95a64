//! Operators where versions of the specification differ, and where implementations are known to go wrong. Expected numbers are
//! worked out by hand from the specification's text.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::Tensor;

fn x(shape: &str) -> Vec<ValueInfoProto> {
    vec![value("x", F32, shape)]
}

/// The first result of an operator on x.
fn on(opset: i64, op: NodeProto, input: &Tensor, constants: &[(&str, Tensor)]) -> Tensor {
    let shape: Vec<String> = input.shape().iter().map(ToString::to_string).collect();
    let code = input.dtype().abi_code();
    run(&single(opset, op, vec![value("x", code, &shape.join(","))], constants), std::slice::from_ref(input)).remove(0)
}

#[test]
fn softmax_flattens_before_opset_13() {
    let t = f32s(&[2, 1, 2], &[0.; 4]);
    assert_eq!(on(11, node("Softmax", "x", "y", vec![int("axis", 0)]), &t, &[]), f32s(&[2, 1, 2], &[0.25; 4]));
    assert_eq!(on(13, node("Softmax", "x", "y", vec![int("axis", 0)]), &t, &[]), f32s(&[2, 1, 2], &[0.5; 4]));
}

#[test]
fn old_broadcasting_lies_along_an_axis() {
    let t = f32s(&[2, 2], &[0., 0., 0., 0.]);
    let b = ("b", f32s(&[2], &[1., 2.]));
    let add = |axis: Vec<AttributeProto>| node("Add", "x b", "y", [vec![int("broadcast", 1)], axis].concat());
    assert_eq!(on(6, add(vec![int("axis", 0)]), &t, std::slice::from_ref(&b)), f32s(&[2, 2], &[1., 1., 2., 2.]));
    assert_eq!(on(6, add(vec![]), &t, &[b]), f32s(&[2, 2], &[1., 2., 1., 2.]));
}

#[test]
fn clip_bounds_move_from_attributes_to_inputs() {
    let t = f32s(&[3], &[-2., 0.5, 2.]);
    assert_eq!(on(6, node("Clip", "x", "y", vec![float("min", -1.), float("max", 1.)]), &t, &[]), f32s(&[3], &[-1., 0.5, 1.]));
    let bounds = [("lo", Tensor::scalar(1f32)), ("hi", Tensor::scalar(-1f32))];
    assert_eq!(on(13, node("Clip", "x lo hi", "y", vec![]), &t, &bounds), f32s(&[3], &[-1.; 3]), "max where min > max");
    assert_eq!(on(13, node("Clip", "x _ hi", "y", vec![]), &t, &bounds[1..]), f32s(&[3], &[-2., -1., -1.]));
    let ints = Tensor::new(&[2], &[-5i32, 5]);
    assert_eq!(on(13, node("Clip", "x lo", "y", vec![]), &ints, &[("lo", Tensor::scalar(0i32))]), Tensor::new(&[2], &[0i32, 5]));
}

#[test]
fn same_padding_counts_the_dilated_kernel() {
    // Kernel 2 with dilation 3 spans 4: three elements of padding, the odd one at the end.
    let conv = |auto: &str| node("Conv", "x w", "y", vec![string("auto_pad", auto), ints("dilations", &[3])]);
    let t = f32s(&[1, 1, 5], &[1., 2., 3., 4., 5.]);
    let w = [("w", f32s(&[1, 1, 2], &[1., 10.]))];
    assert_eq!(on(11, conv("SAME_UPPER"), &t, &w), f32s(&[1, 1, 5], &[30., 41., 52., 3., 4.]));
    assert_eq!(on(11, conv("SAME_LOWER"), &t, &w), f32s(&[1, 1, 5], &[20., 30., 41., 52., 3.]));
}

#[test]
fn same_padding_of_symbolic_lengths() {
    // Stride 2 makes the padding depend on the length: 5 takes (1, 1), 4 takes (0, 1).
    let pool = |op: &str| {
        single(12, node(op, "x", "y", vec![string("auto_pad", "SAME_UPPER"), ints("kernel_shape", &[3]), ints("strides", &[2])]), x("1,1,n"), &[])
    };
    let (five, four) = (f32s(&[1, 1, 5], &[1., 2., 3., 4., 5.]), f32s(&[1, 1, 4], &[-1., -2., -3., -4.]));
    assert_eq!(run(&pool("AveragePool"), std::slice::from_ref(&five)), [f32s(&[1, 1, 3], &[1.5, 3., 4.5])]);
    assert_eq!(run(&pool("MaxPool"), &[five]), [f32s(&[1, 1, 3], &[2., 4., 5.])]);
    assert_eq!(run(&pool("MaxPool"), std::slice::from_ref(&four)), [f32s(&[1, 1, 2], &[-1., -3.])]);
    assert_eq!(run(&pool("AveragePool"), &[four]), [f32s(&[1, 1, 2], &[-2., -3.5])]);
}

#[test]
fn output_shape_overrides_pads() {
    let op = node("ConvTranspose", "x w", "y", vec![ints("strides", &[2]), ints("output_shape", &[6])]);
    // The natural length is 2*2+3 = 7; without auto_pad the odd element is cut off at the beginning.
    let y = on(11, op, &f32s(&[1, 1, 3], &[1., 2., 3.]), &[("w", f32s(&[1, 1, 3], &[1., 1., 1.]))]);
    assert_eq!(y, f32s(&[1, 1, 6], &[1., 3., 2., 5., 3., 3.]));
}

#[test]
fn same_padding_of_a_window_shorter_than_its_stride_moves_the_result() {
    // A total padding of 1 - 3 has -1 on each side.
    for (auto_pad, y) in [("SAME_UPPER", [0., 1., 0., 0., 2., 0.]), ("SAME_LOWER", [0., 1., 0., 0., 2., 0.])] {
        let op = node("ConvTranspose", "x w", "y", vec![ints("strides", &[3]), string("auto_pad", auto_pad)]);
        assert_eq!(on(11, op, &f32s(&[1, 1, 2], &[1., 2.]), &[("w", f32s(&[1, 1, 1], &[1.]))]), f32s(&[1, 1, 6], &y));
    }
}

#[test]
fn ceil_mode_drops_windows_that_start_in_the_padding() {
    let pool = node("MaxPool", "x", "y", vec![ints("kernel_shape", &[1]), ints("strides", &[2]), ints("pads", &[0, 1]), int("ceil_mode", 1)]);
    assert_eq!(on(12, pool, &f32s(&[1, 1, 4], &[1., 2., 3., 4.]), &[]), f32s(&[1, 1, 2], &[1., 3.]));
}

#[test]
fn reshape_copies_fills_and_takes_zeros() {
    let t = f32s(&[2, 3, 4], &[0.; 24]);
    let to = |allow: i64, input: &Tensor, shape: &[i64]| {
        let op = node("Reshape", "x s", "y", vec![int("allowzero", allow)]);
        on(14, op, input, &[("s", i64s(shape))]).shape().to_vec()
    };
    assert_eq!(to(0, &t, &[0, -1]), [2, 12]);
    assert_eq!(to(0, &t, &[-1]), [24]);
    assert_eq!(to(1, &f32s(&[0, 3], &[]), &[3, 0]), [3, 0]);
    let m = single(14, node("Reshape", "x s", "y", vec![]), x("n,3,4"), &[("s", i64s(&[0, 2, -1]))]);
    let imported = load(&m).unwrap();
    assert_eq!(imported.graph.ty(imported.graph.outputs[0].value).to_string(), "f32[n,2,6]");
}

#[test]
fn slices_clamp_count_from_the_end_and_run_backwards() {
    let t = f32s(&[5], &[0., 1., 2., 3., 4.]);
    let cut = |start: i64, end: i64, step: i64| {
        let parts = [("s", i64s(&[start])), ("e", i64s(&[end])), ("a", i64s(&[-1])), ("k", i64s(&[step]))];
        on(13, node("Slice", "x s e a k", "y", vec![]), &t, &parts).to_f64s()
    };
    assert_eq!(cut(-3, i64::MAX, 1), [2., 3., 4.]);
    assert_eq!(cut(-100, 2, 1), [0., 1.]);
    assert_eq!(cut(3, 1, 1), [0.; 0]);
    assert_eq!(cut(-1, i64::MIN, -2), [4., 2., 0.]);
    assert_eq!(cut(100, 0, -1), [4., 3., 2., 1.]);
    assert_eq!(cut(1, -1, 2), [1., 3.]);
    assert_eq!(cut(1, i64::MAX, i64::MAX), [1.]);
    assert_eq!(cut(3, i64::MIN, i64::MIN), [3.]);
}

#[test]
fn a_scalar_has_no_indices() {
    let found = |x: f32| run(&single(13, node("NonZero", "x", "y", vec![]), vec![value("x", F32, "")], &[]), &[Tensor::scalar(x)]).remove(0);
    assert_eq!((found(3.).shape(), found(0.).shape()), (&[0, 1][..], &[0, 0][..]));
}

#[test]
fn slices_of_symbolic_lengths_clamp_when_they_run() {
    let parts = [("s", i64s(&[1])), ("e", i64s(&[-1]))];
    let m = single(13, node("Slice", "x s e", "y", vec![]), x("n"), &parts);
    for (n, want) in [(4, vec![1., 2.]), (2, vec![]), (1, vec![]), (0, vec![])] {
        let t = f32s(&[n], &(0..n).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(run(&m, &[t])[0].to_f64s(), want, "n = {n}");
    }
}

#[test]
fn slice_bounds_may_be_fed() {
    let inputs = vec![value("x", F32, "n"), value("s", I64, "1"), value("e", I64, "1")];
    let m = single(13, node("Slice", "x s e", "y", vec![]), inputs, &[]);
    let t = f32s(&[4], &[0., 1., 2., 3.]);
    let at = |s: i64, e: i64| run(&m, &[t.clone(), i64s(&[s]), i64s(&[e])]).remove(0).to_f64s();
    assert_eq!(at(1, 3), [1., 2.]);
    assert_eq!(at(-2, i64::MAX), [2., 3.]);
    assert_eq!(at(3, 1), [0.; 0]);
}

#[test]
fn integer_division_and_remainder() {
    let t = Tensor::new(&[4], &[-7i32, 7, -7, 7]);
    let by = [("b", Tensor::new(&[4], &[2i32, -2, -2, 2]))];
    assert_eq!(on(14, node("Div", "x b", "y", vec![]), &t, &by), Tensor::new(&[4], &[-3i32, -3, 3, 3]));
    assert_eq!(on(13, node("Mod", "x b", "y", vec![]), &t, &by), Tensor::new(&[4], &[1i32, -1, -1, 1]));
    assert_eq!(on(13, node("Mod", "x b", "y", vec![int("fmod", 1)]), &t, &by), Tensor::new(&[4], &[-1i32, 1, -1, 1]));
}

#[test]
fn reductions_of_nothing() {
    let empty = f32s(&[2, 0], &[]);
    let reduce = |name: &str| on(13, node(name, "x", "y", vec![ints("axes", &[1]), int("keepdims", 0)]), &empty, &[]).to_f64s();
    assert_eq!(reduce("ReduceProd"), [1., 1.]);
    assert_eq!(reduce("ReduceMax"), [f64::NEG_INFINITY; 2]);
    assert_eq!(reduce("ReduceMin"), [f64::INFINITY; 2]);
    assert!(reduce("ReduceMean").iter().all(|x| x.is_nan()));
    assert_eq!(reduce("ReduceLogSumExp"), [f64::NEG_INFINITY; 2]);
}

#[test]
fn log_sum_exp_does_not_overflow() {
    let t = f32s(&[2], &[1000., 1000.]);
    let y = on(13, node("ReduceLogSumExp", "x", "y", vec![int("keepdims", 0)]), &t, &[]).to_f64s();
    assert!((y[0] - (1000.0 + 2f64.ln())).abs() < 1e-4, "{y:?}");
}

#[test]
fn uneven_splits_from_opset_18_on() {
    let m = single(18, node("Split", "x", "a b", vec![int("num_outputs", 2)]), x("5"), &[]);
    let y = run(&m, &[f32s(&[5], &[1., 2., 3., 4., 5.])]);
    assert_eq!(y, [f32s(&[3], &[1., 2., 3.]), f32s(&[2], &[4., 5.])]);
    let p = problems(&single(13, node("Split", "x", "a b", vec![]), x("5"), &[]));
    assert!(p[0].contains("2 equal parts of axis 0 of f32[5]"), "{p:?}");
}

#[test]
fn batch_norm_in_training_updates_its_statistics() {
    let ones = |v: f32| f32s(&[1], &[v]);
    let constants = [("s", ones(1.)), ("b", ones(0.)), ("m", ones(10.)), ("v", ones(20.))];
    let op = node("BatchNormalization", "x s b m v", "y mean var", vec![int("training_mode", 1), float("momentum", 0.5), float("epsilon", 0.)]);
    let y = run(&single(15, op, x("2,1"), &constants), &[f32s(&[2, 1], &[1., 3.])]);
    // Mean 2 and variance 1 of the batch.
    assert_eq!(y, [f32s(&[2, 1], &[-1., 1.]), ones(6.), ones(10.5)]);
}

#[test]
fn dropout_is_the_identity_and_its_mask_all_ones() {
    let y = run(&single(13, node("Dropout", "x", "y mask", vec![]), x("2"), &[]), &[f32s(&[2], &[1., 2.])]);
    assert_eq!(y, [f32s(&[2], &[1., 2.]), Tensor::new(&[2], &[true, true])]);
    let training = [("ratio", Tensor::scalar(0f32)), ("mode", Tensor::scalar(true))];
    let y = run(&single(13, node("Dropout", "x ratio mode", "y", vec![]), x("2"), &training), &[f32s(&[2], &[1., 2.])]);
    assert_eq!(y, [f32s(&[2], &[1., 2.])], "nothing is dropped in training either");
}

#[test]
fn nearest_resizing_repeats_also_symbolic_lengths() {
    let scales = [("s", f32s(&[3], &[1., 1., 2.]))];
    let attributes = vec![string("coordinate_transformation_mode", "asymmetric"), string("nearest_mode", "floor")];
    let m = single(13, node("Resize", "x _ s", "y", attributes), x("1,1,n"), &scales);
    assert_eq!(run(&m, &[f32s(&[1, 1, 2], &[1., 2.])]), [f32s(&[1, 1, 4], &[1., 1., 2., 2.])]);
}

#[test]
fn an_axis_that_only_the_run_finds_unresized_stays() {
    let attributes = ["tf_half_pixel_for_nn", "ceil"].into_iter().zip(["coordinate_transformation_mode", "nearest_mode"]);
    let attributes: Vec<AttributeProto> = attributes.map(|(v, n)| string(n, v)).collect();
    let sizes = [("s", i64s(&[2, 4]))];
    let m = single(13, node("Resize", "x _ _ s", "y", attributes), x("n,2"), &sizes);
    // Positions 0.25, 0.75, 1.25 and 1.75 along the second axis.
    let want = f32s(&[2, 4], &[2., 2., 2., 2., 4., 4., 4., 4.]);
    assert_eq!(run(&m, &[f32s(&[2, 2], &[1., 2., 3., 4.])]), [want]);
}

#[test]
fn triangles_of_strings_have_empty_ones_beside_them() {
    let text = |s: [&str; 4]| Tensor::text(&[2, 2], s.map(Into::into).to_vec()).unwrap();
    let m = single(14, node("Trilu", "x", "y", vec![]), vec![value("x", 8, "2,2")], &[]);
    assert_eq!(run(&m, &[text(["a", "b", "c", "d"])]), [text(["a", "b", "", "d"])]);
}

/// Sampling as the specification has it, of one channel of one image.
fn pooled(image: &[f32], (h, w): (usize, usize), roi: [f32; 4], (rows, columns): (usize, usize), max: bool) -> Vec<f64> {
    let [x0, y0, x1, y1] = roi.map(|v| v - 0.5);
    let (high, wide) = ((y1 - y0) / rows as f32, (x1 - x0) / columns as f32);
    let (gy, gx) = (high.ceil().max(0.) as usize, wide.ceil().max(0.) as usize);
    let read = |y: f32, x: f32| -> [f64; 4] {
        if y < -1. || y > h as f32 || x < -1. || x > w as f32 {
            return [0.; 4];
        }
        let axis = |v: f32, n: usize| {
            let v = v.max(0.).min(n as f32 - 1.);
            (v as usize, (v as usize + 1).min(n - 1), f64::from(v - v.floor()))
        };
        let ((ya, yb, fy), (xa, xb, fx)) = (axis(y, h), axis(x, w));
        let v = |y: usize, x: usize| f64::from(image[y * w + x]);
        [(1. - fy) * (1. - fx) * v(ya, xa), (1. - fy) * fx * v(ya, xb), fy * (1. - fx) * v(yb, xa), fy * fx * v(yb, xb)]
    };
    let bin = |k: usize| {
        let (row, column) = (k / columns, k % columns);
        let at = |p: usize| {
            let (i, j) = (p / gx, p % gx);
            let y = y0 + row as f32 * high + (i as f32 + 0.5) * high / gy as f32;
            read(y, x0 + column as f32 * wide + (j as f32 + 0.5) * wide / gx as f32)
        };
        let points: Vec<[f64; 4]> = (0..gy * gx).map(at).collect();
        match max {
            true => points.iter().flatten().copied().reduce(f64::max).unwrap_or(0.),
            false => points.iter().flatten().sum::<f64>() / points.len().max(1) as f64,
        }
    };
    (0..rows * columns).map(bin).collect()
}

#[test]
fn regions_are_read_at_as_many_points_as_their_size_asks_for() {
    let image: Vec<f32> = (0..72).map(|i| ((i * 29) % 31) as f32 - 15.).collect();
    // One wide, one small, one partly outside, one empty.
    let rois = [[0.5f32, 1., 8., 6.5], [2., 2., 3., 3.], [-3., -2., 4., 11.], [5., 5., 5., 5.]];
    for mode in ["avg", "max"] {
        let attributes = vec![int("output_height", 3), int("output_width", 2), string("mode", mode)];
        let inputs = vec![value("x", F32, "1,1,8,9"), value("r", F32, "n,4"), value("b", I64, "n")];
        let m = single(16, node("RoiAlign", "x r b", "y", attributes), inputs, &[]);
        let y = run(&m, &[f32s(&[1, 1, 8, 9], &image), f32s(&[4, 4], rois.as_flattened()), i64s(&[0; 4])]).remove(0);
        assert_eq!(y.shape(), [4, 1, 3, 2]);
        let want: Vec<f64> = rois.iter().flat_map(|r| pooled(&image, (8, 9), *r, (3, 2), mode == "max")).collect();
        assert!(y.to_f64s().iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "{mode}: {y:?} is not {want:?}");
        let none = run(&m, &[f32s(&[1, 1, 8, 9], &image), f32s(&[0, 4], &[]), i64s(&[])]).remove(0);
        assert_eq!(none.shape(), [0, 1, 3, 2]);
        let far = eval(&m, &[f32s(&[1, 1, 8, 9], &image), f32s(&[1, 4], &[0., 0., f32::INFINITY, 1.]), i64s(&[0])]);
        assert!(far.is_err(), "{far:?}");
    }
}

fn eval(m: &ModelProto, inputs: &[Tensor]) -> nnc_ir::Result<Vec<Tensor>> {
    nnc_ir::eval::run(&load(m).unwrap().graph, inputs, &nnc_ir::eval::Env::default())
}

#[test]
fn linear_resizing_with_half_pixels() {
    // Positions -0.25, 0.25, 0.75, 1.25 between 10 and 20, clamped at the edges.
    let scales = [("s", f32s(&[1], &[2.]))];
    let m = single(13, node("Resize", "x _ s", "y", vec![string("mode", "linear")]), x("n"), &scales);
    assert_eq!(run(&m, &[f32s(&[2], &[10., 20.])]), [f32s(&[4], &[10., 12.5, 17.5, 20.])]);
}

#[test]
fn a_recurrent_layer_stops_at_each_length() {
    // h = x + h with weights of 1 and relu; the second sequence is one step long.
    let constants = [("w", f32s(&[1, 1, 1], &[1.])), ("r", f32s(&[1, 1, 1], &[1.])), ("len", Tensor::new(&[2], &[2i32, 1]))];
    let relu = AttributeProto { name: name("activations"), strings: vec![name("Relu")], r#type: attribute_type::STRINGS, ..Default::default() };
    let op = node("RNN", "x w r _ len", "y h", vec![relu, int("hidden_size", 1)]);
    let y = run(&single(14, op, x("2,2,1"), &constants), &[f32s(&[2, 2, 1], &[1., 10., 2., 20.])]);
    assert_eq!(y, [f32s(&[2, 1, 2, 1], &[1., 10., 3., 0.]), f32s(&[1, 2, 1], &[3., 10.])]);
}
