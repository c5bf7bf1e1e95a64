//! Coefficients to samples: the inverse cosine transform in integers, chroma interpolated, colours.

use super::{Frame, Picture, Plane};

/// Bits behind the point of the transform's constants, and those that the first pass keeps.
const CONSTANT_BITS: u32 = 13;
const KEPT_BITS: u32 = 2;

/// A whole plane of samples.
struct Samples {
    width: usize,
    height: usize,
    values: Vec<u8>,
}

impl Samples {
    fn new(width: usize, height: usize) -> Samples {
        Samples { width, height, values: vec![0; width * height] }
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.values[y * self.width..][..self.width]
    }
}

pub fn picture(frame: &Frame, is_rgb: bool) -> Option<Picture> {
    let planes = frame.planes.iter().map(|p| stretched(samples(frame, p)?, frame, p)).collect::<Option<Vec<Samples>>>()?;
    let (width, height) = (frame.width, frame.height);
    let mut out = Vec::with_capacity(width * height * planes.len());
    for y in 0..height {
        match &planes[..] {
            [grey] => out.extend(&grey.row(y)[..width]),
            [a, b, c] => {
                for ((a, b), c) in a.row(y).iter().zip(b.row(y)).zip(c.row(y)).take(width) {
                    out.extend(if is_rgb { [*a, *b, *c] } else { rgb(*a, *b, *c) });
                }
            }
            _ => return None,
        }
    }
    Some(Picture { width, height, channels: planes.len(), samples: out })
}

/// With 16 bits behind the point.
const fn fixed(x: f64) -> i32 {
    (x * 65536.0 + 0.5) as i32
}

/// JFIF's colours.
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let half = 1 << 15;
    let r = y + ((fixed(1.402) * cr + half) >> 16);
    let g = y + ((-fixed(0.34414) * cb - fixed(0.71414) * cr + half) >> 16);
    let b = y + ((fixed(1.772) * cb + half) >> 16);
    [r, g, b].map(|v| v.clamp(0, 255) as u8)
}

/// The samples of a plane, as often as it has them.
fn samples(frame: &Frame, plane: &Plane) -> Option<Samples> {
    let steps = plane.steps?;
    let (width, height) = plane.size(frame);
    let mut out = Samples::new(width, height);
    for (by, bx) in (0..plane.rows).flat_map(|y| (0..plane.columns).map(move |x| (y, x))) {
        let block = block(&plane.coefficients[by * plane.stride + bx], &steps);
        let n = (width - 8 * bx).min(8);
        for (y, row) in block.chunks_exact(8).enumerate().take(height - (8 * by).min(height)) {
            out.values[(8 * by + y) * width + 8 * bx..][..n].copy_from_slice(&row[..n]);
        }
    }
    Some(out)
}

/// The inverse cosine transform of a block: columns, then rows.
fn block(c: &[i16; 64], steps: &[u16; 64]) -> [u8; 64] {
    let mut work = [0i64; 64];
    for x in 0..8 {
        let column = std::array::from_fn(|y| i64::from(c[8 * y + x]) * i64::from(steps[8 * y + x]));
        for (y, v) in cosines(column, CONSTANT_BITS - KEPT_BITS).into_iter().enumerate() {
            work[8 * y + x] = v;
        }
    }
    let mut out = [0; 64];
    for (row, out) in work.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
        let row = cosines(std::array::from_fn(|x| row[x]), CONSTANT_BITS + KEPT_BITS + 3);
        out.iter_mut().zip(row).for_each(|(o, v)| *o = (v + 128).clamp(0, 255) as u8);
    }
    out
}

