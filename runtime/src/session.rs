//! A model that is ready to run, whatever runs it.

use crate::abi;
use crate::describe::{Description, Port, Size};
use crate::gpu::run::Model;
use crate::library::Library;
use crate::memory::Aligned;
use crate::parts::Parts;
use crate::profile::{Event, Launch};
use crate::threads::Pool;
use nnc_backends::gpu::plan::{Plan, launches};
use nnc_ir::eval::image::decode as picture;
use nnc_ir::kernel::size_index;
use nnc_ir::ops::image::Channels;
use nnc_ir::tensor::checked_elems;
use nnc_ir::{DType, Dim, Error, Graph, Result, Tensor};
use std::cell::RefCell;
use std::ffi::c_void;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A model that is ready to run. May be called from several threads at once; the threads of the pool then serve one of them at a
/// time and the others compute alone.
pub struct Session {
    description: Description,
    engine: Engine,
    pool: Arc<Pool>,
    /// Memory of earlier runs, one block for each run that was under way at once.
    spare: Mutex<Vec<Aligned>>,
    weights: Option<bytes::Bytes>,
}

enum Engine {
    Interpreter(Box<Graph>),
    Native(Box<Library>),
    Gpu(Box<dyn Model>),
    /// Compiled parts and parts that the host computes.
    Parts(Box<Parts>),
}

impl Session {
    /// Runs on the reference interpreter.
    pub fn interpreter(graph: Graph) -> Session {
        Session::new(Description::of_graph(&graph), Engine::Interpreter(Box::new(graph)), Arc::new(Pool::new(1)))
    }

    /// Runs on a GPU a model that looks like this from outside.
    pub fn gpu(description: Description, model: Box<dyn Model>) -> Session {
        Session::new(description, Engine::Gpu(model), Arc::new(Pool::new(1)))
    }

    /// Runs a model of which the host computes a part.
    pub(crate) fn parts(parts: Parts) -> Session {
        Session::new(Description::of_graph(parts.graph()), Engine::Parts(Box::new(parts)), Arc::new(Pool::new(1)))
    }

    /// Runs compiled code, on a pool that other sessions may share.
    pub fn native(library: Library, pool: Arc<Pool>) -> Session {
        Session::new(library.description().clone(), Engine::Native(Box::new(library)), pool)
    }

    /// Opens a compiled library. Constants that it does not hold are mapped from the file beside it, with the suffix `.weights`.
    pub fn open(path: &Path, prefix: &str, pool: Arc<Pool>) -> Result<Session> {
        Session::open_with_weights(path, prefix, None, pool)
    }

    /// As [`Session::open`], with another place for the weights file.
    pub fn open_with_weights(path: &Path, prefix: &str, weights: Option<&Path>, pool: Arc<Pool>) -> Result<Session> {
        let mut session = Session::native(Library::open(path, prefix)?, pool);
        if session.description.external_weights {
            let file = weights.map_or_else(|| path.with_extension("weights"), Path::to_path_buf);
            session.weights = Some(nnc_frontend::onnx::map(&file)?);
        }
        Ok(session)
    }

