//! Ensembles of decision trees. The trees become tables in which a successor comes after its node; one operation walks them, the rest is
//! a gather of the leaves' weights and a reduction over the trees.

use super::super::{Row, op};
use super::{DOMAIN, TRANSFORMS, columns, either, labels, plus, post_transform, times, transformed};
use crate::onnx::call::Call;
use nnc_ir::ops::index::Gather;
use nnc_ir::ops::reduce::ReduceKind;
use nnc_ir::ops::tree::{Test, TreeLeaves};
use nnc_ir::{DType, Dim, Error, Result, Tensor, V};
use std::collections::{BTreeSet, HashMap};

pub const ROWS: &[Row] = &[
    op("TreeEnsemble", 5, (1, 1), ensemble).domain(DOMAIN),
    op("TreeEnsembleClassifier", 1, (1, 1), classifier).domain(DOMAIN),
    op("TreeEnsembleRegressor", 1, (1, 1), regressor).domain(DOMAIN),
];

/// Where a branch leads.
#[derive(Clone, Copy)]
enum Next {
    Branch(usize),
    Leaf(usize),
}

struct Branch {
    feature: i64,
    test: Test,
    /// One number, or several of which one must be equal.
    values: Vec<f64>,
    yes: Next,
    no: Next,
    /// Whether NaN goes where the test holds.
    nan: bool,
}

/// Trees as the file has them.
struct Forest {
    branches: Vec<Branch>,
    roots: Vec<Next>,
    /// (target, weight) of each leaf.
    leaves: Vec<Vec<(usize, f64)>>,
    targets: usize,
}

/// Rows of the table of [`TreeLeaves`].
#[derive(Default)]
struct Table {
    feature: Vec<i64>,
    value: Vec<f64>,
    test: Vec<Test>,
    yes: Vec<i64>,
    no: Vec<i64>,
    nan: Vec<bool>,
    roots: Vec<i64>,
}

impl Table {
    fn push(&mut self, feature: i64, value: f64, test: Test, nan: bool, no: i64) -> usize {
        self.feature.push(feature);
        self.value.push(value);
        self.test.push(test);
        self.nan.push(nan);
        self.yes.push(0);
        self.no.push(no);
        self.yes.len() - 1
    }

    /// Lays the trees out, each node before its successors. A node that two lead to is an error: so trees have no cycles.
    fn of(forest: &Forest) -> Result<Table> {
        let mut t = Table::default();
        let mut seen = vec![false; forest.branches.len()];
        for root in &forest.roots {
            t.roots.push(t.yes.len() as i64);
            // What is to be laid out, and the places that lead there: a row, and whether by its test.
            let mut stack: Vec<(Next, Vec<(usize, bool)>)> = vec![(*root, vec![])];
            while let Some((next, from)) = stack.pop() {
                let here = t.yes.len() as i64;
                for (row, holds) in from {
                    if holds { t.yes[row] = here } else { t.no[row] = here }
                }
                let Next::Branch(i) = next else {
                    if let Next::Leaf(l) = next {
                        t.push(0, 0.0, Test::LessEqual, false, l as i64);
                    }
                    continue;
                };
                let b = forest.branches.get(i).ok_or_else(|| Error::attribute(format!("there is no node {i}")))?;
                if std::mem::replace(&mut seen[i], true) {
                    return Err(Error::attribute(format!("two nodes lead to node {i}")));
                }
                let rows: Vec<usize> = b.values.iter().map(|v| t.push(b.feature, *v, b.test, b.nan, 0)).collect();
                let Some((last, before)) = rows.split_last() else { return Err(Error::attribute(format!("node {i} compares with nothing"))) };
                before.iter().for_each(|row| t.no[*row] = *row as i64 + 1);
                stack.push((b.no, vec![(*last, false)]));
                stack.push((b.yes, rows.iter().map(|row| (*row, true)).collect()));
            }
        }
        Ok(t)
    }
}

