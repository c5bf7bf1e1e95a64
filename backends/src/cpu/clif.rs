//! Structured control flow over Cranelift's function builder, and the module that functions are compiled into.

use super::unwind::Frames;
use cranelift_codegen::Context;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, AbiParam, Block, BlockArg, InstBuilder, MemFlagsData, Signature, Type, Value, types};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, ModuleReloc};
use nnc_ir::{Error, Result};
use std::fmt::Write;

pub use types::{F32, F64, I8, I16, I32, I64};

/// Memory that is there, of any alignment.
pub const MEM: MemFlagsData = MemFlagsData::new().with_notrap();

/// Functions with more Cranelift instructions than this are compiled without optimisation, whose cost is superlinear.
const OPTIMISE_UP_TO: usize = 4000;

/// A function under construction.
pub struct Code<'a> {
    pub b: FunctionBuilder<'a>,
}

impl Code<'_> {
    pub fn int(&mut self, v: i64) -> Value {
        self.b.ins().iconst(I64, v)
    }

    pub fn load(&mut self, ty: Type, base: Value, offset: i32) -> Value {
        self.b.ins().load(ty, MEM, base, offset)
    }

    pub fn store(&mut self, value: Value, base: Value, offset: i32) {
        self.b.ins().store(MEM, value, base, offset);
    }

    /// Address of element `index` of `scale` bytes.
    pub fn at(&mut self, base: Value, index: Value, scale: i64) -> Value {
        let bytes = match scale {
            1 => index,
            _ => self.b.ins().imul_imm_s(index, scale),
        };
        self.b.ins().iadd(base, bytes)
    }

    pub fn cmp(&mut self, cc: IntCC, a: Value, b: Value) -> Value {
        self.b.ins().icmp(cc, a, b)
    }

    pub fn cmp_c(&mut self, cc: IntCC, a: Value, b: i64) -> Value {
        self.b.ins().icmp_imm_s(cc, a, b)
    }

    pub fn select(&mut self, c: Value, a: Value, b: Value) -> Value {
        self.b.ins().select(c, a, b)
    }

    pub fn var(&mut self, init: Value) -> Variable {
        let ty = self.b.func.dfg.value_type(init);
        let v = self.b.declare_var(ty);
        self.b.def_var(v, init);
        v
    }

    pub fn get(&mut self, v: Variable) -> Value {
        self.b.use_var(v)
    }

    pub fn set(&mut self, v: Variable, value: Value) {
        self.b.def_var(v, value);
    }

    /// Continues in `block`, all of whose predecessors are there.
    pub fn enter(&mut self, block: Block) {
        self.b.switch_to_block(block);
        self.b.seal_block(block);
    }

    pub fn jump(&mut self, block: Block) {
        self.b.ins().jump(block, &[]);
    }

    pub fn branch(&mut self, cond: Value, then: Block, otherwise: Block) {
        self.b.ins().brif(cond, then, &[], otherwise, &[]);
    }

    /// Ends the function. What follows is dead, but has a block to stand in.
    pub fn ret(&mut self, values: &[Value]) {
        self.b.ins().return_(values);
        let dead = self.b.create_block();
        self.enter(dead);
    }

    pub fn ret_code(&mut self, code: i32) {
        let v = self.b.ins().iconst(I32, i64::from(code));
        self.ret(&[v]);
    }

    pub fn if_(&mut self, cond: Value, then: impl FnOnce(&mut Self)) {
        let (a, join) = (self.b.create_block(), self.b.create_block());
        self.branch(cond, a, join);
        self.enter(a);
        then(self);
        self.jump(join);
        self.enter(join);
    }

    pub fn if_else(&mut self, cond: Value, then: impl FnOnce(&mut Self), otherwise: impl FnOnce(&mut Self)) {
        let (a, b, join) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.branch(cond, a, b);
        self.enter(a);
        then(self);
        self.jump(join);
        self.enter(b);
        otherwise(self);
        self.jump(join);
        self.enter(join);
    }

    /// Returns `code` where `cond` holds, which is rare.
    pub fn fail_if(&mut self, cond: Value, code: i32) {
        let (fail, go) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(fail);
        self.branch(cond, fail, go);
        self.enter(fail);
        let v = self.b.ins().iconst(I32, i64::from(code));
        self.b.ins().return_(&[v]);
        self.enter(go);
    }

    /// Returns `code` where `value` is 0.
    pub fn fail_unless(&mut self, value: Value, code: i32) {
        let zero = self.cmp_c(IntCC::Equal, value, 0);
        self.fail_if(zero, code);
    }

    /// Returns the `i32` in `code` where it is not 0.
    pub fn fail_unless_zero(&mut self, code: Value) {
        let (fail, go) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(fail);
        self.branch(code, fail, go);
        self.enter(fail);
        self.b.ins().return_(&[code]);
        self.enter(go);
    }

    /// `while cond { body }`.
    pub fn while_(&mut self, cond: impl FnOnce(&mut Self) -> Value, body: impl FnOnce(&mut Self)) {
        let (head, inner, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.jump(head);
        self.b.switch_to_block(head);
        let c = cond(self);
        self.branch(c, inner, exit);
        self.enter(inner);
        body(self);
        self.jump(head);
        self.b.seal_block(head);
        self.enter(exit);
    }

    /// `for i in 0..n`.
    pub fn times(&mut self, n: Value, body: impl FnOnce(&mut Self, Value)) {
        let zero = self.int(0);
        let i = self.var(zero);
        self.while_(
            |c| {
                let i = c.get(i);
                c.cmp(IntCC::SignedLessThan, i, n)
            },
            |c| {
                let v = c.get(i);
                body(c, v);
                let next = c.b.ins().iadd_imm_s(v, 1);
                c.set(i, next);
            },
        );
    }

    /// Continues in one of `blocks` by number; numbers outside go to the last.
    pub fn switch(&mut self, number: Value, blocks: &[Block]) {
        let pool = &mut self.b.func.dfg.value_lists;
        let calls: Vec<ir::BlockCall> = blocks.iter().map(|b| ir::BlockCall::new(*b, std::iter::empty::<BlockArg>(), pool)).collect();
        let (last, table) = calls.split_last().expect("a switch has a target");
        let table = self.b.create_jump_table(ir::JumpTableData::new(*last, table));
        let number = self.b.ins().ireduce(I32, number);
        self.b.ins().br_table(number, table);
    }
}

