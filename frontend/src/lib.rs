//! nnc-frontend: bytes to graphs.

pub mod onnx;
