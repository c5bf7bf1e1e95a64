//! From a program to functions in a Cranelift module: one generator for code in memory and for object files.

use super::clif::{Emitter, I64};
use super::declare::declare_kernel;
use super::driver::commands::{Form, encode, in_program, launches};
use super::driver::interp::Machine;
use super::select::Vector;
use super::target::{Use, cranelift_isa};
use super::unwind::Frames;
use super::{Options, Weights, abi, isa, loops, select};
use crate::weights::weight_bytes;
use cranelift_module::{FuncId, Linkage, Module};
use nnc_ir::kernel::{Access, BufferRef, Kernel, Place, Program};
use nnc_ir::ops::Op;
use nnc_ir::target::Isa;
use nnc_ir::{Dim, Result, Target};
use serde_json::{Value, json};
use std::fmt::Write;

/// What came out, beside what lies in the module.
pub struct Generated {
    /// In the order of [`crate::abi::NAMES`].
    pub functions: [FuncId; 6],
    pub description: String,
    pub selections: Vec<Selection>,
    /// Cranelift text of all functions, where it was asked for.
    pub text: Option<String>,
    pub frames: Option<Frames>,
}

/// Which implementation a kernel got.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The kernel's name.
    pub kernel: String,
    pub implementation: &'static str,
    /// Implementations that would have come first, and why each refused.
    pub refused: Vec<(&'static str, String)>,
}

/// Compiles `p` into `m`: into memory, or into an object, and then with unwind tables. `text` asks for Cranelift's text.
///
/// A target of two instruction sets gets the kernels and the tables of both, which share the weights; what Cranelift compiles is made
/// for the lesser one.
pub fn generate<M: Module>(m: &mut M, p: &Program, t: &Target, o: &Options, usage: Use, text: bool) -> Result<Generated> {
    let mut e = Emitter::new(m, cranelift_isa(t, usage, false)?);
    e.text = text.then(String::new);
    e.frames = (usage == Use::Object).then(Frames::default);
    let padded = padded_operands(p);
    let (mut shared, mut selections, mut variants) = (vec![None; p.kernels.len()], vec![], vec![]);
    for (name, target) in targets(t) {
        e.variant = name;
        let (functions, forms, chosen) = kernels(&mut e, p, &target, &padded, &mut shared)?;
        let tables = encode(p, &forms)?;
        let machine = Machine::define(&mut e, &tables, &functions)?;
        variants.push(abi::Variant { target, name, tables, machine });
        if selections.is_empty() {
            selections = chosen;
        }
    }
    e.variant = "";
    let description = describe(p, t, o, &variants);
    let launches = launch_list(p, &selections);
    let exports = abi::Exports { options: o, variants: &variants, description: &description, launches: &launches };
    let functions = abi::define(&mut e, &exports)?;
    Ok(Generated { functions, description, selections, text: e.text, frames: e.frames })
}

/// The instruction sets that code is made for, best first, and what their names end in.
fn targets(t: &Target) -> Vec<(&'static str, Target)> {
    let Some(also) = t.also else { return vec![("", t.clone())] };
    let ending = |isa: Isa| match isa {
        Isa::Avx512 => ".v4",
        Isa::Avx2 => ".v3",
        Isa::X86_64 | Isa::Aarch64 => "",
    };
    vec![(ending(t.isa), Target { also: None, ..t.clone() }), (ending(also), Target::new(also))]
}

/// The functions of all kernels. Those that do not depend on the instruction set are put into `shared`, and taken from there.
fn kernels<M: Module>(
    e: &mut Emitter<'_, M>,
    p: &Program,
    t: &Target,
    padded: &[bool],
    shared: &mut [Option<FuncId>],
) -> Result<(Vec<FuncId>, Vec<Form>, Vec<Selection>)> {
    let (mut functions, mut forms, mut selections) = (vec![], vec![], vec![]);
    let names = symbols(p);
    for (i, k) in p.kernels.iter().enumerate() {
        let choice = select::choose(k, t, padded[i]);
        let name = &names[i];
        let id = match (&choice.vector, shared[i]) {
            (Some(Vector::Portable(func)), _) => declare_kernel(e.m, &e.local(name), func, isa::Isa::Portable)?,
            (Some(Vector::Code(bytes)), _) => {
                let id = e.declare(name, Linkage::Local, &[I64, I64], &[])?;
                e.define_bytes(id, bytes)?;
                id
            }
            (None, Some(id)) => id,
            (None, None) => {
                let id = e.declare(name, Linkage::Local, &[I64, I64], &[])?;
                loops::define(e, id, k)?;
                shared[i] = Some(id);
                id
            }
        };
        forms.push(Form { tasks: choice.tasks, extra: choice.extra, work: work(k) });
        selections.push(Selection { kernel: k.name.to_string(), implementation: choice.implementation, refused: choice.refused });
        functions.push(id);
    }
    Ok((functions, forms, selections))
}

