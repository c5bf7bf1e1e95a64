//! Views: affine maps from a loop nest's axes to elements of a buffer.

use nnc_ir::Dim;

/// Element `offset + sum of index[i] * strides[i]` of a buffer, over the axes of a nest. In elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct View {
    pub offset: Dim,
    pub strides: Vec<Dim>,
}

impl View {
    pub fn new(strides: Vec<Dim>) -> View {
        View { offset: Dim::Const(0), strides }
    }

    /// A dense tensor read in order.
    pub fn dense(shape: &[Dim]) -> View {
        View::new(row_major(shape))
    }

    pub fn at(mut self, offset: Dim) -> View {
        self.offset = offset;
        self
    }
}

/// Strides of a dense tensor.
pub fn row_major(shape: &[Dim]) -> Vec<Dim> {
    let mut out = vec![Dim::Const(1); shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i].clone() * shape[i].clone();
    }
    out
}

/// Drops axes of length 1 and merges neighbours that every view walks as one, so that the inner loop is long.
pub fn collapse(dims: &mut Vec<Dim>, views: &mut [View]) {
    let mut kept = 0;
    for i in 0..dims.len() {
        if dims[i].is(1) {
            continue;
        }
        let d = dims[i].clone();
        let joins = kept > 0 && views.iter().all(|v| v.strides[kept - 1] == v.strides[i].clone() * d.clone());
        let to = if joins { kept - 1 } else { kept };
        dims[to] = if joins { dims[to].clone() * d } else { d };
        for v in views.iter_mut() {
            v.strides[to] = v.strides[i].clone();
        }
        kept = to + 1;
    }
    dims.truncate(kept);
    views.iter_mut().for_each(|v| v.strides.truncate(kept));
}

/// Whether some views, which walk the last axis by leaps, walk the one before it along memory: both are then for squares of elements.
pub fn is_square(views: &[View]) -> bool {
    let leaps = |v: &View| matches!(v.strides[..], [.., ref row, ref last] if row.is(1) && !last.is(0) && !last.is(1));
    views.iter().any(leaps)
}

/// Moves the axis that some views walk along memory, while they walk the last axis by leaps, to the one before the last: for nests whose
/// iterations may come in any order.
pub fn bring_rows_in(dims: &mut Vec<Dim>, views: &mut [View]) {
    let Some(last) = dims.len().checked_sub(1) else { return };
    let mut leaping = views.iter().filter(|v| !v.strides[last].is(0) && !v.strides[last].is(1));
    if let Some(axis) = leaping.find_map(|v| v.strides.iter().position(|s| s.is(1))) {
        let d = dims.remove(axis);
        dims.insert(last - 1, d);
        for v in views {
            let s = v.strides.remove(axis);
            v.strides.insert(last - 1, s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collapses_what_all_views_walk_as_one() {
        let (n, c) = (Dim::sym("N"), Dim::Const(3));
        let mut dims = vec![n.clone(), Dim::Const(1), c.clone(), Dim::Const(4)];
        let dense = View::dense(&dims);
        let per_channel = View::new(vec![Dim::Const(0), Dim::Const(0), Dim::Const(1), Dim::Const(0)]);
        let mut views = [dense.clone(), per_channel];
        collapse(&mut dims, &mut views);
        assert_eq!(dims, [n.clone(), c, Dim::Const(4)]);
        assert_eq!(views[0].strides, [Dim::Const(12), Dim::Const(4), Dim::Const(1)]);
        let mut dims = vec![n.clone(), Dim::Const(1), Dim::Const(3), Dim::Const(4)];
        let mut views = [dense];
        collapse(&mut dims, &mut views);
        assert_eq!(dims, [n * Dim::Const(12)]);
        assert_eq!(views[0].strides, [Dim::Const(1)]);
    }

    #[test]
    fn rows_in_memory_come_before_the_last_axis() {
        // [C, H, W, N] of [N, C, H, W].
        let shape = [4, 3, 5, 6].map(Dim::Const);
        let read = View::new([5 * 6, 6, 1, 3 * 5 * 6].map(Dim::Const).to_vec());
        let mut dims = vec![shape[1].clone(), shape[2].clone(), shape[3].clone(), shape[0].clone()];
        let mut views = [read, View::dense(&dims)];
        assert!(is_square(&views));
        bring_rows_in(&mut dims, &mut views);
        assert_eq!(dims, [3, 5, 6, 4].map(Dim::Const));
        // [W, N, C, H]: W comes in.
        let mut dims = [6, 4, 3, 5].map(Dim::Const).to_vec();
        let mut views = [View::new([1, 3 * 5 * 6, 5 * 6, 6].map(Dim::Const).to_vec()), View::dense(&dims)];
        bring_rows_in(&mut dims, &mut views);
        assert_eq!(dims, [4, 3, 6, 5].map(Dim::Const));
        assert_eq!(views[1].strides, [3 * 5, 5, 4 * 3 * 5, 1].map(Dim::Const));
        assert!(is_square(&views));
    }
}
