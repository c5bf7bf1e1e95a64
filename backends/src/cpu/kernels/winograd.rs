//! Convolution by minimal filtering, F(m x m, r x r): see [`nnc_ir::winograd`] for the matrices.
//!
//! The output is cut into tiles of `m` squared pixels. A run of tiles is worked on at once: their input patches are transformed into
//! scratch memory, then for each step of output channels every value of a patch is a matrix product (tiles by input channels by
//! output channels), whose results are transformed back, finished and stored. A run is short enough for patches and products to
//! stay in the second-level cache; the weights are streamed once a run. Padding costs no memory: patches at the border are filled
//! up with zeros when they are read.
//!
//! A task is a lane: it has scratch memory of its own and does a part of all (run, group of output channels) pairs, in order. There are as
//! many lanes as threads, so that scratch memory stays warm and patches are transformed once a thread at most; other tasks have nothing to do.

use super::contract::Place;
use super::conv::Image;
use super::plan::even_split;
use super::post::{Operands, Post, epilogue};
use super::{BLOCK, BLOCK_BYTES, Factor, Kernel, Size, Step, Tasks};
use crate::cpu::isa::Isa;
use crate::cpu::vir::{Addr, Builder, I, ICmp, V, X};
use nnc_ir::error::{Error, Result};
use nnc_ir::winograd::{Form, LANES, Scratch};

mod transform;

/// A convolution of square windows that moves by 1, in the blocked layout.
#[derive(Clone, PartialEq, Debug)]
pub struct Winograd {
    pub name: String,
    pub batch: Size,
    /// Blocks of 16 channels.
    pub in_blocks: i64,
    pub out_blocks: i64,
    /// Input size, without padding.
    pub size: [Size; 2],
    pub out: [Size; 2],
    /// Tiles in each dimension: `out / form.tile`, rounded up.
    pub tiles: [Size; 2],
    /// Padding before the first row and column.
    pub before: [i64; 2],
    pub form: Form,
    /// Tiles worked on at once.
    pub run: i64,
    pub input: Image,
    pub output: Image,
    /// Word of transformed weights: `[out_blocks][side^2][in_blocks][16 in][16 out]`.
    pub weights: u32,
    /// Word of f32[out_blocks * 16].
    pub bias: Option<u32>,
    pub post: Vec<Post>,
    /// Word of the scratch memory of all lanes, and the number of threads that share the tasks.
    pub scratch: u32,
    pub threads: Size,
}

/// Pairs of (run, group of output channels) that one run is split into.
const GROUPS: i64 = 8;

/// What the parts of the generator share.
struct Gen<'w> {
    w: &'w Winograd,
    side: i64,
    /// Output pixels along a side of a tile.
    tile: i64,
    /// Output blocks of a step, vectors of a block.
    step_blocks: i64,
    vecs: i64,
    /// Bytes of a plane of patches and of products.
    patch_plane: i64,
    product_plane: i64,
    patches: I,
    products: I,
    size: [X; 2],
    out: [X; 2],
    tiles: [X; 2],
    transforms: transform::Transforms,
    /// First tile of the run, and how many it has.
    first: X,
    valid: X,
}

/// Where a tile stands: its image, its row and column among tiles.
struct Cursor {
    image: I,
    row: I,
    column: I,
}

