//! Everything that is wrong is said at once, with its place; nothing that is not understood is dropped.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::tensor;
use nnc_ir::Tensor;
use nnc_ir::error::Code;

#[test]
fn one_report_names_every_problem() {
    let nodes = vec![
        node("Rellu", "x", "a", vec![]),
        node("Softmax", "x", "b", vec![int("axis", 1), int("fast", 1)]),
        node("Add", "x missing", "c", vec![]),
        node("Relu", "x", "d", vec![]),
        node("MatMul", "x w", "e", vec![]),
        node("Neg", "e", "f", vec![]),
    ];
    let mut g = graph(vec![value("x", F32, "2,3")], nodes, ["a", "b", "c", "d", "f"].map(|n| value(n, F32, "2")).to_vec());
    g.initializer = vec![tensor::to_proto("w", &f32s(&[4, 1], &[0.; 4]))];
    let report = load(&model(17, g)).expect_err("refused");
    let found: Vec<(Code, String)> = report.0.iter().map(|e| (e.code(), e.to_string())).collect();
    let want = [
        (Code::Unsupported, "operator Rellu is not supported", "node 0 `n_a` (Rellu, opset 17)"),
        (Code::Unsupported, "Softmax of opset 17 has no attribute `fast`", "node 1 `n_b` (Softmax, opset 17)"),
        (Code::Name, "input `missing` is defined nowhere", "node 2 `n_c` (Add, opset 17)"),
        (Code::Shape, "contracted dims differ: 3 and 4", "node 4 `n_e` (MatMul, opset 17)"),
    ];
    assert_eq!(found.len(), want.len(), "{found:#?}");
    for ((code, text), (want_code, what, place)) in found.iter().zip(want) {
        assert!(*code == want_code && text.contains(what) && text.contains(place), "{text}");
    }
    assert!(found[0].1.contains("similar names: Relu"), "{}", found[0].1);
}

fn one(opset: i64, op: NodeProto) -> Vec<String> {
    problems(&single(opset, op, vec![value("x", F32, "2,3")], &[]))
}

#[test]
fn opsets_are_told_apart() {
    assert!(one(17, node("Gelu", "x", "y", vec![]))[0].contains("operator Gelu is supported from opset 20 on, the model uses 17"));
    assert!(one(13, node("Upsample", "x x", "y", vec![]))[0].contains("operator Upsample ended with opset 9, the model uses 13"));
    assert!(one(99, node("Relu", "x", "y", vec![]))[0].contains("opset 99 is newer than"));
    let mut m = single(17, node("Relu", "x", "y", vec![]), vec![value("x", F32, "2,3")], &[]);
    m.opset_import.push(import("ai.onnx.ml", 99));
    assert!(problems(&m)[0].contains("opset 99 of `ai.onnx.ml` is newer than 5"));
    assert!(one(13, node("Squeeze", "x", "y", vec![ints("axes", &[0])]))[0].contains("Squeeze of opset 13 has no attribute `axes`"));
    let mut foreign = node("Relu", "x", "y", vec![]);
    foreign.domain = name("com.example");
    assert!(one(17, foreign)[0].contains("the model imports no operator set `com.example`"));
}

#[test]
fn imports_are_asked_for_once() {
    let nodes = vec![
        node("Relu", "x", "a", vec![]),
        node("Frobnicate", "a", "b", vec![]),
        node("Softmax", "a", "c", vec![string("axis", "last")]),
        NodeProto { domain: name("ai.onnx.ml"), ..node("Normalizer", "x", "d", vec![]) },
    ];
    let m = model(17, graph(vec![value("x", F32, "2,3")], nodes, ["b", "c", "d"].map(|n| value(n, F32, "")).to_vec()));
    let mut all = problems(&ModelProto { opset_import: vec![import("com.example", 1)], ir_version: 99, ..m.clone() });
    let says = |all: &[String], what: &[&str]| {
        assert!(all.len() == what.len() && all.iter().zip(what).all(|(a, w)| a.contains(w)), "{all:#?}");
    };
    let rest =
        ["imports no operator set `ai.onnx`", "operator Frobnicate is not", "`axis` should be an integer", "imports no operator set `ai.onnx.ml`"];
    assert!(all.remove(0).contains("IR version 99 is newer than"), "{all:#?}");
    says(&all, &rest);
    says(&problems(&ModelProto { opset_import: vec![], ..m.clone() }), &rest);
    // Before IR version 3 a file without imports is of opset 1.
    let old = ModelProto { ir_version: 2, opset_import: vec![], ..m };
    says(&problems(&old), &[rest[1], rest[2], rest[3]]);
}

