//! Unwind tables (`.eh_frame`) for object files. Their addresses are relative to the table, so that a library needs no relocation
//! of read-only memory at load, which the tables that cranelift-object makes would.

use cranelift_codegen::CompiledCode;
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::isa::unwind::UnwindInfo;
use cranelift_module::FuncId;
use cranelift_object::ObjectProduct;
use gimli::constants::{DW_EH_PE_pcrel, DW_EH_PE_sdata4};
use gimli::write::{Address, CallFrameInstruction, CieId, EhFrame, EndianVec, FrameDescriptionEntry, FrameTable, RelocateWriter, Relocation};
use gimli::{DwEhPe, LittleEndian};
use iced_x86::{Code, Decoder, DecoderOptions, Register};
use nnc_ir::{Error, Result};
use object::write::StandardSection;
use object::{RelocationEncoding, RelocationFlags, RelocationKind};

/// Frame descriptions of functions as they are compiled.
#[derive(Default)]
pub struct Frames {
    table: FrameTable,
    common: Option<CieId>,
    functions: Vec<FuncId>,
}

fn fail(e: impl std::fmt::Display) -> Error {
    Error::internal(format!("unwind tables: {e}"))
}

impl Frames {
    /// A function that Cranelift has compiled.
    pub fn add(&mut self, isa: &dyn TargetIsa, id: FuncId, code: &CompiledCode) -> Result<()> {
        if let Some(UnwindInfo::SystemV(info)) = code.create_unwind_info(isa).map_err(fail)? {
            let address = self.function(id);
            self.describe(isa, info.to_fde(address));
        }
        Ok(())
    }

    /// An emitted x86-64 function, which begins with pushes and one subtraction from the stack pointer and restores it at its end only.
    pub fn add_emitted(&mut self, isa: &dyn TargetIsa, id: FuncId, bytes: &[u8]) {
        let mut frame = FrameDescriptionEntry::new(self.function(id), bytes.len() as u32);
        // At entry the stack holds the return address.
        let mut depth = 8;
        for i in Decoder::new(64, bytes, DecoderOptions::NONE).iter() {
            depth += match i.code() {
                Code::Push_r64 => 8,
                Code::Sub_rm64_imm32 | Code::Sub_rm64_imm8 if i.op0_register() == Register::RSP => i.immediate(1) as i32,
                _ => break,
            };
            frame.add_instruction(i.next_ip() as u32, CallFrameInstruction::CfaOffset(depth));
            if let (Code::Push_r64, Some(r)) = (i.code(), dwarf_register(i.op0_register())) {
                frame.add_instruction(i.next_ip() as u32, CallFrameInstruction::Offset(r, -depth));
            }
        }
        self.describe(isa, frame);
    }

    fn function(&mut self, id: FuncId) -> Address {
        self.functions.push(id);
        Address::Symbol { symbol: self.functions.len() - 1, addend: 0 }
    }

    fn describe(&mut self, isa: &dyn TargetIsa, frame: FrameDescriptionEntry) {
        let common = match (self.common, isa.create_systemv_cie()) {
            (Some(c), _) => c,
            (None, Some(mut c)) => {
                c.fde_address_encoding = DwEhPe(DW_EH_PE_pcrel.0 | DW_EH_PE_sdata4.0);
                *self.common.insert(self.table.add_cie(c))
            }
            (None, None) => return,
        };
        self.table.add_fde(common, frame);
    }

    /// Adds the section to the object.
    pub fn finish(self, product: &mut ObjectProduct) -> Result<()> {
        let mut section = EhFrame(Section { bytes: EndianVec::new(LittleEndian), relocations: vec![] });
        self.table.write_eh_frame(&mut section).map_err(fail)?;
        let Section { bytes, relocations } = section.0;
        // Section and offset, not the function's symbol: linkers refuse relative references to symbols that others may replace.
        let mut places = vec![];
        for f in &self.functions {
            let symbol = product.object.symbol(product.function_symbol(*f));
            let (section, value) = (symbol.section.id().ok_or_else(|| fail("a function is nowhere"))?, symbol.value);
            places.push((product.object.section_symbol(section), value));
        }
        let id = product.object.section_id(StandardSection::EhFrame);
        product.object.append_section_data(id, bytes.slice(), 8);
        for r in relocations {
            let gimli::write::RelocationTarget::Symbol(function) = r.target else { return Err(fail("a reference to a section")) };
            let (symbol, value) = places[function];
            let flags = RelocationFlags::Generic { kind: RelocationKind::Relative, encoding: RelocationEncoding::Generic, size: 8 * r.size };
            let relocation = object::write::Relocation { offset: r.offset as u64, symbol, addend: r.addend + value as i64, flags };
            product.object.add_relocation(id, relocation).map_err(fail)?;
        }
        Ok(())
    }
}

/// Numbers of the registers that functions must preserve (x86-64 psABI, figure 3.36).
fn dwarf_register(r: Register) -> Option<gimli::Register> {
    Some(gimli::Register(match r {
        Register::RBX => 3,
        Register::RBP => 6,
        Register::R12 => 12,
        Register::R13 => 13,
        Register::R14 => 14,
        Register::R15 => 15,
        _ => return None,
    }))
}

struct Section {
    bytes: EndianVec<LittleEndian>,
    relocations: Vec<Relocation>,
}

impl RelocateWriter for Section {
    type Writer = EndianVec<LittleEndian>;

    fn writer(&self) -> &Self::Writer {
        &self.bytes
    }

    fn writer_mut(&mut self) -> &mut Self::Writer {
        &mut self.bytes
    }

    fn relocate(&mut self, relocation: Relocation) {
        self.relocations.push(relocation);
    }
}
