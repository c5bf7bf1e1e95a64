//! Reductions, arguments of extrema, running sums, pooling, sorting.

use super::{Example, Values, case};
use crate::dim::Dim;
use crate::ops::reduce::{ArgReduce, Cumulate, Reduce, ReduceKind};
use crate::ops::sort::TopK;
use crate::ops::window::{Pool, PoolKind};
use crate::types::DType;

pub(super) fn examples() -> Vec<Example> {
    [reductions(), arguments(), running(), pools(), sorted()].concat()
}

fn reductions() -> Vec<Example> {
    let mut out = vec![];
    for kind in ReduceKind::ALL.iter().copied() {
        let mut add = |name: &str, axes: &[usize], keepdims: bool, x: &str| {
            out.push(case(&format!("{}.{name}", kind.word()), Reduce { kind, axes: axes.to_vec(), keepdims }, &[x]));
        };
        for d in DType::ALL.into_iter().filter(|d| *d != DType::Bool || matches!(kind, ReduceKind::Max | ReduceKind::Min)) {
            add(d.name(), &[1], false, &format!("{d}[2,5,3]"));
        }
        add("last", &[1], true, "f32[3,37]");
        add("first", &[0], false, "f32[5,19]");
        add("ends", &[0, 2], true, "f32[3,4,5]");
        add("all", &[0, 1], false, "f32[3,4]");
        add("symbolic", &[1], true, "f32[N,L]");
        add("rows", &[1], false, "f32[N,16]");
        add("none", &[], false, "f32[2,3]");
        add("empty", &[1], false, "f32[2,0]");
    }
    out
}

fn arguments() -> Vec<Example> {
    let mut out = vec![];
    for kind in [ReduceKind::Max, ReduceKind::Min] {
        let mut add = |name: &str, axis: usize, keepdims: bool, last: bool, x: &str| {
            out.push(case(&format!("{}.{name}", kind.word()), ArgReduce { kind, axis, keepdims, last }, &[x]));
        };
        for d in DType::ALL {
            add(d.name(), 1, false, false, &format!("{d}[2,9,3]"));
        }
        add("last", 1, true, true, "i32[4,20]");
        add("rows", 0, true, false, "f32[6,5]");
        add("symbolic", 1, false, false, "f32[N,L]");
    }
    out.push(case("max.edges", ArgReduce { kind: ReduceKind::Max, axis: 1, keepdims: false, last: false }, &["f32[5,9]"]).values(0, Values::Edges));
    out
}

fn running() -> Vec<Example> {
    let mut out = vec![];
    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        let name =
            |kind: ReduceKind| format!("{}{}{}", kind.word(), if exclusive { ".exclusive" } else { "" }, if reverse { ".reverse" } else { "" });
        for kind in [ReduceKind::Sum, ReduceKind::Prod] {
            out.push(case(&name(kind), Cumulate { kind, axis: 1, exclusive, reverse }, &["f32[2,5,3]"]));
        }
    }
    let sum = |axis| Cumulate { kind: ReduceKind::Sum, axis, exclusive: false, reverse: false };
    out.extend([
        case("sum.f64", sum(0), &["f64[7]"]),
        case("sum.f16", sum(0), &["f16[7,2]"]),
        case("sum.i32", sum(0), &["i32[4,5]"]),
        case("sum.i64.symbolic", sum(1), &["i64[N,L]"]),
        case("sum.u8", sum(0), &["u8[40]"]),
    ]);
    out
}

fn pools() -> Vec<Example> {
    let pool = |kind, kernel: &[i64]| Pool {
        kind,
        kernel: kernel.to_vec(),
        strides: vec![],
        dilations: vec![],
        pads: vec![],
        ceil: false,
        block: 0,
        indices: false,
    };
    let mut out = vec![];
    for kind in PoolKind::ALL.iter().copied() {
        let mut add = |name: &str, op: Pool, x: &str| out.push(case(&format!("{}.{name}", kind.word()), op, &[x]));
        let square = Pool { strides: vec![2, 2], pads: vec![1, 1, 1, 1], ..pool(kind, &[3, 3]) };
        add("plain", pool(kind, &[2, 2]), "f32[1,2,5,6]");
        add("padded", square.clone(), "f32[2,3,7,6]");
        add("ceil", Pool { strides: vec![2, 2], pads: vec![1, 0, 0, 1], ceil: true, ..pool(kind, &[3, 3]) }, "f32[1,2,6,7]");
        add("dilated", Pool { dilations: vec![2, 1], ..pool(kind, &[2, 3]) }, "f32[1,2,5,6]");
        add("line", Pool { strides: vec![2], pads: vec![1, 0], ..pool(kind, &[3]) }, "f32[2,2,9]");
        add("far", Pool { strides: vec![100_000, 2_147_483_647], ..pool(kind, &[2, 1]) }, "f32[1,1,4,5]");
        add("volume", Pool { strides: vec![1, 2, 1], ..pool(kind, &[2, 2, 2]) }, "f32[1,2,3,4,3]");
        add("symbolic", square.clone(), "f32[N,2,H,W]");
        add("blocked", Pool { block: 16, ..square.clone() }, "f32[2,2,7,6,16]");
        add("blocked.symbolic", Pool { block: 16, ..square.clone() }, "f32[N,1,H,W,16]");
        add("f64", square.clone(), "f64[1,2,5,5]");
        add("f16", square, "f16[1,2,5,5]");
    }
    let square = Pool { strides: vec![2, 2], pads: vec![1, 1, 1, 1], ..pool(PoolKind::Max, &[3, 3]) };
    out.push(case("max.indices", Pool { indices: true, ..square.clone() }, &["f32[2,3,7,6]"]));
    out.push(case("max.indices.symbolic", Pool { indices: true, ..square.clone() }, &["f32[N,2,H,W]"]));
    out.push(case("max.i8", square.clone(), &["i8[1,2,6,6]"]));
    out.push(case("max.u8", square, &["u8[1,2,6,6]"]));
    out
}

fn sorted() -> Vec<Example> {
    let top = |axis, k: i64, largest| TopK { axis, k: Dim::Const(k), largest };
    let mut out: Vec<Example> = DType::ALL.iter().map(|d| case(d.name(), top(1, 3, true), &[&format!("{d}[2,7,2]")])).collect();
    out.extend([
        case("smallest", top(0, 4, false), &["f32[6,3]"]),
        case("sort", top(1, 33, true), &["f32[2,33]"]),
        case("ties", top(0, 9, false), &["i32[20]"]),
        case("edges", top(0, 11, true), &["f32[23]"]).values(0, Values::Edges),
        case("symbolic", TopK { axis: 1, k: Dim::sym("K"), largest: true }, &["f32[N,L]"]).binders(&["f32[K]"]),
        case("none", top(1, 0, true), &["f32[2,3]"]),
    ]);
    out
}
