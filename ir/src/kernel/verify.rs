//! Checks kernels and programs; every violation is reported. What fails here is a bug of a pass, never the user's.

use super::{Access, BufferRef, Expr, ExprId, Kernel, Launch, Param, Place, Program, Step, Stmt, VarId, size_index};
use crate::dim::Dim;
use crate::error::{Error, Report};
use crate::scalar::ScalarFn;
use crate::types::DType;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Everything that is wrong with a kernel: ids outside their tables, types of expressions, locals read before they are assigned,
/// loop variables assigned in their loop, writes to operands, breaks outside loops, lengths over anything but the kernel's sizes.
pub fn verify_kernel(kernel: &Kernel) -> Result<(), Report> {
    let mut v = Verifier { kernel, errors: vec![], loops: vec![], marks: vec![0; kernel.exprs.len()], mark: 0 };
    v.tables();
    if v.errors.is_empty() {
        let mut assigned = vec![false; kernel.vars.len()];
        assigned[kernel.task.0 as usize] = true;
        v.block(&kernel.body, Some(assigned));
    }
    if v.errors.is_empty() { Ok(()) } else { Err(Report(v.errors)) }
}

/// Which locals have a value, by index; `None` behind a statement that does not go on.
type Assigned = Option<Vec<bool>>;

struct Verifier<'a> {
    kernel: &'a Kernel,
    errors: Vec<Error>,
    /// Variables of the loops around a statement; `None` for a while.
    loops: Vec<Option<VarId>>,
    /// By expression: the last search that met it.
    marks: Vec<u32>,
    mark: u32,
}

