//! Shapes: reading them, and the same elements under others.

use super::axes::{Axes, Named, axes_input};
use super::{MANY, Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::source::Dims;
use nnc_ir::types::{ShapeText, broadcast, normalize_axis};
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};

pub const ROWS: &[Row] = &[
    op("Concat", 1, (1, MANY), concat),
    op("DepthToSpace", 1, (1, 1), depth_to_space),
    op("Expand", 8, (2, 2), expand),
    op("Flatten", 1, (1, 1), flatten),
    op("Reshape", 1, (1, 1), reshape_attribute),
    op("Reshape", 5, (2, 2), reshape),
    op("Shape", 1, (1, 1), shape),
    op("Size", 1, (1, 1), |c| Ok(vec![c.b.op(Dims { values: vec![c.x(0)?.ty().elems()], scalar: true }, &[])])),
    op("SpaceToDepth", 1, (1, 1), space_to_depth),
    op("Squeeze", 1, (1, 1), |c| squeeze(c, c.ints("axes")?.map(Axes::Known))),
    op("Squeeze", 13, (1, 2), |c| squeeze(c, axes_input(c, 1, "axes")?)),
    op("Tile", 1, (3, 3), tile_axis),
    op("Tile", 6, (2, 2), tile),
    op("Transpose", 1, (1, 1), transpose),
    op("Unsqueeze", 1, (1, 1), |c| unsqueeze(c, c.ints("axes")?.map(Axes::Known))),
    op("Unsqueeze", 13, (2, 2), |c| unsqueeze(c, axes_input(c, 1, "axes")?)),
];

fn concat<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    if c.opset >= 4 && c.attr("axis").is_none() {
        return Err(c.missing("axis"));
    }
    let axis = c.axis("axis", 1)?;
    Ok(vec![V::concat(&c.all()?, axis)])
}

fn transpose<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let rank = x.ty().rank();
    let perm = c.ints("perm")?.unwrap_or_else(|| (0..rank as i64).rev().collect());
    let perm: Vec<usize> = perm.iter().map(|p| normalize_axis(*p, rank)).collect::<Result<_>>()?;
    // A wrong length is for inference to refuse, even where the numbers ascend.
    Ok(vec![if perm.len() == rank { x.transpose(&perm) } else { c.b.op(nnc_ir::ops::movement::Transpose { perm }, &[x]) }])
}

/// Target lengths: 0 takes that of the operand at the same place (unless `allow_zero`), one -1 takes what is left.
fn reshaped<'g>(x: V<'g>, target: Vec<Dim>, allow_zero: bool) -> Result<V<'g>> {
    let have = x.ty().shape;
    let mut shape = vec![];
    let mut open = None;
    for (i, d) in target.iter().enumerate() {
        shape.push(match d.as_const() {
            Some(0) if !allow_zero => match have.get(i) {
                Some(d) => d.clone(),
                None => return Err(Error::shape(format!("0 at place {i} copies a length that {} does not have", x.ty()))),
            },
            Some(-1) if open.is_none() => {
                open = Some(i);
                Dim::Const(1)
            }
            Some(n) if n < 0 => return Err(Error::shape(format!("a target shape {} ", ShapeText(&target)))),
            _ => d.clone(),
        });
    }
    if let Some(i) = open {
        // Lengths that stand on both sides cancel, whatever they turn out to be.
        let (mut above, mut below) = (have, shape.clone());
        below.remove(i);
        below.retain(|d| match above.iter().position(|a| a == d) {
            Some(at) if !d.is(0) => {
                above.remove(at);
                false
            }
            _ => true,
        });
        let (above, below) = (Dim::product(&above), Dim::product(&below));
        if let (Some(a), Some(b)) = (above.as_const(), below.as_const())
            && (b == 0 && a != 0 || b != 0 && a % b != 0)
        {
            return Err(Error::shape(format!("{} does not reshape to {}", x.ty(), ShapeText(&target))));
        }
        shape[i] = above.floor_div(&below);
    }
    Ok(x.reshape(shape))
}

fn reshape_attribute<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["consumed_inputs"]);
    let shape = c.ints("shape")?.ok_or_else(|| c.missing("shape"))?;
    Ok(vec![reshaped(c.x(0)?, shape.into_iter().map(Dim::Const).collect(), false)?])
}

fn reshape<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let allow_zero = c.flag("allowzero", false)?;
    if let Some(target) = c.dims(1)? {
        return Ok(vec![reshaped(x, target, allow_zero)?]);
    }
    // A shape that only the run knows: resolve 0 and -1 with tensor arithmetic, then read it.
    let have = x.ty();
    let mut want = c.x(1)?.cast(DType::I64);
    let n = want.ty().elems().as_const().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= 64);
    let n = n.ok_or_else(|| Error::unsupported(format!("the shape should be a short vector of known length, found {}", want.ty())))?;
    let k = |v: i64| c.b.constant(nnc_ir::Tensor::scalar(v));
    if !allow_zero {
        let same = c.b.dims((0..n).map(|i| have.shape.get(i).cloned().unwrap_or(Dim::Const(0))).collect());
        want = want.equal(k(0)).select(same, want);
    }
    let open = want.equal(k(-1));
    let rest = open.select(k(1), want).reduce(ReduceKind::Prod, &[0], true);
    let total = c.b.op(Dims { values: vec![have.elems()], scalar: true }, &[]);
    let (shape, _) = c.read(open.select(total / rest.max(k(1)), want), "the shape")?;
    Ok(vec![x.reshape(shape)])
}

