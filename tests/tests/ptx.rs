//! The PTX that we print, interpreted: every operation's examples and whole networks give what the interpreter of graphs, or compiled
//! code, gives; and what the interpreter of PTX is there to catch, it catches.

use nnc::gpu::run::{Model, Runner};
use nnc_backends::cpu::native_target;
use nnc_ir::error::Code;
use nnc_ir::eval::{Env, run};
use nnc_ir::examples::{Example, Values, compare, examples, random_tensor};
use nnc_ir::target::{Gpu, GpuIsa, Rounding};
use nnc_ir::{DType, Graph, Report, Tensor};
use nnc_passes::Options;
use nnc_tests::data::root;
use nnc_tests::ptx::{self, Window};
use nnc_tests::step::{near, step};

fn on_ptx(graph: Graph, x: &[Tensor]) -> Result<Option<Vec<Tensor>>, String> {
    let target = native_target().with_gpu(&Gpu::new(GpuIsa::Sm80));
    let program = match nnc_passes::compile(graph, &target, &Options::default(), &mut ()) {
        // What lowering refuses is its own suite's to say.
        Err(Report(errors)) if errors.iter().all(|e| e.code() == Code::Unsupported) => return Ok(None),
        other => other.map_err(|r| r.to_string())?,
    };
    let runner = Runner::new(program, ptx::machine()).map_err(|r| r.to_string())?;
    runner.run(x).map(Some).map_err(|e| e.to_string())
}

fn check(e: &Example) -> Result<bool, String> {
    let graph = e.graph().map_err(|r| r.to_string())?;
    let x = e.tensors(0).map_err(|e| e.to_string())?;
    let want = run(&graph, &x, &Env::default()).map_err(|e| e.to_string())?;
    let Some(got) = on_ptx(graph, &x)? else { return Ok(false) };
    got.iter().zip(&want).enumerate().try_for_each(|(i, (g, w))| compare(g, w).map_err(|m| format!("y{i}: {m}")))?;
    Ok(true)
}

#[test]
fn every_operation() {
    let (mut ran, mut wrong) = (0, vec![]);
    // Angles beyond 8192 are not reduced exactly yet.
    let far = |e: &Example| ["sin.", "cos.", "tan."].iter().any(|f| e.name.starts_with(f)) && e.name.ends_with(".edges");
    for e in examples().into_iter().filter(|e| !far(e)) {
        match check(&e) {
            Ok(true) => ran += 1,
            Ok(false) => {}
            Err(m) => wrong.push(format!("{}: {m}", e.name)),
        }
    }
    assert!(wrong.is_empty(), "{} examples:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ran > 500, "{ran} examples ran");
}

/// A network of the examples, its symbols set, on an input of this shape: within 1e-4 of compiled code's largest result.
fn network(name: &str, dims: &[(&str, i64)], shape: &[usize]) {
    let path = root().join(format!("examples/{name}.nn"));
    let dims = dims.iter().map(|(s, n)| (s.to_string(), *n)).collect();
    let options = nnc::Options { dims, ..Default::default() };
    let graph = nnc::load(&path, &options).unwrap_or_else(|r| panic!("{name}: {r}")).graph;
    let x = [random_tensor(DType::F32, shape, &Values::Small, 1)];
    let want = nnc::session(graph.clone(), &options, &mut ()).unwrap_or_else(|r| panic!("{name}: {r}")).run(&x).expect("values");
    let got = on_ptx(graph, &x).unwrap_or_else(|e| panic!("{name}: {e}")).expect("a program");
    assert!(want[0].to_f64s().iter().any(|v| *v != 0.0));
    near(name, &got, &want);
}

#[test]
fn lenet5() {
    network("lenet5", &[("N", 2)], &[2, 1, 28, 28]);
}

#[test]
fn squeezenet() {
    network("squeezenet1_1", &[("N", 1)], &[1, 3, 224, 224]);
}

/// A step of training, gradients and optimiser and all, gives the parameters that compiled code gives.
#[test]
fn steps_of_training() {
    let (graph, x) = step("lenet5_mnist", 2);
    let want = nnc::session(graph.clone(), &nnc::Options::default(), &mut ()).unwrap_or_else(|r| panic!("{r}")).run(&x).expect("values");
    let got = on_ptx(graph, &x).unwrap_or_else(|e| panic!("{e}")).expect("a program");
    near("lenet5_mnist", &got, &want);
}

/// Products and convolutions by matrix units: numbers that bf16 and tf32 hold exactly give what f32 gives.
#[test]
fn matrix_units() {
    let text = "module net(x: f32[2,6,9,9], w: f32[40,6,3,3], v: f32[40,37]) -> (y: f32[2,81,37], z: f32[2,40,9,9]) {
  z = conv(x, w, pads=[1, 1, 1, 1])
  y = matmul(transpose(reshape(z, shape=[2, 40, 81]), perm=[0, 2, 1]), v)
  return y, z
}
";
    let graph = nnc_frontend::nn::parse(text, "net.nn").unwrap_or_else(|r| panic!("{r}"));
    // Whole numbers so small that what the convolution gives has eight bits, too.
    let numbers = |shape: &[usize], salt: usize| {
        let n = shape.iter().product();
        Tensor::new(shape, &(0..n).map(|i: usize| [0.0, 0.0, 1.0, -1.0, 0.0, 2.0, 0.0][(i * 31 + salt + i / 7 * 3) % 7]).collect::<Vec<f32>>())
    };
    let x = [numbers(&[2, 6, 9, 9], 0), numbers(&[40, 6, 3, 3], 3), numbers(&[40, 37], 5)];
    let want = run(&graph, &x, &Env::default()).expect("values");
    for (rounding, name) in [(Rounding::Bf16, "bf16"), (Rounding::Tf32, "tf32")] {
        let gpu = Gpu { rounding: Some(rounding), ..Gpu::new(GpuIsa::Sm80) };
        let program = nnc_passes::compile(graph.clone(), &native_target().with_gpu(&gpu), &Options::default(), &mut ()).expect("a program");
        let runner = Runner::of(nnc_backends::gpu::plan::plan(program, &gpu).expect("a plan"), ptx::machine()).expect("a runner");
        let text = String::from_utf8(runner.plan().code().expect("code")).expect("text");
        assert!(text.contains(&format!(".f32.{name}.{name}.f32")) && text.contains("ldmatrix"));
        near(name, &runner.run(&x).expect("values"), &want);
    }
}

