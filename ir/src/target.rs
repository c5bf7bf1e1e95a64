//! Targets: what a machine can do, as plain data. Backends and the command line fill it, passes read it.

/// Instruction sets that kernels are emitted for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Isa {
    /// SSE2: what every x86-64 has; 128-bit vectors.
    X86_64,
    /// AVX2, FMA, BMI2 (x86-64-v3).
    Avx2,
    /// AVX-512 F, VL, BW, DQ (x86-64-v4).
    Avx512,
    /// Arm Neon.
    Aarch64,
}

/// A machine as the cost model sees it. Sizes in bytes, speeds per core.
#[derive(Clone, PartialEq, Debug)]
pub struct Target {
    /// What `--target` calls it.
    pub name: String,
    pub isa: Isa,
    /// A lesser instruction set that files hold code for as well: they choose when they are loaded.
    pub also: Option<Isa>,
    /// Whether there are sums of products of bf16 pairs (AVX512_BF16).
    pub bf16: bool,
    /// Channels in a block of the blocked layout; 1 where nothing is gained by blocks.
    pub block: usize,
    /// Scalar operations that are worth a task of their own.
    pub grain: i64,
    /// f32 elements in a vector register.
    pub lanes: usize,
    /// Vector registers.
    pub registers: usize,
    pub l1_bytes: usize,
    pub l2_bytes: usize,
    /// Multiply-adds in f32 a cycle.
    pub fma_per_cycle: f64,
    /// Bytes a cycle from L2 and from memory.
    pub l2_bytes_per_cycle: f64,
    pub memory_bytes_per_cycle: f64,
}

impl Target {
    /// Names that [`Target::from_name`] takes, beside `native`.
    pub const NAMES: &'static [&'static str] = &["x86-64", "x86-64-v3", "x86-64-v4", Target::BOTH, "aarch64"];

    /// AVX-512 where the machine has it, else AVX2: one program and one set of weights, planned for AVX-512, with the code of both.
    pub const BOTH: &'static str = "x86-64-v3+v4";

    /// The feature of [`Target::bf16`], as names have it.
    pub const BF16: &'static str = "+avx512_bf16";

    /// Built-in figures of a typical machine with this instruction set.
    pub fn new(isa: Isa) -> Target {
        let (name, lanes, registers, fma) = match isa {
            Isa::X86_64 => ("x86-64", 4, 16, 4.0),
            Isa::Avx2 => ("x86-64-v3", 8, 16, 16.0),
            Isa::Avx512 => ("x86-64-v4", 16, 32, 16.0),
            Isa::Aarch64 => ("aarch64", 4, 32, 8.0),
        };
        Target {
            name: name.into(),
            isa,
            also: None,
            bf16: false,
            block: 16,
            grain: 1 << 15,
            lanes,
            registers,
            l1_bytes: 32 << 10,
            l2_bytes: 512 << 10,
            fma_per_cycle: fma,
            l2_bytes_per_cycle: 32.0,
            memory_bytes_per_cycle: 6.0,
        }
    }

    /// This machine with a GPU that the loops are for: a task is a thread, which computes an element; tensors keep the model's layout.
    pub fn with_gpu(self, gpu: &Gpu) -> Target {
        Target { name: format!("{}+{}", self.name, gpu.name), block: 1, grain: 1, ..self }
    }

    pub fn from_name(name: &str) -> Option<Target> {
        match name.split_once(',') {
            Some((base, Target::BF16)) => Target::from_name(base)?.with_bf16(),
            Some(_) => None,
            None if name == Target::BOTH => Some(Target { name: name.into(), also: Some(Isa::Avx2), ..Target::new(Isa::Avx512) }),
            None => [Isa::X86_64, Isa::Avx2, Isa::Avx512, Isa::Aarch64].into_iter().map(Target::new).find(|t| t.name == name),
        }
    }

    /// The target with products of bf16, where its instruction set may have them.
    pub fn with_bf16(self) -> Option<Target> {
        let may = self.isa == Isa::Avx512 && self.also.is_none();
        may.then(|| Target { name: format!("{},{}", self.name, Target::BF16), bf16: true, ..self })
    }

    /// The least instruction set that a machine must have.
    pub fn least(&self) -> Isa {
        self.also.unwrap_or(self.isa)
    }
}

/// Instruction sets of GPUs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum GpuIsa {
    /// SPIR-V 1.5, for Vulkan 1.2 and later.
    SpirV,
    /// PTX 8.0 for NVIDIA's compute capability 8.0 and later.
    Sm80,
    /// The same for 9.0.
    Sm90,
}

