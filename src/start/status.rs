//! Figures of a watch at any time: its runtimes, and the detector itself.
//!
//! *Runs on:* the user's threads.
//!
//! The figures are copies of counters that the detector's threads keep.

use crate::probe::AllowedBlocking;
use std::time::Duration;

/// Figures about a watch at one moment; from [`Guard::status`](crate::Guard::status).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Status {
    /// One for each runtime of the watch.
    pub runtimes: Vec<RuntimeStatus>,
    /// This process is a fork of the one that was watched: the figures are the parent's at the
    /// fork, and nothing is watched here.
    pub forked: bool,
    /// The watch is switched off, by `TOKIO_STALL=off` and
    /// [`Builder::from_env`](crate::Builder::from_env). There are no runtimes here then.
    pub off: bool,
    /// Blocking that was allowed in this process, by reason.
    pub allowed: Vec<AllowedBlocking>,
    /// Ticks of the watchdog so far. If the number stands still for longer than 25 ms, the detector
    /// does not run.
    pub ticks: u64,
    /// The lateness with which the watchdog itself woke up.
    pub watchdog_lateness: Option<Waits>,
    /// Reports that were dropped because 256 others were waiting.
    ///
    /// Reports wait for the thread `stall-sinks` while a callback or logger holds it up. The
    /// callback and the log miss those that were dropped; figures and
    /// [`Guard::recent`](crate::Guard::recent) have their stalls. Only if `stall-reporter` gets no
    /// CPU, reports are dropped before they are counted and kept.
    pub dropped_reports: u64,
    /// Callbacks and loggers that panicked.
    pub failed_callbacks: u64,
    /// The files of [`Builder::record_stalls`](crate::Builder::record_stalls).
    #[cfg(feature = "serve")]
    pub recordings: RecordingStatus,
}

/// The recordings of long stalls, as files, so far; from [`Guard::status`](crate::Guard::status).
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct RecordingStatus {
    /// Files that were written. A stall that was written while it went on counts twice.
    pub written: u64,
    /// Files that could not be written. The log has the first error of each kind.
    pub failed: u64,
    /// Files that were not written, as there were too many: 60 in a minute, or 64 stalls waiting.
    pub left_out: u64,
}

/// Figures about one runtime at one moment, from [`Guard::status`](crate::Guard::status).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RuntimeStatus {
    /// The name under which it is watched.
    pub runtime: String,
    /// Whether it has been shut down. It is no longer watched then.
    pub shut_down: bool,
    /// Stalls so far that were certain when first reported.
    pub stalls: u64,
    /// Stalls so far that were only likely then.
    pub likely_stalls: u64,
    /// The scheduler lag: the time for which a ready task waits for a worker.
    pub scheduler_lag: Option<Waits>,
    /// The time for which a `spawn_blocking` closure waits for a thread.
    pub blocking_queue_wait: Option<Waits>,
    /// The number of times that the pool was not asked, since the system had no thread for it.
    pub probes_without_thread: u64,
    /// By worker: its time by state.
    pub worker_time: Vec<WorkerTime>,
    /// By worker: the turns of its loop since it was first seen. Zero where
    /// [turns](crate::Coverage::turns) are not counted.
    ///
    /// A turn polls one task from the worker's queue, and up to three from its "next" slot. The
    /// worker's busy time, divided by its turns, is the mean length of a turn.
    pub worker_turns: Vec<u64>,
    /// The time for which the driver was frozen: since workers were stalled, none waited for the
    /// runtime's sockets and timers, and all of them stood still.
    pub driver_frozen: Duration,
}

/// The time of one worker by state since the watch was started: its ledger, from
/// [`Guard::status`](crate::Guard::status).
///
/// The parts add up to the time that has passed, except for the last second or so. Blocking far
/// below the threshold is in it, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WorkerTime {
    /// The time in which it computed.
    pub cpu: Duration,
    /// The time asleep inside polls. It is a lower bound, by the CPU time that a worker needs while
    /// tokio does not call it busy.
    pub blocked: Duration,
    /// The time in which it was ready to compute and had no CPU.
    pub contention: Duration,
    /// The time in which it was parked, with nothing to do.
    pub parked: Duration,
    /// The time without a known state: the worker's thread was not known, or changed, or the whole
    /// process stood still.
    pub unknown: Duration,
}

/// The last and the longest of a kind of wait, from [`Guard::status`](crate::Guard::status).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Waits {
    /// The last wait.
    pub last: Duration,
    /// The longest wait since the start.
    pub longest: Duration,
}
