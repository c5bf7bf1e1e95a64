//! Expressions: names, arithmetic, elements, literals.

use super::ast::{self, Expr, ExprKind};
use super::elaborate::{Elab, Eval, Frame, Stop, did_you_mean};
use super::lex::Pos;
use super::value::{self, Val};
use nnc_ir::error::Error;
use nnc_ir::print::TypeText;
use nnc_ir::{Dim, Result, ScalarFn, Tensor, Type, V};

impl<'a, 'g> Elab<'a, 'g> {
    pub(super) fn expr(&self, e: &'a Expr, frame: &mut Frame<'g>, hint: Option<&str>, results: usize) -> Eval<Val<'g>> {
        match &e.kind {
            ExprKind::Num(text) => Ok(number(text)?),
            ExprKind::Str(s) => Ok(Val::Str(s.clone())),
            ExprKind::Bool(b) => Ok(Val::Bool(*b)),
            ExprKind::None => Ok(Val::None),
            ExprKind::Inf => Ok(Val::Float(f64::INFINITY)),
            ExprKind::Nan => Ok(Val::Float(f64::NAN)),
            ExprKind::Name(n) => self.name(n, frame),
            ExprKind::List(items) => Ok(Val::List(items.iter().map(|e| self.eval(e, frame)).collect::<Eval<_>>()?)),
            ExprKind::Unary(op, x) => {
                let x = self.eval(x, frame)?;
                let Val::Tensor(v) = x else { return Ok(value::unary(*op, &x)?) };
                let f = if *op == ast::Unary::Neg { ScalarFn::Neg } else { ScalarFn::Not };
                self.tensor(f, &[v], e.pos)
            }
            ExprKind::Chain(first, rest) => {
                let mut acc = self.eval(first, frame)?;
                for (op, pos, x) in rest {
                    let x = self.eval(x, frame)?;
                    acc = self.binary(*op, acc, x, *pos).map_err(|stop| match stop {
                        Stop::Error(err) => Stop::Error(err.at(&self.shared.loc(*pos))),
                        stop => stop,
                    })?;
                }
                Ok(acc)
            }
            ExprKind::Call(call) => self.call(call, e.pos, frame, hint, results),
            ExprKind::Index(x, i) => {
                let x = self.eval(x, frame)?;
                let i = self.eval(i, frame)?.as_dim()?;
                self.index(x, i)
            }
            ExprKind::Field(x, field) => {
                let x = self.eval(x, frame)?;
                let Val::Tensor(v) = x else {
                    return Err(Error::name(format!("only tensors have fields, not {}", x.kind())).into());
                };
                let ty = v.ty();
                match &*field.text {
                    "shape" => Ok(Val::List(ty.shape.into_iter().map(Val::Int).collect())),
                    "rank" => Ok(Val::Int(Dim::from(ty.rank()))),
                    "dtype" => Ok(Val::DType(ty.dtype)),
                    f => Err(Error::name(format!("a tensor has no `{f}`: it has shape, rank and dtype")).into()),
                }
            }
            ExprKind::Param(p) => self.param(p, e.pos, frame, hint),
            ExprKind::Literal(l) => {
                let ty = self.type_of(&l.ty, frame)?;
                let shape = self.shared.take(&ty)?;
                let t = literal(ty, shape, &l.data)?;
                self.b.at(self.shared.loc(e.pos));
                Ok(Val::Tensor(self.b.constant(t)))
            }
        }
    }

    fn name(&self, n: &'a ast::Name, frame: &Frame<'g>) -> Eval<Val<'g>> {
        if let Some(v) = frame.get(&n.text) {
            return if matches!(v, Val::Poison) { Err(Stop::Poison) } else { Ok(v.clone()) };
        }
        if frame.symbols.contains(&n.text) {
            return Ok(Val::Int(Dim::sym(&n.text)));
        }
        if let Some(g) = self.shared.globals.get(&n.text) {
            return Ok(g.val());
        }
        if &*n.text == "training" {
            return Ok(Val::Bool(self.shared.training));
        }
        if let Some(d) = nnc_ir::DType::from_name(&n.text) {
            return Ok(Val::DType(d));
        }
        // Initialisers without numbers, and those whose numbers have defaults.
        if let Some(Ok(init)) = super::init::Init::new(&n.text, &[]) {
            return Ok(Val::Init(init));
        }
        let e = Error::name(format!("`{}` is not defined", n.text));
        if self.shared.modules.contains_key(&*n.text) || self.shared.operators.known(&n.text) {
            return Err(e.note(format!("`{}(...)` is a call", n.text)).into());
        }
        let known = frame.vars.keys().chain(&frame.symbols).chain(self.shared.globals.keys()).map(|k| &**k);
        Err(did_you_mean(e, &n.text, known).into())
    }

    fn binary(&self, op: ast::Binary, a: Val<'g>, b: Val<'g>, pos: Pos) -> Eval<Val<'g>> {
        use ast::Binary::*;
        let (x, y) = match (&a, &b) {
            (Val::Tensor(x), Val::Tensor(y)) => (*x, *y),
            (Val::Tensor(x), y) => (*x, self.beside(y, *x, value::symbol(op))?),
            (x, Val::Tensor(y)) => (self.beside(x, *y, value::symbol(op))?, *y),
            _ => return Ok(value::binary(op, &a, &b)?),
        };
        let f = match op {
            Add => ScalarFn::Add,
            Sub => ScalarFn::Sub,
            Mul => ScalarFn::Mul,
            Div => ScalarFn::Div,
            Mod => ScalarFn::Mod,
            Pow => ScalarFn::Pow,
            Equal | NotEqual => ScalarFn::Equal,
            Less => ScalarFn::Less,
            LessEqual => ScalarFn::LessEqual,
            Greater => ScalarFn::Greater,
            GreaterEqual => ScalarFn::GreaterEqual,
            And => ScalarFn::And,
            Or => ScalarFn::Or,
        };
        let y = self.tensor(f, &[x, y], pos)?;
        match (op, y) {
            (NotEqual, Val::Tensor(y)) => self.tensor(ScalarFn::Not, &[y], pos),
            (_, y) => Ok(y),
        }
    }

    /// A number beside a tensor: a scalar constant of its element type.
    fn beside(&self, v: &Val<'g>, tensor: V<'g>, op: &str) -> Eval<V<'g>> {
        let dtype = tensor.ty().dtype;
        match v {
            Val::Int(d) if d.as_const().is_none() => {
                Ok(self.b.op(nnc_ir::ops::source::Dims { values: vec![d.clone()], scalar: true }, &[]).cast(dtype))
            }
            Val::Float(x) if dtype.is_int() && x.fract() != 0.0 => {
                Err(Error::dtype(format!("{x} is no {dtype}: a number beside a tensor takes its element type")).into())
            }
            Val::Bool(b) => Ok(self.b.constant(Tensor::scalar(*b))),
            v => match v.as_f64() {
                Some(x) => Ok(tensor.scalar_like(x)),
                None => Err(Error::dtype(format!("`{op}` takes tensors and numbers, not {}", v.kind())).into()),
            },
        }
    }

    fn tensor(&self, f: ScalarFn, x: &[V<'g>], pos: Pos) -> Eval<Val<'g>> {
        self.shared.step()?;
        self.b.at(self.shared.loc(pos));
        self.one(self.b.try_op(nnc_ir::Op::Map(f), x, vec![])?)
    }

    /// The first result; poison stops here.
    fn one(&self, y: Vec<V<'g>>) -> Eval<Val<'g>> {
        self.checked(&y[..1])?;
        Ok(Val::Tensor(y[0]))
    }

    /// `list[i]`, or slice `i` of a tensor's first axis. Negative counts from the end.
    fn index(&self, x: Val<'g>, i: Dim) -> Eval<Val<'g>> {
        match x {
            Val::List(l) | Val::Tuple(l) => {
                let n = l.len() as i64;
                let k = i.as_const().ok_or_else(|| Error::attribute(format!("the index {i} must be known before the run")))?;
                let at = if k < 0 { k.saturating_add(n) } else { k };
                let v = usize::try_from(at).ok().and_then(|k| l.get(k).cloned());
                v.ok_or_else(|| Error::attribute(format!("index {k} is outside a list of {n}")).into())
            }
            Val::Tensor(v) => {
                let ty = v.ty();
                let [first, rest @ ..] = &ty.shape[..] else { return Err(Error::shape("a scalar has no elements to choose from").into()) };
                let start = if i.as_const().is_some_and(|i| i < 0) { first.clone() + i.clone() } else { i.clone() };
                if let (Some(s), Some(n)) = (start.as_const(), first.as_const())
                    && !(0..n).contains(&s)
                {
                    return Err(Error::shape(format!("index {i} is outside the first axis of {ty}")).into());
                }
                let y = v.slice_axis(0, start, Dim::Const(1)).reshape(rest.to_vec());
                self.one(vec![y])
            }
            v => Err(Error::dtype(format!("{} has no elements", v.kind())).into()),
        }
    }
}

/// A number of the text: an integer unless it has a dot or an exponent.
fn number<'g>(text: &str) -> Result<Val<'g>> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map(|i| Val::Int(Dim::Const(i))).map_err(|_| Error::limit(format!("{text} does not fit 64 bits")));
    }
    text.parse().map(Val::Float).map_err(|_| Error::syntax(format!("`{text}` is no number")))
}

/// A constant tensor of the text. Each element is read as its own type, so that no decimal is rounded twice.
fn literal(ty: Type, shape: Vec<usize>, data: &ast::Elements) -> Result<Tensor> {
    use nnc_ir::DType::*;
    let list = match data {
        ast::Elements::List(l) => &l[..],
        ast::Elements::Splat(s) => std::slice::from_ref(s),
        ast::Elements::Elided(h) => {
            let e = Error::syntax(format!("the elements of this {} were not printed, #{h} only stands for them", TypeText(&ty)));
            return Err(e.note("print with full constants to read the text back"));
        }
    };
    if ty.dtype == Str {
        let wrong = |s: &String| Error::dtype(format!("`{s}` is no string"));
        let texts = list.iter().map(|s| s.strip_prefix('"').map(Into::into).ok_or_else(|| wrong(s))).collect::<Result<Vec<_>>>()?;
        return Tensor::text(&shape, texts);
    }
    let mut bytes: Vec<u8> = Vec::with_capacity(list.len() * ty.dtype.bytes());
    for s in list {
        macro_rules! put {
            ($t:ty) => {
                s.parse::<$t>().map(|x| nnc_ir::tensor::Element::put(x, &mut bytes)).is_ok()
            };
        }
        let read = match ty.dtype {
            F32 => put!(f32),
            F64 => put!(f64),
            I8 => put!(i8),
            I16 => put!(i16),
            I32 => put!(i32),
            I64 => put!(i64),
            U8 => put!(u8),
            U16 => put!(u16),
            U32 => put!(u32),
            U64 => put!(u64),
            Bool => put!(bool),
            Str => false,
            I4 | I2 | U4 | U2 => s.parse::<i64>().is_ok_and(|x| {
                let n = nnc_ir::scalar::Num::I(x).cast(ty.dtype);
                n.write(ty.dtype, &mut bytes);
                n.as_i64() == x
            }),
            // No decimal of a few digits lies so near a tie of these types that f64 would hide on which side.
            _ => s.parse::<f64>().map(|x| nnc_ir::scalar::Num::F(x).cast(ty.dtype).write(ty.dtype, &mut bytes)).is_ok(),
        };
        if !read {
            return Err(Error::dtype(format!("`{s}` is no {}", ty.dtype)));
        }
    }
    let n: usize = shape.iter().product();
    match data {
        ast::Elements::Splat(_) if !shape.is_empty() => Tensor::splat(ty.dtype, shape, bytes.into()),
        _ if list.len() != n => Err(Error::shape(format!("{} has {n} elements, {} are given", TypeText(&ty), list.len()))),
        _ => Tensor::from_bytes(ty.dtype, shape, bytes.into()),
    }
}
