//! Each verb does its work.

use crate::{folder, json, write};
use nnc_tests::command::call;

const VERBS: [&str; 14] =
    ["compile", "run", "bench", "verify", "check", "info", "list-ops", "list-targets", "opt", "graph", "grad", "train", "export", "fmt"];

#[test]
fn every_verb_has_help() {
    let f = folder();
    let all = call(f.path(), "--help").ok();
    for verb in VERBS {
        assert!(all.contains(verb), "{verb}");
        assert!(call(f.path(), &format!("{verb} --help")).ok().contains("Usage:"), "{verb}");
    }
    assert!(!all.contains("smoke"));
    assert!(call(f.path(), "--version").ok().starts_with("nnc 0."));
}

#[test]
fn info_of_a_model() {
    let f = folder();
    let text = call(f.path(), "info mlp.nn").ok();
    assert!(text.contains("x: f32[N,4]") && text.contains("y: f32[N,2]") && text.contains("matmul"), "{text}");
    let v = json(&call(f.path(), "info mlp.nn --json --dim N=5").ok());
    assert_eq!(v["inputs"][0]["shape"], serde_json::json!([5, 4]));
    assert_eq!(v["operations"]["matmul"], 2);
    assert_eq!(v["constant_elements"], 12 + 3 + 6);
    assert_eq!(v["constant_bytes"], 4 * 21);
}

#[test]
fn lists() {
    let f = folder();
    let ops = json(&call(f.path(), "list-ops --json").ok());
    assert!(ops["onnx"].as_array().unwrap().iter().any(|o| o["name"] == "Conv" && o["domain"] == "ai.onnx"));
    assert!(ops["nn"].as_array().unwrap().iter().any(|o| o == "matmul"));
    assert!(call(f.path(), "list-ops").ok().contains("Softmax"));
    let targets = json(&call(f.path(), "list-targets --json").ok());
    assert!(targets["targets"].as_array().unwrap().iter().any(|t| t["name"] == targets["native"]));
}

#[test]
fn check_says_ok_or_everything() {
    let f = folder();
    assert!(call(f.path(), "check mlp.nn").ok().contains("no problem found"));
    write(f.path(), "bad.nn", "module m(x: f32[2,3], y: f32[4]) {\n  a = x + y\n  b = matmul(x, x)\n  return a, b\n}\n");
    let done = call(f.path(), "check bad.nn");
    done.fails(2, &["error[E0203]", "bad.nn:2:", "bad.nn:3:", "2 errors"]);
}

#[test]
fn bench_reports_what_scripts_read() {
    let f = folder();
    for engine in ["interp", "jit"] {
        let v = json(&call(f.path(), &format!("bench mlp.nn --dim N=3 --threads 2 --duration 0.05 --warmup 1 --engine {engine} --json")).ok());
        let keys = ["median_ms", "p10_ms", "p90_ms", "p99_ms", "min_ms", "load_ms", "compile_ms", "peak_rss_bytes"];
        for key in keys {
            assert!(v[key].as_f64().is_some_and(|x| x > 0.0), "{engine} {key}: {v}");
        }
        assert!(v["iterations"].as_u64().is_some_and(|n| n > 1) && v["workspace_bytes"].is_u64(), "{v}");
        assert!(v.as_object().unwrap().contains_key("gflop") && v.as_object().unwrap().contains_key("gflops"));
    }
    assert!(call(f.path(), "bench mlp.nn --dim N=3 --duration 0").ok().contains("median"));
    call(f.path(), "bench mlp.nn --dim N=3 --duration=-1").fails(2, &["E0301"]);
}

#[test]
fn profiles_tell_of_launches() {
    let f = folder();
    let bench = "bench mlp.nn --dim N=3 --threads 1 --duration 0.05";
    let table = call(f.path(), &format!("{bench} --profile")).ok();
    assert!(table.contains("roofs: ") && table.contains("% roof") && table.contains("gemm"), "{table}");
    call(f.path(), "compile mlp.nn -o m.so").ok();
    let v = json(&call(f.path(), "bench m.so --dim N=3 --threads 1 --duration 0.05 --profile=t.json --json").ok());
    let launches = v["profile"]["launches"].as_array().unwrap();
    let gemms: Vec<_> = launches.iter().filter(|l| l["implementation"] == "gemm").collect();
    // Sizes are those of the run, also in a library whose sizes are symbolic: x is [3,4] or so, every product has flops and takes time.
    assert!(!gemms.is_empty() && gemms.iter().all(|l| l["gflop"].as_f64() > Some(0.0) && l["ms"].as_f64() > Some(0.0)), "{v}");
    let trace = json(&std::fs::read_to_string(f.path().join("t.json")).unwrap());
    assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(launches.len()));
    call(f.path(), &format!("{bench} --profile=p.svg")).ok();
    assert!(std::fs::read_to_string(f.path().join("p.svg")).unwrap().contains("<circle"));
    call(f.path(), &format!("{bench} --profile=p.txt")).fails(2, &["a profile is a .json trace or a .svg picture"]);
    call(f.path(), &format!("{bench} --engine interp --profile")).fails(2, &["the interpreter launches no kernels"]);
}

