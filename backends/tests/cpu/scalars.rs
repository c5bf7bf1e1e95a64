//! Every scalar function on every type, and every cast, against the reference on values that sit on the edges.

use super::machine::run;
use nnc_backends::cpu::{Options, compile_jit, native_target};
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::{Access, Buffer, BufferId, BufferRef, Kernel, Launch, Place, Port, Program, Step};
use nnc_ir::minifloat::Format;
use nnc_ir::scalar::{Num, Out, ScalarFn};
use nnc_ir::target::{Isa, Target};
use nnc_ir::tensor::low_bits;
use nnc_ir::{DType, Dim, Loc, Tensor, Type};

/// A program with one launch a kernel; kernel i reads the inputs that it is given and writes output i.
fn program(inputs: &[Type], kernels: Vec<(Kernel, Vec<u32>, Type)>) -> Program {
    let mut p = Program { name: "test".into(), ..Program::default() };
    let port = |p: &mut Program, name: String, ty: &Type, place: Place| {
        p.buffers.push(Buffer { dtype: ty.dtype, elems: ty.elems(), place });
        Port { name: name.into(), ty: ty.clone(), buffer: BufferId(p.buffers.len() as u32 - 1) }
    };
    for (i, ty) in inputs.iter().enumerate() {
        let x = port(&mut p, format!("x{i}"), ty, Place::Input(i as u32));
        p.inputs.push(x);
    }
    for (i, (k, reads, ty)) in kernels.into_iter().enumerate() {
        let y = port(&mut p, format!("y{i}"), &ty, Place::Output(i as u32));
        let buffers = reads.iter().map(|r| BufferId(*r)).chain([y.buffer]);
        let buffers = buffers.map(|buffer| BufferRef { buffer, offset: Dim::Const(0) }).collect();
        p.outputs.push(y);
        p.steps.push(Step::Launch(Launch {
            kernel: i as u32,
            buffers,
            sizes: vec![],
            flops: Dim::Const(0),
            name: k.name.clone(),
            loc: Loc::Unknown,
        }));
        p.kernels.push(k);
    }
    p
}

fn edges(d: DType) -> Vec<Num> {
    let mut v: Vec<Num> = if d.is_float() {
        let tiny = [5e-324, 1e-310, 1.4e-45, 1e-40, 5.9e-8, 2.9e-8, 3.1e-5, 6e-5, 1e-7, 1e-3];
        let mid = [0.0, 0.1, 0.25, 0.5, 0.624, 0.626, 0.75, 0.999, 1.0, 1.5, 2.0, 2.5, 3.0, 3.9, 4.1, 7.3, 10.0, 17.0, 88.0, 89.5, 100.0, 104.5];
        let big = [
            127.5,
            255.5,
            2048.0,
            2049.0,
            32768.0,
            65503.9,
            65519.9,
            65520.0,
            65536.0,
            1e6,
            2147483648.0,
            1e10,
            9.3e18,
            1.9e19,
            1e30,
            3.39e38,
            1e39,
            1e300,
        ];
        let ties = [1.0 + 2f64.powi(-8) + 2f64.powi(-40), 1.0 + 2f64.powi(-11) + 2f64.powi(-40), 1.0 + 2f64.powi(-24) + 2f64.powi(-50)];
        let all: Vec<f64> = tiny.into_iter().chain(mid).chain(big).chain(ties).collect();
        all.iter().flat_map(|x| [*x, -*x]).chain([f64::INFINITY, f64::NEG_INFINITY, f64::NAN]).map(Num::F).collect()
    } else if d == DType::Bool {
        vec![Num::B(false), Num::B(true)]
    } else {
        let ends = [i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1, i32::MIN.into(), i32::MAX.into(), -129, -128, 127, 128, 255, 256, 65535, -32768];
        let mid = [0, 1, -1, 2, -2, 3, -3, 5, 7, -7, 8, 10, 15, 16, 31, 32, 33, 63, 64, 100, -100];
        ends.into_iter().chain(mid).map(Num::I).collect()
    };
    v.iter_mut().for_each(|n| *n = n.cast(d));
    v
}

fn tensor(d: DType, v: &[Num]) -> Tensor {
    let mut bytes = vec![];
    v.iter().for_each(|n| n.write(d, &mut bytes));
    Tensor::from_bytes(d, vec![v.len()], bytes.into()).expect("as long as it is")
}

