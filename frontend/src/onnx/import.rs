//! From the bytes of a file to a graph: what the model as a whole says (versions, functions, inputs, outputs).

use super::call::{Item, Layout, dtype_of};
use super::file::{self, External};
use super::ops::newest;
use super::proto::*;
use super::scan;
use super::scope::{Context, Scope};
use bytes::Bytes;
use nnc_ir::{Builder, DType, Dim, Error, Graph, Report, Result, Tensor, Type, V};
use prost::Message;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// What the caller fixes before the import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Values for symbolic dimensions, by the symbol's name.
    pub dims: Vec<(String, i64)>,
    /// Shapes for inputs, by name. They may fix what the file leaves open, not change what it says.
    pub shapes: Vec<(String, Vec<Dim>)>,
    /// Contents for inputs, by name: the graph keeps the input but computes with these (sizes and axes that the file wants fed).
    pub values: Vec<(String, Tensor)>,
    /// What inputs that are sequences, maps or optionals are made of, by name. The graph has an input for each tensor: `x[0]`, `x[1]`... for a
    /// sequence, `x.keys` and `x.values` for a map, `x` for an optional tensor.
    pub items: Vec<(String, Item<Type>)>,
}

/// What a file declares an input or output to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Tensor,
    /// Of tensors, or of maps.
    Sequence,
    Map,
    /// Of a tensor or a sequence.
    Optional,
}

/// An output of the model: how many of the graph's outputs it is.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelOutput {
    pub name: String,
    pub kind: Kind,
    pub layout: Layout,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Model {
    pub graph: Graph,
    pub outputs: Vec<ModelOutput>,
    pub ir_version: i64,
    /// Name and version of the program that wrote the file.
    pub producer: String,
    /// Operator sets by domain (empty: ai.onnx).
    pub opsets: BTreeMap<String, i64>,
    pub metadata: BTreeMap<String, String>,
}

/// The newest file format that is understood.
const NEWEST_IR: i64 = 14;

/// Reads a model file. Tensors stay windows into the mapped file, or into external data files below its folder.
pub fn load(path: &Path, options: &ImportOptions) -> Result<Model, Report> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    parse(file::map(path)?, &name, Some(folder), options)
}

/// Reads a model from memory. `file` is what messages call it; external data lies below `folder`, if any.
pub fn parse(data: Bytes, file: &str, folder: Option<&Path>, options: &ImportOptions) -> Result<Model, Report> {
    let in_file = |e: Error| Error::new(e.code(), format!("{file}: {}", e.message()));
    scan::check(&data, scan::Kind::Model).map_err(in_file)?;
    let proto = ModelProto::decode(data).map_err(|e| in_file(Error::syntax(format!("no ONNX protobuf: {e}"))))?;
    let graph = proto.graph.as_deref().ok_or_else(|| in_file(Error::syntax("the file holds no graph")))?;
    let b = Builder::new(text(&graph.name));
    if proto.ir_version > NEWEST_IR {
        b.error(in_file(Error::unsupported(format!("IR version {} is newer than {NEWEST_IR}, the newest known", proto.ir_version))));
    }
    let opsets = opsets(&proto.opset_import, &b);
    let fixed = !(options.dims.is_empty() && options.shapes.is_empty() && options.values.is_empty());
    let cx = Context::new(&proto, External::new(folder).map_err(in_file)?, fixed, &b);
    let mut scope = Scope::main(&cx, &b, file, &opsets);
    inputs(&mut scope, graph, options);
    scope.graph(graph);
    let outputs = outputs(&scope, graph);
    drop(scope);
    let mut opsets = opsets;
    // Files before IR version 3 have no imports.
    opsets.entry(String::new()).or_insert(1);
    let mut graph = b.finish()?;
    graph.keep_checks();
    Ok(Model {
        graph,
        outputs,
        ir_version: proto.ir_version,
        producer: format!("{} {}", text(&proto.producer_name), text(&proto.producer_version)).trim().to_string(),
        opsets,
        metadata: proto.metadata_props.iter().map(|p| (text(&p.key), text(&p.value))).collect(),
    })
}

