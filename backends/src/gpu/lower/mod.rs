//! From the loop IR to the GPU kernel IR: any kernel, of whatever operation.
//!
//! A task is a thread. Tasks are independent by the loop IR's definition, so nothing has to be proved; lowering for a GPU makes them
//! as small as one element ([`nnc_ir::Target::grain`]).
//!
//! * Of straight-line tasks a thread does as many as make an access of 16 bytes, where the device has that: elements that lie where the
//!   tasks do are loaded and stored together.
//! * Where few tasks fold many elements, a group takes one ([`fold`]).
//! * Locals become SSA values: a loop carries those that its body assigns, an `If` joins them.
//! * `break` and faults become flags, which the rest of a block and the loops around ask: the IR has no jump.
//! * Indices are `i64` in the loop IR and `i32` here wherever their ranges show that it makes no difference ([`index`]).
//!
//! What a device has no instructions for is refused with the reason; such a kernel stays on the host.

mod convert;
pub(super) mod fold;
mod index;
mod math;
pub(super) mod minifloat;
pub(super) mod scalar;

use super::gir::build::Builder;
use super::gir::{self, Binary, Carried, Compare, Elem, Space, Ty, Val};
use crate::abi;
use fold::Turns;
use index::Range;
use nnc_ir::kernel::{Access, Expr, ExprId, Fault, Kernel, Stmt, VarId, size_symbol};
use nnc_ir::scalar::{Num, Out};
use nnc_ir::target::Gpu;
use nnc_ir::{DType, Dim};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Why a kernel stays on the host.
pub type Refusal = String;
type Result<T> = std::result::Result<T, Refusal>;

/// A kernel for the device. Its buffers are the parameters, then, where it can fail, the word that faults are written to; its scalars
/// are, for each parameter with `offsets`, the element that it starts at, then `scalars`.
pub struct Lowered {
    pub kernel: gir::Kernel,
    pub fails: bool,
    /// Groups of a launch, over the sizes of the loop IR's kernel.
    pub groups: Dim,
    pub scalars: Vec<Dim>,
}

/// Lowers `k`. `offsets` tells which parameters start inside of their buffers in some launch.
pub fn lower(k: &Kernel, offsets: &[bool], device: &Gpu) -> Result<Lowered> {
    let (mut l, tasks) = Lowering::new(k, offsets, device, device.threads)?;
    let together = together(k, offsets, device);
    let (group, width, thread) = (l.b.value(gir::Op::Group), l.b.i32(device.threads as i32), l.b.value(gir::Op::Thread));
    let first = l.b.mul(group, width);
    let first = l.b.add(first, thread);
    let task = if together == 1 { first } else { l.b.with(Binary::Mul, first, together.into()) };
    let alive = l.alive();
    l.env[alive] = Some(Value::plain(l.b.bool(true)));
    let inside = l.b.compare(Compare::Lt, task, tasks);
    l.b.begin();
    if together == 1 {
        l.task(task);
        l.block(&k.body)?;
    } else {
        l.tasks(task, together, tasks)?;
    }
    let body = l.b.end();
    l.b.join(inside, (body, vec![]), (vec![], vec![]));
    Ok(l.finish(k.tasks.ceil_div(&Dim::from((device.threads * together) as usize))))
}

/// Expressions of a task beyond which a thread does one: its code would be long, its time is not that of memory.
const SHORT: usize = 48;

