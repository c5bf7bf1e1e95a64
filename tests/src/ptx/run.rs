//! Groups of threads, one after another. The threads whose next instruction comes first in the text go first, so that those that
//! parted meet again where the printer joins them.

use super::{Entry, Instr, Space, Special, Width};
use std::collections::VecDeque;

/// A buffer of a launch, and what it was touched by.
pub struct Window<'a> {
    pub data: &'a mut [u8],
    /// Whether the kernel may write to it.
    pub written: bool,
}

pub struct Launch<'a> {
    /// Along both axes.
    pub groups: [u32; 2],
    pub buffers: Vec<Window<'a>>,
    pub scalars: &'a [i32],
}

/// Addresses of buffers lie so far apart.
const APART: u32 = 40;
const LANES: u32 = 32;

/// Who wrote and read a byte, and when: numbers of threads from 1 on, and of the stretch between two barriers.
#[derive(Clone, Copy, Default)]
struct Touch {
    writer: u32,
    written: u32,
    reader: u32,
    read: u32,
    /// Whether a copy is on the way to it.
    expected: bool,
}

/// A copy that has not arrived: its place in shared memory, and what it brings.
struct Copy {
    to: u64,
    data: Vec<u8>,
}

/// A reader that stands for several.
const MANY: u32 = u32::MAX;

impl Touch {
    /// Whether thread `t` and an earlier one with the mark (`who`, `when`) were ordered by nothing: a barrier of their group, whose first
    /// stretch is `first`.
    fn clashes(who: u32, when: u32, t: u32, now: u32, first: u32) -> bool {
        who != 0 && who != t && !(when >= first && when != now)
    }
}

struct State<'a, 'b> {
    e: &'a Entry,
    launch: &'a mut Launch<'b>,
    /// By buffer that may be written, by byte.
    touched: Vec<Vec<Touch>>,
    shared: Vec<u8>,
    shared_touched: Vec<Touch>,
    /// By thread: groups of copies that have not arrived, the last one open.
    copies: Vec<VecDeque<Vec<Copy>>>,
    /// By register, then by thread.
    regs: Vec<u64>,
    group: u32,
    /// The stretch between two barriers; no group has one of another.
    now: u32,
    first: u32,
}

/// Runs an entry point over all groups.
pub fn run(e: &Entry, launch: &mut Launch) -> Result<(), String> {
    if e.params.len() != launch.buffers.len() + launch.scalars.len() {
        return Err(format!("{} takes {} parameters", e.name, e.params.len()));
    }
    let touched = launch.buffers.iter().map(|w| vec![Touch::default(); if w.written { w.data.len() } else { 0 }]).collect();
    let n = e.threads as usize;
    let (shared, shared_touched) = (vec![0; e.shared as usize], vec![Touch::default(); e.shared as usize]);
    let groups = launch.groups;
    let copies = (0..n).map(|_| VecDeque::new()).collect();
    let mut s = State { e, launch, touched, shared, shared_touched, copies, regs: vec![0; e.registers * n], group: 0, now: 0, first: 0 };
    for y in 0..groups[1] {
        for x in 0..groups[0] {
            s.group = y * groups[0] + x;
            s.now += 1;
            s.first = s.now;
            s.shared_touched.fill(Touch::default());
            s.copies.iter_mut().for_each(|c| *c = VecDeque::from([vec![]]));
            s.start(x, y);
            s.run()?;
        }
    }
    Ok(())
}

impl State<'_, '_> {
    fn set(&mut self, r: u32, value: impl Fn(u32) -> u64) {
        let n = self.e.threads as usize;
        self.regs[r as usize * n..][..n].iter_mut().enumerate().for_each(|(t, x)| *x = value(t as u32));
    }

