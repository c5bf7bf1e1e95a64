//! Runs kernels on the CPU: the oracle of the printers. A group's threads go in step, those that are elsewhere being masked, so that
//! barriers and subgroup operations need no scheduler. Accesses outside of buffers are errors, and so are those to where a copy goes that
//! was not waited for.

use super::{Binary, Compare, Convert, Elem, Fold, Kernel, Op, Space, Stmt, Ty, Unary, Val, Words};
use nnc_ir::scalar::Num;
use nnc_ir::target::Cooperative;
use nnc_ir::{DType, Error, Result};
use std::collections::VecDeque;

/// What a launch is given.
pub struct Launch<'a> {
    pub groups: u32,
    pub scalars: &'a [i32],
    /// One a buffer of the kernel.
    pub buffers: &'a mut [Vec<u8>],
    /// Threads in a subgroup.
    pub lanes: u32,
}

/// Runs all groups, one after another.
pub fn run(k: &Kernel, launch: &mut Launch) -> Result<()> {
    let n = k.threads as usize;
    for group in 0..launch.groups {
        // Shared memory that nobody wrote reads as NaN, or -1.
        let shared: Vec<Vec<u8>> = k.shared.iter().map(|s| vec![0xff; (s.elem.bytes() * s.len) as usize]).collect();
        let expected = shared.iter().map(|s| vec![false; s.len()]).collect();
        let (values, sets) = (vec![vec![]; k.types.len()], VecDeque::from([vec![]]));
        let mut g = Group { k, launch, group, shared, expected, sets, values, matrices: vec![] };
        g.block(&k.body, &vec![true; n])?;
        if g.sets.iter().any(|s| !s.is_empty()) {
            return g.wrong("it ends before all its copies have arrived".into());
        }
    }
    Ok(())
}

struct Group<'a, 'b> {
    k: &'a Kernel,
    launch: &'a mut Launch<'b>,
    group: u32,
    shared: Vec<Vec<u8>>,
    /// Bytes of shared memory that copies are on the way to.
    expected: Vec<Vec<bool>>,
    /// Copies that have not arrived, by set; the last set is open.
    sets: VecDeque<Vec<Copy>>,
    /// By value, then by thread: bits; of a matrix, its number among those of the group.
    values: Vec<Vec<u64>>,
    /// Rows, one after another; of right ones, columns.
    matrices: Vec<Vec<f32>>,
}

/// What is on the way to a shared array.
struct Copy {
    array: usize,
    at: usize,
    data: Vec<u8>,
}

impl Group<'_, '_> {
    fn wrong<T>(&self, what: String) -> Result<T> {
        Err(Error::internal(format!("GPU kernel {}, group {}: {what}", self.k.name, self.group)))
    }

    fn get(&self, v: Val, thread: usize) -> u64 {
        self.values[v.0 as usize][thread]
    }

    /// Sets a value of the active threads.
    fn set(&mut self, v: Val, active: &[bool], f: impl Fn(&Self, usize) -> Result<u64>) -> Result<()> {
        let mut out = std::mem::take(&mut self.values[v.0 as usize]);
        out.resize(active.len(), 0);
        for (t, slot) in out.iter_mut().enumerate() {
            if active[t] {
                *slot = f(self, t)?;
            }
        }
        self.values[v.0 as usize] = out;
        Ok(())
    }

    fn holds(&self, cond: Val, active: &[bool]) -> Vec<bool> {
        active.iter().enumerate().map(|(t, a)| *a && self.get(cond, t) != 0).collect()
    }

    /// Hands loop values on. All are read before any is written.
    fn carry(&mut self, pairs: &[(Val, Val)], active: &[bool]) -> Result<()> {
        let read: Vec<Vec<u64>> = pairs.iter().map(|(_, from)| self.values[from.0 as usize].clone()).collect();
        for ((to, _), from) in pairs.iter().zip(read) {
            self.set(*to, active, |_, t| Ok(from[t]))?;
        }
        Ok(())
    }

