//! The command line as data. The verbs' own files say what each does.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A compiler for neural networks: ONNX or .nn in, optimised native code out.
#[derive(Parser)]
#[command(name = "nnc", version, max_term_width = 110, infer_subcommands = false)]
#[command(after_help = "`-` as a file is stdin or stdout. Exit status: 0 done; 1 a comparison failed; 2 a mistake in the command or the model, \
explained; 3 a bug in nnc. NO_COLOR=1 turns colours off.")]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Compile a model to a shared library, an object file, or text of any stage
    Compile(Compile),
    /// Run a model, or a compiled library, on files or made-up inputs
    Run(Run),
    /// Measure how long a run takes
    Bench(Bench),
    /// Hold an engine's results against the interpreter or given files
    Verify(Verify),
    /// Say everything that is wrong with a model, at once
    Check(Check),
    /// Describe a model or a compiled library: inputs, outputs, operations, sizes
    Info(Info),
    /// List the operations: of ONNX and of the .nn language
    ListOps(ListOps),
    /// List what --target takes
    ListTargets(ListTargets),
    /// Run single passes on a model and print the result as .nn
    Opt(Opt),
    /// Draw a model as SVG, HTML or Graphviz text
    Graph(Draw),
    /// Write a model's gradient as a model
    Grad(Grad),
    /// Train a model that .nn text describes
    Train(Train),
    /// Write a .nn model as ONNX
    Export(Export),
    /// Print a .nn file in its canonical form
    Fmt(Fmt),
    /// Load a library and call it once (what `compile` does in a child process)
    #[command(hide = true)]
    Smoke(Smoke),
}

/// Options of everything that compiles.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Compilation")]
pub struct Compilation {
    /// Fix a symbolic dimension (repeatable)
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
    /// Fix an input's shape; the last colon separates (repeatable)
    #[arg(long = "shape", value_name = "NAME:2x3x4", value_parser = shape)]
    pub shapes: Vec<(String, Vec<i64>)>,
    /// Optimisation level, 0 to 3
    #[arg(short = 'O', value_name = "LEVEL", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub level: u8,
    /// Machine to compile for, and features to add: `nnc list-targets` lists them. Without it: this machine; `compile` makes code for
    /// AVX2 and AVX-512, of which the file chooses when it is loaded
    #[arg(long, value_name = "NAME[,+FEATURE...]")]
    pub target: Option<String>,
    /// fast: may use Winograd and reordered sums; exact: neither, the same bits for any number of threads; bf16: operands rounded to bf16
    #[arg(long, value_enum, default_value_t)]
    pub precision: Precision,
    /// Constants inside the artefact, or in a file beside it
    #[arg(long, value_enum, default_value_t)]
    pub weights: Weights,
    /// Prefix of the exported C functions
    #[arg(long, value_name = "PREFIX", default_value = "nnc_")]
    pub prefix: String,

    /// Print the IR after this pass (after every pass without a name), on stderr
    #[arg(long, value_name = "PASS", num_args = 0..=1, require_equals = true, default_missing_value = "", help_heading = "Inspection")]
    pub print_ir_after: Option<String>,
    /// Print the IR after every pass
    #[arg(long, help_heading = "Inspection")]
    pub print_ir_after_all: bool,
    /// Print the IR after every pass that changed it
    #[arg(long, help_heading = "Inspection")]
    pub print_ir_after_change: bool,
    /// Stop after this stage or pass and print what there is
    #[arg(long, value_name = "STAGE", help_heading = "Inspection")]
    pub stop_after: Option<String>,
    /// Print the time each pass took, on stderr
    #[arg(long, help_heading = "Inspection")]
    pub time_passes: bool,
    /// Say what was optimised and what was not, and why
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-", help_heading = "Inspection")]
    pub opt_report: Option<PathBuf>,
    /// Statistics of the compilation, as one JSON object on stdout
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Inspection")]
    pub stats: Option<Stats>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Debug, Default)]
pub enum Precision {
    #[default]
    Fast,
    Exact,
    Bf16,
    Tf32,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Debug, Default)]
pub enum Weights {
    #[default]
    Embed,
    External,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Debug)]
pub enum Stats {
    Json,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Debug)]
pub enum Format {
    OnnxText,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    Interp,
    Jit,
    So,
    Cuda,
    Vulkan,
}

