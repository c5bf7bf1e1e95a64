//! The C ABI of compiled models, version 1: what `nnc_*` functions take, as Rust sees it.
//!
//! Layouts are those of the structs in the C header that is written beside a library ([`crate::cpu::header`]), on 64-bit targets.

use nnc_ir::ops::image::Channels;
use std::ffi::{c_char, c_void};

/// What `nnc_abi_version` returns.
pub const VERSION: i32 = 1;

/// Alignment in bytes of the workspace and of everything in it, and of weights.
pub const ALIGN: usize = 64;

/// The most bytes that a run asks its host for at once: what is larger is a size that went wrong.
pub const MAX_BYTES: i64 = 1 << 42;

/// Codes that do not depend on the model; those of its inputs follow from [`ERROR_FIRST_OWN`] on, and `nnc_error` has a text for each.
pub const OK: i32 = 0;
/// The processor lacks an instruction set that the library was compiled for.
pub const ERROR_CPU: i32 = 1;
/// `workspace` is NULL or not aligned to [`ALIGN`].
pub const ERROR_WORKSPACE: i32 = 2;
/// `host->size` is not that of a host of this version.
pub const ERROR_HOST: i32 = 3;
/// The weights are external and `host->weights` is NULL, too short or not aligned to [`ALIGN`].
pub const ERROR_WEIGHTS: i32 = 4;
/// The host allocates no memory for an output without data, or for a size that only the run knows.
pub const ERROR_ALLOC: i32 = 5;
/// An output's `shape` has no room for its dimensions (`rank` is the capacity).
pub const ERROR_RANK: i32 = 6;
/// Sizes that follow from the inputs' shapes do not fit 64 bits.
pub const ERROR_OVERFLOW: i32 = 7;
/// An index tensor points outside its tensor.
pub const ERROR_INDEX: i32 = 8;
/// A size computed from data is negative or does not fit.
pub const ERROR_SIZE: i32 = 9;
/// An argument that must point somewhere is NULL.
pub const ERROR_NULL: i32 = 10;
/// An output's `dtype`, as a run finds it, is neither 0 nor that of the output.
pub const ERROR_DTYPE: i32 = 11;
/// The model reads pictures, and the host does not.
pub const ERROR_DECODE: i32 = 12;
/// The first code that is the model's own.
pub const ERROR_FIRST_OWN: i32 = 13;

/// Texts of the codes below [`ERROR_FIRST_OWN`].
pub const ERROR_TEXTS: [&str; ERROR_FIRST_OWN as usize] = [
    "success",
    "the processor lacks an instruction set that this library was compiled for",
    "the workspace is NULL or not 64-byte aligned",
    "nnc_host.size is not sizeof(nnc_host) of ABI version 1 or later",
    "the weights are external: nnc_host.weights must point to all of them, 64-byte aligned",
    "nnc_host.alloc is not given or gave no memory, for an output without data or a result whose size only the run knows",
    "an output's rank (the capacity of its shape) is too small, or its shape is NULL",
    "sizes that follow from the inputs' shapes do not fit 64 bits",
    "an index points outside its tensor",
    "a size computed from data is negative or does not fit",
    "inputs, outputs or workspace_bytes is NULL",
    "an output's dtype is neither 0 nor the output's type",
    "the model reads files of pictures: nnc_host.decode must be given",
];

/// A tensor argument: 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// Input: NULL = not given. Output: the caller's memory, or NULL = allocate through [`Host::alloc`].
    pub data: *mut c_void,
    /// The caller's storage. Output: written by plan where the inputs decide it (else -1), and by run.
    pub shape: *mut i64,
    /// Output: in, the capacity of `shape`; out, the rank.
    pub rank: i32,
    /// A number of ONNX TensorProto.DataType ([`nnc_ir::DType::abi_code`]). Output: written; a run finds 0 or the output's in it.
    pub dtype: i32,
}

