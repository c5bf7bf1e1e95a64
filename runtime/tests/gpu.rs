//! Programs on the simulated device: kernels for single operations at sizes that fill no tile, and runs that follow on each other.

use nnc::Options;
use nnc::build::gpu_program;
use nnc::gpu::run::{Model, Runner};
use nnc::gpu::simulated::Simulated;
use nnc::ir::attrs::Real;
use nnc::ir::builder::Builder;
use nnc::ir::eval::{Env, run};
use nnc::ir::ops::Op;
use nnc::ir::ops::composite::activation::Act;
use nnc::ir::ops::composite::norm::{LayerNorm, LogSoftmax, Softmax};
use nnc::ir::ops::contract::{Conv, Layout, MatMul, Post};
use nnc::ir::ops::reduce::{Reduce, ReduceKind};
use nnc::ir::target::{Cooperative, Gpu, GpuIsa, Rounding};
use nnc::ir::{DType, Dim, Graph, ScalarFn, Tensor, Type};

/// An operand: each axis a size, and a symbol where the program is not to know it.
type Shape<'a> = &'a [(i64, &'a str)];

struct Case<'a> {
    /// What computes it.
    by: &'a str,
    op: Op,
    x: &'a [Shape<'a>],
}

/// Eighths between -2 and 2 that differ from run to run.
fn data(shape: Shape, salt: usize) -> Tensor {
    let dims: Vec<usize> = shape.iter().map(|(n, _)| *n as usize).collect();
    let values: Vec<f32> = (0..dims.iter().product()).map(|i: usize| ((i * 2_654_435_761 + salt * 40_503) / 977 % 33) as f32 / 8.0 - 2.0).collect();
    Tensor::new(&dims, &values)
}

const BF16: Option<Rounding> = Some(Rounding::Bf16);
const TF32: Option<Rounding> = Some(Rounding::Tf32);

/// The case on devices of both languages, three times with other data, against the reference.
fn check(c: &Case) {
    let b = Builder::new("case");
    let dim = |(n, symbol): &(i64, &str)| if symbol.is_empty() { Dim::Const(*n) } else { Dim::sym(*symbol) };
    let types = c.x.iter().map(|s| Type::new(DType::F32, s.iter().map(dim).collect::<Vec<_>>()));
    let x: Vec<_> = types.enumerate().map(|(i, t)| b.input(format!("x{i}"), t)).collect();
    let y = b.op(c.op.clone(), &x);
    b.output("y", y);
    held(&b.finish().expect("a graph"), c.by, c.x);
}

/// As [`check`], for a graph of which a kernel is to be computed `by` this.
fn held(graph: &Graph, by: &str, x: &[Shape]) {
    for (isa, lanes, rounding) in [(GpuIsa::SpirV, 8, None), (GpuIsa::Sm90, 32, None), (GpuIsa::Sm90, 32, BF16), (GpuIsa::Sm90, 32, TF32)] {
        let device = Gpu { rounding, ..Gpu::new(isa) };
        let program = gpu_program(graph.clone(), &device, &Options::default(), &mut ()).expect("a program");
        let runner = Runner::new(program, Simulated::new(device, lanes)).expect("a runner");
        let chosen = runner.plan().selections();
        assert!(chosen.iter().any(|s| s.implementation == by), "{}: {:?}", by, chosen.iter().map(|s| &s.refused).collect::<Vec<_>>());
        for salt in 0..3 {
            let inputs: Vec<Tensor> = x.iter().enumerate().map(|(i, s)| data(s, 7 * salt + i)).collect();
            let want = run(graph, &inputs, &Env::default()).expect("the reference")[0].to_f64s();
            let got = runner.run(&inputs).expect("the device")[0].to_f64s();
            let most = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= 2e-5 * most, "{} on {isa:?}, run {salt}: y[{i}] is {g}, not {w}", by);
            }
            assert_eq!(got.len(), want.len());
        }
    }
}

fn product(transposed: bool, post: Vec<Post>) -> Op {
    Op::from(MatMul { transposed, packed: Dim::Const(0), post })
}

fn plain() -> Conv {
    Conv { strides: vec![], dilations: vec![], pads: vec![], group: 1, layout: Layout::Plain, inputs: 0, outputs: 0, post: vec![] }
}

const RELU: Post = Post::Act(Act::Fn(ScalarFn::Relu));