/// Names and types of the inputs that no initializer gives, without a look at the nodes: what must be fed to a model whose import
/// depends on what is fed ([`ImportOptions::values`]). `None`: a type that the file leaves open or that is no tensor.
pub fn interface(data: Bytes) -> Result<Vec<(String, Option<Type>)>> {
    scan::check(&data, scan::Kind::Model)?;
    let proto = ModelProto::decode(data).map_err(|e| Error::syntax(format!("no ONNX protobuf: {e}")))?;
    let graph = proto.graph.as_deref().ok_or_else(|| Error::syntax("the file holds no graph"))?;
    Ok(required(graph).into_iter().map(|i| (text(&i.name), declared_type(i))).collect())
}

/// The type that the file gives a value, lengths that it leaves open being symbols; `None` where it gives no rank, or no tensor.
pub(super) fn declared_type(info: &ValueInfoProto) -> Option<Type> {
    let d = declared(info).ok()?;
    let open = |(i, d): (usize, Option<Dim>)| d.unwrap_or_else(|| Dim::sym(format!("{}_{i}", text(&info.name))));
    Some(Type::new(d.dtype, d.shape?.into_iter().enumerate().map(open).collect::<Vec<_>>()))
}

/// Names of the inputs that a run is given, in order: those of the graph that are no initializers.
pub fn input_names(path: &Path) -> Result<Vec<String>> {
    let data = file::map(path)?;
    scan::check(&data, scan::Kind::Model)?;
    let proto = ModelProto::decode(data).map_err(|e| Error::syntax(format!("no ONNX protobuf: {e}")))?;
    Ok(proto.graph.iter().flat_map(|g| required(g)).map(|i| text(&i.name)).collect())
}

/// Names and kinds of the inputs that a run is given.
pub fn input_kinds(data: Bytes) -> Result<Vec<(String, Kind)>> {
    scan::check(&data, scan::Kind::Model)?;
    let proto = ModelProto::decode(data).map_err(|e| Error::syntax(format!("no ONNX protobuf: {e}")))?;
    Ok(proto.graph.iter().flat_map(|g| required(g)).map(|i| (text(&i.name), kind(i))).collect())
}

fn kind(info: &ValueInfoProto) -> Kind {
    match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeKind::Sequence(_)) => Kind::Sequence,
        Some(TypeKind::Map(_)) => Kind::Map,
        Some(TypeKind::Optional(_)) => Kind::Optional,
        _ => Kind::Tensor,
    }
}

/// The graph's inputs that no initializer gives.
fn required(graph: &GraphProto) -> Vec<&ValueInfoProto> {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| Some(&*s.values.as_ref()?.name));
    let given: HashSet<&[u8]> = graph.initializer.iter().map(|t| &*t.name).chain(sparse).collect();
    graph.input.iter().filter(|i| !given.contains(&*i.name)).collect()
}

/// Versions by domain; `ai.onnx` is the empty domain.
pub(super) fn opsets(imports: &[OperatorSetIdProto], b: &Builder) -> BTreeMap<String, i64> {
    let mut out = BTreeMap::new();
    for import in imports {
        let domain = domain(&import.domain);
        if let Some(known) = newest(&domain).filter(|known| import.version > *known) {
            let of = if domain.is_empty() { String::new() } else { format!(" of `{domain}`") };
            b.error(Error::unsupported(format!("opset {}{of} is newer than {known}, the newest known", import.version)));
        }
        if out.insert(domain.clone(), import.version).is_some_and(|v| v != import.version) {
            b.error(Error::name(format!("two versions of operator set `{domain}` are imported")));
        }
    }
    out
}

/// A domain's name, `ai.onnx` being the empty one.
pub(super) fn domain(name: &[u8]) -> String {
    if name == b"ai.onnx" { String::new() } else { text(name) }
}

