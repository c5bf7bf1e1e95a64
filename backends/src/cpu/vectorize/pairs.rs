//! Doubling: an inner loop of two iterations, whose results follow each other in memory over both loops. One vector of what the outer loop
//! reads makes two of results.

use super::nest::{Nest, vectors};
use super::{Lane, Tail, Translation, Val};
use crate::cpu::vir::{Builder, X};
use nnc_ir::DType;
use nnc_ir::error::Result;
use nnc_ir::kernel::{Expr, ExprId, Stmt, VarId};

pub(super) struct Pairs<'s> {
    nest: Nest<'s>,
    /// Loads whose element both iterations of the inner loop read: expression, buffer, index.
    twice: Vec<(ExprId, u32, ExprId)>,
}

impl Translation<'_> {
    /// The loop over `outer` as one of pairs.
    pub(super) fn pairs<'s>(&self, outer: VarId, body: &'s [Stmt]) -> Option<Pairs<'s>> {
        let nest = self.nest(outer, body)?;
        if (self.constant(nest.lo)?, self.constant(nest.hi)?) != (0, 2) {
            return None;
        }
        let steps = |e: ExprId| Some((self.coefficient_through(e, outer, &nest.locals)?, self.coefficient(e, nest.inner)?));
        let mut twice = vec![];
        for load in self.loads(nest.body) {
            match steps(load.2)? {
                (2, 1) | (0, 0) => {}
                (1, 0) if self.k.params[load.1 as usize].dtype == DType::F32 => twice.push(load),
                _ => return None,
            }
        }
        for s in nest.body {
            let value = match s {
                Stmt::Store { index, value, .. } if steps(*index)? == (2, 1) => *value,
                Stmt::Set { value, .. } => *value,
                _ => return None,
            };
            if self.counts(value, &nest) {
                return None;
            }
        }
        let fits = self.fits_but(nest.inner, nest.body, &[]) && self.reductions(nest.body).is_empty();
        fits.then_some(Pairs { nest, twice })
    }

    /// Whether a value is made of what counts iterations, indices of loads apart.
    fn counts(&self, value: ExprId, nest: &Nest) -> bool {
        let mut stack = vec![value];
        while let Some(e) = stack.pop() {
            match self.expr(e) {
                Expr::Var(v) if *v == nest.inner || nest.moving().any(|m| m == *v) => return true,
                Expr::Map { args, .. } => stack.extend(args),
                Expr::Cast { arg, .. } => stack.push(*arg),
                Expr::Var(_) | Expr::Load { .. } | Expr::Const(..) | Expr::Size(_) => {}
            }
        }
        false
    }

    /// The loops of pairs, the outer one from `lo` to `hi`.
    pub(super) fn pairs_loop(&mut self, b: &mut Builder, p: &Pairs, lo: X, hi: X) -> Result<()> {
        self.loops += 1;
        let n = b.isub(hi, lo);
        let n = b.imax(n, 0);
        let mut result = Ok(());
        vectors(b, n, |b, at, tail| {
            let first = b.iadd(lo, at);
            let done = self.pair(b, p, first, tail);
            result = std::mem::replace(&mut result, Ok(())).and(done);
        });
        result
    }

    /// A vector of iterations of the outer loop from `first` on, as many as `tail` has where they are fewer.
    fn pair(&mut self, b: &mut Builder, p: &Pairs, first: X, tail: Option<Tail>) -> Result<()> {
        let lanes = b.lanes();
        let (outside, hoisted) = (self.vars.clone(), self.hoisted.clone());
        self.vars.insert(p.nest.outer, Val::I(first));
        self.stmts(b, p.nest.before)?;
        self.vars.insert(p.nest.inner, Val::I(0.into()));
        let mut doubled = vec![];
        for (load, buf, index) in &p.twice {
            let a = self.address(b, *buf, *index)?;
            let v = match tail {
                Some(t) => b.load_mask(a, t.mask),
                None => b.load(a),
            };
            doubled.push((*load, b.zip(v, v)));
        }
        let inside = self.vars.clone();
        let at = b.var(0);
        for half in 0..2 {
            self.vars.clone_from(&inside);
            for (load, (low, high)) in &doubled {
                self.hoisted.insert(*load, Val::F(if half == 0 { *low } else { *high }));
            }
            let tail = tail.map(|t| {
                let n = b.imul(t.left, 2);
                let n = b.isub(n, half * lanes as i64);
                Tail::new(b, n)
            });
            self.lane = Some(Lane { var: p.nest.inner, at, ahead: half as usize * lanes, tail });
            self.stmts(b, p.nest.body)?;
        }
        self.lane = None;
        self.vars = outside;
        self.hoisted = hoisted;
        Ok(())
    }
}
