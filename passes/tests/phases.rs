//! Transposed convolutions as convolutions of their phases: which form is taken, and that the values stay.

mod graphs;
use graphs::*;
use nnc_ir::eval::{self, Env};
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::{ConvTranspose, Post};
use nnc_ir::target::Isa;
use nnc_ir::{Builder, DType, Dim, Graph, ScalarFn, Target, Tensor, Type, V};
use nnc_passes::{Options, run_pass};

fn transposed(stride: i64, axes: usize) -> ConvTranspose {
    ConvTranspose { strides: vec![stride; axes], dilations: vec![], pads: vec![], output_padding: vec![], group: 1, post: vec![] }
}

/// `op` of `channels` to `out` channels a group, on an input of these spatial sizes, with what its epilogue asks for.
fn network(op: &ConvTranspose, channels: usize, out: usize, image: &[Dim], kernel: &[usize]) -> Graph {
    graph(|b: &Builder| {
        let shape: Vec<Dim> = [Dim::Const(2), Dim::from(channels)].into_iter().chain(image.iter().cloned()).collect();
        let x = b.input("x", Type::new(DType::F32, shape));
        let w = constant(b, &[&[channels, out], kernel].concat(), 0.03);
        let alone = b.op(ConvTranspose { post: vec![], ..op.clone() }, &[x, w]);
        let extra = op.post.iter().filter(|p| p.has_operand()).map(|p| match p {
            Post::Add => b.input("r", alone.ty()),
            _ => constant(b, &[out * op.group], 0.5),
        });
        let operands: Vec<V> = [x, w].into_iter().chain(extra).collect();
        b.op(op.clone(), &operands)
    })
}

fn phases(g: &Graph) -> Graph {
    let options = Options { verify: true, ..Options::default() };
    run_pass("phases", g.clone(), &Target::new(Isa::Avx512), &options, &mut ()).unwrap_or_else(|e| panic!("{e}"))
}

/// The values stay, in the model's layout and in blocks; gives the rewritten graph.
fn check(op: &ConvTranspose, channels: usize, out: usize, image: &[Dim], kernel: &[usize]) -> Graph {
    let g = network(op, channels, out, image, kernel);
    let rewritten = phases(&g);
    assert_equal(&g, &rewritten, 1e-5);
    assert_equal(&g, &optimized(&g, &Options::default()), 1e-5);
    rewritten
}

fn sizes(d: &[i64]) -> Vec<Dim> {
    d.iter().map(|d| Dim::Const(*d)).collect()
}

#[test]
fn phases_stand_apart_where_they_see_different_inputs() {
    let op = ConvTranspose { pads: vec![1; 4], ..transposed(2, 2) };
    for out in [16, 3] {
        let g = check(&op, 16, out, &sizes(&[3, 4]), &[4, 4]);
        assert_eq!((count(&g, "conv"), count(&g, "interleave"), count(&g, "conv_transpose")), (4, 1, 0));
    }
}

#[test]
fn phases_are_one_convolution_where_they_see_the_same_inputs() {
    let g = check(&transposed(2, 2), 16, 32, &sizes(&[3, 4]), &[2, 2]);
    assert_eq!((count(&g, "conv"), count(&g, "interleave")), (1, 1));
}

