//! Vector kernels as x86-64 machine code: one lowering, two encodings (AVX2 with ymm, AVX-512 with zmm registers).
//!
//! [`regs`] flattens the structured kernel and gives every register a machine register or a stack slot; [`emit`] encodes, [`ints`] and
//! [`select`] choose instructions; [`codes`] is the table of opcodes for both encodings. The bytes are position independent: they refer to nothing
//! but their own labels and constant pool.

mod codes;
mod emit;
mod ints;
mod regs;
mod select;

use super::vir::{Func, verify};
use nnc_ir::error::Result;

/// Machine code of one kernel.
pub struct Code {
    /// Entry at byte 0; wants 64-byte alignment for the sake of its constants.
    pub bytes: Vec<u8>,
    /// Registers that got a stack slot, by the depth of the deepest loop that touches them.
    pub spills: Vec<Spill>,
}

/// A register that lives in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spill {
    pub reg: super::vir::Reg,
    /// Loops around its innermost access.
    pub depth: usize,
}

/// Lowers `func` for the System V ABI. `lanes` of the kernel choose the encoding: 8 is AVX2 with FMA and BMI2, 16 is AVX-512.
pub fn assemble(func: &Func) -> Result<Code> {
    verify::verify(func)?;
    emit::emit(func)
}
