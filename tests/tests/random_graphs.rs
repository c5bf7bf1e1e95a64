//! Random graphs over the ONNX operator table give the same on every engine. A few in every run; `NNC_FUZZ=10000` runs as many, from the
//! seed `NNC_FUZZ_SEED` on.

use nnc::{Engine, Options, Session};
use nnc_frontend::onnx::examples::{Example, examples};
use nnc_ir::error::Code;
use nnc_ir::eval::{Env, run};
use nnc_ir::examples::{Values, random_tensor};
use nnc_ir::{DType, Graph, Report, Tensor};
use nnc_tests::random_graph::{Allowed, Dice, convolves, graph, noisy};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Operators that are left out: what they take is no matter of chance, compiled code does not have it, or they show the bits of NaN, which
/// are nobody's promise.
const WITHOUT: [&str; 4] = ["BitCast", "ImageDecoder", "Optional", "SequenceEmpty"];

/// Graphs with noise that tell what engines may differ by, and how many more are asked before a difference counts: what a comparison
/// or `floor` makes of a value at its edge shows in some of them only.
const NOISY: (u64, u64) = (3, 48);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn pool() -> Vec<Example> {
    let is_text = |e: &Example| e.dtype == DType::Str || e.graph(e.dtype).is_ok_and(|g| nnc_passes::host::refuse(&g).is_err());
    examples().expect("the examples are in order").into_iter().filter(|e| !WITHOUT.contains(&e.row.name) && !is_text(e)).collect()
}

/// Values for the inputs; `N` is 3. Small ones: what happens at the edges of types is for the suites of single operations.
fn inputs(g: &Graph, seed: u64) -> Vec<Tensor> {
    let size = |d: &nnc_ir::Dim| d.as_const().unwrap_or(3) as usize;
    let types = g.inputs.iter().map(|id| &g.node(*id).types[0]).zip(seed..);
    types.map(|(ty, seed)| random_tensor(ty.dtype, &ty.shape.iter().map(size).collect::<Vec<_>>(), &Values::Small, seed)).collect()
}

/// What came of a graph.
enum Outcome {
    Same,
    /// What was asked for is refused, or noise decides what comes out.
    Passed,
}

/// One graph in so many is compiled to a library as well, which takes longer.
const LIBRARIES: u64 = 20;

fn session(g: &Graph, engine: Engine, level: u8) -> Result<Option<Session>, String> {
    match nnc::session(g.clone(), &Options { engine, level, threads: 1, ..Options::default() }, &mut ()) {
        Ok(s) => Ok(Some(s)),
        Err(Report(errors)) if errors.iter().all(|e| e.code() == Code::Unsupported) => Ok(None),
        Err(r) => Err(format!("{engine:?} -O{level}: {r}")),
    }
}

fn judge(pool: &[Example], seed: u64, steps: usize) -> Result<Outcome, String> {
    let g = graph(pool, seed, steps).map_err(|r| format!("the graph does not verify: {r}"))?;
    let x = inputs(&g, seed);
    let reference = |g: &Graph| run(g, &x, &Env::default());
    // What the interpreter cannot do (an index that is not there, say) engines need not do either.
    let Ok(want) = reference(&g) else { return Ok(Outcome::Passed) };
    let allowed = |runs: u64| {
        let noisy = (1..=runs).map(|k| noisy(g.clone(), &mut Dice::new(seed ^ (k << 32))).map(|g| reference(&g).ok()));
        let noisy = noisy.collect::<Result<Option<Vec<_>>, Report>>().map_err(|r| format!("noise: {r}"))?;
        Ok::<_, String>(noisy.and_then(|n| Allowed::new(&want, &n, convolves(&g))))
    };
    let Some(few) = allowed(NOISY.0)? else { return Ok(Outcome::Passed) };
    let library = seed.is_multiple_of(LIBRARIES).then_some((Engine::SharedLibrary, 2));
    for (engine, level) in [(Engine::Jit, 0), (Engine::Jit, 3)].into_iter().chain(library) {
        let Some(session) = session(&g, engine, level)? else { return Ok(Outcome::Passed) };
        let got = match session.run(&x) {
            // A size of 1 that only the run knows is not stretched; that is said cleanly.
            Err(e) if e.code() == Code::Input && e.message().contains(" needs ") => return Ok(Outcome::Passed),
            other => other.map_err(|e| format!("{engine:?} -O{level}: {e}"))?,
        };
        if few.check(&got, &want).is_err() {
            let Some(many) = allowed(NOISY.1)? else { return Ok(Outcome::Passed) };
            many.check(&got, &want).map_err(|e| format!("{engine:?} -O{level}: {e}"))?;
        }
    }
    Ok(Outcome::Same)
}

fn caught(pool: &[Example], seed: u64, steps: usize) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| judge(pool, seed, steps))).unwrap_or_else(|_| Err("panicked".into()))
}

#[test]
fn engines_agree() {
    let (count, first) = (setting("NNC_FUZZ", 60), setting("NNC_FUZZ_SEED", 1));
    let pool = pool();
    let (mut same, mut wrong) = (0, vec![]);
    for seed in first..first + count {
        let steps = 2 + Dice::new(seed).below(9);
        match caught(&pool, seed, steps) {
            Ok(Outcome::Same) => same += 1,
            Ok(Outcome::Passed) => {}
            Err(_) => {
                // As few steps as it takes: steps depend on those before only.
                let small = (1..=steps).find(|n| caught(&pool, seed, *n).is_err()).unwrap_or(steps);
                let why = caught(&pool, seed, small).err().unwrap_or_default();
                let text = graph(&pool, seed, small).map_or_else(|r| r.to_string(), |g| g.to_string());
                wrong.push(format!("seed {seed}, {small} steps: {why}\n{text}"));
            }
        }
    }
    println!("{same} of {count} graphs compared and equal, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{} graphs:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same > count / 3, "only {same} of {count} graphs could be compared");
}
