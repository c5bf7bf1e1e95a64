//! The graph verifier finds everything at once.

use nnc_ir::graph::{Graph, NodeId, Output, Value};
use nnc_ir::ops::control::If;
use nnc_ir::ops::index::NonZero;
use nnc_ir::ops::source::Dims;
use nnc_ir::verify::verify;
use nnc_ir::{Builder, DType, Dim, Type};

fn value(node: u32, port: u32) -> Value {
    Value { node: NodeId(node), port }
}

/// 0 x, 1 y, 2 x + y, 3 exp; output z.
fn sample() -> Graph {
    let b = Builder::new("sample");
    let x = b.input("x", Type::new(DType::F32, vec![Dim::sym("N"), Dim::Const(4)]));
    let y = b.input("y", Type::of(DType::F32, &[4]));
    b.output("z", (x + y).named("sum").exp());
    b.finish().unwrap()
}

fn messages(g: &Graph) -> Vec<String> {
    verify(g).map_or_else(|r| r.0.iter().map(|e| e.message().to_string()).collect(), |()| vec![])
}

#[test]
fn what_builders_make_is_accepted() {
    assert_eq!(verify(&sample()), Ok(()));
}

#[test]
fn missing_operands_and_outputs() {
    let mut g = sample();
    g.node_mut(NodeId(2)).operands[1] = value(9, 0);
    g.node_mut(NodeId(3)).operands[0] = value(2, 1);
    g.outputs.push(Output { name: "z".into(), value: Value::POISON });
    g.node_mut(NodeId(1)).name = "x".into();
    assert_eq!(
        messages(&g),
        [
            "node 2 `sum` (add): operand 1 is result 0 of node 9, which does not exist",
            "node 3 (exp): operand 0 is result 1 of node 2, which does not exist",
            "output 1 `z` is result 0 of node 4294967295, which does not exist",
            "two inputs are called `x`",
            "two outputs are called `z`",
        ]
    );
}

#[test]
fn types_edges_and_lists() {
    let mut g = sample();
    g.node_mut(NodeId(3)).types[0].shape[1] = Dim::Const(5);
    g.node_mut(NodeId(2)).operands[1] = value(0, 0);
    g.inputs.pop();
    g.outputs.clear();
    assert_eq!(
        messages(&g),
        [
            "graph sample: node 1 is an input and not listed, or the reverse",
            "node 2 `sum` (add): the graph's edges are not those of the operands",
            "node 3 (exp): its types are [f32[N,5]], inference gives [f32[N,4]]",
            "the graph sample has no outputs",
        ]
    );
}

#[test]
fn cycles_are_named() {
    let mut g = sample();
    g.set_operand(NodeId(2), 1, value(3, 0));
    assert_eq!(messages(&g), ["a cycle: node 2 `sum` (add) -> node 3 (exp) -> node 2 `sum` (add)"]);
}

#[test]
fn sizes_must_be_bound() {
    let b = Builder::new("sizes");
    let x = b.input("x", Type::of(DType::F32, &[4]));
    let count = Dim::sym("count");
    b.output("n", b.op(Dims { values: vec![count.clone()], scalar: true }, &[]));
    b.output("lost", b.op(Dims { values: vec![Dim::sym("M") + Dim::Const(1)], scalar: false }, &[]));
    b.output("at", b.op(NonZero { count }, &[x]));
    // What reads `count` comes after the node that binds it, wherever it was built.
    assert_eq!(messages(&b.finish().unwrap()), ["node 2 (dims): the size M is one that nothing binds"]);
}

#[test]
fn regions_are_checked() {
    let branch = |name: &str| {
        let b = Builder::new(name);
        b.output("", b.input("v", Type::of(DType::F32, &[2])).exp());
        b.finish().unwrap()
    };
    let mut bad = branch("no");
    bad.node_mut(NodeId(1)).operands[0] = value(7, 0);
    let b = Builder::new("main");
    let (c, x) = (b.input("c", Type::of(DType::Bool, &[])), b.input("x", Type::of(DType::F32, &[2])));
    b.output("y", b.op_all(If {}, &[c, x], vec![branch("yes"), bad])[0]);
    let mut g = b.finish().unwrap();
    g.node_mut(NodeId(2)).regions[1].outputs.push(Output { name: "lost".into(), value: Value::POISON });
    let report = verify(&g).unwrap_err();
    let all: Vec<(&str, &[String])> = report.0.iter().map(|e| (e.message(), e.notes())).collect();
    let note: &[String] = &["in region 1 of node 2 (if)".into()];
    assert_eq!(
        all,
        [
            ("node 1 (exp): operand 0 is result 0 of node 7, which does not exist", note),
            ("output 1 `lost` is result 0 of node 4294967295, which does not exist", note),
        ]
    );
}
