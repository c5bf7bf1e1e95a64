//! The functions that execute a program's tables, generated once a module whatever the program's length.

use super::Ref;
use super::commands::{BASE_INPUTS, BASE_THREADS, BASE_WEIGHTS, BASE_WORK, BASE_ZERO, Command, Head, Tables, bytes_of};
use super::sizes::{KINDS, Kind, Span};
use crate::abi;
use crate::cpu::clif::{Code, Emitter, I8, I32, I64, call, data_addr, func_addr};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use cranelift_module::{DataId, FuncId, Linkage, Module};
use nnc_ir::Result;

/// Byte offsets of `nnc_tensor` and `nnc_host`.
pub mod layout {
    use crate::abi::{Host, Tensor};
    use std::mem::offset_of;

    pub const TENSOR: i64 = size_of::<Tensor>() as i64;
    pub const DATA: i32 = offset_of!(Tensor, data) as i32;
    pub const SHAPE: i32 = offset_of!(Tensor, shape) as i32;
    pub const RANK: i32 = offset_of!(Tensor, rank) as i32;
    pub const DTYPE: i32 = offset_of!(Tensor, dtype) as i32;
    pub const HOST_SIZE: i32 = offset_of!(Host, size) as i32;
    pub const CTX: i32 = offset_of!(Host, ctx) as i32;
    pub const THREADS: i32 = offset_of!(Host, threads) as i32;
    pub const PARALLEL_FOR: i32 = offset_of!(Host, parallel_for) as i32;
    pub const ALLOC: i32 = offset_of!(Host, alloc) as i32;
    pub const WEIGHTS: i32 = offset_of!(Host, weights) as i32;
    pub const WEIGHTS_BYTES: i32 = offset_of!(Host, weights_bytes) as i32;
    pub const TRACE: i32 = offset_of!(Host, trace) as i32;
    pub const DECODE: i32 = offset_of!(Host, decode) as i32;
}
use layout::*;

/// Launches with fewer scalar operations than this stay on the calling thread: waking another takes longer.
const PARALLEL_WORK: i64 = 1 << 15;

/// Kernels whose addresses one lookup function knows.
const LOOKUP: usize = 1024;

/// The generated functions, and the data that they read.
pub struct Machine {
    constants: DataId,
    /// `fn(inputs, slots, first, end) -> code`: executes operations.
    operate: FuncId,
    /// `fn(outputs, slots, shape table) -> code`: writes ranks, dtypes and shapes.
    shape: FuncId,
    /// `fn(outputs) -> code`: checks dtypes.
    types: FuncId,
    /// `fn(workspace, outputs, host) -> code`: executes the commands.
    execute: FuncId,
    planned: DataId,
    last: Option<DataId>,
    pub head: Head,
}

/// `constants` and slots as they are at hand in a function.
#[derive(Clone, Copy)]
struct Values {
    constants: Value,
    slots: Value,
}

impl Values {
    fn get(self, c: &mut Code<'_>, r: Value) -> Value {
        let late = c.b.ins().band_imm_s(r, 1);
        let base = c.select(late, self.slots, self.constants);
        let index = c.b.ins().ushr_imm_u(r, 1);
        let at = c.at(base, index, 8);
        c.load(I64, at, 0)
    }

    /// A value known to the compiler.
    fn known(self, c: &mut Code<'_>, r: Ref) -> Value {
        let base = if r.0 & 1 == 1 { self.slots } else { self.constants };
        c.load(I64, base, (r.0 >> 1) as i32 * 8)
    }
}

fn word(c: &mut Code<'_>, at: Value, i: i32) -> Value {
    c.b.ins().uload32(crate::cpu::clif::MEM, at, 4 * i)
}

