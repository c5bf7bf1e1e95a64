//! The official ONNX cases and real trained models, through the command line, on every engine.
//!
//! `onnx/failures.txt` lists the cases of the suite that do not pass yet, by engine; a listed case that passes is an error too, so the
//! list can only shrink. `NNC_BLESS=1` writes it anew. `onnx/numpy_generator.txt` lists those whose expected values are what NumPy's
//! generator drew: they run on every engine and give other numbers. `onnx/variants.txt` is the same list for the suite with all inputs of
//! symbolic sizes, and with all inputs constant.

use nnc_tests::data::{onnx_suite, real_models, root, skip};
use nnc_tests::onnx::{call, cases, drawn, failures, folders, held_against, name, parse};
use nnc_tests::variants::{self, Variant};
use std::fs;

const ENGINES: [&str; 3] = ["interp", "jit", "so"];

#[test]
fn official_cases() {
    let suite = match onnx_suite() {
        Ok(folder) => folder,
        Err(why) => return skip("official_cases", &why),
    };
    let cases = cases(&suite);
    let head = "Official cases (onnx 1.22.0, node and simple) that do not pass yet, and on which engines.";
    held_against("tests/onnx/failures.txt", head, &ENGINES.map(|engine| (engine, &cases[..], engine)));
}

#[test]
fn variants_of_official_cases() {
    let suite = match onnx_suite() {
        Ok(folder) => folder,
        Err(why) => return skip("variants_of_official_cases", &why),
    };
    let (cases, work) = (cases(&suite), tempfile::tempdir().expect("a folder"));
    let dynamic = variants::write(&cases, Variant::Dynamic, &work.path().join("dynamic"));
    let constant = variants::write(&cases, Variant::Constant, &work.path().join("constant"));
    assert!(dynamic.len() > 1700 && constant.len() > 1700, "{} and {}", dynamic.len(), constant.len());
    let runs = [("dynamic-jit", &dynamic[..], "jit"), ("dynamic-so", &dynamic[..], "so"), ("constant-jit", &constant[..], "jit")];
    let head = "Official cases that do not pass with symbols for all lengths of their inputs (dynamic), or with their inputs as constants.";
    held_against("tests/onnx/variants.txt", head, &runs);
}

/// The function body of an operator, written out as a model, gives what the operator gives: closer than the suite asks of either.
#[test]
fn expanded_twins_agree() {
    let suite = match onnx_suite() {
        Ok(folder) => folder,
        Err(why) => return skip("expanded_twins_agree", &why),
    };
    let (drawn, failing) = (drawn(), parse(&fs::read_to_string(root().join("tests/onnx/failures.txt")).unwrap_or_default()));
    let mut report = vec![];
    let mut pairs = 0;
    for twin in cases(&suite) {
        let n = name(&twin);
        let Some(case) = n.strip_suffix("_expanded").map(|n| twin.with_file_name(n)).filter(|c| c.is_dir()) else { continue };
        if [&n, &name(&case)].iter().any(|n| drawn.contains(n) || failing.get(*n).is_some_and(|e| e.iter().any(|e| e == "jit"))) {
            continue;
        }
        pairs += 1;
        let work = tempfile::tempdir().expect("a folder");
        let (data, model) = (twin.join("test_data_set_0"), twin.join("model.onnx"));
        let first = call(&["run"], &[("", &model), ("-i", &data), ("-o", work.path())]);
        // Where a function rounds to half precision between its steps, an operator rounds once.
        let close = ["run", "--rtol", if n.contains("fp16") { "1e-3" } else { "1e-4" }, "--atol", "1e-6"];
        let second = first.and_then(|()| call(&close, &[("", &case.join("model.onnx")), ("-i", &data), ("--expect", work.path())]));
        report.extend(second.err().map(|why| format!("{n}: {why}")));
    }
    assert!(pairs > 300, "{pairs} pairs");
    assert!(report.is_empty(), "{} of {pairs} differ:\n{}", report.len(), report.join("\n"));
}

#[test]
fn real_trained_models() {
    let models = match real_models() {
        Ok(folder) => folders(&folder, |p| p.join("model.onnx").is_file()),
        Err(why) => return skip("real_trained_models", &why),
    };
    assert!(models.len() >= 9, "{models:?}");
    for engine in ["jit", "so-static", "so"] {
        let failed = failures(&models, engine, &[]);
        assert!(failed.is_empty(), "{engine}: {failed:#?}");
    }
}