#[test]
fn attributes_are_checked() {
    assert!(one(17, node("Softmax", "x", "y", vec![float("axis", 1.0)]))[0].contains("attribute `axis` should be an integer, found a float"));
    assert!(one(17, node("Softmax", "x", "y", vec![int("axis", 2)]))[0].contains("axis 2 is outside a tensor of rank 2"));
    assert!(one(17, node("Concat", "x x", "y", vec![]))[0].contains("attribute `axis` is missing"));
    assert!(one(17, node("Cast", "x", "y", vec![int("to", 14)]))[0].contains("elements of type complex64 are not supported"));
    let mode = one(17, node("DepthToSpace", "x", "y", vec![int("blocksize", 2), string("mode", "ABC")]));
    assert!(mode[0].contains("attribute `mode` is `ABC`; known are DCR, CRD"), "{mode:?}");
}

#[test]
fn numbers_of_inputs_and_outputs_are_checked() {
    assert!(one(17, node("Relu", "x x", "y", vec![]))[0].contains("Relu takes 1 inputs, 2 are given"));
    assert!(one(17, node("Add", "x", "y", vec![]))[0].contains("Add takes 2 inputs, 1 are given"));
    assert!(one(17, node("Add", "_ x", "y", vec![]))[0].contains("input 0 is missing"));
    assert!(one(17, node("Relu", "x", "y z", vec![]))[0].contains("Relu has 1 outputs, 2 are declared"));
}

#[test]
fn cycles_and_doubled_names_are_refused() {
    let nodes = vec![node("Neg", "b", "a", vec![]), node("Neg", "a", "b", vec![]), node("Neg", "x", "y", vec![])];
    let p = problems(&model(17, graph(vec![value("x", F32, "1")], nodes, vec![value("a", F32, "1"), value("y", F32, "1")])));
    assert_eq!(p.len(), 1, "{p:?}");
    assert!(p[0].contains("2 nodes form a cycle") && p[0].contains("node 0 `n_a`") && p[0].contains("node 1 `n_b`"), "{}", p[0]);

    let nodes = vec![node("Neg", "x", "y", vec![]), node("Exp", "x", "y", vec![])];
    let p = problems(&model(17, graph(vec![value("x", F32, "1")], nodes, vec![value("y", F32, "1")])));
    assert!(p[0].contains("two values are called `y`") && p[0].contains("node 1"), "{p:?}");
}

#[test]
fn inputs_and_outputs_are_checked() {
    let relu = || vec![node("Relu", "x", "y", vec![])];
    let text = |x: ValueInfoProto, y: ValueInfoProto| problems(&model(17, graph(vec![x], relu(), vec![y]))).remove(0);
    assert!(text(value("x", 14, "1"), value("y", 14, "1")).contains("input `x`: elements of type complex64 are not supported"));
    assert!(text(value("x", 8, "1"), value("y", 8, "1")).contains("relu does not take strings"));
    assert!(text(value("x", F32, "1"), value("z", F32, "1")).contains("output `z` is computed by no node"));
    assert!(text(value("x", F32, "1"), value("y", I64, "1")).contains("output `y` is declared i64 and computed as f32[1]"));
    let sequence = TypeKind::Sequence(Box::new(ElementType { elem_type: None }));
    let x = ValueInfoProto { name: name("x"), r#type: Some(TypeProto { value: Some(sequence) }) };
    assert!(text(x, value("y", F32, "1")).contains("input `x` is a sequence: how long it is must be known"));
    let mut x = value("x", F32, "1");
    if let Some(TypeKind::Tensor(t)) = &mut x.r#type.as_mut().unwrap().value {
        t.shape = None;
    }
    let rank = text(x, value("y", F32, "1"));
    assert!(rank.contains("the rank of input `x` is not known") && rank.contains("--shape x:DIMS"), "{rank}");
}

