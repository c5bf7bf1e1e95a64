//! Convolutions and matrix products against the plain sums, on every engine.

mod support;

use nnc_backends::cpu::isa::{Isa, Machine};
use nnc_backends::cpu::kernels::conv::{Conv, Image, conv};
use nnc_backends::cpu::kernels::gemm::{Gemm, Matrix, gemm, pack_weights};
use nnc_backends::cpu::kernels::post::{Act, Post};
use nnc_backends::cpu::kernels::{BLOCK, Size};
use support::{Engine, Word, engines, noise, run};

fn close(got: f32, want: f64, scale: f64, what: impl Fn() -> String) {
    let err = (f64::from(got) - want).abs();
    assert!(err <= 1e-5 * scale.max(1.0) + 1e-5 * want.abs(), "{}: got {got}, want {want}", what());
}

#[derive(Clone)]
struct Case {
    n: i64,
    groups: i64,
    ic: i64,
    oc: i64,
    size: Vec<i64>,
    kernel: Vec<i64>,
    stride: Vec<i64>,
    dilation: Vec<i64>,
    pad: Vec<i64>,
    plain: bool,
    /// Weights in bf16; the values of both sides are such that nothing is rounded.
    narrow: bool,
    /// Output sizes and input pitches as run-time words.
    dynamic: bool,
    out_halo: i64,
    residual: bool,
    /// The residual is what the output holds.
    in_place: bool,
    post: Vec<Post>,
}

fn case(ic: i64, oc: i64, size: i64, kernel: i64, stride: i64) -> Case {
    Case {
        n: 1,
        groups: 1,
        ic,
        oc,
        size: vec![size; 2],
        kernel: vec![kernel; 2],
        stride: vec![stride; 2],
        dilation: vec![1; 2],
        pad: vec![kernel / 2; 2],
        plain: false,
        narrow: false,
        dynamic: false,
        out_halo: 0,
        residual: false,
        in_place: false,
        post: vec![],
    }
}

/// All indices of a shape, in row-major order.
fn indices(shape: &[i64]) -> Vec<Vec<i64>> {
    let mut all = vec![vec![]];
    for &s in shape {
        all = all.into_iter().flat_map(|p| (0..s).map(move |i| [p.as_slice(), &[i]].concat())).collect();
    }
    all
}

