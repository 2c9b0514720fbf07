//! The reporter: names what the watchdog found, counts it, keeps it, and passes it on.
//!
//! *Runs on:* its own thread, `stall-reporter`.
//! *Must not:* call the user's code or read debug information. The first is done by `sinks`, the second by
//! `explainer`, each on a thread of its own; figures and `recent()` go on while these are held up.

mod case;
pub(crate) mod explainer;
mod limiter;
pub(crate) mod log;
mod names;
pub(crate) mod sinks;
pub(crate) mod worker_stacks;

#[cfg(feature = "metrics")]
pub(crate) use sinks::guarded;

use crate::clock::{self, wall_clock};
use crate::engine::{Message, PoolNews, Shared, StallId};
use crate::report::{Phase, PoolWaitReport};
use case::Case;
use sinks::Delivery;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

/// Stalls, and polls that were only suspected, of which something is remembered. Most never become one.
const CASES: usize = 1024;

/// The thread's main function; ends when the watchdog, the pulse thread and the explainer have.
pub(crate) fn run(shared: &Shared, news: &Receiver<Message>, sinks: SyncSender<Delivery>) {
    let mut reporter = Reporter {
        sinks,
        shared,
        cases: HashMap::new(),
    };
    for message in news {
        reporter.take(message);
    }
    shared.end_of_reports();
}

struct Reporter<'a> {
    sinks: SyncSender<Delivery>,
    shared: &'a Shared,
    cases: HashMap<StallId, Case>,
}

impl Reporter<'_> {
    fn take(&mut self, message: Message) {
        match message {
            Message::Stall(news) => {
                let id = news.live.id;
                let is_announced = news.phase.is_some();
                self.case(id).take(*news);
                if is_announced {
                    self.tell_stall(id);
                }
            }
            Message::Stack(news) => {
                let id = news.id;
                self.case(id).add(*news);
                self.has_changed(id);
            }
            Message::NoStack(id, why) => {
                self.case(id).has_none(why);
                self.has_changed(id);
            }
            Message::PoolWait(news) => self.pool_wait(&news),
            Message::TurnsLost(news) => self.pass_on(Delivery::TurnsLost(news)),
        }
    }

    /// A stall that has been announced already has what its stack shows added to its report.
    fn has_changed(&mut self, id: StallId) {
        let Some(case) = self.cases.get(&id) else {
            return;
        };
        if case.is_over() {
            self.tell_stall(id);
        } else if let (Some(news), Some(report)) = (case.latest(), case.report()) {
            news.live.runtime.watch.recent.lock().keep(report);
        }
    }

    /// Counts a stall, keeps its report and passes it on, if all is there that it waits for.
    fn tell_stall(&mut self, id: StallId) {
        let Some(case) = self.cases.get_mut(&id).filter(|case| case.is_ready()) else {
            return;
        };
        let (Some(report), Some(news)) = (case.report(), case.latest()) else {
            return;
        };
        let runtime = news.live.runtime.clone();
        let last_words = news.live.last_words.clone();
        let watch = runtime.watch.clone();
        let stalls = &runtime.stats.stalls;
        if case.count_as(report.certainty) {
            stalls.detected(report.cause, report.certainty);
        }
        if report.phase == Phase::Ended {
            self.cases.remove(&id);
            watch.profile.lock().add(&report);
            stalls.ended(&report, watch.settings.site_labels);
        }
        watch.recent.lock().keep(report.clone());
        self.pass_on(Delivery::Stall {
            report: Box::new(report),
            watch,
            last_words,
        });
    }

    fn pass_on(&self, told: Delivery) {
        if self.sinks.try_send(told).is_err() {
            self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn case(&mut self, id: StallId) -> &mut Case {
        if self.cases.len() >= CASES && !self.cases.contains_key(&id) {
            let oldest = self.cases.iter().min_by_key(|(_, case)| case.at);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.forget(oldest);
            }
        }
        let case = self.cases.entry(id).or_default();
        case.at = clock::now();
        case
    }

    /// Makes room. A last report that waits for a stack is told without it.
    fn forget(&mut self, id: StallId) {
        if let Some(case) = self.cases.get_mut(&id).filter(|case| case.is_over()) {
            case.waits_no_longer();
            self.tell_stall(id);
        }
        self.cases.remove(&id);
    }

    fn pool_wait(&self, news: &PoolNews) {
        let report = PoolWaitReport {
            id: news.id,
            phase: news.phase,
            runtime: news.runtime.name.clone(),
            started_at: wall_clock(news.since),
            waited: news.waited,
        };
        let watch = news.runtime.watch.clone();
        watch.recent.lock().keep_pool_wait(report.clone());
        self.pass_on(Delivery::PoolWait { report, watch });
    }
}
