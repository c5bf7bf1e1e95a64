//! Minimal filtering against the plain sums in f64, on every engine, and how far from them it may stray.

mod support;

use nnc_backends::cpu::isa::Isa;
use nnc_backends::cpu::kernels::conv::Image;
use nnc_backends::cpu::kernels::post::{Act, Post};
use nnc_backends::cpu::kernels::winograd::{Winograd, winograd};
use nnc_backends::cpu::kernels::{BLOCK, Size};
use nnc_backends::cpu::vir::Reg;
use nnc_ir::Tensor;
use nnc_ir::winograd::{Form, LANES, Scratch, filters};
use support::{Engine, Word, engines, noise, run};

#[derive(Clone, Copy, Debug)]
struct Case {
    n: i64,
    ic: i64,
    oc: i64,
    size: [i64; 2],
    /// Top, left, bottom, right.
    pads: [i64; 4],
    form: Form,
    run: i64,
    threads: i64,
    /// Sizes as run-time words.
    dynamic: bool,
    residual: bool,
    scale: bool,
    act: Option<Act>,
}

fn case(form: Form, ic: i64, oc: i64, size: [i64; 2]) -> Case {
    Case { n: 1, ic, oc, size, pads: [1; 4], form, run: 5, threads: 1, dynamic: false, residual: false, scale: false, act: None }
}

impl Case {
    fn out(&self) -> [i64; 2] {
        [0, 1].map(|d| self.size[d] + self.pads[d] + self.pads[d + 2] - self.form.taps as i64 + 1)
    }
}

/// The kernel of a case, and what its words are.
fn describe(c: &Case) -> (Winograd, Vec<Word>) {
    let out = c.out();
    let (ib, ob) = ((c.ic + BLOCK - 1) / BLOCK, (c.oc + BLOCK - 1) / BLOCK);
    let mut words: Vec<Word> = (0..7).map(Word::Buf).collect();
    words.push(Word::Int(c.threads));
    let mut input = Image::dense(0, true, c.ic, &c.size, &[]);
    let mut output = Image::dense(3, true, c.oc, &out, &[]);
    let mut batch = Size::Const(c.n);
    let (mut size, mut outs) = (c.size.map(Size::Const), out.map(Size::Const));
    let tile = c.form.tile as i64;
    let mut tiles = out.map(|o| Size::Const((o + tile - 1) / tile));
    if c.dynamic {
        let mut arg = |s: &mut Size| {
            let Size::Const(n) = *s else { panic!("a constant") };
            words.push(Word::Int(n));
            *s = Size::Arg(words.len() as u32 - 1);
        };
        arg(&mut batch);
        size.iter_mut().chain(&mut outs).chain(&mut tiles).for_each(&mut arg);
        for i in [&mut input, &mut output] {
            arg(&mut i.image);
            arg(&mut i.plane);
            i.pitches.iter_mut().for_each(&mut arg);
        }
    }
    let mut post = vec![];
    if c.scale {
        post.push(Post::MulChannel(5));
    }
    if c.residual {
        post.push(Post::AddTensor(Image { word: 4, ..output.clone() }.output_place(ob)));
    }
    post.extend(c.act.map(Post::Act));
    let w = Winograd {
        name: "winograd".into(),
        batch,
        in_blocks: ib,
        out_blocks: ob,
        size,
        out: outs,
        tiles,
        before: [c.pads[0], c.pads[1]],
        form: c.form,
        run: c.run,
        input,
        output,
        weights: 1,
        bias: Some(2),
        post,
        scratch: 6,
        threads: Size::Arg(7),
    };
    (w, words)
}

/// Runs a case and gives the largest error in units of the sum of the products' magnitudes.
fn check(c: &Case, isa: Isa, engine: Engine) -> f64 {
    let out = c.out();
    let (ib, ob) = ((c.ic + BLOCK - 1) / BLOCK, (c.oc + BLOCK - 1) / BLOCK);
    let (w, words) = describe(c);
    let kernel = winograd(&w, isa).unwrap_or_else(|e| panic!("{e}"));

    let mut x = noise((c.n * ib * BLOCK * c.size[0] * c.size[1]) as usize, 1);
    let x_at = |n: i64, ch: i64, y: i64, x: i64| ((((n * ib + ch / BLOCK) * c.size[0] + y) * c.size[1] + x) * BLOCK + ch % BLOCK) as usize;
    let y_at = |n: i64, ch: i64, y: i64, x: i64| ((((n * ob + ch / BLOCK) * out[0] + y) * out[1] + x) * BLOCK + ch % BLOCK) as usize;
    for (n, ch, py, px) in (0..c.n)
        .flat_map(|n| (c.ic..ib * BLOCK).flat_map(move |ch| (0..c.size[0]).map(move |y| (n, ch, y))))
        .flat_map(|(n, ch, y)| (0..c.size[1]).map(move |x| (n, ch, y, x)))
    {
        x[x_at(n, ch, py, px)] = 0.0;
    }
    let taps = c.form.taps as i64;
    let filter = noise((c.oc * c.ic * taps * taps) as usize, 2);
    let filter_tensor = Tensor::new(&[c.oc as usize, c.ic as usize, c.form.taps, c.form.taps], &filter);
    let patches = filters(c.form.tile, BLOCK as usize, &filter_tensor).unwrap_or_else(|e| panic!("{e}"));
    let (bias, scale) = (noise((ob * BLOCK) as usize, 3), noise((ob * BLOCK) as usize, 4));
    let len = (c.n * ob * BLOCK * out[0] * out[1]) as usize;
    let residual = noise(len, 5);
    let scratch = LANES * Scratch::new(c.form, c.run as usize, ib as usize).values();
    let mut bufs = [x, patches.to_vec::<f32>().unwrap(), bias.clone(), vec![7.0; len], residual.clone(), scale.clone(), vec![f32::NAN; scratch]];
    run(&kernel, isa, engine, &mut bufs, &words).unwrap_or_else(|e| panic!("{isa:?} {engine:?} {c:?}: {e}\n{}", kernel.func));

    let mut worst = 0f64;
    for n in 0..c.n {
        for o in 0..c.oc {
            for (py, px) in (0..out[0]).flat_map(|y| (0..out[1]).map(move |x| (y, x))) {
                let (mut sum, mut size) = (f64::from(bias[o as usize]), 1.0);
                for (i, t) in (0..c.ic).flat_map(|i| (0..taps * taps).map(move |t| (i, t))) {
                    let at = [py + t / taps - c.pads[0], px + t % taps - c.pads[1]];
                    if at.iter().zip(&c.size).all(|(p, s)| (0..*s).contains(p)) {
                        let product = f64::from(bufs[0][x_at(n, i, at[0], at[1])]) * f64::from(filter[((o * c.ic + i) * taps * taps + t) as usize]);
                        sum += product;
                        size += product.abs();
                    }
                }
                if c.scale {
                    sum *= f64::from(scale[o as usize]);
                }
                if c.residual {
                    sum += f64::from(residual[y_at(n, o, py, px)]);
                }
                let want = match c.act {
                    Some(Act::Relu) => sum.max(0.0),
                    Some(Act::Silu) => sum / (1.0 + (-sum).exp()),
                    _ => sum,
                };
                let got = f64::from(bufs[3][y_at(n, o, py, px)]);
                assert!(got.is_finite(), "{isa:?} {engine:?} {c:?}: {got} at {n} {o} {py} {px}");
                worst = worst.max((got - want).abs() / size);
            }
        }
    }
    worst
}

