//! Random graphs over the table of ONNX operators: the same for the same seed.
//!
//! A graph is inputs, then steps. A step takes an example of an operator, an element type, and operands from what is there: as they are where the
//! operator takes them so, else brought to the example's shapes; what nothing fits is a new input. Between steps come pairs that cancel
//! (transpose and back, split and concat, pad and slice), which rewrites like to look through.
//!
//! Engines round differently, and a comparison or a `floor` makes much of little. So there are graphs *with noise*: every number that is
//! computed in floats is off by a few units in its last place. What noise moves, engines may move.

use nnc_frontend::onnx::call::Item;
use nnc_frontend::onnx::examples::{Example, Port};
use nnc_ir::examples::tolerance;
use nnc_ir::ops::Class;
use nnc_ir::ops::source::Iota;
use nnc_ir::{Builder, DType, Dim, Graph, NodeId, Op, Report, ScalarFn, Tensor, Type, V, Value};

/// Random numbers (splitmix64, Steele et al. 2014).
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n.max(1) as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Types that steps are tried with; the frequent ones several times.
const TYPES: [DType; 18] = {
    use DType::*;
    [F32, F32, F32, F32, F32, F32, F64, F16, BF16, I32, I64, I8, U8, Bool, I16, U32, F8E4M3FN, U64]
};

/// Larger tensors are left alone.
const MAX_ELEMS: i64 = 4096;

/// A graph while it grows.
struct Growth<'g, 'e> {
    b: &'g Builder,
    examples: &'e [Example],
    dice: Dice,
    values: Vec<V<'g>>,
    inputs: usize,
}

/// The graph of a seed after so many steps.
pub fn graph(examples: &[Example], seed: u64, steps: usize) -> Result<Graph, Report> {
    let b = Builder::new(format!("random {seed}"));
    let mut g = Growth { b: &b, examples, dice: Dice::new(seed), values: vec![], inputs: 0 };
    for _ in 0..2 {
        let dtype = if g.dice.chance(60) { DType::F32 } else { *g.dice.of(&TYPES) };
        let rank = g.dice.below(4) + 1;
        let mut shape: Vec<Dim> = (0..rank).map(|_| Dim::from(g.dice.below(5) + 1)).collect();
        if g.dice.chance(25) {
            shape[0] = Dim::sym("N");
        }
        g.input(dtype, shape);
    }
    let mut done = 0;
    // Examples that take none of the types at hand are passed over.
    for _ in 0..steps * 8 {
        if done == steps {
            break;
        }
        done += usize::from(g.step());
    }
    // What nobody reads is a result, and now and then what somebody does.
    let (values, mut dice) = (g.values, g.dice);
    for (i, v) in values.iter().enumerate() {
        if b.with_graph(|g| g.uses(v.value()).is_empty()) || dice.chance(10) {
            b.output(format!("y{i}"), *v);
        }
    }
    b.finish()
}

