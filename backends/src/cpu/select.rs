//! Which code a kernel gets: an ordered list of implementations, the first that accepts wins.
//!
//! An implementation sees the kernel's origin (a tensor operation and its types) and makes a vector kernel for it, or says why it
//! does not. Behind them all stands the vectoriser, and behind that the loops as Cranelift compiles them, which take anything.

use super::driver::commands::Extra;
use super::isa::{Isa, Machine};
use super::kernels::attention::{Attention as AttentionKernel, Mask, attention};
use super::kernels::conv::{Conv as ConvKernel, Image, conv};
use super::kernels::depthwise::{Depthwise, depthwise};
use super::kernels::gemm::{Gemm, Matrix, gemm};
use super::kernels::planar::{Planar, planar};
use super::kernels::pool::{Pool as PoolKernel, PoolKind as Pooling, pool};
use super::kernels::post::{Act as Activation, Post as Epilogue};
use super::kernels::reorder::{Reorder, to_blocked, to_plain};
use super::kernels::rows::{RowKind, Rows, rows};
use super::kernels::winograd::{Winograd, winograd};
use super::kernels::{self, BLOCK, Factor, Size, Tasks};
use super::vectorize::vectorize;
use super::vir::Func;
use super::vir::verify::verify;
use super::x86;
use nnc_ir::attrs::AttrValue;
use nnc_ir::kernel::{Kernel, Origin, size_symbol};
use nnc_ir::ops::Op;
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::{Conv, Layout, MatMul, Post, Window, takes_narrow};
use nnc_ir::ops::window::{Pool, PoolKind};
use nnc_ir::scalar::ScalarFn;
use nnc_ir::target::{self, Target};
use nnc_ir::{DType, Dim, Error, Result, Type};

/// The code chosen for a kernel.
pub struct Choice {
    /// What chose it, for reports.
    pub implementation: &'static str,
    /// A vector kernel, or `None` for the loops as they are.
    pub vector: Option<Vector>,
    /// Number of tasks, over the kernel's sizes.
    pub tasks: Dim,
    /// What the code reads behind the kernel's own sizes.
    pub extra: Vec<Extra>,
    /// Implementations that refused, and why.
    pub refused: Vec<(&'static str, String)>,
}

/// A vector kernel as far as it is compiled here.
pub enum Vector {
    /// For Cranelift.
    Portable(Func),
    /// Machine code, of which nothing but itself is read.
    Code(Vec<u8>),
}

impl Vector {
    /// An error where the kernel is nothing that the instruction set can say: constants too large for an instruction, too many masks.
    fn new(func: Func, isa: Isa) -> Result<Vector> {
        match isa {
            Isa::Portable => verify(&func).map(|()| Vector::Portable(func)),
            // Which verifies it.
            Isa::Avx2 | Isa::Avx512 => Ok(Vector::Code(x86::assemble(&func)?.bytes)),
        }
    }
}

/// What an implementation is asked.
struct Site<'k> {
    kernel: &'k Kernel,
    origin: &'k Origin,
    isa: Isa,
    machine: Machine,
    /// Whether the machine multiplies pairs of bf16.
    bf16: bool,
    /// Whether operands may be read up to the next 64-byte boundary.
    padded: bool,
    extra: Vec<Extra>,
}

type Accept = fn(&mut Site) -> Result<kernels::Kernel>;

