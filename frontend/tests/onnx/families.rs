//! Families of operators that are compositions: each against numbers worked out by hand.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::Tensor;
use std::f64::consts::TAU;

fn x(n: &str, shape: &str) -> ValueInfoProto {
    value(n, F32, shape)
}

#[test]
fn einsum_multiplies_sums_and_transposes() {
    let of = |equation: &str, inputs: &str, shapes: &[(&str, &str)], feeds: &[Tensor]| {
        let inputs_info = shapes.iter().map(|(n, s)| x(n, s)).collect();
        run(&single(12, node("Einsum", inputs, "y", vec![string("equation", equation)]), inputs_info, &[]), feeds).remove(0)
    };
    let m = f32s(&[2, 2], &[1., 2., 3., 4.]);
    let v = f32s(&[2], &[10., 1.]);
    assert_eq!(of("ij,j->i", "a b", &[("a", "2,2"), ("b", "2")], &[m.clone(), v.clone()]), f32s(&[2], &[12., 34.]));
    assert_eq!(of("ij,kj->ki", "a b", &[("a", "2,2"), ("b", "2,2")], &[m.clone(), m.clone()]), f32s(&[2, 2], &[5., 11., 11., 25.]));
    assert_eq!(of("ii", "a", &[("a", "2,2")], std::slice::from_ref(&m)), Tensor::scalar(5f32), "the trace");
    assert_eq!(of("...i->...", "a", &[("a", "2,2")], std::slice::from_ref(&m)), f32s(&[2], &[3., 7.]));
    assert_eq!(of("i,j", "a b", &[("a", "2"), ("b", "2")], &[v.clone(), v.clone()]), f32s(&[2, 2], &[100., 10., 10., 1.]));
    assert_eq!(of("ij,j,i->", "a b c", &[("a", "2,2"), ("b", "2"), ("c", "2")], &[m, v.clone(), v]), Tensor::scalar(154f32));
    let wrong = problems(&single(12, node("Einsum", "a", "y", vec![string("equation", "ij->k")]), vec![x("a", "2,2")], &[]));
    assert!(wrong[0].contains("equation `ij->k`"), "{wrong:?}");
}

#[test]
fn attention_looks_at_nothing_it_must_not() {
    // One head of size 1; equal scores, so that each query averages the values it may see.
    let qkv = |length: &str| vec![x("q", length), x("k", length), x("v", length)];
    let m = single(23, node("Attention", "q k v", "y", vec![int("is_causal", 1)]), qkv("1,1,3,1"), &[]);
    let zeros = f32s(&[1, 1, 3, 1], &[0.; 3]);
    let values = f32s(&[1, 1, 3, 1], &[3., 6., 12.]);
    assert_eq!(run(&m, &[zeros.clone(), zeros.clone(), values.clone()]), [f32s(&[1, 1, 3, 1], &[3., 4.5, 7.])]);

    let mask = [("mask", Tensor::new(&[3, 3], &[true, false, false, false, false, false, false, true, true]))];
    let m = single(23, node("Attention", "q k v mask", "y", vec![]), qkv("1,1,3,1"), &mask);
    let y = run(&m, &[zeros.clone(), zeros, values]);
    assert_eq!(y, [f32s(&[1, 1, 3, 1], &[3., 0., 9.])], "a query that sees nothing gives zero");
}

#[test]
fn query_heads_share_keys() {
    // Two query heads, one of keys; the keys are far apart, so that each query picks one value.
    let inputs = vec![x("q", "1,2,1,1"), x("k", "1,1,2,1"), x("v", "1,1,2,1")];
    let m = single(23, node("Attention", "q k v", "y", vec![float("scale", 1.0)]), inputs, &[]);
    let y = run(&m, &[f32s(&[1, 2, 1, 1], &[100., -100.]), f32s(&[1, 1, 2, 1], &[1., -1.]), f32s(&[1, 1, 2, 1], &[5., 7.])]);
    assert_eq!(y, [f32s(&[1, 2, 1, 1], &[5., 7.])]);
}

