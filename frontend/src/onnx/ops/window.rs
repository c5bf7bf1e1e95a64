//! Convolution and pooling.

use super::matmul::matmul;
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::contract::{Conv, ConvTranspose, Layout, Post};
use nnc_ir::ops::index::{Gather, ScatterElements};
use nnc_ir::ops::movement::{Pad, PadMode};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::source::Iota;
use nnc_ir::ops::window::{Pool, PoolKind};
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, Tensor, V};

pub const ROWS: &[Row] = &[
    op("AveragePool", 1, (1, 1), average_pool),
    op("Conv", 1, (2, 3), conv),
    op("ConvTranspose", 1, (2, 3), conv_transpose),
    op("GlobalAveragePool", 1, (1, 1), |c| global(c, |x, axes| x.mean_keep(axes))),
    op("GlobalLpPool", 1, (1, 1), global_lp_pool),
    op("GlobalMaxPool", 1, (1, 1), |c| global(c, |x, axes| x.max_keep(axes))),
    op("LpPool", 1, (1, 1), lp_pool),
    op("MaxPool", 1, (1, 1), max_pool),
    op("MaxUnpool", 9, (2, 3), max_unpool),
];

/// The attributes that all windows share, defaults filled in.
pub struct Geometry {
    pub kernel: Vec<i64>,
    pub strides: Vec<i64>,
    pub dilations: Vec<i64>,
    pub lo: Vec<Dim>,
    pub hi: Vec<Dim>,
}

impl Geometry {
    /// `spatial` are the input's lengths; the kernel is the weights' where there are any, else `kernel_shape`.
    pub fn read(c: &Call, spatial: &[Dim], weights: Option<&[Dim]>) -> Result<Geometry> {
        let n = spatial.len();
        let list = |name: &str, len: usize, default: i64| list(c, name, len, default);
        let declared = c.ints("kernel_shape")?;
        let kernel = match weights {
            None => declared.ok_or_else(|| c.missing("kernel_shape"))?,
            Some(w) => {
                let w: Option<Vec<i64>> = w.iter().map(Dim::as_const).collect();
                let w = w.ok_or_else(|| Error::unsupported("the kernel's size must be known").note("attribute `kernel_shape` can tell it"))?;
                if declared.as_ref().is_some_and(|d| *d != w) {
                    return Err(Error::shape(format!("attribute `kernel_shape` is {declared:?}, the weights have {w:?}")));
                }
                w
            }
        };
        if kernel.len() != n || n == 0 {
            return Err(Error::shape(format!("a kernel of {kernel:?} over {n} spatial axes")));
        }
        let mut g = Geometry { kernel, strides: list("strides", n, 1)?, dilations: list("dilations", n, 1)?, lo: vec![], hi: vec![] };
        if let Some(v) = g.kernel.iter().chain(&g.strides).chain(&g.dilations).find(|v| !(1..=i64::from(i32::MAX)).contains(*v)) {
            return Err(Error::attribute(format!("a kernel, stride or dilation of {v}")));
        }
        let pads = list("pads", 2 * n, 0)?;
        let auto = c.word("auto_pad", &["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])?;
        if auto != "NOTSET" && pads.iter().any(|p| *p != 0) {
            return Err(Error::attribute(format!("auto_pad {auto} beside pads {pads:?}")));
        }
        for i in 0..n {
            let (lo, hi) = match auto {
                "SAME_UPPER" | "SAME_LOWER" => g.same(i, &spatial[i], auto == "SAME_LOWER"),
                _ => (Dim::Const(pads[i]), Dim::Const(pads[n + i])),
            };
            g.lo.push(lo);
            g.hi.push(hi);
        }
        Ok(g)
    }

    fn extent(&self, i: usize) -> i64 {
        (self.kernel[i] - 1) * self.dilations[i] + 1
    }

    /// Padding that gives ceil(d / stride) windows; the odd element goes to the end, or to the beginning with `lower`.
    fn same(&self, i: usize, d: &Dim, lower: bool) -> (Dim, Dim) {
        let stride = Dim::Const(self.strides[i]);
        let total = match self.strides[i] {
            1 => Dim::Const(self.extent(i) - 1),
            _ => ((d.ceil_div(&stride) - Dim::Const(1)) * stride + Dim::Const(self.extent(i)) - d.clone()).maximum(&Dim::Const(0)),
        };
        let less = total.floor_div(&Dim::Const(2));
        let more = total - less.clone();
        if lower { (more, less) } else { (less, more) }
    }

    /// Begins, then ends, where all are known numbers.
    fn pads(&self) -> Option<Vec<i64>> {
        self.lo.iter().chain(&self.hi).map(Dim::as_const).collect()
    }

    /// The input padded by an operation of its own, for pads that depend on symbols.
    fn pad<'g>(&self, x: V<'g>, value: f64) -> V<'g> {
        let zero = [Dim::Const(0), Dim::Const(0)];
        let (lo, hi) = ([&zero[..], &self.lo].concat(), [&zero[..], &self.hi].concat());
        x.builder().op(Pad { mode: PadMode::Constant, lo, hi }, &[x, x.scalar_like(value)])
    }

