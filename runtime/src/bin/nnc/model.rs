//! From the command line's MODEL to something that runs.

use crate::args::{self, Compilation, Inputs};
use crate::edge::{self, Outcome, is_dash};
use crate::{data, observe};
use clap::ValueEnum;
use nnc::ir::{DType, Error, Graph, Tensor};
use nnc::nncg::Artefact;
use nnc::threads::Pool;
use nnc::{Description, Engine, Format, Model, Options, Port, Precision, Session, Size, Weights};
use nnc_frontend::onnx::call::Item;
use nnc_frontend::onnx::{Kind, ModelOutput};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The options as the library takes them.
pub fn options(c: &Compilation) -> Options {
    Options {
        dims: c.dims.clone(),
        shapes: c.shapes.clone(),
        level: c.level,
        target: c.target.clone().unwrap_or_else(|| "native".into()),
        precision: match c.precision {
            args::Precision::Fast => Precision::Fast,
            args::Precision::Exact => Precision::Exact,
            args::Precision::Bf16 => Precision::Bf16,
            args::Precision::Tf32 => Precision::Tf32,
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
    /// Which of the session's outputs each output of the model is, where the file says.
    pub outputs: Vec<ModelOutput>,
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
    let format = Format::of(path, &data[..data.len().min(64)]);
    if format == Format::Library {
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
        let outputs = grouped(session.outputs());
        return Ok(Ready { session, inputs, graph: None, outputs, load, compile: Duration::ZERO });
    }
    if format == Format::Nncg {
        let session = Artefact::read(data)?.session(engine.map(engine_of))?;
        let mut watch = observe::Watch::new(c)?;
        session.plan().into_iter().for_each(|p| watch.plan(p));
        watch.finish()?;
        let load = start.elapsed();
        let (inputs, outputs) = (read(session.inputs())?, grouped(session.outputs()));
        return Ok(Ready { session, inputs, graph: None, outputs, load, compile: Duration::ZERO });
    }
    let engine = engine_of(engine.unwrap_or(args::Engine::Jit));
    let (Model { graph, outputs, .. }, inputs) = specialized(path, data, given, &read, c)?;
    let load = start.elapsed();
    let start = Instant::now();
    let session = match engine {
        Engine::Interpreter => Session::interpreter(graph.clone()),
        engine => {
            let options = Options { engine, threads, ..options(c) };
            let mut watch = observe::Watch::new(c)?;
            let session = nnc::session(graph.clone(), &options, &mut watch)?;
            session.plan().into_iter().for_each(|p| watch.plan(p));
            watch.finish()?;
            session
        }
    };
    Ok(Ready { session, inputs, graph: Some(graph), outputs, load, compile: start.elapsed() })
}

/// The outputs of a library: `x[0]`, `x[1]`... are a sequence, `x.keys` and `x.values` a map or a sequence of maps, as the importer names
/// them. None where there is no such thing.
fn grouped(ports: &[Port]) -> Vec<ModelOutput> {
    let mut out: Vec<ModelOutput> = vec![];
    for (k, port) in ports.iter().enumerate() {
        if let Some(name) = port.name.strip_suffix(".keys").filter(|n| ports.get(k + 1).is_some_and(|p| *p.name == format!("{n}.values"))) {
            let kind = if ports[k + 1].shape.len() == port.shape.len() { Kind::Map } else { Kind::Sequence };
            out.push(ModelOutput { name: name.into(), kind, layout: Item::Map([(), ()]) });
            continue;
        }
        if let Some(ModelOutput { name, layout: Item::Map(_), .. }) = out.last()
            && *port.name == format!("{name}.values")
        {
            continue;
        }
        let element = port.name.strip_suffix(']').and_then(|n| n.rsplit_once('[')).and_then(|(n, i)| Some((n, i.parse::<usize>().ok()?)));
        match (element, out.last_mut()) {
            (Some((name, i)), Some(ModelOutput { name: last, layout: Item::List(list), .. })) if *last == name && list.len() == i => list.push(()),
            (Some((name, 0)), _) => out.push(ModelOutput { name: name.into(), kind: Kind::Sequence, layout: Item::List(vec![()]) }),
            _ => out.push(ModelOutput { name: port.name.to_string(), kind: Kind::Tensor, layout: Item::Tensor(()) }),
        }
    }
    if out.len() == ports.len() && out.iter().all(|o| o.kind == Kind::Tensor) { vec![] } else { out }
}

/// The engine as the library calls it.
pub fn engine_of(engine: args::Engine) -> Engine {
    match engine {
        args::Engine::Interp => Engine::Interpreter,
        args::Engine::Jit => Engine::Jit,
        args::Engine::So => Engine::SharedLibrary,
        args::Engine::Vulkan => Engine::Vulkan,
        args::Engine::Cuda => Engine::Cuda,
    }
}

type Read<'a> = &'a dyn Fn(&[Port]) -> Outcome<Vec<Option<Tensor>>>;

/// Contents that may decide the shape of a graph: few integers, or one condition.
fn is_small(t: &Tensor) -> bool {
    matches!(t.dtype(), DType::I64 | DType::I32 | DType::Bool) && t.shape().len() <= 1 && t.elems() <= 64
}

/// The model for the given inputs, some of which are sequences or optionals.
fn structured(path: &Path, data: bytes::Bytes, kinds: &[(String, Kind)], given: &Inputs, c: &Compilation) -> Outcome<(Model, Vec<Option<Tensor>>)> {
    let mut options = options(c);
    let items = data::items(given, kinds)?;
    let mut values = vec![];
    for ((name, kind), item) in kinds.iter().zip(&items) {
        match item {
            Item::Tensor(t) if *kind == Kind::Tensor => {
                options.shapes.push((name.clone(), t.shape().iter().map(|d| *d as i64).collect()));
                values.extend(Some(t).filter(|t| is_small(t)).map(|t| (name.clone(), t.clone())));
            }
            item => options.items.push((name.clone(), item.map(Tensor::ty))),
        }
    }
    let model = match nnc::parse(path, data.clone(), &options, &[]) {
        Err(_) if !values.is_empty() => nnc::parse(path, data, &options, &values)?,
        model => model?,
    };
    Ok((model, items.iter().flat_map(|i| i.tensors().iter().cloned().map(Some)).collect()))
}

/// The model for the sizes of the given inputs.
fn specialized(path: &Path, data: bytes::Bytes, given: &Inputs, read: Read, c: &Compilation) -> Outcome<(Model, Vec<Option<Tensor>>)> {
    if let Some(kinds) = nnc::structured_inputs(path, data.clone()) {
        return structured(path, data, &kinds, given, c);
    }
    let mut options = options(c);
    let first = nnc::parse(path, data.clone(), &options, &[]);
    let ports = match &first {
        Ok(model) => Description::of_graph(&model.graph).inputs,
        // What an operator needs to know before the run may stand in an input.
        Err(report) => nnc::declared_inputs(path, data.clone()).ok_or_else(|| report.clone())?,
    };
    let inputs = match (read(&ports), &first) {
        (Ok(inputs), _) => inputs,
        (Err(_), Err(report)) => return Err(report.clone().into()),
        (Err(e), Ok(_)) => return Err(e),
    };
    let first = match first {
        Ok(model) if ports.iter().all(|p| p.shape.iter().all(|s| matches!(s, Size::Known(_)))) => return Ok((model, inputs)),
        first => first,
    };
    for (port, t) in ports.iter().zip(&inputs) {
        if let Some(t) = t.as_ref().filter(|t| t.shape().len() == port.shape.len() && options.shapes.iter().all(|(n, _)| **n != *port.name)) {
            options.shapes.push((port.name.to_string(), t.shape().iter().map(|d| *d as i64).collect()));
        }
    }
    let small = |t: &&Tensor| is_small(t);
    let values: Vec<(String, Tensor)> = match first {
        Err(_) => ports.iter().zip(&inputs).filter_map(|(p, t)| Some((p.name.to_string(), t.as_ref().filter(small)?.clone()))).collect(),
        Ok(_) => vec![],
    };
    match (nnc::parse(path, data, &options, &values), first) {
        (Ok(model), _) => Ok((model, inputs)),
        // These sizes can make a branch senseless that the run does not take: the model with open sizes serves them, too.
        (Err(_), Ok(model)) => Ok((model, inputs)),
        // The first report is about the model as it is written.
        (Err(_), Err(report)) if values.is_empty() => Err(report.into()),
        (Err(report), Err(_)) => Err(report.into()),
    }
}