/// `parallel_for(ctx, n, body, arg)` calls `body(arg, i)` once for each i in 0..n, in any order, on any thread.
pub type ParallelFor = unsafe extern "C" fn(ctx: *mut c_void, n: i64, body: Body, arg: *mut c_void);
/// One iteration.
pub type Body = unsafe extern "C" fn(arg: *mut c_void, i: i64);
/// Called around each launch, on the thread that called run: `launch` counts as `nnc_launches` does, `phase` is 0 before and 1 after.
pub type Trace = unsafe extern "C" fn(ctx: *mut c_void, launch: i64, phase: i32);
/// Memory for an output, or for a result whose size only the run knows; NULL where there is none. All blocks are the host's: when the
/// run has returned, it may release those that are no output's data.
pub type Alloc = unsafe extern "C" fn(ctx: *mut c_void, bytes: usize, align: usize) -> *mut c_void;

/// Reads the picture in the file whose bytes are at `file` (BMP, JPEG, JPEG 2000, PNG, PNM, TIFF, WebP: as the host likes). `channels` is
/// what [`channels`] gives. Where `samples` is NULL, writes the picture's height and width to `sizes`, both 0 where it can read none;
/// else `sizes` holds what an earlier call with this file wrote there, and height·width·channels samples go to `samples`. On the thread
/// that called run.
pub type Decode = unsafe extern "C" fn(ctx: *mut c_void, file: *const u8, bytes: usize, channels: i32, sizes: *mut i64, samples: *mut u8);

/// The number of a pixel format for [`Decode`].
pub fn channels(c: Channels) -> u32 {
    match c {
        Channels::Rgb => 0,
        Channels::Bgr => 1,
        Channels::Grayscale => 2,
    }
}

/// What the caller lends to a run: 72 bytes, of which early hosts have [`HOST_BYTES`]. NULL in its place stands for one thread, no allocation, embedded weights.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// `size_of::<Host>()`: later versions append fields.
    pub size: usize,
    pub ctx: *mut c_void,
    pub threads: i32,
    pub parallel_for: Option<ParallelFor>,
    pub alloc: Option<Alloc>,
    /// External weights: the file, mapped by the caller, 64-byte aligned.
    pub weights: *const c_void,
    pub weights_bytes: usize,
    /// For profilers.
    pub trace: Option<Trace>,
    /// For models that read files of pictures.
    pub decode: Option<Decode>,
}

/// The least size of a host: it ends before [`Host::trace`].
pub const HOST_BYTES: usize = std::mem::offset_of!(Host, trace);

impl Default for Host {
    /// One thread, no allocation, embedded weights.
    fn default() -> Host {
        Host {
            size: size_of::<Host>(),
            ctx: std::ptr::null_mut(),
            threads: 1,
            parallel_for: None,
            alloc: None,
            weights: std::ptr::null(),
            weights_bytes: 0,
            trace: None,
            decode: None,
        }
    }
}

pub type AbiVersion = unsafe extern "C" fn() -> i32;
pub type Describe = unsafe extern "C" fn() -> *const c_char;
pub type Plan = unsafe extern "C" fn(inputs: *const Tensor, outputs: *mut Tensor, workspace_bytes: *mut usize) -> i32;
pub type Run = unsafe extern "C" fn(inputs: *const Tensor, outputs: *mut Tensor, workspace: *mut c_void, host: *const Host) -> i32;
pub type ErrorText = unsafe extern "C" fn(code: i32) -> *const c_char;

/// The functions of a compiled model, wherever its code lies. Valid as long as that code is.
#[derive(Clone, Copy, Debug)]
pub struct Functions {
    pub abi_version: AbiVersion,
    pub describe: Describe,
    pub plan: Plan,
    pub run: Run,
    pub error: ErrorText,
    /// JSON: an object for each launch; `None` in libraries from before there was one.
    pub launches: Option<Describe>,
}

/// Their names without the prefix, in the order of [`Functions`].
pub const NAMES: [&str; 6] = ["abi_version", "describe", "plan", "run", "error", "launches"];
