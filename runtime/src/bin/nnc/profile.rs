//! `nnc bench --profile`: what each launch takes, as a table, a trace, or a picture against the machine's roofs.

use crate::edge::{self, Outcome, is_dash};
use crate::model::Ready;
use nnc::ir::Error;
use nnc::profile::{Event, Launch, Roof, Row, chrome_trace, rows};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The form that a file's name asks for.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Table,
    Trace,
    Picture,
}

fn form(to: &Path) -> Outcome<Form> {
    match to.extension().and_then(|e| e.to_str()) {
        _ if is_dash(to) => Ok(Form::Table),
        Some("json") => Ok(Form::Trace),
        Some("svg") => Ok(Form::Picture),
        _ => Err(Error::input(format!("{}: a profile is a .json trace or a .svg picture", to.display())).into()),
    }
}

/// An error where `to` names no form of profile: before time is spent.
pub fn check(to: &Path) -> Outcome {
    form(to).map(drop)
}

/// A profile that has been taken.
pub struct Profile {
    launches: Vec<Launch>,
    rows: Vec<Row>,
    /// What the machine could do: not measured on GPUs.
    roof: Option<Roof>,
    /// The run whose time is the median.
    typical: Vec<Event>,
}

/// Runs the model for a while, traced.
pub fn take(ready: &Ready, roof: Option<Roof>, mut traced: impl FnMut() -> Outcome<Vec<Event>>, duration: f64) -> Outcome<Profile> {
    let launches = ready.session.launches()?;
    let mut runs = vec![traced()?];
    let start = Instant::now();
    while runs.len() < 3 || (runs.len() < 1000 && start.elapsed() < Duration::from_secs_f64(duration.min(10.0))) {
        runs.push(traced()?);
    }
    let rows = rows(&launches, &runs, &|symbol| ready.session.size_of(symbol, &ready.inputs));
    runs.sort_by_key(|r| r.last().map(|e| e.end));
    let typical = runs.swap_remove(runs.len() / 2);
    Ok(Profile { launches, rows, roof, typical })
}

impl Profile {
    /// Writes what `to` asks for; the table is text for stdout.
    pub fn write(&self, to: &Path) -> Outcome<Option<String>> {
        match form(to)? {
            Form::Table => return Ok(Some(self.table())),
            Form::Trace => edge::write(to, chrome_trace(&self.launches, &self.typical).as_bytes())?,
            Form::Picture => match &self.roof {
                Some(roof) => edge::write(to, self.picture(roof).as_bytes())?,
                None => return Err(Error::unsupported("a picture needs the machine's roofs, which are not measured on GPUs").into()),
            },
        }
        Ok(None)
    }

    /// Rows for `--json`.
    pub fn json(&self) -> Value {
        let speeds =
            |roof: &Roof| -> Vec<Value> { roof.bandwidth.iter().map(|(to, speed)| json!({"bytes": to, "gbytes_per_s": speed / 1e9})).collect() };
        let row = |r: &Row| {
            let l = &r.launch;
            json!({"name": l.name, "kernel": l.kernel, "implementation": l.implementation, "calls": r.calls, "ms": r.seconds * 1e3,
                "gflop": r.flops / 1e9, "bytes": r.bytes, "roof": self.roof.as_ref().map(|roof| roof.share(r))})
        };
        let roof = self.roof.as_ref();
        json!({"roof_gflops": roof.map(|r| r.flops / 1e9), "roof_bandwidth": roof.map(speeds), "ms": self.seconds() * 1e3,
            "launches": self.rows.iter().map(row).collect::<Vec<_>>()})
    }

    fn seconds(&self) -> f64 {
        self.rows.iter().map(|r| r.seconds).sum()
    }

    /// A line for each launch that ran, the longest first.
    fn table(&self) -> String {
        let total = self.seconds();
        let mut rows: Vec<&Row> = self.rows.iter().filter(|r| r.calls > 0).collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let mut out = String::new();
        if let Some(roof) = &self.roof {
            let level = |(to, speed): &(f64, f64)| format!("{:.0} GB/s to {:.1} MiB", speed / 1e9, to / f64::from(1 << 20));
            let levels: Vec<String> = roof.bandwidth.iter().map(level).collect();
            let _ = writeln!(out, "roofs: {:.1} GFLOP/s; {}", roof.flops / 1e9, levels.join(", "));
        }
        let _ = writeln!(out, "{:>10} {:>6} {:>9} {:>8} {:>6}  {:<14} kernel, name", "ms", "%", "GFLOP/s", "GB/s", "% roof", "by");
        for r in rows {
            let l = &r.launch;
            let calls = if r.calls > 1 { format!(" ({} calls)", r.calls) } else { String::new() };
            let (ms, part) = (r.seconds * 1e3, 100.0 * r.seconds / total);
            let roof = self.roof.as_ref().map_or("-".into(), |roof| format!("{:.0}", 100.0 * roof.share(r)));
            let (gflops, gbytes) = (r.flops / r.seconds / 1e9, r.bytes / r.seconds / 1e9);
            let _ = writeln!(
                out,
                "{ms:>10.4} {part:>6.1} {gflops:>9.1} {gbytes:>8.1} {roof:>6}  {:<14} {} `{}`{calls}",
                l.implementation, l.kernel, l.name
            );
        }
        let _ = writeln!(out, "{:>10.4}  100.0 in launches", total * 1e3);
        out
    }

