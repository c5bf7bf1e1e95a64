//! Changes of layout: plain NCHW to blocked NCHWc16 and back, packing of a matrix that is not constant, zero halos.
//!
//! A plain image may be any rows: a matrix `[N][K]` is `N` channels of `K` pixels, and blocked it is the packed `B` of a product.

use super::conv::Image;
use super::{BLOCK, BLOCK_BYTES, Factor, Kernel, Size, Step, Tasks};
use crate::cpu::isa::Isa;
use crate::cpu::vir::{Addr, Builder, I, ICmp, V, X};
use nnc_ir::error::{Error, Result};

/// A change of layout of `batch` images. Both images have one pitch for each spatial dimension but the last.
#[derive(Clone, PartialEq, Debug)]
pub struct Reorder {
    pub name: String,
    pub batch: Size,
    /// Channels of the plain image; the blocked one has them padded to 16.
    pub channels: Size,
    pub spatial: Vec<Size>,
    pub plain: Image,
    pub blocked: Image,
}

/// Makes rows that follow each other without gaps in both images into one.
fn merge(r: &Reorder) -> Reorder {
    let mut r = r.clone();
    while let [.., Size::Const(outer), Size::Const(inner)] = r.spatial[..] {
        let dense = |image: &Image, unit: i64| image.pitches.last() == Some(&Size::Const(inner * unit));
        if !dense(&r.plain, 1) || !dense(&r.blocked, BLOCK) {
            break;
        }
        r.spatial.pop();
        if let Some(last) = r.spatial.last_mut() {
            *last = Size::Const(outer * inner);
        }
        // The innermost dimension's neighbours are implied.
        r.plain.pitches.pop();
        r.blocked.pitches.pop();
    }
    r
}

/// Pixels of a row that one task does: enough to be worth a launch, few enough to share.
const ROW: i64 = 1024;

/// The task's rows and the channels they are for.
struct Rows {
    plain: I,
    blocked: I,
    plain_plane: X,
    /// Channels of this block that the plain image has.
    channels: X,
    pixels: X,
}

/// Generates the loops both directions share: a task is (image, block of channels, row, piece of 1024 pixels of it).
fn generate(r: &Reorder, isa: Isa, body: impl Fn(&mut Builder, &Rows)) -> Result<Kernel> {
    if r.spatial.is_empty() || r.plain.pitches.len() + 1 != r.spatial.len() || r.blocked.pitches.len() + 1 != r.spatial.len() {
        return Err(Error::internal(format!("{}: ranks differ", r.name)));
    }
    let r = merge(r);
    let mut builder = Builder::new(&r.name, isa.lanes());
    let b = &mut builder;
    let (last, outer) = (r.spatial[r.spatial.len() - 1], &r.spatial[..r.spatial.len() - 1]);
    let width = b.size(last);
    let pieces = b.ceil_div(width, ROW);
    let (mut t, piece) = b.idivrem(b.task(), pieces);
    let mut rows = Vec::new();
    for (n, s) in outer.iter().enumerate().rev() {
        let s = b.size(*s);
        let (q, at) = b.idivrem(t, s);
        rows.push((n, at));
        t = q;
    }
    let channels = b.size(r.channels);
    let blocks = b.ceil_div(channels, BLOCK);
    let (image, block) = b.idivrem(t, blocks);
    let from = b.imul(piece, ROW);
    let start = |b: &mut Builder, i: &Image, unit: i64, planes: i64| {
        let base = b.word(i.word);
        let mut at = vec![(image, Step::floats(i.image, 1)), (block, Step::floats(i.plane, planes)), (X::C(1), Step::floats(i.origin, 1))];
        at.extend(rows.iter().map(|(n, x)| (*x, Step::floats(i.pitches[*n], 1))));
        at.push((from, Step::bytes(4 * unit)));
        b.element(base, &at)
    };
    let (plain, blocked) = (start(b, &r.plain, 1, BLOCK), start(b, &r.blocked, BLOCK, 1));
    let plain_plane = b.step(Step::floats(r.plain.plane, 1));
    let channels = if let X::C(c) = channels
        && c % BLOCK == 0
    {
        X::C(BLOCK)
    } else {
        let done = b.imul(block, BLOCK);
        b.isub(channels, done)
    };
    let left = b.isub(width, from);
    let pixels = b.imin(left, ROW);
    body(b, &Rows { plain, blocked, plain_plane, channels, pixels });
    let mut tasks = vec![Factor::Size(r.batch), Factor::Chunks { of: vec![r.channels], per: BLOCK }];
    tasks.extend(outer.iter().map(|s| Factor::Size(*s)));
    tasks.push(Factor::Chunks { of: vec![last], per: ROW });
    Ok(Kernel { func: builder.finish(), tasks: Tasks(tasks) })
}