/// An implementation: its name, the operations that it is for, what it makes, and whether it writes results that are windows of larger
/// tensors.
struct Implementation(&'static str, fn(&Op) -> bool, Accept, Windows);

#[derive(PartialEq)]
enum Windows {
    Yes,
    No,
}

/// In order of preference.
const IMPLEMENTATIONS: &[Implementation] = &[
    Implementation("winograd", |op| matches!(op, Op::Conv(c) if matches!(c.layout, Layout::Winograd { .. })), minimal_filtering, Windows::No),
    Implementation("planar convolution", |op| matches!(op, Op::Conv(c) if c.layout == Layout::Plain), rowwise, Windows::No),
    Implementation("convolution", is_convolution, convolution, Windows::Yes),
    Implementation("depthwise", |op| matches!(op, Op::Conv(c) if matches!(c.layout, Layout::Depthwise(_))), channelwise, Windows::Yes),
    Implementation("gemm", |op| matches!(op, Op::MatMul(_)), product, Windows::No),
    Implementation("attention", |op| matches!(op, Op::Attention(_)), attend, Windows::No),
    Implementation("pool", |op| matches!(op, Op::Pool(_)), pooling, Windows::No),
    Implementation("reorder", |op| matches!(op, Op::Pack(_) | Op::Unpack(_)), reorder, Windows::No),
    Implementation("rows", |op| matches!(op, Op::Softmax(_) | Op::LogSoftmax(_) | Op::LayerNorm(_)), row_function, Windows::No),
];

/// A convolution into blocks that sums what it is given: neither one filter a channel nor minimal filtering.
fn is_convolution(op: &Op) -> bool {
    matches!(op, Op::Conv(c) if matches!(c.layout, Layout::Blocked(_) | Layout::Enter(_)))
}

/// The instruction set of vector kernels for a target.
pub fn vector_isa(t: &Target) -> Isa {
    match t.isa {
        target::Isa::Avx2 => Isa::Avx2,
        target::Isa::Avx512 => Isa::Avx512,
        target::Isa::X86_64 | target::Isa::Aarch64 => Isa::Portable,
    }
}

/// Chooses the code of a kernel. `padded` says that every launch's operands may be read up to the next 64-byte boundary.
pub fn choose(kernel: &Kernel, target: &Target, padded: bool) -> Choice {
    let isa = vector_isa(target);
    let machine = Machine { l1_bytes: target.l1_bytes as i64, l2_bytes: target.l2_bytes as i64, ..Machine::default() };
    let mut refused = vec![];
    if let Some(origin) = &kernel.origin {
        // What is for other operations is not worth a word in reports.
        for Implementation(name, _, accept, windows) in IMPLEMENTATIONS.iter().filter(|i| i.1(&origin.op)) {
            if origin.within.is_some() && *windows == Windows::No {
                refused.push((*name, "the result is a window of a larger tensor".into()));
                continue;
            }
            let mut site = Site { kernel, origin, isa, machine, bf16: target.bf16, padded, extra: vec![] };
            // A stride or a size that no instruction takes as a constant, say: the loops hold such numbers in registers.
            match accept(&mut site).and_then(|made| Ok((Vector::new(made.func, isa)?, made.tasks))) {
                Ok((vector, tasks)) => {
                    let tasks = site.tasks(&tasks);
                    return Choice { implementation: name, vector: Some(vector), tasks, extra: site.extra, refused };
                }
                Err(e) => refused.push((*name, e.message().to_string())),
            }
        }
    }
    match vectorize(kernel, isa).and_then(|func| Vector::new(func, isa)) {
        Ok(vector) => Choice { implementation: "vector loops", vector: Some(vector), tasks: kernel.tasks.clone(), extra: vec![], refused },
        Err(e) => {
            refused.push(("vector loops", e.message().to_string()));
            Choice { implementation: "loops", vector: None, tasks: kernel.tasks.clone(), extra: vec![], refused }
        }
    }
}

fn no<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::unsupported(why))
}

