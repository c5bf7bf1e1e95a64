//! The exported functions of a compiled model: checks and glue around the driver's [`Machine`].

use super::clif::{Code, Emitter, I32, I64, call, data_addr};
use super::cpuid;
use super::driver::commands::{Tables, bytes_of};
use super::driver::interp::{Machine, layout};
use super::driver::sizes::Span;
use super::{Options, Weights};
use crate::abi;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, StackSlotData, StackSlotKind, Value};
use cranelift_module::{FuncId, Linkage, Module};
use nnc_ir::target::Isa;
use nnc_ir::{Error, Result};

/// What the exported functions need beside the machine.
pub struct Exports<'a> {
    pub options: &'a Options,
    pub isa: Isa,
    pub tables: &'a Tables,
    pub machine: &'a Machine,
    /// JSON for `describe`.
    pub description: &'a str,
    /// JSON for `launches`.
    pub launches: &'a str,
}

/// Defines the six functions of the C ABI; their ids are in the order of [`abi::NAMES`].
pub fn define<M: Module>(e: &mut Emitter<'_, M>, x: &Exports<'_>) -> Result<[FuncId; 6]> {
    let name = |i: usize| format!("{}{}", x.options.prefix, abi::NAMES[i]);
    let version = e.declare(&name(0), Linkage::Export, &[], &[I32])?;
    e.define(version, |_, c, _| {
        c.ret_code(abi::VERSION);
        Ok(())
    })?;

    let describe = define_text(e, &name(1), "nnc.description", x.description)?;
    let launches = define_text(e, &name(5), "nnc.launches", x.launches)?;

    let plan = e.declare(&name(2), Linkage::Export, &[I64, I64, I64], &[I32])?;
    e.define(plan, |m, c, p| define_plan(m, c, x, p))?;

    let cpu = cpuid::define(e, x.isa)?;
    let run = e.declare(&name(3), Linkage::Export, &[I64, I64, I64, I64], &[I32])?;
    e.define(run, |m, c, p| define_run(m, c, x, cpu, p))?;

    let error = e.declare(&name(4), Linkage::Export, &[I32], &[I64])?;
    define_error(e, x, error)?;
    Ok([version, describe, plan, run, error, launches])
}

/// A function that returns a text.
fn define_text<M: Module>(e: &mut Emitter<'_, M>, name: &str, data: &str, text: &str) -> Result<FuncId> {
    let text = e.data(data, c_string(text))?;
    let id = e.declare(name, Linkage::Export, &[], &[I64])?;
    e.define(id, |m, c, _| {
        let address = data_addr(m, c, text);
        c.ret(&[address]);
        Ok(())
    })?;
    Ok(id)
}

fn c_string(s: &str) -> Vec<u8> {
    s.bytes().filter(|b| *b != 0).chain([0]).collect()
}

/// An array of tensors may be NULL only where it has none.
fn require(c: &mut Code<'_>, array: Value, count: usize) {
    if count > 0 {
        c.fail_unless(array, abi::ERROR_NULL);
    }
}

fn define_plan<M: Module>(m: &mut M, c: &mut Code<'_>, x: &Exports<'_>, p: &[Value]) -> Result<()> {
    let (inputs, outputs, workspace_bytes) = (p[0], p[1], p[2]);
    let t = x.tables;
    require(c, inputs, t.inputs);
    require(c, outputs, t.outputs);
    c.fail_unless(workspace_bytes, abi::ERROR_NULL);
    let bytes = u32::try_from(8 * t.plan_slots.max(1)).map_err(|_| Error::limit("the model has too many symbolic sizes"))?;
    let slots = c.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 3));
    let slots = c.b.ins().stack_addr(I64, slots, 0);
    x.machine.operate(m, c, inputs, slots, t.plan);
    let body = x.machine.value(m, c, slots, t.body_bytes);
    let head = c.int(x.machine.head.bytes);
    let negative = c.cmp_c(IntCC::SignedLessThan, body, 0);
    c.fail_if(negative, abi::ERROR_OVERFLOW);
    let (bytes, overflow) = c.b.ins().sadd_overflow(body, head);
    c.fail_if(overflow, abi::ERROR_OVERFLOW);
    x.machine.plan_shapes(m, c, outputs, slots);
    c.store(bytes, workspace_bytes, 0);
    c.ret_code(abi::OK);
    Ok(())
}

