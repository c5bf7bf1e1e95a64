//! Initial values of parameters.

use super::random::{key, normal_quantile, uniforms};
use nnc_ir::error::{Error, Result};
use nnc_ir::scalar::Num;
use nnc_ir::tensor::checked_elems;
use nnc_ir::{DType, Tensor};

/// How a parameter begins. Fan-in is the product of all axes but the first, fan-out the first times those behind the second:
/// weights are `[out, in, kernel..]`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// All elements are this number.
    Constant(f64),
    Uniform {
        lo: f64,
        hi: f64,
    },
    Normal {
        mean: f64,
        std: f64,
    },
    /// Normal with variance 2 / fan-in (He et al. 2015).
    He,
    /// Uniform within ±sqrt(6 / (fan-in + fan-out)) (Glorot and Bengio 2010).
    Glorot,
    /// Normal with variance 1 / fan-in (LeCun et al. 1998).
    Lecun,
    /// A random matrix `[out, the rest]` with orthonormal rows or columns, times the gain (Saxe et al. 2014).
    Orthogonal {
        gain: f64,
    },
    /// All taps zero but the middle one, which is orthogonal, times the gain (Xiao et al. 2018); in <= out.
    DeltaOrthogonal {
        gain: f64,
    },
}

/// What one can write, for messages.
pub const NAMES: &[&str] = &["zeros", "ones", "constant", "uniform", "normal", "he", "glorot", "lecun", "orthogonal", "delta_orthogonal"];

/// Multiplications that an orthogonal matrix may cost.
const MAX_ORTHOGONAL: usize = 1 << 34;

/// Elements from which on a second thread helps.
const PARALLEL: usize = 1 << 20;

impl Init {
    /// The initialiser called `name`; `None` for an unknown name.
    pub fn new(name: &str, args: &[f64]) -> Option<Result<Init>> {
        let number = |i: usize, default: Option<f64>| {
            args.get(i).copied().or(default).ok_or_else(|| Error::arity(format!("{name} takes a number: `{name}(0.1)`")))
        };
        let at_most = |n: usize, init: Init| {
            if args.len() <= n { Ok(init) } else { Err(Error::arity(format!("{name} takes at most {n} numbers, {} are given", args.len()))) }
        };
        Some((|| match name {
            "zeros" => at_most(0, Init::Constant(0.0)),
            "ones" => at_most(0, Init::Constant(1.0)),
            "constant" => at_most(1, Init::Constant(number(0, None)?)),
            // uniform(a) is uniform(-a, a); normal(s) is normal(0, s).
            "uniform" => {
                let first = number(0, None)?;
                let (lo, hi) = args.get(1).map_or((-first, first), |hi| (first, *hi));
                at_most(2, Init::Uniform { lo, hi })
            }
            "normal" => {
                let first = number(0, None)?;
                let (mean, std) = args.get(1).map_or((0.0, first), |s| (first, *s));
                at_most(2, Init::Normal { mean, std })
            }
            "he" => at_most(0, Init::He),
            "glorot" => at_most(0, Init::Glorot),
            "lecun" => at_most(0, Init::Lecun),
            "orthogonal" => at_most(1, Init::Orthogonal { gain: number(0, Some(1.0))? }),
            _ => at_most(1, Init::DeltaOrthogonal { gain: number(0, Some(1.0))? }),
        })())
        .filter(|_| NAMES.contains(&name))
    }