/// Generates the kernel: [`LANES`] tasks.
pub fn winograd(w: &Winograd, isa: Isa) -> Result<Kernel> {
    if w.input.pitches.len() != 1 || w.output.pitches.len() != 1 || w.run < 1 {
        return Err(Error::internal(format!("{}: no minimal filtering of this form", w.name)));
    }
    let mut builder = Builder::new(&w.name, isa.lanes());
    let b = &mut builder;
    let (side, tile) = (w.form.side() as i64, w.form.tile as i64);
    let vecs = BLOCK_BYTES / b.width();
    // Tiles by columns of a register tile, as for any contraction.
    let (max_rows, step_blocks) = match isa {
        Isa::Avx2 => (6, 1),
        Isa::Avx512 if w.out_blocks % 2 == 0 => (12, 2),
        Isa::Avx512 => (12, 1),
        Isa::Portable => (3, 1),
    };
    let steps = w.out_blocks / step_blocks;
    let per = (steps + GROUPS - 1) / GROUPS;
    let groups = (steps + per - 1) / per;
    let layout = Scratch::new(w.form, w.run as usize, w.in_blocks as usize);

    let threads = b.size(w.threads);
    let lanes = b.imin(threads, LANES as i64);
    let lanes = b.imax(lanes, 1);
    let task = b.task();
    b.if_(ICmp::Lt, task, lanes, |b| {
        let at = b.imul(task, layout.values() as i64 * 4);
        let scratch = b.word(w.scratch);
        let patches = b.ptr(scratch, at);
        let products = b.ptr(patches, layout.first_product() as i64 * 4);
        let (batch, tiles) = (b.size(w.batch), [b.size(w.tiles[0]), b.size(w.tiles[1])]);
        let total = b.imul(tiles[0], tiles[1]);
        let total = b.imul(total, batch);
        let runs = b.ceil_div(total, w.run);
        let items = b.imul(runs, groups);
        let part = |b: &mut Builder, lane: X| {
            let n = b.imul(items, lane);
            b.idiv(n, lanes)
        };
        let next = b.iadd(task, 1);
        let (from, to) = (part(b, task), part(b, next));
        let mut g = Gen {
            w,
            side,
            tile,
            step_blocks,
            vecs,
            patch_plane: layout.patches as i64 * 4,
            product_plane: layout.products as i64 * 4,
            patches,
            products,
            size: [b.size(w.size[0]), b.size(w.size[1])],
            out: [b.size(w.out[0]), b.size(w.out[1])],
            tiles,
            transforms: transform::Transforms::new(b, w.form),
            first: X::C(0),
            valid: X::C(0),
        };
        let last = b.var(-1);
        b.for_(from, to, 1, |b, item| {
            let (run, group) = b.idivrem(item, groups);
            g.first = b.imul(run, w.run);
            let left = b.isub(total, g.first);
            g.valid = b.imin(left, w.run);
            b.if_(ICmp::Ne, last, run, |b| {
                g.patches(b);
                b.set(last, run);
            });
            let first = b.imul(group, per);
            let end = b.iadd(first, per);
            let end = b.imin(end, steps);
            b.for_(first, end, 1, |b, step| {
                g.multiply(b, step, max_rows);
                g.results(b, step);
            });
        });
    });
    Ok(Kernel { func: builder.finish(), tasks: Tasks(vec![Factor::Size(Size::Const(LANES as i64))]) })
}

