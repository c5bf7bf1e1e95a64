//! Loop IR to VIR: f32 kernels whose loops run along memory, on full vectors.
//!
//! Outside vector loops a scalar is a vector with equal lanes, so one translation serves both. A `for` becomes a vector loop where
//! every load moves by 0, 1 or 2 and every store by 1 element with its variable: innermost loops first (elementwise chains, reductions
//! along a row), else the loop around them (reductions down the columns, pooling with channels innermost). Where loads run along the
//! loop around the one whose stores run along memory, squares of them are transposed ([`square`]); where that one has two iterations, both
//! loops are one ([`pairs`]). Sums are reordered: one partial result a lane.
//! What does not fit is refused with a reason, and the caller compiles the loops as they are.

mod expr;
mod fit;
mod lanes;
mod nest;
mod pairs;
mod square;
#[cfg(test)]
mod tests;

use super::isa::Isa;
use super::vir::{Addr, Builder, Func, I, ICmp, M, V, X};
use fit::walk;
use nnc_ir::DType;
use nnc_ir::error::{Error, Result};
use nnc_ir::kernel::{Access, Expr, ExprId, Kernel, Param, Stmt, VarId};
use nnc_ir::scalar::ScalarFn;
use std::collections::BTreeMap;

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
    tail: Option<Tail>,
}

/// The end of a range that fills no vector: how many elements are left, and their lanes.
#[derive(Clone, Copy)]
struct Tail {
    left: X,
    mask: M,
}

impl Tail {
    fn new(b: &mut Builder, left: X) -> Tail {
        Tail { left, mask: b.tail(left) }
    }
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
                if self.lane.is_none() {
                    if self.vectorizes_here(*var, body) {
                        return self.vector_loop(b, *var, lo, hi, body);
                    }
                    if let Some(pairs) = self.pairs(*var, body) {
                        return self.pairs_loop(b, &pairs, lo, hi);
                    }
                    if let Some(square) = self.square(*var, body) {
                        return self.squares(b, &square, lo, hi);
                    }
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
                    Some(Lane { tail: None, .. }) => b.store(a, v),
                    Some(Lane { tail: Some(t), .. }) => b.store_mask(a, v, t.mask),
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
            // There is room for what vectors add to it.
            X::C(c) if c.unsigned_abs() < 1 << 28 => Addr::from(base).off(c * 4),
            x => {
                let bytes = b.imul(x, 4);
                Addr::from(b.ptr(base, bytes))
            }
        };
        Ok(match self.lane {
            Some(l) => match self.coefficient(index, l.var) {
                Some(1) => a.idx(l.at, 4).off(l.ahead as i64 * 4),
                Some(2) => a.idx(l.at, 8).off(l.ahead as i64 * 8),
                _ => a,
            },
            None => a,
        })
    }
}
