//! Images as they might have been taken: mirrored, moved. What becomes of a sample follows from the seed, the step and its place in the
//! batch alone.

use super::data::mix;
use nnc_frontend::nn::train::Source;

/// Changes the samples of a batch, each an array of images of `height` x `width` elements of `bytes` bytes, in place.
pub fn augment(batch: &mut [u8], samples: usize, (height, width, bytes): (usize, usize, usize), source: &Source, step: u64) {
    let image = height * width * bytes;
    if (!source.flip && source.crop == 0) || samples == 0 || image == 0 {
        return;
    }
    let sample = batch.len() / samples;
    let mut old = vec![0; image];
    for (i, s) in batch.chunks_exact_mut(sample.max(1)).enumerate() {
        let word = mix(mix(source.seed ^ mix(!step)) ^ i as u64);
        let flip = source.flip && word & 1 == 1;
        // From -crop to crop.
        let range = 2 * source.crop as u64 + 1;
        let at = |part: u64| (part % range) as isize - source.crop as isize;
        let (down, right) = (at((word >> 1) & 0x7fff_ffff), at(word >> 32));
        for channel in s.chunks_exact_mut(image) {
            old.copy_from_slice(channel);
            for y in 0..height {
                for x in 0..width {
                    let from = if flip { width - 1 - x } else { x };
                    let pixel = inside(y, down, height).zip(inside(from, right, width));
                    let to = &mut channel[(y * width + x) * bytes..][..bytes];
                    match pixel {
                        Some((y, x)) => to.copy_from_slice(&old[(y * width + x) * bytes..][..bytes]),
                        None => to.fill(0),
                    }
                }
            }
        }
    }
}

fn inside(i: usize, by: isize, n: usize) -> Option<usize> {
    i.checked_add_signed(by).filter(|i| *i < n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_move_and_turn() {
        let mut source = Source {
            names: vec![],
            loader: String::new(),
            files: vec![],
            rows: None,
            batch: 64,
            shuffle: false,
            seed: 3,
            flip: true,
            crop: 0,
            length: 0,
        };
        let mut batch: Vec<u8> = [1, 2, 3, 4, 5, 6].repeat(64);
        augment(&mut batch, 64, (2, 3, 1), &source, 9);
        let turned = batch.chunks(6).filter(|s| **s == [3, 2, 1, 6, 5, 4]).count();
        assert_eq!(turned + batch.chunks(6).filter(|s| **s == [1, 2, 3, 4, 5, 6]).count(), 64);
        assert!((16..48).contains(&turned), "{turned}");
        (source.flip, source.crop) = (false, 1);
        let moved = |step| {
            let mut batch: Vec<u8> = [0, 0, 0, 0, 7, 0, 0, 0, 0].repeat(64);
            augment(&mut batch, 64, (3, 3, 1), &source, step);
            batch
        };
        // The pixel in the middle never leaves, and is met at every place.
        let batch = moved(1);
        assert!(batch.chunks(9).all(|s| s.iter().sum::<u8>() == 7) && (0..9).all(|k| batch.chunks(9).any(|s| s[k] == 7)));
        assert_eq!(batch, moved(1));
        assert_ne!(batch, moved(2));
    }
}
