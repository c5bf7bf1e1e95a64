//! nnc-passes: Graph -> Graph -> Program.
//!
//! Reading order: [`pass`] (what a pass is given and may say), [`pipeline`] (the only place that knows the order), then one pass a
//! file. Passes ask an operation's class where they can, and never what format a model came in.

mod constant;
pub mod cost;
pub mod cse;
pub mod dce;
pub mod egraph;
pub mod fold;
pub mod pass;
pub mod pipeline;
pub mod rebuild;

pub use pass::{Decision, Observer, Options, Precision, Refusal};
pub use pipeline::{optimize, pass_names, run_pass};
