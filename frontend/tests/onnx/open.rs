//! Axes and sizes that are the contents of inputs: with values that only the run knows the results are those of known ones, and what
//! no tensor has is an error of the run.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::Tensor;
use nnc_ir::eval::{self, Env};

/// `[2,3,4]`, no two elements alike.
fn data() -> Tensor {
    f32s(&[2, 3, 4], &(0..24).map(|i| ((i * 7) % 24) as f32 - 5.5).collect::<Vec<_>>())
}

struct Case {
    op: &'static str,
    opset: i64,
    attributes: Vec<AttributeProto>,
    /// The operands after the first, in order: where empty, the operand is left out.
    given: Vec<Tensor>,
}

fn case(op: &'static str, opset: i64, attributes: Vec<AttributeProto>, given: &[&[i64]]) -> Case {
    Case { op, opset, attributes, given: given.iter().map(|v| i64s(v)).collect() }
}

impl Case {
    fn of(mut self, i: usize, t: Tensor) -> Case {
        self.given[i] = t;
        self
    }

    /// The model on `x`; the integers are inputs where `open` is set, initializers else.
    fn model(&self, x: &Tensor, open: bool) -> ModelProto {
        let names: Vec<String> = self.given.iter().enumerate().map(|(i, t)| if t.elems() == 0 { "_".into() } else { format!("i{i}") }).collect();
        let text = |t: &Tensor| t.shape().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut inputs = vec![value("x", F32, &text(x))];
        let mut known = vec![];
        for (n, t) in names.iter().zip(&self.given).filter(|(_, t)| t.elems() > 0) {
            match open {
                true => inputs.push(value(n, I64, &text(t))),
                false => known.push((n.as_str(), t.clone())),
            }
        }
        single(self.opset, node(self.op, &format!("x {}", names.join(" ")), "y", self.attributes.clone()), inputs, &known)
    }

    fn open(&self, x: &Tensor) -> nnc_ir::Result<Vec<Tensor>> {
        let m = load(&self.model(x, true)).unwrap_or_else(|e| panic!("{}: {e}", self.op));
        let feeds: Vec<Tensor> = std::iter::once(x).chain(self.given.iter().filter(|t| t.elems() > 0)).cloned().collect();
        eval::run(&m.graph, &feeds, &Env::default())
    }

    fn agrees(&self, x: &Tensor) {
        let want = run(&self.model(x, false), std::slice::from_ref(x)).remove(0);
        let got = self.open(x).unwrap_or_else(|e| panic!("{}: {e}", self.op)).remove(0);
        assert_eq!(got.shape(), want.shape(), "{} {:?}", self.op, self.given);
        let close = got.to_f64s().iter().zip(want.to_f64s()).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0) || a.is_nan() && b.is_nan());
        assert!(close, "{} {:?}: {got:?} is not {want:?}", self.op, self.given);
    }
}

const REDUCTIONS: [&str; 10] =
    ["ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"];

#[test]
fn reductions_over_axes_of_the_run() {
    for op in REDUCTIONS {
        for axes in [&[0][..], &[-1], &[2, 0], &[0, 1, 2], &[-2]] {
            for keep in [0, 1] {
                case(op, 18, vec![int("keepdims", keep)], &[axes]).agrees(&data());
            }
        }
    }
    case("ReduceSum", 18, vec![], &[&[1, -2]]).agrees(&data());
}

#[test]
fn a_number_of_axes_of_the_run() {
    // No axes at all are all of them, unless that is asked to be none.
    for (noop, shape) in [(0, [1, 1, 1]), (1, [2, 3, 4])] {
        let op = node("ReduceSum", "x a", "y", vec![int("noop_with_empty_axes", noop)]);
        let m = single(18, op, vec![value("x", F32, "2,3,4"), value("a", I64, "n")], &[]);
        assert_eq!(run(&m, &[data(), i64s(&[])])[0].shape(), shape);
        assert_eq!(run(&m, &[data(), i64s(&[1, 2])])[0].shape(), [2, 1, 1]);
    }
    let m = single(18, node("ReduceSum", "x a", "y", vec![int("keepdims", 0)]), vec![value("x", F32, "2,3,4"), value("a", I64, "n")], &[]);
    assert!(problems(&m)[0].contains("the number of axes"), "{:?}", problems(&m));
}

