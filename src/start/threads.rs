//! The threads of a process: started with the first watch, stopped with the last.
//!
//! *Runs on:* the thread that starts or drops a watch.

use crate::clock;
use crate::detect::Rules;
use crate::engine::{Hearing, Message, Shared, WatchState, WatchedRuntime, Work};
use crate::error::StartError;
#[cfg(feature = "metrics")]
use crate::metrics;
use crate::os;
use crate::probe::{self, Pulse, allow_blocking};
use crate::reporter::sinks::{self, Delivery};
use crate::reporter::{self, explainer};
#[cfg(feature = "tower")]
use crate::requests;
use crate::slot;
use crate::turns::{self, Track};
use crate::watchdog::{self, Out, pulses, workers};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;
use tokio::runtime::Handle;

/// The most messages that wait in one channel. Threads that must not wait drop further ones.
const CHANNEL: usize = 256;

/// How long the drop of the last guard waits for its threads: one may be in the user's callback or
/// logger, or read debug information.
const LONGEST_END: Duration = Duration::from_secs(1);

/// How long a start waits for a look around. It asks the subscriber, whose filter may wait for the
/// very thread that starts.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// How long a forked child waits for the layout of tokio's memory. The parent may have been
/// learning it at the moment of the fork, and then nobody finishes in the child.
const LONGEST_LEARNING: Duration = Duration::from_secs(5);

/// The name of a runtime without a given name. A second one is called by tokio's number for it.
pub(super) const UNNAMED: &str = "main";

/// The engine of one process. The lock is held during a start and an end, also while these wait.
///
/// A forked child has a place of its own (D255): the threads of the parent's engine are not there
/// to be waited for, and another thread of the parent may have held the lock, which is then held
/// for ever.
#[derive(Debug)]
struct EngineOfProcess {
    /// The number of the process; 0 before the first use.
    process: AtomicU32,
    engine: Mutex<Option<Engine>>,
    child: OnceLock<Box<EngineOfProcess>>,
}

static ENGINE: EngineOfProcess = EngineOfProcess::new(0);

/// The detector's threads and their shared data.
#[derive(Debug)]
struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl EngineOfProcess {
    const fn new(process: u32) -> EngineOfProcess {
        EngineOfProcess {
            process: AtomicU32::new(process),
            engine: Mutex::new(None),
            child: OnceLock::new(),
        }
    }

    /// Whether it is that of this process. One that nobody has used is.
    fn is_of(&self, process: u32) -> bool {
        // Relaxed: the number publishes nothing else, and a fork copies it.
        let known = self
            .process
            .compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed);
        known.map_or_else(|known| known == process, |_| true)
    }

    fn is_inherited(&self) -> bool {
        !self.is_of(std::process::id())
    }

    /// That of this process.
    fn of_this_process(&'static self) -> &'static Mutex<Option<Engine>> {
        let process = std::process::id();
        let mut of = self;
        while !of.is_of(process) {
            of = of
                .child
                .get_or_init(|| Box::new(EngineOfProcess::new(process)));
        }
        &of.engine
    }
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
        learn_layout();
    }
    let mut engine = ENGINE.of_this_process().lock();
    let watched = engine
        .as_ref()
        .map_or_else(Vec::new, |engine| engine.shared.watched.lock().clone());
    let new = prepare(runtimes, watched, watch, rules)?;
    let running = engine.take().map_or_else(Engine::start, Ok)?;
    let shared = running.shared.clone();
    running.add(new);
    *engine = Some(running);
    // The user's filter may need a lock whose holder waits for the engine.
    drop(engine);
    look_at_sight(&shared);
    Ok(shared)
}

/// Learns the layout of tokio's memory, unless that is known.
fn learn_layout() {
    if ENGINE.is_inherited() {
        wait_on_a_thread("stall-layout", LONGEST_LEARNING, turns::learn_layout);
    } else {
        turns::learn_layout();
    }
}

/// Has the first round made, on a thread made for it: the explainer may be reading. Without a
/// thread to be had, the explainer's next round is the first. It also asks whether anybody hears
/// the log: the calling thread may have a subscriber of its own.
fn look_at_sight(shared: &Arc<Shared>) {
    let shared = shared.clone();
    wait_on_a_thread("stall-look", LONGEST_LOOK, move || {
        shared.look_at_sight();
        Hearing::ask();
    });
}

