//! Files that appear whole or not at all.

use nnc_ir::{Error, Result};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Paths of the drafts that exist now.
static DRAFTS: Mutex<Vec<PathBuf>> = Mutex::new(vec![]);

/// Removes all drafts of this process: for its end by a signal.
pub fn remove_drafts() {
    for path in DRAFTS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = std::fs::remove_file(path);
    }
}

/// A file under construction beside its target, gone when dropped.
pub struct Draft {
    file: tempfile::NamedTempFile,
    target: PathBuf,
}

impl Draft {
    /// A draft of `target`, in the same folder (a rename moves nothing), with the permissions that a plain new file has. Its suffix
    /// is that of the target.
    pub fn new(target: &Path) -> Result<Draft> {
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let suffix = target.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        let mode = if suffix == ".so" { 0o777 } else { 0o666 };
        let file = tempfile::Builder::new()
            .prefix(".nnc-")
            .suffix(&suffix)
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder)
            .map_err(|e| cannot_write(target, &e))?;
        DRAFTS.lock().unwrap_or_else(PoisonError::into_inner).push(file.path().into());
        Ok(Draft { file, target: target.into() })
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Writes the contents.
    pub fn fill(&mut self, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let mut buffered = std::io::BufWriter::with_capacity(1 << 20, self.file.as_file_mut());
        write(&mut buffered).and_then(|()| buffered.flush()).map_err(|e| cannot_write(&self.target, &e))
    }

    /// Puts the file in its target's place.
    pub fn publish(self) -> Result<()> {
        // From here on the path may be somebody else's.
        DRAFTS.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| p != self.file.path());
        self.file.persist(&self.target).map(|_| ()).map_err(|e| cannot_write(&self.target, &e.error))
    }
}

fn cannot_write(target: &Path, e: &std::io::Error) -> Error {
    Error::io(format!("cannot write {}: {e}", target.display()))
}

/// Writes a whole file or none of it.
pub fn write_atomically(target: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    // A device or a pipe (/dev/stdout, /dev/null) cannot be replaced by a file.
    if target.exists() && !target.is_file() {
        let file = std::fs::OpenOptions::new().write(true).open(target);
        return file.and_then(|mut f| write(&mut f)).map_err(|e| cannot_write(target, &e));
    }
    let mut draft = Draft::new(target)?;
    draft.fill(write)?;
    draft.publish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x.txt");
        write_atomically(&target, |f| f.write_all(b"one")).unwrap();
        let failed = write_atomically(&target, |f| f.write_all(b"two").and_then(|()| Err(std::io::Error::other("full"))));
        assert!(failed.unwrap_err().message().contains("full"));
        assert_eq!(std::fs::read(&target).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(write_atomically(&folder.path().join("no/x"), |_| Ok(())).unwrap_err().code().text(), "E0102");
        write_atomically(Path::new("/dev/null"), |f| f.write_all(b"gone")).unwrap();
    }
}
