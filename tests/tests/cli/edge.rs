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
