//! Products of tiles: a group computes a tile of the result, its threads some elements each. Tiles of both operands go through shared
//! memory, so that an element is read from far once for a whole row or column of the tile.

use super::cooperative::{Blocks, share};
use super::epilogue::{Channel, epilogue};
use super::matrix::Units;
use super::{Element, Frame, Result, barrier, is_multiple, no, pairs, tiles};
use crate::gpu::gir::{Binary, Compare, Elem, Op, Space, Stmt, Ty, Val, Words};
use nnc_ir::ops::contract::Post;
use nnc_ir::target::{Cooperative, Gpu, Rounding};
use nnc_ir::{DType, Dim};

/// Rows and columns of the result that a group computes, the depth that it sums at once, and the elements of a thread along both.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tile {
    pub rows: u32,
    pub columns: u32,
    pub depth: u32,
    pub of_thread: u32,
    /// Neighbours among a thread's rows and columns: shared memory is read, and results are stored, so many at once.
    pub wide: u32,
    pub feed: Feed,
    /// What operands are rounded to, where subgroups multiply matrices of them.
    pub matrices: Option<Words>,
    /// The matrices that subgroups hold together, if they do, and how many of the tile each of them computes.
    pub cooperative: Option<(Cooperative, u32)>,
}

/// How tiles come to shared memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Feed {
    /// They are read when they are needed.
    Plain,
    /// The next ones are read into registers while these are multiplied: what is rounded on its way.
    Ahead,
    /// By copies that go on beside the threads, into so many tiles in turn.
    Copies(u32),
}

const LARGE: Tile = Tile { rows: 128, columns: 128, depth: 8, of_thread: 8, wide: 4, feed: Feed::Copies(3), matrices: None, cooperative: None };
const MEDIUM: Tile = Tile { rows: 64, columns: 64, depth: 16, of_thread: 4, ..LARGE };
const SMALL: Tile = Tile { rows: 32, columns: 32, depth: 32, of_thread: 2, wide: 2, ..LARGE };
/// For matrix units: eight subgroups, and two; 16 words deep.
const WIDE: Tile = Tile { rows: 128, columns: 128, depth: 32, of_thread: 8, wide: 2, feed: Feed::Ahead, matrices: Some(Words::Bf16), ..LARGE };
const NARROW: Tile = Tile { rows: 64, columns: 64, ..WIDE };
/// For matrices that subgroups hold together; results go through shared memory.
const TOGETHER: Tile = Tile { depth: 32, wide: 1, feed: Feed::Plain, matrices: Some(Words::F16), ..MEDIUM };

/// Whether a device multiplies tiles of such a type of 16 bits.
pub fn multiplies(device: &Gpu, dtype: DType) -> bool {
    pairs(dtype).is_some_and(|p| device.isa.is_nvidia() || p == Words::F16 && together(device).is_some())
}

/// The tile for matrices that subgroups of a device hold together, where it has them and they fit.
fn together(device: &Gpu) -> Option<Tile> {
    let c = device.cooperative.filter(|_| device.max_threads >= TOGETHER.threads())?;
    Some(Tile { cooperative: Some((c, share(TOGETHER, c)?)), ..TOGETHER })
}

/// Rows or columns below which a tile would be mostly empty.
pub const LEAST: i64 = 8;

impl Tile {
    pub fn threads(self) -> u32 {
        self.rows * self.columns / (self.of_thread * self.of_thread)
    }

    /// Where a thread's pieces of a row or column of the tile start, from its first: neighbours lie together, pieces apart by the other
    /// threads, so that threads beside each other read banks beside each other.
    fn pieces(self, span: u32) -> impl Iterator<Item = u32> {
        (0..self.of_thread / self.wide).map(move |i| i * self.wide * (span / self.of_thread))
    }

