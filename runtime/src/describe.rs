//! What a model's interface looks like: from a graph, or from the description inside a compiled library.

use nnc_backends::weights::weight_bytes;
use nnc_ir::kernel::Program;
use nnc_ir::{DType, Dim, Error, Graph, Result, Type};
use serde_json::Value;
use std::sync::Arc;

/// An input or output.
#[derive(Clone, PartialEq, Debug)]
pub struct Port {
    pub name: Arc<str>,
    pub dtype: DType,
    pub shape: Vec<Size>,
}

/// One dimension of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Size {
    Known(i64),
    /// A symbol or an expression in symbols.
    Symbolic(Arc<str>),
}

/// A model from outside.
#[derive(Clone, PartialEq, Debug)]
pub struct Description {
    pub name: String,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// Of a compiled file: what it was compiled for and by.
    pub target: Option<String>,
    pub compiler: Option<String>,
    /// Bytes, or an expression in the symbols.
    pub workspace_bytes: Option<Size>,
    /// Floating-point operations of a run, or an expression in the symbols.
    pub flops: Option<Size>,
    pub weight_bytes: Option<u64>,
    /// Whether the constants are in a file of their own.
    pub external_weights: bool,
}

impl Port {
    pub fn new(name: &str, ty: &Type) -> Port {
        Port { name: name.into(), dtype: ty.dtype, shape: ty.shape.iter().map(Size::of).collect() }
    }

    /// `f32[N,3,224,224]`.
    pub fn type_text(&self) -> String {
        let sizes: Vec<String> = self.shape.iter().map(Size::to_string).collect();
        format!("{}[{}]", self.dtype, sizes.join(","))
    }
}

impl Size {
    pub fn of(d: &Dim) -> Size {
        d.as_const().map_or_else(|| Size::Symbolic(d.to_string().into()), Size::Known)
    }

    /// The value, where `sizes` has all symbols of the expression.
    pub fn eval(&self, sizes: &dyn Fn(&str) -> Option<f64>) -> Option<f64> {
        match self {
            Size::Known(n) => Some(*n as f64),
            Size::Symbolic(text) => {
                let mut p = Expression { rest: text, sizes };
                p.sum().filter(|_| p.rest.is_empty())
            }
        }
    }
}

/// Text as [`nnc_ir::Dim`] prints it: sums of products of numbers, symbols and functions of two such sums.
struct Expression<'a> {
    rest: &'a str,
    sizes: &'a dyn Fn(&str) -> Option<f64>,
}

impl Expression<'_> {
    fn eat(&mut self, what: &str) -> bool {
        let rest = self.rest.strip_prefix(what);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> Option<f64> {
        let mut sum = if self.eat("-") { -self.product()? } else { self.product()? };
        loop {
            if self.eat(" + ") {
                sum += self.product()?;
            } else if self.eat(" - ") {
                sum -= self.product()?;
            } else {
                return Some(sum);
            }
        }
    }

    fn product(&mut self) -> Option<f64> {
        let mut product = self.factor()?;
        while self.eat("*") {
            product *= self.factor()?;
        }
        Some(product)
    }

    fn factor(&mut self) -> Option<f64> {
        for (name, f) in FUNCTIONS {
            if self.rest.strip_prefix(name).is_some_and(|r| r.starts_with('(')) {
                self.rest = &self.rest[name.len() + 1..];
                let a = self.sum()?;
                let b = self.eat(", ").then(|| self.sum())??;
                return self.eat(")").then(|| f(a, b));
            }
        }
        let end = self.rest.find([' ', '*', ',', ')']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.parse().ok().or_else(|| (self.sizes)(word))
    }
}

type Function = fn(f64, f64) -> f64;

const FUNCTIONS: [(&str, Function); 5] = [
    ("floordiv", |a, b| (a / b).floor()),
    ("mod", |a, b| a - b * (a / b).floor()),
    ("max", f64::max),
    ("min", f64::min),
    ("stretch", |a, b| if a == 1.0 { b } else { a }),
];

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Size::Known(n) => write!(f, "{n}"),
            Size::Symbolic(s) => f.write_str(s),
        }
    }
}

