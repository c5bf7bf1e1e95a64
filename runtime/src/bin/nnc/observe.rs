//! Watching a compilation: printed IR, times, the optimisation report, progress.

use crate::args::Compilation;
use crate::edge::{self, Outcome, is_dash};
use crate::progress;
use indicatif::ProgressBar;
use nnc::ir::{Dim, Error, Graph};
use nnc_backends::cpu::Selection;
use nnc_backends::gpu::plan::Plan;
use nnc_passes::{Decision, Observer, pass_names};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Which passes' results are printed.
#[derive(Clone, PartialEq)]
enum Print {
    None,
    All,
    Changed,
    After(String),
}

/// What a compilation did.
pub struct Watch {
    print: Print,
    /// The text after the last pass, where changes are looked for.
    last: String,
    passes: Vec<(&'static str, Duration, usize)>,
    decisions: Vec<Decision>,
    selections: Vec<Selection>,
    /// Of GPUs: launches on the host.
    copies: Vec<String>,
    times: bool,
    report: Option<PathBuf>,
    bar: ProgressBar,
}

impl Watch {
    pub fn new(c: &Compilation) -> Outcome<Watch> {
        let print = match &c.print_ir_after {
            _ if c.print_ir_after_all => Print::All,
            _ if c.print_ir_after_change => Print::Changed,
            None => Print::None,
            Some(pass) if pass.is_empty() => Print::All,
            Some(pass) if pass_names().contains(&pass.as_str()) => Print::After(pass.clone()),
            Some(pass) => return Err(Error::name(format!("no pass is called {pass}; passes are {}", pass_names().join(", "))).into()),
        };
        let bar = progress::passes(pass_names().len());
        Ok(Watch {
            print,
            last: String::new(),
            passes: vec![],
            decisions: vec![],
            selections: vec![],
            copies: vec![],
            times: c.time_passes,
            report: c.opt_report.clone(),
            bar,
        })
    }

    /// Writes what was asked for, once all passes have run.
    pub fn finish(&self) -> Outcome {
        self.bar.finish_and_clear();
        if self.times {
            let total: Duration = self.passes.iter().map(|(_, t, _)| *t).sum();
            for (pass, time, nodes) in &self.passes {
                let share = 100.0 * time.as_secs_f64() / total.as_secs_f64().max(1e-9);
                edge::say(&format!("{:9.3} ms {share:5.1} %  {nodes:7} nodes  {pass}", time.as_secs_f64() * 1e3));
            }
            edge::say(&format!("{:9.3} ms          total", total.as_secs_f64() * 1e3));
        }
        match &self.report {
            None => Ok(()),
            // stdout may carry the artefact.
            Some(file) if is_dash(file) => {
                edge::say(self.report().trim_end());
                Ok(())
            }
            Some(file) => edge::write(file, self.report().as_bytes()),
        }
    }

    /// A line per choice, and per alternative that was not taken.
    fn report(&self) -> String {
        let mut out = String::new();
        for d in &self.decisions {
            let place = d.loc.to_string();
            let _ = writeln!(
                out,
                "{}: {} `{}`: {}, {:.0} cycles{}",
                d.pass,
                d.op,
                d.node,
                d.chosen,
                d.cycles,
                if place.is_empty() { place } else { format!("  ({place})") }
            );
            for r in &d.refused {
                let _ = writeln!(out, "  not {}: {}", r.what, r.why);
            }
        }
        for s in &self.selections {
            let _ = writeln!(out, "kernel {}: {}", s.kernel, s.implementation);
            for (what, why) in &s.refused {
                let _ = writeln!(out, "  not {what}: {why}");
            }
        }
        for line in &self.copies {
            let _ = writeln!(out, "{line}");
        }
        if out.is_empty() { "no choices were made\n".into() } else { out }
    }

    /// Which implementation a kernel got.
    pub fn selection(&mut self, s: &Selection) {
        if self.report.is_some() {
            self.selections.push(s.clone());
        }
    }

    /// What a device's kernels are, and what the host computes for it.
    pub fn plan(&mut self, plan: &Plan) {
        let device = plan.device.name;
        for s in plan.selections() {
            self.selection(&Selection { kernel: format!("{} on {device}", s.kernel), ..s });
        }
        if self.report.is_some() {
            let sum = |list: &[Dim]| list.iter().fold(Dim::Const(0), |sum, d| sum + d.clone());
            for l in plan.on_host() {
                self.copies.push(format!(
                    "launch {} of kernel {} on the host, not on {device}: {} copies from the device ({} bytes), {} back ({} bytes)",
                    l.name,
                    l.kernel,
                    l.from_device.len(),
                    sum(&l.from_device),
                    l.to_device.len(),
                    sum(&l.to_device)
                ));
            }
        }
    }

    /// Times and sizes for --stats.
    pub fn stats(&self) -> Value {
        let row = |(name, time, nodes): &(&str, Duration, usize)| json!({"pass": name, "ms": time.as_secs_f64() * 1e3, "nodes": nodes});
        json!(self.passes.iter().map(row).collect::<Vec<_>>())
    }
}

impl Observer for Watch {
    fn after(&mut self, pass: &'static str, graph: &Graph, took: Duration) {
        self.bar.inc(1);
        self.bar.set_message(pass);
        self.passes.push((pass, took, graph.len()));
        let wanted = match &self.print {
            Print::None => false,
            Print::All | Print::Changed => true,
            Print::After(name) => name == pass,
        };
        if wanted {
            let text = graph.to_string();
            if self.print != Print::Changed || text != self.last {
                self.bar.suspend(|| edge::say(&format!("// after {pass}\n{text}")));
            } else {
                self.bar.suspend(|| edge::say(&format!("// {pass} changed nothing")));
            }
            self.last = text;
        }
    }

    fn decision(&mut self, decision: Decision) {
        if self.report.is_some() {
            self.decisions.push(decision);
        }
    }
}
