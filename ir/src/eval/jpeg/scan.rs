//! A scan: bits to coefficients.

use super::{Frame, NATURAL, Plane, Tables};

/// A prefix code: how many codes of each length, and what they stand for, shortest first.
#[derive(Clone)]
pub struct Huffman {
    pub counts: [u8; 16],
    pub symbols: Vec<u8>,
}

/// The bits of a scan.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    held: u32,
    count: u32,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<u32> {
        if self.count == 0 {
            let byte = *self.data.get(self.at)?;
            self.at += 1;
            if byte == 0xff {
                // A zero byte marks what is no marker; a scan does not read past one.
                if self.data.get(self.at) != Some(&0) {
                    return None;
                }
                self.at += 1;
            }
            (self.held, self.count) = (byte.into(), 8);
        }
        self.count -= 1;
        Some((self.held >> self.count) & 1)
    }

    fn bits(&mut self, n: u32) -> Option<i32> {
        (0..n).try_fold(0, |v, _| Some(v << 1 | self.bit()? as i32))
    }

    /// A number of `n` bits, of which those with a leading zero stand for negative ones.
    fn signed(&mut self, n: u32) -> Option<i32> {
        match n {
            0 => Some(0),
            1..=15 => self.bits(n).map(|v| if v < 1 << (n - 1) { v - (1 << n) + 1 } else { v }),
            _ => None,
        }
    }

    fn symbol(&mut self, code: &Huffman) -> Option<u8> {
        let (mut word, mut first, mut index) = (0i32, 0i32, 0usize);
        for count in code.counts {
            word |= self.bit()? as i32;
            let beyond = word - first;
            if beyond < count.into() {
                return code.symbols.get(index + usize::try_from(beyond).ok()?).copied();
            }
            index += usize::from(count);
            first = (first + i32::from(count)) << 1;
            word <<= 1;
        }
        None
    }

    /// Past the marker of a restart.
    fn restart(&mut self) -> Option<()> {
        self.count = 0;
        match self.data.get(self.at..self.at + 2)? {
            [0xff, 0xd0..=0xd7] => self.at += 2,
            _ => return None,
        }
        Some(())
    }
}

/// A plane's part in a scan.
struct Part {
    plane: usize,
    dc: usize,
    ac: usize,
    /// The last block's first coefficient.
    last: i32,
}

pub struct Scan<'a> {
    frame: &'a mut Frame,
    tables: &'a Tables,
    bits: Bits<'a>,
    parts: Vec<Part>,
    /// The coefficients that the scan gives, in diagonal order.
    from: usize,
    to: usize,
    /// Whether bits of these coefficients have come before, and the place of the bit that comes now.
    refines: bool,
    low: u32,
    /// Blocks to come that are zero from here on.
    zeros: i32,
}