fn define_run<M: Module>(m: &mut M, c: &mut Code<'_>, x: &Exports<'_>, cpu: Option<FuncId>, p: &[Value]) -> Result<()> {
    let (inputs, outputs, workspace, host) = (p[0], p[1], p[2], p[3]);
    let t = x.tables;
    if let Some(cpu) = cpu {
        let missing = call(m, c, cpu, &[]).expect("returns a flag");
        c.fail_if(missing, abi::ERROR_CPU);
    }
    require(c, inputs, t.inputs);
    require(c, outputs, t.outputs);
    c.fail_unless(workspace, abi::ERROR_WORKSPACE);
    let low = c.b.ins().band_imm_s(workspace, abi::ALIGN as i64 - 1);
    c.fail_if(low, abi::ERROR_WORKSPACE);
    let zero = c.int(0);
    let given = c.var(zero);
    let given_bytes = c.var(zero);
    c.if_(host, |c| {
        let size = c.load(I64, host, layout::HOST_SIZE);
        let old = c.cmp_c(IntCC::UnsignedLessThan, size, abi::HOST_BYTES as i64);
        c.fail_if(old, abi::ERROR_HOST);
        let (w, n) = (c.load(I64, host, layout::WEIGHTS), c.load(I64, host, layout::WEIGHTS_BYTES));
        c.set(given, w);
        c.set(given_bytes, n);
    });
    let weights = match x.options.weights {
        _ if t.weight_bytes == 0 => zero,
        Weights::Embed => {
            let id = m
                .declare_data(&x.options.weights_symbol(), Linkage::Import, false, false)
                .map_err(|e| super::clif::module_error("the weights' symbol", &e))?;
            data_addr(m, c, id)
        }
        Weights::External => {
            let (w, have) = (c.get(given), c.get(given_bytes));
            c.fail_unless(w, abi::ERROR_WEIGHTS);
            let short = c.cmp_c(IntCC::UnsignedLessThan, have, t.weight_bytes as i64);
            c.fail_if(short, abi::ERROR_WEIGHTS);
            let low = c.b.ins().band_imm_s(w, abi::ALIGN as i64 - 1);
            c.fail_if(low, abi::ERROR_WEIGHTS);
            w
        }
    };
    // All checks come before anything of the caller's but the workspace is written.
    x.machine.operate(m, c, inputs, workspace, Span { start: t.plan.start, end: t.run.end });
    x.machine.output_types(m, c, outputs);
    x.machine.plan_shapes(m, c, outputs, workspace);
    x.machine.bases(c, t, workspace, weights, inputs, outputs);
    x.machine.execute(m, c, workspace, outputs, host);
    x.machine.final_shapes(m, c, outputs, workspace);
    c.ret_code(abi::OK);
    Ok(())
}

/// Texts one after the other, and where each starts.
fn define_error<M: Module>(e: &mut Emitter<'_, M>, x: &Exports<'_>, id: FuncId) -> Result<()> {
    let (mut starts, mut texts) = (vec![], vec![]);
    for text in abi::ERROR_TEXTS.iter().copied().chain(x.tables.texts.iter().map(String::as_str)).chain(["an unknown error code"]) {
        starts.push(u32::try_from(texts.len()).map_err(|_| Error::limit("the texts of errors take more than 4 GiB"))?);
        texts.extend(c_string(text));
    }
    let unknown = starts.len() as i64 - 1;
    let starts = e.data("nnc.error_starts", bytes_of(starts))?;
    let texts = e.data("nnc.error_texts", texts)?;
    e.define(id, |m, c, p| {
        let code = c.b.ins().uextend(I64, p[0]);
        let last = c.int(unknown);
        let over = c.cmp(IntCC::UnsignedGreaterThan, code, last);
        let i = c.select(over, last, code);
        let starts = data_addr(m, c, starts);
        let at = c.at(starts, i, 4);
        let start = c.b.ins().uload32(super::clif::MEM, at, 0);
        let texts = data_addr(m, c, texts);
        let text = c.b.ins().iadd(texts, start);
        c.ret(&[text]);
        Ok(())
    })
}
