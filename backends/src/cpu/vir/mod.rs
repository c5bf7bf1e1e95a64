//! The vector kernel IR: a native function of one signature, in structured form.
//!
//! A [`Func`] is `extern "C" fn(args: *const u64, task: i64)`. `args` points at 8-byte words, each a pointer or a run-time size;
//! `task` is the iteration of the parallel loop around the kernel. Registers are mutable and come in three files: [`V`] vectors of
//! `lanes` 32-bit values, [`I`] 64-bit integers and pointers, [`M`] lane masks. There are any number of each; a lowering assigns
//! machine registers. Control flow is counted loops and `if`.
//!
//! Float semantics are those of the machine: IEEE, round to nearest even, no traps; [`VBin::Max`] and [`VBin::Min`] return their
//! second operand when the operands are unordered, so that the operand whose NaN must survive stands second.

pub mod build;
pub mod interp;
mod print;
pub mod verify;

pub use build::Builder;

/// A vector register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct V(pub u32);

/// An integer or pointer register, 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct I(pub u32);

/// A mask register: one truth value a lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct M(pub u32);

/// `args` on entry.
pub const ARGS: I = I(0);
/// `task` on entry.
pub const TASK: I = I(1);

/// An integer operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum X {
    R(I),
    C(i64),
}

impl From<I> for X {
    fn from(r: I) -> X {
        X::R(r)
    }
}

impl From<i64> for X {
    fn from(c: i64) -> X {
        X::C(c)
    }
}

/// A vector operand that may be a constant in every lane (its bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Src {
    R(V),
    C(u32),
}

impl From<V> for Src {
    fn from(r: V) -> Src {
        Src::R(r)
    }
}

impl From<f32> for Src {
    fn from(c: f32) -> Src {
        Src::C(c.to_bits())
    }
}

/// `base + index*scale + disp`, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addr {
    pub base: I,
    /// Register and scale; the scale is 1, 2, 4 or 8.
    pub index: Option<(I, u8)>,
    pub disp: i32,
}

impl From<I> for Addr {
    fn from(base: I) -> Addr {
        Addr { base, index: None, disp: 0 }
    }
}

impl Addr {
    /// This address moved by constant bytes.
    ///
    /// # Panics
    /// If the displacement leaves the range of an i32, which no layout of a kernel's working set does.
    pub fn off(self, bytes: i64) -> Addr {
        let disp = i32::try_from(i64::from(self.disp) + bytes).expect("displacement within 2 GiB");
        Addr { disp, ..self }
    }

    /// This address with `index * scale` added; there must be no index yet.
    pub fn idx(self, index: I, scale: u8) -> Addr {
        debug_assert!(self.index.is_none());
        Addr { index: Some((index, scale)), ..self }
    }
}

/// Vector operations of two operands. The last five work on the bits as 32-bit integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VBin {
    Add,
    Sub,
    Mul,
    Div,
    /// `a > b ? a : b`
    Max,
    /// `a < b ? a : b`
    Min,
    And,
    /// `!a & b`
    AndNot,
    Or,
    Xor,
    IAdd,
    ISub,
    IMul,
    /// `a * 2^floor(b)`, rounded once; of vectors of 16 lanes only.
    Scale,
}

/// Vector operations of one operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VUn {
    Sqrt,
    /// To the nearest integer, ties to even.
    Nearest,
    Floor,
    Ceil,
    Trunc,
    /// f32 to i32, nearest even. Out of range: unspecified.
    ToInt,
    /// f32 to i32, toward zero. Out of range: unspecified.
    ToIntTrunc,
    /// i32 to f32.
    FromInt,
    Shl(u8),
    /// Logical shift.
    Shr(u8),
    /// Arithmetic shift.
    Sar(u8),
}

/// Comparisons of vectors; all but `Ne` and `Unord` are false on NaN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VCmp {
    Lt,
    Le,
    Gt,
    Ge,
    Eq,
    Ne,
    /// Either is NaN.
    Unord,
}

/// Combinations of masks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MBin {
    And,
    Or,
    Xor,
}

/// Integer operations. Multiplication, shifts and sums wrap; division is unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IBin {
    Add,
    Sub,
    Mul,
    /// By a constant.
    Shl,
    /// Logical, by a constant.
    Shr,
    And,
    DivU,
    RemU,
    Min,
    Max,
}

/// Signed comparisons of integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ICmp {
    Lt,
    Le,
    Gt,
    Ge,
    Eq,
    Ne,
}

impl ICmp {
    /// The comparison that is true exactly when this one is false.
    pub fn negate(self) -> ICmp {
        match self {
            ICmp::Lt => ICmp::Ge,
            ICmp::Le => ICmp::Gt,
            ICmp::Gt => ICmp::Le,
            ICmp::Ge => ICmp::Lt,
            ICmp::Eq => ICmp::Ne,
            ICmp::Ne => ICmp::Eq,
        }
    }

