//! A compiled step with its memory: inputs by name, and results that are the next step's inputs without a copy.

use crate::session::{Bound, Session};
use nnc_ir::{DType, Error, Result, Tensor};
use std::collections::HashMap;

pub struct Stepper<'s> {
    session: &'s Session,
    bound: Bound<'s>,
    /// Where each input is.
    places: HashMap<&'s str, usize>,
    /// Outputs and the inputs whose place they take.
    again: Vec<(usize, usize)>,
}

impl<'s> Stepper<'s> {
    /// `state` gives the first values of inputs, by name; those that the session does not have are left out. The others are zero.
    pub fn new(session: &'s Session, state: &[(String, Tensor)]) -> Result<Stepper<'s>> {
        let known: HashMap<&str, &Tensor> = state.iter().map(|(name, t)| (&**name, t)).collect();
        let at = |port: &crate::Port| {
            if let Some(t) = known.get(&*port.name) {
                return Ok(Some((*t).clone()));
            }
            let size = |s: &crate::Size| match s {
                crate::Size::Known(n) => Ok(*n as usize),
                crate::Size::Symbolic(s) => Err(Error::shape(format!("the size {s} of `{}` must be known before training", port.name))),
            };
            let shape = port.shape.iter().map(size).collect::<Result<Vec<usize>>>()?;
            Tensor::splat(port.dtype, shape, vec![0; port.dtype.bytes()].into()).map(Some)
        };
        let inputs = session.inputs().iter().map(at).collect::<Result<Vec<_>>>()?;
        let places: HashMap<&str, usize> = session.inputs().iter().enumerate().map(|(k, p)| (&*p.name, k)).collect();
        let again = session.outputs().iter().enumerate().filter_map(|(k, o)| Some((k, *places.get(&*o.name)?))).collect();
        Ok(Stepper { session, bound: session.bind(&inputs)?, places, again })
    }

    /// The bytes of an input; none where nothing reads it, so that it is gone.
    fn input(&mut self, name: &str) -> Result<Option<&mut [u8]>> {
        self.places.get(name).map(|k| self.bound.input_mut(*k)).transpose()
    }

    /// Fills an input.
    pub fn fill(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(to) = self.input(name)? else { return Ok(()) };
        if to.len() != bytes.len() {
            return Err(Error::internal(format!("a batch of `{name}` has {} bytes, not {}", to.len(), bytes.len())));
        }
        to.copy_from_slice(bytes);
        Ok(())
    }

    pub fn number(&mut self, name: &str, x: f32) -> Result<()> {
        if let Some(to) = self.input(name)? {
            to.copy_from_slice(&x.to_le_bytes());
        }
        Ok(())
    }

    /// One step. What goes from step to step is in its place again afterwards.
    pub fn run(&mut self) -> Result<()> {
        self.bound.run()?;
        self.again.iter().try_for_each(|(output, input)| self.bound.exchange(*output, *input))
    }

    /// A result of the last step, f32.
    pub fn results(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::internal(format!("the step has no f32 result `{name}`"));
        let k = self.session.outputs().iter().position(|p| &*p.name == name && p.dtype == DType::F32).ok_or_else(missing)?;
        Ok(self.bound.output_bytes(k)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    pub fn result(&self, name: &str) -> Result<f32> {
        self.results(name)?.first().copied().ok_or_else(|| Error::internal(format!("the result `{name}` is empty")))
    }

    /// What goes from step to step, by name.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        self.again.iter().map(|(_, input)| Ok((self.session.inputs()[*input].name.to_string(), self.bound.input(*input)?))).collect()
    }
}
