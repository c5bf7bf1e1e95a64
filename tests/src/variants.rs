//! Cases of the ONNX suite rewritten so that they ask more.

use nnc_frontend::onnx::proto::{DimKind, GraphProto, ModelProto, TensorProto, TypeKind, ValueInfoProto};
use prost::Message;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, PartialEq)]
pub enum Variant {
    /// Every length of every input is a symbol of its own, and outputs are of any shape.
    Dynamic,
    /// Every input is an initializer: the whole case may be folded, and must still give the same.
    Constant,
}

/// Writes the variants of `cases` below `to`, in the suite's layout. Cases without a tensor among their inputs, or with initializers for
/// them, have none; nor have those of several data sets a constant one.
pub fn write(cases: &[PathBuf], variant: Variant, to: &Path) -> Vec<PathBuf> {
    cases.iter().filter_map(|case| rewritten(case, variant, &to.join(case.file_name().expect("a case has a name")))).collect()
}

fn rewritten(case: &Path, variant: Variant, to: &Path) -> Option<PathBuf> {
    let mut model = ModelProto::decode(fs::read(case.join("model.onnx")).expect("a case has a model").as_slice()).expect("a model");
    let graph = model.graph.as_deref_mut()?;
    let sets: Vec<PathBuf> = (0..).map(|k| case.join(format!("test_data_set_{k}"))).take_while(|p| p.is_dir()).collect();
    let given = |k: usize| format!("input_{k}.pb");
    let is_tensor = |v: &ValueInfoProto| matches!(v.r#type.as_ref().and_then(|t| t.value.as_ref()), Some(TypeKind::Tensor(_)));
    let tensors: Vec<usize> = (0..graph.input.len()).filter(|k| is_tensor(&graph.input[*k]) && sets[0].join(given(*k)).is_file()).collect();
    let initialized = graph.initializer.iter().any(|t| graph.input.iter().any(|v| v.name == t.name));
    if tensors.is_empty() || initialized || (variant == Variant::Constant && sets.len() != 1) {
        return None;
    }
    graph.value_info.clear();
    let kept: Vec<usize> = match variant {
        Variant::Dynamic => {
            opened(graph, &tensors);
            (0..graph.input.len()).collect()
        }
        Variant::Constant => (0..graph.input.len()).filter(|k| !tensors.contains(k)).collect(),
    };
    if variant == Variant::Constant {
        for k in &tensors {
            let mut tensor = TensorProto::decode(fs::read(sets[0].join(given(*k))).expect("an input").as_slice()).expect("a tensor");
            tensor.name = graph.input[*k].name.clone();
            graph.initializer.push(tensor);
        }
        graph.input = kept.iter().map(|k| graph.input[*k].clone()).collect();
    }
    for set in &sets {
        let to = to.join(set.file_name().expect("a data set has a name"));
        fs::create_dir_all(&to).expect("a folder");
        let inputs = kept.iter().enumerate().map(|(new, old)| (given(*old), given(new)));
        let outputs = (0..graph.output.len()).map(|k| (format!("output_{k}.pb"), format!("output_{k}.pb")));
        for (from, name) in inputs.chain(outputs).filter(|(from, _)| set.join(from).is_file()) {
            fs::copy(set.join(from), to.join(name)).expect("a copy");
        }
    }
    fs::write(to.join("model.onnx"), model.encode_to_vec()).expect("a model");
    Some(to.into())
}

/// A symbol for each length that the file does not call by a name.
fn opened(graph: &mut GraphProto, tensors: &[usize]) {
    for k in tensors {
        let input = &mut graph.input[*k];
        let Some(TypeKind::Tensor(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) else { continue };
        for (axis, d) in t.shape.iter_mut().flat_map(|s| &mut s.dim).enumerate() {
            if !matches!(&d.value, Some(DimKind::Param(p)) if !p.is_empty()) {
                d.value = Some(DimKind::Param(format!("{}_{axis}", String::from_utf8_lossy(&input.name)).into()));
            }
        }
    }
    for output in &mut graph.output {
        if let Some(TypeKind::Tensor(t)) = output.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.shape = None;
        }
    }
}
