//! Sends pulses to the runtimes and probes to their blocking pools, and notes how long each waits.
//! Announces a wait for a pool once the pool is known to be exhausted.
//!
//! *Runs on:* its own thread, `stall-pulse`. A pulse takes the runtime's queue lock, and a probe
//! may start a thread, so the watchdog sends neither.
//! *Must not:* be waited for. This thread may allocate, and may wait for a runtime's locks.

use super::exhaustion::PoolEvidence;
use super::holders::Holders;
use crate::capture::Addressee;
use crate::clock::{self, Nanos};
use crate::engine::{Message, PoolNews, PoolStack, Settings, Shared, WatchedRuntime, Work};
use crate::explain::{self, PoolThread};
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
            state.holders.send_on(runtime, explainer, now);
            let news = state.visit(runtime, shared, now).map(Message::PoolWait);
            if news.is_some_and(|news| reporter.try_send(news).is_err()) {
                shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
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
    /// The stacks of closures that hold the pool, since the last news.
    stacks: Vec<PoolStack>,
}

/// An empty closure for the blocking pool.
#[derive(Default)]
struct Probe {
    sent_at: Nanos,
    taken: Arc<OnceLock<Taken>>,
    evidence: PoolEvidence,
    looked_at: Nanos,
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
        // While nobody drives a runtime, its tasks wait for nothing that a worker does.
        let is_driven = |lag: &Duration| runtime.stats.is_driven_since(now.minus(*lag));
        if let Some(lag) = runtime.pulse.take_lag().filter(is_driven) {
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
            let send = |delay| {
                // The pool may start a thread for it, which is the program's.
                let send = || os::with_signals_of_the_program(|| Probe::send(runtime, delay));
                catch_unwind(AssertUnwindSafe(send)).ok()
            };
            self.probe = delay_of_a_thread().and_then(send);
            if self.probe.is_none() {
                runtime.stats.no_thread.fetch_add(1, Ordering::Relaxed);
                spacing = IDLE.probe;
            }
            let sent_at = self.probe.as_ref().map(|probe| probe.sent_at);
            runtime.stats.set_probe_sent_at(sent_at);
            self.holders.begin();
            self.stacks.clear();
        }
        self.probe_at = next(self.probe_at, now, spacing);
    }

    /// Notes how long the probe under way has waited. If the pool is exhausted, that is news.
    fn follow_probe(&mut self, runtime: &Arc<WatchedRuntime>, shared: &Shared) -> Option<PoolNews> {
        self.take_in_stacks();
        let asked_for = runtime.watch.settings.pool_threshold;
        let threshold = asked_for.unwrap_or(Settings::POOL_THRESHOLD);
        let is_exhausted = self.is_exhausted(runtime, threshold);
        let probe = self.probe.as_mut()?;
        let taken_at = probe.taken.get().map(|taken| taken.at);
        let now = clock::now();
        let waited = taken_at.unwrap_or(now).since(probe.sent_at);
        let is_taken = taken_at.is_some();
        let milestones = &runtime.rules.milestones;
        let phase = probe.phase(waited, is_taken, is_exhausted, threshold, milestones);
        let news = phase.map(|phase| PoolNews {
            id: *probe.id.get_or_insert_with(|| shared.next_id()),
            phase,
            runtime: runtime.clone(),
            since: probe.sent_at,
            waited,
            stacks: std::mem::take(&mut self.stacks),
        });
        match phase {
            Some(Phase::Began) => {
                let since = Some(probe.evidence.since);
                runtime.stats.set_pool_exhausted_since(since);
            }
            Some(Phase::Ongoing) => self.holders.ask(runtime, waited, now),
            _ => {}
        }
        if let Some(taken) = probe.taken.get() {
            if let Some(thread) = taken.thread {
                self.holders.met(thread);
            }
            runtime.stats.blocking_queue_wait.note(waited);
            runtime.stats.set_probe_sent_at(None);
            runtime.stats.set_pool_exhausted_since(None);
            self.probe = None;
        }
        news
    }

    /// Takes in the stacks that have been explained. An idle thread ends the suspicion, unless the
    /// wait is announced.
    fn take_in_stacks(&mut self) {
        let Some(probe) = self.probe.as_mut() else {
            return;
        };
        for of_thread in self.holders.explained() {
            let Some(shown) = explain::pool_thread(&of_thread.stack) else {
                continue;
            };
            probe.evidence.add_stack(shown, clock::now());
            match shown {
                PoolThread::Holds => self.stacks.push(of_thread),
                PoolThread::Idle if probe.id.is_none() => {
                    self.stacks.clear();
                    self.holders.begin();
                    break;
                }
                PoolThread::Idle => {}
            }
        }
    }

    /// Whether the pool is known to be exhausted, as long as the wait is not announced. If the wait
    /// is suspect, asks for stacks and starts a thread of our own, to see how late the host is.
    fn is_exhausted(&mut self, runtime: &WatchedRuntime, threshold: Duration) -> bool {
        let Some(probe) = self.probe.as_mut() else {
            return false;
        };
        let now = clock::now();
        let late = now.since(probe.looked_at).saturating_sub(LOOK);
        probe.looked_at = now;
        probe.evidence.add_delay(late);
        if probe.id.is_some() || !probe.evidence.is_suspect(now, threshold) {
            return false;
        }
        self.holders
            .ask_once(runtime, now.since(probe.sent_at), now);
        if let Some(delay) = delay_of_a_thread() {
            probe.evidence.add_delay(delay);
        }
        let awaits_stacks = self.holders.awaits(now);
        probe.evidence.is_exhausted(now, threshold, awaits_stacks)
    }
}

