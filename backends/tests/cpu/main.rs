//! Programs built by hand, through every door of the CPU backend.

mod machine;
mod scalars;
