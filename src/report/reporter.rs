//! The reporter: names what the watchdog found, and tells everybody.
//!
//! *Runs on:* its own thread, `stall-reporter`.
//! *Here:* may allocate, wait, and call the user's code. What must not be lost comes first: a report is
//! kept before it goes to the callback, and logged last.

use super::log::{self, Log};
use super::names::{self, Names};
use super::{Missing, NoStack, Phase, PoolWaitReport, StackSample, StallReport};
use crate::capture::RawStack;
use crate::clock::{self, Nanos};
use crate::engine::{Shared, Watch, WatchedRuntime};
use crate::explain::cause::{self, SleptIn};
use crate::explain::{self, Effort, Explained, advice, site};
use crate::slot::{Marks, Slot};
use crate::watchdog::ENDLESS_AFTER;
use crate::watchdog::detector::Stall;
use crate::watchdog::workers::wall_clock;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// News for the reporter.
#[derive(Debug)]
pub(crate) enum Message {
    Stall(Box<StallNews>),
    Stack(StackNews),
    PoolWait(PoolNews),
}

/// What the watchdog found out about a worker.
#[derive(Debug)]
pub(crate) struct StallNews {
    /// `None` for a poll that is only suspected: its names are wanted, in case.
    pub(crate) announcement: Option<Announcement>,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) worker: usize,
    pub(crate) stall: Stall,
    /// What it was last seen asleep in.
    pub(crate) slept_in: Option<SleptIn>,
    pub(crate) thread: Option<StallThread>,
}

/// A stack that the watchdog has taken, or why it has not.
#[derive(Debug)]
pub(crate) struct StackNews {
    pub(crate) key: StallKey,
    pub(crate) runtime: Arc<WatchedRuntime>,
    /// How old the stall was when the stack was asked for.
    pub(crate) after: Duration,
    pub(crate) stack: Result<RawStack, NoStack>,
}

/// Which stall, from its first suspicion on: runtime, worker, and the serial of its detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StallKey {
    pub(crate) runtime: u64,
    pub(crate) worker: usize,
    pub(crate) serial: u64,
}

