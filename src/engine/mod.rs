//! The data that the detector's threads and the guards share.
//!
//! *Runs on:* the thread that starts a watch makes it. The detector's threads and the guards read
//! it.
//! *Must not:* start a thread, or depend on the code of one. Locks are held for a copy of a short
//! list, and the watchdog only tries one.

mod coverage;
mod hearing;
#[cfg(feature = "serve")]
mod lags;
mod live;
#[cfg(feature = "serve")]
mod liveness;
mod news;
mod others;
#[cfg(feature = "serve")]
mod recorder;
#[cfg(feature = "serve")]
pub(crate) mod recording;
mod settings;
mod sight;
mod stats;
#[cfg(feature = "metrics")]
mod target;
mod view;
mod watched;

pub use coverage::{Coverage, Gap};
pub(crate) use hearing::{Hearing, TARGET, read_filter_of_environment};
pub(crate) use live::Live;
#[cfg(feature = "serve")]
pub use liveness::Liveness;
#[cfg(feature = "tower")]
pub(crate) use news::RequestsNews;
pub(crate) use news::{
    Message, PoolNews, PoolStack, StackNews, StallId, StallNews, StallThread, TurnsLost, Work,
};
pub use others::OtherRuntime;
#[cfg(feature = "serve")]
pub(crate) use recorder::{Figures, Lane, Packed, Recorder, Ring, Segment};
pub use settings::Stacks;
pub(crate) use settings::{ENDLESS_AFTER, LONGEST_TICK, SHORTEST_TICK, Settings};
#[cfg(feature = "metrics")]
pub(crate) use stats::{AtSite, CAUSES, SpanSite, Stalls};
pub(crate) use stats::{TimeByState, WaitCounter};
#[cfg(feature = "metrics")]
pub(crate) use target::Target;
pub(crate) use view::View;
pub(crate) use watched::{Process, WatchState, WatchedRuntime};

use crate::capture::RawStack;
use crate::clock::Nanos;
use crate::explain::Explained;
use crate::report::NoStack;
use others::Others;
use parking_lot::Mutex;
use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
#[cfg(feature = "metrics")]
use std::thread::Thread;
use std::time::Duration;

/// The data that the threads share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The process whose threads these are: in a fork of it there are none.
    process: Process,
    stop: AtomicBool,
    ids: AtomicU64,
    pub(crate) watched: Mutex<Vec<Arc<WatchedRuntime>>>,
    /// The number of changes of `watched`.
    pub(crate) version: AtomicU64,
    /// The stalls going on. The watchdog writes it with `try_lock`; others lock it for a copy.
    pub(crate) live: Mutex<Vec<Live>>,
    /// The channel to the explainer, for stacks that a user asks for; `None` once the threads are
    /// to end.
    explainer: Mutex<Option<SyncSender<Work>>>,
    /// The runtimes that nobody watches.
    others: Mutex<Others>,
    pub(crate) dropped_reports: AtomicU64,
    pub(crate) failed_callbacks: AtomicU64,
    pub(crate) watchdog_lateness: WaitCounter,
    ticks: AtomicU64,
    /// The time of the watchdog's last tick; 0 before the first.
    last_tick: AtomicU64,
    /// The time since which the sinks have been busy with one report; 0 while they wait for the
    /// next.
    pub(crate) sinks_busy_since: AtomicU64,
    /// Whether the reporter has ended.
    reports_ended: AtomicBool,
    /// The thread that exports the ages of stalls to recorders.
    #[cfg(feature = "metrics")]
    metrics_thread: OnceLock<Thread>,
}

impl Shared {
    /// Whether this process is a fork of the one that started the threads. None of them runs here.
    pub(crate) fn is_inherited(&self) -> bool {
        !self.process.is_this()
    }

    /// Asks the detector's threads to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // The explainer ends once all senders of its channel are gone.
        self.explainer.lock().take();
    }

    /// Keeps the channel to the explainer, for stacks that a user asks for.
    pub(crate) fn explainer_runs(&self, explainer: SyncSender<Work>) {
        *self.explainer.lock() = Some(explainer);
    }

    /// Has the explainer unwind and name a stack that a user has asked for, and waits for it.
    pub(crate) fn explain(
        &self,
        watch: &Arc<WatchState>,
        stack: RawStack,
    ) -> Result<Explained, NoStack> {
        let explainer = self.explainer.lock().clone();
        let (answer, answered) = sync_channel(1);
        let work = Work::Asked {
            watch: watch.clone(),
            stack,
            answer,
        };
        let is_sent = explainer.is_some_and(|explainer| explainer.send(work).is_ok());
        if !is_sent {
            return Err(NoStack::NoExplainer);
        }
        answered.recv().unwrap_or(Err(NoStack::NoExplainer))
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The next number of a stall or of a pool wait.
    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn note_lateness(&self, late: Duration) {
        self.watchdog_lateness.note(late);
    }

    pub(crate) fn ticked(&self, at: Nanos) {
        // Release: pairs with the Acquire in `last_tick`.
        self.last_tick.store(at.0, Ordering::Release);
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that no report will be counted any more.
    pub(crate) fn end_of_reports(&self) {
        // Release: pairs with the Acquire in `reports_ended`. A thread that sees the end sees all
        // counts.
        self.reports_ended.store(true, Ordering::Release);
    }

    /// A stall has begun or ended: the metrics thread exports it now instead of within a second.
    pub(crate) fn live_changed(&self) {
        #[cfg(feature = "metrics")]
        if let Some(thread) = self.metrics_thread.get() {
            thread.unpark();
        }
    }

    pub(crate) fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn sinks_busy_for(&self, now: Nanos) -> Duration {
        match self.sinks_busy_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now.since(Nanos(since)),
        }
    }

    /// Notes a change of `watched`.
    pub(crate) fn runtimes_changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

#[cfg(feature = "metrics")]
impl Shared {
    pub(crate) fn metrics_run_on(&self, thread: Thread) {
        self.metrics_thread.set(thread).ok();
    }

    pub(crate) fn reports_ended(&self) -> bool {
        // Acquire: pairs with the Release in `end_of_reports`.
        self.reports_ended.load(Ordering::Acquire)
    }

    /// The time of the watchdog's last tick; `None` before the first.
    pub(crate) fn last_tick(&self) -> Option<Nanos> {
        // Acquire: pairs with the Release in `ticked`. What this tick has published is there.
        let at = self.last_tick.load(Ordering::Acquire);
        (at != 0).then_some(Nanos(at))
    }

    /// The moment up to which the stalls going on are known to go on: the last tick. The watchdog
    /// may be late, as after a stop of the whole process, and a stall may have ended since.
    ///
    /// To be asked before `live` is read: what is read later is known at least up to here.
    pub(crate) fn known_until(&self, now: Nanos) -> Nanos {
        self.last_tick().map_or(now, |tick| tick.min(now))
    }
}

#[cfg(all(test, not(loom), feature = "metrics"))]
mod tests {
    use super::*;

    #[test]
    fn ages_are_known_up_to_the_last_tick() {
        let shared = Shared::default();
        assert_eq!(shared.known_until(Nanos(7)), Nanos(7), "before the first");
        shared.ticked(Nanos(20));
        // The process was stopped after the tick: nobody has looked since.
        assert_eq!(shared.known_until(Nanos(16_000_000_000)), Nanos(20));
        assert_eq!(shared.known_until(Nanos(20)), Nanos(20));
        // A tick that came after the reader's clock was read.
        assert_eq!(shared.known_until(Nanos(19)), Nanos(19));
    }
}
