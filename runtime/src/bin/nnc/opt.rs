//! `nnc opt` and `nnc fmt`: text to text.

use crate::args::{Fmt, Opt};
use crate::edge::{self, Outcome};
use crate::{model, observe::Watch};
use nnc::ir::Error;
use nnc_passes::{pass_names, run_pass};

pub fn opt(a: &Opt) -> Outcome {
    // All names are looked at before the first pass runs.
    if let Some(pass) = a.passes.iter().find(|p| !pass_names().contains(&p.as_str())) {
        return Err(Error::name(format!("no pass is called {pass}; passes are {}", pass_names().join(", "))).into());
    }
    let options = model::options(&a.compilation);
    let target = nnc::build::target_of(&options)?;
    let mut watch = Watch::new(&a.compilation)?;
    let mut graph = model::load_graph(&a.model, &a.compilation)?;
    for pass in &a.passes {
        graph = run_pass(pass, graph, &target, &nnc::build::pass_options(&options), &mut watch)?;
    }
    watch.finish()?;
    // A file is for reading back, stdout for looking at.
    let text = if edge::is_dash(&a.output) { graph.to_string() } else { nnc::ir::print::full(&graph).to_string() };
    edge::write(&a.output, text.as_bytes())
}

pub fn fmt(a: &Fmt) -> Outcome {
    let text = String::from_utf8(edge::read(&a.model)?).map_err(|_| Error::syntax(format!("{} is no UTF-8 text", a.model.display())))?;
    edge::write(&a.output, nnc_frontend::nn::format(&text, &a.model.display().to_string())?.as_bytes())
}