/// Runs a case on an engine and compares every output value, and that nothing else was written.
fn check(c: &Case, isa: Isa, engine: Engine) {
    let d = c.size.len();
    let out: Vec<i64> = (0..d).map(|i| (c.size[i] + 2 * c.pad[i] - c.dilation[i] * (c.kernel[i] - 1) - 1) / c.stride[i] + 1).collect();
    let (ic, oc) = (c.ic * c.groups, c.oc * c.groups);
    let halo: Vec<(i64, i64)> = c.pad.iter().map(|p| (*p, *p)).collect();
    let mut input = Image::dense(0, !c.plain, ic, &c.size, &halo);
    let origin = input.origin;
    input.origin = Size::Const(0);
    let mut output = Image::dense(3, true, oc, &out, &vec![(c.out_halo, c.out_halo); d]);
    let as_const = |s: Size| if let Size::Const(c) = s { c } else { panic!("constant") };
    let (in_image, out_image) = (as_const(input.image), as_const(output.image));
    let (in_plane, out_plane) = (as_const(input.plane), as_const(output.plane));
    let in_pitch: Vec<i64> = input.pitches.iter().map(|p| as_const(*p)).collect();
    let out_pitch: Vec<i64> = output.pitches.iter().map(|p| as_const(*p)).collect();
    let out_origin = as_const(output.origin);

    let mut words = vec![Word::Buf(0), Word::Buf(1), Word::Buf(2), Word::Buf(3), Word::Buf(4), Word::Buf(5)];
    let mut out_sizes: Vec<Size> = out.iter().map(|o| Size::Const(*o)).collect();
    let mut batch = Size::Const(c.n);
    if c.dynamic {
        let mut arg = |s: &mut Size| {
            words.push(Word::Int(as_const(*s)));
            *s = Size::Arg(words.len() as u32 - 1);
        };
        arg(&mut batch);
        out_sizes.iter_mut().for_each(&mut arg);
        for i in [&mut input, &mut output] {
            for s in [&mut i.origin, &mut i.image, &mut i.plane] {
                arg(s);
            }
            i.pitches.iter_mut().for_each(&mut arg);
        }
    }
    let mut post = c.post.clone();
    let blocks = (c.oc + BLOCK - 1) / BLOCK;
    if c.residual {
        let mut place = Image { word: 4, ..output.clone() }.output_place(blocks);
        place.word = 4;
        post.insert(0, Post::AddTensor(place));
    }
    let desc = Conv {
        name: "conv".into(),
        narrow: c.narrow,
        batch,
        groups: c.groups,
        in_channels: c.ic,
        out_channels: c.oc,
        out: out_sizes,
        kernel: c.kernel.clone(),
        stride: c.stride.clone(),
        dilation: c.dilation.clone(),
        input,
        plain: c.plain,
        output,
        weights: 1,
        bias: Some(2),
        post,
    };
    // A small cache makes several chunks out of a small case.
    let machine = Machine { l1_bytes: 4096, l2_bytes: 16 << 10, threads: 2 };
    let kernel = conv(&desc, isa, &machine).unwrap_or_else(|e| panic!("{e}"));

    let exact = |v: Vec<f32>| if c.narrow { v.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect() } else { v };
    let weights = exact(noise((oc * c.ic * c.kernel.iter().product::<i64>()) as usize, 2));
    let bias_len = blocks * BLOCK * c.groups;
    let mut bias = noise(bias_len as usize, 3);
    if c.groups == 1 {
        bias[c.oc as usize..].fill(0.0);
    }
    let scale = noise(bias_len as usize, 6);
    let mut x = vec![0f32; (in_image * c.n) as usize];
    let values = exact(noise((c.n * ic * c.size.iter().product::<i64>()) as usize, 1));
    let in_at = |n: i64, ch: i64, pos: &[i64]| {
        let unit = if c.plain { 1 } else { BLOCK };
        let mut at = n * in_image + as_const(origin) + pos[d - 1] * unit;
        at += if c.plain { ch * in_plane } else { ch / BLOCK * in_plane + ch % BLOCK };
        at += pos[..d - 1].iter().zip(&in_pitch).map(|(p, s)| p * s).sum::<i64>();
        at as usize
    };
    let out_at = |n: i64, ch: i64, pos: &[i64]| {
        let at = n * out_image + out_origin + ch / BLOCK * out_plane + ch % BLOCK + pos[d - 1] * BLOCK;
        (at + pos[..d - 1].iter().zip(&out_pitch).map(|(p, s)| p * s).sum::<i64>()) as usize
    };
    let spots = indices(&[&[c.n, ic], c.size.as_slice()].concat());
    for (p, v) in spots.iter().zip(&values) {
        x[in_at(p[0], p[1], &p[2..])] = *v;
    }
    let mut y = vec![7f32; (out_image * c.n) as usize];
    let residual = noise(y.len(), 5);
    if c.in_place {
        y = residual.clone();
        words[4] = Word::Buf(3);
    }
    let packed = if c.narrow { in_pairs(&desc.pack(&weights)) } else { desc.pack(&weights) };
    let mut bufs = [x, packed, bias.clone(), y, residual.clone(), scale.clone()];
    let what = format!("{isa:?} {engine:?} {ic}->{oc} {:?} k{:?} s{:?}", c.size, c.kernel, c.stride);
    run(&kernel, isa, engine, &mut bufs, &words).unwrap_or_else(|e| panic!("{what}: {e}\n{}", kernel.func));

    let mut touched = 0;
    let taps = indices(&c.kernel);
    for p in indices(&[&[c.n, oc], out.as_slice()].concat()) {
        let g = p[1] / c.oc;
        let mut sum = f64::from(bias[p[1] as usize]);
        for i in 0..c.ic {
            for (t, tap) in taps.iter().enumerate() {
                let pos: Vec<i64> = (0..d).map(|k| p[2 + k] * c.stride[k] + tap[k] * c.dilation[k] - c.pad[k]).collect();
                if pos.iter().zip(&c.size).all(|(p, s)| (0..*s).contains(p)) {
                    let w = weights[((p[1] * c.ic + i) as usize) * taps.len() + t];
                    sum += f64::from(w) * f64::from(bufs[0][in_at(p[0], g * c.ic + i, &pos)]);
                }
            }
        }
        let at = out_at(p[0], p[1], &p[2..]);
        if c.residual {
            sum += f64::from(residual[at]);
        }
        for post in &c.post {
            sum = match post {
                Post::MulChannel(_) => sum * f64::from(scale[p[1] as usize]),
                Post::AddChannel(_) => sum + f64::from(scale[p[1] as usize]),
                Post::Act(a) => reference(*a, sum),
                Post::AddTensor(_) => sum,
            };
        }
        close(bufs[3][at], sum, 4.0, || format!("{what} at {p:?}"));
        touched += 1;
    }
    // Channel padding is written too; everything else is as it was.
    let padded = c.n * c.groups * blocks * BLOCK * out.iter().product::<i64>();
    let before = |at: usize| if c.in_place { residual[at] } else { 7.0 };
    let left = bufs[3].iter().enumerate().filter(|(at, v)| **v == before(*at)).count() as i64;
    assert!(touched <= padded);
    assert_eq!(left, bufs[3].len() as i64 - padded, "{what}: values outside the window");
}

