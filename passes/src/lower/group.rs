//! Groups: a tree of element-by-element operations, movement and at most one reduction becomes one kernel without intermediate
//! buffers. A group of one node is how such an operation is lowered alone.
//!
//! The root's shape is the loops' domain. From the root towards the leaves, each value is read at an affine function of the
//! domain's axes; movement changes that function and costs nothing, and at the leaves it becomes a [`View`].

use super::loops::Loops;
use super::scalar::wide;
use super::view::{View, bring_rows_in, collapse, row_major};
use nnc_ir::error::{Error, Result};
use nnc_ir::graph::{Graph, NodeId, Value};
use nnc_ir::kernel::{Access, ExprId};
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::scalar::Num;
use nnc_ir::{DType, Dim, Op, ScalarFn, Type};
use rustc_hash::FxHashMap;

/// `offset + sum of coefficient * index of a domain axis`; axes ascend.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Affine {
    offset: Dim,
    terms: Vec<(usize, Dim)>,
}

impl Affine {
    fn zero() -> Affine {
        Affine { offset: Dim::Const(0), terms: vec![] }
    }

    fn axis(i: usize) -> Affine {
        Affine { offset: Dim::Const(0), terms: vec![(i, Dim::Const(1))] }
    }

    fn scaled(&self, by: &Dim) -> Affine {
        Affine { offset: self.offset.clone() * by.clone(), terms: self.terms.iter().map(|(a, c)| (*a, c.clone() * by.clone())).collect() }
    }

    /// The place in an axis that is stretched by this factor.
    fn stretched(&self, factor: &Dim) -> Affine {
        if factor.is(0) { Affine::zero() } else { self.scaled(factor) }
    }

    fn plus(mut self, other: &Affine) -> Affine {
        self.offset = self.offset + other.offset.clone();
        for (axis, c) in &other.terms {
            match self.terms.binary_search_by_key(axis, |(a, _)| *a) {
                Ok(i) => self.terms[i].1 = self.terms[i].1.clone() + c.clone(),
                Err(i) => self.terms.insert(i, (*axis, c.clone())),
            }
        }
        self
    }

    fn view(&self, axes: usize) -> View {
        let mut strides = vec![Dim::Const(0); axes];
        self.terms.iter().for_each(|(a, c)| strides[*a] = c.clone());
        View { offset: self.offset.clone(), strides }
    }
}

/// Where a value is read: one affine function for each of its axes.
type Place = Vec<Affine>;

/// Where the operand of shape `x` is read for a result of shape `y` that it broadcasts to.
fn broadcast(at: &Place, x: &[Dim], y: &[Dim]) -> Place {
    let skip = y.len() - x.len();
    x.iter().enumerate().map(|(i, d)| at[skip + i].stretched(&d.stretch_factor(&y[skip + i]))).collect()
}

/// Where the operand of a reshape is read. `None` where an axis of the result spans several of the operand's: that is not affine.
fn reshaped(at: &Place, x: &[Dim], y: &[Dim]) -> Option<Place> {
    let mut j = 0;
    let mut out = vec![];
    for d in x {
        let mut place = Affine::zero();
        let mut size = Dim::Const(1);
        while !d.is(1) && size != *d {
            let n = y.get(j)?;
            place = place.scaled(n).plus(&at[j]);
            size = size * n.clone();
            j += 1;
        }
        out.push(place);
    }
    y[j..].iter().all(|d| d.is(1)).then_some(out)
}

