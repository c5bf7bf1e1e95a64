//! The e-graph's language. There is no second list of operations: a node names one of the IR's, with its attributes interned.
//!
//! * A map is `(add x y)`: its name says everything. Any other operation has its attributes as first child: `(transpose ?p ?x)`.
//! * A contraction is `(conv ?a ?x ?w ?p)`: `?p` is the list of its epilogue's operands, so that one pattern fits any epilogue.
//! * What comes from outside the region is a leaf.

use egg::{DidMerge, EGraph, Id, Language};
use nnc_ir::{Op, ScalarFn, Tensor, Type, builder};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// An e-node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ENode {
    /// A value from outside the region, by its number.
    Leaf(u32),
    /// An operation with its attributes, by its number in [`Facts`].
    Attrs(u32),
    /// Operands of an epilogue.
    List(Box<[Id]>),
    /// Name and children of an operation.
    Op(&'static str, Box<[Id]>),
}

/// What must agree for two e-nodes to be the same but for their children.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Leaf(u32),
    Attrs(u32),
    List,
    Op(&'static str),
}

impl Language for ENode {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        match self {
            ENode::Leaf(i) => Kind::Leaf(*i),
            ENode::Attrs(i) => Kind::Attrs(*i),
            ENode::List(_) => Kind::List,
            ENode::Op(name, _) => Kind::Op(name),
        }
    }

    fn matches(&self, other: &ENode) -> bool {
        self.discriminant() == other.discriminant() && self.children().len() == other.children().len()
    }

    fn children(&self) -> &[Id] {
        match self {
            ENode::Leaf(_) | ENode::Attrs(_) => &[],
            ENode::List(c) | ENode::Op(_, c) => c,
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            ENode::Leaf(_) | ENode::Attrs(_) => &mut [],
            ENode::List(c) | ENode::Op(_, c) => c,
        }
    }
}

impl fmt::Display for ENode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ENode::Leaf(i) => write!(f, "${i}"),
            ENode::Attrs(i) => write!(f, "#{i}"),
            ENode::List(_) => f.write_str("list"),
            ENode::Op(name, _) => f.write_str(name),
        }
    }
}

impl egg::FromOp for ENode {
    type Error = String;

    fn from_op(op: &str, children: Vec<Id>) -> Result<ENode, String> {
        let name = Op::names().into_iter().find(|n| *n == op).ok_or_else(|| format!("no operation is called {op}"))?;
        Ok(ENode::Op(name, children.into()))
    }
}

/// What is known of an e-class.
#[derive(Clone, Debug)]
pub enum Fact {
    Value(Value),
    Attrs(u32),
    List(Box<[Id]>),
}

/// What is known of a class of values.
#[derive(Clone, Debug)]
pub struct Value {
    pub ty: Type,
    /// Follows from constants alone: costs nothing at run time.
    pub constant: bool,
    /// The one number that all elements are, where that is known.
    pub number: Option<f64>,
    /// Readers in the program as it was before rewriting; values that rules make have none.
    pub uses: u32,
}

/// The analysis: types, constants, and the operations that [`ENode::Attrs`] number.
#[derive(Default, Debug)]
pub struct Facts {
    ops: Vec<Op>,
    numbers: HashMap<Op, u32>,
    pub leaves: Vec<Value>,
    /// Matches that have been applied: (rule, class and variables).
    pub applied: HashSet<(usize, Vec<Id>)>,
}

pub type Graph = EGraph<ENode, Facts>;

impl Facts {
    pub fn op(&self, number: u32) -> &Op {
        &self.ops[number as usize]
    }

    fn intern(&mut self, op: Op) -> u32 {
        let next = self.ops.len() as u32;
        *self.numbers.entry(op.clone()).or_insert_with(|| {
            self.ops.push(op);
            next
        })
    }
}

/// Whether an operation has epilogue operands from position 2 on.
pub fn is_contraction(op: &Op) -> bool {
    matches!(op, Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_))
}

