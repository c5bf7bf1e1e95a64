//! What the pipeline makes of small networks.

use nnc_ir::attrs::Real;
use nnc_ir::ops::composite::norm::BatchNorm;
use nnc_ir::ops::contract::{Conv, Post};
use nnc_ir::{Builder, DType, Graph, Op, Target, Tensor, Type, V, target::Isa};
use nnc_passes::{Options, optimize};

fn constant<'g>(b: &'g Builder, shape: &[usize], first: f32) -> V<'g> {
    let n: usize = shape.iter().product();
    b.constant(Tensor::new(shape, &(0..n).map(|i| first + 0.01 * (i % 17) as f32).collect::<Vec<f32>>()))
}

fn conv<'g>(b: &'g Builder, x: V<'g>, out: usize, kernel: usize, stride: i64) -> V<'g> {
    let channels = x.ty().shape[1].as_const().unwrap() as usize;
    let p = kernel as i64 / 2;
    let op = Conv { strides: vec![stride; 2], dilations: vec![], pads: vec![p; 4], group: 1, layout: Default::default(), post: vec![] };
    b.op(op, &[x, constant(b, &[out, channels, kernel, kernel], -0.05)])
}

fn norm<'g>(b: &'g Builder, x: V<'g>) -> V<'g> {
    let c = x.ty().shape[1].as_const().unwrap() as usize;
    b.op(BatchNorm { epsilon: Real(1e-5) }, &[x, constant(b, &[c], 0.9), constant(b, &[c], -0.1), constant(b, &[c], 0.0), constant(b, &[c], 0.5)])
}

fn optimized(graph: Graph) -> Graph {
    optimize(graph, &Target::new(Isa::Avx512), &Options::default(), &mut ()).unwrap_or_else(|e| panic!("{e}"))
}

fn count(g: &Graph, name: &str) -> usize {
    g.ids().filter(|id| g.node(*id).op.name() == name).count()
}

fn posts(g: &Graph) -> Vec<Vec<Post>> {
    let post = |id| match &g.node(id).op {
        Op::Conv(c) => Some(c.post.clone()),
        _ => None,
    };
    g.order().into_iter().filter_map(post).collect()
}

#[test]
fn conv_batch_norm_relu_is_one_node() {
    let b = Builder::new("f");
    let x = b.input("x", Type::of(DType::F32, &[1, 3, 8, 8]));
    let y = norm(&b, conv(&b, x, 32, 3, 1)).relu();
    b.output("y", y);
    let g = optimized(b.finish().unwrap());
    let relu = Post::Act(nnc_ir::ops::composite::activation::Act::Fn(nnc_ir::ScalarFn::Relu));
    assert_eq!(posts(&g), [vec![Post::Bias, relu]]);
    assert_eq!(g.ids().filter(|id| !matches!(g.node(*id).op, Op::Const(_) | Op::Input)).count(), 1);
}

#[test]
fn a_shared_convolution_is_computed_once() {
    let b = Builder::new("f");
    let x = b.input("x", Type::of(DType::F32, &[1, 3, 8, 8]));
    let y = conv(&b, x, 32, 3, 1);
    b.output("y", y);
    b.output("z", y.relu());
    let g = optimized(b.finish().unwrap());
    assert_eq!((count(&g, "conv"), count(&g, "relu")), (1, 1));
}
