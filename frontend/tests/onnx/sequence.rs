//! Sequences and optionals, whose lengths and presence are settled by the import.

use crate::model::*;
use nnc_frontend::onnx::call::Item;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::{ImportOptions, Kind, item};
use nnc_ir::{DType, Tensor, Type};

fn of(opset: i64, nodes: Vec<NodeProto>, inputs: Vec<ValueInfoProto>, outputs: &[&str], initializer: &[(&str, Tensor)]) -> ModelProto {
    let outputs = outputs.iter().map(|o| ValueInfoProto { name: name(o), r#type: None }).collect();
    let mut g = graph(inputs, nodes, outputs);
    g.initializer = initializer.iter().map(|(n, t)| nnc_frontend::onnx::tensor::to_proto(n, t)).collect();
    model(opset, g)
}

fn structured(n: &str, optional: bool) -> ValueInfoProto {
    let tensor = TypeProto { value: Some(TypeKind::Tensor(TensorType { elem_type: F32, shape: None })) };
    let element = Box::new(ElementType { elem_type: Some(tensor) });
    let kind = if optional { TypeKind::Optional(element) } else { TypeKind::Sequence(element) };
    ValueInfoProto { name: name(n), r#type: Some(TypeProto { value: Some(kind) }) }
}

#[test]
fn sequences_are_their_elements() {
    let nodes = vec![
        node("SequenceEmpty", "", "s0", vec![]),
        node("SequenceInsert", "s0 a", "s1", vec![]),
        node("SequenceInsert", "s1 b zero", "s2", vec![]),
        node("SequenceInsert", "s2 c minus", "s3", vec![]),
        node("SequenceLength", "s3", "n", vec![]),
        node("SequenceErase", "s3 zero", "s4", vec![]),
        node("SequenceAt", "s4 minus", "last", vec![]),
        node("ConcatFromSequence", "s3", "all", vec![int("axis", 0), int("new_axis", 1)]),
    ];
    let (zero, minus) = (("zero", Tensor::scalar(0i64)), ("minus", Tensor::scalar(-1i64)));
    let one = |v: f32| f32s(&[1], &[v]);
    let inputs = ["a", "b", "c"].map(|n| value(n, F32, "1")).to_vec();
    let y = run(&of(17, nodes, inputs, &["n", "last", "all", "s4"], &[zero, minus]), &[one(1.0), one(2.0), one(3.0)]);
    // b, c, a; then c, a.
    assert_eq!(y, [Tensor::scalar(3i64), one(1.0), f32s(&[3, 1], &[2., 3., 1.]), one(3.0), one(1.0)]);
}

#[test]
fn a_position_that_only_the_run_knows() {
    let nodes = vec![node("SequenceConstruct", "a b", "s", vec![]), node("SequenceAt", "s i", "y", vec![])];
    let inputs = vec![value("a", F32, "2"), value("b", F32, "2"), value("i", I64, "")];
    let m = of(17, nodes, inputs, &["y"], &[]);
    let y = run(&m, &[f32s(&[2], &[1., 2.]), f32s(&[2], &[3., 4.]), Tensor::scalar(-1i64)]);
    assert_eq!(y, [f32s(&[2], &[3., 4.])]);
}

#[test]
fn splitting() {
    let cut = |attributes: Vec<AttributeProto>, split: Option<Tensor>| {
        let given: Vec<(&str, Tensor)> = split.into_iter().map(|t| ("k", t)).collect();
        let names = if given.is_empty() { "x" } else { "x k" };
        let m = of(17, vec![node("SplitToSequence", names, "s", attributes)], vec![value("x", F32, "5")], &["s"], &given);
        run(&m, &[f32s(&[5], &[0., 1., 2., 3., 4.])]).iter().map(|t| (t.shape().len(), t.to_f64s())).collect::<Vec<_>>()
    };
    assert_eq!(cut(vec![], Some(Tensor::scalar(2i64))), [(1, vec![0., 1.]), (1, vec![2., 3.]), (1, vec![4.])]);
    assert_eq!(cut(vec![], Some(i64s(&[1, 4]))), [(1, vec![0.]), (1, vec![1., 2., 3., 4.])]);
    assert_eq!(cut(vec![int("keepdims", 0)], None).len(), 5);
    assert_eq!(cut(vec![int("keepdims", 0)], None)[3], (0, vec![3.]));
    let wrong = of(17, vec![node("SplitToSequence", "x k", "s", vec![])], vec![value("x", F32, "5")], &["s"], &[("k", i64s(&[1, 1]))]);
    assert!(problems(&wrong)[0].contains("cannot be cut into [1, 1]"));
}

#[test]
fn optionals_hold_something_or_nothing() {
    let nodes = vec![
        node("Optional", "x", "some", vec![]),
        node("OptionalHasElement", "some", "yes", vec![]),
        node("OptionalGetElement", "some", "y", vec![]),
        node("Optional", "", "none", vec![]),
        node("OptionalHasElement", "none", "no", vec![]),
    ];
    let m = of(18, nodes, vec![value("x", F32, "1")], &["yes", "y", "no"], &[]);
    assert_eq!(run(&m, &[f32s(&[1], &[7.])]), [Tensor::scalar(true), f32s(&[1], &[7.]), Tensor::scalar(false)]);
    let nothing = of(18, vec![node("Optional", "", "o", vec![]), node("OptionalGetElement", "o", "y", vec![])], vec![], &["y"], &[]);
    assert!(problems(&nothing)[0].contains("holds nothing"));
}

#[test]
fn inputs_that_are_sequences() {
    let nodes = vec![node("SequenceLength", "s", "n", vec![]), node("ConcatFromSequence", "s", "y", vec![int("axis", 0)])];
    let m = of(17, nodes, vec![structured("s", false)], &["n", "y"], &[]);
    assert!(problems(&m)[0].contains("how long it is must be known"), "{:?}", problems(&m));
    let f32 = |n: i64| Type::of(DType::F32, &[n]);
    let options = ImportOptions { items: vec![("s".into(), Item::List(vec![f32(1), f32(2)]))], ..Default::default() };
    let y = run_with(&m, &options, &[f32s(&[1], &[1.]), f32s(&[2], &[2., 3.])]);
    assert_eq!(y, [Tensor::scalar(2i64), f32s(&[3], &[1., 2., 3.])]);

    let m = of(18, vec![node("OptionalHasElement", "o", "y", vec![])], vec![structured("o", true)], &["y"], &[]);
    let options = ImportOptions { items: vec![("o".into(), Item::Absent)], ..Default::default() };
    assert_eq!(run_with(&m, &options, &[]), [Tensor::scalar(false)]);
}

#[test]
fn loops_that_grow_sequences_are_unrolled() {
    let body = graph(
        vec![value("i", I64, ""), value("go", BOOL, ""), structured("s", false)],
        vec![
            node("Identity", "go", "go2", vec![]),
            node("Cast", "i", "f", vec![int("to", 1)]),
            node("Add", "f x", "v", vec![]),
            node("SequenceInsert", "s v", "s2", vec![]),
        ],
        vec![value("go2", BOOL, ""), structured("s2", false), value("v", F32, "")],
    );
    let nodes = vec![node("SequenceEmpty", "", "s0", vec![]), node("Loop", "n _ s0", "s vs", vec![of_graph("body", body)])];
    let m = |known: bool| {
        let given = [("n", Tensor::scalar(3i64))];
        let mut inputs = vec![value("x", F32, "")];
        inputs.extend((!known).then(|| value("n", I64, "")));
        of(17, nodes.clone(), inputs, &["s", "vs"], if known { &given } else { &[] })
    };
    let y = run(&m(true), &[Tensor::scalar(10f32)]);
    assert_eq!(y, [Tensor::scalar(10f32), Tensor::scalar(11f32), Tensor::scalar(12f32), f32s(&[3], &[10., 11., 12.])]);
    assert!(problems(&m(false))[0].contains("trip count of a loop with sequences"), "{:?}", problems(&m(false)));
}

#[test]
fn branches_with_sequences_of_one_length() {
    let branch = |n: &str| graph(vec![], vec![node("SequenceConstruct", &format!("{n} {n}"), "s", vec![])], vec![structured("s", false)]);
    let condition = node("If", "c", "s", vec![of_graph("then_branch", branch("a")), of_graph("else_branch", branch("b"))]);
    let m = of(17, vec![condition], vec![value("c", BOOL, ""), value("a", F32, "1"), value("b", F32, "1")], &["s"], &[]);
    let y = run(&m, &[Tensor::scalar(false), f32s(&[1], &[1.]), f32s(&[1], &[2.])]);
    assert_eq!(y, [f32s(&[1], &[2.]), f32s(&[1], &[2.])]);
}

#[test]
fn files_read_back() {
    let t = |v: f32| f32s(&[1], &[v]);
    let text = Tensor::text(&[2], vec!["a".into(), "Ж".into()]).unwrap();
    for (kind, it) in [
        (Kind::Tensor, Item::Tensor(text)),
        (Kind::Sequence, Item::List(vec![t(1.0), t(2.0)])),
        (Kind::Sequence, Item::List(vec![])),
        (Kind::Optional, Item::Tensor(t(3.0))),
        (Kind::Optional, Item::List(vec![t(4.0)])),
        (Kind::Optional, Item::Absent),
    ] {
        assert_eq!(item::parse(item::encode("x", kind, &it).into(), kind).unwrap(), it);
    }
}

fn ml(op: NodeProto) -> NodeProto {
    NodeProto { domain: name("ai.onnx.ml"), ..op }
}

fn strings(n: &str, values: &[&str]) -> AttributeProto {
    AttributeProto { name: name(n), strings: values.iter().map(|s| name(s)).collect(), r#type: attribute_type::STRINGS, ..Default::default() }
}

fn text(values: &[&str]) -> Tensor {
    Tensor::text(&[values.len()], values.iter().map(|s| (*s).into()).collect()).unwrap()
}

/// A model of one operator of ai.onnx.ml.
fn learned(op: NodeProto, input: ValueInfoProto) -> ModelProto {
    let mut m = of(17, vec![ml(op)], vec![input], &["y"], &[]);
    m.opset_import.push(import("ai.onnx.ml", 3));
    m
}

#[test]
fn classifiers_end_in_maps() {
    let m = learned(node("ZipMap", "x", "y", vec![strings("classlabels_strings", &["no", "yes"])]), value("x", F32, "N,2"));
    let x = f32s(&[2, 2], &[0.25, 0.75, 1.0, 0.0]);
    let y = run(&m, std::slice::from_ref(&x));
    assert_eq!(y, [text(&["no", "yes"]), x]);
    let outputs = load(&m).unwrap().outputs;
    assert_eq!((outputs.len(), outputs[0].kind), (1, Kind::Sequence));
    let file = item::encode("y", Kind::Sequence, &Item::Map([y[0].clone(), y[1].clone()]));
    assert_eq!(item::parse(file.into(), Kind::Sequence).unwrap(), Item::Map([y[0].clone(), y[1].clone()]));
    // One row is one map.
    let m = learned(node("ZipMap", "x", "y", vec![ints("classlabels_int64s", &[4, 7])]), value("x", F32, "2"));
    assert_eq!(run(&m, &[f32s(&[2], &[0.5, 0.5])]), [i64s(&[4, 7]), f32s(&[1, 2], &[0.5, 0.5])]);
    let both = vec![strings("classlabels_strings", &["a"]), ints("classlabels_int64s", &[1])];
    assert!(problems(&learned(node("ZipMap", "x", "y", both), value("x", F32, "2")))[0].contains("should list keys"));
}

#[test]
fn maps_become_tensors() {
    let input = ValueInfoProto { name: name("x"), r#type: Some(TypeProto { value: Some(TypeKind::Map(Empty {})) }) };
    let of = |op: &str, attributes: Vec<AttributeProto>, keys: Tensor, values: Tensor| {
        let m = learned(node(op, "x", "y", attributes), input.clone());
        assert!(problems(&m)[0].contains("must be known"), "{:?}", problems(&m));
        let file = item::encode("x", Kind::Map, &Item::Map([keys.clone(), values.clone()]));
        assert_eq!(item::parse(file.into(), Kind::Map).unwrap(), Item::Map([keys.clone(), values.clone()]));
        let options = ImportOptions { items: vec![("x".into(), Item::Map([keys.ty(), values.ty()]))], ..Default::default() };
        run_with(&m, &options, &[keys, values]).remove(0)
    };
    let vocabulary = || vec![strings("string_vocabulary", &["a", "b", "c"])];
    assert_eq!(of("DictVectorizer", vocabulary(), text(&["c", "z", "a"]), f32s(&[3], &[3., 9., 1.])), f32s(&[1, 3], &[1., 0., 3.]));
    let row = |values: &[&str]| text(values).reshaped(vec![1, values.len()]).unwrap();
    let y = of("DictVectorizer", vec![ints("int64_vocabulary", &[5, 6])], i64s(&[6]), text(&["x"]));
    assert_eq!(y, row(&["", "x"]));
    let cast = |attributes: Vec<AttributeProto>, values: Tensor| of("CastMap", attributes, i64s(&[3, 1]), values);
    assert_eq!(cast(vec![], f32s(&[2], &[1.5, 2.25])), f32s(&[1, 2], &[2.25, 1.5]));
    assert_eq!(cast(vec![], text(&["1", "2.5"])), f32s(&[1, 2], &[2.5, 1.0]));
    let sparse = |n: i64| vec![string("cast_to", "TO_INT64"), string("map_form", "SPARSE"), int("max_map", n)];
    assert_eq!(cast(sparse(5), f32s(&[2], &[1.5, 2.25])), Tensor::new(&[1, 5], &[0i64, 2, 0, 1, 0]));
    // A key that is no column.
    let m = load_with(
        &learned(node("CastMap", "x", "y", sparse(3)), input.clone()),
        &ImportOptions { items: vec![("x".into(), Item::Map([i64s(&[3, 1]).ty(), f32s(&[2], &[1., 2.]).ty()]))], ..Default::default() },
    );
    assert!(nnc_ir::eval::run(&m.unwrap().graph, &[i64s(&[3, 1]), f32s(&[2], &[1., 2.])], &Default::default()).is_err());
}
