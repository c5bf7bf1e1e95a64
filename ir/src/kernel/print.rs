//! Programs as text, for people: buffers, kernels with their loops, launches. Not read back.

use super::{Access, BufferRef, Expr, ExprId, Fault, Kernel, Launch, Origin, Place, Program, Step, Stmt};
use crate::print::{DimText, Name, TypeText, op_text};
use crate::scalar::{Num, ScalarFn};
use crate::types::ShapeText;
use std::cell::Cell;
use std::fmt::{self, Display, Write};

/// What is deeper in one expression, or beyond so many parts of it, is shown as `(..)`: parts may be shared without end.
const MAX_DEPTH: u32 = 48;
const MAX_PARTS: u32 = 500;

impl Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {}", Name(&self.name))?;
        writeln!(f, "  flops {}, workspace {} bytes, weights {} bytes", DimText(&self.flops), DimText(&self.workspace), self.weight_bytes())?;
        for (what, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            for p in ports {
                writeln!(f, "  {what} {}: {} = b{}", Name(&p.name), TypeText(&p.ty), p.buffer.0)?;
            }
        }
        for (i, b) in self.buffers.iter().enumerate() {
            write!(f, "  buffer b{i}: {}[{}] ", b.dtype, DimText(&b.elems))?;
            match &b.place {
                Place::Input(k) => writeln!(f, "input {k}")?,
                Place::Output(k) => writeln!(f, "output {k}")?,
                Place::Weight { offset } => writeln!(f, "weight at {offset}")?,
                Place::Unplanned => writeln!(f, "unplanned")?,
                Place::Work { offset } => writeln!(f, "workspace at {}", DimText(offset))?,
                Place::Heap { slot } => writeln!(f, "block {slot}")?,
            }
        }
        steps(f, self, &self.steps, 1)?;
        for k in &self.kernels {
            write!(f, "\n{k}")?;
        }
        Ok(())
    }
}

impl Program {
    fn weight_bytes(&self) -> u64 {
        self.weights.last().map_or(0, |(at, t)| at + t.byte_len() as u64)
    }
}

struct Ref<'a>(&'a BufferRef);

impl Display for Ref<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0.buffer.0)?;
        if self.0.offset.is(0) { Ok(()) } else { write!(f, "+{}", DimText(&self.0.offset)) }
    }
}

fn steps(f: &mut fmt::Formatter<'_>, program: &Program, list: &[Step], depth: usize) -> fmt::Result {
    let indent = "  ".repeat(depth);
    for s in list {
        match s {
            Step::Launch(l) => {
                write!(f, "{indent}")?;
                launch(f, program, l)?;
            }
            Step::Check { a, b, at_most, .. } => writeln!(f, "{indent}check {} {} {}", DimText(a), if *at_most { "<=" } else { "==" }, DimText(b))?,
            Step::Bind { symbol, from } => writeln!(f, "{indent}bind {} = {}", Name(symbol), Ref(from))?,
            Step::Decode(d) => {
                write!(f, "{indent}decode {} -> {}", Ref(&d.file), Ref(&d.sizes))?;
                d.samples.iter().try_for_each(|to| write!(f, ", {}", Ref(to)))?;
                writeln!(f, " with bytes={} channels={}", DimText(&d.bytes), d.channels.word())?;
            }
            Step::If { cond, then, otherwise } => {
                writeln!(f, "{indent}if {} {{", Ref(cond))?;
                steps(f, program, then, depth + 1)?;
                if !otherwise.is_empty() {
                    writeln!(f, "{indent}}} else {{")?;
                    steps(f, program, otherwise, depth + 1)?;
                }
                writeln!(f, "{indent}}}")?;
            }
            Step::While { cond, body } => {
                writeln!(f, "{indent}while {} {{", Ref(cond))?;
                steps(f, program, body, depth + 1)?;
                writeln!(f, "{indent}}}")?;
            }
        }
    }
    Ok(())
}

