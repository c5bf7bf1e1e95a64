//! Kernels for single operations, where a group of threads does better than each for itself: an ordered list, the first that accepts
//! wins. Behind them all stands the lowering of the loops, which takes anything.
//!
//! A kernel sees an operation and its types, never a name. Sizes that are known only at the launch are scalars of it.

mod conv;
mod cooperative;
mod epilogue;
mod matrix;
mod product;
mod rows;
mod tile;

use super::gir::build::Builder;
use super::gir::{self, Binary, Compare, Op as Gir, Space, Ty, Val, Words};
use super::lower::minifloat::{decode, encode};
use super::lower::{Lowered, Refusal, elem};
use nnc_ir::kernel::{Access, Kernel, Origin};
use nnc_ir::ops::Op;
use nnc_ir::target::Gpu;
use nnc_ir::{DType, Dim, Type};

type Result<T> = std::result::Result<T, Refusal>;

/// An implementation: its name, the operations that it is for, and what it makes of one.
struct Implementation(&'static str, fn(&Op) -> bool, fn(&Site) -> Result<Lowered>);

/// In order of preference.
const IMPLEMENTATIONS: &[Implementation] = &[
    Implementation("tiled product", |op| matches!(op, Op::MatMul(_)), product::product),
    Implementation("tiled convolution", |op| matches!(op, Op::Conv(_)), conv::conv),
    Implementation("rows by groups", |op| matches!(op, Op::Softmax(_) | Op::LogSoftmax(_) | Op::LayerNorm(_)), rows::rows),
];

/// What implementations are called.
pub fn names() -> impl Iterator<Item = &'static str> {
    IMPLEMENTATIONS.iter().map(|i| i.0)
}

/// What an implementation is asked.
struct Site<'k> {
    kernel: &'k Kernel,
    origin: &'k Origin,
    /// Which parameters start inside of their buffers.
    offsets: &'k [bool],
    device: &'k Gpu,
}

/// An implementation's name and its kernel.
pub type Chosen = (&'static str, Lowered);
/// Implementations that refused, and why.
pub type Refused = Vec<(&'static str, Refusal)>;

/// The kernel for an operation, if there is one.
pub fn choose(kernel: &Kernel, offsets: &[bool], device: &Gpu) -> (Option<Chosen>, Refused) {
    let mut refused = vec![];
    let Some(origin) = &kernel.origin else { return (None, refused) };
    let site = Site { kernel, origin, offsets, device };
    for Implementation(name, _, accept) in IMPLEMENTATIONS.iter().filter(|i| i.1(&origin.op)) {
        match site.usable().and_then(|()| accept(&site)) {
            Ok(lowered) => return (Some((name, lowered)), refused),
            Err(why) => refused.push((*name, why)),
        }
    }
    (None, refused)
}

fn no<T>(why: impl Into<String>) -> Result<T> {
    Err(why.into())
}

impl<'k> Site<'k> {
    fn x(&self, i: usize) -> &'k Type {
        &self.origin.x[i]
    }

    fn y(&self) -> &'k Type {
        &self.origin.y[0]
    }

    /// The parameter of the first result: results follow the operands.
    fn output(&self) -> usize {
        self.origin.x.len()
    }

    /// What all kernels here ask for.
    fn usable(&self) -> Result<()> {
        let halves = matches!(self.origin.op, Op::MatMul(_) | Op::Conv(_)) && tile::multiplies(self.device, self.y().dtype);
        let dtype = if halves { self.y().dtype } else { DType::F32 };
        if let Some(t) = self.origin.x.iter().chain(&self.origin.y).find(|t| t.dtype != dtype) {
            return no(format!("an operand is {}", t.dtype));
        }
        if self.origin.within.is_some() {
            return no("the result is a window of a larger tensor");
        }
        match self.kernel.params.len() {
            n if n > self.device.max_buffers as usize => no(format!("{n} buffers, a kernel takes {}", self.device.max_buffers)),
            _ => Ok(()),
        }
    }

    /// An empty kernel of groups of so many threads.
    fn frame(&self, threads: u32) -> Frame {
        let mut b = Builder::new(self.kernel.name.clone(), threads);
        let buffers = self.kernel.params.iter().map(|p| b.buffer(elem(p.dtype), p.access != Access::Read)).collect();
        let bases = self.offsets.iter().map(|o| o.then(|| b.scalar())).collect();
        let most = self.device.scalar_bytes as usize / 4 - self.offsets.iter().filter(|o| **o).count().min(self.device.scalar_bytes as usize / 4);
        let dtypes = self.kernel.params.iter().map(|p| p.dtype).collect();
        Frame { b, buffers, dtypes, bases, scalars: vec![], most, rounds: self.device.isa.is_nvidia() }
    }
}

/// An element of a parameter, where there is one.
struct Element {
    param: usize,
    at: Val,
    inside: Option<Val>,
}

/// A kernel that is being built.
struct Frame {
    b: Builder,
    buffers: Vec<Space>,
    dtypes: Vec<DType>,
    /// The element that a parameter starts at, where that is not 0.
    bases: Vec<Option<Val>>,
    scalars: Vec<Dim>,
    /// Scalars that a launch may have.
    most: usize,
    /// Whether the device rounds to 16 bits by itself ([`Gir::Pair`]).
    rounds: bool,
}

impl AsMut<Builder> for Frame {
    fn as_mut(&mut self) -> &mut Builder {
        &mut self.b
    }
}

