//! LSTM, GRU and RNN: the products with the inputs for all steps at once, then a scan over the steps.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::attrs::Real;
use nnc_ir::ops::composite::activation::Act;
use nnc_ir::ops::contract::MatMul;
use nnc_ir::ops::control::Scan;
use nnc_ir::ops::source::Iota;
use nnc_ir::{DType, Dim, Error, Result, ScalarFn, Tensor, Type, V};

pub const ROWS: &[Row] = &[
    op("GRU", 1, (3, 6), |c| recurrent(c, Cell::Gru { linear_before_reset: c.flag("linear_before_reset", false)? })),
    op("LSTM", 1, (3, 8), |c| recurrent(c, Cell::Lstm { input_forget: c.flag("input_forget", false)? })),
    op("RNN", 1, (3, 6), |c| recurrent(c, Cell::Rnn)),
];

#[derive(Clone, Copy)]
enum Cell {
    /// Gates in the order input, output, forget, cell.
    Lstm {
        input_forget: bool,
    },
    /// Gates in the order update, reset, hidden.
    Gru {
        linear_before_reset: bool,
    },
    Rnn,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
            Cell::Rnn => 1,
        }
    }

    fn activations(self) -> &'static [&'static str] {
        match self {
            Cell::Lstm { .. } => &["Sigmoid", "Tanh", "Tanh"],
            Cell::Gru { .. } => &["Sigmoid", "Tanh"],
            Cell::Rnn => &["Tanh"],
        }
    }

    /// States: the hidden one, and the cell of an LSTM.
    fn states(self) -> usize {
        if matches!(self, Cell::Lstm { .. }) { 2 } else { 1 }
    }
}

/// The function of a gate.
#[derive(Clone, Copy)]
enum Gate {
    Act(Act),
    /// `alpha * x + beta`
    Affine {
        alpha: Real,
        beta: Real,
    },
    /// `alpha * tanh(beta * x)`
    ScaledTanh {
        alpha: Real,
        beta: Real,
    },
}

impl Gate {
    fn expand(self, x: V) -> V {
        let k = |v: Real| x.scalar_like(v.0);
        match self {
            Gate::Act(act) => act.expand(x),
            Gate::Affine { alpha, beta } => x * k(alpha) + k(beta),
            Gate::ScaledTanh { alpha, beta } => (x * k(beta)).tanh() * k(alpha),
        }
    }
}

/// The weights of one direction.
struct Weights<'g> {
    /// Of the recurrent products, `[gates * hidden, hidden]`.
    r: V<'g>,
    /// Bias of a GRU's hidden gate that the reset gate scales too, `[hidden]`.
    hidden_bias: Option<V<'g>>,
    /// Of an LSTM's cell into its gates, `[3 * hidden]`.
    peepholes: Option<V<'g>>,
}

/// What all directions share, inputs in the layout `[time, batch, ..]`.
struct Layer<'g> {
    cell: Cell,
    x: V<'g>,
    hidden: usize,
    batch: Dim,
    clip: Option<f64>,
    lens: Option<V<'g>>,
}