#[test]
fn losses_leave_out_what_is_ignored() {
    let log = f32s(&[3, 2], &[-1., -2., -3., -4., -5., -6.]);
    let target = ("t", i64s(&[1, -100, 0]));
    let loss = |attributes: Vec<AttributeProto>| {
        let op = node("NegativeLogLikelihoodLoss", "x t", "y", [attributes, vec![int("ignore_index", -100)]].concat());
        run(&single(13, op, vec![x("x", "3,2")], std::slice::from_ref(&target)), std::slice::from_ref(&log)).remove(0)
    };
    assert_eq!(loss(vec![string("reduction", "none")]), f32s(&[3], &[2., 0., 5.]));
    assert_eq!(loss(vec![string("reduction", "sum")]), Tensor::scalar(7f32));
    assert_eq!(loss(vec![]), Tensor::scalar(3.5f32), "the mean over what counts");
}

#[test]
fn suppression_keeps_the_best_of_those_that_overlap() {
    // The second box covers 9/11 of both; the third is elsewhere.
    let boxes = f32s(&[1, 3, 4], &[0., 0., 1., 1., 0., 0.1, 1., 1.1, 5., 5., 6., 6.]);
    let scores = f32s(&[1, 1, 3], &[0.5, 0.9, 0.7]);
    let select = |limit: i64, overlap: f32, least: f32| {
        let constants = [("n", i64s(&[limit])), ("o", f32s(&[1], &[overlap])), ("s", f32s(&[1], &[least]))];
        let op = node("NonMaxSuppression", "b x n o s", "y", vec![]);
        run(&single(11, op, vec![x("b", "1,k,4"), x("x", "1,1,k")], &constants), &[boxes.clone(), scores.clone()]).remove(0)
    };
    let rows = |v: &[i64]| Tensor::new(&[v.len() / 3, 3], v);
    assert_eq!(select(10, 0.5, 0.0), rows(&[0, 0, 1, 0, 0, 2]));
    assert_eq!(select(10, 0.9, 0.0), rows(&[0, 0, 1, 0, 0, 2, 0, 0, 0]));
    assert_eq!(select(1, 0.9, 0.0), rows(&[0, 0, 1]));
    assert_eq!(select(10, 0.5, 0.8), rows(&[0, 0, 1]));
    assert_eq!(select(10, 0.5, 1.0), rows(&[]));
}

#[test]
fn quantising_rounds_to_even_and_saturates() {
    let constants = [("s", Tensor::scalar(2f32)), ("z", Tensor::scalar(10u8))];
    let m = single(13, node("QuantizeLinear", "x s z", "y", vec![]), vec![x("x", "5")], &constants);
    let y = run(&m, &[f32s(&[5], &[1., 3., -100., 1000., 4.])]);
    assert_eq!(y, [Tensor::new(&[5], &[10u8, 12, 0, 255, 12])]);

    let per_axis = [("s", f32s(&[2], &[1., 10.])), ("z", Tensor::new(&[2], &[0i8, 1]))];
    let inputs = vec![value("x", 3, "2,2")];
    let m = single(13, node("DequantizeLinear", "x s z", "y", vec![int("axis", 0)]), inputs, &per_axis);
    assert_eq!(run(&m, &[Tensor::new(&[2, 2], &[1i8, 2, 3, -128])]), [f32s(&[2, 2], &[1., 2., 20., -1290.])]);
}

#[test]
fn integer_products_take_off_zero_points() {
    let constants = [("b", Tensor::new(&[2, 1], &[1u8, 255])), ("za", Tensor::scalar(2u8)), ("zb", Tensor::scalar(1u8))];
    let m = single(10, node("MatMulInteger", "x b za zb", "y", vec![]), vec![value("x", 2, "1,2")], &constants);
    // (0-2)*(1-1) + (255-2)*(255-1)
    assert_eq!(run(&m, &[Tensor::new(&[1, 2], &[0u8, 255])]), [Tensor::new(&[1, 1], &[64262i32])]);
}