impl Rows {
    /// Squares of `lanes` pixels by `lanes` channels: `square(pixel pointer of the plain row, of the blocked row, lane group, pixels
    /// that there are or `None` for all)`.
    fn squares(&self, b: &mut Builder, square: impl Fn(&mut Builder, I, I, i64, Option<X>)) {
        let lanes = b.lanes() as i64;
        for group in 0..BLOCK / lanes {
            let skip = b.imul(self.plain_plane, group * lanes);
            let p = b.iadd(self.plain, skip);
            let (p, q) = (b.var(p), b.var(self.blocked));
            let (full, rest) = b.idivrem(self.pixels, lanes);
            b.times(full, |b| {
                square(b, p, q, group * lanes, None);
                b.inc(p, 4 * lanes);
                b.inc(q, BLOCK_BYTES * lanes);
            });
            b.if_(ICmp::Gt, rest, 0, |b| square(b, p, q, group * lanes, Some(rest)));
        }
    }
}

/// Generates plain to blocked. Padding channels become zeros; the halo of the blocked image is not written (see [`halo`]).
pub fn to_blocked(r: &Reorder, isa: Isa) -> Result<Kernel> {
    generate(r, isa, |b, rows| {
        rows.squares(b, |b, plain, blocked, group, rest| {
            let lanes = b.lanes() as i64;
            let p = b.var(plain);
            let tail = rest.map(|n| b.tail(n));
            let mut square = Vec::new();
            for c in 0..lanes {
                // A channel that is not there is zeros, and is not read.
                let row = b.constant(0.0);
                b.if_(ICmp::Gt, rows.channels, group + c, |b| {
                    let x = match tail {
                        Some(m) => b.load_mask(p, m),
                        None => b.load(p),
                    };
                    b.copy_to(row, x);
                });
                b.inc(p, rows.plain_plane);
                square.push(row);
            }
            for (j, v) in b.transpose(&square).into_iter().enumerate() {
                let at = Addr::from(blocked).off(j as i64 * BLOCK_BYTES + group * 4);
                match rest {
                    Some(n) => b.if_(ICmp::Gt, n, j as i64, |b| b.store(at, v)),
                    None => b.store(at, v),
                }
            }
        });
    })
}

/// Generates blocked to plain.
pub fn to_plain(r: &Reorder, isa: Isa) -> Result<Kernel> {
    generate(r, isa, |b, rows| {
        rows.squares(b, |b, plain, blocked, group, rest| {
            let lanes = b.lanes() as i64;
            let square: Vec<V> = (0..lanes)
                .map(|j| {
                    let at = Addr::from(blocked).off(j * BLOCK_BYTES + group * 4);
                    match rest {
                        Some(n) => {
                            let pixel = b.constant(0.0);
                            b.if_(ICmp::Gt, n, j, |b| b.load_to(pixel, at));
                            pixel
                        }
                        None => b.load(at),
                    }
                })
                .collect();
            let tail = rest.map(|n| b.tail(n));
            let p = b.var(plain);
            for (c, v) in b.transpose(&square).into_iter().enumerate() {
                b.if_(ICmp::Gt, rows.channels, group + c as i64, |b| match tail {
                    Some(m) => b.store_mask(p, v, m),
                    None => b.store(p, v),
                });
                b.inc(p, rows.plain_plane);
            }
        });
    })
}

/// Packs a row-major `B[K][N]` of run-time contents into `[N/16][K][16]` for a product, columns padded with zeros. A transposed
/// `B[N][K]` is [`to_blocked`] with `N` channels of `K` pixels.
#[derive(Clone, PartialEq, Debug)]
pub struct PackRows {
    pub name: String,
    /// Dimensions of the batch, outermost first.
    pub batch: Vec<Size>,
    pub k: Size,
    pub n: Size,
    /// Word of `B`, f32 values from row to row, and from matrix to matrix in each dimension of the batch.
    pub input: (u32, Size, Vec<Size>),
    /// Word of the packed matrix, and f32 values from one to the next.
    pub output: (u32, Vec<Size>),
}

