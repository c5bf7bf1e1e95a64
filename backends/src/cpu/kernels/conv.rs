//! Convolutions as contractions: blocked (NCHWc16 in and out), and the first layer's, which reads plain NCHW.

use super::contract::{Contract, Count, Nest, Place, contract};
use super::post::Post;
use super::{BLOCK, Kernel, Size, Step};
use crate::cpu::isa::{Isa, Machine};
use nnc_ir::error::{Error, Result};

/// A window into a buffer of images, all distances in f32 values. Blocked: `plane` is from one block of 16 channels to the next,
/// and neighbours in the last spatial dimension are 16 apart. Plain: `plane` is from channel to channel, neighbours are 1 apart.
#[derive(Clone, PartialEq, Debug)]
pub struct Image {
    /// Word of the arguments that points at the buffer.
    pub word: u32,
    /// Start of the window.
    pub origin: Size,
    /// From image to image.
    pub image: Size,
    pub plane: Size,
    /// From one index to the next in each spatial dimension but the last.
    pub pitches: Vec<Size>,
}

impl Image {
    /// A dense constant-size buffer with `halo` (before, after) around the spatial dimensions; the window starts at the first
    /// pixel inside the halo. `channels` is in whole blocks of 16 when blocked.
    pub fn dense(word: u32, blocked: bool, channels: i64, spatial: &[i64], halo: &[(i64, i64)]) -> Image {
        let unit = if blocked { BLOCK } else { 1 };
        let planes = if blocked { (channels + BLOCK - 1) / BLOCK } else { channels };
        let mut step = unit;
        let mut origin = 0;
        let mut pitches = Vec::new();
        for (n, size) in spatial.iter().enumerate().rev() {
            let (before, after) = halo.get(n).copied().unwrap_or((0, 0));
            origin += before * step;
            if n + 1 < spatial.len() {
                pitches.push(Size::Const(step));
            }
            step *= before + size + after;
        }
        pitches.reverse();
        Image { word, origin: Size::Const(origin), image: Size::Const(step * planes), plane: Size::Const(step), pitches }
    }

    /// How pixels `stride` apart are walked; `unit` is 16 in the blocked layout and 1 in the plain one. `group_planes` is the
    /// number of planes of one group.
    fn place(&self, stride: &[i64], unit: i64, group_planes: i64) -> Place {
        let mut pixels: Vec<Step> = self.pitches.iter().zip(stride).map(|(p, s)| Step::floats(*p, *s)).collect();
        pixels.push(Step::bytes(4 * unit * stride.last().copied().unwrap_or(1)));
        Place {
            word: self.word,
            origin: Step::floats(self.origin, 1),
            batch: vec![Step::floats(self.image, 1), Step::floats(self.plane, group_planes)],
            pixels,
            cols: Step::floats(self.plane, 1),
        }
    }

    /// The place of an output or residual of a convolution, for [`Post::AddTensor`].
    pub fn output_place(&self, group_blocks: i64) -> Place {
        self.place(&vec![1; self.pitches.len() + 1], BLOCK, group_blocks)
    }
}

/// A convolution of 1, 2 or 3 spatial dimensions. The input holds whatever padding the operator has: the kernel reads
/// `input.origin` as the first tap of the first output.
#[derive(Clone, PartialEq, Debug)]
pub struct Conv {
    pub name: String,
    pub batch: Size,
    pub groups: i64,
    /// Channels of one group. Blocked input: padded to 16, and exact multiples of it if there is more than one group.
    pub in_channels: i64,
    /// Output channels of one group, likewise.
    pub out_channels: i64,
    /// Output size of each spatial dimension.
    pub out: Vec<Size>,
    pub kernel: Vec<i64>,
    pub stride: Vec<i64>,
    pub dilation: Vec<i64>,
    pub input: Image,
    /// Whether the input is plain NCHW (few channels) rather than blocked; the output is blocked.
    pub plain: bool,
    /// Whether the weights are bf16, as [`Contract::narrow`] says; not for a plain input.
    pub narrow: bool,
    pub output: Image,
    /// Word of the packed weights.
    pub weights: u32,
    /// Word of f32[groups * out_channels padded to 16].
    pub bias: Option<u32>,
    pub post: Vec<Post>,
}

impl Conv {
    /// Scalars of the contracted dimension, with padded channels.
    fn depth(&self) -> i64 {
        let channels = if self.plain { self.in_channels } else { self.in_channels.next_multiple_of_block() };
        channels * self.kernel.iter().product::<i64>()
    }

    /// Length in f32 of the packed weights.
    pub fn packed_len(&self) -> i64 {
        self.groups * self.depth() * self.out_channels.next_multiple_of_block()
    }