    /// The comparison with its operands exchanged.
    pub fn swap(self) -> ICmp {
        match self {
            ICmp::Lt => ICmp::Gt,
            ICmp::Le => ICmp::Ge,
            ICmp::Gt => ICmp::Lt,
            ICmp::Ge => ICmp::Le,
            c => c,
        }
    }

    pub fn eval(self, a: i64, b: i64) -> bool {
        match self {
            ICmp::Lt => a < b,
            ICmp::Le => a <= b,
            ICmp::Gt => a > b,
            ICmp::Ge => a >= b,
            ICmp::Eq => a == b,
            ICmp::Ne => a != b,
        }
    }
}

/// One operation. `d` is written, everything else is read.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Inst {
    /// All lanes from consecutive f32 or i32.
    Load {
        d: V,
        a: Addr,
    },
    Store {
        a: Addr,
        s: V,
    },
    /// Lanes of `m` from memory, the others zero; memory of the others is not touched.
    LoadMask {
        d: V,
        a: Addr,
        m: M,
    },
    StoreMask {
        a: Addr,
        s: V,
        m: M,
    },
    /// One 32-bit value from memory into all lanes.
    Splat {
        d: V,
        a: Addr,
    },
    /// The low 32 bits of an integer into all lanes.
    SplatInt {
        d: V,
        x: I,
    },
    Const {
        d: V,
        bits: u32,
    },
    Copy {
        d: V,
        s: V,
    },
    Bin {
        op: VBin,
        d: V,
        a: V,
        b: Src,
    },
    Un {
        op: VUn,
        d: V,
        a: V,
    },
    /// `a*b + c` in one rounding, or `c - a*b` when `neg`. At most one of `b` and `c` is a constant.
    Fma {
        neg: bool,
        d: V,
        a: V,
        b: Src,
        c: Src,
    },
    /// `d + a*b` over pairs: each lane of `a` and `b` is two bf16, whose products are added. AVX512_BF16 only.
    Dot {
        d: V,
        a: V,
        b: V,
    },
    /// All lanes rounded to bf16, two bytes each. AVX512_BF16 only.
    StoreBf16 {
        a: Addr,
        s: V,
    },
    Cmp {
        c: VCmp,
        d: M,
        a: V,
        b: Src,
    },
    /// Lanes of `t` where `m`, of `f` elsewhere.
    Select {
        d: V,
        m: M,
        t: V,
        f: V,
    },
    /// Lane `i` takes lane `i ^ dist`; `dist` is a power of two below `lanes`.
    Swap {
        d: V,
        a: V,
        dist: u8,
    },
    /// Lanes of `a` and `b`.
    Shuffle {
        how: Shuffle,
        d: V,
        a: V,
        b: V,
    },
    /// Lanes `i < n`.
    Tail {
        d: M,
        n: X,
    },
    Mask {
        op: MBin,
        d: M,
        a: M,
        b: M,
    },
    Int {
        d: I,
        x: X,
    },
    IBin {
        op: IBin,
        d: I,
        a: X,
        b: X,
    },
    /// `c(a, b) ? t : f`
    ISelect {
        d: I,
        c: ICmp,
        a: X,
        b: X,
        t: X,
        f: X,
    },
    /// The address itself.
    Lea {
        d: I,
        a: Addr,
    },
    /// A 64-bit word, or a sign-extended 32-bit one.
    ILoad {
        d: I,
        a: Addr,
        wide: bool,
    },
    /// The function's own scratch memory, `Func::frame` bytes, at byte `off`.
    Frame {
        d: I,
        off: u32,
    },
    /// Bring a cache line into the first-level cache, or only the second. Any address may be named.
    Prefetch {
        a: Addr,
        first: bool,
    },
}

/// Which lanes of two vectors make a third. Fours are the lanes of 128 bits, which instructions do not leave but to move them whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shuffle {
    /// In each four, the first two lanes of `a` and `b` by turns: `a0 b0 a1 b1`.
    MixLow,
    /// The same of the last two.
    MixHigh,
    /// In each four, two lanes of `a`, then two of `b`.
    Lanes([u8; 4]),
    /// Fours of `a`, then as many of `b`; of vectors of two fours the first and third count. Not of vectors of a single one.
    Fours([u8; 4]),
}

impl Shuffle {
    /// Where lane `i` of the result comes from: whether from `b`, and which lane.
    pub fn source(self, lanes: usize, i: usize) -> (bool, usize) {
        let (four, lane) = (i / 4, i % 4);
        match self {
            Shuffle::MixLow => (lane % 2 == 1, four * 4 + lane / 2),
            Shuffle::MixHigh => (lane % 2 == 1, four * 4 + 2 + lane / 2),
            Shuffle::Lanes(pick) => (lane >= 2, four * 4 + usize::from(pick[lane])),
            Shuffle::Fours(pick) => (i >= lanes / 2, usize::from(pick[if lanes == 8 { 2 * four } else { four }]) * 4 + lane),
        }
    }

