//! Libraries, objects and archives, loaded as users load them.

use super::machine::{Slot, Workspace, run, text};
use nnc_backends::abi::{self, Functions, Host, Tensor as Raw};
use nnc_backends::cpu::{Options, Weights, compile, compile_jit, native_target};
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::{Access, Buffer, BufferId, BufferRef, Launch, Place, Port, Program, Step};
use nnc_ir::scalar::ScalarFn;
use nnc_ir::target::{Isa, Target};
use nnc_ir::{DType, Dim, Loc, Tensor, Type};
use std::path::Path;
use std::process::Command;

/// y[N, 3] = tan(x[N, 3] + w[3]) for a symbolic N, by two kernels with a workspace between them; tan is libm's.
fn program() -> Program {
    let n = Dim::sym("N");
    let ty = Type::new(DType::F32, vec![n.clone(), Dim::Const(3)]);
    let elems = ty.elems();
    let mut add = KernelBuilder::new("add", 1);
    let s0 = Dim::sym("s0");
    let len = s0.clone() * Dim::Const(3);
    let (x, w, t) = (
        add.param(DType::F32, Access::Read, len.clone()),
        add.param(DType::F32, Access::Read, Dim::Const(3)),
        add.param(DType::F32, Access::Write, len.clone()),
    );
    let task = add.tasks(s0);
    let three = add.int(3);
    add.for_each(three, |b, j| {
        let three = b.int(3);
        let row = b.mul(task, three);
        let i = b.add(row, j);
        let (x, w) = (b.load(x, i), b.load(w, j));
        let v = b.add(x, w);
        b.store(t, i, v);
    });
    let mut tan = KernelBuilder::new("tan", 1);
    let (t, y) = (tan.param(DType::F32, Access::Read, len.clone()), tan.param(DType::F32, Access::Write, len.clone()));
    let end = tan.dim(&len);
    tan.for_each(end, |b, i| {
        let v = b.load(t, i);
        let v = b.map(ScalarFn::Tan, &[v]);
        b.store(y, i, v);
    });
    let buffer = |elems: &Dim, place| Buffer { dtype: DType::F32, elems: elems.clone(), place };
    let at = |b| BufferRef { buffer: BufferId(b), offset: Dim::Const(0) };
    let launch = |kernel, buffers, name: &str| {
        Step::Launch(Launch { kernel, buffers, sizes: vec![n.clone()], flops: Dim::Const(0), name: name.into(), loc: Loc::Unknown })
    };
    Program {
        name: "little".into(),
        inputs: vec![Port { name: "x".into(), ty: ty.clone(), buffer: BufferId(0) }],
        outputs: vec![Port { name: "y".into(), ty, buffer: BufferId(1) }],
        buffers: vec![
            buffer(&elems, Place::Input(0)),
            buffer(&elems, Place::Output(0)),
            buffer(&Dim::Const(3), Place::Weight { offset: 64 }),
            buffer(&elems, Place::Work { offset: Dim::Const(0) }),
        ],
        kernels: vec![add.finish(), tan.finish()],
        steps: vec![launch(0, vec![at(0), at(2), at(3)], "first"), launch(1, vec![at(3), at(1)], "second")],
        weights: vec![(64, Tensor::new(&[3], &[0.5f32, 0.25, -1.0]))],
        heap: 0,
        workspace: (n.clone() * Dim::Const(12) + Dim::Const(63)).floor_div(&Dim::Const(64)) * Dim::Const(64),
        flops: n * Dim::Const(6),
    }
}

fn input(rows: usize) -> Tensor {
    let v: Vec<f32> = (0..rows * 3).map(|i| i as f32 * 0.01 - 0.5).collect();
    Tensor::new(&[rows, 3], &v)
}

fn want(rows: usize) -> Vec<f32> {
    let w = [0.5f32, 0.25, -1.0];
    input(rows).to_vec::<f32>().expect("f32").iter().enumerate().map(|(i, x)| f64::from(x + w[i % 3]).tan() as f32).collect()
}

fn close(y: &Tensor, want: &[f32]) {
    let y = y.to_vec::<f32>().expect("f32");
    assert_eq!(y.len(), want.len());
    y.iter().zip(want).for_each(|(a, b)| assert!((a - b).abs() <= 2e-7 * b.abs().max(1e-3), "{a} {b}"));
}

/// A loaded library and its functions.
pub struct Loaded {
    _library: libloading::Library,
    pub functions: Functions,
}

