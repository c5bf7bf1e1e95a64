//! Values as bytes and back. What is read is trusted in nothing: a number that is no value, a list longer than the file, and nesting
//! beyond [`DEPTH`] are errors, and memory is only taken for what was read.

use nnc_ir::dim::{Atom, DimNode};
use nnc_ir::kernel::Program;
use nnc_ir::scalar::{Num, ScalarFn};
use nnc_ir::{DType, Dim, Error, Result};
use std::sync::Arc;

/// Lists within lists of statements, steps and dimensions: readers follow them by recursion.
const DEPTH: u32 = 500;

/// What a file holds.
pub trait Coded: Sized {
    fn put(&self, out: &mut Vec<u8>);

    fn get(r: &mut Reader) -> Result<Self>;
}

/// Bytes that are yet to be read.
pub struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
}

/// An error about a file that is not what this version writes.
pub fn damaged(why: impl std::fmt::Display) -> Error {
    Error::syntax(format!("the .nncg file is damaged: {why}"))
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, depth: 0 }
    }

    /// An error where something is left.
    pub fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(damaged(format!("{} bytes follow what was expected last", self.rest.len()))) }
    }

    pub fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|b| b[0])
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(|| damaged("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Reads what may nest.
    pub fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == DEPTH {
            return Err(damaged(format!("something nests deeper than {DEPTH}")));
        }
        self.depth += 1;
        let out = read(self);
        self.depth -= 1;
        out
    }
}

/// Structures by their fields and enums by a number for each variant; a variant that is missing here does not compile.
macro_rules! coded {
    (struct $name:ident { $($field:ident),* $(,)? }) => {
        impl Coded for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }

            fn get(r: &mut Reader) -> Result<$name> {
                Ok($name { $($field: Coded::get(r)?),* })
            }
        }
    };
    (enum $name:ident { $($number:literal = $variant:ident $(($($part:ident),*))? $({$($field:ident),*})?),* $(,)? }) => {
        impl Coded for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant $(($($part),*))? $({$($field),*})? => {
                        out.push($number);
                        $($($part.put(out);)*)?
                        $($($field.put(out);)*)?
                    })*
                }
            }

            fn get(r: &mut Reader) -> Result<$name> {
                Ok(match r.byte()? {
                    $($number => $name::$variant $(($({ let $part = Coded::get(r)?; $part }),*))? $({$($field: Coded::get(r)?),*})?,)*
                    other => return Err(damaged(format!(concat!("{} is no ", stringify!($name)), other))),
                })
            }
        }
    };
}
pub(super) use coded;

impl Coded for u64 {
    /// Seven bits a byte, the low ones first.
    fn put(&self, out: &mut Vec<u8>) {
        let mut v = *self;
        while v >= 0x80 {
            out.push(v as u8 | 0x80);
            v >>= 7;
        }
        out.push(v as u8);
    }

    fn get(r: &mut Reader) -> Result<u64> {
        let mut v = 0u64;
        for i in 0..10 {
            let b = r.byte()?;
            let bits = u64::from(b & 0x7f);
            if i == 9 && bits > 1 {
                break;
            }
            v |= bits << (7 * i);
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err(damaged("a number has more than 64 bits"))
    }
}

impl Coded for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        u64::from(*self).put(out);
    }

    fn get(r: &mut Reader) -> Result<u32> {
        u32::try_from(u64::get(r)?).map_err(|_| damaged("a number has more than 32 bits"))
    }
}

impl Coded for i64 {
    /// Small negative numbers are short, too.
    fn put(&self, out: &mut Vec<u8>) {
        (((self << 1) ^ (self >> 63)) as u64).put(out);
    }

    fn get(r: &mut Reader) -> Result<i64> {
        let v = u64::get(r)?;
        Ok((v >> 1) as i64 ^ -((v & 1) as i64))
    }
}

impl Coded for f64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_bits().to_le_bytes());
    }

    fn get(r: &mut Reader) -> Result<f64> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(r.take(8)?);
        Ok(f64::from_le_bytes(bytes))
    }
}

