//! A running watch: what can be asked of it, and its end.
//!
//! *Runs on:* the user's threads, and the server's.
//! *Here:* copies of what the detector's threads keep; nothing here waits for them, except the end.

use super::status::{RuntimeStatus, Status, Waits, WorkerTime};
use super::threads;
use crate::detect::WorkerState;
use crate::engine::{self, Coverage, View, WatchedRuntime};
use crate::probe;
use crate::report::{PoolWaitReport, Profile, StallReport, WorkerStack};
use crate::reporter::worker_stacks;
#[cfg(all(feature = "testing", not(loom)))]
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Keeps the watch going. Dropping it ends the watch, and with the last one the detector's threads.
///
/// The drop takes about a tick. It waits for a callback or logger that is just running, for at most a
/// second; one that takes longer ends on its own.
#[derive(Debug)]
#[must_use = "the watch ends when its guard is dropped: bind it to a name such as `_watch`"]
pub struct Guard {
    view: View,
    /// Ends before the watch does.
    #[cfg(feature = "serve")]
    server: Option<crate::serve::Server>,
}

impl Guard {
    pub(crate) fn new(view: View) -> Guard {
        Guard {
            view,
            #[cfg(feature = "serve")]
            server: None,
        }
    }

    /// Has this server end with the watch.
    #[cfg(feature = "serve")]
    pub(crate) fn with_server(self, server: crate::serve::Server) -> Guard {
        let mut guard = self;
        guard.server = Some(server);
        guard
    }

    /// The address that the watch serves at; with its port, where the operating system has chosen that.
    #[cfg(feature = "serve")]
    pub fn served_at(&self) -> Option<std::net::SocketAddr> {
        self.server.as_ref().map(crate::serve::Server::address)
    }

    #[cfg(all(feature = "testing", not(loom)))]
    pub(crate) fn runtimes(&self) -> Vec<Arc<WatchedRuntime>> {
        self.view.runtimes()
    }

    /// The stalls going on at this moment, each with its age so far.
    ///
    /// Works while loggers and callbacks are stuck; names may be missing then.
    pub fn stalled_now(&self) -> Vec<StallReport> {
        self.view.stalled_now()
    }

    /// The last stalls, oldest first, each with its latest report.
    pub fn recent(&self) -> Vec<StallReport> {
        self.view.recent()
    }

    /// The last waits for the blocking pool, oldest first, each with its latest report.
    pub fn recent_pool_waits(&self) -> Vec<PoolWaitReport> {
        self.view.watch.recent.lock().pool_waits()
    }

    /// The stalls since the watch was started, by site, and their stacks for a flame graph.
    pub fn profile(&self) -> Profile {
        self.view.profile()
    }

    /// What all workers are doing at this moment: the stack of each one's thread.
    ///
    /// Works while workers are blocked. The calling thread waits for at most a tenth of a second per four
    /// workers, and the first time for debug information to be read: in async code, call it inside
    /// `spawn_blocking`.
    pub fn worker_stacks(&self) -> Vec<WorkerStack> {
        worker_stacks::take(&self.view.runtimes(), &self.view.shared)
    }

    /// What the detector can see, for each runtime of this watch.
    pub fn coverage(&self) -> Vec<Coverage> {
        let runtimes = self.view.runtimes();
        runtimes
            .iter()
            .map(|runtime| Coverage::of(runtime))
            .collect()
    }

    /// Figures about the runtimes of this watch and about the detector itself.
    pub fn status(&self) -> Status {
        let shared = &self.view.shared;
        Status {
            runtimes: self
                .view
                .runtimes()
                .iter()
                .map(|runtime| status_of(runtime))
                .collect(),
            allowed: probe::allowed(),
            ticks: shared.ticks(),
            watchdog_lateness: waits(&shared.watchdog_lateness),
            dropped_reports: shared.dropped_reports.load(Ordering::Relaxed),
            failed_callbacks: shared.failed_callbacks.load(Ordering::Relaxed),
        }
    }
}

fn waits(waits: &engine::WaitCounter) -> Option<Waits> {
    waits.get().map(|(last, longest)| Waits { last, longest })
}

fn status_of(runtime: &WatchedRuntime) -> RuntimeStatus {
    let stats = &runtime.stats;
    RuntimeStatus {
        runtime: runtime.name.clone(),
        shut_down: runtime.is_gone(),
        stalls: stats.certain.load(Ordering::Relaxed),
        likely_stalls: stats.likely.load(Ordering::Relaxed),
        scheduler_lag: waits(&stats.scheduler_lag),
        blocking_queue_wait: waits(&stats.blocking_queue_wait),
        worker_time: stats
            .worker_time
            .iter()
            .map(|time| WorkerTime {
                cpu: time.get(WorkerState::Cpu),
                blocked: time.get(WorkerState::Blocked),
                contention: time.get(WorkerState::Contention),
                parked: time.get(WorkerState::Parked),
                unknown: time.get(WorkerState::Unknown),
            })
            .collect(),
        worker_turns: stats
            .worker_turns
            .iter()
            .map(|turns| turns.load(Ordering::Relaxed))
            .collect(),
        driver_frozen: stats.driver_frozen(),
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        #[cfg(feature = "serve")]
        drop(self.server.take());
        threads::leave(&self.view.watch);
    }
}
