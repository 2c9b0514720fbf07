//! The same face where the system gives no evidence about threads: everything is unknown.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* nothing at all.

use super::ThreadEvidence;

/// There is no number for a thread here.
pub(crate) fn current_tid() -> u32 {
    0
}

/// Not to be told here.
pub(crate) fn debugger_attached() -> bool {
    false
}

/// Calls have no names here, and none is ever seen.
pub(crate) fn call_name(number: i64) -> String {
    format!("system call {number}")
}

/// Nothing can be opened here.
#[derive(Debug)]
pub(crate) struct ThreadFiles {}

impl ThreadFiles {
    pub(crate) fn open(_tid: u32) -> Option<ThreadFiles> {
        None
    }

    pub(crate) fn look(&self) -> Option<ThreadEvidence> {
        None
    }
}