    /// The largest one that leaves no half of it empty and gives every multiprocessor some groups.
    pub fn choose(device: &Gpu, s: &Shape, heavy: bool, dtype: DType) -> Tile {
        let (nvidia, halves) = (device.isa.is_nvidia(), pairs(dtype));
        if let (Some(tile), Some(_)) = (together(device), halves) {
            return tile;
        }
        let fits = |t: &Tile| {
            let groups = s.groups(*t).as_const();
            let filled = |d: &Dim, n: u32| d.as_const().is_none_or(|d| 2 * d > i64::from(n));
            // Smaller tiles than the narrow ones are none of matrix units.
            let enough = !nvidia || *t == NARROW || groups.is_none_or(|g| g >= 128);
            filled(&s.rows, t.rows) && filled(&s.columns, t.columns) && enough
        };
        // Registers and code of a large one are spent on the epilogue, too.
        let list: &[Tile] = match (device.rounding.is_some() || halves.is_some(), nvidia && !heavy) {
            (true, true) => &[WIDE, NARROW],
            (true, false) => &[NARROW],
            (false, true) => &[LARGE, MEDIUM],
            (false, false) => &[MEDIUM],
        };
        let mut tile = list.iter().find(|t| fits(t)).copied().unwrap_or(if halves.is_some() { NARROW } else { SMALL });
        tile.wide = tile.wide.min(device.vector_bytes / 4).max(1);
        if halves.is_some() {
            tile.matrices = halves;
        } else if tile.matrices.is_some() && device.rounding == Some(Rounding::Tf32) {
            // Numbers lie in shared memory as they come, and are rounded on the way from there.
            tile = Tile { depth: tile.depth / 2, feed: Feed::Copies(2), matrices: Some(Words::Tf32), ..tile };
        }
        if !nvidia {
            tile.feed = Feed::Plain;
        }
        tile
    }
}

/// A matrix that tiles are read from.
pub trait Source {
    /// Whether neighbours in memory are neighbours along the depth.
    fn along_depth(&self, f: &Frame) -> bool;

    /// How many neighbours in memory are read at once: 1, 2, 4 or 8. From every multiple of that number on they lie side by side, at a
    /// multiple of it, and are inside or outside together.
    fn together(&self, f: &Frame) -> u32;

    /// What all elements of a row (a column of the right operand) have in common; `inside` is whether there is such a row.
    fn line(&mut self, f: &mut Frame, line: Val, inside: Option<Val>) -> Line;

    /// The element at a depth; outside of the matrix all are 0.
    fn element(&mut self, f: &mut Frame, line: &Line, depth: Val, inside: Option<Val>) -> Element;
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

/// How the threads of a group bring a tile to shared memory: each some words of some lines. For matrix units a line's words lie side by
/// side, and may be pairs of neighbours along the depth.
struct Reader<'a> {
    source: &'a mut dyn Source,
    space: Space,
    /// Distance of depths (of lines, for matrix units) in shared memory, and the length of a tile.
    pitch: u32,
    length: u32,
    /// Of what a thread brings: the number of its line among `lines`, its depth within the tile, its place.
    elements: Vec<(usize, Val, Val)>,
    lines: Vec<Line>,
    /// What a word is a pair of, if it is one.
    pairs: Option<Words>,
    /// Neighbours that come at once.
    together: u32,
    /// Whether all depths and lines that tiles cover are there.
    whole: [bool; 2],
}

/// A tile in shared memory.
pub struct Part {
    pub space: Space,
    pub pitch: u32,
    pub start: Val,
}