impl Frame {
    /// A dimension: a constant, or a scalar of the launch. Asked for outside of all regions.
    fn size(&mut self, d: &Dim) -> Result<Val> {
        if let Some(c) = d.as_const() {
            return i32::try_from(c).map(|c| self.b.i32(c)).map_err(|_| format!("the size {c} has more than 32 bits"));
        }
        if !self.scalars.contains(d) {
            if self.scalars.len() == self.most {
                return no("more sizes than a launch takes");
            }
            self.scalars.push(d.clone());
            return Ok(self.b.scalar());
        }
        let first = self.bases.iter().flatten().count();
        let at = self.scalars.iter().position(|s| s == d).unwrap_or_default();
        Ok(self.b.value(Gir::Scalar((first + at) as u32)))
    }

    fn place(&mut self, param: usize, index: Val) -> Val {
        match self.bases[param] {
            Some(base) => self.b.add(base, index),
            None => index,
        }
    }

    fn load(&mut self, param: usize, index: Val) -> Val {
        self.load_vector(param, index, 1)[0]
    }

    /// So many neighbours, from a multiple of their number on.
    fn load_vector(&mut self, param: usize, index: Val, n: u32) -> Vec<Val> {
        let at = self.place(param, index);
        let bits = self.b.load_vector(self.buffers[param], at, n);
        bits.into_iter().map(|bits| self.decode(param, bits)).collect()
    }

    /// What an element is, by what memory holds of it.
    fn decode(&mut self, param: usize, bits: Val) -> Val {
        match self.dtypes[param] {
            DType::BF16 => {
                let w = self.b.with(Binary::Shl, bits, 16);
                self.b.bits(Ty::F32, w)
            }
            DType::F16 => decode(&mut self.b, DType::F16, bits),
            _ => bits,
        }
    }

    fn store_vector(&mut self, param: usize, index: Val, values: Vec<Val>) {
        let at = self.place(param, index);
        let values = match pairs(self.dtypes[param]) {
            Some(_) if !self.rounds => values.into_iter().map(|v| encode(&mut self.b, self.dtypes[param], v)).collect(),
            Some(words) => {
                let zero = self.b.f32(0.0);
                values.into_iter().map(|v| self.b.value(Gir::Pair(words, v, zero))).collect()
            }
            None => values,
        };
        self.b.store_vector(self.buffers[param], at, values);
    }

    /// How many neighbours of a parameter can be had at once from every multiple of `d` on: 8, 4, 2 or 1.
    fn together(&self, param: usize, d: Val) -> u32 {
        let divides = |n: &u32| self.b.constant(d).is_some_and(|d| d.is_multiple_of((*n).into()));
        if self.bases[param].is_some() { 1 } else { [8, 4, 2].into_iter().find(divides).unwrap_or(1) }
    }

    fn store(&mut self, param: usize, index: Val, value: Val) {
        self.store_vector(param, index, vec![value]);
    }

    /// What memory holds of an element where it is inside, else 0: what is outside is read at the first element, without a branch.
    fn load_if(&mut self, e: Element) -> Val {
        let first = self.b.i32(0);
        let index = e.inside.map_or(e.at, |inside| self.b.select(inside, e.at, first));
        let at = self.place(e.param, index);
        let v = self.b.load(self.buffers[e.param], at);
        let Some(inside) = e.inside else { return v };
        let zero = if self.b.ty(v) == Ty::F32 { self.b.f32(0.0) } else { first };
        self.b.select(inside, v, zero)
    }

    /// Sends a copy of `words` neighbours to shared memory off, of zeros where the element is outside.
    fn copy(&mut self, to: Space, at: Val, e: Element, words: u32) {
        let index = self.place(e.param, e.at);
        self.b.emit(gir::Stmt::Copy { to, at, from: self.buffers[e.param], index, bytes: 4 * words, inside: e.inside });
    }

    /// `a` and `b`, of which either may be granted.
    fn both(&mut self, a: Option<Val>, b: Option<Val>) -> Option<Val> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.b.and(a, b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether an index is below a size, unless `granted`.
    fn below(&mut self, granted: bool, index: Val, size: Val) -> Option<Val> {
        (!granted).then(|| self.b.compare(Compare::Lt, index, size))
    }

    /// Quotient and remainder of a number that is not negative.
    fn split(&mut self, v: Val, by: Val) -> (Val, Val) {
        if self.b.constant(by) == Some(1) {
            return (v, self.b.i32(0));
        }
        (self.b.binary(Binary::DivU, v, by), self.b.binary(Binary::RemU, v, by))
    }

    /// `body`, for each of so many groups: a device may start more than that.
    fn groups(mut self, count: &Dim, body: impl FnOnce(&mut Frame, Val) -> Result<()>) -> Result<Lowered> {
        let (group, all) = (self.b.value(Gir::Group), self.size(count)?);
        let inside = self.b.compare(Compare::Lt, group, all);
        self.b.begin();
        body(&mut self, group)?;
        let then = self.b.end();
        self.b.join(inside, (then, vec![]), (vec![], vec![]));
        Ok(Lowered { kernel: self.b.finish(), fails: false, groups: count.clone(), scalars: self.scalars })
    }
}

/// What the words of matrices are whose elements are of a type of 16 bits.
fn pairs(d: DType) -> Option<Words> {
    match d {
        DType::F16 => Some(Words::F16),
        DType::BF16 => Some(Words::Bf16),
        _ => None,
    }
}

/// Whether a dimension is known to be a multiple of `n`.
fn is_multiple(d: &Dim, n: u32) -> bool {
    d.as_const().is_some_and(|d| d % i64::from(n) == 0)
}

/// The number of tiles of `n` that cover a dimension.
fn tiles(d: &Dim, n: u32) -> Dim {
    d.ceil_div(&Dim::from(n as usize))
}

/// Stops the other threads of the group from going on until all are here.
fn barrier(b: &mut Builder) {
    b.emit(gir::Stmt::Barrier);
}
