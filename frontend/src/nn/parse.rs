//! Tokens to the syntax tree: recursive descent with one token of lookahead. After an error the parser goes on with the next
//! statement, so that one report holds them all.

use super::ast::*;
use super::lex::{Lexer, Pos, Tok};
use nnc_ir::DType;
use nnc_ir::error::{Error, Loc, Report, Result};
use nnc_ir::print::KEYWORDS;
use std::sync::Arc;

/// How deep expressions and blocks may nest. What walks the tree by recursion relies on it.
pub const MAX_DEPTH: u32 = 64;

/// Errors after which the rest of the text is not looked at.
const MAX_ERRORS: usize = 20;

/// Parses a text; `file` names it in errors.
pub fn parse(text: &str, file: &Arc<str>) -> Result<File, Report> {
    let mut p = Parser { lexer: Lexer::new(text), tok: Tok::End, pos: Pos { line: 1, col: 1 }, depth: 0, errors: vec![], file };
    let mut out = File::default();
    if let Err(e) = p.bump() {
        p.errors.push(e);
    }
    p.file(&mut out);
    if p.errors.is_empty() { Ok(out) } else { Err(Report(p.errors)) }
}

/// Operands, then what is given by name.
pub(super) type Arguments = (Vec<Expr>, Vec<(Name, Expr)>);

pub(super) struct Parser<'t> {
    pub(super) lexer: Lexer<'t>,
    pub(super) tok: Tok,
    pub(super) pos: Pos,
    depth: u32,
    pub(super) errors: Vec<Error>,
    file: &'t Arc<str>,
}

