//! Sends pulses to the runtimes and probes to their blocking pools, and notes how long each waits.
//!
//! *Runs on:* its own thread, `stall-pulse`. A pulse takes the runtime's queue lock, and a probe
//! may start a thread, so the watchdog sends neither.
//! *Must not:* be waited for. This thread may allocate, and may wait for a runtime's locks.

use super::holders::Holders;
use crate::capture::Addressee;
use crate::clock::{self, Nanos};
use crate::engine::{Message, PoolNews, Settings, Shared, WatchedRuntime, Work};
use crate::os;
use crate::probe::{Gathering, gather};
use crate::report::Phase;
use crate::slot;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::RuntimeFlavor;

/// The time between two pulses, or two probes, while a runtime has work.
const BUSY: Spacing = Spacing {
    pulse: Duration::from_millis(100),
    probe: Duration::from_millis(250),
};
/// The same for a runtime that has had no work for [`IDLE_AFTER`]: each pulse wakes a worker.
const IDLE: Spacing = Spacing {
    pulse: Duration::from_secs(1),
    probe: Duration::from_secs(5),
};
/// Time without work after which a runtime is idle. Parked workers alone do not make it idle: they
/// may wait for an exhausted pool.
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// The time between two looks at a probe under way.
const LOOK: Duration = Duration::from_millis(25);

/// How often the workers are asked to gather at the start, until all are known.
const GATHERINGS: u32 = 20;
/// The longest time between two later gatherings. A worker that gets no CPU stays unknown for long.
const GATHER_AGAIN: Duration = Duration::from_secs(1);
/// How long a later gathering holds a worker. It finds the thread of a worker that `block_in_place`
/// has moved.
const SHORT_GATHERING: Duration = Duration::from_micros(200);

struct Spacing {
    pulse: Duration,
    probe: Duration,
}

/// The thread's main function.
pub(crate) fn run(
    shared: &Arc<Shared>,
    reporter: &SyncSender<Message>,
    explainer: &SyncSender<Work>,
) {
    let mut states: HashMap<u64, PulseState> = HashMap::new();
    while !shared.stopping() {
        let watched = shared.watched.lock().clone();
        states.retain(|id, _| watched.iter().any(|runtime| runtime.id == *id));
        let mut wait = IDLE.pulse;
        for runtime in watched.iter().filter(|runtime| !runtime.is_gone()) {
            let state = states.entry(runtime.id).or_default();
            let now = clock::now();
            let news = state.visit(runtime, shared, now).map(Message::PoolWait);
            if news.is_some_and(|news| reporter.try_send(news).is_err()) {
                shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
            }
            for work in state.stacks(runtime, now) {
                // If the explainer has much to do, the report has one stack less.
                explainer.try_send(work).ok();
            }
            wait = wait.min(state.next_visit(runtime, now));
        }
        drop(watched);
        std::thread::park_timeout(wait);
    }
}

/// The pulse and the probe of one runtime.
#[derive(Default)]
struct PulseState {
    gatherings: Gatherings,
    /// When the runtime was last seen to have work.
    active_at: Nanos,
    pulse_at: Nanos,
    probe_at: Nanos,
    probe: Option<Probe>,
    holders: Holders,
    /// The number of the wait that was announced last.
    announced: u64,
}

/// An empty closure for the blocking pool.
#[derive(Default)]
struct Probe {
    sent_at: Nanos,
    taken: Arc<OnceLock<Taken>>,
    /// The number of the wait, once it is announced.
    id: Option<u64>,
    /// The age at which it is announced next; `None` before the first time.
    next_age: Option<Duration>,
}

/// When a blocking thread took a probe up, and which one.
struct Taken {
    at: Nanos,
    thread: Option<Addressee>,
}

impl Taken {
    /// The calling thread takes a probe up. It gets a slot, so that it can be asked for its stack.
    fn now() -> Taken {
        let at = clock::now();
        let addressee = |slot: &'static slot::Slot| {
            let tenancy = slot.tenancy();
            Addressee { slot, tenancy }
        };
        let thread = slot::mine().map(addressee);
        Taken { at, thread }
    }
}

impl PulseState {
    /// Sends what is due. Returns news of the probe, if there is any.
    fn visit(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        shared: &Shared,
        now: Nanos,
    ) -> Option<PoolNews> {
        if runtime.stats.active.swap(false, Ordering::Relaxed) {
            self.active_at = now;
        }
        let is_busy = now.since(self.active_at) < IDLE_AFTER;
        let spacing = if is_busy { BUSY } else { IDLE };
        self.follow_pulse(runtime, now, spacing.pulse);
        self.gatherings.visit(runtime, now);
        let news = self.follow_probe(runtime, shared);
        self.send_probe(runtime, now, spacing.probe);
        news
    }

