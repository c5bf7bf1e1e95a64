//! What is supported: each ONNX operator with its opsets, element types, engines and gradient, found by trying the importer, the lowering and
//! the differentiation on the [examples](nnc_frontend::onnx::examples) of the operator table.

use crate::build;
use crate::gradient::gradient;
use nnc_frontend::onnx::examples::{Example, examples};
use nnc_frontend::onnx::ops::{self, Row};
use nnc_ir::{DType, Graph, Result};
use nnc_passes::host;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// An operator, whatever its version.
pub struct Support {
    /// `ai.onnx` spelled out.
    pub domain: String,
    pub name: &'static str,
    /// First and last opset of each version; the last is open where nothing ends it.
    pub opsets: Vec<(i64, Option<i64>)>,
    /// `None` for operators that hold graphs: what these hold decides.
    pub tried: Option<Tried>,
}

/// What came of trying.
#[derive(Default)]
pub struct Tried {
    /// Element types of the first operand on the interpreter and on the JIT.
    pub types: Vec<DType>,
    /// Those that libraries have too.
    pub compiled: Vec<DType>,
    pub gradient: bool,
}

/// Every operator of the table, by domain and name.
pub fn all() -> Result<Vec<Support>> {
    let mut out: BTreeMap<(&str, &str), Support> = BTreeMap::new();
    for r in ops::rows() {
        let domain = if r.domain.is_empty() { "ai.onnx" } else { r.domain };
        let new = || Support { domain: domain.into(), name: r.name, opsets: vec![], tried: None };
        out.entry((domain, r.name)).or_insert_with(new).opsets.push((r.since, last(r)));
    }
    for e in examples()? {
        let domain = if e.row.domain.is_empty() { "ai.onnx" } else { e.row.domain };
        let Some(support) = out.get_mut(&(domain, e.row.name)) else { continue };
        support.tried.get_or_insert_default().add(&e)?;
    }
    out.values_mut().for_each(|s| s.opsets.sort());
    Ok(out.into_values().collect())
}

fn last(r: &Row) -> Option<i64> {
    (r.until != i64::MAX).then_some(r.until)
}

impl Tried {
    fn add(&mut self, e: &Example) -> Result<()> {
        let options = nnc_passes::Options { level: 0, ..Default::default() };
        let target = build::target("x86-64-v3")?;
        // Without an open type there is one to try.
        let open = e.graph(DType::F32).ok().zip(e.graph(DType::I2).ok()).is_some_and(|(a, b)| same(&a, &b));
        for dtype in DType::ALL.into_iter().chain([DType::Str]).filter(|d| !open || *d == e.dtype) {
            let Ok(graph) = e.graph(dtype) else { continue };
            if dtype == DType::F32 {
                self.gradient |= has_gradient(&graph);
            }
            if host::refuse(&graph).is_ok() && nnc_passes::compile(graph, &target, &options, &mut ()).is_ok() {
                insert(&mut self.compiled, dtype);
            }
            insert(&mut self.types, dtype);
        }
        Ok(())
    }
}

fn insert(list: &mut Vec<DType>, dtype: DType) {
    if !list.contains(&dtype) {
        list.push(dtype);
        list.sort_by_key(|d| DType::ALL.iter().position(|x| x == d));
    }
}

/// Whether both take and give the same types.
fn same(a: &Graph, b: &Graph) -> bool {
    let types = |g: &Graph| {
        let inputs = g.inputs.iter().map(|id| g.node(*id).types[0].clone());
        inputs.chain(g.outputs.iter().map(|o| g.ty(o.value).clone())).collect::<Vec<_>>()
    };
    types(a) == types(b)
}

/// Whether the first result of floats can be differentiated by every input of floats.
fn has_gradient(graph: &Graph) -> bool {
    let floats = graph.inputs.iter().map(|id| graph.node(*id)).filter(|n| n.types[0].dtype.is_float());
    let wrt: Vec<String> = floats.map(|n| n.name.to_string()).collect();
    let of = graph.outputs.iter().find(|o| graph.ty(o.value).dtype.is_float()).map(|o| o.name.to_string());
    !wrt.is_empty() && of.is_some_and(|of| gradient(graph.clone(), Some(&of), &wrt).is_ok())
}

