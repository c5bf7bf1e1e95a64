//! Sums of products: matrix multiplication and convolution, with the epilogue that fusion hangs on them.

use super::composite::activation::Act;
use super::{Class, Primitive, arity, same_dtype};
use crate::attrs::{Attr, AttrValue, op_struct};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type, broadcast};
use crate::winograd::Form;

/// One step on a contraction's result before it is stored. Steps that read a tensor take the next extra operand.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Post {
    /// `y + b`, one element of the operand `[C]` an output channel (the last axis of a matmul).
    Bias,
    /// `y + r`, an operand of the result's own shape (the residual).
    Add,
    /// `y * s`, an operand of one element an output channel.
    Scale,
    Act(Act),
}

impl Post {
    /// Whether the step takes an operand.
    pub fn has_operand(&self) -> bool {
        !matches!(self, Post::Act(_))
    }
}

impl AttrValue for Post {
    fn to_attr(&self) -> Attr {
        match self {
            Post::Bias => Attr::Word("bias".into()),
            Post::Add => Attr::Word("add".into()),
            Post::Scale => Attr::Word("scale".into()),
            Post::Act(a) => a.to_attr(),
        }
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        Ok(match a {
            Attr::Word(w) if &**w == "bias" => Post::Bias,
            Attr::Word(w) if &**w == "add" => Post::Add,
            Attr::Word(w) if &**w == "scale" => Post::Scale,
            a => Post::Act(Act::from_attr(a)?),
        })
    }
}

/// How activations and weights of a convolution lie in memory. `b` is the number of channels in a block (16 on x86).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Layout {
    /// x `[N,C,spatial..]`, w `[O,C/group,kernel..]`, y `[N,O,spatial..]`.
    #[default]
    Plain,
    /// x `[N,C/b,spatial..,b]`, w `[O/b,C/group/b,kernel..,b(in),b(out)]`, y `[N,O/b,spatial..,b]`; channels are padded with zeros to
    /// whole blocks (a group's channels are whole blocks). w may be bf16 beside f32: see [`takes_narrow`].
    Blocked(usize),
    /// x `[N,C,spatial..]`, w `[O/b,C,kernel..,b(out)]`, y `[N,O/b,spatial..,b]`: the first layer.
    Enter(usize),
    /// One filter a channel: x `[N,C/b,spatial..,b]`, w `[C/b,kernel..,b]`, y `[N,C/b,spatial..,b]`.
    Depthwise(usize),
    /// Minimal filtering ([`winograd`](crate::winograd)) of square windows that move by 1: x and y as in `Blocked`, w
    /// `[O/b,side,side,C/b,b(in),b(out)]`, `side` that of the form's patches; `run` of them are worked on at once.
    Winograd { block: usize, form: Form, run: usize },
}

impl Layout {
    /// Channels in a block, if there are blocks.
    pub fn block(self) -> Option<usize> {
        match self {
            Layout::Plain => None,
            Layout::Blocked(b) | Layout::Enter(b) | Layout::Depthwise(b) | Layout::Winograd { block: b, .. } => Some(b),
        }
    }
}

impl AttrValue for Layout {
    fn to_attr(&self) -> Attr {
        let call = |name: &str, b: &usize| Attr::Call(name.into(), vec![b.to_attr()]);
        match self {
            Layout::Plain => Attr::Word("plain".into()),
            Layout::Blocked(b) => call("blocked", b),
            Layout::Enter(b) => call("enter", b),
            Layout::Depthwise(b) => call("depthwise", b),
            Layout::Winograd { block, form: Form { tile, taps }, run } => {
                Attr::Call("winograd".into(), [block, tile, taps, run].map(|n| n.to_attr()).into())
            }
        }
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::Word(w) if &**w == "plain" => Ok(Layout::Plain),
            Attr::Call(name, args) if args.len() == 1 => {
                let b = usize::from_attr(&args[0])?;
                match &**name {
                    _ if b == 0 => Err(Error::attribute("a block has at least one channel")),
                    "blocked" => Ok(Layout::Blocked(b)),
                    "enter" => Ok(Layout::Enter(b)),
                    "depthwise" => Ok(Layout::Depthwise(b)),
                    _ => Err(Error::attribute(format!("no layout is called {name}"))),
                }
            }
            Attr::Call(name, args) if &**name == "winograd" && args.len() == 4 => {
                let mut n = [0; 4];
                for (n, a) in n.iter_mut().zip(args) {
                    *n = usize::from_attr(a)?;
                }
                let [block, tile, taps, run] = n;
                match Form::new(tile, taps) {
                    Some(form) if block > 0 && (1..=1024).contains(&run) => Ok(Layout::Winograd { block, form, run }),
                    None => Err(Error::attribute(format!("winograd: there is no F({tile}x{tile}, {taps}x{taps})"))),
                    _ => Err(Error::attribute(format!("winograd: blocks of {block} channels, runs of {run} (1 to 1024)"))),
                }
            }
            a => Err(Error::attribute(format!("expected plain, blocked(n), enter(n), depthwise(n) or winograd(n, tile, taps, run), found {a}"))),
        }
    }
}