#[test]
fn products_by_tiles() {
    let by = "tiled product";
    let post = vec![Post::Bias, RELU, Post::Add];
    let x: &[Shape] = &[&[(70, ""), (50, "")], &[(50, ""), (33, "")], &[(33, "")], &[(70, ""), (33, "")]];
    check(&Case { by, op: product(false, post), x });
    // Of a size that only the run knows: the largest tiles.
    check(&Case { by, op: product(false, vec![]), x: &[&[(140, "M"), (21, "K")], &[(21, "K"), (130, "N")]] });
    // Edges between whole vectors, and of them; pitches of two.
    let post = vec![Post::Scale, Post::Add];
    check(&Case { by, op: product(false, post), x: &[&[(70, ""), (20, "")], &[(20, ""), (76, "")], &[(76, "")], &[(70, ""), (76, "")]] });
    check(&Case { by, op: product(true, vec![]), x: &[&[(33, ""), (22, "")], &[(50, ""), (22, "")]] });
    check(&Case { by, op: product(false, vec![]), x: &[&[(140, "M"), (24, "")], &[(24, ""), (132, "")]] });
    let batches: &[Shape] = &[&[(3, ""), (1, ""), (9, ""), (24, "")], &[(2, ""), (40, ""), (24, "")]];
    check(&Case { by, op: product(true, vec![]), x: batches });
    // Whole tiles ask for no bounds.
    check(&Case { by, op: product(false, vec![]), x: &[&[(64, ""), (32, "")], &[(32, ""), (128, "")]] });
}

#[test]
fn convolutions_by_tiles() {
    let by = "tiled convolution";
    let op = Conv {
        strides: vec![2, 1],
        dilations: vec![1, 2],
        pads: vec![1, 0, 2, 1],
        group: 2,
        post: vec![Post::Bias, Post::Act(Act::Gelu {})],
        ..plain()
    };
    let x: &[Shape] = &[&[(2, ""), (6, ""), (13, ""), (11, "")], &[(16, ""), (3, ""), (3, ""), (2, "")], &[(16, "")]];
    check(&Case { by, op: Op::from(op), x });
    let x: &[Shape] = &[&[(3, "N"), (20, ""), (6, "H"), (5, "W")], &[(70, ""), (20, ""), (3, ""), (3, "")]];
    check(&Case { by, op: Op::from(Conv { pads: vec![1; 4], post: vec![RELU], ..plain() }), x });
    // Pixels that lie as the result's do.
    let x: &[Shape] =
        &[&[(2, ""), (10, ""), (6, ""), (6, "")], &[(40, ""), (10, ""), (1, ""), (1, "")], &[(40, "")], &[(2, ""), (40, ""), (6, ""), (6, "")]];
    check(&Case { by, op: Op::from(Conv { post: vec![Post::Bias, Post::Add], ..plain() }), x });
    let line: &[Shape] = &[&[(1, ""), (4, ""), (30, "")], &[(9, ""), (4, ""), (5, "")]];
    check(&Case { by, op: Op::from(Conv { strides: vec![2], ..plain() }), x: line });
    let volume: &[Shape] = &[&[(1, ""), (2, ""), (4, ""), (5, ""), (6, "")], &[(8, ""), (2, ""), (2, ""), (3, ""), (3, "")]];
    check(&Case { by, op: Op::from(Conv { pads: vec![1; 6], ..plain() }), x: volume });
}

/// Elements that a thread takes together, and those that are left over.
#[test]
fn elements_by_vectors() {
    for n in [[(1000, "")], [(1003, "")], [(1001, "N")], [(3, "N")]] {
        check(&Case { by: "loops", op: Op::Map(ScalarFn::Add), x: &[&n, &n] });
    }
    check(&Case { by: "loops", op: Op::Map(ScalarFn::Mul), x: &[&[(7, ""), (12, "")], &[(12, "")]] });
    check(&Case { by: "loops", op: Op::Map(ScalarFn::Sub), x: &[&[(5, "N"), (1, "")], &[(5, "N"), (9, "")]] });
}

#[test]
fn rows_by_groups() {
    let by = "rows by groups";
    check(&Case { by, op: Op::from(Softmax { axis: 1 }), x: &[&[(5, ""), (100, "")]] });
    check(&Case { by, op: Op::from(Softmax { axis: 2 }), x: &[&[(2, ""), (3, "R"), (300, "C")]] });
    check(&Case { by, op: Op::from(LogSoftmax { axis: 1 }), x: &[&[(3, ""), (700, "")]] });
    let norm = LayerNorm { axis: 1, epsilon: Real(1e-5) };
    check(&Case { by, op: Op::from(norm), x: &[&[(4, ""), (6, ""), (30, "")], &[(6, ""), (30, "")], &[(6, ""), (30, "")]] });
}

