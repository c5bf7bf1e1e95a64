//! Filetests: every `.nn` file below `tests/filetests`, its snapshot beside it.
//!
//! The first line is `// test: COMMAND`, one of [`COMMANDS`]; what the command gives is held against the file's `.snap`. `// run:` lines
//! ([`nnc_tests::assertion`]) are held against every engine. After an intended change, `INSTA_UPDATE=always cargo test -p nnc-tests --test
//! filetests` rewrites the snapshots; `FILETEST=word` looks only at files whose path holds the word.

use nnc_backends::gpu::plan::{Plan, plan};
use nnc_frontend::nn;
use nnc_ir::eval::Env;
use nnc_ir::target::{Cooperative, Gpu};
use nnc_ir::{Graph, Report, Target, Tensor};
use nnc_passes::Options;
use nnc_tests::assertion::assertions;
use nnc_tests::data::root;
use rspirv::binary::Disassemble;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A file under test.
struct Case {
    path: PathBuf,
    text: String,
    /// Words behind the command.
    args: Vec<String>,
}

impl Case {
    /// What errors call the file: the same on every machine.
    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn graph(&self) -> Result<Graph, String> {
        nn::parse(&self.text, &self.name()).map_err(|r| r.to_string())
    }

    fn target(&self, arg: usize) -> Result<Target, String> {
        let name = self.args.get(arg).map_or("x86-64-v4", String::as_str);
        Target::from_name(name).ok_or_else(|| format!("no target is called {name}"))
    }
}

type Command = fn(&Case) -> Result<Option<String>, String>;

/// What the first line may ask for; each gives the text of the snapshot, or none.
const COMMANDS: &[(&str, Command)] = &[
    ("parse", parse),
    ("format", |case| nn::format(&case.text, &case.name()).map(Some).map_err(|r| r.to_string())),
    ("error", error),
    ("infer", infer),
    ("pass", pass),
    ("optimize", optimize),
    ("lower", lower),
    ("gir", |case| device(case, |plan| Ok(plan.device_kernels().iter().map(|k| k.to_string() + "\n").collect()))),
    ("ptx", |case| device(case, |plan| plan.code().map_err(|e| e.to_string()).and_then(|c| String::from_utf8(c).map_err(|e| e.to_string())))),
    ("spirv", |case| device(case, |plan| plan.code().map_err(|e| e.to_string()).and_then(|c| disassembled(&c)))),
    ("run", |case| if case.text.contains("// run") { Ok(None) } else { Err("there is no `// run` line".into()) }),
];

/// The graph as it is printed; it must read back to the same.
fn parse(case: &Case) -> Result<Option<String>, String> {
    let graph = case.graph()?;
    round_trip(&graph)?;
    Ok(Some(graph.to_string()))
}

fn round_trip(graph: &Graph) -> Result<(), String> {
    let text = nnc_ir::print::full(graph).to_string();
    let again = nn::parse(&text, "printed.nn").map_err(|r| format!("what is printed does not parse:\n{r}\n{text}"))?;
    let twice = nnc_ir::print::full(&again).to_string();
    if twice == text { Ok(()) } else { Err(format!("printed, read and printed again:\n{}", diff(&text, &twice))) }
}

/// The report of a text that is wrong.
fn error(case: &Case) -> Result<Option<String>, String> {
    match case.graph() {
        Ok(graph) => Err(format!("no error, but\n{graph}")),
        Err(report) => Ok(Some(report)),
    }
}

/// Types of the results.
fn infer(case: &Case) -> Result<Option<String>, String> {
    let graph = case.graph()?;
    let lines = graph.outputs.iter().map(|o| format!("{}: {}\n", o.name, graph.ty(o.value)));
    Ok(Some(lines.collect()))
}

/// `pass NAME [TARGET]`: the difference that one pass makes.
fn pass(case: &Case) -> Result<Option<String>, String> {
    let graph = case.graph()?;
    let name = case.args.first().ok_or("`pass` needs the name of a pass")?;
    let before = graph.to_string();
    let options = Options { verify: true, ..Options::default() };
    let after = nnc_passes::run_pass(name, graph, &case.target(1)?, &options, &mut ()).map_err(text)?;
    round_trip(&after)?;
    Ok(Some(diff(&before, &after.to_string())))
}

/// `optimize [TARGET]`: the graph after all passes.
fn optimize(case: &Case) -> Result<Option<String>, String> {
    let options = Options { verify: true, ..Options::default() };
    let graph = nnc_passes::optimize(case.graph()?, &case.target(0)?, &options, &mut ()).map_err(text)?;
    round_trip(&graph)?;
    Ok(Some(graph.to_string()))
}

/// `lower [TARGET]`: the program of the graph as it is written.
fn lower(case: &Case) -> Result<Option<String>, String> {
    nnc_passes::lower(&case.graph()?, &case.target(0)?).map(|p| Some(p.to_string())).map_err(text)
}