#[test]
fn running_sums_and_transforms_along_an_axis_of_the_run() {
    for axis in -3i64..3 {
        for (exclusive, reverse) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let attributes = vec![int("exclusive", exclusive), int("reverse", reverse)];
            case("CumSum", 14, attributes, &[&[0]]).of(0, Tensor::scalar(axis)).agrees(&data());
        }
    }
    let pairs = f32s(&[2, 3, 2, 2], data().to_f64s().iter().map(|v| *v as f32).collect::<Vec<_>>().as_slice());
    for axis in [0i64, 1, 2, -2, -3] {
        for inverse in [0, 1] {
            case("DFT", 20, vec![int("inverse", inverse)], &[&[], &[0]]).of(1, Tensor::scalar(axis)).agrees(&pairs);
        }
        case("DFT", 20, vec![int("onesided", 1)], &[&[4], &[0]]).of(0, Tensor::scalar(4i64)).of(1, Tensor::scalar(axis)).agrees(&pairs);
    }
}

#[test]
fn slices_of_the_run() {
    for (starts, ends, axes, steps) in [
        (&[1][..], &[3][..], &[2][..], &[1][..]),
        (&[-1], &[-100], &[1], &[-1]),
        (&[0, -3], &[i64::MAX, -1], &[-3, 2], &[2, 1]),
        (&[3, 100], &[i64::MIN, 0], &[2, 0], &[-2, -1]),
        (&[5], &[7], &[1], &[3]),
        (&[1, 2], &[i64::MAX, i64::MIN], &[2, 1], &[i64::MAX, i64::MIN]),
    ] {
        case("Slice", 13, vec![], &[starts, ends, axes, steps]).agrees(&data());
        case("Slice", 13, vec![], &[starts, ends, axes]).agrees(&data());
        case("Slice", 13, vec![], &[starts, ends]).agrees(&data());
    }
}

#[test]
fn ranges_of_the_run() {
    let inputs = || "abc".chars().map(|n| value(&n.to_string(), I64, "")).collect();
    let m = load(&single(11, node("Range", "a b c", "y", vec![]), inputs(), &[])).expect("a model");
    let of = |a: i64, b: i64, c: i64| eval::run(&m.graph, &[a, b, c].map(Tensor::scalar), &Env::default());
    let far = 1i64 << 60;
    for (a, b, c, want) in [
        (far, far + 3, 1, vec![far, far + 1, far + 2]),
        (-far, -far - 3, -2, vec![-far, -far - 2]),
        (i64::MIN, i64::MAX, i64::MAX, vec![i64::MIN, -1, i64::MAX - 1]),
        (5, i64::MIN, i64::MIN, vec![5, i64::MIN + 5]),
        (3, 3, 1, vec![]),
        (3, 1, 1, vec![]),
        (1, 3, -1, vec![]),
    ] {
        assert_eq!(of(a, b, c).unwrap_or_else(|e| panic!("{e}"))[0].to_ints(), Some(want), "{a} {b} {c}");
    }
    assert!(of(0, 3, 0).is_err());
    assert!(of(i64::MIN, i64::MAX, 1).is_err());
}

#[test]
fn shapes_to_stretch_to_of_the_run() {
    for shape in [&[2, 3, 4][..], &[1, 3, 1], &[5, 1, 1, 4]] {
        case("Expand", 13, vec![], &[shape]).agrees(&data());
    }
    let column = f32s(&[2, 1], &[3., 5.]);
    for shape in [&[7][..], &[2, 0], &[3, 1, 4]] {
        case("Expand", 13, vec![], &[shape]).agrees(&column);
    }
    // A symbol of another input is neither 1 nor the length it meets.
    let inputs = vec![value("x", F32, "n,4"), value("z", F32, "k,m")];
    let nodes = vec![node("Shape", "z", "s", vec![]), node("Expand", "x s", "y", vec![])];
    let m = load(&model(13, graph(inputs, nodes, vec![ValueInfoProto { name: name("y"), ..Default::default() }]))).expect("a model");
    let of = |x: [usize; 2], z: [usize; 2]| {
        let t = |s: [usize; 2]| f32s(&s, &vec![0.; s[0] * s[1]]);
        eval::run(&m.graph, &[t(x), t(z)], &Env::default()).map(|y| y[0].shape().to_vec())
    };
    for (x, z, want) in [([3, 4], [3, 4], [3, 4]), ([1, 4], [3, 1], [3, 4]), ([3, 4], [1, 4], [3, 4])] {
        assert_eq!(of(x, z).unwrap_or_else(|e| panic!("{e}")), want);
    }
    for (x, z) in [([3, 4], [2, 4]), ([3, 4], [3, 5]), ([3, 4], [3, 2]), ([1, 4], [3, 3])] {
        assert!(of(x, z).is_err(), "{x:?} {z:?}");
    }
}

