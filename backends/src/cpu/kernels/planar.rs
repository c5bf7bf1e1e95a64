//! Convolution in the model's layout for few output channels, whose blocks of 16 would be zeros for the most part: lanes are neighbouring
//! pixels of an output row, or neighbouring taps ([`correlate`](super::correlate)).
//!
//! A tile is some output channels by some vectors of one output row: each tap loads the pixels under those vectors, and multiplies them by
//! every channel's weight, which all lanes share. Weights are read as they are, `[O][C][kernel rows][kernel columns]`, and rows of taps above
//! and below the image are left out rather than multiplied by zeros. Columns move by 1. A task is (image, chunk of output rows).

use super::conv::Image;
use super::correlate::correlate;
use super::plan::even_split;
use super::post::{Operands, Post, epilogue};
use super::{Factor, Kernel, Size, Step, Tasks};
use crate::cpu::isa::{Isa, Machine};
use crate::cpu::vir::{Addr, Builder, I, V, X};
use nnc_ir::error::{Error, Result};

/// A convolution of 2 spatial dimensions (a one-dimensional one has a row of height 1) in one group. The input holds the operator's padding
/// to the left and to the right.
#[derive(Clone, PartialEq, Debug)]
pub struct Planar {
    pub name: String,
    pub batch: Size,
    pub in_channels: i64,
    pub out_channels: i64,
    /// Rows of the input.
    pub rows: i64,
    /// Output rows and columns.
    pub out: [i64; 2],
    pub kernel: [i64; 2],
    /// Input rows from one output row to the next.
    pub stride: i64,
    /// Rows of taps that may lie outside the image are neighbours.
    pub dilation: [i64; 2],
    /// Rows of zeros that the operator has above the image.
    pub above: i64,
    /// Plain images with constant distances.
    pub input: Image,
    pub output: Image,
    /// Word of the weights.
    pub weights: u32,
    /// Word of f32[out_channels].
    pub bias: Option<u32>,
    /// No tensors are added: where vectors overlap they would be added twice.
    pub post: Vec<Post>,
}

/// Numbers of a descriptor are below this, so that distances are instructions' constants and their products fit 64 bits.
const LIMIT: i64 = 1 << 29;

/// Steps of a row of taps that are unrolled.
const UNROLLED: i64 = 512;

/// Distances in bytes.
pub(super) struct Distances {
    pub pitch: i64,
    pub plane: i64,
    pub out_pitch: i64,
    pub out_plane: i64,
    /// Of weights, from one output channel to the next.
    pub filter: i64,
    /// Whether there are taps below the image.
    pub below: bool,
}

/// A kernel for pixels as lanes, and the shape of a tile.
struct Gen<'p> {
    p: &'p Planar,
    d: Distances,
    lanes: i64,
    /// Vectors in a tile, and tiles in a row.
    vecs: i64,
    tiles: i64,
}

/// Pointers of a row of output: at its first tap that is inside, its weights, and its first pixel.
struct Row {
    x: I,
    w: I,
    y: I,
    /// Rows of taps inside the image.
    taps: X,
    channels: Channels,
}

/// Pointers to vectors of channels: the bias, and those of the epilogue's steps. Lanes share a channel; no tensors are added.
pub(super) struct Channels {
    pub bias: Option<I>,
    steps: Vec<Option<I>>,
}

impl Channels {
    pub fn new(b: &mut Builder, p: &Planar) -> Channels {
        let bias = p.bias.map(|w| b.word(w));
        let mut step = |s: &Post| if let Post::MulChannel(w) | Post::AddChannel(w) = s { Some(b.word(*w)) } else { None };
        Channels { bias, steps: p.post.iter().map(&mut step).collect() }
    }

    /// The same pointers after `f`.
    pub fn map(&self, mut f: impl FnMut(I) -> I) -> Channels {
        let bias = self.bias.map(&mut f);
        Channels { bias, steps: self.steps.iter().map(|s| s.map(&mut f)).collect() }
    }

    /// Moves pointers that are variables.
    fn inc(&self, b: &mut Builder, bytes: i64) {
        self.bias.iter().chain(self.steps.iter().flatten()).for_each(|p| b.inc(*p, bytes));
    }
}

impl Operands for Channels {
    fn tensor(&self, _: &mut Builder, _: usize, _: usize) -> V {
        unreachable!("a kernel that adds tensors is refused")
    }

    fn channels(&self, b: &mut Builder, step: usize, v: usize) -> V {
        let vector = self.steps[step].expect("the step has a vector of channels");
        b.splat(Addr::from(vector).off(v as i64 * 4))
    }
}

/// Rows of taps inside the image, for one row of output.
pub(super) struct Inside {
    /// The image's row under the first of them, its number, and how many there are.
    pub row: X,
    pub first: X,
    pub count: X,
}

