//! Layers, inputs and comparisons that the tests share.
#![allow(dead_code)] // each test file uses its own part

use nnc_ir::attrs::Real;
use nnc_ir::eval::{self, Env};
use nnc_ir::ops::composite::norm::BatchNorm;
use nnc_ir::ops::contract::{Conv, MatMul, Post};
use nnc_ir::ops::window::{Pool, PoolKind};
use nnc_ir::target::Isa;
use nnc_ir::{Builder, DType, Dim, Graph, Op, Target, Tensor, Type, V};
use nnc_passes::{Options, optimize};

/// A constant of small, different numbers around `centre`.
pub fn constant<'g>(b: &'g Builder, shape: &[usize], centre: f32) -> V<'g> {
    let n: usize = shape.iter().product();
    b.constant(Tensor::new(shape, &(0..n).map(|i| centre + 0.02 * ((i * 7 % 17) as f32 - 8.0)).collect::<Vec<f32>>()))
}

pub fn channels(x: V) -> usize {
    x.ty().shape[1].as_const().unwrap() as usize
}

/// A square convolution, padded so that stride 1 keeps the size.
pub fn conv<'g>(x: V<'g>, out: usize, kernel: usize, stride: i64, group: usize) -> V<'g> {
    let b = x.builder();
    let p = kernel as i64 / 2;
    let op = Conv {
        strides: vec![stride; 2],
        dilations: vec![],
        pads: vec![p; 4],
        group,
        layout: Default::default(),
        inputs: 0,
        outputs: 0,
        post: vec![],
    };
    b.op(op, &[x, constant(b, &[out, channels(x) / group, kernel, kernel], 0.01)])
}

pub fn batch_norm<'g>(x: V<'g>) -> V<'g> {
    let b = x.builder();
    let c = |centre| constant(b, &[channels(x)], centre);
    b.op(BatchNorm { epsilon: Real(1e-5) }, &[x, c(0.9), c(-0.1), c(0.0), c(0.5)])
}

pub fn max_pool<'g>(x: V<'g>, kernel: i64, stride: i64) -> V<'g> {
    let op = Pool {
        kind: PoolKind::Max,
        kernel: vec![kernel; 2],
        strides: vec![stride; 2],
        dilations: vec![],
        pads: vec![kernel / 2; 4],
        ceil: false,
        block: 0,
        indices: false,
    };
    x.builder().op(op, &[x])
}

/// Mean over the spatial axes, flattened, times weights.
pub fn head<'g>(x: V<'g>, classes: usize) -> V<'g> {
    let b = x.builder();
    let y = x.mean_keep(&[2, 3]);
    let flat = y.reshape(y.ty().shape[..2].to_vec());
    b.op(MatMul { transposed: true, packed: Dim::Const(0), post: vec![] }, &[flat, constant(b, &[classes, channels(x)], 0.0)])
        + constant(b, &[classes], 0.1)
}

pub fn image(b: &Builder, channels: i64, size: i64) -> V<'_> {
    b.input("x", Type::of(DType::F32, &[1, channels, size, size]))
}

pub fn graph(build: impl for<'g> FnOnce(&'g Builder) -> V<'g>) -> Graph {
    let b = Builder::new("f");
    let y = build(&b);
    b.output("y", y);
    b.finish().unwrap_or_else(|e| panic!("{e}"))
}

pub fn optimized(graph: &Graph, options: &Options) -> Graph {
    let options = Options { verify: true, ..options.clone() };
    optimize(graph.clone(), &Target::new(Isa::Avx512), &options, &mut ()).unwrap_or_else(|e| panic!("{e}"))
}

pub fn count(g: &Graph, name: &str) -> usize {
    g.ids().filter(|id| g.node(*id).op.name() == name).count()
}

/// Names of what runs: neither inputs nor constants.
pub fn ops(g: &Graph) -> Vec<&'static str> {
    g.order().into_iter().map(|id| &g.node(id).op).filter(|op| !matches!(op, Op::Input | Op::Const(_))).map(Op::name).collect()
}

pub fn epilogues(g: &Graph) -> Vec<Vec<Post>> {
    let post = |id| match &g.node(id).op {
        Op::Conv(c) => Some(c.post.clone()),
        _ => None,
    };
    g.order().into_iter().filter_map(post).collect()
}

/// Numbers of both signs for every input.
pub fn inputs(g: &Graph) -> Vec<Tensor> {
    let fill = |(k, ty): (usize, &Type)| {
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.as_const().unwrap_or(3) as usize).collect();
        let n: usize = shape.iter().product();
        Tensor::new(&shape, &(0..n).map(|i| ((i * 31 + k * 7) % 41) as f32 / 16.0 - 1.25).collect::<Vec<f32>>())
    };
    g.inputs.iter().map(|id| &g.node(*id).types[0]).enumerate().map(fill).collect()
}

/// Asserts that two graphs give the same values, up to `tolerance` times the largest.
pub fn assert_equal(want: &Graph, got: &Graph, tolerance: f64) {
    let run = |g: &Graph| eval::run(g, &inputs(want), &Env::default()).unwrap_or_else(|e| panic!("{e}"));
    for (w, g) in run(want).iter().zip(run(got)) {
        assert_eq!((w.shape(), w.dtype()), (g.shape(), g.dtype()));
        let (w, g) = (w.to_f64s(), g.to_f64s());
        let largest = w.iter().filter(|x| x.is_finite()).fold(1e-3f64, |m, x| m.max(x.abs()));
        for (w, g) in w.iter().zip(&g) {
            assert!(w == g || (w.is_nan() && g.is_nan()) || (w - g).abs() <= tolerance * largest, "{w} became {g} (largest {largest})");
        }
    }
}