/// Folds that are long for their number: of an axis, of several, of sizes that only the run knows, with what is fused around them.
#[test]
fn folds_by_groups() {
    let by = "folds by groups";
    let fold = |kind, axes: &[usize]| Op::from(Reduce { kind, axes: axes.to_vec(), keepdims: false });
    check(&Case { by, op: fold(ReduceKind::Sum, &[1]), x: &[&[(5, ""), (700, "")]] });
    check(&Case { by, op: fold(ReduceKind::Max, &[0]), x: &[&[(300, ""), (7, "")]] });
    check(&Case { by, op: fold(ReduceKind::Min, &[0, 2]), x: &[&[(70, "N"), (3, ""), (5, "")]] });
    check(&Case { by, op: fold(ReduceKind::Sum, &[1, 2]), x: &[&[(2, ""), (7, "H"), (9, "W")]] });
    // A product of few rows is one, too.
    check(&Case { by, op: product(true, vec![Post::Bias, RELU]), x: &[&[(2, ""), (100, "")], &[(30, ""), (100, "")], &[(30, "")]] });
    let b = Builder::new("case");
    let x = b.input("x0", Type::of(DType::F32, &[4, 90]));
    let largest = x.reduce(ReduceKind::Max, &[1], true);
    b.output("y", (x - largest).map(ScalarFn::Exp).reduce(ReduceKind::Sum, &[1], false).map(ScalarFn::Log));
    held(&b.finish().expect("a graph"), by, &[&[(4, ""), (90, "")]]);
    let b = Builder::new("case");
    let x = b.input("x0", Type::of(DType::F32, &[4, 90]));
    b.output("y", x.cast(DType::I64).reduce(ReduceKind::Sum, &[1], false).cast(DType::F32));
    held(&b.finish().expect("a graph"), by, &[&[(4, ""), (90, "")]]);
    // Short ones, and many of them, are threads' loops.
    check(&Case { by: "loops", op: fold(ReduceKind::Sum, &[1]), x: &[&[(5, ""), (31, "")]] });
    check(&Case { by: "loops", op: fold(ReduceKind::Sum, &[1]), x: &[&[(2049, ""), (32, "")]] });
}

/// Operands that bf16 and tf32 hold exactly give what f32 gives, by way of matrix units: tiles of both sizes, edges, and a product by loops beside.
#[test]
fn products_by_matrix_units() {
    let sizes = [(70, 50, 41, 64), (64, 64, 64, 64), (70, 52, 44, 64), (1500, 9, 1300, 256)];
    for ((m, k, n, threads), rounding) in sizes.into_iter().flat_map(|s| [(s, BF16), (s, TF32)]) {
        let device = Gpu { rounding, ..Gpu::new(GpuIsa::Sm80) };
        let b = Builder::new("case");
        let x = b.input("x", Type::of(DType::F32, &[m, k]));
        let y =
            b.op(product(true, vec![Post::Bias, RELU]), &[x, b.input("w", Type::of(DType::F32, &[n, k])), b.input("c", Type::of(DType::F32, &[n]))]);
        b.output("y", y);
        let graph = b.finish().expect("a graph");
        let program = gpu_program(graph.clone(), &device, &Options::default(), &mut ()).expect("a program");
        let runner = Runner::new(program, Simulated::new(device.clone(), 32)).expect("a runner");
        let text = runner.plan().device_kernels()[0].to_string();
        assert!(text.contains("multiply_matrices") && text.contains(&format!("threads {threads}")), "{}", text.lines().next().unwrap_or_default());
        let inputs = [data(&[(m, ""), (k, "")], 1), data(&[(n, ""), (k, "")], 2), data(&[(n, "")], 3)];
        let want = run(&graph, &inputs, &Env::default()).expect("the reference")[0].to_f64s();
        let got = runner.run(&inputs).expect("the device")[0].to_f64s();
        assert!(got == want, "{m}x{k}x{n}: {:?}", got.iter().zip(&want).position(|(g, w)| g != w));
    }
}

