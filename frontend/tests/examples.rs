//! The examples of ONNX operators fit the table: each is taken, and only rows that hold graphs have none.

use nnc_frontend::onnx::examples::examples;
use nnc_frontend::onnx::ops;

/// Rows whose attributes are graphs, or that work on the graph around them.
const OF_GRAPHS: [&str; 5] = ["Gradient", "If", "Loop", "Scan", "SequenceMap"];

#[test]
fn each_is_taken_with_its_own_element_type() {
    let wrong: Vec<String> = examples()
        .expect("the file is in order")
        .iter()
        .filter_map(|e| e.graph(e.dtype).err().map(|r| format!("{} of opset {}: {r}", e.row.name, e.opset())))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_row_has_one() {
    let examples = examples().expect("the file is in order");
    let key = |r: &ops::Row| (r.domain, r.name, r.since);
    let without = ops::rows().filter(|r| !examples.iter().any(|e| key(e.row) == key(r)));
    let missing: Vec<String> = without.filter(|r| !OF_GRAPHS.contains(&r.name)).map(|r| format!("{} {}", r.name, r.since)).collect();
    assert!(missing.is_empty(), "{}", missing.join(", "));
}