impl Machine {
    pub fn define<M: Module>(e: &mut Emitter<'_, M>, t: &Tables, kernels: &[FuncId]) -> Result<Machine> {
        let constants = e.data("nnc.constants", t.constants.iter().flat_map(|v| v.to_le_bytes()).collect())?;
        let operations = e.data("nnc.operations", bytes_of(t.operations.iter().flat_map(|o| [o.kind as u32, o.d, o.a, o.b])))?;
        let commands = e.data("nnc.commands", bytes_of(t.commands.iter().copied()))?;
        let planned = e.data("nnc.shapes", bytes_of(t.planned_shapes.iter().copied()))?;
        let last = t.final_shapes.as_ref().map(|s| e.data("nnc.final_shapes", bytes_of(s.iter().copied()))).transpose()?;
        let head = t.head();
        let operate = operate(e, constants, operations)?;
        let (shape, types) = (shape(e, constants, t.outputs)?, output_types(e, planned, t.outputs)?);
        let lookup = lookup(e, kernels)?;
        let execute = execute(e, t, head, constants, commands, operate, lookup)?;
        Ok(Machine { constants, operate, shape, types, execute, planned, last, head })
    }

    /// Executes the operations of `span`; returns on an error.
    pub fn operate<M: Module>(&self, m: &mut M, c: &mut Code<'_>, inputs: Value, slots: Value, span: Span) {
        let (start, end) = (c.int(span.start.into()), c.int(span.end.into()));
        let code = call(m, c, self.operate, &[inputs, slots, start, end]).expect("returns a code");
        c.fail_unless_zero(code);
    }

    /// Checks the outputs' element types that the caller has written down, before anything is written to their memory.
    pub fn output_types<M: Module>(&self, m: &mut M, c: &mut Code<'_>, outputs: Value) {
        let code = call(m, c, self.types, &[outputs]).expect("returns a code");
        c.fail_unless_zero(code);
    }

    /// Writes the outputs' shapes as far as the plan knows them.
    pub fn plan_shapes<M: Module>(&self, m: &mut M, c: &mut Code<'_>, outputs: Value, slots: Value) {
        self.shapes(m, c, outputs, slots, self.planned);
    }

    /// Writes the shapes that only the run knows.
    pub fn final_shapes<M: Module>(&self, m: &mut M, c: &mut Code<'_>, outputs: Value, slots: Value) {
        if let Some(last) = self.last {
            self.shapes(m, c, outputs, slots, last);
        }
    }

    fn shapes<M: Module>(&self, m: &mut M, c: &mut Code<'_>, outputs: Value, slots: Value, table: DataId) {
        let table = data_addr(m, c, table);
        let code = call(m, c, self.shape, &[outputs, slots, table]).expect("returns a code");
        c.fail_unless_zero(code);
    }

    pub fn execute<M: Module>(&self, m: &mut M, c: &mut Code<'_>, workspace: Value, outputs: Value, host: Value) {
        let code = call(m, c, self.execute, &[workspace, outputs, host]).expect("returns a code");
        c.fail_unless_zero(code);
    }

    /// A value after its operations have been executed.
    pub fn value<M: Module>(&self, m: &mut M, c: &mut Code<'_>, slots: Value, r: Ref) -> Value {
        let constants = data_addr(m, c, self.constants);
        Values { constants, slots }.known(c, r)
    }

