//! Copies: concatenation, padding, blocking. Transposes, slices and broadcasts are lowered by groups.

use super::loops::Loops;
use super::program::shifted;
use super::view::{View, collapse, row_major};
use super::{Frame, Lowering};
use nnc_ir::error::Result;
use nnc_ir::graph::{NodeId, Value};
use nnc_ir::kernel::{Access, ExprId};
use nnc_ir::ops::movement::{Interleave, Pad, PadMode, Slice};
use nnc_ir::{Dim, ScalarFn, Type};

const ZERO: Dim = Dim::Const(0);

/// The operand's element that a slice starts at, where the slice is one contiguous piece of it.
pub fn contiguous(op: &Slice, x: &[Dim]) -> Option<Dim> {
    let whole = |i: usize| op.starts[i].is(0) && op.sizes[i] == x[i] && op.step(i) == 1;
    let cut = (0..x.len()).rev().find(|i| !whole(*i)).unwrap_or(0);
    let fits = (0..x.len()).all(|i| i > cut || op.sizes[i].is(1) || (i == cut && op.step(i) == 1));
    // Where nothing is taken the start may lie anywhere.
    if op.sizes.iter().any(|n| n.is(0)) {
        return Some(ZERO);
    }
    fits.then(|| op.starts.iter().zip(row_major(x)).fold(ZERO, |sum, (s, stride)| sum + s.clone() * stride))
}

impl Lowering {
    /// Each operand is copied to its place, unless it was computed there.
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
            if from == shifted(&to, view.offset.clone()) {
                start = start + x.shape[axis].clone();
                continue;
            }
            // The operand's own dimension where the others are known better: they agree at run time.
            let mut dims = y.shape.clone();
            dims[axis] = x.shape[axis].clone();
            start = start + x.shape[axis].clone();
            self.out.copy_views(&self.site.clone(), &dims, (&x, View::dense(&x.shape), from), (&y, view, to.clone()), Access::Write)?;
        }
        Ok(())
    }

    /// Each operand is copied to its places.
    pub(super) fn interleave(&mut self, frame: &mut Frame, id: NodeId, op: &Interleave) -> Result<()> {
        let node = frame.graph.node(id);
        let y = node.types[0].clone();
        let to = self.result(frame, id, 0)?;
        let strides = row_major(&y.shape);
        for (k, operand) in node.operands.iter().enumerate() {
            let x = frame.graph.ty(*operand).clone();
            let from = self.operand(frame, *operand)?;
            let start = op.place(k).into_iter().zip(&strides).fold(ZERO, |sum, (p, s)| sum + Dim::from(p) * s.clone());
            let steps = op.steps.iter().zip(&strides).map(|(n, s)| Dim::from(*n) * s.clone()).collect();
            let view = View::new(steps).at(start);
            self.out.copy_views(&self.site.clone(), &x.shape, (&x, View::dense(&x.shape), from), (&y, view, to.clone()), Access::Write)?;
        }
        Ok(())
    }

    /// What a pad adds where its operand was computed in its place.
    pub(super) fn halo(&mut self, frame: &Frame, id: NodeId, op: &Pad) -> Result<()> {
        let y = &frame.graph.node(id).types[0];
        let at = self.operand(frame, Value { node: id, port: 0 })?;
        self.out.launch(&self.site.clone(), halo(y, op, self.out.grain), vec![at])
    }

    /// A slice that is one piece of its operand is that piece.
    pub(super) fn alias(&mut self, frame: &mut Frame, id: NodeId, offset: Dim) -> Result<()> {
        let x = self.operand(frame, frame.graph.node(id).operands[0])?;
        frame.set(id, 0, shifted(&x, offset));
        Ok(())
    }
}

