//! Interpreter of kernels and programs: the oracle that backends are held against.
//!
//! Every operation rounds to its type; every access is held against the parameter's length. Kernels run through a form in which an
//! expression is a list of instructions on numbered slots, so that nothing is looked up or allocated for an element.

use super::verify::{verify_kernel, verify_program};
use super::{BufferRef, Decode, Expr, ExprId, Fault, Kernel, Launch, Place, Program, Step, Stmt, size_index};
use crate::dim::Dim;
use crate::error::{Error, Report, Result};
use crate::eval::{Env, bind_types, image};
use crate::scalar::{Num, ScalarFn};
use crate::tensor::Tensor;
use crate::types::DType;
use bytes::Bytes;

impl Decode {
    /// What the host writes, and where, having been given the bytes of the file.
    pub fn answer(&self, file: &[u8]) -> (&BufferRef, Vec<u8>) {
        let picture = image::decode(file, self.channels);
        match &self.samples {
            None => (&self.sizes, picture.shape()[..2].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect()),
            Some(samples) => (samples, picture.bytes().to_vec()),
        }
    }
}

/// Memory that nothing has written: NaN in every float type, -1 in integers, so that a read of it shows.
const FRESH: u8 = 0xff;

/// Runs all tasks of `kernel` on `buffers`, one a parameter, each of as many bytes as its length says.
///
/// A kernel that does not verify, and an access outside a parameter, are internal errors; [`Stmt::Fail`] is an error of the input.
pub fn eval_kernel(kernel: &Kernel, sizes: &[i64], buffers: &mut [Vec<u8>]) -> Result<()> {
    let code = Code::new(kernel)?;
    let mut memory: Vec<Memory> = buffers.iter_mut().map(|b| Memory::Ours(std::mem::take(b))).collect();
    let windows: Vec<(usize, usize)> = (0..memory.len()).map(|i| (i, 0)).collect();
    let done = code.run(sizes, &mut memory, &windows);
    for (b, m) in buffers.iter_mut().zip(memory) {
        if let Memory::Ours(bytes) = m {
            *b = bytes;
        }
    }
    done
}

/// The outputs of `program` on `inputs`. Memory may be planned or not.
pub fn eval_program(program: &Program, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    verify_program(program).map_err(Report::into_first)?;
    let env = Env::default();
    bind_types(&program.inputs.iter().map(|p| (&*p.name, &p.ty)).collect::<Vec<_>>(), inputs, &env)?;
    let code = program.kernels.iter().map(Code::new).collect::<Result<Vec<Code>>>()?;
    let mut memory: Vec<Memory> = program.buffers.iter().map(|_| Memory::Ours(vec![])).collect();
    // Then the workspace and the blocks, which planned buffers share.
    memory.extend((0..=program.heap).map(|_| Memory::Ours(vec![])));
    for (slot, b) in memory.iter_mut().zip(&program.buffers) {
        match b.place {
            Place::Input(i) => *slot = Memory::Shared(inputs.get(i as usize).map(Tensor::bytes).unwrap_or_default()),
            Place::Weight { offset } => *slot = Memory::Shared(weights(program, offset)?),
            _ => {}
        }
    }
    let mut run = Run { program, code, env, memory };
    run.steps(&program.steps)?;
    let output = |p: &super::Port| {
        let shape = run.env.shape(&p.ty.shape)?;
        let bytes = crate::tensor::checked_elems(p.ty.dtype, &shape)? * p.ty.dtype.bytes();
        let (m, at) = run.window(&BufferRef { buffer: p.buffer, offset: Dim::Const(0) })?;
        let data = run.memory[m].read().get(at..at + bytes).map(Bytes::copy_from_slice);
        Tensor::from_bytes(p.ty.dtype, shape, data.ok_or_else(|| Error::internal(format!("output {} is larger than its buffer", p.name)))?)
    };
    program.outputs.iter().map(output).collect()
}