/// The time that a thread of our own takes to begin, to end, and to be known to have ended. `None`
/// if the system has no thread for it.
fn delay_of_a_thread() -> Option<Duration> {
    let from = clock::now();
    let spare = os::spawn("stall-spare", || ()).ok()?;
    spare.join().ok();
    Some(clock::now().since(from))
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
    /// Sends a probe, just after a thread of our own has taken this long.
    fn send(runtime: &WatchedRuntime, delay: Duration) -> Probe {
        let taken = Arc::new(OnceLock::new());
        let stamp = taken.clone();
        let sent_at = clock::now();
        // The task is detached. A runtime that shuts down before the closure runs drops it.
        drop(runtime.handle.spawn_blocking(move || {
            // Nobody else sets it.
            stamp.set(Taken::now()).ok();
        }));
        // The start of a thread for it may have taken long, which is no wait for a busy one.
        let handed_over_at = clock::now();
        Probe {
            sent_at,
            taken,
            evidence: PoolEvidence::new(handed_over_at, delay),
            looked_at: handed_over_at,
            ..Probe::default()
        }
    }

    /// The phase to announce after a wait of this length, if it is time for one. The first is due
    /// once the pool is exhausted, the next at twice the age or at a milestone.
    fn phase(
        &mut self,
        waited: Duration,
        is_taken: bool,
        is_exhausted: bool,
        threshold: Duration,
        milestones: &[Duration],
    ) -> Option<Phase> {
        let phase = match (is_taken, self.next_age) {
            (true, announced) => announced.map(|_| Phase::Ended),
            (false, None) => is_exhausted.then_some(Phase::Began),
            (false, Some(age)) => (waited >= age).then_some(Phase::Ongoing),
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
    use crate::report::{Frame, Origin};

    #[test]
    fn a_runtime_that_becomes_busy_is_visited_sooner() {
        let now = Nanos(1_000_000_000);
        let far = now.plus(IDLE.pulse);
        assert_eq!(next(far, now, BUSY.pulse), now.plus(BUSY.pulse));
        assert_eq!(next(now, now, BUSY.pulse), now.plus(BUSY.pulse));
        let near = now.plus(Duration::from_millis(3));
        assert_eq!(next(near, now, IDLE.pulse), near);
    }

    /// The announcements of a wait, at looks of this age in milliseconds. The pool is exhausted
    /// from an age on.
    fn phases(exhausted_from: u64, looks: &[(u64, bool)]) -> Vec<Option<Phase>> {
        let mut probe = Probe::default();
        let phase = |&(millis, is_taken): &(u64, bool)| {
            let milestones = [Duration::from_millis(500)];
            let is_exhausted = millis >= exhausted_from && !is_taken;
            let waited = Duration::from_millis(millis);
            let threshold = Duration::from_millis(100);
            probe.phase(waited, is_taken, is_exhausted, threshold, &milestones)
        };
        looks.iter().map(phase).collect()
    }

    #[test]
    fn a_wait_is_announced_once_exhausted_at_each_doubling_and_at_its_end() {
        let (began, ongoing, ended) = (Phase::Began, Phase::Ongoing, Phase::Ended);
        let looks = [
            (99, None),
            (100, Some(began)),
            (199, None),
            (450, Some(ongoing)),
            (499, None),
            (500, Some(ongoing)),
            (799, None),
        ];
        let mut waits: Vec<_> = looks.iter().map(|(age, _)| (*age, false)).collect();
        waits.push((800, true));
        let mut expected: Vec<_> = looks.iter().map(|(_, phase)| *phase).collect();
        expected.push(Some(ended));
        assert_eq!(phases(100, &waits), expected);
        let late = [(100, false), (350, false), (399, false), (400, false)];
        let expected = [None, Some(began), None, Some(ongoing)];
        assert_eq!(phases(350, &late), expected);
    }

    #[test]
    fn a_wait_that_is_not_known_to_be_of_an_exhausted_pool_is_no_news() {
        let never = u64::MAX;
        assert_eq!(phases(never, &[(100, false), (9_000, false)]), [None; 2]);
        assert_eq!(phases(never, &[(100, false), (9_000, true)]), [None; 2]);
        // Positive control: the same wait of an exhausted one.
        let expected = [Some(Phase::Began), Some(Phase::Ended)];
        assert_eq!(phases(100, &[(100, false), (9_000, true)]), expected);
    }

    /// A state whose probe waits, with the stacks of two threads that the explainer has done.
    fn waits_with(stacks: [&str; 2], id: Option<u64>) -> PulseState {
        let mut state = PulseState {
            probe: Some(Probe {
                id,
                ..Probe::default()
            }),
            ..PulseState::default()
        };
        for innermost in stacks {
            let frames = [innermost, "tokio::runtime::blocking::pool::Inner::run"];
            state.holders.is_explained(PoolStack {
                after: Duration::ZERO,
                stack: explain::Explained {
                    frames: frames.map(|name| Frame::of(name, Origin::Runtime)).into(),
                    certain: frames.len(),
                    missing: Vec::new(),
                    complete: true,
                    truncated: false,
                    lost: false,
                },
            });
        }
        state.take_in_stacks();
        state
    }

    #[test]
    fn an_idle_thread_begins_the_wait_anew_unless_it_is_announced() {
        let (held, idle) = ("tokio::runtime::task::raw::poll", "std::Condvar::wait");
        let since = |state: &PulseState| state.probe.as_ref().map(|probe| probe.evidence.since);
        let state = waits_with([held, held], None);
        assert_eq!(state.stacks.len(), 2);
        assert_eq!(since(&state), Some(Nanos::default()));
        for stacks in [[held, idle], [idle, held]] {
            let state = waits_with(stacks, None);
            assert_eq!(state.stacks.len(), 0, "{stacks:?}");
            assert!(since(&state) > Some(Nanos::default()), "{stacks:?}");
        }
        assert_eq!(waits_with([held, idle], Some(1)).stacks.len(), 1);
    }

    /// As [`Liveness`](crate::Liveness) and the reporter hear of it.
    #[test]
    fn an_exhausted_pool_is_news_until_the_probe_is_taken_and_a_late_host_is_none() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (runtime, shared) = (WatchedRuntime::for_tests(tokio.handle()), Shared::default());
        let sent_at = Nanos(1);
        let taken = Arc::new(OnceLock::new());
        let probe = |looked_at| Probe {
            sent_at,
            taken: taken.clone(),
            evidence: PoolEvidence::new(sent_at, Duration::ZERO),
            looked_at,
            ..Probe::default()
        };
        // The last look is as old as the wait: this thread has had no CPU either.
        let mut state = PulseState {
            probe: Some(probe(sent_at)),
            ..PulseState::default()
        };
        let exhausted_since = || runtime.stats.pool_exhausted_since();
        state.holders.begin();
        assert!(state.follow_probe(&runtime, &shared).is_none());
        assert_eq!(exhausted_since(), None);

        // Positive control: the same wait beside looks in time.
        state.probe = Some(probe(clock::now()));
        let began = state.follow_probe(&runtime, &shared).expect("news");
        assert_eq!((began.phase, began.since), (Phase::Began, sent_at));
        assert_eq!(exhausted_since(), Some(sent_at));
        assert!(taken.set(Taken::now()).is_ok());
        let ended = state.follow_probe(&runtime, &shared).expect("news");
        assert_eq!((ended.phase, ended.id), (Phase::Ended, began.id));
        assert_eq!(exhausted_since(), None);
    }
}