    /// Fills in the bases: weights, the workspace's body, inputs, outputs; blocks are empty.
    pub fn bases(&self, c: &mut Code<'_>, t: &Tables, workspace: Value, weights: Value, inputs: Value, outputs: Value) {
        let bases = c.b.ins().iadd_imm_s(workspace, self.head.bases);
        let zero = c.int(0);
        let body = c.b.ins().iadd_imm_s(workspace, self.head.bytes);
        c.store(zero, bases, 8 * BASE_ZERO as i32);
        c.store(weights, bases, 8 * BASE_WEIGHTS as i32);
        c.store(body, bases, 8 * BASE_WORK as i32);
        let mut first = i64::from(BASE_INPUTS);
        for (tensors, count) in [(inputs, t.inputs), (outputs, t.outputs)] {
            let to = c.b.ins().iadd_imm_s(bases, 8 * first);
            let n = c.int(count as i64);
            c.times(n, |c, i| {
                let tensor = c.at(tensors, i, TENSOR);
                let data = c.load(I64, tensor, DATA);
                let slot = c.at(to, i, 8);
                c.store(data, slot, 0);
            });
            first += count as i64;
        }
        for (at, count) in [(first, t.blocks), (t.head().capacities / 8 - t.slots as i64, t.blocks)] {
            let to = c.b.ins().iadd_imm_s(bases, 8 * at);
            let n = c.int(count as i64);
            c.times(n, |c, i| {
                let slot = c.at(to, i, 8);
                let zero = c.int(0);
                c.store(zero, slot, 0);
            });
        }
        let args = c.b.ins().iadd_imm_s(workspace, self.head.args);
        c.store(zero, args, -8);
    }
}

/// The machine of [`super::sizes`].
fn operate<M: Module>(e: &mut Emitter<'_, M>, constants: DataId, operations: DataId) -> Result<FuncId> {
    let id = e.declare("nnc.operate", Linkage::Local, &[I64, I64, I64, I64], &[I32])?;
    e.define(id, |m, c, p| {
        let (inputs, slots) = (p[0], p[1]);
        let values = Values { constants: data_addr(m, c, constants), slots };
        let table = data_addr(m, c, operations);
        let first = c.at(table, p[2], 16);
        let end = c.at(table, p[3], 16);
        let pc = c.var(first);
        c.while_(
            |c| {
                let pc = c.get(pc);
                c.cmp(IntCC::UnsignedLessThan, pc, end)
            },
            |c| {
                let at = c.get(pc);
                let [kind, d, a, b] = [0, 1, 2, 3].map(|i| word(c, at, i));
                let next = c.b.ins().iadd_imm_s(at, 16);
                c.set(pc, next);
                let join = c.b.create_block();
                let arms = KINDS.map(|_| c.b.create_block());
                c.switch(kind, &arms);
                for (kind, arm) in KINDS.into_iter().zip(arms) {
                    c.enter(arm);
                    let b = values.get(c, b);
                    operation(c, kind, inputs, values, d, a, b);
                    c.jump(join);
                }
                c.enter(join);
            },
        );
        c.ret_code(abi::OK);
        Ok(())
    })?;
    Ok(id)
}