/// Compiles functions and data into a module.
pub struct Emitter<'m, M: Module> {
    pub m: &'m mut M,
    /// What local names end in: where a module has the same functions for several instruction sets, which of them this is.
    pub variant: &'static str,
    /// The module's instruction set with optimisation off: for huge functions.
    plain: OwnedTargetIsa,
    ctx: Context,
    fctx: FunctionBuilderContext,
    /// Text of every function, where it is asked for.
    pub text: Option<String>,
    /// Unwind tables of every function, where they are asked for.
    pub frames: Option<Frames>,
}

impl<'m, M: Module> Emitter<'m, M> {
    pub fn new(m: &'m mut M, plain: OwnedTargetIsa) -> Self {
        let ctx = m.make_context();
        Emitter { m, variant: "", plain, ctx, fctx: FunctionBuilderContext::new(), text: None, frames: None }
    }

    pub fn signature(&self, params: &[Type], returns: &[Type]) -> Signature {
        let mut sig = self.m.make_signature();
        sig.params.extend(params.iter().map(|t| AbiParam::new(*t)));
        sig.returns.extend(returns.iter().map(|t| AbiParam::new(*t)));
        sig
    }

    pub fn declare(&mut self, name: &str, linkage: Linkage, params: &[Type], returns: &[Type]) -> Result<FuncId> {
        let sig = self.signature(params, returns);
        let name = &if linkage == Linkage::Local { self.local(name) } else { name.into() };
        self.m.declare_function(name, linkage, &sig).map_err(|e| module_error(name, &e))
    }

    /// A local name, with the variant.
    pub fn local(&self, name: &str) -> String {
        format!("{name}{}", self.variant)
    }

