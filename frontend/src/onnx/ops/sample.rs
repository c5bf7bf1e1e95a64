//! Reading images at positions that are computed: grids, regions of interest, deformable windows; and putting windows together again.

use super::index::ramp;
use super::matmul::matmul;
use super::text::moved;
use super::window::{Geometry, group, spatial};
use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::contract::ConvTranspose;
use nnc_ir::ops::control::Loop;
use nnc_ir::ops::index::{GatherNd, ScatterKind, ScatterNd};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::source::{Dims, Iota};
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, Tensor, Type, V};

pub const ROWS: &[Row] = &[
    op("AffineGrid", 20, (2, 2), affine_grid),
    op("Col2Im", 18, (3, 3), col2im),
    op("DeformConv", 19, (3, 5), deform_conv),
    op("GridSample", 16, (2, 2), grid_sample_any),
    op("MaxRoiPool", 1, (2, 2), max_roi_pool),
    op("RoiAlign", 10, (3, 3), roi_align),
];

fn dim<'g>(c: &Call<'g>, d: &Dim, dtype: DType) -> V<'g> {
    c.b.op(Dims { values: vec![d.clone()], scalar: true }, &[]).cast(dtype)
}

/// What lies beyond the edge of an image.
#[derive(Clone, Copy, PartialEq)]
enum Beyond {
    Zeros,
    Border,
    Reflection,
}

/// Images `[N, C, spatial..]` to be read at positions `[N, P]`, one tensor a spatial axis, counted in elements.
struct Images<'g> {
    /// `[N, elements, C]`.
    flat: V<'g>,
    sizes: Vec<Dim>,
    beyond: Beyond,
    /// Reflection turns at the centres of the outermost elements, not at their edges.
    at_centres: bool,
}

impl<'g> Images<'g> {
    fn new(x: V<'g>, beyond: Beyond, at_centres: bool) -> Images<'g> {
        let s = x.ty().shape;
        let flat = x.reshape(vec![s[0].clone(), s[1].clone(), Dim::product(&s[2..])]).transpose(&[0, 2, 1]);
        Images { flat, sizes: s[2..].to_vec(), beyond, at_centres }
    }

    fn size(&self, axis: usize, dtype: DType) -> V<'g> {
        self.flat.builder().op(Dims { values: vec![self.sizes[axis].clone()], scalar: true }, &[]).cast(dtype)
    }

