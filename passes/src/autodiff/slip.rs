//! Rules that are wrong on purpose: whatever checks gradients has to find every one of them. Nothing but tests makes any.

use super::rules::At;
use nnc_ir::V;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A cotangent of the other sign.
    Sign,
    /// None at all.
    Absent,
    /// The rule takes what comes from above for ones: right at the end of a graph, and only there.
    Unseeded,
}

/// A mistake in the rule of one operation, for one of its operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slip {
    pub op: &'static str,
    pub operand: usize,
    pub mistake: Mistake,
}

impl Slip {
    pub(super) fn before(&self, at: &mut At) {
        if at.node.op.name() == self.op && self.mistake == Mistake::Unseeded {
            for (g, y) in at.g.iter_mut().zip(&at.y) {
                *g = g.map(|g| g.scalar_like(1.0).expand(y.ty().shape));
            }
        }
    }

    pub(super) fn after<'g>(&self, op: &str, shares: &mut [Option<V<'g>>]) {
        let Some(share) = shares.get_mut(self.operand).filter(|_| op == self.op) else { return };
        match self.mistake {
            Mistake::Sign => *share = share.map(|g| g * g.scalar_like(-1.0)),
            Mistake::Absent => *share = None,
            Mistake::Unseeded => {}
        }
    }
}
