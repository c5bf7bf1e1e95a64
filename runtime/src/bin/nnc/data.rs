//! Inputs and outputs of runs as files.

use crate::args::{Compilation, Inputs};
use crate::edge::{self, Outcome, is_dash};
use nnc::fill::Fill;
use nnc::ir::{DType, Error, Report, Tensor};
use nnc::npy;
use nnc::{Port, Size};
use nnc_frontend::onnx::call::{Item, Layout, regroup};
use nnc_frontend::onnx::{Kind, ModelOutput, item, tensor};
use std::fmt::Write as _;
use std::io::Cursor;
use std::path::Path;

/// One tensor per input as the command line gives them; `None` where an input is not given.
pub fn inputs(given: &Inputs, ports: &[Port], sizes: &Compilation) -> Outcome<Vec<Option<Tensor>>> {
    let mut out = vec![None; ports.len()];
    for text in &given.inputs {
        let file = Path::new(text);
        if file.is_dir() {
            for (k, slot) in out.iter_mut().enumerate() {
                let file = file.join(format!("input_{k}.pb"));
                if file.exists() {
                    *slot = Some(one(&file)?);
                }
            }
        } else if let Some((name, source)) = text.split_once('=').filter(|_| !file.exists()).and_then(|_| named(text, ports)) {
            let k = position(name, ports)?;
            out[k] = Some(match source.parse::<Fill>() {
                Ok(fill) => fill.tensor(k, ports[k].dtype, &shape(&ports[k], sizes)?)?,
                Err(_) if Path::new(source).exists() || is_dash(Path::new(source)) => one(Path::new(source))?,
                Err(e) => return Err(e.note(format!("there is no file {source} either")).into()),
            });
        } else {
            let arrays = arrays(file)?;
            match <[(Option<String>, Tensor); 1]>::try_from(arrays) {
                Ok([(None, t)]) if ports.len() == 1 => out[0] = Some(t),
                Ok([(None, _)]) => {
                    let why = format!("{text} holds one array, the model takes {} inputs: write NAME={text}", ports.len());
                    return Err(Error::input(why).note(names(ports)).into());
                }
                Ok(one) => by_name(one.into(), ports, &mut out)?,
                Err(many) => by_name(many, ports, &mut out)?,
            }
        }
    }
    Ok(typed(out, ports))
}

/// Arrays of NumPy's files that do not say their type, as the ports say it.
fn typed(arrays: Vec<Option<Tensor>>, ports: &[Port]) -> Vec<Option<Tensor>> {
    arrays.into_iter().zip(ports).map(|(t, p)| t.map(|t| npy::as_codes(t, p.dtype))).collect()
}

/// The inputs of a model with sequences, maps or optionals: from folders of `input_K.pb`, or NAME=FILE.pb. What is not given is an optional that
/// holds nothing.
pub fn items(given: &Inputs, kinds: &[(String, Kind)]) -> Outcome<Vec<Item<Tensor>>> {
    let mut out = vec![Item::Absent; kinds.len()];
    let read = |file: &Path, kind: Kind| -> Outcome<Item<Tensor>> {
        Ok(item::parse(edge::read(file)?.into(), kind).map_err(|e| e.note(format!("in {}", file.display())))?)
    };
    for text in &given.inputs {
        let folder = Path::new(text);
        if folder.is_dir() {
            for (k, (slot, (_, kind))) in out.iter_mut().zip(kinds).enumerate() {
                let file = folder.join(format!("input_{k}.pb"));
                if file.exists() {
                    *slot = read(&file, *kind)?;
                }
            }
            continue;
        }
        let named = kinds.iter().enumerate().find_map(|(k, (name, kind))| Some((k, *kind, text.strip_prefix(name.as_str())?.strip_prefix('=')?)));
        let Some((k, kind, file)) = named else {
            return Err(Error::input(format!("{text}: a model with sequences, maps or optionals takes a folder, or NAME=FILE.pb")).into());
        };
        out[k] = if kind == Kind::Tensor { Item::Tensor(one(Path::new(file))?) } else { read(Path::new(file), kind)? };
    }
    if let Some(((name, kind), _)) = kinds.iter().zip(&out).find(|((_, kind), item)| *kind != Kind::Optional && matches!(item, Item::Absent)) {
        let what = match kind {
            Kind::Tensor => "tensor",
            Kind::Map => "map",
            _ => "sequence",
        };
        return Err(Error::input(format!("the input `{name}`, a {what}, is not given")).into());
    }
    Ok(out)
}

/// As [`inputs`], with what is not given made up from seed 0: for measurements.
pub fn inputs_or_random(given: &Inputs, ports: &[Port], sizes: &Compilation) -> Outcome<Vec<Option<Tensor>>> {
    let mut out = inputs(given, ports, sizes)?;
    if given.inputs.is_empty() {
        for (k, slot) in out.iter_mut().enumerate() {
            *slot = Some(Fill::Random(0).tensor(k, ports[k].dtype, &shape(&ports[k], sizes)?)?);
        }
    }
    Ok(out)
}