/// How many tasks a thread does: 1, 2 or 4.
fn together(k: &Kernel, offsets: &[bool], device: &Gpu) -> u32 {
    let names = names_of_task(k);
    let is_task = |e: ExprId| names_it(k, &names, e);
    let mut widest = 1;
    // Each store goes where the task is, to what is not loaded.
    let mut fits = k.exprs.len() <= SHORT;
    let mut stored = BTreeSet::new();
    for s in &k.body {
        match s {
            Stmt::Set { .. } => {}
            Stmt::Store { buf, index, .. } => {
                let p = &k.params[*buf as usize];
                fits &= is_task(*index) && p.access == Access::Write && !offsets[*buf as usize] && stored.insert(*buf);
                widest = widest.max(elem(p.dtype).bytes());
            }
            _ => fits = false,
        }
    }
    for e in &k.exprs {
        if let Expr::Load { buf, index } = e
            && is_task(*index)
        {
            widest = widest.max(elem(k.params[*buf as usize].dtype).bytes());
        }
    }
    let most = (device.vector_bytes / widest).min(4);
    if fits && most > 1 { most } else { 1 }
}

/// Locals that are the number of the task at every place that may read them, in straight-line code.
fn names_of_task(k: &Kernel) -> BTreeSet<VarId> {
    let mut names = BTreeSet::from([k.task]);
    let mut others = BTreeSet::new();
    for s in &k.body {
        if let Stmt::Set { var, value } = s {
            let same = names_it(k, &names, *value);
            (if same { &mut names } else { &mut others }).insert(*var);
        }
    }
    names.retain(|n| !others.contains(n));
    names
}

fn names_it(k: &Kernel, names: &BTreeSet<VarId>, e: ExprId) -> bool {
    matches!(&k.exprs[e.0 as usize], Expr::Var(v) if names.contains(v))
}

/// Tasks that a thread does together.
struct Vectors {
    /// Locals that are the number of the task.
    names: BTreeSet<VarId>,
    /// What lies where the tasks do, by parameter and task, and what they store there.
    loaded: HashMap<u32, Vec<Val>>,
    stored: BTreeMap<u32, Vec<Val>>,
    /// The task at hand.
    at: usize,
}

/// How memory holds a type.
pub fn elem(d: DType) -> Elem {
    match d {
        DType::F32 => Elem::F32,
        DType::F64 => Elem::F64,
        DType::I64 | DType::U64 => Elem::I64,
        DType::I32 | DType::U32 => Elem::I32,
        DType::I16 => Elem::I16,
        DType::U16 | DType::F16 | DType::BF16 => Elem::U16,
        DType::I8 => Elem::I8,
        // Strings do not come this far: the passes refuse them.
        _ => Elem::U8,
    }
}

/// What a scalar is computed in. Narrower floats live in f32, rounded to their own precision, narrower integers in i32, extended from
/// their own width.
fn register(d: DType) -> Ty {
    match d {
        DType::Bool => Ty::Bool,
        DType::F64 => Ty::F64,
        d if d.is_float() => Ty::F32,
        DType::I64 | DType::U64 => Ty::I64,
        _ => Ty::I32,
    }
}

/// A scalar of the loop IR. One of type `i64` whose range fits is an `i32` here.
#[derive(Clone, Copy)]
struct Value {
    val: Val,
    range: Range,
}

impl Value {
    fn plain(val: Val) -> Value {
        Value { val, range: Range::ALL }
    }
}

fn operands(e: &Expr) -> &[ExprId] {
    match e {
        Expr::Const(..) | Expr::Size(_) | Expr::Var(_) => &[],
        Expr::Load { index, .. } => std::slice::from_ref(index),
        Expr::Cast { arg, .. } => std::slice::from_ref(arg),
        Expr::Map { args, .. } => args,
    }
}

/// Element types of all expressions; operands stand before what uses them.
fn types(k: &Kernel) -> Vec<DType> {
    let mut out: Vec<DType> = Vec::with_capacity(k.exprs.len());
    for (i, e) in k.exprs.iter().enumerate() {
        out.push(match e {
            Expr::Map { fun, args } if fun.out() == Out::Same => out[args[args.len() - 1].0 as usize],
            _ => k.dtype(ExprId(i as u32)),
        });
    }
    out
}

/// How statements may be left other than at their ends.
#[derive(Clone, Copy, Default)]
struct Leaves {
    breaks: bool,
    fails: bool,
}

