//! Pooling in the blocked layout. Windows are clamped to the image, so that no halo is needed.

use super::conv::Image;
use super::{BLOCK, BLOCK_BYTES, Factor, Kernel, Size, Step, Tasks};
use crate::cpu::isa::{Isa, Machine};
use crate::cpu::vir::{Addr, Builder, I, V, VBin, VUn, X};
use nnc_ir::error::{Error, Result};

/// What becomes of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolKind {
    /// The largest value; NaN if there is one.
    Max,
    /// The mean of the pixels inside the image.
    Average,
    /// The sum over the number of pixels inside the image and its padding.
    AveragePadded,
}

/// Pooling over 2 spatial dimensions (a one-dimensional one has a height of 1).
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    pub name: String,
    pub kind: PoolKind,
    pub batch: Size,
    pub channels: i64,
    /// Input size; `input.origin` is the first pixel inside the image.
    pub size: [Size; 2],
    pub out: [Size; 2],
    pub kernel: [i64; 2],
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    pub pad_before: [i64; 2],
    pub pad_after: [i64; 2],
    pub input: Image,
    pub output: Image,
}

/// The taps of one output coordinate that lie inside the image, and how many the mean counts.
struct Window {
    first: X,
    taps: X,
    count: X,
}

impl Pool {
    /// The window of output coordinate `o` in dimension `d` of an image of `size`.
    fn window(&self, b: &mut Builder, d: usize, o: X, size: X) -> Window {
        let (k, dilation) = (self.kernel[d], self.dilation[d]);
        let at = b.imul(o, self.stride[d]);
        let at = b.isub(at, self.pad_before[d]);
        // Taps before the image, rounded up, and taps up to its end.
        let before = b.isub(0, at);
        let before = b.imax(before, 0);
        let skip = b.ceil_div(before, dilation);
        let room = b.isub(size, at);
        let room = b.imax(room, 0);
        let end = b.ceil_div(room, dilation);
        let end = b.imin(end, k);
        let taps = b.isub(end, skip);
        let move_ = b.imul(skip, dilation);
        let first = b.iadd(at, move_);
        let count = match self.kind {
            PoolKind::AveragePadded => {
                let room = b.iadd(room, self.pad_after[d]);
                let n = b.ceil_div(room, dilation);
                b.imin(n, k)
            }
            _ => taps,
        };
        Window { first, taps, count }
    }
}

