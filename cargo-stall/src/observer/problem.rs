//! The errors of the programs: a sentence each, with the fix.
//!
//! *Runs on:* the main thread.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The reason why the program cannot do its work.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The arguments make no sense.
    Usage(String),
    /// There is no process with this number.
    NoProcess(u32),
    /// The process has ended.
    Exited(u32),
    /// The process belongs to another user, or the kernel allows nobody to look.
    Forbidden(u32),
    /// Another debugger has it.
    Traced(u32, u32),
    /// A program of 32 bits.
    ThirtyTwoBit(u32),
    /// A program for another processor, as in an emulator.
    Foreign(u32),
    /// A thread of the kernel, or no program.
    NoProgram(u32),
    /// No function of the program has a name.
    Stripped(u32),
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// A file has text in it that makes no sense.
    Text(String),
    /// A program cannot be started.
    Start(PathBuf, io::Error),
    /// Something else.
    Io(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Problem {
        Problem::Io(error)
    }
}

impl From<lexopt::Error> for Problem {
    fn from(error: lexopt::Error) -> Problem {
        Problem::Usage(error.to_string())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Usage(text) => write!(f, "{text}; `--help` shows how"),
            Problem::NoProcess(pid) => write!(f, "there is no process {pid}"),
            Problem::Exited(pid) => write!(f, "process {pid} has ended"),
            Problem::Forbidden(pid) => write!(f, "process {pid} may not be looked at; {}", fix()),
            Problem::Traced(pid, by) => write!(
                f,
                "process {pid} is held by the debugger {by}; end that one first"
            ),
            Problem::ThirtyTwoBit(pid) => write!(
                f,
                "process {pid} is a program of 32 bits; only those of 64 bits are understood"
            ),
            Problem::Foreign(pid) => write!(
                f,
                "process {pid} is a program for another processor; run a `tokio-stall` that is \
                 built for the same one"
            ),
            Problem::NoProgram(pid) => {
                write!(f, "process {pid} has no program: it belongs to the kernel")
            }
            Problem::Stripped(pid) => write!(
                f,
                "no function of process {pid} has a name, so no worker can be told; build it \
                 without `strip`, and with `debug = 1`"
            ),
            Problem::File(path, error) => write!(f, "{}: {error}", path.display()),
            Problem::Text(text) => f.write_str(text),
            Problem::Start(path, error) => {
                write!(f, "{} cannot be started: {error}", path.display())
            }
            Problem::Io(error) => error.fmt(f),
        }
    }
}

/// The fix for a process that may not be looked at, by what forbids it here.
fn fix() -> &'static str {
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match yama.as_deref().map(str::trim) {
        Ok("1") => {
            "yama allows parents alone (`kernel.yama.ptrace_scope` is 1): run as root, or set it \
             to 0"
        }
        Ok("2") => "yama allows administrators alone: run as root",
        Ok("3") => "yama allows nobody until the next boot: set `kernel.yama.ptrace_scope` to 0",
        _ if is_container() => {
            "run as the same user, and give the container the capability SYS_PTRACE"
        }
        _ => "run as the same user, or as root",
    }
}

fn is_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|path| std::path::Path::new(path).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}
