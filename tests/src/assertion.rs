//! `// run:` lines of filetests: what a model gives on what.
//!
//! ```text
//! // run: f(ones, [1, 2, 3]) == (fill(8), iota)
//! // run N=2, K=3: f(random(1), 0.5) == zeros
//! // run: f([9]) fails "outside"
//! ```
//! A value is `zeros`, `ones`, `fill(v)` or a number, `iota`, `iota(first, step)`, `random(seed)` or a list, nested as one likes; it takes type and
//! shape from the input or result that it stands for. `N=2` gives symbolic sizes of inputs.

use nnc_ir::eval::Env;
use nnc_ir::examples::{Values, random_tensor};
use nnc_ir::scalar::Num;
use nnc_ir::{DType, Graph, Tensor};

/// One assertion.
#[derive(Debug, PartialEq)]
pub struct Assertion {
    pub sizes: Vec<(String, i64)>,
    pub inputs: Vec<Value>,
    pub expected: Expected,
}

#[derive(Debug, PartialEq)]
pub enum Expected {
    Results(Vec<Value>),
    /// An error whose text holds this.
    Failure(String),
}

#[derive(Debug, PartialEq)]
pub enum Value {
    Fill(f64),
    Iota { first: f64, step: f64 },
    Random(u64),
    List(Vec<f64>),
}

/// The assertions of a text, in order.
pub fn assertions(text: &str) -> Result<Vec<Assertion>, String> {
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix("// run"));
    lines.map(|l| assertion(l).map_err(|e| format!("`// run{l}`: {e}"))).collect()
}

fn assertion(line: &str) -> Result<Assertion, String> {
    let (sizes, call) = line.split_once(':').ok_or("`:` is missing")?;
    let sizes = sizes.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| {
        let (name, n) = s.split_once('=').ok_or("sizes are `N=2`")?;
        Ok((name.trim().to_string(), n.trim().parse().map_err(|_| format!("`{n}` is no size"))?))
    });
    let sizes = sizes.collect::<Result<_, String>>()?;
    let (args, rest) = call.split_once('(').and_then(|(_, rest)| split_call(rest)).ok_or("expected `f(values)`")?;
    let inputs = values(args)?;
    let expected = if let Some(v) = rest.trim().strip_prefix("==") {
        let v = v.trim();
        let inner = v.strip_prefix('(').and_then(split_call).filter(|(_, rest)| rest.is_empty()).map_or(v, |(inner, _)| inner);
        Expected::Results(values(inner)?)
    } else if let Some(text) = rest.trim().strip_prefix("fails") {
        Expected::Failure(text.trim().trim_matches('"').into())
    } else {
        return Err("expected `== values` or `fails \"text\"`".into());
    };
    Ok(Assertion { sizes, inputs, expected })
}

/// What stands before the parenthesis that closes the one just opened, and what behind.
fn split_call(s: &str) -> Option<(&str, &str)> {
    let mut depth = 1;
    for (i, c) in s.char_indices() {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some((&s[..i], &s[i + 1..]));
        }
    }
    None
}

/// Values separated by commas outside brackets.
fn values(s: &str) -> Result<Vec<Value>, String> {
    let (mut out, mut depth, mut from) = (vec![], 0, 0);
    for (i, c) in s.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                out.push(value(s[from..i].trim())?);
                from = i + 1;
            }
            _ => {}
        }
    }
    let last = s[from..].trim();
    if !last.is_empty() {
        out.push(value(last)?);
    }
    Ok(out)
}

fn number(s: &str) -> Result<f64, String> {
    match s.trim() {
        "true" => Ok(1.0),
        "false" => Ok(0.0),
        s => s.parse().map_err(|_| format!("`{s}` is no number")),
    }
}

fn value(s: &str) -> Result<Value, String> {
    if s.starts_with('[') {
        let flat = s.replace(['[', ']'], " ");
        let items = flat.split(',').map(str::trim).filter(|s| !s.is_empty());
        return Ok(Value::List(items.map(number).collect::<Result<_, _>>()?));
    }
    let (name, args) = match s.split_once('(') {
        Some((name, args)) => (name, args.trim_end_matches(')').split(',').map(number).collect::<Result<Vec<f64>, _>>()?),
        None => (s, vec![]),
    };
    Ok(match (name, &args[..]) {
        ("zeros", []) => Value::Fill(0.0),
        ("ones", []) => Value::Fill(1.0),
        ("fill", [v]) => Value::Fill(*v),
        ("iota", []) => Value::Iota { first: 0.0, step: 1.0 },
        ("iota", [first, step]) => Value::Iota { first: *first, step: *step },
        ("random", [seed]) => Value::Random(*seed as u64),
        _ => Value::Fill(number(s)?),
    })
}