impl<'a> Reader<'a> {
    fn new(f: &mut Frame, t: Tile, source: &'a mut dyn Source, span: u32, first: Val, count: Val, whole: [bool; 2]) -> Reader<'a> {
        let (along, by_line) = (source.along_depth(f), t.matrices.is_some());
        let numbers = t.matrices.map_or(1, Words::numbers);
        let deep = t.depth / numbers;
        let copies = if let Feed::Copies(n) = t.feed { Some(n) } else { None };
        // Neighbours in memory must be such in the tile.
        let together = if copies.is_some() && along == by_line { (source.together(f) / numbers).min(4) } else { 1 };
        let (pitch, length, elem) = if by_line {
            // Rows of 16 bytes; four words more, so that eight lines lie in different banks.
            (deep + 4, (deep + 4) * span, Elem::I32)
        } else {
            // More, so that neighbours along the depth lie in different banks.
            let pitch = if along { span + t.wide } else { span };
            (pitch, pitch * deep, Elem::F32)
        };
        let space = f.b.shared(elem, length * copies.unwrap_or(1));
        let across = if along { deep } else { span } / together;
        let (thread, each) = (f.b.value(Op::Thread), span * deep / t.threads() / together);
        let inner = f.b.i32(across as i32);
        let (high, low) = f.split(thread, inner);
        let low = f.b.with(Binary::Mul, low, together.into());
        let mut lines: Vec<(Val, Line)> = vec![];
        let mut elements = vec![];
        for i in 0..each {
            let step = i64::from(t.threads() / across * i);
            let far = f.b.with(Binary::Add, high, step);
            let (line, depth) = if along { (far, low) } else { (low, far) };
            let at = match lines.iter().position(|(l, _)| *l == line) {
                Some(at) => at,
                None => {
                    let global = f.b.add(first, line);
                    let inside = f.below(whole[1], global, count);
                    let of = source.line(f, global, inside);
                    lines.push((line, of));
                    lines.len() - 1
                }
            };
            let (outer, within) = if by_line { (line, depth) } else { (depth, line) };
            let row = f.b.with(Binary::Mul, outer, pitch.into());
            let place = f.b.add(row, within);
            let depth = f.b.with(Binary::Mul, depth, numbers.into());
            elements.push((at, depth, place));
        }
        let lines = lines.into_iter().map(|(_, l)| l).collect();
        Reader { source, space, pitch, length, elements, lines, pairs: t.matrices.filter(|w| w.numbers() == 2), together, whole }
    }

    /// The thread's elements of the tile that starts at a depth, of `depth` in all.
    fn read(&mut self, f: &mut Frame, start: Val, depth: Val, whole: bool) -> Vec<Val> {
        let mut out = vec![];
        for (line, at, _) in &self.elements {
            let mut one = |f: &mut Frame, next: i64| {
                let k = f.b.add(start, *at);
                let k = f.b.with(Binary::Add, k, next);
                let inside = f.below(whole, k, depth);
                let e = self.source.element(f, &self.lines[*line], k, inside);
                f.load_if(e)
            };
            let first = one(f, 0);
            let Some(words) = self.pairs else {
                out.push(first);
                continue;
            };
            let second = one(f, 1);
            out.push(if f.b.ty(first) == Ty::F32 {
                f.b.value(Op::Pair(words, first, second))
            } else {
                let high = f.b.with(Binary::Shl, second, 16);
                f.b.or(first, high)
            });
        }
        out
    }

    fn write(&self, f: &mut Frame, values: &[Val]) {
        for ((.., at), v) in self.elements.iter().zip(values) {
            f.b.store(self.space, *at, *v);
        }
    }

    /// Sends copies of the thread's elements off, to the tile at `to`.
    fn copy(&mut self, f: &mut Frame, to: Val, start: Val, depth: Val) {
        for (line, at, place) in &self.elements {
            let k = f.b.add(start, *at);
            let inside = f.below(self.whole[0], k, depth);
            let e = self.source.element(f, &self.lines[*line], k, inside);
            let place = f.b.add(to, *place);
            f.copy(self.space, place, e, self.together);
        }
    }

    /// The tile of this number, of those that lie side by side.
    fn part(&self, f: &mut Frame, number: Val) -> Part {
        Part { space: self.space, pitch: self.pitch, start: f.b.with(Binary::Mul, number, self.length.into()) }
    }
}

/// A thread's elements of the product: its rows and columns within the result, and the sums by row, then column.
struct Sums {
    rows: Vec<Val>,
    columns: Vec<Val>,
    sums: Vec<Val>,
}

/// What multiplies two tiles in shared memory.
enum Multiplier {
    Units(Units),
    Together(Blocks, Own),
    Threads(Own),
}

/// A thread's first row and column in a tile of which each has its own sums.
#[derive(Clone, Copy)]
struct Own {
    row: Val,
    column: Val,
}

impl Own {
    /// The rows and columns of the thread's sums, for a tile whose first are these.
    fn places(self, f: &mut Frame, t: Tile, corner: (Val, Val)) -> (Vec<Val>, Vec<Val>) {
        let places = |f: &mut Frame, first: Val, own: Val, span: u32| -> Vec<Val> {
            let base = f.b.add(first, own);
            t.pieces(span).flat_map(|p| (p..p + t.wide).map(|i| f.b.with(Binary::Add, base, i.into())).collect::<Vec<_>>()).collect()
        };
        (places(f, corner.0, self.row, t.rows), places(f, corner.1, self.column, t.columns))
    }
}

impl Multiplier {
    fn new(f: &mut Frame, t: Tile) -> Multiplier {
        if let (Some(words), None) = (t.matrices, t.cooperative) {
            return Multiplier::Units(Units::new(f, t, words));
        }
        let (thread, across) = (f.b.value(Op::Thread), f.b.i32((t.columns / t.of_thread) as i32));
        let (row, column) = f.split(thread, across);
        let [row, column] = [row, column].map(|v| f.b.with(Binary::Mul, v, t.wide.into()));
        let own = Own { row, column };
        match t.cooperative {
            Some((shape, count)) => Multiplier::Together(Blocks::new(f, t, shape, count), own),
            None => Multiplier::Threads(own),
        }
    }