/// Zeros around a window of the tensor `y` that other kernels write: boxes before and after it along each axis behind the second.
pub fn halo(y: &Type, op: &Pad, grain: i64) -> Loops {
    let mut k = Loops::new("halo", &[], std::slice::from_ref(y), Access::Write, grain);
    let strides = row_major(&y.shape);
    let inside = |i: usize| y.shape[i].clone() - op.lo[i].clone() - op.hi[i].clone();
    let view = View::new(strides[..2].to_vec());
    k.parallel(&y.shape[..2], &[view], Dim::product(&y.shape[2..]).as_const().unwrap_or(1024) / 4, |k, _, at| {
        let zero = k.num(0.0, y.dtype);
        let sides = (2..y.rank()).flat_map(|i| [(i, ZERO, &op.lo[i]), (i, op.lo[i].clone() + inside(i), &op.hi[i])]);
        for (axis, start, count) in sides.filter(|(.., count)| !count.is(0)) {
            let size = |i: usize| match i.cmp(&axis) {
                std::cmp::Ordering::Less => inside(i),
                std::cmp::Ordering::Equal => count.clone(),
                std::cmp::Ordering::Greater => y.shape[i].clone(),
            };
            let before = (2..axis).fold(start * strides[axis].clone(), |sum, i| sum + op.lo[i].clone() * strides[i].clone());
            let mut dims: Vec<Dim> = (2..y.rank()).map(size).collect();
            let mut views = [View::new(strides[2..].to_vec()).at(before)];
            collapse(&mut dims, &mut views);
            k.serial(&dims, &views, at, |k, _, at| k.put(0, at[0], zero));
        }
    });
    k
}

/// Zeros or a given constant around: a row is empty, or the operand's with both ends filled.
pub fn pad_constant(k: &mut Loops, op: &Pad) -> Result<()> {
    let (xs, ys) = (k.x[0].shape.clone(), k.y[0].shape.clone());
    let has_value = k.x.len() > 1;
    // Axes behind the last padded one are part of its elements.
    let row = (0..ys.len()).rev().find(|i| !op.lo[*i].is(0) || !op.hi[*i].is(0)).unwrap_or(0);
    let unit = Dim::product(ys.get(row + 1..).unwrap_or_default());
    let length = |d: Option<&Dim>| d.cloned().unwrap_or(Dim::Const(1)) * unit.clone();
    let x_strides = row_major(&xs);
    // Negative padding cuts: reading starts inside the operand's row and is shorter.
    let parts = |at: Option<(&Dim, &Dim)>| {
        let (lo, hi) = at.map_or((ZERO, ZERO), |(lo, hi)| (lo.clone(), hi.clone()));
        let kept = length(xs.get(row)) + (lo.minimum(&ZERO) + hi.minimum(&ZERO)) * unit.clone();
        [lo.maximum(&ZERO) * unit.clone(), kept.maximum(&ZERO), (&ZERO - &lo.minimum(&ZERO)) * unit.clone()]
    };
    let [before, kept, skipped] = parts(op.lo.get(row).zip(op.hi.get(row)));
    let view = View::new(row_major(&ys)[..row].to_vec());
    let work = length(ys.get(row));
    k.parallel(&ys[..row], &[view], work.as_const().unwrap_or(256), |k, vars, at| {
        let dtype = k.y[0].dtype;
        let value = if has_value {
            let zero = k.int(0);
            let v = k.load(1, zero);
            k.bind(v)
        } else {
            k.num(0.0, dtype)
        };
        let start = at[0];
        let (end, before, kept) = (k.size(&work), k.size(&before), k.size(&kept));
        let fill = |k: &mut Loops, lo: ExprId, hi: ExprId| {
            k.for_range(lo, hi, |k, i| {
                let to = k.add(start, i);
                k.put(0, to, value);
            });
        };
        // The operand's row, where it has one.
        let from = k.size(&skipped);
        let mut base = from;
        let zero = k.int(0);
        let inside = k.int(1);
        let inside = k.set_new(inside);
        for (i, v) in vars.iter().enumerate().filter(|(i, _)| !xs[*i].is(1) || !op.lo[*i].is(0) || !op.hi[*i].is(0)) {
            let (lo, stride) = (k.size(&op.lo[i]), k.size(&x_strides[i]));
            let index = k.sub(*v, lo);
            let by = k.mul(index, stride);
            base = k.add(base, by);
            base = k.bind(base);
            if !op.lo[i].is(0) || !op.hi[i].is(0) {
                let d = k.size(&xs[i]);
                let low = k.map(ScalarFn::Less, &[index, zero]);
                k.when(low, |k| k.set(inside, zero));
                let high = k.map(ScalarFn::GreaterEqual, &[index, d]);
                k.when(high, |k| k.set(inside, zero));
            }
        }
        let inside = k.var(inside);
        let some = k.map(ScalarFn::Greater, &[inside, zero]);
        let body = |k: &mut Loops| {
            fill(k, zero, before);
            k.for_each(kept, |k, i| {
                let (from, to) = (k.add(base, i), k.add(start, before));
                let to = k.add(to, i);
                let v = k.load(0, from);
                k.put(0, to, v);
            });
            let after = k.add(before, kept);
            fill(k, after, end);
        };
        k.if_(some, body, |k| fill(k, zero, end));
    });
    Ok(())
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
