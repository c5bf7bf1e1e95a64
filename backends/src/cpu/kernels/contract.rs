//! The contraction kernel: `out[p, c] = post(bias[c] + Σ_k in[p, k] * w[k, c])` for convolutions and matrix products alike.
//!
//! A register tile holds `rows` output pixels by `vecs` vectors of output columns. Each row has its own input pointer, so that a
//! tile may be any consecutive pixels of the flattened output, across row ends, strides and windows of a larger buffer. The
//! contracted dimension is a nest of loops over input offsets that all rows share; the weights are one sequential stream.
//!
//! Packed weights: `[batch][cols/16][k][16]` f32, `k` in the order of the nest, columns padded with zeros.
//!
//! Narrow weights are bf16, each two rows of `k` interleaved: `[batch][cols/16][k/2][16][2]`. The input stays f32 in memory: each run
//! of 16 values of a row is rounded when it is read, left in the function's own memory, and multiplied from there by pairs.
//!
//! A task is (batch index, chunk of pixels, group of column blocks). Within it the column blocks are the outer loop and the
//! tiles the inner one: the chunk is sized to stay in the second-level cache while the weights of one block, which every tile
//! uses again, stay in the first or second.

use super::plan::{Tile, even_split, merge_pixels, plan, tile};
use super::post::{Operands, Post, epilogue};
use super::{BLOCK, BLOCK_BYTES, Factor, Kernel, Size, Step, Tasks};
use crate::cpu::isa::{Isa, Machine};
use crate::cpu::vir::{Addr, Builder, I, ICmp, M, V, VBin, X};
use nnc_ir::error::{Error, Result};

/// How far a lone row fetches the streams of its weights ahead, bytes.
const NEAR: i64 = 1024;

/// How a tensor is walked: `word + origin + Σ batch + Σ pixel + column block`.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// Word of the arguments that points at the buffer.
    pub word: u32,
    pub origin: Step,
    /// A step for each of [`Contract::batch`].
    pub batch: Vec<Step>,
    /// A step for each of [`Contract::pixels`].
    pub pixels: Vec<Step>,
    /// From one block of 16 columns to the next; unused for the input.
    pub cols: Step,
}

/// How often a loop of a nest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    Size(Size),
    /// Whole runs of 16 in a size, and what they leave.
    Runs(Size),
    Rest(Size),
}

impl Count {
    /// The same count as a plain constant, where it is one.
    pub(super) fn reduced(self) -> Count {
        match self {
            Count::Runs(Size::Const(n)) => Count::Size(Size::Const(n / BLOCK)),
            Count::Rest(Size::Const(n)) => Count::Size(Size::Const(n % BLOCK)),
            c => c,
        }
    }

    fn value(self, b: &mut Builder) -> X {
        match self {
            Count::Size(s) => b.size(s),
            Count::Runs(s) => {
                let s = b.size(s);
                b.idiv(s, BLOCK)
            }
            Count::Rest(s) => {
                let s = b.size(s);
                b.irem(s, BLOCK)
            }
        }
    }
}

/// Consecutive loops over the contracted dimension: `levels`, outermost first, around `run` scalars that are `stride` bytes apart, whose
/// weights are the first of `rows`.
#[derive(Clone, PartialEq, Debug)]
pub struct Nest {
    pub levels: Vec<(Count, Step)>,
    pub run: i64,
    pub rows: i64,
    pub stride: i64,
}