fn flatten<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let shape = x.ty().shape;
    let axis = match c.int("axis", 1)? {
        a if a == shape.len() as i64 => shape.len(),
        a => normalize_axis(a, shape.len())?,
    };
    Ok(vec![x.reshape(vec![Dim::product(&shape[..axis]), Dim::product(&shape[axis..])])])
}

fn squeeze<'g>(c: &Call<'g>, axes: Option<Axes<'g>>) -> Result<Vec<V<'g>>> {
    let mut x = c.x(0)?;
    let ty = x.ty();
    let gone: Vec<usize> = match axes {
        Some(Axes::Known(axes)) => axes.iter().map(|a| normalize_axis(*a, ty.rank())).collect::<Result<_>>()?,
        Some(Axes::Open(axes)) => {
            let left = axes.ty().elems().as_const().ok_or_else(|| c.unknown(1, "the number of axes"))?;
            let left = usize::try_from(ty.rank() as i64 - left).map_err(|_| Error::shape(format!("{left} axes of {ty}")))?;
            return Ok(vec![x.reshape(Named::new(c, axes, ty.rank()).without(c, &ty.shape, left)?)]);
        }
        None => {
            x = other_than_one(c, x)?;
            (0..ty.rank()).filter(|a| ty.shape[*a].is(1)).collect()
        }
    };
    if let Some(a) = gone.iter().find(|a| ty.shape[**a].as_const().is_some_and(|d| d != 1)) {
        return Err(Error::shape(format!("axis {a} of {ty} is not 1")));
    }
    let kept = ty.shape.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, d)| d.clone());
    Ok(vec![x.reshape(kept.collect())])
}

/// Without axes those of length 1 go, and the rank follows from that: a length that only the run knows is an error of the run where it
/// turns out to be 1. The tensor comes back read at positions that depend on the check, which nothing else would need.
fn other_than_one<'g>(c: &Call<'g>, x: V<'g>) -> Result<V<'g>> {
    let shape = x.ty().shape;
    let is_open = |d: &&Dim| d.as_const().is_none() && d.least().is_none_or(|l| l < 2);
    let open: Vec<Dim> = shape.iter().filter(is_open).cloned().collect();
    let Some(axis) = shape.iter().position(|d| is_open(&d)) else { return Ok(x) };
    let k = |v: i64| c.b.constant(Tensor::scalar(v));
    let one = c.b.dims(open).equal(k(1)).reduce(ReduceKind::Max, &[0], false);
    let (_, zero) = c.read(one.select(k(-1), k(0)), "lengths other than 1")?;
    let index = super::index::ramp(c.b, shape[axis].clone(), 0, 1) + zero;
    Ok(c.b.op(nnc_ir::ops::index::Gather { axis }, &[x, index]))
}

fn unsqueeze<'g>(c: &Call<'g>, axes: Option<Axes<'g>>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let mut shape = x.ty().shape;
    let axes = match axes.ok_or_else(|| c.missing("axes"))? {
        Axes::Known(axes) => axes,
        Axes::Open(axes) => {
            let new = axes.ty().elems().as_const().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= 64);
            let new = new.ok_or_else(|| c.unknown(1, "the number of axes"))?;
            let axes = Named::new(c, axes, shape.len() + new);
            let shape = if shape.is_empty() { vec![Dim::Const(1); new] } else { axes.with_ones(c, &shape)? };
            return Ok(vec![x.reshape(shape)]);
        }
    };
    let rank = shape.len() + axes.len();
    let mut new = axes.iter().map(|a| normalize_axis(*a, rank)).collect::<Result<Vec<_>>>()?;
    new.sort();
    if new.windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::attribute(format!("axes {axes:?} name one axis twice")));
    }
    new.iter().for_each(|a| shape.insert(*a, Dim::Const(1)));
    Ok(vec![x.reshape(shape)])
}

/// Stretches both ways: the result is the broadcast of the operand's shape and the given one.
fn expand<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let want = c.dims_or_read(1, "the shape")?;
    let have = x.ty().shape;
    let both = broadcast(&[&want, &have])?;
    // The run compares what x has with the shape that it is stretched to. Where that says nothing of a wanted length, which must be 1 or
    // the result's, it takes a detour through a shape that differs from the result's if the wanted length is neither.
    let one = Dim::Const(1);
    let mut checked = both.clone();
    let skip = both.len() - want.len();
    for (d, w) in checked[skip..].iter_mut().zip(&want) {
        if d != w && w.as_const().is_none() {
            *d = d.clone() + (w.clone() - one.clone()) * (w.clone() - d.clone());
        }
    }
    Ok(vec![if checked == both { x.expand(both) } else { x.expand(checked).reshape(both) }])
}

