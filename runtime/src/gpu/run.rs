//! Runs of a planned program: memory by the plan, launches in one recording where nothing has to be read back between them, kernels
//! that the device does not take on the host.

use super::{Device, Launch, within};
use crate::profile::Event;
use nnc_backends::gpu::plan::{DeviceKernel, Placed, Plan, launches};
use nnc_backends::weights::weight_bytes;
use nnc_backends::{abi, gpu};
use nnc_ir::dim::Dim;
use nnc_ir::eval::{Env, bind_types};
use nnc_ir::kernel::eval::eval_kernel;
use nnc_ir::kernel::{Access, BufferRef, Decode, Kernel, Place, Program, Step, size_index};
use nnc_ir::tensor::checked_elems;
use nnc_ir::{DType, Error, Report, Result, Tensor};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A program on some device.
pub trait Model: Send + Sync {
    fn plan(&self) -> &Plan;

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// As [`Model::run`], and tells when each launch ran, by the device's clock; copies are no part of that.
    fn run_traced(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Event>)>;

    /// Runs that follow on each other, the first of them on these inputs: of each of the pairs, an output is the next run's input. Other
    /// runs of the model wait until they are over.
    fn steps(&self, inputs: &[Tensor], again: &[(usize, usize)]) -> Result<Box<dyn Steps + '_>>;
}

/// Runs whose inputs and outputs stay with the device.
pub trait Steps {
    /// Gives an input, as long as it was, to the runs to come.
    fn fill(&mut self, input: usize, bytes: &[u8]) -> Result<()>;

    fn run(&mut self) -> Result<()>;

    /// What an input of the next run is.
    fn input(&mut self, i: usize) -> Result<Tensor>;

    /// An output of the last run.
    fn output(&mut self, i: usize) -> Result<Tensor>;
}

/// A program on a device. Runs go one at a time.
pub struct Runner<D: Device> {
    plan: Plan,
    state: Mutex<State<D>>,
}

struct State<D: Device> {
    // What the device made goes before it.
    /// Whole runs: two where inputs and outputs exchange their memory, of which it is the turn of one.
    recordings: [Option<Recorded<D>>; 2],
    turn: usize,
    kernels: Vec<Option<D::Kernel>>,
    /// The weights, the word for faults, the workspace, then inputs, outputs, blocks.
    memory: Vec<Option<D::Buffer>>,
    device: D,
}

/// A run, and the shapes of inputs that it is for.
struct Recorded<D: Device> {
    shapes: Vec<Vec<usize>>,
    recording: D::Recording,
}

const WEIGHTS: usize = 0;
const FAULTS: usize = 1;
const WORK: usize = 2;
const INPUTS: usize = 3;
/// Bytes behind what is asked for, so that windows end on whole words.
const SPARE: u64 = 64;

impl<D: Device> Runner<D> {
    /// Compiles all kernels for the device and uploads the weights.
    pub fn new(program: Program, device: D) -> Result<Runner<D>, Report> {
        let plan = gpu::plan::plan(program, device.limits())?;
        Ok(Runner::of(plan, device)?)
    }

    /// As [`Runner::new`], for a program that is planned for the device already.
    pub fn of(plan: Plan, mut device: D) -> Result<Runner<D>> {
        let mut kernels = vec![];
        for placed in &plan.kernels {
            kernels.push(match placed {
                Placed::Device(d) => Some(device.compile(&d.kernel)?),
                Placed::Host(_) => None,
            });
        }
        let slots = INPUTS + plan.program.inputs.len() + plan.program.outputs.len() + plan.program.heap as usize;
        let mut memory: Vec<Option<D::Buffer>> = (0..slots).map(|_| None).collect();
        let weights = device.allocate(weight_bytes(&plan.program.weights) + SPARE)?;
        for (at, t) in &plan.program.weights {
            device.upload(&weights, *at, &t.bytes())?;
        }
        let faults = device.allocate(4)?;
        device.upload(&faults, 0, &[0; 4])?;
        (memory[WEIGHTS], memory[FAULTS]) = (Some(weights), Some(faults));
        Ok(Runner { plan, state: Mutex::new(State { recordings: [None, None], turn: 0, kernels, memory, device }) })
    }
}

impl<D: Device> Runner<D> {
    /// Gives the device back.
    pub fn into_device(self) -> D {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).device
    }
}

