//! The things that the detector can see of one runtime.
//!
//! *Runs on:* the user's threads, and the threads of the detector that report it.

use super::WatchedRuntime;
use crate::os::{self, ThreadFiles};
use crate::probe;
use crate::turns::NoTurns;
use std::fmt;
use std::sync::atomic::Ordering;

/// The things that the detector can see of one runtime.
///
/// A detector without reports is a sign of health only for these things. `Display` writes one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Coverage {
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The number of its workers. All of them are watched.
    pub workers: usize,
    /// The number of workers whose thread is known. Names and the proof of a sleep need it.
    pub known_threads: usize,
    /// Whether every poll of every task is marked: `watch_polls` with `tokio_unstable`. Otherwise
    /// polls are marked in spans and in `watched` futures.
    pub all_polls: bool,
    /// Whether this process is a fork of the one that was watched. The detector's threads are not
    /// here, so nothing is seen. A watch that is started here is one of its own.
    pub forked: bool,
    /// Whether a subscriber of this process has the [`layer()`](crate::layer()).
    pub spans: bool,
    /// Whether the system shows if a thread sleeps, computes, or waits for a CPU. Otherwise only
    /// the watchdog's own lateness distinguishes trouble of the host.
    pub thread_evidence: bool,
    /// Whether stacks of stalled threads are taken. Otherwise reports have no sites.
    pub stacks: bool,
    /// Whether the turns of the workers' loops are counted. They distinguish one long poll from
    /// many short ones without a mark.
    pub turns: bool,
    /// The reason why turns are not counted, if they are not.
    pub no_turns: Option<&'static str>,
}

impl Coverage {
    pub(crate) fn of(runtime: &WatchedRuntime) -> Coverage {
        if !runtime.watch.process.is_this() {
            return Coverage::in_a_fork(runtime);
        }
        Coverage {
            forked: false,
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

    fn in_a_fork(runtime: &WatchedRuntime) -> Coverage {
        Coverage {
            forked: true,
            runtime: runtime.name.clone(),
            workers: runtime.metrics.num_workers(),
            known_threads: 0,
            all_polls: false,
            spans: false,
            stacks: false,
            turns: false,
            no_turns: Some("this process is a fork of the one that was watched"),
            thread_evidence: false,
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