fn leaves(body: &[Stmt]) -> Leaves {
    let mut out = Leaves::default();
    for s in body {
        match s {
            Stmt::Break => out.breaks = true,
            Stmt::Fail(_) => out.fails = true,
            Stmt::If { then, otherwise, .. } => {
                for l in [leaves(then), leaves(otherwise)] {
                    out.breaks |= l.breaks;
                    out.fails |= l.fails;
                }
            }
            Stmt::For { body, .. } | Stmt::While { body, .. } => out.fails |= leaves(body).fails,
            Stmt::Set { .. } | Stmt::Store { .. } => {}
        }
    }
    out
}

struct Lowering<'a> {
    k: &'a Kernel,
    b: Builder,
    buffers: Vec<Space>,
    /// The element that a parameter starts at, where that is not 0.
    bases: Vec<Option<Val>>,
    faults: Option<Space>,
    sizes: Vec<Val>,
    types: Vec<DType>,
    /// Values of the locals, whether the task goes on, then for each open loop whether it does.
    env: Vec<Option<Value>>,
    /// Open loops.
    depth: usize,
    /// Values of expressions within the statement at hand; `log` lists what is set.
    memo: Vec<Option<Value>>,
    log: Vec<ExprId>,
    vectors: Option<Vectors>,
    /// A loop whose turns threads share.
    turns: Option<Turns>,
}

impl AsMut<Builder> for Lowering<'_> {
    fn as_mut(&mut self) -> &mut Builder {
        &mut self.b
    }
}

impl<'a> Lowering<'a> {
    /// An empty kernel of groups of so many threads, and the number of tasks in it.
    fn new(k: &'a Kernel, offsets: &[bool], device: &Gpu, threads: u32) -> Result<(Lowering<'a>, Val)> {
        let mut b = Builder::new(k.name.clone(), threads);
        let buffers: Vec<Space> = k.params.iter().map(|p| b.buffer(elem(p.dtype), p.access != Access::Read)).collect();
        let faults = leaves(&k.body).fails.then(|| b.buffer(Elem::I32, true));
        let used = k.params.len() + usize::from(faults.is_some());
        if used > device.max_buffers as usize {
            return Err(format!("{used} buffers, a kernel takes {}", device.max_buffers));
        }
        let scalars = 1 + k.sizes as usize + offsets.iter().filter(|o| **o).count();
        if scalars * 4 > device.scalar_bytes as usize {
            return Err(format!("{scalars} sizes and offsets, {} bytes of scalars are possible", device.scalar_bytes));
        }
        let bases: Vec<Option<Val>> = offsets.iter().map(|o| o.then(|| b.scalar())).collect();
        let tasks = b.scalar();
        let sizes: Vec<Val> = (0..k.sizes).map(|_| b.scalar()).collect();
        let (env, memo) = (vec![None; k.vars.len() + 1], vec![None; k.exprs.len()]);
        let (types, log) = (types(k), vec![]);
        Ok((Lowering { k, b, buffers, bases, faults, sizes, types, env, depth: 0, memo, log, vectors: None, turns: None }, tasks))
    }

    /// The kernel, for launches of so many groups.
    fn finish(self, groups: Dim) -> Lowered {
        let scalars = [self.k.tasks.clone()].into_iter().chain((0..self.k.sizes as usize).map(size_symbol)).collect();
        Lowered { kernel: self.b.finish(), fails: self.faults.is_some(), groups, scalars }
    }

    /// The number of the task that statements are lowered for.
    fn task(&mut self, task: Val) {
        let most = self.k.tasks.as_const().map_or(i64::from(i32::MAX), |n| (n - 1).max(0));
        self.env[self.k.task.0 as usize] = Some(Value { val: task, range: Range { lo: 0, hi: most } });
    }

