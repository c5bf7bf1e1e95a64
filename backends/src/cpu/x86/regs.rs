//! Flattens a kernel to labels and branches, then assigns machine registers by linear scan.
//!
//! An interval spans a register's first to last access, stretched over loops that it enters alive. Where more intervals meet than
//! there are registers, the one with the fewest accesses a line (each counted by the depth of its loops) lives in memory throughout: what is
//! alive for long and rarely read, such as constants of another phase, makes room for what comes and goes.

use crate::cpu::vir::{Func, IBin, ICmp, Inst, Reg, Stmt, X};
use std::collections::HashMap;

/// One step of the flattened kernel.
#[derive(Clone, Debug)]
pub enum Line {
    Inst(Inst),
    Label(u32),
    Jump(u32),
    /// Jump if the comparison holds.
    Branch {
        c: ICmp,
        a: X,
        b: X,
        to: u32,
    },
}

#[derive(Default)]
pub struct Flat {
    pub lines: Vec<Line>,
    pub labels: u32,
    /// Loop depth of each line.
    pub depth: Vec<usize>,
    /// First and last line of each loop, inner loops first.
    loops: Vec<(usize, usize)>,
}

pub fn flatten(func: &Func) -> Flat {
    let mut flat = Flat::default();
    flat.block(&func.body, 0);
    flat
}

impl Flat {
    fn push(&mut self, line: Line, depth: usize) {
        self.lines.push(line);
        self.depth.push(depth);
    }

    fn label(&mut self) -> u32 {
        self.labels += 1;
        self.labels - 1
    }

    fn block(&mut self, stmts: &[Stmt], depth: usize) {
        for s in stmts {
            match s {
                Stmt::Inst(i) => self.push(Line::Inst(*i), depth),
                Stmt::Loop { iv, from, to, step, body } => {
                    let (head, end) = (self.label(), self.label());
                    self.push(Line::Inst(Inst::Int { d: *iv, x: *from }), depth);
                    if !matches!((from, to), (X::C(a), X::C(b)) if a < b) {
                        self.push(Line::Branch { c: ICmp::Ge, a: X::R(*iv), b: *to, to: end }, depth);
                    }
                    let first = self.lines.len();
                    self.push(Line::Label(head), depth + 1);
                    self.block(body, depth + 1);
                    let next = Inst::IBin { op: IBin::Add, d: *iv, a: X::R(*iv), b: X::C(*step) };
                    self.push(Line::Inst(next), depth + 1);
                    self.loops.push((first, self.lines.len()));
                    self.push(Line::Branch { c: ICmp::Lt, a: X::R(*iv), b: *to, to: head }, depth + 1);
                    self.push(Line::Label(end), depth);
                }
                Stmt::If { c, a, b, then, els } => {
                    let (other, end) = (self.label(), self.label());
                    // The first comparand must be a register.
                    let (c, a, b) = if let X::C(_) = a { (c.swap(), *b, *a) } else { (*c, *a, *b) };
                    self.push(Line::Branch { c: c.negate(), a, b, to: other }, depth);
                    self.block(then, depth);
                    if els.is_empty() {
                        self.push(Line::Label(other), depth);
                    } else {
                        self.push(Line::Jump(end), depth);
                        self.push(Line::Label(other), depth);
                        self.block(els, depth);
                        self.push(Line::Label(end), depth);
                    }
                }
            }
        }
    }
}

impl Line {
    fn regs(&self, f: &mut dyn FnMut(Reg, bool)) {
        match self {
            Line::Inst(i) => i.regs(f),
            Line::Branch { a, b, .. } => {
                for x in [a, b] {
                    if let X::R(r) = x {
                        f(Reg::I(*r), false);
                    }
                }
            }
            Line::Label(_) | Line::Jump(_) => {}
        }
    }

    /// Whether the result may share its register with an operand that dies here: true of the vector operations that are one
    /// instruction with a separate destination.
    fn shares(&self) -> bool {
        match self {
            Line::Inst(Inst::Fma { d, a, b, c, .. }) => {
                use crate::cpu::vir::Src;
                d == a || Src::R(*d) == *b || Src::R(*d) == *c
            }
            Line::Inst(i) => {
                matches!(i, Inst::Bin { .. } | Inst::Un { .. } | Inst::Copy { .. } | Inst::Swap { .. } | Inst::Shuffle { .. } | Inst::Select { .. })
            }
            _ => false,
        }
    }
}

