//! Integer operations. The result is computed in its own register where that is free to change, else in r11.

use super::codes::cmov;
use super::emit::{Emit, INTS, Result, TMP};
use super::regs::Loc;
use crate::cpu::vir::interp::eval_int;
use crate::cpu::vir::{I, IBin, ICmp, Inst, Reg, X};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use nnc_ir::error::Error;

impl Emit<'_> {
    /// `op reg, x` for an operand in a register, a slot or a constant.
    pub(super) fn alu(&mut self, rm: Code, imm: Code, d: Register, x: X) -> Result<()> {
        let i = match x {
            X::C(c) => Instruction::with2(imm, d, c as i32)?,
            X::R(r) => match self.loc(Reg::I(r)) {
                Loc::Reg(k) => Instruction::with2(rm, d, INTS[k as usize])?,
                Loc::Slot(s) => Instruction::with2(rm, d, self.int_slot(s))?,
            },
        };
        self.push(i);
        Ok(())
    }

    pub(super) fn mov(&mut self, d: Register, x: X) -> Result<()> {
        match x {
            X::C(c) => match i32::try_from(c) {
                Ok(c) => self.push(Instruction::with2(Code::Mov_rm64_imm32, d, c)?),
                Err(_) => self.push(Instruction::with2(Code::Mov_r64_imm64, d, c as u64)?),
            },
            X::R(r) => {
                if self.loc(Reg::I(r)) != Loc::Reg(INTS.iter().position(|x| *x == d).map_or(u8::MAX, |k| k as u8)) {
                    self.alu(Code::Mov_r64_rm64, Code::Mov_rm64_imm32, d, x)?;
                }
            }
        }
        Ok(())
    }

    /// Compares and returns the condition to test, which is not `c` if the operands had to change places.
    pub(super) fn compare(&mut self, c: ICmp, a: X, b: X) -> Result<ICmp> {
        let in_reg = |e: &Self, x: X| match x {
            X::R(r) => match e.loc(Reg::I(r)) {
                Loc::Reg(k) => Some(INTS[k as usize]),
                Loc::Slot(_) => None,
            },
            X::C(_) => None,
        };
        if let Some(a) = in_reg(self, a) {
            self.alu(Code::Cmp_r64_rm64, Code::Cmp_rm64_imm32, a, b)?;
            return Ok(c);
        }
        if let Some(b) = in_reg(self, b)
            && let X::R(_) = a
        {
            self.alu(Code::Cmp_r64_rm64, Code::Cmp_rm64_imm32, b, a)?;
            return Ok(c.swap());
        }
        if let (X::R(a), X::C(b)) = (a, b)
            && let Loc::Slot(s) = self.loc(Reg::I(a))
        {
            let m = self.int_slot(s);
            self.push(Instruction::with2(Code::Cmp_rm64_imm32, m, b as i32)?);
            return Ok(c);
        }
        self.mov(TMP, a)?;
        self.alu(Code::Cmp_r64_rm64, Code::Cmp_rm64_imm32, TMP, b)?;
        Ok(c)
    }

    pub(super) fn in_register(&self, i: I) -> Option<Register> {
        match self.loc(Reg::I(i)) {
            Loc::Reg(k) => Some(INTS[k as usize]),
            Loc::Slot(_) => None,
        }
    }

    /// Writes an integer result from `t`, which is its register or the temporary.
    pub(super) fn finish_int(&mut self, d: I, t: Register) -> Result<()> {
        match self.loc(Reg::I(d)) {
            Loc::Reg(k) if INTS[k as usize] == t => {}
            Loc::Reg(k) => self.push(Instruction::with2(Code::Mov_r64_rm64, INTS[k as usize], t)?),
            Loc::Slot(s) => {
                let m = self.int_slot(s);
                self.push(Instruction::with2(Code::Mov_rm64_r64, m, t)?);
            }
        }
        Ok(())
    }

    pub(super) fn int_op(&mut self, op: IBin, d: I, a: X, b: X) -> Result<()> {
        if let (X::C(a), X::C(b)) = (a, b) {
            return self.inst(&Inst::Int { d, x: X::C(eval_int(op, a, b)) });
        }
        // Loop counters often live in memory: one instruction there.
        if let (IBin::Add | IBin::Sub, Loc::Slot(s), X::C(c)) = (op, self.loc(Reg::I(d)), b)
            && a == X::R(d)
        {
            let code = if op == IBin::Add { Code::Add_rm64_imm32 } else { Code::Sub_rm64_imm32 };
            let m = self.int_slot(s);
            self.push(Instruction::with2(code, m, c as i32)?);
            return Ok(());
        }
        let commutes = matches!(op, IBin::Add | IBin::Mul | IBin::And | IBin::Min | IBin::Max);
        let (a, b) = if commutes && (b == X::R(d) || matches!(a, X::C(_))) { (b, a) } else { (a, b) };
        let dest = self.in_register(d);
        if let (IBin::Add, Some(dr), X::R(a), false) = (op, dest, a, a == X::R(d))
            && let Some(ar) = self.in_register(a)
        {
            let m = match b {
                X::C(c) => Some(MemoryOperand::with_base_displ(ar, c)),
                X::R(b) => self.in_register(b).map(|br| MemoryOperand::with_base_index(ar, br)),
            };
            if let Some(m) = m {
                self.push(Instruction::with2(Code::Lea_r64_m, dr, m)?);
                return Ok(());
            }
        }
        if let IBin::DivU | IBin::RemU = op {
            return self.divide(op, d, a, b);
        }
        // The result's own register serves unless the second operand still needs it.
        let t = match dest {
            Some(r) if b != X::R(d) => r,
            _ => TMP,
        };
        match op {
            IBin::Mul => {
                if let X::C(c) = b {
                    self.mov(t, a)?;
                    self.push(Instruction::with3(Code::Imul_r64_rm64_imm32, t, t, c as i32)?);
                } else {
                    self.mov(t, a)?;
                    self.alu(Code::Imul_r64_rm64, Code::Imul_r64_rm64, t, b)?;
                }
            }
            IBin::Shl | IBin::Shr => {
                let X::C(c) = b else { return Err(Error::internal("shift by a register").into()) };
                let code = if op == IBin::Shl { Code::Shl_rm64_imm8 } else { Code::Shr_rm64_imm8 };
                self.mov(t, a)?;
                self.push(Instruction::with2(code, t, c as i32)?);
            }
            IBin::Min | IBin::Max => {
                // cmov has no immediate: a constant is the one that gets replaced. The builder puts it second.
                let (first, second) = if let X::C(_) = b { (b, a) } else { (a, b) };
                let t = if second == X::R(d) { TMP } else { t };
                self.mov(t, first)?;
                self.alu(Code::Cmp_r64_rm64, Code::Cmp_rm64_imm32, t, second)?;
                let c = if op == IBin::Min { ICmp::Gt } else { ICmp::Lt };
                self.alu(cmov(c), cmov(c), t, second)?;
                return self.finish_int(d, t);
            }
            _ => {
                let (rm, imm) = match op {
                    IBin::Sub => (Code::Sub_r64_rm64, Code::Sub_rm64_imm32),
                    IBin::And => (Code::And_r64_rm64, Code::And_rm64_imm32),
                    _ => (Code::Add_r64_rm64, Code::Add_rm64_imm32),
                };
                self.mov(t, a)?;
                self.alu(rm, imm, t, b)?;
            }
        }
        self.finish_int(d, t)
    }

    /// Division takes rax and rdx, whoever lives there.
    pub(super) fn divide(&mut self, op: IBin, d: I, a: X, b: X) -> Result<()> {
        let slots = [self.div_slot(0), self.div_slot(1), self.div_slot(2)];
        self.mov(TMP, b)?;
        self.push(Instruction::with2(Code::Mov_rm64_r64, slots[0], Register::RAX)?);
        self.push(Instruction::with2(Code::Mov_rm64_r64, slots[1], Register::RDX)?);
        self.mov(Register::RAX, a)?;
        self.push(Instruction::with2(Code::Xor_r32_rm32, Register::EDX, Register::EDX)?);
        self.push(Instruction::with1(Code::Div_rm64, TMP)?);
        let result = if op == IBin::DivU { Register::RAX } else { Register::RDX };
        self.push(Instruction::with2(Code::Mov_rm64_r64, slots[2], result)?);
        self.push(Instruction::with2(Code::Mov_r64_rm64, Register::RAX, slots[0])?);
        self.push(Instruction::with2(Code::Mov_r64_rm64, Register::RDX, slots[1])?);
        let t = self.in_register(d).unwrap_or(TMP);
        self.push(Instruction::with2(Code::Mov_r64_rm64, t, slots[2])?);
        self.finish_int(d, t)
    }

    pub(super) fn int_select(&mut self, d: I, c: ICmp, [a, b, t, f]: [X; 4]) -> Result<()> {
        let c = self.compare(c, a, b)?;
        let r = match self.in_register(d) {
            Some(r) if t != X::R(d) => r,
            _ => TMP,
        };
        // Moves leave the flags alone.
        self.mov(r, f)?;
        self.alu(cmov(c), cmov(c), r, t)?;
        self.finish_int(d, r)
    }
}
