//! Random operators: what is drawn looks like what was asked for, and is the same again under the same seed.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_ir::Tensor;

/// Outputs of nodes without inputs.
fn draw(nodes: Vec<NodeProto>) -> Vec<Tensor> {
    let outputs = nodes.iter().flat_map(|n| &n.output).map(|o| ValueInfoProto { name: o.clone(), r#type: None }).collect();
    run(&model(18, graph(vec![], nodes, outputs)), &[])
}

/// Mean and deviation.
fn moments(t: &Tensor) -> (f64, f64) {
    let x = t.to_f64s();
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (mean, (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
}

#[test]
fn uniform_and_normal_have_their_moments() {
    let y = draw(vec![
        node("RandomUniform", "", "u", vec![ints("shape", &[101, 99]), float("low", -1.0), float("high", 3.0), float("seed", 5.0)]),
        node("RandomNormal", "", "n", vec![ints("shape", &[9999]), float("mean", 2.0), float("scale", 0.5), int("dtype", 11)]),
    ]);
    let ((mean, deviation), x) = (moments(&y[0]), y[0].to_f64s());
    assert!((mean - 1.0).abs() < 0.05 && (deviation - 4.0 / 12f64.sqrt()).abs() < 0.03, "{mean} {deviation}");
    assert!(x.iter().all(|v| (-1.0..3.0).contains(v)));
    let (mean, deviation) = moments(&y[1]);
    assert!((mean - 2.0).abs() < 0.02 && (deviation - 0.5).abs() < 0.02, "{mean} {deviation}");
}

#[test]
fn seeds_decide() {
    let uniform = |out: &str, seed: Option<f32>| {
        node("RandomUniform", "", out, [vec![ints("shape", &[8])], seed.map(|s| float("seed", s)).into_iter().collect()].concat())
    };
    let nodes = || vec![uniform("a", Some(1.0)), uniform("b", Some(1.0)), uniform("c", Some(2.0)), uniform("d", None), uniform("e", None)];
    let y = draw(nodes());
    assert_eq!(y[0], y[1], "one seed, one stream");
    assert!((0..5).all(|i| (0..i).all(|j| (i, j) == (1, 0) || y[i] != y[j])), "{y:?}");
    assert_eq!(y, draw(nodes()), "again the same");
}

#[test]
fn probabilities_are_kept() {
    let p = Tensor::new(&[4, 1000], &[vec![0f32; 1000], vec![1.0; 1000], vec![0.25; 1000], vec![0.75; 1000]].concat());
    let m = single(15, node("Bernoulli", "p", "y", vec![int("dtype", 7)]), vec![value("p", F32, "4,1000")], &[]);
    let y = run(&m, &[p]).remove(0).to_ints().unwrap();
    let ones = |row: usize| y[row * 1000..(row + 1) * 1000].iter().sum::<i64>();
    assert!(ones(0) == 0 && ones(1) == 1000 && (200..300).contains(&ones(2)) && (700..800).contains(&ones(3)));

    // Logarithms of 1/8, 1/8, 0 and 3/4.
    let logs = f32s(&[1, 4], &[0.0, 0.0, f32::NEG_INFINITY, 6f32.ln()]);
    let m = single(12, node("Multinomial", "x", "y", vec![int("sample_size", 2000)]), vec![value("x", F32, "1,4")], &[]);
    let y = run(&m, &[logs]).remove(0).to_ints().unwrap();
    let count = |class: i64| y.iter().filter(|c| **c == class).count();
    assert!((180..320).contains(&count(0)) && count(2) == 0 && (1400..1600).contains(&count(3)), "{} {} {}", count(0), count(2), count(3));
}

#[test]
fn dropout_scales_what_stays() {
    let m = |training: bool| {
        let given = [("r", Tensor::scalar(0.75f32)), ("t", Tensor::scalar(training))];
        single(13, node("Dropout", "x r t", "y mask", vec![int("seed", 3)]), vec![value("x", F32, "4000")], &given)
    };
    let y = run(&m(true), &[f32s(&[4000], &[2.0; 4000])]);
    let stays = y[1].to_ints().unwrap();
    assert!((900..1100).contains(&stays.iter().sum::<i64>()));
    assert!(y[0].to_f64s().iter().zip(&stays).all(|(v, s)| *v == 8.0 * *s as f64));
    let y = run(&m(false), &[f32s(&[4000], &[2.0; 4000])]);
    assert!(y[0].to_f64s().iter().all(|v| *v == 2.0) && y[1].to_ints().unwrap().iter().all(|s| *s == 1));
}

#[test]
fn iterations_of_a_loop_differ() {
    let body = graph(
        vec![value("i", I64, ""), value("go", BOOL, "")],
        vec![node("Identity", "go", "go2", vec![]), node("RandomUniform", "", "u", vec![ints("shape", &[3]), float("seed", 1.0)])],
        vec![value("go2", BOOL, ""), value("u", F32, "3")],
    );
    let m = single(18, node("Loop", "n _", "y", vec![of_graph("body", body)]), vec![], &[("n", Tensor::scalar(3i64))]);
    let y = run(&m, &[]).remove(0).to_f64s();
    assert!(y[..3] != y[3..6] && y[3..6] != y[6..], "{y:?}");
}
