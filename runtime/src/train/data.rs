//! Samples from files, and which of them make a batch.

use nnc_frontend::nn::train::Source;
use nnc_ir::tensor::checked_elems;
use nnc_ir::{DType, Error, Result, Tensor, Type};
use std::path::Path;

/// Tensors whose first axis counts the samples.
#[derive(Debug)]
pub struct Samples {
    pub tensors: Vec<Tensor>,
    pub count: usize,
}

impl Samples {
    /// Types of one sample.
    pub fn types(&self) -> Vec<Type> {
        self.tensors.iter().map(|t| Type::of(t.dtype(), &t.shape()[1..].iter().map(|d| *d as i64).collect::<Vec<_>>())).collect()
    }
}

/// A loader: what asks, the contents of its files; gives one tensor a name.
type Loader = fn(&Source, &[Vec<u8>]) -> Result<Vec<Tensor>>;

const LOADERS: &[(&str, Loader)] = &[
    ("idx", |_, files| files.iter().map(|f| idx(f)).collect()),
    ("npy", |_, files| files.iter().map(|f| crate::npy::from_npy(f)).collect()),
    ("npz", npz),
    ("csv", csv),
    ("cifar", cifar),
    ("text", text),
];

/// The loader of a task that draws its samples itself: there are as many as `rows` says, and nothing in them.
const DRAWS: &str = "draws";

/// Reads what a source names, below `folder`.
pub fn load(source: &Source, folder: &Path) -> Result<Samples> {
    if source.loader == DRAWS {
        return match source.rows {
            Some((first, end)) if first < end && source.names.is_empty() => Ok(Samples { tensors: vec![], count: end - first }),
            _ => Err(Error::input("`draws` has no names, and says how many samples make an epoch: `data () = draws() rows 0..1000`")),
        };
    }
    let Some((_, loader)) = LOADERS.iter().find(|(name, _)| *name == source.loader) else {
        let names: Vec<&str> = LOADERS.iter().map(|(n, _)| *n).chain([DRAWS]).collect();
        return Err(Error::name(format!("no loader is called `{}`: these are {}", source.loader, names.join(", "))));
    };
    let read = |name: &String| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|e| Error::io(format!("cannot read {}: {e}", path.display())).note("`--data FOLDER` says where the data is"))
    };
    let files = source.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let tensors = loader(source, &files).map_err(|e| e.note(format!("reading {}", source.files.join(", "))))?;
    if tensors.len() != source.names.len() {
        return Err(Error::input(format!("{} gives {} tensors, {} names wait for them", source.loader, tensors.len(), source.names.len())));
    }
    let count = tensors.first().and_then(|t| t.shape().first()).copied().unwrap_or(0);
    if count == 0 || tensors.iter().any(|t| t.shape().first() != Some(&count)) {
        let counts: Vec<String> = tensors.iter().map(|t| t.ty().to_string()).collect();
        return Err(Error::input(format!("tensors of samples have one first axis of at least 1, found {}", counts.join(", "))));
    }
    let Some((first, end)) = source.rows else { return Ok(Samples { tensors, count }) };
    if first >= end || end > count {
        return Err(Error::input(format!("rows {first}..{end} are none of the {count} that there are")));
    }
    let part = |t: &Tensor| {
        let row = t.byte_len() / count;
        let shape = [&[end - first], &t.shape()[1..]].concat();
        Tensor::from_bytes(t.dtype(), shape, t.bytes().slice(first * row..end * row))
    };
    Ok(Samples { tensors: tensors.iter().map(part).collect::<Result<_>>()?, count: end - first })
}

/// Yann LeCun's format of MNIST: two zeros, a type, a rank, big-endian lengths, big-endian elements.
fn idx(file: &[u8]) -> Result<Tensor> {
    let wrong = |why: &str| Error::syntax(format!("this is no IDX file: {why}"));
    let (head, mut rest) = file.split_at_checked(4).ok_or_else(|| wrong("it is too short"))?;
    if head[..2] == [0x1f, 0x8b] {
        return Err(Error::unsupported("the file is compressed: unpack it with gunzip"));
    }
    let dtype = match (head[0], head[1], head[2]) {
        (0, 0, 0x08) => DType::U8,
        (0, 0, 0x09) => DType::I8,
        (0, 0, 0x0b) => DType::I16,
        (0, 0, 0x0c) => DType::I32,
        (0, 0, 0x0d) => DType::F32,
        (0, 0, 0x0e) => DType::F64,
        _ => return Err(wrong("it does not begin with two zeros and an element type")),
    };
    let mut shape = vec![];
    for _ in 0..head[3] {
        let (n, more) = rest.split_at_checked(4).ok_or_else(|| wrong("it ends inside its header"))?;
        shape.push(u32::from_be_bytes([n[0], n[1], n[2], n[3]]) as usize);
        rest = more;
    }
    let want = checked_elems(dtype, &shape)? * dtype.bytes();
    if rest.len() != want {
        return Err(wrong(&format!("{shape:?} takes {want} bytes, {} follow the header", rest.len())));
    }
    let mut data = rest.to_vec();
    data.chunks_exact_mut(dtype.bytes()).for_each(<[u8]>::reverse);
    Tensor::from_bytes(dtype, shape, data.into())
}

