//! Kernel generators: a descriptor and an [`Isa`] in, a [`Kernel`] out.
//!
//! Sizes in descriptors are [`Size`]s: constants, or words of the kernel's arguments. Channels are always constant. The blocked
//! layout NCHWc16 is `[N][C/16][H][W][16]`, channels padded with zeros to a multiple of 16, on every instruction set.
//!
//! [`Isa`]: super::isa::Isa

pub mod attention;
pub mod contract;
pub mod conv;
mod correlate;
pub mod depthwise;
pub mod gemm;
pub mod math;
mod plan;
pub mod planar;
pub mod pool;
pub mod post;
pub mod reorder;
pub mod rows;
pub mod winograd;

use super::vir::{Builder, Func, I, X};

/// Channels of a block of the blocked layout, and columns of a block of packed weights.
pub const BLOCK: i64 = 16;
/// Bytes of one block of f32.
pub const BLOCK_BYTES: i64 = BLOCK * 4;

/// A size that a kernel is made for, or finds in its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Size {
    Const(i64),
    /// Word of the arguments, an i64.
    Arg(u32),
}

impl From<i64> for Size {
    fn from(c: i64) -> Size {
        Size::Const(c)
    }
}

/// A distance in bytes: a size times a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pub size: Size,
    pub mul: i64,
}

impl Step {
    pub const ZERO: Step = Step { size: Size::Const(0), mul: 0 };

    /// A constant number of bytes.
    pub const fn bytes(n: i64) -> Step {
        Step { size: Size::Const(n), mul: 1 }
    }

    /// `size` f32 values, `times` over.
    pub const fn floats(size: Size, times: i64) -> Step {
        Step { size, mul: 4 * times }
    }

    /// The bytes, if known now.
    pub fn constant(self) -> Option<i64> {
        match self.size {
            _ if self.mul == 0 => Some(0),
            Size::Const(c) => c.checked_mul(self.mul),
            Size::Arg(_) => None,
        }
    }
}

impl Builder {
    /// The value of a size.
    pub(crate) fn size(&mut self, s: Size) -> X {
        match s {
            Size::Const(c) => X::C(c),
            Size::Arg(n) => X::R(self.word(n)),
        }
    }

    /// The value of a step, bytes.
    pub(crate) fn step(&mut self, s: Step) -> X {
        match s.constant() {
            Some(c) => X::C(c),
            None => {
                let size = self.size(s.size);
                self.imul(size, s.mul)
            }
        }
    }

    /// `x / n`, rounded up.
    pub(crate) fn ceil_div(&mut self, x: X, n: i64) -> X {
        let up = self.iadd(x, n - 1);
        self.idiv(up, n)
    }

    /// `base + Σ index*step`
    pub(crate) fn element(&mut self, base: I, at: &[(X, Step)]) -> I {
        let mut p = X::R(base);
        for (i, s) in at {
            let s = self.step(*s);
            let d = self.imul(*i, s);
            p = self.iadd(p, d);
        }
        self.reg(p)
    }
}

/// One factor of a task count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Factor {
    Size(Size),
    /// The product of the sizes in chunks of `per`, the last one perhaps smaller.
    Chunks {
        of: Vec<Size>,
        per: i64,
    },
}

/// How many tasks a kernel has: the product of its factors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tasks(pub Vec<Factor>);

impl Tasks {
    /// The number of tasks; `arg` gives words of the arguments.
    pub fn count(&self, arg: impl Fn(u32) -> i64) -> i64 {
        let size = |s: &Size| match s {
            Size::Const(c) => *c,
            Size::Arg(n) => arg(*n),
        };
        self.0
            .iter()
            .map(|f| match f {
                Factor::Size(s) => size(s),
                Factor::Chunks { of, per } => {
                    let n: i64 = of.iter().map(size).product();
                    (n + per - 1) / per
                }
            })
            .product()
    }
}

/// A generated kernel.
#[derive(Clone, PartialEq, Debug)]
pub struct Kernel {
    pub func: Func,
    pub tasks: Tasks,
}
