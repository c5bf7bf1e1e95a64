//! Kernels as SPIR-V 1.5 for Vulkan 1.2, by rspirv's builder.
//!
//! Buffer `i` of a kernel is a storage buffer at binding `i` of set 0, the scalars are 32-bit push constants. Names of entry points
//! are [`entry_name`]'s. A module asks for no more capabilities than its kernels use.

mod module;

use super::gir::{Binary, Carried, Compare, Convert, Elem, Fold, Kernel, Op, Space, Stmt, Ty, Unary, Val};
use module::Module;
use nnc_ir::Error;
use rspirv::dr::{self, InsertPoint, Instruction, Operand};
use rspirv::spirv::{
    BuiltIn, Capability, CooperativeMatrixLayout, Decoration, FunctionControl, GlslStd450Op as GLOp, GroupOperation, LoopControl, MemoryAccess,
    MemorySemantics, Op as O, Scope, SelectionControl, StorageClass, Word,
};
use std::collections::BTreeMap;

/// What the builder refuses: instructions outside of blocks, blocks outside of functions.
type Result<T> = std::result::Result<T, dr::Error>;

/// What kernel `i` of a module is called.
pub fn entry_name(i: usize, k: &Kernel) -> String {
    let name: String = k.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).take(80).collect();
    format!("k{i}_{name}")
}

/// One module that holds all these kernels, which have verified.
pub fn module(kernels: &[&Kernel]) -> nnc_ir::Result<Vec<u32>> {
    let mut m = Module::new(kernels.iter().any(|k| k.cooperative.is_some()));
    for (i, k) in kernels.iter().enumerate() {
        Printer::print(&mut m, k, &entry_name(i, k)).map_err(|e| Error::internal(format!("kernel {} as SPIR-V: {e}", k.name)))?;
    }
    Ok(m.finish())
}

struct Printer<'a> {
    m: &'a mut Module,
    k: &'a Kernel,
    /// By value; constants have one number in the whole module.
    values: Vec<Word>,
    buffers: Vec<Word>,
    shared: Vec<Word>,
    scalars: Option<Word>,
    builtins: BTreeMap<BuiltIn, Word>,
    /// The block that instructions go to.
    current: Word,
}

