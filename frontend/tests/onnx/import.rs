//! What a file as a whole means.

use crate::model::*;
use nnc_frontend::onnx::ImportOptions;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::tensor;
use nnc_ir::{Dim, Loc, Tensor};

#[test]
fn a_small_network_computes_what_it_says() {
    // relu(x * w + b) with w = [[1,-1],[2,3]], b = [0.5,-8].
    let mut g = graph(
        vec![value("x", F32, "batch,2")],
        vec![node("MatMul", "x w", "xw", vec![]), node("Add", "xw b", "s", vec![]), node("Relu", "s", "y", vec![])],
        vec![value("y", F32, "batch,2")],
    );
    g.initializer = vec![tensor::to_proto("w", &f32s(&[2, 2], &[1., -1., 2., 3.])), tensor::to_proto("b", &f32s(&[2], &[0.5, -8.]))];
    let m = model(17, g);
    assert_eq!(run(&m, &[f32s(&[2, 2], &[1., 2., -4., 1.])]), [f32s(&[2, 2], &[5.5, 0., 0., 0.])]);
    let m = load(&m).unwrap();
    assert_eq!(m.graph.ty(m.graph.outputs[0].value).to_string(), "f32[batch,2]");
    assert_eq!(m.opsets[""], 17);
    let last = m.graph.node(m.graph.outputs[0].value.node);
    assert_eq!(&*last.name, "y");
    let place = Loc::Onnx { file: "m.onnx".into(), index: 2, name: "n_y".into(), op: "Relu".into(), opset: 17 };
    assert_eq!(last.loc, place);
}

#[test]
fn nodes_may_stand_in_any_order() {
    let nodes = vec![node("Neg", "b", "y", vec![]), node("Exp", "a", "b", vec![]), node("Relu", "x", "a", vec![])];
    let m = model(13, graph(vec![value("x", F32, "1")], nodes, vec![value("y", F32, "1")]));
    assert_eq!(run(&m, &[f32s(&[1], &[-3.])]), [f32s(&[1], &[-1.])]);
}

#[test]
fn an_initializer_among_the_inputs_is_no_input() {
    let mut g = graph(vec![value("w", F32, "2"), value("x", F32, "2")], vec![node("Mul", "x w", "y", vec![])], vec![value("y", F32, "2")]);
    g.initializer = vec![tensor::to_proto("w", &f32s(&[2], &[10., 100.]))];
    let mut m = model(8, g);
    m.ir_version = 3;
    assert_eq!(run(&m, &[f32s(&[2], &[1., 2.])]), [f32s(&[2], &[10., 200.])]);
    let m = load(&m).unwrap();
    assert_eq!(m.graph.inputs.len(), 1);
}

#[test]
fn outputs_may_be_inputs_and_initializers() {
    let mut g = graph(vec![value("x", F32, "1")], vec![], vec![value("x", F32, "1"), value("w", F32, "1")]);
    g.initializer = vec![tensor::to_proto("w", &f32s(&[1], &[7.]))];
    assert_eq!(run(&model(17, g), &[f32s(&[1], &[2.])]), [f32s(&[1], &[2.]), f32s(&[1], &[7.])]);
}

