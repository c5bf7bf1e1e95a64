//! The function as a whole: prologue, operands and their registers, encoding, the constant pool.

use super::codes::{Table, jcc};
use super::regs::{self, Assignment, Class, Flat, Line, Loc};
use super::{Code as Kernel, Spill};
use crate::cpu::vir::{ARGS, Addr, Func, M, Reg, Src, TASK, V};
use iced_x86::{BlockEncoder, BlockEncoderOptions, Code, IcedError, Instruction, InstructionBlock, MemoryOperand, Register};
use nnc_ir::error::Error;
use std::collections::HashMap;

/// Allocatable integer registers; those that the ABI lets a function clobber come first. r11 is the emitter's own.
pub(super) const INTS: [Register; 14] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
const SAVED_FROM: usize = 8;
const RDI: u8 = 4;
const RSI: u8 = 3;
pub(super) const TMP: Register = Register::R11;
pub(super) const TMP32: Register = Register::R11D;

/// Where the pool is pretended to be while code is encoded; displacements are moved once the code's length is known.
const POOL: u64 = 0x1000_0000;

/// What stops an emission: the encoder or ourselves.
pub(super) enum Failure {
    Encoder(IcedError),
    Kernel(Error),
}

impl From<IcedError> for Failure {
    fn from(e: IcedError) -> Failure {
        Failure::Encoder(e)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Kernel(e)
    }
}

pub(super) type Result<T> = std::result::Result<T, Failure>;

/// A vector operand in its machine form.
#[derive(Clone, Copy)]
pub(super) enum Opnd {
    Reg(Register),
    Mem(MemoryOperand),
}

pub(super) struct Emit<'f> {
    pub(super) table: Table,
    pub(super) lanes: usize,
    pub(super) flat: &'f Flat,
    pub(super) regs: Assignment,
    pub(super) out: Vec<Instruction>,
    /// Instructions that refer to the pool.
    pub(super) pooled: Vec<usize>,
    pub(super) pool: Vec<u8>,
    pub(super) consts: HashMap<Vec<u32>, u64>,
    /// Labels by the number of the instruction they stand before.
    pub(super) labels: HashMap<u32, usize>,
    pub(super) jumps: Vec<(usize, u32)>,
    /// Byte offsets from rsp: vector slots, integer slots, and those of borrowed registers.
    pub(super) vector_slots: i64,
    pub(super) int_slots: i64,
    pub(super) borrow_slots: i64,
    pub(super) frame_bytes: i64,
    pub(super) saved: Vec<Register>,
    pub(super) line: usize,
    /// Registers that the current operation holds beyond its operands, and those to give back.
    pub(super) scratch: Vec<Register>,
    pub(super) borrowed: Vec<(Register, i64)>,
    /// Result that must go to its slot after the operation.
    pub(super) pending: Option<(Register, u32)>,
}

pub fn emit(func: &Func) -> nnc_ir::error::Result<Kernel> {
    select(func).map_err(|e| match e {
        Failure::Encoder(e) => Error::internal(format!("{}: encoder: {e}", func.name)),
        Failure::Kernel(e) => e,
    })
}

fn select(func: &Func) -> Result<Kernel> {
    let wide = match func.lanes {
        8 => false,
        16 => true,
        n => return Err(Error::unsupported(format!("{}: x86 vectors of {n} lanes", func.name)).into()),
    };
    let flat = regs::flatten(func);
    let class = |r: Reg| match r {
        Reg::V(_) => Class::Vector,
        Reg::M(_) if !wide => Class::Vector,
        Reg::M(_) => Class::Mask,
        Reg::I(_) => Class::Int,
    };
    let count = |c: Class| match c {
        Class::Vector if wide => 32,
        Class::Vector => 16,
        Class::Int => INTS.len(),
        // k0 cannot be named as a mask, k7 is the emitter's own.
        Class::Mask => 6,
    };
    let prefer = |r: Reg| match r {
        Reg::I(ARGS) => Some(RDI),
        Reg::I(TASK) => Some(RSI),
        _ => None,
    };
    let regs = regs::assign(&flat, class, count, prefer);
    if regs.slots[&Class::Mask] > 0 {
        return Err(Error::unsupported(format!("{}: more than 6 masks alive at once", func.name)).into());
    }
    let mut spills: Vec<Spill> =
        regs.at.iter().filter(|(_, i)| matches!(i.loc, Loc::Slot(_)) && i.weight > 0).map(|(r, i)| Spill { reg: *r, depth: i.depth }).collect();
    spills.sort_by_key(|s| s.reg);

    let width = func.lanes as i64 * 4;
    let vector_slots = i64::from(func.frame.next_multiple_of(64));
    let borrow_slots = vector_slots + i64::from(regs.slots[&Class::Vector]) * width;
    // Four borrowed vectors are more than any operation has operands.
    let borrows = if regs.slots[&Class::Vector] > 0 { 4 * width } else { 0 };
    let int_slots = borrow_slots + borrows;
    // Three more hold the registers that a division needs.
    let frame_bytes = (int_slots + (i64::from(regs.slots[&Class::Int]) + 3) * 8 + 15) / 16 * 16;
    let saved: Vec<Register> = (SAVED_FROM..INTS.len())
        .filter(|k| regs.at.iter().any(|(r, i)| matches!(r, Reg::I(_)) && i.loc == Loc::Reg(*k as u8)))
        .map(|k| INTS[k])
        .collect();
    let mut e = Emit {
        table: Table { wide },
        lanes: func.lanes,
        flat: &flat,
        regs,
        out: Vec::new(),
        pooled: Vec::new(),
        pool: Vec::new(),
        consts: HashMap::new(),
        labels: HashMap::new(),
        jumps: Vec::new(),
        vector_slots,
        int_slots,
        borrow_slots,
        frame_bytes,
        saved,
        line: 0,
        scratch: Vec::new(),
        borrowed: Vec::new(),
        pending: None,
    };
    e.function()?;
    Ok(Kernel { bytes: e.encode()?, spills })
}

