//! Calling a fresh library once, in a child process: whatever it does, this process lives to tell.

use crate::edge::{self, Outcome};
use nnc::ir::{Error, Tensor};
use nnc::threads::Pool;
use nnc::{Port, Session, Size};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What the child found.
pub enum Verdict {
    Runs,
    /// Loaded; no call could be made, and why.
    NotCalled(String),
    Broken(String),
}

/// Sizes for symbolic dimensions, tried in turn: networks with strides and windows have a least size.
const SIZES: [usize; 8] = [2, 1, 16, 32, 64, 128, 224, 512];

/// What the child's stdout begins with where no call could be made.
const NOT_CALLED: &str = "not called: ";

/// How long the child may take: zeros can make a loop long, and a library that is still running has shown that it runs.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs `nnc smoke` on the library.
pub fn in_child(library: &Path, prefix: &str, weights: Option<&Path>) -> Outcome<Verdict> {
    let failed = |e: std::io::Error| Error::io(format!("cannot start a process to try the library: {e}"));
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("smoke").arg(library).args(["--prefix", prefix]);
    if let Some(w) = weights {
        command.arg("--weights").arg(w);
    }
    // The child ends with this process: its stdin then does.
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let done = wait(child).map_err(failed)?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if !done.status.success() {
        // A status of a process says "signal: 11 (SIGSEGV)" by itself.
        return Ok(Verdict::Broken(format!("{}\n{}", done.status, err.trim())));
    }
    Ok(match out.strip_prefix(NOT_CALLED) {
        Some(why) => Verdict::NotCalled(why.trim().to_string()),
        None => Verdict::Runs,
    })
}

/// Waits for the child with its stdin held open.
fn wait(mut child: Child) -> std::io::Result<Output> {
    let alive = child.stdin.take();
    let done = child.wait_with_output();
    drop(alive);
    done
}

/// Ends this process with its parent, or when it has run for too long.
fn watch() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(1);
    });
    std::thread::spawn(|| {
        std::thread::sleep(LIMIT);
        let _ = edge::print(&format!("{NOT_CALLED}on zeros it was still running after {} s\n", LIMIT.as_secs()));
        std::process::exit(0);
    });
}

/// Loads the library and runs it on zeros.
pub fn call(library: &Path, prefix: &str, weights: Option<&Path>) -> Outcome {
    watch();
    let session = Session::open_with_weights(library, prefix, weights, Arc::new(Pool::new(1)))?;
    let mut refused = None;
    for size in SIZES {
        let inputs: Result<Vec<_>, _> = session.inputs().iter().map(|p| zeros(p, size)).collect();
        match inputs.and_then(|inputs| session.bind(&inputs)) {
            Ok(mut bound) => {
                // Zeros may be data that the model refuses; that it says so is a run.
                return match bound.run() {
                    Ok(()) => Ok(()),
                    Err(e) => edge::print(&format!("{NOT_CALLED}on zeros it says: {}\n", e.message())),
                };
            }
            Err(e) => refused = Some(e),
        }
        if session.inputs().iter().all(|p| p.shape.iter().all(|s| matches!(s, Size::Known(_)))) {
            break;
        }
    }
    let why = refused.map(|e| e.message().to_string()).unwrap_or_default();
    edge::print(&format!("{NOT_CALLED}no size was found that its inputs take: {why}\n"))
}

fn zeros(port: &Port, size: usize) -> Result<Option<Tensor>, Error> {
    let shape: Vec<usize> = port.shape.iter().map(|s| s.eval(&|_| Some(size as f64)).map_or(size, |v| v as usize)).collect();
    nnc::fill::Fill::Zeros.tensor(0, port.dtype, &shape).map(Some)
}
