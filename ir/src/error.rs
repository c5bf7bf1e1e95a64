//! Errors as data: a code, a place in the user's model, what was expected. Text is made at the edge.

use std::fmt;
use std::sync::Arc;

/// Where something stands in the user's model.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub enum Loc {
    /// Made by the compiler, or not known.
    #[default]
    Unknown,
    /// A place in `.nn` text; line and column count from 1.
    Text { file: Arc<str>, line: u32, col: u32 },
    /// A node of an ONNX graph.
    Onnx { file: Arc<str>, index: u32, name: Arc<str>, op: Arc<str>, opset: i64 },
}

impl fmt::Display for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loc::Unknown => Ok(()),
            Loc::Text { file, line, col } => write!(f, "{file}:{line}:{col}"),
            Loc::Onnx { file, index, name, op, opset } => {
                write!(f, "{file}, node {index}")?;
                if !name.is_empty() {
                    write!(f, " `{name}`")?;
                }
                write!(f, " ({op}, opset {opset})")
            }
        }
    }
}

/// Stable codes, so that tests and scripts do not match prose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Code {
    /// E0101: text or bytes that do not parse.
    Syntax,
    /// E0102: a file that cannot be read or written.
    Io,
    /// E0201: an operator, attribute, type or opset that nnc does not know.
    Unsupported,
    /// E0202: operand element types that do not fit.
    DType,
    /// E0203: shapes that do not fit.
    Shape,
    /// E0204: a wrong number of operands, or a missing one.
    Arity,
    /// E0205: an attribute with a wrong kind or value.
    Attribute,
    /// E0206: a name used but not defined, or defined twice, or a cycle.
    Name,
    /// E0301: inputs of a run that do not fit the model.
    Input,
    /// E0401: a limit that protects the machine (sizes, counts).
    Limit,
    /// E0901: an internal error of nnc.
    Internal,
}

impl Code {
    pub fn text(self) -> &'static str {
        match self {
            Code::Syntax => "E0101",
            Code::Io => "E0102",
            Code::Unsupported => "E0201",
            Code::DType => "E0202",
            Code::Shape => "E0203",
            Code::Arity => "E0204",
            Code::Attribute => "E0205",
            Code::Name => "E0206",
            Code::Input => "E0301",
            Code::Limit => "E0401",
            Code::Internal => "E0901",
        }
    }
}

/// One problem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error(Box<Body>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Body {
    code: Code,
    message: String,
    loc: Loc,
    notes: Vec<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every problem that was found, in the order of the model.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report(pub Vec<Error>);

impl Report {
    /// The first of the problems, where one error is all that can be given.
    pub fn into_first(self) -> Error {
        self.0.into_iter().next().unwrap_or_else(|| Error::internal("an empty report"))
    }
}

macro_rules! constructors {
    ($($name:ident $code:ident),*) => { $(
        pub fn $name(message: impl Into<String>) -> Error {
            Error::new(Code::$code, message)
        }
    )* };
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error(Box::new(Body { code, message: message.into(), loc: Loc::Unknown, notes: vec![] }))
    }

    constructors!(syntax Syntax, io Io, unsupported Unsupported, dtype DType, shape Shape, arity Arity, attribute Attribute, name Name, input Input, limit Limit, internal Internal);

    /// Fills in the place where none is known yet: the innermost knows best.
    pub fn at(mut self, loc: &Loc) -> Error {
        if self.0.loc == Loc::Unknown {
            self.0.loc = loc.clone();
        }
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Error {
        self.0.notes.push(note.into());
        self
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn loc(&self) -> &Loc {
        &self.0.loc
    }

    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code().text(), self.message())?;
        if *self.loc() != Loc::Unknown {
            write!(f, "\n  --> {}", self.loc())?;
        }
        for n in self.notes() {
            write!(f, "\n  note: {n}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for Report {
    fn from(e: Error) -> Report {
        Report(vec![e])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.0.iter().enumerate() {
            write!(f, "{}{e}", if i > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
