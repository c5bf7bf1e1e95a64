//! Attention and what goes with it.

use super::index::ramp;
use super::matmul::matmul;
use super::{Row, op};
use crate::onnx::call::{Call, Item};
use nnc_ir::ops::composite::norm::Softmax;
use nnc_ir::ops::contract::{Conv, Layout, Post};
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::movement::{Pad, PadMode, Slice};
use nnc_ir::ops::source::Dims;
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("Attention", 23, (3, 7), attention),
    op("CausalConvWithState", 27, (2, 4), causal_conv),
    op("FlexAttention", 1, (3, 3), flex_attention).domain("ai.onnx.preview"),
    op("LinearAttention", 27, (3, 6), linear_attention),
    op("RotaryEmbedding", 23, (3, 4), rotary),
];

/// `[batch, length, heads * size]` as `[batch, heads, length, size]`.
fn split_heads<'g>(x: V<'g>, heads: i64) -> Result<V<'g>> {
    let s = x.ty().shape;
    if s.len() != 3 || heads < 1 || s[2].as_const().is_some_and(|d| d % heads != 0) {
        return Err(Error::shape(format!("{heads} heads of {}", x.ty())));
    }
    let size = s[2].floor_div(&Dim::Const(heads));
    Ok(x.reshape(vec![s[0].clone(), s[1].clone(), Dim::Const(heads), size]).transpose(&[0, 2, 1, 3]))
}

/// The way back.
fn join_heads(x: V) -> V {
    let s = x.ty().shape;
    x.transpose(&[0, 2, 1, 3]).reshape(vec![s[0].clone(), s[2].clone(), s[1].clone() * s[3].clone()])
}

fn required(c: &Call, name: &str) -> Result<i64> {
    c.opt_int(name)?.ok_or_else(|| c.missing(name))
}

/// Each head of `[batch, heads, ..]` as often as query heads share it.
fn shared_by<'g>(x: V<'g>, queries: &Dim) -> Result<V<'g>> {
    let s = x.ty().shape;
    if s[1] == *queries {
        return Ok(x);
    }
    let times = match (queries.as_const(), s[1].as_const()) {
        (Some(q), Some(k)) if k > 0 && q % k == 0 => Dim::Const(q / k),
        _ => return Err(Error::shape(format!("{queries} query heads share {} heads", s[1]))),
    };
    let apart = vec![s[0].clone(), s[1].clone(), Dim::Const(1), s[2].clone(), s[3].clone()];
    let spread = vec![s[0].clone(), s[1].clone(), times, s[2].clone(), s[3].clone()];
    Ok(x.reshape(apart).expand(spread).reshape(vec![s[0].clone(), queries.clone(), s[2].clone(), s[3].clone()]))
}

/// Products of queries and keys; both are scaled by the root, lest large ones overflow.
fn scores<'g>(q: V<'g>, k: V<'g>, scale: Option<f64>) -> Result<V<'g>> {
    let root = match (scale, q.ty().shape[3].as_const()) {
        (Some(s), _) => s.sqrt(),
        (None, Some(n)) if n > 0 => (n as f64).powf(-0.25),
        _ => return Err(Error::unsupported("attention without a scale needs a known head size")),
    };
    let by = q.scalar_like(root);
    Ok(matmul(q * by, (k * by).transpose(&[0, 1, 3, 2])))
}

