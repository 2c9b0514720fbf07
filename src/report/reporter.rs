//! The reporter: names and explains what the watchdog found, counts it, keeps it, and passes it on.
//!
//! *Runs on:* its own thread, `stall-reporter`; what takes longer to explain on `stall-explainer`, a thread
//! made for it.
//! *Here:* may allocate and read files, but calls none of the user's code: what that holds up is held up
//! in `sinks`, and figures and `recent()` go on.

use super::known::Known;
use super::news::{Announcement, Message, PoolNews, StackNews, StallKey, StallNews};
use super::sinks::Told;
use super::{Missing, NoStack, Phase, PoolWaitReport, StallReport};
use crate::clock::{self, Nanos};
use crate::engine::Shared;
use crate::explain::{self, Effort, Explained};
use crate::watchdog::detector::Shown;
use crate::watchdog::workers::wall_clock;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at whether what stacks were explained with can be let go of.
const REST: Duration = Duration::from_secs(10);

/// The thread's main function; ends when the watchdog and the pulse thread have.
pub(crate) fn run(shared: &Arc<Shared>, news: &Receiver<Message>, sinks: SyncSender<Told>) {
    let mut reporter = Reporter::new(sinks);
    loop {
        let idle = reporter.job.is_none() && reporter.later.is_empty();
        let wait = match (idle, reporter.primed) {
            (false, _) => QUIET,
            (true, false) => PRIME_AFTER,
            (true, true) => REST,
        };
        let message = match news.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let now = clock::now();
        match message {
            Some(Message::Stall(news)) => reporter.stall_in_turn(*news, shared, now),
            Some(Message::Stack(news)) => reporter.stack(news, shared),
            Some(Message::PoolWait(news)) => reporter.pool_wait(&news, shared),
            Some(Message::TurnsLost(news)) => reporter.tell(Told::TurnsLost(news), shared),
            None => reporter.look_closer(shared),
        }
        reporter.finish_job(shared, false);
    }
    reporter.finish_job(shared, true);
    shared.end_of_reports();
}

/// A process that lives for so long has its debug information opened before the first stall needs it.
const PRIME_AFTER: Duration = Duration::from_secs(1);

/// Between two looks at whether a stack that takes longer to explain has been.
const QUIET: Duration = Duration::from_millis(1);

/// Stalls, and polls that were only suspected, of which something is remembered. Most never become one.
pub(super) const STALLS: usize = 1024;

struct Reporter {
    sinks: SyncSender<Told>,
    known: HashMap<StallKey, Known>,
    /// Stacks with places whose names must be read from debug information.
    later: VecDeque<StackNews>,
    /// The one that is being looked at, on a thread made for it: names of polls must be looked up while
    /// these go on, and cannot wait for debug information to be read.
    job: Option<Job>,
    /// The ends of stalls whose stacks are being looked at, or will be.
    ended: Vec<StallNews>,
    primed: bool,
}

struct Job {
    key: Option<StallKey>,
    thread: JoinHandle<Option<(StackNews, Option<Explained>)>>,
}

impl Reporter {
    fn new(sinks: SyncSender<Told>) -> Reporter {
        Reporter {
            sinks,
            known: HashMap::new(),
            later: VecDeque::new(),
            job: None,
            ended: Vec::new(),
            primed: false,
        }
    }

    fn stall(&mut self, news: &StallNews, shared: &Shared, now: Nanos) {
        let Some(Announcement {
            id,
            phase,
            last_words,
        }) = &news.announcement
        else {
            let known = self.known(news.key(), now);
            known.name(news);
            return;
        };
        let known = self.known(news.key(), now);
        known.announced = Some(*id);
        let newly = known.count_as(news.stall.certainty);
        known.slept_in = news.slept_in.or(known.slept_in);
        let names = known.name(news);
        let mut report = StallReport {
            span: names.span,
            task: names
                .task
                .or((news.stall.task != 0).then_some(news.stall.task)),
            driver_frozen: news.driver_frozen,
            spawned_at: names.spawned_at,
            missing: names.missing,
            thread: news.thread.as_ref().map(|thread| thread.slot.thread_name()),
            tid: news
                .thread
                .as_ref()
                .map(|thread| thread.slot.tid())
                .filter(|tid| *tid != 0),
            ..StallReport::unnamed(
                *id,
                *phase,
                &news.runtime,
                news.worker,
                &news.stall,
                news.slept_in,
            )
        };
        let watch = &news.runtime.watch;
        known.explain(&mut report, watch);
        let stalls = &news.runtime.stats.stalls;
        if newly {
            stalls.detected(report.cause, report.certainty);
        }
        if *phase == Phase::Ended {
            self.known.remove(&news.key());
            watch.profile.lock().add(&report);
            stalls.ended(&report, watch.settings.site_labels);
        }
        watch.recent.lock().keep(report.clone());
        self.tell(
            Told::Stall {
                report: Box::new(report),
                watch: watch.clone(),
                last_words: last_words.clone(),
            },
            shared,
        );
    }

