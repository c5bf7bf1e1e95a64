//! The part of a subgroup in a product of tiles by matrix units: blocks of 16 rows and 8 columns, 8 words deep.

use super::Frame;
use super::tile::{Part, Tile};
use crate::gpu::gir::{Binary, Op, Ty, Val, Words};

/// Rows, columns and words along the depth of a block.
const ROWS: u32 = 16;
const COLUMNS: u32 = 8;
const WORDS: u32 = 8;

/// The blocks that a subgroup computes, and where its threads find theirs.
pub struct Units {
    words: Words,
    /// Blocks along rows and columns, and steps along the depth.
    down: u32,
    across: u32,
    steps: u32,
    /// The subgroup's first row and column in the tile, and the thread's place in the subgroup.
    row: Val,
    column: Val,
    lane: Val,
}

impl Units {
    /// Two subgroups below each other, as many beside each other as there are.
    pub fn new(f: &mut Frame, t: Tile, words: Words) -> Units {
        let beside = t.threads() / 32 / 2;
        let (rows, columns) = (t.rows / 2, t.columns / beside);
        let (thread, lane) = (f.b.value(Op::Thread), f.b.value(Op::Lane));
        let subgroup = f.b.with(Binary::ShrU, thread, 5);
        let by = f.b.i32(beside as i32);
        let (y, x) = f.split(subgroup, by);
        Units {
            words,
            down: rows / ROWS,
            across: columns / COLUMNS,
            steps: t.depth / words.numbers() / WORDS,
            row: f.b.with(Binary::Mul, y, rows.into()),
            column: f.b.with(Binary::Mul, x, columns.into()),
            lane,
        }
    }

    /// Adds the product of the tiles in shared memory. A block's four sums of a thread are its rows `g` and `g + 8` by its columns `2t` and
    /// `2t + 1`; all sums lie by row, then column.
    pub fn multiply(&self, f: &mut Frame, left: &Part, right: &Part, sums: &mut [Val]) {
        // Of the left tile, a thread names row `lane % 16` of a block and its first or second 16 bytes; of the right one, row `lane % 8` of
        // one of two blocks, and those bytes.
        let low = f.b.with(Binary::And, self.lane, 15);
        let half = f.b.with(Binary::ShrU, self.lane, 4);
        let (row, byte) = (f.b.add(self.row, low), f.b.with(Binary::Mul, half, 4));
        let at = f.b.with(Binary::Mul, row, left.pitch.into());
        let at = f.b.add(at, byte);
        let of_left = f.b.add(at, left.start);
        let low = f.b.with(Binary::And, self.lane, 7);
        let second = f.b.with(Binary::Mul, half, COLUMNS.into());
        let column = f.b.add(low, second);
        let column = f.b.add(self.column, column);
        let half = f.b.with(Binary::ShrU, self.lane, 3);
        let half = f.b.with(Binary::And, half, 1);
        let byte = f.b.with(Binary::Mul, half, 4);
        let at = f.b.with(Binary::Mul, column, right.pitch.into());
        let at = f.b.add(at, byte);
        let of_right = f.b.add(at, right.start);
        let width = 2 * self.across as usize;
        for step in 0..self.steps {
            let mut b: Vec<[Val; 2]> = vec![];
            for two in 0..self.across / 2 {
                let at = f.b.with(Binary::Add, of_right, (2 * two * COLUMNS * right.pitch + step * WORDS).into());
                let [p, q, r, s] = self.load(f, right, at);
                b.extend([[p, q], [r, s]]);
            }
            for i in 0..self.down {
                let at = f.b.with(Binary::Add, of_left, (i * ROWS * left.pitch + step * WORDS).into());
                let a = self.load(f, left, at);
                for (j, b) in b.iter().enumerate() {
                    let first = 2 * i as usize * width + 2 * j;
                    let places = [first, first + 1, first + width, first + width + 1];
                    let new = f.b.multiply_matrices(self.words, a, *b, places.map(|p| sums[p]));
                    places.iter().zip(new).for_each(|(p, v)| sums[*p] = v);
                }
            }
        }
    }

    /// Four matrices, their numbers rounded where they are not yet.
    fn load(&self, f: &mut Frame, part: &Part, at: Val) -> [Val; 4] {
        let words: [Val; 4] = f.b.load_matrices(part.space, at);
        match self.words {
            Words::Bf16 | Words::F16 => words,
            Words::Tf32 => words.map(|w| {
                let number = f.b.bits(Ty::F32, w);
                f.b.value(Op::Tf32(number))
            }),
        }
    }

    /// The rows and columns of a thread's sums in the result, for a tile whose first are these.
    pub fn places(&self, f: &mut Frame, row: Val, column: Val) -> (Vec<Val>, Vec<Val>) {
        let g = f.b.with(Binary::ShrU, self.lane, 2);
        let t = f.b.with(Binary::And, self.lane, 3);
        let t = f.b.with(Binary::Mul, t, 2);
        let (row, column) = (f.b.add(row, self.row), f.b.add(column, self.column));
        let (row, column) = (f.b.add(row, g), f.b.add(column, t));
        let rows = (0..2 * self.down).map(|i| f.b.with(Binary::Add, row, (i / 2 * ROWS + i % 2 * 8).into())).collect();
        let columns = (0..2 * self.across).map(|j| f.b.with(Binary::Add, column, (j / 2 * COLUMNS + j % 2).into())).collect();
        (rows, columns)
    }
}
