//! Files of pictures to samples: BMP, JPEG, JPEG 2000, PNG, PNM, TIFF, WebP.

use super::jpeg;
use crate::ops::image::Channels;
use crate::tensor::Tensor;
use hayro_jpeg2000::{ColorSpace, DecodeSettings, DecoderContext};
use image::{ImageFormat, ImageReader, Limits};
use jpeg::Picture;
use std::io::Cursor;

/// Larger pictures are refused.
const MAX_PIXELS: usize = 1 << 26;

/// Samples `[height, width, channels]` of the picture in a file, an empty tensor where it holds none that can be read.
pub fn decode(data: &[u8], channels: Channels) -> Tensor {
    let picture = decoded(data).unwrap_or(Picture { width: 0, height: 0, channels: 3, samples: vec![] });
    let samples = match (channels, picture.channels) {
        (Channels::Grayscale, 1) => picture.samples,
        (Channels::Grayscale, _) => picture.samples.chunks_exact(3).map(luma).collect(),
        (_, 1) => picture.samples.iter().flat_map(|v| [*v; 3]).collect(),
        (Channels::Rgb, _) => picture.samples,
        (Channels::Bgr, _) => picture.samples.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect(),
    };
    Tensor::new(&[picture.height, picture.width, channels.count()], &samples)
}

/// ITU-R 601's, with 16 bits behind the point.
fn luma(p: &[u8]) -> u8 {
    ((19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]) + (1 << 15)) >> 16) as u8
}

fn decoded(data: &[u8]) -> Option<Picture> {
    if data.starts_with(&[0xff, 0xd8]) {
        return jpeg::decode(data, MAX_PIXELS);
    }
    // A JP2 file, or a bare code stream.
    if data.starts_with(b"\0\0\0\x0cjP  ") || data.starts_with(&[0xff, 0x4f, 0xff, 0x51]) {
        return jpeg2000(data);
    }
    let mut reader = ImageReader::new(Cursor::new(data)).with_guessed_format().ok()?;
    use ImageFormat::{Bmp, Png, Pnm, Tiff, WebP};
    reader.format().filter(|f| matches!(f, Bmp | Png | Pnm | Tiff | WebP))?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(8 * MAX_PIXELS as u64);
    reader.limits(limits);
    let rgb = reader.decode().ok().filter(|p| p.width() as usize * p.height() as usize <= MAX_PIXELS)?.into_rgb8();
    Some(Picture { width: rgb.width() as usize, height: rgb.height() as usize, channels: 3, samples: rgb.into_raw() })
}

fn jpeg2000(data: &[u8]) -> Option<Picture> {
    let file = hayro_jpeg2000::Image::new(data, &DecodeSettings::default()).ok()?;
    let (width, height) = (file.width() as usize, file.height() as usize);
    let channels = match file.color_space() {
        ColorSpace::Gray => 1,
        ColorSpace::RGB => 3,
        _ => return None,
    };
    if width.checked_mul(height)? > MAX_PIXELS {
        return None;
    }
    let mut cx = DecoderContext::default();
    let samples = file.decode(&mut cx).ok()?.data_u8();
    // What lies behind the colours is how opaque they are.
    let all = channels + usize::from(file.has_alpha());
    let samples = if all == channels { samples } else { samples.chunks_exact(all).flat_map(|p| &p[..channels]).copied().collect() };
    (samples.len() == width * height * channels).then_some(Picture { width, height, channels, samples })
}
