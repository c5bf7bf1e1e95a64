//! Programs built by hand, through every door of the CPU backend.

mod files;
mod machine;
mod scalars;