fn attention<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (mut q, mut k, mut v) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let flat = q.ty().rank() == 3;
    let heads = (c.opt_int("q_num_heads")?, c.opt_int("kv_num_heads")?);
    if flat {
        let (Some(queries), Some(keys)) = heads else {
            return Err(Error::attribute("attributes `q_num_heads` and `kv_num_heads` are needed for inputs of three axes"));
        };
        (q, k, v) = (split_heads(q, queries)?, split_heads(k, keys)?, split_heads(v, keys)?);
    }
    if [q, k, v].iter().any(|x| x.ty().rank() != 4) {
        return Err(Error::shape(format!("expected [batch, heads, length, size], found {}, {}, {}", q.ty(), k.ty(), v.ty())));
    }
    let mut past = Dim::Const(0);
    if let (Some(pk), Some(pv)) = (c.opt(4), c.opt(5)) {
        if pk.ty().rank() != 4 {
            return Err(Error::shape(format!("past keys {}", pk.ty())));
        }
        past = pk.ty().shape[2].clone();
        (k, v) = (V::concat(&[pk, k], 2), V::concat(&[pv, v], 2));
    } else if c.opt(4).is_some() || c.opt(5).is_some() {
        return Err(Error::arity("past keys and values are given together or not at all"));
    }
    if k.is_poison() || v.is_poison() {
        return Ok(c.poisoned());
    }
    let (keys, values) = (k, v);
    let queries = q.ty().shape[1].clone();
    let raw = scores(q, shared_by(k, &queries)?, c.opt_float("scale")?)?;
    let cap = c.float("softcap", 0.0)?;
    let capped = if cap > 0.0 { (raw / raw.scalar_like(cap)).tanh() * raw.scalar_like(cap) } else { raw };
    let bias = bias(c, q, k.ty().shape[2].clone(), past)?;
    let biased = bias.map_or(capped, |b| capped + b);
    let dtype = q.ty().dtype;
    let wide = biased.cast(c.dtype("softmax_precision", Some(dtype))?);
    let mut shares = c.b.op(Softmax { axis: 3 }, &[wide]).cast(dtype);
    let mut y = matmul(shares, shared_by(v, &queries)?);
    if let Some(bias) = bias {
        // A query that may look at nothing gets nothing; softmax alone would give NaN. Its result is put right, not its shares, so that
        // these are between two products, as kernels of attention want them.
        let most = bias.max_keep(&[bias.ty().rank().saturating_sub(1)]);
        let blind = most.equal(most.scalar_like(f64::NEG_INFINITY));
        (y, shares) = (blind.select(y.scalar_like(0.0), y), blind.select(shares.scalar_like(0.0), shares));
    }
    let seen = match c.int("qk_matmul_output_mode", 0)? {
        0 => raw,
        1 => capped,
        2 => biased,
        3 => shares,
        m => return Err(Error::attribute(format!("attribute `qk_matmul_output_mode` is {m}; 0 to 3 are known"))),
    };
    Ok(vec![if flat { join_heads(y) } else { y }, keys, values, seen])
}

/// What is added to the scores: minus infinity where a query must not look. `None` where nothing is added.
fn bias<'g>(c: &Call<'g>, q: V<'g>, length: Dim, past: Dim) -> Result<Option<V<'g>>> {
    let dtype = q.ty().dtype;
    let (zero, never) = (q.scalar_like(0.0), q.scalar_like(f64::NEG_INFINITY));
    let rows = q.ty().shape[2].clone();
    let dim = |d: Dim| c.b.op(Dims { values: vec![d], scalar: true }, &[]);
    let mut parts: Vec<V<'g>> = vec![];
    if let Some(mask) = c.opt(3) {
        let ty = mask.ty();
        let missing = &length - ty.shape.last().ok_or_else(|| Error::shape("a mask without axes"))?;
        let mask = if missing.is(0) {
            mask
        } else {
            // A mask that is too short says nothing of the rest, which is not looked at.
            let mut hi = vec![Dim::Const(0); ty.rank()];
            hi[ty.rank() - 1] = missing;
            let value = Tensor::scalar_of(ty.dtype, if ty.dtype == DType::Bool { 0.0 } else { f64::NEG_INFINITY });
            c.b.op(Pad { mode: PadMode::Constant, lo: vec![Dim::Const(0); ty.rank()], hi }, &[mask, c.b.constant(value)])
        };
        parts.push(if ty.dtype == DType::Bool { mask.select(zero, never) } else { mask.cast(dtype) });
    }
    // Position of each query among the keys: a matrix, or one for each batch where the lengths differ.
    let given = c.opt(6).map(|n| n.cast(DType::I64).reshape(vec![q.ty().shape[0].clone(), Dim::Const(1), Dim::Const(1), Dim::Const(1)]));
    let (row, column) = (ramp(c.b, rows.clone(), 0, 2), ramp(c.b, length, 1, 2));
    let offset = match given {
        Some(n) if c.opt(4).is_none() => n - dim(rows),
        _ => dim(past),
    };
    let ahead = || column - (row + offset);
    if c.flag("is_causal", false)? {
        parts.push(ahead().less_equal(dim(Dim::Const(0))).select(zero, never));
    }
    let (left, right) = (c.int("left_window_size", -1)?, c.int("right_window_size", -1)?);
    if left >= 0 {
        parts.push(ahead().greater_equal(dim(Dim::Const(-left))).select(zero, never));
    }
    if right >= 0 {
        parts.push(ahead().less_equal(dim(Dim::Const(right))).select(zero, never));
    }
    if let Some(n) = given {
        parts.push(column.less(n).select(zero, never));
    }
    Ok(parts.into_iter().reduce(|a, b| a + b))
}