/// All pairs of edge values; the condition of `where` alternates.
fn operands(d: DType) -> [Tensor; 3] {
    let e = edges(d);
    let pairs: Vec<(Num, Num)> = e.iter().flat_map(|a| e.iter().map(move |b| (*a, *b))).collect();
    let cond: Vec<Num> = (0..pairs.len()).map(|i| Num::B(i % 3 == 0)).collect();
    let (a, b): (Vec<Num>, Vec<Num>) = pairs.into_iter().unzip();
    [tensor(d, &a), tensor(d, &b), tensor(DType::Bool, &cond)]
}

fn map_kernel(f: ScalarFn, d: DType, n: i64) -> Kernel {
    let mut b = KernelBuilder::new(f.name(), 0);
    let out = if f.out() == Out::Bool { DType::Bool } else { d };
    let types: Vec<DType> = if f == ScalarFn::Where { vec![DType::Bool, d, d] } else { vec![d; f.arity()] };
    let params: Vec<u32> = types.iter().map(|t| b.param(*t, Access::Read, n.into())).collect();
    let y = b.param(out, Access::Write, n.into());
    let end = b.int(n);
    b.for_each(end, |b, i| {
        let args: Vec<_> = params.iter().map(|p| b.load(*p, i)).collect();
        let v = b.map(f, &args);
        b.store(y, i, v);
    });
    b.finish()
}

/// Distance in units in the last place of `d`; where `loose`, subnormal results may be lost.
fn ulps(d: DType, got: f64, want: f64, loose: bool) -> f64 {
    if got == want || (got.is_nan() && want.is_nan()) {
        return 0.0;
    }
    let (digits, smallest) = match d {
        DType::F64 => (52, -1074),
        DType::F32 => (23, -149),
        DType::F16 => (10, -24),
        DType::BF16 => (7, -133),
        d => Format::of(d).map_or((0, -127), |f| (f.mantissa as i32, 1 - f.bias - f.mantissa as i32)),
    };
    let smallest = if loose { smallest + digits } else { smallest };
    let exponent = if want == 0.0 { smallest } else { (want.abs().log2().floor() as i32 - digits).max(smallest) };
    (got - want).abs() / 2f64.powi(exponent)
}

/// Allowed error: computed functions may be off by a few units, everything else is exact.
fn tolerance(f: ScalarFn) -> f64 {
    use ScalarFn::*;
    match f {
        Exp | Log | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh | Erf | Sigmoid | Pow | Atan2 => 5.0,
        Mod => 1.0,
        _ => 0.0,
    }
}

fn every_function(t: &Target) {
    for d in DType::ALL {
        let x = operands(d);
        let n = x[0].elems() as i64;
        let types = [Type::of(d, &[n]), Type::of(d, &[n]), Type::of(DType::Bool, &[n])];
        let functions: Vec<ScalarFn> = ScalarFn::ALL.iter().copied().filter(|f| f.domain().contains(d)).collect();
        let kernels = functions.iter().map(|f| {
            let reads = if *f == ScalarFn::Where { vec![2, 0, 1] } else { (0..f.arity() as u32).collect() };
            let out = if f.out() == Out::Bool { DType::Bool } else { d };
            (map_kernel(*f, d, n), reads, Type::of(out, &[n]))
        });
        let p = program(&types, kernels.collect());
        let jit = compile_jit(&p, t, &Options::default()).expect("compiles");
        let y = run(jit.functions(), &x, functions.len(), None).expect("runs");
        for (f, y) in functions.iter().zip(&y) {
            for i in 0..n as usize {
                let args: Vec<Num> =
                    if *f == ScalarFn::Where { vec![x[2].num(i), x[0].num(i), x[1].num(i)] } else { (0..f.arity()).map(|k| x[k].num(i)).collect() };
                let (got, want) = (y.num(i), f.eval(d, &args));
                let off = match (got, want) {
                    (Num::F(g), Num::F(w)) => ulps(d, g, w, tolerance(*f) > 0.0),
                    (g, w) => f64::from(u8::from(g != w)),
                };
                assert!(off <= tolerance(*f), "{}: {} of {d} {args:?}: got {got:?}, want {want:?}", t.name, f.name());
            }
        }
    }
}

#[test]
fn every_function_on_every_type() {
    every_function(&native_target());
}

#[test]
fn every_function_on_the_portable_target() {
    every_function(&Target::new(Isa::X86_64));
}

/// Kernels that convert `n` elements of `from` to each type.
fn casts(from: DType, n: i64) -> Vec<(Kernel, Vec<u32>, Type)> {
    let kernel = |to: &DType| {
        let mut b = KernelBuilder::new(format!("cast to {to}"), 0);
        let (p, q) = (b.param(from, Access::Read, n.into()), b.param(*to, Access::Write, n.into()));
        let end = b.int(n);
        b.for_each(end, |b, i| {
            let v = b.load(p, i);
            let v = b.cast(*to, v);
            b.store(q, i, v);
        });
        (b.finish(), vec![0], Type::of(*to, &[n]))
    };
    DType::ALL.iter().map(kernel).collect()
}