impl Coded for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn get(r: &mut Reader) -> Result<bool> {
        match r.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(damaged(format!("{other} is no truth value"))),
        }
    }
}

impl Coded for Arc<str> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend(self.as_bytes());
    }

    fn get(r: &mut Reader) -> Result<Arc<str>> {
        let n = usize::try_from(u64::get(r)?).unwrap_or(usize::MAX);
        std::str::from_utf8(r.take(n)?).map(Arc::from).map_err(|_| damaged("a name is no UTF-8 text"))
    }
}

impl<T: Coded> Coded for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|x| x.put(out));
    }

    fn get(r: &mut Reader) -> Result<Vec<T>> {
        let n = u64::get(r)?;
        // No element is shorter than a byte.
        if n > r.rest.len() as u64 {
            return Err(damaged("a list is longer than the file"));
        }
        r.nested(|r| {
            let mut out = vec![];
            for _ in 0..n {
                out.push(T::get(r)?);
            }
            Ok(out)
        })
    }
}

/// None or one.
impl<T: Coded> Coded for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|x| x.put(out));
    }

    fn get(r: &mut Reader) -> Result<Option<T>> {
        if bool::get(r)? { T::get(r).map(Some) } else { Ok(None) }
    }
}

impl<T: Coded, const N: usize> Coded for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|x| x.put(out));
    }

    fn get(r: &mut Reader) -> Result<[T; N]> {
        let list = (0..N).map(|_| T::get(r)).collect::<Result<Vec<T>>>()?;
        list.try_into().map_err(|_| damaged("a list of another length"))
    }
}

impl<A: Coded, B: Coded> Coded for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn get(r: &mut Reader) -> Result<(A, B)> {
        Ok((A::get(r)?, B::get(r)?))
    }
}

impl Coded for DType {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.abi_code() as u8);
    }

    fn get(r: &mut Reader) -> Result<DType> {
        let code = r.byte()?;
        // Strings are no memory of a device.
        DType::from_abi_code(code.into()).filter(|d| *d != DType::Str).ok_or_else(|| damaged(format!("{code} is no element type")))
    }
}

impl Coded for ScalarFn {
    fn put(&self, out: &mut Vec<u8>) {
        Arc::<str>::from(self.name()).put(out);
    }

    fn get(r: &mut Reader) -> Result<ScalarFn> {
        let name = Arc::<str>::get(r)?;
        ScalarFn::from_name(&name).ok_or_else(|| damaged(format!("{name:?} is no scalar function")))
    }
}

coded!(enum Num { 0 = F(x), 1 = I(x), 2 = U(x), 3 = B(x) });

impl Coded for Dim {
    /// A sum of products.
    fn put(&self, out: &mut Vec<u8>) {
        let products: Vec<(i64, Vec<Atom>)> = match self.node() {
            DimNode::Const(c) => vec![(c, vec![])],
            DimNode::Sum(products) => products.into_iter().map(|(c, atoms)| (c, atoms.to_vec())).collect(),
        };
        products.put(out);
    }

    fn get(r: &mut Reader) -> Result<Dim> {
        Vec::get(r).map(Dim::sum)
    }
}

coded!(enum Atom { 0 = Sym(name), 1 = FloorDiv(a, b), 2 = Mod(a, b), 3 = Max(a, b), 4 = Min(a, b), 5 = Stretch(a, b) });

/// Products that a size of a file may come to where the sizes of a launch are put in for those of its kernel.
const PRODUCTS: u64 = 1 << 12;