/// [`data`] of another type.
fn typed(d: DType, shape: &[i64], salt: usize) -> Tensor {
    let t = data(&shape.iter().map(|n| (*n, "")).collect::<Vec<_>>(), salt);
    let bytes: Vec<u8> = t.to_f64s().iter().flat_map(|v| Tensor::scalar_of(d, *v).bytes().to_vec()).collect();
    Tensor::from_bytes(d, t.shape().to_vec(), bytes.into()).expect("a tensor")
}

/// A product of halves as a graph, and inputs for it.
fn halves(d: DType, (m, k, n): (i64, i64, i64), transposed: bool) -> (Graph, Vec<Tensor>) {
    let b = Builder::new("case");
    let w = if transposed { [n, k] } else { [k, n] };
    let shapes: [&[i64]; 3] = [&[m, k], &w, &[n]];
    let x: Vec<_> = shapes.iter().enumerate().map(|(i, s)| b.input(format!("x{i}"), Type::of(d, s))).collect();
    let y = b.op(product(transposed, vec![Post::Bias, RELU]), &x);
    b.output("y", y);
    let inputs = shapes.iter().enumerate().map(|(i, s)| typed(d, s, i)).collect();
    (b.finish().expect("a graph"), inputs)
}

/// What a device of so many lanes computes is what the reference does; the text of its first kernel.
fn exact(graph: Graph, inputs: &[Tensor], device: &Gpu, lanes: u32) -> String {
    let program = gpu_program(graph.clone(), device, &Options::default(), &mut ()).expect("a program");
    let runner = Runner::new(program, Simulated::new(device.clone(), lanes)).expect("a runner");
    let want = run(&graph, inputs, &Env::default()).expect("the reference")[0].to_f64s();
    let got = runner.run(inputs).expect("the device")[0].to_f64s();
    assert!(got == want, "{:?}: {:?}", inputs[0].ty(), got.iter().zip(&want).position(|(g, w)| g != w));
    runner.plan().device_kernels()[0].to_string()
}

/// Products of f16 and bf16 are exact in f32, so matrix units multiply them unasked: sums are f32, results are rounded once.
#[test]
fn products_of_halves() {
    for (d, m, k, n, transposed) in
        [(DType::F16, 70, 52, 44, true), (DType::F16, 70, 51, 41, true), (DType::F16, 40, 30, 33, false), (DType::BF16, 64, 64, 64, true)]
    {
        let (graph, inputs) = halves(d, (m, k, n), transposed);
        let text = exact(graph, &inputs, &Gpu::new(GpuIsa::Sm80), 32);
        assert!(text.contains("multiply_matrices"), "{text}");
        // Pairs that lie side by side in both operands are copied as they are.
        assert_eq!(text.contains("close_copies"), transposed && k % 2 == 0, "{m}x{k}x{n}");
    }
}

/// So do subgroups that hold matrices together, of whatever shape the device lists, for images, too; bf16 they leave to loops.
#[test]
fn products_of_cooperative_matrices() {
    let shapes = [(8, 8, 8, 8), (16, 16, 16, 32), (16, 8, 16, 32), (8, 16, 16, 16), (16, 16, 16, 64)];
    for ((rows, columns, depth, lanes), transposed) in shapes.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let device = Gpu { cooperative: Some(Cooperative { rows, columns, depth, lanes }), ..Gpu::new(GpuIsa::SpirV) };
        let (graph, inputs) = halves(DType::F16, (70, 52, 41), transposed);
        let text = exact(graph, &inputs, &device, lanes);
        assert!(text.contains(": sums = muladd"), "{text}");
        let (graph, inputs) = halves(DType::BF16, (9, 16, 9), transposed);
        assert!(!exact(graph, &inputs, &device, lanes).contains("sums"));
    }
    let device = Gpu { cooperative: Some(Cooperative { rows: 8, columns: 8, depth: 8, lanes: 8 }), ..Gpu::new(GpuIsa::SpirV) };
    let b = Builder::new("case");
    let (x, w) = (b.input("x", Type::of(DType::F16, &[2, 4, 6, 5])), b.input("w", Type::of(DType::F16, &[9, 4, 3, 3])));
    b.output("y", b.op(Op::from(Conv { pads: vec![1; 4], post: vec![RELU], ..plain() }), &[x, w]));
    let text = exact(b.finish().expect("a graph"), &[typed(DType::F16, &[2, 4, 6, 5], 3), typed(DType::F16, &[9, 4, 3, 3], 4)], &device, 8);
    assert!(text.contains(": sums = muladd"), "{text}");
    // A shape that leaves no whole blocks for each subgroup is not taken.
    let device = Gpu { cooperative: Some(Cooperative { rows: 48, columns: 16, depth: 16, lanes: 32 }), ..Gpu::new(GpuIsa::SpirV) };
    let (graph, inputs) = halves(DType::F16, (16, 16, 16), false);
    assert!(!exact(graph, &inputs, &device, 32).contains("sums"));
}

