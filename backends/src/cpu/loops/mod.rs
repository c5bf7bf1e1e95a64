//! Any kernel's loops as a native function: the implementation that takes what no other one does.
//!
//! The function is `extern "C" fn(args: *const u64, task: i64)`: `args` are the buffers' addresses, then the sizes. The word before
//! `args` is the launch's status; [`Stmt::Fail`] writes a code of [`crate::abi`] there and returns.

mod convert;
pub mod math;
mod minifloat;
mod scalar;

use super::clif::{Code, Emitter, F32, F64, I8, I16, I32, I64};
use crate::abi;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block, InstBuilder, Type, Value};
use cranelift_frontend::Variable;
use cranelift_module::{FuncId, Module};
use nnc_ir::kernel::{Expr, ExprId, Fault, Kernel, Stmt};
use nnc_ir::scalar::{Num, Out};
use nnc_ir::{DType, Error, Result};
use std::collections::BTreeSet;

/// What a scalar is computed in. Narrower floats live in f32 registers, rounded to their own precision, and integers of fewer than 8
/// bits in i8 registers, extended from their own width.
fn register(d: DType) -> Type {
    match d {
        DType::F64 => F64,
        d if d.is_float() => F32,
        DType::I16 | DType::U16 => I16,
        DType::I32 | DType::U32 => I32,
        DType::I64 | DType::U64 => I64,
        _ => I8,
    }
}

/// Defines the declared function `id` as the loops of `kernel`.
pub fn define<M: Module>(e: &mut Emitter<'_, M>, id: FuncId, kernel: &Kernel) -> Result<()> {
    let types = types(kernel)?;
    e.define(id, |m, c, params| {
        let (args, task) = (params[0], params[1]);
        let bufs = (0..kernel.params.len()).map(|i| c.load(I64, args, 8 * i as i32)).collect();
        let sizes = (0..kernel.sizes as usize).map(|i| c.load(I64, args, 8 * (kernel.params.len() + i) as i32)).collect();
        let vars = kernel.vars.iter().map(|d| c.b.declare_var(register(*d))).collect();
        let memo = vec![None; kernel.exprs.len()];
        let mut l = Loops { m, c, k: kernel, args, bufs, sizes, vars, types, exits: vec![], memo, log: vec![] };
        l.c.set(l.vars[kernel.task.0 as usize], task);
        l.block(&kernel.body)?;
        l.c.ret(&[]);
        Ok(())
    })
}

/// Element types of all expressions. Invariant afterwards: operands stand before what uses them.
fn types(k: &Kernel) -> Result<Vec<DType>> {
    let mut out: Vec<DType> = Vec::with_capacity(k.exprs.len());
    for (i, e) in k.exprs.iter().enumerate() {
        if operands(e).iter().any(|a| a.0 as usize >= i) {
            return Err(Error::internal(format!("kernel {}: expression {i} stands before its operands", k.name)));
        }
        out.push(match e {
            Expr::Map { fun, args } if fun.out() == Out::Same => out[args[args.len() - 1].0 as usize],
            _ => k.dtype(ExprId(i as u32)),
        });
    }
    Ok(out)
}

fn operands(e: &Expr) -> &[ExprId] {
    match e {
        Expr::Const(..) | Expr::Size(_) | Expr::Var(_) => &[],
        Expr::Load { index, .. } => std::slice::from_ref(index),
        Expr::Cast { arg, .. } => std::slice::from_ref(arg),
        Expr::Map { args, .. } => args,
    }
}

struct Loops<'a, 'f, M: Module> {
    m: &'a mut M,
    c: &'a mut Code<'f>,
    k: &'a Kernel,
    args: Value,
    bufs: Vec<Value>,
    sizes: Vec<Value>,
    vars: Vec<Variable>,
    types: Vec<DType>,
    /// Exits of the open loops, innermost last.
    exits: Vec<Block>,
    /// Values of expressions within the statement at hand; `log` lists what is set.
    memo: Vec<Option<Value>>,
    log: Vec<ExprId>,
}

impl<M: Module> Loops<'_, '_, M> {
    fn block(&mut self, stmts: &[Stmt]) -> Result<()> {
        stmts.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, s: &Stmt) -> Result<()> {
        self.forget();
        match s {
            Stmt::Set { var, value } => {
                let v = self.eval(*value);
                self.c.set(self.vars[var.0 as usize], v);
            }
            Stmt::Store { buf, index, value } if self.moves(*buf, *value) => self.copy(*buf, *index, *value),
            Stmt::Store { buf, index, value } => {
                let i = self.eval(*index);
                let v = self.eval(*value);
                let d = self.k.params[*buf as usize].dtype;
                let at = self.c.at(self.bufs[*buf as usize], i, d.bytes() as i64);
                let v = convert::to_memory(self.c, d, v);
                self.c.store(v, at, 0);
            }
            Stmt::For { var, lo, hi, body } => self.for_(self.vars[var.0 as usize], *lo, *hi, body)?,
            Stmt::While { cond, body } => {
                let (head, inner, exit) = (self.c.b.create_block(), self.c.b.create_block(), self.c.b.create_block());
                self.c.jump(head);
                self.c.b.switch_to_block(head);
                let cond = self.eval(*cond);
                self.c.branch(cond, inner, exit);
                self.c.enter(inner);
                self.exits.push(exit);
                self.block(body)?;
                self.exits.pop();
                self.c.jump(head);
                self.c.b.seal_block(head);
                self.c.enter(exit);
            }
            Stmt::If { cond, then, otherwise } => {
                let (a, b, join) = (self.c.b.create_block(), self.c.b.create_block(), self.c.b.create_block());
                let cond = self.eval(*cond);
                self.c.branch(cond, a, b);
                self.c.enter(a);
                self.block(then)?;
                self.c.jump(join);
                self.c.enter(b);
                self.block(otherwise)?;
                self.c.jump(join);
                self.c.enter(join);
            }
            Stmt::Break => {
                let exit = *self.exits.last().ok_or_else(|| Error::internal(format!("kernel {}: break outside a loop", self.k.name)))?;
                self.c.jump(exit);
                let dead = self.c.b.create_block();
                self.c.enter(dead);
            }
            Stmt::Fail(fault) => {
                let code = match fault {
                    Fault::Index => abi::ERROR_INDEX,
                    Fault::Size => abi::ERROR_SIZE,
                };
                let code = self.c.b.ins().iconst(I32, i64::from(code));
                self.c.store(code, self.args, -8);
                self.c.ret(&[]);
            }
        }
        self.forget();
        Ok(())
    }

