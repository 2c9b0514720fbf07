//! What a recorder has been told of one runtime, and what there is to add.
//!
//! *Runs on:* the thread `stall-metrics`, and the server's.
//! *Here:* differences of numbers that only grow, and gauges read anew.

use super::list;
use super::out::Out;
use crate::clock::Nanos;
use crate::detect::WorkerState;
use crate::engine::{CAUSES, Coverage, SpanSite, Stalls, WatchedRuntime};
use crate::report::Certainty;
use crate::tally::{OTHER, Seen};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_metrics::{RuntimeIntervals, RuntimeMonitor};

/// Workers that are told apart.
const WORKERS: usize = 128;

/// The parts of the coverage, as labels.
const SEES: [&str; 6] = ["workers", "polls", "spans", "causes", "stacks", "turns"];

/// No share is taken of a time as short as the one before the first look.
const SHORT: Duration = Duration::from_millis(10);

/// What a recorder has been told of one runtime.
pub(super) struct Told {
    pub(super) runtime: Arc<WatchedRuntime>,
    stalls: [[u64; 2]; CAUSES.len()],
    durations: [Seen; CAUSES.len()],
    sites: HashMap<SpanSite, u64>,
    other_sites: u64,
    worker_time: Vec<[Duration; WorkerState::ALL.len()]>,
    worker_turns: Vec<u64>,
    driver_frozen: Duration,
    scheduler_lag: Seen,
    queue_wait: Seen,
    intervals: RuntimeIntervals,
    unpublished: Duration,
}

/// The ages of certain stalls going on, by worker.
pub(super) type Ages = HashMap<usize, Duration>;

impl Told {
    pub(super) fn nothing_yet(runtime: Arc<WatchedRuntime>) -> Told {
        let workers = runtime.stats.worker_time.len();
        Told {
            stalls: Default::default(),
            durations: Default::default(),
            sites: HashMap::new(),
            other_sites: 0,
            worker_time: vec![Default::default(); workers],
            worker_turns: vec![0; workers],
            driver_frozen: Duration::ZERO,
            scheduler_lag: Seen::default(),
            queue_wait: Seen::default(),
            intervals: RuntimeMonitor::new(&runtime.handle).intervals(),
            unpublished: Duration::ZERO,
            runtime,
        }
    }

    /// Tells what is going on at this moment.
    pub(super) fn tell_ages(&self, out: &Out<'_>, ages: &Ages, now: Nanos) {
        let Told { runtime, .. } = self;
        let name = runtime.name.as_str();
        for worker in 0..self.worker_time.len().min(WORKERS) {
            let age = ages.get(&worker).copied().unwrap_or_default();
            let worker = worker.to_string();
            out.set(&list::WORKER_STALLED, &[name, &worker], age.as_secs_f64());
        }
        let oldest = ages.values().max().copied().unwrap_or_default();
        let longest = oldest.max(runtime.stats.stalls.longest_ended(now));
        out.set(&list::LONGEST_RECENT, &[name], longest.as_secs_f64());
        let since = |at: Option<Nanos>| at.map_or(0.0, |at| now.since(at).as_secs_f64());
        let lag = since(runtime.pulse.sent_at());
        out.set(&list::SCHEDULER_LAG_ONGOING, &[name], lag);
        let wait = since(runtime.stats.probe_sent_at());
        out.set(&list::QUEUE_WAIT_ONGOING, &[name], wait);
    }

    /// Tells everything else. Returns how many stalls more were counted under "other".
    pub(super) fn tell(&mut self, out: &Out<'_>) -> u64 {
        let runtime = self.runtime.clone();
        let (name, stats) = (runtime.name.as_str(), &runtime.stats);
        let coverage = Coverage::of(&runtime);
        let all_known = coverage.known_threads == coverage.workers;
        let seen = [
            all_known,
            coverage.all_polls,
            coverage.spans,
            coverage.thread_evidence,
            coverage.stacks,
            coverage.turns,
        ];
        for (sees, seen) in SEES.into_iter().zip(seen) {
            out.set(&list::COVERAGE, &[name, sees], f64::from(u8::from(seen)));
        }
        out.set(&list::WORKERS, &[name], coverage.workers as f64);
        self.tell_stalls(out, name, &stats.stalls);
        let other = self.tell_sites(out, name, &stats.stalls);
        for (worker, told) in stats.worker_time.iter().zip(&mut self.worker_time) {
            for (state, told) in WorkerState::ALL.into_iter().zip(told) {
                let time = worker.get(state);
                let more = time - std::mem::replace(told, time);
                let count = u32::from(!more.is_zero());
                out.record(
                    &list::WORKER_TIME,
                    &[name, state.as_str()],
                    more.as_secs_f64(),
                    count,
                );
            }
        }
        self.tell_turns(out, name);
        let frozen = stats.driver_frozen();
        let more = frozen - std::mem::replace(&mut self.driver_frozen, frozen);
        let count = u32::from(!more.is_zero());
        out.record(&list::DRIVER_FROZEN, &[name], more.as_secs_f64(), count);
        let lag = &stats.scheduler_lag.tally;
        out.tally(&list::SCHEDULER_LAG, &[name], lag, &mut self.scheduler_lag);
        let wait = &stats.blocking_queue_wait.tally;
        out.tally(&list::QUEUE_WAIT, &[name], wait, &mut self.queue_wait);
        self.tell_figures(out, name);
        other
    }

