//! A watched runtime, and the state that the runtimes of one guard share.
//!
//! *Runs on:* the thread that starts a watch makes it. Every thread of the detector reads it.

#[cfg(feature = "serve")]
use super::Recorder;
#[cfg(feature = "serve")]
use super::recording::RecordingCounts;
use super::sight::Rounds;
use super::stats::Stats;
use super::{Coverage, Settings, StallId};
use crate::clock::{self, Nanos};
use crate::detect::{Rules, StackVerdict};
use crate::probe::Pulse;
use crate::report::{NoStack, Profile, Recent};
#[cfg(feature = "tower")]
use crate::requests::Board;
use crate::slot;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use tokio::runtime::{Handle, RuntimeMetrics};

/// A watched runtime.
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
    /// By worker: the verdicts of its stacks, for the watchdog.
    pub(crate) verdicts: Vec<VerdictCell>,
    /// Without rings if nothing of this watch shows them.
    #[cfg(feature = "serve")]
    pub(crate) recorder: Recorder,
    #[cfg(feature = "tower")]
    pub(crate) requests: Arc<Board>,
    pub(crate) watch: Arc<WatchState>,
}

impl WatchedRuntime {
    pub(crate) fn new(
        name: String,
        handle: Handle,
        rules: Rules,
        pulse: Pulse,
        watch: Arc<WatchState>,
    ) -> WatchedRuntime {
        let metrics = handle.metrics();
        let workers = metrics.num_workers();
        let id = slot::raw_id(&handle.id());
        WatchedRuntime {
            name,
            id,
            #[cfg(feature = "tower")]
            requests: Arc::new(Board::new(
                id,
                watch.settings.slow_requests_from(),
                watch.settings.log,
            )),
            #[cfg(feature = "serve")]
            recorder: {
                let recorded = if watch.settings.records { workers } else { 0 };
                Recorder::new(recorded, clock::now())
            },
            handle,
            metrics,
            rules,
            pulse,
            stats: Stats::new(workers),
            verdicts: std::iter::repeat_with(VerdictCell::default)
                .take(workers)
                .collect(),
            watch,
        }
    }

    /// Whether it has been shut down during the watch.
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
            #[cfg(feature = "serve")]
            recorder: Recorder::new(metrics.num_workers(), clock::now()),
            #[cfg(feature = "tower")]
            requests: Arc::new(Board::new(crate::slot::raw_id(&handle.id()), None, false)),
            stats: Stats::new(metrics.num_workers()),
            verdicts: std::iter::repeat_with(VerdictCell::default)
                .take(metrics.num_workers())
                .collect(),
            metrics,
            handle: handle.clone(),
            watch: Arc::new(WatchState::new(settings, Err(NoStack::Off))),
        })
    }
}

/// The verdicts of a worker's stacks, from the explainer to the watchdog.
#[derive(Debug, Default)]
pub(crate) struct VerdictCell {
    /// The number of the stall, and three bits; 0 if there is none. Several come at once when the
    /// first debug information has been read.
    verdicts: [AtomicU64; 8],
    /// Stacks that the explainer has been sent, and whose verdict is to come.
    owed: AtomicU32,
    /// The explainer has signalled the thread.
    is_signalled: AtomicBool,
}

impl VerdictCell {
    const DRIVING: u64 = 1;
    const DETACHED: u64 = 2;
    const PARKED: u64 = 3;
    const INCONCLUSIVE: u64 = 4;
    const DOUBTFUL: u64 = 5;

