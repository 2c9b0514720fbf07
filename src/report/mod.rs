//! What a person gets to read: reports, and the places they go to.
//!
//! *Runs on:* the threads `stall-reporter` and `stall-sinks`; the types are the user's.
//! *Here:* may allocate; `sinks` may log and call the user's code. Holds nothing that the watchdog needs.

pub(crate) mod limiter;
pub(crate) mod log;
#[cfg(feature = "metrics")]
pub mod metrics;
pub(crate) mod news;
pub(crate) mod recent;
pub(crate) mod reporter;
pub(crate) mod sinks;

mod frame;
mod known;
mod missing;
mod names;
mod pool_wait;
mod profile;
pub(crate) mod stall;
mod text;
pub(crate) mod worker_stacks;

pub use crate::explain::cause::{Blocking, Cause};
pub use crate::watchdog::detector::{Certainty, TimeSplit};
pub use frame::{Frame, Origin, Site, StackSample};
pub use missing::{Missing, NoStack};
pub use pool_wait::PoolWaitReport;
pub use profile::{FoldedBy, Profile, SiteTotals};
pub use stall::{Phase, StallReport};
pub use text::Headline;
#[cfg(all(feature = "testing", not(loom)))]
pub(crate) use text::Human;
pub use worker_stacks::WorkerStack;

#[cfg(feature = "serde")]
use std::time::{Duration, SystemTime};

#[cfg(feature = "serde")]
pub(crate) fn seconds<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(feature = "serde")]
fn seconds_if_known<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => seconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(feature = "serde")]
fn unix_seconds<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    serializer.serialize_f64(since.as_secs_f64())
}
