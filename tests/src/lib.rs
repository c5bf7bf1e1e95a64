//! nnc-tests: what the suites in `tests/` share. The suites hold every engine against the interpreter, the interpreter against
//! ONNX's own test data, and the repository against its own rules.

pub mod assertion;
pub mod command;
pub mod data;
pub mod onnx;
pub mod ptx;
pub mod random_graph;
pub mod step;
pub mod variants;