#[test]
fn padding_of_the_run() {
    for mode in ["constant", "reflect", "edge", "wrap"] {
        let attributes = || vec![string("mode", mode)];
        case("Pad", 19, attributes(), &[&[1, 0, 2, 0, 1, 1]]).agrees(&data());
        case("Pad", 19, attributes(), &[&[0, -1, 2, 0, 1, -2]]).agrees(&data());
        case("Pad", 19, attributes(), &[&[1, 2, 1, 0], &[], &[-1, 1]]).agrees(&data());
    }
}

#[test]
fn axes_that_come_and_go() {
    let x = data().reshaped(vec![2, 1, 12, 1]).expect("24 elements");
    for axes in [&[1][..], &[-1], &[3, 1]] {
        case("Squeeze", 13, vec![], &[axes]).agrees(&x);
    }
    for axes in [&[0][..], &[-1], &[2, 0], &[5, 0, 3]] {
        case("Unsqueeze", 13, vec![], &[axes]).agrees(&data());
    }
    // Without axes the rank says which lengths are 1; the run refuses one that was not known to be.
    let m = single(13, node("Squeeze", "x", "y", vec![]), vec![value("x", F32, "n,1,2")], &[]);
    assert_eq!(run(&m, &[f32s(&[3, 1, 2], &[0.; 6])])[0].shape(), [3, 2]);
    let m = load(&m).expect("a model");
    assert!(eval::run(&m.graph, &[f32s(&[1, 1, 2], &[0.; 2])], &Env::default()).is_err());
}

#[test]
fn images_and_sizes_of_the_run() {
    let columns = f32s(&[1, 8, 6], &(0..48).map(|i| i as f32).collect::<Vec<_>>());
    case("Col2Im", 18, vec![], &[&[3, 4], &[2, 2]]).agrees(&columns);
    case("Col2Im", 18, vec![ints("strides", &[2, 1]), ints("pads", &[0, 1, 1, 0])], &[&[4, 3], &[2, 2]]).of(0, i64s(&[3, 3])).agrees(&columns);
    for policy in ["not_larger", "not_smaller", "stretch"] {
        let x = f32s(&[1, 1, 3, 4], &(0..12).map(|i| i as f32).collect::<Vec<_>>());
        let attributes = vec![string("keep_aspect_ratio_policy", policy), ints("axes", &[2, 3])];
        case("Resize", 19, attributes, &[&[], &[], &[7, 6]]).agrees(&x);
    }
}

#[test]
fn what_no_tensor_has_is_an_error_of_the_run() {
    for wrong in [
        case("ReduceSum", 18, vec![], &[&[3]]),
        case("ReduceSum", 18, vec![int("keepdims", 0)], &[&[-4]]),
        case("ReduceSum", 18, vec![int("keepdims", 0)], &[&[1, 1]]),
        case("CumSum", 14, vec![], &[&[3]]),
        case("Slice", 13, vec![], &[&[0], &[1], &[3]]),
        case("Slice", 13, vec![], &[&[0, 0], &[1, 1], &[1, -2]]),
        case("Slice", 13, vec![], &[&[0], &[1], &[1], &[0]]),
        case("Expand", 13, vec![], &[&[2, 3, 5]]),
        case("Expand", 13, vec![], &[&[2, 2, 4]]),
        case("Expand", 13, vec![], &[&[0, 3, 4]]),
        case("Pad", 19, vec![], &[&[1, 1], &[], &[5]]),
        case("Squeeze", 13, vec![], &[&[0]]),
        case("Squeeze", 13, vec![], &[&[7]]),
        case("Unsqueeze", 13, vec![], &[&[1, 1]]),
        case("Unsqueeze", 13, vec![], &[&[-5]]),
    ] {
        assert!(wrong.open(&data()).is_err(), "{} {:?}", wrong.op, wrong.given);
    }
}