/// What to contract.
#[derive(Clone, PartialEq, Debug)]
pub struct Contract {
    pub name: String,
    /// Independent problems, outermost first: images, groups, matrices.
    pub batch: Vec<Size>,
    /// Output pixels or rows, outermost first.
    pub pixels: Vec<Size>,
    /// Output columns of one problem; packed weights are padded to 16.
    pub cols: Size,
    /// Columns that have weights, where those behind them are zeros up to a whole block.
    pub live: Option<i64>,
    pub input: Place,
    pub output: Place,
    /// Word that points at the packed weights, and bytes between problems.
    pub weights: (u32, Vec<Step>),
    /// Bytes from row to row where the weights are a plain matrix of whole blocks of columns instead.
    pub pitch: Option<i64>,
    /// Whether the weights are bf16 in pairs. Runs of `k` are then of 16 neighbours.
    pub narrow: bool,
    /// Word that points at f32[cols] added to every pixel.
    pub bias: Option<u32>,
    /// Whether the bias and every other vector of channels are padded to whole blocks; where not, nothing is read behind their ends.
    pub padded: bool,
    /// Bytes between problems of the bias and every other vector of channels.
    pub channels: Vec<Step>,
    pub k: Vec<Nest>,
    /// Scalars of `k` in all; run-time for matrices whose depth is not known.
    pub depth: Size,
    /// Bytes of input that one pixel adds to a chunk, for the cost rule.
    pub pixel_bytes: i64,
    pub post: Vec<Post>,
}

/// A place being walked: its pointer at the current tile.
struct Cursor {
    /// Constant bytes from pixel to pixel, when no coordinate matters.
    flat: Option<i64>,
    /// From pixel to pixel, and what more there is at the end of each dimension but the outermost.
    step: X,
    jumps: Vec<X>,
    cols: X,
    /// At the chunk's first pixel and the task's current columns.
    start: I,
    /// At the current tile's first pixel.
    cur: I,
}

/// What the parts of the generator share: registers and constants, none of them changed after they are made.
struct Gen<'c> {
    c: &'c Contract,
    lanes: i64,
    /// Whether tiles are of the first half of a block, the only one with weights; the other half of the result is zeros.
    few: bool,
    tile: Tile,
    dims: Vec<X>,
    input: Cursor,
    /// The output, then the tensors added to it in the order of `post`.
    outputs: Vec<Cursor>,
    /// Coordinates of the chunk's first pixel and of the current tile's, in all dimensions but the outermost.
    chunk_coords: Vec<X>,
    coords: Vec<I>,
    /// Weights and channel offset (bytes) of the current columns.
    weights: I,
    channel: I,
    /// Weights of the next columns, which the tiles of these ones bring near a piece at a time: `ahead` lines in each run.
    next: I,
    ahead: i64,
    slice: Option<Slice>,
    /// Where the rows of a tile lie in bf16, a run of 16 each.
    rounded: Option<I>,
    /// Bytes of weights from one scalar of the contracted dimension to the next, and from one block of columns to the next.
    pitch: i64,
    apart: X,
    bias: Option<I>,
    /// Base pointers of the channel vectors of `post`, in order.
    vectors: Vec<Option<I>>,
}

/// The slice of the contracted dimension being done.
#[derive(Clone, Copy)]
struct Slice {
    /// Its number, and that of the last.
    index: X,
    last: X,
    /// Iterations of the outermost loop.
    count: X,
    /// Bytes of input and of weights before it.
    input: X,
    weights: X,
}

/// The part of the output's columns that a tile covers.
#[derive(Clone, Copy)]
struct Part {
    /// Lane of the column step that the tile starts at.
    lane: i64,
    /// Columns from there to the end of the matrix.
    valid: X,
}

/// Addresses of the rows of a tile.
enum Rows {
    /// One register, rows a constant apart.
    Apart(I, i64),
    Each(Vec<I>),
}

impl Rows {
    fn at(&self, row: i64) -> Addr {
        match self {
            Rows::Apart(base, step) => Addr::from(*base).off(row * step),
            Rows::Each(p) => Addr::from(p[row as usize]),
        }
    }
}

