//! The gradient of every operation against central differences in f64, in the middle of a graph: the result is read twice, by operations
//! whose own derivatives are not one.

use nnc_ir::eval::{Env, run};
use nnc_ir::examples::{Example, Values, examples, random_tensor, widened};
use nnc_ir::ops::gradient::Gradient;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::scalar::ScalarFn;
use nnc_ir::verify::verify;
use nnc_ir::{Builder, DType, Graph, Op, Tensor, Type, V};
use nnc_passes::autodiff::differentiate_with;
use nnc_passes::autodiff::slip::{Mistake, Slip};
use nnc_passes::differentiate;
use std::collections::BTreeSet;

/// Relative to the larger of 1 and the derivative.
const TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-5;
/// Elements of an operand that are looked at.
const PROBES: usize = 24;

/// Operations that nothing differentiable goes through: no float operand, or no float result.
const FLAT: &[&str] = &[
    "is_nan",
    "is_inf",
    "not",
    "bitwise_not",
    "equal",
    "less",
    "less_or_equal",
    "greater",
    "greater_or_equal",
    "and",
    "or",
    "xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "shl",
    "shr",
    "const",
    "dims",
    "read_dims",
    "iota",
    "arg_reduce",
    "non_zero",
    "gradient",
    "stop_grad",
    "bit_cast",
    "random",
    "tree_leaves",
    "string_concat",
    "string_split",
    "string_normalize",
    "regex_match",
    "string_rank",
    "image_decode",
];

/// Inside the function's domain, away from its kinks and from ties.
fn values(e: &Example) -> Vec<Tensor> {
    let f = if let Op::Map(f) = e.op { Some(f) } else { None };
    let mut n = 0u32;
    let tensors = e.tensors(3).expect("tensors");
    let moved = |(k, t): (usize, Tensor)| {
        if !t.dtype().is_float() {
            return t;
        }
        let mut each = |x: f64| {
            n += 1;
            // No two alike, none on a multiple of 1/256.
            let x = x + (f64::from(n) * 0.754_877_666).fract() / 300.0 + 1e-4;
            match (f, k) {
                (Some(ScalarFn::Sqrt | ScalarFn::Log), _) | (Some(ScalarFn::Pow), 0) => x.abs() + 0.1,
                (Some(ScalarFn::Asin | ScalarFn::Acos | ScalarFn::Atanh), _) => x / 5.0,
                (Some(ScalarFn::Acosh), _) => x.abs() + 1.1,
                _ => x,
            }
        };
        let moved: Vec<f64> = t.to_f64s().into_iter().map(&mut each).collect();
        Tensor::new(t.shape(), &moved)
    };
    tensors.into_iter().enumerate().map(moved).collect()
}

/// `sum r (3.7 op(x) + op(x) c)` over all float results, and its gradient by all float operands; also the values of c and r.
fn in_context(e: &Example, x: &[Tensor]) -> Option<(Graph, Graph, Vec<Tensor>, Vec<usize>)> {
    let plain = widened(&e.graph().expect("a graph"));
    let y = run(&plain, x, &Env::default()).expect("an evaluation");
    let floats: Vec<usize> = (0..y.len()).filter(|k| y[*k].dtype() == DType::F64).collect();
    let wrt: Vec<usize> = (0..e.inputs.len()).filter(|k| x[*k].dtype() == DType::F64).collect();
    if floats.is_empty() || wrt.is_empty() {
        return None;
    }
    let mut given = x.to_vec();
    let build = |with_gradient: bool, given: &mut Vec<Tensor>| {
        let b = Builder::new("context");
        let args: Vec<V> = plain.inputs.iter().map(|id| b.input(&plain.node(*id).name, plain.node(*id).types[0].clone())).collect();
        let results = b.inline(&plain, &args);
        let mut loss: Option<V> = None;
        for (i, k) in floats.iter().enumerate() {
            let v = results[*k];
            let coefficients = |name: &str, seed: u64, given: &mut Vec<Tensor>| {
                given.push(random_tensor(DType::F64, y[*k].shape(), &Values::Small, seed));
                b.input(format!("{name}{k}"), v.ty())
            };
            let (c, r) = (coefficients("c", 100 + i as u64, given), coefficients("r", 200 + i as u64, given));
            let z = (v * v.scalar_like(3.7) + v * c) * r;
            let sum = z.reduce(ReduceKind::Sum, &(0..z.ty().rank()).collect::<Vec<_>>(), false);
            loss = Some(loss.map_or(sum, |l| l + sum));
        }
        let loss = loss.expect("a float result");
        if with_gradient {
            let operands: Vec<V> = std::iter::once(loss).chain(wrt.iter().map(|k| args[*k])).collect();
            b.op_all(Gradient::default(), &operands, vec![]).iter().enumerate().for_each(|(i, d)| b.output(format!("d{i}"), *d));
        } else {
            b.output("loss", loss);
        }
        b.finish().expect("a context")
    };
    let gradient = build(true, &mut given);
    let loss = build(false, &mut vec![]);
    Some((loss, gradient, given, wrt))
}

