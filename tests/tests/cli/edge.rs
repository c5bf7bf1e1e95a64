//! Exit codes, messages, streams.

use crate::{folder, names, write};
use nnc_tests::command::{call, done, nnc};

#[test]
fn unknown_names_list_the_valid_ones() {
    let f = folder();
    call(f.path(), "compyle mlp.nn").fails(2, &["compyle", "verbs: compile, run, bench"]);
    call(f.path(), "run mlp.nn --engine warp").fails(2, &["interp", "jit", "so", "cuda", "vulkan"]);
    call(f.path(), "compile mlp.nn -o m.so --target z80").fails(2, &["no target is called `z80`", "native, x86-64"]);
    call(f.path(), "compile mlp.nn -o m.so --target native,+mmx").fails(2, &["`+mmx`"]);
    call(f.path(), "opt mlp.nn --pass polish").fails(2, &["E0206", "passes are", "cse"]);
    call(f.path(), "compile mlp.nn -o m.nn --print-ir-after=polish").fails(2, &["passes are"]);
    call(f.path(), "compile mlp.nn -o m.nn --stop-after polish").fails(2, &["passes are", "stages are"]);
    call(f.path(), "compile mlp.nn -o m.exe").fails(2, &["m.exe", ".so", "--emit"]);
    call(f.path(), "compile mlp.nn").fails(2, &["-o OUT"]);
    call(f.path(), "run mlp.nn -i z=zeros").fails(2, &["E0301", "no input `z`", "`x`: f32[N,4]"]);
    call(f.path(), "run mlp.nn -i x=noise").fails(2, &["random:SEED", "there is no file noise"]);
    call(f.path(), "run mlp.nn --dim M=2 -i x=zeros").fails(2, &["`M`", "N"]);
    call(f.path(), "run mlp.nn --shape z:2x4 -i x=zeros").fails(2, &["`z`", "inputs are: x"]);
    assert_eq!(names(f.path()), ["mlp.nn"]);
}

#[test]
fn mistakes_have_codes_and_places() {
    let f = folder();
    write(f.path(), "syntax.nn", "module m(x: f32[2]) {\n  return relu(x\n}\n");
    call(f.path(), "check syntax.nn").fails(2, &["error[E0101]", "syntax.nn:"]);
    call(f.path(), "check missing.nn").fails(2, &["error[E0102]", "missing.nn"]);
    write(f.path(), "noise.onnx", "this is no protobuf");
    call(f.path(), "check noise.onnx").fails(2, &["error[E0101]", "noise.onnx"]);
    write(f.path(), "empty.onnx", "");
    call(f.path(), "check empty.onnx").fails(2, &["error["]);
    call(f.path(), "check .").fails(2, &["error[E0102]"]);
    call(f.path(), "run mlp.nn").fails(2, &["error[E0301]", "`x`", "not given"]);
    call(f.path(), "run mlp.nn -i x=random:1").fails(2, &["E0301", "--dim", "--shape"]);
    call(f.path(), "run mlp.nn -i x=random:1 --shape x:2x5").fails(2, &["E0301", "f32[N,4]", "f32[2,5]"]);
    call(f.path(), "run mlp.nn -i x=random:1 --dim N=-1").fails(2, &["at least 0"]);
    call(f.path(), "run mlp.nn --dim N=2 -i x=zeros -o mlp.nn").fails(2, &["E0102", "mlp.nn"]);
    call(f.path(), "compile mlp.nn -o no/such/folder/m.nn").fails(2, &["error[E0102]", "no/such/folder"]);
}

