//! The interface of `procfs` on systems that give no evidence about threads: everything is unknown.
//!
//! *Runs on:* every thread that uses `procfs` elsewhere.
//!
//! It does nothing.

use super::{CallKind, Descriptor, HiddenEvidence, Pid, ThreadEvidence};
use std::time::Duration;

/// Threads have no number here.
pub(crate) fn current_tid() -> u32 {
    0
}

/// Unknown here.
pub(crate) fn debugger_attached() -> bool {
    false
}

/// Calls have no names here, and no thread is ever seen in one.
pub(crate) fn call_name(number: i64) -> String {
    format!("system call {number}")
}

/// No descriptor is needed here.
pub(crate) fn descriptor_limit() -> u64 {
    u64::MAX
}

/// Nothing can be opened here.
#[derive(Debug)]
pub(crate) struct ThreadFiles {}

impl ThreadFiles {
    pub(crate) fn open(_tid: u32) -> Option<ThreadFiles> {
        None
    }

    pub(crate) fn try_open(_tid: u32) -> std::io::Result<Option<ThreadFiles>> {
        Ok(None)
    }

    pub(crate) fn look(&mut self) -> Option<ThreadEvidence> {
        None
    }

    pub(crate) fn run_queue(&self) -> Option<Duration> {
        None
    }
}

/// Everything is hidden here.
pub(crate) fn hidden_evidence() -> Option<HiddenEvidence> {
    Some(HiddenEvidence::System)
}

/// No call is known here.
pub(crate) fn waits_for_events(_number: i64) -> bool {
    false
}

pub(crate) fn call_kind(_number: i64) -> CallKind {
    CallKind::Other
}

/// Unknown here.
pub(crate) fn descriptor(_process: Pid, _number: u64) -> Descriptor {
    Descriptor::Other
}

/// No signals are sent here.
pub(crate) fn is_signal_blocked(_tid: u32, _signal: i32) -> bool {
    false
}

/// Not known here.
pub(crate) fn cpu_clock(_tid: u32) -> Option<Duration> {
    None
}

/// Not counted here.
pub(crate) fn preemptions() -> Option<u64> {
    None
}

/// There are no control groups here.
#[derive(Debug)]
pub(crate) struct Throttle {}

impl Throttle {
    pub(crate) fn open() -> Throttle {
        Throttle {}
    }

    pub(crate) fn is_incomplete(&self) -> bool {
        false
    }

    pub(crate) fn has_quota(&self) -> bool {
        false
    }

    pub(crate) fn read(&self) -> Duration {
        Duration::ZERO
    }
}
