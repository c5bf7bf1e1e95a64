//! Text to tokens, one at a time.

use nnc_ir::error::{Error, Result};
use std::fmt;

/// A place in the text; both count from 1, columns in characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pos {
    pub line: u32,
    pub col: u32,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Tok {
    /// A bare word, keywords included.
    Word(String),
    /// A name in backticks, which is no keyword whatever it holds.
    Quoted(String),
    /// A number as it stands in the text: element types decide how it is read.
    Num(String),
    Str(String),
    /// `#` and the hash of a constant that was not printed.
    Hash(String),
    Punct(&'static str),
    /// Ends a statement: a line's end outside parentheses and brackets, or `;`.
    Newline,
    /// `// ...` without the line's end. Only [`Lexer::with_comments`] gives these.
    Comment(String),
    /// What the lexer has refused.
    Wrong,
    End,
}

impl fmt::Display for Tok {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tok::Word(w) | Tok::Num(w) => write!(f, "`{w}`"),
            Tok::Quoted(w) => write!(f, "name `{w}`"),
            Tok::Hash(w) => write!(f, "`#{w}`"),
            Tok::Str(s) => write!(f, "string {s:?}"),
            Tok::Punct(p) => write!(f, "`{p}`"),
            Tok::Comment(_) => f.write_str("comment"),
            Tok::Wrong => f.write_str("an error"),
            Tok::Newline => f.write_str("end of line"),
            Tok::End => f.write_str("end of text"),
        }
    }
}

/// Longest first: the first that fits is taken.
const PUNCTUATION: &[&str] = &[
    "->", "..", "**", ":=", "==", "!=", "<=", ">=", "&&", "||", "(", ")", "[", "]", "{", "}", ",", ":", "=", "+", "-", "*", "/", "%", "<", ">", "!",
    "~", ".",
];

pub struct Lexer<'t> {
    text: &'t str,
    at: usize,
    pos: Pos,
    /// Open brackets: a line's end counts only directly inside `{}` or outside all.
    open: Vec<char>,
    comments: bool,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t str) -> Lexer<'t> {
        Lexer { text, at: 0, pos: Pos { line: 1, col: 1 }, open: vec![], comments: false }
    }

    pub fn with_comments(text: &'t str) -> Lexer<'t> {
        Lexer { comments: true, ..Lexer::new(text) }
    }

    /// The character that the last token ends with.
    pub fn before(&self) -> Option<char> {
        self.text[..self.at].chars().next_back()
    }

    /// Number of brackets that are open.
    pub fn depth(&self) -> usize {
        self.open.len()
    }

    /// Forgets brackets opened beyond `depth`: after an error, the next line is a statement again.
    pub fn close_to(&mut self, depth: usize) {
        self.open.truncate(depth);
    }

    /// The word that follows, over line ends and comments; empty where something else does.
    pub fn peek_word(&self) -> &'t str {
        let mut rest = self.rest().trim_start();
        while let Some(comment) = rest.strip_prefix("//") {
            rest = comment.find('\n').map_or("", |end| comment[end..].trim_start());
        }
        &rest[..rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len())]
    }

    /// Whether `=` follows (and not `==`).
    pub fn peek_assign(&self) -> bool {
        let rest = self.rest().trim_start();
        rest.starts_with('=') && !rest.starts_with("==")
    }

    /// Whether `[` follows.
    pub fn peek_bracket(&self) -> bool {
        self.rest().trim_start_matches([' ', '\t']).starts_with('[')
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        for c in self.text[self.at..self.at + bytes].chars() {
            if c == '\n' {
                self.pos = Pos { line: self.pos.line.saturating_add(1), col: 1 };
            } else {
                self.pos.col = self.pos.col.saturating_add(1);
            }
        }
        self.at += bytes;
    }

    /// The next token and where it begins.
    pub fn next(&mut self) -> Result<(Tok, Pos), (Error, Pos)> {
        loop {
            let rest = self.rest();
            let pos = self.pos;
            let Some(c) = rest.chars().next() else { return Ok((Tok::End, pos)) };
            match c {
                '\n' => {
                    self.advance(1);
                    if matches!(self.open.last(), None | Some('{')) {
                        return Ok((Tok::Newline, pos));
                    }
                }
                ';' => {
                    self.advance(1);
                    return Ok((Tok::Newline, pos));
                }
                c if c.is_whitespace() => self.advance(c.len_utf8()),
                '/' if rest.starts_with("//") => {
                    let end = rest.find('\n').unwrap_or(rest.len());
                    self.advance(end);
                    if self.comments {
                        return Ok((Tok::Comment(rest[..end].trim_end().into()), pos));
                    }
                }
                _ => return self.token(c).map(|t| (t, pos)).map_err(|e| (e, pos)),
            }
        }
    }

    fn token(&mut self, first: char) -> Result<Tok> {
        let rest = self.rest();
        let word = |s: &str| s.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$')).unwrap_or(s.len());
        match first {
            'a'..='z' | 'A'..='Z' | '_' => {
                let n = word(rest);
                self.advance(n);
                Ok(Tok::Word(rest[..n].into()))
            }
            '0'..='9' => {
                let n = number(rest);
                self.advance(n);
                // `3x` is a slip, not two tokens.
                if self.rest().starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                    let n = n + word(self.rest());
                    return Err(Error::syntax(format!("`{}` is no number", &rest[..n])));
                }
                Ok(Tok::Num(rest[..n].into()))
            }
            '#' => {
                let n = 1 + word(&rest[1..]);
                self.advance(n);
                Ok(Tok::Hash(rest[1..n].into()))
            }
            '"' => self.quoted('"').map(Tok::Str),
            '`' => self.quoted('`').map(Tok::Quoted),
            _ => {
                let Some(p) = PUNCTUATION.iter().find(|p| rest.starts_with(**p)) else {
                    self.advance(first.len_utf8());
                    return Err(Error::syntax(format!("the character {first:?} has no meaning here")));
                };
                self.advance(p.len());
                match first {
                    '(' | '[' | '{' => self.open.push(first),
                    ')' | ']' | '}' => {
                        self.open.pop();
                    }
                    _ => {}
                }
                Ok(Tok::Punct(p))
            }
        }
    }

    /// Text between `quote`s, with backslash escapes as in Rust, on one line.
    fn quoted(&mut self, quote: char) -> Result<String> {
        let rest = self.rest();
        let mut out = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.advance(i + c.len_utf8());
                    return Ok(out);
                }
                '\n' => break,
                '\\' => {
                    let escaped = match chars.next().map(|(_, c)| c) {
                        Some('n') => Some('\n'),
                        Some('r') => Some('\r'),
                        Some('t') => Some('\t'),
                        Some('0') => Some('\0'),
                        Some('u') => {
                            let digits: String = chars.by_ref().map(|(_, c)| c).skip_while(|c| *c == '{').take_while(|c| *c != '}').take(6).collect();
                            u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32)
                        }
                        Some(c @ ('\\' | '"' | '\'' | '`')) => Some(c),
                        _ => None,
                    };
                    let Some(c) = escaped else {
                        self.advance(i + 1);
                        return Err(Error::syntax("unknown escape: known are \\n \\r \\t \\0 \\\\ \\\" \\` \\u{hex}"));
                    };
                    out.push(c);
                }
                c => out.push(c),
            }
        }
        let end = rest.find('\n').unwrap_or(rest.len());
        self.advance(end);
        Err(Error::syntax(format!("{quote} is not closed on its line")))
    }
}

