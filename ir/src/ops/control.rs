//! Control flow: nodes that hold regions. A region's inputs are its arguments followed by the captured values, which are the last
//! operands of the node; it sees nothing else from outside.

use super::{Class, Primitive, arity};
use crate::attrs::op_struct;
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

op_struct! {
    /// Operands: condition (`bool`, one element), captures. Regions: then, else; both take the captures.
    If {}
}

op_struct! {
    /// Operands: trip count (`i64` scalar), condition (`bool` scalar), carried values, captures. The region takes the iteration
    /// (`i64` scalar), the carried values and the captures, and gives the next condition, the next carried values, and one
    /// element of each collected result. Results: final carried values, collected values stacked along a new first axis whose
    /// length `trips` is bound by the run.
    Loop { carried: usize, trips: Dim }
}

op_struct! {
    /// Operands: initial states, scanned tensors (along axis 0, which all share), captures. The region takes the states, one slice
    /// of each scanned tensor and the captures, and gives the next states and one slice of each collected result.
    /// Results: final states, collected results stacked along a new first axis. `reverse` scans from the end (and fills from it).
    Scan { states: usize, scanned: usize, reverse: bool = false }
}

fn region_types(op: &str, region: &Graph, args: &[Type]) -> Result<Vec<Type>> {
    if region.inputs.len() != args.len() {
        return Err(Error::arity(format!("{op}: the region takes {} values, {} are given", region.inputs.len(), args.len())));
    }
    for (id, arg) in region.inputs.iter().zip(args) {
        let want = &region.node(*id).types[0];
        if want.dtype != arg.dtype || want.rank() != arg.rank() {
            return Err(Error::dtype(format!("{op}: the region's input is {want}, {arg} is given")));
        }
        if want.shape.iter().zip(&arg.shape).any(|(w, a)| w != a && w.as_const().is_some() && a.as_const().is_some()) {
            return Err(Error::shape(format!("{op}: the region's input is {want}, {arg} is given")));
        }
    }
    Ok(region.outputs.iter().map(|o| region.ty(o.value).clone()).collect())
}

impl Primitive for If {
    fn class(&self) -> Class {
        Class::Control
    }
    fn infer(&self, x: &[Type], regions: &[Graph]) -> Result<Vec<Type>> {
        arity("if", x, 1, usize::MAX)?;
        let [yes, no] = regions else { return Err(Error::arity("if takes two regions")) };
        if x[0].dtype != DType::Bool || x[0].elems().as_const().is_some_and(|n| n != 1) {
            return Err(Error::dtype(format!("if: the condition must be one bool, found {}", x[0])));
        }
        let (a, b) = (region_types("if", yes, &x[1..])?, region_types("if", no, &x[1..])?);
        if a.len() != b.len() || a.iter().zip(&b).any(|(a, b)| a != b) {
            return Err(Error::shape(format!("if: the branches give {a:?} and {b:?}")));
        }
        Ok(a)
    }
    fn eval(&self, _: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::region_op("if")
    }
}

impl Primitive for Loop {
    fn class(&self) -> Class {
        Class::Control
    }
    fn infer(&self, x: &[Type], regions: &[Graph]) -> Result<Vec<Type>> {
        arity("loop", x, 2 + self.carried, usize::MAX)?;
        let [body] = regions else { return Err(Error::arity("loop takes one region")) };
        let args: Vec<Type> = std::iter::once(Type::new(DType::I64, vec![])).chain(x[2..].iter().cloned()).collect();
        let y = region_types("loop", body, &args)?;
        if y.len() < 1 + self.carried {
            return Err(Error::arity(format!("loop: the region gives {} values, a condition and {} carried are needed", y.len(), self.carried)));
        }
        let stacked = |t: &Type| t.with_shape(std::iter::once(self.trips.clone()).chain(t.shape.iter().cloned()).collect());
        Ok(y[1..1 + self.carried].iter().cloned().chain(y[1 + self.carried..].iter().map(stacked)).collect())
    }
    fn eval(&self, _: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::region_op("loop")
    }
}

impl Primitive for Scan {
    fn class(&self) -> Class {
        Class::Control
    }
    fn infer(&self, x: &[Type], regions: &[Graph]) -> Result<Vec<Type>> {
        arity("scan", x, (self.states + self.scanned).max(1), usize::MAX)?;
        let [body] = regions else { return Err(Error::arity("scan takes one region")) };
        let (s, n) = (self.states, self.scanned);
        let Some(trips) = x.get(s).and_then(|t| t.shape.first()).cloned().filter(|_| n > 0) else {
            return Err(Error::shape("scan needs a scanned tensor of at least one axis"));
        };
        let args: Vec<Type> = x
            .iter()
            .enumerate()
            .map(|(i, t)| if (s..s + n).contains(&i) { t.with_shape(t.shape.get(1..).unwrap_or_default().to_vec()) } else { t.clone() })
            .collect();
        let y = region_types("scan", body, &args)?;
        if y.len() < s {
            return Err(Error::arity(format!("scan: the region gives {} values, {s} states are needed", y.len())));
        }
        let stacked = |t: &Type| t.with_shape(std::iter::once(trips.clone()).chain(t.shape.iter().cloned()).collect());
        Ok(y[..s].iter().cloned().chain(y[s..].iter().map(stacked)).collect())
    }
    fn eval(&self, _: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::region_op("scan")
    }
}
