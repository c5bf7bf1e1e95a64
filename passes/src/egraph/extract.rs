//! Extraction: the cheapest program in an e-graph, priced on the DAG.
//!
//! Two greedy choices are made, both by worklist (linear in depth): by the cost of each value's tree, and by the cost of each
//! value's set of nodes, where what is shared counts once. The cheaper program of the two is taken.

use super::lang::{self, ENode, Facts};
use crate::cost;
use egg::{EGraph, Id};
use nnc_ir::{Op, Target, Type};
use std::collections::{BTreeSet, HashMap, VecDeque};

/// The least a node costs: keeps programs free of cycles and of operations that do nothing.
const STEP: f64 = 0.01;

/// A choice of one node for each class.
pub struct Choice<'a> {
    classes: Classes<'a>,
    node: Vec<Option<usize>>,
}

/// Classes numbered densely, with the costs of their nodes.
struct Classes<'a> {
    egraph: &'a EGraph<ENode, Facts>,
    ids: Vec<Id>,
    index: HashMap<Id, usize>,
    /// Of each class's nodes: own cost, and children as dense numbers (sorted, distinct).
    nodes: Vec<Vec<(f64, Vec<usize>)>>,
    parents: Vec<BTreeSet<usize>>,
}

impl<'a> Classes<'a> {
    fn new(egraph: &'a EGraph<ENode, Facts>, price: &dyn Fn(Id, &ENode) -> f64) -> Classes<'a> {
        let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
        ids.sort();
        let index: HashMap<Id, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let mut parents = vec![BTreeSet::new(); ids.len()];
        let mut nodes = Vec::with_capacity(ids.len());
        for (i, id) in ids.iter().enumerate() {
            let each = egraph[*id].nodes.iter().map(|node| {
                let mut children: Vec<usize> = egg::Language::children(node).iter().map(|c| index[&egraph.find(*c)]).collect();
                children.sort();
                children.dedup();
                children.iter().for_each(|c| {
                    parents[*c].insert(i);
                });
                (price(*id, node), children)
            });
            nodes.push(each.collect());
        }
        Classes { egraph, ids, index, nodes, parents }
    }
}

/// Cycles of one e-node.
pub fn cycles(egraph: &EGraph<ENode, Facts>, class: Id, node: &ENode, target: &Target) -> f64 {
    let Some((op, operands)) = lang::operation(egraph, node) else { return 0.0 };
    let y = lang::value(egraph, class);
    if y.constant {
        return STEP;
    }
    let x: Vec<&Type> = operands.iter().map(|id| &lang::value(egraph, *id).ty).collect();
    STEP + cost::cycles(&op, &x, std::slice::from_ref(&y.ty), target)
}

/// The cheapest choice for the values of `roots`, given the price of each e-node (not negative).
pub fn extract<'a>(egraph: &'a EGraph<ENode, Facts>, roots: &[Id], price: &dyn Fn(Id, &ENode) -> f64) -> Choice<'a> {
    let classes = Classes::new(egraph, price);
    let roots: Vec<usize> = roots.iter().map(|r| classes.index[&egraph.find(*r)]).collect();
    let (by_tree, by_set) = (by_tree(&classes), by_set(&classes));
    let tree_cost = total(&classes, &by_tree, &roots).unwrap_or(f64::INFINITY);
    let node = match total(&classes, &by_set, &roots) {
        Some(c) if c < tree_cost => by_set,
        _ => by_tree,
    };
    Choice { classes, node }
}

/// Visits every class once, and again when a child became cheaper. `better(class)` says whether the class did.
fn worklist(classes: &Classes, mut better: impl FnMut(usize) -> bool) {
    let n = classes.ids.len();
    let mut queue: VecDeque<usize> = (0..n).collect();
    let mut waiting = vec![true; n];
    while let Some(c) = queue.pop_front() {
        waiting[c] = false;
        if better(c) {
            for p in &classes.parents[c] {
                if !std::mem::replace(&mut waiting[*p], true) {
                    queue.push_back(*p);
                }
            }
        }
    }
}

