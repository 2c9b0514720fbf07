//! Evidence about a thread, taken from outside it: what the kernel says it is doing, and its stack.
//!
//! *Runs on:* the watchdog thread looks and asks; the stalled thread copies its stack, in a signal handler;
//! whoever explains the stack reads which files are mapped.
//! *Must not:* lock or wait on the watchdog, nor allocate there but where a file is opened and for the list of
//! what is read of memory; in the handler still less is allowed, see `stack/handler.rs`. What cannot be read is
//! `None`, never an error.
//!
//! A stall is only blamed on code for the time in which the thread computed or slept in a call of its
//! own. Time in which it wanted a CPU and had none belongs to the host. [`ThreadEvidence`] tells the two
//! apart; the unsafe of this crate lives in this directory.

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
#[cfg(all(feature = "testing", not(loom)))]
pub(crate) use usage::{Usage, own_usage, stolen};

#[cfg_attr(target_os = "linux", path = "procfs.rs")]
#[cfg_attr(not(target_os = "linux"), path = "unsupported.rs")]
mod evidence;
pub(crate) use evidence::{
    ThreadFiles, Throttle, call_kind, call_name, current_tid, debugger_attached, descriptor,
    is_signal_blocked, waits_for_events,
};

// Stacks need a known layout of registers, and an unwinder: `explain::stack` has the same condition.
#[cfg_attr(
    not(all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(loom)
    )),
    path = "no_stack.rs"
)]
pub(crate) mod stack;
#[cfg(all(feature = "testing", not(loom)))]
pub(crate) use stack::SleepTimer;
pub(crate) use stack::{
    Addressee, DEFAULT_SIGNAL, MAILBOXES, RawStack, Request, install, is_replaced, is_usable,
    own_bounds,
};

// The model checker needs no signals, only the protocol.
#[cfg(all(test, loom))]
mod loom;
#[cfg(all(test, loom))]
#[path = "stack/mailbox.rs"]
mod mailbox;

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

/// Why a stack could not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // The first where stacks are taken, the others where they are not.
pub(crate) enum NotTaken {
    /// Not on this system, or not in this build.
    Unsupported,
    /// The thread has exited.
    ThreadGone,
    /// All buffers are in use.
    Busy,
    /// Somebody has taken the signal's handler away.
    SignalTaken,
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
