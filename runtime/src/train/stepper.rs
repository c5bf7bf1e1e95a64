//! A compiled step with its memory: inputs by name, and results that are the next step's inputs.

use crate::gpu::run::Steps;
use crate::session::{Bound, Session};
use bytes::Bytes;
use nnc_ir::{DType, Error, Result, Tensor};
use std::collections::HashMap;

pub struct Stepper<'s> {
    session: &'s Session,
    memory: Memory<'s>,
    /// Where each input is.
    places: HashMap<&'s str, usize>,
    /// Outputs and the inputs whose place they take.
    again: Vec<(usize, usize)>,
}

/// Where the tensors are between steps.
enum Memory<'s> {
    /// Where the compiled step works: results take the places of inputs without a copy.
    Bound(Box<Bound<'s>>),
    /// With the device, likewise.
    Device(Box<dyn Steps + 's>),
    /// Here, for engines that take tensors and give tensors.
    Here { inputs: Vec<Tensor>, outputs: Vec<Tensor> },
}

impl<'s> Stepper<'s> {
    /// `state` gives the first values of inputs, by name; those that the session does not have are left out. The others are zero.
    pub fn new(session: &'s Session, state: &[(String, Tensor)]) -> Result<Stepper<'s>> {
        let known: HashMap<&str, &Tensor> = state.iter().map(|(name, t)| (&**name, t)).collect();
        let at = |port: &crate::Port| {
            if let Some(t) = known.get(&*port.name) {
                return Ok((*t).clone());
            }
            let size = |s: &crate::Size| match s {
                crate::Size::Known(n) => Ok(*n as usize),
                crate::Size::Symbolic(s) => Err(Error::shape(format!("the size {s} of `{}` must be known before training", port.name))),
            };
            let shape = port.shape.iter().map(size).collect::<Result<Vec<usize>>>()?;
            Tensor::splat(port.dtype, shape, vec![0; port.dtype.bytes()].into())
        };
        let inputs = session.inputs().iter().map(at).collect::<Result<Vec<Tensor>>>()?;
        let places: HashMap<&str, usize> = session.inputs().iter().enumerate().map(|(k, p)| (&*p.name, k)).collect();
        let again: Vec<(usize, usize)> = session.outputs().iter().enumerate().filter_map(|(k, o)| Some((k, *places.get(&*o.name)?))).collect();
        let memory = if let Some(model) = session.model() {
            Memory::Device(model.steps(&inputs, &again)?)
        } else if session.binds() {
            Memory::Bound(Box::new(session.bind(&inputs.into_iter().map(Some).collect::<Vec<_>>())?))
        } else {
            Memory::Here { inputs, outputs: vec![] }
        };
        Ok(Stepper { session, memory, places, again })
    }

    /// Fills an input; nothing where the step does not read it, so that it is gone.
    pub fn fill(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(k) = self.places.get(name) else { return Ok(()) };
        let fits = |n: usize| if n == bytes.len() { Ok(()) } else { Err(Error::internal(format!("`{name}` has {n} bytes, not {}", bytes.len()))) };
        match &mut self.memory {
            Memory::Bound(bound) => {
                let to = bound.input_mut(*k)?;
                fits(to.len())?;
                to.copy_from_slice(bytes);
            }
            Memory::Device(steps) => steps.fill(*k, bytes)?,
            Memory::Here { inputs, .. } => {
                let old = &inputs[*k];
                fits(old.byte_len())?;
                inputs[*k] = Tensor::from_bytes(old.dtype(), old.shape().to_vec(), Bytes::copy_from_slice(bytes))?;
            }
        }
        Ok(())
    }

    pub fn number(&mut self, name: &str, x: f32) -> Result<()> {
        self.fill(name, &x.to_le_bytes())
    }

    /// One step. What goes from step to step is in its place again afterwards.
    pub fn run(&mut self) -> Result<()> {
        match &mut self.memory {
            Memory::Bound(bound) => {
                bound.run()?;
                self.again.iter().try_for_each(|(output, input)| bound.exchange(*output, *input))
            }
            Memory::Device(steps) => steps.run(),
            Memory::Here { inputs, outputs } => {
                *outputs = self.session.run(inputs)?;
                self.again.iter().for_each(|(output, input)| inputs[*input] = outputs[*output].clone());
                Ok(())
            }
        }
    }

    /// A result of the last step, f32.
    pub fn results(&mut self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::internal(format!("the step has no f32 result `{name}`"));
        let k = self.session.outputs().iter().position(|p| &*p.name == name && p.dtype == DType::F32).ok_or_else(missing)?;
        match &mut self.memory {
            Memory::Device(steps) => steps.output(k)?.to_vec().ok_or_else(missing),
            Memory::Bound(bound) => Ok(bound.output_bytes(k)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            Memory::Here { outputs, .. } => outputs.get(k).and_then(Tensor::to_vec).ok_or_else(|| Error::internal("the step has not run")),
        }
    }

    pub fn result(&mut self, name: &str) -> Result<f32> {
        self.results(name)?.first().copied().ok_or_else(|| Error::internal(format!("the result `{name}` is empty")))
    }

    /// What goes from step to step, by name.
    pub fn state(&mut self) -> Result<Vec<(String, Tensor)>> {
        let mut value = |k: usize| match &mut self.memory {
            Memory::Bound(bound) => bound.input(k),
            Memory::Device(steps) => steps.input(k),
            Memory::Here { inputs, .. } => Ok(inputs[k].clone()),
        };
        self.again.iter().map(|(_, input)| Ok((self.session.inputs()[*input].name.to_string(), value(*input)?))).collect()
    }
}