    /// The tasks from `first` on, as many as there are: `n` of them together, or fewer in turn.
    fn tasks(&mut self, first: Val, n: u32, tasks: Val) -> Result<()> {
        let k = self.k;
        let whole = k.tasks.as_const().is_some_and(|t| t % i64::from(n) == 0);
        self.b.begin();
        let mut v = Vectors { names: names_of_task(k), loaded: HashMap::new(), stored: BTreeMap::new(), at: 0 };
        for e in &k.exprs {
            if let Expr::Load { buf, index } = e
                && names_it(k, &v.names, *index)
                && self.bases[*buf as usize].is_none()
                && !v.loaded.contains_key(buf)
            {
                v.loaded.insert(*buf, self.b.load_vector(self.buffers[*buf as usize], first, n));
            }
        }
        self.vectors = Some(v);
        for i in 0..n {
            if let Some(v) = &mut self.vectors {
                v.at = i as usize;
            }
            let task = self.b.with(Binary::Add, first, i.into());
            self.task(task);
            self.block(&k.body)?;
        }
        for (buf, values) in self.vectors.take().map(|v| v.stored).unwrap_or_default() {
            self.b.store_vector(self.buffers[buf as usize], first, values);
        }
        let together = self.b.end();
        if whole {
            together.into_iter().for_each(|s| self.b.emit(s));
            return Ok(());
        }
        self.b.begin();
        let task = self.b.fresh(Ty::I32);
        self.b.begin();
        self.task(task);
        self.block(&k.body)?;
        self.b.end_for(task, (first, tasks), &[], &[], vec![]);
        let rest = self.b.end();
        // From the end: the sum may be more than an index holds.
        let left = self.b.sub(tasks, first);
        let few = self.b.compare_with(Compare::Lt, left, n.into());
        self.b.join(few, (rest, vec![]), (together, vec![]));
        Ok(())
    }

    /// The slot of the flag that no fault was met.
    fn alive(&self) -> usize {
        self.k.vars.len()
    }

    /// The slot of the flag that the loop at this depth was not left; the outermost is 1.
    fn going(&self, depth: usize) -> usize {
        self.k.vars.len() + depth
    }

    /// Slots that the statements assign.
    fn assigned(&self, body: &[Stmt], depth: usize, out: &mut BTreeSet<usize>) {
        for s in body {
            match s {
                Stmt::Set { var, .. } => drop(out.insert(var.0 as usize)),
                Stmt::Break => drop(out.insert(self.going(depth))),
                Stmt::Fail(_) => drop(out.insert(self.alive())),
                Stmt::If { then, otherwise, .. } => [then, otherwise].into_iter().for_each(|b| self.assigned(b, depth, out)),
                Stmt::For { body, .. } | Stmt::While { body, .. } => self.assigned(body, depth + 1, out),
                Stmt::Store { .. } => {}
            }
        }
    }

    /// What slots hold, in the form that joins and loops hand on: of indices, all bits.
    fn gather(&mut self, slots: &[usize]) -> Vec<Option<Val>> {
        let get = |l: &mut Self, s: usize| {
            let v = l.env[s]?;
            Some(if l.k.vars.get(s) == Some(&DType::I64) { l.wide(v) } else { v.val })
        };
        slots.iter().map(|s| get(self, *s)).collect()
    }

    fn block(&mut self, body: &[Stmt]) -> Result<()> {
        for (i, s) in body.iter().enumerate() {
            self.stmt(s)?;
            let (left, rest) = (leaves(std::slice::from_ref(s)), &body[i + 1..]);
            if matches!(s, Stmt::Break | Stmt::Fail(_)) || rest.is_empty() {
                return Ok(());
            }
            if left.breaks || left.fails {
                let going = left.breaks.then(|| self.going(self.depth));
                let on = self.all(going.into_iter().chain(left.fails.then(|| self.alive())));
                return self.branch(on, rest, &[]);
            }
        }
        Ok(())
    }

    /// Whether all these flags are set.
    fn all(&mut self, slots: impl Iterator<Item = usize>) -> Val {
        let mut on = self.b.bool(true);
        for s in slots {
            if let Some(flag) = self.env[s] {
                on = self.b.and(on, flag.val);
            }
        }
        on
    }

