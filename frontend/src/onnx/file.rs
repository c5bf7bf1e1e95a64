//! Files of a model: mapped, not read, and external data only from below the model's folder.

use bytes::Bytes;
use nnc_ir::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// The contents of a file: a memory map where the file is a plain one, else what reading gives.
pub fn map(path: &Path) -> Result<Bytes> {
    let failed = |e: std::io::Error| Error::io(format!("cannot read {}: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_dir() {
        return Err(Error::io(format!("{} is a folder", path.display())));
    }
    if !meta.is_file() {
        return std::fs::read(path).map(Bytes::from).map_err(failed);
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private to us. Another process that truncates or rewrites the file while we hold it could
    // change what we see; every use of the bytes checks lengths against the map's own, and no value read is trusted.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
    Ok(Bytes::from_owner(map))
}

/// External data files of one model, each mapped once.
#[derive(Default)]
pub struct External {
    /// Absolute, without links. `None`: the model has no folder, and so no external data.
    base: Option<PathBuf>,
    maps: RefCell<BTreeMap<PathBuf, Bytes>>,
}

impl External {
    pub fn new(base: Option<&Path>) -> Result<External> {
        let canonical = |p: &Path| p.canonicalize().map_err(|e| Error::io(format!("cannot open folder {}: {e}", p.display())));
        Ok(External { base: base.map(canonical).transpose()?, maps: RefCell::default() })
    }

    /// `length` bytes (all that follow where `None`) of the file at `location`, a path relative to the model's folder, from `offset` on.
    pub fn bytes(&self, location: &str, offset: u64, length: Option<u64>) -> Result<Bytes> {
        let refuse = |why: &str| Error::io(format!("external data `{location}` {why}"));
        let Some(base) = &self.base else { return Err(refuse("is named by a model that has no folder")) };
        let relative = Path::new(location);
        if location.is_empty() || relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err(refuse("is no path below the model's folder"));
        }
        let path = base.join(relative).canonicalize().map_err(|e| refuse(&format!("cannot be read: {e}")))?;
        if !path.starts_with(base) {
            return Err(refuse("leads out of the model's folder"));
        }
        if !self.maps.borrow().contains_key(&path) {
            if !path.is_file() {
                return Err(refuse("is no plain file"));
            }
            let data = map(&path)?;
            self.maps.borrow_mut().insert(path.clone(), data);
        }
        let data = self.maps.borrow()[&path].clone();
        let total = data.len() as u64;
        let end = length.map_or(Some(total), |n| offset.checked_add(n)).filter(|end| offset <= *end && *end <= total);
        let Some(end) = end else {
            let length = length.map_or("all".to_string(), |n| n.to_string());
            return Err(refuse(&format!("has {total} bytes; offset {offset} and length {length} lie outside")));
        };
        Ok(data.slice(offset as usize..end as usize))
    }
}
