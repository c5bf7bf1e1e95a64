//! Reference values of primitives against numbers from onnxruntime and numpy, and against each other.

use nnc_ir::builder::infer;
use nnc_ir::error::Code;
use nnc_ir::eval::Env;
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::{Conv, ConvTranspose, Layout, MatMul, Post};
use nnc_ir::ops::index::{Gather, GatherElements, GatherNd, NonZero, ScatterElements, ScatterKind, ScatterNd};
use nnc_ir::ops::movement::{Pack, Pad, PadMode, Slice, Transpose, Unpack};
use nnc_ir::ops::reduce::{ArgReduce, Cumulate, Reduce, ReduceKind};
use nnc_ir::ops::sort::TopK;
use nnc_ir::ops::window::{Pool, PoolKind};
use nnc_ir::{DType, Dim, Op, Result, ScalarFn, Tensor, Type};

/// The operation's results; inference must agree with them.
fn try_eval(op: impl Into<Op>, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let op = op.into();
    let env = Env::default();
    let types = infer(&op, &x.iter().map(Tensor::ty).collect::<Vec<_>>(), &[])?;
    let y = op.as_primitive().expect("a primitive").eval(x, &env)?;
    for (t, ty) in y.iter().zip(&types) {
        assert_eq!((t.dtype(), t.shape().to_vec()), (ty.dtype, env.shape(&ty.shape)?), "inference of {}", op.name());
    }
    assert_eq!(y.len(), types.len());
    Ok(y)
}

fn eval(op: impl Into<Op>, x: &[Tensor]) -> Tensor {
    try_eval(op, x).unwrap().remove(0)
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.to_f64s()
}

fn ints(t: &Tensor) -> Vec<i64> {
    t.to_ints().expect("integers")
}

/// Small integers in a fixed disorder: exact in every float type. The recorded results were computed from the same.
fn fill(shape: &[usize], step: usize, from: usize) -> Tensor {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i: usize| ((i * step + from) % 11) as f32 - 5.0).collect();
    Tensor::new(shape, &values)
}

fn x(shape: &[usize]) -> Tensor {
    fill(shape, 7, 3)
}

fn w(shape: &[usize]) -> Tensor {
    fill(shape, 5, 1)
}

fn plain() -> Conv {
    Conv { strides: vec![], dilations: vec![], pads: vec![], group: 1, layout: Layout::Plain, inputs: 0, outputs: 0, post: vec![] }
}

fn dims(v: &[i64]) -> Vec<Dim> {
    v.iter().map(|d| Dim::Const(*d)).collect()
}

#[test]
fn convolutions_agree_with_onnxruntime() {
    let strided = Conv { strides: vec![2, 1], pads: vec![1, 0, 0, 2], ..plain() };
    #[rustfmt::skip]
    assert_eq!(floats(&eval(strided, &[x(&[1, 2, 4, 5]), w(&[2, 2, 3, 2])])),
        [-29., -28., 6., 7., -36., 0., 12., 6., -33., -17., 49., 0., 44., -5., -10., 7., -10., 0., 10., 17., -9., 31., -9., 0.]);
    let grouped = Conv { group: 2, dilations: vec![2, 1], strides: vec![1, 2], ..plain() };
    #[rustfmt::skip]
    assert_eq!(floats(&eval(grouped, &[x(&[1, 4, 5, 5]), w(&[4, 2, 2, 3])])),
        [-52., 2., 6., 82., -2., 41., 41., 11., 10., -64., -43., -29., -43., -36., -53., 42., 47., 32., 84., -4., 84., -26., -26., -70.]);
    let one = Conv { dilations: vec![2], pads: vec![2, 2], ..plain() };
    assert_eq!(floats(&eval(one, &[x(&[2, 1, 6]), w(&[1, 1, 3])])), [-7., 20., -11., -23., 0., 12., 1., 28., 5., -7., 6., 18.]);
    let three = Conv { pads: vec![0, 1, 0, 0, 0, 1], ..plain() };
    assert_eq!(floats(&eval(three, &[x(&[1, 1, 2, 3, 3]), w(&[1, 1, 2, 2, 2])])), [-14., -13., -13., 19., -17., -26., 76., -15., -26.]);
}

