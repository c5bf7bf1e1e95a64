//! `nnc fmt`: the same tokens with one way of spacing and indenting. Comments, line breaks and single blank lines stay where
//! they are.

use super::lex::{Lexer, Pos, Tok};
use nnc_ir::DType;
use nnc_ir::error::Report;
use std::sync::Arc;

/// The text in canonical layout; an error where it does not parse.
pub fn format(text: &str, file: &str) -> Result<String, Report> {
    let name: Arc<str> = file.into();
    super::parse::parse(text, &name)?;
    let mut lexer = Lexer::with_comments(text);
    let mut f = Formatter::default();
    let mut tokens = vec![];
    loop {
        match lexer.next() {
            Ok((Tok::End, _)) => break,
            // A line's end says nothing that positions do not say; `;` does.
            Ok((Tok::Newline, _)) if lexer.before() != Some(';') => {}
            Ok(token) => tokens.push(token),
            Err((e, pos)) => {
                return Err(e.at(&nnc_ir::Loc::Text { file: name, line: pos.line, col: pos.col }).into());
            }
        }
    }
    for (i, (tok, pos)) in tokens.iter().enumerate() {
        // `;` at a line's end or before `}` separates nothing.
        let last = tokens.get(i + 1).is_none_or(|(next, p)| p.line > pos.line || matches!(next, Tok::Punct("}") | Tok::Comment(_)));
        if *tok == Tok::Newline && last {
            continue;
        }
        f.token(tok, *pos);
    }
    if !f.out.is_empty() {
        f.out.push('\n');
    }
    Ok(f.out)
}

struct Formatter {
    out: String,
    /// Line of the token before.
    line: u32,
    before: Option<Tok>,
    /// Open brackets, each with whether it holds the shape of a type.
    open: Vec<(&'static str, bool)>,
    /// The token before closed the shape of a type.
    shape_closed: bool,
    /// The token before is a sign rather than an operator.
    sign: bool,
    /// The first word of the statement.
    first: String,
    at_start: bool,
}

impl Default for Formatter {
    fn default() -> Formatter {
        Formatter { out: String::new(), line: 0, before: None, open: vec![], shape_closed: false, sign: false, first: String::new(), at_start: true }
    }
}

fn spelled(t: &Tok) -> String {
    match t {
        Tok::Word(w) | Tok::Num(w) | Tok::Comment(w) => w.clone(),
        Tok::Quoted(w) => quoted(w, '`'),
        Tok::Str(s) => quoted(s, '"'),
        Tok::Hash(h) => format!("#{h}"),
        Tok::Punct(p) => (*p).into(),
        Tok::Newline => ";".into(),
        Tok::Wrong | Tok::End => String::new(),
    }
}

fn quoted(s: &str, quote: char) -> String {
    let mut out = String::from(quote);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

impl Formatter {
    fn token(&mut self, tok: &Tok, pos: Pos) {
        let closes = matches!(tok, Tok::Punct(")" | "]" | "}"));
        if self.line > 0 && pos.line > self.line {
            self.out.push('\n');
            // One blank line may stand; none behind `{` or before `}`.
            if pos.line > self.line + 1 && !matches!(self.before, Some(Tok::Punct("{"))) && !closes {
                self.out.push('\n');
            }
            let depth = self.open.len() - usize::from(closes && !self.open.is_empty());
            self.out.push_str(&"  ".repeat(depth));
            if !matches!(self.open.last(), Some(("(" | "[", _))) {
                self.at_start = true;
            }
        } else if self.line > 0 && self.space(tok) {
            self.out.push(' ');
            if matches!(tok, Tok::Comment(_)) {
                self.out.push(' ');
            }
        }
        self.out.push_str(&spelled(tok));
        self.sign = matches!(tok, Tok::Punct("-" | "!")) && (self.at_start || self.expects_value());
        self.shape_closed = false;
        match tok {
            Tok::Punct(p @ ("(" | "[" | "{")) => {
                let shape = *p == "[" && matches!(&self.before, Some(Tok::Word(w)) if DType::from_name(w).is_some());
                self.open.push((p, shape));
            }
            Tok::Punct(")" | "]" | "}") => self.shape_closed = self.open.pop().is_some_and(|o| o.1),
            _ => {}
        }
        if self.at_start && !matches!(tok, Tok::Comment(_)) {
            self.first = spelled(tok);
        }
        self.at_start = matches!(tok, Tok::Newline | Tok::Punct("{"));
        self.before = Some(tok.clone());
        self.line = pos.line;
    }

    /// Whether what stands before asks for a value, so that `-` is a sign.
    fn expects_value(&self) -> bool {
        match &self.before {
            Some(Tok::Punct(p)) => !matches!(*p, ")" | "]" | "}"),
            Some(Tok::Word(w)) => matches!(w.as_str(), "return" | "in" | "if"),
            Some(Tok::Newline) | None => true,
            _ => false,
        }
    }

    /// Whether a space separates the token from the one before on its line.
    fn space(&self, tok: &Tok) -> bool {
        let Some(before) = &self.before else { return false };
        let list = matches!(self.open.last(), Some(("(" | "[", _)));
        if matches!((before, self.open.last()), (Tok::Punct(","), Some((_, true)))) {
            return false;
        }
        if self.sign || matches!(before, Tok::Punct("(" | "[" | "." | "..")) {
            return false;
        }
        match tok {
            Tok::Punct(")" | "]" | "," | "." | ".." | ":") | Tok::Newline => false,
            // `name=value` in a list, `name = value` in a statement.
            Tok::Punct("=") => !list,
            Tok::Punct("(") => match before {
                Tok::Word(w) => matches!(w.as_str(), "return" | "in" | "do") || (w == "if" && self.first == "if"),
                Tok::Punct(")") => self.first == "module" && self.open.is_empty(),
                Tok::Quoted(_) | Tok::Punct("]") => false,
                Tok::Punct("=") => !list,
                _ => true,
            },
            Tok::Punct("[") => match before {
                Tok::Word(w) => matches!(w.as_str(), "return" | "in" | "param" | "state"),
                Tok::Punct("]") => self.shape_closed,
                Tok::Quoted(_) | Tok::Punct(")") => false,
                Tok::Punct("=") => !list,
                _ => true,
            },
            _ => !(matches!(before, Tok::Punct("=")) && list),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layout() {
        let messy = "// head\nmodule   Conv( c,k , stride = 1,pad=- 1)(x:f32[ N,3 ])->f32[N , 3]{\n\n w=param[c, x.shape [1]]~he ;b = f32[2] [1 ,- 2]\n\n\n   for i in 0 .. c{h=x*-1+y [0] [1]; g = h}  // tail\n  if ( c>1 ){ return (a) }\n y = if(c, x)do(x: f32[2]) {\n return x\n }\n return conv(x ,w,\n  strides = [stride,1])(x),h.shape\n}";
        let neat = "// head
module Conv(c, k, stride=1, pad=-1) (x: f32[N,3]) -> f32[N,3] {
  w = param [c, x.shape[1]] ~ he; b = f32[2] [1, -2]

  for i in 0..c { h = x * -1 + y[0][1]; g = h }  // tail
  if (c > 1) { return (a) }
  y = if(c, x) do (x: f32[2]) {
    return x
  }
  return conv(x, w,
    strides=[stride, 1])(x), h.shape
}
";
        assert_eq!(format(messy, "t.nn").unwrap(), neat);
        assert_eq!(format(neat, "t.nn").unwrap(), neat);
    }
}
