//! Random numbers that depend on nothing but a key and a counter: element `i` of a tensor is the same on every machine, in any
//! order, on any number of threads.

/// Philox4x32-10: four random words of a 128-bit counter under a 64-bit key (Salmon et al., "Parallel random numbers: as easy as
/// 1, 2, 3", SC 2011).
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p, q) = (u64::from(c0) * 0xD251_1F53, u64::from(c2) * 0xCD9E_8D57);
        (c0, c1, c2, c3) = ((q >> 32) as u32 ^ c1 ^ k0, q as u32, (p >> 32) as u32 ^ c3 ^ k1, p as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// The key of a parameter: FNV-1a over the seed's eight bytes (little-endian) and the parameter's path.
pub fn key(seed: u64, path: &str) -> [u32; 2] {
    let bytes = seed.to_le_bytes().into_iter().chain(path.bytes());
    let h = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    [h as u32, (h >> 32) as u32]
}

/// Uniform numbers of a key, inside (0, 1): number `i` is word `i % 4` of block `i / 4`.
pub fn uniforms(key: [u32; 2], from: u64) -> impl Iterator<Item = f64> {
    let block = move |n: u64| philox([n as u32, (n >> 32) as u32, 0, 0], key);
    let (mut n, mut i) = (from / 4, (from % 4) as usize);
    let mut words = block(n);
    std::iter::from_fn(move || {
        if i == 4 {
            n += 1;
            words = block(n);
            i = 0;
        }
        i += 1;
        Some((f64::from(words[i - 1]) + 0.5) / 4294967296.0)
    })
}

/// The standard normal number below which a share `p` of (0, 1) lies, to about 7 digits (Wichura, algorithm AS 241, PPND7,
/// Applied Statistics 37, 1988). One uniform gives one normal, so that normals count like uniforms.
pub fn normal_quantile(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        let a = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179;
        let b = ((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0;
        return q * a / b;
    }
    let r = (-libm::log(if q < 0.0 { p } else { 1.0 - p })).sqrt();
    let x = if r <= 5.0 {
        let r = r - 1.6;
        (((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777) / ((0.12021132975 * r + 0.73700164250) * r + 1.0)
    } else {
        let r = r - 5.0;
        (((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150) / ((0.012258202635 * r + 0.24197894225) * r + 1.0)
    };
    if q < 0.0 { -x } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the authors' library Random123.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        assert_eq!(pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    /// Quantiles from tables (Abramowitz and Stegun, table 26.5, and beyond).
    #[test]
    fn quantiles() {
        for (p, z) in [(0.5, 0.0), (0.975, 1.959963985), (0.9, 1.281551566), (0.05, -1.644853627), (1e-6, -4.753424309), (1e-12, -7.034483823)] {
            let got: f64 = normal_quantile(p);
            assert!((got - z).abs() <= 2e-7 * (1.0 + f64::abs(z)), "{p}: {got} {z}");
        }
    }

    #[test]
    fn a_stream_is_the_same_from_anywhere() {
        let k = key(7, "conv1.w");
        let all: Vec<f64> = uniforms(k, 0).take(40).collect();
        assert_eq!(uniforms(k, 13).take(27).collect::<Vec<_>>(), all[13..]);
        assert_ne!(key(7, "conv1.w"), key(8, "conv1.w"));
    }
}
