//! Kernels as SPIR-V 1.5 for Vulkan 1.2: words, written by hand.
//!
//! Buffer `i` of a kernel is a storage buffer at binding `i` of set 0, the scalars are 32-bit push constants. Names of entry points
//! are [`entry_name`]'s. A module asks for no more capabilities than its kernels use.

mod module;

use super::gir::{Binary, Carried, Compare, Convert, Elem, Fold, Kernel, Op, Space, Stmt, Ty, Unary, Val};
use module::{Id, Module, PointTo, Type};
use spirv::{BuiltIn, Capability, Decoration, GlslStd450Op as GLOp, GroupOperation, Op as O, Scope, StorageClass};
use std::collections::HashMap;

/// What kernel `i` of a module is called.
pub fn entry_name(i: usize, k: &Kernel) -> String {
    let name: String = k.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).take(80).collect();
    format!("k{i}_{name}")
}

/// One module that holds all these kernels, which have verified.
pub fn module(kernels: &[&Kernel]) -> Vec<u32> {
    let mut m = Module::new();
    for (i, k) in kernels.iter().enumerate() {
        Printer::print(&mut m, k, &entry_name(i, k));
    }
    m.finish()
}

struct Printer<'a> {
    m: &'a mut Module,
    k: &'a Kernel,
    /// The number of value 0; the others follow.
    first: Id,
    /// Constants have one number in the whole module.
    constants: HashMap<Val, Id>,
    buffers: Vec<Id>,
    shared: Vec<Id>,
    scalars: Option<Id>,
    builtins: HashMap<u32, Id>,
    /// The block that instructions go to.
    current: Id,
}

