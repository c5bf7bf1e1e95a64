//! Planar convolution by windows about as wide as the image, as gradients of filters are: lanes are neighbouring taps of a row.
//!
//! A tile is some output channels by some pixels of an output row. Each row of taps is loaded once for each channel, and once for each
//! pixel what lies under it; the lanes of a sum are added up at the end. A task is (image, output row, some of the channels).

use super::plan::even_split;
use super::planar::{Channels, Distances, Inside, Planar, image};
use super::post::epilogue;
use super::{Factor, Kernel, Size, Tasks};
use crate::cpu::isa::Isa;
use crate::cpu::vir::{Addr, Builder, I, ICmp, M, V, VBin, X};

/// Vectors of a row of taps that are unrolled.
const UNROLLED: i64 = 4;

/// Pointers of a tile.
struct Tile<'p> {
    p: &'p Planar,
    d: &'p Distances,
    /// The first pixel that is inside under the first column, and its tap.
    x: I,
    w: I,
    y: I,
    /// Rows of taps inside the image.
    taps: X,
    /// Taps that fill no vector.
    tail: Option<M>,
    /// From the tile's first channel on.
    channels: Channels,
}

/// The most channels and pixels of a tile: those of which all tiles take the fewest cycles, of equals those with the fewest channels.
fn most(p: &Planar, isa: Isa) -> (i64, i64) {
    // Registers for sums, pixels and a row of taps; in each cycle there are two loads of such to three products.
    let registers = isa.vectors() as i64 - 2;
    let cycles = |channels: i64, pixels: i64| {
        let (c, x) = (even_split(p.out_channels, channels), even_split(p.out[1], pixels));
        c.tiles * x.tiles * (2 * c.high * x.high).max(3 * (c.high + x.high))
    };
    let all = (1..=8).flat_map(|c| (1..=8).map(move |x| (c, x))).filter(|(c, x)| c * x + x < registers);
    all.min_by_key(|(c, x)| (cycles(*c, *x), *c)).unwrap_or((1, 1))
}

/// Generates the kernel.
pub(super) fn correlate(p: &Planar, d: &Distances, isa: Isa) -> Kernel {
    let (channels, pixels) = most(p, isa);
    let (channels, pixels) = (even_split(p.out_channels, channels), even_split(p.out[1], pixels));
    let mut builder = Builder::new(&p.name, isa.lanes());
    let b = &mut builder;
    let (t, group) = b.idivrem(b.task(), channels.tiles);
    let (n, line) = b.idivrem(t, p.out[0]);
    let (input, output, weights) = (image(b, &p.input, n), image(b, &p.output, n), b.word(p.weights));
    let inside = Inside::new(b, p, d, line);
    let (row, skip, line) = (b.imul(inside.row, d.pitch), b.imul(inside.first, p.kernel[1] * 4), b.imul(line, d.out_pitch));
    let (x, w, y) = (b.ptr(input, row), b.ptr(weights, skip), b.ptr(output, line));
    // Groups of more channels come first.
    let more = b.imin(group, channels.larger);
    let more = if channels.high == channels.low { X::C(0) } else { more };
    let first = b.imul(group, channels.low);
    let first = b.iadd(first, more);
    let (skip, plane, words) = (b.imul(first, d.filter), b.imul(first, d.out_plane), b.imul(first, 4));
    let (w, y) = (b.ptr(w, skip), b.ptr(y, plane));
    let own = Channels::new(b, p).map(|v| b.ptr(v, words));
    let rest = p.kernel[1] % isa.lanes() as i64;
    let tail = (rest > 0).then(|| b.tail(rest));
    let tile = Tile { p, d, x, w, y, taps: inside.count, tail, channels: own };
    let row = |b: &mut Builder, channels: i64| {
        let (mut at, low) = (0, pixels.tiles - pixels.larger);
        for (count, size) in [(pixels.larger, pixels.high), (low, pixels.low)] {
            for _ in 0..count {
                tile.sums(b, at, channels, size);
                at += size;
            }
        }
    };
    b.if_else(ICmp::Lt, group, channels.larger, |b| row(b, channels.high), |b| row(b, channels.low));
    let tasks = [p.batch, Size::Const(p.out[0]), Size::Const(channels.tiles)].map(Factor::Size).to_vec();
    Kernel { func: builder.finish(), tasks: Tasks(tasks) }
}

impl Tile<'_> {
    /// The sums of so many channels and pixels, from pixel `at` of the row on.
    fn sums(&self, b: &mut Builder, at: i64, channels: i64, pixels: i64) {
        let (p, d, lanes) = (self.p, self.d, b.lanes() as i64);
        let acc: Vec<V> = (0..channels * pixels).map(|_| b.constant(0.0)).collect();
        let step = |b: &mut Builder, x: Addr, w: Addr, mask: Option<M>| {
            let load = |b: &mut Builder, a: Addr| match mask {
                Some(m) => b.load_mask(a, m),
                None => b.load(a),
            };
            let under: Vec<V> = (0..pixels).map(|j| load(b, x.off(j * 4))).collect();
            for o in 0..channels {
                let taps = load(b, w.off(o * d.filter));
                for (j, x) in under.iter().enumerate() {
                    b.fma_to(acc[j * channels as usize + o as usize], *x, taps);
                }
            }
        };
        let (columns, row) = (p.kernel[1], self.x);
        let start = b.iadd(row, at * 4);
        let (plane, filter) = (b.var(start), b.var(self.w));
        b.times(p.in_channels, |b| {
            let (x, w) = (b.var(plane), b.var(filter));
            b.times(self.taps, |b| {
                let full = columns / lanes;
                let end = full * lanes * 4;
                if full <= UNROLLED {
                    (0..full).for_each(|v| step(b, Addr::from(x).off(v * lanes * 4), Addr::from(w).off(v * lanes * 4), None));
                } else {
                    b.for_(0, end, lanes * 4, |b, v| step(b, Addr::from(x).idx(v, 1), Addr::from(w).idx(v, 1), None));
                }
                if let Some(m) = self.tail {
                    step(b, Addr::from(x).off(end), Addr::from(w).off(end), Some(m));
                }
                b.inc(x, d.pitch * p.dilation[0]);
                b.inc(w, columns * 4);
            });
            b.inc(plane, d.plane);
            b.inc(filter, p.kernel[0] * columns * 4);
        });
        let mut sums = vec![];
        for (i, acc) in acc.into_iter().enumerate() {
            let sum = b.across(VBin::Add, acc);
            sums.push(match self.channels.bias {
                Some(bias) => {
                    let bias = b.splat(Addr::from(bias).off(i as i64 % channels * 4));
                    b.add(sum, bias)
                }
                None => sum,
            });
        }
        let one = b.tail(1);
        for (i, y) in epilogue(b, &p.post, sums, channels as usize, &self.channels).into_iter().enumerate() {
            let (j, o) = (i as i64 / channels, i as i64 % channels);
            b.store_mask(Addr::from(self.y).off((at + j) * 4 + o * d.out_plane), y, one);
        }
    }
}
