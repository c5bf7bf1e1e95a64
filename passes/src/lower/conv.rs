//! Loops of convolution and transposed convolution, in every layout.

use super::contract::{ONE, TWO, ZERO, epilogue, extras, work};
use super::loops::Loops;
use super::scalar::wide;
use super::view::{View, row_major};
use super::window::{Back, Tap, walk};
use nnc_ir::error::Result;
use nnc_ir::ops::contract::{Conv, ConvTranspose, Layout, takes_narrow};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::{DType, Dim};

/// What a convolution walks, by layout. The domain is `[N, groups, output channels (or blocks) in a group, spatial.., lanes]`.
struct ConvAxes {
    groups: Dim,
    channels: Dim,
    /// Strides of x and w along groups, of w along output channels.
    x_group: Dim,
    w_group: Dim,
    w_channel: Dim,
    /// Input channels (or blocks) to sum over, and strides of x and w along them.
    depth: Dim,
    x_depth: Dim,
    w_depth: Dim,
    /// Channels in an input block to sum over (1: none).
    inner: Dim,
    /// Output channels in a block.
    lanes: Dim,
    /// Stride of x along lanes: 1 where each lane has its own input channel.
    x_lane: Dim,
    /// Elements of x and w for each spatial index.
    x_unit: Dim,
    w_unit: Dim,
}

impl ConvAxes {
    fn new(op: &Conv, x: &[Dim], w: &[Dim], spatial: usize) -> ConvAxes {
        let group = Dim::from(op.group);
        let block = match op.layout.block() {
            None => ONE,
            Some(b) => Dim::from(b),
        };
        let image = Dim::product(&x[2..2 + spatial]);
        let skip = if matches!(op.layout, Layout::Depthwise(_)) { 1 } else { 2 };
        let taps = Dim::product(&w[skip..skip + spatial]);
        let plain = ConvAxes {
            groups: group.clone(),
            channels: w[0].floor_div(&group),
            x_group: ZERO,
            w_group: ZERO,
            w_channel: ZERO,
            depth: w.get(1).cloned().unwrap_or(ONE),
            x_depth: image.clone(),
            w_depth: taps.clone(),
            inner: ONE,
            lanes: block.clone(),
            x_lane: ZERO,
            x_unit: ONE,
            w_unit: block.clone(),
        };
        let mut a = match op.layout {
            Layout::Plain | Layout::Enter(_) | Layout::Winograd { .. } => plain,
            Layout::Blocked(_) => ConvAxes { inner: block.clone(), x_unit: block.clone(), w_unit: block.clone() * block.clone(), ..plain },
            Layout::Depthwise(_) => ConvAxes { groups: x[1].clone(), channels: ONE, depth: ONE, x_lane: ONE, x_unit: block.clone(), ..plain },
        };
        a.x_depth = a.x_depth * a.x_unit.clone();
        a.w_depth = a.w_depth * a.w_unit.clone();
        a.x_group = a.depth.clone() * a.x_depth.clone();
        a.w_channel = a.depth.clone() * a.w_depth.clone();
        a.w_group = a.channels.clone() * a.w_channel.clone();
        a
    }
}