fn launch(f: &mut fmt::Formatter<'_>, program: &Program, l: &Launch) -> fmt::Result {
    match program.kernels.get(l.kernel as usize) {
        Some(k) => write!(f, "launch {}(", Name(&k.name))?,
        None => write!(f, "launch kernel {}(", l.kernel)?,
    }
    for (i, b) in l.buffers.iter().enumerate() {
        write!(f, "{}{}", if i > 0 { ", " } else { "" }, Ref(b))?;
    }
    f.write_char(')')?;
    for (i, d) in l.sizes.iter().enumerate() {
        write!(f, "{}s{i}={}", if i > 0 { ", " } else { " with " }, DimText(d))?;
    }
    if l.name.is_empty() { writeln!(f) } else { writeln!(f, "  // {}", l.name.escape_debug()) }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}(", Name(&self.name))?;
        for (i, p) in self.params.iter().enumerate() {
            let access = match p.access {
                Access::Read => "read",
                Access::Write => "write",
                Access::ReadWrite => "readwrite",
            };
            write!(f, "{}p{i}: {access} {}[{}]", if i > 0 { ", " } else { "" }, p.dtype, DimText(&p.elems))?;
        }
        write!(f, ") sizes {} task v{} of {} {{", self.sizes, self.task.0, DimText(&self.tasks))?;
        match &self.origin {
            Some(o) => writeln!(f, "  // {}", OriginText(o))?,
            None => writeln!(f)?,
        }
        block(f, self, &self.body, 1)?;
        writeln!(f, "}}")
    }
}

/// The tensor operation with the types it works on: `conv(strides=[2, 2]) of f32[1,3,8,8], f32[4,3,3,3] -> f32[1,4,4,4]`.
pub struct OriginText<'a>(pub &'a Origin);

impl Display for OriginText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&op_text(&self.0.op))?;
        for (lead, types) in [(" of ", &self.0.x), (" -> ", &self.0.y)] {
            for (i, t) in types.iter().enumerate() {
                write!(f, "{}{}", if i > 0 { ", " } else { lead }, TypeText(t))?;
            }
        }
        if let Some(w) = &self.0.within {
            write!(f, " within {} from {}", ShapeText(&w.shape), ShapeText(&w.start))?;
        }
        Ok(())
    }
}

/// Statements; recursion follows the nesting of loops, which lowering keeps small.
fn block(f: &mut fmt::Formatter<'_>, k: &Kernel, list: &[Stmt], depth: usize) -> fmt::Result {
    let indent = "  ".repeat(depth);
    let e = |id: &ExprId| ExprText { kernel: k, id: *id, depth: 0, operand: false, parts: &Cell::new(0) }.to_string();
    for s in list {
        match s {
            Stmt::For { var, lo, hi, body } => {
                writeln!(f, "{indent}for v{} in {}..{} {{", var.0, e(lo), e(hi))?;
                block(f, k, body, depth + 1)?;
                writeln!(f, "{indent}}}")?;
            }
            Stmt::While { cond, body } => {
                writeln!(f, "{indent}while {} {{", e(cond))?;
                block(f, k, body, depth + 1)?;
                writeln!(f, "{indent}}}")?;
            }
            Stmt::If { cond, then, otherwise } => {
                writeln!(f, "{indent}if {} {{", e(cond))?;
                block(f, k, then, depth + 1)?;
                if !otherwise.is_empty() {
                    writeln!(f, "{indent}}} else {{")?;
                    block(f, k, otherwise, depth + 1)?;
                }
                writeln!(f, "{indent}}}")?;
            }
            Stmt::Set { var, value } => {
                let dtype = k.vars.get(var.0 as usize).map_or("?", |d| d.name());
                writeln!(f, "{indent}v{}: {dtype} = {}", var.0, e(value))?;
            }
            Stmt::Store { buf, index, value } => writeln!(f, "{indent}p{buf}[{}] = {}", e(index), e(value))?,
            Stmt::Break => writeln!(f, "{indent}break")?,
            Stmt::Fail(Fault::Index) => writeln!(f, "{indent}fail index")?,
            Stmt::Fail(Fault::Size) => writeln!(f, "{indent}fail size")?,
        }
    }
    Ok(())
}

