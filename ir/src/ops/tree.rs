//! Decision trees: the one operation of theirs that is no composition of others, the walk from a root to a leaf.

use super::{Class, Primitive, arity, same_dtype};
use crate::attrs::{op_struct, word_enum};
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

word_enum! {
    /// How a node compares its feature with its value.
    Test {
        /// Each node says itself, by the number of the test in this list (1 is the first that follows).
        Mixed "mixed",
        LessEqual "le", Less "lt", GreaterEqual "ge", Greater "gt", Equal "eq", NotEqual "ne",
    }
}

op_struct! {
    /// For each row of `x [rows,features]` and each root, the number of the leaf that the walk from there ends in, `i64 [rows,roots]`.
    ///
    /// Operands: x; per node the feature (`i64`), the value that it is compared with (x's type), the test (`u8`, read where `test`
    /// is mixed), the next node where the test holds, and where not (`i64`), whether it holds for NaN (`bool`); roots (`i64`).
    /// A node whose first successor is 0 is a leaf, whose number is its second. A successor comes after its node.
    TreeLeaves { test: Test = Test::Mixed }
}

impl Test {
    /// The test with this number.
    pub fn of(code: u64) -> Option<Test> {
        Test::ALL.get(usize::try_from(code).ok()?).copied().filter(|t| *t != Test::Mixed)
    }

    fn holds(self, x: f64, value: f64) -> bool {
        match self {
            Test::Mixed => false,
            Test::LessEqual => x <= value,
            Test::Less => x < value,
            Test::GreaterEqual => x >= value,
            Test::Greater => x > value,
            Test::Equal => x == value,
            Test::NotEqual => x != value,
        }
    }
}

impl Primitive for TreeLeaves {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("tree_leaves", x, 8, 8)?;
        let ranks = [2, 1, 1, 1, 1, 1, 1, 1];
        let kinds = [None, Some(DType::I64), None, Some(DType::U8), Some(DType::I64), Some(DType::I64), Some(DType::Bool), Some(DType::I64)];
        for (i, t) in x.iter().enumerate() {
            if t.rank() != ranks[i] || kinds[i].is_some_and(|k| k != t.dtype) || ((2..7).contains(&i) && t.shape != x[1].shape) {
                return Err(Error::shape(format!("tree_leaves: operand {i} does not fit, found {t}")));
            }
        }
        if !matches!(same_dtype("tree_leaves", &[&x[0], &x[2]])?, DType::F32 | DType::F64) {
            return Err(Error::dtype(format!("tree_leaves takes f32 or f64, found {}", x[0])));
        }
        Ok(vec![Type::new(DType::I64, [x[0].shape[0].clone(), x[7].shape[0].clone()])])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        let ints = |i: usize| x[i].to_ints().unwrap_or_default();
        let (feature, test, yes, no, missing, roots) = (ints(1), ints(3), ints(4), ints(5), ints(6), ints(7));
        let (values, data) = (x[2].to_f64s(), x[0].to_f64s());
        let outside = |what: &str, i: i64| Error::input(format!("tree_leaves: there is no {what} {i}"));
        let (rows, width) = (x[0].shape()[0], x[0].shape()[1]);
        let mut leaves = Vec::with_capacity(rows * roots.len());
        for row in (0..rows).map(|i| &data[i * width..(i + 1) * width]) {
            for root in &roots {
                let mut node = usize::try_from(*root).ok().filter(|n| *n < yes.len()).ok_or_else(|| outside("node", *root))?;
                while yes[node] != 0 {
                    let f = usize::try_from(feature[node]).ok().and_then(|f| row.get(f)).ok_or_else(|| outside("feature", feature[node]))?;
                    let test = if self.test == Test::Mixed { Test::of(test[node] as u64) } else { Some(self.test) };
                    let holds = test.is_some_and(|t| t.holds(*f, values[node])) || (f.is_nan() && missing[node] != 0);
                    let next = if holds { yes[node] } else { no[node] };
                    node = usize::try_from(next).ok().filter(|n| (node + 1..yes.len()).contains(n)).ok_or_else(|| outside("next node", next))?;
                }
                leaves.push(no[node]);
            }
        }
        Ok(vec![Tensor::new(&[rows, roots.len()], &leaves)])
    }
}
