//! Vector kernels as Cranelift IR with vectors of four floats: for targets that [`super::x86`] does not know.
//!
//! Unrolled kernels want `opt_level=none`: the optimiser hoists all loads of a block to its top, which costs registers.

use super::vir::{ARGS, Addr, Func, I, IBin, ICmp, Inst, M, MBin, Reg, Src, Stmt, TASK, V, VBin, VCmp, VUn, X, verify};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, I8X16, I32, I32X4, I64};
use cranelift_codegen::ir::{ConstantData, Endianness, Function, InstBuilder, MemFlagsData, StackSlot, StackSlotData, StackSlotKind, Type, Value};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use nnc_ir::error::{Error, Result};
use std::collections::HashMap;

/// What of the target matters here.
#[derive(Clone, Copy)]
pub struct Target {
    pub frontend: TargetFrontendConfig,
    /// Whether a fused multiply-add is an instruction; where it is a library call, a product and a sum stand in for it.
    pub fma: bool,
}

/// Writes the body of `func`, a kernel of 4 lanes, into `out`, whose signature is `(i64, i64)`.
pub fn lower(func: &Func, target: Target, out: &mut Function, context: &mut FunctionBuilderContext) -> Result<()> {
    verify::verify(func)?;
    if func.lanes != 4 {
        return Err(Error::unsupported(format!("{}: portable vectors of {} lanes", func.name, func.lanes)));
    }
    let mut b = FunctionBuilder::new(out, context);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let slot = |b: &mut FunctionBuilder, bytes| b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 6));
    let frame = slot(&mut b, func.frame.max(16));
    let spare = slot(&mut b, 16);
    let mut lower = Lower { b, vars: HashMap::new(), frame, spare, target };
    let params = lower.b.block_params(entry).to_vec();
    lower.def_i(ARGS, params[0]);
    lower.def_i(TASK, params[1]);
    lower.block(&func.body);
    lower.b.ins().return_(&[]);
    lower.b.seal_all_blocks();
    lower.b.finalize(target.frontend);
    Ok(())
}

struct Lower<'f> {
    b: FunctionBuilder<'f>,
    vars: HashMap<Reg, Variable>,
    frame: StackSlot,
    /// Where masked-off lanes go.
    spare: StackSlot,
    target: Target,
}

/// Kernels access memory that their caller answers for, at any alignment of f32.
const MEM: MemFlagsData = MemFlagsData::new().with_notrap();

fn int_cc(c: ICmp) -> IntCC {
    match c {
        ICmp::Lt => IntCC::SignedLessThan,
        ICmp::Le => IntCC::SignedLessThanOrEqual,
        ICmp::Gt => IntCC::SignedGreaterThan,
        ICmp::Ge => IntCC::SignedGreaterThanOrEqual,
        ICmp::Eq => IntCC::Equal,
        ICmp::Ne => IntCC::NotEqual,
    }
}

fn float_cc(c: VCmp) -> FloatCC {
    match c {
        VCmp::Lt => FloatCC::LessThan,
        VCmp::Le => FloatCC::LessThanOrEqual,
        VCmp::Gt => FloatCC::GreaterThan,
        VCmp::Ge => FloatCC::GreaterThanOrEqual,
        VCmp::Eq => FloatCC::Equal,
        VCmp::Ne => FloatCC::NotEqual,
        VCmp::Unord => FloatCC::Unordered,
    }
}

