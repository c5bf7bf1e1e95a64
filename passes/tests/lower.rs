//! Lowered programs against the reference interpreter: every primitive, sizes known and unknown before the run.

use nnc_ir::attrs::Real;
use nnc_ir::eval::{Env, run};
use nnc_ir::graph::Graph;
use nnc_ir::kernel::eval::eval_program;
use nnc_ir::kernel::verify::verify_program;
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::composite::norm::{BatchNorm, InstanceNorm, LayerNorm, LogSoftmax, Lrn, Softmax};
use nnc_ir::ops::contract::{Conv, ConvTranspose, Layout, MatMul, Post};
use nnc_ir::ops::control::{If, Loop, Scan};
use nnc_ir::ops::index::{Gather, GatherElements, GatherNd, NonZero, ScatterElements, ScatterKind, ScatterNd};
use nnc_ir::ops::movement::{Concat, Pack, Pad, PadMode, Slice, Unpack};
use nnc_ir::ops::reduce::{ArgReduce, Cumulate, ReduceKind};
use nnc_ir::ops::sort::TopK;
use nnc_ir::ops::source::{Dims, Iota, ReadDims};
use nnc_ir::ops::window::{Pool, PoolKind};
use nnc_ir::target::Isa;
use nnc_ir::{Builder, DType, Dim, ScalarFn, Target, Tensor, Type, V};
use nnc_passes::lower;

/// A small generator, so that inputs are the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let n = shape.iter().product::<usize>();
        let mut bytes = vec![];
        for _ in 0..n {
            let r = self.next() % 1000;
            let x = if dtype.is_float() { r as f64 / 250.0 - 2.0 } else { (r % 7) as f64 };
            nnc_ir::scalar::Num::F(x).cast(dtype).write(dtype, &mut bytes);
        }
        Tensor::from_bytes(dtype, shape.to_vec(), bytes.into()).unwrap()
    }
}

fn target() -> Target {
    Target::new(Isa::Avx2)
}

fn close(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()), "{what}");
    let tolerance = match a.dtype() {
        DType::F64 => 1e-12,
        DType::F32 => 1e-5,
        DType::F16 => 4e-3,
        DType::BF16 => 3e-2,
        _ => 0.0,
    };
    let scale = b.to_f64s().iter().filter(|x| x.is_finite()).fold(1.0, |m: f64, x| m.max(x.abs()));
    for (i, (x, y)) in a.to_f64s().iter().zip(b.to_f64s()).enumerate() {
        let same = *x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * scale;
        assert!(same, "{what}: element {i} is {x}, the reference says {y}");
    }
}