#[test]
fn negative_pads_of_a_convolution_cut() {
    // pads -1: the same as the convolution of the input without its border.
    let cut = eval(Conv { pads: vec![-1, -1, -1, -1], ..plain() }, &[x(&[1, 1, 5, 5]), w(&[1, 1, 2, 2])]);
    let inner = Slice { starts: dims(&[0, 0, 1, 1]), sizes: dims(&[1, 1, 3, 3]), steps: vec![] };
    assert_eq!(cut, eval(plain(), &[eval(inner, &[x(&[1, 1, 5, 5])]), w(&[1, 1, 2, 2])]));
}

#[test]
fn transposed_convolutions_agree_with_onnxruntime() {
    let op = |group, strides: [i64; 2], dilations: [i64; 2], pads: [i64; 4], extra: [i64; 2]| ConvTranspose {
        strides: strides.into(),
        dilations: dilations.into(),
        pads: pads.into(),
        output_padding: extra.into(),
        group,
        post: vec![],
    };
    let y = eval(op(1, [2, 2], [1, 1], [1, 1, 1, 1], [1, 0]), &[x(&[1, 2, 2, 3]), w(&[2, 1, 3, 3])]);
    assert_eq!(y.shape(), [1, 1, 4, 5]);
    assert_eq!(floats(&y), [10., 5., 10., -6., 10., -5., 26., -5., 4., -5., 10., 5., 10., -6., 10., 11., -3., -10., 10., 2.]);
    let y = eval(op(2, [1, 2], [1, 2], [0, 1, 0, 0], [0, 0]), &[x(&[1, 4, 2, 2]), w(&[4, 1, 2, 2])]);
    assert_eq!(y.shape(), [1, 2, 3, 4]);
    #[rustfmt::skip]
    assert_eq!(floats(&y), [0., -26., 0., 5., 0., -1., 0., -6., 0., 35., 0., -6., 0., -36., 0., 10., 0., 26., 0., 11., 0., -27., 0., 28.]);
}

/// Weights `[O,C,kernel..]` with chosen axes cut into blocks and the parts in the order that a layout asks for.
fn arranged(w: &Tensor, cut: &[usize], perm: &[usize]) -> Tensor {
    eval(Transpose { perm: perm.to_vec() }, &[w.reshaped(cut.to_vec()).unwrap()])
}

#[test]
fn blocked_layouts_compute_what_the_plain_one_does() {
    const B: usize = 4;
    let attrs =
        Conv { strides: vec![2, 1], pads: vec![1, 0, 1, 1], post: vec![Post::Bias, Post::Add, Post::Act(Act::Fn(ScalarFn::Relu))], ..plain() };
    let (bias, residual) = (fill(&[8], 3, 2), fill(&[2, 8, 3, 6], 9, 4));
    let pack = |t: &Tensor| eval(Pack { block: B }, std::slice::from_ref(t));
    let check = |group: usize, input: &Tensor, weights: &Tensor, layout: Layout, xs: Tensor, ws: Tensor| {
        let want = eval(Conv { group, ..attrs.clone() }, &[input.clone(), weights.clone(), bias.clone(), residual.clone()]);
        let got = eval(Conv { group, layout, ..attrs.clone() }, &[xs, ws, bias.clone(), pack(&residual)]);
        assert_eq!(eval(Unpack { channels: 8 }, &[got]), want, "{layout:?}");
    };
    let input = x(&[2, 8, 5, 6]);
    let full = w(&[8, 8, 3, 2]);
    check(1, &input, &full, Layout::Blocked(B), pack(&input), arranged(&full, &[2, B, 2, B, 3, 2], &[0, 2, 4, 5, 3, 1]));
    let grouped = w(&[8, 4, 3, 2]);
    check(2, &input, &grouped, Layout::Blocked(B), pack(&input), arranged(&grouped, &[2, B, 1, B, 3, 2], &[0, 2, 4, 5, 3, 1]));
    let single = w(&[8, 1, 3, 2]);
    check(8, &input, &single, Layout::Depthwise(B), pack(&input), arranged(&single, &[2, B, 3, 2], &[0, 2, 3, 1]));
    let (image, entry) = (x(&[2, 3, 5, 6]), w(&[8, 3, 3, 2]));
    check(1, &image, &entry, Layout::Enter(B), image.clone(), arranged(&entry, &[2, B, 3, 3, 2], &[0, 2, 3, 4, 1]));
}

