//! A program for a device: which kernels run there, as what, and which stay on the host and why.

use super::gir::{Elem, Kernel, Ty, verify};
use super::lower::{self, Lowered};
use super::{kernels, ptx, spirv};
use crate::cpu::Selection;
use nnc_ir::kernel::{Access, Launch, Program, Step, size_index};
use nnc_ir::target::{Gpu, GpuIsa};
use nnc_ir::{Dim, Error, Report, Result};
use std::sync::Arc;

pub struct Plan {
    pub program: Program,
    pub device: Gpu,
    /// By kernel of the program.
    pub kernels: Vec<Placed>,
}

pub enum Placed {
    Device(Box<DeviceKernel>),
    /// With what refused, and the reasons.
    Host(Vec<(&'static str, String)>),
}

pub struct DeviceKernel {
    pub kernel: Kernel,
    /// What chose it, for reports, and what refused, with the reasons.
    pub implementation: &'static str,
    pub refused: Vec<(&'static str, String)>,
    /// Whether its last buffer is the word that faults are written to.
    pub fails: bool,
    /// For each parameter, whether the element that it starts at is a scalar of the launch: the first ones.
    pub offsets: Vec<bool>,
    /// Groups of a launch and the other scalars, over the sizes of the program's kernel. No groups: there is nothing to do.
    pub groups: Dim,
    pub scalars: Vec<Dim>,
}

/// Lowers all kernels of a program.
pub fn plan(program: Program, device: &Gpu) -> Result<Plan, Report> {
    let offsets = offsets(&program);
    let mut kernels = vec![];
    for (k, offsets) in program.kernels.iter().zip(offsets) {
        kernels.push(place(k, offsets, device)?);
    }
    Ok(Plan { program, device: device.clone(), kernels })
}

/// What the loops of a kernel become where nothing better is chosen: a group a task, or a thread.
const FOLDS: &str = "folds by groups";
const LOOPS: &str = "loops";

/// The implementation of this name, as [`DeviceKernel`] has it.
pub fn implementation(name: &str) -> Option<&'static str> {
    kernels::names().chain([FOLDS, LOOPS]).find(|n| *n == name)
}

/// Looks for a kernel of the operation, then lowers the loops.
fn place(k: &nnc_ir::kernel::Kernel, offsets: Vec<bool>, device: &Gpu) -> Result<Placed, Report> {
    let (chosen, mut refused) = kernels::choose(k, &offsets, device);
    let (implementation, lowered) = match chosen {
        Some((name, lowered)) => (name, Ok(lowered)),
        None => match lower::fold::lower(k, &offsets, device) {
            Some(Ok(lowered)) => (FOLDS, Ok(lowered)),
            folds => {
                refused.extend(folds.and_then(Result::err).map(|why| (FOLDS, why)));
                (LOOPS, lower::lower(k, &offsets, device))
            }
        },
    };
    Ok(match lowered.and_then(|l| missing(&l.kernel, device).map_or(Ok(l), Err)) {
        Ok(Lowered { kernel, fails, groups, scalars }) => {
            verify::verify(&kernel, device)?;
            Placed::Device(Box::new(DeviceKernel { kernel, implementation, refused, fails, offsets, groups, scalars }))
        }
        Err(why) => {
            refused.push((LOOPS, why));
            Placed::Host(refused)
        }
    })
}

/// What a kernel needs that the device does not have.
fn missing(k: &Kernel, device: &Gpu) -> Option<String> {
    let wants = |elems: &[Elem]| k.buffers.iter().any(|b| elems.contains(&b.elem));
    let lacks = [
        (device.i64, k.types.contains(&Ty::I64) || wants(&[Elem::I64]), "64-bit integers"),
        (device.f64, k.types.contains(&Ty::F64) || wants(&[Elem::F64]), "64-bit floats"),
        (device.bytes, wants(&[Elem::I8, Elem::U8]), "memory of bytes"),
        (device.halves, wants(&[Elem::I16, Elem::U16]), "memory of 16-bit elements"),
    ];
    lacks.into_iter().find(|(has, wants, _)| *wants && !has).map(|(.., what)| format!("the device has no {what}"))
}

/// For each kernel, which parameters start inside of their buffers in some launch.
fn offsets(p: &Program) -> Vec<Vec<bool>> {
    let mut out: Vec<Vec<bool>> = p.kernels.iter().map(|k| vec![false; k.params.len()]).collect();
    for l in launches(&p.steps) {
        for (flag, b) in out[l.kernel as usize].iter_mut().zip(&l.buffers) {
            *flag |= !b.offset.is(0);
        }
    }
    out
}

/// An error where a kernel is not one for the program's kernel `k`: parameters, what is written, and the sizes that it is told.
fn check(d: &DeviceKernel, k: &nnc_ir::kernel::Kernel) -> Result<()> {
    let wrong = |what: &str| Err(Error::internal(format!("GPU kernel {}: {what}", k.name)));
    let (own, faults) = d.kernel.buffers.split_at(d.kernel.buffers.len().min(k.params.len()));
    let fits = own.len() == k.params.len() && own.iter().zip(&k.params).all(|(b, p)| b.elem == lower::elem(p.dtype));
    if !fits || d.offsets.len() != k.params.len() {
        return wrong("its buffers are not the parameters of the loops");
    }
    if own.iter().zip(&k.params).any(|(b, p)| b.written && p.access == Access::Read) {
        return wrong("it writes what the loops only read");
    }
    if faults.len() != usize::from(d.fails) || faults.iter().any(|b| b.elem != Elem::I32 || !b.written) {
        return wrong("its last buffer is not the word for faults");
    }
    if d.kernel.scalars as usize != d.offsets.iter().filter(|o| **o).count() + d.scalars.len() {
        return wrong("its scalars are not the offsets and sizes of a launch");
    }
    let mut unknown = false;
    d.scalars.iter().chain([&d.groups]).for_each(|s| s.symbols(&mut |s| unknown |= size_index(s).is_none_or(|i| i >= k.sizes as usize)));
    if unknown { wrong("it asks for a size that a launch does not have") } else { Ok(()) }
}

/// A launch that stays on the host, and the bytes of its operands and results that are copied for it.
pub struct HostLaunch {
    /// The user's name for what is computed.
    pub name: Arc<str>,
    pub kernel: Arc<str>,
    pub from_device: Vec<Dim>,
    pub to_device: Vec<Dim>,
}

/// All launches, in the order of the program's text.
pub fn launches(steps: &[Step]) -> Vec<&Launch> {
    let mut out = vec![];
    for s in steps {
        match s {
            Step::Launch(l) => out.push(l),
            Step::If { then, otherwise, .. } => {
                out.extend(launches(then));
                out.extend(launches(otherwise));
            }
            Step::While { body, .. } => out.extend(launches(body)),
            Step::Bind { .. } | Step::Check { .. } | Step::Decode(_) => {}
        }
    }
    out
}

impl Plan {
    /// The plan of kernels that were placed before, for a device of the kind `kind`, on a device that may have less than every one of
    /// that kind: what it does not take goes to the host. An error where the kernels are not those of the program.
    pub fn of(program: Program, kernels: Vec<Placed>, kind: &Gpu, device: &Gpu) -> Result<Plan> {
        if kernels.len() != program.kernels.len() {
            return Err(Error::internal(format!("{} GPU kernels for a program of {}", kernels.len(), program.kernels.len())));
        }
        let mut placed = vec![];
        for (p, k) in kernels.into_iter().zip(&program.kernels) {
            placed.push(match p {
                Placed::Device(d) => {
                    check(&d, k)?;
                    verify::verify(&d.kernel, kind)?;
                    match missing(&d.kernel, device).or_else(|| verify::verify(&d.kernel, device).err().map(|e| e.message().to_string())) {
                        Some(why) => Placed::Host(vec![(d.implementation, why)]),
                        None => Placed::Device(d),
                    }
                }
                host => host,
            });
        }
        Ok(Plan { program, device: device.clone(), kernels: placed })
    }

    /// The launches of the program's text that stay on the host, and what is copied for each. Sizes are those of the program.
    pub fn on_host(&self) -> Vec<HostLaunch> {
        let mut out = vec![];
        for l in launches(&self.program.steps) {
            let (k, Placed::Host(_)) = (&self.program.kernels[l.kernel as usize], &self.kernels[l.kernel as usize]) else { continue };
            let bytes = |(r, p): (&nnc_ir::kernel::BufferRef, &nnc_ir::kernel::Param)| {
                let elems = &self.program.buffers[r.buffer.0 as usize].elems - &r.offset;
                (p.access, elems * Dim::from(p.dtype.bytes()))
            };
            let all: Vec<(Access, Dim)> = l.buffers.iter().zip(&k.params).map(bytes).collect();
            out.push(HostLaunch {
                name: l.name.clone(),
                kernel: k.name.clone(),
                to_device: all.iter().filter(|(a, _)| *a != Access::Read).map(|(_, b)| b.clone()).collect(),
                from_device: all.into_iter().map(|(_, b)| b).collect(),
            });
        }
        out
    }

    /// The kernels of the device, in order.
    pub fn device_kernels(&self) -> Vec<&Kernel> {
        let mut out = vec![];
        for placed in &self.kernels {
            if let Placed::Device(d) = placed {
                out.push(&d.kernel);
            }
        }
        out
    }

    /// All kernels of the device in its language: the words of one SPIR-V module, or PTX.
    pub fn code(&self) -> Result<Vec<u8>> {
        let kernels = self.device_kernels();
        Ok(match self.device.isa {
            GpuIsa::SpirV => spirv::module(&kernels)?.iter().flat_map(|w| w.to_le_bytes()).collect(),
            GpuIsa::Sm80 => ptx::module(&kernels, "sm_80").into_bytes(),
            GpuIsa::Sm90 => ptx::module(&kernels, "sm_90").into_bytes(),
        })
    }

    /// Which implementation each kernel got, and what the host computes instead of the device.
    pub fn selections(&self) -> Vec<Selection> {
        let one = |(k, placed): (&nnc_ir::kernel::Kernel, &Placed)| {
            let (implementation, refused) = match placed {
                Placed::Device(d) => (d.implementation, d.refused.clone()),
                Placed::Host(refused) => ("loops on the host", refused.clone()),
            };
            Selection { kernel: k.name.to_string(), implementation, refused }
        };
        self.program.kernels.iter().zip(&self.kernels).map(one).collect()
    }

    /// Whether a run is the same launches on the device whatever the data are.
    pub fn is_static(&self) -> bool {
        self.program.steps.iter().all(|s| match s {
            Step::Launch(l) => matches!(self.kernels[l.kernel as usize], Placed::Device(_)),
            Step::Check { .. } => true,
            Step::Bind { .. } | Step::Decode(_) | Step::If { .. } | Step::While { .. } => false,
        })
    }
}