    /// Four picks as instructions hold them, two bits each.
    pub fn bits(pick: [u8; 4]) -> u32 {
        pick.iter().rev().fold(0, |bits, p| bits << 2 | u32::from(*p))
    }
}

/// A register of any file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Reg {
    V(V),
    I(I),
    M(M),
}

impl Inst {
    /// Calls `f` with every register read, then with the one written (`true`).
    pub fn regs(&self, f: &mut dyn FnMut(Reg, bool)) {
        fn addr(a: &Addr, f: &mut dyn FnMut(Reg, bool)) {
            f(Reg::I(a.base), false);
            if let Some((i, _)) = a.index {
                f(Reg::I(i), false);
            }
        }
        fn src(s: &Src, f: &mut dyn FnMut(Reg, bool)) {
            if let Src::R(r) = s {
                f(Reg::V(*r), false);
            }
        }
        fn int(x: &X, f: &mut dyn FnMut(Reg, bool)) {
            if let X::R(r) = x {
                f(Reg::I(*r), false);
            }
        }
        let written = match self {
            Inst::Load { d, a } | Inst::Splat { d, a } => {
                addr(a, f);
                Reg::V(*d)
            }
            Inst::Store { a, s } | Inst::StoreBf16 { a, s } => {
                addr(a, f);
                return f(Reg::V(*s), false);
            }
            Inst::LoadMask { d, a, m } => {
                addr(a, f);
                f(Reg::M(*m), false);
                Reg::V(*d)
            }
            Inst::StoreMask { a, s, m } => {
                addr(a, f);
                f(Reg::M(*m), false);
                return f(Reg::V(*s), false);
            }
            Inst::SplatInt { d, x } => {
                f(Reg::I(*x), false);
                Reg::V(*d)
            }
            Inst::Const { d, .. } => Reg::V(*d),
            Inst::Copy { d, s } => {
                f(Reg::V(*s), false);
                Reg::V(*d)
            }
            Inst::Bin { d, a, b, .. } => {
                f(Reg::V(*a), false);
                src(b, f);
                Reg::V(*d)
            }
            Inst::Un { d, a, .. } | Inst::Swap { d, a, .. } => {
                f(Reg::V(*a), false);
                Reg::V(*d)
            }
            Inst::Fma { d, a, b, c, .. } => {
                f(Reg::V(*a), false);
                src(b, f);
                src(c, f);
                Reg::V(*d)
            }
            Inst::Dot { d, a, b } => {
                for r in [d, a, b] {
                    f(Reg::V(*r), false);
                }
                Reg::V(*d)
            }
            Inst::Cmp { d, a, b, .. } => {
                f(Reg::V(*a), false);
                src(b, f);
                Reg::M(*d)
            }
            Inst::Select { d, m, t, f: e } => {
                f(Reg::M(*m), false);
                f(Reg::V(*t), false);
                f(Reg::V(*e), false);
                Reg::V(*d)
            }
            Inst::Shuffle { d, a, b, .. } => {
                f(Reg::V(*a), false);
                f(Reg::V(*b), false);
                Reg::V(*d)
            }
            Inst::Tail { d, n } => {
                int(n, f);
                Reg::M(*d)
            }
            Inst::Mask { d, a, b, .. } => {
                f(Reg::M(*a), false);
                f(Reg::M(*b), false);
                Reg::M(*d)
            }
            Inst::Int { d, x } => {
                int(x, f);
                Reg::I(*d)
            }
            Inst::IBin { d, a, b, .. } => {
                int(a, f);
                int(b, f);
                Reg::I(*d)
            }
            Inst::ISelect { d, a, b, t, f: e, .. } => {
                for x in [a, b, t, e] {
                    int(x, f);
                }
                Reg::I(*d)
            }
            Inst::Lea { d, a } | Inst::ILoad { d, a, .. } => {
                addr(a, f);
                Reg::I(*d)
            }
            Inst::Frame { d, .. } => Reg::I(*d),
            Inst::Prefetch { a, .. } => return addr(a, f),
        };
        f(written, true)
    }
}

/// A statement.
#[derive(Clone, PartialEq, Debug)]
pub enum Stmt {
    Inst(Inst),
    /// `for (iv = from; iv < to; iv += step)`. The body writes neither `iv` nor `to`; `step` is positive.
    Loop {
        iv: I,
        from: X,
        to: X,
        step: i64,
        body: Vec<Stmt>,
    },
    If {
        c: ICmp,
        a: X,
        b: X,
        then: Vec<Stmt>,
        els: Vec<Stmt>,
    },
}

/// A kernel function.
#[derive(Clone, PartialEq, Debug)]
pub struct Func {
    pub name: String,
    /// 32-bit values in a vector: 4, 8 or 16.
    pub lanes: usize,
    /// Registers of each file: ids are below these.
    pub vectors: u32,
    pub ints: u32,
    pub masks: u32,
    /// Bytes of scratch memory that [`Inst::Frame`] points into.
    pub frame: u32,
    pub body: Vec<Stmt>,
}