/// The operator with the inputs' lengths as they are, and with each of them open.
fn the_same_with_open_lengths(opset: i64, op: NodeProto, inputs: &[(&str, Tensor)]) {
    let of = |open: bool| {
        let shape = |n: &str, t: &Tensor| {
            let dim = |(i, d): (usize, &usize)| if open { format!("{n}{i}") } else { d.to_string() };
            t.shape().iter().enumerate().map(dim).collect::<Vec<_>>().join(",")
        };
        let declared = inputs.iter().map(|(n, t)| value(n, t.dtype().abi_code(), &shape(n, t))).collect();
        run(&single(opset, op.clone(), declared, &[]), &inputs.iter().map(|(_, t)| t.clone()).collect::<Vec<_>>())
    };
    let (want, got) = (of(false), of(true));
    for (g, w) in got.iter().zip(&want) {
        assert_eq!(g.shape(), w.shape(), "{:?}", op.op_type);
        let close = g.to_f64s().iter().zip(w.to_f64s()).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0));
        assert!(close, "{:?}: {g:?} is not {w:?}", op.op_type);
    }
}

fn ramp(shape: &[usize]) -> Tensor {
    f32s(shape, &(0..shape.iter().product::<usize>()).map(|i| ((i * 7) % 23) as f32 / 5.0 - 2.0).collect::<Vec<_>>())
}

#[test]
fn slices_along_a_number_of_axes_of_the_run() {
    for (starts, ends, axes, steps) in [
        (&[1i64][..], &[3i64][..], &[2i64][..], &[1i64][..]),
        (&[1, 0], &[3, -1], &[-1, 0], &[2, 1]),
        (&[-1, 0, 3], &[-9, 9, 0], &[1, 0, 2], &[-1, 1, -2]),
    ] {
        let all = [("x", data()), ("s", i64s(starts)), ("e", i64s(ends)), ("a", i64s(axes)), ("t", i64s(steps))];
        the_same_with_open_lengths(13, node("Slice", "x s e a t", "y", vec![]), &all);
        the_same_with_open_lengths(13, node("Slice", "x s e a", "y", vec![]), &[&all[..3], &[("a", i64s(axes))]].concat());
        the_same_with_open_lengths(13, node("Slice", "x s e", "y", vec![]), &all[..3]);
    }
    // More starts than axes, and than ends.
    let m = single(13, node("Slice", "x s e", "y", vec![]), vec![value("x", F32, "2,3,4"), value("s", I64, "K"), value("e", I64, "L")], &[]);
    let fails = |s: &[i64], e: &[i64]| eval::run(&load(&m).unwrap().graph, &[data(), i64s(s), i64s(e)], &Env::default()).is_err();
    assert!(!fails(&[0, 0], &[1, 1]) && fails(&[0, 0, 0, 0], &[1, 1, 1, 1]) && fails(&[0, 0], &[1]));
}

