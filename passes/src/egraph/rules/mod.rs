//! Rewrite rules, as rows.
//!
//! Laws: a rule never makes the program worse; there is no bare commutativity or associativity (patterns are matched under
//! commutation instead); what a rule needs beyond its pattern is asked of [`Match`]; a rule that changes rounding says so. Each has
//! a witness: a small program on which a test sees it fire and evaluates both sides.

mod algebra;
mod contract;
mod movement;
mod raise;

use super::lang::{self, ENode, Fact, Facts};
use crate::pass::Precision;
use egg::{Id, Language, Pattern, PatternAst, Rewrite, Subst, Symbol, Var};
use nnc_ir::ops::contract::Post;
use nnc_ir::{Builder, Op, ScalarFn, Tensor, V};
use std::cell::RefCell;
use std::sync::OnceLock;

/// How exact a rule is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// Both sides give the same numbers (zeros may differ in sign), or the rule folds constants as every precision allows.
    Same,
    /// Rounds otherwise: not with `--precision exact`.
    Other,
}

/// A rewrite rule.
pub struct Rule {
    pub name: &'static str,
    /// Patterns, any of which may match. `unary`, `binary` and `contract` in an operation's place stand for each of their kind.
    /// Commutative operations match both ways round, unless the second operand is a `?c..`: constants come second ([`lang::add`]).
    pub find: &'static [&'static str],
    /// The other side; `None` where it does not apply.
    pub make: for<'g> fn(&Match<'_, 'g>) -> Option<V<'g>>,
    pub rounding: Rounding,
    /// A program in which the rule applies.
    pub witness: for<'g> fn(&'g Builder) -> V<'g>,
}

/// A rule as egg runs it.
pub type Compiled = Rewrite<ENode, Facts>;

/// Rules that recognise composites which a model spells out.
pub const RAISE: &[&[Rule]] = &[algebra::RULES, raise::RULES];

/// Rules that simplify and fuse.
pub const SIMPLIFY: &[&[Rule]] = &[algebra::RULES, movement::RULES, contract::RULES];

/// The rules that `precision` allows, compiled.
pub fn compiled(raise: bool, precision: Precision) -> Vec<&'static Compiled> {
    static ALL: [OnceLock<Vec<(Rounding, Compiled)>>; 2] = [OnceLock::new(), OnceLock::new()];
    let tables = if raise { RAISE } else { SIMPLIFY };
    let all = ALL[usize::from(raise)].get_or_init(|| tables.iter().flat_map(|t| t.iter()).enumerate().flat_map(|(i, r)| r.compile(i)).collect());
    all.iter().filter(|(r, _)| *r == Rounding::Same || precision != Precision::Exact).map(|(_, r)| r).collect()
}

impl Rule {
    /// The rule as egg's rewrites: one for each pattern and each way to read it.
    pub fn compile(&'static self, index: usize) -> Vec<(Rounding, Compiled)> {
        let mut out = vec![];
        for (number, pattern) in self.find.iter().enumerate() {
            for (head, text) in heads(pattern) {
                let ast: PatternAst<ENode> = text.parse().unwrap_or_else(|e| panic!("rule {}: {text}: {e}", self.name));
                let root = match ast.last() {
                    Some(egg::ENodeOrVar::ENode(ENode::Op(name, _))) => *name,
                    _ => "",
                };
                for ast in commuted(&ast) {
                    let pattern = Pattern::new(ast);
                    let apply = Apply { rule: self, index, head, root, pattern: number, vars: pattern.vars() };
                    // egg wants distinct names.
                    let name = format!("{}.{}", self.name, out.len());
                    out.push((self.rounding, Rewrite::new(name, pattern, apply).expect("the right side has no variables")));
                }
            }
        }
        out
    }
}

/// Readings of a pattern with a class of operations in it: (the operation, the pattern).
fn heads(pattern: &str) -> Vec<(&'static str, String)> {
    let unary = || ScalarFn::ALL.iter().filter(|f| f.arity() == 1).map(|f| f.name()).collect::<Vec<_>>();
    let binary = || ScalarFn::ALL.iter().filter(|f| f.arity() == 2).map(|f| f.name()).collect::<Vec<_>>();
    let mut out = vec![("", pattern.to_string())];
    for (word, names) in [("(contract ", vec!["conv", "matmul", "conv_transpose"]), ("(unary ", unary()), ("(binary ", binary())] {
        if pattern.contains(word) {
            let each = |(head, text): (&'static str, String)| {
                names
                    .iter()
                    .map(move |n| (if head.is_empty() || word != "(contract " { *n } else { head }, text.replace(word, &format!("({n} "))))
                    .collect::<Vec<_>>()
            };
            out = out.into_iter().flat_map(each).collect();
        }
    }
    out
}

