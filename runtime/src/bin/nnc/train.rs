//! `nnc train`: a model that a `.nn` file describes, trained, and left in the forms that were asked for.

use crate::args::Train;
use crate::edge::{self, Outcome};
use crate::{compile, grad, model, progress};
use nnc::ir::{Error, Tensor};
use nnc::train::{Progress, Run, Trained, folder_of, safetensors, svg};
use nnc::{Options, npy};
use nnc_frontend::nn::train::Training;
use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

pub fn train(a: &Train) -> Outcome {
    let text = String::from_utf8(edge::read(&a.model)?).map_err(|_| Error::syntax(format!("{} is no UTF-8 text", a.model.display())))?;
    let name = a.model.file_name().map_or_else(|| a.model.display().to_string(), |n| n.to_string_lossy().into_owned());
    let Some(mut training) = Training::parse(&text, &name)? else {
        return Err(Error::name(format!("{name} has no training block: `train on MODULE as NAME {{ ... }}`")).into());
    };
    for given in &a.set {
        let (name, value) = given.split_once('=').ok_or_else(|| Error::input(format!("--set {given}: expected NAME=VALUE")))?;
        training.set(name.trim(), value)?;
    }
    let save = a.save.as_deref().map(Saved::of).transpose()?;
    if a.output.as_ref().is_some_and(|o| o.extension().is_none_or(|e| e != "so")) {
        return Err(Error::input("-o writes the trained model as a library: OUT.so").note("--save writes it as .onnx").into());
    }
    if a.resume && a.checkpoint.is_none() {
        return Err(Error::input("--resume goes on from a checkpoint: say where with --checkpoint FOLDER").into());
    }
    let run = Run {
        training: &training,
        folder: a.data.clone().unwrap_or_else(|| folder_of(&a.model)),
        options: Options { threads: a.threads, engine: a.engine.map(model::engine_of).unwrap_or_default(), ..Options::default() },
        checkpoint: a.checkpoint.clone().map(|folder| (folder, a.checkpoint_every.max(1))),
        resume: a.resume,
        steps: a.steps,
        events: a.tensorboard.clone(),
    };
    if let Some(path) = &a.step {
        let graph = run.step()?;
        return if path.extension().is_some_and(|e| e == "so") { compile::graph(graph, path, &run.options) } else { grad::write(&graph, path) };
    }
    let bar = progress::steps();
    let trained = run.train(&mut |p| {
        bar.set_length(p.steps);
        bar.set_position(p.step);
        bar.set_message(line(p));
        if p.test.is_some() {
            bar.suspend(|| edge::say(&format!("step {}/{}: {}", p.step, p.steps, line(p))));
        }
    })?;
    bar.finish_and_clear();
    edge::say(&format!(
        "{} steps in {:.1} s, compiled in {:.1} s{}",
        trained.losses.len(),
        trained.seconds,
        trained.compile_seconds,
        trained.test.as_deref().map(|t| format!("; test: {}", named(t))).unwrap_or_default()
    ));
    leave(a, &training, &trained, save)
}

/// Everything that was asked for.
fn leave(a: &Train, training: &Training, trained: &Trained, save: Option<Saved>) -> Outcome {
    if let Some(path) = &a.curve {
        edge::write(path, svg(&format!("loss, {}", a.model.display()), &trained.losses).as_bytes())?;
    }
    match (&a.save, save) {
        (Some(path), Some(Saved::Model)) => grad::write(&training.model(&trained.values)?, path)?,
        (Some(path), Some(save)) => edge::write(path, &save.bytes(&trained.values)?)?,
        _ => {}
    }
    if let Some(path) = &a.output {
        compile::graph(training.model(&trained.values)?, path, &Options::default())?;
    }
    Ok(())
}

fn named(values: &[(String, f64)]) -> String {
    values.iter().map(|(name, v)| format!("{name} {v:.4}")).collect::<Vec<_>>().join(", ")
}

fn line(p: &Progress) -> String {
    let mut out = format!("loss {:.4}", p.loss);
    if !p.measures.is_empty() {
        out += &format!(", {}", named(p.measures));
    }
    if let Some(t) = p.test {
        out += &format!("; test: {}", named(t));
    }
    out + &format!(" ({:.0} samples/s)", p.samples as f64 / p.seconds.max(1e-9))
}

/// What a training leaves in a file: the model, or its parameters.
#[derive(Clone, Copy)]
enum Saved {
    Model,
    Npz,
    Safetensors,
}

impl Saved {
    fn of(path: &Path) -> Outcome<Saved> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("onnx" | "nn") => Ok(Saved::Model),
            Some("npz") => Ok(Saved::Npz),
            Some("safetensors") => Ok(Saved::Safetensors),
            _ => Err(Error::unsupported(format!(
                "{}: a trained model is saved as .onnx or .nn, its parameters as .npz or .safetensors",
                path.display()
            ))
            .into()),
        }
    }

    fn bytes(self, values: &HashMap<String, Tensor>) -> Outcome<Vec<u8>> {
        match self {
            Saved::Safetensors => Ok(safetensors(values)?),
            Saved::Npz | Saved::Model => {
                let mut arrays: Vec<(String, Tensor)> = values.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
                arrays.sort_by(|a, b| a.0.cmp(&b.0));
                let mut file = Cursor::new(vec![]);
                npy::write_npz(&mut file, &arrays)?;
                Ok(file.into_inner())
            }
        }
    }
}
