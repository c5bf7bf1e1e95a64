//! `nnc compile`: a model to a file. A shared library is written to a draft beside its place, loaded and called once by a child
//! process, and only then put in place: what compiled runs.

use crate::args::{Compile, Emit, Smoke};
use crate::edge::{self, Outcome, is_dash};
use crate::smoke::{self, Verdict};
use crate::{model, observe::Watch};
use clap::ValueEnum;
use nnc::artifact::Draft;
use nnc::build;
use nnc::ir::kernel::Program;
use nnc::ir::target::GpuIsa;
use nnc::ir::{Error, Result, Target};
use nnc::nncg::Artefact;
use nnc::{Options, Weights};
use nnc_backends::cpu::{self, Compiled};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

pub fn compile(a: &Compile) -> Outcome {
    let emit = emit(a)?;
    // --stop-after without a file is for looking at.
    let output = a.output.as_deref().unwrap_or("-".as_ref());
    let options = model::options(&a.compilation);
    refuse(a, emit, output)?;
    if matches!(emit, Emit::Ptx | Emit::Spv | Emit::Nncg) {
        return gpu(a, emit, output, &options);
    }
    let options = for_files(options, a.compilation.target.is_none());
    let target = build::target_of(&options)?;
    let mut watch = Watch::new(&a.compilation)?;
    let graph = model::load_graph(&a.model, &a.compilation)?;
    if emit == Emit::Nn || options.stop_after.is_some() {
        let graph = build::optimized(graph, &options, &mut watch)?;
        watch.finish()?;
        // With --stop-after the text goes where text was asked for.
        let (output, text) = if emit == Emit::Nn && !is_dash(output) {
            (output, nnc_ir::print::full(&graph).to_string())
        } else {
            (Path::new("-"), graph.to_string())
        };
        edge::write(output, text.as_bytes())?;
        return stats(a, json!({"passes": watch.stats()}));
    }
    let program = build::program(graph, &options, &mut watch)?;
    let backend = build::backend_options(&options);
    let start = Instant::now();
    let compiled = cpu::compile(&program, &target, &backend, emit == Emit::Clif)?;
    let code = start.elapsed();
    for s in compiled.selections() {
        watch.selection(s);
    }
    watch.finish()?;
    write(&compiled, emit, output, &target, &options)?;
    stats(a, numbers(&program, &compiled, &watch, code, output))
}

/// A model for GPUs: its kernels alone (what a device does not take is no part of them: --opt-report names it), or all of it.
fn gpu(a: &Compile, emit: Emit, output: &Path, options: &Options) -> Outcome {
    let devices = match emit {
        Emit::Nncg => build::gpus(&options.target, options.precision)?,
        Emit::Spv => vec![build::rounded(build::gpu(&options.target, GpuIsa::SpirV)?, options.precision)?],
        _ => vec![build::rounded(build::gpu(&options.target, GpuIsa::Sm80)?, options.precision)?],
    };
    let mut watch = Watch::new(&a.compilation)?;
    let graph = model::load_graph(&a.model, &a.compilation)?;
    // One program serves all kinds of devices: its memory and its launches are the same.
    let program = build::gpu_program(graph, &devices[0], options, &mut watch)?;
    let mut artefact = Artefact::new(program, &devices)?;
    let (mut code, mut kernels, mut on_device) = (Ok(vec![]), 0, vec![]);
    artefact.each_plan(&mut |plan| {
        watch.plan(plan);
        kernels = plan.kernels.len();
        on_device.push(plan.device_kernels().len());
        if emit != Emit::Nncg {
            code = plan.code();
        }
    });
    watch.finish()?;
    let code = code?;
    file(output, |f| match emit {
        Emit::Nncg => artefact.write(f),
        _ => f.write_all(&code).map_err(|e| Error::io(format!("cannot write {}: {e}", output.display()))),
    })?;
    let names: Vec<&str> = devices.iter().map(|d| d.name).collect();
    stats(a, json!({"passes": watch.stats(), "targets": names, "kernels": kernels, "device_kernels": on_device}))
}

/// A graph to a library and its header.
pub fn graph(graph: nnc::ir::Graph, output: &Path, options: &Options) -> Outcome {
    let options = &for_files(options.clone(), options.target == "native");
    let program = build::program(graph, options, &mut ())?;
    let target = build::target_of(options)?;
    let backend = build::backend_options(options);
    let compiled = cpu::compile(&program, &target, &backend, false)?;
    library(&compiled, output, &target, options)
}

/// The options of a file, whose target is not this machine where none was named.
fn for_files(options: Options, unnamed: bool) -> Options {
    if unnamed { Options { target: build::file_target(options.precision), ..options } } else { options }
}

/// Combinations that make no sense, before any work is done.
fn refuse(a: &Compile, emit: Emit, output: &Path) -> Outcome {
    if a.format.is_some() {
        return Err(Error::unsupported("--format onnx-text is not in this version").into());
    }
    if emit == Emit::Nncg && a.compilation.weights == crate::args::Weights::External {
        return Err(Error::unsupported("a .nncg file holds its weights: --weights external is for libraries").into());
    }
    if a.compilation.stats.is_some() && is_dash(output) {
        return Err(Error::input("--stats and -o - both write to stdout: name a file").into());
    }
    if is_dash(output) && a.compilation.weights == crate::args::Weights::External {
        return Err(Error::input("--weights external writes a second file beside the first: name a file").into());
    }
    let c_name = |p: &str| p.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !p.starts_with(|c: char| c.is_ascii_digit()) && !p.is_empty();
    if !c_name(&a.compilation.prefix) {
        return Err(Error::input(format!("--prefix {}: functions of C begin with letters, digits and _", a.compilation.prefix)).into());
    }
    Ok(())
}