#[test]
fn grids_read_between_elements_and_beyond_the_edge() {
    let image = f32s(&[1, 1, 2, 2], &[1., 2., 3., 4.]);
    // The middle of the image, its upper left corner, and far outside to the right.
    let grid = f32s(&[1, 1, 3, 2], &[0., 0., -1., -1., 3., -0.5]);
    let sample = |padding: &str| {
        let attributes = vec![string("mode", "linear"), string("padding_mode", padding)];
        run(&single(20, node("GridSample", "x g", "y", attributes), vec![x("x", "1,1,2,2"), x("g", "1,1,3,2")], &[]), &[image.clone(), grid.clone()])
            .remove(0)
    };
    assert_eq!(sample("zeros"), f32s(&[1, 1, 1, 3], &[2.5, 0.25, 0.]));
    assert_eq!(sample("border"), f32s(&[1, 1, 1, 3], &[2.5, 1., 2.]));
    // 3 is position 3.5 of 0..2: back to 1.5 at the edge, and on to -0.5, which is the edge of element 0.
    assert_eq!(sample("reflection"), f32s(&[1, 1, 1, 3], &[2.5, 1., 1.]));
}

#[test]
fn windows_add_up_to_an_image() {
    // Two windows of two elements that share one.
    let constants = [("image", i64s(&[1, 3])), ("block", i64s(&[1, 2]))];
    let m = single(18, node("Col2Im", "x image block", "y", vec![]), vec![x("x", "1,2,2")], &constants);
    assert_eq!(run(&m, &[f32s(&[1, 2, 2], &[1., 2., 10., 20.])]), [f32s(&[1, 1, 1, 3], &[1., 12., 20.])]);
    for (image, pad) in [([1, 3], i64::MAX), ([1, i64::MIN], 0), ([i64::MAX, 3], 1)] {
        let attributes = vec![ints("pads", &[pad, pad, 0, 0])];
        let far = [("image", i64s(&image)), ("block", i64s(&[1, 2]))];
        let report = problems(&single(18, node("Col2Im", "x image block", "y", attributes), vec![x("x", "1,2,2")], &far));
        assert!(report[0].contains("E0203"), "{report:?}");
    }
}

#[test]
fn transforms_of_every_kind_of_length_follow_the_sum_they_are() {
    for n in (1..=18).chain([24, 26, 34, 35, 60, 64, 121, 128, 202, 257, 360]) {
        for (parts, inverse) in [(1, 0), (2, 0), (2, 1)] {
            let values: Vec<f32> = (0..n * parts).map(|i| ((i * 7 + 3) % 11) as f32 - 4.0).collect();
            let m = single(17, node("DFT", "x", "y", vec![int("axis", 1), int("inverse", inverse)]), vec![x("x", &format!("1,{n},{parts}"))], &[]);
            let y = run(&m, &[f32s(&[1, n, parts], &values)]).remove(0).to_f64s();
            let scale = if inverse == 1 { 1.0 / n as f64 } else { 1.0 };
            let turn = if inverse == 1 { TAU } else { -TAU } / n as f64;
            for k in 0..n {
                let (mut re, mut im) = (0.0, 0.0);
                for j in 0..n {
                    let (sin, cos) = (turn * (j * k % n) as f64).sin_cos();
                    let (a, b) = (values[j * parts] as f64, if parts == 2 { values[j * parts + 1] as f64 } else { 0.0 });
                    (re, im) = (re + scale * (a * cos - b * sin), im + scale * (a * sin + b * cos));
                }
                let bound = 4e-7 * scale * values.iter().map(|v| f64::from(v.abs())).sum::<f64>();
                let off = (y[2 * k] - re).abs().max((y[2 * k + 1] - im).abs());
                assert!(off <= bound, "length {n}, {parts} parts, inverse {inverse}: {off} off at {k}, {bound} allowed");
            }
        }
    }
}

