//! Canonical `.nn` text of a graph: one operation a line, each result with its type. The grammar is in `docs/nn.md`.
//!
//! What is printed parses back to a graph that prints the same, but for constants of more than [`ELIDE`] elements, which stand as
//! a hash unless [`full`] is asked for.

use crate::attrs::Attr;
use crate::dim::{Atom, Dim, DimNode};
use crate::graph::{Graph, Node, Value};
use crate::ops::Op;
use crate::scalar::Num;
use crate::tensor::Tensor;
use crate::types::{DType, Type};
use std::collections::HashSet;
use std::fmt::{self, Display, Write};

/// Words of the language: as a name, each stands in backticks.
pub const KEYWORDS: &[&str] =
    &["module", "param", "state", "return", "for", "repeat", "in", "if", "else", "do", "train", "plan", "true", "false", "none", "inf", "nan"];

/// Constants of more elements are printed as a hash.
pub const ELIDE: usize = 16;

/// The graph with every constant written out, however large.
pub fn full(graph: &Graph) -> impl Display + '_ {
    Module { graph, elide: usize::MAX }
}

impl Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Module { graph: self, elide: ELIDE }.fmt(f)
    }
}

struct Module<'a> {
    graph: &'a Graph,
    elide: usize,
}

impl Display for Module<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.graph.name.is_empty() { "main" } else { &self.graph.name };
        write!(f, "module {}", Name(name))?;
        body(f, self.graph, self.elide, 0)?;
        f.write_char('\n')
    }
}

/// `(inputs) -> (outputs) { ... }`, which follows `module name` or, for a region, `do`.
fn body(f: &mut fmt::Formatter<'_>, g: &Graph, elide: usize, depth: usize) -> fmt::Result {
    let names = Names::new(g);
    let inputs = Commas(g.inputs.iter().map(|id| Typed(names.of(Value { node: *id, port: 0 }), &g.node(*id).types[0])).collect());
    let outputs = Commas(g.outputs.iter().map(|o| Typed(Name(&o.name).to_string(), g.ty(o.value))).collect());
    writeln!(f, "({inputs}) -> ({outputs}) {{")?;
    let indent = "  ".repeat(depth + 1);
    for id in g.order() {
        let node = g.node(id);
        if matches!(node.op, Op::Input) {
            continue;
        }
        f.write_str(&indent)?;
        let result = |port: usize| names.of(Value { node: id, port: port as u32 });
        if let Op::Const(c) = &node.op {
            writeln!(f, "{} = {}", result(0), Literal { tensor: &c.0, elide })?;
            continue;
        }
        write!(f, "{} = ", Commas(node.types.iter().enumerate().map(|(k, t)| Typed(result(k), t)).collect()))?;
        call(f, node, &names)?;
        for region in &node.regions {
            f.write_str(" do ")?;
            body(f, region, elide, depth + 1)?;
        }
        f.write_char('\n')?;
    }
    let values: Vec<String> = g.outputs.iter().map(|o| names.of(o.value)).collect();
    if !values.is_empty() {
        writeln!(f, "{indent}return {}", Commas(values))?;
    }
    write!(f, "{}}}", "  ".repeat(depth))
}

/// `op(operands, attributes)`.
fn call(f: &mut fmt::Formatter<'_>, node: &Node, names: &Names) -> fmt::Result {
    let operands = node.operands.iter().map(|v| names.of(*v));
    let attrs = node.op.attrs().into_iter().map(|(k, a)| format!("{k}={}", AttrText(&a)));
    write!(f, "{}({})", node.op.name(), Commas(operands.chain(attrs).collect()))
}

/// An operation with its attributes as text, without operands: `conv(strides=[2, 2])`.
pub fn op_text(op: &Op) -> String {
    let attrs = op.attrs().into_iter().map(|(k, a)| format!("{k}={}", AttrText(&a)));
    format!("{}({})", op.name(), Commas(attrs.collect()))
}

/// What the values of a graph are called: the user's name where it is the only one, else a number behind `_`.
struct Names {
    /// By node id, the name of each result.
    names: Vec<Vec<String>>,
}

