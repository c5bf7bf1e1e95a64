//! Depthwise convolution, pooling, layout changes and row functions against plain loops, on every engine.

mod support;

use nnc_backends::cpu::isa::{Isa, Machine};
use nnc_backends::cpu::kernels::attention::{Attention, Mask, attention};
use nnc_backends::cpu::kernels::conv::Image;
use nnc_backends::cpu::kernels::depthwise::{Depthwise, depthwise};
use nnc_backends::cpu::kernels::planar::{Planar, planar};
use nnc_backends::cpu::kernels::pool::{Pool, PoolKind, pool};
use nnc_backends::cpu::kernels::post::{Act, Post};
use nnc_backends::cpu::kernels::reorder::{Reorder, to_blocked, to_plain};
use nnc_backends::cpu::kernels::rows::{RowKind, Rows, rows};
use nnc_backends::cpu::kernels::{BLOCK, Kernel, Size};
use support::{Engine, Word, engines, noise, run};

fn go(kernel: &Kernel, isa: Isa, engine: Engine, bufs: &mut [Vec<f32>], words: &[Word]) {
    run(kernel, isa, engine, bufs, words).unwrap_or_else(|e| panic!("{isa:?} {engine:?} {}: {e}\n{}", kernel.func.name, kernel.func));
}

fn close(got: f32, want: f64, what: &str) {
    let same = got.is_nan() && want.is_nan() || f64::from(got) == want;
    assert!(same || (f64::from(got) - want).abs() <= 1e-5 * (1.0 + want.abs()), "{what}: got {got}, want {want}");
}

fn words(n: usize) -> Vec<Word> {
    (0..n).map(Word::Buf).collect()
}

fn number(s: Size) -> i64 {
    if let Size::Const(c) = s { c } else { panic!("a constant") }
}

/// Makes sizes run-time words.
fn dynamic<'s>(words: &mut Vec<Word>, sizes: impl IntoIterator<Item = &'s mut Size>) {
    for s in sizes {
        words.push(Word::Int(number(*s)));
        *s = Size::Arg(words.len() as u32 - 1);
    }
}

/// A blocked image in a buffer, by coordinates.
struct Blocked {
    image: Image,
    channels: i64,
    size: [i64; 2],
}

impl Blocked {
    fn new(word: u32, channels: i64, size: [i64; 2], halo: [i64; 2]) -> Blocked {
        let image = Image::dense(word, true, channels, &size, &halo.map(|h| (h, h)));
        Blocked { image, channels, size }
    }

    fn len(&self, n: i64) -> usize {
        (number(self.image.image) * n) as usize
    }

    fn at(&self, n: i64, c: i64, y: i64, x: i64) -> usize {
        let i = &self.image;
        let at = number(i.origin) + n * number(i.image) + c / BLOCK * number(i.plane) + y * number(i.pitches[0]) + x * BLOCK + c % BLOCK;
        at as usize
    }

    fn inside(&self, y: i64, x: i64) -> bool {
        (0..self.size[0]).contains(&y) && (0..self.size[1]).contains(&x)
    }

    /// Noise inside, zeros in the halo.
    fn fill(&self, n: i64, seed: u64) -> Vec<f32> {
        let mut v = vec![0.0; self.len(n)];
        let values = noise(v.len(), seed);
        self.each(n, |n, c, y, x| v[self.at(n, c, y, x)] = values[self.at(n, c, y, x)]);
        v
    }

    fn each(&self, n: i64, mut f: impl FnMut(i64, i64, i64, i64)) {
        for n in 0..n {
            for c in 0..self.channels {
                for y in 0..self.size[0] {
                    for x in 0..self.size[1] {
                        f(n, c, y, x);
                    }
                }
            }
        }
    }
}

