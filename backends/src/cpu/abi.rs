//! The exported functions of a compiled model: checks and glue around the driver's [`Machine`].

use super::clif::{Code, Emitter, I32, I64, call, data_addr};
use super::cpuid;
use super::driver::commands::{Tables, bytes_of};
use super::driver::interp::{Machine, layout};
use super::driver::sizes::Span;
use super::{Options, Weights};
use crate::abi;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, StackSlotData, StackSlotKind, Type, Value};
use cranelift_module::{FuncId, Linkage, Module};
use nnc_ir::{Error, Result, Target};

/// What the exported functions need beside the machine.
pub struct Exports<'a> {
    pub options: &'a Options,
    /// Best first: the first that the processor has is run.
    pub variants: &'a [Variant],
    /// JSON for `describe`.
    pub description: &'a str,
    /// JSON for `launches`.
    pub launches: &'a str,
}

/// The model's code for one instruction set.
pub struct Variant {
    pub target: Target,
    /// What the names of its functions end in.
    pub name: &'static str,
    pub tables: Tables,
    pub machine: Machine,
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

    let (plan, run) = (name(2), name(3));
    let (plan_words, run_words): (&[Type], &[Type]) = (&[I64; 3], &[I64; 4]);
    let (plan, run) = match x.variants {
        [one] => {
            let cpu = cpuid::define(e, &one.target)?;
            let plan = e.declare(&plan, Linkage::Export, plan_words, &[I32])?;
            e.define(plan, |m, c, p| define_plan(m, c, one, p))?;
            let run = e.declare(&run, Linkage::Export, run_words, &[I32])?;
            e.define(run, |m, c, p| {
                fail_without(m, c, cpu);
                define_run(m, c, x.options, one, p)
            })?;
            (plan, run)
        }
        several => {
            let (mut plans, mut runs) = (vec![], vec![]);
            for v in several {
                e.variant = v.name;
                let cpu = cpuid::define(e, &v.target)?;
                let plan = e.declare("nnc.plan", Linkage::Local, plan_words, &[I32])?;
                e.define(plan, |m, c, p| define_plan(m, c, v, p))?;
                plans.push((cpu, plan));
                let run = e.declare("nnc.run", Linkage::Local, run_words, &[I32])?;
                e.define(run, |m, c, p| define_run(m, c, x.options, v, p))?;
                runs.push((cpu, run));
            }
            e.variant = "";
            (define_choice(e, &plan, plan_words, &plans)?, define_choice(e, &run, run_words, &runs)?)
        }
    };

    let error = e.declare(&name(4), Linkage::Export, &[I32], &[I64])?;
    define_error(e, x, error)?;
    Ok([version, describe, plan, run, error, launches])
}

/// Fails where the processor lacks what the check asks for.
fn fail_without<M: Module>(m: &mut M, c: &mut Code<'_>, cpu: Option<FuncId>) {
    if let Some(cpu) = cpu {
        let missing = call(m, c, cpu, &[]).expect("returns a flag");
        c.fail_if(missing, abi::ERROR_CPU);
    }
}

/// An exported function that goes on to the first of its forms that the processor has the instructions for.
fn define_choice<M: Module>(e: &mut Emitter<'_, M>, name: &str, params: &[Type], forms: &[(Option<FuncId>, FuncId)]) -> Result<FuncId> {
    let id = e.declare(name, Linkage::Export, params, &[I32])?;
    e.define(id, |m, c, p| {
        for (cpu, function) in forms {
            let Some(cpu) = cpu else {
                let code = call(m, c, *function, p).expect("returns a code");
                c.ret(&[code]);
                return Ok(());
            };
            let missing = call(m, c, *cpu, &[]).expect("returns a flag");
            let there = c.cmp_c(IntCC::Equal, missing, 0);
            c.if_(there, |c| {
                let code = call(m, c, *function, p).expect("returns a code");
                c.ret(&[code]);
            });
        }
        c.ret_code(abi::ERROR_CPU);
        Ok(())
    })?;
    Ok(id)
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

fn define_plan<M: Module>(m: &mut M, c: &mut Code<'_>, x: &Variant, p: &[Value]) -> Result<()> {
    let (inputs, outputs, workspace_bytes) = (p[0], p[1], p[2]);
    let t = &x.tables;
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

fn define_run<M: Module>(m: &mut M, c: &mut Code<'_>, options: &Options, x: &Variant, p: &[Value]) -> Result<()> {
    let (inputs, outputs, workspace, host) = (p[0], p[1], p[2], p[3]);
    let t = &x.tables;
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
    let weights = match options.weights {
        _ if t.weight_bytes == 0 => zero,
        Weights::Embed => {
            let id = m
                .declare_data(&options.weights_symbol(), Linkage::Import, false, false)
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
    // Sizes are checked the same way whatever the instruction set.
    let own = &x.variants[0].tables.texts;
    if x.variants.iter().any(|v| v.tables.texts != *own) {
        return Err(Error::internal("errors depend on the instruction set"));
    }
    for text in abi::ERROR_TEXTS.iter().copied().chain(own.iter().map(String::as_str)).chain(["an unknown error code"]) {
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