fn recurrent<'g>(c: &Call<'g>, cell: Cell) -> Result<Vec<V<'g>>> {
    c.ignore(&["output_sequence"]);
    let (x, mut w, mut r) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let batch_first = c.flag("layout", false)?;
    if x.ty().rank() != 3 || w.ty().rank() != 3 || r.ty().rank() != 3 {
        return Err(Error::shape(format!("expected three axes, found X {}, W {}, R {}", x.ty(), w.ty(), r.ty())));
    }
    let declared = c.opt_int("hidden_size")?;
    let hidden = r.ty().shape[2].as_const().or(declared).and_then(|h| usize::try_from(h).ok());
    let hidden = hidden.ok_or_else(|| Error::unsupported("the hidden size must be known").note("attribute `hidden_size` can tell it"))?;
    if declared.is_some_and(|h| h != hidden as i64) {
        return Err(Error::shape(format!("hidden_size differs from R {}", r.ty())));
    }
    let directions: &[bool] = match c.word("direction", &["forward", "reverse", "bidirectional"])? {
        "forward" => &[false],
        "reverse" => &[true],
        _ => &[false, true],
    };
    let gates = cell.gates();
    let rows = Dim::from(gates * hidden);
    let count = Dim::from(directions.len());
    // Lengths that the model leaves open are what they must be; the run compares.
    let settled = |v: V<'g>, last: Dim| {
        let (have, want) = (v.ty().shape, [count.clone(), rows.clone(), last]);
        let open = have.iter().zip(&want).any(|(a, b)| a != b && a.as_const().is_none());
        let shape = have.iter().zip(want).map(|(a, b)| if a.as_const().is_none() { b } else { a.clone() });
        if open { v.reshape(shape.collect()) } else { v }
    };
    (w, r) = (settled(w, w.ty().shape[2].clone()), settled(r, Dim::from(hidden)));
    let want = [(w, vec![count.clone(), rows.clone(), x.ty().shape[2].clone()]), (r, vec![count, rows, Dim::from(hidden)])];
    if let Some((v, _)) = want.iter().find(|(v, shape)| v.ty().shape[..2] != shape[..2]) {
        return Err(Error::shape(format!("weights {} do not fit {} directions, {gates} gates and {hidden} units", v.ty(), directions.len())));
    }
    let acts = activations(c, cell, directions.len())?;
    // States are [directions, batch, hidden]; with layout=1 the batch comes first everywhere.
    let swap = |v: V<'g>| if batch_first { v.transpose(&[1, 0, 2]) } else { v };
    let x = swap(x);
    let clip = c.opt_float("clip")?.filter(|t| *t > 0.0);
    let layer = Layer { cell, x, hidden, batch: x.ty().shape[1].clone(), clip, lens: c.opt(4) };
    let (h0, c0) = (c.opt(5).map(swap), c.opt(6).map(swap));
    let mut per_direction = vec![];
    for (d, reverse) in directions.iter().enumerate() {
        let of = |v: V<'g>| v.slice_axis(0, Dim::from(d), Dim::Const(1)).reshape(v.ty().shape.get(1..).unwrap_or_default().to_vec());
        let zero = || c.b.constant(Tensor::scalar_of(x.ty().dtype, 0.0)).expand(vec![layer.batch.clone(), Dim::from(hidden)]);
        let states = [h0, c0].into_iter().take(cell.states()).map(|s| s.map_or_else(zero, of)).collect();
        let peepholes = c.opt(7).filter(|_| matches!(cell, Cell::Lstm { .. })).map(of);
        let weights = Weights { r: of(r), hidden_bias: None, peepholes };
        per_direction.push(layer.direction(*reverse, of(w), c.opt(3).map(of), weights, states, &acts[d])?);
    }
    // Each direction gives Y [time, batch, hidden] and final states [batch, hidden].
    let at = |v: V<'g>, axis: usize| {
        let mut shape = v.ty().shape;
        shape.insert(axis.min(shape.len()), Dim::Const(1));
        v.reshape(shape)
    };
    let joined = |i: usize, axis: usize| V::concat(&per_direction.iter().map(|r| at(r[i], axis)).collect::<Vec<_>>(), axis);
    let states = cell.states();
    let y = joined(states, 1);
    let y = if batch_first { y.transpose(&[2, 0, 1, 3]) } else { y };
    Ok(std::iter::once(y).chain((0..states).map(|s| swap(joined(s, 0)))).collect())
}