#[test]
fn weights_of_open_sizes() {
    let (x, w, b) = (("x", ramp(&[2, 4, 7, 6])), ("w", ramp(&[6, 2, 3, 2])), ("b", ramp(&[6])));
    for attributes in [
        vec![int("group", 2)],
        vec![int("group", 2), ints("strides", &[2, 1]), ints("dilations", &[1, 2]), ints("pads", &[1, 0, 2, 1])],
        vec![int("group", 2), ints("strides", &[2, 3]), string("auto_pad", "SAME_UPPER")],
        vec![int("group", 2), ints("dilations", &[2, 1]), string("auto_pad", "SAME_LOWER")],
        vec![int("group", 2), ints("kernel_shape", &[3, 2]), string("auto_pad", "VALID")],
    ] {
        the_same_with_open_lengths(11, node("Conv", "x w b", "y", attributes), &[x.clone(), w.clone(), b.clone()]);
    }
    the_same_with_open_lengths(11, node("Conv", "x w", "y", vec![]), &[("x", ramp(&[1, 3, 8])), ("w", ramp(&[2, 3, 4]))]);
    let turned = vec![int("group", 2), ints("kernel_shape", &[3, 2]), ints("strides", &[2, 1])];
    the_same_with_open_lengths(11, node("ConvTranspose", "x w", "y", turned), &[x, ("w", ramp(&[4, 3, 3, 2]))]);
    let bias = AttributeProto { name: name("bias"), floats: vec![0.1, 0.2, 0.3], r#type: attribute_type::FLOATS, ..Default::default() };
    the_same_with_open_lengths(1, node("ImageScaler", "x", "y", vec![float("scale", 2.0), bias]), &[("x", ramp(&[1, 3, 2, 2]))]);
    let lstm = node("LSTM", "x w r b", "y h c", vec![int("hidden_size", 3), string("direction", "bidirectional")]);
    let inputs = [("x", ramp(&[5, 2, 4])), ("w", ramp(&[2, 12, 4])), ("r", ramp(&[2, 12, 3])), ("b", ramp(&[2, 24]))];
    the_same_with_open_lengths(14, lstm, &inputs);
}

#[test]
fn parts_make_up_the_axis() {
    let split = |opset: i64, attributes: Vec<AttributeProto>, sizes: &[i64]| {
        let known = [("s", i64s(sizes))];
        let op = node("Split", if sizes.is_empty() { "x" } else { "x s" }, "y z", attributes);
        let m = single(opset, op, vec![value("x", F32, "N,3")], &known[..usize::from(!sizes.is_empty())]);
        let m = load(&m).unwrap_or_else(|e| panic!("{e}"));
        move |rows: usize| eval::run(&m.graph, &[ramp(&[rows, 3])], &Env::default())
    };
    for (fits, rows) in [(split(13, vec![], &[]), 4), (split(11, vec![ints("split", &[2, 3])], &[]), 5), (split(13, vec![], &[2, 3]), 5)] {
        let all = fits(rows).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(all.iter().map(|t| t.shape()[0]).sum::<usize>(), rows);
        assert!(fits(rows + 1).is_err() && fits(rows - 1).is_err(), "rows would be lost, or are not there");
    }
}

#[test]
fn what_an_operator_fixes_may_be_open() {
    let grid = f32s(&[1, 2, 1, 2], &[-0.5, 0.25, 1.0, -1.0]);
    the_same_with_open_lengths(20, node("GridSample", "x g", "y", vec![]), &[("x", ramp(&[1, 2, 3, 3])), ("g", grid)]);
    let (regions, images) = (f32s(&[1, 4], &[0.0, 0.0, 2.0, 2.0]), i64s(&[0]));
    the_same_with_open_lengths(16, node("RoiAlign", "x r i", "y", vec![]), &[("x", ramp(&[1, 2, 3, 3])), ("r", regions), ("i", images)]);
    let (boxes, scores) = (f32s(&[1, 2, 4], &[0.0, 0.0, 1.0, 1.0, 0.0, 2.0, 1.0, 3.0]), f32s(&[1, 1, 2], &[0.5, 0.75]));
    the_same_with_open_lengths(11, node("NonMaxSuppression", "b s m", "y", vec![]), &[("b", boxes), ("s", scores), ("m", i64s(&[2]))]);
}

#[test]
fn an_axis_without_elements_can_be_turned_around() {
    let reversed = [("s", i64s(&[-1])), ("e", i64s(&[i64::MIN])), ("a", i64s(&[0])), ("t", i64s(&[-1]))];
    for declared in ["N,2", "0,2"] {
        let m = single(13, node("Slice", "x s e a t", "y", vec![]), vec![value("x", F32, declared)], &reversed);
        assert_eq!(run(&m, &[f32s(&[0, 2], &[])])[0].shape(), [0, 2]);
    }
    let m = single(13, node("Slice", "x s e a t", "y", vec![]), vec![value("x", F32, "N,2")], &reversed);
    assert_eq!(run(&m, &[f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0])])[0].to_f64s(), [3.0, 4.0, 1.0, 2.0]);
}

#[test]
fn errors_of_shapes_name_the_open_sizes() {
    let m = single(13, node("GatherND", "x i", "y", vec![]), vec![value("x", F32, "A,B"), value("i", I64, "C,D")], &[]);
    let report = problems(&m);
    assert!(report[0].contains("open sizes here: A, B, C, D; one that must be known is given by `--dim A=N`"), "{report:?}");
}
