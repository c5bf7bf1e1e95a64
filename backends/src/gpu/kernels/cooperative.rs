//! The part of a subgroup in a product of tiles by matrices that it holds together: how is the device's affair, so results go to their
//! threads through shared memory.

use super::tile::{Part, Tile};
use super::{Frame, barrier};
use crate::gpu::gir::{Binary, Elem, Op, Space, Stmt, Ty, Val};
use nnc_ir::target::Cooperative;

/// Words of a tile's line, of two numbers each, side by side along the depth.
const NUMBERS: u32 = 2;

/// The blocks of a tile that a subgroup computes: some beside each other.
pub struct Blocks {
    shape: Cooperative,
    count: u32,
    steps: u32,
    /// The first one's row and column in the tile.
    row: Val,
    column: Val,
    /// Where results are handed over, a tile of them.
    results: Space,
}

/// How many blocks of a tile a subgroup computes; `None` where they do not come out even.
pub fn share(t: Tile, c: Cooperative) -> Option<u32> {
    let whole = |n: u32, by: u32| (by > 0 && n.is_multiple_of(by)).then(|| n / by);
    let (down, across) = (whole(t.rows, c.rows)?, whole(t.columns, c.columns)?);
    whole(t.depth, c.depth)?;
    let count = whole(down * across, whole(t.threads(), c.lanes)?)?;
    whole(across, count)?;
    c.depth.is_multiple_of(NUMBERS).then_some(count)
}

impl Blocks {
    pub fn new(f: &mut Frame, t: Tile, shape: Cooperative, count: u32) -> Blocks {
        f.b.cooperate(shape);
        let subgroup = f.b.value(Op::Subgroup);
        let first = f.b.with(Binary::Mul, subgroup, count.into());
        let across = f.b.i32((t.columns / shape.columns) as i32);
        let (row, column) = f.split(first, across);
        Blocks {
            shape,
            count,
            steps: t.depth / shape.depth,
            row: f.b.with(Binary::Mul, row, shape.rows.into()),
            column: f.b.with(Binary::Mul, column, shape.columns.into()),
            results: f.b.shared(Elem::F32, t.rows * t.columns),
        }
    }

    /// Sums before the first tiles.
    pub fn none(&self, f: &mut Frame) -> Vec<Val> {
        vec![f.b.value(Op::Const(Ty::Sums, 0)); self.count as usize]
    }

    /// Adds the product of the tiles in shared memory.
    pub fn multiply(&self, f: &mut Frame, left: &Part, right: &Part, sums: &mut [Val]) {
        let place = |f: &mut Frame, p: &Part, line: Val| {
            let by = f.b.with(Binary::Mul, line, p.pitch.into());
            f.b.add(p.start, by)
        };
        let (of_left, of_right) = (place(f, left, self.row), place(f, right, self.column));
        for step in 0..self.steps {
            let along = step * self.shape.depth / NUMBERS;
            let load = |f: &mut Frame, matrix: Ty, p: &Part, first: Val, by: u32| {
                let index = f.b.with(Binary::Add, first, by.into());
                f.b.value(Op::LoadMatrix { matrix, from: p.space, index, pitch: p.pitch })
            };
            let a = load(f, Ty::Left, left, of_left, along);
            for (i, sum) in sums.iter_mut().enumerate() {
                let b = load(f, Ty::Right, right, of_right, i as u32 * self.shape.columns * right.pitch + along);
                *sum = f.b.value(Op::MulAdd(a, b, *sum));
            }
        }
    }

    /// The sums of a thread, of those rows and columns of the tile.
    pub fn results(&self, f: &mut Frame, t: Tile, sums: &[Val], rows: &[Val], columns: &[Val]) -> Vec<Val> {
        let first = f.b.with(Binary::Mul, self.row, t.columns.into());
        let first = f.b.add(first, self.column);
        for (i, value) in sums.iter().enumerate() {
            let index = f.b.with(Binary::Add, first, (i as u32 * self.shape.columns).into());
            f.b.emit(Stmt::StoreMatrix { to: self.results, index, pitch: t.columns, value: *value });
        }
        barrier(&mut f.b);
        let mut out = vec![];
        for row in rows {
            let line = f.b.with(Binary::Mul, *row, t.columns.into());
            for column in columns {
                let at = f.b.add(line, *column);
                out.push(f.b.load(self.results, at));
            }
        }
        out
    }
}
