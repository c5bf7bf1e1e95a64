//! Operations that move elements and compute nothing.

use super::{Class, Primitive, arity, same_dtype};
use crate::attrs::{op_struct, word_enum};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{self, Env};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{ShapeText, Type, broadcast};

op_struct! {
    /// Axis `i` of the result is axis `perm[i]` of the operand.
    Transpose { perm: Vec<usize> }
}

impl Transpose {
    /// The permutation that undoes this one.
    pub fn inverse(&self) -> Transpose {
        let mut perm = vec![0; self.perm.len()];
        self.perm.iter().enumerate().for_each(|(i, p)| perm[*p] = i);
        Transpose { perm }
    }
}

impl Primitive for Transpose {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("transpose", x, 1, 1)?;
        let mut sorted = self.perm.clone();
        sorted.sort();
        if !sorted.iter().copied().eq(0..x[0].rank()) {
            return Err(Error::attribute(format!("transpose: perm {:?} is no permutation of the axes of {}", self.perm, x[0])));
        }
        Ok(vec![x[0].with_shape(self.perm.iter().map(|p| x[0].shape[*p].clone()).collect())])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::movement::transpose(self, &x[0]).map(|t| vec![t])
    }
}

op_struct! {
    /// The same elements in the same order under another shape.
    Reshape { shape: Vec<Dim> }
}

impl Primitive for Reshape {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("reshape", x, 1, 1)?;
        let (have, want) = (x[0].elems(), Dim::product(&self.shape));
        let differ = (&have - &want).as_const().is_some_and(|d| d != 0);
        if differ || self.shape.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) {
            return Err(Error::shape(format!("reshape: {} has {have} elements, {} has {want}", x[0], ShapeText(&self.shape))));
        }
        Ok(vec![x[0].with_shape(self.shape.clone())])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        x[0].reshaped(env.shape(&self.shape)?).map(|t| vec![t])
    }
}

op_struct! {
    /// Broadcasting to `shape` by numpy's rule, in one direction: the operand's axes of length 1 stretch.
    Expand { shape: Vec<Dim> }
}

impl Primitive for Expand {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("expand", x, 1, 1)?;
        let both = broadcast(&[&self.shape, &x[0].shape])?;
        if both.len() != self.shape.len() || both.iter().zip(&self.shape).any(|(a, b)| a.as_const().is_some() && b.as_const().is_some() && a != b) {
            return Err(Error::shape(format!("expand: {} does not stretch to {}", x[0], ShapeText(&self.shape))));
        }
        Ok(vec![x[0].with_shape(self.shape.clone())])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        eval::movement::expand(&x[0], env.shape(&self.shape)?).map(|t| vec![t])
    }
}

op_struct! {
    /// `sizes[i]` elements from `starts[i]` on, every `steps[i]`-th (negative: backwards), for each axis. All inside the operand;
    /// empty `steps` mean 1.
    Slice { starts: Vec<Dim>, sizes: Vec<Dim>, steps: Vec<i64> = vec![] }
}

impl Slice {
    pub fn step(&self, axis: usize) -> i64 {
        self.steps.get(axis).copied().unwrap_or(1)
    }
}

impl Primitive for Slice {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("slice", x, 1, 1)?;
        let rank = x[0].rank();
        if self.starts.len() != rank || self.sizes.len() != rank || !(self.steps.is_empty() || self.steps.len() == rank) || self.steps.contains(&0) {
            return Err(Error::attribute(format!("slice: starts, sizes and steps (not 0) are one an axis of {}", x[0])));
        }
        for i in 0..rank {
            if let (Some(s), Some(n), Some(d)) = (self.starts[i].as_const(), self.sizes[i].as_const(), x[0].shape[i].as_const()) {
                let last = s.saturating_add((n - 1).saturating_mul(self.step(i)));
                if n < 0 || (n > 0 && (s < 0 || s >= d || last < 0 || last >= d)) {
                    return Err(Error::shape(format!("slice: axis {i} has {d} elements, {n} from {s} with step {} are asked for", self.step(i))));
                }
            }
        }
        Ok(vec![x[0].with_shape(self.sizes.clone())])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        eval::movement::slice(self, &x[0], env).map(|t| vec![t])
    }
}

op_struct! {
    /// Operands one after the other along `axis`.
    Concat { axis: usize }
}

impl Primitive for Concat {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("concat", x, 1, usize::MAX)?;
        same_dtype("concat", &x.iter().collect::<Vec<_>>())?;
        if self.axis >= x[0].rank() {
            return Err(Error::shape(format!("concat: axis {} is outside {}", self.axis, x[0])));
        }
        let mut shape = x[0].shape.clone();
        for t in &x[1..] {
            let fits = t.rank() == shape.len()
                && (0..shape.len())
                    .all(|i| i == self.axis || shape[i] == t.shape[i] || shape[i].as_const().is_none() || t.shape[i].as_const().is_none());
            if !fits {
                return Err(Error::shape(format!("concat along axis {}: {} does not fit {}", self.axis, t, x[0])));
            }
            for (i, d) in t.shape.iter().enumerate() {
                if i == self.axis {
                    shape[i] = shape[i].clone() + d.clone();
                } else if shape[i].as_const().is_none() && d.as_const().is_some() {
                    shape[i] = d.clone();
                }
            }
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::movement::concat(self.axis, x).map(|t| vec![t])
    }
}

