//! The program under construction: buffers, kernels without repetition, open lists of steps.

use super::loops::Loops;
use super::view::View;
use nnc_ir::dim::{Atom, DimNode};
use nnc_ir::error::{Error, Loc, Result};
use nnc_ir::kernel::{Access, Buffer, BufferId, BufferRef, Kernel, Launch, Place, Program, Step};
use nnc_ir::tensor::Tensor;
use nnc_ir::{DType, Dim, Type};
use rustc_hash::{FxHashMap, FxHasher};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Constants of one repeated element that are written out may take this many bytes.
const MAX_SPLAT_BYTES: usize = 1 << 30;
/// Alignment of weights, in bytes.
const ALIGN: u64 = 64;

/// Where a step comes from, for profiles and messages.
#[derive(Clone, Default)]
pub struct Site {
    pub name: Arc<str>,
    pub loc: Loc,
}

/// A kernel of the program and the sizes of a launch.
#[derive(Clone)]
pub struct Compiled {
    kernel: u32,
    sizes: Vec<Dim>,
}

#[derive(Default)]
pub struct Emitter {
    /// Scalar operations that are worth a task of their own.
    pub grain: i64,
    pub program: Program,
    kernels: FxHashMap<Kernel, u32>,
    /// Constants by a hash of a sample of their bytes.
    constants: FxHashMap<u64, Vec<(Tensor, BufferId)>>,
    weight_bytes: u64,
    /// Floating-point operations, and how many steps take that many.
    flops: BTreeMap<Dim, i64>,
    /// Operations of the node being lowered, which its first launch will tell of.
    untold: Option<Dim>,
    /// Open lists of steps, innermost last.
    steps: Vec<Vec<Step>>,
    /// Symbols that have a value where the next step runs.
    bound: BTreeSet<Arc<str>>,
    /// Upper bounds of symbols that the run binds, over symbols of the inputs.
    limits: BTreeMap<Arc<str>, Dim>,
}

impl Emitter {
    pub fn new(name: &Arc<str>, grain: i64) -> Emitter {
        let program = Program { name: name.clone(), ..Program::default() };
        Emitter { grain, program, steps: vec![vec![]], ..Emitter::default() }
    }

    pub fn buffer(&mut self, dtype: DType, elems: Dim, place: Place) -> BufferRef {
        self.program.buffers.push(Buffer { dtype, elems, place });
        whole(BufferId(self.program.buffers.len() as u32 - 1))
    }

    /// A buffer for a result: as large as it can become where that is known before the run, else as large as it is.
    pub fn work(&mut self, ty: &Type) -> BufferRef {
        let elems = self.limit(&ty.elems()).unwrap_or_else(|| ty.elems());
        self.buffer(ty.dtype, elems, Place::Unplanned)
    }

    /// Constant data. Equal constants share a buffer.
    pub fn weight(&mut self, t: &Tensor) -> Result<BufferRef> {
        if t.splat_element().is_some() && t.byte_len() > MAX_SPLAT_BYTES {
            return Err(Error::limit(format!("the constant {} would take {} bytes to write out", t.ty(), t.byte_len())));
        }
        let known = self.constants.entry(sample(t)).or_default();
        let same = |u: &Tensor| {
            let alike = u.dtype() == t.dtype() && u.byte_len() == t.byte_len();
            // What is still to be computed is not computed to be compared: equal expressions are one by now.
            alike && if u.is_made() || t.is_made() { u == t } else { u.bytes() == t.bytes() }
        };
        if let Some((_, id)) = known.iter().find(|(u, _)| same(u)) {
            return Ok(whole(*id));
        }
        let id = BufferId(self.program.buffers.len() as u32);
        known.push((t.clone(), id));
        let offset = self.weight_bytes;
        self.weight_bytes += (t.byte_len() as u64).next_multiple_of(ALIGN);
        self.program.buffers.push(Buffer { dtype: t.dtype(), elems: Dim::from(t.elems()), place: Place::Weight { offset } });
        self.program.weights.push((offset, t.clone()));
        Ok(whole(id))
    }

    /// Declares that a symbol has a value from here on, of at most `limit` where that is known.
    pub fn define(&mut self, symbol: &Arc<str>, limit: Option<Dim>) {
        self.bound.insert(symbol.clone());
        if let Some(l) = limit {
            self.limits.insert(symbol.clone(), l);
        }
    }

