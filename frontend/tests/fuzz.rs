//! Texts that nobody would write: mutations of good ones, the same on every run. Whatever comes in, a graph or a report comes out.

use nnc_frontend::nn::{Limits, format, parse_model};
use std::fs;
use std::path::Path;

/// xorshift64*: enough to choose mutations.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// What is thrown in.
const SPLINTERS: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "=",
    "==",
    "->",
    "..",
    "**",
    "-",
    "!",
    "~",
    ";",
    "\n",
    "\"",
    "`",
    "\\",
    "#ff",
    "$",
    "\u{0}",
    "é",
    "//",
    "0",
    "1",
    "-1",
    "9223372036854775807",
    "1e400",
    "1e-400",
    "99999999999",
    "inf",
    "nan",
    "none",
    "true",
    "module ",
    "return ",
    "for i in 0..",
    "if ",
    "else ",
    "do ",
    "param [2] ~ he",
    "state [",
    "f32[2] ",
    "i64[] ",
    "bool",
    "N",
    "x",
    "h.shape",
    "[0]",
    "conv(",
    "reshape(",
    "loop(",
    "axis=",
    "shape=",
    "_0",
    "train ",
    "seed = ",
];

fn corpus() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("frontend/ lies in the repository").to_path_buf();
    let mut out = vec![];
    let mut folders = vec![root.join("examples"), root.join("tests/filetests")];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(&folder).expect("a folder").flatten().map(|e| e.path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "nn") {
                out.push(fs::read_to_string(&path).expect("a text"));
            }
        }
    }
    assert!(out.len() > 10);
    out
}

fn mutate(text: &str, other: &str, r: &mut Random) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..1 + r.below(4) {
        let at = r.below(chars.len() + 1);
        let most = r.below(40);
        let len = r.below(1 + most).min(chars.len() - at);
        match r.below(6) {
            0 => drop(chars.drain(at..at + len)),
            1 => drop(chars.splice(at..at, SPLINTERS[r.below(SPLINTERS.len())].chars())),
            2 => drop(chars.splice(at..at + len, SPLINTERS[r.below(SPLINTERS.len())].chars())),
            3 => {
                let copy = chars[at..at + len].to_vec();
                let times = 1 + r.below(100);
                chars.splice(at..at, copy.iter().cycle().take(len * times).copied());
            }
            4 => {
                let there: Vec<char> = other.chars().collect();
                let from = r.below(there.len());
                let len = r.below(200).min(there.len() - from);
                chars.splice(at..at, there[from..from + len].iter().copied());
            }
            _ => chars.truncate(at),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn mutated_texts_never_panic() {
    let corpus = corpus();
    let mut r = Random(0x5eed_0001);
    let (mut good, mut bad) = (0, 0);
    let cases = std::env::var("NNC_FUZZ").ok().and_then(|v| v.parse().ok()).unwrap_or(6000);
    for i in 0..cases {
        let text = mutate(&corpus[i % corpus.len()], &corpus[r.below(corpus.len())], &mut r);
        let limits = Limits { steps: 3000, bytes: 1 << 20 };
        let result = std::panic::catch_unwind(|| {
            let _ = format(&text, "fuzz.nn");
            parse_model(&text, "fuzz.nn", limits).map(|(g, _)| nnc_ir::print::full(&g).to_string().len()).map_err(|report| {
                assert!(!report.0.is_empty());
                assert!(report.0.iter().all(|e| e.code() != nnc_ir::error::Code::Internal), "{report}");
                report.to_string()
            })
        });
        match result {
            Ok(Ok(_)) => good += 1,
            Ok(Err(_)) => bad += 1,
            Err(_) => panic!("case {i}:\n{text}"),
        }
    }
    // The mutations are worth something only where some texts survive them.
    assert!(good > 100 && bad > 1000, "{good} parse, {bad} do not");
}
