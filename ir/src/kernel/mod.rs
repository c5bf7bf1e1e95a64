//! The loop IR: what passes give to backends. A [`Program`] is a list of steps that launch [`Kernel`]s on buffers.
//!
//! A kernel is loops over scalars that any backend can compile. Its [`Origin`] says which tensor operation it computes, so that a
//! backend with a better kernel for it can take that instead; the loops stay the meaning.

pub mod builder;
pub mod eval;
pub mod print;
pub mod verify;

use crate::dim::Dim;
use crate::error::Loc;
use crate::ops::Op;
use crate::ops::image::Channels;
use crate::scalar::{Num, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{DType, Type};
use std::sync::Arc;

/// Index into [`Kernel::exprs`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ExprId(pub u32);

/// A local variable: loop index, or assigned by [`Stmt::Set`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VarId(pub u32);

/// A scalar expression, evaluated where it is used. Indices are `i64`, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Expr {
    Const(Num, DType),
    /// The `i`-th run-time size of the launch (`i64`).
    Size(u32),
    Var(VarId),
    /// Element of a buffer at a flat index.
    Load {
        buf: u32,
        index: ExprId,
    },
    Map {
        fun: ScalarFn,
        args: Vec<ExprId>,
    },
    Cast {
        to: DType,
        arg: ExprId,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Stmt {
    /// `for var in lo..hi`. `var` is `i64` and not assigned in the body.
    For {
        var: VarId,
        lo: ExprId,
        hi: ExprId,
        body: Vec<Stmt>,
    },
    /// The condition is evaluated before each iteration.
    While {
        cond: ExprId,
        body: Vec<Stmt>,
    },
    If {
        cond: ExprId,
        then: Vec<Stmt>,
        otherwise: Vec<Stmt>,
    },
    /// Assigns a local.
    Set {
        var: VarId,
        value: ExprId,
    },
    Store {
        buf: u32,
        index: ExprId,
        value: ExprId,
    },
    /// Leaves the innermost loop.
    Break,
    /// Ends the run with an error (a positive code of the C ABI, see [`Fault`]).
    Fail(Fault),
}

/// Errors that only the run can find.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// An index tensor points outside.
    Index,
    /// A size computed from data is negative or does not fit.
    Size,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    Read,
    Write,
    /// Scatter and accumulation in place.
    ReadWrite,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Param {
    pub dtype: DType,
    pub access: Access,
    /// Number of elements, over the kernel's sizes `s0`, `s1`...: what the verifier and the interpreter hold indices against.
    pub elems: Dim,
}

/// The tensor operation that a kernel computes. Dimensions that are known only at run time are symbols `s0`, `s1`...: the
/// kernel's sizes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    pub op: Op,
    pub x: Vec<Type>,
    pub y: Vec<Type>,
    /// Where the only result is a window of a larger tensor.
    pub within: Option<Within>,
}

/// A larger tensor that a kernel writes a window of: its shape, and where the window starts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Within {
    pub shape: Vec<Dim>,
    pub start: Vec<Dim>,
}

impl Within {
    /// The element that the window starts at.
    pub fn offset(&self) -> Dim {
        let mut step = Dim::Const(1);
        let mut sum = Dim::Const(0);
        for (d, s) in self.shape.iter().zip(&self.start).rev() {
            sum = sum + s.clone() * step.clone();
            step = step * d.clone();
        }
        sum
    }
}

/// Loops over buffers. Parameters are the operands, then the results.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    pub name: Arc<str>,
    pub params: Vec<Param>,
    /// Number of run-time sizes.
    pub sizes: u32,
    /// Element types of the locals.
    pub vars: Vec<DType>,
    pub exprs: Vec<Expr>,
    /// Number of independent tasks, over `s0`, `s1`...; the body runs once for each, in any order, on any thread.
    pub tasks: Dim,
    /// The local that holds the number of the task.
    pub task: VarId,
    pub body: Vec<Stmt>,
    pub origin: Option<Origin>,
}

/// Index into [`Program::buffers`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BufferId(pub u32);

