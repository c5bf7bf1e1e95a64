//! A SPIR-V module in the making: sections of words, and types and constants that exist once.

use super::super::gir::{Elem, Ty};
use spirv::{Capability, Decoration, Op, StorageClass};
use std::collections::{BTreeSet, HashMap};

/// A result's number.
pub type Id = u32;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    Void,
    /// `void()`, what every kernel is.
    Function,
    Value(Ty),
    Memory(Elem),
    /// Three 32-bit integers.
    Vector,
    /// A struct of one array as long as its buffer.
    Buffer(Elem),
    /// A struct of so many 32-bit integers.
    Scalars(u32),
    Array(Elem, u32),
    Pointer(StorageClass, PointTo),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum PointTo {
    Value(Ty),
    Memory(Elem),
    Vector,
    Buffer(Elem),
    Scalars(u32),
    Array(Elem, u32),
}

impl PointTo {
    fn ty(self) -> Type {
        match self {
            PointTo::Value(t) => Type::Value(t),
            PointTo::Memory(e) => Type::Memory(e),
            PointTo::Vector => Type::Vector,
            PointTo::Buffer(e) => Type::Buffer(e),
            PointTo::Scalars(n) => Type::Scalars(n),
            PointTo::Array(e, n) => Type::Array(e, n),
        }
    }
}

#[derive(Default)]
pub struct Module {
    next: Id,
    capabilities: BTreeSet<u32>,
    entries: Vec<u32>,
    modes: Vec<u32>,
    names: Vec<u32>,
    decorations: Vec<u32>,
    globals: Vec<u32>,
    functions: Vec<u32>,
    types: HashMap<Type, Id>,
    constants: HashMap<(Ty, u64), Id>,
    /// The instruction set of GLSL.
    pub glsl: Id,
}

/// An instruction: its first word holds its length.
fn put(section: &mut Vec<u32>, op: Op, words: &[u32]) {
    section.push(((words.len() as u32 + 1) << 16) | op as u32);
    section.extend_from_slice(words);
}