/// Whether `reshape` from `x` to `y` can be part of a group.
pub fn reshape_is_affine(x: &[Dim], y: &[Dim]) -> bool {
    reshaped(&(0..y.len()).map(Affine::axis).collect(), x, y).is_some()
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Term {
    /// Element of source `i`.
    Load(usize),
    Literal(Num, DType),
    Size(Dim),
    /// An index of the domain as a number.
    Index(usize),
    /// The reduction's result.
    Folded,
    Map(ScalarFn, Vec<usize>),
    Cast(DType, usize),
}

/// Terms that are computed for each index of a nest, operands first.
#[derive(Default)]
struct Stage {
    terms: Vec<Term>,
    index: FxHashMap<Term, usize>,
    seen: FxHashMap<(Value, Place), usize>,
    /// Views that `Load` and `Index` take: the parameter (none for an index) and where.
    views: Vec<(Option<usize>, View)>,
}

impl Stage {
    fn add(&mut self, t: Term) -> usize {
        let next = self.terms.len();
        let i = *self.index.entry(t.clone()).or_insert(next);
        if i == next {
            self.terms.push(t);
        }
        i
    }

    fn view(&mut self, param: Option<usize>, view: View) -> usize {
        let v = (param, view);
        self.views.iter().position(|w| *w == v).unwrap_or_else(|| {
            self.views.push(v);
            self.views.len() - 1
        })
    }

    /// Scalar operations for one index.
    fn work(&self) -> i64 {
        self.terms
            .iter()
            .map(|t| match t {
                Term::Map(f, _) => scalar_work(*f),
                _ => 1,
            })
            .sum()
    }
}

/// What a scalar function costs, in additions.
fn scalar_work(f: ScalarFn) -> i64 {
    use ScalarFn::*;
    match f {
        Exp | Log | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh | Erf | Sigmoid | Pow | Atan2 => 16,
        Div | Sqrt | Reciprocal | Mod | Fmod => 4,
        _ => 1,
    }
}

struct Fold {
    kind: ReduceKind,
    dtype: DType,
    dims: Vec<Dim>,
    root: usize,
}

/// The group as loops, and the values that its parameters read, in order.
pub struct Group<'g> {
    graph: &'g Graph,
    inside: &'g dyn Fn(NodeId) -> bool,
    /// What the group computes: values of one shape.
    tops: &'g [Value],
    domain: Vec<Dim>,
    params: Vec<Value>,
    outer: Stage,
    inner: Stage,
    fold: Option<Fold>,
    /// The term of each of `tops`.
    roots: Vec<usize>,
    /// Whether there are nodes beside the root.
    fused: bool,
}