impl Names {
    fn new(graph: &Graph) -> Names {
        let mut names = vec![vec![]; graph.id_bound()];
        let mut taken: HashSet<String> = HashSet::new();
        let mut count = 0;
        let order = graph.order();
        // Inputs first: their names are the caller's.
        let inputs = graph.inputs.iter().copied();
        for id in inputs.clone().chain(order.into_iter().filter(|id| !matches!(graph.node(*id).op, Op::Input))) {
            let node = graph.node(id);
            names[id.0 as usize] = (0..node.types.len())
                .map(|port| {
                    if port > 0 || node.name.is_empty() {
                        count += 1;
                        return format!("_{}", count - 1);
                    }
                    let mut name = node.name.to_string();
                    let mut k = 2;
                    while !taken.insert(name.clone()) {
                        name = format!("{}_{k}", node.name);
                        k += 1;
                    }
                    Name(&name).to_string()
                })
                .collect();
        }
        Names { names }
    }

    fn of(&self, v: Value) -> String {
        match self.names.get(v.node.0 as usize).and_then(|n| n.get(v.port as usize)) {
            Some(n) => n.clone(),
            // A broken graph: the verifier's business, and printing it must help to find the reason.
            None => format!("`missing {}.{}`", v.node.0, v.port),
        }
    }
}

/// A name as text: bare where it is a word, else in backticks.
pub struct Name<'a>(pub &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_word(self.0) && !is_number(self.0) && !KEYWORDS.contains(&self.0) {
            return f.write_str(self.0);
        }
        f.write_char('`')?;
        for c in self.0.chars() {
            match c {
                '`' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('`')
    }
}

/// Letters, digits, `_` and `$`, no digit first.
fn is_word(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
}

/// `_` and digits: what a value without a name is called in text.
pub fn is_number(s: &str) -> bool {
    s.strip_prefix('_').is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
}

struct Commas<T>(Vec<T>);

impl<T: Display> Display for Commas<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(i, x)| write!(f, "{}{x}", if i > 0 { ", " } else { "" }))
    }
}

struct Typed<'a>(String, &'a Type);

impl Display for Typed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0, TypeText(self.1))
    }
}

/// A type as `.nn` writes it: as [`Type`] displays, with symbols in backticks where they are no words.
pub struct TypeText<'a>(pub &'a Type);

impl Display for TypeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.0.dtype)?;
        for (i, d) in self.0.shape.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { "," } else { "" }, DimText(d))?;
        }
        f.write_char(']')
    }
}

/// A dimension as `.nn` writes it.
pub struct DimText<'a>(pub &'a Dim);

impl Display for DimText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match self.0.node() {
            DimNode::Const(c) => return write!(f, "{c}"),
            DimNode::Sum(terms) => terms,
        };
        // Largest products first, the constant last: `2*N*H + 1`.
        for (i, (c, atoms)) in terms.iter().rev().enumerate() {
            f.write_str(match (i, *c < 0) {
                (0, true) => "-",
                (0, false) => "",
                (_, true) => " - ",
                (_, false) => " + ",
            })?;
            let c = c.unsigned_abs();
            if c != 1 || atoms.is_empty() {
                write!(f, "{c}{}", if atoms.is_empty() { "" } else { "*" })?;
            }
            for (j, a) in atoms.iter().enumerate() {
                f.write_str(if j > 0 { "*" } else { "" })?;
                let two = |f: &mut fmt::Formatter<'_>, name: &str, a: &Dim, b: &Dim| write!(f, "{name}({}, {})", DimText(a), DimText(b));
                match a {
                    Atom::Sym(s) => Name(s).fmt(f)?,
                    Atom::FloorDiv(a, b) => two(f, "floordiv", a, b)?,
                    Atom::Mod(a, b) => two(f, "mod", a, b)?,
                    Atom::Max(a, b) => two(f, "max", a, b)?,
                    Atom::Min(a, b) => two(f, "min", a, b)?,
                    Atom::Stretch(a, b) => two(f, "stretch", a, b)?,
                }
            }
        }
        Ok(())
    }
}

