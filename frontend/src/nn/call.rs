//! Calls of operators. One syntax, `name(operands, attribute=value)`, for two vocabularies: the operations of the tensor IR, which
//! printed graphs use, and ONNX operators in snake case with ONNX attribute names, which people know.
//!
//! A name that both have means the operation where its operands and attributes fit it, else the ONNX operator. Where both fit they
//! mean the same.

use super::ast::{self, Expr, ExprKind};
use super::elaborate::{Elab, Eval, Frame, Stop, did_you_mean};
use super::value::{FUNCTIONS, Val, function};
use crate::onnx::call as onnx;
use crate::onnx::ops as rows;
use nnc_ir::attrs::Attr;
use nnc_ir::error::{Code, Error, Result};
use nnc_ir::ops::Op;
use nnc_ir::ops::source::Dims;
use nnc_ir::{DType, Dim, Tensor, V};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Which calls are known.
pub struct Operators {
    ops: HashSet<&'static str>,
    /// ONNX operators by [`squeezed`] name.
    onnx: BTreeMap<String, &'static str>,
    /// Version of ai.onnx that ONNX calls mean.
    pub opset: i64,
}

/// The name without underscores in lower case: equal for `ReduceL1` and `reduce_l1`.
fn squeezed(name: &str) -> String {
    name.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

/// `BatchNormalization` as `batch_normalization`: how text spells an ONNX operator.
pub fn snake_case(name: &str) -> String {
    let c: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for i in 0..c.len() {
        // A capital begins a word where a small letter stands before or behind it.
        let before = i > 0 && !c[i - 1].is_ascii_uppercase();
        let behind = i > 1 && c.get(i + 1).is_some_and(char::is_ascii_lowercase);
        if c[i].is_ascii_uppercase() && (before || behind) && !out.ends_with('_') && i > 0 {
            out.push('_');
        }
        out.push(c[i].to_ascii_lowercase());
    }
    out
}

impl Operators {
    pub fn new() -> Operators {
        let onnx = rows::rows().filter(|r| r.domain.is_empty()).map(|r| (squeezed(r.name), r.name)).collect();
        Operators { ops: Op::names().into_iter().collect(), onnx, opset: rows::NEWEST_OPSET }
    }

    pub fn known(&self, name: &str) -> bool {
        self.ops.contains(name) || self.onnx(name).is_some()
    }

    /// The ONNX operator that text calls `name`.
    fn onnx(&self, name: &str) -> Option<&'static str> {
        let n = *self.onnx.get(&squeezed(name))?;
        (!name.contains(|c: char| c.is_ascii_uppercase())).then_some(n)
    }
}

/// What an operand that is written as a number or a list becomes.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// `i64`: a vector.
    Ints,
    /// `i64`: a scalar.
    Int,
    /// `f32` vector.
    Floats,
    /// A scalar of the first operand's element type.
    Like,
}

