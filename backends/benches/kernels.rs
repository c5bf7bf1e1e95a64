//! Speed of single kernels on this machine: `cargo bench -p nnc-backends --bench kernels [-- FILTER]`.
//!
//! One thread, hot caches. Kernels that compute are measured in floating-point operations (`Gelem/s` is GFLOP/s: hold it against
//! `peak`), those that move in bytes. Shapes are those of resnet50, mobilenet_v2 and a transformer.

#[path = "../tests/support/mod.rs"]
mod support;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use nnc_backends::cpu::isa::{Isa, Machine};
use nnc_backends::cpu::kernels::attention::{Attention, attention};
use nnc_backends::cpu::kernels::conv::{Conv, Image, conv};
use nnc_backends::cpu::kernels::depthwise::{Depthwise, depthwise};
use nnc_backends::cpu::kernels::gemm::{Gemm, Matrix, gemm};
use nnc_backends::cpu::kernels::pool::{Pool, PoolKind, pool};
use nnc_backends::cpu::kernels::post::{Act, Post};
use nnc_backends::cpu::kernels::reorder::{Reorder, to_blocked, to_plain};
use nnc_backends::cpu::kernels::rows::{RowKind, Rows, rows};
use nnc_backends::cpu::kernels::winograd::{Winograd, winograd};
use nnc_backends::cpu::kernels::{BLOCK, Kernel, Size, Tasks};
use nnc_backends::cpu::vir::{Addr, Builder};
use nnc_ir::winograd::{Form, LANES, Scratch};
use std::time::Duration;
use support::{Jit, noise};

/// Kernels of a family.
struct Bench<'c> {
    group: BenchmarkGroup<'c, WallTime>,
    isa: Isa,
    machine: Machine,
}

fn family<'c>(c: &'c mut Criterion, name: &str) -> Bench<'c> {
    Bench { group: c.benchmark_group(name), isa: Isa::native(), machine: Machine { threads: 1, ..Machine::default() } }
}

