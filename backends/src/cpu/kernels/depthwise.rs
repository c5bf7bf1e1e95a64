//! Depthwise convolution in the blocked layout: lanes are channels, a tile is consecutive pixels of one output row.
//!
//! Packed weights: `[C/16][kernel rows][kernel columns][16]` f32. A task is (image, block of channels, chunk of output rows).

use super::conv::Image;
use super::plan::even_split;
use super::post::{Operands, Post, epilogue};
use super::{BLOCK, BLOCK_BYTES, Factor, Kernel, Size, Step, Tasks};
use crate::cpu::isa::{Isa, Machine};
use crate::cpu::vir::{Addr, Builder, I, V, X};
use nnc_ir::error::{Error, Result};

/// A depthwise convolution of 2 spatial dimensions (a one-dimensional one has a row of height 1). The input holds the operator's
/// padding: `input.origin` is the first tap of the first output.
#[derive(Clone, PartialEq, Debug)]
pub struct Depthwise {
    pub name: String,
    pub batch: Size,
    pub channels: i64,
    pub out: [Size; 2],
    pub kernel: [i64; 2],
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    pub input: Image,
    pub output: Image,
    /// Word of the packed weights.
    pub weights: u32,
    /// Word of f32[channels padded to 16].
    pub bias: Option<u32>,
    /// Tensors are placed by [`Image::output_place`] of one plane.
    pub post: Vec<Post>,
}

impl Depthwise {
    /// Packs weights `[channels][rows][columns]`.
    pub fn pack(&self, w: &[f32]) -> Vec<f32> {
        let taps = (self.kernel[0] * self.kernel[1]) as usize;
        let (c, block) = (self.channels as usize, BLOCK as usize);
        let mut out = Vec::with_capacity(c.div_ceil(block) * block * taps);
        for cb in 0..c.div_ceil(block) {
            for t in 0..taps {
                out.extend((cb * block..(cb + 1) * block).map(|i| if i < c { w[i * taps + t] } else { 0.0 }));
            }
        }
        out
    }
}

/// Pointers of one vector of channels in one output row, moving with the tile.
struct Row<'d> {
    d: &'d Depthwise,
    input: I,
    weights: I,
    bias: Option<I>,
    /// The output, then the tensors of the epilogue.
    outputs: Vec<I>,
    vectors: Vec<Option<I>>,
    pitch: X,
}

impl Operands for Row<'_> {
    fn tensor(&self, b: &mut Builder, n: usize, i: usize) -> V {
        b.load(Addr::from(self.outputs[1 + n]).off(i as i64 * BLOCK_BYTES))
    }

    fn channels(&self, b: &mut Builder, step: usize, _: usize) -> V {
        b.load(self.vectors[step].unwrap_or(self.weights))
    }
}

/// Generates the kernel.
pub fn depthwise(d: &Depthwise, isa: Isa, m: &Machine) -> Result<Kernel> {
    if d.input.pitches.len() != 1 || d.output.pitches.len() != 1 {
        return Err(Error::unsupported(format!("{}: depthwise convolution of other than 2 dimensions", d.name)));
    }
    let blocks = (d.channels + BLOCK - 1) / BLOCK;
    let rows = plan(d, m, blocks);
    let mut builder = Builder::new(&d.name, isa.lanes());
    let b = &mut builder;
    let (height, width) = (b.size(d.out[0]), b.size(d.out[1]));
    let chunks = b.ceil_div(height, rows);
    let (t, chunk) = b.idivrem(b.task(), chunks);
    let (n, block) = b.idivrem(t, blocks);
    let from = b.imul(chunk, rows);
    let to = b.iadd(from, rows);
    let to = b.imin(to, height);

    let start = |b: &mut Builder, image: &Image, stride: i64| {
        let p = b.word(image.word);
        let pitch = Step::floats(image.pitches[0], stride);
        let at = [(n, Step::floats(image.image, 1)), (block, Step::floats(image.plane, 1)), (from, pitch), (X::C(1), Step::floats(image.origin, 1))];
        let p = b.element(p, &at);
        (b.var(p), b.step(pitch))
    };
    let input = start(b, &d.input, d.stride[0]);
    let mut outputs = vec![start(b, &d.output, 1)];
    let mut vectors = Vec::new();
    let channel = b.imul(block, BLOCK_BYTES);
    let vector = |b: &mut Builder, word: u32| {
        let p = b.word(word);
        b.ptr(p, channel)
    };
    for p in &d.post {
        vectors.push(match p {
            Post::AddTensor(t) => {
                let p = b.word(t.word);
                let at = [(n, t.batch[0]), (block, t.batch[1]), (from, t.pixels[0]), (X::C(1), t.origin)];
                let p = b.element(p, &at);
                outputs.push((b.var(p), b.step(t.pixels[0])));
                None
            }
            Post::MulChannel(w) | Post::AddChannel(w) => Some(vector(b, *w)),
            Post::Act(_) => None,
        });
    }
    let bias = d.bias.map(|w| vector(b, w));
    let weights = b.word(d.weights);
    let skip = b.imul(block, d.kernel[0] * d.kernel[1] * BLOCK_BYTES);
    let weights = b.ptr(weights, skip);
    let pitch = b.step(Step::floats(d.input.pitches[0], d.dilation[0]));
    b.for_(from, to, 1, |b, _| {
        b.for_(0, BLOCK_BYTES, b.width(), |b, lane| {
            let moved = |b: &mut Builder, p: I| {
                let p = b.iadd(p, lane);
                b.var(p)
            };
            let row = Row {
                d,
                input: moved(b, input.0),
                weights: moved(b, weights),
                bias: bias.map(|p| moved(b, p)),
                outputs: outputs.iter().map(|(p, _)| moved(b, *p)).collect(),
                vectors: vectors.iter().map(|v| v.map(|p| moved(b, p))).collect(),
                pitch,
            };
            const TILE: i64 = 8;
            match d.out[1] {
                Size::Const(width) => {
                    let s = even_split(width, TILE);
                    b.times(s.larger, |b| row.tile(b, s.high));
                    b.times(s.tiles - s.larger, |b| row.tile(b, s.low));
                }
                Size::Arg(_) => {
                    let (full, rest) = b.idivrem(width, TILE);
                    b.times(full, |b| row.tile(b, TILE));
                    b.times(rest, |b| row.tile(b, 1));
                }
            }
        });
        for (p, pitch) in std::iter::once(&input).chain(&outputs) {
            b.inc(*p, *pitch);
        }
    });
    let tasks = Tasks(vec![Factor::Size(d.batch), Factor::Size(Size::Const(blocks)), Factor::Chunks { of: vec![d.out[0]], per: rows }]);
    Ok(Kernel { func: builder.finish(), tasks })
}

