//! A call of each row of [`ops::TABLE`](super::ops::TABLE), as text in `examples.txt`: what the support list tries the compiler with, and what
//! random graphs are made of.

use super::call::{Attr, Call, Item};
use super::ops::{self, Row};
use nnc_ir::{Builder, DType, Dim, Error, Graph, Report, Result, Tensor, Type, V};
use std::sync::Arc;

/// An operator with inputs and attributes that fit it.
#[derive(Clone)]
pub struct Example {
    pub row: &'static Row,
    /// An element type that [`Port::dtype`] may be where it is open.
    pub dtype: DType,
    pub inputs: Vec<Item<Port>>,
    attrs: Vec<(String, Literal)>,
    pub outputs: usize,
}

/// An input of an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// `None`: the type that the example is tried with.
    pub dtype: Option<DType>,
    pub shape: Vec<usize>,
    /// What it holds, where that decides what the call means.
    pub values: Option<Vec<Literal>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<Literal>),
    Tensor(Port),
}

/// All examples, in the order of their names.
pub fn examples() -> Result<Vec<Example>> {
    let lines = include_str!("examples.txt").lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines.map(|l| example(l).map_err(|e| Error::internal(format!("{}: `{l}`", e.message())))).collect()
}

impl Port {
    /// The constant, or `None` where the contents are open.
    pub fn tensor(&self, open: DType) -> Result<Option<Tensor>> {
        let Some(values) = &self.values else { return Ok(None) };
        let dtype = self.dtype.unwrap_or(open);
        let wrong = || Error::internal("values do not fit their type");
        let t = if dtype == DType::Str {
            let text = |l: &Literal| if let Literal::Str(s) = l { Ok(Arc::from(s.as_str())) } else { Err(wrong()) };
            Tensor::text(&[values.len()], values.iter().map(text).collect::<Result<_>>()?)?
        } else {
            let number = |l: &Literal| match l {
                Literal::Int(i) => Ok(*i as f64),
                Literal::Float(x) => Ok(*x),
                _ => Err(wrong()),
            };
            let values = values.iter().map(number).collect::<Result<Vec<f64>>>()?;
            let one = |x: &f64| Tensor::scalar_of(dtype, *x).bytes();
            Tensor::from_bytes(dtype, vec![values.len()], values.iter().flat_map(one).collect::<Vec<u8>>().into())?
        };
        t.reshaped(self.shape.clone()).map(Some)
    }

    fn value<'g>(&self, b: &'g Builder, name: String, open: DType) -> Result<V<'g>> {
        let ty = Type::new(self.dtype.unwrap_or(open), self.shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
        Ok(self.tensor(open)?.map_or_else(|| b.input(name, ty), |t| b.constant(t)))
    }
}

impl Example {
    /// The newest opset in which the row counts.
    pub fn opset(&self) -> i64 {
        let same = ops::rows().filter(|r| r.domain == self.row.domain && r.name == self.row.name && r.since > self.row.since);
        let next = same.map(|r| r.since - 1).min().unwrap_or(i64::MAX).min(self.row.until);
        if self.row.domain.is_empty() { next.min(ops::NEWEST_OPSET) } else { next.min(self.row.since + 4) }
    }

    /// The call on these inputs.
    pub fn call<'g>(&self, b: &'g Builder, inputs: Vec<Item<V<'g>>>, open: DType) -> Result<Vec<Item<V<'g>>>> {
        let attrs = self.attrs.iter().map(|(name, l)| Ok((name.clone(), l.attr(open)?))).collect::<Result<_>>()?;
        ops::build(&Call::new(b, (self.row.domain, self.row.name, self.opset()), inputs, attrs, vec![true; self.outputs]))
    }

    /// A graph of the one call, whose open element type is `open`.
    pub fn graph(&self, open: DType) -> Result<Graph, Report> {
        let b = Builder::new(self.row.name);
        let mut inputs = vec![];
        for (i, item) in self.inputs.iter().enumerate() {
            inputs.push(match item {
                Item::Tensor(p) => Item::Tensor(p.value(&b, format!("x{i}"), open)?),
                Item::List(l) => Item::List(l.iter().enumerate().map(|(k, p)| p.value(&b, format!("x{i}[{k}]"), open)).collect::<Result<_>>()?),
                Item::Map([keys, values]) => {
                    Item::Map([keys.value(&b, format!("x{i}.keys"), open)?, values.value(&b, format!("x{i}.values"), open)?])
                }
                Item::Absent => Item::Absent,
            });
        }
        let results = self.call(&b, inputs, open)?;
        for (i, v) in results.iter().take(self.outputs).flat_map(Item::tensors).enumerate() {
            b.output(format!("y{i}"), *v);
        }
        b.finish()
    }
}

