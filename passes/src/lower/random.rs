//! Random words: each block of four is a function of its number.

use super::loops::Loops;
use super::view::View;
use nnc_ir::error::Result;
use nnc_ir::kernel::ExprId;
use nnc_ir::ops::random::{MULTIPLIERS, ROUNDS, Random, halves, round_key};
use nnc_ir::scalar::Num;
use nnc_ir::{DType, Dim, ScalarFn};

/// Scalar operations of a block.
const WORK: i64 = 100;

fn constant(k: &mut Loops, x: u64, d: DType) -> ExprId {
    k.literal(Num::U(x), d)
}

/// The low and the high word of a `u64`.
fn split(k: &mut Loops, x: ExprId) -> [ExprId; 2] {
    let x = k.bind(x);
    let width = constant(k, 32, DType::U64);
    let high = k.map(ScalarFn::Shr, &[x, width]);
    let (low, high) = (k.cast(DType::U32, x), k.cast(DType::U32, high));
    [k.bind(low), k.bind(high)]
}

pub fn random(k: &mut Loops, op: &Random) -> Result<()> {
    let blocks = k.y[0].shape[0].clone();
    let (zero, key) = (k.int(0), halves(op.seed as u64));
    k.parallel(&[blocks], &[View::new(vec![Dim::Const(4)])], WORK, |k, vars, at| {
        let number = k.cast(DType::U64, vars[0]);
        let [mut c0, mut c1] = split(k, number);
        let step = k.load(0, zero);
        let step = k.cast(DType::U64, step);
        let [mut c2, mut c3] = split(k, step);
        for round in 0..ROUNDS {
            let [k0, k1] = round_key(key, round);
            let product = |k: &mut Loops, by: u32, word: ExprId| {
                let (by, word) = (constant(k, by.into(), DType::U64), k.cast(DType::U64, word));
                let product = k.mul(by, word);
                split(k, product)
            };
            let mix = |k: &mut Loops, high: ExprId, word: ExprId, key: u32| {
                let key = constant(k, key.into(), DType::U32);
                let mixed = k.map(ScalarFn::BitXor, &[high, word]);
                let mixed = k.map(ScalarFn::BitXor, &[mixed, key]);
                k.bind(mixed)
            };
            let [lo0, hi0] = product(k, MULTIPLIERS[0], c0);
            let [lo1, hi1] = product(k, MULTIPLIERS[1], c2);
            (c0, c1, c2, c3) = (mix(k, hi1, c1, k0), lo1, mix(k, hi0, c3, k1), lo0);
        }
        for (i, word) in [c0, c1, c2, c3].into_iter().enumerate() {
            let i = k.int(i as i64);
            let to = k.add(at[0], i);
            k.put(0, to, word);
        }
    });
    Ok(())
}
