//! Checkpoints: one file that is replaced whole, so that whatever stops a run leaves the last one.

use crate::artifact::write_atomically;
use crate::npy;
use nnc_ir::{Error, Result, Tensor};
use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

const FILE: &str = "checkpoint.npz";
/// The array of losses: as long as steps were made. No parameter's path has a `$` in front.
const LOSSES: &str = "$losses";

pub fn write(folder: &Path, state: &[(String, Tensor)], losses: &[f32]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(format!("cannot make the folder {}: {e}", folder.display())))?;
    let mut arrays = state.to_vec();
    arrays.push((LOSSES.into(), Tensor::new(&[losses.len()], losses)));
    let mut file = Cursor::new(vec![]);
    npy::write_npz(&mut file, &arrays)?;
    write_atomically(&folder.join(FILE), |f| f.write_all(file.get_ref()))
}

/// Puts the checkpoint's values in the place of those of `state`; gives the losses up to it.
pub fn read(folder: &Path, state: &mut [(String, Tensor)]) -> Result<Vec<f32>> {
    let path = folder.join(FILE);
    let file = std::fs::read(&path).map_err(|e| Error::io(format!("there is no checkpoint to resume from: cannot read {}: {e}", path.display())))?;
    let arrays = npy::read_npz(Cursor::new(file))?;
    let arrays: HashMap<&str, &Tensor> = arrays.iter().map(|(n, t)| (&**n, t)).collect();
    let find = |name: &str| arrays.get(name).map(|t| (*t).clone());
    for (name, value) in state.iter_mut() {
        match find(name) {
            Some(t) if t.ty() == value.ty() => *value = t,
            found => {
                let found = found.map_or("nothing".into(), |t| t.ty().to_string());
                return Err(Error::input(format!("the checkpoint is of another model: `{name}` is {}, it holds {found}", value.ty())));
            }
        }
    }
    find(LOSSES).and_then(|t| t.to_vec::<f32>()).ok_or_else(|| Error::input(format!("{} is no checkpoint of nnc", path.display())))
}
