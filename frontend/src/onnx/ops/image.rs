//! Files of pictures.

use super::{Row, op};
use crate::onnx::call::Call;
use nnc_ir::ops::image::{Channels, ImageDecode};
use nnc_ir::{Result, V};

pub const ROWS: &[Row] = &[op("ImageDecoder", 20, (1, 1), decoder)];

fn decoder<'g>(c: &Call<'g>) -> Result<Vec<V<'g>>> {
    let channels = match c.word("pixel_format", &["RGB", "BGR", "Grayscale"])? {
        "BGR" => Channels::Bgr,
        "Grayscale" => Channels::Grayscale,
        _ => Channels::Rgb,
    };
    let op = ImageDecode { channels, height: c.b.fresh_symbol("height"), width: c.b.fresh_symbol("width") };
    Ok(vec![c.b.op(op, &[c.x(0)?])])
}