impl Site<'_> {
    fn x(&self, i: usize) -> &Type {
        &self.origin.x[i]
    }

    fn y(&self) -> &Type {
        &self.origin.y[0]
    }

    /// Argument word of the first result: results follow the operands.
    fn output(&self) -> u32 {
        self.origin.x.len() as u32
    }

    /// A dimension as generators take it: a constant, a size of the kernel, or one more word behind those.
    fn size(&mut self, d: &Dim) -> Size {
        if let Some(c) = d.as_const() {
            return Size::Const(c);
        }
        let first = self.kernel.params.len() as u32;
        if let Some(i) = (0..self.kernel.sizes).find(|i| size_symbol(*i as usize) == *d) {
            return Size::Arg(first + i);
        }
        self.extra(Extra::Size(d.clone()))
    }

    /// The number of threads that share the tasks.
    fn threads(&mut self) -> Size {
        self.extra(Extra::Threads)
    }

    fn extra(&mut self, e: Extra) -> Size {
        let at = self.extra.iter().position(|f| *f == e).unwrap_or_else(|| {
            self.extra.push(e);
            self.extra.len() - 1
        });
        Size::Arg(self.kernel.params.len() as u32 + self.kernel.sizes + at as u32)
    }

    fn dim(&self, s: &Size) -> Dim {
        match s {
            Size::Const(c) => Dim::Const(*c),
            Size::Arg(word) => {
                let i = *word as usize - self.kernel.params.len();
                let own = self.kernel.sizes as usize;
                match self.extra.get(i.wrapping_sub(own)) {
                    Some(Extra::Size(d)) => d.clone(),
                    Some(Extra::Threads) => Dim::Const(1),
                    None => size_symbol(i),
                }
            }
        }
    }

    fn tasks(&self, t: &Tasks) -> Dim {
        t.0.iter().fold(Dim::Const(1), |n, f| {
            n * match f {
                Factor::Size(s) => self.dim(s),
                Factor::Chunks { of, per } => of.iter().fold(Dim::Const(1), |n, s| n * self.dim(s)).ceil_div(&Dim::Const(*per)),
            }
        })
    }

    fn all_f32(&self) -> Result<()> {
        match self.origin.x.iter().chain(&self.origin.y).find(|t| t.dtype != DType::F32) {
            Some(t) => no(format!("an operand is {}", t.dtype)),
            None => Ok(()),
        }
    }

    /// That all operands are f32 but, where the machine multiplies such, the weights: whether those are bf16.
    fn narrow_weights(&self) -> Result<bool> {
        if !takes_narrow(self.x(0), self.x(1)) {
            return self.all_f32().map(|()| false);
        }
        match self.origin.x[2..].iter().chain(&self.origin.y).find(|t| t.dtype != DType::F32) {
            Some(t) => no(format!("an operand is {}", t.dtype)),
            None if self.bf16 => Ok(true),
            None => no("the target has no products of bf16"),
        }
    }

    /// Dense images `[N, planes, spatial..]`, with blocks of channels innermost where `blocked`.
    fn image(&mut self, word: u32, shape: &[Dim], blocked: bool) -> Image {
        let unit = Dim::Const(if blocked { BLOCK } else { 1 });
        let spatial = &shape[2..shape.len() - usize::from(blocked)];
        let mut step = unit;
        let mut pitches = vec![];
        for d in spatial.iter().rev() {
            step = step * d.clone();
            pitches.push(self.size(&step));
        }
        // The last product is the plane, not a pitch between rows.
        pitches.pop();
        pitches.reverse();
        let (plane, image) = (self.size(&step), self.size(&(step * shape[1].clone())));
        Image { word, origin: Size::Const(0), image, plane, pitches }
    }

    /// The result in blocks, as an image of `dims` spatial dimensions or more. It may be a window of a larger tensor.
    fn result(&mut self, dims: usize) -> Image {
        let word = self.output();
        let Some(w) = self.origin.within.clone() else {
            let shape = raised(&self.y().shape, dims);
            return self.image(word, &shape, true);
        };
        let image = self.image(word, &raised(&w.shape, dims), true);
        Image { origin: self.size(&w.offset()), ..image }
    }

    /// The epilogue after a leading bias, which the accumulators start from. `place` walks a tensor like the output.
    fn epilogue(&mut self, post: &[Post], mut place: impl FnMut(&mut Self, u32) -> kernels::contract::Place) -> Result<(Option<u32>, Vec<Epilogue>)> {
        let mut word = 2;
        let mut next = || {
            word += 1;
            word - 1
        };
        let (mut bias, mut steps) = (None, vec![]);
        for (i, p) in post.iter().enumerate() {
            match p {
                Post::Bias if i == 0 => bias = Some(next()),
                Post::Bias => steps.push(Epilogue::AddChannel(next())),
                Post::Scale => steps.push(Epilogue::MulChannel(next())),
                Post::Add => {
                    let word = next();
                    steps.push(Epilogue::AddTensor(place(self, word)));
                }
                Post::Act(a) => steps.push(Epilogue::Act(activation(*a)?)),
            }
        }
        Ok((bias, steps))
    }
}

