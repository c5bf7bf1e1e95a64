//! AttributeProto to attribute values.

use super::call::Attr;
use super::proto::*;
use super::scope::{Body, Place, Scope};
use super::tensor;
use nnc_ir::{Error, Loc, Result};
use std::rc::Rc;

/// The attribute that is meant: inside a function an attribute may stand for one of the call's. `None` where that is not given.
pub fn resolve<'m>(place: &Place<'m>, a: &'m AttributeProto) -> Option<&'m AttributeProto> {
    if a.ref_attr_name.is_empty() { Some(a) } else { place.attrs.get(&*a.ref_attr_name).copied() }
}

/// The value of an attribute of the node at `loc`; `None` for a reference to an attribute that the function's caller left out.
pub fn value<'m: 'g, 'g>(scope: &Scope<'m, 'g>, a: &'m AttributeProto, loc: &Loc) -> Result<Option<Attr<'g>>> {
    let Some(a) = resolve(&scope.place, a) else { return Ok(None) };
    let missing = || Error::syntax("the file gives no value");
    let strings = || a.strings.iter().map(|s| text(s)).collect();
    Ok(Some(match kind(a) {
        attribute_type::FLOAT => Attr::Float(a.f.ok_or_else(missing)?.into()),
        attribute_type::INT => Attr::Int(a.i.ok_or_else(missing)?),
        attribute_type::STRING => Attr::Str(text(a.s.as_ref().ok_or_else(missing)?)),
        attribute_type::TENSOR => Attr::Tensor(tensor::decode(a.t.as_deref().ok_or_else(missing)?, &scope.cx.external)?),
        attribute_type::GRAPH => Attr::Region(Rc::new(Body::new(scope, &text(&a.name), a.g.as_deref().ok_or_else(missing)?, loc)?)),
        attribute_type::FLOATS => Attr::Floats(a.floats.iter().map(|x| f64::from(*x)).collect()),
        attribute_type::INTS => Attr::Ints(a.ints.clone()),
        attribute_type::STRINGS => Attr::Strs(strings()),
        attribute_type::SPARSE_TENSOR => {
            let s = a.sparse_tensor.as_deref().ok_or_else(missing)?;
            Attr::Sparse(tensor::written_out(s, &scope.cx.external, &scope.cx.written_out_left)?)
        }
        9 => Attr::Other("tensors"),
        10 => Attr::Other("graphs"),
        12 => Attr::Other("sparse tensors"),
        13 | 14 => Attr::Other("a type"),
        n => return Err(Error::syntax(format!("kind {n} is not known"))),
    }))
}

/// The declared kind, or in old files the one that has a value.
fn kind(a: &AttributeProto) -> i32 {
    match a {
        a if a.r#type != 0 => a.r#type,
        a if a.f.is_some() => attribute_type::FLOAT,
        a if a.i.is_some() => attribute_type::INT,
        a if a.s.is_some() => attribute_type::STRING,
        a if a.t.is_some() => attribute_type::TENSOR,
        a if a.g.is_some() => attribute_type::GRAPH,
        a if !a.floats.is_empty() => attribute_type::FLOATS,
        a if !a.strings.is_empty() => attribute_type::STRINGS,
        _ => attribute_type::INTS,
    }
}
