//! Gradients of convolution and pooling.

use super::rules::{At, Shares, cut};
use super::zero_like;
use nnc_ir::error::{Error, Result};
use nnc_ir::ops::contract::{Conv, ConvTranspose, Layout, MatMul, Window};
use nnc_ir::ops::index::{ScatterElements, ScatterKind};
use nnc_ir::ops::movement::{Interleave, Pad, PadMode, Slice};
use nnc_ir::ops::window::{Pool, PoolKind};
use nnc_ir::{DType, Dim, Tensor, V};

pub fn conv<'g>(c: &Conv, at: &At<'_, 'g>, g: V<'g>) -> Shares<'g> {
    if c.layout != Layout::Plain || !c.post.is_empty() {
        return Err(Error::unsupported("a convolution in blocks has no gradient: differentiate before the passes that choose layouts"));
    }
    let (x, w) = (at.x[0], at.x[1]);
    let window = c.window(&w.ty())?;
    let dx = at.needs[0].then(|| data_gradient(c, &window, w, g, &x.ty().shape));
    let dw = at.needs[1].then(|| weight_gradient(&window, c.group, x, g)).transpose()?;
    Ok(vec![dx, dw])
}

/// The cotangent of a convolution's input: with stride 1 the convolution by the flipped weights, else a transposed convolution.
fn data_gradient<'g>(c: &Conv, window: &Window, w: V<'g>, g: V<'g>, full: &[Dim]) -> V<'g> {
    let n = window.kernel.len();
    let v = if window.strides.iter().all(|s| *s == 1) {
        let pads = (0..2 * n).map(|i| window.extent(i % n) - 1 - window.pads[i]).collect();
        let op = Conv {
            strides: vec![],
            dilations: c.dilations.clone(),
            pads,
            group: c.group,
            layout: Layout::Plain,
            inputs: 0,
            outputs: 0,
            post: vec![],
        };
        g.builder().op(op, &[g, flipped(w, c.group)])
    } else {
        g.builder().op(spread(window, c.group), &[g, w])
    };
    // Elements behind the last window had no part in the result.
    cut(v, full)
}

/// The transposed convolution that puts each element of a window's result where the window was. What the window reached behind the end
/// is not cut off.
fn spread(window: &Window, group: usize) -> ConvTranspose {
    let n = window.kernel.len();
    let pads = (0..2 * n).map(|i| if i < n { window.pads[i] } else { 0 }).collect();
    ConvTranspose { strides: window.strides.clone(), dilations: window.dilations.clone(), pads, output_padding: vec![], group, post: vec![] }
}

/// Weights `[O,C/group,kernel..]` as `[C,O/group,kernel..]`, each kernel turned around.
fn flipped<'g>(w: V<'g>, group: usize) -> V<'g> {
    let s = w.ty().shape;
    let groups = Dim::from(group);
    let per_group = s[0].floor_div(&groups);
    let split = [&[groups.clone(), per_group.clone()], &s[1..]].concat();
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..split.len()).collect();
    let w = w.reshape(split).transpose(&perm).reshape([&[s[1].clone() * groups, per_group], &s[2..]].concat());
    let sizes = w.ty().shape;
    let turned = |i: usize| i >= 2;
    let starts = (0..sizes.len()).map(|i| if turned(i) { sizes[i].clone() - Dim::Const(1) } else { Dim::Const(0) }).collect();
    let steps = (0..sizes.len()).map(|i| if turned(i) { -1 } else { 1 }).collect();
    w.builder().op(Slice { starts, sizes, steps }, &[w])
}

/// The cotangent `[O,C/group,kernel..]` of weights that a window moved over `x` `[N,C,in..]`: the convolution of x by the result's
/// cotangent `[N,O,out..]` over samples, strides and dilations exchanged.
fn weight_gradient<'g>(window: &Window, group: usize, x: V<'g>, g: V<'g>) -> Result<V<'g>> {
    let n = window.kernel.len();
    let (xs, gs) = (x.ty().shape, g.ty().shape);
    if gs[2..].iter().any(|d| d.as_const().is_none()) {
        return Ok(tap_by_tap(window, group, x, g));
    }
    let groups = Dim::from(group);
    let per_group = xs[1].floor_div(&groups);
    let split = [&[xs[0].clone(), groups.clone(), per_group.clone()], &xs[2..]].concat();
    let perm: Vec<usize> = [2, 1, 0].into_iter().chain(3..split.len()).collect();
    let data = x.reshape(split).transpose(&perm).reshape([&[per_group, groups * xs[0].clone()], &xs[2..]].concat());
    let exchanged: Vec<usize> = [1, 0].into_iter().chain(2..2 + n).collect();
    let op = Conv {
        strides: window.dilations.clone(),
        dilations: window.strides.clone(),
        pads: window.pads.clone(),
        group,
        layout: Layout::Plain,
        inputs: 0,
        outputs: 0,
        post: vec![],
    };
    let y = x.builder().op(op, &[data, g.transpose(&exchanged)]);
    // With strides, the window may reach further than the kernel.
    let mut shape = y.ty().shape;
    window.kernel.iter().enumerate().for_each(|(i, k)| shape[2 + i] = Dim::Const(*k));
    Ok(y.slice(vec![Dim::Const(0); 2 + n], shape).transpose(&exchanged))
}

