//! Evaluation of whole graphs.

use nnc_ir::error::Code;
use nnc_ir::eval::{Env, run, run_all};
use nnc_ir::graph::Graph;
use nnc_ir::ops::composite::norm::{LayerNorm, Softmax};
use nnc_ir::ops::control::{If, Loop, Scan};
use nnc_ir::ops::index::NonZero;
use nnc_ir::ops::source::Dims;
use nnc_ir::{Builder, DType, Dim, Error, Result, Tensor, Type, V};

fn graph(f: impl FnOnce(&Builder)) -> Graph {
    let b = Builder::new("test");
    f(&b);
    b.finish().unwrap()
}

fn eval(g: &Graph, x: &[Tensor]) -> Result<Vec<Tensor>> {
    run(g, x, &Env::default())
}

fn ty(dtype: DType, dims: &[&str]) -> Type {
    Type::new(dtype, dims.iter().map(|d| d.parse().map_or_else(|_| Dim::sym(d), Dim::Const)).collect::<Vec<_>>())
}

fn says(r: Result<Vec<Tensor>>, code: Code, message: &str) {
    let e: Error = r.unwrap_err();
    assert_eq!((e.code(), e.message()), (code, message));
}

#[test]
fn inputs_are_checked() {
    let g = graph(|b| {
        let x = b.input("x", ty(DType::F32, &["N", "3"]));
        let y = b.input("y", ty(DType::F32, &["N", "1"]));
        b.output("z", x + y);
    });
    let (x, y) = (Tensor::new(&[2, 3], &[1f32, 2., 3., 4., 5., 6.]), Tensor::new(&[2, 1], &[10f32, 20.]));
    assert_eq!(eval(&g, &[x.clone(), y.clone()]).unwrap(), [Tensor::new(&[2, 3], &[11f32, 12., 13., 24., 25., 26.])]);
    says(eval(&g, std::slice::from_ref(&x)), Code::Input, "expected 2 inputs (input `x`, input `y`), found 1");
    says(eval(&g, &[x.clone(), Tensor::scalar(1f32)]), Code::Input, "input `y`: expected f32[N,1], found f32[]: the rank is 0, not 2");
    says(
        eval(&g, &[x.clone(), Tensor::new(&[2, 1], &[1i32, 2])]),
        Code::Input,
        "input `y`: expected f32[N,1], found i32[2,1]: the element type is i32, not f32",
    );
    says(
        eval(&g, &[x.clone(), Tensor::new(&[1, 1], &[1f32])]),
        Code::Input,
        "input `y`: expected f32[N,1], found f32[1,1]: N is 1 here and 2 in input `x`",
    );
    says(eval(&g, &[Tensor::new(&[2, 2], &[1f32; 4]), y]), Code::Input, "input `x`: expected f32[N,3], found f32[2,2]: axis 1 is 2, not 3");
}

#[test]
fn sizes_that_do_not_fit_at_run_time_are_the_inputs_fault() {
    let g = graph(|b| {
        let sum = b.input("x", ty(DType::F32, &["N"])) + b.input("y", ty(DType::F32, &["M"]));
        b.output("z", sum.named("sum"));
    });
    let t = |n: usize| Tensor::new(&[n], &vec![1f32; n]);
    assert_eq!(eval(&g, &[t(3), t(3)]).unwrap(), [Tensor::new(&[3], &[2f32; 3])]);
    assert_eq!(eval(&g, &[t(1), t(3)]).unwrap(), [Tensor::new(&[3], &[2f32; 3])]);
    let e = eval(&g, &[t(2), t(3)]).unwrap_err();
    assert_eq!(e.notes(), ["computing `sum` (add)"]);
}

#[test]
fn composites_expand_and_every_node_is_shown() {
    let g = graph(|b| {
        let x = b.input("x", ty(DType::F64, &["N", "2"]));
        b.output("p", b.op(Softmax { axis: 1 }, &[x]));
        let one = b.constant(Tensor::new(&[2], &[1f64, 1.]));
        b.output("n", b.op(LayerNorm { axis: 1, epsilon: 0.0.into() }, &[x, one]));
    });
    let x = Tensor::new(&[2, 2], &[0f64, 3f64.ln(), 1000., 1000.]);
    let mut seen = vec![];
    let y = run_all(&g, &[x], &Env::default(), &mut |id, y| seen.push((g.node(id).op.name(), y.len()))).unwrap();
    assert_eq!(seen, [("input", 1), ("softmax", 1), ("const", 1), ("layer_norm", 1)]);
    let p = y[0].to_f64s();
    assert!(p.iter().zip([0.25, 0.75, 0.5, 0.5]).all(|(a, b)| (a - b).abs() < 1e-15), "{p:?}");
    assert_eq!(y[1].to_f64s()[..2], [-1.0, 1.0]);
}

#[test]
fn data_dependent_sizes() {
    let g = graph(|b| {
        let x = b.input("x", ty(DType::I32, &["N"]));
        let count = Dim::sym("hits");
        b.output("at", b.op(NonZero { count: count.clone() }, &[x]));
        b.output("twice", b.op(Dims { values: vec![count.clone() + count], scalar: true }, &[]));
    });
    let y = eval(&g, &[Tensor::new(&[4], &[0i32, 5, 0, 7])]).unwrap();
    assert_eq!(y, [Tensor::new(&[1, 2], &[1i64, 3]), Tensor::scalar(4i64)]);
}

