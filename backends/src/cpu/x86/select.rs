//! Vector operations, masks and moves.

use super::codes::predicate;
use super::emit::{Emit, Opnd, Result, TMP, TMP32};
use super::regs::{Line, Loc};
use crate::cpu::vir::{Addr, Inst, M, MBin, Reg, Shuffle, Src, V, X};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use nnc_ir::error::Error;

/// `sum + factor * x`, `x` the value at `at` in all lanes.
pub(super) struct Product {
    code: Code,
    sum: V,
    factor: V,
    at: Addr,
}

impl Emit<'_> {
    fn fma(&mut self, neg: bool, d: V, a: V, b: Src, c: Src) -> Result<()> {
        let t = self.table;
        let same = |s: Src| s == Src::R(d);
        if same(c) {
            let dr = self.update(d)?;
            // An operand that is the accumulator itself must be read where the accumulator was loaded.
            let ar = if a == d { dr } else { self.v(a)? };
            let b = if same(b) { Opnd::Reg(dr) } else { self.src(b) };
            return self.op3(t.fma231(neg), dr, ar, b);
        }
        // From here on the sum is in another register than the result.
        let (a, b) = if same(b) { (d, Src::R(a)) } else { (a, b) };
        let dr = if a == d {
            self.update(d)?
        } else if let (Src::R(_), Src::R(cr)) = (b, c) {
            let dr = self.d(d)?;
            let cs = self.src(Src::R(cr));
            self.copy(dr, cs)?;
            let ar = self.v(a)?;
            let bs = self.src(b);
            return self.op3(t.fma231(neg), dr, ar, bs);
        } else {
            let dr = self.d(d)?;
            let s = self.src(Src::R(a));
            self.copy(dr, s)?;
            dr
        };
        // d holds the first factor.
        match (b, c) {
            (Src::R(br), _) => {
                let br = if br == d { dr } else { self.v(br)? };
                let cs = self.src(c);
                self.op3(t.fma213(neg), dr, br, cs)
            }
            (_, Src::R(cr)) => {
                let cr = self.v(cr)?;
                let bs = self.src(b);
                self.op3(t.fma132(neg), dr, cr, bs)
            }
            _ => Err(Error::internal("fma of two constants").into()),
        }
    }

    /// Where line `n` fills a vector with a value from memory only for the next line to multiply it: one instruction of AVX-512 does both. Two
    /// leave a quarter of a Zen 4's multiply-adds unused, for broadcasts take the units that multiply.
    pub(super) fn broadcast(&self, n: usize) -> Option<Product> {
        let (Line::Inst(Inst::Splat { d, a: at }), Line::Inst(next)) = (&self.flat.lines[n], self.flat.lines.get(n + 1)?) else { return None };
        let i = self.regs.at[&Reg::V(*d)];
        let (code, sum, a, b) = match *next {
            Inst::Fma { neg, d, a, b: Src::R(b), c } if c == Src::R(d) => (self.table.fma231(neg), d, a, b),
            Inst::Dot { d, a, b } => (Code::EVEX_Vdpbf16ps_zmm_k1z_zmm_zmmm512b32, d, a, b),
            _ => return None,
        };
        let once = i.start >= 2 * n && i.end <= 2 * (n + 1);
        let factor = if a == *d { b } else { a };
        let one = (a == *d) != (b == *d) && sum != *d;
        (self.table.wide && once && one).then_some(Product { code, sum, factor, at: *at })
    }

    pub(super) fn add_product(&mut self, p: Product) -> Result<()> {
        let d = self.update(p.sum)?;
        let factor = if p.factor == p.sum { d } else { self.v(p.factor)? };
        let m = MemoryOperand { is_broadcast: true, ..self.addr(p.at)? };
        self.op3(p.code, d, factor, Opnd::Mem(m))
    }

    /// The register of a result that is an operand as well.
    fn update(&mut self, d: V) -> Result<Register> {
        let r = self.d(d)?;
        if let Loc::Slot(s) = self.loc(Reg::V(d)) {
            let m = self.vector_slot(s);
            self.push(Instruction::with2(self.table.load(), r, m)?);
        }
        Ok(r)
    }

    fn masked(mut i: Instruction, k: Register, zero: bool) -> Instruction {
        i.set_op_mask(k);
        i.set_zeroing_masking(zero);
        i
    }

    fn xmm(r: Register) -> Register {
        Register::XMM0 + (r.number() as u32)
    }

    pub(super) fn inst(&mut self, inst: &Inst) -> Result<()> {
        let t = self.table;
        match *inst {
            Inst::Load { d, a } => {
                let m = self.addr(a)?;
                let d = self.d(d)?;
                self.push(Instruction::with2(t.load(), d, m)?);
            }
            Inst::Store { a, s } => {
                let s = self.v(s)?;
                let m = self.addr(a)?;
                self.push(Instruction::with2(t.store(), m, s)?);
            }
            Inst::LoadMask { d, a, m } => {
                let k = self.mask(m)?;
                let m = self.addr(a)?;
                let d = self.d(d)?;
                self.push(if t.wide {
                    Self::masked(Instruction::with2(t.load(), d, m)?, k, true)
                } else {
                    Instruction::with3(Code::VEX_Vmaskmovps_ymm_ymm_m256, d, k, m)?
                });
            }
            Inst::StoreMask { a, s, m } => {
                let k = self.mask(m)?;
                let s = self.v(s)?;
                let m = self.addr(a)?;
                self.push(if t.wide {
                    Self::masked(Instruction::with2(t.store(), m, s)?, k, false)
                } else {
                    Instruction::with3(Code::VEX_Vmaskmovps_m256_ymm_ymm, m, k, s)?
                });
            }
            Inst::Splat { d, a } => {
                let m = self.addr(a)?;
                let d = self.d(d)?;
                self.push(Instruction::with2(t.splat(), d, m)?);
            }
            Inst::SplatInt { d, x } => {
                let d = self.d(d)?;
                self.splat_int(d, X::R(x))?;
            }
            Inst::Const { d, bits } => {
                let d = self.d(d)?;
                if bits == 0 {
                    let xor = t.bin(crate::cpu::vir::VBin::Xor);
                    self.push(Instruction::with3(xor, d, d, d)?);
                } else {
                    let m = MemoryOperand { is_broadcast: false, ..self.splat_operand(bits) };
                    self.op2(t.splat(), d, Opnd::Mem(m))?;
                }
            }
            Inst::Copy { d, s } => {
                let s = self.src(Src::R(s));
                let d = self.d(d)?;
                self.copy(d, s)?;
            }
            Inst::Bin { op, d, a, b } => {
                let a = self.v(a)?;
                let b = self.src(b);
                let d = self.d(d)?;
                self.op3(t.bin(op), d, a, b)?;
            }
            Inst::Un { op, d, a } => {
                let a = self.v(a)?;
                let d = self.d(d)?;
                self.push(match t.un(op) {
                    (code, None) => Instruction::with2(code, d, a)?,
                    (code, Some(imm)) => Instruction::with3(code, d, a, imm)?,
                });
            }
            Inst::Fma { neg, d, a, b, c } => self.fma(neg, d, a, b, c)?,
            Inst::Dot { d, a, b } => {
                let dr = self.update(d)?;
                let a = self.v(a)?;
                let b = self.src(Src::R(b));
                self.op3(Code::EVEX_Vdpbf16ps_zmm_k1z_zmm_zmmm512b32, dr, a, b)?;
            }
            Inst::StoreBf16 { a, s } => {
                let s = self.v(s)?;
                let half = Register::YMM0 + (self.scratch()?.number() as u32);
                self.push(Instruction::with2(Code::EVEX_Vcvtneps2bf16_ymm_k1z_zmmm512b32, half, s)?);
                let m = self.addr(a)?;
                self.push(Instruction::with2(Code::EVEX_Vmovups_ymmm256_k1z_ymm, m, half)?);
            }
            Inst::Cmp { c, d, a, b } => {
                let a = self.v(a)?;
                let b = self.src(b);
                let d = self.mask_dest(d)?;
                let p = predicate(c);
                let i = match b {
                    Opnd::Reg(b) => Instruction::with4(t.cmp(), d, a, b, p)?,
                    Opnd::Mem(b) => Instruction::with4(t.cmp(), d, a, b, p)?,
                };
                self.push_pooled(i);
            }
            Inst::Select { d, m, t: x, f } => {
                let k = self.mask(m)?;
                let x = self.v(x)?;
                let f = self.v(f)?;
                let d = self.d(d)?;
                self.push(if t.wide {
                    Self::masked(Instruction::with3(Code::EVEX_Vblendmps_zmm_k1z_zmm_zmmm512b32, d, f, x)?, k, false)
                } else {
                    Instruction::with4(Code::VEX_Vblendvps_ymm_ymm_ymmm256_ymm, d, f, x, k)?
                });
            }
            Inst::Swap { d, a, dist } => {
                let a = self.v(a)?;
                let d = self.d(d)?;
                self.push(match (dist, t.wide) {
                    (1, _) => Instruction::with3(t.permute4(), d, a, 0b10_11_00_01)?,
                    (2, _) => Instruction::with3(t.permute4(), d, a, 0b01_00_11_10)?,
                    (4, false) => Instruction::with4(Code::VEX_Vperm2f128_ymm_ymm_ymmm256_imm8, d, a, a, 1)?,
                    (4, true) => Instruction::with4(Code::EVEX_Vshuff32x4_zmm_k1z_zmm_zmmm512b32_imm8, d, a, a, 0b10_11_00_01)?,
                    _ => Instruction::with4(Code::EVEX_Vshuff32x4_zmm_k1z_zmm_zmmm512b32_imm8, d, a, a, 0b01_00_11_10)?,
                });
            }
            Inst::Shuffle { how, d, a, b } => {
                let a = self.v(a)?;
                let b = self.v(b)?;
                let d = self.d(d)?;
                let bits = |pick| Shuffle::bits(pick);
                self.push(match (how, t.wide) {
                    (Shuffle::MixLow, true) => Instruction::with3(Code::EVEX_Vunpcklps_zmm_k1z_zmm_zmmm512b32, d, a, b)?,
                    (Shuffle::MixLow, false) => Instruction::with3(Code::VEX_Vunpcklps_ymm_ymm_ymmm256, d, a, b)?,
                    (Shuffle::MixHigh, true) => Instruction::with3(Code::EVEX_Vunpckhps_zmm_k1z_zmm_zmmm512b32, d, a, b)?,
                    (Shuffle::MixHigh, false) => Instruction::with3(Code::VEX_Vunpckhps_ymm_ymm_ymmm256, d, a, b)?,
                    (Shuffle::Lanes(p), true) => Instruction::with4(Code::EVEX_Vshufps_zmm_k1z_zmm_zmmm512b32_imm8, d, a, b, bits(p))?,
                    (Shuffle::Lanes(p), false) => Instruction::with4(Code::VEX_Vshufps_ymm_ymm_ymmm256_imm8, d, a, b, bits(p))?,
                    (Shuffle::Fours(p), true) => Instruction::with4(Code::EVEX_Vshuff32x4_zmm_k1z_zmm_zmmm512b32_imm8, d, a, b, bits(p))?,
                    (Shuffle::Fours(p), false) => {
                        let bits = u32::from(p[0]) | u32::from(2 + p[2]) << 4;
                        Instruction::with4(Code::VEX_Vperm2f128_ymm_ymm_ymmm256_imm8, d, a, b, bits)?
                    }
                });
            }
            Inst::Tail { d, n } => self.tail(d, n)?,
            Inst::Mask { op, d, a, b } => {
                let a = self.mask(a)?;
                let b = self.mask(b)?;
                let d = self.mask_dest(d)?;
                let code = match (op, t.wide) {
                    (MBin::And, true) => Code::VEX_Kandw_kr_kr_kr,
                    (MBin::Or, true) => Code::VEX_Korw_kr_kr_kr,
                    (MBin::Xor, true) => Code::VEX_Kxorw_kr_kr_kr,
                    (MBin::And, false) => Code::VEX_Vpand_ymm_ymm_ymmm256,
                    (MBin::Or, false) => Code::VEX_Vpor_ymm_ymm_ymmm256,
                    (MBin::Xor, false) => Code::VEX_Vpxor_ymm_ymm_ymmm256,
                };
                self.push(Instruction::with3(code, d, a, b)?);
            }
            Inst::Int { d, x } => {
                if let (Loc::Slot(s), X::C(c)) = (self.loc(Reg::I(d)), x)
                    && let Ok(c) = i32::try_from(c)
                {
                    let m = self.int_slot(s);
                    self.push(Instruction::with2(Code::Mov_rm64_imm32, m, c)?);
                    return Ok(());
                }
                let r = self.in_register(d).unwrap_or(TMP);
                self.mov(r, x)?;
                self.finish_int(d, r)?;
            }
            Inst::IBin { op, d, a, b } => self.int_op(op, d, a, b)?,
            Inst::ISelect { d, c, a, b, t, f } => self.int_select(d, c, [a, b, t, f])?,
            Inst::Lea { d, a } => {
                let m = self.addr(a)?;
                let r = self.in_register(d).unwrap_or(TMP);
                self.push(Instruction::with2(Code::Lea_r64_m, r, m)?);
                self.finish_int(d, r)?;
            }
            Inst::ILoad { d, a, wide } => {
                let m = self.addr(a)?;
                let r = self.in_register(d).unwrap_or(TMP);
                let code = if wide { Code::Mov_r64_rm64 } else { Code::Movsxd_r64_rm32 };
                self.push(Instruction::with2(code, r, m)?);
                self.finish_int(d, r)?;
            }
            Inst::Frame { d, off } => {
                let r = self.in_register(d).unwrap_or(TMP);
                let m = MemoryOperand::with_base_displ(Register::RSP, i64::from(off));
                self.push(Instruction::with2(Code::Lea_r64_m, r, m)?);
                self.finish_int(d, r)?;
            }
            Inst::Prefetch { a, first } => {
                let m = self.addr(a)?;
                self.push(Instruction::with1(if first { Code::Prefetcht0_m8 } else { Code::Prefetcht1_m8 }, m)?);
            }
        }
        Ok(())
    }

    /// The low half of `x` in all lanes of `d`.
    fn splat_int(&mut self, d: Register, x: X) -> Result<()> {
        self.mov(TMP, x)?;
        if self.table.wide {
            self.push(Instruction::with2(Code::EVEX_Vpbroadcastd_zmm_k1z_r32, d, TMP32)?);
        } else {
            let low = Self::xmm(d);
            self.push(Instruction::with2(Code::VEX_Vmovd_xmm_rm32, low, TMP32)?);
            self.push(Instruction::with2(Code::VEX_Vpbroadcastd_ymm_xmmm32, d, low)?);
        }
        Ok(())
    }

    fn tail(&mut self, m: M, n: X) -> Result<()> {
        let d = self.mask_dest(m)?;
        let lanes = self.lanes as i64;
        match (self.table.wide, n) {
            (true, X::C(n)) => {
                let bits = (1u32 << n.clamp(0, lanes)) - 1;
                self.push(Instruction::with2(Code::Mov_r32_imm32, TMP32, bits)?);
                self.push(Instruction::with2(Code::VEX_Kmovw_kr_r32, d, TMP32)?);
            }
            (false, X::C(n)) => {
                let mask = (0..lanes).map(|l| if l < n { u32::MAX } else { 0 }).collect();
                let m = self.pool(mask);
                self.op2(self.table.load(), d, Opnd::Mem(m))?;
            }
            (wide, n) => {
                let v = if wide { self.scratch()? } else { d };
                self.splat_int(v, n)?;
                let iota = Opnd::Mem(self.pool((0..self.lanes as u32).collect()));
                let code = if wide { Code::EVEX_Vpcmpgtd_kr_k1_zmm_zmmm512b32 } else { Code::VEX_Vpcmpgtd_ymm_ymm_ymmm256 };
                self.op3(code, d, v, iota)?;
            }
        }
        Ok(())
    }
}
