//! Made-up inputs: the same numbers for the same seed on every machine.

use nnc_ir::error::Error;
use nnc_ir::tensor::checked_elems;
use nnc_ir::{DType, Result, Tensor};
use std::str::FromStr;

/// What to fill an input with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    Zeros,
    Ones,
    /// Floats uniform in [-1, 1); integers and booleans 0 or 1, so that they are valid indices almost everywhere.
    Random(u64),
}

/// The largest input that is made up.
const MAX_BYTES: usize = 1 << 30;

impl FromStr for Fill {
    type Err = Error;

    fn from_str(text: &str) -> Result<Fill> {
        match text {
            "zeros" => Ok(Fill::Zeros),
            "ones" => Ok(Fill::Ones),
            "random" => Ok(Fill::Random(0)),
            _ => text
                .strip_prefix("random:")
                .and_then(|s| s.parse().ok())
                .map(Fill::Random)
                .ok_or_else(|| Error::input(format!("`{text}` is no filling: these are random:SEED, zeros and ones"))),
        }
    }
}

impl Fill {
    /// The `k`-th input of a model: two inputs of one seed differ.
    pub fn tensor(self, k: usize, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let n = checked_elems(dtype, shape)?;
        if n * dtype.bytes() > MAX_BYTES {
            return Err(
                Error::limit(format!("{dtype}{shape:?} is more than the 1 GiB that inputs are made up to")).note("give the input, or smaller sizes")
            );
        }
        let seed = match self {
            Fill::Zeros => return splat(dtype, shape, 0.0),
            Fill::Ones => return splat(dtype, shape, 1.0),
            Fill::Random(seed) => seed,
        };
        let mut state = SplitMix(seed ^ (k as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
        let mut bytes = Vec::with_capacity(n * dtype.bytes());
        for _ in 0..n {
            let bits = state.next();
            // 24 bits make an f32 exactly.
            let value = if dtype.is_float() { (bits >> 40) as f64 / f64::from(1 << 23) - 1.0 } else { (bits >> 63) as f64 };
            nnc_ir::scalar::Num::F(value).cast(dtype).write(dtype, &mut bytes);
        }
        Tensor::from_bytes(dtype, shape.to_vec(), bytes.into())
    }
}

fn splat(dtype: DType, shape: &[usize], value: f64) -> Result<Tensor> {
    Tensor::splat(dtype, shape.to_vec(), Tensor::scalar_of(dtype, value).bytes())
}

/// Sebastiano Vigna's SplitMix64.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generator_is_splitmix64() {
        // The published first outputs for seed 1234567.
        let mut s = SplitMix(1234567);
        assert_eq!([s.next(), s.next(), s.next()], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn fills() {
        let x = "random:7".parse::<Fill>().unwrap().tensor(0, DType::F32, &[1000]).unwrap().to_f64s();
        assert!(x.iter().all(|v| (-1.0..1.0).contains(v)));
        let mean = x.iter().sum::<f64>() / 1000.0;
        let variance = x.iter().map(|v| v * v).sum::<f64>() / 1000.0;
        assert!(mean.abs() < 0.06 && (variance - 1.0 / 3.0).abs() < 0.03, "{mean} {variance}");
        assert_ne!(Fill::Random(7).tensor(1, DType::F32, &[1000]).unwrap().to_f64s(), x);
        let ints = Fill::Random(1).tensor(0, DType::I64, &[64]).unwrap().to_ints().unwrap();
        assert!(ints.iter().all(|v| *v == 0 || *v == 1) && ints.contains(&0) && ints.contains(&1));
        assert_eq!(Fill::Ones.tensor(0, DType::F16, &[2, 2]).unwrap().to_f64s(), [1.0; 4]);
        assert_eq!("noise".parse::<Fill>().unwrap_err().code().text(), "E0301");
    }
}
