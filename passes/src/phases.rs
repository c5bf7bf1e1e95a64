//! Transposed convolutions become ordinary ones, which have fast kernels.
//!
//! With stride `s`, the results whose index leaves the remainder `r` by `s`, a *phase*, see every `s`-th tap of the kernel and no
//! other: each phase is a convolution of stride 1 by those taps, backwards. The results of the phases [`Interleave`].
//!
//! * *Apart*: one convolution a phase, nothing is multiplied by zero.
//! * *Together*: the phases are channels of one convolution, whose kernel spans all their taps. Better where the channels of a phase
//!   fill no block, or where the phases see the same inputs.
//! * A single pixel is a matrix product: nothing overlaps.
//!
//! Weights that the run computes, as the way back through a strided convolution has them in training, are cut into phases by the run.

use crate::pass::Context;
use crate::rebuild::{self, Rebuild};
use nnc_ir::ops::contract::{Conv, ConvTranspose, Layout, MatMul, Post, Window};
use nnc_ir::ops::movement::{Expand, Interleave, Pad, PadMode, Reshape, Slice, Transpose};
use nnc_ir::{DType, Dim, Graph, NodeId, Op, Report, Result, Type, Value};

/// Phases that are worth a launch each.
const MAX_PHASES: usize = 64;

/// Rewrites the transposed convolutions of f32.
pub fn run(graph: Graph, cx: &mut Context) -> Result<Graph, Report> {
    if cx.target.block == 1 || !graph.ids().any(|id| matches!(graph.node(id).op, Op::ConvTranspose(_))) {
        return Ok(graph);
    }
    let mut r = Rebuild::new(&graph);
    for id in r.order() {
        let node = graph.node(id);
        let rewritten = match &node.op {
            Op::ConvTranspose(op) => Site { r: &mut r, id, op, block: cx.target.block }.rewrite().map_err(|e| e.at(&node.loc))?,
            _ => None,
        };
        match rewritten {
            Some(y) => r.set(id, vec![y]),
            None => {
                r.keep(id);
            }
        }
    }
    Ok(r.finish())
}

/// The results at `r, r + stride, ..` along one axis: result `q` of them is the sum over `j < taps` of tap `first + j * step` times
/// input `q + last - j * dilation`.
#[derive(Clone, Copy)]
struct Phase {
    first: i64,
    step: i64,
    taps: i64,
    last: i64,
    dilation: i64,
}

impl Phase {
    fn new(w: &Window, axis: usize, r: i64) -> Phase {
        let (stride, dilation, kernel) = (w.strides[axis], w.dilations[axis], w.kernel[axis]);
        let common = gcd(stride, dilation);
        let (step, at) = (stride / common, r + w.pads[axis]);
        let first = (0..step.min(kernel)).find(|k| (at - k * dilation).rem_euclid(stride) == 0);
        match first {
            Some(first) => {
                Phase { first, step, taps: (kernel - first + step - 1) / step, last: (at - first * dilation) / stride, dilation: dilation / common }
            }
            None => Phase { first: 0, step, taps: 0, last: 0, dilation: dilation / common },
        }
    }

    /// The offset of the first input that is seen.
    fn earliest(&self) -> i64 {
        self.last - (self.taps - 1).max(0) * self.dilation
    }
}