impl<'a> Scan<'a> {
    pub fn new(frame: &'a mut Frame, tables: &'a Tables, head: &[u8], data: &'a [u8]) -> Option<Scan<'a>> {
        let n = usize::from(*head.first()?);
        let planes = head.get(1..1 + 2 * n)?;
        let &[from, to, bits] = head.get(1 + 2 * n..4 + 2 * n)? else { return None };
        let (from, to, high, low) = (usize::from(from), usize::from(to), bits >> 4, u32::from(bits & 15));
        let (from, to, high, low) = if frame.progressive { (from, to, high, low) } else { (0, 63, 0, 0) };
        let mut parts = vec![];
        for p in planes.chunks_exact(2) {
            let plane = frame.planes.iter().position(|have| have.id == p[0])?;
            let steps = tables.quantisers[usize::from(frame.planes[plane].quantiser)];
            frame.planes[plane].steps = frame.planes[plane].steps.or(steps);
            parts.push(Part { plane, dc: (p[1] >> 4).into(), ac: (p[1] & 15).into(), last: 0 });
        }
        let apart = from == 0 && to != 0 || from != 0 && n != 1;
        if parts.is_empty() || from > to || to > 63 || low > 13 || frame.progressive && apart {
            return None;
        }
        let bits = Bits { data, at: 0, held: 0, count: 0 };
        Some(Scan { frame, tables, bits, parts, from, to, refines: high != 0, low, zeros: 0 })
    }

    /// Reads the scan; the number of bytes that it takes.
    pub fn run(mut self) -> Option<usize> {
        let alone = self.parts.len() == 1;
        let (columns, rows) = match &self.parts[..] {
            [part] => (self.frame.planes[part.plane].columns, self.frame.planes[part.plane].rows),
            _ => (self.frame.width.div_ceil(8 * self.frame.across), self.frame.height.div_ceil(8 * self.frame.down)),
        };
        for unit in 0..columns * rows {
            if self.tables.restart != 0 && unit != 0 && unit % self.tables.restart == 0 {
                self.bits.restart()?;
                self.zeros = 0;
                self.parts.iter_mut().for_each(|p| p.last = 0);
            }
            let (x, y) = (unit % columns, unit / columns);
            for i in 0..self.parts.len() {
                let plane = &self.frame.planes[self.parts[i].plane];
                let (w, h) = if alone { (1, 1) } else { (plane.across, plane.down) };
                let (stride, plane) = (plane.stride, self.parts[i].plane);
                for block in (0..w * h).map(|k| (y * h + k / w) * stride + x * w + k % w) {
                    let mut coefficients = std::mem::replace(self.frame.planes[plane].coefficients.get_mut(block)?, [0; 64]);
                    self.block(i, &mut coefficients)?;
                    self.frame.planes[plane].coefficients[block] = coefficients;
                }
            }
        }
        Some(self.bits.at)
    }

    fn block(&mut self, part: usize, c: &mut [i16; 64]) -> Option<()> {
        let tables = self.tables;
        let (dc, ac) = (tables.dc.get(self.parts[part].dc)?.as_ref(), tables.ac.get(self.parts[part].ac)?.as_ref());
        if self.from == 0 && self.refines {
            c[0] |= (self.bits.bit()? as i16) << self.low;
        } else if self.from == 0 {
            let size = self.bits.symbol(dc?)?;
            let last = &mut self.parts[part].last;
            *last = last.wrapping_add(self.bits.signed(size.into())?);
            c[0] = (*last << self.low) as i16;
        }
        let first = self.from.max(1);
        match () {
            _ if first > self.to => Some(()),
            _ if self.refines => self.refine(ac?, first, c),
            _ => self.numbers(ac?, first, c),
        }
    }

    /// Coefficients that come for the first time: runs of zeros, each with what ends it.
    fn numbers(&mut self, ac: &Huffman, first: usize, c: &mut [i16; 64]) -> Option<()> {
        if self.zeros > 0 {
            self.zeros -= 1;
            return Some(());
        }
        let mut k = first;
        while k <= self.to {
            let symbol = self.bits.symbol(ac)?;
            let (run, size) = (symbol >> 4, symbol & 15);
            if size == 0 && run < 15 {
                self.zeros = (1 << run) + self.bits.bits(run.into())? - 1;
                break;
            }
            k += usize::from(run);
            let number = self.bits.signed(size.into())?;
            *c.get_mut(usize::from(*NATURAL.get(k)?))? = (number << self.low) as i16;
            k += 1;
        }
        Some(())
    }

    /// One more bit of the coefficients that are not zero, and those that become it.
    fn refine(&mut self, ac: &Huffman, first: usize, c: &mut [i16; 64]) -> Option<()> {
        let mut k = first;
        if self.zeros == 0 {
            while k <= self.to {
                let symbol = self.bits.symbol(ac)?;
                let (mut run, size) = (symbol >> 4, symbol & 15);
                if size == 0 && run < 15 {
                    self.zeros = (1 << run) + self.bits.bits(run.into())?;
                    break;
                }
                let new = if size == 0 { 0 } else { (2 * self.bits.bit()? as i16 - 1) << self.low };
                while k <= self.to {
                    let value = &mut c[usize::from(NATURAL[k])];
                    k += 1;
                    if *value != 0 {
                        refined(&mut self.bits, value, self.low)?;
                    } else if run == 0 {
                        *value = new;
                        break;
                    } else {
                        run -= 1;
                    }
                }
            }
        }
        if self.zeros > 0 {
            for natural in &NATURAL[k..=self.to] {
                let value = &mut c[usize::from(*natural)];
                if *value != 0 {
                    refined(&mut self.bits, value, self.low)?;
                }
            }
            self.zeros -= 1;
        }
        Some(())
    }
}

/// One more bit of a number that is not zero.
fn refined(bits: &mut Bits, value: &mut i16, low: u32) -> Option<()> {
    if bits.bit()? == 1 && *value & (1 << low) == 0 {
        *value = value.wrapping_add(value.signum() << low);
    }
    Some(())
}

impl Plane {
    /// Samples in a row and rows of samples, those that fill up the last blocks left out.
    pub fn size(&self, frame: &Frame) -> (usize, usize) {
        ((frame.width * self.across).div_ceil(frame.across), (frame.height * self.down).div_ceil(frame.down))
    }
}
