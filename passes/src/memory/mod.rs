//! The workspace: where each intermediate buffer lies, so that buffers that are never needed at once share memory.
//!
//! [`live`] says when each buffer is needed, [`pack`] places sizes that are known by a common unit, [`slots`] all others. What has a
//! size that only the run knows lies outside of the workspace, in blocks that the run allocates; these are shared in the same way.

mod live;
mod pack;
mod slots;

use live::Span;
use nnc_ir::Dim;
use nnc_ir::dim::DimNode;
use nnc_ir::kernel::{Place, Program};
use std::collections::{BTreeMap, BTreeSet};

/// Alignment of buffers, in bytes.
const ALIGN: i64 = 64;

fn aligned(bytes: &Dim) -> Dim {
    bytes.ceil_div(&Dim::Const(ALIGN)) * Dim::Const(ALIGN)
}

/// A buffer to be placed: when it is needed and its bytes.
struct Item {
    span: Span,
    bytes: Dim,
    /// Buffers that are this one under other names: an element-by-element kernel writes over its operand.
    buffers: Vec<usize>,
}

/// Gives every unplanned buffer its place and the program the size of its workspace. Deterministic; n log n in buffers and steps.
pub fn plan(program: &mut Program) {
    let (late, items): (Vec<Item>, Vec<Item>) = items(program).into_iter().partition(|i| is_late(program, &i.bytes));
    heap(program, late);
    let mut offsets: Vec<Dim> = vec![Dim::Const(0); items.len()];
    let mut total = Dim::Const(0);
    // Sizes that are multiples of one unit (1, or a batch size) are packed by their factors; one kind of unit after the other.
    let mut units: BTreeMap<Dim, Vec<usize>> = BTreeMap::new();
    let mut others = vec![];
    for (i, item) in items.iter().enumerate() {
        match unit(&item.bytes) {
            Some((u, _)) => units.entry(u).or_default().push(i),
            None => others.push(i),
        }
    }
    // More than one unit beside 1 means sizes of many shapes, which share better as slots.
    if units.keys().filter(|u| !u.is(1)).count() > 1 {
        let (kept, rest): (BTreeMap<Dim, Vec<usize>>, _) = units.into_iter().partition(|(u, _)| u.is(1));
        units = kept;
        others.extend(rest.into_values().flatten());
        others.sort();
    }
    for (u, members) in units {
        let spans: Vec<(Span, i64)> = members.iter().map(|i| (items[*i].span, unit(&items[*i].bytes).map_or(0, |(_, n)| n))).collect();
        let (at, size) = pack::pack(&spans);
        for (i, at) in members.iter().zip(at) {
            offsets[*i] = total.clone() + Dim::Const(at) * u.clone();
        }
        total = total + Dim::Const(size) * u;
    }
    let spans: Vec<(Span, Dim)> = others.iter().map(|i| (items[*i].span, aligned(&items[*i].bytes))).collect();
    let (at, size) = slots::assign(&spans);
    for (i, at) in others.iter().zip(at) {
        offsets[*i] = total.clone() + at;
    }
    for (item, offset) in items.iter().zip(offsets) {
        for b in &item.buffers {
            program.buffers[*b].place = Place::Work { offset: offset.clone() };
        }
    }
    program.workspace = total + size;
}

/// Whether a size is known only after a step of the run has bound a symbol.
fn is_late(program: &Program, bytes: &Dim) -> bool {
    let of_input = |s: &std::sync::Arc<str>| program.inputs.iter().flat_map(|p| &p.ty.shape).filter_map(Dim::as_sym).any(|t| t == s);
    let mut late = false;
    bytes.symbols(&mut |s| late |= !of_input(s));
    late
}

/// Gives buffers whose sizes only the run knows their blocks.
fn heap(program: &mut Program, items: Vec<Item>) {
    let spans: Vec<(Span, Dim)> = items.iter().map(|i| (i.span, i.bytes.clone())).collect();
    let slots = slots::share(&spans).0;
    program.heap = slots.iter().collect::<BTreeSet<_>>().len() as u32;
    for (item, slot) in items.iter().zip(slots) {
        for b in &item.buffers {
            program.buffers[*b].place = Place::Heap { slot: slot as u32 };
        }
    }
}

/// Sizes above this many bytes are not packed: their sums could overflow.
const HUGE: i64 = 1 << 40;

/// `bytes` as a multiple of [`ALIGN`] times a product of symbols, where rounding up to one costs little for any value of these.
fn unit(bytes: &Dim) -> Option<(Dim, i64)> {
    let up = |n: i64| (n + ALIGN - 1) / ALIGN * ALIGN;
    match bytes.node() {
        DimNode::Const(c @ 0..HUGE) => Some((Dim::Const(1), up(c))),
        DimNode::Const(_) => None,
        DimNode::Sum(terms) => match terms[..] {
            [(c @ 1..HUGE, _)] if c % ALIGN == 0 || c >= 4 * ALIGN => Some((bytes.floor_div(&Dim::Const(c)), up(c))),
            _ => None,
        },
    }
}

/// The buffers to be placed, those that share one place as one.
fn items(program: &Program) -> Vec<Item> {
    let (spans, pairs) = live::analyse(program);
    let bytes = |b: usize| program.buffers[b].elems.clone() * Dim::from(program.buffers[b].dtype.bytes());
    // `pairs` are in order of the steps: each buffer takes over the place of one before it.
    let mut home: Vec<usize> = (0..program.buffers.len()).collect();
    let mut spans = spans;
    for (from, to) in pairs {
        if bytes(from) == bytes(to)
            && let (Some(a), Some(b)) = (spans[home[from]], spans[to])
            && home[to] == to
        {
            home[to] = home[from];
            spans[home[from]] = Some(Span { first: a.first, last: a.last.max(b.last) });
        }
    }
    let mut items: BTreeMap<usize, Item> = BTreeMap::new();
    for (b, buffer) in program.buffers.iter().enumerate() {
        // A buffer that no step names takes no memory.
        let span = spans[home[b]].unwrap_or(Span { first: 0, last: 0 });
        if buffer.place == Place::Unplanned {
            let unused = spans[b].is_none();
            let size = || if unused { Dim::Const(0) } else { bytes(b) };
            items.entry(home[b]).or_insert_with(|| Item { span, bytes: size(), buffers: vec![] }).buffers.push(b);
        }
    }
    items.into_values().collect()
}
