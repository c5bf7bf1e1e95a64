//! ai.onnx.ml: trees, linear models, features; numbers worked out by hand.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::Tensor;

fn floats(n: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto { name: name(n), floats: floats.to_vec(), r#type: attribute_type::FLOATS, ..Default::default() }
}

fn strings(n: &str, values: &[&str]) -> AttributeProto {
    let strings = values.iter().map(|s| name(s)).collect();
    AttributeProto { name: name(n), strings, r#type: attribute_type::STRINGS, ..Default::default() }
}

fn ml(op: &str, outputs: &str, attributes: Vec<AttributeProto>, shape: &str) -> ModelProto {
    let mut op = node(op, "x", outputs, attributes);
    op.domain = name("ai.onnx.ml");
    let mut m = single(17, op, vec![value("x", F32, shape)], &[]);
    m.opset_import.push(import("ai.onnx.ml", 3));
    m
}

/// Two trees: `x0 <= 1 ? (x1 > 0 ? 1 : 2) : 4` and `x1 == 3 ? 8 : 16`; leaves' weights go to `kind`'s target 0.
fn forest(kind: &str) -> Vec<AttributeProto> {
    let of = |n: &str| format!("{kind}_{n}");
    vec![
        ints("nodes_treeids", &[0, 0, 0, 0, 0, 1, 1, 1]),
        ints("nodes_nodeids", &[0, 1, 2, 3, 4, 0, 1, 2]),
        ints("nodes_featureids", &[0, 1, 0, 0, 0, 1, 0, 0]),
        floats("nodes_values", &[1., 0., 0., 0., 0., 3., 0., 0.]),
        strings("nodes_modes", &["BRANCH_LEQ", "BRANCH_GT", "LEAF", "LEAF", "LEAF", "BRANCH_EQ", "LEAF", "LEAF"]),
        ints("nodes_truenodeids", &[1, 2, 0, 0, 0, 1, 0, 0]),
        ints("nodes_falsenodeids", &[4, 3, 0, 0, 0, 2, 0, 0]),
        ints("nodes_missing_value_tracks_true", &[1, 0, 0, 0, 0, 0, 0, 0]),
        ints(&of("treeids"), &[0, 0, 0, 1, 1]),
        ints(&of("nodeids"), &[2, 3, 4, 1, 2]),
        ints(&of("ids"), &[0; 5]),
        floats(&of("weights"), &[1., 2., 4., 8., 16.]),
    ]
}

const X: [f32; 8] = [0., 1., 0., -1., 2., 3., f32::NAN, 3.];

#[test]
fn trees_add_up() {
    let of = |aggregate: &str, base: &[f32]| {
        let more = vec![string("aggregate_function", aggregate), int("n_targets", 1), floats("base_values", base)];
        run(&ml("TreeEnsembleRegressor", "y", [forest("target"), more].concat(), "4,2"), &[f32s(&[4, 2], &X)]).remove(0).to_f64s()
    };
    assert_eq!(of("SUM", &[]), [17., 18., 12., 9.]);
    assert_eq!(of("SUM", &[0.5]), [17.5, 18.5, 12.5, 9.5]);
    assert_eq!(of("AVERAGE", &[]), [8.5, 9., 6., 4.5]);
    assert_eq!(of("MIN", &[]), [1., 2., 4., 1.]);
    assert_eq!(of("MAX", &[]), [16., 16., 8., 8.]);
}

#[test]
fn one_score_decides_between_two_classes() {
    let labels = vec![ints("classlabels_int64s", &[7, 9]), floats("base_values", &[-16.5])];
    let y = run(&ml("TreeEnsembleClassifier", "label scores", [forest("class"), labels].concat(), "4,2"), &[f32s(&[4, 2], &X)]);
    // All weights are positive: above 0.5 is the second class, whose score is given beside its complement.
    assert_eq!(y[0], i64s(&[7, 9, 7, 7]));
    assert_eq!(y[1].to_f64s(), [0.5, 0.5, -0.5, 1.5, 5.5, -4.5, 8.5, -7.5]);
}

#[test]
fn trees_that_are_none_are_refused() {
    let mut cycle = forest("target");
    cycle[5] = ints("nodes_truenodeids", &[1, 0, 0, 0, 0, 1, 0, 0]);
    assert!(problems(&ml("TreeEnsembleRegressor", "y", cycle, "4,2"))[0].contains("two nodes lead to node 0"));
    let mut outside = forest("target");
    outside[2] = ints("nodes_featureids", &[5, 1, 0, 0, 0, 1, 0, 0]);
    assert!(problems(&ml("TreeEnsembleRegressor", "y", outside, "4,2"))[0].contains("reads feature 5"));
    let mut missing = forest("target");
    missing[6] = ints("nodes_falsenodeids", &[40, 3, 0, 0, 0, 2, 0, 0]);
    assert!(problems(&ml("TreeEnsembleRegressor", "y", missing, "4,2"))[0].contains("tree 0 has no node 40"));
}

#[test]
fn linear_models() {
    let w = || vec![floats("coefficients", &[1., 2., 3., -1.]), floats("intercepts", &[0.5, 0.])];
    let x = f32s(&[2, 2], &[1., 1., 0., 2.]);
    let m = ml("LinearRegressor", "y", [w(), vec![int("targets", 2)]].concat(), "2,2");
    assert_eq!(run(&m, std::slice::from_ref(&x)), [f32s(&[2, 2], &[3.5, 2., 4.5, -2.])]);
    let m = ml("LinearClassifier", "label scores", [w(), vec![strings("classlabels_strings", &["a", "b"])]].concat(), "2,2");
    assert_eq!(run(&m, &[x])[0], Tensor::text(&[2], vec!["a".into(), "a".into()]).unwrap());
    let svm = vec![
        floats("coefficients", &[2., -1.]),
        floats("support_vectors", &[0., 0., 1., 1.]),
        floats("rho", &[0.25]),
        floats("kernel_params", &[0.5, 0., 0.]),
        string("kernel_type", "RBF"),
        int("n_supports", 2),
    ];
    let y = run(&ml("SVMRegressor", "y", svm, "1,2"), &[f32s(&[1, 2], &[1., 0.])]).remove(0).to_f64s()[0];
    assert!((y - (0.25 + (-0.5f64).exp())).abs() < 1e-6, "{y}");
}

#[test]
fn features() {
    let of = |op: &str, attributes: Vec<AttributeProto>, x: &[f32]| run(&ml(op, "y", attributes, "1,4"), &[f32s(&[1, 4], x)]).remove(0).to_f64s();
    assert_eq!(of("Scaler", vec![floats("offset", &[1.]), floats("scale", &[2.])], &[1., 2., 3., 4.]), [0., 2., 4., 6.]);
    assert_eq!(of("Normalizer", vec![string("norm", "L1")], &[1., -1., 2., 0.]), [0.25, -0.25, 0.5, 0.]);
    assert_eq!(of("Normalizer", vec![string("norm", "L2")], &[3., 4., 0., 0.]), [0.6f32 as f64, 0.8f32 as f64, 0., 0.]);
    assert_eq!(of("Normalizer", vec![], &[0.; 4]), [0.; 4]);
    let nan = vec![floats("imputed_value_floats", &[9.]), float("replaced_value_float", f32::NAN)];
    assert_eq!(of("Imputer", nan, &[1., f32::NAN, 3., 4.]), [1., 9., 3., 4.]);
    assert_eq!(of("Binarizer", vec![float("threshold", 2.)], &[1., 2., 3., 4.]), [0., 0., 1., 1.]);
    assert_eq!(of("OneHotEncoder", vec![ints("cats_int64s", &[1, 3])], &[1., 2., 3., 1.]), [1., 0., 0., 0., 0., 1., 1., 0.]);
    let pairs = vec![floats("keys_floats", &[1., f32::NAN]), floats("values_floats", &[10., 20.]), float("default_float", -1.)];
    assert_eq!(of("LabelEncoder", pairs, &[1., 2., f32::NAN, 1.]), [10., -1., 20., 10.]);
}
