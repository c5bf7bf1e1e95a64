//! A loop on full vectors: what is the same in all iterations before it, a reduction's partial results a lane, a tail under a mask.

use super::fit::{Reduction, walk};
use super::{Lane, Tail, Translation, Val};
use crate::cpu::vir::{Builder, ICmp, V, VBin, X};
use nnc_ir::DType;
use nnc_ir::error::{Error, Result};
use nnc_ir::kernel::{Expr, ExprId, Stmt, VarId};
use nnc_ir::scalar::ScalarFn;
use std::collections::BTreeMap;

/// Accumulators of one reduction, so that the latency of an addition is hidden.
const UNROLL: usize = 4;

impl Translation<'_> {
    pub(super) fn vector_loop(&mut self, b: &mut Builder, var: VarId, lo: X, hi: X, body: &[Stmt]) -> Result<()> {
        self.loops += 1;
        let lanes = b.lanes();
        let n = b.isub(hi, lo);
        // The count is not negative where the loop runs at all; an empty one must not become a huge one.
        let n = b.imax(n, 0);
        self.vars.insert(var, Val::I(lo));
        let saved = self.hoisted.clone();
        self.hoist(b, var, body)?;

        let reductions = self.reductions(body);
        let unroll = if reductions.is_empty() { 1 } else { UNROLL };
        let partial: Vec<Vec<V>> = reductions.iter().map(|r| (0..unroll).map(|_| b.constant(identity(r.op))).collect()).collect();
        let locals = self.vars.clone();

        let chunk = (lanes * unroll) as i64;
        let whole = b.irem(n, chunk);
        let whole = b.isub(n, whole);
        let vectors = b.irem(n, lanes as i64);
        let vectors = b.isub(n, vectors);
        let mut result = Ok(());
        b.for_(0, whole, chunk, |b, at| {
            for u in 0..unroll {
                self.lane = Some(Lane { var, at, ahead: u * lanes, tail: None });
                let done = self.iteration(b, body, &reductions, &partial, u, &locals);
                result = std::mem::replace(&mut result, Ok(())).and(done);
            }
        });
        result?;
        if unroll > 1 {
            let mut result = Ok(());
            b.for_(whole, vectors, lanes as i64, |b, at| {
                self.lane = Some(Lane { var, at, ahead: 0, tail: None });
                result = self.iteration(b, body, &reductions, &partial, 0, &locals);
            });
            result?;
        }
        let mut result = Ok(());
        b.if_(ICmp::Lt, vectors, n, |b| {
            let at = b.reg(vectors);
            let rest = b.isub(n, vectors);
            self.lane = Some(Lane { var, at, ahead: 0, tail: Some(Tail::new(b, rest)) });
            result = self.iteration(b, body, &reductions, &partial, 0, &locals);
        });
        result?;
        self.lane = None;
        self.hoisted = saved;
        self.vars = locals;
        for (r, partial) in reductions.iter().zip(&partial) {
            let op = machine_op(r.op);
            let total = partial[1..].iter().fold(partial[0], |a, p| self.combine(b, r.op, a, *p));
            let total = self.across(b, r.op, op, total);
            let Some(Val::F(v)) = self.vars.get(&r.var).copied() else { return Err(Error::internal("a reduction without a start")) };
            let sum = self.combine(b, r.op, v, total);
            b.copy_to(v, sum);
        }
        Ok(())
    }

    /// One pass over the body for the current lanes.
    fn iteration(
        &mut self,
        b: &mut Builder,
        body: &[Stmt],
        reductions: &[Reduction],
        partial: &[Vec<V>],
        copy: usize,
        locals: &BTreeMap<VarId, Val>,
    ) -> Result<()> {
        // Temporaries get fresh registers in every copy.
        self.vars = locals.clone();
        for s in body {
            let Stmt::Set { var, .. } = s else {
                self.stmt(b, s)?;
                continue;
            };
            let Some(at) = reductions.iter().position(|r| r.var == *var) else {
                self.stmt(b, s)?;
                continue;
            };
            let (r, acc) = (&reductions[at], partial[at][copy]);
            let mask = self.lane.and_then(|l| l.tail).map(|t| t.mask);
            if let (ScalarFn::Add, Expr::Map { fun: ScalarFn::Mul, args }, None) = (r.op, self.expr(r.rest), mask) {
                let (x, y) = (self.float(b, args[0])?, self.float(b, args[1])?);
                b.fma_to(acc, x, y);
                continue;
            }
            let mut x = self.float(b, r.rest)?;
            if let Some(m) = mask {
                let neutral = b.constant(identity(r.op));
                x = b.select(m, x, neutral);
            }
            let next = self.combine(b, r.op, acc, x);
            b.copy_to(acc, next);
        }
        Ok(())
    }

    fn combine(&self, b: &mut Builder, op: ScalarFn, acc: V, x: V) -> V {
        match op {
            ScalarFn::Max | ScalarFn::Min => self.extremum(b, op, acc, x, false, false),
            _ => b.bin(machine_op(op), acc, x),
        }
    }

    /// All lanes combined; extrema keep NaN.
    fn across(&self, b: &mut Builder, fun: ScalarFn, op: VBin, x: V) -> V {
        if !matches!(fun, ScalarFn::Max | ScalarFn::Min) {
            return b.across(op, x);
        }
        let mut x = x;
        let mut dist = b.lanes() / 2;
        while dist > 0 {
            let y = b.swap(x, dist as u8);
            x = self.extremum(b, fun, x, y, false, false);
            dist /= 2;
        }
        x
    }

    /// Computes before the loop what is the same in every iteration: values, and the indices of addresses.
    fn hoist(&mut self, b: &mut Builder, var: VarId, body: &[Stmt]) -> Result<()> {
        let mut changing: Vec<VarId> = vec![var];
        let mut written: Vec<u32> = vec![];
        walk(body, &mut |s| match s {
            Stmt::Set { var, .. } | Stmt::For { var, .. } => changing.push(*var),
            Stmt::Store { buf, .. } => written.push(*buf),
            _ => {}
        });
        let fixed = |t: &Self, e: ExprId, besides: &[VarId]| {
            let mut fixed = true;
            t.visit(e, &mut |_, x| {
                fixed &= match x {
                    Expr::Var(v) => !besides.contains(v),
                    Expr::Load { buf, .. } => !written.contains(buf),
                    _ => true,
                }
            });
            fixed
        };
        let mut stack = vec![];
        // An index in which only the loop's variable changes: that counts as the loop's start, the address adds the lane.
        let mut indices = vec![];
        walk(body, &mut |s| match s {
            Stmt::Store { index, value, .. } => {
                indices.push(*index);
                stack.push(*value);
            }
            s => stack.extend(self.operands(s)),
        });
        for e in stack.clone() {
            self.visit(e, &mut |_, x| {
                if let Expr::Load { index, .. } = x {
                    indices.push(*index);
                }
            });
        }
        for e in indices {
            if !self.hoisted.contains_key(&e) && self.coefficient(e, var).is_some() && fixed(self, e, &changing[1..]) {
                let x = self.int(b, e)?;
                self.hoisted.insert(e, Val::I(x));
            }
        }
        while let Some(e) = stack.pop() {
            if self.hoisted.contains_key(&e) || matches!(self.expr(e), Expr::Var(_) | Expr::Size(_)) {
                continue;
            }
            let scalar_const = matches!(self.expr(e), Expr::Const(_, DType::I64));
            if !scalar_const && self.k.dtype(e) != DType::Bool && fixed(self, e, &changing) {
                let v = self.value(b, e)?;
                self.hoisted.insert(e, v);
                continue;
            }
            match self.expr(e) {
                Expr::Map { args, .. } => stack.extend(args),
                Expr::Cast { arg, .. } => stack.push(*arg),
                Expr::Load { .. } | Expr::Const(..) | Expr::Size(_) | Expr::Var(_) => {}
            }
        }
        Ok(())
    }
}

/// The value that changes nothing.
fn identity(op: ScalarFn) -> f32 {
    match op {
        ScalarFn::Mul => 1.0,
        ScalarFn::Max => f32::NEG_INFINITY,
        ScalarFn::Min => f32::INFINITY,
        _ => 0.0,
    }
}

fn machine_op(op: ScalarFn) -> VBin {
    match op {
        ScalarFn::Mul => VBin::Mul,
        ScalarFn::Max => VBin::Max,
        ScalarFn::Min => VBin::Min,
        _ => VBin::Add,
    }
}
