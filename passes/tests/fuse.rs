//! What shares a kernel, and what it costs to find out: launches, kernels and workspace of small programs.

mod graphs;

use nnc_ir::kernel::{Program, Step};
use nnc_ir::ops::movement::Concat;
use nnc_ir::target::Isa;
use nnc_ir::{Builder, DType, Dim, Graph, Target, Type, V};
use nnc_passes::lower;

fn program(types: &[Type], f: impl Fn(&Builder, &[V]) -> Vec<nnc_ir::Value>) -> Program {
    let b = Builder::new("f");
    let x: Vec<V> = types.iter().enumerate().map(|(i, t)| b.input(format!("x{i}"), t.clone())).collect();
    for (i, y) in f(&b, &x).into_iter().enumerate() {
        b.output(format!("y{i}"), b.v(y));
    }
    lower(&b.finish().unwrap(), &Target::new(Isa::Avx2)).unwrap()
}

fn f32s(shape: &[i64]) -> Type {
    Type::of(DType::F32, shape)
}

/// Names of the kernels launched, without their numbers.
fn launches(p: &Program) -> Vec<String> {
    let name = |s: &Step| match s {
        Step::Launch(l) => p.kernels[l.kernel as usize].name.rsplit_once('_').map_or("", |(n, _)| n).to_string(),
        s => format!("{s:?}"),
    };
    p.steps.iter().map(name).collect()
}

#[test]
fn a_chain_is_one_kernel() {
    let p = program(&[f32s(&[4, 8]), f32s(&[8])], |_, x| vec![((x[0] + x[1]).relu() * x[0].scalar_like(2.0)).tanh().value()]);
    assert_eq!(launches(&p), ["fused_tanh"]);
    assert_eq!(p.workspace, Dim::Const(0));
}

#[test]
fn a_value_with_two_users_is_computed_once() {
    let p = program(&[f32s(&[4, 8])], |_, x| {
        let e = x[0].exp();
        vec![e.relu().value(), e.sigmoid().value()]
    });
    assert_eq!(launches(&p), ["exp", "relu", "sigmoid"]);
    // Twice in one node is one user.
    let p = program(&[f32s(&[4, 8])], |_, x| {
        let e = x[0].exp();
        vec![(e * e).value()]
    });
    assert_eq!(launches(&p), ["fused_mul"]);
}

#[test]
fn what_is_stretched_is_computed_before() {
    let p = program(&[f32s(&[4, 1]), f32s(&[4, 8])], |_, x| vec![(x[0].exp() + x[1]).value()]);
    assert_eq!(launches(&p), ["exp", "add"]);
    // Broadcasting itself is free.
    let p = program(&[f32s(&[4, 1]), f32s(&[4, 8])], |_, x| vec![(x[0].expand(vec![Dim::Const(4), Dim::Const(8)]) + x[1]).value()]);
    assert_eq!(launches(&p), ["fused_add"]);
}

#[test]
fn a_reduction_takes_what_is_before_and_behind_it() {
    let p = program(&[f32s(&[4, 8, 3])], |_, x| {
        let mean = (x[0] * x[0]).mean_keep(&[1]);
        vec![(mean + mean.scalar_like(1e-5)).log().value()]
    });
    assert_eq!(launches(&p), ["fused_log"]);
    // But not a second one.
    let p = program(&[f32s(&[4, 8])], |_, x| vec![(x[0].exp().sum_keep(&[0]).abs().sum_keep(&[1])).value()]);
    assert_eq!(launches(&p), ["fused_reduce", "fused_reduce"]);
}

#[test]
fn movement_between_maps_costs_no_kernel() {
    let p = program(&[f32s(&[4, 6]), f32s(&[2, 3, 2])], |_, x| {
        let y = x[0].slice_axis(0, Dim::Const(1), Dim::Const(2)).reshape(vec![Dim::Const(2), Dim::Const(3), Dim::Const(2)]);
        vec![(y + x[1]).transpose(&[1, 0, 2]).relu().value()]
    });
    // What is computed is not read out of order: the sum has a buffer, the transpose has none.
    assert_eq!(launches(&p), ["fused_add", "fused_relu"]);
    // A reshape and a slice of whole rows are names for the same memory.
    let p = program(&[f32s(&[4, 6])], |_, x| vec![x[0].slice_axis(0, Dim::Const(1), Dim::Const(2)).reshape(vec![Dim::Const(12)]).value()]);
    assert_eq!(launches(&p), ["copy"]);
}

#[test]
fn parts_of_a_concatenation_are_computed_in_place() {
    let p = program(&[f32s(&[1, 4, 5]), f32s(&[1, 3, 5])], |b, x| {
        let y = b.op(Concat { axis: 1 }, &[x[0].exp(), x[1], x[1].tanh()]);
        vec![b.op(Concat { axis: 0 }, &[y, y.relu()]).value()]
    });
    assert_eq!(launches(&p), ["exp", "tanh", "copy", "relu"]);
    assert_eq!(p.workspace, Dim::Const(0));
}

#[test]
fn a_step_of_an_optimiser_is_one_kernel() {
    use nnc_ir::ops::composite::update::{Adam, Momentum};
    let types = [f32s(&[4, 8]), f32s(&[4, 8]), f32s(&[4, 8]), f32s(&[4, 8]), f32s(&[]), f32s(&[])];
    let p = program(&types, |b, x| {
        let adam = Adam { beta1: 0.9.into(), beta2: 0.999.into(), epsilon: 1e-8.into(), weight_decay: 0.1.into() };
        let momentum = Momentum { momentum: 0.9.into(), nesterov: true, weight_decay: 0.0.into() };
        let y = [b.op_all(adam, x, vec![]), b.op_all(momentum, &x[..3].iter().chain(&x[4..5]).copied().collect::<Vec<_>>(), vec![])].concat();
        y.iter().map(|v| v.value()).collect()
    });
    assert_eq!(launches(&p), ["adam", "momentum"]);
    assert_eq!(p.workspace, Dim::Const(0));
}

/// Layers of one kind: two kernels and as many launches as layers, whatever the depth.
fn tower(layers: usize) -> Graph {
    let b = Builder::new("tower");
    let mut x = b.input("x", f32s(&[1, 4, 6, 6]));
    for _ in 0..layers {
        x = graphs::conv(x, 4, 3, 1, 1).tanh();
    }
    b.output("y", x);
    b.finish().unwrap()
}

#[test]
fn depth_costs_launches_only() {
    for layers in [10, 10_000] {
        let p = lower(&tower(layers), &Target::new(Isa::Avx2)).unwrap();
        assert_eq!((p.kernels.len(), p.steps.len(), p.weights.len()), (2, 2 * layers, 1));
        assert_eq!(p.workspace, Dim::Const(2 * 576));
    }
}

#[test]
fn long_chains_of_maps_are_cut() {
    let b = Builder::new("maps");
    let mut x = b.input("x", f32s(&[100]));
    for _ in 0..10_000 {
        x = x.tanh();
    }
    b.output("y", x);
    let p = lower(&b.finish().unwrap(), &Target::new(Isa::Avx2)).unwrap();
    assert!(p.steps.len() < 10_000 / 20, "{} launches", p.steps.len());
    assert!(p.kernels.len() <= 2, "{} kernels", p.kernels.len());
    assert_eq!(p.workspace, Dim::Const(448));
}