    fn new(description: Description, engine: Engine, pool: Arc<Pool>) -> Session {
        Session { description, engine, pool, spare: Mutex::default(), weights: None }
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    pub fn inputs(&self) -> &[Port] {
        &self.description.inputs
    }

    pub fn outputs(&self) -> &[Port] {
        &self.description.outputs
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// What became of the kernels, where that is known here: on a GPU.
    pub fn plan(&self) -> Option<&Plan> {
        self.model().map(Model::plan)
    }

    /// The model on a GPU, where that is the engine.
    pub(crate) fn model(&self) -> Option<&dyn Model> {
        if let Engine::Gpu(model) = &self.engine { Some(&**model) } else { None }
    }

    /// Whether [`Session::bind`] is there: a run can be sized beforehand.
    pub fn binds(&self) -> bool {
        matches!(self.engine, Engine::Native(_))
    }

    /// The size that a symbol has in these inputs.
    pub fn size_of(&self, symbol: &str, inputs: &[Option<Tensor>]) -> Option<f64> {
        let at = |(port, t): (&Port, &Option<Tensor>)| {
            let k = port.shape.iter().position(|s| matches!(s, Size::Symbolic(name) if &**name == symbol))?;
            t.as_ref()?.shape().get(k).map(|d| *d as f64)
        };
        self.inputs().iter().zip(inputs).find_map(at)
    }

    /// Floating-point operations of a run on these inputs, where the library says.
    pub fn flops(&self, inputs: &[Option<Tensor>]) -> Option<f64> {
        self.description.flops.as_ref()?.eval(&|symbol| self.size_of(symbol, inputs))
    }

    /// As [`Session::run_some`] on a GPU, and tells when each launch ran by the device's clock. Other models are timed when they are
    /// bound: [`Bound::run_traced`].
    pub fn run_traced(&self, inputs: &[Option<Tensor>]) -> Result<(Vec<Tensor>, Vec<Event>)> {
        match &self.engine {
            Engine::Gpu(model) => model.run_traced(&self.all_given(inputs)?),
            _ => Err(Error::unsupported("only a GPU tells when launches ran without being bound")),
        }
    }

    /// What the events of [`Session::run_traced`] and [`Bound::run_traced`] are about. An error for the interpreter, and for libraries that do not say.
    pub fn launches(&self) -> Result<Vec<Launch>> {
        match &self.engine {
            Engine::Interpreter(_) => Err(Error::unsupported("the interpreter launches no kernels")),
            Engine::Gpu(model) => Ok(of_plan(model.plan())),
            Engine::Parts(_) => Err(Error::unsupported("only a model that is compiled as a whole says what it launches")),
            Engine::Native(library) => library.launches(),
        }
    }

    /// Runs the model on one tensor per input, in order; gives one per output. A wrong number, element type or shape is an error
    /// (E0301) before anything is computed.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let given: Vec<Option<Tensor>> = inputs.iter().cloned().map(Some).collect();
        self.run_some(&given)
    }

    /// As [`Session::run`]; `None` is an input that is not given.
    pub fn run_some(&self, inputs: &[Option<Tensor>]) -> Result<Vec<Tensor>> {
        match &self.engine {
            Engine::Interpreter(graph) => {
                let inputs: Vec<Tensor> = self.all_given(inputs)?;
                nnc_ir::eval::run(graph, &inputs, &nnc_ir::eval::Env::default())
            }
            Engine::Gpu(model) => model.run(&self.all_given(inputs)?),
            Engine::Parts(parts) => parts.run(&self.all_given(inputs)?),
            Engine::Native(_) => {
                let mut bound = self.bind(inputs)?;
                bound.run()?;
                bound.into_outputs()
            }
        }
    }

    fn all_given(&self, inputs: &[Option<Tensor>]) -> Result<Vec<Tensor>> {
        self.check(inputs)?;
        let missing = |port: &Port| Error::input(format!("the input `{}` is not given", port.name));
        inputs.iter().zip(self.inputs()).map(|(t, p)| t.clone().ok_or_else(|| missing(p))).collect()
    }

    /// Number, element types and shapes of the inputs; a symbol has one value.
    fn check(&self, inputs: &[Option<Tensor>]) -> Result<()> {
        let ports = self.inputs();
        if inputs.len() != ports.len() {
            return Err(Error::input(format!("the model takes {} inputs, {} are given", ports.len(), inputs.len())));
        }
        let mut sizes: Vec<(&str, i64, &str)> = vec![];
        for (t, port) in inputs.iter().zip(ports) {
            let Some(t) = t else { continue };
            let wrong = |why: String| Error::input(format!("the input `{}` is {}, {} is given{why}", port.name, port.type_text(), t.ty()));
            if t.dtype() != port.dtype || t.shape().len() != port.shape.len() {
                return Err(wrong(String::new()));
            }
            for (got, want) in t.shape().iter().zip(&port.shape) {
                let got = *got as i64;
                match want {
                    Size::Known(n) if *n != got => return Err(wrong(String::new())),
                    Size::Known(_) => {}
                    Size::Symbolic(s) => match sizes.iter().find(|(name, ..)| *name == &**s) {
                        Some((_, n, at)) if *n != got => return Err(wrong(format!(" and {s} is {n} in `{at}`"))),
                        Some(_) => {}
                        None => sizes.push((s, got, &port.name)),
                    },
                }
            }
        }
        Ok(())
    }

    /// Sizes and allocates everything for these inputs, so that [`Bound::run`] only computes. Compiled models only.
    pub fn bind(&self, inputs: &[Option<Tensor>]) -> Result<Bound<'_>> {
        let Engine::Native(library) = &self.engine else {
            return Err(Error::unsupported("only a model that is compiled as a whole can be sized before a run"));
        };
        self.check(inputs)?;
        let absent: Vec<&str> = self.inputs().iter().zip(inputs).filter(|(_, t)| t.is_none()).map(|(p, _)| &*p.name).collect();
        let inputs = self.inputs().iter().zip(inputs).map(|(port, t)| Argument::input(port, t.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut bound = Bound { session: self, library, inputs, outputs: vec![], sized: vec![], work: Aligned::new(0)?, work_bytes: 0 };
        // Some models can do without some inputs; where this one cannot, that is what is wrong.
        let missing = |e: Error| Error::input(format!("the model needs the input `{}`, which is not given", absent.join("`, `"))).note(e.message());
        bound.plan().map_err(|e| if absent.is_empty() { e } else { missing(e) })?;
        Ok(bound)
    }
}

/// Launches on a device and on the host, and the bytes of their buffers.
fn of_plan(plan: &Plan) -> Vec<Launch> {
    let p = &plan.program;
    let by: Vec<&'static str> = plan.selections().iter().map(|s| s.implementation).collect();
    let one = |l: &nnc_ir::kernel::Launch| {
        let k = &p.kernels[l.kernel as usize];
        let sizes = |s: &str| l.sizes.get(size_index(s)?).cloned();
        let bytes = k.params.iter().map(|q| q.elems.substitute(&sizes) * Dim::from(q.dtype.bytes()));
        Launch {
            name: l.name.to_string(),
            kernel: k.name.to_string(),
            implementation: by[l.kernel as usize].to_string(),
            flops: Size::of(&l.flops),
            bytes: Size::of(&bytes.fold(Dim::Const(0), |sum, b| sum + b)),
        }
    };
    launches(&p.steps).into_iter().map(one).collect()
}

/// A tensor as the C ABI takes it.
struct Argument {
    dtype: DType,
    shape: Vec<i64>,
    data: Data,
}

enum Data {
    /// Not given, or to be allocated by the run.
    None,
    Input(bytes::Bytes),
    /// Ours to write: an output, or an input that was one ([`Bound::exchange`]).
    Output(Aligned),
}

/// Room for the shape of an output whose rank only the library knows.
const MAX_RANK: usize = 16;

impl Argument {
    fn input(port: &Port, t: Option<&Tensor>) -> Result<Argument> {
        let Some(t) = t else { return Ok(Argument { dtype: port.dtype, shape: vec![0; port.shape.len()], data: Data::None }) };
        if let Some(element) = t.splat_element() {
            // Written out here, where memory that is not there is an error.
            let mut block = Aligned::new(t.byte_len())?;
            if element.iter().any(|b| *b != 0) {
                block.as_mut().chunks_exact_mut(element.len()).for_each(|c| c.copy_from_slice(element));
            }
            return Ok(Argument::given(t, bytes::Bytes::from_owner(block)));
        }
        let data = t.bytes();
        // Tensors promise no alignment (they may be windows into a file); compiled code expects that of the element.
        let data = if data.as_ptr().align_offset(t.dtype().bytes()) == 0 { data } else { bytes::Bytes::from_owner(Aligned::copy_of(&data)?) };
        Ok(Argument::given(t, data))
    }

    fn given(t: &Tensor, data: bytes::Bytes) -> Argument {
        Argument { dtype: t.dtype(), shape: t.shape().iter().map(|d| *d as i64).collect(), data: Data::Input(data) }
    }

    /// The tensor that a run has written to `block`.
    fn output(&self, block: bytes::Bytes) -> Result<Tensor> {
        let negative = |_| Error::internal("the library left an output without a shape");
        let shape = self.shape.iter().map(|d| usize::try_from(*d)).collect::<Result<Vec<_>, _>>().map_err(negative)?;
        let n = checked_elems(self.dtype, &shape)? * self.dtype.bytes();
        if n > block.len() {
            return Err(Error::internal("an output is larger than the library said"));
        }
        Tensor::from_bytes(self.dtype, shape, block.slice(..n))
    }

    fn raw(&mut self) -> abi::Tensor {
        let data = match &mut self.data {
            Data::None => std::ptr::null_mut(),
            // An empty input is given all the same: its pointer is not null.
            Data::Input(b) => b.as_ptr().cast_mut().cast(),
            Data::Output(b) => b.as_mut_ptr().cast(),
        };
        abi::Tensor { data, shape: self.shape.as_mut_ptr(), rank: self.shape.len() as i32, dtype: self.dtype.abi_code() }
    }
}

/// A run whose inputs, outputs and workspace are allocated.
pub struct Bound<'s> {
    session: &'s Session,
    library: &'s Library,
    inputs: Vec<Argument>,
    outputs: Vec<Argument>,
    /// Outputs whose sizes the inputs decide; the others are allocated anew by each run.
    sized: Vec<bool>,
    work: Aligned,
    work_bytes: usize,
}

/// What `nnc_host.ctx` points to during a run.
struct Context<'s> {
    pool: &'s Pool,
    /// Outputs that the run allocated.
    blocks: Mutex<Vec<Aligned>>,
    /// Why there was no memory for a block.
    refused: RefCell<Option<Error>>,
    /// The picture whose sizes were asked for last.
    picture: RefCell<Option<Tensor>>,
    /// The run's start, and its launches so far, where they are wanted.
    trace: Option<(Instant, RefCell<Vec<Event>>)>,
}

