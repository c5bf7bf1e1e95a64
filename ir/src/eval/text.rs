//! Reference values of operations on strings.

use super::elems::{Walk, broadcast_shape, broadcast_strides};
use crate::error::{Error, Result};
use crate::ops::text::{Case, StringNormalize, StringSplit};
use crate::scalar::Num;
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;
use regex::Regex;
use std::sync::Arc;

fn strings(x: &Tensor) -> Result<&[Arc<str>]> {
    x.texts().ok_or_else(|| Error::internal(format!("strings are wanted, found {}", x.ty())))
}

/// For each element of the broadcast of shapes, the positions in tensors of these shapes.
fn together(x: &[&Tensor]) -> Result<(Vec<usize>, Vec<Walk>)> {
    let shapes: Vec<&[usize]> = x.iter().map(|t| t.shape()).collect();
    let shape = broadcast_shape(&shapes)?;
    checked_elems(DType::Str, &shape)?;
    let walks = shapes.iter().map(|s| Walk::new(&shape, broadcast_strides(s, &shape), 0)).collect();
    Ok((shape, walks))
}

pub fn concat(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (shape, mut walks) = together(&[a, b])?;
    let (a, b) = (strings(a)?, strings(b)?);
    let [at_a, at_b] = &mut walks[..] else { return Err(Error::internal("two operands, two walks")) };
    Tensor::text(&shape, at_a.zip(at_b).map(|(i, j)| format!("{}{}", a[i], b[j]).into()).collect())
}

pub fn equal(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (shape, mut walks) = together(&[a, b])?;
    let (a, b) = (strings(a)?, strings(b)?);
    let [at_a, at_b] = &mut walks[..] else { return Err(Error::internal("two operands, two walks")) };
    Ok(Tensor::new(&shape, &at_a.zip(at_b).map(|(i, j)| a[i] == b[j]).collect::<Vec<bool>>()))
}

pub fn select(condition: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (shape, mut walks) = together(&[condition, a, b])?;
    let (a, b) = (strings(a)?, strings(b)?);
    let [at_c, at_a, at_b] = &mut walks[..] else { return Err(Error::internal("three operands, three walks")) };
    let one = |((c, i), j): ((usize, usize), usize)| if condition.num(c).as_bool() { a[i].clone() } else { b[j].clone() };
    Tensor::text(&shape, at_c.zip(at_a).zip(at_b).map(one).collect())
}

/// Pieces of one string.
fn pieces(op: &StringSplit, s: &str) -> Vec<Arc<str>> {
    let limit = usize::try_from(op.limit).unwrap_or(usize::MAX);
    if !op.delimiter.is_empty() {
        return s.splitn(limit.saturating_add(1), &*op.delimiter).map(Arc::from).collect();
    }
    let (mut rest, mut out) = (s.trim_start(), vec![]);
    while !rest.is_empty() {
        let end = rest.find(char::is_whitespace).filter(|_| out.len() < limit).unwrap_or(rest.len());
        out.push(rest[..end].into());
        rest = rest[end..].trim_start();
    }
    out
}

pub fn split(op: &StringSplit, x: &Tensor) -> Result<Vec<Tensor>> {
    let all: Vec<Vec<Arc<str>>> = strings(x)?.iter().map(|s| pieces(op, s)).collect();
    let width = all.iter().map(Vec::len).max().unwrap_or(0);
    let counts: Vec<i64> = all.iter().map(|p| p.len() as i64).collect();
    let shape = [x.shape(), &[width]].concat();
    checked_elems(DType::Str, &shape)?;
    let filled = all.into_iter().flat_map(|p| p.into_iter().chain(std::iter::repeat("".into())).take(width)).collect();
    Ok(vec![Tensor::text(&shape, filled)?, Tensor::new(x.shape(), &counts)])
}

pub fn normalize(op: &StringNormalize, x: &Tensor) -> Result<Tensor> {
    if x.shape().len() == 2 && x.shape()[0] != 1 {
        return Err(Error::input(format!("string_normalize takes [C] or [1,C], found {:?}", x.shape())));
    }
    let folded = |s: &str| if op.sensitive { s.to_string() } else { s.to_lowercase() };
    let stop: Vec<String> = op.stopwords.iter().map(|s| folded(s)).collect();
    let cased = |s: &Arc<str>| match op.case {
        Case::Keep => s.clone(),
        Case::Lower => s.to_lowercase().into(),
        Case::Upper => s.to_uppercase().into(),
    };
    let mut kept: Vec<Arc<str>> = strings(x)?.iter().filter(|s| !stop.contains(&folded(s))).map(cased).collect();
    if kept.is_empty() {
        kept.push("".into());
    }
    let shape = if x.shape().len() == 2 { vec![1, kept.len()] } else { vec![kept.len()] };
    Tensor::text(&shape, kept)
}

