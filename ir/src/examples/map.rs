//! Scalar functions on every element type of their domain, conversions between all pairs, sources.

use super::{Example, Values, case, dims};
use crate::dim::Dim;
use crate::ops::Op;
use crate::ops::map::{BitCast, Cast};
use crate::ops::source::{Const, Dims, Iota, ReadDims};
use crate::scalar::{Domain, ScalarFn};
use crate::tensor::Tensor;
use crate::types::DType;

pub(super) fn examples() -> Vec<Example> {
    ScalarFn::ALL.iter().flat_map(|f| scalar(*f)).chain(casts()).chain(bit_casts()).chain(sources()).collect()
}

fn scalar(f: ScalarFn) -> Vec<Example> {
    let mut out = vec![];
    let main = match f.domain() {
        Domain::Float | Domain::Number | Domain::Any => DType::F32,
        Domain::Int | Domain::Bits => DType::I32,
        Domain::Bool => DType::Bool,
    };
    let shift = matches!(f, ScalarFn::Shl | ScalarFn::Shr);
    let mut add = |name: &str, d: DType, shapes: [&str; 3]| {
        let mut operands: Vec<String> = shapes[..f.arity()].iter().map(|s| format!("{d}[{s}]")).collect();
        if f == ScalarFn::Where {
            operands[0] = format!("bool[{}]", shapes[0]);
        }
        let mut e = case(name, Op::Map(f), &operands.iter().map(String::as_str).collect::<Vec<_>>());
        if name.ends_with("edges") {
            e.values.fill(Values::Edges);
        }
        // What a shift by a negative number gives is not defined.
        out.push(if shift { e.values(1, Values::Range(0, 12)) } else { e });
    };
    for d in DType::ALL.into_iter().filter(|d| f.domain().contains(*d)) {
        add(d.name(), d, ["2,3,4", "3,1", "2,1,4"]);
        if d != DType::Bool {
            add(&format!("{d}.edges"), d, ["61", "61", "61"]);
        }
    }
    add("scalars", main, ["", "", ""]);
    add("long", main, ["7,37", "7,37", "7,37"]);
    add("symbolic", main, ["N,4", "4", "N,1"]);
    add("empty", main, ["0,3", "3", "1"]);
    out
}

fn casts() -> Vec<Example> {
    let pairs = DType::ALL.into_iter().flat_map(|from| DType::ALL.into_iter().map(move |to| (from, to)));
    let cast = |(from, to): (DType, DType)| {
        let e = case(&format!("{from}.{to}"), Cast { to }, &[&format!("{from}[N,13]")]);
        match (from.is_float(), to.is_int()) {
            // Floats that do not fit the integer are not defined; negative ones fit no unsigned type.
            (true, true) if to.is_unsigned_int() => e.values(0, Values::Range(0, 100)),
            (true, true) => e.values(0, Values::Range(-100, 100)),
            _ => e.values(0, Values::Edges),
        }
    };
    pairs.map(cast).collect()
}

fn bit_casts() -> Vec<Example> {
    let pairs = DType::ALL.into_iter().flat_map(|from| DType::ALL.into_iter().map(move |to| (from, to)));
    // Signed integers of less than a byte lie in one with their sign, others without.
    let signed = |d: DType| d.is_signed_int() && d.bits() < 8;
    let same_width = pairs.filter(move |(from, to)| from.bits() == to.bits() && *to != DType::Bool && (from == to || !signed(*from) && !signed(*to)));
    let cast = |(from, to): (DType, DType)| case(&format!("{from}.{to}"), BitCast { to }, &[&format!("{from}[N,13]")]);
    same_width.map(cast).collect()
}

fn sources() -> Vec<Example> {
    let weights = Tensor::new(&[2, 3], &[1f32, -2.5, 3.0, 0.125, -0.0, 6.0]);
    let zeros = Tensor::splat(DType::F32, vec![64, 64], vec![0; 4].into()).expect("small");
    let n = Dim::sym("N");
    vec![
        case("matrix", Const(weights), &[]),
        case("splat", Const(zeros), &[]),
        case("empty", Const(Tensor::new::<i64>(&[0], &[])), &[]),
        case("constants", Dims { values: dims("3,4"), scalar: false }, &[]),
        case("symbolic", Dims { values: vec![n.clone(), n.clone() * n.clone() + Dim::Const(1)], scalar: false }, &[]).binders(&["f32[N]"]),
        case("scalar", Dims { values: vec![n.floor_div(&Dim::Const(2))], scalar: true }, &[]).binders(&["f32[N]"]),
        case("vector", Iota { shape: dims("5"), axis: 0 }, &[]),
        case("columns", Iota { shape: dims("2,N,3"), axis: 1 }, &[]).binders(&["f32[N]"]),
        case("two", ReadDims { symbols: dims("A,B") }, &["i64[2]"]).values(0, Values::Range(0, 9)),
        case("one", ReadDims { symbols: dims("A") }, &["i64[]"]).values(0, Values::Range(0, 9)),
    ]
}