/// Rows of 16 values as bf16, each two interleaved; two values a word.
fn in_pairs(rows: &[f32]) -> Vec<f32> {
    let word = |low: f32, high: f32| f32::from_bits(low.to_bits() >> 16 | high.to_bits() & 0xffff_0000);
    rows.chunks(2 * BLOCK as usize).flat_map(|p| (0..BLOCK as usize).map(move |o| word(p[o], p[BLOCK as usize + o]))).collect()
}

#[test]
fn narrow_weights() {
    let cases = [
        case(16, 32, 7, 3, 2),
        case(48, 16, 5, 1, 1),
        Case { n: 2, groups: 2, dilation: vec![2, 1], pad: vec![2, 1], ..case(16, 32, 6, 3, 1) },
        Case { dynamic: true, n: 2, ..case(32, 16, 5, 3, 1) },
        Case { residual: true, post: vec![Post::Act(Act::Relu)], out_halo: 1, ..case(16, 32, 5, 3, 1) },
        // Deep enough for slices.
        Case { residual: true, ..case(1024, 32, 8, 1, 1) },
    ];
    for c in cases.map(|c| Case { narrow: true, ..c }) {
        check(&c, Isa::Avx512, Engine::Interpreter);
        if nnc_backends::cpu::has_bf16() {
            check(&c, Isa::Avx512, Engine::Native);
        }
    }
}

fn reference(a: Act, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match a {
        Act::Relu => x.max(0.0),
        Act::Clip { lo, hi } => x.max(lo.into()).min(hi.into()),
        Act::LeakyRelu { a } => {
            if x < 0.0 {
                f64::from(a) * x
            } else {
                x
            }
        }
        Act::Sigmoid => sigmoid(x),
        Act::Tanh => x.tanh(),
        Act::HardSigmoid { a, b } => (f64::from(a) * x + f64::from(b)).clamp(0.0, 1.0),
        Act::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Act::Silu => x * sigmoid(x),
        Act::GeluTanh => 0.5 * x * (1.0 + (0.7978845608028654 * (x + 0.044715 * x * x * x)).tanh()),
        Act::Exp => x.exp(),
        Act::Elu { a } => {
            if x < 0.0 {
                f64::from(a) * x.exp_m1()
            } else {
                x
            }
        }
        Act::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Act::Mish => x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
        Act::Abs => x.abs(),
        Act::Neg => -x,
        Act::Floor => x.floor(),
        Act::Ceil => x.ceil(),
        Act::Gelu | Act::Erf | Act::Log | Act::Sqrt => panic!("compared in the tests of single functions"),
    }
}

