//! The GPU kernel IR: what one thread of a workgroup does, in structured SSA. Printers make SPIR-V and PTX of it, [`interp`] runs it.
//!
//! * Values are numbered and typed ([`Ty`]); integers have no sign, operations do. There are no pointers: memory is a parameter or a
//!   shared array, and an index in *elements*; printers scale it.
//! * Control flow nests: `If` gives values, loops carry them. There is no jump. SPIR-V wants it so, PTX prints labels for it, and what
//!   all threads of a group agree on ([`verify`]) follows from it.
//! * Groups are a line, threads in them too: a printer folds the line into the device's grid (see [`grid`]).
//!
//! Narrow elements ([`Elem`]) exist in memory only.

pub mod build;
pub mod interp;
pub mod print;
pub mod verify;

use nnc_ir::target::Cooperative;
use std::sync::Arc;

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Ty {
    Bool,
    I32,
    I64,
    F32,
    F64,
    /// Matrices that a subgroup holds together, of the kernel's shape ([`Kernel::cooperative`]): f16 of rows by depth and of depth by
    /// columns, f32 of rows by columns.
    Left,
    Right,
    Sums,
}

impl Ty {
    pub fn is_matrix(self) -> bool {
        matches!(self, Ty::Left | Ty::Right | Ty::Sums)
    }

    pub fn is_float(self) -> bool {
        matches!(self, Ty::F32 | Ty::F64)
    }

    pub fn is_int(self) -> bool {
        matches!(self, Ty::I32 | Ty::I64)
    }

    pub fn is_number(self) -> bool {
        self.is_int() || self.is_float()
    }

    pub fn bits(self) -> u32 {
        match self {
            Ty::Bool => 1,
            Ty::I32 | Ty::F32 => 32,
            Ty::I64 | Ty::F64 => 64,
            // No bits of a thread.
            Ty::Left | Ty::Right | Ty::Sums => 0,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Ty::Bool => "bool",
            Ty::I32 => "i32",
            Ty::I64 => "i64",
            Ty::F32 => "f32",
            Ty::F64 => "f64",
            Ty::Left => "left",
            Ty::Right => "right",
            Ty::Sums => "sums",
        }
    }
}

/// What memory holds. A load extends narrow integers to [`Ty::I32`], a store keeps their low bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Elem {
    I8,
    U8,
    I16,
    U16,
    I32,
    I64,
    F32,
    F64,
}

impl Elem {
    pub fn bytes(self) -> u32 {
        match self {
            Elem::I8 | Elem::U8 => 1,
            Elem::I16 | Elem::U16 => 2,
            Elem::I32 | Elem::F32 => 4,
            Elem::I64 | Elem::F64 => 8,
        }
    }

    /// What an element is in a register.
    pub fn ty(self) -> Ty {
        match self {
            Elem::I8 | Elem::U8 | Elem::I16 | Elem::U16 | Elem::I32 => Ty::I32,
            Elem::I64 => Ty::I64,
            Elem::F32 => Ty::F32,
            Elem::F64 => Ty::F64,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Elem::I8 => "i8",
            Elem::U8 => "u8",
            Elem::I16 => "i16",
            Elem::U16 => "u16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
        }
    }
}

/// A value: index into [`Kernel::types`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Val(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unary {
    /// Floats.
    Neg,
    Abs,
    Sqrt,
    Floor,
    Ceil,
    /// To the nearest integer, ties to even.
    Round,
    Trunc,
    /// Integers and `bool`.
    Not,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Binary {
    /// Integers (wrapping) and floats.
    Add,
    Sub,
    Mul,
    /// Floats.
    Div,
    /// Integers; by zero, and the least number by -1, are not defined.
    DivS,
    DivU,
    RemS,
    RemU,
    /// Integers and `bool`.
    And,
    Or,
    Xor,
    /// Integers, by less than the width.
    Shl,
    ShrS,
    ShrU,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compare {
    /// Any type; NaN is equal to nothing.
    Eq,
    Ne,
    /// Floats and signed integers.
    Lt,
    Le,
    /// Unsigned integers.
    LtU,
    LeU,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Convert {
    /// To `i64`, by the sign or by zeros.
    ExtendS,
    ExtendU,
    /// To `i32`: the low half.
    Low,
    /// 0 or 1.
    FromBool,
    /// Integers to floats, rounding to the nearest.
    FloatS,
    FloatU,
    /// Floats to integers, towards zero; what does not fit is not defined.
    IntS,
    IntU,
    /// Between `f32` and `f64`.
    Resize,
    /// The same bits as a type of the same width.
    Bits,
}

/// A reduction over a subgroup.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fold {
    Add,
    Max,
    Min,
}

/// What the words of matrices are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Words {
    /// Pairs of bf16 or f16, the first in the low half.
    Bf16,
    F16,
    /// Numbers, rounded by [`Op::Tf32`].
    Tf32,
}

