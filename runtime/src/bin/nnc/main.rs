//! The `nnc` command. One verb a file; what they share: the command line ([`args`]), the edge to the terminal ([`edge`]) and to
//! files ([`data`]).

mod args;
mod bench;
mod compile;
mod data;
mod edge;
mod grad;
mod graph;
mod info;
mod model;
mod observe;
mod opt;
mod profile;
mod progress;
mod run;
mod smoke;
mod train;
mod verify;

use args::{Cli, Verb};
use clap::{CommandFactory, Parser, error::ErrorKind};
use std::process::ExitCode;

/// Graphs are many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    edge::run(move || match cli.verb {
        Verb::Compile(a) => compile::compile(&a),
        Verb::Run(a) => run::run(&a),
        Verb::Bench(a) => bench::bench(&a),
        Verb::Verify(a) => verify::verify(&a),
        Verb::Check(a) => info::check(&a),
        Verb::Info(a) => info::info(&a),
        Verb::ListOps(a) => info::list_ops(&a),
        Verb::ListTargets(a) => info::list_targets(&a),
        Verb::Opt(a) => opt::opt(&a),
        Verb::Graph(a) => graph::draw(&a),
        Verb::Fmt(a) => opt::fmt(&a),
        Verb::Smoke(a) => compile::smoke(&a),
        Verb::Grad(a) => grad::grad(&a),
        Verb::Train(a) => train::train(&a),
        Verb::Export(a) => grad::export(&a),
    })
}

/// Help and version go to stdout with status 0, mistakes to stderr with status 2.
fn usage(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    if e.kind() == ErrorKind::InvalidSubcommand {
        let verbs: Vec<String> = Cli::command().get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_string()).collect();
        edge::say(&format!("  verbs: {}", verbs.join(", ")));
    }
    ExitCode::from(e.exit_code() as u8)
}
