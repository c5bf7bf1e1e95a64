//! The loops of top-k: a heap of the best elements in the result's own memory, sorted at the end.

use super::loops::Loops;
use super::reduce::Lines;
use nnc_ir::ScalarFn;
use nnc_ir::error::Result;
use nnc_ir::kernel::{ExprId, Fault};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::sort::TopK;

/// One line's heap: values and indices at `base` of the two results. The root is what would be dropped first.
struct Heap<'a> {
    line: &'a Lines,
    base: ExprId,
    kind: ReduceKind,
}

impl Heap<'_> {
    fn read(&self, k: &mut Loops, i: ExprId) -> (ExprId, ExprId) {
        let at = self.line.at(k, self.base, i);
        let (values, indices) = (k.result(0), k.result(1));
        let (v, j) = (k.load(values, at), k.load(indices, at));
        (k.bind(v), k.bind(j))
    }

    fn write(&self, k: &mut Loops, i: ExprId, (v, j): (ExprId, ExprId)) {
        let at = self.line.at(k, self.base, i);
        let at = k.bind(at);
        k.put(0, at, v);
        k.put(1, at, j);
    }

    /// Whether `a` stands before `b` in the result: the better value, of equals the one that came first.
    fn before(&self, k: &mut Loops, a: (ExprId, ExprId), b: (ExprId, ExprId)) -> ExprId {
        // NaN sorts as the largest number.
        let nan_first = self.kind == ReduceKind::Max;
        let (better, worse) = (k.precedes(self.kind, a.0, b.0, nan_first), k.precedes(self.kind, b.0, a.0, nan_first));
        let earlier = k.map(ScalarFn::Less, &[a.1, b.1]);
        let no_worse = k.map(ScalarFn::Not, &[worse]);
        let tie = k.map(ScalarFn::And, &[no_worse, earlier]);
        k.map(ScalarFn::Or, &[better, tie])
    }

    /// Lets `item`, put at `from`, sink below every child that would be dropped sooner, among the first `n`.
    fn sink(&self, k: &mut Loops, from: ExprId, n: ExprId, item: (ExprId, ExprId)) {
        let hole = k.set_new(from);
        let (one, two) = (k.int(1), k.int(2));
        let left_of = |k: &mut Loops| {
            let h = k.var(hole);
            let twice = k.mul(h, two);
            k.add(twice, one)
        };
        let first = left_of(k);
        let child = k.set_new(first);
        let c = k.var(child);
        let inside = k.map(ScalarFn::Less, &[c, n]);
        k.while_(inside, |k| {
            // The child that would be dropped sooner.
            let right = k.add(c, one);
            let both = k.map(ScalarFn::Less, &[right, n]);
            k.when(both, |k| {
                let (l, r) = (self.read(k, c), self.read(k, right));
                let right_sooner = self.before(k, l, r);
                k.when(right_sooner, |k| k.set(child, right));
            });
            let worst = self.read(k, c);
            let item_sooner = self.before(k, worst, item);
            k.when(item_sooner, |k| k.break_());
            let h = k.var(hole);
            self.write(k, h, worst);
            k.set(hole, c);
            let next = left_of(k);
            k.set(child, next);
        });
        let h = k.var(hole);
        self.write(k, h, item);
    }
}

pub fn top_k(k: &mut Loops, op: &TopK) -> Result<()> {
    let x = Lines::new(&k.x[0].shape, op.axis);
    let y = Lines::new(&k.y[0].shape, op.axis);
    let kind = if op.largest { ReduceKind::Max } else { ReduceKind::Min };
    Lines::each(k, &[&x, &y], 32, |k, at| {
        let heap = Heap { line: &y, base: at[1], kind };
        let (n, count) = (k.size(&x.length), k.size(&y.length));
        let (zero, one, two) = (k.int(0), k.int(1), k.int(2));
        let too_many = k.map(ScalarFn::Greater, &[count, n]);
        k.when(too_many, |k| k.fail(Fault::Size));
        let element = |k: &mut Loops, i: ExprId| {
            let from = x.at(k, at[0], i);
            let v = k.load(0, from);
            (k.bind(v), i)
        };
        k.for_each(count, |k, i| {
            let item = element(k, i);
            heap.write(k, i, item);
        });
        let half = k.div(count, two);
        k.for_each(half, |k, step| {
            let rest = k.sub(half, step);
            let i = k.sub(rest, one);
            let item = heap.read(k, i);
            heap.sink(k, i, count, item);
        });
        let some = k.map(ScalarFn::Greater, &[count, zero]);
        k.when(some, |k| {
            k.for_range(count, n, |k, i| {
                let (item, root) = (element(k, i), heap.read(k, zero));
                let kept = heap.before(k, item, root);
                k.when(kept, |k| heap.sink(k, zero, count, item));
            });
        });
        // The root goes to the end of what is left, again and again.
        let rounds = k.sub(count, one);
        k.for_each(rounds, |k, step| {
            let end = k.sub(rounds, step);
            let (last, root) = (heap.read(k, end), heap.read(k, zero));
            heap.write(k, end, root);
            heap.sink(k, zero, end, last);
        });
    });
    Ok(())
}
