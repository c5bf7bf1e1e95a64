//! PTX without a GPU: the printed text is parsed and run, a group of threads at a time, and what a GPU would let pass is an error:
//! threads that race for memory, reads of shared memory that nobody wrote or that a copy is still on the way to, addresses outside of a buffer, barriers that not all come by.
//!
//! [`machine`] is a device like a driver's, so that whole networks run on it. PTX ISA 8.0, as much of it as our printer writes.

mod alu;
mod device;
mod parse;
mod run;

pub use device::machine;
pub use parse::parse;
pub use run::{Launch, Window, run};

/// A register of the interpreter: one a name, one a constant, and those that a launch sets.
pub type Reg = u32;

/// An entry point.
pub struct Entry {
    pub name: String,
    /// Threads in a group.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: u64,
    pub code: Vec<Instr>,
    /// The line of the text that each instruction stands on.
    pub lines: Vec<usize>,
    pub registers: usize,
    /// Registers that never change.
    pub constants: Vec<(Reg, u64)>,
    /// Where the kernel reads its parameters, in order; `None` is one that it does not read.
    pub params: Vec<Option<Reg>>,
    pub specials: Vec<(Reg, Special)>,
}

/// What a thread knows of itself.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Special {
    Thread,
    Lane,
    /// Of the group, along the grid's two axes, and how many there are.
    GroupX,
    GroupY,
    GroupsX,
    GroupsY,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Space {
    /// `constant`: by the way that takes for granted that nobody writes.
    Global {
        constant: bool,
    },
    Shared,
}

/// What memory holds: bytes, and whether they extend by their sign.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Width {
    pub bytes: u64,
    pub signed: bool,
}

/// Values are 64 bits; narrower ones lie in the low end, zeros above.
pub enum Instr {
    One {
        f: fn(u64) -> u64,
        to: Reg,
        x: Reg,
    },
    Two {
        f: fn(u64, u64) -> u64,
        to: Reg,
        x: Reg,
        y: Reg,
    },
    Three {
        f: fn(u64, u64, u64) -> u64,
        to: Reg,
        x: Reg,
        y: Reg,
        z: Reg,
    },
    Load {
        space: Space,
        width: Width,
        to: Vec<Reg>,
        at: Reg,
        offset: i64,
    },
    Store {
        space: Space,
        width: Width,
        from: Vec<Reg>,
        at: Reg,
        offset: i64,
    },
    /// 64 bits of two halves, and back.
    Join {
        to: Reg,
        lo: Reg,
        hi: Reg,
    },
    Halve {
        lo: Reg,
        hi: Reg,
        x: Reg,
    },
    /// The value of the lane whose number differs in `mask`.
    Shuffle {
        to: Reg,
        x: Reg,
        mask: u32,
    },
    /// Where the register holds what is asked for, or always.
    Branch {
        on: Option<(Reg, bool)>,
        to: usize,
    },
    /// `ldmatrix`: matrices of 8 rows of 16 bytes from shared memory.
    LoadMatrices {
        to: Vec<Reg>,
        at: Reg,
        offset: i64,
    },
    /// `mma.m16n8k16` of bf16 or `mma.m16n8k8` of tf32 with sums in f32: what the numbers of a word are, and the registers of the result,
    /// of both operands and of what is added.
    MultiplyMatrices {
        numbers: fn(u64) -> [f32; 2],
        to: [Reg; 4],
        a: [Reg; 4],
        b: [Reg; 2],
        c: [Reg; 4],
    },
    /// `cp.async` of so many bytes from global to shared memory, of which `read` are read and the others zeros.
    Copy {
        to: (Reg, i64),
        from: (Reg, i64),
        bytes: u64,
        read: Option<Reg>,
    },
    /// `cp.async.commit_group`.
    CloseCopies,
    /// `cp.async.wait_group`: all groups but the last so many.
    AwaitCopies(usize),
    Barrier,
    Return,
}
