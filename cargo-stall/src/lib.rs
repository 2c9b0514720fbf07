//! Finds the code that blocks the Tokio event loops of any program, from outside and unchanged.
//!
//! This is the library of the programs `cargo-stall` and `tokio-stall`. Semantic versioning covers
//! their arguments, their exit codes and the JSON that they write. It does not cover the functions
//! here.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod observer;

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod observer {
    //! The words of the programs where they cannot look at another process.

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

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `tokio-stall` with these arguments.
pub fn tokio_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    observer::tokio_stall(arguments)
}

/// Runs `cargo-stall` with these arguments. Cargo's own first argument, `stall`, is left out.
pub fn cargo_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    observer::cargo_stall(arguments)
}