/// Results `[rows,targets]` of the forest, the trees' weights combined.
fn results<'g>(c: &Call<'g>, forest: &Forest, aggregate: &str) -> Result<V<'g>> {
    let x = c.x(0)?;
    let dtype = if x.ty().dtype == DType::F64 { DType::F64 } else { DType::F32 };
    if x.ty().rank() != 2 {
        return Err(Error::shape(format!("expected [rows,features], found {}", x.ty())));
    }
    let width = x.ty().shape[1].as_const();
    if let Some(f) = forest.branches.iter().map(|b| b.feature).find(|f| *f < 0 || width.is_some_and(|w| *f >= w)) {
        return Err(Error::attribute(format!("a node reads feature {f}, the input is {}", x.ty())));
    }
    let (leaves, targets, trees) = (forest.leaves.len(), forest.targets, forest.roots.len());
    if leaves.saturating_mul(targets) > MAX_WEIGHTS {
        return Err(Error::limit(format!("{leaves} leaves of {targets} targets")));
    }
    let table = Table::of(forest)?;
    let floats = |v: &[f64], shape: &[usize]| -> Result<V<'g>> { Ok(c.b.constant(Tensor::new(&[v.len()], v).reshaped(shape.to_vec())?).cast(dtype)) };
    let ints = |v: &[i64]| c.b.constant(Tensor::new(&[v.len()], v));
    let kinds: BTreeSet<Test> = table.yes.iter().zip(&table.test).filter(|(yes, _)| **yes != 0).map(|(_, t)| *t).collect();
    let test = if kinds.len() > 1 { Test::Mixed } else { kinds.into_iter().next().unwrap_or(Test::LessEqual) };
    let codes: Vec<u8> = table.test.iter().map(|t| *t as u8).collect();
    let n = table.yes.len();
    let operands = [
        x.cast(dtype),
        ints(&table.feature),
        floats(&table.value, &[n])?,
        c.b.constant(Tensor::new(&[n], &codes)),
        ints(&table.yes),
        ints(&table.no),
        c.b.constant(Tensor::new(&[n], &table.nan)),
        ints(&table.roots),
    ];
    let reached = c.b.op(TreeLeaves { test }, &operands);
    // A target for which no leaf has a weight counts as 0.
    let (kind, absent) = match aggregate {
        "MIN" => (ReduceKind::Min, f64::INFINITY),
        "MAX" => (ReduceKind::Max, f64::NEG_INFINITY),
        _ => (ReduceKind::Sum, 0.0),
    };
    let mut weights = vec![absent; leaves * targets];
    for (leaf, row) in forest.leaves.iter().enumerate() {
        for (target, w) in row {
            let slot = weights[leaf * targets..(leaf + 1) * targets].get_mut(*target);
            let slot = slot.ok_or_else(|| Error::attribute(format!("a leaf has a weight for target {target} of {targets}")))?;
            *slot = match kind {
                ReduceKind::Min => slot.min(*w),
                ReduceKind::Max => slot.max(*w),
                _ => *slot + w,
            };
        }
    }
    let weights = c.b.op(Gather { axis: 0 }, &[floats(&weights, &[leaves, targets])?, reached]);
    let y = weights.reduce(kind, &[1], false);
    Ok(match kind {
        ReduceKind::Sum if aggregate == "AVERAGE" => times(y, 1.0 / trees.max(1) as f64),
        ReduceKind::Sum => y,
        _ => y.equal(y.scalar_like(absent)).select(y.scalar_like(0.0), y),
    })
}

/// Weights of all leaves for all targets.
const MAX_WEIGHTS: usize = 1 << 28;

/// A list of numbers that is an attribute of floats, or with another name a tensor of doubles.
fn numbers(c: &Call, name: &str) -> Result<Vec<f64>> {
    match c.tensor(&format!("{name}_as_tensor"))? {
        Some(t) => Ok(t.to_f64s()),
        None => Ok(c.floats(name)?.unwrap_or_default()),
    }
}