/// Asks whether anybody hears the log, on a thread made for it: the calling thread may have a
/// subscriber of its own.
pub(super) fn ask_for_hearing() {
    wait_on_a_thread("stall-look", LONGEST_LOOK, || {
        Hearing::ask();
    });
}

/// Calls this on a thread made for it, if there is one to be had, and waits for it, but not for
/// longer than this. A thread held up for longer ends on its own.
fn wait_on_a_thread(name: &str, longest: Duration, f: impl FnOnce() + Send + 'static) {
    let (done, is_done) = sync_channel::<()>(0);
    let thread = os::spawn(name, move || {
        f();
        drop(done);
    });
    let Ok(thread) = thread else {
        return;
    };
    // The caller may be in a poll of a runtime that is watched by now.
    allow_blocking("the start of a watch", || {
        // Nothing is sent: the channel is closed at the end, also by a panic.
        if is_done.recv_timeout(longest) == Err(RecvTimeoutError::Disconnected) {
            thread.join().ok();
        }
    });
}

/// Gives each runtime a name and a pulse, beside those that are watched already.
fn prepare(
    runtimes: Vec<(Option<String>, Handle)>,
    watched: Vec<Arc<WatchedRuntime>>,
    watch: &Arc<WatchState>,
    rules: impl Fn(&Handle) -> Rules,
) -> Result<Vec<Arc<WatchedRuntime>>, StartError> {
    // A runtime that has been shut down frees its name, even while its guard is kept.
    let mut others = watched;
    others.retain(|runtime| !runtime.is_gone());
    let mut new = Vec::new();
    for (name, handle) in runtimes {
        let id = slot::raw_id(&handle.id());
        if let Some(twin) = others.iter().find(|runtime| runtime.id == id) {
            let name = twin.name.clone();
            return Err(StartError::RuntimeWatchedTwice { name });
        }
        let is_taken = |name: &str| others.iter().any(|runtime| runtime.name == name);
        let name = choose_name(name, id, is_taken)?;
        let Some(pulse) = Pulse::spawn(&handle) else {
            return Err(StartError::RuntimeShutDown { name });
        };
        let rules = rules(&handle);
        let runtime = WatchedRuntime::new(name, handle, rules, pulse, watch.clone());
        let runtime = Arc::new(runtime);
        others.push(runtime.clone());
        new.push(runtime);
    }
    Ok(new)
}

/// The name of a runtime: the given one, or one that is free.
fn choose_name(
    given: Option<String>,
    id: u64,
    is_taken: impl Fn(&str) -> bool,
) -> Result<String, StartError> {
    match given {
        Some(name) if name.is_empty() => Err(StartError::NameEmpty),
        Some(name) if is_taken(&name) => Err(StartError::NameTaken { name }),
        Some(name) => Ok(name),
        // A name that the user has not chosen is no error of the user if it is taken.
        None if is_taken(UNNAMED) => Ok(format!("runtime-{id}")),
        None => Ok(UNNAMED.to_owned()),
    }
}

/// Notes whether turns are counted, and enrols the threads of all workers.
fn gather(runtimes: &[Arc<WatchedRuntime>]) {
    for runtime in runtimes {
        let flavor = runtime.handle.runtime_flavor();
        let track = Track::new(flavor, runtime.watch.settings.turns);
        runtime.stats.note_no_turns(track.missing());
        probe::gather(&runtime.handle, runtime.rules.threshold / 2).wait();
    }
}

/// Stops watching the runtimes of this watch, and stops the engine if there are no others.
pub(crate) fn leave(watch: &Arc<WatchState>) {
    let mut engine = ENGINE.of_this_process().lock();
    let Some(running) = engine.take() else {
        return;
    };
    let is_last = remove(&mut running.shared.watched.lock(), watch);
    running.shared.runtimes_changed();
    if is_last {
        running.stop();
    } else {
        running.wake();
        *engine = Some(running);
    }
}

/// Forgets the runtimes of this watch that have been shut down.
pub(crate) fn forget_gone(watch: &Arc<WatchState>) {
    let engine = ENGINE.of_this_process().lock();
    if let Some(running) = &*engine {
        let is_gone =
            |runtime: &Arc<WatchedRuntime>| runtime.is_gone() && Arc::ptr_eq(&runtime.watch, watch);
        running
            .shared
            .watched
            .lock()
            .retain(|runtime| !is_gone(runtime));
        running.shared.runtimes_changed();
    }
}

