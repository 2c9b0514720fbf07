//! A child that is held before the first instruction of its program, so that its debug information
//! is read when it begins.
//!
//! *Runs on:* the main thread.
//! *Must not:* change the child. It is traced by its own wish until the program is loaded, and is
//! let go then.

#![allow(unsafe_code)]

use super::stop::{let_go, wait};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

/// Starts a child, calls `meet` once its program is loaded, and lets it go.
///
/// # Errors
///
/// The program cannot be started. If it cannot be held, it runs from the beginning.
pub(crate) fn start_held<R>(
    mut command: Command,
    meet: impl FnOnce(u32) -> R,
) -> io::Result<(Child, R)> {
    // SAFETY: between fork and exec, the child makes one system call, which takes no lock and
    // allocates nothing.
    unsafe {
        command.pre_exec(|| {
            libc::ptrace(
                libc::PTRACE_TRACEME,
                0,
                std::ptr::null_mut::<libc::c_void>(),
                std::ptr::null_mut::<libc::c_void>(),
            );
            Ok(())
        });
    }
    let child = command.spawn()?;
    let tid = child.id() as i32;
    // A child that has failed to be traced is not stopped.
    let is_held = is_traced(child.id()) && wait(tid).is_ok();
    let met = meet(child.id());
    if is_held {
        let_go(tid, 0)?;
    }
    Ok((child, met))
}

/// Whether this process traces the child.
fn is_traced(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let tracer = lines.find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() == std::process::id().to_string())
}
