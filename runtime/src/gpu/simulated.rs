//! A device that an interpreter stands for: slow, strict, and everywhere. Tests run whole programs on it, so that what lowering and
//! the walk over the steps make of a model is checked where there is no driver.

use super::{Device, Launch};
use nnc_backends::gpu::gir::{self, Kernel};
use nnc_ir::target::Gpu;
use nnc_ir::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Memory = Arc<Mutex<Vec<u8>>>;

/// What runs kernels on memory of this process.
pub trait Interpreter: Send {
    type Code: Send + Sync;

    fn compile(&self, kernel: &Kernel) -> Result<Self::Code>;

    /// Runs all groups of a launch; `buffers` are what the kernel's own may touch.
    fn run(&self, code: &Self::Code, groups: u32, scalars: &[i32], buffers: &mut Vec<Vec<u8>>) -> Result<()>;
}

/// The interpreter of the kernel IR.
pub struct Gir {
    /// Threads in a subgroup.
    lanes: u32,
}

impl Interpreter for Gir {
    type Code = Kernel;

    fn compile(&self, kernel: &Kernel) -> Result<Kernel> {
        Ok(kernel.clone())
    }

    fn run(&self, kernel: &Kernel, groups: u32, scalars: &[i32], buffers: &mut Vec<Vec<u8>>) -> Result<()> {
        gir::interp::run(kernel, &mut gir::interp::Launch { groups, scalars, buffers, lanes: self.lanes })
    }
}

pub struct Simulated<I> {
    limits: Gpu,
    interpreter: I,
}

impl Simulated<Gir> {
    /// A device with these limits, whose subgroups have so many threads.
    pub fn new(limits: Gpu, lanes: u32) -> Simulated<Gir> {
        Simulated { limits, interpreter: Gir { lanes } }
    }
}

impl<I: Interpreter> Simulated<I> {
    pub fn with(limits: Gpu, interpreter: I) -> Simulated<I> {
        Simulated { limits, interpreter }
    }
}

/// A kernel, and which of its buffers it writes.
pub struct Compiled<C> {
    code: C,
    written: Vec<bool>,
}

/// Launches with their operands, and when they ended in the last run.
pub struct Recording<C> {
    launches: Vec<Recorded<C>>,
    ends: Mutex<Vec<Duration>>,
}

struct Recorded<C> {
    kernel: Arc<Compiled<C>>,
    buffers: Vec<(Memory, u64, u64)>,
    scalars: Vec<i32>,
    groups: u32,
}

fn lock(m: &Memory) -> MutexGuard<'_, Vec<u8>> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes from `at` on.
fn window(m: &mut [u8], at: u64, bytes: u64) -> Result<&mut [u8]> {
    super::within(m.len() as u64, at, bytes)?;
    Ok(&mut m[at as usize..(at + bytes) as usize])
}

impl<I: Interpreter> Device for Simulated<I> {
    type Buffer = Memory;
    type Kernel = Arc<Compiled<I::Code>>;
    type Recording = Recording<I::Code>;

    fn name(&self) -> &str {
        "simulated"
    }

    fn limits(&self) -> &Gpu {
        &self.limits
    }

    fn allocate(&mut self, bytes: u64) -> Result<Memory> {
        let mut memory = vec![];
        memory.try_reserve_exact(bytes as usize).map_err(|_| Error::limit(format!("no memory is left to hold {bytes} bytes")))?;
        // Memory that nobody wrote reads as NaN, or -1.
        memory.resize(bytes as usize, 0xff);
        Ok(Arc::new(Mutex::new(memory)))
    }

    fn bytes(buffer: &Memory) -> u64 {
        lock(buffer).len() as u64
    }

    fn upload(&mut self, to: &Memory, at: u64, data: &[u8]) -> Result<()> {
        window(&mut lock(to), at, data.len() as u64)?.copy_from_slice(data);
        Ok(())
    }

    fn download(&mut self, from: &Memory, at: u64, data: &mut [u8]) -> Result<()> {
        let n = data.len() as u64;
        data.copy_from_slice(window(&mut lock(from), at, n)?);
        Ok(())
    }

    fn copy(&mut self, from: &Memory, to: &Memory, bytes: u64) -> Result<()> {
        let data = window(&mut lock(from), 0, bytes)?.to_vec();
        self.upload(to, 0, &data)
    }

    fn compile(&mut self, kernel: &Kernel) -> Result<Self::Kernel> {
        let written = kernel.buffers.iter().map(|b| b.written).collect();
        Ok(Arc::new(Compiled { code: self.interpreter.compile(kernel)?, written }))
    }

    fn record(&mut self, launches: &[Launch<Self>], _: bool) -> Result<Self::Recording> {
        let one = |l: &Launch<Self>| Recorded {
            kernel: l.kernel.clone(),
            buffers: l.buffers.iter().map(|(m, at, bytes)| ((*m).clone(), *at, *bytes)).collect(),
            scalars: l.scalars.clone(),
            groups: l.groups,
        };
        Ok(Recording { launches: launches.iter().map(one).collect(), ends: Mutex::default() })
    }

    fn submit(&mut self, recording: &Self::Recording) -> Result<()> {
        let (start, mut ends) = (Instant::now(), vec![]);
        for l in &recording.launches {
            let mut buffers = vec![];
            for (m, at, bytes) in &l.buffers {
                buffers.push(window(&mut lock(m), *at, *bytes)?.to_vec());
            }
            self.interpreter.run(&l.kernel.code, l.groups, &l.scalars, &mut buffers)?;
            for (((m, at, _), written), data) in l.buffers.iter().zip(&l.kernel.written).zip(&buffers) {
                if *written {
                    self.upload(m, *at, data)?;
                }
            }
            ends.push(start.elapsed());
        }
        *recording.ends.lock().unwrap_or_else(PoisonError::into_inner) = ends;
        Ok(())
    }

    fn ends(&mut self, recording: &Self::Recording) -> Result<Vec<Duration>> {
        Ok(recording.ends.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
