//! Models on GPUs: [`Device`] is what a driver must do, [`vulkan`] and [`cuda`] do it, [`simulated`] needs no GPU; [`run`] walks a
//! program's steps over any of them.

pub mod cuda;
pub mod run;
pub mod simulated;
pub mod vulkan;

use nnc_backends::gpu::gir::Kernel;
use nnc_ir::target::Gpu;
use nnc_ir::{Error, Result};
use std::time::Duration;

/// A device that runs kernels. What it hands out stays usable as long as the holder keeps it, and is given back by dropping it.
pub trait Device: Send {
    /// Memory of the device.
    type Buffer: Send;
    /// A kernel in the device's own code.
    type Kernel: Send;
    /// Launches that can be submitted, again and again, while what they use lives.
    type Recording: Send;

    /// What the driver calls it.
    fn name(&self) -> &str;

    /// What kernels may ask for.
    fn limits(&self) -> &Gpu;

    /// Memory of at least so many bytes.
    fn allocate(&mut self, bytes: u64) -> Result<Self::Buffer>;

    fn bytes(buffer: &Self::Buffer) -> u64;

    fn upload(&mut self, to: &Self::Buffer, at: u64, data: &[u8]) -> Result<()>;

    fn download(&mut self, from: &Self::Buffer, at: u64, data: &mut [u8]) -> Result<()>;

    /// Copies the first bytes of one buffer to another.
    fn copy(&mut self, from: &Self::Buffer, to: &Self::Buffer, bytes: u64) -> Result<()>;

    /// Compiles a kernel that has verified.
    fn compile(&mut self, kernel: &Kernel) -> Result<Self::Kernel>;

    /// Records launches, each of which sees what those before it wrote. Of a `timed` recording the device notes when each ends.
    fn record(&mut self, launches: &[Launch<Self>], timed: bool) -> Result<Self::Recording>;

    /// Runs what was recorded and waits for its end.
    fn submit(&mut self, recording: &Self::Recording) -> Result<()>;

    /// When each launch of a timed recording ended in its last run, by the device's clock, from the run's start.
    fn ends(&mut self, recording: &Self::Recording) -> Result<Vec<Duration>>;
}

/// A launch: its buffers, each from a byte on and as many as it may touch.
pub struct Launch<'a, D: Device + ?Sized> {
    pub kernel: &'a D::Kernel,
    pub buffers: Vec<(&'a D::Buffer, u64, u64)>,
    pub scalars: Vec<i32>,
    /// Groups in a line.
    pub groups: u32,
}

/// An error where so many bytes from `at` on do not lie in a buffer of `have`.
fn within(have: u64, at: u64, bytes: u64) -> Result<()> {
    match at.checked_add(bytes) {
        Some(end) if end <= have => Ok(()),
        _ => Err(Error::internal(format!("bytes {at} and {bytes} more of a device buffer of {have}"))),
    }
}

/// What [`Device::ends`] says of a recording that is not timed.
fn not_timed() -> Error {
    Error::internal("the recording is not timed")
}