/// Generates the kernel. Arguments: the words that the descriptor names. Tasks: product of `batch`, pixel chunks, column groups.
pub fn contract(c: &Contract, isa: Isa, m: &Machine) -> Result<Kernel> {
    if c.pixels.is_empty() || c.pixels.iter().chain([&c.cols]).any(|s| matches!(s, Size::Const(..=0))) {
        return Err(Error::unsupported(format!("{}: nothing to compute", c.name)));
    }
    let mut c = c.clone();
    merge_pixels(&mut c);
    let c = &c;
    let pixels = c.pixels.iter().try_fold(1i64, |p, s| match s {
        Size::Const(n) => p.checked_mul(*n),
        Size::Arg(_) => None,
    });
    let blocks = if let Size::Const(n) = c.cols { Some((n + BLOCK - 1) / BLOCK) } else { None };
    // Few columns take a shorter vector, which is at least as fast: on processors that split the long one twice as fast.
    let few = blocks == Some(1) && !c.narrow && c.live.is_some_and(|n| n <= BLOCK / 2);
    let isa = if few && isa == Isa::Avx512 { Isa::Avx2 } else { isa };
    let lanes = isa.lanes() as i64;
    let tile = tile(isa, c, pixels, blocks, few, m);
    let step_blocks = (tile.vecs * lanes / BLOCK).max(1);
    let plan = plan(c, m, tile, pixels, blocks.map(|n| n / step_blocks));

    let mut b = Builder::new(&c.name, isa.lanes());
    let b = &mut b;
    let rounded = if c.narrow { Some(b.frame((tile.rows * BLOCK_BYTES / 2) as u32)) } else { None };
    let dims: Vec<X> = c.pixels.iter().map(|s| b.size(*s)).collect();
    let depth = b.size(c.depth);
    let pitch = c.pitch.unwrap_or(if c.narrow { BLOCK_BYTES / 2 } else { BLOCK_BYTES });
    let apart = if c.pitch.is_some() { X::C(BLOCK_BYTES) } else { b.imul(depth, pitch) };
    let cols = b.size(c.cols);
    let col_blocks = b.ceil_div(cols, BLOCK);
    let steps = b.idiv(col_blocks, step_blocks);
    let total = dims.iter().fold(X::C(1), |p, d| b.imul(p, *d));
    // A chunk is a range of tiles where the pixels are known, else of pixels.
    let split = pixels.map(|p| even_split(p, tile.max_rows));
    let end = split.as_ref().map_or(total, |s| X::C(s.tiles));

    // The task's place in the iteration space, innermost factor first.
    let groups = b.ceil_div(steps, plan.group);
    let (t, group) = b.idivrem(b.task(), groups);
    let chunks = b.ceil_div(end, plan.chunk);
    let (mut t, chunk) = b.idivrem(t, chunks);
    let mut at = Vec::new();
    for s in c.batch.iter().skip(1).rev() {
        let s = b.size(*s);
        let (q, r) = b.idivrem(t, s);
        at.push(r);
        t = q;
    }
    at.push(t);
    at.reverse();

    // The chunk, and the coordinates of its first pixel.
    let from = b.imul(chunk, plan.chunk);
    let to = b.iadd(from, plan.chunk);
    let to = b.imin(to, end);
    let mut rest = match &split {
        Some(s) => {
            let p = b.imul(from, s.low);
            let more = if s.low == tile.rows { X::C(0) } else { b.imin(from, s.larger) };
            b.iadd(p, more)
        }
        None => from,
    };
    let mut coords = Vec::new();
    for d in dims.iter().skip(1).rev() {
        let (q, r) = b.idivrem(rest, *d);
        coords.push(r);
        rest = q;
    }
    coords.push(rest);
    coords.reverse();

    let batch_at = |b: &mut Builder, word: u32, steps: &[Step]| {
        let p = b.word(word);
        let list: Vec<_> = at.iter().copied().zip(steps.iter().copied()).collect();
        b.element(p, &list)
    };
    let step_from = b.imul(group, plan.group);
    let step_to = b.iadd(step_from, plan.group);
    let step_to = b.imin(step_to, steps);
    let cursor = |b: &mut Builder, p: &Place| {
        let base = batch_at(b, p.word, &p.batch);
        let origin = b.step(p.origin);
        let base = b.ptr(base, origin);
        let list: Vec<_> = coords.iter().copied().zip(p.pixels.iter().copied()).collect();
        let base = b.element(base, &list);
        let cols = b.step(p.cols);
        let step = b.imul(cols, step_blocks);
        let skip = b.imul(step_from, step);
        let start = b.iadd(base, skip);
        let start = b.var(start);
        let steps: Vec<X> = p.pixels.iter().map(|s| b.step(*s)).collect();
        let jumps = (1..dims.len())
            .map(|d| {
                let span = b.imul(steps[d], dims[d]);
                b.isub(steps[d - 1], span)
            })
            .collect();
        let step = steps[dims.len() - 1];
        Cursor { flat: dense(p, &c.pixels), step, jumps, cols, start, cur: b.var(start) }
    };
    let input = cursor(b, &Place { cols: Step::ZERO, ..c.input.clone() });
    let mut outputs = vec![cursor(b, &c.output)];
    let mut vectors = Vec::new();
    for p in &c.post {
        vectors.push(match p {
            Post::AddTensor(t) => {
                outputs.push(cursor(b, t));
                None
            }
            Post::MulChannel(w) | Post::AddChannel(w) => Some(batch_at(b, *w, &c.channels)),
            Post::Act(_) => None,
        });
    }
    let bias = c.bias.map(|w| batch_at(b, w, &c.channels));
    let weights = batch_at(b, c.weights.0, &c.weights.1);
    let step_weights = b.imul(apart, step_blocks);
    let skip = b.imul(step_from, step_weights);
    let weights = b.ptr(weights, skip);
    let skip = b.imul(step_from, step_blocks * BLOCK_BYTES);
    let mut g = Gen {
        c,
        lanes,
        few,
        tile,
        dims,
        input,
        outputs,
        chunk_coords: coords[1..].to_vec(),
        coords: coords[1..].iter().map(|x| b.var(*x)).collect(),
        weights: b.var(weights),
        channel: b.var(skip),
        next: b.var(weights),
        // Rows of a plain matrix are no stream to run ahead in.
        ahead: if c.pitch.is_some() { 0 } else { plan.ahead },
        slice: None,
        rounded,
        pitch,
        apart,
        bias,
        vectors,
    };
    let columns = |b: &mut Builder, g: &Gen| {
        b.for_(step_from, step_to, 1, |b, step| {
            let done = b.imul(step, step_blocks * BLOCK);
            let left = b.isub(cols, done);
            let width = if few { BLOCK } else { tile.vecs * lanes };
            for lane in (0..step_blocks * BLOCK).step_by(width as usize) {
                let part = Part { lane, valid: b.isub(left, lane) };
                g.rewind(b);
                if lane == 0 {
                    let next = b.iadd(g.weights, step_weights);
                    let next = b.iadd(next, g.slice.map_or(X::C(0), |s| s.weights));
                    b.set(g.next, next);
                }
                match &split {
                    Some(s) => {
                        let mid = b.imin(to, s.larger);
                        b.for_(from, mid, 1, |b, _| g.tile(b, tile.rows, None, part));
                        if s.low != tile.rows {
                            let from = b.imax(from, s.larger);
                            b.for_(from, to, 1, |b, _| g.tile(b, s.low, None, part));
                        }
                    }
                    None => {
                        let n = b.isub(to, from);
                        let full = b.idiv(n, tile.rows);
                        b.for_(0, full, 1, |b, _| g.tile(b, tile.rows, None, part));
                        let done = b.imul(full, tile.rows);
                        let left = b.isub(n, done);
                        b.if_(ICmp::Gt, left, 0, |b| g.tile(b, tile.rows, Some(left), part));
                    }
                }
            }
            // On to the next columns.
            b.inc(g.weights, step_weights);
            b.inc(g.channel, step_blocks * BLOCK_BYTES);
            for o in &g.outputs {
                let d = b.imul(o.cols, step_blocks);
                b.inc(o.start, d);
            }
        })
    };
    match (plan.slice, c.k[0].levels.first()) {
        (Some(per), Some((count, step))) => {
            let count = count.value(b);
            let slices = b.ceil_div(count, per);
            let last = b.isub(slices, 1);
            let step = b.step(*step);
            // Weights of one iteration of the outermost loop.
            let volume = c.k[0].levels[1..].iter().fold(X::C(c.k[0].rows * pitch), |v, (n, _)| {
                let n = n.value(b);
                b.imul(v, n)
            });
            let firsts: Vec<(I, X)> =
                [g.weights, g.channel].into_iter().chain(g.outputs.iter().map(|o| o.start)).map(|r| (r, X::R(b.var(r)))).collect();
            b.for_(0, slices, 1, |b, index| {
                // Every slice starts at the task's first columns.
                for (r, first) in &firsts {
                    b.set(*r, *first);
                }
                let from = b.imul(index, per);
                let left = b.isub(count, from);
                let count = b.imin(left, per);
                let (input, weights) = (b.imul(step, from), b.imul(volume, from));
                g.slice = Some(Slice { index: X::R(index), last, count, input, weights });
                columns(b, &g);
            });
        }
        _ => columns(b, &g),
    }
    let mut tasks: Vec<Factor> = c.batch.iter().map(|s| Factor::Size(*s)).collect();
    tasks.push(match &split {
        Some(s) => Factor::Chunks { of: vec![Size::Const(s.tiles)], per: plan.chunk },
        None => Factor::Chunks { of: c.pixels.clone(), per: plan.chunk },
    });
    tasks.push(Factor::Chunks { of: vec![c.cols], per: BLOCK * step_blocks * plan.group });
    let func = std::mem::replace(b, Builder::new("", 4)).finish();
    Ok(Kernel { func, tasks: Tasks(tasks) })
}

