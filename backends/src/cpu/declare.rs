//! Puts kernels into a Cranelift module, JIT or object alike, whichever way they are lowered.

use super::isa::Isa;
use super::portable::{self, Target};
use super::vir::Func;
use super::x86;
use cranelift_codegen::ir::{AbiParam, Signature, types::I64};
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::settings::SettingKind;
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{FuncId, Linkage, Module};
use nnc_ir::error::{Error, Result};

/// The signature of every kernel: `(args: *const u64, task: i64)`.
pub fn signature<M: Module + ?Sized>(m: &M) -> Signature {
    let mut sig = m.make_signature();
    sig.params = vec![AbiParam::new(I64), AbiParam::new(I64)];
    sig
}

/// Whether the target has a fused multiply-add instruction.
fn has_fma(isa: &dyn TargetIsa) -> bool {
    let mut flags = isa.isa_flags().into_iter().filter(|f| f.kind() == SettingKind::Bool && f.name == "has_fma");
    match flags.next() {
        Some(f) => f.as_bool() == Some(true),
        // Only x86 has a choice.
        None => true,
    }
}

/// Declares and defines a kernel made for `isa` as the local function `name`.
pub fn declare_kernel<M: Module + ?Sized>(m: &mut M, name: &str, func: &Func, isa: Isa) -> Result<FuncId> {
    let failed = |e: cranelift_module::ModuleError| Error::internal(format!("{name}: {e}"));
    let sig = signature(m);
    let id = m.declare_function(name, Linkage::Local, &sig).map_err(failed)?;
    match isa {
        Isa::Avx2 | Isa::Avx512 => {
            let code = x86::assemble(func)?;
            m.define_function_bytes(id, 64, &code.bytes, &[]).map_err(failed)?;
        }
        Isa::Portable => {
            let mut ctx = m.make_context();
            ctx.func.signature = sig;
            let target = Target { frontend: m.target_config(), fma: has_fma(m.isa()) };
            portable::lower(func, target, &mut ctx.func, &mut FunctionBuilderContext::new())?;
            m.define_function(id, &mut ctx).map_err(failed)?;
        }
    }
    Ok(id)
}