fn by_tree(classes: &Classes) -> Vec<Option<usize>> {
    let n = classes.ids.len();
    let (mut cost, mut pick) = (vec![f64::INFINITY; n], vec![None; n]);
    worklist(classes, |c| {
        let mut improved = false;
        for (i, (own, children)) in classes.nodes[c].iter().enumerate() {
            let sum = own + children.iter().map(|k| cost[*k]).sum::<f64>();
            if sum < cost[c] {
                (cost[c], pick[c], improved) = (sum, Some(i), true);
            }
        }
        improved
    });
    pick
}

/// A set of classes as bits.
#[derive(Clone)]
struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }
    fn join(&mut self, other: &Set) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
    fn each(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(w, bits)| (0..64).filter(move |b| bits >> b & 1 == 1).map(move |b| w * 64 + b))
    }
}

fn by_set(classes: &Classes) -> Vec<Option<usize>> {
    let n = classes.ids.len();
    let mut sets: Vec<Option<Set>> = vec![None; n];
    let (mut cost, mut own, mut pick) = (vec![f64::INFINITY; n], vec![0.0; n], vec![None; n]);
    worklist(classes, |c| {
        let mut improved = false;
        for (i, (own_cost, children)) in classes.nodes[c].iter().enumerate() {
            let mut set = Set(vec![0; n.div_ceil(64)]);
            if !children.iter().all(|k| sets[*k].as_ref().map(|s| set.join(s)).is_some()) || set.contains(c) {
                continue;
            }
            let sum = own_cost + set.each().map(|k| own[k]).sum::<f64>();
            if sum < cost[c] {
                set.insert(c);
                (cost[c], own[c], pick[c], sets[c], improved) = (sum, *own_cost, Some(i), Some(set), true);
            }
        }
        improved
    });
    pick
}

/// Cost of the nodes that the roots need, each counted once; `None` where the choice has a cycle or a gap.
fn total(classes: &Classes, pick: &[Option<usize>], roots: &[usize]) -> Option<f64> {
    let order = order(classes, pick, roots)?;
    Some(order.iter().map(|c| pick[*c].map_or(0.0, |i| classes.nodes[*c][i].0)).sum())
}

/// The classes that the roots need, children first.
fn order(classes: &Classes, pick: &[Option<usize>], roots: &[usize]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut state = vec![State::New; classes.ids.len()];
    let mut out = vec![];
    let mut stack: Vec<(usize, bool)> = roots.iter().rev().map(|r| (*r, false)).collect();
    while let Some((c, ready)) = stack.pop() {
        if ready {
            state[c] = State::Done;
            out.push(c);
            continue;
        }
        match state[c] {
            State::Done => continue,
            State::Open => return None,
            State::New => state[c] = State::Open,
        }
        stack.push((c, true));
        for k in classes.nodes[c][pick[c]?].1.iter().rev() {
            match state[*k] {
                State::Open => return None,
                State::New => stack.push((*k, false)),
                State::Done => {}
            }
        }
    }
    Some(out)
}

impl Choice<'_> {
    /// Chosen operations that the roots need, operands first: (class, operation, operands' classes). Leaves are left out.
    pub fn program(&self, roots: &[Id]) -> Vec<(Id, Op, Vec<Id>)> {
        let classes = &self.classes;
        let roots: Vec<usize> = roots.iter().map(|r| classes.index[&classes.egraph.find(*r)]).collect();
        let order = order(classes, &self.node, &roots).expect("the tree choice has neither cycles nor gaps");
        let node = |c: usize| &classes.egraph[classes.ids[c]].nodes[self.node[c].expect("ordered")];
        order.into_iter().filter_map(|c| lang::operation(classes.egraph, node(c)).map(|(op, x)| (classes.ids[c], op, x))).collect()
    }

    /// The leaf that is chosen for a class.
    pub fn leaf(&self, id: Id) -> Option<u32> {
        let c = self.classes.index[&self.classes.egraph.find(id)];
        match self.classes.egraph[self.classes.ids[c]].nodes[self.node[c]?] {
            ENode::Leaf(i) => Some(i),
            _ => None,
        }
    }
}