fn activation(a: Act) -> Result<Activation> {
    Ok(match a {
        Act::Fn(ScalarFn::Relu) => Activation::Relu,
        Act::Fn(ScalarFn::Sigmoid) => Activation::Sigmoid,
        Act::Fn(ScalarFn::Tanh) => Activation::Tanh,
        Act::Fn(ScalarFn::Exp) => Activation::Exp,
        Act::Fn(ScalarFn::Log) => Activation::Log,
        Act::Fn(ScalarFn::Erf) => Activation::Erf,
        Act::Fn(ScalarFn::Abs) => Activation::Abs,
        Act::Fn(ScalarFn::Neg) => Activation::Neg,
        Act::Fn(ScalarFn::Sqrt) => Activation::Sqrt,
        Act::Fn(ScalarFn::Floor) => Activation::Floor,
        Act::Fn(ScalarFn::Ceil) => Activation::Ceil,
        Act::Clip { lo, hi } => Activation::Clip { lo: lo.0 as f32, hi: hi.0 as f32 },
        Act::LeakyRelu { alpha } => Activation::LeakyRelu { a: alpha.0 as f32 },
        Act::Elu { alpha } => Activation::Elu { a: alpha.0 as f32 },
        Act::HardSigmoid { alpha, beta } => Activation::HardSigmoid { a: alpha.0 as f32, b: beta.0 as f32 },
        Act::HardSwish {} => Activation::HardSwish,
        Act::Swish { alpha } if alpha.0 == 1.0 => Activation::Silu,
        Act::Gelu {} => Activation::Gelu,
        Act::GeluTanh {} => Activation::GeluTanh,
        Act::Softplus {} => Activation::Softplus,
        Act::Mish {} => Activation::Mish,
        a => return no(format!("the activation {a:?}")),
    })
}

fn known(d: &Dim, what: &str) -> Result<i64> {
    d.as_const().map_or_else(|| no(format!("{what} are known only at run time")), Ok)
}

fn no_padding(w: &Window) -> Result<()> {
    if w.pads.iter().all(|p| *p == 0) { Ok(()) } else { no("the operand has no halo: padding is an operation of its own here") }
}

fn convolution(s: &mut Site) -> Result<kernels::Kernel> {
    let Op::Conv(op) = &s.origin.op else { return no("not a convolution") };
    let op: Conv = op.clone();
    let narrow = s.narrow_weights()?;
    let plain = match op.layout {
        Layout::Blocked(b) if b as i64 == BLOCK => false,
        Layout::Enter(b) if b as i64 == BLOCK => true,
        l => return no(format!("the layout {}", l.to_attr())),
    };
    let window = op.window(s.x(1))?;
    no_padding(&window)?;
    let (xs, ws, ys) = (s.x(0).shape.clone(), s.x(1).shape.clone(), s.y().shape.clone());
    if window.kernel.len() > 3 {
        return no("more than 3 spatial dimensions");
    }
    let groups = op.group as i64;
    let in_channels = match op.inputs as i64 {
        0 => known(&ws[1], "input channels")? * if plain { 1 } else { BLOCK },
        live => live,
    };
    let out_channels = match op.outputs as i64 {
        0 => known(&ws[0], "output channels")? * BLOCK / groups,
        live => live,
    };
    let (input, output) = (s.image(0, &xs, !plain), s.result(0));
    let out: Vec<Size> = ys[2..ys.len() - 1].iter().map(|d| s.size(d)).collect();
    let (bias, post) = s.epilogue(&op.post, |s, word| s.image(word, &ys, true).output_place((out_channels + BLOCK - 1) / BLOCK))?;
    let batch = s.size(&xs[0]);
    let c = ConvKernel {
        name: s.kernel.name.to_string(),
        batch,
        groups,
        in_channels,
        out_channels,
        out,
        kernel: window.kernel,
        stride: window.strides,
        dilation: window.dilations,
        input,
        plain,
        narrow,
        output,
        weights: 1,
        bias,
        post,
    };
    conv(&c, s.isa, &s.machine)
}

