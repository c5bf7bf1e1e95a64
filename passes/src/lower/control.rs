//! Control flow: regions become nested lists of steps, carried values live in buffers.
//!
//! A length that an iteration changes is a symbol that is bound anew by each; the buffers that it sizes grow with it.

use super::loops::Loops;
use super::program::{Site, shifted};
use super::view::View;
use super::{Frame, Lowering};
use nnc_ir::error::{Error, Result};
use nnc_ir::graph::{Graph, NodeId};
use nnc_ir::kernel::{Access, BufferRef, Fault, Step};
use nnc_ir::ops::control::{Loop, Scan};
use nnc_ir::{DType, Dim, ScalarFn, Type};
use std::sync::Arc;

/// Trip counts beyond this many say that there is no limit.
const ENDLESS: i64 = 1 << 31;

/// How often a loop runs at most.
enum Trips {
    Buffer(BufferRef),
    Size(Dim),
}

fn scalar(dtype: DType) -> Type {
    Type::new(dtype, vec![])
}

/// The counter of a loop and whether it goes on, both in buffers.
struct Counter {
    trips: Trips,
    iteration: BufferRef,
    go: BufferRef,
}

/// A value that goes from one iteration to the next.
struct Carried {
    at: BufferRef,
    /// Symbols of its lengths at the begin of an iteration, and what they become.
    lengths: Vec<(Arc<str>, Dim)>,
    /// Lengths after an iteration, and what they must be.
    same: Vec<(Dim, Dim)>,
    /// Symbols that are bound to the given lengths before the first iteration.
    own: Vec<Arc<str>>,
}

/// Results collected as rows of one buffer.
struct Stack {
    at: BufferRef,
    ty: Type,
}

impl Lowering {
    pub(super) fn if_(&mut self, frame: &mut Frame, id: NodeId) -> Result<()> {
        let node = frame.graph.node(id);
        let cond = self.operand(frame, node.operands[0])?;
        let captures = node.operands[1..].iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        let results = (0..node.types.len()).map(|i| self.result(frame, id, i)).collect::<Result<Vec<_>>>()?;
        // Lengths that each branch binds: the limit is the larger one of theirs.
        let mut own: Vec<Arc<str>> = vec![];
        node.types.iter().flat_map(|t| &t.shape).filter_map(Dim::as_sym).for_each(|s| own.extend((!self.out.is_bound(s)).then(|| s.clone())));
        let mut branches = vec![];
        let mut limits: Vec<Vec<Option<Dim>>> = vec![];
        for region in &node.regions {
            self.out.begin();
            self.takes(region, 0, node.operands[1..].iter().map(|v| frame.graph.ty(*v).shape.as_slice()));
            self.region(region, &captures, &results);
            branches.push(self.out.end());
            limits.push(own.iter().map(|s| self.out.limit_of(s)).collect());
        }
        let [then, otherwise] = <[_; 2]>::try_from(branches).map_err(|_| Error::internal("if has two regions"))?;
        for (i, s) in own.iter().enumerate() {
            let limit = limits[0][i].clone().zip(limits[1][i].clone()).map(|(a, b)| a.maximum(&b));
            self.out.set_limit(s, limit);
        }
        self.out.step(Step::If { cond, then, otherwise });
        Ok(())
    }