impl<'g> Group<'g> {
    /// The nodes for which `inside` holds, down from `tops`, which are some of them. Parameters are `params`, then what else is read.
    fn new(graph: &'g Graph, tops: &'g [Value], params: Vec<Value>, inside: &'g dyn Fn(NodeId) -> bool) -> Result<Group<'g>> {
        let domain = graph.ty(tops[0]).shape.clone();
        let (outer, inner) = (Stage::default(), Stage::default());
        let mut group = Group { graph, inside, tops, domain, params, outer, inner, fold: None, roots: vec![], fused: false };
        let at: Place = (0..group.domain.len()).map(Affine::axis).collect();
        for top in tops {
            let root = group.term(*top, at.clone(), false)?;
            group.roots.push(root);
        }
        Ok(group)
    }

    fn axes(&self, folding: bool) -> usize {
        self.domain.len() + if folding { self.fold.as_ref().map_or(0, |f| f.dims.len()) } else { 0 }
    }

    fn stage(&mut self, folding: bool) -> &mut Stage {
        if folding { &mut self.inner } else { &mut self.outer }
    }

    /// The term for `v` read at `at`. Recursion goes as deep as a group is large, which fusion bounds.
    fn term(&mut self, v: Value, at: Place, folding: bool) -> Result<usize> {
        let key = (v, at);
        if let Some(i) = self.stage(folding).seen.get(&key) {
            return Ok(*i);
        }
        let at = key.1.clone();
        let node = self.graph.node(v.node);
        let ty = &node.types[v.port as usize];
        let axes = self.axes(folding);
        self.fused |= !self.tops.contains(&v) && (self.inside)(v.node);
        let operand = |i: usize| (node.operands[i], &self.graph.ty(node.operands[i]).shape);
        let term = match &node.op {
            Op::Const(c) if c.0.elems() == 1 || c.0.splat_element().is_some() => Term::Literal(c.0.num(0), c.0.dtype()),
            _ if !(self.inside)(v.node) => {
                let flat = at.iter().zip(row_major(&ty.shape)).fold(Affine::zero(), |sum, (a, stride)| sum.plus(&a.scaled(&stride)));
                let param = self.params.iter().position(|p| *p == v).unwrap_or_else(|| {
                    self.params.push(v);
                    self.params.len() - 1
                });
                Term::Load(self.stage(folding).view(Some(param), flat.view(axes)))
            }
            Op::Map(f) => {
                let args: Result<Vec<usize>> = (0..node.operands.len())
                    .map(|i| {
                        let (x, shape) = operand(i);
                        self.term(x, broadcast(&at, shape, &ty.shape), folding)
                    })
                    .collect();
                Term::Map(*f, args?)
            }
            Op::Cast(c) => Term::Cast(c.to, self.term(operand(0).0, at, folding)?),
            Op::Iota(iota) => Term::Index(self.stage(folding).view(None, at[iota.axis].view(axes))),
            Op::Dims(d) if d.values.len() == 1 => Term::Size(d.values[0].clone()),
            Op::Transpose(t) => {
                let mut place = vec![Affine::zero(); at.len()];
                t.perm.iter().zip(&at).for_each(|(p, a)| place[*p] = a.clone());
                return self.same(key, operand(0).0, place, folding);
            }
            Op::Expand(_) => {
                let (x, shape) = operand(0);
                let place = broadcast(&at, shape, &ty.shape);
                return self.same(key, x, place, folding);
            }
            Op::Slice(s) => {
                let start = |(i, a): (usize, &Affine)| {
                    let mut a = a.scaled(&Dim::Const(s.step(i)));
                    a.offset = a.offset + s.starts[i].clone();
                    a
                };
                let place = at.iter().enumerate().map(start).collect();
                return self.same(key, operand(0).0, place, folding);
            }
            Op::Reshape(_) => {
                let (x, shape) = operand(0);
                let place = reshaped(&at, shape, &ty.shape).ok_or_else(|| Error::internal("a reshape in a group must be affine"))?;
                return self.same(key, x, place, folding);
            }
            Op::Reduce(r) if !folding && self.fold.is_none() => {
                let (x, shape) = operand(0);
                let dims: Vec<Dim> = r.axes.iter().map(|a| shape[*a].clone()).collect();
                let mut kept = if r.keepdims {
                    at.iter().enumerate().filter(|(i, _)| !r.axes.contains(i)).map(|(_, a)| a.clone()).collect()
                } else {
                    at.clone()
                }
                .into_iter();
                let outer = self.domain.len();
                let place = (0..shape.len())
                    .map(|i| match r.axes.iter().position(|a| *a == i) {
                        Some(j) => Affine::axis(outer + j),
                        None => kept.next().unwrap_or_else(Affine::zero),
                    })
                    .collect();
                self.fold = Some(Fold { kind: r.kind, dtype: ty.dtype, dims, root: 0 });
                let root = self.term(x, place, true)?;
                if let Some(f) = &mut self.fold {
                    f.root = root;
                }
                Term::Folded
            }
            op => return Err(Error::internal(format!("{} cannot be part of a group", op.name()))),
        };
        let stage = self.stage(folding);
        let i = stage.add(term);
        stage.seen.insert(key, i);
        Ok(i)
    }

    /// Movement: the term is that of the operand.
    fn same(&mut self, key: (Value, Place), x: Value, at: Place, folding: bool) -> Result<usize> {
        let i = self.term(x, at, folding)?;
        self.stage(folding).seen.insert(key, i);
        Ok(i)
    }

    /// The group as a kernel whose parameters are the group's, then its results.
    fn emit(&self, k: &mut Loops) {
        let rank = self.domain.len();
        // Views of the whole nest: those of the outer stage, the outer part of those of the inner stage, the result.
        let mut views: Vec<View> = self.outer.views.iter().map(|(_, v)| v.clone()).collect();
        let n_outer = views.len();
        views.extend(self.inner.views.iter().map(|(_, v)| View { offset: v.offset.clone(), strides: v.strides[..rank].to_vec() }));
        views.push(View::dense(&self.domain));
        let mut dims = self.domain.clone();
        collapse(&mut dims, &mut views);
        if k.grain > 1 && self.fold.is_none() {
            bring_rows_in(&mut dims, &mut views);
        }
        let mut inner_views: Vec<View> = self.inner.views.iter().map(|(_, v)| View::new(v.strides[rank..].to_vec())).collect();
        let mut inner_dims = self.fold.as_ref().map_or(vec![], |f| f.dims.clone());
        collapse(&mut inner_dims, &mut inner_views);
        let folded: i64 = inner_dims.iter().fold(1, |n: i64, d| n.saturating_mul(d.as_const().unwrap_or(64).max(1)));
        let work = self.outer.work().saturating_add(self.inner.work().saturating_mul(folded));
        k.parallel(&dims, &views, work, |k, _, at| {
            let folded = self.fold.as_ref().map(|f| {
                let acc_type = match f.kind {
                    ReduceKind::Sum | ReduceKind::Prod => wide(f.dtype),
                    ReduceKind::Max | ReduceKind::Min => f.dtype,
                };
                let acc = k.accumulator(f.kind, acc_type);
                k.serial(&inner_dims, &inner_views, &at[n_outer..at.len() - 1], |k, _, at| {
                    let values = evaluate(k, &self.inner, at, None, &[f.root]);
                    let x = k.cast(acc_type, values[0]);
                    k.accumulate(acc, f.kind, x);
                });
                let acc = k.var(acc);
                k.cast(f.dtype, acc)
            });
            let values = evaluate(k, &self.outer, at, folded, &self.roots);
            for (i, value) in values.into_iter().enumerate() {
                let out = k.result(i);
                k.store(out, at[at.len() - 1], value);
            }
        });
    }
}

/// The group below `root`, of the nodes for which `inside` holds: its kernel, and the operands of its launch.
pub fn lower(graph: &Graph, root: Value, inside: &dyn Fn(NodeId) -> bool, grain: i64) -> Result<(Loops, Vec<Value>)> {
    let tops = [root];
    let group = Group::new(graph, &tops, vec![], inside)?;
    let name = graph.node(root.node).op.name();
    let name = if group.fused { format!("fused_{name}") } else { name.to_string() };
    let x: Vec<Type> = group.params.iter().map(|v| graph.ty(*v).clone()).collect();
    let mut k = Loops::new(&name, &x, std::slice::from_ref(graph.ty(root)), Access::Write, grain);
    group.emit(&mut k);
    Ok((k, group.params))
}

/// A composite whose expansion is element-by-element operations with results of one shape, as one kernel.
pub fn composite(k: &mut Loops, op: &Op) -> Result<()> {
    let graph = nnc_ir::builder::expansion(op, &k.x)?;
    let params = graph.inputs.iter().map(|id| Value { node: *id, port: 0 }).collect();
    let tops: Vec<Value> = graph.outputs.iter().map(|o| o.value).collect();
    Group::new(&graph, &tops, params, &|id| !matches!(graph.node(id).op, Op::Input))?.emit(k);
    Ok(())
}

/// The values of terms `roots`; values that are used twice are computed once.
fn evaluate(k: &mut Loops, stage: &Stage, at: &[ExprId], folded: Option<ExprId>, roots: &[usize]) -> Vec<ExprId> {
    let mut uses = vec![0; stage.terms.len()];
    roots.iter().for_each(|r| uses[*r] += 1);
    for t in &stage.terms {
        match t {
            Term::Map(_, args) => args.iter().for_each(|a| uses[*a] += 1),
            Term::Cast(_, a) => uses[*a] += 1,
            _ => {}
        }
    }
    let mut values: Vec<ExprId> = vec![];
    for (i, t) in stage.terms.iter().enumerate() {
        let value = match t {
            Term::Load(v) => match stage.views[*v].0 {
                Some(param) => k.load(param as u32, at[*v]),
                None => at[*v],
            },
            Term::Index(v) => at[*v],
            Term::Literal(n, d) => k.literal(*n, *d),
            Term::Size(d) => k.size(d),
            Term::Folded => folded.unwrap_or_else(|| k.int(0)),
            Term::Map(f, args) => {
                let args: Vec<ExprId> = args.iter().map(|a| values[*a]).collect();
                k.map(*f, &args)
            }
            Term::Cast(to, a) => k.cast(*to, values[*a]),
        };
        let computed = matches!(t, Term::Load(_) | Term::Map(..) | Term::Cast(..) | Term::Folded);
        values.push(if uses[i] > 1 && computed { k.bind(value) } else { value });
    }
    roots.iter().map(|r| values[*r]).collect()
}
