//! Every example that trains, scaled down: the gradients of its step against differences of its loss, in f64 by the interpreter.

use nnc_frontend::nn::train::{LOSS, Training, phase_loss};
use nnc_ir::Tensor;
use nnc_ir::eval::{Env, run};
use nnc_ir::examples::widened;
use nnc_passes::differentiate;
use nnc_tests::data::root;
use nnc_tests::step::{draw, samples, values};
use std::collections::HashMap;

/// How far all parameters move along a random direction: few units cross a kink on the way, and differences keep ten digits.
const STEP_LENGTH: f64 = 1e-6;
const TOLERANCE: f64 = 1e-4;

/// What makes an example small, by name.
const SMALLER: &[(&str, &str, &str)] = &[("resnet", "n", "1"), ("vanilla", "layers", "20"), ("resnet", "segment", "2"), ("tcn", "length", "40")];

/// The examples with training blocks: names and texts.
fn examples() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(root().join("examples")).expect("the folder of examples");
    let mut out: Vec<(String, String)> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "nn"))
        .map(|p| (p.file_stem().expect("a name").to_string_lossy().into_owned(), std::fs::read_to_string(&p).expect("an example")))
        .filter(|(_, text)| text.contains("\ntrain on "))
        .collect();
    out.sort();
    out
}

/// The text with batches of two samples, no clipping, and the optimiser that subtracts the gradient; where there are phases, for the
/// parameters of `phase` alone.
fn plain(text: &str, phase: Option<&str>) -> String {
    let mut now: Option<String> = None;
    let mut out = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["phase", name, ..] => now = Some(name.into()),
            ["clip", ..] => continue,
            ["update", pattern, "with", ..] => {
                let rate = f64::from(u8::from(phase.is_none() || now.as_deref() == phase));
                out += &format!("update {pattern} with sgd({rate})\n");
                continue;
            }
            ["data", ..] => {
                let at = words.iter().position(|w| *w == "batch").expect("data has a batch");
                let small: Vec<&str> = words.iter().enumerate().map(|(i, w)| if i == at + 1 { "2" } else { w }).collect();
                out += &format!("{}\n", small.join(" "));
                continue;
            }
            _ => {}
        }
        out += &format!("{line}\n");
    }
    out
}