    /// The input, and the pads that are left for the window itself.
    pub fn padded<'g>(&self, x: V<'g>, value: f64) -> (V<'g>, Vec<i64>) {
        match self.pads() {
            Some(pads) => (x, pads),
            None => (self.pad(x, value), vec![]),
        }
    }
}

/// An attribute of so many integers.
fn list(c: &Call, name: &str, len: usize, default: i64) -> Result<Vec<i64>> {
    let v = c.ints(name)?.filter(|v| !v.is_empty()).unwrap_or_else(|| vec![default; len]);
    if v.len() == len { Ok(v) } else { Err(Error::attribute(format!("attribute `{name}` should be {len} integers, found {v:?}"))) }
}

/// The weights, whose kernel is that of `kernel_shape` where the model leaves it open; the run compares.
fn weights<'g>(c: &Call<'g>) -> Result<V<'g>> {
    let w = c.x(1)?;
    let shape = w.ty().shape;
    let open = shape.iter().skip(2).any(|d| d.as_const().is_none());
    let Some(kernel) = c.ints("kernel_shape")?.filter(|k| open && k.len() + 2 == shape.len()) else { return Ok(w) };
    Ok(w.reshape(shape[..2].iter().cloned().chain(kernel.into_iter().map(Dim::Const)).collect()))
}

/// The spatial lengths of `[N,C,spatial..]`.
pub fn spatial(x: V) -> Result<Vec<Dim>> {
    let ty = x.ty();
    if ty.rank() < 3 {
        return Err(Error::shape(format!("expected [N,C,spatial..], found {ty}")));
    }
    Ok(ty.shape[2..].to_vec())
}

fn conv<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, w) = (c.x(0)?, weights(c)?);
    if w.ty().shape.iter().skip(2).any(|d| d.as_const().is_none()) {
        return laid_out(c, x, w);
    }
    let g = Geometry::read(c, &spatial(x)?, w.ty().shape.get(2..))?;
    let group = group(c)?;
    let (x, pads) = g.padded(x, 0.0);
    let (bias, late) = bias(c, w.ty().shape.first().cloned())?;
    let post = bias.iter().map(|_| Post::Bias).collect();
    let operands: Vec<V> = [Some(x), Some(w), bias].into_iter().flatten().collect();
    let y = c.b.op(Conv { strides: g.strides, dilations: g.dilations, pads, group, layout: Layout::Plain, inputs: 0, outputs: 0, post }, &operands);
    Ok(vec![late.map_or(y, |b| y + b)])
}

