//! What the detector can see of one runtime.
//!
//! *Runs on:* the user's threads, and every thread of the detector that tells of it.

use super::WatchedRuntime;
use crate::os::{self, ThreadFiles};
use crate::probe;
use crate::turns::NoTurns;
use std::fmt;
use std::sync::atomic::Ordering;

/// What the detector can see of one runtime. A quiet detector is a sign of health only as far as it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Coverage {
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// Its workers. All are watched, in any case.
    pub workers: usize,
    /// How many of them have a thread that is known: names, and proof of sleep, need it.
    pub known_threads: usize,
    /// Every poll of every task is marked: `watch_polls` with `tokio_unstable`. Otherwise marked polls
    /// are those in spans and in `watched` futures.
    pub all_polls: bool,
    /// Some subscriber of this process has our layer.
    pub spans: bool,
    /// The system tells whether a thread sleeps, computes, or waits for a CPU. Without, host trouble is
    /// told apart only by the watchdog's own lateness.
    pub thread_evidence: bool,
    /// Stacks of stalled threads are taken. Without, reports have no sites.
    pub stacks: bool,
    /// The turns of the workers' loops are counted, so that one long poll is told from many short ones without
    /// a mark.
    pub turns: bool,
    /// Why they are not, if they are not.
    pub no_turns: Option<&'static str>,
}

impl Coverage {
    pub(crate) fn of(runtime: &WatchedRuntime) -> Coverage {
        Coverage {
            runtime: runtime.name.clone(),
            workers: runtime.metrics.num_workers(),
            known_threads: runtime.stats.enrolled.load(Ordering::Relaxed),
            all_polls: runtime.stats.all_polls.load(Ordering::Relaxed),
            spans: probe::is_layer_installed(),
            stacks: runtime.watch.signal.is_ok(),
            turns: runtime.stats.no_turns().is_none(),
            no_turns: runtime.stats.no_turns().map(NoTurns::as_str),
            thread_evidence: ThreadFiles::open(os::current_tid()).is_some(),
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |seen| if seen { "yes" } else { "no" };
        write!(
            f,
            "{:?}: {} workers; polls: {}; span names: {}; thread evidence: {}; stacks: {}; turns: ",
            self.runtime,
            self.workers,
            if self.all_polls { "all" } else { "marked ones" },
            yes(self.spans),
            yes(self.thread_evidence),
            yes(self.stacks),
        )?;
        match self.no_turns {
            None => f.write_str("yes"),
            Some(why) => write!(f, "no ({why})"),
        }
    }
}