    /// The roofline picture (Williams, Waterman and Patterson, 2009): operations a second over operations a byte, both logarithmic;
    /// a disc's area is its launch's part of the time.
    fn picture(&self, roof: &Roof) -> String {
        const WIDTH: f64 = 960.0;
        const HEIGHT: f64 = 600.0;
        const MARGIN: f64 = 70.0;
        let drawn: Vec<&Row> = self.rows.iter().filter(|r| r.flops > 0.0 && r.bytes > 0.0 && r.seconds > 0.0).collect();
        let decades = |values: &mut dyn Iterator<Item = f64>| {
            let (lo, hi) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
            (lo.log10().floor(), (hi.log10().ceil()).max(lo.log10().floor() + 1.0))
        };
        let (x0, x1) = decades(&mut drawn.iter().map(|r| r.flops / r.bytes).chain([0.1, 100.0]));
        let (y0, y1) = decades(&mut drawn.iter().map(|r| r.flops / r.seconds).chain([roof.flops]));
        let x = |v: f64| MARGIN + (v.log10() - x0) / (x1 - x0) * (WIDTH - 2.0 * MARGIN);
        let y = |v: f64| HEIGHT - MARGIN - (v.log10() - y0) / (y1 - y0) * (HEIGHT - 2.0 * MARGIN);
        let mut s = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for decade in x0 as i32..=x1 as i32 {
            let at = x(10f64.powi(decade));
            let _ = writeln!(s, "<path d=\"M{at:.1} {MARGIN}V{}\" stroke=\"#ddd\"/>", HEIGHT - MARGIN);
            let _ = writeln!(s, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", HEIGHT - MARGIN + 18.0, 10f64.powi(decade));
        }
        for decade in y0 as i32..=y1 as i32 {
            let at = y(10f64.powi(decade));
            let _ = writeln!(s, "<path d=\"M{MARGIN} {at:.1}H{}\" stroke=\"#ddd\"/>", WIDTH - MARGIN);
            let _ = writeln!(s, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", MARGIN - 6.0, at + 4.0, 10f64.powi(decade - 9));
        }
        let (left, right) = (10f64.powf(x0), 10f64.powf(x1));
        for (bytes, speed) in &roof.bandwidth {
            // A slope ends where it meets the ceiling, and starts where it enters the picture.
            let (from, to) = (left.max(10f64.powf(y0) / speed), right.min(roof.flops / speed));
            let _ = writeln!(
                s,
                "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#888\" fill=\"none\"><title>{:.0} GB/s to {:.1} MiB</title></path>",
                x(from),
                y(from * speed),
                x(to),
                y(to * speed),
                speed / 1e9,
                bytes / f64::from(1 << 20)
            );
        }
        let fastest = roof.bandwidth.iter().map(|b| b.1).fold(0.0, f64::max);
        let top = y(roof.flops);
        let _ = writeln!(s, "<path d=\"M{:.1} {top:.1}H{}\" stroke=\"#444\"/>", x(left.max(roof.flops / fastest)), WIDTH - MARGIN);
        let _ = writeln!(s, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.1} GFLOP/s</text>", WIDTH - MARGIN, top - 6.0, roof.flops / 1e9);
        let total = self.seconds();
        for r in drawn {
            let (cx, cy, part) = (x(r.flops / r.bytes), y(r.flops / r.seconds), r.seconds / total);
            let label = format!(
                "{} `{}` ({}): {:.4} ms, {:.1} %, {:.1} GFLOP/s",
                r.launch.kernel,
                r.launch.name,
                r.launch.implementation,
                r.seconds * 1e3,
                100.0 * part,
                r.flops / r.seconds / 1e9
            );
            let radius = 3.0 + 60.0 * part.sqrt();
            let _ = writeln!(
                s,
                "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius:.1}\" fill=\"#2a6fb0\" fill-opacity=\"0.35\" stroke=\"#2a6fb0\"><title>{}</title></circle>",
                edge::xml(&label)
            );
        }
        let _ = writeln!(s, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">operations a byte</text>", WIDTH / 2.0, HEIGHT - 20.0);
        let _ = writeln!(s, "<text x=\"{MARGIN}\" y=\"{}\">GFLOP/s; a disc's area is its part of {:.3} ms</text>", MARGIN - 24.0, total * 1e3);
        s.push_str("</svg>\n");
        s
    }
}