    fn start(&mut self, x: u32, y: u32) {
        let e = self.e;
        // What nobody has set is noticed.
        self.regs.fill(0xdead_beef_dead_beef);
        for (r, v) in &e.constants {
            self.set(*r, |_| *v);
        }
        let buffers = self.launch.buffers.len();
        for (i, r) in e.params.iter().enumerate() {
            let Some(r) = r else { continue };
            let v = if i < buffers { (i as u64 + 1) << APART } else { u64::from(self.launch.scalars[i - buffers] as u32) };
            self.set(*r, |_| v);
        }
        let [gx, gy] = self.launch.groups;
        for (r, s) in &e.specials {
            self.set(*r, |t| {
                u64::from(match s {
                    Special::Thread => t,
                    Special::Lane => t % LANES,
                    Special::GroupX => x,
                    Special::GroupY => y,
                    Special::GroupsX => gx,
                    Special::GroupsY => gy,
                })
            });
        }
    }

    fn wrong(&self, pc: usize, t: u32, what: &str) -> String {
        format!("{}, line {}, thread {t} of group {}: {what}", self.e.name, self.e.lines[pc], self.group)
    }

    fn run(&mut self) -> Result<(), String> {
        let n = self.e.threads as usize;
        // Sets of threads by their next instruction.
        let mut waiting: Vec<(usize, Vec<u32>)> = vec![(0, (0..n as u32).collect())];
        let mut ended = 0;
        while let Some(first) = (0..waiting.len()).min_by_key(|i| waiting[*i].0) {
            let (mut pc, mut active) = waiting.swap_remove(first);
            while let Some(same) = waiting.iter().position(|w| w.0 == pc) {
                active.extend(waiting.swap_remove(same).1);
            }
            active.sort_unstable();
            let next = waiting.iter().map(|w| w.0).min().unwrap_or(usize::MAX);
            // On, until others are to be met or waited for.
            loop {
                let Some(instr) = self.e.code.get(pc) else { return Err(format!("{} runs off its end", self.e.name)) };
                match instr {
                    Instr::Return => {
                        if let Some(t) = active.iter().find(|t| self.copies[**t as usize].iter().any(|set| !set.is_empty())) {
                            return Err(self.wrong(pc, *t, "it ends before its copies have arrived"));
                        }
                        ended += active.len();
                        active.clear();
                    }
                    Instr::Branch { on: None, to } => {
                        pc = *to;
                        break;
                    }
                    Instr::Branch { on: Some((p, value)), to } => {
                        let p = &self.regs[*p as usize * n..][..n];
                        let (go, stay): (Vec<u32>, Vec<u32>) = active.iter().partition(|t| (p[**t as usize] & 1 == 1) == *value);
                        if stay.is_empty() {
                            pc = *to;
                            break;
                        }
                        pc += 1;
                        if !go.is_empty() {
                            waiting.push((*to, go));
                            active = stay;
                            break;
                        }
                    }
                    Instr::Barrier => {
                        if active.len() != n {
                            let what = format!("a barrier that {} of {n} threads come by, {ended} have ended", active.len());
                            return Err(self.wrong(pc, active[0], &what));
                        }
                        self.now += 1;
                        pc += 1;
                    }
                    _ => {
                        self.step(pc, instr, &active)?;
                        pc += 1;
                    }
                }
                if active.is_empty() || pc >= next {
                    break;
                }
            }
            if !active.is_empty() {
                waiting.push((pc, active));
            }
        }
        Ok(())
    }