fn on_all(cases: &[Case], interpreted: bool) {
    for (isa, engine) in engines() {
        if engine == Engine::Interpreter && !interpreted {
            continue;
        }
        for c in cases {
            check(c, isa, engine);
        }
    }
}

#[test]
fn small_convolutions() {
    on_all(
        &[
            case(16, 16, 3, 1, 1),
            case(20, 24, 5, 3, 1),
            case(6, 16, 5, 3, 1),
            case(32, 6, 9, 3, 1),
            Case { plain: true, post: vec![Post::Act(Act::Sigmoid)], ..case(1, 8, 14, 5, 1) },
            // Deep enough for slices, of whole blocks and what is left.
            case(1030, 16, 6, 1, 1),
            case(16, 32, 7, 3, 2),
            Case { n: 2, groups: 2, dilation: vec![2, 1], pad: vec![2, 1], ..case(16, 32, 6, 3, 1) },
            Case { plain: true, ..case(3, 16, 9, 3, 2) },
            Case { dynamic: true, n: 2, ..case(16, 16, 5, 3, 1) },
            Case { dynamic: true, plain: true, ..case(2, 20, 6, 5, 2) },
            Case { residual: true, post: vec![Post::Act(Act::Relu)], out_halo: 1, ..case(16, 32, 5, 3, 1) },
            Case { post: vec![Post::MulChannel(5), Post::AddChannel(5), Post::Act(Act::Silu)], ..case(16, 48, 4, 1, 1) },
        ],
        true,
    );
}

#[test]
fn shapes_of_networks() {
    on_all(
        &[
            case(32, 32, 7, 3, 1),
            case(64, 64, 7, 1, 1),
            case(32, 48, 14, 3, 1),
            case(32, 32, 14, 3, 2),
            case(16, 32, 28, 1, 2),
            case(16, 16, 56, 3, 1),
            Case { plain: true, pad: vec![3; 2], ..case(3, 32, 30, 7, 2) },
            Case { plain: true, pad: vec![2; 2], ..case(3, 16, 31, 11, 4) },
            Case { plain: true, pad: vec![0; 2], ..case(1, 16, 28, 5, 1) },
            Case { residual: true, post: vec![Post::Act(Act::Relu)], ..case(32, 64, 14, 1, 1) },
            Case { dynamic: true, residual: true, out_halo: 2, ..case(32, 32, 13, 3, 1) },
            Case { n: 3, groups: 4, ..case(16, 16, 8, 3, 1) },
        ],
        false,
    );
}

#[test]
fn one_and_three_dimensions() {
    let line = Case { size: vec![23], kernel: vec![5], stride: vec![2], dilation: vec![1], pad: vec![2], ..case(16, 32, 1, 1, 1) };
    let volume =
        Case { size: vec![3, 4, 5], kernel: vec![3, 1, 3], stride: vec![1, 2, 1], dilation: vec![1; 3], pad: vec![1, 0, 1], ..case(16, 16, 1, 1, 1) };
    let moved = Case { dynamic: true, out_halo: 1, residual: true, ..volume.clone() };
    on_all(&[Case { dynamic: true, ..line.clone() }, line, volume, moved], true);
}

#[test]
fn every_activation() {
    let acts = [
        Act::Relu,
        Act::Clip { lo: -0.5, hi: 0.75 },
        Act::LeakyRelu { a: 0.1 },
        Act::Sigmoid,
        Act::Tanh,
        Act::HardSigmoid { a: 0.2, b: 0.5 },
        Act::HardSwish,
        Act::Silu,
        Act::GeluTanh,
        Act::Exp,
        Act::Elu { a: 1.5 },
        Act::Softplus,
        Act::Mish,
        Act::Abs,
        Act::Neg,
    ];
    for a in acts {
        on_all(&[Case { post: vec![Post::Act(a)], ..case(4, 16, 5, 3, 1) }], true);
    }
}