/// How many products the expression has at most when `sizes` say what its symbols have.
fn products(d: &Dim, sizes: &dyn Fn(&str) -> u64) -> u64 {
    let DimNode::Sum(sum) = d.node() else { return 1 };
    let of_atom = |a: &Atom| match a {
        Atom::Sym(s) => sizes(s),
        // What divides evenly is divided product by product.
        Atom::FloorDiv(x, y) | Atom::Mod(x, y) | Atom::Max(x, y) | Atom::Min(x, y) | Atom::Stretch(x, y) => {
            products(x, sizes).saturating_mul(products(y, sizes)).saturating_add(2)
        }
    };
    sum.iter().fold(0u64, |n, (_, atoms)| n.saturating_add(atoms.iter().fold(1, |m: u64, a| m.saturating_mul(of_atom(a)))))
}

/// An error where checking the program would take longer than its length lets one expect.
pub fn check_effort(p: &Program) -> Result<()> {
    use nnc_ir::kernel::{Step, size_index};
    let mut left: Vec<&Step> = p.steps.iter().collect();
    while let Some(step) = left.pop() {
        match step {
            Step::Launch(l) => {
                let sizes: Vec<u64> = l.sizes.iter().map(|d| products(d, &|_| 1)).collect();
                let of = |s: &str| size_index(s).and_then(|i| sizes.get(i)).copied().unwrap_or(1);
                let params = p.kernels.get(l.kernel as usize).map_or(&[][..], |k| &k.params);
                if params.iter().any(|q| products(&q.elems, &of) > PRODUCTS) {
                    return Err(damaged(format!("the sizes of {} are no model's", l.name)));
                }
            }
            Step::If { then, otherwise, .. } => left.extend(then.iter().chain(otherwise)),
            Step::While { body, .. } => left.extend(body),
            Step::Bind { .. } | Step::Check { .. } | Step::Decode(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back<T: Coded + PartialEq + std::fmt::Debug>(x: T) {
        let mut bytes = vec![];
        x.put(&mut bytes);
        let mut r = Reader::new(&bytes);
        assert_eq!(T::get(&mut r), Ok(x));
        assert_eq!(r.end(), Ok(()));
        for n in 0..bytes.len() {
            assert!(T::get(&mut Reader::new(&bytes[..n])).is_err(), "{n} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn values_come_back() {
        [0, 1, 127, 128, u64::MAX].into_iter().for_each(back);
        [0, -1, 63, 64, i64::MIN, i64::MAX].into_iter().for_each(back);
        let (n, h) = (Dim::sym("N"), Dim::sym("H"));
        back(n.clone() * h.clone() * Dim::Const(3) + (h + Dim::Const(1)).floor_div(&Dim::Const(2)) - Dim::Const(5));
        back(vec![(ScalarFn::Exp, DType::BF16), (ScalarFn::Where, DType::I4)]);
        back(vec![Num::F(-0.5), Num::I(-7), Num::U(7), Num::B(true)]);
        back(Arc::<str>::from("läuft"));
    }

    #[test]
    fn hostile_bytes_are_errors() {
        // A sum of one product of one quotient, whose dividend is such a sum again.
        let deep: Vec<u8> = [1, 2, 1, 1].repeat(100_000);
        let e = Dim::get(&mut Reader::new(&deep)).expect_err("too deep");
        assert!(e.message().contains("nests deeper"), "{}", e.message());
        let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(Vec::<u64>::get(&mut Reader::new(&long)).is_err() && Arc::<str>::get(&mut Reader::new(&long)).is_err());
        assert!(u64::get(&mut Reader::new(&[0xff; 10])).is_err() && u32::get(&mut Reader::new(&long)).is_err());
        assert!(bool::get(&mut Reader::new(&[2])).is_err() && DType::get(&mut Reader::new(&[8])).is_err());
    }

    #[test]
    fn sizes_that_would_grow_are_counted() {
        let sum = Dim::sym("a") + Dim::sym("b");
        let power = Dim::product(&(0..30).map(|i| Dim::sym(format!("s{i}"))).collect::<Vec<_>>());
        assert_eq!(products(&power, &|_| products(&sum, &|_| 1)), 1 << 30);
        assert_eq!(products(&power, &|_| u64::MAX), u64::MAX);
        assert_eq!(products(&(power * Dim::Const(2) + sum), &|_| 1), 3);
    }
}
