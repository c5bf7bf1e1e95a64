//! Conversions to and quantisation in types of 8 bits and fewer: the tables of the specification.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::{DType, Tensor};

/// The codes that x becomes.
fn codes(op: NodeProto, x: &Tensor, constants: &[(&str, Tensor)]) -> Vec<u8> {
    let shape = x.shape().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let m = single(26, op, vec![value("x", x.dtype().abi_code(), &shape)], constants);
    run(&m, std::slice::from_ref(x)).remove(0).bytes().to_vec()
}

fn cast(to: DType, attributes: Vec<AttributeProto>, x: &[f32]) -> Vec<u8> {
    let op = node("Cast", "x", "y", [vec![int("to", to.abi_code().into())], attributes].concat());
    codes(op, &f32s(&[x.len()], x), &[])
}

#[test]
fn float8_saturates_unless_told_otherwise() {
    let x = [f32::INFINITY, f32::NEG_INFINITY, 1e6, -1e6, -0.0, 1.0, f32::NAN];
    let table = [
        (DType::F8E4M3FN, [0x7e, 0xfe, 0x7e, 0xfe, 0x80, 0x38, 0x7f], [0x7f, 0xff, 0x7f, 0xff, 0x80, 0x38, 0x7f]),
        (DType::F8E4M3FNUZ, [0x7f, 0xff, 0x7f, 0xff, 0x00, 0x40, 0x80], [0x80, 0x80, 0x80, 0x80, 0x00, 0x40, 0x80]),
        (DType::F8E5M2, [0x7b, 0xfb, 0x7b, 0xfb, 0x80, 0x3c, 0x7e], [0x7c, 0xfc, 0x7c, 0xfc, 0x80, 0x3c, 0x7e]),
        (DType::F8E5M2FNUZ, [0x7f, 0xff, 0x7f, 0xff, 0x00, 0x40, 0x80], [0x80, 0x80, 0x80, 0x80, 0x00, 0x40, 0x80]),
    ];
    for (to, saturated, strict) in table {
        assert_eq!(cast(to, vec![], &x), saturated, "{to}");
        assert_eq!(cast(to, vec![int("saturate", 0)], &x), strict, "{to}");
    }
    assert_eq!(cast(DType::F4E2M1, vec![], &[f32::INFINITY, -7.0, 0.25, 0.75, 2.5, -5.0]), [7, 15, 0, 2, 4, 14]);
}

#[test]
fn exponents_round_as_told() {
    let x = [1.0, 1.25, 1.5, 2.0, 3.0, 2f32.powi(-127), f32::NAN];
    let to = |saturate: i64, mode: &str, x: &[f32]| cast(DType::F8E8M0, vec![int("saturate", saturate), string("round_mode", mode)], x);
    assert_eq!(to(1, "up", &x), [127, 128, 128, 128, 129, 0, 255]);
    assert_eq!(to(1, "down", &x), [127, 127, 127, 128, 128, 0, 255]);
    assert_eq!(to(1, "nearest", &x), [127, 127, 128, 128, 129, 0, 255]);
    assert_eq!(to(1, "up", &[0.0, f32::INFINITY, 3e38, 1e-45]), [0, 254, 254, 0]);
    assert_eq!(to(0, "nearest", &[0.0, f32::INFINITY, 3e38]), [255, 255, 255]);
    assert_eq!(to(0, "down", &[3e38]), [254]);
}

#[test]
fn bits_are_read_as_another_type() {
    let bits = |to: DType, x: &Tensor| codes(node("BitCast", "x", "y", vec![int("to", to.abi_code().into())]), x, &[]);
    assert_eq!(bits(DType::I32, &f32s(&[1], &[-0.0])), [0, 0, 0, 0x80]);
    let fours = Tensor::from_bytes(DType::I4, vec![2], vec![0xff, 7].into()).unwrap();
    assert_eq!(bits(DType::U4, &fours), [15, 7]);
    let m = single(26, node("BitCast", "x", "y", vec![int("to", DType::I16.abi_code().into())]), vec![value("x", F32, "1")], &[]);
    assert!(problems(&m)[0].contains("f32 has 32 bits, i16 has 16"));
}

#[test]
fn narrow_types_are_quantised_to_and_from() {
    let quantise = |zero: Tensor, x: &[f32]| {
        let op = node("QuantizeLinear", "x s z", "y", vec![]);
        codes(op, &f32s(&[x.len()], x), &[("s", Tensor::scalar(2f32)), ("z", zero)])
    };
    let zero = |d: DType, code: u8| Tensor::from_bytes(d, vec![], vec![code].into()).unwrap();
    assert_eq!(quantise(zero(DType::I4, 1), &[0.0, 3.0, 100.0, -100.0]), [1, 3, 7, 0xf8]);
    assert_eq!(quantise(zero(DType::U2, 1), &[0.0, 2.0, 100.0, -100.0]), [1, 2, 3, 0]);
    assert_eq!(quantise(zero(DType::F8E4M3FN, 0), &[2.0, 1e4, -1e4]), [0x38, 0x7e, 0xfe]);

    // Blocks of two along axis 0, with a zero point for each.
    let x = Tensor::from_bytes(DType::U4, vec![4, 1], vec![1, 2, 3, 15].into()).unwrap();
    let constants = [("s", f32s(&[2, 1], &[10., 100.])), ("z", Tensor::from_bytes(DType::U4, vec![2, 1], vec![1, 5].into()).unwrap())];
    let op = node("DequantizeLinear", "x s z", "y", vec![int("axis", 0), int("block_size", 2)]);
    let y = run(&single(21, op, vec![value("x", 21, "4,1")], &constants), &[x]).remove(0);
    assert_eq!(y, f32s(&[4, 1], &[0., 10., -200., 1000.]));
}
