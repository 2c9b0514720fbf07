//! What can be asked of a watch at any time: what it sees, and how it fares.
//!
//! *Runs on:* the user's threads.
//! *Here:* copies of counters that the detector's threads keep.

use crate::capture::ThreadFiles;
use crate::engine::WatchedRuntime;
use crate::probe::{self, AllowedBlocking};
use crate::turns::NoTurns;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

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
            thread_evidence: ThreadFiles::open(crate::capture::current_tid()).is_some(),
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

/// Figures about a watch at one moment; from [`Guard::status`](crate::Guard::status).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Status {
    /// One for each runtime of the watch.
    pub runtimes: Vec<RuntimeStatus>,
    /// Blocking that was allowed in this process, by reason.
    pub allowed: Vec<AllowedBlocking>,
    /// Ticks of the watchdog so far. A number that stands still for longer than 25 ms means that the
    /// detector does not run.
    pub ticks: u64,
    /// How late the watchdog itself woke.
    pub watchdog_lateness: Option<Waits>,
    /// Reports lost because the reporter was held up, by a callback or a logger.
    pub dropped_reports: u64,
    /// Callbacks and loggers that panicked.
    pub failed_callbacks: u64,
}

/// Figures about one runtime at one moment.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RuntimeStatus {
    /// The name under which it is watched.
    pub runtime: String,
    /// It has been shut down, and is no longer watched.
    pub shut_down: bool,
    /// Stalls so far that were certain when first reported.
    pub stalls: u64,
    /// Stalls so far that were only likely then.
    pub likely_stalls: u64,
    /// How long a task that is ready waits for a worker.
    pub scheduler_lag: Option<Waits>,
    /// How long a `spawn_blocking` closure waits for a thread.
    pub blocking_queue_wait: Option<Waits>,
    /// By worker: what its time went into.
    pub worker_time: Vec<WorkerTime>,
    /// By worker: the turns of its loop since it was first seen. Zero where
    /// [turns](Coverage::turns) are not counted.
    ///
    /// A turn polls one task from the worker's queue, and up to three from its "next" slot. What a worker was
    /// busy with, divided by its turns, is the mean length of a turn.
    pub worker_turns: Vec<u64>,
    /// For how long nobody has waited for the runtime's sockets and timers, since workers were stalled: all
    /// of them stood still.
    pub driver_frozen: Duration,
}

/// What a worker's time went into, since the watch was started: the ledger.
///
/// The parts add up to the time that has passed, except for the last second or so. Blocking far below the
/// threshold is in it, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WorkerTime {
    /// Computing.
    pub cpu: Duration,
    /// Asleep inside polls. A lower bound, by the CPU time a worker needs while tokio does not call it busy.
    pub blocked: Duration,
    /// Ready to compute, without a CPU.
    pub contention: Duration,
    /// Parked: nothing to do.
    pub parked: Duration,
    /// Not to be told: the worker's thread was not known, or changed.
    pub unknown: Duration,
}

/// The last and the longest of a kind of wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Waits {
    /// The last one.
    pub last: Duration,
    /// The longest since the start.
    pub longest: Duration,
}
