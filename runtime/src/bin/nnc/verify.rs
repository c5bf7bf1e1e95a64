//! `nnc verify`: an engine's results held against the interpreter or given files, and the search for the first thing that is wrong.

use crate::args::{Bisect, Verify};
use crate::edge::{self, Failure, Outcome};
use crate::model::{self, Missing, Ready};
use crate::run::hold;
use crate::{args, data};
use nnc::compare::{Match, Tolerance, compare};
use nnc::ir::graph::Output;
use nnc::ir::{Error, Graph, NodeId, Op, Tensor, Value};
use nnc::{Engine, Options, Session};
use nnc_passes::{optimize, pass_names};

pub fn verify(a: &Verify) -> Outcome {
    let ready = model::ready(&a.model, a.engine, a.threads, &a.inputs, Missing::Random, &a.compilation)?;
    let tolerance = Tolerance { rtol: a.tolerances.rtol, atol: a.tolerances.atol };
    if a.all_nodes || a.bisect.is_some() {
        let Some(graph) = &ready.graph else {
            return Err(Error::input("--all-nodes and --bisect take a model, not a compiled library").into());
        };
        let job = Job { a, graph, inputs: given(&ready)?, tolerance };
        return match a.bisect {
            Some(Bisect::Op) => job.bisect_op(),
            Some(Bisect::Pass) => job.bisect_pass(),
            None => job.all_nodes(),
        };
    }
    let got = ready.session.run_some(&ready.inputs)?;
    let want: Vec<Option<Tensor>> = if a.reference.as_os_str() == "interp" {
        let Some(graph) = &ready.graph else {
            return Err(Error::input("a compiled library is verified with --reference FILE.npz or a folder: the interpreter takes a model").into());
        };
        Session::interpreter(graph.clone()).run_some(&ready.inputs)?.into_iter().map(Some).collect()
    } else {
        data::expected(&a.reference, ready.session.outputs(), &ready.outputs)?
    };
    hold(ready.session.outputs(), &got, &want, tolerance)
}

/// All inputs; what is judged here needs every one.
fn given(ready: &Ready) -> Outcome<Vec<Tensor>> {
    let all: Option<Vec<Tensor>> = ready.inputs.iter().cloned().collect();
    Ok(all.ok_or_else(|| Error::input("an input is not given"))?)
}

struct Job<'a> {
    a: &'a Verify,
    graph: &'a Graph,
    inputs: Vec<Tensor>,
    tolerance: Tolerance,
}

