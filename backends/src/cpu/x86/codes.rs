//! The opcodes of both encodings.

use crate::cpu::vir::{ICmp, VBin, VCmp, VUn};
use iced_x86::Code;

/// The opcodes of one encoding.
#[derive(Clone, Copy)]
pub struct Table {
    pub wide: bool,
}

/// Picks by encoding: AVX2 first, AVX-512 second.
macro_rules! pick {
    ($t:expr, $vex:ident, $evex:ident) => {
        if $t.wide { Code::$evex } else { Code::$vex }
    };
}

impl Table {
    pub fn load(self) -> Code {
        pick!(self, VEX_Vmovups_ymm_ymmm256, EVEX_Vmovups_zmm_k1z_zmmm512)
    }

    pub fn store(self) -> Code {
        pick!(self, VEX_Vmovups_ymmm256_ymm, EVEX_Vmovups_zmmm512_k1z_zmm)
    }

    pub fn copy(self) -> Code {
        pick!(self, VEX_Vmovaps_ymm_ymmm256, EVEX_Vmovaps_zmm_k1z_zmmm512)
    }

    pub fn splat(self) -> Code {
        pick!(self, VEX_Vbroadcastss_ymm_m32, EVEX_Vbroadcastss_zmm_k1z_xmmm32)
    }

    pub fn bin(self, op: VBin) -> Code {
        match op {
            VBin::Add => pick!(self, VEX_Vaddps_ymm_ymm_ymmm256, EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er),
            VBin::Sub => pick!(self, VEX_Vsubps_ymm_ymm_ymmm256, EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er),
            VBin::Mul => pick!(self, VEX_Vmulps_ymm_ymm_ymmm256, EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er),
            VBin::Div => pick!(self, VEX_Vdivps_ymm_ymm_ymmm256, EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er),
            VBin::Max => pick!(self, VEX_Vmaxps_ymm_ymm_ymmm256, EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae),
            VBin::Min => pick!(self, VEX_Vminps_ymm_ymm_ymmm256, EVEX_Vminps_zmm_k1z_zmm_zmmm512b32_sae),
            VBin::And => pick!(self, VEX_Vpand_ymm_ymm_ymmm256, EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32),
            VBin::AndNot => pick!(self, VEX_Vpandn_ymm_ymm_ymmm256, EVEX_Vpandnd_zmm_k1z_zmm_zmmm512b32),
            VBin::Or => pick!(self, VEX_Vpor_ymm_ymm_ymmm256, EVEX_Vpord_zmm_k1z_zmm_zmmm512b32),
            VBin::Xor => pick!(self, VEX_Vpxor_ymm_ymm_ymmm256, EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32),
            VBin::IAdd => pick!(self, VEX_Vpaddd_ymm_ymm_ymmm256, EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32),
            VBin::ISub => pick!(self, VEX_Vpsubd_ymm_ymm_ymmm256, EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32),
            VBin::IMul => pick!(self, VEX_Vpmulld_ymm_ymm_ymmm256, EVEX_Vpmulld_zmm_k1z_zmm_zmmm512b32),
            VBin::Scale => Code::EVEX_Vscalefps_zmm_k1z_zmm_zmmm512b32_er,
        }
    }

    /// The opcode and, where there is one, its immediate.
    pub fn un(self, op: VUn) -> (Code, Option<u32>) {
        let round = pick!(self, VEX_Vroundps_ymm_ymmm256_imm8, EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae);
        match op {
            VUn::Sqrt => (pick!(self, VEX_Vsqrtps_ymm_ymmm256, EVEX_Vsqrtps_zmm_k1z_zmmm512b32_er), None),
            // Bit 3 keeps the inexact exception quiet.
            VUn::Nearest => (round, Some(8)),
            VUn::Floor => (round, Some(9)),
            VUn::Ceil => (round, Some(10)),
            VUn::Trunc => (round, Some(11)),
            VUn::ToInt => (pick!(self, VEX_Vcvtps2dq_ymm_ymmm256, EVEX_Vcvtps2dq_zmm_k1z_zmmm512b32_er), None),
            VUn::ToIntTrunc => (pick!(self, VEX_Vcvttps2dq_ymm_ymmm256, EVEX_Vcvttps2dq_zmm_k1z_zmmm512b32_sae), None),
            VUn::FromInt => (pick!(self, VEX_Vcvtdq2ps_ymm_ymmm256, EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er), None),
            VUn::Shl(n) => (pick!(self, VEX_Vpslld_ymm_ymm_imm8, EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8), Some(n.into())),
            VUn::Shr(n) => (pick!(self, VEX_Vpsrld_ymm_ymm_imm8, EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8), Some(n.into())),
            VUn::Sar(n) => (pick!(self, VEX_Vpsrad_ymm_ymm_imm8, EVEX_Vpsrad_zmm_k1z_zmmm512b32_imm8), Some(n.into())),
        }
    }

