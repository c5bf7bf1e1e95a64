//! Two loops that become one loop on vectors.

use super::Translation;
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

impl Translation<'_> {
    /// The loop over `outer` as a nest.
    pub(super) fn nest<'s>(&self, outer: VarId, body: &'s [Stmt]) -> Option<Nest<'s>> {
        let (Stmt::For { var: inner, lo, hi, body }, before) = body.split_last()? else { return None };
        let mut locals = BTreeMap::new();
        for s in before {
            let Stmt::Set { var, value } = s else { return None };
            if self.k.dtype(*value) != DType::I64 || locals.insert(*var, *value).is_some() {
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
