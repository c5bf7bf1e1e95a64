//! Small cases of every operation in the table, for suites that loop over them: inference agrees with evaluation, text round trips,
//! lowered kernels and backends agree with the interpreter. A new operation needs a row here; its tests follow.

mod compare;
mod composite;
mod contract;
mod control;
mod index;
mod map;
mod movement;
mod random;
mod reduce;
mod tree;
mod wide;

use crate::builder::Builder;
use crate::dim::Dim;
use crate::error::{Report, Result};
use crate::eval::Env;
use crate::graph::Graph;
use crate::ops::Op;
use crate::scalar::Num;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

pub use compare::{compare, tolerance};
pub use wide::{wide_tensor, wide_type, widened};

/// What the symbols of examples' types stand for when they run.
pub const SIZES: &[(&str, i64)] = &[("N", 3), ("H", 7), ("W", 6), ("K", 4), ("L", 5)];

/// One operation on operands of given types.
#[derive(Clone, Debug)]
pub struct Example {
    /// Unique; begins with the operation's name.
    pub name: String,
    pub op: Op,
    /// Types of the operands. Their symbols are among [`SIZES`].
    pub inputs: Vec<Type>,
    /// What the operands may hold, one an operand.
    pub values: Vec<Values>,
    pub regions: Vec<Graph>,
    /// Types of further inputs of the graph, which only say what symbols stand for.
    pub binders: Vec<Type>,
}

/// What a random tensor may hold.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// Small numbers: floats in -4..4 with 8 bits behind the point, integers in -8..8 (unsigned 0..16).
    Small,
    /// Infinities, NaN, zeros of both signs, the largest and smallest numbers, ties of rounding, among ordinary ones.
    Edges,
    /// From the first (included) to the second (excluded), as far as the type can hold them: indices, shifts, variances.
    Range(i64, i64),
    /// These.
    Given(Tensor),
}

/// All examples, in the order of the table's families.
pub fn examples() -> Vec<Example> {
    [
        map::examples(),
        random::examples(),
        reduce::examples(),
        contract::examples(),
        movement::examples(),
        index::examples(),
        tree::examples(),
        control::examples(),
        composite::examples(),
    ]
    .concat()
}

impl Example {
    /// The graph with the operation in it: inputs `x0`, `x1`..., outputs `y0`, `y1`...
    pub fn graph(&self) -> Result<Graph, Report> {
        let b = Builder::new(&self.name);
        let x: Vec<_> = self.inputs.iter().enumerate().map(|(i, t)| b.input(format!("x{i}"), t.clone())).collect();
        for (i, t) in self.binders.iter().enumerate() {
            b.input(format!("x{}", x.len() + i), t.clone());
        }
        let y = b.op_all(self.op.clone(), &x, self.regions.clone());
        y.iter().enumerate().for_each(|(i, v)| b.output(format!("y{i}"), *v));
        b.finish()
    }

    /// Values for the inputs of [`Example::graph`], the same for the same seed.
    pub fn tensors(&self, seed: u64) -> Result<Vec<Tensor>> {
        let env = Env::default();
        SIZES.iter().try_for_each(|(s, n)| env.bind(&(*s).into(), *n))?;
        let values = self.values.iter().chain(std::iter::repeat(&Values::Small));
        let types = self.inputs.iter().chain(&self.binders).zip(values).zip(seed.wrapping_mul(0x1_0000)..);
        types.map(|((t, v), seed)| Ok(random_tensor(t.dtype, &env.shape(&t.shape)?, v, seed))).collect()
    }

    /// The same with other values for operand `k`.
    fn values(mut self, k: usize, values: Values) -> Example {
        self.values[k] = values;
        self
    }

    fn regions(self, regions: Vec<Graph>) -> Example {
        Example { regions, ..self }
    }

    fn binders(self, types: &[&str]) -> Example {
        Example { binders: types.iter().map(|t| ty(t)).collect(), ..self }
    }
}

/// A tensor that depends on nothing but the arguments.
pub fn random_tensor(dtype: DType, shape: &[usize], values: &Values, seed: u64) -> Tensor {
    if let Values::Given(t) = values {
        return t.clone();
    }
    let mut bytes = vec![];
    for i in 0..shape.iter().product::<usize>() as u64 {
        number(dtype, values, mix(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(i))).cast(dtype).write(dtype, &mut bytes);
    }
    Tensor::from_bytes(dtype, shape.to_vec(), bytes.into()).expect("as many elements as the shape says")
}

/// 64 bits that look random (the finalizer of splitmix64, Steele et al. 2014).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn number(dtype: DType, values: &Values, random: u64) -> Num {
    /// Beyond the range of f16 and of f32, subnormal in f32, around the limits of exp, ties.
    const FLOATS: [f64; 20] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1e-40,
        3e38,
        -3e38,
        70000.0,
        88.5,
        -104.0,
        1e-7,
        std::f64::consts::PI,
    ];
    let pick = |n: usize| (random >> 8) as usize % n;
    let between = |lo: i64, hi: i64| lo + (random >> 8) as i64 % (hi - lo).max(1);
    let bits = dtype.bits();
    match values {
        Values::Edges if random & 3 == 0 => number(dtype, &Values::Small, mix(random)),
        Values::Edges if dtype.is_float() => Num::F(FLOATS[pick(FLOATS.len())]),
        Values::Edges if dtype.is_signed_int() => {
            let (min, max) = (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits));
            Num::I([0, 1, -1, 2, min, max, min + 1, max - 1][pick(8)])
        }
        Values::Edges if dtype.is_unsigned_int() => {
            let max = u64::MAX >> (64 - bits);
            Num::U([0, 1, 2, max, max - 1, max / 2, max / 2 + 1][pick(7)])
        }
        Values::Range(lo, hi) if dtype.is_float() => Num::F(between(lo * 256, hi * 256) as f64 / 256.0),
        Values::Range(lo, hi) => Num::I(between(*lo, *hi)),
        _ if dtype.is_float() => Num::F(between(-1024, 1024) as f64 / 256.0),
        _ if dtype == DType::Bool => Num::B(random & 256 == 0),
        _ if dtype.is_signed_int() => Num::I(between(-8, 8)),
        _ => Num::U(between(0, 16) as u64),
    }
}

/// `f32[2,N]` as a type. Panics on other text: for the tables here.
fn ty(text: &str) -> Type {
    let (dtype, shape) = text.trim_end_matches(']').split_once('[').expect("dtype[dims]");
    Type::new(DType::from_name(dtype).expect("an element type"), dims(shape))
}

/// `2,N` as dimensions.
fn dims(text: &str) -> Vec<Dim> {
    text.split(',').filter(|d| !d.is_empty()).map(|d| d.parse().map_or_else(|_| Dim::sym(d), Dim::Const)).collect()
}

/// An example called `op.name` on operands of small values.
fn case(name: &str, op: impl Into<Op>, inputs: &[&str]) -> Example {
    let op = op.into();
    let inputs: Vec<Type> = inputs.iter().map(|t| ty(t)).collect();
    Example { name: format!("{}.{name}", op.name()), values: vec![Values::Small; inputs.len()], op, inputs, regions: vec![], binders: vec![] }
}

/// An index into an axis of length `n`, negative ones included.
fn index(n: i64) -> Values {
    Values::Range(-n, n)
}
