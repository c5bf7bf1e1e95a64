//! The GPU backend: the loops of a program as kernels of a GPU.
//!
//! Reading order: [`gir`] (what a thread does), [`lower`] (from the loop IR to that: any kernel), [`kernels`] (better ones
//! for single operations), [`spirv`] (to the words that a Vulkan driver
//! takes) and [`ptx`] (to the text that NVIDIA's takes), [`plan`] (a program as launches on a device and what stays on the host).

pub mod gir;
mod kernels;
pub mod lower;
pub mod plan;
pub mod ptx;
pub mod spirv;
