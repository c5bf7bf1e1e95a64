//! Loops whose addresses depend on data: gathering, scattering, indices of elements that are not zero.

use super::loops::Loops;
use super::program::shifted;
use super::view::{View, collapse, row_major};
use super::{Frame, Lowering};
use nnc_ir::error::Result;
use nnc_ir::graph::{NodeId, Value};
use nnc_ir::kernel::{Access, Decode, ExprId, Step};
use nnc_ir::ops::image::ImageDecode;
use nnc_ir::ops::index::{NonZero, ScatterElements, ScatterKind};
use nnc_ir::{DType, Dim, Graph, ScalarFn, Type};

const ZERO: Dim = Dim::Const(0);
const ONE: Dim = Dim::Const(1);

/// Copies `length` elements from operand 0 at `from` to the result at `to`.
fn copy_run(k: &mut Loops, length: &Dim, from: ExprId, to: ExprId) {
    let result = k.result(0);
    let dense = [View::new(vec![ONE]), View::new(vec![ONE])];
    k.serial(std::slice::from_ref(length), &dense, &[from, to], |k, _, at| {
        let v = k.load(0, at[0]);
        k.store(result, at[1], v);
    });
}

/// Whether these are constants, each an index of an axis of so many elements that counts from its start: they need no check in the run.
pub fn all_inside(graph: &Graph, indices: Value, length: &Dim) -> bool {
    let (Some(t), Some(n)) = (graph.constant(indices), length.as_const()) else { return false };
    t.dtype() == DType::I64 && t.elems() <= MANY && (0..t.elems()).all(|i| (0..n).contains(&t.num(i).as_i64()))
}

/// Indices that are looked at when a model is compiled.
const MANY: usize = 1 << 20;

/// With `inside`, indices are known to be ([`all_inside`]).
pub fn gather(k: &mut Loops, axis: usize, inside: bool) -> Result<()> {
    let (xs, indices) = (k.x[0].shape.clone(), Dim::product(&k.x[1].shape));
    let (outer, inner) = (Dim::product(&xs[..axis]), Dim::product(&xs[axis + 1..]));
    let views = [
        View::new(vec![xs[axis].clone() * inner.clone(), ZERO]),
        View::new(vec![ZERO, ONE]),
        View::new(vec![indices.clone() * inner.clone(), inner.clone()]),
    ];
    k.parallel(&[outer, indices], &views, inner.as_const().unwrap_or(64).max(4), |k, _, at| {
        let i = if inside { k.load(1, at[1]) } else { k.checked_index(1, at[1], &xs[axis]) };
        let stride = k.size(&inner);
        let by = k.mul(i, stride);
        let from = k.add(at[0], by);
        let from = k.bind(from);
        copy_run(k, &inner, from, at[2]);
    });
    Ok(())
}

/// Views over the index tensor's axes of x without `axis` and of a dense tensor.
fn along_indices(x: &[Dim], index: &[Dim], axis: usize) -> (Vec<Dim>, [View; 2], Dim) {
    let mut strides = row_major(x);
    let stride = std::mem::take(&mut strides[axis]);
    let mut views = [View::new(strides), View::dense(index)];
    let mut dims = index.to_vec();
    collapse(&mut dims, &mut views);
    (dims, views, stride)
}

pub fn gather_elements(k: &mut Loops, axis: usize) -> Result<()> {
    let (xs, index, result) = (k.x[0].shape.clone(), k.x[1].shape.clone(), k.result(0));
    let (dims, views, stride) = along_indices(&xs, &index, axis);
    k.parallel(&dims, &views, 8, |k, _, at| {
        let i = k.checked_index(1, at[1], &xs[axis]);
        let stride = k.size(&stride);
        let by = k.mul(i, stride);
        let from = k.add(at[0], by);
        let v = k.load(0, from);
        k.store(result, at[1], v);
    });
    Ok(())
}

/// The element of a tensor that `depth` indices from `at` on address, counted from `base`.
fn address(k: &mut Loops, at: ExprId, base: ExprId, dims: &[Dim], strides: &[Dim]) -> ExprId {
    let mut sum = base;
    for (j, (d, stride)) in dims.iter().zip(strides).enumerate() {
        let j = k.int(j as i64);
        let place = k.add(at, j);
        let i = k.checked_index(1, place, d);
        let stride = k.size(stride);
        let by = k.mul(i, stride);
        sum = k.add(sum, by);
    }
    k.bind(sum)
}

