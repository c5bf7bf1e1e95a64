//! Minimal filtering for 3x3 windows, F(m x m, 3 x 3): a patch of `m + 2` squared values gives `m` squared results by as many
//! multiplications as the patch has values (Winograd 1980; the matrices are those of Lavin and Gray 2016, "Fast Algorithms for
//! Convolutional Neural Networks"): `Y = A^T [(G g G^T) * (B^T d B)] A`.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

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

/// Filters `[..,3,3]` as patches `[..,m+2,m+2]`, computed in f64.
pub fn filters(tile: usize, w: &Tensor) -> Result<Tensor> {
    let g = filter(tile).ok_or_else(|| Error::attribute(format!("there is no F({tile}x{tile}, 3x3)")))?;
    let (lead, n) = (w.shape().len().saturating_sub(2), side(tile));
    if w.shape().get(lead..) != Some(&[3, 3]) {
        return Err(Error::input(format!("filters are [..,3,3], found {}", w.ty())));
    }
    let shape = [&w.shape()[..lead], &[n, n]].concat();
    let values = w.to_vec::<f32>().ok_or_else(|| Error::input(format!("filters are f32, found {}", w.ty())))?;
    let mut out = Vec::with_capacity(values.len() / 9 * n * n);
    for w in values.chunks_exact(9) {
        let row = |g: &[f64; 3], c: usize| (0..3).map(|r| g[r] * f64::from(w[3 * r + c])).sum::<f64>();
        for up in g {
            let along = [row(up, 0), row(up, 1), row(up, 2)];
            out.extend(g.iter().map(|g| (0..3).map(|c| g[c] * along[c]).sum::<f64>() as f32));
        }
    }
    Ok(Tensor::new(&shape, &out))
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
    pub fn len(&self) -> usize {
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
