//! Speed of the generated kernels on this machine: `cargo run --release -p nnc-backends --example kernels [filter]`.
//!
//! One thread, hot caches, the best of many runs; percentages are of a measured peak of independent multiply-adds.

#[path = "../tests/support/mod.rs"]
mod support;

use nnc_backends::cpu::isa::{Isa, Machine};
use nnc_backends::cpu::kernels::conv::{Conv, Image, conv};
use nnc_backends::cpu::kernels::depthwise::{Depthwise, depthwise};
use nnc_backends::cpu::kernels::gemm::{Gemm, Matrix, gemm};
use nnc_backends::cpu::kernels::pool::{Pool, PoolKind, pool};
use nnc_backends::cpu::kernels::post::{Act, Post};
use nnc_backends::cpu::kernels::reorder::{Reorder, to_blocked, to_plain};
use nnc_backends::cpu::kernels::rows::{RowKind, Rows, rows};
use nnc_backends::cpu::kernels::{Kernel, Size, Tasks};
use nnc_backends::cpu::vir::{Addr, Builder};
use std::time::Instant;
use support::{Jit, noise};

/// Seconds of the fastest of several calls.
fn best(mut f: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    let start = Instant::now();
    let mut n = 0;
    while n < 5 || start.elapsed().as_secs_f64() < 0.25 {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
        n += 1;
    }
    best
}

/// GF/s of a loop of independent multiply-adds.
fn peak(isa: Isa) -> f64 {
    let mut b = Builder::new("peak", isa.lanes());
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
    let kernel = Kernel { func: b.finish(), tasks: Tasks(vec![]) };
    let jit = Jit::new(&kernel, isa);
    let mut out = vec![0f32; 16];
    let args = [out.as_mut_ptr() as u64];
    let s = best(|| jit.call(&args, 0));
    2.0 * 10.0 * 100_000.0 * isa.lanes() as f64 / s / 1e9
}

struct Bench {
    isa: Isa,
    machine: Machine,
    peak: f64,
    filter: String,
    flops: f64,
    seconds: f64,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    fn time(&mut self, name: &str, kernel: &Kernel, args: &[u64], flops: f64, times: f64) {
        let jit = Jit::new(kernel, self.isa);
        let tasks = kernel.tasks.count(|n| args[n as usize] as i64);
        let s = best(|| (0..tasks).for_each(|t| jit.call(args, t)));
        self.flops += flops * times;
        self.seconds += s * times;
        let gf = flops / s / 1e9;
        println!("{name:44} {:9.3} ms {gf:7.1} GF/s {:5.1} %  {tasks:4} tasks", s * 1e3, gf / self.peak * 100.0);
    }

    /// A kernel whose measure is the bytes that it must move.
    fn traffic(&mut self, name: &str, kernel: &Kernel, bufs: &mut [Vec<f32>]) {
        if !self.wants(name) {
            return;
        }
        let bytes: usize = bufs.iter().map(|b| b.len() * 4).sum();
        let args: Vec<u64> = bufs.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        let jit = Jit::new(kernel, self.isa);
        let tasks = kernel.tasks.count(|n| args[n as usize] as i64);
        let s = best(|| (0..tasks).for_each(|t| jit.call(&args, t)));
        let values = bufs[0].len() as f64;
        println!("{name:44} {:9.3} ms {:7.1} GB/s {:6.3} ns/value  {tasks:4} tasks", s * 1e3, bytes as f64 / s / 1e9, s / values * 1e9);
    }

    fn total(&mut self, name: &str) {
        if self.seconds > 0.0 {
            let gf = self.flops / self.seconds / 1e9;
            println!("{name:44} {:9.3} ms {gf:7.1} GF/s {:5.1} %", self.seconds * 1e3, gf / self.peak * 100.0);
        }
        (self.flops, self.seconds) = (0.0, 0.0);
    }

