//! An NVIDIA GPU, by the driver's own library: memory, kernels that the driver compiles from PTX, launches. Nothing of CUDA is needed to
//! build nnc; where there is no driver or no device, the error says what was looked for.

use super::{Device, Launch};
use libloading::Library;
use nnc_backends::gpu::gir::{self, Kernel};
use nnc_backends::gpu::ptx;
use nnc_backends::gpu::spirv::entry_name;
use nnc_ir::target::{Gpu, GpuIsa};
use nnc_ir::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::Duration;

/// What the driver's library is called.
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// `CUresult` where all went well, and where memory ran out.
const SUCCESS: i32 = 0;
const OUT_OF_MEMORY: i32 = 2;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [i32; 2] = [75, 76];

/// `CU_JIT_ERROR_LOG_BUFFER` and `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
const ERROR_LOG: [i32; 2] = [5, 6];
const LOG_BYTES: usize = 8 << 10;

type Handle = *mut c_void;

macro_rules! driver {
    ($($name:ident = $symbol:literal ($($arg:ty),*);)*) => {
        /// The driver's functions, and the library that keeps them.
        struct Driver {
            $($name: unsafe extern "C" fn($($arg),*) -> i32,)*
            _library: Library,
        }

        impl Driver {
            fn of(library: Library) -> std::result::Result<Driver, libloading::Error> {
                Ok(Driver {
                    // SAFETY: the functions have these types in every version of the driver that has these names.
                    $($name: *unsafe { library.get(concat!($symbol, "\0").as_bytes()) }?,)*
                    _library: library,
                })
            }
        }
    };
}

driver! {
    init = "cuInit" (u32);
    device_count = "cuDeviceGetCount" (*mut i32);
    device_get = "cuDeviceGet" (*mut i32, i32);
    device_name = "cuDeviceGetName" (*mut c_char, i32, i32);
    device_attribute = "cuDeviceGetAttribute" (*mut i32, i32, i32);
    retain = "cuDevicePrimaryCtxRetain" (*mut Handle, i32);
    release = "cuDevicePrimaryCtxRelease_v2" (i32);
    set_current = "cuCtxSetCurrent" (Handle);
    synchronize = "cuCtxSynchronize" ();
    load = "cuModuleLoadDataEx" (*mut Handle, *const c_void, u32, *mut i32, *mut *mut c_void);
    unload = "cuModuleUnload" (Handle);
    function = "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    allocate = "cuMemAlloc_v2" (*mut u64, usize);
    free = "cuMemFree_v2" (u64);
    upload = "cuMemcpyHtoD_v2" (u64, *const c_void, usize);
    download = "cuMemcpyDtoH_v2" (*mut c_void, u64, usize);
    copy = "cuMemcpyDtoD_v2" (u64, u64, usize);
    launch = "cuLaunchKernel" (Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut *mut c_void, *mut *mut c_void);
    event_create = "cuEventCreate" (*mut Handle, u32);
    event_destroy = "cuEventDestroy_v2" (Handle);
    event_record = "cuEventRecord" (Handle, Handle);
    event_elapsed = "cuEventElapsedTime" (*mut f32, Handle, Handle);
    error_name = "cuGetErrorName" (i32, *mut *const c_char);
}

fn no_driver(why: String) -> Error {
    Error::unsupported("there is no NVIDIA driver on this machine").note(why).note(format!("looked for {}", LIBRARIES.join(" and ")))
}