/// One arm: `d` and `a` as they stand in the table, `b` resolved.
fn operation(c: &mut Code<'_>, kind: Kind, inputs: Value, values: Values, d: Value, a: Value, b: Value) {
    let put = |c: &mut Code<'_>, v: Value| {
        let slot = c.at(values.slots, d, 8);
        c.store(v, slot, 0);
    };
    let fail_if = |c: &mut Code<'_>, cond: Value| {
        c.if_(cond, |c| {
            let code = c.b.ins().ireduce(I32, d);
            c.ret(&[code]);
        });
    };
    match kind {
        Kind::Add | Kind::Mul => {
            let a = values.get(c, a);
            let (v, overflow) = if kind == Kind::Add { c.b.ins().sadd_overflow(a, b) } else { c.b.ins().smul_overflow(a, b) };
            c.fail_if(overflow, abi::ERROR_OVERFLOW);
            put(c, v);
        }
        Kind::FloorDiv | Kind::Mod => {
            let a = values.get(c, a);
            // Divisors are sizes: one that is not positive divides as 0 does.
            let positive = c.cmp_c(IntCC::SignedGreaterThan, b, 0);
            let one = c.int(1);
            let zero = c.int(0);
            let by = c.select(positive, b, one);
            let q = c.b.ins().sdiv(a, by);
            let r = c.b.ins().srem(a, by);
            let negative = c.cmp_c(IntCC::SignedLessThan, r, 0);
            if kind == Kind::FloorDiv {
                let borrow = c.b.ins().uextend(I64, negative);
                let q = c.b.ins().isub(q, borrow);
                let v = c.select(positive, q, zero);
                put(c, v);
            } else {
                let up = c.b.ins().iadd(r, by);
                let r = c.select(negative, up, r);
                let v = c.select(positive, r, a);
                put(c, v);
            }
        }
        Kind::Max | Kind::Min => {
            let a = values.get(c, a);
            let cc = if kind == Kind::Max { IntCC::SignedGreaterThan } else { IntCC::SignedLessThan };
            let first = c.cmp(cc, a, b);
            let v = c.select(first, a, b);
            put(c, v);
        }
        Kind::Axis => {
            let tensor = c.at(inputs, a, TENSOR);
            let shape = c.load(I64, tensor, SHAPE);
            let null = c.cmp_c(IntCC::Equal, shape, 0);
            c.fail_if(null, abi::ERROR_NULL);
            let axis = c.at(shape, b, 8);
            let v = c.load(I64, axis, 0);
            put(c, v);
        }
        Kind::Rank | Kind::DType => {
            let tensor = c.at(inputs, a, TENSOR);
            let have = c.load(I32, tensor, if kind == Kind::Rank { RANK } else { DTYPE });
            let want = c.b.ins().ireduce(I32, b);
            let differ = c.cmp(IntCC::NotEqual, have, want);
            fail_if(c, differ);
        }
        Kind::NotNegative => {
            let a = values.get(c, a);
            let negative = c.cmp_c(IntCC::SignedLessThan, a, 0);
            fail_if(c, negative);
        }
        Kind::Equal => {
            let a = values.get(c, a);
            let differ = c.cmp(IntCC::NotEqual, a, b);
            fail_if(c, differ);
        }
        Kind::Given => {
            let tensor = c.at(inputs, a, TENSOR);
            let data = c.load(I64, tensor, DATA);
            let null = c.cmp_c(IntCC::Equal, data, 0);
            let some = c.cmp_c(IntCC::NotEqual, b, 0);
            let missing = c.b.ins().band(null, some);
            fail_if(c, missing);
        }
    }
}

/// `fn(outputs) -> code`: each `dtype` is 0 or what the table of shapes says.
fn output_types<M: Module>(e: &mut Emitter<'_, M>, shapes: DataId, outputs: usize) -> Result<FuncId> {
    let id = e.declare("nnc.types", Linkage::Local, &[I64], &[I32])?;
    e.define(id, |m, c, p| {
        let first = data_addr(m, c, shapes);
        let table = c.var(first);
        let n = c.int(outputs as i64);
        c.times(n, |c, i| {
            let at = c.get(table);
            let (dtype, rank) = (word(c, at, 0), word(c, at, 1));
            let tensor = c.at(p[0], i, TENSOR);
            let found = c.b.ins().uload32(crate::cpu::clif::MEM, tensor, DTYPE);
            let differ = c.cmp(IntCC::NotEqual, found, dtype);
            let said = c.cmp_c(IntCC::NotEqual, found, 0);
            let bad = c.b.ins().band(differ, said);
            c.fail_if(bad, abi::ERROR_DTYPE);
            let refs = c.b.ins().iadd_imm_s(at, 8);
            let next = c.at(refs, rank, 4);
            c.set(table, next);
        });
        c.ret_code(abi::OK);
        Ok(())
    })?;
    Ok(id)
}

