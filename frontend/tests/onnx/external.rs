//! External data: found below the model's folder, nowhere else.

use crate::model::*;
use nnc_frontend::onnx::proto::*;
use nnc_frontend::onnx::{self};
use nnc_ir::eval::{self, Env};
use prost::Message;
use std::path::Path;

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: name(key), value: name(value) }
}

/// `x + w`, with w of two floats in an external file.
fn with_external(entries: &[(&str, &str)]) -> ModelProto {
    let mut m = single(17, node("Add", "x w", "y", vec![]), vec![value("x", F32, "2")], &[]);
    let external_data = entries.iter().map(|(k, v)| entry(k, v)).collect();
    let w = TensorProto { name: name("w"), dims: vec![2], data_type: F32, data_location: 1, external_data, ..Default::default() };
    m.graph.as_mut().unwrap().initializer = vec![w];
    m
}

fn load_in(folder: &Path, m: &ModelProto) -> Result<Vec<f64>, String> {
    let path = folder.join("model.onnx");
    std::fs::write(&path, m.encode_to_vec()).unwrap();
    let m = onnx::load(&path, &Default::default()).map_err(|e| e.to_string())?;
    let y = eval::run(&m.graph, &[f32s(&[2], &[0., 0.])], &Env::default()).map_err(|e| e.to_string())?;
    Ok(y[0].to_f64s())
}

#[test]
fn data_lies_below_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    let data: Vec<u8> = [9f32, 1.0, 2.0, 8.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(folder.join("deep/w.bin"), &data).unwrap();
    std::fs::write(outer.path().join("secret.bin"), &data).unwrap();

    let at = |offset: &str| with_external(&[("location", "deep/w.bin"), ("offset", offset), ("length", "8")]);
    assert_eq!(load_in(&folder, &at("4")), Ok(vec![1.0, 2.0]));
    assert_eq!(load_in(&folder, &with_external(&[("location", "./deep/w.bin"), ("checksum", "?")])), Ok(vec![9.0, 1.0]), "the rest is not read");

    let absolute = outer.path().join("secret.bin");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&absolute, folder.join("link.bin")).unwrap();
    let refused = [
        (with_external(&[("location", "../secret.bin")]), "is no path below the model's folder"),
        (with_external(&[("location", "deep/../../secret.bin")]), "is no path below the model's folder"),
        (with_external(&[("location", absolute.to_str().unwrap())]), "is no path below the model's folder"),
        (with_external(&[("location", "")]), "is no path below the model's folder"),
        (with_external(&[("location", "none.bin")]), "cannot be read"),
        (with_external(&[("location", "deep")]), "is no plain file"),
        #[cfg(unix)]
        (with_external(&[("location", "link.bin")]), "leads out of the model's folder"),
        (with_external(&[("offset", "0")]), "without a location"),
        (with_external(&[("location", "deep/w.bin"), ("offset", "minus one")]), "no number"),
        (at("12"), "lie outside"),
        (at("18446744073709551615"), "lie outside"),
    ];
    for (m, what) in refused {
        let e = load_in(&folder, &m).expect_err(what);
        assert!(e.contains(what) && e.contains("tensor `w`"), "{e}");
    }
}

#[test]
fn a_model_from_memory_has_no_folder() {
    let p = problems(&with_external(&[("location", "w.bin")]));
    assert!(p[0].contains("a model that has no folder"), "{p:?}");
}
