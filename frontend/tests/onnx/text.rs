//! Operators on strings.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::Tensor;

const STR: i32 = 8;

fn text(shape: &[usize], values: &[&str]) -> Tensor {
    Tensor::text(shape, values.iter().map(|s| (*s).into()).collect()).unwrap()
}

fn strings(n: &str, values: &[&str]) -> AttributeProto {
    let strings = values.iter().map(|s| name(s)).collect();
    AttributeProto { name: name(n), strings, r#type: attribute_type::STRINGS, ..Default::default() }
}

/// One operator on strings of the given shapes.
fn of(op: NodeProto, shapes: &[&str], feeds: &[Tensor]) -> Vec<Tensor> {
    let inputs = op.input.iter().zip(shapes).map(|(n, s)| value(&String::from_utf8_lossy(n), STR, s)).collect();
    run(&single(20, op, inputs, &[]), feeds)
}

#[test]
fn concatenation_stretches() {
    let y = of(node("StringConcat", "a b", "y", vec![]), &["2,1", "2"], &[text(&[2, 1], &["x", "y"]), text(&[2], &["1", "2"])]);
    assert_eq!(y, [text(&[2, 2], &["x1", "x2", "y1", "y2"])]);
}

#[test]
fn splitting_fills_up() {
    let y = of(node("StringSplit", "a", "y n", vec![string("delimiter", ",")]), &["N"], &[text(&[2], &["a,b", "c"])]);
    assert_eq!(y, [text(&[2, 2], &["a", "b", "c", ""]), i64s(&[2, 1])]);
}

#[test]
fn normalizing_leaves_out_stopwords() {
    let stop = || vec![string("case_change_action", "UPPER"), strings("stopwords", &["Monday"])];
    let y = of(node("StringNormalizer", "a", "y", stop()), &["3"], &[text(&[3], &["monday", "tuesday", "Monday"])]);
    assert_eq!(y, [text(&[1], &["TUESDAY"])]);
    let sensitive = [stop(), vec![int("is_case_sensitive", 1)]].concat();
    let y = of(node("StringNormalizer", "a", "y", sensitive), &["1,2"], &[text(&[1, 2], &["monday", "Monday"])]);
    assert_eq!(y, [text(&[1, 1], &["MONDAY"])]);
    let y = of(node("StringNormalizer", "a", "y", stop()), &["1"], &[text(&[1], &["Monday"])]);
    assert_eq!(y, [text(&[1], &[""])]);
}

#[test]
fn patterns_match_whole_strings() {
    let y = of(node("RegexFullMatch", "a", "y", vec![string("pattern", "a|ab+")]), &["3"], &[text(&[3], &["a", "abb", "xa"])]);
    assert_eq!(y, [Tensor::new(&[3], &[true, true, false])]);
    let wrong = problems(&single(20, node("RegexFullMatch", "a", "y", vec![string("pattern", "(")]), vec![value("a", STR, "3")], &[]));
    assert!(wrong[0].contains("no regular expression"), "{wrong:?}");
}

#[test]
fn strings_move_like_numbers_and_compute_like_none() {
    let given = [("i", i64s(&[1, 0])), ("other", text(&[], &["b"]))];
    let nodes = vec![
        node("Gather", "x i", "g", vec![int("axis", 0)]),
        node("Equal", "g other", "same", vec![]),
        node("Where", "same x g", "w", vec![]),
        node("Concat", "w x", "y", vec![int("axis", 0)]),
    ];
    let mut g = graph(vec![value("x", STR, "2")], nodes, vec![value("y", STR, "4"), value("same", BOOL, "2")]);
    g.initializer = given.iter().map(|(n, t)| nnc_frontend::onnx::tensor::to_proto(n, t)).collect();
    let y = run(&model(20, g), &[text(&[2], &["a", "b"])]);
    assert_eq!(y, [text(&[4], &["a", "a", "a", "b"]), Tensor::new(&[2], &[true, false])]);
    let wrong = problems(&single(20, node("Add", "a a", "y", vec![]), vec![value("a", STR, "3")], &[]));
    assert!(wrong[0].contains("does not take strings"), "{wrong:?}");
}

#[test]
fn numbers_to_strings_and_back() {
    let m = single(19, node("Cast", "x", "y", vec![int("to", STR.into())]), vec![value("x", F32, "2")], &[]);
    assert_eq!(run(&m, &[f32s(&[2], &[1.5, -2.0])]), [text(&[2], &["1.5", "-2.0"])]);
    let m = single(19, node("Cast", "x", "y", vec![int("to", I64.into())]), vec![value("x", STR, "2")], &[]);
    assert_eq!(run(&m, &[text(&[2], &["12", "-3"])]), [i64s(&[12, -3])]);
}

#[test]
fn ngrams_are_counted() {
    let attributes = |mode: &str| {
        vec![
            int("min_gram_length", 1),
            int("max_gram_length", 2),
            int("max_skip_count", 1),
            string("mode", mode),
            ints("ngram_counts", &[0, 2]),
            ints("ngram_indexes", &[0, 2, 1]),
            ints("pool_int64s", &[5, 6, 5, 6]),
            AttributeProto { name: name("weights"), floats: vec![2.0, 3.0, 4.0], r#type: attribute_type::FLOATS, ..Default::default() },
        ]
    };
    let of =
        |mode: &str| run(&single(9, node("TfIdfVectorizer", "x", "y", attributes(mode)), vec![value("x", I64, "4")], &[]), &[i64s(&[5, 5, 6, 6])]);
    // 5 and 6 stand there twice each, 5 6 once side by side and twice with one between them.
    assert_eq!(of("TF"), [f32s(&[3], &[2., 3., 2.])]);
    assert_eq!(of("IDF"), [f32s(&[3], &[2., 4., 3.])]);
    assert_eq!(of("TFIDF"), [f32s(&[3], &[4., 12., 6.])]);
}

#[test]
fn strings_are_moved_to_places() {
    let (x, i) = (value("x", STR, "3"), value("u", STR, "2"));
    let feeds = [text(&[3], &["a", "b", "c"]), text(&[2], &["p", "q"])];
    let of = |op: NodeProto, given: &[(&str, Tensor)]| run(&single(18, op, vec![x.clone(), i.clone()], given), &feeds);
    let y = of(node("ScatterElements", "x i u", "y", vec![]), &[("i", i64s(&[2, -3]))]);
    assert_eq!(y, [text(&[3], &["q", "b", "p"])]);
    let y = of(node("ScatterND", "x i u", "y", vec![]), &[("i", i64s(&[1, 2]).reshaped(vec![2, 1]).unwrap())]);
    assert_eq!(y, [text(&[3], &["a", "p", "q"])]);
    let y = of(node("Pad", "x p", "y", vec![]), &[("p", i64s(&[1, -1]))]);
    assert_eq!(y, [text(&[3], &["", "a", "b"])]);
    let y = of(node("Pad", "x p v", "y", vec![]), &[("p", i64s(&[0, 1])), ("v", text(&[], &["?"]))]);
    assert_eq!(y, [text(&[4], &["a", "b", "c", "?"])]);
    let y = of(node("Pad", "x p", "y", vec![string("mode", "reflect")]), &[("p", i64s(&[2, 0]))]);
    assert_eq!(y, [text(&[5], &["c", "b", "a", "b", "c"])]);
    let y = of(node("CenterCropPad", "x n", "y", vec![]), &[("n", i64s(&[5]))]);
    assert_eq!(y, [text(&[5], &["", "a", "b", "c", ""])]);
    let sum = single(18, node("ScatterElements", "x i u", "y", vec![string("reduction", "add")]), vec![x, i], &[("i", i64s(&[0, 1]))]);
    assert!(problems(&sum)[0].contains("not reduced"), "{:?}", problems(&sum));
}

#[test]
fn unique_strings_and_those_with_text() {
    let unique = |attributes: Vec<AttributeProto>| {
        of(node("Unique", "x", "y first inverse counts", attributes), &["5"], &[text(&[5], &["b", "a", "b", "", "aa"])])
    };
    let sorted = [text(&[4], &["", "a", "aa", "b"]), i64s(&[3, 1, 4, 0]), i64s(&[3, 1, 3, 0, 2]), i64s(&[1, 1, 1, 2])];
    assert_eq!(unique(vec![]), sorted);
    assert_eq!(unique(vec![int("sorted", 0)])[0], text(&[4], &["b", "a", "", "aa"]));
    let rows = of(node("Unique", "x", "y", vec![int("axis", 0)]), &["3,2"], &[text(&[3, 2], &["b", "a", "a", "c", "b", "a"])]);
    assert_eq!(rows, [text(&[2, 2], &["a", "c", "b", "a"])]);
    assert_eq!(of(node("NonZero", "x", "y", vec![]), &["3"], &[text(&[3], &["", "x", "0"])]), [Tensor::new(&[1, 2], &[1i64, 2])]);
}