/// Declares the graph's inputs: those that no initializer gives.
fn inputs<'m: 'g, 'g>(scope: &mut Scope<'m, 'g>, graph: &'m GraphProto, options: &ImportOptions) {
    let b = scope.b;
    for (name, _) in &options.items {
        if !required(graph).iter().any(|i| text(&i.name) == *name) {
            b.error(Error::input(format!("the model has no input `{name}`")));
        }
    }
    let all = required(graph);
    let inputs: Vec<&ValueInfoProto> = all.iter().filter(|i| kind(i) == Kind::Tensor).copied().collect();
    let declared: Vec<Option<Declared>> = inputs.iter().map(|i| declared(i).map_err(|e| b.error(e)).ok()).collect();
    let fixed = Fixed::new(&inputs, &declared, options, b);
    let mut declared = declared.into_iter();
    for info in all {
        if kind(info) != Kind::Tensor {
            scope.define(&info.name, structured(b, info, options));
            continue;
        }
        let declared = declared.next().flatten();
        let name = text(&info.name);
        let value = options.values.iter().find(|(n, _)| *n == name).map(|(_, t)| t);
        let ty = declared.map(|d| fixed.ty(&name, d, value)).transpose();
        let v = match ty {
            Ok(None) => b.poison(),
            Ok(Some(ty)) => {
                let input = b.input(&name, ty.clone());
                match value {
                    Some(t) if t.dtype() == ty.dtype => b.constant(t.clone()),
                    Some(t) => {
                        b.error(Error::input(format!("input `{name}` is {ty}, the value given for it is {}", t.ty())));
                        b.poison()
                    }
                    None => input,
                }
            }
            Err(e) => {
                b.error(e);
                b.poison()
            }
        };
        scope.define(&info.name, Item::Tensor(v));
    }
}

/// An input that is a sequence, a map or an optional, as the options say.
fn structured<'g>(b: &'g Builder, info: &ValueInfoProto, options: &ImportOptions) -> Item<V<'g>> {
    let (name, kind) = (text(&info.name), kind(info));
    let given = options.items.iter().find(|(n, _)| *n == name).map(|(_, item)| item);
    match (given, kind) {
        (Some(Item::List(list)), Kind::Sequence | Kind::Optional) => {
            Item::List(list.iter().enumerate().map(|(i, ty)| b.input(format!("{name}[{i}]"), ty.clone())).collect())
        }
        (Some(Item::Map(types)), Kind::Map) => {
            let [keys, values] = map_names(&name);
            Item::Map([b.input(keys, types[0].clone()), b.input(values, types[1].clone())])
        }
        (Some(Item::Tensor(ty)), Kind::Optional) => Item::Tensor(b.input(&name, ty.clone())),
        (Some(Item::Absent), Kind::Optional) => Item::Absent,
        (Some(other), _) => {
            let kind = if kind == Kind::Map { "map" } else { "sequence" };
            b.error(Error::input(format!("input `{name}` is a {kind}, {} is given", other.kind())));
            Item::Tensor(b.poison())
        }
        (None, kind) => {
            let what = match kind {
                Kind::Map => "a map: how many keys it has, and of which types,",
                Kind::Sequence => "a sequence: how long it is",
                _ => "an optional: whether it holds something",
            };
            let e = Error::unsupported(format!("input `{name}` is {what} must be known when the model is compiled"));
            b.error(e.note("`nnc run` takes it from the files that it is given"));
            Item::Tensor(b.poison())
        }
    }
}

/// What the two tensors of a map are called.
pub(super) fn map_names(name: &str) -> [String; 2] {
    ["keys", "values"].map(|part| format!("{name}.{part}"))
}

/// What a file says of an input. `None`: a rank, or a length, that it leaves open.
struct Declared {
    dtype: DType,
    shape: Option<Vec<Option<Dim>>>,
}

