//! From an object file to a shared library, without a linker.
//!
//! The writer takes the relocatable ELF that Cranelift makes, lays its sections out in four segments (read-only, code, data,
//! weights), resolves what is local, and leaves to the dynamic loader only what it must: imports from libc and libm, and absolute
//! addresses in data. Weights are the last bytes of the file and are written one tensor at a time, so a model's constants are
//! never held twice; only their first address is a symbol, everything beyond it is a 64-bit offset.
//!
//! Formats: System V ABI (gABI) chapters 4 and 5, the x86-64 psABI and the Arm 64-bit ELF ABI for relocations.

use crate::weights::{weight_bytes, write_weights};
use nnc_ir::{Error, Result, Tensor};
use object::read::elf::ElfFile64;
use object::{
    Architecture, Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex, SectionKind, SymbolIndex,
    SymbolKind, elf,
};
use std::collections::BTreeMap;
use std::io::Write;

/// What a library is made of.
pub struct Library<'a> {
    /// A relocatable ELF object with position-independent code.
    pub object: &'a [u8],
    /// Functions that other programs see.
    pub exports: &'a [String],
    /// What the library calls itself (`DT_SONAME`).
    pub soname: &'a str,
    /// The symbol that the code uses for the start of the weights.
    pub weights_symbol: &'a str,
    /// By ascending byte offsets; empty where the weights are elsewhere.
    pub weights: &'a [(u64, Tensor)],
}

/// Functions that libc has; any other import comes from libm.
const LIBC: &[&str] = &["memcpy", "memmove", "memset", "memcmp"];

const R: u32 = elf::PF_R;
const RX: u32 = elf::PF_R | elf::PF_X;
const RW: u32 = elf::PF_R | elf::PF_W;

/// A section of the library.
struct Section {
    name: String,
    kind: u32,
    flags: u64,
    /// Segment permissions, or 0 for a section that is not loaded.
    segment: u32,
    align: u64,
    data: Vec<u8>,
    /// Bytes in memory; more than `data` has where the rest is zero.
    size: u64,
    address: u64,
    offset: u64,
    link: u32,
    info: u32,
    entry: u64,
}

impl Section {
    fn new(name: &str, kind: u32, segment: u32, align: u64, data: Vec<u8>) -> Section {
        let flags = match segment {
            R => elf::SHF_ALLOC,
            RX => elf::SHF_ALLOC | elf::SHF_EXECINSTR,
            RW => elf::SHF_ALLOC | elf::SHF_WRITE,
            _ => 0,
        };
        let size = data.len() as u64;
        Section { name: name.into(), kind, flags: flags.into(), segment, align, data, size, address: 0, offset: 0, link: 0, info: 0, entry: 0 }
    }
}

/// A dynamic relocation.
struct Dynamic {
    address: u64,
    kind: u32,
    symbol: u32,
    addend: i64,
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::internal(format!("shared library: {what}"))
}

fn round_up(x: u64, to: u64) -> u64 {
    x.div_ceil(to) * to
}

/// Bytes of a table of little-endian words.
fn words<const N: usize>(rows: impl IntoIterator<Item = [u64; N]>) -> Vec<u8> {
    rows.into_iter().flatten().flat_map(u64::to_le_bytes).collect()
}

/// Where a symbol of the object is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    /// In a section of the library, by its position in the list.
    At(usize, u64),
    /// The start of the weights.
    Weights,
    /// In another library: position in the list of imports.
    Import(usize),
}

/// What the dynamic loader reads by name.
struct Names {
    /// Name, its offset in the string table, whether it is imported. Imports come first.
    symbols: Vec<(String, u32, bool)>,
    strings: Vec<u8>,
    /// Offsets of the names of needed libraries, and of the library's own.
    needed: Vec<u64>,
    soname: u64,
}

struct Writer<'a> {
    library: &'a Library<'a>,
    file: ElfFile64<'a, Endianness>,
    arm: bool,
    page: u64,
    sections: Vec<Section>,
    /// Library section of each object section.
    placed: BTreeMap<usize, usize>,
    imports: Vec<String>,
    /// Slots of the global offset table, in order.
    slots: Vec<Place>,
    weights_at: u64,
}