    /// The first values of the parameter at `path`.
    pub fn tensor(self, dtype: DType, shape: &[usize], seed: u64, path: &str) -> Result<Tensor> {
        let n = checked_elems(dtype, shape)?;
        if let Init::Constant(c) = self {
            let mut bytes = vec![];
            Num::F(c).cast(dtype).write(dtype, &mut bytes);
            return Tensor::splat(dtype, shape.to_vec(), bytes.into());
        }
        if !dtype.is_float() {
            return Err(Error::dtype(format!("a random initialiser fills floats, not {dtype}")));
        }
        let key = key(seed, path);
        let fans = || match shape {
            [out, rest @ ..] if !rest.is_empty() => {
                let taps: usize = rest[1..].iter().product();
                Ok(((rest[0] * taps).max(1) as f64, (out * taps).max(1) as f64))
            }
            _ => Err(Error::shape(format!("an initialiser by fan-in needs weights [out, in, ..], found {shape:?}"))),
        };
        let normal = |mean: f64, std: f64| fill(dtype, shape, n, key, move |u| mean + std * normal_quantile(u));
        let uniform = |lo: f64, hi: f64| fill(dtype, shape, n, key, move |u| lo + (hi - lo) * u);
        match self {
            Init::Constant(_) => unreachable!("returned above"),
            Init::Uniform { lo, hi } => uniform(lo, hi),
            Init::Normal { mean, std } => normal(mean, std),
            Init::He => normal(0.0, (2.0 / fans()?.0).sqrt()),
            Init::Lecun => normal(0.0, (1.0 / fans()?.0).sqrt()),
            Init::Glorot => {
                let (fan_in, fan_out) = fans()?;
                let a = (6.0 / (fan_in + fan_out)).sqrt();
                uniform(-a, a)
            }
            Init::Orthogonal { gain } => {
                fans()?;
                let (rows, cols) = (shape[0], shape[1..].iter().product());
                let q = orthogonal(rows, cols, key)?;
                from_f64s(dtype, shape, n, |i| gain * q[i])
            }
            Init::DeltaOrthogonal { gain } => {
                fans()?;
                let (out, inn) = (shape[0], shape[1]);
                if inn > out {
                    return Err(Error::shape(format!("delta_orthogonal needs at least as many outputs as inputs, found {shape:?}")));
                }
                let q = orthogonal(out, inn, key)?;
                let taps: usize = shape[2..].iter().product();
                let middle = shape[2..].iter().fold(0, |at, k| at * k + k / 2);
                from_f64s(dtype, shape, n, |i| if i % taps == middle { gain * q[i / taps] } else { 0.0 })
            }
        }
    }
}

fn from_f64s(dtype: DType, shape: &[usize], n: usize, f: impl Fn(usize) -> f64) -> Result<Tensor> {
    let mut bytes = Vec::with_capacity(n * dtype.bytes());
    match dtype {
        DType::F32 => (0..n).for_each(|i| bytes.extend((f(i) as f32).to_le_bytes())),
        _ => (0..n).for_each(|i| Num::F(f(i)).cast(dtype).write(dtype, &mut bytes)),
    }
    Tensor::from_bytes(dtype, shape.to_vec(), bytes.into())
}

