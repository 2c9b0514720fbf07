//! The engine: the threads of a process, and what they and the guards share.
//!
//! *Runs on:* whoever starts or drops a watch; the threads read it.
//! *Here:* one engine per process. The first watch starts it, the last one to go stops it. Locks here
//! are held for a copy of a short list, and the watchdog only ever tries them; but for `explainer`, which is held
//! while stacks are explained, and which the watchdog does not know.

use crate::clock::{self, Nanos};
use crate::error::StartError;
use crate::explain::Explainer;
use crate::explain::cause::SleptIn;
use crate::probe::{self, Pulse};
use crate::report::recent::Recent;
use crate::report::{NoStack, Phase, Profile, StallReport};
use crate::report::{reporter, sinks};
use crate::stats::{Stats, Waits};
use crate::turns::{self, Track};
use crate::watch::Settings;
use crate::watchdog::detector::{Rules, Shown, Stall};
use crate::watchdog::{self, pulses, workers};
use parking_lot::Mutex;
use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{JoinHandle, Thread};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeMetrics};

/// News that may wait for the reporter, and reports for the sinks. More is dropped and counted.
const CHANNEL: usize = 256;

/// How long a guard's drop waits for a thread that is held up in the user's callback or logger.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a runtime is called that nobody has named; a second one is called by tokio's number for it.
const UNNAMED: &str = "main";

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
    pub(crate) shown: Vec<LastShown>,
    pub(crate) watch: Arc<Watch>,
}

impl WatchedRuntime {
    /// It has been shut down under the watch.
    pub(crate) fn is_gone(&self) -> bool {
        self.pulse.is_gone()
    }
}

/// What a stack has shown, handed from the reporter back to the watchdog: the serial of the stall, and three
/// bits.
#[derive(Debug, Default)]
pub(crate) struct LastShown(AtomicU64);

impl LastShown {
    const DRIVING: u64 = 1;
    const MOVED_AWAY: u64 = 2;
    const PARKED: u64 = 3;
    const UNCLEAR: u64 = 4;

    pub(crate) fn put(&self, serial: u64, shown: Shown) {
        let shown = match shown {
            Shown::Driving => LastShown::DRIVING,
            Shown::MovedAway => LastShown::MOVED_AWAY,
            Shown::Parked => LastShown::PARKED,
            Shown::Unclear => LastShown::UNCLEAR,
        };
        // Relaxed: the word is all there is to see.
        self.0.store(serial << 3 | shown, Ordering::Relaxed);
    }

    pub(crate) fn take(&self) -> Option<(u64, Shown)> {
        // A look first: there is nearly never anything, and a swap would own the line.
        if self.0.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let word = self.0.swap(0, Ordering::Relaxed);
        let shown = match word & 7 {
            LastShown::DRIVING => Shown::Driving,
            LastShown::MOVED_AWAY => Shown::MovedAway,
            LastShown::PARKED => Shown::Parked,
            LastShown::UNCLEAR => Shown::Unclear,
            _ => return None,
        };
        Some((word >> 3, shown))
    }
}

/// What the runtimes of one guard have in common.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) settings: Settings,
    pub(crate) started_at: Nanos,
    /// The signal that asks its threads for their stacks, or why none does.
    pub(crate) signal: Result<i32, NoStack>,
    pub(crate) recent: Mutex<Recent>,
    pub(crate) profile: Mutex<Profile>,
}

/// A stall going on.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) id: u64,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) worker: usize,
    pub(crate) stall: Stall,
    /// Standard error has been told of it.
    pub(crate) last_words: Arc<AtomicBool>,
}

impl Live {
    /// What is known without the reporter: everything but names and stacks.
    pub(crate) fn unnamed_report(&self) -> StallReport {
        let stall = Stall {
            duration: clock::now().since(self.stall.since),
            ..self.stall
        };
        StallReport::unnamed(
            self.id,
            Phase::Ongoing,
            &self.runtime,
            self.worker,
            &stall,
            stall.call.map(SleptIn::now),
        )
    }
}