/// Trees in the form of versions 1 to 4; `kind` is `class` or `target`.
fn forest(c: &Call, kind: &str, targets: usize) -> Result<Forest> {
    c.ignore(&["nodes_hitrates", "nodes_hitrates_as_tensor"]);
    let ints = |name: &str| -> Result<Vec<i64>> { Ok(c.ints(name)?.unwrap_or_default()) };
    let (trees, ids, features) = (ints("nodes_treeids")?, ints("nodes_nodeids")?, ints("nodes_featureids")?);
    let (values, modes) = (numbers(c, "nodes_values")?, c.strs("nodes_modes")?.unwrap_or_default());
    let (yes, no) = (ints("nodes_truenodeids")?, ints("nodes_falsenodeids")?);
    let nan = ints("nodes_missing_value_tracks_true")?;
    let n = ids.len();
    if [trees.len(), features.len(), values.len(), modes.len(), yes.len(), no.len()].iter().any(|l| *l != n) || !(nan.is_empty() || nan.len() == n) {
        return Err(Error::attribute(format!("{n} nodes, but another number of some of their attributes")));
    }
    let place: HashMap<(i64, i64), usize> = (0..n).map(|i| ((trees[i], ids[i]), i)).collect();
    if place.len() != n {
        return Err(Error::attribute("two nodes of a tree have one number"));
    }
    let next = |tree: i64, id: i64| -> Result<Next> {
        let i = *place.get(&(tree, id)).ok_or_else(|| Error::attribute(format!("tree {tree} has no node {id}")))?;
        Ok(if modes[i] == "LEAF" { Next::Leaf(i) } else { Next::Branch(i) })
    };
    // A leaf keeps its node's number; the other leaves have no weights.
    let mut out = Forest { branches: vec![], roots: vec![], leaves: vec![vec![]; n], targets };
    let mut first = BTreeSet::new();
    for i in 0..n {
        if first.insert(trees[i]) {
            out.roots.push(next(trees[i], ids[i])?);
        }
        let test = match modes[i].as_str() {
            "BRANCH_LEQ" | "LEAF" => Test::LessEqual,
            "BRANCH_LT" => Test::Less,
            "BRANCH_GTE" => Test::GreaterEqual,
            "BRANCH_GT" => Test::Greater,
            "BRANCH_EQ" => Test::Equal,
            "BRANCH_NEQ" => Test::NotEqual,
            mode => return Err(Error::attribute(format!("node {i} has the mode `{mode}`, which is not known"))),
        };
        let leaf = modes[i] == "LEAF";
        let (yes, no) = if leaf { (Next::Leaf(i), Next::Leaf(i)) } else { (next(trees[i], yes[i])?, next(trees[i], no[i])?) };
        let feature = if leaf { 0 } else { features[i] };
        out.branches.push(Branch { feature, test, values: vec![values[i]], yes, no, nan: nan.get(i).is_some_and(|m| *m != 0) });
    }
    let (wt, wn, wi) = (ints(&format!("{kind}_treeids"))?, ints(&format!("{kind}_nodeids"))?, ints(&format!("{kind}_ids"))?);
    let weights = numbers(c, &format!("{kind}_weights"))?;
    if [wt.len(), wn.len(), wi.len()].iter().any(|l| *l != weights.len()) {
        return Err(Error::attribute(format!("{} weights, but another number of places for them", weights.len())));
    }
    for k in 0..weights.len() {
        let leaf = place.get(&(wt[k], wn[k])).ok_or_else(|| Error::attribute(format!("tree {} has no node {}", wt[k], wn[k])))?;
        out.leaves[*leaf].push((usize::try_from(wi[k]).unwrap_or(usize::MAX), weights[k]));
    }
    Ok(out)
}

/// Adds what the ensemble starts from.
fn based<'g>(c: &Call<'g>, y: V<'g>, targets: usize) -> Result<V<'g>> {
    let base = numbers(c, "base_values")?;
    if base.is_empty() {
        return Ok(y);
    }
    if base.len() != targets && base.len() != 1 {
        return Err(Error::attribute(format!("{} base values for {targets} targets", base.len())));
    }
    Ok(y + c.b.constant(Tensor::new(&[base.len()], &base)).cast(y.ty().dtype))
}

fn regressor<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let aggregate = c.word("aggregate_function", &["SUM", "AVERAGE", "MIN", "MAX"])?;
    let targets = c.int("n_targets", 1)?;
    let targets = usize::try_from(targets).map_err(|_| Error::attribute(format!("{targets} targets")))?;
    let y = results(c, &forest(c, "target", targets)?, aggregate)?;
    let y = based(c, y, targets)?;
    Ok(vec![transformed(y, post_transform(c)?).cast(DType::F32)])
}

fn classifier<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let labels = labels(c, "classlabels_strings", "classlabels_int64s")?.ok_or_else(|| Error::attribute("the classes have no labels"))?;
    let (classes, transform) = (labels.elems(), post_transform(c)?);
    let trees = forest(c, "class", classes)?;
    let used: BTreeSet<usize> = trees.leaves.iter().flatten().map(|w| w.0).collect();
    let positive = trees.leaves.iter().flatten().all(|w| w.1 >= 0.0);
    let y = results(c, &trees, "SUM")?.cast(DType::F32);
    if classes != 2 {
        let y = based(c, y, classes)?;
        // SOFTMAX_ZERO alone changes the order of scores: what is zero stays so, below a negative score's share.
        let shares = transformed(y, transform);
        return Ok(vec![super::best_label(if transform == "SOFTMAX_ZERO" { shares } else { y }, &labels), shares]);
    }
    let (label, scores) = two_classes(y, &used, positive, &numbers(c, "base_values")?, transform);
    Ok(vec![either(label, &labels), scores])
}

/// Whether a row is of the second of two classes, and both scores, as onnxruntime has it: what stands for the second class decides alone.
/// Where only the first has weights, they are a score for the second from which that of the first follows.
fn two_classes<'g>(y: V<'g>, used: &BTreeSet<usize>, positive: bool, base: &[f64], transform: &str) -> (V<'g>, V<'g>) {
    let column = |k: i64| y.slice_axis(1, Dim::Const(k), Dim::Const(1));
    let based = |k: usize| base.get(k).copied().unwrap_or(0.0);
    let (first, second) = (column(0), column(1));
    let above = |score: V<'g>, limit: f64| score.greater(score.scalar_like(limit)).reshape(vec![y.ty().shape[0].clone()]);
    let limit = if positive && used.len() == 1 { 0.5 } else { 0.0 };
    if used.contains(&1) || base.len() == 2 {
        let first = if used.contains(&0) { plus(first, based(0)) } else { first };
        let second = if base.len() == 2 { plus(second, based(1)) } else { second };
        return (above(second, limit), transformed(columns(first, second), transform));
    }
    let score = plus(first, based(0));
    let scores = match transform {
        "LOGISTIC" => columns((-score).sigmoid(), score.sigmoid()),
        "PROBIT" => columns(-super::probit(score), super::probit(score)),
        _ if positive => columns(score.scalar_like(1.0) - score, score),
        _ => columns(-score, score),
    };
    (above(score, limit), scores)
}

