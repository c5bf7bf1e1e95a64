//! Steps of a program as commands: 32-bit words that the driver walks.

use super::Ref;
use super::sizes::{Operation, Sizes, Span};
use crate::abi;
use crate::weights::weight_bytes;
use nnc_ir::dim::Dim;
use nnc_ir::kernel::{Access, BufferId, BufferRef, Decode, Kernel, Launch, Place, Program, Step, size_index};
use nnc_ir::{Error, Result};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The first word of a command; what follows it, word by word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Command {
    /// Ends the run.
    End,
    /// number of the launch, kernel, tasks (ref), work (ref), number of arguments, then for each: base, byte offset or size (ref).
    Launch,
    /// slot, base, byte offset (ref), first and last operation that follow from it.
    Bind,
    /// base, byte offset (ref), target: jumps there unless the `bool` holds.
    Unless,
    /// target.
    Jump,
    /// output, bytes (ref): allocates it if it has no data yet.
    Output,
    /// first and last of the operations that check sizes.
    Check,
    /// block, bytes (ref): makes it at least that large, with its contents.
    Reserve,
    /// bytes of a file (ref), channels, then base and byte offset of the file, of the picture's sizes, of its samples (0: only the sizes).
    Decode,
}

impl Command {
    /// All but the first, in order.
    pub const REST: [Command; 8] =
        [Command::Launch, Command::Bind, Command::Unless, Command::Jump, Command::Output, Command::Check, Command::Reserve, Command::Decode];
}

/// Base 0 is address 0, for arguments that are sizes; then the weights, the workspace, the number of threads (an argument that is
/// this number has offset 0), the inputs, the outputs, the blocks.
pub const BASE_ZERO: u32 = 0;
pub const BASE_WEIGHTS: u32 = 1;
pub const BASE_WORK: u32 = 2;
pub const BASE_THREADS: u32 = 3;
pub const BASE_INPUTS: u32 = 4;

/// An argument behind a kernel's own sizes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Extra {
    /// A dimension over those sizes.
    Size(Dim),
    /// How many threads share the tasks of a launch.
    Threads,
}

/// What a kernel's implementation asks of its launches beside the buffers and sizes of the kernel.
#[derive(Clone, Debug)]
pub struct Form {
    /// Number of tasks over the kernel's sizes `s0`, `s1`...
    pub tasks: Dim,
    /// Arguments behind the kernel's own sizes.
    pub extra: Vec<Extra>,
    /// Rough number of scalar operations in a launch, over the kernel's sizes: whether threads are worth it.
    pub work: Dim,
}

/// A compiled program: everything but the kernels' code.
pub struct Tables {
    pub constants: Vec<i64>,
    /// Slots that the plan uses, and all of them.
    pub plan_slots: usize,
    pub slots: usize,
    pub operations: Vec<super::sizes::Operation>,
    /// Operations of nnc_plan; nnc_run goes on to `run.end`.
    pub plan: Span,
    pub run: Span,
    pub commands: Vec<u32>,
    /// For each output: dtype, rank, then one reference a dimension, those that only the run knows being the constant -1.
    pub planned_shapes: Vec<u32>,
    /// The same with the run's references; absent if the plan knows all.
    pub final_shapes: Option<Vec<u32>>,
    /// Words of the longest argument list.
    pub max_args: usize,
    /// Bytes of the body of the workspace, behind its head.
    pub body_bytes: Ref,
    /// Texts of the model's own error codes.
    pub texts: Vec<String>,
    pub weight_bytes: u64,
    pub inputs: usize,
    pub outputs: usize,
    /// Number of blocks that the run allocates.
    pub blocks: usize,
}

struct Encoder<'a> {
    p: &'a Program,
    forms: &'a [Form],
    sizes: Sizes,
    words: Vec<u32>,
    /// Positions of span operands, filled in when all operations are known; what is bound there, and all that has a value then.
    spans: Vec<(usize, Arc<str>, BTreeSet<Arc<str>>)>,
    /// Checks at this place in the words, to be put among the operations in the end.
    checks: Vec<(usize, Operation)>,
    /// How many branches and loops are open.
    depth: u32,
    /// Symbols that the run has bound at this point.
    bound: BTreeSet<Arc<str>>,
    /// Outputs that are sure to have memory at this point.
    allocated: Vec<bool>,
    max_args: usize,
    /// Launches so far.
    launched: u32,
}

