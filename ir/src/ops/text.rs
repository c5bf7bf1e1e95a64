//! Operations that look into strings. They run on the host: a compiled program has no strings.

use super::{Class, Primitive, arity};
use crate::attrs::{op_struct, word_enum};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{Env, text};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type, broadcast};
use std::sync::Arc;

/// An error unless there is one operand, of strings.
fn strings(op: &str, x: &[Type], n: usize) -> Result<()> {
    arity(op, x, n, n)?;
    match x.iter().find(|t| t.dtype != DType::Str) {
        Some(t) => Err(Error::dtype(format!("{op} takes strings, found {t}"))),
        None => Ok(()),
    }
}

fn symbol(op: &str, d: &Dim) -> Result<()> {
    if d.as_sym().is_some() { Ok(()) } else { Err(Error::attribute(format!("{op}: the number of results is a symbol, found {d}"))) }
}

op_struct! {
    /// The strings of both operands one after the other, with broadcasting.
    StringConcat {}
}

impl Primitive for StringConcat {
    fn class(&self) -> Class {
        Class::Host
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        strings("string_concat", x, 2)?;
        Ok(vec![Type::new(DType::Str, broadcast(&[&x[0].shape, &x[1].shape])?)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        text::concat(&x[0], &x[1]).map(|t| vec![t])
    }
}

op_struct! {
    /// Pieces of each string along a new last axis, filled up with empty strings to the largest number of them, `pieces`, a symbol bound by
    /// the run; and each string's number of pieces. An empty delimiter stands for any whitespace; `limit` cuts at most (below 0: all).
    StringSplit { delimiter: Arc<str>, limit: i64 = -1, pieces: Dim }
}

impl Primitive for StringSplit {
    fn class(&self) -> Class {
        Class::Host
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        strings("string_split", x, 1)?;
        symbol("string_split", &self.pieces)?;
        let shape = x[0].shape.iter().cloned().chain([self.pieces.clone()]).collect();
        Ok(vec![x[0].with_shape(shape), x[0].with_dtype(DType::I64)])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let y = text::split(self, &x[0])?;
        if let (Some(symbol), Some(n)) = (self.pieces.as_sym(), y[0].shape().last()) {
            env.bind(symbol, *n as i64)?;
        }
        Ok(y)
    }
}

word_enum! {
    /// What happens to letters.
    Case { Keep "keep", Lower "lower", Upper "upper" }
}

op_struct! {
    /// The strings of a vector, or of a matrix of one row, that are no `stopwords`, in another case. One empty string where none is left.
    /// Their number `kept` is a symbol bound by the run.
    StringNormalize { case: Case = Case::Keep, sensitive: bool = false, stopwords: Vec<Arc<str>>, kept: Dim }
}

impl Primitive for StringNormalize {
    fn class(&self) -> Class {
        Class::Host
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        strings("string_normalize", x, 1)?;
        symbol("string_normalize", &self.kept)?;
        match &x[0].shape[..] {
            [_] => Ok(vec![x[0].with_shape(vec![self.kept.clone()])]),
            [one, _] if one.is(1) || one.as_const().is_none() => Ok(vec![x[0].with_shape(vec![Dim::Const(1), self.kept.clone()])]),
            _ => Err(Error::shape(format!("string_normalize takes [C] or [1,C], found {}", x[0]))),
        }
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let y = text::normalize(self, &x[0])?;
        if let (Some(symbol), Some(n)) = (self.kept.as_sym(), y.shape().last()) {
            env.bind(symbol, *n as i64)?;
        }
        Ok(vec![y])
    }
}

op_struct! {
    /// How many different strings of the tensor come before each, in the order of their bytes: `i64`, equal where strings are.
    StringRank {}
}

impl Primitive for StringRank {
    fn class(&self) -> Class {
        Class::Host
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        strings("string_rank", x, 1)?;
        Ok(vec![x[0].with_dtype(DType::I64)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        text::rank(&x[0]).map(|t| vec![t])
    }
}

op_struct! {
    /// Whether each string as a whole matches a regular expression (RE2's syntax: no look-around, no back references).
    RegexMatch { pattern: Arc<str> }
}

impl Primitive for RegexMatch {
    fn class(&self) -> Class {
        Class::Host
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        strings("regex_match", x, 1)?;
        text::regex(&self.pattern)?;
        Ok(vec![x[0].with_dtype(DType::Bool)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        text::matches(&self.pattern, &x[0]).map(|t| vec![t])
    }
}