/// Products and convolutions of f16 by matrix units, unasked: of numbers whose sums f16 holds.
#[test]
fn halves() {
    let text = "module net(x: f16[70,48], w: f16[40,48], v: f16[2,8,6,6], u: f16[16,8,3,3]) -> (y: f16[70,40], z: f16[2,16,6,6]) {
  y = gemm(x, w, transB=1)
  z = conv(v, u, pads=[1, 1, 1, 1])
  return y, z
}
";
    let graph = nnc_frontend::nn::parse(text, "net.nn").unwrap_or_else(|r| panic!("{r}"));
    let x = [vec![70, 48], vec![40, 48], vec![2, 8, 6, 6], vec![16, 8, 3, 3]].map(|shape: Vec<usize>| {
        let numbers = (0..shape.iter().product()).map(|i: usize| [0.0, 1.0, -1.0, 0.0, 2.0, 0.0, 0.5][(i * 31 + i / 7 * 3) % 7]);
        let bytes: Vec<u8> = numbers.flat_map(|v| Tensor::scalar_of(DType::F16, v).bytes().to_vec()).collect();
        Tensor::from_bytes(DType::F16, shape, bytes.into()).expect("a tensor")
    });
    let want = run(&graph, &x, &Env::default()).expect("values");
    let gpu = Gpu::new(GpuIsa::Sm80);
    let program = nnc_passes::compile(graph, &native_target().with_gpu(&gpu), &Options::default(), &mut ()).expect("a program");
    let runner = Runner::of(nnc_backends::gpu::plan::plan(program, &gpu).expect("a plan"), ptx::machine()).expect("a runner");
    let text = String::from_utf8(runner.plan().code().expect("code")).expect("text");
    assert!(text.contains(".f32.f16.f16.f32") && text.contains("cp.async.cg") && !text.contains("fma.rn"));
    near("f16", &runner.run(&x).expect("values"), &want);
}

/// How often the instructions that matter stand in the text of a model's kernels. Counts of what the assembler makes of it would say
/// more; NVIDIA's Python package has the assembler and no disassembler.
fn counts(text: &str, gpu: &Gpu, instructions: &[(&str, usize)]) {
    let graph = nnc_frontend::nn::parse(text, "net.nn").unwrap_or_else(|r| panic!("{r}"));
    let program = nnc_passes::compile(graph, &native_target().with_gpu(gpu), &Options::default(), &mut ()).expect("a program");
    let code = String::from_utf8(nnc_backends::gpu::plan::plan(program, gpu).expect("a plan").code().expect("code")).expect("text");
    for (instruction, n) in instructions {
        let found = code.lines().filter(|l| l.trim_start().starts_with(instruction)).count();
        assert_eq!(found, *n, "{instruction}, {gpu:?}");
    }
}

