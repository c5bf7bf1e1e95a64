//! What there is to know without running anything: `check`, `info`, `list-ops`, `list-targets`.

use crate::args::{Check, Info, ListOps, ListTargets};
use crate::edge::{self, Outcome, is_dash};
use crate::model;
use nnc::ir::target::Gpu;
use nnc::ir::{Graph, Op, Report, Target};
use nnc::nncg::Artefact;
use nnc::support::{self, Support};
use nnc::{Description, Format, Library, Port, Size};
use nnc_frontend::onnx::ops;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Loads and lowers the model: whatever would stop `compile` is in the report.
pub fn check(a: &Check) -> Outcome {
    let model = model::load(&a.model, &a.compilation)?;
    let description = Description::of_graph(&model.graph);
    let nodes = model.graph.len();
    nnc::build::program(model.graph, &model::options(&a.compilation), &mut ())?;
    edge::print(&format!(
        "{}: no problem found ({} inputs, {} outputs, {nodes} nodes)\n",
        a.model.display(),
        description.inputs.len(),
        description.outputs.len()
    ))
}

pub fn info(a: &Info) -> Outcome {
    let data = model::bytes(&a.model)?;
    let report = match Format::of(&a.model, &data[..data.len().min(64)]) {
        Format::Library if is_dash(&a.model) => return Err(Report::from(nnc::Error::input("a library cannot be loaded from stdin")).into()),
        Format::Library => compiled("library", Library::open(&a.model, &a.compilation.prefix)?.description()),
        Format::Nncg => compiled("nncg", &Artefact::read(data)?.description()),
        _ => {
            let m = nnc::parse(&a.model, data, &model::options(&a.compilation), &[])?;
            graph(&m)
        }
    };
    if a.json {
        return edge::print(&format!("{report}\n"));
    }
    edge::print(&readable(&report, 0))
}

fn ports(ports: &[Port]) -> Value {
    let size = |s: &Size| match s {
        Size::Known(n) => json!(n),
        Size::Symbolic(s) => json!(&**s),
    };
    let port = |p: &Port| json!({"name": &*p.name, "dtype": p.dtype.name(), "shape": p.shape.iter().map(size).collect::<Vec<_>>()});
    Value::Array(ports.iter().map(port).collect())
}

fn compiled(format: &str, d: &Description) -> Value {
    let size = |s: &Option<Size>| s.as_ref().map(|s| if let Size::Known(n) = s { json!(n) } else { json!(s.to_string()) });
    json!({
        "name": d.name,
        "format": format,
        "target": d.target,
        "compiler": d.compiler,
        "inputs": ports(&d.inputs),
        "outputs": ports(&d.outputs),
        "workspace_bytes": size(&d.workspace_bytes),
        "weight_bytes": d.weight_bytes,
        "flops": size(&d.flops),
    })
}

fn graph(m: &nnc::Model) -> Value {
    let d = Description::of_graph(&m.graph);
    let (mut count, mut constants, mut bytes) = (BTreeMap::new(), 0usize, 0usize);
    let mut symbols = BTreeSet::new();
    tally(&m.graph, &mut |op| match op {
        Op::Const(c) => {
            constants += c.0.elems();
            bytes += if c.0.splat_element().is_some() { c.0.dtype().bytes() } else { c.0.byte_len() };
        }
        Op::Input => {}
        op => *count.entry(op.name()).or_insert(0usize) += 1,
    });
    for p in &d.inputs {
        symbols.extend(p.shape.iter().filter_map(|s| if let Size::Symbolic(s) = s { Some(s.to_string()) } else { None }));
    }
    let mut out = json!({
        "name": d.name,
        "format": if m.format == Format::Onnx { "onnx" } else { "nn" },
        "inputs": ports(&d.inputs),
        "outputs": ports(&d.outputs),
        "symbols": symbols,
        "nodes": count.values().sum::<usize>(),
        "operations": count,
        "constant_elements": constants,
        "constant_bytes": bytes,
    });
    if m.format == Format::Onnx {
        out["producer"] = json!(m.producer);
        // The default domain is written with its name.
        out["opsets"] = m.opsets.iter().map(|(d, v)| (if d.is_empty() { "ai.onnx".into() } else { d.clone() }, json!(v))).collect();
    }
    out
}

