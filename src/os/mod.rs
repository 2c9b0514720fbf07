//! Evidence from the kernel: a thread's clocks and state, its system call, the CPU quota of its
//! process.
//!
//! *Runs on:* `stall-watchdog`; a thread that takes a slot reads its own number and bounds.
//! *Must not:* lock or wait. It allocates only to open a file, and for the list of the pieces of
//! memory to read.
//!
//! Evidence that cannot be read is `None`, never an error.
//!
//! Blamed is the time in which a thread computed or slept in a call of its own. Time in which it
//! was ready and had no CPU is the host's. [`ThreadEvidence`] separates the two.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
#[cfg_attr(target_pointer_width = "32", allow(dead_code))] // No turns and no stacks.
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
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(loom)
))]
pub(crate) use usage::own_sleeps;
#[cfg(all(feature = "testing", not(loom)))]
pub(crate) use usage::{Usage, own_usage, stolen};

#[cfg_attr(target_os = "linux", path = "procfs.rs")]
#[cfg_attr(not(target_os = "linux"), path = "unsupported.rs")]
mod evidence;
pub(crate) use evidence::{
    ThreadFiles, Throttle, call_kind, call_name, cpu_clock, current_tid, debugger_attached,
    descriptor, descriptor_limit, hidden_evidence, is_signal_blocked, preemptions,
    waits_for_events,
};
// Looks from outside ask, too.
#[cfg(all(feature = "outside", target_os = "linux", not(loom)))]
pub(crate) use evidence::counts_runs;

#[cfg(all(target_os = "linux", not(loom)))]
mod bounds;
#[cfg(all(target_os = "linux", not(loom)))]
pub(crate) use bounds::own_bounds;
#[cfg(not(all(target_os = "linux", not(loom))))]
pub(crate) fn own_bounds() -> (usize, usize) {
    (0, 0)
}

mod pid;
pub(crate) use pid::Pid;

mod static_ref;
pub(crate) use static_ref::StaticRef;

#[cfg(all(
    feature = "stacks",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(loom)
))]
mod signals;
#[cfg(all(
    feature = "stacks",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(loom)
))]
pub(crate) use signals::{is_signal_pending, would_fail_by_a_signal};

mod spawn;
#[cfg(all(
    feature = "stacks",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(loom)
))]
pub(crate) use spawn::{all_but_faults, let_through};
pub(crate) use spawn::{spawn, with_signals_of_the_program};

use std::time::Duration;

/// The state of a thread at one moment, and its clocks so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadEvidence {
    /// CPU time used since the thread began, exact to the moment.
    pub(crate) cpu: Duration,
    /// Time spent waiting for a CPU, as of the last time it got one.
    pub(crate) run_queue: Duration,
    /// How often it was put on a CPU. If the number is unchanged and the thread is not on a CPU
    /// now, it has not run in between.
    pub(crate) runs: u64,
    /// The state at that moment.
    pub(crate) state: ThreadState,
}

/// The part of the evidence about threads that this process cannot have, with the reason.
#[allow(dead_code)] // Each system has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HiddenEvidence {
    /// All of it: this system has none.
    System,
    /// All of it: the files cannot be opened.
    NoFiles,
    /// All of it: the kernel does not count how often a thread is put on a CPU.
    Uncounted,
    /// All of it: descriptors or memory are short at this moment.
    Short,
    /// All of it: the files are open and cannot be read.
    Unreadable,
    /// Whether a thread that is off its CPU sleeps.
    States,
    /// The system call that a thread sleeps in.
    Calls,
}

impl HiddenEvidence {
    /// Whether nothing distinguishes a thread that sleeps from one without a CPU.
    pub(crate) fn is_all(self) -> bool {
        self != HiddenEvidence::Calls
    }

    /// The reason and the fix in a sentence.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            HiddenEvidence::System => "this system shows no states of threads; Linux does",
            HiddenEvidence::NoFiles => {
                "`/proc/self/task` cannot be opened; mount `/proc`, and allow `openat`"
            }
            HiddenEvidence::Uncounted => {
                "the kernel keeps no times of threads, and `schedstat` shows zeros; boot it \
                 without `nodelayacct`"
            }
            HiddenEvidence::Short => {
                "no file can be opened, as descriptors or memory are short; raise the limit"
            }
            HiddenEvidence::Unreadable => {
                "the files of `/proc/self/task` cannot be read; allow `pread64` and `clock_gettime`"
            }
            HiddenEvidence::States => {
                "neither `syscall` nor `stat` of `/proc/self/task` can be read; mount `/proc`"
            }
            HiddenEvidence::Calls => {
                "the call that a thread sleeps in is secret, as after a change of user; \
                 `prctl(PR_SET_DUMPABLE, 1)` after the change shows it"
            }
        }
    }
}

/// Whether a thread runs, waits for a CPU, or sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))] // Nothing is known there.
pub(crate) enum ThreadState {
    /// On a CPU: its CPU clock moved during the look.
    OnCpu,
    /// In the run queue: ready, without a CPU.
    Waiting,
    /// Asleep in this system call. `None` if asleep outside of one, as in a page fault.
    Asleep(Option<Call>),
    /// This system does not show it.
    Unknown,
}

impl ThreadState {
    pub(crate) fn is_asleep(self) -> bool {
        matches!(self, ThreadState::Asleep(_))
    }
}

/// A system call that a thread is asleep in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) number: i64,
    /// The first argument, often a descriptor.
    pub(crate) first: u64,
    /// The stack pointer and the next instruction. They distinguish one sleep from the next.
    pub(crate) sp: u64,
    pub(crate) pc: u64,
}

/// The kind of object that a descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))] // Nothing is known there.
pub(crate) enum Descriptor {
    Socket,
    /// A file, a device, a pipe or a terminal.
    File,
    Other,
}

/// The thing that a system call makes its thread wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))] // Nothing is known there.
pub(crate) enum CallKind {
    /// A time.
    Sleep,
    /// Another thread.
    Lock,
    /// A file's content or directory.
    File,
    /// The object behind its first argument, a descriptor.
    Descriptor,
    /// A peer.
    Network,
    /// One of several descriptors.
    Poll,
    /// Another process.
    Process,
    Other,
}
