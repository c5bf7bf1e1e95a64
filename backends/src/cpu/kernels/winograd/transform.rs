//! The one-dimensional transforms of patches and products, with shared subterms.

use crate::cpu::vir::{Builder, V};
use nnc_ir::winograd::Form;

/// The transforms of a form, their constants in registers.
pub(super) struct Transforms {
    tile: usize,
    /// Of patches of 6 values, the factors of B.
    large: Option<Large>,
}

struct Large {
    /// 4 and 5.
    four: V,
    five: V,
    /// `2^i` for i from 1, as far as a tile's pixels, and the factor 4, go.
    powers: Vec<V>,
}

impl Transforms {
    pub fn new(b: &mut Builder, form: Form) -> Transforms {
        let large = (form.side() == 6).then(|| {
            let powers: Vec<V> = (1..form.tile.max(3)).map(|i| b.constant((1 << i) as f32)).collect();
            Large { four: powers[1], five: b.constant(5.0), powers }
        });
        Transforms { tile: form.tile, large }
    }

    /// Groups of values of `B^T d` that share subterms. A patch is transformed by groups of columns, few enough for registers.
    pub fn groups(&self) -> std::ops::Range<usize> {
        0..if self.large.is_some() { 3 } else { 1 }
    }

    /// `B^T d`, a row or column of a patch: the values of one group, with their places. The rows of B are the polynomials that vanish at
    /// all points but one.
    pub fn input(&self, b: &mut Builder, group: usize, mut d: impl FnMut(&mut Builder, usize) -> V) -> Vec<(usize, V)> {
        let Some(Large { four, five, powers }) = &self.large else {
            // [-1 0 1 0; 0 1 1 0; 0 -1 1 0; 0 -1 0 1]
            let d = [0, 1, 2, 3].map(|i| d(b, i));
            return vec![(0, b.sub(d[2], d[0])), (1, b.add(d[1], d[2])), (2, b.sub(d[2], d[1])), (3, b.sub(d[3], d[1]))];
        };
        // [4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1]
        let (two, four, five) = (powers[0], *four, *five);
        if group == 0 {
            let mut outer = |b: &mut Builder, from: usize| {
                let [x, y, z] = [0, 2, 4].map(|i| d(b, from + i));
                let y = b.fnma(five, y, z);
                b.fma(four, x, y)
            };
            return vec![(0, outer(b, 0)), (5, outer(b, 1))];
        }
        let [x1, x2, x3, x4] = [1, 2, 3, 4].map(|i| d(b, i));
        if group == 1 {
            let (even, odd) = (b.fnma(four, x2, x4), b.fnma(four, x1, x3));
            return vec![(1, b.add(even, odd)), (2, b.sub(even, odd))];
        }
        let (near, far) = (b.sub(x4, x2), b.sub(x3, x1));
        vec![(3, b.fma(two, far, near)), (4, b.fnma(two, far, near))]
    }

    /// `A^T m`: a row or column of products. Result i is the sum of products at points p times `p^i`; the product at 0 counts for the first,
    /// that at infinity for the last.
    pub fn output(&self, b: &mut Builder, m: &[V]) -> Vec<V> {
        let (near, near_odd) = (b.add(m[1], m[2]), b.sub(m[1], m[2]));
        let far = self.large.as_ref().map(|l| (b.add(m[3], m[4]), b.sub(m[3], m[4]), &l.powers));
        let last = m[m.len() - 1];
        (0..self.tile)
            .map(|i| {
                let (even, at_last) = (i % 2 == 0, i + 1 == self.tile);
                let near = if even { near } else { near_odd };
                let Some((far, far_odd, powers)) = &far else {
                    return match i {
                        0 => b.add(m[0], near),
                        _ if at_last => b.add(near, last),
                        _ => near,
                    };
                };
                let far = if even { *far } else { *far_odd };
                if i == 0 {
                    let all = b.add(near, far);
                    return b.add(m[0], all);
                }
                let near = if at_last { b.add(near, last) } else { near };
                b.fma(powers[i - 1], far, near)
            })
            .collect()
    }
}
