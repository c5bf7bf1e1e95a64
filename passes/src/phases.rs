//! Transposed convolutions become ordinary ones, which have fast kernels.
//!
//! With stride `s`, the results whose index leaves the remainder `r` by `s`, a *phase*, see every `s`-th tap of the kernel and no
//! other: each phase is a convolution of stride 1 by those taps, backwards. The results of the phases [`Interleave`].
//!
//! * *Together*: where the phases see the same inputs, they are channels of one convolution.
//! * *Apart*: else one convolution a phase. No kernel is filled up with zeros, which would make NaN of inputs that are infinite.
//! * A single pixel is a matrix product: nothing overlaps.
//!
//! Weights that the run computes, as the way back through a strided convolution has them in training, are cut into phases by the run.

use crate::pass::Context;
use crate::rebuild::{self, Rebuild};
use nnc_ir::ops::contract::{Conv, ConvTranspose, Layout, MatMul, Post, Window};
use nnc_ir::ops::movement::{Expand, Interleave, Reshape, Slice, Transpose};
use nnc_ir::ops::source::Const;
use nnc_ir::{DType, Dim, Graph, NodeId, Op, Report, Result, Tensor, Type, Value};

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
            Op::ConvTranspose(op) => Site { r: &mut r, id, op }.rewrite().map_err(|e| e.at(&node.loc))?,
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
}

