//! If, Loop, Scan and what their bodies see.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::tensor;
use nnc_ir::Tensor;

fn untyped(n: &str) -> ValueInfoProto {
    ValueInfoProto { name: name(n), r#type: None }
}

/// `c ? x[:1] : -x`, with x from outside: lengths that differ.
fn branching() -> ModelProto {
    let mut first = graph(vec![], vec![node("Slice", "x zero one", "a", vec![])], vec![untyped("a")]);
    first.initializer = vec![tensor::to_proto("zero", &i64s(&[0])), tensor::to_proto("one", &i64s(&[1]))];
    let negated = graph(vec![], vec![node("Neg", "x", "b", vec![])], vec![untyped("b")]);
    let branch = node("If", "c", "y", vec![of_graph("then_branch", first), of_graph("else_branch", negated)]);
    model(17, graph(vec![value("c", BOOL, ""), value("x", F32, "3")], vec![branch], vec![value("y", F32, "n")]))
}

#[test]
fn branches_may_give_different_lengths() {
    let x = f32s(&[3], &[1., 2., 3.]);
    assert_eq!(run(&branching(), &[Tensor::scalar(true), x.clone()]), [f32s(&[1], &[1.])]);
    assert_eq!(run(&branching(), &[Tensor::scalar(false), x]), [f32s(&[3], &[-1., -2., -3.])]);
}

#[test]
fn a_known_condition_chooses_before_the_run() {
    let mut m = branching();
    let g = m.graph.as_mut().unwrap();
    g.input.remove(0);
    // rank(x) == 1, computed by the graph.
    g.initializer.push(tensor::to_proto("k", &Tensor::scalar(1i64)));
    g.node.insert(0, node("Shape", "x", "s", vec![]));
    g.node.insert(1, node("Size", "s", "rank", vec![]));
    g.node.insert(2, node("Equal", "rank k", "c", vec![]));
    let imported = load(&m).unwrap();
    assert!(imported.graph.order().iter().all(|id| imported.graph.node(*id).regions.is_empty()));
    assert_eq!(run(&m, &[f32s(&[3], &[4., 5., 6.])]), [f32s(&[1], &[4.])]);
}

#[test]
fn a_loop_carries_collects_and_grows() {
    // s += i; collects s; list = concat(list, [s]).
    let body = graph(
        vec![value("i", I64, ""), value("go", BOOL, ""), value("s", I64, ""), value("list", I64, "?")],
        vec![
            node("Add", "s i", "t", vec![]),
            node("Unsqueeze", "t axis", "one", vec![]),
            node("Concat", "list one", "longer", vec![int("axis", 0)]),
            node("Identity", "go", "again", vec![]),
            node("Identity", "t", "seen", vec![]),
        ],
        vec![untyped("again"), untyped("t"), untyped("longer"), untyped("seen")],
    );
    let mut g = graph(
        vec![value("n", I64, "")],
        vec![node("Loop", "n _ start empty", "sum list all", vec![of_graph("body", body)])],
        vec![value("sum", I64, ""), value("list", I64, "m"), value("all", I64, "k")],
    );
    g.initializer =
        vec![tensor::to_proto("start", &Tensor::scalar(10i64)), tensor::to_proto("empty", &i64s(&[])), tensor::to_proto("axis", &i64s(&[0]))];
    let m = model(17, g);
    assert_eq!(run(&m, &[Tensor::scalar(4i64)]), [Tensor::scalar(16i64), i64s(&[10, 11, 13, 16]), i64s(&[10, 11, 13, 16])]);
    assert_eq!(run(&m, &[Tensor::scalar(0i64)]), [Tensor::scalar(10i64), i64s(&[]), i64s(&[])]);
}

#[test]
fn a_scan_runs_backwards_and_along_other_axes() {
    // Running sums of the columns of x [2,3], from the last column on; written back in the order of the columns.
    let body = graph(
        vec![value("s", F32, "2"), value("c", F32, "2")],
        vec![node("Add", "s c", "t", vec![]), node("Identity", "t", "u", vec![])],
        vec![untyped("t"), untyped("u")],
    );
    let attributes = vec![
        of_graph("body", body),
        int("num_scan_inputs", 1),
        ints("scan_input_axes", &[1]),
        ints("scan_input_directions", &[1]),
        ints("scan_output_axes", &[-1]),
        ints("scan_output_directions", &[1]),
    ];
    let m = single(16, node("Scan", "zero x", "last all", attributes), vec![value("x", F32, "2,3")], &[("zero", f32s(&[2], &[0., 0.]))]);
    let y = run(&m, &[f32s(&[2, 3], &[1., 2., 4., 10., 20., 40.])]);
    assert_eq!(y, [f32s(&[2], &[7., 70.]), f32s(&[2, 3], &[7., 6., 4., 70., 60., 40.])]);
}

#[test]
fn a_body_that_changes_rank_is_refused() {
    let body = graph(
        vec![value("i", I64, ""), value("go", BOOL, ""), value("s", F32, "1")],
        vec![node("Unsqueeze", "s axis", "t", vec![])],
        vec![untyped("go"), untyped("t")],
    );
    let m = single(
        17,
        node("Loop", "n _ x", "y", vec![of_graph("body", body)]),
        vec![value("n", I64, ""), value("x", F32, "1")],
        &[("axis", i64s(&[0]))],
    );
    let p = problems(&m);
    assert!(p[0].contains("carried value 0 is f32[1] before and f32[1,1] after an iteration"), "{p:?}");
    assert!(p[0].contains("m.onnx, node 0 `n_y` (Loop, opset 17)"), "{p:?}");
}

#[test]
fn an_exception_of_another_rank_is_refused_by_the_run() {
    // zero where d is 1, else 2 / (d - 1) of the vector d: the rank is that of what is computed.
    let yes = graph(vec![], vec![node("Identity", "zero", "a", vec![])], vec![untyped("a")]);
    let no = graph(vec![], vec![node("Sub", "d one", "e", vec![]), node("Div", "two e", "b", vec![])], vec![untyped("b")]);
    let nodes = vec![node("Equal", "d one", "c", vec![]), node("If", "c", "y", vec![of_graph("then_branch", yes), of_graph("else_branch", no)])];
    let mut g = graph(vec![value("d", F32, "1")], nodes, vec![untyped("y")]);
    g.initializer = [("zero", 0f32), ("one", 1.), ("two", 2.)].map(|(n, v)| tensor::to_proto(n, &Tensor::scalar(v))).to_vec();
    let m = load(&model(17, g)).unwrap();
    let y = |d: f32| nnc_ir::eval::run(&m.graph, &[f32s(&[1], &[d])], &nnc_ir::eval::Env::default());
    assert_eq!(y(5.).unwrap(), [f32s(&[1], &[0.5])]);
    assert!(y(1.).is_err());
}
