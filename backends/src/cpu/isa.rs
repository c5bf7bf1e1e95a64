//! What generators and lowerings must know about a processor.

/// An instruction set that vector kernels are made for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Isa {
    /// x86-64 with AVX2 and FMA: 16 registers of 8 floats.
    Avx2,
    /// x86-64 with AVX-512 F, VL, DQ, BW: 32 registers of 16 floats, mask registers.
    Avx512,
    /// Anything Cranelift compiles for, with vectors of 4 floats.
    Portable,
}

impl Isa {
    /// f32 values in one vector.
    pub const fn lanes(self) -> usize {
        match self {
            Isa::Avx2 => 8,
            Isa::Avx512 => 16,
            Isa::Portable => 4,
        }
    }

    /// Vector registers.
    pub const fn vectors(self) -> usize {
        match self {
            Isa::Avx2 => 16,
            Isa::Avx512 => 32,
            Isa::Portable => 16,
        }
    }

    /// The best instruction set of the running processor.
    pub fn native() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw") {
                return Isa::Avx512;
            }
            if has!("avx2") && has!("fma") {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }
}

/// Sizes that the generators' cost rules ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Data cache nearest to a core, bytes.
    pub l1_bytes: i64,
    /// Private second-level cache of a core, bytes.
    pub l2_bytes: i64,
    /// Cores that will share the tasks of a kernel.
    pub threads: i64,
}

impl Default for Machine {
    /// A cautious present-day core: 32 KiB, 512 KiB, four of them.
    fn default() -> Machine {
        Machine { l1_bytes: 32 << 10, l2_bytes: 512 << 10, threads: 4 }
    }
}
