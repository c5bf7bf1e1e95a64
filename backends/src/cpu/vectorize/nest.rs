//! Two loops that become one loop on vectors.

use super::{Tail, Translation};
use crate::cpu::vir::{Builder, I, ICmp, X};
use nnc_ir::DType;
use nnc_ir::kernel::{Expr, ExprId, Stmt, VarId};
use std::collections::BTreeMap;

/// A loop whose body sets integers and then runs another loop, of straight-line code.
pub(super) struct Nest<'s> {
    pub outer: VarId,
    /// The integers: their statements, and their values by variable.
    pub before: &'s [Stmt],
    pub locals: BTreeMap<VarId, ExprId>,
    pub inner: VarId,
    /// Bounds of the inner loop, the same in all iterations of the outer one.
    pub lo: ExprId,
    pub hi: ExprId,
    pub body: &'s [Stmt],
}

/// Calls `f` for each vector of `0..n`: where it starts, and the tail for the last one where it is not full.
pub(super) fn vectors(b: &mut Builder, n: X, mut f: impl FnMut(&mut Builder, I, Option<Tail>)) {
    let lanes = b.lanes() as i64;
    let rest = b.irem(n, lanes);
    let whole = b.isub(n, rest);
    b.for_(0, whole, lanes, |b, at| f(b, at, None));
    b.if_(ICmp::Lt, whole, n, |b| {
        let (at, tail) = (b.reg(whole), Tail::new(b, rest));
        f(b, at, Some(tail));
    });
}

impl Translation<'_> {
    /// The loop over `outer` as a nest.
    pub(super) fn nest<'s>(&self, outer: VarId, body: &'s [Stmt]) -> Option<Nest<'s>> {
        let whole = body;
        let (Stmt::For { var: inner, lo, hi, body }, before) = whole.split_last()? else { return None };
        let mut locals = BTreeMap::new();
        // From the last one on: a value that follows from its own variable, or from one that is set later, is of the iteration before.
        for s in before.iter().rev() {
            let Stmt::Set { var, value } = s else { return None };
            let again = locals.insert(*var, *value).is_some() || self.read_outside(*var, whole);
            if again || self.k.dtype(*value) != DType::I64 || !locals.keys().all(|v| self.uniform(*value, *v)) {
                return None;
            }
        }
        let nest = Nest { outer, before, locals, inner: *inner, lo: *lo, hi: *hi, body };
        let straight = body.iter().all(|s| matches!(s, Stmt::Set { .. } | Stmt::Store { .. }));
        (straight && [*lo, *hi].into_iter().all(|e| nest.moving().all(|v| self.uniform(e, v)))).then_some(nest)
    }

    /// The body's loads: expression, buffer, index.
    pub(super) fn loads(&self, body: &[Stmt]) -> Vec<(ExprId, u32, ExprId)> {
        let mut out: Vec<(ExprId, u32, ExprId)> = vec![];
        for e in body.iter().flat_map(|s| self.operands(s)) {
            self.visit(e, &mut |id, x| {
                if let Expr::Load { buf, index } = x
                    && out.iter().all(|(known, ..)| *known != id)
                {
                    out.push((id, *buf, *index));
                }
            });
        }
        out
    }
}

impl Nest<'_> {
    /// Variables that differ between iterations of the outer loop.
    pub(super) fn moving(&self) -> impl Iterator<Item = VarId> {
        self.locals.keys().copied().chain([self.outer])
    }
}
