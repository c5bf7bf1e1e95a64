//! The interpreter as a device.

use super::{Entry, Launch, Window, parse, run};
use nnc::gpu::{self, Device};
use nnc_backends::gpu::gir::{Kernel, grid};
use nnc_backends::gpu::ptx;
use nnc_ir::target::{Gpu, GpuIsa};
use nnc_ir::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Memory = Arc<Mutex<Vec<u8>>>;

/// A GPU of NVIDIA's that runs text.
pub struct Machine {
    limits: Gpu,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine { limits: Gpu::new(GpuIsa::Sm80) }
    }
}

/// An entry point, and which of its buffers it writes.
pub struct Code {
    entry: Entry,
    written: Vec<bool>,
}

pub struct Recording(Vec<Recorded>);

struct Recorded {
    code: Arc<Code>,
    buffers: Vec<(Memory, u64, u64)>,
    scalars: Vec<i32>,
    groups: u32,
}

fn lock(m: &Memory) -> MutexGuard<'_, Vec<u8>> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn range(at: u64, bytes: u64) -> std::ops::Range<usize> {
    at as usize..(at + bytes) as usize
}

impl Device for Machine {
    type Buffer = Memory;
    type Kernel = Arc<Code>;
    type Recording = Recording;

    fn name(&self) -> &str {
        "PTX"
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
        lock(to)[range(at, data.len() as u64)].copy_from_slice(data);
        Ok(())
    }

    fn download(&mut self, from: &Memory, at: u64, data: &mut [u8]) -> Result<()> {
        data.copy_from_slice(&lock(from)[range(at, data.len() as u64)]);
        Ok(())
    }

    fn copy(&mut self, from: &Memory, to: &Memory, bytes: u64) -> Result<()> {
        let data = lock(from)[range(0, bytes)].to_vec();
        self.upload(to, 0, &data)
    }

    fn compile(&mut self, kernel: &Kernel) -> Result<Arc<Code>> {
        let text = ptx::module(&[kernel], "sm_80");
        let entry = parse(&text).map_err(Error::internal)?.pop().ok_or_else(|| Error::internal("no entry point"))?;
        Ok(Arc::new(Code { entry, written: kernel.buffers.iter().map(|b| b.written).collect() }))
    }

    fn record(&mut self, launches: &[gpu::Launch<Machine>]) -> Result<Recording> {
        let one = |l: &gpu::Launch<Machine>| Recorded {
            code: l.kernel.clone(),
            buffers: l.buffers.iter().map(|(m, at, bytes)| ((*m).clone(), *at, *bytes)).collect(),
            scalars: l.scalars.clone(),
            groups: l.groups,
        };
        Ok(Recording(launches.iter().map(one).collect()))
    }

    fn submit(&mut self, recording: &Recording) -> Result<()> {
        for l in &recording.0 {
            let mut data: Vec<Vec<u8>> = l.buffers.iter().map(|(m, at, bytes)| lock(m)[range(*at, *bytes)].to_vec()).collect();
            let buffers = data.iter_mut().zip(&l.code.written).map(|(data, written)| Window { data, written: *written }).collect();
            let mut launch = Launch { groups: grid(l.groups, self.limits.max_groups), buffers, scalars: &l.scalars };
            run(&l.code.entry, &mut launch).map_err(Error::internal)?;
            for (((m, at, _), written), data) in l.buffers.iter().zip(&l.code.written).zip(&data) {
                if *written {
                    self.upload(m, *at, data)?;
                }
            }
        }
        Ok(())
    }
}
