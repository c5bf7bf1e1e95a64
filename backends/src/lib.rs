//! Kernels in, native code out.

pub mod cpu;
