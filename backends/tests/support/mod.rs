//! Runs kernels on every engine that this machine has: the interpreter, the emulator, native bytes, Cranelift.

#![allow(dead_code)]

pub mod emulator;

use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::default_libcall_names;
use nnc_backends::cpu::declare::declare_kernel;
use nnc_backends::cpu::isa::Isa;
use nnc_backends::cpu::kernels::Kernel;
use nnc_backends::cpu::vir::interp::{self, Memory};
use nnc_backends::cpu::x86;

/// One word of the arguments.
#[derive(Clone, Copy)]
pub enum Word {
    Buf(usize),
    Int(i64),
}

/// Who runs the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    Interpreter,
    /// x86 bytes in the emulator.
    Emulator,
    /// x86 bytes, or Cranelift's code, on this processor.
    Native,
}

/// The pairs of instruction set and engine that can run here.
pub fn engines() -> Vec<(Isa, Engine)> {
    let mut all = Vec::new();
    for isa in [Isa::Avx2, Isa::Avx512, Isa::Portable] {
        all.push((isa, Engine::Interpreter));
        if isa != Isa::Portable {
            all.push((isa, Engine::Emulator));
        }
        let native = match isa {
            Isa::Portable => true,
            Isa::Avx2 => Isa::native() != Isa::Portable,
            Isa::Avx512 => Isa::native() == Isa::Avx512,
        };
        if native {
            all.push((isa, Engine::Native));
        }
    }
    all
}

/// A kernel in memory, ready to be called.
pub struct Jit {
    module: Option<JITModule>,
    entry: extern "C" fn(*const u64, i64),
}

impl Jit {
    pub fn new(kernel: &Kernel, isa: Isa) -> Jit {
        let mut flags = settings::builder();
        flags.set("opt_level", "none").expect("a setting of cranelift");
        flags.set("is_pic", "false").expect("a setting of cranelift");
        let target = cranelift_native::builder().expect("a host cranelift knows");
        let target = target.finish(settings::Flags::new(flags)).expect("flags of the host");
        let mut module = JITModule::new(JITBuilder::with_isa(target, default_libcall_names()));
        let id = declare_kernel(&mut module, "kernel", &kernel.func, isa).unwrap_or_else(|e| panic!("{e}"));
        module.finalize_definitions().expect("memory for code");
        let code = module.get_finalized_function(id);
        // SAFETY: the module holds code of this signature at that address and lives as long as this value.
        let entry = unsafe { std::mem::transmute::<*const u8, extern "C" fn(*const u64, i64)>(code) };
        Jit { module: Some(module), entry }
    }

    pub fn call(&self, args: &[u64], task: i64) {
        (self.entry)(args.as_ptr(), task);
    }
}

impl Drop for Jit {
    fn drop(&mut self) {
        if let Some(m) = self.module.take() {
            // SAFETY: nothing runs the code any more; the entry is private and goes with it.
            unsafe { m.free_memory() }
        }
    }
}

/// Runs all tasks of a kernel on buffers of f32.
pub fn run(kernel: &Kernel, isa: Isa, engine: Engine, bufs: &mut [Vec<f32>], words: &[Word]) -> Result<(), String> {
    let arg = |n: u32| match words[n as usize] {
        Word::Int(i) => i,
        Word::Buf(_) => panic!("word {n} is a pointer"),
    };
    let tasks = kernel.tasks.count(arg);
    if engine == Engine::Native {
        let jit = Jit::new(kernel, isa);
        let args: Vec<u64> = words
            .iter()
            .map(|w| match w {
                Word::Buf(b) => bufs[*b].as_mut_ptr() as u64,
                Word::Int(i) => *i as u64,
            })
            .collect();
        for t in 0..tasks {
            jit.call(&args, t);
        }
        return Ok(());
    }
    let mut mem = Memory::default();
    let at: Vec<u64> = bufs.iter().map(|b| mem.alloc(b.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let args = words
        .iter()
        .map(|w| match w {
            Word::Buf(b) => at[*b],
            Word::Int(i) => *i as u64,
        })
        .flat_map(|w| w.to_le_bytes())
        .collect();
    let args = mem.alloc(args);
    if engine == Engine::Emulator {
        let code = x86::assemble(&kernel.func).map_err(|e| e.to_string())?;
        let mut machine = emulator::Emulator::new(&code.bytes, mem);
        for t in 0..tasks {
            machine.call(args, t as u64)?;
        }
        mem = machine.memory;
    } else {
        for t in 0..tasks {
            interp::run(&kernel.func, &mut mem, args, t)?;
        }
    }
    for (b, at) in bufs.iter_mut().zip(at) {
        for (n, x) in b.iter_mut().enumerate() {
            *x = f32::from_bits(mem.u32(at + 4 * n as u64)?);
        }
    }
    Ok(())
}

/// Numbers in [-1, 1) that look random and are the same every time.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..len)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f32) / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}