impl<'g> Growth<'g, '_> {
    fn input(&mut self, dtype: DType, shape: Vec<Dim>) -> V<'g> {
        let v = self.b.input(format!("x{}", self.inputs), Type::new(dtype, shape));
        self.inputs += 1;
        self.values.push(v);
        v
    }

    /// One more operator; `false` where the chosen one does not fit.
    fn step(&mut self) -> bool {
        let example = self.examples[self.dice.below(self.examples.len())].clone();
        let open = if self.dice.chance(70) { self.dice.of(&self.values.clone()).ty().dtype } else { *self.dice.of(&TYPES) };
        let Ok(trial) = example.graph(open) else { return false };
        if trial.outputs.iter().any(|o| trial.ty(o.value).elems().as_const().is_some_and(|n| n > MAX_ELEMS)) {
            return false;
        }
        // As they are: the same operator, whatever the shapes, tried apart so that what fails leaves nothing behind.
        let operands = self.dice.chance(60).then(|| self.as_they_are(&example, open)).flatten();
        let operands = operands.unwrap_or_else(|| example.inputs.iter().map(|item| self.brought(item, open)).collect());
        let Ok(results) = example.call(self.b, operands, open) else { return false };
        for item in results.into_iter().take(example.outputs) {
            self.values.extend(item.tensors().iter().filter(|v| !v.is_poison()));
        }
        true
    }

    /// Operands of any shape that the operator takes.
    fn as_they_are(&mut self, example: &Example, open: DType) -> Option<Vec<Item<V<'g>>>> {
        let mut chosen = vec![];
        for item in &example.inputs {
            chosen.push(match item {
                Item::Tensor(Port { dtype, values: None, .. }) => {
                    let dtype = dtype.unwrap_or(open);
                    let fit: Vec<V> = self.values.iter().copied().filter(|v| v.ty().dtype == dtype).collect();
                    if fit.is_empty() {
                        return None;
                    }
                    Item::Tensor(*self.dice.of(&fit))
                }
                Item::Tensor(p) => Item::Tensor(self.b.constant(p.tensor(open).ok()??)),
                Item::List(_) | Item::Map(_) => return None,
                Item::Absent => Item::Absent,
            });
        }
        let trial = Builder::new("trial");
        let inputs = chosen.iter().enumerate().map(|(i, item)| {
            item.map(|v| match v.constant() {
                Some(t) => trial.constant(t),
                None => trial.input(format!("x{i}"), v.ty()),
            })
        });
        let results = example.call(&trial, inputs.collect(), open).ok()?;
        let small = |v: &V| v.ty().elems().substitute(&|_| Some(Dim::Const(4))).as_const().is_some_and(|n| n <= MAX_ELEMS);
        let fits = results.iter().flat_map(Item::tensors).all(|v| !v.is_poison() && small(v));
        (fits && !trial.has_errors()).then_some(chosen)
    }

    /// An operand of the example's shape.
    fn brought(&mut self, item: &Item<Port>, open: DType) -> Item<V<'g>> {
        item.map(|p| {
            if let Ok(Some(t)) = p.tensor(open) {
                return self.b.constant(t);
            }
            let dtype = p.dtype.unwrap_or(open);
            let shape: Vec<Dim> = p.shape.iter().map(|n| Dim::from(*n)).collect();
            let fit: Vec<V> = self.values.iter().copied().filter(|v| v.ty().dtype == dtype && v.ty().const_shape().is_some()).collect();
            if fit.is_empty() || self.dice.chance(20) {
                return self.input(dtype, shape);
            }
            let v = *self.dice.of(&fit);
            let v = self.disguised(v);
            let same = v.ty().shape == shape;
            if same { v } else { self.moulded(v, shape) }
        })
    }

    /// The elements in another shape: the first ones, or all and some ones more.
    fn moulded(&mut self, v: V<'g>, shape: Vec<Dim>) -> V<'g> {
        let (have, want) = (v.ty().elems(), Dim::product(&shape));
        let flat = v.reshape(vec![have.clone()]);
        let (Some(have), Some(want)) = (have.as_const(), want.as_const()) else { return v };
        let fitted = if have >= want {
            flat.slice_axis(0, Dim::Const(0), Dim::Const(want))
        } else {
            V::concat(&[flat, flat.scalar_like(1.0).expand(vec![Dim::Const(want - have)])], 0)
        };
        fitted.reshape(shape)
    }

    /// The same value by way of operations that cancel.
    fn disguised(&mut self, v: V<'g>) -> V<'g> {
        let ty = v.ty();
        let rank = ty.rank();
        let axis = self.dice.below(rank.max(1));
        match self.dice.below(8) {
            0 if rank > 1 => {
                let perm: Vec<usize> = (0..rank).map(|i| (i + 1 + axis) % rank).collect();
                let mut back = vec![0; rank];
                perm.iter().enumerate().for_each(|(i, p)| back[*p] = i);
                v.transpose(&perm).transpose(&back)
            }
            1 if rank > 0 && ty.shape[axis].as_const().is_some_and(|n| n > 1) => {
                let n = ty.shape[axis].as_const().unwrap_or(2);
                let cut = self.dice.below(n as usize - 1) as i64 + 1;
                let parts = [v.slice_axis(axis, Dim::Const(0), Dim::Const(cut)), v.slice_axis(axis, Dim::Const(cut), Dim::Const(n - cut))];
                V::concat(&parts, axis)
            }
            2 if rank > 0 => {
                let around = vec![Dim::Const(1); rank];
                v.pad_zero(around.clone(), around.clone()).slice(around, ty.shape.clone())
            }
            3 => v.reshape(vec![ty.elems()]).reshape(ty.shape.clone()),
            4 if ty.dtype == DType::F32 => v.cast(DType::F64).cast(DType::F32),
            5 if ty.dtype.is_float() => -(-v),
            _ => v,
        }
    }
}

/// The graph with noise on what it computes, bodies of control flow included.
pub fn noisy(mut graph: Graph, dice: &mut Dice) -> Result<Graph, Report> {
    let computed: Vec<NodeId> = graph.order().into_iter().filter(|id| is_computed(&graph, *id)).collect();
    for id in graph.order() {
        let regions = std::mem::take(&mut graph.node_mut(id).regions);
        graph.node_mut(id).regions = regions.into_iter().map(|r| noisy(r, dice)).collect::<Result<_, _>>()?;
    }
    let b = Builder::from_graph(graph);
    let mut replaced = vec![];
    for id in computed {
        for port in 0..b.with_graph(|g| g.node(id).types.len() as u32) {
            let v = b.v(Value { node: id, port });
            let dtype = v.ty().dtype;
            if dtype.is_float() {
                let wide = v.cast(DType::F64);
                let share = wide.scalar_like((dice.below(2001) as f64 - 1000.0) / 1000.0 * tolerance(dtype));
                let share = share * ripple(v, dice).unwrap_or_else(|| wide.scalar_like(1.0));
                let product = wide * (share + wide.scalar_like(1.0));
                let reader = if wide.value() == v.value() { product.node() } else { wide.node() };
                replaced.push((v.value(), reader, product.cast(dtype).value()));
            }
        }
    }
    let mut graph = b.finish()?;
    for (v, reader, off) in replaced.into_iter().filter(|(v, _, off)| v != off) {
        graph.replace(v, off);
        graph.set_operand(reader, 0, v);
    }
    Ok(graph)
}

/// Something between -1 and 1 for each element of a tensor, half of the time: elements that are equal need not be off by the same.
fn ripple<'g>(v: V<'g>, dice: &mut Dice) -> Option<V<'g>> {
    let shape = v.ty().shape;
    if dice.chance(50) || v.ty().const_shape().is_none() {
        return None;
    }
    let axis = |(axis, d): (usize, &Dim)| {
        let mut along = vec![Dim::Const(1); shape.len()];
        along[axis] = d.clone();
        let steps = v.builder().op(Iota { shape: along, axis }, &[]).cast(DType::F64);
        steps * steps.scalar_like(1.0 + dice.below(1000) as f64 / 250.0)
    };
    shape.iter().enumerate().map(axis).reduce(|a, b| a + b).map(|k| k.map(ScalarFn::Sin))
}