    pub(super) fn loop_(&mut self, frame: &mut Frame, id: NodeId, op: &Loop) -> Result<()> {
        let node = frame.graph.node(id);
        let region = &node.regions[0];
        let types: Vec<Type> = node.operands.iter().map(|v| frame.graph.ty(*v).clone()).collect();
        let operands = node.operands.iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        let captures = &operands[2 + op.carried..];
        let site = self.site.clone();
        let known = frame.graph.known(node.operands[0]).and_then(|k| k.first()).filter(|n| n.as_const().is_none_or(|n| n < ENDLESS));
        let limit = known.and_then(|n| self.out.limit(&n.maximum(&Dim::Const(0))));

        let given = 2..2 + op.carried;
        let carried = self.carried(frame, id, (region, 1), &operands[given.clone()], &types[given])?;
        let captured = &types[2 + op.carried..];
        let own_rows = self.lengths_of_rows(&site, &node.types[op.carried..])?;
        // Without a limit there is room for one row more than there are: rows are counted as they come.
        let counted = op.trips.as_sym().filter(|s| limit.is_none() && !self.out.is_bound(s));
        let rows = counted.map(|_| op.trips.clone() + Dim::Const(1)).or_else(|| limit.clone()).unwrap_or_else(|| op.trips.clone());
        let stacks: Vec<Stack> = node.types[op.carried..]
            .iter()
            .map(|t| {
                let ty = t.with_shape(std::iter::once(rows.clone()).chain(t.shape[1..].iter().cloned()).collect());
                Stack { at: self.out.work(&ty), ty }
            })
            .collect();
        let counter = self.start(&site, Trips::Buffer(operands[0].clone()), Some(operands[1].clone()))?;

        self.out.begin();
        if let Some(symbol) = counted {
            self.out.step(Step::Bind { symbol: symbol.clone(), from: counter.iteration.clone() });
            self.out.define(symbol, None);
        }
        let args: Vec<BufferRef> = std::iter::once(&counter.iteration).chain(carried.iter().map(|c| &c.at)).chain(captures).cloned().collect();
        let next: Vec<BufferRef> = region.outputs.iter().map(|o| self.out.work(region.ty(o.value))).collect();
        self.takes(region, 1 + op.carried, captured.iter().map(|t| t.shape.as_slice()));
        self.region(region, &args, &next);
        let results: Vec<(&Type, BufferRef)> = region.outputs.iter().map(|o| region.ty(o.value)).zip(next.clone()).collect();
        self.carry_on(&site, &carried, &results[1..])?;
        self.same_rows(&site, &counter.iteration, own_rows)?;
        for (stack, row) in stacks.iter().zip(&results[1 + op.carried..]) {
            self.put_row(&site, &counter.iteration, row.clone(), (&stack.ty, stack.at.clone()))?;
        }
        self.advance(&site, &counter, Some(next[0].clone()))?;
        let body = self.out.end();
        self.out.step(Step::While { cond: counter.go, body });

        if let Some(symbol) = op.trips.as_sym().filter(|s| counted.is_some() || !self.out.is_bound(s)) {
            self.out.step(Step::Bind { symbol: symbol.clone(), from: counter.iteration });
            self.out.define(symbol, limit);
        }
        for (i, stack) in stacks.into_iter().enumerate() {
            frame.set(id, op.carried + i, stack.at);
        }
        Ok(())
    }

    pub(super) fn scan(&mut self, frame: &mut Frame, id: NodeId, op: &Scan) -> Result<()> {
        let node = frame.graph.node(id);
        let region = &node.regions[0];
        let types: Vec<Type> = node.operands.iter().map(|v| frame.graph.ty(*v).clone()).collect();
        let operands = node.operands.iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        let site = self.site.clone();
        let trips = types[op.states].shape[0].clone();

        let states = self.carried(frame, id, (region, 0), &operands[..op.states], &types[..op.states])?;
        let own_rows = self.lengths_of_rows(&site, &node.types[op.states..])?;
        let stacks = (op.states..node.types.len()).map(|i| self.result(frame, id, i)).collect::<Result<Vec<_>>>()?;
        let counter = self.start(&site, Trips::Size(trips.clone()), None)?;

        self.out.begin();
        // Slices are where the row begins, in what is scanned and in what is collected.
        let symbol: Arc<str> = format!("iteration{}", counter.iteration.buffer.0).into();
        self.out.step(Step::Bind { symbol: symbol.clone(), from: counter.iteration.clone() });
        let most = self.out.limit(&trips);
        self.out.define(&symbol, most);
        let i = Dim::sym(&symbol);
        let row = if op.reverse { trips - Dim::Const(1) - i } else { i };
        let slice = |at: &BufferRef, ty: &Type| shifted(at, row.clone() * Dim::product(&ty.shape[1..]));
        let scanned = (op.states..op.states + op.scanned).map(|i| slice(&operands[i], &types[i]));
        let args: Vec<BufferRef> =
            states.iter().map(|s| s.at.clone()).chain(scanned).chain(operands[op.states + op.scanned..].iter().cloned()).collect();
        let next: Vec<BufferRef> = region
            .outputs
            .iter()
            .enumerate()
            .map(|(i, o)| match stacks.get(i.wrapping_sub(op.states)) {
                Some(stack) => slice(stack, &node.types[i]),
                None => self.out.work(region.ty(o.value)),
            })
            .collect();
        let scanned = types[op.states..].iter().enumerate().map(|(i, t)| if i < op.scanned { &t.shape[1..] } else { t.shape.as_slice() });
        self.takes(region, op.states, scanned);
        self.region(region, &args, &next);
        let results: Vec<(&Type, BufferRef)> = region.outputs.iter().map(|o| region.ty(o.value)).zip(next).collect();
        self.carry_on(&site, &states, &results)?;
        self.same_rows(&site, &counter.iteration, own_rows)?;
        self.advance(&site, &counter, None)?;
        let body = self.out.end();
        self.out.step(Step::While { cond: counter.go, body });
        Ok(())
    }