pub fn conv(k: &mut Loops, op: &Conv) -> Result<()> {
    let window = op.window(&k.x[1])?;
    let n = window.kernel.len();
    let (xs, ws, ys) = (k.x[0].shape.clone(), k.x[1].shape.clone(), k.y[0].shape.clone());
    let (y, acc_type, dtype) = (k.result(0), wide(k.y[0].dtype), k.y[0].dtype);
    let a = ConvAxes::new(op, &xs, &ws, n);
    let (image, out) = (xs[2..2 + n].to_vec(), ys[2..2 + n].to_vec());
    let dims = [&[xs[0].clone(), a.groups.clone(), a.channels.clone()], &out[..]].concat();
    let none = vec![ZERO; n];
    let y_strides = row_major(&[&dims[..], std::slice::from_ref(&a.lanes)].concat())[..dims.len()].to_vec();
    let mut result = View::new(y_strides.clone());
    if let Some(w) = &k.within {
        let s = row_major(&w.shape);
        result = View::new([&[s[0].clone(), a.channels.clone() * s[1].clone()], &s[1..2 + n]].concat()).at(w.offset());
    }
    let channel = [&[ZERO, a.channels.clone() * a.lanes.clone(), a.lanes.clone()], &none[..]].concat();
    let mut views = vec![
        View::new([&[xs[1].clone() * a.x_depth.clone(), a.x_group.clone(), ZERO], &none[..]].concat()),
        View::new([&[ZERO, a.w_group.clone(), a.w_channel.clone()], &none[..]].concat()),
        result,
    ];
    views.extend(extras(&op.post, &channel, &y_strides));
    let narrow = takes_narrow(&k.x[0], &k.x[1]);
    let w_lane = if narrow { TWO } else { ONE };
    let strides = [a.x_lane.clone(), w_lane].into_iter().chain(views[2..].iter().map(|_| ONE));
    let lane_views: Vec<View> = strides.map(|s| View::new(vec![s])).collect();
    let (x_unit, w_unit) = (row_major(&image), row_major(&window.kernel.iter().map(|d| Dim::Const(*d)).collect::<Vec<_>>()));
    let taps: i64 = window.kernel.iter().fold(1, |n: i64, d| n.saturating_mul(*d));
    let mut outcome = Ok(());
    k.parallel(&dims, &views, work(&[&a.depth, &a.inner, &a.lanes, &Dim::Const(taps)]), |k, vars, at| {
        let taps: Vec<Tap> = (0..n)
            .map(|i| {
                let strides = [x_unit[i].clone() * a.x_unit.clone(), w_unit[i].clone() * a.w_unit.clone()];
                Tap::new(k, &window, i, &image[i], vars[3 + i], &strides)
            })
            .collect();
        k.serial(std::slice::from_ref(&a.lanes), &lane_views, at, |k, _, at| {
            let acc = k.accumulator(ReduceKind::Sum, acc_type);
            let depth = [View::new(vec![a.x_depth.clone()]), View::new(vec![a.w_depth.clone()])];
            k.serial(std::slice::from_ref(&a.depth), &depth, &at[..2], |k, _, at| {
                walk(k, &taps, at, &mut |k, at| {
                    // Rows of narrow weights lie in pairs.
                    let (dims, inner) = match narrow {
                        false => (vec![a.inner.clone()], [View::new(vec![ONE]), View::new(vec![a.lanes.clone()])]),
                        true => {
                            let views = [View::new(vec![TWO, ONE]), View::new(vec![TWO * a.lanes.clone(), ONE])];
                            (vec![a.inner.floor_div(&TWO), TWO], views)
                        }
                    };
                    k.serial(&dims, &inner, at, |k, _, at| {
                        let (x, w) = (k.load(0, at[0]), k.load(1, at[1]));
                        let x = if narrow { k.cast(DType::BF16, x) } else { x };
                        k.multiply_add(acc, x, w);
                    });
                });
            });
            let sum = k.var(acc);
            match epilogue(k, &op.post, sum, &at[3..]) {
                Ok(v) => {
                    let v = k.cast(dtype, v);
                    k.store(y, at[2], v);
                }
                Err(e) => outcome = Err(e),
            }
        });
    });
    outcome
}

/// Each output element gathers the input elements that a window put onto it.
pub fn conv_transpose(k: &mut Loops, op: &ConvTranspose) -> Result<()> {
    let window = op.window(&k.x[1])?;
    let n = window.kernel.len();
    let (xs, ws, ys) = (k.x[0].shape.clone(), k.x[1].shape.clone(), k.y[0].shape.clone());
    let (y, acc_type, dtype) = (k.result(0), wide(k.y[0].dtype), k.y[0].dtype);
    let groups = Dim::from(op.group);
    let (depth, channels) = (ws[0].floor_div(&groups), ws[1].clone());
    let (image, out) = (xs[2..].to_vec(), ys[2..].to_vec());
    let (pixels, taps) = (Dim::product(&image), Dim::product(&ws[2..]));
    let dims = [&[xs[0].clone(), groups, channels.clone()], &out[..]].concat();
    let none = vec![ZERO; n];
    let y_strides = row_major(&dims);
    let w_depth = channels.clone() * taps.clone();
    let mut views = vec![
        View::new([&[xs[1].clone() * pixels.clone(), depth.clone() * pixels.clone(), ZERO], &none[..]].concat()),
        View::new([&[ZERO, depth.clone() * w_depth.clone(), taps.clone()], &none[..]].concat()),
        View::new(y_strides.clone()),
    ];
    views.extend(extras(&op.post, &[&[ZERO, channels, ONE], &none[..]].concat(), &y_strides));
    let (x_strides, w_strides) = (row_major(&image), row_major(&ws[2..]));
    let mut outcome = Ok(());
    k.parallel(&dims, &views, work(&[&depth, &taps]), |k, vars, at| {
        let acc = k.accumulator(ReduceKind::Sum, acc_type);
        let back = Back { window: &window, image: &image, strides: [&x_strides, &w_strides], at: vars[3..].to_vec() };
        back.walk(k, 0, [at[0], at[1]], &mut |k, at| {
            let along = [View::new(vec![pixels.clone()]), View::new(vec![w_depth.clone()])];
            k.serial(std::slice::from_ref(&depth), &along, &at, |k, _, at| {
                let (x, w) = (k.load(0, at[0]), k.load(1, at[1]));
                k.multiply_add(acc, x, w);
            });
        });
        let sum = k.var(acc);
        match epilogue(k, &op.post, sum, &at[3..]) {
            Ok(v) => {
                let v = k.cast(dtype, v);
                k.store(y, at[2], v);
            }
            Err(e) => outcome = Err(e),
        }
    });
    outcome
}