    /// A position brought back inside.
    fn inside(&self, axis: usize, p: V<'g>) -> V<'g> {
        let n = self.size(axis, p.ty().dtype);
        let k = |v: f64| p.scalar_like(v);
        match self.beyond {
            Beyond::Zeros => p,
            Beyond::Border => p.max(k(0.0)).min(n - k(1.0)),
            Beyond::Reflection => {
                // Back and forth between the edges: a triangle wave.
                let (lo, length) = if self.at_centres { (k(0.0), n - k(1.0)) } else { (k(-0.5), n) };
                let there_and_back = length * k(2.0);
                let at = (p - lo).abs();
                let at = p.builder().op(nnc_ir::Op::Map(ScalarFn::Fmod), &[at, there_and_back.max(k(f32::MIN_POSITIVE.into()))]);
                let folded = at.greater(length).select(there_and_back - at, at) + lo;
                let outside = p.less(lo).or(p.greater(lo + length));
                outside.select(folded, p)
            }
        }
    }

    /// The elements at whole positions: `[N, P, C]`.
    fn at(&self, positions: &[V<'g>]) -> V<'g> {
        let b = self.flat.builder();
        let zero = b.constant(Tensor::scalar(0i64));
        let mut index: Option<V<'g>> = None;
        let mut valid: Option<V<'g>> = None;
        for (axis, p) in positions.iter().enumerate() {
            let n = self.size(axis, DType::I64);
            let last = n - b.constant(Tensor::scalar(1i64));
            // Reflected half positions are cut to whole ones.
            let i = self.inside(axis, *p).map(ScalarFn::Trunc).cast(DType::I64);
            let here = i.greater_equal(zero).and(i.less_equal(last));
            valid = Some(valid.map_or(here, |v| v.and(here)));
            let i = i.max(zero).min(last);
            index = Some(index.map_or(i, |flat| flat * n + i));
        }
        let (Some(index), Some(valid)) = (index, valid) else { return b.poison() };
        let column = |v: V<'g>| v.reshape(v.ty().shape.into_iter().chain([Dim::Const(1)]).collect());
        let y = b.op(GatherNd { batch_dims: 1 }, &[self.flat, column(index)]);
        if self.beyond == Beyond::Zeros { column(valid).select(y, y.scalar_like(0.0)) } else { y }
    }

    /// The weighted sum over the neighbours of positions: `taps` gives offsets from the position rounded down, and weights.
    fn interpolated(&self, positions: &[V<'g>], taps: &dyn Fn(V<'g>) -> Vec<(f64, V<'g>)>) -> V<'g> {
        let mut neighbours: Vec<(Vec<V<'g>>, Option<V<'g>>)> = vec![(vec![], None)];
        for p in positions {
            let base = p.floor();
            let along = taps(*p - base);
            let grown = neighbours.iter().flat_map(|(at, weight)| {
                along.iter().map(move |(offset, w)| {
                    let at = at.iter().copied().chain([base + base.scalar_like(*offset)]).collect();
                    (at, Some(weight.map_or(*w, |weight| weight * *w)))
                })
            });
            neighbours = grown.collect();
        }
        let column = |v: V<'g>| v.reshape(v.ty().shape.into_iter().chain([Dim::Const(1)]).collect());
        let part = |(at, weight): (Vec<V<'g>>, Option<V<'g>>)| {
            let y = self.at(&at);
            weight.map_or(y, |w| y * column(w).cast(y.ty().dtype))
        };
        neighbours.into_iter().map(part).reduce(|a, b| a + b).unwrap_or(self.flat.builder().poison())
    }
}

fn linear(r: V) -> Vec<(f64, V)> {
    vec![(0.0, r.scalar_like(1.0) - r), (1.0, r)]
}

/// Keys 1981 with a = -0.75.
fn cubic(r: V) -> Vec<(f64, V)> {
    let k = |v: f64| r.scalar_like(v);
    let a = -0.75;
    vec![(-1.0, r + k(1.0)), (0.0, r), (1.0, k(1.0) - r), (2.0, k(2.0) - r)]
        .into_iter()
        .map(|(offset, d)| {
            let weight = if offset == 0.0 || offset == 1.0 {
                ((k(a + 2.0) * d - k(a + 3.0)) * d) * d + k(1.0)
            } else {
                ((k(a) * d - k(5.0 * a)) * d + k(8.0 * a)) * d - k(4.0 * a)
            };
            (offset, weight)
        })
        .collect()
}

/// Strings are moved, so they come from the nearest place.
fn grid_sample_any<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    if c.x(0)?.ty().dtype == DType::Str && c.opt_str("mode")? != Some("nearest") {
        return Err(Error::dtype("strings have nothing between them: attribute `mode` should be nearest"));
    }
    moved(c, grid_sample)
}

fn grid_sample<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (given, grid) = (c.x(0)?, c.x(1)?);
    let mode = c.word("mode", &["linear", "bilinear", "nearest", "cubic", "bicubic"])?;
    // Between whole numbers there are fractions, which are cut from the result.
    let dtype = given.ty().dtype;
    let x = if mode == "nearest" || dtype.is_float() { given } else { given.cast(DType::F64) };
    let axes = spatial(x)?.len();
    let grid = c.long(grid, axes + 1, axes);
    let (xs, gs) = (x.ty().shape, grid.ty().shape);
    if gs.len() != xs.len() || !gs[gs.len() - 1].is(axes as i64) {
        return Err(Error::shape(format!("a grid {} for {}", grid.ty(), x.ty())));
    }
    let beyond = match c.word("padding_mode", &["zeros", "border", "reflection"])? {
        "zeros" => Beyond::Zeros,
        "border" => Beyond::Border,
        _ => Beyond::Reflection,
    };
    let at_centres = c.flag("align_corners", false)?;
    let images = Images::new(x, beyond, at_centres);
    let flat = grid.reshape(vec![gs[0].clone(), Dim::product(&gs[1..gs.len() - 1]), gs[gs.len() - 1].clone()]);
    // The grid counts axes from the last, from -1 to 1.
    let position = |axis: usize| {
        let p = flat.slice_axis(2, Dim::from(axes - 1 - axis), Dim::Const(1)).reshape(flat.ty().shape[..2].to_vec());
        let (n, one, two) = (dim(c, &xs[2 + axis], p.ty().dtype), p.scalar_like(1.0), p.scalar_like(2.0));
        let p = if at_centres { (p + one) / two * (n - one) } else { ((p + one) * n - one) / two };
        images.inside(axis, if mode == "nearest" { p.map(ScalarFn::Round) } else { p })
    };
    let positions: Vec<V<'g>> = (0..axes).map(position).collect();
    let y = match mode {
        "nearest" => images.at(&positions),
        "cubic" | "bicubic" => images.interpolated(&positions, &cubic),
        _ => images.interpolated(&positions, &linear),
    };
    let shape = [&xs[..2], &gs[1..gs.len() - 1]].concat();
    Ok(vec![y.transpose(&[0, 2, 1]).reshape(shape).cast(dtype)])
}

/// Positions of a regular grid from -1 to 1, mapped by a matrix a sample.
fn affine_grid<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let theta = c.x(0)?;
    let size = c.dims_or_read(1, "size")?;
    let axes = size.len().checked_sub(2).filter(|n| matches!(n, 2 | 3));
    let axes = axes.ok_or_else(|| Error::shape(format!("a size of {} numbers; [N,C,H,W] or [N,C,D,H,W] is expected", size.len())))?;
    let ty = theta.ty();
    if ty.rank() != 3 || !ty.shape[1].is(axes as i64) || !ty.shape[2].is(axes as i64 + 1) {
        return Err(Error::shape(format!("theta should be [N,{axes},{}], found {ty}", axes + 1)));
    }
    let at_corners = c.flag("align_corners", false)?;
    let area = &size[2..];
    let mut column = area.to_vec();
    column.push(Dim::Const(1));
    let axis = |i: usize| {
        let at = ramp(c.b, area[i].clone(), i, axes + 1).cast(ty.dtype);
        let (n, one, two) = (dim(c, &area[i], ty.dtype), at.scalar_like(1.0), at.scalar_like(2.0));
        let p = if at_corners { at * two / (n - one) - one } else { (at * two + one) / n - one };
        p.expand(column.clone())
    };
    // The last axis of the image is the first coordinate; a 1 follows the last.
    let one = theta.scalar_like(1.0).expand(column.clone());
    let coordinates: Vec<V<'g>> = (0..axes).rev().map(axis).chain([one]).collect();
    let points = V::concat(&coordinates, axes).reshape(vec![Dim::product(area), Dim::from(axes + 1)]);
    let y = matmul(points, theta.transpose(&[0, 2, 1]));
    Ok(vec![y.reshape([&ty.shape[..1], area, &[Dim::from(axes)]].concat())])
}

/// Sums windows into an image: a transposed convolution whose filters each have a single 1.
fn col2im<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let x = c.x(0)?;
    let (image, block) = (c.dims_or_read(1, "image_shape")?, c.dims_or_read(2, "block_shape")?);
    let known = |dims: &[Dim]| dims.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>();
    let (Some(image), Some(block)) = (known(&image), known(&block)) else { return col2im_open(c, x, &image, &block) };
    let n = image.len();
    let (strides, dilations, pads) = (one_each(c, "strides", n, 1)?, one_each(c, "dilations", n, 1)?, one_each(c, "pads", 2 * n, 0)?);
    let s = x.ty().shape;
    let limits = |v: &i64| (1..=1 << 20).contains(v);
    let count = block.iter().try_fold(1i64, |a, b| a.checked_mul(*b)).filter(|k| limits(k) && block.iter().all(limits));
    let channels = s.get(1).and_then(Dim::as_const).zip(count).filter(|(ck, k)| ck % k == 0).map(|(ck, k)| ck / k);
    let bounded = image.iter().chain(&pads).all(|v| (0..=i64::from(i32::MAX)).contains(v)) && strides.iter().chain(&dilations).all(limits);
    let (Some(count), Some(channels), true) = (count, channels, s.len() == 3 && block.len() == n && bounded) else {
        return Err(Error::shape(format!("blocks {block:?} of {} into an image {image:?} with pads {pads:?}", x.ty())));
    };
    let mut blocks = vec![];
    let mut output_padding = vec![];
    for i in 0..n {
        let slack = image[i] + pads[i] + pads[n + i] - (block[i] - 1) * dilations[i] - 1;
        if slack < 0 {
            return Err(Error::shape(format!("a block of {} along an axis of {}", block[i], image[i])));
        }
        blocks.push(Dim::Const(slack / strides[i] + 1));
        output_padding.push(slack % strides[i]);
    }
    let mut eye = vec![0f32; (count * count) as usize];
    (0..count as usize).for_each(|i| eye[i * (count as usize + 1)] = 1.0);
    let eye = c.b.constant(Tensor::new(&[count as usize, count as usize], &eye)).cast(x.ty().dtype);
    let kernel: Vec<Dim> = block.iter().map(|b| Dim::Const(*b)).collect();
    let filters = super::shape::tiled(eye, &[Dim::Const(channels), Dim::Const(1)])?;
    let filters = filters.reshape([&[Dim::Const(channels * count), Dim::Const(1)], &kernel[..]].concat());
    let columns = x.reshape([&s[..2], &blocks[..]].concat());
    let fold = ConvTranspose { strides, dilations, pads, output_padding, group: channels as usize, post: vec![] };
    Ok(vec![c.b.op(fold, &[columns, filters])])
}

/// A list of `len` integers, or as many times `default`.
fn one_each(c: &Call, name: &str, len: usize, default: i64) -> Result<Vec<i64>> {
    let v = c.ints(name)?.unwrap_or(vec![default; len]);
    if v.len() == len { Ok(v) } else { Err(Error::attribute(format!("attribute `{name}` should be {len} integers, found {v:?}"))) }
}

/// As [`col2im`], with lengths that only the run knows: every element is added at its place in the padded image.
fn col2im_open<'g>(c: &Call<'g>, x: V<'g>, image: &[Dim], block: &[Dim]) -> Result<Vec<V<'g>>> {
    let n = image.len();
    let (strides, dilations, pads) = (one_each(c, "strides", n, 1)?, one_each(c, "dilations", n, 1)?, one_each(c, "pads", 2 * n, 0)?);
    let s = x.ty().shape;
    if s.len() != 3 || block.len() != n || n == 0 || strides.iter().chain(&dilations).any(|v| *v < 1) {
        return Err(Error::shape(format!("blocks of {n} axes in {}", x.ty())));
    }
    let padded: Vec<Dim> = (0..n).map(|i| image[i].clone() + Dim::Const(pads[i].saturating_add(pads[n + i]))).collect();
    let k = |v: i64| c.b.constant(Tensor::scalar(v));
    let mut blocks = vec![];
    let mut place: Option<V<'g>> = None;
    for i in 0..n {
        let reach = (block[i].clone() - Dim::Const(1)) * Dim::Const(dilations[i]) + Dim::Const(1);
        blocks.push((&padded[i] - &reach).floor_div(&Dim::Const(strides[i])) + Dim::Const(1));
        let at = ramp(c.b, block[i].clone(), i, 2 * n) * k(dilations[i]) + ramp(c.b, blocks[i].clone(), n + i, 2 * n) * k(strides[i]);
        place = Some(place.map_or(at, |p| p * dim(c, &padded[i], DType::I64) + at));
    }
    let Some(place) = place else { return Ok(c.poisoned()) };
    let count = Dim::product(block) * Dim::product(&blocks);
    let channels = s[1].floor_div(&Dim::product(block));
    let images = s[0].clone() * channels.clone();
    let elements = x.reshape(vec![images.clone(), count.clone()]).transpose(&[1, 0]);
    let zeros = x.scalar_like(0.0).expand(vec![Dim::product(&padded), images]);
    let sums = c.b.op(ScatterNd { reduction: ScatterKind::Add }, &[zeros, place.reshape(vec![count, Dim::Const(1)]), elements]);
    let y = sums.transpose(&[1, 0]).reshape([&[s[0].clone(), channels.clone()], &padded[..]].concat());
    let starts = [0, 0].iter().chain(&pads[..n]).map(|p| Dim::Const(*p)).collect();
    Ok(vec![y.slice(starts, [&[s[0].clone(), channels], image].concat())])
}

/// A convolution whose windows read at positions that are shifted one by one.
fn deform_conv<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, w, offset) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let (xs, ws, os) = (x.ty().shape, w.ty().shape, offset.ty().shape);
    let area = spatial(x)?;
    if area.len() != 2 || ws.len() != 4 || os.len() != 4 {
        return Err(Error::unsupported(format!("only images of two axes are supported, found {}", x.ty())));
    }
    let g = Geometry::read(c, &area, Some(&ws[2..]))?;
    let (groups, offset_groups) = (group(c)?, c.int("offset_group", 1)?);
    let (kh, kw) = (g.kernel[0], g.kernel[1]);
    let taps = kh * kw;
    let channels = xs[1].as_const().filter(|ch| offset_groups > 0 && ch % offset_groups == 0 && ch % groups as i64 == 0);
    let outputs = ws[0].as_const().filter(|o| o % groups as i64 == 0);
    let (Some(channels), Some(outputs)) = (channels, outputs) else {
        return Err(Error::shape(format!("{} and weights {} with group={groups}, offset_group={offset_groups}", x.ty(), w.ty())));
    };
    let (n, out) = (xs[0].clone(), os[2..].to_vec());
    let points = Dim::product(&out);
    let og = Dim::Const(offset_groups);
    // Each group of channels with offsets of its own is an image of its own.
    let image = x.reshape(vec![n.clone() * og.clone(), xs[1].floor_div(&og), area[0].clone(), area[1].clone()]);
    let images = Images::new(image, Beyond::Zeros, false);
    let rows = n.clone() * og.clone();
    // [N*og, taps, 2, out..]: shifts of the two axes.
    let shifts = offset.reshape(vec![rows.clone(), Dim::Const(taps), Dim::Const(2), out[0].clone(), out[1].clone()]);
    let regular = |axis: usize| {
        let k = |v: i64| c.b.constant(Tensor::scalar(v));
        let tap = ramp(c.b, Dim::Const(taps), 0, 3);
        let tap = if axis == 0 { tap / k(kw) } else { c.b.op(nnc_ir::Op::Map(ScalarFn::Mod), &[tap, k(kw)]) };
        let at = ramp(c.b, out[axis].clone(), 1 + axis, 3) * k(g.strides[axis]) + tap * k(g.dilations[axis]);
        at - c.b.op(Dims { values: vec![g.lo[axis].clone()], scalar: true }, &[])
    };
    let position = |axis: usize| {
        let shift =
            shifts.slice_axis(2, Dim::from(axis), Dim::Const(1)).reshape(vec![rows.clone(), Dim::Const(taps), out[0].clone(), out[1].clone()]);
        (shift + regular(axis).cast(shift.ty().dtype)).reshape(vec![rows.clone(), Dim::Const(taps) * points.clone()])
    };
    let mut columns = images.interpolated(&[position(0), position(1)], &linear);
    if let Some(mask) = c.opt(4) {
        columns = columns * mask.reshape(vec![rows.clone(), Dim::Const(taps) * points.clone(), Dim::Const(1)]);
    }
    // [N*og, taps, points, C/og] to [N, groups, (C/groups) * taps, points].
    let per = Dim::Const(channels / offset_groups);
    let columns = columns.reshape(vec![rows, Dim::Const(taps), points.clone(), per]).transpose(&[0, 3, 1, 2]);
    let inner = Dim::Const(channels / groups as i64 * taps);
    let columns = columns.reshape(vec![n.clone(), Dim::from(groups), inner.clone(), points]);
    let filters = w.reshape(vec![Dim::from(groups), Dim::Const(outputs / groups as i64), inner]);
    let y = matmul(filters, columns).reshape(vec![n, Dim::Const(outputs), out[0].clone(), out[1].clone()]);
    Ok(vec![c.opt(3).map_or(y, |b| y + super::norm::per_channel(b, y))])
}