impl Emit<'_> {
    pub(super) fn push(&mut self, i: Instruction) {
        self.out.push(i);
    }

    pub(super) fn function(&mut self) -> Result<()> {
        for r in self.saved.clone() {
            self.push(Instruction::with1(Code::Push_r64, r)?);
        }
        self.push(Instruction::with2(Code::Sub_rm64_imm32, Register::RSP, self.frame_bytes as i32)?);
        for (r, incoming) in [(ARGS, Register::RDI), (TASK, Register::RSI)] {
            match self.regs.at[&Reg::I(r)].loc {
                Loc::Reg(k) if INTS[k as usize] == incoming => {}
                Loc::Reg(k) => self.push(Instruction::with2(Code::Mov_r64_rm64, INTS[k as usize], incoming)?),
                Loc::Slot(s) => {
                    let m = self.int_slot(s);
                    self.push(Instruction::with2(Code::Mov_rm64_r64, m, incoming)?);
                }
            }
        }
        let mut lines = 0..self.flat.lines.len();
        while let Some(n) = lines.next() {
            self.line = n;
            match self.flat.lines[n].clone() {
                Line::Inst(i) => {
                    match self.broadcast(n) {
                        Some(product) => {
                            self.line = n + 1;
                            lines.next();
                            self.add_product(product)?;
                        }
                        None => self.inst(&i)?,
                    }
                    self.settle()?;
                }
                Line::Label(l) => {
                    self.labels.insert(l, self.out.len());
                }
                Line::Jump(l) => self.jump(Code::Jmp_rel32_64, l)?,
                Line::Branch { c, a, b, to } => {
                    let c = self.compare(c, a, b)?;
                    self.jump(jcc(c), to)?;
                }
            }
        }
        self.push(Instruction::with2(Code::Add_rm64_imm32, Register::RSP, self.frame_bytes as i32)?);
        for r in self.saved.clone().into_iter().rev() {
            self.push(Instruction::with1(Code::Pop_r64, r)?);
        }
        self.push(Instruction::with(Code::VEX_Vzeroupper));
        self.push(Instruction::with(Code::Retnq));
        Ok(())
    }

    pub(super) fn jump(&mut self, code: Code, label: u32) -> Result<()> {
        self.jumps.push((self.out.len(), label));
        self.push(Instruction::with_branch(code, 0)?);
        Ok(())
    }

    /// Resolves labels, encodes, appends the pool.
    pub(super) fn encode(mut self) -> Result<Vec<u8>> {
        // Every label gets the made-up address (its instruction's number + 1), which the block encoder resolves.
        for (at, label) in &self.jumps {
            let target = self.labels[label];
            self.out[*at].set_near_branch64(target as u64 + 1);
            self.out[target].set_ip(target as u64 + 1);
        }
        let options = BlockEncoderOptions::RETURN_CONSTANT_OFFSETS | BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let code = BlockEncoder::encode(64, InstructionBlock::new(&self.out, 0), options)?;
        let mut bytes = code.code_buffer;
        if !self.pool.is_empty() {
            let start = bytes.len().next_multiple_of(64);
            bytes.resize(start, 0xcc);
            let delta = start as i64 - POOL as i64;
            for n in &self.pooled {
                let at = code.new_instruction_offsets[*n] as usize + code.constant_offsets[*n].displacement_offset();
                let field = bytes.get_mut(at..at + 4).ok_or_else(|| Error::internal("pool reference"))?;
                let disp = i32::from_le_bytes([field[0], field[1], field[2], field[3]]);
                field.copy_from_slice(&((i64::from(disp) + delta) as i32).to_le_bytes());
            }
            bytes.extend_from_slice(&self.pool);
        }
        Ok(bytes)
    }

    // Operands.

    pub(super) fn vector(&self, k: u8) -> Register {
        (if self.table.wide { Register::ZMM0 } else { Register::YMM0 }) + u32::from(k)
    }

    pub(super) fn int_slot(&self, s: u32) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RSP, self.int_slots + i64::from(s) * 8)
    }

    /// One of three words kept for division.
    pub(super) fn div_slot(&self, n: u32) -> MemoryOperand {
        self.int_slot(self.regs.slots[&Class::Int] + n)
    }

    pub(super) fn vector_slot(&self, s: u32) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RSP, self.vector_slots + i64::from(s) * self.lanes as i64 * 4)
    }

    pub(super) fn loc(&self, r: Reg) -> Loc {
        self.regs.at[&r].loc
    }

    pub(super) fn vector_reg(&self, r: Reg) -> bool {
        matches!(r, Reg::V(_)) || matches!(r, Reg::M(_)) && !self.table.wide
    }

    /// A vector register that the current operation may clobber: a free one, else one borrowed until [`Emit::settle`].
    pub(super) fn scratch(&mut self) -> Result<Register> {
        let mut taken = vec![false; if self.table.wide { 32 } else { 16 }];
        for (r, i) in &self.regs.at {
            if let Loc::Reg(k) = i.loc
                && self.vector_reg(*r)
                && i.start <= 2 * self.line + 1
                && i.end >= 2 * self.line
            {
                taken[k as usize] = true;
            }
        }
        let free = (0..taken.len() as u8).map(|k| (k, self.vector(k))).find(|(k, r)| !taken[*k as usize] && !self.scratch.contains(r));
        if let Some((_, r)) = free {
            self.scratch.push(r);
            return Ok(r);
        }
        let mut used = Vec::new();
        if let Line::Inst(i) = &self.flat.lines[self.line] {
            i.regs(&mut |r, _| {
                if self.vector_reg(r)
                    && let Loc::Reg(k) = self.loc(r)
                {
                    used.push(self.vector(k));
                }
            });
        }
        let r = (0..taken.len() as u8)
            .map(|k| self.vector(k))
            .find(|r| !used.contains(r) && !self.scratch.contains(r))
            .ok_or_else(|| Error::internal("no vector register to borrow"))?;
        let at = self.borrow_slots + self.borrowed.len() as i64 * self.lanes as i64 * 4;
        self.push(Instruction::with2(self.table.store(), MemoryOperand::with_base_displ(Register::RSP, at), r)?);
        self.scratch.push(r);
        self.borrowed.push((r, at));
        Ok(r)
    }

    /// Ends an operation: the result to its slot, borrowed registers back.
    pub(super) fn settle(&mut self) -> Result<()> {
        if let Some((r, slot)) = self.pending.take() {
            let m = self.vector_slot(slot);
            self.push(Instruction::with2(self.table.store(), m, r)?);
        }
        for (r, at) in std::mem::take(&mut self.borrowed) {
            self.push(Instruction::with2(self.table.load(), r, MemoryOperand::with_base_displ(Register::RSP, at))?);
        }
        self.scratch.clear();
        Ok(())
    }

    /// The register of a vector (or AVX2 mask) operand, loaded if it lives in memory.
    pub(super) fn vr(&mut self, r: Reg) -> Result<Register> {
        match self.loc(r) {
            Loc::Reg(k) => Ok(self.vector(k)),
            Loc::Slot(s) => {
                // The result's scratch register already holds the operand if they are one register of the kernel.
                let t = self.scratch()?;
                let m = self.vector_slot(s);
                self.push(Instruction::with2(self.table.load(), t, m)?);
                Ok(t)
            }
        }
    }

    pub(super) fn v(&mut self, v: V) -> Result<Register> {
        self.vr(Reg::V(v))
    }

    /// The register that takes a result.
    pub(super) fn dr(&mut self, r: Reg) -> Result<Register> {
        match self.loc(r) {
            Loc::Reg(k) => Ok(self.vector(k)),
            Loc::Slot(s) => {
                let t = self.scratch()?;
                self.pending = Some((t, s));
                Ok(t)
            }
        }
    }

    pub(super) fn d(&mut self, v: V) -> Result<Register> {
        self.dr(Reg::V(v))
    }

    pub(super) fn mask(&mut self, m: M) -> Result<Register> {
        match self.loc(Reg::M(m)) {
            Loc::Reg(k) if self.table.wide => Ok(Register::K1 + u32::from(k)),
            _ => self.vr(Reg::M(m)),
        }
    }

    pub(super) fn mask_dest(&mut self, m: M) -> Result<Register> {
        match self.loc(Reg::M(m)) {
            Loc::Reg(k) if self.table.wide => Ok(Register::K1 + u32::from(k)),
            _ => self.dr(Reg::M(m)),
        }
    }

    /// The pool address of these values.
    pub(super) fn pool(&mut self, values: Vec<u32>) -> MemoryOperand {
        let at = match self.consts.get(&values) {
            Some(at) => *at,
            None => {
                let align = (values.len() * 4).next_power_of_two();
                self.pool.resize(self.pool.len().next_multiple_of(align), 0);
                let at = self.pool.len() as u64;
                self.pool.extend(values.iter().flat_map(|v| v.to_le_bytes()));
                self.consts.insert(values, at);
                at
            }
        };
        MemoryOperand::with_base_displ(Register::RIP, (POOL + at) as i64)
    }

    /// A constant as the memory operand of an instruction.
    pub(super) fn splat_operand(&mut self, bits: u32) -> MemoryOperand {
        if self.table.wide { MemoryOperand { is_broadcast: true, ..self.pool(vec![bits]) } } else { self.pool(vec![bits; self.lanes]) }
    }

    pub(super) fn src(&mut self, s: Src) -> Opnd {
        match s {
            Src::R(r) => match self.loc(Reg::V(r)) {
                Loc::Reg(k) => Opnd::Reg(self.vector(k)),
                Loc::Slot(s) => Opnd::Mem(self.vector_slot(s)),
            },
            Src::C(bits) => Opnd::Mem(self.splat_operand(bits)),
        }
    }

    /// Appends an instruction, noting if it refers to the pool.
    pub(super) fn push_pooled(&mut self, i: Instruction) {
        if i.memory_base() == Register::RIP {
            self.pooled.push(self.out.len());
        }
        self.push(i);
    }

    pub(super) fn op2(&mut self, code: Code, d: Register, s: Opnd) -> Result<()> {
        let i = match s {
            Opnd::Reg(r) => Instruction::with2(code, d, r)?,
            Opnd::Mem(m) => Instruction::with2(code, d, m)?,
        };
        self.push_pooled(i);
        Ok(())
    }

    /// A register from another or from its slot, which need not be aligned.
    pub(super) fn copy(&mut self, d: Register, s: Opnd) -> Result<()> {
        let code = if let Opnd::Reg(_) = s { self.table.copy() } else { self.table.load() };
        self.op2(code, d, s)
    }

    pub(super) fn op3(&mut self, code: Code, d: Register, a: Register, b: Opnd) -> Result<()> {
        let i = match b {
            Opnd::Reg(r) => Instruction::with3(code, d, a, r)?,
            Opnd::Mem(m) => Instruction::with3(code, d, a, m)?,
        };
        self.push_pooled(i);
        Ok(())
    }

    pub(super) fn addr(&mut self, a: Addr) -> Result<MemoryOperand> {
        let base = self.loc(Reg::I(a.base));
        let index = a.index.map(|(i, s)| (self.loc(Reg::I(i)), s));
        let disp = i64::from(a.disp);
        let mem = |base, index, scale: u8| MemoryOperand::new(base, index, u32::from(scale), disp, u32::from(disp != 0), false, Register::None);
        Ok(match (base, index) {
            (Loc::Reg(b), None) => mem(INTS[b as usize], Register::None, 1),
            (Loc::Reg(b), Some((Loc::Reg(i), s))) => mem(INTS[b as usize], INTS[i as usize], s),
            (Loc::Slot(b), None) => {
                let m = self.int_slot(b);
                self.push(Instruction::with2(Code::Mov_r64_rm64, TMP, m)?);
                mem(TMP, Register::None, 1)
            }
            (Loc::Slot(b), Some((Loc::Reg(i), s))) => {
                let m = self.int_slot(b);
                self.push(Instruction::with2(Code::Mov_r64_rm64, TMP, m)?);
                mem(TMP, INTS[i as usize], s)
            }
            (Loc::Reg(b), Some((Loc::Slot(i), s))) => {
                let m = self.int_slot(i);
                self.push(Instruction::with2(Code::Mov_r64_rm64, TMP, m)?);
                mem(INTS[b as usize], TMP, s)
            }
            (Loc::Slot(b), Some((Loc::Slot(i), s))) => {
                let m = self.int_slot(i);
                self.push(Instruction::with2(Code::Mov_r64_rm64, TMP, m)?);
                self.push(Instruction::with2(Code::Shl_rm64_imm8, TMP, s.trailing_zeros())?);
                let m = self.int_slot(b);
                self.push(Instruction::with2(Code::Add_r64_rm64, TMP, m)?);
                mem(TMP, Register::None, 1)
            }
        })
    }
}
