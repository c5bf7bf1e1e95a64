//! The fast Fourier transform as a graph. Lengths of small primes: mixed radix, decimation in frequency, in the order of Swarztrauber's FFTPACK
//! ("Vectorizing the FFTs", 1982), which needs no bit reversal. NumPy's transforms keep that order too, so that results in f32 round as theirs do.

use nnc_ir::{Dim, Tensor, V};
use std::f64::consts::{PI, TAU};

/// The largest prime that a butterfly is written out for.
const LARGEST: usize = 13;

/// Complex numbers, the imaginary parts absent where they are zero.
#[derive(Clone, Copy)]
pub struct Complex<'g> {
    pub re: V<'g>,
    pub im: Option<V<'g>>,
}

fn sum<'g>(a: Option<V<'g>>, b: Option<V<'g>>) -> Option<V<'g>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

fn difference<'g>(a: Option<V<'g>>, b: Option<V<'g>>) -> Option<V<'g>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a - b),
        (a, b) => a.or(b.map(|b| -b)),
    }
}

impl<'g> Complex<'g> {
    pub fn imaginary(self) -> V<'g> {
        self.im.unwrap_or_else(|| self.re.scalar_like(0.0).expand(self.re.ty().shape))
    }

    fn plus(self, other: Self) -> Self {
        Complex { re: self.re + other.re, im: sum(self.im, other.im) }
    }

    fn minus(self, other: Self) -> Self {
        Complex { re: self.re - other.re, im: difference(self.im, other.im) }
    }

    /// Times a real number.
    fn times(self, by: f64) -> Self {
        let by = self.re.scalar_like(by);
        Complex { re: self.re * by, im: self.im.map(|im| im * by) }
    }

    /// `self + i y` and `self - i y`.
    fn beside(self, y: Self) -> (Self, Self) {
        let re = |add: bool| match y.im {
            Some(im) if add => self.re + im,
            Some(im) => self.re - im,
            None => self.re,
        };
        let (up, down) = (sum(self.im, Some(y.re)), difference(self.im, Some(y.re)));
        (Complex { re: re(false), im: up }, Complex { re: re(true), im: down })
    }

    /// Times `cos + i sin`, a vector along the last axis.
    fn turned(self, cos: V<'g>, sin: V<'g>) -> Self {
        match self.im {
            Some(im) => Complex { re: self.re * cos - im * sin, im: Some(im * cos + self.re * sin) },
            None => Complex { re: self.re * cos, im: Some(self.re * sin) },
        }
    }
}

/// The factors of `n` in the order in which the passes take them; `None` where a prime is larger than the butterflies there are.
pub fn factors(n: usize) -> Option<Vec<usize>> {
    let (mut rest, mut out) = (n, vec![]);
    for p in std::iter::once(4).chain((2..=LARGEST).filter(|p| *p != 4)) {
        while rest > 1 && rest.is_multiple_of(p) {
            rest /= p;
            out.push(p);
            if p == 2 {
                out.rotate_right(1);
            }
        }
    }
    (rest == 1).then_some(out)
}

/// `sum_j x[j] exp(sign 2 pi i j k / p)` for every k. `sign` is 1 or -1.
fn butterfly<'g>(x: &[Complex<'g>], sign: f64) -> Vec<Complex<'g>> {
    match x {
        [a, b] => vec![a.plus(*b), a.minus(*b)],
        [a, b, c, d] => {
            let (even, odd, less) = (a.plus(*c), b.plus(*d), a.minus(*c));
            let turn = b.minus(*d);
            let (up, down) = if sign > 0.0 { less.beside(turn) } else { swapped(less.beside(turn)) };
            vec![even.plus(odd), up, even.minus(odd), down]
        }
        // An odd prime: the pairs j and p-j share their cosines and differ in the sign of their sines.
        _ => {
            let p = x.len();
            let pairs: Vec<_> = (1..=p / 2).map(|j| (x[j].plus(x[p - j]), x[j].minus(x[p - j]))).collect();
            let mut out = vec![pairs.iter().fold(x[0], |y, (s, _)| y.plus(*s)); p];
            for k in 1..=p / 2 {
                let angle = |j: usize| TAU * ((j + 1) * k % p) as f64 / p as f64;
                let even = pairs.iter().enumerate().fold(x[0], |y, (j, (s, _))| y.plus(s.times(angle(j).cos())));
                let odd = pairs.iter().enumerate().map(|(j, (_, d))| d.times(sign * angle(j).sin())).reduce(|a, b| a.plus(b));
                let (up, down) = odd.map_or((even, even), |odd| even.beside(odd));
                (out[k], out[p - k]) = (up, down);
            }
            out
        }
    }
}

fn swapped<T>((a, b): (T, T)) -> (T, T) {
    (b, a)
}

/// The transform along the last axis of `x`, which has length `n`; with `inverse` the conjugate one, not yet divided by the length.
pub fn fft<'g>(x: Complex<'g>, n: usize, inverse: bool) -> Complex<'g> {
    if x.re.is_poison() {
        return x;
    }
    match factors(n) {
        Some(factors) => passes(x, &factors, inverse),
        None => chirp(x, n, inverse),
    }
}

