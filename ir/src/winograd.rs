//! Minimal filtering, F(m x m, r x r): a patch of `m + r - 1` squared values gives `m` squared results by as many multiplications as the
//! patch has values (Toom 1963, Cook 1966, Winograd 1980; as in Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"):
//! `Y = A^T [(G g G^T) * (B^T d B)] A`. Filter and patch are evaluated at the points 0, 1, -1 and infinity, larger ones at 2 and -2 as well.

use crate::error::{Error, Result};
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;

/// Channels in a block, on every instruction set that has kernels.
const BLOCK: usize = 16;

/// Runs of patches that may be computed at once, each in its own part of the scratch memory.
pub const LANES: usize = 16;

/// A minimal filtering F(tile x tile, taps x taps).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Form {
    /// Results along a side of a tile.
    pub tile: usize,
    /// Values along a side of a window.
    pub taps: usize,
}

impl Form {
    /// Patches of 4 or of 6 values a side, windows from 2x2 to 5x5. F(5x5, 2x2) is left out: few taps beside factors of 16 lose a digit more
    /// than the others do, for a fifth of the multiplications of F(3x3, 2x2).
    pub const ALL: [Form; 5] = [Form::of(2, 3), Form::of(3, 2), Form::of(4, 3), Form::of(3, 4), Form::of(2, 5)];

    const fn of(tile: usize, taps: usize) -> Form {
        Form { tile, taps }
    }

    /// The form of these sizes, where there is one.
    pub fn new(tile: usize, taps: usize) -> Option<Form> {
        Form::ALL.into_iter().find(|f| *f == Form { tile, taps })
    }

    /// Values along a side of a patch.
    pub const fn side(self) -> usize {
        self.tile + self.taps - 1
    }

    /// The rows of G: from the taps to the values of a patch's side. Row k evaluates the filter, as a polynomial, at point k over the product
    /// of the point's distances from the others; the last point is infinite.
    pub fn filter(self) -> Vec<Vec<f64>> {
        let points: &[f64] = if self.side() == 4 { &[0.0, 1.0, -1.0] } else { &[0.0, 1.0, -1.0, 2.0, -2.0] };
        let row = |(k, p): (usize, &f64)| {
            let scale: f64 = points.iter().enumerate().filter(|(l, _)| *l != k).map(|(_, q)| p - q).product();
            (0..self.taps).map(|i| p.powi(i as i32) / scale).collect()
        };
        let mut rows: Vec<Vec<f64>> = points.iter().enumerate().map(row).collect();
        rows.push((0..self.taps).map(|i| if i + 1 == self.taps { 1.0 } else { 0.0 }).collect());
        rows
    }

    /// The taps back from the values of a filter's side: each a sum of factors times values.
    pub fn taps_back(self) -> Vec<Vec<(usize, f64)>> {
        let last = self.side() - 1;
        // The first and the last tap stand alone in a value; sums and differences at opposite points are those of even and odd taps.
        let ends = |middle: Vec<Vec<(usize, f64)>>| {
            let first = vec![(0, if last == 3 { -1.0 } else { 4.0 })];
            [vec![first], middle, vec![vec![(last, 1.0)]]].concat()
        };
        match (self.side(), self.taps) {
            (4, 2) => ends(vec![]),
            (4, _) => ends(vec![vec![(1, 1.0), (2, -1.0)]]),
            (_, 3) => ends(vec![vec![(2, 3.0), (1, -3.0)]]),
            (_, 4) => ends(vec![vec![(2, 3.0), (1, -3.0), (5, -1.0)], vec![(1, -3.0), (2, -3.0), (0, -4.0)]]),
            _ => ends(vec![
                vec![(2, 4.0), (1, -4.0), (3, -2.0), (4, 2.0)],
                vec![(1, -3.0), (2, -3.0), (0, -4.0), (5, -1.0)],
                vec![(3, 2.0), (4, -2.0), (2, -1.0), (1, 1.0)],
            ]),
        }
    }
}

/// Filters `[O,C,taps,taps]` as patches in blocks of channels, `[O/b,side,side,C/b,b(in),b(out)]`, filled up with zeros. Computed in f64.
pub fn filters(tile: usize, block: usize, w: &Tensor) -> Result<Tensor> {
    let (DType::F32, &[outputs, inputs, rows, columns]) = (w.dtype(), w.shape()) else {
        return Err(Error::input(format!("filters are f32[O,C,taps,taps], found {}", w.ty())));
    };
    let form = Form::new(tile, rows).filter(|f| f.taps == columns);
    let form = form.ok_or_else(|| Error::attribute(format!("there is no F({tile}x{tile}, {rows}x{columns})")))?;
    // Read and written as bytes: a model's filters are large, and another copy of the largest is what a compilation would peak with.
    let values = w.bytes();
    let value = |at: usize| values[4 * at..].first_chunk().map_or(0.0, |b| f64::from(f32::from_le_bytes(*b)));
    let (g, n, side) = (form.filter(), form.taps, form.side());
    let (in_blocks, out_blocks) = (inputs.div_ceil(block), outputs.div_ceil(block));
    let shape = vec![out_blocks, side, side, in_blocks, block, block];
    let mut out = vec![0u8; checked_elems(DType::F32, &shape)? * DType::F32.bytes()];
    let plane = in_blocks * block * block;
    // One input channel of a block of filters at a time: `block` lanes, which the compiler makes vector code of.
    let (mut taps, mut along, mut patch) = (vec![0f64; n * n * block], vec![0f64; n * block], vec![0f64; block]);
    // Each a sum over the rows of `from`, which are `apart` lanes apart.
    fn combine(to: &mut [f64], g: &[f64], from: &[f64], apart: usize) {
        to.fill(0.0);
        for (g, row) in g.iter().zip(from.chunks(apart)).filter(|(g, _)| **g != 0.0) {
            to.iter_mut().zip(row).for_each(|(t, x)| *t += g * x);
        }
    }
    for (ob, c) in (0..out_blocks).flat_map(|ob| (0..inputs).map(move |c| (ob, c))) {
        for o in 0..block {
            let filter = (ob * block + o < outputs).then(|| ((ob * block + o) * inputs + c) * n * n);
            (0..n * n).for_each(|t| taps[t * block + o] = filter.map_or(0.0, |f| value(f + t)));
        }
        for (i, up) in g.iter().enumerate() {
            combine(&mut along, up, &taps, n * block);
            for (j, g) in g.iter().enumerate() {
                combine(&mut patch, g, &along, block);
                let to = &mut out[4 * ((ob * side * side + i * side + j) * plane + c * block)..][..4 * block];
                for (t, sum) in to.chunks_exact_mut(4).zip(&patch) {
                    t.copy_from_slice(&(*sum as f32).to_le_bytes());
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
    pub fn new(form: Form, run: usize, in_blocks: usize) -> Scratch {
        let planes = form.side() * form.side();
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
        for form in Form::ALL {
            let (g, back) = (form.filter(), form.taps_back());
            assert_eq!((g.len(), back.len()), (form.side(), form.taps));
            let w = [0.75, -1.5, 0.375, 2.25, -0.625];
            let values: Vec<f64> = g.iter().map(|g| g.iter().zip(w).map(|(g, w)| g * w).sum()).collect();
            for (w, terms) in w.iter().zip(back) {
                let sum: f64 = terms.iter().map(|(i, f)| f * values[*i]).sum();
                assert!((sum - w).abs() < 1e-13, "{form:?}: {sum} for {w}");
            }
        }
    }
}