impl Verifier<'_> {
    fn error(&mut self, message: String) {
        self.errors.push(Error::internal(format!("kernel {}: {message}", self.kernel.name)));
    }

    /// Expressions, parameters and lengths, without looking at statements.
    fn tables(&mut self) {
        let k = self.kernel;
        let known = |d: &Dim| {
            let mut bad = vec![];
            d.symbols(&mut |s| {
                if size_index(s).is_none_or(|i| i >= k.sizes as usize) {
                    bad.push(s.clone());
                }
            });
            bad
        };
        let lengths = std::iter::once(("the number of tasks".to_string(), &k.tasks))
            .chain(k.params.iter().enumerate().map(|(i, p)| (format!("the length of parameter {i}"), &p.elems)))
            .chain(k.origin.iter().flat_map(|o| o.x.iter().chain(&o.y)).flat_map(|t| &t.shape).map(|d| ("the origin".to_string(), d)));
        for (what, d) in lengths {
            for s in known(d) {
                self.error(format!("{what}, {d}, reads {s}, which is none of the {} sizes", k.sizes));
            }
        }
        if k.vars.get(k.task.0 as usize) != Some(&DType::I64) {
            return self.error("the task number is no i64 local".into());
        }
        // Types are asked of earlier expressions only, once those are known to be sound.
        for (i, e) in k.exprs.iter().enumerate() {
            let before = self.errors.len();
            self.expr(i, e);
            if self.errors.len() > before {
                return;
            }
        }
    }

    fn expr(&mut self, i: usize, e: &Expr) {
        let k = self.kernel;
        let operands: &[ExprId] = match e {
            Expr::Load { index, .. } => std::slice::from_ref(index),
            Expr::Cast { arg, .. } => std::slice::from_ref(arg),
            Expr::Map { args, .. } => args,
            _ => &[],
        };
        if let Some(a) = operands.iter().find(|a| a.0 as usize >= i) {
            return self.error(format!("expression {i} reads {}, which does not come before it", a.0));
        }
        match e {
            Expr::Const(n, d) if n.cast(*d) != *n && !n.as_f64().is_nan() => self.error(format!("expression {i}: {n:?} is no {d}")),
            Expr::Size(s) if *s >= k.sizes => self.error(format!("expression {i} reads size {s} of {}", k.sizes)),
            Expr::Var(v) if v.0 as usize >= k.vars.len() => self.error(format!("expression {i} reads local {} of {}", v.0, k.vars.len())),
            Expr::Load { buf, index } => match k.params.get(*buf as usize) {
                None => self.error(format!("expression {i} loads from parameter {buf} of {}", k.params.len())),
                Some(Param { access: Access::Write, .. }) => self.error(format!("expression {i} loads from parameter {buf}, which is only written")),
                Some(_) if k.dtype(*index) != DType::I64 => self.error(format!("expression {i}: an index is {}", k.dtype(*index))),
                Some(_) => {}
            },
            Expr::Map { fun, args } => {
                let types: Vec<DType> = args.iter().map(|a| k.dtype(*a)).collect();
                let (cond, data) = if *fun == ScalarFn::Where && !types.is_empty() { types.split_at(1) } else { types.split_at(0) };
                let fits = args.len() == fun.arity()
                    && cond.iter().all(|d| *d == DType::Bool)
                    && data.iter().all(|d| *d == data[0] && fun.domain().contains(*d));
                if !fits {
                    self.error(format!("expression {i}: {} does not take {types:?}", fun.name()));
                }
            }
            _ => {}
        }
    }

    /// The expression as a use at a statement: it exists, has the type `want`, and reads only assigned locals.
    fn used(&mut self, what: &str, e: ExprId, want: DType, assigned: &[bool]) {
        if e.0 as usize >= self.kernel.exprs.len() {
            return self.error(format!("{what} is expression {} of {}", e.0, self.kernel.exprs.len()));
        }
        let found = self.kernel.dtype(e);
        if found != want {
            self.error(format!("{what} is {found}, not {want}"));
        }
        self.mark += 1;
        let mut stack = vec![e];
        while let Some(e) = stack.pop() {
            if std::mem::replace(&mut self.marks[e.0 as usize], self.mark) == self.mark {
                continue;
            }
            match &self.kernel.exprs[e.0 as usize] {
                Expr::Var(v) if !assigned[v.0 as usize] => self.error(format!("{what} reads local {} before it is assigned", v.0)),
                Expr::Load { index, .. } => stack.push(*index),
                Expr::Cast { arg, .. } => stack.push(*arg),
                Expr::Map { args, .. } => stack.extend(args),
                _ => {}
            }
        }
    }

    fn block(&mut self, body: &[Stmt], mut assigned: Assigned) -> Assigned {
        for s in body {
            // Code behind a break is checked as if it were reached with everything assigned.
            let reached = assigned.is_some();
            let now = assigned.unwrap_or_else(|| vec![true; self.kernel.vars.len()]);
            let after = self.stmt(s, now);
            assigned = if reached { after } else { None };
        }
        assigned
    }

    fn in_loop(&mut self, var: Option<VarId>, body: &[Stmt], assigned: Vec<bool>) {
        self.loops.push(var);
        self.block(body, Some(assigned));
        self.loops.pop();
    }

    fn stmt(&mut self, s: &Stmt, mut now: Vec<bool>) -> Assigned {
        match s {
            Stmt::For { var, lo, hi, body } => {
                self.used("a loop's begin", *lo, DType::I64, &now);
                self.used("a loop's end", *hi, DType::I64, &now);
                if self.assignable(*var, DType::I64) {
                    let mut inside = now.clone();
                    inside[var.0 as usize] = true;
                    self.in_loop(Some(*var), body, inside);
                    // What the variable holds behind the loop is not defined.
                    now[var.0 as usize] = false;
                }
            }
            Stmt::While { cond, body } => {
                self.used("a condition", *cond, DType::Bool, &now);
                self.in_loop(None, body, now.clone());
            }
            Stmt::If { cond, then, otherwise } => {
                self.used("a condition", *cond, DType::Bool, &now);
                let (a, b) = (self.block(then, Some(now.clone())), self.block(otherwise, Some(now)));
                return match (a, b) {
                    (Some(a), Some(b)) => Some(a.iter().zip(&b).map(|(a, b)| *a && *b).collect()),
                    (a, b) => a.or(b),
                };
            }
            Stmt::Set { var, value } => {
                if let Some(d) = self.kernel.vars.get(var.0 as usize) {
                    self.used("an assigned value", *value, *d, &now);
                }
                if self.assignable(*var, self.kernel.vars.get(var.0 as usize).copied().unwrap_or(DType::I64)) {
                    now[var.0 as usize] = true;
                }
            }
            Stmt::Store { buf, index, value } => match self.kernel.params.get(*buf as usize) {
                None => self.error(format!("a store to parameter {buf} of {}", self.kernel.params.len())),
                Some(p) => {
                    if p.access == Access::Read {
                        self.error(format!("a store to parameter {buf}, which is only read"));
                    }
                    self.used("a stored value", *value, p.dtype, &now);
                    self.used("the index of a store", *index, DType::I64, &now);
                }
            },
            Stmt::Break => {
                if self.loops.is_empty() {
                    self.error("a break outside of loops".into());
                }
                return None;
            }
            Stmt::Fail(_) => return None,
        }
        Some(now)
    }

    fn assignable(&mut self, var: VarId, want: DType) -> bool {
        match self.kernel.vars.get(var.0 as usize) {
            None => self.error(format!("local {} of {} is assigned", var.0, self.kernel.vars.len())),
            Some(d) if *d != want => self.error(format!("local {} is {d}, not {want}", var.0)),
            Some(_) if var == self.kernel.task || self.loops.contains(&Some(var)) => {
                self.error(format!("local {} is a loop's variable or the task's number and is assigned", var.0))
            }
            Some(_) => return true,
        }
        false
    }
}