fn check_graph(g: &Graph, inputs: &[Tensor], what: &str) {
    let program = lower(g, &target()).unwrap_or_else(|e| panic!("{what}: {e}"));
    verify_program(&program).unwrap_or_else(|e| panic!("{what}: {e}"));
    let want = run(g, inputs, &Env::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let got = eval_program(&program, inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(got.len(), want.len(), "{what}");
    got.iter().zip(&want).for_each(|(a, b)| close(a, b, what));
}

fn build<'a>(f: impl Fn(&Builder, &[V]) -> Vec<nnc_ir::Value> + 'a, types: &[Type]) -> Graph {
    let b = Builder::new("case");
    let x: Vec<V> = types.iter().enumerate().map(|(i, t)| b.input(format!("x{i}"), t.clone())).collect();
    for (i, v) in f(&b, &x).into_iter().enumerate() {
        b.output(format!("y{i}"), b.v(v));
    }
    b.finish().unwrap_or_else(|e| panic!("{e}"))
}

/// Static, then with every input dimension but those of length 1 a symbol.
fn both(what: &str, inputs: &[Tensor], f: impl Fn(&Builder, &[V]) -> Vec<nnc_ir::Value>) {
    let types: Vec<Type> = inputs.iter().map(|t| t.ty()).collect();
    check_graph(&build(&f, &types), inputs, what);
    let symbol = |d: &Dim| if d.is(1) { d.clone() } else { Dim::sym(format!("d{d}")) };
    let symbolic: Vec<Type> = types.iter().map(|t| t.with_shape(t.shape.iter().map(symbol).collect())).collect();
    check_graph(&build(&f, &symbolic), inputs, &format!("{what}, symbolic"));
}

fn fixed(what: &str, inputs: &[Tensor], f: impl Fn(&Builder, &[V]) -> Vec<nnc_ir::Value>) {
    let types: Vec<Type> = inputs.iter().map(|t| t.ty()).collect();
    check_graph(&build(&f, &types), inputs, what);
}

fn one(v: V) -> Vec<nnc_ir::Value> {
    vec![v.value()]
}

fn c(d: i64) -> Dim {
    Dim::Const(d)
}

#[test]
fn maps_broadcast_in_every_type() {
    let mut r = Random(1);
    for d in DType::ALL {
        let x = [r.tensor(d, &[2, 3, 5]), r.tensor(d, &[3, 1]), r.tensor(d, &[])];
        if d == DType::Bool {
            both("xor", &x, |_, x| one(x[0].builder().op(nnc_ir::Op::Map(ScalarFn::Xor), &[x[0], x[1]]).and(x[2])));
        } else {
            both(d.name(), &x, |_, x| one((x[0] + x[1]) * x[2]));
            both(d.name(), &x, |_, x| one(x[0].less(x[1]).select(x[0], x[2].max(x[1]))));
            both(d.name(), &x, |_, x| one(x[0] * x[0].scalar_like(3.0)));
        }
        for to in DType::ALL {
            both("cast", &x[..1], |_, x| one(x[0].cast(to)));
        }
    }
}

#[test]
fn large_maps_split_into_tasks() {
    let mut r = Random(2);
    let x = [r.tensor(DType::F32, &[3, 70, 200]), r.tensor(DType::F32, &[70, 1])];
    both("tasks", &x, |_, x| one((x[0] + x[1]).tanh()));
    both("tasks", &[r.tensor(DType::F32, &[50_001])], |_, x| one(x[0].relu()));
    both("tasks", &[r.tensor(DType::F32, &[2, 40_001]), r.tensor(DType::F32, &[2, 1])], |_, x| one(x[0] * x[1]));
}

#[test]
fn reductions() {
    let mut r = Random(3);
    for d in DType::ALL {
        let x = [r.tensor(d, &[3, 4, 5])];
        for kind in [ReduceKind::Sum, ReduceKind::Prod, ReduceKind::Max, ReduceKind::Min] {
            if d == DType::Bool && matches!(kind, ReduceKind::Sum | ReduceKind::Prod) {
                continue;
            }
            for axes in [&[0][..], &[1], &[2], &[0, 2], &[0, 1, 2]] {
                for keep in [false, true] {
                    both(&format!("{d} {kind:?} {axes:?} {keep}"), &x, |_, x| one(x[0].reduce(kind, axes, keep)));
                }
            }
        }
    }
    both("empty", &[r.tensor(DType::F32, &[3, 0])], |_, x| one(x[0].max_keep(&[1])));
    for d in [DType::F32, DType::F16, DType::I32, DType::U8, DType::Bool] {
        let x = [r.tensor(d, &[4, 9, 3])];
        for kind in [ReduceKind::Max, ReduceKind::Min] {
            for (axis, keepdims, last) in [(0, false, false), (1, true, false), (1, false, true), (2, true, true)] {
                both("arg", &x, |b, x| one(b.op(ArgReduce { kind, axis, keepdims, last }, &[x[0]])));
            }
        }
        if d != DType::Bool {
            for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
                both("cumulate", &x, |b, x| one(b.op(Cumulate { kind: ReduceKind::Sum, axis: 1, exclusive, reverse }, &[x[0]])));
            }
        }
    }
}