#[test]
fn missing_channels_of_a_pack_are_zero() {
    let packed = eval(Pack { block: 2 }, &[Tensor::new(&[1, 3, 2], &[1i8, 2, 3, 4, 5, 6])]);
    assert_eq!(packed, Tensor::new(&[1, 2, 2, 2], &[1i8, 3, 2, 4, 5, 0, 6, 0]));
    assert_eq!(eval(Unpack { channels: 3 }, &[packed]), Tensor::new(&[1, 3, 2], &[1i8, 2, 3, 4, 5, 6]));
}

#[test]
fn matmul_forms() {
    let op = MatMul { transposed: false, packed: Dim::Const(0), post: vec![] };
    let y = eval(op.clone(), &[fill(&[2, 1, 2, 3], 7, 3), fill(&[3, 3, 2], 5, 1)]);
    #[rustfmt::skip]
    assert_eq!(floats(&y), [-12., -3., -8., -3., 9., -15., 0., -6., -3., 39., -3., 35., -4., -3., 0., -3., -9., 3., -18., 12., -3., 31., -3., 27.]);

    let (a, b) = (x(&[5, 7]), w(&[7, 18]));
    let want = eval(op.clone(), &[a.clone(), b.clone()]);
    let turned = eval(Transpose { perm: vec![1, 0] }, std::slice::from_ref(&b));
    assert_eq!(eval(MatMul { transposed: true, ..op.clone() }, &[a.clone(), turned]), want);
    // Column panels of 16: pad to 32 columns, [7,2,16] -> [2,7,16].
    let padded = eval(Pad { mode: PadMode::Constant, lo: dims(&[0, 0]), hi: dims(&[0, 14]) }, std::slice::from_ref(&b));
    let panels = arranged(&padded, &[7, 2, 16], &[1, 0, 2]);
    assert_eq!(eval(MatMul { packed: Dim::Const(18), ..op.clone() }, &[a.clone(), panels]), want);

    // Vectors: dot product, matrix by vector, vector by matrix.
    let v = Tensor::new(&[3], &[1i32, 2, 3]);
    assert_eq!(eval(op.clone(), &[v.clone(), v.clone()]), Tensor::scalar(14i32));
    let m = Tensor::new(&[2, 3], &[1i32, 0, 0, 0, 1, i32::MAX]);
    assert_eq!(eval(op.clone(), &[m, v.clone()]), Tensor::new(&[2], &[1i32, i32::MAX])); // 2 + 3 * (2^31 - 1) = 2^32 + 2^31 - 1
    assert_eq!(eval(op.clone(), &[v, Tensor::new(&[3, 1], &[1i32, 1, 1])]), Tensor::new(&[1], &[6i32]));

    let post = vec![Post::Scale, Post::Bias, Post::Act(Act::Clip { lo: 0.0.into(), hi: 6.0.into() })];
    let y =
        eval(MatMul { post, ..op }, &[fill(&[2, 2], 1, 5), fill(&[2, 2], 1, 6), Tensor::new(&[2], &[2f32, -1.]), Tensor::new(&[2], &[-1f32, 3.])]);
    // [[0,1],[2,3]] @ [[1,2],[3,4]] = [[3,4],[11,16]]
    assert_eq!(floats(&y), [5., 0., 6., 0.]);
}

fn pool(kind: PoolKind, kernel: &[i64]) -> Pool {
    Pool { kind, kernel: kernel.to_vec(), strides: vec![], dilations: vec![], pads: vec![], ceil: false, block: 0, indices: false }
}

