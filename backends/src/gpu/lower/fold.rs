//! Folds by groups. A task that folds many elements into few locals (a sum, a mean, the largest of a row, a product of vectors, whatever
//! was fused around it) is a thread's loop where there are tasks enough for a device. Where there are not, a group takes a task: the
//! loop's turns are dealt out to its threads, whose results are folded in an order that is the same on every device.

use super::{Lowered, Lowering, Result, Value, leaves};
use crate::gpu::gir::build::Builder;
use crate::gpu::gir::{Binary, Compare, Elem, Op as Gir, Space, Stmt as GirStmt, Ty, Val};
use nnc_ir::kernel::{Expr, ExprId, Kernel, Stmt, VarId};
use nnc_ir::target::Gpu;
use nnc_ir::{DType, ScalarFn};
use std::collections::BTreeSet;

/// Elements below which a fold is a thread's work: handing results over takes a group about as long.
const LEAST: i64 = 32;

/// Tasks for each element of a fold, beyond which tasks alone keep a device busy, and handing over costs more than it saves.
const TASKS: i64 = 64;

/// Where the threads of a group, the square of a number, leave their results: all of them, then that number of partial ones.
pub struct Partials {
    spaces: [Space; 2],
    root: u32,
}

impl Partials {
    /// The number whose square is that of the threads that fold so many elements.
    pub fn root(length: Option<i64>) -> u32 {
        if length.is_some_and(|n| n <= 512) { 8 } else { 16 }
    }

    pub fn new(b: &mut Builder, elem: Elem, root: u32) -> Partials {
        Partials { spaces: [b.shared(elem, root * root), b.shared(elem, root)], root }
    }

    /// What the values of all threads fold to; all of them come by.
    pub fn fold<C: AsMut<Builder>>(
        &self,
        c: &mut C,
        thread: Val,
        value: Val,
        combine: &mut dyn FnMut(&mut C, Val, Val) -> Result<Val>,
    ) -> Result<Val> {
        let b = c.as_mut();
        b.store(self.spaces[0], thread, value);
        b.emit(GirStmt::Barrier);
        let some = b.compare_with(Compare::Lt, thread, self.root.into());
        b.begin();
        let v = self.gather(c, self.spaces[0], thread, self.root, combine)?;
        c.as_mut().store(self.spaces[1], thread, v);
        let body = c.as_mut().end();
        c.as_mut().join(some, (body, vec![]), (vec![], vec![]));
        c.as_mut().emit(GirStmt::Barrier);
        let zero = c.as_mut().i32(0);
        self.gather(c, self.spaces[1], zero, 1, combine)
    }

    fn gather<C: AsMut<Builder>>(
        &self,
        c: &mut C,
        from: Space,
        first: Val,
        apart: u32,
        combine: &mut dyn FnMut(&mut C, Val, Val) -> Result<Val>,
    ) -> Result<Val> {
        let mut values: Vec<Val> = vec![];
        for i in 0..self.root {
            let at = c.as_mut().with(Binary::Add, first, (i * apart).into());
            values.push(c.as_mut().load(from, at));
        }
        while values.len() > 1 {
            values = values.chunks(2).map(|p| combine(c, p[0], p[1])).collect::<Result<_>>()?;
        }
        Ok(values[0])
    }
}

/// A nest of loops whose innermost statement folds a value into a local.
struct Fold {
    into: VarId,
    fun: ScalarFn,
    /// The index of the longest of the loops.
    shared: VarId,
    /// Turns of the nest, where they are known.
    length: Option<i64>,
}

/// Which turns of a loop are a thread's: every so many from its number on.
#[derive(Clone, Copy)]
pub(super) struct Turns {
    pub var: VarId,
    pub thread: Val,
    pub threads: u32,
}

impl Turns {
    /// How many of `all` are the thread's.
    pub fn count(self, b: &mut Builder, all: Val) -> Val {
        let (each, left) = (b.with(Binary::DivU, all, self.threads.into()), b.with(Binary::RemU, all, self.threads.into()));
        let (more, one) = (b.compare(Compare::Lt, self.thread, left), b.with(Binary::Add, each, 1));
        b.select(more, one, each)
    }

    /// The turn that is the thread's `i`-th.
    pub fn turn(self, b: &mut Builder, i: Val) -> Val {
        let by = b.with(Binary::Mul, i, self.threads.into());
        b.add(by, self.thread)
    }
}

/// Whether the value of an expression reads a local.
fn reads(k: &Kernel, e: ExprId, var: VarId) -> bool {
    let mut stack = vec![e];
    while let Some(e) = stack.pop() {
        let e = &k.exprs[e.0 as usize];
        if *e == Expr::Var(var) {
            return true;
        }
        stack.extend(super::operands(e));
    }
    false
}

