//! Kernels of the loop IR on the GPU kernel IR's interpreter.

use nnc_backends::gpu::gir::interp::{Launch, run};
use nnc_backends::gpu::gir::verify::verify;
use nnc_backends::gpu::lower::lower;
use nnc_ir::kernel::Kernel;
use nnc_ir::target::{Gpu, GpuIsa};

pub fn device() -> Gpu {
    Gpu::new(GpuIsa::SpirV)
}

/// Runs `k` as a device would; the word for faults comes back. `Err` is why it stays on the host.
pub fn launch(k: &Kernel, tasks: i64, sizes: &[i32], buffers: &mut Vec<Vec<u8>>) -> Result<i32, String> {
    let lowered = lower(k, &vec![false; k.params.len()], &device())?;
    verify(&lowered.kernel, &device()).map_err(|e| panic!("{e}\n{}", lowered.kernel)).unwrap_or(());
    if lowered.fails {
        buffers.push(vec![0; 4]);
    }
    let scalars: Vec<i32> = [&[tasks as i32], sizes].concat();
    let mut l = Launch { groups: (tasks as u32).div_ceil(device().threads), scalars: &scalars, buffers, lanes: 8 };
    run(&lowered.kernel, &mut l).unwrap_or_else(|e| panic!("{e}\n{}", lowered.kernel));
    let fault = if lowered.fails { buffers.pop().map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])) } else { None };
    Ok(fault.unwrap_or(0))
}
