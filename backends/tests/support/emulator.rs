//! A small x86-64 machine over a decoder: just the instructions that kernels are made of, with bounds-checked memory, so that
//! AVX-512 code is executed on any host. An instruction that it does not know is an error that names it.

use iced_x86::{ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use nnc_backends::cpu::vir::interp::{Memory, eval_bin, eval_cmp, eval_un};
use nnc_backends::cpu::vir::{VBin, VCmp, VUn};

type Vector = [u32; 16];

pub struct Emulator {
    pub memory: Memory,
    code: Vec<u8>,
    base: u64,
    stack_top: u64,
    /// Decoded instructions by their offset.
    decoded: Vec<Option<Instruction>>,
    gpr: [u64; 16],
    vec: [Vector; 32],
    mask: [u64; 8],
    /// Operands of the last comparison; anything else that writes flags forgets them, since kernels branch on nothing else.
    flags: Option<(i64, i64)>,
    /// Instructions executed.
    pub steps: u64,
}

/// The return address of the outermost call.
const EXIT: u64 = 0xdead_0000;
const SAVED: [usize; 6] = [3, 5, 12, 13, 14, 15];

impl Emulator {
    pub fn new(code: &[u8], mut memory: Memory) -> Emulator {
        let base = memory.alloc(code.to_vec());
        let stack = 1 << 16;
        let stack_top = memory.alloc(vec![0xee; stack]) + stack as u64;
        Emulator {
            memory,
            code: code.to_vec(),
            base,
            stack_top,
            decoded: vec![None; code.len()],
            gpr: [0x5a5a_5a5a; 16],
            vec: [[0x7fc0_0000; 16]; 32],
            mask: [0; 8],
            flags: None,
            steps: 0,
        }
    }

    /// Calls the function at the first byte; checks what the ABI asks it to keep.
    pub fn call(&mut self, rdi: u64, rsi: u64) -> Result<(), String> {
        let before = self.gpr;
        (self.gpr[7], self.gpr[6]) = (rdi, rsi);
        // As after a call instruction.
        self.gpr[4] = self.stack_top - 64 - 8;
        let sp = self.gpr[4];
        self.memory.set_u64(sp, EXIT)?;
        let mut ip = self.base;
        while ip != EXIT {
            let i = self.decode(ip)?;
            self.steps += 1;
            ip = self.step(&i).map_err(|e| format!("{i} at {:#x}: {e}", ip - self.base))?;
        }
        if self.gpr[4] != sp + 8 || SAVED.iter().any(|r| self.gpr[*r] != before[*r]) {
            return Err("a register that belongs to the caller is lost".to_owned());
        }
        Ok(())
    }

    fn decode(&mut self, ip: u64) -> Result<Instruction, String> {
        let at = ip.wrapping_sub(self.base) as usize;
        if let Some(Some(i)) = self.decoded.get(at) {
            return Ok(*i);
        }
        let bytes = self.code.get(at..).ok_or("execution left the code")?;
        let i = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
        if i.is_invalid() {
            return Err(format!("no instruction at {at:#x}"));
        }
        self.decoded[at] = Some(i);
        Ok(i)
    }

    fn addr(&self, i: &Instruction) -> u64 {
        let value = |r: Register| match r {
            Register::None | Register::RIP => 0,
            r => self.gpr[r.number()],
        };
        value(i.memory_base())
            .wrapping_add(value(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale())))
            .wrapping_add(i.memory_displacement64())
    }

    /// Bytes of an integer operand.
    fn size(i: &Instruction, op: u32) -> usize {
        match i.op_kind(op) {
            OpKind::Register => i.op_register(op).size(),
            _ => i.memory_size().size(),
        }
    }

    fn int(&mut self, i: &Instruction, op: u32) -> Result<u64, String> {
        Ok(match i.op_kind(op) {
            OpKind::Register => {
                let x = self.gpr[i.op_register(op).number()];
                if i.op_register(op).size() == 4 { x & 0xffff_ffff } else { x }
            }
            OpKind::Memory if i.memory_size().size() == 4 => u64::from(self.memory.u32(self.addr(i))?),
            OpKind::Memory => self.memory.u64(self.addr(i))?,
            _ => i.immediate(op),
        })
    }

    fn set_int(&mut self, i: &Instruction, op: u32, x: u64) -> Result<(), String> {
        match i.op_kind(op) {
            OpKind::Register => {
                let r = i.op_register(op);
                self.gpr[r.number()] = if r.size() == 4 { x & 0xffff_ffff } else { x };
                Ok(())
            }
            _ if Self::size(i, op) == 4 => self.memory.set_u32(self.addr(i), x as u32),
            _ => self.memory.set_u64(self.addr(i), x),
        }
    }

    /// Lanes of the widest register operand.
    fn lanes(i: &Instruction) -> usize {
        (0..i.op_count())
            .filter(|n| i.op_kind(*n) == OpKind::Register)
            .map(|n| i.op_register(n))
            .filter(|r| r.is_vector_register())
            .map(|r| r.size() / 4)
            .max()
            .unwrap_or(4)
    }

    /// A vector operand; lanes switched off by `on` are not read from memory.
    fn vector(&mut self, i: &Instruction, op: u32, on: u64) -> Result<Vector, String> {
        if i.op_kind(op) == OpKind::Register {
            return Ok(self.vec[i.op_register(op).number()]);
        }
        let at = self.addr(i);
        let mut v = [0; 16];
        if i.is_broadcast() {
            return Ok([self.memory.u32(at)?; 16]);
        }
        for (l, x) in v.iter_mut().enumerate().take(i.memory_size().size() / 4) {
            if on >> l & 1 == 1 {
                *x = self.memory.u32(at + 4 * l as u64)?;
            }
        }
        Ok(v)
    }

    /// Writes `f(lane)` to the first operand under the instruction's mask; a register's upper lanes become zero.
    fn write(&mut self, i: &Instruction, f: impl Fn(usize) -> u32) -> Result<(), String> {
        let lanes = Self::lanes(i);
        let on = self.on(i);
        if i.op_kind(0) == OpKind::Memory {
            let at = self.addr(i);
            for l in (0..lanes).filter(|l| on >> l & 1 == 1) {
                self.memory.set_u32(at + 4 * l as u64, f(l))?;
            }
            return Ok(());
        }
        let d = i.op_register(0).number();
        for l in 0..16 {
            self.vec[d][l] = match (l < lanes, on >> l & 1 == 1) {
                (true, true) => f(l),
                (true, false) if !i.zeroing_masking() => self.vec[d][l],
                _ => 0,
            };
        }
        Ok(())
    }

    /// The lanes that the instruction's mask register allows.
    fn on(&self, i: &Instruction) -> u64 {
        match i.op_mask() {
            Register::None => u64::MAX,
            k => self.mask[k.number()],
        }
    }

    fn condition(&self, c: ConditionCode) -> Result<bool, String> {
        let (a, b) = self.flags.ok_or("flags of no comparison")?;
        Ok(match c {
            ConditionCode::l => a < b,
            ConditionCode::le => a <= b,
            ConditionCode::g => a > b,
            ConditionCode::ge => a >= b,
            ConditionCode::e => a == b,
            ConditionCode::ne => a != b,
            c => return Err(format!("condition {c:?}")),
        })
    }

    /// Executes one instruction; the address of the next.
    fn step(&mut self, i: &Instruction) -> Result<u64, String> {
        match i.flow_control() {
            FlowControl::ConditionalBranch => {
                return Ok(if self.condition(i.condition_code())? { i.near_branch_target() } else { i.next_ip() });
            }
            FlowControl::UnconditionalBranch => return Ok(i.near_branch_target()),
            FlowControl::Return => {
                let to = self.memory.u64(self.gpr[4])?;
                self.gpr[4] += 8;
                return Ok(to);
            }
            _ => {}
        }
        if !self.integer(i)? && !self.floats(i)? && !self.moves(i)? {
            return Err("this emulator does not know it".to_owned());
        }
        Ok(i.next_ip())
    }

    fn integer(&mut self, i: &Instruction) -> Result<bool, String> {
        use Mnemonic as N;
        match i.mnemonic() {
            N::Push => {
                self.gpr[4] -= 8;
                let x = self.int(i, 0)?;
                self.memory.set_u64(self.gpr[4], x)?;
            }
            N::Pop => {
                let x = self.memory.u64(self.gpr[4])?;
                self.gpr[4] += 8;
                self.set_int(i, 0, x)?;
            }
            N::Mov => {
                let x = self.int(i, 1)?;
                self.set_int(i, 0, x)?;
            }
            N::Movsxd => {
                let x = self.int(i, 1)? as u32 as i32;
                self.set_int(i, 0, i64::from(x) as u64)?;
            }
            N::Lea => {
                let x = self.addr(i);
                self.set_int(i, 0, x)?;
            }
            N::Add | N::Sub | N::And | N::Xor | N::Imul | N::Shl | N::Shr => {
                let first = if i.op_count() == 3 { 1 } else { 0 };
                let (a, b) = (self.int(i, first)?, self.int(i, first + 1)?);
                let x = match i.mnemonic() {
                    N::Add => a.wrapping_add(b),
                    N::Sub => a.wrapping_sub(b),
                    N::And => a & b,
                    N::Xor => a ^ b,
                    N::Imul => a.wrapping_mul(b),
                    N::Shl => a << b,
                    _ => a >> b,
                };
                self.set_int(i, 0, x)?;
                self.flags = None;
            }
            N::Cmp => self.flags = Some((self.int(i, 0)? as i64, self.int(i, 1)? as i64)),
            N::Cmovl | N::Cmovle | N::Cmovg | N::Cmovge | N::Cmove | N::Cmovne => {
                let x = self.int(i, 1)?;
                if self.condition(i.condition_code())? {
                    self.set_int(i, 0, x)?;
                }
            }
            N::Div => {
                let b = self.int(i, 0)?;
                let a = u128::from(self.gpr[2]) << 64 | u128::from(self.gpr[0]);
                let q = a.checked_div(u128::from(b)).ok_or("division by zero")?;
                self.gpr[0] = u64::try_from(q).map_err(|_| "division overflow")?;
                self.gpr[2] = (a % u128::from(b)) as u64;
                self.flags = None;
            }
            N::Prefetcht0 | N::Prefetcht1 | N::Vzeroupper => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn floats(&mut self, i: &Instruction) -> Result<bool, String> {
        use Mnemonic as N;
        let bin = match i.mnemonic() {
            N::Vaddps => VBin::Add,
            N::Vsubps => VBin::Sub,
            N::Vmulps => VBin::Mul,
            N::Vdivps => VBin::Div,
            N::Vmaxps => VBin::Max,
            N::Vminps => VBin::Min,
            N::Vpand | N::Vpandd => VBin::And,
            N::Vpandn | N::Vpandnd => VBin::AndNot,
            N::Vpor | N::Vpord => VBin::Or,
            N::Vpxor | N::Vpxord => VBin::Xor,
            N::Vpaddd => VBin::IAdd,
            N::Vpsubd => VBin::ISub,
            N::Vpmulld => VBin::IMul,
            N::Vscalefps => VBin::Scale,
            _ => return self.other_floats(i),
        };
        let (a, b) = (self.vector(i, 1, u64::MAX)?, self.vector(i, 2, u64::MAX)?);
        self.write(i, |l| eval_bin(bin, a[l], b[l]))?;
        Ok(true)
    }

    fn other_floats(&mut self, i: &Instruction) -> Result<bool, String> {
        use Mnemonic as N;
        let fma = |a: u32, b: u32, c: u32, neg: bool| {
            let a = f32::from_bits(a);
            let a = if neg { -a } else { a };
            a.mul_add(f32::from_bits(b), f32::from_bits(c)).to_bits()
        };
        let un = match i.mnemonic() {
            N::Vsqrtps => VUn::Sqrt,
            N::Vcvtps2dq => VUn::ToInt,
            N::Vcvttps2dq => VUn::ToIntTrunc,
            N::Vcvtdq2ps => VUn::FromInt,
            N::Vpslld => VUn::Shl(i.immediate8()),
            N::Vpsrld => VUn::Shr(i.immediate8()),
            N::Vpsrad => VUn::Sar(i.immediate8()),
            N::Vroundps | N::Vrndscaleps => match i.immediate8() {
                8 => VUn::Nearest,
                9 => VUn::Floor,
                10 => VUn::Ceil,
                11 => VUn::Trunc,
                n => return Err(format!("rounding mode {n}")),
            },
            N::Vfmadd231ps | N::Vfnmadd231ps | N::Vfmadd213ps | N::Vfnmadd213ps | N::Vfmadd132ps | N::Vfnmadd132ps => {
                let [d, a, b] = [self.vector(i, 0, 0)?, self.vector(i, 1, u64::MAX)?, self.vector(i, 2, u64::MAX)?];
                let neg = matches!(i.mnemonic(), N::Vfnmadd231ps | N::Vfnmadd213ps | N::Vfnmadd132ps);
                self.write(i, |l| match i.mnemonic() {
                    N::Vfmadd231ps | N::Vfnmadd231ps => fma(a[l], b[l], d[l], neg),
                    N::Vfmadd213ps | N::Vfnmadd213ps => fma(a[l], d[l], b[l], neg),
                    _ => fma(d[l], b[l], a[l], neg),
                })?;
                return Ok(true);
            }
            N::Vcmpps | N::Vpcmpgtd => {
                let (a, b) = (self.vector(i, 1, u64::MAX)?, self.vector(i, 2, u64::MAX)?);
                let test = |l: usize| -> Result<bool, String> {
                    if i.mnemonic() == N::Vpcmpgtd {
                        return Ok(a[l] as i32 > b[l] as i32);
                    }
                    let c = match i.immediate8() {
                        0x11 => VCmp::Lt,
                        0x12 => VCmp::Le,
                        0x1e => VCmp::Gt,
                        0x1d => VCmp::Ge,
                        0x00 => VCmp::Eq,
                        0x04 => VCmp::Ne,
                        0x03 => VCmp::Unord,
                        p => return Err(format!("predicate {p}")),
                    };
                    Ok(eval_cmp(c, f32::from_bits(a[l]), f32::from_bits(b[l])))
                };
                let bits = (0..Self::lanes(i)).map(test).collect::<Result<Vec<_>, _>>()?;
                if i.op_register(0).is_k() {
                    let m = bits.iter().enumerate().fold(0, |m, (l, b)| m | u64::from(*b) << l);
                    self.mask[i.op_register(0).number()] = m;
                } else {
                    self.write(i, |l| if bits[l] { u32::MAX } else { 0 })?;
                }
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let a = self.vector(i, 1, u64::MAX)?;
        self.write(i, |l| eval_un(un, a[l]))?;
        Ok(true)
    }

    fn moves(&mut self, i: &Instruction) -> Result<bool, String> {
        use Mnemonic as N;
        match i.mnemonic() {
            N::Vmovups | N::Vmovaps => {
                if i.mnemonic() == N::Vmovaps && (0..2).any(|n| i.op_kind(n) == OpKind::Memory) {
                    return Err("an aligned access, and nothing is known to be aligned".to_owned());
                }
                let v = self.vector(i, 1, self.on(i))?;
                self.write(i, |l| v[l])?;
            }
            N::Vmaskmovps => {
                let m = self.vector(i, 1, 0)?;
                let on = (0..16).fold(0, |k, l| k | u64::from(m[l] >> 31) << l);
                if i.op_kind(0) == OpKind::Memory {
                    let (v, at) = (self.vector(i, 2, 0)?, self.addr(i));
                    for l in (0..Self::lanes(i)).filter(|l| on >> l & 1 == 1) {
                        self.memory.set_u32(at + 4 * l as u64, v[l])?;
                    }
                } else {
                    let v = self.vector(i, 2, on)?;
                    self.write(i, |l| if on >> l & 1 == 1 { v[l] } else { 0 })?;
                }
            }
            N::Vbroadcastss | N::Vpbroadcastd => {
                let x = match i.op_kind(1) {
                    OpKind::Memory => self.memory.u32(self.addr(i))?,
                    _ if i.op_register(1).is_gpr() => self.int(i, 1)? as u32,
                    _ => self.vec[i.op_register(1).number()][0],
                };
                self.write(i, |_| x)?;
            }
            N::Vmovd => {
                let x = self.int(i, 1)? as u32;
                self.write(i, |l| if l == 0 { x } else { 0 })?;
            }
            N::Vpermilps => {
                let (a, imm) = (self.vector(i, 1, u64::MAX)?, i.immediate8());
                self.write(i, |l| a[l / 4 * 4 + usize::from(imm >> (l % 4 * 2) & 3)])?;
            }
            N::Vperm2f128 => {
                let (a, b, imm) = (self.vector(i, 1, u64::MAX)?, self.vector(i, 2, u64::MAX)?, i.immediate8());
                let half = |l: usize| usize::from(imm >> (l / 4 * 4));
                self.write(i, |l| if half(l) & 2 == 2 { b } else { a }[(half(l) & 1) * 4 + l % 4])?;
            }
            N::Vshuff32x4 | N::Vshufps => {
                let (a, b, imm) = (self.vector(i, 1, u64::MAX)?, self.vector(i, 2, u64::MAX)?, i.immediate8());
                let pick = |n: usize| usize::from(imm >> (n % 4 * 2) & 3);
                match i.mnemonic() {
                    N::Vshufps => self.write(i, |l| if l % 4 < 2 { a } else { b }[l / 4 * 4 + pick(l)])?,
                    _ => self.write(i, |l| if l < 8 { a } else { b }[pick(l / 4) * 4 + l % 4])?,
                }
            }
            N::Vunpcklps | N::Vunpckhps => {
                let (a, b) = (self.vector(i, 1, u64::MAX)?, self.vector(i, 2, u64::MAX)?);
                let skip = if i.mnemonic() == N::Vunpckhps { 2 } else { 0 };
                self.write(i, |l| if l % 2 == 0 { a } else { b }[l / 4 * 4 + skip + l % 4 / 2])?;
            }
            N::Vblendvps => {
                let [a, b, m] = [self.vector(i, 1, 0)?, self.vector(i, 2, u64::MAX)?, self.vector(i, 3, 0)?];
                self.write(i, |l| if m[l] >> 31 == 1 { b[l] } else { a[l] })?;
            }
            N::Vblendmps => {
                let (a, b, k) = (self.vector(i, 1, 0)?, self.vector(i, 2, u64::MAX)?, self.on(i));
                let d = i.op_register(0).number();
                self.vec[d] = std::array::from_fn(|l| if k >> l & 1 == 1 { b[l] } else { a[l] });
            }
            N::Kmovw => self.mask[i.op_register(0).number()] = self.int(i, 1)? & 0xffff,
            N::Kandw | N::Korw | N::Kxorw => {
                let k = |n: u32| self.mask[i.op_register(n).number()];
                let (a, b) = (k(1), k(2));
                self.mask[i.op_register(0).number()] = match i.mnemonic() {
                    N::Kandw => a & b,
                    N::Korw => a | b,
                    _ => a ^ b,
                };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
