//! What `compile` writes, and what it never leaves behind.

use crate::{folder, json, names, write};
use nnc::npy::read_npz;
use nnc_tests::command::call;
use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn a_library_and_its_header() {
    let f = folder();
    let p = f.path();
    call(p, "compile mlp.nn -o m.so").ok();
    assert_eq!(names(p), ["m.h", "m.so", "mlp.nn"]);
    assert_eq!(std::fs::metadata(p.join("m.so")).unwrap().permissions().mode() & 0o500, 0o500);
    // One library serves every batch.
    for n in [1, 3, 8] {
        call(p, &format!("run mlp.nn --dim N={n} -i x=random:{n} --engine interp -o want.npz")).ok();
        call(p, &format!("run m.so --dim N={n} -i x=random:{n} -o got.npz --expect want.npz --rtol 1e-5")).ok();
    }
    call(p, "run m.so -i x=random:1 --shape x:2x5").fails(2, &["E0301", "f32[N,4]"]);
    call(p, "run m.so -i x=random:1 --dim N=2 --engine interp").fails(2, &["compiled already"]);
    let v = json(&call(p, "info m.so --json").ok());
    assert_eq!(v["format"], "library");
    assert_eq!(v["inputs"][0]["shape"], serde_json::json!(["N", 4]));
    let v = json(&call(p, "bench m.so --shape x:2x4 --duration 0.02 --json --dump d.npz").ok());
    assert_eq!(v["compile_ms"], 0.0);
    assert!(p.join("d.npz").exists());
}

#[test]
fn a_library_needs_nothing_but_libc_and_libm() {
    let f = folder();
    call(f.path(), "compile mlp.nn -o m.so").ok();
    let ldd = Command::new("ldd").arg(f.path().join("m.so")).output();
    let Ok(ldd) = ldd else { return nnc_tests::data::skip("ldd", "there is no ldd") };
    let text = String::from_utf8_lossy(&ldd.stdout).into_owned();
    let foreign: Vec<&str> =
        text.lines().filter(|l| !["libc.", "libm.", "ld-linux", "linux-vdso", "statically"].iter().any(|n| l.contains(n))).collect();
    assert!(foreign.is_empty(), "{text}");
}

#[test]
fn constants_in_a_file_of_their_own() {
    let f = folder();
    let p = f.path();
    call(p, "compile mlp.nn -o m.so --weights external").ok();
    assert_eq!(names(p), ["m.h", "m.so", "m.weights", "mlp.nn"]);
    call(p, "run mlp.nn --dim N=2 -i x=random:1 --engine interp -o want.npz").ok();
    call(p, "run m.so --dim N=2 -i x=random:1 -o got.npz --expect want.npz").ok();
    std::fs::remove_file(p.join("m.weights")).unwrap();
    call(p, "run m.so --dim N=2 -i x=random:1").fails(2, &["E0102", "m.weights"]);
}

#[test]
fn prefixes() {
    let f = folder();
    let p = f.path();
    call(p, "compile mlp.nn -o m.so --prefix mlp_").ok();
    assert!(std::fs::read_to_string(p.join("m.h")).unwrap().contains("mlp_run("));
    call(p, "run m.so -i x=ones --dim N=1").fails(2, &["nnc_abi_version", "--prefix"]);
    call(p, "run m.so -i x=ones --dim N=1 --prefix mlp_").ok();
    call(p, "compile mlp.nn -o n.so --prefix 1+1").fails(2, &["--prefix"]);
}

