//! THE TABLE of ONNX operators: rows that turn a [`Call`] into tensor operations. Tests, `nnc list-ops` and the support list loop over it.

mod activation;
mod attention;
mod axes;
mod control;
mod convert;
mod det;
mod detect;
mod einsum;
mod experimental;
mod fft;
mod image;
mod index;
mod loss;
mod math;
mod matmul;
mod ml;
mod movement;
mod norm;
mod quant;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod sample;
mod sequence;
mod shape;
mod signal;
mod source;
mod text;
mod training;
mod unique;
mod window;

use crate::onnx::call::{Call, Item};
use nnc_ir::{Error, Result, V};
use std::collections::HashMap;
use std::sync::OnceLock;

pub use training::GRADIENT;

/// Turns a call into operations; returns as many results as the operator has.
#[derive(Clone, Copy)]
pub enum Build {
    /// Of an operator that knows tensors only.
    Tensors(for<'g> fn(&Call<'g>) -> Result<Vec<V<'g>>>),
    /// Of one that takes or gives sequences and optionals.
    Items(for<'g> fn(&Call<'g>) -> Result<Vec<Item<V<'g>>>>),
}

/// One version of an operator.
pub struct Row {
    /// Empty for ai.onnx.
    pub domain: &'static str,
    pub name: &'static str,
    /// First version of the operator set that has this meaning.
    pub since: i64,
    /// Last version that has it; `i64::MAX` where none ends it. A later row of the same name takes over before.
    pub until: i64,
    /// Fewest and most inputs.
    pub inputs: (usize, usize),
    pub build: Build,
}

impl Row {
    /// The operator is gone after `last`.
    const fn until(mut self, last: i64) -> Row {
        self.until = last;
        self
    }

    const fn domain(mut self, domain: &'static str) -> Row {
        self.domain = domain;
        self
    }
}

const fn op(name: &'static str, since: i64, inputs: (usize, usize), build: for<'g> fn(&Call<'g>) -> Result<Vec<V<'g>>>) -> Row {
    Row { domain: "", name, since, until: i64::MAX, inputs, build: Build::Tensors(build) }
}

/// An operator that takes or gives sequences and optionals.
const fn items(name: &'static str, since: i64, inputs: (usize, usize), build: for<'g> fn(&Call<'g>) -> Result<Vec<Item<V<'g>>>>) -> Row {
    Row { domain: "", name, since, until: i64::MAX, inputs, build: Build::Items(build) }
}

/// Any number of inputs from the first on.
const MANY: usize = usize::MAX;

/// Rows by family. Of an operator's rows the last whose `since` is not above the model's opset counts.
pub const TABLE: &[&[Row]] = &[
    activation::ROWS,
    attention::ROWS,
    control::ROWS,
    convert::ROWS,
    det::ROWS,
    detect::ROWS,
    einsum::ROWS,
    experimental::ROWS,
    image::ROWS,
    index::ROWS,
    loss::ROWS,
    math::ROWS,
    matmul::ROWS,
    ml::features::ROWS,
    ml::linear::ROWS,
    ml::map::ROWS,
    ml::svm::ROWS,
    ml::tree::ROWS,
    movement::ROWS,
    norm::ROWS,
    quant::ROWS,
    random::ROWS,
    recurrent::ROWS,
    reduce::ROWS,
    resize::ROWS,
    sample::ROWS,
    sequence::ROWS,
    shape::ROWS,
    signal::ROWS,
    source::ROWS,
    text::ROWS,
    training::ROWS,
    unique::ROWS,
    window::ROWS,
];

/// The newest version of ai.onnx whose operators are known.
pub const NEWEST_OPSET: i64 = 28;

pub fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().flat_map(|family| family.iter())
}

/// All operators of a name, in the order of the table.
fn called(name: &str) -> &'static [&'static Row] {
    static INDEX: OnceLock<HashMap<&str, Vec<&Row>>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        rows().for_each(|r| index.entry(r.name).or_default().push(r));
        index
    });
    index.get(name).map_or(&[], Vec::as_slice)
}