impl Site<'_, '_> {
    fn rewrite(&mut self) -> Result<Option<Value>> {
        let node = self.r.old.node(self.id);
        let types: Vec<Type> = node.operands.iter().map(|v| self.r.old.ty(*v).clone()).collect();
        let (x, y) = (&types[0], &node.types[0]);
        let Some(ws) = types[1].const_shape() else { return Ok(None) };
        let w = self.op.window(&types[1])?;
        let n = w.kernel.len();
        if x.dtype != DType::F32 || ws.contains(&0) || w.strides.iter().fold(1, |n: i64, s| n.saturating_mul(*s)) > MAX_PHASES as i64 {
            return Ok(None);
        }
        if let Some(pixel) = self.pixel(x, y, &w, &ws)? {
            return Ok(Some(pixel));
        }
        let axes: Vec<Vec<Phase>> = (0..n).map(|i| (0..w.strides[i]).map(|r| Phase::new(&w, i, r)).collect()).collect();
        // Results of phase `r` along an axis, and how many there are more than inputs.
        let length = |i: usize, r: usize| (y.shape[2 + i].clone() - Dim::from(r)).ceil_div(&Dim::Const(w.strides[i]));
        let surplus = |i: usize, r: usize| (length(i, r) - x.shape[2 + i].clone()).as_const();
        // Zeros around the inputs, or inputs that no result of the phase sees where it is negative.
        let padding = |i: usize, r: usize| {
            let (lo, hi) = (-axes[i][r].earliest(), surplus(i, r)? + axes[i][r].last);
            let unseen = (-lo).max(0) + (-hi).max(0);
            (unseen == 0 || x.shape[2 + i].as_const().is_some_and(|d| unseen <= d)).then_some((lo, hi))
        };
        let pads = (0..n).map(|i| (0..axes[i].len()).map(|r| padding(i, r)).collect()).collect::<Option<Vec<Vec<_>>>>();
        let Some(pads) = pads else { return Ok(None) };
        let channels = ws[1] * self.op.group as i64;
        let phases: i64 = w.strides.iter().product();
        let same = |a: &Vec<Phase>| a.iter().all(|p| p.taps > 0 && (p.earliest(), p.last, p.dilation) == (a[0].earliest(), a[0].last, 1));
        let together = self.op.group == 1 && !self.op.post.contains(&Post::Add) && axes.iter().all(same);

        let steps: Vec<usize> = [1, 1].into_iter().chain(w.strides.iter().map(|s| *s as usize)).collect();
        let interleave = Interleave { steps };
        let branch = |k: usize| {
            let place = interleave.place(k)[2..].to_vec();
            let of = place.iter().copied().enumerate();
            Branch { taps: of.clone().map(|(i, r)| axes[i][r]).collect(), shape: of.map(|(i, r)| length(i, r)).collect(), place }
        };
        let branches: Vec<Branch> = (0..phases as usize).map(branch).collect();
        let weights = self.forward(&ws)?;
        let mut parts = vec![];
        if together {
            let kernels = branches.iter().map(|b| self.kernel(weights, &b.taps)).collect::<Result<_>>()?;
            let w = self.join(kernels)?;
            // The longest of the phases is the first.
            let pads = pads.iter().map(|p| p[0]).collect::<Vec<_>>();
            let all = self.conv(w, &pads, None, phases)?;
            let ty = self.r.new.ty(all).clone();
            for (k, branch) in branches.iter().enumerate() {
                let mut starts = vec![Dim::Const(0); 2 + n];
                starts[1] = Dim::Const(k as i64 * channels);
                let sizes = [&[ty.shape[0].clone(), Dim::Const(channels)], &branch.shape[..]].concat();
                parts.push(self.derive(Slice { starts, sizes, steps: vec![] }, &[all])?);
            }
        } else {
            for branch in &branches {
                let pads: Vec<(i64, i64)> = branch.place.iter().enumerate().map(|(i, r)| pads[i][*r]).collect();
                parts.push(if branch.taps.iter().all(|p| p.taps > 0) {
                    let w = self.kernel(weights, &branch.taps)?;
                    self.conv(w, &pads, Some(branch), 1)?
                } else {
                    self.nothing(branch)?
                });
            }
        }
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

    /// The taps of a phase in the order of a convolution.
    fn kernel(&mut self, w: Value, taps: &[Phase]) -> Result<Value> {
        let shape = self.r.new.ty(w).shape.clone();
        let with = |first: [Dim; 2], rest: &dyn Fn(&Phase) -> i64| -> Vec<Dim> {
            first.into_iter().chain(taps.iter().map(|p| Dim::Const(rest(p)))).collect()
        };
        let slice = Slice {
            starts: with([Dim::Const(0), Dim::Const(0)], &|p| p.first + (p.taps - 1) * p.step),
            sizes: with([shape[0].clone(), shape[1].clone()], &|p| p.taps),
            steps: [1, 1].into_iter().chain(taps.iter().map(|p| -p.step)).collect(),
        };
        self.derive(slice, &[w])
    }

    /// A phase that no tap is in: sums of nothing, and what follows them.
    fn nothing(&mut self, branch: &Branch) -> Result<Value> {
        let node = self.r.old.node(self.id);
        let (batch, out, group) = (node.types[0].shape[0].clone(), node.types[0].shape[1].clone(), Dim::from(self.op.group));
        let zero = self.derive(Const(Tensor::scalar(0f32)), &[])?;
        let plain = self.op.post.is_empty();
        let mut zeros = |shape: Vec<Dim>| self.derive(Expand { shape }, &[zero]);
        if plain {
            return zeros([&[batch, out], &branch.shape[..]].concat());
        }
        let x = zeros([&[batch, group], &branch.shape[..]].concat())?;
        let one = vec![Dim::Const(1); branch.shape.len()];
        let w = zeros([&[out, Dim::Const(1)], &one[..]].concat())?;
        self.convolve(x, w, vec![], vec![], Some(branch), 1)
    }

    /// The convolution by `w`, of one phase or of all `copies`. A residual is read where the phase lies in it.
    fn conv(&mut self, w: Value, pads: &[(i64, i64)], branch: Option<&Branch>, copies: i64) -> Result<Value> {
        let mut x = self.operands()[0];
        if pads.iter().any(|p| p.0 < 0 || p.1 < 0) {
            let shape = self.r.new.ty(x).shape.clone();
            let cut = |p: i64| Dim::Const((-p).max(0));
            let starts = [0, 0].map(Dim::Const).into_iter().chain(pads.iter().map(|p| cut(p.0))).collect();
            let inner = pads.iter().zip(&shape[2..]).map(|(p, d)| d.clone() - cut(p.0) - cut(p.1));
            let sizes = shape[..2].iter().cloned().chain(inner).collect();
            x = self.derive(Slice { starts, sizes, steps: vec![] }, &[x])?;
        }
        let pads = pads.iter().map(|p| p.0.max(0)).chain(pads.iter().map(|p| p.1.max(0))).collect();
        let dilations = branch.map_or(vec![], |b| b.taps.iter().map(|p| p.dilation).collect());
        self.convolve(x, w, pads, dilations, branch, copies)
    }

    /// The convolution of `x` by `w`, with what follows the transposed one.
    fn convolve(&mut self, x: Value, w: Value, pads: Vec<i64>, dilations: Vec<i64>, branch: Option<&Branch>, copies: i64) -> Result<Value> {
        let operands = self.operands();
        let mut args = vec![x, w];
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
        let conv =
            Conv { strides: vec![], dilations, pads, group: self.op.group, layout: Layout::Plain, inputs: 0, outputs: 0, post: self.op.post.clone() };
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
