//! The text of a PTX file.

use super::alu::{Function, function, numbers};
use super::{Entry, Instr, Reg, Space, Special, Width};
use std::collections::HashMap;

/// All entry points, or what is wrong and on which line.
pub fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let mut lines = text.lines().enumerate().map(|(i, l)| (i + 1, l.trim())).filter(|(_, l)| !l.is_empty() && !l.starts_with("//"));
    let mut out = vec![];
    let mut head = vec![];
    while let Some((at, line)) = lines.next() {
        if let Some(rest) = line.strip_prefix(".visible .entry ") {
            let name = rest.trim_end_matches('(').to_string();
            let mut params = vec![];
            for (at, line) in lines.by_ref() {
                if line == ")" {
                    break;
                }
                let param = line.trim_end_matches(',').rsplit(' ').next().unwrap_or_default();
                if !line.starts_with(".param .u64 ") && !line.starts_with(".param .u32 ") {
                    return Err(format!("line {at}: `{line}` is no parameter"));
                }
                params.push(param.to_string());
            }
            let mut body = vec![];
            let mut threads = None;
            for (at, line) in lines.by_ref() {
                match line {
                    "{" => {}
                    "}" => break,
                    _ if line.starts_with(".maxntid ") => {
                        threads = line[9..].split(',').next().and_then(|n| n.trim().parse().ok());
                    }
                    _ => body.push((at, line)),
                }
            }
            let threads = threads.ok_or_else(|| format!("line {at}: {name} does not say how many threads it takes"))?;
            out.push(Parser::new(name, threads, &params).entry(&body)?);
        } else {
            head.push(line.split(' ').next().unwrap_or_default());
        }
    }
    if head != [".version", ".target", ".address_size"] {
        return Err(format!("the file starts with {head:?}"));
    }
    Ok(out)
}

struct Parser {
    entry: Entry,
    names: HashMap<String, Reg>,
    values: HashMap<u64, Reg>,
    params: HashMap<String, usize>,
    /// Registers that were declared: of each class, how many.
    declared: HashMap<String, u32>,
    shared: HashMap<String, u64>,
    labels: HashMap<String, usize>,
}

impl Parser {
    fn new(name: String, threads: u32, params: &[String]) -> Parser {
        let entry = Entry {
            name,
            threads,
            shared: 0,
            code: vec![],
            lines: vec![],
            registers: 0,
            constants: vec![],
            params: vec![None; params.len()],
            specials: vec![],
        };
        let params = params.iter().enumerate().map(|(i, p)| (p.clone(), i)).collect();
        Parser {
            entry,
            names: HashMap::new(),
            values: HashMap::new(),
            params,
            declared: HashMap::new(),
            shared: HashMap::new(),
            labels: HashMap::new(),
        }
    }

    fn entry(mut self, body: &[(usize, &str)]) -> Result<Entry, String> {
        let mut branches = vec![];
        for (at, line) in body {
            self.line(line, &mut branches).map_err(|why| format!("{}, line {at}: {why}: {line}", self.entry.name))?;
            self.entry.lines.resize(self.entry.code.len(), *at);
        }
        for (i, label) in branches {
            let place = *self.labels.get(&label).ok_or_else(|| format!("{}: there is no {label}", self.entry.name))?;
            if let Instr::Branch { to, .. } = &mut self.entry.code[i] {
                *to = place;
            }
        }
        Ok(self.entry)
    }

