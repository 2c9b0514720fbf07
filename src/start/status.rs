//! What can be asked of a watch at any time: what it sees, and how it fares.
//!
//! *Runs on:* the user's threads.
//! *Here:* copies of counters that the detector's threads keep.

use crate::probe::AllowedBlocking;
use std::time::Duration;

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
    /// [turns](crate::Coverage::turns) are not counted.
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