impl Bench<'_> {
    /// A kernel whose measure is its floating-point operations.
    fn compute(&mut self, name: &str, kernel: &Kernel, bufs: &mut [Vec<f32>], flops: i64) {
        self.time(name, kernel, bufs, Throughput::Elements(flops as u64));
    }

    /// A kernel whose measure is the bytes that it must move.
    fn traffic(&mut self, name: &str, kernel: &Kernel, bufs: &mut [Vec<f32>]) {
        let bytes = bufs.iter().map(|b| b.len() * 4).sum::<usize>();
        self.time(name, kernel, bufs, Throughput::Bytes(bytes as u64));
    }

    fn time(&mut self, name: &str, kernel: &Kernel, bufs: &mut [Vec<f32>], throughput: Throughput) {
        let args: Vec<u64> = bufs.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        let jit = Jit::new(kernel, self.isa);
        let tasks = kernel.tasks.count(|n| args[n as usize] as i64);
        self.group.throughput(throughput);
        self.group.bench_function(name, |b| b.iter(|| (0..tasks).for_each(|t| jit.call(&args, t))));
    }

    /// A square convolution that sums its products.
    fn conv(&mut self, ic: i64, oc: i64, size: i64, k: i64, stride: i64) {
        let pad = k / 2;
        let name = format!("{ic}->{oc} {k}x{k} s{stride} at {size}");
        let plain = ic < 16;
        let out = (size + 2 * pad - k) / stride + 1;
        let mut input = Image::dense(0, !plain, ic, &[size, size], &[(pad, pad); 2]);
        input.origin = Size::Const(0);
        let desc = Conv {
            name: "k".into(),
            narrow: false,
            batch: Size::Const(1),
            groups: 1,
            in_channels: ic,
            out_channels: oc,
            out: vec![Size::Const(out); 2],
            kernel: vec![k; 2],
            stride: vec![stride; 2],
            dilation: vec![1; 2],
            input,
            plain,
            output: Image::dense(3, true, oc, &[out, out], &[(0, 0); 2]),
            weights: 1,
            bias: Some(2),
            post: vec![Post::Act(Act::Relu)],
        };
        let padded = size + 2 * pad;
        let mut bufs = [
            noise((round(ic, if plain { 1 } else { 16 }) * padded * padded) as usize, 1),
            noise(desc.packed_len() as usize, 2),
            noise(oc as usize, 3),
            vec![0.0; (oc * out * out) as usize],
        ];
        let kernel = conv(&desc, self.isa, &self.machine).expect("a plain convolution");
        self.compute(&name, &kernel, &mut bufs, 2 * ic * oc * k * k * out * out);
    }

    /// A square 3x3 convolution by minimal filtering; counted are the operations of the plain sum.
    fn winograd(&mut self, ic: i64, oc: i64, size: i64, form: Form) {
        let (tile, side, taps) = (form.tile as i64, form.side() as i64, form.taps as i64);
        let (blocks, patches, run) = ([ic / BLOCK, oc / BLOCK], (size + tile - 1) / tile, 16);
        let desc = Winograd {
            name: "k".into(),
            batch: Size::Const(1),
            in_blocks: blocks[0],
            out_blocks: blocks[1],
            size: [Size::Const(size); 2],
            out: [Size::Const(size); 2],
            tiles: [Size::Const(patches); 2],
            before: [1, 1],
            form,
            run,
            input: Image::dense(0, true, ic, &[size, size], &[]),
            output: Image::dense(3, true, oc, &[size, size], &[]),
            weights: 1,
            bias: Some(2),
            post: vec![Post::Act(Act::Relu)],
            scratch: 4,
            threads: Size::Const(1),
        };
        let mut bufs = [
            noise((ic * size * size) as usize, 1),
            noise((ic * oc * side * side) as usize, 2),
            noise(oc as usize, 3),
            vec![0.0; (oc * size * size) as usize],
            vec![0.0; LANES * Scratch::new(form, run as usize, blocks[0] as usize).values()],
        ];
        let kernel = winograd(&desc, self.isa).expect("a plain convolution");
        self.compute(&format!("{ic}->{oc} at {size}, tiles of {tile} by {taps}x{taps}"), &kernel, &mut bufs, 2 * taps * taps * ic * oc * size * size);
    }

    /// Heads of attention over as many keys as queries.
    fn attention(&mut self, heads: i64, length: i64, depth: i64) {
        let desc = Attention {
            name: "k".into(),
            batch: vec![Size::Const(heads)],
            queries: Size::Const(length),
            keys: Size::Const(length),
            depth,
            width: depth,
            scale: 0.125,
            q: 0,
            k: 1,
            v: 2,
            y: 3,
            mask: None,
        };
        let n = (heads * length * depth) as usize;
        let mut bufs = [noise(n, 1), noise(n, 2), noise(n, 3), vec![0.0; n]];
        let kernel = attention(&desc, self.isa).expect("plain attention");
        self.compute(&format!("{heads} heads of {length} x {depth}"), &kernel, &mut bufs, 4 * heads * length * length * depth);
    }

    /// Independent multiply-adds in registers.
    fn peak(&mut self) {
        let mut b = Builder::new("peak", self.isa.lanes());
        let x = b.constant(0.5);
        let acc: Vec<_> = (0..10).map(|_| b.constant(1.0)).collect();
        b.for_(0, 100_000, 1, |b, _| {
            for a in &acc {
                b.fma_to(*a, x, x);
            }
        });
        let p = b.word(0);
        for a in &acc {
            b.store(p, *a);
        }
        let kernel = Kernel { func: b.finish(), tasks: ONE };
        self.compute("multiply-adds", &kernel, &mut [vec![0.0; 16]], 2 * 10 * 100_000 * self.isa.lanes() as i64);
    }

    /// A square depthwise convolution.
    fn depthwise(&mut self, c: i64, size: i64, k: i64, stride: i64) {
        let pad = k / 2;
        let name = format!("{c} {k}x{k} s{stride} at {size}");
        let out = (size + 2 * pad - k) / stride + 1;
        let input = Image::dense(0, true, c, &[size, size], &[(pad, pad); 2]);
        let desc = Depthwise {
            name: "k".into(),
            batch: Size::Const(1),
            channels: c,
            out: [Size::Const(out); 2],
            kernel: [k; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            input: Image { origin: Size::Const(0), ..input },
            output: Image::dense(3, true, c, &[out, out], &[(0, 0); 2]),
            weights: 1,
            bias: Some(2),
            post: vec![Post::Act(Act::Clip { lo: 0.0, hi: 6.0 })],
        };
        let (wide, padded) = (round(c, 16), size + 2 * pad);
        let mut bufs = [
            noise((wide * padded * padded) as usize, 1),
            noise((wide * k * k) as usize, 2),
            noise(wide as usize, 3),
            vec![0.0; (wide * out * out) as usize],
        ];
        let kernel = depthwise(&desc, self.isa, &self.machine).expect("a plain convolution");
        self.compute(&name, &kernel, &mut bufs, 2 * wide * k * k * out * out);
    }

    fn movers(&mut self) {
        let at = |word, halo: i64| Image::dense(word, true, 64, &[112, 112], &[(halo, halo); 2]);
        let desc = Pool {
            name: "k".into(),
            kind: PoolKind::Max,
            batch: Size::Const(1),
            channels: 64,
            size: [1, 112, 112].map(Size::Const),
            out: [1, 56, 56].map(Size::Const),
            kernel: [1, 3, 3],
            stride: [1, 2, 2],
            dilation: [1; 3],
            pad_before: [0, 1, 1],
            pad_after: [0, 1, 1],
            input: Image::dense(0, true, 64, &[1, 112, 112], &[]),
            output: Image::dense(1, true, 64, &[1, 56, 56], &[]),
        };
        let (large, small) = (64 * 112 * 112, 64 * 56 * 56);
        let kernel = pool(&desc, self.isa, &self.machine).expect("a plain pool");
        self.traffic("max pool 64 3x3 s2 at 112", &kernel, &mut [noise(large, 1), vec![0.0; small]]);
        let kernel = pool(&Pool { kind: PoolKind::Average, ..desc }, self.isa, &self.machine).expect("a plain pool");
        self.traffic("average pool 64 3x3 s2 at 112", &kernel, &mut [noise(large, 1), vec![0.0; small]]);
        let mut desc = Reorder {
            name: "k".into(),
            batch: Size::Const(1),
            channels: Size::Const(64),
            spatial: vec![Size::Const(112); 2],
            plain: Image::dense(0, false, 64, &[112, 112], &[]),
            blocked: at(1, 0),
        };
        let kernel = to_blocked(&desc, self.isa).expect("a plain reorder");
        self.traffic("plain to blocked 64 at 112", &kernel, &mut [noise(large, 1), vec![0.0; large]]);
        (desc.plain.word, desc.blocked.word) = (1, 0);
        let kernel = to_plain(&desc, self.isa).expect("a plain reorder");
        self.traffic("blocked to plain 64 at 112", &kernel, &mut [noise(large, 1), vec![0.0; large]]);
    }

    fn rows(&mut self) {
        for kind in [RowKind::Softmax, RowKind::LayerNorm { epsilon: 1e-5, scale: None, bias: None }] {
            for len in [64, 768, 3072] {
                let desc = Rows {
                    name: "k".into(),
                    kind,
                    rows: Size::Const(16),
                    len: Size::Const(len),
                    input: (0, Size::Const(len)),
                    output: (1, Size::Const(len)),
                };
                let name = if kind == RowKind::Softmax { "softmax" } else { "layer norm" };
                let n = 16 * len as usize;
                self.traffic(&format!("{name} 16 x {len}"), &rows(&desc, self.isa), &mut [noise(n, 1), vec![0.0; n]]);
            }
        }
    }

    fn maps(&mut self) {
        for act in [Act::Exp, Act::Log, Act::Sigmoid, Act::Tanh, Act::Erf, Act::Gelu] {
            let mut b = Builder::new("map", self.isa.lanes());
            let (p, q) = (b.word(0), b.word(1));
            let width = b.width();
            b.for_(0, 3072 * 4, width, |b, at| {
                let x = b.load(Addr::from(p).idx(at, 1));
                let y = act.apply(b, &[x])[0];
                b.store(Addr::from(q).idx(at, 1), y);
            });
            let kernel = Kernel { func: b.finish(), tasks: ONE };
            self.traffic(&format!("{act:?} of 3072"), &kernel, &mut [noise(3072, 1), vec![0.0; 3072]]);
        }
    }

    fn gemm(&mut self, m: i64, n: i64, k: i64) {
        let name = format!("{m} x {n} x {k}");
        let matrix = |word, pitch| Matrix { word, pitch: Size::Const(pitch), batch: vec![] };
        let desc = Gemm {
            name: "k".into(),
            narrow: false,
            batch: vec![],
            m: Size::Const(m),
            n: Size::Const(n),
            k: Size::Const(k),
            a: matrix(0, k),
            b: 1,
            packed: true,
            b_batch: vec![],
            c: matrix(3, n),
            bias: Some(2),
            padded: true,
            post: vec![],
        };
        let wide = round(n, 16);
        let mut bufs = [noise((m * k) as usize, 1), noise((wide * k) as usize, 2), noise(wide as usize, 3), vec![0.0; (m * n) as usize]];
        let kernel = gemm(&desc, self.isa, &self.machine).expect("a plain product");
        self.compute(&name, &kernel, &mut bufs, 2 * m * n * k);
    }
}