/// A phase along every axis: where its results lie, its taps, how many results there are.
struct Branch {
    place: Vec<usize>,
    taps: Vec<Phase>,
    shape: Vec<Dim>,
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A transposed convolution being rewritten.
struct Site<'a, 'g> {
    r: &'a mut Rebuild<'g>,
    id: NodeId,
    op: &'a ConvTranspose,
    block: usize,
}

impl Site<'_, '_> {
    fn rewrite(&mut self) -> Result<Option<Value>> {
        let node = self.r.old.node(self.id);
        let types: Vec<Type> = node.operands.iter().map(|v| self.r.old.ty(*v).clone()).collect();
        let (x, y) = (&types[0], &node.types[0]);
        let Some(ws) = types[1].const_shape() else { return Ok(None) };
        let w = self.op.window(&types[1])?;
        let n = w.kernel.len();
        if x.dtype != DType::F32 || ws.contains(&0) || w.strides.iter().product::<i64>() > MAX_PHASES as i64 {
            return Ok(None);
        }
        if let Some(pixel) = self.pixel(x, y, &w, &ws)? {
            return Ok(Some(pixel));
        }
        let axes: Vec<Vec<Phase>> = (0..n).map(|i| (0..w.strides[i]).map(|r| Phase::new(&w, i, r)).collect()).collect();
        // Results of phase `r` along an axis, and how many there are more than inputs.
        let length = |i: usize, r: usize| (y.shape[2 + i].clone() - Dim::from(r)).ceil_div(&Dim::Const(w.strides[i]));
        let surplus = |i: usize, r: usize| (length(i, r) - x.shape[2 + i].clone()).as_const();
        let padding = |i: usize, r: usize, earliest: i64, last: i64| Some((-earliest, surplus(i, r)? + last)).filter(|p| p.0 >= 0 && p.1 >= 0);
        let block = self.block as i64;
        let filled = |channels: i64| (channels + block - 1) / block * block;
        let channels = ws[1] * self.op.group as i64;

        let span = |i: usize| {
            let (lo, hi) = (axes[i].iter().map(Phase::earliest).min()?, axes[i].iter().map(|p| p.last).max()?);
            let close = axes[i].iter().all(|p| p.dilation == 1);
            padding(i, 0, lo, hi).filter(|_| close).map(|pad| (lo, hi, pad))
        };
        let together = (0..n).map(span).collect::<Option<Vec<_>>>().filter(|_| self.op.group == 1 && !self.op.post.contains(&Post::Add));
        let alone = |i: usize, r: usize| padding(i, r, axes[i][r].earliest(), axes[i][r].last).filter(|_| axes[i][r].taps > 0);
        let apart = (0..n).map(|i| (0..axes[i].len()).map(|r| alone(i, r)).collect()).collect::<Option<Vec<Vec<_>>>>();

        let taps_apart: i64 = axes.iter().map(|a| a.iter().map(|p| p.taps).sum::<i64>()).product();
        let phases: i64 = w.strides.iter().product();
        let work_together =
            |spans: &[(i64, i64, (i64, i64))]| spans.iter().map(|(lo, hi, _)| hi - lo + 1).product::<i64>() * filled(channels * phases);
        let steps: Vec<usize> = [1, 1].into_iter().chain(w.strides.iter().map(|s| *s as usize)).collect();
        let interleave = Interleave { steps };
        let branch = |k: usize| {
            let place = interleave.place(k)[2..].to_vec();
            let of = place.iter().copied().enumerate();
            Branch { taps: of.clone().map(|(i, r)| axes[i][r]).collect(), shape: of.map(|(i, r)| length(i, r)).collect(), place }
        };
        let branches: Vec<Branch> = (0..phases as usize).map(branch).collect();
        let weights = self.forward(&ws)?;
        let parts = match (together, apart) {
            (Some(spans), apart) if apart.is_none() || work_together(&spans) <= taps_apart * filled(channels) => {
                let mut kernels = vec![];
                for Branch { taps, .. } in &branches {
                    let around: Vec<(i64, i64)> = taps.iter().zip(&spans).map(|(p, (lo, hi, _))| (p.earliest() - lo, hi - p.last)).collect();
                    kernels.push(self.kernel(weights, taps, &around)?);
                }
                let w = self.join(kernels)?;
                let pads = spans.iter().map(|s| s.2).collect::<Vec<_>>();
                let all = self.conv(w, &pads, None, phases)?;
                let ty = self.r.new.ty(all).clone();
                let mut parts = vec![];
                for (k, branch) in branches.iter().enumerate() {
                    let mut starts = vec![Dim::Const(0); 2 + n];
                    starts[1] = Dim::Const(k as i64 * channels);
                    let sizes = [&[ty.shape[0].clone(), Dim::Const(channels)], &branch.shape[..]].concat();
                    parts.push(self.derive(Slice { starts, sizes, steps: vec![] }, &[all])?);
                }
                parts
            }
            (_, Some(pads)) => {
                let mut parts = vec![];
                for branch in &branches {
                    let w = self.kernel(weights, &branch.taps, &vec![(0, 0); n])?;
                    let pads: Vec<(i64, i64)> = branch.place.iter().enumerate().map(|(i, r)| pads[i][*r]).collect();
                    parts.push(self.conv(w, &pads, Some(branch), 1)?);
                }
                parts
            }
            _ => return Ok(None),
        };
        self.derive(interleave, &parts).map(Some)
    }

