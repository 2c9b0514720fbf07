//! The report of an exhausted blocking pool.
//!
//! *Runs on:* every thread: plain data. `stall-reporter` makes it.

use super::stall::Phase;
use super::text::Human;
use super::{Site, StackSample, site};
use std::fmt;
use std::time::{Duration, SystemTime};

/// A closure that waits, or waited, too long for a thread of the blocking pool; for
/// [`Builder::on_pool_wait`](crate::Builder::on_pool_wait).
///
/// The detector sends an empty closure through `spawn_blocking` now and then, one at a time. If it
/// waits for [`Builder::pool_threshold`](crate::Builder::pool_threshold), so do all others. There
/// is a report once the pool is known to be exhausted, and none if a thread of it waits for a CPU:
/// "The blocking pool" in [the guide](crate::guide::how_it_decides) has the rule. An exhausted
/// pool holds no worker.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolWaitReport {
    /// The number of this wait. Waits and stalls are counted together.
    pub id: u64,
    /// Whether it still waits.
    pub phase: Phase,
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// When the closure was handed to the pool, by the wall clock.
    #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix_seconds"))]
    pub started_at: SystemTime,
    /// How long the closure has been waiting, or waited.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "waited_seconds", serialize_with = "super::seconds")
    )]
    pub waited: Duration,
    /// The stacks of closures that hold the pool, of a few of its threads, as known at this report.
    /// Other closures may hold it as well.
    pub stacks: Vec<StackSample>,
}

impl PoolWaitReport {
    /// The line of own code in which closures that hold the pool were found most often.
    pub fn site(&self) -> Option<Site> {
        let index = site::telling(&self.stacks, false)?;
        site::site(&self.stacks[index].frames)
    }
}

impl fmt::Display for PoolWaitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runtime, .. } = self;
        let waited = Human(self.waited);
        match self.phase {
            Phase::Ended => write!(
                f,
                "the blocking pool of {runtime:?} let a closure wait for {waited}"
            ),
            _ => write!(
                f,
                "the blocking pool of {runtime:?} is exhausted: a closure has waited for {waited} so far"
            ),
        }?;
        match self.site() {
            Some(site) => write!(f, "; held in {site}"),
            None => Ok(()),
        }
    }
}