#[test]
fn what_only_the_run_knows_is_named() {
    let inputs = vec![value("x", F32, "2,3"), value("size", I64, "")];
    let p = problems(&single(13, node("SplitToSequence", "x size", "y", vec![]), inputs, &[]));
    assert!(p[0].contains("input 1 (the length of a piece) must be known when the model is compiled"), "{p:?}");
}

#[test]
fn files_that_are_no_models_are_refused() {
    let text = |data: &[u8]| {
        let e = nnc_frontend::onnx::parse(data.to_vec().into(), "m.onnx", None, &Default::default()).expect_err("refused");
        e.to_string()
    };
    assert!(text(b"").contains("the file holds no graph"));
    assert!(text(b"hello, world").contains("m.onnx: no ONNX protobuf"));
    let missing = nnc_frontend::onnx::load("no/such/file.onnx".as_ref(), &Default::default()).expect_err("refused");
    assert_eq!(missing.0[0].code(), Code::Io);
    let mut future = single(17, node("Relu", "x", "y", vec![]), vec![value("x", F32, "1")], &[]);
    future.ir_version = 99;
    assert!(problems(&future)[0].contains("IR version 99 is newer than"));
}

/// Of each problem the text where it says what is asked for, in this order.
fn all(m: &ModelProto, what: &[&str]) {
    let found = problems(m);
    assert!(found.len() == what.len() && found.iter().zip(what).all(|(a, w)| a.contains(w)), "{found:#?}");
}

#[test]
fn attributes_behind_an_unknown_operator_are_checked() {
    let nodes = vec![
        node("Foo", "x", "a", vec![]),
        node("Transpose", "a", "b", vec![string("perm", "zz")]),
        node("Conv", "a w", "c", vec![string("auto_pad", "BOGUS")]),
        node("Concat", "b c", "d", vec![]),
        node("Relu", "a", "e", vec![int("fast", 1)]),
        node("BitShift", "a a", "f", vec![string("direction", "UP")]),
        node("Softmax", "a", "g", vec![int("axis", 7)]),
        node("Reshape", "a shape", "h", vec![]),
        node("Relu", "a a", "i", vec![]),
        node("Bar", "h", "y", vec![]),
    ];
    let mut g = graph(vec![value("x", F32, "2,3")], nodes, vec![value("y", F32, "")]);
    g.initializer = vec![tensor::to_proto("w", &f32s(&[1, 1, 2, 2], &[0.; 4])), tensor::to_proto("shape", &i64s(&[6]))];
    let what = [
        "operator Foo is not supported",
        "attribute `perm` should be integers, found a string",
        "attribute `auto_pad` is `BOGUS`",
        "attribute `axis` is missing",
        "Relu of opset 17 has no attribute `fast`",
        "attribute `direction` is `UP`",
        "Relu takes 1 inputs, 2 are given",
        "operator Bar is not supported",
    ];
    all(&model(17, g), &what);
}

