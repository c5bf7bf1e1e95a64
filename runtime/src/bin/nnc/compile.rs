//! `nnc compile`: a model to a file.

use crate::args::{Compile, Emit, Smoke};
use crate::edge::{self, Outcome, is_dash};
use crate::{model, observe::Watch};
use clap::ValueEnum;
use nnc::ir::Error;
use serde_json::json;

pub fn compile(a: &Compile) -> Outcome {
    let emit = emit(a)?;
    let output = a.output.as_deref().unwrap_or("-".as_ref());
    if a.format.is_some() {
        return Err(Error::unsupported("--format onnx-text is not in this version").into());
    }
    if emit != Emit::Nn {
        let name = emit.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default();
        return Err(Error::unsupported(format!("--emit {name} is not in this version")).into());
    }
    if a.compilation.stats.is_some() && is_dash(output) {
        return Err(Error::input("--stats and -o - both write to stdout: name a file").into());
    }
    let options = model::options(&a.compilation);
    let graph = model::load_graph(&a.model, &a.compilation)?;
    let mut watch = Watch::new(&a.compilation)?;
    let graph = nnc::build::optimized(graph, &options, &mut watch)?;
    watch.finish()?;
    edge::write(output, graph.to_string().as_bytes())?;
    if a.compilation.stats.is_some() {
        edge::print(&format!("{}\n", json!({"passes": watch.stats()})))?;
    }
    Ok(())
}

/// What to write: --emit, or the output's suffix.
fn emit(a: &Compile) -> Outcome<Emit> {
    if let Some(e) = a.emit {
        return Ok(e);
    }
    let names = || Emit::value_variants().iter().filter_map(|e| Some(e.to_possible_value()?.get_name().to_string())).collect::<Vec<_>>().join(", .");
    let wanted = || format!("the suffix says what to write: .{}; or --emit does", names());
    match &a.output {
        None => Err(Error::input("nothing to write: give an output with -o OUT").note(wanted()).into()),
        Some(p) if is_dash(p) => Err(Error::input("with -o - the kind of output is given by --emit").note(wanted()).into()),
        Some(p) => {
            let suffix = p.extension().and_then(|e| e.to_str()).unwrap_or_default();
            Ok(Emit::from_str(suffix, false).map_err(|_| Error::input(format!("{}: nnc does not write such files", p.display())).note(wanted()))?)
        }
    }
}

pub fn smoke(_: &Smoke) -> Outcome {
    Err(Error::unsupported("compiled libraries are not in this version").into())
}
