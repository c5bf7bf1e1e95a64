//! NumPy's files: `.npy` holds one array, `.npz` is a zip of them.
//!
//! Element types are those of [`DType`]. NumPy has no names for bf16 and the types of 8 bits and fewer; they are written as the
//! `ml_dtypes` package has them: as raw bytes, `V2` and `V1` (f8e5m2 as `f1`), an element a byte, signs not extended. `V2` is read as
//! bf16. `V1` does not say what it holds: it is read as u8, and whoever knows the type takes the numbers for its codes
//! ([`as_codes`]). Files in Fortran order or big-endian are read too; what is written is row-major and little-endian. Format: NumPy enhancement proposal 1.

use nnc_ir::tensor::{checked_elems, low_bits};
use nnc_ir::{DType, Error, Result, Tensor};
use std::io::{Read, Seek, Write};

/// The type text of what is no more than bytes.
const RAW: &str = "V1";

const MAGIC: &[u8] = b"\x93NUMPY";

/// The type text of a header, without the byte order.
fn descr(d: DType) -> &'static str {
    use DType::*;
    match d {
        F32 => "f4",
        F64 => "f8",
        F16 => "f2",
        BF16 => "V2",
        I8 => "i1",
        I16 => "i2",
        I32 => "i4",
        I64 => "i8",
        U8 => "u1",
        U16 => "u2",
        U32 => "u4",
        U64 => "u8",
        Bool => "b1",
        F8E5M2 => "f1",
        F8E4M3FN | F8E4M3FNUZ | F8E5M2FNUZ | F8E8M0 | F6E2M3 | F6E3M2 | F4E2M1 | I4 | I2 | U4 | U2 => RAW,
    }
}

/// The bytes of a `.npy` file.
pub fn to_npy(t: &Tensor) -> Vec<u8> {
    let shape: String = t.shape().iter().map(|d| format!("{d}, ")).collect();
    let shape = if t.shape().len() == 1 { shape.trim_end() } else { shape.trim_end_matches(", ") };
    let order = if t.dtype().bytes() == 1 { '|' } else { '<' };
    let mut header = format!("{{'descr': '{order}{}', 'fortran_order': False, 'shape': ({shape}), }}", descr(t.dtype()));
    // The data starts at a multiple of 64.
    let pad = 63 - (MAGIC.len() + 4 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', pad));
    header.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend([1, 0]);
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    match t.dtype().bits() {
        // The unsigned type of the same width: no sign in the spare bits.
        bits @ ..8 => out.extend(t.bytes().iter().map(|b| b & ((1 << bits) - 1))),
        _ => out.extend(&*t.bytes()),
    }
    out
}

/// Numbers of u8 as elements of `dtype`, where that is a type of a byte or less that files of NumPy cannot tell apart.
pub fn as_codes(t: Tensor, dtype: DType) -> Tensor {
    if t.dtype() != DType::U8 || !matches!(descr(dtype), RAW) {
        return t;
    }
    let data = if dtype.bits() < 8 { t.bytes().iter().map(|b| low_bits(dtype, *b)).collect() } else { t.bytes() };
    Tensor::from_bytes(dtype, t.shape().to_vec(), data).unwrap_or(t)
}

/// The array of a `.npy` file.
pub fn from_npy(bytes: &[u8]) -> Result<Tensor> {
    let short = || Error::syntax("this is no .npy file: it ends inside its header");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| Error::syntax("this is no .npy file: it does not start with \\x93NUMPY"))?;
    let (version, rest) = rest.split_at_checked(2).ok_or_else(short)?;
    let width = if version[0] == 1 { 2 } else { 4 };
    let (len, rest) = rest.split_at_checked(width).ok_or_else(short)?;
    let len = len.iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b));
    let (header, data) = rest.split_at_checked(len).ok_or_else(short)?;
    let header = std::str::from_utf8(header).map_err(|_| Error::syntax("the header of the .npy file is no text"))?;

    let (dtype, big_endian) = parse_descr(field(header, "descr")?)?;
    let shape = parse_shape(field(header, "shape")?)?;
    let fortran = field(header, "fortran_order")?.starts_with("True");
    let want = checked_elems(dtype, &shape)? * dtype.bytes();
    if data.len() != want {
        return Err(Error::syntax(format!("the .npy file says {dtype}{shape:?}, which takes {want} bytes, but holds {}", data.len())));
    }
    let mut data = data.to_vec();
    if big_endian {
        data.chunks_exact_mut(dtype.bytes()).for_each(<[u8]>::reverse);
    }
    if fortran && shape.len() > 1 {
        data = row_major(&data, &shape, dtype.bytes());
    }
    if dtype == DType::Bool {
        data.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    Tensor::from_bytes(dtype, shape, data.into())
}