    /// `d = d + a*b`, or `d - a*b`.
    pub fn fma231(self, neg: bool) -> Code {
        if neg {
            pick!(self, VEX_Vfnmadd231ps_ymm_ymm_ymmm256, EVEX_Vfnmadd231ps_zmm_k1z_zmm_zmmm512b32_er)
        } else {
            pick!(self, VEX_Vfmadd231ps_ymm_ymm_ymmm256, EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er)
        }
    }

    /// `d = d*a + b`, or `b - d*a`.
    pub fn fma213(self, neg: bool) -> Code {
        if neg {
            pick!(self, VEX_Vfnmadd213ps_ymm_ymm_ymmm256, EVEX_Vfnmadd213ps_zmm_k1z_zmm_zmmm512b32_er)
        } else {
            pick!(self, VEX_Vfmadd213ps_ymm_ymm_ymmm256, EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er)
        }
    }

    /// `d = d*b + a`, or `a - d*b`.
    pub fn fma132(self, neg: bool) -> Code {
        if neg {
            pick!(self, VEX_Vfnmadd132ps_ymm_ymm_ymmm256, EVEX_Vfnmadd132ps_zmm_k1z_zmm_zmmm512b32_er)
        } else {
            pick!(self, VEX_Vfmadd132ps_ymm_ymm_ymmm256, EVEX_Vfmadd132ps_zmm_k1z_zmm_zmmm512b32_er)
        }
    }

    pub fn cmp(self) -> Code {
        pick!(self, VEX_Vcmpps_ymm_ymm_ymmm256_imm8, EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae)
    }

    /// Exchanges neighbours and pairs inside groups of four lanes, by an immediate.
    pub fn permute4(self) -> Code {
        pick!(self, VEX_Vpermilps_ymm_ymmm256_imm8, EVEX_Vpermilps_zmm_k1z_zmmm512b32_imm8)
    }
}

/// The immediate of a quiet ordered comparison.
pub fn predicate(c: VCmp) -> u32 {
    match c {
        VCmp::Lt => 0x11,
        VCmp::Le => 0x12,
        VCmp::Gt => 0x1e,
        VCmp::Ge => 0x1d,
        VCmp::Eq => 0x00,
        VCmp::Ne => 0x04,
        VCmp::Unord => 0x03,
    }
}

pub fn jcc(c: ICmp) -> Code {
    match c {
        ICmp::Lt => Code::Jl_rel32_64,
        ICmp::Le => Code::Jle_rel32_64,
        ICmp::Gt => Code::Jg_rel32_64,
        ICmp::Ge => Code::Jge_rel32_64,
        ICmp::Eq => Code::Je_rel32_64,
        ICmp::Ne => Code::Jne_rel32_64,
    }
}

pub fn cmov(c: ICmp) -> Code {
    match c {
        ICmp::Lt => Code::Cmovl_r64_rm64,
        ICmp::Le => Code::Cmovle_r64_rm64,
        ICmp::Gt => Code::Cmovg_r64_rm64,
        ICmp::Ge => Code::Cmovge_r64_rm64,
        ICmp::Eq => Code::Cmove_r64_rm64,
        ICmp::Ne => Code::Cmovne_r64_rm64,
    }
}
