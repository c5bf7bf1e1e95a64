//! Cases of the official ONNX suite, judged through the command line and held against lists of those that fail.

use crate::command::nnc;
use crate::data::root;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The sub-folders of `folder` that hold what `is` says, by name.
pub fn folders(folder: &Path, is: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).filter(|p| is(p)).collect();
    out.sort();
    out
}

pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs a command to its end; the last line of what it said, where it failed.
pub fn call(args: &[&str], paths: &[(&str, &Path)]) -> Result<(), String> {
    let mut c = nnc();
    c.args(args);
    for (flag, path) in paths {
        c.args((!flag.is_empty()).then_some(flag)).arg(path);
    }
    let done = c.output().expect("the command starts");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    match done.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(said.lines().find(|l| l.contains("differs")).unwrap_or("differs").into()),
        // What an engine cannot do is said cleanly; anything else is not a case on a list, it is a bug.
        Some(2) => Err(said.lines().next().unwrap_or("no message").into()),
        code => panic!("exit {code:?} of {args:?} {paths:?}: {said}"),
    }
}

/// One case on one engine: all its data sets. `so` compiles once, sizes left symbolic; `so-static` for the sizes of each data set.
fn judge(case: &Path, engine: &str, tolerances: &[&str]) -> Result<(), String> {
    let model = case.join("model.onnx");
    let work = tempfile::tempdir().expect("a folder");
    let library = work.path().join("model.so");
    if engine == "so" {
        call(&["compile"], &[("", &model), ("-o", &library)])?;
    }
    for data in folders(case, |p| name(p).starts_with("test_data_set_")) {
        let out = work.path().join(name(&data));
        let (what, with) = match engine {
            "so" => (&library, vec!["run"]),
            "so-static" => (&model, vec!["run", "--engine", "so"]),
            _ => (&model, vec!["run", "--engine", engine]),
        };
        call(&[&with, tolerances].concat(), &[("", what), ("-i", &data), ("--expect", &data), ("-o", &out)])?;
    }
    Ok(())
}

/// Every case on `engine`, on all cores: the names of those that fail, and why.
pub fn failures(cases: &[PathBuf], engine: &str, tolerances: &[&str]) -> BTreeMap<String, String> {
    let (next, out) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = judge(case, engine, tolerances) {
                        out.lock().expect("no thread panics").insert(name(case), why);
                    }
                }
            });
        }
    });
    out.into_inner().expect("no thread panics")
}

/// The list: a line per case, its name and the engines on which it fails.
pub fn parse(text: &str) -> BTreeMap<String, Vec<String>> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.split_once(' ')).map(|(name, engines)| (name.into(), engines.split(' ').map(str::to_string).collect())).collect()
}

/// The cases of the suite, by name.
pub fn cases(suite: &Path) -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = ["node", "simple"].iter().flat_map(|f| folders(&suite.join(f), |p| p.join("test_data_set_0").is_dir())).collect();
    cases.sort_by_key(|c| name(c));
    assert_eq!(cases.len(), 1788, "the suite of onnx 1.22.0");
    cases
}

/// Cases whose expected values NumPy's generator drew.
pub fn drawn() -> Vec<String> {
    let text = fs::read_to_string(root().join("tests/onnx/numpy_generator.txt")).expect("a list");
    text.lines().filter(|l| !l.starts_with('#')).map(String::from).collect()
}

/// Those of the suite itself.
pub const TOLERANCES: [&str; 4] = ["--rtol", "1e-3", "--atol", "1e-7"];

/// Holds runs (what they are called, their cases, the engine) against the list in `file`, both ways.
pub fn held_against(file: &str, head: &str, runs: &[(&str, &[PathBuf], &str)]) {
    let path = root().join(file);
    let expected = parse(&fs::read_to_string(&path).unwrap_or_default());
    let drawn = drawn();
    let (mut got, mut report): (BTreeMap<String, Vec<String>>, Vec<String>) = Default::default();
    for (run, cases, engine) in runs {
        let mut failed = failures(cases, engine, &TOLERANCES);
        let there: Vec<&String> = drawn.iter().filter(|d| cases.iter().any(|c| name(c) == **d)).collect();
        for case in &there {
            match failed.remove(*case) {
                Some(why) if why.contains("differs in") && !why.contains("differs in shape") && !why.contains("element type") => {}
                other => report.push(format!("{case} on {run} should give other numbers than NumPy's generator: {other:?}")),
            }
        }
        println!("{run}: {} of {} cases pass", cases.len() - failed.len() - there.len(), cases.len());
        for (case, why) in &failed {
            if !expected.get(case).is_some_and(|e| e.iter().any(|e| e == run)) {
                report.push(format!("{case} on {run}: {why}"));
            }
            got.entry(case.clone()).or_default().push(run.to_string());
        }
        let passes = expected.iter().filter(|(case, e)| e.iter().any(|e| e == run) && !failed.contains_key(*case));
        report.extend(passes.map(|(case, _)| format!("{case} on {run} passes: take it off the list")));
    }
    if std::env::var_os("NNC_BLESS").is_some() {
        let lines: String = got.iter().map(|(case, runs)| format!("{case} {}\n", runs.join(" "))).collect();
        return fs::write(&path, format!("# {head} NNC_BLESS=1 writes this anew.\n{lines}")).expect("the list is written");
    }
    assert!(report.is_empty(), "{} differ from {file}:\n{}", report.len(), report.join("\n"));
}