struct AttrText<'a>(&'a Attr);

impl Display for AttrText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Attr::Dim(d) => DimText(d).fmt(f),
            Attr::List(l) => write!(f, "[{}]", Commas(l.iter().map(AttrText).collect())),
            Attr::Call(name, args) => write!(f, "{name}({})", Commas(args.iter().map(AttrText).collect())),
            a => a.fmt(f),
        }
    }
}

/// A constant: its type, then its elements in a list, or the one number that all are, or `#hash`.
struct Literal<'a> {
    tensor: &'a Tensor,
    elide: usize,
}

impl Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.tensor;
        write!(f, "{} ", TypeText(&t.ty()))?;
        let element = |b: &[u8]| NumText(t.dtype(), Num::read(t.dtype(), b));
        if let Some(texts) = t.texts() {
            return match texts {
                [one] if t.shape().is_empty() => write!(f, "{one:?}"),
                _ if texts.len() > self.elide => write!(f, "#{:016x}", hash(t)),
                _ => write!(f, "{texts:?}"),
            };
        }
        if let Some(e) = t.splat_element() {
            return element(e).fmt(f);
        }
        if t.shape().is_empty() {
            return element(t.element(0)).fmt(f);
        }
        if t.elems() > self.elide {
            return write!(f, "#{:016x}", hash(t));
        }
        f.write_char('[')?;
        for i in 0..t.elems() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, element(t.element(i)))?;
        }
        f.write_char(']')
    }
}

/// The shortest decimal that reads back as this element.
struct NumText(DType, Num);

impl Display for NumText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Num::F(x) if x.is_nan() => f.write_str("nan"),
            Num::F(x) if x.is_infinite() => f.write_str(if x > 0.0 { "inf" } else { "-inf" }),
            Num::F(x) if self.0 == DType::F64 => write!(f, "{x:?}"),
            Num::F(x) => write!(f, "{:?}", x as f32),
            Num::I(i) => i.fmt(f),
            Num::U(u) => u.fmt(f),
            Num::B(b) => b.fmt(f),
        }
    }
}

/// FNV-1a over 8-byte words of the elements (the last one filled with zeros): tells constants apart in text.
fn hash(t: &Tensor) -> u64 {
    let bytes = t.texts().map_or_else(|| t.bytes(), |texts| texts.join("\0").into());
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |h: u64, c| {
        let mut word = [0; 8];
        word[..c.len()].copy_from_slice(c);
        let h = (h ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        h ^ (h >> 29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::ops::contract::MatMul;

    #[test]
    fn a_graph_prints_with_types_names_and_literals() {
        let b = Builder::new("net");
        let x = b.input("x.1", Type::new(DType::F32, vec![Dim::sym("batch size"), Dim::Const(2)]));
        let w = b.constant(Tensor::new(&[2, 2], &[0.1f32, 2.0, -3.0, f32::INFINITY])).named("w");
        let y = b.op(MatMul { transposed: true, packed: Dim::Const(0), post: vec![] }, &[x, w]);
        let big = b.constant(Tensor::new(&[17], &[1i64; 17]));
        b.output("in", y.relu());
        b.output("big", big);
        let g = b.finish().unwrap();
        let text = g.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "module net(`x.1`: f32[`batch size`,2]) -> (`in`: f32[`batch size`,2], big: i64[17]) {");
        assert_eq!(lines[1], "  w = f32[2,2] [0.1, 2.0, -3.0, inf]");
        assert_eq!(lines[2], "  _0: f32[`batch size`,2] = matmul(`x.1`, w, transposed=true)");
        assert!(lines[3].starts_with("  _1 = i64[17] #") && lines[3].len() == "  _1 = i64[17] #".len() + 16, "{}", lines[3]);
        assert_eq!(lines[4], "  _2: f32[`batch size`,2] = relu(_0)");
        assert_eq!(lines[5], "  return _2, _1");
        assert!(full(&g).to_string().contains("_1 = i64[17] [1, 1,"));
    }
}