impl Printer<'_> {
    fn print(m: &mut Module, k: &Kernel, name: &str) -> Result<()> {
        m.cooperative = k.cooperative;
        let values = k.types.iter().map(|_| m.b.id()).collect();
        let mut p = Printer { m, k, values, buffers: vec![], shared: vec![], scalars: None, builtins: BTreeMap::new(), current: 0 };
        p.globals();
        let void = p.m.b.type_void();
        let of = p.m.b.type_function(void, []);
        let function = p.m.b.begin_function(void, None, FunctionControl::NONE, of)?;
        let start = p.m.b.id();
        p.label(start)?;
        p.block(&k.body)?;
        p.m.b.ret()?;
        p.m.b.end_function()?;
        let interface: Vec<Word> = p.buffers.iter().chain(&p.shared).chain(&p.scalars).chain(p.builtins.values()).copied().collect();
        p.m.entry(function, name, k.threads, &interface);
        Ok(())
    }

    fn globals(&mut self) {
        for (i, b) in self.k.buffers.iter().enumerate() {
            let t = self.m.buffer(b.elem);
            let v = self.m.variable(StorageClass::StorageBuffer, t);
            self.m.b.decorate(v, Decoration::DescriptorSet, [0u32.into()]);
            self.m.b.decorate(v, Decoration::Binding, [(i as u32).into()]);
            if !b.written {
                self.m.b.decorate(v, Decoration::NonWritable, []);
            }
            self.buffers.push(v);
        }
        for s in &self.k.shared {
            let t = self.m.array(s.elem, s.len);
            self.shared.push(self.m.variable(StorageClass::Workgroup, t));
        }
        if self.k.scalars > 0 {
            let t = self.m.scalars(self.k.scalars);
            self.scalars = Some(self.m.variable(StorageClass::PushConstant, t));
        }
    }

    /// A variable that the device fills.
    fn builtin(&mut self, b: BuiltIn, to: Word) -> Word {
        if let Some(v) = self.builtins.get(&b) {
            return *v;
        }
        let v = self.m.variable(StorageClass::Input, to);
        self.m.b.decorate(v, Decoration::BuiltIn, [Operand::BuiltIn(b)]);
        self.builtins.insert(b, v);
        v
    }

    fn id(&self, v: Val) -> Word {
        self.values[v.0 as usize]
    }

    fn ty(&mut self, v: Val) -> Word {
        self.m.value(self.k.ty(v))
    }

    fn label(&mut self, id: Word) -> Result<()> {
        self.current = self.m.b.begin_block(Some(id))?;
        Ok(())
    }

    fn block(&mut self, body: &[Stmt]) -> Result<()> {
        body.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, s: &Stmt) -> Result<()> {
        match s {
            Stmt::Let(v, Op::Const(ty, bits)) => {
                self.values[v.0 as usize] = self.m.constant(*ty, *bits);
                Ok(())
            }
            Stmt::Let(v, op) => self.value(*v, op),
            Stmt::Store { to, index, value } => {
                let (at, elem, mut bits) = (self.place(*to, *index)?, self.k.elem(*to), self.id(*value));
                if elem.bytes() < 4 {
                    let t = self.m.element(elem);
                    bits = self.m.b.u_convert(t, None, bits)?;
                }
                self.m.b.store(at, bits, self.access(*to), [])
            }
            Stmt::If { cond, then, otherwise, joined } => {
                let [a, b, join] = self.labels();
                self.m.b.selection_merge(join, SelectionControl::NONE)?;
                self.m.b.branch_conditional(self.id(*cond), a, b, [])?;
                let mut ends = vec![];
                for (label, body) in [(a, then), (b, otherwise)] {
                    self.label(label)?;
                    self.block(body)?;
                    ends.push(self.current);
                    self.m.b.branch(join)?;
                }
                self.label(join)?;
                for j in joined {
                    self.phi(j.value, [(j.then, ends[0]), (j.otherwise, ends[1])])?;
                }
                Ok(())
            }
            Stmt::For { index, lo, hi, carried, body } => {
                let (t, bool, next) = (self.ty(*index), self.m.value(Ty::Bool), self.m.b.id());
                let one = self.m.constant(self.k.ty(*index), 1);
                let (index, lo, hi) = (self.id(*index), self.id(*lo), self.id(*hi));
                self.loop_(
                    Some((t, index, lo, next)),
                    carried,
                    |p| p.m.b.s_less_than(bool, None, index, hi),
                    body,
                    |p| p.m.b.i_add(t, Some(next), index, one).map(drop),
                )
            }
            Stmt::While { carried, head, cond, body } => self.loop_(
                None,
                carried,
                |p| {
                    p.block(head)?;
                    Ok(p.id(*cond))
                },
                body,
                |_| Ok(()),
            ),
            // The verifier leaves none for devices that take SPIR-V.
            Stmt::LoadVector { .. }
            | Stmt::StoreVector { .. }
            | Stmt::LoadMatrices { .. }
            | Stmt::MultiplyMatrices { .. }
            | Stmt::Copy { .. }
            | Stmt::CloseCopies
            | Stmt::AwaitCopies { .. } => Ok(()),
            Stmt::StoreMatrix { to, index, pitch, value } => {
                let (at, value) = (self.place(*to, *index)?, self.id(*value));
                let (layout, pitch) = self.layout(CooperativeMatrixLayout::RowMajorKHR, *pitch);
                self.m.b.cooperative_matrix_store_khr(at, value, layout, Some(pitch), self.access(*to), [])
            }
            Stmt::Barrier => {
                let mut order = MemorySemantics::ACQUIRE_RELEASE | MemorySemantics::UNIFORM_MEMORY | MemorySemantics::WORKGROUP_MEMORY;
                if self.m.shared.is_some() {
                    order |= MemorySemantics::MAKE_AVAILABLE | MemorySemantics::MAKE_VISIBLE;
                }
                let (scope, order) = (self.m.constant(Ty::I32, Scope::Workgroup as u64), self.m.constant(Ty::I32, order.bits().into()));
                self.m.b.control_barrier(scope, scope, order)
            }
        }
    }

    fn labels<const N: usize>(&mut self) -> [Word; N] {
        std::array::from_fn(|_| self.m.b.id())
    }

    /// The value that comes from either block.
    fn phi(&mut self, v: Val, from: [(Val, Word); 2]) -> Result<()> {
        let (t, from) = (self.ty(v), from.map(|(v, block)| (self.id(v), block)));
        self.m.b.phi(t, Some(self.id(v)), from).map(drop)
    }

    /// Blocks of a loop: a head of nothing but phis, the test, the body, what goes back, and where it ends. `index` is the type, the value,
    /// the first and the next one of what counts.
    fn loop_(
        &mut self,
        index: Option<(Word, Word, Word, Word)>,
        carried: &[Carried],
        test: impl FnOnce(&mut Self) -> Result<Word>,
        body: &[Stmt],
        step: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let [head, ask, inner, back, end] = self.labels();
        let before = self.current;
        self.m.b.branch(head)?;
        self.label(head)?;
        if let Some((t, id, first, next)) = index {
            self.m.b.phi(t, Some(id), [(first, before), (next, back)])?;
        }
        for c in carried {
            self.phi(c.value, [(c.first, before), (c.next, back)])?;
        }
        self.m.b.loop_merge(end, back, LoopControl::NONE, [])?;
        self.m.b.branch(ask)?;
        self.label(ask)?;
        let cond = test(self)?;
        self.m.b.branch_conditional(cond, inner, end, [])?;
        self.label(inner)?;
        self.block(body)?;
        self.m.b.branch(back)?;
        self.label(back)?;
        step(self)?;
        self.m.b.branch(head)?;
        self.label(end)
    }

    fn access(&self, s: Space) -> Option<MemoryAccess> {
        self.m.shared.filter(|_| matches!(s, Space::Shared(_)))
    }

    fn layout(&mut self, order: CooperativeMatrixLayout, pitch: u32) -> (Word, Word) {
        (self.m.constant(Ty::I32, order as u64), self.m.constant(Ty::I32, pitch.into()))
    }

    /// A pointer to an element.
    fn place(&mut self, s: Space, index: Val) -> Result<Word> {
        let (element, zero) = (self.m.element(self.k.elem(s)), self.m.constant(Ty::I32, 0));
        let (class, base, path) = match s {
            Space::Global(i) => (StorageClass::StorageBuffer, self.buffers[i as usize], vec![zero, self.id(index)]),
            Space::Shared(i) => (StorageClass::Workgroup, self.shared[i as usize], vec![self.id(index)]),
        };
        let t = self.m.b.type_pointer(None, class, element);
        self.m.b.access_chain(t, None, base, path)
    }

    fn input(&mut self, b: BuiltIn, axis: u32) -> Result<Word> {
        let (vector, t) = (self.m.vector(), self.m.value(Ty::I32));
        let v = self.builtin(b, vector);
        let whole = self.m.b.load(vector, None, v, None, [])?;
        self.m.b.composite_extract(t, None, whole, [axis])
    }

    fn glsl(&mut self, v: Val, op: GLOp, operands: &[Val]) -> Result<()> {
        let (t, set) = (self.ty(v), self.m.glsl);
        let operands: Vec<Operand> = operands.iter().map(|o| Operand::IdRef(self.id(*o))).collect();
        self.m.b.ext_inst(t, Some(self.id(v)), set, op as u32, operands).map(drop)
    }

    /// An instruction of values.
    fn plain(&mut self, v: Val, op: O, operands: &[Word]) -> Result<()> {
        self.with(v, op, operands.iter().map(|o| Operand::IdRef(*o)).collect())
    }

    fn with(&mut self, v: Val, op: O, operands: Vec<Operand>) -> Result<()> {
        let instruction = Instruction::new(op, Some(self.ty(v)), Some(self.id(v)), operands);
        self.m.b.insert_into_block(InsertPoint::End, instruction)
    }

    fn value(&mut self, v: Val, op: &Op) -> Result<()> {
        let id = |p: &Self, v: Val| p.id(v);
        match *op {
            Op::Const(..) => Ok(()),
            Op::Scalar(i) => {
                let t = self.m.value(Ty::I32);
                let t = self.m.b.type_pointer(None, StorageClass::PushConstant, t);
                let (member, base) = (self.m.constant(Ty::I32, i.into()), self.scalars.unwrap_or_default());
                let at = self.m.b.access_chain(t, None, base, [member])?;
                self.plain(v, O::Load, &[at])
            }
            Op::Thread => {
                let x = self.input(BuiltIn::LocalInvocationId, 0)?;
                self.plain(v, O::CopyObject, &[x])
            }
            // The line of groups is folded into two axes.
            Op::Group => {
                let (x, y, width) =
                    (self.input(BuiltIn::WorkgroupId, 0)?, self.input(BuiltIn::WorkgroupId, 1)?, self.input(BuiltIn::NumWorkgroups, 0)?);
                let t = self.m.value(Ty::I32);
                let rows = self.m.b.i_mul(t, None, y, width)?;
                self.plain(v, O::IAdd, &[rows, x])
            }
            Op::Groups => {
                let (x, y) = (self.input(BuiltIn::NumWorkgroups, 0)?, self.input(BuiltIn::NumWorkgroups, 1)?);
                self.plain(v, O::IMul, &[x, y])
            }
            Op::Lane | Op::Lanes | Op::Subgroup => {
                self.m.need(Capability::GroupNonUniform);
                let b = match op {
                    Op::Lane => BuiltIn::SubgroupLocalInvocationId,
                    Op::Lanes => BuiltIn::SubgroupSize,
                    _ => BuiltIn::SubgroupId,
                };
                let t = self.m.value(Ty::I32);
                let at = self.builtin(b, t);
                self.plain(v, O::Load, &[at])
            }
            Op::Unary(u, a) => self.unary(v, u, a),
            Op::Binary(b, x, y) => {
                let op = binary(b, self.k.ty(x));
                // Results are the same on every device: what may be one rounding says so.
                if matches!(op, O::FAdd | O::FSub | O::FMul) {
                    self.m.b.decorate(self.id(v), Decoration::NoContraction, []);
                }
                self.plain(v, op, &[id(self, x), id(self, y)])
            }
            Op::MulAdd(a, b, c) if self.k.ty(c).is_matrix() => self.plain(v, O::CooperativeMatrixMulAddKHR, &[a, b, c].map(|m| self.id(m))),
            Op::LoadMatrix { matrix, from, index, pitch } => {
                let (t, at) = (self.ty(v), self.place(from, index)?);
                let order = if matrix == Ty::Left { CooperativeMatrixLayout::RowMajorKHR } else { CooperativeMatrixLayout::ColumnMajorKHR };
                let (layout, pitch) = self.layout(order, pitch);
                self.m.b.cooperative_matrix_load_khr(t, Some(self.id(v)), at, layout, Some(pitch), self.access(from), []).map(drop)
            }
            Op::MulAdd(a, b, c) => self.glsl(v, GLOp::Fma, &[a, b, c]),
            Op::Compare(c, a, b) => self.plain(v, compare(c, self.k.ty(a)), &[id(self, a), id(self, b)]),
            // The verifier leaves none for devices that take SPIR-V.
            Op::Pair(..) | Op::Tf32(_) => Ok(()),
            Op::Select(c, a, b) => self.plain(v, O::Select, &[id(self, c), id(self, a), id(self, b)]),
            Op::Convert(Convert::FromBool, _, a) => {
                let (one, zero) = (self.m.constant(Ty::I32, 1), self.m.constant(Ty::I32, 0));
                self.plain(v, O::Select, &[id(self, a), one, zero])
            }
            Op::Convert(c, _, a) => self.plain(v, conversion(c), &[id(self, a)]),
            Op::Load { from, index } => {
                let (at, elem) = (self.place(from, index)?, self.k.elem(from));
                let (t, access) = (self.m.element(elem), self.access(from));
                if elem.bytes() >= 4 {
                    return self.m.b.load(t, Some(self.id(v)), at, access, []).map(drop);
                }
                let narrow = self.m.b.load(t, None, at, access, [])?;
                self.plain(v, if matches!(elem, Elem::I8 | Elem::I16) { O::SConvert } else { O::UConvert }, &[narrow])
            }
            Op::SubgroupFold(f, a) => {
                self.m.need(Capability::GroupNonUniform);
                self.m.need(Capability::GroupNonUniformArithmetic);
                let scope = self.m.constant(Ty::I32, Scope::Subgroup as u64);
                let operands = vec![Operand::IdScope(scope), Operand::GroupOperation(GroupOperation::Reduce), Operand::IdRef(self.id(a))];
                self.with(v, fold(f, self.k.ty(a)), operands)
            }
            Op::SubgroupXor(a, mask) => {
                self.m.need(Capability::GroupNonUniform);
                self.m.need(Capability::GroupNonUniformShuffle);
                let (scope, mask) = (self.m.constant(Ty::I32, Scope::Subgroup as u64), self.m.constant(Ty::I32, mask.into()));
                self.plain(v, O::GroupNonUniformShuffleXor, &[scope, id(self, a), mask])
            }
        }
    }

    fn unary(&mut self, v: Val, u: Unary, a: Val) -> Result<()> {
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
