//! From graphs to code.

use crate::describe::Description;
use crate::gpu::Device;
use crate::gpu::cuda::Cuda;
use crate::gpu::run::Runner;
use crate::gpu::vulkan::Vulkan;
use crate::library::Library;
use crate::load::Format;
use crate::nncg::Artefact;
use crate::options::{Engine, Options, Precision, Weights};
use crate::parts::Parts;
use crate::session::Session;
use crate::threads::Pool;
use nnc_backends::cpu;
use nnc_backends::gpu::plan::plan;
use nnc_ir::kernel::Program;
use nnc_ir::target::{Gpu, GpuIsa, Rounding};
use nnc_ir::{Error, Graph, Report, Result, Target};
use nnc_passes::{Observer, host};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The machine that `--target` names. `native` becomes the named instruction set that this machine has, so that its code is the same
/// on every machine of that name.
pub fn target(name: &str) -> Result<Target> {
    let (base, features) = name.split_once(',').unwrap_or((name, ""));
    let known = || format!("targets are native, {}; of GPUs {}", Target::NAMES.join(", "), Gpu::NAMES.join(", "));
    if Gpu::from_name(base).is_some() {
        return Err(Error::input(format!("{base} is a GPU: its kernels are written to OUT.spv or OUT.ptx, and --engine runs them")).note(known()));
    }
    let target = match base {
        "native" => cpu::native_target(),
        _ => Target::from_name(base).ok_or_else(|| Error::input(format!("no target is called `{base}`")).note(known()))?,
    };
    match features {
        "" => Ok(target),
        Target::BF16 => {
            let why = format!("{} has no {}: x86-64-v4 has", target.name, Target::BF16);
            target.with_bf16().ok_or_else(|| Error::unsupported(why))
        }
        other => Err(Error::input(format!("no feature is called `{other}`")).note(format!("the one there is: {}", Target::BF16))),
    }
}

/// The target of a compilation: `native` has what the precision asks for, if the machine has it.
pub fn target_of(options: &Options) -> Result<Target> {
    let target = target(&options.target)?;
    match options.precision {
        Precision::Bf16 if options.target == "native" && cpu::has_bf16() => Ok(target.clone().with_bf16().unwrap_or(target)),
        _ => Ok(target),
    }
}

/// The target of files where none is named: every x86-64 that kernels are emitted for, or what this machine is.
pub fn file_target(precision: Precision) -> String {
    match precision {
        _ if !cfg!(target_arch = "x86_64") => "native".into(),
        Precision::Bf16 => format!("x86-64-v4,{}", Target::BF16),
        Precision::Fast | Precision::Exact | Precision::Tf32 => Target::BOTH.into(),
    }
}

/// What the passes are asked for.
pub fn pass_options(options: &Options) -> nnc_passes::Options {
    nnc_passes::Options { level: options.level, precision: options.precision, stop_after: options.stop_after.clone(), ..Default::default() }
}

/// What the backend is asked for.
pub fn backend_options(options: &Options) -> cpu::Options {
    let weights = match options.weights {
        Weights::Embedded => cpu::Weights::Embed,
        Weights::External => cpu::Weights::External,
    };
    cpu::Options { prefix: options.prefix.clone(), weights }
}

/// An error where the options ask for what the target has not.
fn supported(options: &Options) -> Result<()> {
    let target = target_of(options)?;
    if options.precision == Precision::Bf16 && !target.bf16 {
        let error = Error::unsupported(format!("the precision bf16 takes a machine with avx512_bf16, and {} says nothing of it", target.name));
        return Err(error.note(format!("--target x86-64-v4,{} does", Target::BF16)));
    }
    if options.precision == Precision::Tf32 {
        return Err(Error::unsupported("the precision tf32 takes an NVIDIA GPU").note("--engine cuda, or a .ptx or .nncg file"));
    }
    Ok(())
}

/// Optimises a graph.
pub fn optimized(graph: Graph, options: &Options, observer: &mut dyn Observer) -> Result<Graph, Report> {
    supported(options)?;
    nnc_passes::optimize(graph, &target_of(options)?, &pass_options(options), observer)
}

/// Optimises and lowers a graph.
pub fn program(graph: Graph, options: &Options, observer: &mut dyn Observer) -> Result<Program, Report> {
    supported(options)?;
    nnc_passes::compile(graph, &target_of(options)?, &pass_options(options), observer)
}

/// Makes a graph ready to run on the engine of the options.
pub fn session(graph: Graph, options: &Options, observer: &mut dyn Observer) -> Result<Session, Report> {
    if options.engine == Engine::Interpreter {
        return Ok(Session::interpreter(graph));
    }
    match options.engine {
        Engine::Vulkan => return on_device(graph, Vulkan::open()?, options, observer),
        Engine::Cuda => return on_device(graph, Cuda::open()?, options, observer),
        Engine::Interpreter | Engine::Jit | Engine::SharedLibrary => {}
    }
    let pool = Arc::new(Pool::new(options.threads));
    if options.engine == Engine::SharedLibrary {
        let target = target_of(options)?;
        return Ok(shared_library(&program(graph, options, observer)?, &target, options, pool)?);
    }
    if host::refuse(&graph).is_err() {
        return Ok(Session::parts(Parts::new(graph, options, pool)?));
    }
    jit(graph, options, observer, pool)
}

