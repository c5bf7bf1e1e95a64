//! Damaged and malicious files: an answer each time, no panic, no memory beyond what the file's size justifies.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::{self, tensor};
use prost::Message;

/// A convolution, a reshape with a shape from the graph, a branch: something of everything, 1.5 kB.
fn sample() -> Vec<u8> {
    let untyped = |n: &str| ValueInfoProto { name: name(n), r#type: None };
    let yes = graph(vec![], vec![node("Relu", "r", "a", vec![])], vec![untyped("a")]);
    let no = graph(vec![], vec![node("LeakyRelu", "r", "b", vec![float("alpha", 0.1)])], vec![untyped("b")]);
    let mut g = graph(
        vec![value("x", F32, "n,3,6,6"), value("c", BOOL, "")],
        vec![
            node("Conv", "x w", "y", vec![ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2]), int("group", 1)]),
            node("MaxPool", "y", "p", vec![ints("kernel_shape", &[2, 2]), string("auto_pad", "SAME_UPPER")]),
            node("Shape", "p", "s", vec![]),
            node("Gather", "s zero", "n", vec![]),
            node("Concat", "n rest", "t", vec![int("axis", 0)]),
            node("Reshape", "p t", "r", vec![]),
            node("If", "c", "z", vec![of_graph("then_branch", yes), of_graph("else_branch", no)]),
            node("Softmax", "z", "out", vec![int("axis", -1)]),
        ],
        vec![value("out", F32, "n,m")],
    );
    g.initializer =
        vec![tensor::to_proto("w", &f32s(&[4, 3, 3, 3], &[0.5; 108])), tensor::to_proto("zero", &i64s(&[0])), tensor::to_proto("rest", &i64s(&[-1]))];
    model(17, g).encode_to_vec()
}

fn answer(data: Vec<u8>) -> bool {
    match onnx::parse(data.into(), "m.onnx", None, &Default::default()) {
        Ok(_) => true,
        Err(report) => {
            assert!(!report.0.is_empty() && report.0.iter().all(|e| !e.message().is_empty()));
            false
        }
    }
}

#[test]
fn the_sample_is_sound() {
    assert!(answer(sample()));
}

#[test]
fn every_truncation_has_an_answer() {
    let data = sample();
    for n in 0..data.len() {
        answer(data[..n].to_vec());
    }
}

#[test]
fn flipped_bits_and_changed_bytes_have_an_answer() {
    let data = sample();
    for i in 0..data.len() {
        for bit in 0..8 {
            let mut bad = data.clone();
            bad[i] ^= 1 << bit;
            answer(bad);
        }
        for byte in [0x00, 0x7f, 0xff] {
            let mut bad = data.clone();
            bad[i] = byte;
            answer(bad);
        }
    }
}

#[test]
fn two_changes_at_a_time() {
    // A fixed sequence (splitmix64), the same on every machine.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    };
    let data = sample();
    for _ in 0..20_000 {
        let mut bad = data.clone();
        for _ in 0..2 {
            let (at, what) = (next() as usize % bad.len(), next());
            match what % 3 {
                0 => bad[at] = (what >> 8) as u8,
                1 => bad.insert(at, (what >> 8) as u8),
                _ => drop(bad.remove(at)),
            }
        }
        answer(bad);
    }
}

/// A field that holds `payload`.
fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encoding::encode_varint(payload.len() as u64, &mut out);
    out.extend_from_slice(payload);
    out
}

#[test]
fn a_file_of_empty_messages_is_not_obeyed() {
    // 20 million empty nodes in 40 MB would decode to 4 GB.
    let nodes = [1 << 3 | 2, 0].repeat(20_000_000);
    let e = onnx::parse(field(7, &nodes).into(), "m.onnx", None, &Default::default()).expect_err("refused");
    assert!(e.to_string().contains("more messages than its"), "{e}");
}

#[test]
fn deep_nesting_is_not_followed() {
    // Graphs in attributes of nodes of graphs.
    let mut g = vec![];
    for _ in 0..2000 {
        g = field(1, &field(5, &field(6, &g)));
    }
    let e = onnx::parse(field(7, &g).into(), "m.onnx", None, &Default::default()).expect_err("refused");
    assert!(e.to_string().contains("nested more than"), "{e}");
}

#[test]
fn small_files_cannot_ask_for_large_tensors() {
    let zeros = |shape: &[i64]| {
        let m = single(17, node("ConstantOfShape", "s", "y", vec![]), vec![], &[("s", i64s(shape))]);
        onnx::parse(m.encode_to_vec().into(), "m.onnx", None, &Default::default()).map(|m| m.graph.ty(m.graph.outputs[0].value).to_string())
    };
    // Kept as one element.
    assert_eq!(zeros(&[1 << 20, 1 << 16]), Ok("f32[1048576,65536]".to_string()));
    assert!(zeros(&[1 << 40, 1 << 40]).is_err());
    assert!(zeros(&[-1]).is_err());
}

#[test]
fn ten_thousand_layers_import_in_a_moment() {
    let mut nodes: Vec<NodeProto> = (0..10_000).map(|i| node("Tanh", &format!("v{i}"), &format!("v{}", i + 1), vec![])).collect();
    nodes.reverse();
    let m = model(17, graph(vec![value("v0", F32, "1")], nodes, vec![value("v10000", F32, "1")]));
    assert_eq!(load(&m).unwrap().graph.len(), 10_001);
}

#[test]
fn names_need_not_be_text() {
    let mut m = single(17, node("Relu", "x", "y", vec![]), vec![value("x", F32, "1")], &[]);
    let odd = bytes::Bytes::from_static(b"\xff\xfe");
    let g = m.graph.as_mut().unwrap();
    g.node[0].output[0] = odd.clone();
    g.output[0].name = odd;
    assert_eq!(&*load(&m).unwrap().graph.outputs[0].name, "\u{fffd}\u{fffd}");
}
