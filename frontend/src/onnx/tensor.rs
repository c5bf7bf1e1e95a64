//! TensorProto to and from constant tensors.

use super::call::dtype_of;
use super::file::{self, External};
use super::proto::{SparseTensorProto, TensorProto, text};
use super::scan::{self, Kind};
use bytes::Bytes;
use nnc_ir::tensor::{Element, checked_elems, low_bits};
use nnc_ir::{DType, Error, Result, Tensor};
use prost::Message;
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

/// The tensor, without copying raw or external data.
pub fn decode(t: &TensorProto, external: &External) -> Result<Tensor> {
    elements(t, external).map_err(|e| {
        let name = if t.name.is_empty() { "a tensor".to_string() } else { format!("tensor `{}`", text(&t.name)) };
        Error::new(e.code(), format!("{name}: {}", e.message()))
    })
}

fn elements(t: &TensorProto, external: &External) -> Result<Tensor> {
    let dtype = dtype_of(t.data_type.into())?;
    if t.segment.is_some() {
        return Err(Error::unsupported("tensors in segments are not supported"));
    }
    let shape = lengths(&t.dims)?;
    let n = checked_elems(dtype, &shape)?;
    if dtype == DType::Str {
        let string = |s: &Bytes| std::str::from_utf8(s).map(Arc::from).map_err(|_| Error::syntax("a string is no UTF-8"));
        return Tensor::text(&shape, t.string_data.iter().map(string).collect::<Result<Vec<Arc<str>>>>()?);
    }
    let data = match t.data_location {
        0 => match &t.raw_data {
            // An empty raw_data beside typed data is how some writers say "none".
            Some(raw) if !raw.is_empty() || n == 0 || typed_len(t, dtype) == 0 => raw.clone(),
            None if typed_len(t, dtype) == 0 => Bytes::new(),
            _ => typed(t, dtype, n)?,
        },
        1 => external_bytes(t, external)?,
        l => return Err(Error::unsupported(format!("data_location {l} is not known"))),
    };
    if dtype.bits() < 8 {
        let want = packed_len(dtype, n);
        if data.len() != want {
            return Err(Error::shape(format!("a tensor {dtype}{shape:?} takes {want} bytes in a file, {} are given", data.len())));
        }
        return Tensor::from_bytes(dtype, shape, unpack(dtype, &data, n).into());
    }
    // Compiled code relies on a bool being 0 or 1; a file may hold any byte.
    let data = if dtype == DType::Bool && data.iter().any(|b| *b > 1) { data.iter().map(|b| u8::from(*b != 0)).collect() } else { data };
    Tensor::from_bytes(dtype, shape, data)
}

fn lengths(dims: &[i64]) -> Result<Vec<usize>> {
    dims.iter().map(|d| usize::try_from(*d).map_err(|_| Error::shape(format!("a length of {d}")))).collect()
}

/// Bytes that the sparse tensors of a model may take together when they are written out: a few bytes of a file name any shape.
pub const MAX_WRITTEN_OUT: usize = 1 << 30;

/// A sparse tensor with its zeros. Its bytes are taken from `left`.
pub fn written_out(s: &SparseTensorProto, external: &External, left: &Cell<usize>) -> Result<Tensor> {
    with_zeros(s, external, left).map_err(|e| {
        let name = s.values.as_ref().map(|v| text(&v.name)).filter(|n| !n.is_empty());
        let name = name.map_or("a sparse tensor".to_string(), |n| format!("sparse tensor `{n}`"));
        Error::new(e.code(), format!("{name}: {}", e.message()))
    })
}

