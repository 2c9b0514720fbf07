//! The reporter: names each stall that the watchdog finds, counts it, keeps it, and passes it on.
//!
//! *Runs on:* its own thread, `stall-reporter`.
//! *Must not:* call the user's code or read debug information. `stall-sinks` does the first and
//! `stall-explainer` the second, so that figures and `recent()` go on while these are held up.

mod case;
mod early;
pub(crate) mod event;
pub(crate) mod explainer;
#[cfg(feature = "tower")]
mod lateness;
mod limiter;
pub(crate) mod log;
mod names;
mod pool_case;
#[cfg(feature = "tower")]
mod requests;
pub(crate) mod sinks;
#[cfg(all(test, not(loom)))]
mod tests;
mod traces;
mod unheard;
mod unlogged;
pub(crate) mod worker_stacks;

#[cfg(feature = "metrics")]
pub(crate) use sinks::guarded;

use crate::clock::{self, Nanos};
use crate::engine::{Message, PoolNews, Shared, StallId, StallNews};
use crate::report::{Phase, StallReport};
use case::Case;
use pool_case::PoolCase;
use sinks::Delivery;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

/// The most stalls and suspected polls that are remembered. Most suspicions come to nothing.
const CASES: usize = 1024;

/// The time between two looks for stalls of runtimes that nobody watches any more. No more news of
/// them comes, and they keep all that is known of their runtime.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// The thread's main function. Ends when the watchdog, the pulse thread and the explainer have
/// ended.
pub(crate) fn run(shared: &Shared, news: &Receiver<Message>, sinks: SyncSender<Delivery>) {
    let mut reporter = Reporter::new(shared, sinks);
    let mut forgot_at = clock::now();
    loop {
        match news.recv_timeout(FORGET_EVERY) {
            Ok(message) => reporter.take(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = clock::now();
        if now.since(forgot_at) >= FORGET_EVERY {
            reporter.forget_unwatched();
            reporter.forget_old(now);
            forgot_at = now;
        }
    }
    shared.end_of_reports();
}

struct Reporter<'a> {
    sinks: SyncSender<Delivery>,
    shared: &'a Shared,
    cases: HashMap<StallId, Case>,
    /// The waits for blocking pools that go on: one of each runtime at most.
    pool_cases: HashMap<u64, PoolCase>,
    /// By tokio's number for the runtime: its requests, and the stalls that held them up.
    #[cfg(feature = "tower")]
    requests: HashMap<u64, requests::OfRuntime>,
}

impl<'a> Reporter<'a> {
    fn new(shared: &'a Shared, sinks: SyncSender<Delivery>) -> Reporter<'a> {
        Reporter {
            sinks,
            shared,
            cases: HashMap::new(),
            pool_cases: HashMap::new(),
            #[cfg(feature = "tower")]
            requests: HashMap::new(),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Stall(news) => self.stall(*news),
            Message::Stack(news) => {
                let id = news.id;
                self.case(id).add(*news);
                self.has_changed(id);
            }
            Message::NoStack(id, why) => {
                self.case(id).has_no_stack(why);
                self.has_changed(id);
            }
            Message::PoolWait(news) => self.pool_wait(news),
            Message::TurnsLost(news) => self.pass_on(Delivery::TurnsLost(news)),
            Message::OtherRuntimes(runtime) => self.pass_on(Delivery::OtherRuntimes(runtime)),
            #[cfg(feature = "tower")]
            Message::Requests(news) => self.requests(news),
        }
    }

    fn stall(&mut self, news: StallNews) {
        let id = news.live.id;
        let is_announced = news.phase.is_some();
        self.case(id).take(news);
        if is_announced {
            self.report_stall(id);
        }
    }

    /// Renews the kept report of an announced stall after news of its stack. If the stall is over,
    /// its last report may be due.
    fn has_changed(&mut self, id: StallId) {
        let Some(case) = self.cases.get(&id) else {
            return;
        };
        if case.is_over() {
            self.report_stall(id);
        } else if let (Some(news), Some(report)) = (case.latest(), self.report(case)) {
            news.live.runtime.watch.recent.lock().keep(report);
        }
    }

    /// Counts a stall, keeps its report and passes it on, unless the report waits for a stack.
    fn report_stall(&mut self, id: StallId) {
        let Some(case) = self.cases.get(&id).filter(|case| case.is_ready()) else {
            return;
        };
        let (Some(report), Some(news)) = (self.report(case), case.latest()) else {
            return;
        };
        let (span, last_words) = (case.innermost_span(), news.live.last_words.clone());
        let runtime = news.live.runtime.clone();
        let (watch, stalls) = (runtime.watch.clone(), &runtime.stats.stalls);
        if self.case(id).count_as(report.certainty) {
            stalls.detected(report.cause, report.certainty);
        }
        if report.phase == Phase::Ended {
            self.cases.remove(&id);
            watch.profile.lock().add(&report);
            stalls.ended(&report, watch.settings.site_labels);
        }
        watch.recent.lock().keep(report.clone());
        #[cfg(feature = "serve")]
        watch
            .recordings
            .offer(&report, watch.settings.record_stalls.as_ref());
        self.pass_on(Delivery::Stall {
            report: Box::new(report),
            runtime,
            span,
            last_words,
        });
    }

    /// The report of all that is known of a case.
    fn report(&self, case: &Case) -> Option<StallReport> {
        #[allow(unused_mut)] // Without requests there is nothing to add.
        let mut report = case.report()?;
        #[cfg(feature = "tower")]
        self.add_victims(case, &mut report);
        Some(report)
    }

    fn pass_on(&self, delivery: Delivery) {
        if self.sinks.try_send(delivery).is_err() {
            self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The case of a stall, which is made if there is none. The oldest one makes room.
    fn case(&mut self, id: StallId) -> &mut Case {
        if self.cases.len() >= CASES && !self.cases.contains_key(&id) {
            // A stall that goes on stays: it would be counted again.
            let age = |case: &Case| (case.latest().is_some() && !case.is_over(), case.at);
            let oldest = self.cases.iter().min_by_key(|(_, case)| age(case));
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.forget(oldest);
            }
        }
        let case = self.cases.entry(id).or_default();
        case.at = clock::now();
        case
    }

    /// Forgets a case. A last report that waits for a stack is passed on without it.
    fn forget(&mut self, id: StallId) {
        if let Some(case) = self.cases.get_mut(&id).filter(|case| case.is_over()) {
            case.stop_waiting();
            self.report_stall(id);
        }
        self.cases.remove(&id);
    }

    /// Forgets the stalls, and the waits for pools, of runtimes that nobody watches any more.
    fn forget_unwatched(&mut self) {
        self.forget_all(|case| {
            let runtime = case.latest().map(|news| &news.live.runtime);
            runtime.is_some_and(|runtime| runtime.pulse.is_stopped())
        });
        self.pool_cases
            .retain(|_, case| !case.latest.runtime.pulse.is_stopped());
    }

    /// Passes on last reports that have waited for a stack for a minute: the explainer may hang on
    /// a file. Forgets suspicions that have come to nothing.
    fn forget_old(&mut self, now: Nanos) {
        self.forget_all(|case| {
            let is_waiting = case.is_over() || case.latest().is_none();
            is_waiting && now.since(case.at) >= FORGET_EVERY
        });
    }

    fn forget_all(&mut self, is_done: impl Fn(&Case) -> bool) {
        let done = self.cases.iter().filter(|(_, case)| is_done(case));
        let done: Vec<_> = done.map(|(id, _)| *id).collect();
        done.into_iter().for_each(|id| self.forget(id));
    }

    fn pool_wait(&mut self, news: PoolNews) {
        let (id, phase, runtime) = (news.id, news.phase, news.runtime.clone());
        // A runtime that ends leaves its wait without an end.
        let goes_on = |_: &u64, case: &mut PoolCase| !case.latest.runtime.is_gone();
        self.pool_cases.retain(goes_on);
        let known = self.pool_cases.remove(&id);
        let case = PoolCase::followed_by(known, news);
        let report = case.report();
        if phase != Phase::Ended {
            self.pool_cases.insert(id, case);
        }
        runtime.watch.recent.lock().keep_pool_wait(report.clone());
        self.pass_on(Delivery::PoolWait { report, runtime });
    }
}
