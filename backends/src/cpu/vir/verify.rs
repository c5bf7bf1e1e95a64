//! Checks a kernel before it is lowered: registers exist and are defined before use, loops keep their contract, constants fit.

use super::{Addr, Func, IBin, Inst, Reg, Shuffle, Src, Stmt, VBin, X};
use nnc_ir::error::{Error, Result};
use std::collections::HashSet;

struct Check<'f> {
    func: &'f Func,
    defined: HashSet<Reg>,
    /// Registers that an open loop owns.
    frozen: Vec<Reg>,
}

/// Checks the invariants of `func`.
pub fn verify(func: &Func) -> Result<()> {
    if ![4, 8, 16].contains(&func.lanes) {
        return Err(Error::internal(format!("{}: {} lanes", func.name, func.lanes)));
    }
    let defined = HashSet::from([Reg::I(super::ARGS), Reg::I(super::TASK)]);
    let mut check = Check { func, defined, frozen: Vec::new() };
    check.block(&func.body).map_err(|e| Error::internal(format!("{}: {e}", func.name)))
}

impl Check<'_> {
    fn block(&mut self, stmts: &[Stmt]) -> std::result::Result<(), String> {
        for s in stmts {
            match s {
                Stmt::Inst(i) => self.inst(i).map_err(|e| format!("`{i}`: {e}"))?,
                Stmt::Loop { iv, from, to, step, body } => {
                    self.int(from)?;
                    self.int(to)?;
                    if *step <= 0 || i32::try_from(*step).is_err() {
                        return Err(format!("loop step {step}"));
                    }
                    let outside = self.defined.clone();
                    self.exists(Reg::I(*iv))?;
                    self.defined.insert(Reg::I(*iv));
                    let mark = self.frozen.len();
                    self.frozen.push(Reg::I(*iv));
                    if let X::R(to) = to {
                        self.frozen.push(Reg::I(*to));
                    }
                    self.block(body)?;
                    self.frozen.truncate(mark);
                    // The body may run no time at all.
                    self.defined = outside;
                }
                Stmt::If { a, b, then, els, .. } => {
                    self.int(a)?;
                    self.int(b)?;
                    let before = self.defined.clone();
                    self.block(then)?;
                    let after = std::mem::replace(&mut self.defined, before);
                    self.block(els)?;
                    self.defined.retain(|r| after.contains(r));
                }
            }
        }
        Ok(())
    }

    fn exists(&self, r: Reg) -> std::result::Result<(), String> {
        let ok = match r {
            Reg::V(v) => v.0 < self.func.vectors,
            Reg::I(i) => i.0 < self.func.ints,
            Reg::M(m) => m.0 < self.func.masks,
        };
        if ok { Ok(()) } else { Err(format!("no register {r:?}")) }
    }

    fn int(&self, x: &X) -> std::result::Result<(), String> {
        match x {
            X::R(r) if !self.defined.contains(&Reg::I(*r)) => Err(format!("{r} is not defined")),
            X::R(_) => Ok(()),
            X::C(c) if i32::try_from(*c).is_err() => Err(format!("constant {c} needs a register")),
            X::C(_) => Ok(()),
        }
    }

    fn inst(&mut self, i: &Inst) -> std::result::Result<(), String> {
        let mut bad = None;
        i.regs(&mut |r, written| {
            if let Err(e) = self.exists(r) {
                bad.get_or_insert(e);
            } else if !written && !self.defined.contains(&r) {
                bad.get_or_insert(format!("{r:?} is not defined"));
            } else if written && self.frozen.contains(&r) {
                bad.get_or_insert(format!("{r:?} belongs to a loop"));
            } else if written {
                self.defined.insert(r);
            }
        });
        if let Some(e) = bad {
            return Err(e);
        }
        let addr = |a: &Addr| match a.index {
            Some((_, s)) if ![1, 2, 4, 8].contains(&s) => Err(format!("scale {s}")),
            _ => Ok(()),
        };
        let dist = |d: u8| d.is_power_of_two() && usize::from(d) < self.func.lanes;
        let ok = match i {
            Inst::Dot { .. } | Inst::Bin { op: VBin::Scale, .. } => self.func.lanes == 16,
            Inst::StoreBf16 { a, .. } if self.func.lanes == 16 => return addr(a),
            Inst::StoreBf16 { .. } => false,
            Inst::Load { a, .. }
            | Inst::Store { a, .. }
            | Inst::LoadMask { a, .. }
            | Inst::StoreMask { a, .. }
            | Inst::Splat { a, .. }
            | Inst::Lea { a, .. }
            | Inst::ILoad { a, .. }
            | Inst::Prefetch { a, .. } => return addr(a),
            Inst::Fma { b, c, .. } => !matches!((b, c), (Src::C(_), Src::C(_))),
            Inst::Swap { dist: d, .. } => dist(*d),
            Inst::Shuffle { how: Shuffle::Lanes(pick), .. } => pick.iter().all(|p| *p < 4),
            Inst::Shuffle { how: Shuffle::Fours(pick), .. } => self.func.lanes > 4 && pick.iter().all(|p| usize::from(*p) < self.func.lanes / 4),
            Inst::Tail { n, .. } => return self.int(n),
            Inst::IBin { op: IBin::Shl | IBin::Shr, a, b, .. } => {
                self.int(a)?;
                matches!(b, X::C(0..=63))
            }
            Inst::IBin { op, a, b, .. } => {
                self.int(a)?;
                self.int(b)?;
                !matches!((op, b), (IBin::DivU | IBin::RemU, X::C(..=0)))
            }
            Inst::ISelect { a, b, t, f, .. } => {
                self.int(b)?;
                self.int(f)?;
                matches!((a, t), (X::R(_), X::R(_)))
            }
            Inst::Frame { off, .. } => *off <= self.func.frame,
            _ => true,
        };
        if ok { Ok(()) } else { Err("operands out of range".to_owned()) }
    }
}
