//! Values: floats and truth values, a vector of them each.

use super::{Tail, Translation, Val};
use crate::cpu::kernels::math;
use crate::cpu::vir::{Addr, Builder, M, MBin, V, VBin, VCmp, VUn};
use nnc_ir::DType;
use nnc_ir::error::{Error, Result};
use nnc_ir::kernel::{Expr, ExprId};
use nnc_ir::scalar::ScalarFn;

impl Translation<'_> {
    pub(super) fn value(&mut self, b: &mut Builder, e: ExprId) -> Result<Val> {
        if let Some(v) = self.hoisted.get(&e) {
            return Ok(*v);
        }
        match self.k.dtype(e) {
            DType::I64 => self.int(b, e).map(Val::I),
            DType::F32 => self.float(b, e).map(Val::F),
            DType::Bool => self.truth(b, e).map(Val::M),
            d => Err(Error::unsupported(format!("a value is {d}"))),
        }
    }

    pub(super) fn float(&mut self, b: &mut Builder, e: ExprId) -> Result<V> {
        if let Some(Val::F(v)) = self.hoisted.get(&e) {
            return Ok(*v);
        }
        match self.expr(e) {
            Expr::Const(n, _) => Ok(b.constant(n.as_f64() as f32)),
            Expr::Var(v) => match self.vars.get(v) {
                Some(Val::F(v)) => Ok(*v),
                _ => Err(Error::internal("a local is read before it is assigned")),
            },
            Expr::Load { buf, index } => {
                let a = self.address(b, *buf, *index)?;
                Ok(match self.lane.map(|l| (self.coefficient(*index, l.var), l.tail)) {
                    Some((Some(1), tail)) => match tail {
                        Some(t) => b.load_mask(a, t.mask),
                        None => b.load(a),
                    },
                    Some((Some(2), tail)) => every_other(b, a, tail),
                    _ => b.splat(a),
                })
            }
            Expr::Cast { arg, .. }
                if self.k.dtype(*arg) == DType::I64 && !self.is_data(*arg) && self.lane.is_none_or(|l| self.uniform(*arg, l.var)) =>
            {
                // A count of elements; 32 bits hold what one buffer of a kernel holds.
                let x = self.int(b, *arg)?;
                let v = b.splat_int(x);
                Ok(b.un(VUn::FromInt, v))
            }
            Expr::Cast { arg, .. } if self.k.dtype(*arg) == DType::Bool => {
                let m = self.truth(b, *arg)?;
                let (one, zero) = (b.constant(1.0), b.constant(0.0));
                Ok(b.select(m, one, zero))
            }
            Expr::Cast { arg, .. } => Err(Error::unsupported(format!("a conversion from {}", self.k.dtype(*arg)))),
            Expr::Map { fun, args } => self.function(b, *fun, args),
            Expr::Size(_) => Err(Error::internal("a size is no float")),
        }
    }

    fn function(&mut self, b: &mut Builder, fun: ScalarFn, args: &[ExprId]) -> Result<V> {
        use ScalarFn as F;
        if fun == F::Where {
            // The mask last: where one choice is among the values of another, few masks are alive at once.
            let (t, f) = (self.float(b, args[1])?, self.float(b, args[2])?);
            let m = self.truth(b, args[0])?;
            return Ok(b.select(m, t, f));
        }
        if fun == F::Add
            && let Some((x, y, z)) = self.product(args)
        {
            let (x, y, z) = (self.float(b, x)?, self.float(b, y)?, self.float(b, z)?);
            return Ok(b.fma(x, y, z));
        }
        if fun == F::Pow {
            return self.power(b, args);
        }
        let x = self.float(b, args[0])?;
        let y = args.get(1).map(|a| self.float(b, *a)).transpose()?.unwrap_or(x);
        Ok(match fun {
            F::Neg => b.neg(x),
            F::Abs => b.abs(x),
            F::Relu => {
                let zero = b.constant(0.0);
                b.max(zero, x)
            }
            F::Sqrt => b.un(VUn::Sqrt, x),
            F::Reciprocal => {
                let one = b.constant(1.0);
                b.div(one, x)
            }
            F::Exp => math::exp(b, x),
            F::Log => math::log(b, x),
            F::Tanh => math::tanh(b, x),
            F::Erf => math::erf(b, x),
            F::Sigmoid => math::sigmoid(b, x),
            F::Floor => b.un(VUn::Floor, x),
            F::Ceil => b.un(VUn::Ceil, x),
            F::Round => b.un(VUn::Nearest, x),
            F::Trunc => b.un(VUn::Trunc, x),
            F::Add => b.add(x, y),
            F::Sub => b.sub(x, y),
            F::Mul => b.mul(x, y),
            F::Div => b.div(x, y),
            F::Max | F::Min => self.extremum(b, fun, x, y, self.is_number(args[0]), self.is_number(args[1])),
            f => return Err(Error::unsupported(format!("{} on vectors", f.name()))),
        })
    }

    /// `max` or `min` with NaN from either side; a side that is known to be a number saves the check.
    pub(super) fn extremum(&self, b: &mut Builder, fun: ScalarFn, x: V, y: V, x_number: bool, y_number: bool) -> V {
        let op = if fun == ScalarFn::Max { VBin::Max } else { VBin::Min };
        if x_number {
            b.bin(op, x, y)
        } else if y_number {
            b.bin(op, y, x)
        } else {
            let r = b.bin(op, x, y);
            let nan = b.cmp(VCmp::Unord, x, x);
            b.select(nan, x, r)
        }
    }

    fn is_number(&self, e: ExprId) -> bool {
        matches!(self.expr(e), Expr::Const(n, _) if !n.as_f64().is_nan())
    }

    /// Powers that square roots, products and one division make; the rest is refused.
    fn power(&mut self, b: &mut Builder, args: &[ExprId]) -> Result<V> {
        let Expr::Const(n, _) = self.expr(args[1]) else { return Err(Error::unsupported("pow with an exponent that is no constant")) };
        let p = n.as_f64();
        if !(p != 0.0 && p.abs() <= 8.0 && (p * 4.0).fract() == 0.0) {
            return Err(Error::unsupported(format!("pow with exponent {p}")));
        }
        let mut x = self.float(b, args[0])?;
        let quarters = (p.abs() * 4.0) as u32;
        let mut out = None;
        let mut times = |b: &mut Builder, f: V| out = Some(out.map_or(f, |o| b.mul(o, f)));
        if !quarters.is_multiple_of(4) {
            // Where roots and powers part: -inf has the power inf, -0 the power 0. (-0 + 0 is 0.)
            let (zero, least, most) = (b.constant(0.0), b.constant(f32::NEG_INFINITY), b.constant(f32::INFINITY));
            let endless = b.cmp(VCmp::Eq, x, least);
            let sum = b.add(x, zero);
            x = b.select(endless, most, sum);
            let half = b.un(VUn::Sqrt, x);
            if quarters & 2 != 0 {
                times(b, half);
            }
            if quarters & 1 != 0 {
                let quarter = b.un(VUn::Sqrt, half);
                times(b, quarter);
            }
        }
        let mut square = x;
        let mut whole = quarters / 4;
        while whole > 0 {
            if whole & 1 == 1 {
                times(b, square);
            }
            whole >>= 1;
            if whole > 0 {
                square = b.mul(square, square);
            }
        }
        let power = out.ok_or_else(|| Error::internal("a power without factors"))?;
        if p > 0.0 {
            return Ok(power);
        }
        let one = b.constant(1.0);
        Ok(b.div(one, power))
    }

    fn truth(&mut self, b: &mut Builder, e: ExprId) -> Result<M> {
        if let Some(Val::M(m)) = self.hoisted.get(&e) {
            return Ok(*m);
        }
        let Expr::Map { fun, args } = self.expr(e) else { return Err(Error::unsupported("a truth value from memory")) };
        use ScalarFn as F;
        Ok(match fun {
            F::And | F::Or | F::Xor => {
                let (x, y) = (self.truth(b, args[0])?, self.truth(b, args[1])?);
                b.mask(
                    if *fun == F::And {
                        MBin::And
                    } else if *fun == F::Or {
                        MBin::Or
                    } else {
                        MBin::Xor
                    },
                    x,
                    y,
                )
            }
            F::Not => {
                let x = self.truth(b, args[0])?;
                let all = b.tail(b.lanes() as i64);
                b.mask(MBin::Xor, x, all)
            }
            F::IsNan => {
                let x = self.float(b, args[0])?;
                b.cmp(VCmp::Unord, x, x)
            }
            F::Less | F::LessEqual | F::Greater | F::GreaterEqual | F::Equal if self.k.dtype(args[0]) == DType::F32 => {
                let (x, y) = (self.float(b, args[0])?, self.float(b, args[1])?);
                let c = match fun {
                    F::Less => VCmp::Lt,
                    F::LessEqual => VCmp::Le,
                    F::Greater => VCmp::Gt,
                    F::GreaterEqual => VCmp::Ge,
                    _ => VCmp::Eq,
                };
                b.cmp(c, x, y)
            }
            f => return Err(Error::unsupported(format!("{} on vectors", f.name()))),
        })
    }

    /// `x*y + z` behind the operands of an addition.
    pub(super) fn product(&self, args: &[ExprId]) -> Option<(ExprId, ExprId, ExprId)> {
        let factors = |e: ExprId| match self.expr(e) {
            Expr::Map { fun: ScalarFn::Mul, args } if !self.hoisted.contains_key(&e) => Some((args[0], args[1])),
            _ => None,
        };
        let ((x, y), z) = factors(args[1]).map(|f| (f, args[0])).or_else(|| factors(args[0]).map(|f| (f, args[1])))?;
        Some((x, y, z))
    }
}

/// Every other element from `a` on. Nothing behind the last one is read.
fn every_other(b: &mut Builder, a: Addr, tail: Option<Tail>) -> V {
    let lanes = b.lanes() as i64;
    let (first, second) = match tail {
        None => {
            let last = b.tail(lanes - 1);
            (b.load(a), b.load_mask(a.off(lanes * 4), last))
        }
        Some(t) => {
            let n = b.imul(t.left, 2);
            let here = b.isub(n, 1);
            let there = b.isub(n, 1 + lanes);
            let (here, there) = (b.tail(here), b.tail(there));
            (b.load_mask(a, here), b.load_mask(a.off(lanes * 4), there))
        }
    };
    b.even(first, second)
}
