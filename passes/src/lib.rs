//! nnc-passes: Graph -> Graph -> Program.
//!
//! Reading order: [`pass`] (what a pass is given and may say), [`pipeline`] (the only place that knows the order), then one pass a
//! file. Passes ask an operation's class where they can, and never what format a model came in. [`mod@lower`] leaves the world of
//! tensors: after it there are loops ([`nnc_ir::kernel`]).

pub mod attend;
pub mod autodiff;
mod constant;
pub mod cost;
pub mod cse;
pub mod dce;
pub mod egraph;
pub mod expand;
pub mod fold;
pub mod fuse;
pub mod hoist;
pub mod host;
pub mod layout;
pub mod lower;
pub mod memory;
pub mod pass;
pub mod phases;
pub mod pipeline;
pub mod rebuild;
mod recipe;
mod sums;
pub mod unstride;

pub use autodiff::differentiate;
pub use lower::lower;
pub use pass::{Decision, Observer, Options, Precision, Refusal};
pub use pipeline::{compile, optimize, pass_names, run_pass};