fn npz(source: &Source, files: &[Vec<u8>]) -> Result<Vec<Tensor>> {
    let mut arrays = vec![];
    for f in files {
        arrays.extend(crate::npy::read_npz(std::io::Cursor::new(f))?);
    }
    let known: Vec<String> = arrays.iter().map(|(n, _)| n.clone()).collect();
    let find = |name: &String| {
        let found = arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        found.ok_or_else(|| Error::name(format!("there is no array `{name}`: there are {}", known.join(", "))))
    };
    source.names.iter().map(find).collect()
}

/// Lines of numbers, the last of which is a class: f32 of the others, i64 of the classes. A first line of words is skipped.
fn csv(_: &Source, files: &[Vec<u8>]) -> Result<Vec<Tensor>> {
    let (mut x, mut y, mut width): (Vec<f32>, Vec<i64>, Option<usize>) = (vec![], vec![], None);
    for file in files {
        let text = std::str::from_utf8(file).map_err(|_| Error::syntax("the file is no UTF-8 text"))?;
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let numbers = line.split(',').map(|s| s.trim().parse::<f32>()).collect::<Result<Vec<f32>, _>>();
            let Ok(numbers) = numbers else {
                if i == 0 {
                    continue;
                }
                return Err(Error::syntax(format!("line {} holds something that is no number", i + 1)));
            };
            let (class, values) = numbers.split_last().ok_or_else(|| Error::syntax("an empty line"))?;
            if *width.get_or_insert(values.len()) != values.len() {
                return Err(Error::syntax(format!("line {} has {} numbers, others have {}", i + 1, numbers.len(), width.unwrap_or(0) + 1)));
            }
            x.extend(values);
            y.push(*class as i64);
        }
    }
    Ok(vec![Tensor::new(&[y.len(), width.unwrap_or(0)], &x), Tensor::new(&[y.len()], &y)])
}

/// Krizhevsky's binary files of CIFAR-10: a class, then 3x32x32 bytes. Gives images and classes.
fn cifar(_: &Source, files: &[Vec<u8>]) -> Result<Vec<Tensor>> {
    const IMAGE: usize = 3 * 32 * 32;
    let (mut x, mut y): (Vec<u8>, Vec<u8>) = (vec![], vec![]);
    for file in files {
        if file.len() % (IMAGE + 1) != 0 {
            return Err(Error::syntax(format!("records are {} bytes, the file has {}", IMAGE + 1, file.len())));
        }
        for record in file.chunks_exact(IMAGE + 1) {
            y.push(record[0]);
            x.extend(&record[1..]);
        }
    }
    Ok(vec![Tensor::new(&[y.len(), 3, 32, 32], &x), Tensor::new(&[y.len()], &y)])
}

/// Pieces of text, `length` bytes each, one behind the other: u8 `[pieces,length]`.
fn text(source: &Source, files: &[Vec<u8>]) -> Result<Vec<Tensor>> {
    let (length, all) = (source.length, files.concat());
    if length == 0 {
        return Err(Error::input("text is cut into pieces: `length 64` says how long they are"));
    }
    let pieces = all.len() / length;
    Ok(vec![Tensor::new(&[pieces, length], &all[..pieces * length])])
}

/// Which samples make which batch.
pub struct Batches {
    samples: usize,
    batch: usize,
    shuffle: bool,
    seed: u64,
    /// The order of the epoch that was asked for last.
    order: std::cell::RefCell<(u64, Vec<usize>)>,
}

impl Batches {
    pub fn new(samples: usize, source: &Source) -> Result<Batches> {
        if source.batch > samples {
            return Err(Error::input(format!("a batch of {} is more than the {samples} samples there are", source.batch)));
        }
        Ok(Batches { samples, batch: source.batch, shuffle: source.shuffle, seed: source.seed, order: (u64::MAX, vec![]).into() })
    }

