//! Control flow with its regions.

use super::{Example, Values, case, ty};
use crate::builder::{Builder, V};
use crate::dim::Dim;
use crate::graph::Graph;
use crate::ops::control::{If, Loop, Scan};
use crate::tensor::Tensor;

/// A region over arguments of the given types. Panics where it does not build: for the table here.
fn region(inputs: &[&str], f: impl for<'g> Fn(&'g Builder, &[V<'g>]) -> Vec<V<'g>>) -> Graph {
    let b = Builder::new("region");
    let x: Vec<V> = inputs.iter().enumerate().map(|(i, t)| b.input(format!("v{i}"), ty(t))).collect();
    f(&b, &x).into_iter().for_each(|v| b.output("", v));
    b.finish().expect("a region")
}

pub(super) fn examples() -> Vec<Example> {
    [branches(), loops(), scans()].concat()
}

fn branches() -> Vec<Example> {
    let regions = || vec![region(&["f32[N,3]", "f32[3]"], |_, x| vec![x[0] + x[1]]), region(&["f32[N,3]", "f32[3]"], |_, x| vec![x[0] * x[1]])];
    let constant = |v: f32| region(&[], move |b, _| vec![b.constant(Tensor::scalar(v))]);
    let given = |c: bool| Values::Given(Tensor::scalar(c));
    vec![
        case("then", If {}, &["bool[]", "f32[N,3]", "f32[3]"]).regions(regions()).values(0, given(true)),
        case("else", If {}, &["bool[]", "f32[N,3]", "f32[3]"]).regions(regions()).values(0, given(false)),
        case("no_captures", If {}, &["bool[]"]).regions(vec![constant(1.0), constant(2.0)]),
    ]
}

fn loops() -> Vec<Example> {
    // v = v * w while the sum stays small; collects v.
    let body = || {
        region(&["i64[]", "f32[2]", "f32[2]"], |b, x| {
            let next = x[1] * x[2];
            let sum = next.reduce(crate::ops::reduce::ReduceKind::Sum, &[0], false);
            vec![sum.less(b.constant(Tensor::scalar(1e3f32))), next, x[1]]
        })
    };
    let count = || region(&["i64[]", "i64[]"], |b, x| vec![b.constant(Tensor::scalar(true)), x[0] + x[1]]);
    let (trips, op) = (Dim::sym("trips"), |carried| Loop { carried, trips: Dim::sym("trips") });
    let go = Values::Given(Tensor::scalar(true));
    let inputs = ["i64[]", "bool[]", "f32[2]", "f32[2]"];
    let run = |name: &str, n: i64| {
        case(name, op(1), &inputs)
            .regions(vec![body()])
            .values(0, Values::Given(Tensor::scalar(n)))
            .values(1, go.clone())
            .values(3, Values::Range(1, 3))
    };
    vec![
        run("counted", 4),
        run("stopped", 1000).values(2, Values::Range(1, 9)).values(3, Values::Range(2, 4)),
        run("none", 0),
        case("carried", Loop { carried: 1, trips }, &["i64[]", "bool[]", "i64[]"])
            .regions(vec![count()])
            .values(0, Values::Range(1, 9))
            .values(1, go),
    ]
}

fn scans() -> Vec<Example> {
    let body = || {
        region(&["f32[3]", "f32[3]", "f32[3]"], |_, x| {
            let next = (x[0] * x[2] + x[1]).tanh();
            vec![next, next + x[1]]
        })
    };
    let scan = |reverse| Scan { states: 1, scanned: 1, reverse };
    let sums = region(&["i32[]", "i32[2]"], |_, x| vec![x[0] + x[1].reduce(crate::ops::reduce::ReduceKind::Sum, &[0], false)]);
    vec![
        case("forward", scan(false), &["f32[3]", "f32[5,3]", "f32[3]"]).regions(vec![body()]),
        case("reverse", scan(true), &["f32[3]", "f32[5,3]", "f32[3]"]).regions(vec![body()]),
        case("symbolic", scan(false), &["f32[3]", "f32[L,3]", "f32[3]"]).regions(vec![body()]),
        case("fold", Scan { states: 1, scanned: 1, reverse: false }, &["i32[]", "i32[4,2]"]).regions(vec![sums]),
    ]
}
