//! ONNX: protobuf files to graphs, and back ([`mod@export`]). The only room that knows ONNX.
//!
//! A file is mapped and weighed ([`scan`]), decoded ([`proto`]), and brought into a graph ([`import`] for the whole, [`scope`] for one
//! level of nodes); each node becomes a [`call::Call`] that a row of [`ops::TABLE`] turns into tensor operations.

mod attribute;
pub mod call;
pub mod examples;
pub mod export;
mod file;
mod import;
pub mod item;
pub mod ops;
pub mod proto;
mod scan;
mod scope;
pub mod tensor;

pub use export::export;
pub use file::map;
pub use import::{ImportOptions, Kind, Model, ModelOutput, input_kinds, input_names, interface, load, parse};