fn round(x: i64, n: i64) -> i64 {
    (x + n - 1) / n * n
}

/// A kernel of one task.
const ONE: Tasks = Tasks(vec![]);

fn products(c: &mut Criterion) {
    family(c, "peak").peak();
    let mut b = family(c, "matmul");
    for (m, n, k) in [(128, 768, 768), (128, 3072, 768), (512, 512, 512), (32, 1000, 2048), (4, 1024, 1024), (1, 1000, 2048), (1, 4096, 4096)] {
        b.gemm(m, n, k);
    }
    drop(b);
    let mut b = family(c, "attention");
    for (heads, length, depth) in [(12, 128, 32), (12, 197, 64), (8, 1024, 64)] {
        b.attention(heads, length, depth);
    }
}

fn convolutions(c: &mut Criterion) {
    let mut b = family(c, "convolution");
    for (ic, oc, size, k, s) in [
        (3, 64, 224, 7, 2),
        (64, 64, 56, 1, 1),
        (64, 64, 56, 3, 1),
        (64, 256, 56, 1, 1),
        (128, 128, 56, 3, 2),
        (512, 128, 28, 1, 1),
        (128, 128, 28, 3, 1),
        (256, 1024, 14, 1, 1),
        (512, 1024, 28, 1, 2),
        (256, 256, 14, 3, 1),
        (2048, 512, 7, 1, 1),
        (512, 512, 7, 3, 1),
    ] {
        b.conv(ic, oc, size, k, s);
    }
    drop(b);
    let mut b = family(c, "winograd");
    for (channels, size, tile, taps) in
        [(64, 56, 4, 3), (128, 28, 4, 3), (256, 14, 4, 3), (256, 14, 2, 3), (512, 7, 2, 3), (128, 27, 2, 5), (128, 16, 3, 2)]
    {
        b.winograd(channels, channels, size, Form { tile, taps });
    }
    drop(b);
    let mut b = family(c, "depthwise");
    for (channels, size, k, s) in
        [(32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (384, 14, 3, 1), (960, 7, 3, 1), (240, 28, 5, 1), (96, 56, 7, 1)]
    {
        b.depthwise(channels, size, k, s);
    }
}

fn elements(c: &mut Criterion) {
    family(c, "rows").rows();
    family(c, "maps").maps();
    family(c, "movers").movers();
}

/// Short: a run of all takes a minute or two.
fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800)).sample_size(20)
}

criterion_group! { name = all; config = settings(); targets = products, convolutions, elements }
criterion_main!(all);
