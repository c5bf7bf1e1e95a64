//! The reference interpreter: the oracle that every engine is held against. Obvious, slow, independent of lowering.
//!
//! One definition of precision: inside a primitive floats are `f64` and integers wrap in 64 bits; each result is rounded once, to its
//! element type. Values between nodes are therefore exactly what the types say.

pub mod contract;
mod elems;
pub mod image;
pub mod index;
mod jpeg;
pub mod movement;
pub mod reduce;
mod run;
pub mod sort;
pub mod text;
pub mod window;

use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use elems::map;
pub use run::bind_types;
pub use run::{bind_inputs, run, run_all};

/// Values of symbols during a run.
#[derive(Default, Debug)]
pub struct Env {
    symbols: RefCell<BTreeMap<Arc<str>, i64>>,
}

impl Env {
    /// Binds a symbol; a value below 0 is an error. A second binding replaces the first, as in a loop.
    pub fn bind(&self, symbol: &Arc<str>, value: i64) -> Result<()> {
        if value < 0 {
            return Err(Error::input(format!("the size {symbol} would be {value}")));
        }
        self.symbols.borrow_mut().insert(symbol.clone(), value);
        Ok(())
    }

    pub fn get(&self, symbol: &str) -> Option<i64> {
        self.symbols.borrow().get(symbol).copied()
    }

    /// Runs `f`; symbols that it binds are forgotten afterwards.
    fn scoped<T>(&self, f: impl FnOnce() -> T) -> T {
        let outside = self.symbols.borrow().clone();
        let out = f();
        *self.symbols.borrow_mut() = outside;
        out
    }

    pub fn dim(&self, d: &Dim) -> Result<i64> {
        d.eval(&|s| self.get(s)).map_err(|s| Error::internal(format!("the size {s} is not bound")))
    }

    pub fn shape(&self, dims: &[Dim]) -> Result<Vec<usize>> {
        dims.iter().map(|d| self.dim(d).and_then(|v| usize::try_from(v).map_err(|_| Error::input(format!("the size {d} would be {v}"))))).collect()
    }
}

/// What [`crate::ops::Primitive::eval`] of control flow says: the graph evaluator runs regions itself.
pub(crate) fn region_op(op: &str) -> Result<Vec<Tensor>> {
    Err(Error::internal(format!("{op} is evaluated with its regions")))
}
