//! Register tiles and the chunking of contractions into tasks: the cost rules.

use super::contract::{Contract, Count, Place};
use super::post::Post;
use super::{BLOCK, BLOCK_BYTES, Size};
use crate::cpu::isa::{Isa, Machine};

/// A register tile, and how many copies of it sum separate parts of `k` to hide the latency of few accumulators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tile {
    pub rows: i64,
    pub vecs: i64,
    pub phases: i64,
    pub max_rows: i64,
}

impl Tile {
    /// Whether it reads several streams of weights from memory, for a lone row.
    pub fn streams(self) -> bool {
        self.rows == 1 && self.vecs == 4
    }
}

/// The tile for `pixels` rows: wide enough for the latency of the multiply-add (8 chains on present cores), few enough to leave
/// registers for one row's weights and a broadcast.
pub(super) fn tile(isa: Isa, c: &Contract, pixels: Option<i64>, blocks: Option<i64>, few: bool, m: &Machine) -> Tile {
    let depth = c.depth;
    // Streams of several blocks are within reach of an address's constant part.
    let fixed_depth = matches!(depth, Size::Const(k) if k < 1 << 22);
    let far = matches!((depth, blocks), (Size::Const(k), Some(b)) if k.saturating_mul(b).saturating_mul(BLOCK_BYTES) > 4 * m.l2_bytes);
    let (max_rows, vecs) = match isa {
        Isa::Avx2 if few => (12, 1),
        Isa::Avx2 => (6, 2),
        // A lone row waits for its weights. From the second-level cache one stream of them is fastest, from memory several are.
        Isa::Avx512 if pixels == Some(1) => (12, if far && fixed_depth && blocks.is_some_and(|b| b % 4 == 0) { 4 } else { 1 }),
        // A line of each row stays for 16 steps, so they must not meet in one set: more columns make up for fewer rows.
        Isa::Avx512 if matches!(c.cols, Size::Const(n) if n % (4 * BLOCK) == 0) && fixed_depth && lines_meeting(&c.input, 12) > 5 => (6, 4),
        // Twelve row pointers, an index and the weights fill the integer registers.
        Isa::Avx512 if blocks.is_some_and(|b| b % 2 == 0) && fixed_depth => (12, 2),
        Isa::Avx512 => (12, 1),
        Isa::Portable => (5, 2),
    };
    let rows = pixels.map_or(max_rows, |p| even_split(p, max_rows).high);
    let phases = (max_rows / rows).clamp(1, if rows == 1 && vecs == 1 { 8 } else { 4 });
    Tile { rows, vecs, phases, max_rows }
}

/// How many lines of so many neighbouring rows are of one set of the first-level cache: 64 sets of 8 lines on the smallest of present cores.
fn lines_meeting(p: &Place, rows: i64) -> i64 {
    const SPAN: i64 = 64 * 64;
    match p.pixels.last().and_then(|s| s.constant()) {
        Some(step) if step > 0 => (rows << step.trailing_zeros().min(12)).div_euclid(SPAN).max(1),
        _ => 1,
    }
}

/// Rows shared out to tiles evenly: `larger` tiles of `high` rows, the others of `low`.
pub(super) struct Split {
    pub tiles: i64,
    pub high: i64,
    pub low: i64,
    pub larger: i64,
}

/// Splits `n` rows into tiles of at most `max`. Even tiles waste less than a short last one would.
pub(super) fn even_split(n: i64, max: i64) -> Split {
    let tiles = ((n + max - 1) / max).max(1);
    let (low, extra) = (n / tiles, n % tiles);
    match extra {
        0 => Split { tiles, high: low, low, larger: tiles },
        _ => Split { tiles, high: low + 1, low, larger: extra },
    }
}

/// Makes dimensions that are walked without gaps by every tensor into one.
pub(super) fn merge_pixels(c: &mut Contract) {
    while c.pixels.len() > 1 {
        let n = c.pixels.len();
        let Size::Const(inner) = c.pixels[n - 1] else { return };
        let places = |c: &mut Contract, f: &mut dyn FnMut(&mut Place)| {
            f(&mut c.input);
            f(&mut c.output);
            for p in &mut c.post {
                if let Post::AddTensor(t) = p {
                    f(t);
                }
            }
        };
        let mut dense = true;
        places(c, &mut |p| {
            let (outer, step) = (p.pixels[n - 2].constant(), p.pixels[n - 1].constant());
            dense &= matches!((outer, step), (Some(o), Some(s)) if s.checked_mul(inner) == Some(o));
        });
        // A run-time outer dimension merges only into a product of sizes, which Size cannot say.
        let (true, Size::Const(outer)) = (dense, c.pixels[n - 2]) else { return };
        places(c, &mut |p| {
            p.pixels.remove(n - 2);
        });
        c.pixels.pop();
        c.pixels[n - 2] = Size::Const(outer * inner);
    }
}