#[test]
fn depthwise_convolutions() {
    for (isa, engine) in engines() {
        for (c, size, k, s, d, dyn_) in [
            (16, [5, 7], 3, 1, 1, false),
            (20, [14, 14], 3, 2, 1, false),
            (32, [9, 19], 5, 1, 1, true),
            (16, [12, 11], 3, 1, 2, true),
            (16, [9, 9], 7, 1, 1, false),
            (16, [13, 13], 5, 2, 1, false),
        ] {
            let pad = d * (k - 1) / 2;
            let out = size.map(|z| (z + 2 * pad - d * (k - 1) - 1) / s + 1);
            let (input, output) = (Blocked::new(0, c, size, [pad; 2]), Blocked::new(3, c, out, [1, 0]));
            let mut desc = Depthwise {
                name: "depthwise".into(),
                batch: Size::Const(2),
                channels: c,
                out: out.map(Size::Const),
                kernel: [k; 2],
                stride: [s; 2],
                dilation: [d; 2],
                input: Image { origin: Size::Const(0), ..input.image.clone() },
                output: output.image.clone(),
                weights: 1,
                bias: Some(2),
                post: vec![
                    Post::AddChannel(2),
                    Post::AddTensor(Image { word: 4, ..output.image.clone() }.output_place(1)),
                    Post::Act(Act::Clip { lo: 0.0, hi: 1.0 }),
                ],
            };
            let mut words = words(5);
            if dyn_ {
                dynamic(&mut words, desc.out.iter_mut().chain([&mut desc.batch, &mut desc.input.plane, &mut desc.input.pitches[0]]));
            }
            let weights = noise((c * k * k) as usize, 4);
            let bias = noise((c + 15) as usize / 16 * 16, 5);
            let residual = noise(output.len(2), 6);
            let mut bufs = [input.fill(2, 1), desc.pack(&weights), bias.clone(), vec![7.0; output.len(2)], residual.clone()];
            let kernel = depthwise(&desc, isa, &Machine { threads: 2, ..Machine::default() }).unwrap_or_else(|e| panic!("{e}"));
            go(&kernel, isa, engine, &mut bufs, &words);
            output.each(2, |n, ch, y, x| {
                let mut sum = 2.0 * f64::from(bias[ch as usize]) + f64::from(residual[output.at(n, ch, y, x)]);
                for t in 0..k * k {
                    let (iy, ix) = (y * s + t / k * d - pad, x * s + t % k * d - pad);
                    if input.inside(iy, ix) {
                        sum += f64::from(weights[(ch * k * k + t) as usize]) * f64::from(bufs[0][input.at(n, ch, iy, ix)]);
                    }
                }
                close(bufs[3][output.at(n, ch, y, x)], sum.clamp(0.0, 1.0), &format!("{isa:?} {engine:?} k{k} s{s} d{d} {size:?} at {y},{x}"));
            });
        }
    }
}

/// Channels that take several tiles, rows of less than a vector and of several that overlap, rows of taps outside the image, long windows.
#[test]
fn planar_convolutions() {
    for (isa, engine) in engines() {
        for (c, o, size, k, s, d, above, below) in [
            (1, 6, [8, 28], [5, 5], 1, [1, 1], 2, 2),
            (16, 6, [10, 18], [5, 5], 1, [1, 1], 4, 4),
            (3, 1, [6, 40], [3, 3], 1, [1, 1], 1, 1),
            (2, 13, [5, 9], [3, 2], 2, [1, 3], 1, 0),
            (3, 3, [9, 150], [3, 3], 1, [2, 2], 0, 0),
            (2, 2, [1, 70], [1, 67], 1, [1, 1], 0, 0),
            (2, 5, [2, 20], [5, 1], 3, [1, 1], 4, 5),
            (4, 9, [4, 333], [2, 31], 1, [1, 1], 0, 1),
            // Taps as lanes: tails, all of a row unrolled or not, rows of taps outside, channels and pixels in several tiles.
            (3, 6, [28, 32], [28, 28], 1, [1, 1], 2, 2),
            (2, 1, [5, 100], [3, 91], 2, [2, 1], 0, 0),
            (3, 11, [9, 39], [7, 32], 1, [1, 1], 1, 2),
        ] {
            let out = [(size[0] + above + below - d[0] * (k[0] - 1) - 1) / s + 1, size[1] - d[1] * (k[1] - 1)];
            let (input, output) = (Image::dense(0, false, c, &size, &[(1, 0), (0, 1)]), Image::dense(3, false, o, &out, &[(0, 1), (1, 0)]));
            let post = vec![Post::MulChannel(4), Post::Act(Act::Relu), Post::AddChannel(2)];
            let (name, batch) = ("planar".to_string(), Size::Const(2));
            let mut desc = Planar {
                name,
                batch,
                in_channels: c,
                out_channels: o,
                rows: size[0],
                out,
                kernel: k,
                stride: s,
                dilation: d,
                above,
                input: input.clone(),
                output: output.clone(),
                weights: 1,
                bias: Some(2),
                post,
            };
            let mut words = words(5);
            if c == 2 {
                dynamic(&mut words, [&mut desc.batch]);
            }
            let at = |i: &Image, n: i64, c: i64, y: i64, x: i64| {
                (number(i.origin) + n * number(i.image) + c * number(i.plane) + y * number(i.pitches[0]) + x) as usize
            };
            let len = |i: &Image| 2 * number(i.image) as usize;
            let (x, w) = (noise(len(&input), 1), noise((o * c * k[0] * k[1]) as usize, 2));
            let (bias, scale) = (noise(o as usize, 3), noise(o as usize, 4));
            let mut bufs = [x.clone(), w.clone(), bias.clone(), vec![7.0; len(&output)], scale.clone()];
            let kernel = planar(&desc, isa, &Machine { threads: 2, ..Machine::default() }).unwrap_or_else(|e| panic!("{e}"));
            go(&kernel, isa, engine, &mut bufs, &words);
            let mut want = vec![7.0; len(&output)];
            for (n, ch) in (0..2).flat_map(|n| (0..o).map(move |ch| (n, ch))) {
                for (y, col) in (0..out[0]).flat_map(|y| (0..out[1]).map(move |x| (y, x))) {
                    let mut sum = f64::from(bias[ch as usize]);
                    for t in 0..c * k[0] * k[1] {
                        let (from, row, tap) = (t / (k[0] * k[1]), t / k[1] % k[0], t % k[1]);
                        let line = y * s - above + row * d[0];
                        if (0..size[0]).contains(&line) {
                            sum += f64::from(w[(ch * c * k[0] * k[1] + t) as usize]) * f64::from(x[at(&input, n, from, line, col + tap * d[1])]);
                        }
                    }
                    let y = &mut want[at(&output, n, ch, y, col)];
                    *y = (sum * f64::from(scale[ch as usize])).max(0.0) + f64::from(bias[ch as usize]);
                }
            }
            // What lies between rows stays as it was.
            for (i, (got, want)) in bufs[3].iter().zip(want).enumerate() {
                close(*got, want, &format!("{isa:?} {engine:?} {c}->{o} {size:?} k{k:?} s{s} d{d:?} at {i}"));
            }
        }
    }
}