impl Driver {
    fn open() -> Result<Driver> {
        let mut why = String::new();
        for name in LIBRARIES {
            // SAFETY: the library is the driver's; loading it runs nothing but its own initialisers.
            match unsafe { Library::new(name) }.and_then(Driver::of) {
                Ok(driver) => return Ok(driver),
                // The reason is the error's source.
                Err(e) if why.is_empty() => why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string),
                Err(_) => {}
            }
        }
        Err(no_driver(why))
    }

    /// What a code of the driver means, as an error of `what`.
    fn check(&self, code: i32, what: &str) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        if code == OUT_OF_MEMORY {
            return Err(Error::limit(format!("CUDA: no memory is left to {what}")));
        }
        let mut name: *const c_char = null();
        // SAFETY: the driver writes a pointer to a text of its own, which lives as long as it does, or none.
        let known = unsafe { (self.error_name)(code, &mut name) } == SUCCESS && !name.is_null();
        // SAFETY: as above.
        let name = if known { unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned() } else { format!("error {code}") };
        Err(Error::io(format!("CUDA could not {what}: {name}")))
    }
}

/// The device's context, which everything that is made keeps alive.
struct Context {
    driver: Driver,
    device: i32,
    context: Handle,
}

// SAFETY: a context may be made current on any thread, and the driver's functions take calls from all of them.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes the context this thread's.
    fn enter(&self) -> Result<&Driver> {
        // SAFETY: the context was retained and not yet released.
        self.driver.check(unsafe { (self.driver.set_current)(self.context) }, "use the device")?;
        Ok(&self.driver)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made in the context has been given back: it held a reference to this.
        unsafe { (self.driver.release)(self.device) };
    }
}

/// Memory of the device.
struct Memory {
    context: Arc<Context>,
    address: u64,
    bytes: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            // SAFETY: every launch that used it has been waited for.
            unsafe { (driver.free)(self.address) };
        }
    }
}

pub struct Buffer(Arc<Memory>);

/// A module of one kernel.
struct Module {
    context: Arc<Context>,
    module: Handle,
    function: Handle,
    threads: u32,
}

// SAFETY: handles of the driver belong to no thread.
unsafe impl Send for Module {}
// SAFETY: as above; nothing changes through a reference.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            // SAFETY: every launch of its kernel has been waited for.
            unsafe { (driver.unload)(self.module) };
        }
    }
}

pub struct Compiled(Arc<Module>);

struct Recorded {
    module: Arc<Module>,
    /// Keeps the memory that the addresses are of.
    _buffers: Vec<Arc<Memory>>,
    addresses: Vec<u64>,
    scalars: Vec<i32>,
    grid: [u32; 2],
}

/// A point in the order of launches whose time the device notes.
struct Event {
    context: Arc<Context>,
    event: Handle,
}

// SAFETY: handles of the driver belong to no thread.
unsafe impl Send for Event {}

impl Event {
    fn new(context: &Arc<Context>) -> Result<Event> {
        let mut event = null_mut();
        // SAFETY: the driver writes the handle.
        context.enter()?.check(unsafe { (context.driver.event_create)(&mut event, 0) }, "make an event")?;
        Ok(Event { context: context.clone(), event })
    }

    /// Puts it behind all launches so far.
    fn record(&self) -> Result<()> {
        // SAFETY: the event is there; the stream is the context's own.
        self.context.driver.check(unsafe { (self.context.driver.event_record)(self.event, null_mut()) }, "record an event")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            // SAFETY: every launch before it has been waited for.
            unsafe { (driver.event_destroy)(self.event) };
        }
    }
}

/// Launches and all that they use; events before the first and after each, where they are timed.
pub struct Recording {
    launches: Vec<Recorded>,
    events: Vec<Event>,
}

pub struct Cuda {
    context: Arc<Context>,
    limits: Gpu,
    name: String,
}