/// Averages or maxima of regions, read at points in each bin: a fixed number of them, or as many as its size asks for.
fn roi_align<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, rois, batch) = (c.x(0)?, c.long(c.x(1)?, 1, 4), c.x(2)?);
    let (xs, rs) = (x.ty().shape, rois.ty().shape);
    if xs.len() != 4 || rs.len() != 2 || !rs[1].is(4) {
        return Err(Error::shape(format!("images {} and regions {}", x.ty(), rois.ty())));
    }
    let half_pixel = match c.opset {
        10..16 => false,
        _ => c.word("coordinate_transformation_mode", &["half_pixel", "output_half_pixel"])? == "half_pixel",
    };
    let average = c.word("mode", &["avg", "max"])? == "avg";
    let positive = |name: &str| {
        c.int(name, 1).and_then(|n| if (1..=4096).contains(&n) { Ok(n) } else { Err(Error::attribute(format!("attribute `{name}` is {n}"))) })
    };
    let (height, width) = (positive("output_height")?, positive("output_width")?);
    let samples = c.int("sampling_ratio", 0)?;
    if !(0..=64).contains(&samples) {
        return Err(Error::unsupported(format!("a sampling_ratio of {samples}; known are 0 to 64")));
    }
    let scale = rois.scalar_like(c.float("spatial_scale", 1.0)?);
    let k = |v: f64| rois.scalar_like(v);
    let edge = |i: i64| {
        let e = rois.slice_axis(1, Dim::Const(i), Dim::Const(1)) * scale;
        if half_pixel { e - k(0.5) } else { e }
    };
    // Where a region starts along an axis and how long it is: [R, 1].
    let extent = |start: i64, end: i64| {
        let (start, end) = (edge(start), edge(end));
        (start, if half_pixel { end - start } else { (end - start).max(k(1.0)) })
    };
    let flat = x.reshape(vec![xs[0].clone(), xs[1].clone(), xs[2].clone() * xs[3].clone()]).transpose(&[0, 2, 1]);
    let batch = batch.cast(DType::I64).reshape(vec![rs[0].clone()]);
    let regions = Regions { flat, batch, length: [xs[2].clone(), xs[3].clone()], bins: [height, width], average };
    let (y, x) = (extent(1, 3), extent(0, 2));
    let pooled = if samples == 0 { regions.adaptive(c, y, x)? } else { regions.sampled(c, y, x, samples) };
    Ok(vec![pooled.transpose(&[0, 3, 1, 2])])
}