    /// Notes that the explainer will be sent a stack.
    pub(crate) fn expect(&self) {
        // Relaxed: only the watchdog asks, which counts here.
        self.owed.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back that a verdict is expected: the stack could not be sent, or it cannot be followed
    /// and another one is asked for.
    pub(crate) fn expect_no_more(&self) {
        // Relaxed: it publishes no verdict.
        self.owed.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes that the explainer has signalled the thread.
    pub(crate) fn note_signal(&self) {
        // Relaxed: a look that misses it costs the proof of one sleep, and no more.
        self.is_signalled.store(true, Ordering::Relaxed);
    }

    /// Whether the explainer has signalled the thread since the last call.
    pub(crate) fn take_signal(&self) -> bool {
        // A load first, as below.
        self.is_signalled.load(Ordering::Relaxed)
            && self.is_signalled.swap(false, Ordering::Relaxed)
    }

    /// Whether a verdict is to come. If not, all are in the cell.
    pub(crate) fn is_owed(&self) -> bool {
        // Acquire: pairs with the Release in `put`, which comes after the store of the verdict.
        self.owed.load(Ordering::Acquire) > 0
    }

    /// The verdict of a stack that was expected.
    pub(crate) fn put(&self, id: StallId, verdict: StackVerdict) {
        let bits = match verdict {
            StackVerdict::Driving => VerdictCell::DRIVING,
            StackVerdict::Detached => VerdictCell::DETACHED,
            StackVerdict::Parked => VerdictCell::PARKED,
            StackVerdict::Inconclusive => VerdictCell::INCONCLUSIVE,
            StackVerdict::Doubtful => VerdictCell::DOUBTFUL,
        };
        // Relaxed: a word is complete in itself, and publishes nothing else. Only the explainer
        // puts verdicts in, and the last one gives way if there are too many.
        let [others @ .., last] = &self.verdicts;
        let mut others = others.iter();
        let free = others.find(|word| word.load(Ordering::Relaxed) == 0);
        free.unwrap_or(last)
            .store(id.0 << 3 | bits, Ordering::Relaxed);
        // Release: pairs with the Acquire in `is_owed`.
        self.owed.fetch_sub(1, Ordering::Release);
    }

    pub(crate) fn take(&self) -> Option<(StallId, StackVerdict)> {
        // Loads first: the cell is nearly always empty, and a swap would take the cache line.
        let mut words = self.verdicts.iter();
        let full = words.find(|word| word.load(Ordering::Relaxed) != 0)?;
        let word = full.swap(0, Ordering::Relaxed);
        let verdict = match word & 7 {
            VerdictCell::DRIVING => StackVerdict::Driving,
            VerdictCell::DETACHED => StackVerdict::Detached,
            VerdictCell::PARKED => StackVerdict::Parked,
            VerdictCell::INCONCLUSIVE => StackVerdict::Inconclusive,
            VerdictCell::DOUBTFUL => StackVerdict::Doubtful,
            _ => return None,
        };
        Some((StallId(word >> 3), verdict))
    }
}

/// The state that the runtimes of one guard share.
#[derive(Debug)]
pub(crate) struct WatchState {
    pub(crate) process: Process,
    pub(crate) settings: Settings,
    pub(crate) started_at: Nanos,
    /// The signal that asks threads for their stacks, or the reason why there is none.
    pub(crate) signal: Result<i32, NoStack>,
    /// The coverage of each runtime, if the watch is switched off: no thread looks at them.
    pub(crate) off: Option<Vec<Coverage>>,
    /// The facts about what works in this process.
    pub(super) rounds: Mutex<Rounds>,
    pub(crate) recent: Mutex<Recent>,
    pub(crate) profile: Mutex<Profile>,
    #[cfg(feature = "serve")]
    pub(crate) recordings: RecordingCounts,
}

impl WatchState {
    pub(crate) fn new(settings: Settings, signal: Result<i32, NoStack>) -> WatchState {
        WatchState {
            process: Process::default(),
            started_at: clock::now(),
            signal,
            off: None,
            rounds: Mutex::default(),
            profile: Mutex::new(Profile::begin()),
            #[cfg(feature = "serve")]
            recordings: RecordingCounts::default(),
            recent: Mutex::new(Recent::new(settings.recent)),
            settings,
        }
    }

    /// The state of a watch that is switched off, for runtimes of this coverage.
    pub(crate) fn switched_off(settings: Settings, coverage: Vec<Coverage>) -> WatchState {
        WatchState {
            off: Some(coverage),
            ..WatchState::new(settings, Err(NoStack::Off))
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.off.is_some()
    }
}

/// A process, by its number. A fork has another number.
#[derive(Debug)]
pub(crate) struct Process(u32);

impl Default for Process {
    fn default() -> Process {
        Process(std::process::id())
    }
}

impl Process {
    /// Whether it is the process that asks.
    pub(crate) fn is_this(&self) -> bool {
        self.0 == std::process::id()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_owed_until_it_is_in_the_cell() {
        let cell = VerdictCell::default();
        cell.expect();
        cell.expect();
        cell.expect_no_more();
        assert!(cell.is_owed() && cell.take().is_none());
        cell.put(StallId(7), StackVerdict::Doubtful);
        assert!(!cell.is_owed());
        assert_eq!(cell.take(), Some((StallId(7), StackVerdict::Doubtful)));
        assert_eq!(cell.take(), None);
    }

    #[test]
    fn verdicts_that_come_between_two_looks_are_all_kept() {
        let cell = VerdictCell::default();
        let verdicts = (1..=8).map(|number| (StallId(number), StackVerdict::Driving));
        for (id, verdict) in verdicts.clone() {
            cell.expect();
            cell.put(id, verdict);
        }
        let taken: Vec<_> = std::iter::from_fn(|| cell.take()).collect();
        assert_eq!(taken, verdicts.collect::<Vec<_>>());
    }
}
