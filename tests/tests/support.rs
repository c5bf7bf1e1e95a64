//! `SUPPORT.md` says what the compiler does: the page is made anew and compared. `NNC_BLESS=1` writes it.

use nnc::support;
use nnc_tests::data::root;
use std::fs;

#[test]
fn support_md_is_up_to_date() {
    let list = support::all().expect("the examples are in order");
    let page = support::markdown(&list);
    let path = root().join("SUPPORT.md");
    if std::env::var_os("NNC_BLESS").is_some() {
        fs::write(&path, &page).expect("the page is written");
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    let differ = page.lines().zip(have.lines()).find(|(want, have)| want != have);
    assert!(have == page, "SUPPORT.md is not what the table says (NNC_BLESS=1 writes it); first difference: {differ:?}");
}

#[test]
fn what_everybody_expects_is_there() {
    let list = support::all().expect("the examples are in order");
    let find = |name: &str| list.iter().find(|s| s.name == name).and_then(|s| s.tried.as_ref()).expect("an operator with an example");
    for name in ["Conv", "MatMul", "Softmax", "LayerNormalization", "Add"] {
        let t = find(name);
        assert!(t.gradient && t.types == t.compiled && t.types.contains(&nnc_ir::DType::BF16), "{name}");
    }
    let strings = find("StringConcat");
    assert!(strings.types == [nnc_ir::DType::Str] && strings.compiled.is_empty() && !strings.gradient);
}