#[test]
fn a_real_signal_comes_back_from_half_of_its_spectrum() {
    for n in [1, 2, 3, 4, 5, 8, 17, 30, 34, 64] {
        let values: Vec<f32> = (0..n).map(|i| ((i * 5 + 1) % 7) as f32 - 2.0).collect();
        let there = single(17, node("DFT", "x", "y", vec![int("axis", 1), int("onesided", 1)]), vec![x("x", &format!("1,{n},1"))], &[]);
        let spectrum = run(&there, &[f32s(&[1, n, 1], &values)]);
        let length = [("n", Tensor::scalar(n as i64))];
        let bins = n / 2 + 1;
        let node = node("DFT", "x n", "y", vec![int("axis", 1), int("inverse", 1), int("onesided", 1)]);
        let back = run(&single(17, node, vec![x("x", &format!("1,{bins},2"))], &length), &spectrum).remove(0).to_f64s();
        let off = back.iter().zip(&values).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
        assert!(back.len() == n && off < 1e-6, "length {n}: {off} off");
    }
}

#[test]
fn transforms_without_a_length_and_steps_of_nothing_are_refused() {
    for n in [0, -3] {
        let m = single(17, node("DFT", "x n", "y", vec![int("axis", 1)]), vec![x("x", "1,4,1")], &[("n", i64s(&[n]))]);
        let found = problems(&m).join("\n");
        assert!(found.contains("length"), "{found}");
    }
    for (step, size) in [(0, 4), (-1, 4), (2, 9)] {
        let given = [("step", i64s(&[step])), ("size", i64s(&[size]))];
        let m = single(17, node("STFT", "x step _ size", "y", vec![]), vec![x("x", "1,8,1")], &given);
        let found = problems(&m).join("\n");
        assert!(found.contains("frame"), "{found}");
    }
}

#[test]
fn integer_pictures_are_resized_without_loss_between_axes() {
    let scales = [("roi", f32s(&[0], &[])), ("scales", f32s(&[4], &[1.0, 1.0, 2.0, 1.5]))];
    let at = |mode: &str| single(19, node("Resize", "x roi scales", "y", vec![string("mode", mode)]), vec![value("x", 2, "1,1,3,4")], &scales);
    let even = run(&at("linear"), &[Tensor::new(&[1, 1, 3, 4], &[44u8; 12])]).remove(0);
    assert!(even.to_f64s().iter().all(|v| *v == 44.0), "{even:?}");
    // A filter that overshoots ends at the ends of the type.
    let edge: Vec<u8> = (0..12).map(|i| if i % 4 < 2 { 0 } else { 255 }).collect();
    let y = run(&at("cubic"), &[Tensor::new(&[1, 1, 3, 4], &edge)]).remove(0).to_f64s();
    assert!(y.chunks(6).all(|row| row[..2].iter().all(|v| *v < 9.0) && row[4..].iter().all(|v| *v > 246.0)), "{y:?}");
}

#[test]
fn nothing_has_no_unique_elements() {
    let m = single(11, node("Unique", "x", "y i j n", vec![]), vec![value("x", F32, "0")], &[]);
    assert!(run(&m, &[f32s(&[0], &[])]).iter().all(|t| t.to_f64s().is_empty()));
}

#[test]
fn a_transform_and_its_inverse() {
    let m = single(17, node("DFT", "x", "y", vec![int("axis", 1), int("onesided", 1)]), vec![x("x", "1,4,1")], &[]);
    let y = run(&m, &[f32s(&[1, 4, 1], &[1., 2., 3., 4.])]);
    let near = |got: &[f64], want: &[f64]| got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near(&y[0].to_f64s(), &[10., 0., -2., 2., -2., 0.]), "{y:?}");
    let m = single(20, node("DFT", "x", "y", vec![int("inverse", 1), int("onesided", 1)]), vec![x("x", "1,3,2")], &[]);
    let back = run(&m, &y).remove(0);
    assert!(near(&back.to_f64s(), &[1., 2., 3., 4.]), "{back:?}");
}