/// The text after `'key':` in a header, which is a Python dictionary of three entries.
fn field<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    quoted
        .iter()
        .find_map(|q| header.split_once(q.as_str())?.1.trim_start().strip_prefix(':'))
        .map(str::trim_start)
        .ok_or_else(|| Error::syntax(format!("the header of the .npy file has no '{key}'")))
}

fn parse_descr(text: &str) -> Result<(DType, bool)> {
    let text = text.strip_prefix(['\'', '"']).and_then(|t| t.split(['\'', '"']).next());
    let text = text.ok_or_else(|| Error::unsupported("the .npy file holds records; plain arrays are supported"))?;
    let (order, kind) = match text.chars().next() {
        Some(c @ ('<' | '>' | '|' | '=')) => (c, &text[1..]),
        _ => ('<', text),
    };
    if kind == RAW {
        return Ok((DType::U8, false));
    }
    let dtype = DType::ALL.into_iter().find(|d| descr(*d) == kind).ok_or_else(|| {
        let mut names: Vec<&str> = DType::ALL.iter().map(|d| descr(*d)).collect();
        names.dedup();
        Error::unsupported(format!("the .npy file holds elements of type '{text}'; supported are {}", names.join(", ")))
    })?;
    Ok((dtype, order == '>'))
}

fn parse_shape(text: &str) -> Result<Vec<usize>> {
    let wrong = || Error::syntax("the shape in the .npy header is no tuple of sizes");
    let inner = text.strip_prefix('(').and_then(|t| t.split_once(')')).ok_or_else(wrong)?.0;
    inner.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.parse().map_err(|_| wrong())).collect()
}

