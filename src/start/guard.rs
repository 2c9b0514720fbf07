//! A running watch: its answers at any time, and its end.
//!
//! *Runs on:* the user's threads.
//! *Must not:* wait for the detector's threads, except in the drop and in `worker_stacks()`. All
//! else is a copy of their data.

#[cfg(feature = "serve")]
use super::status::RecordingStatus;
use super::status::{RuntimeStatus, Status, Waits, WorkerTime};
use super::threads;
use crate::clock::{self, Nanos};
use crate::detect::WorkerState;
use crate::engine::{Coverage, TimeByState, View, WaitCounter, WatchedRuntime};
use crate::probe;
use crate::report::{PoolWaitReport, Profile, StallReport, WorkerStack};
use crate::reporter::{self, worker_stacks};
#[cfg(all(feature = "testing", not(loom)))]
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A watch that ends within this time has seen nothing.
const AT_ONCE: Duration = Duration::from_millis(1);

/// Keeps the watch going. The drop ends the watch, and with the last one the detector's threads.
///
/// The drop takes about a tick. The last one waits for a callback or logger that is running, for at
/// most a second. A thread held up for longer ends on its own.
#[derive(Debug)]
#[must_use = "the watch ends when its guard is dropped: bind it to a name such as `_watch`"]
pub struct Guard {
    pub(super) view: View,
    made_at: Nanos,
    /// The server ends before the watch does.
    #[cfg(feature = "serve")]
    server: Option<crate::serve::Server>,
    #[cfg(feature = "serve")]
    recordings: Option<crate::serve::Recordings>,
}

impl Guard {
    pub(crate) fn new(view: View) -> Guard {
        Guard {
            view,
            made_at: clock::now(),
            #[cfg(feature = "serve")]
            server: None,
            #[cfg(feature = "serve")]
            recordings: None,
        }
    }

    /// Adds the server, which ends with the watch.
    #[cfg(feature = "serve")]
    pub(crate) fn with_server(self, server: crate::serve::Server) -> Guard {
        let mut guard = self;
        guard.server = Some(server);
        guard
    }

    /// Adds the thread that writes recordings, which ends before the watch does.
    #[cfg(feature = "serve")]
    pub(crate) fn with_recordings(self, recordings: crate::serve::Recordings) -> Guard {
        let mut guard = self;
        guard.recordings = Some(recordings);
        guard
    }

    /// The address that the watch serves at, with the port chosen by the operating system for port
    /// 0; `None` without a server.
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
    /// It works while loggers and callbacks are stuck. Names and stacks are missing in the first
    /// moments of a stall, until the reporter has added them.
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

    /// The stack of each worker's thread at this moment.
    ///
    /// It works while workers are blocked. The calling thread waits for at most a tenth of a second
    /// per four workers, and until the explainer has named the stacks; the first time, debug
    /// information is read for that. In async code, call it inside `spawn_blocking`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// let watch = tokio_stall::watch()?;
    /// // On a signal from an operator, for example.
    /// let dump = std::thread::spawn(move || {
    ///     for stack in watch.worker_stacks() {
    ///         println!("{stack}");
    ///     }
    /// });
    /// # tokio::task::spawn_blocking(|| dump.join().unwrap()).await.unwrap();
    /// # Ok(())
    /// # }
    /// ```
    pub fn worker_stacks(&self) -> Vec<WorkerStack> {
        worker_stacks::take(&self.view.runtimes(), &self.view.shared)
    }

    /// The things that the detector can see, for each runtime of this watch.
    pub fn coverage(&self) -> Vec<Coverage> {
        self.view.coverage()
    }

    /// Figures about the runtimes of this watch and about the detector itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// let watch = tokio_stall::watch()?;
    /// for runtime in watch.status().runtimes {
    ///     println!("{}: {} stalls", runtime.runtime, runtime.stalls);
    ///     for (worker, time) in runtime.worker_time.iter().enumerate() {
    ///         println!("  worker {worker}: {:?} computing, {:?} blocked", time.cpu, time.blocked);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> Status {
        let shared = &self.view.shared;
        Status {
            runtimes: self
                .view
                .runtimes()
                .iter()
                .map(|runtime| status_of(runtime))
                .collect(),
            forked: shared.is_inherited(),
            off: self.view.watch.is_off(),
            allowed: probe::allowed(),
            ticks: shared.ticks(),
            watchdog_lateness: waits(&shared.watchdog_lateness),
            dropped_reports: shared.dropped_reports.load(Ordering::Relaxed),
            failed_callbacks: shared.failed_callbacks.load(Ordering::Relaxed),
            #[cfg(feature = "serve")]
            recordings: recordings_of(&self.view),
        }
    }
}

#[cfg(feature = "serve")]
fn recordings_of(view: &View) -> RecordingStatus {
    let counts = &view.watch.recordings;
    RecordingStatus {
        written: counts.written.load(Ordering::Relaxed),
        failed: counts.failed.load(Ordering::Relaxed),
        left_out: counts.left_out.load(Ordering::Relaxed),
    }
}

fn waits(waits: &WaitCounter) -> Option<Waits> {
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
        probes_without_thread: stats.no_thread.load(Ordering::Relaxed),
        worker_time: stats.worker_time.iter().map(worker_time).collect(),
        worker_turns: stats
            .worker_turns
            .iter()
            .map(|turns| turns.load(Ordering::Relaxed))
            .collect(),
        driver_frozen: stats.driver_frozen(),
    }
}

fn worker_time(time: &TimeByState) -> WorkerTime {
    WorkerTime {
        cpu: time.get(WorkerState::Cpu),
        blocked: time.get(WorkerState::Blocked),
        contention: time.get(WorkerState::Contention),
        parked: time.get(WorkerState::Parked),
        unknown: time.get(WorkerState::Unknown),
    }
}

impl Guard {
    /// Warns of `let _ = watch()?`, which drops the guard at once.
    fn warn_if_dropped_at_once(&self) {
        let is_meant = clock::now().since(self.made_at) >= AT_ONCE || std::thread::panicking();
        if self.view.watch.settings.log && !is_meant {
            reporter::event::warn_of_use(
                "the watch has ended at once, since its guard was dropped; bind it to a name, as \
                 in `let _watch = tokio_stall::watch()?;`",
            );
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        #[cfg(feature = "serve")]
        if let Some(server) = self.server.take() {
            if self.view.shared.is_inherited() {
                // Its thread is not in this process.
                std::mem::forget(server);
            }
        }
        #[cfg(feature = "serve")]
        if let Some(recordings) = self.recordings.take() {
            if self.view.shared.is_inherited() {
                recordings.forget();
            }
            // Else the drop writes those that wait, while the runtimes are still known.
        }
        if !self.view.shared.is_inherited() && !self.view.watch.is_off() {
            self.warn_if_dropped_at_once();
            threads::leave(&self.view.watch);
        }
    }
}