/// Everything that is wrong with a program: its kernels, and launches, bindings and ports that do not fit the tables.
pub fn verify_program(program: &Program) -> Result<(), Report> {
    let mut errors: Vec<Error> = program.kernels.iter().filter_map(|k| verify_kernel(k).err()).flat_map(|r| r.0).collect();
    let mut bound = BTreeSet::new();
    for port in &program.inputs {
        bound.extend(port.ty.shape.iter().filter_map(Dim::as_sym).cloned());
    }
    for port in program.inputs.iter().chain(&program.outputs) {
        match program.buffers.get(port.buffer.0 as usize) {
            None => errors.push(Error::internal(format!("port {}: there is no buffer {}", port.name, port.buffer.0))),
            Some(b) if b.dtype != port.ty.dtype => {
                errors.push(Error::internal(format!("port {} is {}, its buffer holds {}", port.name, port.ty.dtype, b.dtype)))
            }
            Some(_) => {}
        }
    }
    let mut end = 0;
    for (offset, t) in &program.weights {
        if *offset < end || offset % 64 != 0 {
            errors.push(Error::internal(format!("weights at {offset} overlap those before, which end at {end}, or are not at a multiple of 64")));
        }
        end = offset.saturating_add(t.byte_len() as u64);
    }
    steps(program, &program.steps, &mut bound, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(Report(errors)) }
}

fn steps(program: &Program, list: &[Step], bound: &mut BTreeSet<Arc<str>>, errors: &mut Vec<Error>) {
    for step in list {
        match step {
            Step::Launch(l) => launch(program, l, bound, errors),
            Step::Bind { symbol, from } => {
                reference(program, "a bound size", from, DType::I64, bound, errors);
                bound.insert(symbol.clone());
            }
            Step::Check { a, b, what, .. } => {
                for s in [a, b].into_iter().filter_map(|d| unbound(d, bound)) {
                    errors.push(Error::internal(format!("a check ({what}): {s} is not bound yet")));
                }
            }
            Step::Decode(d) => {
                reference(program, "a file", &d.file, DType::U8, bound, errors);
                if let Some(s) = unbound(&d.bytes, bound) {
                    errors.push(Error::internal(format!("the length of a file: {s} is not bound yet")));
                }
                reference(program, "a picture's sizes", &d.sizes, DType::I64, bound, errors);
                d.samples.iter().for_each(|to| reference(program, "a picture", to, DType::U8, bound, errors));
            }
            Step::If { cond, then, otherwise } => {
                reference(program, "a condition", cond, DType::Bool, bound, errors);
                let mut other = bound.clone();
                steps(program, then, bound, errors);
                steps(program, otherwise, &mut other, errors);
                bound.retain(|s| other.contains(s));
            }
            Step::While { cond, body } => {
                reference(program, "a condition", cond, DType::Bool, bound, errors);
                steps(program, body, &mut bound.clone(), errors);
            }
        }
    }
}