    fn step(&mut self, pc: usize, instr: &Instr, active: &[u32]) -> Result<(), String> {
        let n = self.e.threads as usize;
        let at = |r: u32, t: u32| r as usize * n + t as usize;
        match instr {
            Instr::One { f, to, x } => active.iter().for_each(|t| self.regs[at(*to, *t)] = f(self.regs[at(*x, *t)])),
            Instr::Two { f, to, x, y } => {
                active.iter().for_each(|t| self.regs[at(*to, *t)] = f(self.regs[at(*x, *t)], self.regs[at(*y, *t)]));
            }
            Instr::Three { f, to, x, y, z } => {
                active.iter().for_each(|t| self.regs[at(*to, *t)] = f(self.regs[at(*x, *t)], self.regs[at(*y, *t)], self.regs[at(*z, *t)]));
            }
            Instr::Join { to, lo, hi } => {
                active.iter().for_each(|t| self.regs[at(*to, *t)] = self.regs[at(*lo, *t)] & 0xffff_ffff | self.regs[at(*hi, *t)] << 32);
            }
            Instr::Halve { lo, hi, x } => active.iter().for_each(|t| {
                let v = self.regs[at(*x, *t)];
                self.regs[at(*lo, *t)] = v & 0xffff_ffff;
                self.regs[at(*hi, *t)] = v >> 32;
            }),
            Instr::Shuffle { to, x, mask } => {
                let mut values = vec![];
                for t in active {
                    let other = t ^ mask;
                    if active.binary_search(&other).is_err() {
                        return Err(self.wrong(pc, *t, "a shuffle that its partner does not come by"));
                    }
                    values.push(self.regs[at(*x, other)]);
                }
                active.iter().zip(values).for_each(|(t, v)| self.regs[at(*to, *t)] = v);
            }
            Instr::LoadMatrices { to, at: base, offset } => {
                self.whole_warps(pc, active)?;
                let word = Width { bytes: 4, signed: false };
                for (i, r) in to.iter().enumerate() {
                    for t in active {
                        let (first, lane) = (t / LANES * LANES, t % LANES);
                        // The rows of the i-th matrix are those that eight threads name.
                        let row = self.regs[at(*base, first + 8 * i as u32 + lane / 4)].wrapping_add_signed(*offset);
                        self.aligned(pc, *t, row, 16)?;
                        let v = self.load(Space::Shared, word, row + 4 * u64::from(lane % 4), *t);
                        self.regs[at(*r, *t)] = v.map_err(|why| self.wrong(pc, *t, &why))?;
                    }
                }
            }
            Instr::MultiplyMatrices { numbers, to, a, b, c } => {
                self.whole_warps(pc, active)?;
                let mut results = vec![];
                for t in active {
                    let (first, lane) = (t / LANES * LANES, t % LANES);
                    let (g, column) = (lane / 4, 2 * (lane % 4));
                    for e in 0..4u32 {
                        let (row, column) = (g + 8 * (e / 2), column + e % 2);
                        let mut sum = f32::from_bits(self.regs[at(c[e as usize], *t)] as u32);
                        for k in 0..8u32 {
                            // Lane 4g + t of the left operand holds words t and t + 4 of row g; of the right one those of column g.
                            let x = self.regs[at(a[(row / 8 + 2 * (k / 4)) as usize], first + 4 * (row % 8) + k % 4)];
                            let y = self.regs[at(b[(k / 4) as usize], first + 4 * column + k % 4)];
                            for (x, y) in numbers(x).into_iter().zip(numbers(y)) {
                                sum += x * y;
                            }
                        }
                        results.push((at(to[e as usize], *t), u64::from(sum.to_bits())));
                    }
                }
                results.into_iter().for_each(|(place, v)| self.regs[place] = v);
            }
            Instr::Load { space, width, to, at: base, offset } => {
                for t in active {
                    let from = self.regs[at(*base, *t)].wrapping_add_signed(*offset);
                    self.aligned(pc, *t, from, to.len() as u64 * width.bytes)?;
                    for (i, r) in to.iter().enumerate() {
                        let v = self.load(*space, *width, from + i as u64 * width.bytes, *t);
                        self.regs[at(*r, *t)] = v.map_err(|why| self.wrong(pc, *t, &why))?;
                    }
                }
            }
            Instr::Store { space, width, from, at: base, offset } => {
                for t in active {
                    let to = self.regs[at(*base, *t)].wrapping_add_signed(*offset);
                    self.aligned(pc, *t, to, from.len() as u64 * width.bytes)?;
                    for (i, r) in from.iter().enumerate() {
                        let v = self.regs[at(*r, *t)];
                        let done = self.store(*space, *width, to + i as u64 * width.bytes, v, *t);
                        done.map_err(|why| self.wrong(pc, *t, &why))?;
                    }
                }
            }
            Instr::Copy { to, from, bytes, read } => {
                for t in active {
                    let read = read.map_or(*bytes, |r| self.regs[at(r, *t)] & 0xffff_ffff);
                    let place = |(base, offset): &(u32, i64)| self.regs[at(*base, *t)].wrapping_add_signed(*offset);
                    let (to, from) = (place(to), place(from));
                    self.aligned(pc, *t, to, *bytes)?;
                    self.aligned(pc, *t, from, *bytes)?;
                    self.copy(to, from, *bytes, read, *t).map_err(|why| self.wrong(pc, *t, &why))?;
                }
            }
            Instr::CloseCopies => active.iter().for_each(|t| self.copies[*t as usize].push_back(vec![])),
            Instr::AwaitCopies(pending) => active.iter().for_each(|t| self.arrive(*t, *pending)),
            Instr::Branch { .. } | Instr::Barrier | Instr::Return => {}
        }
        Ok(())
    }