#[test]
fn colours_are_for_terminals() {
    let f = folder();
    let plain = call(f.path(), "check missing.nn").err;
    assert!(!plain.contains('\x1b'));
    let colour = done(nnc().current_dir(f.path()).args(["check", "missing.nn"]).env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1")).err;
    assert!(colour.contains("\x1b[") && colour.contains("E0102"), "{colour}");
}

#[test]
fn dash_is_stdin_and_stdout() {
    let f = folder();
    let text = std::fs::read(f.path().join("mlp.nn")).unwrap();
    let piped = |line: &str| done(nnc().current_dir(f.path()).args(line.split(' ')).write_stdin(text.clone()));
    assert!(piped("check -").ok().contains("no problem found"));
    assert_eq!(piped("compile - --emit nn -o -").ok(), call(f.path(), "compile mlp.nn --emit nn -o -").ok());
    assert_eq!(piped("run - -i x=ones --dim N=2 --engine interp").ok(), call(f.path(), "run mlp.nn -i x=ones --dim N=2 --engine interp").ok());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::{Command, Stdio};
    let mut child =
        Command::new(nnc_tests::command::path()).args(["list-ops", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let f = folder();
    for (kind, extra) in [("nn", ""), ("so", ""), ("o", ""), ("h", ""), ("clif", ""), ("npz", "")] {
        let line = |name: &str| match kind {
            "npz" => format!("run mlp.nn --dim N=3 -i x=random:1 -o {name}.npz"),
            _ => format!("compile mlp.nn -o {name}.{kind} {extra}"),
        };
        // Two names in two folders: a library holds its own name.
        let other = folder();
        call(f.path(), &line("a")).ok();
        call(other.path(), &line("a")).ok();
        let bytes = |d: &std::path::Path| std::fs::read(d.join(format!("a.{kind}"))).unwrap();
        assert!(bytes(f.path()) == bytes(other.path()), "{kind}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_it_harms() {
    let f = folder();
    call(f.path(), "run mlp.nn --dim N=1 -i x=zeros --threads 100000").fails(2, &["up to 1024"]);
    call(f.path(), "verify mlp.nn --dim N=1 --rtol nan").fails(2, &["at least 0"]);
    call(f.path(), "compile mlp.nn -o m.so --precision bf16 --target x86-64-v3").fails(2, &["avx512_bf16", "x86-64-v4,+"]);
    call(f.path(), "compile mlp.nn -o m.so").ok();
    let library = std::fs::read(f.path().join("m.so")).unwrap();
    for part in [0, 100, 1000, library.len() / 2, library.len() - 1] {
        std::fs::write(f.path().join("cut.so"), &library[..part]).unwrap();
        call(f.path(), "run cut.so --dim N=1 -i x=zeros").fails(2, &["cut.so"]);
    }
    write(f.path(), "vast.nn", "module m(x: f32[4096,4096,4096]) -> f32[4096,4096] {\n  return reduce_sum(x, axes=[2], keepdims=0)\n}\n");
    call(f.path(), "bench vast.nn --duration 0").fails(2, &["1 GiB"]);
}

/// A library that runs for long on zeros is compiled all the same, and what is told to end leaves nothing behind.
#[test]
fn endless_loops_compile() {
    let f = folder();
    let text = "module m(n: i64[], x: f32[2]) -> f32[2] {\n  y = loop(n, n > -1, x, carried=1, trips=t) do (i: i64[], a: f32[2]) {\n    \
                return i > -1, sin(a) + 1\n  }\n  return y\n}\n";
    write(f.path(), "m.nn", &text.replace("loop(n,", "loop(1000000000000 + n,"));
    let done = call(f.path(), "compile m.nn -o m.so");
    assert!(done.err.contains("still running after 5 s"), "{}", done.err);
    done.ok();
    assert_eq!(names(f.path()), ["m.h", "m.nn", "m.so", "mlp.nn"]);
}

#[test]
fn what_opt_writes_reads_back() {
    let f = folder();
    call(f.path(), "opt mlp.nn --pass saturate -o o.nn").ok();
    call(f.path(), "check o.nn").ok();
    assert!(call(f.path(), "compile mlp.nn --stop-after saturate").ok().contains("module mlp"));
}