fn unbound(d: &Dim, bound: &BTreeSet<Arc<str>>) -> Option<Arc<str>> {
    let mut missing = None;
    d.symbols(&mut |s| {
        if !bound.contains(s) {
            missing = Some(s.clone());
        }
    });
    missing
}

fn reference(program: &Program, what: &str, r: &BufferRef, want: DType, bound: &BTreeSet<Arc<str>>, errors: &mut Vec<Error>) {
    if let Some(s) = unbound(&r.offset, bound) {
        errors.push(Error::internal(format!("{what}: the offset {} reads {s}, which is not bound yet", r.offset)));
    }
    match program.buffers.get(r.buffer.0 as usize) {
        None => errors.push(Error::internal(format!("{what}: there is no buffer {}", r.buffer.0))),
        // Bits may be read as another type of as many.
        Some(b) if b.dtype.bits() != want.bits() => {
            errors.push(Error::internal(format!("{what}: buffer {} holds {}, not {want}", r.buffer.0, b.dtype)))
        }
        Some(b) => {
            if let Place::Heap { slot } = b.place
                && slot >= program.heap
            {
                errors.push(Error::internal(format!("{what}: buffer {} is in block {slot} of {}", r.buffer.0, program.heap)));
            }
            if let Some(s) = unbound(&b.elems, bound) {
                errors.push(Error::internal(format!("{what}: the length of buffer {} reads {s}, which is not bound yet", r.buffer.0)));
            }
        }
    }
}

fn launch(program: &Program, l: &Launch, bound: &BTreeSet<Arc<str>>, errors: &mut Vec<Error>) {
    let Some(kernel) = program.kernels.get(l.kernel as usize) else {
        return errors.push(Error::internal(format!("launch of {}: there is no kernel {}", l.name, l.kernel)));
    };
    let title = format!("launch of {} ({})", l.name, kernel.name);
    if l.buffers.len() != kernel.params.len() || l.sizes.len() != kernel.sizes as usize {
        let (b, p, s, k) = (l.buffers.len(), kernel.params.len(), l.sizes.len(), kernel.sizes);
        return errors.push(Error::internal(format!("{title}: {b} buffers for {p} parameters, {s} values for {k} sizes")));
    }
    for s in l.sizes.iter().filter_map(|d| unbound(d, bound)) {
        errors.push(Error::internal(format!("{title}: {s} is not bound yet")));
    }
    let sizes = |s: &str| l.sizes.get(size_index(s)?).cloned();
    for (i, (r, p)) in l.buffers.iter().zip(&kernel.params).enumerate() {
        reference(program, &format!("{title}, parameter {i}"), r, p.dtype, bound, errors);
        let Some(b) = program.buffers.get(r.buffer.0 as usize) else { continue };
        if p.access != Access::Read && matches!(b.place, Place::Input(_) | Place::Weight { .. }) {
            errors.push(Error::internal(format!("{title}: parameter {i} is written, buffer {} is read-only", r.buffer.0)));
        }
        let spare = &b.elems - &(r.offset.clone() + p.elems.substitute(&sizes));
        if spare.as_const().is_some_and(|n| n < 0) {
            errors.push(Error::internal(format!("{title}: parameter {i} reaches beyond buffer {} of {} elements", r.buffer.0, b.elems)));
        }
    }
}
