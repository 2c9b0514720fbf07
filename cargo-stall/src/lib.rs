//! Finds the code that blocks the Tokio event loops of any program, from outside and unchanged.
//!
//! This is the library of the programs `cargo-stall` and `tokio-stall`. Semantic versioning covers
//! their arguments, their exit codes and the JSON that they write. It does not cover the functions
//! here.
//!
//! ```text
//!  /proc/PID/task/* ──▶ watch ──▶ tracked ──▶ hold ──▶ reports ──▶ text, JSON, JUnit, SARIF
//!   states, clocks      ticks     a thread    a poll
//!                                    │          │
//!                          os::stop, a stack    os::poll_end, the end of one poll
//! ```
//!
//! A thread that sleeps is read without a stop. A thread that computes is stopped for as long as
//! its registers and its stack are copied, about 30 µs. A hardware breakpoint of the kernel's
//! `perf` shows the end of the poll, so that many short polls are not taken for a long one.
//!
//! Everything runs on the main thread: the kernel lets a thread go on for the one that stopped it.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod supported {
    pub(crate) use crate::commands::{cargo_stall, tokio_stall};
}

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod supported {
    use std::ffi::OsString;
    use std::process::ExitCode;

    pub(crate) fn tokio_stall(_: impl Iterator<Item = OsString>) -> ExitCode {
        eprintln!(
            "tokio-stall: looks at processes on Linux alone, on x86-64 and aarch64; elsewhere, add \
             the library `tokio-stall` to the program"
        );
        ExitCode::from(2)
    }

    pub(crate) use tokio_stall as cargo_stall;
}

macro_rules! modules {
    ($($module:ident)*) => {
        $(#[cfg(all(
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "aarch64")
        ))]
        mod $module;)*
    };
}

modules! { args attach build commands dump findings hold merge os output problem run table target text tracked watch }

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `tokio-stall` with these arguments.
pub fn tokio_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    supported::tokio_stall(arguments)
}

/// Runs `cargo-stall` with these arguments. Cargo's own first argument, `stall`, is left out.
pub fn cargo_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    supported::cargo_stall(arguments)
}