fn declared(info: &ValueInfoProto) -> Result<Declared> {
    let name = text(&info.name);
    let kind = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeKind::Tensor(t)) => {
            let dtype = dtype_of(t.elem_type.into()).map_err(|e| Error::new(e.code(), format!("input `{name}`: {}", e.message())))?;
            return Ok(Declared { dtype, shape: t.shape.as_ref().map(|s| s.dim.iter().map(dim).collect()) });
        }
        None => return Err(Error::syntax(format!("input `{name}` has no type"))),
        Some(TypeKind::Sequence(_)) => "sequence",
        Some(TypeKind::Map(_)) => "map",
        Some(TypeKind::Opaque(_)) => "opaque value",
        Some(TypeKind::SparseTensor(_)) => "sparse tensor",
        Some(TypeKind::Optional(_)) => "optional",
    };
    Err(Error::unsupported(format!("input `{name}` is a {kind}; only dense tensors are supported")))
}

/// A declared length. Negative ones, empty names and Paddle's `?` leave it open.
fn dim(d: &Dimension) -> Option<Dim> {
    match d.value.as_ref()? {
        DimKind::Value(n) => (*n >= 0).then_some(Dim::Const(*n)),
        DimKind::Param(p) => (!p.is_empty() && &**p != b"?").then(|| Dim::sym(text(p))),
    }
}

/// What the options say of the inputs' sizes, checked against the file.
struct Fixed {
    symbols: BTreeMap<String, Dim>,
    shapes: BTreeMap<String, Vec<Dim>>,
    /// Names that symbols for open lengths must not take.
    taken: HashSet<String>,
}

impl Fixed {
    fn new(inputs: &[&ValueInfoProto], declared: &[Option<Declared>], options: &ImportOptions, b: &Builder) -> Fixed {
        let mut fixed = Fixed { symbols: BTreeMap::new(), shapes: BTreeMap::new(), taken: HashSet::new() };
        for d in declared.iter().flatten().filter_map(|d| d.shape.as_ref()).flatten().flatten() {
            d.symbols(&mut |s| {
                fixed.taken.insert(s.to_string());
            });
        }
        let names: Vec<String> = inputs.iter().map(|i| text(&i.name)).collect();
        let unknown = |kind: &str, name: &str, known: &[String]| {
            Error::input(format!("the model has no {kind} `{name}`"))
                .note(format!("it has {}", if known.is_empty() { "none".into() } else { known.join(", ") }))
        };
        // Open lengths can be fixed by the names that they are going to have.
        let mut symbols: Vec<String> = fixed.taken.iter().cloned().collect();
        for (name, d) in names.iter().zip(declared) {
            let open = d.iter().filter_map(|d| d.shape.as_ref()).flatten().enumerate().filter(|(_, d)| d.is_none());
            symbols.extend(open.map(|(i, _)| fixed.open_name(name, i)));
        }
        symbols.sort();
        for (name, value) in &options.dims {
            if !symbols.contains(name) {
                b.error(unknown("symbolic dimension", name, &symbols));
            } else if *value < 0 {
                b.error(Error::input(format!("dimension {name} cannot be {value}")));
            }
            fixed.symbols.insert(name.clone(), Dim::Const(*value));
        }
        let values = options.values.iter().map(|(n, t)| (n, t.shape().iter().map(|d| Dim::from(*d)).collect()));
        for (name, shape) in options.shapes.iter().map(|(n, s)| (n, s.clone())).chain(values) {
            let Some(i) = names.iter().position(|n| n == name) else {
                b.error(unknown("input", name, &names));
                continue;
            };
            if let Some(declared) = declared[i].as_ref().and_then(|d| d.shape.as_ref()) {
                fixed.unify(name, declared, &shape, b);
            }
            fixed.shapes.insert(name.clone(), shape);
        }
        fixed
    }

    /// Learns the values of symbols from a shape given for an input.
    fn unify(&mut self, name: &str, declared: &[Option<Dim>], given: &[Dim], b: &Builder) {
        if declared.len() != given.len() {
            b.error(Error::input(format!("input `{name}` has rank {}, the shape given for it has {}", declared.len(), given.len())));
            return;
        }
        for (i, (d, g)) in declared.iter().zip(given).enumerate() {
            let Some(d) = d else { continue };
            let known = match d.as_sym() {
                None => Some(d.clone()),
                Some(s) => self.symbols.insert(s.to_string(), g.clone()),
            };
            if known.as_ref().is_some_and(|k| k != g) {
                b.error(Error::input(format!("axis {i} of input `{name}` is {d} = {}, it cannot be {g}", known.expect("just seen"))));
            }
        }
    }