impl<D: Device> Model for Runner<D> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.call(inputs, None).map(|(outputs, _)| outputs)
    }

    fn steps(&self, inputs: &[Tensor], again: &[(usize, usize)]) -> Result<Box<dyn Steps + '_>> {
        let p = &self.plan.program;
        for (output, input) in again {
            if p.outputs[*output].ty != p.inputs[*input].ty {
                return Err(Error::internal("an output takes the place of an input of another type"));
            }
        }
        let (mut run, shapes) = self.start(inputs, None)?;
        run.upload(inputs)?;
        // Other pairs may have been exchanged before.
        run.state.recordings = [None, None];
        Ok(Box::new(Chain { run, shapes, again: again.to_vec() }))
    }

    fn run_traced(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Event>)> {
        let launches = launches(&self.plan.program.steps);
        let index = launches.iter().enumerate().map(|(i, l)| (std::ptr::from_ref(*l).addr(), i)).collect();
        self.call(inputs, Some(Trace { index, now: Duration::ZERO, events: vec![] }))
    }
}

impl<D: Device> Runner<D> {
    /// A run on inputs of these types, when the device is free; and their shapes.
    fn start(&self, inputs: &[Tensor], trace: Option<Trace>) -> Result<(Run<'_, D>, Vec<Vec<usize>>)> {
        let p = &self.plan.program;
        let env = Env::default();
        bind_types(&p.inputs.iter().map(|p| (&*p.name, &p.ty)).collect::<Vec<_>>(), inputs, &env)?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = Run { plan: &self.plan, state, env, pending: vec![], submitted: false, trace };
        let work = run.count(&p.workspace)? as u64;
        run.reserve(WORK, work, false)?;
        Ok((run, inputs.iter().map(|t| t.shape().to_vec()).collect()))
    }

    fn call(&self, inputs: &[Tensor], trace: Option<Trace>) -> Result<(Vec<Tensor>, Vec<Event>)> {
        let (mut run, shapes) = self.start(inputs, trace)?;
        run.upload(inputs)?;
        run.all(shapes)?;
        let outputs = self.plan.program.outputs.iter().map(|port| run.port(port)).collect::<Result<_>>()?;
        Ok((outputs, run.trace.map_or(vec![], |t| t.events)))
    }
}

/// Steps of a run that is begun again and again.
struct Chain<'a, D: Device> {
    run: Run<'a, D>,
    shapes: Vec<Vec<usize>>,
    again: Vec<(usize, usize)>,
}

impl<D: Device> Steps for Chain<'_, D> {
    fn fill(&mut self, input: usize, bytes: &[u8]) -> Result<()> {
        let port = &self.run.plan.program.inputs[input];
        let n = checked_elems(port.ty.dtype, &self.shapes[input])? * port.ty.dtype.bytes();
        if n != bytes.len() {
            return Err(Error::internal(format!("`{}` has {n} bytes, not {}", port.name, bytes.len())));
        }
        self.run.write(INPUTS + input, bytes)
    }

    fn run(&mut self) -> Result<()> {
        self.run.submitted = false;
        self.run.all(self.shapes.clone())?;
        let outputs = INPUTS + self.run.plan.program.inputs.len();
        self.again.iter().for_each(|(output, input)| self.run.state.memory.swap(outputs + output, INPUTS + input));
        self.run.state.turn ^= 1;
        Ok(())
    }

    fn input(&mut self, i: usize) -> Result<Tensor> {
        let p = &self.run.plan.program.inputs[i];
        self.run.port(p)
    }

    fn output(&mut self, i: usize) -> Result<Tensor> {
        match self.again.iter().find(|(output, _)| *output == i) {
            Some((_, input)) => self.input(*input),
            None => self.run.port(&self.run.plan.program.outputs[i]),
        }
    }
}

fn no_memory() -> Error {
    Error::internal("a buffer of the device is used before it is there")
}

struct Run<'a, D: Device> {
    plan: &'a Plan,
    state: MutexGuard<'a, State<D>>,
    env: Env,
    /// Launches that wait for the next submission.
    pending: Vec<Pending>,
    /// Whether some launches went before those: what is recorded then is no whole run.
    submitted: bool,
    trace: Option<Trace>,
}

/// When launches ran.
struct Trace {
    /// The number of a launch among all of the program, by its address.
    index: HashMap<usize, usize>,
    /// The end of what was timed so far: the parts of a run follow on each other without what is between them.
    now: Duration,
    events: Vec<Event>,
}

impl Trace {
    fn add(&mut self, launch: usize, took: Duration) {
        let start = self.now;
        self.now += took;
        self.events.push(Event { launch, start, end: self.now });
    }
}

struct Pending {
    kernel: usize,
    /// The number of the launch, where the run is traced.
    launch: usize,
    /// Memory, first byte, bytes.
    windows: Vec<(usize, u64, u64)>,
    scalars: Vec<i32>,
    groups: u32,
}

