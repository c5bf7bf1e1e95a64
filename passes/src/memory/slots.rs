//! Places for intervals whose sizes are known only at run time: slots as large as the largest of their tenants.

use super::live::Span;
use nnc_ir::Dim;
use std::collections::BTreeSet;

/// What a symbol is taken for when sizes are compared that cannot be compared otherwise.
const TYPICAL: i64 = 64;
/// Free slots that are looked at for one interval.
const MAX_LOOK: usize = 64;

pub struct Slot {
    /// Distinct sizes of the tenants, in bytes (multiples of the alignment).
    sizes: Vec<Dim>,
    typical: i64,
}

/// Offsets such that intervals that overlap in time do not overlap in memory, and the size of it all.
pub fn assign(items: &[(Span, Dim)]) -> (Vec<Dim>, Dim) {
    let (slot_of, slots) = share(items);
    let mut total = Dim::Const(0);
    let mut offsets = vec![];
    for s in slots {
        offsets.push(total.clone());
        total = total + largest(s.sizes);
    }
    (slot_of.into_iter().map(|s| offsets[s].clone()).collect(), total)
}

/// A slot for each interval, such that those that overlap in time have different ones; and the slots.
pub fn share(items: &[(Span, Dim)]) -> (Vec<usize>, Vec<Slot>) {
    let mut starts: Vec<usize> = (0..items.len()).collect();
    starts.sort_by_key(|i| (items[*i].0.first, *i));
    let mut ends: BTreeSet<(u32, usize)> = BTreeSet::new();
    let mut slots: Vec<Slot> = vec![];
    let mut free: Vec<usize> = vec![];
    let mut slot_of = vec![0; items.len()];
    for i in starts {
        let (span, size) = &items[i];
        while let Some((last, j)) = ends.first().copied().filter(|(last, _)| *last < span.first) {
            ends.remove(&(last, j));
            free.push(slot_of[j]);
        }
        let typical = size.eval(&|_| Some(TYPICAL)).unwrap_or(i64::MAX).max(0);
        // A slot that holds it and wastes least; else the one that grows least.
        let fit = |s: &Slot| match (s.sizes.contains(size), s.typical >= typical) {
            (true, _) => (0, 0),
            (_, true) => (1, s.typical - typical),
            (_, false) => (2, typical - s.typical),
        };
        let look = free.len().saturating_sub(MAX_LOOK);
        let best = (look..free.len()).min_by_key(|k| (fit(&slots[free[*k]]), free[*k]));
        let slot = match best {
            Some(k) => free.swap_remove(k),
            None => {
                slots.push(Slot { sizes: vec![], typical });
                slots.len() - 1
            }
        };
        let s = &mut slots[slot];
        if !s.sizes.contains(size) {
            s.sizes.push(size.clone());
        }
        s.typical = s.typical.max(typical);
        slot_of[i] = slot;
        ends.insert((span.last, i));
    }
    (slot_of, slots)
}

/// The maximum of sizes, as a balanced tree.
fn largest(mut sizes: Vec<Dim>) -> Dim {
    while sizes.len() > 1 {
        sizes = sizes.chunks(2).map(|pair| pair.iter().skip(1).fold(pair[0].clone(), |a, b| a.maximum(b))).collect();
    }
    sizes.pop().unwrap_or(Dim::Const(0))
}
