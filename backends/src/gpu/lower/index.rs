//! Integers of type `i64`: indices, mostly. Where the ranges of operands and result fit into 32 bits, so does the arithmetic, exactly;
//! devices have no 64-bit multiplier.

use super::{Lowering, Value};
use crate::gpu::gir::{Binary, Compare, Convert, Ty, Val};
use nnc_ir::ScalarFn;

/// Bounds of a number, both included.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Range {
    pub lo: i64,
    pub hi: i64,
}

impl Range {
    pub const ALL: Range = Range { lo: i64::MIN, hi: i64::MAX };
    pub const I32: Range = Range { lo: i32::MIN as i64, hi: i32::MAX as i64 };

    pub fn fits(self) -> bool {
        self.lo >= Range::I32.lo && self.hi <= Range::I32.hi
    }

    /// Everything, where the bounds leave 64 bits.
    fn of(lo: i128, hi: i128) -> Range {
        match (i64::try_from(lo), i64::try_from(hi)) {
            (Ok(lo), Ok(hi)) => Range { lo, hi },
            _ => Range::ALL,
        }
    }

    fn union(self, other: Range) -> Range {
        Range { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }
}

/// The range of a result; `None` where this says nothing.
fn result(fun: ScalarFn, a: Range, b: Range) -> Option<Range> {
    let (al, ah, bl, bh) = (i128::from(a.lo), i128::from(a.hi), i128::from(b.lo), i128::from(b.hi));
    Some(match fun {
        ScalarFn::Add => Range::of(al + bl, ah + bh),
        ScalarFn::Sub => Range::of(al - bh, ah - bl),
        ScalarFn::Neg => Range::of(-ah, -al),
        ScalarFn::Mul => {
            let corners = [al * bl, al * bh, ah * bl, ah * bh];
            Range::of(corners.into_iter().min()?, corners.into_iter().max()?)
        }
        ScalarFn::Max => Range::of(al.max(bl), ah.max(bh)),
        ScalarFn::Min => Range::of(al.min(bl), ah.min(bh)),
        ScalarFn::Relu => Range::of(al.max(0), ah.max(0)),
        // Of numbers that are not negative by positive ones.
        ScalarFn::Div if al >= 0 && bl > 0 => Range::of(al / bh, ah / bl),
        ScalarFn::Mod | ScalarFn::Fmod if al >= 0 && bl > 0 => Range::of(0, ah.min(bh - 1)),
        _ => return None,
    })
}

impl Lowering<'_> {
    /// All 64 bits.
    pub(super) fn wide(&mut self, v: Value) -> Val {
        if self.b.ty(v.val) == Ty::I64 { v.val } else { self.b.convert(Convert::ExtendS, Ty::I64, v.val) }
    }

    /// The low 32 bits.
    pub(super) fn narrow(&mut self, v: Value) -> Val {
        if self.b.ty(v.val) == Ty::I32 { v.val } else { self.b.convert(Convert::Low, Ty::I32, v.val) }
    }

    /// Whether a value is computed in 32 bits.
    fn is_narrow(&self, v: &Value) -> bool {
        self.b.ty(v.val) == Ty::I32
    }

    /// Operands in the same width: 32 bits where all fit.
    fn same(&mut self, x: &[Value]) -> Vec<Val> {
        if x.iter().all(|v| self.is_narrow(v)) { x.iter().map(|v| v.val).collect() } else { x.iter().map(|v| self.wide(*v)).collect() }
    }

    /// The bounds of a loop in one width, and the range of its index.
    pub(super) fn bounds(&mut self, lo: Value, hi: Value) -> (Val, Val, Range) {
        let both = self.same(&[lo, hi]);
        (both[0], both[1], Range { lo: lo.range.lo, hi: hi.range.hi.saturating_sub(1).max(lo.range.lo) })
    }

    pub(super) fn where_index(&mut self, cond: Val, a: Value, b: Value) -> Value {
        let both = self.same(&[a, b]);
        Value { val: self.b.select(cond, both[0], both[1]), range: a.range.union(b.range) }
    }

    /// A function of indices in as few bits as their ranges allow; `None` where the general one of 64 bits is as good.
    pub(super) fn index(&mut self, fun: ScalarFn, x: &[Value]) -> Option<Value> {
        use ScalarFn::*;
        let (a, b) = (x[0], x.get(1).copied().unwrap_or(x[0]));
        let compare = match fun {
            Equal => Some((Compare::Eq, false)),
            Less => Some((Compare::Lt, false)),
            LessEqual => Some((Compare::Le, false)),
            Greater => Some((Compare::Lt, true)),
            GreaterEqual => Some((Compare::Le, true)),
            _ => None,
        };
        if let Some((op, swapped)) = compare {
            let v = self.same(&[a, b]);
            let (p, q) = if swapped { (v[1], v[0]) } else { (v[0], v[1]) };
            return Some(Value { val: self.b.compare(op, p, q), range: Range::ALL });
        }
        let range = result(fun, a.range, b.range)?;
        let small = range.fits() && x.iter().all(|v| self.is_narrow(v));
        let v: Vec<Val> = if small { x.iter().map(|v| v.val).collect() } else { x.iter().map(|v| self.wide(*v)).collect() };
        let (p, q) = (v[0], v.get(1).copied().unwrap_or(v[0]));
        let val = match fun {
            Add => self.b.add(p, q),
            Sub => self.b.sub(p, q),
            Mul => self.b.mul(p, q),
            Neg => {
                let zero = self.b.int(self.b.ty(p), 0);
                self.b.sub(zero, p)
            }
            Relu => {
                let zero = self.b.int(self.b.ty(p), 0);
                let negative = self.b.compare(Compare::Lt, p, zero);
                self.b.select(negative, zero, p)
            }
            Max | Min => {
                let first = self.b.compare(Compare::Lt, p, q);
                if fun == Max { self.b.select(first, q, p) } else { self.b.select(first, p, q) }
            }
            Div => self.b.binary(Binary::DivU, p, q),
            _ => self.b.binary(Binary::RemU, p, q),
        };
        // Results of wide arithmetic that fit go on in 32 bits.
        let val = if range.fits() { self.narrow(Value { val, range }) } else { val };
        Some(Value { val, range })
    }
}
