//! A device that the kernel IR's interpreter stands for: slow, strict, and everywhere. Tests run whole programs on it, so that what
//! lowering and the walk over the steps make of a model is checked where there is no driver.

use super::{Device, Launch};
use nnc_backends::gpu::gir::{self, Kernel};
use nnc_ir::target::Gpu;
use nnc_ir::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Memory = Arc<Mutex<Vec<u8>>>;

pub struct Simulated {
    limits: Gpu,
    lanes: u32,
}

impl Simulated {
    /// A device with these limits, whose subgroups have so many threads.
    pub fn new(limits: Gpu, lanes: u32) -> Simulated {
        Simulated { limits, lanes }
    }
}

/// Launches with their operands.
pub struct Recording(Vec<Recorded>);

struct Recorded {
    kernel: Arc<Kernel>,
    buffers: Vec<(Memory, u64, u64)>,
    scalars: Vec<i32>,
    groups: u32,
}

fn lock(m: &Memory) -> MutexGuard<'_, Vec<u8>> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes from `at` on.
fn window(m: &mut [u8], at: u64, bytes: u64) -> Result<&mut [u8]> {
    let end = at.checked_add(bytes).and_then(|end| usize::try_from(end).ok());
    let part = end.and_then(|end| m.get_mut(at as usize..end));
    part.ok_or_else(|| Error::internal(format!("bytes {at} and {bytes} more of a device buffer")))
}

impl Device for Simulated {
    type Buffer = Memory;
    type Kernel = Arc<Kernel>;
    type Recording = Recording;

    fn name(&self) -> &str {
        "simulated"
    }

    fn limits(&self) -> &Gpu {
        &self.limits
    }

    fn allocate(&mut self, bytes: u64) -> Result<Memory> {
        // Memory that nobody wrote reads as NaN, or -1.
        Ok(Arc::new(Mutex::new(vec![0xff; bytes as usize])))
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

    fn compile(&mut self, kernel: &Kernel) -> Result<Arc<Kernel>> {
        Ok(Arc::new(kernel.clone()))
    }

    fn record(&mut self, launches: &[Launch<Simulated>]) -> Result<Recording> {
        let one = |l: &Launch<Simulated>| Recorded {
            kernel: l.kernel.clone(),
            buffers: l.buffers.iter().map(|(m, at, bytes)| ((*m).clone(), *at, *bytes)).collect(),
            scalars: l.scalars.clone(),
            groups: l.groups,
        };
        Ok(Recording(launches.iter().map(one).collect()))
    }

    fn submit(&mut self, recording: &Recording) -> Result<()> {
        for l in &recording.0 {
            let mut buffers = vec![];
            for (m, at, bytes) in &l.buffers {
                buffers.push(window(&mut lock(m), *at, *bytes)?.to_vec());
            }
            let mut launch = gir::interp::Launch { groups: l.groups, scalars: &l.scalars, buffers: &mut buffers, lanes: self.lanes };
            gir::interp::run(&l.kernel, &mut launch)?;
            for (((m, at, _), b), data) in l.buffers.iter().zip(&l.kernel.buffers).zip(&buffers) {
                if b.written {
                    self.upload(m, *at, data)?;
                }
            }
        }
        Ok(())
    }
}