/// Output rows of a task: all of them, unless the threads would be idle.
fn plan(d: &Depthwise, m: &Machine, blocks: i64) -> i64 {
    let n = if let Size::Const(n) = d.batch { n } else { 1 };
    match d.out[0] {
        Size::Const(h) => {
            let pieces = (m.threads * 4 / (n * blocks).max(1)).clamp(1, h);
            (h + pieces - 1) / pieces
        }
        Size::Arg(_) => 16,
    }
}

impl Row<'_> {
    /// `n` pixels; all pointers move on.
    fn tile(&self, b: &mut Builder, n: i64) {
        let d = self.d;
        let acc: Vec<V> = (0..n)
            .map(|_| match self.bias {
                Some(p) => b.load(p),
                None => b.constant(0.0),
            })
            .collect();
        let (x, w) = (b.var(self.input), b.var(self.weights));
        let line = |b: &mut Builder| {
            self.line(b, &acc, x, w);
            b.inc(x, self.pitch);
            b.inc(w, d.kernel[1] * BLOCK_BYTES);
        };
        if d.kernel[0] * d.kernel[1] <= 25 {
            (0..d.kernel[0]).for_each(|_| line(b));
        } else {
            b.times(d.kernel[0], line);
        }
        let out = epilogue(b, &d.post, acc, 1, self);
        for (j, y) in out.iter().enumerate() {
            b.store(Addr::from(self.outputs[0]).off(j as i64 * BLOCK_BYTES), *y);
        }
        b.inc(self.input, n * d.stride[1] * BLOCK_BYTES);
        for p in &self.outputs {
            b.inc(*p, n * BLOCK_BYTES);
        }
    }

    /// One row of taps. Short rows of weights stay in registers and every input is loaded once; long ones load both.
    fn line(&self, b: &mut Builder, acc: &[V], x: I, w: I) {
        let (kernel, stride, dilation) = (self.d.kernel[1], self.d.stride[1], self.d.dilation[1]);
        let weight = |b: &mut Builder, s: i64| b.load(Addr::from(w).off(s * BLOCK_BYTES));
        let input = |b: &mut Builder, i: i64| b.load(Addr::from(x).off(i * BLOCK_BYTES));
        if kernel <= 5 {
            let weights: Vec<V> = (0..kernel).map(|s| weight(b, s)).collect();
            let last = (acc.len() as i64 - 1) * stride + (kernel - 1) * dilation;
            for i in 0..=last {
                let uses: Vec<(usize, usize)> = (0..acc.len())
                    .flat_map(|j| (0..weights.len()).map(move |s| (j, s)))
                    .filter(|(j, s)| *j as i64 * stride + *s as i64 * dilation == i)
                    .collect();
                if !uses.is_empty() {
                    let x = input(b, i);
                    for (j, s) in uses {
                        b.fma_to(acc[j], x, weights[s]);
                    }
                }
            }
        } else {
            for s in 0..kernel {
                let w = weight(b, s);
                for (j, a) in acc.iter().enumerate() {
                    let x = input(b, j as i64 * stride + s * dilation);
                    b.fma_to(*a, x, w);
                }
            }
        }
    }
}
