//! Instruction selection and encoding.

use super::codes::{Table, cmov, jcc, predicate};
use super::regs::{self, Assignment, Class, Flat, Line, Loc};
use super::{Code as Kernel, Spill};
use crate::cpu::vir::interp::eval_int;
use crate::cpu::vir::{ARGS, Addr, Func, I, IBin, ICmp, Inst, M, MBin, Reg, Src, TASK, V, X};
use iced_x86::{BlockEncoder, BlockEncoderOptions, Code, IcedError, Instruction, InstructionBlock, MemoryOperand, Register};
use nnc_ir::error::Error;
use std::collections::HashMap;

/// Allocatable integer registers; those that the ABI lets a function clobber come first. r11 is the emitter's own.
const INTS: [Register; 14] = [
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
const TMP: Register = Register::R11;
const TMP32: Register = Register::R11D;

/// Where the pool is pretended to be while code is encoded; displacements are moved once the code's length is known.
const POOL: u64 = 0x1000_0000;

/// What stops an emission: the encoder or ourselves.
enum Failure {
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

type Result<T> = std::result::Result<T, Failure>;

/// A vector operand in its machine form.
#[derive(Clone, Copy)]
enum Opnd {
    Reg(Register),
    Mem(MemoryOperand),
}

struct Emit<'f> {
    table: Table,
    lanes: usize,
    flat: &'f Flat,
    regs: Assignment,
    out: Vec<Instruction>,
    /// Instructions that refer to the pool.
    pooled: Vec<usize>,
    pool: Vec<u8>,
    consts: HashMap<Vec<u32>, u64>,
    /// Labels by the number of the instruction they stand before.
    labels: HashMap<u32, usize>,
    jumps: Vec<(usize, u32)>,
    /// Byte offsets from rsp: vector slots, integer slots, and those of borrowed registers.
    vector_slots: i64,
    int_slots: i64,
    borrow_slots: i64,
    frame_bytes: i64,
    saved: Vec<Register>,
    line: usize,
    /// Registers that the current operation holds beyond its operands, and those to give back.
    scratch: Vec<Register>,
    borrowed: Vec<(Register, i64)>,
    /// Result that must go to its slot after the operation.
    pending: Option<(Register, u32)>,
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
    fn push(&mut self, i: Instruction) {
        self.out.push(i);
    }

    fn function(&mut self) -> Result<()> {
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
        for n in 0..self.flat.lines.len() {
            self.line = n;
            match self.flat.lines[n].clone() {
                Line::Inst(i) => {
                    self.inst(&i)?;
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

    fn jump(&mut self, code: Code, label: u32) -> Result<()> {
        self.jumps.push((self.out.len(), label));
        self.push(Instruction::with_branch(code, 0)?);
        Ok(())
    }

    /// Resolves labels, encodes, appends the pool.
    fn encode(mut self) -> Result<Vec<u8>> {
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

    fn vector(&self, k: u8) -> Register {
        (if self.table.wide { Register::ZMM0 } else { Register::YMM0 }) + u32::from(k)
    }

    fn int_slot(&self, s: u32) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RSP, self.int_slots + i64::from(s) * 8)
    }

    /// One of three words kept for division.
    fn div_slot(&self, n: u32) -> MemoryOperand {
        self.int_slot(self.regs.slots[&Class::Int] + n)
    }

    fn vector_slot(&self, s: u32) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RSP, self.vector_slots + i64::from(s) * self.lanes as i64 * 4)
    }

    fn loc(&self, r: Reg) -> Loc {
        self.regs.at[&r].loc
    }

    fn vector_reg(&self, r: Reg) -> bool {
        matches!(r, Reg::V(_)) || matches!(r, Reg::M(_)) && !self.table.wide
    }

    /// A vector register that the current operation may clobber: a free one, else one borrowed until [`Emit::settle`].
    fn scratch(&mut self) -> Result<Register> {
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
    fn settle(&mut self) -> Result<()> {
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
    fn vr(&mut self, r: Reg) -> Result<Register> {
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

    fn v(&mut self, v: V) -> Result<Register> {
        self.vr(Reg::V(v))
    }

    /// The register that takes a result.
    fn dr(&mut self, r: Reg) -> Result<Register> {
        match self.loc(r) {
            Loc::Reg(k) => Ok(self.vector(k)),
            Loc::Slot(s) => {
                let t = self.scratch()?;
                self.pending = Some((t, s));
                Ok(t)
            }
        }
    }

    fn d(&mut self, v: V) -> Result<Register> {
        self.dr(Reg::V(v))
    }

    fn mask(&mut self, m: M) -> Result<Register> {
        match self.loc(Reg::M(m)) {
            Loc::Reg(k) if self.table.wide => Ok(Register::K1 + u32::from(k)),
            _ => self.vr(Reg::M(m)),
        }
    }

    fn mask_dest(&mut self, m: M) -> Result<Register> {
        match self.loc(Reg::M(m)) {
            Loc::Reg(k) if self.table.wide => Ok(Register::K1 + u32::from(k)),
            _ => self.dr(Reg::M(m)),
        }
    }

    /// The pool address of these values.
    fn pool(&mut self, values: Vec<u32>) -> MemoryOperand {
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
    fn splat_operand(&mut self, bits: u32) -> MemoryOperand {
        if self.table.wide { MemoryOperand { is_broadcast: true, ..self.pool(vec![bits]) } } else { self.pool(vec![bits; self.lanes]) }
    }

    fn src(&mut self, s: Src) -> Opnd {
        match s {
            Src::R(r) => match self.loc(Reg::V(r)) {
                Loc::Reg(k) => Opnd::Reg(self.vector(k)),
                Loc::Slot(s) => Opnd::Mem(self.vector_slot(s)),
            },
            Src::C(bits) => Opnd::Mem(self.splat_operand(bits)),
        }
    }

    /// Appends an instruction, noting if it refers to the pool.
    fn push_pooled(&mut self, i: Instruction) {
        if i.memory_base() == Register::RIP {
            self.pooled.push(self.out.len());
        }
        self.push(i);
    }

    fn op2(&mut self, code: Code, d: Register, s: Opnd) -> Result<()> {
        let i = match s {
            Opnd::Reg(r) => Instruction::with2(code, d, r)?,
            Opnd::Mem(m) => Instruction::with2(code, d, m)?,
        };
        self.push_pooled(i);
        Ok(())
    }

    /// A register from another or from its slot, which need not be aligned.
    fn copy(&mut self, d: Register, s: Opnd) -> Result<()> {
        let code = if let Opnd::Reg(_) = s { self.table.copy() } else { self.table.load() };
        self.op2(code, d, s)
    }

    fn op3(&mut self, code: Code, d: Register, a: Register, b: Opnd) -> Result<()> {
        let i = match b {
            Opnd::Reg(r) => Instruction::with3(code, d, a, r)?,
            Opnd::Mem(m) => Instruction::with3(code, d, a, m)?,
        };
        self.push_pooled(i);
        Ok(())
    }

    fn addr(&mut self, a: Addr) -> Result<MemoryOperand> {
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

    // Integers.

    /// `op reg, x` for an operand in a register, a slot or a constant.
    fn alu(&mut self, rm: Code, imm: Code, d: Register, x: X) -> Result<()> {
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

    fn mov(&mut self, d: Register, x: X) -> Result<()> {
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
    fn compare(&mut self, c: ICmp, a: X, b: X) -> Result<ICmp> {
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

    fn in_register(&self, i: I) -> Option<Register> {
        match self.loc(Reg::I(i)) {
            Loc::Reg(k) => Some(INTS[k as usize]),
            Loc::Slot(_) => None,
        }
    }

    /// Writes an integer result from `t`, which is its register or the temporary.
    fn finish_int(&mut self, d: I, t: Register) -> Result<()> {
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

    fn int_op(&mut self, op: IBin, d: I, a: X, b: X) -> Result<()> {
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
    fn divide(&mut self, op: IBin, d: I, a: X, b: X) -> Result<()> {
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

    fn int_select(&mut self, d: I, c: ICmp, [a, b, t, f]: [X; 4]) -> Result<()> {
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

    // Vectors.

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

    fn inst(&mut self, inst: &Inst) -> Result<()> {
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
            Inst::Blend { d, a, b, mask } => {
                let a = self.v(a)?;
                let b = self.v(b)?;
                let d = self.d(d)?;
                if t.wide {
                    self.push(Instruction::with2(Code::Mov_r32_imm32, TMP32, u32::from(mask))?);
                    self.push(Instruction::with2(Code::VEX_Kmovw_kr_r32, Register::K7, TMP32)?);
                    let i = Instruction::with3(Code::EVEX_Vblendmps_zmm_k1z_zmm_zmmm512b32, d, a, b)?;
                    self.push(Self::masked(i, Register::K7, false));
                } else {
                    let mask = u32::from(mask & 0xff);
                    self.push(Instruction::with4(Code::VEX_Vblendps_ymm_ymm_ymmm256_imm8, d, a, b, mask)?);
                }
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