/// Position, name, and what a number there becomes.
type Setting = (usize, &'static str, Kind);

/// ONNX operands that hold settings rather than data: they may be written as numbers and given by name, as the attributes that
/// they were in older opsets.
const SETTINGS: &[(&str, &[Setting])] = {
    use Kind::*;
    &[
        ("Clip", &[(1, "min", Like), (2, "max", Like)]),
        ("Reshape", &[(1, "shape", Ints)]),
        ("Expand", &[(1, "shape", Ints)]),
        ("Tile", &[(1, "repeats", Ints)]),
        ("Slice", &[(1, "starts", Ints), (2, "ends", Ints), (3, "axes", Ints), (4, "steps", Ints)]),
        ("Pad", &[(1, "pads", Ints), (2, "value", Like), (3, "axes", Ints)]),
        ("Squeeze", &[(1, "axes", Ints)]),
        ("Unsqueeze", &[(1, "axes", Ints)]),
        ("Split", &[(1, "split", Ints)]),
        ("TopK", &[(1, "k", Ints)]),
        ("Resize", &[(1, "roi", Floats), (2, "scales", Floats), (3, "sizes", Ints)]),
        ("Upsample", &[(1, "scales", Floats)]),
        ("ConstantOfShape", &[(0, "shape", Ints)]),
        ("CumSum", &[(1, "axis", Int)]),
        ("Trilu", &[(1, "k", Int)]),
        ("OneHot", &[(1, "depth", Int)]),
        ("Dropout", &[(1, "ratio", Like), (2, "training_mode", Like)]),
        ("Gather", &[(1, "indices", Ints)]),
        ("CenterCropPad", &[(1, "shape", Ints)]),
        ("ReduceSum", &[(1, "axes", Ints)]),
        ("ReduceMean", &[(1, "axes", Ints)]),
        ("ReduceMax", &[(1, "axes", Ints)]),
        ("ReduceMin", &[(1, "axes", Ints)]),
        ("ReduceProd", &[(1, "axes", Ints)]),
        ("ReduceL1", &[(1, "axes", Ints)]),
        ("ReduceL2", &[(1, "axes", Ints)]),
        ("ReduceLogSum", &[(1, "axes", Ints)]),
        ("ReduceLogSumExp", &[(1, "axes", Ints)]),
        ("ReduceSumSquare", &[(1, "axes", Ints)]),
    ]
};

/// A call with its operands evaluated.
struct Given<'a, 'g> {
    name: &'a str,
    args: Vec<Val<'g>>,
    named: &'a [(ast::Name, Expr)],
    results: usize,
}

impl<'a, 'g> Elab<'a, 'g> {
    /// The call of a function of numbers, an initialiser or an operator.
    pub fn operator(&self, name: &'a str, call: &'a ast::Call, frame: &mut Frame<'g>, results: usize) -> Eval<Val<'g>> {
        let args = call.args.iter().map(|e| self.eval(e, frame)).collect::<Eval<Vec<Val<'g>>>>()?;
        if call.named.is_empty() && call.regions.is_empty() {
            if !args.is_empty()
                && let Some(v) = function(name, &args)
            {
                return Ok(v?);
            }
            let numbers: Option<Vec<f64>> = args.iter().map(Val::as_f64).collect();
            if let Some(numbers) = numbers
                && let Some(init) = super::init::Init::new(name, &numbers)
            {
                return Ok(Val::Init(init?));
            }
        }
        if !self.shared.operators.known(name) {
            let e = Error::unsupported(format!("no operator or module is called `{name}`"));
            let snake: Vec<String> = self.shared.operators.onnx.values().map(|n| snake_case(n)).collect();
            let modules = self.shared.file.modules.iter().map(|m| &*m.name.text);
            let known = self.shared.operators.ops.iter().copied().chain(snake.iter().map(String::as_str)).chain(modules);
            return Err(did_you_mean(e, name, known.chain(FUNCTIONS.iter().copied())).into());
        }
        self.shared.step()?;
        self.b.at(self.shared.loc(call.callee.pos));
        let given = Given { name, args, named: &call.named, results };
        match self.operation(&given, call, frame)? {
            Ok(v) => Ok(v),
            Err(refused) => match self.shared.operators.onnx(name) {
                Some(op) if call.regions.is_empty() => self.onnx_call(op, &given, frame).map_err(|stop| match stop {
                    // What fits neither: the operation's own words are the plainer ones, and may know better.
                    Stop::Error(_) if matches!(refused.code(), Code::Shape | Code::DType) || !refused.notes().is_empty() => refused.into(),
                    stop => stop,
                }),
                _ => Err(refused.into()),
            },
        }
    }

    /// The operation of the IR. The inner error says why the call does not fit it, so that ONNX may mean something else.
    fn operation(&self, given: &Given<'a, 'g>, call: &'a ast::Call, frame: &mut Frame<'g>) -> Eval<Result<Val<'g>>> {
        if !self.shared.operators.ops.contains(given.name) {
            return Ok(Err(Error::unsupported(format!("no operation is called `{}`", given.name))));
        }
        let fields = Op::fields(given.name);
        if let Some((n, _)) = given.named.iter().find(|(n, _)| !fields.contains(&&*n.text)) {
            let e = Error::attribute(format!("{} has no attribute `{}`", given.name, n.text)).at(&self.shared.loc(n.pos));
            return Ok(Err(did_you_mean(e, &n.text, fields.iter().copied())));
        }
        let mut words = vec![];
        let mut attrs = Vec::with_capacity(given.named.len());
        for (n, e) in given.named {
            attrs.push((&*n.text, self.attribute(e, frame, &mut words)?));
        }
        let op = match Op::parse(given.name, &|k| attrs.iter().find(|(n, _)| *n == k).map(|(_, a)| a.clone())) {
            Some(Ok(op)) => op,
            Some(Err(e)) => return Ok(Err(Error::new(e.code(), format!("{}: {}", given.name, e.message())))),
            None => return Ok(Err(Error::unsupported(format!("no operation is called `{}`", given.name)))),
        };
        let mut x = vec![];
        for (i, v) in given.args.iter().enumerate() {
            match v {
                Val::Tensor(v) => x.push(*v),
                v if v.is_number() || matches!(v, Val::Bool(_)) => match self.first(given) {
                    Some(like) => x.push(self.scalar(v, like.ty().dtype)?),
                    None => return Ok(Err(Error::dtype(format!("{}: operand {i} is {}, not a tensor", given.name, v.kind())))),
                },
                v => return Ok(Err(Error::dtype(format!("{}: operand {i} is {}, not a tensor", given.name, v.kind())))),
            }
        }
        let regions = call.regions.iter().map(|r| self.region(r, frame)).collect::<Eval<Vec<_>>>()?;
        let y = match self.b.try_op(op, &x, regions) {
            Ok(y) => y,
            Err(e) => return Ok(Err(e)),
        };
        let y = self.results(given, y)?;
        // Symbols that the call introduces (`count=n` of non_zero) are names from here on.
        for v in y.iter().filter(|_| !words.is_empty()) {
            let mut see = |s: &Arc<str>| {
                if words.contains(s) {
                    frame.symbols.insert(s.clone());
                }
            };
            v.ty().shape.iter().for_each(|d| d.symbols(&mut see));
            v.known().iter().flat_map(|k| k.iter()).for_each(|d| d.symbols(&mut see));
        }
        Ok(Ok(value(y)))
    }

    /// As many results as names wait for them.
    fn results(&self, given: &Given<'a, 'g>, mut y: Vec<V<'g>>) -> Eval<Vec<V<'g>>> {
        if y.len() < given.results {
            return Err(Error::arity(format!("{} has {} results, {} names wait for them", given.name, y.len(), given.results)).into());
        }
        self.checked(&y)?;
        // One name may stand for the first of several results, as in ONNX.
        y.truncate(given.results.max(1));
        Ok(y)
    }

    /// The first operand that is a tensor: numbers beside it take its element type.
    fn first(&self, given: &Given<'a, 'g>) -> Option<V<'g>> {
        given.args.iter().find_map(|v| match v {
            Val::Tensor(v) => Some(*v),
            _ => None,
        })
    }

    fn scalar(&self, v: &Val<'g>, dtype: DType) -> Result<V<'g>> {
        match v {
            Val::Bool(b) => Ok(self.b.constant(Tensor::scalar(*b))),
            Val::Int(d) if d.as_const().is_none() => Ok(self.b.op(Dims { values: vec![d.clone()], scalar: true }, &[]).cast(dtype)),
            v => match v.as_f64() {
                Some(x) if dtype.is_float() || x.fract() == 0.0 => Ok(self.b.constant(Tensor::scalar_of(dtype, x))),
                Some(x) => Err(Error::dtype(format!("{x} is no {dtype}: a number beside a tensor takes its element type"))),
                None => Err(Error::dtype(format!("expected a number, found {}", v.kind()))),
            },
        }
    }

    /// An attribute of an operation. A bare name that is no number's is a word: `kind=sum`, `act=relu`, `count=n`.
    fn attribute(&self, e: &'a Expr, frame: &mut Frame<'g>, words: &mut Vec<Arc<str>>) -> Eval<Attr> {
        match &e.kind {
            ExprKind::Name(n) => {
                let word = match frame.get(&n.text) {
                    Some(v) => matches!(v, Val::Tensor(_) | Val::Instance(_)),
                    None => frame.symbols.contains(&n.text) || !self.shared.defines(&n.text),
                };
                if word {
                    words.push(n.text.clone());
                    return Ok(Attr::Word(n.text.clone()));
                }
            }
            ExprKind::List(items) => {
                return Ok(Attr::List(items.iter().map(|e| self.attribute(e, frame, words)).collect::<Eval<_>>()?));
            }
            // `clip(0, 6)`, `blocked(16)`: a step with numbers.
            ExprKind::Call(c) => {
                if let ExprKind::Name(n) = &c.callee.kind
                    && !FUNCTIONS.contains(&&*n.text)
                    && c.named.is_empty()
                    && c.regions.is_empty()
                {
                    let args = c.args.iter().map(|e| self.attribute(e, frame, words)).collect::<Eval<_>>()?;
                    return Ok(Attr::Call(n.text.clone(), args));
                }
            }
            _ => {}
        }
        Ok(plain(&self.eval(e, frame)?).map_err(|err| err.at(&self.shared.loc(e.pos)))?)
    }

    /// The ONNX operator, through the importer's table.
    fn onnx_call(&self, op: &'static str, given: &Given<'a, 'g>, frame: &mut Frame<'g>) -> Eval<Val<'g>> {
        let settings = SETTINGS.iter().find(|(n, _)| *n == op).map_or(&[][..], |(_, s)| s);
        let mut inputs: Vec<Option<V<'g>>> = vec![];
        for (i, v) in given.args.iter().enumerate() {
            let kind = settings.iter().find(|s| s.0 == i).map(|s| s.2);
            inputs.push(self.input(v, kind, given, op, i)?);
        }
        let mut attrs = vec![];
        for (n, e) in given.named {
            let as_input = settings.iter().find(|s| s.1 == &*n.text && self.takes(op, s.0));
            let loc = self.shared.loc(e.pos);
            if let Some((i, _, kind)) = as_input {
                let v = self.eval(e, frame)?;
                let v = self.input(&v, Some(*kind), given, op, *i).map_err(|stop| match stop {
                    Stop::Error(e) => Stop::Error(e.at(&loc)),
                    stop => stop,
                })?;
                if inputs.len() <= *i {
                    inputs.resize(i + 1, None);
                }
                if inputs[*i].is_some() {
                    return Err(Error::arity(format!("{}: `{}` is given twice", given.name, n.text)).at(&loc).into());
                }
                inputs[*i] = v;
                continue;
            }
            let mut words = vec![];
            // A tensor is an attribute only as a value of its own.
            let a = match &e.kind {
                ExprKind::Literal(_) => match self.eval(e, frame)? {
                    Val::Tensor(v) => onnx::Attr::Tensor(v.constant().ok_or(Stop::Poison)?),
                    v => return Err(Error::attribute(format!("expected a tensor, found {}", v.kind())).at(&loc).into()),
                },
                _ => onnx_attr(&self.attribute(e, frame, &mut words)?).map_err(|e| e.at(&loc))?,
            };
            attrs.push((n.text.to_string(), a));
        }
        let inputs = inputs.into_iter().map(onnx::Item::from).collect();
        let mut call = onnx::Call::new(self.b, ("", op, self.shared.operators.opset), inputs, attrs, vec![true; given.results]);
        call.iteration = self.draws.get();
        let y = rows::build(&call).map_err(|e| Error::new(e.code(), spelled(&e, op, given.name)))?;
        let tensor = |item: onnx::Item<V<'g>>| match item {
            onnx::Item::Tensor(v) => Ok(v),
            other => Err(Error::unsupported(format!("{} gives {}; values here are tensors", given.name, other.kind()))),
        };
        let y = y.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
        let y = self.results(given, y)?;
        Ok(value(y))
    }

    /// Whether the operator has input `i` in this opset: before, the setting was an attribute.
    fn takes(&self, op: &str, i: usize) -> bool {
        rows::find("", op, self.shared.operators.opset).is_ok_and(|r| i < r.inputs.1)
    }

    fn input(&self, v: &Val<'g>, kind: Option<Kind>, given: &Given<'a, 'g>, op: &str, i: usize) -> Eval<Option<V<'g>>> {
        Ok(Some(match (v, kind) {
            (Val::None, _) => return Ok(None),
            (Val::Tensor(v), _) => *v,
            (Val::List(l), Some(Kind::Floats)) => {
                let floats: Option<Vec<f32>> = l.iter().map(|v| v.as_f64().map(|x| x as f32)).collect();
                let floats = floats.ok_or_else(|| Error::attribute(format!("{op}: operand {i} is a list of numbers")))?;
                self.b.constant(Tensor::new(&[floats.len()], &floats))
            }
            (Val::List(l), Some(Kind::Ints) | None) => self.ints(l.iter().map(Val::as_dim).collect::<Result<_>>()?),
            (v @ Val::Int(d), Some(Kind::Ints)) if v.is_number() => self.ints(vec![d.clone()]),
            (Val::Int(d), Some(Kind::Int)) => match d.as_const() {
                Some(i) => self.b.constant(Tensor::scalar(i)),
                None => self.b.op(Dims { values: vec![d.clone()], scalar: true }, &[]),
            },
            (v, _) if v.is_number() || matches!(v, Val::Bool(_)) => {
                let like = self.first(given).map_or(DType::F32, |v| v.ty().dtype);
                self.scalar(v, like)?
            }
            (v, _) => return Err(Error::dtype(format!("{}: operand {i} is {}, not a tensor", given.name, v.kind())).into()),
        }))
    }

    /// A vector of sizes: a constant where all are known.
    fn ints(&self, dims: Vec<Dim>) -> V<'g> {
        match dims.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            Some(ints) => self.b.constant(Tensor::new(&[ints.len()], &ints)),
            None => self.b.dims(dims),
        }
    }
}