/// Encodes a program whose kernels have the given forms; the native functions are numbered as the kernels.
pub fn encode(p: &Program, forms: &[Form]) -> Result<Tables> {
    let mut sizes = Sizes::default();
    sizes.inputs(p)?;
    for s in bound_symbols(&p.steps) {
        sizes.bind(&s);
    }
    check_sizes(p, &p.steps, &mut sizes)?;
    let (spans, bound, allocated) = (vec![], BTreeSet::new(), vec![false; p.outputs.len()]);
    let mut e = Encoder { p, forms, sizes, words: vec![], spans, checks: vec![], depth: 0, bound, allocated, max_args: 0, launched: 0 };
    let body_bytes = e.sizes.dim(&p.workspace)?;
    if e.sizes.is_bound_late(body_bytes) {
        return Err(Error::internal("the size of the workspace depends on data"));
    }
    let (planned_shapes, final_shapes) = e.shapes()?;
    let plan = Span { start: 0, end: e.sizes.operations.len() as u32 };
    let plan_slots = e.sizes.slots;

    e.sizes.inputs_given(p)?;
    for (i, port) in p.outputs.iter().enumerate() {
        if !matches!(p.buffers[port.buffer.0 as usize].place, Place::Output(o) if o as usize == i) {
            return Err(Error::internal(format!("output {i} `{}` has no buffer of its own", port.name)));
        }
        let bytes = e.sizes.dim(&port.ty.bytes())?;
        if !e.sizes.is_bound_late(bytes) {
            e.output(i)?;
        }
    }
    e.steps(&p.steps)?;
    for i in 0..p.outputs.len() {
        e.output(i)?;
    }
    e.words.push(Command::End as u32);
    let run = Span { start: plan.end, end: e.sizes.operations.len() as u32 };
    for (at, symbol, bound) in std::mem::take(&mut e.spans) {
        let span = e.sizes.follow(&symbol, &bound);
        (e.words[at], e.words[at + 1]) = (span.start, span.end);
    }
    for (at, check) in std::mem::take(&mut e.checks) {
        let start = e.sizes.operations.len() as u32;
        e.sizes.operations.push(check);
        (e.words[at], e.words[at + 1]) = (start, start + 1);
    }
    Ok(Tables {
        plan_slots,
        slots: e.sizes.slots,
        plan,
        run,
        commands: e.words,
        planned_shapes,
        final_shapes,
        max_args: e.max_args,
        body_bytes,
        weight_bytes: weight_bytes(&p.weights),
        inputs: p.inputs.len(),
        outputs: p.outputs.len(),
        blocks: p.heap as usize,
        constants: e.sizes.constants,
        operations: e.sizes.operations,
        texts: e.sizes.texts,
    })
}

/// All launches, in program order.
pub fn launches(steps: &[Step]) -> Vec<&Launch> {
    let mut out = vec![];
    walk(steps, &mut |s| {
        if let Step::Launch(l) = s {
            out.push(l);
        }
    });
    out
}

fn bound_symbols(steps: &[Step]) -> Vec<Arc<str>> {
    let mut out = vec![];
    walk(steps, &mut |s| {
        if let Step::Bind { symbol, .. } = s {
            out.push(symbol.clone());
        }
    });
    out
}

fn walk<'a>(steps: &'a [Step], f: &mut dyn FnMut(&'a Step)) {
    for s in steps {
        f(s);
        match s {
            Step::If { then, otherwise, .. } => {
                walk(then, f);
                walk(otherwise, f);
            }
            Step::While { body, .. } => walk(body, f),
            Step::Launch(_) | Step::Bind { .. } | Step::Check { .. } | Step::Decode(_) => {}
        }
    }
}

/// Sizes that follow from the inputs must not be negative: a window may be larger than what it slides over.
fn check_sizes(p: &Program, steps: &[Step], sizes: &mut Sizes) -> Result<()> {
    for l in launches(steps) {
        let kernel = p.kernels.get(l.kernel as usize);
        for (_, s) in l.sizes.iter().enumerate().filter(|(i, _)| kernel.is_none_or(|k| is_length(k, *i))) {
            sizes.require_size(s, || format!("the inputs are too small: in `{}` the size {s} is negative", l.name))?;
        }
    }
    // Those in branches and loops hold only where these are run.
    for s in steps {
        if let Step::Check { a, b, at_most, what } = s
            && !sizes.is_late(&[a, b])?
            && let Some(check) = sizes.relation(a, b, *at_most, what)?
        {
            sizes.operations.push(check);
        }
    }
    for o in &p.outputs {
        for (axis, d) in o.ty.shape.iter().enumerate() {
            sizes.require_output(d, || format!("the inputs are too small: output `{}`, axis {axis} ({d}) is negative", o.name))?;
        }
    }
    Ok(())
}

/// Whether a kernel's size is a length: part of how large its parameters are. Others may be offsets, which can be negative.
fn is_length(kernel: &Kernel, size: usize) -> bool {
    let shapes = kernel.origin.iter().flat_map(|o| o.x.iter().chain(&o.y)).flat_map(|t| &t.shape);
    let mut found = false;
    kernel
        .params
        .iter()
        .map(|p| &p.elems)
        .chain(shapes)
        .chain([&kernel.tasks])
        .for_each(|d| d.symbols(&mut |s| found |= size_index(s) == Some(size)));
    found
}