impl Cuda {
    /// The first device of the driver.
    pub fn open() -> Result<Cuda> {
        let driver = Driver::open()?;
        let (mut count, mut device, mut context) = (0, 0, null_mut());
        // SAFETY: the driver writes to the places that are given, here and below.
        driver.check(unsafe { (driver.init)(0) }, "start")?;
        // SAFETY: as above.
        driver.check(unsafe { (driver.device_count)(&mut count) }, "list devices")?;
        if count == 0 {
            return Err(Error::unsupported("there is no NVIDIA device on this machine").note("the driver is there and lists none"));
        }
        // SAFETY: as above.
        driver.check(unsafe { (driver.device_get)(&mut device, 0) }, "find a device")?;
        let mut name = [0u8; 128];
        // SAFETY: as above; the last byte stays zero.
        driver.check(unsafe { (driver.device_name)(name.as_mut_ptr().cast(), name.len() as i32 - 1, device) }, "name the device")?;
        let name = CStr::from_bytes_until_nul(&name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut capability = [0; 2];
        for (out, attribute) in capability.iter_mut().zip(CAPABILITY) {
            // SAFETY: as above.
            driver.check(unsafe { (driver.device_attribute)(out, attribute, device) }, "describe the device")?;
        }
        let isa = match capability {
            [major, _] if major >= 9 => GpuIsa::Sm90,
            [8, _] => GpuIsa::Sm80,
            [major, minor] => return Err(Error::unsupported(format!("{name} has compute capability {major}.{minor}, kernels are made from 8.0 on"))),
        };
        // SAFETY: as above.
        driver.check(unsafe { (driver.retain)(&mut context, device) }, "open the device")?;
        Ok(Cuda { context: Arc::new(Context { driver, device, context }), limits: Gpu::new(isa), name })
    }

    fn within(b: &Buffer, at: u64, bytes: u64) -> Result<u64> {
        super::within(b.0.bytes, at, bytes)?;
        Ok(b.0.address + at)
    }
}

impl Device for Cuda {
    type Buffer = Buffer;
    type Kernel = Compiled;
    type Recording = Recording;

    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> &Gpu {
        &self.limits
    }

    fn allocate(&mut self, bytes: u64) -> Result<Buffer> {
        let bytes = bytes.max(64);
        let size = usize::try_from(bytes).map_err(|_| Error::limit(format!("{bytes} bytes of device memory")))?;
        let driver = self.context.enter()?;
        let mut address = 0;
        // SAFETY: the driver writes the address.
        driver.check(unsafe { (driver.allocate)(&mut address, size) }, &format!("hold {bytes} bytes"))?;
        Ok(Buffer(Arc::new(Memory { context: self.context.clone(), address, bytes })))
    }

    fn bytes(buffer: &Buffer) -> u64 {
        buffer.0.bytes
    }

    fn upload(&mut self, to: &Buffer, at: u64, data: &[u8]) -> Result<()> {
        let (address, driver) = (Cuda::within(to, at, data.len() as u64)?, self.context.enter()?);
        // SAFETY: both places have so many bytes.
        driver.check(unsafe { (driver.upload)(address, data.as_ptr().cast(), data.len()) }, "write memory")
    }

    fn download(&mut self, from: &Buffer, at: u64, data: &mut [u8]) -> Result<()> {
        let (address, driver) = (Cuda::within(from, at, data.len() as u64)?, self.context.enter()?);
        // SAFETY: as above.
        driver.check(unsafe { (driver.download)(data.as_mut_ptr().cast(), address, data.len()) }, "read memory")
    }

    fn copy(&mut self, from: &Buffer, to: &Buffer, bytes: u64) -> Result<()> {
        let (source, target, driver) = (Cuda::within(from, 0, bytes)?, Cuda::within(to, 0, bytes)?, self.context.enter()?);
        // SAFETY: as above.
        driver.check(unsafe { (driver.copy)(target, source, bytes as usize) }, "copy memory")?;
        // Copies within the device need not be done when the call returns.
        // SAFETY: the context is this thread's.
        driver.check(unsafe { (driver.synchronize)() }, "copy memory")
    }