pub fn load(path: &Path, prefix: &str) -> Loaded {
    // SAFETY: a library that was just compiled; its constructors are none.
    unsafe {
        let library = libloading::Library::new(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = |n: &str| format!("{prefix}{n}");
        macro_rules! get {
            ($n:literal) => {
                *library.get(name($n).as_bytes()).expect($n)
            };
        }
        let functions = Functions {
            abi_version: get!("abi_version"),
            describe: get!("describe"),
            plan: get!("plan"),
            run: get!("run"),
            error: get!("error"),
            launches: None,
        };
        Loaded { _library: library, functions }
    }
}

pub fn library(p: &Program, t: &Target, o: &Options, dir: &Path) -> Loaded {
    let path = dir.join("model.so");
    let mut file = std::fs::File::create(&path).expect("create");
    compile(p, t, o, false).and_then(|c| c.write_so("model.so", &mut file)).expect("compiles");
    drop(file);
    load(&path, &o.prefix)
}

fn everything(f: &Functions) {
    // SAFETY: takes nothing.
    assert_eq!(unsafe { (f.abi_version)() }, 1);
    for rows in [1, 0, 5, 100] {
        let y = run(f, &[input(rows)], 1, None).expect("runs");
        assert_eq!(y[0].shape(), [rows, 3]);
        close(&y[0], &want(rows));
    }
    let wrong = |x: Tensor| run(f, &[x], 1, None).expect_err("must be refused");
    assert_eq!(wrong(Tensor::new(&[3], &[0f32; 3])), "input 0 `x`: its rank is not 2 (it is f32[N,3])");
    assert_eq!(wrong(Tensor::new(&[1, 3], &[0f64; 3])), "input 0 `x`: its dtype is not 1 (f32)");
    assert_eq!(wrong(Tensor::new(&[1, 4], &[0f32; 4])), "input 0 `x`: axis 1 is not 3");
    assert_eq!(text(f, -1), "an unknown error code");
    assert_eq!(text(f, 0), "success");
}

#[test]
fn the_same_through_memory_and_file() {
    let p = program();
    for t in [native_target(), Target::new(Isa::X86_64)] {
        everything(compile_jit(&p, &t, &Options::default()).expect("compiles").functions());
        let dir = tempfile::tempdir().expect("a folder");
        everything(&library(&p, &t, &Options { prefix: "tiny_".into(), ..Options::default() }, dir.path()).functions);
    }
}

#[test]
fn external_weights() {
    let p = program();
    let o = Options { weights: Weights::External, ..Options::default() };
    let t = native_target();
    let c = compile(&p, &t, &o, false).expect("compiles");
    let mut weights = vec![];
    assert_eq!(c.write_weights(&mut weights).expect("writes"), 76);
    // One byte more, so that what is not aligned has as many bytes.
    let mut memory = Workspace::new(weights.len() + 1);
    let address = memory.ptr().cast::<u8>();
    // SAFETY: the memory is at least as long.
    unsafe { address.copy_from(weights.as_ptr(), weights.len()) };
    let host = |shift: usize, bytes: usize| Host { weights: address.wrapping_add(shift).cast(), weights_bytes: bytes, ..Host::default() };
    let jit = compile_jit(&p, &t, &o).expect("compiles");
    let given = |host: Option<&Host>| run(jit.functions(), &[input(4)], 1, host);
    close(&given(Some(&host(0, weights.len()))).expect("runs")[0], &want(4));
    let missing = "the weights are external: nnc_host.weights must point to all of them, 64-byte aligned";
    for wrong in [None, Some(&host(1, weights.len())), Some(&host(0, weights.len() - 1))] {
        assert_eq!(given(wrong).expect_err("must be refused"), missing);
    }
}

#[test]
fn outputs_of_another_type_are_refused() {
    let jit = compile_jit(&program(), &native_target(), &Options::default()).expect("compiles");
    let f = jit.functions();
    let mut x = Slot::of(&input(4));
    let inputs = [Raw { data: x.data.as_mut_ptr().cast(), shape: x.shape.as_mut_ptr(), rank: 2, dtype: x.dtype }];
    let (mut shape, mut bytes) = ([0i64; 8], 0);
    let output =
        |dtype: i32, data: &mut [u8], shape: &mut [i64; 8]| [Raw { data: data.as_mut_ptr().cast(), shape: shape.as_mut_ptr(), rank: 8, dtype }];
    let mut y = vec![7u8; 4 * 4 * 16];
    // SAFETY: the arrays are as long as the model's lists; the plan says how large outputs and workspace are.
    let code = unsafe { (f.plan)(inputs.as_ptr(), output(0, &mut y, &mut shape).as_mut_ptr(), &mut bytes) };
    assert_eq!(code, abi::OK);
    let mut workspace = Workspace::new(bytes);
    for (dtype, want) in [(10, abi::ERROR_DTYPE), (-1, abi::ERROR_DTYPE), (0, abi::OK), (1, abi::OK)] {
        let mut outputs = output(dtype, &mut y, &mut shape);
        // SAFETY: as above.
        let code = unsafe { (f.run)(inputs.as_ptr(), outputs.as_mut_ptr(), workspace.ptr(), std::ptr::null()) };
        assert_eq!(code, want, "a dtype of {dtype}");
        assert_eq!(y.iter().all(|b| *b == 7), want != abi::OK, "nothing is written where the call is refused");
    }
    assert_eq!(text(f, abi::ERROR_DTYPE), "an output's dtype is neither 0 nor the output's type");
}

/// A C program that loads (or is linked with) a model and prints what it computes.
const MAIN: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include "model.h"
int main(void) {
  float x[6] = {0, 0.1f, 0.2f, 0.3f, 0.4f, 0.5f};
  int64_t shape[2] = {2, 3}, out_shape[2];
  nnc_tensor in = {x, shape, 2, 1}, out = {0, out_shape, 2, 0};
  size_t bytes;
  int32_t code = nnc_plan(&in, &out, &bytes);
  if (code) { puts(nnc_error(code)); return 1; }
  void *w = aligned_alloc(64, (bytes + 63) / 64 * 64);
  float y[6];
  out.data = y;
  code = nnc_run(&in, &out, w, 0);
  if (code) { puts(nnc_error(code)); return 1; }
  for (int i = 0; i < 6; i++) printf("%.9g\n", y[i]);
  return out.shape[0] == 2 && out.shape[1] == 3 && nnc_abi_version() == NNC_ABI_VERSION ? 0 : 2;
}
"#;

fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no {tool}");
    }
    found
}

