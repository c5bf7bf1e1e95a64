//! Code in this process's memory.

use super::generate::{Selection, generate};
use super::target::{Use, cranelift_isa, is_native};
use super::{Options, Weights, loops};
use crate::abi::{ALIGN, Functions};
use crate::weights::weight_bytes;
use cranelift_jit::{ArenaMemoryProvider, JITBuilder, JITModule};
use cranelift_module::default_libcall_names;
use nnc_ir::kernel::Program;
use nnc_ir::{Error, Result, Target};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// A model compiled into memory. Code and weights are freed when it is dropped.
pub struct Jit {
    functions: Functions,
    /// None only while it is dropped.
    module: Option<JITModule>,
    _weights: Aligned,
    description: String,
    selections: Vec<Selection>,
}

// SAFETY: code and weights are never written after construction, and the functions keep no state but a write-once CPU check.
unsafe impl Send for Jit {}
// SAFETY: as above; runs at the same time use different workspaces.
unsafe impl Sync for Jit {}

impl Jit {
    /// The functions of the C ABI. They must not be called after `self` is gone.
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// Which implementation each kernel got, and why not others.
    pub fn selections(&self) -> &[Selection] {
        &self.selections
    }

    /// The JSON that `nnc_describe` returns.
    pub fn description(&self) -> &str {
        &self.description
    }
}

impl Drop for Jit {
    fn drop(&mut self) {
        if let Some(m) = self.module.take() {
            // SAFETY: calling the functions after this is what their documentation forbids.
            unsafe { m.free_memory() };
        }
    }
}

/// Compiles a program for this machine, into memory. Errors: a target that this machine is not, and internal ones.
pub fn compile_jit(p: &Program, t: &Target, o: &Options) -> Result<Jit> {
    if !is_native(t) {
        return Err(Error::unsupported(format!("this machine cannot run code for {}", t.name)));
    }
    let weights = match o.weights {
        Weights::Embed => Aligned::weights(p)?,
        Weights::External => Aligned::zeroed(0)?,
    };
    let mut builder = JITBuilder::with_isa(cranelift_isa(t, Use::Memory, true)?, default_libcall_names());
    builder.symbols(loops::math::symbols());
    builder.symbol(o.weights_symbol(), weights.ptr);
    // Address space is reserved, not memory; code must lie within 2 GiB.
    let reserve = (p.kernels.len().saturating_mul(128 << 10)).clamp(256 << 20, 1 << 30);
    let memory = ArenaMemoryProvider::new_with_size(reserve).map_err(|e| Error::limit(format!("no address space for code: {e}")))?;
    builder.memory_provider(Box::new(memory));
    let mut module = Guard(Some(JITModule::new(builder)));
    let m = module.0.as_mut().expect("is there until it is dropped");
    let g = generate(m, p, t, o, Use::Memory, false)?;
    m.finalize_definitions().map_err(|e| Error::internal(format!("code into memory: {e}")))?;
    let f = g.functions.map(|id| m.get_finalized_function(id));
    // SAFETY: these are the addresses of functions generated with exactly these signatures, in the order of `abi::NAMES`.
    let functions = unsafe {
        Functions {
            abi_version: std::mem::transmute::<*const u8, crate::abi::AbiVersion>(f[0]),
            describe: std::mem::transmute::<*const u8, crate::abi::Describe>(f[1]),
            plan: std::mem::transmute::<*const u8, crate::abi::Plan>(f[2]),
            run: std::mem::transmute::<*const u8, crate::abi::Run>(f[3]),
            error: std::mem::transmute::<*const u8, crate::abi::ErrorText>(f[4]),
            launches: Some(std::mem::transmute::<*const u8, crate::abi::Describe>(f[5])),
        }
    };
    Ok(Jit { functions, module: module.0.take(), _weights: weights, description: g.description, selections: g.selections })
}

/// Frees the module's memory also where compilation fails.
struct Guard(Option<JITModule>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(m) = self.0.take() {
            // SAFETY: nothing of the module has been given away.
            unsafe { m.free_memory() };
        }
    }
}

/// Memory aligned as the ABI wants it, zero at first.
struct Aligned {
    ptr: *mut u8,
    layout: Layout,
}

impl Aligned {
    fn zeroed(bytes: usize) -> Result<Aligned> {
        let layout = Layout::from_size_align(bytes.max(ALIGN), ALIGN).map_err(|_| Error::limit(format!("{bytes} bytes of weights")))?;
        // SAFETY: the size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() {
            handle_alloc_error(layout);
        }
        Ok(Aligned { ptr, layout })
    }

    fn weights(p: &Program) -> Result<Aligned> {
        let bytes = weight_bytes(&p.weights);
        let a = Aligned::zeroed(usize::try_from(bytes).map_err(|_| Error::limit(format!("{bytes} bytes of weights")))?)?;
        for (at, t) in &p.weights {
            let data = t.try_bytes()?;
            let at = usize::try_from(*at).ok().filter(|at| at + data.len() <= a.layout.size());
            let at = at.ok_or_else(|| Error::internal("weights are not in the order of their offsets"))?;
            // SAFETY: the range lies within the allocation, as just checked, and nothing else points there.
            unsafe { a.ptr.add(at).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        }
        Ok(a)
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.ptr, self.layout) };
    }
}
