//! What instructions of registers compute, by their names.

/// As many operands as the instruction has.
pub enum Function {
    One(fn(u64) -> u64),
    Two(fn(u64, u64) -> u64),
    Three(fn(u64, u64, u64) -> u64),
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn fb(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// The bits of the bf16 that is nearest, the even one of two.
fn bf16(x: f32) -> u64 {
    let (down, rest) = (x.to_bits() >> 16, x.to_bits() & 0xffff);
    let up = rest > 0x8000 || (rest == 0x8000 && down % 2 == 1);
    if x.is_nan() { 0x7fff } else { u64::from(down + u32::from(up)) }
}

/// The numbers of a word of a matrix by the name of their type; of a single one the other is 0.
pub fn numbers(kind: &str) -> Option<fn(u64) -> [f32; 2]> {
    match kind {
        "bf16" => Some(|w| [f(w << 16), f(w & 0xffff_0000)]),
        "f16" => Some(|w| [half::f16::from_bits(w as u16).to_f32(), half::f16::from_bits((w >> 16) as u16).to_f32()]),
        // The low bits are not looked at.
        "tf32" => Some(|w| [f(w & 0xffff_e000), 0.0]),
        _ => None,
    }
}

fn i(x: u64) -> i32 {
    x as u32 as i32
}

fn ib(x: i32) -> u64 {
    u64::from(x as u32)
}

fn l(x: u64) -> i64 {
    x as i64
}

/// The function of an instruction, by its name with all suffixes.
pub fn function(name: &str) -> Option<Function> {
    use Function::{One, Three, Two};
    Some(match name {
        "mov.pred" | "mov.b64" | "mov.u64" | "mov.f64" | "cvta.to.global.u64" => One(|x| x),
        "mov.b32" | "mov.u32" | "mov.f32" => One(|x| x & 0xffff_ffff),

        "not.pred" => One(|x| x ^ 1),
        "not.b32" => One(|x| !x & 0xffff_ffff),
        "not.b64" => One(|x| !x),
        "and.pred" | "and.b32" | "and.b64" => Two(|x, y| x & y),
        "or.pred" | "or.b32" | "or.b64" => Two(|x, y| x | y),
        "xor.pred" | "xor.b32" | "xor.b64" => Two(|x, y| x ^ y),

        "neg.f32" => One(|x| fb(-f(x))),
        "neg.f64" => One(|x| (-d(x)).to_bits()),
        "abs.f32" => One(|x| fb(f(x).abs())),
        "abs.f64" => One(|x| d(x).abs().to_bits()),
        "sqrt.rn.f32" => One(|x| fb(f(x).sqrt())),
        "sqrt.rn.f64" => One(|x| d(x).sqrt().to_bits()),
        "cvt.rmi.f32.f32" => One(|x| fb(f(x).floor())),
        "cvt.rpi.f32.f32" => One(|x| fb(f(x).ceil())),
        "cvt.rni.f32.f32" => One(|x| fb(f(x).round_ties_even())),
        "cvt.rzi.f32.f32" => One(|x| fb(f(x).trunc())),
        "cvt.rmi.f64.f64" => One(|x| d(x).floor().to_bits()),
        "cvt.rpi.f64.f64" => One(|x| d(x).ceil().to_bits()),
        "cvt.rni.f64.f64" => One(|x| d(x).round_ties_even().to_bits()),
        "cvt.rzi.f64.f64" => One(|x| d(x).trunc().to_bits()),

        "add.rn.f32" | "add.f32" => Two(|x, y| fb(f(x) + f(y))),
        "sub.rn.f32" => Two(|x, y| fb(f(x) - f(y))),
        "mul.rn.f32" => Two(|x, y| fb(f(x) * f(y))),
        "div.rn.f32" => Two(|x, y| fb(f(x) / f(y))),
        "max.f32" => Two(|x, y| fb(f(x).max(f(y)))),
        "min.f32" => Two(|x, y| fb(f(x).min(f(y)))),
        "fma.rn.f32" => Three(|x, y, z| fb(f(x).mul_add(f(y), f(z)))),
        "add.rn.f64" | "add.f64" => Two(|x, y| (d(x) + d(y)).to_bits()),
        "sub.rn.f64" => Two(|x, y| (d(x) - d(y)).to_bits()),
        "mul.rn.f64" => Two(|x, y| (d(x) * d(y)).to_bits()),
        "div.rn.f64" => Two(|x, y| (d(x) / d(y)).to_bits()),
        "max.f64" => Two(|x, y| d(x).max(d(y)).to_bits()),
        "min.f64" => Two(|x, y| d(x).min(d(y)).to_bits()),
        "fma.rn.f64" => Three(|x, y, z| d(x).mul_add(d(y), d(z)).to_bits()),

        "add.s32" | "add.u32" => Two(|x, y| ib(i(x).wrapping_add(i(y)))),
        "sub.s32" | "sub.u32" => Two(|x, y| ib(i(x).wrapping_sub(i(y)))),
        "mul.lo.s32" | "mul.lo.u32" => Two(|x, y| ib(i(x).wrapping_mul(i(y)))),
        "mad.lo.s32" | "mad.lo.u32" => Three(|x, y, z| ib(i(x).wrapping_mul(i(y)).wrapping_add(i(z)))),
        "mul.wide.u32" => Two(|x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff)),
        "add.s64" | "add.u64" => Two(u64::wrapping_add),
        "sub.s64" | "sub.u64" => Two(u64::wrapping_sub),
        "mul.lo.s64" | "mul.lo.u64" => Two(u64::wrapping_mul),
        "max.s32" => Two(|x, y| ib(i(x).max(i(y)))),
        "min.s32" => Two(|x, y| ib(i(x).min(i(y)))),
        "max.s64" => Two(|x, y| l(x).max(l(y)) as u64),
        "min.s64" => Two(|x, y| l(x).min(l(y)) as u64),
        // Division by zero gives a number that nobody may rely on.
        "div.s32" => Two(|x, y| if i(y) == 0 { 0xffff_ffff } else { ib(i(x).wrapping_div(i(y))) }),
        "rem.s32" => Two(|x, y| if i(y) == 0 { 0xffff_ffff } else { ib(i(x).wrapping_rem(i(y))) }),
        "div.u32" => Two(|x, y| x.checked_div(y).unwrap_or(0xffff_ffff)),
        "rem.u32" => Two(|x, y| x.checked_rem(y).unwrap_or(0xffff_ffff)),
        "div.s64" => Two(|x, y| if y == 0 { u64::MAX } else { l(x).wrapping_div(l(y)) as u64 }),
        "rem.s64" => Two(|x, y| if y == 0 { u64::MAX } else { l(x).wrapping_rem(l(y)) as u64 }),
        "div.u64" => Two(|x, y| x.checked_div(y).unwrap_or(u64::MAX)),
        "rem.u64" => Two(|x, y| x.checked_rem(y).unwrap_or(u64::MAX)),
        // Counts of the width and more shift everything out.
        "shl.b32" => Two(|x, n| if n > 31 { 0 } else { (x << n) & 0xffff_ffff }),
        "shr.u32" => Two(|x, n| if n > 31 { 0 } else { x >> n }),
        "shr.s32" => Two(|x, n| ib(i(x) >> n.min(31))),
        "shl.b64" => Two(|x, n| if n > 63 { 0 } else { x << n }),
        "shr.u64" => Two(|x, n| if n > 63 { 0 } else { x >> n }),
        "shr.s64" => Two(|x, n| (l(x) >> n.min(63)) as u64),

        "setp.eq.b32" | "setp.eq.b64" => Two(|x, y| u64::from(x == y)),
        "setp.ne.b32" | "setp.ne.b64" => Two(|x, y| u64::from(x != y)),
        "setp.lt.s32" => Two(|x, y| u64::from(i(x) < i(y))),
        "setp.le.s32" => Two(|x, y| u64::from(i(x) <= i(y))),
        "setp.ge.s32" => Two(|x, y| u64::from(i(x) >= i(y))),
        "setp.lt.s64" => Two(|x, y| u64::from(l(x) < l(y))),
        "setp.le.s64" => Two(|x, y| u64::from(l(x) <= l(y))),
        "setp.ge.s64" => Two(|x, y| u64::from(l(x) >= l(y))),
        "setp.lt.u32" | "setp.lt.u64" => Two(|x, y| u64::from(x < y)),
        "setp.le.u32" | "setp.le.u64" => Two(|x, y| u64::from(x <= y)),
        "setp.eq.f32" => Two(|x, y| u64::from(f(x) == f(y))),
        "setp.neu.f32" => Two(|x, y| u64::from(f(x) != f(y))),
        "setp.lt.f32" => Two(|x, y| u64::from(f(x) < f(y))),
        "setp.le.f32" => Two(|x, y| u64::from(f(x) <= f(y))),
        "setp.eq.f64" => Two(|x, y| u64::from(d(x) == d(y))),
        "setp.neu.f64" => Two(|x, y| u64::from(d(x) != d(y))),
        "setp.lt.f64" => Two(|x, y| u64::from(d(x) < d(y))),
        "setp.le.f64" => Two(|x, y| u64::from(d(x) <= d(y))),
        "selp.b32" | "selp.b64" | "selp.f32" | "selp.f64" => Three(|x, y, p| if p & 1 == 1 { x } else { y }),

        "cvt.s64.s32" => One(|x| i64::from(i(x)) as u64),
        "cvt.u64.u32" => One(|x| x),
        "cvt.u32.u64" => One(|x| x & 0xffff_ffff),
        "cvt.rn.f32.s32" => One(|x| fb(i(x) as f32)),
        "cvt.rn.f32.u32" => One(|x| fb(x as u32 as f32)),
        "cvt.rn.f32.s64" => One(|x| fb(l(x) as f32)),
        "cvt.rn.f32.u64" => One(|x| fb(x as f32)),
        "cvt.rn.f64.s32" => One(|x| f64::from(i(x)).to_bits()),
        "cvt.rn.f64.u32" => One(|x| f64::from(x as u32).to_bits()),
        "cvt.rn.f64.s64" => One(|x| (l(x) as f64).to_bits()),
        "cvt.rn.f64.u64" => One(|x| (x as f64).to_bits()),
        "cvt.rzi.s32.f32" => One(|x| ib(f(x) as i32)),
        "cvt.rzi.u32.f32" => One(|x| u64::from(f(x) as u32)),
        "cvt.rzi.s64.f32" => One(|x| f(x) as i64 as u64),
        "cvt.rzi.u64.f32" => One(|x| f(x) as u64),
        "cvt.rzi.s32.f64" => One(|x| ib(d(x) as i32)),
        "cvt.rzi.u32.f64" => One(|x| u64::from(d(x) as u32)),
        "cvt.rzi.s64.f64" => One(|x| d(x) as i64 as u64),
        "cvt.rzi.u64.f64" => One(|x| d(x) as u64),
        "cvt.rn.bf16x2.f32" => Two(|hi, lo| bf16(f(hi)) << 16 | bf16(f(lo))),
        "cvt.rn.f16x2.f32" => Two(|hi, lo| u64::from(half::f16::from_f32(f(hi)).to_bits()) << 16 | u64::from(half::f16::from_f32(f(lo)).to_bits())),
        // To the nearest of those with 13 bits less, away from zero at a tie.
        "cvt.rna.tf32.f32" => One(|x| if f(x).is_nan() { 0x7fff_ffff } else { (x + 0x1000) & 0xffff_e000 }),
        "cvt.f64.f32" => One(|x| f64::from(f(x)).to_bits()),
        "cvt.rn.f32.f64" => One(|x| fb(d(x) as f32)),
        _ => return None,
    })
}