    /// What a symbol is at most, where that is known.
    pub fn limit_of(&self, symbol: &str) -> Option<Dim> {
        self.limits.get(symbol).cloned()
    }

    /// Replaces what a symbol is at most.
    pub fn set_limit(&mut self, symbol: &Arc<str>, limit: Option<Dim>) {
        match limit {
            Some(l) => self.limits.insert(symbol.clone(), l),
            None => self.limits.remove(symbol),
        };
    }

    /// Declares an input's symbol: known before the run.
    pub fn define_input(&mut self, symbol: &Arc<str>) {
        self.define(symbol, Some(Dim::sym(symbol)));
    }

    /// The least expression over input symbols that is known not to be below `d`.
    pub fn limit(&self, d: &Dim) -> Option<Dim> {
        let DimNode::Sum(terms) = d.node() else { return Some(d.clone()) };
        let mut sum = Dim::Const(0);
        for (c, atoms) in terms {
            let fixed = atoms.iter().all(|a| self.is_fixed_atom(a));
            // Sizes are not negative: what depends on the run and is subtracted may be nothing.
            if c < 0 && !fixed {
                continue;
            }
            let mut product = Dim::Const(c);
            for a in atoms {
                product = product * self.limit_of_atom(a)?;
            }
            sum = sum + product;
        }
        Some(sum)
    }

    /// Whether a dimension is known before the run.
    pub fn is_fixed(&self, d: &Dim) -> bool {
        let mut fixed = true;
        d.symbols(&mut |s| fixed &= self.limits.get(s).and_then(|l| l.as_sym()).is_some_and(|l| l == s));
        fixed
    }

    fn is_fixed_atom(&self, a: &Atom) -> bool {
        match a {
            Atom::Sym(s) => self.is_fixed(&Dim::sym(s)),
            Atom::FloorDiv(x, y) | Atom::Mod(x, y) | Atom::Max(x, y) | Atom::Min(x, y) | Atom::Stretch(x, y) => self.is_fixed(x) && self.is_fixed(y),
        }
    }

    fn limit_of_atom(&self, a: &Atom) -> Option<Dim> {
        if self.is_fixed_atom(a) {
            // A fixed atom as a dimension: an expression of one term.
            return Some(match a {
                Atom::Sym(s) => Dim::sym(s),
                Atom::FloorDiv(x, y) => x.floor_div(y),
                Atom::Mod(x, y) => x.modulo(y),
                Atom::Max(x, y) => x.maximum(y),
                Atom::Min(x, y) => x.minimum(y),
                Atom::Stretch(x, y) => x.stretch(y),
            });
        }
        match a {
            Atom::Sym(s) => self.limits.get(s).cloned(),
            Atom::FloorDiv(x, y) if y.as_const().is_some_and(|y| y > 0) => Some(self.limit(x)?.floor_div(y)),
            Atom::FloorDiv(x, _) => self.limit(x),
            Atom::Mod(_, y) => self.limit(y),
            Atom::Max(x, y) | Atom::Stretch(x, y) => Some(self.limit(x)?.maximum(&self.limit(y)?)),
            Atom::Min(x, y) => match (self.limit(x), self.limit(y)) {
                (Some(x), Some(y)) => Some(x.minimum(&y)),
                (x, y) => x.or(y),
            },
        }
    }

    /// An error where a size uses a symbol that has no value yet.
    fn check_bound(&self, sizes: &[Dim]) -> Result<()> {
        let mut missing = None;
        for d in sizes {
            d.symbols(&mut |s| {
                if !self.bound.contains(s) && missing.is_none() {
                    missing = Some(Error::unsupported(format!("the size {d} is not known where it is needed: nothing gives `{s}` a value before")));
                }
            });
        }
        missing.map_or(Ok(()), Err)
    }

    /// The number of a kernel, equal ones having the same, and what its sizes are.
    pub fn kernel(&mut self, k: Loops) -> Compiled {
        let (kernel, sizes) = k.finish();
        let next = self.kernels.len() as u32;
        Compiled { kernel: *self.kernels.entry(kernel).or_insert(next), sizes }
    }

    /// Launches a kernel on its operands and results, in order.
    pub fn launch(&mut self, site: &Site, k: Loops, buffers: Vec<BufferRef>) -> Result<()> {
        let compiled = self.kernel(k);
        self.launch_kernel(site, compiled, buffers)
    }