/// Whether the node's results are rounded: those that are moved are not.
fn is_computed(graph: &Graph, id: NodeId) -> bool {
    match graph.node(id).op.class() {
        Some(class) => !matches!(class, Class::Move | Class::Index | Class::Sort | Class::Source | Class::Control),
        None => !matches!(graph.node(id).op, Op::Input),
    }
}

/// Whether a graph has convolutions: NaN among their weights is multiplied with the padding or not, as the kernel does it.
pub fn convolves(graph: &Graph) -> bool {
    graph.ids().any(|id| matches!(graph.node(id).op, Op::Conv(_) | Op::ConvTranspose(_)))
}

/// What engines may differ by, element by element, from what noise did.
pub struct Allowed(Vec<Vec<f64>>);

impl Allowed {
    /// `None` where noise changes shapes. Any number may stand for NaN where `nan` is set.
    pub fn new(want: &[Tensor], noisy: &[Vec<Tensor>], nan: bool) -> Option<Allowed> {
        let mut out = vec![];
        for (i, t) in want.iter().enumerate() {
            if noisy.iter().any(|n| n[i].ty() != t.ty()) {
                return None;
            }
            let values = t.to_f64s();
            let largest = values.iter().filter(|x| x.is_finite()).fold(0.0, |m: f64, x| m.max(x.abs()));
            let moved: Vec<Vec<f64>> = noisy.iter().map(|n| n[i].to_f64s()).collect();
            let base = 8.0 * tolerance(t.dtype());
            let one = |(k, x): (usize, &f64)| {
                let most = moved.iter().map(|m| if same(m[k], *x) { 0.0 } else { (m[k] - x).abs() });
                let most = most.fold(0.0, |a: f64, d| if d.is_nan() { f64::INFINITY } else { a.max(d) });
                if nan && x.is_nan() { f64::INFINITY } else { 32.0 * most + base * largest.min(100.0).max(x.abs()) }
            };
            out.push(values.iter().enumerate().map(one).collect());
        }
        Some(Allowed(out))
    }

    /// The first result that differs by more.
    pub fn check(&self, got: &[Tensor], want: &[Tensor]) -> Result<(), String> {
        for (i, ((g, w), allowed)) in got.iter().zip(want).zip(&self.0).enumerate() {
            if g.ty() != w.ty() {
                return Err(format!("result {i} is {}, expected {}", g.ty(), w.ty()));
            }
            let (a, b) = (g.to_f64s(), w.to_f64s());
            let far = |k: &usize| !same(a[*k], b[*k]) && allowed[*k].is_finite() && ((a[*k] - b[*k]).is_nan() || (a[*k] - b[*k]).abs() > allowed[*k]);
            if let Some(k) = (0..b.len()).find(far) {
                return Err(format!("result {i} ({}): element {k} is {}, expected {} +- {:.1e}", w.ty(), a[k], b[k], allowed[k]));
            }
        }
        Ok(())
    }
}

fn same(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}
