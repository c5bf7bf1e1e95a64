//! What expressions of `.nn` text evaluate to, and arithmetic on what is known before the run.

use super::ast::{Binary, Unary};
use super::init::Init;
use nnc_ir::dim::{Atom, DimNode};
use nnc_ir::error::{Error, Result};
use nnc_ir::{DType, Dim, V};
use std::rc::Rc;
use std::sync::Arc;

/// The longest list and the largest symbolic expression: far beyond any model, far below what hurts.
const MAX_LIST: usize = 4096;
const MAX_DIM_PARTS: usize = 256;

#[derive(Clone)]
pub enum Val<'g> {
    Tensor(V<'g>),
    /// An integer, which may be an expression over symbolic dimensions.
    Int(Dim),
    Float(f64),
    Bool(bool),
    Str(Arc<str>),
    DType(DType),
    None,
    List(Vec<Val<'g>>),
    /// Several results of a call.
    Tuple(Vec<Val<'g>>),
    Init(Init),
    Instance(Rc<Instance<'g>>),
    /// Its error is reported already.
    Poison,
}

/// A module with its hyper-parameters: calling it twice shares its parameters.
pub struct Instance<'g> {
    /// Index into the file's modules.
    pub module: usize,
    pub hyper: Vec<(Arc<str>, Val<'g>)>,
    /// Where its parameters live: `layer1.conv2`.
    pub path: String,
}

impl<'g> Val<'g> {
    /// What this is, for messages.
    pub fn kind(&self) -> String {
        match self {
            Val::Tensor(v) => format!("a tensor {}", v.ty()),
            Val::Int(d) => format!("the integer {d}"),
            Val::Float(x) => format!("the number {x}"),
            Val::Bool(b) => b.to_string(),
            Val::Str(s) => format!("the string {s:?}"),
            Val::DType(d) => format!("the element type {d}"),
            Val::None => "none".into(),
            Val::List(l) => format!("a list of {}", l.len()),
            Val::Tuple(t) => format!("{} results", t.len()),
            Val::Init(_) => "an initialiser".into(),
            Val::Instance(_) => "a module".into(),
            Val::Poison => "a wrong value".into(),
        }
    }

    pub fn is_number(&self) -> bool {
        matches!(self, Val::Int(_) | Val::Float(_))
    }

    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Val::Int(d) => d.as_const().map(|i| i as f64),
            Val::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// An integer, symbolic or not.
    pub fn as_dim(&self) -> Result<Dim> {
        match self {
            Val::Int(d) => Ok(d.clone()),
            v => Err(Error::attribute(format!("expected an integer, found {}", v.kind()))),
        }
    }

    /// An integer that is known before the run.
    pub fn as_int(&self) -> Result<i64> {
        let d = self.as_dim()?;
        d.as_const().ok_or_else(|| Error::attribute(format!("{d} must be known before the run")))
    }

    pub fn as_bool(&self) -> Result<bool> {
        match self {
            Val::Bool(b) => Ok(*b),
            v => Err(Error::attribute(format!("expected true or false, found {}", v.kind()))),
        }
    }
}

/// Symbols and operators in a dimension, counted up to a limit.
fn parts(d: &Dim, budget: &mut usize) {
    let DimNode::Sum(terms) = d.node() else { return };
    for atom in terms.iter().flat_map(|(_, atoms)| atoms.iter()) {
        if *budget == 0 {
            return;
        }
        *budget -= 1;
        match atom {
            Atom::Sym(_) => {}
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Max(a, b) | Atom::Min(a, b) | Atom::Stretch(a, b) => {
                parts(a, budget);
                parts(b, budget);
            }
        }
    }
}

/// Refuses symbolic expressions that text has made grow out of bounds.
pub fn check_dim(d: &Dim) -> Result<()> {
    let mut budget = MAX_DIM_PARTS;
    parts(d, &mut budget);
    if budget == 0 { Err(Error::limit("a symbolic dimension grows out of bounds")) } else { Ok(()) }
}

fn overflow() -> Error {
    Error::limit("the integer does not fit 64 bits")
}

/// `a op b` on what is not a tensor. Integers divide downwards.
pub fn binary<'g>(op: Binary, a: &Val<'g>, b: &Val<'g>) -> Result<Val<'g>> {
    use Binary::*;
    match (op, a, b) {
        (Equal, a, b) => return equal(a, b).map(Val::Bool),
        (NotEqual, a, b) => return equal(a, b).map(|e| Val::Bool(!e)),
        (Add, Val::List(x), Val::List(y)) => {
            if x.len() + y.len() > MAX_LIST {
                return Err(Error::limit(format!("a list of more than {MAX_LIST} elements")));
            }
            return Ok(Val::List(x.iter().chain(y).cloned().collect()));
        }
        (And | Or, Val::Bool(x), Val::Bool(y)) => return Ok(Val::Bool(if op == And { *x && *y } else { *x || *y })),
        (_, Val::Int(x), Val::Int(y)) => {
            if let Some(v) = integers(op, x, y)? {
                return Ok(v);
            }
        }
        _ => {}
    }
    let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else {
        return Err(Error::attribute(format!("{} and {} do not combine with `{}`", a.kind(), b.kind(), symbol(op))));
    };
    Ok(match op {
        Add => Val::Float(x + y),
        Sub => Val::Float(x - y),
        Mul => Val::Float(x * y),
        Div => Val::Float(x / y),
        Mod => Val::Float(x - y * (x / y).floor()),
        Pow => Val::Float(libm::pow(x, y)),
        Less => Val::Bool(x < y),
        LessEqual => Val::Bool(x <= y),
        Greater => Val::Bool(x > y),
        GreaterEqual => Val::Bool(x >= y),
        Equal | NotEqual | And | Or => return Err(Error::attribute(format!("`{}` does not combine numbers", symbol(op)))),
    })
}

/// `None` where the result is no integer: a negative power.
fn integers<'g>(op: Binary, x: &Dim, y: &Dim) -> Result<Option<Val<'g>>> {
    use Binary::*;
    let d = match (op, x.as_const(), y.as_const()) {
        (Div | Mod, _, Some(0)) => return Err(Error::attribute("division by zero")),
        (Add, Some(x), Some(y)) => Dim::Const(x.checked_add(y).ok_or_else(overflow)?),
        (Sub, Some(x), Some(y)) => Dim::Const(x.checked_sub(y).ok_or_else(overflow)?),
        (Mul, Some(x), Some(y)) => Dim::Const(x.checked_mul(y).ok_or_else(overflow)?),
        // The only quotient that overflows, in either operation.
        (Div | Mod, Some(i64::MIN), Some(-1)) => return Err(overflow()),
        (Pow, Some(x), Some(y)) if y >= 0 => Dim::Const(u32::try_from(y).ok().and_then(|y| x.checked_pow(y)).ok_or_else(overflow)?),
        (Pow, Some(_), Some(_)) => return Ok(None),
        (Pow, ..) => return Err(Error::attribute("symbolic dimensions have no powers")),
        (Less | LessEqual | Greater | GreaterEqual, ..) => {
            let d = (x - y).as_const().ok_or_else(|| Error::attribute(format!("{x} {} {y} is not known before the run", symbol(op))))?;
            return Ok(Some(Val::Bool(match op {
                Less => d < 0,
                LessEqual => d <= 0,
                Greater => d > 0,
                _ => d >= 0,
            })));
        }
        (Add, ..) => x.clone() + y.clone(),
        (Sub, ..) => x - y,
        (Mul, ..) => x.clone() * y.clone(),
        (Div, ..) => x.floor_div(y),
        (Mod, ..) => x.modulo(y),
        _ => return Ok(None),
    };
    check_dim(&d)?;
    Ok(Some(Val::Int(d)))
}

fn equal(a: &Val, b: &Val) -> Result<bool> {
    Ok(match (a, b) {
        (Val::Int(x), Val::Int(y)) => match (x - y).as_const() {
            Some(d) => d == 0,
            None => return Err(Error::attribute(format!("whether {x} equals {y} is not known before the run"))),
        },
        (Val::Bool(x), Val::Bool(y)) => x == y,
        (Val::Str(x), Val::Str(y)) => x == y,
        (Val::DType(x), Val::DType(y)) => x == y,
        (Val::Init(x), Val::Init(y)) => x == y,
        (Val::None, b) => matches!(b, Val::None),
        (_, Val::None) => false,
        (Val::List(x), Val::List(y)) => {
            if x.len() != y.len() {
                return Ok(false);
            }
            for (x, y) in x.iter().zip(y) {
                if !equal(x, y)? {
                    return Ok(false);
                }
            }
            true
        }
        (a, b) => match (a.as_f64(), b.as_f64()) {
            (Some(x), Some(y)) => x == y,
            _ => return Err(Error::attribute(format!("{} and {} cannot be compared", a.kind(), b.kind()))),
        },
    })
}

pub fn symbol(op: Binary) -> &'static str {
    use Binary::*;
    match op {
        Add => "+",
        Sub => "-",
        Mul => "*",
        Div => "/",
        Mod => "%",
        Pow => "**",
        Equal => "==",
        NotEqual => "!=",
        Less => "<",
        LessEqual => "<=",
        Greater => ">",
        GreaterEqual => ">=",
        And => "&&",
        Or => "||",
    }
}

pub fn unary<'g>(op: Unary, x: &Val<'g>) -> Result<Val<'g>> {
    match (op, x) {
        (Unary::Neg, Val::Int(d)) => binary(Binary::Sub, &Val::Int(Dim::Const(0)), &Val::Int(d.clone())),
        (Unary::Neg, Val::Float(x)) => Ok(Val::Float(-x)),
        (Unary::Not, Val::Bool(b)) => Ok(Val::Bool(!b)),
        (Unary::Neg, v) => Err(Error::attribute(format!("`-` needs a number, found {}", v.kind()))),
        (Unary::Not, v) => Err(Error::attribute(format!("`!` needs true or false, found {}", v.kind()))),
    }
}

