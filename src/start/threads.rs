//! The threads of a process: started with the first watch, stopped with the last.
//!
//! *Runs on:* the thread that starts or drops a watch.

use crate::clock;
use crate::detect::Rules;
use crate::engine::{Message, Shared, Stats, VerdictCell, WatchState, WatchedRuntime, Work};
use crate::error::StartError;
#[cfg(feature = "metrics")]
use crate::metrics;
use crate::probe::{self, Pulse};
use crate::reporter::sinks::{self, Delivery};
use crate::reporter::{self, explainer};
use crate::slot;
use crate::turns::{self, Track};
use crate::watchdog::{self, Out, pulses, workers};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;
use tokio::runtime::Handle;

/// News that may wait for the reporter, and reports for the sinks. More is dropped and counted.
const CHANNEL: usize = 256;

/// How long a guard's drop waits for a thread that is held up in the user's callback or logger.
const PATIENCE: Duration = Duration::from_secs(1);

/// The name of a runtime that nobody has named; a second one is called by tokio's number for it.
const UNNAMED: &str = "main";

static ENGINE: Mutex<Option<Engine>> = Mutex::new(None);

#[derive(Debug)]
struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts watching these runtimes, all or none.
pub(crate) fn join(
    runtimes: Vec<(Option<String>, Handle)>,
    watch: &Arc<WatchState>,
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
        let id = slot::raw_id(&handle.id());
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
            verdicts: std::iter::repeat_with(VerdictCell::default)
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
    shared.runtimes_changed();
    running.wake();
    *engine = Some(running);
    Ok(shared)
}

/// Stops watching the runtimes of this watch, and the engine if there are no others.
pub(crate) fn leave(watch: &Arc<WatchState>) {
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
    running.shared.runtimes_changed();
    if last {
        running.stop();
    } else {
        running.wake();
        *engine = Some(running);
    }
}

/// Both ends of the channels between the threads.
struct Ends {
    to_reporter: SyncSender<Message>,
    news: Receiver<Message>,
    to_explainer: SyncSender<Work>,
    work: Receiver<Work>,
    to_sinks: SyncSender<Delivery>,
    reports: Receiver<Delivery>,
}

impl Engine {
    fn start() -> Result<Engine, StartError> {
        clock::prime();
        let shared = Arc::new(Shared::default());
        let (to_reporter, news) = sync_channel(CHANNEL);
        let (to_explainer, work) = sync_channel(CHANNEL);
        let (to_sinks, reports) = sync_channel(CHANNEL);
        let mut engine = Engine {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        shared.explainer_runs(to_explainer.clone());
        let started = engine.spawn_all(Ends {
            to_reporter,
            news,
            to_explainer,
            work,
            to_sinks,
            reports,
        });
        match started {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.stop();
                Err(StartError::Thread(error))
            }
        }
    }

    fn spawn_all(&mut self, ends: Ends) -> std::io::Result<()> {
        let shared = || self.shared.clone();
        let (for_sinks, for_reporter, for_pulse, for_watchdog) =
            (shared(), shared(), shared(), shared());
        let (from_explainer, from_pulse) = (ends.to_reporter.clone(), ends.to_reporter.clone());
        self.spawn("stall-sinks", move || sinks::run(&for_sinks, &ends.reports))?;
        self.spawn("stall-reporter", move || {
            reporter::run(&for_reporter, &ends.news, ends.to_sinks);
        })?;
        self.spawn("stall-explainer", move || {
            explainer::run(&ends.work, &from_explainer);
        })?;
        self.spawn_metrics()?;
        self.spawn("stall-pulse", move || pulses::run(&for_pulse, &from_pulse))?;
        let out = Out {
            shared: for_watchdog,
            reporter: ends.to_reporter,
            explainer: ends.to_explainer,
        };
        self.spawn("stall-watchdog", move || watchdog::run(out))
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
        self.spawn("stall-metrics", move || metrics::run(&shared))
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
        self.shared.stop();
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
