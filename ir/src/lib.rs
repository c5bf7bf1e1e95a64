//! nnc-ir: what a model *is*. Knows no file format, operating system or instruction.
//!
//! Reading order: [`dim`] and [`types`] (what values look like), [`tensor`] (constants), [`scalar`] (functions of numbers) with [`minifloat`]
//! and [`derivative`], [`ops`]
//! (THE TABLE of tensor operations), [`graph`] and [`builder`] (tensor programs), [`checks`] (what may be an error of the run), [`mod@verify`] (their invariants), [`mod@eval`] (the reference interpreter), then
//! [`kernel`] (loops over buffers: what backends compile) and [`target`] (what a machine can do).

pub mod attrs;
pub mod builder;
pub mod checks;
pub mod derivative;
pub mod dim;
pub mod error;
pub mod eval;
pub mod examples;
pub mod graph;
pub mod kernel;
pub mod known;
pub mod minifloat;
pub mod near;
pub mod ops;
pub mod print;
pub mod scalar;
pub mod symbols;
pub mod target;
pub mod tensor;
pub mod types;
pub mod verify;
pub mod winograd;

pub use builder::{Builder, V};
pub use dim::Dim;
pub use error::{Error, Loc, Report, Result};
pub use graph::{Graph, Node, NodeId, Value};
pub use ops::Op;
pub use scalar::ScalarFn;
pub use target::Target;
pub use tensor::Tensor;
pub use types::{DType, Type};
