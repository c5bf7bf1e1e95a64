//! Kernels as PTX text, version 8.0, for sm_80 and later.
//!
//! A kernel takes the addresses of its buffers, then its scalars. A value is the virtual register of its number, of a class by its
//! type; `ptxas` or the driver allocates real ones. What may be one rounding is written as such (`mul.rn`, `add.rn`): nothing is fused
//! but [`Op::MulAdd`].

use super::gir::{Binary, Carried, Compare, Convert, Elem, Fold, Kernel, Op, Space, Stmt, Ty, Unary, Val, Words};
use super::spirv::entry_name;
use std::fmt::Write;

/// One file of all these kernels, which have verified.
pub fn module(kernels: &[&Kernel], target: &str) -> String {
    let mut out = format!(".version 8.0\n.target {target}\n.address_size 64\n");
    for (i, k) in kernels.iter().enumerate() {
        let mut p = Printer { k, name: entry_name(i, k), body: String::new(), temps: [0; 5], labels: 0 };
        p.block(&k.body);
        p.finish(&mut out);
    }
    out
}

struct Printer<'a> {
    k: &'a Kernel,
    name: String,
    body: String,
    /// Temporary registers, by type.
    temps: [u32; 5],
    labels: u32,
}

/// The class of registers, and PTX's name of the type.
fn class(ty: Ty) -> (&'static str, &'static str) {
    match ty {
        Ty::Bool => ("p", "pred"),
        Ty::I32 => ("r", "b32"),
        Ty::I64 => ("l", "b64"),
        Ty::F32 => ("f", "f32"),
        Ty::F64 => ("d", "f64"),
        // The verifier leaves none for NVIDIA's devices.
        Ty::Left | Ty::Right | Ty::Sums => ("m", "b32"),
    }
}

/// The type of a matrix' numbers.
fn numbers(words: Words) -> &'static str {
    match words {
        Words::Bf16 => "bf16",
        Words::F16 => "f16",
        Words::Tf32 => "tf32",
    }
}

fn memory(e: Elem) -> &'static str {
    match e {
        Elem::I8 => "s8",
        Elem::U8 => "u8",
        Elem::I16 => "s16",
        Elem::U16 => "u16",
        Elem::I32 => "u32",
        Elem::I64 => "u64",
        Elem::F32 => "f32",
        Elem::F64 => "f64",
    }
}

macro_rules! line {
    ($p:expr, $($arg:tt)*) => {{
        $p.body.push('\t');
        // Writing to a string does not fail.
        let _ = writeln!($p.body, $($arg)*);
    }};
}