impl<'g> Layer<'g> {
    /// One direction from the weights `w` of the inputs, the others, and the initial states; gives final states, then all hidden ones.
    fn direction(
        &self,
        reverse: bool,
        w: V<'g>,
        bias: Option<V<'g>>,
        mut weights: Weights<'g>,
        states: Vec<V<'g>>,
        acts: &[Gate],
    ) -> Result<Vec<V<'g>>> {
        let b = self.x.builder();
        let (n, h) = (self.cell.gates(), self.hidden);
        let part = |v: V<'g>, from: usize, count: usize| v.slice(vec![Dim::from(from * h)], vec![Dim::from(count * h)]);
        let mut products = transposed_product(self.x, w);
        // The recurrent bias joins the input's, but for a GRU whose reset gate scales the hidden part of it.
        if let Some(bias) = bias {
            let (wb, rb) = (part(bias, 0, n), part(bias, n, n));
            products = match self.cell {
                Cell::Gru { linear_before_reset: true } => {
                    weights.hidden_bias = Some(part(rb, 2, 1));
                    let zero = b.constant(Tensor::scalar_of(rb.ty().dtype, 0.0)).expand(vec![Dim::from(h)]);
                    products + (wb + V::concat(&[part(rb, 0, 2), zero], 0))
                }
                _ => products + (wb + rb),
            };
        }
        let steps = self.x.ty().shape[0].clone();
        let mut scanned = vec![products];
        if self.lens.is_some() {
            scanned.push(b.op(Iota { shape: vec![steps], axis: 0 }, &[]));
        }
        let captures: Vec<V<'g>> = [Some(weights.r), weights.hidden_bias, weights.peepholes, self.lens].into_iter().flatten().collect();

        let region = b.nested("step");
        let state_types: Vec<Type> = states.iter().map(|s| s.ty()).collect();
        let old: Vec<V> = state_types.iter().map(|t| region.input("state", t.clone())).collect();
        let slice = |v: &V| v.ty().with_shape(v.ty().shape.get(1..).unwrap_or_default().to_vec());
        let slices: Vec<V> = scanned.iter().map(|v| region.input("x", slice(v))).collect();
        let r = region.input("r", weights.r.ty());
        let inner = |v: Option<V<'g>>| v.map(|v| region.input("w", v.ty()));
        let own = Weights { r, hidden_bias: inner(weights.hidden_bias), peepholes: inner(weights.peepholes) };
        let lens = inner(self.lens);
        let mut new = self.step(slices[0], &old, &own, acts);
        let mut emitted = new[0];
        if let (Some(lens), Some(t)) = (lens, slices.get(1)) {
            // Beyond its length a sequence keeps its states and gives zeros.
            let alive = t.less(lens.cast(DType::I64)).reshape(vec![self.batch.clone(), Dim::Const(1)]);
            new.iter_mut().zip(&old).for_each(|(n, o)| *n = alive.select(*n, *o));
            emitted = alive.select(emitted, emitted.scalar_like(0.0));
        }
        new.iter().chain([&emitted]).for_each(|v| region.output("", *v));
        let body = region.finish().map_err(|mut e| e.0.remove(0))?;
        let operands: Vec<V<'g>> = states.iter().copied().chain(scanned.iter().copied()).chain(captures).collect();
        let y = b.op_all(Scan { states: states.len(), scanned: scanned.len(), reverse }, &operands, vec![body]);
        Ok(y[..=states.len()].to_vec())
    }

    /// The next states from the input's products `[batch, gates * hidden]`.
    fn step<'r>(&self, x: V<'r>, old: &[V<'r>], weights: &Weights<'r>, acts: &[Gate]) -> Vec<V<'r>> {
        let (h, r) = (self.hidden, weights.r);
        let gate = |v: V<'r>, from: usize, count: usize| v.slice_axis(v.ty().rank() - 1, Dim::from(from * h), Dim::from(count * h));
        let rows = |from: usize, count: usize| r.slice_axis(0, Dim::from(from * h), Dim::from(count * h));
        let clip = |v: V<'r>| self.clip.map_or(v, |t| Act::Clip { lo: Real(-t), hi: Real(t) }.expand(v));
        let act = |i: usize, v: V<'r>| acts[i].expand(clip(v));
        let hidden = old[0];
        let one = x.scalar_like(1.0);
        match self.cell {
            Cell::Rnn => vec![act(0, x + transposed_product(hidden, r))],
            Cell::Gru { linear_before_reset } => {
                let zr = gate(x, 0, 2) + transposed_product(hidden, rows(0, 2));
                let (z, reset) = (act(0, gate(zr, 0, 1)), act(0, gate(zr, 1, 1)));
                let inner = if linear_before_reset {
                    let linear = transposed_product(hidden, rows(2, 1));
                    reset * weights.hidden_bias.map_or(linear, |b| linear + b)
                } else {
                    transposed_product(reset * hidden, rows(2, 1))
                };
                let candidate = act(1, gate(x, 2, 1) + inner);
                vec![(one - z) * candidate + z * hidden]
            }
            Cell::Lstm { input_forget } => {
                let sums = x + transposed_product(hidden, r);
                let peep = |v: V<'r>, k: usize, state: V<'r>| weights.peepholes.map_or(v, |p| v + gate(p, k, 1) * state);
                let cell = old[1];
                let input = act(0, peep(gate(sums, 0, 1), 0, cell));
                let forget = if input_forget { one - input } else { act(0, peep(gate(sums, 2, 1), 2, cell)) };
                let candidate = act(1, gate(sums, 3, 1));
                let cell = forget * cell + input * candidate;
                let output = act(0, peep(gate(sums, 1, 1), 1, cell));
                // The clip bounds what enters an activation; the cell enters one here, but is no sum of a gate.
                vec![output * acts[2].expand(cell), cell]
            }
        }
    }
}