fn shape<M: Module>(e: &mut Emitter<'_, M>, constants: DataId, outputs: usize) -> Result<FuncId> {
    let id = e.declare("nnc.shape", Linkage::Local, &[I64, I64, I64], &[I32])?;
    e.define(id, |m, c, p| {
        let values = Values { constants: data_addr(m, c, constants), slots: p[1] };
        let n = c.int(outputs as i64);
        // All are checked before any is written.
        for write in [false, true] {
            let table = c.var(p[2]);
            c.times(n, |c, i| {
                let at = c.get(table);
                let (dtype, rank) = (word(c, at, 0), word(c, at, 1));
                let tensor = c.at(p[0], i, TENSOR);
                let dims = c.load(I64, tensor, SHAPE);
                let refs = c.b.ins().iadd_imm_s(at, 8);
                if write {
                    let (dtype, rank32) = (c.b.ins().ireduce(I32, dtype), c.b.ins().ireduce(I32, rank));
                    c.store(dtype, tensor, DTYPE);
                    c.store(rank32, tensor, RANK);
                    c.times(rank, |c, j| {
                        let r = c.at(refs, j, 4);
                        let r = word(c, r, 0);
                        let v = values.get(c, r);
                        let slot = c.at(dims, j, 8);
                        c.store(v, slot, 0);
                    });
                } else {
                    let capacity = c.load(I32, tensor, RANK);
                    let capacity = c.b.ins().sextend(I64, capacity);
                    let small = c.cmp(IntCC::SignedLessThan, capacity, rank);
                    let null = c.cmp_c(IntCC::Equal, dims, 0);
                    let some = c.cmp_c(IntCC::NotEqual, rank, 0);
                    let nowhere = c.b.ins().band(null, some);
                    let bad = c.b.ins().bor(small, nowhere);
                    c.fail_if(bad, abi::ERROR_RANK);
                }
                let next = c.at(refs, rank, 4);
                c.set(table, next);
            });
        }
        c.ret_code(abi::OK);
        Ok(())
    })?;
    Ok(id)
}

/// `fn(number) -> address` of the kernels: a jump table needs no relocation, unlike a table of addresses.
fn lookup<M: Module>(e: &mut Emitter<'_, M>, kernels: &[FuncId]) -> Result<FuncId> {
    let mut level = kernels.to_vec();
    let mut leaf = true;
    loop {
        let mut next = vec![];
        // A program without kernels still has the function, which is then never called.
        let chunks: Vec<&[FuncId]> = if level.is_empty() { vec![&[]] } else { level.chunks(LOOKUP).collect() };
        for (i, chunk) in chunks.iter().enumerate() {
            let id = e.declare(&format!("nnc.{}.{i}", if leaf { "kernel" } else { "kernels" }), Linkage::Local, &[I64], &[I64])?;
            e.define(id, |m, c, p| {
                let number =
                    if leaf { c.b.ins().band_imm_s(p[0], LOOKUP as i64 - 1) } else { c.b.ins().ushr_imm_u(p[0], LOOKUP.trailing_zeros() as i64) };
                let arms: Vec<_> = chunk.iter().map(|_| c.b.create_block()).collect();
                let none = c.b.create_block();
                c.switch(number, &[&arms[..], &[none]].concat());
                for (f, arm) in chunk.iter().zip(arms) {
                    c.enter(arm);
                    let address = if leaf { func_addr(m, c, *f) } else { call(m, c, *f, &[p[0]]).expect("returns an address") };
                    c.b.ins().return_(&[address]);
                }
                c.enter(none);
                let zero = c.int(0);
                c.ret(&[zero]);
                Ok(())
            })?;
            next.push(id);
        }
        if next.len() == 1 {
            return Ok(next[0]);
        }
        (level, leaf) = (next, false);
    }
}

