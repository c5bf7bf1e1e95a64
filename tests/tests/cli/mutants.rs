//! Damaged and hostile models: exit 0 or 2, a message, no panic, little memory, nothing left behind.

use crate::names;
use nnc_frontend::onnx::proto;
use nnc_tests::command::path;
use std::path::Path;
use std::process::{Command, Output};

/// A generator of numbers for mutations: xorshift64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> proto::TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    proto::TensorProto { name: name.to_string().into(), dims: dims.to_vec(), data_type: 1, raw_data: Some(raw.into()), ..Default::default() }
}

fn node(op: &str, input: &[&str], output: &str, attributes: &[(&str, &[i64])]) -> proto::NodeProto {
    let attribute = |(name, ints): &(&str, &[i64])| proto::AttributeProto {
        name: name.to_string().into(),
        ints: if ints.len() > 1 { ints.to_vec() } else { vec![] },
        i: (ints.len() == 1).then(|| ints[0]),
        r#type: if ints.len() > 1 { proto::attribute_type::INTS } else { proto::attribute_type::INT },
        ..Default::default()
    };
    proto::NodeProto {
        op_type: op.to_string().into(),
        input: input.iter().map(|i| i.to_string().into()).collect(),
        output: vec![output.to_string().into()],
        attribute: attributes.iter().map(attribute).collect(),
        ..Default::default()
    }
}

fn port(name: &str, dims: &[i64]) -> proto::ValueInfoProto {
    let dim = dims.iter().map(|d| proto::Dimension { value: Some(proto::DimKind::Value(*d)) }).collect();
    let shape = Some(proto::TensorShapeProto { dim });
    let value = Some(proto::TypeKind::Tensor(proto::TensorType { elem_type: 1, shape }));
    proto::ValueInfoProto { name: name.to_string().into(), r#type: Some(proto::TypeProto { value }) }
}

/// A small network of the common operators.
fn model() -> proto::ModelProto {
    let ramp = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
    let to = proto::TensorProto { name: "to".into(), dims: vec![2], data_type: 7, int64_data: vec![1, -1], ..Default::default() };
    let graph = proto::GraphProto {
        name: "small".into(),
        node: vec![
            node("Conv", &["x", "w", "b"], "c", &[("kernel_shape", &[3, 3]), ("pads", &[1, 1, 1, 1]), ("strides", &[2, 2])]),
            node("Relu", &["c"], "r", &[]),
            node("MaxPool", &["r"], "p", &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])]),
            node("Add", &["p", "p"], "a", &[]),
            node("Concat", &["a", "p"], "k", &[("axis", &[1])]),
            node("Transpose", &["k"], "t", &[("perm", &[0, 2, 3, 1])]),
            node("Reshape", &["t", "to"], "f", &[]),
            node("Gemm", &["f", "m"], "g", &[("transB", &[1])]),
            node("Softmax", &["g"], "y", &[("axis", &[-1])]),
        ],
        initializer: vec![tensor("w", &[4, 3, 3, 3], &ramp(108)), tensor("b", &[4], &ramp(4)), tensor("m", &[5, 32], &ramp(160)), to],
        input: vec![port("x", &[1, 3, 8, 8])],
        output: vec![port("y", &[1, 5])],
        ..Default::default()
    };
    let opset = proto::OperatorSetIdProto { version: 17, ..Default::default() };
    proto::ModelProto { ir_version: 8, graph: Some(Box::new(graph)), opset_import: vec![opset], ..Default::default() }
}