    fn tell(&self, told: Told, shared: &Shared) {
        if self.sinks.try_send(told).is_err() {
            shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes in what the watchdog says of a stall. The last report has everything, so it waits for a stack
    /// that is still being looked at.
    fn stall_in_turn(&mut self, news: StallNews, shared: &Shared, now: Nanos) {
        let ended = |news: &Announcement| news.phase == Phase::Ended;
        if news.announcement.as_ref().is_some_and(ended) && self.is_looking_at(news.key()) {
            self.ended.push(news);
        } else {
            self.stall(&news, shared, now);
        }
    }

    fn is_looking_at(&self, key: StallKey) -> bool {
        let now = self.job.as_ref().and_then(|job| job.key);
        now == Some(key) || self.later.iter().any(|news| news.key == key)
    }

    /// Takes in a stack, and puts it off if it takes longer to explain.
    fn stack(&mut self, news: StackNews, shared: &Shared) {
        let own = &news.runtime.watch.settings.own_code;
        let explained = match &news.stack {
            Ok(stack) => shared
                .explainer
                .try_lock()
                .and_then(|mut explainer| explainer.explain(stack, own, Effort::Little)),
            Err(_) => None,
        };
        if news.stack.is_ok() && explained.is_none() {
            self.known(news.key, clock::now()).no_stack = Some(NoStack::NotYet);
            self.later.push_back(news);
        } else {
            self.explained(&news, explained);
        }
    }

    /// Begins what takes longer, if there is something and nothing else is under way.
    fn look_closer(&mut self, shared: &Arc<Shared>) {
        if self.job.is_some() {
            return;
        }
        let news = self.later.pop_front();
        if news.is_none() && std::mem::replace(&mut self.primed, true) {
            if let Some(mut explainer) = shared.explainer.try_lock() {
                explainer.rest();
            }
            return;
        }
        let key = news.as_ref().map(|news| news.key);
        let engine = shared.clone();
        let look = move || {
            let mut explainer = engine.explainer.lock();
            let Some(news) = news else {
                explainer.prime();
                return None;
            };
            let own = &news.runtime.watch.settings.own_code;
            let stack = news.stack.as_ref().ok();
            let explained = stack.and_then(|stack| explainer.explain(stack, own, Effort::Any));
            Some((news, explained))
        };
        let thread = std::thread::Builder::new().name("stall-explainer".to_owned());
        match thread.spawn(look) {
            Ok(thread) => self.job = Some(Job { key, thread }),
            // No more threads.
            Err(_) => {
                self.is_lost(key);
                shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
                self.say_ended(shared);
            }
        }
    }

    /// Takes in what has been found out, if it has; `wait` for it at the end.
    fn finish_job(&mut self, shared: &Shared, wait: bool) {
        if wait
            || self
                .job
                .as_ref()
                .is_some_and(|job| job.thread.is_finished())
        {
            if let Some(job) = self.job.take() {
                match job.thread.join() {
                    Ok(Some((news, explained))) => self.explained(&news, explained),
                    Ok(None) => {}
                    // A panic of ours has been printed where it happened.
                    Err(_) => self.is_lost(job.key),
                }
            }
            if wait {
                self.later.clear();
            }
            self.say_ended(shared);
        }
    }

    /// Nobody will explain that stack any more.
    fn is_lost(&mut self, key: Option<StallKey>) {
        if let Some(known) = key.and_then(|key| self.known.get_mut(&key)) {
            known.no_stack = Some(NoStack::Unsupported);
        }
    }

    fn say_ended(&mut self, shared: &Shared) {
        for news in std::mem::take(&mut self.ended) {
            self.stall_in_turn(news, shared, clock::now());
        }
    }

    /// Takes in an explained stack, or why there is none. A stall that has been announced already has it
    /// added to its report.
    fn explained(&mut self, news: &StackNews, explained: Option<Explained>) {
        let watch = news.runtime.watch.clone();
        let shown_on = &news.runtime.shown[news.key.worker];
        let known = self.known(news.key, clock::now());
        match (explained, &news.stack) {
            (Some(explained), _) => {
                let shown = explain::shown(&explained).unwrap_or(Shown::Unclear);
                shown_on.put(news.key.serial, shown);
                known.add(explained, news.after);
            }
            (None, Err(why)) => known.no_stack = Some(*why),
            (None, Ok(_)) => {
                shown_on.put(news.key.serial, Shown::Unclear);
                known.no_stack = Some(NoStack::Unsupported);
            }
        }
        let Some(id) = known.announced else {
            return;
        };
        let mut recent = watch.recent.lock();
        if let Some(mut report) = recent.stall(id) {
            // What an earlier stack did not tell, this one may.
            report.missing.retain(|missing| {
                !matches!(
                    missing,
                    Missing::Stack(_) | Missing::Truncated | Missing::Lost | Missing::NoOwnCode
                )
            });
            known.explain(&mut report, &watch);
            recent.keep(report);
        }
    }

    fn known(&mut self, key: StallKey, now: Nanos) -> &mut Known {
        if self.known.len() >= STALLS && !self.known.contains_key(&key) {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.at);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.known.remove(&oldest);
            }
        }
        self.known.entry(key).or_insert_with(|| Known::new(now))
    }

    fn pool_wait(&self, news: &PoolNews, shared: &Shared) {
        let report = PoolWaitReport {
            id: news.id,
            phase: news.phase,
            runtime: news.runtime.name.clone(),
            started_at: wall_clock(news.since),
            waited: news.waited,
        };
        let watch = news.runtime.watch.clone();
        watch.recent.lock().keep_pool_wait(report.clone());
        self.tell(Told::PoolWait { report, watch }, shared);
    }
}
