//! Gradients, training, export.

use crate::{folder, write};
use nnc_tests::command::{call, done, nnc};
use std::fmt::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Points on two arms of a spiral, two thirds to train on, the rest to test with.
fn spirals(folder: &Path) {
    let (mut train, mut test) = (String::new(), String::new());
    for i in 0..300 {
        let (t, class) = (f64::from(i / 2) / 50.0 + 0.2, i % 2);
        let turn = t * 2.0 + f64::from(class) * std::f64::consts::PI;
        let line = format!("{},{},{class}\n", t * turn.cos() / 3.0, t * turn.sin() / 3.0);
        let _ = if i / 2 % 3 == 2 { test.write_str(&line) } else { train.write_str(&line) };
    }
    write(folder, "train.csv", &train);
    write(folder, "test.csv", &test);
}

const SPIRAL: &str = "module Dense(n) (x) {
  w = param [n, x.shape[1]] ~ glorot
  b = param [n] ~ zeros
  return gemm(x, w, b, transB=1)
}

module Net(x: f32[N,2]) -> (y: f32[N,2]) {
  a = Dense(32)
  b = Dense(32)
  c = Dense(2)
  y = c(tanh(b(tanh(a(x)))))
  return y
}

train on Net as net {
  data (x, class) = csv(\"train.csv\") batch 25 shuffle seed 3
  test (x, class) = csv(\"test.csv\") batch 30
  y = net(x)
  loss = softmax_cross_entropy_loss(y, class)
  measure accuracy = equal(arg_max(y, axis=1, keepdims=0), class)
  schedule rate = cosine(0.02, warmup=20)
  update net.* with adam(rate)
  update *.b with adamw(rate, weight_decay=0)
  clip global 5
  steps 400
}
";

#[test]
fn a_network_learns_and_is_left_in_every_form() {
    let f = folder();
    spirals(f.path());
    write(f.path(), "net.nn", SPIRAL);
    let line = "train net.nn --threads 1 -o net.so --save net.onnx --curve net.svg";
    let run = call(f.path(), line);
    assert_eq!(run.code, Some(0), "{}", run.err);
    let accuracy = run.err.rsplit("accuracy ").next().and_then(|t| t.trim().parse::<f64>().ok()).unwrap_or_else(|| panic!("{}", run.err));
    assert!(accuracy >= 0.95, "{}", run.err);
    assert!(std::fs::read_to_string(f.path().join("net.svg")).unwrap().contains("polyline"));
    // The library, the ONNX file read back and the interpreter say the same.
    call(f.path(), "run net.so -i x=random:1 -o so.npz --dim N=5").code.unwrap();
    call(f.path(), "run net.onnx --dim N=5 -i x=random:1 -o onnx.npz").ok();
    call(f.path(), "run net.onnx --dim N=5 -i x=random:1 --engine interp --expect onnx.npz").ok();
}

#[test]
fn a_run_that_is_killed_ends_with_the_same_bits() {
    let f = folder();
    spirals(f.path());
    write(f.path(), "net.nn", SPIRAL);
    call(f.path(), "train net.nn --threads 1 --save whole.npz").ok();
    let line = "train net.nn --threads 1 --checkpoint kept --checkpoint-every 7 --save parts.npz";
    let mut child = std::process::Command::new(nnc_tests::command::path())
        .args(line.split(' '))
        .current_dir(f.path())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let start = Instant::now();
    while !f.path().join("kept/checkpoint.npz").exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("a running child, or one that is done");
    child.wait().expect("it ends");
    call(f.path(), &format!("{line} --resume")).ok();
    assert_eq!(std::fs::read(f.path().join("whole.npz")).unwrap(), std::fs::read(f.path().join("parts.npz")).unwrap());
}

#[test]
fn activations_that_are_computed_again_change_no_bit() {
    let f = folder();
    spirals(f.path());
    let kept = SPIRAL.replace("tanh(b(tanh(a(x))))", "tanh(b(dropout(tanh(a(x)), ratio=0.2, training_mode=training)))");
    write(f.path(), "kept.nn", &kept);
    write(f.path(), "again.nn", &format!("every = 0\n{}", kept.replace("  steps 400", "  checkpoint every every\n  steps 40")));
    call(f.path(), "train kept.nn --threads 1 --steps 40 --save kept.npz").ok();
    for every in 0..3 {
        call(f.path(), &format!("train again.nn --threads 1 --set every={every} --save again.npz")).ok();
        assert_eq!(std::fs::read(f.path().join("kept.npz")).unwrap(), std::fs::read(f.path().join("again.npz")).unwrap(), "every {every}");
    }
    call(f.path(), "train again.nn --threads 1 --set every=-1").fails(2, &["error[E0205]", "checkpoint every -1"]);
}

#[test]
fn gradients_are_models() {
    let f = folder();
    call(f.path(), "grad mlp.nn --wrt x,w --of y -o g.nn").ok();
    call(f.path(), "grad mlp.nn --wrt x,w --of y -o g.onnx --dim N=2").ok();
    call(f.path(), "run g.nn --dim N=2 -i x=random:4 -o nn.npz").ok();
    call(f.path(), "run g.onnx -i x=random:4 --expect nn.npz").ok();
    call(f.path(), "grad mlp.nn --wrt q -o g.nn").fails(2, &["error[E0206]", "`q`"]);
    call(f.path(), "grad mlp.nn --wrt x --of z -o g.nn").fails(2, &["error[E0206]", "`z`"]);
}

/// Windows that move by 2, over sizes that they do not divide: the gradient's parts, by turns, as operators that ONNX has.
#[test]
fn gradients_of_maxima_are_onnx() {
    let f = folder();
    let text = |window: &str| {
        let sum = "reduce_sum(y * y, axes=[1, 2, 3], keepdims=0)";
        format!("module f(x: f32[N,2,7,6]) -> f32[N] {{\n  y = max_pool(x, {window})\n  return {sum}\n}}\n")
    };
    for window in ["kernel_shape=[2,2], strides=[2,2]", "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]", "kernel_shape=[2,3], strides=[1,3]"] {
        write(f.path(), "max.nn", &text(window));
        call(f.path(), "grad max.nn --wrt x -o g.onnx").ok();
        call(f.path(), "grad max.nn --wrt x -o g.nn").ok();
        call(f.path(), "run g.nn --dim N=3 -i x=random:4 -o nn.npz").ok();
        call(f.path(), "run g.onnx --dim N=3 -i x=random:4 --expect nn.npz").ok();
    }
}

/// What goes from step to step has one name in a library, two in an ONNX file.
#[test]
fn a_step_is_an_onnx_file() {
    let f = folder();
    spirals(f.path());
    write(f.path(), "net.nn", SPIRAL);
    for step in ["s.onnx", "s.nn"] {
        call(f.path(), &format!("train net.nn --step {step}")).ok();
    }
    let info = call(f.path(), "info s.onnx").ok();
    assert!(info.contains("net.a.w_next"), "{info}");
    call(f.path(), "check s.onnx").ok();
}

/// A region's dimensions are those of the module, as it is called.
#[test]
fn regions_know_the_sizes_of_a_call() {
    let f = folder();
    spirals(f.path());
    let scan = "h = scan(tanh(a(x)), reshape(x, shape=[2, N, 1]), states=1, scanned=1) do (h: f32[N,32], s: f32[N,1]) { return tanh(h + s) }";
    let text = SPIRAL.replace("y = c(tanh(b(tanh(a(x)))))", &format!("{scan}\n  y = c(tanh(b(h)))"));
    assert!(text.contains(scan), "{SPIRAL}");
    write(f.path(), "scan.nn", &text);
    call(f.path(), "train scan.nn --threads 1 --steps 3").ok();
}

#[test]
fn an_exported_model_reads_back() {
    let f = folder();
    call(f.path(), "export mlp.nn -o m.onnx").ok();
    call(f.path(), "run mlp.nn --dim N=3 -i x=random:4 -o nn.npz").ok();
    call(f.path(), "run m.onnx --dim N=3 -i x=random:4 --expect nn.npz").ok();
}

#[test]
fn what_is_wrong_with_a_training_is_said() {
    let f = folder();
    spirals(f.path());
    let wrong = |from: &str, to: &str, say: &[&str]| {
        assert!(SPIRAL.contains(from));
        write(f.path(), "bad.nn", &SPIRAL.replace(from, to));
        call(f.path(), "train bad.nn --threads 1 --steps 2").fails(2, say);
    };
    wrong("adam(rate)", "adom(rate)", &["error[E0206]", "adom", "adam"]);
    wrong("update net.* ", "update nit.* ", &["error[E0206]", "nit.*", "net.a.w"]);
    wrong("csv(\"train.csv\")", "csv(\"none.csv\")", &["error[E0102]", "none.csv", "--data"]);
    wrong("csv(\"train.csv\")", "cvs(\"train.csv\")", &["error[E0206]", "idx, npy, npz, csv"]);
    wrong("loss = ", "lass = ", &["error[E0206]", "`loss`"]);
    wrong("batch 25", "batch 2500", &["error[E0301]", "2500"]);
    wrong("cosine(0.02, warmup=20)", "constant(1e38)", &["error[E0301]", "loss"]);
    wrong("clip global 5", "clip global -1", &["error[E0205]", "-1"]);
    wrong("warmup=20", "warmup=-3", &["error[E0205]", "warmup"]);
    wrong("cosine(0.02, warmup=20)", "step(0.02, at=[3, 1])", &["error[E0205]", "[3.0, 1.0]"]);
    wrong("as net {", "as net { phase", &["error[E0101]"]);
    call(f.path(), "train mlp.nn").fails(2, &["error[E0206]", "train on MODULE"]);
    done(nnc().current_dir(f.path()).args(["train", "net.nn", "--resume"])).fails(2, &["error["]);
}