    /// One pixel: the results of a channel are its kernel, times the pixel.
    fn pixel(&mut self, x: &Type, y: &Type, w: &Window, ws: &[i64]) -> Result<Option<Value>> {
        let n = w.kernel.len();
        let whole = w.dilations.iter().all(|d| *d == 1) && w.pads.iter().all(|p| *p >= 0) && self.op.output_padding.iter().all(|p| *p == 0);
        let Some(out) = y.shape[1..].iter().map(Dim::as_const).collect::<Option<Vec<_>>>() else { return Ok(None) };
        if !whole || self.op.group != 1 || x.shape[2..].iter().any(|d| !d.is(1)) || out.contains(&0) {
            return Ok(None);
        }
        let columns: i64 = out.iter().product();
        let operands = self.operands();
        let starts = [0, 0].iter().chain(&w.pads[..n]).map(|p| Dim::Const(*p)).collect();
        let sizes = ws[..2].iter().chain(&out[1..]).map(|d| Dim::Const(*d)).collect();
        let kernel = self.derive(Slice { starts, sizes, steps: vec![] }, &operands[1..2])?;
        let kernel = self.reshape(kernel, vec![Dim::Const(ws[0]), Dim::Const(columns)])?;
        let mut args = vec![self.reshape(operands[0], x.shape[..2].to_vec())?, kernel];
        for (post, v) in self.op.post.iter().filter(|p| p.has_operand()).zip(&operands[2..]) {
            args.push(match post {
                Post::Add => self.reshape(*v, vec![x.shape[0].clone(), Dim::Const(columns)])?,
                _ => {
                    let column = self.reshape(*v, vec![Dim::Const(out[0]), Dim::Const(1)])?;
                    let all = self.derive(Expand { shape: vec![Dim::Const(out[0]), Dim::Const(columns / out[0])] }, &[column])?;
                    self.reshape(all, vec![Dim::Const(columns)])?
                }
            });
        }
        let product = self.derive(MatMul { transposed: false, packed: Dim::Const(0), post: self.op.post.clone() }, &args)?;
        self.reshape(product, y.shape.clone()).map(Some)
    }

    /// Weights `[C,O/group,kernel..]` as those of a convolution, `[O,C/group,kernel..]`.
    fn forward(&mut self, ws: &[i64]) -> Result<Value> {
        let w = self.operands()[1];
        let (group, kernel) = (self.op.group as i64, &ws[2..]);
        let dims = |d: &[i64]| d.iter().chain(kernel).map(|d| Dim::Const(*d)).collect();
        let split = self.reshape(w, dims(&[group, ws[0] / group, ws[1]]))?;
        let perm = [0, 2, 1].into_iter().chain(3..3 + kernel.len()).collect();
        let turned = self.derive(Transpose { perm }, &[split])?;
        self.reshape(turned, dims(&[group * ws[1], ws[0] / group]))
    }

