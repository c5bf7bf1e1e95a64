//! Models on GPUs: [`vulkan`] is the device, [`run`] walks a program's steps over it.

pub mod run;
mod vulkan;
