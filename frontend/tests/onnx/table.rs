//! The table of operators as data.

use nnc_frontend::onnx::ops::{self, NEWEST_OPSET, rows};

#[test]
fn rows_are_sorted_within_a_name_and_unique() {
    let mut seen = std::collections::BTreeMap::new();
    for r in rows() {
        assert!(r.since >= 1 && r.since <= NEWEST_OPSET && r.until >= r.since, "{} {}", r.name, r.since);
        assert!(r.inputs.0 <= r.inputs.1, "{} {}", r.name, r.since);
        if let Some(before) = seen.insert((r.domain, r.name), r.since) {
            assert!(before < r.since, "{} {} after {before}", r.name, r.since);
        }
    }
}

#[test]
fn the_latest_version_that_is_not_newer_counts() {
    let since = |name: &str, opset: i64| ops::find("", name, opset).map(|r| r.since).ok();
    assert_eq!(since("Softmax", 12), Some(1));
    assert_eq!(since("Softmax", 13), Some(13));
    assert_eq!(since("Softmax", NEWEST_OPSET), Some(13));
    assert_eq!(since("Gelu", 19), None);
    assert_eq!(since("Scatter", 10), Some(9));
    assert_eq!(since("Scatter", 11), None);
}
