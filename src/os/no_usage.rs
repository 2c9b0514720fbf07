//! The same face where the system does not tell what a thread has used.
//!
//! *Runs on:* any thread that is measured.
//! *Here:* nothing at all.

use std::time::Duration;

/// Never made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) run_queue: Duration,
    pub(crate) sleeps: u64,
}

/// Not to be told here.
pub(crate) fn own_usage() -> Option<Usage> {
    None
}

/// Not to be told here.
pub(crate) fn stolen() -> Option<Duration> {
    None
}