pub fn gather_nd(k: &mut Loops, batch: usize) -> Result<()> {
    let (xs, index) = (k.x[0].shape.clone(), k.x[1].shape.clone());
    let depth = index[index.len() - 1].as_const().unwrap_or(0) as usize;
    let strides = row_major(&xs);
    let addressed = batch..batch + depth;
    let run = Dim::product(&xs[addressed.end..]);
    let rows = Dim::product(&index[batch..index.len() - 1]);
    let dims = [Dim::product(&index[..batch]), rows.clone()];
    let (width, per_batch) = (Dim::from(depth), Dim::product(&xs[batch..]));
    let views =
        [View::new(vec![per_batch, ZERO]), View::new(vec![rows.clone() * width.clone(), width]), View::new(vec![rows * run.clone(), run.clone()])];
    k.parallel(&dims, &views, run.as_const().unwrap_or(64).max(8), |k, _, at| {
        let from = address(k, at[1], at[0], &xs[addressed.clone()], &strides[addressed]);
        copy_run(k, &run, from, at[2]);
    });
    Ok(())
}

/// Writes `v` to the result, or combines it with what is there.
fn scatter(k: &mut Loops, kind: ScatterKind, at: ExprId, v: ExprId) {
    let (result, d) = (k.result(0), k.dtype(v));
    let fun = match kind {
        ScatterKind::Set => return k.store(result, at, v),
        ScatterKind::Add | ScatterKind::Max if d == DType::Bool => ScalarFn::Or,
        ScatterKind::Mul | ScatterKind::Min if d == DType::Bool => ScalarFn::And,
        ScatterKind::Add => ScalarFn::Add,
        ScatterKind::Mul => ScalarFn::Mul,
        ScatterKind::Max => ScalarFn::Max,
        ScatterKind::Min => ScalarFn::Min,
    };
    let old = k.load(result, at);
    let new = k.map(fun, &[old, v]);
    k.store(result, at, new);
}

/// In order, on one task: updates of one place must not race. The result holds x already.
fn scatter_elements(k: &mut Loops, op: &ScatterElements, x: &[Dim]) {
    let index = k.x[1].shape.clone();
    let mut strides = row_major(x);
    let stride = std::mem::take(&mut strides[op.axis]);
    let zero = k.int(0);
    let views = [View::new(strides), View::dense(&index), View::dense(&k.x[0].shape)];
    k.serial(&index, &views, &[zero; 3], |k, _, at| {
        let i = k.checked_index(1, at[1], &x[op.axis]);
        let stride = k.size(&stride);
        let by = k.mul(i, stride);
        let to = k.add(at[0], by);
        let to = k.bind(to);
        let v = k.load(0, at[2]);
        scatter(k, op.reduction, to, v);
    });
}

fn scatter_nd(k: &mut Loops, kind: ScatterKind, x: &[Dim]) {
    let index = k.x[1].shape.clone();
    let depth = index[index.len() - 1].as_const().unwrap_or(0) as usize;
    let strides = row_major(x);
    let run = Dim::product(&x[depth..]);
    let rows = Dim::product(&index[..index.len() - 1]);
    let zero = k.int(0);
    k.serial(&[rows], &[View::new(vec![Dim::from(depth)]), View::new(vec![run.clone()])], &[zero; 2], |k, _, at| {
        let (base, from) = (k.int(0), at[1]);
        let index = k.bind(at[0]);
        let to = address(k, index, base, &x[..depth], &strides[..depth]);
        k.serial(std::slice::from_ref(&run), &[View::new(vec![ONE]), View::new(vec![ONE])], &[from, to], |k, _, at| {
            let v = k.load(0, at[0]);
            scatter(k, kind, at[1], v);
        });
    });
}

/// The two scatters.
pub enum Scatter<'a> {
    Elements(&'a ScatterElements),
    Nd(ScatterKind),
}

