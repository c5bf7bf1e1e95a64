//! Aligned memory that compiled models write to.

use nnc_ir::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::OnceLock;

/// Alignment of workspaces and outputs, in bytes: a cache line, and the widest vector.
pub const ALIGN: usize = 64;

/// Zeroed bytes that start at a multiple of [`ALIGN`]. Fresh memory comes from the system lazily: untouched pages cost nothing.
pub struct Aligned {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: an owned block of plain bytes, like a `Vec<u8>`.
unsafe impl Send for Aligned {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// An error where the machine has no such memory.
    pub fn new(bytes: usize) -> Result<Aligned> {
        let none = || Error::limit(format!("the machine does not give {bytes} bytes of memory"));
        // Systems promise more than there is, and end the process when it is touched.
        if bytes > installed() {
            return Err(none());
        }
        let start = match layout(bytes)? {
            None => NonNull::<u128>::dangling().cast(),
            // SAFETY: the layout's size is not 0.
            Some(layout) => NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(none)?,
        };
        Ok(Aligned { start, bytes })
    }

    /// A copy of `data`.
    pub fn copy_of(data: &[u8]) -> Result<Aligned> {
        let mut out = Aligned::new(data.len())?;
        out.as_mut().copy_from_slice(data);
        Ok(out)
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The first byte, for code that writes through a pointer.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Bytes of the machine's memory and swap space, where the system tells.
fn installed() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<usize>().ok());
        let sum = kibibytes("MemTotal:").map(|n| n.saturating_add(kibibytes("SwapTotal:").unwrap_or(0)));
        sum.map_or(usize::MAX, |n| n.saturating_mul(1024))
    })
}

/// `None` for no bytes at all.
fn layout(bytes: usize) -> Result<Option<Layout>> {
    match bytes {
        0 => Ok(None),
        n => Layout::from_size_align(n, ALIGN).map(Some).map_err(|_| Error::limit(format!("{n} bytes are more than memory can hold"))),
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `bytes` initialised bytes (dangling but non-null for none).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl AsMut<[u8]> for Aligned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if let Ok(Some(layout)) = layout(self.bytes) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zeroed() {
        for n in [0, 1, 63, 64, 100_000] {
            let mut a = Aligned::new(n).unwrap();
            assert_eq!((a.len(), a.as_ref().iter().all(|b| *b == 0)), (n, true));
            assert!(n == 0 || (a.as_mut_ptr() as usize).is_multiple_of(ALIGN));
        }
        assert_eq!(Aligned::new(usize::MAX / 2 + 1).err().unwrap().code().text(), "E0401");
        assert_eq!(Aligned::copy_of(&[1, 2, 3]).unwrap().as_ref(), [1, 2, 3]);
    }
}