/// Splits NAME=SOURCE; names may hold `=`, so a split at which the name is an input's wins.
fn named<'a>(text: &'a str, ports: &[Port]) -> Option<(&'a str, &'a str)> {
    let splits = || text.match_indices('=').map(|(i, _)| (&text[..i], &text[i + 1..]));
    splits().find(|(name, _)| ports.iter().any(|p| &*p.name == *name)).or_else(|| splits().next())
}

fn position(name: &str, ports: &[Port]) -> Outcome<usize> {
    Ok(ports.iter().position(|p| &*p.name == name).ok_or_else(|| Error::input(format!("the model has no input `{name}`")).note(names(ports)))?)
}

fn names(ports: &[Port]) -> String {
    let list: Vec<String> = ports.iter().map(|p| format!("`{}`: {}", p.name, p.type_text())).collect();
    format!("its inputs are {}", list.join(", "))
}

/// Arrays of a .npz: by the inputs' names, or in order where none of them is one (numpy's arr_0, arr_1...).
fn by_name(arrays: Vec<(Option<String>, Tensor)>, ports: &[Port], out: &mut [Option<Tensor>]) -> Outcome {
    let known = |n: &Option<String>| ports.iter().any(|p| Some(&*p.name) == n.as_deref());
    let in_order = arrays.iter().all(|(n, _)| !known(n) && n.as_deref().is_some_and(|n| n.starts_with("arr_"))) && arrays.len() <= ports.len();
    for (i, (name, t)) in arrays.into_iter().enumerate() {
        let k = if in_order { i } else { position(name.as_deref().unwrap_or_default(), ports)? };
        out[k] = Some(t);
    }
    Ok(())
}

/// The one array of a file.
fn one(file: &Path) -> Outcome<Tensor> {
    match <[_; 1]>::try_from(arrays(file)?) {
        Ok([(_, t)]) => Ok(t),
        Err(many) => Err(Error::input(format!("{} holds {} arrays, one is wanted", file.display(), many.len())).into()),
    }
}

/// The arrays of a file, which says itself what it is: .npz, .npy or an ONNX TensorProto. Only those of a .npz have names.
fn arrays(file: &Path) -> Outcome<Vec<(Option<String>, Tensor)>> {
    let bytes = edge::read(file)?;
    let note = |e: Error| e.note(format!("in {}", file.display()));
    if bytes.starts_with(b"PK") {
        let arrays = npy::read_npz(Cursor::new(bytes)).map_err(note)?;
        return Ok(arrays.into_iter().map(|(n, t)| (Some(n), t)).collect());
    }
    let t = if bytes.starts_with(b"\x93NUMPY") { npy::from_npy(&bytes) } else { tensor::parse(bytes.into()).map(|(_, t)| t) };
    Ok(vec![(None, t.map_err(note)?)])
}

/// The shape that --shape and --dim give an input.
pub fn shape(port: &Port, sizes: &Compilation) -> Outcome<Vec<usize>> {
    let given = sizes.shapes.iter().find(|(n, _)| **n == *port.name);
    let all: Option<Vec<i64>> = match given {
        Some((_, shape)) => Some(shape.clone()),
        None => port
            .shape
            .iter()
            .map(|s| match s {
                Size::Known(n) => Some(*n),
                Size::Symbolic(s) => sizes.dims.iter().find(|(n, _)| **n == **s).map(|(_, v)| *v),
            })
            .collect(),
    };
    let unknown = || {
        Error::input(format!("the input `{}` is {}: its size must be given to make numbers up", port.name, port.type_text()))
            .note("fix the symbols with --dim NAME=SIZE, or the shape with --shape NAME:2x3x4")
    };
    all.and_then(|s| s.into_iter().map(|d| usize::try_from(d).ok()).collect()).ok_or_else(|| unknown().into())
}

