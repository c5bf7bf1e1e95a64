//! Attributes of operations: plain fields of a struct that read from and print to `{key=value}` text.

use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::types::DType;
use std::fmt;
use std::sync::Arc;

/// A float attribute. Equality and order are those of its bits, so that operations can be hashed.
#[derive(Clone, Copy)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Real) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Real {}
impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        self.0.to_bits().hash(h);
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Real) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Real) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl From<f64> for Real {
    fn from(x: f64) -> Real {
        Real(x)
    }
}

/// An attribute's value as text knows it.
#[derive(Clone, PartialEq, Debug)]
pub enum Attr {
    Int(i64),
    Float(f64),
    /// A bare word: `true`, `f32`, `reflect`.
    Word(Arc<str>),
    Str(Arc<str>),
    Dim(Dim),
    List(Vec<Attr>),
    /// `name(args)`: an epilogue step such as `clip(0, 6)`.
    Call(Arc<str>, Vec<Attr>),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, items: &[Attr]| {
            items.iter().enumerate().try_for_each(|(i, a)| write!(f, "{}{a}", if i > 0 { ", " } else { "" }))
        };
        match self {
            Attr::Int(i) => write!(f, "{i}"),
            Attr::Float(x) if x.is_finite() => write!(f, "{x:?}"),
            Attr::Float(x) if x.is_nan() => f.write_str("nan"),
            Attr::Float(x) => f.write_str(if *x > 0.0 { "inf" } else { "-inf" }),
            Attr::Word(w) => f.write_str(w),
            Attr::Str(s) => write!(f, "{s:?}"),
            Attr::Dim(d) => write!(f, "{d}"),
            Attr::List(l) => {
                f.write_str("[")?;
                list(f, l)?;
                f.write_str("]")
            }
            Attr::Call(name, args) => {
                write!(f, "{name}(")?;
                list(f, args)?;
                f.write_str(")")
            }
        }
    }
}

/// A Rust type that can be an attribute.
pub trait AttrValue: Sized {
    fn to_attr(&self) -> Attr;
    fn from_attr(attr: &Attr) -> Result<Self>;
}

fn wrong<T>(want: &str, got: &Attr) -> Result<T> {
    Err(Error::attribute(format!("expected {want}, found {got}")))
}

impl AttrValue for i64 {
    fn to_attr(&self) -> Attr {
        Attr::Int(*self)
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::Int(i) => Ok(*i),
            Attr::Dim(Dim::Const(i)) => Ok(*i),
            a => wrong("an integer", a),
        }
    }
}

impl AttrValue for usize {
    fn to_attr(&self) -> Attr {
        Attr::Int(*self as i64)
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        i64::from_attr(a)?.try_into().or_else(|_| wrong("a count of at least 0", a))
    }
}

impl AttrValue for Real {
    fn to_attr(&self) -> Attr {
        Attr::Float(self.0)
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::Float(x) => Ok(Real(*x)),
            Attr::Int(i) => Ok(Real(*i as f64)),
            Attr::Word(w) if &**w == "inf" => Ok(Real(f64::INFINITY)),
            Attr::Word(w) if &**w == "nan" => Ok(Real(f64::NAN)),
            a => wrong("a number", a),
        }
    }
}

impl AttrValue for Arc<str> {
    fn to_attr(&self) -> Attr {
        Attr::Str(self.clone())
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::Str(s) => Ok(s.clone()),
            a => wrong("a string", a),
        }
    }
}

impl AttrValue for bool {
    fn to_attr(&self) -> Attr {
        Attr::Word(if *self { "true" } else { "false" }.into())
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::Word(w) if &**w == "true" => Ok(true),
            Attr::Word(w) if &**w == "false" => Ok(false),
            Attr::Int(i @ 0..=1) => Ok(*i == 1),
            a => wrong("true or false", a),
        }
    }
}

impl AttrValue for DType {
    fn to_attr(&self) -> Attr {
        Attr::Word(self.name().into())
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::Word(w) => DType::from_name(w).map_or_else(|| wrong("an element type", a), Ok),
            a => wrong("an element type", a),
        }
    }
}

impl AttrValue for Dim {
    fn to_attr(&self) -> Attr {
        match self {
            Dim::Const(c) => Attr::Int(*c),
            d => Attr::Dim(d.clone()),
        }
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::Int(i) => Ok(Dim::Const(*i)),
            Attr::Dim(d) => Ok(d.clone()),
            Attr::Word(w) => Ok(Dim::sym(w)),
            a => wrong("a dimension", a),
        }
    }
}

impl<T: AttrValue> AttrValue for Vec<T> {
    fn to_attr(&self) -> Attr {
        Attr::List(self.iter().map(T::to_attr).collect())
    }
    fn from_attr(a: &Attr) -> Result<Self> {
        match a {
            Attr::List(l) => l.iter().map(T::from_attr).collect(),
            a => wrong("a list", a),
        }
    }
}

/// Declares an enum whose variants are bare words in text.
macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }
        }

        impl $crate::attrs::AttrValue for $name {
            fn to_attr(&self) -> $crate::attrs::Attr {
                $crate::attrs::Attr::Word(self.word().into())
            }
            fn from_attr(a: &$crate::attrs::Attr) -> $crate::error::Result<Self> {
                match a {
                    $crate::attrs::Attr::Word(w) if $name::ALL.iter().any(|v| v.word() == &**w) => {
                        Ok(*$name::ALL.iter().find(|v| v.word() == &**w).expect("just found"))
                    }
                    a => Err($crate::error::Error::attribute(format!("expected one of {}, found {a}", [$($word),*].join(", ")))),
                }
            }
        }
    };
}
pub(crate) use word_enum;

/// Declares the struct of an operation with its attributes. A field with `= default` may be left out in text, and is left out
/// when it is printed with that value.
macro_rules! op_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty $(= $default:expr)?),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }

        impl $crate::attrs::Attrs for $name {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            #[allow(unused_mut, unused_variables)]
            fn attrs(&self) -> Vec<(&'static str, $crate::attrs::Attr)> {
                let mut out = vec![];
                $(
                    let default: Option<$ty> = op_struct!(@default $($default)?);
                    if default.as_ref() != Some(&self.$field) {
                        out.push((stringify!($field), $crate::attrs::AttrValue::to_attr(&self.$field)));
                    }
                )*
                out
            }

            #[allow(unused_variables)]
            fn from_attrs(get: &dyn Fn(&str) -> Option<$crate::attrs::Attr>) -> $crate::error::Result<Self> {
                Ok($name { $(
                    $field: match get(stringify!($field)) {
                        Some(a) => $crate::attrs::AttrValue::from_attr(&a)
                            .map_err(|e| $crate::error::Error::attribute(format!("{}: {}", stringify!($field), e.message())))?,
                        None => {
                            let default: Option<$ty> = op_struct!(@default $($default)?);
                            default.ok_or_else(|| $crate::error::Error::attribute(concat!("attribute `", stringify!($field), "` is missing")))?
                        }
                    },
                )* })
            }
        }
    };
    (@default $default:expr) => { Some($default) };
    (@default) => { None };
}
pub(crate) use op_struct;

/// An operation's attributes as text sees them.
pub trait Attrs: Sized {
    const FIELDS: &'static [&'static str];
    fn attrs(&self) -> Vec<(&'static str, Attr)>;
    fn from_attrs(get: &dyn Fn(&str) -> Option<Attr>) -> Result<Self>;
}