fn rowwise(s: &mut Site) -> Result<kernels::Kernel> {
    let Op::Conv(op) = &s.origin.op else { return no("not a convolution") };
    let op: Conv = op.clone();
    s.all_f32()?;
    let window = op.window(s.x(1))?;
    let n = window.kernel.len();
    let (kernel, stride, dilation): ([i64; 2], [i64; 2], [i64; 2]) =
        (spread(&window.kernel, 1)?, spread(&window.strides, 1)?, spread(&window.dilations, 1)?);
    let (before, after): ([i64; 2], [i64; 2]) = (spread(&window.pads[..n], 0)?, spread(&window.pads[n..], 0)?);
    if op.group != 1 || stride[1] != 1 {
        return no("several groups, or columns that move by more than 1");
    }
    if before[1] != 0 || after[1] != 0 || before[0] < 0 || after[0] < 0 {
        return no("the operand's rows have no halo: padding them is an operation of its own here");
    }
    let (xs, ys) = (with_rank(&s.x(0).shape, 4), with_rank(&s.y().shape, 4));
    let (input, output) = (s.image(0, &xs, false), s.image(s.output(), &ys, false));
    let (bias, post) = s.epilogue(&op.post, |s, word| s.image(word, &ys, false).output_place(1))?;
    let p = Planar {
        name: s.kernel.name.to_string(),
        batch: s.size(&xs[0]),
        in_channels: known(&xs[1], "input channels")?,
        out_channels: known(&ys[1], "output channels")?,
        rows: known(&xs[2], "rows")?,
        out: [known(&ys[2], "rows")?, known(&ys[3], "columns")?],
        kernel,
        stride: stride[0],
        dilation,
        above: before[0],
        input,
        output,
        weights: 1,
        bias,
        post,
    };
    planar(&p, s.isa, &s.machine)
}

fn minimal_filtering(s: &mut Site) -> Result<kernels::Kernel> {
    let Op::Conv(op) = &s.origin.op else { return no("not a convolution") };
    let op: Conv = op.clone();
    let Layout::Winograd { block, form, run } = op.layout else { return no(format!("the layout {:?}", op.layout)) };
    s.all_f32()?;
    if block as i64 != BLOCK {
        return no(format!("blocks of {block}"));
    }
    let window = op.window(s.x(1))?;
    let (xs, ws, ys) = (s.x(0).shape.clone(), s.x(1).shape.clone(), s.y().shape.clone());
    let (in_blocks, out_blocks) = (known(&ws[3], "input channels")?, known(&ws[0], "output channels")?);
    let (input, output) = (s.image(0, &xs, true), s.image(s.output(), &ys, true));
    let (bias, post) = s.epilogue(&op.post, |s, word| s.image(word, &ys, true).output_place(out_blocks))?;
    let mut pair = |d: [&Dim; 2]| d.map(|d| s.size(d));
    let tiles = [2, 3].map(|i: usize| ys[i].ceil_div(&Dim::from(form.tile)));
    let (size, out, tiles) = (pair([&xs[2], &xs[3]]), pair([&ys[2], &ys[3]]), pair([&tiles[0], &tiles[1]]));
    let w = Winograd {
        name: s.kernel.name.to_string(),
        batch: s.size(&xs[0]),
        in_blocks,
        out_blocks,
        size,
        out,
        tiles,
        before: [window.pads[0], window.pads[1]],
        form,
        run: run as i64,
        input,
        output,
        weights: 1,
        bias,
        post,
        // Scratch memory is the kernel's last buffer, behind the result.
        scratch: s.output() + 1,
        threads: s.threads(),
    };
    winograd(&w, s.isa)
}