/// `gir TARGET`, `ptx TARGET`, `spirv TARGET`: the kernels of the graph for a GPU, after all passes; with `cooperative` behind it, for one
/// whose subgroups multiply matrices.
fn device(case: &Case, show: fn(&Plan) -> Result<String, String>) -> Result<Option<String>, String> {
    let name = case.args.first().ok_or("the name of a GPU is wanted")?;
    let mut gpu = Gpu::from_name(name).ok_or_else(|| format!("no GPU is called {name}"))?;
    if case.args.get(1).is_some_and(|a| a == "cooperative") {
        gpu.cooperative = Some(Cooperative { rows: 16, columns: 16, depth: 16, lanes: 32 });
    }
    let program = nnc_passes::compile(case.graph()?, &any_target().with_gpu(&gpu), &Options::default(), &mut ()).map_err(text)?;
    show(&plan(program, &gpu).map_err(text)?).map(Some)
}

/// The text of SPIR-V, ids as they are in the words.
fn disassembled(words: &[u8]) -> Result<String, String> {
    rspirv::dr::load_bytes(words).map(|m| m.disassemble()).map_err(|e| e.to_string())
}

fn text(r: Report) -> String {
    r.to_string()
}

/// What runs models: a name, and the outputs on given inputs.
type Engine = (&'static str, fn(&Graph, &[Tensor]) -> Result<Vec<Tensor>, String>);

const ENGINES: &[Engine] = &[
    ("interpreter", |graph, x| {
        nnc_passes::differentiate(graph.clone()).map_err(text).and_then(|g| nnc_ir::eval::run(&g, x, &Env::default()).map_err(|e| e.to_string()))
    }),
    ("interpreter of optimised graphs", |graph, x| {
        let graph = nnc_passes::optimize(graph.clone(), &any_target(), &Options::default(), &mut ()).map_err(text)?;
        nnc_ir::eval::run(&graph, x, &Env::default()).map_err(|e| e.to_string())
    }),
    ("interpreter of loops", |graph, x| {
        let program = nnc_passes::compile(graph.clone(), &any_target(), &Options::default(), &mut ()).map_err(text)?;
        nnc_ir::kernel::eval::eval_program(&program, x).map_err(|e| e.to_string())
    }),
    ("JIT", |graph, x| native(graph, x, nnc::Engine::Jit)),
    ("shared library", |graph, x| native(graph, x, nnc::Engine::SharedLibrary)),
];

fn any_target() -> Target {
    Target::new(nnc_ir::target::Isa::Avx512)
}

/// What this machine computes.
fn native(graph: &Graph, x: &[Tensor], engine: nnc::Engine) -> Result<Vec<Tensor>, String> {
    let options = nnc::Options { engine, threads: 1, ..nnc::Options::default() };
    let session = nnc::session(graph.clone(), &options, &mut ()).map_err(text)?;
    session.run(x).map_err(|e| e.to_string())
}

/// Lines of `before` and `after`: common ones, `-` what is gone, `+` what is new.
fn diff(before: &str, after: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    // common[i][j]: lines that a[i..] and b[j..] share, in order.
    let mut common = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        let (sign, line) = if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            (' ', a[i - 1])
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', a[i - 1])
        } else {
            j += 1;
            ('+', b[j - 1])
        };
        out.push_str(&format!("{sign}{line}\n"));
    }
    out
}

/// Everything that one file asserts.
fn check(case: &Case, command: Command) -> Result<(), String> {
    if let Some(snapshot) = command(case)? {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(case.path.parent().unwrap_or(Path::new(".")));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        let name = case.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        settings.bind(|| catch_unwind(AssertUnwindSafe(|| insta::assert_snapshot!(name, snapshot)))).map_err(|_| "differs from its snapshot")?;
    }
    let assertions = assertions(&case.text)?;
    for (i, a) in assertions.iter().enumerate() {
        let graph = case.graph()?;
        let inputs = a.tensors(&graph).map_err(|e| format!("assertion {}: {e}", i + 1))?;
        for (engine, run) in ENGINES {
            a.check(run(&graph, &inputs)).map_err(|e| format!("assertion {} on the {engine}: {e}", i + 1))?;
        }
    }
    Ok(())
}

#[test]
fn filetests() {
    let wanted = std::env::var("FILETEST").unwrap_or_default();
    let mut files = vec![];
    let mut folders = vec![root().join("tests/filetests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder of filetests").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "nn") && path.to_string_lossy().contains(&wanted) {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "no filetest is called {wanted}");
    let mut failures = vec![];
    for path in &files {
        let text = fs::read_to_string(path).expect("a filetest");
        let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        let line = text.lines().next().and_then(|l| l.strip_prefix("// test:")).unwrap_or_default().to_string();
        let mut words = line.split_whitespace().map(String::from);
        let name = words.next().unwrap_or_default();
        let case = Case { path: path.clone(), text, args: words.collect() };
        let result = match COMMANDS.iter().find(|c| c.0 == name) {
            Some((_, command)) => catch_unwind(AssertUnwindSafe(|| check(&case, *command))).unwrap_or_else(|_| Err("panicked".into())),
            None => {
                let known: Vec<&str> = COMMANDS.iter().map(|c| c.0).collect();
                Err(format!("the first line is `// test: COMMAND`, one of {}", known.join(", ")))
            }
        };
        println!("{} {shown}", if result.is_ok() { "ok  " } else { "FAIL" });
        if let Err(e) = result {
            failures.push(format!("{shown}: {e}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} filetests failed:\n{}", failures.len(), files.len(), failures.join("\n"));
}