/// `x * w'`.
fn transposed_product<'g>(x: V<'g>, w: V<'g>) -> V<'g> {
    x.builder().op(MatMul { transposed: true, packed: Dim::Const(0), post: vec![] }, &[x, w])
}

/// The activations of each direction. Parameters are listed for those functions that have them, in order.
fn activations(c: &Call, cell: Cell, directions: usize) -> Result<Vec<Vec<Gate>>> {
    let defaults = cell.activations();
    let names = c.strs("activations")?.unwrap_or_else(|| defaults.repeat(directions).iter().map(|s| s.to_string()).collect());
    if names.len() != defaults.len() * directions {
        return Err(Error::attribute(format!("{} activations are needed, found {names:?}", defaults.len() * directions)));
    }
    let mut alpha = c.floats("activation_alpha")?.unwrap_or_default().into_iter();
    let mut beta = c.floats("activation_beta")?.unwrap_or_default().into_iter();
    let mut acts = vec![];
    for name in &names {
        let mut a = |default: f64| Real(alpha.next().unwrap_or(default));
        let mut b = |default: f64| Real(beta.next().unwrap_or(default));
        acts.push(Gate::Act(match name.to_lowercase().as_str() {
            "affine" => {
                acts.push(Gate::Affine { alpha: a(1.0), beta: b(0.0) });
                continue;
            }
            "scaledtanh" => {
                acts.push(Gate::ScaledTanh { alpha: a(1.0), beta: b(1.0) });
                continue;
            }
            "sigmoid" => Act::Fn(ScalarFn::Sigmoid),
            "tanh" => Act::Fn(ScalarFn::Tanh),
            "relu" => Act::Fn(ScalarFn::Relu),
            "softsign" => Act::Softsign {},
            "softplus" => Act::Softplus {},
            "leakyrelu" => Act::LeakyRelu { alpha: a(0.01) },
            "thresholdedrelu" => Act::ThresholdedRelu { alpha: a(1.0) },
            "elu" => Act::Elu { alpha: a(1.0) },
            "hardsigmoid" => Act::HardSigmoid { alpha: a(0.2), beta: b(0.5) },
            _ => return Err(Error::unsupported(format!("activation `{name}` is not supported"))),
        }));
    }
    Ok(acts.chunks(defaults.len()).map(<[Gate]>::to_vec).collect())
}