/// `N` spatial dimensions, those that are missing in front `fill`.
fn spread<const N: usize>(v: &[i64], fill: i64) -> Result<[i64; N]> {
    let Some(missing) = N.checked_sub(v.len()) else { return no(format!("more than {N} spatial dimensions")) };
    let mut all = [fill; N];
    all[missing..].copy_from_slice(v);
    Ok(all)
}

/// The blocked shape, with sizes of 1 in front of its spatial dimensions where they are fewer than `dims`.
fn raised(shape: &[Dim], dims: usize) -> Vec<Dim> {
    with_rank(shape, dims + 3)
}

/// A shape with sizes of 1 in front of its spatial dimensions up to this rank.
fn with_rank(shape: &[Dim], rank: usize) -> Vec<Dim> {
    let mut shape = shape.to_vec();
    while shape.len() < rank {
        shape.insert(2, Dim::Const(1));
    }
    shape
}

fn channelwise(s: &mut Site) -> Result<kernels::Kernel> {
    let Op::Conv(op) = &s.origin.op else { return no("not a convolution") };
    let op: Conv = op.clone();
    s.all_f32()?;
    if op.layout != Layout::Depthwise(BLOCK as usize) {
        return no(format!("the layout {:?}", op.layout));
    }
    let window = op.window(s.x(1))?;
    no_padding(&window)?;
    let (xs, ys) = (raised(&s.x(0).shape, 2), raised(&s.y().shape, 2));
    let (kernel, stride, dilation) = (spread(&window.kernel, 1)?, spread(&window.strides, 1)?, spread(&window.dilations, 1)?);
    let channels = known(&xs[1], "channels")? * BLOCK;
    let (input, output) = (s.image(0, &xs, true), s.result(2));
    let (bias, post) = s.epilogue(&op.post, |s, word| s.image(word, &ys, true).output_place(1))?;
    let (batch, out) = (s.size(&xs[0]), [s.size(&ys[2]), s.size(&ys[3])]);
    let name = s.kernel.name.to_string();
    let d = Depthwise { name, batch, channels, out, kernel, stride, dilation, input, output, weights: 1, bias, post };
    depthwise(&d, s.isa, &s.machine)
}