impl Gen<'_> {
    /// Calls `body` for each tile of the run with its number in the run.
    fn tiles(&self, b: &mut Builder, body: impl FnOnce(&mut Builder, I, &Cursor)) {
        let (q, column) = b.idivrem(self.first, self.tiles[1]);
        let (image, row) = b.idivrem(q, self.tiles[0]);
        let c = Cursor { image: b.var(image), row: b.var(row), column: b.var(column) };
        b.for_(0, self.valid, 1, |b, tile| {
            body(b, tile, &c);
            b.inc(c.column, 1);
            b.if_(ICmp::Eq, c.column, self.tiles[1], |b| {
                b.set(c.column, 0);
                b.inc(c.row, 1);
                b.if_(ICmp::Eq, c.row, self.tiles[0], |b| {
                    b.set(c.row, 0);
                    b.inc(c.image, 1);
                });
            });
        });
    }

    /// Transforms the input patches of the run.
    fn patches(&self, b: &mut Builder) {
        let (w, side) = (self.w, self.side);
        let base = b.word(w.input.word);
        let origin = b.step(Step::floats(w.input.origin, 1));
        let base = b.ptr(base, origin);
        let pitch = b.step(Step::floats(w.input.pitches[0], 1));
        let plane = b.step(Step::floats(w.input.plane, 1));
        let line = side * BLOCK_BYTES;
        let frame = b.frame((side * line) as u32);
        self.tiles(b, |b, tile, c| {
            let corner = |b: &mut Builder, at: I, before: i64| {
                let at = b.imul(at, self.tile);
                b.isub(at, before)
            };
            let (y, x) = (corner(b, c.row, w.before[0]), corner(b, c.column, w.before[1]));
            let place = [(X::R(c.image), Step::floats(w.input.image, 1)), (y, Step::floats(w.input.pitches[0], 1)), (x, Step::bytes(BLOCK_BYTES))];
            let from = b.element(base, &place);
            let from = b.var(from);
            let to = b.imul(tile, BLOCK_BYTES);
            let to = b.iadd(self.patches, to);
            let to = b.var(to);
            // How far the patch stays inside the image on its nearest side.
            let (down, right) = (b.isub(self.size[0], side), b.isub(self.size[1], side));
            let (down, right) = (b.isub(down, y), b.isub(right, x));
            let near = [x, down, right].into_iter().fold(y, |n, d| b.imin(n, d));
            b.if_else(
                ICmp::Ge,
                near,
                0,
                |b| {
                    b.times(w.in_blocks, |b| {
                        let mut rows = vec![from];
                        if let X::R(_) = pitch {
                            for _ in 1..side {
                                let next = b.ptr(rows[rows.len() - 1], pitch);
                                rows.push(next);
                            }
                        }
                        self.patch(b, to, |b, i, j, off| {
                            let at = match pitch {
                                X::C(p) => Addr::from(from).off(i * p),
                                X::R(_) => Addr::from(rows[i as usize]),
                            };
                            b.load(at.off(j * BLOCK_BYTES + off))
                        });
                        b.inc(from, plane);
                        b.inc(to, w.run * BLOCK_BYTES);
                    });
                },
                |b| {
                    let zero = b.constant(0.0);
                    for off in (0..side * line).step_by(b.width() as usize) {
                        b.store(Addr::from(frame).off(off), zero);
                    }
                    let inside = |b: &mut Builder, at: X, size: X| {
                        let lo = b.isub(0, at);
                        let lo = b.imax(lo, 0);
                        let hi = b.isub(size, at);
                        (lo, b.imin(hi, side))
                    };
                    let (rows, columns) = (inside(b, y, self.size[0]), inside(b, x, self.size[1]));
                    b.times(w.in_blocks, |b| {
                        b.for_(rows.0, rows.1, 1, |b, i| {
                            let skip = b.imul(i, pitch);
                            let (source, skip) = (b.ptr(from, skip), b.imul(i, line));
                            let target = b.ptr(frame, skip);
                            b.for_(columns.0, columns.1, 1, |b, j| {
                                let at = b.imul(j, BLOCK_BYTES);
                                let at = b.reg(at);
                                for off in (0..BLOCK_BYTES).step_by(b.width() as usize) {
                                    let v = b.load(Addr::from(source).idx(at, 1).off(off));
                                    b.store(Addr::from(target).idx(at, 1).off(off), v);
                                }
                            });
                        });
                        self.patch(b, to, |b, i, j, off| b.load(Addr::from(frame).off(i * line + j * BLOCK_BYTES + off)));
                        b.inc(from, plane);
                        b.inc(to, w.run * BLOCK_BYTES);
                    });
                },
            );
        });
    }

    /// Transforms a patch of one block of channels and stores its values, a plane apart. `load` reads row, column, byte of the block.
    fn patch(&self, b: &mut Builder, to: I, load: impl Fn(&mut Builder, i64, i64, i64) -> V) {
        let (side, t) = (self.side, &self.transforms);
        for v in 0..self.vecs {
            let off = v * b.width();
            for group in t.groups() {
                let rows: Vec<Vec<(usize, V)>> = (0..side).map(|i| t.input(b, group, |b, j| load(b, i, j as i64, off))).collect();
                for (n, j) in rows[0].iter().map(|r| r.0 as i64).enumerate() {
                    for group in t.groups() {
                        for (i, v) in t.input(b, group, |_, i| rows[i][n].1) {
                            b.store(Addr::from(to).off((i as i64 * side + j) * self.patch_plane + off), v);
                        }
                    }
                }
            }
        }
    }

    /// The products of one step of output channels.
    fn multiply(&self, b: &mut Builder, step: I, max_rows: i64) {
        let w = self.w;
        let panel = w.in_blocks * BLOCK * BLOCK_BYTES;
        let planes = self.side * self.side;
        let base = b.word(w.weights);
        let skip = b.imul(step, planes * panel * self.step_blocks);
        let weights = b.iadd(base, skip);
        let (weights, patches, products) = (b.var(weights), b.var(self.patches), b.var(self.products));
        let split = even_split(w.run, max_rows);
        // All register tiles of a panel together fetch the next one.
        let ahead = (BLOCK + split.tiles - 1) / split.tiles;
        b.for_(0, planes, 1, |b, _| {
            let next = b.ptr(weights, panel);
            let next = b.var(next);
            let (from, to) = (b.var(patches), b.var(products));
            let done = b.var(0);
            for (count, rows) in [(split.larger, split.high), (split.tiles - split.larger, split.low)] {
                b.times(count, |b| {
                    b.if_(ICmp::Gt, self.valid, done, |b| self.product(b, rows, from, weights, to, (next, ahead)));
                    b.inc(from, rows * BLOCK_BYTES);
                    b.inc(to, rows * BLOCK_BYTES);
                    b.inc(done, rows);
                });
            }
            b.inc(weights, panel);
            b.inc(patches, self.patch_plane);
            b.inc(products, self.product_plane);
        });
    }

    /// One register tile: `rows` tiles of the run by the columns of a step.
    fn product(&self, b: &mut Builder, rows: i64, from: I, weights: I, to: I, (next, ahead): (I, i64)) {
        let w = self.w;
        let width = b.width();
        let apart = self.side * self.side * w.in_blocks * BLOCK * BLOCK_BYTES;
        let columns: Vec<(i64, i64)> = (0..self.step_blocks).flat_map(|s| (0..self.vecs).map(move |v| (s, v * width))).collect();
        let sums: Vec<V> = (0..rows as usize * columns.len()).map(|_| b.constant(0.0)).collect();
        let (x, w_at) = (b.var(from), b.var(weights));
        b.times(w.in_blocks, |b| {
            for u in 0..BLOCK {
                if u < ahead {
                    for s in 0..self.step_blocks {
                        b.prefetch(Addr::from(next).off(s * apart), false);
                    }
                    b.inc(next, 64);
                }
                let row: Vec<V> = columns.iter().map(|(s, v)| b.load(Addr::from(w_at).off(s * apart + v + u * BLOCK_BYTES))).collect();
                for (r, sums) in sums.chunks(columns.len()).enumerate() {
                    let v = b.splat(Addr::from(x).off(r as i64 * BLOCK_BYTES + u * 4));
                    for (sum, weight) in sums.iter().zip(&row) {
                        b.fma_to(*sum, v, *weight);
                    }
                }
            }
            b.inc(x, w.run * BLOCK_BYTES);
            b.inc(w_at, BLOCK * BLOCK_BYTES);
        });
        for (r, sums) in sums.chunks(columns.len()).enumerate() {
            for (sum, (s, v)) in sums.iter().zip(&columns) {
                b.store(Addr::from(to).off((s * w.run + r as i64) * BLOCK_BYTES + v), *sum);
            }
        }
    }

    /// Transforms the products of a step back, finishes and stores them.
    fn results(&self, b: &mut Builder, step: I) {
        let (w, m) = (self.w, self.tile);
        let first_block = b.imul(step, self.step_blocks);
        let channel = b.imul(first_block, BLOCK_BYTES);
        let channel = b.var(channel);
        let mut places = vec![w.output.output_place(w.out_blocks)];
        let mut vectors = vec![];
        for p in &w.post {
            vectors.push(match p {
                Post::AddTensor(t) => {
                    places.push(t.clone());
                    None
                }
                Post::MulChannel(v) | Post::AddChannel(v) => Some(*v),
                Post::Act(_) => None,
            });
        }
        let whole = [0, 1].map(|d| matches!(w.out[d], Size::Const(n) if n % m == 0));
        let frame = b.frame((m * m * b.width()) as u32);
        self.tiles(b, |b, tile, c| {
            let (y, x) = (b.imul(c.row, m), b.imul(c.column, m));
            let at = b.imul(tile, BLOCK_BYTES);
            let at = b.iadd(self.products, at);
            let at = b.var(at);
            let pointers: Vec<I> = places
                .iter()
                .map(|p| {
                    let base = b.word(p.word);
                    let origin = b.step(p.origin);
                    let base = b.ptr(base, origin);
                    let p = b.element(base, &[(X::R(c.image), p.batch[0]), (first_block, p.cols), (y, p.pixels[0]), (x, p.pixels[1])]);
                    b.var(p)
                })
                .collect();
            let left = |b: &mut Builder, d: usize, at: X| {
                if whole[d] {
                    return X::C(m);
                }
                let n = b.isub(self.out[d], at);
                b.imin(n, m)
            };
            let (rows, columns) = (left(b, 0, y), left(b, 1, x));
            let offset = b.var(channel);
            b.times(self.step_blocks, |b| {
                for v in 0..self.vecs {
                    let off = v * b.width();
                    let values = Values { gen_: self, places: &places, pointers: &pointers, vectors: &vectors, channel: offset, off };
                    let store = |b: &mut Builder, i: i64, j: i64, x: V| {
                        let at = values.place(b, 0, i, j);
                        b.store(at, x);
                    };
                    let finish = |b: &mut Builder, partial: bool| {
                        self.tile(b, at, offset, off, |b, j, ys| {
                            if partial {
                                for (i, y) in ys.iter().enumerate() {
                                    b.store(Addr::from(frame).off((i as i64 * m + j) * b.width()), *y);
                                }
                                return;
                            }
                            let ys = epilogue(b, &w.post, ys, 1, &Column { values: &values, column: j });
                            for (i, y) in ys.into_iter().enumerate() {
                                store(b, i as i64, j, y);
                            }
                        });
                    };
                    let cut = |b: &mut Builder| {
                        finish(b, true);
                        for i in 0..m {
                            b.if_(ICmp::Gt, rows, i, |b| {
                                for j in 0..m {
                                    b.if_(ICmp::Gt, columns, j, |b| {
                                        let y = b.load(Addr::from(frame).off((i * m + j) * b.width()));
                                        let y = epilogue(b, &w.post, vec![y], 1, &Pixel { values: &values, at: (i, j) });
                                        store(b, i, j, y[0]);
                                    });
                                }
                            });
                        }
                    };
                    // The smaller of what is left is a whole tile or not.
                    let least = b.imin(rows, columns);
                    b.if_else(ICmp::Ge, least, m, |b| finish(b, false), cut);
                }
                b.inc(at, w.run * BLOCK_BYTES);
                b.inc(offset, BLOCK_BYTES);
                for (p, place) in pointers.iter().zip(&places) {
                    let step = b.step(place.cols);
                    b.inc(*p, step);
                }
            });
        });
    }

    /// The pixels of a tile in one vector of channels, a column at a time, with the bias.
    fn tile(&self, b: &mut Builder, at: I, channel: I, off: i64, mut each: impl FnMut(&mut Builder, i64, Vec<V>)) {
        let (side, m) = (self.side, self.tile);
        let rows: Vec<Vec<V>> = (0..side)
            .map(|i| {
                let mut row: Vec<V> = (0..side).map(|j| b.load(Addr::from(at).off((i * side + j) * self.product_plane + off))).collect();
                // The value at the point 1 in both directions adds to every pixel of the tile alike.
                if let (1, Some(bias)) = (i, self.w.bias) {
                    let bias = b.word(bias);
                    let bias = b.load(Addr::from(bias).idx(channel, 1).off(off));
                    row[1] = b.add(row[1], bias);
                }
                self.transforms.output(b, &row)
            })
            .collect();
        for j in 0..m {
            let column: Vec<V> = rows.iter().map(|r| r[j as usize]).collect();
            let ys = self.transforms.output(b, &column);
            each(b, j, ys);
        }
    }
}

