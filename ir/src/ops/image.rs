//! Files of pictures. A compiled program has no decoders of its own: its host lends one.

use super::{Class, Primitive, arity};
use crate::attrs::{op_struct, word_enum};
use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::eval::{Env, image};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

word_enum! {
    /// What the numbers of a pixel are.
    Channels { Rgb "rgb", Bgr "bgr", Grayscale "grayscale" }
}

impl Channels {
    pub fn count(self) -> usize {
        if self == Channels::Grayscale { 1 } else { 3 }
    }
}

op_struct! {
    /// The samples `[height, width, channels]` of the picture in a file, whose bytes the operand holds: BMP, JPEG, JPEG 2000, PNG, PNM,
    /// TIFF or WebP. `height` and `width` are symbols bound by the run; both are 0 where the bytes hold no picture, or one of more
    /// than 2^26 pixels.
    ImageDecode { channels: Channels = Channels::Rgb, height: Dim, width: Dim }
}

impl Primitive for ImageDecode {
    fn class(&self) -> Class {
        Class::Index
    }
    fn infer(&self, x: &[Type], _: &[Graph]) -> Result<Vec<Type>> {
        arity("image_decode", x, 1, 1)?;
        if x[0].dtype != DType::U8 || x[0].rank() != 1 {
            return Err(Error::dtype(format!("image_decode takes the bytes of a file (u8[n]), found {}", x[0])));
        }
        if self.height.as_sym().is_none() || self.width.as_sym().is_none() || self.height == self.width {
            return Err(Error::attribute(format!("image_decode: height and width are two symbols, found {} and {}", self.height, self.width)));
        }
        Ok(vec![Type::new(DType::U8, vec![self.height.clone(), self.width.clone(), Dim::from(self.channels.count())])])
    }
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>> {
        let y = image::decode(&x[0].bytes(), self.channels);
        for (d, n) in [&self.height, &self.width].into_iter().zip(y.shape()) {
            if let Some(symbol) = d.as_sym() {
                env.bind(symbol, *n as i64)?;
            }
        }
        Ok(vec![y])
    }
}
