//! Kernels in, native code out.

pub mod abi;
pub mod cpu;
pub mod gpu;
pub mod weights;
