//! Every scalar function on every type, and every cast, against the reference.

use super::launch::launch;
use nnc_ir::DType;
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::{Access, ExprId, Kernel};
use nnc_ir::minifloat::Format;
use nnc_ir::scalar::{Num, Out, ScalarFn};

/// Numbers at the edges of a type and between.
fn edges(d: DType) -> Vec<Num> {
    let mut v: Vec<Num> = if d.is_float() {
        let all = [
            0.0,
            1e-40,
            5.9e-8,
            3.1e-5,
            1e-3,
            0.1,
            0.5,
            0.999,
            1.0,
            1.0 + 1.0 / 256.0,
            1.5,
            2.5,
            3.0,
            7.3,
            17.0,
            89.5,
            127.5,
            300.0,
            2049.0,
            65519.9,
            1e6,
            2147483648.0,
            9.3e18,
            1.9e19,
            3.39e38,
            f64::INFINITY,
        ];
        all.iter().flat_map(|x| [*x, -*x]).chain([f64::NAN]).map(Num::F).collect()
    } else if d == DType::Bool {
        vec![Num::B(false), Num::B(true)]
    } else {
        let ends = [i64::MIN, i64::MAX, i32::MIN.into(), i32::MAX.into(), -129, -128, 127, 128, 255, 256, 65535, -32768];
        ends.into_iter().chain([0, 1, -1, 2, -2, 3, 5, -7, 8, 15, 31, 33, 63, 64, 100]).map(Num::I).collect()
    };
    v.iter_mut().for_each(|n| *n = n.cast(d));
    v
}

fn bytes(d: DType, v: &[Num]) -> Vec<u8> {
    let mut out = vec![];
    v.iter().for_each(|n| n.write(d, &mut out));
    out
}

fn numbers(d: DType, b: &[u8]) -> Vec<Num> {
    b.chunks_exact(d.bytes()).map(|c| Num::read(d, c)).collect()
}

/// y[i] = f(x[i]...), a task an element.
fn kernel(name: &str, x: &[DType], y: DType, n: i64, f: impl Fn(&mut KernelBuilder, &[ExprId]) -> ExprId) -> Kernel {
    let mut b = KernelBuilder::new(name, 0);
    let params: Vec<u32> = x.iter().map(|t| b.param(*t, Access::Read, n.into())).collect();
    let to = b.param(y, Access::Write, n.into());
    let i = b.tasks(n.into());
    let args: Vec<ExprId> = params.iter().map(|p| b.load(*p, i)).collect();
    let v = f(&mut b, &args);
    b.store(to, i, v);
    b.finish()
}

fn map_kernel(f: ScalarFn, d: DType, n: i64) -> Kernel {
    let types = if f == ScalarFn::Where { vec![DType::Bool, d, d] } else { vec![d; f.arity()] };
    kernel(f.name(), &types, if f.out() == Out::Bool { DType::Bool } else { d }, n, |b, x| b.map(f, x))
}

/// Distance in units in the last place, subnormal results counting as nothing: devices may flush them.
fn ulps(d: DType, got: Num, want: Num) -> f64 {
    let (g, w) = (got.as_f64(), want.as_f64());
    if !d.is_float() {
        return if got == want { 0.0 } else { f64::INFINITY };
    }
    if g == w || (g.is_nan() && w.is_nan()) {
        return 0.0;
    }
    let (digits, least) = match d {
        DType::F64 => (52, -1022),
        DType::F32 => (23, -126),
        DType::F16 => (10, -24),
        DType::BF16 => (7, -126),
        d => Format::of(d).map_or((0, -127), |f| (f.mantissa as i32, 1 - f.bias - f.mantissa as i32)),
    };
    let exponent = if w == 0.0 { least } else { (w.abs().log2().floor() as i32).max(least) - digits };
    (g - w).abs() / 2f64.powi(exponent)
}

/// Computed functions may be off by a few units; everything else is exact.
fn tolerance(f: ScalarFn, x: f64) -> f64 {
    use ScalarFn::*;
    match f {
        // Reduction by three parts of pi/4 reaches so far.
        Sin | Cos | Tan if x.abs() > 8192.0 => f64::INFINITY,
        Sin | Cos | Tan => 32.0,
        Exp | Log | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh | Erf | Sigmoid | Pow | Atan2 => 6.0,
        Mod => 1.0,
        _ => 0.0,
    }
}

#[test]
fn every_function_on_every_type() {
    let (mut wrong, mut on_host) = (vec![], vec![]);
    for d in DType::ALL {
        let e = edges(d);
        let pairs: Vec<(Num, Num)> = e.iter().flat_map(|a| e.iter().map(move |b| (*a, *b))).collect();
        let cond: Vec<Num> = (0..pairs.len()).map(|i| Num::B(i % 3 == 0)).collect();
        let (a, b): (Vec<Num>, Vec<Num>) = pairs.into_iter().unzip();
        for f in ScalarFn::ALL.iter().copied().filter(|f| f.domain().contains(d)) {
            let out = if f.out() == Out::Bool { DType::Bool } else { d };
            let mut buffers = match f.arity() {
                1 => vec![bytes(d, &a)],
                2 => vec![bytes(d, &a), bytes(d, &b)],
                _ => vec![bytes(DType::Bool, &cond), bytes(d, &a), bytes(d, &b)],
            };
            buffers.push(vec![0xff; a.len() * out.bytes()]);
            let k = map_kernel(f, d, a.len() as i64);
            if let Err(why) = launch(&k, a.len() as i64, &[], &mut buffers) {
                on_host.push((f, d, why));
                continue;
            }
            for (i, got) in numbers(out, &buffers[buffers.len() - 1]).into_iter().enumerate() {
                let args = if f == ScalarFn::Where { vec![cond[i], a[i], b[i]] } else { vec![a[i], b[i]][..f.arity()].to_vec() };
                let want = f.eval(d, &args);
                // Devices may take subnormal numbers for zero, or lose digits of them.
                let subnormal = |x: &Num| d == DType::F32 && x.as_f64() != 0.0 && x.as_f64().abs() < f64::from(f32::MIN_POSITIVE);
                if matches!(f, ScalarFn::Mod | ScalarFn::Fmod | ScalarFn::Pow) && args.iter().chain([&want]).any(subnormal) {
                    continue;
                }
                let error = ulps(out, got, want);
                if error > tolerance(f, a[i].as_f64()) {
                    wrong.push(format!("{} of {} {args:?}: {got:?}, not {want:?} ({error} units)", f.name(), d.name()));
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
    // Only what has no 64-bit instructions.
    assert!(on_host.iter().all(|(_, d, _)| *d == DType::F64) && on_host.len() < 25, "{on_host:?}");
}

#[test]
fn every_cast() {
    let mut wrong = vec![];
    for from in DType::ALL {
        let x = edges(from);
        for to in DType::ALL {
            let k = kernel("cast", &[from], to, x.len() as i64, |b, x| b.cast(to, x[0]));
            let mut buffers = vec![bytes(from, &x), vec![0xff; x.len() * to.bytes()]];
            launch(&k, x.len() as i64, &[], &mut buffers).expect("casts are on the device");
            for (x, got) in x.iter().zip(numbers(to, &buffers[1])) {
                // NaN to an integer is not defined.
                let undefined = x.as_f64().is_nan() && !to.is_float();
                if ulps(to, got, x.cast(to)) > 0.0 && !undefined {
                    wrong.push(format!("{} to {}: {x:?} gives {got:?}, not {:?}", from.name(), to.name(), x.cast(to)));
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}
