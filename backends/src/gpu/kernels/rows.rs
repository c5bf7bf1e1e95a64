//! Functions of whole rows: a group takes a row, its threads every so many elements of it.

use super::{Frame, Result, Site, no};
use crate::gpu::gir::{Binary, Compare, Convert, Elem, Op as Gir, Ty, Unary, Val};
use crate::gpu::lower::Lowered;
use crate::gpu::lower::fold::Partials;
use crate::gpu::lower::scalar::float;
use nnc_ir::ops::Op;
use nnc_ir::{DType, Dim, ScalarFn, Type};

/// Elements below which a row is a thread's work.
const LEAST: i64 = 64;

/// A row as the threads of a group walk it.
struct Row<'a> {
    start: Val,
    length: Val,
    thread: Val,
    threads: u32,
    /// Elements of a thread, at most.
    steps: Val,
    partials: &'a Partials,
}

impl Row<'_> {
    /// Folds what `f` makes of the thread's elements, then of all threads: in the same order on every device.
    fn fold(&self, f: &mut Frame, fun: ScalarFn, none: f32, mut of: impl FnMut(&mut Frame, Val, Val) -> Result<Val>) -> Result<Val> {
        let (zero, none) = (f.b.i32(0), f.b.f32(none));
        let (index, sum) = (f.b.fresh(Ty::I32), f.b.fresh(Ty::F32));
        f.b.begin();
        let (at, inside) = self.element(f, index);
        let first = f.b.select(inside, at, zero);
        let place = f.b.add(self.start, first);
        let x = f.load(0, place);
        let v = of(f, x, at)?;
        let v = f.b.select(inside, v, none);
        let next = float(&mut f.b, fun, DType::F32, sum, v)?;
        f.b.end_for(index, (zero, self.steps), &[none], &[sum], vec![next]);
        self.partials.fold(f, self.thread, sum, &mut |f, a, b| float(&mut f.b, fun, DType::F32, a, b))
    }

    /// The place of the thread's element in a step, and whether there is one.
    fn element(&self, f: &mut Frame, step: Val) -> (Val, Val) {
        let by = f.b.with(Binary::Mul, step, self.threads.into());
        let at = f.b.add(by, self.thread);
        (at, f.b.compare(Compare::Lt, at, self.length))
    }

    /// Stores what `of` makes of each element.
    fn map(&self, f: &mut Frame, output: usize, mut of: impl FnMut(&mut Frame, Val, Val) -> Result<Val>) -> Result<()> {
        let (zero, index) = (f.b.i32(0), f.b.fresh(Ty::I32));
        f.b.begin();
        let (at, inside) = self.element(f, index);
        f.b.begin();
        let place = f.b.add(self.start, at);
        let x = f.load(0, place);
        let v = of(f, x, at)?;
        f.store(output, place, v);
        let body = f.b.end();
        f.b.join(inside, (body, vec![]), (vec![], vec![]));
        f.b.end_for(index, (zero, self.steps), &[], &[], vec![]);
        Ok(())
    }
}

pub fn rows(s: &Site) -> Result<Lowered> {
    let shape = &s.x(0).shape;
    let (axis, whole) = match &s.origin.op {
        Op::Softmax(op) => (op.axis, false),
        Op::LogSoftmax(op) => (op.axis, false),
        Op::LayerNorm(op) => (op.axis, true),
        _ => return no("not a function of rows"),
    };
    if !whole && axis + 1 != shape.len() {
        return no("the axis is not the last");
    }
    let (count, length) = (Dim::product(&shape[..axis]), Dim::product(&shape[axis..]));
    if whole && s.origin.x[1..].iter().any(|t: &Type| t.elems() != length) {
        return no("scale or bias broadcast");
    }
    if length.as_const().is_some_and(|n| n < LEAST) {
        return no(format!("rows of {length}: a thread takes one"));
    }
    let root = Partials::root(length.as_const());
    let threads = root * root;
    let mut f = s.frame(threads);
    let (n, steps) = (f.size(&length)?, f.size(&super::tiles(&length, threads))?);
    let partials = Partials::new(&mut f.b, Elem::F32, root);
    let thread = f.b.value(Gir::Thread);
    f.groups(&count, |f, group| {
        let row = Row { start: f.b.mul(group, n), length: n, thread, threads, steps, partials: &partials };
        let output = s.output();
        let Op::LayerNorm(op) = &s.origin.op else {
            let log = matches!(s.origin.op, Op::LogSoftmax(_));
            let most = row.fold(f, ScalarFn::Max, f32::NEG_INFINITY, |_, x, _| Ok(x))?;
            let exp = |f: &mut Frame, x: Val| {
                let d = f.b.sub(x, most);
                float(&mut f.b, ScalarFn::Exp, DType::F32, d, d)
            };
            let sum = row.fold(f, ScalarFn::Add, 0.0, |f, x, _| exp(f, x))?;
            let divisor = if log { float(&mut f.b, ScalarFn::Log, DType::F32, sum, sum)? } else { sum };
            return row.map(f, output, |f, x, _| {
                if log {
                    let d = f.b.sub(x, most);
                    return Ok(f.b.sub(d, divisor));
                }
                let e = exp(f, x)?;
                Ok(f.b.binary(Binary::Div, e, divisor))
            });
        };
        let length = f.b.convert(Convert::FloatS, Ty::F32, n);
        let sum = row.fold(f, ScalarFn::Add, 0.0, |_, x, _| Ok(x))?;
        let mean = f.b.binary(Binary::Div, sum, length);
        let squares = row.fold(f, ScalarFn::Add, 0.0, |f, x, _| {
            let d = f.b.sub(x, mean);
            Ok(f.b.mul(d, d))
        })?;
        let variance = f.b.binary(Binary::Div, squares, length);
        let epsilon = f.b.f32(op.epsilon.0 as f32);
        let shifted = f.b.add(variance, epsilon);
        let deviation = f.b.unary(Unary::Sqrt, shifted);
        row.map(f, output, |f, x, at| {
            let d = f.b.sub(x, mean);
            let mut v = f.b.binary(Binary::Div, d, deviation);
            let scale = f.load(1, at);
            v = f.b.mul(v, scale);
            if s.origin.x.len() > 2 {
                let bias = f.load(2, at);
                v = f.b.add(v, bias);
            }
            Ok(v)
        })
    })
}