fn flex_attention<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (q, k, v) = (c.x(0)?, c.x(1)?, c.x(2)?);
    if [q, k, v].iter().any(|x| x.ty().rank() != 4) {
        return Err(Error::shape(format!("expected [batch, heads, length, size], found {}, {}, {}", q.ty(), k.ty(), v.ty())));
    }
    let queries = q.ty().shape[1].clone();
    let default = if q.ty().dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let precision = c.dtype("softmax_precision", Some(default))?;
    let modified = |name: &str, x: V<'g>| -> Result<V<'g>> {
        if c.attr(name).is_none() {
            return Ok(x);
        }
        match c.region(name)?.inline(&[Item::Tensor(x)])?[..] {
            [Item::Tensor(y)] => Ok(y.cast(precision)),
            ref y => Err(Error::arity(format!("`{name}` gives {} values instead of one", y.len()))),
        }
    };
    let scores = modified("score_mod", scores(q, shared_by(k, &queries)?, c.opt_float("scale")?)?.cast(precision))?;
    let shares = modified("prob_mod", c.b.op(Softmax { axis: 3 }, &[scores]))?;
    Ok(vec![matmul(shares, shared_by(v, &queries)?.cast(precision)).cast(v.ty().dtype)])
}

/// Turns pairs of elements by the angles of their position.
fn rotary<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, mut cos, mut sin) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let flat = x.ty().rank() == 3;
    let heads = c.int("num_heads", 0)?;
    let x4 = if flat { split_heads(x, heads)? } else { x };
    let s = x4.ty().shape;
    let size =
        s.get(3).and_then(Dim::as_const).ok_or_else(|| Error::unsupported(format!("rotary embedding of {} needs a known head size", x.ty())))?;
    let turned = match c.int("rotary_embedding_dim", 0)? {
        0 => size,
        n => n,
    };
    if turned < 2 || turned > size || turned % 2 != 0 {
        return Err(Error::attribute(format!("{turned} of {size} elements cannot be turned in pairs")));
    }
    if let Some(position) = c.opt(3) {
        (cos, sin) = (c.b.op(Gather { axis: 0 }, &[cos, position]), c.b.op(Gather { axis: 0 }, &[sin, position]));
    }
    // [batch, length, pairs], the same for all heads.
    let half = Dim::Const(turned / 2);
    let angle = |v: V<'g>| {
        let mut shape = v.ty().shape;
        shape.insert(1.min(shape.len()), Dim::Const(1));
        v.reshape(shape)
    };
    let (cos, sin) = (angle(cos), angle(sin));
    let part = x4.slice_axis(3, Dim::Const(0), Dim::Const(turned));
    let interleaved = c.flag("interleaved", false)?;
    let (a, b) = if interleaved {
        let every_other = |start: i64| {
            let mut at = Slice { starts: vec![Dim::Const(0); 4], sizes: part.ty().shape, steps: vec![1, 1, 1, 2] };
            at.starts[3] = Dim::Const(start);
            at.sizes[3] = half.clone();
            c.b.op(at, &[part])
        };
        (every_other(0), every_other(1))
    } else {
        (part.slice_axis(3, Dim::Const(0), half.clone()), part.slice_axis(3, half.clone(), half.clone()))
    };
    let (real, imaginary) = (cos * a - sin * b, sin * a + cos * b);
    if real.is_poison() {
        return Ok(c.poisoned());
    }
    let y = if interleaved {
        let mut pairs = real.ty().shape;
        pairs.push(Dim::Const(1));
        V::concat(&[real.reshape(pairs.clone()), imaginary.reshape(pairs)], 4).reshape(part.ty().shape)
    } else {
        V::concat(&[real, imaginary], 3)
    };
    let rest = x4.slice_axis(3, Dim::Const(turned), Dim::Const(size - turned));
    let y = if turned == size { y } else { V::concat(&[y, rest], 3) };
    Ok(vec![if flat { join_heads(y) } else { y }])
}

