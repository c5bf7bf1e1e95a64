//! `.nncg`: a model compiled for GPUs as one file. It holds the program (launches, memory plan, loops of every kernel), kernels for one
//! or more kinds of device, and the weights.
//!
//! Kernels are stored as GPU kernel IR, not as the driver's words: what is verified when the file is loaded is what is printed for
//! the driver, so no file reaches a driver with code that nnc would not have made. What the device at hand does not take runs on the
//! host, from the loops. As with a library, the indices that kernels compute are the file's own; nothing else of it is trusted.
//!
//! Layout, numbers little-endian: [`MAGIC`], version (`u32`), zero (`u32`), bytes of the manifest and of the weights (`u64` each), the
//! manifest, zeros up to a multiple of 64, the weights, the CRC-32 of all that (`u32`). The same program gives the same bytes.

mod bytes;
mod parts;

use crate::describe::Description;
use crate::gpu::Device;
use crate::gpu::cuda::Cuda;
use crate::gpu::run::{Model, Runner, Steps};
use crate::gpu::vulkan::Vulkan;
use crate::options::Engine;
use crate::profile::Event;
use crate::session::Session;
use ::bytes::Bytes;
use bytes::{Coded, Reader, damaged};
use nnc_backends::gpu::plan::{Placed, Plan, plan};
use nnc_backends::weights::{weight_bytes, write_weights};
use nnc_ir::error::Code;
use nnc_ir::kernel::verify::verify_program;
use nnc_ir::kernel::{Place, Program};
use nnc_ir::target::{Gpu, GpuIsa};
use nnc_ir::{DType, Error, Report, Result, Tensor};
use std::io::Write;
use std::sync::Arc;

/// The first bytes: a name, and what a transfer as text would change.
pub const MAGIC: [u8; 8] = *b"NNCG\r\n\x1a\n";
/// Counts up with every change of what is written.
pub const VERSION: u32 = 3;

const HEAD: usize = 32;
/// What the weights' place is a multiple of.
const ALIGNMENT: usize = 64;
const CHECKSUM: usize = 4;

/// A program with kernels for kinds of devices.
pub struct Artefact {
    program: Program,
    compiler: String,
    kinds: Vec<(Gpu, Vec<Placed>)>,
}

impl Artefact {
    /// Plans the program for each kind of device.
    pub fn new(program: Program, devices: &[Gpu]) -> Result<Artefact, Report> {
        let mut artefact = Artefact { program, compiler: format!("nnc {}", env!("CARGO_PKG_VERSION")), kinds: vec![] };
        for device in devices {
            let p = plan(artefact.program, device)?;
            artefact.program = p.program;
            artefact.kinds.push((device.clone(), p.kernels));
        }
        Ok(artefact)
    }

    /// What the model looks like from outside.
    pub fn description(&self) -> Description {
        let names: Vec<&str> = self.kinds.iter().map(|(kind, _)| kind.name).collect();
        Description { target: Some(names.join(" ")), compiler: Some(self.compiler.clone()), ..Description::of_program(&self.program) }
    }

    /// The plan for each kind of device in turn, for reports.
    pub fn each_plan(&mut self, f: &mut dyn FnMut(&Plan)) {
        for (device, kernels) in &mut self.kinds {
            let plan = Plan { program: std::mem::take(&mut self.program), device: device.clone(), kernels: std::mem::take(kernels) };
            f(&plan);
            (self.program, *kernels) = (plan.program, plan.kernels);
        }
    }

