//! Minimal filtering for 3x3 windows, F(m x m, 3 x 3): a patch of `m + 2` squared values gives `m` squared results by as many
//! multiplications as the patch has values (Winograd 1980; the matrices are those of Lavin and Gray 2016, "Fast Algorithms for
//! Convolutional Neural Networks"): `Y = A^T [(G g G^T) * (B^T d B)] A`.

use crate::error::{Error, Result};
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;

/// Channels in a block, on every instruction set that has kernels.
const BLOCK: usize = 16;

/// Runs of patches that may be computed at once, each in its own part of the scratch memory.
pub const LANES: usize = 16;

/// Values along a side of a patch.
pub const fn side(tile: usize) -> usize {
    tile + 2
}

/// The rows of G: from 3 taps to the values of a patch's side. `None` for tiles that have no matrices here.
pub fn filter(tile: usize) -> Option<&'static [[f64; 3]]> {
    const G2: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
    const G4: [[f64; 3]; 6] = [
        [0.25, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
    match tile {
        2 => Some(&G2),
        4 => Some(&G4),
        _ => None,
    }
}

/// The three taps back from the values of a filter's side: each a sum of factors times values.
pub fn taps(tile: usize) -> Option<[&'static [(usize, f64)]; 3]> {
    match tile {
        2 => Some([&[(0, 1.0)], &[(1, 1.0), (2, -1.0)], &[(3, 1.0)]]),
        4 => Some([&[(0, 4.0)], &[(2, 3.0), (1, -3.0)], &[(5, 1.0)]]),
        _ => None,
    }
}

/// Filters `[O,C,3,3]` as patches in blocks of channels, `[O/b,side,side,C/b,b(in),b(out)]`, filled up with zeros. Computed in f64.
pub fn filters(tile: usize, block: usize, w: &Tensor) -> Result<Tensor> {
    let g = filter(tile).ok_or_else(|| Error::attribute(format!("there is no F({tile}x{tile}, 3x3)")))?;
    let (DType::F32, &[outputs, inputs, 3, 3]) = (w.dtype(), w.shape()) else {
        return Err(Error::input(format!("filters are f32[O,C,3,3], found {}", w.ty())));
    };
    // Read and written as bytes: a model's filters are large, and another copy of the largest is what a compilation would peak with.
    let values = w.bytes();
    let value = |at: usize| values[4 * at..].first_chunk().map_or(0.0, |b| f64::from(f32::from_le_bytes(*b)));
    let (side, in_blocks, out_blocks) = (side(tile), inputs.div_ceil(block), outputs.div_ceil(block));
    let shape = vec![out_blocks, side, side, in_blocks, block, block];
    let mut out = vec![0u8; checked_elems(DType::F32, &shape)? * DType::F32.bytes()];
    let plane = in_blocks * block * block;
    // One input channel of a block of filters at a time: `block` lanes, which the compiler makes vector code of.
    let (mut taps, mut along) = (vec![0f64; 9 * block], vec![0f64; 3 * block]);
    let combine = |to: &mut [f64], g: &[f64; 3], from: [&[f64]; 3]| {
        for (((t, a), b), c) in to.iter_mut().zip(from[0]).zip(from[1]).zip(from[2]) {
            *t = g[0] * a + g[1] * b + g[2] * c;
        }
    };
    for (ob, c) in (0..out_blocks).flat_map(|ob| (0..inputs).map(move |c| (ob, c))) {
        for o in 0..block {
            let filter = (ob * block + o < outputs).then(|| ((ob * block + o) * inputs + c) * 9);
            (0..9).for_each(|t| taps[t * block + o] = filter.map_or(0.0, |f| value(f + t)));
        }
        let tap = |t: usize| &taps[t * block..][..block];
        for (i, up) in g.iter().enumerate() {
            for s in 0..3 {
                combine(&mut along[s * block..][..block], up, [tap(s), tap(3 + s), tap(6 + s)]);
            }
            for (j, g) in g.iter().enumerate() {
                let to = &mut out[4 * ((ob * side * side + i * side + j) * plane + c * block)..][..4 * block];
                for (o, t) in to.chunks_exact_mut(4).enumerate() {
                    let sum = g[0] * along[o] + g[1] * along[block + o] + g[2] * along[2 * block + o];
                    t.copy_from_slice(&(sum as f32).to_le_bytes());
                }
            }
        }
    }
    Tensor::from_bytes(DType::F32, shape, out.into())
}

/// How a lane's scratch memory is laid out, in f32 values: transformed patches `[side^2][blocks of input channels][run][16]`, then
/// products `[side^2][2 blocks of output channels][run][16]`, planes a cache line apart so that they do not meet in one set.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    pub patches: usize,
    pub products: usize,
    planes: usize,
}

impl Scratch {
    /// For runs of `run` patches.
    pub fn new(tile: usize, run: usize, in_blocks: usize) -> Scratch {
        let planes = side(tile) * side(tile);
        Scratch { patches: (in_blocks * run + 1) * BLOCK, products: (2 * run + 1) * BLOCK, planes }
    }

    /// Values of one lane.
    pub fn values(&self) -> usize {
        self.planes * (self.patches + self.products)
    }

    /// Where the products begin.
    pub fn first_product(&self) -> usize {
        self.planes * self.patches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_found_again() {
        for tile in [2, 4] {
            let (g, back) = (filter(tile).unwrap(), taps(tile).unwrap());
            assert_eq!(g.len(), side(tile));
            let w = [0.75, -1.5, 0.375];
            let values: Vec<f64> = g.iter().map(|g| (0..3).map(|i| g[i] * w[i]).sum()).collect();
            for (w, terms) in w.iter().zip(back) {
                let sum: f64 = terms.iter().map(|(i, f)| f * values[*i]).sum();
                assert!((sum - w).abs() < 1e-14, "F({tile}): {sum} for {w}");
            }
        }
    }
}
