//! Code in files: shared libraries, objects, archives, and their text.

use super::elf::{Library, write_library};
use super::generate::{Generated, Selection, generate};
use super::target::{Use, cranelift_isa};
use super::{Options, Weights, archive, header};
use crate::weights::{weight_bytes, write_weights};
use cranelift_module::default_libcall_names;
use cranelift_object::{ObjectBuilder, ObjectModule};
use nnc_ir::kernel::Program;
use nnc_ir::{Error, Result, Target, Tensor};
use std::io::Write;

/// A program compiled for a target, to be written in whichever forms are wanted.
pub struct Compiled<'a> {
    program: &'a Program,
    target: &'a Target,
    options: &'a Options,
    generated: Generated,
    /// Cranelift's object: code and tables, without the weights.
    object: Vec<u8>,
}

/// Compiles `p`. Cranelift's text of the functions is kept only if `text` asks for it.
pub fn compile<'a>(p: &'a Program, t: &'a Target, o: &'a Options, text: bool) -> Result<Compiled<'a>> {
    let fail = |e: String| Error::internal(format!("object of `{}`: {e}", p.name));
    let builder = ObjectBuilder::new(cranelift_isa(t, Use::Object, true)?, p.name.replace('\0', ""), default_libcall_names());
    let builder = builder.map_err(|e| fail(e.to_string()))?;
    let mut m = ObjectModule::new(builder);
    let mut generated = generate(&mut m, p, t, o, Use::Object, text)?;
    let mut product = m.finish();
    if let Some(frames) = generated.frames.take() {
        frames.finish(&mut product)?;
    }
    let object = product.emit().map_err(|e| fail(e.to_string()))?;
    Ok(Compiled { program: p, target: t, options: o, generated, object })
}

impl Compiled<'_> {
    fn weights(&self) -> &[(u64, Tensor)] {
        match self.options.weights {
            Weights::Embed => &self.program.weights,
            Weights::External => &[],
        }
    }

    /// A shared library that calls itself `soname`.
    pub fn write_so(&self, soname: &str, out: &mut dyn Write) -> Result<()> {
        let symbol = self.options.weights_symbol();
        let exports = crate::abi::NAMES.map(|n| format!("{}{n}", self.options.prefix));
        write_library(&Library { object: &self.object, exports: &exports, soname, weights_symbol: &symbol, weights: self.weights() }, out)
    }

    /// A relocatable object, weights included where they are embedded. Returns the file's length.
    pub fn write_object(&self, out: &mut dyn Write) -> Result<u64> {
        archive::write_object(&self.object, &self.options.weights_symbol(), self.weights(), out)
    }

    /// A static library with that object. Returns the file's length.
    pub fn write_archive(&self, out: &mut dyn Write) -> Result<u64> {
        archive::write_archive(&self.object, &self.options.weights_symbol(), self.weights(), out)
    }

    /// The file that [`Weights::External`] expects at `host->weights`. Returns its length.
    pub fn write_weights(&self, out: &mut dyn Write) -> Result<u64> {
        write_weights(&self.program.weights, out)?;
        Ok(weight_bytes(&self.program.weights))
    }

    /// The C header.
    pub fn header(&self) -> String {
        header::text(self.program, self.options)
    }

    /// The JSON that `nnc_describe` returns.
    pub fn description(&self) -> &str {
        &self.generated.description
    }

    /// Which implementation each kernel got, and why not others.
    pub fn selections(&self) -> &[Selection] {
        &self.generated.selections
    }

    /// Cranelift's text of all functions it compiled; emitted kernels are not among them.
    pub fn clif(&self) -> Option<&str> {
        self.generated.text.as_deref()
    }

    /// Assembly of all functions (x86-64).
    pub fn assembly(&self) -> Result<String> {
        super::disassembly::text(&self.object, self.target)
    }
}