#[test]
fn nothing_is_multiplied_by_zero() {
    for (kernel, pad) in [(1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (5, 2)] {
        let op = ConvTranspose { pads: vec![pad; 4], ..transposed(2, 2) };
        let g = network(&op, 2, 3, &sizes(&[4, 4]), &[kernel, kernel]);
        let mut x = vec![0.5f32; 64];
        (x[5], x[27]) = (f32::INFINITY, f32::NAN);
        let run = |g: &Graph| eval::run(g, &[Tensor::new(&[2, 2, 4, 4], &x)], &Env::default()).unwrap()[0].to_f64s();
        let unbounded = |y: Vec<f64>| y.iter().enumerate().filter(|(_, v)| !v.is_finite()).map(|(i, v)| (i, v.is_nan())).collect::<Vec<_>>();
        let want = unbounded(run(&g));
        assert!(!want.is_empty());
        assert_eq!(unbounded(run(&phases(&g))), want, "kernel {kernel}");
    }
}

#[test]
fn one_pixel_is_a_matrix_product() {
    let op = ConvTranspose { pads: vec![1, 0, 0, 1], post: vec![Post::Bias, Post::Add, Post::Act(Act::Fn(ScalarFn::Relu))], ..transposed(2, 2) };
    let g = check(&op, 8, 5, &sizes(&[1, 1]), &[3, 4]);
    assert_eq!((count(&g, "matmul"), count(&g, "conv"), count(&g, "interleave")), (1, 0, 0));
}

#[test]
fn weights_of_the_run_are_cut_by_the_run() {
    let g = graph(|b| {
        let (x, w) = (b.input("x", Type::of(DType::F32, &[1, 4, 3, 3])), b.input("w", Type::of(DType::F32, &[4, 2, 2, 2])));
        b.op(transposed(2, 2), &[x, w])
    });
    let rewritten = phases(&g);
    assert_eq!((count(&rewritten, "conv"), count(&rewritten, "interleave"), count(&rewritten, "conv_transpose")), (1, 1, 0));
    assert_equal(&g, &rewritten, 1e-5);
}

#[test]
fn padding_may_cut_off_whole_inputs() {
    let op = ConvTranspose { pads: vec![2; 4], ..transposed(2, 2) };
    assert_eq!(count(&check(&op, 2, 2, &sizes(&[4, 4]), &[2, 2]), "conv_transpose"), 0);
    // Of an open length it may be more than there are.
    let open = [Dim::sym("H"), Dim::Const(4)];
    assert_eq!(count(&check(&op, 2, 2, &open, &[2, 2]), "conv_transpose"), 1);
}

#[test]
fn phases_without_taps_are_sums_of_nothing() {
    for post in [vec![], vec![Post::Bias, Post::Add, Post::Act(Act::Fn(ScalarFn::Relu))]] {
        let op = ConvTranspose { post, output_padding: vec![1; 2], ..transposed(3, 2) };
        let g = check(&op, 4, 2, &sizes(&[3, 2]), &[1, 2]);
        assert_eq!((count(&g, "conv_transpose"), count(&g, "interleave")), (0, 1));
        check(&ConvTranspose { group: 2, ..op }, 4, 2, &sizes(&[3, 2]), &[1, 2]);
    }
}

#[test]
fn epilogues_follow_each_phase() {
    let post = vec![Post::Bias, Post::Add, Post::Act(Act::Fn(ScalarFn::Relu)), Post::Scale];
    let op = ConvTranspose { pads: vec![1; 4], post: post.clone(), ..transposed(2, 2) };
    let g = check(&op, 16, 3, &sizes(&[3, 4]), &[4, 4]);
    assert_eq!(epilogues(&g), vec![post; 4]);
    check(&ConvTranspose { post: vec![Post::Bias, Post::Scale], ..op }, 16, 3, &sizes(&[3, 4]), &[4, 4]);
}

#[test]
fn every_window_along_a_line() {
    let mut rewritten = 0;
    for (stride, dilation, kernel) in (1..4).flat_map(|s| (1..4).flat_map(move |d| (1..6).map(move |k| (s, d, k)))) {
        for (lo, hi, more) in [(0, 0, 0), (1, 0, 0), (1, 2, 0), (0, 1, 1), (2, 2, 1), (-1, 0, 0)] {
            let op = ConvTranspose { dilations: vec![dilation], pads: vec![lo, hi], output_padding: vec![more], ..transposed(stride, 1) };
            if 3 * stride + more + (kernel - 1) * dilation + 1 - lo - hi <= 0 || more >= stride.max(dilation) {
                continue;
            }
            let g = check(&op, 3, 2, &sizes(&[4]), &[kernel as usize]);
            rewritten += 1 - count(&g, "conv_transpose");
        }
    }
    assert!(rewritten > 100, "{rewritten}");
}

#[test]
fn groups_volumes_and_open_sizes() {
    let grouped = ConvTranspose { group: 2, pads: vec![1; 4], ..transposed(2, 2) };
    assert_eq!(count(&check(&grouped, 4, 3, &sizes(&[3, 4]), &[4, 4]), "conv"), 4);
    check(&grouped, 32, 16, &sizes(&[3, 2]), &[4, 4]);
    check(&ConvTranspose { group: 16, ..grouped }, 16, 1, &sizes(&[3, 4]), &[4, 4]);
    let volume = ConvTranspose { strides: vec![2, 1, 3], pads: vec![0, 1, 0, 0, 1, 1], ..transposed(1, 3) };
    assert_eq!(count(&check(&volume, 2, 3, &sizes(&[2, 3, 2]), &[2, 3, 3]), "conv_transpose"), 0);
    let open = [Dim::sym("H"), Dim::sym("W")];
    let op = ConvTranspose { pads: vec![1; 4], ..transposed(2, 2) };
    assert_eq!(count(&check(&op, 16, 16, &open, &[4, 4]), "conv"), 4);
    assert_eq!(count(&check(&ConvTranspose { output_padding: vec![1, 1], ..op }, 3, 2, &open, &[3, 3]), "conv"), 4);
}
