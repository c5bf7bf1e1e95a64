//! A program as tables: what a compiled model walks instead of having code for each launch.
//!
//! Three kinds of data, all position independent:
//! * *values*: 64-bit integers, either constants or slots in the head of the workspace; a reference to one is a [`Ref`];
//! * *operations* on values ([`sizes`]): they read the inputs' shapes, check them and compute every size of the run;
//! * *commands* ([`commands`]): launches, bindings and branches.
//!
//! [`interp`] generates the functions that execute both.

pub mod commands;
pub mod interp;
pub mod sizes;

/// A value: bit 0 says where it lies, the other bits are its index there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ref(pub u32);

impl Ref {
    fn constant(index: usize) -> Ref {
        Ref((index as u32) << 1)
    }

    fn slot(index: usize) -> Ref {
        Ref((index as u32) << 1 | 1)
    }
}
