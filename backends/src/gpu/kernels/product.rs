//! Products of matrices.

use super::epilogue::is_heavy;
use super::tile::{LEAST, Line, Shape, Source, Tile, place, product as tiled};
use super::{Element, Frame, Result, Site, no};
use crate::gpu::gir::Val;
use crate::gpu::lower::Lowered;
use nnc_ir::Dim;
use nnc_ir::ops::Op;

/// A matrix in memory: where it starts, which is a multiple of the greater distance, and the distances of lines and of depths.
pub struct Matrix {
    pub param: usize,
    pub base: Val,
    pub line: Val,
    pub depth: Val,
}

impl Source for Matrix {
    fn along_depth(&self, f: &Frame) -> bool {
        f.b.constant(self.depth) == Some(1)
    }

    fn together(&self, f: &Frame) -> u32 {
        f.together(self.param, if self.along_depth(f) { self.line } else { self.depth })
    }

    fn line(&mut self, f: &mut Frame, line: Val, inside: Option<Val>) -> Line {
        let by = f.b.mul(line, self.line);
        Line { inside, at: vec![f.b.add(self.base, by)] }
    }

    fn element(&mut self, f: &mut Frame, line: &Line, depth: Val, inside: Option<Val>) -> Element {
        let by = f.b.mul(depth, self.depth);
        Element { param: self.param, at: f.b.add(line.at[0], by), inside: f.both(line.inside, inside) }
    }
}

/// Where the matrices of an operand start: the distance of each axis of the batch, 0 where it is stretched.
fn distances(own: &[Dim], batch: &[Dim], elems: Dim) -> Vec<Dim> {
    let skip = batch.len() - own.len();
    let mut step = elems;
    let mut out = vec![];
    for (i, d) in own.iter().enumerate().rev() {
        out.push(step.clone() * d.stretch_factor(&batch[skip + i]));
        step = step * d.clone();
    }
    out.resize(batch.len(), Dim::Const(0));
    out.reverse();
    out
}

pub fn product(s: &Site) -> Result<Lowered> {
    let Op::MatMul(op) = &s.origin.op else { return no("not a product of matrices") };
    if op.is_packed() {
        return no("the right matrix lies in panels");
    }
    let (xs, ws, ys) = (&s.x(0).shape, &s.x(1).shape, &s.y().shape);
    if xs.len() < 2 || ws.len() < 2 {
        return no("a vector");
    }
    let (batch_w, matrix) = ws.split_at(ws.len() - 2);
    let depth = xs.last().filter(|d| d.as_const().is_some()).unwrap_or(&matrix[usize::from(op.transposed)]).clone();
    // One right matrix for all: the left ones are one.
    let batch: &[Dim] = if batch_w.iter().all(|d| d.is(1)) { &[] } else { &ys[..ys.len() - 2] };
    let (batch_x, batch_w) = if batch.is_empty() { (&[][..], &[][..]) } else { (&xs[..xs.len() - 2], batch_w) };
    let (rows, columns) = (Dim::product(&ys[batch.len()..ys.len() - 1]), ys[ys.len() - 1].clone());
    if [&rows, &columns].iter().any(|d| d.as_const().is_some_and(|d| d < LEAST)) {
        return no(format!("a product of {rows} rows and {columns} columns: tiles would be mostly empty"));
    }
    let shape = Shape { batch: Dim::product(batch), rows: rows.clone(), columns: columns.clone(), depth: depth.clone() };
    let tile = Tile::choose(s.device, &shape, is_heavy(&op.post), s.y().dtype);
    let mut f = s.frame(tile.threads());
    let sizes = shape.sizes(&mut f, tile)?;
    let one = f.b.i32(1);
    let (n, k) = (f.size(&columns)?, f.size(&depth)?);
    let mut axes = vec![];
    let of = [
        distances(batch_x, batch, rows.clone() * depth.clone()),
        distances(batch_w, batch, Dim::product(matrix)),
        distances(batch, batch, rows * columns),
    ];
    for (i, d) in batch.iter().enumerate() {
        let steps = [f.size(&of[0][i])?, f.size(&of[1][i])?, f.size(&of[2][i])?];
        axes.push((f.size(d)?, steps));
    }
    f.groups(&shape.groups(tile), |f, group| {
        let (mut rest, row, column) = place(f, tile, &sizes, group);
        let zero = f.b.i32(0);
        let mut bases = [zero; 3];
        for (i, (d, steps)) in axes.iter().enumerate().rev() {
            let (outer, at) = if i == 0 { (zero, rest) } else { f.split(rest, *d) };
            rest = outer;
            for (base, step) in bases.iter_mut().zip(steps) {
                let by = f.b.mul(at, *step);
                *base = f.b.add(*base, by);
            }
        }
        let mut a = Matrix { param: 0, base: bases[0], line: k, depth: one };
        let (line, down) = if op.transposed { (k, one) } else { (one, n) };
        let mut b = Matrix { param: 1, base: bases[1], line, depth: down };
        let mut of_row = |f: &mut Frame, r: Val| {
            let by = f.b.mul(r, n);
            (f.b.add(bases[2], by), None)
        };
        let mut of_column = |_: &mut Frame, c: Val| (c, Some(c));
        tiled(f, (&shape, &sizes, tile), (row, column), (&mut a, &mut b), (&op.post, s.output(), n), (&mut of_row, &mut of_column))
    })
}
