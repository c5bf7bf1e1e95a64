//! What a pass is given and what it may say.

use nnc_ir::{Graph, Loc, NodeId, Report, Target};
use std::sync::Arc;
use std::time::Duration;

/// How far results may differ from the model as it is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Precision {
    /// Sums may be reordered and Winograd used, within the documented error.
    #[default]
    Fast,
    /// The same bits for any number of threads; no narrow types. Folding constants (batch normalisation) is allowed.
    Exact,
    /// As fast, and contractions round their operands to bf16.
    Bf16,
    /// As fast, and contractions round their operands to tf32: on NVIDIA's GPUs only.
    Tf32,
}

/// What the user asks of the passes.
#[derive(Clone, Debug)]
pub struct Options {
    /// 0 (what is needed) to 3 (everything).
    pub level: u8,
    pub precision: Precision,
    /// Checks the graph after every pass; on in debug builds.
    pub verify: bool,
    /// Gives a blocked convolution its zero padding as an explicit [`Pad`](nnc_ir::ops::movement::Pad) of the input, so that kernels
    /// read a halo instead of testing for the border.
    pub halo: bool,
    /// The pass or stage after which [`optimize`](crate::optimize) stops.
    pub stop_after: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options { level: 2, precision: Precision::Fast, verify: cfg!(debug_assertions), halo: true, stop_after: None }
    }
}

/// An alternative that was not taken.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    pub what: String,
    pub why: String,
}

/// A choice made for one node: a line of the optimisation report.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    pub pass: &'static str,
    pub node: Arc<str>,
    pub loc: Loc,
    pub op: &'static str,
    pub chosen: String,
    /// Estimated cycles of one core.
    pub cycles: f64,
    pub refused: Vec<Refusal>,
}

/// Watches a compilation: printing, timing, reports. `()` watches nothing.
pub trait Observer {
    /// A pass has run (and the graph was verified, where asked for).
    fn after(&mut self, _pass: &'static str, _graph: &Graph, _took: Duration) {}
    fn decision(&mut self, _decision: Decision) {}
}

impl Observer for () {}

/// What holds of a graph between passes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// As the front ends give it.
    Model,
    /// Simplified; layouts are those of the model.
    Simple,
    /// Layouts are chosen and written in the types, weights are in the form that kernels read.
    Laid,
}

impl Stage {
    pub const ALL: [Stage; 3] = [Stage::Model, Stage::Simple, Stage::Laid];

    pub fn name(self) -> &'static str {
        match self {
            Stage::Model => "model",
            Stage::Simple => "simple",
            Stage::Laid => "laid",
        }
    }
}

/// A pass's surroundings.
pub struct Context<'a> {
    pub target: &'a Target,
    pub options: &'a Options,
    /// How many of the graph's last inputs are the same in every iteration of the loop whose body it is.
    pub captures: usize,
    /// Whether the graph is run by a loop, perhaps as the branch of a condition in its body.
    pub in_loop: bool,
    pub observer: &'a mut dyn Observer,
}

impl Context<'_> {
    /// Reports a choice made for `node`.
    pub fn decide(&mut self, pass: &'static str, graph: &Graph, node: NodeId, chosen: String, cycles: f64, refused: Vec<Refusal>) {
        let n = graph.node(node);
        self.observer.decision(Decision { pass, node: n.name.clone(), loc: n.loc.clone(), op: n.op.name(), chosen, cycles, refused });
    }
}

/// A pass: a graph in, a graph out.
pub type Run = fn(Graph, &mut Context) -> Result<Graph, Report>;

/// A row of the pipeline.
pub struct Step {
    pub name: &'static str,
    pub about: &'static str,
    pub run: Run,
    /// The least optimisation level at which the pass runs.
    pub level: u8,
    pub takes: Stage,
    pub leaves: Stage,
}
