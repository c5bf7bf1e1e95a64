//! Convolutions as products: filters by rows, the pixels of all images by columns. What a filter looks at is found as tiles are read;
//! no matrix of windows is made.

use super::epilogue::is_heavy;
use super::product::Matrix;
use super::tile::{LEAST, Line, Shape, Source, Tile, place, product as tiled};
use super::{Element, Frame, Result, Site, no};
use crate::gpu::gir::{Binary, Compare, Val};
use crate::gpu::lower::Lowered;
use nnc_ir::Dim;
use nnc_ir::ops::Op;
use nnc_ir::ops::contract::{Layout, Window};
use nnc_ir::target::Rounding;

/// The windows of images, one a column.
struct Images<'a> {
    window: &'a Window,
    /// Sizes of an image and of a result along the spatial axes.
    image: &'a [Val],
    out: &'a [Val],
    /// Distances in the images of spatial axes, then of channels and of images.
    pitches: &'a [Val],
    plane: Val,
    whole: Val,
    /// Pixels of a result.
    pixels: Val,
    /// The group's first channel.
    base: Val,
}

impl Images<'_> {
    fn is_padded(&self) -> bool {
        self.window.pads.iter().any(|p| *p != 0)
    }
}

impl Source for Images<'_> {
    fn along_depth(&self, _: &Frame) -> bool {
        false
    }

    fn together(&self, f: &Frame) -> u32 {
        // Where windows are single pixels, those of an image lie as the result's do.
        let w = self.window;
        let single = w.kernel.iter().chain(&w.strides).all(|n| *n == 1) && !self.is_padded();
        if single { f.together(0, self.plane) } else { 1 }
    }

    fn line(&mut self, f: &mut Frame, line: Val, inside: Option<Val>) -> Line {
        let (n, mut rest) = f.split(line, self.pixels);
        let start = f.b.mul(n, self.whole);
        let mut base = f.b.add(self.base, start);
        let mut corner = vec![];
        for i in (0..self.out.len()).rev() {
            let (outer, at) = if i == 0 { (rest, rest) } else { f.split(rest, self.out[i]) };
            rest = outer;
            let at = f.b.with(Binary::Mul, at, self.window.strides[i]);
            let at = f.b.with(Binary::Add, at, -self.window.pads[i]);
            let by = f.b.mul(at, self.pitches[i]);
            base = f.b.add(base, by);
            corner.push(at);
        }
        corner.push(base);
        corner.reverse();
        Line { inside, at: corner }
    }

    fn element(&mut self, f: &mut Frame, line: &Line, depth: Val, inside: Option<Val>) -> Element {
        let (mut at, mut inside) = (line.at[0], f.both(line.inside, inside));
        let mut rest = depth;
        for (i, size) in self.window.kernel.iter().enumerate().rev() {
            let size = f.b.i32(*size as i32);
            let (outer, tap) = f.split(rest, size);
            rest = outer;
            let by = f.b.with(Binary::Mul, tap, self.window.dilations[i]);
            if self.is_padded() {
                let place = f.b.add(line.at[1 + i], by);
                // As an unsigned number a negative one is outside, too.
                let is = f.b.compare(Compare::LtU, place, self.image[i]);
                inside = f.both(inside, Some(is));
            }
            let by = f.b.mul(by, self.pitches[i]);
            at = f.b.add(at, by);
        }
        let by = f.b.mul(rest, self.plane);
        at = f.b.add(at, by);
        Element { param: 0, at, inside }
    }
}

pub fn conv(s: &Site) -> Result<Lowered> {
    let Op::Conv(op) = &s.origin.op else { return no("not a convolution") };
    if op.layout != Layout::Plain {
        return no("the layout is not the model's");
    }
    let (xs, ws, ys) = (&s.x(0).shape, &s.x(1).shape, &s.y().shape);
    let window = op.window(s.x(1)).map_err(|e| e.message().to_string())?;
    let (group, channels) = (Dim::from(op.group), &ws[1]);
    let filters = ws[0].floor_div(&group);
    let (image, out) = (&xs[2..], &ys[2..]);
    let (plane, pixels) = (Dim::product(image), Dim::product(out));
    let taps = Dim::product(&ws[2..]);
    let depth = channels.clone() * taps;
    let shape = Shape { batch: group, rows: filters.clone(), columns: ys[0].clone() * pixels.clone(), depth: depth.clone() };
    if [&shape.rows, &shape.columns].iter().any(|d| d.as_const().is_some_and(|d| d < LEAST)) {
        return no(format!("{} filters a group on {} pixels: tiles would be mostly empty", shape.rows, shape.columns));
    }
    // Windows, and numbers that are rounded on their way from shared memory, together take more registers than large tiles leave.
    let heavy = is_heavy(&op.post) || s.device.rounding == Some(Rounding::Tf32);
    let tile = Tile::choose(s.device, &shape, heavy, s.y().dtype);
    let mut f = s.frame(tile.threads());
    let sizes = shape.sizes(&mut f, tile)?;
    let list = |f: &mut Frame, dims: &[Dim]| dims.iter().map(|d| f.size(d)).collect::<Result<Vec<Val>>>();
    let (image_sizes, out_sizes) = (list(&mut f, image)?, list(&mut f, out)?);
    let pitches: Vec<Dim> = (1..=image.len()).map(|i| Dim::product(&image[i..])).collect();
    let pitches = list(&mut f, &pitches)?;
    let (plane_size, whole, pixel_count) = (f.size(&plane)?, f.size(&(xs[1].clone() * plane.clone()))?, f.size(&pixels)?);
    let (k, own, one) = (f.size(&depth)?, f.size(&filters)?, f.b.i32(1));
    let steps = [f.size(&(channels.clone() * plane))?, f.size(&(filters.clone() * depth))?, f.size(&(filters * pixels.clone()))?];
    let result = f.size(&(ys[1].clone() * pixels))?;
    f.groups(&shape.groups(tile), |f, group| {
        let (g, row, column) = place(f, tile, &sizes, group);
        // A lone group starts at 0.
        let g = if op.group == 1 { f.b.i32(0) } else { g };
        let bases = steps.map(|s| f.b.mul(g, s));
        let mut a = Matrix { param: 1, base: bases[1], line: k, depth: one };
        let mut b = Images {
            window: &window,
            image: &image_sizes,
            out: &out_sizes,
            pitches: &pitches,
            plane: plane_size,
            whole,
            pixels: pixel_count,
            base: bases[0],
        };
        let first = f.b.mul(g, own);
        let mut of_row = |f: &mut Frame, r: Val| {
            let by = f.b.mul(r, pixel_count);
            (f.b.add(bases[2], by), Some(f.b.add(first, r)))
        };
        let mut of_column = |f: &mut Frame, c: Val| {
            let (n, pixel) = f.split(c, pixel_count);
            let by = f.b.mul(n, result);
            (f.b.add(by, pixel), None)
        };
        tiled(f, (&shape, &sizes, tile), (row, column), (&mut a, &mut b), (&op.post, s.output(), pixel_count), (&mut of_row, &mut of_column))
    })
}
