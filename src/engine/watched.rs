//! A runtime being watched, and what the runtimes of one guard have in common.
//!
//! *Runs on:* made by the thread that starts a watch; read by every thread of the detector.

use super::stats::Stats;
use super::{Settings, StallId};
use crate::clock::Nanos;
use crate::detect::{Rules, StackVerdict};
use crate::probe::Pulse;
use crate::report::{NoStack, Profile, Recent};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::runtime::{Handle, RuntimeMetrics};

/// A runtime being watched.
#[derive(Debug)]
pub(crate) struct WatchedRuntime {
    pub(crate) name: String,
    /// Tokio's number for it.
    pub(crate) id: u64,
    pub(crate) handle: Handle,
    pub(crate) metrics: RuntimeMetrics,
    pub(crate) rules: Rules,
    pub(crate) pulse: Pulse,
    pub(crate) stats: Stats,
    /// By worker: what the last stack showed, for the watchdog.
    pub(crate) verdicts: Vec<VerdictCell>,
    pub(crate) watch: Arc<WatchState>,
}

impl WatchedRuntime {
    /// It has been shut down under the watch.
    pub(crate) fn is_gone(&self) -> bool {
        self.pulse.is_gone()
    }
}

#[cfg(all(test, not(loom)))]
impl WatchedRuntime {
    /// A runtime under default settings that no thread watches.
    pub(crate) fn for_tests(handle: &Handle) -> Arc<WatchedRuntime> {
        let settings = Settings::default();
        let metrics = handle.metrics();
        Arc::new(WatchedRuntime {
            name: "test".to_owned(),
            id: crate::slot::raw_id(&handle.id()),
            rules: Rules {
                threshold: settings.threshold,
                tick: settings.threshold / 4,
                milestones: [settings.warn_after; 3],
                always_driven: false,
            },
            pulse: Pulse::spawn(handle).expect("the runtime lives"),
            stats: Stats::new(metrics.num_workers()),
            verdicts: std::iter::repeat_with(VerdictCell::default)
                .take(metrics.num_workers())
                .collect(),
            metrics,
            handle: handle.clone(),
            watch: Arc::new(WatchState {
                started_at: crate::clock::now(),
                signal: Err(NoStack::Off),
                recent: Mutex::new(Recent::new(settings.recent)),
                profile: Mutex::default(),
                settings,
            }),
        })
    }
}

/// What a stack has shown, handed from the explainer back to the watchdog: the number of the stall, and three
/// bits.
#[derive(Debug, Default)]
pub(crate) struct VerdictCell(AtomicU64);

impl VerdictCell {
    const DRIVING: u64 = 1;
    const MOVED_AWAY: u64 = 2;
    const PARKED: u64 = 3;
    const UNCLEAR: u64 = 4;

    pub(crate) fn put(&self, id: StallId, shown: StackVerdict) {
        let shown = match shown {
            StackVerdict::Driving => VerdictCell::DRIVING,
            StackVerdict::Detached => VerdictCell::MOVED_AWAY,
            StackVerdict::Parked => VerdictCell::PARKED,
            StackVerdict::Inconclusive => VerdictCell::UNCLEAR,
        };
        // Relaxed: the word is all there is to see.
        self.0.store(id.0 << 3 | shown, Ordering::Relaxed);
    }

    pub(crate) fn take(&self) -> Option<(StallId, StackVerdict)> {
        // A look first: there is nearly never anything, and a swap would own the line.
        if self.0.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let word = self.0.swap(0, Ordering::Relaxed);
        let shown = match word & 7 {
            VerdictCell::DRIVING => StackVerdict::Driving,
            VerdictCell::MOVED_AWAY => StackVerdict::Detached,
            VerdictCell::PARKED => StackVerdict::Parked,
            VerdictCell::UNCLEAR => StackVerdict::Inconclusive,
            _ => return None,
        };
        Some((StallId(word >> 3), shown))
    }
}

/// What the runtimes of one guard have in common.
#[derive(Debug)]
pub(crate) struct WatchState {
    pub(crate) settings: Settings,
    pub(crate) started_at: Nanos,
    /// The signal that asks its threads for their stacks, or why none does.
    pub(crate) signal: Result<i32, NoStack>,
    pub(crate) recent: Mutex<Recent>,
    pub(crate) profile: Mutex<Profile>,
}