/// What is recorded of a run for the next ones is all of it.
#[test]
fn runs_follow_on_each_other() {
    let b = Builder::new("two");
    let x = b.input("x", Type::of(DType::F32, &[70, 80]));
    let y = b.op(product(false, vec![RELU]), &[x, b.input("w", Type::of(DType::F32, &[80, 90]))]);
    let z = b.op(Softmax { axis: 1 }, &[y]);
    b.output("z", z);
    let graph = b.finish().expect("a graph");
    let device = Gpu::new(GpuIsa::SpirV);
    let program = gpu_program(graph.clone(), &device, &Options::default(), &mut ()).expect("a program");
    assert!(program.kernels.len() > 1, "several launches");
    let runner = Runner::new(program, Simulated::new(device, 8)).expect("a runner");
    for salt in 0..4 {
        let inputs = [data(&[(70, ""), (80, "")], salt), data(&[(80, ""), (90, "")], 9)];
        let want = run(&graph, &inputs, &Env::default()).expect("the reference")[0].to_f64s();
        let got = runner.run(&inputs).expect("the device")[0].to_f64s();
        let worst = got.iter().zip(&want).fold(0.0, |m: f64, (g, w)| m.max((g - w).abs()));
        assert!(worst < 1e-5, "run {salt} is off by {worst}");
    }
    // A run that is timed gives the same, and an event for each launch, in order.
    let inputs = [data(&[(70, ""), (80, "")], 1), data(&[(80, ""), (90, "")], 9)];
    let (outputs, events) = runner.run_traced(&inputs).expect("a timed run");
    assert_eq!(outputs, runner.run(&inputs).expect("a run"));
    assert_eq!(events.iter().map(|e| e.launch).collect::<Vec<_>>(), (0..runner.plan().program.steps.len()).collect::<Vec<_>>());
    assert!(events.windows(2).all(|w| w[0].start <= w[0].end && w[0].end == w[1].start));
}

/// State that stays with the device is what it is when it is handed back and forth, bit by bit: whichever of two recordings has its turn.
#[test]
fn steps_keep_their_state() {
    let b = Builder::new("step");
    let (w, v) = (b.input("w", Type::of(DType::F32, &[40, 9])), b.input("v", Type::of(DType::F32, &[40, 9])));
    let x = b.input("x", Type::of(DType::F32, &[9]));
    let slope = w * x;
    let speed = v.max(slope);
    b.output("v", speed);
    b.output("w", w - speed);
    b.output("loss", slope.reduce(ReduceKind::Sum, &[0, 1], false));
    let graph = b.finish().expect("a graph");
    let device = Gpu::new(GpuIsa::SpirV);
    let program = gpu_program(graph, &device, &Options::default(), &mut ()).expect("a program");
    let runner = Runner::new(program, Simulated::new(device, 8)).expect("a runner");
    let wide: Shape = &[(40, ""), (9, "")];
    let mut state = [data(wide, 1), data(wide, 2), data(&[(9, "")], 0)];
    let mut want = vec![];
    for salt in 0..5 {
        state[2] = data(&[(9, "")], salt);
        let y = runner.run(&state).expect("a run");
        (state[1], state[0]) = (y[0].clone(), y[1].clone());
        want.push(y[2].clone());
    }
    let mut steps = runner.steps(&[data(wide, 1), data(wide, 2), data(&[(9, "")], 0)], &[(0, 1), (1, 0)]).expect("steps");
    for (salt, want) in want.iter().enumerate() {
        steps.fill(2, &data(&[(9, "")], salt).bytes()).expect("a batch");
        steps.run().expect("a step");
        assert_eq!(steps.output(2).expect("a loss"), *want, "step {salt}");
    }
    assert_eq!([steps.input(0).expect("w"), steps.output(0).expect("v")], [state[0].clone(), state[1].clone()]);
    assert!(steps.fill(2, &[0; 4]).is_err());
    drop(steps);
    // What follows finds the memory where it is now.
    let again = [data(wide, 1), data(wide, 2), data(&[(9, "")], 0)];
    assert_eq!(runner.run(&again).expect("a run")[2], want[0]);
}
