//! Floats of 8 bits and fewer: what their codes mean, and the code nearest to a number.
//!
//! The formats are those of ONNX: E4M3FN and E5M2 (Micikevicius et al., "FP8 formats for deep learning", 2022), their FNUZ variants
//! (Noune et al., 2022), and the microscaling formats E8M0, E2M1, E2M3 and E3M2 (OCP MX 1.0, 2023). A code is the low bits of a byte.

use crate::types::DType;

/// What a format does with the codes that are no ordinary number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// The largest exponent holds infinity and NaN, as in IEEE 754.
    Ieee,
    /// No infinity; NaN has all bits but the sign set.
    Nan,
    /// No infinity and no -0, whose code is the only NaN.
    Unsigned,
    /// Numbers only: what is too large becomes the largest, NaN becomes -0.
    None,
}

/// A format of sign, exponent and mantissa.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub exponent: u32,
    pub mantissa: u32,
    pub bias: i32,
    pub special: Special,
}

impl Format {
    /// The format of a type. `None` for the types that have none: wider ones, and E8M0, which is an exponent alone.
    pub fn of(d: DType) -> Option<Format> {
        let f = |exponent, mantissa, bias, special| Some(Format { exponent, mantissa, bias, special });
        match d {
            DType::F8E4M3FN => f(4, 3, 7, Special::Nan),
            DType::F8E4M3FNUZ => f(4, 3, 8, Special::Unsigned),
            DType::F8E5M2 => f(5, 2, 15, Special::Ieee),
            DType::F8E5M2FNUZ => f(5, 2, 16, Special::Unsigned),
            DType::F6E2M3 => f(2, 3, 1, Special::None),
            DType::F6E3M2 => f(3, 2, 3, Special::None),
            DType::F4E2M1 => f(2, 1, 1, Special::None),
            _ => None,
        }
    }

    /// The sign's bit.
    pub fn sign(self) -> u8 {
        1 << (self.exponent + self.mantissa)
    }

    /// The code of the largest finite number.
    pub fn largest(self) -> u8 {
        match self.special {
            Special::Ieee => (((1 << self.exponent) - 1) << self.mantissa) - 1,
            Special::Nan => self.sign() - 2,
            Special::Unsigned | Special::None => self.sign() - 1,
        }
    }

    /// The code of a positive number that is too large.
    pub fn overflow(self) -> u8 {
        match self.special {
            Special::Ieee | Special::Nan => self.largest() + 1,
            Special::Unsigned => self.sign(),
            Special::None => self.largest(),
        }
    }

    /// The code of a NaN without sign.
    pub fn nan(self) -> u8 {
        match self.special {
            Special::Ieee => self.sign() - 2,
            Special::Nan => self.sign() - 1,
            Special::Unsigned | Special::None => self.sign(),
        }
    }

    /// What a code means; bits above the format's are ignored.
    fn decode(self, code: u8) -> f64 {
        let (magnitude, negative) = (code & (self.sign() - 1), code & self.sign() != 0);
        let is_nan = match self.special {
            Special::Ieee => magnitude > self.largest() + 1,
            Special::Nan => magnitude > self.largest(),
            Special::Unsigned => magnitude == 0 && negative,
            Special::None => false,
        };
        let significand = i32::from(magnitude) & ((1 << self.mantissa) - 1);
        let x = match i32::from(magnitude) >> self.mantissa {
            _ if is_nan => f64::NAN,
            _ if magnitude > self.largest() => f64::INFINITY,
            0 => f64::from(significand) * power(1 - self.bias - self.mantissa as i32),
            e => f64::from(significand + (1 << self.mantissa)) * power(e - self.bias - self.mantissa as i32),
        };
        // The NaN whose code is -0's has no sign.
        if negative && !(is_nan && magnitude == 0) { -x } else { x }
    }