/// Eight values from eight frequencies, by the algorithm of Loeffler, Ligtenberg and Moschytz (1989) with 12 products in integers; `drop`
/// bits are rounded away.
fn cosines(x: [i64; 8], drop: u32) -> [i64; 8] {
    let turn = (x[2] + x[6]) * 4433; // 0.541196100
    let (low, high) = (turn + x[2] * 6270, turn - x[6] * 15137); // 0.765366865, 1.847759065
    let (sum, difference) = ((x[0] + x[4]) << CONSTANT_BITS, (x[0] - x[4]) << CONSTANT_BITS);
    let even = [sum + low, difference + high, difference - high, sum - low];

    let both = (x[7] + x[3] + x[5] + x[1]) * 9633; // 1.175875602
    let (outer, inner) = ((x[7] + x[1]) * -7373, (x[5] + x[3]) * -20995); // 0.899976223, 2.562915447
    let (sevens, fives) = ((x[7] + x[3]) * -16069 + both, (x[5] + x[1]) * -3196 + both); // 1.961570560, 0.390180644
    let odd = [
        x[1] * 12299 + outer + fives,  // 1.501321110
        x[3] * 25172 + inner + sevens, // 3.072711026
        x[5] * 16819 + inner + fives,  // 2.053119869
        x[7] * 2446 + outer + sevens,  // 0.298631336
    ];
    let rounded = |v: i64| (v + (1 << (drop - 1))) >> drop;
    std::array::from_fn(|i| rounded(if i < 4 { even[i] + odd[i] } else { even[7 - i] - odd[7 - i] }))
}

/// A plane at the picture's size. Twice as many samples are interpolated, a quarter from the further neighbour, ties going up and down by
/// turns; other ratios repeat samples.
fn stretched(s: Samples, frame: &Frame, plane: &Plane) -> Option<Samples> {
    let ratio = |most: usize, have: usize| most.is_multiple_of(have).then_some(most / have);
    let (across, down) = (ratio(frame.across, plane.across)?, ratio(frame.down, plane.down)?);
    // Too narrow a row has no neighbours to speak of.
    let smooth = s.width > 2;
    Some(match (across, down) {
        (1, 1) => s,
        (2, 1) if smooth => rows(&s, 1, |row, _, _| wide(row.iter().map(|v| i32::from(*v)), s.width, 2, [1, 2])),
        (1, 2) => rows(&s, 2, |near, far, lower| {
            let bias = if lower { 2 } else { 1 };
            near.iter().zip(far).map(|(n, f)| ((3 * i32::from(*n) + i32::from(*f) + bias) >> 2) as u8).collect()
        }),
        (2, 2) if smooth => {
            rows(&s, 2, |near, far, _| wide(near.iter().zip(far).map(|(n, f)| 3 * i32::from(*n) + i32::from(*f)), s.width, 4, [8, 7]))
        }
        _ => rows(&s, down, |near, _, _| near.iter().flat_map(|v| std::iter::repeat_n(*v, across)).collect()),
    })
}

/// `down` rows for each, made of it and the neighbour that is nearer.
fn rows(s: &Samples, down: usize, make: impl Fn(&[u8], &[u8], bool) -> Vec<u8>) -> Samples {
    let mut values = vec![];
    for (y, k) in (0..s.height).flat_map(|y| (0..down).map(move |k| (y, k))) {
        let far = if k == 0 { y.saturating_sub(1) } else { (y + 1).min(s.height - 1) };
        values.extend(make(s.row(y), s.row(far), k != 0));
    }
    Samples { width: values.len() / (s.height * down), height: s.height * down, values }
}

/// Two values for each of `n`, with a weight of 3 to 1 of it and its neighbour; `shift` bits and these biases round them.
fn wide(row: impl Iterator<Item = i32>, n: usize, shift: u32, bias: [i32; 2]) -> Vec<u8> {
    let row: Vec<i32> = row.collect();
    let one = |x: usize, k: usize| {
        let far = if k == 0 { x.saturating_sub(1) } else { (x + 1).min(n - 1) };
        ((3 * row[x] + row[far] + bias[k]) >> shift) as u8
    };
    (0..n).flat_map(|x| [one(x, 0), one(x, 1)]).collect()
}
