//! The text form of a kernel, for people.

use super::{Addr, Func, I, Inst, M, Src, Stmt, V, X};
use std::fmt;

impl fmt::Display for V {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for I {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.0)
    }
}

impl fmt::Display for M {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

impl fmt::Display for X {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            X::R(r) => write!(f, "{r}"),
            X::C(c) => write!(f, "{c}"),
        }
    }
}

impl fmt::Display for Src {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Src::R(r) => write!(f, "{r}"),
            Src::C(c) => write!(f, "{:?}", f32::from_bits(*c)),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}", self.base)?;
        if let Some((i, s)) = self.index {
            write!(f, " + {i}*{s}")?;
        }
        if self.disp != 0 {
            write!(f, " + {}", self.disp)?;
        }
        write!(f, "]")
    }
}

impl fmt::Display for Inst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inst::Load { d, a } => write!(f, "{d} = load {a}"),
            Inst::Store { a, s } => write!(f, "store {a}, {s}"),
            Inst::LoadMask { d, a, m } => write!(f, "{d} = load {a} where {m}"),
            Inst::StoreMask { a, s, m } => write!(f, "store {a}, {s} where {m}"),
            Inst::Splat { d, a } => write!(f, "{d} = splat {a}"),
            Inst::SplatInt { d, x } => write!(f, "{d} = splat {x}"),
            Inst::Const { d, bits } => write!(f, "{d} = {:?}", f32::from_bits(*bits)),
            Inst::Copy { d, s } => write!(f, "{d} = {s}"),
            Inst::Bin { op, d, a, b } => write!(f, "{d} = {op:?} {a}, {b}"),
            Inst::Un { op, d, a } => write!(f, "{d} = {op:?} {a}"),
            Inst::Fma { neg, d, a, b, c } => write!(f, "{d} = {c} {} {a} * {b}", if *neg { '-' } else { '+' }),
            Inst::Dot { d, a, b } => write!(f, "{d} = {d} + pairs {a} * {b}"),
            Inst::StoreBf16 { a, s } => write!(f, "store bf16 {a}, {s}"),
            Inst::Cmp { c, d, a, b } => write!(f, "{d} = {c:?} {a}, {b}"),
            Inst::Select { d, m, t, f: e } => write!(f, "{d} = {m} ? {t} : {e}"),
            Inst::Swap { d, a, dist } => write!(f, "{d} = swap {a}, {dist}"),
            Inst::Shuffle { how, d, a, b } => write!(f, "{d} = {how:?} {a}, {b}"),
            Inst::Tail { d, n } => write!(f, "{d} = lanes < {n}"),
            Inst::Mask { op, d, a, b } => write!(f, "{d} = {op:?} {a}, {b}"),
            Inst::Int { d, x } => write!(f, "{d} = {x}"),
            Inst::IBin { op, d, a, b } => write!(f, "{d} = {op:?} {a}, {b}"),
            Inst::ISelect { d, c, a, b, t, f: e } => write!(f, "{d} = {c:?} {a}, {b} ? {t} : {e}"),
            Inst::Lea { d, a } => write!(f, "{d} = lea {a}"),
            Inst::ILoad { d, a, wide } => write!(f, "{d} = int{} {a}", if *wide { 64 } else { 32 }),
            Inst::Frame { d, off } => write!(f, "{d} = frame + {off}"),
            Inst::Prefetch { a, first } => write!(f, "prefetch{} {a}", if *first { 1 } else { 2 }),
        }
    }
}

fn block(f: &mut fmt::Formatter<'_>, stmts: &[Stmt], depth: usize) -> fmt::Result {
    let pad = "  ".repeat(depth);
    for s in stmts {
        match s {
            Stmt::Inst(i) => writeln!(f, "{pad}{i}")?,
            Stmt::Loop { iv, from, to, step, body } => {
                writeln!(f, "{pad}for {iv} = {from}, {to}, {step} {{")?;
                block(f, body, depth + 1)?;
                writeln!(f, "{pad}}}")?;
            }
            Stmt::If { c, a, b, then, els } => {
                writeln!(f, "{pad}if {c:?} {a}, {b} {{")?;
                block(f, then, depth + 1)?;
                if !els.is_empty() {
                    writeln!(f, "{pad}}} else {{")?;
                    block(f, els, depth + 1)?;
                }
                writeln!(f, "{pad}}}")?;
            }
        }
    }
    Ok(())
}

impl fmt::Display for Func {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {} lanes={} frame={} {{", self.name, self.lanes, self.frame)?;
        block(f, &self.body, 1)?;
        writeln!(f, "}}")
    }
}