    /// An error where a warp is not complete.
    fn whole_warps(&self, pc: usize, active: &[u32]) -> Result<(), String> {
        let whole = active.chunks(LANES as usize).all(|w| w.len() == LANES as usize && w[0] % LANES == 0 && w[w.len() - 1] == w[0] + LANES - 1);
        if whole { Ok(()) } else { Err(self.wrong(pc, active[0], "an operation of matrices that not all threads of the warp come by")) }
    }

    /// All that one instruction moves starts at a multiple of its size.
    fn aligned(&self, pc: usize, t: u32, address: u64, bytes: u64) -> Result<(), String> {
        let why = || self.wrong(pc, t, &format!("the address {address:#x} is no multiple of {bytes}"));
        if address.is_multiple_of(bytes) { Ok(()) } else { Err(why()) }
    }

    /// The buffer of an address, and the byte in it.
    fn place(&self, address: u64, bytes: u64) -> Result<(usize, usize), String> {
        let (buffer, at) = ((address >> APART) as usize, address & ((1 << APART) - 1));
        let len = buffer.checked_sub(1).and_then(|b| self.launch.buffers.get(b)).map(|w| w.data.len() as u64);
        match len {
            Some(len) if at + bytes <= len => Ok((buffer - 1, at as usize)),
            Some(len) => Err(format!("byte {at} of buffer {}, which has {len}", buffer - 1)),
            None => Err(format!("the address {address:#x} is in no buffer")),
        }
    }

    /// Sends a copy off: its place belongs to the thread until it was waited for, and to all from the barrier behind that.
    fn copy(&mut self, to: u64, from: u64, bytes: u64, read: u64, t: u32) -> Result<(), String> {
        let mut data = vec![0; bytes as usize];
        if read > bytes {
            return Err(format!("a copy of {bytes} bytes reads {read}"));
        }
        if read > 0 {
            let (b, at) = self.place(from, read)?;
            let w = &self.launch.buffers[b];
            if w.written {
                return Err("what the kernel writes to is copied".into());
            }
            data[..read as usize].copy_from_slice(&w.data[at..at + read as usize]);
        }
        for (i, v) in data.iter().enumerate() {
            self.store(Space::Shared, Width { bytes: 1, signed: false }, to + i as u64, (*v).into(), t)?;
        }
        self.shared_touched[to as usize..(to + bytes) as usize].iter_mut().for_each(|b| b.expected = true);
        if let Some(open) = self.copies[t as usize].back_mut() {
            open.push(Copy { to, data });
        }
        Ok(())
    }

    /// All groups of the thread's copies but the last `pending` arrive.
    fn arrive(&mut self, t: u32, pending: usize) {
        let me = self.group * self.e.threads + t + 1;
        // The open group is waited for by nobody.
        while self.copies[t as usize].len() > pending + 1 {
            for c in self.copies[t as usize].pop_front().unwrap_or_default() {
                let range = c.to as usize..c.to as usize + c.data.len();
                self.shared[range.clone()].copy_from_slice(&c.data);
                for b in &mut self.shared_touched[range] {
                    (b.writer, b.written, b.expected) = (me, self.now, false);
                }
            }
        }
    }