    /// Whether a store writes what a load of the same type reads, all of whose bits count.
    fn moves(&self, to: u32, value: ExprId) -> bool {
        let dtype = |buf: u32| self.k.params[buf as usize].dtype;
        let whole = |d: DType| d != DType::Bool && d.bits() as usize == d.bytes() * 8;
        matches!(&self.k.exprs[value.0 as usize], Expr::Load { buf, .. } if dtype(*buf) == dtype(to) && whole(dtype(to)))
    }

    /// Moves an element as bits: no conversion, and NaN stays what it is.
    fn copy(&mut self, to: u32, index: ExprId, value: ExprId) {
        let Expr::Load { buf, index: from } = self.k.exprs[value.0 as usize] else { return };
        let bytes = self.k.params[to as usize].dtype.bytes();
        let (from, index) = (self.eval(from), self.eval(index));
        let from = self.c.at(self.bufs[buf as usize], from, bytes as i64);
        let v = self.c.load([I8, I16, I32, I64][bytes.ilog2() as usize], from, 0);
        let at = self.c.at(self.bufs[to as usize], index, bytes as i64);
        self.c.store(v, at, 0);
    }

    /// The test stands at the end of the loop: one branch an iteration.
    fn for_(&mut self, var: Variable, lo: ExprId, hi: ExprId, body: &[Stmt]) -> Result<()> {
        let lo = self.eval(lo);
        let hi = self.eval(hi);
        let (inner, exit) = (self.c.b.create_block(), self.c.b.create_block());
        self.c.set(var, lo);
        let any = self.c.cmp(IntCC::SignedLessThan, lo, hi);
        self.c.branch(any, inner, exit);
        self.c.b.switch_to_block(inner);
        self.exits.push(exit);
        self.block(body)?;
        self.exits.pop();
        let i = self.c.get(var);
        let next = self.c.b.ins().iadd_imm_s(i, 1);
        self.c.set(var, next);
        let more = self.c.cmp(IntCC::SignedLessThan, next, hi);
        self.c.branch(more, inner, exit);
        self.c.b.seal_block(inner);
        self.c.enter(exit);
        Ok(())
    }

    /// Ends a statement: locals and memory may have changed.
    fn forget(&mut self) {
        for e in self.log.drain(..) {
            self.memo[e.0 as usize] = None;
        }
    }

    fn value(&self, e: ExprId) -> Value {
        self.memo[e.0 as usize].expect("operands are evaluated first")
    }

    /// Compiles an expression and all that it needs, operands first, without recursion: fused expressions may be deep.
    fn eval(&mut self, root: ExprId) -> Value {
        let mut needed = BTreeSet::new();
        let mut stack = vec![root];
        while let Some(e) = stack.pop() {
            if self.memo[e.0 as usize].is_none() && needed.insert(e) {
                stack.extend(operands(&self.k.exprs[e.0 as usize]));
            }
        }
        for e in needed {
            let v = self.apply(e);
            self.memo[e.0 as usize] = Some(v);
            self.log.push(e);
        }
        self.value(root)
    }

    fn apply(&mut self, e: ExprId) -> Value {
        match &self.k.exprs[e.0 as usize] {
            Expr::Const(n, d) => constant(self.c, *n, *d),
            Expr::Size(i) => self.sizes[*i as usize],
            Expr::Var(v) => self.c.get(self.vars[v.0 as usize]),
            Expr::Load { buf, index } => {
                let d = self.k.params[*buf as usize].dtype;
                let i = self.value(*index);
                let at = self.c.at(self.bufs[*buf as usize], i, d.bytes() as i64);
                convert::from_memory(self.c, d, at)
            }
            Expr::Cast { to, arg } => {
                let v = self.value(*arg);
                convert::cast(self.c, self.types[arg.0 as usize], *to, v)
            }
            Expr::Map { fun, args } => {
                let x: Vec<Value> = args.iter().map(|a| self.value(*a)).collect();
                let d = self.types[args[args.len() - 1].0 as usize];
                scalar::apply(self.m, self.c, *fun, d, &x)
            }
        }
    }
}

fn constant(c: &mut Code<'_>, n: Num, d: DType) -> Value {
    match register(d) {
        F32 => c.b.ins().f32const(n.as_f64() as f32),
        F64 => c.b.ins().f64const(n.as_f64()),
        ty => {
            let bits = match n {
                Num::U(u) => u as i64,
                n => n.as_i64(),
            };
            // Cranelift wants the bits above a narrow constant's width to be zero.
            c.b.ins().iconst(ty, bits & (-1i64 as u64 >> (64 - ty.bits())) as i64)
        }
    }
}
