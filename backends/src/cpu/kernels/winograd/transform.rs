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
    /// `2^i` for i from 1 to a tile's last pixel.
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

    /// `B^T d`: a row or column of a patch. The rows of B are the polynomials that vanish at all points but one.
    pub fn input(&self, b: &mut Builder, d: &[V]) -> Vec<V> {
        let Some(Large { four, five, powers }) = &self.large else {
            // [-1 0 1 0; 0 1 1 0; 0 -1 1 0; 0 -1 0 1]
            return vec![b.sub(d[2], d[0]), b.add(d[1], d[2]), b.sub(d[2], d[1]), b.sub(d[3], d[1])];
        };
        // [4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1]
        let (two, four, five) = (powers[0], *four, *five);
        let outer = |b: &mut Builder, x: V, y: V, z: V| {
            let y = b.fnma(five, y, z);
            b.fma(four, x, y)
        };
        let first = outer(b, d[0], d[2], d[4]);
        let last = outer(b, d[1], d[3], d[5]);
        let (even, odd) = (b.fnma(four, d[2], d[4]), b.fnma(four, d[1], d[3]));
        let (near, far) = (b.sub(d[4], d[2]), b.sub(d[3], d[1]));
        vec![first, b.add(even, odd), b.sub(even, odd), b.fma(two, far, near), b.fnma(two, far, near), last]
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