    pub fn launch_kernel(&mut self, site: &Site, Compiled { kernel, sizes }: Compiled, buffers: Vec<BufferRef>) -> Result<()> {
        self.check_bound(&sizes)?;
        let flops = self.untold.take().unwrap_or(Dim::Const(0));
        self.step(Step::Launch(Launch { kernel, buffers, sizes, flops, name: site.name.clone(), loc: site.loc.clone() }));
        Ok(())
    }

    /// Copies the `ty` at `from` to `to`.
    pub fn copy(&mut self, site: &Site, ty: &Type, from: BufferRef, to: BufferRef) -> Result<()> {
        let flat = ty.with_shape(vec![ty.elems()]);
        self.copy_views(site, &flat.shape, (&flat, View::dense(&flat.shape), from), (&flat, View::dense(&flat.shape), to), Access::Write)
    }

    /// Copies elements for each index of `dims`, from one view of a tensor to one of another.
    pub fn copy_views(
        &mut self,
        site: &Site,
        dims: &[Dim],
        from: (&Type, View, BufferRef),
        to: (&Type, View, BufferRef),
        access: Access,
    ) -> Result<()> {
        let mut k = Loops::new("copy", std::slice::from_ref(from.0), std::slice::from_ref(to.0), access, self.grain);
        let mut dims = dims.to_vec();
        let mut views = [from.1, to.1];
        super::view::collapse(&mut dims, &mut views);
        k.parallel(&dims, &views, 1, |k, _, at| {
            let v = k.load(0, at[0]);
            k.store(1, at[1], v);
        });
        self.launch(site, k, vec![from.2, to.2])
    }

    /// Declares the operations of the node whose launches follow.
    pub fn flops(&mut self, d: Dim) {
        if !d.is(0) {
            *self.flops.entry(d.clone()).or_insert(0) += 1;
        }
        self.untold = Some(d);
    }

    /// The symbols that have a value now.
    pub fn scope(&self) -> BTreeSet<Arc<str>> {
        self.bound.clone()
    }

    /// Forgets all but these; returns those that had one until now.
    pub fn restore(&mut self, scope: BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        std::mem::replace(&mut self.bound, scope)
    }

    /// Whether a dimension can be computed now.
    pub fn has_value(&self, d: &Dim) -> bool {
        let mut known = true;
        d.symbols(&mut |s| known &= self.bound.contains(s));
        known
    }

    pub fn is_bound(&self, symbol: &str) -> bool {
        self.bound.contains(symbol)
    }

    pub fn step(&mut self, s: Step) {
        self.steps.last_mut().expect("a list of steps is open").push(s);
    }

    pub fn begin(&mut self) {
        self.steps.push(vec![]);
    }

    pub fn end(&mut self) -> Vec<Step> {
        self.steps.pop().expect("a list of steps is open")
    }

    pub fn finish(mut self) -> Program {
        self.program.steps = self.end();
        self.program.flops = self.flops.into_iter().fold(Dim::Const(0), |sum, (d, n)| sum + d * Dim::Const(n));
        let mut kernels: Vec<(u32, Kernel)> = self.kernels.into_iter().map(|(k, i)| (i, k)).collect();
        kernels.sort_by_key(|(i, _)| *i);
        self.program.kernels = kernels
            .into_iter()
            .map(|(i, mut k)| {
                k.name = format!("{}_{i}", k.name).into();
                k
            })
            .collect();
        self.program
    }
}

pub fn whole(buffer: BufferId) -> BufferRef {
    BufferRef { buffer, offset: Dim::Const(0) }
}

pub fn shifted(r: &BufferRef, by: Dim) -> BufferRef {
    BufferRef { buffer: r.buffer, offset: r.offset.clone() + by }
}

/// A hash of a constant's type, length and some of its bytes: equal constants agree, others usually differ.
fn sample(t: &Tensor) -> u64 {
    let mut h = FxHasher::default();
    (t.dtype(), t.byte_len()).hash(&mut h);
    let n = if t.is_made() { 0 } else { t.elems() };
    for i in (0..n.min(64)).map(|i| i * (n / n.min(64))).chain(n.checked_sub(1)) {
        t.element(i).hash(&mut h);
    }
    h.finish()
}