#[test]
fn pools_agree_with_onnxruntime() {
    let input = x(&[1, 1, 5, 5]);
    let max = |op: Pool| floats(&eval(op, std::slice::from_ref(&input)));
    let ceil = Pool { strides: vec![2, 2], ceil: true, ..pool(PoolKind::Max, &[2, 2]) };
    assert_eq!(max(ceil), [5., 3., 4., 4., 5., -1., 2., 5., 1.]);
    assert_eq!(max(Pool { dilations: vec![2, 3], ..pool(PoolKind::Max, &[2, 2]) }), [2., 5., 4., 0., 5., 2.]);
    let indexed = Pool { strides: vec![2, 2], pads: vec![1; 4], indices: true, ..pool(PoolKind::Max, &[3, 3]) };
    let y = try_eval(indexed, std::slice::from_ref(&input)).unwrap();
    assert_eq!(floats(&y[0]), [5., 5., 4., 4., 5., 3., 4., 5., 5.]);
    assert_eq!(ints(&y[1]), [1, 1, 4, 15, 12, 18, 15, 23, 23]);

    let close = |op: Pool, input: &Tensor, want: &[f64]| {
        let y = floats(&eval(op, std::slice::from_ref(input)));
        assert!(y.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{y:?}");
    };
    let edge = Pool { strides: vec![2, 2], pads: vec![1, 1, 0, 0], ceil: true, ..pool(PoolKind::Average, &[3, 3]) };
    close(edge.clone(), &input, &[-0.25, 0.166667, -1.25, 0., 0.111111, -1., 0.25, 0.666667, 2.]);
    let all = Pool { kind: PoolKind::AverageAll, ..edge };
    close(all, &input, &[-0.111111, 0.111111, -0.833333, 0., 0.111111, -1., 0.166667, 0.666667, 2.]);
    let line = x(&[1, 1, 4]);
    close(Pool { pads: vec![1, 1], ..pool(PoolKind::AverageAll, &[3]) }, &line, &[1., 1.33333, 1., -0.666667]);
    close(Pool { pads: vec![1, 1], ..pool(PoolKind::Average, &[3]) }, &line, &[1.5, 1.33333, 1., -1.]);
}

#[test]
fn pools_of_blocks_and_integers() {
    let input = x(&[2, 8, 4, 4]);
    let op = Pool { strides: vec![2, 2], pads: vec![1, 0, 0, 1], ..pool(PoolKind::Average, &[3, 2]) };
    let packed = eval(Pack { block: 4 }, std::slice::from_ref(&input));
    let y = eval(Pool { block: 4, ..op.clone() }, &[packed]);
    assert_eq!(eval(Unpack { channels: 8 }, &[y]), eval(op, &[input]));
    // 200 as i8 would be negative: unsigned order.
    let bytes = Tensor::new(&[1, 1, 4], &[200u8, 100, 3, 250]);
    assert_eq!(eval(pool(PoolKind::Max, &[2]), &[bytes]), Tensor::new(&[1, 1, 3], &[200u8, 100, 250]));
    let nan = Tensor::new(&[1, 1, 3], &[1f32, f32::NAN, 2.]);
    assert!(floats(&eval(pool(PoolKind::Max, &[2]), &[nan])).iter().all(|v| v.is_nan()));
}

#[test]
fn pads_agree_with_numpy() {
    let a = Tensor::new(&[2, 3], &[0i16, 1, 2, 3, 4, 5]);
    let pad = |mode, fill: &[Tensor]| {
        let op = Pad { mode, lo: dims(&[1, 4]), hi: dims(&[2, 3]) };
        ints(&eval(op, &[std::slice::from_ref(&a), fill].concat()))
    };
    let rows = |rows: [[i64; 10]; 5]| rows.concat();
    let (a, b) = ([3, 4, 5, 4, 3, 4, 5, 4, 3, 4], [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]);
    assert_eq!(pad(PadMode::Reflect, &[]), rows([a, b, a, b, a]));
    let (a, b) = ([0, 0, 0, 0, 0, 1, 2, 2, 2, 2], [3, 3, 3, 3, 3, 4, 5, 5, 5, 5]);
    assert_eq!(pad(PadMode::Edge, &[]), rows([a, a, b, b, b]));
    let (a, b) = ([5, 3, 4, 5, 3, 4, 5, 3, 4, 5], [2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    assert_eq!(pad(PadMode::Wrap, &[]), rows([a, b, a, b, a]));
    let (n, a, b) = ([9; 10], [9, 9, 9, 9, 0, 1, 2, 9, 9, 9], [9, 9, 9, 9, 3, 4, 5, 9, 9, 9]);
    assert_eq!(pad(PadMode::Constant, &[Tensor::scalar(9i16)]), rows([n, a, b, n, n]));
}

#[test]
fn negative_pads_cut_before_the_rest_is_repeated() {
    let a = Tensor::new(&[2, 4], &[0i32, 1, 2, 3, 4, 5, 6, 7]);
    let pad = |mode| ints(&eval(Pad { mode, lo: dims(&[0, -1]), hi: dims(&[0, 2]) }, std::slice::from_ref(&a)));
    // As onnxruntime.
    assert_eq!(pad(PadMode::Reflect), [1, 2, 3, 2, 1, 5, 6, 7, 6, 5]);
    assert_eq!(pad(PadMode::Edge), [1, 2, 3, 3, 3, 5, 6, 7, 7, 7]);
    assert_eq!(pad(PadMode::Constant), [1, 2, 3, 0, 0, 5, 6, 7, 0, 0]);
    let cuts_all = Pad { mode: PadMode::Edge, lo: dims(&[0, -4]), hi: dims(&[0, 1]) };
    assert_eq!(try_eval(cuts_all, &[a]).unwrap_err().code(), Code::Shape);
}

#[test]
fn slices_with_negative_steps() {
    let a = Tensor::new(&[3, 4], &(0..12).collect::<Vec<i64>>());
    let op = Slice { starts: dims(&[2, 3]), sizes: dims(&[2, 2]), steps: vec![-2, -3] };
    assert_eq!(eval(op, std::slice::from_ref(&a)), Tensor::new(&[2, 2], &[11i64, 8, 3, 0]));
    let outside = Slice { starts: vec![Dim::Const(1), Dim::sym("S")], sizes: dims(&[2, 2]), steps: vec![] };
    let env = Env::default();
    env.bind(&"S".into(), 3).unwrap();
    let e = Op::from(outside).as_primitive().unwrap().eval(&[a], &env).unwrap_err();
    assert_eq!((e.code(), e.message()), (Code::Input, "slice: axis 1 has 4 elements, 2 from 3 with step 1 are asked for"));
}

#[test]
fn reductions() {
    let reduce = |kind, axes: &[usize], t: &Tensor| eval(Reduce { kind, axes: axes.to_vec(), keepdims: false }, std::slice::from_ref(t));
    let a = Tensor::new(&[2, 3], &[1u8, 2, 3, 200, 5, 60]);
    assert_eq!(reduce(ReduceKind::Sum, &[1], &a), Tensor::new(&[2], &[6u8, 9])); // 265 - 256
    assert_eq!(reduce(ReduceKind::Max, &[0], &a), Tensor::new(&[3], &[200u8, 5, 60]));
    assert_eq!(reduce(ReduceKind::Min, &[0, 1], &a), Tensor::scalar(1u8));
    let keep = eval(Reduce { kind: ReduceKind::Prod, axes: vec![1], keepdims: true }, std::slice::from_ref(&a));
    assert_eq!(keep, Tensor::new(&[2, 1], &[6u8, 96])); // 60000 mod 256
    // One rounding at the end: in f32, 2^24 + 1 + 1 would stay 2^24.
    let big = Tensor::new(&[3], &[16777216f32, 1., 1.]);
    assert_eq!(reduce(ReduceKind::Sum, &[0], &big), Tensor::scalar(16777218f32));
    assert!(floats(&reduce(ReduceKind::Max, &[0], &Tensor::new(&[2], &[f32::NAN, 1.])))[0].is_nan());
    // Empty reductions give the neutral element.
    let none = |kind, t: &Tensor| reduce(kind, &[0], t);
    assert_eq!(none(ReduceKind::Max, &Tensor::new::<i8>(&[0], &[])), Tensor::scalar(i8::MIN));
    assert_eq!(none(ReduceKind::Min, &Tensor::new::<u16>(&[0], &[])), Tensor::scalar(u16::MAX));
    assert_eq!(none(ReduceKind::Min, &Tensor::new::<f32>(&[0], &[])), Tensor::scalar(f32::INFINITY));
    assert_eq!(none(ReduceKind::Prod, &Tensor::new::<f64>(&[0], &[])), Tensor::scalar(1f64));
    assert_eq!(none(ReduceKind::Max, &Tensor::new::<bool>(&[0], &[])), Tensor::scalar(false));
}

#[test]
fn arguments_of_extrema() {
    let arg = |kind, last, t: &Tensor| ints(&eval(ArgReduce { kind, axis: 1, keepdims: false, last }, std::slice::from_ref(t)));
    let a = Tensor::new(&[2, 4], &[3f32, 7., 7., 1., 1., 1., 5., 5.]);
    assert_eq!(arg(ReduceKind::Max, false, &a), [1, 2]);
    assert_eq!(arg(ReduceKind::Max, true, &a), [2, 3]);
    assert_eq!(arg(ReduceKind::Min, false, &a), [3, 0]);
    assert_eq!(arg(ReduceKind::Min, true, &a), [3, 1]);
    let nan = Tensor::new(&[1, 4], &[3f32, f32::NAN, f32::NAN, 9.]);
    assert_eq!((arg(ReduceKind::Max, false, &nan), arg(ReduceKind::Min, false, &nan)), (vec![1], vec![1]));
}

#[test]
fn running_sums() {
    let a = Tensor::new(&[2, 3], &[1i64, 2, 3, 4, 5, 6]);
    let run = |axis, exclusive, reverse| ints(&eval(Cumulate { kind: ReduceKind::Sum, axis, exclusive, reverse }, std::slice::from_ref(&a)));
    assert_eq!(run(1, false, false), [1, 3, 6, 4, 9, 15]);
    assert_eq!(run(1, true, false), [0, 1, 3, 0, 4, 9]);
    assert_eq!(run(1, false, true), [6, 5, 3, 15, 11, 6]);
    assert_eq!(run(1, true, true), [5, 3, 0, 11, 6, 0]);
    assert_eq!(run(0, false, false), [1, 2, 3, 5, 7, 9]);
}

#[test]
fn gathering() {
    let a = Tensor::new(&[3, 2], &[0i8, 1, 2, 3, 4, 5]);
    let at = Tensor::new(&[2, 2], &[2i32, -3, 1, 1]);
    assert_eq!(eval(Gather { axis: 0 }, &[a.clone(), at]), Tensor::new(&[2, 2, 2], &[4i8, 5, 0, 1, 2, 3, 2, 3]));
    let at = Tensor::new(&[1], &[-1i64]);
    assert_eq!(eval(Gather { axis: 1 }, &[a.clone(), at]), Tensor::new(&[3, 1], &[1i8, 3, 5]));
    let at = Tensor::new(&[2, 2], &[2i64, 0, -1, 1]);
    assert_eq!(eval(GatherElements { axis: 0 }, &[a.clone(), at]), Tensor::new(&[2, 2], &[4i8, 1, 4, 3]));
    let at = Tensor::new(&[2, 2], &[0i64, 1, -1, 0]);
    assert_eq!(eval(GatherNd { batch_dims: 0 }, &[a.clone(), at]), Tensor::new(&[2], &[1i8, 4]));
    let at = Tensor::new(&[3, 1], &[1i64, 0, -1]);
    assert_eq!(eval(GatherNd { batch_dims: 1 }, &[a.clone(), at]), Tensor::new(&[3], &[1i8, 2, 5]));
    let e = try_eval(Gather { axis: 0 }, &[a, Tensor::new(&[1], &[3i64])]).unwrap_err();
    assert_eq!((e.code(), e.message()), (Code::Input, "gather: index 3 is outside axis 0 of length 3"));
}

#[test]
fn scattering() {
    let a = Tensor::new(&[2, 3], &[1f32; 6]);
    let (at, new) = (Tensor::new(&[1, 3], &[1i64, 0, -1]), Tensor::new(&[1, 3], &[5f32, 6., 7.]));
    let put = |reduction, x: &[Tensor]| floats(&eval(ScatterElements { axis: 0, reduction }, x));
    assert_eq!(put(ScatterKind::Set, &[a.clone(), at.clone(), new.clone()]), [1., 6., 1., 5., 1., 7.]);
    assert_eq!(put(ScatterKind::Add, &[a.clone(), at, new]), [1., 7., 1., 6., 1., 8.]);
    let twice = [Tensor::new(&[3], &[1i32, 2, 3]), Tensor::new(&[2, 1], &[0i64, 0]), Tensor::new(&[2], &[7i32, 5])];
    let nd = |reduction| ints(&eval(ScatterNd { reduction }, &twice));
    assert_eq!(nd(ScatterKind::Set), [5, 2, 3]);
    assert_eq!(nd(ScatterKind::Mul), [35, 2, 3]);
    assert_eq!(nd(ScatterKind::Min), [1, 2, 3]);
    let rows = [a, Tensor::new(&[1, 1], &[-1i64]), Tensor::new(&[1, 3], &[2f32, 3., 4.])];
    assert_eq!(floats(&eval(ScatterNd { reduction: ScatterKind::Set }, &rows)), [1., 1., 1., 2., 3., 4.]);
}

#[test]
fn indices_of_non_zeros() {
    let y = eval(NonZero { count: Dim::sym("n") }, &[Tensor::new(&[2, 2], &[0f32, 3., f32::NAN, -0.0])]);
    assert_eq!(y, Tensor::new(&[2, 2], &[0i64, 1, 1, 0]));
    assert_eq!(eval(NonZero { count: Dim::sym("n") }, &[Tensor::scalar(5u8)]), Tensor::new(&[1, 1], &[0i64]));
}

#[test]
fn top_k_is_stable_and_puts_nan_first() {
    let a = Tensor::new(&[5], &[2f32, 7., f32::NAN, 7., 1.]);
    let top = |largest| try_eval(TopK { axis: 0, k: Dim::Const(4), largest }, std::slice::from_ref(&a)).unwrap();
    assert_eq!(ints(&top(true)[1]), [2, 1, 3, 0]);
    assert_eq!(ints(&top(false)[1]), [4, 0, 1, 3]);
    let b = Tensor::new(&[2, 2], &[1u64, u64::MAX, 3, 2]);
    let y = try_eval(TopK { axis: 1, k: Dim::Const(1), largest: true }, &[b]).unwrap();
    assert_eq!((y[0].clone(), ints(&y[1])), (Tensor::new(&[2, 1], &[u64::MAX, 3]), vec![1, 0]));
}

#[test]
fn activations_of_numbers_are_those_of_tensors() {
    use nnc_ir::builder::expansion;
    use nnc_ir::ops::composite::activation::Activation;
    let xs = [-30.0, -3.5, -1.0, -0.0, 0.0, 0.25, 1.0, 6.5, 40.0, f64::NAN];
    let (a, b) = (0.3.into(), 0.6.into());
    let acts = [
        Act::Fn(ScalarFn::Tanh),
        Act::Clip { lo: 0.0.into(), hi: 6.0.into() },
        Act::LeakyRelu { alpha: a },
        Act::Elu { alpha: a },
        Act::Selu { alpha: a, gamma: b },
        Act::Celu { alpha: a },
        Act::HardSigmoid { alpha: a, beta: b },
        Act::HardSwish {},
        Act::Swish { alpha: a },
        Act::Gelu {},
        Act::GeluTanh {},
        Act::Softplus {},
        Act::Softsign {},
        Act::Mish {},
        Act::ThresholdedRelu { alpha: a },
    ];
    for act in acts {
        let t = Tensor::new(&[xs.len()], &xs);
        let g = expansion(&Activation { act }.into(), &[t.ty()]).unwrap();
        let y = nnc_ir::eval::run(&g, &[t], &Env::default()).unwrap();
        for (x, y) in xs.iter().zip(floats(&y[0])) {
            let want = act.eval(*x);
            assert!((y - want).abs() <= 1e-12 * want.abs().max(1.0) || y == want || (y.is_nan() && want.is_nan()), "{act:?} of {x}: {y}, {want}");
        }
    }
}

/// Kernels count blocks by the numbers of channels and filters: they end in the last block, and blocks are known.
#[test]
fn channels_end_in_the_last_block() {
    let f32s = |shape: &[Dim]| Type::new(DType::F32, shape.to_vec());
    let fits = |inputs, outputs, c: Dim, o: Dim| {
        let op = Conv { layout: Layout::Blocked(16), inputs, outputs, ..plain() };
        let [one, eight, three, block] = [1, 8, 3, 16].map(Dim::Const);
        let x = f32s(&[one, c.clone(), eight.clone(), eight, block.clone()]);
        let w = f32s(&[o, c, three.clone(), three, block.clone(), block]);
        infer(&Op::from(op), &[x, w], &[]).is_ok()
    };
    let (two, three, open) = (Dim::Const(2), Dim::Const(3), Dim::sym("N"));
    for (inputs, outputs, want) in [(0, 0, true), (17, 33, true), (32, 48, true), (16, 0, false), (33, 0, false), (0, 32, false), (0, 49, false)] {
        assert_eq!(fits(inputs, outputs, two.clone(), three.clone()), want, "{inputs} {outputs}");
    }
    assert!(fits(0, 0, open.clone(), open.clone()) && !fits(17, 0, open.clone(), three) && !fits(0, 33, two, open));
    let op = Op::from(Conv { inputs: 3, ..plain() });
    assert!(infer(&op, &[f32s(&dims(&[1, 3, 8, 8])), f32s(&dims(&[4, 3, 3, 3]))], &[]).is_err());
}