#[test]
fn matmuls() {
    let mut r = Random(4);
    for d in [DType::F32, DType::F16, DType::I32] {
        for (a, b) in [(&[3, 4][..], &[4, 5][..]), (&[2, 3, 4], &[4, 5]), (&[2, 3, 4], &[2, 4, 5]), (&[4], &[4, 5]), (&[3, 4], &[4]), (&[4], &[4])] {
            both(&format!("matmul {a:?} {b:?}"), &[r.tensor(d, a), r.tensor(d, b)], |b, x| {
                one(b.op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, x))
            });
        }
    }
    let x = [r.tensor(DType::F32, &[2, 1, 3, 4]), r.tensor(DType::F32, &[5, 6, 4]), r.tensor(DType::F32, &[6]), r.tensor(DType::F32, &[2, 5, 3, 6])];
    let post = vec![Post::Bias, Post::Act(Act::Gelu {}), Post::Add, Post::Act(Act::Fn(ScalarFn::Relu))];
    both("epilogue", &x, |b, x| one(b.op(MatMul { transposed: true, packed: Dim::Const(0), post: post.clone() }, x)));
    let x = [r.tensor(DType::F32, &[2, 3, 4]), r.tensor(DType::F32, &[2, 4, 16]), r.tensor(DType::F32, &[21])];
    fixed("packed", &x, |b, x| one(b.op(MatMul { transposed: false, packed: Dim::Const(21), post: vec![Post::Scale] }, x)));
}

#[test]
fn convolutions() {
    let mut r = Random(5);
    let f = DType::F32;
    let plain = |strides: &[i64], dilations: &[i64], pads: &[i64], group| Conv {
        strides: strides.to_vec(),
        dilations: dilations.to_vec(),
        pads: pads.to_vec(),
        group,
        layout: Layout::Plain,
        inputs: 0,
        outputs: 0,
        post: vec![],
    };
    let (x, w) = (r.tensor(f, &[2, 4, 9, 8]), r.tensor(f, &[6, 2, 3, 2]));
    for op in [plain(&[], &[], &[], 2), plain(&[2, 1], &[2, 3], &[1, 2, 3, 0], 2), plain(&[1, 2], &[], &[-1, 1, 0, -2], 2)] {
        fixed("conv", &[x.clone(), w.clone()], |b, x| one(b.op(op.clone(), x)));
        let types = [Type::new(f, vec![Dim::sym("N"), c(4), Dim::sym("H"), Dim::sym("W")]), w.ty()];
        check_graph(&build(|b, x| one(b.op(op.clone(), x)), &types), &[x.clone(), w.clone()], "conv, symbolic");
    }
    let post = vec![Post::Scale, Post::Bias, Post::Add, Post::Act(Act::Clip { lo: Real(-1.0), hi: Real(3.0) })];
    let op = Conv { post: post.clone(), ..plain(&[], &[], &[1, 1, 1, 0], 2) };
    fixed("conv post", &[x, w, r.tensor(f, &[6]), r.tensor(f, &[6]), r.tensor(f, &[2, 6, 9, 8])], |b, x| one(b.op(op.clone(), x)));
    for (layout, x, w, y, group) in [
        (Layout::Blocked(4), &[2, 4, 5, 5, 4][..], &[2, 2, 3, 3, 4, 4][..], &[2, 2, 5, 5, 4][..], 2),
        (Layout::Enter(4), &[2, 3, 5, 5], &[2, 3, 3, 3, 4], &[2, 2, 5, 5, 4], 1),
        (Layout::Depthwise(4), &[2, 2, 5, 5, 4], &[2, 3, 3, 4], &[2, 2, 5, 5, 4], 8),
    ] {
        let inputs = [r.tensor(f, x), r.tensor(f, w), r.tensor(f, &[8]), r.tensor(f, &[8]), r.tensor(f, y)];
        let op = Conv { layout, post: post.clone(), ..plain(&[], &[], &[1, 1, 1, 1], group) };
        fixed("blocked", &inputs, |b, x| one(b.op(op.clone(), x)));
    }
    fixed("conv1d", &[r.tensor(f, &[1, 2, 12]), r.tensor(f, &[3, 2, 5])], |b, x| one(b.op(plain(&[2], &[2], &[3, 3], 1), x)));
    let op = ConvTranspose {
        strides: vec![2, 3],
        dilations: vec![1, 2],
        pads: vec![1, 0, 0, 2],
        output_padding: vec![1, 0],
        group: 2,
        post: vec![Post::Bias],
    };
    fixed("conv_transpose", &[r.tensor(f, &[2, 4, 3, 5]), r.tensor(f, &[4, 3, 3, 2]), r.tensor(f, &[6])], |b, x| one(b.op(op.clone(), x)));
}

