//! The repository against its own rules (ARCHITECTURE.md, "Invariants").

use nnc_tests::data::root;
use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below the crates, with its path from the root.
fn sources() -> Vec<(PathBuf, String)> {
    let mut out = vec![];
    let mut stack: Vec<PathBuf> = ["ir", "frontend", "passes", "backends", "runtime", "tests"].iter().map(|c| root().join(c)).collect();
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).expect("a source folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                out.push((path.strip_prefix(root()).expect("below the root").to_path_buf(), text));
            }
        }
    }
    out.sort();
    assert!(out.len() > 30, "the walk found the sources");
    out
}

/// Files among `sources` whose text holds `needle`, without `allowed`.
fn offenders(needle: &str, within: &str, allowed: &[&str]) -> Vec<PathBuf> {
    let holds = |(path, text): &(PathBuf, String)| path.starts_with(within) && text.contains(needle) && !allowed.iter().any(|a| path == Path::new(a));
    sources().into_iter().filter(holds).map(|(path, _)| path).collect()
}

#[test]
fn only_graph_rs_names_petgraph() {
    assert_eq!(offenders("use petgraph", "", &["ir/src/graph.rs", "tests/tests/tidy.rs"]), Vec::<PathBuf>::new());
}

#[test]
fn crates_depend_as_drawn() {
    let allowed: [(&str, &[&str]); 5] = [
        ("ir", &[]),
        ("frontend", &["nnc-ir"]),
        ("passes", &["nnc-ir"]),
        ("backends", &["nnc-ir"]),
        ("runtime", &["nnc-ir", "nnc-frontend", "nnc-passes", "nnc-backends"]),
    ];
    for (krate, allowed) in allowed {
        let manifest = fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("");
        for line in dependencies.lines().filter(|l| l.starts_with("nnc")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or("");
            assert!(allowed.contains(&name), "{krate} must not depend on {name}");
        }
    }
}

#[test]
fn no_rooms_for_leftovers() {
    for (path, _) in sources() {
        for name in ["utils", "common", "helpers", "misc"] {
            assert!(
                !path.components().any(|c| Path::new(c.as_os_str()).file_stem().is_some_and(|s| s == name)),
                "{}: name it for what it holds",
                path.display()
            );
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for (path, text) in sources() {
        if path == Path::new("tests/tests/tidy.rs") {
            continue;
        }
        for mark in ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"] {
            assert!(!text.contains(mark), "{} holds {mark}", path.display());
        }
    }
}

#[test]
fn every_dependency_says_why() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace manifest");
    let table = manifest.split("[workspace.dependencies]").nth(1).and_then(|t| t.split("\n[").next()).expect("the dependency table");
    for line in table.lines().filter(|l| l.contains('=') && !l.contains("path =")) {
        assert!(line.contains('#'), "{line}: say why this dependency is here");
    }
}
