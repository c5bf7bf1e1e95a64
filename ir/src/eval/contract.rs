//! Reference matmul and convolution.

use super::Env;
use super::elems::{Acc, Walk, broadcast_shape, broadcast_strides, decode, encode, strides};
use super::window::{length, taps, tiles};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::ops::composite::activation::Act;
use crate::ops::contract::{Conv, ConvTranspose, Layout, MatMul, PANEL, Post, takes_narrow};
use crate::scalar::Num;
use crate::tensor::{Tensor, checked_elems};
use crate::types::DType;
use crate::winograd::Form;

/// `y[m,n] += a[m,k] * b[k,n]`, row-major. Four rows of `b` at a time, which the compiler makes vector code of.
fn gemm<T: Acc>(y: &mut [T], a: &[T], b: &[T], k: usize, n: usize) {
    if k == 0 || n == 0 {
        return;
    }
    for (y, a) in y.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
        for (a, b) in a.chunks(4).zip(b.chunks(4 * n)) {
            if let &[a0, a1, a2, a3] = a {
                let ((b0, b1), (b2, b3)) = (b[..2 * n].split_at(n), b[2 * n..].split_at(n));
                for ((((y, b0), b1), b2), b3) in y.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
                    *y = y.plus(a0.times(*b0)).plus(a1.times(*b1)).plus(a2.times(*b2)).plus(a3.times(*b3));
                }
            } else {
                for (a, b) in a.iter().zip(b.chunks_exact(n)) {
                    y.iter_mut().zip(b).for_each(|(y, b)| *y = y.plus(a.times(*b)));
                }
            }
        }
    }
}

/// Axis `i` of the result is axis `perm[i]` of `data`, which has `shape`.
fn permuted<T: Copy>(data: &[T], shape: &[usize], perm: &[usize]) -> Vec<T> {
    let s = strides(shape);
    let to: Vec<usize> = perm.iter().map(|p| shape[*p]).collect();
    Walk::new(&to, perm.iter().map(|p| s[*p]).collect(), 0).map(|i| data[i]).collect()
}

/// The epilogue, on accumulators in `shape` whose channels are axis `axis`. `extra` are its operands, in the accumulators' layout.
fn finish<T: Acc>(dtype: DType, post: &[Post], y: &mut [T], channels: usize, inner: usize, mut extra: impl Iterator<Item = Vec<T>>) -> Result<()> {
    for p in post {
        let v = if p.has_operand() { extra.next().ok_or_else(|| Error::internal("an epilogue lacks an operand"))? } else { vec![] };
        let want = if *p == Post::Add { y.len() } else { channels };
        if p.has_operand() && v.len() != want {
            return Err(Error::input(format!("an epilogue takes {want} elements, {} are given", v.len())));
        }
        for (i, y) in y.iter_mut().enumerate() {
            *y = match p {
                Post::Add => y.plus(v[i]),
                Post::Bias => y.plus(v[i / inner % channels]),
                Post::Scale => y.times(v[i / inner % channels]),
                Post::Act(a) => T::of(act(*a, dtype, y.num())),
            };
        }
    }
    Ok(())
}

/// An activation of an accumulator; integers are what `dtype` holds of them.
fn act(a: Act, dtype: DType, x: Num) -> Num {
    match (x, a) {
        (Num::F(x), _) => Num::F(a.eval(x)),
        (x, Act::Fn(f)) => f.eval(dtype, &[x.cast(dtype)]),
        (x, _) => Num::F(a.eval(x.cast(dtype).as_f64())),
    }
}

