//! `nnc grad` and `nnc export`: models as models.

use crate::args::{Compilation, Export, Grad};
use crate::edge::{self, Outcome};
use crate::model;
use nnc::ir::{Error, Graph};
use std::path::Path;

pub fn grad(a: &Grad) -> Outcome {
    let graph = model::load_graph(&a.model, &a.compilation)?;
    write(&nnc::gradient(graph, a.of.as_deref(), &a.wrt)?, &a.output)
}

pub fn export(a: &Export) -> Outcome {
    write(&model::load_graph(&a.model, &Compilation::default())?, &a.output)
}

/// A graph as the file's suffix says.
pub fn write(graph: &Graph, output: &Path) -> Outcome {
    match output.extension().and_then(|e| e.to_str()) {
        Some("onnx") => edge::write(output, &nnc_frontend::onnx::export(graph)?),
        Some("nn") => edge::write(output, nnc_ir::print::full(graph).to_string().as_bytes()),
        None if edge::is_dash(output) => edge::write(output, nnc_ir::print::full(graph).to_string().as_bytes()),
        _ => Err(Error::input(format!("{}: models are written as .onnx or .nn", output.display())).into()),
    }
}
