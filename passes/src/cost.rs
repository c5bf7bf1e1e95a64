//! The cost model: cycles of one core, from the figures of a [`Target`].
//!
//! An estimate for choosing between programs that give the same values; only differences matter. A symbolic dimension counts as
//! [`NOMINAL`].

use nnc_ir::ops::Class;
use nnc_ir::ops::contract::Layout;
use nnc_ir::{Dim, Op, ScalarFn, Target, Type};

/// What a symbol is taken for.
pub const NOMINAL: i64 = 16;

/// Cycles to start a kernel: the driver's step and the pool's launch (about half a microsecond at 3.7 GHz).
pub const LAUNCH: f64 = 2000.0;

/// Number of elements.
pub fn elems(t: &Type) -> f64 {
    t.shape.iter().map(dim).product()
}

/// A dimension as a number.
pub fn dim(d: &Dim) -> f64 {
    d.eval(&|_| Some(NOMINAL)).unwrap_or(NOMINAL).max(0) as f64
}

/// Size in bytes.
pub fn bytes(t: &Type) -> f64 {
    elems(t) * t.dtype.bytes() as f64
}

/// Multiply-adds (contractions) or elementary steps (everything else) of an operation.
pub fn work(op: &Op, x: &[&Type], y: &[Type]) -> f64 {
    let out: f64 = y.iter().map(elems).sum();
    match op {
        Op::MatMul(_) => out * x[0].shape.last().map_or(1.0, dim),
        // Outputs times weights an output channel; blocks are the same product.
        Op::Conv(c) => {
            let w = elems(x[1]);
            let channels = dim(&x[1].shape[0]) * c.layout.block().unwrap_or(1) as f64;
            // Patches are multiplied once for the pixels of a tile.
            let shared = if let Layout::Winograd { form, .. } = c.layout { form.tile * form.tile } else { 1 };
            // Channels that fill the last block up are not multiplied.
            let all = dim(&x[1].shape[1]) * c.layout.block().unwrap_or(1) as f64;
            let live = if c.inputs > 0 { c.inputs as f64 / all.max(1.0) } else { 1.0 };
            out * w * live / channels.max(1.0) / shared as f64
        }
        Op::ConvTranspose(_) => elems(x[0]) * elems(x[1]) / x[1].shape.first().map_or(1.0, dim).max(1.0),
        Op::Pool(p) => out * p.kernel.iter().product::<i64>() as f64,
        Op::Map(f) => out * steps(*f),
        Op::Cast(_) | Op::WinogradFilter(_) => out,
        // Along the last axis neighbours come from anywhere, one at a time.
        Op::Gather(g) if g.axis + 1 == x[0].rank() => out * ALONE,
        _ => match op.class() {
            Some(Class::Move | Class::Source) => 0.0,
            Some(Class::Reduce) => x.iter().map(|t| elems(t)).sum(),
            // Sorting, scattering, composites: several steps an element.
            _ => 8.0 * (out + x.iter().map(|t| elems(t)).sum::<f64>()),
        },
    }
}

/// What an element costs that is moved alone, in steps of a vector of 16.
pub const ALONE: f64 = 48.0;

/// Vector instructions of a scalar function, about.
fn steps(f: ScalarFn) -> f64 {
    use ScalarFn::*;
    match f {
        Div | Reciprocal | Sqrt | Mod | Fmod => 6.0,
        Exp | Log | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh | Erf | Sigmoid | Pow | Atan2 => 16.0,
        _ => 1.0,
    }
}

/// Bytes that a node reads and writes. A reshape moves nothing.
pub fn traffic(op: &Op, x: &[&Type], y: &[Type]) -> f64 {
    match op {
        Op::Reshape(_) | Op::BitCast(_) | Op::Barrier(_) | Op::Const(_) | Op::Dims(_) | Op::Input => 0.0,
        _ => x.iter().map(|t| bytes(t)).sum::<f64>() + y.iter().map(bytes).sum::<f64>(),
    }
}

/// Cycles of a node as a kernel of its own.
pub fn cycles(op: &Op, x: &[&Type], y: &[Type], target: &Target) -> f64 {
    let speed = match op {
        Op::Conv(c) if c.layout == Layout::Plain => target.fma_per_cycle * PLAIN_CONV,
        Op::ConvTranspose(_) => target.fma_per_cycle * PLAIN_CONV,
        Op::MatMul(m) if m.is_packed() => target.fma_per_cycle,
        Op::Conv(_) => target.fma_per_cycle,
        Op::MatMul(_) => target.fma_per_cycle * PLAIN_MATMUL,
        _ => target.lanes as f64,
    };
    let move_bytes = traffic(op, x, y);
    if move_bytes == 0.0 {
        return 0.0;
    }
    LAUNCH + work(op, x, y) / speed + move_bytes / target.l2_bytes_per_cycle
}

/// Share of the peak that a product reaches whose right side is not in panels.
const PLAIN_MATMUL: f64 = 0.25;

/// The same of a convolution in the model's layout, where loops sum one product after the other.
const PLAIN_CONV: f64 = 1.0 / 128.0;

/// Cycles to copy a value into another layout.
pub fn copy(t: &Type, target: &Target) -> f64 {
    LAUNCH + 2.0 * bytes(t) / target.l2_bytes_per_cycle
}