/// `C = A * B` with these sizes; which of m, n and k are run-time words; and a residual. Where columns are whole blocks, `B` is also
/// read as it lies.
fn check_gemm(isa: Isa, engine: Engine, shape: [i64; 4], dynamic: [bool; 3], residual: bool) {
    check_product(isa, engine, shape, dynamic, residual, true);
    if shape[2] % BLOCK == 0 && !dynamic[1] {
        check_product(isa, engine, shape, dynamic, residual, false);
    }
}

fn check_product(isa: Isa, engine: Engine, [batch, m, n, k]: [i64; 4], dynamic: [bool; 3], residual: bool, packed: bool) {
    let mut words = vec![Word::Buf(0), Word::Buf(1), Word::Buf(2), Word::Buf(3), Word::Buf(4)];
    let mut size = |x: i64, dynamic: bool| {
        if dynamic {
            words.push(Word::Int(x));
            Size::Arg(words.len() as u32 - 1)
        } else {
            Size::Const(x)
        }
    };
    let (lda, ldc) = (k + 3, n + 1);
    let np = (n + BLOCK - 1) / BLOCK * BLOCK;
    let c = Matrix { word: 3, pitch: size(ldc, dynamic[1]), batch: vec![Size::Const(m * ldc)] };
    let place = Matrix { word: 4, ..c.clone() }.place();
    // Every other one has a bias that ends with its columns.
    let padded = k % 2 == 0;
    let desc = Gemm {
        name: "gemm".into(),
        narrow: false,
        batch: vec![Size::Const(batch)],
        m: size(m, dynamic[0]),
        n: size(n, dynamic[1]),
        k: size(k, dynamic[2]),
        a: Matrix { word: 0, pitch: size(lda, dynamic[2]), batch: vec![Size::Const(m * lda)] },
        b: 1,
        packed,
        b_batch: vec![size(k * np, dynamic[1])],
        c,
        bias: Some(2),
        padded,
        post: if residual { vec![Post::AddTensor(place), Post::Act(Act::Relu)] } else { vec![] },
    };
    let machine = Machine { l1_bytes: 4096, l2_bytes: 64 << 10, threads: 2 };
    let kernel = gemm(&desc, isa, &machine).unwrap_or_else(|e| panic!("{e}"));
    let a = noise((batch * m * lda) as usize, 1);
    let b = noise((batch * k * n) as usize, 2);
    let pack = |b: &[f32]| if packed { pack_weights(b, k as usize, n as usize, false) } else { b.to_vec() };
    let right: Vec<f32> = b.chunks((k * n) as usize).flat_map(pack).collect();
    let bias = noise(if padded { np } else { n } as usize, 3);
    let residuals = noise((batch * m * ldc) as usize, 4);
    let mut bufs = [a.clone(), right, bias.clone(), vec![7.0; (batch * m * ldc) as usize], residuals.clone()];
    let what = format!("{isa:?} {engine:?} {batch} of {m} x {n} x {k} {dynamic:?} packed={packed}");
    run(&kernel, isa, engine, &mut bufs, &words).unwrap_or_else(|e| panic!("{what}: {e}\n{}", kernel.func));
    for p in indices(&[batch, m, ldc]) {
        let at = ((p[0] * m + p[1]) * ldc + p[2]) as usize;
        if p[2] >= n {
            assert_eq!(bufs[3][at], 7.0, "{what}: beyond the columns at {p:?}");
            continue;
        }
        let mut sum = f64::from(bias[p[2] as usize]);
        for i in 0..k {
            let x = a[((p[0] * m + p[1]) * lda + i) as usize];
            sum += f64::from(x) * f64::from(b[((p[0] * k + i) * n + p[2]) as usize]);
        }
        if residual {
            sum = (sum + f64::from(residuals[at])).max(0.0);
        }
        close(bufs[3][at], sum, 4.0, || format!("{what} at {p:?}"));
    }
}