    fn branch(&mut self, cond: Val, then: &[Stmt], otherwise: &[Stmt]) -> Result<()> {
        let mut slots = BTreeSet::new();
        self.assigned(then, self.depth, &mut slots);
        self.assigned(otherwise, self.depth, &mut slots);
        let slots: Vec<usize> = slots.into_iter().filter(|s| *s < self.env.len()).collect();
        let before = self.env.clone();
        let mut sides = vec![];
        for body in [then, otherwise] {
            self.env.clone_from(&before);
            self.b.begin();
            self.block(body)?;
            let values = self.gather(&slots);
            sides.push((self.b.end(), values));
        }
        self.env = before;
        let (b, a) = (sides.pop().unwrap_or_default(), sides.pop().unwrap_or_default());
        // What only one side assigns has no value behind it.
        let both: Vec<(usize, Val, Val)> = slots.iter().zip(a.1.iter().zip(&b.1)).filter_map(|(s, (x, y))| Some((*s, (*x)?, (*y)?))).collect();
        slots.iter().for_each(|s| self.env[*s] = None);
        let values = self.b.join(cond, (a.0, both.iter().map(|x| x.1).collect()), (b.0, both.iter().map(|x| x.2).collect()));
        for ((slot, ..), v) in both.iter().zip(values) {
            self.env[*slot] = Some(Value::plain(v));
        }
        Ok(())
    }

    fn stmt(&mut self, s: &Stmt) -> Result<()> {
        self.forget();
        match s {
            Stmt::Set { var, value } => {
                let v = self.eval(*value)?;
                self.env[var.0 as usize] = Some(v);
            }
            Stmt::Store { buf, index, value } => {
                let i = self.eval(*index)?;
                let at = self.element(*buf, i);
                let v = if let Some(bits) = self.moved(*buf, *value)? {
                    bits
                } else {
                    let v = self.eval(*value)?;
                    self.stored(self.k.params[*buf as usize].dtype, v)
                };
                match &mut self.vectors {
                    Some(vectors) => vectors.stored.entry(*buf).or_default().push(v),
                    None => self.b.store(self.buffers[*buf as usize], at, v),
                }
            }
            Stmt::If { cond, then, otherwise } => {
                let cond = self.eval(*cond)?.val;
                self.forget();
                self.branch(cond, then, otherwise)?;
            }
            Stmt::For { var, lo, hi, body } => {
                let (lo, hi) = (self.eval(*lo)?, self.eval(*hi)?);
                self.forget();
                self.loop_(Head::For(*var, lo, hi), body)?;
            }
            Stmt::While { cond, body } => self.loop_(Head::While(*cond), body)?,
            Stmt::Break => {
                let (slot, no) = (self.going(self.depth), self.b.bool(false));
                self.env[slot] = Some(Value::plain(no));
            }
            Stmt::Fail(fault) => {
                let code = match fault {
                    Fault::Index => abi::ERROR_INDEX,
                    Fault::Size => abi::ERROR_SIZE,
                };
                let faults = self.faults.ok_or("a fault that was not announced")?;
                let (at, code, no) = (self.b.i32(0), self.b.i32(code), self.b.bool(false));
                self.b.store(faults, at, code);
                let alive = self.alive();
                self.env[alive] = Some(Value::plain(no));
            }
        }
        self.forget();
        Ok(())
    }

