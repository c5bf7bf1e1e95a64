//! Every operation's examples on every engine: compiled code, in memory and from a library, gives what the interpreter gives.

use nnc::threads::Pool;
use nnc::{Library, Session};
use nnc_backends::cpu::{self, native_target};
use nnc_ir::error::Code;
use nnc_ir::eval::{Env, run};
use nnc_ir::examples::{Example, compare, examples};
use nnc_ir::kernel::Program;
use nnc_ir::target::{Isa, Target};
use nnc_ir::{Error, Report};
use std::sync::Arc;

/// How a program becomes a session.
#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Jit,
    Library,
}

fn session(p: &Program, t: &Target, engine: Engine, threads: usize) -> Result<Session, Error> {
    let pool = Arc::new(Pool::new(threads));
    let options = cpu::Options::default();
    if engine == Engine::Jit {
        let jit = cpu::compile_jit(p, t, &options)?;
        let functions = *jit.functions();
        // SAFETY: the functions are those of `jit`, which the library keeps.
        return Ok(Session::native(unsafe { Library::new(functions, Box::new(jit)) }?, pool));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("example.so");
    let mut file = std::fs::File::create(&path).expect("a file");
    cpu::compile(p, t, &options, false)?.write_so("example.so", &mut file)?;
    Session::open(&path, &options.prefix, pool)
}

fn check(e: &Example, t: &Target, level: u8, engine: Engine) -> Result<(), String> {
    let graph = e.graph().map_err(|r| r.to_string())?;
    let options = nnc_passes::Options { level, ..Default::default() };
    let program = match nnc_passes::compile(graph.clone(), t, &options, &mut ()) {
        // What lowering refuses is its own suite's to say.
        Err(Report(errors)) if errors.iter().all(|e| e.code() == Code::Unsupported) => return Ok(()),
        other => other.map_err(|r| r.to_string())?,
    };
    let session = session(&program, t, engine, 2).map_err(|e| e.to_string())?;
    for seed in 0..2 {
        let x = e.tensors(seed).map_err(|e| e.to_string())?;
        let want = run(&graph, &x, &Env::default()).map_err(|e| e.to_string())?;
        let got = session.run(&x).map_err(|e| e.to_string())?;
        got.iter().zip(&want).enumerate().try_for_each(|(i, (g, w))| compare(g, w).map_err(|m| format!("y{i}: {m}")))?;
    }
    Ok(())
}

fn all(t: &Target, level: u8, engine: Engine) {
    let wrong: Vec<String> = examples().iter().filter_map(|e| check(e, t, level, engine).err().map(|m| format!("{}: {m}", e.name))).collect();
    assert!(wrong.is_empty(), "{} examples:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn in_memory() {
    all(&native_target(), 2, Engine::Jit);
}

#[test]
fn in_memory_without_optimisation() {
    all(&native_target(), 0, Engine::Jit);
}

#[test]
fn portable_code() {
    all(&Target::new(Isa::X86_64), 2, Engine::Jit);
}

#[test]
fn from_a_library() {
    all(&native_target(), 2, Engine::Library);
}