#[test]
fn every_form_of_constant() {
    let floats = AttributeProto { name: name("value_floats"), floats: vec![1.5, 2.5], r#type: attribute_type::FLOATS, ..Default::default() };
    let forms = [
        (of_tensor("value", &f32s(&[2], &[3., 4.])), f32s(&[2], &[3., 4.])),
        (float("value_float", 0.25), Tensor::scalar(0.25f32)),
        (int("value_int", -7), Tensor::scalar(-7i64)),
        (ints("value_ints", &[5, 6]), i64s(&[5, 6])),
        (floats, f32s(&[2], &[1.5, 2.5])),
    ];
    for (attribute, want) in forms {
        let m = single(13, node("Constant", "", "y", vec![attribute]), vec![], &[]);
        assert_eq!(run(&m, &[]), [want]);
    }
}

#[test]
fn symbols_come_from_names_and_open_lengths_get_their_own() {
    let mut x = value("x", F32, "batch,-1,?,3");
    let mut y = value("y", F32, "batch,,2,3");
    for v in [&mut x, &mut y] {
        v.r#type.as_mut().expect("typed");
    }
    let g = graph(
        vec![x, y],
        vec![node("Identity", "x", "a", vec![]), node("Identity", "y", "b", vec![])],
        vec![value("a", F32, ""), value("b", F32, "")],
    );
    let m = load(&model(17, g.clone())).unwrap();
    let types: Vec<String> = m.graph.inputs.iter().map(|i| m.graph.node(*i).types[0].to_string()).collect();
    assert_eq!(types, ["f32[batch,x_1,x_2,3]", "f32[batch,y_1,2,3]"]);

    let options =
        ImportOptions { dims: vec![("x_1".into(), 5)], shapes: vec![("y".into(), [4, 6, 2, 3].map(Dim::Const).to_vec())], ..Default::default() };
    let m = load_with(&model(17, g.clone()), &options).unwrap();
    let types: Vec<String> = m.graph.inputs.iter().map(|i| m.graph.node(*i).types[0].to_string()).collect();
    assert_eq!(types, ["f32[4,5,x_2,3]", "f32[4,6,2,3]"], "the shape of y fixes batch everywhere");

    let wrong = |options: ImportOptions| load_with(&model(17, g.clone()), &options).expect_err("refused").to_string();
    let dim = wrong(ImportOptions { dims: vec![("bach".into(), 1)], ..Default::default() });
    assert!(dim.contains("no symbolic dimension `bach`") && dim.contains("it has batch, x_1, x_2, y_1"), "{dim}");
    let shape = wrong(ImportOptions { shapes: vec![("y".into(), [4, 6, 9, 3].map(Dim::Const).to_vec())], ..Default::default() });
    assert!(shape.contains("axis 2 of input `y` is 2 = 2, it cannot be 9"), "{shape}");
}

#[test]
fn a_fixed_value_stands_for_an_input_that_stays() {
    let g = graph(vec![value("x", F32, "6"), value("shape", I64, "2")], vec![node("Reshape", "x shape", "y", vec![])], vec![value("y", F32, "a,b")]);
    let options = ImportOptions { values: vec![("shape".into(), i64s(&[2, -1]))], ..Default::default() };
    let x = f32s(&[6], &[0., 1., 2., 3., 4., 5.]);
    let y = run_with(&model(17, g.clone()), &options, &[x.clone(), i64s(&[2, -1])]);
    assert_eq!(y, [x.reshaped(vec![2, 3]).unwrap()]);
    // Without it the shape is read when the model runs.
    assert_eq!(run(&model(17, g), &[x.clone(), i64s(&[-1, 2])]), [x.reshaped(vec![3, 2]).unwrap()]);
}

/// `scaled(x, by) = x * by`, `twice(x) = scaled(x, 2)`.
fn functions() -> Vec<FunctionProto> {
    let scaled = FunctionProto {
        name: name("scaled"),
        domain: name("local"),
        input: vec![name("x"), name("shift")],
        output: vec![name("y")],
        attribute: vec![name("by")],
        node: vec![node("Constant", "", "k", vec![reference("value_float", "by", attribute_type::FLOAT)]), node("Mul", "x k", "y", vec![])],
        opset_import: vec![import("", 17)],
        ..Default::default()
    };
    let mut call = node("scaled", "x", "y", vec![reference("by", "factor", attribute_type::FLOAT)]);
    call.domain = name("local");
    let twice = FunctionProto {
        name: name("twice"),
        domain: name("local"),
        input: vec![name("x")],
        output: vec![name("y")],
        attribute_proto: vec![float("factor", 2.0)],
        node: vec![call],
        opset_import: vec![import("", 17), import("local", 1)],
        ..Default::default()
    };
    vec![scaled, twice]
}

fn calling(op: &str, attributes: Vec<AttributeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    let mut call = node(op, "x", "y", attributes);
    call.domain = name("local");
    let mut m = model(17, graph(vec![value("x", F32, "2")], vec![call], vec![value("y", F32, "2")]));
    m.opset_import.push(import("local", 1));
    m.functions = functions;
    m
}

#[test]
fn functions_are_inlined_with_their_attributes() {
    let x = [f32s(&[2], &[1., -2.])];
    assert_eq!(run(&calling("twice", vec![], functions()), &x), [f32s(&[2], &[2., -4.])]);
    assert_eq!(run(&calling("twice", vec![float("factor", 5.0)], functions()), &x), [f32s(&[2], &[5., -10.])]);
    assert_eq!(run(&calling("scaled", vec![float("by", -1.0)], functions()), &x), [f32s(&[2], &[-1., 2.])]);
    let unknown = problems(&calling("twice", vec![int("times", 3)], functions()));
    assert!(unknown[0].contains("function local::twice has no attribute `times`"), "{unknown:?}");
}

#[test]
fn a_function_must_not_call_itself() {
    let mut functions = functions();
    functions[0].node[1] = functions[1].node[0].clone();
    functions[0].node[1].op_type = name("twice");
    let p = problems(&calling("twice", vec![], functions));
    assert!(p.iter().any(|e| e.contains("function local::twice calls itself")), "{p:?}");
}

#[test]
fn calls_that_multiply_are_stopped() {
    // Forty functions that each call the one before twice: 2^40 nodes.
    let doubled = |i: usize| {
        let call = |x: &str, y: &str| {
            let mut n = node(&format!("f{}", i - 1), x, y, vec![]);
            n.domain = name("local");
            n
        };
        FunctionProto {
            name: name(&format!("f{i}")),
            domain: name("local"),
            input: vec![name("x")],
            output: vec![name("y")],
            node: if i == 0 { vec![node("Neg", "x", "y", vec![])] } else { vec![call("x", "h"), call("h", "y")] },
            opset_import: vec![import("", 17), import("local", 1)],
            ..Default::default()
        }
    };
    let p = problems(&calling("f40", vec![], (0..=40).map(doubled).collect()));
    assert!(p[0].contains("functions and regions multiply to more than"), "{}", p[0]);
}
