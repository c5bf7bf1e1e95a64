//! Runs a kernel step by step on bounds-checked memory: the meaning that every lowering must reproduce.

use super::{Addr, Func, I, IBin, Inst, M, MBin, Src, Stmt, V, VBin, VCmp, VUn, X};

/// Memory of a test: separate buffers at made-up addresses, so that a stray access is seen.
#[derive(Default)]
pub struct Memory {
    buffers: Vec<(u64, Vec<u8>)>,
}

impl Memory {
    /// A new buffer with these bytes; its address.
    pub fn alloc(&mut self, bytes: Vec<u8>) -> u64 {
        // A gap of unmapped addresses between buffers catches overruns.
        let base = self.buffers.last().map_or(0x10_0000, |(b, d)| (b + d.len() as u64).next_multiple_of(4096) + 4096);
        self.buffers.push((base, bytes));
        base
    }

    /// The `len` bytes at `addr`, or what is wrong with them.
    pub fn bytes(&mut self, addr: u64, len: usize) -> Result<&mut [u8], String> {
        let (base, data) = self.buffers.iter_mut().rev().find(|(base, _)| *base <= addr).ok_or_else(|| format!("access to {addr:#x}"))?;
        let at = (addr - *base) as usize;
        let size = data.len();
        data.get_mut(at..at.saturating_add(len)).ok_or_else(|| format!("{len} bytes at {at} of a buffer of {size}"))
    }