impl StallNews {
    fn key(&self) -> StallKey {
        StallKey {
            runtime: self.runtime.id,
            worker: self.worker,
            serial: self.stall.serial,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Announcement {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    pub(crate) last_words: Arc<AtomicBool>,
}

/// The thread that drives the worker, and the marks it had when the watchdog looked.
#[derive(Debug)]
pub(crate) struct StallThread {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
    pub(crate) marks: Option<Marks>,
}

/// What the pulse thread found out about a blocking pool.
#[derive(Debug)]
pub(crate) struct PoolNews {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) since: Nanos,
    pub(crate) waited: Duration,
}

/// Between two looks at whether what stacks were explained with can be let go of.
const REST: Duration = Duration::from_secs(10);

/// The thread's main function; ends when the watchdog and the pulse thread have.
pub(crate) fn run(shared: &Arc<Shared>, news: &Receiver<Message>) {
    let mut reporter = Reporter::default();
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
        shared.reporter_busy_since.store(now.0, Ordering::Relaxed);
        match message {
            Some(Message::Stall(news)) => reporter.stall_in_turn(*news, shared, now),
            Some(Message::Stack(news)) => reporter.stack(news, shared),
            Some(Message::PoolWait(news)) => reporter.pool_wait(&news, shared, now),
            None => reporter.look_closer(shared),
        }
        reporter.finish_job(shared, false);
        shared.reporter_busy_since.store(0, Ordering::Relaxed);
    }
    reporter.finish_job(shared, true);
}

/// A process that lives for so long has its debug information opened before the first stall needs it.
const PRIME_AFTER: Duration = Duration::from_secs(1);

/// Between two looks at whether a stack that takes longer to explain has been.
const QUIET: Duration = Duration::from_millis(1);

/// Stalls, and polls that were only suspected, of which something is remembered. Most never become one.
pub(super) const STALLS: usize = 1024;

/// Different stacks kept of one stall.
const STACKS: usize = 8;

#[derive(Default)]
struct Reporter {
    known: HashMap<StallKey, Known>,
    /// Stacks with places whose names must be read from debug information.
    later: VecDeque<StackNews>,
    /// The one that is being looked at, on a thread made for it: names of polls must be looked up while
    /// these go on, and cannot wait for debug information to be read.
    job: Option<Job>,
    /// The ends of stalls whose stacks are being looked at, or will be.
    ended: Vec<StallNews>,
    primed: bool,
    log: Log,
}

struct Job {
    key: Option<StallKey>,
    thread: JoinHandle<Option<(StackNews, Option<Explained>)>>,
}

/// What was found out about a stall so far.
#[derive(Default)]
struct Known {
    at: Nanos,
    /// As looked up while the poll was only suspected, or first announced.
    names: Option<Names>,
    stacks: Vec<StackSample>,
    /// What the thread was last seen asleep in.
    slept_in: Option<SleptIn>,
    /// What else there is to say about the stacks.
    truncated: bool,
    lost: bool,
    no_stack: Option<NoStack>,
    /// Under which number it was announced.
    announced: Option<u64>,
}

impl Reporter {
    fn stall(&mut self, news: &StallNews, shared: &Shared, now: Nanos) {
        let Some(Announcement {
            id,
            phase,
            last_words,
        }) = &news.announcement
        else {
            let known = self.known(news.key(), now);
            known.names = Some(names::look_up(news));
            return;
        };
        let known = self.known(news.key(), now);
        known.announced = Some(*id);
        known.slept_in = news.slept_in.or(known.slept_in);
        let names = known.name(news);
        let mut report = StallReport {
            span: names.span,
            task: names.task,
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
        if *phase == Phase::Ended {
            self.known.remove(&news.key());
            watch.profile.lock().add(&report);
        }
        watch.recent.lock().keep(report.clone());
        if report.duration >= ENDLESS_AFTER && !last_words.swap(true, Ordering::Relaxed) {
            log::write_last_words(&report);
        }
        if let Some(on_stall) = &watch.settings.on_stall {
            guarded(shared, || on_stall(&report));
        }
        guarded(shared, || self.log.stall(&mut report, watch, now));
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
            // No more threads: the stack is lost.
            Err(_) => {
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
                // A panic of ours has been printed where it happened.
                if let Ok(Some((news, explained))) = job.thread.join() {
                    self.explained(&news, explained);
                }
            }
            if wait {
                self.later.clear();
            }
            self.say_ended(shared);
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
        let known = self.known(news.key, clock::now());
        match (explained, &news.stack) {
            (Some(explained), _) => {
                if let Some(shown) = explain::shown(&explained) {
                    news.runtime.shown[news.key.worker].put(news.key.serial, shown);
                }
                known.add(explained, news.after);
            }
            (None, Err(why)) => known.no_stack = Some(*why),
            (None, Ok(_)) => known.no_stack = Some(NoStack::Unsupported),
        }
        let Some(id) = known.announced else {
            return;
        };
        let mut recent = watch.recent.lock();
        if let Some(mut report) = recent.stall(id) {
            report
                .missing
                .retain(|missing| !matches!(missing, Missing::Stack(_)));
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
        self.known.entry(key).or_insert_with(|| Known {
            at: now,
            ..Known::default()
        })
    }

    fn pool_wait(&mut self, news: &PoolNews, shared: &Shared, now: Nanos) {
        let report = PoolWaitReport {
            id: news.id,
            phase: news.phase,
            runtime: news.runtime.name.clone(),
            started_at: wall_clock(news.since),
            waited: news.waited,
        };
        let watch: &Watch = &news.runtime.watch;
        watch.recent.lock().keep_pool_wait(report.clone());
        if let Some(on_pool_wait) = &watch.settings.on_pool_wait {
            guarded(shared, || on_pool_wait(&report));
        }
        guarded(shared, || self.log.pool_wait(&report, watch, now));
    }
}

impl Known {
    /// What the stall is called: as it is now, or was while it was only suspected.
    fn name(&mut self, news: &StallNews) -> Names {
        match &self.names {
            Some(names) if names.span.is_some() => names.clone(),
            earlier => {
                let now = names::look_up(news);
                let names = match earlier {
                    Some(earlier) if now.span.is_none() => earlier.clone(),
                    _ => now,
                };
                self.names = Some(names.clone());
                names
            }
        }
    }

    /// Adds a stack; one that was found before is counted.
    fn add(&mut self, explained: Explained, after: Duration) {
        self.no_stack = None;
        self.truncated |= explained.truncated;
        self.lost |= explained.lost;
        let same = self
            .stacks
            .iter()
            .position(|known| known.frames == explained.frames);
        match same {
            Some(known) => self.stacks[known].count += 1,
            None if self.stacks.len() < STACKS => self.stacks.push(StackSample {
                after,
                count: 1,
                frames: explained.frames,
                complete: explained.complete,
            }),
            None => {}
        }
    }

    /// Says where it was, why, and what to do.
    fn explain(&self, report: &mut StallReport, watch: &Watch) {
        report.stacks.clone_from(&self.stacks);
        let frames = report
            .telling_stack()
            .map_or(Vec::new(), |stack| stack.frames.clone());
        report.site = site::site(&frames);
        report.cause = cause::cause(
            &report.time,
            watch.settings.threshold,
            self.slept_in,
            &frames,
        );
        let of_the_poll = explain::of_the_poll(&frames);
        report.advice = watch
            .settings
            .advice
            .find(of_the_poll)
            .map(str::to_owned)
            .or_else(|| {
                let call = report.asleep_in.as_deref();
                advice::advise(of_the_poll, report.cause, call).map(str::to_owned)
            });
        (report.seen_here, report.lost_here) = watch.profile.lock().seen(report);
        if let Some(why) = self.no_stack.filter(|_| self.stacks.is_empty()) {
            report.missing.push(Missing::Stack(why));
        }
        let also = [
            (self.truncated, Missing::Truncated),
            (self.lost, Missing::Lost),
            (
                !self.stacks.is_empty() && report.site.is_none(),
                Missing::NoOwnCode,
            ),
        ];
        let also = also.into_iter().filter(|(holds, _)| *holds);
        for (_, missing) in also {
            if !report.missing.contains(&missing) {
                report.missing.push(missing);
            }
        }
    }
}

/// The user's code may panic; that is counted, and the reporter goes on.
fn guarded(shared: &Shared, user_code: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(user_code)).is_err() {
        shared.failed_callbacks.fetch_add(1, Ordering::Relaxed);
    }
}
