//! Weighs a protobuf file before it is decoded: a file of two-byte messages would otherwise take a hundred times its size in memory,
//! and a file of nested ones the stack.

use super::proto::*;
use nnc_ir::{Error, Result};

/// Messages as far as they have fields that hold messages.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    ElementType,
    Sequence,
    Map,
    Optional,
    /// Two names at most.
    Pair,
    /// A message with oneof numbers or names only.
    Leaf,
}

use Kind::*;

/// (message, field number, what the field holds).
const CHILDREN: &[(Kind, u64, Kind)] = &[
    (Model, 7, Graph),
    (Model, 8, Pair),
    (Model, 14, Pair),
    (Model, 25, Function),
    (Graph, 1, Node),
    (Graph, 5, Tensor),
    (Graph, 11, ValueInfo),
    (Graph, 12, ValueInfo),
    (Graph, 13, ValueInfo),
    (Graph, 15, SparseTensor),
    (Function, 7, Node),
    (Function, 9, Pair),
    (Function, 11, Attribute),
    (Node, 5, Attribute),
    (Attribute, 5, Tensor),
    (Attribute, 6, Graph),
    (Attribute, 22, SparseTensor),
    (Tensor, 3, Leaf),
    (Tensor, 13, Pair),
    (SparseTensor, 1, Tensor),
    (SparseTensor, 2, Tensor),
    (ValueInfo, 2, Type),
    (Type, 1, TensorType),
    (Type, 4, ElementType),
    (Type, 9, ElementType),
    (TensorType, 2, Shape),
    (Shape, 1, Leaf),
    (ElementType, 1, Type),
    (Sequence, 3, Tensor),
    (Sequence, 5, Sequence),
    (Sequence, 6, Map),
    (Sequence, 7, Optional),
    (Map, 5, Sequence),
    (Optional, 3, Tensor),
    (Optional, 5, Sequence),
    (Optional, 7, Optional),
];

impl Kind {
    /// Bytes of the decoded struct.
    fn bytes(self) -> usize {
        match self {
            Model => size_of::<ModelProto>(),
            Graph => size_of::<GraphProto>(),
            Function => size_of::<FunctionProto>(),
            Node => size_of::<NodeProto>(),
            Attribute => size_of::<AttributeProto>(),
            Tensor => size_of::<TensorProto>(),
            SparseTensor => size_of::<SparseTensorProto>(),
            ValueInfo => size_of::<ValueInfoProto>(),
            Type | ElementType => size_of::<TypeProto>(),
            TensorType | Shape => size_of::<super::proto::TensorType>(),
            Sequence => size_of::<SequenceProto>(),
            Map => size_of::<MapProto>(),
            Optional => size_of::<OptionalProto>(),
            Pair => size_of::<StringStringEntryProto>(),
            Leaf => size_of::<Dimension>(),
        }
    }

    /// Whether a length-delimited field is packed integers, each of which may grow from one byte to eight.
    fn packed(self, field: u64) -> bool {
        matches!((self, field), (Tensor, 1 | 5 | 7 | 11) | (Attribute, 8) | (SparseTensor, 3) | (Map, 3))
    }
}

/// Messages inside each other; prost itself stops at 100.
const MAX_DEPTH: usize = 90;

/// Decoded bytes that any file may take, and more for each byte of the file. Files that exporters write stay far below.
const FREE_BYTES: usize = 256 << 20;
const BYTES_PER_BYTE: usize = 8;

/// An error where the file is no protobuf message of this kind, or would take much more memory than its size.
pub fn check(data: &[u8], root: Kind) -> Result<()> {
    let budget = data.len().saturating_mul(BYTES_PER_BYTE).saturating_add(FREE_BYTES);
    let mut used = root.bytes();
    let mut open = vec![(root, data.len())];
    let mut at = 0;
    while let Some((kind, end)) = open.last().copied() {
        if at == end {
            open.pop();
            continue;
        }
        let start = at;
        let broken = |what: &str| Error::syntax(format!("no ONNX protobuf: {what} at byte {start}"));
        let key = varint(data, &mut at, end).ok_or_else(|| broken("a field ends early"))?;
        let (field, wire) = (key >> 3, key & 7);
        let left = end - at;
        match wire {
            0 => {
                varint(data, &mut at, end).ok_or_else(|| broken("a number ends early"))?;
                used += size_of::<u64>();
            }
            1 | 5 => {
                let n = if wire == 1 { 8 } else { 4 };
                if left < n {
                    return Err(broken("a number ends early"));
                }
                at += n;
                used += n;
            }
            2 => {
                let n = varint(data, &mut at, end).and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= end - at);
                let n = n.ok_or_else(|| broken("a field is longer than what holds it"))?;
                match CHILDREN.iter().find(|(k, f, _)| (*k, *f) == (kind, field)) {
                    Some((_, _, child)) => {
                        used += child.bytes();
                        open.push((*child, at + n));
                        if open.len() > MAX_DEPTH {
                            return Err(Error::limit(format!("messages are nested more than {MAX_DEPTH} deep at byte {start}")));
                        }
                    }
                    None => {
                        used += size_of::<bytes::Bytes>() + if kind.packed(field) { n.saturating_mul(8) } else { 0 };
                        at += n;
                    }
                }
            }
            _ => return Err(broken("an unknown kind of field")),
        }
        if used > budget {
            return Err(Error::limit(format!("the file holds more messages than its {} bytes justify", data.len())));
        }
    }
    Ok(())
}

/// The base-128 number at `at`.
fn varint(data: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *data[..end].get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