/// What `compile` can write.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emit {
    So,
    O,
    A,
    H,
    Clif,
    S,
    Nn,
    Ptx,
    Spv,
    Nncg,
}

/// Where a run's inputs come from.
#[derive(Args, Clone, Default)]
pub struct Inputs {
    /// A folder with input_K.pb files, FILE.npz, NAME=FILE.npy|.pb, a bare FILE.npy|.pb, or NAME=random:SEED|zeros|ones; several
    /// may follow, so that MODEL is written first
    #[arg(short, long = "input", value_name = "INPUT", num_args = 1..)]
    pub inputs: Vec<String>,
}

/// How close results must be to a reference.
#[derive(Args, Clone, Copy)]
pub struct Tolerances {
    /// Relative tolerance
    #[arg(long, default_value_t = 1e-3, value_parser = tolerance)]
    pub rtol: f64,
    /// Absolute tolerance [default: 1e-5 times the largest reference of each tensor]
    #[arg(long, value_parser = tolerance)]
    pub atol: Option<f64>,
}

#[derive(Args)]
pub struct Compile {
    /// .onnx or .nn
    pub model: PathBuf,
    /// The file to write; its suffix says what unless --emit does
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum)]
    pub emit: Option<Emit>,
    /// Syntax of textual output
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
#[command(override_usage = "nnc run <MODEL> [OPTIONS]")]
pub struct Run {
    /// .onnx, .nn, or a compiled .so or .nncg
    pub model: PathBuf,
    #[command(flatten)]
    pub inputs: Inputs,
    /// A folder for output_K.pb files, FILE.npz, or `-` for a summary
    #[arg(short, long, value_name = "OUTPUT", default_value = "-")]
    pub output: PathBuf,
    /// What runs it
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Threads, 0 for all that this process may use
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Compare the results with a folder of output_K.pb files, or FILE.npz|.npy|.pb; exit status 1 where they differ
    #[arg(long, value_name = "FILE|DIR")]
    pub expect: Option<PathBuf>,
    #[command(flatten)]
    pub tolerances: Tolerances,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
#[command(override_usage = "nnc bench <MODEL> [OPTIONS]")]
pub struct Bench {
    /// .onnx, .nn, or a compiled .so or .nncg
    pub model: PathBuf,
    #[command(flatten)]
    pub inputs: Inputs,
    /// What runs it
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Threads, 0 for all that this process may use
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Seconds to measure for
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub duration: f64,
    /// Runs before the measurement
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub warmup: usize,
    /// Write the outputs of the last run
    #[arg(long, value_name = "FILE.npz")]
    pub dump: Option<PathBuf>,
    /// Time of each operation
    #[arg(long, value_name = "FILE.json|FILE.svg", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub profile: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
#[command(override_usage = "nnc verify <MODEL> [OPTIONS]")]
pub struct Verify {
    /// .onnx, .nn, or a compiled .so or .nncg
    pub model: PathBuf,
    #[command(flatten)]
    pub inputs: Inputs,
    /// What is right: `interp`, or expected outputs as FILE.npz or a folder of output_K.pb files
    #[arg(long, value_name = "interp|FILE.npz|DIR", default_value = "interp")]
    pub reference: PathBuf,
    /// What is judged
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Threads, 0 for all that this process may use
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Compare every intermediate value too
    #[arg(long)]
    pub all_nodes: bool,
    /// Find the first operation, or the first pass, that goes wrong
    #[arg(long, value_enum)]
    pub bisect: Option<Bisect>,
    #[command(flatten)]
    pub tolerances: Tolerances,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Debug)]
pub enum Bisect {
    Op,
    Pass,
}

#[derive(Args)]
pub struct Check {
    /// .onnx or .nn
    pub model: PathBuf,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
pub struct Info {
    /// .onnx, .nn, or a compiled .so or .nncg
    pub model: PathBuf,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
pub struct ListOps {
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ListTargets {
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Opt {
    /// .nn or .onnx
    pub model: PathBuf,
    /// Pass to run (repeatable, in order)
    #[arg(long = "pass", value_name = "PASS", required = true)]
    pub passes: Vec<String>,
    /// The .nn file to write
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
pub struct Draw {
    /// .onnx or .nn
    pub model: PathBuf,
    /// .svg, .html, .dot, or `-` for Graphviz text
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
pub struct Grad {
    /// .onnx or .nn
    pub model: PathBuf,
    /// Inputs or parameters to differentiate by
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', required = true)]
    pub wrt: Vec<String>,
    /// The output to differentiate [default: the first]
    #[arg(long, value_name = "OUTPUT")]
    pub of: Option<String>,
    #[arg(short, long, value_name = "GRAD.onnx|.nn")]
    pub output: PathBuf,
    #[command(flatten)]
    pub compilation: Compilation,
}

#[derive(Args)]
pub struct Train {
    /// The .nn file with a `train` block
    pub model: PathBuf,
    /// Give a definition of the file another value (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Where the data's files are [default: beside the .nn file]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Compile the trained model to a library
    #[arg(short, long, value_name = "OUT.so")]
    pub output: Option<PathBuf>,
    /// Write the trained model, or its parameters alone
    #[arg(long, value_name = "OUT.onnx|.npz|.safetensors")]
    pub save: Option<PathBuf>,
    /// Do not train: write the step, whose inputs and outputs of one name are what goes from step to step (NAME and NAME_next in an ONNX file);
    /// its input `step` counts from 1
    #[arg(long, value_name = "STEP.so|.onnx|.nn")]
    pub step: Option<PathBuf>,
    /// Keep checkpoints here
    #[arg(long, value_name = "FOLDER")]
    pub checkpoint: Option<PathBuf>,
    /// Steps from one checkpoint to the next
    #[arg(long, value_name = "STEPS", default_value_t = 500)]
    pub checkpoint_every: u64,
    /// Go on from the last checkpoint: the result has the bits of a run that was never stopped
    #[arg(long)]
    pub resume: bool,
    /// Make this many steps, whatever the file says
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Write what is measured for TensorBoard
    #[arg(long, value_name = "FOLDER")]
    pub tensorboard: Option<PathBuf>,
    /// Draw the curve of the loss
    #[arg(long, value_name = "OUT.svg")]
    pub curve: Option<PathBuf>,
    /// What computes the steps
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Threads, 0 for all that this process may use
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

#[derive(Args)]
pub struct Export {
    /// .nn or .onnx
    pub model: PathBuf,
    #[arg(short, long, value_name = "OUT.onnx|.nn")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct Fmt {
    /// The .nn file
    pub model: PathBuf,
    /// Where to write it
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct Smoke {
    pub library: PathBuf,
    #[arg(long, default_value = "nnc_")]
    pub prefix: String,
    #[arg(long)]
    pub weights: Option<PathBuf>,
}

fn dim(text: &str) -> Result<(String, i64), String> {
    let (name, size) = text.rsplit_once('=').filter(|(n, _)| !n.is_empty()).ok_or("expected NAME=SIZE, such as batch=1")?;
    Ok((name.into(), self::size(size)?))
}

fn shape(text: &str) -> Result<(String, Vec<i64>), String> {
    let (name, sizes) = text.rsplit_once(':').filter(|(n, _)| !n.is_empty()).ok_or("expected NAME:SIZES, such as x:1x3x224x224")?;
    let sizes = if sizes.is_empty() { Ok(vec![]) } else { sizes.split('x').map(size).collect() };
    Ok((name.into(), sizes?))
}

fn size(text: &str) -> Result<i64, String> {
    text.parse().ok().filter(|s| *s >= 0).ok_or_else(|| format!("`{text}` is no size: a size is an integer of at least 0"))
}

/// More threads than this are a typing mistake, and the system may not have them.
const MAX_THREADS: usize = 1024;

fn threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n <= MAX_THREADS).ok_or_else(|| format!("expected a number of threads up to {MAX_THREADS}"))
}

fn tolerance(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|t: &f64| *t >= 0.0).ok_or_else(|| "expected a number of at least 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn names_may_hold_separators() {
        assert_eq!(shape("input:0:1x3x224x224"), Ok(("input:0".into(), vec![1, 3, 224, 224])));
        assert_eq!(shape("x:"), Ok(("x".into(), vec![])));
        assert_eq!(dim("a=b=3"), Ok(("a=b".into(), 3)));
        assert!(threads("1025").is_err() && tolerance("nan").is_err() && tolerance("-1").is_err());
        assert!(shape("x").is_err() && shape(":3").is_err() && shape("x:3x").is_err() && dim("n=-1").is_err());
    }
}
