//! How far an engine's result may lie from the interpreter's.

use crate::minifloat;
use crate::tensor::Tensor;
use crate::types::DType;

/// Relative error that a type allows, with the intermediate roundings of compiled code. Integers and `bool` are exact.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 1e-5,
        DType::F16 => 4e-3,
        DType::BF16 => 3e-2,
        // One place of the mantissa: intermediate values may lie on either side of a tie.
        d if d.is_small_float() => minifloat::Format::of(d).map_or(1.0, |f| 0.5f64.powi(f.mantissa as i32)),
        _ => 0.0,
    }
}

/// Whether `got` is `want` within the tolerance of the type: relative to the element, or to the largest element (of at most 100) where
/// a sum cancels. Equal infinities agree, NaN agrees with NaN. The error names the first element that differs.
pub fn compare(got: &Tensor, want: &Tensor) -> Result<(), String> {
    if got.ty() != want.ty() {
        return Err(format!("found {}, expected {}", got.ty(), want.ty()));
    }
    let tolerance = tolerance(want.dtype());
    if tolerance == 0.0 {
        return match (0..want.elems()).find(|i| got.element(*i) != want.element(*i)) {
            Some(i) => Err(format!("element {i} is {:?}, expected {:?}", got.num(i), want.num(i))),
            None => Ok(()),
        };
    }
    let (got, want) = (got.to_f64s(), want.to_f64s());
    let scale = want.iter().filter(|x| x.is_finite()).fold(0.0, |m: f64, x| m.max(x.abs())).min(100.0);
    let close = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * y.abs().max(scale);
    match (0..want.len()).find(|i| !close(got[*i], want[*i])) {
        Some(i) => Err(format!("element {i} is {}, expected {}", got[i], want[i])),
        None => Ok(()),
    }
}
