//! Objects with their weights, and static libraries around them.

use crate::abi::ALIGN;
use crate::weights::{weight_bytes, write_weights};
use nnc_ir::{Error, Result, Tensor};
use object::elf::{self, FileHeader64, SectionHeader64};
use object::endian::{LittleEndian as LE, U16, U32, U64};
use object::read::elf::{FileHeader as _, Sym as _};
use object::{ObjectSymbol, pod};
use std::io::Write;

/// Cranelift's object in the three parts around the weights: they get a section of their own, so that no copy of them is made.
struct Parts {
    /// The object, with the weights' symbol defined and the section table moved.
    head: Vec<u8>,
    weight_bytes: u64,
    /// The section table.
    tail: Vec<u8>,
}

impl Parts {
    fn len(&self) -> u64 {
        self.head.len() as u64 + self.weight_bytes + self.tail.len() as u64
    }

    fn write(&self, weights: &[(u64, Tensor)], out: &mut dyn Write) -> Result<()> {
        put(&self.head, out)?;
        if self.weight_bytes > 0 {
            write_weights(weights, out)?;
        }
        put(&self.tail, out)
    }
}

fn put(data: &[u8], out: &mut dyn Write) -> Result<()> {
    out.write_all(data).map_err(|e| Error::io(format!("writing the object: {e}")))
}

fn bad(what: &str) -> Error {
    Error::internal(format!("Cranelift's object: {what}"))
}

fn split(object: &[u8], symbol: &str, weights: &[(u64, Tensor)]) -> Result<Parts> {
    let weight_bytes = weight_bytes(weights);
    let mut head = object.to_vec();
    if weight_bytes == 0 {
        return Ok(Parts { head, weight_bytes, tail: vec![] });
    }
    let header = FileHeader64::<LE>::parse(object).map_err(|e| bad(&e.to_string()))?;
    let sections = header.sections(LE, object).map_err(|e| bad(&e.to_string()))?;
    let table = sections.symbols(LE, object, elf::SHT_SYMTAB).map_err(|e| bad(&e.to_string()))?;
    let mut headers: Vec<SectionHeader64<LE>> = sections.iter().copied().collect();
    let own = headers.len();

    // The symbol becomes the start of the new section, hidden: each library that is linked has weights of its own.
    let found = table.enumerate().find(|(_, s)| s.name(LE, table.strings()) == Ok(symbol.as_bytes()));
    let (index, old) = found.ok_or_else(|| bad("the weights' symbol is missing"))?;
    let mut new = *old;
    new.st_shndx = U16::new(LE, own as u16);
    new.st_other = elf::STV_HIDDEN;
    new.st_info = elf::STB_GLOBAL << 4 | elf::STT_OBJECT;
    new.st_size = U64::new(LE, weight_bytes);
    let at = sections.section(table.section()).map_err(|e| bad(&e.to_string()))?.sh_offset.get(LE) as usize + index.0 * size_of_val(&new);
    head[at..at + size_of_val(&new)].copy_from_slice(pod::bytes_of(&new));

    head.resize(head.len().next_multiple_of(ALIGN), 0);
    // Any section's name will do; linkers put sections of one name together.
    let rodata = headers.iter().position(|h| sections.section_name(LE, h) == Ok(b".rodata")).ok_or_else(|| bad("it has no .rodata"))?;
    headers.push(SectionHeader64 {
        sh_name: headers[rodata].sh_name,
        sh_type: U32::new(LE, elf::SHT_PROGBITS),
        sh_flags: U64::new(LE, elf::SHF_ALLOC.into()),
        sh_addr: U64::new(LE, 0),
        sh_offset: U64::new(LE, head.len() as u64),
        sh_size: U64::new(LE, weight_bytes),
        sh_link: U32::new(LE, 0),
        sh_info: U32::new(LE, 0),
        sh_addralign: U64::new(LE, ALIGN as u64),
        sh_entsize: U64::new(LE, 0),
    });
    let pad = weight_bytes.next_multiple_of(8) - weight_bytes;
    let mut tail = vec![0; pad as usize];
    tail.extend_from_slice(pod::bytes_of_slice(&headers));
    let mut file: FileHeader64<LE> = *header;
    file.e_shoff = U64::new(LE, head.len() as u64 + weight_bytes + pad);
    file.e_shnum = U16::new(LE, headers.len() as u16);
    head[..size_of_val(&file)].copy_from_slice(pod::bytes_of(&file));
    Ok(Parts { head, weight_bytes, tail })
}

/// The object with the weights in it; returns its length.
pub fn write_object(object: &[u8], symbol: &str, weights: &[(u64, Tensor)], out: &mut dyn Write) -> Result<u64> {
    let parts = split(object, symbol, weights)?;
    parts.write(weights, out)?;
    Ok(parts.len())
}

/// A static library (`ar`) with the object as its one member; returns its length. Its index holds the exported functions.
pub fn write_archive(object: &[u8], symbol: &str, weights: &[(u64, Tensor)], out: &mut dyn Write) -> Result<u64> {
    use object::Object;
    let parts = split(object, symbol, weights)?;
    let file = object::File::parse(object).map_err(|e| bad(&e.to_string()))?;
    let names: Vec<&str> = file.symbols().filter(|s| s.is_global() && !s.is_undefined()).filter_map(|s| s.name().ok()).collect();
    let mut index = (names.len() as u32).to_be_bytes().to_vec();
    let strings: usize = names.iter().map(|n| n.len() + 1).sum();
    let index_len = (4 + 4 * names.len() + strings).next_multiple_of(2);
    let member_at = (MAGIC.len() + MEMBER + index_len) as u32;
    names.iter().for_each(|_| index.extend(member_at.to_be_bytes()));
    names.iter().for_each(|n| index.extend(n.bytes().chain([0])));
    index.resize(index_len, 0);
    if parts.len() >= 10_000_000_000 {
        return Err(Error::limit("a member of a static library has at most 9999999999 bytes: emit an object or a shared library"));
    }
    put(MAGIC, out)?;
    put(&member("/", index.len() as u64), out)?;
    put(&index, out)?;
    put(&member("model.o/", parts.len()), out)?;
    parts.write(weights, out)?;
    let odd = parts.len() % 2;
    put(&b"\n"[..odd as usize], out)?;
    Ok(u64::from(member_at) + MEMBER as u64 + parts.len() + odd)
}

const MAGIC: &[u8] = b"!<arch>\n";
const MEMBER: usize = 60;

/// Name, time, owner, group, mode, size: in decimal (the mode in octal), padded with spaces.
fn member(name: &str, bytes: u64) -> Vec<u8> {
    format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{bytes:<10}`\n", 0, 0, 0, 644).into_bytes()
}