    /// The symbol for an axis whose length the file leaves open.
    fn open_name(&self, input: &str, axis: usize) -> String {
        let mut name = format!("{input}_{axis}");
        while self.taken.contains(&name) {
            name.push('_');
        }
        name
    }

    fn ty(&self, name: &str, declared: Declared, value: Option<&Tensor>) -> Result<Type> {
        if let Some(t) = value {
            return Ok(t.ty().with_dtype(declared.dtype));
        }
        if let Some(shape) = self.shapes.get(name) {
            return Ok(Type::new(declared.dtype, shape.clone()));
        }
        let Some(shape) = declared.shape else {
            return Err(Error::unsupported(format!("the rank of input `{name}` is not known")).note(format!("give it with --shape {name}:DIMS")));
        };
        let open = |i: usize| Dim::sym(self.open_name(name, i));
        let dims = shape.into_iter().enumerate().map(|(i, d)| d.unwrap_or_else(|| open(i)));
        Ok(Type::new(declared.dtype, dims.map(|d| d.substitute(&|s| self.symbols.get(s).cloned())).collect::<Vec<_>>()))
    }
}

/// Names the graph's outputs and holds their element types against what the file declares. A sequence is an output for each element.
fn outputs<'m: 'g, 'g>(scope: &Scope<'m, 'g>, graph: &'m GraphProto) -> Vec<ModelOutput> {
    let b = scope.b;
    b.at(nnc_ir::Loc::Unknown);
    if graph.output.is_empty() {
        b.error(Error::syntax("the graph has no outputs"));
    }
    let mut out = vec![];
    for info in &graph.output {
        let name = text(&info.name);
        let Some(item) = scope.get(&info.name) else {
            b.error(Error::name(format!("output `{name}` is computed by no node")));
            continue;
        };
        if let (Some(TypeKind::Tensor(t)), Item::Tensor(v)) = (info.r#type.as_ref().and_then(|t| t.value.as_ref()), &item)
            && t.elem_type != 0
            && t.elem_type != v.ty().dtype.abi_code()
            && !v.is_poison()
        {
            let declared = dtype_of(t.elem_type.into()).map_or_else(|_| format!("type {}", t.elem_type), |d| d.to_string());
            b.error(Error::dtype(format!("output `{name}` is declared {declared} and computed as {}", v.ty())));
        }
        let fits = match (kind(info), &item) {
            (Kind::Tensor, item) => info.r#type.is_none() || matches!(item, Item::Tensor(_)),
            (Kind::Sequence, Item::Map([keys, values])) => values.ty().rank() == keys.ty().rank() + 1,
            (Kind::Sequence, item) => matches!(item, Item::List(_)),
            (Kind::Map, Item::Map([keys, values])) => values.ty().rank() == keys.ty().rank(),
            (Kind::Map, _) => false,
            (Kind::Optional, _) => true,
        };
        if !fits && !item.tensors().iter().any(|v| v.is_poison()) {
            b.error(Error::dtype(format!("output `{name}` is computed as {}, which is not what it is declared", item.kind())));
        }
        match &item {
            Item::List(list) => list.iter().enumerate().for_each(|(i, v)| b.output(format!("{name}[{i}]"), *v)),
            Item::Map(pair) => map_names(&name).iter().zip(pair).for_each(|(n, v)| b.output(n, *v)),
            item => item.tensors().iter().for_each(|v| b.output(&name, *v)),
        }
        let kind = match &item {
            Item::Map([_, values]) if info.r#type.is_none() && values.ty().rank() == 1 => Kind::Map,
            Item::List(_) | Item::Map(_) if info.r#type.is_none() => Kind::Sequence,
            _ => kind(info),
        };
        out.push(ModelOutput { name, kind, layout: item.layout() });
    }
    out
}