/// What the epilogue of a tile reads, at one vector of channels.
struct Values<'a> {
    gen_: &'a Gen<'a>,
    /// The output, then the tensors that are added.
    places: &'a [Place],
    pointers: &'a [I],
    /// Words of vectors of channels, by the steps of the epilogue.
    vectors: &'a [Option<u32>],
    channel: I,
    off: i64,
}

impl Values<'_> {
    /// Pixel `i`, `j` of the tile in tensor `n`.
    fn place(&self, b: &mut Builder, n: usize, i: i64, j: i64) -> Addr {
        let pitch = b.step(self.places[n].pixels[0]);
        let row = b.imul(pitch, i);
        let at = Addr::from(self.pointers[n]).off(j * BLOCK_BYTES + self.off);
        match row {
            X::C(c) => at.off(c),
            X::R(r) => at.idx(r, 1),
        }
    }

    fn tensor(&self, b: &mut Builder, n: usize, i: i64, j: i64) -> V {
        let at = self.place(b, 1 + n, i, j);
        b.load(at)
    }

    fn channels(&self, b: &mut Builder, step: usize) -> V {
        debug_assert!(self.gen_.w.post.len() == self.vectors.len());
        let base = self.vectors[step].map_or(self.channel, |w| b.word(w));
        b.load(Addr::from(base).idx(self.channel, 1).off(self.off))
    }
}

/// A column of a tile in its epilogue.
struct Column<'a> {
    values: &'a Values<'a>,
    column: i64,
}

impl Operands for Column<'_> {
    fn tensor(&self, b: &mut Builder, n: usize, i: usize) -> V {
        self.values.tensor(b, n, i as i64, self.column)
    }

    fn channels(&self, b: &mut Builder, step: usize, _: usize) -> V {
        self.values.channels(b, step)
    }
}

/// A single pixel of a tile in its epilogue.
struct Pixel<'a> {
    values: &'a Values<'a>,
    at: (i64, i64),
}

impl Operands for Pixel<'_> {
    fn tensor(&self, b: &mut Builder, n: usize, _: usize) -> V {
        self.values.tensor(b, n, self.at.0, self.at.1)
    }

    fn channels(&self, b: &mut Builder, step: usize, _: usize) -> V {
        self.values.channels(b, step)
    }
}
