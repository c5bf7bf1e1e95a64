//! Products of tiles: a group computes a tile of the result, its threads some elements each. Tiles of both operands go through shared
//! memory, so that an element is read from far once for a whole row or column of the tile.

use super::epilogue::epilogue;
use super::matrix::Units;
use super::{Frame, Result, barrier, is_multiple, no, tiles};
use crate::gpu::gir::{Binary, Elem, Op, Val};
use nnc_ir::Dim;
use nnc_ir::ops::contract::Post;
use nnc_ir::target::{Gpu, GpuIsa};

/// Rows and columns of the result that a group computes, the depth that it sums at once, and the elements of a thread along both.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tile {
    pub rows: u32,
    pub columns: u32,
    pub depth: u32,
    pub of_thread: u32,
    /// Whether the next tiles are read while these are multiplied.
    pub ahead: bool,
    /// Whether operands are rounded to bf16, and subgroups multiply matrices of them.
    pub matrices: bool,
}

const LARGE: Tile = Tile { rows: 128, columns: 128, depth: 8, of_thread: 8, ahead: true, matrices: false };
const MEDIUM: Tile = Tile { rows: 64, columns: 64, depth: 16, of_thread: 4, ahead: false, matrices: false };
const SMALL: Tile = Tile { rows: 32, columns: 32, depth: 32, of_thread: 2, ahead: false, matrices: false };
/// For matrix units: eight subgroups, and two.
const WIDE: Tile = Tile { rows: 128, columns: 128, depth: 32, of_thread: 8, ahead: true, matrices: true };
const NARROW: Tile = Tile { rows: 64, columns: 64, ..WIDE };

/// Rows or columns below which a tile would be mostly empty.
pub const LEAST: i64 = 8;

impl Tile {
    pub fn threads(self) -> u32 {
        self.rows * self.columns / (self.of_thread * self.of_thread)
    }

    /// The largest one that leaves no half of it empty and gives every multiprocessor some groups.
    pub fn choose(device: &Gpu, s: &Shape, heavy: bool) -> Tile {
        let nvidia = device.isa != GpuIsa::SpirV;
        let fits = |t: &Tile| {
            let groups = s.groups(*t).as_const();
            let filled = |d: &Dim, n: u32| d.as_const().is_none_or(|d| 2 * d > i64::from(n));
            // Smaller tiles than the narrow ones are none of matrix units.
            let enough = !nvidia || *t == NARROW || groups.is_none_or(|g| g >= 128);
            filled(&s.rows, t.rows) && filled(&s.columns, t.columns) && enough
        };
        // Registers and code of a large one are spent on the epilogue, too.
        let list: &[Tile] = match (device.bf16, nvidia && !heavy) {
            (true, true) => &[WIDE, NARROW],
            (true, false) => &[NARROW],
            (false, true) => &[LARGE, MEDIUM],
            (false, false) => &[MEDIUM],
        };
        let chosen = list.iter().find(|t| fits(t)).copied().unwrap_or(SMALL);
        Tile { ahead: nvidia, ..chosen }
    }
}

/// A matrix that tiles are read from.
pub trait Source {
    /// Whether neighbours in memory are neighbours along the depth.
    fn along_depth(&self, f: &Frame) -> bool;

    /// What all elements of a row (a column of the right operand) have in common; `inside` is whether there is such a row.
    fn line(&mut self, f: &mut Frame, line: Val, inside: Option<Val>) -> Line;

    /// The element at a depth, 0 outside of the matrix.
    fn element(&mut self, f: &mut Frame, line: &Line, depth: Val, inside: Option<Val>) -> Val;
}

/// A row: numbers that its elements are found by.
pub struct Line {
    pub inside: Option<Val>,
    pub at: Vec<Val>,
}

/// The sizes of a product.
pub struct Shape {
    pub batch: Dim,
    pub rows: Dim,
    pub columns: Dim,
    pub depth: Dim,
}

/// The sizes within the kernel.
pub struct Sizes {
    rows: Val,
    columns: Val,
    depth: Val,
    row_tiles: Val,
    column_tiles: Val,
}

impl Shape {
    pub fn groups(&self, t: Tile) -> Dim {
        self.batch.clone() * tiles(&self.rows, t.rows) * tiles(&self.columns, t.columns)
    }

    pub fn sizes(&self, f: &mut Frame, t: Tile) -> Result<Sizes> {
        if self.depth.is(0) {
            return no("sums of nothing: an operand is empty, and tiles are read before they are asked for");
        }
        Ok(Sizes {
            rows: f.size(&self.rows)?,
            columns: f.size(&self.columns)?,
            depth: f.size(&self.depth)?,
            row_tiles: f.size(&tiles(&self.rows, t.rows))?,
            column_tiles: f.size(&tiles(&self.columns, t.columns))?,
        })
    }
}