    /// Defines a declared function. `body` gets the module for what it refers to, and the parameters; it must return at its end.
    pub fn define(&mut self, id: FuncId, body: impl FnOnce(&mut M, &mut Code<'_>, &[Value]) -> Result<()>) -> Result<()> {
        let (name, sig) = {
            let d = self.m.declarations().get_function_decl(id);
            (d.linkage_name(id).into_owned(), d.signature.clone())
        };
        self.m.clear_context(&mut self.ctx);
        self.ctx.func.signature = sig;
        self.ctx.func.name = ir::UserFuncName::user(0, id.as_u32());
        let mut c = Code { b: FunctionBuilder::new(&mut self.ctx.func, &mut self.fctx) };
        let entry = c.b.create_block();
        c.b.append_block_params_for_function_params(entry);
        c.enter(entry);
        let params = c.b.block_params(entry).to_vec();
        body(self.m, &mut c, &params)?;
        // Whatever stands after the last return is unreachable, but every block must end.
        c.b.ins().trap(ir::TrapCode::unwrap_user(1));
        c.b.finalize(self.plain.frontend_config());
        if let Some(text) = &mut self.text {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "; {name}\n{}", self.ctx.func.display());
        }
        if self.ctx.func.dfg.num_insts() <= OPTIMISE_UP_TO {
            self.m.define_function(id, &mut self.ctx).map_err(|e| module_error(&name, &e))?;
        } else {
            if let Err(e) = self.ctx.compile(&*self.plain, &mut Default::default()) {
                return Err(Error::internal(format!("code generation of `{name}`: {}", e.inner)));
            }
            let code = self.ctx.compiled_code().expect("has just been compiled");
            let align = u64::from(code.buffer.alignment);
            let bytes = code.code_buffer().to_vec();
            let relocs: Vec<ModuleReloc> = code.buffer.relocs().iter().map(|r| ModuleReloc::from_mach_reloc(r, &self.ctx.func, id)).collect();
            self.m.define_function_bytes(id, align, &bytes, &relocs).map_err(|e| module_error(&name, &e))?;
        }
        match (&mut self.frames, self.ctx.compiled_code()) {
            (Some(frames), Some(code)) => frames.add(self.m.isa(), id, code),
            _ => Ok(()),
        }
    }

    /// A function given by its x86-64 machine code, which refers to nothing outside itself.
    pub fn define_bytes(&mut self, id: FuncId, bytes: &[u8]) -> Result<()> {
        self.m.define_function_bytes(id, 64, bytes, &[]).map_err(|e| module_error("emitted code", &e))?;
        if let Some(frames) = &mut self.frames {
            frames.add_emitted(self.m.isa(), id, bytes);
        }
        Ok(())
    }

    /// Constant data, or zeroed writable data where `bytes` is the number of them.
    pub fn data(&mut self, name: &str, bytes: Vec<u8>) -> Result<DataId> {
        let name = &self.local(name);
        let id = self.m.declare_data(name, Linkage::Local, false, false).map_err(|e| module_error(name, &e))?;
        let mut d = DataDescription::new();
        // Every table has an address, also the empty one.
        d.define(if bytes.is_empty() { vec![0; 8] } else { bytes }.into_boxed_slice());
        d.set_align(8);
        self.m.define_data(id, &d).map_err(|e| module_error(name, &e))?;
        Ok(id)
    }

    /// Writable memory, zero at load.
    pub fn zeros(&mut self, name: &str, bytes: usize) -> Result<DataId> {
        let name = &self.local(name);
        let id = self.m.declare_data(name, Linkage::Local, true, false).map_err(|e| module_error(name, &e))?;
        let mut d = DataDescription::new();
        d.define_zeroinit(bytes);
        d.set_align(8);
        self.m.define_data(id, &d).map_err(|e| module_error(name, &e))?;
        Ok(id)
    }
}

/// The address of a data object.
pub fn data_addr<M: Module>(m: &mut M, c: &mut Code<'_>, id: DataId) -> Value {
    let gv = m.declare_data_in_func(id, c.b.func);
    c.b.ins().symbol_value(I64, gv)
}

/// The address of a function.
pub fn func_addr<M: Module>(m: &mut M, c: &mut Code<'_>, id: FuncId) -> Value {
    let f = m.declare_func_in_func(id, c.b.func);
    c.b.ins().func_addr(I64, f)
}

/// Calls a function that returns at most one value.
pub fn call<M: Module>(m: &mut M, c: &mut Code<'_>, id: FuncId, args: &[Value]) -> Option<Value> {
    let f = m.declare_func_in_func(id, c.b.func);
    let inst = c.b.ins().call(f, args);
    c.b.inst_results(inst).first().copied()
}

pub fn module_error(name: &str, e: &cranelift_module::ModuleError) -> Error {
    Error::internal(format!("code generation of `{name}`: {e}"))
}