impl Parser<'_> {
    pub(super) fn loc(&self, pos: Pos) -> Loc {
        Loc::Text { file: self.file.clone(), line: pos.line, col: pos.col }
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::syntax(message).at(&self.loc(self.pos)))
    }

    pub(super) fn expected<T>(&self, what: &str) -> Result<T> {
        self.fail(format!("expected {what}, found {}", self.tok))
    }

    /// Moves on; returns the token that was current.
    pub(super) fn bump(&mut self) -> Result<Tok> {
        match self.lexer.next() {
            Ok((tok, pos)) => {
                self.pos = pos;
                Ok(std::mem::replace(&mut self.tok, tok))
            }
            Err((e, pos)) => {
                self.pos = pos;
                self.tok = Tok::Wrong;
                Err(e.at(&self.loc(pos)))
            }
        }
    }

    pub(super) fn at(&self, p: &str) -> bool {
        matches!(&self.tok, Tok::Punct(q) if *q == p)
    }

    pub(super) fn at_word(&self, w: &str) -> bool {
        matches!(&self.tok, Tok::Word(v) if v == w)
    }

    pub(super) fn eat(&mut self, p: &str) -> Result<bool> {
        let at = self.at(p);
        if at {
            self.bump()?;
        }
        Ok(at)
    }

    pub(super) fn eat_word(&mut self, w: &str) -> Result<bool> {
        let at = self.at_word(w);
        if at {
            self.bump()?;
        }
        Ok(at)
    }

    pub(super) fn expect(&mut self, p: &str) -> Result<()> {
        if self.eat(p)? { Ok(()) } else { self.expected(&format!("`{p}`")) }
    }

    pub(super) fn newlines(&mut self) -> Result<()> {
        while self.tok == Tok::Newline {
            self.bump()?;
        }
        Ok(())
    }

    pub(super) fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::limit(format!("nested deeper than {MAX_DEPTH}")).at(&self.loc(self.pos)));
        }
        self.depth += 1;
        let r = f(self);
        self.depth -= 1;
        r
    }

    /// Records the error and skips to the end of the statement that began at bracket depth `brackets`.
    pub(super) fn recover(&mut self, e: Error, brackets: usize) {
        self.errors.push(e);
        self.lexer.close_to(brackets);
        loop {
            match &self.tok {
                Tok::End | Tok::Newline => return,
                Tok::Punct("}") if self.lexer.depth() < brackets => return,
                _ => {}
            }
            if let Err(e) = self.bump() {
                self.errors.push(e);
                if self.errors.len() >= MAX_ERRORS {
                    self.tok = Tok::End;
                }
            }
        }
    }

    fn file(&mut self, out: &mut File) {
        while self.errors.len() < MAX_ERRORS {
            let r = match &self.tok {
                Tok::End => return,
                Tok::Newline => self.newlines(),
                Tok::Word(w) => match w.as_str() {
                    "module" => self.module().map(|m| out.modules.push(m)),
                    "train" => self.train().map(|t| out.trains.push(t)),
                    "plan" => self.reserved("plan"),
                    _ => self.global().map(|g| out.globals.push(g)),
                },
                Tok::Quoted(_) => self.global().map(|g| out.globals.push(g)),
                _ => self.expected("`module`"),
            };
            if let Err(e) = r {
                self.recover(e, 0);
                // What is left of a broken module would only give more errors.
                while self.tok != Tok::End && !self.at_word("module") && !self.at_word("train") {
                    if self.bump().is_err() || self.errors.len() >= MAX_ERRORS {
                        break;
                    }
                }
                self.lexer.close_to(0);
            }
        }
    }

    /// Blocks that the language will have: a clear word instead of a syntax error.
    fn reserved(&mut self, word: &str) -> Result<()> {
        let e = Error::unsupported(format!("`{word}` blocks are not supported yet"));
        Err(e.at(&self.loc(self.pos)))
    }

    fn global(&mut self) -> Result<(Name, Expr)> {
        let name = self.name("`module`, or a name to define")?;
        self.expect("=")?;
        let value = self.expr()?;
        self.statement_end()?;
        Ok((name, value))
    }

    pub(super) fn statement_end(&mut self) -> Result<()> {
        match self.tok {
            Tok::Newline => self.bump().map(|_| ()),
            Tok::End | Tok::Punct("}") => Ok(()),
            _ => self.expected("the end of the statement"),
        }
    }

    pub(super) fn name(&mut self, what: &str) -> Result<Name> {
        let pos = self.pos;
        match &self.tok {
            Tok::Word(w) if KEYWORDS.contains(&w.as_str()) => self.fail(format!("expected {what}, found the word `{w}`, which the language keeps")),
            Tok::Word(w) => {
                let text = w.as_str().into();
                self.bump()?;
                Ok(Name { pos, text, quoted: false })
            }
            Tok::Quoted(w) => {
                let text = w.as_str().into();
                self.bump()?;
                Ok(Name { pos, text, quoted: true })
            }
            _ => self.expected(what),
        }
    }

    fn module(&mut self) -> Result<Module> {
        self.bump()?;
        let name = self.name("the module's name")?;
        // One list: the inputs. Two: hyper-parameters, then inputs. What an entry may be decides itself only behind the first.
        let open = self.pos;
        let first = self.list(")", |p| {
            let name = p.name("a name")?;
            let ty = if p.eat(":")? { Some(p.type_expr()?) } else { None };
            let default = if p.eat("=")? { Some(p.expr()?) } else { None };
            Ok((name, ty, default))
        })?;
        let hyper = if self.at("(") {
            if let Some((name, ..)) = first.iter().find(|f| f.1.is_some()) {
                return Err(Error::syntax(format!("the hyper-parameter `{}` has no type", name.text)).at(&self.loc(name.pos)));
            }
            Some(first.into_iter().map(|(name, _, default)| Hyper { name, default }).collect())
        } else {
            if let Some((name, ..)) = first.iter().find(|f| f.2.is_some()) {
                let e = Error::syntax(format!("the input `{}` has a default: only hyper-parameters have one", name.text));
                return Err(e
                    .at(&self.loc(name.pos))
                    .note("hyper-parameters stand in a list of their own: `module Conv(c, k, stride=1) (x) { ... }`"));
            }
            let inputs = first.into_iter().map(|(name, ty, _)| Input { name, ty }).collect();
            return Ok(Module { name, hyper: None, body: self.body(open, inputs)? });
        };
        let inputs = self.inputs()?;
        Ok(Module { name, hyper, body: self.body(open, inputs)? })
    }

    fn inputs(&mut self) -> Result<Vec<Input>> {
        self.list(")", |p| {
            let name = p.name("an input's name")?;
            let ty = if p.eat(":")? { Some(p.type_expr()?) } else { None };
            Ok(Input { name, ty })
        })
    }

    /// `[-> results] { statements }`.
    fn body(&mut self, pos: Pos, inputs: Vec<Input>) -> Result<Body> {
        let results = if self.eat("->")? { Some(self.results()?) } else { None };
        let block = self.deeper(|p| p.block())?;
        Ok(Body { pos, inputs, results, block })
    }

    fn results(&mut self) -> Result<Vec<ResultDecl>> {
        if !self.at("(") {
            return Ok(vec![ResultDecl { name: None, ty: self.type_expr()? }]);
        }
        self.list(")", |p| {
            let dtype = matches!(&p.tok, Tok::Word(w) if DType::from_name(w).is_some());
            let name = if dtype { None } else { Some(p.name("a result's name or type")?) };
            if name.is_some() {
                p.expect(":")?;
            }
            Ok(ResultDecl { name, ty: p.type_expr()? })
        })
    }

    /// `( item, item )` or `[ item, item ]`; the current token opens it. A comma may stand before the end.
    pub(super) fn list<T>(&mut self, close: &'static str, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let open = self.pos;
        self.expect(if close == ")" { "(" } else { "[" })?;
        let mut out = vec![];
        loop {
            if self.eat(close)? {
                return Ok(out);
            }
            out.push(item(self)?);
            if !self.eat(",")? && !self.at(close) {
                let e = self.expected::<()>(&format!("`,` or `{close}`")).unwrap_err();
                return Err(e.note(format!("the list opens at line {}, column {}", open.line, open.col)));
            }
        }
    }

    /// `{ statements }`. Errors inside are recorded, and the block goes on behind them.
    fn block(&mut self) -> Result<Vec<Stmt>> {
        let open = self.pos;
        self.expect("{")?;
        let brackets = self.lexer.depth();
        let mut out = vec![];
        loop {
            match self.tok {
                Tok::Newline => {
                    self.bump()?;
                }
                Tok::Punct("}") => {
                    self.bump()?;
                    return Ok(out);
                }
                Tok::End => {
                    let e = self.expected::<()>("`}`").unwrap_err();
                    return Err(e.note(format!("the block opens at line {}, column {}", open.line, open.col)));
                }
                _ => match self.statement() {
                    Ok(s) => out.push(s),
                    Err(e) => {
                        if self.errors.len() + 1 >= MAX_ERRORS {
                            return Err(e);
                        }
                        self.recover(e, brackets);
                    }
                },
            }
        }
    }

    pub(super) fn statement(&mut self) -> Result<Stmt> {
        let Tok::Word(w) = &self.tok else { return self.assign() };
        match w.as_str() {
            "return" => {
                let pos = self.pos;
                self.bump()?;
                let mut values = vec![self.expr()?];
                while self.eat(",")? {
                    self.newlines()?;
                    values.push(self.expr()?);
                }
                self.statement_end()?;
                Ok(Stmt::Return { pos, values })
            }
            "for" => {
                self.bump()?;
                let var = self.name("the loop's variable")?;
                if !self.eat_word("in")? {
                    return self.expected("`in`");
                }
                let lo = self.expr()?;
                self.expect("..")?;
                let hi = self.expr()?;
                let body = self.deeper(|p| p.block())?;
                Ok(Stmt::For { var, lo, hi, body })
            }
            "repeat" => {
                let pos = self.pos;
                self.bump()?;
                let count = self.expr()?;
                let body = self.deeper(|p| p.block())?;
                Ok(Stmt::Repeat { pos, count, body })
            }
            "if" => {
                let mut arms = vec![];
                loop {
                    self.bump()?;
                    let cond = self.expr()?;
                    arms.push((cond, self.deeper(|p| p.block())?));
                    // `else` may stand on the next line: no statement begins with it.
                    if self.tok == Tok::Newline && !self.else_follows() {
                        break;
                    }
                    self.newlines()?;
                    if !self.eat_word("else")? {
                        break;
                    }
                    if !self.at_word("if") {
                        let otherwise = self.deeper(|p| p.block())?;
                        return Ok(Stmt::If { arms, otherwise });
                    }
                }
                Ok(Stmt::If { arms, otherwise: vec![] })
            }
            "plan" => self.reserved("plan").and_then(|_| self.expected("a statement")),
            _ => self.assign(),
        }
    }

    /// Whether the first word behind the line's end is `else`.
    fn else_follows(&self) -> bool {
        self.lexer.peek_word() == "else"
    }

    fn assign(&mut self) -> Result<Stmt> {
        let grouped = self.eat("(")?;
        let mut targets = vec![];
        loop {
            let name = self.name("a statement")?;
            let ty = if self.eat(":")? { Some(self.type_expr()?) } else { None };
            targets.push(Target { name, ty });
            if !self.eat(",")? {
                break;
            }
        }
        if grouped {
            self.expect(")")?;
        }
        if self.at(":=") && targets.len() == 1 && targets[0].ty.is_none() {
            self.bump()?;
            self.newlines()?;
            let value = self.expr()?;
            self.statement_end()?;
            return Ok(Stmt::Become { name: targets.remove(0).name, value });
        }
        if self.at("(") && targets.len() == 1 {
            return self.fail("a call whose result nobody names does nothing: write `name = call(...)`");
        }
        self.expect("=")?;
        self.newlines()?;
        let value = self.expr()?;
        self.statement_end()?;
        Ok(Stmt::Assign { targets, value })
    }

    fn dtype(&mut self) -> Result<DType> {
        let known = match &self.tok {
            Tok::Word(w) => DType::from_name(w),
            _ => None,
        };
        let Some(d) = known else { return self.expected("an element type (f32, i64, bool...)") };
        self.bump()?;
        Ok(d)
    }

    fn type_expr(&mut self) -> Result<TypeExpr> {
        let pos = self.pos;
        let dtype = self.dtype()?;
        if !self.at("[") {
            return self.expected("`[` and the shape; a scalar is `f32[]`");
        }
        let dims = self.list("]", |p| p.expr())?;
        Ok(TypeExpr { pos, dtype, dims })
    }

    pub(super) fn expr(&mut self) -> Result<Expr> {
        self.deeper(|p| p.level(0))
    }

    /// A chain of the binary operators of one precedence.
    fn level(&mut self, level: usize) -> Result<Expr> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let first = self.level(level + 1)?;
        let mut rest = vec![];
        while let Some((_, op)) = operators.iter().find(|(p, _)| self.at(p)) {
            let pos = self.pos;
            self.bump()?;
            self.newlines()?;
            rest.push((*op, pos, self.level(level + 1)?));
        }
        Ok(if rest.is_empty() { first } else { Expr { pos: first.pos, kind: ExprKind::Chain(Box::new(first), rest) } })
    }

    fn unary(&mut self) -> Result<Expr> {
        let pos = self.pos;
        for (p, op) in [("-", Unary::Neg), ("!", Unary::Not)] {
            if self.eat(p)? {
                let x = self.deeper(|p| p.unary())?;
                return Ok(Expr { pos, kind: ExprKind::Unary(op, Box::new(x)) });
            }
        }
        // `**` binds tighter than the sign before it, and to the right.
        let base = self.postfix()?;
        let at = self.pos;
        if !self.eat("**")? {
            return Ok(base);
        }
        let exponent = self.deeper(|p| p.unary())?;
        Ok(Expr { pos, kind: ExprKind::Chain(Box::new(base), vec![(Binary::Pow, at, exponent)]) })
    }

    fn postfix(&mut self) -> Result<Expr> {
        let mut e = self.primary()?;
        let mut suffixes = 0;
        loop {
            let pos = self.pos;
            let kind = match self.tok {
                Tok::Punct("(") => {
                    let (args, named) = self.arguments()?;
                    let mut regions = vec![];
                    while self.at_word("do") {
                        let pos = self.pos;
                        self.bump()?;
                        let inputs = self.inputs()?;
                        regions.push(self.body(pos, inputs)?);
                    }
                    ExprKind::Call(Box::new(Call { callee: e, args, named, regions }))
                }
                Tok::Punct("[") => {
                    self.bump()?;
                    let index = self.expr()?;
                    self.expect("]")?;
                    ExprKind::Index(Box::new(e), Box::new(index))
                }
                Tok::Punct(".") => {
                    self.bump()?;
                    ExprKind::Field(Box::new(e), self.name("a field: shape, rank or dtype")?)
                }
                _ => return Ok(e),
            };
            suffixes += 1;
            if suffixes > MAX_DEPTH {
                return Err(Error::limit(format!("more than {MAX_DEPTH} calls and indices in a row")).at(&self.loc(pos)));
            }
            e = Expr { pos, kind };
        }
    }

    pub(super) fn arguments(&mut self) -> Result<Arguments> {
        let (mut args, mut named): (Vec<Expr>, Vec<(Name, Expr)>) = (vec![], vec![]);
        self.list(")", |p| {
            // `name = value` cannot be told from an expression by one token: a bare name followed by `=` turns into one.
            let keyword = match &p.tok {
                Tok::Word(w) if p.lexer.peek_assign() => Some(w.clone()),
                _ => None,
            };
            if let Some(w) = keyword {
                let name = Name { pos: p.pos, text: w.as_str().into(), quoted: false };
                p.bump()?;
                p.bump()?;
                if named.iter().any(|(n, _)| n.text == name.text) {
                    return Err(Error::syntax(format!("`{}` is given twice", name.text)).at(&p.loc(name.pos)));
                }
                let value = p.expr()?;
                named.push((name, value));
                return Ok(());
            }
            if !named.is_empty() {
                return p.fail("an argument without a name stands behind one with a name");
            }
            args.push(p.expr()?);
            Ok(())
        })?;
        Ok((args, named))
    }

    fn primary(&mut self) -> Result<Expr> {
        let pos = self.pos;
        let kind = match &self.tok {
            Tok::Num(n) => {
                let n = n.clone();
                self.bump()?;
                ExprKind::Num(n)
            }
            Tok::Str(s) => {
                let s = s.as_str().into();
                self.bump()?;
                ExprKind::Str(s)
            }
            Tok::Punct("(") => {
                self.bump()?;
                let e = self.expr()?;
                if !self.eat(")")? {
                    let e = self.expected::<()>("`)`").unwrap_err();
                    return Err(e.note(format!("`(` stands at line {}, column {}", pos.line, pos.col)));
                }
                return Ok(e);
            }
            Tok::Punct("[") => ExprKind::List(self.list("]", |p| p.expr())?),
            Tok::Quoted(_) => ExprKind::Name(self.name("a value")?),
            Tok::Hash(_) => return self.fail("a hash stands for elements only behind a type"),
            Tok::Word(w) => {
                let simple = match w.as_str() {
                    "true" => Some(ExprKind::Bool(true)),
                    "false" => Some(ExprKind::Bool(false)),
                    "none" => Some(ExprKind::None),
                    "inf" => Some(ExprKind::Inf),
                    "nan" => Some(ExprKind::Nan),
                    _ => None,
                };
                if let Some(kind) = simple {
                    self.bump()?;
                    return Ok(Expr { pos, kind });
                }
                match w.as_str() {
                    "param" => return self.param(true),
                    "state" => return self.param(false),
                    // The operator; the statement never stands in an expression.
                    "if" => {
                        self.bump()?;
                        if !self.at("(") {
                            return self.fail("`if` is a statement, or the operator `if(condition, ...) do (...) { ... } do (...) { ... }`");
                        }
                        ExprKind::Name(Name { pos, text: "if".into(), quoted: false })
                    }
                    w if DType::from_name(w).is_some() && self.lexer.peek_bracket() => {
                        let ty = self.type_expr()?;
                        let data = self.elements()?;
                        ExprKind::Literal(Box::new(Literal { ty, data }))
                    }
                    _ => ExprKind::Name(self.name("a value")?),
                }
            }
            _ => return self.expected("a value"),
        };
        Ok(Expr { pos, kind })
    }

    /// `param [shape] ~ init`, the element type before the shape where it is not f32.
    fn param(&mut self, trained: bool) -> Result<Expr> {
        let pos = self.pos;
        self.bump()?;
        let ty = if self.at("[") { TypeExpr { pos: self.pos, dtype: DType::F32, dims: self.list("]", |p| p.expr())? } } else { self.type_expr()? };
        if !self.eat("~")? {
            return self.expected("`~` and an initialiser (he, glorot, normal(0.1), zeros...)");
        }
        let init = self.deeper(|p| p.level(LEVELS.len()))?;
        Ok(Expr { pos, kind: ExprKind::Param(Box::new(Param { trained, ty, init })) })
    }

    /// The elements of a constant.
    fn elements(&mut self) -> Result<Elements> {
        match &self.tok {
            Tok::Hash(h) => {
                let h = h.clone();
                self.bump()?;
                Ok(Elements::Elided(h))
            }
            Tok::Punct("[") => {
                let mut out = vec![];
                self.element_list(&mut out)?;
                Ok(Elements::List(out))
            }
            _ => Ok(Elements::Splat(self.element()?)),
        }
    }

    /// Nested lists are flattened: the type gives the shape.
    fn element_list(&mut self, out: &mut Vec<String>) -> Result<()> {
        self.deeper(|p| {
            p.list("]", |p| {
                if p.at("[") {
                    return p.element_list(out);
                }
                out.push(p.element()?);
                Ok(())
            })
        })?;
        Ok(())
    }

    fn element(&mut self) -> Result<String> {
        let minus = self.eat("-")?;
        let text = match &self.tok {
            Tok::Num(n) => n.clone(),
            Tok::Word(w) if matches!(w.as_str(), "true" | "false" | "inf" | "nan") => w.clone(),
            // The quote tells a string that looks like a number from one.
            Tok::Str(s) if !minus => format!("\"{s}"),
            _ => return self.expected("a number, or a list of them"),
        };
        self.bump()?;
        Ok(if minus { format!("-{text}") } else { text })
    }
}

/// Binary operators by precedence, loosest first.
const LEVELS: &[&[(&str, Binary)]] = &[
    &[("||", Binary::Or)],
    &[("&&", Binary::And)],
    &[
        ("==", Binary::Equal),
        ("!=", Binary::NotEqual),
        ("<=", Binary::LessEqual),
        (">=", Binary::GreaterEqual),
        ("<", Binary::Less),
        (">", Binary::Greater),
    ],
    &[("+", Binary::Add), ("-", Binary::Sub)],
    &[("*", Binary::Mul), ("/", Binary::Div), ("%", Binary::Mod)],
];
