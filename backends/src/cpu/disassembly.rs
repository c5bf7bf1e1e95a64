//! Assembly text of an object's functions.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use nnc_ir::target::Isa;
use nnc_ir::{Error, Result, Target};
use object::{Object, ObjectSection, ObjectSymbol};
use std::collections::BTreeMap;
use std::fmt::Write;

/// All functions in the order of their addresses, Intel syntax; targets of calls are named.
pub fn text(object: &[u8], t: &Target) -> Result<String> {
    if t.isa == Isa::Aarch64 {
        return Err(Error::unsupported("assembly text is written for x86-64 only; for other targets emit an object (.o) and disassemble it"));
    }
    let read = |e: object::read::Error| Error::internal(format!("Cranelift's object: {e}"));
    let file = object::File::parse(object).map_err(read)?;
    let mut functions: Vec<_> = file.symbols().filter(|s| s.kind() == object::SymbolKind::Text && !s.is_undefined()).collect();
    functions.sort_by_key(|s| (s.section_index().map(|i| i.0), s.address()));
    let mut out = String::new();
    let mut formatter = IntelFormatter::new();
    let mut references = BTreeMap::new();
    for s in file.sections() {
        for (at, r) in s.relocations() {
            if let object::RelocationTarget::Symbol(i) = r.target() {
                references.insert((s.index().0, at), file.symbol_by_index(i).and_then(|s| s.name()).map_err(read)?);
            }
        }
    }
    for f in functions {
        let index = f.section_index().ok_or_else(|| Error::internal("a function without a section"))?;
        let section = file.section_by_index(index).map_err(read)?;
        let data = section.data_range(f.address(), f.size()).map_err(read)?.unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}:", f.name().map_err(read)?);
        let mut line = String::new();
        let mut decoder = Decoder::with_ip(64, data, f.address(), DecoderOptions::NONE);
        let mut i = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut i);
            line.clear();
            formatter.format(&i, &mut line);
            let _ = write!(out, "  {:6x}  {line}", i.ip());
            if let Some((_, name)) = references.range((index.0, i.ip())..(index.0, i.next_ip())).next() {
                let _ = write!(out, "  # {name}");
            }
            out.push('\n');
        }
        out.push('\n');
    }
    Ok(out)
}
