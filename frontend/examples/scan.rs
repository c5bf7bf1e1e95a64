fn main() {
    let mut ok = 0;
    let mut bad = 0;
    for p in std::env::args().skip(1) {
        let t = std::time::Instant::now();
        match nnc_frontend::onnx::load(std::path::Path::new(&p), &Default::default()) {
            Ok(m) => {
                ok += 1;
                let outs: Vec<String> = m.graph.outputs.iter().map(|o| format!("{}: {}", o.name, m.graph.ty(o.value))).collect();
                println!("ok {p} {} nodes {:?} {}", m.graph.len(), t.elapsed(), outs.join(", "))
            }
            Err(r) => {
                bad += 1;
                println!("FAIL {p}: {} errors", r.0.len());
                for e in r.0.iter().take(12) {
                    println!("   {}", e.to_string().replace('\n', " "));
                }
            }
        }
    }
    println!("{ok} ok, {bad} failed");
}