/// Generates the kernel. A task is (image, block of channels, chunk of output rows).
pub fn pool(p: &Pool, isa: Isa, m: &Machine) -> Result<Kernel> {
    if p.input.pitches.len() != 1 || p.output.pitches.len() != 1 {
        return Err(Error::unsupported(format!("{}: pooling of other than 2 dimensions", p.name)));
    }
    let blocks = (p.channels + BLOCK - 1) / BLOCK;
    let rows = match (p.out[0], p.batch) {
        (Size::Const(h), Size::Const(n)) => {
            let pieces = (m.threads * 4 / (n * blocks).max(1)).clamp(1, h);
            (h + pieces - 1) / pieces
        }
        _ => 16,
    };
    let mut builder = Builder::new(&p.name, isa.lanes());
    let b = &mut builder;
    let sizes = [b.size(p.size[0]), b.size(p.size[1])];
    let out = [b.size(p.out[0]), b.size(p.out[1])];
    let chunks = b.ceil_div(out[0], rows);
    let (t, chunk) = b.idivrem(b.task(), chunks);
    let (n, block) = b.idivrem(t, blocks);
    let from = b.imul(chunk, rows);
    let to = b.iadd(from, rows);
    let to = b.imin(to, out[0]);
    let plane = |b: &mut Builder, image: &Image| {
        let base = b.word(image.word);
        let at = [(n, Step::floats(image.image, 1)), (block, Step::floats(image.plane, 1)), (X::C(1), Step::floats(image.origin, 1))];
        b.element(base, &at)
    };
    let (input, output) = (plane(b, &p.input), plane(b, &p.output));
    let (in_pitch, out_pitch) = (b.step(Step::floats(p.input.pitches[0], 1)), b.step(Step::floats(p.output.pitches[0], 1)));
    // Columns whose windows lie inside the image: their taps need no clamping.
    let inner_from = b.imin((p.pad_before[1] + p.stride[1] - 1) / p.stride[1], out[1]);
    let span = (p.kernel[1] - 1) * p.dilation[1] + 1;
    let room = b.iadd(sizes[1], p.pad_before[1] - span);
    let room = b.imax(room, -p.stride[1]);
    let up = b.iadd(room, p.stride[1]);
    let inner_to = b.idiv(up, p.stride[1]);
    let inner_to = b.imin(inner_to, out[1]);
    let inner_to = b.imax(inner_to, inner_from);
    b.for_(from, to, 1, |b, y| {
        let rows = p.window(b, 0, X::R(y), sizes[0]);
        let skip = b.imul(rows.first, in_pitch);
        let line = b.ptr(input, skip);
        let skip = b.imul(X::R(y), out_pitch);
        let target = b.ptr(output, skip);
        let step = b.imul(in_pitch, p.dilation[0]);
        let spot = Spot { p, line, target, rows, step, sizes };
        b.for_(0, inner_from, 1, |b, x| spot.edge(b, x));
        b.for_(inner_from, inner_to, 1, |b, x| spot.inner(b, x));
        b.for_(inner_to, out[1], 1, |b, x| spot.edge(b, x));
    });
    let tasks = Tasks(vec![Factor::Size(p.batch), Factor::Size(Size::Const(blocks)), Factor::Chunks { of: vec![p.out[0]], per: rows }]);
    Ok(Kernel { func: builder.finish(), tasks })
}

/// One output row.
struct Spot<'p> {
    p: &'p Pool,
    /// First row of the windows, at column 0 of the image, and the output row.
    line: I,
    target: I,
    rows: Window,
    /// Bytes from one row of taps to the next.
    step: X,
    sizes: [X; 2],
}

impl Spot<'_> {
    fn init(&self, b: &mut Builder) -> Vec<V> {
        let zero = if self.p.kind == PoolKind::Max { f32::NEG_INFINITY } else { 0.0 };
        (0..BLOCK as usize / b.lanes()).map(|_| b.constant(zero)).collect()
    }

    fn tap(&self, b: &mut Builder, acc: &[V], at: Addr) {
        for (v, a) in acc.iter().enumerate() {
            let x = b.load(at.off(v as i64 * b.width()));
            match self.p.kind {
                PoolKind::Max => {
                    let y = b.extreme(VBin::Max, *a, x);
                    b.copy_to(*a, y);
                }
                _ => b.bin_to(VBin::Add, *a, *a, x),
            }
        }
    }

    fn store(&self, b: &mut Builder, acc: &[V], x: I, count: X) {
        let at = b.imul(x, BLOCK_BYTES);
        let at = b.reg(at);
        let count = if self.p.kind == PoolKind::Max {
            None
        } else {
            let n = b.imul(count, self.rows.count);
            let n = b.splat_int(n);
            Some(b.un(VUn::FromInt, n))
        };
        for (v, a) in acc.iter().enumerate() {
            let y = match count {
                Some(n) => b.div(*a, n),
                None => *a,
            };
            b.store(Addr::from(self.target).idx(at, 1).off(v as i64 * b.width()), y);
        }
    }

    /// A pixel whose columns are all inside.
    fn inner(&self, b: &mut Builder, x: I) {
        let p = self.p;
        let acc = self.init(b);
        let at = b.imul(x, p.stride[1] * BLOCK_BYTES);
        let at = b.iadd(self.line, at);
        let at = b.var(at);
        b.times(self.rows.taps, |b| {
            for s in 0..p.kernel[1] {
                self.tap(b, &acc, Addr::from(at).off((s * p.dilation[1] - p.pad_before[1]) * BLOCK_BYTES));
            }
            b.inc(at, self.step);
        });
        self.store(b, &acc, x, X::C(p.kernel[1]));
    }

    /// A pixel whose window the image's sides may cut.
    fn edge(&self, b: &mut Builder, x: I) {
        let p = self.p;
        let acc = self.init(b);
        let cols = p.window(b, 1, X::R(x), self.sizes[1]);
        let at = b.imul(cols.first, BLOCK_BYTES);
        let at = b.iadd(self.line, at);
        let at = b.var(at);
        b.times(self.rows.taps, |b| {
            let q = b.var(at);
            b.times(cols.taps, |b| {
                self.tap(b, &acc, q.into());
                b.inc(q, p.dilation[1] * BLOCK_BYTES);
            });
            b.inc(at, self.step);
        });
        self.store(b, &acc, x, cols.count);
    }
}