impl Words {
    /// How many numbers a word holds.
    pub fn numbers(self) -> u32 {
        match self {
            Words::Bf16 | Words::F16 => 2,
            Words::Tf32 => 1,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    /// A parameter of the kernel.
    Global(u32),
    /// An array of the group.
    Shared(u32),
}

/// What a value is computed by. All but loads and subgroup operations depend on their operands alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// By its bits. Of matrices there is one, of zeros.
    Const(Ty, u64),
    /// A scalar of the launch, `i32`.
    Scalar(u32),
    /// Number of the thread in its group, of the group in the launch, and how many groups there are: `i32`.
    Thread,
    Group,
    Groups,
    /// The thread's place in its subgroup, and the subgroup's size, which only the run may know.
    Lane,
    Lanes,
    /// Number of the subgroup in its group. Of devices with matrices of subgroups, whose subgroups have all one size.
    Subgroup,
    Unary(Unary, Val),
    Binary(Binary, Val, Val),
    /// `a * b + c`, rounded once or twice as the device likes. Of matrices, the product of a left and a right one added to sums.
    MulAdd(Val, Val, Val),
    Compare(Compare, Val, Val),
    Select(Val, Val, Val),
    /// Two `f32` rounded to what a word's pairs are, to the nearest, in an `i32`: the first in its low half.
    Pair(Words, Val, Val),
    /// An `f32` rounded to the 10 bits of mantissa of tf32, to the nearest, away from zero at a tie: as an `i32`.
    Tf32(Val),
    Convert(Convert, Ty, Val),
    Load {
        from: Space,
        index: Val,
    },
    /// A left or a right matrix from an array of `i32`, whose words are two numbers side by side along the depth: lines (rows of a left
    /// one, columns of a right one) start `pitch` words apart, the first at an index that all threads of the subgroup name.
    LoadMatrix {
        matrix: Ty,
        from: Space,
        index: Val,
        pitch: u32,
    },
    /// Over all threads of the subgroup.
    SubgroupFold(Fold, Val),
    /// The value of the thread whose place differs in the given bits.
    SubgroupXor(Val, u32),
}

impl Op {
    pub fn operands(&self) -> impl Iterator<Item = Val> {
        let list: [Option<Val>; 3] = match *self {
            Op::Const(..) | Op::Scalar(_) | Op::Thread | Op::Group | Op::Groups | Op::Lane | Op::Lanes | Op::Subgroup => [None; 3],
            Op::Unary(_, a) | Op::Tf32(a) | Op::Convert(_, _, a) | Op::SubgroupFold(_, a) | Op::SubgroupXor(a, _) => [Some(a), None, None],
            Op::Load { index, .. } | Op::LoadMatrix { index, .. } => [Some(index), None, None],
            Op::Binary(_, a, b) | Op::Compare(_, a, b) | Op::Pair(_, a, b) => [Some(a), Some(b), None],
            Op::MulAdd(a, b, c) | Op::Select(a, b, c) => [Some(a), Some(b), Some(c)],
        };
        list.into_iter().flatten()
    }

    /// Whether equal operands give equal results wherever it stands.
    pub fn is_pure(&self) -> bool {
        !matches!(self, Op::Load { .. } | Op::LoadMatrix { .. } | Op::SubgroupFold(..) | Op::SubgroupXor(..))
    }
}

/// A value that a loop hands from iteration to iteration; behind the loop it is the last one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Carried {
    pub value: Val,
    pub first: Val,
    pub next: Val,
}

/// A value that an `If` gives.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Joined {
    pub value: Val,
    pub then: Val,
    pub otherwise: Val,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Stmt {
    Let(Val, Op),
    Store {
        to: Space,
        index: Val,
        value: Val,
    },
    If {
        cond: Val,
        then: Vec<Stmt>,
        otherwise: Vec<Stmt>,
        joined: Vec<Joined>,
    },
    /// `for index in lo..hi`, signed, by one.
    For {
        index: Val,
        lo: Val,
        hi: Val,
        carried: Vec<Carried>,
        body: Vec<Stmt>,
    },
    /// `head` is computed before each iteration and decides on it.
    While {
        carried: Vec<Carried>,
        head: Vec<Stmt>,
        cond: Val,
        body: Vec<Stmt>,
    },
    /// 2 or 4 neighbours, from a multiple of their number on. Of devices that have such accesses ([`nnc_ir::target::Gpu::vector_bytes`]).
    LoadVector {
        values: Vec<Val>,
        from: Space,
        index: Val,
    },
    StoreVector {
        to: Space,
        index: Val,
        values: Vec<Val>,
    },
    /// Matrices of 8 rows of 16 bytes from an array of `i32`, by all threads of a subgroup of 32: row `r` of the `i`-th starts at the
    /// index that thread `8i + r` has (the others' are not looked at), and thread `4r + j` gets its `j`-th word as the `i`-th value. NVIDIA's
    /// devices only.
    LoadMatrices {
        values: Vec<Val>,
        from: Space,
        index: Val,
    },
    /// `a * b + c` of a subgroup of 32: 16 rows by 8 columns, sums in `f32`, 8 words deep, each of which is one number or a pair of them. Of
    /// thread `4g + t`: `a` are the words of row `g` (then `g + 8`) at column `t`, and the same at `t + 4`; `b` those of column `g` at rows `t`
    /// and `t + 4`; `c` and the values rows `g`, then `g + 8`, at columns `2t` and `2t + 1`. NVIDIA's devices only.
    MultiplyMatrices {
        words: Words,
        values: [Val; 4],
        a: [Val; 4],
        b: [Val; 2],
        c: [Val; 4],
    },
    /// Sums to an array of `f32`: rows start `pitch` elements apart, the first at an index that all threads of the subgroup name.
    StoreMatrix {
        to: Space,
        index: Val,
        pitch: u32,
        value: Val,
    },
    /// A copy of `bytes` (4, 8 or 16) from a buffer that is only read to a shared array, beside what the thread goes on with: zeros where
    /// `inside` does not hold. Both places are multiples of `bytes`. It belongs to the thread's open set of copies. NVIDIA's devices only.
    Copy {
        to: Space,
        at: Val,
        from: Space,
        index: Val,
        bytes: u32,
        inside: Option<Val>,
    },
    /// Closes the open set of copies.
    CloseCopies,
    /// Waits until all closed sets of the thread's copies but the last `pending` have arrived. Other threads see them behind a barrier.
    AwaitCopies {
        pending: u32,
    },
    /// All threads of the group arrive, and what they wrote to shared and global memory is seen by all of them.
    Barrier,
}