unsafe extern "C" fn trace(ctx: *mut c_void, launch: i64, phase: i32) {
    // SAFETY: `ctx` is the context of the run that calls back, on the thread that started it.
    let context = unsafe { &*ctx.cast::<Context>() };
    let Some((start, events)) = &context.trace else { return };
    let now = start.elapsed();
    let mut events = events.borrow_mut();
    match (phase, events.last_mut()) {
        (0, _) => events.push(Event { launch: launch as usize, start: now, end: now }),
        (_, Some(last)) => last.end = now,
        (_, None) => {}
    }
}

unsafe extern "C" fn parallel_for(ctx: *mut c_void, n: i64, body: abi::Body, arg: *mut c_void) {
    // SAFETY: `ctx` is the context of the run that calls back, which outlives the call; `body` keeps the ABI's promise.
    unsafe { (*ctx.cast::<Context>()).pool.parallel_for(n, body, arg) }
}

unsafe extern "C" fn alloc(ctx: *mut c_void, bytes: usize, _align: usize) -> *mut c_void {
    // SAFETY: as above; the run asks on the thread that started it.
    let context = unsafe { &*ctx.cast::<Context>() };
    // One byte at least, so that the address identifies the block.
    let mut block = match Aligned::new(bytes.max(1)) {
        Ok(block) => block,
        Err(e) => {
            context.refused.replace(Some(e.note("a result whose size only the data decide asks for that many")));
            return std::ptr::null_mut();
        }
    };
    let data = block.as_mut_ptr();
    context.blocks.lock().unwrap_or_else(PoisonError::into_inner).push(block);
    data.cast()
}