    fn line(&mut self, line: &str, branches: &mut Vec<(usize, String)>) -> Result<(), String> {
        if let Some(label) = line.strip_suffix(':') {
            self.labels.insert(label.into(), self.entry.code.len());
            return Ok(());
        }
        let line = line.strip_suffix(';').ok_or("no semicolon")?;
        if let Some(rest) = line.strip_prefix(".reg ") {
            let (class, count) = rest.split_once(" %").and_then(|(_, r)| r.strip_suffix('>')?.split_once('<')).ok_or("no registers")?;
            self.declared.insert(class.into(), count.parse().map_err(|_| "no number")?);
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix(".shared .align 16 .b8 ") {
            let (name, bytes) = rest.strip_suffix(']').and_then(|r| r.split_once('[')).ok_or("no array")?;
            self.shared.insert(name.into(), self.entry.shared);
            let bytes: u64 = bytes.parse().map_err(|_| "no number")?;
            self.entry.shared += bytes.next_multiple_of(16);
            return Ok(());
        }
        let (guard, line) = match line.strip_prefix('@').and_then(|l| l.split_once(' ')) {
            Some((p, rest)) => (Some((self.reg(p.trim_start_matches('!'))?, !p.starts_with('!'))), rest),
            None => (None, line),
        };
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let args = operands(rest);
        if guard.is_some() && name != "bra" {
            return Err("only branches have conditions".into());
        }
        let instr = match (name, &args[..]) {
            ("bra", [label]) => {
                branches.push((self.entry.code.len(), label.to_string()));
                Instr::Branch { on: guard, to: 0 }
            }
            ("ret", []) => Instr::Return,
            ("bar.sync", ["0"]) => Instr::Barrier,
            ("shfl.sync.bfly.b32", [to, x, mask, "31", "0xffffffff"]) => {
                Instr::Shuffle { to: self.reg(to)?, x: self.source(x)?, mask: mask.parse().map_err(|_| "no mask")? }
            }
            ("mov.b64", [to, x]) if to.starts_with('{') => {
                let [lo, hi] = self.list(to)?[..] else { return Err("not two registers".into()) };
                Instr::Halve { lo, hi, x: self.source(x)? }
            }
            ("mov.b64", [to, x]) if x.starts_with('{') => {
                let [lo, hi] = self.list(x)?[..] else { return Err("not two registers".into()) };
                Instr::Join { to: self.reg(to)?, lo, hi }
            }
            (
                "ldmatrix.sync.aligned.m8n8.x1.shared.b16" | "ldmatrix.sync.aligned.m8n8.x2.shared.b16" | "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
                [to, from],
            ) => {
                let ((at, offset), to) = (self.address(from)?, self.list(to)?);
                if !name.contains(&format!(".x{}.", to.len())) {
                    return Err("another number of registers".into());
                }
                Instr::LoadMatrices { to, at, offset }
            }
            (
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
                | "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
                | "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
                [d, a, b, c],
            ) => {
                let numbers = name.split('.').nth(7).and_then(numbers).ok_or("no type of numbers")?;
                Instr::MultiplyMatrices { numbers, to: self.fragment(d)?, a: self.fragment(a)?, b: self.fragment(b)?, c: self.fragment(c)? }
            }
            ("cp.async.ca.shared.global" | "cp.async.cg.shared.global", [to, from, bytes, read @ ..]) => {
                let bytes = bytes.parse().ok().filter(|n| [4, 8, 16].contains(n) && (*n == 16 || name.contains(".ca."))).ok_or("no such size")?;
                let read = match read {
                    [] => None,
                    [n] => Some(self.source(n)?),
                    _ => return Err("another number of operands".into()),
                };
                Instr::Copy { to: self.address(to)?, from: self.address(from)?, bytes, read }
            }
            ("cp.async.commit_group", []) => Instr::CloseCopies,
            ("cp.async.wait_group", [pending]) => Instr::AwaitCopies(pending.parse().map_err(|_| "no number")?),
            ("ld.param.u64" | "ld.param.u32", [to, from]) => {
                let name = from.trim_matches(['[', ']']);
                let i = *self.params.get(name).ok_or("no such parameter")?;
                let x = self.entry.params[i].unwrap_or_else(|| self.fresh());
                self.entry.params[i] = Some(x);
                Instr::One { f: |x| x, to: self.reg(to)?, x }
            }
            (_, [to, from]) if name.starts_with("ld.") => {
                let (space, width, count) = access(name)?;
                let (at, offset) = self.address(from)?;
                let to = self.list(to)?;
                if to.len() != count {
                    return Err("another number of registers".into());
                }
                Instr::Load { space, width, to, at, offset }
            }
            (_, [to, from]) if name.starts_with("st.") => {
                let (space, width, count) = access(name)?;
                let (at, offset) = self.address(to)?;
                let from = self.list(from)?;
                if from.len() != count {
                    return Err("another number of registers".into());
                }
                Instr::Store { space, width, from, at, offset }
            }
            _ => match (function(name).ok_or("an instruction that the interpreter does not know")?, &args[..]) {
                (Function::One(f), [to, x]) => Instr::One { f, to: self.reg(to)?, x: self.source(x)? },
                (Function::Two(f), [to, x, y]) => Instr::Two { f, to: self.reg(to)?, x: self.source(x)?, y: self.source(y)? },
                (Function::Three(f), [to, x, y, z]) => {
                    Instr::Three { f, to: self.reg(to)?, x: self.source(x)?, y: self.source(y)?, z: self.source(z)? }
                }
                _ => return Err("another number of operands".into()),
            },
        };
        self.entry.code.push(instr);
        Ok(())
    }

    fn fresh(&mut self) -> Reg {
        self.entry.registers += 1;
        self.entry.registers as Reg - 1
    }

    /// A register that was declared.
    fn reg(&mut self, text: &str) -> Result<Reg, String> {
        if let Some(r) = self.names.get(text) {
            return Ok(*r);
        }
        let name = text.strip_prefix('%').ok_or_else(|| format!("`{text}` is no register"))?;
        let class = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: u32 = name[class.len()..].parse().map_err(|_| format!("`{text}` has no number"))?;
        if self.declared.get(class).is_none_or(|n| number >= *n) {
            return Err(format!("{text} is not declared"));
        }
        let r = self.fresh();
        self.names.insert(text.into(), r);
        Ok(r)
    }

    /// `%r1`, or `{%r1, %r2}`.
    fn list(&mut self, text: &str) -> Result<Vec<Reg>, String> {
        match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(inner) => inner.split(',').map(|r| self.reg(r.trim())).collect(),
            None => Ok(vec![self.source(text)?]),
        }
    }