/// An error where the file ends before what its program headers and its section table say: the system would map it all the same and
/// stop the process at the first touch of what is missing. `head` is the file's beginning (headers lie there), `bytes` its length.
pub fn check_whole(head: &[u8], bytes: u64) -> Result<()> {
    let cut = |what: &str| Error::input(format!("the file is cut off: {what} should end beyond its {bytes} bytes"));
    let number = |at: usize, n: usize| -> Option<u64> {
        let mut word = [0; 8];
        word[..n].copy_from_slice(head.get(at..at.checked_add(n)?)?);
        Some(u64::from_le_bytes(word))
    };
    let ends_inside = |start: Option<u64>, length: Option<u64>| start.zip(length).and_then(|(a, n)| a.checked_add(n)).is_some_and(|end| end <= bytes);
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(Error::input("this is no 64-bit ELF library"));
    }
    let (headers, size, count) = (number(32, 8), number(54, 2).unwrap_or(0), number(56, 2).unwrap_or(0));
    if !ends_inside(headers, Some(size * count)) || !ends_inside(number(40, 8), Some(number(58, 2).unwrap_or(0) * number(60, 2).unwrap_or(0))) {
        return Err(cut("its tables"));
    }
    for i in 0..count {
        let at = headers.and_then(|h| usize::try_from(h + i * size).ok()).ok_or_else(|| cut("its tables"))?;
        let loaded = number(at, 4) == Some(1);
        if loaded && !ends_inside(number(at + 8, 8), number(at + 32, 8)) {
            return Err(cut("a segment"));
        }
    }
    Ok(())
}

/// Writes the library to `out`.
pub fn write_library(library: &Library<'_>, out: &mut dyn Write) -> Result<()> {
    let file = ElfFile64::<Endianness>::parse(library.object).map_err(bad)?;
    let arm = match file.architecture() {
        Architecture::X86_64 => false,
        Architecture::Aarch64 => true,
        a => return Err(Error::unsupported(format!("shared libraries for {a:?}"))),
    };
    let mut w = Writer {
        library,
        file,
        arm,
        page: if arm { 0x10000 } else { 0x1000 },
        sections: vec![],
        placed: BTreeMap::new(),
        imports: vec![],
        slots: vec![],
        weights_at: 0,
    };
    let image = w.build()?;
    let io = |e: std::io::Error| Error::io(format!("writing the library: {e}"));
    out.write_all(&image).map_err(io)?;
    write_weights(library.weights, out)?;
    out.flush().map_err(io)
}