    /// Sums before the first tiles.
    fn none(&self, f: &mut Frame, t: Tile) -> Vec<Val> {
        match self {
            Multiplier::Together(blocks, _) => blocks.none(f),
            Multiplier::Units(_) | Multiplier::Threads(_) => vec![f.b.f32(0.0); (t.of_thread * t.of_thread) as usize],
        }
    }

    fn multiply(&self, f: &mut Frame, t: Tile, left: &Part, right: &Part, sums: &mut [Val]) {
        let Own { row, column } = match self {
            Multiplier::Units(units) => return units.multiply(f, left, right, sums),
            Multiplier::Together(blocks, _) => return blocks.multiply(f, left, right, sums),
            Multiplier::Threads(own) => *own,
        };
        let n = t.of_thread;
        for k in 0..t.depth {
            let line = |f: &mut Frame, p: &Part, first: Val, span: u32| -> Vec<Val> {
                let start = f.b.add(p.start, first);
                let at: Vec<Val> = t.pieces(span).map(|i| f.b.with(Binary::Add, start, (k * p.pitch + i).into())).collect();
                at.into_iter().flat_map(|at| f.b.load_vector(p.space, at, t.wide)).collect()
            };
            let x = line(f, left, row, t.rows);
            let y = line(f, right, column, t.columns);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = f.b.value(Op::MulAdd(x[i / n as usize], y[i % n as usize], *sum));
            }
        }
    }

    /// The thread's sums and their rows and columns in the result, for a tile whose first are these.
    fn results(&self, f: &mut Frame, t: Tile, corner: (Val, Val), sums: Vec<Val>) -> Sums {
        let (rows, columns) = match self {
            Multiplier::Units(units) => units.places(f, corner.0, corner.1),
            Multiplier::Together(_, own) | Multiplier::Threads(own) => own.places(f, t, corner),
        };
        let Multiplier::Together(blocks, own) = self else { return Sums { rows, columns, sums } };
        let zero = f.b.i32(0);
        let (down, across) = own.places(f, t, (zero, zero));
        let sums = blocks.results(f, t, &sums, &down, &across);
        Sums { rows, columns, sums }
    }
}

/// The tiles of both operands, step by step along the depth.
struct Tiles<'a> {
    readers: [Reader<'a>; 2],
    of_step: u32,
    steps: Val,
    depth: Val,
}

impl Tiles<'_> {
    /// The thread's elements of a step, of the left operand first.
    fn read(&mut self, f: &mut Frame, step: Val, whole: bool) -> Vec<Val> {
        let start = f.b.with(Binary::Mul, step, self.of_step.into());
        self.readers.iter_mut().flat_map(|r| r.read(f, start, self.depth, whole)).collect()
    }

    fn write(&self, f: &mut Frame, values: &[Val]) {
        let [left, right] = &self.readers;
        let (of_left, of_right) = values.split_at(left.elements.len());
        left.write(f, of_left);
        right.write(f, of_right);
    }

    /// Sends the copies of a step off, if there is such a step, and closes their set, which may be empty.
    fn copy(&mut self, f: &mut Frame, step: Val, stage: Val) {
        let inside = f.b.compare(Compare::Lt, step, self.steps);
        f.b.begin();
        let start = f.b.with(Binary::Mul, step, self.of_step.into());
        for r in &mut self.readers {
            let to = r.part(f, stage).start;
            r.copy(f, to, start, self.depth);
        }
        let body = f.b.end();
        f.b.join(inside, (body, vec![]), (vec![], vec![]));
        f.b.emit(Stmt::CloseCopies);
    }
}