#[test]
fn bodies_behind_an_unknown_operator_are_checked() {
    let untyped = |n: &str| ValueInfoProto { name: name(n), r#type: None };
    let x = || vec![value("x", F32, "2,3"), value("go", BOOL, "")];
    let two = vec![tensor::to_proto("two", &f32s(&[5], &[0.; 5])), tensor::to_proto("n", &Tensor::scalar(3i64))];
    let with = |nodes: Vec<NodeProto>| {
        let mut g = graph(x(), nodes, vec![untyped("y")]);
        g.initializer = two.clone();
        model(17, g)
    };
    let foo = || node("Foo", "x", "a", vec![]);
    let yes = graph(vec![], vec![node("Bar", "a", "t", vec![])], vec![untyped("t")]);
    let no = graph(vec![], vec![node("Add", "x two", "e", vec![])], vec![untyped("e")]);
    let branches = || vec![of_graph("then_branch", yes.clone()), of_graph("else_branch", no.clone())];
    let inner = ["operator Bar is not supported", "[2,3]"];
    all(&with(vec![foo(), node("If", "go", "y", branches())]), &["operator Foo is", inner[0], inner[1]]);
    all(&with(vec![foo(), node("If", "a", "y", branches())]), &["operator Foo is", inner[0], inner[1]]);

    let step = vec![node("Bar", "v", "w", vec![]), node("Softmax", "x", "q", vec![int("axis", 9)]), node("Identity", "c", "d", vec![])];
    let body = graph(vec![untyped("i"), untyped("c"), untyped("v")], step, vec![untyped("d"), untyped("w")]);
    let repeat = node("Loop", "n _ a", "y", vec![of_graph("body", body)]);
    all(&with(vec![foo(), repeat]), &["operator Foo is", "operator Bar is", "axis 9 is outside a tensor of rank 2"]);

    // A carried value is what its declaration says.
    let step = vec![node("Bar", "v", "w", vec![]), node("Softmax", "v", "q", vec![int("axis", 9)]), node("Identity", "c", "d", vec![])];
    let body = graph(vec![untyped("i"), untyped("c"), value("v", F32, "2,3")], step, vec![untyped("d"), untyped("w")]);
    let repeat = node("Loop", "n _ a", "y", vec![of_graph("body", body)]);
    all(&with(vec![foo(), repeat]), &["operator Foo is", "operator Bar is", "axis 9 is outside a tensor of rank 2"]);

    let step = vec![node("Softmax", "r", "q", vec![int("axis", 9)]), node("Add", "s r", "t", vec![])];
    let body = graph(vec![untyped("s"), untyped("r")], step, vec![untyped("t"), untyped("q")]);
    let scan = node("Scan", "a x", "y z", vec![of_graph("body", body), int("num_scan_inputs", 1)]);
    all(&with(vec![foo(), scan]), &["operator Foo is", "axis 9 is outside a tensor of rank 1"]);
}

fn sparse(values: &Tensor, indices: &Tensor, dims: &[i64]) -> SparseTensorProto {
    let (values, indices) = (tensor::to_proto("s", values), tensor::to_proto("", indices));
    SparseTensorProto { values: Some(values), indices: Some(indices), dims: dims.to_vec() }
}

#[test]
fn sparse_constants_are_written_out() {
    let rows = Tensor::new(&[2, 2], &[0i64, 2, 1, 0]);
    let s = || sparse(&f32s(&[2], &[5., 7.]), &rows, &[2, 3]);
    let want = f32s(&[2, 3], &[0., 0., 5., 7., 0., 0.]);
    let mut m = single(13, node("Add", "x s", "y", vec![]), vec![value("x", F32, "2,3")], &[]);
    m.graph.as_mut().unwrap().sparse_initializer = vec![s()];
    assert_eq!(run(&m, &[f32s(&[2, 3], &[0.; 6])]), std::slice::from_ref(&want));
    let attribute = |s: SparseTensorProto| AttributeProto {
        name: name("sparse_value"),
        sparse_tensor: Some(Box::new(s)),
        r#type: attribute_type::SPARSE_TENSOR,
        ..Default::default()
    };
    let constant = |s: SparseTensorProto| single(13, node("Constant", "", "y", vec![attribute(s)]), vec![], &[]);
    assert_eq!(run(&constant(s()), &[]), std::slice::from_ref(&want));
    assert_eq!(run(&constant(sparse(&f32s(&[2], &[5., 7.]), &i64s(&[2, 3]), &[2, 3])), &[]), [want]);
    let text = Tensor::text(&[1], vec!["a".into()]).unwrap();
    let words = Tensor::text(&[3], vec!["".into(), "a".into(), "".into()]).unwrap();
    assert_eq!(run(&constant(sparse(&text, &i64s(&[1]), &[3])), &[]), [words]);

    let refused = |values: usize, indices: &[i64], dims: &[i64], what: &str| {
        let p = problems(&constant(sparse(&f32s(&[values], &vec![1.; values]), &i64s(indices), dims)));
        assert!(p.len() == 1 && p[0].contains(what), "{what}: {p:?}");
    };
    refused(2, &[1, 6], &[2, 3], "index 6 is outside 0..6");
    refused(1, &[-1], &[2, 3], "index -1 is outside");
    refused(2, &[1, 1], &[2, 3], "position 1 comes after 1");
    refused(1, &[1, 2], &[2, 3], "1 values of a tensor [2, 3] are at indices i64[2]");
    refused(1, &[1], &[-2], "a length of -2");
    refused(1, &[1], &[1 << 38], "sparse tensors of the model take more than 1024 MiB");
    refused(1, &[1], &[1 << 40, 1 << 40], "is too large");
}

/// Sizes that are known are compared when the model is read: kernels rely on them.
#[test]
fn operands_of_sizes_that_do_not_fit_are_refused() {
    let refused = |opset: i64, op: NodeProto, inputs: Vec<ValueInfoProto>, why: &str| {
        let p = problems(&single(opset, op, inputs, &[]));
        assert!(p.len() == 1 && p[0].contains(why), "{p:?}");
    };
    let scatter = || vec![value("x", F32, "3,2"), value("i", I64, "3,500"), value("u", F32, "3,500")];
    refused(
        18,
        node("ScatterElements", "x i u", "y", vec![]),
        scatter(),
        "scatter_elements of f32[3,2], i64[3,500], f32[3,500] needs 500 to be at most 2",
    );
    let short = vec![value("x", F32, "3,2"), value("i", I64, "3,2"), value("u", F32, "3,1")];
    refused(18, node("ScatterElements", "x i u", "y", vec![]), short, "needs 2 to be equal to 1");
    let elements = vec![value("x", F32, "3,2,0"), value("i", I64, "3,2,2")];
    refused(17, node("GatherElements", "x i", "y", vec![]), elements, "gather_elements of f32[3,2,0], i64[3,2,2] needs 2 to be at most 0");
    let updates = vec![value("x", F32, "4,3"), value("i", I64, "5,1"), value("u", F32, "2,3")];
    refused(18, node("ScatterND", "x i u", "y", vec![]), updates, "needs 5 to be equal to 2");
    let batch = vec![value("x", F32, "2,3"), value("i", I64, "5000,1")];
    refused(17, node("GatherND", "x i", "y", vec![int("batch_dims", 1)]), batch, "needs 2 to be equal to 5000");
    let cache = vec![value("x", F32, "2,1,4,0"), value("u", F32, "2,1,1,5"), value("i", I64, "2")];
    refused(24, node("TensorScatter", "x u i", "y", vec![]), cache, "needs 5 to be at most 0");
    let loss = || vec![value("x", F32, "0,5,6"), value("t", I64, "3,6")];
    refused(22, node("NegativeLogLikelihoodLoss", "x t", "y", vec![string("reduction", "none")]), loss(), "needs 3 to be at most 0");
    refused(22, node("SoftmaxCrossEntropyLoss", "x t", "y", vec![string("reduction", "none")]), loss(), "needs 3 to be at most 0");
}

#[test]
fn tensors_that_no_machine_holds_are_refused() {
    let refused = |op: NodeProto, inputs: Vec<ValueInfoProto>, initializer: &[(&str, Tensor)], why: &str| {
        let p = problems(&single(17, op, inputs, initializer));
        assert!(p.len() == 1 && p[0].contains(why), "{p:?}");
    };
    let far = i64s(&[i64::MAX, i64::MAX]);
    refused(node("Pad", "x s", "y", vec![]), vec![value("x", F32, "3")], &[("s", far)], "is too large");
    refused(
        node("MatMul", "x x", "y", vec![]),
        vec![value("x", F32, "2147483648,2147483648")],
        &[],
        "input `x`: a tensor f32[2147483648,2147483648] is too large",
    );
    refused(node("Relu", "x", "y", vec![]), vec![value("x", F32, "3,9223372036854775807")], &[], "input `x`: a tensor");
    refused(node("Relu", "x", "y", vec![]), vec![value("x", F32, "N,0,4611686018427387904")], &[], "input `x`: a tensor");
    let tall = vec![value("x", F32, "1048576,1"), value("w", F32, "1,1073741824")];
    refused(node("MatMul", "x w", "y", vec![]), tall, &[], "matmul: a tensor f32[1048576,1073741824] is too large");
}
