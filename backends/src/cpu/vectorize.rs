//! Loop IR to VIR: f32 kernels whose loops run along memory, on full vectors.
//!
//! Outside vector loops a scalar is a vector with equal lanes, so one translation serves both. A `for` becomes a vector loop where
//! every load moves by 0 or 1 and every store by 1 element with its variable: innermost loops first (elementwise chains, reductions
//! along a row), else the loop around them (reductions down the columns, pooling with channels innermost). Sums are reordered:
//! one partial result a lane. What does not fit is refused with a reason, and the caller compiles the loops as they are.

use super::isa::Isa;
use super::kernels::math;
use super::vir::{Addr, Builder, Func, I, ICmp, M, MBin, V, VBin, VCmp, VUn, X};
use nnc_ir::DType;
use nnc_ir::error::{Error, Result};
use nnc_ir::kernel::{Access, Expr, ExprId, Kernel, Param, Stmt, VarId};
use nnc_ir::scalar::ScalarFn;
use std::collections::BTreeMap;

/// Accumulators of one reduction, so that the latency of an addition is hidden.
const UNROLL: usize = 4;

/// The kernel as a vector function with the same arguments and tasks. An error says what stands in the way.
pub fn vectorize(kernel: &Kernel, isa: Isa) -> Result<Func> {
    // Integers are read where all lanes want the same one: as indices.
    let taken = |p: &Param| p.dtype == DType::F32 || p.dtype == DType::I64 && p.access == Access::Read;
    if let Some(p) = kernel.params.iter().find(|p| !taken(p)) {
        return Err(Error::unsupported(format!("an operand is {}", p.dtype)));
    }
    let mut b = Builder::new(&kernel.name, isa.lanes());
    let mut t = Translation {
        k: kernel,
        pointers: (0..kernel.params.len() as u32).map(|i| b.word(i)).collect(),
        sizes: (0..kernel.sizes).map(|i| b.word(kernel.params.len() as u32 + i)).collect(),
        vars: BTreeMap::new(),
        hoisted: BTreeMap::new(),
        lane: None,
        loops: 0,
    };
    let task = b.task();
    t.vars.insert(kernel.task, Val::I(task));
    t.stmts(&mut b, &kernel.body)?;
    if t.loops == 0 {
        return Err(Error::unsupported("no loop runs along memory"));
    }
    Ok(b.finish())
}

/// A translated scalar: an integer, or a vector (equal lanes outside vector loops), or a truth value a lane.
#[derive(Clone, Copy)]
enum Val {
    I(X),
    F(V),
    M(M),
}

/// The vector loop being filled.
#[derive(Clone, Copy)]
struct Lane {
    var: VarId,
    /// Elements from the loop's start, the index register of every address.
    at: I,
    /// Further elements, for unrolled copies.
    ahead: usize,
    /// Lanes inside the range, in the tail.
    mask: Option<M>,
}

struct Translation<'k> {
    k: &'k Kernel,
    pointers: Vec<I>,
    sizes: Vec<I>,
    vars: BTreeMap<VarId, Val>,
    /// Values and base addresses computed before the vector loop.
    hoisted: BTreeMap<ExprId, Val>,
    lane: Option<Lane>,
    loops: usize,
}

/// `value` is `var op rest`: a reduction step.
struct Reduction {
    var: VarId,
    op: ScalarFn,
    rest: ExprId,
}

