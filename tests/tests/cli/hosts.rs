//! Programs in C and Python, and many threads, on one compiled library: they give the JIT's numbers.

use crate::{folder, write};
use nnc::npy::{from_npy, read_npz, to_npy};
use nnc::threads::Pool;
use nnc::{Engine, Options, Session, Tensor};
use nnc_tests::command::call;
use nnc_tests::data::{numpy, root, skip};
use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// LeNet-5's shapes, small enough to be written out.
const CNN: &str = "module Conv(c, k) (x) {
  w = param [c, x.shape[1], k, k] ~ lecun
  b = param [c] ~ zeros
  return conv(x, w, b)
}

module Dense(n) (x) {
  w = param [n, x.shape[1]] ~ lecun
  b = param [n] ~ zeros
  return gemm(x, w, b, transB=1)
}

module Lenet (x: f32[1,1,28,28]) -> (y: f32[1,10]) {
  h = max_pool(tanh(Conv(6, 5)(x)), kernel_shape=[2, 2], strides=[2, 2])
  h = max_pool(tanh(Conv(16, 5)(h)), kernel_shape=[2, 2], strides=[2, 2])
  h = tanh(Dense(84)(flatten(h)))
  y = Dense(10)(h)
  return y
}
";

fn input() -> Tensor {
    let x: Vec<f32> = (0..28 * 28).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Tensor::new(&[1, 1, 28, 28], &x)
}

/// A folder with the model, its library, the input in every form, and the JIT's output.
fn compiled() -> (tempfile::TempDir, Vec<f64>) {
    let f = folder();
    let p = f.path();
    write(p, "model.nn", CNN);
    call(p, "compile model.nn -o model.so").ok();
    std::fs::write(p.join("x.npy"), to_npy(&input())).unwrap();
    std::fs::write(p.join("x.raw"), input().bytes()).unwrap();
    call(p, "run model.nn -i x.npy -o jit.npy --engine jit").ok();
    let y = from_npy(&std::fs::read(p.join("jit.npy")).unwrap()).unwrap().to_f64s();
    (f, y)
}

fn output(c: &mut Command) -> String {
    let done = c.output().expect("the program starts");
    assert!(done.status.success(), "{c:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn build(p: &Path, extra: &[&str]) {
    let include = root().join("runtime/include");
    let main = root().join("examples/c/main.c");
    let mut cc = Command::new("cc");
    cc.current_dir(p).args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-g", "-D_GNU_SOURCE", "-I."]).arg("-I").arg(include).arg(main);
    output(cc.args(extra).args(["./model.so", "-Wl,-rpath,$ORIGIN", "-lm", "-pthread", "-o", "run"]));
}

#[test]
fn c_program() {
    if Command::new("cc").arg("--version").output().is_err() {
        return skip("c_program", "there is no cc");
    }
    let (f, want) = compiled();
    build(f.path(), &[]);
    for threads in ["1", "2", "4"] {
        let text = output(Command::new("./run").current_dir(f.path()).args([threads, "x.raw"]));
        let got: Vec<f64> = text.lines().map(|l| f64::from(l.parse::<f32>().unwrap())).collect();
        assert_eq!(got, want, "{threads} threads");
    }
}

/// The C pool, on its own: each index once, loops in a row, sleeping workers, nested calls.
#[test]
fn c_pool() {
    if Command::new("cc").arg("--version").output().is_err() {
        return skip("c_pool", "there is no cc");
    }
    let (f, _) = compiled();
    write(
        f.path(),
        "pool.c",
        r#"#include "model.h"
#include "nnc_pool.h"
#include <stdio.h>
static int64_t hits[1000];
static nnc_pool *pool;
static void hit(void *arg, int64_t i) { (void)arg; __atomic_fetch_add(&hits[i], 1, __ATOMIC_RELAXED); }
static void nested(void *arg, int64_t i) { (void)i; nnc_pool_parallel_for(pool, 10, hit, arg); }
int main(void) {
  for (int threads = 1; threads <= 4; threads++) {
    pool = nnc_pool_create(threads);
    for (int round = 0; round < 200; round++) {
      if (round % 50 == 0) { struct timespec t = {0, 1000000}; nanosleep(&t, 0); }
      nnc_pool_parallel_for(pool, 1000, hit, 0);
    }
    nnc_pool_parallel_for(pool, 5, nested, 0);
    nnc_pool_destroy(pool);
  }
  for (int i = 0; i < 1000; i++) if (hits[i] != 800 + (i < 10 ? 20 : 0)) { printf("%d: %ld\n", i, (long)hits[i]); return 1; }
  return 0;
}
"#,
    );
    let mut cc = Command::new("cc");
    cc.current_dir(f.path()).args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-D_GNU_SOURCE", "-I."]);
    output(cc.arg("-I").arg(root().join("runtime/include")).args(["pool.c", "-pthread", "-o", "pool"]));
    output(Command::new("./pool").current_dir(f.path()).args([] as [&str; 0]));
}

/// Code for Arm, by the C program on an emulated processor: the interpreter's numbers.
#[test]
fn aarch64_program() {
    const CC: &str = "aarch64-linux-gnu-gcc";
    let missing = [CC, "qemu-aarch64"].into_iter().find(|c| Command::new(c).arg("--version").output().is_err());
    if let Some(command) = missing {
        return skip("aarch64_program", &format!("there is no {command} (Debian: qemu-user, gcc-aarch64-linux-gnu)"));
    }
    for (model, shape) in [("lenet5", [1, 1, 28, 28]), ("squeezenet1_1", [1, 3, 224, 224])] {
        let f = folder();
        let p = f.path();
        let file = root().join("examples").join(model).with_extension("nn");
        let x: Vec<f32> = (0..shape.iter().product()).map(|i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let x = Tensor::new(&shape, &x);
        std::fs::write(p.join("x.npy"), to_npy(&x)).unwrap();
        std::fs::write(p.join("x.raw"), x.bytes()).unwrap();
        call(p, &format!("run {} -i x.npy -o want.npy --engine interp", file.display())).ok();
        let want = from_npy(&std::fs::read(p.join("want.npy")).unwrap()).unwrap().to_f64s();
        call(p, &format!("compile {} --dim N=1 --target aarch64 -o model.so", file.display())).ok();
        let mut cc = Command::new(CC);
        cc.current_dir(p).args(["-O2", "-D_GNU_SOURCE", "-I.", "-I"]).arg(root().join("runtime/include"));
        cc.arg(format!("-DSHAPE={{{},{},{},{}}}", shape[0], shape[1], shape[2], shape[3]));
        output(cc.arg(root().join("examples/c/main.c")).args(["./model.so", "-Wl,-rpath,$ORIGIN", "-lm", "-pthread", "-o", "run"]));
        let text = output(Command::new("qemu-aarch64").current_dir(p).args(["-L", "/usr/aarch64-linux-gnu", "./run", "2", "x.raw"]));
        let got: Vec<f64> = text.lines().map(|l| f64::from(l.parse::<f32>().unwrap())).collect();
        let most = want.iter().fold(0.0, |m: f64, y| m.max(y.abs()));
        assert_eq!(got.len(), want.len(), "{model}");
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-5 * most), "{model}: {got:?} {want:?}");
    }
}