    /// Whole batches; what is left over is left out, another part in each epoch.
    pub fn per_epoch(&self) -> u64 {
        (self.samples / self.batch) as u64
    }

    /// Samples of step `t`, by seed and step alone.
    pub fn rows(&self, t: u64) -> Vec<usize> {
        let (epoch, i) = (t / self.per_epoch(), (t % self.per_epoch()) as usize);
        let range = i * self.batch..(i + 1) * self.batch;
        if !self.shuffle {
            return range.collect();
        }
        let mut order = self.order.borrow_mut();
        if order.0 != epoch {
            let mut keyed: Vec<(u64, usize)> = (0..self.samples).map(|i| (mix(mix(self.seed ^ mix(epoch)) ^ i as u64), i)).collect();
            keyed.sort_unstable();
            *order = (epoch, keyed.into_iter().map(|(_, i)| i).collect());
        }
        order.1[range].to_vec()
    }
}

/// Rows of a tensor, one after the other.
pub fn gather(t: &Tensor, rows: &[usize]) -> Vec<u8> {
    let bytes = t.bytes();
    let row = bytes.len() / t.shape()[0].max(1);
    rows.iter().flat_map(|i| &bytes[i * row..(i + 1) * row]).copied().collect()
}

/// 64 bits that look random (the finalizer of splitmix64, Steele et al. 2014).
pub fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(batch: usize, shuffle: bool) -> Source {
        Source { names: vec![], loader: "csv".into(), files: vec![], rows: None, batch, shuffle, seed: 7, flip: false, crop: 0, length: 4 }
    }

    #[test]
    fn idx_files() {
        let file = [&[0, 0, 0x0c, 2, 0, 0, 0, 1, 0, 0, 0, 2][..], &[0, 0, 1, 0, 0xff, 0xff, 0xff, 0xfe]].concat();
        let t = idx(&file).unwrap();
        assert_eq!((t.shape(), t.to_ints().unwrap()), (&[1, 2][..], vec![256, -2]));
        for cut in 0..file.len() {
            assert!(idx(&file[..cut]).is_err());
        }
        assert!(idx(&[0x1f, 0x8b, 8, 0]).unwrap_err().message().contains("gunzip"));
    }

    #[test]
    fn text_of_numbers() {
        let t = csv(&source(1, false), &[b"a,b,class\n1, 2.5,3\n\n4,5,6\n".to_vec()]).unwrap();
        assert_eq!((t[0].to_f64s(), t[1].to_ints().unwrap()), (vec![1.0, 2.5, 4.0, 5.0], vec![3, 6]));
        assert!(csv(&source(1, false), &[b"1,2\n3\n".to_vec()]).is_err() && csv(&source(1, false), &[b"1,2\nx,y\n".to_vec()]).is_err());
    }

    #[test]
    fn pieces_of_text() {
        let t = text(&source(1, false), &[b"abcd".to_vec(), b"efghi".to_vec()]).unwrap();
        assert_eq!((t[0].shape(), t[0].bytes().to_vec()), (&[2, 4][..], b"abcdefgh".to_vec()));
    }

    #[test]
    fn what_is_drawn_needs_no_file() {
        let draws = Source { loader: DRAWS.into(), rows: Some((0, 70)), ..source(7, false) };
        assert_eq!(load(&draws, Path::new("nowhere")).unwrap().count, 70);
        assert!(load(&Source { rows: None, ..draws }, Path::new("nowhere")).is_err());
    }

    #[test]
    fn cifar_records() {
        let mut file = vec![7];
        file.extend(vec![9; 3072]);
        let t = cifar(&source(1, false), &[[file.clone(), file].concat()]).unwrap();
        assert_eq!((t[0].shape(), t[1].to_ints().unwrap()), (&[2, 3, 32, 32][..], vec![7, 7]));
        assert!(cifar(&source(1, false), &[vec![0; 3072]]).is_err());
    }

    #[test]
    fn an_epoch_has_every_sample_once() {
        let b = Batches::new(20, &source(5, true)).unwrap();
        let epoch = |e: u64| (0..4).flat_map(|i| b.rows(e * 4 + i)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        let mut sorted = first.clone();
        sorted.sort();
        assert!(sorted.iter().copied().eq(0..20) && first != second && first != sorted);
        // From the step alone, whatever was asked for before.
        assert_eq!(b.rows(2), first[10..15]);
        assert_eq!(Batches::new(20, &source(5, false)).unwrap().rows(5), [5, 6, 7, 8, 9]);
        assert!(Batches::new(4, &source(5, false)).is_err());
    }
}
