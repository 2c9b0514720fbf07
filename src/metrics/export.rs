//! Exports new figures to recorders: to the installed one, and to those given to a builder.
//!
//! *Runs on:* the thread `stall-metrics`; for `/metrics`, the thread `stall-serve`.
//! *Must not:* be waited for by the detector. It calls the recorder, which is the user's code and
//! may block.

use super::runtime::{Ages, ExportedRuntime};
use super::writer::MetricWriter;
use super::{list, polls};
use crate::clock::{self, Nanos, wall_clock};
use crate::engine::{Shared, Target, WatchedRuntime};
use crate::os;
use crate::reporter::guarded;
use crate::tally::Seen;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The time between two exports of everything.
const ALL: Duration = Duration::from_secs(1);
/// The time between two exports of a stall's age, while a stall goes on; and of everything, while
/// there are more new values than one export takes.
const AGES: Duration = Duration::from_millis(100);
/// How long the thread waits at the end for the last stalls to be counted.
const LAST_COUNTS: Duration = Duration::from_secs(1);

/// The thread's main function.
pub(crate) fn run(shared: &Shared) {
    shared.metrics_run_on(std::thread::current());
    let mut exporters: Vec<Exporter> = Vec::new();
    let mut stopping_since = None;
    loop {
        let now = clock::now();
        // Read before the export, so that the last export has all counts.
        let last = is_last(shared, &mut stopping_since, now);
        if shared.stopping() && !last {
            // Runtimes that have left are exported once more, by the last export.
            std::thread::park_timeout(Duration::from_millis(1));
            continue;
        }
        add_exporters(&mut exporters, shared);
        export_each(&mut exporters, shared, now, last);
        if last {
            return;
        }
        let quiet = shared.live.lock().is_empty() && !exporters.iter().any(Exporter::is_behind);
        std::thread::park_timeout(if quiet { ALL } else { AGES });
    }
}

/// Whether the threads end and all stalls are counted, or have had the time to be.
fn is_last(shared: &Shared, stopping_since: &mut Option<Nanos>, now: Nanos) -> bool {
    shared.stopping() && {
        let since = *stopping_since.get_or_insert(now);
        shared.reports_ended() || now.since(since) > LAST_COUNTS
    }
}

/// Adds an exporter for each recorder that has none yet.
fn add_exporters(exporters: &mut Vec<Exporter>, shared: &Shared) {
    for runtime in shared.watched.lock().iter() {
        let target = &runtime.watch.settings.metrics;
        if !exporters.iter().any(|exporter| exporter.target.is(target)) {
            exporters.push(Exporter::new(target.clone()));
        }
    }
}

/// Exports to each recorder, and drops the exporters that are not used any more.
fn export_each(exporters: &mut Vec<Exporter>, shared: &Shared, now: Nanos, last: bool) {
    for exporter in exporters.iter_mut() {
        let target = exporter.target.clone();
        let is_its = |runtime: &WatchedRuntime| runtime.watch.settings.metrics.is(&target);
        let all = last || exporter.is_due(now);
        // The recorder may start threads, which inherit the mask.
        os::with_signals_of_the_program(|| {
            guarded(shared, || exporter.export(shared, is_its, all));
        });
    }
    // The exporter of a given recorder goes with the last runtime that uses it. The exporter of the
    // installed one stays: a new one would export the watchdog's figures a second time.
    exporters.retain(|exporter| {
        matches!(exporter.target, Target::Installed) || !exporter.runtimes.is_empty()
    });
}