impl Printer<'_> {
    fn print(m: &mut Module, k: &Kernel, name: &str) {
        let first = m.ids(k.types.len());
        let mut p =
            Printer { m, k, first, constants: HashMap::new(), buffers: vec![], shared: vec![], scalars: None, builtins: HashMap::new(), current: 0 };
        p.globals();
        let (void, function_type) = (p.m.ty(Type::Void), p.m.ty(Type::Function));
        let function = p.m.id();
        p.m.code(O::Function, &[void, function, 0, function_type]);
        let start = p.m.id();
        p.label(start);
        p.block(&k.body);
        p.m.code(O::Return, &[]);
        p.m.code(O::FunctionEnd, &[]);
        let interface: Vec<Id> =
            p.buffers.iter().chain(&p.shared).chain(&p.scalars).copied().chain(sorted(&p.builtins).into_iter().map(|(_, id)| id)).collect();
        p.m.entry(function, name, k.threads, &interface);
    }

    fn globals(&mut self) {
        for (i, b) in self.k.buffers.iter().enumerate() {
            let v = self.m.variable(StorageClass::StorageBuffer, PointTo::Buffer(b.elem));
            self.m.decorate(v, Decoration::DescriptorSet, &[0]);
            self.m.decorate(v, Decoration::Binding, &[i as u32]);
            if !b.written {
                self.m.decorate(v, Decoration::NonWritable, &[]);
            }
            self.buffers.push(v);
        }
        for s in &self.k.shared {
            let v = self.m.variable(StorageClass::Workgroup, PointTo::Array(s.elem, s.len));
            self.shared.push(v);
        }
        if self.k.scalars > 0 {
            self.scalars = Some(self.m.variable(StorageClass::PushConstant, PointTo::Scalars(self.k.scalars)));
        }
    }

    /// A variable that the device fills.
    fn builtin(&mut self, b: BuiltIn, to: PointTo) -> Id {
        if let Some(v) = self.builtins.get(&(b as u32)) {
            return *v;
        }
        let v = self.m.variable(StorageClass::Input, to);
        self.m.decorate(v, Decoration::BuiltIn, &[b as u32]);
        self.builtins.insert(b as u32, v);
        v
    }

    fn id(&self, v: Val) -> Id {
        self.constants.get(&v).copied().unwrap_or(self.first + v.0)
    }

    fn ty(&mut self, v: Val) -> Id {
        self.m.value_type(self.k.ty(v))
    }

    fn label(&mut self, id: Id) {
        self.m.code(O::Label, &[id]);
        self.current = id;
    }

    fn jump(&mut self, to: Id) {
        self.m.code(O::Branch, &[to]);
    }

    fn block(&mut self, body: &[Stmt]) {
        body.iter().for_each(|s| self.stmt(s));
    }

    fn stmt(&mut self, s: &Stmt) {
        match s {
            Stmt::Let(v, Op::Const(ty, bits)) => {
                let id = self.m.constant(*ty, *bits);
                self.constants.insert(*v, id);
            }
            Stmt::Let(v, op) => self.value(*v, op),
            Stmt::Store { to, index, value } => {
                let at = self.place(*to, *index);
                let elem = self.k.elem(*to);
                let mut bits = self.id(*value);
                if elem.bytes() < 4 {
                    let (t, narrow) = (self.m.ty(Type::Memory(elem)), self.m.id());
                    self.m.code(O::UConvert, &[t, narrow, bits]);
                    bits = narrow;
                }
                self.m.code(O::Store, &[at, bits]);
            }
            Stmt::If { cond, then, otherwise, joined } => {
                let (a, b, join) = (self.m.id(), self.m.id(), self.m.id());
                self.m.code(O::SelectionMerge, &[join, 0]);
                self.m.code(O::BranchConditional, &[self.id(*cond), a, b]);
                let mut ends = vec![];
                for (label, body) in [(a, then), (b, otherwise)] {
                    self.label(label);
                    self.block(body);
                    ends.push(self.current);
                    self.jump(join);
                }
                self.label(join);
                for j in joined {
                    let t = self.ty(j.value);
                    self.m.code(O::Phi, &[t, self.id(j.value), self.id(j.then), ends[0], self.id(j.otherwise), ends[1]]);
                }
            }
            Stmt::For { index, lo, hi, carried, body } => {
                let t = self.ty(*index);
                let (next, more, bool) = (self.m.id(), self.m.id(), self.m.value_type(Ty::Bool));
                let one = self.m.constant(self.k.ty(*index), 1);
                let (index, lo, hi) = (self.id(*index), self.id(*lo), self.id(*hi));
                let phi = Some((t, index, lo, next));
                self.loop_(
                    phi,
                    carried,
                    |p| {
                        p.m.code(O::SLessThan, &[bool, more, index, hi]);
                        more
                    },
                    body,
                    |p| p.m.code(O::IAdd, &[t, next, index, one]),
                );
            }
            Stmt::While { carried, head, cond, body } => self.loop_(
                None,
                carried,
                |p| {
                    p.block(head);
                    p.id(*cond)
                },
                body,
                |_| {},
            ),
            // The verifier leaves none for devices that take SPIR-V.
            Stmt::LoadVector { .. }
            | Stmt::StoreVector { .. }
            | Stmt::LoadMatrices { .. }
            | Stmt::MultiplyMatrices { .. }
            | Stmt::Copy { .. }
            | Stmt::CloseCopies
            | Stmt::AwaitCopies { .. } => {}
            Stmt::Barrier => {
                // Acquire and release, of storage buffers and of the group's memory.
                let (scope, semantics) = (self.m.constant(Ty::I32, Scope::Workgroup as u64), self.m.constant(Ty::I32, 0x8 | 0x40 | 0x100));
                self.m.code(O::ControlBarrier, &[scope, scope, semantics]);
            }
        }
    }

    /// Blocks of a loop: a head of nothing but phis, the test, the body, what goes back, and where it ends.
    fn loop_(
        &mut self,
        index: Option<(Id, Id, Id, Id)>,
        carried: &[Carried],
        test: impl FnOnce(&mut Self) -> Id,
        body: &[Stmt],
        step: impl FnOnce(&mut Self),
    ) {
        let (head, ask, inner, back, end) = (self.m.id(), self.m.id(), self.m.id(), self.m.id(), self.m.id());
        let before = self.current;
        self.jump(head);
        self.label(head);
        if let Some((t, id, first, next)) = index {
            self.m.code(O::Phi, &[t, id, first, before, next, back]);
        }
        for c in carried {
            let t = self.ty(c.value);
            self.m.code(O::Phi, &[t, self.id(c.value), self.id(c.first), before, self.id(c.next), back]);
        }
        self.m.code(O::LoopMerge, &[end, back, 0]);
        self.jump(ask);
        self.label(ask);
        let cond = test(self);
        self.m.code(O::BranchConditional, &[cond, inner, end]);
        self.label(inner);
        self.block(body);
        self.jump(back);
        self.label(back);
        step(self);
        self.jump(head);
        self.label(end);
    }

    /// A pointer to an element.
    fn place(&mut self, s: Space, index: Val) -> Id {
        let elem = self.k.elem(s);
        let zero = self.m.constant(Ty::I32, 0);
        let (class, base, path) = match s {
            Space::Global(i) => (StorageClass::StorageBuffer, self.buffers[i as usize], vec![zero, self.id(index)]),
            Space::Shared(i) => (StorageClass::Workgroup, self.shared[i as usize], vec![self.id(index)]),
        };
        let t = self.m.ty(Type::Pointer(class, memory(elem)));
        let at = self.m.id();
        self.m.code(O::AccessChain, &[&[t, at, base], &path[..]].concat());
        at
    }

    fn input(&mut self, b: BuiltIn, axis: u32) -> Id {
        let v = self.builtin(b, PointTo::Vector);
        let (vector, whole, part, t) = (self.m.ty(Type::Vector), self.m.id(), self.m.id(), self.m.value_type(Ty::I32));
        self.m.code(O::Load, &[vector, whole, v]);
        self.m.code(O::CompositeExtract, &[t, part, whole, axis]);
        part
    }

    fn glsl(&mut self, v: Val, op: GLOp, operands: &[Val]) {
        let t = self.ty(v);
        let ids: Vec<Id> = operands.iter().map(|o| self.id(*o)).collect();
        self.m.code(O::ExtInst, &[&[t, self.id(v), self.m.glsl, op as u32], &ids[..]].concat());
    }

    fn plain(&mut self, v: Val, op: O, operands: &[Id]) {
        let t = self.ty(v);
        self.m.code(op, &[&[t, self.id(v)], operands].concat());
    }

    fn value(&mut self, v: Val, op: &Op) {
        let id = |p: &Self, v: Val| p.id(v);
        match *op {
            Op::Const(..) => {}
            Op::Scalar(i) => {
                let t = self.m.ty(Type::Pointer(StorageClass::PushConstant, PointTo::Value(Ty::I32)));
                let (at, member, base) = (self.m.id(), self.m.constant(Ty::I32, i.into()), self.scalars.unwrap_or_default());
                self.m.code(O::AccessChain, &[t, at, base, member]);
                self.plain(v, O::Load, &[at]);
            }
            Op::Thread => {
                let x = self.input(BuiltIn::LocalInvocationId, 0);
                self.plain(v, O::CopyObject, &[x]);
            }
            // The line of groups is folded into two axes.
            Op::Group => {
                let (x, y, width) = (self.input(BuiltIn::WorkgroupId, 0), self.input(BuiltIn::WorkgroupId, 1), self.input(BuiltIn::NumWorkgroups, 0));
                let (t, rows) = (self.m.value_type(Ty::I32), self.m.id());
                self.m.code(O::IMul, &[t, rows, y, width]);
                self.plain(v, O::IAdd, &[rows, x]);
            }
            Op::Groups => {
                let (x, y) = (self.input(BuiltIn::NumWorkgroups, 0), self.input(BuiltIn::NumWorkgroups, 1));
                self.plain(v, O::IMul, &[x, y]);
            }
            Op::Lane | Op::Lanes => {
                self.m.need(Capability::GroupNonUniform);
                let b = if *op == Op::Lane { BuiltIn::SubgroupLocalInvocationId } else { BuiltIn::SubgroupSize };
                let at = self.builtin(b, PointTo::Value(Ty::I32));
                self.plain(v, O::Load, &[at]);
            }
            Op::Unary(u, a) => self.unary(v, u, a),
            Op::Binary(b, x, y) => {
                let op = binary(b, self.k.ty(x));
                self.plain(v, op, &[id(self, x), id(self, y)]);
                // Results are the same on every device: what may be one rounding says so.
                if matches!(op, O::FAdd | O::FSub | O::FMul) {
                    self.m.decorate(self.id(v), Decoration::NoContraction, &[]);
                }
            }
            Op::MulAdd(a, b, c) => self.glsl(v, GLOp::Fma, &[a, b, c]),
            Op::Compare(c, a, b) => self.plain(v, compare(c, self.k.ty(a)), &[id(self, a), id(self, b)]),
            // The verifier leaves none for devices that take SPIR-V.
            Op::Pair(..) | Op::Tf32(_) => {}
            Op::Select(c, a, b) => self.plain(v, O::Select, &[id(self, c), id(self, a), id(self, b)]),
            Op::Convert(Convert::FromBool, _, a) => {
                let (one, zero) = (self.m.constant(Ty::I32, 1), self.m.constant(Ty::I32, 0));
                self.plain(v, O::Select, &[id(self, a), one, zero]);
            }
            Op::Convert(c, _, a) => self.plain(v, conversion(c), &[id(self, a)]),
            Op::Load { from, index } => {
                let at = self.place(from, index);
                let elem = self.k.elem(from);
                if elem.bytes() >= 4 {
                    return self.plain(v, O::Load, &[at]);
                }
                let (t, narrow) = (self.m.ty(Type::Memory(elem)), self.m.id());
                self.m.code(O::Load, &[t, narrow, at]);
                self.plain(v, if matches!(elem, Elem::I8 | Elem::I16) { O::SConvert } else { O::UConvert }, &[narrow]);
            }
            Op::SubgroupFold(f, a) => {
                self.m.need(Capability::GroupNonUniform);
                self.m.need(Capability::GroupNonUniformArithmetic);
                let scope = self.m.constant(Ty::I32, Scope::Subgroup as u64);
                self.plain(v, fold(f, self.k.ty(a)), &[scope, GroupOperation::Reduce as u32, id(self, a)]);
            }
            Op::SubgroupXor(a, mask) => {
                self.m.need(Capability::GroupNonUniform);
                self.m.need(Capability::GroupNonUniformShuffle);
                let (scope, mask) = (self.m.constant(Ty::I32, Scope::Subgroup as u64), self.m.constant(Ty::I32, mask.into()));
                self.plain(v, O::GroupNonUniformShuffleXor, &[scope, id(self, a), mask]);
            }
        }
    }

    fn unary(&mut self, v: Val, u: Unary, a: Val) {
        let x = self.id(a);
        match u {
            Unary::Neg => self.plain(v, O::FNegate, &[x]),
            Unary::Not if self.k.ty(a) == Ty::Bool => self.plain(v, O::LogicalNot, &[x]),
            Unary::Not => self.plain(v, O::Not, &[x]),
            Unary::Abs => self.glsl(v, GLOp::FAbs, &[a]),
            Unary::Sqrt => self.glsl(v, GLOp::Sqrt, &[a]),
            Unary::Floor => self.glsl(v, GLOp::Floor, &[a]),
            Unary::Ceil => self.glsl(v, GLOp::Ceil, &[a]),
            Unary::Round => self.glsl(v, GLOp::RoundEven, &[a]),
            Unary::Trunc => self.glsl(v, GLOp::Trunc, &[a]),
        }
    }
}