/// Checks the extra operands of an epilogue against the result `y` whose channels number `channels` (padded to whole blocks).
fn check_post(op: &str, post: &[Post], extra: &[Type], y: &Type, channels: &Dim) -> Result<()> {
    let want = post.iter().filter(|p| p.has_operand()).count();
    if extra.len() != want {
        return Err(Error::arity(format!("{op}: the epilogue takes {want} operands, {} are given", extra.len())));
    }
    if let Some(Post::Act(a)) = post.iter().find(|p| matches!(p, Post::Act(a) if !a.takes(y.dtype))) {
        return Err(Error::dtype(format!("{op}: {} does not take {}", a.to_attr(), y.dtype)));
    }
    for (p, t) in post.iter().filter(|p| p.has_operand()).zip(extra) {
        let fits = match p {
            Post::Add => t.shape == y.shape,
            _ => t.rank() == 1 && t.shape[0] == *channels,
        };
        if !fits || t.dtype != y.dtype {
            return Err(Error::shape(format!("{op}: epilogue operand {t} does not fit the result {y} with {channels} channels")));
        }
    }
    Ok(())
}

/// Whether weights are bf16 beside an f32 operand. Then x is rounded to bf16 before it is multiplied, while sums, epilogue and result
/// are f32; and of the weights' rows (the last axis but one, input channels) each two lie interleaved: `[..,rows/2,columns,2]` in memory,
/// under the type `[..,rows,columns]`. Only blocked convolutions and packed products take such weights.
pub fn takes_narrow(x: &Type, w: &Type) -> bool {
    x.dtype == DType::F32 && w.dtype == DType::BF16
}

/// The element type of a contraction, whose weights may be narrow if `packed`.
fn contracted(op: &str, x: &[Type], packed: bool) -> Result<DType> {
    if !packed || !takes_narrow(&x[0], &x[1]) {
        return same_dtype(op, &[&x[0], &x[1]]);
    }
    let even = |d: &Dim| d.as_const().is_some_and(|n| n % 2 == 0);
    match x[1].shape.iter().rev().nth(1) {
        Some(rows) if even(rows) => Ok(DType::F32),
        _ => Err(Error::shape(format!("{op}: bf16 weights take an even number of rows, found {}", x[1]))),
    }
}

op_struct! {
    /// Matrix product as numpy's matmul: x `[..,M,K]`, w `[..,K,N]`, leading axes broadcast, vectors are promoted. With `transposed`
    /// w is `[..,N,K]`; with `packed` = N it is `[..,N/16 rounded up,K,16]` (column panels, zero padding), and may be bf16 beside f32.
    /// The result is followed by `post`.
    MatMul { transposed: bool = false, packed: Dim = Dim::Const(0), post: Vec<Post> = vec![] }
}

/// Columns in a panel of packed matmul weights.
pub const PANEL: usize = 16;

impl MatMul {
    /// Whether w lies in panels.
    pub fn is_packed(&self) -> bool {
        !self.packed.is(0)
    }
}

