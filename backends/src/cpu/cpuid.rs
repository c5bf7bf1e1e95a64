//! Whether the running processor has the instruction sets that a model was compiled for: a function that asks once and remembers.

use super::clif::{Emitter, I32, I64, call, data_addr};
use cranelift_codegen::ir::InstBuilder;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_module::{FuncId, Linkage, Module};
use iced_x86::code_asm::{CodeAssembler, eax, ebx, ecx, edx, esi, r8d, rbx};
use nnc_ir::target::{Isa, Target};
use nnc_ir::{Error, Result};

/// CPUID bits that an instruction set needs: leaf 1 ecx, leaf 7 ebx, leaf 7.1 eax, leaf 0x80000001 ecx, and the register state that
/// the system must save (XCR0).
struct Needs {
    leaf1_ecx: u32,
    leaf7_ebx: u32,
    leaf7_1_eax: u32,
    extended_ecx: u32,
    xcr0: u32,
}

const fn bits(list: &[u32]) -> u32 {
    let (mut out, mut i) = (0, 0);
    while i < list.len() {
        out |= 1 << list[i];
        i += 1;
    }
    out
}

/// SSE3, SSSE3, FMA, SSE4.1, SSE4.2, POPCNT, OSXSAVE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT: x86-64-v3 as far as nnc emits it.
const AVX2: Needs =
    Needs { leaf1_ecx: bits(&[0, 9, 12, 19, 20, 23, 27, 28, 29]), leaf7_ebx: bits(&[3, 5, 8]), leaf7_1_eax: 0, extended_ecx: bits(&[5]), xcr0: 0x06 };

/// And AVX-512 F, DQ, CD, BW, VL.
const AVX512: Needs = Needs { leaf7_ebx: AVX2.leaf7_ebx | bits(&[16, 17, 28, 30, 31]), xcr0: 0xe6, ..AVX2 };

/// And AVX512_BF16.
const BF16: Needs = Needs { leaf7_1_eax: bits(&[5]), ..AVX512 };

/// Declares and defines `fn() -> 0 | 1`, 1 meaning that something is missing. None where every processor of the architecture will do.
pub fn define<M: Module>(e: &mut Emitter<'_, M>, t: &Target) -> Result<Option<FuncId>> {
    let needs = match t.isa {
        Isa::X86_64 | Isa::Aarch64 => return Ok(None),
        Isa::Avx2 => AVX2,
        Isa::Avx512 if t.bf16 => BF16,
        Isa::Avx512 => AVX512,
    };
    let ask = e.declare("nnc.ask_cpu", Linkage::Local, &[], &[I64])?;
    let code = assemble(&needs).map_err(|e| Error::internal(format!("the processor check: {e}")))?;
    e.define_bytes(ask, &code)?;
    // 0: not asked yet, 1: all there, 2: something is missing. Threads that ask at once write the same.
    let known = e.zeros("nnc.cpu", 8)?;
    let id = e.declare("nnc.check_cpu", Linkage::Local, &[], &[I32])?;
    e.define(id, |m, c, _| {
        let at = data_addr(m, c, known);
        let state = c.load(I64, at, 0);
        let state = c.var(state);
        let now = c.get(state);
        let unknown = c.cmp_c(IntCC::Equal, now, 0);
        c.if_(unknown, |c| {
            let answer = call(m, c, ask, &[]).expect("returns a state");
            c.store(answer, at, 0);
            c.set(state, answer);
        });
        let now = c.get(state);
        let missing = c.cmp_c(IntCC::NotEqual, now, 1);
        let missing = c.b.ins().uextend(I32, missing);
        c.ret(&[missing]);
        Ok(())
    })?;
    Ok(Some(id))
}

/// `fn() -> 1 | 2`.
fn assemble(n: &Needs) -> std::result::Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut no, mut end) = (a.create_label(), a.create_label());
    // cpuid writes rbx, which belongs to the caller.
    a.push(rbx)?;
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.mov(r8d, eax)?;
    a.cmp(r8d, 7)?;
    a.jb(no)?;
    a.mov(eax, 1)?;
    a.cpuid()?;
    a.mov(esi, ecx)?;
    a.not(esi)?;
    a.test(esi, n.leaf1_ecx)?;
    a.jne(no)?;
    // OSXSAVE is among those bits: xgetbv is there.
    a.xor(ecx, ecx)?;
    a.xgetbv()?;
    a.not(eax)?;
    a.test(eax, n.xcr0)?;
    a.jne(no)?;
    a.mov(eax, 7)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.not(ebx)?;
    a.test(ebx, n.leaf7_ebx)?;
    a.jne(no)?;
    if n.leaf7_1_eax != 0 {
        // eax of leaf 7 is the number of its last part; where there is none, part 1 reads as zeros.
        a.mov(eax, 7)?;
        a.mov(ecx, 1)?;
        a.cpuid()?;
        a.not(eax)?;
        a.test(eax, n.leaf7_1_eax)?;
        a.jne(no)?;
    }
    a.mov(eax, 0x8000_0001u32)?;
    a.cpuid()?;
    a.not(ecx)?;
    a.test(ecx, n.extended_ecx)?;
    a.jne(no)?;
    a.mov(eax, 1)?;
    a.jmp(end)?;
    a.set_label(&mut no)?;
    a.mov(eax, 2)?;
    a.set_label(&mut end)?;
    a.xor(edx, edx)?;
    a.pop(rbx)?;
    a.ret()?;
    a.assemble(0)
}
