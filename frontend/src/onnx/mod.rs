//! ONNX: protobuf files to graphs. The only room that knows ONNX.

pub mod call;
pub mod ops;