#[test]
fn every_text() {
    let f = folder();
    let p = f.path();
    let text = |name: &str| std::fs::read_to_string(p.join(name)).unwrap();
    call(p, "compile mlp.nn -o m.h").ok();
    assert!(text("m.h").contains("int32_t     nnc_run(const nnc_tensor *inputs"));
    call(p, "compile mlp.nn -o m.clif").ok();
    assert!(text("m.clif").contains("function") && text("m.clif").contains("block0"));
    call(p, "compile mlp.nn -o m.s").ok();
    assert!(text("m.s").contains("nnc_run") && text("m.s").contains("ret"));
    call(p, "compile mlp.nn -o m.nn").ok();
    call(p, "verify m.nn --dim N=2").ok();
    assert!(call(p, "compile mlp.nn --emit h -o -").ok().contains("nnc_plan"));
    let stats = json(&call(p, "compile mlp.nn -o m.so --stats json").ok());
    assert!(stats["kernels"].as_u64().is_some_and(|k| k > 0) && stats["file_bytes"].as_u64().is_some_and(|b| b > 1000), "{stats}");
    assert!(stats["passes"].as_array().is_some_and(|p| !p.is_empty()));
    call(p, "compile mlp.nn -o m.so --opt-report=report.txt").ok();
    assert!(text("report.txt").contains("kernel "), "{}", text("report.txt"));
}

#[test]
fn other_machines() {
    let f = folder();
    let done = call(f.path(), "compile mlp.nn -o arm.so --target aarch64");
    if cfg!(target_arch = "aarch64") {
        return nnc_tests::data::skip("other_machines", "this machine is the other one");
    }
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.err.contains("does not run"), "{}", done.err);
    call(f.path(), "run arm.so -i x=ones --dim N=1").fails(2, &["E0102", "arm.so"]);
    call(f.path(), "run mlp.nn -i x=ones --dim N=1 --target aarch64").fails(2, &["E0201", "aarch64"]);
    call(f.path(), "compile mlp.nn -o base.so --target x86-64").ok();
    call(f.path(), "run base.so -i x=ones --dim N=1").ok();
}

#[test]
fn nothing_partial_is_left() {
    let f = folder();
    let p = f.path();
    write(p, "bad.nn", "module m(x: f32[2,3]) -> f32[2,3] {\n  return matmul(x, x)\n}\n");
    call(p, "compile bad.nn -o m.so").fails(2, &["E0203"]);
    std::fs::create_dir(p.join("sub")).unwrap();
    std::fs::create_dir(p.join("taken.so")).unwrap();
    call(p, "compile mlp.nn -o taken.so").fails(2, &["E0102", "taken.so"]);
    write(p, "old.so", "what was here before");
    call(p, "compile bad.nn -o old.so").fails(2, &["E0203"]);
    assert_eq!(std::fs::read_to_string(p.join("old.so")).unwrap(), "what was here before");
    assert_eq!(names(p), ["bad.nn", "mlp.nn", "old.so", "sub", "taken.so"]);
}

#[test]
fn objects_and_archives_link() {
    let f = folder();
    let p = f.path();
    let Ok(_) = Command::new("cc").arg("--version").output() else { return nnc_tests::data::skip("objects_and_archives_link", "there is no cc") };
    call(p, "compile mlp.nn -o one.o --prefix one_").ok();
    call(p, "compile mlp.nn -o two.a --prefix two_").ok();
    write(
        p,
        "main.c",
        "#include <stdio.h>\nint one_abi_version(void); int two_abi_version(void);\nconst char *one_describe(void); const char *two_describe(void);\n\
         int main(void) { printf(\"%d %d\\n%s\\n%s\\n\", one_abi_version(), two_abi_version(), one_describe(), two_describe()); return 0; }\n",
    );
    let cc = Command::new("cc").current_dir(p).args(["main.c", "one.o", "two.a", "-lm", "-o", "main"]).output().unwrap();
    assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
    let out = String::from_utf8(Command::new(p.join("main")).output().unwrap().stdout).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[1]), ("1 1", lines[2]));
    assert_eq!(json(lines[1])["name"], "mlp");
}