/// The figures that one recorder already has.
pub(crate) struct Exporter {
    target: Target,
    identity: usize,
    exported_all_at: Option<Nanos>,
    /// The last export has left new values for the next one.
    is_behind: bool,
    runtimes: HashMap<u64, ExportedRuntime>,
    polls: polls::ExportedPolls,
    watchdog_lag: Seen,
    dropped_reports: u64,
    failed_callbacks: u64,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Exporter {
    pub(crate) fn new(target: Target) -> Exporter {
        Exporter {
            identity: target.identity(),
            target,
            exported_all_at: None,
            is_behind: false,
            runtimes: HashMap::new(),
            polls: polls::ExportedPolls::up_to_now(),
            watchdog_lag: Seen::default(),
            dropped_reports: 0,
            failed_callbacks: 0,
        }
    }

    fn is_due(&self, now: Nanos) -> bool {
        // A park may end a little early.
        let is_late = |at| now.since(at) >= ALL - AGES / 2;
        self.is_behind || self.exported_all_at.is_none_or(is_late)
    }

    /// Whether some series had more new values than one export takes: another export is due.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Exports the ages of stalls on these runtimes, with `all` every other new figure, and zeroes
    /// the gauges of runtimes that have left.
    pub(crate) fn export(
        &mut self,
        shared: &Shared,
        is_its: impl Fn(&WatchedRuntime) -> bool,
        all: bool,
    ) {
        let mut watched = shared.watched.lock().clone();
        watched.retain(|runtime| is_its(runtime));
        if watched.is_empty() && self.runtimes.is_empty() {
            return;
        }
        let target = self.target.clone();
        if target.identity() != self.identity {
            self.begin_anew();
        }
        target.with(|recorder| self.write(&MetricWriter::new(recorder), shared, &watched, all));
    }

    /// Another recorder has been installed: it gets all figures from their beginning. Only polls go
    /// on from here, since they began before the watch.
    fn begin_anew(&mut self) {
        let polls = std::mem::take(&mut self.polls);
        *self = Exporter {
            polls,
            ..Exporter::new(self.target.clone())
        };
    }

    fn write(
        &mut self,
        writer: &MetricWriter<'_>,
        shared: &Shared,
        watched: &[Arc<WatchedRuntime>],
        all: bool,
    ) {
        if self.exported_all_at.is_none() {
            writer.describe();
        }
        let is_new = self.add_runtimes(watched);
        let now = clock::now();
        // First, since a new runtime may have the name of one that has left.
        let has_left = self.zero_gauges_of_left(writer, watched);
        let ages = ages(shared, now);
        for (id, exported) in self.runtimes.iter().filter(|(_, of)| !of.has_left) {
            exported.export_ages(writer, ages.get(id).unwrap_or(&Ages::new()), now);
        }
        if all || is_new || has_left {
            self.write_all(writer, shared, now);
            self.is_behind = writer.is_behind();
        }
        self.runtimes
            .retain(|id, _| watched.iter().any(|runtime| runtime.id == *id));
        if watched.is_empty() {
            zero_detector(writer);
        }
    }

    /// Adds the runtimes that are new, and returns whether any is.
    fn add_runtimes(&mut self, watched: &[Arc<WatchedRuntime>]) -> bool {
        let before = self.runtimes.len();
        for runtime in watched {
            let exported = self.runtimes.entry(runtime.id);
            exported.or_insert_with(|| ExportedRuntime::new(runtime.clone()));
        }
        self.runtimes.len() > before
    }

    /// Zeroes the gauges of runtimes that are not watched any more, or have been shut down, once.
    /// Returns whether there are any.
    fn zero_gauges_of_left(
        &mut self,
        writer: &MetricWriter<'_>,
        watched: &[Arc<WatchedRuntime>],
    ) -> bool {
        let goes_on = |id: u64| {
            let mut watched = watched.iter();
            watched.any(|runtime| runtime.id == id && !runtime.is_gone())
        };
        let mut any = false;
        for (id, exported) in &mut self.runtimes {
            if !exported.has_left && !goes_on(*id) {
                exported.zero_gauges(writer);
                exported.has_left = true;
                any = true;
            }
        }
        any
    }

    fn write_all(&mut self, writer: &MetricWriter<'_>, shared: &Shared, now: Nanos) {
        self.exported_all_at = Some(now);
        let (mut other_labels, mut polls_left_out) = (0, 0);
        for (id, exported) in &mut self.runtimes {
            other_labels += exported.export(writer);
            polls_left_out += self.polls.export(writer, *id, &exported.runtime.name);
        }
        self.write_detector(writer, shared);
        writer.add(&list::DROPPED, &["labels"], other_labels);
        writer.add(&list::DROPPED, &["polls"], polls_left_out);
    }

    /// The figures of the detector itself.
    fn write_detector(&mut self, writer: &MetricWriter<'_>, shared: &Shared) {
        writer.set(&list::BUILD_INFO, &[VERSION], 1.0);
        let last_tick = shared.last_tick().map_or(0.0, |at| {
            let since = wall_clock(at).duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        });
        writer.set(&list::LAST_TICK, &[], last_tick);
        let lateness = &shared.watchdog_lateness.tally;
        writer.tally(&list::WATCHDOG_LAG, &[], lateness, &mut self.watchdog_lag);
        let dropped = shared.dropped_reports.load(Ordering::Relaxed);
        let exported = &mut self.dropped_reports;
        writer.grow(&list::DROPPED, &["reports"], dropped, exported);
        let failed = shared.failed_callbacks.load(Ordering::Relaxed);
        let exported = &mut self.failed_callbacks;
        writer.grow(&list::DROPPED, &["callbacks"], failed, exported);
    }
}

/// Zeroes the gauges of the detector itself.
fn zero_detector(writer: &MetricWriter<'_>) {
    writer.set(&list::BUILD_INFO, &[VERSION], 0.0);
    writer.set(&list::LAST_TICK, &[], 0.0);
}

/// The proven ages of the stalls going on, by runtime and worker.
fn ages(shared: &Shared, now: Nanos) -> HashMap<u64, Ages> {
    let known = shared.known_until(now);
    let mut ages: HashMap<u64, Ages> = HashMap::new();
    for live in shared.live.lock().iter() {
        if let Some(age) = live.proven_age(known) {
            let of_runtime = ages.entry(live.runtime.id).or_default();
            let oldest = of_runtime.entry(live.worker).or_default();
            *oldest = age.max(*oldest);
        }
    }
    ages
}
