//! The interface of `usage` on systems that do not show what a thread has used.
//!
//! *Runs on:* any thread that is measured.
//!
//! It does nothing.

use std::time::Duration;

/// Never made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) run_queue: Duration,
    pub(crate) sleeps: u64,
}

/// Unknown here.
pub(crate) fn own_usage() -> Option<Usage> {
    None
}

/// Unknown here.
pub(crate) fn stolen() -> Option<Duration> {
    None
}
