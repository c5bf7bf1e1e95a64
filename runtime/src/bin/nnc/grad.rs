//! `nnc grad`: a model's gradient as a model.

use crate::args::{Compilation, Grad};
use crate::edge::{self, Outcome};
use crate::model;
use nnc::ir::Error;

pub fn grad(a: &Grad) -> Outcome {
    if a.output.extension().is_none_or(|e| e != "nn") && !edge::is_dash(&a.output) {
        return Err(Error::unsupported(format!("{}: gradients are written as .nn", a.output.display())).into());
    }
    let graph = model::load_graph(&a.model, &Compilation::default())?;
    let graph = nnc::gradient(graph, a.of.as_deref(), &a.wrt)?;
    edge::write(&a.output, nnc_ir::print::full(&graph).to_string().as_bytes())
}