/// Trees in the form of version 5: branches and leaves apart.
fn ensemble<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    c.ignore(&["nodes_hitrates"]);
    let ints = |name: &str| -> Result<Vec<i64>> { Ok(c.ints(name)?.unwrap_or_default()) };
    let tensor = |name: &str| -> Result<Vec<f64>> { Ok(c.tensor(name)?.map(|t| t.to_f64s()).unwrap_or_default()) };
    let (features, values, modes) = (ints("nodes_featureids")?, tensor("nodes_splits")?, tensor("nodes_modes")?);
    let (yes, yes_leaf) = (ints("nodes_truenodeids")?, ints("nodes_trueleafs")?);
    let (no, no_leaf) = (ints("nodes_falsenodeids")?, ints("nodes_falseleafs")?);
    let nan = ints("nodes_missing_value_tracks_true")?;
    let n = features.len();
    let counts = [values.len(), modes.len(), yes.len(), yes_leaf.len(), no.len(), no_leaf.len()];
    if counts.iter().any(|l| *l != n) || !(nan.is_empty() || nan.len() == n) {
        return Err(Error::attribute(format!("{n} nodes, but another number of some of their attributes")));
    }
    let (leaf_targets, leaf_weights) = (ints("leaf_targetids")?, tensor("leaf_weights")?);
    if leaf_targets.len() != leaf_weights.len() {
        return Err(Error::attribute(format!("{} leaves, but {} weights", leaf_targets.len(), leaf_weights.len())));
    }
    let targets = c.int("n_targets", 1)?;
    let mut out = Forest {
        branches: vec![],
        roots: vec![],
        leaves: leaf_targets.iter().zip(&leaf_weights).map(|(t, w)| vec![(usize::try_from(*t).unwrap_or(usize::MAX), *w)]).collect(),
        targets: usize::try_from(targets).map_err(|_| Error::attribute(format!("{targets} targets")))?,
    };
    let next = |leaf: i64, i: i64| -> Result<Next> {
        let outside = || Error::attribute(format!("there is no {} {i}", if leaf != 0 { "leaf" } else { "node" }));
        let bound = if leaf != 0 { leaf_targets.len() } else { n };
        let i = usize::try_from(i).ok().filter(|i| *i < bound).ok_or_else(outside)?;
        Ok(if leaf != 0 { Next::Leaf(i) } else { Next::Branch(i) })
    };
    // Sets of members stand one after the other, NaN between them.
    let members = tensor("membership_values")?;
    let mut sets = members.split(|v| v.is_nan());
    for i in 0..n {
        let member = modes[i] == 6.0;
        let test = if member { Some(Test::Equal) } else { Test::of(modes[i] as u64 + 1) };
        let test = test.ok_or_else(|| Error::attribute(format!("node {i} has the mode {}, which is not known", modes[i])))?;
        let values = if member { sets.next().unwrap_or_default().to_vec() } else { vec![values[i]] };
        let nan = nan.get(i).is_some_and(|m| *m != 0);
        out.branches.push(Branch { feature: features[i], test, values, yes: next(yes_leaf[i], yes[i])?, no: next(no_leaf[i], no[i])?, nan });
    }
    for root in ints("tree_roots")? {
        // A tree that is one leaf is a node both of whose successors are that leaf.
        let i = usize::try_from(root).ok().filter(|i| *i < n).ok_or_else(|| Error::attribute(format!("there is no node {root}")))?;
        out.roots.push(Next::Branch(i));
    }
    let word = |name: &str, words: &'static [&'static str], default: i64| -> Result<&'static str> {
        let i = c.int(name, default)?;
        let known = usize::try_from(i).ok().and_then(|i| words.get(i)).copied();
        known.ok_or_else(|| Error::attribute(format!("attribute `{name}` is {i}; known are 0 to {}", words.len() - 1)))
    };
    let y = results(c, &out, word("aggregate_function", &["AVERAGE", "SUM", "MIN", "MAX"], 1)?)?;
    Ok(vec![transformed(y, word("post_transform", TRANSFORMS, 0)?).cast(c.x(0)?.ty().dtype)])
}
