//! Dimensions compiled to operations on values: straight-line code for a tiny machine, linear in the number of distinct terms.

use super::Ref;
use crate::abi;
use nnc_ir::dim::{Atom, Dim, DimNode};
use nnc_ir::kernel::Program;
use nnc_ir::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What an operation does with its operands `a` and `b` and its target `d`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Slot d = value a + value b; an overflow ends the run.
    Add,
    Mul,
    /// Floor division and its remainder; by zero they give 0 and a.
    FloorDiv,
    Mod,
    Max,
    Min,
    /// Slot d = dimension b of input a.
    Axis,
    /// Error d unless input a has rank b.
    Rank,
    /// Error d unless input a has the element type b.
    DType,
    /// Error d if value a is negative.
    NotNegative,
    /// Error d unless value a equals value b.
    Equal,
    /// Error d if input a has no data although value b, its number of elements, is not 0.
    Given,
}

pub const KINDS: [Kind; 12] = [
    Kind::Add,
    Kind::Mul,
    Kind::FloorDiv,
    Kind::Mod,
    Kind::Max,
    Kind::Min,
    Kind::Axis,
    Kind::Rank,
    Kind::DType,
    Kind::NotNegative,
    Kind::Equal,
    Kind::Given,
];

/// One operation: four 32-bit words in the table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Operation {
    pub kind: Kind,
    pub d: u32,
    pub a: u32,
    pub b: u32,
}

/// A run of operations, `start..end`.
#[derive(Clone, Copy, Default, Debug)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// Values and the operations that compute them.
#[derive(Default)]
pub struct Sizes {
    pub constants: Vec<i64>,
    constant_of: HashMap<i64, Ref>,
    pub slots: usize,
    pub operations: Vec<Operation>,
    computed: HashMap<(Kind, Ref, Ref), Ref>,
    symbols: BTreeMap<Arc<str>, Ref>,
    /// Where each bound symbol comes from, for messages.
    origins: HashMap<Arc<str>, String>,
    dims: HashMap<Dim, Ref>,
    /// Operations that follow from symbols which the run binds, and these: not to be executed before.
    late: Vec<(Operation, Vec<Arc<str>>)>,
    /// For each such symbol, which of them, ascending.
    bound: BTreeMap<Arc<str>, Vec<u32>>,
    /// Lists of them that stand in the table.
    spans: HashMap<Vec<u32>, Span>,
    /// For each slot, the run-time symbols that it depends on.
    depends: Vec<Vec<Arc<str>>>,
    /// Texts of the model's own error codes.
    pub texts: Vec<String>,
}

impl Sizes {
    pub fn constant(&mut self, v: i64) -> Ref {
        let next = Ref::constant(self.constants.len());
        let r = *self.constant_of.entry(v).or_insert(next);
        if r == next {
            self.constants.push(v);
        }
        r
    }

    fn slot(&mut self, depends: Vec<Arc<str>>) -> Ref {
        self.slots += 1;
        self.depends.push(depends);
        Ref::slot(self.slots - 1)
    }

    fn push(&mut self, kind: Kind, d: u32, a: u32, b: u32) {
        self.operations.push(Operation { kind, d, a, b });
    }

    fn depends(&self, r: Ref) -> &[Arc<str>] {
        if r.0 & 1 == 1 { &self.depends[(r.0 >> 1) as usize] } else { &[] }
    }

    fn compute(&mut self, kind: Kind, a: Ref, b: Ref) -> Ref {
        if let Some(r) = self.computed.get(&(kind, a, b)) {
            return *r;
        }
        let mut depends: Vec<Arc<str>> = self.depends(a).iter().chain(self.depends(b)).cloned().collect();
        depends.sort();
        depends.dedup();
        let r = self.slot(depends.clone());
        self.place(Operation { kind, d: r.0 >> 1, a: a.0, b: b.0 }, depends);
        self.computed.insert((kind, a, b), r);
        r
    }

