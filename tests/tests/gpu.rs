//! Kernels for GPUs without a GPU: Mesa's Vulkan driver for processors runs them, Khronos' validator and NVIDIA's assembler read them.

use nnc_tests::command::{call, nnc};
use nnc_tests::data::{lavapipe, onnx_suite, ptxas, root, skip};
use nnc_tests::onnx::{cases, held_against};
use nnc_tests::step::{near, step};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Networks of the examples, and inputs for them.
const NETWORKS: [(&str, &str); 4] = [
    ("lenet5", "x=random:1 --dim N=3"),
    ("squeezenet1_1", "x=random:1 --dim N=1"),
    ("resnet18", "x=random:1 --dim N=1 --dim H=224 --dim W=224"),
    ("mobilenet_v2", "x=random:1 --dim N=1"),
];

/// A recurrent layer: a loop over launches.
const LSTM: &str = "module net(x: f32[7,2,5]) -> (y: f32[7,2,6]) {
  w = param [1,24,5] ~ glorot
  r = param [1,24,6] ~ glorot
  h, _, _ = lstm(x, w, r, hidden_size=6)
  y = reshape(h, shape=[7,2,6])
  return y
}
";

#[test]
fn official_cases_on_vulkan() {
    if let Err(why) = lavapipe() {
        return skip("official_cases_on_vulkan", &why);
    }
    let suite = match onnx_suite() {
        Ok(folder) => folder,
        Err(why) => return skip("official_cases_on_vulkan", &why),
    };
    let head = "Official cases (onnx 1.22.0, node and simple) that do not pass on Vulkan.";
    held_against("tests/onnx/vulkan.txt", head, &[("vulkan", &cases(&suite)[..], "vulkan")]);
}

/// What both of two engines compute of a network, held against each other.
fn agrees(folder: &Path, model: &str, input: &str) {
    call(folder, &format!("run {model} -i {input} -o {model}.out")).ok();
    call(folder, &format!("run {model} -i {input} --engine vulkan --expect {model}.out -o {model}.gpu")).ok();
}

#[test]
fn networks_on_vulkan() {
    if let Err(why) = lavapipe() {
        return skip("networks_on_vulkan", &why);
    }
    let f = tempfile::tempdir().expect("a folder");
    for (name, input) in NETWORKS {
        fs::copy(root().join(format!("examples/{name}.nn")), f.path().join(format!("{name}.nn"))).expect("an example");
        agrees(f.path(), &format!("{name}.nn"), input);
    }
    fs::write(f.path().join("lstm.nn"), LSTM).expect("written");
    agrees(f.path(), "lstm.nn", "x=random:1");
}