fn with_zeros(s: &SparseTensorProto, external: &External, left: &Cell<usize>) -> Result<Tensor> {
    let missing = |what: &str| Error::syntax(format!("the file gives no {what}"));
    let values = elements(s.values.as_ref().ok_or_else(|| missing("values"))?, external)?;
    let dtype = values.dtype();
    let shape = lengths(&s.dims)?;
    let n = checked_elems(dtype, &shape)?;
    let [count] = *values.shape() else { return Err(Error::shape(format!("the values should be a vector, found {}", values.ty()))) };
    let at = match &s.indices {
        Some(indices) => positions(&elements(indices, external)?, count, &shape, n)?,
        None if count == 0 => vec![],
        None => return Err(missing("indices")),
    };
    let bytes = n * dtype.bytes();
    left.set(
        left.get()
            .checked_sub(bytes)
            .ok_or_else(|| Error::limit(format!("sparse tensors of the model take more than {} MiB with their zeros", MAX_WRITTEN_OUT >> 20)))?,
    );
    if let Some(strings) = values.texts() {
        let mut out: Vec<Arc<str>> = vec!["".into(); n];
        at.into_iter().zip(strings).for_each(|(i, s)| out[i] = s.clone());
        return Tensor::text(&shape, out);
    }
    let mut out = vec![0u8; bytes];
    let size = dtype.bytes();
    at.into_iter().zip(values.bytes().chunks_exact(size)).for_each(|(i, v)| out[i * size..(i + 1) * size].copy_from_slice(v));
    Tensor::from_bytes(dtype, shape, out.into())
}

/// Where the `count` values of a sparse tensor of `n` elements stand: each index is a position in the order of the elements, or a row
/// with one index an axis. Positions ascend, so that no element has two values.
fn positions(indices: &Tensor, count: usize, shape: &[usize], n: usize) -> Result<Vec<usize>> {
    let misfit = || Error::shape(format!("{count} values of a tensor {shape:?} are at indices {}", indices.ty()));
    let flat = indices.to_ints().filter(|_| indices.dtype() == DType::I64).ok_or_else(misfit)?;
    let outside = |i: i64, d: usize| Error::shape(format!("index {i} is outside 0..{d}"));
    let within = |i: i64, d: usize| usize::try_from(i).ok().filter(|i| *i < d).ok_or_else(|| outside(i, d));
    let at: Vec<usize> = match *indices.shape() {
        [k] if k == count => flat.into_iter().map(|i| within(i, n)).collect::<Result<_>>()?,
        [k, rank] if k == count && rank == shape.len() => {
            // Inside of each axis, so the position is below the number of elements.
            let position = |k: usize| (0..rank).try_fold(0, |p, a| Ok(p * shape[a] + within(flat[k * rank + a], shape[a])?));
            (0..count).map(position).collect::<Result<_>>()?
        }
        _ => return Err(misfit()),
    };
    match at.windows(2).find(|w| w[0] >= w[1]) {
        Some(w) => Err(Error::shape(format!("position {} comes after {}: indices should ascend", w[1], w[0]))),
        None => Ok(at),
    }
}

fn external_bytes(t: &TensorProto, external: &External) -> Result<Bytes> {
    let (mut location, mut offset, mut length) = (None, 0, None);
    for entry in &t.external_data {
        let value = text(&entry.value);
        let number = || value.parse::<u64>().map_err(|_| Error::syntax(format!("external data: {} is `{value}`, no number", text(&entry.key))));
        match &*entry.key {
            b"location" => location = Some(value),
            b"offset" => offset = number()?,
            b"length" => length = Some(number()?),
            _ => {} // checksum, and hints of writers
        }
    }
    let location = location.ok_or_else(|| Error::syntax("external data without a location"))?;
    let data = external.bytes(&location, offset, length)?;
    // Without a length the rest of the file is offered; take what the shape asks for.
    let n = t.dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?));
    let dtype = dtype_of(t.data_type.into())?;
    let want = n.and_then(|n| if dtype.bits() < 8 { Some(packed_len(dtype, n)) } else { n.checked_mul(dtype.bytes()) });
    Ok(match want {
        Some(want) if length.is_none() && want <= data.len() => data.slice(..want),
        _ => data,
    })
}

/// Number of entries in the field that holds elements of this type.
fn typed_len(t: &TensorProto, dtype: DType) -> usize {
    match dtype {
        DType::F32 => t.float_data.len(),
        DType::F64 => t.double_data.len(),
        DType::I64 => t.int64_data.len(),
        DType::U64 | DType::U32 => t.uint64_data.len(),
        _ => t.int32_data.len(),
    }
}

/// Bytes that `n` elements of fewer than 8 bits take in a file: there they follow each other without gaps.
fn packed_len(dtype: DType, n: usize) -> usize {
    // In two parts, so that no product overflows.
    let bits = dtype.bits() as usize;
    n / 8 * bits + (n % 8 * bits).div_ceil(8)
}