/// The bytes of the weights from `offset` to the end of the tensor that it lies in.
fn weights(program: &Program, offset: u64) -> Result<Bytes> {
    let next = program.weights.partition_point(|(o, _)| *o <= offset);
    let found = next.checked_sub(1).map(|i| &program.weights[i]);
    let skip = found.map(|(o, _)| (offset - o) as usize);
    match (found, skip) {
        (Some((_, t)), Some(skip)) if skip < t.byte_len().max(1) => Ok(t.try_bytes()?.slice(skip..)),
        _ => Err(Error::internal(format!("there are no weights at {offset}"))),
    }
}

enum Memory {
    Ours(Vec<u8>),
    /// The caller's inputs and the weights.
    Shared(Bytes),
}

impl Memory {
    fn read(&self) -> &[u8] {
        match self {
            Memory::Ours(b) => b,
            Memory::Shared(b) => b,
        }
    }
}

struct Run<'a> {
    program: &'a Program,
    code: Vec<Code<'a>>,
    env: Env,
    /// One a buffer, then the workspace, then one a block.
    memory: Vec<Memory>,
}

impl Run<'_> {
    /// Which memory a reference means, and from which byte on. Memory grows as the sizes become known.
    fn window(&mut self, r: &BufferRef) -> Result<(usize, usize)> {
        let (index, b) = (r.buffer.0 as usize, &self.program.buffers[r.buffer.0 as usize]);
        let count = |d: &Dim| self.env.dim(d).and_then(|n| usize::try_from(n).map_err(|_| Error::internal(format!("{d} is {n}"))));
        // As the size of a window's result, where the window is larger than what it slides over.
        let elems = self.env.shape(std::slice::from_ref(&b.elems))?[0];
        let skip = count(&r.offset)?;
        let bytes = crate::tensor::checked_elems(b.dtype, &[elems])? * b.dtype.bytes();
        let (memory, start) = match &b.place {
            Place::Work { offset } => (self.program.buffers.len(), count(offset)?),
            Place::Heap { slot } => (self.program.buffers.len() + 1 + *slot as usize, 0),
            _ => (index, 0),
        };
        if let (Place::Work { .. }, Ok(limit)) = (&b.place, count(&self.program.workspace))
            && start + bytes > limit
        {
            return Err(Error::internal(format!("buffer {index} reaches to byte {} of a workspace of {limit}", start + bytes)));
        }
        if let Memory::Ours(m) = &mut self.memory[memory]
            && m.len() < start + bytes
        {
            m.resize(start + bytes, FRESH);
        }
        Ok((memory, start + skip * b.dtype.bytes()))
    }

    /// The element that a reference starts with.
    fn element(&mut self, r: &BufferRef) -> Result<Num> {
        let dtype = self.program.buffers[r.buffer.0 as usize].dtype;
        let (m, at) = self.window(r)?;
        let bytes = self.memory[m].read().get(at..at + dtype.bytes());
        bytes.map(|b| Num::read(dtype, b)).ok_or_else(|| Error::internal(format!("buffer {} has no element {}", r.buffer.0, r.offset)))
    }

    fn steps(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            match step {
                Step::Launch(l) => self.launch(l).map_err(|e| e.at(&l.loc))?,
                Step::Bind { symbol, from } => {
                    let n = self.element(from)?.as_i64();
                    self.env.bind(symbol, n)?;
                }
                Step::Check { a, b, at_most, what } => {
                    let (a, b) = (self.env.dim(a)?, self.env.dim(b)?);
                    if a != b && !(*at_most && a < b) {
                        return Err(Error::input(format!("{what}; they are {a} and {b}")));
                    }
                }
                Step::Decode(d) => self.decode(d)?,
                Step::If { cond, then, otherwise } => {
                    let branch = if self.element(cond)?.as_bool() { then } else { otherwise };
                    self.steps(branch)?;
                }
                Step::While { cond, body } => {
                    while self.element(cond)?.as_bool() {
                        self.steps(body)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn decode(&mut self, d: &Decode) -> Result<()> {
        let lost = || Error::internal("a file or a picture reaches beyond its buffer");
        let ((file, at), bytes) = (self.window(&d.file)?, self.env.dim(&d.bytes)?);
        let bytes = usize::try_from(bytes).ok().and_then(|n| self.memory[file].read().get(at..at.checked_add(n)?));
        let (to, new) = d.answer(bytes.ok_or_else(lost)?);
        let (memory, at) = self.window(to)?;
        match &mut self.memory[memory] {
            Memory::Ours(m) => m.get_mut(at..at + new.len()).ok_or_else(lost)?.copy_from_slice(&new),
            Memory::Shared(_) => return Err(Error::internal("a picture goes to memory that is only read")),
        }
        Ok(())
    }

    fn launch(&mut self, l: &Launch) -> Result<()> {
        let sizes = l.sizes.iter().map(|d| self.env.dim(d)).collect::<Result<Vec<i64>>>()?;
        let windows = l.buffers.iter().map(|r| self.window(r)).collect::<Result<Vec<_>>>()?;
        self.code[l.kernel as usize].run(&sizes, &mut self.memory, &windows)
    }
}

/// Index of a number: expressions first, then locals.
type Slot = u32;

/// A value to compute: instructions in order, then the slot that holds it.
struct Value {
    code: Vec<Instr>,
    slot: Slot,
}

enum Instr {
    Load { to: Slot, buf: u32, index: Slot },
    Unary { to: Slot, fun: ScalarFn, dtype: DType, x: Slot },
    Binary { to: Slot, fun: ScalarFn, dtype: DType, x: [Slot; 2] },
    Select { to: Slot, x: [Slot; 3] },
    Cast { to: Slot, dtype: DType, x: Slot },
}

/// [`Stmt`] with its expressions resolved.
enum Action {
    For { var: Slot, lo: Value, hi: Value, body: Vec<Action> },
    While { cond: Value, body: Vec<Action> },
    If { cond: Value, then: Vec<Action>, otherwise: Vec<Action> },
    Set { var: Slot, value: Value },
    Store { buf: u32, index: Value, value: Value },
    Break,
    Fail(Fault),
}

struct Code<'a> {
    kernel: &'a Kernel,
    body: Vec<Action>,
    /// Constants in their places.
    slots: Vec<Num>,
}

impl<'a> Code<'a> {
    fn new(kernel: &'a Kernel) -> Result<Code<'a>> {
        verify_kernel(kernel).map_err(Report::into_first)?;
        let constant = |e: &Expr| if let Expr::Const(n, _) = e { *n } else { Num::I(0) };
        let mut slots: Vec<Num> = kernel.exprs.iter().map(constant).collect();
        slots.resize(kernel.exprs.len() + kernel.vars.len(), Num::I(0));
        let mut code = Code { kernel, body: vec![], slots };
        code.body = code.block(&kernel.body);
        Ok(code)
    }

    fn var(&self, v: super::VarId) -> Slot {
        self.kernel.exprs.len() as u32 + v.0
    }

    fn slot(&self, e: ExprId) -> Slot {
        match self.kernel.exprs[e.0 as usize] {
            Expr::Var(v) => self.var(v),
            _ => e.0,
        }
    }

    fn value(&self, root: ExprId) -> Value {
        let exprs = &self.kernel.exprs;
        let (mut seen, mut stack) = (std::collections::BTreeSet::new(), vec![root]);
        while let Some(e) = stack.pop() {
            let operands: &[ExprId] = match &exprs[e.0 as usize] {
                Expr::Load { index, .. } => std::slice::from_ref(index),
                Expr::Cast { arg, .. } => std::slice::from_ref(arg),
                Expr::Map { args, .. } => args,
                _ => continue,
            };
            if seen.insert(e) {
                stack.extend(operands);
            }
        }
        // Operands have smaller ids: the order of the set is an order of evaluation.
        let instr = |e: ExprId| match &exprs[e.0 as usize] {
            Expr::Load { buf, index } => Instr::Load { to: e.0, buf: *buf, index: self.slot(*index) },
            Expr::Cast { to, arg } => Instr::Cast { to: e.0, dtype: *to, x: self.slot(*arg) },
            Expr::Map { fun, args } => {
                let dtype = self.kernel.dtype(args[args.len() - 1]);
                match args[..] {
                    [a] => Instr::Unary { to: e.0, fun: *fun, dtype, x: self.slot(a) },
                    [a, b] => Instr::Binary { to: e.0, fun: *fun, dtype, x: [self.slot(a), self.slot(b)] },
                    _ => Instr::Select { to: e.0, x: [self.slot(args[0]), self.slot(args[1]), self.slot(args[2])] },
                }
            }
            _ => unreachable!("leaves have no instruction"),
        };
        Value { code: seen.into_iter().map(instr).collect(), slot: self.slot(root) }
    }

    fn block(&self, body: &[Stmt]) -> Vec<Action> {
        let action = |s: &Stmt| match s {
            Stmt::For { var, lo, hi, body } => Action::For { var: self.var(*var), lo: self.value(*lo), hi: self.value(*hi), body: self.block(body) },
            Stmt::While { cond, body } => Action::While { cond: self.value(*cond), body: self.block(body) },
            Stmt::If { cond, then, otherwise } => Action::If { cond: self.value(*cond), then: self.block(then), otherwise: self.block(otherwise) },
            Stmt::Set { var, value } => Action::Set { var: self.var(*var), value: self.value(*value) },
            Stmt::Store { buf, index, value } => Action::Store { buf: *buf, index: self.value(*index), value: self.value(*value) },
            Stmt::Break => Action::Break,
            Stmt::Fail(f) => Action::Fail(*f),
        };
        body.iter().map(action).collect()
    }

    /// `windows` says for each parameter in which memory it lies and from which byte on.
    fn run(&self, sizes: &[i64], memory: &mut [Memory], windows: &[(usize, usize)]) -> Result<()> {
        let kernel = self.kernel;
        if sizes.len() != kernel.sizes as usize || windows.len() != kernel.params.len() {
            return Err(Error::internal(format!("kernel {}: {} sizes and {} buffers are given", kernel.name, sizes.len(), windows.len())));
        }
        let size = |s: &str| sizes.get(size_index(s)?).copied();
        let count = |d: &Dim| d.eval(&size).map_err(|s| Error::internal(format!("kernel {}: {s} is no size", kernel.name)));
        let mut frame = Frame { kernel, slots: self.slots.clone(), memory, buffers: vec![], scratch: vec![] };
        for (i, (p, (memory, start))) in kernel.params.iter().zip(windows).enumerate() {
            let elems = count(&p.elems)?;
            let end = usize::try_from(elems).ok().and_then(|n| n.checked_mul(p.dtype.bytes())).and_then(|n| n.checked_add(*start));
            if end.is_none_or(|end| end > frame.memory[*memory].read().len()) {
                return Err(Error::internal(format!("kernel {}: parameter {i} has fewer than {elems} elements", kernel.name)));
            }
            frame.buffers.push(Window { dtype: p.dtype, memory: *memory, start: *start, elems });
        }
        for (i, e) in kernel.exprs.iter().enumerate() {
            if let Expr::Size(s) = e {
                frame.slots[i] = Num::I(sizes[*s as usize]);
            }
        }
        let task = self.var(kernel.task) as usize;
        for i in 0..count(&kernel.tasks)? {
            frame.slots[task] = Num::I(i);
            frame.block(&self.body)?;
        }
        Ok(())
    }
}

struct Window {
    dtype: DType,
    memory: usize,
    start: usize,
    elems: i64,
}

/// A launch in progress.
struct Frame<'a> {
    kernel: &'a Kernel,
    slots: Vec<Num>,
    memory: &'a mut [Memory],
    buffers: Vec<Window>,
    /// Bytes of the element that is being stored.
    scratch: Vec<u8>,
}

/// Whether a block went through to its end, or a break is on its way to the loop.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
}

impl Frame<'_> {
    fn value(&mut self, v: &Value) -> Result<Num> {
        for i in &v.code {
            let (to, y) = match *i {
                Instr::Load { to, buf, index } => (to, self.load(buf, self.slots[index as usize].as_i64())?),
                Instr::Unary { to, fun, dtype, x } => (to, fun.eval(dtype, &[self.slots[x as usize]])),
                Instr::Binary { to, fun, dtype, x: [a, b] } => (to, binary(fun, dtype, self.slots[a as usize], self.slots[b as usize])),
                Instr::Select { to, x: [c, a, b] } => (to, self.slots[if self.slots[c as usize].as_bool() { a } else { b } as usize]),
                Instr::Cast { to, dtype, x } => (to, self.slots[x as usize].cast(dtype)),
            };
            self.slots[to as usize] = y;
        }
        Ok(self.slots[v.slot as usize])
    }

    /// The memory and the byte in it where an element lies.
    fn place(&self, what: &str, buf: u32, index: i64) -> Result<(usize, usize)> {
        let b = &self.buffers[buf as usize];
        if !(0..b.elems).contains(&index) {
            let name = &self.kernel.name;
            return Err(Error::internal(format!("kernel {name}: {what} index {index} of parameter {buf}, which has {} elements", b.elems)));
        }
        Ok((b.memory, b.start + index as usize * b.dtype.bytes()))
    }

    fn load(&self, buf: u32, index: i64) -> Result<Num> {
        let (m, at) = self.place("a load at", buf, index)?;
        let dtype = self.buffers[buf as usize].dtype;
        Ok(Num::read(dtype, &self.memory[m].read()[at..at + dtype.bytes()]))
    }

    fn store(&mut self, buf: u32, index: i64, value: Num) -> Result<()> {
        let (m, at) = self.place("a store at", buf, index)?;
        let dtype = self.buffers[buf as usize].dtype;
        let Memory::Ours(bytes) = &mut self.memory[m] else {
            return Err(Error::internal(format!("kernel {}: parameter {buf} is read-only memory", self.kernel.name)));
        };
        self.scratch.clear();
        value.write(dtype, &mut self.scratch);
        bytes[at..at + dtype.bytes()].copy_from_slice(&self.scratch);
        Ok(())
    }

    fn block(&mut self, body: &[Action]) -> Result<Flow> {
        for a in body {
            match a {
                Action::For { var, lo, hi, body } => {
                    let (lo, hi) = (self.value(lo)?.as_i64(), self.value(hi)?.as_i64());
                    for i in lo..hi {
                        self.slots[*var as usize] = Num::I(i);
                        if self.block(body)? == Flow::Break {
                            break;
                        }
                    }
                }
                Action::While { cond, body } => {
                    while self.value(cond)?.as_bool() {
                        if self.block(body)? == Flow::Break {
                            break;
                        }
                    }
                }
                Action::If { cond, then, otherwise } => {
                    let branch = if self.value(cond)?.as_bool() { then } else { otherwise };
                    if self.block(branch)? == Flow::Break {
                        return Ok(Flow::Break);
                    }
                }
                Action::Set { var, value } => self.slots[*var as usize] = self.value(value)?,
                Action::Store { buf, index, value } => {
                    let (index, value) = (self.value(index)?.as_i64(), self.value(value)?);
                    self.store(*buf, index, value)?;
                }
                Action::Break => return Ok(Flow::Break),
                Action::Fail(fault) => {
                    let what = match fault {
                        Fault::Index => "an index points outside",
                        Fault::Size => "a size computed from data does not fit",
                    };
                    return Err(Error::input(format!("kernel {}: {what}", self.kernel.name)));
                }
            }
        }
        Ok(Flow::On)
    }
}

/// [`ScalarFn::eval`], with the arithmetic that inner loops are made of decided first.
fn binary(fun: ScalarFn, dtype: DType, a: Num, b: Num) -> Num {
    match (fun, dtype, a, b) {
        (ScalarFn::Add, DType::I64, Num::I(a), Num::I(b)) => Num::I(a.wrapping_add(b)),
        (ScalarFn::Mul, DType::I64, Num::I(a), Num::I(b)) => Num::I(a.wrapping_mul(b)),
        (ScalarFn::Add, DType::F32, Num::F(a), Num::F(b)) => Num::F((a + b) as f32 as f64),
        (ScalarFn::Mul, DType::F32, Num::F(a), Num::F(b)) => Num::F((a * b) as f32 as f64),
        _ => fun.eval(dtype, &[a, b]),
    }
}
