//! Targets: what the host is, and how Cranelift is told.

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use nnc_ir::target::{Isa, Target};
use nnc_ir::{Error, Result};
use target_lexicon::Triple;

/// The named instruction set that the running machine has; results are then the same on every machine of that name.
pub fn native_target() -> Target {
    Target::new(native_isa())
}

#[cfg(target_arch = "x86_64")]
fn native_isa() -> Isa {
    use std::is_x86_feature_detected as has;
    let v3 = has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2") && has!("lzcnt") && has!("popcnt") && has!("f16c");
    let v4 = has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw") && has!("avx512cd");
    match (v3, v4) {
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::X86_64,
    }
}

#[cfg(target_arch = "aarch64")]
fn native_isa() -> Isa {
    Isa::Aarch64
}

/// Whether code for `t` runs on this machine.
pub fn is_native(t: &Target) -> bool {
    let host = native_isa();
    let least = t.least();
    (least == host || (host != Isa::Aarch64 && least != Isa::Aarch64 && least < host)) && (!t.bf16 || has_bf16())
}

/// Whether this machine sums products of bf16 pairs.
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// How code will be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    Memory,
    Object,
}

/// Cranelift's view of a target, optimising or not: of the least machine that it is for.
pub fn cranelift_isa(t: &Target, usage: Use, optimise: bool) -> Result<OwnedTargetIsa> {
    let fail = |what: &str| Error::internal(format!("Cranelift for {}: {what}", t.name));
    let (triple, features): (&str, &[&str]) = match t.least() {
        Isa::X86_64 => ("x86_64-unknown-linux-gnu", &[]),
        Isa::Avx2 => ("x86_64-unknown-linux-gnu", V3),
        Isa::Avx512 => ("x86_64-unknown-linux-gnu", V4),
        Isa::Aarch64 => ("aarch64-unknown-linux-gnu", &[]),
    };
    let triple: Triple = triple.parse().map_err(|_| fail("unknown triple"))?;
    let mut flags = settings::builder();
    let pic = if usage == Use::Object { "true" } else { "false" };
    for (name, value) in [
        ("opt_level", if optimise { "speed" } else { "none" }),
        ("is_pic", pic),
        ("use_colocated_libcalls", "false"),
        // Frames larger than a page touch each page, so that none jumps over the guard.
        ("enable_probestack", "true"),
        ("probestack_strategy", "inline"),
        ("unwind_info", "true"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
    ] {
        flags.set(name, value).map_err(|e| fail(&format!("{name}: {e}")))?;
    }
    let mut builder = isa::lookup(triple).map_err(|e| fail(&e.to_string()))?;
    for f in features {
        builder.enable(f).map_err(|e| fail(&format!("{f}: {e}")))?;
    }
    builder.finish(settings::Flags::new(flags)).map_err(|e| fail(&e.to_string()))
}

const V3: &[&str] =
    &["has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt", "has_avx", "has_avx2", "has_fma", "has_bmi1", "has_bmi2", "has_lzcnt"];
const V4: &[&str] = &[
    "has_sse3",
    "has_ssse3",
    "has_sse41",
    "has_sse42",
    "has_popcnt",
    "has_avx",
    "has_avx2",
    "has_fma",
    "has_bmi1",
    "has_bmi2",
    "has_lzcnt",
    "has_avx512f",
    "has_avx512vl",
    "has_avx512dq",
];