    fn place(&self, s: Space, index: u64) -> Result<(Elem, usize)> {
        let elem = self.k.elem(s);
        let at = index as u32 as usize * elem.bytes() as usize;
        let len = match s {
            Space::Global(i) => self.launch.buffers[i as usize].len(),
            Space::Shared(i) => self.shared[i as usize].len(),
        };
        if at + elem.bytes() as usize > len {
            return self.wrong(format!("element {} of {s}, which has {} bytes", index as u32 as i32, len));
        }
        match s {
            Space::Shared(i) if self.expected[i as usize][at..at + elem.bytes() as usize].contains(&true) => {
                self.wrong(format!("element {} of {s} is touched before the copy to it was waited for", index as u32))
            }
            _ => Ok((elem, at)),
        }
    }

    /// A copy of the thread's sets out; what it reads lies there already.
    fn copy(&self, s: &Stmt, t: usize) -> Result<Option<Copy>> {
        let Stmt::Copy { to: to @ Space::Shared(array), at, from: from @ Space::Global(buffer), index, bytes, inside } = s else { return Ok(None) };
        // The first and the last element of both places must be there.
        let place = |s: Space, first: Val| {
            let (elem, index) = (self.k.elem(s).bytes(), self.get(first, t));
            let (_, at) = self.place(s, index)?;
            (0..bytes / elem).try_for_each(|i| self.place(s, index + u64::from(i)).map(drop))?;
            if at.is_multiple_of(*bytes as usize) { Ok(at) } else { self.wrong(format!("{bytes} bytes at byte {at} of {s}")) }
        };
        let at = place(*to, *at)?;
        let data = if inside.is_none_or(|i| self.get(i, t) != 0) {
            let first = place(*from, *index)?;
            self.launch.buffers[*buffer as usize][first..first + *bytes as usize].to_vec()
        } else {
            vec![0; *bytes as usize]
        };
        Ok(Some(Copy { array: *array as usize, at, data }))
    }

    /// The index of the first of some neighbours, which is a multiple of their number.
    fn vector(&self, s: Space, index: Val, n: usize, t: usize) -> Result<u64> {
        let first = self.get(index, t);
        if first.is_multiple_of(n as u64) { Ok(first) } else { self.wrong(format!("{n} elements of {s} from {first} on")) }
    }

    fn store(&mut self, to: Space, index: Val, values: &[Val], active: &[bool]) -> Result<()> {
        for t in (0..active.len()).filter(|t| active[*t]) {
            let first = self.vector(to, index, values.len(), t)?;
            for (i, v) in values.iter().enumerate() {
                let (elem, at) = self.place(to, first + i as u64)?;
                let bytes = self.get(*v, t).to_le_bytes();
                let memory = match to {
                    Space::Global(i) => &mut self.launch.buffers[i as usize],
                    Space::Shared(i) => &mut self.shared[i as usize],
                };
                memory[at..at + elem.bytes() as usize].copy_from_slice(&bytes[..elem.bytes() as usize]);
            }
        }
        Ok(())
    }

    fn load(&self, from: Space, index: u64) -> Result<u64> {
        let (elem, at) = self.place(from, index)?;
        let memory = match from {
            Space::Global(i) => &self.launch.buffers[i as usize],
            Space::Shared(i) => &self.shared[i as usize],
        };
        let mut bytes = [0; 8];
        bytes[..elem.bytes() as usize].copy_from_slice(&memory[at..at + elem.bytes() as usize]);
        let bits = u64::from_le_bytes(bytes);
        Ok(match elem {
            Elem::I8 => bits as u8 as i8 as i32 as u32 as u64,
            Elem::I16 => bits as u16 as i16 as i32 as u32 as u64,
            _ => bits,
        })
    }

    fn block(&mut self, body: &[Stmt], active: &[bool]) -> Result<()> {
        if !active.contains(&true) {
            return Ok(());
        }
        body.iter().try_for_each(|s| self.stmt(s, active))
    }