fn execute<M: Module>(
    e: &mut Emitter<'_, M>,
    t: &Tables,
    head: Head,
    constants: DataId,
    commands: DataId,
    operate: FuncId,
    lookup: FuncId,
) -> Result<FuncId> {
    let id = e.declare("nnc.execute", Linkage::Local, &[I64, I64, I64], &[I32])?;
    let kernel_sig = e.signature(&[I64, I64], &[]);
    let for_sig = e.signature(&[I64, I64, I64, I64], &[]);
    let alloc_sig = e.signature(&[I64, I64, I64], &[I64]);
    let trace_sig = e.signature(&[I64, I64, I32], &[]);
    let decode_sig = e.signature(&[I64, I64, I64, I32, I64, I64], &[]);
    let first_output = i64::from(BASE_INPUTS) + t.inputs as i64;
    let first_block = first_output + t.outputs as i64;
    e.define(id, |m, c, p| {
        let (workspace, outputs, host) = (p[0], p[1], p[2]);
        let kernel_sig = c.b.import_signature(kernel_sig);
        let for_sig = c.b.import_signature(for_sig);
        let alloc_sig = c.b.import_signature(alloc_sig);
        let trace_sig = c.b.import_signature(trace_sig);
        let decode_sig = c.b.import_signature(decode_sig);
        let values = Values { constants: data_addr(m, c, constants), slots: workspace };
        let bases = c.b.ins().iadd_imm_s(workspace, head.bases);
        let args = c.b.ins().iadd_imm_s(workspace, head.args);
        let capacities = c.b.ins().iadd_imm_s(workspace, head.capacities);
        let zero = c.int(0);
        let start = data_addr(m, c, commands);

        // parallel_for, or 0 where the run has one thread; trace and decode, or 0 where the host has none.
        let parallel = c.var(zero);
        let ctx = c.var(zero);
        let one = c.int(1);
        c.store(one, bases, 8 * BASE_THREADS as i32);
        let (trace, decode) = (c.var(zero), c.var(zero));
        c.if_(host, |c| {
            let v = c.load(I64, host, CTX);
            c.set(ctx, v);
            let threads = c.load(I32, host, THREADS);
            let f = c.load(I64, host, PARALLEL_FOR);
            let many = c.cmp_c(IntCC::SignedGreaterThan, threads, 1);
            let f = c.select(many, f, zero);
            c.set(parallel, f);
            let threads = c.b.ins().sextend(I64, threads);
            let threads = c.select(f, threads, one);
            c.store(threads, bases, 8 * BASE_THREADS as i32);
            let size = c.load(I64, host, HOST_SIZE);
            for (field, to) in [(TRACE, trace), (DECODE, decode)] {
                let has = c.cmp_c(IntCC::UnsignedGreaterThan, size, i64::from(field));
                c.if_(has, |c| {
                    let f = c.load(I64, host, field);
                    c.set(to, f);
                });
            }
        });

        // 1 in every other iteration of loops: tasks then run from the last to the first, which finds in the caches what it left there.
        let turn = c.var(zero);
        let pc = c.var(start);
        let (head_block, done) = (c.b.create_block(), c.b.create_block());
        c.jump(head_block);
        c.b.switch_to_block(head_block);
        let at = c.get(pc);
        let arms = Command::REST.map(|k| (k, c.b.create_block()));
        let command = word(c, at, 0);
        let targets: Vec<_> = [done].into_iter().chain(arms.map(|a| a.1)).chain([done]).collect();
        c.switch(command, &targets);
        // The address of base + offset, both at word `i`.
        let place = |c: &mut Code<'_>, at: Value, i: i32| {
            let (base, offset) = (word(c, at, i), word(c, at, i + 1));
            let base = c.at(bases, base, 8);
            let base = c.load(I64, base, 0);
            let offset = values.get(c, offset);
            c.b.ins().iadd(base, offset)
        };
        // Memory of the host's; it stays the host's, whatever becomes of the run.
        let allocate = |c: &mut Code<'_>, bytes: Value| {
            let negative = c.cmp_c(IntCC::SignedLessThan, bytes, 0);
            c.fail_if(negative, abi::ERROR_SIZE);
            let huge = c.cmp_c(IntCC::SignedGreaterThan, bytes, abi::MAX_BYTES);
            c.fail_if(huge, abi::ERROR_SIZE);
            c.fail_unless(host, abi::ERROR_ALLOC);
            let alloc = c.load(I64, host, ALLOC);
            c.fail_unless(alloc, abi::ERROR_ALLOC);
            let align = c.int(abi::ALIGN as i64);
            let ctx = c.get(ctx);
            let call = c.b.ins().call_indirect(alloc_sig, alloc, &[ctx, bytes, align]);
            let data = c.b.inst_results(call)[0];
            c.fail_unless(data, abi::ERROR_ALLOC);
            data
        };
        for (kind, arm) in arms {
            c.enter(arm);
            match kind {
                Command::Launch => {
                    let [number, kernel, tasks, work, count] = [1, 2, 3, 4, 5].map(|i| word(c, at, i));
                    let refs = c.b.ins().iadd_imm_s(at, 24);
                    c.times(count, |c, i| {
                        let r = c.at(refs, i, 8);
                        let v = place(c, r, 0);
                        let slot = c.at(args, i, 8);
                        c.store(v, slot, 0);
                    });
                    let after = c.at(refs, count, 8);
                    c.set(pc, after);
                    let (tasks, work) = (values.get(c, tasks), values.get(c, work));
                    let f = call(m, c, lookup, &[kernel]).expect("returns an address");
                    let parallel_for = c.get(parallel);
                    let able = c.cmp_c(IntCC::NotEqual, parallel_for, 0);
                    let many = c.cmp_c(IntCC::SignedGreaterThan, tasks, 1);
                    let big = c.cmp_c(IntCC::SignedGreaterThanOrEqual, work, PARALLEL_WORK);
                    let wide = c.b.ins().band(able, many);
                    let wide = c.b.ins().band(wide, big);
                    let traced = |c: &mut Code<'_>, phase: i64| {
                        let trace = c.get(trace);
                        c.if_(trace, |c| {
                            let (ctx, phase) = (c.get(ctx), c.b.ins().iconst(I32, phase));
                            c.b.ins().call_indirect(trace_sig, trace, &[ctx, number, phase]);
                        });
                    };
                    traced(c, 0);
                    c.if_else(
                        wide,
                        |c| {
                            let ctx = c.get(ctx);
                            c.b.ins().call_indirect(for_sig, parallel_for, &[ctx, tasks, f, args]);
                        },
                        |c| {
                            let (last, odd) = (c.b.ins().iadd_imm_s(tasks, -1), c.get(turn));
                            c.times(tasks, |c, i| {
                                let back = c.b.ins().isub(last, i);
                                let task = c.select(odd, back, i);
                                c.b.ins().call_indirect(kernel_sig, f, &[args, task]);
                            });
                        },
                    );
                    traced(c, 1);
                    let status = c.load(I32, args, -8);
                    c.fail_unless_zero(status);
                }
                Command::Bind => {
                    let slot = word(c, at, 1);
                    let from = place(c, at, 2);
                    let v = c.load(I64, from, 0);
                    let negative = c.cmp_c(IntCC::SignedLessThan, v, 0);
                    c.fail_if(negative, abi::ERROR_SIZE);
                    let slot = c.at(workspace, slot, 8);
                    c.store(v, slot, 0);
                    let (first, end) = (word(c, at, 4), word(c, at, 5));
                    let code = call(m, c, operate, &[zero, workspace, first, end]).expect("returns a code");
                    c.fail_unless_zero(code);
                    let after = c.b.ins().iadd_imm_s(at, 24);
                    c.set(pc, after);
                }
                Command::Unless => {
                    let from = place(c, at, 1);
                    let holds = c.load(I8, from, 0);
                    let target = word(c, at, 3);
                    let target = c.at(start, target, 4);
                    let after = c.b.ins().iadd_imm_s(at, 16);
                    let next = c.select(holds, after, target);
                    c.set(pc, next);
                }
                Command::Jump => {
                    let target = word(c, at, 1);
                    let target = c.at(start, target, 4);
                    let back = c.cmp(IntCC::UnsignedLessThan, target, at);
                    let back = c.b.ins().uextend(I64, back);
                    let next = c.get(turn);
                    let next = c.b.ins().bxor(next, back);
                    c.set(turn, next);
                    c.set(pc, target);
                }
                Command::Output => {
                    let output = word(c, at, 1);
                    let index = c.b.ins().iadd_imm_s(output, first_output);
                    let slot = c.at(bases, index, 8);
                    let have = c.load(I64, slot, 0);
                    let missing = c.cmp_c(IntCC::Equal, have, 0);
                    c.if_(missing, |c| {
                        let bytes = word(c, at, 2);
                        let bytes = values.get(c, bytes);
                        // An empty tensor has an address, too.
                        let none = c.cmp_c(IntCC::Equal, bytes, 0);
                        let one = c.int(1);
                        let bytes = c.select(none, one, bytes);
                        let data = allocate(c, bytes);
                        c.store(data, slot, 0);
                        let tensor = c.at(outputs, output, TENSOR);
                        c.store(data, tensor, DATA);
                    });
                    let after = c.b.ins().iadd_imm_s(at, 12);
                    c.set(pc, after);
                }
                Command::Check => {
                    let (first, end) = (word(c, at, 1), word(c, at, 2));
                    let code = call(m, c, operate, &[zero, workspace, first, end]).expect("returns a code");
                    c.fail_unless_zero(code);
                    let after = c.b.ins().iadd_imm_s(at, 12);
                    c.set(pc, after);
                }
                Command::Reserve => {
                    let block = word(c, at, 1);
                    let bytes = word(c, at, 2);
                    let bytes = values.get(c, bytes);
                    let negative = c.cmp_c(IntCC::SignedLessThan, bytes, 0);
                    c.fail_if(negative, abi::ERROR_SIZE);
                    let capacity_at = c.at(capacities, block, 8);
                    let capacity = c.load(I64, capacity_at, 0);
                    let small = c.cmp(IntCC::SignedLessThan, capacity, bytes);
                    c.if_(small, |c| {
                        // Twice what it was, so that what grows element by element is not copied each time; whole words.
                        let twice = c.b.ins().ishl_imm_u(capacity, 1);
                        let more = c.cmp(IntCC::SignedGreaterThan, twice, bytes);
                        let want = c.select(more, twice, bytes);
                        let want = c.b.ins().iadd_imm_s(want, abi::ALIGN as i64 - 1);
                        let want = c.b.ins().band_imm_s(want, -(abi::ALIGN as i64));
                        let data = allocate(c, want);
                        let index = c.b.ins().iadd_imm_s(block, first_block);
                        let slot = c.at(bases, index, 8);
                        let old = c.load(I64, slot, 0);
                        let words = c.b.ins().ushr_imm_u(capacity, 3);
                        c.times(words, |c, i| {
                            let (from, to) = (c.at(old, i, 8), c.at(data, i, 8));
                            let v = c.load(I64, from, 0);
                            c.store(v, to, 0);
                        });
                        c.store(data, slot, 0);
                        c.store(want, capacity_at, 0);
                    });
                    let after = c.b.ins().iadd_imm_s(at, 12);
                    c.set(pc, after);
                }
                Command::Decode => {
                    let (bytes, channels) = (word(c, at, 1), word(c, at, 2));
                    let (bytes, channels) = (values.get(c, bytes), c.b.ins().ireduce(I32, channels));
                    let [file, sizes, samples] = [3, 5, 7].map(|i| place(c, at, i));
                    let decode = c.get(decode);
                    c.fail_unless(decode, abi::ERROR_DECODE);
                    let ctx = c.get(ctx);
                    c.b.ins().call_indirect(decode_sig, decode, &[ctx, file, bytes, channels, sizes, samples]);
                    let after = c.b.ins().iadd_imm_s(at, 36);
                    c.set(pc, after);
                }
                Command::End => unreachable!("has no arm"),
            }
            c.jump(head_block);
        }
        c.b.seal_block(head_block);
        c.enter(done);
        c.ret_code(abi::OK);
        Ok(())
    })?;
    Ok(id)
}