    fn compile(&mut self, kernel: &Kernel) -> Result<Compiled> {
        let arch = if self.limits.isa == GpuIsa::Sm90 { "sm_90" } else { "sm_80" };
        let zero = |_| Error::internal("a kernel's text holds a zero");
        let text = CString::new(ptx::module(&[kernel], arch)).map_err(zero)?;
        let entry = CString::new(entry_name(0, kernel)).map_err(zero)?;
        let driver = self.context.enter()?;
        let mut log = vec![0u8; LOG_BYTES];
        let (mut options, mut values) = (ERROR_LOG, [log.as_mut_ptr().cast(), (LOG_BYTES - 1) as *mut c_void]);
        let mut module = null_mut();
        // SAFETY: the text ends with a zero, the lists have two members, and the log has the room that is told, and a zero behind it.
        let code = unsafe { (driver.load)(&mut module, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr()) };
        driver.check(code, &format!("compile kernel {}", kernel.name)).map_err(|e| {
            let said = CStr::from_bytes_until_nul(&log).map(|l| l.to_string_lossy().trim().to_string()).unwrap_or_default();
            if said.is_empty() { e } else { e.note(said) }
        })?;
        let mut made = Module { context: self.context.clone(), module, function: null_mut(), threads: kernel.threads };
        // SAFETY: the module is loaded, the name ends with a zero.
        driver.check(unsafe { (driver.function)(&mut made.function, module, entry.as_ptr()) }, &format!("find kernel {}", kernel.name))?;
        Ok(Compiled(Arc::new(made)))
    }

    fn record(&mut self, launches: &[Launch<Cuda>], timed: bool) -> Result<Recording> {
        let one = |l: &Launch<Cuda>| -> Result<Recorded> {
            let mut addresses = vec![];
            for (buffer, at, bytes) in &l.buffers {
                addresses.push(Cuda::within(buffer, *at, *bytes)?);
            }
            Ok(Recorded {
                module: l.kernel.0.clone(),
                _buffers: l.buffers.iter().map(|(b, ..)| b.0.clone()).collect(),
                addresses,
                scalars: l.scalars.clone(),
                grid: gir::grid(l.groups, self.limits.max_groups),
            })
        };
        let events = if timed { launches.len() + 1 } else { 0 };
        let events = (0..events).map(|_| Event::new(&self.context)).collect::<Result<_>>()?;
        Ok(Recording { launches: launches.iter().map(one).collect::<Result<_>>()?, events })
    }

    fn submit(&mut self, recording: &Recording) -> Result<()> {
        let driver = self.context.enter()?;
        let mut events = recording.events.iter();
        events.next().map_or(Ok(()), Event::record)?;
        for l in &recording.launches {
            let addresses = l.addresses.iter().map(|a| std::ptr::from_ref(a).cast_mut().cast::<c_void>());
            let scalars = l.scalars.iter().map(|s| std::ptr::from_ref(s).cast_mut().cast::<c_void>());
            let mut params: Vec<*mut c_void> = addresses.chain(scalars).collect();
            let ([x, y], m) = (l.grid, &l.module);
            // SAFETY: the parameters are those of the kernel, in its order, and only read; what they point to lives with the recording.
            // Launches of a context's default stream run one after another.
            let code = unsafe { (driver.launch)(m.function, x, y, 1, m.threads, 1, 1, 0, null_mut(), params.as_mut_ptr(), null_mut()) };
            driver.check(code, "launch a kernel")?;
            events.next().map_or(Ok(()), Event::record)?;
        }
        // SAFETY: the context is this thread's.
        driver.check(unsafe { (driver.synchronize)() }, "run launches")
    }

    fn ends(&mut self, recording: &Recording) -> Result<Vec<Duration>> {
        let driver = self.context.enter()?;
        let (first, rest) = recording.events.split_first().ok_or_else(super::not_timed)?;
        let since = |e: &Event| {
            let mut ms = 0.0;
            // SAFETY: both events are there, and what they stand behind has been waited for.
            driver.check(unsafe { (driver.event_elapsed)(&mut ms, first.event, e.event) }, "time launches")?;
            Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
        };
        rest.iter().map(since).collect()
    }
}
