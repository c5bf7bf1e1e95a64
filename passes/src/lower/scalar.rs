//! Scalar pieces that loops share: accumulators, comparisons that know NaN, activations.

use super::loops::Loops;
use nnc_ir::builder::expansion;
use nnc_ir::error::{Error, Result};
use nnc_ir::kernel::{ExprId, VarId};
use nnc_ir::ops::composite::activation::{Act, Activation};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::scalar::Num;
use nnc_ir::{DType, Op, ScalarFn, Type};

/// The type that sums and products of `d` are taken in: f32 for narrower floats.
pub fn wide(d: DType) -> DType {
    match d {
        DType::F16 | DType::BF16 => DType::F32,
        d if d.is_small_float() => DType::F32,
        d => d,
    }
}

/// The function that combines two elements.
pub fn combine(kind: ReduceKind, d: DType) -> ScalarFn {
    match (kind, d) {
        (ReduceKind::Sum | ReduceKind::Max, DType::Bool) => ScalarFn::Or,
        (ReduceKind::Prod | ReduceKind::Min, DType::Bool) => ScalarFn::And,
        (ReduceKind::Sum, _) => ScalarFn::Add,
        (ReduceKind::Prod, _) => ScalarFn::Mul,
        (ReduceKind::Max, _) => ScalarFn::Max,
        (ReduceKind::Min, _) => ScalarFn::Min,
    }
}

/// What an empty reduction gives.
pub fn neutral(kind: ReduceKind, d: DType) -> Num {
    match kind {
        ReduceKind::Sum => Num::F(0.0).cast(d),
        ReduceKind::Prod => Num::F(1.0).cast(d),
        ReduceKind::Max => Num::least(d),
        ReduceKind::Min => Num::greatest(d),
    }
}

impl Loops {
    /// A local that starts as `kind`'s neutral element.
    pub fn accumulator(&mut self, kind: ReduceKind, d: DType) -> VarId {
        let start = self.literal(neutral(kind, d), d);
        self.set_new(start)
    }

    /// `acc = acc (kind) x`.
    pub fn accumulate(&mut self, acc: VarId, kind: ReduceKind, x: ExprId) {
        let d = self.dtype(x);
        let a = self.var(acc);
        let sum = self.map(combine(kind, d), &[a, x]);
        self.set(acc, sum);
    }

    /// `acc += a * b`, operands widened to the accumulator's type.
    pub fn multiply_add(&mut self, acc: VarId, a: ExprId, b: ExprId) {
        let v = self.var(acc);
        let d = self.dtype(v);
        let (a, b) = (self.cast(d, a), self.cast(d, b));
        let (product, sum) = if d == DType::Bool { (ScalarFn::And, ScalarFn::Or) } else { (ScalarFn::Mul, ScalarFn::Add) };
        let p = self.map(product, &[a, b]);
        let s = self.map(sum, &[v, p]);
        self.set(acc, s);
    }

    /// Whether `a` comes before `b` in the order of `kind` (max: larger first); a NaN before all numbers, or behind them.
    pub fn precedes(&mut self, kind: ReduceKind, a: ExprId, b: ExprId, nan_first: bool) -> ExprId {
        let d = self.dtype(a);
        let (a, b) = if d == DType::Bool { (self.cast(DType::U8, a), self.cast(DType::U8, b)) } else { (a, b) };
        let before = self.map(if kind == ReduceKind::Min { ScalarFn::Less } else { ScalarFn::Greater }, &[a, b]);
        if !d.is_float() {
            return before;
        }
        let (nan, number) = if nan_first { (a, b) } else { (b, a) };
        let (nan, number) = (self.map(ScalarFn::IsNan, &[nan]), self.map(ScalarFn::IsNan, &[number]));
        let number = self.map(ScalarFn::Not, &[number]);
        let by_nan = self.map(ScalarFn::And, &[nan, number]);
        self.map(ScalarFn::Or, &[before, by_nan])
    }

    /// An activation of a scalar, as its expansion defines it.
    pub fn activation(&mut self, act: Act, x: ExprId) -> Result<ExprId> {
        if let Act::Fn(f) = act {
            return Ok(self.map(f, &[x]));
        }
        let g = expansion(&Op::from(Activation { act }), &[Type::of(self.dtype(x), &[])])?;
        let mut values: Vec<Option<ExprId>> = vec![None; g.id_bound()];
        for id in g.order() {
            let node = g.node(id);
            let args: Option<Vec<ExprId>> = node.operands.iter().map(|o| values[o.node.0 as usize]).collect();
            let args = args.ok_or_else(|| Error::internal("an activation's operand is missing"))?;
            let value = match &node.op {
                Op::Input => self.bind(x),
                Op::Const(c) => self.literal(c.0.num(0), c.0.dtype()),
                Op::Map(f) => {
                    let y = self.map(*f, &args);
                    self.bind(y)
                }
                op => return Err(Error::internal(format!("an activation is made of scalar functions, not of {}", op.name()))),
            };
            values[id.0 as usize] = Some(value);
        }
        values[g.outputs[0].value.node.0 as usize].ok_or_else(|| Error::internal("an activation has a result"))
    }
}