impl Stmt {
    /// Calls `f` for the values that the statement defines, regions left out.
    pub fn defined(&self, f: &mut dyn FnMut(Val)) {
        match self {
            Stmt::Let(v, _) => f(*v),
            Stmt::If { joined, .. } => joined.iter().for_each(|j| f(j.value)),
            Stmt::For { index, carried, .. } => {
                f(*index);
                carried.iter().for_each(|c| f(c.value));
            }
            Stmt::While { carried, .. } => carried.iter().for_each(|c| f(c.value)),
            Stmt::LoadVector { values, .. } | Stmt::LoadMatrices { values, .. } => values.iter().for_each(|v| f(*v)),
            Stmt::MultiplyMatrices { values, .. } => values.iter().for_each(|v| f(*v)),
            Stmt::Store { .. }
            | Stmt::StoreVector { .. }
            | Stmt::StoreMatrix { .. }
            | Stmt::Copy { .. }
            | Stmt::CloseCopies
            | Stmt::AwaitCopies { .. }
            | Stmt::Barrier => {}
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Buffer {
    pub elem: Elem,
    pub written: bool,
}

/// An array that the threads of a group share.
#[derive(Clone, PartialEq, Debug)]
pub struct Shared {
    pub elem: Elem,
    pub len: u32,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Kernel {
    pub name: Arc<str>,
    /// Threads in a group.
    pub threads: u32,
    pub buffers: Vec<Buffer>,
    /// Number of scalars.
    pub scalars: u32,
    pub shared: Vec<Shared>,
    /// The shape of matrices, where there are such.
    pub cooperative: Option<Cooperative>,
    /// By value.
    pub types: Vec<Ty>,
    pub body: Vec<Stmt>,
}

impl Kernel {
    pub fn ty(&self, v: Val) -> Ty {
        self.types[v.0 as usize]
    }

    pub fn elem(&self, s: Space) -> Elem {
        match s {
            Space::Global(i) => self.buffers[i as usize].elem,
            Space::Shared(i) => self.shared[i as usize].elem,
        }
    }

    pub fn shared_bytes(&self) -> u64 {
        self.shared.iter().map(|s| u64::from(s.elem.bytes()) * u64::from(s.len)).sum()
    }

    /// Runs `f` on every statement, outer ones first. Recursion follows nesting only.
    pub fn walk(&self, f: &mut dyn FnMut(&Stmt)) {
        fn block(body: &[Stmt], f: &mut dyn FnMut(&Stmt)) {
            for s in body {
                f(s);
                match s {
                    Stmt::If { then, otherwise, .. } => [then, otherwise].into_iter().for_each(|b| block(b, f)),
                    Stmt::For { body, .. } => block(body, f),
                    Stmt::While { head, body, .. } => [head, body].into_iter().for_each(|b| block(b, f)),
                    Stmt::Let(..)
                    | Stmt::Store { .. }
                    | Stmt::LoadVector { .. }
                    | Stmt::StoreVector { .. }
                    | Stmt::LoadMatrices { .. }
                    | Stmt::MultiplyMatrices { .. }
                    | Stmt::StoreMatrix { .. }
                    | Stmt::Copy { .. }
                    | Stmt::CloseCopies
                    | Stmt::AwaitCopies { .. }
                    | Stmt::Barrier => {}
                }
            }
        }
        block(&self.body, f);
    }
}

/// A line of groups folded into the grid of a device that takes at most `limit` along an axis. The grid may be larger than the line:
/// kernels ask for the number of what they have to do.
pub fn grid(groups: u32, limit: u32) -> [u32; 2] {
    let rows = groups.div_ceil(limit).max(1);
    [groups.div_ceil(rows).max(1), rows]
}
