//! Trained values as files.

use nnc_ir::{DType, Error, Result, Tensor};
use serde_json::{Map, json};
use std::collections::HashMap;

/// A file in the safetensors format: the header's length, a JSON header, the data. Names in order, so that the bytes are the same for
/// the same values.
pub fn safetensors(values: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    let mut names: Vec<&String> = values.keys().collect();
    names.sort();
    let (mut header, mut data) = (Map::new(), vec![]);
    for name in names {
        let t = &values[name];
        let start = data.len();
        data.extend(&*t.bytes());
        let about = json!({"dtype": dtype(t.dtype())?, "shape": t.shape(), "data_offsets": [start, data.len()]});
        header.insert(name.clone(), about);
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text, &data].concat())
}

fn dtype(d: DType) -> Result<String> {
    use DType::*;
    match d {
        Bool => Ok("BOOL".into()),
        F64 | F32 | F16 | BF16 | I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 => Ok(d.name().to_uppercase()),
        d => Err(Error::unsupported(format!("safetensors has no {d}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_two_tensors() {
        let values = HashMap::from([("b".to_string(), Tensor::new(&[2], &[1f32, 2.0])), ("a".to_string(), Tensor::new(&[], &[7i64]))]);
        let file = safetensors(&values).unwrap();
        let n = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&file[8..8 + n]).unwrap();
        assert_eq!(header["b"], json!({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}));
        assert_eq!((n % 8, &file[8 + n..8 + n + 8]), (0, &7i64.to_le_bytes()[..]));
    }
}