impl Primitive for MatMul {
    fn class(&self) -> Class {
        Class::Contract
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("matmul", x, 2, usize::MAX)?;
        let dtype = contracted("matmul", x, self.is_packed())?;
        let clash = |k: &Dim, l: &Dim| Error::shape(format!("matmul: contracted dims differ: {k} and {l} (x: {}, w: {})", x[0], x[1]));
        let (a, b) = (&x[0].shape, &x[1].shape);
        if a.is_empty() || b.is_empty() {
            return Err(Error::shape(format!("matmul takes no scalars (x: {}, w: {})", x[0], x[1])));
        }
        let (k, n, batch_b) = if self.is_packed() {
            let panels = self.packed.ceil_div(&Dim::from(PANEL));
            let [batch @ .., p, k, lanes] = &b[..] else { return Err(Error::shape(format!("matmul: {} is not packed", x[1]))) };
            if *p != panels || !lanes.is(PANEL as i64) {
                return Err(Error::shape(format!("matmul: weights packed for {} columns are [..,{panels},K,{PANEL}], found {}", self.packed, x[1])));
            }
            (k.clone(), Some(self.packed.clone()), batch)
        } else if b.len() == 1 {
            (b[0].clone(), None, &b[..0])
        } else {
            let (r, c) = (b[b.len() - 2].clone(), b[b.len() - 1].clone());
            let (k, n) = if self.transposed { (c, r) } else { (r, c) };
            (k, Some(n), &b[..b.len() - 2])
        };
        let ka = &a[a.len() - 1];
        if let (Some(p), Some(q)) = (ka.as_const(), k.as_const())
            && p != q
        {
            return Err(clash(ka, &k));
        }
        let batch_a = if a.len() > 1 { &a[..a.len() - 2] } else { &a[..0] };
        let mut shape = broadcast(&[batch_a, batch_b]).map_err(|e| Error::shape(format!("matmul: {}", e.message())))?;
        shape.extend(a.get(a.len().wrapping_sub(2)).cloned());
        shape.extend(n.clone());
        let y = Type::new(dtype, shape);
        check_post("matmul", &self.post, &x[2..], &y, &n.unwrap_or(Dim::Const(1)))?;
        Ok(vec![y])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        eval::contract::matmul(self, x, env).map(|t| vec![t])
    }
}

op_struct! {
    /// Convolution (cross-correlation) over any number of spatial axes, zero padding, followed by `post`.
    /// `pads` are all begins, then all ends. Empty `strides`, `dilations`, `pads` mean 1, 1, 0.
    ///
    /// `inputs`, of the layout `blocked` and one group, is the number of channels that filters were given for, `outputs`, of `blocked` and
    /// `enter`, the number of filters: those behind them fill the last block up, their weights are zeros and are not multiplied. 0 means all.
    Conv {
        strides: Vec<i64> = vec![], dilations: Vec<i64> = vec![], pads: Vec<i64> = vec![], group: usize = 1, layout: Layout = Layout::Plain,
        inputs: usize = 0, outputs: usize = 0, post: Vec<Post> = vec![]
    }
}

/// Attributes of a sliding window with their defaults filled in.
#[derive(Clone, Debug)]
pub struct Window {
    pub kernel: Vec<i64>,
    pub strides: Vec<i64>,
    pub dilations: Vec<i64>,
    /// Begins, then ends.
    pub pads: Vec<i64>,
}

impl Window {
    pub fn new(op: &str, kernel: Vec<i64>, strides: &[i64], dilations: &[i64], pads: &[i64]) -> Result<Window> {
        let n = kernel.len();
        let fill = |name: &str, v: &[i64], len: usize, default: i64, min: i64| -> Result<Vec<i64>> {
            let v = if v.is_empty() { vec![default; len] } else { v.to_vec() };
            if v.len() != len || v.iter().any(|x| *x < min || *x > i32::MAX as i64) {
                return Err(Error::attribute(format!("{op}: {name} {v:?} should be {len} numbers from {min} to {}", i32::MAX)));
            }
            Ok(v)
        };
        Ok(Window {
            strides: fill("strides", strides, n, 1, 1)?,
            dilations: fill("dilations", dilations, n, 1, 1)?,
            pads: fill("pads", pads, 2 * n, 0, i32::MIN as i64)?,
            kernel: fill("kernel", &kernel, n, 1, 1)?,
        })
    }

    /// Input elements that a window spans along axis `i`.
    pub fn extent(&self, i: usize) -> i64 {
        (self.kernel[i] - 1) * self.dilations[i] + 1
    }