impl<'k> Translation<'k> {
    fn expr(&self, e: ExprId) -> &'k Expr {
        &self.k.exprs[e.0 as usize]
    }

    fn stmts(&mut self, b: &mut Builder, body: &[Stmt]) -> Result<()> {
        body.iter().try_for_each(|s| self.stmt(b, s))
    }

    fn stmt(&mut self, b: &mut Builder, s: &Stmt) -> Result<()> {
        match s {
            Stmt::For { var, lo, hi, body } => {
                let (lo, hi) = (self.int(b, *lo)?, self.int(b, *hi)?);
                if self.lane.is_none() && self.vectorizes_here(*var, body) {
                    return self.vector_loop(b, *var, lo, hi, body);
                }
                let mut result = Ok(());
                b.for_(lo, hi, 1, |b, iv| {
                    self.vars.insert(*var, Val::I(iv.into()));
                    result = self.stmts(b, body);
                });
                result
            }
            Stmt::If { cond, then, otherwise } => {
                let (c, x, y) = self.condition(b, *cond)?;
                let (mut first, mut second) = (Ok(()), Ok(()));
                // Both branches see the locals as they were; assignments go to registers that exist before the branch.
                self.declare(b, then);
                self.declare(b, otherwise);
                let this = std::cell::RefCell::new(&mut *self);
                b.if_else(c, x, y, |b| first = this.borrow_mut().stmts(b, then), |b| second = this.borrow_mut().stmts(b, otherwise));
                first.and(second)
            }
            Stmt::Set { var, value } => {
                let v = self.value(b, *value)?;
                self.assign(b, *var, v)
            }
            Stmt::Store { buf, index, value } => {
                let Val::F(v) = self.value(b, *value)? else { return Err(Error::unsupported("a store of something that is not f32")) };
                let a = self.address(b, *buf, *index)?;
                match self.lane {
                    Some(Lane { mask: None, .. }) => b.store(a, v),
                    Some(Lane { mask: Some(m), .. }) => b.store_mask(a, v, m),
                    None => {
                        let one = b.tail(1);
                        b.store_mask(a, v, one);
                    }
                }
                Ok(())
            }
            Stmt::While { .. } => Err(Error::unsupported("a while loop")),
            Stmt::Break => Err(Error::unsupported("an early exit")),
            Stmt::Fail(_) => Err(Error::unsupported("a check that may fail")),
        }
    }

    /// Registers for the locals that `body` assigns, where they have none yet.
    fn declare(&mut self, b: &mut Builder, body: &[Stmt]) {
        let mut assigned = vec![];
        walk(body, &mut |s| {
            if let Stmt::Set { var, .. } = s {
                assigned.push(*var);
            }
        });
        for var in assigned {
            if !self.vars.contains_key(&var) {
                let v = match self.k.vars[var.0 as usize] {
                    DType::F32 => Val::F(b.constant(0.0)),
                    _ => Val::I(b.var(0).into()),
                };
                self.vars.insert(var, v);
            }
        }
    }

    /// Locals are mutable registers: a later assignment may stand in a loop that reads the old value.
    fn assign(&mut self, b: &mut Builder, var: VarId, value: Val) -> Result<()> {
        match (self.vars.get(&var).copied(), value) {
            (Some(Val::F(d)), Val::F(s)) => b.copy_to(d, s),
            (Some(Val::I(X::R(d))), Val::I(s)) => b.set(d, s),
            (None, Val::F(s)) => {
                let d = b.copy(s);
                self.vars.insert(var, Val::F(d));
            }
            (None, Val::I(s)) => {
                let d = b.var(s);
                self.vars.insert(var, Val::I(d.into()));
            }
            _ => return Err(Error::unsupported("a local that holds a truth value")),
        }
        Ok(())
    }

    /// An integer comparison, as a branch takes it.
    fn condition(&mut self, b: &mut Builder, e: ExprId) -> Result<(ICmp, X, X)> {
        let Expr::Map { fun, args } = self.expr(e) else { return Err(Error::unsupported("a branch on data")) };
        let c = match fun {
            ScalarFn::Less => ICmp::Lt,
            ScalarFn::LessEqual => ICmp::Le,
            ScalarFn::Greater => ICmp::Gt,
            ScalarFn::GreaterEqual => ICmp::Ge,
            ScalarFn::Equal => ICmp::Eq,
            _ => return Err(Error::unsupported(format!("a branch on {}", fun.name()))),
        };
        if self.k.dtype(args[0]) != DType::I64 || self.lane.is_some_and(|l| !self.uniform(e, l.var)) {
            return Err(Error::unsupported("a branch that differs from lane to lane"));
        }
        Ok((c, self.int(b, args[0])?, self.int(b, args[1])?))
    }

    /// An integer expression. Inside a vector loop its variable counts as the loop's start: addresses add the lane offset.
    fn int(&mut self, b: &mut Builder, e: ExprId) -> Result<X> {
        if let Some(Val::I(x)) = self.hoisted.get(&e) {
            return Ok(*x);
        }
        match self.expr(e) {
            Expr::Const(n, DType::I64) => Ok(n.as_i64().into()),
            Expr::Size(i) => Ok(self.sizes[*i as usize].into()),
            Expr::Var(v) => match self.vars.get(v) {
                Some(Val::I(x)) => Ok(*x),
                _ => Err(Error::unsupported("an index that is no integer")),
            },
            Expr::Load { buf, index } if self.lane.is_none_or(|l| self.uniform(e, l.var)) => {
                let at = self.int(b, *index)?;
                let bytes = b.imul(at, 8);
                let at = b.ptr(self.pointers[*buf as usize], bytes);
                Ok(b.load_i64(at).into())
            }
            Expr::Map { fun: ScalarFn::Div | ScalarFn::Fmod | ScalarFn::Mod, .. } if self.is_data(e) => {
                Err(Error::unsupported("a quotient of integers from memory"))
            }
            Expr::Map { fun, args } if args.len() == 2 => {
                let (x, y) = (self.int(b, args[0])?, self.int(b, args[1])?);
                Ok(match fun {
                    ScalarFn::Add => b.iadd(x, y),
                    ScalarFn::Sub => b.isub(x, y),
                    ScalarFn::Mul => b.imul(x, y),
                    // Loop indices and sizes: neither is negative.
                    ScalarFn::Div => b.idiv(x, y),
                    ScalarFn::Fmod | ScalarFn::Mod => b.irem(x, y),
                    ScalarFn::Max => b.imax(x, y),
                    ScalarFn::Min => b.imin(x, y),
                    f => return Err(Error::unsupported(format!("{} of indices", f.name()))),
                })
            }
            Expr::Map { fun: ScalarFn::Where, args } => {
                let (c, x, y) = self.condition(b, args[0])?;
                let (t, f) = (self.int(b, args[1])?, self.int(b, args[2])?);
                Ok(b.iselect(c, x, y, t, f))
            }
            _ => Err(Error::unsupported("an index computed from data")),
        }
    }

    /// Address of an element, or of one element a lane.
    fn address(&mut self, b: &mut Builder, buf: u32, index: ExprId) -> Result<Addr> {
        let x = self.int(b, index)?;
        let base = self.pointers[buf as usize];
        let a = match x {
            X::C(c) if c.checked_mul(4).is_some_and(|c| i32::try_from(c).is_ok()) => Addr::from(base).off(c * 4),
            x => {
                let bytes = b.imul(x, 4);
                Addr::from(b.ptr(base, bytes))
            }
        };
        Ok(match self.lane {
            Some(l) if self.coefficient(index, l.var) == Some(1) => a.idx(l.at, 4).off(l.ahead as i64 * 4),
            _ => a,
        })
    }

    fn value(&mut self, b: &mut Builder, e: ExprId) -> Result<Val> {
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

    fn float(&mut self, b: &mut Builder, e: ExprId) -> Result<V> {
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
                Ok(match self.lane {
                    Some(l) if self.coefficient(*index, l.var) == Some(1) => match l.mask {
                        Some(m) => b.load_mask(a, m),
                        None => b.load(a),
                    },
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
    fn extremum(&self, b: &mut Builder, fun: ScalarFn, x: V, y: V, x_number: bool, y_number: bool) -> V {
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
    fn product(&self, args: &[ExprId]) -> Option<(ExprId, ExprId, ExprId)> {
        let factors = |e: ExprId| match self.expr(e) {
            Expr::Map { fun: ScalarFn::Mul, args } if !self.hoisted.contains_key(&e) => Some((args[0], args[1])),
            _ => None,
        };
        let ((x, y), z) = factors(args[1]).map(|f| (f, args[0])).or_else(|| factors(args[0]).map(|f| (f, args[1])))?;
        Some((x, y, z))
    }

    // ---- which loops become vector loops ----

    /// How an index moves with `var`: `None` where it is not affine, or depends on data.
    fn coefficient(&self, e: ExprId, var: VarId) -> Option<i64> {
        match self.expr(e) {
            Expr::Const(..) | Expr::Size(_) => Some(0),
            Expr::Var(v) => Some(i64::from(*v == var)),
            Expr::Load { .. } | Expr::Cast { .. } => self.uniform(e, var).then_some(0),
            Expr::Map { fun, args } => {
                let c = |i: usize| self.coefficient(args[i], var);
                match fun {
                    ScalarFn::Add => Some(c(0)? + c(1)?),
                    ScalarFn::Sub => Some(c(0)? - c(1)?),
                    ScalarFn::Mul => match (c(0)?, c(1)?) {
                        (0, 0) => Some(0),
                        (x, 0) => self.constant(args[1])?.checked_mul(x),
                        (0, x) => self.constant(args[0])?.checked_mul(x),
                        _ => None,
                    },
                    _ => args.iter().all(|a| self.coefficient(*a, var) == Some(0)).then_some(0),
                }
            }
        }
    }

    fn constant(&self, e: ExprId) -> Option<i64> {
        match self.expr(e) {
            Expr::Const(n, DType::I64) => Some(n.as_i64()),
            _ => None,
        }
    }

    /// Whether a value is the same in every iteration of `var` (assignments inside the loop apart).
    fn uniform(&self, e: ExprId, var: VarId) -> bool {
        let mut same = true;
        self.visit(e, &mut |x| same &= !matches!(x, Expr::Var(v) if *v == var));
        same
    }

    /// Whether memory is read for a value.
    fn is_data(&self, e: ExprId) -> bool {
        let mut data = false;
        self.visit(e, &mut |x| data |= matches!(x, Expr::Load { .. }));
        data
    }

    /// Calls `f` on an expression and everything in it.
    fn visit(&self, e: ExprId, f: &mut dyn FnMut(&Expr)) {
        let mut stack = vec![e];
        while let Some(e) = stack.pop() {
            let x = self.expr(e);
            f(x);
            match x {
                Expr::Load { index, .. } => stack.push(*index),
                Expr::Map { args, .. } => stack.extend(args),
                Expr::Cast { arg, .. } => stack.push(*arg),
                Expr::Const(..) | Expr::Size(_) | Expr::Var(_) => {}
            }
        }
    }

    /// Whether this loop is the one to vectorise: it fits, and no loop inside it does.
    fn vectorizes_here(&self, var: VarId, body: &[Stmt]) -> bool {
        let mut inside = false;
        walk(body, &mut |s| {
            if let Stmt::For { var, body, .. } = s {
                inside |= self.fits(*var, body);
            }
        });
        !inside && self.fits(var, body)
    }

    fn fits(&self, var: VarId, body: &[Stmt]) -> bool {
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
            self.visit(e, &mut |x| match x {
                Expr::Load { buf, index } => {
                    let vector = self.k.params[*buf as usize].dtype == DType::F32;
                    fine &= matches!(self.coefficient(*index, var), Some(n) if n == 0 || n == 1 && vector);
                    // A buffer that the loop writes is read only where the same iteration writes it.
                    fine &= stores.iter().all(|(b, i)| b != buf || self.equal(*i, *index));
                }
                Expr::Map { fun, args } if fun.domain() != nnc_ir::scalar::Domain::Any => {
                    // An index used as a value would differ from lane to lane.
                    fine &= self.k.dtype(args[0]) != DType::I64 || self.uniform(args[0], var) || fun.out() == nnc_ir::scalar::Out::Same;
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
    fn reductions(&self, body: &[Stmt]) -> Vec<Reduction> {
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
                self.visit(e, &mut |x| n += usize::from(matches!(x, Expr::Var(v) if v == var)));
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

    fn operands(&self, s: &Stmt) -> Vec<ExprId> {
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
        self.operands(s).iter().for_each(|e| self.visit(*e, &mut |x| found |= matches!(x, Expr::Var(v) if *v == var)));
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
    fn read_outside(&self, var: VarId, body: &[Stmt]) -> bool {
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

    // ---- vector loops ----

    fn vector_loop(&mut self, b: &mut Builder, var: VarId, lo: X, hi: X, body: &[Stmt]) -> Result<()> {
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
                self.lane = Some(Lane { var, at, ahead: u * lanes, mask: None });
                let done = self.iteration(b, body, &reductions, &partial, u, &locals);
                result = std::mem::replace(&mut result, Ok(())).and(done);
            }
        });
        result?;
        if unroll > 1 {
            let mut result = Ok(());
            b.for_(whole, vectors, lanes as i64, |b, at| {
                self.lane = Some(Lane { var, at, ahead: 0, mask: None });
                result = self.iteration(b, body, &reductions, &partial, 0, &locals);
            });
            result?;
        }
        let mut result = Ok(());
        b.if_(ICmp::Lt, vectors, n, |b| {
            let at = b.reg(vectors);
            let rest = b.isub(n, vectors);
            let mask = b.tail(rest);
            self.lane = Some(Lane { var, at, ahead: 0, mask: Some(mask) });
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
            let mask = self.lane.and_then(|l| l.mask);
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
            t.visit(e, &mut |x| {
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
            self.visit(e, &mut |x| {
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

/// Calls `f` on every statement, outer ones first.
fn walk<'a>(body: &'a [Stmt], f: &mut dyn FnMut(&'a Stmt)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::vir::interp::{self, Memory};
    use nnc_ir::Dim;
    use nnc_ir::kernel::builder::KernelBuilder;
    use nnc_ir::kernel::{Access, size_symbol};

    /// Runs every task on `inputs` (read) and one output of `len`, on every vector width; all must agree with `want`.
    fn check(kernel: &Kernel, inputs: &[Vec<f32>], sizes: &[i64], tasks: i64, want: &[f32]) {
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let f = vectorize(kernel, isa).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
            let mut mem = Memory::default();
            let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            let mut words: Vec<u64> = inputs.iter().map(|v| mem.alloc(bytes(v))).collect();
            let out = mem.alloc(bytes(&vec![f32::NAN; want.len()]));
            words.push(out);
            words.extend(sizes.iter().map(|s| *s as u64));
            let args = mem.alloc(words.iter().flat_map(|w| w.to_le_bytes()).collect());
            (0..tasks).for_each(|t| interp::run(&f, &mut mem, args, t).unwrap_or_else(|e| panic!("{}: {e}", kernel.name)));
            for (i, w) in want.iter().enumerate() {
                let got = f32::from_bits(mem.u32(out + 4 * i as u64).expect("inside the output"));
                let close = (got - w).abs() <= 1e-5 * w.abs().max(1.0) || (got.is_nan() && w.is_nan());
                assert!(close, "{} on {isa:?}: element {i} is {got}, not {w}", kernel.name);
            }
        }
    }

    fn data(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2654435761).wrapping_add(seed * 977) >> 8) % 1000) as f32 / 250.0 - 2.0).collect()
    }

    fn operand(b: &mut KernelBuilder, access: Access) -> u32 {
        b.param(DType::F32, access, Dim::Const(1 << 20))
    }

    #[test]
    fn elementwise_chains_with_tails() {
        for n in [1i64, 7, 8, 16, 37] {
            let mut b = KernelBuilder::new("tanh(a * b + a)", 1);
            let (x, y, z) = (operand(&mut b, Access::Read), operand(&mut b, Access::Read), operand(&mut b, Access::Write));
            let end = b.dim(&size_symbol(0));
            b.for_each(end, |b, i| {
                let (p, q) = (b.load(x, i), b.load(y, i));
                let m = b.map(ScalarFn::Mul, &[p, q]);
                let s = b.map(ScalarFn::Add, &[m, p]);
                let t = b.map(ScalarFn::Tanh, &[s]);
                b.store(z, i, t);
            });
            let (p, q) = (data(n as usize, 1), data(n as usize, 2));
            let want: Vec<f32> = p.iter().zip(&q).map(|(a, b)| (a * b + a).tanh()).collect();
            check(&b.finish(), &[p, q], &[n], 1, &want);
        }
    }

    /// Softmax over rows, one task a row.
    #[test]
    fn rows_with_reductions() {
        for n in [1usize, 5, 8, 70, 131] {
            let mut b = KernelBuilder::new("softmax", 0);
            let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
            let task = b.tasks(Dim::Const(3));
            let len = b.int(n as i64);
            let base = b.mul(task, len);
            let least = b.num(f64::NEG_INFINITY, DType::F32);
            let top = b.set_new(least);
            b.for_each(len, |b, i| {
                let at = b.add(base, i);
                let (v, m) = (b.load(x, at), b.var(top));
                let m = b.map(ScalarFn::Max, &[m, v]);
                b.set(top, m);
            });
            let zero = b.num(0.0, DType::F32);
            let sum = b.set_new(zero);
            b.for_each(len, |b, i| {
                let at = b.add(base, i);
                let (v, m) = (b.load(x, at), b.var(top));
                let d = b.map(ScalarFn::Sub, &[v, m]);
                let e = b.map(ScalarFn::Exp, &[d]);
                let e = b.bind(e);
                b.store(y, at, e);
                let s = b.var(sum);
                let s = b.map(ScalarFn::Add, &[s, e]);
                b.set(sum, s);
            });
            b.for_each(len, |b, i| {
                let at = b.add(base, i);
                let (v, s) = (b.load(y, at), b.var(sum));
                let q = b.map(ScalarFn::Div, &[v, s]);
                b.store(y, at, q);
            });
            let v = data(3 * n, 5);
            let want: Vec<f32> = v
                .chunks(n)
                .flat_map(|r| {
                    let m = r.iter().copied().fold(f32::MIN, f32::max);
                    let sum: f32 = r.iter().map(|x| (x - m).exp()).sum();
                    r.iter().map(move |x| (x - m).exp() / sum).collect::<Vec<_>>()
                })
                .collect();
            check(&b.finish(), &[v], &[], 3, &want);
        }
    }

    /// Column sums: the loop around the reduction is the one along memory.
    #[test]
    fn reductions_down_the_columns() {
        let (rows, cols) = (5usize, 19usize);
        let mut b = KernelBuilder::new("column sums", 0);
        let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let (r, c) = (b.int(rows as i64), b.int(cols as i64));
        b.for_each(c, |b, j| {
            let zero = b.num(0.0, DType::F32);
            let acc = b.set_new(zero);
            b.for_each(r, |b, i| {
                let at = b.mul(i, c);
                let at = b.add(at, j);
                let (v, a) = (b.load(x, at), b.var(acc));
                let a = b.map(ScalarFn::Add, &[a, v]);
                b.set(acc, a);
            });
            let a = b.var(acc);
            b.store(y, j, a);
        });
        let v = data(rows * cols, 9);
        let want: Vec<f32> = (0..cols).map(|j| (0..rows).map(|i| v[i * cols + j]).sum()).collect();
        check(&b.finish(), &[v], &[], 1, &want);
    }

    #[test]
    fn extrema_keep_nan() {
        for at in [0usize, 3, 20, 34] {
            let mut b = KernelBuilder::new("max", 0);
            let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
            let least = b.num(f64::NEG_INFINITY, DType::F32);
            let top = b.set_new(least);
            let n = b.int(35);
            b.for_each(n, |b, i| {
                let (v, m) = (b.load(x, i), b.var(top));
                let m = b.map(ScalarFn::Max, &[m, v]);
                b.set(top, m);
            });
            let (m, zero) = (b.var(top), b.int(0));
            b.store(y, zero, m);
            let mut v = data(35, 3);
            v[at] = f32::NAN;
            check(&b.finish(), &[v], &[], 1, &[f32::NAN]);
        }
    }

    /// Rows of 20 taken by an index from memory; where lanes would want indices of their own, and where one is a number, it is refused.
    #[test]
    fn integers_from_memory_are_indices() {
        fn build(name: &str, f: impl Fn(&mut KernelBuilder, [u32; 3], [ExprId; 3])) -> Kernel {
            let mut b = KernelBuilder::new(name, 0);
            let (x, y) = (operand(&mut b, Access::Read), b.param(DType::I64, Access::Read, Dim::Const(1 << 20)));
            let z = operand(&mut b, Access::Write);
            let (rows, n) = (b.int(3), b.int(20));
            b.for_each(rows, |b, i| b.for_each(n, |b, j| f(b, [x, y, z], [i, j, n])));
            b.finish()
        }
        let place = |b: &mut KernelBuilder, row: ExprId, [_, j, n]: [ExprId; 3]| {
            let start = b.mul(row, n);
            b.add(start, j)
        };
        let rows = build("rows", |b, [x, y, z], at| {
            let row = b.load(y, at[0]);
            let (from, to) = (place(b, row, at), place(b, at[0], at));
            let v = b.load(x, from);
            b.store(z, to, v);
        });
        let x = data(100, 4);
        let index: Vec<f32> = [4i64, 0, 3].iter().flat_map(|i| [*i as u32, 0].map(f32::from_bits)).collect();
        let want: Vec<f32> = [4, 0, 3].iter().flat_map(|r| x[r * 20..][..20].to_vec()).collect();
        check(&rows, &[x, index], &[], 1, &want);
        let lanes = build("lanes", |b, [x, y, z], at| {
            let (from, to) = (b.load(y, at[1]), place(b, at[0], at));
            let v = b.load(x, from);
            b.store(z, to, v);
        });
        let number = build("number", |b, [_, y, z], at| {
            let i = b.load(y, at[0]);
            let (v, to) = (b.cast(DType::F32, i), place(b, at[0], at));
            b.store(z, to, v);
        });
        for kernel in [lanes, number] {
            assert!(vectorize(&kernel, Isa::Avx2).is_err(), "{}", kernel.name);
        }
    }

    #[test]
    fn what_does_not_run_along_memory_is_refused() {
        let mut b = KernelBuilder::new("transpose", 0);
        let (x, y) = (operand(&mut b, Access::Read), operand(&mut b, Access::Write));
        let n = b.int(8);
        b.for_each(n, |b, i| {
            b.for_each(n, |b, j| {
                let (p, q) = (b.mul(i, n), b.mul(j, n));
                let (from, to) = (b.add(q, i), b.add(p, j));
                let v = b.load(x, from);
                b.store(y, to, v);
            });
        });
        assert!(vectorize(&b.finish(), Isa::Avx2).is_err());
    }
}
