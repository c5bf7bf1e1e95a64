//! From the command line's MODEL to something that runs.

use crate::args::{self, Compilation, Inputs};
use crate::edge::{self, Outcome, is_dash};
use crate::{data, observe};
use clap::ValueEnum;
use nnc::ir::{DType, Error, Graph, Tensor};
use nnc::threads::Pool;
use nnc::{Description, Engine, Format, Model, Options, Port, Precision, Session, Size, Weights};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The options as the library takes them.
pub fn options(c: &Compilation) -> Options {
    Options {
        dims: c.dims.clone(),
        shapes: c.shapes.clone(),
        level: c.level,
        target: c.target.clone(),
        precision: match c.precision {
            args::Precision::Fast => Precision::Fast,
            args::Precision::Exact => Precision::Exact,
            args::Precision::Bf16 => Precision::Bf16,
        },
        weights: match c.weights {
            args::Weights::Embed => Weights::Embedded,
            args::Weights::External => Weights::External,
        },
        prefix: c.prefix.clone(),
        stop_after: c.stop_after.clone(),
        ..Options::default()
    }
}

/// A file's bytes, mapped where it is a file.
pub fn bytes(path: &Path) -> Outcome<bytes::Bytes> {
    Ok(if is_dash(path) { edge::read(path)?.into() } else { nnc_frontend::onnx::map(path)? })
}

pub fn load(path: &Path, c: &Compilation) -> Outcome<Model> {
    Ok(nnc::parse(path, bytes(path)?, &options(c), &[])?)
}

pub fn load_graph(path: &Path, c: &Compilation) -> Outcome<Graph> {
    Ok(load(path, c)?.graph)
}

/// A model with the inputs of a run.
pub struct Ready {
    pub session: Session,
    pub inputs: Vec<Option<Tensor>>,
    /// The model, where it is none that was compiled before.
    pub graph: Option<Graph>,
    pub load: Duration,
    pub compile: Duration,
}

/// Where inputs that are not given come from.
#[derive(Clone, Copy, PartialEq)]
pub enum Missing {
    Stay,
    Random,
}

/// Loads MODEL, reads the inputs, fixes what they decide (symbolic sizes; contents of shape inputs where the model needs them) and
/// compiles for the engine.
pub fn ready(path: &Path, engine: Option<args::Engine>, threads: usize, given: &Inputs, missing: Missing, c: &Compilation) -> Outcome<Ready> {
    if c.stop_after.is_some() || c.stats.is_some() {
        return Err(Error::input("--stop-after and --stats belong to `nnc compile`").into());
    }
    let start = Instant::now();
    let data = bytes(path)?;
    let read = |ports: &[Port]| match missing {
        Missing::Stay => data::inputs(given, ports, c),
        Missing::Random => data::inputs_or_random(given, ports, c),
    };
    if Format::of(path, &data[..data.len().min(64)]) == Format::Library {
        if let Some(e) = engine.filter(|e| *e != args::Engine::So) {
            let e = e.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default();
            return Err(Error::input(format!("{} is compiled already: --engine {e} takes a model", path.display())).into());
        }
        if is_dash(path) {
            return Err(Error::input("a library is loaded from a file, not from stdin").into());
        }
        let session = Session::open(path, &c.prefix, Arc::new(Pool::new(threads)))?;
        let load = start.elapsed();
        let inputs = read(session.inputs())?;
        return Ok(Ready { session, inputs, graph: None, load, compile: Duration::ZERO });
    }
    let engine = native_engine(engine)?;
    let (graph, inputs) = specialized(path, data, &read, c)?;
    let load = start.elapsed();
    let start = Instant::now();
    let session = match engine {
        Engine::Interpreter => Session::interpreter(graph.clone()),
        engine => {
            let options = Options { engine, threads, ..options(c) };
            let mut watch = observe::Watch::new(c)?;
            let session = nnc::session(graph.clone(), &options, &mut watch)?;
            watch.finish()?;
            session
        }
    };
    Ok(Ready { session, inputs, graph: Some(graph), load, compile: start.elapsed() })
}

fn native_engine(engine: Option<args::Engine>) -> Outcome<Engine> {
    match engine.unwrap_or(args::Engine::Jit) {
        args::Engine::Interp => Ok(Engine::Interpreter),
        args::Engine::Jit => Ok(Engine::Jit),
        args::Engine::So => Ok(Engine::SharedLibrary),
        args::Engine::Cuda => Err(Error::unsupported("there is no CUDA engine in this version; engines that run here: interp, jit, so").into()),
        args::Engine::Vulkan => Err(Error::unsupported("there is no Vulkan engine in this version; engines that run here: interp, jit, so").into()),
    }
}

type Read<'a> = &'a dyn Fn(&[Port]) -> Outcome<Vec<Option<Tensor>>>;

/// The graph for the sizes of the given inputs.
fn specialized(path: &Path, data: bytes::Bytes, read: Read, c: &Compilation) -> Outcome<(Graph, Vec<Option<Tensor>>)> {
    let mut options = options(c);
    let first = nnc::parse(path, data.clone(), &options, &[]);
    let (ports, failure) = match first {
        Ok(model) => {
            let ports = Description::of_graph(&model.graph).inputs;
            let inputs = read(&ports)?;
            if ports.iter().all(|p| p.shape.iter().all(|s| matches!(s, Size::Known(_)))) {
                return Ok((model.graph, inputs));
            }
            (ports, None)
        }
        // What an operator needs to know before the run may stand in an input.
        Err(report) => match nnc::declared_inputs(path, data.clone()) {
            Some(ports) => (ports, Some(report)),
            None => return Err(report.into()),
        },
    };
    let inputs = match (read(&ports), &failure) {
        (Ok(inputs), _) => inputs,
        (Err(_), Some(report)) => return Err(report.clone().into()),
        (Err(e), None) => return Err(e),
    };
    for (port, t) in ports.iter().zip(&inputs) {
        if let Some(t) = t.as_ref().filter(|t| t.shape().len() == port.shape.len() && options.shapes.iter().all(|(n, _)| **n != *port.name)) {
            options.shapes.push((port.name.to_string(), t.shape().iter().map(|d| *d as i64).collect()));
        }
    }
    let small = |t: &&Tensor| matches!(t.dtype(), DType::I64 | DType::I32) && t.shape().len() <= 1 && t.elems() <= 64;
    let values: Vec<(String, Tensor)> = match failure {
        Some(_) => ports.iter().zip(&inputs).filter_map(|(p, t)| Some((p.name.to_string(), t.as_ref().filter(small)?.clone()))).collect(),
        None => vec![],
    };
    let model = nnc::parse(path, data, &options, &values);
    match (model, failure) {
        (Ok(model), _) => Ok((model.graph, inputs)),
        // The first report is about the model as it is written.
        (Err(_), Some(report)) if values.is_empty() => Err(report.into()),
        (Err(report), _) => Err(report.into()),
    }
}