/// Part of a memory: which, where a buffer starts in it, the element that is meant, and how many elements the buffer has.
struct Window {
    slot: usize,
    start: u64,
    offset: u64,
    elems: u64,
}

impl Window {
    /// The byte of the element that is meant, and how many there are from there on.
    fn rest(&self, bytes_of_element: u64) -> Result<(u64, u64)> {
        let skip = self.offset.checked_mul(bytes_of_element).and_then(|n| n.checked_add(self.start));
        match (skip, self.elems.checked_sub(self.offset)) {
            (Some(at), Some(elems)) => Ok((at, elems * bytes_of_element)),
            _ => Err(Error::internal(format!("element {} of a buffer of {}", self.offset, self.elems))),
        }
    }
}

impl<D: Device> Run<'_, D> {
    fn count(&self, d: &Dim) -> Result<usize> {
        usize::try_from(self.env.dim(d)?).map_err(|_| Error::input(format!("the size {d} is negative")))
    }

    /// Puts the inputs where the device finds them.
    fn upload(&mut self, inputs: &[Tensor]) -> Result<()> {
        for (i, t) in inputs.iter().enumerate() {
            self.reserve(INPUTS + i, t.byte_len() as u64, false)?;
            self.write(INPUTS + i, &t.bytes())?;
        }
        Ok(())
    }

    fn write(&mut self, slot: usize, bytes: &[u8]) -> Result<()> {
        let State { device, memory, .. } = &mut *self.state;
        device.upload(memory[slot].as_ref().ok_or_else(no_memory)?, 0, bytes)
    }

    /// Runs the whole program, on inputs of these shapes.
    fn all(&mut self, shapes: Vec<Vec<usize>>) -> Result<()> {
        let (plan, turn) = (self.plan, self.state.turn);
        let known = self.trace.is_none() && plan.is_static() && self.state.recordings[turn].as_ref().is_some_and(|r| r.shapes == shapes);
        if known {
            return self.submit_recorded();
        }
        self.steps(&plan.program.steps)?;
        self.flush(plan.is_static().then_some(shapes))
    }

    /// Makes a memory at least so large, where `keep` with its contents.
    fn reserve(&mut self, slot: usize, bytes: u64, keep: bool) -> Result<()> {
        let have = self.state.memory[slot].as_ref().map(D::bytes);
        if have.is_some_and(|have| have >= bytes) {
            return Ok(());
        }
        // What waits was promised the memory that there is.
        self.flush(None)?;
        self.state.recordings = [None, None];
        let State { device, memory, .. } = &mut *self.state;
        let new = device.allocate(if keep { bytes.max(2 * have.unwrap_or(0)) } else { bytes } + SPARE)?;
        if let (true, Some(old)) = (keep, &memory[slot]) {
            device.copy(old, &new, D::bytes(old).min(D::bytes(&new)))?;
        }
        memory[slot] = Some(new);
        Ok(())
    }

    fn window(&mut self, r: &BufferRef) -> Result<Window> {
        let p = &self.plan.program;
        let b = &p.buffers[r.buffer.0 as usize];
        let (elems, offset) = (self.count(&b.elems)?, self.count(&r.offset)? as u64);
        let bytes = (checked_elems(b.dtype, &[elems])? * b.dtype.bytes()) as u64;
        let outputs = INPUTS + p.inputs.len();
        let (slot, start) = match &b.place {
            Place::Weight { offset } => (WEIGHTS, *offset),
            Place::Input(i) => (INPUTS + *i as usize, 0),
            Place::Output(i) => (outputs + *i as usize, 0),
            Place::Work { offset } => (WORK, self.count(offset)? as u64),
            Place::Heap { slot } => (outputs + p.outputs.len() + *slot as usize, 0),
            Place::Unplanned => return Err(Error::internal(format!("buffer {} has no place", r.buffer.0))),
        };
        if matches!(b.place, Place::Output(_) | Place::Heap { .. }) {
            self.reserve(slot, bytes, true)?;
        }
        Ok(Window { slot, start, offset, elems: elems as u64 })
    }

    fn steps(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            match step {
                Step::Launch(l) => self.launch(l).map_err(|e| e.at(&l.loc))?,
                Step::Bind { symbol, from } => {
                    let mut bytes = [0; 8];
                    self.element(from, &mut bytes)?;
                    self.env.bind(symbol, i64::from_le_bytes(bytes))?;
                }
                Step::Check { a, b, at_most, what } => {
                    let (a, b) = (self.env.dim(a)?, self.env.dim(b)?);
                    if a != b && !(*at_most && a < b) {
                        return Err(Error::input(format!("{what}; they are {a} and {b}")));
                    }
                }
                Step::Decode(d) => self.decode(d)?,
                Step::If { cond, then, otherwise } => {
                    let branch = if self.holds(cond)? { then } else { otherwise };
                    self.steps(branch)?;
                }
                Step::While { cond, body } => {
                    while self.holds(cond)? {
                        self.steps(body)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Devices have no decoders: the file comes here, and the picture goes back.
    fn decode(&mut self, d: &Decode) -> Result<()> {
        let lost = || Error::internal("a file or a picture reaches beyond its buffer");
        let (bytes, room) = (self.count(&d.bytes)?, self.window(&d.file)?.rest(1)?.1);
        if bytes as u64 > room {
            return Err(lost());
        }
        let mut file = vec![0; bytes];
        self.element(&d.file, &mut file)?;
        let (to, new) = d.answer(&file);
        let w = self.window(to)?;
        let (at, room) = w.rest(self.plan.program.buffers[to.buffer.0 as usize].dtype.bytes() as u64)?;
        if room < new.len() as u64 {
            return Err(lost());
        }
        let State { device, memory, .. } = &mut *self.state;
        device.upload(memory[w.slot].as_ref().ok_or_else(no_memory)?, at, &new)
    }

    fn holds(&mut self, cond: &BufferRef) -> Result<bool> {
        let mut byte = [0];
        self.element(cond, &mut byte)?;
        Ok(byte[0] != 0)
    }

    /// Reads the element that a reference starts with, when all that was launched is done.
    fn element(&mut self, r: &BufferRef, bytes: &mut [u8]) -> Result<()> {
        let w = self.window(r)?;
        self.flush(None)?;
        let (at, _) = w.rest(bytes.len() as u64)?;
        let State { device, memory, .. } = &mut *self.state;
        device.download(memory[w.slot].as_ref().ok_or_else(no_memory)?, at, bytes)
    }

    fn launch(&mut self, l: &nnc_ir::kernel::Launch) -> Result<()> {
        let plan = self.plan;
        let k = &plan.program.kernels[l.kernel as usize];
        let sizes = l.sizes.iter().map(|d| self.env.dim(d)).collect::<Result<Vec<i64>>>()?;
        let windows = l.buffers.iter().map(|r| self.window(r)).collect::<Result<Vec<_>>>()?;
        let number = self.trace.as_ref().and_then(|t| t.index.get(&std::ptr::from_ref(l).addr()).copied()).unwrap_or_default();
        match &plan.kernels[l.kernel as usize] {
            Placed::Device(d) => self.on_device(l.kernel as usize, number, d, &sizes, &windows),
            Placed::Host(_) => {
                self.flush(None)?;
                let start = Instant::now();
                self.on_host(k, &sizes, &windows)?;
                self.trace.iter_mut().for_each(|t| t.add(number, start.elapsed()));
                Ok(())
            }
        }
    }

    fn on_device(&mut self, index: usize, launch: usize, d: &DeviceKernel, sizes: &[i64], windows: &[Window]) -> Result<()> {
        let k = &self.plan.program.kernels[index];
        let too_large = |what: &str| Error::limit(format!("kernel {}: {what} is more than a GPU's indices hold", k.name));
        let size = |s: &str| sizes.get(size_index(s)?).copied();
        let value = |d: &Dim| d.eval(&size).map_err(|s| Error::internal(format!("kernel {}: {s} is no size", k.name)));
        let narrow = |n: i64, what: &str| i32::try_from(n).map_err(|_| too_large(what));
        let groups = narrow(value(&d.groups)?, "its number of groups")?;
        if groups <= 0 {
            return Ok(());
        }
        let mut scalars = vec![];
        for (w, _) in windows.iter().zip(&d.offsets).filter(|(_, offset)| **offset) {
            scalars.push(narrow(w.offset as i64, "an offset")?);
        }
        for s in &d.scalars {
            scalars.push(narrow(value(s)?, "a size")?);
        }
        let mut views = vec![];
        for (w, p) in windows.iter().zip(&k.params) {
            narrow(w.elems as i64, "the length of a buffer")?;
            if !w.start.is_multiple_of(self.plan.device.alignment) {
                return Err(Error::internal(format!("kernel {}: a buffer starts at byte {}", k.name, w.start)));
            }
            let bytes = w.elems * p.dtype.bytes() as u64;
            if bytes > self.plan.device.buffer_bytes {
                let most = self.plan.device.buffer_bytes;
                return Err(Error::limit(format!("kernel {}: a buffer of {bytes} bytes; the device takes {most} at once", k.name)));
            }
            views.push((w.slot, w.start, bytes.next_multiple_of(4)));
        }
        if d.fails {
            views.push((FAULTS, 0, 4));
        }
        self.pending.push(Pending { kernel: index, launch, windows: views, scalars, groups: groups as u32 });
        Ok(())
    }

    /// What the device does not take: its operands come here, its results go back.
    fn on_host(&mut self, k: &Kernel, sizes: &[i64], windows: &[Window]) -> Result<()> {
        let State { device, memory, .. } = &mut *self.state;
        let mut buffers = vec![];
        for (w, p) in windows.iter().zip(&k.params) {
            let (at, bytes) = w.rest(p.dtype.bytes() as u64)?;
            let from = memory[w.slot].as_ref().ok_or_else(no_memory)?;
            within(D::bytes(from), at, bytes)?;
            let mut data = vec![0; bytes as usize];
            // What is only written comes too: kernels need not write all of it.
            device.download(from, at, &mut data)?;
            buffers.push(data);
        }
        eval_kernel(k, sizes, &mut buffers)?;
        for ((w, p), data) in windows.iter().zip(&k.params).zip(&buffers) {
            if p.access != Access::Read {
                device.upload(memory[w.slot].as_ref().ok_or_else(no_memory)?, w.rest(p.dtype.bytes() as u64)?.0, data)?;
            }
        }
        Ok(())
    }

    /// Runs what waits. `keep` is given where it is all of a run: it stays recorded for inputs of these shapes.
    fn flush(&mut self, keep: Option<Vec<Vec<usize>>>) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let state = &mut *self.state;
        let mut launches = vec![];
        for p in &pending {
            let kernel = state.kernels[p.kernel].as_ref().ok_or_else(no_memory)?;
            let buffer = |(slot, at, bytes): &(usize, u64, u64)| {
                let memory = state.memory[*slot].as_ref().ok_or_else(no_memory)?;
                within(D::bytes(memory), *at, *bytes)?;
                Ok((memory, *at, *bytes))
            };
            let buffers = p.windows.iter().map(buffer).collect::<Result<Vec<_>>>()?;
            launches.push(Launch { kernel, buffers, scalars: p.scalars.clone(), groups: p.groups });
        }
        let recording = state.device.record(&launches, self.trace.is_some())?;
        state.device.submit(&recording)?;
        if let Some(t) = &mut self.trace {
            let mut last = Duration::ZERO;
            for (p, end) in pending.iter().zip(state.device.ends(&recording)?) {
                t.add(p.launch, end.saturating_sub(last));
                last = end;
            }
        }
        // Where memory had to grow on the way, the next run is the one to keep.
        let turn = state.turn;
        state.recordings[turn] = keep.filter(|_| !self.submitted && self.trace.is_none()).map(|shapes| Recorded { shapes, recording });
        self.submitted = true;
        self.faults()
    }

    fn submit_recorded(&mut self) -> Result<()> {
        let State { device, recordings, turn, .. } = &mut *self.state;
        if let Some(r) = &recordings[*turn] {
            device.submit(&r.recording)?;
        }
        self.faults()
    }

    /// The error that a kernel left.
    fn faults(&mut self) -> Result<()> {
        if !self.plan.kernels.iter().any(|k| matches!(k, Placed::Device(d) if d.fails)) {
            return Ok(());
        }
        let State { device, memory, .. } = &mut *self.state;
        let word = memory[FAULTS].as_ref().ok_or_else(no_memory)?;
        let mut code = [0; 4];
        device.download(word, 0, &mut code)?;
        let code = i32::from_le_bytes(code);
        if code == abi::OK {
            return Ok(());
        }
        device.upload(word, 0, &[0; 4])?;
        let text = usize::try_from(code).ok().and_then(|c| abi::ERROR_TEXTS.get(c)).copied().unwrap_or("a kernel failed");
        Err(Error::input(text))
    }

    /// What is there of an input or an output.
    fn port(&mut self, port: &nnc_ir::kernel::Port) -> Result<Tensor> {
        let shape = self.env.shape(&port.ty.shape)?;
        let dtype: DType = port.ty.dtype;
        let bytes = checked_elems(dtype, &shape)? * dtype.bytes();
        let w = self.window(&BufferRef { buffer: port.buffer, offset: Dim::Const(0) })?;
        let State { device, memory, .. } = &mut *self.state;
        let from = memory[w.slot].as_ref().ok_or_else(no_memory)?;
        within(D::bytes(from), w.start, bytes as u64)?;
        let mut data = vec![0; bytes];
        device.download(from, w.start, &mut data)?;
        Tensor::from_bytes(dtype, shape, data.into())
    }
}