#[test]
fn products() {
    let shapes = [[1, 1, 1, 1], [1, 1, 40, 33], [1, 2, 16, 16], [2, 3, 17, 5], [1, 7, 32, 40], [1, 13, 50, 19], [2, 25, 64, 48]];
    for (isa, engine) in engines() {
        for shape in shapes {
            for dynamic in [[false; 3], [true, false, false], [true, true, false], [false, false, true], [true; 3]] {
                check_gemm(isa, engine, shape, dynamic, shape[1] % 2 == 1);
            }
        }
    }
}

#[test]
fn deep_contractions_in_slices() {
    let deep = Case { residual: true, post: vec![Post::MulChannel(5), Post::Act(Act::Relu)], ..case(64, 32, 7, 3, 1) };
    let plain = Case { residual: false, post: vec![Post::Act(Act::Sigmoid)], ..deep.clone() };
    let shallow = Case { in_place: true, residual: true, out_halo: 1, ..case(16, 32, 7, 3, 1) };
    on_all(&[Case { in_place: true, ..deep.clone() }, deep, plain, shallow], false);
    for (isa, engine) in engines() {
        check_gemm(isa, engine, [1, 31, 24, 1037], [false; 3], true);
        check_gemm(isa, engine, [2, 26, 32, 1040], [false; 3], false);
    }
}

/// Machine code of a case with one image.
fn code(c: &Case, isa: Isa) -> nnc_backends::cpu::x86::Code {
    let out = (c.size[0] + 2 * c.pad[0] - c.kernel[0]) / c.stride[0] + 1;
    let desc = Conv {
        name: "conv".into(),
        narrow: false,
        batch: Size::Const(1),
        groups: 1,
        in_channels: c.ic,
        out_channels: c.oc,
        out: vec![Size::Const(out); 2],
        kernel: c.kernel.clone(),
        stride: c.stride.clone(),
        dilation: c.dilation.clone(),
        input: Image::dense(0, !c.plain, c.ic, &c.size, &[(c.pad[0], c.pad[0]); 2]),
        plain: c.plain,
        output: Image::dense(3, true, c.oc, &[out; 2], &[(1, 1); 2]),
        weights: 1,
        bias: Some(2),
        post: vec![Post::Act(Act::Gelu)],
    };
    let kernel = conv(&desc, isa, &Machine::default()).unwrap_or_else(|e| panic!("{e}"));
    nnc_backends::cpu::x86::assemble(&kernel.func).unwrap_or_else(|e| panic!("{e}"))
}

/// Where a value is broadcast for one multiplication, both are one instruction: two cost a Zen 4 a quarter of its peak.
#[test]
fn lone_broadcasts_are_operands() {
    use iced_x86::{Decoder, Mnemonic};
    let bytes = code(&case(64, 16, 14, 3, 1), Isa::Avx512).bytes;
    let (mut broadcasts, mut products) = (0, 0);
    for i in Decoder::new(64, &bytes, 0) {
        broadcasts += usize::from(i.mnemonic() == Mnemonic::Vbroadcastss);
        products += usize::from(i.mnemonic() == Mnemonic::Vfmadd231ps && i.is_broadcast());
    }
    assert!(products >= 16 * 12 && broadcasts * 16 < products, "{broadcasts} broadcasts beside {products} products");
}

#[test]
fn hot_loops_do_not_spill() {
    for isa in [Isa::Avx2, Isa::Avx512] {
        for c in [case(64, 64, 14, 3, 1), case(64, 64, 14, 1, 1), Case { plain: true, ..case(3, 64, 30, 7, 2) }] {
            let code = code(&c, isa);
            let vectors: Vec<_> = code.spills.iter().filter(|s| matches!(s.reg, nnc_backends::cpu::vir::Reg::V(_))).collect();
            assert!(vectors.is_empty(), "{isa:?} {:?}: {vectors:?}", c.kernel);
        }
    }
}
