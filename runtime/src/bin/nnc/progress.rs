//! Progress bars: on stderr, only on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

fn bar(length: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    ProgressStyle::with_template(template).map(|s| bar.set_style(s)).ok();
    bar
}

/// A bar over a span of time; its position counts milliseconds.
pub fn seconds(what: &'static str, seconds: f64) -> ProgressBar {
    let bar = bar((seconds * 1e3) as u64, "{msg} [{bar:30}] {elapsed}");
    bar.set_message(what);
    bar
}

/// A bar over the passes of a compilation.
pub fn passes(count: usize) -> ProgressBar {
    bar(count as u64, "compiling [{bar:30}] {msg}")
}

/// A bar over the steps of a training; its length comes with the first.
pub fn steps() -> ProgressBar {
    bar(0, "training [{bar:30}] {pos}/{len} {msg} eta {eta}")
}
