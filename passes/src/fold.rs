//! Constant folding by the reference interpreter, and the removal of operations that do nothing.
//!
//! Folding runs twice. Early ([`run`]) it computes what is small: shape arithmetic, the vectors of a batch normalisation. What is
//! large waits as an expression until layouts are chosen; then [`weights`] makes each weight a constant in its final form, most of them
//! as a [`recipe`] that the backend follows when it writes the weight. Nothing is folded that would inflate the model.

use crate::pass::Context;
use crate::rebuild::{self, Rebuild};
use crate::{constant, cost, layout, recipe};
use nnc_ir::eval::Env;
use nnc_ir::known;
use nnc_ir::ops::Class;
use nnc_ir::ops::source::Const;
use nnc_ir::{Dim, Error, Graph, Node, NodeId, Op, Report, Result, Tensor, Type, Value, builder};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Results up to this are folded early, and may always be written out (bytes).
pub const SMALL_BYTES: usize = 64 << 10;

/// What is computed may always come to this many bytes, though the model holds less: constants of one repeated element are written out
/// on the way, and each of a chain of results can be twice its operand.
const EXPANDED_BYTES: usize = 64 << 20;

/// Contractions of constants above this many multiply-adds are left to the machine.
const MAX_WORK: f64 = 1e7;

/// Folds small constants and removes operations that do nothing.
pub fn run(graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    Ok(simplify(fold(graph, |_, _, out| out <= SMALL_BYTES, false)))
}

/// Computes every constant expression that does not inflate the model.
pub fn weights(graph: Graph, _: &mut Context) -> Result<Graph, Report> {
    // The layout pass has weighed what filters gain by growing, and how many groups share blocks that zeros fill up.
    let fits = |op: &Op, inputs: usize, out: usize| match op {
        Op::WinogradFilter(_) => true,
        Op::Pad(_) => out <= SMALL_BYTES.max(inputs.saturating_mul(1 + layout::MERGED_GROUPS)),
        _ => out <= SMALL_BYTES.max(inputs.saturating_mul(2)),
    };
    Ok(fold(graph, fits, true))
}

/// Whether each node's results follow from constants alone, whatever their size.
pub fn constants(graph: &Graph) -> Vec<bool> {
    stored(graph, |_, _, _| true).iter().map(Option::is_some).collect()
}

/// Whether a result is worth storing, by its operation, the bytes of the operands and its own.
type Fits = fn(&Op, usize, usize) -> bool;

/// Bytes that each node's results would take as constants; `None` where they are not constant or not worth it. `fits` says so,
/// given the operation and the bytes of the operands and of the result.
fn stored(graph: &Graph, fits: Fits) -> Vec<Option<usize>> {
    let mut out: Vec<Option<usize>> = vec![None; graph.id_bound()];
    let held = graph.ids().filter_map(|id| if let Op::Const(c) = &graph.node(id).op { Some(bytes_held(&c.0)) } else { None });
    let limit = EXPANDED_BYTES.max(held.fold(0usize, usize::saturating_add).saturating_mul(2));
    for id in graph.order() {
        let node = graph.node(id);
        out[id.0 as usize] = match &node.op {
            Op::Const(c) => Some(bytes_held(&c.0)),
            _ => foldable(graph, node, &out, limit).filter(|(inputs, bytes)| fits(&node.op, *inputs, *bytes)).map(|(_, bytes)| bytes),
        };
    }
    out
}

/// Bytes that the model holds for a constant.
fn bytes_held(t: &Tensor) -> usize {
    t.splat_element().map_or(t.byte_len(), |e| e.len())
}

