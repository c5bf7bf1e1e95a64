//! Programs built by hand, through every door of the CPU backend.

mod driver;
mod files;
mod machine;
mod scalars;