#[test]
fn c_programs_link_and_run() {
    if !have("cc") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let at = |n: &str| dir.path().join(n);
    let (p, t, o) = (program(), native_target(), Options::default());
    let c = compile(&p, &t, &o, false).expect("compiles");
    std::fs::write(at("main.c"), MAIN).expect("writes");
    std::fs::write(at("model.h"), c.header()).expect("writes");
    for (name, write) in [
        (
            "libmodel.so",
            &(|f: &mut std::fs::File| c.write_so("libmodel.so", f).map(|()| f.metadata().expect("metadata").len()))
                as &dyn Fn(&mut std::fs::File) -> nnc_ir::Result<u64>,
        ),
        ("model.o", &|f| c.write_object(f)),
        ("libmodel.a", &|f| c.write_archive(f)),
    ] {
        let mut f = std::fs::File::create(at(name)).expect("create");
        let bytes = write(&mut f).expect("writes");
        assert_eq!(f.metadata().expect("metadata").len(), bytes, "{name}");
    }
    let want = want_of_main();
    let rpath = format!("-Wl,-rpath,{}", dir.path().display());
    let so = at("linked.so");
    let shared = Command::new("cc").args(["-shared", "-o"]).arg(&so).arg(at("model.o")).arg("-lm").output().expect("cc");
    assert!(shared.status.success(), "{}", String::from_utf8_lossy(&shared.stderr));
    for lib in ["libmodel.so", "model.o", "libmodel.a", "linked.so"] {
        let exe = at("main");
        let cc = Command::new("cc")
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&exe)
            .arg(at("main.c"))
            .arg(at(lib))
            .args([&rpath, "-lm"])
            .output();
        let cc = cc.expect("cc");
        assert!(cc.status.success(), "{lib}: {}", String::from_utf8_lossy(&cc.stderr));
        let out = Command::new(&exe).output().expect("runs");
        assert!(out.status.success(), "{lib}: {out:?}");
        let got: Vec<f32> = String::from_utf8_lossy(&out.stdout).lines().map(|l| l.parse().expect("a number")).collect();
        got.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{lib}: {a} {b}"));
    }
    let deps = Command::new("ldd").arg(at("libmodel.so")).output().expect("ldd");
    let deps = String::from_utf8_lossy(&deps.stdout).into_owned();
    assert!(deps.lines().all(|l| ["linux-vdso", "libm.so", "libc.so", "ld-linux"].iter().any(|n| l.contains(n))), "{deps}");
}

fn want_of_main() -> Vec<f32> {
    let w = [0.5f32, 0.25, -1.0];
    (0..6).map(|i| (i as f32 * 0.1 + w[i % 3]).tan()).collect()
}

#[test]
fn text_of_functions() {
    let (p, o) = (program(), Options::default());
    let t = native_target();
    let c = compile(&p, &t, &o, true).expect("compiles");
    let clif = c.clif().expect("was asked for");
    assert!(clif.contains("nnc_run") && clif.contains("br_table"), "{clif}");
    let assembly = c.assembly().expect("x86");
    assert!(assembly.contains("k0.first:") && assembly.contains("ret"), "{assembly}");
}

#[test]
fn aarch64_compiles() {
    let (p, o) = (program(), Options::default());
    let t = Target::new(Isa::Aarch64);
    let c = compile(&p, &t, &o, false).expect("compiles");
    let mut object = vec![];
    assert!(c.write_object(&mut object).expect("writes") > 1000);
    let mut library = vec![];
    c.write_so("x.so", &mut library).expect("writes");
    assert_eq!(library[18], 183, "EM_AARCH64");
}