#[test]
fn counts_of_instructions() {
    let gpu = Gpu::new(GpuIsa::Sm80);
    let product = "module net(x: f32[2048,512], w: f32[512,2048]) -> (y: f32[2048,2048]) {\n  y = matmul(x, w)\n  return y\n}\n";
    // Three tiles in turn: two sets of copies before the loop, one in it, of 4 elements of the left tile and a vector of the right one.
    let copies = [("cp.async.ca", 12), ("cp.async.cg", 3), ("cp.async.commit_group", 3), ("cp.async.wait_group", 1), ("bar.sync", 1)];
    // 8 deep: 8 elements of both tiles a step, for 64 products.
    let arithmetic = [("ld.shared.v4.f32", 32), ("ld.shared.f32", 0), ("fma.rn.f32", 512), ("mma.sync", 0)];
    counts(product, &gpu, &[&copies[..], &arithmetic, &[("ld.global", 0), ("st.global.v4.f32", 16), ("st.global.f32", 0)]].concat());
    // A subgroup's 64 rows by 32 columns are 16 blocks, at two steps of 8 words; four matrices a load.
    let units = [("mma.sync.aligned.m16n8k16.row.col.f32.bf16", 32), ("ldmatrix.sync.aligned.m8n8.x4", 12), ("cvt.rn.bf16x2", 32)];
    counts(
        product,
        &Gpu { rounding: Some(Rounding::Bf16), ..gpu.clone() },
        &[&units[..], &[("cp.async", 0), ("st.global.v2.f32", 32), ("st.global.f32", 0)]].concat(),
    );
    // Two tiles in turn; the right one is turned on its way, element by element.
    let units = [("mma.sync.aligned.m16n8k8.row.col.f32.tf32", 32), ("ldmatrix.sync.aligned.m8n8.x4", 12), ("cvt.rna.tf32", 48)];
    let copies = [("cp.async.cg", 4), ("cp.async.ca", 16), ("cp.async.commit_group", 2), ("ld.global", 0), ("st.global.v2.f32", 32)];
    counts(product, &Gpu { rounding: Some(Rounding::Tf32), ..gpu.clone() }, &[&units[..], &copies].concat());
    let chain = "module net(a: f32[N], b: f32[N]) -> (y: f32[N]) {\n  y = relu(a * b + 0.5)\n  return y\n}\n".replace("[N]", "[4096]");
    counts(&chain, &gpu, &[("ld.global.nc.v4.f32", 2), ("st.global.v4.f32", 1), ("ld.global.nc.f32", 0), ("st.global.f32", 0)]);
}

/// Runs hand-written instructions as two groups of 64 threads, with a buffer of 64 words that is read and one that is written.
fn run_text(body: &str) -> Result<Vec<u8>, String> {
    let registers = ".reg .pred %p<8>;\n.reg .b32 %r<8>;\n.reg .b64 %l<8>;\n.reg .f32 %f<8>;\n.shared .align 16 .b8 shared0[256];\n";
    let start = "ld.param.u64 %l0, [k_b0];\nld.param.u64 %l1, [k_b1];\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %l2, %r0, 4;\nadd.s64 %l3, %l0, %l2;\n\
                 add.s64 %l4, %l1, %l2;\nmov.u32 %r1, shared0;\nmad.lo.u32 %r1, %r0, 4, %r1;\n";
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(\n.param .u64 k_b0,\n.param .u64 k_b1\n)\n.maxntid 64, 1, 1\n{{\n{registers}{start}\
         {body}\nret;\n}}\n"
    );
    let entry = ptx::parse(&text)?.pop().expect("an entry point");
    let (mut a, mut b) = ((0..256).map(|i| i as u8).collect::<Vec<_>>(), vec![0; 256]);
    let buffers = vec![Window { data: &mut a, written: false }, Window { data: &mut b, written: true }];
    ptx::run(&entry, &mut ptx::Launch { groups: [2, 1], buffers, scalars: &[] })?;
    Ok(b)
}