/// Bytes from pixel to pixel, if a place has no gaps and all of it is known.
fn dense(p: &Place, sizes: &[Size]) -> Option<i64> {
    let last = p.pixels.last()?.constant()?;
    let mut expect = last;
    for n in (1..sizes.len()).rev() {
        let Size::Const(size) = sizes[n] else { return None };
        expect = expect.checked_mul(size)?;
        if p.pixels[n - 1].constant() != Some(expect) {
            return None;
        }
    }
    Some(last)
}

impl Gen<'_> {
    /// All cursors back to the chunk's first pixel.
    fn rewind(&self, b: &mut Builder) {
        for c in std::iter::once(&self.input).chain(&self.outputs) {
            b.set(c.cur, c.start);
        }
        for (v, x) in self.coords.iter().zip(&self.chunk_coords) {
            b.set(*v, *x);
        }
    }

    /// Row addresses of these cursors at the current tile; the cursors move on to the next tile, and the shared coordinates with
    /// them if `moves`. Rows at `live` and beyond repeat the last one.
    fn walk(&self, b: &mut Builder, cursors: &[Cursor], rows: i64, live: Option<X>, moves: bool) -> Vec<Rows> {
        let mut lists: Vec<Vec<I>> = vec![Vec::new(); cursors.len()];
        let open: Vec<usize> = (0..cursors.len()).filter(|n| live.is_some() || cursors[*n].flat.is_none()).collect();
        let coords_matter = std::iter::once(&self.input).chain(&self.outputs).any(|c| c.flat.is_none());
        let mut ptr: Vec<X> = cursors.iter().map(|c| X::R(c.cur)).collect();
        let mut coords: Vec<X> = self.coords.iter().map(|i| X::R(*i)).collect();
        for row in 0..rows {
            for &n in &open {
                // The first is a copy: the cursor's own register changes below.
                let p = if row == 0 { b.var(ptr[n]) } else { b.reg(ptr[n]) };
                lists[n].push(p);
            }
            if open.is_empty() && !(moves && coords_matter) {
                break;
            }
            let before = (ptr.clone(), coords.clone());
            for &n in &open {
                ptr[n] = b.iadd(ptr[n], cursors[n].step);
            }
            // At the end of a dimension the one outside it moves; without a carry a coordinate stays below its size.
            let mut carry = X::C(1);
            for d in (0..coords.len()).rev() {
                let size = self.dims[d + 1];
                let inc = b.iadd(coords[d], carry);
                for &n in &open {
                    let far = b.iadd(ptr[n], cursors[n].jumps[d]);
                    ptr[n] = b.iselect(ICmp::Eq, inc, size, far, ptr[n]);
                }
                coords[d] = b.iselect(ICmp::Eq, inc, size, 0, inc);
                if d > 0 {
                    let one = b.reg(1);
                    carry = b.iselect(ICmp::Eq, inc, size, one, 0);
                }
            }
            if let Some(live) = live {
                let more = |b: &mut Builder, new: X, old: X| b.iselect(ICmp::Gt, live, row + 1, new, old);
                for &n in &open {
                    ptr[n] = more(b, ptr[n], before.0[n]);
                }
                for (new, old) in coords.iter_mut().zip(&before.1) {
                    *new = more(b, *new, *old);
                }
            }
        }
        if moves {
            for (v, x) in self.coords.iter().zip(&coords) {
                b.set(*v, *x);
            }
        }
        cursors
            .iter()
            .zip(lists)
            .enumerate()
            .map(|(n, (c, list))| {
                if let (Some(step), true) = (c.flat, list.is_empty()) {
                    let p = b.var(c.cur);
                    b.inc(c.cur, step * rows);
                    Rows::Apart(p, step)
                } else {
                    b.set(c.cur, ptr[n]);
                    Rows::Each(list)
                }
            })
            .collect()
    }

    /// A tile: accumulators from the bias, the loops, the epilogue.
    fn tile(&self, b: &mut Builder, rows: i64, live: Option<X>, part: Part) {
        let vecs = self.tile.vecs;
        let input = self.walk(b, std::slice::from_ref(&self.input), rows, live, false).swap_remove(0);
        let init: Vec<V> = (0..vecs)
            .map(|v| match self.bias {
                Some(p) => {
                    let at = Addr::from(p).idx(self.channel, 1).off((part.lane + v * self.lanes) * 4);
                    let mask = (!self.c.padded).then(|| self.mask(b, part, v));
                    let load = |b: &mut Builder| match mask {
                        Some(m) => b.load_mask(at, m),
                        None => b.load(at),
                    };
                    match self.slice {
                        None => load(b),
                        // Later slices add to what the first one left.
                        Some(s) => {
                            let first = b.constant(0.0);
                            b.if_(ICmp::Eq, s.index, 0, |b| {
                                let bias = load(b);
                                b.copy_to(first, bias);
                            });
                            first
                        }
                    }
                }
                None => b.constant(0.0),
            })
            .collect();
        let mut sets: Vec<Vec<V>> = Vec::new();
        for phase in 0..self.tile.phases {
            let first = (0..rows).flat_map(|_| init.iter());
            sets.push(first.map(|v| if phase == 0 { b.copy(*v) } else { b.constant(0.0) }).collect());
        }
        let w = b.iadd(self.weights, part.lane % BLOCK * 4);
        let w = b.iadd(w, self.slice.map_or(X::C(0), |s| s.weights));
        let w = b.var(w);
        let idx = b.var(self.slice.map_or(X::C(0), |s| s.input));
        for (n, nest) in self.c.k.iter().enumerate() {
            let mut levels: Vec<(X, X)> = nest.levels.iter().map(|(n, s)| (n.value(b), b.step(*s))).collect();
            let stream = Stream { input: &input, sets: &sets, w, idx };
            match (self.slice, n) {
                (Some(s), 0) => {
                    levels[0].0 = s.count;
                    self.nest(b, &levels, nest, &stream);
                }
                // What the outermost loop leaves belongs to its last slice.
                (Some(s), _) => b.if_(ICmp::Eq, s.index, s.last, |b| self.nest(b, &levels, nest, &stream)),
                (None, _) => self.nest(b, &levels, nest, &stream),
            }
        }
        let mut sums = sets.swap_remove(0);
        for set in sets {
            for (s, x) in sums.iter_mut().zip(set) {
                *s = b.add(*s, x);
            }
        }
        let places = self.walk(b, &self.outputs, rows, live, true);
        let width = vecs * self.lanes;
        if matches!(self.c.cols, Size::Const(n) if n % BLOCK.max(width) == 0) {
            return self.finish(b, &places, sums, part, false);
        }
        let copy = sums.clone();
        b.if_else(ICmp::Ge, part.valid, width, |b| self.finish(b, &places, sums, part, false), |b| self.finish(b, &places, copy, part, true));
    }

    /// The loops of a nest.
    fn nest(&self, b: &mut Builder, levels: &[(X, X)], nest: &Nest, s: &Stream) {
        let Some(((count, step), inner)) = levels.split_first() else {
            return self.run(b, nest, s);
        };
        b.times(*count, |b| {
            self.nest(b, inner, nest, s);
            // The inner loop has already moved by its whole span.
            let back = inner.first().map_or(X::C(0), |(n, s)| b.imul(*n, *s));
            let d = b.isub(*step, back);
            b.inc(s.idx, d);
        });
    }

    /// `run` steps of the contracted dimension, unrolled; those of narrow weights go by pairs.
    fn run(&self, b: &mut Builder, nest: &Nest, s: &Stream) {
        let vecs = self.tile.vecs as usize;
        // Blocks of columns are whole streams apart; tiles of several blocks are made for constant depths only.
        let apart = if let X::C(d) = self.apart { d } else { 0 };
        if let Some(rounded) = self.rounded {
            for row in 0..(s.sets[0].len() / vecs) as i64 {
                let x = b.load(s.input.at(row).idx(s.idx, 1));
                b.store_bf16(Addr::from(rounded).off(row * BLOCK_BYTES / 2), x);
            }
        }
        let step = if self.rounded.is_some() { 2 } else { 1 };
        for u in (0..nest.run).step_by(step as usize) {
            let set = &s.sets[(u / step % self.tile.phases) as usize];
            if u * self.ahead / nest.run < (u + step) * self.ahead / nest.run {
                for block in 0..(vecs as i64 * self.lanes / BLOCK).max(1) {
                    b.prefetch(Addr::from(self.next).off(block * apart), false);
                }
                b.inc(self.next, 64);
            }
            let weights: Vec<V> = (0..vecs as i64)
                .map(|v| {
                    let lane = v * self.lanes;
                    let at = Addr::from(s.w).off(u * self.pitch + lane / BLOCK * apart + lane % BLOCK * 4);
                    if self.tile.streams() {
                        b.prefetch(at.off(NEAR), false);
                    }
                    b.load(at)
                })
                .collect();
            if let Some(rounded) = self.rounded {
                for (row, acc) in set.chunks(vecs).enumerate() {
                    let pair = b.splat(Addr::from(rounded).off(row as i64 * BLOCK_BYTES / 2 + u * 2));
                    for (a, w) in acc.iter().zip(&weights) {
                        b.dot_to(*a, pair, *w);
                    }
                }
                continue;
            }
            for (row, acc) in set.chunks(vecs).enumerate() {
                let x = b.splat(s.input.at(row as i64).idx(s.idx, 1).off(u * nest.stride));
                for (a, w) in acc.iter().zip(&weights) {
                    b.fma_to(*a, x, *w);
                }
            }
        }
        b.inc(s.w, nest.rows * self.pitch);
    }

    /// Lanes of vector `v` of a tile that are columns of the matrix.
    fn mask(&self, b: &mut Builder, part: Part, v: i64) -> M {
        let n = b.isub(part.valid, v * self.lanes);
        b.tail(n)
    }

    /// Epilogue and stores, the columns beyond `part.valid` masked out if `masked`.
    fn finish(&self, b: &mut Builder, places: &[Rows], sums: Vec<V>, part: Part, masked: bool) {
        let vecs = self.tile.vecs as usize;
        let masks: Vec<_> = (0..vecs as i64).map(|v| masked.then(|| self.mask(b, part, v))).collect();
        let tile = Finish { tiles: self, places, masks: &masks, part, skip: 0 };
        let Some(slice) = self.slice else {
            let sums = epilogue(b, &self.c.post, sums, vecs, &tile);
            return tile.store(b, &sums);
        };
        // Tensors that are added first are added by the first slice: they may lie where it leaves its sums.
        let early = self.c.post.iter().take_while(|p| matches!(p, Post::AddTensor(_))).count();
        // The accumulators themselves take the total: copies would cost registers.
        let total = sums.clone();
        b.if_else(
            ICmp::Eq,
            slice.index,
            0,
            |b| {
                let sums = epilogue(b, &self.c.post[..early], sums.clone(), vecs, &tile);
                for (t, s) in total.iter().zip(sums).filter(|(t, s)| **t != *s) {
                    b.copy_to(*t, s);
                }
            },
            |b| {
                for (i, t) in total.iter().enumerate() {
                    let x = tile.load(b, 0, i);
                    b.bin_to(VBin::Add, *t, *t, x);
                }
            },
        );
        b.if_else(
            ICmp::Eq,
            slice.index,
            slice.last,
            |b| {
                let rest = Finish { skip: early, ..tile };
                let sums = epilogue(b, &self.c.post[early..], total.clone(), vecs, &rest);
                rest.store(b, &sums);
            },
            |b| tile.store(b, &total),
        );
    }

    /// Address of accumulator `i` in output tensor `n`.
    fn element(&self, b: &mut Builder, rows: &Rows, n: usize, i: usize, part: Part) -> Addr {
        let vecs = self.tile.vecs;
        let lane = part.lane + i as i64 % vecs * self.lanes;
        let block = b.imul(self.outputs[n].cols, lane / BLOCK);
        let at = rows.at(i as i64 / vecs).off(lane % BLOCK * 4);
        match block {
            X::C(c) => at.off(c),
            X::R(r) => at.idx(r, 1),
        }
    }
}

