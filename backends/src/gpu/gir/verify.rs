//! What must hold of a kernel before it is printed: types, definitions before uses, stores to what is written, memory and threads that
//! the device has, and barriers, subgroup operations and ends of sets of copies only where all threads of a group come by.

use super::{Binary, Compare, Convert, Elem, Kernel, Op, Space, Stmt, Ty, Unary, Val};
use nnc_ir::target::Gpu;
use nnc_ir::{Error, Result};

/// The first thing that is wrong with the kernel.
pub fn verify(k: &Kernel, device: &Gpu) -> Result<()> {
    let copies = device.isa.is_nvidia();
    let matrices = copies && k.threads.is_multiple_of(32);
    let mut v = Verifier {
        k,
        matrices,
        copies,
        vector: device.vector_bytes,
        defined: vec![false; k.types.len()],
        uniform: vec![false; k.types.len()],
        in_scope: vec![],
    };
    let wrong = |what: String| Err(Error::internal(format!("GPU kernel {}: {what}", k.name)));
    if k.threads == 0 || k.threads > device.max_threads {
        return wrong(format!("{} threads in a group, {} are possible", k.threads, device.max_threads));
    }
    if k.shared_bytes() > u64::from(device.shared_bytes) {
        return wrong(format!("{} bytes of shared memory, there are {}", k.shared_bytes(), device.shared_bytes));
    }
    if k.buffers.len() > device.max_buffers as usize || k.scalars > device.scalar_bytes / 4 {
        return wrong(format!("{} buffers and {} scalars are too many", k.buffers.len(), k.scalars));
    }
    if k.cooperative.is_some() && k.cooperative != device.cooperative {
        return wrong("the device has no matrices of this shape".into());
    }
    let mut untyped = None;
    k.walk(&mut |s| s.defined(&mut |v| untyped = untyped.or((v.0 as usize >= k.types.len()).then_some(v))));
    if let Some(v) = untyped {
        return wrong(format!("{v} has no type"));
    }
    v.block(&k.body, true).or_else(wrong)
}

struct Verifier<'a> {
    k: &'a Kernel,
    /// Whether there are operations of matrices: subgroups of 32, all of them full.
    matrices: bool,
    /// Whether there are copies beside the threads.
    copies: bool,
    /// Bytes that are loaded or stored at once, at most.
    vector: u32,
    defined: Vec<bool>,
    /// Whether all threads of a group have the same value.
    uniform: Vec<bool>,
    /// What open regions have defined, to be forgotten at their ends.
    in_scope: Vec<Vec<Val>>,
}

type Check = std::result::Result<(), String>;

