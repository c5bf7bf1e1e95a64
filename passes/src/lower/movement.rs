//! Copies: concatenation, padding, blocking. Transposes, slices and broadcasts are lowered by groups.

use super::loops::Loops;
use super::program::shifted;
use super::view::{View, row_major};
use super::{Frame, Lowering};
use nnc_ir::error::Result;
use nnc_ir::graph::NodeId;
use nnc_ir::kernel::{Access, BufferRef, ExprId};
use nnc_ir::ops::movement::{Pad, PadMode, Slice};
use nnc_ir::{Dim, ScalarFn, Type};

const ZERO: Dim = Dim::Const(0);

/// The operand's element that a slice starts at, where the slice is one contiguous piece of it.
pub fn contiguous(op: &Slice, x: &[Dim]) -> Option<Dim> {
    let whole = |i: usize| op.starts[i].is(0) && op.sizes[i] == x[i] && op.step(i) == 1;
    let cut = (0..x.len()).rev().find(|i| !whole(*i)).unwrap_or(0);
    let fits = (0..x.len()).all(|i| i > cut || op.sizes[i].is(1) || (i == cut && op.step(i) == 1));
    fits.then(|| op.starts.iter().zip(row_major(x)).fold(ZERO, |sum, (s, stride)| sum + s.clone() * stride))
}

impl Lowering<'_> {
    /// Each operand is copied to its place.
    pub(super) fn concat(&mut self, frame: &mut Frame, id: NodeId, axis: usize) -> Result<()> {
        let node = frame.graph.node(id);
        let y = node.types[0].clone();
        let to = self.result(frame, id, 0)?;
        let mut start = ZERO;
        for operand in &node.operands {
            let x = frame.graph.ty(*operand).clone();
            let from = self.operand(frame, *operand)?;
            let strides = row_major(&y.shape);
            let view = View::new(strides.clone()).at(start.clone() * strides[axis].clone());
            // The operand's own dimension where the others are known better: they agree at run time.
            let mut dims = y.shape.clone();
            dims[axis] = x.shape[axis].clone();
            start = start + x.shape[axis].clone();
            self.out.copy_views(&self.site.clone(), &dims, (&x, View::dense(&x.shape), from), (&y, view, to.clone()), Access::Write)?;
        }
        Ok(())
    }

    /// The constant everywhere, then the operand in its place.
    pub(super) fn pad_constant(&mut self, frame: &mut Frame, id: NodeId, op: &Pad) -> Result<()> {
        let node = frame.graph.node(id);
        let (x, y) = (frame.graph.ty(node.operands[0]).clone(), node.types[0].clone());
        let (from, to) = (self.operand(frame, node.operands[0])?, self.result(frame, id, 0)?);
        let value = node.operands.get(1).copied();
        let literal = value.and_then(|v| frame.graph.constant(v)).map(|t| t.num(0));
        let operands: Vec<Type> = if literal.is_some() { vec![] } else { value.iter().map(|v| frame.graph.ty(*v).clone()).collect() };
        let mut buffers: Vec<BufferRef> = match value {
            Some(v) if literal.is_none() => vec![self.operand(frame, v)?],
            _ => vec![],
        };
        buffers.push(to.clone());
        let mut k = Loops::new("fill", &operands, std::slice::from_ref(&y), Access::Write);
        let result = k.result(0);
        k.parallel(&[y.elems()], &[View::dense(&[y.elems()])], 1, |k, _, at| {
            let v = match literal {
                Some(n) => k.literal(n, y.dtype),
                None if operands.is_empty() => k.num(0.0, y.dtype),
                None => {
                    let first = k.int(0);
                    k.load(0, first)
                }
            };
            k.store(result, at[0], v);
        });
        let site = self.site.clone();
        self.out.launch(&site, k, buffers)?;
        // Negative padding cuts: the copy starts inside the operand and is shorter.
        let (mut dims, mut read, mut write) = (vec![], ZERO, ZERO);
        for (i, (sx, sy)) in row_major(&x.shape).into_iter().zip(row_major(&y.shape)).enumerate() {
            let (lo, hi) = (&op.lo[i], &op.hi[i]);
            dims.push((x.shape[i].clone() + lo.minimum(&ZERO) + hi.minimum(&ZERO)).maximum(&ZERO));
            read = read + (&ZERO - &lo.minimum(&ZERO)) * sx;
            write = write + lo.maximum(&ZERO) * sy;
        }
        let (from_view, to_view) = (View::new(row_major(&x.shape)).at(read), View::new(row_major(&y.shape)).at(write));
        self.out.copy_views(&site, &dims, (&x, from_view, from), (&y, to_view, to), Access::ReadWrite)
    }

    /// A slice that is one piece of its operand is that piece.
    pub(super) fn alias(&mut self, frame: &mut Frame, id: NodeId, offset: Dim) -> Result<()> {
        let x = self.operand(frame, frame.graph.node(id).operands[0])?;
        frame.set(id, 0, shifted(&x, offset));
        Ok(())
    }
}