impl Job<'_> {
    fn session(&self, graph: Graph) -> Outcome<Session> {
        let engine = match self.a.engine {
            Some(args::Engine::So) => Engine::SharedLibrary,
            Some(args::Engine::Vulkan) => Engine::Vulkan,
            Some(args::Engine::Cuda) => Engine::Cuda,
            _ => Engine::Jit,
        };
        let options = Options { engine, threads: self.a.threads, ..model::options(&self.a.compilation) };
        Ok(nnc::session(graph, &options, &mut ())?)
    }

    /// The first of the values that the compiled model computes wrongly when all of them are its outputs.
    fn first_wrong(&self, values: &[Value]) -> Outcome<Option<(Value, Match)>> {
        let graph = with_outputs(self.graph, values);
        let want = Session::interpreter(graph.clone()).run(&self.inputs)?;
        let got = self.session(graph)?.run(&self.inputs)?;
        let matches = values.iter().zip(got.iter().zip(&want)).map(|(v, (g, w))| (*v, compare(g, w, self.tolerance)));
        Ok(matches.into_iter().find(|(_, m)| !m.is_close()))
    }

    /// Every value as an output: the fusion of two operations is undone by that, which `--bisect op` does not do.
    fn all_nodes(&self) -> Outcome {
        let values = values(self.graph);
        match self.first_wrong(&values)? {
            None => {
                edge::say(&format!("all {} values agree", values.len()));
                Ok(())
            }
            Some((v, m)) => self.blame(v, &m),
        }
    }

    /// Halves the list of operations: a value alone is the output of the model that ends there, compiled as ever.
    fn bisect_op(&self) -> Outcome {
        let values = values(self.graph);
        let ends: Vec<Value> = self.graph.outputs.iter().map(|o| o.value).collect();
        let Some((_, mut found)) = self.first_wrong(&ends)? else {
            edge::say("the outputs agree: there is nothing to look for");
            return Ok(());
        };
        // Invariant: what is before `good` agrees, `bad` differs (its model's outputs are the values up to it that end somewhere).
        let (mut good, mut bad) = (0, values.len());
        let mut culprit = None;
        while good < bad {
            let middle = good + (bad - good) / 2;
            match self.first_wrong(&[values[middle]])? {
                None => good = middle + 1,
                Some((v, m)) => {
                    culprit = Some(v);
                    found = m;
                    bad = middle;
                }
            }
        }
        match culprit {
            Some(v) => self.blame(v, &found),
            None => {
                edge::say(&format!("every operation alone agrees; the outputs together: {found}"));
                Err(Failure::Different)
            }
        }
    }

    fn blame(&self, v: Value, m: &Match) -> Outcome {
        let node = self.graph.node(v.node);
        let loc = node.loc.to_string();
        let name = if node.name.is_empty() { String::new() } else { format!(" `{}`", node.name) };
        edge::say(&format!("the first value that differs is that of {}{name}: {}", node.op.name(), self.graph.ty(v)));
        if !loc.is_empty() {
            edge::say(&format!("  --> {loc}"));
        }
        edge::say(&format!("  {m}"));
        Err(Failure::Different)
    }

    /// Interprets the graph after each pass: the first pass whose result differs is wrong. Where none is, lowering or code is.
    fn bisect_pass(&self) -> Outcome {
        let options = model::options(&self.a.compilation);
        let target = nnc::build::target_of(&options)?;
        let want = Session::interpreter(self.graph.clone()).run(&self.inputs)?;
        let agrees = |got: &[Tensor]| got.iter().zip(&want).all(|(g, w)| compare(g, w, self.tolerance).is_close());
        let after = |pass: &str| -> Outcome<Graph> {
            let passes = nnc_passes::Options { stop_after: Some(pass.into()), ..nnc::build::pass_options(&options) };
            Ok(optimize(self.graph.clone(), &target, &passes, &mut ())?)
        };
        let names = pass_names();
        let (mut good, mut bad) = (0, names.len());
        while good < bad {
            let middle = good + (bad - good) / 2;
            let graph = after(names[middle])?;
            if agrees(&Session::interpreter(graph).run(&self.inputs)?) { good = middle + 1 } else { bad = middle }
        }
        if let Some(name) = names.get(bad) {
            edge::say(&format!("the first pass whose result differs is {name}: see it with --print-ir-after={name}"));
            return Err(Failure::Different);
        }
        let program = nnc::build::program(self.graph.clone(), &options, &mut ())?;
        if !agrees(&nnc::ir::kernel::eval::eval_program(&program, &self.inputs)?) {
            edge::say("all passes agree; lowering to loops differs: --bisect op finds the operation");
            return Err(Failure::Different);
        }
        if !agrees(&self.session(self.graph.clone())?.run(&self.inputs)?) {
            edge::say("all passes and lowering agree; the code differs: --bisect op finds the operation");
            return Err(Failure::Different);
        }
        edge::say(&format!("all {} passes, lowering and the code agree", names.len()));
        Ok(())
    }
}

/// Values of all operations, in topological order.
fn values(graph: &Graph) -> Vec<Value> {
    let live = graph.live();
    let plain = |id: &NodeId| live[id.0 as usize] && !matches!(graph.node(*id).op, Op::Input | Op::Const(_));
    let order = graph.order().into_iter().filter(plain);
    order.flat_map(|id| (0..graph.node(id).types.len() as u32).map(move |port| Value { node: id, port })).collect()
}

/// The graph with other outputs.
fn with_outputs(graph: &Graph, values: &[Value]) -> Graph {
    let mut g = graph.clone();
    g.outputs = values.iter().enumerate().map(|(i, v)| Output { name: format!("v{i}").into(), value: *v }).collect();
    g
}