/// The row that an operator of an opset means.
pub fn find(domain: &str, name: &str, opset: i64) -> Result<&'static Row> {
    let mut versions = called(name).iter().copied().filter(|r| r.domain == domain).peekable();
    if versions.peek().is_none() {
        let error = Error::unsupported(format!("operator {} is not supported", qualified(domain, name)));
        let near = near(domain, name);
        return Err(if near.is_empty() { error } else { error.note(format!("similar names: {}", near.join(", "))) });
    }
    let (mut best, mut first): (Option<&Row>, i64) = (None, i64::MAX);
    for r in versions {
        first = first.min(r.since);
        if r.since <= opset && best.is_none_or(|b| b.since <= r.since) {
            best = Some(r);
        }
    }
    match best {
        Some(r) if opset <= r.until => Ok(r),
        Some(r) => Err(Error::unsupported(format!("operator {name} ended with opset {}, the model uses {opset}", r.until))),
        None => Err(Error::unsupported(format!("operator {name} is supported from opset {first} on, the model uses {opset}"))),
    }
}

/// Builds a call: finds its row, checks the number of inputs, and refuses attributes that the row does not read, for a meaning that
/// is not known must not be dropped. Returns at least as many values as outputs are declared.
pub fn build<'g>(call: &Call<'g>) -> Result<Vec<Item<V<'g>>>> {
    let row = find(&call.domain, &call.op, call.opset)?;
    let given = call.inputs.len() - call.inputs.iter().rev().take_while(|x| matches!(x, Item::Absent)).count();
    let (min, max) = row.inputs;
    if given < min || given > max {
        let want = if max == MANY {
            format!("at least {min}")
        } else if min == max {
            min.to_string()
        } else {
            format!("{min} to {max}")
        };
        return Err(call.as_written(Error::arity(format!("{} takes {want} inputs, {given} are given", call.op))));
    }
    let y = match row.build {
        Build::Tensors(build) => {
            if let Some(i) = call.inputs.iter().position(|x| matches!(x, Item::List(_) | Item::Map(_))) {
                return Err(Error::dtype(format!("input {i} is {}; {} takes tensors", call.inputs[i].kind(), call.op)));
            }
            build(call).map(|y| y.into_iter().map(Item::Tensor).collect())
        }
        Build::Items(build) => build(call),
    };
    let y = y.map_err(|e| call.with_open_sizes(e))?;
    let unread = call.unread();
    if !unread.is_empty() {
        let names: Vec<String> = unread.iter().map(|n| format!("`{n}`")).collect();
        let e = Error::unsupported(format!("{} of opset {} has no attribute {}", call.op, call.opset, names.join(", ")));
        return Err(call.as_written(e));
    }
    if y.len() < call.outputs.len() {
        return Err(call.as_written(Error::arity(format!("{} has {} outputs, {} are declared", call.op, y.len(), call.outputs.len()))));
    }
    Ok(y)
}

/// The newest version of a domain's operators that is known.
pub fn newest(domain: &str) -> Option<i64> {
    let since = rows().filter(|r| r.domain == domain).map(|r| r.since).max()?;
    Some(if domain.is_empty() { NEWEST_OPSET } else { since })
}

/// Whether the operator has bodies, and looks into them even where its operands are poison.
pub fn holds_bodies(name: &str) -> bool {
    control::ROWS.iter().any(|r| r.name == name) || name == sequence::MAP
}

/// Whether the operator draws random numbers.
pub fn draws(name: &[u8]) -> bool {
    random::ROWS.iter().any(|r| r.name.as_bytes() == name)
}

pub fn qualified(domain: &str, name: &str) -> String {
    if domain.is_empty() { name.to_string() } else { format!("{domain}::{name}") }
}

/// At most three known names that differ little from `name`, nearest first.
fn near(domain: &str, name: &str) -> Vec<&'static str> {
    let wanted = name.to_lowercase();
    let mut names: Vec<(usize, &str)> = rows()
        .filter(|r| r.domain == domain || r.name == name)
        .map(|r| (distance(&wanted, &r.name.to_lowercase()), r.name))
        .filter(|(d, n)| *d <= n.len() / 3)
        .collect();
    names.sort();
    names.dedup();
    names.into_iter().take(3).map(|(_, n)| n).collect()
}

/// Edit distance of two short names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