/// The operands of a contraction, where the weights are bf16 beside f32: x rounded, and the weights in f32 with their rows in order.
fn narrow(x: &[Tensor]) -> Result<Option<Vec<Tensor>>> {
    let columns = *x[1].shape().last().unwrap_or(&1);
    if !takes_narrow(&x[0].ty(), &x[1].ty()) {
        return Ok(None);
    }
    let floats = |shape: &[usize], values: Vec<f64>| encode(DType::F32, shape, values.into_iter().map(Num::F));
    let rounded = encode(DType::BF16, x[0].shape(), x[0].to_f64s().into_iter().map(Num::F))?;
    let w = x[1].to_f64s();
    let pair = |p: &[f64]| (0..2).flat_map(|r| (0..p.len() / 2).map(move |c| (r, c))).map(|(r, c)| p[2 * c + r]).collect::<Vec<_>>();
    let rows = w.chunks((2 * columns).max(1)).flat_map(pair).collect();
    let first = [floats(x[0].shape(), rounded.to_f64s())?, floats(x[1].shape(), rows)?];
    Ok(Some(first.into_iter().chain(x[2..].iter().cloned()).collect()))
}

pub fn matmul(op: &MatMul, x: &[Tensor], env: &Env) -> Result<Tensor> {
    if let Some(x) = narrow(x)? {
        return matmul(op, &x, env);
    }
    let packed = if op.is_packed() { Some(env.shape(std::slice::from_ref(&op.packed))?[0]) } else { None };
    if x[0].dtype().is_float() { matmul_in::<f64>(op, packed, x) } else { matmul_in::<i64>(op, packed, x) }
}

/// `packed` is the number of columns that lie in panels.
fn matmul_in<T: Acc>(op: &MatMul, packed: Option<usize>, x: &[Tensor]) -> Result<Tensor> {
    let (xs, ws) = (x[0].shape(), x[1].shape());
    let (rows, batch_x) = if xs.len() > 1 { (xs[xs.len() - 2], &xs[..xs.len() - 2]) } else { (1, &xs[..0]) };
    let depth = xs[xs.len() - 1];
    // The weights as matrices [batch,K,N].
    let data = decode(&x[1], T::of);
    let (w, k, columns, batch_w) = if let Some(n) = packed {
        let (batch, last) = ws.split_at(ws.len() - 3);
        let (panels, k) = (last[0], last[1]);
        if panels != n.div_ceil(PANEL) {
            return Err(Error::input(format!("matmul: {n} columns do not lie in {panels} panels")));
        }
        let element = |b: usize, i: usize, j: usize| data[((b * panels + j / PANEL) * k + i) * PANEL + j % PANEL];
        let matrices = 0..batch.iter().product();
        (matrices.flat_map(|b| (0..k).flat_map(move |i| (0..n).map(move |j| element(b, i, j)))).collect(), k, n, batch)
    } else if ws.len() == 1 {
        (data, ws[0], 1, &ws[..0])
    } else {
        let (batch, last) = ws.split_at(ws.len() - 2);
        match op.transposed {
            false => (data, last[0], last[1], batch),
            true => (permuted(&data, &[batch.iter().product(), last[0], last[1]], &[0, 2, 1]), last[1], last[0], batch),
        }
    };
    if k != depth {
        return Err(Error::input(format!("matmul: contracted dims differ: {depth} and {k} (x: {xs:?}, w: {ws:?})")));
    }
    let batch = broadcast_shape(&[batch_x, batch_w]).map_err(|e| Error::input(format!("matmul: {}", e.message())))?;
    let mut shape = batch.clone();
    shape.extend((xs.len() > 1).then_some(rows));
    shape.extend((ws.len() > 1).then_some(columns));
    let mut y = vec![T::ZERO; checked_elems(DType::F64, &shape)?];
    let a = decode(&x[0], T::of);
    let matrices = |of: &[usize]| Walk::new(&batch, broadcast_strides(of, &batch), 0);
    for ((i, j), y) in matrices(batch_x).zip(matrices(batch_w)).zip(y.chunks_mut((rows * columns).max(1))) {
        gemm(y, &a[i * rows * k..(i + 1) * rows * k], &w[j * k * columns..(j + 1) * k * columns], k, columns);
    }
    finish(x[0].dtype(), &op.post, &mut y, columns, 1, x[2..].iter().map(|t| decode(t, T::of)))?;
    encode(x[0].dtype(), &shape, y.into_iter().map(T::num))
}

pub fn conv(op: &Conv, x: &[Tensor]) -> Result<Tensor> {
    if let Some(x) = narrow(x)? {
        return conv(op, &x);
    }
    if x[0].dtype().is_float() { conv_in::<f64>(op, x) } else { conv_in::<i64>(op, x) }
}