/// The same where the size of the result is not known: for each place of the kernel, the product of what lay under it.
fn tap_by_tap<'g>(window: &Window, group: usize, x: V<'g>, g: V<'g>) -> V<'g> {
    let n = window.kernel.len();
    let (gs, zero, groups) = (g.ty().shape, Dim::Const(0), Dim::from(group));
    // Room for all windows, those that reach over the edges too.
    let lo: Vec<Dim> = (0..2 + n).map(|i| if i < 2 { zero.clone() } else { Dim::Const(window.pads[i - 2]) }).collect();
    let hi = (0..2 + n).map(|i| if i < 2 { zero.clone() } else { Dim::Const(window.pads[n + i - 2]) }).collect();
    let padded = x.pad_zero(lo, hi);
    let per_group = |v: V<'g>| {
        let s = v.ty().shape;
        let perm: Vec<usize> = [1, 2, 0].into_iter().chain(3..3 + n).collect();
        let split = v.reshape([&[s[0].clone(), groups.clone(), s[1].floor_div(&groups)], &s[2..]].concat()).transpose(&perm);
        split.reshape(vec![groups.clone(), s[1].floor_div(&groups), s[0].clone() * Dim::product(&s[2..])])
    };
    let rows = per_group(g);
    let taps: i64 = window.kernel.iter().product();
    let tap = |mut t: i64| {
        let mut starts = vec![zero.clone(); 2 + n];
        for i in (0..n).rev() {
            starts[2 + i] = Dim::Const(t % window.kernel[i] * window.dilations[i]);
            t /= window.kernel[i];
        }
        let sizes = [&padded.ty().shape[..2], &gs[2..]].concat();
        let steps = [&[1, 1], &window.strides[..]].concat();
        let under = x.builder().op(Slice { starts, sizes, steps }, &[padded]);
        let product = x.builder().op(MatMul { transposed: true, packed: Dim::Const(0), post: vec![] }, &[rows, per_group(under)]);
        let s = product.ty().shape;
        product.reshape([&s[..], &[Dim::Const(1)]].concat())
    };
    let all = V::concat(&(0..taps).map(tap).collect::<Vec<_>>(), 3);
    let s = all.ty().shape;
    let kernel: Vec<Dim> = window.kernel.iter().map(|k| Dim::Const(*k)).collect();
    all.reshape([&[s[0].clone() * s[1].clone(), s[2].clone()], &kernel[..]].concat())
}

/// A transposed convolution's input meets its result as a convolution's result meets its input.
pub fn conv_transpose<'g>(c: &ConvTranspose, at: &At<'_, 'g>, g: V<'g>) -> Shares<'g> {
    let (x, w) = (at.x[0], at.x[1]);
    let window = c.window(&w.ty())?;
    let dx = || {
        let op = Conv {
            strides: c.strides.clone(),
            dilations: c.dilations.clone(),
            pads: c.pads.clone(),
            group: c.group,
            layout: Layout::Plain,
            inputs: 0,
            outputs: 0,
            post: vec![],
        };
        cut(at.b.op(op, &[g, w]), &x.ty().shape)
    };
    Ok(vec![at.needs[0].then(dx), at.needs[1].then(|| weight_gradient(&window, c.group, g, x)).transpose()?])
}

pub fn pool<'g>(p: &Pool, at: &At<'_, 'g>, g: V<'g>) -> Shares<'g> {
    if p.block > 0 {
        return Err(Error::unsupported("pooling in blocks has no gradient: differentiate before the passes that choose layouts"));
    }
    let dx = if p.kind == PoolKind::Max { max_pool(p, at, g)? } else { sum_pool(p, at, g)? };
    Ok(vec![Some(dx)])
}

/// Taps, and phases of the strides, that are looked at one by one: windows with more are followed by indices.
const MAX_TAPS: i64 = 64;