/// The mean of every channel over all pixels, in the blocked layout.
#[derive(Clone, PartialEq, Debug)]
pub struct GlobalAverage {
    pub name: String,
    pub batch: Size,
    pub channels: i64,
    pub size: [Size; 2],
    pub input: Image,
    /// Word of the output, and f32 values from image to image: `[N][C/16][16]`.
    pub output: (u32, Size),
}

/// Generates the kernel. A task is (image, block of channels).
pub fn global_average(g: &GlobalAverage, isa: Isa) -> Result<Kernel> {
    if g.input.pitches.len() != 1 {
        return Err(Error::unsupported(format!("{}: pooling of other than 2 dimensions", g.name)));
    }
    let blocks = (g.channels + BLOCK - 1) / BLOCK;
    let mut builder = Builder::new(&g.name, isa.lanes());
    let b = &mut builder;
    let (n, block) = b.idivrem(b.task(), blocks);
    let base = b.word(g.input.word);
    let image = &g.input;
    let at = [(n, Step::floats(image.image, 1)), (block, Step::floats(image.plane, 1)), (X::C(1), Step::floats(image.origin, 1))];
    let line = b.element(base, &at);
    let line = b.var(line);
    let pitch = b.step(Step::floats(image.pitches[0], 1));
    let (height, width) = (b.size(g.size[0]), b.size(g.size[1]));
    let vecs = BLOCK as usize / isa.lanes();
    // Four sums a vector hide the latency of addition.
    const SUMS: i64 = 4;
    let acc: Vec<V> = (0..vecs * SUMS as usize).map(|_| b.constant(0.0)).collect();
    let (full, rest) = b.idivrem(width, SUMS);
    b.times(height, |b| {
        let p = b.var(line);
        let add = |b: &mut Builder, n: i64| {
            for j in 0..n {
                for v in 0..vecs {
                    let a = acc[j as usize * vecs + v];
                    let x = b.load(Addr::from(p).off(j * BLOCK_BYTES + v as i64 * b.width()));
                    b.bin_to(VBin::Add, a, a, x);
                }
            }
            b.inc(p, n * BLOCK_BYTES);
        };
        b.times(full, |b| add(b, SUMS));
        b.times(rest, |b| add(b, 1));
        b.inc(line, pitch);
    });
    let pixels = b.imul(height, width);
    let pixels = b.splat_int(pixels);
    let pixels = b.un(VUn::FromInt, pixels);
    let out = b.word(g.output.0);
    let out = b.element(out, &[(n, Step::floats(g.output.1, 1)), (block, Step::bytes(BLOCK_BYTES))]);
    for v in 0..vecs {
        let s = (1..SUMS as usize).fold(acc[v], |s, j| b.add(s, acc[j * vecs + v]));
        let y = b.div(s, pixels);
        b.store(Addr::from(out).off(v as i64 * b.width()), y);
    }
    Ok(Kernel { func: builder.finish(), tasks: Tasks(vec![Factor::Size(g.batch), Factor::Size(Size::Const(blocks))]) })
}