#[test]
fn unique_elements_in_order_and_as_they_came() {
    let of = |sorted: i64| {
        let m = single(11, node("Unique", "x", "y first inverse counts", vec![int("sorted", sorted)]), vec![x("x", "5")], &[]);
        run(&m, &[f32s(&[5], &[2., 1., 1., 3., 2.])])
    };
    assert_eq!(of(1), [f32s(&[3], &[1., 2., 3.]), i64s(&[1, 0, 3]), i64s(&[1, 0, 0, 2, 1]), i64s(&[2, 2, 1])]);
    assert_eq!(of(0), [f32s(&[3], &[2., 1., 3.]), i64s(&[0, 1, 3]), i64s(&[0, 1, 1, 2, 0]), i64s(&[2, 2, 1])]);
}

#[test]
fn shapes_that_exporters_compute_stay_symbolic() {
    // torch's expand: shape = where(s == -1, 1, s) with s = [batch, -1, 4] from Shape, Gather, Concat.
    let nodes = vec![
        node("Shape", "x", "all", vec![]),
        node("Slice", "all zero one", "batch", vec![]),
        node("Concat", "batch rest", "s", vec![int("axis", 0)]),
        node("Equal", "s open", "is_open", vec![]),
        node("Where", "is_open ones s", "shape", vec![]),
        node("Expand", "x shape", "y", vec![]),
    ];
    let constants = [("zero", i64s(&[0])), ("one", i64s(&[1])), ("rest", i64s(&[-1, 4])), ("open", i64s(&[-1])), ("ones", i64s(&[1, 1, 1]))];
    let mut g = graph(vec![x("x", "batch,3,1")], nodes, vec![x("y", "b,3,4")]);
    g.initializer = constants.iter().map(|(n, t)| nnc_frontend::onnx::tensor::to_proto(n, t)).collect();
    let m = load(&model(17, g)).unwrap();
    assert_eq!(m.graph.ty(m.graph.outputs[0].value).to_string(), "f32[batch,3,4]");
}

#[test]
fn determinants_pivot() {
    let of = |shape: &[usize], values: &[f32]| {
        let text = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        run(&single(22, node("Det", "a", "y", vec![]), vec![x("a", &text)], &[]), &[f32s(shape, values)]).remove(0)
    };
    assert_eq!(of(&[2, 2], &[1., 2., 3., 4.]), Tensor::scalar(-2f32));
    // Zeros on the diagonal, and a column that depends on another.
    assert_eq!(of(&[2, 3, 3], &[0., 2., 0., 1., 0., 0., 0., 0., 3., 1., 2., 3., 2., 4., 6., 1., 0., 1.]).to_f64s(), [-6., 0.]);
    assert_eq!(of(&[1, 0, 0], &[]), f32s(&[1], &[1.]), "an empty product");
}

