//! The figures of one runtime that a recorder already has, and the export of new ones.
//!
//! *Runs on:* the threads `stall-metrics` and `stall-serve`.
//!
//! Counts are exported as differences to the last export. Gauges are read anew.

use super::list::{self, Metric};
#[cfg(feature = "tower")]
use super::requests::ExportedRequests;
use super::writer::MetricWriter;
use crate::clock::Nanos;
use crate::detect::WorkerState;
use crate::engine::{AtSite, CAUSES, Coverage, SpanSite, Stalls, WatchedRuntime};
use crate::report::Certainty;
use crate::tally::{OTHER, Seen};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_metrics::{RuntimeIntervals, RuntimeMetrics, RuntimeMonitor};

/// Workers with a label of their own: more than the largest machines have CPUs.
const WORKERS: usize = 1024;

/// The certainties, with their labels.
const CERTAINTIES: [(Certainty, &str); 2] = [
    (Certainty::Certain, "certain"),
    (Certainty::Likely, "likely"),
];

/// A shorter interval gives no ratio, such as the one before the first export.
const SHORT: Duration = Duration::from_millis(10);

/// The figures of one runtime that a recorder already has.
pub(super) struct ExportedRuntime {
    pub(super) runtime: Arc<WatchedRuntime>,
    /// It is watched no more, or has been shut down: its gauges are zero from now on.
    pub(super) has_left: bool,
    stalls: [[u64; 2]; CAUSES.len()],
    durations: [Seen; CAUSES.len()],
    sites: HashMap<SpanSite, AtSite>,
    other_sites: AtSite,
    /// By state, of all workers.
    worker_time: [Duration; WorkerState::ALL.len()],
    worker_turns: Vec<u64>,
    driver_frozen: Duration,
    scheduler_lag: Seen,
    queue_wait: Seen,
    #[cfg(feature = "tower")]
    requests: ExportedRequests,
    intervals: RuntimeIntervals,
    unpublished: Duration,
}

/// The ages of certain stalls going on, by worker.
pub(super) type Ages = HashMap<usize, Duration>;

impl ExportedRuntime {
    pub(super) fn new(runtime: Arc<WatchedRuntime>) -> ExportedRuntime {
        let workers = runtime.stats.worker_time.len();
        ExportedRuntime {
            has_left: false,
            stalls: Default::default(),
            durations: Default::default(),
            sites: HashMap::new(),
            other_sites: AtSite::default(),
            worker_time: Default::default(),
            worker_turns: vec![0; workers],
            driver_frozen: Duration::ZERO,
            scheduler_lag: Seen::default(),
            queue_wait: Seen::default(),
            #[cfg(feature = "tower")]
            requests: ExportedRequests::default(),
            intervals: RuntimeMonitor::new(&runtime.handle).intervals(),
            unpublished: Duration::ZERO,
            runtime,
        }
    }

    /// Exports the gauges of this moment: ages of stalls, and waits that go on.
    pub(super) fn export_ages(&self, writer: &MetricWriter<'_>, ages: &Ages, now: Nanos) {
        let ExportedRuntime { runtime, .. } = self;
        let name = runtime.name.as_str();
        for worker in 0..self.worker_turns.len().min(WORKERS) {
            let age = ages.get(&worker).copied().unwrap_or_default();
            let worker = worker.to_string();
            writer.set(&list::WORKER_STALLED, &[name, &worker], age.as_secs_f64());
        }
        let oldest = ages.values().max().copied().unwrap_or_default();
        let longest = oldest.max(runtime.stats.stalls.longest_ended(now));
        writer.set(&list::LONGEST_RECENT, &[name], longest.as_secs_f64());
        let since = |at: Option<Nanos>| at.map_or(0.0, |at| now.since(at).as_secs_f64());
        let lag = since(runtime.pulse.sent_at());
        writer.set(&list::SCHEDULER_LAG_ONGOING, &[name], lag);
        let wait = since(runtime.stats.probe_sent_at());
        writer.set(&list::QUEUE_WAIT_ONGOING, &[name], wait);
    }

    /// Exports all other figures, of one that has left only counts. Returns how many more stalls
    /// were counted under "other".
    pub(super) fn export(&mut self, writer: &MetricWriter<'_>) -> u64 {
        let runtime = self.runtime.clone();
        let (name, stats) = (runtime.name.as_str(), &runtime.stats);
        if !self.has_left {
            self.export_coverage(writer, name);
            self.export_figures(writer, name);
        }
        self.export_stalls(writer, name, &stats.stalls);
        let other = self.export_sites(writer, name, &stats.stalls);
        self.export_worker_time(writer, name);
        self.export_turns(writer, name);
        let frozen = stats.driver_frozen();
        let more = frozen - std::mem::replace(&mut self.driver_frozen, frozen);
        record_time(writer, &list::DRIVER_FROZEN, &[name], more);
        let lag = &stats.scheduler_lag.tally;
        writer.tally(&list::SCHEDULER_LAG, &[name], lag, &mut self.scheduler_lag);
        let wait = &stats.blocking_queue_wait.tally;
        writer.tally(&list::QUEUE_WAIT, &[name], wait, &mut self.queue_wait);
        #[cfg(feature = "tower")]
        self.export_requests(writer, name);
        other
    }

    #[cfg(feature = "tower")]
    fn export_requests(&mut self, writer: &MetricWriter<'_>, name: &str) {
        let board = &self.runtime.requests;
        let dropped = self.requests.export(writer, name, board);
        writer.add(&list::DROPPED, &["requests"], dropped);
    }