/// One result, or several.
fn value(y: Vec<V<'_>>) -> Val<'_> {
    match <[V; 1]>::try_from(y) {
        Ok([v]) => Val::Tensor(v),
        Err(y) => Val::Tuple(y.into_iter().map(Val::Tensor).collect()),
    }
}

/// A value as an attribute of the IR.
fn plain(v: &Val) -> Result<Attr> {
    Ok(match v {
        Val::Int(Dim::Const(i)) => Attr::Int(*i),
        Val::Int(d) => Attr::Dim(d.clone()),
        Val::Float(x) => Attr::Float(*x),
        Val::Bool(b) => Attr::Word(b.to_string().into()),
        Val::Str(s) => Attr::Str(s.clone()),
        Val::DType(d) => Attr::Word(d.name().into()),
        Val::List(l) => Attr::List(l.iter().map(plain).collect::<Result<_>>()?),
        v => return Err(Error::attribute(format!("{} is no attribute", v.kind()))),
    })
}

/// An attribute as ONNX has them: words are strings, truth is 0 or 1, an element type its number.
fn onnx_attr<'g>(a: &Attr) -> Result<onnx::Attr<'g>> {
    let wrong = |a: &Attr| Err(Error::attribute(format!("an ONNX operator has no attribute like {a}")));
    Ok(match a {
        Attr::Int(i) => onnx::Attr::Int(*i),
        Attr::Float(x) => onnx::Attr::Float(*x),
        Attr::Str(s) => onnx::Attr::Str(s.to_string()),
        Attr::Word(w) => match (&**w, DType::from_name(w)) {
            ("true", _) => onnx::Attr::Int(1),
            ("false", _) => onnx::Attr::Int(0),
            (_, Some(d)) => onnx::Attr::Int(d.abi_code().into()),
            (w, None) => onnx::Attr::Str(w.to_string()),
        },
        Attr::Dim(d) => return Err(Error::attribute(format!("{d} must be known before the run"))),
        Attr::Call(..) => return wrong(a),
        Attr::List(l) => {
            let ints = l.iter().map(|a| if let Attr::Int(i) = a { Some(*i) } else { None }).collect::<Option<Vec<i64>>>();
            let floats = l.iter().map(|a| match a {
                Attr::Int(i) => Some(*i as f64),
                Attr::Float(x) => Some(*x),
                _ => None,
            });
            let strs = l.iter().map(|a| match a {
                Attr::Str(s) | Attr::Word(s) => Some(s.to_string()),
                _ => None,
            });
            match (ints, floats.collect::<Option<Vec<f64>>>(), strs.collect::<Option<Vec<String>>>()) {
                (Some(i), ..) => onnx::Attr::Ints(i),
                (_, Some(f), _) => onnx::Attr::Floats(f),
                (.., Some(s)) => onnx::Attr::Strs(s),
                _ => return wrong(a),
            }
        }
    })
}

/// The importer's message with the operator spelled as in the text.
fn spelled(e: &Error, op: &str, name: &str) -> String {
    match e.message().strip_prefix(op) {
        Some(rest) => format!("{name}{rest}"),
        None if e.message().starts_with(name) => e.message().to_string(),
        None => format!("{name}: {}", e.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn onnx_names_in_snake_case() {
        for (onnx, snake) in [
            ("Conv", "conv"),
            ("BatchNormalization", "batch_normalization"),
            ("LRN", "lrn"),
            ("ReduceL1", "reduce_l1"),
            ("ReduceLogSumExp", "reduce_log_sum_exp"),
            ("GatherND", "gather_nd"),
            ("MatMulInteger", "mat_mul_integer"),
            ("PRelu", "prelu"),
            ("STFT", "stft"),
            ("IsNaN", "is_na_n"),
        ] {
            assert_eq!(snake_case(onnx), snake);
            assert_eq!(squeezed(onnx), squeezed(snake));
        }
    }
}