/// A dimension over a kernel's sizes as the launch has them.
pub fn in_program(d: &Dim, l: &Launch) -> Dim {
    d.substitute(&|s| l.sizes.get(s.strip_prefix('s')?.parse::<usize>().ok()?).cloned())
}

impl Encoder<'_> {
    fn form(&self, l: &Launch) -> Result<&'_ Form> {
        self.forms.get(l.kernel as usize).ok_or_else(|| Error::internal(format!("`{}` launches kernel {}, which is not there", l.name, l.kernel)))
    }

    fn shapes(&mut self) -> Result<(Vec<u32>, Option<Vec<u32>>)> {
        let (mut planned, mut last, mut any_late) = (vec![], vec![], false);
        let unknown = self.sizes.constant(-1);
        for port in &self.p.outputs {
            for words in [&mut planned, &mut last] {
                words.extend([port.ty.dtype.abi_code() as u32, port.ty.rank() as u32]);
            }
            for d in &port.ty.shape {
                let r = self.sizes.dim(d)?;
                let late = self.sizes.is_bound_late(r);
                any_late |= late;
                planned.push(if late { unknown.0 } else { r.0 });
                last.push(r.0);
            }
        }
        Ok((planned, any_late.then_some(last)))
    }

    /// Base and byte offset of an operand.
    fn place(&mut self, r: &BufferRef) -> Result<[u32; 2]> {
        let b = self.p.buffers.get(r.buffer.0 as usize).ok_or_else(|| Error::internal(format!("buffer {} is not there", r.buffer.0)))?;
        let within = r.offset.clone() * Dim::from(b.dtype.bytes());
        let (base, start) = match &b.place {
            Place::Input(i) if (*i as usize) < self.p.inputs.len() => (BASE_INPUTS + i, Dim::Const(0)),
            Place::Output(o) if (*o as usize) < self.p.outputs.len() => (BASE_INPUTS + self.p.inputs.len() as u32 + o, Dim::Const(0)),
            Place::Weight { offset } => (BASE_WEIGHTS, Dim::Const(i64::try_from(*offset).map_err(|_| Error::limit("weights beyond 2^63 bytes"))?)),
            Place::Work { offset } => (BASE_WORK, offset.clone()),
            Place::Heap { slot } if *slot < self.p.heap => (BASE_INPUTS + (self.p.inputs.len() + self.p.outputs.len()) as u32 + slot, Dim::Const(0)),
            place => return Err(Error::internal(format!("buffer {} is at {place:?}", r.buffer.0))),
        };
        Ok([base, self.sizes.dim(&(start + within))?.0])
    }

    /// Makes sure that an output has memory from here on.
    fn output(&mut self, i: usize) -> Result<()> {
        if !std::mem::replace(&mut self.allocated[i], true) {
            let bytes = self.sizes.dim(&self.p.outputs[i].ty.bytes())?;
            self.words.extend([Command::Output as u32, i as u32, bytes.0]);
        }
        Ok(())
    }

    /// Makes sure that a buffer has memory where it is used: an output whenever it may have none, a block when it is written to.
    fn touch(&mut self, b: BufferId, access: Access) -> Result<()> {
        let Some(buffer) = self.p.buffers.get(b.0 as usize) else { return Ok(()) };
        match buffer.place {
            Place::Output(o) if (o as usize) < self.p.outputs.len() => self.output(o as usize),
            Place::Heap { slot } if access != Access::Read => {
                let bytes = self.sizes.dim(&(buffer.elems.clone() * Dim::from(buffer.dtype.bytes())))?;
                self.words.extend([Command::Reserve as u32, slot, bytes.0]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn steps(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|s| self.step(s))
    }

    fn step(&mut self, s: &Step) -> Result<()> {
        match s {
            Step::Launch(l) => self.launch(l),
            Step::Bind { symbol, from } => {
                let slot = self.sizes.bind(symbol);
                let [base, offset] = self.place(from)?;
                self.words.extend([Command::Bind as u32, slot.0 >> 1, base, offset]);
                self.bound.insert(symbol.clone());
                self.spans.push((self.words.len(), symbol.clone(), self.bound.clone()));
                self.words.extend([0, 0]);
                Ok(())
            }
            Step::Check { a, b, at_most, what } => {
                if (self.depth > 0 || self.sizes.is_late(&[a, b])?)
                    && let Some(check) = self.sizes.relation(a, b, *at_most, what)?
                {
                    self.words.extend([Command::Check as u32, 0, 0]);
                    self.checks.push((self.words.len() - 2, check));
                }
                Ok(())
            }
            Step::Decode(Decode { file, bytes, channels, sizes, samples }) => {
                samples.iter().try_for_each(|to| self.touch(to.buffer, Access::Write))?;
                let nowhere = [BASE_ZERO, self.sizes.constant(0).0];
                let (file, sizes) = (self.place(file)?, self.place(sizes)?);
                let samples = samples.as_ref().map_or(Ok(nowhere), |to| self.place(to))?;
                self.words.extend([Command::Decode as u32, self.sizes.dim(bytes)?.0, abi::channels(*channels)]);
                self.words.extend([file, sizes, samples].concat());
                Ok(())
            }
            Step::If { cond, then, otherwise } => {
                let to_else = self.unless(cond)?;
                let before = self.bound.clone();
                self.nested(then)?;
                let after = std::mem::replace(&mut self.bound, before);
                self.words.extend([Command::Jump as u32, 0]);
                let to_end = self.words.len() - 1;
                self.words[to_else] = self.words.len() as u32;
                self.nested(otherwise)?;
                self.bound.retain(|s| after.contains(s));
                self.words[to_end] = self.words.len() as u32;
                Ok(())
            }
            Step::While { cond, body } => {
                let head = self.words.len() as u32;
                let to_end = self.unless(cond)?;
                let before = self.bound.clone();
                self.nested(body)?;
                self.bound = before;
                self.words.extend([Command::Jump as u32, head]);
                self.words[to_end] = self.words.len() as u32;
                Ok(())
            }
        }
    }

    /// Steps that may not run: outputs allocated in them may be missing afterwards.
    fn nested(&mut self, steps: &[Step]) -> Result<()> {
        let before = self.allocated.clone();
        self.depth += 1;
        self.steps(steps)?;
        self.depth -= 1;
        self.allocated = before;
        Ok(())
    }

    /// A jump if the condition does not hold; returns the position of its target.
    fn unless(&mut self, cond: &BufferRef) -> Result<usize> {
        let [base, offset] = self.place(cond)?;
        self.words.extend([Command::Unless as u32, base, offset, 0]);
        Ok(self.words.len() - 1)
    }

    fn launch(&mut self, l: &Launch) -> Result<()> {
        let form = self.form(l)?.clone();
        let kernel = &self.p.kernels[l.kernel as usize];
        if l.buffers.len() != kernel.params.len() || l.sizes.len() != kernel.sizes as usize {
            return Err(Error::internal(format!(
                "`{}` launches {} with {} buffers and {} sizes",
                l.name,
                kernel.name,
                l.buffers.len(),
                l.sizes.len()
            )));
        }
        for (b, param) in l.buffers.iter().zip(&kernel.params) {
            self.touch(b.buffer, param.access)?;
        }
        let mut args = vec![];
        for b in &l.buffers {
            args.extend(self.place(b)?);
        }
        for s in &l.sizes {
            args.extend([BASE_ZERO, self.sizes.dim(s)?.0]);
        }
        for e in &form.extra {
            let (base, d) = match e {
                Extra::Size(d) => (BASE_ZERO, in_program(d, l)),
                Extra::Threads => (BASE_THREADS, Dim::Const(0)),
            };
            args.extend([base, self.sizes.dim(&d)?.0]);
        }
        let tasks = self.sizes.dim(&in_program(&form.tasks, l))?;
        let work = self.sizes.dim(&in_program(&form.work, l))?;
        self.max_args = self.max_args.max(args.len() / 2);
        self.words.extend([Command::Launch as u32, self.launched, l.kernel, tasks.0, work.0, args.len() as u32 / 2]);
        self.words.extend(args);
        self.launched += 1;
        Ok(())
    }
}

impl Tables {
    /// Bytes of the workspace's head: slots, bases, the blocks' capacities, the status word and the arguments of a launch.
    pub fn head(&self) -> Head {
        let bases = 8 * self.slots;
        let capacities = bases + 8 * (BASE_INPUTS as usize + self.inputs + self.outputs + self.blocks);
        // Arguments are shared by all threads that run a launch: they start a cache line, after the status word that ends one.
        let args = (capacities + 8 * self.blocks + 8).next_multiple_of(abi::ALIGN);
        Head {
            bases: bases as i64,
            capacities: capacities as i64,
            args: args as i64,
            bytes: (args + 8 * self.max_args).next_multiple_of(abi::ALIGN) as i64,
        }
    }
}

/// Byte offsets in the workspace. Slots are at 0; the status word is before the arguments.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub bases: i64,
    pub capacities: i64,
    pub args: i64,
    pub bytes: i64,
}

/// A table of words as it lies in memory.
pub fn bytes_of(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