#[test]
fn pools() {
    let mut r = Random(6);
    for (block, shape) in [(0, &[2, 3, 7, 8][..]), (4, &[2, 2, 7, 8, 4])] {
        for kind in [PoolKind::Max, PoolKind::Average, PoolKind::AverageAll, PoolKind::Sum] {
            for ceil in [false, true] {
                for (strides, dilations, pads) in
                    [(vec![], vec![], vec![]), (vec![2, 3], vec![], vec![1, 1, 1, 0]), (vec![2, 1], vec![2, 2], vec![0, 1, 2, 1])]
                {
                    let op = Pool { kind, kernel: vec![3, 2], strides, dilations, pads, ceil, block, indices: kind == PoolKind::Max };
                    let x = r.tensor(DType::F32, shape);
                    let y = |b: &Builder, x: &[V]| {
                        b.op_all(op.clone(), x, vec![]).iter().take(if op.indices { 2 } else { 1 }).map(|v| v.value()).collect()
                    };
                    fixed(&format!("{op:?}"), std::slice::from_ref(&x), y);
                    let mut ty = x.ty();
                    ty.shape[0] = Dim::sym("N");
                    ty.shape[2] = Dim::sym("H");
                    check_graph(&build(y, &[ty]), std::slice::from_ref(&x), &format!("{op:?}, symbolic"));
                }
            }
        }
    }
}

#[test]
fn movement() {
    let mut r = Random(7);
    let x = [r.tensor(DType::F32, &[2, 3, 4])];
    for perm in [[0, 2, 1], [2, 1, 0], [1, 2, 0]] {
        both("transpose", &x, |_, x| one(x[0].transpose(&perm)));
    }
    both("expand", &[r.tensor(DType::I16, &[3, 1])], |_, x| one(x[0].expand(vec![c(2), x[0].ty().shape[0].clone(), c(5)])));
    let slice = |starts: [i64; 3], sizes: [i64; 3], steps: [i64; 3]| Slice {
        starts: starts.map(c).to_vec(),
        sizes: sizes.map(c).to_vec(),
        steps: steps.to_vec(),
    };
    for op in [
        slice([0, 1, 0], [2, 2, 4], [1, 1, 1]),
        slice([1, 2, 3], [1, 2, 3], [1, -2, -1]),
        slice([1, 0, 0], [1, 3, 4], [1, 1, 1]),
        slice([1, 1, 0], [1, 1, 2], [1, 1, 2]),
    ] {
        both(&format!("{op:?}"), &x, |b, x| one(b.op(op.clone(), x)));
    }
    for axis in 0..3 {
        let mut shape = [2, 3, 4];
        shape[axis] = 5;
        both("concat", &[x[0].clone(), r.tensor(DType::F32, &shape), x[0].clone()], |b, x| one(b.op(Concat { axis }, x)));
    }
    both("reshape", &x, |_, x| one(x[0].reshape(vec![x[0].ty().shape[0].clone() * x[0].ty().shape[1].clone(), x[0].ty().shape[2].clone()]).relu()));
    for (lo, hi) in [([0, 1, 2], [3, 0, 1]), ([-1, 2, 0], [0, -1, 1])] {
        both("pad", &x, |b, x| one(b.op(Pad { mode: PadMode::Constant, lo: lo.map(c).to_vec(), hi: hi.map(c).to_vec() }, x)));
    }
    both("pad value", &[x[0].clone(), Tensor::scalar(2.5f32)], |b, x| {
        one(b.op(Pad { mode: PadMode::Constant, lo: vec![c(1); 3], hi: vec![c(0); 3] }, x))
    });
    for mode in [PadMode::Reflect, PadMode::Edge, PadMode::Wrap] {
        both("pad", &x, |b, x| one(b.op(Pad { mode, lo: vec![c(1), c(2), c(0)], hi: vec![c(0), c(1), c(3)] }, x)));
    }
    for channels in [5, 8] {
        let x = r.tensor(DType::F32, &[2, channels, 3, 2]);
        fixed("pack", &[x], |b, x| one(b.op(Pack { block: 4 }, x)));
        fixed("unpack", &[r.tensor(DType::F32, &[2, 2, 3, 2, 4])], |b, x| one(b.op(Unpack { channels }, x)));
    }
    both("iota", &x, |b, x| one(b.op(Iota { shape: x[0].ty().shape, axis: 1 }, &[])));
    both("dims", &x, |b, x| one(b.op(Dims { values: x[0].ty().shape, scalar: false }, &[])));
}

