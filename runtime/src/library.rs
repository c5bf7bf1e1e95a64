//! A compiled model in this process: functions of the C ABI, from the JIT or from a shared library.

use crate::abi::{self, Functions};
use crate::describe::Description;
use crate::profile::Launch;
use nnc_ir::{Error, Result};
use std::any::Any;
use std::ffi::CStr;
use std::io::Read;
use std::path::Path;

/// The functions, their description, and what keeps the code in memory.
pub struct Library {
    functions: Functions,
    description: Description,
    _code: Box<dyn Any + Send + Sync>,
}

impl Library {
    /// Loads a shared library whose functions start with `prefix`.
    pub fn open(path: &Path, prefix: &str) -> Result<Library> {
        let failed = |e: &dyn std::fmt::Display| Error::io(format!("cannot load {}: {e}", path.display()));
        // dlopen searches the system's folders for a name without a slash.
        let full = path.canonicalize().map_err(|e| failed(&e))?;
        check_whole(&full).map_err(|e| e.note(format!("in {}", path.display())))?;
        // SAFETY: a library written by nnc has no initialisers; any other library that the user names is run at their word.
        let library = unsafe { libloading::Library::new(&full) }.map_err(|e| failed(&e))?;
        let functions = {
            // SAFETY: each name has the type that version 1 of the ABI gives it; the version is checked below, before any other call.
            unsafe {
                Functions {
                    abi_version: function(&library, path, prefix, "abi_version")?,
                    describe: function(&library, path, prefix, "describe")?,
                    plan: function(&library, path, prefix, "plan")?,
                    run: function(&library, path, prefix, "run")?,
                    error: function(&library, path, prefix, "error")?,
                    launches: function(&library, path, prefix, "launches").ok(),
                }
            }
        };
        // SAFETY: the library stays loaded as long as the result.
        unsafe { Library::new(functions, Box::new(library)) }
    }

    /// Wraps functions that are already in memory.
    ///
    /// # Safety
    /// The functions keep the C ABI of [`abi`] as long as `code` lives.
    pub unsafe fn new(functions: Functions, code: Box<dyn Any + Send + Sync>) -> Result<Library> {
        // SAFETY: by the caller's promise; the function takes nothing.
        let version = unsafe { (functions.abi_version)() };
        if version != abi::VERSION {
            return Err(Error::unsupported(format!(
                "the library has version {version} of the C ABI, this nnc understands version {}: compile the model again",
                abi::VERSION
            )));
        }
        // SAFETY: the ABI promises a string that ends in 0 and lives as long as the code.
        let text = unsafe { CStr::from_ptr((functions.describe)()) }.to_string_lossy();
        Ok(Library { functions, description: Description::from_json(&text)?, _code: code })
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// What each launch of a run computes.
    pub fn launches(&self) -> Result<Vec<Launch>> {
        let Some(launches) = self.functions.launches else {
            return Err(Error::unsupported("the library does not list its launches").note("compile the model again"));
        };
        // SAFETY: the ABI promises a string that ends in 0 and lives as long as the code.
        Launch::list(&unsafe { CStr::from_ptr(launches()) }.to_string_lossy())
    }

    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// An error where `code` is one.
    pub fn check(&self, code: i32) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the ABI promises a string that ends in 0 for every code.
        let text = unsafe { CStr::from_ptr((self.functions.error)(code)) }.to_string_lossy().to_string();
        Err(Error::input(text))
    }
}

/// An error where the file is not a whole library.
fn check_whole(path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(format!("cannot read the library: {e}"));
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut head = vec![];
    file.by_ref().take(4096).read_to_end(&mut head).map_err(failed)?;
    nnc_backends::cpu::elf::check_whole(&head, bytes)
}

/// # Safety
/// The symbol must have type `T`.
unsafe fn function<T: Copy>(library: &libloading::Library, path: &Path, prefix: &str, name: &str) -> Result<T> {
    // SAFETY: by the caller's promise.
    unsafe { library.get::<T>(format!("{prefix}{name}\0").as_bytes()) }.map(|f| *f).map_err(|_| {
        Error::input(format!("{} has no function {prefix}{name}: it is no model compiled by nnc", path.display()))
            .note("a library compiled with --prefix is loaded with the same --prefix")
    })
}