impl Verifier<'_> {
    fn used(&self, v: Val) -> Check {
        match self.defined.get(v.0 as usize) {
            Some(true) => Ok(()),
            _ => Err(format!("{v} is used where it is not defined")),
        }
    }

    fn typed(&self, v: Val, ty: Ty) -> Check {
        self.used(v)?;
        if self.k.ty(v) == ty { Ok(()) } else { Err(format!("{v} is {}, not {}", self.k.ty(v).name(), ty.name())) }
    }

    fn define(&mut self, v: Val, uniform: bool) -> Check {
        match self.defined.get_mut(v.0 as usize) {
            Some(d) if !*d => *d = true,
            _ => return Err(format!("{v} is defined twice")),
        }
        self.uniform[v.0 as usize] = uniform;
        if let Some(list) = self.in_scope.last_mut() {
            list.push(v);
        }
        Ok(())
    }

    /// Defines what differs from thread to thread.
    fn define_as(&mut self, v: Val, ty: Ty) -> Check {
        self.define(v, false)?;
        self.typed(v, ty)
    }

    fn is_uniform(&self, v: Val) -> bool {
        self.uniform[v.0 as usize]
    }

    /// A region; what it defines ends with it. `results` are checked while they are still visible.
    fn region(&mut self, body: &[Stmt], uniform: bool, results: &[(Val, Ty)]) -> Check {
        self.in_scope.push(vec![]);
        self.block(body, uniform)?;
        results.iter().try_for_each(|(v, ty)| self.typed(*v, *ty))?;
        self.close();
        Ok(())
    }

    fn close(&mut self) {
        for v in self.in_scope.pop().unwrap_or_default() {
            self.defined[v.0 as usize] = false;
        }
    }

    fn block(&mut self, body: &[Stmt], uniform: bool) -> Check {
        body.iter().try_for_each(|s| self.stmt(s, uniform))
    }

    fn place(&self, s: Space, index: Val) -> Check {
        let known = match s {
            Space::Global(i) => (i as usize) < self.k.buffers.len(),
            Space::Shared(i) => (i as usize) < self.k.shared.len(),
        };
        if !known {
            return Err(format!("there is no {s}"));
        }
        self.typed(index, Ty::I32)
    }

    /// An error where so many elements are not loaded or stored at once.
    fn vector(&self, s: Space, n: usize) -> Check {
        let fits = [2, 4].contains(&n) && n as u32 * self.k.elem(s).bytes() <= self.vector;
        if fits { Ok(()) } else { Err(format!("{n} elements of {s} at once")) }
    }

    /// An error where a buffer is only read.
    fn writes(&self, to: Space) -> Check {
        match to {
            Space::Global(i) if !self.k.buffers[i as usize].written => Err(format!("a store to {to}, which is only read")),
            _ => Ok(()),
        }
    }

    fn stmt(&mut self, s: &Stmt, uniform: bool) -> Check {
        let ty = |v: Val| self.k.ty(v);
        match s {
            Stmt::Let(v, op) => {
                op.operands().try_for_each(|a| self.used(a))?;
                let found = self.op(op)?;
                if self.k.types.get(v.0 as usize) != Some(&found) {
                    return Err(format!("{v} = {op} is {}", found.name()));
                }
                let of_matrices = found.is_matrix() && !matches!(op, Op::Const(..));
                if (of_matrices || matches!(op, Op::SubgroupFold(..) | Op::SubgroupXor(..))) && !uniform {
                    return Err(format!("{v} = {op} stands where not all threads of a group come by"));
                }
                let all = op.operands().all(|a| self.is_uniform(a));
                let same = !matches!(op, Op::Thread | Op::Lane | Op::Subgroup | Op::SubgroupFold(..) | Op::SubgroupXor(..)) && all;
                // Another thread may write between the loads of two threads.
                self.define(*v, same && !matches!(op, Op::Load { .. } | Op::LoadMatrix { .. }))
            }
            Stmt::Store { to, index, value } => {
                self.place(*to, *index)?;
                self.typed(*value, self.k.elem(*to).ty())?;
                self.writes(*to)
            }
            Stmt::LoadVector { values, from, index } => {
                self.place(*from, *index)?;
                self.vector(*from, values.len())?;
                values.iter().try_for_each(|v| self.define_as(*v, self.k.elem(*from).ty()))
            }
            Stmt::StoreVector { to, index, values } => {
                self.place(*to, *index)?;
                self.vector(*to, values.len())?;
                values.iter().try_for_each(|v| self.typed(*v, self.k.elem(*to).ty()))?;
                self.writes(*to)
            }
            Stmt::If { cond, then, otherwise, joined } => {
                self.typed(*cond, Ty::Bool)?;
                let inside = uniform && self.is_uniform(*cond);
                let side = |f: fn(&super::Joined) -> Val| joined.iter().map(|j| (f(j), ty(j.value))).collect::<Vec<_>>();
                let (a, b) = (side(|j| j.then), side(|j| j.otherwise));
                self.region(then, inside, &a)?;
                let of_then: Vec<bool> = joined.iter().map(|j| self.is_uniform(j.then)).collect();
                self.region(otherwise, inside, &b)?;
                for (j, then) in joined.iter().zip(of_then) {
                    self.define(j.value, then && self.is_uniform(j.otherwise) && self.is_uniform(*cond))?;
                }
                Ok(())
            }
            Stmt::For { index, lo, hi, carried, body } => {
                self.typed(*lo, ty(*index))?;
                self.typed(*hi, ty(*index))?;
                if !ty(*index).is_int() {
                    return Err(format!("the loop's index {index} is {}", ty(*index).name()));
                }
                carried.iter().try_for_each(|c| self.typed(c.first, ty(c.value)))?;
                // What is carried may differ from the second iteration on.
                carried.iter().try_for_each(|c| self.define(c.value, false))?;
                let same = uniform && self.is_uniform(*lo) && self.is_uniform(*hi);
                self.in_scope.push(vec![]);
                self.define(*index, same)?;
                let next: Vec<(Val, Ty)> = carried.iter().map(|c| (c.next, ty(c.value))).collect();
                self.region(body, same, &next)?;
                self.close();
                Ok(())
            }
            Stmt::While { carried, head, cond, body } => {
                carried.iter().try_for_each(|c| self.typed(c.first, ty(c.value)))?;
                carried.iter().try_for_each(|c| self.define(c.value, false))?;
                self.in_scope.push(vec![]);
                self.block(head, false)?;
                self.typed(*cond, Ty::Bool)?;
                let next: Vec<(Val, Ty)> = carried.iter().map(|c| (c.next, ty(c.value))).collect();
                self.region(body, false, &next)?;
                self.close();
                Ok(())
            }
            Stmt::LoadMatrices { .. } | Stmt::MultiplyMatrices { .. } if !self.matrices => Err("the device multiplies no matrices".into()),
            Stmt::LoadMatrices { .. } | Stmt::MultiplyMatrices { .. } if !uniform => {
                Err("an operation of matrices stands where not all threads of a group come by".into())
            }
            Stmt::LoadMatrices { values, from, index } => {
                self.place(*from, *index)?;
                if !matches!(from, Space::Shared(_)) || self.k.elem(*from) != Elem::I32 || ![1, 2, 4].contains(&values.len()) {
                    return Err(format!("{} matrices of {from}", values.len()));
                }
                values.iter().try_for_each(|v| self.define_as(*v, Ty::I32))
            }
            Stmt::MultiplyMatrices { words: _, values, a, b, c } => {
                a.iter().chain(b).try_for_each(|v| self.typed(*v, Ty::I32))?;
                c.iter().try_for_each(|v| self.typed(*v, Ty::F32))?;
                values.iter().try_for_each(|v| self.define_as(*v, Ty::F32))
            }
            Stmt::StoreMatrix { .. } if !uniform => Err("a matrix is stored where not all threads of a group come by".into()),
            Stmt::StoreMatrix { to, index, pitch: _, value } => {
                self.place(*to, *index)?;
                self.typed(*value, Ty::Sums)?;
                let shared = matches!(to, Space::Shared(_)) && self.k.elem(*to) == Elem::F32;
                if shared { Ok(()) } else { Err(format!("a matrix stored to {to}")) }
            }
            Stmt::Copy { .. } | Stmt::CloseCopies | Stmt::AwaitCopies { .. } if !self.copies => Err("the device has no copies beside threads".into()),
            Stmt::Copy { to, at, from, index, bytes, inside } => {
                self.place(*to, *at)?;
                self.place(*from, *index)?;
                let only_read = matches!(from, Space::Global(i) if !self.k.buffers[*i as usize].written);
                let whole = [*to, *from].iter().all(|s| bytes.is_multiple_of(self.k.elem(*s).bytes()));
                if !matches!(to, Space::Shared(_)) || !only_read || ![4, 8, 16].contains(bytes) || !whole {
                    return Err(format!("a copy of {bytes} bytes from {from} to {to}"));
                }
                inside.map_or(Ok(()), |i| self.typed(i, Ty::Bool))
            }
            // So that all threads count the same sets.
            Stmt::CloseCopies | Stmt::AwaitCopies { .. } if !uniform => Err("a set of copies ends where not all threads of a group come by".into()),
            Stmt::CloseCopies | Stmt::AwaitCopies { .. } => Ok(()),
            Stmt::Barrier if uniform => Ok(()),
            Stmt::Barrier => Err("a barrier stands where not all threads of a group come by".into()),
        }
    }

    /// The type of what an operation gives; an error where it does not take its operands.
    fn op(&self, op: &Op) -> std::result::Result<Ty, String> {
        let ty = |v: Val| self.k.ty(v);
        let fail = || Err(format!("{op} takes no operands of these types"));
        let ok = |fits: bool, out: Ty| if fits { Ok(out) } else { fail() };
        match *op {
            Op::Const(t, bits) if t.is_matrix() => ok(self.k.cooperative.is_some() && t == Ty::Sums && bits == 0, t),
            Op::Const(t, _) => Ok(t),
            Op::Subgroup => ok(self.k.cooperative.is_some(), Ty::I32),
            Op::LoadMatrix { matrix, from, index, pitch: _ } => {
                self.place(from, index)?;
                let shared = matches!(from, Space::Shared(_)) && self.k.elem(from) == Elem::I32;
                ok(self.k.cooperative.is_some() && [Ty::Left, Ty::Right].contains(&matrix) && shared, matrix)
            }
            Op::Scalar(i) => ok(i < self.k.scalars, Ty::I32),
            Op::Thread | Op::Group | Op::Groups | Op::Lane | Op::Lanes => Ok(Ty::I32),
            Op::Unary(Unary::Not, a) => ok(ty(a) == Ty::Bool || ty(a).is_int(), ty(a)),
            Op::Unary(_, a) => ok(ty(a).is_float(), ty(a)),
            Op::Binary(b, x, y) => {
                let t = ty(x);
                let fits = match b {
                    Binary::Add | Binary::Sub | Binary::Mul => t.is_number(),
                    Binary::Div => t.is_float(),
                    Binary::And | Binary::Or | Binary::Xor => t == Ty::Bool || t.is_int(),
                    Binary::DivS | Binary::DivU | Binary::RemS | Binary::RemU | Binary::Shl | Binary::ShrS | Binary::ShrU => t.is_int(),
                };
                ok(fits && t == ty(y), t)
            }
            Op::MulAdd(a, b, c) if ty(c).is_matrix() => ok([a, b, c].map(ty) == [Ty::Left, Ty::Right, Ty::Sums], ty(c)),
            Op::MulAdd(a, b, c) => ok(ty(a).is_float() && ty(a) == ty(b) && ty(b) == ty(c), ty(a)),
            Op::Compare(c, a, b) => {
                let fits = match c {
                    Compare::Eq | Compare::Ne => !ty(a).is_matrix(),
                    Compare::Lt | Compare::Le => ty(a).is_number(),
                    Compare::LtU | Compare::LeU => ty(a).is_int(),
                };
                ok(fits && ty(a) == ty(b), Ty::Bool)
            }
            Op::Tf32(a) => ok(self.matrices && ty(a) == Ty::F32, Ty::I32),
            Op::Pair(words, a, b) => ok(self.matrices && words.numbers() == 2 && ty(a) == Ty::F32 && ty(b) == Ty::F32, Ty::I32),
            Op::Select(c, a, b) => ok(ty(c) == Ty::Bool && ty(a) == ty(b) && !ty(a).is_matrix(), ty(a)),
            Op::Convert(c, to, a) => {
                let from = ty(a);
                let fits = match c {
                    Convert::ExtendS | Convert::ExtendU => from == Ty::I32 && to == Ty::I64,
                    Convert::Low => from == Ty::I64 && to == Ty::I32,
                    Convert::FromBool => from == Ty::Bool && to == Ty::I32,
                    Convert::FloatS | Convert::FloatU => from.is_int() && to.is_float(),
                    Convert::IntS | Convert::IntU => from.is_float() && to.is_int(),
                    Convert::Resize => from.is_float() && to.is_float() && from != to,
                    Convert::Bits => from.is_number() && to.is_number() && from.bits() == to.bits() && from != to,
                };
                ok(fits, to)
            }
            Op::Load { from, index } => {
                self.place(from, index)?;
                Ok(self.k.elem(from).ty())
            }
            Op::SubgroupFold(_, a) | Op::SubgroupXor(a, _) => ok(ty(a).is_number(), ty(a)),
        }
    }
}
