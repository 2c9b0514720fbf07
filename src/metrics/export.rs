//! Tells recorders what is new: the installed one, and those that were given to a builder.
//!
//! *Runs on:* the thread `stall-metrics`; an exporter of its own, on the server's thread.
//! *Here:* calls the recorder, which is the user's, and may wait for it. The detector waits for nobody here.

use super::out::Out;
use super::runtime::{Ages, Told};
use super::{list, polls};
use crate::clock::{self, Nanos, wall_clock};
use crate::engine::{Shared, Target, WatchedRuntime};
use crate::report::Certainty;
use crate::reporter::guarded;
use crate::tally::Seen;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// Between two times of telling everything …
const ALL: Duration = Duration::from_secs(1);
/// … and, while a stall goes on, between two times of telling its age.
const AGES: Duration = Duration::from_millis(100);
/// How long the thread waits at the end for the last stalls to be counted.
const PATIENCE: Duration = Duration::from_secs(1);

/// The thread's main function.
pub(crate) fn run(shared: &Shared) {
    shared.metrics_run_on(std::thread::current());
    let mut exporters: Vec<Exporter> = Vec::new();
    let mut stopping_since = None;
    loop {
        let now = clock::now();
        // Asked first, so that what is told then is all there is.
        let last = shared.stopping() && {
            let since = *stopping_since.get_or_insert(now);
            shared.reports_ended() || now.since(since) > PATIENCE
        };
        if shared.stopping() && !last {
            // Who has left is told of once, with everything.
            std::thread::park_timeout(Duration::from_millis(1));
            continue;
        }
        for runtime in shared.watched.lock().iter() {
            let target = &runtime.watch.settings.metrics;
            if !exporters.iter().any(|exporter| exporter.target.is(target)) {
                exporters.push(Exporter::new(target.clone()));
            }
        }
        for exporter in &mut exporters {
            let target = exporter.target.clone();
            let is_its = |runtime: &WatchedRuntime| runtime.watch.settings.metrics.is(&target);
            let all = last || exporter.is_due(now);
            guarded(shared, || exporter.export(shared, is_its, all));
        }
        // A recorder that was given is let go of with the last runtime that uses it. What the installed one was
        // told is remembered for the next runtime, or it would hear of the watchdog twice.
        exporters.retain(|exporter| {
            matches!(exporter.target, Target::Installed) || !exporter.runtimes.is_empty()
        });
        if last {
            return;
        }
        let quiet = shared.live.lock().is_empty();
        std::thread::park_timeout(if quiet { ALL } else { AGES });
    }
}

/// Remembers what one recorder has been told.
pub(crate) struct Exporter {
    target: Target,
    identity: usize,
    told_all_at: Option<Nanos>,
    runtimes: HashMap<u64, Told>,
    polls: polls::Told,
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
            told_all_at: None,
            runtimes: HashMap::new(),
            polls: polls::Told::everything(),
            watchdog_lag: Seen::default(),
            dropped_reports: 0,
            failed_callbacks: 0,
        }
    }

    fn is_due(&self, now: Nanos) -> bool {
        // A park may end a little early.
        self.told_all_at
            .is_none_or(|at| now.since(at) >= ALL - AGES / 2)
    }

    /// Tells the recorder what goes on with these runtimes, and `all` else that is new; and bids farewell to those
    /// that have left.
    pub(crate) fn export(
        &mut self,
        shared: &Shared,
        is_its: impl Fn(&WatchedRuntime) -> bool,
        all: bool,
    ) {
        let watched: Vec<Arc<WatchedRuntime>> = {
            let watched = shared.watched.lock();
            watched
                .iter()
                .filter(|runtime| is_its(runtime))
                .cloned()
                .collect()
        };
        if watched.is_empty() && self.runtimes.is_empty() {
            return;
        }
        let target = self.target.clone();
        let identity = target.identity();
        if identity != self.identity {
            // Another recorder has been installed. It hears everything from the beginning; except for polls, whose
            // beginning was before the watch.
            let polls = std::mem::take(&mut self.polls);
            *self = Exporter {
                polls,
                ..Exporter::new(self.target.clone())
            };
        }
        target.with(|recorder| {
            let out = Out(recorder);
            if self.told_all_at.is_none() {
                out.describe();
            }
            let is_new = watched
                .iter()
                .any(|runtime| !self.runtimes.contains_key(&runtime.id));
            for runtime in &watched {
                let told = self.runtimes.entry(runtime.id);
                told.or_insert_with(|| Told::nothing_yet(runtime.clone()));
            }
            let now = clock::now();
            let left: Vec<u64> = self
                .runtimes
                .keys()
                .filter(|id| {
                    !watched
                        .iter()
                        .any(|runtime| runtime.id == **id && !runtime.is_gone())
                })
                .copied()
                .collect();
            let all = all || is_new || !left.is_empty();
            let ages = ages(shared, now);
            for (id, told) in &mut self.runtimes {
                told.tell_ages(&out, ages.get(id).unwrap_or(&Ages::new()), now);
            }
            if all {
                self.tell_all(&out, shared, now);
            }
            for id in left {
                if let Some(told) = self.runtimes.get(&id) {
                    told.silence(&out);
                }
                if !watched.iter().any(|runtime| runtime.id == id) {
                    self.runtimes.remove(&id);
                }
            }
            if watched.is_empty() {
                out.set(&list::BUILD_INFO, &[VERSION], 0.0);
                out.set(&list::LAST_TICK, &[], 0.0);
            }
        });
    }

    fn tell_all(&mut self, out: &Out<'_>, shared: &Shared, now: Nanos) {
        self.told_all_at = Some(now);
        let (mut other_labels, mut polls_left_out) = (0, 0);
        for (id, told) in &mut self.runtimes {
            other_labels += told.tell(out);
            polls_left_out += self.polls.tell(out, *id, &told.runtime.name);
        }
        out.set(&list::BUILD_INFO, &[VERSION], 1.0);
        let last_tick = shared.last_tick().map_or(0.0, |at| {
            let since = wall_clock(at).duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        });
        out.set(&list::LAST_TICK, &[], last_tick);
        let lateness = &shared.watchdog_lateness.tally;
        out.tally(&list::WATCHDOG_LAG, &[], lateness, &mut self.watchdog_lag);
        let dropped = shared.dropped_reports.load(Ordering::Relaxed);
        out.grow(
            &list::DROPPED,
            &["reports"],
            dropped,
            &mut self.dropped_reports,
        );
        let failed = shared.failed_callbacks.load(Ordering::Relaxed);
        out.grow(
            &list::DROPPED,
            &["callbacks"],
            failed,
            &mut self.failed_callbacks,
        );
        out.add(&list::DROPPED, &["labels"], other_labels);
        out.add(&list::DROPPED, &["polls"], polls_left_out);
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The ages of the certain stalls going on, by runtime and worker.
fn ages(shared: &Shared, now: Nanos) -> HashMap<u64, Ages> {
    let mut ages: HashMap<u64, Ages> = HashMap::new();
    for live in shared.live.lock().iter() {
        if live.stall.certainty == Certainty::Certain {
            let age = now.since(live.stall.since);
            let of_runtime = ages.entry(live.runtime.id).or_default();
            let oldest = of_runtime.entry(live.worker).or_default();
            *oldest = age.max(*oldest);
        }
    }
    ages
}
