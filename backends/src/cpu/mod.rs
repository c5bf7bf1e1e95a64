//! The CPU backend. Fast kernels are written once against a small vector IR ([`vir`]) and lowered either to x86 bytes ([`x86`])
//! or to Cranelift ([`portable`]).
//!
//! Reading order: [`isa`], [`vir`], one generator such as [`kernels::contract`], [`x86`], [`portable`], [`declare`].

pub mod declare;
pub mod isa;
pub mod kernels;
pub mod portable;
pub mod vectorize;
pub mod vir;
pub mod x86;