    /// Writes the file. Weights are computed as they are written.
    pub fn write(&self, out: &mut dyn Write) -> Result<()> {
        let mut manifest = vec![];
        Arc::<str>::from(&*self.compiler).put(&mut manifest);
        self.program.put(&mut manifest);
        (self.kinds.len() as u64).put(&mut manifest);
        for (kind, kernels) in &self.kinds {
            Arc::<str>::from(kind.name).put(&mut manifest);
            kernels.put(&mut manifest);
        }
        // A model that nests too deeply to be read is an error here, not when it is loaded.
        parse(&manifest, weight_bytes(&self.program.weights))
            .map_err(|e| Error::limit(format!("the model cannot be a .nncg file: {}", e.message())))?;
        let mut out = Summed { out, sum: crc32fast::Hasher::new() };
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend([0; 4]);
        head.extend((manifest.len() as u64).to_le_bytes());
        head.extend(weight_bytes(&self.program.weights).to_le_bytes());
        head.extend(&manifest);
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        let failed = |e: std::io::Error| Error::io(format!("writing a .nncg file: {e}"));
        out.write_all(&head).map_err(failed)?;
        write_weights(&self.program.weights, &mut out)?;
        let sum = out.sum.clone().finalize();
        out.write_all(&sum.to_le_bytes()).map_err(failed)
    }

    /// Reads a file, whose bytes stay the weights. What is no whole file of this version is an error.
    pub fn read(file: Bytes) -> Result<Artefact> {
        let number = |at: usize, n: usize| file.get(at..at + n).map(|b| b.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b)));
        if file.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(damaged("it does not begin as one"));
        }
        match number(8, 4) {
            Some(v) if v == u64::from(VERSION) => {}
            Some(v) => {
                let why = format!("the .nncg file has version {v}, this nnc reads version {VERSION}: compile the model again");
                return Err(Error::unsupported(why));
            }
            None => return Err(damaged("it ends too early")),
        }
        let (Some(0), Some(manifest), Some(weights)) = (number(12, 4), number(16, 8), number(24, 8)) else {
            return Err(damaged("its head is none"));
        };
        let start = manifest.checked_add(HEAD as u64).and_then(|n| n.checked_next_multiple_of(ALIGNMENT as u64));
        let end = start.and_then(|n| n.checked_add(weights));
        let (Some(start), Some(end)) = (start, end) else { return Err(damaged("its parts are larger than any file")) };
        let whole = end.checked_add(CHECKSUM as u64);
        if whole != Some(file.len() as u64) {
            return Err(damaged(format!("it has {} bytes, its parts have {}", file.len(), end.saturating_add(CHECKSUM as u64))));
        }
        let (start, end) = (start as usize, end as usize);
        if number(end, CHECKSUM) != Some(crc32fast::hash(&file[..end]).into()) {
            return Err(damaged("its checksum is another"));
        }
        let mut artefact = parse(&file[HEAD..HEAD + manifest as usize], weights)?;
        let data = file.slice(start..end);
        artefact.program.weights = vec![(0, Tensor::from_bytes(DType::U8, vec![data.len()], data)?)];
        Ok(artefact)
    }

    /// The model on the device of an engine; without one, on CUDA where the file and the machine have it, else on Vulkan.
    pub fn session(self, engine: Option<Engine>) -> Result<Session> {
        let has = |vulkan: bool| self.kinds.iter().any(|(kind, _)| (kind.isa == GpuIsa::SpirV) == vulkan);
        match engine {
            Some(Engine::Cuda) => self.on(Cuda::open()?),
            Some(Engine::Vulkan) => self.on(Vulkan::open()?),
            Some(_) => Err(Error::input("a .nncg file runs on --engine cuda and --engine vulkan")),
            None if !has(true) => self.on(Cuda::open()?),
            None if !has(false) => self.on(Vulkan::open()?),
            None => match Cuda::open() {
                Ok(device) => self.on(device),
                Err(cuda) => self.on(Vulkan::open().map_err(|e| cuda.notes().iter().fold(e.note(cuda.message()), |e, n| e.note(n.clone())))?),
            },
        }
    }

    /// The model on a device: with the newest kernels of the file that it takes.
    pub fn on<D: Device + 'static>(self, device: D) -> Result<Session> {
        let description = self.description();
        let takes = |kind: &Gpu| match (kind.isa, device.limits().isa) {
            (GpuIsa::SpirV, GpuIsa::SpirV) => true,
            (GpuIsa::Sm80 | GpuIsa::Sm90, GpuIsa::Sm90) | (GpuIsa::Sm80, GpuIsa::Sm80) => true,
            (GpuIsa::SpirV | GpuIsa::Sm80 | GpuIsa::Sm90, _) => false,
        };
        let names: Vec<&str> = self.kinds.iter().map(|(kind, _)| kind.name).collect();
        let names = names.join(" and ");
        let Some((kind, kernels)) = self.kinds.into_iter().filter(|(kind, _)| takes(kind)).max_by_key(|(kind, _)| kind.isa) else {
            return Err(Error::input(format!("the file has kernels for {names}, the device takes {}", device.limits().name)));
        };
        let plan = Plan::of(self.program, kernels, &kind, device.limits()).map_err(ours_no_more)?;
        let runner = Runner::of(plan, device).map_err(ours_no_more)?;
        Ok(Session::gpu(description, Box::new(FromFile(runner))))
    }
}

