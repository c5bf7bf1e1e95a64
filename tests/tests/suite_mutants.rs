//! Damaged models of the official suite: they are imported and compiled, or refused with errors that are no bug of ours, and nothing panics.
//! Some in every run; `NNC_FUZZ=20000` tries as many, from the seed `NNC_FUZZ_SEED` on.

use nnc::Options;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::{self, ImportOptions};
use nnc_ir::Report;
use nnc_ir::error::Code;
use nnc_tests::data::{onnx_suite, skip};
use nnc_tests::random_graph::Dice;
use prost::Message;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// Models above this are left alone.
const MAX_BYTES: u64 = 100_000;

const NUMBERS: [i64; 20] =
    [0, 1, -1, 2, 3, 7, -2, 64, 127, 1000, 1_000_000, i32::MAX as i64, i32::MIN as i64, 1 << 31, 1 << 32, 1 << 40, 1 << 62, i64::MAX, i64::MIN, -3];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn one_of<'a, T>(dice: &mut Dice, list: &'a mut [T]) -> Option<&'a mut T> {
    let i = dice.below(list.len());
    list.get_mut(i)
}

/// Bytes turned, dropped, doubled, cut off.
fn damaged(mut bytes: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(5) {
            _ if bytes.is_empty() => {}
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.word() as u8,
            2 => drop(bytes.drain(at..(at + 1 + dice.below(4)).min(bytes.len()))),
            3 => {
                let end = (at + dice.below(32)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, part);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// A message with one field changed: still a model, but a wrong one most of the time.
fn changed(m: &mut ModelProto, dice: &mut Dice, operators: &[&str]) {
    let number = NUMBERS[dice.below(NUMBERS.len())];
    let (what, which) = (dice.below(14), dice.below(30));
    if what == 0 {
        if let Some(import) = one_of(dice, &mut m.opset_import) {
            import.version = number.min(30);
        }
        return;
    }
    let Some(g) = m.graph.as_mut() else { return };
    let names: Vec<_> = g.node.iter().flat_map(|n| n.output.clone()).chain(g.input.iter().map(|i| i.name.clone())).collect();
    let name = names.get(dice.below(names.len() + 1)).cloned().unwrap_or_default();
    let nodes = g.node.len();
    let Some(node) = one_of(dice, &mut g.node) else { return };
    match what {
        1 => node.op_type = operators[dice.below(operators.len())].as_bytes().to_vec().into(),
        2 => {
            if let Some(slot) = one_of(dice, &mut node.input) {
                *slot = name;
            }
        }
        3 => node.input.push(name),
        4 => drop(node.input.pop()),
        5 => node.output.push(name),
        6 => drop(node.attribute.pop()),
        7..=9 => {
            let Some(a) = one_of(dice, &mut node.attribute) else { return };
            a.i = a.i.map(|_| number);
            a.f = a.f.map(|_| number as f32 / 3.0);
            match one_of(dice, &mut a.ints) {
                Some(i) if what == 7 => *i = number,
                _ if what == 8 => a.ints.push(number),
                _ => drop(a.ints.pop()),
            }
            if let Some(t) = a.t.as_mut() {
                t.dims.push(number);
            }
        }
        10 => {
            let copy = node.clone();
            g.node.insert(dice.below(nodes), copy);
        }
        11 => {
            if let Some(TypeKind::Tensor(t)) = one_of(dice, &mut g.input).and_then(|i| i.r#type.as_mut()).and_then(|t| t.value.as_mut()) {
                match t.shape.as_mut().and_then(|s| one_of(dice, &mut s.dim)) {
                    Some(d) if which < 20 => d.value = Some(DimKind::Value(number)),
                    _ => t.elem_type = which as i32,
                }
            }
        }
        12 => {
            if let Some(t) = one_of(dice, &mut g.initializer) {
                match one_of(dice, &mut t.int64_data) {
                    Some(i) => *i = number,
                    None if which < 10 => t.dims.push(number),
                    None => t.data_type = which as i32,
                }
            }
        }
        _ => {
            if let Some(o) = one_of(dice, &mut g.output) {
                o.name = name;
            }
        }
    }
}

/// Whether the model compiles; an error of ours is an `Err`.
fn compiles(bytes: Vec<u8>, level: u8) -> Result<bool, String> {
    let ours = |r: Report| match r.0.iter().find(|e| e.code() == Code::Internal) {
        Some(e) => Err(e.to_string()),
        None => Ok(false),
    };
    let model = match onnx::parse(bytes.into(), "m.onnx", None, &ImportOptions::default()) {
        Ok(model) => model,
        Err(r) => return ours(r),
    };
    match nnc::session(model.graph, &Options { level, threads: 1, ..Options::default() }, &mut ()) {
        Ok(_) => Ok(true),
        Err(r) => ours(r),
    }
}

fn models() -> Result<Vec<PathBuf>, String> {
    let suite = onnx_suite()?;
    let mut out = vec![];
    for case in ["node", "simple"].iter().flat_map(|f| fs::read_dir(suite.join(f)).expect("a folder")) {
        let path = case.expect("an entry").path().join("model.onnx");
        if fs::metadata(&path).is_ok_and(|m| m.len() < MAX_BYTES) {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

#[test]
fn mutants_are_compiled_or_refused() {
    let models = match models() {
        Ok(models) => models,
        Err(why) => return skip("mutants_are_compiled_or_refused", &why),
    };
    let operators: Vec<&str> = nnc_frontend::onnx::ops::rows().map(|r| r.name).collect();
    let (count, first) = (setting("NNC_FUZZ", 200), setting("NNC_FUZZ_SEED", 1));
    let (mut taken, mut wrong) = (0, vec![]);
    for seed in first..first + count {
        let mut dice = Dice::new(seed);
        let path = &models[dice.below(models.len())];
        let bytes = fs::read(path).expect("a model");
        let mutant = if dice.below(3) == 0 {
            damaged(bytes, &mut dice)
        } else {
            let mut m = ModelProto::decode(&bytes[..]).expect("a model of the suite");
            (0..1 + dice.below(3)).for_each(|_| changed(&mut m, &mut dice, &operators));
            m.encode_to_vec()
        };
        match catch_unwind(AssertUnwindSafe(|| compiles(mutant, (seed % 4) as u8))).unwrap_or_else(|_| Err("a panic".into())) {
            Ok(compiled) => taken += u64::from(compiled),
            Err(why) => wrong.push(format!("seed {seed} ({}): {why}", path.display())),
        }
    }
    println!("{taken} of {count} mutants compile, {} go wrong", wrong.len());
    assert!(wrong.is_empty(), "{} mutants:\n{}", wrong.len(), wrong.join("\n"));
    assert!(taken > count / 20, "only {taken} of {count} mutants compile");
}
