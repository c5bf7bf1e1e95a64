//! Rewrites the graph in the chosen layouts: conversions, blocked operations, packed weights.

use super::flexible::Role;
use super::{Plan, merged, planar};
use crate::rebuild::{self, Rebuild};
use nnc_ir::ops::composite::filter::WinogradFilter;
use nnc_ir::ops::contract::{Conv, Layout, MatMul, PANEL, Post};
use nnc_ir::ops::map::Cast;
use nnc_ir::ops::movement::{Concat, Interleave, Pack, Pad, PadMode, Reshape, Slice, Transpose, Unpack};
use nnc_ir::ops::window::Pool;
use nnc_ir::{DType, Dim, Graph, Loc, NodeId, Op, Report, Result, Type, Value};

/// The graph with `blocked` of the plan's candidates in blocks, and the weights of matmuls in panels.
///
/// With `narrow`, weights that are `fixed` and that kernels take in bf16 become such.
pub fn emit(graph: &Graph, plan: &Plan, blocked: &[bool], fixed: &[bool], halo: bool, narrow: bool) -> Result<Graph, Report> {
    let (r, in_blocks) = (Rebuild::new(graph), vec![None; graph.id_bound()]);
    let mut e = Emit { r, in_blocks, block: plan.block, fixed, halo, narrow, loc: Loc::Unknown };
    for id in e.r.order() {
        e.loc = graph.node(id).loc.clone();
        let candidate = plan.index[id.0 as usize].filter(|i| blocked[*i]);
        let place = |err: nnc_ir::Error| err.at(&graph.node(id).loc);
        match candidate {
            Some(i) => {
                let node = &plan.nodes[i];
                let y = match &node.role {
                    Role::Conv(Ok(layout)) => e.conv(id, *layout),
                    _ => e.flexible(id, &node.follows),
                };
                e.in_blocks[id.0 as usize] = Some(y.map_err(place)?);
            }
            None => {
                for v in &graph.node(id).operands {
                    e.plain(*v).map_err(place)?;
                }
                if !e.matmul(id).map_err(place)? && !e.channels_last(id).map_err(place)? && !e.planar(id).map_err(place)? {
                    e.r.keep(id);
                }
            }
        }
    }
    for v in graph.ends() {
        e.plain(v)?;
    }
    Ok(e.r.finish())
}

/// The order of `n` axes with the second behind all others.
fn channels_behind(n: usize) -> impl Iterator<Item = usize> + Clone {
    std::iter::once(0).chain(2..n).chain([1])
}

/// Whether a value takes the same bytes in both layouts: whole blocks of channels, and nothing after them.
pub fn same_bytes(t: &Type, block: usize) -> bool {
    t.rank() >= 2 && t.shape[1].as_const().is_some_and(|c| c % block as i64 == 0) && t.shape[2..].iter().all(|d| d.is(1))
}

struct Emit<'a> {
    r: Rebuild<'a>,
    /// Each old node's value in blocks, where it exists.
    in_blocks: Vec<Option<Value>>,
    block: usize,
    fixed: &'a [bool],
    halo: bool,
    narrow: bool,
    loc: Loc,
}

