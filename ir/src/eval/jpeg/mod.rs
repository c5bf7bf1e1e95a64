//! JPEG files: sequential and progressive, Huffman coded, 8 bits. Samples come out as libjpeg-turbo's do by default, bit for bit, which is
//! what the ONNX specification asks for: its integer transform, its interpolation of chroma, its rounding.

mod pixels;
mod scan;

use scan::{Huffman, Scan};

/// Samples of a picture, rows from the top, channels together.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    pub samples: Vec<u8>,
}

/// A colour plane while its coefficients are read.
struct Plane {
    id: u8,
    /// Samples in a unit of the picture: how often this plane is sampled across and down.
    across: usize,
    down: usize,
    quantiser: u8,
    /// The quantiser as it was when the plane's first scan began.
    steps: Option<[u16; 64]>,
    /// Blocks that hold samples of the picture.
    columns: usize,
    rows: usize,
    /// Blocks in a row, with those that fill up the last unit.
    stride: usize,
    /// In natural order, a block after the other.
    coefficients: Vec<[i16; 64]>,
}

/// The picture as its header describes it.
struct Frame {
    progressive: bool,
    width: usize,
    height: usize,
    /// The most samples in a unit.
    across: usize,
    down: usize,
    planes: Vec<Plane>,
}

/// Where the numbers of a block's diagonal order stand in it.
const NATURAL: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43,
    36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// What a file says before its scans, and may change between them.
#[derive(Default)]
struct Tables {
    quantisers: [Option<[u16; 64]>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    restart: usize,
}

/// The picture in a file of at most so many pixels; `None` where it is none or broken.
pub fn decode(data: &[u8], max_pixels: usize) -> Option<Picture> {
    let mut tables = Tables::default();
    let (mut frame, mut is_rgb): (Option<Frame>, Option<bool>) = (None, None);
    let mut at = 2;
    if !data.starts_with(&[0xff, 0xd8]) {
        return None;
    }
    loop {
        // A marker may be filled up with 0xff in front.
        while data.get(at)? != &0xff {
            at += 1;
        }
        while data.get(at)? == &0xff {
            at += 1;
        }
        let marker = data[at];
        at += 1;
        if marker == 0xd9 {
            break;
        }
        if matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let length = usize::from(word(data, at)?);
        let body = data.get(at + 2..at.checked_add(length)?)?;
        at += length;
        match marker {
            0xc0..=0xc2 if frame.is_none() => frame = Some(header(body, marker == 0xc2, max_pixels)?),
            0xc4 => huffman(body, &mut tables)?,
            // Other kinds of frames: lossless, hierarchical, arithmetic coded, or a second one.
            0xc0..=0xcf => return None,
            0xdb => quantisers(body, &mut tables)?,
            0xdd => tables.restart = word(body, 0)?.into(),
            0xee if body.starts_with(b"Adobe") => is_rgb = body.get(11).map(|transform| *transform == 0),
            0xda => at += Scan::new(frame.as_mut()?, &tables, body, data.get(at..)?)?.run()?,
            _ => {}
        }
    }
    let frame = frame?;
    // Without a word of Adobe's, the planes' names tell.
    let named = || frame.planes.iter().map(|p| p.id).eq(*b"RGB");
    let is_rgb = is_rgb.unwrap_or_else(named);
    pixels::picture(&frame, is_rgb)
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn header(body: &[u8], progressive: bool, max_pixels: usize) -> Option<Frame> {
    let [8, _, _, _, _, n, planes @ ..] = body else { return None };
    let (height, width) = (usize::from(word(body, 1)?), usize::from(word(body, 3)?));
    if !matches!(n, 1 | 3) || planes.len() < 3 * usize::from(*n) || width * height == 0 || width * height > max_pixels {
        return None;
    }
    let sampling = |p: &[u8]| (usize::from(p[1] >> 4), usize::from(p[1] & 15));
    let planes: Vec<&[u8]> = planes.chunks_exact(3).take((*n).into()).collect();
    if planes.iter().any(|p| !(1..=4).contains(&(p[1] >> 4)) || !(1..=4).contains(&(p[1] & 15)) || p[2] > 3) {
        return None;
    }
    let across = planes.iter().map(|p| sampling(p).0).max()?;
    let down = planes.iter().map(|p| sampling(p).1).max()?;
    let planes = planes.into_iter().map(|p| {
        let (h, v) = sampling(p);
        let (stride, height_in_blocks) = (width.div_ceil(8 * across) * h, height.div_ceil(8 * down) * v);
        Plane {
            id: p[0],
            across: h,
            down: v,
            quantiser: p[2],
            steps: None,
            columns: (width * h).div_ceil(across).div_ceil(8),
            rows: (height * v).div_ceil(down).div_ceil(8),
            stride,
            coefficients: vec![[0; 64]; stride * height_in_blocks],
        }
    });
    Some(Frame { progressive, width, height, across, down, planes: planes.collect() })
}

fn quantisers(mut body: &[u8], tables: &mut Tables) -> Option<()> {
    while let [head, rest @ ..] = body {
        let wide = head >> 4 != 0;
        let bytes = rest.get(..if wide { 128 } else { 64 })?;
        let slot = tables.quantisers.get_mut(usize::from(head & 15))?;
        let mut steps = [0; 64];
        for (i, natural) in NATURAL.iter().enumerate() {
            steps[usize::from(*natural)] = if wide { word(bytes, 2 * i)? } else { bytes[i].into() };
        }
        *slot = Some(steps);
        body = &rest[bytes.len()..];
    }
    Some(())
}

fn huffman(mut body: &[u8], tables: &mut Tables) -> Option<()> {
    while let [head, rest @ ..] = body {
        let counts: [u8; 16] = rest.get(..16)?.try_into().ok()?;
        let symbols = rest.get(16..16 + counts.iter().map(|c| usize::from(*c)).sum::<usize>())?;
        let kind = if head >> 4 == 0 { &mut tables.dc } else { &mut tables.ac };
        *kind.get_mut(usize::from(head & 15))? = Some(Huffman { counts, symbols: symbols.into() });
        body = &rest[16 + symbols.len()..];
    }
    Some(())
}