/// Whether `f(x, y) = f(y, x)` for the scalar function of this name.
pub fn is_commutative(name: &str) -> bool {
    matches!(name, "add" | "mul" | "max" | "min" | "equal" | "and" | "or" | "xor" | "bitwise_and" | "bitwise_or" | "bitwise_xor")
}

/// Adds an operation on classes. Where the order of two operands does not matter, the constant one comes second.
pub fn add(egraph: &mut Graph, op: &Op, operands: &[Id]) -> Id {
    let node = match op {
        Op::Map(f) if is_commutative(f.name()) && value(egraph, operands[0]).constant && !value(egraph, operands[1]).constant => {
            ENode::Op(f.name(), [operands[1], operands[0]].into())
        }
        Op::Map(f) => ENode::Op(f.name(), operands.into()),
        op => {
            let number = egraph.analysis.intern(op.clone());
            let mut children = vec![egraph.add(ENode::Attrs(number))];
            if is_contraction(op) {
                children.extend(&operands[..2]);
                children.push(egraph.add(ENode::List(operands[2..].into())));
            } else {
                children.extend(operands);
            }
            ENode::Op(op.name(), children.into())
        }
    };
    egraph.add(node)
}

/// The operation of an e-node and its operands' classes; `None` for what is no operation.
pub fn operation(egraph: &Graph, node: &ENode) -> Option<(Op, Vec<Id>)> {
    let ENode::Op(name, children) = node else { return None };
    if let Some(f) = ScalarFn::from_name(name) {
        return Some((Op::Map(f), children.to_vec()));
    }
    let Fact::Attrs(number) = &egraph[children[0]].data else { return None };
    let op = egraph.analysis.op(*number).clone();
    let mut operands = Vec::with_capacity(children.len());
    for c in &children[1..] {
        match &egraph[*c].data {
            Fact::List(items) => operands.extend(items.iter().copied()),
            _ => operands.push(*c),
        }
    }
    Some((op, operands))
}

/// What is known of a class that holds a value. Panics on attributes and lists, which patterns keep apart.
pub fn value(egraph: &Graph, id: Id) -> &Value {
    match &egraph[id].data {
        Fact::Value(v) => v,
        other => unreachable!("{other:?} is no value"),
    }
}

/// The number that all elements of a constant are.
pub fn number(t: &Tensor) -> Option<f64> {
    (t.elems() > 0 && (t.splat_element().is_some() || t.elems() == 1)).then(|| t.num(0).as_f64())
}

impl egg::Analysis<ENode> for Facts {
    type Data = Fact;

    fn make(egraph: &mut Graph, node: &ENode, _: Id) -> Fact {
        match node {
            ENode::Leaf(i) => Fact::Value(egraph.analysis.leaves[*i as usize].clone()),
            ENode::Attrs(number) => Fact::Attrs(*number),
            ENode::List(items) => Fact::List(items.clone()),
            ENode::Op(..) => {
                let (op, operands) = operation(egraph, node).expect("an operation");
                let types: Vec<Type> = operands.iter().map(|id| value(egraph, *id).ty.clone()).collect();
                // Rules and regions only hold what has been inferred before.
                let ty = builder::infer(&op, &types, &[]).expect("inferred before").remove(0);
                let number = match &op {
                    Op::Const(c) => number(&c.0),
                    Op::Reshape(_) | Op::Expand(_) => value(egraph, operands[0]).number,
                    Op::Map(ScalarFn::Neg) if ty.dtype.is_float() => value(egraph, operands[0]).number.map(|n| -n),
                    _ => None,
                };
                let constant = matches!(op, Op::Const(_)) || (!operands.is_empty() && operands.iter().all(|id| value(egraph, *id).constant));
                Fact::Value(Value { ty, constant, number, uses: 0 })
            }
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        let (Fact::Value(a), Fact::Value(b)) = (a, b) else { return DidMerge(false, false) };
        let before = (a.constant, a.number.is_some(), a.uses);
        let theirs = (b.constant, b.number.is_some(), b.uses);
        a.constant |= b.constant;
        a.number = a.number.or(b.number);
        a.uses += b.uses;
        let after = (a.constant, a.number.is_some(), a.uses);
        DidMerge(before != after, theirs != after)
    }
}
