//! The reason why a worker was held, in one word.
//!
//! *Runs on:* every thread: plain data.

use std::fmt;

/// The reason why a worker was held; [`StallReport`](crate::StallReport) has it.
///
/// A stall is reported only if the code by itself held the worker for the threshold. So the code's
/// own time decides, computing or asleep: the longer of the two. The host is the cause if the
/// code's own time is less than five thresholds, and the host has made the stall more than four
/// times as long.
///
/// `Display` and `Serialize` write it as `cpu`, `blocked/sleep`, `contention` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The code computed.
    Cpu,
    /// The thread slept in the kernel, in a call of its own.
    Blocked(Blocking),
    /// The host: other work on the machine took the CPU.
    Contention,
    /// The host: a CPU quota held the process back.
    Throttled,
    /// The host: the whole process stood still, stopped or suspended.
    Suspended,
    /// There is too little evidence.
    Unknown,
}

/// The thing that a thread slept for, in the cause of a [`StallReport`](crate::StallReport).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Blocking {
    /// For a time to pass.
    Sleep,
    /// For another thread: a lock, a condition, a channel, the end of a thread.
    Lock,
    /// For a file, a device, a pipe or a terminal.
    File,
    /// For a peer, or for the resolution of its name.
    Network,
    /// For another process.
    Process,
    /// For something else, or a page of memory.
    Other,
}

impl Cause {
    /// Whether the host is the cause, for more than three quarters of the time.
    pub fn is_host(self) -> bool {
        matches!(
            self,
            Cause::Contention | Cause::Throttled | Cause::Suspended
        )
    }

    /// The cause as `Display` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Cpu => "cpu",
            Cause::Blocked(Blocking::Sleep) => "blocked/sleep",
            Cause::Blocked(Blocking::Lock) => "blocked/lock",
            Cause::Blocked(Blocking::File) => "blocked/file",
            Cause::Blocked(Blocking::Network) => "blocked/network",
            Cause::Blocked(Blocking::Process) => "blocked/process",
            Cause::Blocked(Blocking::Other) => "blocked/other",
            Cause::Contention => "contention",
            Cause::Throttled => "throttled",
            Cause::Suspended => "suspended",
            Cause::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Cause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