    pub fn u32(&mut self, addr: u64) -> Result<u32, String> {
        self.bytes(addr, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn set_u32(&mut self, addr: u64, x: u32) -> Result<(), String> {
        self.bytes(addr, 4).map(|b| b.copy_from_slice(&x.to_le_bytes()))
    }

    pub fn u64(&mut self, addr: u64) -> Result<u64, String> {
        Ok(u64::from(self.u32(addr)?) | u64::from(self.u32(addr + 4)?) << 32)
    }

    pub fn set_u64(&mut self, addr: u64, x: u64) -> Result<(), String> {
        self.set_u32(addr, x as u32)?;
        self.set_u32(addr + 4, (x >> 32) as u32)
    }
}

struct Run<'a> {
    lanes: usize,
    frame: u64,
    mem: &'a mut Memory,
    v: Vec<[u32; 16]>,
    i: Vec<i64>,
    m: Vec<[bool; 16]>,
}

/// Runs one task. The error names the operation that failed.
pub fn run(func: &Func, mem: &mut Memory, args: u64, task: i64) -> Result<(), String> {
    let frame = mem.alloc(vec![0xff; func.frame as usize]);
    let mut i = vec![0; func.ints as usize];
    i[0] = args as i64;
    i[1] = task;
    let (v, m) = (vec![[0; 16]; func.vectors as usize], vec![[false; 16]; func.masks as usize]);
    let mut run = Run { lanes: func.lanes, frame, mem, v, i, m };
    let done = run.block(&func.body);
    run.mem.buffers.pop();
    done
}

/// One lane of a binary operation, on bits.
pub fn eval_bin(op: VBin, a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    match op {
        VBin::Add => (x + y).to_bits(),
        VBin::Sub => (x - y).to_bits(),
        VBin::Mul => (x * y).to_bits(),
        VBin::Div => (x / y).to_bits(),
        VBin::Max => (if x > y { x } else { y }).to_bits(),
        VBin::Min => (if x < y { x } else { y }).to_bits(),
        VBin::And => a & b,
        VBin::AndNot => !a & b,
        VBin::Or => a | b,
        VBin::Xor => a ^ b,
        VBin::IAdd => a.wrapping_add(b),
        VBin::ISub => a.wrapping_sub(b),
        VBin::IMul => a.wrapping_mul(b),
        VBin::Scale => scaled(x, y).to_bits(),
    }
}

/// One lane of a unary operation, on bits.
pub fn eval_un(op: VUn, a: u32) -> u32 {
    let x = f32::from_bits(a);
    match op {
        VUn::Sqrt => x.sqrt().to_bits(),
        VUn::Nearest => x.round_ties_even().to_bits(),
        VUn::Floor => x.floor().to_bits(),
        VUn::Ceil => x.ceil().to_bits(),
        VUn::Trunc => x.trunc().to_bits(),
        VUn::ToInt => to_int(x.round_ties_even()),
        VUn::ToIntTrunc => to_int(x),
        VUn::FromInt => (a as i32 as f32).to_bits(),
        VUn::Shl(n) => a << n,
        VUn::Shr(n) => a >> n,
        VUn::Sar(n) => ((a as i32) >> n) as u32,
    }
}

/// `x * 2^floor(n)`: exact in f64, then rounded. Beyond 1000 in size it is zero or infinite for any x.
fn scaled(x: f32, n: f32) -> f32 {
    let n = f64::from(n.floor().clamp(-1000.0, 1000.0));
    if n.is_nan() { f32::NAN } else { (f64::from(x) * f64::from_bits(((1023 + n as i64) as u64) << 52)) as f32 }
}

/// The upper half of an f32 to the nearest bf16, ties to even; NaN stays NaN.
fn to_bf16(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() { bits >> 16 | 0x40 } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

/// Truncates; NaN and values out of range give the smallest integer, as x86 does.
fn to_int(x: f32) -> u32 {
    if (-2147483648.0..2147483648.0).contains(&x) { x as i32 as u32 } else { 0x8000_0000 }
}

/// One lane of a comparison.
pub fn eval_cmp(c: VCmp, x: f32, y: f32) -> bool {
    match c {
        VCmp::Lt => x < y,
        VCmp::Le => x <= y,
        VCmp::Gt => x > y,
        VCmp::Ge => x >= y,
        VCmp::Eq => x == y,
        VCmp::Ne => x != y,
        VCmp::Unord => x.is_nan() || y.is_nan(),
    }
}

/// An integer operation.
pub fn eval_int(op: IBin, a: i64, b: i64) -> i64 {
    match op {
        IBin::Add => a.wrapping_add(b),
        IBin::Sub => a.wrapping_sub(b),
        IBin::Mul => a.wrapping_mul(b),
        IBin::Shl => a << b,
        IBin::Shr => ((a as u64) >> b) as i64,
        IBin::And => a & b,
        IBin::DivU => (a as u64 / b as u64) as i64,
        IBin::RemU => (a as u64 % b as u64) as i64,
        IBin::Min => a.min(b),
        IBin::Max => a.max(b),
    }
}

impl Run<'_> {
    fn int(&self, x: X) -> i64 {
        match x {
            X::R(I(r)) => self.i[r as usize],
            X::C(c) => c,
        }
    }

    fn addr(&self, a: Addr) -> u64 {
        let index = a.index.map_or(0, |(I(r), s)| self.i[r as usize].wrapping_mul(i64::from(s)));
        self.i[a.base.0 as usize].wrapping_add(index).wrapping_add(i64::from(a.disp)) as u64
    }

    fn src(&self, s: Src) -> [u32; 16] {
        match s {
            Src::R(V(r)) => self.v[r as usize],
            Src::C(c) => [c; 16],
        }
    }

    fn block(&mut self, stmts: &[Stmt]) -> Result<(), String> {
        for s in stmts {
            match s {
                Stmt::Inst(i) => self.inst(i).map_err(|e| format!("{i}: {e}"))?,
                Stmt::Loop { iv, from, to, step, body } => {
                    self.i[iv.0 as usize] = self.int(*from);
                    while self.i[iv.0 as usize] < self.int(*to) {
                        self.block(body)?;
                        self.i[iv.0 as usize] += step;
                    }
                }
                Stmt::If { c, a, b, then, els } => self.block(if c.eval(self.int(*a), self.int(*b)) { then } else { els })?,
            }
        }
        Ok(())
    }

    fn lanes(&mut self, d: V, f: impl Fn(usize) -> u32) {
        let lanes = self.lanes;
        let out = &mut self.v[d.0 as usize];
        for (i, x) in out.iter_mut().enumerate().take(lanes) {
            *x = f(i);
        }
    }

    fn inst(&mut self, inst: &Inst) -> Result<(), String> {
        match *inst {
            Inst::Load { d, a } => {
                let at = self.addr(a);
                for l in 0..self.lanes {
                    self.v[d.0 as usize][l] = self.mem.u32(at + 4 * l as u64)?;
                }
            }
            Inst::Store { a, s } => {
                let at = self.addr(a);
                for l in 0..self.lanes {
                    self.mem.set_u32(at + 4 * l as u64, self.v[s.0 as usize][l])?;
                }
            }
            Inst::LoadMask { d, a, m: M(m) } => {
                let at = self.addr(a);
                for l in 0..self.lanes {
                    let on = self.m[m as usize][l];
                    self.v[d.0 as usize][l] = if on { self.mem.u32(at + 4 * l as u64)? } else { 0 };
                }
            }
            Inst::StoreMask { a, s, m: M(m) } => {
                let at = self.addr(a);
                for l in (0..self.lanes).filter(|l| self.m[m as usize][*l]).collect::<Vec<_>>() {
                    self.mem.set_u32(at + 4 * l as u64, self.v[s.0 as usize][l])?;
                }
            }
            Inst::Splat { d, a } => {
                let at = self.addr(a);
                let x = self.mem.u32(at)?;
                self.lanes(d, |_| x);
            }
            Inst::SplatInt { d, x } => {
                let x = self.int(X::R(x)) as u32;
                self.lanes(d, |_| x);
            }
            Inst::Const { d, bits } => self.lanes(d, |_| bits),
            Inst::Copy { d, s } => self.v[d.0 as usize] = self.v[s.0 as usize],
            Inst::Bin { op, d, a, b } => {
                let (a, b) = (self.v[a.0 as usize], self.src(b));
                self.lanes(d, |l| eval_bin(op, a[l], b[l]));
            }
            Inst::Un { op, d, a } => {
                let a = self.v[a.0 as usize];
                self.lanes(d, |l| eval_un(op, a[l]));
            }
            Inst::Fma { neg, d, a, b, c } => {
                let (a, b, c) = (self.v[a.0 as usize], self.src(b), self.src(c));
                self.lanes(d, |l| {
                    let a = f32::from_bits(a[l]);
                    let a = if neg { -a } else { a };
                    a.mul_add(f32::from_bits(b[l]), f32::from_bits(c[l])).to_bits()
                });
            }
            Inst::Dot { d, a, b } => {
                let (c, a, b) = (self.v[d.0 as usize], self.v[a.0 as usize], self.v[b.0 as usize]);
                // The half of a lane, as f32; the upper pair is added first.
                let part = |x: u32, high: bool| f32::from_bits(if high { x & 0xffff_0000 } else { x << 16 });
                self.lanes(d, |l| {
                    let sum = part(a[l], true).mul_add(part(b[l], true), f32::from_bits(c[l]));
                    part(a[l], false).mul_add(part(b[l], false), sum).to_bits()
                });
            }
            Inst::StoreBf16 { a, s } => {
                let at = self.addr(a);
                let v = self.v[s.0 as usize];
                for l in (0..self.lanes).step_by(2) {
                    let pair = to_bf16(v[l]) | to_bf16(v[l + 1]) << 16;
                    self.mem.set_u32(at + 2 * l as u64, pair)?;
                }
            }
            Inst::Cmp { c, d, a, b } => {
                let (a, b) = (self.v[a.0 as usize], self.src(b));
                for l in 0..self.lanes {
                    self.m[d.0 as usize][l] = eval_cmp(c, f32::from_bits(a[l]), f32::from_bits(b[l]));
                }
            }
            Inst::Select { d, m, t, f } => {
                let (m, t, f) = (self.m[m.0 as usize], self.v[t.0 as usize], self.v[f.0 as usize]);
                self.lanes(d, |l| if m[l] { t[l] } else { f[l] });
            }
            Inst::Swap { d, a, dist } => {
                let a = self.v[a.0 as usize];
                self.lanes(d, |l| a[l ^ usize::from(dist)]);
            }
            Inst::Shuffle { how, d, a, b } => {
                let (a, b, lanes) = (self.v[a.0 as usize], self.v[b.0 as usize], self.lanes);
                self.lanes(d, |l| match how.source(lanes, l) {
                    (false, from) => a[from],
                    (true, from) => b[from],
                });
            }
            Inst::Tail { d, n } => {
                let n = self.int(n);
                for l in 0..self.lanes {
                    self.m[d.0 as usize][l] = (l as i64) < n;
                }
            }
            Inst::Mask { op, d, a, b } => {
                let (a, b) = (self.m[a.0 as usize], self.m[b.0 as usize]);
                for l in 0..self.lanes {
                    self.m[d.0 as usize][l] = match op {
                        MBin::And => a[l] & b[l],
                        MBin::Or => a[l] | b[l],
                        MBin::Xor => a[l] ^ b[l],
                    };
                }
            }
            Inst::Int { d, x } => self.i[d.0 as usize] = self.int(x),
            Inst::IBin { op, d, a, b } => {
                let (a, b) = (self.int(a), self.int(b));
                if b == 0 && matches!(op, IBin::DivU | IBin::RemU) {
                    return Err("division by zero".to_owned());
                }
                self.i[d.0 as usize] = eval_int(op, a, b);
            }
            Inst::ISelect { d, c, a, b, t, f } => {
                self.i[d.0 as usize] = if c.eval(self.int(a), self.int(b)) { self.int(t) } else { self.int(f) };
            }
            Inst::Lea { d, a } => self.i[d.0 as usize] = self.addr(a) as i64,
            Inst::ILoad { d, a, wide } => {
                let at = self.addr(a);
                self.i[d.0 as usize] = if wide { self.mem.u64(at)? as i64 } else { i64::from(self.mem.u32(at)? as i32) };
            }
            Inst::Frame { d, off } => self.i[d.0 as usize] = (self.frame + u64::from(off)) as i64,
            Inst::Prefetch { .. } => {}
        }
        Ok(())
    }
}
