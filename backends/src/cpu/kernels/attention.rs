//! Attention, a block of keys after the other: no matrix of scores is ever in memory.
//!
//! Lanes are queries. The queries of a task are turned once, so that lane `i` of vector `d` is element `d` of query `i`; keys and values
//! are read as they lie, element by element for all lanes. For each block of keys the scores go to the function's own memory, become
//! shares there relative to the greatest score so far, and the sums of values so far are scaled down where that has grown. Everything
//! about a row of scores is then arithmetic between whole vectors.
//!
//! A task is (batch index, chunk of queries).

use super::plan::even_split;
use super::{BLOCK, Factor, Kernel, Size, Step, Tasks, math};
use crate::cpu::isa::Isa;
use crate::cpu::vir::{Addr, Builder, I, ICmp, M, V, VBin, X};
use nnc_ir::error::{Error, Result};

/// What is added to the scores. Distances in f32 values.
#[derive(Clone, PartialEq, Debug)]
pub struct Mask {
    pub word: u32,
    /// From one index of each dimension of the batch to the next; 0 repeats.
    pub batch: Vec<Size>,
    /// From key to key.
    pub key: Size,
    /// Whether queries lie side by side; else one number is for all of them.
    pub per_query: bool,
}

/// `softmax(q k^T * scale + mask) v` over dense `q [batch][queries][depth]`, `k [batch][keys][depth]`, `v [batch][keys][width]` and
/// `y [batch][queries][width]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    pub name: String,
    /// Dimensions of the batch, outermost first; at least one.
    pub batch: Vec<Size>,
    pub queries: Size,
    pub keys: Size,
    pub depth: i64,
    pub width: i64,
    pub scale: f32,
    /// Words of the operands and of the result.
    pub q: u32,
    pub k: u32,
    pub v: u32,
    pub y: u32,
    pub mask: Option<Mask>,
}

/// Keys of a block: with the widest vectors their scores take half of the first-level cache.
const KEYS: i64 = 128;
/// The longest rows of keys and of values: what a task keeps of its queries and sums stays in the first-level cache, and on the stack.
const MAX_ROW: i64 = 128;
/// Keys that are unrolled where values are summed.
const UNROLL: i64 = 4;

/// Registers that live through a task, and the shape of its tiles.
struct Gen<'a> {
    a: &'a Attention,
    lanes: i64,
    /// Most rows of a register tile: keys where scores are made, elements of values where these are summed.
    most_rows: i64,
    /// Keys of a tile.
    rows: i64,
    /// Keys of a block.
    block: i64,
    keys: X,
    q: I,
    k: I,
    v: I,
    y: I,
    mask: Option<I>,
    /// Bytes from key to key of the mask.
    mask_step: X,
    /// Queries from the first of the task on.
    left: X,
    /// In the function's memory: turned queries, scores, sums of values, and the state of each query.
    turned: I,
    scores: I,
    sums: I,
    state: I,
}

/// Vectors of state for each vector of queries.
#[derive(Clone, Copy)]
enum State {
    /// The greatest score so far, and before this block.
    Most,
    Before,
    /// The sum of shares.
    Sum,
    /// What sums so far are multiplied with.
    Shrink,
}