impl Literal {
    fn attr<'g>(&self, open: DType) -> Result<Attr<'g>> {
        let wrong = || Error::internal("a list of this is no attribute");
        Ok(match self {
            Literal::Int(i) => Attr::Int(*i),
            Literal::Float(x) => Attr::Float(*x),
            Literal::Str(s) => Attr::Str(s.clone()),
            Literal::Tensor(p) => Attr::Tensor(p.tensor(open)?.ok_or_else(wrong)?),
            Literal::List(l) => match &l[..] {
                [Literal::Str(_), ..] => Attr::Strs(l.iter().filter_map(|v| if let Literal::Str(s) = v { Some(s.clone()) } else { None }).collect()),
                [Literal::Float(_), ..] => Attr::Floats(l.iter().filter_map(|v| if let Literal::Float(x) = v { Some(*x) } else { None }).collect()),
                l => Attr::Ints(l.iter().map(|v| if let Literal::Int(i) = v { Ok(*i) } else { Err(wrong()) }).collect::<Result<_>>()?),
            },
        })
    }
}

fn example(line: &str) -> Result<Example> {
    let mut r = Reader(line);
    let name = r.word(|c| !c.is_whitespace());
    let (domain, name) = name.rsplit_once('.').unwrap_or(("", name));
    let since = r.number()?;
    let row = ops::rows().find(|row| row.domain == domain && row.name == name && Literal::Int(row.since) == since);
    let row = row.ok_or_else(|| Error::internal("the table has no such row"))?;
    let dtype = r.dtype()?.ok_or_else(|| r.wrong("an element type"))?;
    let (mut inputs, mut attrs) = (vec![], vec![]);
    r.expect("|")?;
    while !r.take("|") {
        inputs.push(r.item()?);
    }
    while !r.take("|") {
        let name = r.word(|c| c != '=').to_string();
        r.expect("=")?;
        attrs.push((name, r.literal()?));
    }
    let Literal::Int(outputs) = r.number()? else { return Err(r.wrong("a number of outputs")) };
    Ok(Example { row, dtype, inputs, attrs, outputs: usize::try_from(outputs).map_err(|_| r.wrong("a number of outputs"))? })
}

/// What is left of a line.
struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    fn wrong(&self, want: &str) -> Error {
        Error::internal(format!("{want} should stand before `{}`", self.0))
    }

    fn take(&mut self, what: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(what);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, what: &str) -> Result<()> {
        if self.take(what) { Ok(()) } else { Err(self.wrong(what)) }
    }

    fn word(&mut self, within: impl Fn(char) -> bool) -> &'a str {
        let text = self.0.trim_start();
        let (word, rest) = text.split_at(text.find(|c| !within(c)).unwrap_or(text.len()));
        self.0 = rest;
        word
    }

    fn number(&mut self) -> Result<Literal> {
        let word = self.word(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
        let int = word.parse().map(Literal::Int).ok();
        int.or_else(|| word.parse().map(Literal::Float).ok()).ok_or_else(|| self.wrong("a number"))
    }

    /// `T`, which is `None`, or the name of a type.
    fn dtype(&mut self) -> Result<Option<DType>> {
        match self.word(char::is_alphanumeric) {
            "T" => Ok(None),
            name => DType::from_name(name).map(Some).ok_or_else(|| self.wrong("an element type")),
        }
    }

    /// What stands between brackets, with commas.
    fn list<T>(&mut self, [open, close]: [&str; 2], mut one: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.expect(open)?;
        let mut out = vec![];
        while !self.take(close) {
            out.push(one(self)?);
            self.take(",");
        }
        Ok(out)
    }

    fn port(&mut self) -> Result<Port> {
        let dtype = self.dtype()?;
        let size = |r: &mut Self| match r.number()? {
            Literal::Int(n) => usize::try_from(n).map_err(|_| r.wrong("a size")),
            _ => Err(r.wrong("a size")),
        };
        let shape = self.list(["[", "]"], size)?;
        let values = if self.0.starts_with('(') { Some(self.list(["(", ")"], Self::literal)?) } else { None };
        Ok(Port { dtype, shape, values })
    }

    fn item(&mut self) -> Result<Item<Port>> {
        match () {
            _ if self.take("-") => Ok(Item::Absent),
            _ if self.take("map") => match <[Port; 2]>::try_from(self.list(["(", ")"], Self::port)?) {
                Ok(pair) => Ok(Item::Map(pair)),
                Err(_) => Err(self.wrong("keys and values")),
            },
            _ if self.take("seq") => self.list(["(", ")"], Self::port).map(Item::List),
            _ => self.port().map(Item::Tensor),
        }
    }

    fn literal(&mut self) -> Result<Literal> {
        let text = self.0.trim_start();
        let typed = text.split_once('[').is_some_and(|(name, _)| DType::from_name(name).is_some());
        match text.chars().next() {
            Some('[') => self.list(["[", "]"], Self::literal).map(Literal::List),
            Some('"') => {
                self.expect("\"")?;
                let mut out = String::new();
                let mut chars = self.0.char_indices();
                while let Some((i, c)) = chars.next() {
                    match c {
                        '"' => {
                            self.0 = &self.0[i + 1..];
                            return Ok(Literal::Str(out));
                        }
                        '\\' => out.extend(chars.next().map(|(_, c)| c)),
                        c => out.push(c),
                    }
                }
                Err(self.wrong("a quote"))
            }
            _ if typed => self.port().map(Literal::Tensor),
            _ => self.number(),
        }
    }
}
