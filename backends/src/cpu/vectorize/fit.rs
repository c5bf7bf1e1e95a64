//! Which loops run along memory: how indices move, what is the same in every lane, reductions.

use super::Translation;
use nnc_ir::DType;
use nnc_ir::kernel::{Expr, ExprId, Stmt, VarId};
use nnc_ir::scalar::{Domain, Out, ScalarFn};
use std::collections::BTreeMap;

/// `value` is `var op rest`: a reduction step.
pub(super) struct Reduction {
    pub var: VarId,
    pub op: ScalarFn,
    pub rest: ExprId,
}

impl Translation<'_> {
    /// How an index moves with `var`: `None` where it is not affine, or depends on data.
    pub(super) fn coefficient(&self, e: ExprId, var: VarId) -> Option<i64> {
        self.coefficient_through(e, var, &BTreeMap::new())
    }

    /// As [`coefficient`](Self::coefficient), of locals seeing what they were set to.
    pub(super) fn coefficient_through(&self, e: ExprId, var: VarId, locals: &BTreeMap<VarId, ExprId>) -> Option<i64> {
        match self.expr(e) {
            Expr::Const(..) | Expr::Size(_) => Some(0),
            Expr::Var(v) => match locals.get(v) {
                Some(value) => self.coefficient_through(*value, var, locals),
                None => Some(i64::from(*v == var)),
            },
            Expr::Load { .. } | Expr::Cast { .. } => locals.keys().chain([&var]).all(|v| self.uniform(e, *v)).then_some(0),
            Expr::Map { fun, args } => {
                let c = |i: usize| self.coefficient_through(args[i], var, locals);
                match fun {
                    ScalarFn::Add => c(0)?.checked_add(c(1)?),
                    ScalarFn::Sub => c(0)?.checked_sub(c(1)?),
                    ScalarFn::Mul => match (c(0)?, c(1)?) {
                        (0, 0) => Some(0),
                        (x, 0) => self.constant(args[1])?.checked_mul(x),
                        (0, x) => self.constant(args[0])?.checked_mul(x),
                        _ => None,
                    },
                    _ => (0..args.len()).all(|i| c(i) == Some(0)).then_some(0),
                }
            }
        }
    }

    pub(super) fn constant(&self, e: ExprId) -> Option<i64> {
        match self.expr(e) {
            Expr::Const(n, DType::I64) => Some(n.as_i64()),
            _ => None,
        }
    }

    /// Whether a value is the same in every iteration of `var` (assignments inside the loop apart).
    pub(super) fn uniform(&self, e: ExprId, var: VarId) -> bool {
        let mut same = true;
        self.visit(e, &mut |_, x| same &= !matches!(x, Expr::Var(v) if *v == var));
        same
    }

    /// Whether memory is read for a value.
    pub(super) fn is_data(&self, e: ExprId) -> bool {
        let mut data = false;
        self.visit(e, &mut |_, x| data |= matches!(x, Expr::Load { .. }));
        data
    }

    /// Calls `f` on an expression and everything in it.
    pub(super) fn visit(&self, e: ExprId, f: &mut dyn FnMut(ExprId, &Expr)) {
        let mut stack = vec![e];
        while let Some(e) = stack.pop() {
            let x = self.expr(e);
            f(e, x);
            match x {
                Expr::Load { index, .. } => stack.push(*index),
                Expr::Map { args, .. } => stack.extend(args),
                Expr::Cast { arg, .. } => stack.push(*arg),
                Expr::Const(..) | Expr::Size(_) | Expr::Var(_) => {}
            }
        }
    }

    /// Whether this loop is the one to vectorise: it fits, and no loop inside it does.
    pub(super) fn vectorizes_here(&self, var: VarId, body: &[Stmt]) -> bool {
        let mut inside = false;
        walk(body, &mut |s| {
            if let Stmt::For { var, body, .. } = s {
                inside |= self.fits(*var, body);
            }
        });
        !inside && self.fits(var, body)
    }

    fn fits(&self, var: VarId, body: &[Stmt]) -> bool {
        self.fits_but(var, body, &[])
    }

    /// Whether a loop fits but for the loads `across`.
    pub(super) fn fits_but(&self, var: VarId, body: &[Stmt], across: &[ExprId]) -> bool {
        let mut ok = true;
        let mut stores: Vec<(u32, ExprId)> = vec![];
        let mut assigned: Vec<VarId> = vec![];
        walk(body, &mut |s| match s {
            Stmt::Store { buf, index, .. } => {
                ok &= self.coefficient(*index, var) == Some(1);
                stores.push((*buf, *index));
            }
            Stmt::Set { var: v, value } => {
                ok &= self.k.dtype(*value) == DType::F32;
                assigned.push(*v);
            }
            // Bounds and conditions must be the same in every lane.
            Stmt::For { lo, hi, .. } => ok &= self.uniform(*lo, var) && self.uniform(*hi, var),
            Stmt::If { cond, .. } => ok &= self.uniform(*cond, var),
            Stmt::While { .. } | Stmt::Break | Stmt::Fail(_) => ok = false,
        });
        let check = |e: ExprId| {
            let mut fine = true;
            self.visit(e, &mut |id, x| match x {
                Expr::Load { buf, index } => {
                    let vector = self.k.params[*buf as usize].dtype == DType::F32;
                    fine &= across.contains(&id) || matches!(self.coefficient(*index, var), Some(n) if n == 0 || vector && (n == 1 || n == 2));
                    // A buffer that the loop writes is read only where the same iteration writes it.
                    fine &= stores.iter().all(|(b, i)| b != buf || self.equal(*i, *index));
                }
                Expr::Map { fun, args } if fun.domain() != Domain::Any => {
                    // An index used as a value would differ from lane to lane.
                    fine &= self.k.dtype(args[0]) != DType::I64 || self.uniform(args[0], var) || fun.out() == Out::Same;
                }
                Expr::Cast { arg, .. } => fine &= self.k.dtype(*arg) != DType::I64 || self.uniform(*arg, var) && !self.is_data(*arg),
                _ => {}
            });
            fine
        };
        walk(body, &mut |s| match s {
            Stmt::Store { value, .. } | Stmt::Set { value, .. } => ok &= check(*value),
            _ => {}
        });
        if !ok || (stores.is_empty() && assigned.is_empty()) {
            return false;
        }
        // Every local is a reduction of this loop, or assigned before it is read and dead after the loop.
        let reductions = self.reductions(body);
        assigned.sort();
        assigned.dedup();
        assigned.iter().all(|v| reductions.iter().any(|r| r.var == *v) || (self.assigned_first(*v, body) && !self.read_outside(*v, body)))
    }

    /// Reductions at the top of a loop's body: the local is read and assigned in this one place only.
    pub(super) fn reductions(&self, body: &[Stmt]) -> Vec<Reduction> {
        let mut out = vec![];
        for s in body {
            let Stmt::Set { var, value } = s else { continue };
            let Expr::Map { fun, args } = self.expr(*value) else { continue };
            if !matches!(fun, ScalarFn::Add | ScalarFn::Mul | ScalarFn::Max | ScalarFn::Min) {
                continue;
            }
            let is_var = |e: ExprId| matches!(self.expr(e), Expr::Var(v) if v == var);
            let rest = if is_var(args[0]) {
                args[1]
            } else if is_var(args[1]) {
                args[0]
            } else {
                continue;
            };
            let mentions = |e: ExprId| {
                let mut n = 0;
                self.visit(e, &mut |_, x| n += usize::from(matches!(x, Expr::Var(v) if v == var)));
                n
            };
            let mut uses = 0;
            let mut sets = 0;
            walk(body, &mut |s| {
                self.operands(s).iter().for_each(|e| uses += mentions(*e));
                sets += usize::from(matches!(s, Stmt::Set { var: v, .. } if v == var));
            });
            if uses == 1 && sets == 1 && mentions(rest) == 0 {
                out.push(Reduction { var: *var, op: *fun, rest });
            }
        }
        out
    }

    pub(super) fn operands(&self, s: &Stmt) -> Vec<ExprId> {
        match s {
            Stmt::For { lo, hi, .. } => vec![*lo, *hi],
            Stmt::While { cond, .. } | Stmt::If { cond, .. } => vec![*cond],
            Stmt::Set { value, .. } => vec![*value],
            Stmt::Store { index, value, .. } => vec![*index, *value],
            Stmt::Break | Stmt::Fail(_) => vec![],
        }
    }

    fn mentions(&self, s: &Stmt, var: VarId) -> bool {
        let mut found = false;
        self.operands(s).iter().for_each(|e| self.visit(*e, &mut |_, x| found |= matches!(x, Expr::Var(v) if *v == var)));
        found
    }

    /// Whether a top-level statement assigns `var` before anything reads it.
    fn assigned_first(&self, var: VarId, body: &[Stmt]) -> bool {
        for s in body {
            let mut read = false;
            walk(std::slice::from_ref(s), &mut |s| read |= self.mentions(s, var));
            if read {
                return false;
            }
            if matches!(s, Stmt::Set { var: v, .. } if *v == var) {
                return true;
            }
        }
        false
    }

    /// Whether anything outside `body` reads `var`.
    pub(super) fn read_outside(&self, var: VarId, body: &[Stmt]) -> bool {
        let count = |body: &[Stmt]| {
            let mut n = 0;
            walk(body, &mut |s| n += usize::from(self.mentions(s, var)));
            n
        };
        count(&self.k.body) != count(body)
    }

    /// Structural equality of expressions.
    fn equal(&self, x: ExprId, y: ExprId) -> bool {
        let mut stack = vec![(x, y)];
        while let Some((x, y)) = stack.pop() {
            if x == y {
                continue;
            }
            match (self.expr(x), self.expr(y)) {
                (Expr::Map { fun: f, args: a }, Expr::Map { fun: g, args: b }) if f == g => stack.extend(a.iter().copied().zip(b.iter().copied())),
                (a, b) if a == b => {}
                _ => return false,
            }
        }
        true
    }
}

/// Calls `f` on every statement, outer ones first.
pub(super) fn walk<'a>(body: &'a [Stmt], f: &mut dyn FnMut(&'a Stmt)) {
    for s in body {
        f(s);
        match s {
            Stmt::For { body, .. } | Stmt::While { body, .. } => walk(body, f),
            Stmt::If { then, otherwise, .. } => {
                walk(then, f);
                walk(otherwise, f);
            }
            Stmt::Set { .. } | Stmt::Store { .. } | Stmt::Break | Stmt::Fail(_) => {}
        }
    }
}
