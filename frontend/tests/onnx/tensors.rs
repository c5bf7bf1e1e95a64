//! TensorProto in its many forms.

use crate::model::*;
use half::{bf16, f16};
use nnc_frontend::onnx::proto::TensorProto;
use nnc_frontend::onnx::tensor;
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
        let bytes: Vec<u8> = (0..6 * dtype.bytes()).map(|i| if dtype == DType::Bool { i as u8 & 1 } else { i as u8 }).collect();
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
    let e = parse(TensorProto { data_type: 21, dims: vec![1], ..Default::default() }).expect_err("int4");
    assert!(e.contains("elements of type uint4 are not supported"), "{e}");
}
