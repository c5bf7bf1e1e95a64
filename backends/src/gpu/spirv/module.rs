//! What a module has once: rspirv's builder finds types again, but neither whether they are decorated nor constants, and it does not know
//! which capabilities an instruction needs.

use super::super::gir::{Elem, Ty};
use nnc_ir::target::Cooperative;
use rspirv::binary::Assemble;
use rspirv::dr::{Builder, InsertPoint, Instruction, Operand};
use rspirv::spirv::{
    AddressingModel, Capability, CooperativeMatrixUse, Decoration, ExecutionMode, ExecutionModel, MemoryAccess, MemoryModel, Op, Scope, StorageClass,
    Word,
};
use std::collections::{BTreeSet, HashMap, HashSet};

pub struct Module {
    pub b: Builder,
    /// The instruction set of GLSL.
    pub glsl: Word,
    /// What an access to the group's memory says of itself: that other threads see it, where that does not go without saying.
    pub shared: Option<MemoryAccess>,
    capabilities: BTreeSet<Capability>,
    constants: HashMap<(Ty, u64), Word>,
    /// Types that have their decorations.
    decorated: HashSet<Word>,
    /// The shape of matrices in the kernel at hand.
    pub cooperative: Option<Cooperative>,
}

impl Module {
    /// `cooperative` is whether kernels have matrices that subgroups hold together: those ask for Vulkan's memory model.
    pub fn new(cooperative: bool) -> Module {
        let mut b = Builder::new();
        b.set_version(1, 5);
        let (model, capability) = if cooperative { (MemoryModel::Vulkan, Some(Capability::VulkanMemoryModel)) } else { (MemoryModel::GLSL450, None) };
        b.memory_model(AddressingModel::Logical, model);
        let glsl = b.ext_inst_import("GLSL.std.450");
        Module {
            b,
            glsl,
            shared: cooperative.then_some(MemoryAccess::NON_PRIVATE_POINTER),
            capabilities: [Capability::Shader].into_iter().chain(capability).collect(),
            constants: HashMap::new(),
            decorated: HashSet::new(),
            cooperative: None,
        }
    }

    pub fn need(&mut self, c: Capability) {
        self.capabilities.insert(c);
    }

    /// The type of a value.
    pub fn value(&mut self, t: Ty) -> Word {
        match t {
            Ty::Bool => self.b.type_bool(),
            Ty::I32 => self.b.type_int(32, 0),
            Ty::F32 => self.b.type_float(32, None),
            Ty::I64 => {
                self.need(Capability::Int64);
                self.b.type_int(64, 0)
            }
            Ty::F64 => {
                self.need(Capability::Float64);
                self.b.type_float(64, None)
            }
            Ty::Left | Ty::Right | Ty::Sums => self.matrix(t),
        }
    }

    fn matrix(&mut self, t: Ty) -> Word {
        [Capability::CooperativeMatrixKHR, Capability::Float16].into_iter().for_each(|c| self.need(c));
        let (rows, columns, depth) = self.cooperative.map_or((0, 0, 0), |c| (c.rows, c.columns, c.depth));
        let (bits, rows, columns, usage) = match t {
            Ty::Left => (16, rows, depth, CooperativeMatrixUse::MatrixAKHR),
            Ty::Right => (16, depth, columns, CooperativeMatrixUse::MatrixBKHR),
            _ => (32, rows, columns, CooperativeMatrixUse::MatrixAccumulatorKHR),
        };
        let [scope, rows, columns, usage] = [Scope::Subgroup as u32, rows, columns, usage as u32].map(|n| self.constant(Ty::I32, n.into()));
        let number = self.b.type_float(bits, None);
        self.b.type_cooperative_matrix_khr(number, scope, rows, columns, usage)
    }

    /// The type of an element in memory; of narrow integers, signed and unsigned ones share it.
    pub fn element(&mut self, e: Elem) -> Word {
        match e.bytes() {
            1 => self.need(Capability::StorageBuffer8BitAccess),
            2 => self.need(Capability::StorageBuffer16BitAccess),
            _ => return self.value(e.ty()),
        }
        self.b.type_int(8 * e.bytes(), 0)
    }

    /// Three 32-bit integers.
    pub fn vector(&mut self) -> Word {
        let element = self.value(Ty::I32);
        self.b.type_vector(element, 3)
    }

    /// An array in the group's memory.
    pub fn array(&mut self, e: Elem, len: u32) -> Word {
        let (element, len) = (self.element(e), self.constant(Ty::I32, len.into()));
        self.b.type_array(element, len)
    }

    /// A block of one array that is as long as its buffer.
    pub fn buffer(&mut self, e: Elem) -> Word {
        let element = self.element(e);
        let array = self.b.type_runtime_array(element);
        if self.decorated.insert(array) {
            self.b.decorate(array, Decoration::ArrayStride, [e.bytes().into()]);
        }
        self.block(&[array])
    }

    /// A block of so many 32-bit integers.
    pub fn scalars(&mut self, n: u32) -> Word {
        let member = self.value(Ty::I32);
        self.block(&vec![member; n as usize])
    }

    /// A struct that the host fills, of members of four bytes but for the last.
    fn block(&mut self, members: &[Word]) -> Word {
        let id = self.b.type_struct(members.iter().copied());
        if self.decorated.insert(id) {
            self.b.decorate(id, Decoration::Block, []);
            (0..members.len() as u32).for_each(|i| self.b.member_decorate(id, i, Decoration::Offset, [(4 * i).into()]));
        }
        id
    }

    pub fn constant(&mut self, ty: Ty, bits: u64) -> Word {
        if let Some(id) = self.constants.get(&(ty, bits)) {
            return *id;
        }
        let t = self.value(ty);
        let id = match ty {
            Ty::Left | Ty::Right | Ty::Sums => {
                let zero = self.constant(Ty::F32, 0);
                self.b.constant_composite(t, [zero])
            }
            Ty::Bool if bits == 0 => self.b.constant_false(t),
            Ty::Bool => self.b.constant_true(t),
            Ty::I32 | Ty::F32 => self.b.constant_bit32(t, bits as u32),
            Ty::I64 | Ty::F64 => self.b.constant_bit64(t, bits),
        };
        self.constants.insert((ty, bits), id);
        id
    }

    /// A variable of the module, also while a function is open: the builder would put it there.
    pub fn variable(&mut self, class: StorageClass, to: Word) -> Word {
        let (t, id) = (self.b.type_pointer(None, class, to), self.b.id());
        let variable = Instruction::new(Op::Variable, Some(t), Some(id), vec![Operand::StorageClass(class)]);
        self.b.insert_types_global_values(InsertPoint::End, variable);
        id
    }

    /// Declares a kernel: a function that takes nothing, whose entry names all that it uses.
    pub fn entry(&mut self, function: Word, name: &str, threads: u32, interface: &[Word]) {
        self.b.entry_point(ExecutionModel::GLCompute, function, name, interface);
        self.b.execution_mode(function, ExecutionMode::LocalSize, [threads, 1, 1]);
        self.b.name(function, name);
    }

    pub fn finish(mut self) -> Vec<u32> {
        self.capabilities.iter().for_each(|c| self.b.capability(*c));
        if self.capabilities.contains(&Capability::CooperativeMatrixKHR) {
            self.b.extension("SPV_KHR_cooperative_matrix");
        }
        self.b.module().assemble()
    }
}
