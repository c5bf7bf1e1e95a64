//! What a caller asks of a compilation and a run.

use nnc_frontend::onnx::call::Item;
use nnc_ir::Type;
pub use nnc_passes::Precision;

/// What runs a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The reference interpreter: slow and obvious.
    Interpreter,
    /// Compiled into memory.
    #[default]
    Jit,
    /// Compiled to a shared library, which is then loaded: the same code by the other door.
    SharedLibrary,
    /// Kernels on a Vulkan device.
    Vulkan,
    /// Kernels on an NVIDIA GPU.
    Cuda,
}

impl Engine {
    /// The engine, where it is one on a GPU.
    pub fn device(self) -> Option<Engine> {
        matches!(self, Engine::Vulkan | Engine::Cuda).then_some(self)
    }
}

/// Where the constants of a compiled library are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Weights {
    #[default]
    Embedded,
    /// In `OUT.weights` beside `OUT.so`, which the host maps and passes in.
    External,
}

/// Everything that [`compile_with`](crate::compile_with) can be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sizes of symbolic dimensions, by name.
    pub dims: Vec<(String, i64)>,
    /// Shapes of inputs, by name.
    pub shapes: Vec<(String, Vec<i64>)>,
    /// What inputs that are sequences or optionals are made of, by name: how many tensors, and of what types.
    pub items: Vec<(String, Item<Type>)>,
    /// Optimisation level, 0 to 3.
    pub level: u8,
    /// `native`, or a name that `nnc list-targets` shows, with `,+feature`s.
    pub target: String,
    pub precision: Precision,
    pub weights: Weights,
    pub engine: Engine,
    /// Threads of a run, the caller's included; 0 for all that the process may use.
    pub threads: usize,
    /// Prefix of exported functions.
    pub prefix: String,
    /// The pass or stage after which optimisation stops.
    pub stop_after: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            dims: vec![],
            shapes: vec![],
            items: vec![],
            level: 2,
            target: "native".into(),
            precision: Precision::default(),
            weights: Weights::default(),
            engine: Engine::default(),
            threads: 0,
            prefix: "nnc_".into(),
            stop_after: None,
        }
    }
}