unsafe extern "C" fn decode(ctx: *mut c_void, file: *const u8, bytes: usize, channels: i32, sizes: *mut i64, samples: *mut u8) {
    let Some(format) = Channels::ALL.iter().find(|c| abi::channels(**c) as i32 == channels) else { return };
    // SAFETY: `ctx` is the context of the run that calls back, on the thread that started it; by the ABI `file` has `bytes` bytes, and
    // `sizes` room for two numbers. An empty file may have any address.
    let (context, file, sizes) = unsafe {
        let file = if bytes == 0 { &[] } else { std::slice::from_raw_parts(file, bytes) };
        (&*ctx.cast::<Context>(), file, std::slice::from_raw_parts_mut(sizes, 2))
    };
    let read = || picture(file, *format);
    let mut last = context.picture.borrow_mut();
    if samples.is_null() {
        let picture = read();
        sizes.iter_mut().zip(picture.shape()).for_each(|(to, n)| *to = *n as i64);
        *last = Some(picture);
        return;
    }
    let picture = last.take().unwrap_or_else(read);
    let bytes = picture.bytes();
    // SAFETY: by the ABI `samples` has room for what the sizes say, and they are this picture's: the calls for one file follow each other.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), samples, bytes.len()) }
}

impl Bound<'_> {
    fn plan(&mut self) -> Result<()> {
        let inputs: Vec<abi::Tensor> = self.inputs.iter_mut().map(Argument::raw).collect();
        self.outputs = self
            .session
            .outputs()
            .iter()
            .map(|p| Argument { dtype: p.dtype, shape: vec![-1; MAX_RANK.max(p.shape.len())], data: Data::None })
            .collect();
        let mut outputs: Vec<abi::Tensor> = self.outputs.iter_mut().map(Argument::raw).collect();
        let mut bytes = 0usize;
        // SAFETY: the arrays have one tensor per input and output, whose shapes have room for `rank` sizes.
        let code = unsafe { (self.library.functions().plan)(inputs.as_ptr(), outputs.as_mut_ptr(), &mut bytes) };
        self.library.check(code)?;
        for (out, raw) in self.outputs.iter_mut().zip(&outputs) {
            out.shape.truncate(usize::try_from(raw.rank).unwrap_or(0));
            // A size that depends on data is below 0 until the run knows it.
            let shape = out.shape.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<Vec<usize>>>();
            self.sized.push(shape.is_some());
            if let Some(shape) = shape {
                out.data = Data::Output(Aligned::new(checked_elems(out.dtype, &shape)? * out.dtype.bytes())?);
            }
        }
        self.work_bytes = bytes;
        let spare = self.session.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        self.work = match spare {
            Some(block) if block.len() >= bytes => block,
            _ => Aligned::new(bytes)?,
        };
        Ok(())
    }

    /// Bytes of workspace that these shapes take.
    pub fn workspace_bytes(&self) -> usize {
        self.work_bytes
    }

    /// Computes the outputs.
    pub fn run(&mut self) -> Result<()> {
        self.call(None).map(drop)
    }

    /// As [`Bound::run`], and tells when each launch ran.
    pub fn run_traced(&mut self) -> Result<Vec<Event>> {
        self.call(Some((Instant::now(), RefCell::default())))
    }

    fn call(&mut self, tracing: Option<(Instant, RefCell<Vec<Event>>)>) -> Result<Vec<Event>> {
        let context =
            Context { pool: &self.session.pool, blocks: Mutex::default(), refused: RefCell::default(), picture: RefCell::default(), trace: tracing };
        let host = abi::Host {
            size: size_of::<abi::Host>(),
            ctx: (&raw const context).cast_mut().cast(),
            threads: self.session.pool.threads() as i32,
            parallel_for: Some(parallel_for),
            alloc: Some(alloc),
            weights: self.session.weights.as_ref().map_or(std::ptr::null(), |w| w.as_ptr().cast()),
            weights_bytes: self.session.weights.as_ref().map_or(0, |w| w.len()),
            trace: context.trace.is_some().then_some(trace as abi::Trace),
            decode: Some(decode),
        };
        let inputs: Vec<abi::Tensor> = self.inputs.iter_mut().map(Argument::raw).collect();
        self.outputs.iter_mut().zip(&self.sized).filter(|(_, sized)| !**sized).for_each(|(out, _)| out.data = Data::None);
        let mut outputs: Vec<abi::Tensor> = self.outputs.iter_mut().map(Argument::raw).collect();
        // SAFETY: the arrays are as in `plan`; outputs have the sizes that it said, the workspace too, at a multiple of 64.
        let code = unsafe { (self.library.functions().run)(inputs.as_ptr(), outputs.as_mut_ptr(), self.work.as_mut_ptr().cast(), &host) };
        if let (abi::ERROR_ALLOC, Some(e)) = (code, context.refused.take()) {
            return Err(e);
        }
        self.library.check(code)?;
        let mut blocks = context.blocks.into_inner().unwrap_or_else(PoisonError::into_inner);
        for ((out, raw), sized) in self.outputs.iter_mut().zip(&outputs).zip(&self.sized) {
            if !sized {
                let at = blocks.iter_mut().position(|b| b.as_mut_ptr().cast() == raw.data);
                let block = at.map(|i| blocks.swap_remove(i)).ok_or_else(|| Error::internal("the library left an output without data"))?;
                out.data = Data::Output(block);
            }
        }
        Ok(context.trace.map_or(vec![], |(_, events)| events.into_inner()))
    }

    /// The memory of an input, to be written before the next run.
    pub fn input_mut(&mut self, k: usize) -> Result<&mut [u8]> {
        match self.own_input(k)? {
            Data::Output(block) => Ok(block.as_mut()),
            _ => Err(Error::internal(format!("input {k} is not given"))),
        }
    }

    /// Makes the memory of an input ours.
    fn own_input(&mut self, k: usize) -> Result<&mut Data> {
        let data = &mut self.inputs[k].data;
        if let Data::Input(given) = data {
            *data = Data::Output(Aligned::copy_of(given)?);
        }
        Ok(data)
    }

    /// What an input is.
    pub fn input(&self, k: usize) -> Result<Tensor> {
        match &self.inputs[k].data {
            Data::Output(block) => self.inputs[k].output(bytes::Bytes::copy_from_slice(block.as_ref())),
            Data::Input(given) => self.inputs[k].output(given.clone()),
            Data::None => Err(Error::internal(format!("input {k} is not given"))),
        }
    }

    /// The last run's output is the next run's input, without a copy: the two exchange their memory.
    pub fn exchange(&mut self, output: usize, input: usize) -> Result<()> {
        let (from, to) = (&self.outputs[output], &self.inputs[input]);
        if from.dtype != to.dtype || from.shape != to.shape || !self.sized[output] {
            return Err(Error::internal("an output takes the place of an input of another type"));
        }
        self.own_input(input)?;
        std::mem::swap(&mut self.outputs[output].data, &mut self.inputs[input].data);
        Ok(())
    }

    /// The bytes of an output of the last run.
    pub fn output_bytes(&self, k: usize) -> Result<&[u8]> {
        match &self.outputs[k].data {
            Data::Output(block) => Ok(block.as_ref()),
            _ => Err(Error::internal("the model has not run")),
        }
    }

    /// Copies of the last run's outputs.
    pub fn outputs(&self) -> Result<Vec<Tensor>> {
        let copy = |o: &Argument| match &o.data {
            Data::Output(block) => o.output(bytes::Bytes::copy_from_slice(block.as_ref())),
            _ => Err(Error::internal("the model has not run")),
        };
        self.outputs.iter().map(copy).collect()
    }

    /// The last run's outputs, without a copy; the workspace goes back to the session.
    pub fn into_outputs(self) -> Result<Vec<Tensor>> {
        self.session.spare.lock().unwrap_or_else(PoisonError::into_inner).push(self.work);
        let take = |mut o: Argument| match std::mem::replace(&mut o.data, Data::None) {
            Data::Output(block) => o.output(bytes::Bytes::from_owner(block)),
            _ => Err(Error::internal("the model has not run")),
        };
        self.outputs.into_iter().map(take).collect()
    }
}