/// A pattern that matches whole strings.
pub fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(&format!(r"\A(?:{pattern})\z")).map_err(|e| Error::attribute(format!("`{pattern}` is no regular expression: {e}")))
}

pub fn matches(pattern: &str, x: &Tensor) -> Result<Tensor> {
    let regex = regex(pattern)?;
    Ok(Tensor::new(x.shape(), &strings(x)?.iter().map(|s| regex.is_match(s)).collect::<Vec<bool>>()))
}

pub fn rank(x: &Tensor) -> Result<Tensor> {
    let texts = strings(x)?;
    let mut different = texts.to_vec();
    different.sort();
    different.dedup();
    let place = |s: &Arc<str>| different.partition_point(|d| d < s) as i64;
    Ok(Tensor::new(x.shape(), &texts.iter().map(place).collect::<Vec<i64>>()))
}

/// Conversion from or to strings.
pub fn cast(x: &Tensor, to: DType) -> Result<Tensor> {
    match (x.texts(), to) {
        (Some(_), DType::Str) => Ok(x.clone()),
        (None, _) => Tensor::text(x.shape(), (0..x.elems()).map(|i| printed(x.num(i), x.dtype()).into()).collect()),
        (Some(texts), to) => {
            let numbers = texts.iter().map(|s| parsed(s, to)).collect::<Result<Vec<Num>>>()?;
            super::elems::encode(to, x.shape(), numbers.into_iter())
        }
    }
}

fn parsed(s: &str, to: DType) -> Result<Num> {
    let wrong = || Error::input(format!("`{s}` is no {to}"));
    let s = s.trim();
    if to == DType::Bool {
        return match s {
            "True" | "true" | "1" => Ok(Num::B(true)),
            "False" | "false" | "0" => Ok(Num::B(false)),
            _ => Err(wrong()),
        };
    }
    if to.is_unsigned_int() {
        return s.parse().map(Num::U).map_err(|_| wrong());
    }
    if to.is_int() {
        return s.parse().map(Num::I).map_err(|_| wrong());
    }
    // Straight to f32, so that it rounds once.
    if to == DType::F32 { s.parse::<f32>().map(|x| Num::F(x.into())) } else { s.parse().map(Num::F) }.map_err(|_| wrong())
}

/// A number as NumPy prints it: the fewest digits that read back, an exponent below 1e-4 and from 1e16 on.
fn printed(n: Num, dtype: DType) -> String {
    match n {
        Num::B(b) => if b { "True" } else { "False" }.into(),
        Num::I(i) => i.to_string(),
        Num::U(u) => u.to_string(),
        Num::F(x) if x.is_nan() => "nan".into(),
        Num::F(x) if x.is_infinite() => if x > 0.0 { "inf" } else { "-inf" }.into(),
        Num::F(x) => {
            let exponent = if x == 0.0 { 0.0 } else { x.abs().log10().floor() };
            match dtype {
                DType::F64 if (-4.0..16.0).contains(&exponent) => format!("{x:?}"),
                DType::F64 => format!("{x:e}"),
                _ if (-4.0..16.0).contains(&exponent) => decimal(x as f32),
                _ => format!("{:e}", x as f32),
            }
        }
    }
}

/// Without an exponent, with a point.
fn decimal(x: f32) -> String {
    let s = format!("{x}");
    if s.contains('.') { s } else { s + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        let floats = Tensor::new(&[5], &[1f32, -0.5, 3.4e38, 1e-7, f32::NAN]);
        let text = cast(&floats, DType::Str).unwrap();
        assert_eq!(text.texts().unwrap().iter().map(|s| &**s).collect::<Vec<_>>(), ["1.0", "-0.5", "3.4e38", "1e-7", "nan"]);
        assert_eq!(cast(&text, DType::F32).unwrap().bytes(), floats.bytes());
        assert!(cast(&text, DType::I64).unwrap_err().message().contains("`1.0` is no i64"));
    }

    #[test]
    fn splitting_as_python_does() {
        let op = |delimiter: &str, limit| StringSplit { delimiter: delimiter.into(), limit, pieces: crate::Dim::sym("p") };
        let of = |op: &StringSplit, s: &str| pieces(op, s).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(&op("", -1), "  a b  c "), ["a", "b", "c"]);
        assert_eq!(of(&op("", 1), " a  b  c "), ["a", "b  c "]);
        assert_eq!(of(&op("-", -1), "a--b"), ["a", "", "b"]);
        assert!(of(&op("", -1), "").is_empty());
        assert_eq!(of(&op("-", -1), ""), [""]);
    }
}