    /// Output length along axis `i` for an input of length `d` (floor).
    pub fn out(&self, i: usize, d: &Dim) -> Dim {
        let n = self.kernel.len();
        let slack = d.clone() + Dim::Const(self.pads[i] + self.pads[n + i] - self.extent(i));
        slack.floor_div(&Dim::Const(self.strides[i])) + Dim::Const(1)
    }
}

impl Conv {
    /// The window, with the kernel's size read from the type of the weights.
    pub fn window(&self, w: &Type) -> Result<Window> {
        let (skip, tail) = match self.layout {
            Layout::Plain => (2, 0),
            Layout::Blocked(_) => (2, 2),
            Layout::Enter(_) => (2, 1),
            Layout::Depthwise(_) => (1, 1),
            Layout::Winograd { form, .. } => return Window::new("conv", vec![form.taps as i64; 2], &self.strides, &self.dilations, &self.pads),
        };
        let kernel = w.shape.get(skip..w.rank().saturating_sub(tail)).and_then(|k| k.iter().map(Dim::as_const).collect::<Option<Vec<_>>>());
        let kernel = kernel.ok_or_else(|| Error::shape(format!("conv: the kernel's size must be known, found weights {w}")))?;
        Window::new("conv", kernel, &self.strides, &self.dilations, &self.pads)
    }
}

impl Primitive for Conv {
    fn class(&self) -> Class {
        Class::Contract
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("conv", x, 2, usize::MAX)?;
        let dtype = contracted("conv", x, matches!(self.layout, Layout::Blocked(_)))?;
        let window = self.window(&x[1])?;
        let n = window.kernel.len();
        let (xs, ws) = (&x[0].shape, &x[1].shape);
        let group = Dim::from(self.group);
        let misfit =
            |why: &str| Error::shape(format!("conv: {why} (x: {}, w: {}, group={}, layout={})", x[0], x[1], self.group, self.layout.to_attr()));
        let block = self.layout.block().unwrap_or(1);
        let blocked_in = !matches!(self.layout, Layout::Plain | Layout::Enter(_));
        if n == 0 || xs.len() != n + 2 + usize::from(blocked_in) {
            return Err(misfit("the ranks of x and w do not fit"));
        }
        if blocked_in && !xs[xs.len() - 1].is(block as i64) {
            return Err(misfit("the last axis of x is not a channel block"));
        }
        let channels_fit = match self.layout {
            Layout::Depthwise(b) => ws[0] == xs[1] && ws[ws.len() - 1].is(b as i64),
            Layout::Enter(b) => self.group == 1 && ws[1] == xs[1] && ws[ws.len() - 1].is(b as i64),
            Layout::Blocked(b) if ws[ws.len() - 2..].iter().any(|d| !d.is(b as i64)) => false,
            Layout::Winograd { block, form, .. } => {
                let side = Dim::from(form.side());
                let steps = [&window.strides, &window.dilations].into_iter().flatten().all(|s| *s == 1);
                let fits = |w: &[Dim]| w[1..] == [side.clone(), side, xs[1].clone(), Dim::from(block), Dim::from(block)];
                steps && dtype.is_float() && self.group == 1 && ws.len() == 6 && fits(ws)
            }
            _ => !differ(&(ws[1].clone() * group.clone()), &xs[1]),
        };
        if !channels_fit {
            let taken = ws.get(1).map_or("none".into(), Dim::to_string);
            return Err(misfit(&format!("{} channels do not fit weights for {taken} in each of {} groups", xs[1], self.group)));
        }
        // Kernels count blocks by these numbers, and read what is behind the last channel of no block but the last.
        let end_in_last = |n: usize, axis: usize| ws[axis].as_const() == i64::try_from(n.div_ceil(block)).ok();
        let filled = self.group == 1 && matches!(self.layout, Layout::Blocked(_));
        if self.inputs > 0 && !(filled && end_in_last(self.inputs, 1)) {
            return Err(misfit(&format!("inputs={} is no number of channels that ends in the last block of them", self.inputs)));
        }
        if self.outputs > 0 && !((filled || matches!(self.layout, Layout::Enter(_))) && end_in_last(self.outputs, 0)) {
            return Err(misfit(&format!("outputs={} is no number of filters that ends in the last block of them", self.outputs)));
        }
        if let (Some(o), false) = (ws[0].as_const(), matches!(self.layout, Layout::Depthwise(_)))
            && (self.group == 0 || o % self.group as i64 != 0)
        {
            return Err(misfit("output channels are no multiple of group"));
        }
        let mut shape = vec![xs[0].clone(), ws[0].clone()];
        for i in 0..n {
            let d = window.out(i, &xs[2 + i]);
            if d.as_const().is_some_and(|d| d < 0) {
                return Err(misfit(&format!("the window spans {} elements, more than spatial axis {i} has", window.extent(i))));
            }
            shape.push(d);
        }
        let channels = ws[0].clone() * Dim::from(block);
        if self.layout != Layout::Plain {
            shape.push(Dim::from(block));
        }
        let y = Type::new(dtype, shape);
        check_post("conv", &self.post, &x[2..], &y, &channels)?;
        Ok(vec![y])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::contract::conv(self, x).map(|t| vec![t])
    }
}