#[test]
fn verify_holds_engines_against_the_interpreter() {
    let f = folder();
    let done = call(f.path(), "verify mlp.nn --dim N=3");
    assert_eq!(done.code, Some(0));
    assert!(done.err.contains("output `y` agrees") && done.err.contains("output `h` agrees"), "{}", done.err);
    for how in ["--all-nodes", "--bisect op", "--bisect pass", "--precision exact -O0", "-O3"] {
        assert_eq!(call(f.path(), &format!("verify mlp.nn --dim N=3 {how}")).code, Some(0), "{how}");
    }
}

#[test]
fn verify_and_expect_say_what_differs() {
    let f = folder();
    call(f.path(), "run mlp.nn --dim N=2 -i x=random:1 -o good.npz --engine interp").ok();
    call(f.path(), "run mlp.nn --dim N=2 -i x=random:2 -o other.npz --engine interp").ok();
    call(f.path(), "run mlp.nn --dim N=2 -i x=random:1 -o out.npz --expect good.npz").ok();
    call(f.path(), "verify mlp.nn --dim N=2 -i x=random:1 --reference good.npz").ok();
    call(f.path(), "run mlp.nn --dim N=2 -i x=random:1 -o out.npz --expect other.npz").fails(1, &["output `y` differs in"]);
    call(f.path(), "verify mlp.nn --dim N=2 -i x=random:1 --reference other.npz").fails(1, &["differs"]);
    // Anything is close enough for a tolerance that is large enough.
    call(f.path(), "run mlp.nn --dim N=2 -i x=random:1 -o out.npz --expect other.npz --atol 1000").ok();
}

#[test]
fn opt_and_print_ir() {
    let f = folder();
    let text = call(f.path(), "opt mlp.nn --pass cse --pass dce").ok();
    assert!(text.starts_with("module mlp(x: f32[N,4]) -> (y: f32[N,2], h: f32[N,3]) {"), "{text}");
    let done = call(f.path(), "compile mlp.nn --emit nn -o - --print-ir-after=cse --time-passes");
    assert!(done.err.contains("// after cse") && !done.err.contains("// after dce") && done.err.contains(" ms "), "{}", done.err);
    assert!(call(f.path(), "compile mlp.nn --emit nn -o - --print-ir-after-change").err.contains("changed nothing"));
    assert!(call(f.path(), "compile mlp.nn --emit nn -o - --print-ir-after").err.contains("// after dce"));
    let model = call(f.path(), "compile mlp.nn --emit nn -o - --stop-after model").ok();
    assert!(model.contains("tanh") && model.contains("add"), "{model}");
}

#[test]
fn fmt_is_idempotent() {
    let f = folder();
    write(f.path(), "ugly.nn", "// A comment.\nmodule   m( x:f32[2] )->f32[2]{\n   y=relu( x )   // why\n  return y }\n");
    let once = call(f.path(), "fmt ugly.nn").ok();
    assert!(once.contains("// A comment.") && once.contains("// why"), "{once}");
    write(f.path(), "once.nn", &once);
    assert_eq!(call(f.path(), "fmt once.nn").ok(), once);
    call(f.path(), "fmt once.nn -o once.nn").ok();
    assert_eq!(std::fs::read_to_string(f.path().join("once.nn")).unwrap(), once);
}

#[test]
fn drawings() {
    let f = folder();
    call(f.path(), "graph mlp.nn -o m.svg").ok();
    call(f.path(), "graph mlp.nn -o m.html").ok();
    let svg = std::fs::read_to_string(f.path().join("m.svg")).unwrap();
    let html = std::fs::read_to_string(f.path().join("m.html")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains(">tanh</text>") && svg.contains("f32[N,3]"));
    assert!(html.starts_with("<!doctype html>") && html.contains(&svg));
    let dot = call(f.path(), "graph mlp.nn -o -").ok();
    assert!(dot.starts_with("digraph \"mlp\" {") && dot.contains("->"), "{dot}");
    call(f.path(), "graph mlp.nn -o m.png").fails(2, &["a drawing is a .svg, .html or .dot file"]);
}

#[test]
fn what_is_not_there_yet_says_so() {
    let f = folder();
    call(f.path(), "compile mlp.nn -o m.nncg --weights external").fails(2, &["error[E0201]", "holds its weights"]);
    call(f.path(), "compile mlp.nn -o m.nncg --target x86-64-v3").fails(2, &["error[E0301]", "spirv1.5"]);
    call(f.path(), "compile mlp.nn -o m.nn --format onnx-text").fails(2, &["error[E0201]", "in this version"]);
    call(f.path(), "compile mlp.nn -o m.ptx --target nvptx-sm_90").ok();
    // Where there is an NVIDIA GPU this runs.
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        call(f.path(), "run mlp.nn --engine cuda").fails(2, &["error[E0201]", "no NVIDIA driver", "libcuda.so.1"]);
    }
}