/// All codes of the narrow types, and all of f16 and bf16, to each small type: bit for bit, and the same NaN.
#[test]
fn every_code_to_every_narrow_type() {
    let small = |d: DType| d.is_small_float() || d.bits() < 8;
    let t = native_target();
    for from in DType::ALL.into_iter().filter(|d| small(*d) || matches!(d, DType::F16 | DType::BF16)) {
        let n = 1usize << from.bits();
        let code = |i: usize| if from.bits() < 8 { vec![low_bits(from, i as u8)] } else { (i as u16).to_le_bytes()[..from.bytes()].to_vec() };
        let x = Tensor::from_bytes(from, vec![n], (0..n).flat_map(code).collect::<Vec<u8>>().into()).expect("all codes");
        let p = program(&[x.ty()], casts(from, n as i64));
        let jit = compile_jit(&p, &t, &Options::default()).expect("compiles");
        let y = run(jit.functions(), std::slice::from_ref(&x), DType::ALL.len(), None).expect("runs");
        for (to, y) in DType::ALL.into_iter().zip(&y) {
            for i in 0..n {
                let given = x.num(i);
                // Integers that a float does not fit into are not defined, but the interpreter and native code agree.
                let want = given.cast(to);
                let mut bytes = vec![];
                want.write(to, &mut bytes);
                let nan = want.as_f64().is_nan();
                // Wider floats and E5M2 have several NaNs; moving an element keeps its own.
                let one_nan = to.is_small_float() && !matches!(to, DType::F8E5M2);
                let same = if nan && !one_nan { y.num(i).as_f64().is_nan() } else { y.element(i) == bytes };
                assert!(same, "{from} to {to}: code {i:#x} ({given:?}) gives {:?}, expected {bytes:?} ({want:?})", y.element(i));
            }
        }
    }
}

/// Around every tie of every small float, from f32 and f64: neighbours in f64 must not be rounded twice.
#[test]
fn ties_of_narrow_floats() {
    let t = native_target();
    let mut values = vec![];
    for d in DType::ALL.into_iter().filter(|d| d.is_small_float() && *d != DType::F8E8M0) {
        let largest = Format::of(d).expect("a format").largest();
        for code in 0..=largest {
            let (a, b) = (nnc_ir::minifloat::decode(d, code), nnc_ir::minifloat::decode(d, code.saturating_sub(1)));
            let middle = (a + b) / 2.0;
            values.extend([a, middle, middle * (1.0 + 1e-12), middle * (1.0 - 1e-12), middle * (1.0 + 1e-7), middle * (1.0 - 1e-7)]);
            values.extend([-middle, -middle * (1.0 + 1e-12), a + (a - b) / 2.0, (a + (a - b) / 2.0) * (1.0 + 1e-12)]);
        }
    }
    for from in [DType::F32, DType::F64] {
        let x = tensor(from, &values.iter().map(|v| Num::F(*v).cast(from)).collect::<Vec<_>>());
        let p = program(&[x.ty()], casts(from, x.elems() as i64));
        let jit = compile_jit(&p, &t, &Options::default()).expect("compiles");
        let y = run(jit.functions(), std::slice::from_ref(&x), DType::ALL.len(), None).expect("runs");
        for (to, y) in DType::ALL.into_iter().zip(&y).filter(|(to, _)| to.is_small_float()) {
            for i in 0..x.elems() {
                let mut bytes = vec![];
                x.num(i).cast(to).write(to, &mut bytes);
                assert_eq!(y.element(i), bytes, "{:?} from {from} to {to}", x.num(i));
            }
        }
    }
}

#[test]
fn every_cast() {
    for t in [native_target(), Target::new(Isa::X86_64)] {
        for from in DType::ALL {
            let x = tensor(from, &edges(from));
            let n = x.elems() as i64;
            let p = program(&[Type::of(from, &[n])], casts(from, n));
            let jit = compile_jit(&p, &t, &Options::default()).expect("compiles");
            let y = run(jit.functions(), std::slice::from_ref(&x), DType::ALL.len(), None).expect("runs");
            for (to, y) in DType::ALL.iter().zip(&y) {
                for i in 0..n as usize {
                    let (got, want) = (y.num(i), x.num(i).cast(*to));
                    let same = got == want || (got.as_f64().is_nan() && want.as_f64().is_nan());
                    assert!(same, "{}: {:?} from {from} to {to}: got {got:?}, want {want:?}", t.name, x.num(i));
                }
            }
        }
    }
}
