//! Suites over the table of examples: what needs no lowering and no backend.

use nnc_ir::builder::{expansion, infer};
use nnc_ir::eval::{Env, run};
use nnc_ir::examples::{Example, examples};
use nnc_ir::types::{DType, Type};
use nnc_ir::verify::verify;
use nnc_ir::{Op, Tensor};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

#[test]
fn every_operation_has_examples_with_names_of_their_own() {
    let all = examples();
    let seen: BTreeSet<&str> = all.iter().map(|e| e.op.name()).collect();
    // A gradient is an operation on the graph around it: `passes/tests/gradient.rs`. Text and pictures have no random tensors: `ops/text.rs`, and the
    // cases of the ONNX suite.
    let others = ["gradient", "image_decode", "string_concat", "string_split", "string_normalize", "string_rank", "regex_match"];
    let missing: Vec<&str> = Op::names().into_iter().filter(|n| !seen.contains(n) && !others.contains(n)).collect();
    assert!(missing.is_empty(), "operations without an example in ir/src/examples: {missing:?}");
    let names: BTreeSet<&str> = all.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names.len(), all.len());
}

/// One list of everything that `check` finds wrong, each with its example.
fn for_all(check: impl Fn(&Example) -> Result<(), String>) {
    let wrong: Vec<String> = examples().iter().filter_map(|e| check(e).err().map(|m| format!("{}: {m}", e.name))).collect();
    assert!(wrong.is_empty(), "{} examples:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_verifier_accepts_them() {
    for_all(|e| verify(&e.graph().map_err(|r| r.to_string())?).map_err(|r| r.to_string()));
}

#[test]
fn inference_agrees_with_evaluation() {
    // Evaluation holds every result against the inferred type.
    for_all(|e| {
        let g = e.graph().map_err(|r| r.to_string())?;
        for seed in 0..3 {
            let x = e.tensors(seed).map_err(|e| e.to_string())?;
            let y = run(&g, &x, &Env::default()).map_err(|e| e.to_string())?;
            if y.len() != g.outputs.len() {
                return Err(format!("{} outputs", y.len()));
            }
        }
        Ok(())
    });
}

#[test]
fn expansions_are_sound() {
    for_all(|e| match e.op.as_composite() {
        None => Ok(()),
        Some(_) => verify(&expansion(&e.op, &e.inputs).map_err(|e| e.to_string())?).map_err(|r| r.to_string()),
    });
}

#[test]
fn types_that_are_plain_to_see_are_those_of_the_expansion() {
    for_all(|e| {
        let Some(y) = e.op.as_composite().and_then(|c| c.infer(&e.inputs)) else { return Ok(()) };
        let g = expansion(&e.op, &e.inputs).map_err(|e| e.to_string())?;
        let types: Vec<Type> = g.outputs.iter().map(|o| g.ty(o.value).clone()).collect();
        if y == types { Ok(()) } else { Err(format!("{y:?}, the expansion has {types:?}")) }
    });
}

#[test]
fn attributes_survive_text() {
    for_all(|e| {
        if matches!(e.op, Op::Const(_)) {
            return Ok(());
        }
        let attrs = e.op.attrs();
        let get = |name: &str| attrs.iter().find(|(n, _)| *n == name).map(|(_, a)| a.clone());
        match Op::parse(e.op.name(), &get) {
            Some(Ok(op)) if op == e.op => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn values_depend_on_the_seed_only() {
    let e = &examples()[0];
    let x = |seed| -> Vec<Tensor> { e.tensors(seed).unwrap() };
    assert_eq!(x(7), x(7));
    assert_ne!(x(7), x(8));
}

#[test]
fn operands_of_any_number_and_rank_are_answered() {
    // Too few, too many, of other ranks: a type or an error, never a panic.
    for_all(|e| {
        let last = e.inputs.last().cloned().unwrap_or_else(|| Type::of(DType::F32, &[2]));
        let mut lists: Vec<Vec<Type>> = (0..e.inputs.len()).map(|n| e.inputs[..n].to_vec()).collect();
        lists.push([e.inputs.clone(), vec![last.clone()]].concat());
        lists.push([e.inputs.clone(), vec![last; 6]].concat());
        for i in 0..e.inputs.len() {
            for shape in [vec![], vec![3], vec![2, 3, 4, 5, 6, 7], vec![0, 0]] {
                let mut list = e.inputs.clone();
                list[i] = Type::of(list[i].dtype, &shape);
                lists.push(list);
            }
        }
        let panicked = lists.iter().find(|x| std::panic::catch_unwind(AssertUnwindSafe(|| infer(&e.op, x, &e.regions).map(|_| ()))).is_err());
        panicked.map_or(Ok(()), |x| Err(format!("panics on {x:?}")))
    });
}