/// Calls `f` for the operation of every live node, bodies of control flow included.
fn tally(g: &Graph, f: &mut dyn FnMut(&Op)) {
    let live = g.live();
    for id in g.ids().filter(|id| live[id.0 as usize]) {
        f(&g.node(id).op);
        g.node(id).regions.iter().for_each(|r| tally(r, f));
    }
}

/// The object as indented text.
fn readable(v: &Value, depth: usize) -> String {
    let mut out = String::new();
    let Value::Object(fields) = v else { return out };
    for (key, value) in fields {
        let _ = write!(out, "{:1$}{2:<18}", "", depth * 2, key.replace('_', " "));
        match value {
            Value::Array(list) if list.iter().any(Value::is_object) => {
                out.push('\n');
                for p in list {
                    let shape: Vec<String> = p["shape"].as_array().into_iter().flatten().map(word).collect();
                    let _ = writeln!(out, "  {}: {}[{}]", word(&p["name"]), word(&p["dtype"]), shape.join(","));
                }
            }
            Value::Array(list) => {
                let _ = writeln!(out, "{}", list.iter().map(word).collect::<Vec<_>>().join(", "));
            }
            Value::Object(_) => {
                out.push('\n');
                out += &readable(value, depth + 1);
            }
            v => {
                let _ = writeln!(out, "{}", word(v));
            }
        }
    }
    out
}

fn word(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "-".into(),
        v => v.to_string(),
    }
}

pub fn list_ops(a: &ListOps) -> Outcome {
    let list = support::all()?;
    if a.json {
        let rows: Vec<Value> = list.iter().map(Support::json).collect();
        return edge::print(&format!("{}\n", json!({"onnx": rows, "nn": Op::names(), "newest_opset": ops::NEWEST_OPSET})));
    }
    let mut out = format!("ONNX operators, to opset {}:\n", ops::NEWEST_OPSET);
    for s in &list {
        let prefix = if s.domain == "ai.onnx" { String::new() } else { format!("{}.", s.domain) };
        let _ = writeln!(out, "  {:40} since {}", format!("{prefix}{}", s.name), s.versions());
    }
    out += "\nOperations of .nn text:\n";
    for names in Op::names().chunks(8) {
        let _ = writeln!(out, "  {}", names.join(" "));
    }
    edge::print(&out)
}

pub fn list_targets(a: &ListTargets) -> Outcome {
    let native = nnc::build::target("native")?.name;
    let about = |name: &str| match name {
        "x86-64" => "every 64-bit x86: SSE2",
        "x86-64-v3" => "AVX2, FMA, BMI2",
        "x86-64-v4" => "AVX-512 F, BW, CD, DQ, VL",
        Target::BOTH => "both, chosen when a file is loaded: what `compile` takes where none is named",
        "aarch64" => "64-bit Arm: Neon",
        "spirv1.5" => "GPUs by Vulkan 1.2: kernels to .spv, models to .nncg, --engine vulkan",
        "nvptx-sm_80" | "nvptx-sm_90" => "NVIDIA GPUs of this and later generations: kernels to .ptx, models to .nncg, --engine cuda",
        _ => "",
    };
    if a.json {
        let rows: Vec<Value> =
            Target::NAMES.iter().chain(Gpu::NAMES).map(|n| json!({"name": n, "about": about(n), "native": *n == native})).collect();
        return edge::print(&format!("{}\n", json!({"native": native, "targets": rows})));
    }
    let mut out = format!("{:12} {} on this machine\n", "native", native);
    for n in Target::NAMES.iter().chain(Gpu::NAMES) {
        let _ = writeln!(out, "{n:12} {}", about(n));
    }
    edge::print(&out)
}