impl Emit<'_> {
    fn op(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Value> {
        rebuild::infer(&mut self.r.new, op.into(), operands.to_vec(), "".into(), self.loc.clone())
    }

    /// The operation in an old node's place, with its name.
    fn named(&mut self, id: NodeId, op: impl Into<Op>, operands: Vec<Value>) -> Result<Value> {
        let old = self.r.old.node(id);
        rebuild::infer(&mut self.r.new, op.into(), operands, old.name.clone(), old.loc.clone())
    }

    fn ty(&self, v: Value) -> &Type {
        self.r.new.ty(v)
    }

    /// An old value in the model's layout.
    fn plain(&mut self, v: Value) -> Result<Value> {
        if let (false, Some(x)) = (self.r.is_set(v.node), self.in_blocks[v.node.0 as usize]) {
            let ty = self.r.old.ty(v).clone();
            let y = if same_bytes(&ty, self.block) {
                self.op(Reshape { shape: ty.shape }, &[x])?
            } else {
                let channels = ty.shape[1].as_const().unwrap_or(0) as usize;
                self.op(Unpack { channels }, &[x])?
            };
            self.r.set(v.node, vec![y]);
        }
        Ok(self.r.get(v))
    }

    /// An old value in blocks.
    fn blocks(&mut self, v: Value) -> Result<Value> {
        if let (0, Some(x)) = (v.port, self.in_blocks[v.node.0 as usize]) {
            return Ok(x);
        }
        let ty = self.r.old.ty(v).clone();
        let y = match self.channels_first(v)? {
            Some(y) => y,
            None => self.pack(self.r.get(v), &ty)?,
        };
        if v.port == 0 {
            self.in_blocks[v.node.0 as usize] = Some(y);
        }
        Ok(y)
    }

    /// Where a node moves the channels of a value that lies in blocks behind all other axes: the same made of the blocks, which move as
    /// they are. Says whether it did.
    fn channels_last(&mut self, id: NodeId) -> Result<bool> {
        let node = self.r.old.node(id);
        let (Op::Transpose(t), Some(x)) = (&node.op, node.operands.first()) else { return Ok(false) };
        let (Some(blocks), 0) = (self.in_blocks[x.node.0 as usize], x.port) else { return Ok(false) };
        let (n, shape) = (t.perm.len(), node.types[0].shape.clone());
        if !t.perm.iter().copied().eq(channels_behind(n)) || !self.whole(&shape[n - 1]) {
            return Ok(false);
        }
        let y = self.transposed(blocks, channels_behind(n).chain([n]).collect())?;
        let y = self.op(Reshape { shape }, &[y])?;
        self.r.set(id, vec![y]);
        Ok(true)
    }

    /// A value in blocks, where its node moves the channels of another from behind all other axes.
    fn channels_first(&mut self, v: Value) -> Result<Option<Value>> {
        let node = self.r.old.node(v.node);
        let (Op::Transpose(t), Some(x)) = (&node.op, node.operands.first()) else { return Ok(None) };
        let n = t.perm.len();
        let back = || [0, n - 1].into_iter().chain(1..n - 1);
        if n < 3 || !t.perm.iter().copied().eq(back()) || !self.whole(&node.types[0].shape[1]) {
            return Ok(None);
        }
        let x = self.plain(*x)?;
        let x = self.split(x, n - 1, self.block)?;
        self.transposed(x, back().chain([n]).collect()).map(Some)
    }

    /// Whether so many channels are whole blocks.
    fn whole(&self, channels: &Dim) -> bool {
        channels.as_const().is_some_and(|c| c > 0 && c % self.block as i64 == 0)
    }

    fn pack(&mut self, x: Value, ty: &Type) -> Result<Value> {
        let block = self.block;
        if !same_bytes(ty, block) {
            return self.op(Pack { block }, &[x]);
        }
        let mut shape = ty.shape.clone();
        shape[1] = shape[1].floor_div(&Dim::from(block));
        shape.push(Dim::from(block));
        self.op(Reshape { shape }, &[x])
    }

    /// `x` with zeros after axis `axis` up to a multiple of `to`.
    fn filled(&mut self, x: Value, axis: usize, to: usize) -> Result<Value> {
        let shape = self.ty(x).shape.clone();
        let missing = shape[axis].ceil_div(&Dim::from(to)) * Dim::from(to) - shape[axis].clone();
        if missing.is(0) {
            return Ok(x);
        }
        let lo = vec![Dim::Const(0); shape.len()];
        let mut hi = lo.clone();
        hi[axis] = missing;
        self.op(Pad { mode: PadMode::Constant, lo, hi }, &[x])
    }

    /// Axis `axis`, a multiple of `by`, as two: whole blocks, and the place in the block.
    fn split(&mut self, x: Value, axis: usize, by: usize) -> Result<Value> {
        let mut shape = self.ty(x).shape.clone();
        shape[axis] = shape[axis].floor_div(&Dim::from(by));
        shape.insert(axis + 1, Dim::from(by));
        self.op(Reshape { shape }, &[x])
    }

    fn transposed(&mut self, x: Value, perm: Vec<usize>) -> Result<Value> {
        self.op(Transpose { perm }, &[x])
    }

    /// Weights `[O,C/group,kernel..]` in the form that `layout` reads.
    fn weights(&mut self, w: Value, layout: Layout) -> Result<Value> {
        let spatial = self.ty(w).rank() - 2;
        let b = self.block;
        if let Layout::Winograd { form, .. } = layout {
            return self.op(WinogradFilter { tile: form.tile, block: b }, &[w]);
        }
        let w = self.filled(w, 0, b)?;
        match layout {
            Layout::Plain | Layout::Winograd { .. } => Ok(w),
            Layout::Blocked(_) => {
                // [O,C,k..] -> [O/b,b,C/b,b,k..] -> [O/b,C/b,k..,b(in),b(out)]
                let w = self.filled(w, 1, b)?;
                let w = self.split(w, 1, b)?;
                let w = self.split(w, 0, b)?;
                self.transposed(w, [0, 2].into_iter().chain(4..4 + spatial).chain([3, 1]).collect())
            }
            Layout::Enter(_) => {
                let w = self.split(w, 0, b)?;
                self.transposed(w, [0, 2].into_iter().chain(3..3 + spatial).chain([1]).collect())
            }
            Layout::Depthwise(_) => {
                let mut shape = self.ty(w).shape.clone();
                shape.remove(1);
                let w = self.op(Reshape { shape }, &[w])?;
                let w = self.split(w, 0, b)?;
                self.transposed(w, [0].into_iter().chain(2..2 + spatial).chain([1]).collect())
            }
        }
    }

    /// Weights `[O,C/group,kernel..]` of `group` groups, each `n` of which become one: zeros where a filter has no channels.
    fn merged(&mut self, w: Value, group: usize, n: usize) -> Result<Value> {
        let filters = self.ty(w).shape[0].floor_div(&Dim::from(group));
        let (left, missing) = (group.div_ceil(n), group.next_multiple_of(n) - group);
        let mut hi = vec![Dim::Const(0); self.ty(w).rank()];
        hi[0] = filters.clone() * Dim::from(missing);
        let lo = vec![Dim::Const(0); hi.len()];
        let w = if missing > 0 { self.op(Pad { mode: PadMode::Constant, lo, hi }, &[w])? } else { w };
        let shape = self.ty(w).shape.clone();
        let (n, left) = (Dim::from(n), Dim::from(left));
        let filter = Dim::product(&shape[1..]);
        // A group's filters, and zeros as many as those of all groups: read in rows of all groups, each begins one further to the right.
        let own = filters.clone() * filter.clone();
        let w = self.op(Reshape { shape: vec![left.clone(), n.clone(), own.clone()] }, &[w])?;
        let none = vec![Dim::Const(0); 3];
        let after = vec![Dim::Const(0), Dim::Const(0), own.clone() * n.clone()];
        let w = self.op(Pad { mode: PadMode::Constant, lo: none, hi: after }, &[w])?;
        let all = n.clone() * n.clone() * own;
        let w = self.op(Reshape { shape: vec![left.clone(), Dim::product(&self.ty(w).shape[1..])] }, &[w])?;
        let w = self.op(Slice { starts: vec![Dim::Const(0); 2], sizes: vec![left.clone(), all], steps: vec![] }, &[w])?;
        let w = self.op(Reshape { shape: vec![left, n.clone(), n.clone(), filters, filter] }, &[w])?;
        let w = self.transposed(w, vec![0, 1, 3, 2, 4])?;
        let mut whole = shape;
        whole[1] = whole[1].clone() * n;
        self.op(Reshape { shape: whole }, &[w])
    }

    /// Weights in bf16, each two of their rows interleaved ([`takes_narrow`](nnc_ir::ops::contract::takes_narrow)).
    fn narrowed(&mut self, w: Value) -> Result<Value> {
        let shape = self.ty(w).shape.clone();
        let rows = shape.len() - 2;
        let w = self.split(w, rows, 2)?;
        let perm = (0..=rows).chain([rows + 2, rows + 1]).collect();
        let w = self.transposed(w, perm)?;
        let w = self.reshaped(w, shape)?;
        self.op(Cast { to: DType::BF16 }, &[w])
    }

    /// An image, in blocks or not, with zeros around its spatial axes.
    fn with_halo(&mut self, x: Value, pads: &[i64]) -> Result<Value> {
        let (rank, (lo, hi)) = (self.ty(x).rank(), pads.split_at(pads.len() / 2));
        let around = |p: &[i64]| (0..rank).map(|i| Dim::Const(i.checked_sub(2).and_then(|i| p.get(i)).copied().unwrap_or(0))).collect();
        self.op(Pad { mode: PadMode::Constant, lo: around(lo), hi: around(hi) }, &[x])
    }

    fn conv(&mut self, id: NodeId, layout: Layout) -> Result<Value> {
        let old = self.r.old.node(id);
        let Op::Conv(conv) = &old.op else { return Err(nnc_ir::Error::internal("a convolution was planned")) };
        let (conv, operands) = (conv.clone(), old.operands.clone());
        if let (Layout::Winograd { form, .. }, 5) = (layout, self.r.old.ty(operands[1]).rank()) {
            return self.volume(id, &conv, layout, form.tile);
        }
        let mut x = if let Layout::Enter(_) = layout { self.plain(operands[0])? } else { self.blocks(operands[0])? };
        let mut pads = conv.pads.clone();
        // Minimal filtering fills its patches up as it reads them.
        let halo = self.halo && !matches!(layout, Layout::Winograd { .. });
        if halo && pads.iter().any(|p| *p != 0) {
            x = self.with_halo(x, &pads)?;
            pads = vec![];
        }
        let mut w = self.plain(operands[1])?;
        let together = if let Layout::Blocked(_) = layout { merged(&conv, self.ty(w), self.block) } else { 1 };
        if together > 1 {
            w = self.merged(w, conv.group, together)?;
        }
        // Channels of a single group that are no whole blocks.
        let block = self.block as i64;
        let partial = |d: &Dim| if conv.group == 1 { d.as_const().filter(|c| c % block != 0).unwrap_or(0) as usize } else { 0 };
        let (inputs, outputs) = match (layout, &self.ty(w).shape[..2]) {
            (Layout::Blocked(_), [o, c]) => (partial(c), partial(o)),
            (Layout::Enter(_), [o, _]) => (0, partial(o)),
            _ => (0, 0),
        };
        let mut w = self.weights(w, layout)?;
        if self.narrow && self.fixed[operands[1].node.0 as usize] && matches!(layout, Layout::Blocked(_)) {
            w = self.narrowed(w)?;
        }
        let mut args = vec![x, w];
        for (post, v) in conv.post.iter().filter(|p| p.has_operand()).zip(&operands[2..]) {
            args.push(self.post(post, *v)?);
        }
        // A filter for each channel stays so when channels fill a block; the layout says it, the number does not matter.
        self.named(id, Conv { layout, pads, inputs, outputs, group: conv.group.div_ceil(together.max(1)), ..conv }, args)
    }

    /// A convolution for which there is a kernel in the model's layout: its operand is padded as the kernel reads it. Says whether it is one.
    fn planar(&mut self, id: NodeId) -> Result<bool> {
        let node = self.r.old.node(id);
        let Op::Conv(conv) = &node.op else { return Ok(false) };
        let (x, w) = (self.r.old.ty(node.operands[0]), self.r.old.ty(node.operands[1]));
        if !self.halo || !planar::takes(conv, x, w, &node.types[0]) {
            return Ok(false);
        }
        let mut operands: Vec<Value> = node.operands.iter().map(|v| self.r.get(*v)).collect();
        let window = conv.window(w)?;
        let halo = planar::halo(&window);
        if halo.iter().all(|p| *p == 0) {
            return Ok(false);
        }
        operands[0] = self.with_halo(operands[0], &halo)?;
        let pads = window.pads.iter().zip(&halo).map(|(all, held)| all - held).collect();
        let y = self.named(id, Conv { pads, ..conv.clone() }, operands)?;
        self.r.set(id, vec![y]);
        Ok(true)
    }

    /// What an epilogue's step reads.
    fn post(&mut self, post: &Post, v: Value) -> Result<Value> {
        if *post == Post::Add {
            return self.blocks(v);
        }
        let v = self.plain(v)?;
        self.filled(v, 0, self.block)
    }

    /// Minimal filtering of volumes: each plane of the result is an image, made of the planes under its window as more channels.
    fn volume(&mut self, id: NodeId, conv: &Conv, layout: Layout, tile: usize) -> Result<Value> {
        let operands = self.r.old.node(id).operands.clone();
        let out = self.r.old.node(id).types[0].shape.clone();
        let taps = self.r.old.ty(operands[1]).shape[2].clone();
        let none = vec![Dim::Const(0); 6];
        let mut x = self.blocks(operands[0])?;
        let pads = if conv.pads.is_empty() { vec![0; 6] } else { conv.pads.clone() };
        if pads[0] != 0 || pads[3] != 0 {
            let (mut lo, mut hi) = (none.clone(), none.clone());
            (lo[2], hi[2]) = (Dim::Const(pads[0]), Dim::Const(pads[3]));
            x = self.op(Pad { mode: PadMode::Constant, lo, hi }, &[x])?;
        }
        // [N,C/b,D,H,W,b] -> [N,D,C/b,H,W,b], the planes of each window one after the other, and windows as images.
        let outside = vec![0, 2, 1, 3, 4, 5];
        let x = self.transposed(x, outside.clone())?;
        let mut sizes = self.ty(x).shape.clone();
        sizes[1] = out[2].clone();
        let mut under = vec![];
        for tap in 0..taps.as_const().unwrap_or(1) {
            let mut starts = none.clone();
            starts[1] = Dim::Const(tap);
            under.push(self.op(Slice { starts, sizes: sizes.clone(), steps: vec![] }, &[x])?);
        }
        let x = if let [x] = under[..] { x } else { self.op(Concat { axis: 2 }, &under)? };
        let x = self.images(x)?;
        // [O,C,kernel..] -> [O,planes,C,taps,taps], channels in whole blocks.
        let w = self.plain(operands[1])?;
        let w = self.filled(w, 1, self.block)?;
        let w = self.transposed(w, vec![0, 2, 1, 3, 4])?;
        let mut shape = self.ty(w).shape.clone();
        shape[1] = shape[1].clone() * shape.remove(2);
        let w = self.reshaped(w, shape)?;
        let mut args = vec![x, self.op(WinogradFilter { tile, block: self.block }, &[w])?];
        for (post, v) in conv.post.iter().filter(|p| p.has_operand()).zip(&operands[2..]) {
            let mut v = self.post(post, *v)?;
            if *post == Post::Add {
                v = self.transposed(v, outside.clone())?;
                v = self.images(v)?;
            }
            args.push(v);
        }
        let pads = vec![pads[1], pads[2], pads[4], pads[5]];
        let y = self.named(id, Conv { layout, pads, strides: vec![], dilations: vec![], ..conv.clone() }, args)?;
        let mut shape = self.ty(y).shape.clone();
        shape.splice(..1, [out[0].clone(), out[2].clone()]);
        let y = self.reshaped(y, shape)?;
        self.transposed(y, outside)
    }

    /// `[N,D,..]` as `[N*D,..]`.
    fn images(&mut self, x: Value) -> Result<Value> {
        let mut shape = self.ty(x).shape.clone();
        let images = Dim::product(&shape[..2]);
        shape.splice(..2, [images]);
        self.reshaped(x, shape)
    }

    /// A node that works on blocks as well; operands `follows` are in blocks.
    fn flexible(&mut self, id: NodeId, follows: &[usize]) -> Result<Value> {
        let old = self.r.old.node(id);
        let (op, operands, y) = (old.op.clone(), old.operands.clone(), old.types[0].clone());
        let b = Dim::from(self.block);
        let mut args = Vec::with_capacity(operands.len());
        for (k, v) in operands.iter().enumerate() {
            args.push(match &op {
                _ if follows.contains(&k) => self.blocks(*v)?,
                Op::Map(_) => self.aside(*v, &y)?,
                _ => self.plain(*v)?,
            });
        }
        let with = |d: &[Dim], last: Dim| [d, &[last]].concat();
        let op = match op {
            Op::Pool(p) => Op::Pool(Pool { block: self.block, ..p }),
            Op::Interleave(i) => Op::Interleave(Interleave { steps: [&i.steps[..], &[1]].concat() }),
            Op::Pad(p) => Op::Pad(Pad { lo: with(&p.lo, Dim::Const(0)), hi: with(&p.hi, Dim::Const(0)), ..p }),
            Op::Slice(s) => {
                let (mut starts, mut sizes) = (with(&s.starts, Dim::Const(0)), with(&s.sizes, b.clone()));
                starts[1] = starts[1].floor_div(&b);
                sizes[1] = sizes[1].ceil_div(&b);
                let steps = if s.steps.is_empty() { vec![] } else { [&s.steps[..], &[1]].concat() };
                Op::Slice(Slice { starts, sizes, steps })
            }
            op => op,
        };
        self.named(id, op, args)
    }

    /// An operand of a map that does not follow its layout, against a result that is `y` in the model's: one element a channel is
    /// packed, what is the same for all channels gets one more axis.
    fn aside(&mut self, v: Value, y: &Type) -> Result<Value> {
        let x = self.plain(v)?;
        let ty = self.ty(x).clone();
        if ty.elems().is(1) && ty.rank() <= y.rank() {
            return Ok(x);
        }
        let mut shape = vec![Dim::Const(1); y.rank() - ty.rank()];
        shape.extend(ty.shape.iter().cloned());
        if shape[1].is(1) {
            shape.push(Dim::Const(1));
            return self.op(Reshape { shape }, &[x]);
        }
        let full = ty.with_shape(shape.clone());
        let x = self.op(Reshape { shape }, &[x])?;
        self.pack(x, &full)
    }

    /// Puts the right side of a matmul into panels. Says whether it did.
    fn matmul(&mut self, id: NodeId) -> Result<bool> {
        let (Ok(packed), Op::MatMul(mm)) = (panels(self.r.old, id, self.fixed), &self.r.old.node(id).op) else { return Ok(false) };
        let mut args: Vec<Value> = self.r.old.node(id).operands.iter().map(|v| self.r.get(*v)).collect();
        let first = self.ty(args[1]).rank() - 2;
        let fixed = self.fixed[self.r.old.node(id).operands[1].node.0 as usize];
        args[1] = if mm.transposed && !fixed {
            // Columns are channels, the depth is pixels: there is a kernel for that.
            let ty = self.ty(args[1]).clone();
            let (batch, matrix) = ty.shape.split_at(first);
            let w = self.reshaped(args[1], [&[Dim::product(batch)], matrix].concat())?;
            let w = self.op(Pack { block: PANEL }, &[w])?;
            let panels = self.ty(w).shape[1..].to_vec();
            self.reshaped(w, [batch, &panels].concat())?
        } else {
            let axis = if mm.transposed { first } else { first + 1 };
            let w = self.filled(args[1], axis, PANEL)?;
            let w = self.split(w, axis, PANEL)?;
            // [..,K,N/p,p] or [..,N/p,p,K] -> [..,N/p,K,p]
            let swapped = if mm.transposed { [0, 2, 1] } else { [1, 0, 2] };
            self.transposed(w, (0..first).chain(swapped.map(|i| first + i)).collect())?
        };
        if self.narrow && fixed && narrow_product(self.ty(args[1])) {
            args[1] = self.narrowed(args[1])?;
        }
        let y = self.named(id, MatMul { transposed: false, packed, ..mm.clone() }, args)?;
        self.r.set(id, vec![y]);
        Ok(true)
    }

    fn reshaped(&mut self, x: Value, shape: Vec<Dim>) -> Result<Value> {
        if self.ty(x).shape == shape { Ok(x) } else { self.op(Reshape { shape }, &[x]) }
    }
}

