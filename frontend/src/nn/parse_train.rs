//! Training blocks to the syntax tree. Their words (`data`, `update`, `with`...) are words only here, where a statement may begin.

use super::ast::{Data, Item, Train, Update};
use super::lex::Tok;
use super::parse::Parser;
use nnc_ir::error::{Error, Result};
use std::sync::Arc;

impl Parser<'_> {
    /// `train on MODULE as NAME, ... { items }`.
    pub(super) fn train(&mut self) -> Result<Train> {
        let pos = self.pos;
        self.bump()?;
        self.word("on")?;
        let mut models = vec![];
        loop {
            let module = self.name("a module's name")?;
            self.word("as")?;
            models.push((module, self.name("what the model is called here")?));
            if !self.eat(",")? {
                break;
            }
        }
        let items = self.deeper(|p| p.items())?;
        Ok(Train { pos, models, items })
    }

    fn word(&mut self, word: &str) -> Result<()> {
        if self.eat_word(word)? { Ok(()) } else { self.expected(&format!("`{word}`")) }
    }

    fn items(&mut self) -> Result<Vec<Item>> {
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
                Tok::End => return self.expected("`}`"),
                _ => match self.item() {
                    Ok(item) => out.push(item),
                    Err(e) => self.recover(e, brackets),
                },
            }
        }
    }

    fn item(&mut self) -> Result<Item> {
        let pos = self.pos;
        let word = match &self.tok {
            // `data = ...` is an assignment like any other.
            Tok::Word(w) if !self.lexer.peek_assign() => w.clone(),
            _ => return self.statement().map(Item::Stmt),
        };
        match word.as_str() {
            "data" | "test" => return Ok(Item::Data(Box::new(self.data()?))),
            "measure" | "schedule" => {
                self.bump()?;
                let name = self.name("a name")?;
                self.expect("=")?;
                let value = self.expr()?;
                self.statement_end()?;
                return Ok(if word == "measure" { Item::Measure(name, value) } else { Item::Schedule(name, value) });
            }
            "update" => return self.update().map(Item::Update),
            "phase" => return self.phase(),
            "clip" => {
                self.bump()?;
                let global = self.eat_word("global")?;
                if !global {
                    self.word("each")?;
                }
                let bound = self.expr()?;
                self.statement_end()?;
                return Ok(Item::Clip { pos, global, bound });
            }
            "checkpoint" => {
                self.bump()?;
                self.word("every")?;
                let every = self.expr()?;
                self.statement_end()?;
                return Ok(Item::Checkpoint(every));
            }
            "steps" | "epochs" => {
                self.bump()?;
                let n = self.expr()?;
                self.statement_end()?;
                return Ok(if word == "steps" { Item::Steps(n) } else { Item::Epochs(n) });
            }
            _ => {}
        }
        self.statement().map(Item::Stmt)
    }

    fn phase(&mut self) -> Result<Item> {
        self.bump()?;
        let name = self.name("a phase's name")?;
        let items = self.deeper(|p| p.items())?;
        if items.iter().all(|i| matches!(i, Item::Stmt(_) | Item::Update(_) | Item::Clip { .. })) {
            return Ok(Item::Phase { name, items });
        }
        Err(Error::syntax(format!("the phase `{}` holds statements, `update` and `clip`: the rest stands outside of it", name.text))
            .at(&self.loc(name.pos)))
    }

    fn data(&mut self) -> Result<Data> {
        let pos = self.pos;
        let test = self.at_word("test");
        self.bump()?;
        let names = if self.at("(") { self.list(")", |p| p.name("a name"))? } else { vec![self.name("a name")?] };
        self.expect("=")?;
        let loader = self.name("a loader: idx, npy, npz, csv, cifar, text or draws")?;
        let files = self.list(")", |p| match &p.tok {
            Tok::Str(s) => {
                let s: Arc<str> = s.as_str().into();
                p.bump()?;
                Ok(s)
            }
            _ => p.expected("a file's name in quotes"),
        })?;
        let mut d =
            Data { pos, test, names, loader, files, rows: None, batch: None, shuffle: false, seed: None, flip: false, crop: None, length: None };
        loop {
            if self.eat_word("rows")? {
                let first = self.expr()?;
                self.expect("..")?;
                d.rows = Some((first, self.expr()?));
            } else if self.eat_word("batch")? {
                d.batch = Some(self.expr()?);
            } else if self.eat_word("seed")? {
                d.seed = Some(self.expr()?);
            } else if self.eat_word("shuffle")? {
                d.shuffle = true;
            } else if self.eat_word("flip")? {
                d.flip = true;
            } else if self.eat_word("crop")? {
                d.crop = Some(self.expr()?);
            } else if self.eat_word("length")? {
                d.length = Some(self.expr()?);
            } else {
                break;
            }
        }
        self.statement_end()?;
        Ok(d)
    }

    fn update(&mut self) -> Result<Update> {
        let pos = self.pos;
        self.bump()?;
        let mut pattern = String::new();
        while !self.at_word("with") {
            match &self.tok {
                Tok::Word(w) | Tok::Num(w) | Tok::Quoted(w) | Tok::Str(w) => pattern.push_str(w),
                Tok::Punct(p @ ("." | "*" | "**")) => pattern.push_str(p),
                _ => return self.expected("a parameter's path, in which `*` stands for anything, then `with`"),
            }
            self.bump()?;
        }
        self.bump()?;
        if pattern.is_empty() {
            return Err(Error::syntax("`update` names no parameters").at(&self.loc(pos)));
        }
        let optimizer = self.name("an optimiser")?;
        let (args, named) = self.arguments()?;
        self.statement_end()?;
        Ok(Update { pos, pattern, optimizer, args, named })
    }
}
