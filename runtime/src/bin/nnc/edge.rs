//! Where results, diagnostics and our own bugs become text and exit codes.

use anstyle::{AnsiColor, Style};
use nnc::ir::error::{Code, Loc};
use nnc::ir::{Error, Report};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// Why a verb did not succeed.
pub enum Failure {
    /// What is wrong with the command, the model or the inputs; or (E0901) with nnc.
    Report(Report),
    /// A comparison failed; its outcome is printed already.
    Different,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Report(e.into())
    }
}

impl From<Report> for Failure {
    fn from(r: Report) -> Failure {
        Failure::Report(r)
    }
}

pub type Outcome<T = ()> = Result<T, Failure>;

/// Recursion over the nesting of expressions and regions is bounded by the parsers; this is room for it on every platform.
const STACK_BYTES: usize = 128 << 20;

/// Where and why the program panicked.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs a verb and turns its end into an exit code.
pub fn run(verb: impl FnOnce() -> Outcome + Send) -> ExitCode {
    std::panic::set_hook(Box::new(remember));
    // A process that is told to end leaves nothing half written. Without the handler it ends all the same.
    let _ = ctrlc::set_handler(|| {
        nnc::artifact::remove_drafts();
        std::process::exit(130);
    });
    let done = std::thread::scope(|s| {
        let work = || std::panic::catch_unwind(AssertUnwindSafe(verb));
        match std::thread::Builder::new().name("nnc".into()).stack_size(STACK_BYTES).spawn_scoped(s, work) {
            Ok(thread) => thread.join().and_then(|r| r),
            Err(e) => Ok(Err(Error::limit(format!("the system does not give a thread: {e}")).into())),
        }
    });
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(Failure::Different)) => ExitCode::from(1),
        Ok(Err(Failure::Report(report))) => {
            say(&render(&report));
            let ours = report.0.iter().any(|e| e.code() == Code::Internal);
            if ours {
                say(&apology());
            }
            ExitCode::from(if ours { 3 } else { 2 })
        }
        Err(_) => {
            let what = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_else(|| "a panic".into());
            say(&render(&Error::internal(what).into()));
            say(&apology());
            ExitCode::from(3)
        }
    }
}

fn remember(info: &PanicHookInfo) {
    let text = info.payload_as_str().unwrap_or("a panic");
    let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
    let mut slot = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
    slot.get_or_insert(format!("{text}{place}"));
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0") {
        say(&std::backtrace::Backtrace::force_capture().to_string());
    }
}

/// What the user can do about a bug of ours.
fn apology() -> String {
    let command: Vec<String> = std::env::args().map(|a| if a.contains(char::is_whitespace) { format!("{a:?}") } else { a }).collect();
    format!(
        "  this is a bug in nnc {}, not in your model.\n  command: {}\n  to reproduce: run it again with RUST_BACKTRACE=1 and report its output with the model, \
         or what is left of the model when everything that is not needed for the failure is removed",
        env!("CARGO_PKG_VERSION"),
        command.join(" ")
    )
}

const RED: Style = AnsiColor::Red.on_default().bold();
const BLUE: Style = AnsiColor::Blue.on_default().bold();
const BOLD: Style = Style::new().bold();

/// A text that a person can take in: names in a file may be megabytes long.
fn short(text: &str) -> std::borrow::Cow<'_, str> {
    const MOST: usize = 4000;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}... ({} bytes in all)", &text[..end], text.len()).into(),
        None => text.into(),
    }
}

/// All errors of a report as coloured text (the colours are stripped where stderr is no terminal).
fn render(report: &Report) -> String {
    let mut out = String::new();
    for e in &report.0 {
        let _ = write!(out, "{RED}error[{}]{RED:#}{BOLD}: {}{BOLD:#}", e.code().text(), short(e.message()));
        if *e.loc() != Loc::Unknown {
            let _ = write!(out, "\n  {BLUE}-->{BLUE:#} {}", short(&e.loc().to_string()));
        }
        for n in e.notes() {
            let _ = write!(out, "\n  {BLUE}note{BLUE:#}: {}", short(n));
        }
        out.push('\n');
    }
    if report.0.len() > 1 {
        let _ = writeln!(out, "{} errors", report.0.len());
    }
    out.truncate(out.trim_end().len());
    out
}

/// A line on stderr. A closed stderr is nobody's mistake.
pub fn say(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Text on stdout. A reader that has seen enough (`nnc info m.onnx | head`) is no error.
pub fn print(text: &str) -> Outcome {
    print_bytes(text.as_bytes())
}

pub fn print_bytes(bytes: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io(format!("cannot write to stdout: {e}")).into()),
        _ => Ok(()),
    }
}

/// The bytes of a file, or of stdin for `-`.
pub fn read(path: &Path) -> Outcome<Vec<u8>> {
    let mut bytes = vec![];
    let done = if is_dash(path) { std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()) } else { std::fs::read(path).map(|b| bytes = b) };
    done.map_err(|e| Error::io(format!("cannot read {}: {e}", path.display())))?;
    Ok(bytes)
}

/// Writes a whole file or none of it; `-` is stdout.
pub fn write(path: &Path, bytes: &[u8]) -> Outcome {
    if is_dash(path) {
        return print_bytes(bytes);
    }
    nnc::artifact::write_atomically(path, |file| file.write_all(bytes)).map_err(Failure::from)
}

pub fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Text as XML and HTML take it.
pub fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The most memory that this process has had, as the kernel counts it.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
