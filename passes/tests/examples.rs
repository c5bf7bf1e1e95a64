//! Every example of every operation: the lowered program computes what the interpreter does.

use nnc_ir::error::Code;
use nnc_ir::eval::{Env, run};
use nnc_ir::examples::{Example, SIZES, Values, compare, examples, random_tensor};
use nnc_ir::graph::Graph;
use nnc_ir::kernel::Program;
use nnc_ir::kernel::eval::eval_program;
use nnc_ir::kernel::verify::verify_program;
use nnc_ir::target::Isa;
use nnc_ir::{Dim, Target, Tensor};
use nnc_passes::lower;

fn check(e: &Example) -> Result<(), String> {
    let g = e.graph().map_err(|r| r.to_string())?;
    let program = lower(&g, &Target::new(Isa::Avx512)).map_err(|r| r.to_string())?;
    verify_program(&program).map_err(|r| r.to_string())?;
    let x = e.tensors(1).map_err(|e| e.to_string())?;
    let want = run(&g, &x, &Env::default()).map_err(|e| e.to_string())?;
    let got = eval_program(&program, &x).map_err(|e| e.to_string())?;
    got.iter().zip(&want).try_for_each(|(g, w)| compare(g, w))
}

#[test]
fn lowered_programs_compute_what_the_interpreter_does() {
    let wrong: Vec<String> = examples().iter().filter_map(|e| check(e).err().map(|m| format!("{}: {m}", e.name))).collect();
    assert!(wrong.is_empty(), "{} examples:\n{}", wrong.len(), wrong.join("\n"));
}

/// The program does what the interpreter does, or refuses what it refuses: by a check of its own, never by reaching outside of a buffer.
fn agree(g: &Graph, program: &Program, x: &[Tensor]) -> Result<(), String> {
    match (run(g, x, &Env::default()), eval_program(program, x)) {
        (Err(_), Err(e)) if e.code() != Code::Internal => Ok(()),
        (Err(want), Err(got)) => Err(format!("refused only by the buffers' ends: {got}; {want}")),
        (Err(want), Ok(_)) => Err(format!("runs where there is no result: {want}")),
        (Ok(_), Err(got)) => Err(format!("refuses what has a result: {got}")),
        (Ok(want), Ok(got)) => got.iter().zip(&want).try_for_each(|(g, w)| compare(g, w)),
    }
}

/// Calls `f` with each operand, each axis of it, and lengths that are not `shapes`'.
fn lengths(e: &Example, shapes: &[Vec<usize>], mut f: impl FnMut(usize, usize, usize)) {
    for (k, shape) in shapes.iter().enumerate().filter(|(k, _)| !matches!(e.values.get(*k), Some(Values::Given(_)))) {
        for (axis, d) in shape.iter().enumerate() {
            [d + 1, 0, d + 20].iter().for_each(|n| f(k, axis, *n));
        }
    }
}

fn tensors(e: &Example, shapes: &[Vec<usize>]) -> Vec<Tensor> {
    let types = e.inputs.iter().chain(&e.binders).zip(shapes).enumerate();
    types.map(|(k, (t, s))| random_tensor(t.dtype, s, e.values.get(k).unwrap_or(&Values::Small), 1)).collect()
}

fn strain(e: &Example, wrong: &mut Vec<String>) {
    let env = Env::default();
    SIZES.iter().for_each(|(s, n)| env.bind(&(*s).into(), *n).expect("a size"));
    let shapes: Vec<Vec<usize>> = e.inputs.iter().chain(&e.binders).map(|t| env.shape(&t.shape).expect("a shape")).collect();
    let lowered = |g: &Graph| lower(g, &Target::new(Isa::Avx512));
    let changed = |(k, axis, n): (usize, usize, usize)| {
        let mut shapes = shapes.clone();
        shapes[k][axis] = n;
        tensors(e, &shapes)
    };
    // Lengths that the graph names.
    lengths(e, &shapes, |k, axis, n| {
        let mut e = e.clone();
        if k >= e.inputs.len() || e.inputs[k].shape[axis].as_const().is_none() {
            return;
        }
        e.inputs[k].shape[axis] = Dim::from(n);
        let Ok(g) = e.graph() else { return };
        let outcome = match lowered(&g) {
            Ok(program) => agree(&g, &program, &changed((k, axis, n))),
            Err(r) if r.0.iter().all(|e| e.code() != Code::Internal) => Ok(()),
            Err(r) => Err(r.to_string()),
        };
        wrong.extend(outcome.err().map(|m| format!("{} with {n} along axis {axis} of operand {k}: {m}", e.name)));
    });
    // Lengths that only the run knows, where the operation takes such.
    let mut open = e.clone();
    for (k, t) in open.inputs.iter_mut().enumerate() {
        for (i, d) in t.shape.iter_mut().enumerate().filter(|(_, d)| d.as_const().is_some()) {
            *d = Dim::sym(format!("open{k}_{i}"));
        }
    }
    // A loop that makes no iteration takes nothing, while the interpreter looks at its body all the same.
    if e.name == "loop.none" {
        return;
    }
    let Ok(g) = open.graph() else { return };
    let Ok(program) = lowered(&g) else { return };
    lengths(e, &shapes, |k, axis, n| {
        let outcome = agree(&g, &program, &changed((k, axis, n)));
        wrong.extend(outcome.err().map(|m| format!("{} with open lengths, {n} along axis {axis} of operand {k}: {m}", e.name)));
    });
}

/// Kernels trust the sizes that they are given, so what no interpreter would compute must not come so far.
#[test]
fn operands_that_do_not_fit_are_refused() {
    let mut wrong = vec![];
    examples().iter().for_each(|e| strain(e, &mut wrong));
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}
