//! SequenceProto, MapProto and OptionalProto to and from what they hold.

use super::call::Item;
use super::file::External;
use super::import::Kind;
use super::proto::{MapProto, OptionalProto, SequenceProto, TensorProto};
use super::scan;
use super::tensor::{decode, to_proto};
use bytes::Bytes;
use nnc_ir::{DType, Error, Result, Tensor};
use prost::Message;
use std::sync::Arc;

/// The kinds that the messages name.
const TENSOR: i32 = 1;
const SEQUENCE: i32 = 3;
const MAP: i32 = 4;

/// What is in a `.pb` file's bytes whose message is that of `kind`.
pub fn parse(data: Bytes, kind: Kind) -> Result<Item<Tensor>> {
    match kind {
        Kind::Tensor => super::tensor::parse(data).map(|(_, t)| Item::Tensor(t)),
        Kind::Sequence => {
            scan::check(&data, scan::Kind::Sequence)?;
            sequence(&SequenceProto::decode(data).map_err(|e| Error::syntax(format!("no SequenceProto: {e}")))?)
        }
        Kind::Map => {
            scan::check(&data, scan::Kind::Map)?;
            map(&MapProto::decode(data).map_err(|e| Error::syntax(format!("no MapProto: {e}")))?).map(Item::Map)
        }
        Kind::Optional => {
            scan::check(&data, scan::Kind::Optional)?;
            let o = OptionalProto::decode(data).map_err(|e| Error::syntax(format!("no OptionalProto: {e}")))?;
            match (&o.tensor_value, &o.sequence_value, &o.optional_value) {
                (None, None, None) => Ok(Item::Absent),
                (Some(t), None, None) => Ok(Item::Tensor(decode(t, &External::default())?)),
                (None, Some(s), None) => sequence(s),
                _ => Err(Error::unsupported("optionals of optionals are not supported")),
            }
        }
    }
}

fn sequence(s: &SequenceProto) -> Result<Item<Tensor>> {
    if !s.sequence_values.is_empty() || !s.optional_values.is_empty() {
        return Err(Error::unsupported("sequences of sequences or optionals are not supported"));
    }
    if !s.map_values.is_empty() {
        return maps(&s.map_values);
    }
    s.tensor_values.iter().map(|t| decode(t, &External::default())).collect::<Result<Vec<Tensor>>>().map(Item::List)
}

/// Keys and values.
fn map(m: &MapProto) -> Result<[Tensor; 2]> {
    let wrong = |why: String| Error::input(format!("the map `{}` {why}", String::from_utf8_lossy(&m.name)));
    let keys = match DType::from_abi_code(m.key_type) {
        Some(DType::Str) => {
            let text = |k: &Bytes| std::str::from_utf8(k).map(Arc::from).map_err(|_| wrong("has a key that is no UTF-8 text".into()));
            Tensor::text(&[m.string_keys.len()], m.string_keys.iter().map(text).collect::<Result<_>>()?)?
        }
        Some(DType::I64) => Tensor::new(&[m.keys.len()], &m.keys),
        _ => return Err(wrong(format!("has keys of type {}", m.key_type))),
    };
    let Item::List(values) = sequence(m.values.as_ref().unwrap_or(&SequenceProto::default()))? else {
        return Err(wrong("holds maps".into()));
    };
    if values.len() != keys.elems() || values.is_empty() || values.iter().any(|t| t.elems() != 1 || t.dtype() != values[0].dtype()) {
        return Err(wrong(format!("should have one value of one type for each of {} keys", keys.elems())));
    }
    Ok([keys, joined(&values, vec![values.len()])?])
}

/// Maps of the same keys.
fn maps(list: &[MapProto]) -> Result<Item<Tensor>> {
    let list = list.iter().map(map).collect::<Result<Vec<[Tensor; 2]>>>()?;
    let keys = list[0][0].clone();
    if list.iter().any(|[k, v]| *k != keys || v.dtype() != list[0][1].dtype()) {
        return Err(Error::unsupported("a sequence of maps whose keys differ"));
    }
    let shape = vec![list.len(), keys.elems()];
    Ok(Item::Map([keys, joined(&list.into_iter().map(|[_, v]| v).collect::<Vec<_>>(), shape)?]))
}

/// The elements of tensors of one type, one after the other.
fn joined(parts: &[Tensor], shape: Vec<usize>) -> Result<Tensor> {
    match parts.iter().map(Tensor::texts).collect::<Option<Vec<_>>>() {
        Some(texts) => Tensor::text(&shape, texts.concat()),
        None => Tensor::from_bytes(parts[0].dtype(), shape, parts.iter().flat_map(|t| t.bytes().to_vec()).collect::<Vec<u8>>().into()),
    }
}

/// A map of these keys; `values` are as many elements from `start` on.
fn to_map(keys: &Tensor, values: &Tensor, start: usize) -> MapProto {
    let one = |i: usize| match values.texts() {
        Some(texts) => Tensor::text(&[], vec![texts[i].clone()]),
        None => {
            let size = values.dtype().bytes();
            Tensor::from_bytes(values.dtype(), vec![], values.bytes().slice(i * size..(i + 1) * size))
        }
    };
    let values = (start..start + keys.elems()).filter_map(|i| one(i).ok()).map(|t| to_proto("", &t)).collect();
    MapProto {
        key_type: keys.dtype().abi_code(),
        keys: keys.to_ints().unwrap_or_default(),
        string_keys: keys.texts().unwrap_or_default().iter().map(|k| Bytes::copy_from_slice(k.as_bytes())).collect(),
        values: Some(SequenceProto { elem_type: TENSOR, tensor_values: values, ..SequenceProto::default() }),
        ..MapProto::default()
    }
}

/// A `.pb` file's bytes.
pub fn encode(name: &str, kind: Kind, item: &Item<Tensor>) -> Vec<u8> {
    let bytes = Bytes::copy_from_slice(name.as_bytes());
    let list = |list: &[Tensor]| SequenceProto {
        name: bytes.clone(),
        elem_type: TENSOR,
        tensor_values: list.iter().map(|t| to_proto("", t)).collect::<Vec<TensorProto>>(),
        ..SequenceProto::default()
    };
    let optional = OptionalProto { name: bytes.clone(), ..OptionalProto::default() };
    match (kind, item) {
        (Kind::Optional, Item::Tensor(t)) => {
            OptionalProto { elem_type: TENSOR, tensor_value: Some(Box::new(to_proto("", t))), ..optional }.encode_to_vec()
        }
        (Kind::Optional, Item::List(l)) => OptionalProto { elem_type: SEQUENCE, sequence_value: Some(Box::new(list(l))), ..optional }.encode_to_vec(),
        (_, Item::Tensor(t)) => to_proto(name, t).encode_to_vec(),
        (_, Item::List(l)) => list(l).encode_to_vec(),
        (Kind::Sequence, Item::Map([keys, values])) => {
            let rows = values.shape().first().copied().unwrap_or(0);
            let map_values = (0..rows).map(|i| to_map(keys, values, i * keys.elems())).collect();
            SequenceProto { name: bytes, elem_type: MAP, map_values, ..SequenceProto::default() }.encode_to_vec()
        }
        (_, Item::Map([keys, values])) => MapProto { name: bytes, ..to_map(keys, values, 0) }.encode_to_vec(),
        (_, Item::Absent) => optional.encode_to_vec(),
    }
}
