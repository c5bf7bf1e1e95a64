//! Random words.

use super::{Example, Values, case};
use crate::dim::Dim;
use crate::ops::random::Random;

pub(super) fn examples() -> Vec<Example> {
    let words = |seed: i64, blocks: Dim| Random { seed, blocks };
    vec![
        case("fixed", words(7, Dim::Const(5)), &["i64[]"]),
        case("many", words(-3, Dim::Const(700)), &["i64[1]"]).values(0, Values::Range(-1 << 40, 1 << 40)),
        case("symbolic", words(i64::MAX, Dim::sym("N") * Dim::Const(2)), &["i64[]"]).binders(&["f32[N]"]),
        case("none", words(0, Dim::Const(0)), &["i64[]"]),
    ]
}