/// Images that regions are read from.
struct Regions<'g> {
    /// `[N, H * W, C]`.
    flat: V<'g>,
    /// The image of each region: `i64[R]`.
    batch: V<'g>,
    /// H and W.
    length: [Dim; 2],
    /// Bins of a region along both axes.
    bins: [i64; 2],
    /// Of the points in a bin; the largest else.
    average: bool,
}

/// Start and length of regions along an axis: `[R, 1]` each.
type Extent<'g> = (V<'g>, V<'g>);

impl<'g> Regions<'g> {
    /// What the images are at the points where rows `y` (`[R, rows]`) and columns `x` (`[R, columns]`) cross: `[R, rows, columns, C]`. Points
    /// beyond the edge are 0. The largest of a bin is that of its neighbours' weighted elements, not of their sums.
    fn at(&self, y: V<'g>, x: V<'g>) -> V<'g> {
        let b = self.flat.builder();
        let dtype = y.ty().dtype;
        let length = |axis: usize| b.op(Dims { values: vec![self.length[axis].clone()], scalar: true }, &[]).cast(dtype);
        // Low and high neighbours, the share of the high one, and whether the point counts.
        let along = |at: V<'g>, axis: usize| {
            let (n, k) = (length(axis), |v: f64| at.scalar_like(v));
            let counts = at.greater_equal(k(-1.0)).and(at.less_equal(n));
            let at = at.max(k(0.0)).min(n - k(1.0));
            let low = at.floor();
            (low, (low + k(1.0)).min(n - k(1.0)), at - low, counts)
        };
        let (r, rows, columns) = (y.ty().shape[0].clone(), y.ty().shape[1].clone(), x.ty().shape[1].clone());
        let ((y0, y1, yr, y_ok), (x0, x1, xr, x_ok)) = (along(y, 0), along(x, 1));
        let down = |v: V<'g>| v.reshape(vec![r.clone(), rows.clone(), Dim::Const(1)]);
        let across = |v: V<'g>| v.reshape(vec![r.clone(), Dim::Const(1), columns.clone()]);
        let every = vec![r.clone(), rows.clone(), columns.clone(), Dim::Const(1)];
        let image = self.batch.reshape(vec![r.clone(), Dim::Const(1), Dim::Const(1), Dim::Const(1)]).expand(every.clone());
        let counts = down(y_ok).and(across(x_ok)).reshape(every.clone());
        let one = |v: V<'g>| v.scalar_like(1.0) - v;
        let tap = |y: V<'g>, wy: V<'g>, x: V<'g>, wx: V<'g>| {
            let at = (down(y) * length(1) + across(x)).cast(DType::I64).reshape(every.clone());
            let value = b.op(GatherNd { batch_dims: 0 }, &[self.flat, V::concat(&[image, at], 3)]);
            let weight = (down(wy) * across(wx)).reshape(every.clone()).cast(value.ty().dtype);
            counts.select(value * weight, value.scalar_like(0.0))
        };
        let taps = [tap(y0, one(yr), x0, one(xr)), tap(y0, one(yr), x1, xr), tap(y1, yr, x0, one(xr)), tap(y1, yr, x1, xr)];
        taps.into_iter().reduce(|a, b| if self.average { a + b } else { a.max(b) }).unwrap_or(b.poison())
    }

    /// By `samples` times `samples` points in each bin: `[R, bins, bins, C]`.
    fn sampled(&self, c: &Call<'g>, y: Extent<'g>, x: Extent<'g>, samples: i64) -> V<'g> {
        let positions = |(start, span): Extent<'g>, bins: i64| {
            let i = c.b.op(Iota { shape: vec![Dim::Const(bins * samples)], axis: 0 }, &[]);
            start + (i.cast(start.ty().dtype) + start.scalar_like(0.5)) * (span / start.scalar_like((bins * samples) as f64))
        };
        let [height, width] = self.bins;
        let (r, s) = (self.batch.ty().elems(), Dim::Const(samples));
        let channels = self.flat.ty().shape[2].clone();
        // [R, height, samples, width, samples, C].
        let points =
            self.at(positions(y, height), positions(x, width)).reshape(vec![r, Dim::Const(height), s.clone(), Dim::Const(width), s, channels]);
        if self.average {
            points.reduce(ReduceKind::Sum, &[2, 4], false) / points.scalar_like((samples * samples) as f64)
        } else {
            points.reduce(ReduceKind::Max, &[2, 4], false)
        }
    }

    /// By as many points as a bin of the region is long and wide in elements, rounded up: a loop over the points of the largest bin, in
    /// which regions with fewer sit out.
    fn adaptive(&self, c: &Call<'g>, y: Extent<'g>, x: Extent<'g>) -> Result<V<'g>> {
        let bin = |(_, span): Extent<'g>, bins: i64| span / span.scalar_like(bins as f64);
        let sizes = [bin(y, self.bins[0]), bin(x, self.bins[1])];
        let int = |v: i64| c.b.constant(Tensor::scalar(v));
        // Points of each region, [R, 1], and the most of any.
        let counts = sizes.map(|size| size.map(ScalarFn::Ceil).cast(DType::I64).max(int(0)));
        let most = counts.map(|n| n.reduce(ReduceKind::Max, &[0, 1], false).max(int(0)));
        // Regions so large (or infinite) are mistakes: an error of the run, which would not end.
        let sane = |n: V<'g>| n.less_equal(int(MAX_POINTS));
        let (_, zero) = c.read(sane(most[0]).and(sane(most[1])).select(int(0), int(-1)), "the number of points")?;
        let [height, width] = self.bins;
        let channels = self.flat.ty().shape[2].clone();
        let shape = vec![self.batch.ty().elems(), Dim::Const(height), Dim::Const(width), channels];
        let start = self.flat.scalar_like(if self.average { 0.0 } else { f64::NEG_INFINITY }).expand(shape);
        let outside = [self.flat, self.batch, y.0, sizes[0], counts[0], x.0, sizes[1], counts[1], most[1]];
        if start.is_poison() || outside.iter().any(|v| v.is_poison()) {
            return Ok(c.b.poison());
        }
        let b = c.b.nested("points");
        let i = b.input("i", Type::new(DType::I64, vec![]));
        let so_far = b.input("so_far", start.ty());
        let [flat, batch, y, y_size, y_count, x, x_size, x_count, columns] = outside.map(|v| b.input("outer", v.ty()));
        let (row, column) = (i / columns, b.op(nnc_ir::Op::Map(ScalarFn::Mod), &[i, columns]));
        let own = Regions { flat, batch, length: self.length.clone(), bins: self.bins, average: self.average };
        let points = own.at(point(y, y_size, y_count, row, height), point(x, x_size, x_count, column, width));
        let each = |v: V<'_>| vec![v.ty().shape[0].clone(), Dim::Const(1), Dim::Const(1), Dim::Const(1)];
        let here = row.less(y_count).and(column.less(x_count));
        let here = here.reshape(each(here));
        let both = if self.average { so_far + points } else { so_far.max(points) };
        b.output("", b.constant(Tensor::scalar(true)));
        b.output("", here.select(both, so_far));
        let region = b.finish().map_err(|mut r| r.0.remove(0))?;
        let first = [most[0] * most[1] + zero, c.b.constant(Tensor::scalar(true)), start];
        let operands: Vec<V<'g>> = first.into_iter().chain(outside).collect();
        let pooled = c.b.op_all(Loop { carried: 1, trips: c.b.fresh_symbol("trips") }, &operands, vec![region])[0];
        let n = counts[0] * counts[1];
        let n = n.reshape(each(n)).cast(pooled.ty().dtype);
        let (zero, one) = (pooled.scalar_like(0.0), pooled.scalar_like(1.0));
        Ok(if self.average { pooled / n.max(one) } else { n.greater(zero).select(pooled, zero) })
    }
}

