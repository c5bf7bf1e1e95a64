//! Files to graphs, by suffix; anything else by its first bytes.

use crate::describe::Port;
use crate::nncg;
use crate::options::Options;
use crate::specialize::specialize;
use bytes::Bytes;
use nnc_frontend::{nn, onnx};
use nnc_ir::{Error, Graph, Report, Tensor};
use nnc_passes::differentiate;
use std::collections::BTreeMap;
use std::path::Path;

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Onnx,
    Nn,
    /// A compiled library.
    Library,
    /// A model compiled for GPUs.
    Nncg,
}

impl Format {
    /// By the suffix, or by the first bytes where that says nothing.
    pub fn of(path: &Path, first: &[u8]) -> Format {
        match path.extension().and_then(|e| e.to_str()) {
            Some("onnx") => Format::Onnx,
            Some("nn") => Format::Nn,
            Some("so") => Format::Library,
            Some("nncg") => Format::Nncg,
            _ if first.starts_with(&nncg::MAGIC) => Format::Nncg,
            _ if first.starts_with(b"\x7fELF") => Format::Library,
            // A protobuf is full of control characters, its first byte among them or soon after.
            _ if first.iter().any(|b| *b < 9 || (14..32).contains(b)) => Format::Onnx,
            _ => Format::Nn,
        }
    }
}

/// A model as its author wrote it, but for gradients, which are computed.
#[derive(Clone, Debug)]
pub struct Model {
    pub graph: Graph,
    pub format: Format,
    /// ONNX: the program that wrote the file, and operator sets by domain.
    pub producer: String,
    pub opsets: BTreeMap<String, i64>,
    /// ONNX: the outputs as the file declares them, each of which is some of the graph's.
    pub outputs: Vec<onnx::ModelOutput>,
}

/// Reads a `.onnx` or `.nn` file and fixes the sizes that the options name. Constants stay windows into the mapped file.
pub fn load(path: &Path, options: &Options) -> Result<Model, Report> {
    parse(path, onnx::map(path)?, options, &[])
}

/// As [`load`] from memory; `path` gives the name in messages, the format, and the folder of external data. `values` are contents of
/// inputs, by name, that the model needs to know before the run: shapes and axes.
pub fn parse(path: &Path, data: Bytes, options: &Options, values: &[(String, Tensor)]) -> Result<Model, Report> {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    match Format::of(path, &data[..data.len().min(64)]) {
        Format::Onnx => {
            let shapes = options.shapes.iter().map(|(n, s)| (n.clone(), s.iter().map(|d| (*d).into()).collect())).collect();
            let import = onnx::ImportOptions { dims: options.dims.clone(), shapes, values: values.to_vec(), items: options.items.clone() };
            let folder = path.parent().filter(|_| path.exists()).map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
            let model = onnx::parse(data, &name, folder, &import)?;
            Ok(Model {
                graph: differentiate(model.graph)?,
                format: Format::Onnx,
                producer: model.producer,
                opsets: model.opsets,
                outputs: model.outputs,
            })
        }
        Format::Nn => {
            let text = std::str::from_utf8(&data).map_err(|_| Error::syntax(format!("{name} is no UTF-8 text")))?;
            let graph = differentiate(specialize(nn::parse(text, &name)?, &options.dims, &options.shapes)?)?;
            Ok(Model { graph, format: Format::Nn, producer: String::new(), opsets: BTreeMap::new(), outputs: vec![] })
        }
        Format::Library => Err(Error::input(format!("{name} is a compiled library; a .onnx or .nn model is wanted")).into()),
        Format::Nncg => Err(Error::input(format!("{name} is compiled for GPUs; a .onnx or .nn model is wanted")).into()),
    }
}

/// Names and kinds of the inputs of an ONNX model of which some are no tensors; `None` for any other.
pub fn structured_inputs(path: &Path, data: Bytes) -> Option<Vec<(String, onnx::Kind)>> {
    if Format::of(path, &data[..data.len().min(64)]) != Format::Onnx {
        return None;
    }
    onnx::input_kinds(data).ok().filter(|inputs| inputs.iter().any(|(_, kind)| *kind != onnx::Kind::Tensor))
}

/// The inputs of an ONNX model as it declares them, without a look at its operations; `None` where the file does not say even that.
pub fn declared_inputs(path: &Path, data: Bytes) -> Option<Vec<Port>> {
    if Format::of(path, &data[..data.len().min(64)]) != Format::Onnx {
        return None;
    }
    let inputs = onnx::interface(data).ok()?;
    inputs.into_iter().map(|(name, ty)| ty.map(|ty| Port::new(&name, &ty))).collect()
}