/// A pattern with the operands of its commutative operations both ways round.
fn commuted(ast: &PatternAst<ENode>) -> Vec<PatternAst<ENode>> {
    use egg::ENodeOrVar::{ENode as Node, Var};
    let is_constant = |id: Id| matches!(&ast[id], Var(v) if v.to_string().starts_with("?c"));
    let swaps: Vec<usize> = (0..ast.len())
        .filter(|i| match &ast[Id::from(*i)] {
            Node(ENode::Op(name, c)) => lang::is_commutative(name) && !is_constant(c[1]) && !same(ast, c[0], c[1]),
            _ => false,
        })
        .collect();
    (0..1usize << swaps.len())
        .map(|set| {
            let mut nodes: Vec<_> = ast.iter().cloned().collect();
            for (bit, at) in swaps.iter().enumerate() {
                if set >> bit & 1 == 1
                    && let Node(ENode::Op(_, c)) = &mut nodes[*at]
                {
                    c.swap(0, 1);
                }
            }
            nodes.into()
        })
        .collect()
}

/// Whether two parts of a pattern are the same. (Patterns are a few levels deep.)
fn same(ast: &PatternAst<ENode>, a: Id, b: Id) -> bool {
    match (&ast[a], &ast[b]) {
        (egg::ENodeOrVar::Var(a), egg::ENodeOrVar::Var(b)) => a == b,
        (egg::ENodeOrVar::ENode(a), egg::ENodeOrVar::ENode(b)) => {
            a.matches(b) && a.children().iter().zip(b.children()).all(|(a, b)| same(ast, *a, *b))
        }
        _ => false,
    }
}

/// A pattern's variables bound to classes, and a builder in which the other side is written.
pub struct Match<'m, 'g> {
    egraph: &'m lang::Graph,
    subst: &'m Subst,
    head: &'static str,
    root: &'static str,
    pattern: usize,
    pub b: &'g Builder,
    /// Classes that stand as inputs of the builder's graph, in order.
    inputs: RefCell<Vec<(Id, V<'g>)>>,
}

impl<'g> Match<'_, 'g> {
    fn id(&self, var: &str) -> Id {
        let var: Var = var.parse().expect("a variable");
        *self.subst.get(var).unwrap_or_else(|| panic!("{var} is not in the pattern"))
    }

    fn handle(&self, id: Id) -> V<'g> {
        let id = self.egraph.find(id);
        let known = self.inputs.borrow().iter().find(|(i, _)| *i == id).map(|(_, v)| *v);
        known.unwrap_or_else(|| {
            let v = self.b.input("", lang::value(self.egraph, id).ty.clone());
            self.inputs.borrow_mut().push((id, v));
            v
        })
    }

    fn fact(&self, v: V<'g>) -> Option<&lang::Value> {
        let inputs = self.inputs.borrow();
        let id = inputs.iter().find(|(_, i)| i.value() == v.value())?.0;
        drop(inputs);
        Some(lang::value(self.egraph, id))
    }

    /// The value of a variable.
    pub fn v(&self, var: &str) -> V<'g> {
        self.handle(self.id(var))
    }

    /// The operation of an attribute variable.
    pub fn op(&self, var: &str) -> &Op {
        match &self.egraph[self.id(var)].data {
            Fact::Attrs(n) => self.egraph.analysis.op(*n),
            _ => unreachable!("{var} is no attribute"),
        }
    }

    /// The values of a list variable.
    pub fn list(&self, var: &str) -> Vec<V<'g>> {
        match &self.egraph[self.id(var)].data {
            Fact::List(items) => items.iter().map(|i| self.handle(*i)).collect(),
            _ => unreachable!("{var} is no list"),
        }
    }

    /// The function that `unary` or `binary` was read as.
    pub fn function(&self) -> ScalarFn {
        ScalarFn::from_name(self.head).expect("the pattern has unary or binary in it")
    }

    /// The name of the operation at the pattern's root.
    pub fn root(&self) -> &'static str {
        self.root
    }

    /// Which of the rule's patterns matched.
    pub fn pattern(&self) -> usize {
        self.pattern
    }

    /// Whether the value follows from constants alone.
    pub fn constant(&self, v: V<'g>) -> bool {
        self.fact(v).is_some_and(|f| f.constant)
    }

    /// The number that all elements of a value are.
    pub fn number(&self, v: V<'g>) -> Option<f64> {
        self.fact(v)?.number
    }

    /// Whether the value is one number, up to rounding to f32.
    pub fn is_about(&self, v: V<'g>, x: f64) -> bool {
        self.number(v).is_some_and(|n| (n - x).abs() <= x.abs() * 1e-6)
    }

    /// Whether `(x + c) + d` may become `x + (c + d)`. Numbers join where they have one sign and their sum is exact: what is added for its
    /// rounding and taken away again must not cancel. Different numbers (a bias, a folded normalisation) join.
    pub fn shifts_join(&self, c: V<'g>, d: V<'g>) -> bool {
        self.number(c).zip(self.number(d)).is_none_or(|(p, q)| {
            let sum = p + q;
            p * q >= 0.0 && Tensor::scalar_of(c.ty().dtype, sum).num(0).as_f64() == sum
        })
    }

    /// Whether the operation on these variables has one reader at most, so that nobody misses its value.
    pub fn sole(&self, name: &'static str, vars: &[&str]) -> bool {
        let node = ENode::Op(name, vars.iter().map(|v| self.id(v)).collect());
        self.egraph.lookup(node).is_some_and(|id| lang::value(self.egraph, id).uses <= 1)
    }

    /// The contraction `(contract ?a ?x ?w ?p)` of the pattern, if it has one reader at most.
    pub fn contraction(&self) -> Option<Contraction<'g>> {
        let op = self.op("?a").clone();
        self.sole(op.name(), &["?a", "?x", "?w", "?p"]).then(|| Contraction {
            b: self.b,
            op,
            x: self.v("?x"),
            w: self.v("?w"),
            extra: self.list("?p"),
        })
    }
}

