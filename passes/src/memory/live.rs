//! When each buffer is needed, and which kernels may write their result over an operand.

use nnc_ir::kernel::{Access, BufferRef, Expr, ExprId, Kernel, Place, Program, Step, Stmt};
use std::collections::BTreeSet;

/// Positions of steps, both inclusive, at which a buffer's contents matter.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Span {
    pub first: u32,
    pub last: u32,
}

#[derive(Default)]
struct Walk {
    spans: Vec<Option<Span>>,
    position: u32,
    /// (operand, result) of launches that may write over the operand, with their position.
    candidates: Vec<(usize, usize, u32)>,
    /// Open loops, innermost last.
    loops: Vec<OpenLoop>,
    /// How many branches are open.
    branches: u32,
}

#[derive(Default)]
struct OpenLoop {
    touched: BTreeSet<usize>,
    /// Buffers that may be read before this iteration has written them: what the last one left matters.
    carried: BTreeSet<usize>,
    /// How many branches were open when it began.
    branches: u32,
}

/// Spans by buffer (none where no step names it), and pairs (operand, result) where the result can take the operand's place: the
/// operand is not needed after the launch, nor the result before.
pub fn analyse(program: &Program) -> (Vec<Option<Span>>, Vec<(usize, usize)>) {
    let over: Vec<Vec<(usize, usize)>> = program.kernels.iter().map(in_place).collect();
    let mut w = Walk { spans: vec![None; program.buffers.len()], ..Walk::default() };
    // Which buffers are used after a loop is known only at the end: loops are revisited then, inner ones first.
    let mut loops = vec![];
    w.steps(program, &program.steps, &over, &mut loops);
    for (span, l) in loops {
        for b in l.touched {
            if let Some(s) = &mut w.spans[b]
                && (s.first < span.first || s.last > span.last || l.carried.contains(&b))
            {
                *s = Span { first: s.first.min(span.first), last: s.last.max(span.last) };
            }
        }
    }
    let planned = |b: usize| program.buffers[b].place == Place::Unplanned;
    let spans = w.spans;
    let pairs = w
        .candidates
        .into_iter()
        .filter(|(x, y, at)| planned(*x) && planned(*y) && spans[*x].is_some_and(|s| s.last == *at) && spans[*y].is_some_and(|s| s.first == *at));
    let pairs = pairs.map(|(x, y, _)| (x, y)).collect();
    (spans, pairs)
}

impl Walk {
    fn touch(&mut self, r: &BufferRef, reads: bool) {
        let (b, at) = (r.buffer.0 as usize, self.position);
        let span = self.spans[b].get_or_insert(Span { first: at, last: at });
        span.last = at;
        for l in &mut self.loops {
            if l.touched.insert(b) && (reads || self.branches > l.branches) {
                l.carried.insert(b);
            }
        }
    }

    /// Recursion follows the nesting of control flow only.
    fn steps(&mut self, program: &Program, steps: &[Step], over: &[Vec<(usize, usize)>], loops: &mut Vec<(Span, OpenLoop)>) {
        for s in steps {
            self.position += 1;
            match s {
                Step::Launch(l) => {
                    let params = &program.kernels[l.kernel as usize].params;
                    // What is read is touched first, so that a buffer that a launch reads and writes counts as read.
                    for (_, r) in params.iter().zip(&l.buffers).filter(|(p, _)| p.access != Access::Write) {
                        self.touch(r, true);
                    }
                    for (_, r) in params.iter().zip(&l.buffers).filter(|(p, _)| p.access == Access::Write) {
                        self.touch(r, false);
                    }
                    for (x, y) in &over[l.kernel as usize] {
                        let (a, b) = (&l.buffers[*x], &l.buffers[*y]);
                        let whole = |r: &BufferRef| r.offset.is(0);
                        let uses = l.buffers.iter().filter(|r| r.buffer == a.buffer || r.buffer == b.buffer).count();
                        if whole(a) && whole(b) && uses == 2 {
                            self.candidates.push((a.buffer.0 as usize, b.buffer.0 as usize, self.position));
                        }
                    }
                }
                Step::Bind { from, .. } => self.touch(from, true),
                Step::Check { .. } => {}
                Step::Decode(d) => {
                    self.touch(&d.file, true);
                    self.touch(&d.sizes, d.samples.is_some());
                    d.samples.iter().for_each(|to| self.touch(to, false));
                }
                Step::If { cond, then, otherwise } => {
                    self.touch(cond, true);
                    self.branches += 1;
                    self.steps(program, then, over, loops);
                    self.steps(program, otherwise, over, loops);
                    self.branches -= 1;
                }
                Step::While { cond, body } => {
                    self.touch(cond, true);
                    let first = self.position;
                    self.loops.push(OpenLoop { branches: self.branches, ..OpenLoop::default() });
                    self.touch(cond, true);
                    self.steps(program, body, over, loops);
                    self.position += 1;
                    self.touch(cond, true);
                    if let Some(l) = self.loops.pop() {
                        loops.push((Span { first, last: self.position }, l));
                    }
                }
            }
        }
    }
}

/// (operand, result) parameters such that each element of the result is stored where, and after, the same element of the operand
/// is read for the last time: the two may be one buffer. Loops that a backend may replace by others are left alone.
fn in_place(kernel: &Kernel) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = vec![];
    if kernel.origin.is_some() {
        return out;
    }
    let mut stores = vec![];
    last_stores(&kernel.body, &mut stores);
    for (y, p) in kernel.params.iter().enumerate().filter(|(_, p)| p.access == Access::Write) {
        let mine: Vec<_> = stores.iter().filter(|(b, _, _)| *b as usize == y).collect();
        let [(_, index, true)] = mine[..] else { continue };
        let operand = kernel.params.iter().enumerate().position(|(x, q)| {
            let mut loads = kernel.exprs.iter().filter_map(|e| match e {
                Expr::Load { buf, index } if *buf as usize == x => Some(index),
                _ => None,
            });
            let same = q.access == Access::Read && q.dtype == p.dtype && q.elems == p.elems;
            same && loads.clone().count() > 0 && loads.all(|i| i == index)
        });
        out.extend(operand.map(|x| (x, y)));
    }
    out
}

/// Every store: parameter, index, and whether it is the last statement of its block.
fn last_stores(body: &[Stmt], out: &mut Vec<(u32, ExprId, bool)>) {
    for (i, s) in body.iter().enumerate() {
        match s {
            Stmt::Store { buf, index, .. } => out.push((*buf, *index, i + 1 == body.len())),
            Stmt::For { body, .. } | Stmt::While { body, .. } => last_stores(body, out),
            Stmt::If { then, otherwise, .. } => {
                last_stores(then, out);
                last_stores(otherwise, out);
            }
            Stmt::Set { .. } | Stmt::Break | Stmt::Fail(_) => {}
        }
    }
}