fn product(s: &mut Site) -> Result<kernels::Kernel> {
    let Op::MatMul(op) = &s.origin.op else { return no("not a matrix product") };
    let op: MatMul = op.clone();
    let narrow = s.narrow_weights()?;
    let (xs, ws, ys) = (s.x(0).shape.clone(), s.x(1).shape.clone(), s.y().shape.clone());
    let packed = op.is_packed();
    let (Some(batch_w), Some(columns)) = (ws.len().checked_sub(if packed { 3 } else { 2 }), ys.last()) else { return no("vectors") };
    if op.transposed {
        return no("the right matrix is transposed and not packed");
    }
    let padded = s.padded || columns.as_const().is_some_and(|n| n % BLOCK == 0);
    let (batch_w, matrix) = ws.split_at(batch_w);
    let depth = xs.last().filter(|d| d.as_const().is_some()).unwrap_or(&matrix[matrix.len() - 2]).clone();
    // One right matrix for all: the left ones are one.
    let shared = batch_w.iter().all(|d| d.is(1));
    let batch = if shared { 0 } else { ys.len() - 2 };
    if xs.len() < 2 && !shared {
        return no("a vector times matrices");
    }
    let rows = Dim::product(&ys[batch..ys.len() - 1]);
    let (n, m, k) = (s.size(columns), s.size(&rows), s.size(&depth));
    // Distances along the batch of an operand whose own is `own`; what is stretched stands still.
    let mut steps = |own: &[Dim], elems: Dim| -> Vec<Size> {
        let mut step = elems;
        let mut out = vec![];
        for (i, d) in own.iter().enumerate().rev() {
            out.push(s.size(&(step.clone() * d.stretch_factor(&ys[batch - own.len() + i]))));
            step = step * d.clone();
        }
        out.resize(batch, Size::Const(0));
        out.reverse();
        out
    };
    let (x_batch, w_batch) = if shared { (&[][..], &[][..]) } else { (&xs[..xs.len() - 2], batch_w) };
    let a_batch = steps(x_batch, rows.clone() * depth);
    let b_batch = steps(w_batch, Dim::product(matrix));
    let c_batch = steps(&ys[..batch], rows * columns.clone());
    let batch = ys[..batch].iter().map(|d| s.size(d)).collect();
    let c = |word| Matrix { word, pitch: n, batch: c_batch.clone() };
    let output = s.output();
    let (bias, post) = s.epilogue(&op.post, |_, word| c(word).place())?;
    let a = Matrix { word: 0, pitch: k, batch: a_batch };
    let g = Gemm { name: s.kernel.name.to_string(), batch, m, n, k, a, b: 1, packed, narrow, b_batch, c: c(output), bias, padded, post };
    gemm(&g, s.isa, &s.machine)
}

fn attend(s: &mut Site) -> Result<kernels::Kernel> {
    let Op::Attention(op) = &s.origin.op else { return no("not attention") };
    let scale = op.scale.0 as f32;
    s.all_f32()?;
    let (q, k, v) = (s.x(0).shape.clone(), s.x(1).shape.clone(), s.x(2).shape.clone());
    let n = q.len();
    let (depth, width) = (known(&q[n - 1], "elements of a key")?, known(&v[n - 1], "elements of a value")?);
    let mask = match s.origin.x.get(3).map(|t| t.shape.clone()) {
        None => None,
        Some(m) => {
            let mut step = Dim::product(&m[n - 2..]);
            let mut batch = vec![];
            for d in m[..n - 2].iter().rev() {
                batch.push(if d.is(1) { Size::Const(0) } else { s.size(&step) });
                step = step * d.clone();
            }
            batch.reverse();
            let key = if m[n - 2].is(1) { Size::Const(0) } else { s.size(&m[n - 1]) };
            Some(Mask { word: 3, batch, key, per_query: !m[n - 1].is(1) })
        }
    };
    let mut batch: Vec<Size> = q[..n - 2].iter().map(|d| s.size(d)).collect();
    let mask = match mask {
        Some(m) if m.batch.is_empty() => Some(Mask { batch: vec![Size::Const(0)], ..m }),
        m => m,
    };
    if batch.is_empty() {
        batch.push(Size::Const(1));
    }
    let (queries, keys) = (s.size(&q[n - 2]), s.size(&k[n - 2]));
    let (name, y) = (s.kernel.name.to_string(), s.output());
    attention(&AttentionKernel { name, batch, queries, keys, depth, width, scale, q: 0, k: 1, v: 2, y, mask }, s.isa)
}

