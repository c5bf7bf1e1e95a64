//! Composites: operations defined by others. Each is one `expand`.

pub mod activation;
pub mod filter;
pub mod norm;
