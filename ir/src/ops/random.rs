//! Random numbers by counting: what a draw gives follows from its seed, its step and the element's index alone, so every engine gives the
//! same bits with any number of threads, and a model holds no hidden state.

use super::reduce::ReduceKind;
use super::{Class, Op, Primitive, arity};
use crate::attrs::op_struct;
use crate::builder::{Builder, V};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::graph::Graph;
use crate::scalar::ScalarFn;
use crate::tensor::{Tensor, checked_elems};
use crate::types::{DType, Type};

op_struct! {
    /// Blocks of four random words, `u32 [blocks,4]`, by Philox4x32-10 under the key `seed`. The operand, one `i64`, is the step: equal
    /// seeds and steps give equal words. Never folded: a model that draws numbers does so when it runs.
    Random { seed: i64, blocks: Dim }
}

impl Primitive for Random {
    fn class(&self) -> Class {
        Class::Source
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("random", x, 1, 1)?;
        if x[0].dtype != DType::I64 || !x[0].elems().is(1) {
            return Err(Error::dtype(format!("random: the step is one i64, found {}", x[0])));
        }
        Ok(vec![Type::new(DType::U32, [self.blocks.clone(), Dim::Const(4)])])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let shape = env.shape(&[self.blocks.clone(), Dim::Const(4)])?;
        checked_elems(DType::U32, &shape)?;
        let (step, key) = (halves(x[0].num(0).as_i64() as u64), halves(self.seed as u64));
        let words = |i: usize| {
            let [lo, hi] = halves(i as u64);
            philox([lo, hi, step[0], step[1]], key)
        };
        Ok(vec![Tensor::new(&shape, &(0..shape[0]).flat_map(words).collect::<Vec<u32>>())])
    }
}

/// The low and the high word.
pub fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// Rounds of [`philox`].
pub const ROUNDS: u32 = 10;
/// Multipliers of the first and the third word.
pub const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// What a round adds to the key.
pub const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): a bijection of the counter.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    (0..ROUNDS).fold(counter, |c, round| {
        let [k0, k1] = round_key(key, round);
        let [lo0, hi0] = halves(u64::from(MULTIPLIERS[0]) * u64::from(c[0]));
        let [lo1, hi1] = halves(u64::from(MULTIPLIERS[1]) * u64::from(c[2]));
        [hi1 ^ c[1] ^ k0, lo1, hi0 ^ c[3] ^ k1, lo0]
    })
}

/// The key of a round.
pub fn round_key(key: [u32; 2], round: u32) -> [u32; 2] {
    std::array::from_fn(|i| key[i].wrapping_add(WEYL[i].wrapping_mul(round)))
}

/// `f64` numbers of `shape` that are uniform in `0..1` (1 excluded), one a word, and with as many bits as the float `exact` holds, so that
/// rounding to it changes nothing.
pub fn uniform<'g>(b: &'g Builder, seed: i64, step: V<'g>, shape: &[Dim], exact: DType) -> V<'g> {
    let bits = match exact {
        DType::F64 => 32,
        DType::F32 => 24,
        DType::F16 => 11,
        _ => 8,
    };
    let n = Dim::product(shape);
    let words = b.op(Random { seed, blocks: n.ceil_div(&Dim::Const(4)) }, &[step]);
    let padded = n.ceil_div(&Dim::Const(4)) * Dim::Const(4);
    let words = words.reshape(vec![padded]).slice(vec![Dim::Const(0)], vec![n]).reshape(shape.to_vec());
    let dropped = words.scalar_like(f64::from(32 - bits));
    let u = b.op(Op::Map(ScalarFn::Shr), &[words, dropped]).cast(DType::F64);
    u * u.scalar_like(2f64.powi(-bits))
}

/// `f64` numbers of `shape` from the normal distribution of mean 0 and deviation 1 (Box and Muller, 1958), one a block: two words
/// each for the radius and for the angle.
pub fn normal<'g>(b: &'g Builder, seed: i64, step: V<'g>, shape: &[Dim]) -> V<'g> {
    let n = Dim::product(shape);
    let words = b.op(Random { seed, blocks: n.clone() }, &[step]).reshape(vec![n.clone(), Dim::Const(2), Dim::Const(2)]).cast(DType::F64);
    // 2^-64 * (low + 2^32 * high), the sum rounded to f64; never 0 for the sake of the logarithm.
    let place = b.constant(Tensor::new(&[2], &[2f64.powi(-64), 2f64.powi(-32)]));
    let unit = (words * place).reduce(ReduceKind::Sum, &[2], false);
    let part = |i: i64| unit.slice(vec![Dim::Const(0), Dim::Const(i)], vec![n.clone(), Dim::Const(1)]).reshape(shape.to_vec());
    let radius = part(0);
    let radius = radius.max(radius.scalar_like(2f64.powi(-65)));
    let radius = (radius.log() * radius.scalar_like(-2.0)).sqrt();
    let angle = part(1);
    radius * (angle * angle.scalar_like(std::f64::consts::TAU)).map(ScalarFn::Cos)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the generator (Random123, kat_vectors).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }
}