/// Generates the kernel. A task is (batch index, block of 16 columns).
pub fn pack_rows(p: &PackRows, isa: Isa) -> Result<Kernel> {
    let mut builder = Builder::new(&p.name, isa.lanes());
    let b = &mut builder;
    let n = b.size(p.n);
    let blocks = b.ceil_div(n, BLOCK);
    let (mut t, block) = b.idivrem(b.task(), blocks);
    let k = b.size(p.k);
    let (input, output) = (b.word(p.input.0), b.word(p.output.0));
    let mut from = vec![(block, Step::bytes(BLOCK_BYTES))];
    let mut to = vec![(block, Step::floats(p.k, BLOCK))];
    for (d, s) in p.batch.iter().enumerate().rev() {
        let at = if d == 0 {
            t
        } else {
            let s = b.size(*s);
            let (q, r) = b.idivrem(t, s);
            t = q;
            r
        };
        from.push((at, Step::floats(p.input.2[d], 1)));
        to.push((at, Step::floats(p.output.1[d], 1)));
    }
    let (from, to) = (b.element(input, &from), b.element(output, &to));
    let (from, to) = (b.var(from), b.var(to));
    let pitch = b.step(Step::floats(p.input.1, 1));
    let done = b.imul(block, BLOCK);
    let left = b.isub(n, done);
    let width = b.width();
    let copy = |b: &mut Builder, masked: bool| {
        let masks: Vec<_> = (0..BLOCK_BYTES / width)
            .map(|v| {
                masked.then(|| {
                    let n = b.isub(left, v * width / 4);
                    b.tail(n)
                })
            })
            .collect();
        b.times(k, |b| {
            for (v, m) in masks.iter().enumerate() {
                let off = v as i64 * width;
                let x = match m {
                    Some(m) => b.load_mask(Addr::from(from).off(off), *m),
                    None => b.load(Addr::from(from).off(off)),
                };
                b.store(Addr::from(to).off(off), x);
            }
            b.inc(from, pitch);
            b.inc(to, BLOCK_BYTES);
        });
    };
    b.if_else(ICmp::Ge, left, BLOCK, |b| copy(b, false), |b| copy(b, true));
    let mut tasks: Vec<Factor> = p.batch.iter().map(|s| Factor::Size(*s)).collect();
    tasks.push(Factor::Chunks { of: vec![p.n], per: BLOCK });
    Ok(Kernel { func: builder.finish(), tasks: Tasks(tasks) })
}

/// Zeros around the spatial dimensions of a blocked image.
#[derive(Clone, PartialEq, Debug)]
pub struct Halo {
    pub name: String,
    pub batch: Size,
    pub channels: i64,
    /// Pixels inside the halo.
    pub size: [Size; 2],
    pub before: [i64; 2],
    pub after: [i64; 2],
    /// `origin` is the first pixel inside the halo; a row is followed by `pitch - size - before` pixels at least as wide as `after`.
    pub image: Image,
}

/// Generates the kernel that writes the zeros. A task is (image, block of channels).
pub fn halo(h: &Halo, isa: Isa) -> Result<Kernel> {
    if h.image.pitches.len() != 1 {
        return Err(Error::unsupported(format!("{}: a halo of other than 2 dimensions", h.name)));
    }
    let blocks = (h.channels + BLOCK - 1) / BLOCK;
    let mut builder = Builder::new(&h.name, isa.lanes());
    let b = &mut builder;
    let (n, block) = b.idivrem(b.task(), blocks);
    let base = b.word(h.image.word);
    let pitch = Step::floats(h.image.pitches[0], 1);
    let at = [
        (n, Step::floats(h.image.image, 1)),
        (block, Step::floats(h.image.plane, 1)),
        (X::C(1), Step::floats(h.image.origin, 1)),
        (X::C(-h.before[0]), pitch),
        (X::C(-h.before[1]), Step::bytes(BLOCK_BYTES)),
    ];
    let p = b.element(base, &at);
    let p = b.var(p);
    let pitch = b.step(pitch);
    let (height, width) = (b.size(h.size[0]), b.size(h.size[1]));
    let zero = b.constant(0.0);
    let run = |b: &mut Builder, from: I, pixels: X| {
        let q = b.var(from);
        b.times(pixels, |b| {
            for v in 0..BLOCK_BYTES / b.width() {
                b.store(Addr::from(q).off(v * b.width()), zero);
            }
            b.inc(q, BLOCK_BYTES);
        });
    };
    let whole = b.iadd(width, h.before[1] + h.after[1]);
    let right = b.iadd(width, h.before[1]);
    let right = b.imul(right, BLOCK_BYTES);
    let lines = |b: &mut Builder, n: X, full: bool| {
        b.times(n, |b| {
            if full {
                run(b, p, whole);
            } else {
                run(b, p, X::C(h.before[1]));
                let q = b.ptr(p, right);
                run(b, q, X::C(h.after[1]));
            }
            b.inc(p, pitch);
        });
    };
    lines(b, X::C(h.before[0]), true);
    lines(b, height, false);
    lines(b, X::C(h.after[0]), true);
    Ok(Kernel { func: builder.finish(), tasks: Tasks(vec![Factor::Size(h.batch), Factor::Size(Size::Const(blocks))]) })
}
