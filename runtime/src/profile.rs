//! Profiles of compiled models: what each launch takes, how much it computes, and what this machine could do.

use crate::describe::{Size, size};
use crate::{Options, Tensor, build};
use nnc_ir::{Error, Report, Result};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A launch as the library describes it.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// The model's name for what is computed.
    pub name: String,
    pub kernel: String,
    /// What compiled the kernel.
    pub implementation: String,
    /// Floating-point operations, and bytes read and written, or expressions in the symbols.
    pub flops: Size,
    pub bytes: Size,
}

impl Launch {
    /// Reads what `nnc_launches` returns.
    pub fn list(text: &str) -> Result<Vec<Launch>> {
        let launch = |v: &Value| {
            let text = |key: &str| Some(v[key].as_str()?.to_string());
            let [name, kernel, implementation] = [text("name")?, text("kernel")?, text("implementation")?];
            Some(Launch { name, kernel, implementation, flops: size(&v["flops"])?, bytes: size(&v["bytes"])? })
        };
        let list = serde_json::from_str::<Value>(text).ok().and_then(|v| v.as_array()?.iter().map(launch).collect());
        list.ok_or_else(|| Error::syntax("the library's list of launches is not understood").note("was it written by another version of nnc?"))
    }
}

/// One launch of one run; times count from the run's start.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Event {
    /// Index into the list of launches.
    pub launch: usize,
    pub start: Duration,
    pub end: Duration,
}

/// A launch over many runs.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub launch: Launch,
    /// Calls in a run (more than 1 in loops), and their time in seconds, the median of the runs.
    pub calls: usize,
    pub seconds: f64,
    /// Of one run.
    pub flops: f64,
    pub bytes: f64,
}

/// Adds up the events of runs, launch by launch. `sizes` gives symbols their values; what a symbol without one decides counts as 0.
pub fn rows(launches: &[Launch], runs: &[Vec<Event>], sizes: &dyn Fn(&str) -> Option<f64>) -> Vec<Row> {
    let mut seconds = vec![vec![0.0; runs.len()]; launches.len()];
    let mut calls = vec![0; launches.len()];
    for (k, run) in runs.iter().enumerate() {
        for e in run.iter().filter(|e| e.launch < launches.len()) {
            seconds[e.launch][k] += (e.end - e.start).as_secs_f64();
            calls[e.launch] += usize::from(k == 0);
        }
    }
    let median = |s: &mut Vec<f64>| {
        s.sort_by(f64::total_cmp);
        s.get(s.len() / 2).copied().unwrap_or(0.0)
    };
    let row = |((launch, calls), mut s): ((&Launch, usize), Vec<f64>)| {
        let total = |size: &Size| size.eval(sizes).unwrap_or(0.0) * calls as f64;
        Row { launch: launch.clone(), calls, seconds: median(&mut s), flops: total(&launch.flops), bytes: total(&launch.bytes) }
    };
    launches.iter().zip(calls).zip(seconds).map(row).collect()
}

/// What this machine reaches with a number of threads, measured by kernels of nnc's own.
#[derive(Clone, PartialEq, Debug)]
pub struct Roof {
    /// Floating-point operations a second of a matrix product that stays in the second-level cache.
    pub flops: f64,
    /// Bytes a second of a copy, by the bytes that it touches, ascending: the caches, then memory.
    pub bandwidth: Vec<(f64, f64)>,
}

/// Bytes that the copies of [`Roof::bandwidth`] touch, per thread.
const COPIES: [usize; 3] = [256 << 10, 4 << 20, 128 << 20];