/// A recurrence over the steps whose state is a matrix a head; computed in f32.
fn linear_attention<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["chunk_size"]);
    let (queries, keys) = (required(c, "q_num_heads")?, required(c, "kv_num_heads")?);
    let rule = c.word("update_rule", &["gated_delta", "linear", "gated", "delta"])?;
    let (gated, delta) = (rule.starts_with("gated"), rule.ends_with("delta"));
    if gated != c.opt(4).is_some() || delta != c.opt(5).is_some() {
        return Err(Error::arity(format!("update rule {rule} with decay: {}, beta: {}", c.opt(4).is_some(), c.opt(5).is_some())));
    }
    let dtype = c.x(0)?.ty().dtype;
    let heads = |i: usize, n: i64| -> Result<V<'g>> { Ok(split_heads(c.x(i)?, n)?.cast(DType::F32)) };
    let (q, k, v) = (heads(0, queries)?, heads(1, keys)?, heads(2, keys)?);
    let (size, width) = (k.ty().shape[3].clone(), v.ty().shape[3].clone());
    let batch = k.ty().shape[0].clone();
    let scale = match (c.float("scale", 0.0)?, size.as_const()) {
        (0.0, Some(n)) if n > 0 => (n as f64).powf(-0.5),
        (0.0, _) => return Err(Error::unsupported("linear attention without a scale needs a known head size")),
        (s, _) => s,
    };
    let state_shape = vec![batch, Dim::Const(keys), size.clone(), width.clone()];
    let state = match c.opt(3) {
        Some(s) => s.cast(DType::F32),
        None => c.b.constant(Tensor::scalar(0f32)).expand(state_shape.clone()),
    };
    // Decay is one number a head, or one an element of the key; beta is one a head, or one for all.
    let decay = c.opt(4).map(|_| heads(4, keys)).transpose()?;
    let beta = match c.opt(5) {
        Some(b) if b.ty().shape.last().is_some_and(|d| d.is(1)) => Some(heads(5, 1)?),
        Some(_) => Some(heads(5, keys)?),
        None => None,
    };
    // Steps come first: [length, batch, heads, size].
    let scanned: Vec<V<'g>> = [Some(q), Some(k), Some(v), decay, beta].into_iter().flatten().map(|x| x.transpose(&[2, 0, 1, 3])).collect();
    let region = c.b.nested("step");
    let old = region.input("state", state.ty());
    let mut inputs = scanned.iter().map(|x| region.input("x", x.ty().with_shape(x.ty().shape.get(1..).unwrap_or_default().to_vec())));
    let mut next = |given: bool| if given { inputs.next() } else { None };
    let (Some(q), Some(k), Some(v)) = (next(true), next(true), next(true)) else { return Err(Error::internal("three inputs are scanned")) };
    let (decay, beta) = (next(decay.is_some()), next(beta.is_some()));
    let column = |x: V<'_>| x.ty().shape.into_iter().chain([Dim::Const(1)]).collect::<Vec<_>>();
    let row = |x: V<'_>| {
        let mut shape = x.ty().shape;
        shape.insert(2.min(shape.len()), Dim::Const(1));
        shape
    };
    let kept = decay.map_or(old, |g| old * g.exp().reshape(column(g)));
    let written = match beta {
        Some(beta) => {
            let retrieved = matmul(k.reshape(row(k)), kept).reshape(v.ty().shape);
            beta * (v - retrieved)
        }
        None => v,
    };
    let new = kept + k.reshape(column(k)) * written.reshape(row(written));
    let read = shared_by(new, &Dim::Const(queries))?;
    let out = matmul(q.reshape(row(q)), read) * q.scalar_like(scale);
    let flat: Vec<Dim> = q.ty().shape[..1].iter().cloned().chain([Dim::Const(queries) * width]).collect();
    region.output("", new);
    region.output("", out.reshape(flat));
    drop(inputs);
    let body = region.finish().map_err(|mut e| e.0.remove(0))?;
    let operands: Vec<V<'g>> = std::iter::once(state).chain(scanned.iter().copied()).collect();
    let y = c.b.op_all(Scan { states: 1, scanned: scanned.len(), reverse: false }, &operands, vec![body]);
    let state_dtype = c.opt(3).map_or(dtype, |s| s.ty().dtype);
    Ok(vec![y[1].transpose(&[1, 0, 2]).cast(dtype), y[0].cast(state_dtype)])
}

/// A convolution a channel over the present and the past; what came before is handed on.
fn causal_conv<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, w) = (c.x(0)?, c.x(1)?);
    let (s, ws) = (x.ty().shape, w.ty().shape);
    let kernel = ws.get(2).and_then(Dim::as_const).filter(|k| *k > 0 && s.len() == 3);
    let (Some(kernel), Some(channels)) = (kernel, s.get(1).and_then(Dim::as_const)) else {
        return Err(Error::shape(format!("an input {} and weights {} of known size", x.ty(), w.ty())));
    };
    let before = Dim::Const(kernel - 1);
    let padded = match c.opt(3) {
        Some(past) => V::concat(&[past, x], 2),
        None => x.pad_zero(vec![Dim::Const(0), Dim::Const(0), before.clone()], vec![Dim::Const(0); 3]),
    };
    let group = usize::try_from(channels).map_err(|_| Error::shape(format!("{channels} channels")))?;
    let post = c.opt(2).map(|_| Post::Bias).into_iter().collect();
    let conv = Conv { strides: vec![], dilations: vec![], pads: vec![], group, layout: Layout::Plain, inputs: 0, outputs: 0, post };
    let operands: Vec<V<'g>> = [Some(padded), Some(w), c.opt(2)].into_iter().flatten().collect();
    let y = c.b.op(conv, &operands);
    let y = match c.word("activation", &["none", "silu", "swish"])? {
        "none" => y,
        _ => y * y.sigmoid(),
    };
    if padded.is_poison() {
        return Ok(c.poisoned());
    }
    let length = padded.ty().shape[2].clone();
    Ok(vec![y, padded.slice_axis(2, length - before.clone(), before)])
}