/// An expression of a kernel, spelled out.
struct ExprText<'a> {
    kernel: &'a Kernel,
    id: ExprId,
    depth: u32,
    /// Stands beside an operator: a sum there needs parentheses.
    operand: bool,
    /// Parts printed so far.
    parts: &'a Cell<u32>,
}

impl Display for ExprText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExprText { kernel: k, id, depth, operand, parts } = *self;
        parts.set(parts.get() + 1);
        if depth > MAX_DEPTH || parts.get() > MAX_PARTS {
            return f.write_str("(..)");
        }
        let part = |id: ExprId, operand: bool| ExprText { kernel: k, id, depth: depth + 1, operand, parts };
        let sub = |id: ExprId| part(id, false);
        match k.exprs.get(id.0 as usize) {
            None => write!(f, "e{}?", id.0),
            // Indices are bare; other constants show their type.
            Some(Expr::Const(Num::I(i), crate::DType::I64)) => write!(f, "{i}"),
            Some(Expr::Const(n, d)) => match n {
                Num::F(x) => write!(f, "{d}({x:?})"),
                Num::I(x) => write!(f, "{d}({x})"),
                Num::U(x) => write!(f, "{d}({x})"),
                Num::B(x) => write!(f, "{x}"),
            },
            Some(Expr::Size(i)) => write!(f, "s{i}"),
            Some(Expr::Var(v)) => write!(f, "v{}", v.0),
            Some(Expr::Load { buf, index }) => write!(f, "p{buf}[{}]", sub(*index)),
            Some(Expr::Cast { to, arg }) => write!(f, "{to}({})", sub(*arg)),
            Some(Expr::Map { fun, args }) => match (infix(*fun), &args[..]) {
                (Some(op), [a, b]) if operand => write!(f, "({} {op} {})", part(*a, true), part(*b, true)),
                (Some(op), [a, b]) => write!(f, "{} {op} {}", part(*a, true), part(*b, true)),
                _ => {
                    write!(f, "{}(", fun.name())?;
                    for (i, a) in args.iter().enumerate() {
                        write!(f, "{}{}", if i > 0 { ", " } else { "" }, sub(*a))?;
                    }
                    f.write_char(')')
                }
            },
        }
    }
}

fn infix(f: ScalarFn) -> Option<&'static str> {
    Some(match f {
        ScalarFn::Add => "+",
        ScalarFn::Sub => "-",
        ScalarFn::Mul => "*",
        ScalarFn::Div => "/",
        ScalarFn::Less => "<",
        ScalarFn::LessEqual => "<=",
        ScalarFn::Greater => ">",
        ScalarFn::GreaterEqual => ">=",
        ScalarFn::Equal => "==",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::kernel::builder::KernelBuilder;
    use crate::kernel::size_symbol;

    #[test]
    fn a_kernel_reads_like_a_program() {
        let mut b = KernelBuilder::new("scale", 1);
        let n = size_symbol(0);
        let x = b.param(DType::F32, Access::Read, n.clone());
        let y = b.param(DType::F32, Access::Write, n.clone());
        let hi = b.dim(&n);
        b.for_each(hi, |b, i| {
            let v = b.load(x, i);
            let two = b.num(2.0, DType::F32);
            let v = b.mul(v, two);
            let v = b.map(ScalarFn::Tanh, &[v]);
            b.store(y, i, v);
        });
        let text = b.finish().to_string();
        assert_eq!(
            text,
            "kernel scale(p0: read f32[s0], p1: write f32[s0]) sizes 1 task v0 of 1 {
  for v1 in 0..s0 {
    p1[v1] = tanh(p0[v1] * f32(2.0))
  }
}
"
        );
    }
}
