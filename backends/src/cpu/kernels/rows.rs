//! Functions of whole rows: softmax and normalisation over the last axis.

use super::{Factor, Kernel, Size, Step, Tasks, math};
use crate::cpu::isa::Isa;
use crate::cpu::vir::{Addr, Builder, I, ICmp, M, V, VBin, VUn, X};

/// What becomes of a row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RowKind {
    /// `exp(x - max) / Σ exp(x - max)`
    Softmax,
    /// `x - max - log Σ exp(x - max)`
    LogSoftmax,
    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias`: words of f32[row], each optional.
    LayerNorm { epsilon: f32, scale: Option<u32>, bias: Option<u32> },
    /// `x / sqrt(mean of squares + epsilon) * scale`
    RmsNorm { epsilon: f32, scale: Option<u32> },
}

/// A function of every row of a matrix.
#[derive(Clone, PartialEq, Debug)]
pub struct Rows {
    pub name: String,
    pub kind: RowKind,
    pub rows: Size,
    /// Values of a row, at least one.
    pub len: Size,
    /// Words and f32 values from row to row; both may name the same memory.
    pub input: (u32, Size),
    pub output: (u32, Size),
}

/// Rows of a task.
const CHUNK: i64 = 16;

/// Generates the kernel. A task is a chunk of 16 rows.
pub fn rows(r: &Rows, isa: Isa) -> Kernel {
    let mut builder = Builder::new(&r.name, isa.lanes());
    let b = &mut builder;
    let (count, len) = (b.size(r.rows), b.size(r.len));
    let from = b.imul(b.task(), CHUNK);
    let to = b.iadd(from, CHUNK);
    let to = b.imin(to, count);
    let place = |b: &mut Builder, (word, pitch): (u32, Size)| {
        let base = b.word(word);
        let step = Step::floats(pitch, 1);
        let p = b.element(base, &[(from, step)]);
        (b.var(p), b.step(step))
    };
    let (x, y) = (place(b, r.input), place(b, r.output));
    let lanes = isa.lanes() as i64;
    let (full, rest) = b.idivrem(len, lanes);
    let bytes = b.imul(full, b.width());
    let tail = match rest {
        X::C(0) => None,
        rest => Some((b.tail(rest), rest)),
    };
    let words = |b: &mut Builder, w: Option<u32>| w.map(|w| b.word(w));
    let (scale, bias) = match r.kind {
        RowKind::LayerNorm { scale, bias, .. } => (words(b, scale), words(b, bias)),
        RowKind::RmsNorm { scale, .. } => (words(b, scale), None),
        _ => (None, None),
    };
    b.for_(from, to, 1, |b, _| {
        let row = Row { x: x.0, y: y.0, bytes, tail, len };
        match r.kind {
            RowKind::Softmax => row.softmax(b, false),
            RowKind::LogSoftmax => row.softmax(b, true),
            RowKind::LayerNorm { epsilon, .. } => row.norm(b, true, epsilon, scale, bias),
            RowKind::RmsNorm { epsilon, .. } => row.norm(b, false, epsilon, scale, bias),
        }
        b.inc(x.0, x.1);
        b.inc(y.0, y.1);
    });
    Kernel { func: builder.finish(), tasks: Tasks(vec![Factor::Chunks { of: vec![r.rows], per: CHUNK }]) }
}

struct Row {
    x: I,
    y: I,
    /// Bytes in whole vectors, and what follows them.
    bytes: X,
    tail: Option<(M, X)>,
    len: X,
}

impl Row {
    /// Calls `f` for every vector of the row with its byte offset and the mask of the last one, if that is cut.
    fn each(&self, b: &mut Builder, f: impl Fn(&mut Builder, I, Option<M>)) {
        let width = b.width();
        b.for_(0, self.bytes, width, |b, at| f(b, at, None));
        if let Some((m, rest)) = self.tail {
            b.if_(ICmp::Gt, rest, 0, |b| {
                let at = b.reg(self.bytes);
                f(b, at, Some(m));
            });
        }
    }

    fn load(b: &mut Builder, p: I, at: I, m: Option<M>) -> V {
        let a = Addr::from(p).idx(at, 1);
        match m {
            Some(m) => b.load_mask(a, m),
            None => b.load(a),
        }
    }

    fn store(b: &mut Builder, p: I, at: I, m: Option<M>, v: V) {
        let a = Addr::from(p).idx(at, 1);
        match m {
            Some(m) => b.store_mask(a, v, m),
            None => b.store(a, v),
        }
    }

    /// `v` where the row is, `other` beyond its end.
    fn inside(b: &mut Builder, v: V, m: Option<M>, other: V) -> V {
        match m {
            Some(m) => b.select(m, v, other),
            None => v,
        }
    }

    fn softmax(&self, b: &mut Builder, log: bool) {
        let low = b.constant(f32::NEG_INFINITY);
        let max = b.copy(low);
        self.each(b, |b, at, m| {
            let x = Self::load(b, self.x, at, m);
            let x = Self::inside(b, x, m, low);
            // A NaN that the maximum drops comes back through exp(NaN - max).
            b.bin_to(VBin::Max, max, max, x);
        });
        let max = b.across(VBin::Max, max);
        let zero = b.constant(0.0);
        let sum = b.copy(zero);
        self.each(b, |b, at, m| {
            let x = Self::load(b, self.x, at, m);
            let d = b.sub(x, max);
            let e = math::share(b, d);
            let counted = Self::inside(b, e, m, zero);
            b.bin_to(VBin::Add, sum, sum, counted);
            Self::store(b, self.y, at, m, if log { d } else { e });
        });
        let sum = b.across(VBin::Add, sum);
        let (op, by) = if log {
            (VBin::Sub, math::log(b, sum))
        } else {
            let one = b.constant(1.0);
            (VBin::Mul, b.div(one, sum))
        };
        self.each(b, |b, at, m| {
            let e = Self::load(b, self.y, at, m);
            let y = b.bin(op, e, by);
            Self::store(b, self.y, at, m, y);
        });
    }

    /// The mean of `f` over the row, in every lane.
    fn mean(&self, b: &mut Builder, f: impl Fn(&mut Builder, V) -> V) -> V {
        let zero = b.constant(0.0);
        let sum = b.copy(zero);
        self.each(b, |b, at, m| {
            let x = Self::load(b, self.x, at, m);
            let x = f(b, x);
            let x = Self::inside(b, x, m, zero);
            b.bin_to(VBin::Add, sum, sum, x);
        });
        let sum = b.across(VBin::Add, sum);
        let n = b.splat_int(self.len);
        let n = b.un(VUn::FromInt, n);
        b.div(sum, n)
    }

    fn norm(&self, b: &mut Builder, center: bool, epsilon: f32, scale: Option<I>, bias: Option<I>) {
        let mean = center.then(|| self.mean(b, |_, x| x));
        let centered = |b: &mut Builder, x: V| mean.map_or(x, |m| b.sub(x, m));
        let variance = self.mean(b, |b, x| {
            let d = centered(b, x);
            b.mul(d, d)
        });
        let v = b.add(variance, epsilon);
        let v = b.un(VUn::Sqrt, v);
        let one = b.constant(1.0);
        let inverse = b.div(one, v);
        self.each(b, |b, at, m| {
            let x = Self::load(b, self.x, at, m);
            let d = centered(b, x);
            let mut y = b.mul(d, inverse);
            if let Some(s) = scale {
                let s = Self::load(b, s, at, m);
                y = b.mul(y, s);
            }
            if let Some(s) = bias {
                let s = Self::load(b, s, at, m);
                y = b.add(y, s);
            }
            Self::store(b, self.y, at, m, y);
        });
    }
}