#[test]
fn indices() {
    let mut r = Random(8);
    let x = r.tensor(DType::F32, &[3, 4, 5]);
    let ix = |shape: &[usize], v: &[i64]| Tensor::new(shape, v);
    for axis in 0..3 {
        both("gather", &[x.clone(), ix(&[2, 2], &[0, -1, 2, 1])], |b, x| one(b.op(Gather { axis }, x)));
        both("gather", &[x.clone(), ix(&[], &[-3])], |b, x| one(b.op(Gather { axis }, x)));
    }
    let at = ix(&[2, 2, 3], &[0, 1, 2, -1, 0, 1, 1, 1, -2, 2, 0, 0]);
    for axis in 0..3 {
        both("gather_elements", &[x.clone(), at.clone()], |b, x| one(b.op(GatherElements { axis }, x)));
        for reduction in [ScatterKind::Set, ScatterKind::Add, ScatterKind::Mul, ScatterKind::Max, ScatterKind::Min] {
            let updates = r.tensor(DType::F32, &[2, 2, 3]);
            both("scatter_elements", &[x.clone(), at.clone(), updates], |b, x| one(b.op(ScatterElements { axis, reduction }, x)));
        }
    }
    fixed("gather_nd", &[x.clone(), ix(&[2, 2], &[0, 1, -1, 3])], |b, x| one(b.op(GatherNd { batch_dims: 0 }, x)));
    fixed("gather_nd", &[x.clone(), ix(&[3, 2, 1], &[0, 1, -1, 3, 2, 2])], |b, x| one(b.op(GatherNd { batch_dims: 1 }, x)));
    for reduction in [ScatterKind::Set, ScatterKind::Add] {
        let updates = r.tensor(DType::F32, &[2, 5]);
        fixed("scatter_nd", &[x.clone(), ix(&[2, 2], &[0, 1, -1, 3]), updates], |b, x| one(b.op(ScatterNd { reduction }, x)));
    }
    let x = Tensor::new(&[2, 3], &[0f32, 1., 0., 2., 0., 3.]);
    both("non_zero", std::slice::from_ref(&x), |b, x| one(b.op(NonZero { count: Dim::sym("k") }, x)));
    both("non_zero", std::slice::from_ref(&x), |b, x| {
        let y = b.op(NonZero { count: Dim::sym("k") }, x);
        one((y + y).reduce(ReduceKind::Sum, &[0], false))
    });
    let g = build(|b, x| one(b.op(Gather { axis: 0 }, x)), &[Type::of(DType::F32, &[3]), Type::of(DType::I64, &[1])]);
    let p = lower(&g, &target()).unwrap();
    let e = eval_program(&p, &[Tensor::new(&[3], &[1f32, 2., 3.]), ix(&[1], &[3])]).unwrap_err();
    assert_eq!(e.code(), nnc_ir::error::Code::Input, "{e}");
}

#[test]
fn sorting() {
    let mut r = Random(9);
    for d in [DType::F32, DType::I32, DType::U8] {
        for (axis, k, largest) in [(0, 2, true), (1, 7, false), (1, 9, true), (2, 1, false), (2, 0, true)] {
            let x = [r.tensor(d, &[3, 9, 4])];
            both("top_k", &x, |b, x| b.op_all(TopK { axis, k: c(k), largest }, x, vec![]).iter().take(2).map(|v| v.value()).collect());
        }
    }
    let x = Tensor::new(&[6], &[1f32, f32::NAN, 3., -1., f32::NAN, 3.]);
    for largest in [true, false] {
        fixed("nan", std::slice::from_ref(&x), |b, x| {
            b.op_all(TopK { axis: 0, k: c(6), largest }, x, vec![]).iter().take(2).map(|v| v.value()).collect()
        });
    }
}