/// Where a buffer lives.
#[derive(Clone, PartialEq, Debug)]
pub enum Place {
    /// The caller's input.
    Input(u32),
    /// The caller's output.
    Output(u32),
    /// Constant data, at a byte offset (a multiple of 64) from the base of the weights.
    Weight { offset: u64 },
    /// Not yet planned.
    Unplanned,
    /// In the workspace, at a byte offset (a multiple of 64).
    Work { offset: Dim },
    /// In block `slot` of those that the run allocates: a block grows, and keeps its contents, when a step writes to a buffer in it that
    /// is longer. For lengths that only the run knows.
    Heap { slot: u32 },
}

#[derive(Clone, PartialEq, Debug)]
pub struct Buffer {
    pub dtype: DType,
    pub elems: Dim,
    pub place: Place,
}

/// A launch's operand: a buffer from an element on.
#[derive(Clone, PartialEq, Debug)]
pub struct BufferRef {
    pub buffer: BufferId,
    pub offset: Dim,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    Launch(Launch),
    /// Binds a symbol to an `i64` element of a buffer.
    Bind {
        symbol: Arc<str>,
        from: BufferRef,
    },
    /// An error of the run, which says `what`, unless size `a` is `b`, or at most `b`.
    Check {
        a: Dim,
        b: Dim,
        at_most: bool,
        what: Arc<str>,
    },
    Decode(Decode),
    If {
        cond: BufferRef,
        then: Vec<Step>,
        otherwise: Vec<Step>,
    },
    /// Runs while the `bool` element holds.
    While {
        cond: BufferRef,
        body: Vec<Step>,
    },
}

/// The host reads the picture in a file; [`Program`]s have no decoders. It is asked twice: how large the picture is, and for its samples.
#[derive(Clone, PartialEq, Debug)]
pub struct Decode {
    /// `bytes` elements of `u8`.
    pub file: BufferRef,
    pub bytes: Dim,
    pub channels: Channels,
    /// Height and width, two `i64`, both 0 where the bytes hold no picture: written the first time, read the second.
    pub sizes: BufferRef,
    /// The second time: where `u8[height, width, channels]` goes.
    pub samples: Option<BufferRef>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// Index into [`Program::kernels`].
    pub kernel: u32,
    pub buffers: Vec<BufferRef>,
    pub sizes: Vec<Dim>,
    /// Floating-point operations (a multiply-add is two), for profiles.
    pub flops: Dim,
    /// The user's name for what is computed: profiles and symbols show it.
    pub name: Arc<str>,
    pub loc: Loc,
}

/// An input or output as the caller sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Port {
    pub name: Arc<str>,
    pub ty: Type,
    /// The buffer that holds it.
    pub buffer: BufferId,
}

/// A tensor program lowered to kernels.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Program {
    pub name: Arc<str>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub buffers: Vec<Buffer>,
    pub kernels: Vec<Kernel>,
    pub steps: Vec<Step>,
    /// Constant data by the byte offsets that [`Place::Weight`] names, in order, without overlap.
    pub weights: Vec<(u64, Tensor)>,
    /// Bytes of the workspace (a multiple of 64).
    pub workspace: Dim,
    /// Number of blocks that the run allocates as their sizes become known.
    pub heap: u32,
    /// Floating-point operations of a run (a multiply-add is two).
    pub flops: Dim,
}

/// The symbol that stands for the `i`-th size of a kernel.
pub fn size_symbol(i: usize) -> Dim {
    Dim::sym(format!("s{i}"))
}

/// Which size a symbol stands for; `None` for a symbol that stands for none.
pub fn size_index(symbol: &str) -> Option<usize> {
    symbol.strip_prefix('s')?.parse().ok()
}

impl Kernel {
    /// The element type of an expression.
    pub fn dtype(&self, e: ExprId) -> DType {
        use crate::scalar::Out;
        let mut e = e;
        // Same-typed maps pass the type of their last operand on; a chain of them is followed without recursion.
        loop {
            match &self.exprs[e.0 as usize] {
                Expr::Const(_, d) => return *d,
                Expr::Size(_) => return DType::I64,
                Expr::Var(v) => return self.vars[v.0 as usize],
                Expr::Load { buf, .. } => return self.params[*buf as usize].dtype,
                Expr::Cast { to, .. } => return *to,
                Expr::Map { fun, .. } if fun.out() == Out::Bool => return DType::Bool,
                Expr::Map { args, .. } => e = args[args.len() - 1],
            }
        }
    }
}
