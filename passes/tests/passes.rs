//! Single passes, and the pipeline as a command line sees it.

mod graphs;
use graphs::*;
use nnc_ir::ops::contract::MatMul;
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::source::ReadDims;
use nnc_ir::target::Isa;
use nnc_ir::{Builder, DType, Dim, Graph, Op, Target, Tensor, Type};
use nnc_passes::pass::Stage;
use nnc_passes::pipeline::PIPELINE;
use nnc_passes::{Decision, Observer, Options, Precision, optimize, pass_names, run_pass};

fn run(pass: &str, g: &Graph) -> Graph {
    let options = Options { verify: true, ..Options::default() };
    run_pass(pass, g.clone(), &Target::new(Isa::Avx512), &options, &mut ()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn folding_does_not_inflate() {
    let big = [1 << 18, 1 << 18].map(Dim::Const).to_vec();
    let g = graph(|b| {
        let row = b.constant(Tensor::new(&[1, 1 << 10], &vec![1.5f32; 1 << 10]));
        let tiled = row.expand(vec![Dim::Const(1 << 20), Dim::Const(1 << 10)]);
        b.input("x", Type::of(DType::F32, &[1 << 20, 1 << 10])) + tiled
    });
    assert_eq!(ops(&run("weights", &g)), ["expand", "add"]);
    // One element repeated stays one element, however often.
    let g = graph(|b| b.constant(Tensor::scalar(2.0f32)).expand(big));
    let folded = run("weights", &g);
    assert_eq!(ops(&folded), [""; 0]);
    assert!(folded.constant(folded.outputs[0].value).unwrap().splat_element().is_some());
}

#[test]
fn folding_removes_what_does_nothing() {
    let g = graph(|b| {
        let x = b.input("x", Type::of(DType::F32, &[2, 6]));
        let y = b.op(nnc_ir::ops::map::Cast { to: DType::F32 }, &[x]);
        let y = b.op(nnc_ir::ops::movement::Transpose { perm: vec![0, 1] }, &[y]);
        let y = y.reshape([3, 4].map(Dim::Const).to_vec());
        y + (b.constant(Tensor::scalar(1.0f32)) + b.constant(Tensor::scalar(2.0f32)))
    });
    assert_eq!(ops(&run("fold", &g)), ["reshape", "add"]);
}

#[test]
fn equal_things_are_computed_once() {
    let g = graph(|b| {
        let x = b.input("x", Type::of(DType::F32, &[2, 3]));
        (x.exp() * x.scalar_like(2.0)) + (x.exp() * x.scalar_like(2.0))
    });
    assert_eq!(ops(&run("cse", &g)), ["exp", "mul", "add"]);
}

#[test]
fn what_binds_a_size_is_not_dead() {
    let b = Builder::new("f");
    let n = b.input("n", Type::of(DType::I64, &[1]));
    b.op(ReadDims { symbols: vec![Dim::sym("n")] }, &[n]);
    b.op(Op::Map(nnc_ir::ScalarFn::Neg), &[n]);
    b.output("y", b.constant(Tensor::scalar(1.0f32)).expand(vec![Dim::sym("n")]));
    let g = b.finish().unwrap();
    assert_eq!(ops(&run("dce", &g)), ["read_dims", "expand"]);
}

#[test]
fn zero_is_not_neutral_to_minus_zero() {
    let sum = |subtracts: bool, zero: f64| {
        graph(|b| {
            let x = b.input("x", Type::of(DType::F32, &[1]));
            if subtracts { x - x.scalar_like(zero) } else { x + x.scalar_like(zero) }
        })
    };
    let sums = [sum(false, 0.0), sum(true, -0.0), sum(false, -0.0), sum(true, 0.0)];
    for (g, (left, sign)) in sums.iter().zip([(1, false), (1, false), (0, true), (0, true)]) {
        let g = optimized(g, &Options::default());
        assert_eq!(ops(&g).len(), left, "{g}");
        let y = nnc_ir::eval::run(&g, &[Tensor::new(&[1], &[-0f32])], &nnc_ir::eval::Env::default()).unwrap();
        assert_eq!(y[0].to_f64s()[0].is_sign_negative(), sign);
    }
}

/// Products that a scan adds up are one behind it, unless sums keep their order.
#[test]
fn exact_sums_stay_in_their_loop() {
    let [x, y, sum] = [[2, 3], [2, 4], [3, 4]].map(|s| Type::of(DType::F32, &s));
    let body = Builder::new("body");
    {
        let [d, x, y] = [sum.clone(), x, y].map(|t| body.input("", t));
        body.output("", d + body.op(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }, &[x.transpose(&[1, 0]), y]));
    }
    let body = body.finish().unwrap();
    let g = graph(|b| {
        let [x, y] = [[5, 2, 3], [5, 2, 4]].map(|s| b.input("", Type::of(DType::F32, &s)));
        let d = b.input("d", sum);
        b.op_all(Scan { states: 1, scanned: 2, reverse: false }, &[d, x, y], vec![body])[0]
    });
    assert_eq!(ops(&run("sums", &g)), ["scan", "reshape", "transpose", "reshape", "matmul", "add"]);
    let exact = Options { precision: Precision::Exact, ..Options::default() };
    let kept = run_pass("sums", g.clone(), &Target::new(Isa::Avx512), &exact, &mut ()).unwrap();
    assert_eq!(ops(&kept), ops(&g));
}

#[test]
fn unknown_passes_and_stages_name_the_known_ones() {
    let g = graph(|b| b.input("x", Type::of(DType::F32, &[2])).exp());
    let target = Target::new(Isa::Avx512);
    let alone = run_pass("fuze", g.clone(), &target, &Options::default(), &mut ()).unwrap_err().to_string();
    let stop = Options { stop_after: Some("fuze".into()), ..Options::default() };
    let stopped = optimize(g, &target, &stop, &mut ()).unwrap_err().to_string();
    for name in pass_names() {
        assert!(alone.contains(name) && stopped.contains(name), "{name} is not in\n{alone}\n{stopped}");
    }
    assert!(stopped.contains("simple"));
}

#[derive(Default)]
struct Record {
    passes: Vec<&'static str>,
    decisions: Vec<Decision>,
}

impl Observer for Record {
    fn after(&mut self, pass: &'static str, _: &Graph, _: std::time::Duration) {
        self.passes.push(pass);
    }
    fn decision(&mut self, decision: Decision) {
        self.decisions.push(decision);
    }
}

#[test]
fn observers_see_passes_in_order_and_why_a_layout_was_chosen() {
    let g = graph(|b| head(conv(conv(image(b, 3, 8), 32, 3, 1, 1), 32, 3, 1, 2).relu(), 10));
    let mut all = Record::default();
    let target = Target::new(Isa::Avx512);
    optimize(g.clone(), &target, &Options::default(), &mut all).unwrap();
    assert_eq!(all.passes, pass_names());
    let chosen: Vec<(&str, &str)> = all.decisions.iter().map(|d| (d.op, d.chosen.as_str())).collect();
    assert_eq!(chosen, [("conv", "enter(16)"), ("conv", "blocked(16)"), ("matmul", "packed")]);
    assert!(all.decisions.iter().all(|d| d.cycles > 0.0));
    let mut some = Record::default();
    let options = Options { stop_after: Some("simple".into()), ..Options::default() };
    optimize(g, &target, &options, &mut some).unwrap();
    // All passes of the stages up to it, and no other.
    let want: Vec<&str> = PIPELINE.iter().take_while(|s| s.leaves != Stage::Laid).map(|s| s.name).collect();
    assert_eq!(some.passes, want);
}