    /// Puts an operation among those of the plan, or of the run where it depends on symbols that the run binds.
    fn place(&mut self, operation: Operation, depends: Vec<Arc<str>>) {
        if depends.is_empty() {
            return self.operations.push(operation);
        }
        for s in &depends {
            self.bound.entry(s.clone()).or_default().push(self.late.len() as u32);
        }
        self.late.push((operation, depends));
    }

    /// A new code of the model's own.
    fn error(&mut self, text: String) -> u32 {
        self.texts.push(text);
        abi::ERROR_FIRST_OWN as u32 + self.texts.len() as u32 - 1
    }

    /// The value of `dim`; an error names a symbol that nothing binds.
    pub fn dim(&mut self, dim: &Dim) -> Result<Ref> {
        let terms = match dim.node() {
            DimNode::Const(c) => return Ok(self.constant(c)),
            DimNode::Sum(terms) => terms,
        };
        if let Some(r) = self.dims.get(dim) {
            return Ok(*r);
        }
        let mut sum = None;
        for (c, atoms) in terms {
            let mut product = None;
            for a in atoms {
                let a = self.atom(a)?;
                product = Some(product.map_or(a, |p| self.compute(Kind::Mul, p, a)));
            }
            let c_ref = self.constant(c);
            let term = match product {
                None => c_ref,
                Some(p) if c == 1 => p,
                Some(p) => self.compute(Kind::Mul, p, c_ref),
            };
            sum = Some(sum.map_or(term, |s| self.compute(Kind::Add, s, term)));
        }
        let r = sum.unwrap_or_else(|| self.constant(0));
        self.dims.insert(dim.clone(), r);
        Ok(r)
    }

    fn atom(&mut self, a: &Atom) -> Result<Ref> {
        let (kind, x, y) = match a {
            Atom::Sym(s) => {
                return self
                    .symbols
                    .get(s)
                    .copied()
                    .ok_or_else(|| Error::internal(format!("the dimension `{s}` is no input's and nothing binds it")));
            }
            Atom::FloorDiv(x, y) => (Kind::FloorDiv, x, y),
            Atom::Mod(x, y) => (Kind::Mod, x, y),
            Atom::Max(x, y) => (Kind::Max, x, y),
            Atom::Min(x, y) => (Kind::Min, x, y),
            Atom::Stretch(x, y) => return self.dim(&Dim::stretch_formula(x, y)),
        };
        let (x, y) = (self.dim(x)?, self.dim(y)?);
        Ok(self.compute(kind, x, y))
    }

    /// A symbol that a step of the run binds: the slot that it is written to.
    pub fn bind(&mut self, symbol: &Arc<str>) -> Ref {
        if let Some(r) = self.symbols.get(symbol) {
            return *r;
        }
        let r = self.slot(vec![symbol.clone()]);
        self.symbols.insert(symbol.clone(), r);
        r
    }

    /// Whether the value is known only after a step of the run has bound a symbol.
    pub fn is_bound_late(&self, r: Ref) -> bool {
        !self.depends(r).is_empty()
    }

    /// Checks that a size is not negative. What only the run knows is checked where memory is taken for it.
    pub fn require_size(&mut self, dim: &Dim, what: impl FnOnce() -> String) -> Result<()> {
        let r = self.dim(dim)?;
        if self.is_bound_late(r) { Ok(()) } else { self.require_output(dim, what) }
    }

    /// Checks that a size is not negative, as soon as it is known.
    pub fn require_output(&mut self, dim: &Dim, what: impl FnOnce() -> String) -> Result<()> {
        if dim.as_const().is_some_and(|c| c >= 0) || dim.as_sym().is_some() {
            return Ok(());
        }
        let r = self.dim(dim)?;
        if self.computed.insert((Kind::NotNegative, r, r), r).is_none() {
            let code = self.error(what());
            let depends = self.depends(r).to_vec();
            self.place(Operation { kind: Kind::NotNegative, d: code, a: r.0, b: 0 }, depends);
        }
        Ok(())
    }

    /// Whether one of the dimensions is known only after a step of the run has bound a symbol.
    pub fn is_late(&mut self, dims: &[&Dim]) -> Result<bool> {
        let refs = dims.iter().map(|d| self.dim(d)).collect::<Result<Vec<Ref>>>()?;
        Ok(refs.into_iter().any(|r| self.is_bound_late(r)))
    }