    /// The taps of a phase in the order of a convolution, with zeros around.
    fn kernel(&mut self, w: Value, taps: &[Phase], around: &[(i64, i64)]) -> Result<Value> {
        let shape = self.r.new.ty(w).shape.clone();
        let with = |first: [Dim; 2], rest: &dyn Fn(usize) -> i64| -> Vec<Dim> {
            first.into_iter().chain((0..taps.len()).map(|i| Dim::Const(rest(i)))).collect()
        };
        let zero = || [Dim::Const(0), Dim::Const(0)];
        // A phase without taps is zeros where the others have one.
        let (lo, hi) = (with(zero(), &|i| around[i].0), with(zero(), &|i| around[i].1 + (1 - taps[i].taps).max(0)));
        let slice = Slice {
            starts: with(zero(), &|i| taps[i].first + (taps[i].taps - 1).max(0) * taps[i].step),
            sizes: with([shape[0].clone(), shape[1].clone()], &|i| taps[i].taps),
            steps: [1, 1].into_iter().chain(taps.iter().map(|p| -p.step)).collect(),
        };
        let w = self.derive(slice, &[w])?;
        if lo.iter().chain(&hi).all(|d| d.is(0)) { Ok(w) } else { self.derive(Pad { mode: PadMode::Constant, lo, hi }, &[w]) }
    }

    /// The convolution by `w`, of one phase or of all `copies`. A residual is read where the phase lies in it.
    fn conv(&mut self, w: Value, pads: &[(i64, i64)], branch: Option<&Branch>, copies: i64) -> Result<Value> {
        let operands = self.operands();
        let mut args = vec![operands[0], w];
        for (post, v) in self.op.post.iter().filter(|p| p.has_operand()).zip(&operands[2..]) {
            let ty = self.r.new.ty(*v).clone();
            args.push(match (post, branch) {
                (Post::Add, Some(b)) => {
                    let starts = [0, 0].iter().chain(&b.place).map(|p| Dim::from(*p)).collect();
                    let strides = if self.op.strides.is_empty() { vec![1; b.place.len()] } else { self.op.strides.clone() };
                    let steps = [1, 1].into_iter().chain(strides).collect();
                    self.derive(Slice { starts, sizes: [&ty.shape[..2], &b.shape].concat(), steps }, &[*v])?
                }
                _ if copies == 1 => *v,
                _ => {
                    let all = self.derive(Expand { shape: vec![Dim::Const(copies), ty.shape[0].clone()] }, &[*v])?;
                    self.reshape(all, vec![Dim::Const(copies) * ty.shape[0].clone()])?
                }
            });
        }
        let pads = pads.iter().map(|p| p.0).chain(pads.iter().map(|p| p.1)).collect();
        let dilations = branch.map_or(vec![], |b| b.taps.iter().map(|p| p.dilation).collect());
        let conv = Conv { strides: vec![], dilations, pads, group: self.op.group, layout: Layout::Plain, post: self.op.post.clone() };
        self.derive(conv, &args)
    }

    /// Kernels one after the other along the output channels.
    fn join(&mut self, kernels: Vec<Value>) -> Result<Value> {
        if let [one] = kernels[..] { Ok(one) } else { self.derive(nnc_ir::ops::movement::Concat { axis: 0 }, &kernels) }
    }

    fn reshape(&mut self, x: Value, shape: Vec<Dim>) -> Result<Value> {
        if self.r.new.ty(x).shape == shape { Ok(x) } else { self.derive(Reshape { shape }, &[x]) }
    }

    fn operands(&self) -> Vec<Value> {
        self.r.old.node(self.id).operands.iter().map(|v| self.r.get(*v)).collect()
    }

    /// An operation in the node's place, under its name.
    fn derive(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Value> {
        let node = self.r.old.node(self.id);
        rebuild::infer(&mut self.r.new, op.into(), operands.to_vec(), node.name.clone(), node.loc.clone())
    }
}
