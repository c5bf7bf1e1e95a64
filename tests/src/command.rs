//! The `nnc` command, built for the tests.

use assert_cmd::Command;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Path of the command, of the same profile as the running test. It is built first, in case that the test runs without its workspace.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let test = std::env::current_exe().expect("the running test");
        let folder = test.ancestors().find(|d| d.file_name().is_some_and(|n| n == "deps")).and_then(Path::parent).expect("target/PROFILE/deps");
        let mut build = std::process::Command::new(env!("CARGO"));
        // With a test beside it: the command then has the features of dependencies that tests have, and is built once, not twice.
        build.args(["build", "--quiet", "--workspace", "--bin", "nnc", "--test", "cli"]).current_dir(crate::data::root());
        build.args((folder.file_name().is_some_and(|n| n == "release")).then_some("--release"));
        assert!(build.status().expect("cargo runs").success(), "the command builds");
        folder.join(format!("nnc{}", std::env::consts::EXE_SUFFIX))
    })
}

/// A call of the command, without colours.
pub fn nnc() -> Command {
    let mut c = Command::new(path());
    c.env("NO_COLOR", "1").env_remove("RUST_BACKTRACE").env_remove("CLICOLOR_FORCE");
    c
}

/// What a call left behind.
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Calls the command; `line` is split at spaces.
pub fn call(folder: &Path, line: &str) -> Done {
    done(nnc().current_dir(folder).args(line.split_whitespace()))
}

pub fn done(command: &mut Command) -> Done {
    let output = command.output().expect("the command starts");
    Done {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Done {
    /// Panics unless the exit code is 0; gives stdout.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }

    /// Panics unless the exit code is `code` and stderr holds all of `texts`.
    #[track_caller]
    pub fn fails(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.err);
        for t in texts {
            assert!(self.err.contains(t), "`{t}` is not in: {}", self.err);
        }
    }
}