/// `Ok(false)`: nothing to differentiate.
fn check(e: &Example, slip: Option<&Slip>) -> Result<bool, String> {
    let x = values(e);
    let Some((loss, gradient, given, wrt)) = in_context(e, &x) else { return Ok(false) };
    let gradient = differentiate_with(gradient, slip).map_err(|r| r.to_string())?;
    verify(&gradient).map_err(|r| format!("{r}\n{gradient}"))?;
    let d = run(&gradient, &given, &Env::default()).map_err(|e| format!("{e}\n{gradient}"))?;
    let value = |given: &[Tensor]| run(&loss, given, &Env::default()).map(|y| y[0].to_f64s()[0]).map_err(|e| e.to_string());
    for (k, d) in wrt.iter().zip(&d) {
        let elements = given[*k].to_f64s();
        if d.shape() != given[*k].shape() {
            return Err(format!("operand {k} is {:?}, its derivative {:?}", given[*k].shape(), d.shape()));
        }
        let d = d.to_f64s();
        for i in (0..elements.len()).step_by(elements.len().div_ceil(PROBES).max(1)) {
            let at = |h: f64| {
                let mut moved = elements.clone();
                moved[i] += h;
                let mut all = given.clone();
                all[*k] = Tensor::new(given[*k].shape(), &moved);
                value(&all)
            };
            // Fourth order: the step's own error is below the tolerance.
            let (far, near) = (at(2.0 * STEP)? - at(-2.0 * STEP)?, at(STEP)? - at(-STEP)?);
            let want = (8.0 * near - far) / (12.0 * STEP);
            let size = want.abs().max(1.0);
            let error = (d[i] - want).abs();
            if error.is_nan() || error > TOLERANCE * size.max(value(&given)?.abs() * 1e-3) {
                return Err(format!("operand {k}, element {i} of {:?}: derivative {}, differences give {want}", given[*k].shape(), d[i]));
            }
        }
    }
    Ok(true)
}

/// Whether the example is of plain numbers in f32 or f64: other floats are the same rules.
fn is_smooth(e: &Example) -> bool {
    let floats = e.inputs.iter().all(|t| !t.dtype.is_float() || matches!(t.dtype, DType::F32 | DType::F64));
    let casts = !matches!(&e.op, Op::StopGrad(_) | Op::BitCast(_)) && !matches!(&e.op, Op::Cast(c) if !matches!(c.to, DType::F32 | DType::F64));
    floats && casts && e.inputs.iter().any(|t| t.dtype.is_float()) && !e.values.contains(&Values::Edges)
}

/// A packed or blocked operation is what passes make, after differentiation.
fn is_laid(e: &Example) -> bool {
    use nnc_ir::ops::contract::Layout;
    match &e.op {
        Op::MatMul(m) => m.is_packed(),
        Op::Conv(c) => c.layout != Layout::Plain,
        Op::Pool(p) => p.block > 0,
        _ => false,
    }
}

/// Examples whose gradients differences tell.
fn smooth() -> Vec<Example> {
    let calm = |mut e: Example| {
        if let Op::Cast(_) = e.op {
            e.values.fill(Values::Small);
        }
        e
    };
    examples().into_iter().map(calm).filter(|e| is_smooth(e) && !is_laid(e)).collect()
}

