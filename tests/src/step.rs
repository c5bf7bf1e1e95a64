//! Steps of training as graphs with inputs.

use crate::data::root;
use nnc_frontend::nn::train::{STEP, Training};
use nnc_ir::{DType, Graph, Tensor, Type};
use nnc_passes::differentiate;
use std::collections::HashMap;

/// In -1..1, from a name and a number.
pub fn draw(name: &str, i: usize, salt: u64) -> f64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64 ^ salt;
    for b in name.bytes().chain((i as u64).to_le_bytes()) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    }
    h = (h ^ (h >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (h >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// A sample's types, as the example's loader gives them.
pub fn samples(training: &Training) -> Vec<Type> {
    let plan = training.plan().expect("a plan");
    match &*plan.data.loader {
        "idx" => vec![Type::of(DType::U8, &[28, 28]), Type::of(DType::U8, &[])],
        "csv" => vec![Type::of(DType::F32, &[64]), Type::of(DType::I64, &[])],
        "draws" => vec![],
        other => panic!("no samples for the loader {other}"),
    }
}

/// Values of a step's inputs, by name. In f64 parameters are where training might have moved them, so that no two units are alike.
pub fn values(graph: &Graph, state: &HashMap<String, Tensor>) -> Vec<Tensor> {
    let value = |name: &str, ty: &Type| {
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.as_const().expect("a known size") as usize).collect();
        let n: usize = shape.iter().product();
        let each = |f: &dyn Fn(usize) -> f64| {
            let values: Vec<f64> = (0..n).map(f).collect();
            match ty.dtype {
                DType::F64 => Tensor::new(&shape, &values),
                DType::F32 => Tensor::new(&shape, &values.iter().map(|v| *v as f32).collect::<Vec<f32>>()),
                DType::I64 => Tensor::new(&shape, &values.iter().map(|v| *v as i64).collect::<Vec<i64>>()),
                DType::U8 => Tensor::new(&shape, &values.iter().map(|v| *v as u8).collect::<Vec<u8>>()),
                other => panic!("no values of type {other} for `{name}`"),
            }
        };
        match (state.get(name), ty.dtype) {
            (Some(t), DType::F64) => {
                let old = t.to_f64s();
                each(&|i| old[i] + 0.05 * draw(name, i, 1))
            }
            (Some(t), _) => t.clone(),
            (None, _) if name == STEP => each(&|_| 1.0),
            // Pixels, classes, rates.
            (None, DType::U8) if shape.len() == 1 => each(&|i| (3 * i % 10) as f64),
            (None, DType::U8) => each(&|i| 128.0 + 127.0 * draw(name, i, 2)),
            (None, DType::I64) => each(&|i| (3 * i % 10) as f64),
            // Rates of learning, where numbers are as narrow as training has them.
            (None, DType::F32) if shape.is_empty() => each(&|_| 0.05),
            (None, _) => each(&|i| 8.0 + 8.0 * draw(name, i, 3)),
        }
    };
    graph.inputs.iter().map(|id| value(&graph.node(*id).name, &graph.node(*id).types[0])).collect()
}

/// The step of an example that trains, on batches of `batch` samples: a graph without gradients to be taken, and its inputs.
pub fn step(name: &str, batch: usize) -> (Graph, Vec<Tensor>) {
    let text = std::fs::read_to_string(root().join(format!("examples/{name}.nn"))).expect("an example");
    let line = |l: &str| {
        let mut words: Vec<String> = l.split_whitespace().map(String::from).collect();
        match words.iter().position(|w| w == "batch").filter(|_| words[0] == "data") {
            Some(at) => words[at + 1] = batch.to_string(),
            None => return l.to_string(),
        }
        words.join(" ")
    };
    let text: String = text.lines().map(|l| line(l) + "\n").collect();
    let training = Training::parse(&text, name).unwrap_or_else(|r| panic!("{name}: {r}")).expect("a training block");
    let plan = training.plan().unwrap_or_else(|r| panic!("{name}: {r}"));
    let step = training.step(&plan, &samples(&training)).unwrap_or_else(|r| panic!("{name}: {r}"));
    let graph = differentiate(step.graph).unwrap_or_else(|r| panic!("{name}: {r}"));
    let inputs = values(&graph, &step.state.into_iter().collect());
    (graph, inputs)
}

/// Within 1e-4 of the largest of each result.
pub fn near(name: &str, got: &[Tensor], want: &[Tensor]) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (g, w) = (g.to_f64s(), w.to_f64s());
        let most = w.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        assert_eq!(g.len(), w.len(), "{name}, result {i}");
        let far = g.iter().zip(&w).position(|(a, b)| (a - b).abs() > 1e-4 * most || a.is_nan());
        assert_eq!(far.map(|at| (at, g[at], w[at])), None, "{name}, result {i}");
    }
}
