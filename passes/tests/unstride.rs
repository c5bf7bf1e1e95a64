//! Strided convolutions of few channels as convolutions that move by 1: where that is done, and that the values stay.

mod graphs;
use graphs::*;
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::{Conv, Layout, Post};
use nnc_ir::target::Isa;
use nnc_ir::{Builder, DType, Dim, Graph, Op, ScalarFn, Target, Type};
use nnc_passes::{Options, Precision, run_pass};

/// A convolution of 3 channels to 64, and what is added to its result.
fn network(size: [usize; 2], kernel: usize, stride: i64, pads: [i64; 4]) -> Graph {
    graph(|b: &Builder| {
        let shape: Vec<Dim> = [2, 3, size[0], size[1]].map(Dim::from).to_vec();
        let x = b.input("x", Type::new(DType::F32, shape));
        let w = constant(b, &[64, 3, kernel, kernel], 0.03);
        let post = vec![Post::Bias, Post::Act(Act::Fn(ScalarFn::Relu))];
        let op =
            Conv { strides: vec![stride; 2], dilations: vec![], pads: pads.to_vec(), group: 1, layout: Layout::Plain, inputs: 0, outputs: 0, post };
        b.op(op, &[x, w, constant(b, &[64], 0.5)])
    })
}

fn unstrided(g: &Graph, options: Options) -> Graph {
    let options = Options { verify: true, ..options };
    run_pass("unstride", g.clone(), &Target::new(Isa::Avx512), &options, &mut ()).unwrap_or_else(|e| panic!("{e}"))
}

fn strides(g: &Graph) -> Vec<i64> {
    g.ids().find_map(|id| if let Op::Conv(c) = &g.node(id).op { Some(c.strides.clone()) } else { None }).expect("a convolution")
}

#[test]
fn large_windows_move_by_one() {
    for (size, kernel, stride, pads) in [
        ([64, 65], 7, 2, [3; 4]),
        // The last row and column are in no window.
        ([66, 68], 7, 2, [0; 4]),
        ([63, 50], 7, 2, [0, 3, 2, 1]),
        ([67, 71], 11, 4, [2; 4]),
        ([80, 80], 8, 4, [1, 2, 3, 0]),
    ] {
        let g = network(size, kernel, stride, pads);
        let rewritten = unstrided(&g, Options::default());
        assert!(strides(&rewritten).is_empty(), "{kernel}x{kernel} by {stride}");
        assert_equal(&g, &rewritten, 1e-5);
        assert_equal(&g, &optimized(&g, &Options::default()), 1e-4);
    }
}

#[test]
fn what_gains_nothing_stays() {
    for (g, options) in [
        (network([64, 64], 3, 2, [1; 4]), Options::default()),
        (network([64, 64], 7, 8, [3; 4]), Options::default()),
        (network([64, 64], 7, 2, [3; 4]), Options { precision: Precision::Exact, ..Options::default() }),
    ] {
        assert!(!strides(&unstrided(&g, options)).is_empty());
    }
}
