//! What the operating system says of a thread, of a system call and of a control group.
//!
//! *Runs on:* the watchdog thread; a thread that takes a slot asks for its own number and bounds.
//! *Must not:* lock or wait, nor allocate but where a file is opened and for the list of what is read of memory.
//! What cannot be read is `None`, never an error.
//!
//! A stall is only blamed on code for the time in which the thread computed or slept in a call of its
//! own. Time in which it wanted a CPU and had none belongs to the host. [`ThreadEvidence`] tells the two
//! apart.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
pub(crate) mod memory;
#[cfg(target_os = "linux")]
mod throttle;

// Only tests measure a thread from within.
#[cfg(all(feature = "testing", not(loom)))]
#[cfg_attr(not(target_os = "linux"), path = "no_usage.rs")]
mod usage;
#[cfg(all(
    feature = "testing",
    feature = "stacks",
    target_os = "linux",
    not(loom)
))]
pub(crate) use usage::own_sleeps;
#[cfg(all(feature = "testing", not(loom)))]
pub(crate) use usage::{Usage, own_usage, stolen};

#[cfg_attr(target_os = "linux", path = "procfs.rs")]
#[cfg_attr(not(target_os = "linux"), path = "unsupported.rs")]
mod evidence;
pub(crate) use evidence::{
    ThreadFiles, Throttle, call_kind, call_name, current_tid, debugger_attached, descriptor,
    is_signal_blocked, waits_for_events,
};

#[cfg(all(target_os = "linux", not(loom)))]
mod bounds;
#[cfg(all(target_os = "linux", not(loom)))]
pub(crate) use bounds::own_bounds;
#[cfg(not(all(target_os = "linux", not(loom))))]
pub(crate) fn own_bounds() -> (usize, usize) {
    (0, 0)
}

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
    Asleep(Option<Call>),
    /// Not to be told on this system.
    Unknown,
}

/// A system call that a thread is asleep in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) number: i64,
    /// The first argument, often a descriptor.
    pub(crate) first: u64,
    /// The stack pointer and the next instruction. With them, one sleep is told from the next.
    pub(crate) sp: u64,
    pub(crate) pc: u64,
}

/// What a descriptor leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    Socket,
    /// A file, a device, a pipe or a terminal.
    File,
    Other,
}

/// What a system call makes its thread wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// A time.
    Sleep,
    /// Another thread.
    Lock,
    /// A file's content or directory.
    File,
    /// Whatever its first argument, a descriptor, leads to.
    Descriptor,
    /// A peer.
    Network,
    /// One of several descriptors.
    Poll,
    /// Another process.
    Process,
    Other,
}