    /// The time until the next visit.
    fn next_visit(&self, runtime: &WatchedRuntime, now: Nanos) -> Duration {
        if self.probe.is_some() || self.gatherings.is_start() {
            return LOOK;
        }
        let mut next = self.pulse_at.min(self.probe_at);
        if !all_known(runtime) {
            next = next.min(self.gatherings.next_at);
        }
        next.since(now).max(Duration::from_millis(1))
    }

    /// Notes the lag of the last pulse, and sends the next one if it is due.
    fn follow_pulse(&mut self, runtime: &WatchedRuntime, now: Nanos, spacing: Duration) {
        if let Some(lag) = runtime.pulse.take_lag() {
            runtime.stats.scheduler_lag.note(lag);
            #[cfg(feature = "serve")]
            runtime.recorder.lags.note(now, lag);
        }
        if self.pulse_at <= now {
            runtime.pulse.send();
        }
        self.pulse_at = next(self.pulse_at, now, spacing);
    }

    /// Sends a probe if one is due, and none is under way. Tokio panics if the system has no thread
    /// for it, so a thread is asked for first. Without one, the next probe waits as for an idle
    /// runtime.
    fn send_probe(&mut self, runtime: &WatchedRuntime, now: Nanos, spacing: Duration) {
        let mut spacing = spacing;
        if self.probe.is_none() && self.probe_at <= now && asks_pool(runtime) {
            let spare = os::spawn("stall-spare", || ()).map(|spare| spare.join());
            let send = |_| {
                // The pool may start a thread for it, which is the program's.
                let send = || os::with_signals_of_the_program(|| Probe::send(runtime));
                catch_unwind(AssertUnwindSafe(send)).ok()
            };
            self.probe = spare.ok().and_then(send);
            if self.probe.is_none() {
                runtime.stats.no_thread.fetch_add(1, Ordering::Relaxed);
                spacing = IDLE.probe;
            }
            let sent_at = self.probe.as_ref().map(|probe| probe.sent_at);
            runtime.stats.set_probe_sent_at(sent_at);
        }
        self.probe_at = next(self.probe_at, now, spacing);
    }

    /// Notes how long the probe under way has waited. From the threshold on, that is news.
    fn follow_probe(&mut self, runtime: &Arc<WatchedRuntime>, shared: &Shared) -> Option<PoolNews> {
        let probe = self.probe.as_mut()?;
        let taken_at = probe.taken.get().map(|taken| taken.at);
        let now = clock::now();
        let waited = taken_at.unwrap_or(now).since(probe.sent_at);
        let asked_for = runtime.watch.settings.pool_threshold;
        let phase = probe.phase(
            waited,
            taken_at.is_some(),
            asked_for.unwrap_or(Settings::POOL_THRESHOLD),
            &runtime.rules.milestones,
        );
        let news = phase.map(|phase| PoolNews {
            id: *probe.id.get_or_insert_with(|| shared.next_id()),
            phase,
            runtime: runtime.clone(),
            since: probe.sent_at,
            waited,
        });
        if let Some(news) = news.as_ref().filter(|news| news.phase != Phase::Ended) {
            self.announced = news.id;
            self.holders.ask(news.id, runtime, waited, now);
        }
        if let Some(taken) = probe.taken.get() {
            if let Some(thread) = taken.thread {
                self.holders.met(thread);
            }
            runtime.stats.blocking_queue_wait.note(waited);
            runtime.stats.set_probe_sent_at(None);
            self.probe = None;
        }
        news
    }
}

impl PulseState {
    /// The stacks of threads that hold the pool, as far as they have come.
    fn stacks(&mut self, runtime: &Arc<WatchedRuntime>, now: Nanos) -> Vec<Work> {
        let answers = self.holders.answers(now).into_iter();
        let work = answers.map(|(after, stack)| Work::OfPool {
            id: self.announced,
            runtime: runtime.clone(),
            after,
            stack,
        });
        work.collect()
    }
}

/// The gatherings of one runtime, by which the threads of its workers become known.
#[derive(Default)]
struct Gatherings {
    /// The number of visits with an unknown worker since all were known last, or since the start.
    visits: u32,
    /// The threads of all workers have been known at one time.
    were_known: bool,
    under_way: Option<Gathering>,
    next_at: Nanos,
}

impl Gatherings {
    /// Gathers the workers if the thread of one is unknown: it had no CPU while the others
    /// gathered, or the worker has moved to another thread. Each gathering waits for the end of the
    /// one before, so a runtime whose workers are blocked has no more than one in its queue.
    fn visit(&mut self, runtime: &WatchedRuntime, now: Nanos) {
        if all_known(runtime) {
            self.visits = 0;
            self.were_known = true;
            return;
        }
        if now < self.next_at {
            return;
        }
        self.under_way.take_if(|gathering| gathering.is_over());
        // The first visit comes while the gathering of the start is still under way.
        if self.under_way.is_none() && self.visits > 0 {
            let longest = if self.is_start() {
                runtime.rules.threshold / 2
            } else {
                SHORT_GATHERING
            };
            self.under_way = Some(gather(&runtime.handle, longest));
        }
        self.next_at = now.plus(self.spacing());
        self.visits += 1;
    }

