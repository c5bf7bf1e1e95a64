use nnc_frontend::onnx::{self, ImportOptions, tensor};
use nnc_ir::{Tensor, eval};
use std::path::{Path, PathBuf};
fn compare(got: &Tensor, want: &Tensor, rtol: f64, atol_rel: f64) -> Result<(), String> {
    if got.dtype() != want.dtype() {
        return Err(format!("dtype {} expected {}", got.dtype(), want.dtype()));
    }
    if got.shape() != want.shape() {
        return Err(format!("shape {:?} expected {:?}", got.shape(), want.shape()));
    }
    let (g, w) = (got.to_f64s(), want.to_f64s());
    let m = w.iter().filter(|x| x.is_finite()).fold(0f64, |a, b| a.max(b.abs()));
    let mut worst = 0f64;
    let mut bad = 0;
    for (a, b) in g.iter().zip(&w) {
        let ok = (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= 1e-7 + atol_rel * m + rtol * b.abs();
        if !ok {
            bad += 1;
            worst = worst.max((a - b).abs());
            if a.is_nan() != b.is_nan() {
                worst = f64::NAN
            }
        }
    }
    if bad > 0 {
        Err(format!(
            "values: {bad} of {} wrong, max abs err {worst:.3} of {m:.3}; got {:?} want {:?}",
            g.len(),
            &g[..g.len().min(6)],
            &w[..w.len().min(6)]
        ))
    } else {
        Ok(())
    }
}
fn case(dir: &Path, atol_rel: f64) -> Result<String, String> {
    let mut note = String::new();
    let mut sets: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("test_data_set"))
        .collect();
    sets.sort();
    for set in sets {
        let path = dir.join("model.onnx");
        let names = { onnx::input_names(&path).map_err(|e| e.to_string())? };
        let mut inputs = vec![];
        for k in 0..names.len() {
            let p = set.join(format!("input_{k}.pb"));
            if !p.exists() {
                inputs.push(None);
                continue;
            }
            inputs.push(Some(tensor::read(&p).map_err(|e| format!("input {k}: {e}"))?.1));
        }
        let mut options = ImportOptions::default();
        let model = match onnx::load(&path, &options) {
            Ok(m) => m,
            Err(r) => {
                for (n, t) in names.iter().zip(&inputs) {
                    if let Some(t) = t
                        && t.shape().len() <= 1
                        && t.elems() <= 64
                    {
                        options.values.push((n.clone(), t.clone()));
                    }
                }
                for (n, t) in names.iter().zip(&inputs) {
                    if let Some(t) = t
                        && options.values.iter().all(|v| v.0 != *n)
                    {
                        options.shapes.push((n.clone(), t.shape().iter().map(|d| (*d).into()).collect()));
                    }
                }
                note = "specialised".into();
                onnx::load(&path, &options).map_err(|_| format!("import: {}", r.0[0].to_string().replace('\n', " ")))?
            }
        };
        let given: Vec<Tensor> = inputs.iter().flatten().cloned().collect();
        let env = eval::Env::default();
        let y = eval::run(&model.graph, &given, &env).map_err(|e| format!("run: {}", e.to_string().replace('\n', " ")))?;
        for (k, t) in y.iter().enumerate() {
            let p = set.join(format!("output_{k}.pb"));
            if !p.exists() {
                continue;
            }
            let want = tensor::read(&p).map_err(|e| format!("output {k}: {e}"))?.1;
            compare(t, &want, 1e-3, atol_rel).map_err(|e| format!("{} output {k}: {e}", set.file_name().unwrap().to_string_lossy()))?;
        }
    }
    Ok(note)
}
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let atol_rel: f64 = args[0].parse().unwrap();
    let (mut ok, mut spec, mut bad) = (0, 0, 0);
    let mut dirs: Vec<PathBuf> = vec![];
    for a in &args[1..] {
        let p = PathBuf::from(a);
        if p.join("model.onnx").exists() {
            dirs.push(p)
        } else {
            let mut d: Vec<PathBuf> = std::fs::read_dir(&p).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("model.onnx").exists()).collect();
            d.sort();
            dirs.extend(d);
        }
    }
    for d in dirs {
        let t = std::time::Instant::now();
        let d2 = d.clone();
        let r = std::panic::catch_unwind(move || case(&d2, atol_rel)).unwrap_or_else(|_| Err("PANIC".into()));
        let ms = t.elapsed().as_millis();
        let name = d.file_name().unwrap().to_string_lossy().to_string();
        match r {
            Ok(n) => {
                ok += 1;
                if !n.is_empty() {
                    spec += 1
                }
                println!("pass\t{name}\t{n}\t{ms}")
            }
            Err(e) => {
                bad += 1;
                println!("FAIL\t{name}\t{e}")
            }
        }
    }
    println!("{ok} passed ({spec} specialised), {bad} failed");
}