/// One file of a network with an open batch, for both kinds of devices: it says what it is, runs, is timed, and fails as a file.
#[test]
fn files_for_gpus() {
    let f = tempfile::tempdir().expect("a folder");
    let p = f.path();
    fs::copy(root().join("examples/lenet5.nn"), p.join("lenet5.nn")).expect("an example");
    call(p, "compile lenet5.nn -o a.nncg").ok();
    call(p, "compile lenet5.nn -o b.nncg").ok();
    let bytes = fs::read(p.join("a.nncg")).expect("a file");
    assert_eq!(bytes, fs::read(p.join("b.nncg")).expect("a file"));
    let about = call(p, "info a.nncg --json").ok();
    assert!(about.contains(r#""format":"nncg""#) && about.contains("spirv1.5 nvptx-sm_80"), "{about}");
    call(p, "compile lenet5.nn -o ptx.nncg --target nvptx-sm_90").ok();
    call(p, "run ptx.nncg -i x=random:1 --engine jit").fails(2, &["--engine cuda"]);
    fs::write(p.join("cut.nncg"), &bytes[..bytes.len() / 2]).expect("written");
    call(p, "run cut.nncg").fails(2, &["error[E0101]", "damaged"]);
    fs::write(p.join("old.nncg"), [&bytes[..8], &[99], &bytes[9..]].concat()).expect("written");
    call(p, "bench old.nncg").fails(2, &["error[E0201]", "version 99"]);
    call(p, "verify a.nncg").fails(2, &["error["]);
    if let Err(why) = lavapipe() {
        return skip("files_for_gpus", &why);
    }
    call(p, "run lenet5.nn --dim N=3 -i x=random:1 -o out").ok();
    call(p, "run a.nncg --dim N=3 -i x=random:1 --engine vulkan --expect out -o gpu").ok();
    call(p, "run ptx.nncg --dim N=3 -i x=random:1 --engine vulkan").fails(2, &["nvptx-sm_90", "spirv1.5"]);
    let figures = call(p, "bench a.nncg --dim N=3 --engine vulkan --duration 0.1 --json --profile").ok();
    assert!(figures.contains("median_ms") && figures.contains(r#""name":"conv"#), "{figures}");
}

/// Steps of training, gradients and optimisers and all, give the parameters that compiled code gives; and `nnc train` makes them.
#[test]
fn training_on_vulkan() {
    if let Err(why) = lavapipe() {
        return skip("training_on_vulkan", &why);
    }
    for name in ["lenet5_mnist", "digits_mlp", "resnet"] {
        let (graph, x) = step(name, 2);
        let run = |engine| {
            let options = nnc::Options { engine, ..nnc::Options::default() };
            nnc::session(graph.clone(), &options, &mut ()).unwrap_or_else(|r| panic!("{name}: {r}")).run(&x).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        near(name, &run(nnc::Engine::Vulkan), &run(nnc::Engine::Jit));
    }
    let f = tempfile::tempdir().expect("a folder");
    let text = "module Net(x: f32[N,2]) -> (y: f32[N,2]) {\n  w = param [2,2] ~ glorot\n  y = matmul(x, w)\n  return y\n}\n
train on Net as net {\n  data (x, class) = csv(\"points.csv\") batch 4\n  y = net(x)\n  loss = softmax_cross_entropy_loss(y, class)\n
  update net.* with sgd(0.5)\n  steps 6\n}\n";
    fs::write(f.path().join("net.nn"), text).expect("written");
    fs::write(f.path().join("points.csv"), "1,0,0\n0,1,1\n0.9,0.2,0\n-0.1,1,1\n1.2,0.1,0\n0.1,0.7,1\n0.8,0,0\n0.2,1,1\n").expect("written");
    for engine in ["jit", "interp", "vulkan"] {
        call(f.path(), &format!("train net.nn --engine {engine} --save {engine}.onnx")).ok();
    }
    call(f.path(), "run jit.onnx --dim N=3 -i x=random:1 -o want.npz").ok();
    for engine in ["interp", "vulkan"] {
        call(f.path(), &format!("run {engine}.onnx --dim N=3 -i x=random:1 --expect want.npz -o {engine}.npz")).ok();
    }
}

/// Compiles each network to `NAME.EXTENSION` and gives the files to `check`.
fn compiled(networks: &[(&str, &str)], extension: &str, precisions: &[&str], check: impl Fn(&Path)) {
    let f = tempfile::tempdir().expect("a folder");
    for ((name, _), precision) in networks.iter().flat_map(|n| precisions.iter().map(move |p| (n, p))) {
        let out = f.path().join(format!("{name}.{precision}.{extension}"));
        let mut command = nnc();
        command.arg("compile").arg(root().join(format!("examples/{name}.nn"))).args(["--precision", precision, "-o"]).arg(&out);
        let done = command.output().expect("the command starts");
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        check(&out);
    }
}

#[test]
fn the_validator_takes_our_spirv() {
    if Command::new("spirv-val").arg("--version").output().is_err() {
        return skip("the_validator_takes_our_spirv", "spirv-val is absent (Debian's spirv-tools)");
    }
    compiled(&NETWORKS, "spv", &["fast"], |file| {
        let done = Command::new("spirv-val").args(["--target-env", "vulkan1.2"]).arg(file).output().expect("spirv-val starts");
        assert!(done.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&done.stderr));
    });
}

/// All kernels assemble, for the oldest and the newest GPUs that we name, and none keeps registers in memory.
#[test]
fn nvidias_assembler_takes_our_ptx() {
    let ptxas = match ptxas() {
        Ok(path) => path,
        Err(why) => return skip("nvidias_assembler_takes_our_ptx", &why),
    };
    let check = |file: &Path| {
        let mut kernels = 0;
        let text = fs::read_to_string(file).expect("text");
        let units = text.contains("mma.sync");
        assert_eq!(units, !file.to_string_lossy().contains(".fast."), "{}", file.display());
        for arch in ["sm_80", "sm_90"] {
            let done =
                Command::new(&ptxas).args(["-v", "-arch", arch, "-o"]).arg(file.with_extension(arch)).arg(file).output().expect("ptxas starts");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{}: {said}", file.display());
            let spills = said.lines().filter(|l| l.contains("bytes spill stores"));
            spills.for_each(|l| {
                assert!(l.contains(" 0 bytes spill stores, 0 bytes spill loads"), "{}: {l}", file.display());
                kernels += 1;
            });
        }
        assert!(kernels >= 4, "{kernels} kernels in {}", file.display());
    };
    compiled(&NETWORKS, "ptx", &["fast", "bf16"], check);
    compiled(&NETWORKS[..3], "ptx", &["tf32"], check);
    let f = tempfile::tempdir().expect("a folder");
    let text = "module net(x: f16[2048,64], w: f16[2048,64], v: f16[N,8,6,6], u: f16[16,8,3,3]) -> (y: f16[2048,2048], z: f16[N,16,6,6]) {
  y = gemm(x, w, transB=1)
  z = conv(v, u, pads=[1, 1, 1, 1])
  return y, z
}
";
    fs::write(f.path().join("halves.nn"), text).expect("written");
    call(f.path(), "compile halves.nn -o halves.ptx").ok();
    check(&f.path().join("halves.ptx"));
}