/// What the threads share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    stop: AtomicBool,
    ids: AtomicU64,
    pub(crate) watched: Mutex<Vec<Arc<WatchedRuntime>>>,
    /// Counts changes of `watched`.
    pub(crate) version: AtomicU64,
    /// Written by the watchdog with `try_lock`; others hold it for a copy.
    pub(crate) live: Mutex<Vec<Live>>,
    /// Locked while stacks are unwound and named; the watchdog never touches it.
    pub(crate) explainer: Mutex<Explainer>,
    pub(crate) dropped_reports: AtomicU64,
    pub(crate) failed_callbacks: AtomicU64,
    pub(crate) watchdog_lateness: Waits,
    ticks: AtomicU64,
    /// When the watchdog last ticked.
    last_tick: AtomicU64,
    /// Since when the sinks have been busy with one report; 0 while they wait for the next.
    pub(crate) sinks_busy_since: AtomicU64,
    /// The reporter has come to its end.
    reports_ended: AtomicBool,
    /// The thread that tells stalls' ages to recorders.
    #[cfg(feature = "metrics")]
    metrics_thread: OnceLock<Thread>,
}

impl Shared {
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn note_lateness(&self, late: Duration) {
        self.watchdog_lateness.note(late);
    }

    pub(crate) fn ticked(&self, at: Nanos) {
        self.last_tick.store(at.0, Ordering::Relaxed);
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that no report will be counted any more.
    pub(crate) fn end_of_reports(&self) {
        // Release: pairs with the Acquire in `reports_ended`: who sees the end sees all that was counted.
        self.reports_ended.store(true, Ordering::Release);
    }

    /// A stall has begun or ended: recorders are told now, and not within a second.
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

    fn changed(&self) {
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

    /// When the watchdog last ticked, if it ever did.
    pub(crate) fn last_tick(&self) -> Option<Nanos> {
        let at = self.last_tick.load(Ordering::Relaxed);
        (at != 0).then_some(Nanos(at))
    }
}

static ENGINE: Mutex<Option<Engine>> = Mutex::new(None);

#[derive(Debug)]
struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts watching these runtimes, all or none.
pub(crate) fn join(
    runtimes: Vec<(Option<String>, Handle)>,
    watch: &Arc<Watch>,
    rules: impl Fn(&Handle) -> Rules,
) -> Result<Arc<Shared>, StartError> {
    if !workers::COUNTERS_EXIST {
        return Err(StartError::UnsupportedTarget);
    }
    if watch.settings.turns {
        turns::learn_layout();
    }
    let mut engine = ENGINE.lock();
    let known = engine
        .as_ref()
        .map_or_else(Vec::new, |engine| engine.shared.watched.lock().clone());
    let mut new: Vec<Arc<WatchedRuntime>> = Vec::new();
    for (name, handle) in runtimes {
        let id = crate::slot::raw_id(&handle.id());
        // One that has been shut down gives its name free; its guard has only to be dropped some time.
        let others = || {
            known
                .iter()
                .filter(|runtime| !runtime.is_gone())
                .chain(&new)
        };
        if let Some(twin) = others().find(|runtime| runtime.id == id) {
            return Err(StartError::RuntimeWatchedTwice {
                name: twin.name.clone(),
            });
        }
        let is_taken = |name: &str| others().any(|runtime| runtime.name == name);
        let name = match name {
            Some(name) if name.is_empty() => return Err(StartError::NameEmpty),
            Some(name) if is_taken(&name) => return Err(StartError::NameTaken { name }),
            Some(name) => name,
            // Nobody has asked for a name, so nobody is to be told that it is taken.
            None if is_taken(UNNAMED) => format!("runtime-{id}"),
            None => UNNAMED.to_owned(),
        };
        let Some(pulse) = Pulse::spawn(&handle) else {
            return Err(StartError::RuntimeShutDown { name });
        };
        new.push(Arc::new(WatchedRuntime {
            name,
            id,
            metrics: handle.metrics(),
            rules: rules(&handle),
            shown: std::iter::repeat_with(LastShown::default)
                .take(handle.metrics().num_workers())
                .collect(),
            stats: Stats::new(handle.metrics().num_workers()),
            handle,
            pulse,
            watch: watch.clone(),
        }));
    }
    let running = match engine.take() {
        Some(running) => running,
        None => Engine::start()?,
    };
    for runtime in &new {
        let track = Track::new(
            runtime.handle.runtime_flavor(),
            runtime.watch.settings.turns,
        );
        runtime.stats.note_no_turns(track.missing());
        probe::gather(&runtime.handle, runtime.rules.threshold / 2).wait();
    }
    let shared = running.shared.clone();
    shared.watched.lock().extend(new);
    shared.changed();
    running.wake();
    *engine = Some(running);
    Ok(shared)
}

/// Stops watching the runtimes of this watch, and the engine if there are no others.
pub(crate) fn leave(watch: &Arc<Watch>) {
    let mut engine = ENGINE.lock();
    let Some(running) = engine.take() else {
        return;
    };
    let mut watched = running.shared.watched.lock();
    watched.retain(|runtime| {
        let leaves = Arc::ptr_eq(&runtime.watch, watch);
        if leaves {
            runtime.pulse.stop();
        }
        !leaves
    });
    let last = watched.is_empty();
    drop(watched);
    running.shared.changed();
    if last {
        running.stop();
    } else {
        running.wake();
        *engine = Some(running);
    }
}

impl Engine {
    fn start() -> Result<Engine, StartError> {
        clock::prime();
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = sync_channel(CHANNEL);
        let mut engine = Engine {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        let to_reporter = sender.clone();
        let (to_sinks, reports) = sync_channel(CHANNEL);
        let started = engine
            .spawn("stall-sinks", {
                let shared = shared.clone();
                move || sinks::run(&shared, &reports)
            })
            .and_then(|()| {
                let shared = shared.clone();
                engine.spawn("stall-reporter", move || {
                    reporter::run(&shared, &receiver, to_sinks);
                })
            })
            .and_then(|()| engine.spawn_metrics())
            .and_then(|()| {
                let shared = shared.clone();
                engine.spawn("stall-pulse", move || pulses::run(&shared, &to_reporter))
            })
            .and_then(|()| {
                let shared = shared.clone();
                engine.spawn("stall-watchdog", move || watchdog::run(&shared, sender))
            });
        match started {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.stop();
                Err(StartError::Thread(error))
            }
        }
    }

    fn spawn(&mut self, name: &str, main: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(main)?;
        self.threads.push(thread);
        Ok(())
    }

    #[cfg(feature = "metrics")]
    fn spawn_metrics(&mut self) -> std::io::Result<()> {
        let shared = self.shared.clone();
        self.spawn("stall-metrics", move || {
            crate::report::metrics::run(&shared)
        })
    }

    #[cfg(not(feature = "metrics"))]
    fn spawn_metrics(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn wake(&self) {
        self.threads
            .iter()
            .map(JoinHandle::thread)
            .for_each(Thread::unpark);
    }

    /// Waits for the threads to end, but not for ever for one that is inside the user's code.
    fn stop(self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        let deadline = clock::now().plus(PATIENCE);
        for thread in self.threads {
            if thread.thread().id() == std::thread::current().id() {
                // Dropped inside `on_stall`: this thread ends when the callback returns.
                continue;
            }
            while !thread.is_finished() && clock::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
            if thread.is_finished() {
                // A panic of ours has been printed where it happened; there is nobody to tell.
                thread.join().ok();
            }
        }
    }
}