    fn loop_(&mut self, head: Head, body: &[Stmt]) -> Result<()> {
        self.depth += 1;
        let left = leaves(body);
        let going = self.going(self.depth);
        self.env.resize(going + 1, None);
        self.env[going] = left.breaks.then(|| Value::plain(self.b.bool(true)));
        let mut slots = BTreeSet::new();
        self.assigned(body, self.depth, &mut slots);
        // Slots of loops inside come and go with them.
        let (carried, local): (Vec<usize>, Vec<usize>) = slots.into_iter().filter(|s| *s <= going).partition(|s| self.env[*s].is_some());
        let mut first: Vec<Val> = self.gather(&carried).into_iter().flatten().collect();
        let mut values: Vec<Val> = first.iter().map(|v| self.b.fresh(self.b.ty(*v))).collect();
        for (slot, v) in carried.iter().zip(&values) {
            self.env[*slot] = Some(Value::plain(*v));
        }
        let bounds = if let Head::For(var, lo, hi) = head { Some((var, self.bounds(lo, hi))) } else { None };
        match bounds {
            Some((var, (lo, hi, range))) if !left.breaks && !left.fails => {
                let index = self.b.fresh(self.b.ty(lo));
                let turns = self.turns.filter(|t| t.var == var);
                if turns.is_some() && self.b.ty(lo) != Ty::I32 {
                    return Err("a loop of more turns than an index holds".into());
                }
                let hi = turns.map_or(hi, |t| t.count(&mut self.b, hi));
                self.b.begin();
                let val = turns.map_or(index, |t| t.turn(&mut self.b, index));
                self.env[var.0 as usize] = Some(Value { val, range });
                self.block(body)?;
                let next = self.gather(&carried);
                let body = self.b.end();
                let carried = carry(&values, &first, next)?;
                self.b.emit(gir::Stmt::For { index, lo, hi, carried, body });
            }
            _ => {
                if let Some((var, (lo, _, range))) = bounds {
                    let index = self.b.fresh(self.b.ty(lo));
                    self.env[var.0 as usize] = Some(Value { val: index, range });
                    first.push(lo);
                    values.push(index);
                }
                self.b.begin();
                let flags = [left.breaks.then_some(going), left.fails.then(|| self.alive())];
                let on = self.all(flags.into_iter().flatten());
                // Only a loop that goes on may ask its condition, which may load.
                let cond = match (&head, &bounds) {
                    (Head::While(cond), _) if self.b.constant(on).is_none() => {
                        self.b.begin();
                        let cond = self.eval(*cond)?.val;
                        let ask = self.b.end();
                        let no = self.b.bool(false);
                        self.b.join(on, (ask, vec![cond]), (vec![], vec![no]))[0]
                    }
                    (Head::While(cond), _) => self.eval(*cond)?.val,
                    (_, Some((_, (_, hi, _)))) => {
                        let index = *values.last().ok_or("a loop without its index")?;
                        let more = self.b.compare(Compare::Lt, index, *hi);
                        self.b.and(on, more)
                    }
                    _ => on,
                };
                let ask = self.b.end();
                self.forget();
                self.b.begin();
                self.block(body)?;
                let mut next = self.gather(&carried);
                if bounds.is_some()
                    && let Some(index) = values.last()
                {
                    next.push(Some(self.b.with(Binary::Add, *index, 1)));
                }
                let body = self.b.end();
                let carried = carry(&values, &first, next)?;
                self.b.emit(gir::Stmt::While { carried, head: ask, cond, body });
            }
        }
        for (slot, v) in carried.iter().zip(&values) {
            self.env[*slot] = Some(Value::plain(*v));
        }
        local.iter().for_each(|s| self.env[*s] = None);
        if let Some((var, _)) = bounds {
            self.env[var.0 as usize] = None;
        }
        self.env.truncate(going);
        self.depth -= 1;
        Ok(())
    }

    /// Ends a statement: locals and memory may have changed.
    fn forget(&mut self) {
        for e in self.log.drain(..) {
            self.memo[e.0 as usize] = None;
        }
    }

    /// Where an element of a parameter is in its buffer.
    fn element(&mut self, buf: u32, index: Value) -> Val {
        let i = self.narrow(index);
        match self.bases[buf as usize] {
            Some(base) => self.b.add(base, i),
            None => i,
        }
    }