/// Every rule broken in three ways, for every operand that it has a cotangent for: the check above finds each.
#[test]
fn a_broken_rule_is_found() {
    let examples = smooth();
    let mut tried = 0;
    let mut missed = vec![];
    for op in Op::names() {
        let of_op: Vec<&Example> = examples.iter().filter(|e| e.op.name() == op).collect();
        for operand in 0..of_op.iter().map(|e| e.inputs.len()).max().unwrap_or(0) {
            // Where leaving the cotangent out changes nothing, it is zero: there is nothing to break.
            let slip = |mistake| Slip { op, operand, mistake };
            let found = |slip: &Slip| of_op.iter().any(|e| check(e, Some(slip)).is_err());
            if !changes(&of_op, &slip(Mistake::Absent)) {
                continue;
            }
            for mistake in [Mistake::Sign, Mistake::Absent, Mistake::Unseeded] {
                tried += 1;
                if !found(&slip(mistake)) {
                    missed.push(slip(mistake));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{} of {tried} broken rules are not found: {missed:?}", missed.len());
    assert!(tried > 200, "only {tried} rules were broken");
}

/// Whether the mistake changes a gradient of any of the examples.
fn changes(examples: &[&Example], slip: &Slip) -> bool {
    let gradients = |e: &Example, slip: Option<&Slip>| {
        let (_, gradient, given, _) = in_context(e, &values(e))?;
        let gradient = differentiate_with(gradient, slip).ok()?;
        run(&gradient, &given, &Env::default()).ok()
    };
    examples.iter().any(|e| match (gradients(e, None), gradients(e, Some(slip))) {
        (Some(right), Some(wrong)) => right.iter().zip(&wrong).any(|(a, b)| a.to_f64s() != b.to_f64s()),
        _ => false,
    })
}

#[test]
fn gradients_agree_with_differences() {
    let mut seen = BTreeSet::new();
    let mut wrong = vec![];
    for e in smooth() {
        match check(&e, None) {
            Ok(true) => {
                seen.insert(e.op.name());
            }
            Ok(false) => {}
            Err(m) => wrong.push(format!("{}: {m}", e.name)),
        }
    }
    assert!(wrong.is_empty(), "{} examples:\n{}", wrong.len(), wrong.join("\n"));
    let missing: Vec<&str> = Op::names().into_iter().filter(|n| !seen.contains(n) && !FLAT.contains(n)).collect();
    assert!(missing.is_empty(), "operations whose gradient no example tests: {missing:?}");
}

/// A graph over one input `x: f64[3]`.
fn over_x(f: impl for<'g> Fn(V<'g>) -> Vec<V<'g>>) -> Graph {
    let b = Builder::new("f");
    let x = b.input("x", Type::of(DType::F64, &[3]));
    f(x).iter().enumerate().for_each(|(i, y)| b.output(format!("y{i}"), *y));
    b.finish().expect("a graph")
}

fn at_x(graph: Graph) -> Vec<Vec<f64>> {
    let graph = differentiate(graph).expect("a gradient");
    verify(&graph).expect("a sound graph");
    run(&graph, &[Tensor::new(&[3], &[1.0, -2.0, 0.5])], &Env::default()).expect("values").iter().map(Tensor::to_f64s).collect()
}

#[test]
fn nothing_flows_through_stop_grad() {
    let y = at_x(over_x(|x| {
        let held = x.builder().op(nnc_ir::ops::gradient::StopGrad {}, &[x]);
        vec![held, x.builder().op(Gradient::default(), &[x * held, x])]
    }));
    assert_eq!(y, [[1.0, -2.0, 0.5], [1.0, -2.0, 0.5]]);
}

#[test]
fn what_the_result_does_not_depend_on_has_a_gradient_of_zero() {
    let y = at_x(over_x(|x| {
        let other = x * x;
        vec![x.builder().op(Gradient::default(), &[x.map(ScalarFn::Floor), x]), x.builder().op(Gradient::default(), &[x, other])]
    }));
    assert_eq!(y, [[0.0; 3], [0.0; 3]]);
}

#[test]
fn gradients_have_gradients() {
    // x^4: 4 x^3, 12 x^2, and by a value inside: d(y^2)/dy = 2 y.
    let y = at_x(over_x(|x| {
        let (b, y) = (x.builder(), x * x);
        let first = b.op(Gradient::default(), &[y * y, x]);
        vec![first, b.op(Gradient::default(), &[first, x]), b.op(Gradient::default(), &[y * y, y])]
    }));
    assert_eq!(y, [[4.0, -32.0, 0.5], [12.0, 48.0, 3.0], [2.0, 8.0, 0.5]]);
}

#[test]
fn an_operation_without_a_gradient_is_named() {
    use nnc_ir::ops::reduce::Cumulate;
    let graph = over_x(|x| {
        let b = x.builder();
        let y = b.op(Cumulate { kind: ReduceKind::Max, axis: 0, exclusive: false, reverse: false }, &[x]).named("peak");
        vec![b.op(Gradient::default(), &[y, x])]
    });
    let report = differentiate(graph).expect_err("no gradient").to_string();
    assert!(report.contains("E0201") && report.contains("differentiating cumulate `peak`"), "{report}");
}

#[test]
fn a_deep_chain_takes_no_stack() {
    let graph = over_x(|x| {
        let y = (0..20_000).fold(x, |v, _| v.tanh());
        vec![x.builder().op(Gradient::default(), &[y, x])]
    });
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || differentiate(graph).expect("a gradient").len());
    assert!(thread.expect("a thread").join().expect("no overflow") > 60_000);
}
