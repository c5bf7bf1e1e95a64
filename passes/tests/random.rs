//! Random graphs: what the pipeline makes of them gives the same values.

mod graphs;
use graphs::*;
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::contract::MatMul;
use nnc_ir::ops::movement::Slice;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{Builder, Dim, Graph, ScalarFn, V};
use nnc_passes::{Options, Precision};

/// A sequence of numbers that depends on its seed only (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }
}

const FUNCTIONS: [ScalarFn; 8] =
    [ScalarFn::Relu, ScalarFn::Tanh, ScalarFn::Sigmoid, ScalarFn::Neg, ScalarFn::Abs, ScalarFn::Erf, ScalarFn::Cos, ScalarFn::Sin];

/// A value made from `x`, all of rank 4.
fn step<'g>(b: &'g Builder, dice: &mut Dice, x: V<'g>, other: V<'g>) -> V<'g> {
    let shape: Vec<usize> = x.ty().shape.iter().map(|d| d.as_const().unwrap() as usize).collect();
    let dims = |s: &[usize]| s.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>();
    let c = shape[1];
    match dice.roll(20) {
        0 | 1 => conv(x, dice.pick(&[3, 8, 16, 24, 32]), dice.pick(&[1, 3]), dice.pick(&[1, 2]), 1),
        2 => conv(x, c, 3, 1, c),
        3 => batch_norm(x),
        4 | 5 => x.map(dice.pick(&FUNCTIONS)),
        6 => {
            let act =
                dice.pick(&[Act::HardSwish {}, Act::Gelu {}, Act::Clip { lo: 0.0.into(), hi: 6.0.into() }, Act::LeakyRelu { alpha: 0.1.into() }]);
            b.op(Activation { act }, &[x])
        }
        7 => x * constant(b, &[c, 1, 1], 0.5),
        8 => x + constant(b, &dice.pick(&[[1, 1, 1], [c, 1, 1]]), 0.5),
        9 => x / x.scalar_like(dice.pick(&[2.0, 3.0])) - x.scalar_like(0.5),
        10 => x * x.sigmoid(),
        11 if shape == other.ty().const_shape().unwrap().iter().map(|d| *d as usize).collect::<Vec<_>>() => x + other,
        11 => x + x.relu(),
        12 => {
            let y = conv(x, dice.pick(&[16, 8]), 1, 1, 1);
            V::concat(&[x, y, x.map(dice.pick(&FUNCTIONS))], 1)
        }
        13 if shape[2] > 2 => max_pool(x, 3, dice.pick(&[1, 2])),
        14 => x * x.mean_keep(&[2, 3]).sigmoid(),
        15 => {
            let edge = dims(&[0, 0, dice.roll(2), 1]);
            x.pad_zero(edge.clone(), edge)
        }
        16 if c > 1 => {
            let steps: Vec<i64> = dice.pick(&[&[][..], &[1, -1, 1, 1]]).to_vec();
            let from = if steps.is_empty() { c / 2 } else { c - 1 };
            b.op(Slice { starts: dims(&[0, from, 0, 0]), sizes: dims(&[shape[0], c - c / 2, shape[2], shape[3]]), steps }, &[x])
        }
        17 => {
            let y = x.transpose(&[0, 2, 3, 1]);
            let y =
                b.op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, &[y, constant(b, &[c, 10], 0.0)]) + constant(b, &[10], 0.1);
            y.map(dice.pick(&FUNCTIONS)).transpose(&[0, 3, 1, 2])
        }
        18 => x.reshape(dims(&[shape[0], c * shape[2], shape[3]])).map(dice.pick(&FUNCTIONS)).reshape(dims(&shape)),
        _ => x - x.reduce(ReduceKind::Max, &[dice.roll(4)], true),
    }
}

fn random(seed: u64) -> Graph {
    let mut dice = Dice(seed);
    let b = Builder::new("random");
    let mut values = vec![image(&b, dice.pick(&[3, 16, 20]), dice.pick(&[5, 8]) as i64)];
    for _ in 0..4 + dice.roll(12) {
        // Mostly a chain, so that fusions meet; now and then a second reader of something old.
        let x = if dice.roll(4) > 0 { values[values.len() - 1] } else { dice.pick(&values) };
        let other = dice.pick(&values);
        values.push(step(&b, &mut dice, x, other));
    }
    b.output("y", values[values.len() - 1]);
    if dice.roll(3) == 0 {
        b.output("z", dice.pick(&values));
    }
    b.finish().unwrap_or_else(|e| panic!("seed {seed}: {e}"))
}

#[test]
fn optimised_graphs_give_the_same_values() {
    for seed in 0..120 {
        let g = random(seed);
        let options = Options {
            level: [2, 3, 1, 2][seed as usize % 4],
            precision: if seed % 3 == 0 { Precision::Exact } else { Precision::Fast },
            halo: seed % 5 > 0,
            ..Options::default()
        };
        let o = optimized(&g, &options);
        println!("seed {seed}: {:?}", ops(&o));
        assert_equal(&g, &o, 2e-5);
    }
}