/// Reflected, repeated or wrapped padding: each result index is mapped to the operand's.
pub fn pad(k: &mut Loops, op: &Pad) -> Result<()> {
    let (xs, ys) = (k.x[0].shape.clone(), k.y[0].shape.clone());
    let (result, x_strides) = (k.result(0), row_major(&xs));
    let mapped = |k: &mut Loops, i: usize, index: ExprId, base: ExprId| {
        // Negative padding cuts first: what is repeated is what is left.
        let cut = &ZERO - &op.lo[i].minimum(&ZERO);
        let kept = &xs[i] - &cut + op.hi[i].minimum(&ZERO);
        let (lo, d) = (k.size(&op.lo[i].maximum(&ZERO)), k.size(&kept));
        let (zero, one) = (k.int(0), k.int(1));
        let last = k.sub(d, one);
        let index = k.sub(index, lo);
        let inside = match op.mode {
            PadMode::Constant | PadMode::Edge => {
                let up = k.max_int(index, zero);
                k.min_int(up, last)
            }
            PadMode::Wrap => k.map(ScalarFn::Mod, &[index, d]),
            PadMode::Reflect => {
                let two = k.int(2);
                let period = k.mul(last, two);
                let phase = k.map(ScalarFn::Mod, &[index, period]);
                let phase = k.bind(phase);
                let back = k.sub(period, phase);
                k.min_int(phase, back)
            }
        };
        let (cut, stride) = (k.size(&cut), k.size(&x_strides[i]));
        let inside = k.add(inside, cut);
        let by = k.mul(inside, stride);
        k.add(base, by)
    };
    let Some(last) = ys.len().checked_sub(1) else {
        let zero = k.int(0);
        let v = k.load(0, zero);
        k.store(result, zero, v);
        return Ok(());
    };
    let row = View::new(row_major(&ys)[..last].to_vec());
    let length = ys[last].as_const().unwrap_or(64).saturating_mul(8);
    k.parallel(&ys[..last], &[row], length, |k, vars, at| {
        let mut base = k.int(0);
        for (i, v) in vars.iter().enumerate() {
            base = mapped(k, i, *v, base);
            base = k.bind(base);
        }
        let n = k.size(&ys[last]);
        k.for_each(n, |k, i| {
            let from = mapped(k, last, i, base);
            let to = k.add(at[0], i);
            let v = k.load(0, from);
            k.store(result, to, v);
        });
    });
    Ok(())
}

/// Between `[N,C,spatial]` (`plain`) and `[N,C/b,spatial,b]`: for each block, the lanes that hold a channel.
struct Blocks {
    dims: [Dim; 3],
    channels: Dim,
    block: Dim,
    blocked: View,
    plain: View,
    /// The plain tensor's stride from channel to channel.
    pixels: Dim,
}

impl Blocks {
    /// The plain tensor's shape, the number of blocks the blocked one has, and the block.
    fn new(plain: &[Dim], blocks: &Dim, block: &Dim) -> Blocks {
        let pixels = Dim::product(&plain[2..]);
        Blocks {
            dims: [plain[0].clone(), blocks.clone(), pixels.clone()],
            channels: plain[1].clone(),
            block: block.clone(),
            blocked: View::dense(&[plain[0].clone(), blocks.clone(), pixels.clone() * block.clone()].map(|d| d)),
            plain: View::new(vec![plain[1].clone() * pixels.clone(), block.clone() * pixels.clone(), Dim::Const(1)]),
            pixels,
        }
    }

    /// The number of channels in block `b`.
    fn lanes(&self, k: &mut Loops, b: ExprId) -> ExprId {
        let (c, block) = (k.size(&self.channels), k.size(&self.block));
        if self.channels.floor_div(&self.block) * self.block.clone() == self.channels {
            return block;
        }
        let before = k.mul(b, block);
        let left = k.sub(c, before);
        let left = k.min_int(left, block);
        let zero = k.int(0);
        let left = k.max_int(left, zero);
        k.bind(left)
    }
}

pub fn pack(k: &mut Loops, block: usize) -> Result<()> {
    let (xs, ys) = (k.x[0].shape.clone(), k.y[0].shape.clone());
    let mut b = Blocks::new(&xs, &ys[1], &Dim::from(block));
    b.blocked.strides[2] = b.block.clone();
    let (result, dtype) = (k.result(0), k.y[0].dtype);
    k.parallel(&b.dims, &[b.plain.clone(), b.blocked.clone()], block as i64, |k, vars, at| {
        let (lanes, whole) = (b.lanes(k, vars[1]), k.size(&b.block));
        k.for_each(lanes, |k, lane| {
            let stride = k.size(&b.pixels);
            let by = k.mul(lane, stride);
            let (from, to) = (k.add(at[0], by), k.add(at[1], lane));
            let v = k.load(0, from);
            k.store(result, to, v);
        });
        if lanes != whole {
            k.for_range(lanes, whole, |k, lane| {
                let to = k.add(at[1], lane);
                let zero = k.num(0.0, dtype);
                k.store(result, to, zero);
            });
        }
    });
    Ok(())
}

pub fn unpack(k: &mut Loops) -> Result<()> {
    let (xs, ys) = (k.x[0].shape.clone(), k.y[0].shape.clone());
    let block = xs[xs.len() - 1].clone();
    let mut b = Blocks::new(&ys, &ys[1].ceil_div(&block), &block);
    // The operand may have more blocks than the channels asked for fill.
    b.blocked.strides[0] = Dim::product(&xs[1..]);
    let result = k.result(0);
    let mut views = [b.blocked.clone(), b.plain.clone()];
    views.iter_mut().for_each(|v| v.strides.truncate(2));
    let work = b.pixels.as_const().unwrap_or(64).saturating_mul(block.as_const().unwrap_or(16));
    k.parallel(&b.dims[..2], &views, work, |k, vars, at| {
        let lanes = b.lanes(k, vars[1]);
        k.for_each(lanes, |k, lane| {
            let pixels = k.size(&b.pixels);
            let by = k.mul(lane, pixels);
            let (from, to) = (k.add(at[0], lane), k.add(at[1], by));
            let (from, to) = (k.bind(from), k.bind(to));
            k.for_each(pixels, |k, i| {
                let block = k.size(&b.block);
                let step = k.mul(i, block);
                let (from, to) = (k.add(from, step), k.add(to, i));
                let v = k.load(0, from);
                k.store(result, to, v);
            });
        });
    });
    Ok(())
}
