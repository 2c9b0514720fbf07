//! Reports: the results for users, as plain data.
//!
//! *Runs on:* every thread. `stall-reporter` makes them.
//! *Must not:* depend on the rooms that find stalls.

#[cfg(all(any(feature = "testing", feature = "outside"), not(loom)))]
mod baseline;
mod cause;
mod certainty;
#[cfg(all(feature = "testing", not(loom)))]
mod examples;
#[cfg(feature = "flamegraph")]
mod flamegraph;
mod frame;
mod missing;
mod pool_wait;
#[cfg(feature = "pprof")]
mod pprof;
mod profile;
#[cfg(feature = "outside")]
mod read;
mod recent;
#[cfg(feature = "tower")]
mod request;
pub(crate) mod site;
mod site_table;
mod split;
mod stack_lines;
mod stacks;
mod stall;
mod stderr;
mod text;
#[cfg(feature = "serve")]
pub(crate) mod trace;
mod trace_context;
mod victims;
mod worker_stack;

#[cfg(all(any(feature = "testing", feature = "outside"), not(loom)))]
#[cfg_attr(not(feature = "outside"), allow(unreachable_pub))]
pub use baseline::KnownStalls;
pub use cause::{Blocking, Cause};
pub use certainty::Certainty;
#[cfg(all(feature = "flamegraph", feature = "serve"))]
pub(crate) use flamegraph::draw;
pub use frame::{Frame, Origin, Site, StackSample};
pub(crate) use frame::{add_stack, made_by_a_build_script};
pub use missing::{Missing, NoStack};
pub use pool_wait::PoolWaitReport;
#[cfg(feature = "outside")]
pub use profile::add_to_profile;
pub use profile::{FoldedBy, Profile, SiteTotals};
pub(crate) use recent::Recent;
#[cfg(feature = "tower")]
pub use request::{LostTo, RequestReport};
#[allow(unused_imports)] // Builds without stacks or assertions use a part of them.
pub(crate) use site::{SIGNAL_RETURN, done_by_the_poll, of_the_poll};
pub use split::TimeSplit;
#[cfg(feature = "outside")]
pub use stack_lines::shown_lines;
#[cfg(all(any(test, feature = "testing"), not(loom)))]
pub(crate) use stall::example;
pub use stall::{Phase, StallReport};
pub(crate) use stderr::{write_last_words, write_to_stderr};
pub use text::Headline;
#[cfg_attr(not(feature = "outside"), allow(unreachable_pub))]
pub use text::Human;
pub use trace_context::TraceContext;
pub use victims::{RouteVictims, Victims};
pub use worker_stack::WorkerStack;

#[cfg(feature = "serde")]
use std::time::{Duration, SystemTime};

/// Serialises a duration as seconds.
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