/// The maximum's own element takes all: the first of equals.
fn max_pool<'g>(p: &Pool, at: &At<'_, 'g>, g: V<'g>) -> Result<V<'g>> {
    let (window, full) = (p.window()?, at.x[0].ty().shape);
    let sizes: Option<Vec<[i64; 2]>> = full[2..].iter().zip(&g.ty().shape[2..]).map(|(d, o)| Some([d.as_const()?, o.as_const()?])).collect();
    let few = |sizes: &[i64]| sizes.iter().fold(1, |n: i64, k| n.saturating_mul(*k)) <= MAX_TAPS;
    match sizes {
        Some(sizes) if few(&window.kernel) && few(&window.strides) && matches!(g.ty().dtype, DType::F32 | DType::F64) => {
            Ok(Taps { window, sizes }.back(at.x[0], at.y[0], g))
        }
        _ => Ok(by_index(p, at, g)),
    }
}

/// The pool is replaced by one that says where each maximum was.
fn by_index<'g>(p: &Pool, at: &At<'_, 'g>, g: V<'g>) -> V<'g> {
    let full = at.x[0].ty().shape;
    let place = if p.indices {
        at.y[1]
    } else {
        let y = at.b.op_all(Pool { indices: true, ..p.clone() }, &at.x, vec![]);
        at.replaced.borrow_mut().push((at.y[0].value(), y[0].named(&at.node.name).value()));
        y[1]
    };
    let flat = |v: V<'g>| v.reshape(vec![v.ty().elems()]);
    let into = flat(zero_like(at.x[0]));
    at.b.op(ScatterElements { axis: 0, reduction: ScatterKind::Add }, &[into, flat(place), flat(g)]).reshape(full)
}

/// A window's taps one by one, each as a slice of all windows at once: nothing but maps and movement, which run on vectors.
struct Taps {
    window: Window,
    /// Along each spatial axis the elements of the operand and of the result.
    sizes: Vec<[i64; 2]>,
}

impl Taps {
    /// The cotangent of `x`, whose maxima are `y`. Where a maximum is no number nothing flows.
    fn back<'g>(&self, x: V<'g>, y: V<'g>, g: V<'g>) -> V<'g> {
        let place = self.places(x, y);
        let w = &self.window;
        let phases: i64 = w.strides.iter().product();
        let interleave = Interleave { steps: [1, 1].into_iter().chain(w.strides.iter().map(|s| *s as usize)).collect() };
        let parts: Vec<V> = (0..phases as usize).map(|k| self.phase(&interleave.place(k)[2..], place, g, x)).collect();
        if let [whole] = parts[..] { whole } else { x.builder().op(interleave, &parts) }
    }

    /// Indices along each axis of tap `t`, counted row by row.
    fn tap(&self, t: i64) -> Vec<i64> {
        let mut rest = t;
        let index = |k: &i64| {
            let i = rest % k;
            rest /= k;
            i
        };
        let mut out: Vec<i64> = self.window.kernel.iter().rev().map(index).collect();
        out.reverse();
        out
    }

    fn count(&self) -> i64 {
        self.window.kernel.iter().product()
    }

    /// Of each window the number of the tap that its maximum stands at, from 1; 0 where there is none.
    fn places<'g>(&self, x: V<'g>, y: V<'g>) -> V<'g> {
        let (w, n) = (&self.window, self.sizes.len());
        let around = |i: usize| {
            let [size, out] = self.sizes[i];
            let reach = (out - 1) * w.strides[i] + w.extent(i) - w.pads[i] - size;
            (w.pads[i].max(0), reach.max(0))
        };
        let sides = |f: &dyn Fn(usize) -> i64| (0..2 + n).map(|i| Dim::Const(if i < 2 { 0 } else { f(i - 2) })).collect::<Vec<Dim>>();
        let padded = if (0..n).all(|i| around(i) == (0, 0)) {
            x
        } else {
            // No maximum equals what is around.
            let pad = Pad { mode: PadMode::Constant, lo: sides(&|i| around(i).0), hi: sides(&|i| around(i).1) };
            x.builder().op(pad, &[x, x.scalar_like(f64::NAN)])
        };
        let under = |t: i64| {
            let tap = self.tap(t);
            // Negative padding cuts off what the first windows would begin with.
            let starts = sides(&|i| tap[i] * w.dilations[i] + (-w.pads[i]).max(0));
            let steps = [1, 1].into_iter().chain(w.strides.iter().copied()).collect();
            x.builder().op(Slice { starts, sizes: y.ty().shape, steps }, &[padded])
        };
        (0..self.count()).rev().fold(x.scalar_like(0.0), |rest, t| under(t).equal(y).select(x.scalar_like((t + 1) as f64), rest))
    }

    /// The cotangent of the elements of `x` whose indices leave `remainders` by the strides: of each the sum over the windows that it is
    /// the maximum of, in their order.
    fn phase<'g>(&self, remainders: &[usize], place: V<'g>, g: V<'g>, x: V<'g>) -> V<'g> {
        let (w, n) = (&self.window, self.sizes.len());
        // The window whose tap `t` lies on element `q` of the phase is `q + offset`.
        let offset = |i: usize, tap: i64| {
            let distance = remainders[i] as i64 + w.pads[i] - tap * w.dilations[i];
            (distance.rem_euclid(w.strides[i]) == 0).then(|| distance / w.strides[i])
        };
        let reaching: Vec<(i64, Vec<i64>)> = (0..self.count())
            .rev()
            .filter_map(|t| Some((t, self.tap(t).iter().enumerate().map(|(i, k)| offset(i, *k)).collect::<Option<_>>()?)))
            .collect();
        let lengths: Vec<i64> = (0..n).map(|i| (self.sizes[i][0] - remainders[i] as i64 + w.strides[i] - 1).max(0) / w.strides[i]).collect();
        let shape: Vec<Dim> = x.ty().shape[..2].iter().cloned().chain(lengths.iter().map(|d| Dim::Const(*d))).collect();
        if reaching.is_empty() {
            return x.scalar_like(0.0).expand(shape);
        }
        // Room for windows that there are none of.
        let before: Vec<i64> = (0..n).map(|i| reaching.iter().map(|(_, c)| -c[i]).max().unwrap_or(0).max(0)).collect();
        let after: Vec<i64> = (0..n).map(|i| reaching.iter().map(|(_, c)| c[i] + lengths[i] - self.sizes[i][1]).max().unwrap_or(0).max(0)).collect();
        let around = |side: &[i64]| [0, 0].iter().chain(side).map(|d| Dim::Const(*d)).collect::<Vec<Dim>>();
        let [place, g] = [place, g].map(|v| v.pad_zero(around(&before), around(&after)));
        let share = |(t, c): &(i64, Vec<i64>)| {
            let starts: Vec<i64> = c.iter().zip(&before).map(|(c, b)| c + b).collect();
            let [place, g] = [place, g].map(|v| v.slice(around(&starts), shape.clone()));
            place.equal(x.scalar_like((t + 1) as f64)).select(g, x.scalar_like(0.0))
        };
        reaching.iter().map(share).reduce(|a, b| a + b).unwrap_or_else(|| x.scalar_like(0.0).expand(shape.clone()))
    }
}