/// Points along an axis a bin at most.
const MAX_POINTS: i64 = 1 << 20;

/// Where point `number` of `count` is in each of the `bins` of regions, whose bins are of `size`: `[R, bins]`.
fn point<'c>(start: V<'c>, size: V<'c>, count: V<'c>, number: V<'c>, bins: i64) -> V<'c> {
    let dtype = start.ty().dtype;
    let bin = start.builder().op(Iota { shape: vec![Dim::Const(1), Dim::Const(bins)], axis: 1 }, &[]).cast(dtype);
    let inside = (number.cast(dtype) + start.scalar_like(0.5)) * size / count.cast(dtype).max(start.scalar_like(1.0));
    start + bin * size + inside
}

/// The largest element of each cell of a grid over each region `[image, x1, y1, x2, y2]`; corners are whole elements and belong to it.
/// Cells share the elements that they cut; one that holds none gives 0.
fn max_roi_pool<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let (x, rois) = (c.x(0)?, c.long(c.x(1)?, 1, 5));
    let (tx, tr) = (x.ty(), rois.ty());
    let cells = c.ints("pooled_shape")?.filter(|p| p.len() == 2 && p.iter().all(|n| *n > 0));
    let cells = cells.ok_or_else(|| Error::attribute("attribute `pooled_shape` should be two positive integers"))?;
    let scale = c.float("spatial_scale", 1.0)?;
    if tx.rank() != 4 || tr.rank() != 2 || !tr.shape[1].is(5) {
        return Err(Error::shape(format!("expected images [N,C,H,W] and regions [R,5], found {tx} and {tr}")));
    }
    let count = tr.shape[0].clone();
    let column = |i: i64| rois.slice_axis(1, Dim::Const(i), Dim::Const(1)).cast(DType::F32);
    let corner = |i: i64| {
        let v = column(i);
        // Halves go up, as C's round has them for what lies in an image.
        (v * v.scalar_like(scale) + v.scalar_like(0.5)).floor()
    };
    // For one axis, which elements each cell holds: bool [R, cells, length].
    let holds = |axis: usize, first: i64, last: i64| {
        let (lo, hi) = (corner(first), corner(last));
        let one = lo.scalar_like(1.0);
        let size = (hi - lo + one).max(one) / lo.scalar_like(cells[axis - 2] as f64);
        let cell = ramp(c.b, Dim::Const(cells[axis - 2]), 1, 2).cast(DType::F32);
        let three = |v: V<'g>| v.reshape(vec![count.clone(), Dim::Const(cells[axis - 2]), Dim::Const(1)]);
        let (from, to) = (three((cell * size).floor() + lo), three(((cell + one) * size).map(ScalarFn::Ceil) + lo));
        let at = ramp(c.b, tx.shape[axis].clone(), 2, 3).cast(DType::F32);
        at.greater_equal(from).and(at.less(to))
    };
    let image = column(0).reshape(vec![count.clone()]).cast(DType::I64);
    let own = c.b.op(nnc_ir::ops::index::Gather { axis: 0 }, &[x, image]);
    let least = own.scalar_like(f64::NEG_INFINITY);
    let with = |v: V<'g>, at: usize| {
        let mut shape = v.ty().shape;
        shape.insert(at, Dim::Const(1));
        v.reshape(shape)
    };
    // Rows first, then columns: [R, C, cells, H, W], then [R, C, cells, cells, W].
    let rows = holds(2, 2, 4);
    let rows = with(with(rows, 1), 4).select(with(own, 2), least).reduce(ReduceKind::Max, &[3], false);
    let columns = holds(3, 1, 3);
    let most = with(with(columns, 1), 1).select(with(rows, 3), least).reduce(ReduceKind::Max, &[4], false);
    Ok(vec![most.equal(least).select(most.scalar_like(0.0), most)])
}