/// Bytes of the operands and of the results, where the node could be computed now and neither comes to more than `limit` written out.
fn foldable(graph: &Graph, node: &Node, stored: &[Option<usize>], limit: usize) -> Option<(usize, usize)> {
    let inputs = node.operands.iter().try_fold(0usize, |n, v| n.checked_add(stored[v.node.0 as usize]?))?;
    let pure = node.regions.is_empty() && !matches!(node.op, Op::Input | Op::ReadDims(_) | Op::NonZero(_) | Op::Random(_));
    let bytes = node.types.iter().try_fold(0usize, |n, t| n.checked_add(Dim::checked_len(&t.shape)?.checked_mul(t.dtype.bytes())?));
    let (true, Some(bytes)) = (pure, bytes) else { return None };
    let x: Vec<&Type> = node.operands.iter().map(|v| graph.ty(*v)).collect();
    if cost::work(&node.op, &x, &node.types) > MAX_WORK
        && matches!(node.op.class(), Some(Class::Contract | Class::Window | Class::Sort) | None)
        && !matches!(node.op, Op::WinogradFilter(_))
    {
        return None;
    }
    let dense = |t: &&Type| Dim::checked_len(&t.shape).and_then(|n| n.checked_mul(t.dtype.bytes()));
    let operands: Vec<&Tensor> = node.operands.iter().filter_map(|v| graph.constant(*v)).collect();
    let splat = keeps_splat(&node.op) && operands.len() == node.operands.len() && one_element(&operands);
    if splat {
        return Some((inputs, node.types[0].dtype.bytes()));
    }
    let written = x.iter().try_fold(0usize, |n, t| n.checked_add(dense(t)?))?;
    (written.max(bytes) <= limit || matches!(node.op, Op::WinogradFilter(_))).then_some((inputs, bytes))
}

/// Whether the operation on operands of one repeated element gives one repeated element.
fn keeps_splat(op: &Op) -> bool {
    matches!(op, Op::Map(_) | Op::Cast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_) | Op::Slice(_))
}

/// Whether each operand repeats one element.
pub(crate) fn one_element(x: &[&Tensor]) -> bool {
    !x.is_empty() && x.iter().all(|t| t.splat_element().is_some() || t.elems() == 1)
}

/// Replaces the constant values that others read by constants, `later` by recipes where those will do.
fn fold(graph: Graph, fits: Fits, later: bool) -> Graph {
    let constant = stored(&graph, fits);
    let is_constant = |id: NodeId| constant[id.0 as usize].is_some() && !matches!(graph.node(id).op, Op::Const(_));
    if graph.is_settled() && !graph.ids().any(is_constant) {
        return graph;
    }
    let mut r = Rebuild::new(&graph);
    let order = r.order();
    let mut cones = Cones::new(&graph, &order);
    let readers = later.then(|| cones.readers.clone());
    for id in &order {
        if is_constant(*id) {
            continue;
        }
        for v in &graph.node(*id).operands {
            materialise(&mut r, &mut cones, *v, &is_constant, readers.as_deref());
        }
        r.keep(*id);
    }
    for v in graph.ends() {
        materialise(&mut r, &mut cones, v, &is_constant, readers.as_deref());
    }
    rebuild::sweep(r.finish())
}

/// Makes a constant value exist in the new graph: as a constant, or, where the reference cannot compute it, as the operation. With
/// numbers of `readers` it may be a recipe.
fn materialise(r: &mut Rebuild, cones: &mut Cones, v: Value, is_constant: &dyn Fn(NodeId) -> bool, readers: Option<&[u32]>) {
    if r.is_set(v.node) || !is_constant(v.node) {
        return;
    }
    let now = |cones: &mut Cones, v: Value| cones.eval(v.node).ok().map(|mut t| t.swap_remove(v.port as usize));
    let deferred = readers.and_then(|readers| recipe::defer(r.old, v.node, readers, |v| now(cones, v)));
    match deferred.map_or_else(|| cones.eval(v.node), |t| Ok(vec![t])) {
        Ok(tensors) => {
            let old = r.old.node(v.node);
            let mut values = vec![];
            for (port, t) in tensors.into_iter().enumerate() {
                let name = if port == 0 { old.name.clone() } else { "".into() };
                values.push(Value { node: r.new.add(literal(t, name, old)), port: 0 });
            }
            r.set(v.node, values);
        }
        Err(_) => {
            // What the reference refuses is left to fail (or not) in the run.
            let mut stack = vec![(v.node, false)];
            while let Some((id, ready)) = stack.pop() {
                if r.is_set(id) {
                    continue;
                }
                if ready {
                    r.keep(id);
                } else {
                    stack.push((id, true));
                    stack.extend(r.old.node(id).operands.iter().map(|o| (o.node, false)));
                }
            }
        }
    }
}