/// For each kernel, whether all its launches read memory that is nnc's own, which ends on a 64-byte boundary.
fn padded_operands(p: &Program) -> Vec<bool> {
    let mut padded = vec![true; p.kernels.len()];
    for l in launches(&p.steps) {
        let own = |b: &BufferRef| b.offset.is(0) && matches!(p.buffers[b.buffer.0 as usize].place, Place::Weight { .. } | Place::Work { .. });
        let operands = p.kernels[l.kernel as usize].params.iter().zip(&l.buffers).filter(|(param, _)| param.access == Access::Read);
        padded[l.kernel as usize] &= operands.skip(2).all(|(_, b)| own(b));
    }
    padded
}

/// A symbol a kernel for profilers and debuggers: its number, the node that it is launched for first, as far as assemblers take that
/// name, and how many others it serves.
fn symbols(p: &Program) -> Vec<String> {
    let mut served: Vec<Vec<&str>> = vec![vec![]; p.kernels.len()];
    for l in launches(&p.steps) {
        let names = &mut served[l.kernel as usize];
        if names.last() != Some(&&*l.name) {
            names.push(&l.name);
        }
    }
    let symbol = |(i, names): (usize, Vec<&str>)| {
        let own = names.first().copied().unwrap_or(&p.kernels[i].name);
        let name: String = own.chars().map(|c| if c.is_ascii_alphanumeric() || "._/".contains(c) { c } else { '_' }).take(80).collect();
        if names.len() > 1 { format!("k{i}.{name}.and_{}", names.len() - 1) } else { format!("k{i}.{name}") }
    };
    served.into_iter().enumerate().map(symbol).collect()
}

/// Rough number of scalar operations in a launch.
fn work(k: &Kernel) -> Dim {
    let touched = k.params.iter().fold(Dim::Const(0), |sum, p| sum + p.elems.clone());
    let contracted = k.origin.as_ref().and_then(|o| {
        let (x, w, y) = (o.x.first()?, o.x.get(1)?, o.y.first()?);
        match o.op {
            Op::MatMul(_) => Some(y.elems() * x.shape.last()?.clone()),
            Op::Conv(_) | Op::ConvTranspose(_) => Some(y.elems() * w.elems().floor_div(w.shape.first()?)),
            _ => None,
        }
    });
    contracted.unwrap_or(touched)
}

/// A number, or an expression in the symbols.
fn number(d: &Dim) -> Value {
    d.as_const().map_or_else(|| json!(d.to_string()), |c| json!(c))
}

/// For profilers, JSON: of each launch, in the order of the program's text, what it computes for whom, by what, and how much.
fn launch_list(p: &Program, selections: &[Selection]) -> String {
    // What all launches of a kernel have in common, once.
    let kernels = p.kernels.iter().zip(selections).map(|(k, s)| {
        let bytes = k.params.iter().fold(Dim::Const(0), |sum, x| sum + x.elems.clone() * Dim::from(x.dtype.bytes()));
        (format!(r#""kernel":{},"implementation":{}"#, json!(s.kernel), json!(s.implementation)), bytes)
    });
    let kernels: Vec<(String, Dim)> = kernels.collect();
    let mut out = String::from("[");
    for l in launches(&p.steps) {
        let (kernel, bytes) = &kernels[l.kernel as usize];
        let (flops, bytes) = (number(&l.flops), number(&in_program(bytes, l)));
        let comma = if out.len() > 1 { "," } else { "" };
        write!(out, r#"{comma}{{"name":{},{kernel},"flops":{flops},"bytes":{bytes}}}"#, json!(&*l.name)).expect("a string takes all");
    }
    out + "]"
}

fn describe(p: &Program, t: &Target, o: &Options, variants: &[abi::Variant]) -> String {
    let head = variants.iter().map(|v| v.tables.head().bytes).max().unwrap_or(0);
    let ports = |ports: &[nnc_ir::kernel::Port]| -> Vec<Value> {
        let shape = |t: &nnc_ir::Type| t.shape.iter().map(number).collect::<Vec<_>>();
        ports.iter().map(|p| json!({"name": &*p.name, "dtype": p.ty.dtype.name(), "shape": shape(&p.ty)})).collect()
    };
    json!({
        "name": &*p.name,
        "inputs": ports(&p.inputs),
        "outputs": ports(&p.outputs),
        "target": t.name,
        "compiler": concat!("nnc ", env!("CARGO_PKG_VERSION")),
        "workspace_bytes": number(&(p.workspace.clone() + Dim::Const(head))),
        "weight_bytes": weight_bytes(&p.weights),
        "weights": if o.weights == Weights::External { "external" } else { "embedded" },
        "flops": number(&p.flops),
    })
    .to_string()
}
