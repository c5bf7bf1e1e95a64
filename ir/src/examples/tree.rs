//! Walks through two trees of three and five nodes.

use super::{Example, Values, case};
use crate::ops::tree::{Test, TreeLeaves};
use crate::tensor::Tensor;

pub(super) fn examples() -> Vec<Example> {
    let given = |e: Example, codes: &[u8; 8]| {
        let ints = |v: &[i64]| Values::Given(Tensor::new(&[v.len()], v));
        e.values(1, ints(&[0, 0, 0, 1, 2, 0, 0, 0]))
            .values(3, Values::Given(Tensor::new(&[8], codes)))
            .values(4, ints(&[1, 0, 0, 4, 5, 0, 0, 0]))
            .values(5, ints(&[2, 0, 1, 7, 6, 2, 3, 4]))
            .values(7, ints(&[0, 3]))
    };
    let typed = |d: &str, name: &str, rows: &str, test: Test| {
        let (x, values) = (format!("{d}[{rows},3]"), format!("{d}[8]"));
        let types = [&x, "i64[8]", &values, "u8[8]", "i64[8]", "i64[8]", "bool[8]", "i64[2]"];
        given(case(name, TreeLeaves { test }, &types), &[1, 0, 0, 4, 6, 0, 0, 0]).values(0, Values::Edges)
    };
    let mut out = vec![
        typed("f32", "mixed", "9", Test::Mixed),
        typed("f64", "mixed_f64", "5", Test::Mixed),
        typed("f32", "symbolic", "N", Test::LessEqual),
        typed("f32", "many", "700", Test::Less),
    ];
    out.extend([Test::GreaterEqual, Test::Greater, Test::Equal, Test::NotEqual].map(|t| typed("f32", t.word(), "6", t)));
    out
}