fn sum_pool<'g>(p: &Pool, at: &At<'_, 'g>, g: V<'g>) -> Result<V<'g>> {
    let (window, full) = (p.window()?, at.x[0].ty().shape);
    let n = window.kernel.len();
    let g = match p.kind {
        PoolKind::Sum | PoolKind::Max => g,
        PoolKind::Average | PoolKind::AverageAll => {
            let inside = [&[Dim::Const(1), Dim::Const(1)], &full[2..]].concat();
            let ones = g.scalar_like(1.0).expand(inside);
            let padded = window.pads.iter().any(|p| *p != 0) || p.ceil;
            // What the average divides by: the sum over the average, of ones.
            let count = if padded {
                at.b.op(Pool { kind: PoolKind::Sum, ..p.clone() }, &[ones]) / at.b.op(p.clone(), &[ones])
            } else {
                g.scalar_like(window.kernel.iter().map(|k| *k as f64).product())
            };
            g / count
        }
    };
    let tiles = window.strides == window.kernel && window.dilations.iter().all(|d| *d == 1) && window.pads.iter().all(|p| *p == 0);
    if tiles {
        // Windows lie side by side: each element of the result stands for one.
        let out = g.ty().shape;
        let (mut split, mut wide, mut merged) = (out[..2].to_vec(), out[..2].to_vec(), out[..2].to_vec());
        for (d, k) in out[2..].iter().zip(&window.kernel) {
            split.extend([d.clone(), Dim::Const(1)]);
            wide.extend([d.clone(), Dim::Const(*k)]);
            merged.push(d.clone() * Dim::Const(*k));
        }
        return Ok(cut(g.reshape(split).expand(wide).reshape(merged), &full));
    }
    // Each channel of each sample on its own, by a kernel of ones.
    let (out, one) = (g.ty().shape, Dim::Const(1));
    let ones = Tensor::scalar_of(g.ty().dtype, 1.0).reshaped(vec![1; n + 2])?;
    let kernel =
        at.b.constant(ones).expand([&[one.clone(), one.clone()], &window.kernel.iter().map(|k| Dim::Const(*k)).collect::<Vec<_>>()[..]].concat());
    let images = |s: &[Dim]| [&[s[0].clone() * s[1].clone(), one.clone()], &s[2..]].concat();
    Ok(cut(at.b.op(spread(&window, 1), &[g.reshape(images(&out)), kernel]), &images(&full)).reshape(full))
}
