//! The interpreter as a device.

use super::{Entry, Launch, Window, parse, run};
use nnc::gpu::simulated::{Interpreter, Simulated};
use nnc_backends::gpu::gir::{Kernel, grid};
use nnc_backends::gpu::ptx;
use nnc_ir::target::{Gpu, GpuIsa};
use nnc_ir::{Error, Result};

/// The interpreter of printed text.
pub struct Ptx {
    /// Groups along an axis of the grid.
    max_groups: u32,
}

/// A GPU of NVIDIA's that runs text.
pub fn machine() -> Simulated<Ptx> {
    let limits = Gpu::new(GpuIsa::Sm80);
    let max_groups = limits.max_groups;
    Simulated::with(limits, Ptx { max_groups })
}

/// An entry point, and which of its buffers it may write.
pub struct Code {
    entry: Entry,
    written: Vec<bool>,
}

impl Interpreter for Ptx {
    type Code = Code;

    fn compile(&self, kernel: &Kernel) -> Result<Code> {
        let text = ptx::module(&[kernel], "sm_80");
        let entry = parse(&text).map_err(Error::internal)?.pop().ok_or_else(|| Error::internal("no entry point"))?;
        Ok(Code { entry, written: kernel.buffers.iter().map(|b| b.written).collect() })
    }

    fn run(&self, code: &Code, groups: u32, scalars: &[i32], buffers: &mut Vec<Vec<u8>>) -> Result<()> {
        let buffers = buffers.iter_mut().zip(&code.written).map(|(data, written)| Window { data, written: *written }).collect();
        run(&code.entry, &mut Launch { groups: grid(groups, self.max_groups), buffers, scalars }).map_err(Error::internal)
    }
}
