//! `nnc bench`: how long a run takes, on one machine, of one model.

use crate::args::Bench;
use crate::edge::{self, Outcome};
use crate::model::{self, Missing};
use crate::{data, profile, progress};
use nnc::ir::Error;
use nnc::profile::Roof;
use nnc::{Port, Size};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub fn bench(a: &Bench) -> Outcome {
    if !(a.duration.is_finite() && a.duration >= 0.0) {
        return Err(Error::input(format!("--duration {}: seconds of at least 0 are wanted", a.duration)).into());
    }
    if let Some(to) = &a.profile {
        profile::check(to)?;
    }
    let ready = model::ready(&a.model, a.engine, a.threads, &a.inputs, Missing::Random, &a.compilation)?;
    let (times, workspace, outputs, profile) = if !ready.session.binds() {
        if a.profile.is_some() {
            ready.session.launches()?;
        }
        let mut outputs = vec![];
        let times = measure(a, || {
            outputs = ready.session.run_some(&ready.inputs)?;
            Ok(())
        })?;
        let traced = || Ok(ready.session.run_traced(&ready.inputs)?.1);
        let profile = a.profile.as_ref().map(|_| profile::take(&ready, None, traced, a.duration)).transpose()?;
        let sizes = |symbol: &str| ready.session.size_of(symbol, &ready.inputs);
        let workspace = ready.session.description().workspace_bytes.as_ref().and_then(|s| s.eval(&sizes));
        (times, workspace.unwrap_or(0.0) as usize, outputs, profile)
    } else {
        let mut bound = ready.session.bind(&ready.inputs)?;
        let times = measure(a, || Ok(bound.run()?))?;
        let outputs = bound.outputs()?;
        let roof = || Roof::measure(ready.session.threads());
        let profile = match &a.profile {
            Some(_) => Some(profile::take(&ready, Some(roof()?), || Ok(bound.run_traced()?), a.duration)?),
            None => None,
        };
        (times, bound.workspace_bytes(), outputs, profile)
    };
    if let Some(file) = &a.dump {
        edge::write(file, &data::npz(ready.session.outputs(), &outputs)?)?;
    }
    let flops = ready.session.flops(&ready.inputs);
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let quantile = |q: f64| ms(times[((times.len() - 1) as f64 * q).round() as usize]);
    let median = quantile(0.5);
    let gflop = flops.map(|f| f / 1e9);
    let mut report = json!({
        "median_ms": median,
        "p10_ms": quantile(0.1),
        "p90_ms": quantile(0.9),
        "p99_ms": quantile(0.99),
        "min_ms": quantile(0.0),
        "iterations": times.len(),
        "threads": ready.session.threads(),
        "load_ms": ms(ready.load),
        "compile_ms": ms(ready.compile),
        "peak_rss_bytes": edge::peak_rss_bytes(),
        "workspace_bytes": workspace,
        "gflop": gflop,
        "gflops": gflop.map(|g| g / (median / 1e3)),
    });
    let table = match (&profile, &a.profile) {
        (Some(profile), Some(to)) => profile.write(to)?,
        _ => None,
    };
    if a.json {
        if let Some(profile) = profile {
            report["profile"] = profile.json();
        }
        return edge::print(&format!("{report}\n"));
    }
    edge::print(&(readable(&report, ready.session.inputs()) + &table.unwrap_or_default()))
}

/// Times of single runs, sorted, after the warm-up. One at least.
fn measure(a: &Bench, mut run: impl FnMut() -> Outcome) -> Outcome<Vec<Duration>> {
    for _ in 0..a.warmup {
        run()?;
    }
    let bar = progress::seconds("measuring", a.duration);
    let mut times = vec![];
    let start = Instant::now();
    let mut shown = start;
    loop {
        let t = Instant::now();
        run()?;
        let end = Instant::now();
        times.push(end - t);
        if end - start >= Duration::from_secs_f64(a.duration) {
            break;
        }
        // Drawing takes time that a short run would notice.
        if end - shown > Duration::from_millis(200) {
            shown = end;
            bar.set_position((end - start).as_millis() as u64);
        }
    }
    bar.finish_and_clear();
    times.sort();
    Ok(times)
}

fn readable(r: &Value, inputs: &[Port]) -> String {
    let number = |key: &str| r[key].as_f64();
    let ms = |key: &str| number(key).map_or("-".into(), |v| format!("{v:.3} ms"));
    let mib = |key: &str| number(key).map_or("-".into(), |v| format!("{:.1} MiB", v / f64::from(1 << 20)));
    let symbolic = inputs.iter().any(|p| p.shape.iter().any(|s| matches!(s, Size::Symbolic(_))));
    let mut out = format!(
        "median {}   p10 {}   p90 {}   p99 {}   min {}\n{} runs, {} thread(s); load {}, compile {}; peak memory {}, workspace {}\n",
        ms("median_ms"),
        ms("p10_ms"),
        ms("p90_ms"),
        ms("p99_ms"),
        ms("min_ms"),
        r["iterations"],
        r["threads"],
        ms("load_ms"),
        ms("compile_ms"),
        mib("peak_rss_bytes"),
        mib("workspace_bytes")
    );
    if let (Some(gflop), Some(gflops)) = (number("gflop"), number("gflops")) {
        out += &format!("{gflop:.3} GFLOP a run, {gflops:.1} GFLOP/s{}\n", if symbolic { " at these sizes" } else { "" });
    }
    out
}