    /// Carried values, which are the node's first results, with their initial contents. The region's values from input and output
    /// `first` on are theirs. A length that changes from one iteration to the next is a symbol of the region, bound here to what is
    /// given.
    fn carried(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        (region, first): (&Graph, usize),
        given: &[BufferRef],
        types: &[Type],
    ) -> Result<Vec<Carried>> {
        let site = self.site.clone();
        let inside = |i: usize| (&region.node(region.inputs[first + i]).types[0], region.ty(region.outputs[first + i].value));
        let mut open: Vec<(Arc<str>, Dim)> = vec![];
        for (i, ty) in types.iter().enumerate() {
            let (enters, leaves) = inside(i);
            for (d, value) in enters.shape.iter().zip(&ty.shape).chain(leaves.shape.iter().zip(&ty.shape)) {
                if let Some(s) = d.as_sym().filter(|s| !self.out.is_bound(s) && open.iter().all(|(o, _)| o != *s)) {
                    open.push((s.clone(), value.clone()));
                }
            }
        }
        self.bind(&site, &open)?;
        let mut out = vec![];
        for (i, (from, ty)) in given.iter().zip(types).enumerate() {
            let (enters, leaves) = inside(i);
            let lengths = enters.shape.iter().zip(&leaves.shape).filter_map(|(d, next)| {
                let s = d.as_sym().filter(|s| open.iter().any(|(o, _)| o == *s))?;
                Some((s.clone(), next.clone()))
            });
            let lengths: Vec<(Arc<str>, Dim)> = lengths.collect();
            // All other lengths stay: what cannot be compared now is checked, the body's where there is an iteration.
            let rebound = |d: &Dim| d.as_sym().is_some_and(|s| lengths.iter().any(|(l, _)| l == s));
            let (mut before, mut after) = (vec![], vec![]);
            for ((given, d), next) in ty.shape.iter().zip(&enters.shape).zip(&leaves.shape).filter(|((_, d), _)| !rebound(d)) {
                before.extend((given != d).then(|| (given.clone(), d.clone())));
                after.extend((next != d).then(|| (next.clone(), d.clone())));
            }
            let never = |(a, b): &(Dim, Dim)| a.as_const().is_some() && b.as_const().is_some();
            if before.iter().chain(&after).any(never) || !enters.shape.iter().all(|d| self.out.has_value(d)) {
                return Err(Error::unsupported(format!(
                    "a carried value must keep its shape: it is {ty} before, {enters} in and {leaves} after the body"
                )));
            }
            self.same_lengths(&before);
            let at = if lengths.is_empty() {
                self.result(frame, id, i)?
            } else {
                let at = self.out.work(enters);
                frame.set(id, i, at.clone());
                at
            };
            self.out.copy(&site, ty, from.clone(), at.clone())?;
            out.push(Carried { at, lengths, same: after, own: open.iter().map(|(s, _)| s.clone()).collect() });
        }
        Ok(out)
    }

    /// Checks that a carried value keeps lengths.
    fn same_lengths(&mut self, pairs: &[(Dim, Dim)]) {
        for (a, b) in pairs {
            let what = format!("`{}` needs {a} to be equal to {b}: a value that it carries keeps its shape", self.site.name).into();
            self.out.step(Step::Check { a: a.clone(), b: b.clone(), at_most: false, what });
        }
    }

