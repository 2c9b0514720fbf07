//! Sends pulses to the runtimes and probes to their blocking pools, and notes how long each waits.
//!
//! *Runs on:* its own thread, `stall-pulse`.
//! *Here:* may allocate and may wait for a runtime's locks; nobody waits for this thread. That is why
//! it is not the watchdog: a pulse takes the runtime's queue lock, a probe may start a thread.

use crate::clock::{self, Nanos};
use crate::engine::{Message, PoolNews, Shared, WatchedRuntime};
use crate::probe::gather;
use crate::report::Phase;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// Between two pulses, or probes, while a runtime has work …
const BUSY: Spacing = Spacing {
    pulse: Duration::from_millis(100),
    probe: Duration::from_millis(250),
};
/// … and once it has had none for [`IDLE_AFTER`]: a pulse wakes a worker.
const IDLE: Spacing = Spacing {
    pulse: Duration::from_secs(1),
    probe: Duration::from_secs(5),
};
/// Parked workers alone do not make a runtime idle: they may be waiting for an exhausted pool.
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// Between two looks at a probe under way.
const LOOK: Duration = Duration::from_millis(25);

/// How often the workers are asked to gather at the start, until all are known.
const GATHERINGS: u32 = 20;
/// How long a worker is held later on, so that one that `block_in_place` has given to another thread is known
/// again.
const SHORT_GATHERING: Duration = Duration::from_micros(200);

struct Spacing {
    pulse: Duration,
    probe: Duration,
}

/// The thread's main function.
pub(crate) fn run(shared: &Arc<Shared>, reporter: &SyncSender<Message>) {
    let mut rounds: HashMap<u64, PulseState> = HashMap::new();
    while !shared.stopping() {
        let watched = shared.watched.lock().clone();
        rounds.retain(|id, _| watched.iter().any(|runtime| runtime.id == *id));
        let mut wait = IDLE.pulse;
        for runtime in watched.iter().filter(|runtime| !runtime.is_gone()) {
            let round = rounds.entry(runtime.id).or_default();
            wait = wait.min(round.turn(runtime, shared, reporter));
        }
        drop(watched);
        std::thread::park_timeout(wait);
    }
}

/// What is under way with one runtime.
#[derive(Default)]
struct PulseState {
    gatherings: u32,
    /// When the runtime was last seen to have work.
    active_at: Nanos,
    pulse_at: Nanos,
    probe_at: Nanos,
    probe: Option<Probe>,
}

struct Probe {
    sent_at: Nanos,
    /// When a blocking thread took it up; 0 until then.
    taken_at: Arc<AtomicU64>,
    announced: Option<(u64, Duration)>,
}

impl PulseState {
    /// Does what is due and says when to come again.
    fn turn(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        shared: &Shared,
        reporter: &SyncSender<Message>,
    ) -> Duration {
        let now = clock::now();
        if runtime.stats.active.swap(false, Ordering::Relaxed) {
            self.active_at = now;
        }
        let spacing = if now.since(self.active_at) < IDLE_AFTER {
            BUSY
        } else {
            IDLE
        };
        if let Some(lag) = runtime.pulse.take_lag() {
            runtime.stats.scheduler_lag.note(lag);
        }
        if self.pulse_at <= now {
            runtime.pulse.send();
        }
        // A runtime that has become busy need not wait for the rest of its idle spacing.
        self.pulse_at = next(self.pulse_at, now, spacing.pulse);
        self.gather_again(runtime);
        self.follow_probe(runtime, shared, reporter);
        if self.probe.is_none() && self.probe_at <= now {
            let probe = Probe::send(runtime);
            runtime.stats.set_probe_sent_at(Some(probe.sent_at));
            self.probe = Some(probe);
        }
        self.probe_at = next(self.probe_at, now, spacing.probe);
        if self.probe.is_some() || self.gatherings < GATHERINGS || !all_known(runtime) {
            return LOOK;
        }
        self.pulse_at
            .min(self.probe_at)
            .since(now)
            .max(Duration::from_millis(1))
    }

    /// A worker that was kept from a CPU while the others gathered is not known yet, nor is one that has been
    /// given to another thread.
    fn gather_again(&mut self, runtime: &WatchedRuntime) {
        let is_start = self.gatherings < GATHERINGS;
        self.gatherings += u32::from(is_start);
        if all_known(runtime) || self.gatherings <= 1 {
            return;
        }
        let longest = if is_start {
            runtime.rules.threshold / 2
        } else {
            SHORT_GATHERING
        };
        gather(&runtime.handle, longest);
    }

    /// Notes how long the probe under way has waited, and says so from the threshold on.
    fn follow_probe(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        shared: &Shared,
        reporter: &SyncSender<Message>,
    ) {
        let Some(probe) = &mut self.probe else {
            return;
        };
        let taken_at = match probe.taken_at.load(Ordering::Acquire) {
            0 => None,
            taken_at => Some(Nanos(taken_at)),
        };
        let waited = taken_at.unwrap_or_else(clock::now).since(probe.sent_at);
        let threshold = runtime.watch.settings.pool_threshold;
        let phase = match (taken_at, &mut probe.announced) {
            (Some(_), announced) => {
                (announced.is_some() || waited >= threshold).then_some(Phase::Ended)
            }
            (None, None) => (waited >= threshold).then_some(Phase::Began),
            (None, Some((_, next_age))) => (waited >= *next_age).then_some(Phase::Ongoing),
        };
        if let Some(phase) = phase {
            let (id, next_age) = probe
                .announced
                .get_or_insert_with(|| (shared.next_id(), threshold));
            while *next_age <= waited {
                *next_age *= 2;
            }
            let news = PoolNews {
                id: *id,
                phase,
                runtime: runtime.clone(),
                since: probe.sent_at,
                waited,
            };
            if reporter.try_send(Message::PoolWait(news)).is_err() {
                shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
            }
        }
        if taken_at.is_some() {
            runtime.stats.blocking_queue_wait.note(waited);
            runtime.stats.set_probe_sent_at(None);
            self.probe = None;
        }
    }
}

/// Whether it is known of each worker which thread drives it.
fn all_known(runtime: &WatchedRuntime) -> bool {
    runtime.stats.enrolled.load(Ordering::Relaxed) == runtime.metrics.num_workers()
}

/// The next time for something that was due at `due`.
fn next(due: Nanos, now: Nanos, spacing: Duration) -> Nanos {
    let latest = now.plus(spacing);
    if due <= now { latest } else { due.min(latest) }
}

impl Probe {
    fn send(runtime: &WatchedRuntime) -> Probe {
        let taken_at = Arc::new(AtomicU64::new(0));
        let stamp = taken_at.clone();
        let sent_at = clock::now();
        // Detached: a runtime that shuts down first drops the closure, and the runtime is let go.
        drop(
            runtime
                .handle
                .spawn_blocking(move || stamp.store(clock::now().0, Ordering::Release)),
        );
        Probe {
            sent_at,
            taken_at,
            announced: None,
        }
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
}
