//! The CPU backend: loop kernels to native code, in memory ([`compile_jit`]) or in files ([`compile`]), behind one C ABI
//! ([`crate::abi`]).
//!
//! Reading order: [`select`] (which code a kernel gets), [`loops`] (any kernel as a function), [`driver`] (a program as tables and the
//! machine that walks them), [`abi`] (the exported functions), [`generate`] (all of it in one module), then [`jit`], [`aot`] and
//! [`elf`]. Fast kernels are written once against a small vector IR and lowered either to x86 bytes or to Cranelift: [`isa`], [`vir`],
//! one generator such as [`kernels::contract`], [`x86`], [`portable`], [`declare`].

mod abi;
mod aot;
mod archive;
mod clif;
mod cpuid;
pub mod declare;
mod disassembly;
mod driver;
pub mod elf;
mod generate;
mod header;
pub mod isa;
mod jit;
pub mod kernels;
mod loops;
pub mod portable;
pub mod select;
mod target;
mod unwind;
pub mod vectorize;
pub mod vir;
pub mod x86;

pub use aot::{Compiled, compile};
pub use generate::Selection;
pub use jit::{Jit, compile_jit};
pub use target::{has_bf16, is_native, native_target};

/// Where the constants of a model are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Weights {
    /// In the library.
    #[default]
    Embed,
    /// In a file of their own, which the caller maps and passes with each run.
    External,
}

/// How a program is compiled.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the exported functions' names begin with.
    pub prefix: String,
    pub weights: Weights,
}

impl Default for Options {
    fn default() -> Options {
        Options { prefix: "nnc_".into(), weights: Weights::default() }
    }
}

impl Options {
    /// The symbol at the start of embedded weights.
    fn weights_symbol(&self) -> String {
        format!("{}weights", self.prefix)
    }
}
