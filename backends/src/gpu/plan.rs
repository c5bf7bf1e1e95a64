//! A program for a device: which kernels run there, as what, and which stay on the host and why.

use super::gir::{Elem, Kernel, Ty, verify};
use super::lower::{self, Lowered};
use super::{kernels, ptx, spirv};
use crate::cpu::Selection;
use nnc_ir::kernel::{Launch, Program, Step};
use nnc_ir::target::{Gpu, GpuIsa};
use nnc_ir::{Dim, Report, Result};

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

/// Looks for a kernel of the operation, then lowers the loops.
fn place(k: &nnc_ir::kernel::Kernel, offsets: Vec<bool>, device: &Gpu) -> Result<Placed, Report> {
    let (chosen, mut refused) = kernels::choose(k, &offsets, device);
    let (implementation, lowered) = match chosen {
        Some((name, lowered)) => (name, Ok(lowered)),
        None => ("loops", lower::lower(k, &offsets, device)),
    };
    Ok(match lowered.and_then(|l| missing(&l.kernel, device).map_or(Ok(l), Err)) {
        Ok(Lowered { kernel, fails, groups, scalars }) => {
            verify::verify(&kernel, device)?;
            Placed::Device(Box::new(DeviceKernel { kernel, implementation, refused, fails, offsets, groups, scalars }))
        }
        Err(why) => {
            refused.push(("loops", why));
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

/// All launches, in the order of the program's text.
fn launches(steps: &[Step]) -> Vec<&Launch> {
    let mut out = vec![];
    for s in steps {
        match s {
            Step::Launch(l) => out.push(l),
            Step::If { then, otherwise, .. } => {
                out.extend(launches(then));
                out.extend(launches(otherwise));
            }
            Step::While { body, .. } => out.extend(launches(body)),
            Step::Bind { .. } | Step::Check { .. } => {}
        }
    }
    out
}

impl Plan {
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
    pub fn code(&self) -> Vec<u8> {
        let kernels = self.device_kernels();
        match self.device.isa {
            GpuIsa::SpirV => spirv::module(&kernels).iter().flat_map(|w| w.to_le_bytes()).collect(),
            GpuIsa::Sm80 => ptx::module(&kernels, "sm_80").into_bytes(),
            GpuIsa::Sm90 => ptx::module(&kernels, "sm_90").into_bytes(),
        }
    }

    /// Which implementation each kernel got, and what the host computes instead of the device.
    pub fn selections(&self) -> Vec<Selection> {
        let one = |(k, placed): (&nnc_ir::kernel::Kernel, &Placed)| {
            let (implementation, refused) = match placed {
                Placed::Device(d) => (d.implementation, d.refused.clone()),
                Placed::Host(refused) => ("loops on the host; its operands and results are copied", refused.clone()),
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
            Step::Bind { .. } | Step::If { .. } | Step::While { .. } => false,
        })
    }
}