op_struct! {
    /// Along each axis `i`, every `steps[i]`-th element of the result comes from the same operand. Operands are ordered by the place
    /// of their first element, the last axis fastest: `steps` of `[1,2]` puts two matrices' columns in turn. The inverse of slices
    /// with steps.
    Interleave { steps: Vec<usize> }
}

impl Interleave {
    /// Where operand `k` starts, along each axis.
    pub fn place(&self, k: usize) -> Vec<usize> {
        (0..self.steps.len()).map(|axis| k / self.along(axis, 1) % self.steps[axis]).collect()
    }

    /// The operand that alone starts at `place` along `axis`.
    fn along(&self, axis: usize, place: usize) -> usize {
        self.steps[axis + 1..].iter().product::<usize>() * place
    }
}

impl Primitive for Interleave {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        let parts =
            self.steps.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).filter(|n| *n > 0 && self.steps.len() == x.first().map_or(0, Type::rank));
        let Some(parts) = parts else {
            return Err(Error::attribute(format!("interleave: steps {:?} are no positive number for each axis", self.steps)));
        };
        arity("interleave", x, parts, parts)?;
        same_dtype("interleave", &x.iter().collect::<Vec<_>>())?;
        if let Some(t) = x.iter().find(|t| t.rank() != x[0].rank()) {
            return Err(Error::shape(format!("interleave: {t} does not fit {}", x[0])));
        }
        let length = |axis: usize| (0..self.steps[axis]).map(|p| x[self.along(axis, p)].shape[axis].clone()).reduce(|a, b| a + b);
        let shape: Vec<Dim> = (0..self.steps.len()).filter_map(length).collect();
        for (k, t) in x.iter().enumerate() {
            for (i, place) in self.place(k).into_iter().enumerate() {
                let want = (shape[i].clone() - Dim::from(place)).ceil_div(&Dim::from(self.steps[i]));
                if want.as_const().zip(t.shape[i].as_const()).is_some_and(|(a, b)| a != b) {
                    return Err(Error::shape(format!(
                        "interleave: operand {k} has {} of the {} elements along axis {i}, not {want}",
                        t.shape[i], shape[i]
                    )));
                }
            }
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::movement::interleave(self, x).map(|t| vec![t])
    }
}

word_enum! {
    /// What stands beyond the edge.
    PadMode { Constant "constant", Reflect "reflect", Edge "edge", Wrap "wrap" }
}

op_struct! {
    /// `lo[i]` elements before and `hi[i]` after axis `i` (negative: cut off). The second operand, a scalar, is the constant
    /// (absent: zero).
    Pad { mode: PadMode = PadMode::Constant, lo: Vec<Dim>, hi: Vec<Dim> }
}

impl Primitive for Pad {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("pad", x, 1, 2)?;
        if self.lo.len() != x[0].rank() || self.hi.len() != x[0].rank() {
            return Err(Error::attribute(format!("pad: lo and hi are one an axis of {}", x[0])));
        }
        if let Some(v) = x.get(1)
            && (v.dtype != x[0].dtype || !v.elems().is(1))
        {
            return Err(Error::dtype(format!("pad: the constant must be one {}, found {v}", x[0].dtype)));
        }
        let shape: Vec<Dim> = (0..x[0].rank()).map(|i| x[0].shape[i].clone() + self.lo[i].clone() + self.hi[i].clone()).collect();
        if shape.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) {
            return Err(Error::shape(format!("pad: cuts off more than {} has", x[0])));
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        eval::movement::pad(self, x, env).map(|t| vec![t])
    }
}

op_struct! {
    /// `[N,C,spatial..]` into blocks of channels `[N,C/block rounded up,spatial..,block]`; missing channels are zero.
    Pack { block: usize }
}

impl Primitive for Pack {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("pack", x, 1, 1)?;
        if x[0].rank() < 2 || self.block == 0 {
            return Err(Error::shape(format!("pack: {} has no channels to block by {}", x[0], self.block)));
        }
        let mut shape = x[0].shape.clone();
        shape[1] = shape[1].ceil_div(&Dim::from(self.block));
        shape.push(Dim::from(self.block));
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::movement::pack(self.block, &x[0]).map(|t| vec![t])
    }
}

op_struct! {
    /// The first `channels` channels of `[N,C/b,spatial..,b]` as `[N,channels,spatial..]`.
    Unpack { channels: usize }
}

impl Primitive for Unpack {
    fn class(&self) -> Class {
        Class::Move
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("unpack", x, 1, 1)?;
        let block = x[0].shape.last().and_then(Dim::as_const).filter(|b| *b > 0 && x[0].rank() >= 3);
        let have = block.zip(x[0].shape.get(1).and_then(Dim::as_const)).map(|(b, n)| b.saturating_mul(n));
        if have.is_none_or(|have| (self.channels as i64) > have) {
            return Err(Error::shape(format!("unpack: {} has no {} channels in blocks", x[0], self.channels)));
        }
        let mut shape = x[0].shape.clone();
        shape.pop();
        shape[1] = Dim::from(self.channels);
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[Tensor], _: &Env) -> Result<Vec<Tensor>> {
        eval::movement::unpack(self.channels, &x[0]).map(|t| vec![t])
    }
}
