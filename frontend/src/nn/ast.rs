//! The syntax tree of `.nn` text. Depth is bounded by the parser, so that walking it by recursion is safe.

use super::lex::Pos;
use nnc_ir::DType;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Name {
    pub pos: Pos,
    pub text: Arc<str>,
    /// Stood in backticks: `_0` is then a name like any other.
    pub quoted: bool,
}

#[derive(Default, Debug)]
pub struct File {
    pub globals: Vec<(Name, Expr)>,
    pub modules: Vec<Module>,
    pub trains: Vec<Train>,
}

/// How a model is trained: `train on MODULE as NAME { ... }`.
#[derive(Debug)]
pub struct Train {
    pub pos: Pos,
    /// Modules and what their instances are called.
    pub models: Vec<(Name, Name)>,
    pub items: Vec<Item>,
}

#[derive(Debug)]
pub enum Item {
    Stmt(Stmt),
    Data(Box<Data>),
    /// `measure name = expr`: one number a sample, averaged.
    Measure(Name, Expr),
    /// `update PATTERN with OPTIMISER`.
    Update(Update),
    /// `schedule name = shape`: a number that changes from step to step.
    Schedule(Name, Expr),
    Clip {
        pos: Pos,
        global: bool,
        bound: Expr,
    },
    /// `phase name { loss = ..; update .. }`: what stands behind it sees the parameters that it has updated.
    Phase {
        name: Name,
        items: Vec<Item>,
    },
    Steps(Expr),
    Epochs(Expr),
    /// `checkpoint every n`: activations are kept every n layers, and computed again between them.
    Checkpoint(Expr),
}

/// `data (names) = loader(files) batch N shuffle seed N`, or `test ...`.
#[derive(Debug)]
pub struct Data {
    pub pos: Pos,
    pub test: bool,
    pub names: Vec<Name>,
    pub loader: Name,
    pub files: Vec<Arc<str>>,
    /// The first sample, and one behind the last.
    pub rows: Option<(Expr, Expr)>,
    pub batch: Option<Expr>,
    pub shuffle: bool,
    pub seed: Option<Expr>,
    /// The first tensor's images are mirrored, each with probability 1/2.
    pub flip: bool,
    /// ... are moved by up to so many pixels.
    pub crop: Option<Expr>,
    /// Bytes of a sample of text.
    pub length: Option<Expr>,
}

#[derive(Debug)]
pub struct Update {
    pub pos: Pos,
    /// A path in which `*` stands for anything.
    pub pattern: String,
    pub optimizer: Name,
    pub args: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
}

#[derive(Debug)]
pub struct Module {
    pub name: Name,
    /// Hyper-parameters; `None` where there is no list of them.
    pub hyper: Option<Vec<Hyper>>,
    pub body: Body,
}

#[derive(Debug)]
pub struct Hyper {
    pub name: Name,
    pub default: Option<Expr>,
}

/// What a module and a region have in common.
#[derive(Debug)]
pub struct Body {
    pub pos: Pos,
    pub inputs: Vec<Input>,
    pub results: Option<Vec<ResultDecl>>,
    pub block: Vec<Stmt>,
}

#[derive(Debug)]
pub struct Input {
    pub name: Name,
    pub ty: Option<TypeExpr>,
}

#[derive(Debug)]
pub struct ResultDecl {
    pub name: Option<Name>,
    pub ty: TypeExpr,
}

#[derive(Debug)]
pub struct TypeExpr {
    pub pos: Pos,
    pub dtype: DType,
    pub dims: Vec<Expr>,
}

#[derive(Debug)]
pub enum Stmt {
    Assign {
        targets: Vec<Target>,
        value: Expr,
    },
    Return {
        pos: Pos,
        values: Vec<Expr>,
    },
    If {
        arms: Vec<(Expr, Vec<Stmt>)>,
        otherwise: Vec<Stmt>,
    },
    For {
        var: Name,
        lo: Expr,
        hi: Expr,
        body: Vec<Stmt>,
    },
    /// `repeat n { ... }`: a loop that stays one.
    Repeat {
        pos: Pos,
        count: Expr,
        body: Vec<Stmt>,
    },
    /// `name := expr`: what a `state` is from the next step on. Says nothing outside training.
    Become {
        name: Name,
        value: Expr,
    },
}

/// Names that statements assign, those of the blocks in them included, in the order of the text.
pub fn assigned(block: &[Stmt]) -> Vec<&Name> {
    let mut out = vec![];
    let mut todo: Vec<&Stmt> = block.iter().rev().collect();
    while let Some(s) = todo.pop() {
        match s {
            Stmt::Assign { targets, .. } => out.extend(targets.iter().map(|t| &t.name)),
            Stmt::If { arms, otherwise } => {
                todo.extend(otherwise.iter().rev());
                todo.extend(arms.iter().rev().flat_map(|(_, block)| block.iter().rev()));
            }
            Stmt::For { body, .. } | Stmt::Repeat { body, .. } => todo.extend(body.iter().rev()),
            Stmt::Return { .. } | Stmt::Become { .. } => {}
        }
    }
    out
}

#[derive(Debug)]
pub struct Target {
    pub name: Name,
    pub ty: Option<TypeExpr>,
}

#[derive(Debug)]
pub struct Expr {
    pub pos: Pos,
    pub kind: ExprKind,
}

#[derive(Debug)]
pub enum ExprKind {
    /// As it stands in the text.
    Num(String),
    Str(Arc<str>),
    Bool(bool),
    None,
    Inf,
    Nan,
    Name(Name),
    List(Vec<Expr>),
    Unary(Unary, Box<Expr>),
    /// Operators of one precedence, from left to right.
    Chain(Box<Expr>, Vec<(Binary, Pos, Expr)>),
    Call(Box<Call>),
    Index(Box<Expr>, Box<Expr>),
    Field(Box<Expr>, Name),
    Param(Box<Param>),
    Literal(Box<Literal>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unary {
    Neg,
    Not,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    And,
    Or,
}

#[derive(Debug)]
pub struct Call {
    pub callee: Expr,
    pub args: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    pub regions: Vec<Body>,
}

/// `param [shape] ~ init`, `state [shape] ~ init`.
#[derive(Debug)]
pub struct Param {
    /// Trained (`param`), or only kept (`state`).
    pub trained: bool,
    pub ty: TypeExpr,
    pub init: Expr,
}

/// A constant tensor: its type, then its elements.
#[derive(Debug)]
pub struct Literal {
    pub ty: TypeExpr,
    pub data: Elements,
}

#[derive(Debug)]
pub enum Elements {
    /// All elements are this one.
    Splat(String),
    /// In row-major order, each as it stands in the text.
    List(Vec<String>),
    /// Printed as a hash: the text does not hold them.
    Elided(String),
}
