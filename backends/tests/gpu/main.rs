//! The GPU backend without a GPU: what is lowered computes what the loop IR means.

mod gir;
mod launch;
mod scalars;
