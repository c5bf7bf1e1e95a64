//! Element types, shapes and value types; broadcasting is decided here, once.

use crate::dim::Dim;
use crate::error::{Error, Result};
use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    F6E2M3,
    F6E3M2,
    F4E2M1,
    I8,
    I16,
    I32,
    I64,
    I4,
    I2,
    U8,
    U16,
    U32,
    U64,
    U4,
    U2,
    Bool,
    /// Strings: on the host only, no compiled program has them.
    Str,
}

impl DType {
    /// All that are numbers or truth values.
    pub const ALL: [DType; 25] = {
        use DType::*;
        [
            F32, F64, F16, BF16, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F6E2M3, F6E3M2, F4E2M1, I8, I16, I32, I64, I4, I2, U8, U16, U32,
            U64, U4, U2, Bool,
        ]
    };

    /// Name in `.nn` text.
    pub fn name(self) -> &'static str {
        use DType::*;
        match self {
            F32 => "f32",
            F64 => "f64",
            F16 => "f16",
            BF16 => "bf16",
            F8E4M3FN => "f8e4m3fn",
            F8E4M3FNUZ => "f8e4m3fnuz",
            F8E5M2 => "f8e5m2",
            F8E5M2FNUZ => "f8e5m2fnuz",
            F8E8M0 => "f8e8m0",
            F6E2M3 => "f6e2m3",
            F6E3M2 => "f6e3m2",
            F4E2M1 => "f4e2m1",
            I8 => "i8",
            I16 => "i16",
            I32 => "i32",
            I64 => "i64",
            I4 => "i4",
            I2 => "i2",
            U8 => "u8",
            U16 => "u16",
            U32 => "u32",
            U64 => "u64",
            U4 => "u4",
            U2 => "u2",
            Bool => "bool",
            Str => "str",
        }
    }

    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().chain([DType::Str]).find(|d| d.name() == name)
    }

    /// Bytes of an element in memory. A type of fewer than 8 bits takes a byte of its own, whose low bits count; files pack them. Of a string,
    /// those of the reference to it.
    #[inline]
    pub fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// Bits that count. `bool` has 8, of which one varies.
    #[inline]
    pub fn bits(self) -> u32 {
        use DType::*;
        match self {
            Str => 128,
            F64 | I64 | U64 => 64,
            F32 | I32 | U32 => 32,
            F16 | BF16 | I16 | U16 => 16,
            F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 | I8 | U8 | Bool => 8,
            F6E2M3 | F6E3M2 => 6,
            F4E2M1 | I4 | U4 => 4,
            I2 | U2 => 2,
        }
    }

    /// The number in the C ABI, which is that of ONNX `TensorProto.DataType`.
    pub fn abi_code(self) -> i32 {
        use DType::*;
        match self {
            F32 => 1,
            U8 => 2,
            I8 => 3,
            U16 => 4,
            I16 => 5,
            I32 => 6,
            I64 => 7,
            Str => 8,
            Bool => 9,
            F16 => 10,
            F64 => 11,
            U32 => 12,
            U64 => 13,
            BF16 => 16,
            F8E4M3FN => 17,
            F8E4M3FNUZ => 18,
            F8E5M2 => 19,
            F8E5M2FNUZ => 20,
            U4 => 21,
            I4 => 22,
            F4E2M1 => 23,
            F8E8M0 => 24,
            U2 => 25,
            I2 => 26,
            F6E2M3 => 27,
            F6E3M2 => 28,
        }
    }

    pub fn from_abi_code(code: i32) -> Option<DType> {
        DType::ALL.into_iter().chain([DType::Str]).find(|d| d.abi_code() == code)
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16) || self.is_small_float()
    }

    /// Floats of at most 8 bits: see [`crate::minifloat`].
    pub fn is_small_float(self) -> bool {
        use DType::*;
        matches!(self, F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 | F6E2M3 | F6E3M2 | F4E2M1)
    }

    pub fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::I4 | DType::I2)
    }

    pub fn is_unsigned_int(self) -> bool {
        matches!(self, DType::U8 | DType::U16 | DType::U32 | DType::U64 | DType::U4 | DType::U2)
    }

    pub fn is_int(self) -> bool {
        self.is_signed_int() || self.is_unsigned_int()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Type of a value: a dense tensor in row-major order.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Type {
    pub dtype: DType,
    pub shape: Vec<Dim>,
}

impl Type {
    pub fn new(dtype: DType, shape: impl Into<Vec<Dim>>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    /// A type whose dimensions are all known.
    pub fn of(dtype: DType, shape: &[i64]) -> Type {
        Type { dtype, shape: shape.iter().map(|d| Dim::Const(*d)).collect() }
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    pub fn elems(&self) -> Dim {
        Dim::product(&self.shape)
    }

    pub fn bytes(&self) -> Dim {
        self.elems() * Dim::from(self.dtype.bytes())
    }

    pub fn is_static(&self) -> bool {
        self.shape.iter().all(|d| d.as_const().is_some())
    }

    /// All dimensions where they are known.
    pub fn const_shape(&self) -> Option<Vec<i64>> {
        self.shape.iter().map(Dim::as_const).collect()
    }

    pub fn with_shape(&self, shape: Vec<Dim>) -> Type {
        Type { dtype: self.dtype, shape }
    }

    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type { dtype, shape: self.shape.clone() }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, ShapeText(&self.shape))
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Prints a shape as `[2,N,3]`.
pub struct ShapeText<'a>(pub &'a [Dim]);

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}

/// The common shape of `shapes` by numpy's rule (aligned at the last dimension, 1 stretches).
///
/// Of lengths that only the run knows each may be 1 or the others' ([`Dim::stretch`]), which the run checks; beside a constant other than
/// 1 it is that.
pub fn broadcast(shapes: &[&[Dim]]) -> Result<Vec<Dim>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![Dim::Const(1); rank];
    for shape in shapes {
        let skip = rank - shape.len();
        for (slot, d) in out[skip..].iter_mut().zip(shape.iter()) {
            match (&*slot, d) {
                (a, b) if a == b => {}
                (Dim::Const(1), _) => *slot = d.clone(),
                (_, Dim::Const(1)) => {}
                (Dim::Const(_), Dim::Const(_)) => {
                    let text: Vec<String> = shapes.iter().map(|s| ShapeText(s).to_string()).collect();
                    return Err(Error::shape(format!("shapes {} do not broadcast: {slot} against {d}", text.join(" and "))));
                }
                (a, b) => *slot = a.stretch(b),
            }
        }
    }
    Ok(out)
}

/// `axis` counted from the end where negative; an error outside `-rank..rank`.
pub fn normalize_axis(axis: i64, rank: usize) -> Result<usize> {
    let r = rank as i64;
    if axis < -r || axis >= r {
        return Err(Error::shape(format!("axis {axis} is outside a tensor of rank {rank}")));
    }
    Ok(if axis < 0 { axis + r } else { axis } as usize)
}
