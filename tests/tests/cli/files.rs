//! Inputs and outputs as files.

use crate::{folder, write};
use nnc::Tensor;
use nnc::npy::{read_npz, to_npy, write_npz};
use nnc_frontend::onnx::tensor;
use nnc_ir::DType;
use nnc_tests::command::call;
use std::io::Cursor;
use std::path::Path;

fn x() -> Tensor {
    Tensor::new(&[2, 4], &[1f32, -2.0, 0.5, 0.25, 0.0, 3.0, -1.0, 0.125])
}

/// The outputs of the network for [`x`], computed here.
fn want() -> Vec<(String, Vec<f64>)> {
    let (w, b) = ([[0.5, -1.0, 2.0], [0.0, 1.0, -0.5], [1.0, 1.0, 1.0], [-2.0, 0.25, 0.0]], [0.1, 0.2, 0.3]);
    let v = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
    let x = x().to_f64s();
    let h: Vec<f64> =
        (0..2).flat_map(|i| (0..3).map(move |j| (i, j))).map(|(i, j)| ((0..4).map(|k| x[i * 4 + k] * w[k][j]).sum::<f64>() + b[j]).tanh()).collect();
    let y = (0..2).flat_map(|i| (0..2).map(move |j| (i, j))).map(|(i, j)| (0..3).map(|k| h[i * 3 + k] * v[k][j]).sum()).collect();
    vec![("y".into(), y), ("h".into(), h)]
}

fn close(got: &Tensor, want: &[f64]) {
    let got = got.to_f64s();
    assert!(got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5), "{got:?} {want:?}");
}

fn check_npz(path: &Path) {
    let arrays = read_npz(Cursor::new(std::fs::read(path).unwrap())).unwrap();
    assert_eq!(arrays.len(), 2);
    for ((name, t), (want_name, values)) in arrays.iter().zip(want()) {
        assert_eq!(*name, want_name);
        close(t, &values);
    }
}

#[test]
fn every_door_in_and_out() {
    let f = folder();
    let p = f.path();
    let save = |name: &str, bytes: &[u8]| std::fs::write(p.join(name), bytes).unwrap();
    save("x.npy", &to_npy(&x()));
    save("x.pb", &tensor::encode("any name", &x()));
    let npz = |name: &str| {
        let mut file = Cursor::new(vec![]);
        write_npz(&mut file, &[(name.to_string(), x())]).unwrap();
        file.into_inner()
    };
    save("x.npz", &npz("x"));
    save("arr.npz", &npz("arr_0"));
    save("wrong.npz", &npz("z"));
    std::fs::create_dir(p.join("in")).unwrap();
    save("in/input_0.pb", &tensor::encode("", &x()));
    for engine in ["interp", "jit", "so"] {
        for input in ["x.npy", "x.pb", "x.npz", "arr.npz", "in", "x=x.npy", "x=x.pb"] {
            call(p, &format!("run mlp.nn -i {input} -o out.npz --engine {engine}")).ok();
            check_npz(&p.join("out.npz"));
        }
    }
    call(p, "run mlp.nn -i wrong.npz").fails(2, &["no input `z`"]);

    call(p, "run mlp.nn -i x.npy -o made/out").ok();
    for (k, (name, values)) in want().into_iter().enumerate() {
        let (got_name, t) = tensor::parse(std::fs::read(p.join(format!("made/out/output_{k}.pb"))).unwrap().into()).unwrap();
        assert_eq!(got_name, name);
        close(&t, &values);
    }
    call(p, "run mlp.nn -i x.npy -o out.npz --expect made/out").ok();
    let summary = call(p, "run mlp.nn -i x.npy -o -").ok();
    assert!(summary.contains("y: f32[2,2]  min ") && summary.contains("h: f32[2,3]"), "{summary}");
    call(p, "run mlp.nn -i x.npy -o out.npy").fails(2, &["2 outputs", ".npz"]);
}

#[test]
fn every_element_type() {
    let f = folder();
    let p = f.path();
    for d in DType::ALL {
        write(p, "id.nn", &format!("module id(x: {d}[2,3]) -> (y: {d}[3,2]) {{\n  y = transpose(x, perm=[1, 0])\n  return y\n}}\n"));
        let codes = if d == DType::Bool { 2 } else { 1 << (d.bits().min(8) - 1) };
        let bytes: Vec<u8> = (0..6 * d.bytes()).map(|i| (i * 5 % codes) as u8).collect();
        let x = Tensor::from_bytes(d, vec![2, 3], bytes.into()).unwrap();
        std::fs::write(p.join("x.npy"), to_npy(&x)).unwrap();
        std::fs::write(p.join("x.pb"), tensor::encode("x", &x)).unwrap();
        for engine in ["interp", "jit"] {
            for input in ["x.npy", "x.pb"] {
                call(p, &format!("run id.nn -i {input} -o out.npz --engine {engine}")).ok();
                let y = read_npz(Cursor::new(std::fs::read(p.join("out.npz")).unwrap())).unwrap().remove(0).1;
                // Types that NumPy does not have are raw bytes to it.
                let y = nnc::npy::as_codes(y, d);
                assert_eq!((y.dtype(), y.shape()), (d, &[3usize, 2][..]));
                for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
                    assert_eq!(y.element(i * 2 + j), x.element(j * 3 + i), "{d} {engine} {input}");
                }
            }
        }
    }
}

#[test]
fn wrong_files_are_explained() {
    let f = folder();
    let p = f.path();
    std::fs::write(p.join("x.npy"), &to_npy(&x())[..40]).unwrap();
    call(p, "run mlp.nn -i x.npy").fails(2, &["E0101", ".npy", "x.npy"]);
    std::fs::write(p.join("x.npy"), to_npy(&Tensor::new(&[2, 4], &[0f64; 8]))).unwrap();
    call(p, "run mlp.nn -i x.npy").fails(2, &["E0301", "`x`", "f64"]);
    std::fs::write(p.join("x.npy"), to_npy(&Tensor::new(&[8], &[0f32; 8]))).unwrap();
    call(p, "run mlp.nn -i x.npy").fails(2, &["E0301", "`x`", "f32[8]"]);
    std::fs::write(p.join("x.npz"), b"PK no zip").unwrap();
    call(p, "run mlp.nn -i x.npz").fails(2, &["E0101", ".npz"]);
    std::fs::write(p.join("x.pb"), b"\xff\xff\xff").unwrap();
    call(p, "run mlp.nn -i x.pb").fails(2, &["E0101", "x.pb"]);
}

#[test]
fn made_up_inputs_are_the_same_everywhere() {
    let f = folder();
    let ones = call(f.path(), "run mlp.nn --shape x:1x4 -i x=ones --engine interp").ok();
    // tanh of the columns' sums plus the bias.
    let h = [(0.5 - 2.0 + 1.0 + 0.1f64).tanh(), (-1.0 + 1.0 + 1.0 + 0.25 + 0.2f64).tanh(), (2.0 - 0.5 + 1.0 + 0.3f64).tanh()];
    for v in h {
        assert!(ones.contains(&format!("{v:.8}")[..6]), "{v} in {ones}");
    }
    let random = |seed: u32| call(f.path(), &format!("run mlp.nn --dim N=2 -i x=random:{seed} --engine interp")).ok();
    assert_eq!(random(5), random(5));
    assert_ne!(random(5), random(6));
}
