//! THE TABLE: every operation of the tensor IR.
//!
//! A *primitive* says what it needs ([`Primitive::infer`]) and computes ([`Primitive::eval`]); it has one arm in autodiff and one in
//! lowering. A *composite* says how it expands into primitives ([`Composite::expand`]); shape, reference value and gradient follow
//! from that. Passes ask an operation's [`Class`], not its name.

pub mod composite;
pub mod contract;
pub mod control;
pub mod fit;
pub mod gradient;
pub mod image;
pub mod index;
pub mod map;
pub mod movement;
pub mod random;
pub mod reduce;
pub mod sort;
pub mod source;
pub mod text;
pub mod tree;
pub mod window;

use crate::attrs::{Attr, Attrs};
use crate::builder::V;
use crate::error::{Error, Result};
use crate::eval::Env;
use crate::graph::Graph;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::Type;

/// What a pass may ask of a primitive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Element by element, with broadcasting.
    Map,
    /// Folds axes away.
    Reduce,
    /// Sums of products: matmul, convolution.
    Contract,
    /// Pooling windows.
    Window,
    /// Moves elements, computes nothing.
    Move,
    /// Addresses that depend on data.
    Index,
    Sort,
    /// Looks into strings: runs on the host.
    Host,
    /// Holds regions.
    Control,
    /// No operands: inputs, constants, dimension values.
    Source,
}

/// Operand and result types of an operation, and its reference value.
pub trait Primitive {
    fn class(&self) -> Class;

    /// Result types; an error says which operand does not fit and what was expected. `regions` is empty but for control flow.
    fn infer(&self, x: &[Type], regions: &[Graph]) -> Result<Vec<Type>>;

    /// The reference value: obvious, slow, independent of lowering. Floats accumulate in `f64` and round once to the result type.
    fn eval(&self, x: &[Tensor], env: &Env) -> Result<Vec<Tensor>>;
}

/// An operation defined by others.
pub trait Composite {
    /// The same results from primitives (and other composites).
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>>;

    /// Result types, where they are plain to see without an expansion; `None` where they are not.
    fn infer(&self, _x: &[Type]) -> Option<Vec<Type>> {
        None
    }

    /// The reference value, where evaluating the expansion would be absurdly slow; `None` otherwise.
    fn eval(&self, _x: &[Tensor], _env: &Env) -> Option<Result<Vec<Tensor>>> {
        None
    }
}

macro_rules! ops {
    (primitives { $($pv:ident $pname:literal $pty:ty,)* } composites { $($cv:ident $cname:literal $cty:ty,)* }) => {
        /// An operation with its attributes.
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub enum Op {
            /// An input of the graph or region. Its type stands on the node.
            Input,
            /// A scalar function, element by element with broadcasting.
            Map(ScalarFn),
            $($pv($pty),)*
            $($cv($cty),)*
        }

        $(impl From<$pty> for Op { fn from(op: $pty) -> Op { Op::$pv(op) } })*
        $(impl From<$cty> for Op { fn from(op: $cty) -> Op { Op::$cv(op) } })*

        impl Op {
            /// Every name that text may use, in the order of the table.
            pub fn names() -> Vec<&'static str> {
                let mut out: Vec<&'static str> = ScalarFn::ALL.iter().map(|f| f.name()).collect();
                out.extend([$($pname,)* $($cname,)*]);
                out
            }

            pub fn name(&self) -> &'static str {
                match self {
                    Op::Input => "input",
                    Op::Map(f) => f.name(),
                    $(Op::$pv(_) => $pname,)*
                    $(Op::$cv(_) => $cname,)*
                }
            }

            /// Attributes that differ from their defaults, in declaration order.
            pub fn attrs(&self) -> Vec<(&'static str, Attr)> {
                match self {
                    Op::Input | Op::Map(_) => vec![],
                    $(Op::$pv(op) => op.attrs(),)*
                    $(Op::$cv(op) => op.attrs(),)*
                }
            }

            /// The operation called `name`, attributes taken from `get`. `None` for an unknown name.
            pub fn parse(name: &str, get: &dyn Fn(&str) -> Option<Attr>) -> Option<Result<Op>> {
                if let Some(f) = ScalarFn::from_name(name) {
                    return Some(Ok(Op::Map(f)));
                }
                match name {
                    $($pname => Some(<$pty>::from_attrs(get).map(Op::from)),)*
                    $($cname => Some(<$cty>::from_attrs(get).map(Op::from)),)*
                    _ => None,
                }
            }

            /// The attributes that the operation called `name` has.
            pub fn fields(name: &str) -> &'static [&'static str] {
                match name {
                    $($pname => <$pty as Attrs>::FIELDS,)*
                    $($cname => <$cty as Attrs>::FIELDS,)*
                    _ => &[],
                }
            }

            pub fn as_primitive(&self) -> Option<&dyn Primitive> {
                match self {
                    Op::Input => None,
                    Op::Map(f) => Some(f),
                    $(Op::$pv(op) => Some(op),)*
                    $(Op::$cv(_) => None,)*
                }
            }

            pub fn as_composite(&self) -> Option<&dyn Composite> {
                match self {
                    Op::Input | Op::Map(_) => None,
                    $(Op::$pv(_) => None,)*
                    $(Op::$cv(op) => Some(op),)*
                }
            }
        }

        /// A pattern that every composite matches: the last arm of a `match` for what is expanded before.
        #[macro_export]
        macro_rules! composites {
            () => { $($crate::Op::$cv(_))|* };
        }
    };
}