    /// A square convolution `times` in the network.
    fn conv(&mut self, ic: i64, oc: i64, size: i64, k: i64, stride: i64, times: f64) {
        let pad = k / 2;
        let name = format!("conv {ic}->{oc} {k}x{k} s{stride} at {size}");
        if !self.wants(&name) {
            return;
        }
        let plain = ic < 16;
        let out = (size + 2 * pad - k) / stride + 1;
        let mut input = Image::dense(0, !plain, ic, &[size, size], &[(pad, pad); 2]);
        input.origin = Size::Const(0);
        let desc = Conv {
            name: "k".into(),
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
        let args: Vec<u64> = bufs.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        let kernel = conv(&desc, self.isa, &self.machine).expect("a plain convolution");
        self.time(&name, &kernel, &args, 2.0 * (ic * oc * k * k * out * out) as f64, times);
    }

    /// A square depthwise convolution.
    fn depthwise(&mut self, c: i64, size: i64, k: i64, stride: i64, times: f64) {
        let pad = k / 2;
        let name = format!("depthwise {c} {k}x{k} s{stride} at {size}");
        if !self.wants(&name) {
            return;
        }
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
        let args: Vec<u64> = bufs.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        let kernel = depthwise(&desc, self.isa, &self.machine).expect("a plain convolution");
        self.time(&name, &kernel, &args, 2.0 * (wide * k * k * out * out) as f64, times);
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
        for act in [Act::Exp, Act::Log, Act::Sigmoid, Act::Tanh, Act::Erf, Act::Gelu] {
            let mut b = Builder::new("map", self.isa.lanes());
            let (p, q) = (b.word(0), b.word(1));
            let width = b.width();
            b.for_(0, 3072 * 4, width, |b, at| {
                let x = b.load(Addr::from(p).idx(at, 1));
                let y = act.apply(b, &[x])[0];
                b.store(Addr::from(q).idx(at, 1), y);
            });
            let kernel = Kernel { func: b.finish(), tasks: Tasks(vec![]) };
            self.traffic(&format!("map {act:?} 3072"), &kernel, &mut [noise(3072, 1), vec![0.0; 3072]]);
        }
    }

    fn gemm(&mut self, m: i64, n: i64, k: i64, times: f64) {
        let name = format!("gemm {m} x {n} x {k}");
        if !self.wants(&name) {
            return;
        }
        let matrix = |word, pitch| Matrix { word, pitch: Size::Const(pitch), batch: vec![] };
        let desc = Gemm {
            name: "k".into(),
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
            post: vec![],
        };
        let wide = round(n, 16);
        let mut bufs = [noise((m * k) as usize, 1), noise((wide * k) as usize, 2), noise(wide as usize, 3), vec![0.0; (m * n) as usize]];
        let args: Vec<u64> = bufs.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        let kernel = gemm(&desc, self.isa, &self.machine).expect("a plain product");
        self.time(&name, &kernel, &args, 2.0 * (m * n * k) as f64, times);
    }
}

fn round(x: i64, n: i64) -> i64 {
    (x + n - 1) / n * n
}

fn main() {
    let mut args = std::env::args().skip(1);
    let filter = args.next().unwrap_or_default();
    let isa = match args.next().as_deref() {
        Some("portable") => Isa::Portable,
        _ => Isa::native(),
    };
    let peak = peak(isa);
    println!("{isa:?}, peak {peak:.1} GF/s");
    let machine = Machine { threads: 1, ..Machine::default() };
    let mut b = Bench { isa, machine, peak, filter, flops: 0.0, seconds: 0.0 };
    // (in, out, input size, kernel, stride, times) of resnet50.
    for (ic, oc, size, k, s, times) in [
        (3, 64, 224, 7, 2, 1.0),
        (64, 64, 56, 1, 1, 1.0),
        (64, 64, 56, 3, 1, 3.0),
        (64, 256, 56, 1, 1, 4.0),
        (256, 64, 56, 1, 1, 2.0),
        (256, 128, 56, 1, 1, 1.0),
        (128, 128, 56, 3, 2, 1.0),
        (128, 512, 28, 1, 1, 4.0),
        (256, 512, 56, 1, 2, 1.0),
        (512, 128, 28, 1, 1, 3.0),
        (128, 128, 28, 3, 1, 3.0),
        (512, 256, 28, 1, 1, 1.0),
        (256, 256, 28, 3, 2, 1.0),
        (256, 1024, 14, 1, 1, 6.0),
        (512, 1024, 28, 1, 2, 1.0),
        (1024, 256, 14, 1, 1, 5.0),
        (256, 256, 14, 3, 1, 5.0),
        (1024, 512, 14, 1, 1, 1.0),
        (512, 512, 14, 3, 2, 1.0),
        (512, 2048, 7, 1, 1, 3.0),
        (1024, 2048, 14, 1, 2, 1.0),
        (2048, 512, 7, 1, 1, 2.0),
        (512, 512, 7, 3, 1, 2.0),
    ] {
        b.conv(ic, oc, size, k, s, times);
    }
    b.total("resnet50 convolutions");
    for (c, size, s, times) in [
        (32, 112, 1, 1.0),
        (96, 112, 2, 1.0),
        (144, 56, 1, 1.0),
        (144, 56, 2, 1.0),
        (192, 28, 1, 2.0),
        (192, 28, 2, 1.0),
        (384, 14, 1, 4.0),
        (576, 14, 1, 2.0),
        (576, 14, 2, 1.0),
        (960, 7, 1, 3.0),
    ] {
        b.depthwise(c, size, 3, s, times);
    }
    b.total("mobilenet_v2 depthwise");
    b.depthwise(96, 56, 7, 1, 1.0);
    b.depthwise(240, 28, 5, 1, 1.0);
    b.total("larger depthwise");
    b.movers();
    for (m, n, k) in [
        (128, 768, 768),
        (128, 3072, 768),
        (128, 768, 3072),
        (512, 512, 512),
        (1024, 1024, 1024),
        (32, 1000, 2048),
        (1, 1000, 2048),
        (1, 4096, 4096),
        (4, 1024, 1024),
    ] {
        b.gemm(m, n, k, 1.0);
    }
    b.total("products");
}