impl Roof {
    /// Takes about half a second.
    pub fn measure(threads: usize) -> Result<Roof, Report> {
        let best = |text: &str, shape: &[usize]| -> Result<f64, Report> {
            let graph = nnc_frontend::nn::parse(text, "roof.nn")?;
            let session = build::session(graph, &Options { threads, ..Options::default() }, &mut ())?;
            let x = Tensor::new(shape, &vec![0.5f32; shape.iter().product()]);
            let mut bound = session.bind(&[Some(x)])?;
            bound.run()?;
            let (start, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
            while runs < 3 || start.elapsed() < Duration::from_millis(80) {
                let t = Instant::now();
                bound.run()?;
                best = best.min(t.elapsed().as_secs_f64());
                runs += 1;
            }
            Ok(best)
        };
        let rows = 192 * threads;
        let seconds =
            best(&format!("module Roof (x: f32[{rows},256]) -> f32[{rows},256] {{\n  return matmul(x, param [256,256] ~ he)\n}}\n"), &[rows, 256])?;
        let flops = 2.0 * rows as f64 * 256.0 * 256.0 / seconds;
        let copy = |bytes: usize| -> Result<(f64, f64), Report> {
            let (bytes, n) = (bytes * threads, bytes * threads / 8);
            let seconds = best(&format!("module Roof (x: f32[{n}]) -> f32[{n}] {{\n  return relu(x)\n}}\n"), &[n])?;
            Ok((bytes as f64, bytes as f64 / seconds))
        };
        Ok(Roof { flops, bandwidth: COPIES.into_iter().map(copy).collect::<Result<_, Report>>()? })
    }

    /// Bytes a second where `bytes` are touched.
    fn bandwidth_of(&self, bytes: f64) -> f64 {
        let level = self.bandwidth.iter().find(|(most, _)| bytes <= *most).or(self.bandwidth.last());
        level.map_or(f64::INFINITY, |(_, speed)| *speed)
    }

    /// The part of the roof that the row reaches: the time that its operations or its bytes take at least, over its time. Above 1
    /// where its bytes were nearer than their number says.
    pub fn share(&self, row: &Row) -> f64 {
        let calls = row.calls.max(1) as f64;
        (row.flops / self.flops).max(row.bytes / self.bandwidth_of(row.bytes / calls)) / row.seconds
    }
}

/// One run in the format that Perfetto and chrome://tracing read; times in microseconds.
pub fn chrome_trace(launches: &[Launch], run: &[Event]) -> String {
    let micros = |d: Duration| d.as_secs_f64() * 1e6;
    let events = run.iter().filter_map(|e| {
        let l = launches.get(e.launch)?;
        let args = serde_json::json!({"kernel": l.kernel, "implementation": l.implementation});
        let (ts, dur) = (micros(e.start), micros(e.end - e.start));
        Some(serde_json::json!({"name": l.name, "cat": "launch", "ph": "X", "ts": ts, "dur": dur, "pid": 1, "tid": 1, "args": args}))
    });
    serde_json::json!({"traceEvents": events.collect::<Vec<_>>(), "displayTimeUnit": "ms"}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launches() -> Vec<Launch> {
        let text = r#"[{"name":"a","kernel":"k0","implementation":"gemm","flops":"2*N","bytes":64},
                       {"name":"b","kernel":"k1","implementation":"loops","flops":0,"bytes":8}]"#;
        Launch::list(text).unwrap()
    }

    #[test]
    fn rows_add_up() {
        let ms = Duration::from_millis;
        let event = |launch, start, end| Event { launch, start: ms(start), end: ms(end) };
        let slow = vec![event(0, 0, 9), event(1, 9, 20)];
        let fast = vec![event(0, 0, 3), event(1, 3, 4), event(1, 4, 6)];
        let rows = rows(&launches(), &[fast.clone(), slow, fast.clone()], &|s| (s == "N").then_some(5.0));
        assert_eq!((rows[0].calls, rows[0].seconds, rows[0].flops, rows[0].bytes), (1, 0.003, 10.0, 64.0));
        assert_eq!((rows[1].calls, rows[1].seconds, rows[1].flops, rows[1].bytes), (2, 0.003, 0.0, 16.0));
        let roof = Roof { flops: 5000.0, bandwidth: vec![(10.0, 1e4), (100.0, 32e3)] };
        assert_eq!(roof.share(&rows[0]), 0.002 / 0.003);
        assert!(Launch::list("{}").is_err());
        let trace: Value = serde_json::from_str(&chrome_trace(&launches(), &fast)).unwrap();
        assert_eq!((&trace["traceEvents"][2]["name"], &trace["traceEvents"][2]["dur"]), (&"b".into(), &2000.0.into()));
    }
}
