//! nnc: compiled neural networks, ready to run.
//!
//! ```no_run
//! # fn main() -> Result<(), nnc::Report> {
//! # let x = nnc::Tensor::new(&[1], &[0f32]);
//! let model = nnc::compile("resnet50.onnx")?;
//! let outputs = model.run(&[x])?;
//! # Ok(())
//! # }
//! ```
//!
//! [`compile`] takes `.onnx`, `.nn` and compiled `.so` and `.nncg` files; [`compile_with`] takes [`Options`] too: engine, sizes of symbolic
//! dimensions, optimisation level, target, precision, threads. The result is a [`Session`]: it holds compiled code and a pool of threads, and
//! may be called from several threads. Inputs and outputs are [`Tensor`]s. What is wrong with a model comes back as one [`Report`] of
//! all that was found.

pub mod artifact;
pub mod build;
pub mod compare;
mod describe;
pub mod fill;
pub mod gpu;
mod gradient;
mod library;
mod load;
mod memory;
pub mod nncg;
pub mod npy;
mod options;
mod parts;
pub mod profile;
mod session;
mod specialize;
pub mod support;
pub mod threads;
pub mod train;

pub use build::{compile, compile_with, session};
pub use describe::{Description, Port, Size};
pub use gradient::gradient;
pub use library::Library;
pub use load::{Format, Model, declared_inputs, load, parse, structured_inputs};
pub use memory::Aligned;
pub use nnc_backends::abi;
pub use nnc_ir as ir;
pub use nnc_ir::{Error, Report, Tensor};
pub use options::{Engine, Options, Precision, Weights};
pub use session::{Bound, Session};