/// The fold that a statement is, behind those of `before`.
fn fold(k: &Kernel, s: &Stmt, before: &[Stmt]) -> Option<Fold> {
    let (mut nest, mut sets, mut s) = (vec![], vec![], s);
    let (into, value) = loop {
        match s {
            Stmt::For { var, lo, hi, body } => {
                let int = |e: ExprId| if let Expr::Const(n, _) = &k.exprs[e.0 as usize] { Some(n.as_i64()) } else { None };
                if int(*lo) != Some(0) {
                    return None;
                }
                nest.push((*var, int(*hi)));
                let (last, rest) = body.split_last()?;
                for s in rest {
                    let Stmt::Set { var, value } = s else { return None };
                    sets.push((*var, *value));
                }
                s = last;
            }
            Stmt::Set { var, value } => break (*var, *value),
            _ => return None,
        }
    };
    let Expr::Map { fun, args } = &k.exprs[value.0 as usize] else { return None };
    let [so_far, x] = args[..] else { return None };
    let alone = k.exprs[so_far.0 as usize] == Expr::Var(into) && sets.iter().map(|s| s.1).chain([x]).all(|e| !reads(k, e, into));
    let first = before.iter().rev().find_map(|s| if let Stmt::Set { var, value } = s { (*var == into).then_some(*value) } else { None })?;
    let Expr::Const(first, _) = &k.exprs[first.0 as usize] else { return None };
    // Each thread starts as the task would.
    let neutral = match fun {
        ScalarFn::Add => first.as_f64() == 0.0,
        ScalarFn::Mul => first.as_f64() == 1.0,
        ScalarFn::Max | ScalarFn::Min => true,
        _ => false,
    };
    // What the turns leave for each other is the fold alone.
    let mut old: BTreeSet<VarId> = before.iter().filter_map(|s| if let Stmt::Set { var, .. } = s { Some(*var) } else { None }).collect();
    old.insert(k.task);
    if !alone || !neutral || sets.iter().any(|(v, _)| old.contains(v) || *v == into) || k.vars[into.0 as usize] == DType::Bool {
        return None;
    }
    let length = nest.iter().try_fold(1, |n: i64, (_, l)| Some(n.saturating_mul((*l)?)));
    // Of equal ones the innermost, whose neighbours are mostly such in memory.
    let shared = nest.iter().max_by_key(|(_, l)| l.unwrap_or(i64::MAX))?.0;
    Some(Fold { into, fun: *fun, shared, length })
}

/// The folds among the first statements of a kernel, up to the last loop; `None` where that is not all that they do.
fn folds(k: &Kernel) -> Option<Vec<Option<Fold>>> {
    let last = k.body.iter().rposition(|s| matches!(s, Stmt::For { .. }))?;
    let left = leaves(&k.body);
    let mut out = vec![];
    for (i, s) in k.body[..=last].iter().enumerate() {
        out.push(if matches!(s, Stmt::Set { .. }) { None } else { Some(fold(k, s, &k.body[..i])?) });
    }
    (!left.breaks && !left.fails).then_some(out)
}

/// Lowers a kernel of folds, a group a task, where they are long enough for the number of tasks; `None` for any other kernel.
pub fn lower(k: &Kernel, offsets: &[bool], device: &Gpu) -> Option<Result<Lowered>> {
    folds(k).map(|folds| by_groups(k, &folds, offsets, device))
}

fn by_groups(k: &Kernel, folds: &[Option<Fold>], offsets: &[bool], device: &Gpu) -> Result<Lowered> {
    let known: Option<Vec<i64>> = folds.iter().flatten().map(|f| f.length).collect();
    let length = known.and_then(|l| l.into_iter().max());
    if let Some(n) = length {
        if n < LEAST {
            return Err(format!("folds of {n} elements"));
        }
        if k.tasks.as_const().is_some_and(|t| t > n.saturating_mul(TASKS)) {
            return Err(format!("{} tasks for folds of {n} elements", k.tasks));
        }
    }
    let root = Partials::root(length);
    let (mut l, tasks) = Lowering::new(k, offsets, device, root * root)?;
    let mut partials: Vec<(Elem, Partials)> = vec![];
    let (group, thread) = (l.b.value(Gir::Group), l.b.value(Gir::Thread));
    let inside = l.b.compare(Compare::Lt, group, tasks);
    l.b.begin();
    l.task(group);
    for (s, fold) in k.body.iter().zip(folds) {
        l.turns = fold.as_ref().map(|f| Turns { var: f.shared, thread, threads: root * root });
        l.stmt(s)?;
        let Some(f) = fold else { continue };
        let own = l.env[f.into.0 as usize].ok_or("a fold without a result")?.val;
        let elem = match l.b.ty(own) {
            Ty::F32 => Elem::F32,
            Ty::F64 => Elem::F64,
            Ty::I64 => Elem::I64,
            Ty::I32 => Elem::I32,
            Ty::Bool | Ty::Left | Ty::Right | Ty::Sums => return Err("a fold of what memory does not hold".into()),
        };
        let at = partials.iter().position(|(e, _)| *e == elem).unwrap_or_else(|| {
            partials.push((elem, Partials::new(&mut l.b, elem, root)));
            partials.len() - 1
        });
        let dtype = k.vars[f.into.0 as usize];
        let all = partials[at].1.fold(&mut l, thread, own, &mut |l, a, b| Ok(l.map(f.fun, dtype, &[Value::plain(a), Value::plain(b)])?.val))?;
        l.env[f.into.0 as usize] = Some(Value::plain(all));
    }
    let first = l.b.compare_with(Compare::Eq, thread, 0);
    l.b.begin();
    l.block(&k.body[folds.len()..])?;
    let body = l.b.end();
    l.b.join(first, (body, vec![]), (vec![], vec![]));
    let body = l.b.end();
    l.b.join(inside, (body, vec![]), (vec![], vec![]));
    Ok(l.finish(k.tasks.clone()))
}