/// A constant in the place of `old`.
fn literal(t: Tensor, name: Arc<str>, old: &Node) -> Node {
    let types = vec![t.ty()];
    let op = Op::Const(Const(t));
    let known = known::infer(&op, &[], &[], &types);
    Node { op, operands: vec![], types, known, regions: vec![], name, loc: old.loc.clone() }
}

/// Evaluates constant expressions, each node once, and forgets a result when its last reader has it.
struct Cones<'a> {
    graph: &'a Graph,
    /// Reads that are still to come.
    readers: Vec<u32>,
    done: HashMap<NodeId, Vec<Tensor>>,
    /// What the reference refused.
    failed: HashSet<NodeId>,
}

impl<'a> Cones<'a> {
    fn new(graph: &'a Graph, order: &[NodeId]) -> Cones<'a> {
        let mut readers = vec![0; graph.id_bound()];
        for v in order.iter().flat_map(|id| &graph.node(*id).operands).copied().chain(graph.ends()) {
            readers[v.node.0 as usize] += 1;
        }
        Cones { graph, readers, done: HashMap::new(), failed: HashSet::new() }
    }

    /// The results of a constant node.
    fn eval(&mut self, root: NodeId) -> Result<Vec<Tensor>> {
        let mut stack = vec![(root, false)];
        while let Some((id, ready)) = stack.pop() {
            if self.done.contains_key(&id) {
                continue;
            }
            if self.failed.contains(&id) {
                return Err(Error::internal("an operand was refused"));
            }
            let node = self.graph.node(id);
            if !ready {
                stack.push((id, true));
                stack.extend(node.operands.iter().map(|v| (v.node, false)));
                continue;
            }
            match self.operands(node).and_then(|x| apply(&node.op, &x, &node.types)) {
                Ok(y) => {
                    self.done.insert(id, y);
                }
                Err(e) => {
                    self.failed.insert(id);
                    return Err(e);
                }
            }
        }
        self.take(Value { node: root, port: 0 }).ok_or_else(|| Error::internal("just computed"))
    }

    fn operands(&mut self, node: &Node) -> Result<Vec<Tensor>> {
        let read = |v: &Value| self.take(*v).map(|mut t| t.swap_remove(v.port as usize));
        node.operands.iter().map(read).collect::<Option<_>>().ok_or_else(|| Error::internal("an operand was not computed"))
    }

    /// Reads a node's results; the last reader takes them away.
    fn take(&mut self, v: Value) -> Option<Vec<Tensor>> {
        let left = &mut self.readers[v.node.0 as usize];
        *left = left.saturating_sub(1);
        if *left == 0 { self.done.remove(&v.node) } else { self.done.get(&v.node).cloned() }
    }
}

/// The results of an operation on constants. Composites are expanded.
pub(crate) fn apply(op: &Op, x: &[Tensor], types: &[Type]) -> Result<Vec<Tensor>> {
    if keeps_splat(op) && one_element(&x.iter().collect::<Vec<_>>()) {
        return splat(op, x, &types[0]).map(|t| vec![t]);
    }
    if let Some(y) = constant::apply(op, x) {
        return y.map(|t| vec![t]);
    }
    if let Some(p) = op.as_primitive() {
        return p.eval(x, &Env::default());
    }
    if let Some(y) = op.as_composite().and_then(|c| c.eval(x, &Env::default())) {
        return y;
    }
    let graph = builder::expansion(op, &x.iter().map(Tensor::ty).collect::<Vec<_>>())?;
    let mut values: Vec<Vec<Tensor>> = vec![vec![]; graph.id_bound()];
    for (id, t) in graph.inputs.iter().zip(x) {
        values[id.0 as usize] = vec![t.clone()];
    }
    for id in graph.order() {
        let node = graph.node(id);
        if !matches!(node.op, Op::Input) {
            let x: Vec<Tensor> = node.operands.iter().map(|v| values[v.node.0 as usize][v.port as usize].clone()).collect();
            values[id.0 as usize] = apply(&node.op, &x, &node.types)?;
        }
    }
    Ok(graph.outputs.iter().map(|o| values[o.value.node.0 as usize][o.value.port as usize].clone()).collect())
}

/// An operation that keeps splats, computed on one element.
fn splat(op: &Op, x: &[Tensor], ty: &Type) -> Result<Tensor> {
    let shape: Option<Vec<usize>> = ty.shape.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
    let shape = shape.ok_or_else(|| Error::internal("a constant's shape is known"))?;
    if shape.contains(&0) {
        return Tensor::from_bytes(ty.dtype, shape, Vec::new().into());
    }
    let one = |t: &Tensor| Tensor::from_bytes(t.dtype(), vec![], t.element(0).to_vec().into());
    let y = match op {
        Op::Map(_) | Op::Cast(_) => {
            let x = x.iter().map(one).collect::<Result<Vec<_>>>()?;
            op.as_primitive().ok_or_else(|| Error::internal("maps are primitive"))?.eval(&x, &Env::default())?.remove(0)
        }
        _ => one(&x[0])?,
    };
    if shape.is_empty() { Ok(y) } else { Tensor::splat(ty.dtype, shape, y.bytes()) }
}

/// Bypasses operations that do nothing, and joins reshapes.
fn simplify(mut graph: Graph) -> Graph {
    // What operations that do nothing pass on.
    let mut passed: HashMap<Value, Value> = HashMap::new();
    let mut pairs = vec![];
    let mut joined = vec![];
    for id in graph.order() {
        let node = graph.node(id);
        let Some(first) = node.operands.first() else { continue };
        let mut x = passed.get(first).copied().unwrap_or(*first);
        // A reshape reads past what only reshapes.
        if let Op::Reshape(_) = node.op {
            let read = x;
            while let Node { op: Op::Reshape(_), operands, .. } = graph.node(x.node) {
                x = passed.get(&operands[0]).copied().unwrap_or(operands[0]);
            }
            if x != read {
                joined.push((id, x));
            }
        }
        if is_identity(node, graph.ty(x)) {
            let y = Value { node: id, port: 0 };
            passed.insert(y, x);
            pairs.push((y, x));
        }
    }
    if pairs.is_empty() && joined.is_empty() {
        return graph;
    }
    joined.into_iter().for_each(|(id, x)| graph.set_operand(id, 0, x));
    graph.replace_all(&pairs);
    rebuild::sweep(graph)
}

/// Whether a node gives its first operand, of type `x`, unchanged.
fn is_identity(node: &Node, x: &Type) -> bool {
    if node.types[0] != *x {
        return false;
    }
    match &node.op {
        Op::Reshape(_) | Op::Expand(_) | Op::Cast(_) => true,
        Op::Transpose(t) => t.perm.iter().copied().eq(0..t.perm.len()),
        Op::Concat(_) => node.operands.len() == 1,
        Op::Pad(p) => p.lo.iter().chain(&p.hi).all(|d| d.is(0)),
        Op::Slice(s) => s.starts.iter().all(|d| d.is(0)) && s.steps.iter().all(|s| *s == 1),
        Op::Reduce(r) => r.axes.is_empty(),
        _ => false,
    }
}
