//! What can go wrong while a kernel is made.

use std::fmt;

/// A kernel that cannot be made, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A bug of ours.
    Internal(String),
    /// A descriptor that no generator or lowering takes.
    Unsupported(String),
}

impl Error {
    pub fn internal(what: impl Into<String>) -> Error {
        Error::Internal(what.into())
    }

    pub fn unsupported(what: impl Into<String>) -> Error {
        Error::Unsupported(what.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Internal(s) => write!(f, "internal error: {s}"),
            Error::Unsupported(s) => write!(f, "unsupported: {s}"),
        }
    }
}

impl std::error::Error for Error {}

pub type Result<T> = std::result::Result<T, Error>;