/// Generates the kernel.
pub fn attention(a: &Attention, isa: Isa) -> Result<Kernel> {
    let fits = |n: i64| n > 0 && n <= MAX_ROW && n % BLOCK == 0;
    if !fits(a.depth) || !fits(a.width) {
        return Err(Error::unsupported(format!("{}: rows of keys or values that are no whole blocks, or longer than {MAX_ROW}", a.name)));
    }
    if a.batch.is_empty() || matches!(a.keys, Size::Const(..=0)) || matches!(a.queries, Size::Const(..=0)) {
        return Err(Error::unsupported(format!("{}: nothing to compute", a.name)));
    }
    let lanes = isa.lanes() as i64;
    let most_rows = match isa {
        Isa::Avx512 => 12,
        Isa::Avx2 => 6,
        Isa::Portable => 5,
    };
    // Blocks and tiles of the same size waste least.
    let (block, rows) = match a.keys {
        Size::Const(n) => {
            let block = even_split(n, KEYS).high;
            (block, even_split(block, most_rows).high)
        }
        Size::Arg(_) => (KEYS / most_rows * most_rows, most_rows),
    };
    let wide = VECTORS * lanes;
    let mut builder = Builder::new(&a.name, isa.lanes());
    let b = &mut builder;
    let (queries, keys) = (b.size(a.queries), b.size(a.keys));
    let chunks = b.ceil_div(queries, wide);
    let (matrix, chunk) = b.idivrem(b.task(), chunks);
    let first = b.imul(chunk, wide);
    let left = b.isub(queries, first);
    let start = |b: &mut Builder, word: u32, rows: Size, row: i64, skip: X| {
        let base = b.word(word);
        b.element(base, &[(matrix, Step::floats(rows, row)), (skip, Step::bytes(row * 4))])
    };
    let (q, y) = (start(b, a.q, a.queries, a.depth, first), start(b, a.y, a.queries, a.width, first));
    let (k, v) = (start(b, a.k, a.keys, a.depth, X::C(0)), start(b, a.v, a.keys, a.width, X::C(0)));
    let mask = a.mask.as_ref().map(|m| {
        let mut at = Vec::new();
        let mut rest = matrix;
        for (n, step) in a.batch.iter().zip(&m.batch).skip(1).rev() {
            let n = b.size(*n);
            let (q, r) = b.idivrem(rest, n);
            at.push((r, Step::floats(*step, 1)));
            rest = q;
        }
        at.push((rest, Step::floats(m.batch[0], 1)));
        at.push((first, Step::bytes(if m.per_query { 4 } else { 0 })));
        let base = b.word(m.word);
        b.element(base, &at)
    });
    let mask_step = a.mask.as_ref().map_or(X::C(0), |m| b.step(Step::floats(m.key, 1)));
    let frame = |b: &mut Builder, vectors: i64| b.frame((vectors * wide * 4) as u32);
    let (turned, scores, sums, state) = (frame(b, a.depth), frame(b, block), frame(b, a.width), frame(b, 4));
    let g = Gen { a, lanes, most_rows, rows, block, keys, q, k, v, y, mask, mask_step, left, turned, scores, sums, state };
    // The last chunk is masked, and narrow where half the lanes are enough.
    let cut = |b: &mut Builder| match a.queries {
        Size::Const(n) if n % wide > lanes => g.chunk(b, VECTORS, true),
        Size::Const(_) => g.chunk(b, 1, true),
        Size::Arg(_) => b.if_else(ICmp::Le, left, lanes, |b| g.chunk(b, 1, true), |b| g.chunk(b, VECTORS, true)),
    };
    match a.queries {
        Size::Const(n) if n % wide == 0 => g.chunk(b, VECTORS, false),
        Size::Const(n) if n < wide => cut(b),
        _ => b.if_else(ICmp::Ge, left, wide, |b| g.chunk(b, VECTORS, false), cut),
    }
    let mut tasks: Vec<Factor> = a.batch.iter().map(|s| Factor::Size(*s)).collect();
    tasks.push(Factor::Chunks { of: vec![a.queries], per: wide });
    Ok(Kernel { func: builder.finish(), tasks: Tasks(tasks) })
}

/// Vectors of queries of a chunk.
const VECTORS: i64 = 2;