/// Functions of numbers, which hyper-parameters are made with.
pub const FUNCTIONS: &[&str] =
    &["sqrt", "exp", "log", "abs", "floor", "ceil", "round", "min", "max", "stretch", "floordiv", "mod", "int", "float", "len"];

/// The value of a function of numbers; `None` where `name` is none or the operands are no numbers.
pub fn function<'g>(name: &str, x: &[Val<'g>]) -> Option<Result<Val<'g>>> {
    if !FUNCTIONS.contains(&name) || !x.iter().all(|v| v.is_number() || matches!(v, Val::List(_))) {
        return None;
    }
    let float = |f: fn(f64) -> f64| match x {
        [v] => v.as_f64().map(|v| Ok(Val::Float(f(v)))),
        _ => None,
    };
    // What rounds gives integers.
    let int = |f: fn(f64) -> f64| match x {
        [Val::Int(d)] => Some(Ok(Val::Int(d.clone()))),
        [Val::Float(v)] if f(*v).abs() < 9e18 => Some(Ok(Val::Int(Dim::Const(f(*v) as i64)))),
        [Val::Float(v)] => Some(Err(Error::attribute(format!("{v} is no integer of 64 bits")))),
        _ => None,
    };
    let two = |f: fn(&Dim, &Dim) -> Dim| match x {
        [Val::Int(a), Val::Int(b)] => {
            let d = f(a, b);
            Some(check_dim(&d).map(|_| Val::Int(d)))
        }
        _ => None,
    };
    let result = match (name, x) {
        ("sqrt", _) => float(f64::sqrt),
        ("exp", _) => float(libm::exp),
        ("log", _) => float(libm::log),
        ("float", _) => float(|v| v),
        ("abs", [Val::Int(d)]) => d.as_const().map(|i| i.checked_abs().map(|i| Val::Int(Dim::Const(i))).ok_or_else(overflow)),
        ("abs", _) => float(f64::abs),
        ("floor", _) => int(f64::floor),
        ("ceil", _) => int(f64::ceil),
        ("round", _) => int(f64::round_ties_even),
        ("int", _) => int(f64::trunc),
        ("len", [Val::List(l)]) => Some(Ok(Val::Int(Dim::from(l.len())))),
        ("floordiv", [a, b]) => Some(binary(Binary::Div, a, b)),
        ("mod", [a, b]) => Some(binary(Binary::Mod, a, b)),
        ("min", [Val::Int(_), Val::Int(_)]) => two(Dim::minimum),
        ("max", [Val::Int(_), Val::Int(_)]) => two(Dim::maximum),
        ("stretch", [Val::Int(_), Val::Int(_)]) => two(Dim::stretch),
        ("min" | "max", [a, b]) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => Some(Ok(Val::Float(if name == "min" { a.min(b) } else { a.max(b) }))),
            _ => None,
        },
        _ => None,
    };
    Some(result.unwrap_or_else(|| {
        let given: Vec<String> = x.iter().map(Val::kind).collect();
        Err(Error::attribute(format!("{name} does not take {}", if given.is_empty() { "nothing".into() } else { given.join(" and ") })))
    }))
}