/// A convolution whose kernel only the run knows: its windows are laid out, one a row, and multiplied by the filters.
fn laid_out<'g>(c: &Call<'g>, x: V<'g>, w: V<'g>) -> Result<Vec<V<'g>>> {
    let (d, ws, xs) = (spatial(x)?, w.ty().shape, x.ty().shape);
    let n = d.len();
    if ws.len() != n + 2 {
        return Err(Error::shape(format!("weights {} for {}", w.ty(), x.ty())));
    }
    let (strides, dilations, pads) = (list(c, "strides", n, 1)?, list(c, "dilations", n, 1)?, list(c, "pads", 2 * n, 0)?);
    if let Some(v) = strides.iter().chain(&dilations).find(|v| !(1..=i64::from(i32::MAX)).contains(*v)) {
        return Err(Error::attribute(format!("a stride or dilation of {v}")));
    }
    let auto = c.word("auto_pad", &["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])?;
    let (one, two) = (Dim::Const(1), Dim::Const(2));
    let (mut lo, mut hi) = (vec![Dim::Const(0); 2], vec![Dim::Const(0); 2]);
    let mut extents = vec![];
    for i in 0..n {
        let stride = Dim::Const(strides[i]);
        let extent = (ws[2 + i].clone() - one.clone()) * Dim::Const(dilations[i]) + one.clone();
        let total = ((d[i].ceil_div(&stride) - one.clone()) * stride + extent.clone() - d[i].clone()).maximum(&Dim::Const(0));
        let (begin, end) = match auto {
            "SAME_UPPER" => (total.floor_div(&two), total.clone() - total.floor_div(&two)),
            "SAME_LOWER" => (total.clone() - total.floor_div(&two), total.floor_div(&two)),
            _ => (Dim::Const(pads[i]), Dim::Const(pads[n + i])),
        };
        lo.push(begin);
        hi.push(end);
        extents.push(extent);
    }
    let sizes: Vec<Dim> = (0..n).map(|i| d[i].clone() + lo[2 + i].clone() + hi[2 + i].clone()).collect();
    let mut v = c.b.op(Pad { mode: PadMode::Constant, lo, hi }, &[x, x.scalar_like(0.0)]);
    let mut windows = vec![];
    for i in 0..n {
        // Axis 2 + 2i becomes two: the windows, and what each looks at.
        let count = (sizes[i].clone() - extents[i].clone()).floor_div(&Dim::Const(strides[i])) + one.clone();
        let ramp = |shape: [&Dim; 2], axis: usize, step: i64| {
            let ramp = c.b.op(Iota { shape: shape.map(Dim::clone).to_vec(), axis }, &[]);
            ramp * c.b.constant(Tensor::scalar(step))
        };
        let index = ramp([&count, &one], 0, strides[i]) + ramp([&one, &ws[2 + i]], 1, dilations[i]);
        v = c.b.op(Gather { axis: 2 + 2 * i }, &[v, index]);
        windows.push(count);
    }
    let (groups, deep) = (Dim::from(group(c)?), ws[1].clone());
    let (area, taps) = (Dim::product(&windows), Dim::product(&ws[1..]));
    let apart: Vec<Dim> = windows.iter().zip(&ws[2..]).flat_map(|(o, k)| [o.clone(), k.clone()]).collect();
    let v = v.reshape([&[xs[0].clone(), groups.clone(), deep][..], &apart].concat());
    let perm: Vec<usize> = [0, 1].into_iter().chain((0..n).map(|i| 3 + 2 * i)).chain([2]).chain((0..n).map(|i| 4 + 2 * i)).collect();
    let rows = v.transpose(&perm).reshape(vec![xs[0].clone(), groups.clone(), area.clone(), taps.clone()]);
    let filters = w.reshape(vec![groups.clone(), ws[0].floor_div(&groups), taps]).transpose(&[0, 2, 1]);
    let y = matmul(rows, filters).transpose(&[0, 1, 3, 2]).reshape([&[xs[0].clone(), ws[0].clone()][..], &windows].concat());
    let (bias, late) = bias(c, Some(ws[0].clone()))?;
    let column = |b: V<'g>| b.reshape([vec![ws[0].clone()], vec![Dim::Const(1); n]].concat());
    Ok(vec![bias.map(column).or(late).map_or(y, |b| y + b)])
}

/// The bias of a convolution with that many `channels`: as an operand of it, or, where only the run can tell that the two fit, as
/// something to add to the result.
fn bias<'g>(c: &Call<'g>, channels: Option<Dim>) -> Result<(Option<V<'g>>, Option<V<'g>>)> {
    let (Some(b), Some(channels)) = (c.opt(2), channels) else { return Ok((c.opt(2), None)) };
    let ty = b.ty();
    let [own] = &ty.shape[..] else { return Err(Error::shape(format!("the bias is {ty}: one element a channel is wanted"))) };
    match (own.as_const(), channels.as_const()) {
        _ if *own == channels => Ok((Some(b), None)),
        (Some(_), Some(_)) => Err(Error::shape(format!("the bias {ty} does not fit weights for {channels} channels"))),
        _ => {
            let spatial = vec![Dim::Const(1); c.x(0)?.ty().rank().saturating_sub(2)];
            let shape = [&[Dim::Const(1), own.clone()], &spatial[..]].concat();
            Ok((None, Some(b.reshape(shape))))
        }
    }
}

pub fn group(c: &Call) -> Result<usize> {
    let g = c.int("group", 1)?;
    usize::try_from(g).ok().filter(|g| *g > 0).ok_or_else(|| Error::attribute(format!("attribute `group` is {g}")))
}