/// Everything is brought into the plain layout, computed there, and brought back.
fn conv_in<T: Acc>(op: &Conv, x: &[Tensor]) -> Result<Tensor> {
    let window = op.window(&x[1].ty())?;
    let rank = window.kernel.len();
    let (xs, ws) = (x[0].shape(), x[1].shape());
    let plane = &xs[2..2 + rank];
    let grid = (0..rank).map(|i| length(window.out(i, &Dim::from(plane[i])), "conv", i)).collect::<Result<Vec<usize>>>()?;
    let (size, kernel, places): (usize, usize, usize) =
        (plane.iter().product(), window.kernel.iter().product::<i64>() as usize, grid.iter().product());

    let plain = |t: &Tensor, inner: usize, b: usize| permuted(&decode(t, T::of), &[t.elems() / (inner * b).max(1), inner, b], &[0, 2, 1]);
    let weights = |shape: &[usize], perm: &[usize]| permuted(&decode(&x[1], T::of), shape, perm);
    let (input, w, channels, outputs, group, block) = match op.layout {
        Layout::Plain => (decode(&x[0], T::of), decode(&x[1], T::of), xs[1], ws[0], op.group, 1),
        Layout::Blocked(b) => {
            let w = weights(&[ws[0], ws[1], kernel, b, b], &[0, 4, 1, 3, 2]);
            (plain(&x[0], size, b), w, xs[1] * b, ws[0] * b, op.group, b)
        }
        Layout::Enter(b) => (decode(&x[0], T::of), weights(&[ws[0], ws[1], kernel, b], &[0, 3, 1, 2]), xs[1], ws[0] * b, 1, b),
        Layout::Depthwise(b) => (plain(&x[0], size, b), weights(&[ws[0], kernel, b], &[0, 2, 1]), xs[1] * b, ws[0] * b, xs[1] * b, b),
        Layout::Winograd { block: b, form, .. } => {
            // The plain sums, with the filters that the patches were made of.
            let w = weights(&[ws[0], ws[1] * ws[2], ws[3], b, b], &[0, 4, 2, 3, 1]);
            (plain(&x[0], size, b), filters(form, &w), xs[1] * b, ws[0] * b, 1, b)
        }
    };
    let (n, depth, width) = (xs[0], channels / group.max(1), outputs / group.max(1));
    if group * depth != channels || group * width != outputs || w.len() != outputs * depth * kernel {
        return Err(Error::input(format!("conv: {channels} channels of x {xs:?} do not fit weights {ws:?} in {group} groups")));
    }

    let mut y = vec![T::ZERO; checked_elems(DType::F64, &[n, outputs, places])?];
    for tile in tiles(places) {
        let taps = taps(&window, &grid, plane, tile.clone());
        let mut columns = vec![T::ZERO; depth * taps.len()];
        let mut sums = vec![T::ZERO; width * tile.len()];
        for (image, g) in (0..n).flat_map(|i| (0..group).map(move |g| (i, g))) {
            for (c, column) in columns.chunks_exact_mut(taps.len()).enumerate() {
                let from = &input[(image * channels + g * depth + c) * size..][..size];
                column.iter_mut().zip(&taps).for_each(|(v, t)| *v = t.map_or(T::ZERO, |t| from[t]));
            }
            sums.fill(T::ZERO);
            gemm(&mut sums, &w[g * width * depth * kernel..][..width * depth * kernel], &columns, depth * kernel, tile.len());
            for (o, sums) in sums.chunks_exact(tile.len()).enumerate() {
                y[(image * outputs + g * width + o) * places + tile.start..][..tile.len()].copy_from_slice(sums);
            }
        }
    }

    let blocked_add = |(p, t): (&Post, &Tensor)| if *p == Post::Add { plain(t, places, block) } else { decode(t, T::of) };
    finish(x[0].dtype(), &op.post, &mut y, outputs, places, op.post.iter().filter(|p| p.has_operand()).zip(&x[2..]).map(blocked_add))?;
    let mut shape = [&[n, outputs / block], grid.as_slice()].concat();
    if op.layout != Layout::Plain {
        shape.push(block);
        y = permuted(&y, &[n * outputs / block, block, places], &[0, 2, 1]);
    }
    encode(x[0].dtype(), &shape, y.into_iter().map(T::num))
}