/// Any length, by a convolution with a chirp (Bluestein: A linear filtering approach to the computation of discrete Fourier transform, 1970):
/// `jk = (j^2 + k^2 - (k-j)^2) / 2`. Its transforms are of a power of two, at least twice as long, so it wants f64.
fn chirp<'g>(x: Complex<'g>, n: usize, inverse: bool) -> Complex<'g> {
    let m = (2 * n - 1).next_power_of_two();
    let constant = |values: &[f64]| x.re.builder().constant(Tensor::new(&[values.len()], values)).cast(x.re.ty().dtype);
    // Whole turns taken off first: large angles would lose digits.
    let half_turns = |j: usize| (j as u64 * j as u64 % (2 * n as u64)) as f64 * PI / n as f64;
    let sign = if inverse { 1.0 } else { -1.0 };
    let wave = |f: fn(f64) -> f64, by: f64| constant(&(0..n).map(|j| by * f(half_turns(j))).collect::<Vec<_>>());
    let (cos, sin) = (wave(f64::cos, 1.0), wave(f64::sin, sign));
    // The conjugate, for distances of both signs.
    let around = |f: fn(f64) -> f64, by: f64| {
        let mut values = vec![0.0; m];
        for j in 0..n {
            let v = by * f(half_turns(j));
            (values[j], values[(m - j) % m]) = (v, v);
        }
        constant(&values)
    };
    let filter = fft(Complex { re: around(f64::cos, 1.0), im: Some(around(f64::sin, -sign)) }, m, false);
    let last = x.re.ty().rank() - 1;
    let padded = |v: V<'g>| {
        let mut hi = vec![Dim::Const(0); last + 1];
        hi[last] = Dim::from(m - n);
        v.pad_zero(vec![Dim::Const(0); last + 1], hi)
    };
    let turned = x.turned(cos, sin);
    let spectrum = fft(Complex { re: padded(turned.re), im: turned.im.map(padded) }, m, false).turned(filter.re, filter.imaginary());
    let y = fft(spectrum, m, true).times(1.0 / m as f64);
    let cut = |v: V<'g>| v.slice_axis(last, Dim::Const(0), Dim::from(n));
    Complex { re: cut(y.re), im: y.im.map(cut) }.turned(cos, sin)
}

/// One pass for each factor of the length.
fn passes<'g>(x: Complex<'g>, factors: &[usize], inverse: bool) -> Complex<'g> {
    let shape = x.re.ty().shape;
    let outer = shape[..shape.len() - 1].to_vec();
    let (n, r) = (factors.iter().product::<usize>(), outer.len());
    let sign = if inverse { 1.0 } else { -1.0 };
    let view = |v: V<'g>, tail: &[usize]| v.reshape(outer.iter().cloned().chain(tail.iter().map(|d| Dim::from(*d))).collect());
    let mut done = 1;
    let mut y = x;
    for &p in factors {
        let rest = n / (p * done);
        let taken = |v: V<'g>, j: usize| {
            let part = view(v, &[done, p, rest]).slice_axis(r + 1, Dim::from(j), Dim::Const(1));
            view(part, &[1, done, rest])
        };
        let inputs: Vec<Complex> = (0..p).map(|j| Complex { re: taken(y.re, j), im: y.im.map(|im| taken(im, j)) }).collect();
        let outputs = butterfly(&inputs, sign).into_iter().enumerate().map(|(j, v)| {
            if j == 0 || rest == 1 {
                return v;
            }
            let wave = |f: fn(f64) -> f64, by: f64| {
                let values: Vec<f64> = (0..rest).map(|i| by * f(TAU * (j * done * i) as f64 / n as f64)).collect();
                x.re.builder().constant(Tensor::new(&[rest], &values)).cast(x.re.ty().dtype)
            };
            v.turned(wave(f64::cos, 1.0), wave(f64::sin, sign))
        });
        let outputs: Vec<Complex> = outputs.collect();
        let real: Vec<V> = outputs.iter().map(|c| c.re).collect();
        let imaginary: Vec<V> = outputs.iter().map(|c| c.imaginary()).collect();
        let im = outputs.iter().any(|c| c.im.is_some()).then(|| V::concat(&imaginary, r));
        y = Complex { re: V::concat(&real, r), im };
        done *= p;
    }
    Complex { re: view(y.re, &[n]), im: y.im.map(|im| view(im, &[n])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_stand_in_the_order_of_the_passes() {
        assert_eq!(factors(10), Some(vec![2, 5]));
        assert_eq!(factors(1), Some(vec![]));
        assert_eq!(factors(240), Some(vec![4, 4, 3, 5]));
        assert_eq!(factors(8), Some(vec![2, 4]));
        assert_eq!(factors(2 * 17), None);
        assert_eq!(factors(0), None);
    }
}