/// The group's place in the batch, and the first row and column of its tile. Groups that run together share columns.
pub fn place(f: &mut Frame, t: Tile, s: &Sizes, group: Val) -> (Val, Val, Val) {
    let (rest, row) = f.split(group, s.row_tiles);
    let (batch, column) = f.split(rest, s.column_tiles);
    let (row, column) = (f.b.with(Binary::Mul, row, t.rows.into()), f.b.with(Binary::Mul, column, t.columns.into()));
    (batch, row, column)
}

/// How the threads of a group read a tile: each some lines at some depths. For matrix units an element of the tile is a pair of
/// neighbours along the depth, and a line's pairs lie side by side.
pub struct Reader {
    pub space: crate::gpu::gir::Space,
    /// Distance of depths (of lines, where there are pairs) in shared memory.
    pub pitch: u32,
    /// For each element that a thread reads: the number of its line among `lines`, its depth within the tile, its place.
    elements: Vec<(usize, Val, Val)>,
    lines: Vec<Line>,
    pairs: bool,
}

impl Reader {
    fn new(f: &mut Frame, t: Tile, source: &mut dyn Source, span: u32, first: Val, count: Val, whole: bool) -> Reader {
        let (along, pairs) = (source.along_depth(f), t.matrices);
        let deep = if pairs { t.depth / 2 } else { t.depth };
        let (pitch, space) = if pairs {
            // Rows of 16 bytes; four words more, so that eight lines lie in different banks.
            (deep + 4, f.b.shared(Elem::I32, (deep + 4) * span))
        } else {
            // One more, so that neighbours along the depth lie in different banks.
            let pitch = if along { span + 1 } else { span };
            (pitch, f.b.shared(Elem::F32, pitch * deep))
        };
        let (thread, each) = (f.b.value(Op::Thread), span * deep / t.threads());
        let inner = f.b.i32(if along { deep } else { span } as i32);
        let (high, low) = f.split(thread, inner);
        let mut lines: Vec<(Val, Line)> = vec![];
        let mut elements = vec![];
        for i in 0..each {
            let step = i64::from(t.threads() / if along { deep } else { span } * i);
            let far = f.b.with(Binary::Add, high, step);
            let (line, depth) = if along { (far, low) } else { (low, far) };
            let at = match lines.iter().position(|(l, _)| *l == line) {
                Some(at) => at,
                None => {
                    let global = f.b.add(first, line);
                    let inside = f.below(whole, global, count);
                    let of = source.line(f, global, inside);
                    lines.push((line, of));
                    lines.len() - 1
                }
            };
            let (outer, within) = if pairs { (line, depth) } else { (depth, line) };
            let row = f.b.with(Binary::Mul, outer, pitch.into());
            let place = f.b.add(row, within);
            let depth = if pairs { f.b.with(Binary::Mul, depth, 2) } else { depth };
            elements.push((at, depth, place));
        }
        Reader { space, pitch, elements, lines: lines.into_iter().map(|(_, l)| l).collect(), pairs }
    }

    /// The thread's elements of the tile that starts at a depth.
    fn read(&self, f: &mut Frame, source: &mut dyn Source, start: Val, depth: Val, whole: bool) -> Vec<Val> {
        let mut out = vec![];
        for (line, at, _) in &self.elements {
            let mut one = |f: &mut Frame, next: i64| {
                let k = f.b.add(start, *at);
                let k = f.b.with(Binary::Add, k, next);
                let inside = f.below(whole, k, depth);
                source.element(f, &self.lines[*line], k, inside)
            };
            let first = one(f, 0);
            out.push(if self.pairs {
                let second = one(f, 1);
                f.b.value(Op::PairBf16(first, second))
            } else {
                first
            });
        }
        out
    }

    fn write(&self, f: &mut Frame, values: &[Val]) {
        for ((.., at), v) in self.elements.iter().zip(values) {
            f.b.store(self.space, *at, *v);
        }
    }
}

/// A thread's elements of the product: its rows and columns within the result, and the sums by row, then column.
struct Sums {
    rows: Vec<Val>,
    columns: Vec<Val>,
    sums: Vec<Val>,
}