/// The filters that the patches of minimal filtering stand for.
fn filters<T: Acc>(form: Form, patches: &[T]) -> Vec<T> {
    let (taps, side, n) = (form.taps_back(), form.side(), form.taps);
    let tap = |patch: &[T], r: usize, s: usize| {
        taps[r]
            .iter()
            .flat_map(|u| taps[s].iter().map(move |v| (u, v)))
            .fold(T::ZERO, |sum, ((i, f), (j, g))| sum.plus(patch[i * side + j].times(T::of(Num::F(f * g)))))
    };
    let tap = &tap;
    patches.chunks_exact(side * side).flat_map(|p| (0..n * n).map(move |k| tap(p, k / n, k % n))).collect()
}

pub fn conv_transpose(op: &ConvTranspose, x: &[Tensor]) -> Result<Tensor> {
    if x[0].dtype().is_float() { conv_transpose_in::<f64>(op, x) } else { conv_transpose_in::<i64>(op, x) }
}

fn conv_transpose_in<T: Acc>(op: &ConvTranspose, x: &[Tensor]) -> Result<Tensor> {
    let window = op.window(&x[1].ty())?;
    let rank = window.kernel.len();
    let (xs, ws) = (x[0].shape(), x[1].shape());
    let grid = &xs[2..];
    let (n, channels, group) = (xs[0], xs[1], op.group);
    if ws[0] != channels || group == 0 || channels % group != 0 {
        return Err(Error::input(format!("conv_transpose: x {xs:?} and w {ws:?} do not fit with group={group}")));
    }
    let (depth, width, outputs) = (channels / group, ws[1], ws[1] * group);
    let out = |i: usize| {
        let pads = window.pads[i] + window.pads[rank + i];
        (grid[i] as i64 - 1) * window.strides[i] + window.extent(i) + op.output_padding.get(i).copied().unwrap_or(0) - pads
    };
    let plane = (0..rank).map(|i| length(Dim::Const(out(i)), "conv_transpose", i)).collect::<Result<Vec<usize>>>()?;
    let (size, kernel, places): (usize, usize, usize) =
        (plane.iter().product(), window.kernel.iter().product::<i64>() as usize, grid.iter().product());

    let input = decode(&x[0], T::of);
    // [group, O/group * kernel, C/group]: one row for each value that a place of x adds somewhere.
    let rows = width * kernel;
    let w = permuted(&decode(&x[1], T::of), &[group, depth, rows], &[0, 2, 1]);
    let mut y = vec![T::ZERO; checked_elems(DType::F64, &[n, outputs, size])?];
    for tile in tiles(places) {
        let taps = taps(&window, grid, &plane, tile.clone());
        for (image, g) in (0..n).flat_map(|i| (0..group).map(move |g| (i, g))) {
            let from = |c: usize| &input[(image * channels + g * depth + c) * places..][tile.clone()];
            let columns: Vec<T> = (0..depth).flat_map(|c| from(c).iter().copied()).collect();
            let mut sums = vec![T::ZERO; rows * tile.len()];
            gemm(&mut sums, &w[g * rows * depth..][..rows * depth], &columns, depth, tile.len());
            for (o, sums) in sums.chunks_exact(taps.len().max(1)).enumerate() {
                let to = &mut y[(image * outputs + g * width + o) * size..][..size];
                sums.iter().zip(&taps).for_each(|(v, t)| {
                    if let Some(t) = t {
                        to[*t] = to[*t].plus(*v);
                    }
                });
            }
        }
    }
    finish(x[0].dtype(), &op.post, &mut y, outputs, size, x[2..].iter().map(|t| decode(t, T::of)))?;
    encode(x[0].dtype(), &[&[n, outputs], plane.as_slice()].concat(), y.into_iter().map(T::num))
}