fn pooling(s: &mut Site) -> Result<kernels::Kernel> {
    let Op::Pool(op) = &s.origin.op else { return no("not a pooling") };
    let op: Pool = op.clone();
    s.all_f32()?;
    if op.block as i64 != BLOCK {
        return no("the layout is not blocked");
    }
    let kind = match op.kind {
        PoolKind::Max => Pooling::Max,
        PoolKind::Average => Pooling::Average,
        PoolKind::AverageAll => Pooling::AveragePadded,
        PoolKind::Sum => return no("sums"),
    };
    let w = op.window()?;
    let n = w.kernel.len();
    let (xs, ys) = (raised(&s.x(0).shape, 3), raised(&s.y().shape, 3));
    let (before, after): ([i64; 3], [i64; 3]) = (spread(&w.pads[..n], 0)?, spread(&w.pads[n..], 0)?);
    if before.iter().chain(&after).any(|p| *p < 0) {
        return no("negative padding");
    }
    let (input, output) = (s.image(0, &xs, true), s.image(s.output(), &ys, true));
    let p = PoolKernel {
        name: s.kernel.name.to_string(),
        kind,
        batch: s.size(&xs[0]),
        channels: known(&xs[1], "channels")? * BLOCK,
        size: [2, 3, 4].map(|d: usize| s.size(&xs[d])),
        out: [2, 3, 4].map(|d: usize| s.size(&ys[d])),
        kernel: spread(&w.kernel, 1)?,
        stride: spread(&w.strides, 1)?,
        dilation: spread(&w.dilations, 1)?,
        pad_before: before,
        pad_after: after,
        input,
        output,
    };
    pool(&p, s.isa, &s.machine)
}

fn reorder(s: &mut Site) -> Result<kernels::Kernel> {
    s.all_f32()?;
    let name = s.kernel.name.to_string();
    let (plain, blocked, enter) = match &s.origin.op {
        Op::Pack(op) if op.block as i64 == BLOCK => (s.x(0).shape.clone(), s.y().shape.clone(), true),
        Op::Unpack(_) if s.x(0).shape.last().is_some_and(|b| b.is(BLOCK)) => (s.y().shape.clone(), s.x(0).shape.clone(), false),
        _ => return no("not a change of layout"),
    };
    if plain.len() < 3 {
        return no("no spatial dimension");
    }
    let (from, to) = (0, s.output());
    let r = Reorder {
        name,
        batch: s.size(&plain[0]),
        channels: s.size(&plain[1]),
        spatial: plain[2..].iter().map(|d| s.size(d)).collect(),
        plain: s.image(if enter { from } else { to }, &plain, false),
        blocked: s.image(if enter { to } else { from }, &blocked, true),
    };
    if enter { to_blocked(&r, s.isa) } else { to_plain(&r, s.isa) }
}

fn row_function(s: &mut Site) -> Result<kernels::Kernel> {
    s.all_f32()?;
    let shape = s.x(0).shape.clone();
    let (kind, axis) = match &s.origin.op {
        Op::Softmax(op) => (RowKind::Softmax, op.axis),
        Op::LogSoftmax(op) => (RowKind::LogSoftmax, op.axis),
        Op::LayerNorm(op) => {
            let (row, scale) = (Dim::product(&shape[op.axis..]), s.x(1).elems());
            let bias = s.origin.x.get(2).map(Type::elems);
            if scale != row || bias.is_some_and(|b| b != row) {
                return no("scale or bias broadcast");
            }
            (RowKind::LayerNorm { epsilon: op.epsilon.0 as f32, scale: Some(1), bias: s.origin.x.get(2).map(|_| 2) }, op.axis)
        }
        _ => return no("not a function of rows"),
    };
    let whole = matches!(kind, RowKind::LayerNorm { .. });
    if !whole && axis + 1 != shape.len() {
        return no("the axis is not the last");
    }
    let len = Dim::product(&shape[axis..]);
    if len.as_const() == Some(0) {
        return no("empty rows");
    }
    // No memory holds one: the tensor is empty, and the kernel's offsets would not fit their type.
    if len.as_const().is_some_and(|n| n > 1 << 40) {
        return no("rows of 2^40 elements");
    }
    let (count, len) = (s.size(&Dim::product(&shape[..axis])), s.size(&len));
    let output = s.output();
    Ok(rows(&Rows { name: s.kernel.name.to_string(), kind, rows: count, len, input: (0, len), output: (output, len) }, s.isa))
}