/// The chunking of the work into tasks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Tiles of a chunk (constant pixel counts), or pixels of it (run-time counts).
    pub chunk: i64,
    /// Column steps of a task; a step is the columns of a tile, at least a block.
    pub group: i64,
    /// Cache lines of the next columns' weights to fetch in each run of 16 steps.
    pub ahead: i64,
    /// Iterations of the outermost loop over the contracted dimension that are done for all columns before the next ones; partial
    /// sums wait in the output.
    pub slice: Option<i64>,
}

/// Scalars of the contracted dimension whose weights, for one block of columns, fit the first-level cache beside the input.
const SLICE: i64 = 512;

/// Slices of the contracted dimension and the outer iterations in each, where slicing pays. Without it, weights of one block that
/// fill the second-level cache push the input out of it, and deep pixels make chunks so small that all weights are streamed many
/// times; with it, the output is written and read once more for each slice.
fn slices(c: &Contract, m: &Machine, tile: Tile, pixels: Option<i64>) -> Option<(i64, i64)> {
    let (Size::Const(depth), Size::Const(cols), Some(p)) = (c.depth, c.cols, pixels) else { return None };
    let Count::Size(Size::Const(outer)) = c.k.first()?.levels.first()?.0.reduced() else { return None };
    // A tensor added after a function of the sum can wait no slice, and may lie in the output's memory.
    let early = c.post.iter().take_while(|p| matches!(p, Post::AddTensor(_))).count();
    if c.post[early..].iter().any(|p| matches!(p, Post::AddTensor(_))) || p <= 2 * tile.max_rows {
        return None;
    }
    let wanted = (depth + SLICE - 1) / SLICE;
    let slice = (outer + wanted - 1) / wanted.max(1);
    let count = (outer + slice - 1) / slice.max(1);
    if count < 2 {
        return None;
    }
    let passes = |bytes: i64| {
        let resident = (m.l2_bytes / 2 / bytes.max(1)).max(tile.rows * 4);
        (p + resident - 1) / resident
    };
    // Costs of what no machine holds overflow: the largest is enough to say so.
    let saved = (depth * cols * 4).saturating_mul(passes(c.pixel_bytes) - passes(c.pixel_bytes / count));
    let cost = (p * cols * 8).saturating_mul(count - 1);
    let panel = depth * BLOCK * 4;
    (panel > m.l2_bytes / 4 || saved > cost.saturating_mul(3)).then_some((count, slice))
}

/// The cost rule. A chunk's input takes at most half of the second-level cache, so that every column step finds it there; the
/// rest is for weights and output. Columns are split among tasks before pixels are split further: a task then streams only its
/// own weights.
pub(super) fn plan(c: &Contract, m: &Machine, tile: Tile, pixels: Option<i64>, steps: Option<i64>) -> Plan {
    let sliced = slices(c, m, tile, pixels);
    let pixel_bytes = c.pixel_bytes / sliced.map_or(1, |s| s.0);
    let resident = (m.l2_bytes / 2 / pixel_bytes.max(1)).max(tile.rows * 4);
    let Some(p) = pixels else {
        return Plan { chunk: resident.min(48 * tile.rows) / tile.rows * tile.rows, group: steps.map_or(4, |s| (s + 3) / 4), ahead: 1, slice: None };
    };
    let batch: i64 = c.batch.iter().map(|s| if let Size::Const(n) = s { *n } else { 1 }).product();
    let wanted = if m.threads > 1 { m.threads * 4 } else { 1 };
    let tiles = even_split(p, tile.max_rows).tiles;
    let mut chunks = (p + resident - 1) / resident;
    let steps = steps.unwrap_or(1);
    let mut group = steps;
    let tasks = |chunks: i64, group: i64| batch * chunks * ((steps + group - 1) / group);
    while tasks(chunks, group) < wanted && group > 1 {
        group = (group + 1) / 2;
    }
    while tasks(chunks, group) < wanted && tiles / chunks >= 4 {
        chunks *= 2;
    }
    let chunk = (tiles + chunks - 1) / chunks;
    // The tiles of a chunk together fetch the next weights once; a lone tile leaves that to the processor.
    let ahead = if chunk > 1 { (BLOCK + chunk - 1) / chunk } else { 0 };
    Plan { chunk, group, ahead, slice: sliced.map(|s| s.1) }
}