    fn stmt(&mut self, s: &Stmt, active: &[bool]) -> Result<()> {
        match s {
            Stmt::Let(v, op) if self.k.ty(*v).is_matrix() => self.matrix(*v, op, active),
            Stmt::Let(v, op) => self.set(*v, active, |g, t| g.value(op, t, active)),
            Stmt::Store { to, index, value } => self.store(*to, *index, &[*value], active),
            Stmt::StoreVector { to, index, values } => self.store(*to, *index, values, active),
            Stmt::LoadVector { values, from, index } => {
                for (i, v) in values.iter().enumerate() {
                    self.set(*v, active, |g, t| {
                        let first = g.vector(*from, *index, values.len(), t)?;
                        g.load(*from, first + i as u64)
                    })?;
                }
                Ok(())
            }
            Stmt::If { cond, then, otherwise, joined } => {
                let yes = self.holds(*cond, active);
                let no: Vec<bool> = active.iter().zip(&yes).map(|(a, y)| *a && !y).collect();
                for (branch, mask) in [(then, &yes), (otherwise, &no)] {
                    self.block(branch, mask)?;
                }
                for j in joined {
                    self.set(j.value, &yes, |g, t| Ok(g.get(j.then, t)))?;
                    self.set(j.value, &no, |g, t| Ok(g.get(j.otherwise, t)))?;
                }
                Ok(())
            }
            Stmt::For { index, lo, hi, carried, body } => {
                let signed = |g: &Self, v: Val, t: usize| extend(g.k.ty(v), g.get(v, t));
                self.carry(&carried.iter().map(|c| (c.value, c.first)).collect::<Vec<_>>(), active)?;
                self.carry(&[(*index, *lo)], active)?;
                loop {
                    let on: Vec<bool> = (0..active.len()).map(|t| active[t] && signed(self, *index, t) < signed(self, *hi, t)).collect();
                    if !on.contains(&true) {
                        return Ok(());
                    }
                    self.block(body, &on)?;
                    self.carry(&carried.iter().map(|c| (c.value, c.next)).collect::<Vec<_>>(), &on)?;
                    let at = self.values[index.0 as usize].clone();
                    self.set(*index, &on, |_, t| Ok(at[t].wrapping_add(1)))?;
                }
            }
            Stmt::While { carried, head, cond, body } => {
                self.carry(&carried.iter().map(|c| (c.value, c.first)).collect::<Vec<_>>(), active)?;
                let mut on = active.to_vec();
                loop {
                    self.block(head, &on)?;
                    if on.contains(&true) {
                        on = self.holds(*cond, &on);
                    }
                    if !on.contains(&true) {
                        return Ok(());
                    }
                    self.block(body, &on)?;
                    self.carry(&carried.iter().map(|c| (c.value, c.next)).collect::<Vec<_>>(), &on)?;
                }
            }
            Stmt::LoadMatrices { values, from, index } => {
                for (i, v) in values.iter().enumerate() {
                    self.set(*v, active, |g, t| {
                        let (first, lane) = (t / 32 * 32, t % 32);
                        let row = g.get(*index, first + 8 * i + lane / 4) as u32;
                        if !row.is_multiple_of(4) {
                            return g.wrong(format!("a row of a matrix starts at word {row}"));
                        }
                        let (_, at) = g.place(*from, u64::from(row.wrapping_add(lane as u32 % 4)))?;
                        let Space::Shared(s) = from else { return g.wrong("a matrix that is not shared".into()) };
                        let mut word = [0; 4];
                        word.copy_from_slice(&g.shared[*s as usize][at..at + 4]);
                        Ok(u32::from_le_bytes(word).into())
                    })?;
                }
                Ok(())
            }
            Stmt::MultiplyMatrices { words, values, a, b, c } => {
                for (e, v) in values.iter().enumerate() {
                    self.set(*v, active, |g, t| {
                        let (first, lane) = (t / 32 * 32, t % 32);
                        let (row, column) = (lane / 4 + 8 * (e / 2), 2 * (lane % 4) + e % 2);
                        let mut sum = f32::from_bits(g.get(c[e], t) as u32);
                        for k in 0..8 {
                            // Of which thread, and in which of its words.
                            let x = g.get(a[row / 8 + 2 * (k / 4)], first + 4 * (row % 8) + k % 4);
                            let y = g.get(b[k / 4], first + 4 * column + k % 4);
                            for (x, y) in numbers(*words, x).into_iter().zip(numbers(*words, y)) {
                                sum += x * y;
                            }
                        }
                        Ok(sum.to_bits().into())
                    })?;
                }
                Ok(())
            }
            Stmt::StoreMatrix { to, index, pitch, value } => {
                let Space::Shared(array) = to else { return self.wrong("a matrix that is not shared".into()) };
                for first in (0..active.len()).step_by(self.launch.lanes as usize) {
                    let (shape, start) = (self.shape()?, self.together(*index, first, active)?);
                    let sums = self.matrices[self.get(*value, first) as usize].clone();
                    for (i, sum) in sums.iter().enumerate() {
                        let (row, column) = (i as u64 / u64::from(shape.columns), i as u64 % u64::from(shape.columns));
                        let (_, at) = self.place(*to, start + row * u64::from(*pitch) + column)?;
                        self.shared[*array as usize][at..at + 4].copy_from_slice(&sum.to_le_bytes());
                    }
                }
                Ok(())
            }
            Stmt::Copy { .. } => {
                for t in (0..active.len()).filter(|t| active[*t]) {
                    let Some(c) = self.copy(s, t)? else { continue };
                    self.expected[c.array][c.at..c.at + c.data.len()].fill(true);
                    if let Some(open) = self.sets.back_mut() {
                        open.push(c);
                    }
                }
                Ok(())
            }
            Stmt::CloseCopies => {
                self.sets.push_back(vec![]);
                Ok(())
            }
            Stmt::AwaitCopies { pending } => {
                // The open set is waited for by nobody.
                while self.sets.len() > *pending as usize + 1 {
                    for Copy { array, at, data } in self.sets.pop_front().unwrap_or_default() {
                        self.shared[array][at..at + data.len()].copy_from_slice(&data);
                        self.expected[array][at..at + data.len()].fill(false);
                    }
                }
                Ok(())
            }
            Stmt::Barrier if active.iter().all(|a| *a) => Ok(()),
            Stmt::Barrier => self.wrong("a barrier that not all threads reach".into()),
        }
    }