/// Removes the runtimes of this watch and stops their pulses. Returns whether none is left.
fn remove(watched: &mut Vec<Arc<WatchedRuntime>>, watch: &Arc<WatchState>) -> bool {
    watched.retain(|runtime| {
        let leaves = Arc::ptr_eq(&runtime.watch, watch);
        if leaves {
            runtime.pulse.stop();
        }
        !leaves
    });
    watched.is_empty()
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

impl Ends {
    fn new() -> Ends {
        let (to_reporter, news) = sync_channel(CHANNEL);
        let (to_explainer, work) = sync_channel(CHANNEL);
        let (to_sinks, reports) = sync_channel(CHANNEL);
        Ends {
            to_reporter,
            news,
            to_explainer,
            work,
            to_sinks,
            reports,
        }
    }
}

impl Engine {
    fn start() -> Result<Engine, StartError> {
        clock::prime();
        let shared = Arc::new(Shared::default());
        let ends = Ends::new();
        shared.explainer_runs(ends.to_explainer.clone());
        let mut engine = Engine {
            shared,
            threads: Vec::new(),
        };
        match engine.spawn_all(ends) {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.stop();
                Err(StartError::Thread(error))
            }
        }
    }

    fn add(&self, runtimes: Vec<Arc<WatchedRuntime>>) {
        gather(&runtimes);
        #[cfg(feature = "tower")]
        runtimes
            .iter()
            .for_each(|runtime| requests::add(&runtime.requests));
        self.shared.watched.lock().extend(runtimes);
        self.shared.runtimes_changed();
        self.wake();
    }

    fn spawn_all(&mut self, ends: Ends) -> std::io::Result<()> {
        let shared = self.shared.clone();
        self.spawn("stall-sinks", move || sinks::run(&shared, &ends.reports))?;
        let shared = self.shared.clone();
        self.spawn("stall-reporter", move || {
            reporter::run(&shared, &ends.news, ends.to_sinks);
        })?;
        let (shared, reporter) = (self.shared.clone(), ends.to_reporter.clone());
        self.spawn("stall-explainer", move || {
            explainer::run(&shared, &ends.work, &reporter);
        })?;
        self.spawn_metrics()?;
        let (shared, reporter) = (self.shared.clone(), ends.to_reporter.clone());
        let explainer = ends.to_explainer.clone();
        self.spawn("stall-pulse", move || {
            pulses::run(&shared, &reporter, &explainer);
        })?;
        let out = Out {
            shared: self.shared.clone(),
            reporter: ends.to_reporter,
            explainer: ends.to_explainer,
        };
        self.spawn("stall-watchdog", move || watchdog::run(out))
    }

    fn spawn(&mut self, name: &str, main: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = os::spawn(name, main)?;
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

    /// Ends the threads, and waits for them, for at most [`LONGEST_END`].
    fn stop(self) {
        self.shared.stop();
        self.wake();
        let deadline = clock::now().plus(LONGEST_END);
        for thread in self.threads {
            if thread.thread().id() == std::thread::current().id() {
                // Dropped inside `on_stall`: this thread ends when the callback returns.
                continue;
            }
            while !thread.is_finished() && clock::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
            if thread.is_finished() {
                // A panic of the thread has been printed.
                thread.join().ok();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_unique_and_not_empty() {
        let name = |given: Option<&str>, taken: &[&str]| {
            let given = given.map(str::to_owned);
            let name = choose_name(given, 7, |name| taken.contains(&name));
            name.map_err(|error| error.to_string())
        };
        let main = Ok(UNNAMED.to_owned());
        assert_eq!(name(Some("api"), &["main"]), Ok("api".to_owned()));
        assert_eq!(name(None, &["api"]), main);
        assert_eq!(name(None, &["main"]), Ok("runtime-7".to_owned()));
        assert_eq!(name(Some("main"), &[]), main);
        let taken = name(Some("api"), &["api"]).unwrap_err();
        assert!(taken.contains("under the name \"api\" already"), "{taken}");
        let empty = name(Some(""), &[]).unwrap_err();
        assert!(empty.contains("an empty name"), "{empty}");
    }
}