/// Expected outputs: a folder of output_K.pb, or a file. `None` where one is not there. In a folder, what `layout` says is a sequence, map or
/// optional is one file, which must be made of as many tensors.
pub fn expected(from: &Path, ports: &[Port], layout: &[ModelOutput]) -> Outcome<Vec<Option<Tensor>>> {
    let mut out = vec![None; ports.len()];
    if from.is_dir() && !layout.is_empty() {
        out.clear();
        for (k, o) in layout.iter().enumerate() {
            let file = from.join(format!("output_{k}.pb"));
            if !file.exists() {
                out.extend(o.layout.tensors().iter().map(|()| None));
                continue;
            }
            let item = item::parse(edge::read(&file)?.into(), o.kind).map_err(|e| e.note(format!("in {}", file.display())))?;
            if item.layout() != o.layout {
                edge::say(&format!("output `{}` differs: it is {}, expected {}", o.name, o.layout.kind(), item.kind()));
                return Err(edge::Failure::Different);
            }
            out.extend(item.tensors().iter().cloned().map(Some));
        }
        // A model may have outputs that are nothing at all: that they are is what was to be seen.
        return Ok(out);
    }
    if from.is_dir() {
        for (k, slot) in out.iter_mut().enumerate() {
            let file = from.join(format!("output_{k}.pb"));
            if file.exists() {
                *slot = Some(one(&file)?);
            }
        }
    } else {
        let mut arrays = arrays(from)?;
        if arrays.len() == 1 && ports.len() == 1 {
            out[0] = arrays.pop().map(|(_, t)| t);
        } else {
            by_name(arrays, ports, &mut out).map_err(|f| match f {
                edge::Failure::Report(Report(e)) => Report(e.into_iter().map(|e| e.note("the arrays are held against the outputs")).collect()).into(),
                f => f,
            })?;
        }
    }
    if out.iter().all(Option::is_none) {
        return Err(Error::input(format!("{} holds no expected output", from.display())).into());
    }
    Ok(typed(out, ports))
}

/// Writes outputs to a folder, a .npz, or as a summary. In a folder, what `layout` says is a sequence, map or optional is one file.
pub fn write(to: &Path, ports: &[Port], outputs: &[Tensor], layout: &[ModelOutput]) -> Outcome {
    if is_dash(to) {
        return edge::print(&summary(ports, outputs));
    }
    let suffix = to.extension().and_then(|e| e.to_str());
    if matches!(suffix, Some("npz" | "npy")) && outputs.iter().any(|t| t.dtype() == DType::Str) {
        return Err(Error::unsupported("strings are written to a folder (of .pb files), not to NumPy's formats").into());
    }
    match suffix {
        Some("npz") => edge::write(to, &npz(ports, outputs)?),
        Some("npy") if outputs.len() == 1 => edge::write(to, &npy::to_npy(&outputs[0])),
        Some("npy") => Err(Error::input(format!("a .npy file holds one array, the model has {} outputs: write a .npz", outputs.len())).into()),
        _ => {
            std::fs::create_dir_all(to).map_err(|e| Error::io(format!("cannot make the folder {}: {e}", to.display())))?;
            let layouts: Vec<Layout> = layout.iter().map(|o| o.layout.clone()).collect();
            for (k, (item, o)) in regroup(&layouts, outputs).iter().zip(layout).enumerate() {
                edge::write(&to.join(format!("output_{k}.pb")), &item::encode(&o.name, o.kind, item))?;
            }
            for (k, (t, port)) in outputs.iter().zip(ports).enumerate().filter(|_| layout.is_empty()) {
                edge::write(&to.join(format!("output_{k}.pb")), &tensor::encode(&port.name, t))?;
            }
            Ok(())
        }
    }
}

/// The bytes of a .npz with the outputs in order, named.
pub fn npz(ports: &[Port], outputs: &[Tensor]) -> Outcome<Vec<u8>> {
    let name = |k: usize, p: &Port| if p.name.is_empty() { format!("output_{k}") } else { p.name.to_string() };
    let arrays: Vec<(String, Tensor)> = outputs.iter().zip(ports).enumerate().map(|(k, (t, p))| (name(k, p), t.clone())).collect();
    let mut file = Cursor::new(vec![]);
    npy::write_npz(&mut file, &arrays)?;
    Ok(file.into_inner())
}

/// A line per output: range, mean and the first elements.
fn summary(ports: &[Port], outputs: &[Tensor]) -> String {
    let mut out = String::new();
    for (t, port) in outputs.iter().zip(ports) {
        let _ = write!(out, "{}: {}", port.name, t.ty());
        if let Some(texts) = t.texts() {
            let more = if texts.len() > 8 { " ..." } else { "" };
            let _ = writeln!(out, "  [{}{more}]", texts.iter().take(8).map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" "));
            continue;
        }
        let x = t.to_f64s();
        if x.len() > 1 && t.dtype() != DType::Bool {
            let (min, max) = x.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
            let _ = write!(out, "  min {}  max {}  mean {}", number(min), number(max), number(x.iter().sum::<f64>() / x.len() as f64));
        }
        let first: Vec<String> = x.iter().take(8).map(|v| number(*v)).collect();
        let _ = writeln!(out, "  [{}{}]", first.join(" "), if x.len() > 8 { " ..." } else { "" });
    }
    out
}

/// Six significant digits.
fn number(x: f64) -> String {
    if x == x.trunc() && x.abs() < 1e15 {
        return format!("{x}");
    }
    if x.is_finite() && (1e-3..1e6).contains(&x.abs()) {
        let digits = (5 - x.abs().log10().floor() as i32).clamp(0, 8) as usize;
        return format!("{x:.digits$}");
    }
    format!("{x:.5e}")
}