impl Value {
    fn tensor(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, String> {
        let n = shape.iter().product::<usize>();
        let at: Box<dyn Fn(usize) -> f64> = match self {
            Value::Random(seed) => return Ok(random_tensor(dtype, shape, &Values::Small, *seed)),
            Value::Fill(v) => Box::new(|_| *v),
            Value::Iota { first, step } => Box::new(move |i| *first + *step * i as f64),
            Value::List(l) if l.len() == n => Box::new(|i| l[i]),
            Value::List(l) => return Err(format!("{} elements for {dtype}{shape:?}", l.len())),
        };
        let mut bytes = vec![];
        (0..n).for_each(|i| Num::F(at(i)).cast(dtype).write(dtype, &mut bytes));
        Tensor::from_bytes(dtype, shape.to_vec(), bytes.into()).map_err(|e| e.to_string())
    }
}

impl Assertion {
    /// The inputs that the assertion gives `graph`.
    pub fn tensors(&self, graph: &Graph) -> Result<Vec<Tensor>, String> {
        let env = Env::default();
        for (name, n) in &self.sizes {
            env.bind(&name.as_str().into(), *n).map_err(|e| e.to_string())?;
        }
        if self.inputs.len() != graph.inputs.len() {
            return Err(format!("{} values for {} inputs", self.inputs.len(), graph.inputs.len()));
        }
        let types = graph.inputs.iter().map(|id| &graph.node(*id).types[0]);
        types.zip(&self.inputs).map(|(t, v)| v.tensor(t.dtype, &env.shape(&t.shape).map_err(|e| e.to_string())?)).collect()
    }

    /// Holds what an engine gave against what is expected.
    pub fn check(&self, got: Result<Vec<Tensor>, String>) -> Result<(), String> {
        let (got, want) = match (got, &self.expected) {
            (Err(e), Expected::Failure(text)) if e.contains(text) => return Ok(()),
            (Err(e), _) => return Err(format!("failed: {e}")),
            (Ok(_), Expected::Failure(text)) => return Err(format!("did not fail with {text:?}")),
            (Ok(got), Expected::Results(want)) => (got, want),
        };
        if got.len() != want.len() {
            return Err(format!("{} results, {} expected", got.len(), want.len()));
        }
        for (k, (got, want)) in got.iter().zip(want).enumerate() {
            let want = want.tensor(got.dtype(), got.shape()).map_err(|e| format!("result {k}: {e}"))?;
            for i in 0..got.elems() {
                let (g, w) = (got.num(i).as_f64(), want.num(i).as_f64());
                if !(g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= tolerance(got.dtype()) * w.abs().max(1.0)) {
                    return Err(format!("result {k}, element {i} of {}{:?}: {g}, expected {w}", got.dtype(), got.shape()));
                }
            }
        }
        Ok(())
    }
}

/// Relative to the larger of the number and 1. Assertions are written with few digits.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 | DType::F32 => 2e-6,
        DType::F16 => 2e-3,
        DType::BF16 => 1.6e-2,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = "module f() {}\n// run: f(ones, [[1, 2], [3, 4]]) == (fill(8), -1.5)\n  // run N=2, K=3: f(iota(1, 2), random(7)) fails \"out\"\n";
        let got = assertions(text).unwrap();
        assert_eq!(got[0].inputs, [Value::Fill(1.0), Value::List(vec![1.0, 2.0, 3.0, 4.0])]);
        assert_eq!(got[0].expected, Expected::Results(vec![Value::Fill(8.0), Value::Fill(-1.5)]));
        assert_eq!(got[1].sizes, [("N".into(), 2), ("K".into(), 3)]);
        assert_eq!(got[1].inputs, [Value::Iota { first: 1.0, step: 2.0 }, Value::Random(7)]);
        assert_eq!(got[1].expected, Expected::Failure("out".into()));
        assert!(assertions("// run: f(x) == 1").is_err());
    }
}