impl Gen<'_> {
    fn state(&self, s: State, v: i64) -> Addr {
        Addr::from(self.state).off((s as i64 * VECTORS + v) * self.lanes * 4)
    }

    /// Bytes of one element of `vecs` vectors of queries.
    fn pitch(&self, vecs: i64) -> i64 {
        vecs * self.lanes * 4
    }

    /// `vecs` vectors of queries; if `cut`, only the first `left` of them are there.
    fn chunk(&self, b: &mut Builder, vecs: i64, cut: bool) {
        self.turn(b, vecs, cut);
        // Below any number that is not infinite: keys that are masked out must not give a difference of infinities.
        let (lowest, zero) = (b.constant(f32::MIN), b.constant(0.0));
        // Without any key the result is 0, as an empty sum is.
        let sum = b.constant(0.0);
        b.if_(ICmp::Eq, self.keys, 0, |b| {
            let one = b.constant(1.0);
            b.copy_to(sum, one);
        });
        for v in 0..vecs {
            b.store(self.state(State::Most, v), lowest);
            b.store(self.state(State::Sum, v), sum);
        }
        b.for_(0, self.a.width * self.pitch(vecs), b.width(), |b, at| b.store(Addr::from(self.sums).idx(at, 1), zero));
        b.for_(0, self.keys, self.block, |b, from| {
            let rest = b.isub(self.keys, from);
            let n = b.imin(rest, self.block);
            self.scores(b, vecs, cut, from, n);
            self.shares(b, vecs, n);
            self.values(b, vecs, from, n);
        });
        self.finish(b, vecs, cut);
    }

    /// Turns the queries, scaled.
    fn turn(&self, b: &mut Builder, vecs: i64, cut: bool) {
        let (lanes, row, pitch) = (self.lanes, self.a.depth * 4, self.pitch(vecs));
        let last = b.isub(self.left, 1);
        for v in 0..vecs {
            let to = b.var(self.turned);
            b.for_(0, row, lanes * 4, |b, at| {
                let square: Vec<V> = (v * lanes..(v + 1) * lanes)
                    .map(|i| {
                        let from = match cut {
                            false => Addr::from(self.q).off(i * row),
                            // What is beyond the last query repeats it.
                            true => {
                                let i = b.imin(last, i);
                                let skip = b.imul(i, row);
                                Addr::from(b.ptr(self.q, skip))
                            }
                        };
                        b.load(from.idx(at, 1))
                    })
                    .collect();
                for (d, x) in b.transpose(&square).into_iter().enumerate() {
                    let x = if self.a.scale == 1.0 { x } else { b.mul(x, self.a.scale) };
                    b.store(Addr::from(to).off(d as i64 * pitch + v * lanes * 4), x);
                }
                b.inc(to, lanes * pitch);
            });
        }
    }

    /// Scores of the `n` keys from `from` on, and the greatest so far.
    fn scores(&self, b: &mut Builder, vecs: i64, cut: bool, from: I, n: X) {
        for v in 0..vecs {
            let most = b.load(self.state(State::Most, v));
            b.store(self.state(State::Before, v), most);
        }
        let masks: Vec<Option<M>> = (0..vecs)
            .map(|v| {
                cut.then(|| {
                    let n = b.isub(self.left, v * self.lanes);
                    let n = b.imax(n, 0);
                    let n = b.imin(n, self.lanes);
                    b.tail(n)
                })
            })
            .collect();
        let tile = |b: &mut Builder, rows: i64, key: X| {
            let skip = b.iadd(from, key);
            let bytes = b.imul(skip, self.a.depth * 4);
            let keys = b.ptr(self.k, bytes);
            let bytes = b.imul(key, self.pitch(vecs));
            let to = b.ptr(self.scores, bytes);
            let mask = self.mask.map(|m| {
                let bytes = b.imul(skip, self.mask_step);
                b.ptr(m, bytes)
            });
            self.score_tile(b, vecs, rows, keys, to, mask, &masks);
        };
        let tiles = |b: &mut Builder| {
            // The last tile ends with the block: what it does twice comes to the same.
            let count = b.ceil_div(n, self.rows);
            let last = b.isub(n, self.rows);
            b.for_(0, count, 1, |b, i| {
                let key = b.imul(i, self.rows);
                let key = b.imin(key, last);
                tile(b, self.rows, key);
            });
        };
        match self.a.keys {
            Size::Const(_) => tiles(b),
            Size::Arg(_) => b.if_else(ICmp::Ge, n, self.rows, tiles, |b| b.for_(0, n, 1, |b, key| tile(b, 1, X::R(key)))),
        }
    }

    /// Scores of `rows` keys.
    #[allow(clippy::too_many_arguments)]
    fn score_tile(&self, b: &mut Builder, vecs: i64, rows: i64, keys: I, to: I, mask: Option<I>, masks: &[Option<M>]) {
        let (lanes, pitch, row) = (self.lanes, self.pitch(vecs), self.a.depth * 4);
        let acc: Vec<V> = (0..rows * vecs).map(|_| b.constant(0.0)).collect();
        let (k, q) = (b.var(keys), b.var(self.turned));
        b.times(self.a.depth / BLOCK, |b| {
            for u in 0..BLOCK {
                let q: Vec<V> = (0..vecs).map(|v| b.load(Addr::from(q).off(u * pitch + v * lanes * 4))).collect();
                for (r, acc) in acc.chunks(vecs as usize).enumerate() {
                    let x = b.splat(Addr::from(k).off(r as i64 * row + u * 4));
                    acc.iter().zip(&q).for_each(|(a, q)| b.fma_to(*a, x, *q));
                }
            }
            b.inc(k, BLOCK * 4);
            b.inc(q, BLOCK * pitch);
        });
        let per_query = self.a.mask.as_ref().is_some_and(|m| m.per_query);
        if let Some(mask) = mask {
            let at = b.var(mask);
            for acc in acc.chunks(vecs as usize) {
                for (v, a) in acc.iter().enumerate() {
                    let from = Addr::from(at).off(if per_query { v as i64 * lanes * 4 } else { 0 });
                    let m = match masks[v] {
                        _ if !per_query => b.splat(from),
                        Some(m) => b.load_mask(from, m),
                        None => b.load(from),
                    };
                    b.bin_to(VBin::Add, *a, *a, m);
                }
                b.inc(at, self.mask_step);
            }
        }
        for v in 0..vecs as usize {
            let most = b.load(self.state(State::Most, v as i64));
            // A NaN that the maximum drops comes back through exp(NaN - most).
            acc.iter().skip(v).step_by(vecs as usize).for_each(|x| b.bin_to(VBin::Max, most, *x, most));
            b.store(self.state(State::Most, v as i64), most);
        }
        for (i, x) in acc.iter().enumerate() {
            b.store(Addr::from(to).off(i as i64 * lanes * 4), *x);
        }
    }

    /// Scores become shares; sums so far are to shrink as the greatest score has grown.
    fn shares(&self, b: &mut Builder, vecs: i64, n: X) {
        let pitch = self.pitch(vecs);
        let state: Vec<(V, V)> = (0..vecs)
            .map(|v| {
                let (most, before) = (b.load(self.state(State::Most, v)), b.load(self.state(State::Before, v)));
                let grown = b.sub(before, most);
                let shrink = math::share(b, grown);
                b.store(self.state(State::Shrink, v), shrink);
                let sum = b.load(self.state(State::Sum, v));
                b.bin_to(VBin::Mul, sum, sum, shrink);
                (most, sum)
            })
            .collect();
        let end = b.imul(n, pitch);
        b.for_(0, end, pitch, |b, at| {
            for (v, (most, sum)) in state.iter().enumerate() {
                let place = Addr::from(self.scores).idx(at, 1).off(v as i64 * self.lanes * 4);
                let x = b.load(place);
                let d = b.sub(x, *most);
                let e = math::share(b, d);
                b.bin_to(VBin::Add, *sum, *sum, e);
                b.store(place, e);
            }
        });
        for (v, (_, sum)) in state.iter().enumerate() {
            b.store(self.state(State::Sum, v as i64), *sum);
        }
    }

    /// Adds the values of the `n` keys from `from` on, each by its shares.
    fn values(&self, b: &mut Builder, vecs: i64, from: I, n: X) {
        let skip = b.imul(from, self.a.width * 4);
        let values = b.ptr(self.v, skip);
        let (values, sums) = (b.var(values), b.var(self.sums));
        let split = even_split(self.a.width, self.most_rows);
        for (count, rows) in [(split.larger, split.high), (split.tiles - split.larger, split.low)] {
            b.times(count, |b| {
                self.value_tile(b, vecs, rows, values, sums, n);
                b.inc(values, rows * 4);
                b.inc(sums, rows * self.pitch(vecs));
            });
        }
    }

    /// Sums of `rows` elements of the values.
    fn value_tile(&self, b: &mut Builder, vecs: i64, rows: i64, values: I, sums: I, n: X) {
        let (lanes, pitch, row) = (self.lanes, self.pitch(vecs), self.a.width * 4);
        let shrink: Vec<V> = (0..vecs).map(|v| b.load(self.state(State::Shrink, v))).collect();
        let place = |i: usize| Addr::from(sums).off(i as i64 * lanes * 4);
        let acc: Vec<V> = (0..(rows * vecs) as usize)
            .map(|i| {
                let x = b.load(place(i));
                b.bin_to(VBin::Mul, x, x, shrink[i % vecs as usize]);
                x
            })
            .collect();
        let (v, s) = (b.var(values), b.var(self.scores));
        let key = |b: &mut Builder, u: i64| {
            let shares: Vec<V> = (0..vecs).map(|l| b.load(Addr::from(s).off(u * pitch + l * lanes * 4))).collect();
            for (r, acc) in acc.chunks(vecs as usize).enumerate() {
                let x = b.splat(Addr::from(v).off(u * row + r as i64 * 4));
                acc.iter().zip(&shares).for_each(|(a, s)| b.fma_to(*a, x, *s));
            }
        };
        let (full, rest) = b.idivrem(n, UNROLL);
        for (count, keys) in [(full, UNROLL), (rest, 1)] {
            b.times(count, |b| {
                (0..keys).for_each(|u| key(b, u));
                b.inc(v, keys * row);
                b.inc(s, keys * pitch);
            });
        }
        for (i, x) in acc.iter().enumerate() {
            b.store(place(i), *x);
        }
    }

    /// Divides by the sums of shares, turns back and stores.
    fn finish(&self, b: &mut Builder, vecs: i64, cut: bool) {
        let (lanes, row, pitch) = (self.lanes, self.a.width * 4, self.pitch(vecs));
        for v in 0..vecs {
            let sum = b.load(self.state(State::Sum, v));
            let one = b.constant(1.0);
            let by = b.div(one, sum);
            let from = b.var(self.sums);
            b.for_(0, row, lanes * 4, |b, at| {
                let square: Vec<V> = (0..lanes)
                    .map(|e| {
                        let x = b.load(Addr::from(from).off(e * pitch + v * lanes * 4));
                        b.mul(x, by)
                    })
                    .collect();
                for (i, x) in (v * lanes..).zip(b.transpose(&square)) {
                    let to = Addr::from(self.y).idx(at, 1).off(i * row);
                    match cut {
                        true => b.if_(ICmp::Gt, self.left, i, |b| b.store(to, x)),
                        false => b.store(to, x),
                    }
                }
                b.inc(from, lanes * pitch);
            });
        }
    }
}
