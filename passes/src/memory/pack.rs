//! Places for intervals of known size.

use super::live::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Offsets such that intervals that overlap in time do not overlap in memory, and the size of it all. Best fit along time, from the
/// front and from the back; the smaller result counts. `n log n`.
pub fn pack(items: &[(Span, i64)]) -> (Vec<i64>, i64) {
    let end = items.iter().map(|(s, _)| s.last).max().unwrap_or(0);
    let mirrored: Vec<(Span, i64)> = items.iter().map(|(s, n)| (Span { first: end - s.last, last: end - s.first }, *n)).collect();
    let (forward, backward) = (scan(items), scan(&mirrored));
    if backward.1 < forward.1 { backward } else { forward }
}

/// Free memory: pieces by offset, and by size.
#[derive(Default)]
struct Free {
    by_offset: BTreeMap<i64, i64>,
    by_size: BTreeSet<(i64, i64)>,
    top: i64,
}

impl Free {
    fn insert(&mut self, at: i64, size: i64) {
        self.by_offset.insert(at, size);
        self.by_size.insert((size, at));
    }

    fn remove(&mut self, at: i64, size: i64) {
        self.by_offset.remove(&at);
        self.by_size.remove(&(size, at));
    }

    fn take(&mut self, size: i64) -> i64 {
        if size == 0 {
            return 0;
        }
        if let Some((have, at)) = self.by_size.range((size, 0)..).next().copied() {
            self.remove(at, have);
            if have > size {
                self.insert(at + size, have - size);
            }
            return at;
        }
        // The piece at the top grows.
        let last = self.by_offset.last_key_value().map(|(at, n)| (*at, *n)).filter(|(at, n)| at + n == self.top);
        let at = last.map_or(self.top, |(at, _)| at);
        if let Some((at, n)) = last {
            self.remove(at, n);
        }
        self.top = at.saturating_add(size);
        at
    }

    fn give(&mut self, mut at: i64, mut size: i64) {
        if size == 0 {
            return;
        }
        if let Some((before, n)) = self.by_offset.range(..at).next_back().map(|(b, n)| (*b, *n)).filter(|(b, n)| b + n == at) {
            self.remove(before, n);
            (at, size) = (before, size + n);
        }
        if let Some(n) = self.by_offset.get(&(at + size)).copied() {
            self.remove(at + size, n);
            size += n;
        }
        self.insert(at, size);
    }
}

fn scan(items: &[(Span, i64)]) -> (Vec<i64>, i64) {
    let mut starts: Vec<usize> = (0..items.len()).collect();
    // Of those that start together the largest first.
    starts.sort_by_key(|i| (items[*i].0.first, -items[*i].1, *i));
    let mut ends: BTreeSet<(u32, usize)> = BTreeSet::new();
    let (mut at, mut free) = (vec![0; items.len()], Free::default());
    for i in starts {
        let (span, size) = items[i];
        while let Some((last, j)) = ends.first().copied().filter(|(last, _)| *last < span.first) {
            ends.remove(&(last, j));
            free.give(at[j], items[j].1);
        }
        at[i] = free.take(size);
        ends.insert((span.last, i));
    }
    (at, free.top)
}
