//! The `.nn` language: what people write, what the compiler prints, what tests hold. The grammar is in `docs/nn.md`.
//!
//! Text goes through [`lex`], [`mod@parse`] (a tree, see [`ast`]) and [`elaborate`](mod@elaborate) (modules are called, loops
//! unrolled unless they are to stay, parameters filled) into a graph.

pub mod ast;
mod call;
mod elaborate;
mod expr;
mod format;
mod init;
mod lex;
mod module;
mod optimizer;
mod parameter;
mod parse;
mod parse_train;
mod random;
mod repeat;
mod schedule;
pub mod train;
mod value;

pub use call::snake_case;
pub use format::format;
use nnc_ir::{Graph, Report};
pub use parameter::Parameter;
pub use schedule::Schedule;
use std::sync::Arc;

/// What a text may ask of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Statements, operators and iterations that may be elaborated.
    pub steps: u64,
    /// Bytes that all constants may take.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { steps: 2 << 20, bytes: 4 << 30 }
    }
}

/// The graph of the text's entry: the module `main`, or else the last without hyper-parameters. `file` names it in errors, which
/// are all independent problems of the text.
pub fn parse(text: &str, file: &str) -> Result<Graph, Report> {
    parse_model(text, file, Limits::default()).map(|(g, _)| g)
}

/// The graph, and which of its constants are parameters, in the order of the text.
pub fn parse_model(text: &str, file: &str, limits: Limits) -> Result<(Graph, Vec<Parameter>), Report> {
    let name: Arc<str> = file.into();
    let tree = parse::parse(text, &name)?;
    elaborate::elaborate(&tree, &name, limits, parameter::Parameters::Constants)
}