impl Writer<'_> {
    /// Everything but the weights.
    fn build(&mut self) -> Result<Vec<u8>> {
        self.find_imports()?;
        // Tables whose sizes are known first; their contents come when addresses are.
        let Names { symbols: dynsym, strings: dynstr, needed, soname } = self.dynamic_names();
        let hash = hash_table(&dynsym.iter().map(|s| s.0.as_str()).collect::<Vec<_>>());
        let symbol_count = dynsym.len();
        self.sections.push(Section::new(".hash", elf::SHT_HASH, R, 8, hash));
        self.sections.push(Section { entry: 24, info: 1, ..Section::new(".dynsym", elf::SHT_DYNSYM, R, 8, vec![0; 24 * (symbol_count + 1)]) });
        self.sections.push(Section::new(".dynstr", elf::SHT_STRTAB, R, 1, dynstr));
        let relocations = self.count_dynamic()?;
        self.sections.push(Section { entry: 24, ..Section::new(".rela.dyn", elf::SHT_RELA, R, 8, vec![0; 24 * relocations]) });
        self.take_sections(
            &[SectionKind::ReadOnlyData, SectionKind::ReadOnlyString, SectionKind::Other, SectionKind::Elf(elf::SHT_X86_64_UNWIND)],
            R,
        );
        if self.index(".eh_frame").is_some() {
            self.sections.push(Section::new(".eh_frame_hdr", elf::SHT_PROGBITS, R, 4, vec![0; 8]));
        }
        self.take_sections(&[SectionKind::Text], RX);
        let plt = self.stub(0, 0).len() * self.imports.len();
        self.sections.push(Section::new(".plt", elf::SHT_PROGBITS, RX, 16, vec![0; plt]));
        let dynamic_rows = 11 + needed.len();
        self.sections.push(Section { entry: 16, ..Section::new(".dynamic", elf::SHT_DYNAMIC, RW, 8, vec![0; 16 * dynamic_rows]) });
        self.sections.push(Section { entry: 8, ..Section::new(".got", elf::SHT_PROGBITS, RW, 8, vec![0; 8 * self.slots.len()]) });
        self.take_sections(&[SectionKind::ReadOnlyDataWithRel], RW);
        let protected = self.sections.len();
        self.take_sections(&[SectionKind::Data], RW);
        self.take_sections(&[SectionKind::UninitializedData], RW);
        // What stays writable starts on a page of its own, so that all before it can be protected after relocation.
        if let Some(s) = self.sections[protected..].first_mut() {
            s.align = s.align.max(self.page);
        }
        let relro: Vec<String> = self.sections[..protected].iter().filter(|s| s.segment == RW).map(|s| s.name.clone()).collect();
        self.sections.retain(|s| s.size > 0 || s.name == ".rela.dyn");
        // Positions moved: name them again.
        let by_name: BTreeMap<String, usize> = self.sections.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let relro_end = self.sections.iter().rposition(|s| relro.contains(&s.name));
        self.place_again(&by_name)?;
        let headers = 10;
        self.lay_out(64 + 56 * headers);

        let mut dynamics = self.relocate()?;
        self.fill_stubs_and_slots(&mut dynamics)?;
        self.fill_dynamic_symbols(&dynsym)?;
        dynamics.sort_by_key(|d| (d.symbol, d.address));
        let rows = dynamics.iter().map(|d| [d.address, (u64::from(d.symbol) << 32) | u64::from(d.kind), d.addend as u64]);
        let rela = words(rows);
        let at = self.index(".rela.dyn").ok_or_else(|| bad("no .rela.dyn"))?;
        if rela.len() > self.sections[at].data.len() {
            return Err(bad("more relocations than counted"));
        }
        self.sections[at].data[..rela.len()].copy_from_slice(&rela);
        self.fill_dynamic(&needed, soname, rela.len() as u64)?;
        self.fill_eh_frame_header();
        self.emit(headers, relro_end)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.sections.iter().position(|s| s.name == name)
    }

    fn address(&self, name: &str) -> u64 {
        self.index(name).map_or(0, |i| self.sections[i].address)
    }

    /// Takes over the object's sections of some kinds.
    fn take_sections(&mut self, kinds: &[SectionKind], segment: u32) {
        let taken: Vec<(usize, Section)> = self
            .file
            .sections()
            .filter(|s| kinds.contains(&s.kind()) && s.size() > 0)
            .filter(|s| matches!(s.flags(), object::SectionFlags::Elf { sh_flags } if sh_flags & u64::from(elf::SHF_ALLOC) != 0))
            .map(|s| {
                let zero = s.kind() == SectionKind::UninitializedData;
                let kind = if zero { elf::SHT_NOBITS } else { elf::SHT_PROGBITS };
                let mut data = if zero { vec![] } else { s.data().unwrap_or_default().to_vec() };
                let name = s.name().unwrap_or(".section").to_string();
                if name == ".eh_frame" {
                    // The end of the table, which linkers take from a start-up file.
                    data.extend([0; 4]);
                }
                let size = if zero { s.size() } else { data.len() as u64 };
                (s.index().0, Section { size, ..Section::new(&name, kind, segment, s.align().max(1), data) })
            })
            .collect();
        for (index, section) in taken {
            self.placed.insert(index, self.sections.len());
            self.sections.push(section);
        }
    }

    fn place_again(&mut self, by_name: &BTreeMap<String, usize>) -> Result<()> {
        for (index, at) in &mut self.placed {
            let name = self.file.section_by_index(SectionIndex(*index)).map_err(bad)?.name().unwrap_or(".section").to_string();
            *at = *by_name.get(&name).ok_or_else(|| bad(format!("section {name} is lost")))?;
        }
        Ok(())
    }

    fn symbol_place(&self, index: SymbolIndex) -> Result<Place> {
        let s = self.file.symbol_by_index(index).map_err(bad)?;
        let name = s.name().map_err(bad)?;
        if let Some(section) = s.section_index() {
            let at = self.placed.get(&section.0).ok_or_else(|| bad(format!("`{name}` lies in a section that is not loaded")))?;
            return Ok(Place::At(*at, s.address()));
        }
        if name == self.library.weights_symbol {
            return Ok(Place::Weights);
        }
        let import = self.imports.iter().position(|i| i == name).ok_or_else(|| bad(format!("`{name}` is not defined")))?;
        Ok(Place::Import(import))
    }

    /// Undefined symbols that are used, sorted by name.
    fn find_imports(&mut self) -> Result<()> {
        for section in self.file.sections() {
            for (_, r) in section.relocations() {
                let RelocationTarget::Symbol(index) = r.target() else { continue };
                let s = self.file.symbol_by_index(index).map_err(bad)?;
                let name = s.name().map_err(bad)?.to_string();
                if s.is_undefined() && name != self.library.weights_symbol && !self.imports.contains(&name) {
                    self.imports.push(name);
                }
            }
        }
        self.imports.sort();
        Ok(())
    }

    /// An upper bound on dynamic relocations, and the slots of the offset table.
    fn count_dynamic(&mut self) -> Result<usize> {
        let mut absolute = 0;
        let mut slots: Vec<Place> = (0..self.imports.len()).map(Place::Import).collect();
        let mut locals = 0;
        for section in self.file.sections() {
            for (_, r) in section.relocations() {
                let RelocationFlags::Elf { r_type } = r.flags() else { return Err(bad("a relocation that is not ELF's")) };
                match (self.arm, r_type) {
                    (false, elf::R_X86_64_64) | (true, elf::R_AARCH64_ABS64) => absolute += 1,
                    (true, elf::R_AARCH64_ADR_GOT_PAGE) => locals += 1,
                    _ => {}
                }
            }
        }
        // Arm code goes through the table for local symbols too: one slot each, filled in when places are known.
        if self.arm && locals > 0 {
            for section in self.file.sections() {
                for (_, r) in section.relocations() {
                    let (RelocationFlags::Elf { r_type: elf::R_AARCH64_ADR_GOT_PAGE }, RelocationTarget::Symbol(index)) = (r.flags(), r.target())
                    else {
                        continue;
                    };
                    let s = self.file.symbol_by_index(index).map_err(bad)?;
                    let place = match (s.section_index(), s.name().map_err(bad)?) {
                        // The section's index for now; relocation looks slots up by place, see `slot`.
                        (Some(section), _) => Place::At(section.0, s.address()),
                        (None, name) if name == self.library.weights_symbol => Place::Weights,
                        (None, _) => continue,
                    };
                    if !slots.contains(&place) {
                        slots.push(place);
                    }
                }
            }
        }
        self.slots = slots;
        Ok(absolute + self.slots.len())
    }

    fn dynamic_names(&self) -> Names {
        let mut strings = vec![0u8];
        let mut intern = |s: &str| {
            let at = strings.len() as u32;
            strings.extend(s.bytes());
            strings.push(0);
            at
        };
        let mut symbols: Vec<(String, u32, bool)> = self.imports.iter().map(|s| (s.clone(), intern(s), true)).collect();
        symbols.extend(self.library.exports.iter().map(|s| (s.clone(), intern(s), false)));
        let mut needed = vec![];
        if self.imports.iter().any(|i| !LIBC.contains(&i.as_str())) {
            needed.push(u64::from(intern("libm.so.6")));
        }
        if self.imports.iter().any(|i| LIBC.contains(&i.as_str())) {
            needed.push(u64::from(intern("libc.so.6")));
        }
        let soname = u64::from(intern(self.library.soname));
        Names { symbols, strings, needed, soname }
    }

    /// Assigns addresses, equal to file offsets: segments start on pages of their own.
    fn lay_out(&mut self, start: u64) {
        let (mut at, mut segment) = (start, R);
        for s in &mut self.sections {
            if s.segment != segment {
                at = round_up(at, self.page);
                segment = s.segment;
            }
            at = round_up(at, s.align);
            (s.address, s.offset) = (at, at);
            at += s.size;
        }
        self.weights_at = round_up(at, self.page);
    }

    fn place_address(&self, p: Place) -> u64 {
        match p {
            Place::At(section, offset) => self.sections[section].address + offset,
            Place::Weights => self.weights_at,
            Place::Import(i) => self.address(".plt") + (i * self.stub(0, 0).len()) as u64,
        }
    }

    /// Address of the offset-table slot for a place.
    fn slot(&self, p: Place) -> Result<u64> {
        let i = self.slots.iter().position(|s| *s == p).ok_or_else(|| bad("no slot in the offset table"))?;
        Ok(self.address(".got") + 8 * i as u64)
    }

    /// Applies the object's relocations; what only the loader can do comes back.
    fn relocate(&mut self) -> Result<Vec<Dynamic>> {
        // Slots of local symbols were noted by the object's section.
        for i in 0..self.slots.len() {
            if let Place::At(section, offset) = self.slots[i] {
                let at = self.placed.get(&section).ok_or_else(|| bad("a slot for a section that is not loaded"))?;
                self.slots[i] = Place::At(*at, offset);
            }
        }
        let mut dynamics = vec![];
        let mut patches = vec![];
        for section in self.file.sections() {
            let Some(&at) = self.placed.get(&section.index().0) else { continue };
            for (offset, r) in section.relocations() {
                let place = match r.target() {
                    RelocationTarget::Symbol(i) => self.symbol_place(i)?,
                    RelocationTarget::Section(i) => {
                        Place::At(*self.placed.get(&i.0).ok_or_else(|| bad("a relocation to a section that is not loaded"))?, 0)
                    }
                    t => return Err(bad(format!("a relocation to {t:?}"))),
                };
                let RelocationFlags::Elf { r_type } = r.flags() else { return Err(bad("a relocation that is not ELF's")) };
                patches.push((at, offset, place, r_type, r.addend()));
            }
        }
        for (at, offset, place, r_type, addend) in patches {
            if self.arm {
                self.patch_arm(at, offset, place, r_type, addend, &mut dynamics)?
            } else {
                self.patch_x86(at, offset, place, r_type, addend, &mut dynamics)?
            }
        }
        Ok(dynamics)
    }

    fn bytes_at(&mut self, section: usize, offset: u64, n: usize) -> Result<&mut [u8]> {
        let from = offset as usize;
        self.sections[section].data.get_mut(from..from.saturating_add(n)).ok_or_else(|| bad("a relocation outside its section"))
    }

    fn absolute(&self, at: usize, offset: u64, place: Place, addend: i64) -> Dynamic {
        let (relative, word) = if self.arm { (elf::R_AARCH64_RELATIVE, elf::R_AARCH64_ABS64) } else { (elf::R_X86_64_RELATIVE, elf::R_X86_64_64) };
        let address = self.sections[at].address + offset;
        match place {
            Place::Import(i) => Dynamic { address, kind: word, symbol: i as u32 + 1, addend },
            p => Dynamic { address, kind: relative, symbol: 0, addend: (self.place_address(p) as i64).wrapping_add(addend) },
        }
    }

    fn patch_x86(&mut self, at: usize, offset: u64, place: Place, r_type: u32, addend: i64, dynamics: &mut Vec<Dynamic>) -> Result<()> {
        let here = self.sections[at].address + offset;
        let target = match r_type {
            elf::R_X86_64_64 => {
                dynamics.push(self.absolute(at, offset, place, addend));
                return Ok(());
            }
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => self.place_address(place),
            elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => match place {
                Place::Import(_) => self.slot(place)?,
                // `mov reg, [slot]` of a local symbol becomes `lea reg, [symbol]` (psABI, B.2).
                _ => {
                    let from = offset.checked_sub(2).ok_or_else(|| bad("a relocation outside its section"))?;
                    let opcode = self.bytes_at(at, from, 1)?;
                    if opcode[0] != 0x8b {
                        return Err(bad("an access through the offset table that is no mov"));
                    }
                    opcode[0] = 0x8d;
                    self.place_address(place)
                }
            },
            t => return Err(bad(format!("x86-64 relocation {t}"))),
        };
        let value = (target as i64).wrapping_add(addend).wrapping_sub(here as i64);
        let value = i32::try_from(value).map_err(|_| bad("code and data are more than 2 GiB apart"))?;
        self.bytes_at(at, offset, 4)?.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn patch_arm(&mut self, at: usize, offset: u64, place: Place, r_type: u32, addend: i64, dynamics: &mut Vec<Dynamic>) -> Result<()> {
        let here = self.sections[at].address + offset;
        let via_slot = matches!(r_type, elf::R_AARCH64_ADR_GOT_PAGE | elf::R_AARCH64_LD64_GOT_LO12_NC);
        let target = (if via_slot { self.slot(place)? } else { self.place_address(place) } as i64).wrapping_add(addend) as u64;
        let page = |x: u64| (x >> 12) as i64;
        match r_type {
            elf::R_AARCH64_ABS64 => {
                dynamics.push(self.absolute(at, offset, place, addend));
                return Ok(());
            }
            elf::R_AARCH64_PREL32 => {
                let value = i32::try_from(target.wrapping_sub(here) as i64).map_err(|_| bad("code and data are more than 2 GiB apart"))?;
                self.bytes_at(at, offset, 4)?.copy_from_slice(&value.to_le_bytes());
                return Ok(());
            }
            _ => {}
        }
        let (mask, bits) = match r_type {
            elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26 => (0x03ff_ffff, ((target.wrapping_sub(here) >> 2) & 0x03ff_ffff) as u32),
            elf::R_AARCH64_ADR_PREL_PG_HI21 | elf::R_AARCH64_ADR_GOT_PAGE => {
                let pages = (page(target) - page(here)) as u32;
                (0x60ff_ffe0, ((pages & 3) << 29) | (((pages >> 2) & 0x7ffff) << 5))
            }
            elf::R_AARCH64_ADD_ABS_LO12_NC => (0xfff << 10, ((target & 0xfff) as u32) << 10),
            elf::R_AARCH64_LD64_GOT_LO12_NC => (0xfff << 10, (((target & 0xfff) >> 3) as u32) << 10),
            t => return Err(bad(format!("aarch64 relocation {t}"))),
        };
        let slot = self.bytes_at(at, offset, 4)?;
        let mut word = [0; 4];
        word.copy_from_slice(slot);
        slot.copy_from_slice(&((u32::from_le_bytes(word) & !mask) | bits).to_le_bytes());
        Ok(())
    }

    /// Code that jumps to the address in a slot of the offset table.
    fn stub(&self, here: u64, slot: u64) -> Vec<u8> {
        if !self.arm {
            // jmp [rip + slot]; two bytes of padding
            let rel = (slot as i64).wrapping_sub(here as i64 + 6) as i32;
            return [&[0xff, 0x25][..], &rel.to_le_bytes(), &[0x66, 0x90]].concat();
        }
        // adrp x16, slot; ldr x17, [x16, lo12]; br x17; nop
        let pages = ((slot >> 12) as i64 - (here >> 12) as i64) as u32;
        let adrp = 0x9000_0010 | ((pages & 3) << 29) | (((pages >> 2) & 0x7ffff) << 5);
        let ldr = 0xf940_0211 | ((((slot & 0xfff) >> 3) as u32) << 10);
        [adrp, ldr, 0xd61f_0220, 0xd503_201f].iter().flat_map(|w: &u32| w.to_le_bytes()).collect()
    }

    fn fill_stubs_and_slots(&mut self, dynamics: &mut Vec<Dynamic>) -> Result<()> {
        let size = self.stub(0, 0).len();
        for i in 0..self.imports.len() {
            let (here, slot) = (self.address(".plt") + (i * size) as u64, self.slot(Place::Import(i))?);
            let code = self.stub(here, slot);
            let plt = self.index(".plt").ok_or_else(|| bad("no stubs"))?;
            self.bytes_at(plt, (i * size) as u64, size)?.copy_from_slice(&code);
        }
        let (glob_dat, relative) =
            if self.arm { (elf::R_AARCH64_GLOB_DAT, elf::R_AARCH64_RELATIVE) } else { (elf::R_X86_64_GLOB_DAT, elf::R_X86_64_RELATIVE) };
        for (i, p) in self.slots.clone().into_iter().enumerate() {
            let address = self.address(".got") + 8 * i as u64;
            dynamics.push(match p {
                Place::Import(s) => Dynamic { address, kind: glob_dat, symbol: s as u32 + 1, addend: 0 },
                p => Dynamic { address, kind: relative, symbol: 0, addend: self.place_address(p) as i64 },
            });
        }
        Ok(())
    }

    fn fill_dynamic_symbols(&mut self, symbols: &[(String, u32, bool)]) -> Result<()> {
        let mut rows = vec![0u8; 24];
        for (name, string, import) in symbols {
            let (section, value, size) = if *import {
                (0, 0, 0)
            } else {
                let s =
                    self.file.symbols().find(|s| s.name() == Ok(name) && s.is_definition()).ok_or_else(|| bad(format!("`{name}` is not defined")))?;
                let Place::At(at, offset) = self.symbol_place(s.index())? else { return Err(bad(format!("`{name}` is not in the object"))) };
                (at as u16 + 1, self.sections[at].address + offset, s.size())
            };
            rows.extend(symbol_row(*string, (elf::STB_GLOBAL << 4) | elf::STT_FUNC, section, value, size));
        }
        let at = self.index(".dynsym").ok_or_else(|| bad("no symbols"))?;
        self.sections[at].data = rows;
        Ok(())
    }

    fn fill_dynamic(&mut self, needed: &[u64], soname: u64, rela_bytes: u64) -> Result<()> {
        let mut rows: Vec<[u64; 2]> = needed.iter().map(|n| [elf::DT_NEEDED as u64, *n]).collect();
        let strings = self.index(".dynstr").map_or(0, |i| self.sections[i].size);
        rows.extend([
            [elf::DT_SONAME as u64, soname],
            [elf::DT_HASH as u64, self.address(".hash")],
            [elf::DT_STRTAB as u64, self.address(".dynstr")],
            [elf::DT_STRSZ as u64, strings],
            [elf::DT_SYMTAB as u64, self.address(".dynsym")],
            [elf::DT_SYMENT as u64, 24],
        ]);
        if rela_bytes > 0 {
            rows.extend([[elf::DT_RELA as u64, self.address(".rela.dyn")], [elf::DT_RELASZ as u64, rela_bytes], [elf::DT_RELAENT as u64, 24]]);
        }
        rows.extend([[elf::DT_FLAGS as u64, elf::DF_BIND_NOW as u64], [elf::DT_NULL as u64, 0]]);
        let at = self.index(".dynamic").ok_or_else(|| bad("no dynamic section"))?;
        let data = words(rows);
        if data.len() > self.sections[at].data.len() {
            return Err(bad("more dynamic entries than counted"));
        }
        self.sections[at].data[..data.len()].copy_from_slice(&data);
        Ok(())
    }

    /// Where unwinders find the frames (Linux Standard Base, `.eh_frame_hdr`), without a search table.
    fn fill_eh_frame_header(&mut self) {
        let (Some(at), frames) = (self.index(".eh_frame_hdr"), self.address(".eh_frame")) else { return };
        const PCREL_SDATA4: u8 = 0x1b;
        const OMIT: u8 = 0xff;
        let rel = (frames as i64 - (self.sections[at].address as i64 + 4)) as i32;
        self.sections[at].data = [&[1, PCREL_SDATA4, OMIT, OMIT][..], &rel.to_le_bytes()].concat();
    }

    /// Names for debuggers and profilers: every function of the object.
    fn debug_symbols(&self) -> Result<(Vec<u8>, Vec<u8>, u32)> {
        let (mut rows, mut strings) = (vec![0u8; 24], vec![0u8]);
        for s in self.file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.is_definition()) {
            let Place::At(at, offset) = self.symbol_place(s.index())? else { continue };
            let name = strings.len() as u32;
            strings.extend(s.name().map_err(bad)?.bytes());
            strings.push(0);
            rows.extend(symbol_row(name, (elf::STB_LOCAL << 4) | elf::STT_FUNC, at as u16 + 1, self.sections[at].address + offset, s.size()));
        }
        let count = (rows.len() / 24) as u32;
        Ok((rows, strings, count))
    }

    /// Headers and sections, up to the weights.
    fn emit(&mut self, headers: u64, relro_end: Option<usize>) -> Result<Vec<u8>> {
        let (weights_at, page, weight_bytes) = (self.weights_at, self.page, weight_bytes(self.library.weights));
        // Program headers: one a segment, then what the loader looks for.
        let mut ph: Vec<[u64; 7]> = vec![];
        let mut add = |kind: u32, flags: u32, at: u64, file: u64, memory: u64, align: u64| {
            // File offsets equal addresses but for the weights, whose offset is put in below.
            ph.push([(u64::from(flags) << 32) | u64::from(kind), at, at, at, file, memory, align]);
        };
        for flags in [R, RX, RW] {
            let inside: Vec<&Section> = self.sections.iter().filter(|s| s.segment == flags).collect();
            let (Some(first), Some(last)) = (inside.first(), inside.last()) else { continue };
            let start = if flags == R { 0 } else { first.address };
            let file_end = inside.iter().filter(|s| s.kind != elf::SHT_NOBITS).map(|s| s.address + s.size).max().unwrap_or(start);
            add(elf::PT_LOAD, flags, start, file_end - start, last.address + last.size - start, page);
        }
        if weight_bytes > 0 {
            add(elf::PT_LOAD, R, weights_at, weight_bytes, weight_bytes, page);
        }
        for (name, kind) in [(".dynamic", elf::PT_DYNAMIC), (".eh_frame_hdr", elf::PT_GNU_EH_FRAME)] {
            if let Some(s) = self.index(name).map(|i| &self.sections[i]) {
                add(kind, s.segment, s.address, s.size, s.size, s.align);
            }
        }
        add(elf::PT_GNU_STACK, RW, 0, 0, 0, 16);
        let start = self.sections.iter().find(|s| s.segment == RW).map(|s| s.address);
        if let (Some(start), Some(end)) = (start, relro_end.map(|i| self.sections[i].address + self.sections[i].size)) {
            let whole = round_up(end, page);
            add(elf::PT_GNU_RELRO, R, start, whole - start, whole - start, 1);
        }
        if ph.len() as u64 > headers {
            return Err(bad("more program headers than planned"));
        }

        let (symbols, strings, locals) = self.debug_symbols()?;
        let loaded = self.sections.len();
        let dynstr = self.index(".dynstr").unwrap_or(0) as u32 + 1;
        let dynsym = self.index(".dynsym").unwrap_or(0) as u32 + 1;
        for s in &mut self.sections {
            s.link = match s.name.as_str() {
                ".dynsym" | ".dynamic" => dynstr,
                ".hash" | ".rela.dyn" => dynsym,
                _ => 0,
            };
        }
        self.sections.push(Section { link: loaded as u32 + 2, info: locals, entry: 24, ..Section::new(".symtab", elf::SHT_SYMTAB, 0, 8, symbols) });
        self.sections.push(Section::new(".strtab", elf::SHT_STRTAB, 0, 1, strings));
        let mut names = vec![0u8];
        let offsets: Vec<u32> = self
            .sections
            .iter()
            .map(|s| s.name.as_str())
            .chain([".shstrtab", ".weights"])
            .map(|n| {
                let at = names.len() as u32;
                names.extend(n.bytes());
                names.push(0);
                at
            })
            .collect();
        let names_at = self.sections.len() as u16 + 1;
        self.sections.push(Section::new(".shstrtab", elf::SHT_STRTAB, 0, 1, names));
        let end = self.sections[..loaded].iter().filter(|s| s.kind != elf::SHT_NOBITS).map(|s| s.offset + s.size).max().unwrap_or(0);
        let mut at = end;
        for s in &mut self.sections[loaded..] {
            at = round_up(at, s.align);
            s.offset = at;
            at += s.size;
        }
        let table_at = round_up(at, 8);
        let weights_row = (weight_bytes > 0).then(|| Section {
            size: weight_bytes,
            address: weights_at,
            ..Section::new(".weights", elf::SHT_PROGBITS, R, 64, vec![])
        });
        let rows = self.sections.len() + 1 + usize::from(weights_row.is_some());
        let image_end = table_at + 64 * rows as u64;
        // Symbols and the section table lie before the weights in the file but are not loaded; offset and address agree modulo pages.
        let weights_offset = round_up(image_end, page);
        if let Some(row) = ph.iter_mut().find(|row| weight_bytes > 0 && row[2] == weights_at) {
            row[1] = weights_offset;
        }

        let mut out = Vec::with_capacity(image_end as usize);
        let machine = if self.arm { elf::EM_AARCH64 } else { elf::EM_X86_64 };
        out.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend(elf::ET_DYN.to_le_bytes());
        out.extend(machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(words([[0, 64, table_at]]));
        out.extend(0u32.to_le_bytes());
        for half in [64u16, 56, ph.len() as u16, 64, rows as u16, names_at] {
            out.extend(half.to_le_bytes());
        }
        out.extend(words(ph));
        for s in self.sections.iter().filter(|s| s.kind != elf::SHT_NOBITS) {
            out.resize(s.offset as usize, 0);
            out.extend(&s.data);
        }
        out.resize(table_at as usize, 0);
        out.extend([0u8; 64]);
        for (s, name) in self.sections.iter().chain(&weights_row).zip(&offsets) {
            let offset = if s.name == ".weights" { weights_offset } else { s.offset };
            out.extend(name.to_le_bytes());
            out.extend(s.kind.to_le_bytes());
            out.extend(words([[s.flags, s.address, offset, s.size]]));
            out.extend(s.link.to_le_bytes());
            out.extend(s.info.to_le_bytes());
            out.extend(words([[s.align, s.entry]]));
        }
        if weight_bytes > 0 {
            out.resize(weights_offset as usize, 0);
        }
        Ok(out)
    }
}

/// A row of a symbol table (gABI, figure 4-16).
fn symbol_row(name: u32, info: u8, section: u16, value: u64, size: u64) -> Vec<u8> {
    let mut row = Vec::with_capacity(24);
    row.extend(name.to_le_bytes());
    row.extend([info, 0]);
    row.extend(section.to_le_bytes());
    row.extend(value.to_le_bytes());
    row.extend(size.to_le_bytes());
    row
}

/// A `DT_HASH` table over symbols 1, 2... (gABI, figure 5-12).
fn hash_table(names: &[&str]) -> Vec<u8> {
    let buckets = names.len().max(1);
    let mut heads = vec![0u32; buckets];
    let mut chain = vec![0u32; names.len() + 1];
    for (i, name) in names.iter().enumerate() {
        let bucket = elf::hash(name.as_bytes()) as usize % buckets;
        chain[i + 1] = heads[bucket];
        heads[bucket] = i as u32 + 1;
    }
    [buckets as u32, chain.len() as u32].into_iter().chain(heads).chain(chain).flat_map(u32::to_le_bytes).collect()
}