/// The GPU that `--target` names; `native` is the least of those whose code is of kind `isa`.
pub fn gpu(name: &str, isa: GpuIsa) -> Result<Gpu> {
    let gpu = if name == "native" { Some(Gpu::new(isa)) } else { Gpu::from_name(name) };
    let same = |g: &Gpu| (g.isa == GpuIsa::SpirV) == (isa == GpuIsa::SpirV);
    gpu.filter(same).ok_or_else(|| not_a_gpu(name))
}

/// The GPU as the precision has it.
pub fn rounded(gpu: Gpu, precision: Precision) -> Result<Gpu> {
    let (to, name) = match precision {
        Precision::Bf16 => (Rounding::Bf16, "bf16"),
        Precision::Tf32 => (Rounding::Tf32, "tf32"),
        Precision::Fast | Precision::Exact => return Ok(gpu),
    };
    let why = || Error::unsupported(format!("the precision {name} takes an NVIDIA GPU: SPIR-V kernels compute in f32"));
    gpu.with_rounding(to).ok_or_else(why)
}

/// The GPUs that a `.nncg` file has kernels for: the one that `--target` names, or the least of each kind that has the precision.
pub fn gpus(name: &str, precision: Precision) -> Result<Vec<Gpu>> {
    match name {
        "native" => Ok([GpuIsa::SpirV, GpuIsa::Sm80].into_iter().filter_map(|isa| rounded(Gpu::new(isa), precision).ok()).collect()),
        name => Ok(vec![rounded(Gpu::from_name(name).ok_or_else(|| not_a_gpu(name))?, precision)?]),
    }
}

fn not_a_gpu(name: &str) -> Error {
    Error::input(format!("--target {name} has no code of this kind")).note(format!("GPUs are {}", Gpu::NAMES.join(", ")))
}

/// The program of a graph with its loops cut for a GPU.
pub fn gpu_program(graph: Graph, gpu: &Gpu, options: &Options, observer: &mut dyn Observer) -> Result<Program, Report> {
    // `--target` names the GPU; the host's part is for this machine.
    nnc_passes::compile(graph, &cpu::native_target().with_gpu(gpu), &pass_options(options), observer)
}

/// Compiles for a device of this machine.
fn on_device<D: Device + 'static>(graph: Graph, device: D, options: &Options, observer: &mut dyn Observer) -> Result<Session, Report> {
    let gpu = rounded(device.limits().clone(), options.precision)?;
    let program = gpu_program(graph, &gpu, options, observer)?;
    let description = Description::of_program(&program);
    Ok(Session::gpu(description, Box::new(Runner::of(plan(program, &gpu)?, device)?)))
}

/// Compiles into memory.
pub(crate) fn jit(graph: Graph, options: &Options, observer: &mut dyn Observer, pool: Arc<Pool>) -> Result<Session, Report> {
    let target = target_of(options)?;
    let program = program(graph, options, observer)?;
    // In memory there is nobody to map a weights file.
    let backend = cpu::Options { weights: cpu::Weights::Embed, ..backend_options(options) };
    let jit = cpu::compile_jit(&program, &target, &backend)?;
    let functions = *jit.functions();
    // SAFETY: the functions are those of `jit`, which the library keeps.
    let library = unsafe { Library::new(functions, Box::new(jit)) }?;
    Ok(Session::native(library, pool))
}

/// By way of a file, which is gone when it is loaded.
fn shared_library(program: &Program, target: &Target, options: &Options, pool: Arc<Pool>) -> Result<Session> {
    let failed = |e: std::io::Error| Error::io(format!("cannot write a temporary library: {e}"));
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = folder.path().join("model.so");
    let backend = backend_options(options);
    let compiled = cpu::compile(program, target, &backend, false)?;
    let create = |path: &Path| std::fs::File::create(path).map(std::io::BufWriter::new).map_err(failed);
    let mut file = create(&path)?;
    compiled.write_so("model.so", &mut file)?;
    file.flush().map_err(failed)?;
    if options.weights == Weights::External {
        let mut file = create(&path.with_extension("weights"))?;
        compiled.write_weights(&mut file)?;
        file.flush().map_err(failed)?;
    }
    Session::open(&path, &options.prefix, pool)
}

/// Reads `.onnx` and `.nn` files and compiles them for this machine; opens `.so` and `.nncg` files. See [`compile_with`].
pub fn compile(path: impl AsRef<Path>) -> Result<Session, Report> {
    compile_with(path, &Options::default())
}

/// As [`compile`], with [`Options`]. Everything that is wrong with the model is in the report.
pub fn compile_with(path: impl AsRef<Path>, options: &Options) -> Result<Session, Report> {
    let path = path.as_ref();
    match Format::of(path, &[]) {
        Format::Library => return Ok(Session::open(path, &options.prefix, Arc::new(Pool::new(options.threads)))?),
        Format::Nncg => return Ok(Artefact::read(nnc_frontend::onnx::map(path)?)?.session(options.engine.device())?),
        Format::Onnx | Format::Nn => {}
    }
    session(crate::load::load(path, options)?.graph, options, &mut ())
}