fn sorted(builtins: &HashMap<u32, Id>) -> Vec<(u32, Id)> {
    let mut out: Vec<(u32, Id)> = builtins.iter().map(|(b, id)| (*b, *id)).collect();
    out.sort_unstable();
    out
}

fn memory(e: Elem) -> PointTo {
    if e.bytes() < 4 { PointTo::Memory(e) } else { PointTo::Value(e.ty()) }
}

fn binary(b: Binary, ty: Ty) -> O {
    match (b, ty) {
        (Binary::Add, t) => {
            if t.is_float() {
                O::FAdd
            } else {
                O::IAdd
            }
        }
        (Binary::Sub, t) => {
            if t.is_float() {
                O::FSub
            } else {
                O::ISub
            }
        }
        (Binary::Mul, t) => {
            if t.is_float() {
                O::FMul
            } else {
                O::IMul
            }
        }
        (Binary::Div, _) => O::FDiv,
        (Binary::DivS, _) => O::SDiv,
        (Binary::DivU, _) => O::UDiv,
        (Binary::RemS, _) => O::SRem,
        (Binary::RemU, _) => O::UMod,
        (Binary::And, t) => {
            if t == Ty::Bool {
                O::LogicalAnd
            } else {
                O::BitwiseAnd
            }
        }
        (Binary::Or, t) => {
            if t == Ty::Bool {
                O::LogicalOr
            } else {
                O::BitwiseOr
            }
        }
        (Binary::Xor, t) => {
            if t == Ty::Bool {
                O::LogicalNotEqual
            } else {
                O::BitwiseXor
            }
        }
        (Binary::Shl, _) => O::ShiftLeftLogical,
        (Binary::ShrS, _) => O::ShiftRightArithmetic,
        (Binary::ShrU, _) => O::ShiftRightLogical,
    }
}

