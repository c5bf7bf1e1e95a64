//! Constant tensor data: owned bytes, a window into a memory map, or one element repeated.

use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::types::{DType, Type};
use bytes::Bytes;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A constant: little-endian elements in row-major order. Cloning shares the data.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone, PartialEq, Eq)]
enum Data {
    /// Invariant: as long as the shape says. No alignment is promised.
    Dense(Bytes),
    /// One element, standing for all: what ConstantOfShape and zeros are, however large.
    Splat(Bytes),
}

/// The largest constant that is written out in full (bytes); files that ask for more are refused, not obeyed.
pub const MAX_BYTES: usize = 1 << 40;

/// Number of elements, or an error where the product overflows or is absurd.
pub fn checked_elems(dtype: DType, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .filter(|n| n.checked_mul(dtype.bytes()).is_some_and(|b| b <= MAX_BYTES))
        .ok_or_else(|| Error::limit(format!("a tensor {dtype}{shape:?} is too large")))
}

/// The byte that holds an element of a type of fewer than 8 bits: those bits, extended by its sign where it is an integer with one.
pub fn low_bits(dtype: DType, byte: u8) -> u8 {
    let spare = 8 - dtype.bits();
    if dtype.is_signed_int() { ((byte << spare) as i8 >> spare) as u8 } else { byte << spare >> spare }
}

impl Tensor {
    /// Wraps bytes that hold the elements; an error where the length does not fit the shape.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Tensor> {
        let want = checked_elems(dtype, &shape)? * dtype.bytes();
        if data.len() != want {
            return Err(Error::shape(format!("a tensor {dtype}{shape:?} takes {want} bytes, {} are given", data.len())));
        }
        Ok(Tensor { dtype, shape, data: Data::Dense(data) })
    }

    /// `shape` filled with one element, given by its bytes.
    pub fn splat(dtype: DType, shape: Vec<usize>, element: Bytes) -> Result<Tensor> {
        checked_elems(dtype, &shape)?;
        if element.len() != dtype.bytes() {
            return Err(Error::internal(format!("a {dtype} element has {} bytes, not {}", dtype.bytes(), element.len())));
        }
        Ok(Tensor { dtype, shape, data: Data::Splat(element) })
    }

    /// Elements given as `T`. Panics where their number does not fit the shape: for constants that the compiler makes itself.
    pub fn new<T: Element>(shape: &[usize], values: &[T]) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        let mut bytes = Vec::with_capacity(values.len() * T::DTYPE.bytes());
        values.iter().for_each(|v| v.put(&mut bytes));
        Tensor { dtype: T::DTYPE, shape: shape.to_vec(), data: Data::Dense(bytes.into()) }
    }

    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::new(&[], &[value])
    }

    /// A scalar of any numeric type from an `f64`, rounded or truncated as `as` does.
    pub fn scalar_of(dtype: DType, value: f64) -> Tensor {
        let mut bytes = vec![];
        crate::scalar::Num::F(value).cast(dtype).write(dtype, &mut bytes);
        Tensor { dtype, shape: vec![], data: Data::Dense(bytes.into()) }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn byte_len(&self) -> usize {
        self.elems() * self.dtype.bytes()
    }

    pub fn ty(&self) -> Type {
        Type::new(self.dtype, self.shape.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())
    }

    /// The one element where all are stored as one.
    pub fn splat_element(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Splat(e) => Some(e),
            Data::Dense(_) => None,
        }
    }

    /// All elements' bytes; a splat is written out.
    pub fn bytes(&self) -> Bytes {
        match &self.data {
            Data::Dense(b) => b.clone(),
            Data::Splat(e) => e.repeat(self.elems()).into(),
        }
    }

    /// Bytes of element `i`.
    pub fn element(&self, i: usize) -> &[u8] {
        let n = self.dtype.bytes();
        match &self.data {
            Data::Dense(b) => &b[i * n..(i + 1) * n],
            Data::Splat(e) => e,
        }
    }

    /// Elements as `T`; `None` where the type differs.
    pub fn to_vec<T: Element>(&self) -> Option<Vec<T>> {
        (T::DTYPE == self.dtype).then(|| (0..self.elems()).map(|i| T::get(self.element(i))).collect())
    }

    /// Integer elements of any width as `i64`; `None` for floats.
    pub fn to_ints(&self) -> Option<Vec<i64>> {
        (!self.dtype.is_float()).then(|| (0..self.elems()).map(|i| self.num(i).as_i64()).collect())
    }

    /// Elements as `f64`, whatever their type.
    pub fn to_f64s(&self) -> Vec<f64> {
        (0..self.elems()).map(|i| self.num(i).as_f64()).collect()
    }

    /// Element `i` as a number.
    pub fn num(&self, i: usize) -> crate::scalar::Num {
        crate::scalar::Num::read(self.dtype, self.element(i))
    }

    /// The same bytes as elements of another type of the same width.
    pub fn with_dtype(&self, dtype: DType) -> Result<Tensor> {
        if dtype.bits() != self.dtype.bits() {
            return Err(Error::dtype(format!("elements of {} are no {dtype}", self.dtype)));
        }
        let data = if dtype.bits() < 8 { Data::Dense(self.bytes().iter().map(|b| low_bits(dtype, *b)).collect()) } else { self.data.clone() };
        Ok(Tensor { dtype, shape: self.shape.clone(), data })
    }

    /// The same elements under another shape of as many elements.
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Tensor> {
        if checked_elems(self.dtype, &shape)? != self.elems() {
            return Err(Error::shape(format!("{:?} and {shape:?} have different numbers of elements", self.shape)));
        }
        Ok(Tensor { dtype: self.dtype, shape, data: self.data.clone() })
    }
}

/// Type, shape and a sample of the data: hashing every weight of a model would read all of it. Equality compares everything.
impl Hash for Tensor {
    fn hash<H: Hasher>(&self, h: &mut H) {
        const CHUNK: usize = 32;
        const CHUNKS: usize = 16;
        self.dtype.hash(h);
        self.shape.hash(h);
        match &self.data {
            Data::Splat(e) => e.hash(h),
            Data::Dense(b) if b.len() <= CHUNK * CHUNKS => b.hash(h),
            Data::Dense(b) => (0..CHUNKS).map(|i| (b.len() - CHUNK) / (CHUNKS - 1) * i).for_each(|at| b[at..at + CHUNK].hash(h)),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        match self.elems() {
            n @ 0..=16 => f.debug_list().entries((0..n).map(|i| self.num(i))).finish(),
            _ => write!(f, "[..]"),
        }
    }
}

/// Rust types that are element types.
pub trait Element: Copy {
    const DTYPE: DType;
    fn put(self, out: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                let mut b = [0; size_of::<$t>()];
                b.copy_from_slice(bytes);
                <$t>::from_le_bytes(b)
            }
        }
    )* };
}
elements!(f32 => F32, f64 => F64, half::f16 => F16, half::bf16 => BF16, i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64);

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn put(self, out: &mut Vec<u8>) {
        out.push(self.into());
    }
    fn get(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
}