/// A string as words, ended by a zero.
fn text(s: &str) -> Vec<u32> {
    let mut bytes = s.as_bytes().to_vec();
    bytes.resize((bytes.len() / 4 + 1) * 4, 0);
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

impl Module {
    pub fn new() -> Module {
        let mut m = Module { next: 1, ..Module::default() };
        m.need(Capability::Shader);
        m.glsl = m.id();
        m
    }

    pub fn id(&mut self) -> Id {
        self.next += 1;
        self.next - 1
    }

    /// So many numbers in a row; the first of them.
    pub fn ids(&mut self, n: usize) -> Id {
        self.next += n as u32;
        self.next - n as u32
    }

    pub fn need(&mut self, c: Capability) {
        self.capabilities.insert(c as u32);
    }

    pub fn decorate(&mut self, id: Id, d: Decoration, words: &[u32]) {
        put(&mut self.decorations, Op::Decorate, &[&[id, d as u32], words].concat());
    }

    fn decorate_member(&mut self, id: Id, member: u32, d: Decoration, words: &[u32]) {
        put(&mut self.decorations, Op::MemberDecorate, &[&[id, member, d as u32], words].concat());
    }

    pub fn code(&mut self, op: Op, words: &[u32]) {
        put(&mut self.functions, op, words);
    }

    pub fn ty(&mut self, t: Type) -> Id {
        if let Some(id) = self.types.get(&t) {
            return *id;
        }
        // What a type is made of stands before it.
        let (op, words): (Op, Vec<u32>) = match t {
            Type::Void => (Op::TypeVoid, vec![]),
            Type::Function => (Op::TypeFunction, vec![self.ty(Type::Void)]),
            Type::Value(Ty::Bool) => (Op::TypeBool, vec![]),
            Type::Value(ty @ (Ty::I32 | Ty::I64)) => {
                if ty == Ty::I64 {
                    self.need(Capability::Int64);
                }
                (Op::TypeInt, vec![ty.bits(), 0])
            }
            Type::Value(ty) => {
                if ty == Ty::F64 {
                    self.need(Capability::Float64);
                }
                (Op::TypeFloat, vec![ty.bits()])
            }
            Type::Memory(e) => match e.bytes() {
                1 => {
                    self.need(Capability::StorageBuffer8BitAccess);
                    return self.narrow(8, t);
                }
                2 => {
                    self.need(Capability::StorageBuffer16BitAccess);
                    return self.narrow(16, t);
                }
                _ => return self.ty(Type::Value(e.ty())),
            },
            Type::Vector => (Op::TypeVector, vec![self.ty(Type::Value(Ty::I32)), 3]),
            Type::Buffer(e) => {
                let element = self.ty(Type::Memory(e));
                let array = self.id();
                put(&mut self.globals, Op::TypeRuntimeArray, &[array, element]);
                self.decorate(array, Decoration::ArrayStride, &[e.bytes()]);
                (Op::TypeStruct, vec![array])
            }
            Type::Scalars(n) => (Op::TypeStruct, vec![self.ty(Type::Value(Ty::I32)); n as usize]),
            Type::Array(e, n) => (Op::TypeArray, vec![self.ty(Type::Memory(e)), self.constant(Ty::I32, n.into())]),
            Type::Pointer(class, to) => (Op::TypePointer, vec![class as u32, self.ty(to.ty())]),
        };
        let id = self.id();
        put(&mut self.globals, op, &[&[id], &words[..]].concat());
        match t {
            Type::Buffer(_) => {
                self.decorate(id, Decoration::Block, &[]);
                self.decorate_member(id, 0, Decoration::Offset, &[0]);
            }
            Type::Scalars(n) => {
                self.decorate(id, Decoration::Block, &[]);
                (0..n).for_each(|i| self.decorate_member(id, i, Decoration::Offset, &[4 * i]));
            }
            _ => {}
        }
        self.types.insert(t, id);
        id
    }

    /// An integer type that memory alone has; signed and unsigned elements share it.
    fn narrow(&mut self, bits: u32, t: Type) -> Id {
        let unsigned = Type::Memory(if bits == 8 { Elem::U8 } else { Elem::U16 });
        let id = match self.types.get(&unsigned) {
            Some(id) => *id,
            None => {
                let id = self.id();
                put(&mut self.globals, Op::TypeInt, &[id, bits, 0]);
                id
            }
        };
        self.types.insert(unsigned, id);
        self.types.insert(t, id);
        id
    }

    pub fn value_type(&mut self, t: Ty) -> Id {
        self.ty(Type::Value(t))
    }

    pub fn constant(&mut self, ty: Ty, bits: u64) -> Id {
        if let Some(id) = self.constants.get(&(ty, bits)) {
            return *id;
        }
        let (t, id) = (self.value_type(ty), self.id());
        match ty {
            Ty::Bool => put(&mut self.globals, if bits == 0 { Op::ConstantFalse } else { Op::ConstantTrue }, &[t, id]),
            Ty::I32 | Ty::F32 => put(&mut self.globals, Op::Constant, &[t, id, bits as u32]),
            Ty::I64 | Ty::F64 => put(&mut self.globals, Op::Constant, &[t, id, bits as u32, (bits >> 32) as u32]),
        }
        self.constants.insert((ty, bits), id);
        id
    }

    pub fn variable(&mut self, class: StorageClass, to: PointTo) -> Id {
        let (t, id) = (self.ty(Type::Pointer(class, to)), self.id());
        put(&mut self.globals, Op::Variable, &[t, id, class as u32]);
        id
    }

    /// Declares a kernel: a function that takes nothing, whose entry names all that it uses.
    pub fn entry(&mut self, function: Id, name: &str, threads: u32, interface: &[Id]) {
        let head = [spirv::ExecutionModel::GLCompute as u32, function];
        put(&mut self.entries, Op::EntryPoint, &[&head[..], &text(name), interface].concat());
        put(&mut self.modes, Op::ExecutionMode, &[function, spirv::ExecutionMode::LocalSize as u32, threads, 1, 1]);
        put(&mut self.names, Op::Name, &[&[function], &text(name)[..]].concat());
    }

    /// The words, in the order that the specification asks for.
    pub fn finish(self) -> Vec<u32> {
        let mut out = vec![spirv::MAGIC_NUMBER, 0x0001_0500, 0, self.next, 0];
        for c in &self.capabilities {
            put(&mut out, Op::Capability, &[*c]);
        }
        put(&mut out, Op::ExtInstImport, &[&[self.glsl], &text("GLSL.std.450")[..]].concat());
        put(&mut out, Op::MemoryModel, &[spirv::AddressingModel::Logical as u32, spirv::MemoryModel::GLSL450 as u32]);
        for section in [self.entries, self.modes, self.names, self.decorations, self.globals, self.functions] {
            out.extend(section);
        }
        out
    }
}