fn compare(c: Compare, ty: Ty) -> O {
    match (c, ty) {
        (Compare::Eq, Ty::Bool) => O::LogicalEqual,
        (Compare::Ne, Ty::Bool) => O::LogicalNotEqual,
        (Compare::Eq, t) => {
            if t.is_float() {
                O::FOrdEqual
            } else {
                O::IEqual
            }
        }
        (Compare::Ne, t) => {
            if t.is_float() {
                O::FUnordNotEqual
            } else {
                O::INotEqual
            }
        }
        (Compare::Lt, t) => {
            if t.is_float() {
                O::FOrdLessThan
            } else {
                O::SLessThan
            }
        }
        (Compare::Le, t) => {
            if t.is_float() {
                O::FOrdLessThanEqual
            } else {
                O::SLessThanEqual
            }
        }
        (Compare::LtU, _) => O::ULessThan,
        (Compare::LeU, _) => O::ULessThanEqual,
    }
}

fn conversion(c: Convert) -> O {
    match c {
        Convert::ExtendS => O::SConvert,
        Convert::ExtendU | Convert::Low | Convert::FromBool => O::UConvert,
        Convert::FloatS => O::ConvertSToF,
        Convert::FloatU => O::ConvertUToF,
        Convert::IntS => O::ConvertFToS,
        Convert::IntU => O::ConvertFToU,
        Convert::Resize => O::FConvert,
        Convert::Bits => O::Bitcast,
    }
}

fn fold(f: Fold, ty: Ty) -> O {
    match (f, ty.is_float()) {
        (Fold::Add, true) => O::GroupNonUniformFAdd,
        (Fold::Add, false) => O::GroupNonUniformIAdd,
        (Fold::Max, true) => O::GroupNonUniformFMax,
        (Fold::Max, false) => O::GroupNonUniformSMax,
        (Fold::Min, true) => O::GroupNonUniformFMin,
        (Fold::Min, false) => O::GroupNonUniformSMin,
    }
}
