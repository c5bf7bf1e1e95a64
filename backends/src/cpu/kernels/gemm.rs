//! Matrix products: `C[M, N] = A[M, K] * B[K, N]`, `B` packed in blocks of 16 columns or as it lies.

use super::contract::{Contract, Count, Nest, Place, contract};
use super::post::Post;
use super::{BLOCK, BLOCK_BYTES, Kernel, Size, Step};
use crate::cpu::isa::{Isa, Machine};
use nnc_ir::error::{Error, Result};

/// A row-major matrix, or a batch of them; distances in f32 values.
#[derive(Clone, PartialEq, Debug)]
pub struct Matrix {
    /// Word of the arguments that points at it.
    pub word: u32,
    /// From row to row.
    pub pitch: Size,
    /// From matrix to matrix, for each dimension of the batch; 0 repeats a matrix.
    pub batch: Vec<Size>,
}

impl Matrix {
    /// How its rows are walked, for [`Post::AddTensor`].
    pub fn place(&self) -> Place {
        Place {
            word: self.word,
            origin: Step::ZERO,
            batch: self.batch.iter().map(|s| Step::floats(*s, 1)).collect(),
            pixels: vec![Step::floats(self.pitch, 1)],
            cols: Step::bytes(BLOCK_BYTES),
        }
    }
}

/// A matrix product over a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Gemm {
    pub name: String,
    /// Dimensions of the batch, outermost first; empty for one product.
    pub batch: Vec<Size>,
    pub m: Size,
    pub n: Size,
    pub k: Size,
    pub a: Matrix,
    /// Word of `B`: packed `[N/16][K][16]` f32, columns padded with zeros, or rows `[K][N]` of whole blocks.
    pub b: u32,
    pub packed: bool,
    /// Whether the panels of one `B` are bf16, as [`Contract::narrow`] says; its depth is whole runs then.
    pub narrow: bool,
    /// f32 values from one `B` to the next, for each dimension of the batch.
    pub b_batch: Vec<Size>,
    pub c: Matrix,
    /// Word of f32[N], added to every row.
    pub bias: Option<u32>,
    /// As [`Contract::padded`].
    pub padded: bool,
    pub post: Vec<Post>,
}

/// Columns of a `B` that is not packed: 16 rows of it are within reach of an address's constant part.
const MAX_COLUMNS: i64 = 1 << 20;

/// Packs a constant `B`: row-major `[k][n]`, or `[n][k]` when `transposed`.
pub fn pack_weights(b: &[f32], k: usize, n: usize, transposed: bool) -> Vec<f32> {
    let block = BLOCK as usize;
    let mut out = Vec::with_capacity(n.div_ceil(block) * block * k);
    for nb in 0..n.div_ceil(block) {
        for i in 0..k {
            for j in nb * block..(nb + 1) * block {
                out.push(match (j < n, transposed) {
                    (false, _) => 0.0,
                    (true, false) => b[i * n + j],
                    (true, true) => b[j * k + i],
                });
            }
        }
    }
    out
}

/// Generates the kernel: [`contract`] with rows as its pixels.
pub fn gemm(g: &Gemm, isa: Isa, m: &Machine) -> Result<Kernel> {
    let pitch = match (g.packed, g.n) {
        (true, _) => None,
        (false, Size::Const(n)) if n % BLOCK == 0 && n <= MAX_COLUMNS => Some(n * 4),
        (false, _) => return Err(Error::unsupported(format!("{}: rows of B are no whole blocks", g.name))),
    };
    if g.narrow && (!g.packed || !g.batch.is_empty() || !matches!(g.k, Size::Const(k) if k % BLOCK == 0)) {
        return Err(Error::unsupported(format!("{}: bf16 weights that are no panels of whole runs", g.name)));
    }
    let runs = Nest { levels: vec![(Count::Runs(g.k), Step::bytes(BLOCK_BYTES))], run: BLOCK, rows: BLOCK, stride: 4 };
    let k = match g.k {
        Size::Const(k) if k % BLOCK == 0 => vec![runs],
        Size::Const(k) => vec![runs, Nest { levels: vec![], run: k % BLOCK, rows: k % BLOCK, stride: 4 }],
        Size::Arg(_) => vec![runs, Nest { levels: vec![(Count::Rest(g.k), Step::bytes(4))], run: 1, rows: 1, stride: 4 }],
    };
    let mut batch = g.batch.clone();
    let (mut a, mut c) = (g.a.place(), g.c.place());
    let mut b_batch: Vec<Step> = g.b_batch.iter().map(|s| Step::floats(*s, 1)).collect();
    let mut post = g.post.clone();
    if batch.is_empty() {
        batch.push(Size::Const(1));
        a.batch = vec![Step::ZERO];
        c.batch = vec![Step::ZERO];
        b_batch = vec![Step::ZERO];
        for p in &mut post {
            if let Post::AddTensor(t) = p {
                t.batch = vec![Step::ZERO];
            }
        }
    }
    let channels = vec![Step::ZERO; batch.len()];
    let desc = Contract {
        name: g.name.clone(),
        pixels: vec![g.m],
        cols: g.n,
        live: None,
        input: Place { cols: Step::ZERO, ..a },
        output: c,
        weights: (g.b, b_batch),
        pitch,
        narrow: g.narrow,
        bias: g.bias,
        padded: g.padded,
        channels,
        k,
        depth: g.k,
        pixel_bytes: if let Size::Const(k) = g.k { k * 4 } else { 4096 },
        batch,
        post,
    };
    contract(&desc, isa, m)
}