#[test]
fn norms() {
    let mut r = Random(10);
    for d in [DType::F32, DType::F16, DType::F64] {
        let x = [r.tensor(d, &[2, 3, 4, 5])];
        for axis in 0..4 {
            both("softmax", &x, |b, x| one(b.op(Softmax { axis }, x)));
            both("log_softmax", &x, |b, x| one(b.op(LogSoftmax { axis }, x)));
        }
        let s = [x[0].clone(), r.tensor(d, &[4, 5]), r.tensor(d, &[4, 5])];
        both("layer_norm", &s, |b, x| one(b.op(LayerNorm { axis: 2, epsilon: Real(1e-5) }, x)));
        both("layer_norm", &[x[0].clone(), r.tensor(d, &[5])], |b, x| one(b.op(LayerNorm { axis: 3, epsilon: Real(1e-5) }, x)));
        both("layer_norm", &[x[0].clone(), r.tensor(d, &[])], |b, x| one(b.op(LayerNorm { axis: 3, epsilon: Real(1e-5) }, x)));
        let s = [x[0].clone(), r.tensor(d, &[3]), r.tensor(d, &[3])];
        both("instance_norm", &s, |b, x| one(b.op(InstanceNorm { epsilon: Real(1e-5) }, x)));
        let positive = Tensor::new(&[3], &[1.0f32, 2.0, 0.5]);
        if d == DType::F32 {
            let s = [x[0].clone(), r.tensor(d, &[3]), r.tensor(d, &[3]), r.tensor(d, &[3]), positive];
            both("batch_norm", &s, |b, x| one(b.op(BatchNorm { epsilon: Real(1e-5) }, x)));
            both("lrn", &x, |b, x| one(b.op(Lrn { size: 3, alpha: Real(0.1), beta: Real(0.75), bias: Real(1.0) }, x)));
            both("mish", &x, |b, x| one(b.op(Activation { act: Act::Mish {} }, x)));
        }
    }
}

#[test]
fn outputs_that_are_inputs_constants_or_twice_the_same() {
    let mut r = Random(11);
    let x = [r.tensor(DType::F32, &[2, 3])];
    both("outputs", &x, |b, x| {
        let y = x[0].relu();
        let flat = y.reshape(vec![y.ty().elems()]);
        let k = b.constant(Tensor::new(&[2], &[1i32, 2]));
        vec![x[0].value(), y.value(), y.value(), flat.value(), k.value()]
    });
}