impl Lowering {
    /// A copy of x, then the updates in place.
    pub(super) fn scatter(&mut self, frame: &mut Frame, id: NodeId, op: Scatter) -> Result<()> {
        let node = frame.graph.node(id);
        let types: Vec<Type> = node.operands.iter().map(|v| frame.graph.ty(*v).clone()).collect();
        let buffers = node.operands.iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        let y = self.result(frame, id, 0)?;
        let site = self.site.clone();
        self.out.copy(&site, &types[0], buffers[0].clone(), y.clone())?;
        let mut k = Loops::new(node.op.name(), &[types[2].clone(), types[1].clone()], &types[..1], Access::ReadWrite, self.out.grain);
        match op {
            Scatter::Elements(op) => scatter_elements(&mut k, op, &types[0].shape),
            Scatter::Nd(kind) => scatter_nd(&mut k, kind, &types[0].shape),
        }
        self.out.launch(&site, k, vec![buffers[2].clone(), buffers[1].clone(), y])
    }

    /// Counts, binds the count, then writes the indices: the result's rows are as long as the count.
    pub(super) fn non_zero(&mut self, frame: &mut Frame, id: NodeId, op: &NonZero) -> Result<()> {
        let node = frame.graph.node(id);
        let (x, y) = (frame.graph.ty(node.operands[0]).clone(), node.types[0].clone());
        let from = self.operand(frame, node.operands[0])?;
        let site = self.site.clone();
        let scalar = Type::new(DType::I64, vec![]);
        let count = self.out.work(&scalar);
        let one_if = |k: &mut Loops, at: ExprId| {
            let v = k.load(0, at);
            k.cast(DType::Bool, v)
        };
        let mut k = Loops::new("count_non_zero", std::slice::from_ref(&x), std::slice::from_ref(&scalar), Access::Write, self.out.grain);
        let zero = k.int(0);
        let total = k.set_new(zero);
        k.serial(&[x.elems()], &[View::dense(&[x.elems()])], &[zero], |k, _, at| {
            let hit = one_if(k, at[0]);
            let (one, old) = (k.cast(DType::I64, hit), k.var(total));
            let new = k.add(old, one);
            k.set(total, new);
        });
        let (n, place) = (k.var(total), k.result(0));
        k.store(place, zero, n);
        self.out.launch(&site, k, vec![from.clone(), count.clone()])?;
        let limit = self.out.limit(&x.elems());
        if let Some(symbol) = op.count.as_sym() {
            self.out.step(Step::Bind { symbol: symbol.clone(), from: count });
            self.out.define(symbol, limit);
        }
        let to = self.result(frame, id, 0)?;
        let mut k = Loops::new("non_zero", std::slice::from_ref(&x), std::slice::from_ref(&y), Access::Write, self.out.grain);
        let zero = k.int(0);
        let next = k.set_new(zero);
        let result = k.result(0);
        k.serial(&x.shape, &[View::dense(&x.shape)], &[zero], |k, vars, at| {
            let hit = one_if(k, at[0]);
            k.when(hit, |k| {
                let place = k.var(next);
                let zero = k.int(0);
                // A scalar counts as a vector of one element.
                let digits = if vars.is_empty() { &[zero] } else { vars };
                for (j, v) in digits.iter().enumerate() {
                    let row = k.size(&(op.count.clone() * Dim::from(j)));
                    let to = k.add(place, row);
                    k.store(result, to, *v);
                }
                let one = k.int(1);
                let after = k.add(place, one);
                k.set(next, after);
            });
        });
        self.out.launch(&site, k, vec![from, to])
    }

    /// The host tells the picture's sizes, then gives its samples.
    pub(super) fn image_decode(&mut self, frame: &mut Frame, id: NodeId, op: &ImageDecode) -> Result<()> {
        let node = frame.graph.node(id);
        let bytes = frame.graph.ty(node.operands[0]).elems();
        let file = self.operand(frame, node.operands[0])?;
        let sizes = self.out.work(&Type::new(DType::I64, vec![Dim::Const(2)]));
        let ask = Decode { file, bytes, channels: op.channels, sizes: sizes.clone(), samples: None };
        self.out.step(Step::Decode(ask.clone()));
        for (i, d) in [&op.height, &op.width].into_iter().enumerate() {
            if let Some(symbol) = d.as_sym() {
                self.out.step(Step::Bind { symbol: symbol.clone(), from: shifted(&sizes, Dim::from(i)) });
                self.out.define(symbol, None);
            }
        }
        let samples = Some(self.result(frame, id, 0)?);
        self.out.step(Step::Decode(Decode { samples, ..ask }));
        Ok(())
    }
}
