//! nnc-frontend: bytes to graphs.

pub mod nn;
pub mod onnx;