fn multiply(f: &mut Frame, shape: &Shape, s: &Sizes, t: Tile, corner: (Val, Val), a: &mut dyn Source, b: &mut dyn Source) -> Sums {
    // Pairs that lie in memory as matrix units take them need not be made.
    let ready = t.cooperative.is_none() && pairs(f.dtypes[0]).is_some() && [&*a, &*b].iter().all(|s| s.along_depth(f) && s.together(f) > 1);
    let t = if ready { Tile { feed: Feed::Copies(2), ..t } } else { t };
    let whole = is_multiple(&shape.depth, t.depth);
    let left = Reader::new(f, t, a, t.rows, corner.0, s.rows, [whole, is_multiple(&shape.rows, t.rows)]);
    let right = Reader::new(f, t, b, t.columns, corner.1, s.columns, [whole, is_multiple(&shape.columns, t.columns)]);
    let multiplier = Multiplier::new(f, t);
    let zero = f.b.i32(0);
    let steps = f.b.with(Binary::Add, s.depth, i64::from(t.depth) - 1);
    let steps = f.b.with(Binary::DivU, steps, t.depth.into());
    let mut tiles = Tiles { readers: [left, right], of_step: t.depth, steps, depth: s.depth };
    let mut first = multiplier.none(f, t);
    let count = first.len();
    match t.feed {
        Feed::Plain => {}
        Feed::Ahead => first.extend(tiles.read(f, zero, whole)),
        Feed::Copies(stages) => {
            for i in 0..stages as i32 - 1 {
                let i = f.b.i32(i);
                tiles.copy(f, i, i);
            }
        }
    }
    // The loop's body is built with the frame, so the builder's closures are opened by hand.
    let index = f.b.fresh(f.b.ty(zero));
    let values: Vec<Val> = first.iter().map(|v| f.b.fresh(f.b.ty(*v))).collect();
    f.b.begin();
    let (sums, held) = values.split_at(count);
    let (mut sums, mut next, mut stage) = (sums.to_vec(), vec![], zero);
    match t.feed {
        Feed::Copies(stages) => {
            // This step's copies have arrived, and all threads are done with the step before, whose place those of a later one take.
            f.b.emit(Stmt::AwaitCopies { pending: stages - 2 });
            barrier(&mut f.b);
            let later = f.b.with(Binary::Add, index, i64::from(stages) - 1);
            let free = f.b.with(Binary::RemU, later, stages.into());
            tiles.copy(f, later, free);
            stage = f.b.with(Binary::RemU, index, stages.into());
        }
        Feed::Ahead => {
            tiles.write(f, held);
            barrier(&mut f.b);
            // Behind the last tile there is nothing: all elements are outside.
            let after = f.b.with(Binary::Add, index, 1);
            next = tiles.read(f, after, false);
        }
        Feed::Plain => {
            let values = tiles.read(f, index, whole);
            tiles.write(f, &values);
            barrier(&mut f.b);
        }
    }
    let [left, right] = [&tiles.readers[0], &tiles.readers[1]].map(|r| r.part(f, stage));
    multiplier.multiply(f, t, &left, &right, &mut sums);
    if !matches!(t.feed, Feed::Copies(_)) {
        barrier(&mut f.b);
    }
    sums.extend(next);
    f.b.end_for(index, (zero, steps), &first, &values, sums);
    multiplier.results(f, t, corner, values[..count].to_vec())
}

/// Where a row or a column of results lies, and the channel, where it decides on that.
type Spot = (Val, Option<Val>);
pub type Target<'a> = &'a mut dyn FnMut(&mut Frame, Val) -> Spot;

/// A tile of the product of `a` and `b`, followed by `post`. A result lies at the sum of its row's place and its column's: columns side by
/// side from every multiple of `line` on, where all sums of places of rows start.
pub fn product(
    f: &mut Frame,
    (shape, s, t): (&Shape, &Sizes, Tile),
    corner: (Val, Val),
    (a, b): (&mut dyn Source, &mut dyn Source),
    (post, output, line): (&[Post], usize, Val),
    (of_row, of_column): (Target, Target),
) -> Result<()> {
    let p = multiply(f, shape, s, t, corner, a, b);
    let together = (2..f.buffers.len()).map(|param| f.together(param, line)).min().unwrap_or(1).min(t.wide);
    let columns: Vec<(Spot, Option<Val>)> = p
        .columns
        .iter()
        .step_by(together as usize)
        .map(|c| {
            let inside = f.below(is_multiple(&shape.columns, t.columns), *c, s.columns);
            (of_column(f, *c), inside)
        })
        .collect();
    let mut sums = p.sums.chunks(together as usize);
    for row in &p.rows {
        let in_rows = f.below(is_multiple(&shape.rows, t.rows), *row, s.rows);
        let (at_row, row_channel) = of_row(f, *row);
        for ((at_column, column_channel), in_columns) in &columns {
            let channel = row_channel.map(Channel::Shared).or(column_channel.map(Channel::First));
            let Some((sums, channel)) = sums.next().zip(channel) else { return no("a product without channels") };
            let (inside, mut v) = (f.both(in_rows, *in_columns), sums.to_vec());
            f.b.begin();
            let at = f.b.add(at_row, *at_column);
            epilogue(f, post, &mut v, channel, at)?;
            f.store_vector(output, at, v);
            let body = f.b.end();
            match inside {
                Some(inside) => drop(f.b.join(inside, (body, vec![]), (vec![], vec![]))),
                None => body.into_iter().for_each(|s| f.b.emit(s)),
            }
        }
    }
    Ok(())
}