impl Description {
    pub fn of_graph(graph: &Graph) -> Description {
        Description {
            name: graph.name.to_string(),
            inputs: graph.inputs.iter().map(|id| Port::new(&graph.node(*id).name, &graph.node(*id).types[0])).collect(),
            outputs: graph.outputs.iter().map(|o| Port::new(&o.name, graph.ty(o.value))).collect(),
            target: None,
            compiler: None,
            workspace_bytes: None,
            flops: None,
            weight_bytes: None,
            external_weights: false,
        }
    }

    /// Of a program that runs here: its sizes are known, too.
    pub fn of_program(program: &Program) -> Description {
        let ports = |list: &[nnc_ir::kernel::Port]| list.iter().map(|p| Port::new(&p.name, &p.ty)).collect();
        Description {
            name: program.name.to_string(),
            inputs: ports(&program.inputs),
            outputs: ports(&program.outputs),
            target: None,
            compiler: None,
            workspace_bytes: Some(Size::of(&program.workspace)),
            flops: Some(Size::of(&program.flops)),
            weight_bytes: Some(weight_bytes(&program.weights)),
            external_weights: false,
        }
    }

    /// Reads what `nnc_describe` returns.
    pub fn from_json(text: &str) -> Result<Description> {
        let v: Value = serde_json::from_str(text).map_err(|e| Error::syntax(format!("the library's description is no JSON: {e}")))?;
        let text = |key: &str| v[key].as_str().map(str::to_string);
        let ports = |key: &str| -> Result<Vec<Port>> {
            v[key].as_array().and_then(|l| l.iter().map(port).collect()).ok_or_else(|| {
                Error::syntax(format!("the library's description does not list its {key}")).note("was the library written by another version of nnc?")
            })
        };
        Ok(Description {
            name: text("name").unwrap_or_default(),
            inputs: ports("inputs")?,
            outputs: ports("outputs")?,
            target: text("target"),
            compiler: text("compiler"),
            workspace_bytes: size(&v["workspace_bytes"]),
            flops: size(&v["flops"]),
            weight_bytes: v["weight_bytes"].as_u64(),
            external_weights: v["weights"] == "external",
        })
    }
}

pub(crate) fn size(v: &Value) -> Option<Size> {
    match v {
        Value::String(s) => Some(Size::Symbolic(s.as_str().into())),
        v => v.as_i64().map(Size::Known),
    }
}

fn port(v: &Value) -> Option<Port> {
    Some(Port {
        name: v["name"].as_str()?.into(),
        dtype: DType::from_name(v["dtype"].as_str()?)?,
        shape: v["shape"].as_array()?.iter().map(size).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_evaluate_as_dimensions_do() {
        let (n, h) = (Dim::sym("N"), Dim::sym("H"));
        let two = Dim::Const(2);
        let dims = [
            n.clone() * h.clone() * Dim::Const(3) - Dim::Const(5),
            (h.clone() + Dim::Const(1)).floor_div(&two) * n.clone() + n.maximum(&h),
            n.clone() * Dim::Const(-4) + h.modulo(&two),
        ];
        for d in dims {
            let value = |s: &str| [("N", 7), ("H", 12)].iter().find(|(n, _)| *n == s).map(|(_, v)| *v);
            let size = Size::Symbolic(d.to_string().into());
            assert_eq!(size.eval(&|s| value(s).map(|v| v as f64)), d.eval(&value).ok().map(|v| v as f64), "{d}");
            assert_eq!(size.eval(&|_| None), None);
        }
    }

    #[test]
    fn reads_descriptions() {
        let text = r#"{"name":"m","inputs":[{"name":"x","dtype":"f32","shape":["N",3]}],"outputs":[],"workspace_bytes":64,"flops":"2*N"}"#;
        let d = Description::from_json(text).unwrap();
        assert_eq!((d.inputs[0].type_text().as_str(), d.workspace_bytes), ("f32[N,3]", Some(Size::Known(64))));
        assert_eq!(d.flops.unwrap().eval(&|_| Some(5.0)), Some(10.0));
        assert!(Description::from_json("{}").is_err() && Description::from_json("no").is_err());
    }
}