    /// Packs weights `[groups*out_channels][in_channels][kernel...]` f32 into the order that the kernel streams:
    /// blocked `[group][oc/16][ic/16][kernel...][16 ic][16 oc]`, plain `[group][oc/16][ic][kernel...][16 oc]`.
    pub fn pack(&self, w: &[f32]) -> Vec<f32> {
        let taps = self.kernel.iter().product::<i64>() as usize;
        let (ic, oc) = (self.in_channels as usize, self.out_channels as usize);
        let block = BLOCK as usize;
        let mut out = Vec::with_capacity(self.packed_len() as usize);
        let run = if self.plain { 1 } else { block };
        for g in 0..self.groups as usize {
            for ob in 0..oc.div_ceil(block) {
                for ib in 0..ic.div_ceil(run) {
                    for t in 0..taps {
                        for i in ib * run..(ib + 1) * run {
                            for o in ob * block..(ob + 1) * block {
                                let inside = i < ic && o < oc;
                                out.push(if inside { w[((g * oc + o) * ic + i) * taps + t] } else { 0.0 });
                            }
                        }
                    }
                }
            }
        }
        out
    }

    fn contraction(&self) -> Result<Contract> {
        let dims = self.out.len();
        let fits = [self.kernel.len(), self.stride.len(), self.dilation.len()].iter().all(|n| *n == dims);
        if dims == 0 || !fits || self.input.pitches.len() + 1 != dims || self.output.pitches.len() + 1 != dims {
            return Err(Error::internal(format!("{}: ranks differ", self.name)));
        }
        if self.groups > 1 && (self.out_channels % BLOCK != 0 || !self.plain && self.in_channels % BLOCK != 0) {
            return Err(Error::unsupported(format!("{}: groups of partial channel blocks", self.name)));
        }
        if self.plain && self.narrow {
            return Err(Error::unsupported(format!("{}: bf16 weights of a plain input", self.name)));
        }
        let unit = if self.plain { 1 } else { BLOCK };
        let in_planes = if self.plain { self.in_channels } else { (self.in_channels + BLOCK - 1) / BLOCK };
        let out_planes = (self.out_channels + BLOCK - 1) / BLOCK;
        // Planes, then the taps; the innermost run is a block's channels, or a plain row's taps.
        let levels = |planes: i64| {
            let mut levels = vec![(Count::Size(Size::Const(planes)), Step::floats(self.input.plane, 1))];
            for d in 0..dims - 1 {
                levels.push((Count::Size(Size::Const(self.kernel[d])), Step::floats(self.input.pitches[d], self.dilation[d])));
            }
            levels
        };
        let (last, dilation) = (self.kernel[dims - 1], self.dilation[dims - 1]);
        let blocks = |planes: i64, run: i64| {
            let mut levels = levels(planes);
            levels.push((Count::Size(Size::Const(last)), Step::bytes(4 * BLOCK * dilation)));
            Nest { levels, run, rows: BLOCK, stride: 4 }
        };
        // What fills the last block up is not multiplied; but by pairs there is only the whole of it.
        let live = if self.narrow { 0 } else { self.in_channels % BLOCK };
        let k = match (in_planes, live) {
            _ if self.plain => vec![Nest { levels: levels(in_planes), run: last, rows: last, stride: 4 * dilation }],
            (_, 0) => vec![blocks(in_planes, BLOCK)],
            (1, _) => vec![blocks(1, live)],
            _ => vec![blocks(in_planes - 1, BLOCK), blocks(1, live)],
        };
        let depth = self.depth();
        // A pixel of the output brings stride-many input pixels. Those between the taps are not read, but they take their share of
        // the cache: every other line means every other set of it. A chunk is rather less than a plane of a volume, so that each of
        // the planes under its taps brings pixels of its own.
        let fresh: i64 = self.stride.iter().rev().take(2).chain(self.kernel.iter().rev().skip(2)).product();
        Ok(Contract {
            name: self.name.clone(),
            batch: vec![self.batch, Size::Const(self.groups)],
            pixels: self.out.clone(),
            cols: Size::Const(self.out_channels.next_multiple_of_block()),
            live: Some(self.out_channels),
            input: self.input.place(&self.stride, unit, in_planes),
            output: self.output.output_place(out_planes),
            weights: (self.weights, vec![Step::ZERO, Step::bytes(depth * out_planes * BLOCK * if self.narrow { 2 } else { 4 })]),
            pitch: None,
            narrow: self.narrow,
            bias: self.bias,
            padded: true,
            channels: vec![Step::ZERO, Step::bytes(out_planes * BLOCK * 4)],
            k,
            depth: Size::Const(depth),
            pixel_bytes: fresh * in_planes * unit * 4,
            post: self.post.clone(),
        })
    }
}

trait Blocks {
    fn next_multiple_of_block(self) -> i64;
}

impl Blocks for i64 {
    fn next_multiple_of_block(self) -> i64 {
        (self + BLOCK - 1) / BLOCK * BLOCK
    }
}

/// Generates the kernel: [`contract`] with (image, group) as its batch.
pub fn conv(c: &Conv, isa: Isa, m: &Machine) -> Result<Kernel> {
    contract(&c.contraction()?, isa, m)
}