    /// Whether the threads of all workers have yet to be known for the first time.
    fn is_start(&self) -> bool {
        !self.were_known && self.visits < GATHERINGS
    }

    /// The time to the next gathering: the same at the start, and then twice as long each time.
    fn spacing(&self) -> Duration {
        let doublings = self.visits.saturating_sub(GATHERINGS).min(u32::BITS - 1);
        LOOK.saturating_mul(1 << doublings).min(GATHER_AGAIN)
    }
}

/// Whether the blocking pool is probed. The workers of a multi-thread runtime are threads of its
/// pool. The pool of a `current_thread` runtime may have no thread, and a probe would make one.
fn asks_pool(runtime: &WatchedRuntime) -> bool {
    runtime.watch.settings.pool_threshold.is_some()
        || runtime.handle.runtime_flavor() != RuntimeFlavor::CurrentThread
}

/// Whether the thread of each worker is known.
fn all_known(runtime: &WatchedRuntime) -> bool {
    runtime.stats.enrolled.load(Ordering::Relaxed) == runtime.metrics.num_workers()
}

/// The next time for something that was due at `due`. A runtime that has become busy does not wait
/// for the rest of its idle spacing.
fn next(due: Nanos, now: Nanos, spacing: Duration) -> Nanos {
    let latest = now.plus(spacing);
    if due <= now { latest } else { due.min(latest) }
}

impl Probe {
    fn send(runtime: &WatchedRuntime) -> Probe {
        let taken = Arc::new(OnceLock::new());
        let stamp = taken.clone();
        let sent_at = clock::now();
        // The task is detached. A runtime that shuts down before the closure runs drops it.
        drop(runtime.handle.spawn_blocking(move || {
            // Nobody else sets it.
            stamp.set(Taken::now()).ok();
        }));
        Probe {
            sent_at,
            taken,
            ..Probe::default()
        }
    }

    /// The phase to announce after a wait of this length, if it is time for one. The next one is
    /// due at twice the age, or at a milestone.
    fn phase(
        &mut self,
        waited: Duration,
        is_taken: bool,
        threshold: Duration,
        milestones: &[Duration],
    ) -> Option<Phase> {
        let is_due = waited >= self.next_age.unwrap_or(threshold);
        let phase = match (is_taken, self.next_age) {
            (true, announced) => (announced.is_some() || is_due).then_some(Phase::Ended),
            (false, None) => is_due.then_some(Phase::Began),
            (false, Some(_)) => is_due.then_some(Phase::Ongoing),
        }?;
        let mut doubled = threshold;
        while doubled <= waited {
            doubled = doubled.saturating_mul(2);
        }
        let later = milestones.iter().copied().filter(|age| *age > waited);
        self.next_age = Some(later.fold(doubled, Duration::min));
        Some(phase)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_becomes_busy_is_visited_sooner() {
        let now = Nanos(1_000_000_000);
        let far = now.plus(IDLE.pulse);
        assert_eq!(next(far, now, BUSY.pulse), now.plus(BUSY.pulse));
        assert_eq!(next(now, now, BUSY.pulse), now.plus(BUSY.pulse));
        let near = now.plus(Duration::from_millis(3));
        assert_eq!(next(near, now, IDLE.pulse), near);
    }

    #[test]
    fn a_wait_is_announced_at_the_threshold_at_each_doubling_and_at_its_end() {
        let threshold = Duration::from_millis(100);
        let phases = |ages: &[(u64, bool)]| {
            let mut probe = Probe::default();
            let phase = |&(millis, is_taken): &(u64, bool)| {
                let milestones = [Duration::from_millis(500)];
                probe.phase(
                    Duration::from_millis(millis),
                    is_taken,
                    threshold,
                    &milestones,
                )
            };
            ages.iter().map(phase).collect::<Vec<_>>()
        };
        let (began, ongoing, ended) = (Phase::Began, Phase::Ongoing, Phase::Ended);
        let waits = [
            (99, false),
            (100, false),
            (199, false),
            (450, false),
            (499, false),
            (500, false),
            (799, false),
            (800, true),
        ];
        let (of, rest) = (
            [None, Some(began), None, Some(ongoing), None],
            [Some(ongoing), None],
        );
        let expected = [&of[..], &rest, &[Some(ended)]].concat();
        assert_eq!(phases(&waits), expected);
        assert_eq!(
            phases(&[(100, false), (101, true)]),
            [Some(began), Some(ended)]
        );
        assert_eq!(phases(&[(99, true)]), [None]);
        assert_eq!(phases(&[(100, true)]), [Some(ended)]);
    }
}
