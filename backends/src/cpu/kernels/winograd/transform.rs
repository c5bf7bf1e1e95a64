//! The one-dimensional transforms of patches and products, with shared subterms.

use crate::cpu::vir::{Builder, V};

/// Constants of the transforms in registers.
pub(super) enum Constants {
    Two,
    Four { two: V, four: V, five: V, eight: V },
}

impl Constants {
    pub fn new(b: &mut Builder, tile: i64) -> Constants {
        match tile {
            2 => Constants::Two,
            _ => Constants::Four { two: b.constant(2.0), four: b.constant(4.0), five: b.constant(5.0), eight: b.constant(8.0) },
        }
    }

    /// `B^T d`: a row or column of a patch.
    pub fn input(&self, b: &mut Builder, d: &[V]) -> Vec<V> {
        match *self {
            // [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]
            Constants::Two => vec![b.sub(d[0], d[2]), b.add(d[1], d[2]), b.sub(d[2], d[1]), b.sub(d[1], d[3])],
            // [4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1]
            Constants::Four { two, four, five, .. } => {
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
        }
    }

    /// `A^T m`: a row or column of products.
    pub fn output(&self, b: &mut Builder, m: &[V]) -> Vec<V> {
        match *self {
            // [1 1 1 0; 0 1 -1 -1]
            Constants::Two => {
                let (sum, difference) = (b.add(m[1], m[2]), b.sub(m[1], m[2]));
                vec![b.add(m[0], sum), b.sub(difference, m[3])]
            }
            // [1 1 1 1 1 0; 0 1 -1 2 -2 0; 0 1 1 4 4 0; 0 1 -1 8 -8 1]
            Constants::Four { two, four, eight, .. } => {
                let (near, near_odd) = (b.add(m[1], m[2]), b.sub(m[1], m[2]));
                let (far, far_odd) = (b.add(m[3], m[4]), b.sub(m[3], m[4]));
                let all = b.add(near, far);
                let last = b.add(near_odd, m[5]);
                vec![b.add(m[0], all), b.fma(two, far_odd, near_odd), b.fma(four, far, near), b.fma(eight, far_odd, last)]
            }
        }
    }
}