    /// The operation that checks that `a` is `b`, or at most `b`; none where that is sure.
    pub fn relation(&mut self, a: &Dim, b: &Dim, at_most: bool, what: &str) -> Result<Option<Operation>> {
        if a == b {
            return Ok(None);
        }
        let (kind, a, b) = if at_most { (Kind::NotNegative, self.dim(&(b - a))?, Ref(0)) } else { (Kind::Equal, self.dim(a)?, self.dim(b)?) };
        Ok(Some(Operation { kind, d: self.error(what.into()), a: a.0, b: b.0 }))
    }

    /// Reads and checks the inputs' descriptions. Each axis that is one symbol binds it, the first time it occurs.
    pub fn inputs(&mut self, p: &Program) -> Result<()> {
        let label = |i: usize| format!("input {i} `{}`", p.inputs[i].name);
        for (i, port) in p.inputs.iter().enumerate() {
            let code = self.error(format!("{}: its rank is not {} (it is {})", label(i), port.ty.rank(), port.ty));
            let rank = self.constant(port.ty.rank() as i64);
            self.push(Kind::Rank, code, i as u32, rank.0);
            let code = self.error(format!("{}: its dtype is not {} ({})", label(i), port.ty.dtype.abi_code(), port.ty.dtype));
            let dtype = self.constant(port.ty.dtype.abi_code().into());
            self.push(Kind::DType, code, i as u32, dtype.0);
        }
        let mut late = vec![];
        for (i, port) in p.inputs.iter().enumerate() {
            for (axis, dim) in port.ty.shape.iter().enumerate() {
                let r = self.slot(vec![]);
                let axis_ref = self.constant(axis as i64);
                self.push(Kind::Axis, r.0 >> 1, i as u32, axis_ref.0);
                match dim.as_sym() {
                    Some(s) if !self.symbols.contains_key(s) => {
                        self.symbols.insert(s.clone(), r);
                        self.origins.insert(s.clone(), format!("axis {axis} of {}", label(i)));
                        let code = self.error(format!("{}: axis {axis} (`{s}`) is negative", label(i)));
                        self.push(Kind::NotNegative, code, r.0, 0);
                    }
                    _ => late.push((i, axis, dim, r)),
                }
            }
        }
        for (i, axis, dim, r) in late {
            let want = self.dim(dim)?;
            let text = match (dim, dim.as_sym().and_then(|s| Some((s, self.origins.get(s)?)))) {
                (_, Some((s, origin))) => format!("{}: axis {axis} differs from `{s}`, {origin}", label(i)),
                _ => format!("{}: axis {axis} is not {dim}", label(i)),
            };
            let code = self.error(text);
            self.push(Kind::Equal, code, r.0, want.0);
        }
        Ok(())
    }

    /// Checks that the inputs have data.
    pub fn inputs_given(&mut self, p: &Program) -> Result<()> {
        for (i, port) in p.inputs.iter().enumerate() {
            let elems = self.dim(&port.ty.elems())?;
            let code = self.error(format!("input {i} `{}`: no data is given", port.name));
            self.push(Kind::Given, code, i as u32, elems.0);
        }
        Ok(())
    }

    /// The operations that follow from `symbol` where the symbols `bound` have values; to be called when all dimensions are known.
    pub fn follow(&mut self, symbol: &Arc<str>, bound: &BTreeSet<Arc<str>>) -> Span {
        let ready = |i: &u32| self.late[*i as usize].1.iter().all(|s| bound.contains(s));
        let list: Vec<u32> = self.bound.get(symbol).into_iter().flatten().copied().filter(ready).collect();
        if let Some(span) = self.spans.get(&list) {
            return *span;
        }
        let start = self.operations.len() as u32;
        self.operations.extend(list.iter().map(|i| self.late[*i as usize].0));
        let span = Span { start, end: self.operations.len() as u32 };
        self.spans.insert(list, span);
        span
    }
}