    fn tell_stalls(&mut self, out: &Out<'_>, name: &str, stalls: &Stalls) {
        for (place, (_, cause, kind)) in CAUSES.iter().enumerate() {
            let certainties = [
                (Certainty::Certain, "certain"),
                (Certainty::Likely, "likely"),
            ];
            for ((certainty, label), told) in certainties.into_iter().zip(&mut self.stalls[place]) {
                let count = stalls.count(place, certainty);
                out.grow(&list::STALLS, &[name, cause, kind, label], count, told);
            }
            let told = &mut self.durations[place];
            out.tally(
                &list::STALL_DURATION,
                &[name, cause],
                stalls.durations(place),
                told,
            );
        }
    }

    fn tell_turns(&mut self, out: &Out<'_>, name: &str) {
        let turns = self.runtime.stats.worker_turns.iter();
        for (worker, (turns, told)) in turns.zip(&mut self.worker_turns).enumerate() {
            let turns = turns.load(Ordering::Relaxed);
            let label = match worker {
                0..WORKERS => worker.to_string(),
                _ => OTHER.to_owned(),
            };
            out.grow(&list::WORKER_TURNS, &[name, &label], turns, told);
        }
    }

    fn tell_sites(&mut self, out: &Out<'_>, name: &str, stalls: &Stalls) -> u64 {
        for (labels, count) in stalls.by_site() {
            let SpanSite { span, site } = &labels;
            let values = [name, span, site];
            match self.sites.get_mut(&labels) {
                Some(told) => out.grow(&list::STALLS_BY_SITE, &values, count, told),
                None => {
                    out.add(&list::STALLS_BY_SITE, &values, count);
                    self.sites.insert(labels, count);
                }
            }
        }
        let before = self.other_sites;
        let other = stalls.other_sites();
        out.grow(
            &list::STALLS_BY_SITE,
            &[name, OTHER, OTHER],
            other,
            &mut self.other_sites,
        );
        other - before
    }

    /// Tokio's own figures, as far as they survive being exported.
    fn tell_figures(&mut self, out: &Out<'_>, name: &str) {
        let Some(interval) = self.intervals.next() else {
            return;
        };
        // Tokio counts busy time when it is over: during a stall the very worker that is held looks idle, and
        // afterwards busier than time allows.
        let unpublished = self
            .runtime
            .stats
            .worker_time
            .iter()
            .map(|time| time.unpublished())
            .sum();
        let before = std::mem::replace(&mut self.unpublished, unpublished);
        let busy = (interval.total_busy_duration + unpublished).saturating_sub(before);
        let all = interval.elapsed * u32::try_from(interval.workers_count).unwrap_or(u32::MAX);
        let ratio = if interval.elapsed < SHORT {
            0.0
        } else {
            busy.as_secs_f64() / all.as_secs_f64()
        };
        out.set(&list::BUSY_RATIO, &[name], ratio.min(1.0));
        out.set(
            &list::ALIVE_TASKS,
            &[name],
            interval.live_tasks_count as f64,
        );
        out.set(
            &list::GLOBAL_QUEUE,
            &[name],
            interval.global_queue_depth as f64,
        );
        out.add(&list::PARKS, &[name], interval.total_park_count);
    }

    /// Sets all gauges to zero: a gauge keeps its last value for ever.
    pub(super) fn silence(&self, out: &Out<'_>) {
        let name = self.runtime.name.as_str();
        self.tell_ages(out, &Ages::new(), Nanos::default());
        for sees in SEES {
            out.set(&list::COVERAGE, &[name, sees], 0.0);
        }
        let gauges = [
            &list::WORKERS,
            &list::LONGEST_RECENT,
            &list::SCHEDULER_LAG_ONGOING,
            &list::QUEUE_WAIT_ONGOING,
            &list::BUSY_RATIO,
            &list::ALIVE_TASKS,
            &list::GLOBAL_QUEUE,
        ];
        for gauge in gauges {
            out.set(gauge, &[name], 0.0);
        }
    }
}