    fn export_coverage(&self, writer: &MetricWriter<'_>, name: &str) {
        let coverage = Coverage::of(&self.runtime);
        for (sees, why_not) in coverage.parts() {
            let seen = f64::from(u8::from(why_not.is_none()));
            writer.set(&list::COVERAGE, &[name, sees], seen);
        }
        writer.set(&list::WORKERS, &[name], coverage.workers as f64);
    }

    /// Exports the time of all workers by state, one value for each state: only the sum counts, and
    /// a recorder keeps each value for a while.
    fn export_worker_time(&mut self, writer: &MetricWriter<'_>, name: &str) {
        for (state, exported) in WorkerState::ALL.into_iter().zip(&mut self.worker_time) {
            let workers = self.runtime.stats.worker_time.iter();
            let time = workers.map(|worker| worker.get(state)).sum();
            let more = time - std::mem::replace(exported, time);
            record_time(writer, &list::WORKER_TIME, &[name, state.as_str()], more);
        }
    }

    fn export_stalls(&mut self, writer: &MetricWriter<'_>, name: &str, stalls: &Stalls) {
        for (place, (_, cause, kind)) in CAUSES.iter().enumerate() {
            for ((certainty, label), exported) in CERTAINTIES.iter().zip(&mut self.stalls[place]) {
                let count = stalls.count(place, *certainty);
                let labels = [name, cause, kind, label];
                writer.grow(&list::STALLS, &labels, count, exported);
            }
            let durations = stalls.durations(place);
            let seen = &mut self.durations[place];
            writer.tally(&list::STALL_DURATION, &[name, cause], durations, seen);
        }
    }

    fn export_turns(&mut self, writer: &MetricWriter<'_>, name: &str) {
        let turns = self.runtime.stats.worker_turns.iter();
        for (worker, (turns, exported)) in turns.zip(&mut self.worker_turns).enumerate() {
            let turns = turns.load(Ordering::Relaxed);
            let label = match worker {
                0..WORKERS => worker.to_string(),
                _ => OTHER.to_owned(),
            };
            writer.grow(&list::WORKER_TURNS, &[name, &label], turns, exported);
        }
    }

    fn export_sites(&mut self, writer: &MetricWriter<'_>, name: &str, stalls: &Stalls) -> u64 {
        for (labels, stalls) in stalls.by_site() {
            let values = [name, &labels.span, &labels.site];
            let exported = self.sites.entry(labels.clone()).or_default();
            export_site(writer, &values, stalls, exported);
        }
        let (before, other) = (self.other_sites.count, stalls.other_sites());
        export_site(writer, &[name, OTHER, OTHER], other, &mut self.other_sites);
        other.count - before
    }

    /// Exports Tokio's own figures, as far as an exporter can carry them.
    fn export_figures(&mut self, writer: &MetricWriter<'_>, name: &str) {
        let Some(interval) = self.intervals.next() else {
            return;
        };
        let ratio = self.busy_ratio(&interval);
        writer.set(&list::BUSY_RATIO, &[name], ratio);
        let tasks = interval.live_tasks_count as f64;
        writer.set(&list::ALIVE_TASKS, &[name], tasks);
        let queue = interval.global_queue_depth as f64;
        writer.set(&list::GLOBAL_QUEUE, &[name], queue);
        writer.add(&list::PARKS, &[name], interval.total_park_count);
    }

    /// The share of time in which workers were busy.
    ///
    /// Tokio counts busy time when it is over: a worker that is held looks idle during the stall,
    /// and busier than time allows afterwards. The unpublished busy time corrects both.
    fn busy_ratio(&mut self, interval: &RuntimeMetrics) -> f64 {
        let workers = self.runtime.stats.worker_time.iter();
        let unpublished = workers.map(|time| time.unpublished()).sum();
        let before = std::mem::replace(&mut self.unpublished, unpublished);
        let busy = (interval.total_busy_duration + unpublished).saturating_sub(before);
        let all = interval.elapsed * u32::try_from(interval.workers_count).unwrap_or(u32::MAX);
        if interval.elapsed < SHORT {
            0.0
        } else {
            (busy.as_secs_f64() / all.as_secs_f64()).min(1.0)
        }
    }

    /// Sets all gauges to zero: a recorder keeps a gauge's last value for ever.
    pub(super) fn zero_gauges(&self, writer: &MetricWriter<'_>) {
        let name = self.runtime.name.as_str();
        self.export_ages(writer, &Ages::new(), Nanos::default());
        for (sees, _) in Coverage::of(&self.runtime).parts() {
            writer.set(&list::COVERAGE, &[name, sees], 0.0);
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
            writer.set(gauge, &[name], 0.0);
        }
    }
}

/// Exports the growth of one site.
fn export_site(writer: &MetricWriter<'_>, labels: &[&str], now: AtSite, exported: &mut AtSite) {
    writer.grow(
        &list::STALLS_BY_SITE,
        labels,
        now.count,
        &mut exported.count,
    );
    let before = std::mem::replace(&mut exported.lost_by_requests, now.lost_by_requests);
    let more = now.lost_by_requests - before;
    record_time(writer, &list::REQUEST_LOST_BY_SITE, labels, more);
}

/// Records more of a time of which only the sum counts.
fn record_time(writer: &MetricWriter<'_>, metric: &Metric, labels: &[&str], more: Duration) {
    let count = u32::from(!more.is_zero());
    writer.record(metric, labels, more.as_secs_f64(), count);
}