    fn load(&mut self, space: Space, width: Width, from: u64, t: u32) -> Result<u64, String> {
        let bytes = width.bytes;
        let (threads, now, first) = (self.e.threads, self.now, self.first);
        let me = self.group * threads + t + 1;
        let (data, touched): (&[u8], &mut [Touch]) = match space {
            Space::Global { constant } => {
                let (b, at) = self.place(from, bytes)?;
                let w = &self.launch.buffers[b];
                if constant && w.written {
                    return Err("what the kernel writes to is read as constant".into());
                }
                let range = at..at + bytes as usize;
                (&w.data[range.clone()], if w.written { &mut self.touched[b][range] } else { &mut [] })
            }
            Space::Shared => {
                let range = from as usize..(from + bytes) as usize;
                let len = self.shared.len();
                let data = self.shared.get(range.clone()).ok_or_else(|| format!("byte {from} of {len} in shared memory"))?;
                let touched = &mut self.shared_touched[range];
                if touched.iter().any(|b| b.writer == 0) {
                    return Err(format!("byte {from} of shared memory is read, and nobody wrote it"));
                }
                if touched.iter().any(|b| b.expected) {
                    return Err(format!("byte {from} of shared memory is read, and the copy to it was not waited for"));
                }
                (data, touched)
            }
        };
        for b in touched {
            if Touch::clashes(b.writer, b.written, me, now, first) {
                return Err(format!("byte {from:#x} is read while thread {} writes it", (b.writer - 1) % threads));
            }
            (b.reader, b.read) = (if b.read == now && ![0, me].contains(&b.reader) { MANY } else { me }, now);
        }
        let mut raw = [0; 8];
        raw[..bytes as usize].copy_from_slice(data);
        let v = u64::from_le_bytes(raw);
        let unused = 64 - 8 * bytes as u32;
        // Narrow integers fill a register of 32 bits.
        Ok(if width.signed && bytes < 4 { ((v << unused) as i64 >> unused) as u64 & 0xffff_ffff } else { v })
    }

    fn store(&mut self, space: Space, width: Width, to: u64, v: u64, t: u32) -> Result<(), String> {
        let bytes = width.bytes;
        let (threads, now, first) = (self.e.threads, self.now, self.first);
        let me = self.group * threads + t + 1;
        let (data, touched) = match space {
            Space::Global { .. } => {
                let (b, at) = self.place(to, bytes)?;
                let w = &mut self.launch.buffers[b];
                if !w.written {
                    return Err(format!("buffer {b} is only to be read"));
                }
                let range = at..at + bytes as usize;
                (&mut w.data[range.clone()], &mut self.touched[b][range])
            }
            Space::Shared => {
                let range = to as usize..(to + bytes) as usize;
                let len = self.shared.len();
                let data = self.shared.get_mut(range.clone()).ok_or_else(|| format!("byte {to} of {len} in shared memory"))?;
                (data, &mut self.shared_touched[range])
            }
        };
        if touched.iter().any(|b| b.expected) {
            return Err(format!("byte {to} of shared memory is written, and a copy to it was not waited for"));
        }
        for ((b, old), new) in touched.iter_mut().zip(data).zip(v.to_le_bytes()) {
            if Touch::clashes(b.reader, b.read, me, now, first) {
                return Err(format!("byte {to:#x} is written while another thread reads it"));
            }
            // Threads that agree on what they write are let be.
            if *old != new && Touch::clashes(b.writer, b.written, me, now, first) {
                return Err(format!("byte {to:#x} is written by thread {} as well", (b.writer - 1) % threads));
            }
            *old = new;
            (b.writer, b.written) = (me, now);
        }
        Ok(())
    }
}
