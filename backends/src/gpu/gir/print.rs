//! The text of a kernel: for people and snapshots.

use super::{Kernel, Op, Space, Stmt, Ty, Val};
use std::fmt::{self, Display, Formatter, Write};

impl Display for Val {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl Display for Space {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Space::Global(i) => write!(f, "b{i}"),
            Space::Shared(i) => write!(f, "shared{i}"),
        }
    }
}

/// An enum's variant in lower case: operations are called what they are.
fn name(x: impl fmt::Debug) -> String {
    format!("{x:?}").to_lowercase()
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match *self {
            Op::Const(Ty::F32, bits) => write!(f, "{:?}", f32::from_bits(bits as u32)),
            Op::Const(Ty::F64, bits) => write!(f, "{:?}", f64::from_bits(bits)),
            Op::Const(Ty::Bool, bits) => write!(f, "{}", bits != 0),
            Op::Const(Ty::I32, bits) => write!(f, "{}", bits as u32 as i32),
            Op::Const(Ty::I64, bits) => write!(f, "{}", bits as i64),
            Op::Const(Ty::Left | Ty::Right | Ty::Sums, _) => f.write_str("zeros"),
            Op::Scalar(i) => write!(f, "s{i}"),
            Op::Thread | Op::Group | Op::Groups | Op::Lane | Op::Lanes | Op::Subgroup => f.write_str(&name(self)),
            Op::Unary(op, a) => write!(f, "{} {a}", name(op)),
            Op::Binary(op, a, b) => write!(f, "{} {a}, {b}", name(op)),
            Op::MulAdd(a, b, c) => write!(f, "muladd {a}, {b}, {c}"),
            Op::Compare(op, a, b) => write!(f, "{} {a}, {b}", name(op)),
            Op::Select(c, a, b) => write!(f, "select {c}, {a}, {b}"),
            Op::Tf32(a) => write!(f, "tf32 {a}"),
            Op::Pair(words, a, b) => write!(f, "pair {} {a}, {b}", name(words)),
            Op::Convert(op, _, a) => write!(f, "{} {a}", name(op)),
            Op::Load { from, index } => write!(f, "{from}[{index}]"),
            Op::LoadMatrix { matrix: _, from, index, pitch } => write!(f, "{from}[{index}..] by {pitch}"),
            Op::SubgroupFold(op, a) => write!(f, "subgroup_{} {a}", name(op)),
            Op::SubgroupXor(a, mask) => write!(f, "subgroup_xor {a}, {mask}"),
        }
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let buffers = self.buffers.iter().enumerate().map(|(i, b)| format!("b{i}: {}{}", if b.written { "mut " } else { "" }, b.elem.name()));
        let scalars = (0..self.scalars).map(|i| format!("s{i}"));
        let params: Vec<String> = buffers.chain(scalars).collect();
        writeln!(f, "kernel {}({}) threads {}", self.name, params.join(", "), self.threads)?;
        for (i, s) in self.shared.iter().enumerate() {
            writeln!(f, "  shared{i}: {}[{}]", s.elem.name(), s.len)?;
        }
        let mut out = String::new();
        block(self, &self.body, 1, &mut out)?;
        f.write_str(&out)
    }
}

fn block(k: &Kernel, body: &[Stmt], depth: usize, out: &mut String) -> fmt::Result {
    let pad = "  ".repeat(depth);
    for s in body {
        match s {
            Stmt::Let(v, op) => writeln!(out, "{pad}{v}: {} = {op}", k.ty(*v).name())?,
            Stmt::Store { to, index, value } => writeln!(out, "{pad}{to}[{index}] = {value}")?,
            Stmt::If { cond, then, otherwise, joined } => {
                let list: Vec<String> = joined.iter().map(|j| format!("{} = {} | {}", j.value, j.then, j.otherwise)).collect();
                writeln!(out, "{pad}if {cond} {{{}", list.join(", "))?;
                block(k, then, depth + 1, out)?;
                if !otherwise.is_empty() {
                    writeln!(out, "{pad}}} else {{")?;
                    block(k, otherwise, depth + 1, out)?;
                }
                writeln!(out, "{pad}}}")?;
            }
            Stmt::For { index, lo, hi, carried, body } => {
                writeln!(out, "{pad}for {index} in {lo}..{hi} {{{}", carried_text(carried))?;
                block(k, body, depth + 1, out)?;
                writeln!(out, "{pad}}}")?;
            }
            Stmt::While { carried, head, cond, body } => {
                writeln!(out, "{pad}while {{{}", carried_text(carried))?;
                block(k, head, depth + 1, out)?;
                writeln!(out, "{pad}}} {cond} {{")?;
                block(k, body, depth + 1, out)?;
                writeln!(out, "{pad}}}")?;
            }
            Stmt::LoadVector { values, from, index } => writeln!(out, "{pad}{} = {from}[{index}..]", list(values))?,
            Stmt::StoreVector { to, index, values } => writeln!(out, "{pad}{to}[{index}..] = {}", list(values))?,
            Stmt::LoadMatrices { values, from, index } => writeln!(out, "{pad}{} = load_matrices {from}[{index}]", list(values))?,
            Stmt::MultiplyMatrices { words, values, a, b, c } => {
                writeln!(out, "{pad}{} = multiply_matrices {} {}; {}; {}", list(values), name(words), list(a), list(b), list(c))?;
            }
            Stmt::StoreMatrix { to, index, pitch, value } => writeln!(out, "{pad}{to}[{index}..] by {pitch} = {value}")?,
            Stmt::Copy { to, at, from, index, bytes, inside } => {
                let inside = inside.map_or(String::new(), |i| format!(" if {i}"));
                writeln!(out, "{pad}{to}[{at}] <- {bytes} bytes of {from}[{index}]{inside}")?;
            }
            Stmt::CloseCopies => writeln!(out, "{pad}close_copies")?,
            Stmt::AwaitCopies { pending } => writeln!(out, "{pad}await_copies {pending}")?,
            Stmt::Barrier => writeln!(out, "{pad}barrier")?,
        }
    }
    Ok(())
}

fn list(values: &[Val]) -> String {
    values.iter().map(Val::to_string).collect::<Vec<_>>().join(", ")
}

fn carried_text(carried: &[super::Carried]) -> String {
    let list: Vec<String> = carried.iter().map(|c| format!("{} = {}, {}", c.value, c.first, c.next)).collect();
    list.join("; ")
}