    fn shape(&self) -> Result<Cooperative> {
        match self.k.cooperative {
            Some(c) if c.lanes == self.launch.lanes => Ok(c),
            _ => self.wrong(format!("matrices of subgroups of {}", self.launch.lanes)),
        }
    }

    /// What all threads of the subgroup say, of which this is the first.
    fn together(&self, v: Val, first: usize, active: &[bool]) -> Result<u64> {
        let mut all = first..(first + self.launch.lanes as usize).min(active.len());
        let said = self.get(v, first);
        if all.all(|t| active[t] && self.get(v, t) == said) { Ok(said) } else { self.wrong(format!("the threads of a subgroup differ in {v}")) }
    }

    /// Computes a matrix of each subgroup.
    fn matrix(&mut self, v: Val, op: &Op, active: &[bool]) -> Result<()> {
        let (shape, lanes) = (self.shape()?, self.launch.lanes as usize);
        let (rows, columns, depth) = (shape.rows as usize, shape.columns as usize, shape.depth as usize);
        let mut handles = vec![0; active.len()];
        for first in (0..active.len()).step_by(lanes) {
            let made = match *op {
                Op::Const(..) => vec![0.0; rows * columns],
                Op::LoadMatrix { matrix, from, index, pitch } => {
                    let start = self.together(index, first, active)?;
                    let mut out = vec![];
                    for line in 0..if matrix == Ty::Left { rows } else { columns } {
                        for word in 0..depth / 2 {
                            out.extend(numbers(Words::F16, self.load(from, start + (line * pitch as usize + word) as u64)?));
                        }
                    }
                    out
                }
                Op::MulAdd(a, b, c) => {
                    let [x, y, sums] = [a, b, c].map(|m| self.get(m, first) as usize);
                    let mut out = self.matrices[sums].clone();
                    for (i, sum) in out.iter_mut().enumerate() {
                        let (x, y) = (&self.matrices[x][i / columns * depth..], &self.matrices[y][i % columns * depth..]);
                        x.iter().zip(y).take(depth).for_each(|(x, y)| *sum += x * y);
                    }
                    out
                }
                _ => return self.wrong(format!("{op} makes no matrix")),
            };
            handles[first..(first + lanes).min(active.len())].fill(self.matrices.len() as u64);
            self.matrices.push(made);
        }
        self.set(v, active, |_, t| Ok(handles[t]))
    }

