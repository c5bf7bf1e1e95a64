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

/// Pooling over depth, height and width, 1 where there are fewer dimensions.
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    pub name: String,
    pub kind: PoolKind,
    pub batch: Size,
    pub channels: i64,
    /// Input size; `input.origin` is the first pixel inside the image.
    pub size: [Size; 3],
    pub out: [Size; 3],
    pub kernel: [i64; 3],
    pub stride: [i64; 3],
    pub dilation: [i64; 3],
    pub pad_before: [i64; 3],
    pub pad_after: [i64; 3],
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

/// Neighbouring pixels whose windows are folded together: one alone would wait for each of its comparisons.
const TOGETHER: i64 = 4;

/// Generates the kernel. A task is (image, block of channels, chunk of output rows, of all depths).
pub fn pool(p: &Pool, isa: Isa, m: &Machine) -> Result<Kernel> {
    if p.input.pitches.len() != 2 || p.output.pitches.len() != 2 {
        return Err(Error::unsupported(format!("{}: pooling of other than 3 dimensions", p.name)));
    }
    // What pixels that are folded together see is within reach of an address's constant part.
    let window = (p.kernel[2] - 1).saturating_mul(p.dilation[2]).saturating_add(p.pad_before[2]);
    let reach = p.stride[2].saturating_mul(TOGETHER).saturating_add(window).saturating_mul(BLOCK_BYTES);
    if i32::try_from(reach).is_err() {
        return Err(Error::unsupported(format!("{}: windows of {reach} bytes", p.name)));
    }
    let blocks = (p.channels + BLOCK - 1) / BLOCK;
    let rows = match (p.out[0], p.out[1], p.batch) {
        (Size::Const(d), Size::Const(h), Size::Const(n)) => {
            let pieces = (m.threads * 4 / (n * blocks).max(1)).clamp(1, (d * h).max(1));
            // At least one, also of an empty result.
            ((d * h + pieces - 1) / pieces).max(1)
        }
        _ => 16,
    };
    let mut builder = Builder::new(&p.name, isa.lanes());
    let b = &mut builder;
    let sizes = p.size.map(|s| b.size(s));
    let out = p.out.map(|s| b.size(s));
    let all = b.imul(out[0], out[1]);
    let chunks = b.ceil_div(all, rows);
    let (t, chunk) = b.idivrem(b.task(), chunks);
    let (n, block) = b.idivrem(t, blocks);
    let from = b.imul(chunk, rows);
    let to = b.iadd(from, rows);
    let to = b.imin(to, all);
    let plane = |b: &mut Builder, image: &Image| {
        let base = b.word(image.word);
        let at = [(n, Step::floats(image.image, 1)), (block, Step::floats(image.plane, 1)), (X::C(1), Step::floats(image.origin, 1))];
        b.element(base, &at)
    };
    let (input, output) = (plane(b, &p.input), plane(b, &p.output));
    let pitches = |b: &mut Builder, image: &Image| [0, 1].map(|d: usize| b.step(Step::floats(image.pitches[d], 1)));
    let (in_pitch, out_pitch) = (pitches(b, &p.input), pitches(b, &p.output));
    // Columns whose windows lie inside the image: their taps need no clamping.
    let inner_from = b.imin((p.pad_before[2] + p.stride[2] - 1) / p.stride[2], out[2]);
    let span = (p.kernel[2] - 1) * p.dilation[2] + 1;
    let room = b.iadd(sizes[2], p.pad_before[2] - span);
    let room = b.imax(room, -p.stride[2]);
    let up = b.iadd(room, p.stride[2]);
    let inner_to = b.idiv(up, p.stride[2]);
    let inner_to = b.imin(inner_to, out[2]);
    let inner_to = b.imax(inner_to, inner_from);
    b.for_(from, to, 1, |b, row| {
        let at = match p.out[0] {
            Size::Const(1) => [X::C(0), X::R(row)],
            _ => {
                let (z, y) = b.idivrem(X::R(row), out[1]);
                [z, y]
            }
        };
        let windows = [0, 1].map(|d: usize| p.window(b, d, at[d], sizes[d]));
        let (mut line, mut target) = (input, output);
        for d in 0..2 {
            let skip = b.imul(windows[d].first, in_pitch[d]);
            line = b.ptr(line, skip);
            let skip = b.imul(at[d], out_pitch[d]);
            target = b.ptr(target, skip);
        }
        let steps = [0, 1].map(|d: usize| b.imul(in_pitch[d], p.dilation[d]));
        let spot = Spot { p, line, target, windows, steps, width: sizes[2] };
        b.for_(0, inner_from, 1, |b, x| spot.edge(b, x));
        let count = b.isub(inner_to, inner_from);
        let rest = b.irem(count, TOGETHER);
        let mid = b.isub(inner_to, rest);
        b.for_(inner_from, mid, TOGETHER, |b, x| spot.inner(b, x, TOGETHER));
        b.for_(mid, inner_to, 1, |b, x| spot.inner(b, x, 1));
        b.for_(inner_to, out[2], 1, |b, x| spot.edge(b, x));
    });
    let chunks = Factor::Chunks { of: vec![p.out[0], p.out[1]], per: rows };
    Ok(Kernel { func: builder.finish(), tasks: Tasks(vec![Factor::Size(p.batch), Factor::Size(Size::Const(blocks)), chunks]) })
}