/// The `k`-th damaged model.
fn mutant(k: usize) -> Vec<u8> {
    use prost::Message;
    let mut r = Numbers(0x9e37_79b9_7f4a_7c15 ^ (k as u64 + 1).wrapping_mul(0x2545_f491_4f6c_dd1d));
    for _ in 0..5 {
        r.below(2);
    }
    let mut m = model();
    let mut bytes = m.encode_to_vec();
    if k < 40 {
        bytes.truncate(bytes.len() * k / 40);
        return bytes;
    }
    if k < 100 {
        for _ in 0..1 + k % 4 {
            let at = r.below(bytes.len());
            bytes[at] ^= 1 << r.below(8);
        }
        return bytes;
    }
    let sizes = [i64::MAX, i64::MIN, -1, 0, 1, 2, 3, 1 << 31, 1 << 40, 1 << 62, 100_000, 7];
    let size = sizes[r.below(sizes.len())];
    let names = ["x", "w", "b", "c", "r", "p", "k", "t", "f", "g", "y", "m", "to", "", "nobody"];
    let name = names[r.below(names.len())].to_string();
    let operators =
        ["Conv", "Gemm", "Reshape", "Loop", "If", "Gather", "TopK", "Resize", "LSTM", "Pad", "Expand", "Nonsense", "ConvTranspose", "Slice"];
    let operator = operators[r.below(operators.len())];
    let g = m.graph.as_mut().expect("the model has a graph");
    let n = r.below(g.node.len());
    let i = r.below(g.initializer.len());
    match k % 12 {
        0 => g.initializer[i].dims[0] = size,
        1 => g.initializer[i].dims.push(size),
        2 => {
            // Any value may be read anywhere: cycles, missing inputs, other types.
            let slot = r.below(g.node[n].input.len());
            g.node[n].input[slot] = name.into();
        }
        3 => g.node[n].output[0] = name.into(),
        4 => g.node[n].op_type = operator.as_bytes().to_vec().into(),
        5 => {
            let count = g.node[n].attribute.len();
            if let Some(a) = g.node[n].attribute.get_mut(if count == 0 { 0 } else { r.below(count) }) {
                a.i = a.i.map(|_| size);
                a.ints.iter_mut().for_each(|v| *v = size);
            } else {
                g.node.remove(n);
            }
        }
        6 => g.input[0] = port("x", &[1, 3, size, sizes[r.below(sizes.len())]]),
        7 => drop(g.initializer.remove(i)),
        8 => g.initializer[i].data_type = r.below(30) as i32,
        9 => {
            let to = g.initializer.iter_mut().find(|t| &*t.name == b"to").expect("the target of Reshape");
            to.int64_data = vec![size, sizes[r.below(sizes.len())]];
        }
        10 => g.node.swap(n, (n + 1) % 9),
        _ => match r.below(5) {
            0 => m.opset_import[0].version = size,
            1 => m.ir_version = size,
            2 => g.output[0] = port(&name, &[size]),
            3 => g.output.clear(),
            _ => g.initializer[i].raw_data = Some(vec![1; r.below(64)].into()),
        },
    }
    m.encode_to_vec()
}

/// Compiles in a folder of its own, with 1 GiB of memory beyond what the program's threads reserve.
fn compile(folder: &Path) -> Output {
    let limited = "ulimit -v 1600000; exec \"$0\" \"$@\"";
    let mut c = Command::new("sh");
    c.current_dir(folder).env("NO_COLOR", "1").args(["-c", limited]).arg(path()).args(["compile", "m.onnx", "-o", "m.so", "-O1"]);
    c.output().expect("sh starts")
}

fn problem(k: usize) -> Option<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("m.onnx"), mutant(k)).expect("a file");
    let done = compile(folder.path());
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    let left = names(folder.path());
    let wrong = match done.status.code() {
        Some(0) => (left != ["m.h", "m.onnx", "m.so"]).then_some("files"),
        Some(2) if !err.contains("error[E") => Some("no message"),
        Some(2) if err.contains("panicked") => Some("a panic"),
        Some(2) => (left != ["m.onnx"]).then_some("files left behind"),
        _ => Some("exit"),
    };
    wrong.map(|why| format!("mutant {k}: {why} {:?}, {left:?}: {err}", done.status))
}

#[test]
fn two_hundred_mutants() {
    path();
    let problems: Vec<String> = std::thread::scope(|s| {
        let part = |first: usize| (first..200).step_by(2).filter_map(problem).collect::<Vec<_>>();
        let threads = [s.spawn(move || part(0)), s.spawn(move || part(1))];
        threads.into_iter().flat_map(|t| t.join().expect("no test thread panics")).collect()
    });
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn the_model_itself_compiles() {
    use prost::Message;
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("m.onnx"), model().encode_to_vec()).expect("a file");
    let done = compile(folder.path());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    nnc_tests::command::call(folder.path(), "verify m.onnx").ok();
}