    /// As many registers as a fragment has.
    fn fragment<const N: usize>(&mut self, text: &str) -> Result<[Reg; N], String> {
        self.list(text)?.try_into().map_err(|_| "another number of registers".into())
    }

    /// What an operand reads: a register, one that the launch sets, an array's address, a number.
    fn source(&mut self, text: &str) -> Result<Reg, String> {
        let special = match text {
            "%tid.x" => Some(Special::Thread),
            "%laneid" => Some(Special::Lane),
            "%ctaid.x" => Some(Special::GroupX),
            "%ctaid.y" => Some(Special::GroupY),
            "%nctaid.x" => Some(Special::GroupsX),
            "%nctaid.y" => Some(Special::GroupsY),
            _ => None,
        };
        if let Some(s) = special {
            let r = self.fresh();
            self.entry.specials.push((r, s));
            return Ok(r);
        }
        if text.starts_with('%') {
            return self.reg(text);
        }
        let value = match self.shared.get(text) {
            Some(at) => *at,
            None => number(text).ok_or_else(|| format!("`{text}` is no operand"))?,
        };
        if let Some(r) = self.values.get(&value) {
            return Ok(*r);
        }
        let r = self.fresh();
        self.values.insert(value, r);
        self.entry.constants.push((r, value));
        Ok(r)
    }

    /// `[register]` or `[register+bytes]`.
    fn address(&mut self, text: &str) -> Result<(Reg, i64), String> {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or("no address")?;
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        Ok((self.source(base)?, offset.parse().map_err(|_| "no offset")?))
    }
}

/// Operands at the commas outside of braces.
fn operands(text: &str) -> Vec<&str> {
    let (mut out, mut from, mut inside) = (vec![], 0, false);
    for (i, c) in text.char_indices() {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            ',' if !inside => {
                out.push(text[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    if !text[from..].trim().is_empty() {
        out.push(text[from..].trim());
    }
    out
}

fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).ok().map(u64::from);
    }
    if let Some(hex) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0x")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    text.parse().ok().or_else(|| text.parse::<i64>().ok().map(|n| n as u64))
}

/// Space, width and number of registers of `ld.global.nc.v4.f32` and the like.
fn access(name: &str) -> Result<(Space, Width, usize), String> {
    let mut parts = name.split('.').skip(1).peekable();
    let space = match parts.next() {
        Some("global") => Space::Global { constant: parts.next_if_eq(&"nc").is_some() },
        Some("shared") => Space::Shared,
        _ => return Err("a space that the interpreter does not know".into()),
    };
    let count = match parts.peek() {
        Some(&"v2") => 2,
        Some(&"v4") => 4,
        _ => 1,
    };
    if count > 1 {
        parts.next();
    }
    let kind = parts.next().unwrap_or_default();
    let bits: u64 = kind.get(1..).and_then(|b| b.parse().ok()).filter(|b| [8, 16, 32, 64].contains(b)).ok_or("no type of memory")?;
    Ok((space, Width { bytes: bits / 8, signed: kind.starts_with('s') }, count))
}
