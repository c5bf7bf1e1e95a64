//! ONNX messages in few words.

use bytes::Bytes;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::{self, ImportOptions, Model, tensor};
use nnc_ir::eval::{self, Env};
use nnc_ir::{Report, Tensor};
use prost::Message;

pub fn name(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

/// A dimension: a number, or a symbol (`""` leaves it open).
pub fn dim(text: &str) -> Dimension {
    let value = text.parse().map_or_else(|_| DimKind::Param(name(text)), DimKind::Value);
    Dimension { value: Some(value) }
}

pub const F32: i32 = 1;
pub const I64: i32 = 7;
pub const BOOL: i32 = 9;

/// A value of an element type and a shape, written `"N,3,2"`; a scalar where that is empty.
pub fn value(n: &str, elem_type: i32, shape: &str) -> ValueInfoProto {
    let dim = shape.split(',').filter(|_| !shape.is_empty()).map(dim).collect();
    let kind = TypeKind::Tensor(TensorType { elem_type, shape: Some(TensorShapeProto { dim }) });
    ValueInfoProto { name: name(n), r#type: Some(TypeProto { value: Some(kind) }) }
}

/// `y, z = Op(a, b)`, names separated by blanks; `_` leaves one out.
pub fn node(op: &str, inputs: &str, outputs: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    let list = |s: &str| s.split_whitespace().map(|n| name(if n == "_" { "" } else { n })).collect();
    NodeProto {
        op_type: name(op),
        input: list(inputs),
        output: list(outputs),
        attribute,
        name: name(&format!("n_{}", outputs.trim())),
        ..Default::default()
    }
}

pub fn int(n: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name(n), i: Some(i), r#type: attribute_type::INT, ..Default::default() }
}

pub fn ints(n: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name(n), ints: ints.to_vec(), r#type: attribute_type::INTS, ..Default::default() }
}

pub fn float(n: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name(n), f: Some(f), r#type: attribute_type::FLOAT, ..Default::default() }
}

pub fn string(n: &str, s: &str) -> AttributeProto {
    AttributeProto { name: name(n), s: Some(name(s)), r#type: attribute_type::STRING, ..Default::default() }
}

pub fn of_tensor(n: &str, t: &Tensor) -> AttributeProto {
    AttributeProto { name: name(n), t: Some(Box::new(tensor::to_proto("", t))), r#type: attribute_type::TENSOR, ..Default::default() }
}

pub fn of_graph(n: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { name: name(n), g: Some(Box::new(g)), r#type: attribute_type::GRAPH, ..Default::default() }
}

/// The caller's attribute `of` inside a function.
pub fn reference(n: &str, of: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: name(n), ref_attr_name: name(of), r#type: kind, ..Default::default() }
}

pub fn graph(inputs: Vec<ValueInfoProto>, node: Vec<NodeProto>, outputs: Vec<ValueInfoProto>) -> GraphProto {
    GraphProto { name: name("g"), input: inputs, node, output: outputs, ..Default::default() }
}

pub fn import(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: name(domain), version }
}

pub fn model(opset: i64, graph: GraphProto) -> ModelProto {
    ModelProto { ir_version: 8, opset_import: vec![import("", opset)], graph: Some(Box::new(graph)), ..Default::default() }
}

pub fn load(m: &ModelProto) -> Result<Model, Report> {
    load_with(m, &ImportOptions::default())
}

pub fn load_with(m: &ModelProto, options: &ImportOptions) -> Result<Model, Report> {
    onnx::parse(m.encode_to_vec().into(), "m.onnx", None, options)
}

/// Imports and evaluates.
pub fn run(m: &ModelProto, inputs: &[Tensor]) -> Vec<Tensor> {
    run_with(m, &ImportOptions::default(), inputs)
}

pub fn run_with(m: &ModelProto, options: &ImportOptions, inputs: &[Tensor]) -> Vec<Tensor> {
    let m = load_with(m, options).unwrap_or_else(|e| panic!("{e}"));
    eval::run(&m.graph, inputs, &Env::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// The problems of a model that must not import, as `code: message` lines with the node's place.
pub fn problems(m: &ModelProto) -> Vec<String> {
    let report = load(m).expect_err("the model should be refused");
    report.0.iter().map(ToString::to_string).collect()
}

pub fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, values)
}

pub fn i64s(values: &[i64]) -> Tensor {
    Tensor::new(&[values.len()], values)
}

/// One operator on one or more inputs of known types, with initializers beside them.
pub fn single(opset: i64, op: NodeProto, inputs: Vec<ValueInfoProto>, initializer: &[(&str, Tensor)]) -> ModelProto {
    let outputs = op.output.iter().map(|o| ValueInfoProto { name: o.clone(), r#type: None }).collect();
    let mut g = graph(inputs, vec![op], outputs);
    g.initializer = initializer.iter().map(|(n, t)| tensor::to_proto(n, t)).collect();
    model(opset, g)
}
