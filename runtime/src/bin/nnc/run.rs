//! `nnc run`: a model on files or made-up inputs.

use crate::args::Run;
use crate::edge::{self, Failure, Outcome};
use crate::{data, model};
use nnc::Port;
use nnc::compare::{Tolerance, compare};
use nnc::ir::{Error, Tensor};

pub fn run(a: &Run) -> Outcome {
    let ready = model::ready(&a.model, a.engine, a.threads, &a.inputs, model::Missing::Stay, &a.compilation)?;
    let outputs = ready.session.run_some(&ready.inputs)?;
    let ports = ready.session.outputs();
    data::write(&a.output, ports, &outputs, &ready.outputs)?;
    match &a.expect {
        None => Ok(()),
        Some(from) => {
            let tolerance = Tolerance { rtol: a.tolerances.rtol, atol: a.tolerances.atol };
            hold(ports, &outputs, &data::expected(from, ports, &ready.outputs)?, tolerance)
        }
    }
}

/// Compares outputs with what is expected of them, a line each on stderr.
pub fn hold(ports: &[Port], got: &[Tensor], want: &[Option<Tensor>], tolerance: Tolerance) -> Outcome {
    let mut same = true;
    if got.len() != want.len() {
        return Err(Error::input(format!("{} outputs are expected, the model has {}", want.len(), got.len())).into());
    }
    for ((port, g), w) in ports.iter().zip(got).zip(want) {
        let Some(w) = w else { continue };
        let m = compare(g, w, tolerance);
        same &= m.is_close();
        edge::say(&format!("output `{}` {m}", port.name));
    }
    if same { Ok(()) } else { Err(Failure::Different) }
}
