//! Models of which the host computes a part: strings on the interpreter, the rest compiled.

use nnc::ir::ops::index::Gather;
use nnc::ir::ops::reduce::ReduceKind;
use nnc::ir::ops::text::{StringConcat, StringSplit};
use nnc::ir::{Builder, DType, Dim, Graph, Type};
use nnc::{Engine, Options, Session, Tensor};
use std::sync::Arc;

fn text(shape: &[usize], values: &[&str]) -> Tensor {
    Tensor::text(shape, values.iter().map(|s| Arc::from(*s)).collect()).unwrap()
}

/// Splits lines, counts a word in them, and joins what a number says.
fn model() -> Graph {
    let b = Builder::new("words");
    let (n, pieces) = (Dim::sym("N"), Dim::sym("pieces"));
    let lines = b.input("lines", Type::new(DType::Str, [n.clone()]));
    let weight = b.input("weight", Type::new(DType::F32, [n]));
    let split = b.op_all(StringSplit { delimiter: " ".into(), limit: -1, pieces }, &[lines], vec![]);
    let found = split[0].equal(b.constant(text(&[], &["a"]))).cast(DType::F32).reduce(ReduceKind::Sum, &[1], false);
    let score = found * weight + split[1].cast(DType::F32);
    b.output("score", score);
    let best = score.reduce(ReduceKind::Max, &[0], false).cast(DType::I64);
    let words = b.constant(text(&[6], &["zero", "one", "two", "three", "four", "five"]));
    let word = b.op(Gather { axis: 0 }, &[words, best]);
    b.output("word", b.op(StringConcat {}, &[word, b.constant(text(&[], &["!"]))]));
    b.finish().unwrap()
}

fn session(engine: Engine) -> Session {
    nnc::session(model(), &Options { engine, threads: 1, ..Options::default() }, &mut ()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_host_and_compiled_parts_take_turns() {
    let (interpreter, jit) = (session(Engine::Interpreter), session(Engine::Jit));
    for lines in [&["a b a", "c"][..], &["a"], &["b c d", "", "a a"]] {
        let weight = Tensor::new(&[lines.len()], &vec![0.5f32; lines.len()]);
        let inputs = [text(&[lines.len()], lines), weight];
        let want = interpreter.run(&inputs).unwrap();
        assert_eq!(jit.run(&inputs).unwrap(), want, "{lines:?}");
        assert_eq!(jit.run(&inputs).unwrap(), want, "again: {lines:?}");
    }
    let inputs = [text(&[1], &["a b"]), Tensor::new(&[1], &[1f32])];
    assert_eq!(jit.run(&inputs).unwrap(), [Tensor::new(&[1], &[3f32]), text(&[], &["three!"])]);
    assert!(jit.run(&[inputs[0].clone(), Tensor::new(&[2], &[1f32, 1.0])]).is_err(), "N is 1 and 2");
}

#[test]
fn a_library_has_no_strings() {
    let refused = nnc::session(model(), &Options { engine: Engine::SharedLibrary, ..Options::default() }, &mut ());
    let report = refused.err().expect("refused").to_string();
    assert!(report.contains("string_split") && report.contains("works on strings"), "{report}");
}

#[test]
fn constant_strings_are_results() {
    let b = Builder::new("names");
    let names = text(&[2], &["a", "b"]);
    b.output("names", b.constant(names.clone()));
    let graph = b.finish().unwrap();
    for engine in [Engine::Interpreter, Engine::Jit] {
        let session = nnc::session(graph.clone(), &Options { engine, threads: 1, ..Options::default() }, &mut ()).unwrap();
        assert_eq!(session.run(&[]).unwrap(), std::slice::from_ref(&names));
    }
    let refused = nnc::session(graph, &Options { engine: Engine::SharedLibrary, ..Options::default() }, &mut ());
    assert!(refused.err().expect("refused").to_string().contains("works on strings"));
}

#[test]
fn text_that_is_no_number_fails_unread() {
    let b = Builder::new("numbers");
    let x = b.input("x", Type::new(DType::Str, [Dim::sym("N")]));
    x.cast(DType::F32);
    b.output("n", b.dims(x.ty().shape));
    let mut graph = b.finish().unwrap();
    graph.keep_checks();
    for engine in [Engine::Interpreter, Engine::Jit] {
        let session = nnc::session(graph.clone(), &Options { engine, threads: 1, ..Options::default() }, &mut ()).unwrap();
        assert_eq!(session.run(&[text(&[2], &["1", "2.5"])]).unwrap(), [Tensor::new(&[1], &[2i64])]);
        assert!(session.run(&[text(&[2], &["1", "one"])]).is_err(), "{engine:?}");
    }
}