    /// The nearest code, ties to even.
    fn encode(self, x: f64) -> u8 {
        let signed = |code: u8| if x.is_sign_negative() { code | self.sign() } else { code };
        if x.is_nan() {
            return if matches!(self.special, Special::Ieee | Special::Nan) { signed(self.nan()) } else { self.nan() };
        }
        // The place of the last bit: that of the number's own exponent, or of the subnormals.
        let exponent = (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(1 - self.bias);
        // Codes ascend with their numbers, so a carry out of the mantissa lands in the next exponent.
        let steps = (x.abs() * power(self.mantissa as i32 - exponent)).round_ties_even();
        let base = f64::from(exponent + self.bias - 1) * f64::from(1u32 << self.mantissa);
        let code = steps + base;
        let code = if code > f64::from(self.largest()) { self.overflow() } else { code as u8 };
        if self.special == Special::Unsigned && code == 0 { 0 } else { signed(code) }
    }
}

fn power(e: i32) -> f64 {
    2f64.powi(e)
}

/// What the code of a type of at most 8 bits means.
pub fn decode(d: DType, code: u8) -> f64 {
    match Format::of(d) {
        Some(f) => f.decode(code),
        // E8M0.
        None if code == 0xff => f64::NAN,
        None => power(i32::from(code) - 127),
    }
}

/// The code nearest to a number. A float type with infinities gets them from what is too large, others NaN, and those without NaN
/// their largest number. E8M0 rounds a tie up; what is below its least number, 0 included, becomes that; negative numbers are NaN.
pub fn encode(d: DType, x: f64) -> u8 {
    match Format::of(d) {
        Some(f) => f.encode(x),
        None if x.is_nan() || x < 0.0 || x >= 1.5 * power(127) => 0xff,
        None if x < 1.5 * power(-127) => 0,
        None => {
            let bits = x.to_bits() + (1 << 51);
            ((bits >> 52) as i32 - 1023 + 127) as u8
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_floats() -> impl Iterator<Item = DType> {
        DType::ALL.into_iter().filter(|d| d.is_float() && d.bytes() == 1)
    }

    fn codes(d: DType) -> std::ops::RangeInclusive<u8> {
        0..=((1u16 << d.bits()) - 1) as u8
    }

    #[test]
    fn published_limits() {
        // Table 1 of the FP8 paper, and the MX specification.
        let table = [
            (DType::F8E4M3FN, 0x7e, 448.0),
            (DType::F8E4M3FN, 0x08, 2f64.powi(-6)),
            (DType::F8E4M3FN, 0x01, 2f64.powi(-9)),
            (DType::F8E4M3FNUZ, 0x7f, 240.0),
            (DType::F8E4M3FNUZ, 0x01, 2f64.powi(-10)),
            (DType::F8E5M2, 0x7b, 57344.0),
            (DType::F8E5M2, 0x7c, f64::INFINITY),
            (DType::F8E5M2, 0x01, 2f64.powi(-16)),
            (DType::F8E5M2FNUZ, 0x7f, 57344.0),
            (DType::F8E5M2FNUZ, 0x01, 2f64.powi(-17)),
            (DType::F4E2M1, 0x7, 6.0),
            (DType::F4E2M1, 0x9, -0.5),
            (DType::F6E2M3, 0x1f, 7.5),
            (DType::F6E3M2, 0x1f, 28.0),
            (DType::F8E8M0, 0, 2f64.powi(-127)),
            (DType::F8E8M0, 0xfe, 2f64.powi(127)),
        ];
        for (d, code, value) in table {
            assert_eq!(decode(d, code), value, "{d} {code:#x}");
        }
        for (d, code) in [(DType::F8E4M3FN, 0x7f), (DType::F8E4M3FN, 0xff), (DType::F8E4M3FNUZ, 0x80), (DType::F8E5M2, 0x7d), (DType::F8E8M0, 0xff)] {
            assert!(decode(d, code).is_nan(), "{d} {code:#x}");
        }
    }

    #[test]
    fn every_code_round_trips() {
        for d in small_floats() {
            for code in codes(d) {
                let x = decode(d, code);
                let back = encode(d, x);
                // E5M2 has several NaNs.
                assert!(back == code || x.is_nan() && decode(d, back).is_nan(), "{d} {code:#x} is {x}, which gives {back:#x}");
            }
        }
    }

    #[test]
    fn midpoints_go_to_the_even_code_and_the_rest_to_the_nearest() {
        for d in small_floats().filter(|d| *d != DType::F8E8M0) {
            let largest = Format::of(d).unwrap().largest();
            for code in 0..largest {
                let (a, b) = (decode(d, code), decode(d, code + 1));
                let middle = (a + b) / 2.0;
                assert_eq!(encode(d, middle), code + (code & 1), "{d}: {middle}");
                assert_eq!(encode(d, middle * (1.0 + 1e-15)), code + 1, "{d}: above {middle}");
                assert_eq!(encode(d, middle * (1.0 - 1e-15)), code, "{d}: below {middle}");
            }
        }
    }

    #[test]
    fn what_is_too_large() {
        let inf = f64::INFINITY;
        assert_eq!([464.0, 464.0001, inf, -inf].map(|x| encode(DType::F8E4M3FN, x)), [0x7e, 0x7f, 0x7f, 0xff]);
        assert_eq!([247.9, 248.0, inf, -inf].map(|x| encode(DType::F8E4M3FNUZ, x)), [0x7f, 0x80, 0x80, 0x80]);
        assert_eq!([61439.0, 61440.0, inf, -inf].map(|x| encode(DType::F8E5M2, x)), [0x7b, 0x7c, 0x7c, 0xfc]);
        assert_eq!([6.9, 1e9, inf, -inf].map(|x| encode(DType::F4E2M1, x)), [7, 7, 7, 15]);
        assert_eq!([-0.0, -1e-9].map(|x| encode(DType::F8E5M2FNUZ, x)), [0, 0]);
        assert_eq!([0.0, 1e-40, 1.5, 1.499, 3e38, -1.0].map(|x| encode(DType::F8E8M0, x)), [0, 0, 128, 127, 0xff, 0xff]);
    }
}