fn fails(body: &str, why: &str) {
    let e = run_text(body).expect_err(why);
    assert!(e.contains(why), "`{why}` is not in: {e}");
}

#[test]
fn hazards_of_copies_are_errors() {
    // The neighbour's word by way of a copy to shared memory.
    let swap = "cp.async.ca.shared.global [%r1], [%l3], 4;\ncp.async.commit_group;\ncp.async.wait_group 0;\nbar.sync 0;\nxor.b32 %r3, %r1, 4;\n\
                ld.shared.u32 %r4, [%r3];\nst.global.u32 [%l4], %r4;";
    let out = run_text(swap).expect("nothing is wrong with it");
    assert_eq!((out[0], out[4], out[8]), (4, 0, 12));
    // Nothing is read behind the first byte.
    let out = run_text(&swap.replace("[%l3], 4", "[%l3], 4, 1")).expect("nothing is wrong with it");
    assert_eq!(&out[..8], [4, 0, 0, 0, 0, 0, 0, 0]);
    fails(&swap.replace("cp.async.wait_group 0;\n", ""), "the copy to it was not waited for");
    fails(&swap.replace("wait_group 0", "wait_group 1"), "the copy to it was not waited for");
    // What stands in an open group is waited for by nobody.
    fails(&swap.replace("cp.async.commit_group;\n", ""), "the copy to it was not waited for");
    fails(&swap.replace("bar.sync 0;\n", ""), "is read while thread 1 writes it");
    fails(&swap.replace("bar.sync 0;", "st.shared.u32 [%r1], %r0;\nbar.sync 0;").replace("wait_group 0", "wait_group 1"), "is written, and a copy");
    fails(&format!("{swap}\ncp.async.ca.shared.global [%r1], [%l3], 4;\ncp.async.commit_group;\ncp.async.wait_group 0;"), "another thread reads it");
    fails(&format!("{swap}\nbar.sync 0;\ncp.async.ca.shared.global [%r1], [%l3], 4;"), "it ends before its copies have arrived");
    fails(&swap.replace("ca.shared.global [%r1], [%l3], 4", "cg.shared.global [%r1], [%l3], 16"), "is no multiple of 16");
    fails(&swap.replace("[%l3], 4", "[%l3+256], 4"), "byte 256 of buffer 0, which has 256");
    fails(&swap.replace("[%l3], 4", "[%l4], 4"), "what the kernel writes to is copied");
    fails(&swap.replace("cp.async.ca.", "cp.async.cg."), "no such size");
}

#[test]
fn hazards_are_errors() {
    // The neighbour's word by way of shared memory.
    let swap = "ld.global.nc.u32 %r2, [%l3];\nst.shared.u32 [%r1], %r2;\nbar.sync 0;\nxor.b32 %r3, %r1, 4;\nld.shared.u32 %r4, [%r3];\nst.global.u32 [%l4], %r4;";
    let out = run_text(swap).expect("nothing is wrong with it");
    assert_eq!((out[0], out[4], out[8]), (4, 0, 12));
    fails(&swap.replace("bar.sync 0;\n", ""), "byte 0x4 is read while thread 1 writes it");
    fails(&swap.replace("st.shared.u32 [%r1], %r2;\n", ""), "of shared memory is read, and nobody wrote it");
    fails(&swap.replace("[%l4]", "[%l4+4]"), "byte 256 of buffer 1, which has 256");
    fails(&swap.replace("[%l4]", "[%l4+2]"), "is no multiple of 4");
    fails(&swap.replace("st.global.u32 [%l4]", "st.global.u32 [%l3]"), "buffer 0 is only to be read");
    fails(&swap.replace("[%l4], %r4", "[%l1], %r4"), "is written by thread");
    fails(&swap.replace("bar.sync 0;", "setp.lt.u32 %p0, %r0, 3;\n@%p0 bra $L1;\nbar.sync 0;\n$L1:"), "a barrier that 61 of 64 threads come by");
    fails(
        &swap.replace("bar.sync 0;", "setp.lt.u32 %p0, %r0, 3;\n@%p0 bra $L1;\nshfl.sync.bfly.b32 %r5, %r0, 1, 31, 0xffffffff;\n$L1:\nbar.sync 0;"),
        "partner",
    );
    fails(&swap.replace("%r4;", "%r9;"), "%r9 is not declared");
    fails(&swap.replace("ld.shared.u32", "ld.local.u32"), "a space that the interpreter does not know");
}