/// Whether products by these panels are taken with narrow weights: one matrix, whose depth is whole runs of the kernel.
pub fn narrow_product(panels: &Type) -> bool {
    panels.rank() == 3 && panels.shape[1].as_const().is_some_and(|k| k % PANEL as i64 == 0)
}

/// Fewer rows than this are not worth packing the other side for.
const FEW_ROWS: i64 = 8;
/// Rows of the right side of up to this many columns are read as they lie: they are close enough to each other.
const CLOSE_COLUMNS: i64 = 128;

/// The number of columns of a matmul whose right side is to lie in panels, or why it is not. Weights that are `fixed`, constant or the
/// same in all iterations of a loop, always are; another side that the run computes where that costs less than it saves.
pub fn panels(graph: &Graph, id: NodeId, fixed: &[bool]) -> Result<Dim, &'static str> {
    let node = graph.node(id);
    let Op::MatMul(mm) = &node.op else { return Err("it is no matmul") };
    let (x, w) = (graph.ty(node.operands[0]), graph.ty(node.operands[1]));
    let [batch @ .., rows, columns] = &w.shape[..] else { return Err("its right side is no matrix") };
    let (depth, columns) = if mm.transposed { (columns, rows) } else { (rows, columns) };
    let panel = PANEL as i64;
    let narrow = columns.as_const().is_some_and(|n| n <= CLOSE_COLUMNS && n % panel == 0);
    let left = x.shape.split_last().map_or(&[][..], |(_, rows)| rows);
    let few = match left.last() {
        Some(rows) if !batch.is_empty() => rows.clone(),
        _ => Dim::product(left),
    };
    let few = few.as_const().is_some_and(|m| m < FEW_ROWS);
    match fixed[node.operands[1].node.0 as usize] {
        _ if mm.is_packed() => Err("its right side is packed already"),
        _ if w.dtype != DType::F32 => Err("kernels for panels take f32"),
        _ if depth.is(0) || columns.is(0) => Err("its right side is empty"),
        true if w.const_shape().is_none() => Err("the size of its weights is not known"),
        true => Ok(columns.clone()),
        false if few => Err("few rows are not worth packing the right side for"),
        false if !mm.transposed && narrow => Err("rows of the right side are read as they lie"),
        false => Ok(columns.clone()),
    }
}
