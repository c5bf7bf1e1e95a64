//! Gathering, scattering, indices of non-zeros.

use super::{Example, Values, case, index};
use crate::dim::Dim;
use crate::ops::index::{Gather, GatherElements, GatherNd, NonZero, ScatterElements, ScatterKind, ScatterNd};
use crate::types::DType;

pub(super) fn examples() -> Vec<Example> {
    [gathers(), scatters(), found()].concat()
}

fn gathers() -> Vec<Example> {
    let nd = |batch_dims| GatherNd { batch_dims };
    let mut out: Vec<Example> = DType::ALL
        .iter()
        .flat_map(|d| {
            let x = format!("{d}[5,3]");
            [
                case(d.name(), Gather { axis: 0 }, &[&x, "i64[4]"]).values(1, index(5)),
                case(d.name(), GatherElements { axis: 0 }, &[&x, "i64[2,3]"]).values(1, index(5)),
            ]
        })
        .collect();
    out.extend([
        case("narrow", Gather { axis: 1 }, &["f32[2,5,3]", "i32[2,2]"]).values(1, index(5)),
        case("one", Gather { axis: 0 }, &["f32[5,3]", "i64[]"]).values(1, index(5)),
        case("embedding", Gather { axis: 0 }, &["f32[11,8]", "i64[N,L]"]).values(1, Values::Range(0, 11)),
        case("none", Gather { axis: 0 }, &["f32[5,3]", "i64[0]"]).values(1, index(5)),
        case("narrow", GatherElements { axis: 1 }, &["f32[3,5]", "i32[2,7]"]).values(1, index(5)),
        case("symbolic", GatherElements { axis: 1 }, &["f32[N,5]", "i64[N,K]"]).values(1, index(5)),
        case("elements", nd(0), &["f32[3,3]", "i64[4,2]"]).values(1, index(3)),
        case("slices", nd(0), &["f32[3,4]", "i64[2,2,1]"]).values(1, index(3)),
        case("batch", nd(1), &["f32[2,3,4]", "i64[2,5,1]"]).values(1, index(3)),
        case("symbolic", nd(0), &["f32[4,W]", "i32[N,1]"]).values(1, index(4)),
        case("i8", nd(0), &["i8[3,3]", "i64[4,2]"]).values(1, index(3)),
    ]);
    out
}

fn scatters() -> Vec<Example> {
    let mut out = vec![];
    for reduction in ScatterKind::ALL.iter().copied() {
        for d in [DType::F32, DType::F64, DType::F16, DType::I32, DType::I64, DType::U8] {
            let name = format!("{}.{d}", reduction.word());
            let at = |shape: &str| format!("{d}[{shape}]");
            out.push(case(&name, ScatterElements { axis: 1, reduction }, &[&at("3,5"), "i64[2,4]", &at("2,4")]).values(1, index(5)));
            out.push(case(&name, ScatterNd { reduction }, &[&at("4,3"), "i64[5,2]", &at("5")]).values(1, index(3)));
        }
    }
    let (add, set) = (ScatterKind::Add, ScatterKind::Set);
    out.extend([
        case("rows", ScatterElements { axis: 0, reduction: set }, &["f32[5,3]", "i32[2,3]", "f32[2,3]"]).values(1, index(5)),
        case("symbolic", ScatterElements { axis: 1, reduction: add }, &["f32[N,5]", "i64[N,K]", "f32[N,K]"]).values(1, index(5)),
        case("slices", ScatterNd { reduction: set }, &["f32[5,3]", "i64[2,1]", "f32[2,3]"]).values(1, index(5)),
        case("symbolic", ScatterNd { reduction: add }, &["f32[5,W]", "i64[N,1]", "f32[N,W]"]).values(1, index(5)),
    ]);
    out
}

fn found() -> Vec<Example> {
    let op = NonZero { count: Dim::sym("found") };
    vec![
        case("f32", op.clone(), &["f32[3,5]"]).values(0, Values::Edges),
        case("bool", op.clone(), &["bool[2,3,4]"]),
        case("i64", op.clone(), &["i64[9]"]).values(0, Values::Range(0, 2)),
        case("scalar", op.clone(), &["u8[]"]),
        case("symbolic", op, &["i32[N,L]"]).values(0, Values::Range(0, 2)),
    ]
}