/// One output row.
struct Spot<'p> {
    p: &'p Pool,
    /// First row of the windows, at column 0 of the image, and the output row.
    line: I,
    target: I,
    /// In depth and height.
    windows: [Window; 2],
    /// Bytes from one plane of taps, and from one row of them, to the next.
    steps: [X; 2],
    width: X,
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
            let n = b.imul(count, self.windows[1].count);
            let n = b.imul(n, self.windows[0].count);
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

    /// `row` for each row of taps, with its pointer, of those that start at byte `column` of an image's row.
    fn rows(&self, b: &mut Builder, column: X, row: impl Fn(&mut Builder, I)) {
        let at = b.iadd(self.line, column);
        let plane = b.var(at);
        b.times(self.windows[0].taps, |b| {
            let line = b.var(plane);
            b.times(self.windows[1].taps, |b| {
                row(b, line);
                b.inc(line, self.steps[1]);
            });
            b.inc(plane, self.steps[0]);
        });
    }

    /// So many pixels whose columns are all inside.
    fn inner(&self, b: &mut Builder, x: I, pixels: i64) {
        let p = self.p;
        let accs: Vec<Vec<V>> = (0..pixels).map(|_| self.init(b)).collect();
        let column = b.imul(x, p.stride[2] * BLOCK_BYTES);
        self.rows(b, column, |b, line| {
            for s in 0..p.kernel[2] {
                for (i, acc) in (0..).zip(&accs) {
                    self.tap(b, acc, Addr::from(line).off((i * p.stride[2] + s * p.dilation[2] - p.pad_before[2]) * BLOCK_BYTES));
                }
            }
        });
        for (i, acc) in (0..).zip(&accs) {
            let x = b.iadd(x, i);
            let x = b.reg(x);
            self.store(b, acc, x, X::C(p.kernel[2]));
        }
    }

    /// A pixel whose window the image's sides may cut.
    fn edge(&self, b: &mut Builder, x: I) {
        let p = self.p;
        let acc = self.init(b);
        let cols = p.window(b, 2, X::R(x), self.width);
        let column = b.imul(cols.first, BLOCK_BYTES);
        self.rows(b, column, |b, line| {
            let q = b.var(line);
            b.times(cols.taps, |b| {
                self.tap(b, &acc, q.into());
                b.inc(q, p.dilation[2] * BLOCK_BYTES);
            });
        });
        self.store(b, &acc, x, cols.count);
    }
}