impl Printer<'_> {
    fn finish(self, out: &mut String) {
        let (k, name) = (self.k, &self.name);
        let buffers = (0..k.buffers.len()).map(|i| format!(".param .u64 {name}_b{i}"));
        let scalars = (0..k.scalars).map(|i| format!(".param .u32 {name}_s{i}"));
        let params: Vec<String> = buffers.chain(scalars).collect();
        let _ = writeln!(out, "\n.visible .entry {name}(\n\t{}\n)\n.maxntid {}, 1, 1\n{{", params.join(",\n\t"), k.threads);
        for ty in [Ty::Bool, Ty::I32, Ty::I64, Ty::F32, Ty::F64] {
            let (class, kind) = class(ty);
            let _ = writeln!(out, "\t.reg .{kind} %{class}<{}>;", k.types.len());
            if self.temps[ty as usize] > 0 {
                let _ = writeln!(out, "\t.reg .{kind} %t{class}<{}>;", self.temps[ty as usize]);
            }
        }
        if !k.buffers.is_empty() {
            let _ = writeln!(out, "\t.reg .b64 %b<{}>;", k.buffers.len());
        }
        for (i, s) in k.shared.iter().enumerate() {
            let _ = writeln!(out, "\t.shared .align 16 .b8 shared{i}[{}];", s.len * s.elem.bytes());
        }
        for i in 0..k.buffers.len() {
            let _ = writeln!(out, "\tld.param.u64 %b{i}, [{name}_b{i}];\n\tcvta.to.global.u64 %b{i}, %b{i};");
        }
        out.push_str(&self.body);
        out.push_str("\tret;\n}\n");
    }

    fn reg(&self, v: Val) -> String {
        format!("%{}{}", class(self.k.ty(v)).0, v.0)
    }

    fn list(&self, values: &[Val]) -> String {
        format!("{{{}}}", values.iter().map(|v| self.reg(*v)).collect::<Vec<_>>().join(", "))
    }

    fn temp(&mut self, ty: Ty) -> String {
        self.temps[ty as usize] += 1;
        format!("%t{}{}", class(ty).0, self.temps[ty as usize] - 1)
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("$L{}", self.labels)
    }

    fn block(&mut self, body: &[Stmt]) {
        body.iter().for_each(|s| self.stmt(s));
    }

    fn copy(&mut self, to: &str, from: &str, ty: Ty) {
        line!(self, "mov.{} {to}, {from};", class(ty).1);
    }

    /// Hands loop values on: through temporaries where one of them is read after it was written.
    fn carry(&mut self, carried: &[Carried]) {
        let written: Vec<Val> = carried.iter().map(|c| c.value).collect();
        let mut late = vec![];
        for (i, c) in carried.iter().enumerate() {
            let (ty, next, to) = (self.k.ty(c.value), self.reg(c.next), self.reg(c.value));
            if written[..i].contains(&c.next) {
                let t = self.temp(ty);
                self.copy(&t, &next, ty);
                late.push((to, t, ty));
            } else if c.next != c.value {
                late.push((to, next, ty));
            }
        }
        for (to, from, ty) in late {
            self.copy(&to, &from, ty);
        }
    }

    fn stmt(&mut self, s: &Stmt) {
        match s {
            Stmt::Let(v, op) => self.value(*v, op),
            Stmt::Store { to, index, value } => {
                let (space, at) = self.place(*to, *index);
                line!(self, "st.{space}.{} [{at}], {};", memory(self.k.elem(*to)), self.reg(*value));
            }
            Stmt::If { cond, then, otherwise, joined } => {
                let (other, end) = (self.label(), self.label());
                line!(self, "@!{} bra {other};", self.reg(*cond));
                self.block(then);
                for j in joined {
                    self.copy(&self.reg(j.value), &self.reg(j.then), self.k.ty(j.value));
                }
                line!(self, "bra {end};");
                let _ = writeln!(self.body, "{other}:");
                self.block(otherwise);
                for j in joined {
                    self.copy(&self.reg(j.value), &self.reg(j.otherwise), self.k.ty(j.value));
                }
                let _ = writeln!(self.body, "{end}:");
            }
            Stmt::For { index, lo, hi, carried, body } => {
                let (head, end, done) = (self.label(), self.label(), self.temp(Ty::Bool));
                let (ty, i) = (self.k.ty(*index), self.reg(*index));
                for c in carried {
                    self.copy(&self.reg(c.value), &self.reg(c.first), self.k.ty(c.value));
                }
                self.copy(&i, &self.reg(*lo), ty);
                let _ = writeln!(self.body, "{head}:");
                line!(self, "setp.ge.s{} {done}, {i}, {};", ty.bits(), self.reg(*hi));
                line!(self, "@{done} bra {end};");
                self.block(body);
                self.carry(carried);
                line!(self, "add.s{} {i}, {i}, 1;", ty.bits());
                line!(self, "bra {head};");
                let _ = writeln!(self.body, "{end}:");
            }
            Stmt::While { carried, head, cond, body } => {
                let (start, end) = (self.label(), self.label());
                for c in carried {
                    self.copy(&self.reg(c.value), &self.reg(c.first), self.k.ty(c.value));
                }
                let _ = writeln!(self.body, "{start}:");
                self.block(head);
                line!(self, "@!{} bra {end};", self.reg(*cond));
                self.block(body);
                self.carry(carried);
                line!(self, "bra {start};");
                let _ = writeln!(self.body, "{end}:");
            }
            Stmt::LoadVector { values, from, index } => self.load(&self.list(values), values.len(), *from, *index),
            Stmt::StoreVector { to, index, values } => {
                let (space, at) = self.place(*to, *index);
                line!(self, "st.{space}.v{}.{} [{at}], {};", values.len(), memory(self.k.elem(*to)), self.list(values));
            }
            Stmt::LoadMatrices { values, from, index } => {
                let (_, at) = self.place(*from, *index);
                line!(self, "ldmatrix.sync.aligned.m8n8.x{}.shared.b16 {}, [{at}];", values.len(), self.list(values));
            }
            Stmt::MultiplyMatrices { words, values, a, b, c } => {
                let [d, a, b, c] = [&values[..], a, b, c].map(|l| self.list(l));
                let (deep, kind) = (8 * words.numbers(), numbers(*words));
                line!(self, "mma.sync.aligned.m16n8k{deep}.row.col.f32.{kind}.{kind}.f32 {d}, {a}, {b}, {c};");
            }
            Stmt::Copy { to, at, from, index, bytes, inside } => {
                let ((_, to), (_, from)) = (self.place(*to, *at), self.place(*from, *index));
                // What is read once for the group need not stay in the first cache, where all of a line can go past it.
                let cache = if *bytes == 16 { "cg" } else { "ca" };
                // Behind so many bytes it fills up with zeros.
                let read = match inside {
                    Some(inside) => {
                        let t = self.temp(Ty::I32);
                        line!(self, "selp.b32 {t}, {bytes}, 0, {};", self.reg(*inside));
                        format!(", {t}")
                    }
                    None => String::new(),
                };
                line!(self, "cp.async.{cache}.shared.global [{to}], [{from}], {bytes}{read};");
            }
            // The verifier leaves none for NVIDIA's devices.
            Stmt::StoreMatrix { .. } => {}
            Stmt::CloseCopies => line!(self, "cp.async.commit_group;"),
            Stmt::AwaitCopies { pending } => line!(self, "cp.async.wait_group {pending};"),
            Stmt::Barrier => line!(self, "bar.sync 0;"),
        }
    }

    /// Loads so many neighbours.
    fn load(&mut self, to: &str, n: usize, from: Space, index: Val) {
        let (space, at) = self.place(from, index);
        let constant = matches!(from, Space::Global(i) if !self.k.buffers[i as usize].written);
        let (constant, vector) = (if constant { ".nc" } else { "" }, if n > 1 { format!(".v{n}") } else { String::new() });
        line!(self, "ld.{space}{constant}{vector}.{} {to}, [{at}];", memory(self.k.elem(from)));
    }

    /// The state space and the address of an element.
    fn place(&mut self, s: Space, index: Val) -> (&'static str, String) {
        let (bytes, i) = (self.k.elem(s).bytes(), self.reg(index));
        match s {
            Space::Global(b) => {
                let t = self.temp(Ty::I64);
                line!(self, "mul.wide.u32 {t}, {i}, {bytes};");
                line!(self, "add.s64 {t}, %b{b}, {t};");
                ("global", t)
            }
            Space::Shared(a) => {
                let t = self.temp(Ty::I32);
                line!(self, "mov.u32 {t}, shared{a};");
                line!(self, "mad.lo.u32 {t}, {i}, {bytes}, {t};");
                ("shared", t)
            }
        }
    }

    fn value(&mut self, v: Val, op: &Op) {
        let y = self.reg(v);
        let r = |p: &Self, a: Val| p.reg(a);
        let kind = |p: &Self, a: Val| class(p.k.ty(a)).1;
        match *op {
            // The verifier leaves none for NVIDIA's devices.
            Op::Const(Ty::Left | Ty::Right | Ty::Sums, _) | Op::Subgroup | Op::LoadMatrix { .. } => {}
            Op::Const(Ty::Bool, bits) => line!(self, "mov.pred {y}, {bits};"),
            Op::Const(Ty::I32, bits) => line!(self, "mov.b32 {y}, {};", bits as u32),
            Op::Const(Ty::I64, bits) => line!(self, "mov.b64 {y}, {bits};"),
            Op::Const(Ty::F32, bits) => line!(self, "mov.f32 {y}, 0f{:08X};", bits as u32),
            Op::Const(Ty::F64, bits) => line!(self, "mov.f64 {y}, 0d{bits:016X};"),
            Op::Scalar(i) => line!(self, "ld.param.u32 {y}, [{}_s{i}];", self.name),
            Op::Thread => line!(self, "mov.u32 {y}, %tid.x;"),
            Op::Lane => line!(self, "mov.u32 {y}, %laneid;"),
            Op::Lanes => line!(self, "mov.u32 {y}, 32;"),
            // The line of groups is folded into two axes.
            Op::Group => {
                let (a, b, c) = (self.temp(Ty::I32), self.temp(Ty::I32), self.temp(Ty::I32));
                line!(self, "mov.u32 {a}, %ctaid.y;");
                line!(self, "mov.u32 {b}, %nctaid.x;");
                line!(self, "mov.u32 {c}, %ctaid.x;");
                line!(self, "mad.lo.u32 {y}, {a}, {b}, {c};");
            }
            Op::Groups => {
                let (a, b) = (self.temp(Ty::I32), self.temp(Ty::I32));
                line!(self, "mov.u32 {a}, %nctaid.y;");
                line!(self, "mov.u32 {b}, %nctaid.x;");
                line!(self, "mul.lo.u32 {y}, {a}, {b};");
            }
            Op::Unary(u, a) => {
                let t = kind(self, a);
                let name = match u {
                    Unary::Not => format!("not.{t}"),
                    Unary::Neg => format!("neg.{t}"),
                    Unary::Abs => format!("abs.{t}"),
                    Unary::Sqrt => format!("sqrt.rn.{t}"),
                    Unary::Floor => format!("cvt.rmi.{t}.{t}"),
                    Unary::Ceil => format!("cvt.rpi.{t}.{t}"),
                    Unary::Round => format!("cvt.rni.{t}.{t}"),
                    Unary::Trunc => format!("cvt.rzi.{t}.{t}"),
                };
                line!(self, "{name} {y}, {};", r(self, a));
            }
            Op::Binary(b, x, z) => self.binary(v, b, x, z),
            Op::MulAdd(a, b, c) => line!(self, "fma.rn.{} {y}, {}, {}, {};", kind(self, a), r(self, a), r(self, b), r(self, c)),
            Op::Compare(c, a, b) => self.compare(v, c, a, b),
            Op::Tf32(a) => line!(self, "cvt.rna.tf32.f32 {y}, {};", r(self, a)),
            // The high half comes first.
            Op::Pair(words, a, b) => line!(self, "cvt.rn.{}x2.f32 {y}, {}, {};", numbers(words), r(self, b), r(self, a)),
            Op::Select(c, a, b) if self.k.ty(v) == Ty::Bool => {
                let (p, q) = (self.temp(Ty::Bool), self.temp(Ty::Bool));
                line!(self, "and.pred {p}, {}, {};", r(self, c), r(self, a));
                line!(self, "not.pred {q}, {};", r(self, c));
                line!(self, "and.pred {q}, {q}, {};", r(self, b));
                line!(self, "or.pred {y}, {p}, {q};");
            }
            Op::Select(c, a, b) => line!(self, "selp.{} {y}, {}, {}, {};", kind(self, a), r(self, a), r(self, b), r(self, c)),
            Op::Convert(c, to, a) => self.convert(v, c, to, a),
            Op::Load { from, index } => self.load(&y, 1, from, index),
            Op::SubgroupFold(f, a) => {
                let ty = self.k.ty(a);
                let name = match f {
                    Fold::Add => "add",
                    Fold::Max => "max",
                    Fold::Min => "min",
                };
                let t = class(ty).1.replace('b', "s");
                self.copy(&y, &r(self, a), ty);
                for mask in [16, 8, 4, 2, 1] {
                    let other = self.temp(ty);
                    self.shuffle(&other, &y, ty, mask);
                    line!(self, "{name}.{t} {y}, {y}, {other};");
                }
            }
            Op::SubgroupXor(a, mask) => self.shuffle(&y, &r(self, a), self.k.ty(a), mask),
        }
    }

    /// The value of the thread of the warp whose number differs in the mask.
    fn shuffle(&mut self, to: &str, from: &str, ty: Ty, mask: u32) {
        if ty.bits() == 32 {
            return line!(self, "shfl.sync.bfly.b32 {to}, {from}, {mask}, 31, 0xffffffff;");
        }
        let (lo, hi) = (self.temp(Ty::I32), self.temp(Ty::I32));
        line!(self, "mov.b64 {{{lo}, {hi}}}, {from};");
        line!(self, "shfl.sync.bfly.b32 {lo}, {lo}, {mask}, 31, 0xffffffff;");
        line!(self, "shfl.sync.bfly.b32 {hi}, {hi}, {mask}, 31, 0xffffffff;");
        line!(self, "mov.b64 {to}, {{{lo}, {hi}}};");
    }

    fn binary(&mut self, v: Val, b: Binary, x: Val, z: Val) {
        let (y, ty) = (self.reg(v), self.k.ty(x));
        let (bits, kind, x, mut z) = (ty.bits(), class(ty).1, self.reg(x), self.reg(z));
        let float = ty.is_float();
        let name = match b {
            Binary::Add if float => format!("add.rn.{kind}"),
            Binary::Sub if float => format!("sub.rn.{kind}"),
            Binary::Mul if float => format!("mul.rn.{kind}"),
            Binary::Div => format!("div.rn.{kind}"),
            Binary::Add => format!("add.s{bits}"),
            Binary::Sub => format!("sub.s{bits}"),
            Binary::Mul => format!("mul.lo.s{bits}"),
            Binary::DivS => format!("div.s{bits}"),
            Binary::DivU => format!("div.u{bits}"),
            Binary::RemS => format!("rem.s{bits}"),
            Binary::RemU => format!("rem.u{bits}"),
            Binary::And => format!("and.{kind}"),
            Binary::Or => format!("or.{kind}"),
            Binary::Xor => format!("xor.{kind}"),
            Binary::Shl | Binary::ShrS | Binary::ShrU => {
                if ty == Ty::I64 {
                    // Counts have 32 bits.
                    let t = self.temp(Ty::I32);
                    line!(self, "cvt.u32.u64 {t}, {z};");
                    z = t;
                }
                match b {
                    Binary::Shl => format!("shl.b{bits}"),
                    Binary::ShrS => format!("shr.s{bits}"),
                    _ => format!("shr.u{bits}"),
                }
            }
        };
        line!(self, "{name} {y}, {x}, {z};");
    }

    fn compare(&mut self, v: Val, c: Compare, a: Val, b: Val) {
        let (y, ty) = (self.reg(v), self.k.ty(a));
        let (bits, kind, a, b) = (ty.bits(), class(ty).1, self.reg(a), self.reg(b));
        let name = match (c, ty) {
            (Compare::Eq | Compare::Ne, Ty::Bool) => {
                line!(self, "xor.pred {y}, {a}, {b};");
                if c == Compare::Eq {
                    line!(self, "not.pred {y}, {y};");
                }
                return;
            }
            (Compare::Eq, _) => format!("setp.eq.{kind}"),
            // What has no order is different.
            (Compare::Ne, t) if t.is_float() => format!("setp.neu.{kind}"),
            (Compare::Ne, _) => format!("setp.ne.{kind}"),
            (Compare::Lt, t) if t.is_float() => format!("setp.lt.{kind}"),
            (Compare::Le, t) if t.is_float() => format!("setp.le.{kind}"),
            (Compare::Lt, _) => format!("setp.lt.s{bits}"),
            (Compare::Le, _) => format!("setp.le.s{bits}"),
            (Compare::LtU, _) => format!("setp.lt.u{bits}"),
            (Compare::LeU, _) => format!("setp.le.u{bits}"),
        };
        line!(self, "{name} {y}, {a}, {b};");
    }

    fn convert(&mut self, v: Val, c: Convert, to: Ty, a: Val) {
        let (y, from) = (self.reg(v), self.k.ty(a));
        let (a, kind) = (self.reg(a), class(to).1);
        match c {
            Convert::ExtendS => line!(self, "cvt.s64.s32 {y}, {a};"),
            Convert::ExtendU => line!(self, "cvt.u64.u32 {y}, {a};"),
            Convert::Low => line!(self, "cvt.u32.u64 {y}, {a};"),
            Convert::FromBool => line!(self, "selp.b32 {y}, 1, 0, {a};"),
            Convert::FloatS => line!(self, "cvt.rn.{kind}.s{} {y}, {a};", from.bits()),
            Convert::FloatU => line!(self, "cvt.rn.{kind}.u{} {y}, {a};", from.bits()),
            Convert::IntS => line!(self, "cvt.rzi.s{}.{} {y}, {a};", to.bits(), class(from).1),
            Convert::IntU => line!(self, "cvt.rzi.u{}.{} {y}, {a};", to.bits(), class(from).1),
            Convert::Resize if to == Ty::F64 => line!(self, "cvt.f64.f32 {y}, {a};"),
            Convert::Resize => line!(self, "cvt.rn.f32.f64 {y}, {a};"),
            Convert::Bits => line!(self, "mov.b{} {y}, {a};", to.bits()),
        }
    }
}