    fn value(&self, op: &Op, t: usize, active: &[bool]) -> Result<u64> {
        let get = |v: Val| self.get(v, t);
        let ty = |v: Val| self.k.ty(v);
        let lanes = self.launch.lanes as usize;
        Ok(match *op {
            Op::Const(_, bits) => bits,
            Op::Scalar(i) => self.launch.scalars[i as usize] as u32 as u64,
            Op::Thread => t as u64,
            Op::Group => self.group.into(),
            Op::Groups => self.launch.groups.into(),
            Op::Lane => (t % lanes) as u64,
            Op::Lanes => lanes as u64,
            Op::Subgroup => (t / lanes) as u64,
            Op::LoadMatrix { .. } => return self.wrong(format!("{op} is no number of a thread")),
            Op::Unary(u, a) => unary(u, ty(a), get(a)),
            Op::Binary(b, x, y) => match integer(b, ty(x), get(x), get(y)) {
                Some(bits) => bits,
                None if ty(x).is_float() => float(b, ty(x), get(x), get(y)),
                None => return self.wrong(format!("{op} divides by zero or shifts by the width")),
            },
            Op::MulAdd(a, b, c) => float(Binary::Add, ty(a), float(Binary::Mul, ty(a), get(a), get(b)), get(c)),
            Op::Compare(c, a, b) => compare(c, ty(a), get(a), get(b)).into(),
            Op::Tf32(a) => u64::from(tf32(get(a) as u32)),
            Op::Pair(words, a, b) => u64::from(half(words, get(a) as u32)) | u64::from(half(words, get(b) as u32)) << 16,
            Op::Select(c, a, b) => get(if get(c) != 0 { a } else { b }),
            Op::Convert(c, to, a) => convert(c, ty(a), to, get(a)),
            Op::Load { from, index } => self.load(from, get(index))?,
            Op::SubgroupFold(f, a) => {
                let first = t / lanes * lanes;
                let all: Vec<u64> = (first..(first + lanes).min(active.len())).filter(|t| active[*t]).map(|t| self.get(a, t)).collect();
                let two = |x: u64, y: u64| match f {
                    Fold::Add => integer(Binary::Add, ty(a), x, y).unwrap_or_else(|| float(Binary::Add, ty(a), x, y)),
                    Fold::Max => {
                        if compare(Compare::Lt, ty(a), x, y) {
                            y
                        } else {
                            x
                        }
                    }
                    Fold::Min => {
                        if compare(Compare::Lt, ty(a), y, x) {
                            y
                        } else {
                            x
                        }
                    }
                };
                all.into_iter().reduce(two).unwrap_or_default()
            }
            Op::SubgroupXor(a, mask) => {
                let other = t / lanes * lanes + ((t % lanes) ^ mask as usize);
                if other < active.len() { self.get(a, other) } else { get(a) }
            }
        })
    }
}

/// The bits of an `f32` rounded to bf16, ties to even; NaN is one NaN.
fn bf16(bits: u32) -> u16 {
    if f32::from_bits(bits).is_nan() { 0x7fff } else { ((u64::from(bits) + 0x7fff + u64::from(bits >> 16 & 1)) >> 16) as u16 }
}

/// The bits of an `f32` rounded to a number of a pair.
fn half(words: Words, bits: u32) -> u16 {
    if words == Words::Bf16 {
        return bf16(bits);
    }
    let mut out = vec![];
    Num::F(f32::from_bits(bits).into()).cast(DType::F16).write(DType::F16, &mut out);
    u16::from_le_bytes([out[0], out[1]])
}

/// The bits of an `f32` rounded to tf32; NaN is one NaN.
fn tf32(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() { 0x7fff_ffff } else { (bits + 0x1000) & 0xffff_e000 }
}

/// The numbers of a matrix' word, of which there are at most two.
fn numbers(words: Words, word: u64) -> Vec<f32> {
    let word = word as u32;
    let bits = match words {
        Words::Bf16 => vec![word << 16, word & 0xffff_0000],
        Words::F16 => {
            let number = |w: u32| (Num::read(DType::F16, &(w as u16).to_le_bytes()).as_f64() as f32).to_bits();
            vec![number(word), number(word >> 16)]
        }
        // Bits that rounding should have cleared are not looked at.
        Words::Tf32 => vec![word & 0xffff_e000],
    };
    bits.into_iter().map(f32::from_bits).collect()
}

/// The signed number that the bits of an integer are.
fn extend(ty: Ty, bits: u64) -> i64 {
    if ty == Ty::I64 { bits as i64 } else { i64::from(bits as u32 as i32) }
}