/// What a bug of nnc would be in a program that was just made is the file's fault in one that was read.
fn ours_no_more(e: Error) -> Error {
    if e.code() == Code::Internal { damaged(e.message()) } else { e }
}

struct FromFile<D: Device>(Runner<D>);

impl<D: Device> Model for FromFile<D> {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.0.run(inputs).map_err(ours_no_more)
    }

    fn run_traced(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Event>)> {
        self.0.run_traced(inputs).map_err(ours_no_more)
    }

    fn steps(&self, inputs: &[Tensor], again: &[(usize, usize)]) -> Result<Box<dyn Steps + '_>> {
        self.0.steps(inputs, again).map_err(ours_no_more)
    }
}

/// The manifest, whose program is checked as one that a pass made, and against the bytes of the weights.
fn parse(manifest: &[u8], weights: u64) -> Result<Artefact> {
    let mut r = Reader::new(manifest);
    let compiler = Arc::<str>::get(&mut r)?.to_string();
    let program = Program::get(&mut r)?;
    let count = u64::get(&mut r)?;
    let mut kinds: Vec<(Gpu, Vec<Placed>)> = vec![];
    for _ in 0..count {
        let name = Arc::<str>::get(&mut r)?;
        let kind = Gpu::from_name(&name).ok_or_else(|| damaged(format!("{name:?} is no GPU")))?;
        if kinds.iter().any(|(k, _)| k.name == kind.name) {
            return Err(damaged(format!("it has kernels for {name} twice")));
        }
        kinds.push((kind, Coded::get(&mut r)?));
    }
    r.end()?;
    if kinds.is_empty() {
        return Err(damaged("it has no kernels"));
    }
    bytes::check_effort(&program)?;
    verify_program(&program).map_err(|r| r.0.first().map_or_else(|| damaged("its program"), |e| damaged(e.message())))?;
    check_places(&program, weights)?;
    // Kernels are held against those of the program once more when the device is known.
    Ok(Artefact { program, compiler, kinds })
}

/// What lowering promises of places beyond what [`verify_program`] asks.
fn check_places(p: &Program, weights: u64) -> Result<()> {
    if p.heap as usize > p.buffers.len() {
        return Err(damaged(format!("{} blocks for {} buffers", p.heap, p.buffers.len())));
    }
    for (i, b) in p.buffers.iter().enumerate() {
        let ok = match &b.place {
            Place::Input(n) => (*n as usize) < p.inputs.len(),
            Place::Output(n) => (*n as usize) < p.outputs.len(),
            Place::Heap { slot } => *slot < p.heap,
            Place::Weight { offset } => {
                let bytes = b.elems.as_const().and_then(|n| u64::try_from(n).ok()?.checked_mul(b.dtype.bytes() as u64));
                // A length that the run decides is checked against the device's memory there.
                *offset <= weights && (bytes.is_none() || bytes.is_some_and(|n| n <= weights - offset))
            }
            Place::Work { .. } => true,
            Place::Unplanned => false,
        };
        if !ok {
            return Err(damaged(format!("buffer {i} lies nowhere")));
        }
    }
    Ok(())
}

/// Hashes what goes through.
struct Summed<'a> {
    out: &'a mut dyn Write,
    sum: crc32fast::Hasher,
}

impl Write for Summed<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(data)?;
        self.sum.update(&data[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