impl GpuIsa {
    /// Whether it is PTX: subgroups of 32, matrix units, copies to shared memory beside the threads.
    pub fn is_nvidia(self) -> bool {
        self != GpuIsa::SpirV
    }
}

/// What the operands of products are rounded to, to be multiplied by matrix units with sums in f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Rounding {
    Bf16,
    /// 8 bits of exponent and 10 of mantissa.
    Tf32,
}

/// Matrices that a subgroup holds together and multiplies (`VK_KHR_cooperative_matrix`): f16 operands, f32 sums.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Cooperative {
    /// Rows and columns of the sums, and the depth that one product adds.
    pub rows: u32,
    pub columns: u32,
    pub depth: u32,
    /// Threads in a subgroup.
    pub lanes: u32,
}

/// A GPU: what its kernels may ask for. Sizes in bytes.
#[derive(Clone, PartialEq, Debug)]
pub struct Gpu {
    /// What `--target` calls it.
    pub name: &'static str,
    pub isa: GpuIsa,
    /// Threads in a group, at most; and how many of them kernels take where nothing speaks for another number.
    pub max_threads: u32,
    pub threads: u32,
    /// Groups along an axis of the grid.
    pub max_groups: u32,
    /// Shared memory of a group.
    pub shared_bytes: u32,
    /// Buffers that a kernel takes, and how much of one it sees.
    pub max_buffers: u32,
    pub buffer_bytes: u64,
    /// Scalars of a launch, together.
    pub scalar_bytes: u32,
    /// What the start of a buffer is a multiple of, at most.
    pub alignment: u64,
    /// Threads in the smallest and in the largest subgroup.
    pub subgroup: (u32, u32),
    /// Bytes of neighbours that a thread loads or stores at once, at most; 0 where elements go one by one.
    pub vector_bytes: u32,
    /// What products round their operands to: asked for by a precision, never by itself.
    pub rounding: Option<Rounding>,
    /// Matrices that a subgroup multiplies as wholes.
    pub cooperative: Option<Cooperative>,
    /// Whether it computes in 64 bits, and has memory of 8 and 16-bit elements.
    pub i64: bool,
    pub f64: bool,
    pub bytes: bool,
    pub halves: bool,
}

impl Gpu {
    /// Names that [`Gpu::from_name`] takes.
    pub const NAMES: &'static [&'static str] = &["spirv1.5", "nvptx-sm_80", "nvptx-sm_90"];

    /// What every device of this kind has.
    pub fn new(isa: GpuIsa) -> Gpu {
        let nvidia = |name, isa| Gpu {
            name,
            isa,
            max_threads: 1024,
            threads: 128,
            max_groups: 65535,
            // What a kernel has without asking for more.
            shared_bytes: 48 << 10,
            max_buffers: 64,
            buffer_bytes: 1 << 40,
            scalar_bytes: 2048,
            alignment: 64,
            subgroup: (32, 32),
            vector_bytes: 16,
            rounding: None,
            cooperative: None,
            i64: true,
            f64: true,
            bytes: true,
            halves: true,
        };
        match isa {
            GpuIsa::Sm80 => nvidia("nvptx-sm_80", isa),
            GpuIsa::Sm90 => nvidia("nvptx-sm_90", isa),
            // The least that Vulkan 1.2 asks of a desktop device.
            GpuIsa::SpirV => Gpu {
                name: "spirv1.5",
                isa,
                max_threads: 256,
                threads: 128,
                max_groups: 65535,
                shared_bytes: 32 << 10,
                max_buffers: 16,
                buffer_bytes: 128 << 20,
                scalar_bytes: 128,
                alignment: 64,
                subgroup: (4, 64),
                // Storage buffers are arrays of their elements.
                vector_bytes: 0,
                rounding: None,
                cooperative: None,
                i64: true,
                f64: true,
                bytes: true,
                halves: true,
            },
        }
    }

    /// The GPU with products of rounded operands, where kernels have them: NVIDIA's.
    pub fn with_rounding(self, to: Rounding) -> Option<Gpu> {
        self.isa.is_nvidia().then_some(Gpu { rounding: Some(to), ..self })
    }

    pub fn from_name(name: &str) -> Option<Gpu> {
        [GpuIsa::SpirV, GpuIsa::Sm80, GpuIsa::Sm90].into_iter().map(Gpu::new).find(|g| g.name == name)
    }
}