fn cut(ty: Ty, bits: u64) -> u64 {
    if ty == Ty::I64 { bits } else { u64::from(bits as u32) }
}

/// An operation of integers or `bool`; `None` for floats, and where it is not defined.
pub fn integer(op: Binary, ty: Ty, a: u64, b: u64) -> Option<u64> {
    if ty.is_float() {
        return None;
    }
    let (x, y, width) = (extend(ty, a), extend(ty, b), u64::from(ty.bits()));
    Some(cut(
        ty,
        match op {
            Binary::Add => x.wrapping_add(y) as u64,
            Binary::Sub => x.wrapping_sub(y) as u64,
            Binary::Mul => x.wrapping_mul(y) as u64,
            Binary::DivS if ty == Ty::I32 => x.checked_div(y)? as u64,
            Binary::DivS => x.checked_div(y)? as u64,
            Binary::RemS => x.checked_rem(y)? as u64,
            Binary::DivU => a.checked_div(b)?,
            Binary::RemU => a.checked_rem(b)?,
            Binary::And => a & b,
            Binary::Or => a | b,
            Binary::Xor => a ^ b,
            Binary::Shl if b < width => a << b,
            Binary::ShrS if b < width => (x >> b) as u64,
            Binary::ShrU if b < width => a >> b,
            Binary::Shl | Binary::ShrS | Binary::ShrU | Binary::Div => return None,
        },
    ))
}

fn f(ty: Ty, bits: u64) -> f64 {
    if ty == Ty::F64 { f64::from_bits(bits) } else { f32::from_bits(bits as u32).into() }
}

fn put(ty: Ty, x: f64) -> u64 {
    if ty == Ty::F64 { x.to_bits() } else { (x as f32).to_bits().into() }
}

fn float(op: Binary, ty: Ty, a: u64, b: u64) -> u64 {
    let (x, y) = (f(ty, a), f(ty, b));
    // Two roundings of these give what one gives.
    put(
        ty,
        match op {
            Binary::Add => x + y,
            Binary::Sub => x - y,
            Binary::Mul => x * y,
            _ => x / y,
        },
    )
}

fn unary(op: Unary, ty: Ty, a: u64) -> u64 {
    let x = f(ty, a);
    match op {
        Unary::Not if ty == Ty::Bool => 1 - a,
        Unary::Not => cut(ty, !a),
        Unary::Neg => put(ty, -x),
        Unary::Abs => put(ty, x.abs()),
        Unary::Sqrt => put(ty, x.sqrt()),
        Unary::Floor => put(ty, x.floor()),
        Unary::Ceil => put(ty, x.ceil()),
        Unary::Round => put(ty, x.round_ties_even()),
        Unary::Trunc => put(ty, x.trunc()),
    }
}

fn compare(op: Compare, ty: Ty, a: u64, b: u64) -> bool {
    let order = match (op, ty.is_float()) {
        (_, true) => f(ty, a).partial_cmp(&f(ty, b)),
        (Compare::LtU | Compare::LeU, _) => Some(a.cmp(&b)),
        _ => Some(extend(ty, a).cmp(&extend(ty, b))),
    };
    match op {
        Compare::Eq => order.is_some_and(|o| o.is_eq()),
        Compare::Ne => order.is_none_or(|o| o.is_ne()),
        Compare::Lt | Compare::LtU => order.is_some_and(|o| o.is_lt()),
        Compare::Le | Compare::LeU => order.is_some_and(|o| o.is_le()),
    }
}

fn convert(op: Convert, from: Ty, to: Ty, a: u64) -> u64 {
    match op {
        Convert::ExtendS => extend(from, a) as u64,
        Convert::ExtendU | Convert::FromBool | Convert::Bits => a,
        Convert::Low => cut(Ty::I32, a),
        // Straight from the integer: by way of f64 would round twice.
        Convert::FloatS if to == Ty::F32 => (extend(from, a) as f32).to_bits().into(),
        Convert::FloatU if to == Ty::F32 => (a as f32).to_bits().into(),
        Convert::FloatS => (extend(from, a) as f64).to_bits(),
        Convert::FloatU => (a as f64).to_bits(),
        Convert::IntS => cut(to, f(from, a) as i64 as u64),
        Convert::IntU => cut(to, f(from, a) as u64),
        Convert::Resize => put(to, f(from, a)),
    }
}