fn conv_transpose<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, w) = (c.x(0)?, weights(c)?);
    let d = spatial(x)?;
    let n = d.len();
    let same = c.opt_str("auto_pad")?.is_some_and(|a| a.starts_with("SAME"));
    let upper = c.opt_str("auto_pad")? == Some("SAME_UPPER");
    let g = Geometry::read(c, &d, w.ty().shape.get(2..))?;
    let mut output_padding = c.ints("output_padding")?.filter(|p| !p.is_empty()).unwrap_or(vec![0; n]);
    if output_padding.len() != n || output_padding.iter().any(|p| *p < 0) {
        return Err(Error::attribute(format!("attribute `output_padding` should be {n} counts, found {output_padding:?}")));
    }
    let wanted = c.ints("output_shape")?.filter(|s| !s.is_empty());
    if wanted.as_ref().is_some_and(|s| s.len() < n) {
        return Err(Error::attribute(format!("attribute `output_shape` should be {n} lengths, found {wanted:?}")));
    }
    let mut pads = vec![0; 2 * n];
    for i in 0..n {
        // With total padding t the output has (d-1)*stride + output_padding + extent - t elements.
        let reach = output_padding[i].saturating_add(g.extent(i));
        let total = match &wanted {
            Some(s) => {
                let d = d[i].as_const().ok_or_else(|| Error::unsupported("output_shape beside symbolic spatial sizes"))?;
                Some((d - 1).saturating_mul(g.strides[i]).saturating_add(reach).saturating_sub(s[s.len() - n + i]))
            }
            None if same => Some(reach.saturating_sub(g.strides[i])),
            None => None,
        };
        // A negative half moves the result, or makes it longer.
        (pads[i], pads[n + i]) = match total.map(|t| (t, t.div_euclid(2))) {
            Some((t, half)) if upper => (half, t - half),
            Some((t, half)) => (t - half, half),
            None => (g.lo[i].as_const().unwrap_or(0), g.hi[i].as_const().unwrap_or(0)),
        };
        if total.is_some() && pads[n + i] < 0 {
            output_padding[i] = output_padding[i].saturating_sub(pads[n + i]);
            pads[n + i] = 0;
        }
    }
    let group = group(c)?;
    let (bias, late) = bias(c, w.ty().shape.get(1).map(|d| d.clone() * Dim::from(group)))?;
    let post = bias.iter().map(|_| Post::Bias).collect();
    let operands: Vec<V> = [Some(x), Some(w), bias].into_iter().flatten().collect();
    let y = c.b.op(ConvTranspose { strides: g.strides, dilations: g.dilations, pads, output_padding, group, post }, &operands);
    Ok(vec![late.map_or(y, |b| y + b)])
}

fn global<'g>(c: &Call<'g>, f: impl Fn(V<'g>, &[usize]) -> V<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let axes: Vec<usize> = (2..2 + spatial(x)?.len()).collect();
    Ok(vec![f(x, &axes)])
}

/// The sum over windows of x, as given by `f`, with padding of zeros.
fn pool<'g>(c: &Call<'g>, g: &Geometry, kind: PoolKind, x: V<'g>, beyond: f64) -> Result<V<'g>> {
    let ceil = c.flag("ceil_mode", false)?;
    let (x, pads) = g.padded(x, beyond);
    let pool =
        Pool { kind, kernel: g.kernel.clone(), strides: g.strides.clone(), dilations: g.dilations.clone(), pads, ceil, block: 0, indices: false };
    Ok(c.b.op(pool, &[x]))
}

fn average_pool<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let all = c.flag("count_include_pad", false)?;
    let g = Geometry::read(c, &spatial(x)?, None)?;
    if g.pads().is_some() {
        return Ok(vec![pool(c, &g, if all { PoolKind::AverageAll } else { PoolKind::Average }, x, 0.0)?]);
    }
    if all {
        return Ok(vec![pool(c, &g, PoolKind::AverageAll, x, 0.0)?]);
    }
    // Pads that depend on symbols: divide sums by the number of elements inside, which is a sum of ones.
    let mut ones = x.ty().shape;
    ones[..2].fill(Dim::Const(1));
    let count = pool(c, &g, PoolKind::Sum, x.scalar_like(1.0).expand(ones), 0.0)?;
    Ok(vec![pool(c, &g, PoolKind::Sum, x, 0.0)? / count])
}

