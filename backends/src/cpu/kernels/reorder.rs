//! Changes of layout: plain NCHW to blocked NCHWc16 and back.
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

/// Generates plain to blocked. Padding channels become zeros; a halo of the blocked image is not written.
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