/// Elements stored with the first index fastest, reordered to the last index fastest.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; shape.len()];
    for _ in 0..data.len() / size {
        let from = index.iter().zip(shape).rev().fold(0, |at, (i, n)| at * n + i);
        out.extend(&data[from * size..(from + 1) * size]);
        for (i, n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// Writes a `.npz` of named arrays, in order, uncompressed, with fixed times: the same arrays give the same bytes.
pub fn write_npz<W: Write + Seek>(to: W, arrays: &[(String, Tensor)]) -> Result<()> {
    let mut zip = zip::ZipWriter::new(to);
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).last_modified_time(zip::DateTime::default());
    let failed = |e: &dyn std::fmt::Display| Error::io(format!("cannot write the .npz file: {e}"));
    for (name, t) in arrays {
        let data = to_npy(t);
        let options = options.large_file(data.len() >= u32::MAX as usize);
        zip.start_file(format!("{name}.npy"), options).map_err(|e| failed(&e))?;
        zip.write_all(&data).map_err(|e| failed(&e))?;
    }
    zip.finish().map_err(|e| failed(&e))?.flush().map_err(|e| failed(&e))
}

/// The arrays of a `.npz` by name, in the order of the file.
pub fn read_npz<R: Read + Seek>(from: R) -> Result<Vec<(String, Tensor)>> {
    let failed = |e: &dyn std::fmt::Display| Error::syntax(format!("this is no .npz file: {e}"));
    let mut zip = zip::ZipArchive::new(from).map_err(|e| failed(&e))?;
    let mut out = vec![];
    for i in 0..zip.len() {
        let mut file = zip.by_index(i).map_err(|e| failed(&e))?;
        let Some(name) = file.name().strip_suffix(".npy").map(str::to_string) else { continue };
        let mut data = vec![];
        file.read_to_end(&mut data).map_err(|e| failed(&e))?;
        out.push((name.clone(), from_npy(&data).map_err(|e| e.note(format!("array `{name}`")))?));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn every_type() -> Vec<(String, Tensor)> {
        let byte = |d: DType, i: usize| if d == DType::Bool { i as u8 % 2 } else { (i * 7) as u8 };
        let byte = |d: DType, i: usize| if d.bits() < 8 { low_bits(d, byte(d, i)) } else { byte(d, i) };
        let bytes = |d: DType| (0..6 * d.bytes()).map(|i| byte(d, i)).collect::<Vec<u8>>();
        DType::ALL.into_iter().map(|d| (format!("a/{d}"), Tensor::from_bytes(d, vec![2, 3], bytes(d).into()).unwrap())).collect()
    }

    #[test]
    fn round_trips() {
        for shape in [vec![], vec![0], vec![5], vec![2, 0, 3], vec![1, 2, 3, 4]] {
            let t = Tensor::splat(DType::F32, shape, 1.5f32.to_le_bytes().to_vec().into()).unwrap();
            let file = to_npy(&t);
            let back = from_npy(&file).unwrap();
            assert_eq!((back.shape(), back.bytes()), (t.shape(), t.bytes()));
            assert_eq!((file.len() - t.byte_len()) % 64, 0);
        }
        let arrays = every_type();
        let mut file = Cursor::new(vec![]);
        write_npz(&mut file, &arrays).unwrap();
        let back = read_npz(Cursor::new(file.get_ref())).unwrap();
        let typed = |((name, t), (_, like)): ((String, Tensor), &(String, Tensor))| (name, as_codes(t, like.dtype()));
        assert_eq!(back.into_iter().zip(&arrays).map(typed).collect::<Vec<_>>(), arrays);
    }

    #[test]
    fn header_as_numpy_writes_it() {
        let text = String::from_utf8_lossy(&to_npy(&Tensor::new(&[3], &[1i64, 2, 3]))[10..]).to_string();
        assert!(text.starts_with("{'descr': '<i8', 'fortran_order': False, 'shape': (3,), } "), "{text}");
    }

    #[test]
    fn foreign_orders() {
        let file = |descr: &str, fortran: &str, data: &[u8]| {
            let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': (2, 3), }}\n");
            [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
        };
        let fortran = from_npy(&file("|u1", "True", &[0, 3, 1, 4, 2, 5])).unwrap();
        assert_eq!(fortran.to_vec::<u8>().unwrap(), [0, 1, 2, 3, 4, 5]);
        let big: Vec<u8> = (0..6u16).flat_map(|i| (i * 300).to_be_bytes()).collect();
        assert_eq!(from_npy(&file(">u2", "False", &big)).unwrap().to_vec::<u16>().unwrap(), [0, 300, 600, 900, 1200, 1500]);
        assert!(from_npy(&file("<c8", "False", &[0; 48])).unwrap_err().message().contains("'<c8'"));
    }

    #[test]
    fn damaged_files_are_errors() {
        let good = to_npy(&Tensor::new(&[2, 3], &[1f32; 6]));
        for cut in 0..good.len() {
            assert!(from_npy(&good[..cut]).is_err());
        }
        let huge = String::from_utf8_lossy(&good[10..128]).replace("(2, 3)", "(999999999999999999, 999999999999)");
        let file = [MAGIC, &[1, 0], &(huge.len() as u16).to_le_bytes(), huge.as_bytes()].concat();
        assert_eq!(from_npy(&file).unwrap_err().code().text(), "E0401");
    }
}