impl Support {
    pub fn json(&self) -> Value {
        let opsets: Vec<Value> = self.opsets.iter().map(|(since, until)| json!({"since": since, "until": until})).collect();
        let names = |types: &[DType]| types.iter().map(|d| d.name()).collect::<Vec<_>>();
        let (types, engines, gradient) = match &self.tried {
            None => (Value::Null, Value::Null, Value::Null),
            Some(t) => {
                let engines = json!({"interp": names(&t.types), "jit": names(&t.types), "so": names(&t.compiled)});
                (json!(names(&t.types)), engines, json!(t.gradient))
            }
        };
        json!({"domain": self.domain, "name": self.name, "opsets": opsets, "element_types": types, "engines": engines, "gradient": gradient})
    }

    /// First opsets of the versions, and the last that has the operator.
    pub fn versions(&self) -> String {
        let since: Vec<String> = self.opsets.iter().map(|(since, _)| since.to_string()).collect();
        let gone = self.opsets.last().and_then(|(_, until)| *until);
        format!("{}{}", since.join(", "), gone.map_or(String::new(), |u| format!(" (to {u})")))
    }
}

/// Types that are named together.
const GROUPS: [(&str, &[DType]); 4] = [
    ("floats", &[DType::F32, DType::F64, DType::F16, DType::BF16]),
    (
        "narrow floats",
        &[DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F8E8M0, DType::F6E2M3, DType::F6E3M2, DType::F4E2M1],
    ),
    ("ints", &[DType::I8, DType::I16, DType::I32, DType::I64, DType::U8, DType::U16, DType::U32, DType::U64]),
    ("narrow ints", &[DType::I4, DType::I2, DType::U4, DType::U2]),
];

fn summary(types: &[DType]) -> String {
    let whole: Vec<_> = GROUPS.iter().filter(|(_, group)| group.iter().all(|d| types.contains(d))).collect();
    let grouped = |d: &DType| whole.iter().any(|(_, group)| group.contains(d));
    let names = whole.iter().map(|(name, _)| *name).chain(types.iter().filter(|d| !grouped(d)).map(|d| d.name()));
    names.collect::<Vec<_>>().join(", ")
}

/// The list as a page.
pub fn markdown(list: &[Support]) -> String {
    let mut out = String::from(
        "# Supported ONNX operators\n\n\
         Written by a test from the operator table (`NNC_BLESS=1 cargo test --release -p nnc-tests --test support`): each operator's example was given\n\
         to the importer with every element type of its first operand, lowered, and differentiated. `nnc list-ops --json` says the same.\n\n",
    );
    for (name, group) in GROUPS {
        let _ = writeln!(out, "* *{name}*: {}", group.iter().map(|d| d.name()).collect::<Vec<_>>().join(", "));
    }
    out += "* A version serves up to the next one's first opset. Operators that hold graphs have what these have.\n\
            * Interpreter and JIT have the same types. Where libraries (`.so`) do not, their column says which they have.\n\
            * There are no complex numbers: DFT and STFT have pairs of floats. `tests/schemas.py` holds this list against the schemas of onnx.\n";
    let mut domain = "";
    for s in list {
        if s.domain != domain {
            domain = &s.domain;
            let _ = write!(out, "\n## {domain}\n\n| operator | since opset | element types | `.so` | gradient |\n|---|---|---|---|---|\n");
        }
        let (types, so, gradient) = match &s.tried {
            None => ("as its graphs".to_string(), "as its graphs".to_string(), "as its graphs"),
            Some(t) => {
                let so = match () {
                    _ if t.compiled == t.types => "yes".into(),
                    _ if t.compiled.is_empty() => "no".into(),
                    _ => summary(&t.compiled),
                };
                (summary(&t.types), so, if t.gradient { "yes" } else { "no" })
            }
        };
        let _ = writeln!(out, "| {} | {} | {types} | {so} | {gradient} |", s.name, s.versions());
    }
    out
}
