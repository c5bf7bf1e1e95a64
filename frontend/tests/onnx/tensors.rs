//! TensorProto in its many forms.

use crate::model::*;
use half::{bf16, f16};
use nnc_frontend::onnx::proto::TensorProto;
use nnc_frontend::onnx::tensor;
use nnc_ir::tensor::low_bits;
use nnc_ir::{DType, Tensor};
use prost::Message;

fn parse(t: TensorProto) -> Result<Tensor, String> {
    tensor::parse(t.encode_to_vec().into()).map(|(_, t)| t).map_err(|e| e.to_string())
}

fn of_ints(data_type: i32, int32_data: Vec<i32>) -> TensorProto {
    TensorProto { data_type, dims: vec![int32_data.len() as i64], int32_data, ..Default::default() }
}

#[test]
fn every_type_survives_the_way_there_and_back() {
    for dtype in DType::ALL {
        let byte = |i: usize| match dtype {
            DType::Bool => i as u8 & 1,
            d if d.bits() < 8 => low_bits(d, i as u8 * 5),
            _ => i as u8,
        };
        let bytes: Vec<u8> = (0..6 * dtype.bytes()).map(byte).collect();
        let t = Tensor::from_bytes(dtype, vec![2, 3], bytes.into()).unwrap();
        assert_eq!(tensor::parse(tensor::encode("t", &t).into()), Ok(("t".to_string(), t)));
    }
}

#[test]
fn typed_fields_hold_what_the_format_says() {
    assert_eq!(parse(TensorProto { data_type: 1, dims: vec![2], float_data: vec![1.5, -2.0], ..Default::default() }), Ok(f32s(&[2], &[1.5, -2.0])));
    assert_eq!(parse(TensorProto { data_type: 11, dims: vec![], double_data: vec![0.1], ..Default::default() }), Ok(Tensor::scalar(0.1f64)));
    assert_eq!(parse(TensorProto { data_type: 7, dims: vec![1], int64_data: vec![-5], ..Default::default() }), Ok(i64s(&[-5])));
    let u32s = TensorProto { data_type: 12, dims: vec![1], uint64_data: vec![4_000_000_000], ..Default::default() };
    assert_eq!(parse(u32s), Ok(Tensor::new(&[1], &[4_000_000_000u32])));
    assert_eq!(parse(of_ints(3, vec![-1, 127])), Ok(Tensor::new(&[2], &[-1i8, 127])));
    assert_eq!(parse(of_ints(9, vec![0, 1, 2])), Ok(Tensor::new(&[3], &[false, true, true])));
    // Bits of half floats: 0x3c00 and 0x3f80 are 1.
    assert_eq!(parse(of_ints(10, vec![0x3c00])), Ok(Tensor::new(&[1], &[f16::ONE])));
    assert_eq!(parse(of_ints(16, vec![0x3f80])), Ok(Tensor::new(&[1], &[bf16::ONE])));
}

#[test]
fn raw_bools_are_zero_or_one() {
    let t = TensorProto { data_type: 9, dims: vec![3], raw_data: Some(vec![0, 7, 255].into()), ..Default::default() };
    assert_eq!(parse(t).map(|t| t.bytes().to_vec()), Ok(vec![0, 1, 1]));
}

#[test]
fn lengths_must_fit() {
    let raw = |dims: Vec<i64>, n: usize| TensorProto { data_type: 1, dims, raw_data: Some(vec![0; n].into()), name: name("w"), ..Default::default() };
    assert_eq!(parse(raw(vec![2, 0], 0)).map(|t| t.elems()), Ok(0));
    for (t, what) in [
        (raw(vec![2], 7), "takes 8 bytes, 7 are given"),
        (raw(vec![-1], 4), "a length of -1"),
        (raw(vec![i64::MAX, 4], 4), "is too large"),
        (raw(vec![1 << 40, 1 << 40], 4), "is too large"),
        (raw(vec![3], 0), "takes 12 bytes, 0 are given"),
        (TensorProto { raw_data: None, ..raw(vec![3], 0) }, "takes 12 bytes, 0 are given"),
        (TensorProto { float_data: vec![1.0; 2], ..raw(vec![3], 0) }, "2 elements of f32 are given"),
    ] {
        let e = parse(t).expect_err(what);
        assert!(e.contains(what) && e.contains("tensor `w`"), "{e}");
    }
    let e = parse(TensorProto { data_type: 14, dims: vec![1], ..Default::default() }).expect_err("complex");
    assert!(e.contains("elements of type complex64 are not supported"), "{e}");
    let e = parse(TensorProto { data_type: 22, dims: vec![3], raw_data: Some(vec![0; 3].into()), ..Default::default() }).expect_err("int4");
    assert!(e.contains("takes 2 bytes in a file, 3 are given"), "{e}");
}

#[test]
fn narrow_elements_are_packed_low_bits_first() {
    let raw =
        |data_type: i32, n: i64, bytes: &[u8]| TensorProto { data_type, dims: vec![n], raw_data: Some(bytes.to_vec().into()), ..Default::default() };
    let cases: [(i32, &[u8], &[f64]); 6] = [
        (22, &[0x8f, 0x07], &[-1., -8., 7.]),
        (21, &[0x8f, 0x07], &[15., 8., 7.]),
        (26, &[0b11_10_01_00, 0b01], &[0., 1., -2., -1., 1.]),
        (25, &[0b11_10_01_00, 0b01], &[0., 1., 2., 3., 1.]),
        (23, &[0x2f, 0x01], &[-6., 1., 0.5]),
        // Six bits each: 001000 (1), 011111 (7.5), 100000 (-0), 000001 (0.125), 101000 (-1).
        (27, &[0b1100_1000, 0b0000_0111, 0b0000_0110, 0b0010_1000], &[1., 7.5, -0., 0.125, -1.]),
    ];
    for (code, bytes, want) in cases {
        let t = parse(raw(code, want.len() as i64, bytes)).unwrap();
        assert_eq!(t.to_f64s(), want, "{}", t.dtype());
        assert_eq!(tensor::to_proto("", &t).raw_data.as_deref(), Some(bytes), "{}", t.dtype());
        let ints = TensorProto { dims: vec![want.len() as i64], ..of_ints(code, bytes.iter().map(|b| i32::from(*b)).collect()) };
        assert_eq!(parse(ints), Ok(t));
    }
}
