//! The command line from outside: verbs, exit codes, messages, files.

mod compile;
mod edge;
mod files;
mod hosts;
mod mutants;
mod train;
mod verbs;

use std::path::Path;
use tempfile::TempDir;

/// A network with a symbolic batch: 4 -> 3 -> 2.
const MLP: &str = "module mlp(x: f32[N,4]) -> (y: f32[N,2], h: f32[N,3]) {
  w = f32[4,3] [0.5, -1, 2, 0, 1, -0.5, 1, 1, 1, -2, 0.25, 0]
  b = f32[3] [0.1, 0.2, 0.3]
  h = tanh(matmul(x, w) + b)
  v = f32[3,2] [1, 2, 3, 4, 5, 6]
  y = matmul(h, v)
  return y, h
}
";

/// An empty folder with `mlp.nn` in it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), "mlp.nn", MLP);
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a file in a temporary folder");
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut out: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    out.sort();
    out
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("one JSON object is wanted ({e}): {text}"))
}