/// Length of the number that `s` begins with. The dot needs a digit behind it, so that `0..n` is a range.
fn number(s: &str) -> usize {
    let b = s.as_bytes();
    let digits = |mut i: usize| {
        while b.get(i).is_some_and(u8::is_ascii_digit) {
            i += 1;
        }
        i
    };
    let mut i = digits(0);
    if b.get(i) == Some(&b'.') && b.get(i + 1).is_some_and(u8::is_ascii_digit) {
        i = digits(i + 1);
    }
    if matches!(b.get(i), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(b.get(i + 1), Some(b'+' | b'-')));
        if b.get(i + 1 + sign).is_some_and(u8::is_ascii_digit) {
            i = digits(i + 1 + sign);
        }
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Tok> {
        let mut lexer = Lexer::new(text);
        let mut out = vec![];
        loop {
            match lexer.next().unwrap().0 {
                Tok::End => return out,
                t => out.push(t),
            }
        }
    }

    #[test]
    fn tokens() {
        let word = |s: &str| Tok::Word(s.into());
        let num = |s: &str| Tok::Num(s.into());
        assert_eq!(all("0..L 1.5e-3"), [num("0"), Tok::Punct(".."), word("L"), num("1.5e-3")]);
        assert_eq!(
            all("f(a,\n b) // c\nd"),
            [word("f"), Tok::Punct("("), word("a"), Tok::Punct(","), word("b"), Tok::Punct(")"), Tok::Newline, word("d")]
        );
        assert_eq!(all("`a\\`b` \"\\u{e9}\""), [Tok::Quoted("a`b".into()), Tok::Str("é".into())]);
        assert_eq!(all("#00ff"), [Tok::Hash("00ff".into())]);
    }

    #[test]
    fn slips_are_errors_with_a_place() {
        for (text, line, col) in [("a\n  3x", 2, 3), ("\"abc\n", 1, 1), ("a ? b", 1, 3), ("`\\q`", 1, 1)] {
            let mut lexer = Lexer::new(text);
            let pos = loop {
                match lexer.next() {
                    Ok((Tok::End, _)) => panic!("{text}"),
                    Ok(_) => {}
                    Err((_, pos)) => break pos,
                }
            };
            assert_eq!(pos, Pos { line, col }, "{text}");
        }
    }
}