/// Where a register lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loc {
    /// Index into the machine's allocatable registers of that file.
    Reg(u8),
    /// Index of a stack slot of that file.
    Slot(u32),
}

#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// Twice the line, plus one for results that may share.
    pub start: usize,
    pub end: usize,
    pub weight: u64,
    pub depth: usize,
    pub loc: Loc,
}

impl Interval {
    /// What memory would cost for each line that a register is held, in 2^-32 accesses.
    fn density(&self) -> u128 {
        (u128::from(self.weight) << 32) / (self.end - self.start + 1) as u128
    }
}

/// A file of machine registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    Vector,
    Int,
    Mask,
}

pub struct Assignment {
    pub at: HashMap<Reg, Interval>,
    /// Stack slots used of each class.
    pub slots: HashMap<Class, u32>,
}

/// Assigns `count(class)` registers to the registers of `flat`; `class` says which file a register belongs to. `prefer` names
/// the machine register that an interval would like.
pub fn assign(flat: &Flat, class: impl Fn(Reg) -> Class, count: impl Fn(Class) -> usize, prefer: impl Fn(Reg) -> Option<u8>) -> Assignment {
    let mut at: HashMap<Reg, Interval> = HashMap::new();
    // The arguments are alive from before the first line.
    for r in [crate::cpu::vir::ARGS, crate::cpu::vir::TASK] {
        at.insert(Reg::I(r), Interval { start: 0, end: 0, weight: 0, depth: 0, loc: Loc::Slot(0) });
    }
    let mut accesses = Vec::new();
    for (n, line) in flat.lines.iter().enumerate() {
        let late = usize::from(line.shares());
        line.regs(&mut |r, written| {
            let p = 2 * n + if written { late } else { 0 };
            let i = at.entry(r).or_insert(Interval { start: p, end: p, weight: 0, depth: 0, loc: Loc::Slot(0) });
            i.end = i.end.max(p);
            i.depth = i.depth.max(flat.depth[n]);
            i.weight = i.weight.saturating_add(8u64.saturating_pow(flat.depth[n] as u32));
            accesses.push((n, r));
        });
    }
    for &(first, last) in &flat.loops {
        let lo = accesses.partition_point(|(n, _)| *n < first);
        let hi = accesses.partition_point(|(n, _)| *n <= last);
        for (_, r) in &accesses[lo..hi] {
            if let Some(i) = at.get_mut(r)
                && i.start < 2 * first
            {
                i.end = i.end.max(2 * last + 1);
            }
        }
    }
    let mut slots = HashMap::new();
    for c in [Class::Vector, Class::Int, Class::Mask] {
        let mut order: Vec<Reg> = at.keys().copied().filter(|r| class(*r) == c).collect();
        order.sort_by_key(|r| (at[r].start, *r));
        let n = scan(&mut at, &order, count(c), &prefer);
        slots.insert(c, n);
    }
    Assignment { at, slots }
}

/// Linear scan of one file; the number of slots used.
fn scan(at: &mut HashMap<Reg, Interval>, order: &[Reg], count: usize, prefer: &impl Fn(Reg) -> Option<u8>) -> u32 {
    let mut slots = 0;
    let mut active: Vec<(Reg, u8)> = Vec::new();
    for r in order {
        let now = at[r];
        active.retain(|(a, _)| at[a].end >= now.start);
        let taken = |k: u8| active.iter().any(|(_, t)| *t == k);
        let wish = prefer(*r).filter(|k| !taken(*k));
        let free = wish.or_else(|| (0..count as u8).find(|k| !taken(*k)));
        let loc = match free {
            Some(k) => Loc::Reg(k),
            None => {
                let lightest = active.iter().enumerate().min_by_key(|(_, (a, _))| at[a].density());
                match lightest {
                    Some((n, &(a, k))) if at[&a].density() < now.density() => {
                        active.swap_remove(n);
                        if let Some(i) = at.get_mut(&a) {
                            i.loc = Loc::Slot(slots);
                        }
                        slots += 1;
                        Loc::Reg(k)
                    }
                    _ => {
                        slots += 1;
                        Loc::Slot(slots - 1)
                    }
                }
            }
        };
        if let Loc::Reg(k) = loc {
            active.push((*r, k));
        }
        if let Some(i) = at.get_mut(r) {
            i.loc = loc;
        }
    }
    slots
}