#[test]
fn n_grams_are_counted_with_gaps() {
    let of = |attributes: Vec<AttributeProto>, given: &[i64]| {
        // 2, 3 alone; the pairs 5 4 and 5 5 stand at places 3 and 2.
        let common = vec![
            int("min_gram_length", 1),
            int("max_gram_length", 2),
            ints("ngram_counts", &[0, 2]),
            ints("ngram_indexes", &[0, 1, 3, 2]),
            ints("pool_int64s", &[2, 3, 5, 4, 5, 5]),
        ];
        let op = node("TfIdfVectorizer", "t", "y", [common, attributes].concat());
        run(&single(9, op, vec![value("t", I64, &given.len().to_string())], &[]), &[i64s(given)]).remove(0)
    };
    let text = [2, 5, 4, 5, 2];
    assert_eq!(of(vec![string("mode", "TF"), int("max_skip_count", 0)], &text), f32s(&[4], &[2., 0., 0., 1.]));
    assert_eq!(of(vec![string("mode", "TF"), int("max_skip_count", 1)], &text), f32s(&[4], &[2., 0., 1., 1.]));
    assert_eq!(of(vec![string("mode", "TF"), int("max_skip_count", i64::MAX)], &text), f32s(&[4], &[2., 0., 1., 1.]));
    let weights = AttributeProto { name: name("weights"), floats: vec![1., 1., 5., 7.], r#type: attribute_type::FLOATS, ..Default::default() };
    assert_eq!(of(vec![string("mode", "TFIDF"), int("max_skip_count", 1), weights.clone()], &text), f32s(&[4], &[2., 0., 7., 5.]));
    assert_eq!(of(vec![string("mode", "IDF"), int("max_skip_count", 1), weights], &text), f32s(&[4], &[1., 0., 7., 5.]));
    assert_eq!(of(vec![string("mode", "TF"), int("max_skip_count", 3)], &[5]), f32s(&[4], &[0.; 4]), "shorter than a pair");
}

#[test]
fn regions_are_pooled_by_cells() {
    let image: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let rois = ("r", f32s(&[2, 5], &[0., 0., 0., 3., 3., 0., 1., 1., 2., 2.]));
    let op = node("MaxRoiPool", "x r", "y", vec![ints("pooled_shape", &[2, 2])]);
    let y = run(&single(22, op, vec![x("x", "1,1,4,4")], &[rois]), &[f32s(&[1, 1, 4, 4], &image)]).remove(0);
    assert_eq!(y, f32s(&[2, 1, 2, 2], &[5., 7., 13., 15., 5., 6., 9., 10.]));
}

#[test]
fn a_gate_opens_for_a_value() {
    let m = single(28, node("SwiGLU", "a b", "y", vec![]), vec![x("a", "2"), x("b", "2")], &[]);
    let y = run(&m, &[f32s(&[2], &[0., 100.]), f32s(&[2], &[5., 0.5])]).remove(0);
    assert_eq!(y, f32s(&[2], &[0., 50.]));
}

#[test]
fn old_scans_have_a_batch_axis() {
    // Running sums of two sequences of three.
    let body = GraphProto {
        input: vec![x("s", "1"), x("e", "1")],
        node: vec![node("Add", "s e", "t", vec![]), node("Identity", "t", "u", vec![])],
        output: vec![x("t", "1"), x("u", "1")],
        name: name("body"),
        ..Default::default()
    };
    let scan = |directions: &[i64]| {
        let op = node("Scan", "_ s0 e", "last all", vec![of_graph("body", body.clone()), int("num_scan_inputs", 1), ints("directions", directions)]);
        let m = single(8, op, vec![x("s0", "2,1"), x("e", "2,3,1")], &[]);
        run(&m, &[f32s(&[2, 1], &[0., 10.]), f32s(&[2, 3, 1], &[1., 2., 3., 4., 5., 6.])])
    };
    assert_eq!(scan(&[0]), [f32s(&[2, 1], &[6., 25.]), f32s(&[2, 3, 1], &[1., 3., 6., 14., 19., 25.])]);
    assert_eq!(scan(&[1])[1], f32s(&[2, 3, 1], &[3., 5., 6., 16., 21., 25.]));
}

#[test]
fn antialiasing_by_a_factor_that_the_run_gives_is_what_it_is_when_known() {
    for attributes in [vec![string("mode", "linear")], vec![string("mode", "cubic")], vec![string("mode", "cubic"), int("exclude_outside", 1)]] {
        let op = node("Resize", "x _ s", "y", [attributes, vec![int("antialias", 1)]].concat());
        let image = f32s(&[1, 7], &[1., 5., 2., 8., -3., 4., 9.]);
        for factor in [0.43f32, 0.75, 1.6] {
            let scales = f32s(&[2], &[1., factor]);
            let known = run(&single(18, op.clone(), vec![x("x", "1,7")], &[("s", scales.clone())]), std::slice::from_ref(&image)).remove(0);
            let fed = run(&single(18, op.clone(), vec![x("x", "1,7"), x("s", "2")], &[]), &[image.clone(), scales]).remove(0);
            assert_eq!(known.shape(), fed.shape());
            let close = known.to_f64s().iter().zip(fed.to_f64s()).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close, "{factor}: {known:?} and {fed:?}");
        }
    }
}
