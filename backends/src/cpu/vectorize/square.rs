//! Transposition: two loops of which the inner one stores along memory, while some of its loads run along memory with the outer one. Squares
//! of such loads are read row by row, transposed in registers and left in the function's own memory, from where the body takes them.

use super::nest::{Nest, vectors};
use super::{Lane, Tail, Translation, Val};
use crate::cpu::vir::{Addr, Builder, I, ICmp, X};
use nnc_ir::DType;
use nnc_ir::error::Result;
use nnc_ir::kernel::{ExprId, Stmt, VarId};
use std::collections::BTreeMap;

/// The most loads that are transposed: their squares take a page of the first-level cache at most.
const MOST: usize = 4;

pub(super) struct Square<'s> {
    nest: Nest<'s>,
    /// The loads that run along the outer loop: expression, buffer, index, and how many elements further the next iteration of the
    /// inner loop reads.
    across: Vec<(ExprId, u32, ExprId, i64)>,
}

/// The vectors of both loops being done: where they start, and what is left of the loops where that is less.
#[derive(Clone, Copy)]
struct Tile {
    /// Where the inner loop starts, and the function's own memory.
    from: X,
    frame: I,
    row: X,
    rows: Option<Tail>,
    column: I,
    columns: Option<Tail>,
}

impl Translation<'_> {
    /// The loop over `outer` as the outer one of squares.
    pub(super) fn square<'s>(&self, outer: VarId, body: &'s [Stmt]) -> Option<Square<'s>> {
        let nest = self.nest(outer, body)?;
        let leaping = |index: ExprId| self.coefficient(index, nest.inner).filter(|n| !matches!(n, 0 | 1) && n.unsigned_abs() < 1 << 40);
        let along = |index: ExprId| self.coefficient_through(index, outer, &nest.locals) == Some(1);
        let loads = self.loads(nest.body).into_iter().filter(|(_, buf, index)| self.k.params[*buf as usize].dtype == DType::F32 && along(*index));
        let across: Vec<(ExprId, u32, ExprId, i64)> = loads.filter_map(|(e, buf, index)| Some((e, buf, index, leaping(index)?))).collect();
        let taken: Vec<ExprId> = across.iter().map(|a| a.0).collect();
        let fits = (1..=MOST).contains(&across.len()) && self.fits_but(nest.inner, nest.body, &taken) && self.reductions(nest.body).is_empty();
        fits.then_some(Square { nest, across })
    }

    /// The loops of squares, the outer one from `lo` to `hi`.
    pub(super) fn squares(&mut self, b: &mut Builder, s: &Square, lo: X, hi: X) -> Result<()> {
        self.loops += 1;
        let frame = b.frame((s.across.len() as i64 * b.lanes() as i64 * b.width()) as u32);
        let (from, to) = (self.int(b, s.nest.lo)?, self.int(b, s.nest.hi)?);
        let length = |b: &mut Builder, from: X, to: X| {
            let n = b.isub(to, from);
            b.imax(n, 0)
        };
        let (rows, columns) = (length(b, lo, hi), length(b, from, to));
        let mut result = Ok(());
        vectors(b, rows, |b, row, rows| {
            let row = b.iadd(lo, row);
            vectors(b, columns, |b, column, columns| {
                let done = self.tile(b, s, Tile { from, frame, row, rows, column, columns });
                result = std::mem::replace(&mut result, Ok(())).and(done);
            });
        });
        result
    }

    /// The iterations of a tile: its squares, then row by row.
    fn tile(&mut self, b: &mut Builder, s: &Square, t: Tile) -> Result<()> {
        let (lanes, width) = (b.lanes() as i64, b.width());
        let (outside, hoisted) = (self.vars.clone(), self.hoisted.clone());
        self.vars.insert(s.nest.outer, Val::I(t.row));
        self.stmts(b, s.nest.before)?;
        let first = b.iadd(t.from, t.column);
        self.vars.insert(s.nest.inner, Val::I(first));
        for (k, (_, buf, index, step)) in s.across.iter().enumerate() {
            let at = self.address(b, *buf, *index)?;
            let at = b.iadd(at.base, i64::from(at.disp));
            let at = b.var(at);
            let load = |b: &mut Builder| match t.rows {
                Some(rows) => b.load_mask(at, rows.mask),
                None => b.load(at),
            };
            let mut square = vec![];
            for column in 0..lanes {
                square.push(match t.columns {
                    None => load(b),
                    // A column that is not there is not read.
                    Some(columns) => {
                        let some = b.constant(0.0);
                        b.if_(ICmp::Gt, columns.left, column, |b| {
                            let x = load(b);
                            b.copy_to(some, x);
                        });
                        some
                    }
                });
                b.inc(at, step * 4);
            }
            for (row, v) in b.transpose(&square).into_iter().enumerate() {
                b.store(Addr::from(t.frame).off((k as i64 * lanes + row as i64) * width), v);
            }
        }
        let mut result = Ok(());
        b.for_(0, t.rows.map_or(lanes.into(), |r| r.left), 1, |b, row| {
            result = self.row(b, s, t, row, &outside);
        });
        self.vars = outside;
        self.hoisted = hoisted;
        self.lane = None;
        result
    }

    /// Row `row` of a tile.
    fn row(&mut self, b: &mut Builder, s: &Square, t: Tile, row: I, outside: &BTreeMap<VarId, Val>) -> Result<()> {
        let (lanes, width) = (b.lanes() as i64, b.width());
        self.vars.clone_from(outside);
        let at = b.iadd(t.row, row);
        self.vars.insert(s.nest.outer, Val::I(at));
        self.stmts(b, s.nest.before)?;
        // Inside of the vector the variable counts as the loop's start.
        self.vars.insert(s.nest.inner, Val::I(t.from));
        let offset = b.imul(row, width);
        let squares = b.ptr(t.frame, offset);
        for (k, (load, ..)) in s.across.iter().enumerate() {
            let v = b.load(Addr::from(squares).off(k as i64 * lanes * width));
            self.hoisted.insert(*load, Val::F(v));
        }
        self.lane = Some(Lane { var: s.nest.inner, at: t.column, ahead: 0, tail: t.columns });
        self.stmts(b, s.nest.body)
    }
}