/// An empty result has a kernel; strides beyond an address's reach have none, and no panic.
#[test]
fn pools_of_nothing_and_of_huge_strides() {
    let desc = |out: i64, stride: i64| Pool {
        name: "pool".into(),
        kind: PoolKind::Max,
        batch: Size::Const(1),
        channels: 16,
        size: [1, 1, 8].map(Size::Const),
        out: [1, out, 7].map(Size::Const),
        kernel: [1, 2, 2],
        stride: [1, 1, stride],
        dilation: [1; 3],
        pad_before: [0; 3],
        pad_after: [0; 3],
        input: Image::dense(0, true, 16, &[1, 1, 8], &[]),
        output: Image::dense(1, true, 16, &[1, out, 7], &[]),
    };
    for isa in [Isa::Avx2, Isa::Avx512, Isa::Portable] {
        let made = |out, stride| pool(&desc(out, stride), isa, &Machine::default());
        assert!(made(0, 1).is_ok());
        assert!([20_000_000, i32::MAX as i64, i64::MAX].iter().all(|s| made(1, *s).is_err()));
    }
}

#[test]
fn pools() {
    for (isa, engine) in engines() {
        for (size, k, s, d, before, after, dyn_) in [
            ([1, 7, 9], [1, 3, 3], [1, 2, 2], 1, [0, 1, 1], [0, 1, 1], false),
            ([1, 8, 8], [1, 2, 2], [1, 2, 2], 1, [0, 0, 0], [0, 0, 0], true),
            ([1, 6, 5], [1, 3, 3], [1, 1, 1], 1, [0, 1, 1], [0, 1, 1], true),
            ([1, 5, 6], [1, 3, 3], [1, 2, 2], 2, [0, 2, 1], [0, 2, 2], false),
            ([1, 4, 4], [1, 5, 5], [1, 1, 1], 1, [0, 2, 2], [0, 2, 2], false),
            ([1, 7, 7], [1, 3, 3], [1, 2, 2], 1, [0, 0, 0], [0, 1, 1], false),
            ([1, 1, 9], [1, 1, 3], [1, 1, 2], 1, [0, 0, 1], [0, 0, 0], false),
            ([1, 5, 23], [1, 3, 3], [1, 2, 2], 1, [0, 1, 1], [0, 1, 1], false),
            ([1, 3, 19], [1, 2, 2], [1, 1, 1], 1, [0, 0, 0], [0, 0, 0], true),
            ([4, 6, 6], [2, 2, 2], [2, 2, 2], 1, [0, 0, 0], [0, 0, 0], false),
            ([5, 4, 6], [3, 2, 3], [2, 1, 2], 1, [1, 0, 1], [1, 1, 1], true),
            ([6, 5, 5], [2, 3, 2], [1, 2, 1], 2, [1, 2, 0], [0, 2, 1], false),
        ] {
            for kind in [PoolKind::Max, PoolKind::Average, PoolKind::AveragePadded] {
                let out = [0, 1, 2].map(|i: usize| (size[i] + before[i] + after[i] - d * (k[i] - 1) - 1) / s[i] + 1);
                let what = format!("{isa:?} {engine:?} {kind:?} {size:?} k{k:?} s{s:?} d{d}");
                let input = Image::dense(0, true, 24, &size, &[(1, 1), (0, 2), (2, 1)]);
                let output = Image::dense(1, true, 24, &out, &[(0, 1), (2, 0), (1, 1)]);
                let at = |i: &Image, c: i64, p: [i64; 3]| {
                    (number(i.origin)
                        + c / BLOCK * number(i.plane)
                        + p[0] * number(i.pitches[0])
                        + p[1] * number(i.pitches[1])
                        + p[2] * BLOCK
                        + c % BLOCK) as usize
                };
                let mut desc = Pool {
                    name: "pool".into(),
                    kind,
                    batch: Size::Const(1),
                    channels: 24,
                    size: size.map(Size::Const),
                    out: out.map(Size::Const),
                    kernel: k,
                    stride: s,
                    dilation: [d; 3],
                    pad_before: before,
                    pad_after: after,
                    input: input.clone(),
                    output: output.clone(),
                };
                let mut words = words(2);
                if dyn_ {
                    dynamic(&mut words, desc.out.iter_mut().chain(desc.size.iter_mut()).chain([&mut desc.batch, &mut desc.output.pitches[1]]));
                }
                // What lies around the image must not be read: it would spoil any window.
                let mut x = vec![f32::NAN; number(input.image) as usize];
                let inside = noise(x.len(), 1);
                for i in 0..24 * size.iter().product::<i64>() {
                    let [c, p] = [i % 24, i / 24];
                    let i = at(&input, c, [p / size[2] / size[1], p / size[2] % size[1], p % size[2]]);
                    x[i] = inside[i];
                }
                x[at(&input, 3, [size[0] / 2, size[1] / 2, 2])] = f32::NAN;
                let mut bufs = [x, vec![7.0; number(output.image) as usize]];
                let kernel = pool(&desc, isa, &Machine::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
                go(&kernel, isa, engine, &mut bufs, &words);
                for i in 0..24 * out.iter().product::<i64>() {
                    let [c, p] = [i % 24, i / 24];
                    let o = [p / out[2] / out[1], p / out[2] % out[1], p % out[2]];
                    let (mut max, mut sum, mut inside, mut padded) = (f64::NEG_INFINITY, 0.0, 0.0, 0.0);
                    for t in 0..k.iter().product() {
                        let tap = [t / k[2] / k[1], t / k[2] % k[1], t % k[2]];
                        let at_ = [0, 1, 2].map(|i: usize| o[i] * s[i] + tap[i] * d - before[i]);
                        if (0..3).all(|i| at_[i] < size[i] + after[i]) {
                            padded += 1.0;
                        }
                        if (0..3).all(|i| (0..size[i]).contains(&at_[i])) {
                            let v = f64::from(bufs[0][at(&input, c, at_)]);
                            max = if v.is_nan() || max.is_nan() { f64::NAN } else { max.max(v) };
                            sum += v;
                            inside += 1.0;
                        }
                    }
                    let want = match kind {
                        PoolKind::Max => max,
                        PoolKind::Average => sum / inside,
                        PoolKind::AveragePadded => sum / padded,
                    };
                    close(bufs[1][at(&output, c, o)], want, &format!("{what} channel {c} at {o:?}"));
                }
            }
        }
    }
}

#[test]
fn layouts_there_and_back() {
    for (isa, engine) in engines() {
        for (c, size, edge, dyn_) in [(16, [4, 8], 0, false), (20, [3, 5], 1, false), (33, [2, 21], 2, true), (3, [40, 40], 0, false)] {
            let blocked = Blocked::new(1, c, size, [edge; 2]);
            let mut desc = Reorder {
                name: "reorder".into(),
                batch: Size::Const(2),
                channels: Size::Const(c),
                spatial: size.map(Size::Const).to_vec(),
                plain: Image::dense(0, false, c, &size, &[(0, 0); 2]),
                blocked: blocked.image.clone(),
            };
            let mut words = words(3);
            if dyn_ {
                dynamic(&mut words, desc.spatial.iter_mut().chain([&mut desc.channels, &mut desc.plain.plane, &mut desc.blocked.pitches[0]]));
            }
            let plain = noise((2 * c * size[0] * size[1]) as usize, 1);
            let mut bufs = [plain.clone(), vec![7.0; blocked.len(2)], vec![7.0; plain.len()]];
            let kernel = to_blocked(&desc, isa).unwrap_or_else(|e| panic!("{e}"));
            go(&kernel, isa, engine, &mut bufs, &words);
            blocked.each(2, |n, ch, y, x| {
                let want = plain[(((n * c + ch) * size[0] + y) * size[1] + x) as usize];
                assert_eq!(bufs[1][blocked.at(n, ch, y, x)], want, "{isa:?} {engine:?} {c} {size:?}");
            });
            assert!(edge > 0 || bufs[1].iter().all(|v| *v != 7.0), "channels that fill the last block are written");
            let kernel = to_plain(&Reorder { plain: Image { word: 2, ..desc.plain.clone() }, ..desc }, isa).unwrap_or_else(|e| panic!("{e}"));
            go(&kernel, isa, engine, &mut bufs, &words);
            assert_eq!(bufs[2], plain, "{isa:?} {engine:?} {c} {size:?}");
        }
    }
}

#[test]
fn row_functions() {
    let kinds = [
        RowKind::Softmax,
        RowKind::LogSoftmax,
        RowKind::LayerNorm { epsilon: 1e-5, scale: Some(2), bias: Some(3) },
        RowKind::LayerNorm { epsilon: 1e-3, scale: None, bias: None },
        RowKind::RmsNorm { epsilon: 1e-6, scale: Some(2) },
    ];
    for (isa, engine) in engines() {
        for (count, len, dyn_) in [(1, 1, false), (3, 7, false), (20, 33, true), (2, 64, true), (2, 16, false)] {
            for kind in kinds {
                let mut desc = Rows {
                    name: "rows".into(),
                    kind,
                    rows: Size::Const(count),
                    len: Size::Const(len),
                    input: (0, Size::Const(len + 1)),
                    output: (1, Size::Const(len)),
                };
                let mut words = words(4);
                if dyn_ {
                    dynamic(&mut words, [&mut desc.rows, &mut desc.len, &mut desc.input.1]);
                }
                let x: Vec<f32> = noise((count * (len + 1)) as usize, 1).iter().map(|v| v * 30.0).collect();
                let mut bufs = [x.clone(), vec![7.0; (count * len) as usize], noise(len as usize, 2), noise(len as usize, 3)];
                go(&rows(&desc, isa), isa, engine, &mut bufs, &words);
                for r in 0..count {
                    let row: Vec<f64> = (0..len).map(|i| f64::from(x[(r * (len + 1) + i) as usize])).collect();
                    let n = len as f64;
                    let mean = row.iter().sum::<f64>() / n;
                    let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
                    let square = row.iter().map(|v| v * v).sum::<f64>() / n;
                    let max = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
                    let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
                    for (i, v) in row.iter().enumerate() {
                        let (s, c) = (f64::from(bufs[2][i]), f64::from(bufs[3][i]));
                        let want = match kind {
                            RowKind::Softmax => (v - max).exp() / sum,
                            RowKind::LogSoftmax => v - max - sum.ln(),
                            RowKind::LayerNorm { epsilon, scale, .. } => {
                                let y = (v - mean) / (var + f64::from(epsilon)).sqrt();
                                if scale.is_some() { y * s + c } else { y }
                            }
                            RowKind::RmsNorm { epsilon, .. } => v / (square + f64::from(epsilon)).sqrt() * s,
                        };
                        close(bufs[1][(r * len) as usize + i], want, &format!("{isa:?} {engine:?} {kind:?} {count}x{len} at {r},{i}"));
                    }
                }
            }
        }
    }
}

#[test]
fn shares_are_no_subnormal_numbers() {
    let scores = [0.0, -1.0, -80.0, -87.0, -87.4, -90.0, -103.0, -200.0, f32::NEG_INFINITY];
    for (isa, engine) in engines() {
        let len = scores.len();
        let size = Size::Const(len as i64);
        let desc = Rows { name: "rows".into(), kind: RowKind::Softmax, rows: Size::Const(1), len: size, input: (0, size), output: (1, size) };
        let mut bufs = [scores.to_vec(), vec![7.0; len]];
        go(&rows(&desc, isa), isa, engine, &mut bufs, &words(2));
        let sum: f64 = scores.iter().map(|s| f64::from(*s).exp()).sum();
        for (y, s) in bufs[1].iter().zip(scores) {
            let want = f64::from(s).exp() / sum;
            let same = if s < -87.0 { *y == 0.0 } else { y.is_normal() && (f64::from(*y) / want - 1.0).abs() < 1e-5 };
            assert!(same, "{isa:?} {engine:?}: the share of {s} is {y}, want {want}");
        }
    }
}

#[test]
fn attention_by_blocks_of_keys() {
    for (isa, engine) in engines() {
        // Queries, keys, elements of a key and of a value; how a mask repeats: none, for each key and query, for each key, for each query.
        for (queries, keys, depth, width, mask, dyn_) in [
            (5, 7, 16, 16, 0, false),
            (32, 12, 16, 32, 1, false),
            (33, 131, 32, 16, 2, false),
            (40, 20, 16, 48, 3, false),
            (49, 49, 16, 16, 1, false),
            (20, 125, 16, 16, 1, true),
            (70, 5, 16, 16, 2, true),
            (3, 0, 16, 16, 0, true),
        ] {
            let batch = 2;
            let (per_key, per_query) = (mask == 1 || mask == 2, mask == 1 || mask == 3);
            let row = if per_query { queries } else { 1 };
            let matrix = row * if per_key { keys } else { 1 };
            let mut desc = Attention {
                name: "attention".into(),
                batch: vec![Size::Const(batch)],
                queries: Size::Const(queries),
                keys: Size::Const(keys),
                depth,
                width,
                scale: 0.25,
                q: 0,
                k: 1,
                v: 2,
                y: 3,
                mask: (mask > 0).then(|| Mask {
                    word: 4,
                    batch: vec![Size::Const(matrix)],
                    key: Size::Const(if per_key { row } else { 0 }),
                    per_query,
                }),
            };
            let mut words = words(5);
            if dyn_ {
                let steps = desc.mask.iter_mut().flat_map(|m| m.batch.iter_mut().chain([&mut m.key]));
                dynamic(&mut words, desc.batch.iter_mut().chain([&mut desc.queries, &mut desc.keys]).chain(steps));
            }
            let wide = |n: i64, seed: u64| -> Vec<f32> { noise(n as usize, seed).iter().map(|v| v * 3.0).collect() };
            let (q, k, v) = (wide(batch * queries * depth, 1), wide(batch * keys * depth, 2), wide(batch * keys * width, 3));
            // Every third key is masked out, the first block of some rows as a whole; shares far below any number are none.
            let mut added = wide(batch * matrix, 4);
            added.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0).for_each(|(i, x)| *x = if i % 2 == 0 { f32::NEG_INFINITY } else { -100.0 });
            if keys > 130 && per_key {
                added[..70].fill(f32::NEG_INFINITY);
            }
            let mut bufs = [q.clone(), k.clone(), v.clone(), vec![7.0; (batch * queries * width) as usize], added.clone()];
            let kernel = attention(&desc, isa).unwrap_or_else(|e| panic!("{e}"));
            go(&kernel, isa, engine, &mut bufs, &words);
            for n in 0..batch {
                for i in 0..queries {
                    let score = |j: i64| -> f64 {
                        let dot: f64 = (0..depth)
                            .map(|d| f64::from(q[((n * queries + i) * depth + d) as usize]) * f64::from(k[((n * keys + j) * depth + d) as usize]))
                            .sum();
                        let at = n * matrix + if per_key { j * row } else { 0 } + if per_query { i } else { 0 };
                        dot * 0.25 + if mask > 0 { f64::from(added[at as usize]) } else { 0.0 }
                    };
                    let scores: Vec<f64> = (0..keys).map(score).collect();
                    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                    for e in 0..width {
                        let want: f64 =
                            (0..keys).map(|j| (scores[j as usize] - max).exp() / sum * f64::from(v[((n * keys + j) * width + e) as usize])).sum();
                        let got = bufs[3][((n * queries + i) * width + e) as usize];
                        close(got, want, &format!("{isa:?} {engine:?} {queries}x{keys} {depth} {width} mask {mask} at {n},{i},{e}"));
                    }
                }
            }
        }
    }
}