fn multiply(f: &mut Frame, shape: &Shape, s: &Sizes, t: Tile, (row, column): (Val, Val), a: &mut dyn Source, b: &mut dyn Source) -> Sums {
    let n = t.of_thread;
    let (whole_depth, count) = (is_multiple(&shape.depth, t.depth), n * n);
    let left = Reader::new(f, t, a, t.rows, row, s.rows, is_multiple(&shape.rows, t.rows));
    let right = Reader::new(f, t, b, t.columns, column, s.columns, is_multiple(&shape.columns, t.columns));
    let units = t.matrices.then(|| Units::new(f, t));
    // A thread's rows and columns lie apart by the threads along them: neighbours compute neighbours.
    let (thread, across, down) = (f.b.value(Op::Thread), t.columns / n, t.rows / n);
    let by = f.b.i32(across as i32);
    let (ty, tx) = f.split(thread, by);
    let (zero, none) = (f.b.i32(0), f.b.f32(0.0));
    let steps = f.b.with(Binary::Add, s.depth, i64::from(t.depth) - 1);
    let steps = f.b.with(Binary::DivU, steps, t.depth.into());
    let read = |f: &mut Frame, a: &mut dyn Source, b: &mut dyn Source, step: Val, whole: bool| {
        let start = f.b.with(Binary::Mul, step, t.depth.into());
        [left.read(f, a, start, s.depth, whole), right.read(f, b, start, s.depth, whole)].concat()
    };
    let mut first = vec![none; count as usize];
    if t.ahead {
        first.extend(read(f, a, b, zero, whole_depth));
    }
    // The loop's body is built with the frame, so the builder's closures are opened by hand.
    let index = f.b.fresh(f.b.ty(zero));
    let values: Vec<Val> = first.iter().map(|v| f.b.fresh(f.b.ty(*v))).collect();
    f.b.begin();
    let (sums, held) = values.split_at(count as usize);
    let mut sums = sums.to_vec();
    let tile = if t.ahead { held.to_vec() } else { read(f, a, b, index, whole_depth) };
    let (of_left, of_right) = tile.split_at(left.elements.len());
    left.write(f, of_left);
    right.write(f, of_right);
    barrier(&mut f.b);
    let next = if t.ahead {
        // Behind the last tile there is nothing: all elements are outside.
        let after = f.b.with(Binary::Add, index, 1);
        read(f, a, b, after, false)
    } else {
        vec![]
    };
    if let Some(units) = &units {
        units.multiply(f, &left, &right, &mut sums);
    } else {
        for k in 0..t.depth {
            let column = |f: &mut Frame, r: &Reader, start: Val, i: u32, apart: u32| {
                let at = f.b.with(Binary::Add, start, (k * r.pitch + i * apart).into());
                f.b.load(r.space, at)
            };
            let x: Vec<Val> = (0..n).map(|i| column(f, &left, ty, i, down)).collect();
            let y: Vec<Val> = (0..n).map(|i| column(f, &right, tx, i, across)).collect();
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = f.b.value(Op::MulAdd(x[i / n as usize], y[i % n as usize], *sum));
            }
        }
    }
    barrier(&mut f.b);
    sums.extend(next);
    f.b.end_for(index, (zero, steps), &first, &values, sums);
    let sums = values[..count as usize].to_vec();
    if let Some(units) = units {
        let (rows, columns) = units.places(f, row, column);
        return Sums { rows, columns, sums };
    }
    let places = |f: &mut Frame, first: Val, own: Val, apart: u32| -> Vec<Val> {
        let base = f.b.add(first, own);
        (0..n).map(|i| f.b.with(Binary::Add, base, (i * apart).into())).collect()
    };
    Sums { rows: places(f, row, ty, down), columns: places(f, column, tx, across), sums }
}

/// Where a row or a column of results lies, and the channel, where it decides on that.
type Spot = (Val, Option<Val>);
pub type Target<'a> = &'a mut dyn FnMut(&mut Frame, Val) -> Spot;

/// A tile of the product of `a` and `b`, followed by `post`. A result lies at the sum of its row's place and its column's.
pub fn product(
    f: &mut Frame,
    (shape, s, t): (&Shape, &Sizes, Tile),
    corner: (Val, Val),
    (a, b): (&mut dyn Source, &mut dyn Source),
    (post, output): (&[Post], usize),
    (of_row, of_column): (Target, Target),
) -> Result<()> {
    let p = multiply(f, shape, s, t, corner, a, b);
    let columns: Vec<(Spot, Option<Val>)> = p
        .columns
        .iter()
        .map(|c| {
            let inside = f.below(is_multiple(&shape.columns, t.columns), *c, s.columns);
            (of_column(f, *c), inside)
        })
        .collect();
    let mut sums = p.sums.iter();
    for row in &p.rows {
        let in_rows = f.below(is_multiple(&shape.rows, t.rows), *row, s.rows);
        let (at_row, row_channel) = of_row(f, *row);
        for ((at_column, channel), in_columns) in &columns {
            let Some((sum, channel)) = sums.next().zip(row_channel.or(*channel)) else { return no("a product without channels") };
            let inside = f.both(in_rows, *in_columns);
            f.b.begin();
            let at = f.b.add(at_row, *at_column);
            let v = epilogue(f, post, *sum, channel, at)?;
            f.store(output, at, v);
            let body = f.b.end();
            match inside {
                Some(inside) => drop(f.b.join(inside, (body, vec![]), (vec![], vec![]))),
                None => body.into_iter().for_each(|s| f.b.emit(s)),
            }
        }
    }
    Ok(())
}