fn max_pool<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let g = Geometry::read(c, &spatial(x)?, None)?;
    let column_major = c.flag("storage_order", false)?;
    if !c.wants(1) {
        let least = if x.ty().dtype.is_float() {
            f64::NEG_INFINITY
        } else if x.ty().dtype.is_unsigned_int() {
            0.0
        } else {
            -128.0
        };
        return Ok(vec![pool(c, &g, PoolKind::Max, x, least)?]);
    }
    let pads = g.pads().ok_or_else(|| Error::unsupported("indices of a max pool whose padding depends on symbolic sizes"))?;
    let ceil = c.flag("ceil_mode", false)?;
    let y = c.b.op_all(
        Pool { kind: PoolKind::Max, kernel: g.kernel, strides: g.strides, dilations: g.dilations, pads, ceil, block: 0, indices: true },
        &[x],
        vec![],
    );
    let index = if column_major { column_major_index(y[1], &spatial(x)?) } else { y[1] };
    Ok(vec![y[0], index])
}

/// Flat indices into `[N,C,spatial..]` with the spatial axes counted first axis fastest.
fn column_major_index<'g>(index: V<'g>, spatial: &[Dim]) -> V<'g> {
    let b = index.builder();
    let k = |d: Dim| b.op(nnc_ir::ops::source::Dims { values: vec![d], scalar: true }, &[]);
    let plane = Dim::product(spatial);
    let mut out = index / k(plane.clone()) * k(plane);
    let mut inner = Dim::Const(1);
    for (i, d) in spatial.iter().enumerate().rev() {
        let digit = b.op(nnc_ir::Op::Map(ScalarFn::Mod), &[index / k(inner.clone()), k(d.clone())]);
        out = out + digit * k(Dim::product(&spatial[..i]));
        inner = inner * d.clone();
    }
    out
}

/// `(sum |x|^p)^(1/p)` by way of `sum`.
fn p_norm<'g>(x: V<'g>, p: f64, sum: impl Fn(V<'g>) -> Result<V<'g>>) -> Result<V<'g>> {
    Ok(match p {
        1.0 => sum(x.abs())?,
        2.0 => sum(x * x)?.sqrt(),
        _ => sum(x.abs().pow(x.scalar_like(p)))?.pow(x.scalar_like(1.0 / p)),
    })
}

fn lp_pool<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let p = c.float("p", 2.0)?;
    let g = Geometry::read(c, &spatial(x)?, None)?;
    Ok(vec![p_norm(x, p, |v| pool(c, &g, PoolKind::Sum, v, 0.0))?])
}

fn global_lp_pool<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let p = c.float("p", 2.0)?;
    let axes: Vec<usize> = (2..2 + spatial(x)?.len()).collect();
    Ok(vec![p_norm(x, p, |v| Ok(v.reduce(ReduceKind::Sum, &axes, true)))?])
}

/// Writes each element at its flat index into zeros.
fn max_unpool<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, index) = (c.x(0)?, c.x(1)?);
    let ty = x.ty();
    let d = spatial(x)?;
    let g = Geometry::read(c, &d, None)?;
    // Indices count in the natural output; a larger output_shape only moves them apart.
    let natural: Vec<Dim> = (0..d.len())
        .map(|i| (d[i].clone() - Dim::Const(1)) * Dim::Const(g.strides[i]) + Dim::Const(g.kernel[i]) - g.lo[i].clone() - g.hi[i].clone())
        .collect();
    let shape = match c.opt(2) {
        Some(_) => c.dims_or_read(2, "output_shape")?,
        None => [&ty.shape[..2], &natural].concat(),
    };
    let natural = [&ty.shape[..2], &natural].concat();
    let total = Dim::product(&natural);
    let zeros = c.b.constant(Tensor::scalar_of(ty.dtype, 0.0)).expand(vec![total.clone()]);
    let flat = |v: V<'g>| v.reshape(vec![ty.elems()]);
    let y = c.b.op(ScatterElements { axis: 0, reduction: nnc_ir::ops::index::ScatterKind::Set }, &[zeros, flat(index).cast(DType::I64), flat(x)]);
    if shape == natural {
        return Ok(vec![y.reshape(shape)]);
    }
    let hi: Vec<Dim> = shape.iter().zip(&natural).map(|(a, b)| a - b).collect();
    Ok(vec![y.reshape(natural).pad_zero(vec![Dim::Const(0); hi.len()], hi)])
}