/// The elements of a file, low bits first, one a byte. There are enough bytes for `n`.
fn unpack(dtype: DType, data: &[u8], n: usize) -> Vec<u8> {
    let bits = dtype.bits() as usize;
    let element = |i: usize| {
        let at = i * bits;
        let byte = |k: usize| u16::from(data.get(k).copied().unwrap_or_default());
        low_bits(dtype, ((byte(at / 8) | byte(at / 8 + 1) << 8) >> (at % 8)) as u8)
    };
    (0..n).map(element).collect()
}

/// The reverse of [`unpack`]; bits that are left over are zero.
fn pack(dtype: DType, elements: &[u8]) -> Vec<u8> {
    let bits = dtype.bits() as usize;
    let mut out = vec![0; packed_len(dtype, elements.len())];
    for (i, e) in elements.iter().enumerate() {
        let at = i * bits;
        let two = u16::from(e & ((1 << bits) - 1)) << (at % 8);
        out[at / 8] |= two as u8;
        if two > 0xff {
            out[at / 8 + 1] |= (two >> 8) as u8;
        }
    }
    out
}

fn typed(t: &TensorProto, dtype: DType, n: usize) -> Result<Bytes> {
    let have = typed_len(t, dtype);
    if dtype.bits() < 8 {
        // Each entry holds a byte of the packed form.
        return Ok(t.int32_data.iter().map(|x| *x as u8).collect());
    }
    if have != n {
        return Err(Error::shape(format!("{have} elements of {dtype} are given, the shape {:?} takes {n}", t.dims)));
    }
    fn list<S: Copy, T: Element>(source: &[S], f: impl Fn(S) -> T) -> Vec<u8> {
        let mut out = Vec::with_capacity(source.len() * T::DTYPE.bytes());
        source.iter().for_each(|x| f(*x).put(&mut out));
        out
    }
    let ints = &t.int32_data;
    Ok(match dtype {
        DType::F32 => list(&t.float_data, |x| x),
        DType::F64 => list(&t.double_data, |x| x),
        DType::I64 => list(&t.int64_data, |x| x),
        DType::U64 => list(&t.uint64_data, |x| x),
        DType::U32 => list(&t.uint64_data, |x| x as u32),
        DType::I32 => list(ints, |x| x),
        DType::I16 => list(ints, |x| x as i16),
        DType::I8 => list(ints, |x| x as i8),
        DType::U16 => list(ints, |x| x as u16),
        DType::U8 => list(ints, |x| x as u8),
        DType::Bool => list(ints, |x| x != 0),
        DType::Str => return Err(Error::internal("strings are no bytes")),
        DType::F16 => list(ints, |x| half::f16::from_bits(x as u16)),
        DType::BF16 => list(ints, |x| half::bf16::from_bits(x as u16)),
        _ => list(ints, |x| x as u8),
    }
    .into())
}

/// The message that holds a tensor, with raw data.
pub fn to_proto(name: &str, t: &Tensor) -> TensorProto {
    TensorProto {
        name: Bytes::copy_from_slice(name.as_bytes()),
        dims: t.shape().iter().map(|d| *d as i64).collect(),
        data_type: t.dtype().abi_code(),
        raw_data: match t.dtype() {
            DType::Str => None,
            d if d.bits() < 8 => Some(pack(d, &t.bytes()).into()),
            _ => Some(t.bytes()),
        },
        string_data: t.texts().unwrap_or_default().iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect(),
        ..TensorProto::default()
    }
}

/// A `.pb` file's bytes: one TensorProto.
pub fn encode(name: &str, t: &Tensor) -> Vec<u8> {
    to_proto(name, t).encode_to_vec()
}

/// The name and tensor in a `.pb` file's bytes.
pub fn parse(data: Bytes) -> Result<(String, Tensor)> {
    scan::check(&data, Kind::Tensor)?;
    let t = TensorProto::decode(data).map_err(|e| Error::syntax(format!("no TensorProto: {e}")))?;
    Ok((text(&t.name), decode(&t, &External::default())?))
}

/// The name and tensor in a `.pb` file.
pub fn read(path: &Path) -> Result<(String, Tensor)> {
    parse(file::map(path)?).map_err(|e| Error::new(e.code(), format!("{}: {}", path.display(), e.message())))
}