/// A library for all machines holds AVX-512 and AVX2: emulated processors without the first take the second, one without either says
/// so.
#[test]
fn a_library_chooses_its_code_when_it_is_loaded() {
    const QEMU: &str = "qemu-x86_64";
    if !cfg!(target_arch = "x86_64") || Command::new(QEMU).arg("--version").output().is_err() || Command::new("cc").arg("--version").output().is_err()
    {
        return skip("a_library_chooses_its_code_when_it_is_loaded", &format!("there is no {QEMU} (Debian: qemu-user) or no cc"));
    }
    let (f, _) = compiled();
    let p = f.path();
    build(p, &[]);
    call(p, "run model.nn -i x.npy -o want.npy --engine interp").ok();
    let want = from_npy(&std::fs::read(p.join("want.npy")).unwrap()).unwrap().to_f64s();
    // QEMU knows AVX2, and no AVX-512.
    let text = output(Command::new(QEMU).current_dir(p).args(["-cpu", "max", "./run", "1", "x.raw"]));
    let got: Vec<f64> = text.lines().map(|l| f64::from(l.parse::<f32>().unwrap())).collect();
    assert!(got.len() == want.len() && got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5), "{got:?} {want:?}");
    let old = Command::new(QEMU).current_dir(p).args(["-cpu", "Nehalem", "./run", "1", "x.raw"]).output().unwrap();
    let message = String::from_utf8_lossy(&old.stderr).into_owned();
    assert!(!old.status.success() && message.contains("the processor lacks an instruction set"), "{message}");
}

#[test]
fn python_program() {
    let numpy = match numpy() {
        Ok(folder) => folder,
        Err(why) => return skip("python_program", &why),
    };
    let (f, want) = compiled();
    let script = root().join("examples/python/run.py");
    output(Command::new("python3").current_dir(f.path()).env("PYTHONPATH", numpy).arg(script).args(["model.so", "x.npy", "-o", "out.npz"]));
    let got = read_npz(Cursor::new(std::fs::read(f.path().join("out.npz")).unwrap())).unwrap();
    assert_eq!(got[0].1.to_f64s(), want);
}

#[test]
fn eight_threads_on_one_library() {
    let (f, want) = compiled();
    let pool = Arc::new(Pool::new(2));
    let session = Session::open(&f.path().join("model.so"), "nnc_", pool).unwrap();
    let x = input();
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(session.run(std::slice::from_ref(&x)).unwrap()[0].to_f64s(), want);
                }
            });
        }
    });
}

#[test]
fn three_lines_of_rust() {
    let (f, want) = compiled();
    for file in ["model.nn", "model.so"] {
        let model = nnc::compile(f.path().join(file)).unwrap();
        assert_eq!(model.run(&[input()]).unwrap()[0].to_f64s(), want, "{file}");
    }
    let options = Options { engine: Engine::Interpreter, ..Options::default() };
    let y = nnc::compile_with(f.path().join("model.nn"), &options).unwrap().run(&[input()]).unwrap()[0].to_f64s();
    assert!(y.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{y:?} {want:?}");
    let report = nnc::compile(f.path().join("missing.nn")).err().unwrap();
    assert_eq!(report.0[0].code().text(), "E0102");
    let model = nnc::compile(f.path().join("model.nn")).unwrap();
    assert_eq!(model.run(&[]).unwrap_err().code().text(), "E0301");
}

#[test]
fn valgrind_finds_nothing() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip("valgrind_finds_nothing", "there is no valgrind");
    }
    let f = folder();
    write(f.path(), "model.nn", CNN);
    // Valgrind does not know AVX-512.
    call(f.path(), "compile model.nn -o model.so --target x86-64").ok();
    build(f.path(), &[]);
    output(Command::new("valgrind").current_dir(f.path()).args(["-q", "--error-exitcode=9", "--leak-check=full", "./run", "1"]));
}
