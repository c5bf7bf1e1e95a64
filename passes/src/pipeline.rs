//! The pipeline: the only place that knows the order of passes.

use crate::pass::{Context, Observer, Options, Stage, Step};
use crate::{attend, autodiff, cse, dce, egraph, fold, hoist, host, layout, phases, sums, unstride};
use nnc_ir::kernel::Program;
use nnc_ir::{Error, Graph, Report, Target};
use std::time::Instant;

macro_rules! step {
    ($name:literal, $run:expr, $level:literal, $takes:ident => $leaves:ident, $about:literal) => {
        Step { name: $name, about: $about, run: $run, level: $level, takes: Stage::$takes, leaves: Stage::$leaves }
    };
}

/// Every pass over graphs, in order.
pub const PIPELINE: &[Step] = &[
    step!("differentiate", autodiff::run, 0, Model => Model, "computes gradients"),
    step!("dce", dce::run, 0, Model => Model, "drops what no output depends on"),
    step!("fold", fold::run, 0, Model => Model, "computes small constants, drops operations that do nothing"),
    step!("cse", cse::run, 1, Model => Model, "computes equal things once"),
    step!("sums", sums::run, 2, Model => Model, "products that a scan adds up become one behind it"),
    step!("raise", egraph::raise, 2, Model => Model, "recognises composites that are spelled out"),
    step!("saturate", egraph::run, 2, Model => Simple, "rewrites by equality saturation: algebra, movement, batch norm folding, epilogues"),
    step!("fold-again", fold::run, 1, Simple => Simple, "computes the small constants that rewriting left"),
    step!("attend", attend::run, 2, Simple => Simple, "recognises attention, whose scores then stay out of memory"),
    step!("cse-again", cse::run, 1, Simple => Simple, "computes equal things once"),
    step!("phases", phases::run, 1, Simple => Simple, "transposed convolutions become convolutions whose results interleave"),
    step!("unstride", unstride::run, 2, Simple => Simple, "strided convolutions of few channels move by 1, over more channels"),
    step!("layout", layout::run, 1, Simple => Laid, "blocks of channels for convolutions, panels for matmuls"),
    step!("hoist", hoist::run, 1, Laid => Laid, "makes before a loop what its body makes of captured values"),
    step!("cse-laid", cse::run, 1, Laid => Laid, "converts and pads equal things once"),
    step!("weights", fold::weights, 0, Laid => Laid, "computes weights in their final form"),
];

/// Names of all passes, in order.
pub fn pass_names() -> Vec<&'static str> {
    PIPELINE.iter().map(|s| s.name).collect()
}

/// Runs the passes that `options.level` asks for, up to `options.stop_after`.
///
/// The graph must verify; so does the result, whose outputs are equal to the graph's within what `options.precision` allows.
pub fn optimize(mut graph: Graph, target: &Target, options: &Options, observer: &mut dyn Observer) -> Result<Graph, Report> {
    if let Some(stop) = &options.stop_after
        && !known_stop(stop)
    {
        let stages: Vec<&str> = Stage::ALL.iter().map(|s| s.name()).collect();
        return Err(unknown(stop, &format!("; stages are {}", stages.join(", "))));
    }
    let stop = options.stop_after.as_deref();
    if stop == Some(Stage::Model.name()) {
        return Ok(graph);
    }
    host::refuse(&graph)?;
    for (i, step) in PIPELINE.iter().enumerate() {
        if step.level <= options.level {
            graph = one(step, graph, target, options, observer)?;
        }
        let stage_ends = PIPELINE.get(i + 1).is_none_or(|next| next.leaves != step.leaves);
        if stop == Some(step.name) || (stage_ends && stop == Some(step.leaves.name())) {
            break;
        }
    }
    Ok(graph)
}

/// The program of a graph: [`optimize`], then [`lower`](crate::lower()). Not for `options.stop_after`, which stops before.
pub fn compile(graph: Graph, target: &Target, options: &Options, observer: &mut dyn Observer) -> Result<Program, Report> {
    let graph = optimize(graph, target, options, observer)?;
    crate::lower(&graph, target)
}

/// Runs one pass alone.
pub fn run_pass(name: &str, graph: Graph, target: &Target, options: &Options, observer: &mut dyn Observer) -> Result<Graph, Report> {
    let step = PIPELINE.iter().find(|s| s.name == name).ok_or_else(|| unknown(name, ""))?;
    host::refuse(&graph)?;
    one(step, graph, target, options, observer)
}

fn one(step: &Step, mut graph: Graph, target: &Target, options: &Options, observer: &mut dyn Observer) -> Result<Graph, Report> {
    let start = Instant::now();
    let mut cx = Context { target, options, captures: 0, in_loop: false, observer };
    regions(step, &mut graph, &mut cx)?;
    graph = (step.run)(graph, &mut cx)?;
    let took = start.elapsed();
    if options.verify {
        nnc_ir::verify::verify(&graph).map_err(|r| broken(step.name, r))?;
    }
    observer.after(step.name, &graph, took);
    Ok(graph)
}

/// Runs the pass on the bodies of control flow, innermost first.
fn regions(step: &Step, graph: &mut Graph, cx: &mut Context) -> Result<(), Report> {
    let holders: Vec<_> = graph.ids().filter(|id| !graph.node(*id).regions.is_empty()).collect();
    for id in holders {
        let node = graph.node(id);
        let given = hoist::captured(&node.op);
        let captures = given.map_or(0, |given| node.operands.len().saturating_sub(given));
        let outside = cx.in_loop;
        cx.in_loop |= given.is_some();
        for mut body in std::mem::take(&mut graph.node_mut(id).regions) {
            regions(step, &mut body, cx)?;
            let outer = std::mem::replace(&mut cx.captures, captures);
            let body = (step.run)(body, cx)?;
            cx.captures = outer;
            graph.node_mut(id).regions.push(body);
        }
        cx.in_loop = outside;
    }
    Ok(())
}

/// What the verifier says after a pass is a bug of that pass.
fn broken(pass: &str, report: Report) -> Report {
    Report(report.0.into_iter().map(|e| Error::internal(format!("after pass {pass}: {}", e.message())).at(e.loc())).collect())
}

fn known_stop(name: &str) -> bool {
    PIPELINE.iter().any(|s| s.name == name) || Stage::ALL.iter().any(|s| s.name() == name)
}

fn unknown(name: &str, more: &str) -> Report {
    Error::name(format!("no pass is called {name}; passes are {}{more}", pass_names().join(", "))).into()
}