op_struct! {
    /// Transposed convolution: x `[N,C,spatial..]`, w `[C,O/group,kernel..]`, y `[N,O,spatial..]` with output length
    /// `(in-1)*stride + output_padding + (k-1)*dilation + 1 - pads`; followed by `post`.
    ConvTranspose {
        strides: Vec<i64> = vec![], dilations: Vec<i64> = vec![], pads: Vec<i64> = vec![], output_padding: Vec<i64> = vec![], group: usize = 1,
        post: Vec<Post> = vec![]
    }
}

impl ConvTranspose {
    pub fn window(&self, w: &Type) -> Result<Window> {
        let kernel = w.shape.get(2..).and_then(|k| k.iter().map(Dim::as_const).collect::<Option<Vec<_>>>());
        let kernel = kernel.ok_or_else(|| Error::shape(format!("conv_transpose: the kernel's size must be known, found weights {w}")))?;
        Window::new("conv_transpose", kernel, &self.strides, &self.dilations, &self.pads)
    }
}

/// Whether lengths differ, whatever the sizes; where only the run can tell, it does ([`fit`](super::fit)).
fn differ(a: &Dim, b: &Dim) -> bool {
    (a - b).as_const().is_some_and(|d| d != 0)
}

impl Primitive for ConvTranspose {
    fn class(&self) -> Class {
        Class::Contract
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("conv_transpose", x, 2, usize::MAX)?;
        let dtype = same_dtype("conv_transpose", &[&x[0], &x[1]])?;
        let window = self.window(&x[1])?;
        let n = window.kernel.len();
        let (xs, ws) = (&x[0].shape, &x[1].shape);
        if n == 0 || xs.len() != n + 2 || differ(&ws[0], &xs[1]) || self.group == 0 || ws[0].as_const().is_some_and(|c| c % self.group as i64 != 0) {
            return Err(Error::shape(format!("conv_transpose: x {} and w {} do not fit with group={}", x[0], x[1], self.group)));
        }
        if !self.output_padding.is_empty() && self.output_padding.len() != n {
            return Err(Error::attribute(format!("conv_transpose: output_padding {:?} should be {n} numbers", self.output_padding)));
        }
        let channels = ws[1].clone() * Dim::from(self.group);
        let mut shape = vec![xs[0].clone(), channels.clone()];
        for i in 0..n {
            let extra = self.output_padding.get(i).copied().unwrap_or(0).saturating_add(window.extent(i));
            let extra = extra.saturating_sub(window.pads[i]).saturating_sub(window.pads[n + i]);
            let d = (xs[2 + i].clone() - Dim::Const(1)) * Dim::Const(window.strides[i]) + Dim::Const(extra);
            if d.as_const().is_some_and(|d| d < 0) {
                return Err(Error::shape(format!("conv_transpose: spatial axis {i} of the result would have length {d}")));
            }
            shape.push(d);
        }
        let y = Type::new(dtype, shape);
        check_post("conv_transpose", &self.post, &x[2..], &y, &channels)?;
        Ok(vec![y])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::contract::conv_transpose(self, x).map(|t| vec![t])
    }
}