/// Element `i` is `f` of uniform number `i`. Large tensors are filled by all threads, each its share.
fn fill(dtype: DType, shape: &[usize], n: usize, key: [u32; 2], f: impl Fn(f64) -> f64 + Copy + Send + Sync) -> Result<Tensor> {
    let width = dtype.bytes();
    let mut bytes = vec![0u8; n * width];
    let part = |out: &mut [u8], from: u64| {
        let mut element = Vec::with_capacity(8);
        for (slot, u) in out.chunks_exact_mut(width).zip(uniforms(key, from)) {
            let x = f(u);
            if dtype == DType::F32 {
                slot.copy_from_slice(&(x as f32).to_le_bytes());
            } else {
                element.clear();
                Num::F(x).cast(dtype).write(dtype, &mut element);
                slot.copy_from_slice(&element);
            }
        }
    };
    let threads = if n < PARALLEL { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let share = n.div_ceil(threads).max(1);
    std::thread::scope(|s| {
        for (i, out) in bytes.chunks_mut(share * width).enumerate() {
            let from = (i * share) as u64;
            if threads == 1 {
                part(out, from);
            } else {
                s.spawn(move || part(out, from));
            }
        }
    });
    Tensor::from_bytes(dtype, shape.to_vec(), bytes.into())
}

/// A random row-major matrix with orthonormal rows or columns, whichever are fewer: normals orthonormalised by Gram and Schmidt,
/// twice, which makes them orthogonal to rounding.
fn orthogonal(rows: usize, cols: usize, key: [u32; 2]) -> Result<Vec<f64>> {
    let (count, len) = (rows.min(cols), rows.max(cols));
    let cost = count.checked_mul(count).and_then(|c| c.checked_mul(len));
    if cost.is_none_or(|c| c > MAX_ORTHOGONAL) {
        return Err(Error::limit(format!("an orthogonal matrix of {rows} x {cols} is too large")));
    }
    if count == 0 {
        return Ok(vec![]);
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let mut v: Vec<f64> = uniforms(key, 0).take(count * len).map(normal_quantile).collect();
    for i in 0..count {
        let (done, rest) = v.split_at_mut(i * len);
        let x = &mut rest[..len];
        for _ in 0..2 {
            for q in done.chunks_exact(len) {
                let d = dot(q, x);
                x.iter_mut().zip(q).for_each(|(x, q)| *x -= d * q);
            }
            let norm = dot(x, x).sqrt();
            x.iter_mut().for_each(|x| *x /= norm);
        }
    }
    if rows <= cols {
        return Ok(v);
    }
    Ok((0..rows * cols).map(|i| v[i % cols * len + i / cols]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(init: Init, shape: &[usize]) -> Vec<f64> {
        init.tensor(DType::F32, shape, 3, "w").unwrap().to_f64s()
    }

    fn moments(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / x.len() as f64)
    }

    #[test]
    fn variances_are_what_the_papers_say() {
        // [out=64, in=32, 3, 3]: fan-in 288, fan-out 576.
        let shape = [64, 32, 3, 3];
        for (init, var) in [
            (Init::He, 2.0 / 288.0),
            (Init::Lecun, 1.0 / 288.0),
            (Init::Glorot, 2.0 / (288.0 + 576.0)),
            (Init::Normal { mean: 0.0, std: 0.5 }, 0.25),
            (Init::Uniform { lo: -1.0, hi: 1.0 }, 1.0 / 3.0),
        ] {
            let (mean, got) = moments(&values(init, &shape));
            assert!((got / var - 1.0).abs() < 0.03, "{init:?}: {got} {var}");
            assert!(mean.abs() < 0.02 * var.sqrt(), "{init:?}: mean {mean}");
        }
    }

    #[test]
    fn orthogonal_columns_and_rows() {
        for (rows, cols) in [(24, 8), (8, 24), (5, 5)] {
            let q = orthogonal(rows, cols, key(1, "q")).unwrap();
            let n = rows.min(cols);
            for i in 0..n {
                for j in 0..n {
                    let at = |k: usize, i: usize| if rows >= cols { q[k * cols + i] } else { q[i * cols + k] };
                    let d: f64 = (0..rows.max(cols)).map(|k| at(k, i) * at(k, j)).sum();
                    assert!((d - f64::from(i == j)).abs() < 1e-12, "{rows}x{cols}: {i} {j} {d}");
                }
            }
        }
    }

    #[test]
    fn delta_orthogonal_lives_in_the_middle_tap() {
        let w = values(Init::DeltaOrthogonal { gain: 2.0 }, &[4, 3, 3, 3]);
        assert!(w.chunks(9).all(|taps| taps.iter().enumerate().all(|(i, x)| (i == 4) == (*x != 0.0))));
        let norm: f64 = (0..4).map(|o| w[(o * 3) * 9 + 4].powi(2)).sum();
        assert!((norm - 4.0).abs() < 1e-5);
    }

    /// The bytes are part of what a file means: a change of generator or of its use is a change of every model.
    #[test]
    fn values_do_not_change() {
        let w = Init::He.tensor(DType::F32, &[2, 3], 0, "fc.w").unwrap().to_vec::<f32>().unwrap();
        assert_eq!(w, GOLDEN);
        let big = Init::Normal { mean: 0.0, std: 1.0 }.tensor(DType::F32, &[3, 1 << 20], 0, "x").unwrap();
        let key = key(0, "x");
        for i in [0, 1 << 20, (3 << 20) - 1] {
            assert_eq!(big.num(i).as_f64(), f64::from(normal_quantile(uniforms(key, i as u64).next().unwrap()) as f32));
        }
    }

    /// As an independent implementation in Python has them, to the accuracy of the quantile.
    const GOLDEN: [f32; 6] = [-0.70056665, -0.076003924, 0.37725928, 0.9884052, -0.84349185, -1.1668438];
}