/// A matched contraction.
pub struct Contraction<'g> {
    b: &'g Builder,
    pub op: Op,
    pub x: V<'g>,
    pub w: V<'g>,
    /// Operands of the epilogue.
    pub extra: Vec<V<'g>>,
}

impl<'g> Contraction<'g> {
    pub fn post(&self) -> &[Post] {
        match &self.op {
            Op::MatMul(m) => &m.post,
            Op::Conv(c) => &c.post,
            Op::ConvTranspose(c) => &c.post,
            _ => &[],
        }
    }

    pub fn post_mut(&mut self) -> &mut Vec<Post> {
        match &mut self.op {
            Op::MatMul(m) => &mut m.post,
            Op::Conv(c) => &mut c.post,
            Op::ConvTranspose(c) => &mut c.post,
            op => unreachable!("{} is no contraction", op.name()),
        }
    }

    /// One step more.
    pub fn then(mut self, post: Post, operand: Option<V<'g>>) -> V<'g> {
        self.post_mut().push(post);
        self.extra.extend(operand);
        self.build()
    }

    pub fn build(self) -> V<'g> {
        let x: Vec<V> = [self.x, self.w].into_iter().chain(self.extra).collect();
        self.b.op(self.op, &x)
    }
}

/// The right side of a rule as egg sees it.
struct Apply {
    rule: &'static Rule,
    index: usize,
    head: &'static str,
    root: &'static str,
    pattern: usize,
    vars: Vec<Var>,
}

impl egg::Applier<ENode, Facts> for Apply {
    fn apply_one(&self, egraph: &mut lang::Graph, class: Id, subst: &Subst, _: Option<&PatternAst<ENode>>, name: Symbol) -> Vec<Id> {
        let class = egraph.find(class);
        let ids = std::iter::once(class).chain(self.vars.iter().map(|v| egraph.find(subst[*v]))).collect();
        if !egraph.analysis.applied.insert((self.index, ids)) {
            return vec![];
        }
        let b = Builder::new("");
        let m = Match { egraph, subst, head: self.head, root: self.root, pattern: self.pattern, b: &b, inputs: RefCell::default() };
        let Some(y) = (self.rule.make)(&m).filter(|y| !y.is_poison()) else { return vec![] };
        // Both sides must have one type: a rule whose other side broadcasts otherwise does not apply.
        if y.ty() != lang::value(egraph, class).ty {
            return vec![];
        }
        b.output("", y);
        let inputs: Vec<Id> = m.inputs.into_inner().into_iter().map(|(id, _)| id).collect();
        let Ok(graph) = b.finish() else { return vec![] };
        let new = super::add_graph(egraph, &graph, &inputs)[0];
        if egraph.union_trusted(class, new, name) { vec![egraph.find(class)] } else { vec![] }
    }
}
