//! Evidence about a thread, taken from outside it: what the kernel says it is doing.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* no allocation after a thread is enrolled, no lock, no waiting; what cannot be read is `None`,
//! never an error.
//!
//! A stall is only blamed on code for the time in which the thread computed or slept in a call of its
//! own. Time in which it wanted a CPU and had none belongs to the host. [`ThreadEvidence`] tells the two
//! apart; the unsafe of this crate lives in this directory.

#[cfg(target_os = "linux")]
mod calls;

#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "unsupported.rs")]
mod imp;

pub(crate) use imp::{ThreadFiles, call_name, current_tid, debugger_attached};

use std::time::Duration;

/// What a thread was doing at one moment, and its clocks so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadEvidence {
    /// CPU time used since the thread began, exact to the moment.
    pub(crate) cpu: Duration,
    /// Time spent waiting for a CPU, as of the last time it got one.
    pub(crate) run_queue: Duration,
    /// How often it was put on a CPU. Unchanged, and not on one now: it has not run in between.
    pub(crate) runs: u64,
    /// What it was doing.
    pub(crate) state: ThreadState,
}

/// What a thread was doing at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadState {
    /// Executing: its CPU clock moved while we looked.
    OnCpu,
    /// Ready to execute, without a CPU to do so.
    Waiting,
    /// Asleep in this system call; `None` if asleep outside of one, as in a page fault.
    Asleep(Option<i64>),
    /// Not to be told on this system.
    Unknown,
}