#[test]
fn a_branch_is_taken() {
    let branch = |f: for<'g> fn(V<'g>) -> V<'g>| graph(|b| b.output("", f(b.input("", ty(DType::F32, &["K"])))));
    let g = graph(|b| {
        let c = b.input("c", ty(DType::Bool, &[]));
        let x = b.input("x", ty(DType::F32, &["K"]));
        let y = b.op_all(If {}, &[c, x], vec![branch(|x| x + x), branch(|x| x * x)]);
        b.output("y", y[0]);
    });
    let x = Tensor::new(&[2], &[3f32, 4.]);
    assert_eq!(eval(&g, &[Tensor::scalar(true), x.clone()]).unwrap(), [Tensor::new(&[2], &[6f32, 8.])]);
    assert_eq!(eval(&g, &[Tensor::scalar(false), x]).unwrap(), [Tensor::new(&[2], &[9f32, 16.])]);
}

#[test]
fn loops_carry_collect_and_stop() {
    // Doubles the carried value while it is below the limit (a capture); collects i * value.
    let body = graph(|b| {
        let i = b.input("i", ty(DType::I64, &[]));
        let v = b.input("v", ty(DType::I64, &[]));
        let limit = b.input("limit", ty(DType::I64, &[]));
        let next = v + v;
        b.output("", next.less(limit));
        b.output("", next);
        b.output("", i * v);
    });
    let g = graph(|b| {
        let trips = b.input("trips", ty(DType::I64, &[]));
        let [go, v, limit] = [("go", DType::Bool), ("v", DType::I64), ("limit", DType::I64)].map(|(n, d)| b.input(n, ty(d, &[])));
        let y = b.op_all(Loop { carried: 1, trips: Dim::sym("T") }, &[trips, go, v, limit], vec![body.clone()]);
        b.output("v", y[0]);
        b.output("all", y[1]);
        b.output("n", b.op(Dims { values: vec![Dim::sym("T")], scalar: true }, &[]));
    });
    let go = |trips: i64, go: bool, limit: i64| {
        eval(&g, &[Tensor::scalar(trips), Tensor::scalar(go), Tensor::scalar(1i64), Tensor::scalar(limit)]).unwrap()
    };
    assert_eq!(go(3, true, 100), [Tensor::scalar(8i64), Tensor::new(&[3], &[0i64, 2, 8]), Tensor::scalar(3i64)]);
    assert_eq!(go(100, true, 10), [Tensor::scalar(16i64), Tensor::new(&[4], &[0i64, 2, 8, 24]), Tensor::scalar(4i64)]);
    assert_eq!(go(100, false, 10), [Tensor::scalar(1i64), Tensor::new::<i64>(&[0], &[]), Tensor::scalar(0i64)]);
    assert_eq!(go(-1, true, 10)[2], Tensor::scalar(0i64));
}

#[test]
fn carried_values_may_grow() {
    let body = graph(|b| {
        b.input("i", ty(DType::I64, &[]));
        let v = b.input("v", ty(DType::F32, &["L"]));
        let one = b.constant(Tensor::new(&[1], &[1f32]));
        b.output("", b.constant(Tensor::scalar(true)));
        b.output("", V::concat(&[v, one], 0));
    });
    let g = graph(|b| {
        let trips = b.input("trips", ty(DType::I64, &[]));
        let go = b.constant(Tensor::scalar(true));
        let v = b.input("v", ty(DType::F32, &["L"]));
        b.output("v", b.op_all(Loop { carried: 1, trips: Dim::sym("T") }, &[trips, go, v], vec![body.clone()])[0]);
    });
    let e = eval(&g, &[Tensor::scalar(3i64), Tensor::new::<f32>(&[0], &[])]);
    // The type of the result, [L + 1], is that of one trip.
    assert_eq!(e.unwrap_err().code(), Code::Input);
    assert_eq!(eval(&g, &[Tensor::scalar(1i64), Tensor::new::<f32>(&[0], &[])]).unwrap(), [Tensor::new(&[1], &[1f32])]);
}

#[test]
fn scans_run_both_ways() {
    let body = graph(|b| {
        let state = b.input("state", ty(DType::I32, &[]));
        let x = b.input("x", ty(DType::I32, &["2"]));
        let weight = b.input("weight", ty(DType::I32, &["2"]));
        let sum = (x * weight).reduce(nnc_ir::ops::reduce::ReduceKind::Sum, &[0], false) + state;
        b.output("", sum);
        b.output("", sum);
    });
    let scan = |reverse| {
        let g = graph(|b| {
            let [state, x, weight] = [vec![], vec!["N", "2"], vec!["2"]].map(|d| b.input("", ty(DType::I32, &d)));
            let y = b.op_all(Scan { states: 1, scanned: 1, reverse }, &[state, x, weight], vec![body.clone()]);
            b.output("state", y[0]);
            b.output("sums", y[1]);
        });
        move |n: usize| {
            eval(&g, &[Tensor::scalar(100i32), Tensor::new(&[n, 2], &(1..=2 * n as i32).collect::<Vec<_>>()), Tensor::new(&[2], &[1i32, 10])])
        }
    };
    assert_eq!(scan(false)(3).unwrap(), [Tensor::scalar(100 + 21 + 43 + 65), Tensor::new(&[3], &[121, 164, 229])]);
    assert_eq!(scan(true)(3).unwrap(), [Tensor::scalar(229), Tensor::new(&[3], &[229, 208, 165])]);
    assert_eq!(scan(false)(0).unwrap(), [Tensor::scalar(100), Tensor::new::<i32>(&[0], &[])]);
}

#[test]
fn ten_thousand_layers() {
    let g = graph(|b| {
        let mut x = b.input("x", ty(DType::F32, &["N", "4"]));
        for _ in 0..10_000 {
            x = b.op(Softmax { axis: 1 }, &[x]);
        }
        b.output("y", x);
    });
    assert_eq!(eval(&g, &[Tensor::new(&[1, 4], &[1f32, 2., 3., 4.])]).unwrap(), [Tensor::new(&[1, 4], &[0.25f32; 4])]);
}