    /// What an element of a parameter holds, at an index and its value.
    fn bits(&mut self, buf: u32, index: ExprId, i: Value) -> Val {
        if let Some(v) = &self.vectors
            && names_it(self.k, &v.names, index)
            && let Some(values) = v.loaded.get(&buf)
        {
            return values[v.at];
        }
        let at = self.element(buf, i);
        self.b.load(self.buffers[buf as usize], at)
    }

    /// The bits that a store moves, where it writes what a load of the same type reads.
    fn moved(&mut self, to: u32, value: ExprId) -> Result<Option<Val>> {
        let dtype = |buf: u32| self.k.params[buf as usize].dtype;
        match &self.k.exprs[value.0 as usize] {
            Expr::Load { buf, index } if dtype(*buf) == dtype(to) && dtype(to) != DType::Bool && dtype(to).bits().is_multiple_of(8) => {
                let i = self.eval(*index)?;
                Ok(Some(self.bits(*buf, *index, i)))
            }
            _ => Ok(None),
        }
    }

    /// An expression and all that it needs, operands first, without recursion: fused expressions may be deep.
    fn eval(&mut self, root: ExprId) -> Result<Value> {
        let mut needed = BTreeSet::new();
        let mut stack = vec![root];
        while let Some(e) = stack.pop() {
            if self.memo[e.0 as usize].is_none() && needed.insert(e) {
                stack.extend(operands(&self.k.exprs[e.0 as usize]));
            }
        }
        for e in needed {
            let v = self.apply(e)?;
            self.memo[e.0 as usize] = Some(v);
            self.log.push(e);
        }
        self.done(root)
    }

    fn done(&self, e: ExprId) -> Result<Value> {
        self.memo[e.0 as usize].ok_or_else(|| "an expression stands before its operands".into())
    }

    fn apply(&mut self, e: ExprId) -> Result<Value> {
        match &self.k.exprs[e.0 as usize] {
            Expr::Const(n, d) => Ok(self.constant(*n, *d)),
            Expr::Size(i) => Ok(Value { val: self.sizes[*i as usize], range: Range::I32 }),
            Expr::Var(v) => self.env[v.0 as usize].ok_or_else(|| format!("local {} is read before it is assigned", v.0)),
            Expr::Load { buf, index } => {
                let i = self.done(*index)?;
                let bits = self.bits(*buf, *index, i);
                Ok(self.loaded(self.k.params[*buf as usize].dtype, bits))
            }
            Expr::Cast { to, arg } => {
                let v = self.done(*arg)?;
                self.cast(self.types[arg.0 as usize], *to, v)
            }
            Expr::Map { fun, args } => {
                let x = args.iter().map(|a| self.done(*a)).collect::<Result<Vec<Value>>>()?;
                let d = self.types[args[args.len() - 1].0 as usize];
                self.map(*fun, d, &x)
            }
        }
    }

    fn constant(&mut self, n: Num, d: DType) -> Value {
        if d == DType::I64 {
            let i = n.as_i64();
            let range = Range { lo: i, hi: i };
            let ty = if range.fits() { Ty::I32 } else { Ty::I64 };
            return Value { val: self.b.int(ty, i), range };
        }
        Value::plain(match register(d) {
            Ty::Bool => self.b.bool(n.as_bool()),
            ty if ty.is_float() => self.b.float(ty, n.as_f64()),
            ty => {
                let bits = if let Num::U(u) = n { u as i64 } else { n.as_i64() };
                self.b.int(ty, bits)
            }
        })
    }
}

enum Head {
    For(VarId, Value, Value),
    While(ExprId),
}

fn carry(values: &[Val], first: &[Val], next: Vec<Option<Val>>) -> Result<Vec<Carried>> {
    let one = |((value, first), next): ((&Val, &Val), Option<Val>)| {
        Ok(Carried { value: *value, first: *first, next: next.ok_or("a loop loses a local that it carries")? })
    };
    values.iter().zip(first).zip(next).map(one).collect()
}