fn name(emit: Emit) -> String {
    emit.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
}

/// What to write: --emit, or the output's suffix.
fn emit(a: &Compile) -> Outcome<Emit> {
    if let Some(e) = a.emit {
        return Ok(e);
    }
    let names: Vec<String> = Emit::value_variants().iter().map(|e| format!(".{}", name(*e))).collect();
    let wanted = format!("the suffix says what to write ({}), or --emit does", names.join(" "));
    match &a.output {
        None if a.compilation.stop_after.is_some() => Ok(Emit::Nn),
        None => Err(Error::input("nothing to write: give an output with -o OUT").note(wanted).into()),
        Some(p) if is_dash(p) => Err(Error::input("with -o - the kind of output is given by --emit").note(wanted).into()),
        Some(p) => {
            let suffix = p.extension().and_then(|e| e.to_str()).unwrap_or_default();
            Ok(Emit::from_str(suffix, false).map_err(|_| Error::input(format!("{}: nnc does not write such files", p.display())).note(wanted))?)
        }
    }
}

fn write(compiled: &Compiled, emit: Emit, output: &Path, target: &Target, options: &Options) -> Outcome {
    if matches!(emit, Emit::So | Emit::O | Emit::A) && options.weights == Weights::External {
        file(&output.with_extension("weights"), |f| compiled.write_weights(f).map(|_| ()))?;
    }
    if emit == Emit::So && !is_dash(output) {
        return library(compiled, output, target, options);
    }
    file(output, |f| {
        let text = match emit {
            Emit::So => return compiled.write_so("model.so", f),
            Emit::O => return compiled.write_object(f).map(|_| ()),
            Emit::A => return compiled.write_archive(f).map(|_| ()),
            Emit::H => compiled.header(),
            Emit::Clif => compiled.clif().unwrap_or_default().to_string(),
            Emit::S => compiled.assembly()?,
            other => return Err(Error::internal(format!("{} is written elsewhere", name(other)))),
        };
        f.write_all(text.as_bytes()).map_err(|e| Error::io(format!("cannot write {}: {e}", output.display())))
    })
}

/// A whole file or none of it; `-` is stdout.
fn file(path: &Path, produce: impl FnOnce(&mut dyn Write) -> Result<()>) -> Outcome {
    if is_dash(path) {
        let mut bytes = vec![];
        produce(&mut bytes)?;
        return edge::print_bytes(&bytes);
    }
    let mut draft = Draft::new(path)?;
    fill(&mut draft, produce)?;
    Ok(draft.publish()?)
}

/// The library, checked by a child process, and its header.
fn library(compiled: &Compiled, output: &Path, target: &Target, options: &Options) -> Outcome {
    let soname = output.file_name().map_or("model.so".into(), |n| n.to_string_lossy().into_owned());
    let mut draft = Draft::new(output)?;
    fill(&mut draft, |f| compiled.write_so(&soname, f))?;
    if cpu::is_native(target) {
        let weights = (options.weights == Weights::External).then(|| output.with_extension("weights"));
        match smoke::in_child(draft.path(), &options.prefix, weights.as_deref())? {
            Verdict::Runs => {}
            Verdict::NotCalled(why) => edge::say(&format!("{} was loaded but not called: {why}", output.display())),
            Verdict::Broken(why) => {
                return Err(Error::internal(format!("the compiled library does not run: {why}")).note("nothing was written").into());
            }
        }
    } else {
        edge::say(&format!("{} is for {}, which this machine does not run: it was not called", output.display(), target.name));
    }
    // The header last: where the library cannot take its place, nothing is left behind.
    draft.publish()?;
    edge::write(&output.with_extension("h"), compiled.header().as_bytes())
}

/// Carries the library's errors through a writer.
fn fill(draft: &mut Draft, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut failed = Ok(());
    draft.fill(|f| {
        failed = write(f);
        Ok(())
    })?;
    failed
}

fn numbers(program: &Program, compiled: &Compiled, watch: &Watch, code: Duration, output: &Path) -> Value {
    let about: Value = serde_json::from_str(compiled.description()).unwrap_or_default();
    json!({
        "passes": watch.stats(),
        "code_ms": code.as_secs_f64() * 1e3,
        "kernels": program.kernels.len(),
        "buffers": program.buffers.len(),
        "target": about["target"],
        "workspace_bytes": about["workspace_bytes"],
        "weight_bytes": about["weight_bytes"],
        "flops": about["flops"],
        "peak_rss_bytes": edge::peak_rss_bytes(),
        "file_bytes": std::fs::metadata(output).map(|m| m.len()).ok(),
    })
}

fn stats(a: &Compile, numbers: Value) -> Outcome {
    if a.compilation.stats.is_some() { edge::print(&format!("{numbers}\n")) } else { Ok(()) }
}

pub fn smoke(a: &Smoke) -> Outcome {
    smoke::call(&a.library, &a.prefix, a.weights.as_deref())
}