impl Inside {
    pub fn new(b: &mut Builder, p: &Planar, d: &Distances, line: impl Into<X>) -> Inside {
        let top = b.imul(line, p.stride);
        let top = b.isub(top, p.above);
        let (mut first, mut end) = (X::C(0), X::C(p.kernel[0]));
        if p.above > 0 {
            let outside = b.isub(X::C(0), top);
            first = b.imax(outside, 0);
        }
        if d.below {
            let inside = b.isub(X::C(p.rows), top);
            end = b.imin(inside, p.kernel[0]);
        }
        Inside { row: b.iadd(top, first), first, count: b.isub(end, first) }
    }
}

impl Distances {
    /// An error where the kernel cannot have them.
    fn new(p: &Planar) -> Result<Distances> {
        let no = |why: &str| Err(Error::unsupported(format!("{}: {why}", p.name)));
        let floats = |s: &Size| Step::floats(*s, 1).constant();
        let ([input], [output]) = (&p.input.pitches[..], &p.output.pitches[..]) else { return no("images of other than 2 dimensions") };
        let (Some(pitch), Some(plane), Some(out_pitch), Some(out_plane)) =
            (floats(input), floats(&p.input.plane), floats(output), floats(&p.output.plane))
        else {
            return no("distances in the images are not known");
        };
        let filter = p.in_channels.saturating_mul(p.kernel[0]).saturating_mul(p.kernel[1]).saturating_mul(4);
        let numbers = [p.in_channels, p.out_channels, p.rows, p.out[0], p.out[1], p.kernel[0], p.kernel[1], p.stride, p.dilation[0], p.dilation[1]];
        let lines = [p.dilation[0].saturating_mul(pitch), p.dilation[1].saturating_mul(p.kernel[1]).saturating_mul(4)];
        let bytes = [pitch, plane, out_pitch, out_plane.saturating_mul(8), p.above, filter.saturating_mul(8), lines[0], lines[1]];
        if numbers.iter().any(|n| !(1..LIMIT).contains(n)) || bytes.iter().any(|n| !(0..LIMIT).contains(n)) {
            return no("nothing to compute, or distances that no instruction holds");
        }
        let below = (p.out[0] - 1) * p.stride - p.above + (p.kernel[0] - 1) * p.dilation[0] >= p.rows;
        if (p.above > 0 || below) && p.dilation[0] != 1 {
            return no("spread taps above or below the image");
        }
        if p.post.iter().any(|p| matches!(p, Post::AddTensor(_))) {
            return no("a tensor is added");
        }
        Ok(Distances { pitch, plane, out_pitch, out_plane, filter, below })
    }
}

/// Whether taps are the better lanes: where windows are about as wide as the image, there are more of them in a row than of pixels.
fn taps_are_lanes(p: &Planar, lanes: i64) -> bool {
    let vectors = |n: i64| (n + lanes - 1) / lanes;
    p.dilation[1] == 1 && p.out[1] <= lanes && p.out[1] * vectors(p.kernel[1]) < p.kernel[1] * vectors(p.out[1])
}

/// Where image `n` of a buffer begins.
pub(super) fn image(b: &mut Builder, i: &Image, n: X) -> I {
    let p = b.word(i.word);
    b.element(p, &[(n, Step::floats(i.image, 1)), (X::C(1), Step::floats(i.origin, 1))])
}

/// Generates the kernel.
pub fn planar(p: &Planar, isa: Isa, m: &Machine) -> Result<Kernel> {
    let d = Distances::new(p)?;
    let lanes = isa.lanes() as i64;
    if taps_are_lanes(p, lanes) {
        return Ok(correlate(p, &d, isa));
    }
    let [height, width] = p.out;
    // Accumulators, with registers left for a tap's pixels and a weight; and the most channels among them.
    let (registers, most) = match isa {
        Isa::Avx512 => (24, 8),
        Isa::Avx2 | Isa::Portable => (12, 6),
    };
    let channels = even_split(p.out_channels, most);
    let columns = (width + lanes - 1) / lanes;
    let vecs = even_split(columns, registers / channels.high).high;
    let g = Gen { p, d, lanes, vecs, tiles: (columns + vecs - 1) / vecs };

    let rows = plan(p, m);
    let mut builder = Builder::new(&p.name, isa.lanes());
    let b = &mut builder;
    let chunks = (height + rows - 1) / rows;
    let (n, chunk) = b.idivrem(b.task(), chunks);
    let from = b.imul(chunk, rows);
    let to = b.iadd(from, rows);
    let to = b.imin(to, height);
    let (input, output, weights) = (image(b, &p.input, n), image(b, &p.output, n), b.word(p.weights));
    let vectors = Channels::new(b, p);
    b.for_(from, to, 1, |b, line| {
        let inside = Inside::new(b, p, &g.d, line);
        let (row, skip, line) = (b.imul(inside.row, g.d.pitch), b.imul(inside.first, p.kernel[1] * 4), b.imul(line, g.d.out_pitch));
        let (x, w, y) = (b.ptr(input, row), b.ptr(weights, skip), b.ptr(output, line));
        let own = vectors.map(|p| b.var(p));
        let row = Row { x, w: b.var(w), y: b.var(y), taps: inside.count, channels: own };
        for (count, channels) in [(channels.larger, channels.high), (channels.tiles - channels.larger, channels.low)] {
            b.times(count, |b| {
                g.tiles(b, &row, channels);
                // On to the next channels.
                b.inc(row.w, channels * g.d.filter);
                b.inc(row.y, channels * g.d.out_plane);
                row.channels.inc(b, channels * 4);
            });
        }
    });
    let tasks = Tasks(vec![Factor::Size(p.batch), Factor::Chunks { of: vec![Size::Const(height)], per: rows }]);
    Ok(Kernel { func: builder.finish(), tasks })
}

