//! Control flow: regions become nested lists of steps, carried values live in buffers.

use super::loops::Loops;
use super::program::Site;
use super::view::View;
use super::{Frame, Lowering};
use nnc_ir::error::{Error, Result};
use nnc_ir::graph::{Graph, NodeId};
use nnc_ir::kernel::{Access, BufferRef, Step};
use nnc_ir::ops::control::{Loop, Scan};
use nnc_ir::{DType, Dim, ScalarFn, Type};

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

impl Lowering {
    pub(super) fn if_(&mut self, frame: &mut Frame, id: NodeId) -> Result<()> {
        let node = frame.graph.node(id);
        let cond = self.operand(frame, node.operands[0])?;
        let captures = node.operands[1..].iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        let results = (0..node.types.len()).map(|i| self.result(frame, id, i)).collect::<Result<Vec<_>>>()?;
        let mut branch = |region: &Graph| {
            self.out.begin();
            self.region(region, &captures, &results);
            self.out.end()
        };
        let (then, otherwise) = (branch(&node.regions[0]), branch(&node.regions[1]));
        self.out.step(Step::If { cond, then, otherwise });
        Ok(())
    }

    pub(super) fn loop_(&mut self, frame: &mut Frame, id: NodeId, op: &Loop) -> Result<()> {
        let node = frame.graph.node(id);
        let region = &node.regions[0];
        let operands = node.operands.iter().map(|v| self.operand(frame, *v)).collect::<Result<Vec<_>>>()?;
        let (initial, captures) = operands[2..].split_at(op.carried);
        let site = self.site.clone();
        let known = frame.graph.known(node.operands[0]).and_then(|k| k.first()).filter(|n| n.as_const().is_none_or(|n| n < ENDLESS));
        let limit = known.and_then(|n| self.out.limit(&n.maximum(&Dim::Const(0))));

        let carried = self.carried(
            frame,
            id,
            region,
            1,
            initial,
            &node.operands[2..2 + op.carried].iter().map(|v| frame.graph.ty(*v).clone()).collect::<Vec<_>>(),
        )?;
        let collected = node.types[op.carried..]
            .iter()
            .map(|t| {
                let rows = limit.clone().ok_or_else(|| {
                    Error::unsupported("a loop that collects results needs a trip count that is known before the run: nnc sizes its memory before")
                })?;
                let ty = t.with_shape(std::iter::once(rows).chain(t.shape[1..].iter().cloned()).collect());
                Ok((self.out.work(&ty)?, ty))
            })
            .collect::<Result<Vec<_>>>()?;
        let counter = self.start(&site, Trips::Buffer(operands[0].clone()), Some(operands[1].clone()))?;

        self.out.begin();
        let args = [std::slice::from_ref(&counter.iteration), &carried[..], captures].concat();
        let next = region.outputs.iter().map(|o| self.out.work(region.ty(o.value))).collect::<Result<Vec<_>>>()?;
        self.region(region, &args, &next);
        for (i, c) in carried.iter().enumerate() {
            self.out.copy(&site, region.ty(region.outputs[1 + i].value), next[1 + i].clone(), c.clone())?;
        }
        for (i, (stack, ty)) in collected.iter().enumerate() {
            let row = 1 + op.carried + i;
            self.put_row(&site, &counter.iteration, None, (region.ty(region.outputs[row].value), next[row].clone()), (ty, stack.clone()))?;
        }
        self.advance(&site, &counter, Some(next[0].clone()))?;
        let body = self.out.end();
        self.out.step(Step::While { cond: counter.go, body });

        if let Some(symbol) = op.trips.as_sym() {
            self.out.step(Step::Bind { symbol: symbol.clone(), from: counter.iteration });
            self.out.define(symbol, limit);
        }
        for (i, (stack, _)) in collected.into_iter().enumerate() {
            frame.set(id, op.carried + i, stack);
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
        let last = op.reverse.then(|| trips.clone() - Dim::Const(1));

        let states = self.carried(frame, id, region, 0, &operands[..op.states], &types[..op.states])?;
        let stacks = (op.states..node.types.len()).map(|i| self.result(frame, id, i)).collect::<Result<Vec<_>>>()?;
        let counter = self.start(&site, Trips::Size(trips), None)?;

        self.out.begin();
        let mut slices = vec![];
        for i in op.states..op.states + op.scanned {
            let ty = types[i].with_shape(types[i].shape[1..].to_vec());
            let slice = self.out.work(&ty)?;
            self.get_row(&site, &counter.iteration, last.as_ref(), (&types[i], operands[i].clone()), (&ty, slice.clone()))?;
            slices.push(slice);
        }
        let args = [&states[..], &slices, &operands[op.states + op.scanned..]].concat();
        let next = region.outputs.iter().map(|o| self.out.work(region.ty(o.value))).collect::<Result<Vec<_>>>()?;
        self.region(region, &args, &next);
        for (i, s) in states.iter().enumerate() {
            self.out.copy(&site, region.ty(region.outputs[i].value), next[i].clone(), s.clone())?;
        }
        for (i, stack) in stacks.iter().enumerate() {
            let row = op.states + i;
            let from = (region.ty(region.outputs[row].value), next[row].clone());
            self.put_row(&site, &counter.iteration, last.as_ref(), from, (&node.types[row], stack.clone()))?;
        }
        self.advance(&site, &counter, None)?;
        let body = self.out.end();
        self.out.step(Step::While { cond: counter.go, body });
        Ok(())
    }

    /// Buffers of carried values, which are the node's first results, with the initial values in them. The region's values from
    /// input and output `first` on are theirs.
    fn carried(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        region: &Graph,
        first: usize,
        initial: &[BufferRef],
        types: &[Type],
    ) -> Result<Vec<BufferRef>> {
        let mut out = vec![];
        for (i, (from, ty)) in initial.iter().zip(types).enumerate() {
            let (enters, leaves) = (&region.node(region.inputs[first + i]).types[0], region.ty(region.outputs[first + i].value));
            if enters.elems() != ty.elems() || leaves.elems() != ty.elems() {
                return Err(Error::unsupported(format!(
                    "a carried value must keep its shape: it is {ty} before, {enters} in and {leaves} after the body"
                )));
            }
            let to = self.result(frame, id, i)?;
            let site = self.site.clone();
            self.out.copy(&site, ty, from.clone(), to.clone())?;
            out.push(to);
        }
        Ok(out)
    }

    /// Lowers a region with its results in `targets`. What it binds is not known outside.
    fn region(&mut self, region: &Graph, args: &[BufferRef], targets: &[BufferRef]) {
        let (site, scope) = (self.site.clone(), self.out.scope());
        self.graph(region, args, targets);
        self.out.restore(scope);
        self.site = site;
    }

    /// Iteration 0; the loop goes on where the condition (if any) holds and there is one trip at least.
    fn start(&mut self, site: &Site, trips: Trips, cond: Option<BufferRef>) -> Result<Counter> {
        let (iteration, go) = (self.out.work(&scalar(DType::I64))?, self.out.work(&scalar(DType::Bool))?);
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
        let mut k = Loops::new(name, &x, &[scalar(DType::I64), scalar(DType::Bool)], access);
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

    /// Copies a whole tensor to the row of `to` that the iteration says; `last` minus it where given.
    fn put_row(&mut self, site: &Site, iteration: &BufferRef, last: Option<&Dim>, from: (&Type, BufferRef), to: (&Type, BufferRef)) -> Result<()> {
        self.row(site, "put_row", iteration, last, from, to, false)
    }

    /// Copies a row of `from` to a whole tensor.
    fn get_row(&mut self, site: &Site, iteration: &BufferRef, last: Option<&Dim>, from: (&Type, BufferRef), to: (&Type, BufferRef)) -> Result<()> {
        self.row(site, "get_row", iteration, last, from, to, true)
    }

    #[allow(clippy::too_many_arguments)]
    fn row(
        &mut self,
        site: &Site,
        name: &str,
        iteration: &BufferRef,
        last: Option<&Dim>,
        from: (&Type, BufferRef),
        to: (&Type, BufferRef),
        get: bool,
    ) -> Result<()> {
        let row = if get { to.0.elems() } else { from.0.elems() };
        let access = if get { Access::Write } else { Access::ReadWrite };
        let mut k = Loops::new(name, &[from.0.clone(), scalar(DType::I64)], std::slice::from_ref(to.0), access);
        let result = k.result(0);
        k.parallel(std::slice::from_ref(&row), &[View::dense(std::slice::from_ref(&row))], 1, |k, _, at| {
            let zero = k.int(0);
            let mut i = k.load(1, zero);
            if let Some(last) = last {
                let last = k.size(last);
                i = k.sub(last, i);
            }
            let size = k.size(&row);
            let by = k.mul(i, size);
            let inside = k.add(by, at[0]);
            let (read, write) = if get { (inside, at[0]) } else { (at[0], inside) };
            let v = k.load(0, read);
            k.store(result, write, v);
        });
        self.out.launch(site, k, vec![from.1, iteration.clone(), to.1])
    }
}