    /// Checks that a region gets values of the shapes that it takes from input `first` on.
    fn takes<'a>(&mut self, region: &Graph, first: usize, given: impl Iterator<Item = &'a [Dim]>) {
        for (id, given) in region.inputs[first..].iter().zip(given) {
            for (a, b) in given.iter().zip(&region.node(*id).types[0].shape).filter(|(a, b)| a != b) {
                // A symbol of the region's own is whatever it gets.
                if self.out.has_value(a) && self.out.has_value(b) {
                    let what = format!("`{}` needs {a} to be equal to {b}: its region takes values of that length", self.site.name).into();
                    self.out.step(Step::Check { a: a.clone(), b: b.clone(), at_most: false, what });
                }
            }
        }
    }

    /// Carried values become what the iteration gave.
    fn carry_on(&mut self, site: &Site, carried: &[Carried], results: &[(&Type, BufferRef)]) -> Result<()> {
        carried.iter().for_each(|c| self.same_lengths(&c.same));
        let lengths: Vec<(Arc<str>, Dim)> = carried.iter().flat_map(|c| c.lengths.iter().cloned()).collect();
        self.bind(site, &lengths)?;
        for (c, (ty, next)) in carried.iter().zip(results) {
            // Where there is no iteration the lengths are those that were given: what limits an iteration's does not hold.
            ty.shape.iter().filter_map(Dim::as_sym).filter(|s| c.own.contains(s)).for_each(|s| self.out.set_limit(s, None));
            self.out.copy(site, ty, next.clone(), c.at.clone())?;
        }
        Ok(())
    }

    /// Gives symbols their values, all of which are computed first.
    fn bind(&mut self, site: &Site, values: &[(Arc<str>, Dim)]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let ty = Type::new(DType::I64, vec![Dim::from(values.len())]);
        let at = self.out.work(&ty);
        let mut k = Loops::new("lengths", &[], std::slice::from_ref(&ty), Access::Write, self.out.grain);
        for (i, (_, d)) in values.iter().enumerate() {
            let (i, v) = (k.int(i as i64), k.size(d));
            k.store(0, i, v);
        }
        self.out.launch(site, k, vec![at.clone()])?;
        for (i, (symbol, _)) in values.iter().enumerate() {
            self.out.step(Step::Bind { symbol: symbol.clone(), from: shifted(&at, Dim::from(i)) });
            self.out.define(symbol, None);
        }
        Ok(())
    }

    /// Lengths of collected results, beside their number, that only an iteration knows: 0 where there is none.
    fn lengths_of_rows(&mut self, site: &Site, stacks: &[Type]) -> Result<Vec<Dim>> {
        let mut open: Vec<(Arc<str>, Dim)> = vec![];
        for s in stacks.iter().flat_map(|t| &t.shape[1..]).filter_map(Dim::as_sym) {
            if !self.out.is_bound(s) && open.iter().all(|(o, _)| o != s) {
                open.push((s.clone(), Dim::Const(0)));
            }
        }
        self.bind(site, &open)?;
        Ok(open.into_iter().map(|(s, _)| Dim::sym(s)).collect())
    }

    /// An error of the run where these lengths are not what they were in the first iteration.
    fn same_rows(&mut self, site: &Site, iteration: &BufferRef, lengths: Vec<Dim>) -> Result<()> {
        if lengths.is_empty() {
            return Ok(());
        }
        let ty = Type::new(DType::I64, vec![Dim::from(lengths.len())]);
        let seen = self.out.work(&ty);
        let mut k = Loops::new("same_rows", &[scalar(DType::I64)], std::slice::from_ref(&ty), Access::ReadWrite, self.out.grain);
        let zero = k.int(0);
        let i = k.load(0, zero);
        let first = k.map(ScalarFn::Equal, &[i, zero]);
        for (i, d) in lengths.iter().enumerate() {
            let (i, v) = (k.int(i as i64), k.size(d));
            k.when(first, |k| k.store(1, i, v));
            let old = k.load(1, i);
            let equal = k.map(ScalarFn::Equal, &[old, v]);
            let differs = k.map(ScalarFn::Not, &[equal]);
            k.when(differs, |k| k.fail(Fault::Size));
        }
        self.out.launch(site, k, vec![iteration.clone(), seen])
    }

    /// Lowers a region with its results in `targets`. Of what it binds, the lengths of its results stay known.
    fn region(&mut self, region: &Graph, args: &[BufferRef], targets: &[BufferRef]) {
        let (site, scope) = (self.site.clone(), self.out.scope());
        self.graph(region, args, targets);
        let inside = self.out.restore(scope);
        for d in region.outputs.iter().flat_map(|o| &region.ty(o.value).shape) {
            d.symbols(&mut |s| {
                if inside.contains(s) {
                    self.out.define(s, None);
                }
            });
        }
        self.site = site;
    }

    /// Iteration 0; the loop goes on where the condition (if any) holds and there is one trip at least.
    fn start(&mut self, site: &Site, trips: Trips, cond: Option<BufferRef>) -> Result<Counter> {
        let (iteration, go) = (self.out.work(&scalar(DType::I64)), self.out.work(&scalar(DType::Bool)));
        let counter = Counter { trips, iteration, go };
        self.count(site, &counter, cond, "loop_start", |k, _| k.int(0), Access::Write)?;
        Ok(counter)
    }

    fn advance(&mut self, site: &Site, counter: &Counter, cond: Option<BufferRef>) -> Result<()> {
        let next = |k: &mut Loops, iteration: u32| {
            let zero = k.int(0);
            let (old, one) = (k.load(iteration, zero), k.int(1));
            k.add(old, one)
        };
        self.count(site, counter, cond, "loop_next", next, Access::ReadWrite)
    }

    fn count(
        &mut self,
        site: &Site,
        counter: &Counter,
        cond: Option<BufferRef>,
        name: &str,
        next: impl FnOnce(&mut Loops, u32) -> nnc_ir::kernel::ExprId,
        access: Access,
    ) -> Result<()> {
        let (mut x, mut buffers) = (vec![], vec![]);
        if let Trips::Buffer(b) = &counter.trips {
            x.push(scalar(DType::I64));
            buffers.push(b.clone());
        }
        if let Some(c) = cond.clone() {
            x.push(scalar(DType::Bool));
            buffers.push(c);
        }
        let mut k = Loops::new(name, &x, &[scalar(DType::I64), scalar(DType::Bool)], access, self.out.grain);
        let (iteration, go) = (k.result(0), k.result(1));
        let zero = k.int(0);
        let i = next(&mut k, iteration);
        let i = k.bind(i);
        let trips = match &counter.trips {
            Trips::Buffer(_) => k.load(0, zero),
            Trips::Size(d) => k.size(d),
        };
        let mut on = k.map(ScalarFn::Less, &[i, trips]);
        if cond.is_some() {
            let c = k.load(x.len() as u32 - 1, zero);
            on = k.map(ScalarFn::And, &[on, c]);
        }
        k.store(iteration, zero, i);
        k.store(go, zero, on);
        buffers.extend([counter.iteration.clone(), counter.go.clone()]);
        self.out.launch(site, k, buffers)
    }

    /// Copies a whole tensor to the row of `to` that the iteration says.
    fn put_row(&mut self, site: &Site, iteration: &BufferRef, from: (&Type, BufferRef), to: (&Type, BufferRef)) -> Result<()> {
        let row = from.0.elems();
        let mut k = Loops::new("put_row", &[from.0.clone(), scalar(DType::I64)], std::slice::from_ref(to.0), Access::ReadWrite, self.out.grain);
        let result = k.result(0);
        k.parallel(std::slice::from_ref(&row), &[View::dense(std::slice::from_ref(&row))], 1, |k, _, at| {
            let zero = k.int(0);
            let i = k.load(1, zero);
            let size = k.size(&row);
            let by = k.mul(i, size);
            let inside = k.add(by, at[0]);
            let v = k.load(0, at[0]);
            k.store(result, inside, v);
        });
        self.out.launch(site, k, vec![from.1, iteration.clone(), to.1])
    }
}