/// Derivatives along a random direction of all trained parameters: by the step, and by differences of its loss.
fn derivatives(text: &str, name: &str, phase: Option<&str>) -> (f64, f64) {
    let mut training = Training::parse(&plain(text, phase), name).unwrap_or_else(|r| panic!("{name}: {r}")).expect("a training block");
    for (_, setting, value) in SMALLER.iter().filter(|(example, ..)| *example == name) {
        training.set(setting, value).unwrap_or_else(|r| panic!("{name}: {r}"));
    }
    let plan = training.plan().unwrap_or_else(|r| panic!("{name}: {r}"));
    let step = training.step(&plan, &samples(&training)).unwrap_or_else(|r| panic!("{name}: {r}"));
    let state: HashMap<String, Tensor> = step.state.into_iter().collect();
    let graph = differentiate(widened(&step.graph)).unwrap_or_else(|r| panic!("{name}: {r}"));
    let given = values(&graph, &state);
    let loss = phase.map_or(LOSS.to_string(), phase_loss);
    let output = |name: &str| graph.outputs.iter().position(|o| &*o.name == name);
    let at = output(&loss).unwrap_or_else(|| panic!("{name} has no {loss}"));

    let after = run(&graph, &given, &Env::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (mut directions, mut square, mut slope) = (HashMap::new(), 0.0, 0.0);
    for (k, id) in graph.inputs.iter().enumerate() {
        let parameter = &*graph.node(*id).name;
        // What a running mean moves by is no gradient.
        if !state.contains_key(parameter) || parameter.ends_with(".mean") || parameter.ends_with(".var") {
            continue;
        }
        let Some(o) = output(parameter) else { continue };
        let (before, after) = (given[k].to_f64s(), after[o].to_f64s());
        // The parameters of another phase stay.
        if before == after && phase.is_some() {
            continue;
        }
        let direction: Vec<f64> = (0..before.len()).map(|i| draw(parameter, i, 4)).collect();
        square += direction.iter().map(|d| d * d).sum::<f64>();
        slope += before.iter().zip(&after).zip(&direction).map(|((b, a), d)| (b - a) * d).sum::<f64>();
        directions.insert(k, direction);
    }
    assert!(!directions.is_empty(), "{name} trains something");
    let h = STEP_LENGTH / f64::sqrt(square);
    let moved = |h: f64| {
        let mut given = given.clone();
        for (k, d) in &directions {
            let w: Vec<f64> = given[*k].to_f64s().iter().zip(d).map(|(w, d)| w + h * d).collect();
            given[*k] = Tensor::new(given[*k].shape(), &w);
        }
        run(&graph, &given, &Env::default()).unwrap_or_else(|e| panic!("{name}: {e}"))[at].to_f64s()[0]
    };
    let differences = (moved(h) - moved(-h)) / (2.0 * h);
    (slope / square.sqrt(), differences / square.sqrt())
}

#[test]
fn steps_subtract_the_gradient_of_their_loss() {
    let mut wrong = vec![];
    let examples = examples();
    for (name, text) in &examples {
        let phases = Training::parse(text, name).expect("an example parses").expect("a training block").plan().expect("a plan").phases;
        let each: Vec<Option<&str>> = if phases.is_empty() { vec![None] } else { phases.iter().map(|p| Some(&**p)).collect() };
        for phase in each {
            let (step, differences) = derivatives(text, name, phase);
            if (step - differences).abs().is_nan() || (step - differences).abs() > TOLERANCE * differences.abs().max(1e-4) {
                wrong.push(format!("{name} {}: the step says {step}, differences say {differences}", phase.unwrap_or("")));
            }
        }
    }
    assert!(examples.len() >= 23, "only {} examples train", examples.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The sum over paths in the log semiring against one path after the other.
#[test]
fn path_sums_count_every_path() {
    const POSITIONS: usize = 4;
    let text = std::fs::read_to_string(root().join("examples/gtn.nn")).expect("the example");
    let alone = text
        .replace("positions = 8", &format!("positions = {POSITIONS}"))
        .replace("(x: f32[N,1,28,56])", "(answers: f32[N,11,positions])")
        .replace("  answers = Reader(name=\"reader\")(x)\n", "")
        .replace("x.shape[0]", "answers.shape[0]");
    let start = alone.find("train on").expect("a training block");
    let graph = nnc_frontend::nn::parse(&alone[..start], "gtn.nn").unwrap_or_else(|r| panic!("{r}"));
    let scores: Vec<f64> = (0..11 * POSITIONS).map(|i| 2.0 * draw("answers", i, 5)).collect();
    let given = Tensor::new(&[1, 11, POSITIONS], &scores.iter().map(|s| *s as f32).collect::<Vec<f32>>());
    let sums = run(&graph, &[given], &Env::default()).expect("path sums").swap_remove(0).to_f64s();

    let mut want = vec![0.0; 100];
    for path in 0..11usize.pow(POSITIONS as u32) {
        let answers: Vec<usize> = (0..POSITIONS).map(|t| path / 11usize.pow(t as u32) % 11).collect();
        let weight: f64 = answers.iter().enumerate().map(|(t, a)| scores[a * POSITIONS + t]).sum();
        // What stays at a digit says it once; 10 is none.
        let mut said: Vec<usize> = vec![];
        for (t, a) in answers.iter().enumerate() {
            if *a != 10 && (t == 0 || answers[t - 1] != *a) {
                said.push(*a);
            }
        }
        if let [first, second] = said[..] {
            want[10 * first + second] += weight.exp();
        }
    }
    for (string, (sum, want)) in sums.iter().zip(&want).enumerate() {
        assert!((sum - want.ln()).abs() < 1e-5, "{string:02}: {sum}, path by path {}", want.ln());
    }
}