/// Output rows of a task: all of them, unless the threads would be idle.
fn plan(p: &Planar, m: &Machine) -> i64 {
    let n = if let Size::Const(n) = p.batch { n } else { 1 };
    let pieces = (m.threads * 4 / n.max(1)).clamp(1, p.out[0]);
    (p.out[0] + pieces - 1) / pieces
}

impl Gen<'_> {
    /// All tiles of a row. The last one overlaps the one before it where the row is no whole number of tiles.
    fn tiles(&self, b: &mut Builder, row: &Row, channels: i64) {
        let (tile, last) = (self.vecs * self.lanes * 4, (self.p.out[1] - self.vecs * self.lanes) * 4);
        match self.tiles {
            1 => self.tile(b, row, channels, X::C(0)),
            n => b.for_(0, n, 1, |b, t| {
                let at = b.imul(t, tile);
                let at = b.imin(at, last);
                self.tile(b, row, channels, at);
            }),
        }
    }

    /// Accumulators from the bias, all taps of all input channels, the epilogue; `at` bytes from the row's start.
    fn tile(&self, b: &mut Builder, row: &Row, channels: i64, at: X) {
        let (p, width) = (self.p, self.p.out[1]);
        // Vectors overlap as tiles do; a row of less than a vector is masked.
        let offsets: Vec<i64> = (0..self.vecs).map(|v| (v * self.lanes).min((width - self.lanes).max(0)) * 4).collect();
        let offsets = if self.tiles == 1 { offsets } else { (0..self.vecs).map(|v| v * self.lanes * 4).collect() };
        let mask = (width < self.lanes).then(|| b.tail(width));
        let mut acc = vec![];
        for _ in &offsets {
            for o in 0..channels {
                acc.push(match row.channels.bias {
                    Some(p) => b.splat(Addr::from(p).off(o * 4)),
                    None => b.constant(0.0),
                });
            }
        }
        let taps = |b: &mut Builder, x: Addr, w: Addr| {
            let pixels: Vec<V> = offsets
                .iter()
                .map(|v| match mask {
                    Some(m) => b.load_mask(x.off(*v), m),
                    None => b.load(x.off(*v)),
                })
                .collect();
            for o in 0..channels {
                let weight = b.splat(w.off(o * self.d.filter));
                for (v, x) in pixels.iter().enumerate() {
                    b.fma_to(acc[v * channels as usize + o as usize], *x, weight);
                }
            }
        };
        let start = b.iadd(row.x, at);
        let (plane, filter) = (b.var(start), b.var(row.w));
        let (columns, next) = (p.kernel[1], p.dilation[1] * 4);
        b.times(p.in_channels, |b| {
            let (x, w) = (b.var(plane), b.var(filter));
            b.times(row.taps, |b| {
                if columns * channels * self.vecs <= UNROLLED {
                    (0..columns).for_each(|t| taps(b, Addr::from(x).off(t * next), Addr::from(w).off(t * 4)));
                    b.inc(w, columns * 4);
                } else {
                    let x = b.var(x);
                    b.times(columns, |b| {
                        taps(b, x.into(), w.into());
                        b.inc(x, next);
                        b.inc(w, 4);
                    });
                }
                b.inc(x, self.d.pitch * p.dilation[0]);
            });
            b.inc(plane, self.d.plane);
            b.inc(filter, p.kernel[0] * columns * 4);
        });
        let sums = epilogue(b, &p.post, acc, channels as usize, &row.channels);
        let y = b.ptr(row.y, at);
        for (i, s) in sums.iter().enumerate() {
            let (v, o) = (i / channels as usize, i as i64 % channels);
            let to = Addr::from(y).off(offsets[v] + o * self.d.out_plane);
            match mask {
                Some(m) => b.store_mask(to, *s, m),
                None => b.store(to, *s),
            }
        }
    }
}
