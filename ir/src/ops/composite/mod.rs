//! Composites: operations defined by others. Each is one `expand`.

pub mod activation;
pub mod attention;
pub mod filter;
pub mod norm;
pub mod update;

use crate::builder::V;
use crate::error::{Error, Result};

/// The operand of a composite that takes one.
fn only<'g>(name: &str, x: &[V<'g>]) -> Result<V<'g>> {
    match x {
        [x] => Ok(*x),
        _ => Err(Error::arity(format!("{name} takes 1 operand, not {}", x.len()))),
    }
}