/// Weights go from the mapped model to the library one at a time: packed ones, and those of minimal filtering, are never all in
/// memory.
#[test]
fn compiling_takes_little_more_memory_than_the_model() {
    let f = folder();
    let p = f.path();
    let mut text = String::from("module net(x: f32[1,256,14,14]) -> (y: f32[1,1000]) {\n  h0 = x\n");
    for i in 0..12 {
        text += &format!("  w{i} = param [256,256,3,3] ~ he\n  h{} = relu(conv(h{i}, w{i}, pads=[1,1,1,1]))\n", i + 1);
    }
    text += "  h = max_pool(h12, kernel_shape=[2, 2], strides=[2, 2])\n";
    text += "  w = param [12544,1000] ~ he\n  y = matmul(reshape(h, shape=[1,12544]), w)\n  return y\n}\n";
    write(p, "net.nn", &text);
    call(p, "export net.nn -o net.onnx").ok();
    let stats = json(&call(p, "compile net.onnx -o net.so --stats json").ok());
    let model = std::fs::metadata(p.join("net.onnx")).unwrap().len() as f64;
    let least = json(&call(p, "compile mlp.nn -o mlp.so --stats json").ok());
    // The program itself takes its share as well.
    let peak = stats["peak_rss_bytes"].as_f64().unwrap() - least["peak_rss_bytes"].as_f64().unwrap();
    let file = stats["file_bytes"].as_f64().unwrap();
    assert!(model > 7e7 && file > 1.2 * model, "model {model}, library {file}");
    assert!(peak <= 2.5 * model, "a peak of {peak} bytes for a model of {model}");
}

#[test]
fn tf32_takes_a_gpu() {
    let f = tempfile::tempdir().expect("a folder");
    let text = "module net(x: f32[64,64], w: f32[64,64]) -> (y: f32[64,64]) {\n  y = matmul(x, w)\n  return y\n}\n";
    std::fs::write(f.path().join("net.nn"), text).expect("written");
    call(f.path(), "compile net.nn --precision tf32 -o net.so").fails(2, &["the precision tf32 takes an NVIDIA GPU"]);
    call(f.path(), "compile net.nn --precision tf32 -o net.spv").fails(2, &["the precision tf32 takes an NVIDIA GPU"]);
    call(f.path(), "compile net.nn --precision tf32 -o net.ptx").ok();
}

/// Operands of convolutions and products rounded to bf16, sums in f32: near the interpreter's f32, with weights of half the bytes.
#[test]
fn bf16() {
    if !nnc_backends::cpu::has_bf16() {
        return nnc_tests::data::skip("bf16", "this processor has no avx512_bf16");
    }
    let f = folder();
    let p = f.path();
    write(
        p,
        "net.nn",
        "module net(x: f32[N,32,9,9]) -> (y: f32[N,48]) {
  w1 = param [64,32,1,1] ~ he
  h = relu(conv(x, w1))
  w2 = param [64,64,3,3] ~ he
  h = relu(conv(h, w2, pads=[1,1,1,1], strides=[2,2])) + conv(h, param [64,64,1,1] ~ he, strides=[2,2])
  w3 = param [96,64,5,3] ~ he
  h = reshape(conv(h, w3), shape=[0,-1])
  w4 = param [288,48] ~ he
  b4 = param [48] ~ zeros
  return matmul(h, w4) + b4
}
",
    );
    let bytes = |precision: &str| {
        let stats = json(&call(p, &format!("compile net.nn -o {precision}.so --precision {precision} --stats json")).ok());
        (stats["weight_bytes"].as_f64().unwrap(), stats["target"].as_str().unwrap().to_string())
    };
    let ((exact, _), (narrow, target)) = (bytes("exact"), bytes("bf16"));
    assert!(narrow < 0.52 * exact && target == "x86-64-v4,+avx512_bf16", "{narrow} of {exact} bytes for {target}");
    for n in [1, 5] {
        call(p, &format!("run net.nn -i x=random:1 --dim N={n} --engine interp -o want.npz")).ok();
        let read = |name: &str| read_npz(Cursor::new(std::fs::read(p.join(name)).unwrap())).unwrap().remove(0).1.to_f64s();
        let want = read("want.npz");
        let most = want.iter().fold(0f64, |m, y| m.max(y.abs()));
        // Below 1 % of the largest result, and above what f32 would leave.
        for model in ["net.nn --precision bf16 --engine jit", "net.nn --precision bf16 --engine so", "bf16.so"] {
            call(p, &format!("run {model} -i x=random:1 --dim N={n} -o got.npz")).ok();
            let error = read("got.npz").iter().zip(&want).fold(0f64, |m, (g, w)| m.max((g - w).abs())) / most;
            assert!(error < 1e-2 && error > 1e-5, "{model}: {error}");
        }
    }
}
