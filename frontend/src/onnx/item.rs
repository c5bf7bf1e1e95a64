//! SequenceProto and OptionalProto to and from what they hold.

use super::call::Item;
use super::file::External;
use super::import::Kind;
use super::proto::{OptionalProto, SequenceProto, TensorProto};
use super::scan;
use super::tensor::{decode, to_proto};
use bytes::Bytes;
use nnc_ir::{Error, Result, Tensor};
use prost::Message;

/// The kinds that the messages name.
const TENSOR: i32 = 1;
const SEQUENCE: i32 = 3;

/// What is in a `.pb` file's bytes whose message is that of `kind`.
pub fn parse(data: Bytes, kind: Kind) -> Result<Item<Tensor>> {
    match kind {
        Kind::Tensor => super::tensor::parse(data).map(|(_, t)| Item::Tensor(t)),
        Kind::Sequence => {
            scan::check(&data, scan::Kind::Sequence)?;
            sequence(&SequenceProto::decode(data).map_err(|e| Error::syntax(format!("no SequenceProto: {e}")))?)
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
    s.tensor_values.iter().map(|t| decode(t, &External::default())).collect::<Result<Vec<Tensor>>>().map(Item::List)
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
        (_, Item::Absent) => optional.encode_to_vec(),
    }
}