impl Lower<'_> {
    fn var(&mut self, r: Reg) -> Variable {
        if let Some(v) = self.vars.get(&r) {
            return *v;
        }
        let ty = match r {
            Reg::V(_) => F32X4,
            Reg::M(_) => I32X4,
            Reg::I(_) => I64,
        };
        let v = self.b.declare_var(ty);
        self.vars.insert(r, v);
        v
    }

    fn get(&mut self, r: Reg) -> Value {
        let v = self.var(r);
        self.b.use_var(v)
    }

    fn def(&mut self, r: Reg, x: Value) {
        let v = self.var(r);
        self.b.def_var(v, x);
    }

    fn v(&mut self, v: V) -> Value {
        self.get(Reg::V(v))
    }

    fn m(&mut self, m: M) -> Value {
        self.get(Reg::M(m))
    }

    fn def_v(&mut self, v: V, x: Value) {
        self.def(Reg::V(v), x);
    }

    fn def_i(&mut self, i: I, x: Value) {
        self.def(Reg::I(i), x);
    }

    fn int(&mut self, x: X) -> Value {
        match x {
            X::R(i) => self.get(Reg::I(i)),
            X::C(c) => self.b.ins().iconst(I64, c),
        }
    }

    fn src(&mut self, s: Src) -> Value {
        match s {
            Src::R(v) => self.v(v),
            Src::C(bits) => self.splat_bits(bits),
        }
    }

    fn splat_bits(&mut self, bits: u32) -> Value {
        self.constant([bits; 4], F32X4)
    }

    fn constant(&mut self, lanes: [u32; 4], ty: Type) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|l| l.to_le_bytes()).collect();
        let c = self.b.func.dfg.constants.insert(ConstantData::from(bytes.as_slice()));
        self.b.ins().vconst(ty, c)
    }

    fn cast(&mut self, ty: Type, x: Value) -> Value {
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), x)
    }

    /// The address without its displacement, and the displacement.
    fn addr(&mut self, a: Addr) -> (Value, i32) {
        let mut p = self.get(Reg::I(a.base));
        if let Some((i, scale)) = a.index {
            let i = self.get(Reg::I(i));
            let i = if scale > 1 { self.b.ins().imul_imm_s(i, i64::from(scale)) } else { i };
            p = self.b.ins().iadd(p, i);
        }
        (p, a.disp)
    }

    fn block(&mut self, stmts: &[Stmt]) {
        for s in stmts {
            match s {
                Stmt::Inst(i) => self.inst(i),
                Stmt::Loop { iv, from, to, step, body } => {
                    let (head, end) = (self.b.create_block(), self.b.create_block());
                    let from = self.int(*from);
                    self.def_i(*iv, from);
                    let limit = self.int(*to);
                    let enter = self.b.ins().icmp(IntCC::SignedLessThan, from, limit);
                    self.b.ins().brif(enter, head, &[], end, &[]);
                    self.b.switch_to_block(head);
                    self.block(body);
                    let i = self.get(Reg::I(*iv));
                    let next = self.b.ins().iadd_imm_s(i, *step);
                    self.def_i(*iv, next);
                    let limit = self.int(*to);
                    let again = self.b.ins().icmp(IntCC::SignedLessThan, next, limit);
                    self.b.ins().brif(again, head, &[], end, &[]);
                    self.b.switch_to_block(end);
                }
                Stmt::If { c, a, b, then, els } => {
                    let blocks = [(); 3].map(|()| self.b.create_block());
                    let (a, b) = (self.int(*a), self.int(*b));
                    let c = self.b.ins().icmp(int_cc(*c), a, b);
                    self.b.ins().brif(c, blocks[0], &[], blocks[1], &[]);
                    for (block, body) in blocks.iter().zip([then, els]) {
                        self.b.switch_to_block(*block);
                        self.block(body);
                        self.b.ins().jump(blocks[2], &[]);
                    }
                    self.b.switch_to_block(blocks[2]);
                }
            }
        }
    }

    fn bin(&mut self, op: VBin, a: Value, b: Value) -> Value {
        let ints = |s: &mut Self| (s.cast(I32X4, a), s.cast(I32X4, b));
        let x = match op {
            VBin::Add => return self.b.ins().fadd(a, b),
            VBin::Sub => return self.b.ins().fsub(a, b),
            VBin::Mul => return self.b.ins().fmul(a, b),
            VBin::Div => return self.b.ins().fdiv(a, b),
            // fmax and fmin would order NaNs and zeros at a cost; a comparison and a selection are this IR's meaning.
            VBin::Max | VBin::Min => {
                let cc = if op == VBin::Max { FloatCC::GreaterThan } else { FloatCC::LessThan };
                let m = self.b.ins().fcmp(cc, a, b);
                let m = self.cast(F32X4, m);
                return self.b.ins().bitselect(m, a, b);
            }
            VBin::And => return self.b.ins().band(a, b),
            VBin::AndNot => return self.b.ins().band_not(b, a),
            VBin::Or => return self.b.ins().bor(a, b),
            VBin::Xor => return self.b.ins().bxor(a, b),
            VBin::IAdd => {
                let (a, b) = ints(self);
                self.b.ins().iadd(a, b)
            }
            VBin::ISub => {
                let (a, b) = ints(self);
                self.b.ins().isub(a, b)
            }
            VBin::IMul => {
                let (a, b) = ints(self);
                self.b.ins().imul(a, b)
            }
            VBin::Scale => unreachable!("verified: only vectors of 16 lanes are scaled"),
        };
        self.cast(F32X4, x)
    }

    fn un(&mut self, op: VUn, a: Value) -> Value {
        let x = match op {
            VUn::Sqrt => return self.b.ins().sqrt(a),
            VUn::Nearest => return self.b.ins().nearest(a),
            VUn::Floor => return self.b.ins().floor(a),
            VUn::Ceil => return self.b.ins().ceil(a),
            VUn::Trunc => return self.b.ins().trunc(a),
            VUn::ToInt => {
                let r = self.b.ins().nearest(a);
                self.b.ins().fcvt_to_sint_sat(I32X4, r)
            }
            VUn::ToIntTrunc => self.b.ins().fcvt_to_sint_sat(I32X4, a),
            VUn::FromInt => {
                let a = self.cast(I32X4, a);
                return self.b.ins().fcvt_from_sint(F32X4, a);
            }
            VUn::Shl(n) | VUn::Shr(n) | VUn::Sar(n) => {
                let a = self.cast(I32X4, a);
                let n = self.b.ins().iconst(I32, i64::from(n));
                match op {
                    VUn::Shl(_) => self.b.ins().ishl(a, n),
                    VUn::Shr(_) => self.b.ins().ushr(a, n),
                    _ => self.b.ins().sshr(a, n),
                }
            }
        };
        self.cast(F32X4, x)
    }

    /// For each lane, its address if `m` holds there, else a spare word's.
    fn lane_addrs(&mut self, a: Addr, m: M) -> Vec<Value> {
        let (p, disp) = self.addr(a);
        let p = self.b.ins().iadd_imm_s(p, i64::from(disp));
        let spare = self.b.ins().stack_addr(I64, self.spare, 0);
        let m = self.m(m);
        (0..4u8)
            .map(|l| {
                let on = self.b.ins().extractlane(m, l);
                let at = self.b.ins().iadd_imm_s(p, i64::from(l) * 4);
                self.b.ins().select(on, at, spare)
            })
            .collect()
    }

    fn inst(&mut self, inst: &Inst) {
        match *inst {
            Inst::Load { d, a } => {
                let (p, off) = self.addr(a);
                let x = self.b.ins().load(F32X4, MEM, p, off);
                self.def_v(d, x);
            }
            Inst::Store { a, s } => {
                let (p, off) = self.addr(a);
                let s = self.v(s);
                self.b.ins().store(MEM, s, p, off);
            }
            Inst::LoadMask { d, a, m } => {
                let zero = self.b.ins().iconst(I64, 0);
                self.b.ins().stack_store(I64, zero, self.spare, 0);
                let mut x = self.splat_bits(0);
                for (l, p) in self.lane_addrs(a, m).into_iter().enumerate() {
                    let y = self.b.ins().load(F32, MEM, p, 0);
                    x = self.b.ins().insertlane(x, y, l as u8);
                }
                self.def_v(d, x);
            }
            Inst::StoreMask { a, s, m } => {
                let s = self.v(s);
                for (l, p) in self.lane_addrs(a, m).into_iter().enumerate() {
                    let x = self.b.ins().extractlane(s, l as u8);
                    self.b.ins().store(MEM, x, p, 0);
                }
            }
            Inst::Splat { d, a } => {
                let (p, off) = self.addr(a);
                let x = self.b.ins().load(F32, MEM, p, off);
                let x = self.b.ins().splat(F32X4, x);
                self.def_v(d, x);
            }
            Inst::SplatInt { d, x } => {
                let x = self.int(X::R(x));
                let x = self.b.ins().ireduce(I32, x);
                let x = self.b.ins().splat(I32X4, x);
                let x = self.cast(F32X4, x);
                self.def_v(d, x);
            }
            Inst::Const { d, bits } => {
                let x = self.splat_bits(bits);
                self.def_v(d, x);
            }
            Inst::Copy { d, s } => {
                let s = self.v(s);
                self.def_v(d, s);
            }
            Inst::Bin { op, d, a, b } => {
                let (a, b) = (self.v(a), self.src(b));
                let x = self.bin(op, a, b);
                self.def_v(d, x);
            }
            Inst::Un { op, d, a } => {
                let a = self.v(a);
                let x = self.un(op, a);
                self.def_v(d, x);
            }
            Inst::Fma { neg, d, a, b, c } => {
                let (a, b, c) = (self.v(a), self.src(b), self.src(c));
                let a = if neg { self.b.ins().fneg(a) } else { a };
                let x = if self.target.fma {
                    self.b.ins().fma(a, b, c)
                } else {
                    let p = self.b.ins().fmul(a, b);
                    self.b.ins().fadd(p, c)
                };
                self.def_v(d, x);
            }
            Inst::Dot { .. } | Inst::StoreBf16 { .. } => unreachable!("verified: only vectors of 16 lanes have pairs"),
            Inst::Cmp { c, d, a, b } => {
                let (a, b) = (self.v(a), self.src(b));
                let x = self.b.ins().fcmp(float_cc(c), a, b);
                self.def(Reg::M(d), x);
            }
            Inst::Select { d, m, t, f } => {
                let m = self.m(m);
                let m = self.cast(F32X4, m);
                let (t, f) = (self.v(t), self.v(f));
                let x = self.b.ins().bitselect(m, t, f);
                self.def_v(d, x);
            }
            Inst::Swap { d, a, dist } => {
                let a = self.v(a);
                let a = self.cast(I8X16, a);
                let bytes: Vec<u8> = (0..16u8).map(|i| ((i / 4) ^ dist) * 4 + i % 4).collect();
                let mask = self.b.func.dfg.immediates.push(ConstantData::from(bytes.as_slice()));
                let x = self.b.ins().shuffle(a, a, mask);
                let x = self.cast(F32X4, x);
                self.def_v(d, x);
            }
            Inst::Shuffle { how, d, a, b } => {
                let (a, b) = (self.v(a), self.v(b));
                let (a, b) = (self.cast(I8X16, a), self.cast(I8X16, b));
                let from = [0, 1, 2, 3].map(|l| how.source(4, l)).map(|(second, lane)| (lane as u8 + 4 * u8::from(second)) * 4);
                let bytes: Vec<u8> = from.iter().flat_map(|f| *f..f + 4).collect();
                let mask = self.b.func.dfg.immediates.push(ConstantData::from(bytes.as_slice()));
                let x = self.b.ins().shuffle(a, b, mask);
                let x = self.cast(F32X4, x);
                self.def_v(d, x);
            }
            Inst::Tail { d, n } => {
                let n = self.int(n);
                let n = self.b.ins().ireduce(I32, n);
                let n = self.b.ins().splat(I32X4, n);
                let iota = self.constant([0, 1, 2, 3], I32X4);
                let x = self.b.ins().icmp(IntCC::SignedGreaterThan, n, iota);
                self.def(Reg::M(d), x);
            }
            Inst::Mask { op, d, a, b } => {
                let (a, b) = (self.m(a), self.m(b));
                let x = match op {
                    MBin::And => self.b.ins().band(a, b),
                    MBin::Or => self.b.ins().bor(a, b),
                    MBin::Xor => self.b.ins().bxor(a, b),
                };
                self.def(Reg::M(d), x);
            }
            Inst::Int { d, x } => {
                let x = self.int(x);
                self.def_i(d, x);
            }
            Inst::IBin { op, d, a, b } => {
                let (a, b) = (self.int(a), self.int(b));
                let x = match op {
                    IBin::Add => self.b.ins().iadd(a, b),
                    IBin::Sub => self.b.ins().isub(a, b),
                    IBin::Mul => self.b.ins().imul(a, b),
                    IBin::Shl => self.b.ins().ishl(a, b),
                    IBin::Shr => self.b.ins().ushr(a, b),
                    IBin::And => self.b.ins().band(a, b),
                    IBin::DivU => self.b.ins().udiv(a, b),
                    IBin::RemU => self.b.ins().urem(a, b),
                    IBin::Min => self.b.ins().smin(a, b),
                    IBin::Max => self.b.ins().smax(a, b),
                };
                self.def_i(d, x);
            }
            Inst::ISelect { d, c, a, b, t, f } => {
                let (a, b, t, f) = (self.int(a), self.int(b), self.int(t), self.int(f));
                let c = self.b.ins().icmp(int_cc(c), a, b);
                let x = self.b.ins().select(c, t, f);
                self.def_i(d, x);
            }
            Inst::Lea { d, a } => {
                let (p, off) = self.addr(a);
                let x = self.b.ins().iadd_imm_s(p, i64::from(off));
                self.def_i(d, x);
            }
            Inst::ILoad { d, a, wide } => {
                let (p, off) = self.addr(a);
                let x = if wide {
                    self.b.ins().load(I64, MEM, p, off)
                } else {
                    let x = self.b.ins().load(I32, MEM, p, off);
                    self.b.ins().sextend(I64, x)
                };
                self.def_i(d, x);
            }
            Inst::Frame { d, off } => {
                let x = self.b.ins().stack_addr(I64, self.frame, off as i32);
                self.def_i(d, x);
            }
            // Only a hint, and Cranelift has no instruction for it.
            Inst::Prefetch { .. } => {}
        }
    }
}