fn shape<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let shape = c.x(0)?.ty().shape;
    let n = shape.len() as i64;
    let clamp = |a: i64| (if a < 0 { a + n } else { a }).clamp(0, n) as usize;
    let (start, end) = (clamp(c.int("start", 0)?), clamp(c.opt_int("end")?.unwrap_or(n)));
    Ok(vec![c.b.dims(shape.get(start..end).unwrap_or_default().to_vec())])
}

/// `repeats[i]` copies along axis i.
pub fn tiled<'g>(x: V<'g>, repeats: &[Dim]) -> Result<V<'g>> {
    let shape = x.ty().shape;
    if repeats.len() != shape.len() {
        return Err(Error::shape(format!("{} repeats for {}", repeats.len(), x.ty())));
    }
    let apart = shape.iter().flat_map(|d| [Dim::Const(1), d.clone()]).collect();
    let spread = shape.iter().zip(repeats).flat_map(|(d, r)| [r.clone(), d.clone()]).collect();
    let joined = shape.iter().zip(repeats).map(|(d, r)| d.clone() * r.clone()).collect();
    Ok(x.reshape(apart).expand(spread).reshape(joined))
}

fn tile<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    Ok(vec![tiled(x, &c.dims_of(1, x.ty().rank(), "repeats")?)?])
}

/// Opset 1: a number of tiles along one axis.
fn tile_axis<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let rank = x.ty().rank();
    let ((tiles, count), (axis, place)) = (c.old_counts(1, "tiles")?, c.old_counts(2, "axis")?);
    if [tiles, axis].iter().any(|v| v.ty().elems().as_const().is_some_and(|n| n != 1)) {
        return Err(Error::shape("tiles and axis are scalars"));
    }
    let mut repeats = vec![Dim::Const(1); rank];
    if let (Some(tiles), Some(axis)) = (count.as_deref().and_then(<[i64]>::first), place.as_deref().and_then(<[i64]>::first)) {
        repeats[normalize_axis(*axis, rank)?] = Dim::Const((*tiles).max(0));
        return Ok(vec![tiled(x, &repeats)?]);
    }
    let k = |v: i64| c.b.constant(Tensor::scalar(v));
    let tiles = tiles.reshape(vec![Dim::Const(1)]).max(k(0));
    if let Some(axis) = place.as_deref().and_then(<[i64]>::first) {
        repeats[normalize_axis(*axis, rank)?] = c.read(tiles, "tiles")?.0[0].clone();
        return Ok(vec![tiled(x, &repeats)?]);
    }
    let named = Named::new(c, axis.reshape(vec![Dim::Const(1)]), rank);
    named.check(c)?;
    Ok(vec![tiled(x, &c.read(named.spread(tiles, k(1)), "tiles")?.0)?])
}

/// `[N,C,H,W]` and the block size.
fn blocks<'g>(c: &Call<'g>) -> Result<(V<'g>, Vec<Dim>, Dim)> {
    let x = c.x(0)?;
    let size = c.opt_int("blocksize")?.filter(|b| *b > 0).ok_or_else(|| Error::attribute("attribute `blocksize` should be a positive integer"))?;
    let shape = x.ty().shape;
    if shape.len() != 4 {
        return Err(Error::shape(format!("expected [N,C,H,W], found {}", x.ty())));
    }
    Ok((x, shape, Dim::Const(size)))
}

fn depth_to_space<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let depth_first = c.word("mode", &["DCR", "CRD"])? == "DCR";
    let (x, s, b) = blocks(c)?;
    let (n, h, w) = (s[0].clone(), s[2].clone(), s[3].clone());
    let channels = s[1].floor_div(&(b.clone() * b.clone()));
    let (split, perm) = if depth_first {
        (vec![n.clone(), b.clone(), b.clone(), channels.clone(), h.clone(), w.clone()], [0, 3, 4, 1, 5, 2])
    } else {
        (vec![n.clone(), channels.clone(), b.clone(), b.clone(), h.clone(), w.clone()], [0, 1, 4, 2, 5, 3])
    };
    Ok(vec![x.reshape(split).transpose(&perm).reshape(vec![n, channels, h * b.clone(), w * b])])
}

fn space_to_depth<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    // mode was added with opset 26's kin of DepthToSpace; DCR is what there was before.
    let depth_first = c.word("mode", &["DCR", "CRD"])? == "DCR";
    let (x, s, b) = blocks(c)?;
    let (n, channels) = (s[0].clone(), s[1].clone());
    let (h, w) = (s[2].floor_div(&b), s[3].floor_div(&b));
    let split = vec![n.clone(), channels.clone(), h.clone(), b.clone(), w.clone(), b.clone()];
    let perm = if depth_first { [0, 3, 5, 1, 2, 4] } else { [0, 1, 3, 5, 2, 4] };
    Ok(vec![x.reshape(split).transpose(&perm).reshape(vec![n, channels * b.clone() * b, h, w])])
}