ops! {
    primitives {
        Const "const" source::Const,
        Dims "dims" source::Dims,
        ReadDims "read_dims" source::ReadDims,
        Iota "iota" source::Iota,
        Random "random" random::Random,
        Cast "cast" map::Cast,
        BitCast "bit_cast" map::BitCast,
        Reduce "reduce" reduce::Reduce,
        ArgReduce "arg_reduce" reduce::ArgReduce,
        Cumulate "cumulate" reduce::Cumulate,
        MatMul "matmul" contract::MatMul,
        Conv "conv" contract::Conv,
        ConvTranspose "conv_transpose" contract::ConvTranspose,
        Pool "pool" window::Pool,
        Transpose "transpose" movement::Transpose,
        Reshape "reshape" movement::Reshape,
        Expand "expand" movement::Expand,
        Slice "slice" movement::Slice,
        Concat "concat" movement::Concat,
        Interleave "interleave" movement::Interleave,
        Pad "pad" movement::Pad,
        Pack "pack" movement::Pack,
        Unpack "unpack" movement::Unpack,
        Gather "gather" index::Gather,
        GatherElements "gather_elements" index::GatherElements,
        GatherNd "gather_nd" index::GatherNd,
        ScatterElements "scatter_elements" index::ScatterElements,
        ScatterNd "scatter_nd" index::ScatterNd,
        NonZero "non_zero" index::NonZero,
        TreeLeaves "tree_leaves" tree::TreeLeaves,
        TopK "top_k" sort::TopK,
        StringConcat "string_concat" text::StringConcat,
        StringSplit "string_split" text::StringSplit,
        StringNormalize "string_normalize" text::StringNormalize,
        RegexMatch "regex_match" text::RegexMatch,
        StringRank "string_rank" text::StringRank,
        ImageDecode "image_decode" image::ImageDecode,
        If "if" control::If,
        Loop "loop" control::Loop,
        Scan "scan" control::Scan,
        Gradient "gradient" gradient::Gradient,
        Barrier "barrier" gradient::Barrier,
    }
    composites {
        Activation "activation" composite::activation::Activation,
        Attention "attention" composite::attention::Attention,
        Softmax "softmax" composite::norm::Softmax,
        LogSoftmax "log_softmax" composite::norm::LogSoftmax,
        BatchNorm "batch_norm" composite::norm::BatchNorm,
        LayerNorm "layer_norm" composite::norm::LayerNorm,
        InstanceNorm "instance_norm" composite::norm::InstanceNorm,
        RmsNorm "rms_norm" composite::norm::RmsNorm,
        Lrn "lrn" composite::norm::Lrn,
        WinogradFilter "winograd_filter" composite::filter::WinogradFilter,
        Adam "adam" composite::update::Adam,
        Momentum "momentum" composite::update::Momentum,
        StopGrad "stop_grad" gradient::StopGrad,
    }
}

impl Op {
    /// Whether operands may be strings.
    pub fn takes_text(&self) -> bool {
        matches!(self, Op::Map(ScalarFn::Equal | ScalarFn::Where) | Op::Cast(_) | Op::Transpose(_) | Op::Reshape(_) | Op::Expand(_) | Op::Slice(_))
            || matches!(self, Op::Concat(_) | Op::Gather(_) | Op::GatherElements(_) | Op::GatherNd(_))
            || matches!(self.class(), Some(Class::Host | Class::Control))
    }

    pub fn class(&self) -> Option<Class> {
        self.as_primitive().map(Primitive::class)
    }
}

/// An error unless there are `min..=max` operands.
pub(crate) fn arity(op: &str, x: &[Type], min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&x.len()) {
        return Ok(());
    }
    let want = if min == max {
        min.to_string()
    } else if max == usize::MAX {
        format!("at least {min}")
    } else {
        format!("{min} to {max}")
    };
    Err(Error::arity(format!("{op} takes {want} operands, {} are given", x.len())))
}

/// An error unless all operands have one element type, which is returned.
pub(crate) fn same_dtype(op: &str, x: &[&Type]) -> Result<crate::types::DType> {
    let first = x[0].dtype;
    match x.iter().find(|t| t.dtype != first) {
        None => Ok(first),
        Some(t) => Err(Error::dtype(format!("{op}: operands must have one element type, found {first} and {}", t.dtype))),
    }
}
