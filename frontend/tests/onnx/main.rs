//! ONNX files, made in code, through the importer: what they mean (numbers worked out by hand, by the reference interpreter) and what
//! is refused, and how.

mod control;
mod errors;
mod external;
mod families;
mod hostile;
mod import;
mod model;
mod narrow;
mod old;
mod open;
mod operators;
mod random;
mod sequence;
mod table;
mod tensors;
mod text;
mod trees;