fn region(types: &[Type], f: impl FnOnce(&Builder, &[V]) -> Vec<nnc_ir::Value>) -> Graph {
    let b = Builder::new("region");
    let x: Vec<V> = types.iter().map(|t| b.input("", t.clone())).collect();
    for v in f(&b, &x) {
        b.output("", b.v(v));
    }
    b.finish().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn control_flow() {
    let mut r = Random(12);
    let x = r.tensor(DType::F32, &[2, 3]);
    let i64s = Type::of(DType::I64, &[]);
    for yes in [false, true] {
        both("if", &[Tensor::scalar(yes), x.clone()], |b, x| {
            let t = [x[1].ty()];
            let regions =
                vec![region(&t, |_, x| vec![x[0].exp().value(), x[0].value()]), region(&t, |_, x| vec![(-x[0]).value(), x[0].tanh().value()])];
            b.op_all(If {}, x, regions).iter().take(2).map(|v| v.value()).collect()
        });
    }
    // y = y * 2 + trip until it is above 50 or five trips are over; collects y.
    for start in [1.0f32, 20.0, 100.0] {
        fixed("loop", &[Tensor::scalar(start), Tensor::scalar(start < 50.0)], |b, x| {
            let body = region(&[i64s.clone(), Type::of(DType::F32, &[])], |_, x| {
                let y = x[1] * x[1].scalar_like(2.0) + x[0].cast(DType::F32);
                vec![y.less(y.scalar_like(50.0)).value(), y.value(), y.reshape(vec![c(1)]).value()]
            });
            let trips = b.constant(Tensor::scalar(5i64));
            let y = b.op_all(Loop { carried: 1, trips: Dim::sym("trips") }, &[trips, x[1], x[0]], vec![body]);
            vec![y[0].value(), y[1].value(), (y[1] + y[1]).value()]
        });
    }
    for reverse in [false, true] {
        both("scan", &[r.tensor(DType::F32, &[3]), r.tensor(DType::F32, &[4, 3]), r.tensor(DType::F32, &[3])], |b, x| {
            let t = x[0].ty();
            let body = region(&[t.clone(), t.clone(), t], |_, x| {
                let s = x[0] * x[2] + x[1];
                vec![s.value(), s.tanh().value(), x[1].value()]
            });
            let y = b.op_all(Scan { states: 1, scanned: 1, reverse }, x, vec![body]);
            y.iter().take(3).map(|v| v.value()).collect()
        });
    }
}

#[test]
fn sizes_from_data() {
    let inputs = [Tensor::new(&[2], &[2i64, 3]), Tensor::new(&[6], &[1f32, 2., 3., 4., 5., 6.])];
    let g = build(
        |b, x| {
            b.op(ReadDims { symbols: vec![Dim::sym("p"), Dim::sym("q")] }, &x[..1]);
            one(x[1].reshape(vec![Dim::sym("p"), Dim::sym("q")]).transpose(&[1, 0]))
        },
        &inputs.iter().map(|t| t.ty()).collect::<Vec<_>>(),
    );
    check_graph(&g, &inputs, "read_dims");
}

/// A convolution whose result only a pad reads writes into the padded tensor, in every layout, beside a residual that is not padded.
#[test]
fn padded_results_are_written_in_place() {
    let mut r = Random(15);
    let f = DType::F32;
    let pads = [([0, 0, 1, 2, 0], [0, 0, 0, 1, 0]), ([0, 0, 0, 0, 0], [0, 0, 2, 0, 0]), ([0; 5], [0, 0, 0, 3, 0])];
    let conv = |layout, group| Conv {
        strides: vec![],
        dilations: vec![],
        pads: vec![1; 4],
        group,
        layout,
        inputs: 0,
        outputs: 0,
        post: vec![Post::Bias, Post::Add],
    };
    for (layout, x, w, group) in [
        (Layout::Blocked(4), &[2, 2, 5, 4, 4][..], &[2, 1, 3, 3, 4, 4][..], 2),
        (Layout::Enter(4), &[2, 3, 5, 4], &[2, 3, 3, 3, 4], 1),
        (Layout::Depthwise(4), &[2, 2, 5, 4, 4], &[2, 3, 3, 4], 8),
    ] {
        let inputs = [r.tensor(f, x), r.tensor(f, w), r.tensor(f, &[8]), r.tensor(f, &[2, 2, 5, 4, 4])];
        for (lo, hi) in pads {
            let pad = Pad { mode: PadMode::Constant, lo: lo.map(c).to_vec(), hi: hi.map(c).to_vec() };
            let padded = |b: &Builder, x: &[V]| one(b.op(pad.clone(), &[b.op(conv(layout, group), x)]));
            let mut types: Vec<Type> = inputs.iter().map(Tensor::ty).collect();
            for open in [false, true] {
                if open {
                    let symbols = |t: &mut Type, spatial: usize| {
                        t.shape[0] = Dim::sym("N");
                        t.shape[spatial] = Dim::sym("H");
                    };
                    symbols(&mut types[0], 2);
                    symbols(&mut types[3], 2);
                }
                let g = build(padded, &types);
                check_graph(&g, &inputs, &format!("{layout:?} {lo:?} {hi:?} open={open}"));
                let program = lower(&g, &target()).unwrap();
                let names: Vec<&str> = program.kernels.iter().map(|k| k.name.split('_').next().unwrap()).collect();
                assert_eq!(names, ["conv", "halo"]);
                let within = program.kernels[0].origin.as_ref().and_then(|o| o.within.as_ref());
                assert_eq!(within.map(|w| w.start.clone()), Some(pad.lo.clone()));
            }
        }
        // A second reader needs the result as it is.
        let twice = |b: &Builder, x: &[V]| {
            let y = b.op(conv(layout, group), x);
            let (lo, hi) = ([0, 0, 1, 1, 0].map(c).to_vec(), [0, 0, 1, 1, 0].map(c).to_vec());
            vec![b.op(Pad { mode: PadMode::Constant, lo, hi }, &[y]).value(), y.relu().value()]
        };
        fixed("read twice", &inputs, twice);
    }
}

#[test]
fn sizes_that_nothing_bounds() {
    let i64s = |n: &[usize]| Type::new(DType::I64, n.iter().map(|d| c(*d as i64)).collect::<Vec<_>>());
    let dims = |values: Vec<Dim>| Dims { values, scalar: false };
    for n in [0i64, 1, 7, 300] {
        let input = [Tensor::new(&[1], &[n])];
        let types = [i64s(&[1])];
        let g = build(
            |b, x| {
                b.op(ReadDims { symbols: vec![Dim::sym("d")] }, &x[..1]);
                let ramp = b.op(Iota { shape: vec![Dim::sym("d")], axis: 0 }, &[]).cast(DType::F32);
                let sum = ramp.exp().reduce(ReduceKind::Sum, &[0], true);
                vec![(ramp / (sum + sum.scalar_like(1.0))).value(), V::concat(&[ramp, sum], 0).value()]
            },
            &types,
        );
        check_graph(&g, &input, &format!("a range of {n}"));
        assert!(lower(&g, &target()).unwrap().heap > 0);

        // Each iteration makes the carried vector one longer, and collects its sum.
        let g = build(
            |b, x| {
                let body = region(&[i64s(&[]), Type::new(DType::I64, vec![Dim::sym("k")])], |b, x| {
                    let longer = V::concat(&[x[1], x[0].reshape(vec![c(1)])], 0);
                    b.op(ReadDims { symbols: vec![Dim::sym("after")] }, &[b.op(dims(vec![Dim::sym("k") + c(1)]), &[])]);
                    let go = b.constant(Tensor::scalar(true));
                    vec![go.value(), longer.reshape(vec![Dim::sym("after")]).value(), longer.reduce(ReduceKind::Sum, &[0], false).value()]
                });
                let start = b.constant(Tensor::new(&[2], &[5i64, 6]));
                let go = b.constant(Tensor::scalar(true));
                let y = b.op_all(Loop { carried: 1, trips: Dim::sym("trips") }, &[x[0].reshape(vec![]), go, start], vec![body]);
                vec![y[0].value(), y[1].value(), (y[1] + y[1]).value()]
            },
            &types,
        );
        check_graph(&g, &input, &format!("a loop of {n}"));
    }
    // Branches of different lengths.
    for yes in [false, true] {
        let input = [Tensor::scalar(yes), Tensor::new(&[1], &[4i64])];
        let g = build(
            |b, x| {
                let branch = |extra: i64| {
                    region(&[i64s(&[1])], |b, x| {
                        b.op(ReadDims { symbols: vec![Dim::sym("d")] }, &x[..1]);
                        let ramp = b.op(Iota { shape: vec![Dim::sym("d") + c(extra)], axis: 0 }, &[]);
                        b.op(ReadDims { symbols: vec![Dim::sym("r")] }, &[b.op(dims(vec![Dim::sym("d") + c(extra)]), &[])]);
                        one(ramp.reshape(vec![Dim::sym("r")]))
                    })
                };
                let y = b.op_all(If {}, x, vec![branch(0), branch(3)])[0];
                vec![y.value(), (y * y).value()]
            },
            &[Type::of(DType::Bool, &[]), i64s(&[1])],
        );
        check_graph(&g, &input, "branches");
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors_of_the_run() {
    let inputs = |p: i64| [Tensor::new(&[1], &[p]), Tensor::new(&[6], &[0f32; 6])];
    let types: Vec<Type> = inputs(0).iter().map(|t| t.ty()).collect();
    let g = build(
        |b, x| {
            b.op(ReadDims { symbols: vec![Dim::sym("p")] }, &x[..1]);
            one(x[1].reshape(vec![Dim::sym("p"), c(2)]).exp())
        },
        &types,
    );
    let program = lower(&g, &target()).unwrap();
    assert!(eval_program(&program, &inputs(3)).is_ok());
    let e = eval_program(&program, &inputs(30)).unwrap_err();
    assert!(e.message().contains("needs 6 to be equal to 2*p; they are 6 and 60"), "{}", e.message());

    let types = [Type::new(DType::F32, vec![Dim::sym("N")]), Type::new(DType::F32, vec![Dim::sym("M")])];
    let program = lower(&build(|_, x| one(x[0] + x[1]), &types), &target()).unwrap();
    let e = eval_program(&program, &[Tensor::new(&[3], &[0f32; 3]), Tensor::new(&[2], &[0f32; 2])]).unwrap_err();
    assert!(e.message().contains("(add) needs N to be 1 or what it is stretched to"), "{}", e.message());
}