/// A tile in its epilogue.
#[derive(Clone, Copy)]
struct Finish<'t> {
    tiles: &'t Gen<'t>,
    places: &'t [Rows],
    masks: &'t [Option<M>],
    part: Part,
    /// Steps of the epilogue that are done already.
    skip: usize,
}

impl Finish<'_> {
    /// The value of output tensor `n` where accumulator `i` goes.
    fn load(&self, b: &mut Builder, n: usize, i: usize) -> V {
        let at = self.tiles.element(b, &self.places[n], n, i, self.part);
        match self.masks[i % self.tiles.tile.vecs as usize] {
            Some(m) => b.load_mask(at, m),
            None => b.load(at),
        }
    }

    fn store(&self, b: &mut Builder, sums: &[V]) {
        for (i, s) in sums.iter().enumerate() {
            let at = self.tiles.element(b, &self.places[0], 0, i, self.part);
            match self.masks[i % self.tiles.tile.vecs as usize] {
                Some(m) => b.store_mask(at, *s, m),
                None => b.store(at, *s),
            }
            if self.tiles.few {
                let zero = b.constant(0.0);
                b.store(at.off(BLOCK_BYTES / 2), zero);
            }
        }
    }
}

impl Operands for Finish<'_> {
    fn tensor(&self, b: &mut Builder, n: usize, i: usize) -> V {
        self.load(b, 1 + n, i)
    }

    fn channels(&self, b: &mut Builder, step: usize, v: usize) -> V {
        let g = self.tiles;
        let base = g.vectors[self.skip + step].unwrap_or(g.channel);
        let at = Addr::from(base).idx(g.channel, 1).off((self.part.lane + v as i64 * g.lanes) * 4);
        match self.masks[v].filter(|_| !g.c.padded) {
            Some(m) => b.load_mask(at, m),
            None => b.load(at),
        }
    }
}

/// What the inner loops read and write.
struct Stream<'t> {
    input: &'t Rows,
    sets: &'t [Vec<V>],
    w: I,
    idx: I,
}
