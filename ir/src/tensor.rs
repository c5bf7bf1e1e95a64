//! Constant tensor data: owned bytes, a window into a memory map, one element repeated, or a recipe.

use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::types::{DType, Type};
use bytes::Bytes;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

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
    /// Strings, as many as the shape says.
    Text(Arc<[Arc<str>]>),
    /// Computed whenever the bytes are asked for, and not kept: packed weights are as large as the model once more.
    Made(Arc<Made>),
}

/// How a constant is computed: the same each time, of the type that the tensor says.
pub trait Make: Send + Sync {
    fn make(&self) -> Result<Tensor>;
}

/// A recipe, and its result where single elements were asked for. Two are equal only if they are the same.
struct Made {
    recipe: Box<dyn Make>,
    kept: OnceLock<Bytes>,
}

impl PartialEq for Made {
    fn eq(&self, other: &Made) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Made {}

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
    /// Strings; an error where their number does not fit the shape.
    pub fn text(shape: &[usize], strings: Vec<Arc<str>>) -> Result<Tensor> {
        let want = checked_elems(DType::Str, shape)?;
        if strings.len() != want {
            return Err(Error::shape(format!("a tensor str{shape:?} takes {want} strings, {} are given", strings.len())));
        }
        Ok(Tensor { dtype: DType::Str, shape: shape.to_vec(), data: Data::Text(strings.into()) })
    }

    /// Wraps bytes that hold the elements; an error where the length does not fit the shape.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Tensor> {
        if dtype == DType::Str {
            return Err(Error::internal("strings are no bytes"));
        }
        let want = checked_elems(dtype, &shape)? * dtype.bytes();
        if data.len() != want {
            return Err(Error::shape(format!("a tensor {dtype}{shape:?} takes {want} bytes, {} are given", data.len())));
        }
        Ok(Tensor { dtype, shape, data: Data::Dense(data) })
    }

    /// `shape` filled with one element, given by its bytes.
    pub fn splat(dtype: DType, shape: Vec<usize>, element: Bytes) -> Result<Tensor> {
        checked_elems(dtype, &shape)?;
        if dtype == DType::Str {
            return Err(Error::internal("strings are no bytes"));
        }
        if element.len() != dtype.bytes() {
            return Err(Error::internal(format!("a {dtype} element has {} bytes, not {}", dtype.bytes(), element.len())));
        }
        Ok(Tensor { dtype, shape, data: Data::Splat(element) })
    }

    /// A constant that is computed when it is read.
    pub fn made(dtype: DType, shape: Vec<usize>, recipe: Box<dyn Make>) -> Result<Tensor> {
        checked_elems(dtype, &shape)?;
        if dtype == DType::Str {
            return Err(Error::internal("strings are no bytes"));
        }
        Ok(Tensor { dtype, shape, data: Data::Made(Arc::new(Made { recipe, kept: OnceLock::new() })) })
    }

    /// Whether it is computed when it is read: such a constant is equal only to its copies.
    pub fn is_made(&self) -> bool {
        matches!(self.data, Data::Made(_))
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

    /// A scalar of any numeric type from an `f64`, rounded or truncated as `as` does; of strings the empty one, which is their zero.
    pub fn scalar_of(dtype: DType, value: f64) -> Tensor {
        if dtype == DType::Str {
            return Tensor { dtype, shape: vec![], data: Data::Text(Arc::new(["".into()])) };
        }
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
            Data::Dense(_) | Data::Text(_) | Data::Made(_) => None,
        }
    }

    /// The elements of a tensor of strings.
    pub fn texts(&self) -> Option<&[Arc<str>]> {
        match &self.data {
            Data::Text(t) => Some(t),
            _ => None,
        }
    }

    /// All elements' bytes; a splat is written out. Strings have none. What is computed must be computable: see [`Tensor::try_bytes`].
    pub fn bytes(&self) -> Bytes {
        self.try_bytes().expect("recipes are made of operations whose types were inferred")
    }

    /// As [`Tensor::bytes`], with the error of a recipe that fails.
    pub fn try_bytes(&self) -> Result<Bytes> {
        Ok(match &self.data {
            Data::Dense(b) => b.clone(),
            Data::Splat(e) => e.repeat(self.elems()).into(),
            Data::Text(_) => Bytes::new(),
            Data::Made(m) => match m.kept.get() {
                Some(b) => b.clone(),
                None => {
                    let t = m.recipe.make()?;
                    if t.dtype != self.dtype || t.byte_len() != self.byte_len() {
                        return Err(Error::internal(format!("a recipe for {} gave {}", self.ty(), t.ty())));
                    }
                    t.try_bytes()?
                }
            },
        })
    }

    /// Bytes of element `i`.
    pub fn element(&self, i: usize) -> &[u8] {
        let n = self.dtype.bytes();
        match &self.data {
            Data::Dense(b) => &b[i * n..(i + 1) * n],
            Data::Splat(e) => e,
            Data::Text(t) => t[i].as_bytes(),
            Data::Made(m) => &m.kept.get_or_init(|| self.bytes())[i * n..(i + 1) * n],
        }
    }

    /// Elements as `T`; `None` where the type differs.
    pub fn to_vec<T: Element>(&self) -> Option<Vec<T>> {
        (T::DTYPE == self.dtype).then(|| (0..self.elems()).map(|i| T::get(self.element(i))).collect())
    }

    /// Integer elements of any width as `i64`; `None` for floats.
    pub fn to_ints(&self) -> Option<Vec<i64>> {
        (self.dtype.is_int() || self.dtype == DType::Bool).then(|| (0..self.elems()).map(|i| self.num(i).as_i64()).collect())
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
            Data::Text(t) => t.hash(h),
            // Type and shape say enough.
            Data::Made(_) => {}
            Data::Dense(b) if b.len() <= CHUNK * CHUNKS => b.hash(h),
            Data::Dense(b) => (0..CHUNKS).map(|i| (b.len() - CHUNK) / (CHUNKS - 1) * i).for_each(|at| b[at..at + CHUNK].hash(h)),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        match self.elems() {
            0..=16 if self.dtype == DType::Str => f.debug_list().entries(self.texts().unwrap_or_default()).finish(),
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
