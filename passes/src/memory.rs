//! The workspace: where each intermediate buffer lies.

use nnc_ir::Dim;
use nnc_ir::kernel::{Place, Program};

/// Alignment of buffers, in bytes.
const ALIGN: i64 = 64;

/// Gives every unplanned buffer its place and the program the size of its workspace.
pub fn plan(program: &mut Program) {
    let mut top = Dim::Const(0);
    for b in &mut program.buffers {
        if b.place == Place::Unplanned {
            b.place = Place::Work { offset: top.clone() };
            let bytes = b.elems.clone() * Dim::from(b.dtype.bytes());
            top = top + bytes.ceil_div(&Dim::Const(ALIGN)) * Dim::Const(ALIGN);
        }
    }
    program.workspace = top;
}