/// The documented bound: errors in units of the sum of magnitudes of what is added up for an output.
fn bound(form: Form) -> f64 {
    match (form.side(), form.taps) {
        (4, 3) => 4e-7,
        // Few taps: what is added up is little beside the patch.
        (4, _) => 2e-6,
        _ => 6e-6,
    }
}

#[test]
fn agrees_with_plain_sums() {
    let mut cases = vec![];
    for form in Form::ALL {
        let small = case(form, 16, 16, [8, 8]);
        cases.extend([
            small,
            case(form, 32, 32, [7, 7]),
            case(form, 20, 40, [6, 9]),
            Case { pads: [3; 4], ..case(form, 16, 16, [1, 1]) },
            Case { pads: [0; 4], ..case(form, 16, 32, [9, 7]) },
            Case { pads: [1, 2, 3, 1], n: 2, ..case(form, 16, 16, [5, 6]) },
            Case { pads: [5, 0, 0, 6], ..case(form, 16, 16, [3, 4]) },
            Case { run: 26, threads: 2, n: 3, ..case(form, 16, 32, [13, 11]) },
            Case { threads: 64, ..case(form, 16, 64, [13, 11]) },
            Case { dynamic: true, n: 2, ..case(form, 32, 32, [10, 7]) },
            Case { residual: true, scale: true, act: Some(Act::Relu), ..case(form, 16, 32, [7, 6]) },
            Case { dynamic: true, residual: true, act: Some(Act::Silu), ..case(form, 16, 16, [7, 9]) },
        ]);
    }
    for (isa, engine) in engines() {
        for c in &cases {
            let worst = check(c, isa, engine);
            assert!(worst <= bound(c.form), "{isa:?} {engine:?} {c:?}: error {worst:e}");
        }
    }
}

/// Every size up to two tiles and a bit, with and without padding: no pixel is left out or written twice from the wrong patch.
#[test]
fn every_size() {
    let isa = Isa::native();
    for (form, h, w) in Form::ALL.into_iter().flat_map(|t| (1..=9).flat_map(move |h| (1..=9).map(move |w| (t, h, w)))) {
        for pads in [[1; 4], [0, 1, 2, 1]] {
            let c = Case { pads, run: 4, threads: 1 + (h + w) % 3, ..case(form, 16, 16, [h, w]) };
            if c.out().iter().all(|n| *n > 0) {
                let worst = check(&c, isa, Engine::Native);
                assert!(worst <= bound(form), "{c:?}: error {worst:e}");
            }
        }
    }
}

/// Deep sums keep the bound: rounding errors grow as those of plain sums do, not with the size of the transforms' factors.
#[test]
fn deep_sums() {
    for form in Form::ALL {
        let worst = check(&case(form, 512, 32, [8, 8]), Isa::native(), Engine::Native);
        // Deep sums average: F(2) stays well below its bound, F(4) reaches a good half of it (2.3e-6 on AVX-512).
        let most = if form.side() == 4 { bound(form) / 3.0 } else { bound(form) };
        assert!(worst <= most, "{form:?}: error {worst:e}");
    }
}

/// The constants of the transforms, which are alive across the products, make room for these, whatever the register tiles are.
#[test]
fn products_stay_in_registers() {
    for form in Form::ALL {
        for run in 4..=20 {
            let c = Case { run, ..case(form, 256, 256, [14, 14]) };
            let kernel = winograd(&describe(&c).0, Isa::Avx2).unwrap_or_else(|e| panic!("{e}"));
            let code = nnc_backends::cpu::x86::assemble(&kernel.func).unwrap_or_else(|e| panic!("{e}"));
            let spilled = code.spills.iter().filter(|s| matches!(s.reg, Reg::V(_))).count();
            // The transforms of 6 x 6 values need more than there are: a group of columns, and what they are made of.
            assert!(spilled <= 72, "{form:?} of runs of {run}: {spilled} vectors in memory");
        }
    }
}
